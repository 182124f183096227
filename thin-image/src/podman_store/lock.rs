//! Lock files as containers/storage has them: a lock on the whole file while a list changes, and 64 bytes in it that tell others to
//! read the list again.
//!
//! Readers hold a shared lock while they read. The lock is of the `fcntl` kind, which conflicts with theirs; `flock` would not.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::StoreError;
use crate::files::{self, FileError};

/// Length of what tells others to read again.
const TOKEN: usize = 64;

/// A lock that is held.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Makes a lock file if there is none: it has to exist, and to be readable for everybody.
    pub(super) fn ensure(path: &Path) -> Result<(), FileError> {
        if path.exists() { Ok(()) } else { files::replace(path, &token()) }
    }

    /// Waits for the lock, but not for ever: everybody who can read the file can hold it.
    pub(super) fn take(path: &Path, patience: Duration) -> Result<Self, StoreError> {
        let file = OpenOptions::new().write(true).open(path).map_err(FileError::of("open", path))?;
        let whole_file = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let deadline = Instant::now() + patience;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file)) {
                Ok(_) => return Ok(Self { file, path: path.to_owned() }),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(StoreError::Locked { path: path.to_owned() }),
                Err(errno) => return Err(FileError::of("lock", path)(errno.into()).into()),
            }
        }
    }

    /// Tells others that the list has changed.
    pub(super) fn touch(&self) -> Result<(), FileError> {
        self.file.write_all_at(&token(), 0).map_err(FileError::of("write", &self.path))
    }
}

fn token() -> [u8; TOKEN] {
    let mut token = [0; TOKEN];
    fastrand::fill(&mut token);
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time_and_each_change_shows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.lock");
        Lock::ensure(&path).unwrap();
        let first = std::fs::read(&path).unwrap();
        Lock::ensure(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        let lock = Lock::take(&path, Duration::ZERO).unwrap();
        assert!(matches!(Lock::take(&path, Duration::from_millis(50)), Err(StoreError::Locked { .. })));
        lock.touch().unwrap();
        drop(lock);
        let second = std::fs::read(&path).unwrap();
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first, second);
        Lock::take(&path, Duration::ZERO).unwrap();
    }
}
