//! Directories of a revision, read one after the other: only the catalogs on the way to the present one are open.

use std::cell::Cell;
use std::rc::Rc;

use cvmfs::catalog::NestedRef;
use cvmfs::entry::Entry;
use cvmfs::path::RepoPath;
use cvmfs::subtree::MARKER;
use cvmfs::traversal::{Loaded, Loader};

use crate::failure::Failure;
use crate::target::Target;

/// A revision.
#[derive(Debug)]
pub struct View<'a> {
    loader: Loader<'a>,
    root: NestedRef,
    /// Catalogs fetched so far.
    pub catalogs: Cell<u64>,
}

/// A directory of it.
#[derive(Debug, Clone)]
pub struct Directory {
    catalog: Rc<Loaded>,
    /// Where it is.
    pub path: RepoPath,
}

impl<'a> View<'a> {
    /// The current revision.
    pub fn new(target: &'a Target) -> Result<View<'a>, Failure> {
        let manifest = target.repository()?.manifest().clone();
        let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
        Ok(View { loader: Loader::new(&*target.store, target.scratch()), root, catalogs: Cell::new(0) })
    }

    /// What reads its catalogs.
    pub fn loader(&self) -> Loader<'a> {
        self.loader
    }

    fn load(&self, reference: &NestedRef) -> Result<Rc<Loaded>, Failure> {
        self.catalogs.set(self.catalogs.get() + 1);
        Ok(Rc::new(self.loader.load(reference)?))
    }

    /// The top directory.
    pub fn root(&self) -> Result<Directory, Failure> {
        Ok(Directory { catalog: self.load(&self.root)?, path: RepoPath::ROOT })
    }

    /// A directory; nothing if there is none at that path.
    pub fn directory(&self, path: &RepoPath) -> Result<Option<Directory>, Failure> {
        let mut directory = self.root()?;
        for name in path.components() {
            let at = directory.path.join(name);
            match directory.entry(&at)? {
                Some(entry) if entry.is_directory() => directory = self.enter(&directory, &entry)?,
                _ => return Ok(None),
            }
        }
        Ok(Some(directory))
    }

    /// A directory in another one.
    pub fn enter(&self, directory: &Directory, entry: &Entry) -> Result<Directory, Failure> {
        let path = directory.path.join(&entry.name);
        let catalog = match entry.flags.is_nested_mountpoint() {
            true => self.load(&directory.nested(&path)?)?,
            false => directory.catalog.clone(),
        };
        Ok(Directory { catalog, path })
    }
}

impl Directory {
    /// What is in it, by name; markers of nested catalogs are left out.
    pub fn list(&self) -> Result<Vec<Entry>, Failure> {
        let rows = self.catalog.list(self.catalog.inner_path(&self.path).key())?;
        let mut entries: Vec<Entry> = rows.into_iter().map(|r| r.entry).filter(|e| e.name != MARKER).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The reference to the nested catalog of a directory in it.
    pub fn nested(&self, path: &RepoPath) -> Result<NestedRef, Failure> {
        let unregistered = || Failure::Content(format!("nested catalog {path} is not registered; run check"));
        self.catalog.nested(path)?.ok_or_else(unregistered)
    }

    /// Whether it is the root of a nested catalog, which then is [`Directory::reference`].
    pub fn is_top_of_catalog(&self) -> bool {
        self.catalog.reference().path == self.path
    }

    /// The catalog that lists it.
    pub fn reference(&self) -> NestedRef {
        self.catalog.reference().clone()
    }

    /// The entry at a path directly in it.
    pub fn entry(&self, path: &RepoPath) -> Result<Option<Entry>, Failure> {
        Ok(self.catalog.lookup_path(path)?.map(|r| r.entry))
    }
}
