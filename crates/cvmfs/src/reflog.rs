//! The log of root references `.cvmfsreflog`: every root catalog, certificate, tag database and meta info
//! ever published and not yet collected. Garbage collection starts from it.
//!
//! The file is a plain SQLite database; its hash stands in the manifest (`Y`).

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _};

use crate::catalog::reader::open_immutable;
use crate::hash::ContentHash;

const CREATE: &str = "
CREATE TABLE refs (hash TEXT, type INTEGER, timestamp INTEGER, CONSTRAINT pk_refs PRIMARY KEY (hash));
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
";

/// What a reference points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefKind {
    /// Root catalog.
    Catalog,
    /// Certificate.
    Certificate,
    /// Tag database.
    History,
    /// Meta info.
    MetaInfo,
}

impl RefKind {
    /// Number in the database.
    pub fn number(self) -> i64 {
        self as i64
    }

    /// Inverse of [`RefKind::number`].
    pub fn from_number(number: i64) -> Option<RefKind> {
        [RefKind::Catalog, RefKind::Certificate, RefKind::History, RefKind::MetaInfo]
            .into_iter()
            .find(|k| k.number() == number)
    }
}

/// One reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ref {
    /// The object.
    pub hash: ContentHash,
    /// Its kind.
    pub kind: RefKind,
    /// When it was entered, Unix seconds.
    pub timestamp: u64,
}

/// Adds references to the database at `file`, which is made for repository `fqrn` if it is not there.
pub fn append(file: &Path, fqrn: &str, refs: &[Ref]) -> rusqlite::Result<()> {
    let is_new = file.metadata().map_or(true, |m| m.len() == 0);
    let mut db = Connection::open(file)?;
    db.execute_batch("PRAGMA page_size = 1024; PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;")?;
    let transaction = db.transaction()?;
    if is_new {
        transaction.execute_batch(CREATE)?;
        for (key, value) in [("schema", "1.0"), ("schema_revision", "0"), ("fqrn", fqrn)] {
            transaction.execute("INSERT INTO properties VALUES (?1, ?2)", (key, value))?;
        }
    }
    for reference in refs {
        transaction.execute(
            "INSERT OR REPLACE INTO refs VALUES (?1, ?2, ?3)",
            (reference.hash.to_string(), reference.kind.number(), reference.timestamp as i64),
        )?;
    }
    transaction.commit()?;
    db.close().map_err(|(_, e)| e)
}

/// Takes references out of the database at `file`.
pub fn remove(file: &Path, refs: &[Ref]) -> rusqlite::Result<()> {
    let mut db = Connection::open(file)?;
    db.execute_batch("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF;")?;
    let transaction = db.transaction()?;
    for reference in refs {
        let key = (reference.hash.to_string(), reference.kind.number());
        transaction.execute("DELETE FROM refs WHERE hash = ?1 AND type = ?2", key)?;
    }
    transaction.commit()?;
    db.execute_batch("VACUUM")?;
    db.close().map_err(|(_, e)| e)
}

/// Root catalogs in the order in which they were entered: a publish adds to the end, only a collection takes away.
pub fn roots(file: &Path) -> rusqlite::Result<Vec<ContentHash>> {
    let db = open_immutable(file)?;
    let mut statement = db.prepare("SELECT hash FROM refs WHERE type = 0 ORDER BY rowid")?;
    let rows = statement.query_map((), |row| {
        let hash: String = row.get(0)?;
        hash.parse().map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
    })?;
    rows.collect()
}

/// The repository whose reflog this is, if it says so.
pub fn repository(file: &Path) -> rusqlite::Result<Option<String>> {
    let db = open_immutable(file)?;
    db.query_row("SELECT value FROM properties WHERE key = 'fqrn'", (), |row| row.get(0)).optional()
}

/// Reads all references; rows that are no reference are an error.
pub fn read(file: &Path) -> rusqlite::Result<Vec<Ref>> {
    let db = open_immutable(file)?;
    let mut statement = db.prepare("SELECT hash, type, timestamp FROM refs ORDER BY timestamp, hash")?;
    let rows = statement.query_map((), |row| {
        let malformed = |i, what: &str| {
            rusqlite::Error::FromSqlConversionFailure(i, rusqlite::types::Type::Text, what.to_owned().into())
        };
        let hash: String = row.get(0)?;
        Ok(Ref {
            hash: hash.parse().map_err(|_| malformed(0, "no content hash"))?,
            kind: RefKind::from_number(row.get(1)?).ok_or_else(|| malformed(1, "unknown type"))?,
            timestamp: row.get::<_, i64>(2)?.max(0) as u64,
        })
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    #[test]
    fn appends_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("reflog");
        let make = |n: u8, kind, timestamp| Ref { hash: ContentHash::of(Algorithm::Shake128, &[n]), kind, timestamp };
        let refs = [make(1, RefKind::Catalog, 1), make(2, RefKind::History, 2), make(3, RefKind::MetaInfo, 3)];
        append(&file, "x.example.org", &refs[..1]).unwrap();
        append(&file, "x.example.org", &refs[1..]).unwrap();
        assert_eq!(read(&file).unwrap(), refs);
        let later = make(1, RefKind::Catalog, 9);
        append(&file, "x.example.org", &[later]).unwrap();
        assert_eq!(read(&file).unwrap(), [refs[1], refs[2], later]);
        let fourth = make(4, RefKind::Catalog, 2);
        append(&file, "x.example.org", &[fourth]).unwrap();
        assert_eq!(roots(&file).unwrap(), [later.hash, fourth.hash], "as they were entered, not by time");
        remove(&file, &[refs[1], later, Ref { kind: RefKind::History, ..fourth }]).unwrap();
        assert_eq!(read(&file).unwrap(), [fourth, refs[2]], "the kind belongs to it");
    }
}
