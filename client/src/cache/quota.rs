//! Keeps the cache below its limit, among all clients that share the directory.
//!
//! The file `quota` holds three numbers (little-endian, 64 bit): bytes used, bytes reserved by running
//! downloads, and 1 after an orderly end. It is read and written under an exclusive `flock`. Without the
//! file, or after a crash, the numbers are counted anew from the directory.
//!
//! Room is made before an object is downloaded: when used plus reserved would exceed the limit, the objects
//! with the oldest access times are removed, a fifth of the limit in one go, so that the scan it takes
//! happens rarely. Files under a shared `flock` (attached catalogs) are skipped.
//!
//! Whoever writes has room reserved. So when nobody uses the directory and there is some, a client was killed, and what it
//! wrote is removed.

use std::fs::{DirEntry, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::{CacheError, Sharing, io_error};

/// What the names of files begin with that are being written; no object has such a name.
pub const UNFINISHED: &str = ".object";

/// Objects are counted in blocks of this size, as they take them on disk.
const BLOCK: u64 = 4096;

/// Size of an object as it counts against the limit.
fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// The shared account of a cache directory.
#[derive(Debug)]
pub struct Quota {
    directory: PathBuf,
    path: PathBuf,
    limit: Option<u64>,
    /// `flock` belongs to the open file, hence the mutex between our own threads.
    file: Mutex<File>,
    /// The same file, read without a lock: whoever only looks must not wait for a clean-up.
    glance: File,
    evictions: AtomicU64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    used: u64,
    reserved: u64,
    clean: bool,
}

impl Quota {
    /// Opens the account. `alone`: no other client uses the directory, so nothing can be reserved.
    pub fn open(directory: &Path, limit: Option<u64>, alone: bool, sharing: Sharing) -> Result<Quota, CacheError> {
        let path = directory.join("quota");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        sharing.give(&file).map_err(io_error("share", &path))?;
        let glance = file.try_clone().map_err(io_error("open", &path))?;
        let (directory, evictions) = (directory.to_owned(), AtomicU64::new(0));
        let quota = Quota { directory, path, limit, file: Mutex::new(file), glance, evictions };
        if alone {
            quota.change(|account| {
                if !account.clean || account.reserved > 0 {
                    quota.remove_unfinished();
                    account.used = quota.scan().iter().map(|object| object.size).sum();
                }
                account.reserved = 0;
                account.clean = false;
                Ok(())
            })?;
        }
        Ok(quota)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes in the cache.
    pub fn used(&self) -> u64 {
        read_account(&self.glance).used
    }

    /// How often objects were removed to make room.
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Takes room for an object of `size` bytes, removing old objects if necessary.
    pub fn reserve(&self, size: u64) -> Result<Reservation<'_>, CacheError> {
        let size = blocks(size.max(1));
        self.change(|account| {
            self.make_room(account, size)?;
            account.reserved = account.reserved.saturating_add(size);
            account.clean = false;
            Ok(())
        })?;
        Ok(Reservation { quota: self, reserved: size })
    }

    /// The orderly end of a client: says "the numbers are right" to the next one.
    pub fn close(&self) {
        let _ = self.change(|account| {
            account.clean = true;
            Ok(())
        });
    }

    /// An object of this size was removed.
    pub fn forget(&self, size: u64) {
        let _ = self.change(|account| {
            account.used = account.used.saturating_sub(blocks(size));
            Ok(())
        });
    }

    fn make_room(&self, account: &mut Account, size: u64) -> Result<(), CacheError> {
        let Some(limit) = self.limit else { return Ok(()) };
        if size > limit {
            return Err(CacheError::TooLarge { size, limit });
        }
        let taken = |account: &Account| account.used.saturating_add(account.reserved).saturating_add(size);
        if taken(account) <= limit {
            return Ok(());
        }
        let mut objects = self.scan();
        objects.sort_unstable_by_key(|object| object.accessed);
        account.used = objects.iter().map(|object| object.size).sum();
        let (before, target) = (account.used, limit - limit / 5);
        for object in &objects {
            if taken(account) <= target {
                break;
            }
            if object.remove(&self.directory) {
                account.used -= object.size;
            }
        }
        self.evictions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(removed = before - account.used, used = account.used, limit, "made room in the cache");
        if taken(account) > limit {
            Err(CacheError::Full { used: account.used + account.reserved, limit })
        } else {
            Ok(())
        }
    }

    fn scan(&self) -> Vec<Object> {
        let object = |(bucket, entry): (u8, DirEntry)| {
            let metadata = entry.metadata().ok()?;
            let (size, accessed) = (blocks(metadata.len()), (metadata.atime(), metadata.atime_nsec()));
            Some(Object { bucket, name: entry.file_name().into(), size, accessed })
        };
        self.files().filter(|(_, entry)| !is_unfinished(entry)).filter_map(object).collect()
    }

    fn remove_unfinished(&self) {
        for (_, entry) in self.files().filter(|(_, entry)| is_unfinished(entry)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }

    fn files(&self) -> impl Iterator<Item = (u8, DirEntry)> {
        (0..=255u8).flat_map(|bucket| {
            let entries = std::fs::read_dir(self.directory.join(format!("{bucket:02x}")));
            entries.into_iter().flatten().flatten().map(move |entry| (bucket, entry))
        })
    }

    /// Reads, changes and writes the account under the lock.
    fn change<T>(&self, change: impl FnOnce(&mut Account) -> Result<T, CacheError>) -> Result<T, CacheError> {
        let file = self.file.lock();
        file.lock().map_err(io_error("lock", &self.path))?;
        let mut account = read_account(&file);
        let result = change(&mut account);
        let words = [account.used, account.reserved, u64::from(account.clean)].map(u64::to_le_bytes);
        let written = file.write_all_at(words.as_flattened(), 0).map_err(io_error("write", &self.path));
        let _ = file.unlock();
        written.and(result)
    }
}

fn is_unfinished(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

fn read_account(file: &File) -> Account {
    let mut bytes = [0; 24];
    // A file that is too short is a new one.
    let _ = file.read_exact_at(&mut bytes, 0);
    let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().expect("8 of 24 bytes"));
    Account { used: word(0), reserved: word(1), clean: word(2) == 1 }
}

#[derive(Debug)]
struct Object {
    bucket: u8,
    name: Box<std::ffi::OsStr>,
    size: u64,
    accessed: (i64, i64),
}

impl Object {
    fn remove(&self, directory: &Path) -> bool {
        let path = directory.join(format!("{:02x}", self.bucket)).join(&*self.name);
        let unlocked = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        unlocked && std::fs::remove_file(&path).is_ok()
    }
}

/// Room that a download has taken; given back when dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    quota: &'a Quota,
    reserved: u64,
}

/// Room taken at once for an object that grows.
const STEP: u64 = 1 << 20;

impl Reservation<'_> {
    /// Takes more room if `size` bytes need more.
    pub fn cover(&mut self, size: u64) -> Result<(), CacheError> {
        if size <= self.reserved {
            return Ok(());
        }
        let step = STEP.min(self.quota.limit.map_or(STEP, |limit| limit / 16)).max(1);
        let next = (self.reserved / step).saturating_add(1).saturating_mul(step);
        let whole = blocks(size.max(next));
        let more = whole - self.reserved;
        self.quota.change(|account| {
            if let Some(limit) = self.quota.limit.filter(|limit| whole > *limit) {
                return Err(CacheError::TooLarge { size: whole, limit });
            }
            self.quota.make_room(account, more)?;
            account.reserved = account.reserved.saturating_add(more);
            account.clean = false;
            Ok(())
        })?;
        self.reserved = whole;
        Ok(())
    }

    /// The object has this size and comes into the cache.
    pub fn commit(mut self, size: u64) -> Result<(), CacheError> {
        let (reserved, size) = (self.reserved, blocks(size));
        self.quota.change(|account| {
            account.reserved = account.reserved.saturating_sub(reserved);
            self.reserved = 0;
            self.quota.make_room(account, size)?;
            account.used = account.used.saturating_add(size);
            Ok(())
        })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.reserved > 0 {
            let reserved = self.reserved;
            let _ = self.quota.change(|account| {
                account.reserved = account.reserved.saturating_sub(reserved);
                Ok(())
            });
        }
    }
}
