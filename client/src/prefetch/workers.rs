//! Who works off what waits: so many threads as may use the network ahead, and none while there is nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::path::RepoPath;
use cvmfs::startup::StartupList;

use super::Shared;
use super::queue::{Job, Queue, Run};
use crate::catalogs::AttachError;
use crate::fetch::FetchError;
use crate::fs::FsError;

/// Failures in a row after which fetching ahead rests, and for how long.
const MAX_FAILURES: u32 = 3;
const REST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) workers: usize,
    /// Whether there is one more who merely looks into files.
    looks: bool,
    pub(super) closed: bool,
    failures: u32,
    pub(super) rest: Option<(Instant, String)>,
}

impl Shared {
    /// Adds a job, and a thread for it if there may be one more.
    pub(super) fn push(self: &Arc<Shared>, job: Job) {
        self.push_all(std::iter::once(job));
    }

    /// Adds jobs that go before others of their kind, the first of them first.
    pub(super) fn push_all(self: &Arc<Shared>, jobs: impl DoubleEndedIterator<Item = Job>) {
        let mut state = self.state.lock();
        if state.is_at_rest() {
            return;
        }
        for job in jobs.rev() {
            if !state.queue.push(job) {
                self.objects.stats().ahead_left_out.add(1);
            }
            self.employ(&mut state);
        }
    }

    /// Begins to fetch a list; whether there was room for it.
    pub(super) fn start(self: &Arc<Shared>, name: String, list: StartupList, bases: Vec<RepoPath>) -> bool {
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

    /// Looks into a file now, though all workers may be busy: what it names is wanted next.
    pub(super) fn look(self: &Arc<Shared>, job: Job) {
        let mut state = self.state.lock();
        if state.is_at_rest() {
            return;
        }
        if !state.queue.push(job) {
            return self.objects.stats().ahead_left_out.add(1);
        }
        if state.workers < self.most {
            self.employ(&mut state);
        } else if !state.looks {
            (state.looks, state.workers) = (true, state.workers + 1);
            let shared = self.clone();
            self.pool.run(move || shared.look_through());
        }
    }

    fn look_through(self: &Arc<Shared>) {
        let _worker = Worker(self);
        loop {
            let job = {
                let mut state = self.state.lock();
                let job = state.queue.pop_look().filter(|_| !state.closed);
                state.looks = job.is_some();
                job
            };
            let Some(job) = job else { return };
            if let Err(error) = self.run(job) {
                self.failed(&error);
            }
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

/// Something could not be fetched ahead. Nobody but the log learns of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
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
