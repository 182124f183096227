//! What registries say is left of their own limits (`RateLimit-Limit: 100;w=21600`, `RateLimit-Remaining: 76;w=21600`,
//! `RateLimit-Reset: 30`), and how that is made to last.
//!
//! Docker Hub counts manifests but not HEAD requests and blobs, and sends these headers with all manifests: so what is said of one class
//! of requests is kept to for that class, and HEAD requests are never held back.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::Left;

/// Below this share of the limit requests are spread over what is left of the window.
const RESERVE: u64 = 10;
/// The window of a limit that comes without one.
const WINDOW: Duration = Duration::from_secs(60);
/// No window is longer.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// What is asked for by GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Manifests,
    Blobs,
    Tags,
}

#[derive(Debug, Clone, Copy)]
struct Allowance {
    limit: u64,
    left: u64,
    window: Duration,
    noted: Instant,
    next: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Allowances([Option<Allowance>; 3]);

impl Allowances {
    /// What is known and not too old.
    fn known(&mut self, class: Class, now: Instant) -> Option<&mut Allowance> {
        let slot = &mut self.0[class as usize];
        if slot.is_some_and(|known| now.saturating_duration_since(known.noted) > known.window) {
            *slot = None;
        }
        slot.as_mut()
    }

    pub(super) fn not_before(&mut self, class: Class, now: Instant) -> Option<Instant> {
        self.known(class, now).map(|known| known.next)
    }

    /// One request is sent.
    pub(super) fn spend(&mut self, class: Class, now: Instant) {
        if let Some(known) = self.known(class, now) {
            known.next = now + known.interval();
            known.left = known.left.saturating_sub(1);
        }
    }

    /// What an answer says.
    pub(super) fn note(&mut self, class: Class, headers: &HeaderMap, now: Instant) {
        let Some((limit, left, window)) = read(headers) else { return };
        let next = self.known(class, now).map_or(now, |known| known.next);
        let mut allowance = Allowance { limit, left, window, noted: now, next };
        // The first word about a limit that is nearly used up counts at once.
        allowance.next = next.max(if left == 0 { now + allowance.interval() } else { now });
        self.0[class as usize] = Some(allowance);
    }

    /// The one with the smallest share left.
    pub(super) fn scarcest(&mut self, now: Instant) -> Option<Left> {
        let known = [Class::Manifests, Class::Blobs, Class::Tags].into_iter();
        let known: Vec<Allowance> = known.filter_map(|class| self.known(class, now).copied()).collect();
        let scarcest = known.into_iter().min_by(|a, b| a.share().total_cmp(&b.share()))?;
        Some(Left { requests: scarcest.left, limit: scarcest.limit, seconds: scarcest.window.as_secs() })
    }
}

impl Allowance {
    fn share(&self) -> f64 {
        self.left as f64 / self.limit.max(1) as f64
    }

    /// Time between two requests.
    fn interval(&self) -> Duration {
        if self.left > (self.limit / RESERVE).max(1) {
            return Duration::ZERO;
        }
        let parts = if self.left == 0 { self.limit } else { self.left };
        self.window / parts.clamp(1, u64::from(u32::MAX)) as u32
    }
}

/// Limit, what is left of it, and the window.
fn read(headers: &HeaderMap) -> Option<(u64, u64, Duration)> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let (limit, window) = item(text("ratelimit-limit")?)?;
    let (left, same) = item(text("ratelimit-remaining")?)?;
    let window = window.or(same).unwrap_or(WINDOW);
    let reset = text("ratelimit-reset").and_then(|reset| reset.trim().parse().ok()).map(Duration::from_secs);
    let window = reset.map_or(window, |reset| reset.min(window).max(Duration::from_secs(1)));
    (limit > 0).then_some((limit, left.min(limit), window.min(LONGEST_WINDOW)))
}

/// `100;w=21600`: the number and the window, of the first item of a list.
fn item(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split(',').next()?.split(';').map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.trim().parse().ok());
    Some((number, window.map(Duration::from_secs)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn reads_what_registries_write() {
        for (pairs, expected) in [
            (&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "76;w=21600")][..], Some((100, 76, 21600))),
            (&[("ratelimit-limit", "10, 10;w=1"), ("ratelimit-remaining", "3")], Some((10, 3, 60))),
            (
                &[("ratelimit-limit", "10;w=600"), ("ratelimit-remaining", "3"), ("ratelimit-reset", "30")],
                Some((10, 3, 30)),
            ),
            (&[("ratelimit-limit", "10"), ("ratelimit-remaining", "99")], Some((10, 10, 60))),
            (&[("ratelimit-limit", "10;w=99999999999"), ("ratelimit-remaining", "1")], Some((10, 1, 86400))),
            (&[("ratelimit-limit", "0"), ("ratelimit-remaining", "0")], None),
            (&[("ratelimit-limit", "many"), ("ratelimit-remaining", "1")], None),
            (&[("ratelimit-remaining", "1")], None),
        ] {
            let found = read(&headers(pairs)).map(|(limit, left, window)| (limit, left, window.as_secs()));
            assert_eq!(found, expected, "{pairs:?}");
        }
    }

    #[test]
    fn nothing_left_is_a_wait_of_one_share() {
        let (mut allowances, now) = (Allowances::default(), Instant::now());
        allowances.note(Class::Tags, &headers(&[("ratelimit-limit", "60;w=60"), ("ratelimit-remaining", "0")]), now);
        assert_eq!(allowances.not_before(Class::Tags, now), Some(now + Duration::from_secs(1)));
        assert_eq!(allowances.not_before(Class::Blobs, now), None);
    }
}
