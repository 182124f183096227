//! Mounts without extended attributes, which some clients make beside a repository when they are asked.
//!
//! Overlayfs asks for an attribute of each file that a new container looks up. Where a whole mount has no attributes the
//! kernel knows the answer; so directories that have none are better taken from there. Two contracts, both stated by others:
//! the sums of a catalog (`user.catalog_counters`, which every client has), and how a client is asked (`cvmfs-client`:
//! one line `bare` at the control socket that the attribute `user.control` of the mountpoint names).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::startup;

/// Sums of the catalog that a directory's content is in, and of all below it, as lines `name,value`.
const COUNTERS: &str = "user.catalog_counters";
/// Entries that are looked at one by one where the catalog has other things too.
const MOST: usize = 256;

/// Has nothing in this directory any attributes? What is in doubt has.
pub fn has_none(directory: &Path) -> io::Result<bool> {
    let counters = xattr::get(directory, COUNTERS)?.unwrap_or_default();
    if count(&counters) == Some(0) {
        return Ok(true);
    }
    let mut left = MOST;
    looks_plain(directory, &mut left)
}

fn count(counters: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(counters).ok()?;
    text.lines().find_map(|line| line.strip_prefix("xattr,"))?.parse().ok()
}

fn looks_plain(path: &Path, left: &mut usize) -> io::Result<bool> {
    let Some(fewer) = left.checked_sub(1) else { return Ok(false) };
    *left = fewer;
    if xattr::list(path)?.next().is_some() {
        return Ok(false);
    }
    if !path.symlink_metadata()?.is_dir() {
        return Ok(true);
    }
    for entry in path.read_dir()? {
        if !looks_plain(&entry?.path(), left)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Are these two the same directory of one client? Its numbers are the same in all its mounts.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let known = |path: &Path| path.symlink_metadata().map(|found| (found.ino(), found.mode(), found.mtime())).ok();
    known(one).is_some_and(|found| Some(found) == known(other))
}

/// Asks the client at a control socket for its mount without attributes.
pub async fn ask(socket: &Path) -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Made {
        mountpoint: PathBuf,
    }
    startup::ask(socket, "bare").await.map(|Made { mountpoint }| mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_found_among_the_others() {
        assert_eq!(count(b"catalog_hash: x\nregular,7\nxattr,0\nchunked,1\n"), Some(0));
        assert_eq!(count(b"xattr,12\n"), Some(12));
        for nothing in [&b""[..], b"regular,7\n", b"xattr,\n", b"xattr,-1\n", b"\xff\nxattr,0\n"] {
            assert_eq!(count(nothing), None);
        }
    }

    #[test]
    fn what_is_in_doubt_has_attributes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir(path.join("d")).unwrap();
        std::fs::write(path.join("d/file"), "").unwrap();
        assert!(has_none(path).unwrap(), "each was looked at");
        xattr::set(path.join("d/file"), "user.x", b"1").unwrap();
        assert!(!has_none(path).unwrap());
        xattr::remove(path.join("d/file"), "user.x").unwrap();
        for number in 0..MOST {
            std::fs::write(path.join(number.to_string()), "").unwrap();
        }
        assert!(!has_none(path).unwrap(), "too many to look at");
        assert!(has_none(&path.join("absent")).is_err());
    }

    #[test]
    fn another_directory_is_not_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        for path in [&one, &other] {
            std::fs::create_dir(path).unwrap();
        }
        assert!(is_same(&one, &directory.path().join("other/../one")));
        assert!(!is_same(&one, &other) && !is_same(&one, &directory.path().join("absent")));
    }
}
