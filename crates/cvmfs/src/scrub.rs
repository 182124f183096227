//! Compares every stored object with its name.
//!
//! Finds what no look at the catalogs can find: objects that rotted, were cut off or were exchanged. The
//! storage is read once, whether anything refers to an object or not.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::check::{CheckError, Report, Rule};
use crate::hash::{Hasher, ObjectId};
use crate::store::{Listed, ListedKind, Listing, StoreError};

/// Reads every object below `data/` with this many threads. `data/txn` is left out.
pub fn scrub(store: &dyn Listing, threads: usize) -> Result<Report, CheckError> {
    let mut report = Report::default();
    let mut buckets = Vec::new();
    store.list(None, &mut |Listed { name, kind, .. }| match kind {
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
    store.list(Some(bucket), &mut |Listed { name, kind, .. }| match ObjectId::from_path_parts(bucket, name) {
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
