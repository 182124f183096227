//! Threads for work that waits for the network.
//!
//! A job never queues behind a slow one: when no thread is idle, another one is started, up to a limit that
//! is far above the number of downloads that run at the same time. Idle threads end after a while.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

const MAX_THREADS: usize = 512;
const IDLE: Duration = Duration::from_secs(20);
/// Enough for an HTTP request, an SQLite query and a log line on top of each other.
const STACK: usize = 1 << 20;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: std::collections::VecDeque<Job>,
    idle: usize,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// A pool that grows with what there is to wait for.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Pool").field("threads", &state.threads).field("queued", &state.queue.len()).finish()
    }
}

impl Pool {
    /// Runs `job` on a thread of the pool.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.shared.work.notify_one();
        } else if state.threads < MAX_THREADS {
            let shared = self.shared.clone();
            let started =
                std::thread::Builder::new().name("fetch".into()).stack_size(STACK).spawn(move || work(&shared));
            match started {
                Ok(_) => state.threads += 1,
                // The job waits for a running thread, if there is one.
                Err(error) if state.threads > 0 => tracing::warn!(%error, "cannot start another thread"),
                Err(error) => {
                    tracing::error!(%error, "cannot start any thread; doing the work in place");
                    let job = state.queue.pop_back();
                    drop(state);
                    job.into_iter().for_each(|job| job());
                }
            }
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            // A job that panics has said so; its reply is an error by then, and the thread goes on.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            state = shared.state.lock();
            continue;
        }
        state.idle += 1;
        let timed_out = shared.work.wait_for(&mut state, IDLE).timed_out();
        state.idle -= 1;
        if timed_out && state.queue.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_waiting_jobs_do_not_hold_up_another() {
        let pool = Pool::default();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..50 {
            let gate = gate.clone();
            pool.run(move || {
                let _ = gate.lock().recv();
            });
        }
        let (done, result) = std::sync::mpsc::channel();
        pool.run(move || done.send(42).unwrap());
        assert_eq!(result.recv_timeout(Duration::from_secs(10)), Ok(42));
        drop(release);
    }

    #[test]
    fn a_panicking_job_does_not_take_its_thread_with_it() {
        let pool = Pool::default();
        pool.run(|| panic!("on purpose"));
        let (done, result) = std::sync::mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        assert_eq!(result.recv_timeout(Duration::from_secs(10)), Ok(()));
    }
}
