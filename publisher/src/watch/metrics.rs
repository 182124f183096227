//! What is counted. Names, units and meanings are in `doc/WATCHING.md`; nothing is labelled by image, of which there are thousands.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use registry::Budgets;
use registry::budget::Snapshot;
use time::UtcDateTime;

use super::outcomes::Outcomes;
use super::status::CollectionStatus;
use crate::report::Report;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRegistry {
    registry: String,
}

/// Counters of a watching publisher.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    images: Family<ByOutcome, Gauge>,
    changes: Family<ByOutcome, Counter>,
    passes: Family<ByResult, Counter>,
    seconds: Histogram,
    downloaded: Counter<u64, AtomicU64>,
    stored: Counter<u64, AtomicU64>,
    hooks: Family<ByResult, Counter>,
    queue: Gauge,
    whitelist: Gauge,
    revision: Gauge,
    condemned: Gauge,
    swept: Counter,
    removed: Counter<u64, AtomicU64>,
    undelivered: Gauge,
    budgets: Budgets,
    requests: Family<ByRegistry, Gauge>,
    throttled: Family<ByRegistry, Gauge>,
    paused: Family<ByRegistry, Gauge>,
    left: Family<ByRegistry, Gauge>,
}

impl Metrics {
    /// With those of registries that are asked within these budgets.
    pub fn new(budgets: Budgets) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cvmfs_publisher"),
            images: Family::default(),
            changes: Family::default(),
            passes: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.05, 2.0, 16)),
            downloaded: Counter::default(),
            stored: Counter::default(),
            hooks: Family::default(),
            queue: Gauge::default(),
            whitelist: Gauge::default(),
            revision: Gauge::default(),
            condemned: Gauge::default(),
            swept: Counter::default(),
            removed: Counter::default(),
            undelivered: Gauge::default(),
            budgets,
            requests: Family::default(),
            throttled: Family::default(),
            paused: Family::default(),
            left: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "images",
            "Images of the list, by what became of them at the last look",
            metrics.images.clone(),
        );
        registry.register("changes", "What became of images since the start", metrics.changes.clone());
        registry.register("passes", "Passes since the start", metrics.passes.clone());
        registry.register_with_unit("pass", "Time of passes", Unit::Seconds, metrics.seconds.clone());
        registry.register_with_unit("downloaded", "Received from registries", Unit::Bytes, metrics.downloaded.clone());
        registry.register_with_unit("stored", "Written into the repository", Unit::Bytes, metrics.stored.clone());
        registry.register("hooks", "Notifications of registries", metrics.hooks.clone());
        registry.register("queue", "Events that wait for their pass", metrics.queue.clone());
        registry.register_with_unit(
            "whitelist",
            "Time until clients refuse the whitelist",
            Unit::Seconds,
            metrics.whitelist.clone(),
        );
        registry.register("revision", "Revision of the repository", metrics.revision.clone());
        registry.register(
            "condemned",
            "Layers and flats that wait for the end of their grace",
            metrics.condemned.clone(),
        );
        registry.register("swept", "Layers and flats removed since the start", metrics.swept.clone());
        registry.register_with_unit(
            "removed",
            "Objects removed from the storage",
            Unit::Bytes,
            metrics.removed.clone(),
        );
        registry.register(
            "notifications_lost",
            "Notifications since the start that reached nobody",
            metrics.undelivered.clone(),
        );
        registry.register("registry_requests", "Requests to a registry since the start", metrics.requests.clone());
        registry.register("registry_throttled", "Pauses that a registry asked for", metrics.throttled.clone());
        registry.register_with_unit(
            "registry_paused",
            "Time until a registry is asked again, or a mirror that failed",
            Unit::Seconds,
            metrics.paused.clone(),
        );
        registry.register("registry_left", "Requests that a registry says are left", metrics.left.clone());
        metrics
    }

    /// A pass came to an end.
    pub fn note(&self, report: &Report, took: Duration) {
        self.passes.get_or_create(&ByResult { result: "done" }).inc();
        self.seconds.observe(took.as_secs_f64());
        for wish in &report.wishes {
            self.changes.get_or_create(&ByOutcome { outcome: wish.outcome.as_str() }).inc();
            self.downloaded.inc_by(wish.bytes.downloaded);
            self.stored.inc_by(wish.bytes.stored);
        }
        if let Some(revision) = report.revision {
            self.revision.set(revision.try_into().unwrap_or(i64::MAX));
        }
    }

    /// So many notifications reached nobody.
    pub fn undelivered(&self, count: u64) {
        self.undelivered.set(count.try_into().unwrap_or(i64::MAX));
    }

    /// A pass could not be made.
    pub fn failed_pass(&self) {
        self.passes.get_or_create(&ByResult { result: "failed" }).inc();
    }

    /// What nothing needs was collected.
    pub fn collected(&self, collection: &CollectionStatus) {
        self.condemned.set(collection.condemned.try_into().unwrap_or(i64::MAX));
        self.swept.inc_by(collection.swept as u64);
        self.removed.inc_by(collection.objects.map_or(0, |(_, bytes)| bytes));
    }

    /// A notification came.
    pub fn hook(&self, result: &'static str) {
        self.hooks.get_or_create(&ByResult { result }).inc();
    }

    /// So much is left of the whitelist.
    pub fn whitelist(&self, expires: Option<UtcDateTime>, now: UtcDateTime) {
        self.whitelist.set(expires.map_or(0, |expires| (expires - now).whole_seconds()));
    }

    /// What images are now.
    pub fn images(&self, outcomes: &Outcomes) {
        self.images.clear();
        for outcome in outcomes.images.values() {
            self.images.get_or_create(&ByOutcome { outcome: outcome.outcome.as_str() }).inc();
        }
    }

    /// What the budgets of registries have come to.
    pub fn registries(&self) -> Vec<Snapshot> {
        self.budgets.snapshot()
    }

    /// All of it, in the text form of OpenMetrics.
    pub fn text(&self, queue: usize) -> String {
        let number = |value: u64| value.try_into().unwrap_or(i64::MAX);
        self.queue.set(number(queue as u64));
        for seen in self.registries() {
            let by = ByRegistry { registry: seen.registry };
            self.requests.get_or_create(&by).set(number(seen.requests));
            self.throttled.get_or_create(&by).set(number(seen.throttled));
            self.paused.get_or_create(&by).set(number(seen.paused.max(seen.passed_over).unwrap_or_default()));
            if let Some(left) = seen.left {
                self.left.get_or_create(&by).set(number(left.requests));
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}
