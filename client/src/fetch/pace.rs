//! How long servers take to answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Plain bytes of an object that takes no time on the line.
pub(super) const SMALL: u64 = 64 << 10;

/// Time from a request to the end of a small answer. It falls at once and rises slowly: a machine that is busy, or a line
/// that is full, does not look like a long way.
#[derive(Debug, Default)]
pub struct Pace {
    /// In µs; 0 as long as nothing was asked for.
    micros: AtomicU64,
}

impl Pace {
    /// A small answer took so long.
    pub(super) fn answered(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let known = self.micros.load(Ordering::Relaxed);
        let rise = took.saturating_sub(known) / 32;
        let next = if known == 0 || took < known { took } else { known.saturating_add(rise) };
        // Of two at the same time one may be lost.
        self.micros.store(next, Ordering::Relaxed);
    }

    /// Whether answers are known to take less than this.
    pub fn is_below(&self, limit: Duration) -> bool {
        let known = self.micros.load(Ordering::Relaxed);
        known > 0 && Duration::from_micros(known) < limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_falls_at_once_and_rises_slowly() {
        let (pace, limit) = (Pace::default(), Duration::from_millis(3));
        assert!(!pace.is_below(limit) && !pace.is_below(Duration::ZERO));
        pace.answered(Duration::from_millis(20));
        assert!(!pace.is_below(limit));
        pace.answered(Duration::from_micros(500));
        assert!(pace.is_below(limit) && !pace.is_below(Duration::ZERO));
        (0..4).for_each(|_| pace.answered(Duration::from_millis(20)));
        assert!(pace.is_below(limit));
        (0..100).for_each(|_| pace.answered(Duration::from_millis(20)));
        assert!(!pace.is_below(limit));
        pace.answered(Duration::ZERO);
        pace.answered(Duration::MAX);
        assert!(!pace.is_below(limit));
    }
}
