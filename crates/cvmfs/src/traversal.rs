//! Walks the tree of nested catalogs below a root catalog.
//!
//! A catalog is fetched into a temporary file, verified against its hash on the way, and opened from there.
//! Only the catalog that is being visited is open; what waits is one reference for each sibling on the way
//! down, so memory grows with the depth and the fan-out, not with the number of catalogs.
//!
//! Invariants
//! - [`Visit::enter`] comes before the catalogs below, [`Visit::leave`] after all of them: who copies objects
//!   in `enter` and the catalog itself in `leave` stores nothing before what it refers to.
//! - A nested catalog lies strictly below the one that refers to it, or the walk fails; so it ends.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::catalog::{Catalog, CatalogError, NestedRef};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::object::Compression;
use crate::path::RepoPath;
use crate::store::{DATABASE_LIMIT, Store, StoreError, fetch};

/// Why a catalog cannot be visited.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraversalError {
    /// The object is missing, corrupt or cannot be read.
    #[error("catalog {hash} of {path}")]
    Store {
        /// Where the catalog is mounted.
        path: RepoPath,
        /// The catalog.
        hash: ContentHash,
        /// What is wrong with the object.
        #[source]
        source: Box<StoreError>,
    },
    /// The object is what its name says, but no catalog.
    #[error("catalog {hash} of {path}")]
    Catalog {
        /// Where the catalog is mounted.
        path: RepoPath,
        /// The catalog.
        hash: ContentHash,
        /// What is wrong with the database.
        #[source]
        source: Box<CatalogError>,
    },
    /// A nested catalog that is not below its parent.
    #[error("the catalog of {parent} refers to a nested catalog at {path}, which is not below it")]
    Outside {
        /// Where the referring catalog is mounted.
        parent: RepoPath,
        /// Where it says that the other one is.
        path: RepoPath,
    },
    /// No room for the temporary copy.
    #[error("cannot write a temporary file in {}", directory.display())]
    Scratch {
        /// Directory of temporary files.
        directory: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// Fetches databases (catalogs, tags) from a store into temporary files.
#[derive(Debug, Clone, Copy)]
pub struct Loader<'a> {
    store: &'a dyn Store,
    directory: &'a Path,
}

/// A catalog in a temporary file, which goes when this is dropped.
#[derive(Debug)]
pub struct Loaded {
    // Declared first: the database is closed before its file is removed.
    catalog: Catalog,
    reference: NestedRef,
    size: u64,
    _file: TempPath,
}

impl Deref for Loaded {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.catalog
    }
}

impl Loaded {
    /// How the parent (or the manifest) refers to it.
    pub fn reference(&self) -> &NestedRef {
        &self.reference
    }

    /// Bytes of the plain database.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl<'a> Loader<'a> {
    /// Reads from `store`; temporary files go to `directory`.
    pub fn new(store: &'a dyn Store, directory: &'a Path) -> Loader<'a> {
        Loader { store, directory }
    }

    /// The store.
    pub fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Fetches, verifies and opens a catalog.
    pub fn load(&self, reference: &NestedRef) -> Result<Loaded, TraversalError> {
        let (path, hash) = (reference.path.clone(), reference.hash);
        let (file, size) = match self.database(hash.object(ObjectKind::Catalog)) {
            Ok(database) => database,
            Err(DatabaseError::Store(source)) => {
                return Err(TraversalError::Store { path, hash, source: source.into() });
            }
            Err(DatabaseError::Scratch(source)) => return Err(self.scratch(source)),
        };
        match Catalog::open(&file, path.clone()) {
            Ok(catalog) => Ok(Loaded { catalog, reference: reference.clone(), size, _file: file }),
            Err(source) => Err(TraversalError::Catalog { path, hash, source: source.into() }),
        }
    }

    /// Fetches and verifies a database object: its plain file and the size of it.
    pub(crate) fn database(&self, id: ObjectId) -> Result<(TempPath, u64), DatabaseError> {
        let mut file = self.temporary().map_err(DatabaseError::Scratch)?;
        let size = fetch(self.store, id, Compression::Zlib, DATABASE_LIMIT, file.as_file_mut())
            .map_err(DatabaseError::Store)?;
        Ok((file.into_temp_path(), size))
    }

    /// A temporary file with this content.
    pub(crate) fn keep(&self, content: &[u8]) -> Result<TempPath, TraversalError> {
        let write = || {
            let mut file = self.temporary()?;
            file.write_all(content)?;
            Ok(file.into_temp_path())
        };
        write().map_err(|source| self.scratch(source))
    }

    fn temporary(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix("catalog.").tempfile_in(self.directory)
    }

    pub(crate) fn scratch(&self, source: io::Error) -> TraversalError {
        TraversalError::Scratch { directory: self.directory.to_owned(), source }
    }
}

/// Why a database object is not in a temporary file.
#[derive(Debug)]
pub(crate) enum DatabaseError {
    Store(StoreError),
    Scratch(io::Error),
}

/// Whether a walk goes on below a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descend {
    /// Visit the nested catalogs of this one.
    Into,
    /// Leave them out.
    Past,
}

/// What happens at each catalog of a walk.
pub trait Visit {
    /// What ends the walk early.
    type Error: From<TraversalError>;

    /// A catalog, before those below it.
    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, Self::Error>;

    /// The same catalog, after those below it; it is closed by now.
    fn leave(&mut self, reference: &NestedRef) -> Result<(), Self::Error> {
        let _ = reference;
        Ok(())
    }

    /// A catalog that cannot be opened, instead of `enter` and `leave`.
    fn failed(&mut self, reference: &NestedRef, error: TraversalError) -> Result<(), Self::Error> {
        let _ = reference;
        Err(error.into())
    }
}

/// Visits `root` and all catalogs nested in it, depth first. Bind mountpoints are not followed.
pub fn walk<V: Visit>(loader: Loader<'_>, root: NestedRef, visitor: &mut V) -> Result<(), V::Error> {
    enum Step {
        Enter(NestedRef),
        Leave(NestedRef),
    }
    let mut steps = vec![Step::Enter(root)];
    while let Some(step) = steps.pop() {
        let reference = match step {
            Step::Leave(reference) => {
                visitor.leave(&reference)?;
                continue;
            }
            Step::Enter(reference) => reference,
        };
        let catalog = match loader.load(&reference) {
            Ok(catalog) => catalog,
            Err(error @ TraversalError::Scratch { .. }) => return Err(error.into()),
            Err(error) => {
                visitor.failed(&reference, error)?;
                continue;
            }
        };
        let descend = visitor.enter(&catalog)?;
        steps.push(Step::Leave(reference.clone()));
        if descend == Descend::Past {
            continue;
        }
        let nested = catalog.nested_all().map_err(|source| TraversalError::Catalog {
            path: reference.path.clone(),
            hash: reference.hash,
            source: source.into(),
        })?;
        for below in nested.into_iter().rev() {
            if below.path == reference.path || !reference.path.contains(&below.path) {
                return Err(TraversalError::Outside { parent: reference.path, path: below.path }.into());
            }
            steps.push(Step::Enter(below));
        }
    }
    Ok(())
}

/// Whether the file of a database says that it has a write-ahead log, which readers never look at.
pub(crate) fn has_write_ahead_log(file: &Path) -> io::Result<bool> {
    // File format write and read version: 1 rollback journal, 2 write-ahead log (SQLite file format, 1.3).
    let mut versions = [0; 2];
    let mut file = File::open(file)?;
    file.seek(SeekFrom::Start(18))?;
    file.read_exact(&mut versions)?;
    Ok(versions.contains(&2))
}
