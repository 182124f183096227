//! Content of files → objects: hash, look up, compress, store, on all cores.
//!
//! Files are cut where the format says; a file without a cut is one object. Bytes in flight are bounded, whatever the
//! size of a file: who brings content waits until there is room.
//!
//! In a repository that others write too, a large file may be there as one object; then that one is used (`whole.rs`).
//!
//! Two pools of work never mix: [`Pool`] owns the threads, a [`Collector`] gathers the results of one layer.

mod whole;

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use cvmfs::chunk::{ChunkSizes, Chunker};
use cvmfs::entry::Chunk;
use cvmfs::hash::{Algorithm, ContentHash, DIGEST_LEN, ObjectKind};
use cvmfs::object::{Codec, Compression, Encoder, Encoding, encode_file};
use cvmfs::store::{Store, Stored};
use parking_lot::{Condvar, Mutex};
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::raw_index::RawIndex;
pub use whole::WholeFiles;

/// Plain bytes that wait for compression or are being compressed, for all layers together.
const IN_FLIGHT: u64 = 64 << 20;
/// Scratch memory a compressor keeps between objects.
const KEEP: usize = 4 << 20;
const READ: usize = 256 << 10;
/// Where files are not cut: larger ones are not taken into memory.
const IN_MEMORY: u64 = 16 << 20;

/// Content of one file, in the order in which it was brought.
pub type Ticket = u32;

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One object.
    Whole(ContentHash),
    /// Several.
    Chunks(Vec<Chunk>),
}

/// What storing cost.
#[derive(Debug, Default)]
pub struct Cost {
    /// Bytes written into the storage.
    pub stored: AtomicU64,
    /// Plain bytes of content that was there already.
    pub deduplicated: AtomicU64,
    /// Objects written.
    pub objects: AtomicU64,
}

impl Cost {
    fn count(&self, stored: Stored, plain: u64) {
        match stored {
            Stored::New(size) => {
                self.stored.fetch_add(size, Ordering::Relaxed);
                self.objects.fetch_add(1, Ordering::Relaxed);
            }
            Stored::Present => drop(self.deduplicated.fetch_add(plain, Ordering::Relaxed)),
        }
    }
}

/// Threads that turn content into objects.
#[derive(Debug)]
pub struct Pool {
    tasks: Option<Sender<Task>>,
    workers: Vec<JoinHandle<()>>,
    room: Arc<Room>,
    /// Where files are cut, if they are.
    sizes: Option<ChunkSizes>,
    whole: Option<WholeFiles>,
    store: Arc<dyn Store>,
    index: Arc<RawIndex>,
    algorithm: Algorithm,
    codec: Codec,
}

struct Task {
    bytes: Vec<u8>,
    kind: ObjectKind,
    ticket: Ticket,
    offset: u64,
    room: Permit,
    into: Arc<Collector>,
}

struct Worker {
    store: Arc<dyn Store>,
    index: Arc<RawIndex>,
    encoder: Encoder,
}

impl Pool {
    /// Starts `threads` workers.
    pub fn start(
        store: Arc<dyn Store>,
        index: Arc<RawIndex>,
        algorithm: Algorithm,
        codec: Codec,
        threads: usize,
    ) -> Pool {
        let (tasks, queue) = bounded::<Task>(1024);
        let work = || {
            let queue = queue.clone();
            let mut worker =
                Worker { store: store.clone(), index: index.clone(), encoder: Encoder::new(algorithm, codec) };
            std::thread::spawn(move || {
                for task in queue {
                    worker.run(task);
                }
            })
        };
        let workers = (0..threads.max(1)).map(|_| work()).collect();
        Pool {
            tasks: Some(tasks),
            workers,
            room: Arc::default(),
            sizes: Some(ChunkSizes::default()),
            whole: None,
            store,
            index,
            algorithm,
            codec,
        }
    }

    /// The same pool with other chunks, or none; and with large files that are perhaps there as a whole.
    #[must_use]
    pub fn with_chunks(mut self, sizes: Option<ChunkSizes>, whole: Option<WholeFiles>) -> Pool {
        (self.sizes, self.whole) = (sizes, whole);
        self
    }

    /// Compression that catalogs record for content of this pool.
    pub fn compression(&self) -> Compression {
        self.codec.compression()
    }

    /// Hash algorithm of this pool's objects.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Reads a file of `size` bytes to its end and has it stored; the result is found in the collector under the
    /// ticket. Returns when the last byte was read, not when it is stored.
    pub fn store_file(&self, into: &Arc<Collector>, source: &mut dyn Read, size: u64) -> Result<Ticket, Failure> {
        let ticket = into.open()?;
        if size <= self.sizes.map_or(IN_MEMORY, |sizes| sizes.min) {
            let permit = self.room.take(size);
            let mut bytes = Vec::with_capacity(size as usize);
            source.read_to_end(&mut bytes).map_err(Failure::read("the content of a file"))?;
            self.send(into, ticket, 0, ObjectKind::File, bytes, permit);
            return Ok(ticket);
        }
        match (self.sizes, &self.whole) {
            (None, _) => self.store_whole(into, ticket, source, size)?,
            (Some(sizes), Some(whole)) if whole.may_have(size) => {
                let mut kept = whole.keep(source)?;
                match self.find_whole(&mut kept)? {
                    Some(hash) => {
                        into.cost.deduplicated.fetch_add(size, Ordering::Relaxed);
                        into.begin();
                        into.end(ticket, ObjectKind::File, 0, size, Ok(Some(hash)));
                    }
                    None => self.store_pieces(into, ticket, kept.rewound()?, size, sizes)?,
                }
            }
            (Some(sizes), _) => self.store_pieces(into, ticket, source, size, sizes)?,
        }
        Ok(ticket)
    }

    /// The object of a whole file, if it is there.
    fn find_whole(&self, kept: &mut whole::Kept) -> Result<Option<ContentHash>, Failure> {
        let is_there = |hash: ContentHash| self.store.exists(hash.object(ObjectKind::File));
        if let Some(hash) = self.index.get(&kept.raw)?
            && is_there(hash)?
        {
            return Ok(Some(hash));
        }
        let hash = kept.hash(Encoding { algorithm: self.algorithm, codec: self.codec })?;
        if !is_there(hash)? {
            return Ok(None);
        }
        self.index.put(kept.raw, hash)?;
        Ok(Some(hash))
    }

    /// Stores a file of any size as one object, on the thread that brings it.
    fn store_whole(
        &self,
        into: &Arc<Collector>,
        ticket: Ticket,
        source: &mut dyn Read,
        size: u64,
    ) -> Result<(), Failure> {
        let mut staged = self.store.stage()?;
        let encoding = Encoding { algorithm: self.algorithm, codec: self.codec };
        let (hash, _) =
            encode_file(encoding, source, &mut staged).map_err(Failure::read("or store the content of a file"))?;
        into.cost.count(staged.commit(hash.object(ObjectKind::File))?, size);
        into.begin();
        into.end(ticket, ObjectKind::File, 0, size, Ok(Some(hash)));
        Ok(())
    }

    /// Cuts a file and has the pieces stored.
    fn store_pieces(
        &self,
        into: &Arc<Collector>,
        ticket: Ticket,
        source: &mut dyn Read,
        size: u64,
        sizes: ChunkSizes,
    ) -> Result<(), Failure> {
        let mut chunker = Chunker::new(sizes);
        let (mut offset, mut is_cut) = (0, false);
        // The longest chunk is the most that a piece can take.
        let mut permit = self.room.take(sizes.max.min(size));
        let mut piece = Vec::new();
        let mut buffer = vec![0; READ];
        loop {
            let read = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::read("the content of a file")(e)),
            };
            let mut rest = &buffer[..read];
            while let Some(at) = chunker.find_cut(rest) {
                piece.extend_from_slice(&rest[..at]);
                rest = &rest[at..];
                is_cut = true;
                let len = piece.len() as u64;
                self.send(into, ticket, offset, ObjectKind::Chunk, std::mem::take(&mut piece), permit);
                offset += len;
                permit = self.room.take(sizes.max.min(size.saturating_sub(offset)));
            }
            piece.extend_from_slice(rest);
        }
        let kind = if is_cut { ObjectKind::Chunk } else { ObjectKind::File };
        self.send(into, ticket, offset, kind, piece, permit);
        Ok(())
    }

    fn send(&self, into: &Arc<Collector>, ticket: Ticket, offset: u64, kind: ObjectKind, bytes: Vec<u8>, room: Permit) {
        into.begin();
        let task = Task { bytes, kind, ticket, offset, room, into: into.clone() };
        let tasks = self.tasks.as_ref().expect("open until the pool is dropped");
        tasks.send(task).expect("workers end only when the pool is dropped");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.tasks.take());
        for worker in self.workers.drain(..) {
            // A worker that panicked has said so.
            let _ = worker.join();
        }
    }
}

impl Worker {
    fn run(&mut self, task: Task) {
        let Task { bytes, kind, ticket, offset, room, into } = task;
        let stored = if into.has_failed() { Ok(None) } else { self.store(&bytes, kind, &into.cost).map(Some) };
        into.end(ticket, kind, offset, bytes.len() as u64, stored);
        drop((bytes, room));
    }

    fn store(&mut self, bytes: &[u8], kind: ObjectKind, cost: &Cost) -> Result<ContentHash, Failure> {
        let raw = Sha256::digest(bytes).into();
        if let Some(hash) = self.index.get(&raw)?
            && self.store.exists(hash.object(kind))?
        {
            cost.deduplicated.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Ok(hash);
        }
        let (hash, encoded) = self.encoder.encode(bytes);
        cost.count(self.store.put(hash.object(kind), encoded)?, bytes.len() as u64);
        self.encoder.shrink(KEEP);
        self.index.put(raw, hash)?;
        Ok(hash)
    }
}

/// Results of one layer.
#[derive(Debug, Default)]
pub struct Collector {
    state: Mutex<State>,
    idle: Condvar,
    /// What it cost so far.
    pub cost: Cost,
}

#[derive(Debug, Default)]
struct State {
    pending: u64,
    whole: Vec<[u8; DIGEST_LEN]>,
    chunks: HashMap<Ticket, Vec<(u64, u64, [u8; DIGEST_LEN])>>,
    failure: Option<Failure>,
    failed: bool,
}

impl Collector {
    fn open(&self) -> Result<Ticket, Failure> {
        let mut state = self.state.lock();
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let ticket = Ticket::try_from(state.whole.len())
            .map_err(|_| Failure::Content("more than 4 billion files in one layer".into()))?;
        state.whole.push([0; DIGEST_LEN]);
        Ok(ticket)
    }

    fn begin(&self) {
        self.state.lock().pending += 1;
    }

    fn has_failed(&self) -> bool {
        self.state.lock().failed
    }

    fn end(
        &self,
        ticket: Ticket,
        kind: ObjectKind,
        offset: u64,
        size: u64,
        stored: Result<Option<ContentHash>, Failure>,
    ) {
        let mut state = self.state.lock();
        match stored {
            Ok(Some(hash)) if kind == ObjectKind::Chunk => {
                state.chunks.entry(ticket).or_default().push((offset, size, hash.digest));
            }
            Ok(Some(hash)) => state.whole[ticket as usize] = hash.digest,
            Ok(None) => {}
            Err(failure) => {
                state.failed = true;
                state.failure.get_or_insert(failure);
            }
        }
        state.pending -= 1;
        if state.pending == 0 {
            self.idle.notify_all();
        }
    }

    /// Waits until everything that was brought is stored; gives the contents by ticket.
    pub fn finish(&self, algorithm: Algorithm) -> Result<Contents, Failure> {
        let mut state = self.state.lock();
        while state.pending > 0 {
            self.idle.wait(&mut state);
        }
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        if state.failed {
            return Err(Failure::Elsewhere("storing the content of an earlier file failed".into()));
        }
        let whole = std::mem::take(&mut state.whole);
        let mut chunks = std::mem::take(&mut state.chunks);
        chunks.values_mut().for_each(|c| c.sort_unstable());
        Ok(Contents { algorithm, whole, chunks })
    }
}

/// All contents of a layer, by ticket.
#[derive(Debug)]
pub struct Contents {
    algorithm: Algorithm,
    whole: Vec<[u8; DIGEST_LEN]>,
    chunks: HashMap<Ticket, Vec<(u64, u64, [u8; DIGEST_LEN])>>,
}

impl Contents {
    /// Where the content of a ticket is.
    pub fn get(&self, ticket: Ticket) -> Content {
        let hash = |digest: &[u8; DIGEST_LEN]| ContentHash { algorithm: self.algorithm, digest: *digest };
        match self.chunks.get(&ticket) {
            Some(chunks) => {
                let chunk =
                    |(offset, size, digest): &(u64, u64, _)| Chunk { offset: *offset, size: *size, hash: hash(digest) };
                Content::Chunks(chunks.iter().map(chunk).collect())
            }
            None => Content::Whole(hash(&self.whole[ticket as usize])),
        }
    }
}

/// Bounds the bytes in flight.
#[derive(Debug, Default)]
struct Room {
    used: Mutex<u64>,
    freed: Condvar,
}

#[derive(Debug)]
struct Permit {
    bytes: u64,
    room: Arc<Room>,
}

impl Room {
    fn take(self: &Arc<Room>, bytes: u64) -> Permit {
        let mut used = self.used.lock();
        // One piece is always let through, however large.
        while *used > 0 && *used + bytes > IN_FLIGHT {
            self.freed.wait(&mut used);
        }
        *used += bytes;
        Permit { bytes, room: self.clone() }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.room.used.lock() -= self.bytes;
        self.room.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvmfs::store::{MemoryStore, fetch};

    fn pool(store: &Arc<MemoryStore>, state: &std::path::Path) -> Pool {
        let index = Arc::new(RawIndex::open(state, Algorithm::Sha1, Codec::default()).unwrap());
        Pool::start(store.clone(), index, Algorithm::Sha1, Codec::default(), 2)
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 1u64;
        (0..len)
            .map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 56) as u8
            })
            .collect()
    }

    fn read_back(store: &MemoryStore, content: &Content) -> Vec<u8> {
        let mut out = Vec::new();
        let mut get = |hash: ContentHash, kind| {
            fetch(store, hash.object(kind), Compression::Zlib, u64::MAX, &mut out).unwrap();
        };
        match content {
            Content::Whole(hash) => get(*hash, ObjectKind::File),
            Content::Chunks(chunks) => chunks.iter().for_each(|c| get(c.hash, ObjectKind::Chunk)),
        }
        out
    }

    #[test]
    fn files_of_all_sizes_come_back_and_equal_ones_are_stored_once() {
        let (store, state) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let pool = pool(&store, state.path());
        let collector = Arc::new(Collector::default());
        let big = noise(20 << 20);
        let files = [&b""[..], b"hello\n", &big[..4 << 20], &big, b"hello\n", &big[..(4 << 20) + 1]];
        let tickets: Vec<Ticket> =
            files.iter().map(|f| pool.store_file(&collector, &mut &f[..], f.len() as u64).unwrap()).collect();
        let contents = collector.finish(Algorithm::Sha1).unwrap();
        for (file, ticket) in files.iter().zip(&tickets) {
            assert!(read_back(&store, &contents.get(*ticket)) == *file);
        }
        assert!(matches!(contents.get(tickets[3]), Content::Chunks(chunks) if chunks.len() > 1));
        assert!(matches!(contents.get(tickets[5]), Content::Whole(_)), "no cut mark: one object");
        assert_eq!(contents.get(tickets[1]), contents.get(tickets[4]));
        assert!(collector.cost.deduplicated.load(Ordering::Relaxed) >= 6);
    }

    #[test]
    fn a_full_disk_is_reported_and_nothing_hangs() {
        let (store, state) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let pool = pool(&store, state.path());
        let collector = Arc::new(Collector::default());
        store.fail_after(3);
        let mut failed = false;
        for i in 0..100u32 {
            let bytes = i.to_le_bytes();
            failed |= pool.store_file(&collector, &mut &bytes[..], 4).is_err();
        }
        assert!(collector.finish(Algorithm::Sha1).is_err() || failed);
    }
}
