//! Writing catalogs: new ones in bulk, existing ones in place.
//!
//! Databases are scratch files until their compressed bytes are in the store, so they are written without
//! journal and sync. A finished file has no journal, is not in WAL mode, and holds all 24 counters.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

use super::counters::Counters;
use super::reader::{CatalogError, Row, Text, decode_row};
use super::schema;
use crate::entry::{Chunk, Entry};
use crate::hash::{Algorithm, ContentHash};
use crate::path::{PathKey, RepoPath};

const INSERT: &str =
    "INSERT INTO catalog (md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime,
  mtimens, flags, name, symlink, uid, gid, xattr) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)";

/// A row of the catalog table with borrowed content.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the fields are the columns; see Entry")]
pub struct RowRef<'a> {
    pub key: PathKey,
    pub parent: PathKey,
    pub hardlinks: i64,
    pub hash: Option<&'a [u8]>,
    pub size: u64,
    pub mode: u32,
    pub mtime: i64,
    pub mtime_ns: Option<u32>,
    pub flags: u32,
    pub name: &'a [u8],
    pub symlink: &'a [u8],
    pub uid: u32,
    pub gid: u32,
    pub xattrs: Option<&'a [u8]>,
}

impl<'a> RowRef<'a> {
    /// The row of an entry.
    pub fn of(key: PathKey, parent: PathKey, entry: &'a Entry) -> RowRef<'a> {
        RowRef {
            key,
            parent,
            hardlinks: entry.hardlinks_column(),
            hash: entry.content.as_ref().map(|h| &h.digest[..]),
            size: entry.size,
            mode: entry.mode,
            mtime: entry.mtime,
            mtime_ns: entry.mtime_ns,
            flags: entry.flags.0,
            name: &entry.name,
            symlink: &entry.symlink,
            uid: entry.uid,
            gid: entry.gid,
            xattrs: entry.xattrs.as_deref(),
        }
    }
}

/// A catalog database open for writing.
#[derive(Debug)]
pub struct CatalogWriter {
    file: PathBuf,
    db: Connection,
    in_bulk: bool,
    /// Highest hard-link group in use, once somebody asked for a new one.
    last_group: Cell<Option<u32>>,
}

impl CatalogWriter {
    /// Makes an empty catalog in `file` (absent or empty) for many rows; [`CatalogWriter::finish`] makes the
    /// index for listings.
    pub fn create(file: &Path) -> Result<CatalogWriter, CatalogError> {
        let writer = CatalogWriter::connect(file, true)?;
        // The reference client has its page cache cut for pages of this size.
        writer.batch("cannot create", "PRAGMA page_size = 1024;")?;
        writer.batch("cannot create", schema::CREATE)?;
        writer.set_property("schema", schema::SCHEMA)?;
        writer.set_property("schema_revision", &schema::SCHEMA_REVISION.to_string())?;
        Ok(writer)
    }

    /// Opens a private copy of a catalog, brought to the newest revision of the schema.
    pub fn open(file: &Path) -> Result<CatalogWriter, CatalogError> {
        let writer = CatalogWriter::connect(file, false)?;
        writer.upgrade()?;
        Ok(writer)
    }

    fn connect(file: &Path, in_bulk: bool) -> Result<CatalogWriter, CatalogError> {
        let sqlite =
            |source| CatalogError::Sqlite { path: file.to_owned(), what: "cannot open it for writing", source };
        let db = Connection::open(file).map_err(sqlite)?;
        db.set_prepared_statement_cache_capacity(32);
        let writer = CatalogWriter { file: file.to_owned(), db, in_bulk, last_group: Cell::new(None) };
        writer.batch(
            "cannot prepare it for writing",
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA cache_size = -32768; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;
             PRAGMA foreign_keys = OFF; BEGIN;",
        )?;
        Ok(writer)
    }

    fn upgrade(&self) -> Result<(), CatalogError> {
        let schema = self.property("schema")?.unwrap_or_default();
        if schema != schema::SCHEMA {
            return Err(CatalogError::Schema { path: self.file.clone(), schema });
        }
        let revision: u32 = self.property("schema_revision")?.and_then(|r| r.parse().ok()).unwrap_or(0);
        let steps: [(u32, &str); 4] = [
            (1, "ALTER TABLE nested_catalogs ADD COLUMN size INTEGER;"),
            (2, "ALTER TABLE catalog ADD COLUMN xattr BLOB;"),
            (
                4,
                "CREATE TABLE bind_mountpoints (path TEXT, sha1 TEXT, size INTEGER, CONSTRAINT pk_bind_mountpoints PRIMARY KEY (path));",
            ),
            (7, "ALTER TABLE catalog ADD COLUMN mtimens INTEGER;"),
        ];
        for (since, sql) in steps {
            if revision < since {
                self.batch("cannot bring it to the newest schema", sql)?;
            }
        }
        if revision < schema::SCHEMA_REVISION {
            for (name, _) in Counters::default().rows() {
                self.execute("INSERT OR IGNORE INTO statistics VALUES (?1, 0)", [name])?;
            }
            self.set_property("schema_revision", &schema::SCHEMA_REVISION.to_string())?;
        }
        Ok(())
    }

    /// Adds an entry; gives its row number.
    pub fn insert(&self, key: PathKey, parent: PathKey, entry: &Entry) -> Result<i64, CatalogError> {
        self.insert_row(&RowRef::of(key, parent, entry))
    }

    /// Adds a row; gives its number.
    pub fn insert_row(&self, row: &RowRef<'_>) -> Result<i64, CatalogError> {
        let mut statement = self.db.prepare_cached(INSERT).map_err(self.sqlite("insert"))?;
        statement
            .insert(rusqlite::params![
                row.key.high,
                row.key.low,
                row.parent.high,
                row.parent.low,
                row.hardlinks,
                row.hash,
                row.size as i64,
                row.mode,
                row.mtime,
                row.mtime_ns,
                row.flags,
                Text(row.name),
                Text(row.symlink),
                row.uid,
                row.gid,
                row.xattrs,
            ])
            .map_err(self.sqlite("cannot add an entry"))
    }

    /// Writes every column of an existing row but its keys.
    pub fn update(&self, key: PathKey, entry: &Entry) -> Result<(), CatalogError> {
        const SQL: &str =
            "UPDATE catalog SET hardlinks = ?3, hash = ?4, size = ?5, mode = ?6, mtime = ?7, mtimens = ?8,
          flags = ?9, name = ?10, symlink = ?11, uid = ?12, gid = ?13, xattr = ?14
          WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        let changed = self.execute(
            SQL,
            rusqlite::params![
                key.high,
                key.low,
                entry.hardlinks_column(),
                entry.content.as_ref().map(|h| &h.digest[..]),
                entry.size as i64,
                entry.mode,
                entry.mtime,
                entry.mtime_ns,
                entry.flags.0,
                Text(&entry.name),
                Text(&entry.symlink),
                entry.uid,
                entry.gid,
                entry.xattrs.as_deref(),
            ],
        )?;
        if changed == 1 {
            Ok(())
        } else {
            Err(self.corrupt(format!("no row for {:?}", String::from_utf8_lossy(&entry.name))))
        }
    }

    /// Takes an entry and its chunks away; gives the number of chunks.
    pub fn delete(&self, key: PathKey) -> Result<usize, CatalogError> {
        let chunks = self.execute("DELETE FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2", (key.high, key.low))?;
        self.execute("DELETE FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2", (key.high, key.low))?;
        Ok(chunks)
    }

    /// A number for a new hard-link group of this catalog: one above the highest that is in use.
    pub fn new_link_group(&self) -> Result<u32, CatalogError> {
        const SQL: &str = "SELECT coalesce(max((hardlinks >> 32) & 4294967295), 0) FROM catalog";
        let last: u32 = match self.last_group.get() {
            Some(last) => last,
            None => self.db.query_row(SQL, (), |row| row.get(0)).map_err(self.sqlite("hard-link groups"))?,
        };
        let new = last.checked_add(1).ok_or_else(|| self.corrupt("no number is left for a hard-link group".into()))?;
        self.last_group.set(Some(new));
        Ok(new)
    }

    /// Adds the chunks of a file.
    pub fn insert_chunks(&self, key: PathKey, chunks: &[Chunk]) -> Result<(), CatalogError> {
        for chunk in chunks {
            self.execute(
                "INSERT INTO chunks (md5path_1, md5path_2, offset, size, hash) VALUES (?1, ?2, ?3, ?4, ?5)",
                (key.high, key.low, chunk.offset as i64, chunk.size as i64, &chunk.hash.digest[..]),
            )?;
        }
        Ok(())
    }

    /// Registers a nested catalog, or registers its new version.
    pub fn set_nested(&self, path: &RepoPath, hash: ContentHash, size: u64) -> Result<(), CatalogError> {
        self.execute(
            "INSERT OR REPLACE INTO nested_catalogs (path, sha1, size) VALUES (?1, ?2, ?3)",
            (Text(path.as_bytes()), hash.to_string(), size as i64),
        )
        .map(drop)
    }

    /// Takes a nested catalog off the list.
    pub fn remove_nested(&self, path: &RepoPath) -> Result<(), CatalogError> {
        self.execute("DELETE FROM nested_catalogs WHERE path = ?1", [Text(path.as_bytes())]).map(drop)
    }

    /// Sets a property.
    pub fn set_property(&self, key: &str, value: &str) -> Result<(), CatalogError> {
        self.execute("INSERT OR REPLACE INTO properties (key, value) VALUES (?1, ?2)", (key, value)).map(drop)
    }

    /// Says where the catalog is mounted; not for root catalogs. Paths need not be UTF-8.
    pub fn set_root_prefix(&self, path: &RepoPath) -> Result<(), CatalogError> {
        const SQL: &str = "INSERT OR REPLACE INTO properties (key, value) VALUES ('root_prefix', ?1)";
        self.execute(SQL, [Text(path.as_bytes())]).map(drop)
    }

    /// Value of a property.
    pub fn property(&self, key: &str) -> Result<Option<String>, CatalogError> {
        let mut statement =
            self.db.prepare_cached("SELECT value FROM properties WHERE key = ?1").map_err(self.sqlite("properties"))?;
        statement.query_row([key], |row| row.get(0)).optional().map_err(self.sqlite("properties"))
    }

    /// Writes all 24 counters.
    pub fn set_counters(&self, counters: &Counters) -> Result<(), CatalogError> {
        for (name, value) in counters.rows() {
            self.execute("INSERT OR REPLACE INTO statistics (counter, value) VALUES (?1, ?2)", (name, value))?;
        }
        Ok(())
    }

    /// Gives rows dense numbers and the file its smallest size, when more than a quarter of the numbers are
    /// unused: clients reserve inode numbers by the highest row number. Order is kept.
    pub fn compact(&self) -> Result<(), CatalogError> {
        let (rows, highest): (i64, i64) = self
            .db
            .query_row("SELECT count(*), coalesce(max(rowid), 0) FROM catalog", (), |r| Ok((r.get(0)?, r.get(1)?)))
            .map_err(self.sqlite("count"))?;
        if highest - rows <= highest / 4 {
            return Ok(());
        }
        self.batch(
            "cannot renumber its rows",
            "CREATE TEMP TABLE dense AS SELECT * FROM catalog ORDER BY rowid; DELETE FROM catalog;
             INSERT INTO catalog SELECT * FROM temp.dense ORDER BY rowid; DROP TABLE temp.dense; COMMIT; VACUUM; BEGIN;",
        )
    }

    /// Ends writing; gives the size of the database file.
    pub fn finish(self) -> Result<u64, CatalogError> {
        if self.in_bulk {
            self.batch("cannot make its index", schema::CREATE_INDEX)?;
        }
        self.batch("cannot finish it", "COMMIT;")?;
        let CatalogWriter { file, db, .. } = self;
        let sqlite = |source| CatalogError::Sqlite { path: file.clone(), what: "cannot close it", source };
        db.close().map_err(|(_, e)| sqlite(e))?;
        let size = file.metadata().map(|m| m.len());
        size.map_err(|e| CatalogError::Corrupt { path: file.clone(), what: format!("cannot examine the file: {e}") })
    }

    pub(crate) fn execute(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<usize, CatalogError> {
        let mut statement = self.db.prepare_cached(sql).map_err(self.sqlite("cannot change it"))?;
        statement.execute(parameters).map_err(self.sqlite("cannot change it"))
    }

    fn batch(&self, what: &'static str, sql: &str) -> Result<(), CatalogError> {
        self.db.execute_batch(sql).map_err(self.sqlite(what))
    }

    fn sqlite(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> CatalogError + '_ {
        move |source| CatalogError::Sqlite { path: self.file.clone(), what, source }
    }

    fn corrupt(&self, what: String) -> CatalogError {
        CatalogError::Corrupt { path: self.file.clone(), what }
    }

    /// Entry with this key, as written so far.
    pub fn lookup(&self, key: PathKey) -> Result<Option<Row>, CatalogError> {
        Ok(self.select("md5path_1 = ?1 AND md5path_2 = ?2", key)?.pop())
    }

    /// Entries of the directory with this key, as written so far.
    pub fn list(&self, parent: PathKey) -> Result<Vec<Row>, CatalogError> {
        self.select("parent_1 = ?1 AND parent_2 = ?2", parent)
    }

    /// Number of entries of the directory with this key, as written so far.
    pub fn count(&self, parent: PathKey) -> Result<u64, CatalogError> {
        let sql = "SELECT count(*) FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2";
        let mut statement = self.db.prepare_cached(sql).map_err(self.sqlite("count"))?;
        let count: i64 =
            statement.query_row((parent.high, parent.low), |row| row.get(0)).map_err(self.sqlite("count"))?;
        Ok(count.unsigned_abs())
    }

    fn select(&self, condition: &str, key: PathKey) -> Result<Vec<Row>, CatalogError> {
        let columns = schema::columns(2.5, schema::SCHEMA_REVISION);
        let sql = format!("SELECT {columns} FROM catalog WHERE {condition}");
        let mut statement = self.db.prepare_cached(&sql).map_err(self.sqlite("lookup"))?;
        let mut rows = statement.query((key.high, key.low)).map_err(self.sqlite("lookup"))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(self.sqlite("lookup"))? {
            found.push(decode_row(row).map_err(|what| self.corrupt(what))?);
        }
        Ok(found)
    }

    /// Chunks of the file with this key, by offset.
    pub fn chunks(&self, key: PathKey, algorithm: Algorithm) -> Result<Vec<Chunk>, CatalogError> {
        const SQL: &str =
            "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 ORDER BY offset";
        let mut statement = self.db.prepare_cached(SQL).map_err(self.sqlite("chunks"))?;
        let rows = statement
            .query_map((key.high, key.low), |r| {
                let hash = ContentHash { algorithm, digest: r.get(2)? };
                Ok(Chunk { offset: r.get::<_, i64>(0)?.max(0) as u64, size: r.get::<_, i64>(1)?.max(0) as u64, hash })
            })
            .map_err(self.sqlite("chunks"))?;
        rows.collect::<rusqlite::Result<_>>().map_err(self.sqlite("chunks"))
    }

    /// Object of the nested catalog registered at this path.
    pub fn nested(&self, path: &RepoPath) -> Result<Option<(ContentHash, u64)>, CatalogError> {
        let mut statement = self
            .db
            .prepare_cached("SELECT sha1, coalesce(size, 0) FROM nested_catalogs WHERE path = ?1")
            .map_err(self.sqlite("nested catalogs"))?;
        let row: Option<(String, i64)> = statement
            .query_row([Text(path.as_bytes())], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()
            .map_err(self.sqlite("nested catalogs"))?;
        row.map(|(hash, size)| match hash.parse() {
            Ok(hash) => Ok((hash, size.max(0) as u64)),
            Err(_) => Err(self.corrupt(format!("nested catalog {path} has the malformed hash {hash:?}"))),
        })
        .transpose()
    }

    /// Paths and objects of all registered nested catalogs.
    pub fn nested_all(&self) -> Result<Vec<(RepoPath, ContentHash)>, CatalogError> {
        let mut statement =
            self.db.prepare_cached("SELECT path, sha1 FROM nested_catalogs").map_err(self.sqlite("nested catalogs"))?;
        let mut rows = statement.query(()).map_err(self.sqlite("nested catalogs"))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(self.sqlite("nested catalogs"))? {
            let bytes = |i| row.get_ref(i).ok().and_then(|v| v.as_bytes_or_null().ok().flatten()).unwrap_or_default();
            let path = RepoPath::parse(bytes(0));
            let hash = std::str::from_utf8(bytes(1)).ok().and_then(|hash| hash.parse().ok());
            let (Ok(path), Some(hash)) = (path, hash) else {
                return Err(self.corrupt("a malformed row in nested_catalogs".into()));
            };
            found.push((path, hash));
        }
        Ok(found)
    }

    /// Counters as recorded.
    pub fn counters(&self) -> Result<Counters, CatalogError> {
        let mut statement =
            self.db.prepare_cached("SELECT counter, value FROM statistics").map_err(self.sqlite("statistics"))?;
        let rows = statement
            .query_map((), |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))
            .map_err(self.sqlite("statistics"))?;
        let mut counters = Counters::default();
        for row in rows {
            let (name, value) = row.map_err(self.sqlite("statistics"))?;
            if let Some(cell) = counters.cell_mut(&name) {
                *cell = value;
            }
        }
        Ok(counters)
    }
}
