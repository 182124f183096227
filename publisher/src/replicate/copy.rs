//! The copy: a directory that a web server can export as it is, and what tells whether it can be relied on.
//!
//! ```text
//! .cvmfs_is_snapshotting   there while a run is at work, or after one that was killed
//! .cvmfs_last_snapshot     there once the copy was complete for the first time
//! .cvmfs_status.json       the same for programs; what other tools wrote into it stays
//! data/txn/replicate.lock  held by the run; names the boot of the machine that it ran in
//! ```
//!
//! Objects are not synced one by one. A run that was killed leaves whole files, so that does no harm; but when the
//! machine went down under it, a catalog may have survived that refers to objects which have not. Such a run is known
//! by its marker and by the other boot: then what was written since it began is read again, and catalogs among it are
//! dropped, to be fetched once more.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use cvmfs::hash::{ContentHash, Hasher, ObjectId, ObjectKind};
use cvmfs::manifest::Manifest;
use cvmfs::reflog::{self, Ref};
use cvmfs::store::{Listing as _, LocalStore, Store as _, StoreError, names};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use time::UtcDateTime;

use super::error::ReplicateError;
use crate::status::{self, date};

const IS_SNAPSHOTTING: &str = ".cvmfs_is_snapshotting";
const LAST_SNAPSHOT: &str = ".cvmfs_last_snapshot";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A copy that is being worked on; its lock goes with it.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) store: LocalStore,
    scratch: TempDir,
    initial: bool,
    _lock: Flock<File>,
}

/// The manifest of the copy in `directory`, if it has one.
pub(super) fn manifest(directory: &Path, fqrn: &str) -> Result<Option<(Manifest, Vec<u8>)>, ReplicateError> {
    let occupied = |what: String| ReplicateError::Occupied { directory: directory.to_owned(), what };
    let store = LocalStore::open(directory);
    let Some(document) = store.read(names::MANIFEST)? else { return Ok(None) };
    let manifest = Manifest::parse(&document)
        .map_err(|e| occupied(format!("a .cvmfspublished that cannot be read ({e}); remove it to start anew")))?;
    if manifest.name != fqrn {
        return Err(occupied(format!("another repository, {:?}", manifest.name)));
    }
    let ours = [LAST_SNAPSHOT, IS_SNAPSHOTTING].iter().any(|name| directory.join(name).exists());
    if !ours {
        return Err(occupied(format!(
            "repository {fqrn} itself, not a copy of it (there is no {LAST_SNAPSHOT}); copies are made in other places"
        )));
    }
    Ok(Some((manifest, document)))
}

impl Copy {
    /// Takes the lock, clears away what a killed run left, and says to the world that a run is at work.
    pub(super) fn open(directory: &Path, now: UtcDateTime) -> Result<Copy, ReplicateError> {
        let store = LocalStore::create(directory)?;
        let txn = directory.join("data/txn");
        let lock = lock(directory, &txn.join("replicate.lock"))?;
        clear(&txn)?;
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let interrupted = modified(&directory.join(IS_SNAPSHOTTING))?;
        if let Some(begun) = interrupted
            && (boot.is_empty() || boot_of(&lock)? != boot)
        {
            tracing::warn!(directory = %directory.display(), "the machine went down during the last run");
            // Everything was durable when the manifest was replaced, should the run have come so far.
            let durable = modified(&directory.join(names::MANIFEST))?;
            drop_doubtful(&store, durable.map_or(begun, |durable| durable.max(begun)))?;
            store.flush()?;
        }
        note_boot(&lock, &boot).map_err(ReplicateError::io("write", txn.join("replicate.lock")))?;
        if interrupted.is_none() {
            store.replace(IS_SNAPSHOTTING, date(now).as_bytes())?;
        }
        let scratch = tempfile::Builder::new().prefix("replicate.").tempdir_in(&txn);
        let scratch = scratch.map_err(ReplicateError::io("create a directory in", txn))?;
        let initial = !directory.join(LAST_SNAPSHOT).exists();
        Ok(Copy { store, scratch, initial, _lock: lock })
    }

    /// Whether the copy has never been complete.
    pub(super) fn is_initial(&self) -> bool {
        self.initial
    }

    /// Directory for scratch files of this run.
    pub(super) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// Adds references to the reflog of the copy, which lists what *it* has and so differs from the one of the stratum 0.
    /// Its hash is kept in the file `checksum`, together with the one before, so that one of them is right at any moment.
    pub(super) fn add_to_reflog(&self, fqrn: &str, refs: &[Ref], checksum: &Path) -> Result<(), ReplicateError> {
        let database =
            |source| ReplicateError::Database { what: "the reflog of the copy cannot be used".into(), source };
        let file = self.scratch().join("reflog");
        let io = |action| ReplicateError::io(action, &file);
        let old = self.store.read(names::REFLOG)?;
        let mut known = Vec::new();
        if let Some(old) = &old {
            fs::write(&file, old).map_err(io("write"))?;
            known = reflog::read(&file).map_err(database)?;
        }
        let algorithm = refs.first().map_or_else(Default::default, |r| r.hash.algorithm);
        let hash = |content: &[u8]| ContentHash::of(algorithm, content).to_string();
        let is_known = |r: &&Ref| !known.iter().any(|k| (k.hash, k.kind) == (r.hash, r.kind));
        let fresh: Vec<Ref> = refs.iter().filter(is_known).copied().collect();
        if let Some(old) = &old
            && fresh.is_empty()
            && fs::read_to_string(checksum).is_ok_and(|kept| kept.lines().any(|line| line == hash(old)))
        {
            return Ok(());
        }
        reflog::append(&file, fqrn, &fresh).map_err(database)?;
        let new = fs::read(&file).map_err(io("read"))?;
        let hashes = match &old {
            Some(old) => format!("{}\n{}\n", hash(&new), hash(old)),
            None => hash(&new),
        };
        write_durably(checksum, hashes.as_bytes()).map_err(ReplicateError::io("write", checksum))?;
        Ok(self.store.replace(names::REFLOG, &new)?)
    }

    /// Makes the links that clients use instead of `data/` where the manifest says so.
    pub(super) fn link(&self, objects: &[ObjectId]) -> Result<(), ReplicateError> {
        for id in objects {
            let link = self.store.root().join(format!(".cvmfsalt-{id}"));
            match symlink(id.path(), &link) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(ReplicateError::io("create the link", link)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The last word of a run that succeeded.
    pub(super) fn finish(self, now: UtcDateTime) -> Result<(), ReplicateError> {
        let date = date(now);
        self.store.replace(LAST_SNAPSHOT, format!("{date}\n").as_bytes())?;
        status::note(&self.store, &[("last_snapshot", &date)])?;
        let marker = self.store.root().join(IS_SNAPSHOTTING);
        fs::remove_file(&marker).map_err(ReplicateError::io("remove", marker))
    }
}

fn lock(directory: &Path, path: &Path) -> Result<Flock<File>, ReplicateError> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.map_err(ReplicateError::io("open the lock file", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ReplicateError::Busy(directory.to_owned()),
        errno => ReplicateError::io("lock", path)(errno.into()),
    })
}

fn boot_of(mut lock: &File) -> Result<String, ReplicateError> {
    let mut text = String::new();
    lock.read_to_string(&mut text).map_err(ReplicateError::io("read", "data/txn/replicate.lock"))?;
    Ok(text)
}

fn note_boot(mut lock: &File, boot: &str) -> std::io::Result<()> {
    use std::io::Seek as _;
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(boot.as_bytes())?;
    lock.sync_all()
}

/// When a file was written; none if it is not there.
fn modified(path: &Path) -> Result<Option<SystemTime>, ReplicateError> {
    match path.metadata().and_then(|m| m.modified()) {
        Ok(time) => Ok(Some(time)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ReplicateError::io("examine", path)(e)),
    }
}

/// Removes what a killed run left in `data/txn`: nobody else works here while we hold the lock.
fn clear(txn: &Path) -> Result<(), ReplicateError> {
    for entry in fs::read_dir(txn).map_err(ReplicateError::io("read directory", txn))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let removed = match name.as_ref() {
            "replicate.lock" => Ok(()),
            name if name.starts_with("replicate.") => fs::remove_dir_all(entry.path()),
            name if name.starts_with("new.") => fs::remove_file(entry.path()),
            _ => Ok(()),
        };
        removed.map_err(ReplicateError::io("remove", entry.path()))?;
    }
    Ok(())
}

/// Drops catalogs written since `begun`, and other objects since then that are not what their names say.
fn drop_doubtful(store: &LocalStore, begun: SystemTime) -> Result<(), StoreError> {
    let mut buffer = vec![0; 128 * 1024];
    for bucket in (0..=255u8).map(|b| format!("{b:02x}")) {
        let mut doubtful = Vec::new();
        store.list(Some(&bucket), &mut |listed| {
            let recent = listed.modified.is_none_or(|m| m >= begun);
            doubtful.extend(ObjectId::from_path_parts(&bucket, listed.name).filter(|_| recent));
        })?;
        for id in doubtful {
            if id.kind == ObjectKind::Catalog || !is_right(store, id, &mut buffer)? {
                store.remove(id)?;
            }
        }
    }
    Ok(())
}

fn is_right(store: &LocalStore, id: ObjectId, buffer: &mut [u8]) -> Result<bool, StoreError> {
    let mut stored = store.open(id)?;
    let mut hasher = Hasher::new(id.hash.algorithm);
    loop {
        match stored.read(buffer) {
            Ok(0) => return Ok(hasher.finish() == id.hash),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // A file that cannot be read is not what it should be.
            Err(_) => return Ok(false),
        }
    }
}

fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}
