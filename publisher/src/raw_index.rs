//! Which plain content is stored as which object: a file seen before is neither compressed nor written again.
//!
//! The key is the SHA-256 of the plain bytes and the codec, since the name of an object depends on both. The index is
//! a hint: whoever takes an object from it proves that the object is present.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use cvmfs::hash::{Algorithm, ContentHash, DIGEST_LEN};
use cvmfs::object::Codec;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _};

use crate::failure::Failure;

/// New pairs kept in memory before they are written together.
const BATCH: usize = 2048;

/// SHA-256 of plain bytes.
pub type RawHash = [u8; 32];

/// The index of one codec and algorithm.
#[derive(Debug)]
pub struct RawIndex {
    path: PathBuf,
    algorithm: Algorithm,
    codec: i64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Connection,
    new: HashMap<RawHash, [u8; DIGEST_LEN]>,
}

impl RawIndex {
    /// Opens or makes the index in the state directory. An index that is no database is set aside.
    pub fn open(state: &Path, algorithm: Algorithm, codec: Codec) -> Result<RawIndex, Failure> {
        let path = state.join("objects.db");
        let identity = format!("{codec}/{}", algorithm.name());
        let (db, codec) = match connect(&path, &identity) {
            Ok(opened) => opened,
            Err(rusqlite::Error::SqliteFailure(e, _))
                if matches!(e.code, rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) =>
            {
                let aside = state.join("objects.db.damaged");
                tracing::warn!(path = %path.display(), aside = %aside.display(), "index of known files is damaged; set aside, a new one begins");
                std::fs::rename(&path, &aside).map_err(Failure::io("set aside", &path))?;
                connect(&path, &identity).map_err(|source| Failure::State { path: path.clone(), source })?
            }
            Err(source) => return Err(Failure::State { path, source }),
        };
        Ok(RawIndex { path, algorithm, codec, inner: Mutex::new(Inner { db, new: HashMap::new() }) })
    }

    /// Forgets everything, for all codecs: objects were collected. Others who have the index open go on with it.
    pub fn clear(state: &Path) -> Result<(), Failure> {
        let path = state.join("objects.db");
        if !path.exists() {
            return Ok(());
        }
        let cleared = connect(&path, "none").and_then(|(db, _)| db.execute_batch("DELETE FROM objects"));
        match cleared {
            // What is damaged is set aside when it is opened.
            Err(rusqlite::Error::SqliteFailure(e, _))
                if matches!(e.code, rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) =>
            {
                Ok(())
            }
            cleared => cleared.map_err(|source| Failure::State { path, source }),
        }
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> Result<bool, Failure> {
        let inner = self.inner.lock();
        let any = inner.db.query_row("SELECT EXISTS (SELECT 1 FROM objects)", (), |row| row.get::<_, bool>(0));
        Ok(inner.new.is_empty() && !any.map_err(|e| self.failed(e))?)
    }

    /// The object that holds this content, if it was seen.
    pub fn get(&self, raw: &RawHash) -> Result<Option<ContentHash>, Failure> {
        let inner = self.inner.lock();
        if let Some(digest) = inner.new.get(raw) {
            return Ok(Some(ContentHash { algorithm: self.algorithm, digest: *digest }));
        }
        let mut statement = inner
            .db
            .prepare_cached("SELECT hash FROM objects WHERE raw = ?1 AND codec = ?2")
            .map_err(|e| self.failed(e))?;
        let found: Option<[u8; DIGEST_LEN]> =
            statement.query_row((raw, self.codec), |row| row.get(0)).optional().map_err(|e| self.failed(e))?;
        Ok(found.map(|digest| ContentHash { algorithm: self.algorithm, digest }))
    }

    /// The content that is stored as this object, if it was seen; the other way round, so the first question takes time.
    pub fn content_of(&self, hash: &ContentHash) -> Result<Option<RawHash>, Failure> {
        let mut inner = self.inner.lock();
        self.write(&mut inner)?;
        let look = || {
            inner.db.execute_batch("CREATE INDEX IF NOT EXISTS objects_by_hash ON objects (hash)")?;
            let mut statement = inner.db.prepare_cached("SELECT raw FROM objects WHERE hash = ?1 AND codec = ?2")?;
            statement.query_row((hash.digest, self.codec), |row| row.get(0)).optional()
        };
        look().map_err(|e| self.failed(e))
    }

    /// Remembers where this content is stored. The object is in the store by now.
    pub fn put(&self, raw: RawHash, hash: ContentHash) -> Result<(), Failure> {
        let mut inner = self.inner.lock();
        inner.new.insert(raw, hash.digest);
        if inner.new.len() >= BATCH { self.write(&mut inner) } else { Ok(()) }
    }

    /// Writes what is kept in memory.
    pub fn flush(&self) -> Result<(), Failure> {
        self.write(&mut self.inner.lock())
    }

    fn write(&self, inner: &mut Inner) -> Result<(), Failure> {
        let Inner { db, new } = inner;
        let transaction = db.transaction().map_err(|e| self.failed(e))?;
        {
            let mut insert = transaction
                .prepare_cached("INSERT OR REPLACE INTO objects (raw, codec, hash) VALUES (?1, ?2, ?3)")
                .map_err(|e| self.failed(e))?;
            for (raw, hash) in new.drain() {
                insert.execute((raw, self.codec, hash)).map_err(|e| self.failed(e))?;
            }
        }
        transaction.commit().map_err(|e| self.failed(e))
    }

    fn failed(&self, source: rusqlite::Error) -> Failure {
        Failure::State { path: self.path.clone(), source }
    }
}

fn connect(path: &Path, identity: &str) -> rusqlite::Result<(Connection, i64)> {
    let db = Connection::open(path)?;
    db.busy_timeout(std::time::Duration::from_secs(60))?;
    // A lost index costs time only, so nothing is synced.
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.pragma_update(None, "cache_size", -16384)?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS codecs (id INTEGER PRIMARY KEY, identity TEXT UNIQUE);
         CREATE TABLE IF NOT EXISTS objects (raw BLOB, codec INTEGER, hash BLOB, PRIMARY KEY (raw, codec)) WITHOUT ROWID;",
    )?;
    db.execute("INSERT OR IGNORE INTO codecs (identity) VALUES (?1)", [identity])?;
    let codec = db.query_row("SELECT id FROM codecs WHERE identity = ?1", [identity], |row| row.get(0))?;
    Ok((db, codec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_across_runs_and_keeps_codecs_apart() {
        let dir = tempfile::tempdir().unwrap();
        let codec = Codec::Libdeflate { level: 5 };
        let hash = ContentHash::of(Algorithm::Sha1, b"stored");
        let index = RawIndex::open(dir.path(), Algorithm::Sha1, codec).unwrap();
        index.put([7; 32], hash).unwrap();
        assert_eq!(index.get(&[7; 32]).unwrap(), Some(hash), "before it is written");
        index.flush().unwrap();
        drop(index);
        let again = RawIndex::open(dir.path(), Algorithm::Sha1, codec).unwrap();
        assert_eq!(again.get(&[7; 32]).unwrap(), Some(hash));
        assert_eq!(again.get(&[8; 32]).unwrap(), None);
        let other = RawIndex::open(dir.path(), Algorithm::Sha1, Codec::Libdeflate { level: 1 }).unwrap();
        assert_eq!(other.get(&[7; 32]).unwrap(), None);
    }

    #[test]
    fn forgets_everything() {
        let dir = tempfile::tempdir().unwrap();
        RawIndex::clear(dir.path()).unwrap();
        assert!(!dir.path().join("objects.db").exists());
        let hash = ContentHash::of(Algorithm::Sha1, b"stored");
        let index = RawIndex::open(dir.path(), Algorithm::Sha1, Codec::default()).unwrap();
        index.put([7; 32], hash).unwrap();
        index.flush().unwrap();
        RawIndex::clear(dir.path()).unwrap();
        assert_eq!(index.get(&[7; 32]).unwrap(), None);
        index.put([8; 32], hash).unwrap();
        index.flush().unwrap();
        assert_eq!(index.get(&[8; 32]).unwrap(), Some(hash), "whoever has it open goes on with it");
    }

    #[test]
    fn a_damaged_index_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("objects.db"), vec![b'x'; 9000]).unwrap();
        let index = RawIndex::open(dir.path(), Algorithm::Sha1, Codec::default()).unwrap();
        assert_eq!(index.get(&[7; 32]).unwrap(), None);
        assert!(dir.path().join("objects.db.damaged").exists());
    }
}
