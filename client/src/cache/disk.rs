//! Objects on disk.
//!
//! Promises
//! - A file under its final name is complete and was verified before it was renamed there.
//! - Its length is compared with what the catalog says at every open; a file that a power failure cut
//!   short is removed and fetched again.
//! - An object that is open stays readable when it is evicted, here or by another client.
//! - A catalog stays in the cache while a client has it attached: it holds a shared `flock` on the file,
//!   which the kernel releases however the client ends.
//!
//! The plain bytes of an object depend on its hash *and* on whether it was stored compressed: a file that is
//! itself a zlib stream, published uncompressed, has the same hash as the object it inflates to. Objects
//! stored uncompressed therefore have a name of their own.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cvmfs::hash::ContentHash;
use cvmfs::object::Compression;

use super::quota::{Quota, Reservation, UNFINISHED};
use super::{CacheError, Sharing, io_error};

const FORMAT: &str = "cvmfs-client cache 1\n";

/// Ages are kept in the files' access times, rewritten when they are older than this.
const TOUCH_AFTER: Duration = Duration::from_secs(600);

/// Name of a cached object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// Hash of the stored bytes.
    pub hash: ContentHash,
    /// What the object is.
    pub form: Form,
}

/// What a cached object is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// One object, stored like this.
    Stored(Compression),
    /// Chunks of a file, stored like this; the hash is of their list.
    Joined(Compression),
}

impl CacheKey {
    /// Path below the cache directory.
    pub fn path(&self) -> PathBuf {
        let text = self.hash.to_string();
        let (bucket, rest) = text.split_at(2);
        let mark = match self.form {
            Form::Stored(Compression::Zlib) => "",
            Form::Stored(Compression::None) => ".stored",
            Form::Joined(Compression::Zlib) => ".joined",
            Form::Joined(Compression::None) => ".joined.stored",
        };
        Path::new(bucket).join(format!("{rest}{mark}"))
    }
}

/// A cache directory in use by this process.
#[derive(Debug)]
pub struct DiskCache {
    directory: PathBuf,
    sharing: Sharing,
    quota: Quota,
    /// Shared lock that tells other clients that the directory is in use.
    _lock: File,
}

impl DiskCache {
    /// Opens the cache of this user in `directory`, creating it where needed, bounded by `limit` bytes.
    pub fn open(directory: &Path, limit: Option<u64>) -> Result<DiskCache, CacheError> {
        DiskCache::open_for(Sharing::Private, directory, limit)
    }

    /// The same for a cache that others may use, too.
    pub fn open_for(sharing: Sharing, directory: &Path, limit: Option<u64>) -> Result<DiskCache, CacheError> {
        sharing.make(directory).map_err(io_error("create", directory))?;
        check_format(directory, sharing)?;
        let inodes = directory.join("inodes");
        sharing.make(&inodes).map_err(io_error("create", &inodes))?;
        let lock_path = directory.join("lock");
        let lock = File::options().create(true).append(true).open(&lock_path).map_err(io_error("open", &lock_path))?;
        sharing.give(&lock).map_err(io_error("share", &lock_path))?;
        // Whoever is alone cleans up what killed clients have left.
        let alone = lock.try_lock().is_ok();
        let quota = Quota::open(directory, limit, alone, sharing)?;
        lock.lock_shared().map_err(io_error("lock", &lock_path))?;
        Ok(DiskCache { directory: directory.to_owned(), sharing, quota, _lock: lock })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes used and the limit.
    pub fn usage(&self) -> (u64, Option<u64>) {
        (self.quota.used(), self.quota.limit())
    }

    /// The orderly end of a client; without it the next one counts the directory anew.
    pub fn close(&self) {
        self.quota.close();
    }

    /// How often old objects were removed since the start.
    pub fn evictions(&self) -> u64 {
        self.quota.evictions()
    }

    /// The object, when it is here and has `size` bytes (where the size is known).
    pub fn get(&self, key: CacheKey, size: Option<u64>) -> Option<File> {
        let path = self.directory.join(key.path());
        let file = File::open(&path).ok()?;
        let metadata = file.metadata().ok()?;
        if size.is_some_and(|size| size != metadata.len()) {
            tracing::warn!(object = %key.hash, found = metadata.len(), expected = size, "removed: wrong size in the cache");
            self.remove(key);
            return None;
        }
        let stale = metadata.accessed().ok().and_then(|at| at.elapsed().ok()).is_none_or(|age| age > TOUCH_AFTER);
        if stale {
            // Only the order of eviction depends on it.
            let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        }
        Some(file)
    }

    /// Begins to write an object, with room reserved for `size` bytes where the size is known. It is written where it will
    /// be: a file that stays in its directory is created and renamed without waiting for all the others.
    pub fn begin(&self, key: CacheKey, size: Option<u64>) -> Result<Partial<'_>, CacheError> {
        let reservation = self.quota.reserve(size.unwrap_or(0))?;
        let path = self.directory.join(key.path());
        let bucket = path.parent().unwrap_or(&self.directory);
        let create = || {
            tempfile::Builder::new().prefix(UNFINISHED).permissions(Permissions::from_mode(0o600)).tempfile_in(bucket)
        };
        let file = match create() {
            // The first object of its bucket.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.sharing.make(bucket).map_err(io_error("create", bucket))?;
                create()
            }
            result => result,
        };
        let file = file.map_err(io_error("create a file in", bucket))?;
        self.sharing.give(file.as_file()).map_err(io_error("share a file in", bucket))?;
        Ok(Partial { file, path, reservation, written: 0 })
    }

    /// Puts a completely written and verified object under its name and gives it back for reading.
    pub fn commit(&self, partial: Partial<'_>) -> Result<File, CacheError> {
        let Partial { file, path, reservation, written } = partial;
        reservation.commit(written)?;
        file.persist(&path).map_err(|e| io_error("rename an object to", path)(e.error))
    }

    /// Removes an object that turned out to be unusable.
    pub fn remove(&self, key: CacheKey) {
        let path = self.directory.join(key.path());
        let size = std::fs::metadata(&path).map(|m| m.len()).ok();
        if std::fs::remove_file(&path).is_ok() {
            self.quota.forget(size.unwrap_or(0));
        }
    }
}

/// An object that is being written; gone when dropped.
#[derive(Debug)]
pub struct Partial<'a> {
    file: tempfile::NamedTempFile,
    /// Where it will be.
    path: PathBuf,
    reservation: Reservation<'a>,
    written: u64,
}

impl Write for Partial<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // More than was announced, or nothing was: it still has to fit.
        self.reservation.cover(self.written.saturating_add(bytes.len() as u64)).map_err(io::Error::other)?;
        let count = self.file.as_file_mut().write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn check_format(directory: &Path, sharing: Sharing) -> Result<(), CacheError> {
    let path = directory.join("format");
    match std::fs::read_to_string(&path) {
        Ok(format) if format == FORMAT => Ok(()),
        Ok(format) => {
            Err(CacheError::Foreign { path: directory.to_owned(), found: format!("its format is {format:?}") })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A directory that has something else in it must not be filled, nor emptied later.
            let mut entries = std::fs::read_dir(directory).map_err(io_error("read", directory))?.flatten();
            if let Some(entry) = entries.find(|entry| !is_left_over(&entry.file_name().to_string_lossy())) {
                let found = format!("it holds {:?}", entry.file_name());
                return Err(CacheError::Foreign { path: directory.to_owned(), found });
            }
            std::fs::write(&path, FORMAT).map_err(io_error("write", &path))?;
            File::open(&path).and_then(|file| sharing.give(&file)).map_err(io_error("share", path))
        }
        Err(e) => Err(io_error("read", path)(e)),
    }
}

/// What may be in a new cache: what file systems put there, and what a client writes that ends after its cache was emptied.
fn is_left_over(name: &str) -> bool {
    name == "lost+found" || ["startup.", "breadcrumb."].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cvmfs::hash::Algorithm;

    use super::*;

    pub(crate) fn put(cache: &DiskCache, content: &[u8]) -> Result<CacheKey, CacheError> {
        let key = key(content);
        let mut partial = cache.begin(key, Some(content.len() as u64))?;
        partial.write_all(content).unwrap();
        cache.commit(partial)?;
        Ok(key)
    }

    fn read(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn key(content: &[u8]) -> CacheKey {
        CacheKey { hash: ContentHash::of(Algorithm::Sha1, content), form: Form::Stored(Compression::Zlib) }
    }

    /// Names of all files in the bucket of an object.
    fn bucket(directory: &Path, key: CacheKey) -> Vec<std::ffi::OsString> {
        let path = directory.join(key.path());
        let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn keeps_objects_over_a_restart_and_drops_unfinished_ones() {
        // Whether the other client, which was not killed, came to an orderly end; and what the killed one had written.
        for (orderly, written) in [(true, &b"half"[..]), (true, b""), (false, b"half")] {
            let directory = tempfile::tempdir().unwrap();
            let cache = DiskCache::open(directory.path(), None).unwrap();
            let key = put(&cache, b"content").unwrap();
            let mut unfinished = cache.begin(key, None).unwrap();
            unfinished.write_all(written).unwrap();
            std::mem::forget(unfinished);
            assert_eq!(bucket(directory.path(), key).len(), 2);
            if orderly {
                cache.close();
            }
            drop(cache);
            let cache = DiskCache::open(directory.path(), None).unwrap();
            assert_eq!(read(cache.get(key, Some(7)).unwrap()), b"content");
            assert_eq!(bucket(directory.path(), key).len(), 1, "{orderly} {written:?}");
            assert_eq!(cache.usage().0, 4096);
        }
    }

    #[test]
    fn what_is_being_written_is_neither_counted_nor_evicted() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 100 * 4096;
        let cache = DiskCache::open(directory.path(), Some(limit)).unwrap();
        let other = DiskCache::open(directory.path(), Some(limit)).unwrap();
        let mut slow = cache.begin(key(b"slow"), Some(4)).unwrap();
        slow.write_all(b"slow").unwrap();
        let old = FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH);
        slow.file.as_file().set_times(old).unwrap();
        for i in 0..500u32 {
            put(&other, &i.to_le_bytes()).unwrap();
        }
        assert!(other.evictions() > 0);
        cache.commit(slow).unwrap();
        assert_eq!(read(cache.get(key(b"slow"), Some(4)).unwrap()), b"slow");
    }

    #[test]
    fn a_cache_shared_by_a_group_gives_it_everything() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("alien");
        let cache = DiskCache::open_for(Sharing::Group, &directory, None).unwrap();
        let key = put(&cache, b"content").unwrap();
        let object = key.path();
        let bucket = object.parent().unwrap().to_owned();
        let mode = |path: &Path| std::fs::metadata(directory.join(path)).unwrap().permissions().mode() & 0o7777;
        for path in ["", "inodes", bucket.to_str().unwrap()] {
            assert_eq!(mode(Path::new(path)), 0o770, "{path}");
        }
        for path in ["format", "lock", "quota", object.to_str().unwrap()] {
            assert_eq!(mode(Path::new(path)), 0o660, "{path}");
        }
        drop(cache);
        let own = parent.path().join("own");
        let key = put(&DiskCache::open(&own, None).unwrap(), b"content").unwrap();
        let mode = std::fs::metadata(own.join(key.path())).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn objects_stored_uncompressed_have_their_own_names() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), None).unwrap();
        let key = put(&cache, b"content").unwrap();
        assert!(cache.get(CacheKey { form: Form::Stored(Compression::None), ..key }, None).is_none());
    }

    #[test]
    fn a_file_of_the_wrong_size_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), Some(1 << 20)).unwrap();
        let key = put(&cache, b"content").unwrap();
        let before = cache.usage().0;
        std::fs::write(directory.path().join(key.path()), b"cut").unwrap();
        assert!(cache.get(key, Some(7)).is_none());
        assert!(cache.get(key, None).is_none());
        assert!(cache.usage().0 < before);
    }

    #[test]
    fn the_bound_holds_and_the_oldest_objects_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 100 * 4096;
        let cache = DiskCache::open(directory.path(), Some(limit)).unwrap();
        let keys: Vec<CacheKey> = (0..500u32)
            .map(|i| {
                let key = put(&cache, &[&i.to_le_bytes()[..], &[7; 3000]].concat()).unwrap();
                let path = directory.path().join(key.path());
                let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + u64::from(i));
                File::open(path).unwrap().set_times(FileTimes::new().set_accessed(at)).unwrap();
                assert!(cache.usage().0 <= limit);
                key
            })
            .collect();
        let on_disk = keys.iter().filter(|key| directory.path().join(key.path()).exists()).count();
        assert!((60..=100).contains(&on_disk), "{on_disk} objects of 4 KiB in a cache of 400 KiB");
        assert!(directory.path().join(keys[499].path()).exists() && !directory.path().join(keys[0].path()).exists());
        assert!(cache.evictions() > 0);
    }

    #[test]
    fn a_locked_catalog_is_not_evicted() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), Some(20 * 4096)).unwrap();
        let pinned = put(&cache, b"catalog").unwrap();
        let pin = cache.get(pinned, None).unwrap();
        pin.lock_shared().unwrap();
        for i in 0..100u32 {
            put(&cache, &[&i.to_le_bytes()[..], &[7; 3000]].concat()).unwrap();
        }
        assert!(cache.get(pinned, Some(7)).is_some());
    }

    #[test]
    fn an_object_larger_than_the_cache_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), Some(4096)).unwrap();
        assert!(matches!(put(&cache, &[1; 5000]), Err(CacheError::TooLarge { .. })));
    }

    #[test]
    fn an_object_of_unknown_size_cannot_outgrow_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), Some(4 << 20)).unwrap();
        let mut endless = cache.begin(key(b"endless"), None).unwrap();
        let piece = vec![0; 1 << 16];
        let written = (0..1000).take_while(|_| endless.write_all(&piece).is_ok()).count();
        assert!((32..=64).contains(&written), "{written} pieces of 64 KiB in a cache of 4 MiB");
        drop(endless);
        put(&cache, &[7; 3 << 20]).unwrap();
    }

    #[test]
    fn usage_is_recounted_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(directory.path(), Some(1 << 20)).unwrap();
        put(&cache, b"content").unwrap();
        let used = cache.usage().0;
        // A reservation that is never given back stands for a killed client.
        std::mem::forget(cache.begin(key(b"killed"), Some(500_000)).unwrap());
        std::mem::forget(cache);
        // The forgotten lock file stays open in this process, hence a new place for the same files.
        let moved = tempfile::tempdir().unwrap();
        let target = moved.path().join("cache");
        std::fs::rename(directory.path(), &target).unwrap();
        std::fs::remove_file(target.join("lock")).unwrap();
        let cache = DiskCache::open(&target, Some(1 << 20)).unwrap();
        assert_eq!(cache.usage().0, used);
    }

    #[test]
    fn two_clients_share_one_directory() {
        let directory = tempfile::tempdir().unwrap();
        let limit = 64 * 4096;
        let one = DiskCache::open(directory.path(), Some(limit)).unwrap();
        let two = DiskCache::open(directory.path(), Some(limit)).unwrap();
        let key = put(&one, b"content").unwrap();
        assert!(two.get(key, Some(7)).is_some());
        std::thread::scope(|scope| {
            for (n, cache) in [&one, &two].into_iter().enumerate() {
                scope.spawn(move || {
                    for i in 0..200u32 {
                        put(cache, &[&i.to_le_bytes()[..], &[n as u8; 3000]].concat()).unwrap();
                    }
                });
            }
        });
        assert!(one.usage().0 <= limit);
        assert_eq!(one.usage(), two.usage());
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.tex"), b"").unwrap();
        assert!(matches!(DiskCache::open(directory.path(), None), Err(CacheError::Foreign { .. })));
        std::fs::remove_file(directory.path().join("thesis.tex")).unwrap();
        std::fs::write(directory.path().join("format"), "cvmfs-client cache 2\n").unwrap();
        assert!(matches!(DiskCache::open(directory.path(), None), Err(CacheError::Foreign { .. })));
    }

    #[test]
    fn a_cache_that_was_emptied_under_a_client_is_one_again() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("startup.a.example.org")).unwrap();
        std::fs::write(directory.path().join("breadcrumb.a.example.org"), b"").unwrap();
        let cache = DiskCache::open(directory.path(), None).unwrap();
        put(&cache, b"content").unwrap();
    }
}
