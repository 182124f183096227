//! Objects on their way into the bucket: many at once, bounded in memory, the first failure kept.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use cvmfs::hash::ObjectId;
use cvmfs::store::{StoreError, Stored};
use futures_util::TryStreamExt as _;
use futures_util::stream::FuturesUnordered;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use super::presence::Presence;
use super::{Bucket, object_attributes};
use crate::storage::settings::S3Settings;

/// Largest object that is sent as a whole, and size of the parts of larger ones.
pub const PART: usize = 16 << 20;
/// Parts of one object under way.
const PARTS_AT_ONCE: usize = 4;

/// Bytes that wait to be sent or are being sent. Counted in units, so that a queue of tiny objects is bounded as well.
const QUEUE: usize = 64 << 20;
const UNIT: usize = 16 << 10;

/// Below this size, asking whether an object is there costs as much as sending it.
const WORTH_ASKING: usize = 32 << 10;

/// Objects on their way.
#[derive(Debug)]
pub struct Uploads {
    bucket: Arc<Bucket>,
    presence: Arc<Presence>,
    state: Arc<State>,
    room: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    peek: bool,
}

#[derive(Debug, Default)]
struct State {
    queue: Mutex<Queue>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    under_way: HashMap<ObjectId, Bytes>,
    failure: Option<Failed>,
}

/// The first failure; it comes up with everything that is done afterwards.
#[derive(Debug, Clone)]
struct Failed {
    id: ObjectId,
    kind: io::ErrorKind,
    words: String,
}

impl Uploads {
    pub fn new(bucket: Arc<Bucket>, presence: Arc<Presence>, settings: &S3Settings) -> Uploads {
        Uploads {
            bucket,
            presence,
            state: Arc::default(),
            room: Arc::new(Semaphore::new(QUEUE / UNIT)),
            connections: Arc::new(Semaphore::new(settings.connections)),
            peek: settings.peek,
        }
    }

    /// The bytes of an object that is not confirmed yet.
    pub fn under_way(&self, id: ObjectId) -> Option<Bytes> {
        self.state.queue.lock().under_way.get(&id).cloned()
    }

    /// Queues an object. Returns when there is room for it, which is before it is sent.
    pub fn put(&self, id: ObjectId, size: usize, bytes: impl FnOnce() -> Bytes) -> Result<Stored, StoreError> {
        self.check()?;
        if self.presence.knows(id) || self.under_way(id).is_some() {
            return Ok(Stored::Present);
        }
        let units = (size / UNIT + 1).min(QUEUE / UNIT) as u32;
        let room = self.bucket.wait(self.room.clone().acquire_many_owned(units)).expect("never closed");
        let bytes = bytes();
        if self.state.queue.lock().under_way.insert(id, bytes.clone()).is_some() {
            return Ok(Stored::Present); // another thread was faster
        }
        let (bucket, presence, state) = (self.bucket.clone(), self.presence.clone(), self.state.clone());
        let (connections, peek) = (self.connections.clone(), self.peek && size >= WORTH_ASKING);
        self.bucket.handle.spawn(async move {
            let _connection = connections.acquire_owned().await.expect("never closed");
            let result = send(&*bucket.objects, &bucket.key(id), bytes, peek).await;
            let mut queue = state.queue.lock();
            match result {
                Ok(()) => presence.learn(id),
                Err(e) => {
                    let error = bucket.explainer.explain(&e);
                    let failed = Failed { id, kind: error.kind(), words: error.to_string() };
                    queue.failure.get_or_insert(failed);
                }
            }
            queue.under_way.remove(&id);
            if queue.under_way.is_empty() {
                state.idle.notify_all();
            }
            drop((queue, room));
        });
        Ok(Stored::New(size as u64))
    }

    /// Sends a large object in parts; returns when it is stored.
    pub fn put_large(&self, id: ObjectId, size: u64, content: &mut impl Read) -> Result<Stored, StoreError> {
        self.check()?;
        if self.presence.exists(id)? {
            return Ok(Stored::Present);
        }
        let key = self.bucket.key(id);
        let failed = |e| self.bucket.failed("cannot write", id)(e);
        let options = PutMultipartOptions { attributes: object_attributes(), ..PutMultipartOptions::default() };
        let mut upload = self.bucket.wait(self.bucket.objects.put_multipart_opts(&key, options)).map_err(failed)?;
        let sent = self.send_parts(&mut *upload, content);
        match sent {
            Ok(()) => self.bucket.wait(upload.complete()).map(drop).map_err(failed)?,
            Err(e) => {
                // What cannot be aborted either is for the bucket's own rules to clean up.
                let _ = self.bucket.wait(upload.abort());
                return Err(e.explained(&self.bucket, id));
            }
        }
        self.presence.learn(id);
        Ok(Stored::New(size))
    }

    fn send_parts(&self, upload: &mut dyn MultipartUpload, content: &mut impl Read) -> Result<(), PartError> {
        let mut under_way = FuturesUnordered::new();
        loop {
            let mut part = Vec::with_capacity(PART);
            if content.take(PART as u64).read_to_end(&mut part).map_err(PartError::File)? == 0 {
                break;
            }
            under_way.push(upload.put_part(part.into()));
            if under_way.len() == PARTS_AT_ONCE {
                self.bucket.wait(under_way.try_next()).map_err(PartError::Server)?;
            }
        }
        while self.bucket.wait(under_way.try_next()).map_err(PartError::Server)?.is_some() {}
        Ok(())
    }

    /// Waits until everything is stored.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut queue = self.state.queue.lock();
        while !queue.under_way.is_empty() {
            self.state.idle.wait(&mut queue);
        }
        drop(queue);
        self.check()
    }

    fn check(&self) -> Result<(), StoreError> {
        let failure = self.state.queue.lock().failure.clone();
        match failure {
            Some(Failed { id, kind, words }) => Err(self.bucket.io("cannot write", id, io::Error::new(kind, words))),
            None => Ok(()),
        }
    }
}

async fn send(objects: &dyn ObjectStore, key: &Path, bytes: Bytes, peek: bool) -> object_store::Result<()> {
    if peek && objects.head(key).await.is_ok() {
        return Ok(());
    }
    let options = PutOptions { attributes: object_attributes(), ..PutOptions::default() };
    objects.put_opts(key, bytes.into(), options).await.map(drop)
}

enum PartError {
    File(io::Error),
    Server(object_store::Error),
}

impl PartError {
    fn explained(self, bucket: &Bucket, id: ObjectId) -> StoreError {
        match self {
            PartError::File(e) => bucket.io("cannot read the temporary file of", id, e),
            PartError::Server(e) => bucket.failed("cannot write", id)(e),
        }
    }
}
