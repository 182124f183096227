//! Copies everything below a root catalog.
//!
//! Depth first. A catalog is fetched into scratch files, what its files refer to is asked for, the catalogs nested in it
//! come next, and then it waits in a queue. From there catalogs are stored in that order, each when its objects are in
//! the storage; the ones below it stand before it in the queue.
//!
//! Invariants
//! - A catalog is stored after everything that it refers to. So one that is there is complete, and is not looked into:
//!   an update costs what changed, and an interrupted copy goes on where it was.
//! - Memory grows with the depth and the fan-out of the tree of catalogs, not with their number or their rows. While one
//!   catalog is read, the next few are on their way.
//! - A nested catalog lies strictly below the one that refers to it, or the copy fails; so the walk ends. A catalog that
//!   waits to be stored counts as present; so a tree that refers to one catalog many times costs as much as one that
//!   does it once.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use cvmfs::catalog::{Catalog, NestedRef, Row};
use cvmfs::entry::FileType;
use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::path::RepoPath;
use cvmfs::traversal::{Loader, TraversalError};
use tempfile::TempPath;

use super::error::ReplicateError;
use super::pool::{Database, Pending, Pool, Referrer, stored_limit};

/// Catalogs that may wait for their objects.
const QUEUE: usize = 64;
/// Catalogs that are fetched before it is their turn.
const AHEAD: usize = 8;
/// Rows read at a time.
const BATCH: usize = 2048;

/// What became of a root catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Root {
    /// It is in the copy with everything below; the predecessor that it names.
    Complete(Option<ContentHash>),
    /// The server has it no longer.
    Missing,
}

/// A catalog whose rows and nested catalogs have been dealt with.
struct Ready {
    id: ObjectId,
    stored: TempPath,
    pending: Arc<Pending>,
}

enum Step {
    Enter(NestedRef),
    Leave(Ready),
}

/// Copies trees of catalogs.
pub(super) struct Walker<'p, 'a> {
    pool: &'p Pool<'a>,
    queue: VecDeque<Ready>,
    /// Read and not stored yet.
    known: HashSet<ObjectId>,
    catalogs: u64,
}

impl<'p, 'a> Walker<'p, 'a> {
    pub(super) fn new(pool: &'p Pool<'a>) -> Self {
        Walker { pool, queue: VecDeque::new(), known: HashSet::new(), catalogs: 0 }
    }

    /// Catalogs stored so far.
    pub(super) fn catalogs(&self) -> u64 {
        self.catalogs
    }

    /// Copies the tree below a root catalog, whose plain size is `size` (0 if unknown). `each` is called now and then.
    pub(super) fn root(
        &mut self,
        hash: ContentHash,
        size: u64,
        each: &mut dyn FnMut(),
    ) -> Result<Root, ReplicateError> {
        let reference = NestedRef { path: RepoPath::ROOT, hash, size };
        let id = hash.object(ObjectKind::Catalog);
        if self.pool.store().exists(id)? {
            let catalog = Loader::new(self.pool.store(), self.pool.scratch()).load(&reference)?;
            return Ok(Root::Complete(catalog.previous_revision()?));
        }
        self.begin(&reference);
        let database = match self.pool.take(id) {
            // Nothing else was asked for yet.
            Err(error) if error.is_missing() => return Ok(Root::Missing),
            database => database?,
        };
        let mut steps = Vec::new();
        let previous = self.enter(&reference, database, &mut steps)?;
        while let Some(step) = steps.pop() {
            each();
            match step {
                Step::Leave(ready) => {
                    self.queue.push_back(ready);
                    self.settle(QUEUE)?;
                }
                Step::Enter(reference) => {
                    if !self.has(&reference)? {
                        self.begin(&reference);
                        self.look_ahead(&steps)?;
                        let database = self.pool.take(reference.hash.object(ObjectKind::Catalog))?;
                        self.enter(&reference, database, &mut steps)?;
                    }
                }
            }
        }
        self.settle(0)?;
        Ok(Root::Complete(previous))
    }

    /// Whether a catalog is in the copy, or will be before anything that is still to be stored.
    fn has(&self, reference: &NestedRef) -> Result<bool, ReplicateError> {
        let id = reference.hash.object(ObjectKind::Catalog);
        Ok(self.known.contains(&id) || self.pool.store().exists(id)?)
    }

    /// Begins to fetch the catalogs whose turn comes next.
    fn look_ahead(&self, steps: &[Step]) -> Result<(), ReplicateError> {
        for step in steps.iter().rev().take(AHEAD) {
            if let Step::Enter(reference) = step
                && !self.has(reference)?
            {
                self.begin(reference);
            }
        }
        Ok(())
    }

    fn begin(&self, reference: &NestedRef) {
        let NestedRef { path, hash, size } = reference;
        self.pool.begin(hash.object(ObjectKind::Catalog), *size, || format!("catalog {hash} of {path}"));
    }

    /// Reads a catalog: asks for its objects, and leaves what comes next on the stack. Gives its predecessor.
    fn enter(
        &mut self,
        reference: &NestedRef,
        Database { stored, plain }: Database,
        steps: &mut Vec<Step>,
    ) -> Result<Option<ContentHash>, ReplicateError> {
        let id = reference.hash.object(ObjectKind::Catalog);
        self.known.insert(id);
        let pending = Arc::<Pending>::default();
        let (nested, previous) = self.read(reference, &plain, &pending)?;
        steps.push(Step::Leave(Ready { id, stored, pending }));
        for below in nested.into_iter().rev() {
            if below.path == reference.path || !reference.path.contains(&below.path) {
                let parent = reference.path.clone();
                return Err(TraversalError::Outside { parent, path: below.path }.into());
            }
            steps.push(Step::Enter(below));
        }
        Ok(previous)
    }

    fn read(
        &self,
        reference: &NestedRef,
        plain: &Path,
        pending: &Arc<Pending>,
    ) -> Result<(Vec<NestedRef>, Option<ContentHash>), ReplicateError> {
        let catalog = Catalog::open(plain, reference.path.clone())?;
        let place = Arc::new(reference.path.clone());
        let mut last = i64::MIN;
        loop {
            let rows = catalog.rows_after(last, BATCH)?;
            let Some(row) = rows.last() else { break };
            last = row.rowid;
            for row in &rows {
                self.want(&catalog, row, &place, pending)?;
            }
        }
        let (nested, previous) = (catalog.nested_all()?, catalog.previous_revision()?);
        Ok((nested, previous))
    }

    /// Asks for the objects of one row. External files have none here.
    fn want(
        &self,
        catalog: &Catalog,
        row: &Row,
        place: &Arc<RepoPath>,
        pending: &Arc<Pending>,
    ) -> Result<(), ReplicateError> {
        let entry = &row.entry;
        if entry.file_type() != FileType::Regular || entry.flags.is_external() {
            return Ok(());
        }
        let want = |hash: ContentHash, kind, size| {
            let referrer = || Referrer { catalog: place.clone(), name: entry.name.as_slice().into() };
            self.pool.want(hash.object(kind), stored_limit(size), referrer, pending)
        };
        if let Some(content) = entry.content {
            want(content, ObjectKind::File, entry.size)?;
        }
        if entry.flags.is_chunked() {
            for chunk in catalog.chunks(row.key, entry.algorithm())? {
                want(chunk.hash, ObjectKind::Chunk, chunk.size)?;
            }
        }
        Ok(())
    }

    /// Stores the catalogs at the head of the queue: those that are complete, and as many more, after waiting for
    /// their objects, as keep it no longer than `longest`.
    fn settle(&mut self, longest: usize) -> Result<(), ReplicateError> {
        while let Some(Ready { pending, .. }) = self.queue.front() {
            if self.queue.len() > longest {
                self.pool.wait(pending)?;
            } else if !pending.is_over() {
                break;
            }
            let Some(Ready { id, stored, .. }) = self.queue.pop_front() else { break };
            self.pool.keep(id, &stored)?;
            self.known.remove(&id);
            self.catalogs += 1;
        }
        Ok(())
    }
}
