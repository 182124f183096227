//! The objects to be kept, as sorted records on disk.
//!
//! A repository has too many objects to hold their names in memory. As in the storage, the first byte of a hash decides
//! between 256 files of records of 20 bytes: the other 19 bytes of the hash, then kind and algorithm. Marking appends, in
//! any order and as often as it likes; a file that has doubled by that is sorted and freed of repetitions, so the disk
//! holds each object twice at most. Sweeping loads one file at a time: at 10 million objects about 40,000 records.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hash::{DIGEST_LEN, ObjectId};

const BUCKETS: usize = 256;
const RECORD: usize = DIGEST_LEN;
/// Records that a marker keeps for a bucket before it writes them.
const BUFFERED: usize = 256;
/// Appended records that are not worth sorting yet.
const FEW: u64 = 1 << 16;
/// Records that a marker remembers having written lately.
const RECENT: usize = BUCKETS << 9;

type Record = [u8; RECORD];

fn split(id: ObjectId) -> (u8, Record) {
    let [bucket, rest @ ..] = id.hash.digest;
    let mut record = [0; RECORD];
    record[..RECORD - 1].copy_from_slice(&rest);
    // Never zero, so that no record is all zeros.
    record[RECORD - 1] = 1 + 8 * id.hash.algorithm as u8 + id.kind as u8;
    (bucket, record)
}

/// Objects to be kept.
#[derive(Debug)]
pub struct Marks {
    buckets: Vec<Mutex<Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    file: File,
    /// Records at the beginning that are sorted, each once.
    sorted: u64,
    /// Records behind them.
    appended: u64,
}

impl Marks {
    /// None so far; their files are in `directory` and have no name there.
    pub fn new(directory: &Path) -> io::Result<Marks> {
        let bucket = || Ok(Mutex::new(Bucket { file: tempfile::tempfile_in(directory)?, sorted: 0, appended: 0 }));
        Ok(Marks { buckets: (0..BUCKETS).map(|_| bucket()).collect::<io::Result<_>>()? })
    }

    /// What marks objects; one a thread.
    pub fn marker(&self) -> Marker<'_> {
        Marker { marks: self, buffers: vec![Vec::new(); BUCKETS], recent: vec![[0; RECORD]; RECENT] }
    }

    /// Those whose hash begins with this byte.
    pub fn of_bucket(&self, bucket: u8) -> io::Result<Marked> {
        let mut bucket = self.bucket(bucket);
        bucket.sort()?;
        Ok(Marked { records: bucket.read()? })
    }

    fn bucket(&self, bucket: u8) -> MutexGuard<'_, Bucket> {
        // A writer that panicked has at worst left records behind the end that counts.
        self.buckets[usize::from(bucket)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.file.write_all_at(records.as_flattened(), (self.sorted + self.appended) * RECORD as u64)?;
        self.appended += records.len() as u64;
        if self.appended > self.sorted.max(FEW) { self.sort() } else { Ok(()) }
    }

    fn read(&self) -> io::Result<Vec<Record>> {
        let count = usize::try_from(self.sorted + self.appended).map_err(io::Error::other)?;
        let mut records = vec![[0; RECORD]; count];
        self.file.read_exact_at(records.as_flattened_mut(), 0)?;
        Ok(records)
    }

    fn sort(&mut self) -> io::Result<()> {
        if self.appended == 0 {
            return Ok(());
        }
        let mut records = self.read()?;
        records.sort_unstable();
        records.dedup();
        self.file.write_all_at(records.as_flattened(), 0)?;
        (self.sorted, self.appended) = (records.len() as u64, 0);
        self.file.set_len(self.sorted * RECORD as u64)
    }
}

/// Adds objects to [`Marks`]; what it was told last may wait in memory until [`Marker::flush`].
#[derive(Debug)]
pub struct Marker<'a> {
    marks: &'a Marks,
    buffers: Vec<Vec<Record>>,
    /// Layers and flats share their objects: most of what is told was told before. Direct-mapped.
    recent: Vec<Record>,
}

impl Marker<'_> {
    /// The object is to be kept.
    pub fn mark(&mut self, id: ObjectId) -> io::Result<()> {
        let (bucket, record) = split(id);
        let slot = usize::from(bucket) << 9 | usize::from(record[0]) << 1 | usize::from(record[1] & 1);
        // The slot implies the first byte of the hash, which a record leaves out.
        if self.recent[slot] == record {
            return Ok(());
        }
        self.recent[slot] = record;
        let buffer = &mut self.buffers[usize::from(bucket)];
        buffer.push(record);
        if buffer.len() >= BUFFERED {
            self.marks.bucket(bucket).append(buffer)?;
            buffer.clear();
        }
        Ok(())
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> io::Result<()> {
        for bucket in 0..=u8::MAX {
            let buffer = &mut self.buffers[usize::from(bucket)];
            if !buffer.is_empty() {
                self.marks.bucket(bucket).append(buffer)?;
                buffer.clear();
            }
        }
        Ok(())
    }
}

/// The objects of one bucket that are to be kept.
#[derive(Debug)]
pub struct Marked {
    records: Vec<Record>,
}

impl Marked {
    /// Whether this object, of the same bucket, is to be kept.
    pub fn contains(&self, id: ObjectId) -> bool {
        self.records.binary_search(&split(id).1).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}
