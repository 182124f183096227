//! Opens every catalog of the current revision of a repository in a directory and reads every row of it, as a traversal
//! does: `walk STORAGE`. `make bench` compares it with `find`.
//!
//! Prints catalogs, rows, and the seconds for it as JSON. Nothing is verified but the hashes of the catalogs.

use std::path::PathBuf;
use std::time::Instant;

use cvmfs::catalog::NestedRef;
use cvmfs::manifest::Manifest;
use cvmfs::path::RepoPath;
use cvmfs::store::{LocalStore, Store as _, names};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};

/// Rows that are held at a time.
const PAGE: usize = 1024;

#[derive(Default)]
struct Count {
    catalogs: u64,
    rows: u64,
}

impl Visit for Count {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        self.catalogs += 1;
        let mut after = 0;
        loop {
            let rows = catalog.rows_after(after, PAGE).map_err(|source| {
                let NestedRef { path, hash, .. } = catalog.reference().clone();
                TraversalError::Catalog { path, hash, source: Box::new(source) }
            })?;
            self.rows += rows.len() as u64;
            match rows.last() {
                Some(last) if rows.len() == PAGE => after = last.rowid,
                _ => return Ok(Descend::Into),
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let storage = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: walk STORAGE")?);
    let store = LocalStore::open(&storage);
    let manifest = Manifest::parse(&store.read(names::MANIFEST)?.ok_or("no manifest there")?)?;
    let scratch = tempfile::tempdir()?;
    let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let mut count = Count::default();
    let start = Instant::now();
    walk(Loader::new(&store, scratch.path()), root, &mut count)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(r#"{{"catalogs": {}, "rows": {}, "seconds": {seconds}}}"#, count.catalogs, count.rows);
    Ok(())
}
