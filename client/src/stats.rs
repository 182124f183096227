//! What the client counts: shown by `status` and by the information attributes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A name in a directory.
    Lookup,
    /// Inodes it has dropped.
    Forget,
    /// What `stat` shows.
    Getattr,
    /// Target of a link.
    Readlink,
    /// An extended attribute.
    Getxattr,
    /// Names of extended attributes.
    Listxattr,
    /// Opening a file.
    Open,
    /// Bytes of a file.
    Read,
    /// Closing a file.
    Release,
    /// Closing a descriptor.
    Flush,
    /// Opening a directory.
    Opendir,
    /// Names of a directory.
    Readdir,
    /// The same with attributes.
    Readdirplus,
    /// A request to a device, which nothing here is.
    Ioctl,
    /// Size of the file system.
    Statfs,
    /// What is not supported.
    Other,
}

impl Request {
    /// Every kind with its name.
    pub const ALL: [(Request, &str); 16] = [
        (Request::Lookup, "lookup"),
        (Request::Forget, "forget"),
        (Request::Getattr, "getattr"),
        (Request::Readlink, "readlink"),
        (Request::Getxattr, "getxattr"),
        (Request::Listxattr, "listxattr"),
        (Request::Open, "open"),
        (Request::Read, "read"),
        (Request::Release, "release"),
        (Request::Flush, "flush"),
        (Request::Opendir, "opendir"),
        (Request::Readdir, "readdir"),
        (Request::Readdirplus, "readdirplus"),
        (Request::Ioctl, "ioctl"),
        (Request::Statfs, "statfs"),
        (Request::Other, "other"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Request::ALL[self as usize].1
    }
}

/// Requests of the kernel by kind.
#[derive(Debug, Default)]
pub struct Requests([Counter; Request::ALL.len()]);

impl Requests {
    /// One more of this kind.
    pub fn count(&self, request: Request) {
        self.0[request as usize].add(1);
    }

    /// So many of this kind.
    pub fn get(&self, request: Request) -> u64 {
        self.0[request as usize].get()
    }

    /// Those that were made, by name.
    pub fn made(&self) -> BTreeMap<String, u64> {
        let all = Request::ALL.iter().map(|(request, name)| ((*name).to_owned(), self.get(*request)));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

/// Counters of one mount.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests of the kernel.
    pub requests: Requests,
    /// Objects downloaded and verified.
    pub downloads: Counter,
    /// Bytes of answers, as they came over the network.
    pub received: Counter,
    /// Microseconds spent in downloads, those that run at the same time counted apart.
    pub transfer_micros: Counter,
    /// Objects found in the cache.
    pub cache_hits: Counter,
    /// Objects not found in the cache.
    pub cache_misses: Counter,
    /// Requests that had to be sent again.
    pub retries: Counter,
    /// Times another server or proxy was chosen after a failure.
    pub failovers: Counter,
    /// Times a reader waited unusually long while objects were fetched ahead.
    pub delayed: Counter,
    /// Files and parts of files that were to be fetched ahead and could not be had.
    pub ahead_failures: Counter,
    /// Files and parts of files that were not fetched ahead because too many were waiting, or a bound was reached.
    pub ahead_left_out: Counter,
    /// Files opened.
    pub opens: Counter,
    /// Directories listed.
    pub directory_opens: Counter,
    /// Operations that ended in an I/O error.
    pub io_errors: Counter,
    /// Unix seconds of the last I/O error; 0 = none.
    last_io_error: AtomicU64,
}

impl Stats {
    /// An operation failed with an I/O error.
    pub fn io_error(&self) {
        self.io_errors.add(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_io_error.store(now.as_secs(), Ordering::Relaxed);
    }

    /// Unix seconds of the last I/O error; 0 = none.
    pub fn last_io_error(&self) -> u64 {
        self.last_io_error.load(Ordering::Relaxed)
    }

    /// Objects found in the cache, in thousandths of all asked for.
    pub fn hit_rate(&self) -> u64 {
        let (hits, misses) = (self.cache_hits.get(), self.cache_misses.get());
        (hits * 1000).checked_div(hits + misses).unwrap_or(0)
    }

    /// KiB a second over all downloads.
    pub fn speed(&self) -> u64 {
        let seconds_times_million = self.transfer_micros.get();
        (self.received.get() / 1024).saturating_mul(1_000_000).checked_div(seconds_times_million).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_request_has_a_counter_of_its_own() {
        let requests = Requests::default();
        for (number, (request, _)) in Request::ALL.iter().enumerate() {
            assert_eq!(*request as usize, number);
            requests.count(*request);
        }
        requests.count(Request::Read);
        assert_eq!((requests.made().len(), requests.made()["read"]), (Request::ALL.len(), 2));
    }
}
