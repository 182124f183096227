//! Where events go: to standard error (of a mount in the background: its log file), and the last ones to
//! memory, for `user.logbuffer`.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

/// Events that are remembered.
const REMEMBERED: usize = 50;
/// A longer one is cut.
const LONGEST: usize = 1024;

static RECENT: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Begins to log what `filter` lets through.
pub fn start(filter: &str) {
    // The binding logs what it considers unusual; for us it is not.
    let filter =
        EnvFilter::try_new(format!("{filter},fuser=error")).unwrap_or_else(|_| EnvFilter::new("info,fuser=error"));
    let standard_error = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let memory = fmt::layer().with_writer(Memory).with_ansi(false);
    // Err means that somebody in this process logs already.
    let _ = tracing_subscriber::registry().with(filter).with(standard_error).with(memory).try_init();
}

/// The last events, one a line, the newest last.
pub fn recent() -> String {
    RECENT.lock().iter().fold(String::new(), |text, line| text + line)
}

/// Time between two events of a kind that could come all the time.
const SELDOM: Duration = Duration::from_secs(60);

/// Lets an event through once in a while.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is time for one, which begins the next pause.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|last| last.elapsed() > SELDOM);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

struct Memory;

impl<'a> MakeWriter<'a> for Memory {
    type Writer = Memory;

    fn make_writer(&'a self) -> Memory {
        Memory
    }
}

impl Write for Memory {
    /// Takes one event, with its end of line.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut line = String::from_utf8_lossy(&event[..event.len().min(LONGEST)]).into_owned();
        if !line.ends_with('\n') {
            line.push('\n');
        }
        let mut recent = RECENT.lock();
        if recent.len() >= REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(line);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_remembered_and_long_ones_are_cut() {
        for number in 0..REMEMBERED + 10 {
            Memory.write_all(format!("event {number}\n").as_bytes()).unwrap();
        }
        Memory.write_all(&vec![b'x'; 5000]).unwrap();
        let text = recent();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (REMEMBERED, "event 11"));
        assert_eq!(lines[REMEMBERED - 1].len(), LONGEST);
    }

    #[test]
    fn what_could_be_said_all_the_time_is_said_once() {
        let seldom = Seldom::default();
        assert_eq!([seldom.is_due(), seldom.is_due(), seldom.is_due()], [true, false, false]);
    }
}
