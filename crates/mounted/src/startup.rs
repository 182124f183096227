//! Start-up lists: what a start of an image touches, which the client of its repository fetches ahead when it is told.
//!
//! Two contracts, both stated by others: where the list of an image is (`image::layout`), and how a client is asked
//! (`cvmfs-client`: the attribute `user.control` of the mountpoint names its control socket; one line
//! `prefetch ANNOUNCEMENT`, one line of JSON in answer). Other clients have no such attribute and are left alone.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use image::digest::ChainId;
use image::layout::{Layout, OwnedPath};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::image_of;

/// Where a mounted repository says how its client is asked.
const CONTROL: &str = "user.control";
/// How long the client may take to answer: it may have to fetch the list first.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer.
const MAX_ANSWER: u64 = 64 << 10;

/// Directories that an announcement names at most: a client takes no longer one than 64 KiB.
pub const MAX_BASES: usize = 400;
/// How long an image counts as started: what it touches is in the cache then.
const RECENTLY: Duration = Duration::from_secs(60);

/// Images about which something was learned a moment ago.
#[derive(Debug, Default)]
pub struct Recent(Mutex<HashMap<ChainId, Instant>>);

impl Recent {
    /// Adds an image; whether it was not there.
    pub fn add(&self, stack: ChainId) -> bool {
        let mut recent = self.images();
        recent.retain(|_, when| when.elapsed() < RECENTLY);
        recent.insert(stack, Instant::now()).is_none()
    }

    /// Whether an image is there.
    pub fn has(&self, stack: ChainId) -> bool {
        self.images().get(&stack).is_some_and(|when| when.elapsed() < RECENTLY)
    }

    /// Takes an image out.
    pub fn forget(&self, stack: ChainId) {
        self.images().remove(&stack);
    }

    fn images(&self) -> MutexGuard<'_, HashMap<ChainId, Instant>> {
        self.0.lock().expect("nobody panics while holding it")
    }
}

/// What the client is asked to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Announcement {
    /// the list, as a path in the repository
    pub list: String,
    /// directories of the repository in which its files are, the first that has one wins
    pub bases: Vec<String>,
}

/// What the client says that it fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Fetching {
    /// files of the list
    pub files: u64,
    /// bytes of them
    pub bytes: u64,
}

/// A list, and who is to be told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// the list, as a path in the repository
    pub list: String,
    /// control socket of the client
    pub socket: PathBuf,
}

/// Finds the list of the image that is the whole stack `stack`; nothing if there is none, or nobody to be told.
pub fn find(repository: &Path, stack: ChainId) -> io::Result<Option<Place>> {
    let Some(socket) = socket(repository)? else { return Ok(None) };
    let Some(image) = image_of(repository, stack)? else { return Ok(None) };
    let list = Layout::new().print(&OwnedPath::FlatStartup(image));
    let is_file = match repository.join(&list).symlink_metadata() {
        Ok(found) => found.is_file(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    Ok(is_file.then(|| Place { list: format!("/{list}"), socket }))
}

/// Control socket of the client of a repository; nothing if it has none.
pub fn socket(repository: &Path) -> io::Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt as _;
    Ok(xattr::get(repository, CONTROL)?.map(|socket| PathBuf::from(std::ffi::OsString::from_vec(socket))))
}

/// Tells a client.
pub async fn announce(socket: &Path, announcement: &Announcement) -> anyhow::Result<Fetching> {
    ask(socket, &format!("prefetch {}", serde_json::to_string(announcement)?)).await
}

/// Sends a client one line and takes its answer.
pub async fn ask<T: DeserializeOwned>(socket: &Path, request: &str) -> anyhow::Result<T> {
    let work = async {
        let mut stream = UnixStream::connect(socket).await?;
        // What a repository says of sockets is not followed to other people's.
        let peer = stream.peer_cred()?.uid();
        if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
            bail!("it belongs to user {peer}");
        }
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut answer).await?;
        understand(&answer)
    };
    let answer = tokio::time::timeout(PATIENCE, work).await;
    answer.context("it does not answer").and_then(|answer| answer).with_context(|| socket.display().to_string())
}

fn understand<T: DeserializeOwned>(answer: &str) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Answer<T> {
        Given(T),
        Refusal { error: String },
    }
    match serde_json::from_str(answer).context("its answer is not understood")? {
        Answer::Given(given) => Ok(given),
        Answer::Refusal { error } => bail!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_clients_are_understood() {
        let fetching: Fetching = understand(r#"{"files":3,"bytes":10,"left_out":0}"#).unwrap();
        assert_eq!(fetching, Fetching { files: 3, bytes: 10 });
        let refused = understand::<Fetching>(r#"{"error":"nothing is fetched ahead"}"#).unwrap_err();
        assert_eq!(refused.to_string(), "nothing is fetched ahead");
        assert!(understand::<Fetching>("").is_err());
    }
}
