//! Why a copy could not be made or brought up to date.

use std::io;
use std::path::PathBuf;

use cvmfs::catalog::CatalogError;
use cvmfs::hash::ObjectId;
use cvmfs::store::StoreError;
use cvmfs::traversal::TraversalError;
use cvmfs::trust::TrustError;

use crate::error::{CommandError, one_line};

/// Replication failed. Whatever it was, the copy shows the revision that it had before, and everything that came is
/// kept for the next run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicateError {
    /// The URL cannot be used.
    #[error("{url}: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server does not want to be copied from.
    #[error("{0} may not be copied: it has no .cvmfs_master_replica, which allows replication")]
    NotReplicable(String),
    /// The server does not have it.
    #[error("{what} is not on the server ({url})")]
    Missing {
        /// What was asked for, and who refers to it.
        what: String,
        /// Where.
        url: String,
    },
    /// The server did not send it, however often it was asked.
    #[error("cannot get {what} from {url}: {reason}")]
    Transfer {
        /// What was asked for, and who refers to it.
        what: String,
        /// Where.
        url: String,
        /// Why the last attempt failed.
        reason: String,
    },
    /// The server sent something else, twice; the second time past all caches.
    #[error("{url} sends wrong bytes for {what}: {reason}; nothing of it was kept")]
    Wrong {
        /// What was asked for, and who refers to it.
        what: String,
        /// Where.
        url: String,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The chain of trust does not hold.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The administrator refuses this revision.
    #[error("revision {revision} of {fqrn} is blacklisted: at least {least} is required")]
    Blacklisted {
        /// Repository.
        fqrn: String,
        /// Revision of the server.
        revision: u64,
        /// Lowest revision allowed.
        least: u64,
    },
    /// The server is behind the copy.
    #[error(
        "the server has revision {offered} of time {published}, the copy has revision {known} of time {newest}: \
         outdated or replayed, so nothing was changed"
    )]
    Outdated {
        /// Revision of the server.
        offered: u64,
        /// Its time, Unix seconds.
        published: u64,
        /// Revision of the copy.
        known: u64,
        /// Its time.
        newest: u64,
    },
    /// The directory holds something that is no copy of this repository.
    #[error("{} holds {what}; nothing was changed", directory.display())]
    Occupied {
        /// The directory.
        directory: PathBuf,
        /// What is in it.
        what: String,
    },
    /// Another run works on the same copy.
    #[error("another replicate is at work in {}", .0.display())]
    Busy(PathBuf),
    /// The storage of the copy failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A catalog of the copy cannot be opened, or catalogs are nested in a way that cannot be.
    #[error(transparent)]
    Traversal(#[from] TraversalError),
    /// The tag database or the reflog cannot be used.
    #[error("{what}")]
    Database {
        /// Which one.
        what: String,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// A thread that fetches objects died.
    #[error("object {0} could not be fetched: its thread died; run again")]
    Died(ObjectId),
}

impl ReplicateError {
    /// For `map_err` of a file operation.
    pub(super) fn io<P: Into<PathBuf>>(
        action: &'static str,
        path: P,
    ) -> impl FnOnce(io::Error) -> ReplicateError + use<P> {
        let path = path.into();
        move |source| ReplicateError::Io { action, path, source }
    }

    /// Whether the server answered that there is no such thing.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, ReplicateError::Missing { .. })
    }

    /// The same on one line, with its causes.
    pub fn line(&self) -> String {
        one_line(self)
    }
}

impl From<ReplicateError> for CommandError {
    fn from(error: ReplicateError) -> CommandError {
        match &error {
            ReplicateError::Url { .. } => CommandError::usage(error),
            ReplicateError::NotReplicable(_) => {
                CommandError::repository(error).hint("copy from the stratum 0, whose operator makes that file")
            }
            ReplicateError::Outdated { .. } => CommandError::repository(error).hint(
                "look at the server; if it was set back on purpose, remove .cvmfspublished from the copy and run again",
            ),
            ReplicateError::Trust(_)
            | ReplicateError::Blacklisted { .. }
            | ReplicateError::Occupied { .. }
            | ReplicateError::Busy(_) => CommandError::repository(error),
            ReplicateError::Missing { .. } | ReplicateError::Transfer { .. } | ReplicateError::Wrong { .. } => {
                CommandError::failed(error)
                    .hint("run the same command again: what has come is kept, and only what is missing is asked for")
            }
            _ => CommandError::failed(error),
        }
    }
}
