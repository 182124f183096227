//! Verifies and inflates one answer into a file of the cache.
//!
//! Objects that are not large are collected in memory, verified and inflated in one go, which takes half the time, and
//! written once; larger ones as they come. There is as much memory for the former as downloads run at the same time;
//! what small ones need is used again.

use std::io::Write as _;

use cvmfs::object::{Decoder, Inflater, ObjectError};
use parking_lot::Mutex;

use super::http::{Sink, SinkError};
use super::{FetchError, Want};
use crate::cache::{CacheError, DiskCache, Partial};

/// Plain bytes of an object that is inflated in one go.
const AT_ONCE: u64 = 2 << 20;
/// The same of one whose memory is kept for the next.
const KEPT: u64 = 512 << 10;

/// Memory for one object.
#[derive(Debug, Default)]
struct Bench {
    stored: Vec<u8>,
    decoder: Decoder,
}

/// Memory that no download uses at the moment.
#[derive(Debug, Default)]
pub(super) struct Benches(Mutex<Vec<Bench>>);

impl Benches {
    fn take(&self, limit: u64) -> Option<Bench> {
        if limit <= KEPT { self.0.lock().pop() } else { None }
    }

    fn put(&self, bench: Bench, limit: u64) {
        if limit <= KEPT {
            self.0.lock().push(bench);
        }
    }
}

/// How the object is taken.
#[derive(Debug)]
enum Way<'a> {
    /// No attempt has begun.
    None,
    AtOnce(Bench),
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
        self.cache.begin(size).map_err(|e| SinkError::Local(Box::new(e)))
    }
}

impl Sink for ObjectSink<'_> {
    fn restart(&mut self) -> Result<(), SinkError> {
        self.received = 0;
        // Takes the memory, or drops the file, of the attempt before.
        let kept = match std::mem::replace(&mut self.way, Way::None) {
            Way::AtOnce(bench) => Some(bench),
            _ => None,
        };
        self.way = if self.want.size.is_some_and(|size| size <= AT_ONCE) {
            let mut bench = kept.or_else(|| self.benches.take(self.want.limit)).unwrap_or_default();
            bench.stored.clear();
            Way::AtOnce(bench)
        } else {
            let partial = self.begin(self.want.size)?;
            let Want { object, compression, limit, .. } = *self.want;
            Way::Streamed(Box::new(Inflater::new(object, compression, limit, partial)))
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
            Way::AtOnce(bench) => bench.stored.extend_from_slice(bytes),
            Way::Streamed(inflater) => inflater.push(bytes).map_err(failure)?,
            Way::None | Way::Finished(..) => unreachable!("restart comes first"),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let Want { object, compression, limit, .. } = *self.want;
        self.way = match std::mem::replace(&mut self.way, Way::None) {
            Way::AtOnce(mut bench) => {
                let plain = bench.decoder.decode(object, compression, &bench.stored, limit).map_err(failure)?;
                let mut partial = self.begin(Some(plain.len() as u64))?;
                partial.write_all(plain).map_err(|source| failure(ObjectError::Write(object, source)))?;
                let size = plain.len() as u64;
                self.benches.put(bench, limit);
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
