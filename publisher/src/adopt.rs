//! A stratum 0 that the reference tools made and go on using.
//!
//! Found by its `server.conf`; published into directly: its storage, keys, settings, locks. What the tools keep beside
//! the storage (`CVMFS_SPOOL_DIR`) is kept up, so that their next command finds what it would have left itself.
//!
//! ```text
//! server.conf ── shell.rs ── settings.rs ── Stratum0: storage, spool, policy
//! locks.rs   is_publishing.lock, is_collecting.lock, in_transaction.lock, checkout
//! spool.rs   client.local, reflog.chksum
//! tags.rs    generic-… tags, made and removed
//! ```
//!
//! Facts: the manual of CernVM-FS (server configuration), and what version 2.12 of its tools does with these files.

mod locks;
mod settings;
mod shell;
mod spool;
mod tags;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cvmfs::chunk::ChunkSizes;
use cvmfs::hash::Algorithm;
use cvmfs::object::Codec;

pub use self::locks::StockLock;
pub use self::tags::AutoTags;
use crate::error::ErrorKind;
use crate::storage::Location;

/// A repository of the reference tools, as its configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stratum0 {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// The file that describes it.
    pub config: PathBuf,
    /// Its storage.
    pub storage: Location,
    /// What is kept beside the storage.
    pub spool: PathBuf,
    /// The user who owns all of it.
    pub user: Option<String>,
    /// What whoever publishes should know of its settings.
    pub remarks: Vec<&'static str>,
    /// Hash algorithm of new objects.
    pub algorithm: Algorithm,
    /// Compression of file content.
    pub codec: Codec,
    /// What else its configuration wants of a publish.
    pub policy: Policy,
}

/// What a repository wants of those who publish into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Where files are cut; not at all without.
    pub chunks: Option<ChunkSizes>,
    /// Whether a large file that is there as one object is used as it is, rather than stored in chunks beside it.
    pub reuse_whole: bool,
    /// Seconds until clients ask again; as it is, without.
    pub ttl: Option<u64>,
    /// Whether old revisions may be collected; as it is, without.
    pub garbage_collectable: Option<bool>,
    /// Tags that every publish makes.
    pub auto_tags: Option<AutoTags>,
}

impl Default for Policy {
    /// That of repositories of our own.
    fn default() -> Policy {
        Policy {
            chunks: Some(ChunkSizes::default()),
            reuse_whole: false,
            ttl: None,
            garbage_collectable: None,
            auto_tags: None,
        }
    }
}

impl Stratum0 {
    /// The repository that `DIRECTORY/repositories.d/FQRN/` describes; `None` if there is no such description.
    /// `directory` is `/etc/cvmfs` in life.
    pub fn find(directory: &Path, fqrn: &str) -> Result<Option<Arc<Stratum0>>, AdoptError> {
        settings::find(directory, fqrn).map(|found| found.map(Arc::new))
    }
}

impl Stratum0 {
    /// Fails unless this process can leave a storage that its owner can go on with.
    pub fn expect_ours(&self, present: Algorithm) -> Result<(), AdoptError> {
        let refuse = |what| AdoptError::Config { config: self.config.clone(), what };
        if present != self.algorithm {
            // The first revision with another one is for the tools to make, which know what else they change then.
            return Err(refuse(format!(
                "CVMFS_HASH_ALGORITHM={}, and the repository is written with {}; publish with cvmfs_server first",
                self.algorithm.name(),
                present.name()
            )));
        }
        let owned = self.storage.directory().unwrap_or(&self.spool);
        let owner = fs::metadata(owned).map_err(AdoptError::io("examine", owned))?.uid();
        let us = nix::unistd::geteuid();
        if !us.is_root() && us.as_raw() != owner {
            let user = self.user.clone().unwrap_or_else(|| format!("user {owner}"));
            return Err(refuse(format!("the repository belongs to {user}; publish as {user} or as root")));
        }
        Ok(())
    }
}

impl Location {
    /// The stratum 0 of the reference tools that this is, if it is one.
    pub fn stratum0(&self) -> Option<&Arc<Stratum0>> {
        match self {
            Location::Stratum0(stratum0) => Some(stratum0),
            _ => None,
        }
    }
}

/// A stratum 0 cannot be published to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// Its configuration has or lacks something.
    #[error("{}: {what}", config.display())]
    Config {
        /// The file.
        config: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file cannot be read or written.
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
    /// Somebody has a transaction open.
    #[error(
        "repository {fqrn} is in a transaction of cvmfs_server; publish it or abort it first (cvmfs_server publish {fqrn}, cvmfs_server abort {fqrn}; the flag is {})",
        flag.display()
    )]
    InTransaction {
        /// The repository.
        fqrn: String,
        /// The file that says so.
        flag: PathBuf,
    },
    /// A branch or an old revision is checked out.
    #[error(
        "a branch or an older tag of repository {fqrn} is checked out ({}); publish or abort there first (cvmfs_server checkout)",
        marker.display()
    )]
    CheckedOut {
        /// The repository.
        fqrn: String,
        /// The file that says so.
        marker: PathBuf,
    },
    /// Another tool has been at work for too long.
    #[error("repository {fqrn} is {doing} by another process (lock file {})", lock.display())]
    Busy {
        /// The repository.
        fqrn: String,
        /// What the other does to it: "being published", …
        doing: &'static str,
        /// Its lock.
        lock: PathBuf,
    },
    /// The log of root references is not the one that was left.
    #[error(
        "the reflog of repository {fqrn} {what}; see what happened to it (cvmfs_server check {fqrn}) before anything is published"
    )]
    Reflog {
        /// The repository.
        fqrn: String,
        /// What is wrong with it.
        what: String,
    },
}

impl AdoptError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            AdoptError::Config { .. } => ErrorKind::Config,
            _ => ErrorKind::Repository,
        }
    }

    /// For `map_err` of a file operation.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AdoptError + use<> {
        let path = path.to_owned();
        move |source| AdoptError::Io { action, path, source }
    }
}
