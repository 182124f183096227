//! Large files that a repository may have as one object, although it is our way to store them in chunks: `cvmfs_server
//! ingest` never cuts, and so did the existing image publisher, which is made of it.
//!
//! The object of a whole file has the hash of its compressed bytes, so finding out costs compressing it. That is done
//! for files of a size that a whole file of the present revision has, and for no others. The sizes are read from all
//! catalogs once; after that only catalogs are read that are new.
//!
//! State: `whole.db` has the catalogs that were read and the sizes that were found. It only ever grows, since a size too
//! many costs time and nothing else; it may be deleted.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use cvmfs::catalog::NestedRef;
use cvmfs::hash::ContentHash;
use cvmfs::object::{Encoding, encode_file};
use cvmfs::path::RepoPath;
use cvmfs::repository::Repository;
use cvmfs::traversal::Loader;
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::raw_index::RawHash;

/// Sizes of the large files that the repository has as one object.
#[derive(Debug)]
pub struct WholeFiles {
    sizes: HashSet<u64>,
    scratch: PathBuf,
}

impl WholeFiles {
    /// Looks at the present revision for files above `min` bytes.
    pub fn look(repository: &Repository, state: &Path, scratch: &Path, min: u64) -> Result<WholeFiles, Failure> {
        let path = state.join("whole.db");
        let failed = |source| Failure::State { path: path.clone(), source };
        let db = Connection::open(&path).map_err(failed)?;
        db.execute_batch(
            "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; BEGIN IMMEDIATE;
             CREATE TABLE IF NOT EXISTS catalogs (hash TEXT, min INTEGER, PRIMARY KEY (hash, min)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS sizes (size INTEGER PRIMARY KEY);",
        )
        .map_err(failed)?;
        let manifest = repository.manifest();
        let (hash, size) = (manifest.root_catalog, manifest.root_catalog_size);
        let mut pending = vec![NestedRef { path: RepoPath::ROOT, hash, size }];
        let loader = Loader::new(&**repository.store(), scratch);
        while let Some(reference) = pending.pop() {
            let entered = db
                .execute("INSERT OR IGNORE INTO catalogs VALUES (?1, ?2)", (reference.hash.to_string(), min as i64))
                .map_err(failed)?;
            // Who is known, its nested catalogs are.
            if entered == 0 {
                continue;
            }
            let catalog = loader.load(&reference)?;
            for size in catalog.whole_sizes(min)? {
                db.execute("INSERT OR IGNORE INTO sizes VALUES (?1)", [size as i64]).map_err(failed)?;
            }
            pending.extend(catalog.nested_all()?);
        }
        db.execute_batch("COMMIT").map_err(failed)?;
        let mut statement = db.prepare("SELECT size FROM sizes WHERE size > ?1").map_err(failed)?;
        let sizes = statement.query_map([min as i64], |row| Ok(row.get::<_, i64>(0)? as u64)).map_err(failed)?;
        let sizes = sizes.collect::<rusqlite::Result<_>>().map_err(failed)?;
        Ok(WholeFiles { sizes, scratch: scratch.to_owned() })
    }

    /// Whether a file of this size may be there as one object.
    pub(super) fn may_have(&self, size: u64) -> bool {
        self.sizes.contains(&size)
    }

    /// Reads a file to its end into a place from which it can be read again.
    pub(super) fn keep(&self, source: &mut dyn Read) -> Result<Kept, Failure> {
        let failed = |e| Failure::io("write a temporary file in", &self.scratch)(e);
        let mut file = tempfile::tempfile_in(&self.scratch).map_err(failed)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; super::READ]);
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    file.write_all(&buffer[..read]).map_err(failed)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::read("the content of a file")(e)),
            }
        }
        Ok(Kept { raw: hasher.finalize().into(), file, scratch: self.scratch.clone() })
    }
}

/// A file that can be read more than once.
#[derive(Debug)]
pub(super) struct Kept {
    /// Hash of its plain bytes.
    pub(super) raw: RawHash,
    file: File,
    scratch: PathBuf,
}

impl Kept {
    /// The file from its beginning.
    pub(super) fn rewound(&mut self) -> Result<&mut File, Failure> {
        self.file.rewind().map_err(Failure::io("read a temporary file in", &self.scratch))?;
        Ok(&mut self.file)
    }

    /// The hash that its object has if it is stored as a whole.
    pub(super) fn hash(&mut self, encoding: Encoding) -> Result<ContentHash, Failure> {
        let failed = Failure::io("read a temporary file in", &self.scratch);
        Ok(encode_file(encoding, self.rewound()?, &mut io::sink()).map_err(failed)?.0)
    }
}
