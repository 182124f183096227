//! What the kernel is told about an entry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cvmfs::entry::FileType;
use fuser::{FileAttr, INodeNo};

use crate::fs::Attr;

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

/// Type of an entry.
pub fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Char => fuser::FileType::CharDevice,
        FileType::Block => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

/// What `stat` shows.
pub fn attributes(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime.0, attr.mtime.1);
    FileAttr {
        ino: INodeNo(attr.inode.into()),
        size: attr.size,
        blocks: 1 + attr.size / 512,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(FileType::from_mode(attr.mode).unwrap_or(FileType::Regular)),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// What "there is no such name" looks like when the kernel may remember it: inode 0.
pub fn nothing() -> FileAttr {
    attributes(&Attr { inode: 0, mode: 0, links: 0, uid: 0, gid: 0, size: 0, rdev: 0, mtime: (0, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_far_away_keep_their_value() {
        for (seconds, nanoseconds) in [(0, 0), (-1, 500_000_000), (-2_147_483_648, 0), (15_032_385_535, 999_999_999)] {
            let at = time(seconds, nanoseconds);
            let back = match at.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(back, i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds));
        }
        let _ = time(i64::MIN, 0);
        let _ = time(i64::MAX, 999_999_999);
    }
}
