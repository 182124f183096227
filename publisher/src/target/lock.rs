//! One publish at a time.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::lease::LeaseGuard;
use crate::failure::Failure;

/// How long a publish waits for another one to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Held while a publish is under way.
#[derive(Debug)]
pub struct Lock {
    /// For all machines that share the storage; given back first.
    pub(super) lease: LeaseGuard,
    /// For this machine.
    #[expect(dead_code, reason = "held for its Drop")]
    pub(super) file: FileLock,
}

impl Lock {
    /// Whether others may be at work meanwhile.
    pub fn is_lost(&self) -> bool {
        self.lease.is_lost()
    }
}

/// The lock of this machine; goes with the process.
#[derive(Debug)]
pub(super) struct FileLock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

impl FileLock {
    /// Takes the lock in the state directory of a repository; waits for others.
    pub(super) fn take(fqrn: &str, state: &Path) -> Result<FileLock, Failure> {
        let path = state.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Failure::io("open the lock file", &path))?;
        let start = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(FileLock(lock)),
                Err((_, Errno::EWOULDBLOCK)) if start.elapsed() > PATIENCE => {
                    return Err(Failure::Locked { fqrn: fqrn.to_owned(), path });
                }
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err((_, e)) => return Err(Failure::io("lock", &path)(e.into())),
            }
        }
    }
}
