//! Looks at every object of the storage, bucket by bucket.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::SystemTime;

use super::GcError;
use super::marks::Marked;
use crate::hash::{ObjectId, ObjectKind};
use crate::store::{Listed, ListedKind, Listing};

/// Objects removed before somebody is asked again whether to go on.
const STRIDE: usize = 256;

/// Whether objects are removed or counted only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Change nothing.
    Count,
    /// Remove for good.
    Remove,
}

/// Objects, and the bytes stored for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Objects.
    pub objects: u64,
    /// Stored bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }

    fn merge(&mut self, other: Count) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// What a sweep found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swept {
    /// All objects that were looked at.
    pub seen: Count,
    /// Not referred to, and too young to go; counted in `seen` too.
    pub young: Count,
    /// Removed, or to be removed, by kind.
    pub removed: BTreeMap<ObjectKind, Count>,
    /// Files below `data/` that are no objects; they stay.
    pub strangers: u64,
}

impl Swept {
    /// Removed objects of all kinds.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        self.removed.values().for_each(|count| total.merge(*count));
        total
    }

    fn merge(&mut self, other: Swept) {
        self.seen.merge(other.seen);
        self.young.merge(other.young);
        self.strangers += other.strangers;
        for (kind, count) in other.removed {
            self.removed.entry(kind).or_default().merge(count);
        }
    }
}

pub(super) fn sweep(
    store: &dyn Listing,
    marked: &(dyn Fn(u8) -> Result<Marked, GcError> + Sync),
    young_since: SystemTime,
    mode: Mode,
    threads: usize,
    may_go_on: &(dyn Fn() -> Result<(), GcError> + Sync),
) -> Result<Swept, GcError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut swept = Swept::default();
        while let Ok(bucket) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
            may_go_on()?;
            let bucket = Bucket { store, bucket, young_since, mode };
            if let Err(error) = bucket.sweep(&marked(bucket.bucket)?, &mut swept, may_go_on) {
                // The others stop at their next bucket.
                next.store(usize::from(u8::MAX) + 1, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(swept)
    };
    let parts: Vec<Result<Swept, GcError>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|w| w.join().expect("a sweep does not panic")).collect()
    });
    let mut all = Swept::default();
    for part in parts {
        all.merge(part?);
    }
    Ok(all)
}

struct Bucket<'a> {
    store: &'a dyn Listing,
    bucket: u8,
    young_since: SystemTime,
    mode: Mode,
}

impl Bucket<'_> {
    fn sweep(
        &self,
        marked: &Marked,
        swept: &mut Swept,
        may_go_on: &(dyn Fn() -> Result<(), GcError> + Sync),
    ) -> Result<(), GcError> {
        let name = format!("{:02x}", self.bucket);
        let mut condemned: Vec<(ObjectId, u64)> = Vec::new();
        self.store.list(Some(&name), &mut |Listed { name: file, kind, size, modified }| {
            let id = ObjectId::from_path_parts(&name, file).filter(|_| kind == ListedKind::File);
            let Some(id) = id else {
                swept.strangers += 1;
                return;
            };
            swept.seen.add(size);
            if marked.contains(id) {
                return;
            }
            // What has no time, or one that is yet to come, might be of this moment.
            if modified.is_none_or(|time| time > self.young_since) {
                swept.young.add(size);
            } else {
                condemned.push((id, size));
            }
        })?;
        for (n, (id, size)) in condemned.into_iter().enumerate() {
            if self.mode == Mode::Remove {
                if n % STRIDE == 0 {
                    may_go_on()?;
                }
                self.store.remove(id)?;
            }
            swept.removed.entry(id.kind).or_default().add(size);
        }
        Ok(())
    }
}
