//! A bucket of tokens: one a request, so many a second. Times come in as arguments.

use std::time::Duration;

use tokio::time::Instant;

/// The slowest pace that a refusal leads to, in requests a second, unless the operator wants less.
const SLOWEST: f64 = 1.0;
/// So many successes bring the whole pace back.
const RECOVERY: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Pace {
    limit: f64,
    burst: f64,
    now: f64,
    tokens: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(per_second: f64, burst: u32, at: Instant) -> Self {
        let limit = if per_second.is_finite() { per_second.clamp(1e-3, 1e6) } else { 1e6 };
        let burst = f64::from(burst.max(1));
        Self { limit, burst, now: limit, tokens: burst, at }
    }

    fn fill(&mut self, at: Instant) {
        let passed = at.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.now).min(self.burst);
        self.at = self.at.max(at);
    }

    /// Takes a token, or says when there will be one.
    pub(super) fn take(&mut self, at: Instant) -> Result<(), Instant> {
        self.fill(at);
        // Sleeping is not exact to the nanosecond, and neither are fractions.
        if self.tokens >= 1.0 - 1e-9 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.now);
        Err(at + wait.max(Duration::from_micros(100)))
    }

    /// After a refusal: half as fast.
    pub(super) fn slow_down(&mut self) {
        self.now = (self.now / 2.0).max(SLOWEST.min(self.limit));
    }

    /// Nothing is saved up before this.
    pub(super) fn hold(&mut self, until: Instant) {
        self.tokens = 0.0;
        self.at = self.at.max(until);
    }

    /// After a success.
    pub(super) fn recover(&mut self) {
        self.now = (self.now + self.limit / RECOVERY).min(self.limit);
    }

    pub(super) fn per_second(&self) -> f64 {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_with_every_refusal_and_comes_back_with_success() {
        let mut pace = Pace::new(40.0, 5, Instant::now());
        let mut seen = Vec::new();
        for _ in 0..7 {
            pace.slow_down();
            seen.push(pace.per_second());
        }
        assert_eq!(seen, [20.0, 10.0, 5.0, 2.5, 1.25, 1.0, 1.0]);
        for _ in 0..100 {
            pace.recover();
        }
        assert!((pace.per_second() - 40.0).abs() < 1e-9);
        let mut slow = Pace::new(0.1, 1, Instant::now());
        slow.slow_down();
        assert!((slow.per_second() - 0.1).abs() < 1e-9, "never faster than the operator wants");
    }

    #[test]
    fn nonsense_is_no_panic() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let start = Instant::now();
            let mut pace = Pace::new(rate, 0, start);
            pace.take(start).unwrap();
            let _ = pace.take(start);
        }
    }
}
