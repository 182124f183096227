//! Says whether a repository is sound: everything the reference checker verifies, and what it lets pass
//! although clients stumble over it.
//!
//! ```text
//! manifest ─ signature ─ certificate ─ whitelist       top.rs
//!    ├─ meta info, alternative links                   top.rs
//!    ├─ tag database, reflog                           databases.rs
//!    └─ root catalog ─ nested catalogs …               catalog.rs (tree), rows.rs (one catalog)
//!                        └─ objects are there          presence.rs
//! all stored bytes match their names                   crate::scrub, on request
//! ```
//!
//! Nothing is changed. A fault never hides another one where it can be helped: the check goes on with what is
//! readable and names the [`Rule`] of each finding.
//!
//! Memory is bounded by the largest tag database, by the number of sub-directories that wait in one catalog
//! and by [`MAX_FINDINGS`]; the number of rows, objects and catalogs does not matter.

mod catalog;
mod databases;
mod presence;
mod report;
mod rows;
mod rule;
mod top;

use std::path::Path;

pub(crate) use report::chain;
pub use report::{Finding, MAX_FINDINGS, Report, Severity};
pub use rule::{Origin, Rule};

use crate::hash::ContentHash;
use crate::object::ObjectError;
use crate::store::{Store, StoreError};
use crate::traversal::{Loader, TraversalError};
use crate::trust::Anchor;

/// Why a check ended before it could say anything: the exit status is "unreadable", not "unsound".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// There is no repository.
    #[error("no manifest (.cvmfspublished) in {0}: this is no repository, or its storage is not where it should be")]
    NoManifest(String),
    /// The storage cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No room for temporary files.
    #[error(transparent)]
    Scratch(TraversalError),
}

/// Which repository the manifest has to be for, and how far its signature is followed.
///
/// Hash line and signature of the manifest are verified in any case: its own certificate is in the storage.
#[derive(Debug, Clone, Copy, Default)]
pub enum Identity<'a> {
    /// Whatever the manifest names.
    #[default]
    Any,
    /// The repository of this name.
    Name(&'a str),
    /// The whole chain of trust from the master keys down.
    Trusted(&'a Anchor<'a>),
}

/// What to check, and how.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Repository that is expected.
    pub identity: Identity<'a>,
    /// Hash of the reflog as kept beside the storage; goes before that of the manifest, which is stale
    /// after a garbage collection and on a stratum 1.
    pub reflog_checksum: Option<ContentHash>,
    /// Whether the object of every file and chunk has to be there.
    pub objects: bool,
    /// Questions to the storage that may be under way at a time.
    pub parallel: usize,
    /// Directory of temporary files; one plain catalog has to fit.
    pub scratch: &'a Path,
}

impl<'a> Options<'a> {
    /// Everything, for any repository, with temporary files in `scratch`.
    pub fn new(scratch: &'a Path) -> Options<'a> {
        Options { identity: Identity::Any, reflog_checksum: None, objects: true, parallel: 4, scratch }
    }
}

/// Words for what is wrong with an object; an error when it was not the object but reading or writing that failed.
fn fault(error: StoreError) -> Result<String, CheckError> {
    match error {
        StoreError::Missing(_) => Ok("it is missing".into()),
        StoreError::Io { .. } | StoreError::Object(ObjectError::Write(..)) => Err(CheckError::Store(error)),
        StoreError::Object(error) => Ok(chain(&error)),
    }
}

/// Checks the current revision of a repository.
pub fn check(store: &dyn Store, options: &Options<'_>) -> Result<Report, CheckError> {
    let mut report = Report::default();
    let loader = Loader::new(store, options.scratch);
    let Some(manifest) = top::check(store, options.identity, &mut report)? else {
        return Ok(report);
    };
    databases::check_history(loader, &manifest, &mut report)?;
    databases::check_reflog(loader, &manifest, options.reflog_checksum, &mut report)?;
    catalog::check(loader, &manifest, options, &mut report)?;
    Ok(report)
}
