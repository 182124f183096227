//! Progress as bars on a terminal: one line an active image, lines for finished ones scroll away above.
//!
//! Nothing is drawn in the first 250 ms, so a pass with nothing to do leaves the terminal untouched, and never more
//! often than 30 times a second. The bars vanish at the end: what remains is the summary.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use super::{Event, Progress, lines};
use crate::error::printable;

/// Time before anything is drawn.
const QUIET: Duration = Duration::from_millis(250);
/// Redraws a second, at most.
const RATE: u8 = 30;

/// Bars for the active images.
#[derive(Debug)]
pub struct Terminal {
    bars: MultiProgress,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Where to draw once the quiet time is over; taken when drawing begins.
    target: Option<ProgressDrawTarget>,
    started: Instant,
    images: HashMap<String, Image>,
}

#[derive(Debug)]
struct Image {
    bar: ProgressBar,
    layers: usize,
    finished: usize,
    /// Whether the length of the bar came with the start; otherwise it grows with each layer.
    length_known: bool,
    /// Bytes done and bytes expected of each layer heard of.
    bytes: HashMap<String, (u64, u64)>,
}

impl Terminal {
    /// Draws on standard error, which has to be a terminal.
    pub fn on_stderr() -> Self {
        Self::on(ProgressDrawTarget::stderr_with_hz(RATE), QUIET)
    }

    fn on(target: ProgressDrawTarget, quiet: Duration) -> Self {
        let now = Instant::now();
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            state: Mutex::new(State {
                target: Some(target),
                started: now.checked_add(quiet).unwrap_or(now),
                images: HashMap::new(),
            }),
        }
    }

    /// The bars, for whoever wants to write to the same terminal.
    pub(super) fn bars(&self) -> MultiProgress {
        self.bars.clone()
    }

    /// Leaves a line above the bars.
    fn say(&self, event: Event<'_>) {
        if let Some(line) = lines::line(event) {
            let line = printable(&line).into_owned();
            if self.bars.is_hidden() {
                eprintln!("{line}");
            } else {
                // Failing to talk is no failure.
                let _ = self.bars.println(line);
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.bars.clear();
    }
}

impl Progress for Terminal {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock();
        if Instant::now() >= state.started
            && let Some(target) = state.target.take()
        {
            self.bars.set_draw_target(target);
        }
        match event {
            Event::ImageStarted { image, layers, total } => {
                let bar = self.bars.add(ProgressBar::new(total.unwrap_or(0)).with_style(style()));
                bar.set_prefix(printable(image).into_owned());
                let entry = Image { bar, layers, finished: 0, length_known: total.is_some(), bytes: HashMap::new() };
                entry.show_layers();
                if let Some(before) = state.images.insert(image.to_owned(), entry) {
                    self.bars.remove(&before.bar);
                }
            }
            Event::ImageStage { image, stage } => {
                if let Some(image) = state.images.get(image) {
                    image.bar.set_message(printable(stage).into_owned());
                }
            }
            Event::LayerBytes { image, layer, done, total } => {
                if let Some(image) = state.images.get_mut(image) {
                    image.set_bytes(layer, done, total.unwrap_or(done));
                }
            }
            Event::LayerFinished { image, layer, bytes, .. } => {
                if let Some(image) = state.images.get_mut(image) {
                    image.set_bytes(layer, bytes, bytes);
                    image.finished = image.finished.saturating_add(1);
                    image.show_layers();
                }
            }
            Event::ImageFinished { image, .. } => {
                if let Some(image) = state.images.remove(image) {
                    image.bar.finish_and_clear();
                    self.bars.remove(&image.bar);
                }
                self.say(event);
            }
            Event::ImagePublished { .. } => {}
            Event::Message { .. } => self.say(event),
        }
    }
}

impl Image {
    /// A layer stands at `done` of `total` bytes. Its earlier state is replaced: a retried layer starts again at 0.
    fn set_bytes(&mut self, layer: &str, done: u64, total: u64) {
        let (done_before, total_before) = self.bytes.insert(layer.to_owned(), (done, total)).unwrap_or((0, 0));
        let replaced = |sum: u64, old: u64, new: u64| sum.saturating_sub(old).saturating_add(new);
        if !self.length_known {
            self.bar.set_length(replaced(self.bar.length().unwrap_or(0), total_before, total));
        }
        self.bar.set_position(replaced(self.bar.position(), done_before, done));
    }

    fn show_layers(&self) {
        self.bar.set_message(format!("{}/{} layers", self.finished, self.layers));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {msg}",
    )
    .expect("the template is constant and a test draws it")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use indicatif::TermLike;

    use super::*;
    use crate::report::Outcome;

    /// A terminal that remembers everything written to it.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            160
        }
        fn height(&self) -> u16 {
            24
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.0.lock().push_str(&format!("{text}\n"));
            Ok(())
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn terminal(quiet: Duration) -> (Terminal, Screen) {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), RATE);
        (Terminal::on(target, quiet), screen)
    }

    const IMAGE: &str = "https://quay.io/tools/app:1";

    #[test]
    fn draws_one_bar_an_image_and_leaves_a_line_for_it() {
        let (terminal, screen) = terminal(Duration::ZERO);
        terminal.event(Event::ImageStarted { image: IMAGE, layers: 2, total: Some(4000) });
        terminal.event(Event::LayerBytes { image: IMAGE, layer: "a", done: 1000, total: Some(1000) });
        terminal.event(Event::LayerFinished { image: IMAGE, layer: "a", bytes: 1000, known: false });
        std::thread::sleep(Duration::from_millis(50));
        terminal.event(Event::ImageStage { image: IMAGE, stage: "flattening" });
        terminal.event(Event::ImageFinished { image: IMAGE, outcome: Outcome::Added, error: None, seconds: 1.0 });
        let text = screen.0.lock().clone();
        assert!(text.contains("1.00 kB/4.00 kB"), "{text}");
        assert!(text.contains("flattening"), "{text}");
        assert!(text.contains("https://quay.io/tools/app:1: added after 1.0 s"), "{text}");
        assert!(terminal.state.lock().images.is_empty());
    }

    #[test]
    fn is_quiet_at_first() {
        let (terminal, screen) = terminal(Duration::from_secs(3600));
        terminal.event(Event::ImageStarted { image: IMAGE, layers: 1, total: Some(10) });
        terminal.event(Event::LayerBytes { image: IMAGE, layer: "a", done: 5, total: Some(10) });
        drop(terminal);
        assert_eq!(*screen.0.lock(), "");
    }

    #[test]
    fn draws_what_happened_in_the_quiet_time_when_it_is_over() {
        let (terminal, screen) = terminal(Duration::from_millis(20));
        terminal.event(Event::ImageStarted { image: IMAGE, layers: 1, total: Some(10) });
        assert_eq!(*screen.0.lock(), "");
        std::thread::sleep(Duration::from_millis(60));
        terminal.event(Event::LayerBytes { image: IMAGE, layer: "a", done: 5, total: Some(10) });
        assert!(screen.0.lock().contains("5 B/10 B"), "{}", screen.0.lock());
    }

    #[test]
    fn a_layer_that_starts_again_is_not_counted_twice() {
        let (terminal, _) = terminal(Duration::ZERO);
        for (total, length) in [(Some(30), 30), (None, 20)] {
            terminal.event(Event::ImageStarted { image: IMAGE, layers: 2, total });
            for done in [8, 2, 10] {
                terminal.event(Event::LayerBytes { image: IMAGE, layer: "a", done, total: Some(10) });
            }
            terminal.event(Event::LayerBytes { image: IMAGE, layer: "b", done: 5, total: Some(10) });
            let state = terminal.state.lock();
            assert_eq!(state.images[IMAGE].bar.position(), 15);
            assert_eq!(state.images[IMAGE].bar.length(), Some(length));
        }
    }

    #[test]
    fn a_hostile_name_can_not_move_the_cursor() {
        let (terminal, screen) = terminal(Duration::ZERO);
        terminal.event(Event::ImageStarted { image: "\u{1b}[2Jgone", layers: 1, total: Some(10) });
        terminal.event(Event::Message { text: "\u{1b}[2Jgone" });
        assert!(!screen.0.lock().contains("\u{1b}[2J"), "{:?}", screen.0.lock());
    }
}
