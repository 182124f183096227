//! Asks stratum 1 servers whether they serve what was published: a thread for each, which holds all revisions that are
//! waited for. What it reports has a verified chain of trust.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cvmfs::signature::PublicKey;
use cvmfs::store::Listing;
use reqwest::Url;

use super::{Channels, seconds};
use crate::error::one_line;
use crate::replicate::served_revision;
use crate::stop::Stop;
use crate::target::Target;

/// First pause between two questions; each further one is half as long again.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// How often a signal is looked for.
const TICK: Duration = Duration::from_millis(200);

/// What a server is asked for.
#[derive(Clone)]
struct Expected {
    fqrn: String,
    master: PublicKey,
    store: Arc<dyn Listing>,
    revision: u64,
    since: Instant,
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// The servers.
#[derive(Debug)]
pub(super) struct Strata {
    servers: Vec<(Sender<Expected>, JoinHandle<()>)>,
}

impl Strata {
    pub(super) fn start(urls: &[Url], patience: Duration, channels: Arc<Channels>, stop: Stop) -> Strata {
        let start = |url: &Url| {
            let (send, expected) = channel();
            let server = Server { url: url.clone(), patience, channels: channels.clone(), stop: stop.clone() };
            (send, std::thread::spawn(move || server.run(&expected)))
        };
        Strata { servers: urls.iter().map(start).collect() }
    }

    /// This revision is to come to all of them.
    pub(super) fn expect(&self, target: &Target, revision: u64) {
        let (fqrn, master, store) = (target.fqrn.clone(), target.master.clone(), target.store.clone());
        let expected = Expected { fqrn, master, store, revision, since: Instant::now() };
        for (server, _) in &self.servers {
            // A thread that is gone has said so.
            let _ = server.send(expected.clone());
        }
    }
}

impl Drop for Strata {
    fn drop(&mut self) {
        let threads: Vec<_> = self.servers.drain(..).map(|(_, thread)| thread).collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

struct Server {
    url: Url,
    patience: Duration,
    channels: Arc<Channels>,
    stop: Stop,
}

impl Server {
    /// Until nothing more comes and nothing is waited for.
    fn run(&self, arrivals: &Receiver<Expected>) {
        let mut waiting: Vec<Expected> = Vec::new();
        let mut is_open = true;
        let mut pause = FIRST;
        while is_open || !waiting.is_empty() {
            if self.stop.asked().is_some() {
                return;
            }
            if waiting.is_empty() {
                match arrivals.recv_timeout(TICK) {
                    Ok(expected) => waiting.push(expected),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => is_open = false,
                }
                pause = FIRST;
                continue;
            }
            let last = match self.ask(&waiting[waiting.len() - 1]) {
                Ok(served) => {
                    let (come, rest) = waiting.drain(..).partition(|expected: &Expected| expected.revision <= served);
                    waiting = rest;
                    for expected in come {
                        self.tell(&expected, served, None);
                    }
                    format!("it serves revision {served}")
                }
                Err(why) => why,
            };
            let is_over = |expected: &Expected| expected.since.elapsed() >= self.patience;
            for expected in waiting.extract_if(.., |expected| is_over(expected)) {
                self.tell(&expected, 0, Some(&last));
            }
            if !waiting.is_empty() {
                is_open &= self.rest(pause, arrivals, &mut waiting);
                pause = (pause * 3 / 2).min(LONGEST);
            }
        }
    }

    fn ask(&self, expected: &Expected) -> Result<u64, String> {
        let keys = std::slice::from_ref(&expected.master);
        served_revision(&self.url, &expected.fqrn, keys, &*expected.store).map_err(|error| one_line(&error))
    }

    /// Pauses; whether more revisions may come.
    fn rest(&self, pause: Duration, arrivals: &Receiver<Expected>, waiting: &mut Vec<Expected>) -> bool {
        let until = Instant::now() + pause;
        let mut is_open = true;
        while Instant::now() < until && self.stop.asked().is_none() {
            let left = until.saturating_duration_since(Instant::now()).min(TICK);
            match arrivals.recv_timeout(left) {
                Ok(expected) => waiting.push(expected),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    is_open = false;
                    std::thread::sleep(left);
                }
            }
        }
        is_open
    }

    fn tell(&self, expected: &Expected, served: u64, error: Option<&str>) {
        let (revision, elapsed) = (expected.revision.to_string(), seconds(expected.since.elapsed()));
        let served = served.to_string();
        let mut fields = vec![
            ("repository", expected.fqrn.as_str()),
            ("url", self.url.as_str()),
            ("revision", &revision),
            ("time_elapsed_s", &elapsed),
            ("status", if error.is_some() { "error" } else { "ok" }),
        ];
        match error {
            Some(error) => fields.push(("error", error)),
            None => fields.push(("served_revision", &served)),
        }
        self.channels.tell("propagated", &fields);
    }
}
