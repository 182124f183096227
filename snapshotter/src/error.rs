//! Why a request about snapshots fails: the kinds that containerd tells apart.

use std::io;
use std::path::PathBuf;

/// Why a request fails.
///
/// The kind decides what containerd does next: it goes on after *already exists*, retries nothing after *invalid argument*,
/// and its garbage collection passes over *failed precondition* only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No snapshot has this name.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// A snapshot has this name, or what was to be made is there.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The snapshot is not of the kind, or not in the place, that the request needs.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request as such makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// Something outside is not there now; asking again later makes sense.
    #[error("{0}")]
    Unavailable(String),
    /// The directories can't be used.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// what was attempted
        action: &'static str,
        /// where
        path: PathBuf,
        /// why not
        source: io::Error,
    },
    /// The database can't be used.
    #[error("the database of snapshots can't be used: {0}; the log of the daemon says more")]
    Database(#[from] rusqlite::Error),
}

impl Error {
    /// An I/O error with its place, as an argument of `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
