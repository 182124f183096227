//! Where the repository, its keys and our state are, unless the operator says otherwise.
//!
//! | | root | other users |
//! |---|---|---|
//! | storage | `/srv/cvmfs/FQRN` | `$XDG_DATA_HOME/cvmfs-publisher/repositories/FQRN` |
//! | keys | `/etc/cvmfs/keys` | `$XDG_DATA_HOME/cvmfs-publisher/keys` |
//! | state | `/var/lib/cvmfs-publisher/FQRN` | `$XDG_STATE_HOME/cvmfs-publisher/FQRN` |
//!
//! The XDG base directory specification gives `$HOME/.local/share` and `$HOME/.local/state` for absent variables, and
//! has relative values ignored. Directories given as options are taken as they are: `--storage` is the repository root
//! itself. Without it, a repository that the reference tools describe in `/etc/cvmfs/repositories.d/FQRN/` is theirs: its
//! storage is where they have it and its keys are in `/etc/cvmfs/keys`, whoever we are. The variable
//! `CVMFS_PUBLISHER_CONFIG_DIR` names another directory than `/etc/cvmfs`. The environment comes in as a value, so that two publishers can live in one test process.

use std::env;
use std::path::PathBuf;

use crate::adopt::{AdoptError, Stratum0};
use crate::storage::Location;

/// The part of the environment that decides about directories.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Whether we run as root.
    pub superuser: bool,
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `XDG_DATA_HOME`
    pub data_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`
    pub state_home: Option<PathBuf>,
    /// Where the reference tools are configured; they are not asked without.
    pub stock: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process.
    pub fn current() -> Self {
        let variable = |name| env::var_os(name).map(PathBuf::from);
        Self {
            superuser: nix::unistd::geteuid().is_root(),
            home: variable("HOME"),
            data_home: variable("XDG_DATA_HOME"),
            state_home: variable("XDG_STATE_HOME"),
            stock: Some(variable("CVMFS_PUBLISHER_CONFIG_DIR").unwrap_or_else(|| PathBuf::from("/etc/cvmfs"))),
        }
    }

    fn base(&self, variable: &Option<PathBuf>, below_home: &str) -> Option<PathBuf> {
        let absolute = |path: &&PathBuf| path.is_absolute();
        let base = variable.as_ref().filter(absolute).cloned();
        base.or_else(|| self.home.as_ref().filter(absolute).map(|home| home.join(below_home)))
            .map(|base| base.join("cvmfs-publisher"))
    }
}

/// Directories that the operator named.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PathOptions {
    /// Repository root: holds .cvmfspublished and data/
    ///
    /// A web server can export the directory as it is, under the URL path /cvmfs/FQRN.
    ///
    /// In S3, the location is s3://BUCKET/PREFIX; server and credentials are taken from AWS_ENDPOINT_URL, AWS_REGION,
    /// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (doc/S3.md).
    ///
    /// Without this option, a repository that /etc/cvmfs/repositories.d/FQRN/server.conf describes is published into
    /// as it is: with its storage, keys, settings and locks (doc/ADOPTING.md). The environment variable
    /// CVMFS_PUBLISHER_CONFIG_DIR names another directory than /etc/cvmfs.
    ///
    /// [default: /srv/cvmfs/FQRN for root, $XDG_DATA_HOME/cvmfs-publisher/repositories/FQRN for others]
    #[arg(long, global = true, value_name = "DIR|s3://BUCKET/PREFIX", help_heading = "Directories")]
    pub storage: Option<Location>,

    /// Keys: FQRN.masterkey, FQRN.key, FQRN.crt, FQRN.pub
    ///
    /// [default: /etc/cvmfs/keys for root, $XDG_DATA_HOME/cvmfs-publisher/keys for others]
    #[arg(long, global = true, value_name = "DIR", value_parser = super::values::directory, help_heading = "Directories")]
    pub keys: Option<PathBuf>,

    /// State of the publisher: lock, index of known files, prepared layers
    ///
    /// Everything but the lock can be rebuilt; it may be deleted while no publisher runs. Needs room for the catalogs
    /// of one image, not for its content.
    ///
    /// [default: /var/lib/cvmfs-publisher/FQRN for root, $XDG_STATE_HOME/cvmfs-publisher/FQRN for others]
    #[arg(long, global = true, value_name = "DIR", value_parser = super::values::directory, help_heading = "Directories")]
    pub state: Option<PathBuf>,
}

/// The directories of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// Repository root: `.cvmfspublished`, `data/`.
    pub storage: Location,
    /// Key files of all repositories.
    pub keys: PathBuf,
    /// Our own state for this repository.
    pub state: PathBuf,
}

/// The directories of a repository are not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// One of them has no default.
    #[error(transparent)]
    NoDefault(#[from] NoDefault),
    /// The repository belongs to the reference tools, and cannot be published to.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
}

/// A default directory is wanted and can't be derived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no place for the {what}: neither {variable} nor HOME is an absolute path; set one of them, or give {option}")]
pub struct NoDefault {
    what: &'static str,
    variable: &'static str,
    option: &'static str,
}

impl Paths {
    /// File that names the hash of the reflog: in our state, or where the reference tools have it.
    pub fn reflog_checksum(&self) -> PathBuf {
        self.storage.stratum0().map_or(&self.state, |stratum0| &stratum0.spool).join("reflog.chksum")
    }

    /// The directories of the repository `fqrn`.
    pub fn resolve(fqrn: &str, options: &PathOptions, environment: &Environment) -> Result<Self, Unresolved> {
        let stratum0 = match (&options.storage, &environment.stock) {
            (None, Some(stock)) => Stratum0::find(stock, fqrn)?.map(|found| (found, stock.join("keys"))),
            _ => None,
        };
        let data = || environment.base(&environment.data_home, ".local/share");
        let state = || environment.base(&environment.state_home, ".local/state");
        let default = |system: PathBuf, user: Option<PathBuf>, missing: NoDefault| {
            if environment.superuser { Ok(system) } else { user.ok_or(missing) }
        };
        let choose = |given: &Option<PathBuf>, system: PathBuf, user: Option<PathBuf>, missing: NoDefault| {
            given.clone().map_or_else(|| default(system, user, missing), Ok)
        };
        Ok(Self {
            storage: match (&options.storage, &stratum0) {
                (Some(location), _) => location.clone(),
                (None, Some((stratum0, _))) => Location::Stratum0(stratum0.clone()),
                (None, None) => Location::Directory(default(
                    PathBuf::from("/srv/cvmfs").join(fqrn),
                    data().map(|base| base.join("repositories").join(fqrn)),
                    NoDefault { what: "repository", variable: "XDG_DATA_HOME", option: "--storage" },
                )?),
            },
            keys: choose(
                &options.keys.clone().or(stratum0.map(|(_, keys)| keys)),
                PathBuf::from("/etc/cvmfs/keys"),
                data().map(|base| base.join("keys")),
                NoDefault { what: "keys", variable: "XDG_DATA_HOME", option: "--keys" },
            )?,
            state: choose(
                &options.state,
                PathBuf::from("/var/lib/cvmfs-publisher").join(fqrn),
                state().map(|base| base.join(fqrn)),
                NoDefault { what: "state", variable: "XDG_STATE_HOME", option: "--state" },
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FQRN: &str = "images.example.org";

    fn paths(storage: &str, keys: &str, state: &str) -> Paths {
        Paths { storage: PathBuf::from(storage).into(), keys: keys.into(), state: state.into() }
    }

    #[test]
    fn root_has_system_directories() {
        let environment = Environment { superuser: true, home: Some("/root".into()), ..Environment::default() };
        assert_eq!(
            Paths::resolve(FQRN, &PathOptions::default(), &environment).unwrap(),
            paths("/srv/cvmfs/images.example.org", "/etc/cvmfs/keys", "/var/lib/cvmfs-publisher/images.example.org")
        );
    }

    #[test]
    fn others_have_their_xdg_directories() {
        let home = Environment { home: Some("/home/u".into()), ..Environment::default() };
        let below_home = paths(
            "/home/u/.local/share/cvmfs-publisher/repositories/images.example.org",
            "/home/u/.local/share/cvmfs-publisher/keys",
            "/home/u/.local/state/cvmfs-publisher/images.example.org",
        );
        assert_eq!(Paths::resolve(FQRN, &PathOptions::default(), &home).unwrap(), below_home);

        let relative = Environment { data_home: Some("data".into()), ..home.clone() };
        assert_eq!(Paths::resolve(FQRN, &PathOptions::default(), &relative).unwrap(), below_home);

        let xdg = Environment { data_home: Some("/d".into()), state_home: Some("/s".into()), ..home };
        assert_eq!(
            Paths::resolve(FQRN, &PathOptions::default(), &xdg).unwrap(),
            paths(
                "/d/cvmfs-publisher/repositories/images.example.org",
                "/d/cvmfs-publisher/keys",
                "/s/cvmfs-publisher/images.example.org"
            )
        );
    }

    #[test]
    fn options_win_and_need_no_environment() {
        let options =
            PathOptions { storage: Some(PathBuf::from("a").into()), keys: Some("b".into()), state: Some("c".into()) };
        for superuser in [true, false] {
            let environment = Environment { superuser, ..Environment::default() };
            assert_eq!(Paths::resolve(FQRN, &options, &environment).unwrap(), paths("a", "b", "c"));
        }
    }

    #[test]
    fn a_missing_home_is_an_error_only_where_it_is_needed() {
        let environment = Environment::default();
        let options = PathOptions { storage: Some(PathBuf::from("a").into()), keys: Some("b".into()), state: None };
        let error = Paths::resolve(FQRN, &options, &environment).unwrap_err().to_string();
        assert!(error.contains("--state") && error.contains("XDG_STATE_HOME"), "{error}");
    }

    #[test]
    fn a_repository_of_the_reference_tools_is_theirs_unless_the_storage_is_named() {
        let etc = tempfile::tempdir().unwrap();
        let directory = etc.path().join("repositories.d").join(FQRN);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("server.conf"), "CVMFS_UPSTREAM_STORAGE=local,/x/data/txn,/x\n").unwrap();
        let stock = Some(etc.path().to_owned());
        let environment = Environment { stock, home: Some("/home/u".into()), ..Environment::default() };
        let found = Paths::resolve(FQRN, &PathOptions::default(), &environment).unwrap();
        assert!(found.storage.stratum0().is_some());
        assert_eq!(found.storage.directory(), Some(std::path::Path::new("/x")));
        assert_eq!(found.keys, etc.path().join("keys"));
        assert_eq!(found.state, PathBuf::from("/home/u/.local/state/cvmfs-publisher/images.example.org"));

        let options = PathOptions { storage: Some(PathBuf::from("a").into()), ..PathOptions::default() };
        let named = Paths::resolve(FQRN, &options, &environment).unwrap();
        assert_eq!(named.storage, PathBuf::from("a").into());
        assert_eq!(named.keys, PathBuf::from("/home/u/.local/share/cvmfs-publisher/keys"));
        let other = Paths::resolve("other.example.org", &PathOptions::default(), &environment).unwrap();
        assert!(other.storage.stratum0().is_none());
    }
}
