//! How often one registry is asked, by everything in the process that asks it.
//!
//! ```text
//! request ─▶ in flight < limit? ─▶ paused? ─▶ a token of the bucket? ─▶ enough left? ─▶ sent
//!                                    ▲            ▲                       ▲
//!             429, Retry-After ──────┘────────────┘   RateLimit headers ──┘
//! ```
//!
//! Invariants
//! - In any span of time no more requests are admitted than [`Limits::burst`] and [`Limits::per_second`] of it.
//! - A pause that a registry asks for holds all requests to it, not the one that was told. One that is longer than the caller waits
//!   refuses them, without a request.
//! - After a pause requests begin one by one, at half the pace of before; success by success the pace comes back.
//! - A request is in flight until the head of its answer: blobs that stream don't count.

mod allowance;
mod pace;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

use self::allowance::Allowances;
pub(crate) use self::allowance::Class;
use self::pace::Pace;

/// No registry is believed to be closed for longer, whatever it says.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How long a mirror that failed is passed over at first.
const FIRST_REST: Duration = Duration::from_secs(30);
/// How long at most.
const LONGEST_REST: Duration = Duration::from_secs(600);

/// How often a registry may be asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Requests in flight at once.
    pub in_flight: usize,
    /// Requests a second, on average.
    pub per_second: f64,
    /// Requests that may be sent at once after a silence.
    pub burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_flight: 16, per_second: 100.0, burst: 200 }
    }
}

/// What a budget has come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `scheme://host[:port]` of the registry, or of a mirror
    pub registry: String,
    /// requests sent so far
    pub requests: u64,
    /// how often it asked for a pause
    pub throttled: u64,
    /// requests in flight
    pub in_flight: usize,
    /// requests that wait for their turn
    pub waiting: usize,
    /// requests a second that are sent now
    pub per_second: f64,
    /// seconds until it is asked again, if it asked for a pause
    pub paused: Option<u64>,
    /// seconds until it is asked again, if it is a mirror that failed
    pub passed_over: Option<u64>,
    /// what the registry says is left
    pub left: Option<Left>,
}

/// What a registry says is left of its own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// requests left
    pub requests: u64,
    /// of so many
    pub limit: u64,
    /// in so many seconds
    pub seconds: u64,
}

/// The budgets of all registries. Clones share them, so that two clients keep one budget together.
#[derive(Debug, Clone, Default)]
pub struct Budgets(Arc<Mutex<BTreeMap<String, Arc<Budget>>>>);

impl Budgets {
    /// The budget of a registry; the first who asks says how large it is.
    pub(crate) fn of(&self, origin: &str, limits: Limits) -> Arc<Budget> {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.entry(origin.to_owned()).or_insert_with(|| Arc::new(Budget::new(limits))).clone()
    }

    /// What all of them have come to.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.iter().map(|(registry, budget)| budget.snapshot(registry)).collect()
    }
}

/// The budget of one registry.
#[derive(Debug)]
pub(crate) struct Budget {
    slots: usize,
    in_flight: Semaphore,
    waiting: AtomicUsize,
    requests: AtomicU64,
    throttled: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    allowances: Allowances,
    paused: Option<Instant>,
    rest: Option<Rest>,
}

/// A mirror that failed.
#[derive(Debug, Clone, Copy)]
struct Rest {
    until: Instant,
    failures: u32,
}

/// The right to send one request.
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Budget {
    fn new(limits: Limits) -> Self {
        let slots = limits.in_flight.clamp(1, Semaphore::MAX_PERMITS);
        let state = State {
            pace: Pace::new(limits.per_second, limits.burst, Instant::now()),
            allowances: Allowances::default(),
            paused: None,
            rest: None,
        };
        Self {
            slots,
            in_flight: Semaphore::new(slots),
            waiting: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a request. Refuses, with the time to wait, what the registry would not hear for longer than `patience`.
    pub(crate) async fn admit(&self, class: Option<Class>, patience: Duration) -> Result<Admission<'_>, Duration> {
        let waiting = Waiting::new(&self.waiting);
        let permit = self.in_flight.acquire().await.ok();
        loop {
            let until = self.next(class, patience, Instant::now())?;
            match until {
                Some(until) => sleep_until(until).await,
                None => break,
            }
        }
        drop(waiting);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Ok(Admission { _permit: permit })
    }

    /// Takes what a request costs, or says when to come back.
    fn next(&self, class: Option<Class>, patience: Duration, now: Instant) -> Result<Option<Instant>, Duration> {
        let mut state = self.state();
        let said = [state.paused, class.and_then(|class| state.allowances.not_before(class, now))];
        if let Some(until) = said.into_iter().flatten().max().filter(|until| *until > now) {
            let wait = until - now;
            return if wait > patience { Err(wait) } else { Ok(Some(until)) };
        }
        if let Err(until) = state.pace.take(now) {
            return Ok(Some(until));
        }
        if let Some(class) = class {
            state.allowances.spend(class, now);
        }
        Ok(None)
    }

    /// The registry asks for a pause.
    pub(crate) fn pause(&self, wait: Duration) {
        self.throttled.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let until = now + wait.min(LONGEST_PAUSE);
        let mut state = self.state();
        if state.paused.is_none_or(|paused| paused <= now) {
            state.pace.slow_down();
        }
        let until = state.paused.map_or(until, |other| other.max(until));
        state.paused = Some(until);
        state.pace.hold(until);
    }

    /// An answer came that is no refusal.
    pub(crate) fn answered(&self, class: Option<Class>, headers: &HeaderMap) {
        let mut state = self.state();
        state.pace.recover();
        if let Some(class) = class {
            state.allowances.note(class, headers, Instant::now());
        }
    }

    /// A mirror failed: for how long it is passed over.
    pub(crate) fn fail(&self) -> Duration {
        let mut state = self.state();
        let failures = state.rest.map_or(0, |rest| rest.failures);
        let rest = FIRST_REST.saturating_mul(1 << failures.min(16)).min(LONGEST_REST);
        state.rest = Some(Rest { until: Instant::now() + rest, failures: failures.saturating_add(1) });
        rest
    }

    /// A mirror was of use.
    pub(crate) fn recovered(&self) {
        self.state().rest = None;
    }

    /// Is this a mirror to be passed over?
    pub(crate) fn is_passed_over(&self) -> bool {
        self.state().rest.is_some_and(|rest| rest.until > Instant::now())
    }

    fn snapshot(&self, registry: &str) -> Snapshot {
        let now = Instant::now();
        let mut state = self.state();
        let left = |until: Instant| (until > now).then(|| (until - now).as_secs_f64().ceil() as u64);
        Snapshot {
            registry: registry.to_owned(),
            requests: self.requests.load(Ordering::Relaxed),
            throttled: self.throttled.load(Ordering::Relaxed),
            in_flight: self.slots - self.in_flight.available_permits(),
            waiting: self.waiting.load(Ordering::Relaxed),
            per_second: state.pace.per_second(),
            paused: state.paused.and_then(left),
            passed_over: state.rest.and_then(|rest| left(rest.until)),
            left: state.allowances.scarcest(now),
        }
    }
}

/// Counts one who waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn budget(limits: Limits) -> Arc<Budget> {
        Budgets::default().of("https://r", limits)
    }

    async fn admitted(budget: &Budget, class: Option<Class>) -> Result<(), Duration> {
        budget.admit(class, PATIENCE).await.map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everybody_and_the_longest_counts() {
        let budget = budget(Limits::default());
        let start = Instant::now();
        admitted(&budget, None).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        budget.pause(Duration::from_secs(7));
        budget.pause(Duration::from_secs(3));
        admitted(&budget, None).await.unwrap();
        let waited = start.elapsed().as_secs_f64();
        assert!((7.0..7.1).contains(&waited), "{waited}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_refused_at_once_and_nobody_waits_for_ever() {
        let budget = budget(Limits::default());
        budget.pause(Duration::from_secs(600));
        assert_eq!(admitted(&budget, None).await, Err(Duration::from_secs(600)));
        assert_eq!(budget.snapshot("r").paused, Some(600));
        budget.pause(Duration::MAX);
        assert_eq!(admitted(&budget, None).await, Err(LONGEST_PAUSE));
        assert_eq!(budget.snapshot("r").requests, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_span_has_more_requests_than_its_share() {
        let budget = budget(Limits { in_flight: 4, per_second: 10.0, burst: 5 });
        let start = Instant::now();
        let mut at = Vec::new();
        for turn in 0..60 {
            if turn == 20 {
                budget.pause(Duration::from_secs(3));
            }
            admitted(&budget, None).await.unwrap();
            budget.answered(None, &HeaderMap::new());
            at.push(start.elapsed().as_secs_f64());
        }
        for (first, from) in at.iter().enumerate() {
            for (last, to) in at.iter().enumerate().skip(first) {
                let (count, share) = (last - first + 1, 5.0 + 10.0 * (to - from) + 1e-6);
                assert!(count as f64 <= share, "{count} requests in {} s", to - from);
            }
        }
        // Behind the pause they come one by one, slowly at first.
        assert!(at[21] - at[20] > 0.15, "{:?}", &at[18..24]);
        assert!(at[59] - at[58] < 0.15, "{:?}", &at[50..]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_tenth_of_what_is_left_is_spread_over_its_window() {
        let budget = budget(Limits::default());
        let said = |left: &str| {
            let pairs = [("ratelimit-limit", "100;w=600"), ("ratelimit-remaining", left)];
            let pairs = pairs.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()));
            HeaderMap::from_iter::<[(http::HeaderName, HeaderValue); 2]>(pairs)
        };
        let documents = Some(Class::Manifests);
        budget.answered(documents, &said("11;w=600"));
        let start = Instant::now();
        admitted(&budget, documents).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        budget.answered(documents, &said("10;w=600"));
        admitted(&budget, documents).await.unwrap();
        admitted(&budget, documents).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(60), "{:?}", start.elapsed());
        // Others are not slowed: the registry did not say so of them.
        let before = Instant::now();
        admitted(&budget, Some(Class::Blobs)).await.unwrap();
        admitted(&budget, None).await.unwrap();
        assert_eq!(before.elapsed(), Duration::ZERO);
        budget.answered(documents, &said("1;w=600"));
        admitted(&budget, documents).await.unwrap();
        assert!(admitted(&budget, documents).await.is_err(), "the next one is ten minutes away");
        assert_eq!(budget.snapshot("r").left.unwrap().limit, 100);
        tokio::time::sleep(Duration::from_secs(601)).await;
        assert_eq!(budget.snapshot("r").left, None);
        admitted(&budget, documents).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_fails_again_rests_longer() {
        let budget = budget(Limits::default());
        assert!(!budget.is_passed_over());
        assert_eq!([0; 6].map(|_| budget.fail().as_secs()), [30, 60, 120, 240, 480, 600]);
        assert!(budget.is_passed_over());
        assert_eq!(budget.snapshot("r").passed_over, Some(600));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!budget.is_passed_over());
        budget.recovered();
        assert_eq!(budget.fail(), FIRST_REST);
    }

    #[tokio::test]
    async fn those_in_flight_are_counted_and_those_who_gave_up_are_not() {
        let budgets = Budgets::default();
        let budget = budgets.of("https://r", Limits { in_flight: 1, ..Limits::default() });
        let first = budget.admit(None, PATIENCE).await.unwrap();
        let shown = || budgets.clone().snapshot().remove(0);
        assert_eq!((shown().in_flight, shown().requests), (1, 1));
        let second = tokio::time::timeout(Duration::ZERO, budget.admit(None, PATIENCE)).await;
        assert!(second.is_err());
        assert_eq!(shown().waiting, 0);
        drop(first);
        assert_eq!(shown().in_flight, 0);
    }
}
