//! Compares every stored object with its name.
//!
//! Finds what no look at the catalogs can find: objects that rotted, were cut off or were exchanged. The
//! storage is read once, whether anything refers to an object or not.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::check::{CheckError, Report, Rule};
use crate::hash::{Hasher, ObjectId};
use crate::store::{LocalStore, MemoryStore, Store, StoreError};

/// What a name in the storage stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a pipe, …
    Other,
}

/// A storage whose objects can be listed.
pub trait Listing: Store {
    /// Hands out names and kinds of everything directly in `data/` (`bucket` = `None`) or in `data/<bucket>/`,
    /// in any order. A directory that does not exist is empty.
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(&str, ListedKind)) -> Result<(), StoreError>;
}

impl Listing for LocalStore {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(&str, ListedKind)) -> Result<(), StoreError> {
        let path = bucket.map_or_else(|| "data".to_owned(), |b| format!("data/{b}"));
        let error = |source| StoreError::Io { action: "cannot list", what: path.clone(), place: self.place(), source };
        let entries = match std::fs::read_dir(self.root().join(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(error(e)),
        };
        for entry in entries {
            let entry = entry.map_err(error)?;
            let file_type = entry.file_type().map_err(error)?;
            let kind = match () {
                () if file_type.is_file() => ListedKind::File,
                () if file_type.is_dir() => ListedKind::Directory,
                () => ListedKind::Other,
            };
            visit(&entry.file_name().to_string_lossy(), kind);
        }
        Ok(())
    }
}

impl Listing for MemoryStore {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(&str, ListedKind)) -> Result<(), StoreError> {
        let prefix = bucket.map_or_else(|| "data/".to_owned(), |b| format!("data/{b}/"));
        let mut names: Vec<(String, ListedKind)> = Vec::new();
        for path in self.content().keys().filter_map(|p| p.strip_prefix(&prefix)) {
            names.push(match path.split_once('/') {
                Some((directory, _)) => (directory.to_owned(), ListedKind::Directory),
                None => (path.to_owned(), ListedKind::File),
            });
        }
        names.dedup();
        names.iter().for_each(|(name, kind)| visit(name, *kind));
        Ok(())
    }
}

/// Reads every object below `data/` with this many threads. `data/txn` is left out.
pub fn scrub(store: &dyn Listing, threads: usize) -> Result<Report, CheckError> {
    let mut report = Report::default();
    let mut buckets = Vec::new();
    store.list(None, &mut |name, kind| match kind {
        ListedKind::Directory if is_bucket(name) => buckets.push(name.to_owned()),
        ListedKind::Directory if name == "txn" => {}
        _ => report.add(Rule::ObjectName, format!("data/{name}"), describe(kind)),
    })?;
    buckets.sort();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut report = Report::default();
        while let Some(bucket) = buckets.get(next.fetch_add(1, Ordering::Relaxed)) {
            scrub_bucket(store, bucket, &mut report)?;
        }
        Ok::<_, CheckError>(report)
    };
    let parts: Vec<Result<Report, CheckError>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().expect("hashing does not panic")).collect()
    });
    for part in parts {
        report.merge(part?);
    }
    Ok(report)
}

fn is_bucket(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn describe(kind: ListedKind) -> &'static str {
    match kind {
        ListedKind::File => "a file",
        ListedKind::Directory => "a directory",
        ListedKind::Other => "neither file nor directory",
    }
}

fn scrub_bucket(store: &dyn Listing, bucket: &str, report: &mut Report) -> Result<(), CheckError> {
    let mut objects = Vec::new();
    store.list(Some(bucket), &mut |name, kind| match ObjectId::from_path_parts(bucket, name) {
        Some(id) if kind == ListedKind::File => objects.push(id),
        _ => report.add(Rule::ObjectName, format!("data/{bucket}/{name}"), describe(kind)),
    })?;
    let mut buffer = vec![0; 256 * 1024];
    for id in objects {
        let mut stored = match store.open(id) {
            Ok(stored) => stored,
            // Collected since it was listed.
            Err(StoreError::Missing(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut hasher = Hasher::new(id.hash.algorithm);
        let read = loop {
            match stored.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    report.bytes += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        report.objects += 1;
        let found = hasher.finish();
        match read {
            // A bad sector is a fault of this object; the others may be fine.
            Err(error) => report.add(Rule::ObjectContent, id.path(), format!("cannot be read: {error}")),
            Ok(()) if found != id.hash => report.add_expecting(Rule::ObjectContent, id.path(), id.hash, found),
            Ok(()) => {}
        }
    }
    Ok(())
}
