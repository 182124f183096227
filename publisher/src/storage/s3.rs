//! A repository in a bucket of an S3 server.
//!
//! ```text
//! put ── queue, bounded in bytes ── 16 requests under way ── flush waits for all of them      upload.rs
//! exists ── what is known to be there ── a page of the listing now and then ── one request    presence.rs
//! read, replace, swap ── whole files; changes on condition of the entity tag                  named.rs
//! settings ── client with credentials, retries, time-outs                                     connect.rs
//! what went wrong ── what to do about it                                                      explain.rs
//! ```
//!
//! Invariants
//! - An object counts as stored when the server has confirmed it. [`Store::put`] returns before that, so nothing may refer
//!   to an object for others before [`Store::flush`] has succeeded; the manifest is written after it.
//! - One upload that failed, after all retries, fails every later flush: there is no way to tell which publish needed it.
//! - Every request but a conditional one may be repeated, and is: objects never differ under the same name.
//!
//! The rest of the program is synchronous. Requests run on a small runtime of this storage's own; whoever calls waits
//! on it, so none of these functions may be called from within a runtime.

mod connect;
mod explain;
mod named;
mod presence;
mod upload;

use std::fmt;
use std::future::Future;
use std::io::{self, Read, Seek as _, Write};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Buf as _, Bytes};
use cvmfs::hash::ObjectId;
use cvmfs::store::{Listed, ListedKind, Listing, Staged, Store, StoreError, Stored};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt as _};
use tempfile::SpooledTempFile;
use tokio::runtime::{Handle, Runtime};

use self::explain::Explainer;
use self::named::Named;
use self::presence::Presence;
use self::upload::{PART, Uploads};
use super::settings::S3Settings;
use crate::failure::Failure;

/// Threads that drive requests; the work between requests is signing and copying.
const DRIVERS: usize = 2;
/// Bytes of a staged object that are kept in memory.
const IN_MEMORY: usize = 4 << 20;

/// How long caches keep objects, as the S3 backend of the reference tools says it: they never change.
const OBJECT_CACHE: &str = "max-age=259200";
/// How long caches keep the manifest and other files that change: below a minute, Squid would not keep them at all.
const NAMED_CACHE: &str = "max-age=61";

/// A repository in a bucket.
pub struct S3Store {
    bucket: Arc<Bucket>,
    uploads: Uploads,
    presence: Arc<Presence>,
    named: Named,
    runtime: Option<Runtime>,
}

/// What all parts need to speak to the server.
#[derive(Debug)]
struct Bucket {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    explainer: Explainer,
    handle: Handle,
}

impl Bucket {
    fn key(&self, id: ObjectId) -> Path {
        self.below(&id.path())
    }

    /// The key of a path below the root of the repository.
    fn below(&self, path: &str) -> Path {
        path.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    /// Waits for a request.
    fn wait<T>(&self, request: impl Future<Output = T>) -> T {
        self.handle.block_on(request)
    }

    /// For `map_err` of a request.
    fn failed<'a>(
        &'a self,
        action: &'static str,
        what: impl fmt::Display + 'a,
    ) -> impl FnOnce(object_store::Error) -> StoreError + 'a {
        move |error| self.io(action, what, self.explainer.explain(&error))
    }

    fn io(&self, action: &'static str, what: impl fmt::Display, source: io::Error) -> StoreError {
        StoreError::Io { action, what: what.to_string(), place: self.explainer.place.clone(), source }
    }
}

impl S3Store {
    /// Gets ready to use the bucket; sends no request yet.
    pub fn open(settings: &S3Settings) -> Result<S3Store, Failure> {
        let connected = connect::connect(settings)
            .map_err(|e| Failure::Content(format!("{settings} can't be used: {}", explain::innermost(&e))))?;
        Self::over(connected.client, connected.explainer, settings)
    }

    /// The same over any object store.
    fn over(objects: Arc<dyn ObjectStore>, explainer: Explainer, settings: &S3Settings) -> Result<S3Store, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(DRIVERS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(Failure::io("start the threads for", std::path::Path::new(&settings.to_string())))?;
        let prefix = Path::parse(&settings.prefix).expect("checked when the settings were read");
        let bucket = Arc::new(Bucket { objects, prefix, explainer, handle: runtime.handle().clone() });
        let presence = Arc::new(Presence::new(bucket.clone()));
        Ok(S3Store {
            uploads: Uploads::new(bucket.clone(), presence.clone(), settings),
            named: Named::new(bucket.clone()),
            presence,
            bucket,
            runtime: Some(runtime),
        })
    }

    /// Makes sure that the bucket is there and that we may look into it.
    pub fn probe(&self) -> Result<(), StoreError> {
        let mut listing = self.bucket.objects.list(Some(&self.bucket.below("data")));
        match self.bucket.wait(listing.next()) {
            Some(Err(e)) => Err(self.bucket.failed("cannot list", "objects")(e)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        // What was to be kept was flushed; a hanging request must not hold up the end of the program.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Store for S3Store {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        if let Some(bytes) = self.uploads.under_way(id) {
            return Ok(Box::new(bytes.reader()));
        }
        match self.bucket.wait(self.bucket.objects.get(&self.bucket.key(id))) {
            Ok(found) => {
                let stream = found.into_stream();
                Ok(Box::new(Body { bucket: self.bucket.clone(), stream, rest: Bytes::new() }))
            }
            Err(object_store::Error::NotFound { .. }) => Err(StoreError::Missing(id)),
            Err(e) => Err(self.bucket.failed("cannot open", id)(e)),
        }
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        Ok(self.uploads.under_way(id).is_some() || self.presence.exists(id)?)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.named.read(name)?.map(|found| found.content.into()))
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        Ok(Box::new(S3Staged { store: self, file: SpooledTempFile::new(IN_MEMORY), size: 0 }))
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.uploads.put(id, stored.len(), || Bytes::copy_from_slice(stored))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.named.replace(name, content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.named.swap(name, expected, content)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.uploads.flush()
    }

    fn place(&self) -> String {
        self.bucket.explainer.place.clone()
    }
}

impl Listing for S3Store {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        let failed = |e| self.bucket.failed("cannot list", format_args!("data/{}", bucket.unwrap_or_default()))(e);
        let Some(bucket) = bucket else {
            let data = self.bucket.below("data");
            let found = self.bucket.wait(self.bucket.objects.list_with_delimiter(Some(&data))).map_err(failed)?;
            for directory in &found.common_prefixes {
                let name = directory.filename().unwrap_or_default();
                visit(Listed { name, kind: ListedKind::Directory, size: 0, modified: None });
            }
            for object in &found.objects {
                visit(listed(object.location.filename().unwrap_or_default(), object));
            }
            return Ok(());
        };
        let directory = self.bucket.below(&format!("data/{bucket}"));
        let mut pages = self.bucket.objects.list(Some(&directory));
        while let Some(object) = self.bucket.wait(pages.next()) {
            let object = object.map_err(failed)?;
            let name = object.location.as_ref().strip_prefix(directory.as_ref()).unwrap_or_default();
            visit(listed(name.trim_start_matches('/'), &object));
        }
        Ok(())
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.presence.forget(id);
        match self.bucket.wait(self.bucket.objects.delete(&self.bucket.key(id))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.bucket.failed("cannot remove", id)(e)),
        }
    }
}

fn listed<'a>(name: &'a str, object: &object_store::ObjectMeta) -> Listed<'a> {
    let modified = SystemTime::from(object.last_modified);
    Listed { name, kind: ListedKind::File, size: object.size, modified: Some(modified) }
}

/// Headers of an object, as web servers for repositories give them too.
fn object_attributes() -> Attributes {
    Attributes::from_iter([
        (Attribute::ContentType, "application/octet-stream"),
        (Attribute::CacheControl, OBJECT_CACHE),
    ])
}

/// Headers of the manifest and the files beside it.
fn named_attributes() -> Attributes {
    Attributes::from_iter([(Attribute::ContentType, "application/x-cvmfs"), (Attribute::CacheControl, NAMED_CACHE)])
}

/// The body of an answer, as a reader.
struct Body {
    bucket: Arc<Bucket>,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.bucket.wait(self.stream.next()) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(e)) => return Err(self.bucket.explainer.explain(&e)),
                None => return Ok(0),
            }
        }
        let len = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

/// An object on its way into a file of our own: its name is not known before its last byte.
struct S3Staged<'a> {
    store: &'a S3Store,
    file: SpooledTempFile,
    size: u64,
}

impl Write for S3Staged<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Staged for S3Staged<'_> {
    fn commit(mut self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError> {
        let uploads = &self.store.uploads;
        let unreadable = |e| self.store.bucket.io("cannot read the temporary file of", id, e);
        self.file.rewind().map_err(unreadable)?;
        match usize::try_from(self.size) {
            Ok(size) if size <= PART => {
                let mut bytes = Vec::with_capacity(size);
                self.file.read_to_end(&mut bytes).map_err(unreadable)?;
                uploads.put(id, size, || bytes.into())
            }
            _ => uploads.put_large(id, self.size, &mut self.file),
        }
    }
}
