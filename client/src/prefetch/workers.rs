//! Who works off what waits: so many threads as may use the network ahead, and none while there is nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::path::RepoPath;
use cvmfs::startup::StartupList;

use super::Shared;
use super::eagerness::Eagerness;
use super::queue::{Job, Queue, Run};
use crate::catalogs::AttachError;
use crate::fetch::FetchError;
use crate::fs::FsError;

/// Failures in a row after which fetching ahead rests, and for how long.
const MAX_FAILURES: u32 = 3;
const REST: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) workers: usize,
    /// Workers that fetch files of trees which are being read through.
    stepping: usize,
    pub(super) eagerness: Eagerness,
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
        if state.workers < self.most && state.has_work() {
            state.workers += 1;
            let shared = self.clone();
            self.pool.run(move || shared.work());
        }
    }

    /// A file of a tree that is being read through was read: whether the reader waits for it.
    pub(super) fn walked(self: &Arc<Shared>, waits: bool) {
        let mut state = self.state.lock();
        if waits {
            state.eagerness.waited();
            (state.stepping..state.eagerness.files()).for_each(|_| self.employ(&mut state));
        } else if !self.is_far() {
            state.eagerness.found();
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
                match state.next() {
                    Some(job) if !state.closed => job,
                    _ => return,
                }
            };
            let _step = matches!(job, Job::Step(_)).then(|| Step(self));
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
    /// Nothing to do, and at most so many files of trees at the same time.
    pub(super) fn new(most: usize) -> State {
        State {
            queue: Queue::default(),
            workers: 0,
            stepping: 0,
            eagerness: Eagerness::new(most),
            looks: false,
            closed: false,
            failures: 0,
            rest: None,
        }
    }

    fn may_step(&self) -> bool {
        self.stepping < self.eagerness.files()
    }

    /// Whether one more worker would find something to do.
    fn has_work(&self) -> bool {
        let steps = self.queue.steps();
        self.queue.count() > steps || (steps > 0 && self.may_step())
    }

    fn next(&mut self) -> Option<Job> {
        let job = self.queue.pop(self.may_step())?;
        self.stepping += usize::from(matches!(job, Job::Step(_)));
        Some(job)
    }

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

/// Counts a step out, however it ends.
struct Step<'a>(&'a Shared);

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.0.state.lock().stepping -= 1;
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

#[cfg(test)]
mod tests {
    use super::super::queue::tests::want;
    use super::*;

    #[test]
    fn a_tree_is_read_with_as_few_workers_as_its_reader_needs() {
        let mut state = State::new(4);
        let taken = |state: &mut State| std::iter::from_fn(|| state.next()).count();
        (0..20).for_each(|number| assert!(state.queue.push(Job::Step(want(number)))));
        assert_eq!(taken(&mut state), 4);
        assert!(!state.has_work());
        // Everything was found: two are enough.
        (0..1000).for_each(|_| state.eagerness.found());
        state.stepping -= 2;
        assert_eq!(taken(&mut state), 0);
        state.stepping -= 1;
        assert!(state.has_work());
        assert_eq!(taken(&mut state), 1);
        state.eagerness.waited();
        assert_eq!(taken(&mut state), 1);
        // What is no step is held up by none.
        assert!(state.queue.push(Job::Guess(want(100))) && state.has_work());
        assert_eq!(taken(&mut state), 1);
        assert_eq!(state.queue.steps(), 14);
    }
}
