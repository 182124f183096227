//! A repository in memory, for tests, with a switch that makes writing fail.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Listed, ListedKind, Listing, Staged, Store, StoreError, Stored};
use crate::hash::ObjectId;

/// Objects and files in memory.
#[derive(Debug)]
pub struct MemoryStore {
    content: Mutex<BTreeMap<String, Vec<u8>>>,
    /// What is not named here was written now.
    ages: Mutex<BTreeMap<String, SystemTime>>,
    swaps: Mutex<()>,
    writes_left: AtomicI64,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore {
            content: Mutex::default(),
            ages: Mutex::default(),
            swaps: Mutex::default(),
            writes_left: AtomicI64::new(i64::MAX),
        }
    }
}

impl MemoryStore {
    /// Lets this many more writes succeed; then every one fails as on a full disk.
    pub fn fail_after(&self, writes: i64) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// Makes an object look as if it had been written then.
    pub fn set_modified(&self, id: ObjectId, modified: SystemTime) {
        self.ages.lock().unwrap_or_else(PoisonError::into_inner).insert(id.path(), modified);
    }

    /// Everything kept, by path below the root.
    pub fn content(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, path: String, bytes: &[u8]) -> Result<(), StoreError> {
        if self.writes_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            let source = io::Error::from(io::ErrorKind::StorageFull);
            return Err(StoreError::Io { action: "cannot write", what: path, place: self.place(), source });
        }
        self.content().insert(path, bytes.to_vec());
        Ok(())
    }
}

impl Store for MemoryStore {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        let bytes = self.content().get(&id.path()).cloned().ok_or(StoreError::Missing(id))?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        Ok(self.content().contains_key(&id.path()))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.content().get(name).cloned())
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        Ok(Box::new(MemoryStaged { store: self, bytes: Vec::new() }))
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        if self.exists(id)? {
            return Ok(Stored::Present);
        }
        self.write(id.path(), stored)?;
        Ok(Stored::New(stored.len() as u64))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.write(name.to_owned(), content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        let _one_at_a_time = self.swaps.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read(name)?.as_deref() != expected {
            return Ok(false);
        }
        self.replace(name, content).map(|()| true)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self) -> String {
        "memory".into()
    }
}

impl Listing for MemoryStore {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        let prefix = bucket.map_or_else(|| "data/".to_owned(), |b| format!("data/{b}/"));
        let ages = self.ages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut found: Vec<(String, ListedKind, u64, SystemTime)> = Vec::new();
        for (path, bytes) in self.content().iter() {
            let Some(name) = path.strip_prefix(&prefix) else { continue };
            let (name, kind) = match name.split_once('/') {
                Some((directory, _)) => (directory, ListedKind::Directory),
                None => (name, ListedKind::File),
            };
            let modified = ages.get(path).copied().unwrap_or_else(SystemTime::now);
            found.push((name.to_owned(), kind, bytes.len() as u64, modified));
        }
        found.dedup_by(|a, b| a.0 == b.0);
        for (name, kind, size, modified) in &found {
            visit(Listed { name, kind: *kind, size: *size, modified: Some(*modified) });
        }
        Ok(())
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.content().remove(&id.path());
        Ok(())
    }
}

struct MemoryStaged<'a> {
    store: &'a MemoryStore,
    bytes: Vec<u8>,
}

impl Write for MemoryStaged<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for MemoryStaged<'_> {
    fn commit(self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError> {
        self.store.put(id, &self.bytes)
    }
}
