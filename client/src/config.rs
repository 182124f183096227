//! What a mount is made of: parameters from files, options and flags, as one typed value.
//!
//! Later sources win: built-in default < files below `/etc/cvmfs` < `-o NAME=value` < flags. Every value
//! keeps its origin, so that `showconfig` and error messages can name it. Names and defaults are those of
//! the reference client, with four exceptions: files keep their owners (`CVMFS_CLAIM_OWNERSHIP=no`), without
//! any `CVMFS_HTTP_PROXY` the connection is direct, the cache has a directory of its own, and the mount is
//! `ro,nosuid,nodev` whatever `CVMFS_SUID` says.

mod files;
pub mod ownership;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cvmfs::hash::ContentHash;

pub use ownership::{IdMap, Ownership};

/// Directory of the configuration files.
pub const DEFAULT_DIRECTORY: &str = "/etc/cvmfs";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The shell did not get to the end of a file.
    #[error("{path}: the shell stops in this file: {says}")]
    Shell {
        /// The file.
        path: PathBuf,
        /// What the shell printed.
        says: String,
    },
    /// A value is not what the parameter takes.
    #[error("{name}={value} ({origin}): expected {expected}")]
    Value {
        /// Parameter.
        name: String,
        /// Its value.
        value: String,
        /// Where the value comes from.
        origin: Origin,
        /// What it should be.
        expected: &'static str,
    },
    /// A parameter without which nothing can be mounted.
    #[error("{name} is not set; {hint}")]
    Missing {
        /// Parameter.
        name: &'static str,
        /// How to set it.
        hint: String,
    },
    /// Not a repository name.
    #[error("{0:?} is not a repository name: 1 to 60 of A-Z a-z 0-9 - _ . and the first of them alphanumeric")]
    Name(String),
    /// Mount option that nobody knows.
    #[error("unknown mount option {0:?}; parameters are given as NAME=value")]
    MountOption(String),
    /// A line of a user or group map.
    #[error("{path}, line {line}: expected `<from> <to>` with numbers, or `* <to>`")]
    IdMap {
        /// The map.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// `-o NAME=value`.
    Option,
    /// A flag of the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in default"),
            Origin::File(path) => write!(f, "from {}", path.display()),
            Origin::Option => f.write_str("from -o"),
            Origin::Flag => f.write_str("from the command line"),
        }
    }
}

/// Parameters by name, each with its origin.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    values: BTreeMap<String, (String, Origin)>,
}

impl Parameters {
    /// Value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| value.as_str())
    }

    /// Sets a parameter; the last call wins.
    pub fn set(&mut self, name: &str, value: impl Into<String>, origin: Origin) {
        self.values.insert(name.to_owned(), (value.into(), origin));
    }

    /// Names, values and origins, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Origin)> {
        self.values.iter().map(|(name, (value, origin))| (name.as_str(), value.as_str(), origin))
    }

    /// Value of a parameter that is set and not empty, with `@fqrn@` and `@org@` replaced.
    fn text(&self, name: &str, fqrn: &str) -> Option<String> {
        let org = fqrn.split('.').next().unwrap_or(fqrn);
        let value = self.get(name).filter(|value| !value.is_empty())?;
        Some(value.replace("@fqrn@", fqrn).replace("@org@", org))
    }

    fn wrong(&self, name: &str, expected: &'static str) -> ConfigError {
        let (value, origin) = self.values.get(name).cloned().unwrap_or((String::new(), Origin::Default));
        ConfigError::Value { name: name.to_owned(), value, origin, expected }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.get(name).filter(|value| !value.is_empty()) else { return Ok(default) };
        match value.to_ascii_lowercase().as_str() {
            "yes" | "on" | "1" | "true" => Ok(true),
            "no" | "off" | "0" | "false" => Ok(false),
            _ => Err(self.wrong(name, "yes or no")),
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, ConfigError> {
        match self.get(name).map(str::trim).filter(|value| !value.is_empty()) {
            Some(value) => value.parse().map_err(|_| self.wrong(name, "a number")),
            None => Ok(default),
        }
    }

    fn seconds(&self, name: &str, default: u64) -> Result<Duration, ConfigError> {
        Ok(Duration::from_secs(self.number(name, default)?))
    }
}

/// Whether `name` can be a parameter.
pub fn is_parameter_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Who sees the information attributes in listings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Visibility {
    /// On the root directory only.
    #[default]
    RootOnly,
    /// Nowhere.
    Never,
    /// Everywhere.
    Always,
}

/// Timeouts and retries of downloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkLimits {
    /// Connect and low-speed time through a proxy.
    pub timeout_proxy: Duration,
    /// The same without a proxy.
    pub timeout_direct: Duration,
    /// Bytes a second below which a transfer counts as stalled.
    pub low_speed: u64,
    /// Retries on the same path.
    pub retries: u32,
    /// First pause between retries.
    pub backoff: Duration,
    /// Longest pause between retries.
    pub backoff_max: Duration,
    /// After this time the first proxy group is tried again.
    pub proxy_reset: Option<Duration>,
    /// After this time the first server is tried again.
    pub host_reset: Option<Duration>,
    /// Whether redirects are followed (up to 4).
    pub follow_redirects: bool,
}

/// Servers and proxies of one kind of data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Servers, tried as a ring; without trailing slash.
    pub servers: Vec<String>,
    /// Proxy groups: members share the load, groups are tried in order. `None` is a direct connection.
    pub proxies: Vec<Vec<Option<String>>>,
}

/// Everything a mount needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Repository name.
    pub fqrn: String,
    /// Where objects come from.
    pub network: Network,
    /// Where external files come from, if anywhere.
    pub external: Option<Network>,
    /// Timeouts and retries.
    pub limits: NetworkLimits,
    /// Master public keys.
    pub master_keys: Vec<PathBuf>,
    /// Fingerprints and revisions that are refused.
    pub blacklist: Option<PathBuf>,
    /// Cache directory.
    pub cache: PathBuf,
    /// Bytes the cache may hold; `None` = unlimited.
    pub cache_limit: Option<u64>,
    /// How long the kernel may keep names and attributes.
    pub kernel_ttl: Duration,
    /// Upper limit of the time between checks for a new revision.
    pub max_ttl: Option<Duration>,
    /// Whether new revisions are looked for.
    pub auto_update: bool,
    /// Fixed root catalog instead of the newest revision.
    pub root_hash: Option<ContentHash>,
    /// Number of nested catalogs to keep attached.
    pub watermark: usize,
    /// Who owns the files.
    pub ownership: Ownership,
    /// Everybody may read everything.
    pub world_readable: bool,
    /// Whether the kernel checks permissions.
    pub check_permissions: bool,
    /// Who sees information attributes.
    pub xattr_visibility: Visibility,
    /// Values of `$(NAME)` in links.
    pub variables: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Forbid execution of programs.
    pub noexec: bool,
    /// All parameters as they were read.
    pub parameters: Parameters,
}

/// What the command line gives.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--server-url`.
    pub server_url: Option<String>,
    /// `--public-key`, repeated.
    pub public_keys: Vec<PathBuf>,
    /// `--cache`.
    pub cache: Option<PathBuf>,
    /// `--cache-limit`, MiB.
    pub cache_limit: Option<i64>,
    /// `--proxy`.
    pub proxy: Option<String>,
    /// `-o`, repeated.
    pub options: Vec<String>,
}

/// Mount options that say what is so anyway, or concern others (fstab, systemd, the mount helper).
const IGNORED_OPTIONS: [&str; 28] = [
    "ro",
    "nosuid",
    "nodev",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "exec",
    "async",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "allow_other",
    "default_permissions",
    "system_mount",
    "grab_mountpoint",
    "nonempty",
    "rw",
    "uid",
];
const OVERRULED_OPTIONS: [&str; 3] = ["rw", "suid", "dev"];

impl Config {
    /// Reads the files in `directory`, then options and flags, and checks the result.
    pub fn load(fqrn: &str, directory: &Path, flags: &Flags) -> Result<Config, ConfigError> {
        let (fqrn, parameters, noexec) = gather(fqrn, directory, flags)?;
        build(fqrn, parameters, noexec, std::env::vars_os())
    }
}

/// All parameters for a repository, with their origins; the name is completed with the default domain.
pub fn gather(fqrn: &str, directory: &Path, flags: &Flags) -> Result<(String, Parameters, bool), ConfigError> {
    let mut parameters = Parameters::default();
    let mut fqrn = fqrn.to_owned();
    if !is_repository_name(&fqrn) {
        return Err(ConfigError::Name(fqrn));
    }
    if !fqrn.contains('.') {
        let mut defaults = Parameters::default();
        files::read_all(directory, &fqrn, &mut defaults)?;
        if let Some(domain) = defaults.get("CVMFS_DEFAULT_DOMAIN").filter(|d| !d.is_empty()) {
            fqrn = format!("{fqrn}.{domain}");
        }
    }
    files::read_all(directory, &fqrn, &mut parameters)?;
    let noexec = apply_options(&flags.options, &mut parameters)?;
    let mut flag = |name: &str, value: String| parameters.set(name, value, Origin::Flag);
    if let Some(url) = &flags.server_url {
        flag("CVMFS_SERVER_URL", url.clone());
    }
    if !flags.public_keys.is_empty() {
        let keys: Vec<String> = flags.public_keys.iter().map(|key| key.to_string_lossy().into_owned()).collect();
        flag("CVMFS_PUBLIC_KEY", keys.join(":"));
    }
    if let Some(cache) = &flags.cache {
        flag("CVMFS_CACHE_DIR", cache.to_string_lossy().into_owned());
    }
    if let Some(limit) = flags.cache_limit {
        flag("CVMFS_QUOTA_LIMIT", limit.to_string());
    }
    if let Some(proxy) = &flags.proxy {
        flag("CVMFS_HTTP_PROXY", proxy.clone());
    }
    Ok((fqrn, parameters, noexec))
}

/// Puts `NAME=value` options among the parameters; tells whether `noexec` was among the mount options.
fn apply_options(options: &[String], parameters: &mut Parameters) -> Result<bool, ConfigError> {
    let mut noexec = false;
    for list in options {
        let mut current: Option<(String, String)> = None;
        for piece in list.split(',') {
            let (name, value) = piece.split_once('=').map_or((piece, None), |(name, value)| (name, Some(value)));
            let is_parameter = is_parameter_name(name) && name.bytes().all(|b| !b.is_ascii_lowercase());
            if let (true, Some(value)) = (is_parameter, value) {
                current
                    .replace((name.to_owned(), value.to_owned()))
                    .into_iter()
                    .for_each(|(n, v)| parameters.set(&n, v, Origin::Option));
            } else if name == "noexec" {
                noexec = true;
            } else if OVERRULED_OPTIONS.contains(&name) {
                tracing::warn!(option = name, "ignored: the mount is always ro,nosuid,nodev");
            } else if IGNORED_OPTIONS.contains(&name)
                || matches!(name, "" | "gid" | "fsname" | "comment")
                || name.starts_with("x-")
            {
            } else if let Some((_, value)) = &mut current {
                // A comma inside of a value.
                value.push(',');
                value.push_str(piece);
            } else {
                return Err(ConfigError::MountOption(piece.to_owned()));
            }
        }
        current.into_iter().for_each(|(n, v)| parameters.set(&n, v, Origin::Option));
    }
    Ok(noexec)
}

/// Whether this may name a repository.
pub fn is_repository_name(name: &str) -> bool {
    name.len() <= 60
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn build(
    fqrn: String,
    parameters: Parameters,
    noexec: bool,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigError> {
    let p = &parameters;
    let servers = p.text("CVMFS_SERVER_URL", &fqrn).map(|urls| split_urls(&urls)).unwrap_or_default();
    if servers.is_empty() {
        let hint = format!(
            "give --server-url http://HOST/cvmfs/@fqrn@, or set it in {DEFAULT_DIRECTORY}/config.d/{fqrn}.conf"
        );
        return Err(ConfigError::Missing { name: "CVMFS_SERVER_URL", hint });
    }
    let proxies = proxies(p, &fqrn, "CVMFS_HTTP_PROXY", "CVMFS_FALLBACK_PROXY")?;
    let external = p.text("CVMFS_EXTERNAL_URL", &fqrn).map(|urls| split_urls(&urls)).filter(|urls| !urls.is_empty());
    let external = match external {
        Some(servers) => {
            let own = p.text("CVMFS_EXTERNAL_HTTP_PROXY", &fqrn).is_some();
            let external_proxies = proxies_of_external(p, &fqrn, own, &proxies)?;
            Some(Network { servers, proxies: external_proxies })
        }
        None => None,
    };
    let quota: i64 = p.number("CVMFS_QUOTA_LIMIT", 4000)?;
    let max_ttl: u64 = p.number("CVMFS_MAX_TTL", 0)?;
    let reset = |name, default| p.seconds(name, default).map(|time| (!time.is_zero()).then_some(time));
    let root_hash = match p.text("CVMFS_ROOT_HASH", &fqrn) {
        Some(text) => Some(text.parse().map_err(|_| p.wrong("CVMFS_ROOT_HASH", "the hash of a root catalog"))?),
        None => None,
    };
    for name in ["CVMFS_REPOSITORY_TAG", "CVMFS_REPOSITORY_DATE"] {
        if root_hash.is_none() && p.text(name, &fqrn).is_some() {
            return Err(p.wrong(name, "nothing yet: this version mounts the newest revision or a CVMFS_ROOT_HASH"));
        }
    }
    Ok(Config {
        network: Network { servers, proxies },
        external,
        limits: NetworkLimits {
            timeout_proxy: p.seconds("CVMFS_TIMEOUT", 5)?,
            timeout_direct: p.seconds("CVMFS_TIMEOUT_DIRECT", 10)?,
            low_speed: p.number("CVMFS_LOW_SPEED_LIMIT", 1024)?,
            retries: p.number("CVMFS_MAX_RETRIES", 1)?,
            backoff: p.seconds("CVMFS_BACKOFF_INIT", 2)?,
            backoff_max: p.seconds("CVMFS_BACKOFF_MAX", 10)?,
            proxy_reset: reset("CVMFS_PROXY_RESET_AFTER", 300)?,
            host_reset: reset("CVMFS_HOST_RESET_AFTER", 1800)?,
            follow_redirects: p.flag("CVMFS_FOLLOW_REDIRECTS", false)?,
        },
        master_keys: master_keys(p, &fqrn)?,
        blacklist: p.text("CVMFS_BLACKLIST", &fqrn).map(PathBuf::from),
        cache: cache_directory(p, &fqrn)?,
        cache_limit: u64::try_from(quota).ok().filter(|mb| *mb > 0).map(|mb| mb.saturating_mul(1 << 20)),
        kernel_ttl: p.seconds("CVMFS_KCACHE_TIMEOUT", 60)?,
        max_ttl: (max_ttl > 0).then(|| Duration::from_secs(max_ttl.saturating_mul(60))),
        auto_update: p.flag("CVMFS_AUTO_UPDATE", true)? && root_hash.is_none(),
        root_hash,
        watermark: p.number("CVMFS_CATALOG_WATERMARK", 1024)?,
        ownership: Ownership::from_parameters(p)?,
        world_readable: p.flag("CVMFS_WORLD_READABLE", false)?,
        check_permissions: p.flag("CVMFS_CHECK_PERMISSIONS", true)?,
        xattr_visibility: visibility(p)?,
        variables: variables(p, &fqrn, environment),
        noexec,
        fqrn,
        parameters,
    })
}

fn split_urls(urls: &str) -> Vec<String> {
    urls.split(';').map(|url| url.trim().trim_end_matches('/').to_owned()).filter(|url| !url.is_empty()).collect()
}

/// Groups separated by `;`, members by `|`. Fallback groups come last; with them no group is direct.
fn proxies(p: &Parameters, fqrn: &str, main: &str, fallback: &str) -> Result<Vec<Vec<Option<String>>>, ConfigError> {
    let groups = |name: &str| -> Result<Vec<Vec<Option<String>>>, ConfigError> {
        let text = p.text(name, fqrn).unwrap_or_default();
        let mut groups = Vec::new();
        for group in text.split(';') {
            let mut members = Vec::new();
            for proxy in group.split('|').map(str::trim).filter(|proxy| !proxy.is_empty()) {
                members.push(match proxy {
                    "DIRECT" => None,
                    "auto" => return Err(p.wrong(name, "a list of proxies; automatic discovery is not supported")),
                    proxy if proxy.contains("://") => Some(proxy.to_owned()),
                    proxy => Some(format!("http://{proxy}")),
                });
            }
            if !members.is_empty() {
                groups.push(members);
            }
        }
        Ok(groups)
    };
    let mut all = groups(main)?;
    let last = groups(fallback)?;
    if !last.is_empty() {
        all.extend(last);
        all.iter_mut().for_each(|group| group.retain(Option::is_some));
        all.retain(|group| !group.is_empty());
    }
    if all.is_empty() {
        all.push(vec![None]);
    }
    Ok(all)
}

fn proxies_of_external(
    p: &Parameters,
    fqrn: &str,
    own: bool,
    main: &[Vec<Option<String>>],
) -> Result<Vec<Vec<Option<String>>>, ConfigError> {
    if own { proxies(p, fqrn, "CVMFS_EXTERNAL_HTTP_PROXY", "CVMFS_EXTERNAL_FALLBACK_PROXY") } else { Ok(main.to_vec()) }
}

/// CVMFS_PUBLIC_KEY, else all of CVMFS_KEYS_DIR, else all of /etc/cvmfs/keys. A directory stands for its `*.pub`.
fn master_keys(p: &Parameters, fqrn: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let in_directory = |directory: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut keys: Vec<PathBuf> =
            entries.map(|e| e.path()).filter(|path| path.extension().is_some_and(|e| e == "pub")).collect();
        keys.sort();
        keys
    };
    let keys: Vec<PathBuf> = match (p.text("CVMFS_PUBLIC_KEY", fqrn), p.text("CVMFS_KEYS_DIR", fqrn)) {
        (Some(list), _) => list
            .split(':')
            .filter(|key| !key.is_empty())
            .map(PathBuf::from)
            .flat_map(|key| if key.is_dir() { in_directory(&key) } else { vec![key] })
            .collect(),
        (None, Some(directory)) => in_directory(Path::new(&directory)),
        (None, None) => in_directory(&Path::new(DEFAULT_DIRECTORY).join("keys")),
    };
    if keys.is_empty() {
        let hint = "give --public-key FILE, or put the repository's master public key into /etc/cvmfs/keys".to_owned();
        return Err(ConfigError::Missing { name: "CVMFS_PUBLIC_KEY", hint });
    }
    Ok(keys)
}

/// The cache lives in a directory of its own below CVMFS_CACHE_BASE, because the reference client would
/// neither count nor clean up what we put into its directory.
fn cache_directory(p: &Parameters, fqrn: &str) -> Result<PathBuf, ConfigError> {
    if let Some(exact) = p.text("CVMFS_CACHE_DIR", fqrn) {
        return std::path::absolute(&exact).map_err(|source| ConfigError::Read { path: exact.into(), source });
    }
    let own = match p.text("CVMFS_CACHE_BASE", fqrn) {
        Some(base) => Path::new(&base).join("cvmfs-client"),
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/lib/cvmfs-client"),
        None => {
            let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|b| b.is_absolute()).or_else(home);
            base.unwrap_or_else(|| "/var/tmp".into()).join("cvmfs-client")
        }
    };
    Ok(if p.flag("CVMFS_SHARED_CACHE", true)? { own.join("shared") } else { own.join(fqrn) })
}

fn visibility(p: &Parameters) -> Result<Visibility, ConfigError> {
    if let Some(value) = p.get("CVMFS_MAGIC_XATTRS_VISIBILITY").filter(|value| !value.is_empty()) {
        return match value.to_ascii_lowercase().as_str() {
            "rootonly" => Ok(Visibility::RootOnly),
            "never" => Ok(Visibility::Never),
            "always" => Ok(Visibility::Always),
            _ => Err(p.wrong("CVMFS_MAGIC_XATTRS_VISIBILITY", "rootonly, never or always")),
        };
    }
    if p.get("CVMFS_HIDE_MAGIC_XATTRS").is_some_and(|value| !value.is_empty()) {
        let hide = p.flag("CVMFS_HIDE_MAGIC_XATTRS", false)?;
        return Ok(if hide { Visibility::Never } else { Visibility::Always });
    }
    Ok(Visibility::RootOnly)
}

/// What `$(NAME)` in link targets stands for: the environment, over it all parameters, and two of our own.
fn variables(
    p: &Parameters,
    fqrn: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut variables: BTreeMap<Vec<u8>, Vec<u8>> = environment.map(|(n, v)| (n.into_vec(), v.into_vec())).collect();
    variables.extend(p.iter().map(|(name, value, _)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
    let machine = nix::sys::utsname::uname().map(|u| u.machine().to_owned().into_vec());
    variables.insert(b"CVMFS_ARCH".to_vec(), machine.unwrap_or_else(|_| std::env::consts::ARCH.into()));
    variables.insert(b"CVMFS_FQRN".to_vec(), fqrn.as_bytes().to_vec());
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(options: &[&str]) -> Result<Config, ConfigError> {
        let empty = tempfile::tempdir().unwrap();
        let flags = Flags {
            server_url: Some("http://a/cvmfs/@fqrn@;http://b/@org@/".into()),
            public_keys: vec!["/k.pub".into()],
            options: options.iter().map(|o| o.to_string()).collect(),
            ..Flags::default()
        };
        Config::load("images.example.org", empty.path(), &flags)
    }

    #[test]
    fn flags_alone_are_enough() {
        let config = load(&[]).unwrap();
        assert_eq!(config.network.servers, ["http://a/cvmfs/images.example.org", "http://b/images"]);
        assert_eq!(config.network.proxies, [[None]]);
        assert_eq!(config.cache_limit, Some(4000 << 20));
        assert_eq!(config.kernel_ttl, Duration::from_secs(60));
        assert!(matches!(config.ownership, Ownership::Catalog { .. }));
        assert!(config.auto_update && !config.noexec);
    }

    #[test]
    fn options_are_parameters_or_mount_options() {
        let config = load(&["ro,CVMFS_QUOTA_LIMIT=-1,noexec,_netdev", "FIXTURE_VAR=a,b", "CVMFS_TIMEOUT=7"]).unwrap();
        assert_eq!(config.cache_limit, None);
        assert!(config.noexec);
        assert_eq!(config.variables.get(&b"FIXTURE_VAR"[..]), Some(&b"a,b".to_vec()));
        assert_eq!(config.variables.get(&b"CVMFS_FQRN"[..]), Some(&b"images.example.org".to_vec()));
        assert_eq!(config.limits.timeout_proxy, Duration::from_secs(7));
        assert!(matches!(load(&["bogus"]), Err(ConfigError::MountOption(o)) if o == "bogus"));
    }

    #[test]
    fn proxies_have_groups_members_and_fallbacks() {
        let some = |s: &str| Some(s.to_owned());
        for (options, expected) in [
            (
                &["CVMFS_HTTP_PROXY=http://p1:3128|p2;http://p3;DIRECT"][..],
                vec![vec![some("http://p1:3128"), some("http://p2")], vec![some("http://p3")], vec![None]],
            ),
            (
                &["CVMFS_HTTP_PROXY=p1;DIRECT", "CVMFS_FALLBACK_PROXY=f"][..],
                vec![vec![some("http://p1")], vec![some("http://f")]],
            ),
            (&["CVMFS_HTTP_PROXY="][..], vec![vec![None]]),
        ] {
            assert_eq!(load(options).unwrap().network.proxies, expected, "{options:?}");
        }
    }

    #[test]
    fn wrong_values_are_named_with_their_origin() {
        for (option, needle) in [
            ("CVMFS_TIMEOUT=soon", "CVMFS_TIMEOUT=soon (from -o): expected a number"),
            ("CVMFS_AUTO_UPDATE=perhaps", "expected yes or no"),
            ("CVMFS_ROOT_HASH=xyz", "hash of a root catalog"),
            ("CVMFS_MAGIC_XATTRS_VISIBILITY=some", "rootonly, never or always"),
        ] {
            let error = load(&[option]).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
        let empty = tempfile::tempdir().unwrap();
        let error = Config::load("a.b", empty.path(), &Flags::default()).unwrap_err().to_string();
        assert!(error.contains("--server-url"), "{error}");
        assert!(matches!(Config::load("../x", empty.path(), &Flags::default()), Err(ConfigError::Name(_))));
    }

    #[test]
    fn a_short_name_gets_the_default_domain() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("default.local"), "CVMFS_DEFAULT_DOMAIN=example.org\n").unwrap();
        let (fqrn, ..) = gather("images", directory.path(), &Flags::default()).unwrap();
        assert_eq!(fqrn, "images.example.org");
    }
}
