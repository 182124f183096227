//! The locks of the reference tools, taken as they take them.
//!
//! | file in the spool directory | the tools | we, while publishing | we, while preparing |
//! |---|---|---|---|
//! | `is_publishing.lock` | `publish` holds it | hold it | |
//! | `is_collecting.lock` | `gc` and `check` hold it | hold it shared | hold it shared |
//! | `in_transaction.lock` | there from `transaction` to `publish` or `abort`, and during `gc` | ours is there | |
//! | `checkout` | there while a branch or an old tag is checked out | must not be there | |
//!
//! A lock is an exclusive `flock` on a file that whoever lets go removes first; so whoever gets it looks whether the
//! path still leads to the file that he has. A lock left by a process that was killed is free, a flag is not.
//!
//! `transaction` and `gc` look at the flag only. Therefore we set it too, with our name inside, for as long as the
//! publish takes. If we are killed in that time it stays, and `cvmfs_server` says that there is a transaction: our
//! next publish finds its own name, with nobody holding `is_publishing.lock`, and takes the flag over; `cvmfs_server
//! abort` removes it as well.
//!
//! The lock of the collector is shared among ours who prepare, and exclusive for our own collection, which takes
//! all that a publish takes besides.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::lease::LeaseKind;
use cvmfs::manifest::Manifest;
use cvmfs::store::{Listing, names};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{AdoptError, Stratum0, spool};

/// How a flag of ours begins.
const SIGNATURE: &str = "cvmfs-publisher ";
/// How often a lock that is taken is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Keeps the tools of this machine from what our own work excludes, until it is dropped.
#[derive(Debug)]
pub struct StockLock {
    // Dropped in this order: the flag goes while the locks are still held.
    #[expect(dead_code, reason = "held for its Drop")]
    publish: Option<Publish>,
    #[expect(dead_code, reason = "held for its Drop")]
    collecting: LockFile,
    #[expect(dead_code, reason = "held for its Drop")]
    publishing: Option<LockFile>,
}

/// What ends with a publish.
#[derive(Debug)]
struct Publish {
    stratum0: Arc<Stratum0>,
    store: Arc<dyn Listing>,
    #[expect(dead_code, reason = "held for its Drop")]
    flag: Flag,
}

impl Stratum0 {
    /// Takes what a work of this kind needs, with the leases of our own or without; waits up to `patience` for
    /// publishes and collections, never for people.
    pub fn hold(
        self: &Arc<Stratum0>,
        kind: LeaseKind,
        store: &Arc<dyn Listing>,
        patience: Duration,
    ) -> Result<StockLock, AdoptError> {
        let deadline = Instant::now() + patience;
        let publishing = match kind {
            LeaseKind::Prepare => None,
            _ => Some(self.take("is_publishing.lock", FlockArg::LockExclusiveNonblock, "being published", deadline)?),
        };
        self.expect_idle()?;
        let how = match kind {
            LeaseKind::Collect => FlockArg::LockExclusiveNonblock,
            _ => FlockArg::LockSharedNonblock,
        };
        let collecting = self.take("is_collecting.lock", how, "being collected, checked or prepared for", deadline)?;
        let publish = match kind {
            LeaseKind::Prepare => None,
            _ => Some(Publish { stratum0: self.clone(), store: store.clone(), flag: Flag::set(self)? }),
        };
        Ok(StockLock { publish, collecting, publishing })
    }

    /// Fails if people are at work: a transaction is open, or something is checked out.
    pub fn expect_idle(&self) -> Result<(), AdoptError> {
        let (flag, marker) = (self.flag(), self.spool.join("checkout"));
        if exists(&marker)? {
            return Err(AdoptError::CheckedOut { fqrn: self.fqrn.clone(), marker });
        }
        match read_flag(&flag)? {
            Some(text) if !text.starts_with(SIGNATURE) => {
                Err(AdoptError::InTransaction { fqrn: self.fqrn.clone(), flag })
            }
            _ => Ok(()),
        }
    }

    fn flag(&self) -> PathBuf {
        self.spool.join("in_transaction.lock")
    }

    fn take(&self, name: &str, how: FlockArg, doing: &'static str, deadline: Instant) -> Result<LockFile, AdoptError> {
        let path = self.spool.join(name);
        loop {
            if let Some(lock) = LockFile::try_take(&path, how)? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(AdoptError::Busy { fqrn: self.fqrn.clone(), doing, lock: path });
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Publish {
    fn drop(&mut self) {
        // The tools' read-only mount is to show what is published. The publish stands whatever comes of this: they
        // notice by themselves that the mount is behind.
        let manifest = self.store.read(names::MANIFEST).ok().flatten().and_then(|m| Manifest::parse(&m).ok());
        if let Some(manifest) = manifest
            && let Err(error) = spool::set_root(&self.stratum0.spool, manifest.root_catalog)
        {
            tracing::warn!(%error, "cannot tell the read-only mount of cvmfs_server which revision is published");
        }
    }
}

/// A locked file.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    file: Flock<File>,
}

impl LockFile {
    /// The lock, unless somebody has it.
    fn try_take(path: &Path, how: FlockArg) -> Result<Option<LockFile>, AdoptError> {
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .map_err(AdoptError::io("open the lock file", path))?;
            spool::give_to_owner(&file, path).map_err(AdoptError::io("change the owner of", path))?;
            let file = match Flock::lock(file, how) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, Errno::EINTR)) => continue,
                Err((_, e)) => return Err(AdoptError::io("lock", path)(e.into())),
            };
            // Whoever had it may have removed it in between; then it locks nothing.
            let inode = |m: fs::Metadata| (m.dev(), m.ino());
            let ours = file.metadata().map(inode).map_err(AdoptError::io("examine", path))?;
            if fs::symlink_metadata(path).is_ok_and(|found| inode(found) == ours) {
                return Ok(Some(LockFile { path: path.to_owned(), file }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // Others that share it keep the file.
        if self.file.relock(FlockArg::LockExclusiveNonblock).is_ok() {
            // A lock file that stays is free all the same.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The flag that says that a transaction is open: ours.
#[derive(Debug)]
struct Flag {
    path: PathBuf,
    text: String,
}

impl Flag {
    /// Sets the flag. The caller holds the lock of publishes, so one with our name has been left by a dead process.
    fn set(stratum0: &Stratum0) -> Result<Flag, AdoptError> {
        let path = stratum0.flag();
        let text = format!("{SIGNATURE}{}\n", std::process::id());
        for _ in 0..2 {
            match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
                Ok(mut file) => {
                    spool::give_to_owner(&file, &path).map_err(AdoptError::io("change the owner of", &path))?;
                    let flag = Flag { path: path.clone(), text };
                    file.write_all(flag.text.as_bytes()).map_err(AdoptError::io("write", &path))?;
                    return Ok(flag);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(AdoptError::io("create", &path)(e)),
            }
            match read_flag(&path)? {
                Some(left) if left.starts_with(SIGNATURE) => {
                    tracing::warn!(path = %path.display(), "a publish of ours was killed here; its flag is taken over");
                    fs::remove_file(&path).map_err(AdoptError::io("remove", &path))?;
                }
                Some(_) => break,
                None => {}
            }
        }
        Err(AdoptError::InTransaction { fqrn: stratum0.fqrn.clone(), flag: path })
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        // If another has put its own there, it stays.
        if matches!(read_flag(&self.path), Ok(Some(text)) if text == self.text)
            && let Err(e) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), error = %e, "cannot remove the flag of our publish; cvmfs_server sees a transaction");
        }
    }
}

/// The beginning of a flag; none if it is not set. A flag that is empty for a moment, because it is ours and new, is
/// seen by nobody who has the lock of publishes.
fn read_flag(path: &Path) -> Result<Option<String>, AdoptError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(256).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(AdoptError::io("read", path)(e)),
    }
}

fn exists(path: &Path) -> Result<bool, AdoptError> {
    path.try_exists().map_err(AdoptError::io("look for", path))
}

#[cfg(test)]
mod tests;
