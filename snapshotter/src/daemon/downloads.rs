//! Layers that containerd had to download: which, why, and how large they have become.
//!
//! The reason is known when a layer is asked for, the size when it is unpacked; this joins the two. What stands here is
//! of this run of the daemon, and bounded.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Layers being unpacked that are remembered.
const MAX_UNPACKING: usize = 10_000;
/// Images that are remembered, the last ones.
const MAX_IMAGES: usize = 20;

/// A layer that is being downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missed {
    /// its image, if containerd said so; else the layer itself
    pub(super) image: String,
    /// why
    pub(super) reason: String,
    /// the same as one of a few words
    pub(super) class: &'static str,
}

/// What was downloaded of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downloaded {
    /// its name, if containerd said it; else the stack of layers
    pub image: String,
    /// layers
    pub layers: u64,
    /// bytes that they take unpacked
    pub bytes: u64,
    /// why the last of them was downloaded
    pub reason: String,
    /// when, in Unix seconds
    pub last: u64,
}

#[derive(Debug, Default)]
struct State {
    unpacking: HashMap<String, Missed>,
    images: VecDeque<Downloaded>,
}

/// What was downloaded since the start.
#[derive(Debug, Default)]
pub(super) struct Downloads(Mutex<State>);

impl Downloads {
    /// A layer is going to be unpacked under this key.
    pub(super) fn begin(&self, key: &str, missed: Missed) {
        let mut state = self.0.lock();
        // Of pulls that were given up.
        if state.unpacking.len() >= MAX_UNPACKING {
            state.unpacking.clear();
        }
        state.unpacking.insert(key.to_owned(), missed);
    }

    /// It has been given up.
    pub(super) fn forget(&self, key: &str) {
        self.0.lock().unpacking.remove(key);
    }

    /// A snapshot was committed: why it was downloaded, if it was.
    pub(super) fn end(&self, key: &str, bytes: u64, now: u64) -> Option<Missed> {
        let mut state = self.0.lock();
        let missed = state.unpacking.remove(key)?;
        let mut image = match state.images.iter().position(|known| known.image == missed.image) {
            Some(place) => state.images.remove(place)?,
            None => {
                let (image, reason) = (missed.image.clone(), missed.reason.clone());
                Downloaded { image, layers: 0, bytes: 0, reason, last: now }
            }
        };
        image.layers += 1;
        image.bytes = image.bytes.saturating_add(bytes);
        (image.reason, image.last) = (missed.reason.clone(), now);
        state.images.push_front(image);
        state.images.truncate(MAX_IMAGES);
        Some(missed)
    }

    /// The last images, the newest first.
    pub(super) fn last(&self) -> Vec<Downloaded> {
        self.0.lock().images.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(image: &str, reason: &str) -> Missed {
        Missed { image: image.to_owned(), reason: reason.to_owned(), class: "absent" }
    }

    #[test]
    fn layers_add_up_to_images_and_only_the_last_images_stay() {
        let downloads = Downloads::default();
        downloads.begin("1", missed("a", "absent"));
        downloads.begin("2", missed("a", "down"));
        downloads.begin("3", missed("b", "absent"));
        assert_eq!(downloads.end("1", 10, 5), Some(missed("a", "absent")));
        assert_eq!(downloads.end("1", 10, 5), None, "once");
        downloads.end("2", 7, 6);
        downloads.forget("3");
        assert_eq!(downloads.end("3", 7, 6), None);
        let expected = Downloaded { image: "a".into(), layers: 2, bytes: 17, reason: "down".into(), last: 6 };
        assert_eq!(downloads.last(), [expected]);
        for number in 0..100 {
            downloads.begin("k", missed(&number.to_string(), "x"));
            downloads.end("k", 1, 7);
        }
        let names: Vec<String> = downloads.last().into_iter().map(|image| image.image).collect();
        assert_eq!((names.len(), names[0].as_str()), (MAX_IMAGES, "99"));
    }
}
