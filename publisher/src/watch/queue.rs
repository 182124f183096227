//! Events that wait for their pass, on disk: who told us has been answered, so nothing may be forgotten.
//!
//! ```text
//! watch/queue/HASH       an event, as JSON; the hash is of what it says, so the same event is there once
//! watch/queue/all        more events came than are kept: everything is due
//! ```
//! An event that arrives again while its pass is under way stays for the next one: it has another number.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::hooks::Event;

/// Most events that are kept apart.
const MAX_EVENTS: usize = 10_000;
/// Name of the file that says "everything".
const ALL: &str = "all";

/// The queue of one repository.
#[derive(Debug)]
pub struct Queue {
    directory: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By name of the file.
    events: BTreeMap<String, Waiting>,
    everything: Option<u64>,
    next: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Waiting {
    event: Event,
    number: u64,
}

/// What waited at a moment.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Events.
    pub events: Vec<Event>,
    /// Whether everything is due.
    pub everything: bool,
    pub(super) numbers: Vec<(String, u64)>,
}

impl Queue {
    /// Opens the queue in a directory, which is made if it is missing. What can't be read is no event; everything is due then.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let mut inner = Inner::default();
        for file in fs::read_dir(directory)? {
            let file = file?;
            let Ok(name) = file.file_name().into_string() else { continue };
            let number = inner.number();
            if name == ALL {
                inner.everything = Some(number);
            } else if name.starts_with('.') {
                // Of a process that was killed while it wrote: nobody was answered.
                let _ = fs::remove_file(file.path());
            } else {
                match serde_json::from_slice::<Waiting>(&fs::read(file.path())?) {
                    Ok(waiting) => drop(inner.events.insert(name, Waiting { number, ..waiting })),
                    Err(error) => {
                        tracing::warn!(file = %file.path().display(), %error, "an event can't be read; all images are looked at");
                        inner.everything = Some(number);
                        fs::remove_file(file.path())?;
                    }
                }
            }
        }
        Ok(Self { directory: directory.to_owned(), inner: Mutex::new(inner) })
    }

    /// Keeps events; they are on disk when this returns.
    pub fn put(&self, events: Vec<Event>) -> io::Result<()> {
        let mut inner = self.inner.lock();
        for event in events {
            let hash = Sha256::digest(serde_json::to_vec(&event)?);
            let (name, number) = (hex::encode(hash), inner.number());
            if let Some(known) = inner.events.get_mut(&name) {
                known.number = number;
                continue;
            }
            if inner.events.len() >= MAX_EVENTS {
                if inner.everything.is_none() {
                    self.write(ALL, b"")?;
                }
                inner.everything = Some(number);
                continue;
            }
            let waiting = Waiting { event, number };
            self.write(&name, &serde_json::to_vec(&waiting)?)?;
            inner.events.insert(name, waiting);
        }
        File::open(&self.directory)?.sync_all()
    }

    /// What waits now. It stays until [`Self::done`].
    pub fn take(&self) -> Taken {
        let inner = self.inner.lock();
        let mut numbers: Vec<_> = inner.events.iter().map(|(name, waiting)| (name.clone(), waiting.number)).collect();
        numbers.extend(inner.everything.map(|number| (ALL.to_owned(), number)));
        let events = inner.events.values().map(|waiting| waiting.event.clone()).collect();
        Taken { events, everything: inner.everything.is_some(), numbers }
    }

    /// Forgets what was taken, but for what came again since.
    pub fn done(&self, taken: &Taken) -> io::Result<()> {
        let mut inner = self.inner.lock();
        for (name, number) in &taken.numbers {
            let unchanged = match name.as_str() {
                ALL => inner.everything == Some(*number),
                name => inner.events.get(name).is_some_and(|waiting| waiting.number == *number),
            };
            if !unchanged {
                continue;
            }
            fs::remove_file(self.directory.join(name))
                .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
            match name.as_str() {
                ALL => inner.everything = None,
                name => drop(inner.events.remove(name)),
            }
        }
        Ok(())
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        let inner = self.inner.lock();
        inner.events.len() + usize::from(inner.everything.is_some())
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let new = self.directory.join(format!(".{name}"));
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(new, self.directory.join(name))
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(repository: &str) -> Event {
        Event { repository: repository.to_owned(), tag: Some("1".to_owned()) }
    }

    #[test]
    fn what_was_put_is_there_after_a_restart_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        queue.put(vec![event("a/b"), event("c/d"), event("a/b")]).unwrap();
        drop(queue);
        fs::write(directory.path().join(".half"), "{").unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        let mut taken = queue.take();
        taken.events.sort();
        assert_eq!(taken.events, [event("a/b"), event("c/d")]);
        assert!(!taken.everything);
        queue.done(&taken).unwrap();
        assert!(queue.is_empty() && fs::read_dir(directory.path()).unwrap().next().is_none());
    }

    #[test]
    fn an_event_that_comes_again_during_its_pass_stays() {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        queue.put(vec![event("a/b"), event("c/d")]).unwrap();
        let taken = queue.take();
        queue.put(vec![event("c/d")]).unwrap();
        queue.done(&taken).unwrap();
        assert_eq!(queue.take().events, [event("c/d")]);
        assert_eq!(Queue::open(directory.path()).unwrap().take().events, [event("c/d")]);
    }

    #[test]
    fn a_flood_means_everything() {
        let directory = tempfile::tempdir().unwrap();
        let queue = Queue::open(directory.path()).unwrap();
        {
            let mut inner = queue.inner.lock();
            for number in 0..MAX_EVENTS as u64 {
                let waiting = Waiting { event: event(&format!("x/{number}")), number };
                inner.events.insert(format!("{number}"), waiting);
            }
        }
        queue.put(vec![event("one/more"), event("and/another")]).unwrap();
        assert_eq!(queue.len(), MAX_EVENTS + 1);
        assert!(queue.take().everything && Queue::open(directory.path()).unwrap().take().everything);
        queue.done(&queue.take()).unwrap();
        assert!(queue.is_empty() && !directory.path().join(ALL).exists());
    }

    #[test]
    fn a_file_that_is_no_event_makes_everything_due() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("damaged"), "{").unwrap();
        let taken = Queue::open(directory.path()).unwrap().take();
        assert!(taken.everything && taken.events.is_empty());
    }
}
