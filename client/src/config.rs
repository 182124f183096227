//! What a mount is made of: parameters from files, options and flags, as one typed value.
//!
//! Later sources win: built-in default < files below `/etc/cvmfs` < `-o NAME=value` < flags. Every value
//! keeps its origin, so that `showconfig` and error messages can name it. Names, defaults and what becomes of
//! each parameter are in [`table`], and nowhere else. They are those of the reference client, with these
//! exceptions: files keep their owners (`CVMFS_CLAIM_OWNERSHIP=no`), without any `CVMFS_HTTP_PROXY` the
//! connection is direct, the cache has a directory of its own, link targets may be cached by the kernel
//! (another target is another inode), and the mount is `ro,nosuid,nodev` whatever `CVMFS_SUID` says.

mod files;
mod network;
mod options;
pub mod ownership;
mod parameters;
mod prefetch;
mod snapshot;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::cache::Sharing;
pub use files::repositories;
pub use network::{Network, NetworkLimits};
pub use options::is_parameter_name;
pub use ownership::{IdMap, Ownership};
pub use parameters::{Origin, Parameters};
pub use prefetch::PrefetchLimits;
pub use snapshot::Snapshot;

use crate::fetch::selection::Selection;

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
    #[error("unknown mount option {0:?}; parameters are given as NAME=value, and taken away as unset=NAME")]
    MountOption(String),
    /// CVMFS_STRICT_MOUNT forbids it.
    #[error("{fqrn} is not in CVMFS_REPOSITORIES={repositories}, and CVMFS_STRICT_MOUNT allows nothing else")]
    NotListed {
        /// Repository.
        fqrn: String,
        /// What is allowed.
        repositories: String,
    },
    /// CVMFS_CONFIG_REPO_REQUIRED forbids to go on without it.
    #[error("the configuration repository is not there: no {path}; mount it first (CVMFS_CONFIG_REPO_REQUIRED)")]
    ConfigRepository {
        /// What is missing.
        path: PathBuf,
    },
    /// A line of a user or group map.
    #[error("{path}, line {line}: expected `<from> <to>` with numbers, or `* <to>`")]
    IdMap {
        /// The map.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
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

/// Everything a mount needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Repository name.
    pub fqrn: String,
    /// Where objects come from.
    pub network: Network,
    /// Timeouts and retries.
    pub limits: NetworkLimits,
    /// How servers and proxies are chosen.
    pub selection: Selection,
    /// Where external files come from, if anywhere.
    pub external: Option<Network>,
    /// Timeouts and retries for them.
    pub external_limits: NetworkLimits,
    /// Master public keys.
    pub master_keys: Vec<PathBuf>,
    /// Files of certificates and revisions that are refused; they need not exist.
    pub blacklists: Vec<PathBuf>,
    /// Cache directory.
    pub cache: PathBuf,
    /// Bytes the cache may hold; `None` = unlimited.
    pub cache_limit: Option<u64>,
    /// Who may use the cache.
    pub cache_sharing: Sharing,
    /// Where breadcrumbs and inode numbers live.
    pub workspace: PathBuf,
    /// What may be fetched ahead.
    pub prefetch: PrefetchLimits,
    /// Which revision is shown.
    pub snapshot: Snapshot,
    /// How long the kernel may keep names and attributes, if that is said.
    pub kernel_ttl: Option<Duration>,
    /// Whether the kernel reads files of the cache itself where it can.
    pub passthrough: bool,
    /// Whether the kernel may keep link targets.
    pub cache_symlinks: bool,
    /// Upper limit of the time between checks for a new revision.
    pub max_ttl: Option<Duration>,
    /// Whether new revisions are looked for.
    pub auto_update: bool,
    /// Number of nested catalogs to keep attached.
    pub watermark: usize,
    /// Limit of open files.
    pub open_files: u64,
    /// Threads that read requests, if not chosen by the number of cores.
    pub threads: Option<usize>,
    /// How readily the kernel kills the client for memory.
    pub oom_score: Option<i32>,
    /// Cores the client may use; all when empty.
    pub cores: Vec<usize>,
    /// Where the background process logs, if not beside the cache.
    pub log_file: Option<PathBuf>,
    /// Who owns the files.
    pub ownership: Ownership,
    /// Everybody may read everything.
    pub world_readable: bool,
    /// Whether the kernel checks permissions.
    pub check_permissions: bool,
    /// Whether there are extended attributes.
    pub xattrs: bool,
    /// Who sees information attributes.
    pub xattr_visibility: Visibility,
    /// Information attributes that only root and `privileged_gids` may read.
    pub protected_xattrs: BTreeSet<String>,
    /// Groups that may read them.
    pub privileged_gids: BTreeSet<u32>,
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

impl Config {
    /// Reads the files in `directory`, then options and flags, and checks the result.
    pub fn load(fqrn: &str, directory: &Path, flags: &Flags) -> Result<Config, ConfigError> {
        build(gather(fqrn, directory, flags)?, std::env::vars_os())
    }
}

/// What the files, options and flags say about a repository.
#[derive(Debug, Clone)]
pub struct Gathered {
    /// Repository name, completed with the default domain.
    pub fqrn: String,
    /// All parameters.
    pub parameters: Parameters,
    /// Whether programs may not be executed.
    pub noexec: bool,
    /// Directory of the configuration files.
    directory: PathBuf,
    /// The same directory of the configuration repository, if there is one.
    shared: Option<PathBuf>,
}

/// All parameters for a repository, with their origins; the name is completed with the default domain.
pub fn gather(fqrn: &str, directory: &Path, flags: &Flags) -> Result<Gathered, ConfigError> {
    let mut fqrn = fqrn.to_owned();
    if !is_repository_name(&fqrn) {
        return Err(ConfigError::Name(fqrn));
    }
    if !fqrn.contains('.') {
        let mut defaults = Parameters::default();
        files::read_all(directory, &fqrn, &mut defaults)?;
        options::apply(&flags.options, &mut defaults)?;
        if let Some(domain) = defaults.text("CVMFS_DEFAULT_DOMAIN", &fqrn) {
            fqrn = format!("{fqrn}.{domain}");
        }
    }
    let mut parameters = Parameters::default();
    let shared = files::read_all(directory, &fqrn, &mut parameters)?;
    let noexec = options::apply(&flags.options, &mut parameters)?;
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
    Ok(Gathered { fqrn, parameters, noexec, directory: directory.to_owned(), shared })
}

/// Whether this may name a repository.
pub fn is_repository_name(name: &str) -> bool {
    name.len() <= 60
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn build(gathered: Gathered, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Config, ConfigError> {
    let Gathered { fqrn, parameters, noexec, directory, shared } = gathered;
    let p = &parameters;
    check_strictness(p, &fqrn, shared.as_deref())?;
    let network = Network::of_repository(p, &fqrn)?;
    if network.servers.is_empty() {
        let place = directory.join(format!("config.d/{fqrn}.conf"));
        let hint = format!("give --server-url http://HOST/cvmfs/@fqrn@, or set it in {}", place.display());
        return Err(ConfigError::Missing { name: "CVMFS_SERVER_URL", hint });
    }
    let limits = NetworkLimits::from_parameters(p)?;
    let quota: i64 = p.number("CVMFS_QUOTA_LIMIT")?;
    let quota = u64::try_from(quota).ok().filter(|mb| *mb > 0).map(|mb| mb.saturating_mul(1 << 20));
    let max_ttl: u64 = p.number("CVMFS_MAX_TTL")?;
    let snapshot = Snapshot::from_parameters(p, &fqrn)?;
    let usual = cache_directory(p, &fqrn)?;
    let alien = p.text("CVMFS_ALIEN_CACHE", &fqrn).map(absolute).transpose()?;
    let workspace = p.text("CVMFS_WORKSPACE", &fqrn).map(absolute).transpose()?;
    let open_files = p.number("CVMFS_NFILES")?;
    let most_catalogs = usize::try_from(open_files / 4).unwrap_or(usize::MAX);
    Ok(Config {
        external: Network::of_external(p, &fqrn, &network)?,
        external_limits: limits.of_external(p)?,
        network,
        limits,
        selection: Selection::from_parameters(p)?,
        master_keys: master_keys(p, &fqrn, &directory)?,
        blacklists: std::iter::once(
            p.text("CVMFS_BLACKLIST", &fqrn).map_or_else(|| directory.join("blacklist"), PathBuf::from),
        )
        .chain(shared.map(|shared| shared.join("blacklist")))
        .collect(),
        prefetch: PrefetchLimits::from_parameters(p, quota.filter(|_| alien.is_none()))?,
        cache_limit: quota.filter(|_| alien.is_none()),
        cache_sharing: if alien.is_some() { Sharing::Group } else { Sharing::Private },
        workspace: workspace.unwrap_or_else(|| usual.clone()),
        cache: alien.unwrap_or(usual),
        kernel_ttl: p.number_if_set("CVMFS_KCACHE_TIMEOUT")?.map(Duration::from_secs),
        passthrough: passthrough(p)?,
        cache_symlinks: p.flag("CVMFS_CACHE_SYMLINKS")?,
        max_ttl: (max_ttl > 0).then(|| Duration::from_secs(max_ttl.saturating_mul(60))),
        auto_update: p.flag("CVMFS_AUTO_UPDATE")? && snapshot == Snapshot::Newest,
        snapshot,
        watermark: p.number::<usize>("CVMFS_CATALOG_WATERMARK")?.min(most_catalogs),
        open_files,
        threads: p.number_if_set("CVMFS_FUSE3_MAX_THREADS")?.filter(|count| *count > 0),
        oom_score: p.number_if_set("CVMFS_OOM_SCORE_ADJ")?,
        cores: list(p, "CVMFS_CPU_AFFINITY", "numbers of cores, separated by commas")?,
        log_file: p.text("CVMFS_USYSLOG", &fqrn).map(absolute).transpose()?,
        ownership: Ownership::from_parameters(p, &fqrn)?,
        world_readable: p.flag("CVMFS_WORLD_READABLE")?,
        check_permissions: p.flag("CVMFS_CHECK_PERMISSIONS")?,
        xattrs: p.flag("CVMFS_XATTRS")?,
        xattr_visibility: visibility(p)?,
        protected_xattrs: list(p, "CVMFS_XATTR_PROTECTED_XATTRS", "names separated by commas")?.into_iter().collect(),
        privileged_gids: list(p, "CVMFS_XATTR_PRIVILEGED_GIDS", "numbers of groups, separated by commas")?
            .into_iter()
            .collect(),
        variables: variables(p, &fqrn, environment),
        noexec,
        fqrn,
        parameters,
    })
}

/// Refuses what CVMFS_STRICT_MOUNT and CVMFS_CONFIG_REPO_REQUIRED forbid.
fn check_strictness(p: &Parameters, fqrn: &str, shared: Option<&Path>) -> Result<(), ConfigError> {
    let repositories = p.effective("CVMFS_REPOSITORIES");
    let complete = |name: &str| match p.text("CVMFS_DEFAULT_DOMAIN", fqrn) {
        Some(domain) if !name.contains('.') => format!("{name}.{domain}"),
        _ => name.to_owned(),
    };
    if p.flag("CVMFS_STRICT_MOUNT")? && !files::words(repositories).any(|name| complete(name) == fqrn) {
        return Err(ConfigError::NotListed { fqrn: fqrn.to_owned(), repositories: repositories.to_owned() });
    }
    let required = p.flag("CVMFS_CONFIG_REPO_REQUIRED")?;
    match shared {
        Some(path) if required && !path.is_dir() => Err(ConfigError::ConfigRepository { path: path.to_owned() }),
        _ => Ok(()),
    }
}

fn absolute(path: String) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::Read { path: path.into(), source })
}

fn list<T: std::str::FromStr>(p: &Parameters, name: &str, expected: &'static str) -> Result<Vec<T>, ConfigError> {
    files::words(p.effective(name)).map(|word| word.parse().map_err(|_| p.wrong(name, expected))).collect()
}

/// CVMFS_PUBLIC_KEY, else all of CVMFS_KEYS_DIR, else all of `keys` beside the configuration. A directory stands
/// for its `*.pub`.
fn master_keys(p: &Parameters, fqrn: &str, configuration: &Path) -> Result<Vec<PathBuf>, ConfigError> {
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
        (None, None) => in_directory(&configuration.join("keys")),
    };
    if keys.is_empty() {
        let place = configuration.join("keys");
        let hint =
            format!("give --public-key FILE, or put the repository's master public key into {}", place.display());
        return Err(ConfigError::Missing { name: "CVMFS_PUBLIC_KEY", hint });
    }
    Ok(keys)
}

/// The cache lives in a directory of its own below CVMFS_CACHE_BASE, because the reference client would
/// neither count nor clean up what we put into its directory.
fn cache_directory(p: &Parameters, fqrn: &str) -> Result<PathBuf, ConfigError> {
    if let Some(exact) = p.text("CVMFS_CACHE_DIR", fqrn) {
        return absolute(exact);
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
    Ok(if p.flag("CVMFS_SHARED_CACHE")? { own.join("shared") } else { own.join(fqrn) })
}

fn visibility(p: &Parameters) -> Result<Visibility, ConfigError> {
    const NAME: &str = "CVMFS_MAGIC_XATTRS_VISIBILITY";
    let is_set = |name: &str| p.get(name).is_some_and(|value| !value.trim().is_empty());
    if !is_set(NAME) && is_set("CVMFS_HIDE_MAGIC_XATTRS") {
        let hide = p.flag("CVMFS_HIDE_MAGIC_XATTRS")?;
        return Ok(if hide { Visibility::Never } else { Visibility::Always });
    }
    match p.effective(NAME).to_ascii_lowercase().as_str() {
        "rootonly" => Ok(Visibility::RootOnly),
        "never" => Ok(Visibility::Never),
        "always" => Ok(Visibility::Always),
        _ => Err(p.wrong(NAME, "rootonly, never or always")),
    }
}

fn passthrough(p: &Parameters) -> Result<bool, ConfigError> {
    const NAME: &str = "CVMFS_PASSTHROUGH";
    match p.effective(NAME).to_ascii_lowercase().as_str() {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err(p.wrong(NAME, "auto or off")),
    }
}

/// What `$(NAME)` in link targets stands for: the environment, over it all parameters, and two of our own.
/// What was unset has no value, wherever it could come from.
fn variables(
    p: &Parameters,
    fqrn: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    let machine = nix::sys::utsname::uname().map(|u| u.machine().to_owned().into_vec());
    let machine = machine.unwrap_or_else(|_| std::env::consts::ARCH.into());
    let own = [(b"CVMFS_ARCH".to_vec(), machine), (b"CVMFS_FQRN".to_vec(), fqrn.as_bytes().to_vec())];
    let environment = environment.map(|(name, value)| (name.into_vec(), value.into_vec()));
    let written = p.iter().map(|(name, value, _)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    let all = environment.chain(own).chain(written);
    all.filter(|(name, _)| std::str::from_utf8(name).is_ok_and(|name| !p.is_unset(name))).collect()
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
        assert_eq!((config.kernel_ttl, config.passthrough), (None, false));
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
    fn wrong_values_are_named_with_their_origin() {
        for (option, needle) in [
            ("CVMFS_TIMEOUT=soon", "CVMFS_TIMEOUT=soon (from -o): expected a number"),
            ("CVMFS_AUTO_UPDATE=perhaps", "expected yes or no"),
            ("CVMFS_ROOT_HASH=xyz", "hash of a root catalog"),
            ("CVMFS_MAGIC_XATTRS_VISIBILITY=some", "rootonly, never or always"),
            ("passthrough=always", "CVMFS_PASSTHROUGH=always (from -o): expected auto or off"),
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
        let gathered = gather("images", directory.path(), &Flags::default()).unwrap();
        assert_eq!(gathered.fqrn, "images.example.org");
    }
}
