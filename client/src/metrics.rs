//! The state of mounts as Prometheus reads it (text format 0.0.4), for a textfile collector or a script.
//!
//! Names are stable; `_total` only grows while a client runs, everything else goes up and down. Nothing listens anywhere.

use std::fmt::Write as _;

use crate::control::Status;

/// A number of one mount.
type Value = fn(&Status) -> u64;

/// Every metric: name, type, meaning, value.
#[rustfmt::skip]
const METRICS: &[(&str, &str, &str, Value)] = &[
    ("uptime_seconds", "gauge", "Time since the mount.", |s| s.uptime),
    ("revision", "gauge", "Revision shown.", |s| s.revision),
    ("offline", "gauge", "1 when the last check for a new revision failed.", |s| s.offline.is_some().into()),
    ("switched", "gauge", "1 while a server or proxy is in use that is not the first choice.", |s| s.switched.is_some().into()),
    ("catalogs", "gauge", "Attached catalogs.", |s| s.catalogs as u64),
    ("inodes", "gauge", "Inodes held by the kernel.", |s| s.inodes as u64),
    ("open_files", "gauge", "Open files.", |s| s.open_files as u64),
    ("cache_bytes", "gauge", "Bytes in the cache.", |s| s.cache_used),
    ("cache_limit_bytes", "gauge", "Bytes the cache may hold, 0 = unlimited.", |s| s.cache_limit.unwrap_or(0)),
    ("cache_cleanups_total", "counter", "Times old objects were removed.", |s| s.cache_evictions),
    ("downloads_total", "counter", "Objects downloaded.", |s| s.downloads),
    ("received_bytes_total", "counter", "Bytes received.", |s| s.received),
    ("transfer_milliseconds_total", "counter", "Time of all downloads together.", |s| s.transfer_millis),
    ("retries_total", "counter", "Requests sent again after a failure.", |s| s.retries),
    ("failovers_total", "counter", "Changes of server or proxy after a failure.", |s| s.failovers),
    ("io_errors_total", "counter", "Operations that ended in an I/O error.", |s| s.io_errors),
    ("prefetch_objects_total", "counter", "Objects fetched ahead.", |s| s.prefetch.fetched),
    ("prefetch_bytes_total", "counter", "Plain bytes of them.", |s| s.prefetch.fetched_bytes),
    ("prefetch_unused_bytes", "gauge", "Of these, what nobody has opened so far.", |s| s.prefetch.unused_bytes),
    ("prefetch_failures_total", "counter", "What could not be fetched ahead.", |s| s.prefetch.failures),
    ("prefetch_left_out_total", "counter", "What was not fetched ahead because of a bound.", |s| s.prefetch.left_out),
    ("prefetch_resting", "gauge", "1 while nothing is fetched ahead after failures.", |s| s.prefetch.resting.is_some().into()),
    ("delayed_readers_total", "counter", "Readers that waited unusually long beside what is fetched ahead.", |s| s.prefetch.delayed),
];

/// All metrics of these mounts.
pub fn print(mounts: &[Status]) -> String {
    let mut text = String::new();
    let begin = |name: &str, kind: &str, help: &str| {
        format!("# HELP cvmfs_client_{name} {help}\n# TYPE cvmfs_client_{name} {kind}\n")
    };
    for (name, kind, help, value) in METRICS {
        text += &begin(name, kind, help);
        for mount in mounts {
            let _ = writeln!(text, "cvmfs_client_{name}{{{}}} {}", labels(mount), value(mount));
        }
    }
    text += &begin("kernel_requests_total", "counter", "Requests of the kernel by kind.");
    for mount in mounts {
        for (kind, count) in &mount.requests {
            let _ = writeln!(text, "cvmfs_client_kernel_requests_total{{{},kind=\"{kind}\"}} {count}", labels(mount));
        }
    }
    text
}

fn labels(mount: &Status) -> String {
    format!("repository=\"{}\",mountpoint=\"{}\"", escape(&mount.fqrn), escape(&mount.mountpoint))
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_used_once_and_counters_end_in_total() {
        let names: HashSet<_> = METRICS.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), METRICS.len());
        assert!(METRICS.iter().all(|(name, kind, ..)| name.ends_with("_total") == (*kind == "counter")));
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
