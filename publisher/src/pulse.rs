//! Tells systemd (`WatchdogSec`) that a watching publisher gets on with its work.
//!
//! A sign of life is what cannot come from a turn that is stuck: an event of its progress, an answer of a registry or bytes of a
//! layer, an object of the storage that was read, written, found or removed. Named files beside the objects are no sign: leases are renewed by threads of their
//! own, whatever became of the work.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cvmfs::hash::ObjectId;
use cvmfs::store::{Listed, Listing, Staged, Store, StoreError, Stored};

use crate::progress::{Event, Progress};

/// Passes signs of life on. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Option<Arc<Beats>>);

#[derive(Debug)]
struct Beats {
    begun: Instant,
    /// Signs that come sooner after one that was passed on are not.
    every: Duration,
    /// Milliseconds after the beginning.
    next: AtomicU64,
}

impl Pulse {
    /// To systemd, if it wants to know.
    pub fn to_systemd() -> Self {
        let beats = |limit: Duration| Beats { begun: Instant::now(), every: limit / 4, next: AtomicU64::new(0) };
        Self(sd_notify::watchdog_enabled().map(|limit| Arc::new(beats(limit))))
    }

    /// How long a pause between two signs of life may be, if somebody listens.
    pub fn every(&self) -> Option<Duration> {
        self.0.as_ref().map(|beats| beats.every)
    }

    /// There is life.
    pub fn beat(&self) {
        let Some(beats) = &self.0 else { return };
        let (now, next) = (beats.begun.elapsed().as_millis() as u64, beats.next.load(Ordering::Relaxed));
        let after = now + beats.every.as_millis() as u64;
        if now >= next && beats.next.compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    /// Progress whose events are signs of life.
    pub fn of_progress(&self, inner: Arc<dyn Progress>) -> Arc<dyn Progress> {
        match self.0 {
            Some(_) => Arc::new(Beating { inner, pulse: self.clone() }),
            None => inner,
        }
    }

    /// A stream whose bytes are.
    pub fn of_reader<R: Read + Send>(&self, inner: R) -> impl Read + Send + use<R> {
        Beating { inner, pulse: self.clone() }
    }

    /// A storage whose objects are.
    pub fn of_store(&self, inner: Arc<dyn Listing>) -> Arc<dyn Listing> {
        match self.0 {
            Some(_) => Arc::new(Beating { inner, pulse: self.clone() }),
            None => inner,
        }
    }
}

/// Something, with a sign of life whenever it was of use.
#[derive(Debug)]
struct Beating<T> {
    inner: T,
    pulse: Pulse,
}

impl<T> Beating<T> {
    fn after<R>(&self, result: R) -> R {
        self.pulse.beat();
        result
    }
}

impl Progress for Beating<Arc<dyn Progress>> {
    fn event(&self, event: Event<'_>) {
        self.inner.event(event);
        self.pulse.beat();
    }
}

impl<R: Read> Read for Beating<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read > 0 {
            self.pulse.beat();
        }
        Ok(read)
    }
}

impl Store for Beating<Arc<dyn Listing>> {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.after(self.inner.open(id))
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.after(self.inner.exists(id))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.read(name)
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        Ok(Box::new(Beating { inner: self.inner.stage()?, pulse: self.pulse.clone() }))
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.after(self.inner.put(id, stored))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.inner.replace(name, content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.inner.swap(name, expected, content)
    }

    fn alias(&self, name: &str, id: ObjectId) -> Result<(), StoreError> {
        self.inner.alias(name, id)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.after(self.inner.flush())
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

impl Listing for Beating<Arc<dyn Listing>> {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.inner.list(bucket, &mut |listed| {
            visit(listed);
            self.pulse.beat();
        })
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.after(self.inner.remove(id))
    }
}

impl Write for Beating<Box<dyn Staged + '_>> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes);
        self.after(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Staged for Beating<Box<dyn Staged + '_>> {
    fn commit(self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError> {
        let Self { inner, pulse } = *self;
        let stored = inner.commit(id);
        pulse.beat();
        stored
    }
}
