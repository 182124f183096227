//! The time that records of images state, and from which grace is counted.
//!
//! Trust, leases and ages of objects have nothing to do with it: they go by the clock of the system.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use time::UtcDateTime;

/// A clock.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// That of the system.
    #[default]
    System,
    /// One that somebody sets: Unix seconds.
    Set(Arc<AtomicI64>),
}

impl Clock {
    /// Now.
    pub fn now(&self) -> UtcDateTime {
        match self {
            Clock::System => UtcDateTime::now(),
            Clock::Set(seconds) => {
                let seconds = seconds.load(Ordering::Relaxed);
                UtcDateTime::from_unix_timestamp(seconds).unwrap_or(UtcDateTime::UNIX_EPOCH)
            }
        }
    }
}
