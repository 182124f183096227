//! A new directory subtree, written straight into finished catalogs.
//!
//! Entries come in *tree order*: a directory is followed at once by everything below it. That suffices to know
//! link counts, hard-link groups and counters when a directory ends, and to split. A directory whose pending
//! rows reach the budget becomes a nested catalog of its own, bottom-up; so does one that would make the
//! pending rows of the directory above exceed the budget, if it is large enough to be worth a request.
//!
//! Pending rows wait in an arena (memory, then a scratch file), each encoded once and inserted once. Finished
//! catalogs are filled, compressed and stored by worker threads.
//!
//! The result is a [`Graft`]: what a transaction needs to hang the subtree into a repository. Nothing of the
//! subtree is visible before.

mod arena;
mod build;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arena::Arena;
use build::{Built, Job, Rows};

use crate::catalog::counters::{Counter, Counters, Tally};
use crate::catalog::reader::CatalogError;
use crate::entry::{Chunk, Entry, Flags};
use crate::hash::{Algorithm, ContentHash};
use crate::object::{Codec, Encoding};
use crate::path::{PathKey, RepoPath, is_name};
use crate::store::{Store, StoreError};

/// Name of the file that marks the root of a nested catalog.
pub const MARKER: &[u8] = b".cvmfscatalog";

/// A nested catalog holds at least this part of the budget.
const SMALLEST_PART: u64 = 10;
/// Bytes that count as one row of the budget; an ordinary row, with its part of the indexes, takes fewer.
const ROW_BYTES: usize = 256;
/// What a row takes besides its name, link target and attributes.
const ROW_FIXED: usize = 128;
/// Bytes that a chunk of a file takes in a catalog.
pub const CHUNK_BYTES: usize = 64;

/// What a row counts for in the budget: clients fetch bytes, not rows.
fn weight(entry: &Entry, chunks: usize) -> u64 {
    let xattrs = entry.xattrs.as_ref().map_or(0, |packed| packed.len());
    let bytes = ROW_FIXED + entry.name.len() + entry.symlink.len() + xattrs + chunks * CHUNK_BYTES;
    bytes.div_ceil(ROW_BYTES) as u64
}

/// How a subtree is written.
#[derive(Debug, Clone)]
pub struct SubtreeOptions {
    /// Hash algorithm of the catalogs.
    pub algorithm: Algorithm,
    /// Compression of the files below, which decides about catalogs too.
    pub codec: Codec,
    /// Rows that a catalog should not exceed; directories are split off accordingly. A row of more than 256 bytes counts
    /// as several, so this is a budget of bytes, too.
    pub budget: u64,
    /// Time of the commit, Unix seconds.
    pub last_modified: u64,
    /// Where scratch files go; plenty of room wanted.
    pub scratch: PathBuf,
    /// The marker file of nested catalogs, as an entry; its object must be in the store.
    pub marker: Entry,
    /// Threads that fill and compress catalogs.
    pub workers: usize,
}

impl SubtreeOptions {
    fn encoding(&self) -> Encoding {
        Encoding { algorithm: self.algorithm, codec: self.codec }
    }
}

/// A finished subtree, not yet part of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graft {
    /// Where it belongs.
    pub path: RepoPath,
    /// Its root directory.
    pub entry: Entry,
    /// Its root catalog.
    pub catalog: ContentHash,
    /// Bytes of the plain root catalog.
    pub size: u64,
    /// Statistics of the root catalog.
    pub counters: Counters,
    /// Catalogs written, the root catalog included.
    pub catalogs: u64,
    /// Rows written, in all catalogs.
    pub rows: u64,
}

/// Why a subtree cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubtreeError {
    /// The entry is not what can follow.
    #[error("{path}: {what}")]
    Order {
        /// Where.
        path: RepoPath,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A scratch file failed.
    #[error("cannot use scratch space for catalogs in {place}")]
    Scratch {
        /// Directory.
        place: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// A catalog could not be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A catalog could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog further down failed; its own error was reported first.
    #[error("a catalog below {0} could not be written")]
    Below(RepoPath),
}

/// A directory that is not complete yet.
#[derive(Debug)]
struct Frame {
    /// Bytes of the path of this directory within `SubtreeWriter::path`.
    path_len: usize,
    key: PathKey,
    /// Its own row: where in the arena, and as an entry.
    start: u64,
    parent: PathKey,
    entry: Entry,
    subdirectories: u32,
    /// What the rows pending below it count for.
    weight: u64,
    tally: Tally,
    /// Names of hard-link groups directly in this directory: group, place of the row.
    links: Vec<(u64, u64)>,
    nested: Vec<Receiver<Built>>,
}

/// Writes one subtree; see the module.
#[derive(Debug)]
pub struct SubtreeWriter {
    store: Arc<dyn Store>,
    options: SubtreeOptions,
    arena: Arena,
    /// Absolute path of the innermost open directory.
    path: Vec<u8>,
    root_len: usize,
    frames: Vec<Frame>,
    next_group: u32,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
}

impl SubtreeWriter {
    /// Starts the subtree at `path` with its root directory.
    pub fn new(
        store: Arc<dyn Store>,
        options: SubtreeOptions,
        path: &RepoPath,
        root: Entry,
    ) -> Result<SubtreeWriter, SubtreeError> {
        let (jobs, workers) = build::start_workers(options.workers);
        let parent = path.parent().map_or(PathKey::NONE, |p| p.key());
        let mut writer = SubtreeWriter {
            arena: Arena::new(&options.scratch),
            store,
            options,
            path: path.as_bytes().to_vec(),
            root_len: path.as_bytes().len(),
            frames: Vec::new(),
            next_group: 1,
            jobs: Some(jobs),
            workers,
        };
        writer.open_directory(path.key(), parent, Entry { name: path.name().to_vec(), ..root })?;
        Ok(writer)
    }

    /// Adds the entry at `relative` (below the root of the subtree, no leading slash). Its name is taken from
    /// the path. `link_group` ≠ 0 ties names of one directory that were one file; link counts are found here.
    pub fn add(
        &mut self,
        relative: &[u8],
        mut entry: Entry,
        link_group: u64,
        chunks: &[Chunk],
    ) -> Result<(), SubtreeError> {
        let cut = relative.iter().rposition(|b| *b == b'/');
        let (directory, name) = cut.map_or((&[][..], relative), |c| (&relative[..c], &relative[c + 1..]));
        while !self.is_innermost(directory) {
            if self.frames.len() == 1 {
                return Err(self.order(relative, "its directory was not given just before it"));
            }
            self.close_directory()?;
        }
        if !is_name(name) {
            return Err(self.order(relative, "not a name that a catalog can hold"));
        }
        if entry.name != name {
            entry.name = name.to_vec();
        }
        let parent = self.frame().key;
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        let key = PathKey::of(&self.path);
        if entry.is_directory() {
            return self.open_directory(key, parent, entry);
        }
        self.path.truncate(self.path.len() - name.len() - 1);
        entry.links = 1;
        entry.link_group = 0;
        let at = self.arena.push(key, parent, &entry, chunks).map_err(|e| self.scratch(e))?;
        let frame = self.frames.last_mut().expect("the root directory stays open until the end");
        frame.weight += weight(&entry, chunks.len());
        frame.tally.count(&entry, 1);
        frame.tally[Counter::Chunks] += chunks.len() as i64;
        if link_group != 0 {
            frame.links.push((link_group, at));
        }
        Ok(())
    }

    /// Gives the innermost open directory (the one that was added last, if that was a directory) a catalog of its
    /// own, whatever its size.
    pub fn split_here(&mut self) {
        let budget = self.options.budget;
        let frame = self.frames.last_mut().expect("the root directory stays open until the end");
        frame.weight = frame.weight.max(budget);
    }

    /// Ends the subtree: writes its last catalogs and waits for all.
    pub fn finish(mut self) -> Result<Graft, SubtreeError> {
        while self.frames.len() > 1 {
            self.close_directory()?;
        }
        self.seal_links()?;
        let mut frame = self.frames.pop().expect("the root directory stays open until the end");
        frame.entry.links = 2 + frame.subdirectories;
        let (path, entry) = (self.current_path(), frame.entry.clone());
        let built = self.issue(frame)?;
        let built = built.recv();
        drop(self.jobs.take());
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        let done = built.map_err(|_| SubtreeError::Below(path.clone()))??;
        Ok(Graft {
            path,
            entry,
            catalog: done.hash,
            size: done.size,
            counters: done.counters,
            catalogs: done.catalogs,
            rows: done.rows,
        })
    }

    fn frame(&self) -> &Frame {
        self.frames.last().expect("the root directory stays open until the end")
    }

    fn is_innermost(&self, relative: &[u8]) -> bool {
        match self.path[self.root_len..].split_first() {
            None => relative.is_empty(),
            Some((_, inner)) => inner == relative,
        }
    }

    fn open_directory(&mut self, key: PathKey, parent: PathKey, entry: Entry) -> Result<(), SubtreeError> {
        let start = self.arena.push(key, parent, &entry, &[]).map_err(|e| self.scratch(e))?;
        self.frames.push(Frame {
            path_len: self.path.len(),
            key,
            start,
            parent,
            entry,
            subdirectories: 0,
            weight: 0,
            tally: Tally::default(),
            links: Vec::new(),
            nested: Vec::new(),
        });
        Ok(())
    }

    /// The innermost directory is complete.
    fn close_directory(&mut self) -> Result<(), SubtreeError> {
        self.seal_links()?;
        let mut frame = self.frames.pop().expect("never called for the root");
        frame.entry.links = 2 + frame.subdirectories;
        let up = self.frames.last().expect("never called for the root").path_len;
        let (start, parent) = (frame.start, frame.parent);
        let (key, entry) = (frame.key, frame.entry.clone());
        let mut carried = (frame.weight, frame.tally, Vec::new());
        let budget = self.options.budget;
        let above = self.frames.last().expect("never called for the root").weight;
        let is_worth_a_request = frame.weight >= budget / SMALLEST_PART && frame.weight > 0;
        if frame.weight >= budget || above + frame.weight > budget && is_worth_a_request {
            let built = self.issue(frame)?;
            let transition = Entry { flags: entry.flags.with(Flags::NESTED_MOUNTPOINT), ..entry.clone() };
            self.arena.push(key, parent, &transition, &[]).map_err(|e| self.scratch(e))?;
            carried = (0, Tally::default(), vec![built]);
        } else {
            self.arena.patch_links(start, entry.hardlinks_column()).map_err(|e| self.scratch(e))?;
            carried.2 = frame.nested;
        }
        self.path.truncate(up);
        let above = self.frames.last_mut().expect("never called for the root");
        above.subdirectories += 1;
        above.weight += carried.0 + weight(&entry, 0);
        above.tally.add(&carried.1, 1);
        above.tally.count(&entry, 1);
        above.nested.extend(carried.2);
        Ok(())
    }

    /// Gives the names of each hard-link group of the innermost directory their group and count.
    fn seal_links(&mut self) -> Result<(), SubtreeError> {
        let frame = self.frames.last_mut().expect("the root directory stays open until the end");
        let mut links = std::mem::take(&mut frame.links);
        links.sort_unstable();
        for group in links.chunk_by(|a, b| a.0 == b.0).filter(|g| g.len() > 1) {
            let column = (i64::from(self.next_group) << 32) | group.len() as i64;
            self.next_group += 1;
            for (_, at) in group {
                self.arena.patch_links(*at, column).map_err(|e| self.scratch(e))?;
            }
        }
        Ok(())
    }

    /// Takes the rows of a directory out of the arena and has its catalog built.
    fn issue(&mut self, frame: Frame) -> Result<Receiver<Built>, SubtreeError> {
        let (done, built) = sync_channel(1);
        let path = self.current_path();
        let job = Job {
            path,
            root: frame.entry,
            root_key: frame.key,
            root_parent: frame.parent,
            tally: frame.tally,
            nested: frame.nested,
            store: self.store.clone(),
            options: self.options.clone(),
            rows: Rows::None,
            done,
        };
        if self.arena.fits_in_memory(frame.start) {
            let rows = self.arena.take(frame.start).map_err(|e| self.scratch(e))?;
            let jobs = self.jobs.as_ref().expect("open until finish");
            // Workers end only when the channel does.
            let _ = jobs.send(Job { rows: Rows::Memory(rows), ..job });
        } else {
            // Too large for a queue: built here, straight from the scratch file.
            let place = &self.options.scratch;
            let reader = self
                .arena
                .reader(frame.start)
                .map_err(|source| SubtreeError::Scratch { place: place.clone(), source })?;
            build::build(job, reader);
            self.arena.truncate(frame.start).map_err(|e| self.scratch(e))?;
        }
        Ok(built)
    }

    fn current_path(&self) -> RepoPath {
        RepoPath::parse(&self.path).expect("made of checked names")
    }

    fn order(&self, relative: &[u8], what: &'static str) -> SubtreeError {
        let root = RepoPath::parse(&self.path[..self.root_len]).expect("made of checked names");
        SubtreeError::Order { path: root.join_path(relative).unwrap_or(root), what }
    }

    fn scratch(&self, source: std::io::Error) -> SubtreeError {
        SubtreeError::Scratch { place: self.options.scratch.clone(), source }
    }
}
