//! Disk usage of a directory.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Bytes and inodes of one snapshot alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// bytes on the disk
    pub size: u64,
    /// files and directories, hard links counted once
    pub inodes: u64,
}

/// Measures a local directory with all that is in it; what vanishes meanwhile does not count.
pub fn scan(directory: &Path) -> Result<Usage, Error> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut open = vec![directory.to_owned()];
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    while let Some(path) = open.pop() {
        let metadata = match path.symlink_metadata() {
            Err(error) if gone(&error) && path != directory => continue,
            found => found.map_err(Error::io("measure", &path))?,
        };
        if metadata.is_dir() || metadata.nlink() == 1 || seen.insert(metadata.ino()) {
            usage.size += metadata.blocks() * 512;
            usage.inodes += 1;
        }
        if metadata.is_dir() {
            match std::fs::read_dir(&path) {
                Err(error) if gone(&error) => {}
                entries => {
                    for entry in entries.map_err(Error::io("list", &path))? {
                        open.push(entry.map_err(Error::io("list", &path))?.path());
                    }
                }
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hard_links_count_once_and_links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(path("a"), path("b")).unwrap();
        std::fs::create_dir(path("d")).unwrap();
        std::os::unix::fs::symlink("/usr", path("d/link")).unwrap();
        let usage = scan(directory.path()).unwrap();
        assert_eq!(usage.inodes, 4);
        assert!((100_000..140_000).contains(&usage.size), "{usage:?}");
        assert!(scan(&path("absent")).is_err());
    }
}
