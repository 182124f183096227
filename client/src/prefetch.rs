//! Fetches ahead what will be wanted, so that a program that reads one file after another does not wait a round trip
//! for each.
//!
//! ```text
//! open, read ──┬── next chunks of a file read in order ────────┐
//!              ├── start-up list: announced, published, learned┤
//!              ├── file bundle beside a file                   ├── queue ── workers ── fetch (lanes, ledger)
//!              ├── what files name that were read ─────────────┤
//!              ├── the rest of a tree that is read through ────┤
//!              └── files beside those that are being read ─────┘
//! ```
//!
//! Promises
//! - A reader neither waits for this nor learns of its failures. What nobody waits for gives way (`fetch::lanes`).
//! - What is fetched ahead is verified like everything else before it has a name in the cache.
//! - A list fetches no more than a budget, guesses no more than was asked for and a fixed amount beside that. What has
//!   been fetched and not used is counted (`fetch::ledger`).
//! - What waits is bounded. What is fetched ahead triggers nothing further but what it names, a few steps far, so nothing
//!   runs in circles.
//! - After failures in a row it rests for a while, and says so once.

mod announcement;
mod eagerness;
mod jobs;
mod learned;
mod learner;
mod needs;
mod neighbours;
mod queue;
mod recorder;
mod walk;
mod workers;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cvmfs::entry::{Chunk, Entry};
use cvmfs::path::RepoPath;
use cvmfs::startup::StartupList;
use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::catalogs::Side;
use crate::config::{Config, PrefetchLimits};
use crate::fetch::{Objects, Wait, Want};
use crate::fs::View;
use crate::pool::Pool;
pub use announcement::{Announced, Announcement, MAX_ANNOUNCEMENT};
use learned::Learned;
use learner::{Finished, Learner};
use needs::Needs;
use neighbours::Neighbours;
use queue::{Job, Queue};
use recorder::Recorder;
use walk::Walks;
use workers::State;

/// Files above this are not guessed.
const SMALL: u64 = 1 << 20;
/// Guesses that have to be right before the first file of a directory is enough.
const TRUST_AFTER: u64 = 16;
/// How long the end of a mount waits for what is being fetched.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// What fetches ahead for one mount.
#[derive(Debug, Clone)]
pub struct Prefetcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    objects: Arc<Objects>,
    view: Arc<RwLock<Arc<View>>>,
    pool: Pool,
    limits: PrefetchLimits,
    /// Jobs that run at the same time.
    most: usize,
    state: Mutex<State>,
    /// Told when the last worker has ended.
    ended: Condvar,
    needs: Mutex<Needs>,
    neighbours: Mutex<Neighbours>,
    walks: Mutex<Walks>,
    learner: Mutex<Learner>,
    recording: AtomicBool,
    recorder: Mutex<Option<Recorder>>,
}

/// What is shown of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// Whether anything is fetched ahead.
    pub enabled: bool,
    /// Jobs that wait, and those that run.
    pub waiting: usize,
    /// Jobs that run.
    pub running: usize,
    /// Objects fetched ahead.
    pub fetched: u64,
    /// Plain bytes of them.
    pub fetched_bytes: u64,
    /// Objects of them that were opened since.
    pub used: u64,
    /// Plain bytes of those.
    pub used_bytes: u64,
    /// Plain bytes that nobody has opened so far.
    pub unused_bytes: u64,
    /// The part of it that was guessed.
    pub unused_guessed_bytes: u64,
    /// What could not be had.
    pub failures: u64,
    /// What was not fetched because of a bound.
    pub left_out: u64,
    /// Readers that waited unusually long meanwhile.
    pub delayed: u64,
    /// Why nothing is fetched ahead at the moment, if so.
    pub resting: Option<String>,
}

impl Prefetcher {
    /// Fetches ahead from `objects` what `view` shows.
    pub fn new(config: &Config, objects: &Arc<Objects>, view: &Arc<RwLock<Arc<View>>>, pool: &Pool) -> Prefetcher {
        let learned = config.prefetch.learns.then(|| Learned::new(&config.workspace, &config.fqrn));
        let most = objects.transport().lanes().for_ahead();
        let shared = Shared {
            objects: objects.clone(),
            view: view.clone(),
            pool: pool.clone(),
            limits: config.prefetch,
            most,
            state: Mutex::new(State::new(most)),
            ended: Condvar::new(),
            needs: Mutex::default(),
            neighbours: Mutex::default(),
            walks: Mutex::default(),
            learner: Mutex::new(Learner::new(learned)),
            recording: AtomicBool::new(false),
            recorder: Mutex::default(),
        };
        Prefetcher { shared: Arc::new(shared) }
    }

    /// Whether anything is fetched ahead.
    pub fn is_enabled(&self) -> bool {
        self.shared.limits.enabled
    }

    /// A file is being opened that was not in the cache, or only because it was fetched ahead: `guessed` or not.
    /// Whether what it names is worth looking for.
    pub fn wanted(&self, path: &RepoPath, entry: &Entry, guessed: Option<bool>) -> bool {
        let shared = &self.shared;
        if !shared.limits.enabled {
            return false;
        }
        // Who has a list need not guess.
        let guesses = guessed != Some(false) && !entry.flags.is_external() && !shared.state.lock().queue.has_lists();
        // Who reads all files does so for other reasons than that others name them.
        if guesses && shared.walks_by(path, Some(guessed.is_none())) {
            return false;
        }
        if shared.limits.bundles && shared.has_bundle(path) {
            shared.push(Job::Bundle(path.clone()));
        }
        if !guesses {
            return false;
        }
        if entry.size <= SMALL && !entry.flags.is_chunked() {
            let count = shared.neighbours.lock().read(path, shared.is_trusted());
            if count > 0 {
                shared.push(Job::Neighbours(path.clone(), count));
            }
        }
        shared.is_far() && needs::may_name(path, entry)
    }

    /// What a file names is looked for; of a large one this is the first chunk.
    pub fn names(&self, path: &RepoPath, file: &Arc<File>) {
        self.shared.look(Job::Needs(path.clone(), file.clone()));
    }

    /// Whether what a file names that is kept in chunks is worth looking for.
    pub fn may_name(&self, path: &RepoPath, entry: &Entry) -> bool {
        let shared = &self.shared;
        shared.limits.enabled
            && shared.is_far()
            && needs::may_name(path, entry)
            && !shared.state.lock().queue.has_lists()
    }

    /// A directory is being listed.
    pub fn listed(&self, directory: &RepoPath) {
        if self.shared.limits.enabled {
            self.shared.walks.lock().listed(directory);
        }
    }

    /// A file that is kept in chunks is being opened.
    pub fn passes(&self, path: &RepoPath) {
        let shared = &self.shared;
        if shared.limits.enabled && !shared.state.lock().queue.has_lists() {
            shared.walks_by(path, None);
        }
    }

    /// A file was opened, wherever its content came from.
    pub fn opened(&self, path: &RepoPath, entry: &Entry) {
        let shared = &self.shared;
        if shared.recording.load(Ordering::Relaxed)
            && let Some(recorder) = &mut *shared.recorder.lock()
        {
            recorder.opened(path, entry.size);
        }
        if shared.limits.enabled {
            let way = shared.view.read().revision.catalogs.way(path);
            let (begins, finished) = {
                let mut learner = shared.learner.lock();
                (learner.opened(&way, path, entry.size, Instant::now()), learner.finished())
            };
            if let Some(tree) = begins {
                shared.push(Job::Tree(tree));
            }
            if !finished.is_empty() {
                shared.pool.run(|| finished.into_iter().for_each(Finished::save));
            }
        }
    }

    /// A chunk of an open file was read that was not the one before.
    pub fn read(&self, path: &RepoPath, chunk: &Chunk) {
        let shared = &self.shared;
        if shared.recording.load(Ordering::Relaxed)
            && let Some(recorder) = &mut *shared.recorder.lock()
        {
            recorder.read(path, chunk.offset, chunk.size);
        }
        if shared.limits.enabled && shared.limits.learns {
            shared.learner.lock().read(path, chunk.offset, chunk.size);
        }
    }

    /// These objects are next of a file that is read in order.
    pub fn next(&self, wants: impl Iterator<Item = Want>) {
        if self.shared.limits.enabled {
            wants.for_each(|want| self.shared.push(Job::Chunk(want)));
        }
    }

    /// Begins to record what is opened; what was recorded before is gone.
    pub fn record(&self) {
        *self.shared.recorder.lock() = Some(Recorder::default());
        self.shared.recording.store(true, Ordering::Relaxed);
    }

    /// Ends the record and gives what was touched below a directory.
    pub fn recorded(&self, base: &RepoPath) -> Option<StartupList> {
        self.shared.recording.store(false, Ordering::Relaxed);
        Some(self.shared.recorder.lock().take()?.below(base))
    }

    /// Counters and state.
    pub fn summary(&self) -> Summary {
        let shared = &self.shared;
        let (ledger, stats) = (shared.objects.ledger(), shared.objects.stats());
        let state = shared.state.lock();
        Summary {
            enabled: shared.limits.enabled,
            waiting: state.queue.count(),
            running: state.workers,
            fetched: ledger.fetched.objects.get(),
            fetched_bytes: ledger.fetched.bytes.get(),
            used: ledger.used.objects.get(),
            used_bytes: ledger.used.bytes.get(),
            unused_bytes: ledger.unused_bytes(),
            unused_guessed_bytes: ledger.unused_guesses(),
            failures: stats.ahead_failures.get(),
            left_out: stats.ahead_left_out.get(),
            delayed: stats.delayed.get(),
            resting: state.rest.as_ref().filter(|(until, _)| Instant::now() < *until).map(|(_, why)| why.clone()),
        }
    }

    /// Ends everything and keeps what was learned. What is being fetched is given up.
    pub fn close(&self) {
        let shared = &self.shared;
        {
            let mut state = shared.state.lock();
            state.closed = true;
            state.queue = Queue::default();
        }
        shared.objects.end_ahead();
        let finished = {
            let mut learner = shared.learner.lock();
            learner.finish_all();
            learner.finished()
        };
        finished.into_iter().for_each(Finished::save);
        let until = Instant::now() + LAST_WAIT;
        let mut state = shared.state.lock();
        while state.workers > 0 && !shared.ended.wait_until(&mut state, until).timed_out() {}
    }
}

impl Shared {
    /// A file is read that was not in the cache, or only because it was fetched ahead; whether it belongs to a walk. `waits`:
    /// whether the reader waits for it, as far as that is known.
    fn walks_by(self: &Arc<Shared>, path: &RepoPath, waits: Option<bool>) -> bool {
        let (expected, ask) = {
            let mut walks = self.walks.lock();
            let top = || {
                let found = self.attached(path, Side::Entry, Wait::No);
                found.map_or(RepoPath::ROOT, |attached| attached.mountpoint().clone())
            };
            (walks.expects(path), walks.read(path, top))
        };
        if expected && let Some(waits) = waits {
            self.walked(waits);
        }
        if let Some(ask) = ask {
            if !ask.fetch {
                self.state.lock().eagerness.begins();
            }
            self.push(Job::Walk(ask));
        }
        expected
    }

    /// Whether a round trip takes longer than what processors have to do for it: then names are worth looking for, and
    /// lanes are there to be used.
    fn is_far(&self) -> bool {
        !self.objects.pace().is_below(self.limits.latency)
    }

    /// Whether guesses have been right so far.
    fn is_trusted(&self) -> bool {
        let (guessed, right) = self.objects.ledger().guesses();
        guessed >= TRUST_AFTER && right * 2 >= guessed
    }
}
