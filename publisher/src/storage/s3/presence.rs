//! Which objects are in the bucket, without asking for each of them.
//!
//! A question is one request; a page of the listing answers a thousand of them for the price of one. So every eighth
//! question about a directory `data/xx` is followed by its next page: whoever asks for few objects lists next to nothing,
//! and whoever asks for all of them, as a check does, sends hardly more requests than the listing has pages.
//!
//! What is known to be there stays so for this run: objects are removed by collections only, and those exclude whoever
//! prepares or publishes. What is not known to be there is asked for each time: others publish too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cvmfs::hash::ObjectId;
use cvmfs::store::StoreError;
use futures_util::StreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use parking_lot::Mutex;

use super::Bucket;

/// Objects remembered: about 40 MB.
const REMEMBERED: usize = 1 << 20;
/// Answers of a server to one request for a listing.
const PAGE: usize = 1000;
/// Questions about a directory that are worth a page of its listing.
const WORTH_A_PAGE: usize = 8;

/// Objects that are known to be there.
#[derive(Debug)]
pub struct Presence {
    bucket: Arc<Bucket>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    objects: HashSet<ObjectId>,
    directories: HashMap<u8, Directory>,
}

/// How far a directory is listed.
#[derive(Debug, Default)]
struct Directory {
    asked: usize,
    pages: usize,
    /// The last key listed; none before the first page.
    until: Option<Path>,
    complete: bool,
}

impl Presence {
    pub fn new(bucket: Arc<Bucket>) -> Presence {
        Presence { bucket, known: Mutex::default() }
    }

    /// Whether it is known to be there.
    pub fn knows(&self, id: ObjectId) -> bool {
        self.known.lock().objects.contains(&id)
    }

    /// It is there now.
    pub fn learn(&self, id: ObjectId) {
        let mut known = self.known.lock();
        if known.objects.len() < REMEMBERED {
            known.objects.insert(id);
        }
    }

    /// It is not there any more.
    pub fn forget(&self, id: ObjectId) {
        self.known.lock().objects.remove(&id);
    }

    /// Whether it is there, asking if need be.
    pub fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        if self.knows(id) {
            return Ok(true);
        }
        if let Some(until) = self.due(id) {
            self.list(id, until)?;
            if self.knows(id) {
                return Ok(true);
            }
        }
        match self.bucket.wait(self.bucket.objects.head(&self.bucket.key(id))) {
            Ok(_) => {
                self.learn(id);
                Ok(true)
            }
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.bucket.failed("cannot look for", id)(e)),
        }
    }

    /// Counts a question; gives where the next page begins if it is due.
    fn due(&self, id: ObjectId) -> Option<Option<Path>> {
        let mut known = self.known.lock();
        let room = known.objects.len() + PAGE <= REMEMBERED;
        let directory = known.directories.entry(id.hash.digest[0]).or_default();
        directory.asked += 1;
        let due = room && !directory.complete && directory.asked > WORTH_A_PAGE * (directory.pages + 1);
        due.then(|| {
            directory.pages += 1;
            directory.until.clone()
        })
    }

    fn list(&self, id: ObjectId, until: Option<Path>) -> Result<(), StoreError> {
        let name = format!("{:02x}", id.hash.digest[0]);
        let directory = self.bucket.below(&format!("data/{name}"));
        let objects = &self.bucket.objects;
        let listing = match &until {
            Some(until) => objects.list_with_offset(Some(&directory), until),
            None => objects.list(Some(&directory)),
        };
        let page: Vec<_> = self.bucket.wait(listing.take(PAGE).collect());
        let mut found = Vec::with_capacity(page.len());
        for object in page {
            let object = object.map_err(self.bucket.failed("cannot list", format_args!("data/{name}")))?;
            found.push(object.location);
        }
        let mut known = self.known.lock();
        let state = known.directories.entry(id.hash.digest[0]).or_default();
        state.complete = found.len() < PAGE;
        // Pages listed at the same time by two threads are the same ones; the further one stays.
        state.until = state.until.take().max(found.iter().max().cloned());
        let ids = found.iter().filter_map(|key| ObjectId::from_path_parts(&name, key.filename()?));
        known.objects.extend(ids);
        Ok(())
    }
}
