//! Fetches ahead what will be wanted, so that a program that reads one file after another does not wait a round trip
//! for each.
//!
//! ```text
//! open, read ──┬── next chunks of a file read in order ────────┐
//!              ├── start-up list: announced, published, learned┤
//!              ├── file bundle beside a file                   ├── queue ── workers ── fetch (lanes, ledger)
//!              └── files beside those that are being read ─────┘
//! ```
//!
//! Promises
//! - A reader neither waits for this nor learns of its failures. What nobody waits for gives way (`fetch::lanes`).
//! - What is fetched ahead is verified like everything else before it has a name in the cache.
//! - A list fetches no more than a budget, guesses no more than was asked for and a fixed amount beside that. What has
//!   been fetched and not used is counted (`fetch::ledger`).
//! - What waits is bounded. What is fetched ahead triggers nothing further, so nothing runs in circles.
//! - After failures in a row it rests for a while, and says so once.

mod learned;
mod learner;
mod neighbours;
mod queue;
mod recorder;

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cvmfs::bundle;
use cvmfs::catalog::Row;
use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::path::RepoPath;
use cvmfs::startup::{self, StartupList, Touched};
use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::catalogs::{AttachError, Attached, Side};
use crate::config::{Config, PrefetchLimits};
use crate::fetch::{FetchError, Objects, Wait, Want};
use crate::fs::file::{piece, whole};
use crate::fs::{FsError, View};
use crate::pool::Pool;
use learned::Learned;
use learner::{Finished, Learner};
use neighbours::{Neighbours, kind};
use queue::{Job, Queue, Run};
use recorder::Recorder;

/// Files above this are not guessed.
const SMALL: u64 = 1 << 20;
/// Guesses that have to be right before the first file of a directory is enough.
const TRUST_AFTER: u64 = 16;
/// Failures in a row after which fetching ahead rests, and for how long.
const MAX_FAILURES: u32 = 3;
const REST: Duration = Duration::from_secs(30);
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
    neighbours: Mutex<Neighbours>,
    /// Bytes of guesses that are being fetched.
    guessing: AtomicU64,
    learner: Mutex<Learner>,
    recording: AtomicBool,
    recorder: Mutex<Option<Recorder>>,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue,
    workers: usize,
    closed: bool,
    failures: u32,
    rest: Option<(Instant, String)>,
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

/// A wish for what will be needed soon.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Start-up list in the repository.
    #[serde(default)]
    pub list: Option<String>,
    /// Start-up list on this machine.
    #[serde(default)]
    pub file: Option<String>,
    /// Directories of the repository below which its paths are looked for, the first that has one wins; `/` if there are
    /// none.
    #[serde(default)]
    pub bases: Vec<String>,
    /// Name under which what starts below the first of them is known.
    #[serde(default)]
    pub name: Option<String>,
}

/// What became of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Files that are fetched ahead.
    pub files: usize,
    /// Bytes of them, as the list says.
    pub bytes: u64,
    /// Lines that are no paths, or too many.
    pub left_out: usize,
}

/// Bytes of the longest announcement: some hundred directories.
pub const MAX_ANNOUNCEMENT: u64 = 64 << 10;

/// Neither more directories nor deeper stacks make sense.
const MAX_BASES: usize = 512;

impl Prefetcher {
    /// Fetches ahead from `objects` what `view` shows.
    pub fn new(config: &Config, objects: &Arc<Objects>, view: &Arc<RwLock<Arc<View>>>, pool: &Pool) -> Prefetcher {
        let learned = config.prefetch.learns.then(|| Learned::new(&config.workspace, &config.fqrn));
        let shared = Shared {
            objects: objects.clone(),
            view: view.clone(),
            pool: pool.clone(),
            limits: config.prefetch,
            most: objects.transport().lanes().for_ahead(),
            state: Mutex::default(),
            ended: Condvar::new(),
            neighbours: Mutex::default(),
            guessing: AtomicU64::new(0),
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
    pub fn wanted(&self, path: &RepoPath, entry: &Entry, guessed: Option<bool>) {
        let shared = &self.shared;
        if !shared.limits.enabled {
            return;
        }
        if shared.limits.bundles && shared.has_bundle(path) {
            shared.push(Job::Bundle(path.clone()));
        }
        // Who has a list need not guess.
        let guesses = || !shared.state.lock().queue.has_lists();
        if guessed != Some(false)
            && entry.size <= SMALL
            && guesses()
            && !entry.flags.is_chunked()
            && !entry.flags.is_external()
        {
            let count = shared.neighbours.lock().read(path, shared.is_trusted());
            if count > 0 {
                shared.push(Job::Neighbours(path.clone(), count));
            }
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

    /// Fetches what a list names.
    pub fn announce(&self, announcement: &Announcement) -> Result<Announced, String> {
        let shared = &self.shared;
        if !shared.limits.enabled {
            return Err("nothing is fetched ahead: CVMFS_PREFETCH=no".into());
        }
        let parse = |path: &String| RepoPath::parse(path.trim_end_matches('/')).map_err(|e| e.to_string());
        let mut bases = announcement.bases.iter().take(MAX_BASES).map(parse).collect::<Result<Vec<_>, _>>()?;
        if bases.is_empty() {
            bases.push(RepoPath::ROOT);
        }
        if let Some(name) = &announcement.name {
            shared.learner.lock().name(bases[0].clone(), name.clone());
        }
        let list = match (&announcement.list, &announcement.file) {
            (Some(list), _) => {
                let path = parse(list)?;
                let text = shared.content(&path, startup::MAX_BYTES, Wait::Yes).map_err(|e| format!("{path}: {e}"))?;
                let text = text.ok_or_else(|| format!("{path}: there is no such file in the repository"))?;
                StartupList::parse(&text).map_err(|error| format!("{path}: {error}"))?
            }
            (None, Some(file)) => {
                let text = read_bounded(file).map_err(|error| format!("{file}: {error}"))?;
                StartupList::parse(&text).map_err(|error| format!("{file}: {error}"))?
            }
            (None, None) => {
                shared.learner.lock().load(&bases[0]).ok_or("no list is given, and nothing has been learned")?
            }
        };
        let announced = Announced { files: list.files.len(), bytes: list.bytes(), left_out: list.left_out };
        let name = announcement.list.clone().or(announcement.file.clone()).unwrap_or_else(|| bases[0].to_string());
        match shared.start(name, list, bases) {
            true => Ok(announced),
            false => Err(self.summary().resting.unwrap_or_else(|| "too many lists are being fetched already".into())),
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

fn read_bounded(file: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(startup::MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// A path and what the catalog says about it.
struct Found {
    path: RepoPath,
    entry: Entry,
    chunks: Vec<Chunk>,
}

impl Shared {
    /// Whether guesses have been right so far.
    fn is_trusted(&self) -> bool {
        let (guessed, right) = self.objects.ledger().guesses();
        guessed >= TRUST_AFTER && right * 2 >= guessed
    }

    /// Adds a job, and a thread for it if there may be one more.
    fn push(self: &Arc<Shared>, job: Job) {
        let mut state = self.state.lock();
        if state.is_at_rest() {
            return;
        }
        if !state.queue.push(job) {
            return self.objects.stats().ahead_left_out.add(1);
        }
        self.employ(&mut state);
    }

    /// Begins to fetch a list; whether there was room for it.
    fn start(self: &Arc<Shared>, name: String, list: StartupList, bases: Vec<RepoPath>) -> bool {
        tracing::debug!(name, files = list.files.len(), bytes = list.bytes(), "fetching what a start will touch");
        self.objects.stats().ahead_left_out.add(list.left_out as u64);
        let mut state = self.state.lock();
        if state.is_at_rest() || !state.queue.push_run(Arc::new(Run::new(name, list, bases, self.limits.budget))) {
            return false;
        }
        (0..self.most).for_each(|_| self.employ(&mut state));
        true
    }

    fn employ(self: &Arc<Shared>, state: &mut State) {
        if state.workers < self.most.min(state.queue.count() + state.workers) {
            state.workers += 1;
            let shared = self.clone();
            self.pool.run(move || shared.work());
        }
    }

    fn work(self: &Arc<Shared>) {
        let _worker = Worker(self);
        loop {
            let job = {
                let mut state = self.state.lock();
                match state.queue.pop() {
                    Some(job) if !state.closed => job,
                    _ => return,
                }
            };
            match self.run(job) {
                Ok(()) => self.state.lock().failures = 0,
                Err(error) => self.failed(&error),
            }
        }
    }

    fn failed(&self, error: &Failure) {
        if error.is_abandoned() {
            return;
        }
        self.objects.stats().ahead_failures.add(1);
        let mut state = self.state.lock();
        state.failures += 1;
        tracing::debug!(%error, "could not be fetched ahead");
        if state.failures >= MAX_FAILURES && !state.is_at_rest() {
            state.rest = Some((Instant::now() + REST, error.to_string()));
            self.objects.stats().ahead_left_out.add(state.queue.count() as u64);
            state.queue = Queue::default();
            state.failures = 0;
            tracing::warn!(%error, seconds = REST.as_secs(), "nothing is fetched ahead for a while after failures in a row");
        }
    }

    fn run(self: &Arc<Shared>, job: Job) -> Result<(), Failure> {
        match job {
            Job::Chunk(want) | Job::Part(want) => self.fetch(&want),
            Job::Listed(run, index) => self.listed(&run, index),
            Job::Tree(tree) => self.tree(tree),
            Job::Bundle(path) => self.bundle(&path),
            Job::Neighbours(path, count) => self.neighbours(&path, count),
            Job::Guess(want) => self.guess(&want),
        }
    }

    fn fetch(&self, want: &Want) -> Result<(), Failure> {
        self.objects.fetch_ahead(want, false).map(drop).map_err(Failure::Fetch)
    }

    /// What a list says about a file.
    fn listed(self: &Arc<Shared>, run: &Run, index: usize) -> Result<(), Failure> {
        let file = &run.list.files[index];
        let mut found = None;
        for base in &run.bases {
            let Ok(path) = base.join_path(&file.path.as_bytes()[1..]) else { continue };
            // A name that is there hides those of the directories after this one.
            found = self.find(path, Wait::Ahead)?;
            if found.is_some() {
                break;
            }
        }
        let Some(found) = found else { return Ok(()) };
        let mut wants = wants(&found, file).into_iter().filter(|want| !self.objects.has(want));
        let Some(first) = wants.next() else { return Ok(()) };
        for want in wants {
            if run.spend(want.limit) {
                self.push(Job::Part(want));
            } else {
                self.objects.stats().ahead_left_out.add(1);
            }
        }
        if !run.spend(first.limit) {
            tracing::debug!(list = run.name, path = %found.path, "left out: the budget is spent");
            self.objects.stats().ahead_left_out.add(1);
            return Ok(());
        }
        self.fetch(&first)
    }

    /// A list that lies beside a tree, or else what was learned about it.
    fn tree(self: &Arc<Shared>, tree: RepoPath) -> Result<(), Failure> {
        let beside = tree.parent().map(|parent| parent.join([b".cvmfsstartup-", tree.name()].concat()));
        let published = match &beside {
            Some(path) => self.content(path, startup::MAX_BYTES, Wait::Ahead)?,
            None => None,
        };
        let list = match (published, &beside) {
            (Some(text), Some(path)) => match StartupList::parse(&text) {
                Ok(list) => Some(list),
                Err(error) => {
                    tracing::warn!(%path, %error, "ignored");
                    None
                }
            },
            _ => self.learner.lock().load(&tree),
        };
        if let Some(list) = list {
            self.start(tree.to_string(), list, vec![tree]);
        }
        Ok(())
    }

    fn has_bundle(&self, path: &RepoPath) -> bool {
        let Some(bundle) = bundle::of(path) else { return false };
        let view = self.view.read().clone();
        let attached = view.revision.catalogs.find(&bundle, Side::Entry, Wait::No);
        attached.and_then(|attached| attached.lookup(&bundle)).is_ok_and(|row| row.is_some())
    }

    fn bundle(self: &Arc<Shared>, file: &RepoPath) -> Result<(), Failure> {
        let Some(path) = bundle::of(file) else { return Ok(()) };
        let Some(text) = self.content(&path, bundle::MAX_BYTES, Wait::Ahead)? else { return Ok(()) };
        match bundle::parse(&path, &text) {
            Ok(dependencies) => {
                let touched = |path| Touched { path, size: 0, parts: Vec::new() };
                let list = StartupList { files: dependencies.into_iter().map(touched).collect(), left_out: 0 };
                self.start(path.to_string(), list, vec![RepoPath::ROOT]);
            }
            Err(error) => tracing::warn!(%path, %error, "ignored"),
        }
        Ok(())
    }

    /// Adds files of the same kind that lie beside one, those after it first.
    fn neighbours(self: &Arc<Shared>, path: &RepoPath, count: usize) -> Result<(), Failure> {
        let Some(directory) = path.parent() else { return Ok(()) };
        let attached = self.attached(&directory, Side::Children, Wait::Ahead)?;
        let mut rows: Vec<Entry> = attached
            .list(&directory)?
            .into_iter()
            .map(|row| row.entry)
            .filter(|entry| is_like(entry, path.name()))
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let after = rows.partition_point(|entry| entry.name.as_slice() <= path.name());
        rows.rotate_left(after);
        let wants = rows.iter().filter_map(|entry| whole(&directory.join(&entry.name), entry));
        for want in wants.filter(|want| !self.objects.has(want)).take(count) {
            self.push(Job::Guess(want));
        }
        Ok(())
    }

    /// Fetches what nobody has asked for, unless too much was guessed in vain.
    fn guess(&self, want: &Want) -> Result<(), Failure> {
        let ledger = self.objects.ledger();
        let allowed = self.limits.waste.saturating_add(ledger.demanded.bytes.get());
        let room = |guessing: u64| {
            let guessing = guessing.saturating_add(want.limit);
            (ledger.unused_guesses().saturating_add(guessing) <= allowed).then_some(guessing)
        };
        if self.guessing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            self.objects.stats().ahead_left_out.add(1);
            return Ok(());
        }
        let result = self.objects.fetch_ahead(want, true);
        self.guessing.fetch_sub(want.limit, Ordering::Relaxed);
        result.map(drop).map_err(Failure::Fetch)
    }

    fn attached(&self, path: &RepoPath, side: Side, wait: Wait) -> Result<Arc<Attached>, AttachError> {
        let view = self.view.read().clone();
        view.revision.catalogs.find(path, side, wait)
    }

    fn find(&self, path: RepoPath, wait: Wait) -> Result<Option<Found>, AttachError> {
        let attached = self.attached(&path, Side::Entry, wait)?;
        let Some(row) = attached.lookup(&path)? else { return Ok(None) };
        let chunks = if is_chunked(&row) { attached.chunks(&row)? } else { Vec::new() };
        Ok(Some(Found { path, entry: row.entry, chunks }))
    }

    /// Content of a small file of the repository; none if there is no such file, or it is longer.
    fn content(&self, path: &RepoPath, most: u64, wait: Wait) -> Result<Option<Vec<u8>>, Failure> {
        let Some(found) = self.find(path.clone(), wait)? else { return Ok(None) };
        let Found { entry, chunks, .. } = found;
        if entry.file_type() != FileType::Regular || entry.size > most {
            return Ok(None);
        }
        let wants: Vec<Want> = match chunks.is_empty() {
            true => whole(path, &entry).into_iter().collect(),
            false => chunks.iter().map(|chunk| piece(path, &entry, chunk)).collect(),
        };
        let mut text = Vec::new();
        for want in wants {
            let Some(file) = self.objects.open(&want, wait).map_err(Failure::Fetch)? else { return Ok(None) };
            let start = text.len();
            text.resize(start + file.metadata().map_or(0, |m| m.len() as usize), 0);
            file.read_exact_at(&mut text[start..], 0).map_err(Failure::Read)?;
        }
        Ok(Some(text))
    }
}

impl State {
    fn is_at_rest(&self) -> bool {
        self.closed || self.rest.as_ref().is_some_and(|(until, _)| Instant::now() < *until)
    }
}

/// Counts a worker out, however it ends.
struct Worker<'a>(&'a Shared);

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.0.state.lock().workers -= 1;
        self.0.ended.notify_all();
    }
}

fn is_chunked(row: &Row) -> bool {
    row.entry.flags.is_chunked() && row.entry.file_type() == FileType::Regular
}

/// Whether an entry is a small file of the same kind.
fn is_like(entry: &Entry, name: &[u8]) -> bool {
    entry.file_type() == FileType::Regular
        && entry.content.is_some()
        && entry.size <= SMALL
        && !(entry.flags.is_chunked() || entry.flags.is_external() || entry.flags.is_hidden())
        && kind(&entry.name) == kind(name)
        && entry.name != name
}

/// The objects of a file that a list asks for, in its order.
fn wants(found: &Found, file: &Touched) -> Vec<Want> {
    let Found { path, entry, chunks } = found;
    if entry.file_type() != FileType::Regular {
        return Vec::new();
    }
    if chunks.is_empty() {
        return whole(path, entry).into_iter().collect();
    }
    let mut order: Vec<usize> = Vec::new();
    for (offset, length) in &file.parts {
        let end = offset.saturating_add(*length);
        let touched =
            chunks.iter().enumerate().filter(|(_, c)| c.offset < end && c.offset.saturating_add(c.size) > *offset);
        touched.for_each(|(number, _)| {
            if !order.contains(&number) {
                order.push(number);
            }
        });
    }
    if file.parts.is_empty() {
        order = (0..chunks.len()).collect();
    }
    order.into_iter().map(|number| piece(path, entry, &chunks[number])).collect()
}

/// Something could not be fetched ahead. Nobody but the log learns of it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Fetch(Arc<FetchError>),
    #[error(transparent)]
    Read(std::io::Error),
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl Failure {
    /// Whether it was not tried at all.
    fn is_abandoned(&self) -> bool {
        let error = match self {
            Failure::Fetch(error) => error,
            Failure::Attach(AttachError::Fetch { source, .. }) => source,
            Failure::Attach(AttachError::WouldBlock) => return true,
            _ => return false,
        };
        matches!(**error, FetchError::Abandoned(_))
    }
}
