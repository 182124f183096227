//! Who knows what will be needed says so.

use cvmfs::path::RepoPath;
use cvmfs::startup::{self, StartupList};
use serde::{Deserialize, Serialize};

use super::Prefetcher;
use super::queue::Job;
use crate::fetch::Wait;

/// A wish for what will be needed soon.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Start-up list in the repository.
    #[serde(default)]
    pub list: Option<String>,
    /// Start-up list on this machine.
    #[serde(default)]
    pub file: Option<String>,
    /// Directories of the repository below which its paths are looked for, the first that has one wins; `/` if there are
    /// none.
    #[serde(default)]
    pub bases: Vec<String>,
    /// Name under which what starts below the first of them is known.
    #[serde(default)]
    pub name: Option<String>,
}

/// What became of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Files that are fetched ahead.
    pub files: usize,
    /// Bytes of them, as the list says.
    pub bytes: u64,
    /// Lines that are no paths, or too many.
    pub left_out: usize,
}

/// Bytes of the longest announcement: some hundred directories.
pub const MAX_ANNOUNCEMENT: u64 = 64 << 10;

/// Neither more directories nor deeper stacks make sense.
const MAX_BASES: usize = 512;

impl Prefetcher {
    /// Fetches what a list names.
    pub fn announce(&self, announcement: &Announcement) -> Result<Announced, String> {
        let shared = &self.shared;
        if !shared.limits.enabled {
            return Err("nothing is fetched ahead: CVMFS_PREFETCH=no".into());
        }
        let parse = |path: &String| RepoPath::parse(path.trim_end_matches('/')).map_err(|e| e.to_string());
        let mut bases = announcement.bases.iter().take(MAX_BASES).map(parse).collect::<Result<Vec<_>, _>>()?;
        if bases.is_empty() {
            bases.push(RepoPath::ROOT);
        }
        if let Some(name) = &announcement.name {
            shared.learner.lock().name(bases[0].clone(), name.clone());
        }
        // A stack of directories is a catalog each: they come side by side, and not one when the one before is there.
        bases.iter().filter(|base| !base.is_root()).for_each(|base| shared.push(Job::Catalog(base.clone())));
        let list = match (&announcement.list, &announcement.file) {
            (Some(list), _) => {
                let path = parse(list)?;
                let text = shared.content(&path, startup::MAX_BYTES, Wait::Yes).map_err(|e| format!("{path}: {e}"))?;
                let text = text.ok_or_else(|| format!("{path}: there is no such file in the repository"))?;
                StartupList::parse(&text).map_err(|error| format!("{path}: {error}"))?
            }
            (None, Some(file)) => {
                let text = read_bounded(file).map_err(|error| format!("{file}: {error}"))?;
                StartupList::parse(&text).map_err(|error| format!("{file}: {error}"))?
            }
            (None, None) => {
                shared.learner.lock().load(&bases[0]).ok_or("no list is given, and nothing has been learned")?
            }
        };
        let announced = Announced { files: list.files.len(), bytes: list.bytes(), left_out: list.left_out };
        let name = announcement.list.clone().or(announcement.file.clone()).unwrap_or_else(|| bases[0].to_string());
        match shared.start(name, list, bases) {
            true => Ok(announced),
            false => Err(self.summary().resting.unwrap_or_else(|| "too many lists are being fetched already".into())),
        }
    }
}

fn read_bounded(file: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(file)?.take(startup::MAX_BYTES + 1).read_to_end(&mut text)?;
    Ok(text)
}
