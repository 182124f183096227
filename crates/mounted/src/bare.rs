//! Mounts without extended attributes, which some clients make beside a repository when they are asked.
//!
//! Overlayfs asks for an attribute of each file that a new container looks up. Where a whole mount has no attributes the
//! kernel knows the answer; so directories that have none are better taken from there. Two contracts, both stated by others:
//! the sums of a catalog (`user.catalog_counters`, which every client has), and how a client is asked (`cvmfs-client`:
//! one line `bare` at the control socket that the attribute `user.control` of the mountpoint names).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::Deserialize;

use crate::startup;

/// Sums of the catalog that a directory's content is in, and of all below it, as lines `name,value`.
const COUNTERS: &str = "user.catalog_counters";
/// Entries that are looked at one by one where the catalog has other things too.
const MOST: usize = 256;

/// Has nothing in this directory any attributes? What is in doubt has.
pub fn has_none(directory: &Path) -> io::Result<bool> {
    // Where the catalog counts other things as well, a small directory is looked through.
    Ok(sum(directory)? == Some(0) || looked_through(directory)? == Some(0))
}

/// Has what lies over a directory everything in it that has attributes, so that nobody sees those below? What is in doubt
/// has not.
pub fn covers(cover: &Path, directory: &Path) -> io::Result<bool> {
    let all = match sum(directory)? {
        Some(0) => return Ok(true),
        Some(sum) => Some(sum),
        None => looked_through(directory)?,
    };
    let is_hidden = |path: &Path| {
        Ok(has_attributes(&cover.join(path))? && has_attributes(&directory.join(path)).or_else(if_absent)?)
    };
    Ok(all.is_some() && counted(cover, is_hidden)? == all)
}

/// Entries with attributes, by the catalog.
fn sum(directory: &Path) -> io::Result<Option<u64>> {
    Ok(count(&xattr::get(directory, COUNTERS)?.unwrap_or_default()))
}

fn count(counters: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(counters).ok()?;
    text.lines().find_map(|line| line.strip_prefix("xattr,"))?.parse().ok()
}

/// The same, counted one by one; nothing if there is too much.
fn looked_through(directory: &Path) -> io::Result<Option<u64>> {
    counted(directory, |path| has_attributes(&directory.join(path)))
}

/// How many paths below a directory, itself included, are `wanted`; nothing if there are too many to look at.
fn counted(directory: &Path, wanted: impl Fn(&Path) -> io::Result<bool>) -> io::Result<Option<u64>> {
    let (mut ahead, mut known, mut found) = (vec![PathBuf::new()], 1, 0);
    while let Some(path) = ahead.pop() {
        found += u64::from(wanted(&path)?);
        let full = directory.join(&path);
        if !full.symlink_metadata()?.is_dir() {
            continue;
        }
        for entry in full.read_dir()? {
            known += 1;
            if known > MOST {
                return Ok(None);
            }
            ahead.push(path.join(entry?.file_name()));
        }
    }
    Ok(Some(found))
}

/// Of a link itself, not of what it leads to.
fn has_attributes(path: &Path) -> io::Result<bool> {
    Ok(xattr::list(path)?.next().is_some())
}

fn if_absent(error: io::Error) -> io::Result<bool> {
    if crate::is_absence(&error) { Ok(false) } else { Err(error) }
}

/// Is `one`, in the mount without attributes, the same directory of the same client as `other`, and does the client live? Its
/// numbers are the same in all its mounts.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let known = |path: &Path| path.symlink_metadata().map(|found| (found.ino(), found.mode(), found.mtime())).ok();
    // The kernel remembers what a client has said that was killed, and the next one says the same. This asks the client.
    known(one).is_some_and(|found| Some(found) == known(other)) && statvfs(one).is_ok()
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
    fn what_lies_over_a_directory_has_all_attributes_or_is_of_no_use() {
        let directory = tempfile::tempdir().unwrap();
        let (flat, cover) = (directory.path().join("flat"), directory.path().join("cover"));
        for top in [&flat, &cover] {
            std::fs::create_dir_all(top.join("bin")).unwrap();
        }
        let file = |path: PathBuf, has_any: bool| {
            std::fs::write(&path, "").unwrap();
            if has_any {
                xattr::set(&path, "user.x", b"1").unwrap();
            }
        };
        let covers = || covers(&cover, &flat).unwrap();
        assert!(covers(), "there are none");
        file(flat.join("bin/ping"), true);
        assert!(!covers());
        file(cover.join("bin/ping"), true);
        assert!(covers());
        file(flat.join("bin/other"), true);
        file(cover.join("bin/only here"), true);
        assert!(!covers(), "as many, but not the same");
        file(cover.join("bin/other"), false);
        assert!(!covers(), "hidden, but not the same");
        xattr::set(cover.join("bin/other"), "user.x", b"1").unwrap();
        assert!(covers());
        xattr::set(flat.join("bin"), "user.x", b"1").unwrap();
        assert!(!covers(), "directories as well");
        xattr::set(cover.join("bin"), "user.x", b"1").unwrap();
        assert!(covers());
        (0..MOST).for_each(|number| file(cover.join(number.to_string()), false));
        assert!(!covers(), "too many to look at");
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
