//! What was fetched before anybody asked for it, and whether somebody did then.
//!
//! Sizes are those of plain content, as it lies in the cache. An object leaves the ledger when somebody opens it;
//! what is left is unused so far. Memory is bounded: beyond some hundred thousand objects the oldest are forgotten,
//! and stay counted as unused.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::cache::CacheKey;
use crate::stats::Counter;

const MAX_OBJECTS: usize = 1 << 17;

/// Counts objects and their bytes.
#[derive(Debug, Default)]
pub struct Tally {
    /// Objects.
    pub objects: Counter,
    /// Their plain bytes.
    pub bytes: Counter,
}

impl Tally {
    fn add(&self, bytes: u64) {
        self.objects.add(1);
        self.bytes.add(bytes);
    }
}

/// The account of what is fetched ahead.
#[derive(Debug, Default)]
pub struct Ledger {
    unused: Mutex<Unused>,
    /// Length of the list, so that readers look into it only when there is something.
    length: AtomicUsize,
    /// Fetched ahead in all.
    pub fetched: Tally,
    /// Of these, asked for since.
    pub used: Tally,
    /// Of what was fetched ahead, what was merely guessed.
    pub guessed: Tally,
    /// Of these, asked for since.
    pub guessed_right: Tally,
    /// What somebody asked for that was not in the cache: fetched then, or fetched ahead.
    pub demanded: Tally,
}

#[derive(Debug, Default)]
struct Unused {
    sizes: HashMap<CacheKey, (u64, bool)>,
    order: VecDeque<CacheKey>,
}

impl Ledger {
    /// An object was fetched ahead, and nobody has asked for it yet.
    pub(super) fn enter(&self, key: CacheKey, bytes: u64, guessed: bool) {
        self.fetched(bytes, guessed);
        let mut unused = self.unused.lock();
        if unused.sizes.insert(key, (bytes, guessed)).is_none() {
            unused.order.push_back(key);
        }
        // What was used is still in the order; it goes when its turn comes, or when it is most of it.
        if unused.order.len() > MAX_OBJECTS {
            let Unused { sizes, order } = &mut *unused;
            order.retain(|key| sizes.contains_key(key));
            while order.len() > MAX_OBJECTS * 3 / 4 {
                order.pop_front().map(|oldest| sizes.remove(&oldest));
            }
        }
        self.length.store(unused.sizes.len(), Ordering::Release);
    }

    /// Somebody asks for an object that is here; if it had been fetched ahead and was not used before,
    /// whether it was guessed.
    pub(super) fn claim(&self, key: CacheKey) -> Option<bool> {
        if self.length.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut unused = self.unused.lock();
        let (bytes, guessed) = unused.sizes.remove(&key)?;
        self.length.store(unused.sizes.len(), Ordering::Release);
        self.used(bytes, guessed);
        Some(guessed)
    }

    /// An object that was being fetched ahead was asked for before it was there.
    pub(super) fn claimed_early(&self, bytes: u64, guessed: bool) {
        self.fetched(bytes, guessed);
        self.used(bytes, guessed);
    }

    fn fetched(&self, bytes: u64, guessed: bool) {
        self.fetched.add(bytes);
        if guessed {
            self.guessed.add(bytes);
        }
    }

    fn used(&self, bytes: u64, guessed: bool) {
        self.used.add(bytes);
        self.demanded.add(bytes);
        if guessed {
            self.guessed_right.add(bytes);
        }
    }

    /// An object was fetched because somebody asked for it.
    pub(super) fn demanded(&self, bytes: u64) {
        self.demanded.add(bytes);
    }

    /// Bytes that were fetched ahead and that nobody has asked for so far.
    pub fn unused_bytes(&self) -> u64 {
        self.fetched.bytes.get().saturating_sub(self.used.bytes.get())
    }

    /// The part of these that was merely guessed.
    pub fn unused_guesses(&self) -> u64 {
        self.guessed.bytes.get().saturating_sub(self.guessed_right.bytes.get())
    }

    /// Objects that were guessed, and how many of them were asked for since.
    pub fn guesses(&self) -> (u64, u64) {
        (self.guessed.objects.get(), self.guessed_right.objects.get())
    }
}

#[cfg(test)]
mod tests {
    use cvmfs::hash::{Algorithm, ContentHash};
    use cvmfs::object::Compression;

    use super::*;

    fn key(number: u32) -> CacheKey {
        let hash = ContentHash::of(Algorithm::Sha1, &number.to_le_bytes());
        CacheKey { hash, form: crate::cache::Form::Stored(Compression::Zlib) }
    }

    #[test]
    fn what_is_asked_for_leaves_the_unused() {
        let ledger = Ledger::default();
        assert_eq!(ledger.claim(key(1)), None);
        ledger.enter(key(1), 100, true);
        ledger.enter(key(2), 10, false);
        assert_eq!(ledger.unused_guesses(), 100);
        ledger.demanded(7);
        assert_eq!(ledger.unused_bytes(), 110);
        assert_eq!((ledger.claim(key(1)), ledger.claim(key(1)), ledger.claim(key(2))), (Some(true), None, Some(false)));
        ledger.enter(key(3), 10, false);
        ledger.claimed_early(1000, true);
        assert_eq!((ledger.guesses(), ledger.unused_guesses()), ((2, 2), 0));
        assert_eq!((ledger.unused_bytes(), ledger.fetched.bytes.get(), ledger.used.objects.get()), (10, 1120, 3));
        assert_eq!(ledger.demanded.bytes.get(), 1117);
    }

    #[test]
    fn memory_is_bounded() {
        let ledger = Ledger::default();
        let many = MAX_OBJECTS as u32 + 1000;
        (0..many).for_each(|number| ledger.enter(key(number), 1, false));
        let unused = ledger.unused.lock();
        assert!(unused.order.len() <= MAX_OBJECTS && unused.sizes.len() <= MAX_OBJECTS);
        drop(unused);
        assert_eq!((ledger.claim(key(0)), ledger.claim(key(many - 1))), (None, Some(false)));
        assert_eq!(ledger.unused_bytes(), u64::from(many) - 1);
    }
}
