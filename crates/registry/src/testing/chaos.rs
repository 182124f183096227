//! Faults at random, the same ones for the same seed and order of requests.

use std::time::{Duration, SystemTime};

use super::fault::Action;

#[derive(Debug)]
pub(super) struct Chaos {
    random: fastrand::Rng,
    percent: u8,
}

impl Chaos {
    pub(super) fn new(seed: u64, percent: u8) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), percent }
    }

    /// What befalls the next request.
    pub(super) fn pick(&mut self) -> Option<Action> {
        if self.random.u8(..100) >= self.percent {
            return None;
        }
        let status = |code, retry_after: Option<String>| Action::Status { code, retry_after, body: String::new() };
        Some(match self.random.u8(..10) {
            0 => status(429, None),
            1 => status(429, Some("0".to_owned())),
            2 => status(429, Some(httpdate::fmt_http_date(SystemTime::now()))),
            3 => status(401, None),
            4 => status(500, None),
            5 => status(503, None),
            6 => Action::CutAfter(self.random.usize(..20_000)),
            7 => Action::Corrupt,
            8 => Action::Slow { bytes: self.random.usize(1000..20_000), pause: Duration::from_millis(2) },
            _ => Action::IgnoreRange,
        })
    }
}
