//! Leases that this process holds: taken, renewed by a thread of their own, given back when they are dropped.
//!
//! The rules are in [`cvmfs::lease`]; here are the clock and the process. A lease of a process of this machine that has
//! ended counts as gone at once, and so does one of this very process that nobody holds any more (giving it back may
//! have failed with the storage).

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use cvmfs::lease::{Lease, LeaseError, LeaseKind, Leases};
use cvmfs::store::Listing;
use parking_lot::Mutex;
use time::UtcDateTime;

use crate::adopt::StockLock;
use crate::failure::Failure;

/// How long a lease counts without being renewed.
pub const TERM: Duration = Duration::from_secs(600);
/// How often somebody who is in the way is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Leases of this process that are held.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A lease that is held.
#[derive(Debug)]
pub struct LeaseGuard {
    /// The same of the reference tools, where they are at work too.
    stock: Option<StockLock>,
    held: Arc<Held>,
    // Both are taken when this is dropped.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Held {
    store: Arc<dyn Listing>,
    lease: Mutex<Lease>,
    term: Duration,
    lost: AtomicBool,
}

impl LeaseGuard {
    /// Takes a lease; waits for others whom it excludes, at most so long.
    pub fn take(
        fqrn: &str,
        store: &Arc<dyn Listing>,
        kind: LeaseKind,
        what: &str,
        term: Duration,
        patience: Duration,
    ) -> Result<LeaseGuard, Failure> {
        let start = Instant::now();
        loop {
            match LeaseGuard::try_take(store, kind, what, term) {
                Err(LeaseError::Held(_)) if start.elapsed() < patience => std::thread::sleep(LOOK_AGAIN.min(patience)),
                Err(source) => return Err(Failure::Lease { fqrn: fqrn.to_owned(), source }),
                Ok(guard) => return Ok(guard),
            }
        }
    }

    fn try_take(
        store: &Arc<dyn Listing>,
        kind: LeaseKind,
        what: &str,
        term: Duration,
    ) -> Result<LeaseGuard, LeaseError> {
        let now = now();
        let this = Process::this();
        let lease = Lease {
            id: format!("{}-{}-{}", this.pid, this.started, NEXT.fetch_add(1, Ordering::Relaxed)),
            kind,
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            machine: this.machine.clone(),
            pid: this.pid,
            started: this.started,
            what: what.to_owned(),
            since: now,
            expires: now + term.as_secs().max(1),
        };
        // Machines count their processes alike.
        let lease = Lease { id: format!("{}@{}", lease.id, &this.machine), ..lease };
        HELD.lock().insert(lease.id.clone());
        let held =
            Arc::new(Held { store: store.clone(), lease: Mutex::new(lease), term, lost: AtomicBool::new(false) });
        if let Err(error) = held.renew() {
            HELD.lock().remove(&held.lease.lock().id);
            return Err(error);
        }
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("lease".into()).spawn({
            let held = held.clone();
            move || {
                let (calm, hurry) = (held.term / 3, held.term / 12);
                let mut wait = calm;
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    wait = match held.renew() {
                        Ok(()) => calm,
                        Err(LeaseError::Held(other)) => {
                            tracing::warn!(by = %other.what, host = %other.host, "lease lost");
                            held.lost.store(true, Ordering::Release);
                            return;
                        }
                        Err(error) => {
                            tracing::warn!(%error, "lease could not be renewed; trying again");
                            hurry
                        }
                    };
                }
            }
        });
        // Without the thread it ends with its term, which `is_lost` sees.
        Ok(LeaseGuard { stock: None, held, stop: Some(stop), thread: thread.ok() })
    }

    /// The same lease with the locks of the reference tools, which go when it is given back.
    #[must_use]
    pub(super) fn with_stock(mut self, stock: Option<StockLock>) -> LeaseGuard {
        self.stock = stock;
        self
    }

    /// Whether it may have ended: others may be at work whom it excluded.
    pub fn is_lost(&self) -> bool {
        self.held.lost.load(Ordering::Acquire) || now() >= self.held.lease.lock().expires
    }
}

impl Held {
    fn renew(&self) -> Result<(), LeaseError> {
        let now = now();
        let renewed = Lease { expires: now + self.term.as_secs().max(1), ..self.lease.lock().clone() };
        Leases::new(&*self.store, &is_gone).take(&renewed, now)?;
        *self.lease.lock() = renewed;
        Ok(())
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has said what there was to say.
            let _ = thread.join();
        }
        let id = self.held.lease.lock().id.clone();
        if let Err(error) = Leases::new(&*self.held.store, &is_gone).give_back(&id, now()) {
            tracing::warn!(%error, "lease could not be given back; it ends by itself");
        }
        HELD.lock().remove(&id);
    }
}

fn now() -> u64 {
    UtcDateTime::now().unix_timestamp().max(0) as u64
}

/// Whether it is known that nobody holds a lease any more.
fn is_gone(lease: &Lease) -> bool {
    let this = Process::this();
    if lease.machine.is_empty() || lease.machine != this.machine {
        return false;
    }
    if (lease.pid, lease.started) == (this.pid, this.started) {
        return !HELD.lock().contains(&lease.id);
    }
    start_time(lease.pid) != Some(lease.started)
}

struct Process {
    machine: String,
    pid: u32,
    started: u64,
}

impl Process {
    fn this() -> Process {
        let pid = std::process::id();
        // Process numbers belong to a boot of the machine and to a container on it.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let space = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let machine = match boot.trim() {
            "" => String::new(),
            boot => format!("{boot}/{}", space.display()),
        };
        Process { machine, pid, started: start_time(pid).unwrap_or(0) }
    }
}

/// Field 22 of `/proc/PID/stat`; the second one, a name in brackets, may hold anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let behind = stat.iter().rposition(|b| *b == b')')? + 1;
    std::str::from_utf8(&stat[behind..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use cvmfs::lease::LEASES;
    use cvmfs::store::{MemoryStore, Store as _};

    use super::*;

    fn take(store: &Arc<MemoryStore>, kind: LeaseKind, term: u64) -> Result<LeaseGuard, LeaseError> {
        let store: Arc<dyn Listing> = store.clone();
        LeaseGuard::try_take(&store, kind, "a test", Duration::from_secs(term))
    }

    fn current(store: &MemoryStore) -> Vec<Lease> {
        Leases::new(store, &|_| false).current(now()).unwrap()
    }

    #[test]
    fn is_renewed_while_it_is_held_and_given_back_after() {
        let store = Arc::new(MemoryStore::default());
        let guard = take(&store, LeaseKind::Prepare, 3).unwrap();
        let first = current(&store)[0].expires;
        std::thread::sleep(Duration::from_millis(2300));
        assert!(current(&store)[0].expires > first);
        assert!(!guard.is_lost());
        assert!(matches!(take(&store, LeaseKind::Collect, 3), Err(LeaseError::Held(_))));
        drop(guard);
        assert_eq!(current(&store), []);
        take(&store, LeaseKind::Collect, 3).unwrap();
    }

    #[test]
    fn knows_when_it_is_lost() {
        let store = Arc::new(MemoryStore::default());
        let guard = take(&store, LeaseKind::Prepare, 3).unwrap();
        store.content().remove(LEASES);
        let collector = take(&store, LeaseKind::Collect, 60).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(guard.is_lost() && !collector.is_lost());
        drop(guard);
        assert_eq!(current(&store).len(), 1, "only its own lease goes");
        let deaf = take(&Arc::new(MemoryStore::default()), LeaseKind::Prepare, 1).unwrap();
        deaf.held.lease.lock().expires = now();
        assert!(deaf.is_lost());
    }

    #[test]
    fn what_the_dead_left_counts_for_nothing() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let this = Process::this();
        let of = |pid: u32, started: u64, machine: &str| Lease {
            id: format!("{pid}"),
            kind: LeaseKind::Publish,
            host: "here".into(),
            machine: machine.into(),
            pid,
            started,
            what: "a test".into(),
            since: 0,
            expires: u64::MAX,
        };
        let started = start_time(child.id()).unwrap();
        let alive = of(child.id(), started, &this.machine);
        assert!(!is_gone(&alive));
        assert!(is_gone(&of(child.id(), started + 1, &this.machine)), "another process has its number now");
        assert!(is_gone(&of(this.pid, this.started, &this.machine)), "nobody in this process holds it");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_gone(&alive));
        assert!(!is_gone(&of(child.id(), started, "elsewhere")), "nothing is known of other machines");
        assert!(!is_gone(&of(child.id(), started, "")));
    }

    #[test]
    fn a_storage_that_fails_now_and_then_does_not_end_it() {
        let store = Arc::new(MemoryStore::default());
        let guard = take(&store, LeaseKind::Prepare, 6).unwrap();
        store.fail_after(0);
        std::thread::sleep(Duration::from_millis(2200));
        assert!(!guard.is_lost());
        store.fail_after(i64::MAX);
        std::thread::sleep(Duration::from_millis(800));
        let before = current(&store)[0].expires;
        assert!(before > now() + 4, "it was renewed");
        store.fail_after(0);
        drop(guard);
        store.fail_after(i64::MAX);
        assert_eq!(store.read(LEASES).unwrap().map(|f| f.is_empty()), Some(false));
        take(&store, LeaseKind::Collect, 3).unwrap();
    }
}
