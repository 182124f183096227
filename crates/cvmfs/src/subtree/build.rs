//! Turns the pending rows of one directory into a stored catalog.

use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::arena::RowReader;
use super::{MARKER, SubtreeError, SubtreeOptions};
use crate::catalog::counters::{Counter, Counters, Tally};
use crate::catalog::writer::CatalogWriter;
use crate::entry::{Entry, Flags};
use crate::hash::{ContentHash, ObjectKind};
use crate::path::{PathKey, RepoPath};
use crate::store::{Store, put_stream};

/// A catalog to be built.
#[derive(Debug)]
pub struct Job {
    pub path: RepoPath,
    pub root: Entry,
    pub root_key: PathKey,
    pub root_parent: PathKey,
    /// Counters of the rows, without root entry and marker.
    pub tally: Tally,
    /// Catalogs that hang below this one. They were issued before, so waiting for them ends.
    pub nested: Vec<Receiver<Built>>,
    pub store: Arc<dyn Store>,
    pub options: SubtreeOptions,
    pub rows: Rows,
    pub done: SyncSender<Built>,
}

/// The rows of a job: the directory's own row first.
#[derive(Debug)]
pub enum Rows {
    /// Given apart.
    None,
    /// Encoded, here.
    Memory(Vec<u8>),
}

/// A stored catalog.
#[derive(Debug)]
pub struct Done {
    pub path: RepoPath,
    pub hash: ContentHash,
    pub size: u64,
    pub counters: Counters,
    pub catalogs: u64,
    pub rows: u64,
}

/// How a job ended.
pub type Built = Result<Done, SubtreeError>;

/// Starts threads that build catalogs in the order in which they are issued.
pub fn start_workers(count: usize) -> (SyncSender<Job>, Vec<JoinHandle<()>>) {
    let (jobs, queue) = sync_channel::<Job>(2);
    let queue = Arc::new(Mutex::new(queue));
    let work = move || {
        let queue = queue.clone();
        std::thread::spawn(move || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(mut job) = next else { break };
                if let Rows::Memory(rows) = std::mem::replace(&mut job.rows, Rows::None) {
                    build(job, &rows[..]);
                }
            }
        })
    };
    (jobs, (0..count.max(1)).map(|_| work()).collect())
}

/// Builds one catalog and reports to whoever waits for it.
pub fn build(mut job: Job, rows: impl Read) {
    let built = try_build(&mut job, rows);
    // Nobody waits any more when the writer itself failed.
    let _ = job.done.send(built);
}

fn try_build(job: &mut Job, rows: impl Read) -> Built {
    let options = &job.options;
    let scratch = |source| SubtreeError::Scratch { place: options.scratch.clone(), source };
    let file = tempfile::Builder::new().prefix("catalog.").tempfile_in(&options.scratch).map_err(scratch)?;
    let catalog = CatalogWriter::create(file.path())?;
    let mut count = 0;
    let mut reader = RowReader::new(rows);
    while let Some((row, chunks)) = reader.next_row().map_err(scratch)? {
        if count == 0 {
            let root = Entry { flags: job.root.flags.with(Flags::NESTED_ROOT), ..job.root.clone() };
            catalog.insert(job.root_key, job.root_parent, &root)?;
            let marker = Entry { name: MARKER.to_vec(), ..options.marker.clone() };
            catalog.insert(job.path.join(MARKER).key(), job.root_key, &marker)?;
            count += 1;
        } else {
            catalog.insert_row(&row)?;
            catalog.insert_chunks(row.key, &chunks)?;
        }
        count += 1;
    }
    let mut counters = Counters { own: job.tally, subtree: Tally::default() };
    counters.own.count(&job.root, 1);
    counters.own.count(&options.marker, 1);
    let (mut catalogs, mut all_rows) = (1, count);
    for nested in job.nested.drain(..) {
        let done = nested.recv().map_err(|_| SubtreeError::Below(job.path.clone()))??;
        catalog.set_nested(&done.path, done.hash, done.size)?;
        counters.own[Counter::Nested] += 1;
        counters.subtree.add(&done.counters.total(), 1);
        catalogs += done.catalogs;
        all_rows += done.rows;
    }
    catalog.set_counters(&counters)?;
    catalog.set_property("revision", "1")?;
    catalog.set_property("previous_revision", &ContentHash::null(options.algorithm).to_string())?;
    catalog.set_property("last_modified", &options.last_modified.to_string())?;
    catalog.set_root_prefix(&job.path)?;
    let size = catalog.finish()?;
    let mut plain = File::open(file.path()).map_err(scratch)?;
    let (hash, _) = put_stream(&*job.store, options.encoding(), ObjectKind::Catalog, &mut plain)?;
    Ok(Done { path: job.path.clone(), hash, size, counters, catalogs, rows: all_rows })
}
