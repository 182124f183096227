//! A storage whose objects can be listed and removed: for scrubbing and for garbage collection.

use std::time::SystemTime;

use super::{Store, StoreError};
use crate::hash::ObjectId;

/// What a name in the storage stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, a pipe, …
    Other,
}

/// One name in the storage.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// Last component of its path.
    pub name: &'a str,
    /// What it is.
    pub kind: ListedKind,
    /// Stored bytes; of files.
    pub size: u64,
    /// When it was written; of files, by the clock of the storage.
    pub modified: Option<SystemTime>,
}

/// A storage whose objects can be listed and removed.
pub trait Listing: Store {
    /// Hands out everything directly in `data/` (`bucket` = `None`) or in `data/<bucket>/`, in any order. A
    /// directory that does not exist is empty. What goes away meanwhile may be left out.
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError>;

    /// Removes an object for good. One that is not there is no error.
    fn remove(&self, id: ObjectId) -> Result<(), StoreError>;
}
