//! Verifies and inflates one answer into a file of the cache.
//!
//! What fits is collected in memory, verified and inflated in one go, which takes half the time, and written once; the
//! rest as it comes. Small objects always fit, and their memory is used again; larger ones as long as those that are
//! inflated at the same time take no more than [`LARGE`] bytes.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use cvmfs::object::{Decoder, Inflater, ObjectError};
use memmap2::{Advice, MmapMut};
use parking_lot::Mutex;

use super::http::{Sink, SinkError};
use super::{FetchError, Want, stored_limit};
use crate::cache::{CacheError, DiskCache, Partial};

/// Plain bytes of an object that is inflated in one go: any chunk of the usual sizes.
const AT_ONCE: u64 = 16 << 20;
/// The same of one that always is, and whose memory is kept for the next.
const SMALL: u64 = 512 << 10;
/// What all others together take, as they come and plain.
const LARGE: u64 = 72 << 20;

/// Memory for one object, as it comes and plain. It is mapped, so it is taken page by page as it is used, and given back at
/// once: an allocator keeps it, for each of many threads.
#[derive(Debug)]
struct Bench {
    stored: MmapMut,
    filled: usize,
    plain: MmapMut,
    decoder: Decoder,
}

impl Bench {
    /// For so many bytes as it comes and plain; `None` if the system has none.
    fn new(stored: u64, plain: u64) -> Option<Bench> {
        let map = |size| MmapMut::map_anon(usize::try_from(size).ok()?).ok();
        Some(Bench { stored: map(stored)?, filled: 0, plain: map(plain)?, decoder: Decoder::default() })
    }
}

/// Memory that no download uses at the moment, and what is in use for large objects.
#[derive(Debug, Default)]
pub(super) struct Benches {
    small: Mutex<Vec<Bench>>,
    large: AtomicU64,
}

impl Benches {
    /// Memory for an object of so many bytes as it comes, at most, and plain, if there is any.
    fn take(&self, stored: u64, plain: u64) -> Option<(Bench, Option<Large<'_>>)> {
        if plain <= SMALL {
            let kept = self.small.lock().pop();
            return Some((kept.or_else(|| Bench::new(stored_limit(SMALL), SMALL))?, None));
        }
        let size = stored.saturating_add(plain);
        let more = |used: u64| used.checked_add(size).filter(|used| *used <= LARGE);
        if plain > AT_ONCE || self.large.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return None;
        }
        let large = Large { used: &self.large, size };
        let bench = Bench::new(stored, plain)?;
        for memory in [&bench.stored, &bench.plain] {
            // Fewer faults, where the kernel can do it.
            let _ = memory.advise(Advice::HugePage);
        }
        Some((bench, Some(large)))
    }
}

/// Memory in use for a large object.
#[derive(Debug)]
struct Large<'a> {
    used: &'a AtomicU64,
    size: u64,
}

impl Drop for Large<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// How the object is taken.
#[derive(Debug)]
enum Way<'a> {
    /// No attempt has begun.
    None,
    AtOnce(Bench, Option<Large<'a>>),
    Streamed(Box<Inflater<Partial<'a>>>),
    Finished(Partial<'a>, u64),
}

pub(super) struct ObjectSink<'a> {
    cache: &'a DiskCache,
    benches: &'a Benches,
    want: &'a Want,
    /// Whether it is to be given up.
    closed: &'a dyn Fn() -> bool,
    way: Way<'a>,
    received: u64,
}

impl<'a> ObjectSink<'a> {
    pub(super) fn new(
        cache: &'a DiskCache,
        benches: &'a Benches,
        want: &'a Want,
        closed: &'a dyn Fn() -> bool,
    ) -> ObjectSink<'a> {
        ObjectSink { cache, benches, want, closed, way: Way::None, received: 0 }
    }

    /// After a successful transfer: bytes that came, the verified object, and its plain bytes.
    pub(super) fn finished(self) -> (u64, Partial<'a>, u64) {
        match self.way {
            Way::Finished(partial, plain) => (self.received, partial, plain),
            _ => unreachable!("a successful transfer finishes its sink"),
        }
    }

    fn begin(&self, size: Option<u64>) -> Result<Partial<'a>, SinkError> {
        self.cache.begin(self.want.key(), size).map_err(|e| SinkError::Local(Box::new(e)))
    }
}

impl Sink for ObjectSink<'_> {
    fn restart(&mut self) -> Result<(), SinkError> {
        self.received = 0;
        // Takes the memory, or drops the file, of the attempt before.
        let kept = match std::mem::replace(&mut self.way, Way::None) {
            Way::AtOnce(bench, large) => Some((bench, large)),
            _ => None,
        };
        let Want { object, compression, size, limit, .. } = *self.want;
        let take = || size.and_then(|_| self.benches.take(self.want.stored_limit(), limit));
        self.way = match kept.or_else(take) {
            Some((mut bench, large)) => {
                bench.filled = 0;
                Way::AtOnce(bench, large)
            }
            None => {
                let partial = self.begin(size)?;
                Way::Streamed(Box::new(Inflater::new(object, compression, limit, partial)))
            }
        };
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if (self.closed)() {
            return Err(SinkError::Local(Box::new(FetchError::Abandoned(self.want.object))));
        }
        self.received += bytes.len() as u64;
        let limit = self.want.stored_limit();
        if self.received > limit {
            return Err(SinkError::Corrupt(format!("more than {limit} bytes, and no end")));
        }
        match &mut self.way {
            Way::AtOnce(bench, _) => {
                bench.stored[bench.filled..][..bytes.len()].copy_from_slice(bytes);
                bench.filled += bytes.len();
            }
            Way::Streamed(inflater) => inflater.push(bytes).map_err(failure)?,
            Way::None | Way::Finished(..) => unreachable!("restart comes first"),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let Want { object, compression, limit, .. } = *self.want;
        self.way = match std::mem::replace(&mut self.way, Way::None) {
            Way::AtOnce(mut bench, large) => {
                let Bench { stored, filled, plain, decoder } = &mut bench;
                let (stored, room) = (&stored[..*filled], &mut plain[..limit as usize]);
                let plain = decoder.decode(object, compression, stored, room).map_err(failure)?;
                let mut partial = self.begin(Some(plain.len() as u64))?;
                partial.write_all(plain).map_err(|source| failure(ObjectError::Write(object, source)))?;
                let size = plain.len() as u64;
                if large.is_none() {
                    self.benches.small.lock().push(bench);
                }
                Way::Finished(partial, size)
            }
            Way::Streamed(inflater) => {
                let (partial, size) = inflater.finish().map_err(failure)?;
                Way::Finished(partial, size)
            }
            Way::None | Way::Finished(..) => unreachable!("restart comes first"),
        };
        Ok(())
    }
}

fn failure(error: ObjectError) -> SinkError {
    match error {
        ObjectError::Write(object, source) => match source.downcast::<CacheError>() {
            Ok(full) => SinkError::Local(Box::new(full)),
            Err(source) => SinkError::Local(Box::new(ObjectError::Write(object, source))),
        },
        error => SinkError::Corrupt(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_large_objects_is_bounded_and_given_back() {
        let benches = Benches::default();
        let take = |size| benches.take(size / 2, size);
        assert!(take(AT_ONCE + 1).is_none());
        let small: Vec<_> = (0..100).map(|_| take(SMALL).unwrap()).collect();
        assert!(small.iter().all(|(_, large)| large.is_none()), "they are bounded by the number of downloads");
        let mut large: Vec<_> = (0..3).map(|_| take(AT_ONCE).unwrap()).collect();
        assert!(take(SMALL + 1).is_none() && take(SMALL).is_some());
        large.pop();
        let next = take(AT_ONCE).unwrap();
        assert!(take(SMALL + 1).is_none());
        drop((large, next));
        assert_eq!(benches.large.load(Ordering::Relaxed), 0);
    }
}
