//! Slows down whoever asks again and again for what cannot be had.
//!
//! Facts: the first failure after a quiet time costs nothing; each further one within ten seconds waits for a
//! random time of a range that doubles up to two seconds.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::random_below;

const FIRST: Duration = Duration::from_millis(32);
const LONGEST: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(10);

/// Failures one after another.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the last one was, and the range of its pause.
    last: Mutex<Option<(Instant, Duration)>>,
}

impl Throttle {
    /// Something failed: how long to wait before saying so.
    pub fn failed(&self, now: Instant) -> Duration {
        let mut last = self.last.lock();
        let range = match *last {
            Some((at, range)) if now.saturating_duration_since(at) < QUIET => (range * 2).clamp(FIRST, LONGEST),
            _ => Duration::ZERO,
        };
        *last = Some((now, range));
        Duration::from_millis(random_below(range.as_millis() as usize + 1) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_and_end_with_quiet() {
        let (throttle, mut now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.failed(now), Duration::ZERO);
        let mut range = FIRST;
        for _ in 0..12 {
            now += Duration::from_secs(1);
            assert!(throttle.failed(now) <= range);
            assert_eq!(throttle.last.lock().unwrap().1, range);
            range = (range * 2).min(LONGEST);
        }
        assert_eq!(range, LONGEST);
        assert_eq!(throttle.failed(now + QUIET), Duration::ZERO);
    }
}
