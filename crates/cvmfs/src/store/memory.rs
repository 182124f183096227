//! A repository in memory, for tests, with a switch that makes writing fail.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Staged, Store, StoreError, Stored};
use crate::hash::ObjectId;

/// Objects and files in memory.
#[derive(Debug)]
pub struct MemoryStore {
    content: Mutex<BTreeMap<String, Vec<u8>>>,
    writes_left: AtomicI64,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore { content: Mutex::default(), writes_left: AtomicI64::new(i64::MAX) }
    }
}

impl MemoryStore {
    /// Lets this many more writes succeed; then every one fails as on a full disk.
    pub fn fail_after(&self, writes: i64) {
        self.writes_left.store(writes, Ordering::SeqCst);
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

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self) -> String {
        "memory".into()
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
