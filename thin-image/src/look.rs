//! Looks into repositories from threads that may hang, so that whoever asks does not.
//!
//! A look that hangs can't be cancelled. It keeps one of a bounded number of threads; when all of them hang, the next look fails at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use image::layout::OwnedPath;

use crate::plugin::Refusal;
use crate::published::Repository;

/// Looks at a time.
const LOOKS: usize = 64;
/// What one gets.
const PATIENCE: Duration = Duration::from_secs(20);

/// The threads, counted.
#[derive(Debug, Clone)]
pub struct Looks {
    running: Arc<AtomicUsize>,
    patience: Duration,
}

impl Default for Looks {
    fn default() -> Self {
        Self { running: Arc::default(), patience: PATIENCE }
    }
}

impl Looks {
    /// Looks at some things of a repository at once; answers in the order of the questions.
    pub fn all<Q: Send + 'static, T: Send + 'static>(
        &self,
        repository: &Repository,
        questions: Vec<Q>,
        look: impl Fn(&Repository, &Q) -> Result<T, Refusal> + Send + Sync + 'static,
    ) -> Result<Vec<T>, Refusal> {
        /// Threads for one list of questions.
        const ABREAST: usize = 8;
        let hangs = || {
            Refusal::new(format!(
                "repository {} does not answer at {} within {} s; look at its client",
                repository.name(),
                repository.mountpoint().display(),
                self.patience.as_secs()
            ))
        };
        let count = questions.len();
        let waiting = Arc::new(std::sync::Mutex::new(questions.into_iter().enumerate()));
        let look = Arc::new(look);
        let (found, finds) = mpsc::channel();
        for _ in 0..ABREAST.min(count) {
            if self.running.fetch_add(1, Ordering::Relaxed) >= LOOKS {
                self.running.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            let (waiting, look, found) = (Arc::clone(&waiting), Arc::clone(&look), found.clone());
            let (repository, running) = (repository.clone(), Arc::clone(&self.running));
            std::thread::spawn(move || {
                let next = || waiting.lock().expect("nobody panics while holding it").next();
                while let Some((number, question)) = next() {
                    if found.send((number, look(&repository, &question))).is_err() {
                        break;
                    }
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        drop(found);
        let mut answers: Vec<Option<T>> = (0..count).map(|_| None).collect();
        for _ in 0..count {
            // Without a thread the channel is closed already.
            let (number, answer) = finds.recv_timeout(self.patience).map_err(|_| hangs())?;
            answers[number] = Some(answer?);
        }
        answers.into_iter().collect::<Option<Vec<T>>>().ok_or_else(hangs)
    }

    /// Is the repository there?
    pub fn mounted(&self, repository: &Repository) -> Result<(), Refusal> {
        let look = |repository: &Repository, (): &()| {
            repository.check().map_err(|error| Refusal::new(format!("{error}; mount it, and try again")))
        };
        self.all(repository, vec![()], look).map(drop)
    }

    /// Which of these directories of a repository are there?
    pub fn present(&self, repository: &Repository, directories: Vec<OwnedPath>) -> Result<Vec<bool>, Refusal> {
        let look = |repository: &Repository, path: &OwnedPath| {
            repository.is_directory(path).map_err(|error| Refusal::new(format!("{error}; look at its client")))
        };
        self.all(repository, directories, look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks() -> (tempfile::TempDir, Repository, Looks) {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new("images.example.org", directory.path()).unwrap();
        let looks = Looks { patience: Duration::from_millis(300), ..Looks::default() };
        (directory, repository, looks)
    }

    #[test]
    fn answers_are_in_the_order_of_the_questions() {
        let (_directory, repository, looks) = looks();
        let answers = looks.all(&repository, (0..100).collect(), |_, number: &i32| Ok(number * 2)).unwrap();
        assert_eq!(answers, (0..100).map(|number| number * 2).collect::<Vec<_>>());
        assert_eq!(looks.all(&repository, Vec::<()>::new(), |_, ()| Ok(())).unwrap(), []);
    }

    #[test]
    fn a_repository_that_hangs_is_named_and_costs_a_bounded_number_of_threads() {
        let (_directory, repository, looks) = looks();
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(std::sync::Mutex::new(hang));
        for _ in 0..LOOKS / 8 + 1 {
            let hang = Arc::clone(&hang);
            let look = move |_: &Repository, _: &i32| {
                let _ = hang.lock().unwrap().recv();
                Ok(())
            };
            let error = looks.all(&repository, (0..8).collect(), look).unwrap_err();
            assert!(error.to_string().contains("images.example.org does not answer"), "{error}");
        }
        assert_eq!(looks.running.load(Ordering::Relaxed), LOOKS);
        drop(release);
    }

    #[test]
    fn nothing_mounted_is_said() {
        let (directory, repository, looks) = looks();
        assert!(looks.mounted(&repository).unwrap_err().to_string().contains("is not mounted"));
        std::fs::create_dir(directory.path().join(".layers")).unwrap();
        looks.mounted(&repository).unwrap();
    }
}
