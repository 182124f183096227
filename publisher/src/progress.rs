//! How far a pass has got: the library reports [`Event`]s, the program decides how to show them.
//!
//! The trait has one verb, so a wrapper (a recorder in a test, a status page) forwards it in one line. Implementations:
//! bars on a terminal, log lines elsewhere, JSON lines for programs, nothing.
//!
//! Contract
//! - Events come from several threads at once; a [`Progress`] locks by itself and returns quickly.
//! - [`Event::LayerBytes`] may be sent for every buffer that was read: an implementation limits its own rate.
//! - Progress is talk, never a result: it goes to standard error, and failing to write it is ignored.

mod lines;
mod terminal;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use indicatif::MultiProgress;
use serde::Serialize;

pub use self::lines::{JsonLines, PlainLines};
pub use self::terminal::Terminal;
use crate::layer::LayerProgress;
use crate::report::Outcome;

/// Something happened to an image. `image` is the printed reference, `layer` the printed layer digest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// Work on an image begins: its manifest is known.
    ImageStarted {
        /// The image.
        image: &'a str,
        /// How many layers it has.
        layers: usize,
        /// Compressed size of the layers that have to be fetched, if the manifest tells.
        total: Option<u64>,
    },
    /// A step other than fetching begins, in a word or two: `flattening`, `publishing`.
    ImageStage {
        /// The image.
        image: &'a str,
        /// The step.
        stage: &'a str,
    },
    /// More of a layer has arrived.
    LayerBytes {
        /// The image for whose sake the layer is fetched.
        image: &'a str,
        /// The layer.
        layer: &'a str,
        /// Compressed bytes received since the beginning of the layer (not since the last event).
        done: u64,
        /// Compressed size of the layer, if it is known.
        total: Option<u64>,
    },
    /// A layer is stored.
    LayerFinished {
        /// The image for whose sake the layer was fetched.
        image: &'a str,
        /// The layer.
        layer: &'a str,
        /// Compressed bytes that were received; 0 for a layer that was there already.
        bytes: u64,
        /// Whether the layer was there already.
        known: bool,
    },
    /// A revision has it.
    ImagePublished {
        /// The image.
        image: &'a str,
        /// Where its name is in the repository.
        path: &'a str,
        /// Where its flat is.
        flat: &'a str,
        /// The layers that came with it.
        layers: &'a [String],
        /// The revision.
        revision: u64,
    },
    /// Nothing more will happen to this image.
    ImageFinished {
        /// The image.
        image: &'a str,
        /// What became of it.
        outcome: Outcome,
        /// Why it failed.
        error: Option<&'a str>,
        /// Seconds since [`Event::ImageStarted`].
        seconds: f64,
    },
    /// Something worth a line that belongs to no image.
    Message {
        /// One line.
        text: &'a str,
    },
}

/// Receives events.
pub trait Progress: fmt::Debug + Send + Sync {
    /// Takes note of an event. Must not block for long.
    fn event(&self, event: Event<'_>);
}

/// Tells how much of a layer of `total` packed bytes was read.
#[derive(Debug)]
pub(crate) struct Teller<'a> {
    pub(crate) progress: &'a dyn Progress,
    pub(crate) image: &'a str,
    pub(crate) layer: &'a str,
    pub(crate) total: u64,
}

impl LayerProgress for Teller<'_> {
    fn read(&self, done: u64) {
        let (image, layer, total) = (self.image, self.layer, Some(self.total));
        self.progress.event(Event::LayerBytes { image, layer, done, total });
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}

/// How the operator wants progress to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ProgressMode {
    /// bars if standard error is a terminal, lines otherwise
    #[default]
    Auto,
    /// one line for every finished layer and image
    Plain,
    /// one JSON object a line
    Json,
    /// nothing
    None,
}

/// What [`start`] hands out.
#[derive(Debug)]
pub struct Started {
    /// To be given to the library.
    pub progress: Arc<dyn Progress>,
    /// Where the log goes: it steps around the bars.
    pub log: LogWriter,
}

/// Starts showing progress on standard error.
pub fn start(mode: ProgressMode) -> Started {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match mode {
        ProgressMode::Auto if io::stderr().is_terminal() && !dumb => {
            let terminal = Terminal::on_stderr();
            let log = LogWriter { bars: Some(terminal.bars()) };
            Started { progress: Arc::new(terminal), log }
        }
        ProgressMode::Auto | ProgressMode::Plain => without_bars(Arc::new(PlainLines::new(io::stderr()))),
        ProgressMode::Json => without_bars(Arc::new(JsonLines::new(io::stderr()))),
        ProgressMode::None => without_bars(Arc::new(Silent)),
    }
}

fn without_bars(progress: Arc<dyn Progress>) -> Started {
    Started { progress, log: LogWriter { bars: None } }
}

/// Standard error for the log. While bars are drawn they are taken away, the line is written, and they are drawn again.
#[derive(Debug, Clone)]
pub struct LogWriter {
    bars: Option<MultiProgress>,
}

impl Write for LogWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &self.bars {
            Some(bars) => bars.suspend(|| io::stderr().write(buffer)),
            None => io::stderr().write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_objects_with_a_stable_name() {
        let cases = [
            (
                Event::ImageStarted { image: "r/a:1", layers: 2, total: None },
                r#"{"event":"image_started","image":"r/a:1","layers":2,"total":null}"#,
            ),
            (
                Event::ImageStage { image: "r/a:1", stage: "flattening" },
                r#"{"event":"image_stage","image":"r/a:1","stage":"flattening"}"#,
            ),
            (
                Event::LayerBytes { image: "r/a:1", layer: "sha256:1", done: 5, total: Some(9) },
                r#"{"event":"layer_bytes","image":"r/a:1","layer":"sha256:1","done":5,"total":9}"#,
            ),
            (
                Event::LayerFinished { image: "r/a:1", layer: "sha256:1", bytes: 9, known: false },
                r#"{"event":"layer_finished","image":"r/a:1","layer":"sha256:1","bytes":9,"known":false}"#,
            ),
            (
                Event::ImageFinished { image: "r/a:1", outcome: Outcome::Added, error: None, seconds: 1.5 },
                r#"{"event":"image_finished","image":"r/a:1","outcome":"added","error":null,"seconds":1.5}"#,
            ),
            (Event::Message { text: "hi" }, r#"{"event":"message","text":"hi"}"#),
        ];
        for (event, json) in cases {
            assert_eq!(serde_json::to_string(&event).unwrap(), json);
        }
    }
}
