//! The repository as planning sees it: single paths of one revision, any number of them, with few catalogs open.
//!
//! A pass over thousands of images looks into every catalog that the layout makes, more than a thousand of names, digests and images.
//! Each that is open costs about a quarter of a megabyte and two file descriptors, so they are closed again. Who asks in the order of
//! paths has each opened once.

use cvmfs::catalog::NestedRef;
use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use image::layout::{Layout, OwnedPath};
use image::manifest::MAX_DOCUMENT;

use crate::failure::Failure;
use crate::layer::repo_path;
use crate::target::Target;

/// Catalogs that are open at the same time, and those of one more path.
pub const MOST_OPEN: usize = 100;

/// One revision, to be looked at.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) target: &'a Target,
    pub(super) layout: Layout,
    transaction: Transaction,
}

impl<'a> View<'a> {
    /// The current revision.
    pub(super) fn new(target: &'a Target) -> Result<View<'a>, Failure> {
        let transaction = target.view(time::UtcDateTime::now())?;
        Ok(View { target, layout: Layout::new(), transaction })
    }

    /// How many catalogs are open.
    pub(super) fn open_catalogs(&self) -> usize {
        self.transaction.open_catalogs()
    }

    fn transaction(&mut self) -> &mut Transaction {
        if self.transaction.open_catalogs() >= MOST_OPEN {
            self.transaction.close_unchanged();
        }
        &mut self.transaction
    }

    /// The entry at a path.
    pub(super) fn entry(&mut self, path: &RepoPath) -> Result<Option<Entry>, Failure> {
        Ok(self.transaction().lookup(path)?)
    }

    /// The entry at a path of ours.
    pub(super) fn lookup(&mut self, path: &OwnedPath) -> Result<Option<Entry>, Failure> {
        self.entry(&repo_path(&self.layout, path))
    }

    /// The nested catalog whose root is exactly there.
    pub(super) fn nested(&mut self, path: &RepoPath) -> Result<Option<NestedRef>, Failure> {
        Ok(self.transaction().nested_reference(path)?)
    }

    /// The bytes of a small file; nothing if there is none.
    pub(super) fn read(&mut self, path: &OwnedPath) -> Result<Option<Vec<u8>>, Failure> {
        match self.lookup(path)? {
            Some(entry) => self.content(&entry),
            None => Ok(None),
        }
    }

    /// The bytes of a small file with this entry.
    pub(super) fn content(&self, entry: &Entry) -> Result<Option<Vec<u8>>, Failure> {
        let Some(hash) = entry.content else { return Ok(None) };
        let mut bytes = Vec::new();
        let id = hash.object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), MAX_DOCUMENT as u64, &mut bytes)?;
        Ok(Some(bytes))
    }
}
