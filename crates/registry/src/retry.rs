//! What is tried again, how often, and after which pause.
//!
//! | trouble | again? | why |
//! |---|---|---|
//! | connection refused, reset, cut, silent | yes | the next try may meet a healthy server |
//! | 429, 503 with `Retry-After` | yes, after the time asked for | unless that is longer than `longest_wait` |
//! | 408, 429, 500, 502, 503, 504 | yes, back-off | overload and restarts pass |
//! | any other status, untrusted certificate, wrong digest, wrong size | no | the same question gets the same answer |
//!
//! The pause doubles from `first_delay` to `longest_delay`, with ±25 % jitter so that many clients don't return in
//! step; a `Retry-After` is never undercut, and exceeded by up to a tenth. A blob that is being streamed counts attempts *without progress*: the
//! count starts again once `progress` more bytes have arrived, so a long download survives many cuts and a server
//! that trickles a byte per connection doesn't hold us for ever.
//!
//! Values and arithmetic only; who sleeps is `transport` and `blob`.

use std::time::{Duration, SystemTime};

/// So much later than asked for at most.
const LATEST: Duration = Duration::from_secs(5);

/// When to give up and how long to wait before the next attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included; at least one is made.
    pub attempts: u32,
    /// Pause after the first failure.
    pub first_delay: Duration,
    /// The pause never grows beyond this.
    pub longest_delay: Duration,
    /// A registry that asks for a longer pause than this is given up for now.
    pub longest_wait: Duration,
    /// So many bytes of a blob count as progress.
    pub progress: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 6,
            first_delay: Duration::from_millis(500),
            longest_delay: Duration::from_secs(30),
            longest_wait: Duration::from_secs(120),
            progress: 256 * 1024,
        }
    }
}

/// What went wrong, as far as trying again depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The line failed before or within an answer.
    Line,
    /// An answer with an error status.
    Status {
        /// HTTP status
        code: u16,
        /// the pause that the server asks for
        retry_after: Option<Duration>,
    },
    /// Trying again can't help.
    Final,
}

impl RetryPolicy {
    /// The pause before the next try after `failed` failures in a row, or `None` to give up. `random` in `0.0..1.0`.
    pub fn delay(&self, failed: u32, trouble: Trouble, random: f64) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        let asked = match trouble {
            Trouble::Final => return None,
            Trouble::Line => None,
            Trouble::Status { code: 408 | 429 | 500 | 502 | 503 | 504, retry_after } => retry_after,
            Trouble::Status { .. } => return None,
        };
        if asked.is_some_and(|asked| asked > self.longest_wait) {
            return None;
        }
        let doubled = 1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX);
        let delay = self.first_delay.saturating_mul(doubled).min(self.longest_delay).mul_f64(0.75 + random / 2.0);
        // Those who were told the same time don't all return at it.
        let asked = asked.map(|asked| asked + asked.div_f64(10.0).min(LATEST).mul_f64(random));
        Some(asked.map_or(delay, |asked| asked.max(delay)))
    }
}

/// The count of failures of one call or one blob.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    failed: u32,
    gained: u64,
}

impl Attempts {
    pub(crate) fn new(policy: &RetryPolicy) -> Self {
        Self { policy: policy.clone(), failed: 0, gained: 0 }
    }

    /// Counts a failure; the pause before the next try, or `None` to give up.
    pub(crate) fn next(&mut self, trouble: Trouble) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        self.gained = 0;
        self.policy.delay(self.failed, trouble, fastrand::f64())
    }

    pub(crate) fn longest_delay(&self) -> Duration {
        self.policy.longest_delay
    }

    /// Counts bytes that were received and kept.
    pub(crate) fn progress(&mut self, bytes: u64) {
        self.gained = self.gained.saturating_add(bytes);
        if self.gained >= self.policy.progress {
            self.failed = 0;
        }
    }
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds or an HTTP date; a date in the past is zero, nonsense is nothing.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    fn status(code: u16) -> Trouble {
        Trouble::Status { code, retry_after: None }
    }

    #[test]
    fn doubles_the_pause_up_to_the_longest_and_then_gives_up() {
        let policy = RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(4),
            ..RetryPolicy::default()
        };
        let pauses: Vec<_> =
            (1..=5).map(|failed| policy.delay(failed, Trouble::Line, MIDDLE).map(|d| d.as_secs())).collect();
        assert_eq!(pauses, [Some(1), Some(2), Some(4), Some(4), None]);
    }

    #[test]
    fn keeps_jitter_within_a_quarter() {
        let policy = RetryPolicy { first_delay: Duration::from_secs(4), ..RetryPolicy::default() };
        assert_eq!(policy.delay(1, Trouble::Line, 0.0), Some(Duration::from_secs(3)));
        assert_eq!(policy.delay(1, Trouble::Line, 1.0), Some(Duration::from_secs(5)));
    }

    #[test]
    fn retries_only_what_may_pass() {
        let policy = RetryPolicy::default();
        for (trouble, again) in [
            (Trouble::Line, true),
            (status(408), true),
            (status(429), true),
            (status(500), true),
            (status(502), true),
            (status(503), true),
            (status(504), true),
            (status(400), false),
            (status(401), false),
            (status(403), false),
            (status(404), false),
            (status(416), false),
            (status(501), false),
            (Trouble::Final, false),
        ] {
            assert_eq!(policy.delay(1, trouble, MIDDLE).is_some(), again, "{trouble:?}");
        }
    }

    #[test]
    fn waits_as_long_as_asked_but_not_for_ever() {
        let policy = RetryPolicy::default();
        let asked = |seconds| Trouble::Status { code: 429, retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(policy.delay(1, asked(7), MIDDLE), Some(Duration::from_millis(7350)));
        assert_eq!(policy.delay(1, asked(7), 0.0), Some(Duration::from_secs(7)));
        assert_eq!(policy.delay(1, asked(100), 1.0), Some(Duration::from_secs(105)));
        assert_eq!(policy.delay(1, asked(0), MIDDLE), Some(Duration::from_millis(500)), "never undercuts the back-off");
        assert_eq!(policy.delay(1, asked(121), MIDDLE), None);
    }

    #[test]
    fn extreme_counts_and_delays_do_not_overflow() {
        let policy = RetryPolicy {
            attempts: u32::MAX,
            first_delay: Duration::MAX,
            longest_delay: Duration::from_secs(1),
            ..RetryPolicy::default()
        };
        assert_eq!(policy.delay(4_000_000_000, Trouble::Line, MIDDLE), Some(Duration::from_secs(1)));
    }

    #[test]
    fn counts_again_from_the_start_after_progress_only() {
        let policy = RetryPolicy { attempts: 3, progress: 100, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(&policy);
        assert!(attempts.next(Trouble::Line).is_some());
        attempts.progress(60);
        assert!(attempts.next(Trouble::Line).is_some(), "60 bytes are no progress");
        attempts.progress(60);
        attempts.progress(60);
        assert!(attempts.next(Trouble::Line).is_some());
        assert!(attempts.next(Trouble::Line).is_some());
        assert!(attempts.next(Trouble::Line).is_none());
    }

    #[test]
    fn reads_both_forms_of_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777); // Sun, 06 Nov 1994 08:49:37 GMT
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(value, now).map(|d| d.as_secs()), expected, "{value}");
        }
    }
}
