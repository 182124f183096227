//! The files that change: manifest, whitelist, reflog, leases. Each is one object, replaced as a whole.
//!
//! A swap reads the file, compares, and writes on condition that the server still has what was read (`If-Match` with its
//! entity tag, `If-None-Match: *` where there was nothing; Amazon S3 user guide, "Conditional writes"). An answer that
//! got lost is made good by reading again: what is found there says whether the write took place.
//!
//! A server may refuse conditions, or worse, ignore them. The first swap finds out, with a condition that cannot hold,
//! on a file that never changes. There, a swap is read, compare, write, and look again: two writers in the same instant
//! can overwrite each other, and it is said once.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use cvmfs::store::{NAMED_FILE_LIMIT, StoreError, names};
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion};

use super::explain::lacks_conditions;
use super::{Bucket, named_attributes};

/// Conditional writes whose outcome was unclear, before a swap is given up.
const ATTEMPTS: u32 = 8;
/// An entity tag that no content has.
const NO_TAG: &str = "\"00000000000000000000000000000000\"";
/// Until a competing write would have arrived, on servers without conditions.
const SETTLED: Duration = Duration::from_millis(500);

/// The named files of a bucket.
#[derive(Debug)]
pub struct Named {
    bucket: Arc<Bucket>,
    conditions: OnceLock<Conditions>,
}

/// What the server makes of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conditions {
    Honoured,
    Missing,
}

/// A named file as it was read.
#[derive(Debug)]
pub struct Found {
    pub content: Bytes,
    tag: Option<String>,
}

/// What became of a conditional write.
enum Written {
    Done,
    /// Something else is there, or nobody knows.
    Unclear(Error),
    /// The server does not do that.
    Unsupported,
}

impl Named {
    pub fn new(bucket: Arc<Bucket>) -> Named {
        Named { bucket, conditions: OnceLock::new() }
    }

    pub fn read(&self, name: &str) -> Result<Option<Found>, StoreError> {
        let key = self.bucket.below(name);
        let found = self.bucket.wait(async {
            let found = self.bucket.objects.get(&key).await?;
            if found.meta.size > NAMED_FILE_LIMIT {
                let source = format!("it has {} bytes; it can't be one of ours", found.meta.size).into();
                return Err(Error::Generic { store: "S3", source });
            }
            let tag = found.meta.e_tag.clone();
            Ok(Found { content: found.bytes().await?, tag })
        });
        match found {
            Ok(found) => Ok(Some(found)),
            Err(e @ Error::NotFound { .. }) if e.to_string().contains("NoSuchBucket") => {
                Err(self.bucket.failed("cannot read", name)(e))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.bucket.failed("cannot read", name)(e)),
        }
    }

    pub fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.write(name, content, PutMode::Overwrite).map_err(self.bucket.failed("cannot write", name))
    }

    pub fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let found = self.read(name)?;
            let current = found.as_ref().map(|f| &*f.content);
            if attempt > 0 && current == Some(content) {
                return Ok(true); // written, and the answer got lost
            }
            if current != expected {
                return Ok(false);
            }
            if self.conditions()? == Conditions::Missing {
                return self.swap_unconditionally(name, content);
            }
            match self.write_if(name, content, found)? {
                Written::Done => return Ok(true),
                Written::Unsupported => {
                    self.settle(Conditions::Missing);
                    return self.swap_unconditionally(name, content);
                }
                Written::Unclear(error) => last = Some(error),
            }
        }
        let error = last.expect("an attempt that decided nothing has an error");
        Err(self.bucket.failed("cannot replace", name)(error))
    }

    fn write_if(&self, name: &str, content: &[u8], found: Option<Found>) -> Result<Written, StoreError> {
        let mode = match found {
            None => PutMode::Create,
            Some(Found { tag: Some(tag), .. }) => PutMode::Update(UpdateVersion { e_tag: Some(tag), version: None }),
            Some(Found { tag: None, .. }) => return Ok(Written::Unsupported),
        };
        match self.write(name, content, mode) {
            Ok(()) => Ok(Written::Done),
            Err(e @ (Error::Precondition { .. } | Error::AlreadyExists { .. })) => Ok(Written::Unclear(e)),
            Err(e) if lacks_conditions(&e) => Ok(Written::Unsupported),
            // After a connection that broke, nobody knows; after a refusal, nothing was written.
            Err(e @ Error::Generic { .. }) => Ok(Written::Unclear(e)),
            Err(e) => Err(self.bucket.failed("cannot replace", name)(e)),
        }
    }

    fn swap_unconditionally(&self, name: &str, content: &[u8]) -> Result<bool, StoreError> {
        self.replace(name, content)?;
        std::thread::sleep(SETTLED);
        Ok(self.read(name)?.is_some_and(|found| found.content == content))
    }

    /// Finds out, once, what the server makes of conditions.
    fn conditions(&self) -> Result<Conditions, StoreError> {
        if let Some(known) = self.conditions.get() {
            return Ok(*known);
        }
        let name = names::MASTER_REPLICA;
        // A repository that is being made has none yet; it will be asked for again.
        let Some(found) = self.read(name)? else { return Ok(Conditions::Honoured) };
        let impossible = UpdateVersion { e_tag: Some(NO_TAG.to_owned()), version: None };
        let conditions = match self.write(name, &found.content, PutMode::Update(impossible)) {
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => Conditions::Honoured,
            Ok(()) => Conditions::Missing,
            Err(e) if lacks_conditions(&e) => Conditions::Missing,
            Err(e) => return Err(self.bucket.failed("cannot try a condition on", name)(e)),
        };
        Ok(self.settle(conditions))
    }

    fn settle(&self, conditions: Conditions) -> Conditions {
        if self.conditions.set(conditions).is_ok() && conditions == Conditions::Missing {
            tracing::warn!(
                server = self.bucket.explainer.server,
                "the S3 server has no conditional writes: let only one publisher at a time work on {}, because of two in \
                 the same instant one could undo what the other published",
                self.bucket.explainer.place
            );
        }
        conditions
    }

    fn write(&self, name: &str, content: &[u8], mode: PutMode) -> Result<(), Error> {
        let key = self.bucket.below(name);
        let payload = PutPayload::from(content.to_vec());
        let options = PutOptions { mode, attributes: named_attributes(), ..PutOptions::default() };
        self.bucket.wait(self.bucket.objects.put_opts(&key, payload, options)).map(drop)
    }
}
