//! The local cache: plain objects on disk, bounded in size, shared by any number of mounts.
//!
//! ```text
//! <cache>/format        version of this layout
//! <cache>/lock          held (shared) by every client that uses the directory
//! <cache>/quota         bytes used and reserved, see `quota`
//! <cache>/00..ff/REST   plain, verified content; name = hash of the *stored* object
//!                       REST.joined: chunks of one file put together; name = hash of their list
//!                       .object…: being written; renamed when verified
//! <cache>/inodes/       inode numbers, one database a mount (or in the workspace)
//! <cache>/breadcrumb.*  newest root catalog known of a repository (or in the workspace)
//! ```
//!
//! Everything belongs to one user, mode 0600 and 0700, or is shared by a group, mode 0660 and 0770.
//! The directory is the only truth: sizes and ages are read from it, the quota file merely saves the scan.

pub mod disk;
pub mod quota;

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub use disk::{CacheKey, DiskCache, Form, Partial};

/// Who may use a cache directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// The user it belongs to.
    #[default]
    Private,
    /// The group it belongs to.
    Group,
}

impl Sharing {
    /// Permissions of files and directories.
    fn modes(self) -> (u32, u32) {
        match self {
            Sharing::Private => (0o600, 0o700),
            Sharing::Group => (0o660, 0o770),
        }
    }

    /// Gives a new file to those who share the cache.
    fn give(self, file: &std::fs::File) -> std::io::Result<()> {
        match self {
            Sharing::Private => Ok(()),
            Sharing::Group if file.metadata()?.uid() != nix::unistd::geteuid().as_raw() => Ok(()),
            Sharing::Group => file.set_permissions(Permissions::from_mode(self.modes().0)),
        }
    }

    /// Makes a directory; it may be there already.
    fn make(self, path: &Path) -> std::io::Result<()> {
        let mode = self.modes().1;
        if path.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(mode).create(path)?;
        match self {
            Sharing::Private => Ok(()),
            // The mask of the process does not apply to what is shared.
            Sharing::Group => std::fs::set_permissions(path, Permissions::from_mode(mode)),
        }
    }
}

/// The cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file operation failed.
    #[error("cache: cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The directory belongs to somebody else.
    #[error("{path} is not a cache of this client: {found}; give an empty or new directory with --cache")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// One object is larger than the whole cache may be.
    #[error("an object of {size} bytes does not fit into a cache of {limit} bytes; raise --cache-limit")]
    TooLarge {
        /// Bytes of the object.
        size: u64,
        /// Bytes of the cache.
        limit: u64,
    },
    /// Everything that could be removed was removed.
    #[error(
        "the cache is full: {used} of {limit} bytes are in use by attached catalogs and running downloads; raise --cache-limit"
    )]
    Full {
        /// Bytes that cannot be removed.
        used: u64,
        /// Bytes of the cache.
        limit: u64,
    },
}

/// Builds the error for a failed operation on `path`.
pub(crate) fn io_error(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> CacheError {
    let path = path.into();
    move |source| CacheError::Io { what, path, source }
}
