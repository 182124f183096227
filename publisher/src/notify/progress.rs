//! Events of a pass as notifications, on their way to whoever shows them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Channels, Notifier, seconds, unique};
use crate::progress::{Event, Progress};

/// Tells, and hands every event on.
pub struct Telling {
    inner: Arc<dyn Progress>,
    channels: Arc<Channels>,
    open: Mutex<HashMap<(Work, String), Begun>>,
}

/// What has a start and an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Image,
    Layer,
    Flat,
}

struct Begun {
    id: String,
    image: String,
    at: Instant,
}

impl fmt::Debug for Telling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telling").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Notifier {
    /// The same progress, told to others as well.
    pub fn telling(&self, inner: Arc<dyn Progress>) -> Telling {
        Telling { inner, channels: self.channels.clone(), open: Mutex::default() }
    }
}

impl Telling {
    /// Begins something; tells so, unless it has begun.
    fn begin(&self, work: Work, name: &str, image: &str, action: &str, fields: &[(&'static str, &str)]) {
        let id = {
            let mut open = self.open.lock();
            let key = (work, name.to_owned());
            if open.contains_key(&key) {
                return;
            }
            let id = unique();
            open.insert(key, Begun { id: id.clone(), image: image.to_owned(), at: Instant::now() });
            id
        };
        self.channels.tell(action, &[fields, &[("id", id.as_str())]].concat());
    }

    /// Ends something that has begun.
    fn end(&self, work: Work, name: &str, action: &str, fields: &[(&'static str, &str)], error: Option<&str>) {
        let Some(Begun { id, at, .. }) = self.open.lock().remove(&(work, name.to_owned())) else { return };
        let elapsed = seconds(at.elapsed());
        let status = if error.is_some() { "error" } else { "ok" };
        let mut all = vec![("id", id.as_str()), ("time_elapsed_s", &elapsed), ("status", status)];
        all.extend_from_slice(fields);
        all.extend(error.map(|error| ("error", error)));
        self.channels.tell(action, &all);
    }

    /// Layers that were begun for an image and have not ended: with it, they fail.
    fn layers_of(&self, image: &str) -> Vec<String> {
        let open = self.open.lock();
        let of_image = open.iter().filter(|((work, _), begun)| *work == Work::Layer && begun.image == image);
        of_image.map(|((_, layer), _)| layer.clone()).collect()
    }

    fn tell(&self, event: Event<'_>) {
        match event {
            Event::ImageStarted { image, .. } => {
                self.begin(Work::Image, image, image, "start_image_conversion", &[("image", image)]);
            }
            Event::LayerBytes { image, layer, .. } => {
                let fields = [("image", image), ("layer", layer)];
                self.begin(Work::Layer, layer, image, "start_layer_conversion", &fields);
            }
            Event::LayerFinished { known: true, .. } | Event::Message { .. } => {}
            Event::LayerFinished { image, layer, bytes, known: false } => {
                let size = bytes.to_string();
                let fields = [("image", image), ("layer", layer), ("size_bytes", &*size)];
                self.end(Work::Layer, layer, "end_layer_conversion", &fields, None);
            }
            Event::ImageStage { image, stage: "flattening" } => {
                self.begin(Work::Flat, image, image, "start_flat_conversion", &[("image_request", image)]);
            }
            Event::ImageStage { image, .. } => {
                self.end(Work::Flat, image, "end_flat_conversion", &[("image_request", image)], None);
            }
            Event::ImagePublished { image, path, flat, layers, revision } => {
                for layer in layers {
                    self.channels.tell("publish_layer", &[("image", image), ("layer_digest", layer)]);
                }
                let revision = revision.to_string();
                let paths = [("image_request", image), ("public_path", path), ("private_path", flat)];
                self.channels.tell("publish_flat_image", &[&paths[..], &[("revision", &revision)]].concat());
            }
            Event::ImageFinished { image, outcome, error, .. } => {
                for layer in self.layers_of(image) {
                    let fields = [("image", image), ("layer", layer.as_str())];
                    self.end(Work::Layer, &layer, "end_layer_conversion", &fields, error.or(Some("given up")));
                }
                self.end(Work::Flat, image, "end_flat_conversion", &[("image_request", image)], error);
                let fields = [("image", image), ("outcome", outcome.as_str())];
                self.end(Work::Image, image, "end_image_conversion", &fields, error);
            }
        }
    }
}

impl Progress for Telling {
    fn event(&self, event: Event<'_>) {
        self.tell(event);
        self.inner.event(event);
    }
}
