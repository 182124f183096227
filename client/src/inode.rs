//! Inode numbers: which ones exist, and which the kernel knows.
//!
//! A number stands for an *identity*: a path together with what a reader of it sees — the content hashes of
//! a file, the target of a link, the number of a device. Names of one hard-link group share the identity of
//! the first of them. From this follow
//! - the page cache of an inode is always right: changed content is another inode, open files go on reading
//!   the old one, and content that comes back finds its old pages;
//! - permissions, owners and times may change without changing the inode;
//! - numbers are the same after a reload of the catalogs.
//!
//! Numbers are handed out in turn and kept in a small database beside the cache, so they are the same after
//! a restart and fit into 32 bits. Each mountpoint has its own database, locked by its client. Every new
//! number is written before it is used; a killed client loses none (a power failure may lose the last ones).

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::path::{PathKey, RepoPath};
use parking_lot::{Mutex, RwLock};
use rusqlite::{Connection, OptionalExtension as _};

use crate::catalogs::CatalogId;

/// Inode of the root directory.
pub const ROOT: u32 = 1;

/// Identities whose numbers are kept in memory.
const CACHED_NUMBERS: usize = 1 << 16;

/// Numbers cannot be looked up or handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InodeError {
    /// The database fails.
    #[error("inode numbers in {path}")]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// Four billion numbers are gone.
    #[error("{0}: all 2^32 inode numbers are in use; unmount and remove this file")]
    Exhausted(PathBuf),
}

/// What an inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(PathKey);

impl Identity {
    /// The identity of `entry` at `path`: its own path, or that of the first name of its hard-link group.
    pub fn of(path: &RepoPath, entry: &Entry, chunks: &[Chunk]) -> Identity {
        let mut text = Vec::with_capacity(path.as_bytes().len() + 80);
        text.extend_from_slice(path.as_bytes());
        // No path has a NUL, so nothing of what follows can be taken for a part of it.
        text.push(0);
        text.extend((entry.mode & cvmfs::entry::mode::TYPE).to_le_bytes());
        match entry.file_type() {
            FileType::Directory => {}
            FileType::Symlink => text.extend_from_slice(&entry.symlink),
            FileType::Regular => {
                text.extend(entry.compression().flag_bits().to_le_bytes());
                text.extend(entry.size.to_le_bytes());
                entry.content.iter().for_each(|hash| text.extend_from_slice(&hash.digest));
                text.extend(entry.algorithm().flag_bits().to_le_bytes());
                for chunk in chunks {
                    text.extend(chunk.offset.to_le_bytes());
                    text.extend_from_slice(&chunk.hash.digest);
                }
            }
            FileType::Char | FileType::Block | FileType::Fifo | FileType::Socket => {
                text.extend(entry.size.to_le_bytes());
            }
        }
        Identity(PathKey::of(&text))
    }
}

/// The persistent map from identities to numbers.
#[derive(Debug)]
pub struct Numbers {
    path: PathBuf,
    state: Mutex<State>,
    recent: quick_cache::sync::Cache<Identity, u32>,
}

#[derive(Debug)]
struct State {
    database: Connection,
    next: u32,
}

impl Numbers {
    /// Opens or makes the database at `path`; waits so long for somebody else who has it.
    pub fn open(path: &Path, patience: Duration) -> Result<Numbers, InodeError> {
        let error = |source| InodeError::Database { path: path.to_owned(), source };
        let state = match State::open(path, patience) {
            Ok(state) => state,
            Err(rusqlite::Error::SqliteFailure(e, _))
                if matches!(e.code, rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) =>
            {
                // Numbers are a convenience; a damaged list of them is set aside and begun anew.
                let aside = path.with_extension("damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), "the list of inode numbers is damaged; starting a new one");
                let _ = std::fs::rename(path, &aside);
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
                }
                State::open(path, patience).map_err(error)?
            }
            Err(e) => return Err(error(e)),
        };
        let recent = quick_cache::sync::Cache::new(CACHED_NUMBERS);
        Ok(Numbers { path: path.to_owned(), state: Mutex::new(state), recent })
    }

    /// The number of each identity, in the same order; new ones are handed out.
    pub fn of(&self, identities: &[Identity]) -> Result<Vec<u32>, InodeError> {
        let known: Vec<Option<u32>> = identities.iter().map(|identity| self.recent.get(identity)).collect();
        if let Some(numbers) = known.iter().copied().collect() {
            return Ok(numbers);
        }
        let error = |source| InodeError::Database { path: self.path.clone(), source };
        let mut state = self.state.lock();
        let State { database, next } = &mut *state;
        let mut after = *next;
        let transaction = database.unchecked_transaction().map_err(error)?;
        let mut numbers = Vec::with_capacity(identities.len());
        {
            let mut find =
                transaction.prepare_cached("SELECT number FROM inode WHERE high = ?1 AND low = ?2").map_err(error)?;
            let mut add = transaction.prepare_cached("INSERT INTO inode VALUES (?1, ?2, ?3)").map_err(error)?;
            for (identity, known) in identities.iter().zip(known) {
                let PathKey { high, low } = identity.0;
                let found = match known {
                    Some(number) => Some(number),
                    None => find.query_row((high, low), |row| row.get(0)).optional().map_err(error)?,
                };
                let number = match found {
                    Some(number) => number,
                    None => {
                        let number = after;
                        after = after.checked_add(1).ok_or_else(|| InodeError::Exhausted(self.path.clone()))?;
                        add.execute((high, low, number)).map_err(error)?;
                        number
                    }
                };
                numbers.push(number);
            }
            if after != *next {
                let mut set = transaction.prepare_cached("UPDATE next SET number = ?1").map_err(error)?;
                set.execute([after]).map_err(error)?;
            }
        }
        transaction.commit().map_err(error)?;
        *next = after;
        drop(state);
        identities.iter().zip(&numbers).for_each(|(identity, number)| self.recent.insert(*identity, *number));
        Ok(numbers)
    }

    /// The number that will be handed out next: one above the highest.
    pub fn next(&self) -> u32 {
        self.state.lock().next
    }
}

impl State {
    fn open(path: &Path, patience: Duration) -> rusqlite::Result<State> {
        let database = Connection::open(path)?;
        database.busy_timeout(patience)?;
        // WAL: a commit is one write without waiting for the disk, and a power failure cannot damage the file.
        database.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;
             PRAGMA user_version;
             CREATE TABLE IF NOT EXISTS inode (high INTEGER, low INTEGER, number INTEGER NOT NULL, PRIMARY KEY (high, low)) WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS next (number INTEGER NOT NULL);
             INSERT INTO next SELECT 2 WHERE NOT EXISTS (SELECT 1 FROM next);",
        )?;
        let next = database.query_row("SELECT number FROM next", (), |row| row.get(0))?;
        Ok(State { database, next })
    }
}

/// An entry as it was when it was last looked up.
#[derive(Debug, Clone)]
pub struct Node {
    /// Inode number.
    pub inode: u32,
    /// Path of the entry.
    pub path: RepoPath,
    /// The entry.
    pub entry: Entry,
    /// Its chunks, if it has any.
    pub chunks: Arc<[Chunk]>,
    /// Catalog that has the entry.
    pub catalog: CatalogId,
    /// Number of the view it was looked up in.
    pub generation: u64,
}

/// A name below a directory, as the kernel knows it.
pub type Name = (u32, Box<[u8]>);

#[derive(Debug)]
struct Slot {
    node: Arc<Node>,
    /// Several only for hard links.
    names: Vec<Name>,
    lookups: u64,
}

/// Inodes the kernel holds, and names it has been told not to exist.
#[derive(Debug, Default)]
pub struct Table {
    slots: RwLock<HashMap<u32, Slot>>,
    negative: Mutex<HashMap<Name, (CatalogId, Instant)>>,
}

/// Negative names that are remembered; further ones are answered without leave to cache them.
const MAX_NEGATIVE: usize = 1 << 16;

/// What the kernel has to forget after a change of revision.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Inodes whose attributes may have changed.
    pub inodes: Vec<u32>,
    /// Directories among them: their listings may have changed as well.
    pub listings: Vec<u32>,
    /// Files whose pages have to be read again.
    pub pages: Vec<u32>,
    /// Names that may mean something else, or nothing, or something at last.
    pub names: Vec<Name>,
}

impl Table {
    /// The node of an inode the kernel holds.
    pub fn get(&self, inode: u32) -> Option<Arc<Node>> {
        self.slots.read().get(&inode).map(|slot| slot.node.clone())
    }

    /// The kernel is told about `node` under `name`: it holds it once more.
    pub fn remember(&self, node: Arc<Node>, name: Option<Name>) {
        let mut slots = self.slots.write();
        let slot =
            slots.entry(node.inode).or_insert_with(|| Slot { node: node.clone(), names: Vec::new(), lookups: 0 });
        slot.lookups += 1;
        if slot.node.generation < node.generation {
            slot.node = node;
        }
        slot.names.extend(name.filter(|name| !slot.names.contains(name)));
    }

    /// Replaces the node of an inode that is held.
    pub fn refresh(&self, node: Arc<Node>) {
        if let Some(slot) = self.slots.write().get_mut(&node.inode) {
            slot.node = node;
        }
    }

    /// The kernel has dropped `lookups` references; whether it holds none any more.
    pub fn forget(&self, inode: u32, lookups: u64) -> bool {
        let mut slots = self.slots.write();
        let Some(slot) = slots.get_mut(&inode) else { return true };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        let is_gone = slot.lookups == 0 && inode != ROOT;
        if is_gone {
            slots.remove(&inode);
        }
        is_gone
    }

    /// Number of inodes held.
    pub fn len(&self) -> usize {
        self.slots.read().len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The kernel is about to be told that `name` does not exist, by `catalog`. Gives the time for which it may
    /// cache the answer: `ttl`, or no longer than `short` when many names are remembered, or none when too many are.
    pub fn remember_missing(&self, name: Name, catalog: CatalogId, ttl: Duration, short: Duration) -> Option<Duration> {
        let now = Instant::now();
        let mut negative = self.negative.lock();
        if negative.len() >= MAX_NEGATIVE {
            negative.retain(|_, (_, until)| *until > now);
        }
        // Nobody tells when the kernel forgets such a name, so what is kept long must leave room.
        let ttl = if negative.len() < MAX_NEGATIVE / 2 { ttl } else { ttl.min(short) };
        (negative.len() < MAX_NEGATIVE).then(|| {
            negative.insert(name, (catalog, now + ttl));
            ttl
        })
    }

    /// The files that the kernel holds, to be read again.
    pub fn files(&self) -> Stale {
        let slots = self.slots.read();
        let files = slots.iter().filter(|(_, slot)| slot.node.entry.file_type() == FileType::Regular);
        Stale { pages: files.map(|(inode, _)| *inode).collect(), ..Stale::default() }
    }

    /// What is not covered by the catalogs that `kept` names.
    pub fn stale(&self, kept: &HashSet<CatalogId>) -> Stale {
        let mut stale = Stale::default();
        for (inode, slot) in self.slots.read().iter().filter(|(_, slot)| !kept.contains(&slot.node.catalog)) {
            stale.inodes.push(*inode);
            if slot.node.entry.is_directory() {
                stale.listings.push(*inode);
            }
            stale.names.extend(slot.names.iter().cloned());
        }
        let mut negative = self.negative.lock();
        let gone = negative.extract_if(|_, (catalog, _)| !kept.contains(catalog));
        stale.names.extend(gone.map(|(name, _)| name));
        stale
    }
}

#[cfg(test)]
mod tests {
    use cvmfs::entry::Meta;
    use cvmfs::hash::{Algorithm, ContentHash};
    use cvmfs::object::Compression;

    use super::*;

    fn identity(n: u32) -> Identity {
        Identity(PathKey::of(&n.to_le_bytes()))
    }

    fn file(name: &str, content: &[u8]) -> Entry {
        let hash = ContentHash::of(Algorithm::Sha1, content);
        Entry::file(name, Meta::default(), content.len() as u64, hash, Compression::Zlib)
    }

    #[test]
    fn numbers_survive_a_restart_and_are_never_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inodes");
        let numbers = Numbers::open(&path, Duration::ZERO).unwrap();
        let first = numbers.of(&[identity(1), identity(2), identity(1)]).unwrap();
        assert_eq!(first, [2, 3, 2]);
        drop(numbers);
        let numbers = Numbers::open(&path, Duration::ZERO).unwrap();
        assert_eq!(numbers.of(&[identity(3), identity(2), identity(1)]).unwrap(), [4, 3, 2]);
        assert_eq!(numbers.next(), 5);
    }

    #[test]
    fn a_damaged_list_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inodes");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        assert_eq!(Numbers::open(&path, Duration::ZERO).unwrap().of(&[identity(1)]).unwrap(), [2]);
        assert!(path.with_extension("damaged").exists());
    }

    #[test]
    fn the_last_number_is_not_passed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("inodes");
        Numbers::open(&path, Duration::ZERO)
            .unwrap()
            .state
            .lock()
            .database
            .execute("UPDATE next SET number = ?1", [u32::MAX - 1])
            .unwrap();
        let numbers = Numbers::open(&path, Duration::ZERO).unwrap();
        assert_eq!(numbers.of(&[identity(1)]).unwrap(), [u32::MAX - 1]);
        assert!(matches!(numbers.of(&[identity(2)]), Err(InodeError::Exhausted(_))));
        assert_eq!(numbers.of(&[identity(1)]).unwrap(), [u32::MAX - 1], "known numbers stay usable");
    }

    #[test]
    fn identity_follows_content_not_metadata() {
        let path = RepoPath::parse("/d/f").unwrap();
        let (one, two) = (file("f", b"one"), file("f", b"two"));
        assert_ne!(Identity::of(&path, &one, &[]), Identity::of(&path, &two, &[]));
        let touched = Entry { mtime: 99, uid: 7, mode: one.mode ^ 0o111, ..one.clone() };
        assert_eq!(Identity::of(&path, &one, &[]), Identity::of(&path, &touched, &[]));
        assert_ne!(Identity::of(&path, &one, &[]), Identity::of(&RepoPath::parse("/d/g").unwrap(), &one, &[]));
        let link = |target: &str| Identity::of(&path, &Entry::symlink("f", Meta::default(), target), &[]);
        assert_ne!(link("a"), link("b"));
        let chunk = |content: &[u8]| Chunk { offset: 0, size: 4, hash: ContentHash::of(Algorithm::Sha1, content) };
        let chunked = Entry::chunked("f", Meta::default(), 4, Algorithm::Sha1, Compression::Zlib);
        assert_ne!(Identity::of(&path, &chunked, &[chunk(b"a")]), Identity::of(&path, &chunked, &[chunk(b"b")]));
    }

    #[test]
    fn only_what_another_catalog_decides_is_stale() {
        let table = Table::default();
        let hash = ContentHash::of(Algorithm::Sha1, b"catalog");
        // The same catalog, bound to another place.
        let (kept, gone) = (CatalogId { hash, at: identity(1).0 }, CatalogId { hash, at: identity(2).0 });
        let node = |inode, catalog| {
            let path = RepoPath::ROOT.join(b"f");
            Arc::new(Node { inode, path, entry: file("f", b""), chunks: Arc::default(), catalog, generation: 1 })
        };
        let name = |n: &[u8]| (ROOT, Box::from(n));
        table.remember(node(2, kept), Some(name(b"kept")));
        table.remember(node(3, gone), Some(name(b"a")));
        table.remember(node(3, gone), Some(name(b"b")));
        let (long, short) = (Duration::from_secs(3600), Duration::from_secs(60));
        assert_eq!(table.remember_missing(name(b"missing"), gone, long, short), Some(long));
        assert_eq!(table.remember_missing(name(b"still-missing"), kept, long, short), Some(long));
        let stale = table.stale(&HashSet::from([kept]));
        assert_eq!((stale.inodes, stale.listings), (vec![3], vec![]));
        assert_eq!(stale.names, [name(b"a"), name(b"b"), name(b"missing")]);
        table.forget(3, 1);
        assert!(table.get(3).is_some());
        table.forget(3, 1);
        assert!(table.get(3).is_none());
    }

    #[test]
    fn many_missing_names_are_kept_shortly_and_too_many_not_at_all() {
        let table = Table::default();
        let catalog = CatalogId { hash: ContentHash::of(Algorithm::Sha1, b""), at: identity(1).0 };
        let (long, short) = (Duration::from_secs(3600), Duration::from_secs(60));
        let remember =
            |number: usize| table.remember_missing((ROOT, Box::from(number.to_le_bytes())), catalog, long, short);
        let times: Vec<_> = (0..MAX_NEGATIVE + 10).map(remember).collect();
        let count = |time| times.iter().filter(|t| **t == time).count();
        assert_eq!((count(Some(long)), count(Some(short)), count(None)), (MAX_NEGATIVE / 2, MAX_NEGATIVE / 2, 10));
        // A change of revision makes room again.
        assert_eq!(table.stale(&HashSet::new()).names.len(), MAX_NEGATIVE);
        assert_eq!(remember(0), Some(long));
    }
}
