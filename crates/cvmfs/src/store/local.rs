//! A repository in a directory, as a web server can export it.
//!
//! Objects are written below `data/txn/` under unique names and renamed into place. They are not synced one
//! by one: [`Store::flush`] syncs the whole file system once, before the manifest is replaced.
//!
//! The storage may belong to somebody else than root. What root writes then belongs to the owner of `data/txn/`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tempfile::NamedTempFile;

use super::{Listed, ListedKind, Listing, NAMED_FILE_LIMIT, Staged, Store, StoreError, Stored};
use crate::hash::{ContentHash, ObjectId};

/// A repository's root directory: `.cvmfspublished`, `data/`, …
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
    txn: PathBuf,
    /// Who gets what is written: user and group.
    owner: Option<(u32, u32)>,
}

impl LocalStore {
    /// An existing repository directory.
    pub fn open(root: impl Into<PathBuf>) -> LocalStore {
        let root = root.into();
        let txn = root.join("data/txn");
        let owner = fs::metadata(&txn).ok().map(|m| (m.uid(), m.gid()));
        let ours = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        LocalStore { owner: owner.filter(|owner| ours.0 == 0 && *owner != ours), txn, root }
    }

    /// Makes the directories of a new repository: `data/00` to `data/ff` and `data/txn`.
    pub fn create(root: impl Into<PathBuf>) -> Result<LocalStore, StoreError> {
        let store = LocalStore::open(root);
        let buckets = (0..=255u8).map(|b| store.root.join(format!("data/{b:02x}")));
        for directory in buckets.chain([store.txn.clone()]) {
            fs::create_dir_all(&directory)
                .map_err(store.io("cannot create directory", &directory.display().to_string()))?;
        }
        Ok(store)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn io(&self, action: &'static str, what: &str) -> impl FnOnce(io::Error) -> StoreError + use<> {
        let (what, place) = (what.to_owned(), self.place());
        move |source| StoreError::Io { action, what, place, source }
    }

    fn temporary(&self, what: &str) -> Result<NamedTempFile, StoreError> {
        let file = tempfile::Builder::new()
            .prefix("new.")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(&self.txn)
            .map_err(self.io("cannot create a temporary file for", what))?;
        if let Some((user, group)) = self.owner {
            fchown(file.as_file(), Some(user), Some(group)).map_err(self.io("cannot change the owner of", what))?;
        }
        Ok(file)
    }

    fn create_bucket(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)?;
        self.owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }

    fn publish(&self, file: NamedTempFile, id: ObjectId) -> Result<(), StoreError> {
        let path = self.root.join(id.path());
        let Err(failed) = file.persist(&path) else { return Ok(()) };
        // Repositories of others may lack a bucket; ours have all from the start.
        if failed.error.kind() == io::ErrorKind::NotFound
            && path.parent().is_some_and(|p| self.create_bucket(p).is_ok())
        {
            return failed.file.persist(&path).map(drop).map_err(|e| self.io("cannot write", &id.to_string())(e.error));
        }
        Err(self.io("cannot write", &id.to_string())(failed.error))
    }
}

impl Store for LocalStore {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        match File::open(self.root.join(id.path())) {
            Ok(file) => Ok(Box::new(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StoreError::Missing(id)),
            Err(e) => Err(self.io("cannot open", &id.to_string())(e)),
        }
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        match fs::symlink_metadata(self.root.join(id.path())) {
            // After a power failure, a file that was renamed but never synced may be there without its content.
            Ok(found) => Ok(found.is_file() && (found.len() > 0 || id.hash == ContentHash::of(id.hash.algorithm, b""))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.io("cannot look for", &id.to_string())(e)),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match File::open(self.root.join(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.io("cannot open", name)(e)),
        };
        let mut content = Vec::new();
        file.take(NAMED_FILE_LIMIT).read_to_end(&mut content).map_err(self.io("cannot read", name))?;
        Ok(Some(content))
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        Ok(Box::new(LocalStaged { store: self, file: self.temporary("an object")? }))
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        if self.exists(id)? {
            return Ok(Stored::Present);
        }
        let mut file = self.temporary(&id.to_string())?;
        file.write_all(stored).map_err(self.io("cannot write", &id.to_string()))?;
        self.publish(file, id)?;
        Ok(Stored::New(stored.len() as u64))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let mut file = self.temporary(name)?;
        file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(self.io("cannot write", name))?;
        let path = self.root.join(name);
        file.persist(&path).map_err(|e| self.io("cannot replace", name)(e.error))?;
        File::open(&self.root).and_then(|d| d.sync_all()).map_err(self.io("cannot sync the directory of", name))
    }

    fn alias(&self, name: &str, id: ObjectId) -> Result<(), StoreError> {
        match std::os::unix::fs::symlink(id.path(), self.root.join(name)) {
            // Its name is that of the object: whatever is there leads to the same bytes.
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(self.io("cannot make the link", name)(e)),
            _ => Ok(()),
        }
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        // Whoever swaps takes this lock, in every process; it goes with the process.
        let root = File::open(&self.root).map_err(self.io("cannot open", "the root directory"))?;
        let _lock = Flock::lock(root, FlockArg::LockExclusive)
            .map_err(|(_, e)| self.io("cannot lock", "the root directory")(e.into()))?;
        if self.read(name)?.as_deref() != expected {
            return Ok(false);
        }
        self.replace(name, content).map(|()| true)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let directory = File::open(&self.root).map_err(self.io("cannot open", "the root directory"))?;
        nix::unistd::syncfs(&directory).map_err(|e| self.io("cannot sync", "the file system")(e.into()))
    }

    fn place(&self) -> String {
        self.root.display().to_string()
    }
}

impl Listing for LocalStore {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        let path = bucket.map_or_else(|| "data".to_owned(), |b| format!("data/{b}"));
        let entries = match fs::read_dir(self.root.join(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.io("cannot list", &path)(e)),
        };
        for entry in entries {
            let entry = entry.map_err(self.io("cannot list", &path))?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(self.io("cannot examine", &entry.path().display().to_string())(e)),
            };
            let kind = match () {
                () if metadata.is_file() => ListedKind::File,
                () if metadata.is_dir() => ListedKind::Directory,
                () => ListedKind::Other,
            };
            let name = entry.file_name();
            visit(Listed {
                name: &name.to_string_lossy(),
                kind,
                size: metadata.len(),
                modified: metadata.modified().ok(),
            });
        }
        Ok(())
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        match fs::remove_file(self.root.join(id.path())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.io("cannot remove", &id.to_string())(e)),
            _ => Ok(()),
        }
    }
}

struct LocalStaged<'a> {
    store: &'a LocalStore,
    file: NamedTempFile,
}

impl Write for LocalStaged<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Staged for LocalStaged<'_> {
    fn commit(self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError> {
        if self.store.exists(id)? {
            return Ok(Stored::Present);
        }
        let size = self.file.as_file().metadata().map_err(self.store.io("cannot examine", &id.to_string()))?.len();
        self.store.publish(self.file, id)?;
        Ok(Stored::New(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Algorithm, ObjectKind};

    #[test]
    fn an_object_that_lost_its_content_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::create(dir.path()).unwrap();
        let id = ContentHash::of(Algorithm::Sha1, b"stored").object(ObjectKind::File);
        let empty = ContentHash::of(Algorithm::Sha1, b"").object(ObjectKind::File);
        assert_eq!(store.put(id, b"stored").unwrap(), Stored::New(6));
        assert_eq!(store.put(id, b"stored").unwrap(), Stored::Present);
        fs::write(dir.path().join(id.path()), b"").unwrap();
        assert!(!store.exists(id).unwrap());
        assert_eq!(store.put(id, b"stored").unwrap(), Stored::New(6));
        assert_eq!(fs::read(dir.path().join(id.path())).unwrap(), b"stored");
        assert_eq!(store.put(empty, b"").unwrap(), Stored::New(0));
        assert_eq!(store.put(empty, b"").unwrap(), Stored::Present);
        assert!(fs::read_dir(dir.path().join("data/txn")).unwrap().next().is_none(), "nothing is left behind");
    }
}
