//! Where a repository is kept: immutable objects and a handful of named files.
//!
//! Reading needs [`Store::open`], [`Store::exists`] and [`Store::read`]; writing adds [`Store::stage`],
//! [`Store::put`], [`Store::replace`] and [`Store::swap`]; [`Listing`] is for those who look at everything that is
//! there. An object, once there, is never changed; named files are replaced as a whole. Readers see an object
//! completely or not at all.

pub mod listing;
pub mod local;
pub mod memory;

pub use listing::{Listed, ListedKind, Listing};
pub use local::LocalStore;
pub use memory::MemoryStore;

use std::fmt::Debug;
use std::io::{self, Read, Write};

use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::object::{Compression, Encoder, Encoding, Inflater, ObjectError};

/// Names of the files beside the objects.
pub mod names {
    /// Manifest.
    pub const MANIFEST: &str = ".cvmfspublished";
    /// Whitelist.
    pub const WHITELIST: &str = ".cvmfswhitelist";
    /// Log of root references.
    pub const REFLOG: &str = ".cvmfsreflog";
    /// Allows replication.
    pub const MASTER_REPLICA: &str = ".cvmfs_master_replica";

    /// Where an object is found as well, if the manifest promises alternative paths (for servers that protect `data/`).
    pub fn alternative(id: crate::hash::ObjectId) -> String {
        format!(".cvmfsalt-{id}")
    }
}

/// Largest named file that is read into memory (the reflog of a long-lived repository is the largest).
pub const NAMED_FILE_LIMIT: u64 = 1 << 30;

/// Largest catalog, tag database or certificate, in plain bytes.
pub const DATABASE_LIMIT: u64 = 8 << 30;

/// A storage operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The storage said no.
    #[error("{action} {what} in {place}")]
    Io {
        /// What was tried: "cannot read", …
        action: &'static str,
        /// Which object or file.
        what: String,
        /// Which storage.
        place: String,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The object is not there.
    #[error("object {0} is not in the storage")]
    Missing(ObjectId),
    /// The object is there and not what its name says.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// What became of an object that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Written now; stored bytes.
    New(u64),
    /// It was there before.
    Present,
}

/// An object being written; invisible until committed, gone when dropped.
pub trait Staged: Write {
    /// Makes the object visible under its name.
    fn commit(self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError>;
}

/// Storage of a repository.
pub trait Store: Debug + Send + Sync {
    /// Reads the stored bytes of an object; not verified. `Missing` if it is not there.
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError>;

    /// Whether the object is there.
    fn exists(&self, id: ObjectId) -> Result<bool, StoreError>;

    /// Reads a named file; `None` when it is not there.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Starts an object whose name is not known yet.
    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError>;

    /// Stores an object that is in memory.
    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError>;

    /// Replaces a named file at once: readers see the old or the new content.
    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError>;

    /// Replaces a named file if its content is still `expected` (`None`: it is not there); says whether it did.
    /// Of several at once, one succeeds.
    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError>;

    /// Shows an object under a name beside the objects too: see [`names::alternative`].
    fn alias(&self, name: &str, id: ObjectId) -> Result<(), StoreError> {
        let mut stored = Vec::new();
        let read = self.open(id)?.take(DATABASE_LIMIT).read_to_end(&mut stored);
        read.map_err(|source| StoreError::Io {
            action: "cannot read",
            what: id.to_string(),
            place: self.place(),
            source,
        })?;
        self.replace(name, &stored)
    }

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), StoreError>;

    /// Where this is, for messages.
    fn place(&self) -> String;
}

/// Reads, verifies and inflates an object into `out`; gives the number of plain bytes.
pub fn fetch(
    store: &dyn Store,
    id: ObjectId,
    compression: Compression,
    limit: u64,
    out: &mut dyn Write,
) -> Result<u64, StoreError> {
    let mut stored = store.open(id)?;
    let mut inflater = Inflater::new(id, compression, limit, out);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match stored.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => inflater.push(&buffer[..n])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(StoreError::Io {
                    action: "cannot read",
                    what: id.to_string(),
                    place: store.place(),
                    source,
                });
            }
        }
    }
    Ok(inflater.finish()?.1)
}

/// Compresses a stream and stores it as an object that is always zlib (catalog, tags, certificate, meta info).
pub fn put_stream(
    store: &dyn Store,
    encoding: impl Into<Encoding>,
    kind: ObjectKind,
    plain: &mut dyn Read,
) -> Result<(ContentHash, Stored), StoreError> {
    let mut staged = store.stage()?;
    let (hash, _) = crate::object::encode_stream(encoding, plain, &mut staged).map_err(|source| StoreError::Io {
        action: "cannot write",
        what: format!("a new {kind:?} object"),
        place: store.place(),
        source,
    })?;
    Ok((hash, staged.commit(hash.object(kind))?))
}

/// Compresses and stores content that is in memory.
pub fn put_content(
    store: &dyn Store,
    encoder: &mut Encoder,
    kind: ObjectKind,
    plain: &[u8],
) -> Result<(ContentHash, Stored), StoreError> {
    let (hash, bytes) = encoder.encode(plain);
    Ok((hash, store.put(hash.object(kind), bytes)?))
}
