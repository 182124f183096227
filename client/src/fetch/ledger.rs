//! What was fetched before anybody asked for it, and whether somebody did then.
//!
//! Sizes are those of plain content, as it lies in the cache. An object leaves the ledger when somebody opens it;
//! what is left is unused so far. Memory is bounded: beyond some hundred thousand objects the oldest are forgotten,
//! and stay counted as unused.
//!
//! A guess counts as unused from the moment it is allowed, and once: that it is being fetched becomes that it was
//! fetched in one step, so what is allowed does not depend on how many are fetched at the same time.

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
    /// Bytes of guesses that are being fetched.
    guessing: u64,
}

/// Leave to fetch what nobody has asked for; given back when it is dropped.
#[derive(Debug)]
pub struct Guess<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl Guess<'_> {
    /// It is fetched, and counted as that from now on.
    fn end(self, unused: &mut Unused) {
        unused.guessing -= self.bytes;
        std::mem::forget(self);
    }
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        self.ledger.unused.lock().guessing -= self.bytes;
    }
}

impl Ledger {
    /// Leave to fetch `bytes` that nobody has asked for, unless more than `waste` bytes beyond what was asked for would be
    /// unused then.
    pub fn guess(&self, bytes: u64, waste: u64) -> Option<Guess<'_>> {
        let mut unused = self.unused.lock();
        let allowed = waste.saturating_add(self.demanded.bytes.get());
        let guessing = unused.guessing.checked_add(bytes)?;
        if self.unused_guesses().saturating_add(guessing) > allowed {
            return None;
        }
        unused.guessing = guessing;
        Some(Guess { ledger: self, bytes })
    }

    /// An object was fetched ahead, and nobody has asked for it yet.
    pub(super) fn enter(&self, key: CacheKey, bytes: u64, guess: Option<Guess<'_>>) {
        let guessed = guess.is_some();
        let mut unused = self.unused.lock();
        self.fetched(bytes, guess, &mut unused);
        if unused.sizes.insert(key, (bytes, guessed)).is_none() {
            unused.order.push_back(key);
        }
        // What was used is still in the order; it goes when its turn comes, or when it is most of it.
        if unused.order.len() > MAX_OBJECTS {
            let Unused { sizes, order, .. } = &mut *unused;
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
    pub(super) fn claimed_early(&self, bytes: u64, guess: Option<Guess<'_>>) {
        let guessed = guess.is_some();
        self.fetched(bytes, guess, &mut self.unused.lock());
        self.used(bytes, guessed);
    }

    fn fetched(&self, bytes: u64, guess: Option<Guess<'_>>, unused: &mut Unused) {
        self.fetched.add(bytes);
        if let Some(guess) = guess {
            self.guessed.add(bytes);
            guess.end(unused);
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
        ledger.enter(key(1), 100, ledger.guess(100, 100));
        ledger.enter(key(2), 10, None);
        assert_eq!(ledger.unused_guesses(), 100);
        ledger.demanded(7);
        assert_eq!(ledger.unused_bytes(), 110);
        assert_eq!((ledger.claim(key(1)), ledger.claim(key(1)), ledger.claim(key(2))), (Some(true), None, Some(false)));
        ledger.enter(key(3), 10, None);
        ledger.claimed_early(1000, ledger.guess(1000, 1000));
        assert_eq!((ledger.guesses(), ledger.unused_guesses()), ((2, 2), 0));
        assert_eq!((ledger.unused_bytes(), ledger.fetched.bytes.get(), ledger.used.objects.get()), (10, 1120, 3));
        assert_eq!(ledger.demanded.bytes.get(), 1117);
    }

    #[test]
    fn guesses_are_allowed_as_long_as_few_are_unused_and_each_counts_once() {
        let ledger = Ledger::default();
        // One that is being fetched, one that was, and one that was given up.
        let first = ledger.guess(40, 100);
        ledger.enter(key(1), 40, ledger.guess(40, 100));
        drop(ledger.guess(20, 100).unwrap());
        assert!(ledger.guess(21, 100).is_none() && ledger.guess(u64::MAX, u64::MAX).is_none());
        ledger.enter(key(2), 40, first);
        assert!(ledger.guess(21, 100).is_none() && ledger.guess(20, 100).is_some());
        // What is asked for allows as much more, and is unused no longer.
        ledger.claim(key(1)).unwrap();
        assert!(ledger.guess(101, 100).is_none() && ledger.guess(100, 100).is_some());
    }

    #[test]
    fn memory_is_bounded() {
        let ledger = Ledger::default();
        let many = MAX_OBJECTS as u32 + 1000;
        (0..many).for_each(|number| ledger.enter(key(number), 1, None));
        let unused = ledger.unused.lock();
        assert!(unused.order.len() <= MAX_OBJECTS && unused.sizes.len() <= MAX_OBJECTS);
        drop(unused);
        assert_eq!((ledger.claim(key(0)), ledger.claim(key(many - 1))), (None, Some(false)));
        assert_eq!(ledger.unused_bytes(), u64::from(many) - 1);
    }
}
