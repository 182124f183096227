//! Where the repository is kept, as the operator writes it (`--storage`), and opening it.

pub mod s3;
pub mod settings;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use cvmfs::store::{Listing, LocalStore};

use self::s3::S3Store;
pub use self::settings::{S3Access, S3Settings, Secret, SettingsError};
use crate::adopt::Stratum0;
use crate::cli::values;
use crate::failure::Failure;

/// The root of one repository: it holds `.cvmfspublished` and `data/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// Whatever the reference tools of this machine publish into.
    Stratum0(Arc<Stratum0>),
    /// A bucket of an S3 server.
    S3(Box<S3Settings>),
}

impl Location {
    /// Opens the storage; whether it holds a repository is not looked at.
    pub fn open(&self) -> Result<Arc<dyn Listing>, Failure> {
        match self {
            Location::Directory(root) => Ok(Arc::new(LocalStore::open(root))),
            Location::Stratum0(stratum0) => stratum0.storage.open(),
            Location::S3(settings) => Ok(Arc::new(S3Store::open(settings)?)),
        }
    }

    /// Opens the storage of a repository that is to be made, with the directories that it needs.
    pub fn create(&self) -> Result<Arc<dyn Listing>, Failure> {
        match self {
            Location::Stratum0(stratum0) => Err(Failure::Content(format!(
                "{} describes a repository of this name already; a new one is never made over it",
                stratum0.config.display()
            ))),
            Location::Directory(root) => {
                std::fs::create_dir_all(root).map_err(Failure::io("create directory", root))?;
                Ok(Arc::new(LocalStore::create(root)?))
            }
            Location::S3(settings) => {
                let store = S3Store::open(settings)?;
                store.probe()?;
                Ok(Arc::new(store))
            }
        }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Location::Directory(root) => Some(root),
            Location::Stratum0(stratum0) => stratum0.storage.directory(),
            Location::S3(_) => None,
        }
    }
}

impl From<PathBuf> for Location {
    fn from(root: PathBuf) -> Location {
        Location::Directory(root)
    }
}

impl From<S3Settings> for Location {
    fn from(settings: S3Settings) -> Location {
        Location::S3(Box::new(settings))
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        if text.starts_with("s3://") {
            let variable = |name: &str| std::env::var(name).ok();
            return S3Settings::from_url(text, variable).map(Location::from).map_err(|e| e.to_string());
        }
        values::directory(text).map(Location::Directory)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(root) => root.display().fmt(f),
            Location::Stratum0(stratum0) => stratum0.storage.fmt(f),
            Location::S3(settings) => settings.fmt(f),
        }
    }
}
