//! The configuration: one typed value, from a file, its drop-ins and the command line.
//!
//! `/etc/cvmfs-snapshotter/config.toml` first, then the files of `conf.d` beside it in the order of their names. A later value
//! replaces an earlier one; tables are merged key by key; a `[[repositories]]` with a name that is there changes that one, with
//! another it comes after. Unknown keys are refused with the nearest known one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use image::thin::is_repository_name;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::repository::{OnError, Repository};
use crate::resolve::Way;

/// Where the configuration is unless the command line says otherwise.
pub const FILE: &str = "/etc/cvmfs-snapshotter/config.toml";
/// The repository that is served when no configuration names one.
const DEFAULT_REPOSITORY: &str = "unpacked.cern.ch";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// which
        path: PathBuf,
        /// why
        source: std::io::Error,
    },
    /// A file is no TOML.
    #[error("{path}: {source}")]
    Syntax {
        /// which
        path: PathBuf,
        /// where and why
        source: Box<toml::de::Error>,
    },
    /// The values make no sense.
    #[error("the configuration from {files}: {why}")]
    Value {
        /// which files
        files: String,
        /// what is wrong
        why: String,
    },
}

/// How much a layer that stands for a repository's directory takes, in answers to containerd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UsageReport {
    /// Nothing: no local disk is used.
    #[default]
    None,
    /// Its uncompressed size, so that lists of images show it.
    Logical,
}

/// Where a layer comes from that no repository has while the layers above it are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FillMissing {
    /// containerd downloads it, and with it all layers above.
    Off,
    /// From containerd's content store if it is there already.
    #[default]
    Content,
    /// Otherwise from the registry, anonymously or with the credentials of the Docker configuration.
    Registry,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// lines for people
    #[default]
    Text,
    /// an object a line
    Json,
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "snake_case")]
pub struct Config {
    /// state directory: on a local file system, with a short name
    pub root: PathBuf,
    /// socket for containerd
    pub address: PathBuf,
    /// socket for people, metrics and health; beside `address` if empty
    pub control: Option<PathBuf>,
    /// which events to log
    pub log_level: String,
    /// how
    pub log_format: LogFormat,
    /// in which order layers are looked for
    pub resolve: Vec<Way>,
    /// what to do about a layer that is absent below layers that are there
    pub fill_missing: FillMissing,
    /// whether containers get the flat root of an image in place of its layers
    pub prefer_flat: Auto,
    /// whether new containers stand on mounts without extended attributes where their files have none anyway
    pub bare_mounts: bool,
    /// what `Usage` answers
    pub usage: UsageReport,
    /// repositories, the first one that has a layer serves it
    pub repositories: Vec<RepositoryConfig>,
    /// mount options
    pub overlay: OverlayConfig,
    /// how to reach containerd
    pub containerd: ContainerdConfig,
    /// where to serve metrics over TCP
    pub metrics: MetricsConfig,
    /// existing snapshotter's key: the one repository
    #[serde(skip_serializing)]
    repository: Option<String>,
    /// existing snapshotter's key: where it is mounted
    #[serde(rename = "absolute-mountpoint", skip_serializing)]
    absolute_mountpoint: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/cvmfs-snapshotter".into(),
            address: "/run/cvmfs-snapshotter/snapshotter.sock".into(),
            control: None,
            log_level: "info".into(),
            log_format: LogFormat::Text,
            resolve: Way::ALL.to_vec(),
            fill_missing: FillMissing::default(),
            prefer_flat: Auto::default(),
            bare_mounts: true,
            usage: UsageReport::default(),
            repositories: Vec::new(),
            overlay: OverlayConfig::default(),
            containerd: ContainerdConfig::default(),
            metrics: MetricsConfig::default(),
            repository: None,
            absolute_mountpoint: None,
        }
    }
}

/// One repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// its name
    pub name: String,
    /// where it is mounted; `/cvmfs/NAME` if empty
    #[serde(default)]
    pub mountpoint: Option<PathBuf>,
    /// only for images whose names match one of these; `*` stands for any text
    #[serde(default)]
    pub include: Vec<String>,
    /// not for images whose names match one of these
    #[serde(default)]
    pub exclude: Vec<String>,
    /// what to do when it is down
    #[serde(default)]
    pub on_error: OnError,
    /// seconds to wait for an answer
    #[serde(default = "seconds")]
    pub timeout: f64,
}

fn seconds() -> f64 {
    5.0
}

impl RepositoryConfig {
    /// A repository at its usual place.
    pub fn usual(name: &str) -> Self {
        Self {
            name: name.into(),
            mountpoint: None,
            include: Vec::new(),
            exclude: Vec::new(),
            on_error: OnError::default(),
            timeout: seconds(),
        }
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.mountpoint.clone().unwrap_or_else(|| Path::new("/cvmfs").join(&self.name))
    }

    /// How long to wait for an answer.
    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// Yes, no, or as the kernel needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// as needed
    #[default]
    Auto,
    /// yes
    On,
    /// no
    Off,
}

/// Mount options of containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OverlayConfig {
    /// `user.overlay.` attributes; needed within a user namespace
    pub userxattr: Auto,
    /// no durability for what containers write
    pub volatile: bool,
    /// more options, as they are
    pub extra: Vec<String>,
}

/// How to reach containerd, for what this program is a client of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerdConfig {
    /// its socket
    pub address: PathBuf,
    /// the name under which containerd knows this snapshotter
    pub snapshotter: String,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self { address: "/run/containerd/containerd.sock".into(), snapshotter: "cvmfs-snapshotter".into() }
    }
}

/// Where to serve metrics over TCP; they are on the control socket anyway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// for instance `127.0.0.1:9290`
    pub address: Option<std::net::SocketAddr>,
}

impl Config {
    /// Reads a file and its drop-ins. A file that nobody named may be absent.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        let main = file.unwrap_or(Path::new(FILE));
        let mut files = Vec::new();
        let mut merged = Table::new();
        if file.is_some() || main.exists() {
            files.push(main.to_owned());
        }
        let drop_ins = main.parent().unwrap_or(Path::new("")).join("conf.d");
        if let Ok(entries) = std::fs::read_dir(&drop_ins) {
            let mut found: Vec<PathBuf> = entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|e| e == "toml"))
                .collect();
            found.sort();
            files.extend(found);
        }
        for path in &files {
            let text =
                std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            let table = text
                .parse::<Table>()
                .map_err(|source| ConfigError::Syntax { path: path.clone(), source: Box::new(source) })?;
            merge(&mut merged, table);
        }
        let names: Vec<String> = files.iter().map(|path| path.display().to_string()).collect();
        Self::of(merged).map_err(|why| ConfigError::Value { files: names.join(", "), why })
    }

    fn of(table: Table) -> Result<Self, String> {
        let config: Self = table.try_into().map_err(|error: toml::de::Error| with_nearest(error.message()))?;
        config.complete()
    }

    /// Fills in what follows from other values, and refuses what can't work.
    fn complete(mut self) -> Result<Self, String> {
        if let Some(name) = self.repository.take() {
            let mut repository = RepositoryConfig::usual(&name);
            repository.mountpoint = self.absolute_mountpoint.take();
            self.repositories.insert(0, repository);
        } else if let Some(mountpoint) = self.absolute_mountpoint.take() {
            let mut repository = RepositoryConfig::usual(DEFAULT_REPOSITORY);
            repository.mountpoint = Some(mountpoint);
            self.repositories.insert(0, repository);
        }
        if self.repositories.is_empty() {
            self.repositories.push(RepositoryConfig::usual(DEFAULT_REPOSITORY));
        }
        let mut names = std::collections::HashSet::new();
        for repository in &self.repositories {
            let name = &repository.name;
            if !is_repository_name(name) {
                return Err(format!("{name:?} is not the name of a repository; write for instance unpacked.cern.ch"));
            }
            if !names.insert(name) {
                return Err(format!("repository {name} is there twice"));
            }
            usable("mountpoint", &repository.mountpoint())?;
            if !(repository.timeout > 0.0 && repository.timeout <= 3600.0) {
                return Err(format!(
                    "timeout = {} of repository {name} is not between 0 and 3600 seconds",
                    repository.timeout
                ));
            }
        }
        usable("root", &self.root)?;
        usable("address", &self.address)?;
        if self.root.as_os_str().len() > 100 {
            return Err(format!(
                "root = {:?} is too long: mount options of all layers have to fit into one page; take less than 100 bytes",
                self.root
            ));
        }
        Ok(self)
    }

    /// The repositories, in order.
    pub fn repositories(&self) -> Vec<Arc<Repository>> {
        let repository = |config: &RepositoryConfig| {
            let repository = Repository::new(&config.name, &config.mountpoint(), config.on_error, config.patience());
            Arc::new(repository.with_patterns(config.include.clone(), config.exclude.clone()))
        };
        self.repositories.iter().map(repository).collect()
    }

    /// The socket for people, metrics and health.
    pub fn control(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| self.address.with_file_name("control.sock"))
    }

    /// The text of the whole configuration.
    pub fn print(&self) -> String {
        toml::to_string_pretty(self).expect("every value has a form in TOML")
    }
}

/// overlayfs separates its options with commas and directories with colons.
fn usable(key: &str, path: &Path) -> Result<(), String> {
    let text = path.to_str().ok_or_else(|| format!("{key} = {path:?} is not UTF-8"))?;
    if !path.is_absolute() || text.contains([':', ',', '\\']) {
        return Err(format!("{key} = {text:?} has to be an absolute path without colons, commas and backslashes"));
    }
    Ok(())
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) if key == "repositories" => {
                for value in new {
                    let name = value.get("name").cloned();
                    let same = old.iter_mut().find(|other| name.is_some() && other.get("name") == name.as_ref());
                    match (same, value) {
                        (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
                        (_, value) => old.push(value),
                    }
                }
            }
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// The message about an unknown key, with the known key that is most like it.
fn with_nearest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let Some((unknown, known)) = quoted.split_first()
        && message.starts_with("unknown field")
        && let Some(nearest) = known.iter().min_by_key(|name| edits(unknown, name))
    {
        let known = known.iter().filter(|name| !name.is_empty()).copied().collect::<Vec<_>>().join(", ");
        return format!("there is no key {unknown:?}; did you mean {nearest:?}? Known here are {known}");
    }
    message.trim().to_owned()
}

/// How many insertions, deletions and replacements turn one text into the other.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::of(text.parse::<Table>().expect("it is TOML"))
    }

    #[test]
    fn nothing_is_a_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config.repositories, [RepositoryConfig::usual("unpacked.cern.ch")]);
        assert_eq!(config.repositories[0].mountpoint(), Path::new("/cvmfs/unpacked.cern.ch"));
        assert_eq!(config.control(), Path::new("/run/cvmfs-snapshotter/control.sock"));
    }

    #[test]
    fn the_keys_of_the_existing_snapshotter_do() {
        let config = parse("repository = \"a.example.org\"\nabsolute-mountpoint = \"/mnt/a\"").unwrap();
        assert_eq!(
            (config.repositories[0].name.as_str(), config.repositories[0].mountpoint()),
            ("a.example.org", "/mnt/a".into())
        );
        assert_eq!(parse("repository = \"b.c\"").unwrap().repositories[0].mountpoint(), Path::new("/cvmfs/b.c"));
        assert_eq!(parse("absolute-mountpoint = \"/mnt\"").unwrap().repositories[0].name, "unpacked.cern.ch");
    }

    #[test]
    fn drop_ins_merge_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("config.toml", "usage = \"logical\"\n[[repositories]]\nname = \"a.b\"\n[overlay]\nvolatile = true\n");
        write(
            "conf.d/20.toml",
            "[[repositories]]\nname = \"a.b\"\non_error = \"fail\"\n[[repositories]]\nname = \"c.d\"\n",
        );
        write("conf.d/10.toml", "usage = \"none\"\n[overlay]\nextra = [\"xino=off\"]\n");
        write("conf.d/ignored.txt", "nonsense");
        let config = Config::read(Some(&directory.path().join("config.toml"))).unwrap();
        assert_eq!(config.usage, UsageReport::None);
        assert_eq!(
            config.overlay,
            OverlayConfig { volatile: true, extra: vec!["xino=off".into()], ..OverlayConfig::default() }
        );
        let names: Vec<_> = config.repositories.iter().map(|r| (r.name.as_str(), r.on_error)).collect();
        assert_eq!(names, [("a.b", OnError::Fail), ("c.d", OnError::Fallback)]);
        write("conf.d/30.toml", "broken");
        assert!(Config::read(Some(&directory.path().join("config.toml"))).unwrap_err().to_string().contains("30.toml"));
    }

    #[test]
    fn what_can_t_work_is_refused_with_a_reason() {
        for (text, reason) in [
            ("rot = \"/x\"", "did you mean \"root\""),
            ("[[repositories]]\nname = \"a.b\"\nmountpont = \"/x\"", "did you mean \"mountpoint\""),
            ("[[repositories]]\nname = \"../x\"", "is not the name of a repository"),
            ("[[repositories]]\nname = \"a.b\"\n[[repositories]]\nname = \"a.b\"", "twice"),
            ("[[repositories]]\nname = \"a.b\"\nmountpoint = \"/a:b\"", "without colons"),
            ("[[repositories]]\nname = \"a.b\"\ntimeout = 0", "timeout"),
            ("root = \"relative\"", "absolute path"),
            ("usage = \"much\"", "unknown variant"),
            ("resolve = [\"guess\"]", "unknown variant"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn the_printed_configuration_is_one() {
        let config = parse("[[repositories]]\nname = \"a.b\"\n[metrics]\naddress = \"127.0.0.1:9290\"").unwrap();
        assert_eq!(parse(&config.print()).unwrap(), config);
    }
}
