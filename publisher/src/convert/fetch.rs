//! A layer to be fetched, and what a reader makes of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use image::digest::{DiffId, LayerDigest};
use image::manifest::Layer;

use super::Converter;
use super::room::Entered;
use crate::content::{Collector, Pool};
use crate::failure::Failure;
use crate::layer::{Base, LayerPlace, PreparedLayer, StagedLayer, read_layer};
use crate::progress::{Event, Teller};
use crate::source::Asked;

/// A blob, and what its content is said to be: a config that lies about a blob is a matter of its own image only.
pub(super) type LayerKey = (LayerDigest, DiffId);

pub(super) fn key(layer: &Layer) -> LayerKey {
    (layer.descriptor.digest, layer.diff_id)
}

/// A layer to be fetched.
pub(super) struct Fetch<'a> {
    pub(super) layer: &'a Layer,
    pub(super) place: LayerPlace,
    pub(super) source: Asked<'a>,
    pub(super) image: &'a str,
}

/// What a reader sends.
pub(super) struct Arrived {
    pub(super) layer: LayerKey,
    pub(super) bytes: u64,
    pub(super) stored: u64,
    pub(super) deduplicated: u64,
    pub(super) result: Result<Staged, Failure>,
    /// The room that it takes, if it was let in.
    pub(super) room: Option<Entered>,
}

pub(super) enum Staged {
    Waits(Box<StagedLayer>),
    Done(PreparedLayer),
}

/// Reads one layer; prepares it at once if nothing below it matters.
pub(super) fn read(converter: &Converter<'_>, pool: &Pool, fetch: &Fetch<'_>) -> Arrived {
    let descriptor = &fetch.layer.descriptor;
    let text = descriptor.digest.to_string();
    let teller = Teller { progress: &*converter.progress, image: fetch.image, layer: &text, total: descriptor.size };
    let collector = Arc::new(Collector::default());
    let work = || {
        let blob = converter.sources.layer(fetch.source, descriptor).map_err(|e| e.of_layer(descriptor.digest))?;
        let staged = read_layer(fetch.layer, blob, pool, &collector, &converter.options.limits.layer, &teller)?;
        let staged = staged.at(fetch.place);
        if staged.depends_on_lower() {
            return Ok(Staged::Waits(Box::new(staged)));
        }
        Ok(Staged::Done(staged.prepare(converter.target, pool, &Base::default())?))
    };
    let result = work();
    let bytes = if result.is_ok() { descriptor.size } else { 0 };
    if result.is_ok() {
        teller.progress.event(Event::LayerFinished { image: fetch.image, layer: &text, bytes, known: false });
    }
    let cost = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Arrived {
        layer: key(fetch.layer),
        bytes,
        stored: cost(&collector.cost.stored),
        deduplicated: cost(&collector.cost.deduplicated),
        result,
        room: None,
    }
}

impl Fetch<'_> {
    /// What there is to say of a layer that was not let in.
    pub(super) fn refused(&self, failure: Failure) -> Arrived {
        let (layer, result) = (key(self.layer), Err(failure.of_layer(self.layer.descriptor.digest)));
        Arrived { layer, bytes: 0, stored: 0, deduplicated: 0, result, room: None }
    }
}
