//! What happens when somebody else publishes between the beginning of a transaction and its end.
//!
//! Leases make publishers wait for each other. Where they fail (a clock that is wrong by more than a term, a publisher
//! that slept through its own, a stock tool that knows nothing of them), the manifest is replaced only if it is still the
//! one that the transaction began with. Who comes too late applies the same changes to the revision that is there now.
//! Nothing is fetched or stored again for that, and nothing of the other's work is lost.

use std::time::Duration;

use cvmfs::repository::RepositoryError;

use crate::failure::Failure;

/// Transactions begun before it is given up: others publish all the time.
const ATTEMPTS: u32 = 10;
/// Longest pause after the first attempt; doubles with each, up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Publishes, again if somebody else was faster. Each attempt begins its transaction anew.
pub fn until_first<T>(attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    until_first_after(FIRST_PAUSE, attempt)
}

fn until_first_after<T>(first_pause: Duration, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    for number in 0..ATTEMPTS - 1 {
        match attempt() {
            Err(Failure::Repository(RepositoryError::Moved { found, .. })) => {
                tracing::info!(revision = found, "somebody else published; publishing on top of it");
                // Two that collided once must not collide again in step.
                let pause = first_pause.saturating_mul(1 << number).min(LONGEST_PAUSE);
                std::thread::sleep(pause.mul_f64(fastrand::f64()));
            }
            other => return other,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved() -> Failure {
        Failure::Repository(RepositoryError::Moved { fqrn: "a.example.org".into(), expected: 1, found: 2 })
    }

    #[test]
    fn tries_again_only_when_overtaken_and_not_for_ever() {
        let run = |overtaken: u32, last: fn() -> Result<u32, Failure>| {
            let mut attempts = 0;
            let result = until_first_after(Duration::ZERO, || {
                attempts += 1;
                if attempts <= overtaken { Err(moved()) } else { last() }
            });
            (attempts, result)
        };
        for overtaken in [0, 1, ATTEMPTS - 1] {
            assert!(matches!(run(overtaken, || Ok(7)), (n, Ok(7)) if n == overtaken + 1));
        }
        let (attempts, result) = run(u32::MAX, || Ok(7));
        assert!(matches!(result, Err(Failure::Repository(RepositoryError::Moved { .. }))));
        assert_eq!(attempts, ATTEMPTS);
        assert!(matches!(run(0, || Err(Failure::Content("no".into()))), (1, Err(Failure::Content(_)))));
    }
}
