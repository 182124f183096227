//! Moves a mount to new revisions: asks for one when the old one's time is over, or when told to.
//!
//! Facts: the time is the root catalog's `TTL` property (240 s without it), capped by the configuration;
//! after a failure it is 180 s. Whatever goes wrong, what is mounted stays mounted.

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

/// Told what the kernel has to forget.
pub type Forget = Box<dyn Fn(&Stale) + Send + Sync>;

/// The updater of one mount.
pub struct Updater {
    fs: Arc<FileSystem>,
    repository: Repository,
    automatic: bool,
    max_ttl: Option<Duration>,
    forget: Forget,
    /// One check at a time; the last failure, if the last check failed.
    checking: Mutex<()>,
    offline: Mutex<Option<String>>,
    stopped: Mutex<bool>,
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
            stopped: Mutex::default(),
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
        let _one_at_a_time = self.checking.lock();
        let view = self.fs.view();
        let revision = view.revision.number;
        if !self.automatic {
            return Outcome::Fixed { revision };
        }
        let (outcome, offline) = match self.repository.newer(&view.revision) {
            Ok(None) => (Outcome::UpToDate { revision }, None),
            Ok(Some(newer)) => {
                let (from, revision) = (revision, newer.number);
                let stale = self.fs.switch(newer);
                tracing::info!(from, revision, inodes = stale.inodes.len(), names = stale.names.len(), "new revision");
                (self.forget)(&stale);
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

    /// Sets the time of the next check.
    fn plan(&self) {
        let view = self.fs.view();
        let ttl = view.revision.catalogs.root().catalog().ttl().ok().flatten().map_or(DEFAULT_TTL, Duration::from_secs);
        let wait = if self.offline.lock().is_some() { AFTER_FAILURE } else { ttl };
        let wait = self.max_ttl.map_or(wait, |max| wait.min(max)).clamp(LEAST_TTL, Duration::from_secs(1 << 30));
        *self.fs.info().next_check.write() = self.automatic.then(|| Instant::now() + wait);
    }

    /// Checks again and again until [`Updater::stop`].
    pub fn run(&self) {
        let mut stopped = self.stopped.lock();
        while !*stopped {
            let due = *self.fs.info().next_check.read();
            let Some(due) = due else {
                self.wake.wait(&mut stopped);
                continue;
            };
            if Instant::now() < due {
                self.wake.wait_until(&mut stopped, due);
                continue;
            }
            parking_lot::MutexGuard::unlocked(&mut stopped, || self.check());
        }
    }

    /// Ends [`Updater::run`].
    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.wake.notify_all();
    }
}
