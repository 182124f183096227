//! Moves a mount to new revisions: asks for one when the old one's time is over, or when told to.
//!
//! Facts: the time is the root catalog's `TTL` property (240 s without it), capped by the configuration;
//! after a failure it is 180 s. Whatever goes wrong, what is mounted stays mounted, with one exception: a
//! revision that was blacklisted since, with no newer one to be had, must not be shown any longer.
//!
//! The kernel keeps names until it is told that they have expired. It may be looking one up again at that very moment, with
//! an answer from before in its hands; so it is told once more at the next check.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::fs::FileSystem;
use crate::inode::Stale;
use crate::revision::{Chain, Repository, RevisionError};

const DEFAULT_TTL: Duration = Duration::from_secs(240);
const AFTER_FAILURE: Duration = Duration::from_secs(180);
/// A shorter time would be a request to the servers every moment.
const LEAST_TTL: Duration = Duration::from_secs(1);

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// There is nothing newer.
    UpToDate {
        /// Revision mounted.
        revision: u64,
    },
    /// A newer revision is shown now.
    Applied {
        /// Revision before.
        from: u64,
        /// Revision now.
        revision: u64,
    },
    /// No trustworthy newer revision could be had.
    Failed {
        /// Revision mounted.
        revision: u64,
        /// Why.
        error: String,
    },
    /// The mount shows a fixed revision.
    Fixed {
        /// Revision mounted.
        revision: u64,
    },
}

/// Why [`Updater::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// [`Updater::stop`] was called.
    Stopped,
    /// What is mounted is blacklisted; it has to be unmounted.
    Revoked,
}

/// Told what the kernel has to forget.
pub type Forget = Box<dyn Fn(&Stale) + Send + Sync>;

/// The updater of one mount.
pub struct Updater {
    fs: Arc<FileSystem>,
    repository: Repository,
    automatic: bool,
    max_ttl: Option<Duration>,
    forget: Forget,
    /// One check at a time. What the kernel was told by the last one, to be told again.
    checking: Mutex<Stale>,
    /// The last failure, if the last check failed.
    offline: Mutex<Option<String>>,
    ended: Mutex<Option<Ended>>,
    wake: Condvar,
}

impl std::fmt::Debug for Updater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updater")
            .field("automatic", &self.automatic)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Updater {
    /// Updates `fs` from `repository`. `offline` says why the mount did not begin with the servers' revision.
    pub fn new(
        fs: Arc<FileSystem>,
        repository: Repository,
        automatic: bool,
        max_ttl: Option<Duration>,
        offline: Option<&RevisionError>,
        forget: Forget,
    ) -> Updater {
        let offline = Mutex::new(offline.map(|error| Chain(error).to_string()));
        let updater = Updater {
            fs,
            repository,
            automatic,
            max_ttl,
            forget,
            checking: Mutex::default(),
            offline,
            ended: Mutex::default(),
            wake: Condvar::new(),
        };
        updater.plan();
        updater
    }

    /// Why the last check failed, when it did.
    pub fn offline(&self) -> Option<String> {
        self.offline.lock().clone()
    }

    /// Checks for a newer revision now and shows it.
    pub fn check(&self) -> Outcome {
        let mut told = self.checking.lock();
        (self.forget)(&std::mem::take(&mut *told));
        let view = self.fs.view();
        let revision = view.revision.number;
        if !self.automatic {
            return Outcome::Fixed { revision };
        }
        let newer = match self.repository.newer(&view.revision) {
            // Nothing takes its place, so it has to be good enough.
            result @ (Ok(None) | Err(_)) => match self.repository.check_revision(revision) {
                Err(error @ RevisionError::Blacklisted { .. }) => {
                    tracing::error!(revision, error = %error, "what is mounted must not be shown any longer");
                    self.end(Ended::Revoked);
                    Err(error)
                }
                _ => result,
            },
            result => result,
        };
        let (outcome, offline) = match newer {
            Ok(None) => (Outcome::UpToDate { revision }, None),
            Ok(Some(newer)) => {
                let (from, revision) = (revision, newer.number);
                let stale = self.fs.switch(newer);
                tracing::info!(from, revision, inodes = stale.inodes.len(), names = stale.names.len(), "new revision");
                (self.forget)(&stale);
                *told = stale;
                (Outcome::Applied { from, revision }, None)
            }
            Err(error) => {
                let error = Chain(&error).to_string();
                tracing::warn!(revision, error, "cannot update; staying on the mounted revision");
                (Outcome::Failed { revision, error: error.clone() }, Some(error))
            }
        };
        *self.offline.lock() = offline;
        self.plan();
        outcome
    }

    /// Has the kernel ask again for everything that is read from now on, and not only for what it has no pages of.
    pub fn read_anew(&self) {
        (self.forget)(&self.fs.read_anew());
    }

    /// Sets the time of the next check.
    fn plan(&self) {
        let view = self.fs.view();
        let ttl = view.revision.catalogs.root().catalog().ttl().ok().flatten().map_or(DEFAULT_TTL, Duration::from_secs);
        let wait = if self.offline.lock().is_some() { AFTER_FAILURE } else { ttl };
        let wait = self.max_ttl.map_or(wait, |max| wait.min(max)).clamp(LEAST_TTL, Duration::from_secs(1 << 30));
        *self.fs.info().next_check.write() = self.automatic.then(|| Instant::now() + wait);
    }

    /// Checks again and again until [`Updater::stop`], or until what is mounted must not be shown any longer.
    pub fn run(&self) -> Ended {
        let mut ended = self.ended.lock();
        loop {
            if let Some(why) = *ended {
                return why;
            }
            let due = *self.fs.info().next_check.read();
            match due {
                None => self.wake.wait(&mut ended),
                Some(due) if Instant::now() < due => {
                    self.wake.wait_until(&mut ended, due);
                }
                Some(_) => parking_lot::MutexGuard::unlocked(&mut ended, || drop(self.check())),
            }
        }
    }

    /// Ends [`Updater::run`].
    pub fn stop(&self) {
        self.end(Ended::Stopped);
    }

    fn end(&self, why: Ended) {
        self.ended.lock().get_or_insert(why);
        self.wake.notify_all();
    }
}
