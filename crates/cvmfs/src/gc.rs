//! Removes objects that no kept revision refers to.
//!
//! ```text
//! roots.rs   HEAD, its predecessors within the threshold, tags, what was published lately → root catalogs
//! mark.rs    root catalogs → everything they refer to, each catalog read once
//! marks.rs   256 sorted files of the objects to be kept
//! sweep.rs   all objects of the storage, bucket by bucket: neither marked nor young → removed
//! ```
//!
//! One rule covers what the reference collector removes (revisions beyond the threshold, see "Garbage collection" of its
//! manual) and what it never finds (objects stored by runs that were killed or failed): kept is what is marked or young.
//!
//! Invariants
//! - Marking is total: one unreadable catalog below a kept root, and nothing is removed. Only root catalogs of the past
//!   may be missing: another collection took them.
//! - An object younger than the minimal age is never removed, whatever refers to it, and neither is anything that a
//!   revision published within that time refers to.
//! - The reflog forgets revisions before their objects go. A collection that is killed leaves objects that nothing
//!   refers to, which the next one finds; the other way round the reflog would name roots that are not there.
//! - Whoever calls holds the lease that excludes others who publish or prepare content. The manifest is looked at before
//!   each bucket all the same, and the sweep stops when it is another.
//! - Memory does not grow with the number of objects; it holds the hashes of all catalogs and one bucket a thread.
//!
//! No clock: now comes in.

pub mod marks;

mod mark;
mod roots;
mod sweep;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::catalog::CatalogError;
use crate::hash::ContentHash;
use crate::keys::Signer;
use crate::reflog::Ref;
use crate::repository::{Repository, RepositoryError};
use crate::store::{Listing, StoreError};
use crate::traversal::TraversalError;
use marks::Marks;

pub use roots::KeptRoot;
pub use sweep::{Count, Mode, Swept};

/// Objects younger than this are never removed, unless somebody says otherwise.
pub const MINIMAL_AGE: Duration = Duration::from_secs(48 * 3600);

/// How far back revisions are kept, besides those with a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// HEAD and this many before it.
    Revisions(u64),
    /// All that were current at this time (Unix seconds) or later.
    Since(u64),
}

/// What a collection needs from outside.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// How far back revisions are kept.
    pub keep: Keep,
    /// Objects younger than this stay.
    pub minimal_age: Duration,
    /// Now.
    pub now: SystemTime,
    /// Where scratch files go: 20 to 40 bytes an object.
    pub scratch: &'a Path,
    /// Catalogs read at the same time.
    pub threads: usize,
}

impl Options<'_> {
    /// What was written after this is young.
    fn young_since(&self) -> SystemTime {
        self.now.checked_sub(self.minimal_age).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// Why a collection ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// The operator of the repository wants to keep everything.
    #[error(
        "repository {0} is not garbage-collectable (its manifest says so); nothing is ever removed from it. A repository is made collectable by \"cvmfs-publisher init\" without --no-gc, or with CVMFS_GARBAGE_COLLECTION=true and one publish by the reference tools"
    )]
    NotAllowed(String),
    /// Nobody knows which revisions there are.
    #[error("repository {0} has no reflog, so that nobody knows its revisions; publish once, then collect")]
    NoReflog(String),
    /// A kept revision is damaged: what it refers to is not known.
    #[error(
        "nothing was removed: {root} is kept, and a part of it cannot be read (\"cvmfs-publisher check\" says more; a threshold or tags without that revision leave it out)"
    )]
    Unreadable {
        /// Which revision.
        root: String,
        /// What is wrong.
        #[source]
        source: Box<TraversalError>,
    },
    /// A kept revision has a catalog with impossible content.
    #[error("nothing was removed: {root} is kept, and its catalog {catalog} cannot be read")]
    Catalog {
        /// Which revision.
        root: String,
        /// Which catalog.
        catalog: ContentHash,
        /// What is wrong.
        #[source]
        source: Box<CatalogError>,
    },
    /// No room for the list of kept objects.
    #[error("cannot use scratch space in {}", directory.display())]
    Scratch {
        /// Directory of temporary files.
        directory: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Somebody published, or whoever collects was told to stop.
    #[error("the collection was stopped: {0}; what was not removed yet stays for the next one")]
    Stopped(&'static str),
    /// The repository cannot be used.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is to be kept and what the reflog is to forget; nothing has been changed by making it.
#[derive(Debug)]
pub struct Plan {
    repository: Repository,
    marks: Marks,
    /// Root catalogs that stay, HEAD first.
    pub kept: Vec<KeptRoot>,
    /// Root catalogs that ought to stay and are not in the storage: other collections took them.
    pub missing: Vec<KeptRoot>,
    /// Rows that the reflog is to forget.
    pub forgotten: Vec<Ref>,
    /// Catalogs read.
    pub catalogs: u64,
    scratch: PathBuf,
    young_since: SystemTime,
    threads: usize,
}

impl Plan {
    /// Finds out what is to be kept.
    pub fn make(repository: Repository, options: &Options<'_>) -> Result<Plan, GcError> {
        if !repository.manifest().garbage_collectable {
            return Err(GcError::NotAllowed(repository.fqrn().to_owned()));
        }
        let scratch = |source| GcError::Scratch { directory: options.scratch.to_owned(), source };
        let marks = Marks::new(options.scratch).map_err(scratch)?;
        let reach = mark::mark(&repository, options, &marks)?;
        Ok(Plan {
            repository,
            marks,
            kept: reach.kept,
            missing: reach.missing,
            forgotten: reach.forgotten,
            catalogs: reach.catalogs,
            scratch: options.scratch.to_owned(),
            young_since: options.young_since(),
            threads: options.threads.max(1),
        })
    }

    /// Number of the present revision.
    pub fn revision(&self) -> u64 {
        self.repository.manifest().revision
    }

    /// Rewrites the reflog without what is to be forgotten; with a signer the manifest names its new hash, in the same
    /// revision. Comes before [`Plan::sweep`].
    pub fn forget(&mut self, signer: Option<&Signer>, now: u64, checksum: Option<&Path>) -> Result<(), GcError> {
        if self.forgotten.is_empty() {
            return Ok(());
        }
        let (repository, written) =
            self.repository.clone().forget(&self.forgotten, signer, now, &self.scratch, checksum)?;
        self.repository = repository;
        let mut marker = self.marks.marker();
        written
            .into_iter()
            .try_for_each(|id| marker.mark(id))
            .and_then(|()| marker.flush())
            .map_err(|source| GcError::Scratch { directory: self.scratch.clone(), source })
    }

    /// Looks at all objects of the storage; removes those that nothing kept refers to, unless they are young.
    /// `may_go_on` is asked before each bucket and now and then within it.
    pub fn sweep(
        &self,
        store: &dyn Listing,
        mode: Mode,
        may_go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Swept, GcError> {
        let unmoved = || -> Result<(), GcError> {
            if !may_go_on() {
                return Err(GcError::Stopped("its lease was lost, others may be storing objects"));
            }
            match mode {
                Mode::Count => Ok(()),
                Mode::Remove if self.repository.is_current()? => Ok(()),
                Mode::Remove => Err(GcError::Stopped("somebody published meanwhile")),
            }
        };
        let scratch = |source| GcError::Scratch { directory: self.scratch.clone(), source };
        let of_bucket = |bucket| self.marks.of_bucket(bucket).map_err(scratch);
        sweep::sweep(store, &of_bucket, self.young_since, mode, self.threads, &unmoved)
    }
}

#[cfg(test)]
mod tests;
