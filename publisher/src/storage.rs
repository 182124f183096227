//! Where the repository is kept, as the operator writes it (`--storage`), and opening it.

pub mod settings;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use cvmfs::store::{Listing, LocalStore};

pub use self::settings::{S3Access, S3Settings, Secret, SettingsError};
use crate::cli::values;
use crate::failure::Failure;

/// The root of one repository: it holds `.cvmfspublished` and `data/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
}

impl Location {
    /// Opens the storage; whether it holds a repository is not looked at.
    pub fn open(&self) -> Result<Arc<dyn Listing>, Failure> {
        match self {
            Location::Directory(root) => Ok(Arc::new(LocalStore::open(root))),
        }
    }

    /// Opens the storage of a repository that is to be made, with the directories that it needs.
    pub fn create(&self) -> Result<Arc<dyn Listing>, Failure> {
        match self {
            Location::Directory(root) => {
                std::fs::create_dir_all(root).map_err(Failure::io("create directory", root))?;
                Ok(Arc::new(LocalStore::create(root)?))
            }
        }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Location::Directory(root) => Some(root),
        }
    }
}

impl From<PathBuf> for Location {
    fn from(root: PathBuf) -> Location {
        Location::Directory(root)
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Location, String> {
        values::directory(text).map(Location::Directory)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(root) => root.display().fmt(f),
        }
    }
}
