//! A repository as the daemon sees it: a directory on which every look may fail, hang, or find nothing.
//!
//! | what happens | verdict |
//! |---|---|
//! | found | found |
//! | no such file, and the repository's root can be read | absent: an ordinary miss |
//! | no such file, but the root is absent or empty | down: nothing is mounted there |
//! | permission denied | down: a mistake in the configuration, said once with its remedy |
//! | any other error, or no answer in time | down |
//!
//! A look that hangs can't be cancelled. It keeps one of a bounded number of threads, so that a dead repository costs no more than
//! those; after some time-outs in a row nobody is sent there for a while.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// Looks at one repository at a time.
const LOOKS: usize = 32;
/// Time-outs in a row after which a repository is left alone.
const PATIENCE: u32 = 3;
/// For how long.
const PAUSE: Duration = Duration::from_secs(10);

/// What to do with a layer when a repository that may have it is down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Download the layer as if it were absent.
    #[default]
    Fallback,
    /// Refuse, so that the caller tries again later and the site's line is not flooded.
    Fail,
}

/// Why a repository can't say whether it has something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("repository {repository} can't be read: {why}")]
pub struct Down {
    /// its name
    pub repository: String,
    /// why, and what to do
    pub why: String,
}

/// One repository, with what was learned of it.
#[derive(Debug)]
pub struct Repository {
    name: String,
    mountpoint: PathBuf,
    on_error: OnError,
    include: Vec<String>,
    exclude: Vec<String>,
    timeout: Duration,
    threads: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    timeouts: u32,
    until: Option<Instant>,
    warned: bool,
}

impl Repository {
    /// A repository that is, or is going to be, mounted on a directory.
    pub fn new(name: &str, mountpoint: &Path, on_error: OnError, timeout: Duration) -> Self {
        Self {
            name: name.to_owned(),
            mountpoint: mountpoint.to_owned(),
            on_error,
            include: Vec::new(),
            exclude: Vec::new(),
            timeout,
            threads: Arc::new(Semaphore::new(LOOKS)),
            state: Arc::default(),
        }
    }

    /// Only for images whose names match one of `include`, if there are any, and none of `exclude`; `*` stands for any text.
    pub fn with_patterns(self, include: Vec<String>, exclude: Vec<String>) -> Self {
        Self { include, exclude, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What to do when it is down.
    pub fn on_error(&self) -> OnError {
        self.on_error
    }

    /// Is this image to be taken from here? Images without a known name are.
    pub fn serves(&self, image: Option<&str>) -> bool {
        let Some(image) = image else { return true };
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, image));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// Looks into the repository: `look` gets the mountpoint, and runs in a thread that may hang. Nothing means absent.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Path) -> io::Result<Option<T>> + Send + 'static,
    ) -> Result<Option<T>, Down> {
        let down = |why: String| Down { repository: self.name.clone(), why };
        if let Some(until) = self.state.lock().until
            && until > Instant::now()
        {
            return Err(down(format!(
                "it did not answer {PATIENCE} times in a row; the next try is in {} s",
                (until - Instant::now()).as_secs() + 1
            )));
        }
        let waiting = tokio::time::timeout(self.timeout, Arc::clone(&self.threads).acquire_owned());
        let Ok(Ok(permit)) = waiting.await else {
            return Err(self.timed_out(format!("{LOOKS} looks into {} hang", self.mountpoint.display())));
        };
        let mountpoint = self.mountpoint.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            examine(&mountpoint, look)
        });
        match tokio::time::timeout(self.timeout, work).await {
            Err(_) => Err(self.timed_out(format!(
                "{} did not answer within {} s",
                self.mountpoint.display(),
                self.timeout.as_secs_f64()
            ))),
            Ok(Err(panic)) => Err(down(format!("looking failed: {panic}"))),
            Ok(Ok(Err(error))) => {
                self.answered();
                if error.kind() == io::ErrorKind::PermissionDenied
                    && !std::mem::replace(&mut self.state.lock().warned, true)
                {
                    tracing::error!(
                        repository = %self.name,
                        mountpoint = %self.mountpoint.display(),
                        "permission denied: mount the repository as root, or with allow_other; with SELinux, look for denials"
                    );
                }
                Err(down(format!("{}: {error}", self.mountpoint.display())))
            }
            Ok(Ok(Ok(found))) => {
                self.answered();
                Ok(found)
            }
        }
    }

    /// Can the repository be read now?
    pub async fn probe(&self) -> Result<(), Down> {
        self.look(|mountpoint| root_is_there(mountpoint).map(Some)).await.map(drop)
    }

    fn answered(&self) {
        let mut state = self.state.lock();
        (state.timeouts, state.until) = (0, None);
    }

    fn timed_out(&self, why: String) -> Down {
        let mut state = self.state.lock();
        state.timeouts += 1;
        if state.timeouts >= PATIENCE {
            state.until = Some(Instant::now() + PAUSE);
        }
        Down { repository: self.name.clone(), why }
    }
}

/// Tells absent from not mounted.
fn examine<T>(mountpoint: &Path, look: impl FnOnce(&Path) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    match look(mountpoint) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => root_is_there(mountpoint).map(|()| None),
        Ok(None) => root_is_there(mountpoint).map(|()| None),
        found => found,
    }
}

fn root_is_there(mountpoint: &Path) -> io::Result<()> {
    if mountpoint.join(".layers").symlink_metadata().is_ok() {
        return Ok(());
    }
    // A repository without images yet has other things at its top; an unmounted one has nothing.
    match std::fs::read_dir(mountpoint)?.next() {
        Some(entry) => entry.map(drop),
        None => Err(io::Error::new(io::ErrorKind::NotConnected, "the directory is empty; nothing is mounted there")),
    }
}

/// Does a text match a pattern in which `*` stands for any text?
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(mountpoint: &Path) -> Repository {
        Repository::new("images.example.org", mountpoint, OnError::Fallback, Duration::from_millis(200))
    }

    #[tokio::test]
    async fn absent_is_told_from_not_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let look = |mountpoint: &Path| std::fs::read(mountpoint.join(".layers/x")).map(Some);
        let repository = repository(directory.path());
        assert!(repository.look(look).await.expect_err("nothing is mounted").why.contains("empty"));
        std::fs::create_dir(directory.path().join(".layers")).unwrap();
        assert_eq!(repository.look(look).await, Ok(None));
        std::fs::write(directory.path().join(".layers/x"), "1").unwrap();
        assert_eq!(repository.look(look).await, Ok(Some(b"1".to_vec())));
        let gone = Repository::new("x", &directory.path().join("gone"), OnError::Fallback, Duration::from_secs(1));
        assert!(gone.look(look).await.is_err());
        assert!(gone.probe().await.is_err());
    }

    #[tokio::test]
    async fn errors_are_no_absence() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".layers")).unwrap();
        for error in
            [libc_error(nix::libc::EIO), libc_error(nix::libc::ENOTCONN), io::ErrorKind::PermissionDenied.into()]
        {
            let text = error.to_string();
            let down = repository(directory.path()).look::<()>(move |_| Err(error)).await.expect_err(&text);
            assert!(down.to_string().contains(&text), "{down}");
        }
    }

    fn libc_error(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[tokio::test]
    async fn a_repository_that_hangs_is_left_alone_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let repository = repository(directory.path());
        for _ in 0..PATIENCE {
            let hang = |_: &Path| {
                std::thread::sleep(Duration::from_millis(600));
                Ok(Some(()))
            };
            assert!(repository.look(hang).await.expect_err("it hangs").why.contains("did not answer within"));
        }
        let down = repository.look(|_| Ok(Some(()))).await.expect_err("it is left alone");
        assert!(down.why.contains("in a row"), "{down}");
    }

    #[test]
    fn patterns_choose_images() {
        for (pattern, text, expected) in [
            ("*", "docker.io/library/x:1", true),
            ("docker.io/*", "docker.io/library/x:1", true),
            ("docker.io/*", "quay.io/x:1", false),
            ("*/x:*", "quay.io/x:1", true),
            ("*:1", "quay.io/x:1", true),
            ("*:1", "quay.io/x:12", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        let directory = Path::new("/nowhere");
        let chosen = repository(directory).with_patterns(vec!["docker.io/*".into()], vec!["*:latest".into()]);
        assert!(chosen.serves(None) && chosen.serves(Some("docker.io/x:1")));
        assert!(!chosen.serves(Some("docker.io/x:latest")) && !chosen.serves(Some("quay.io/x:1")));
    }
}
