//! Storage for what is made to be compared and then thrown away.
//!
//! [`Overlay`] takes what is written beside the storage of the repository, which it only reads. [`Nowhere`] gives
//! objects their names and keeps none of them: content of files is compared by name.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use cvmfs::hash::ObjectId;
use cvmfs::store::{Listed, Listing, LocalStore, Staged, Store, StoreError, Stored};

/// A storage with another one on top that takes all writes.
#[derive(Debug)]
pub struct Overlay {
    below: Arc<dyn Listing>,
    top: LocalStore,
}

impl Overlay {
    /// Reads from `below`; what is written goes to an empty directory.
    pub fn new(below: Arc<dyn Listing>, directory: &Path) -> Result<Overlay, StoreError> {
        Ok(Overlay { below, top: LocalStore::create(directory)? })
    }
}

impl Store for Overlay {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        match self.top.open(id) {
            Err(StoreError::Missing(_)) => self.below.open(id),
            found => found,
        }
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        Ok(self.top.exists(id)? || self.below.exists(id)?)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.top.read(name)? {
            Some(bytes) => Ok(Some(bytes)),
            None => self.below.read(name),
        }
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        self.top.stage()
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.top.put(id, stored)
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.top.replace(name, content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.top.swap(name, expected, content)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self) -> String {
        self.below.place()
    }
}

impl Listing for Overlay {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.below.list(bucket, visit)
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.top.remove(id)
    }
}

/// A storage that has everything that was brought, and gives nothing back.
#[derive(Debug)]
pub struct Nowhere;

impl Store for Nowhere {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        Err(StoreError::Missing(id))
    }

    fn exists(&self, _: ObjectId) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn read(&self, _: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        Ok(Box::new(Unkept))
    }

    fn put(&self, _: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        Ok(Stored::New(stored.len() as u64))
    }

    fn replace(&self, _: &str, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }

    fn swap(&self, _: &str, _: Option<&[u8]>, _: &[u8]) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn place(&self) -> String {
        "nowhere".to_owned()
    }
}

struct Unkept;

impl Write for Unkept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Staged for Unkept {
    fn commit(self: Box<Self>, _: ObjectId) -> Result<Stored, StoreError> {
        Ok(Stored::New(0))
    }
}
