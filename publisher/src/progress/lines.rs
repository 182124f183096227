//! Progress as lines: for logs that people read, and for programs.
//!
//! Plain lines come when something is finished, so a log stays short whatever the size of the layers. JSON lines also
//! tell how far a layer is, at most once a second a layer.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::DecimalBytes;
use parking_lot::Mutex;

use super::{Event, Progress};
use crate::error::printable;

/// Time between two [`Event::LayerBytes`] of one layer in the JSON form.
const BYTES_INTERVAL: Duration = Duration::from_secs(1);

/// One line for each finished layer and image.
pub struct PlainLines<W> {
    out: Mutex<W>,
}

impl<W: Write> PlainLines<W> {
    /// Writes to `out`, a line at a time.
    pub fn new(out: W) -> Self {
        Self { out: Mutex::new(out) }
    }
}

impl<W> fmt::Debug for PlainLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainLines").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Progress for PlainLines<W> {
    fn event(&self, event: Event<'_>) {
        if let Some(line) = line(event) {
            // Progress is talk: nobody can be told that it can't be written.
            let _ = writeln!(self.out.lock(), "{}", printable(&line));
        }
    }
}

/// What people read about an event that is worth a line.
pub(super) fn line(event: Event<'_>) -> Option<String> {
    match event {
        Event::ImageStarted { .. }
        | Event::ImageStage { .. }
        | Event::LayerBytes { .. }
        | Event::ImagePublished { .. } => None,
        Event::LayerFinished { known: true, .. } => None,
        Event::LayerFinished { image, layer, bytes, known: false } => {
            Some(format!("{image}: layer {layer} stored, {} received", DecimalBytes(bytes)))
        }
        Event::ImageFinished { image, outcome, error, seconds } => {
            let reason = error.map(|error| format!(": {error}")).unwrap_or_default();
            Some(format!("{image}: {} after {seconds:.1} s{reason}", outcome.as_str()))
        }
        Event::Message { text } => Some(text.to_owned()),
    }
}

/// One JSON object a line.
pub struct JsonLines<W> {
    state: Mutex<JsonState<W>>,
}

struct JsonState<W> {
    out: W,
    /// When bytes of a layer were last written about.
    told: HashMap<String, Instant>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`, a line at a time.
    pub fn new(out: W) -> Self {
        Self { state: Mutex::new(JsonState { out, told: HashMap::new() }) }
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}

impl<W: Write + Send> Progress for JsonLines<W> {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock();
        match event {
            Event::LayerBytes { layer, .. } => {
                let now = Instant::now();
                if state.told.get(layer).is_some_and(|last| now.duration_since(*last) < BYTES_INTERVAL) {
                    return;
                }
                state.told.insert(layer.to_owned(), now);
            }
            Event::LayerFinished { layer, .. } => {
                state.told.remove(layer);
            }
            _ => {}
        }
        // One write a line: other programs may share the standard error.
        let mut line = serde_json::to_string(&event).expect("an event holds only strings and numbers");
        line.push('\n');
        let _ = state.out.write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Outcome;

    const IMAGE: &str = "https://quay.io/tools/app:1";

    fn play(progress: &dyn Progress) {
        progress.event(Event::ImageStarted { image: IMAGE, layers: 2, total: Some(1000) });
        for done in 1..=1000 {
            progress.event(Event::LayerBytes { image: IMAGE, layer: "sha256:aa", done, total: Some(1000) });
        }
        progress.event(Event::LayerFinished { image: IMAGE, layer: "sha256:aa", bytes: 1000, known: false });
        progress.event(Event::LayerFinished { image: IMAGE, layer: "sha256:bb", bytes: 0, known: true });
        progress.event(Event::ImageStage { image: IMAGE, stage: "flattening" });
        progress.event(Event::ImageFinished {
            image: IMAGE,
            outcome: Outcome::Failed,
            error: Some("disk\nfull"),
            seconds: 2.04,
        });
        progress.event(Event::Message { text: "the whitelist expires in 3 days" });
    }

    #[test]
    fn plain_lines_tell_only_what_is_finished() {
        let progress = PlainLines::new(Vec::new());
        play(&progress);
        let text = String::from_utf8(progress.out.into_inner()).unwrap();
        assert_eq!(
            text,
            "https://quay.io/tools/app:1: layer sha256:aa stored, 1.00 kB received\n\
             https://quay.io/tools/app:1: failed after 2.0 s: disk\u{fffd}full\n\
             the whitelist expires in 3 days\n"
        );
    }

    #[test]
    fn json_lines_limit_the_rate_of_bytes_a_layer() {
        let progress = JsonLines::new(Vec::new());
        play(&progress);
        let state = progress.state.into_inner();
        assert!(state.told.is_empty(), "finished layers are forgotten");
        let events: Vec<String> = String::from_utf8(state.out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
            .collect();
        let bytes = events.iter().filter(|name| *name == "layer_bytes").count();
        assert!((1..20).contains(&bytes), "{bytes} events about bytes of one layer");
        let others: Vec<&String> = events.iter().filter(|name| *name != "layer_bytes").collect();
        assert_eq!(
            others,
            ["image_started", "layer_finished", "layer_finished", "image_stage", "image_finished", "message"]
        );
    }

    #[test]
    fn lines_of_several_threads_are_never_mixed() {
        let progress = PlainLines::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| progress.event(Event::Message { text: "one whole line" })));
            }
        });
        let text = String::from_utf8(progress.out.into_inner()).unwrap();
        assert_eq!(text.lines().filter(|line| *line == "one whole line").count(), 200);
    }
}
