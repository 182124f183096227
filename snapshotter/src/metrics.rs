//! What is counted. Names, units and meanings are in `doc/SNAPSHOTTER.md`; nothing is labelled by image or layer.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::metadata::Counts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Prepared {
    result: &'static str,
    method: String,
    repository: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRepository {
    repository: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMethod {
    method: &'static str,
}

/// Counters of a daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    prepared: Family<Prepared, Counter>,
    results: Mutex<BTreeMap<&'static str, u64>>,
    seconds: Family<ByMethod, Histogram>,
    fallback: Family<Reason, Counter>,
    avoided: Counter<u64, AtomicU64>,
    downloaded: Family<Reason, Counter<u64, AtomicU64>>,
    announced: Family<ByResult, Counter>,
    legacy: Counter,
    up: Family<ByRepository, Gauge>,
    snapshots: Family<ByKind, Gauge>,
}

fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cvmfs_snapshotter");
        let seconds = Family::new_with_constructor(histogram as fn() -> Histogram);
        let metrics = Self {
            prepared: Family::default(),
            results: Mutex::new(["remote", "existing", "filled", "miss", "refused"].map(|result| (result, 0)).into()),
            seconds,
            fallback: Family::default(),
            avoided: Counter::default(),
            downloaded: Family::default(),
            announced: Family::default(),
            legacy: Counter::default(),
            up: Family::default(),
            snapshots: Family::default(),
            registry: Registry::default(),
        };
        registry.register("prepare", "Layers that were asked for, by what became of them", metrics.prepared.clone());
        registry.register_with_unit("request", "Time of requests", Unit::Seconds, metrics.seconds.clone());
        registry.register("fallback", "Layers that containerd has to download", metrics.fallback.clone());
        registry.register_with_unit(
            "avoided",
            "Unpacked size of layers that were not downloaded",
            Unit::Bytes,
            metrics.avoided.clone(),
        );
        registry.register_with_unit(
            "downloaded",
            "Unpacked size of layers that had to be downloaded",
            Unit::Bytes,
            metrics.downloaded.clone(),
        );
        registry.register(
            "announced",
            "Start-up lists that the client of a repository was told of",
            metrics.announced.clone(),
        );
        registry.register("legacy_layers", "Uses of layers with literal whiteouts", metrics.legacy.clone());
        registry.register(
            "repository_up",
            "Whether the repository could be read when it was last looked at",
            metrics.up.clone(),
        );
        registry.register("snapshots", "Snapshots", metrics.snapshots.clone());
        registry.register("build", "Program", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// A layer was asked for.
    pub fn prepared(&self, result: &'static str, method: &str, repository: &str, start: Instant) {
        let labels = Prepared { result, method: method.to_owned(), repository: repository.to_owned() };
        self.prepared.get_or_create(&labels).inc();
        *self.results.lock().entry(result).or_default() += 1;
        self.request("Prepare layer", start);
    }

    /// A request was answered.
    pub fn request(&self, method: &'static str, start: Instant) {
        self.seconds.get_or_create(&ByMethod { method }).observe(start.elapsed().as_secs_f64());
    }

    /// containerd has to download a layer.
    pub fn fallback(&self, reason: &'static str) {
        self.fallback.get_or_create(&Reason { reason }).inc();
    }

    /// Bytes that were not unpacked.
    pub fn avoided(&self, bytes: u64) {
        self.avoided.inc_by(bytes);
    }

    /// A layer was downloaded and unpacked.
    pub fn downloaded(&self, reason: &'static str, bytes: u64) {
        self.downloaded.get_or_create(&Reason { reason }).inc_by(bytes);
    }

    /// A client was told of a start-up list, or could not be.
    pub fn announced(&self, result: &'static str) {
        self.announced.get_or_create(&ByResult { result }).inc();
    }

    /// A layer with literal whiteouts was used.
    pub fn legacy(&self) {
        self.legacy.inc();
    }

    /// A repository could be read, or not.
    pub fn repository_up(&self, repository: &str, up: bool) {
        self.up.get_or_create(&ByRepository { repository: repository.to_owned() }).set(i64::from(up));
    }

    /// How many snapshots there are.
    pub fn count(&self, counts: Counts) {
        let kinds =
            [("active", counts.active), ("view", counts.views), ("remote", counts.remote), ("local", counts.local)];
        for (kind, count) in kinds {
            self.snapshots.get_or_create(&ByKind { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Layers by what became of them.
    pub fn results(&self) -> BTreeMap<&'static str, u64> {
        self.results.lock().clone()
    }

    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string can't fail");
        text
    }
}
