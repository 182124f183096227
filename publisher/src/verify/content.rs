//! Whether two files have the same bytes, when each is known by the objects that hold it.
//!
//! Equal names are equal bytes. Where names differ, other compressors or other cuts may be the reason; then what is
//! published is read and compared with the hashes of the plain bytes. With [`Comparer::reading`], what is published is
//! read in any case, by several threads.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Compression;
use cvmfs::store::{Listing, Store, StoreError, fetch};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::report::{Findings, Kind};
use crate::error::one_line;
use crate::failure::Failure;
use crate::raw_index::{RawHash, RawIndex};
use crate::rows::FileContent;

/// Objects that were read are remembered up to this number, so that most are read once.
const REMEMBERED: usize = 1 << 20;

/// An object with its plain size.
type Piece = (ObjectId, u64);
/// Objects that were read.
pub type Seen = Arc<Mutex<HashSet<ObjectId>>>;

/// The result of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal bytes.
    Same,
    /// Other bytes.
    Other,
    /// What is published cannot be read.
    Unreadable(String),
}

/// Compares contents.
#[derive(Debug)]
pub struct Comparer<'a> {
    store: &'a dyn Store,
    /// What the expected contents are, by the names of their objects.
    raws: &'a RawIndex,
    reader: Option<Reader>,
}

impl<'a> Comparer<'a> {
    /// Reads published objects from `store`, and expected ones that `raws` does not know.
    pub fn new(store: &'a dyn Store, raws: &'a RawIndex) -> Comparer<'a> {
        Comparer { store, raws, reader: None }
    }

    /// The same, which also reads all published content that nobody has `seen`, on `threads`. [`Comparer::finish`] waits
    /// for the end.
    #[must_use]
    pub fn reading(self, store: Arc<dyn Listing>, findings: Arc<Findings>, seen: Seen, threads: usize) -> Comparer<'a> {
        Comparer { reader: Some(Reader::start(store, findings, seen, threads)), ..self }
    }

    /// Whether two files of this size are equal.
    pub fn compare(&self, expected: &FileContent, found: &FileContent, size: u64) -> Result<Verdict, Failure> {
        let (a, b) = (pieces(expected, size), pieces(found, size));
        if a == b || size == 0 {
            return Ok(Verdict::Same);
        }
        let mut cuts = VecDeque::with_capacity(a.len());
        for (id, size) in a {
            cuts.push_back((size, self.raw(id, compression(expected))?));
        }
        let mut hasher = PieceHasher { cuts, hasher: Sha256::new(), taken: 0, is_same: true };
        for (id, size) in b {
            match fetch(self.store, id, compression(found), size, &mut hasher) {
                Ok(_) => {}
                Err(e @ (StoreError::Missing(_) | StoreError::Object(_))) => {
                    return Ok(Verdict::Unreadable(one_line(&e)));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(if hasher.is_same && hasher.cuts.is_empty() { Verdict::Same } else { Verdict::Other })
    }

    fn raw(&self, id: ObjectId, compression: Compression) -> Result<RawHash, Failure> {
        if let Some(raw) = self.raws.content_of(&id.hash)? {
            return Ok(raw);
        }
        let mut plain = Plain(Sha256::new());
        fetch(self.store, id, compression, u64::MAX, &mut plain)?;
        Ok(plain.0.finalize().into())
    }

    /// Has the objects of a published file read, if that is wanted.
    pub fn read(&self, place: impl FnOnce() -> String, content: &FileContent, size: u64) -> Result<(), Failure> {
        match &self.reader {
            Some(reader) => reader.read(place, content, size),
            None => Ok(()),
        }
    }

    /// Waits until everything is read.
    pub fn finish(self) -> Result<(), Failure> {
        self.reader.map_or(Ok(()), Reader::finish)
    }
}

fn pieces(content: &FileContent, size: u64) -> Vec<Piece> {
    match content {
        FileContent::Whole(hash, _) => vec![(hash.object(ObjectKind::File), size)],
        FileContent::Chunks(chunks, ..) => chunks.iter().map(|c| (c.hash.object(ObjectKind::Chunk), c.size)).collect(),
    }
}

fn compression(content: &FileContent) -> Compression {
    match content {
        FileContent::Whole(_, compression) | FileContent::Chunks(_, _, compression) => *compression,
    }
}

/// Hashes a stream.
struct Plain(Sha256);

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compares a stream with the hashes of its pieces.
struct PieceHasher {
    cuts: VecDeque<(u64, RawHash)>,
    hasher: Sha256,
    taken: u64,
    is_same: bool,
}

impl Write for PieceHasher {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len();
        while !bytes.is_empty() {
            let Some((size, raw)) = self.cuts.front() else {
                self.is_same = false;
                break;
            };
            let take = usize::try_from(size - self.taken).unwrap_or(usize::MAX).min(bytes.len());
            self.hasher.update(&bytes[..take]);
            self.taken += take as u64;
            bytes = &bytes[take..];
            if self.taken == *size {
                let found: RawHash = std::mem::take(&mut self.hasher).finalize().into();
                self.is_same &= found == *raw;
                self.taken = 0;
                self.cuts.pop_front();
            }
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Job {
    place: String,
    pieces: Vec<Piece>,
    compression: Compression,
}

/// Threads that read objects.
#[derive(Debug)]
struct Reader {
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<Result<(), Failure>>>,
    seen: Seen,
}

impl Reader {
    fn start(store: Arc<dyn Listing>, findings: Arc<Findings>, seen: Seen, threads: usize) -> Reader {
        let (jobs, queue) = bounded::<Job>(256);
        let work = || {
            let (queue, store, findings) = (queue.clone(), store.clone(), findings.clone());
            std::thread::spawn(move || {
                let mut failed = Ok(());
                // All jobs are taken, or who sends them would wait for ever.
                for job in queue {
                    if failed.is_ok() {
                        failed = job.run(&*store, &findings);
                    }
                }
                failed
            })
        };
        let workers = (0..threads.max(1)).map(|_| work()).collect();
        Reader { jobs: Some(jobs), workers, seen }
    }

    fn read(&self, place: impl FnOnce() -> String, content: &FileContent, size: u64) -> Result<(), Failure> {
        let mut wanted = pieces(content, size);
        {
            let mut seen = self.seen.lock();
            if seen.len() >= REMEMBERED {
                seen.clear();
            }
            wanted.retain(|(id, _)| seen.insert(*id));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let job = Job { place: place(), pieces: wanted, compression: compression(content) };
        let jobs = self.jobs.as_ref().expect("open until the end");
        jobs.send(job).map_err(|_| Failure::Elsewhere("the readers of objects have ended".into()))
    }

    fn finish(mut self) -> Result<(), Failure> {
        drop(self.jobs.take());
        for worker in self.workers {
            worker.join().map_err(|_| Failure::Elsewhere("a reader of objects panicked".into()))??;
        }
        Ok(())
    }
}

impl Job {
    fn run(self, store: &dyn Store, findings: &Findings) -> Result<(), Failure> {
        for (id, size) in self.pieces {
            match fetch(store, id, self.compression, size, &mut io::sink()) {
                Ok(read) if read == size => findings.read(1, read),
                Ok(read) => findings.add(Kind::Object, &self.place, format!("{size} bytes in {id}"), read),
                Err(e @ (StoreError::Missing(_) | StoreError::Object(_))) => {
                    findings.add(Kind::Object, &self.place, "", one_line(&e));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvmfs::entry::Chunk;
    use cvmfs::hash::{Algorithm, ContentHash};
    use cvmfs::object::{Codec, Encoder};
    use cvmfs::store::{MemoryStore, put_content};

    /// Stores bytes cut into pieces of this length, with this codec.
    fn stored(store: &MemoryStore, codec: Codec, bytes: &[u8], len: usize) -> FileContent {
        let mut encoder = Encoder::new(Algorithm::Sha1, codec);
        if bytes.len() <= len {
            let (hash, _) = put_content(store, &mut encoder, ObjectKind::File, bytes).unwrap();
            return FileContent::Whole(hash, codec.compression());
        }
        let mut chunks = Vec::new();
        for (n, piece) in bytes.chunks(len).enumerate() {
            let (hash, _) = put_content(store, &mut encoder, ObjectKind::Chunk, piece).unwrap();
            chunks.push(Chunk { offset: (n * len) as u64, size: piece.len() as u64, hash });
        }
        FileContent::Chunks(chunks, Algorithm::Sha1, codec.compression())
    }

    #[test]
    fn other_compressors_and_cuts_are_no_difference() {
        let (store, state) = (MemoryStore::default(), tempfile::tempdir().unwrap());
        let raws = RawIndex::open(state.path(), Algorithm::Sha1, Codec::default()).unwrap();
        let contents = Comparer::new(&store, &raws);
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = stored(&store, Codec::default(), &bytes, 70_001);
        let size = bytes.len() as u64;
        for (codec, len) in [(Codec::Store, 70_001), (Codec::REFERENCE, 1 << 20), (Codec::default(), 1000)] {
            let found = stored(&store, codec, &bytes, len);
            assert_eq!(contents.compare(&expected, &found, size).unwrap(), Verdict::Same, "{codec} {len}");
        }
        let mut other = bytes;
        other[399_999] ^= 1;
        let found = stored(&store, Codec::default(), &other, 1 << 20);
        assert_eq!(contents.compare(&expected, &found, size).unwrap(), Verdict::Other);
        let gone = FileContent::Whole(ContentHash::of(Algorithm::Sha1, b"gone"), Compression::Zlib);
        assert!(matches!(contents.compare(&expected, &gone, size).unwrap(), Verdict::Unreadable(_)));
    }
}
