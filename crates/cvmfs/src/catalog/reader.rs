//! Reading one catalog.
//!
//! A catalog file is immutable (its name is its hash), so it is opened without locks and mapped into
//! memory. The content is input from elsewhere: every value is checked before it becomes an [`Entry`].

mod objects;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension as _, ffi};

use super::counters::Counters;
use super::schema;
use crate::entry::{Chunk, Entry, FileType, Flags};
use crate::hash::{Algorithm, ContentHash};
use crate::path::{PathKey, RepoPath, is_name};

/// Why a catalog cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The database cannot be opened or read.
    #[error("catalog {path}: {what}")]
    Sqlite {
        /// File of the catalog.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// Schema that this program does not know.
    #[error("catalog {path}: schema {schema} is not one this program reads (2.4, 2.5 and below 2.0)")]
    Schema {
        /// File of the catalog.
        path: PathBuf,
        /// The schema it names.
        schema: String,
    },
    /// A value that no catalog may have.
    #[error("catalog {path}: {what}")]
    Corrupt {
        /// File of the catalog.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
}

/// Where a nested catalog is mounted and which object holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedRef {
    /// Path of the transition point, as the catalog writes it.
    pub path: RepoPath,
    /// Hash of the catalog object.
    pub hash: ContentHash,
    /// Bytes of the plain database; 0 when unknown.
    pub size: u64,
}

/// One row of the catalog table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Number of the row in this catalog; the root catalog's root entry has 1.
    pub rowid: i64,
    /// Key of the path.
    pub key: PathKey,
    /// Key of the directory.
    pub parent: PathKey,
    /// The entry.
    pub entry: Entry,
}

/// Version of a catalog's tables.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SchemaVersion {
    /// 2.5 and before.
    pub schema: f32,
    /// Revision of the schema.
    pub revision: u32,
}

/// An open catalog. Can be shared between threads; calls take turns.
#[derive(Debug)]
pub struct Catalog {
    file: PathBuf,
    mountpoint: RepoPath,
    root_prefix: RepoPath,
    version: SchemaVersion,
    columns: String,
    connection: Mutex<Connection>,
}

impl Catalog {
    /// Opens the plain database `file` of the catalog mounted at `mountpoint`.
    pub fn open(file: &Path, mountpoint: RepoPath) -> Result<Catalog, CatalogError> {
        let sqlite = |what| move |source| CatalogError::Sqlite { path: file.to_owned(), what, source };
        let connection = open_immutable(file).map_err(sqlite("cannot open it"))?;
        let mut catalog = Catalog {
            file: file.to_owned(),
            root_prefix: mountpoint.clone(),
            mountpoint,
            version: SchemaVersion { schema: 1.0, revision: 0 },
            columns: String::new(),
            connection: Mutex::new(connection),
        };
        let schema = catalog.property("schema")?.unwrap_or_else(|| "1.0".into());
        let number: f32 = schema.parse().unwrap_or(f32::NAN);
        let known = number < 2.0 || (number - 2.4).abs() < 1e-3 || (number - 2.5).abs() < 1e-3;
        if !known {
            return Err(CatalogError::Schema { path: file.to_owned(), schema });
        }
        let revision = match number >= 2.45 {
            true => catalog.property("schema_revision")?.and_then(|r| r.parse().ok()).unwrap_or(0),
            false => 0,
        };
        catalog.version = SchemaVersion { schema: number, revision };
        catalog.columns = schema::columns(number, revision);
        // Without it the rows are those of a root catalog, wherever it is mounted.
        let prefix = catalog.property_bytes("root_prefix")?.unwrap_or_default();
        catalog.root_prefix = RepoPath::parse(&prefix).map_err(|_| catalog.corrupt("root_prefix is no path".into()))?;
        Ok(catalog)
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &RepoPath {
        &self.mountpoint
    }

    /// Path under which the rows were hashed; differs from the mountpoint below bind mountpoints only.
    pub fn root_prefix(&self) -> &RepoPath {
        &self.root_prefix
    }

    /// Schema and revision of the tables.
    pub fn version(&self) -> SchemaVersion {
        self.version
    }

    /// File that is open.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The path to look up in this catalog for a path of the mounted tree.
    pub fn inner_path(&self, path: &RepoPath) -> RepoPath {
        if self.root_prefix == self.mountpoint {
            return path.clone();
        }
        let rest = path.as_bytes().get(self.mountpoint.as_bytes().len()..).unwrap_or_default();
        RepoPath::parse([self.root_prefix.as_bytes(), rest].concat()).unwrap_or_else(|_| path.clone())
    }

    /// Entry at a path of the mounted tree.
    pub fn lookup_path(&self, path: &RepoPath) -> Result<Option<Row>, CatalogError> {
        self.lookup(self.inner_path(path).key())
    }

    /// Entry with this key.
    pub fn lookup(&self, key: PathKey) -> Result<Option<Row>, CatalogError> {
        let db = self.lock();
        let sql = format!("SELECT {} FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2", self.columns);
        let mut statement = self.statement(&db, &sql)?;
        let mut rows = statement.query((key.high, key.low)).map_err(self.sqlite("lookup"))?;
        rows.next().map_err(self.sqlite("lookup"))?.map(|row| self.row(row)).transpose()
    }

    /// Entries of the directory with this key, hidden ones included, in the order of their rows.
    pub fn list(&self, parent: PathKey) -> Result<Vec<Row>, CatalogError> {
        let sql = format!("SELECT {} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2", self.columns);
        self.rows(&sql, (parent.high, parent.low))
    }

    /// Entries of the directory with this key by name, those behind `after` only, at most `count`: a listing that can
    /// be left and taken up again.
    pub fn list_after(&self, parent: PathKey, after: &[u8], count: usize) -> Result<Vec<Row>, CatalogError> {
        let sql = format!(
            "SELECT {} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND name > ?3 ORDER BY name LIMIT ?4",
            self.columns
        );
        self.rows(&sql, (parent.high, parent.low, Text(after), count as i64))
    }

    /// Hands every row to `visit`, in the order of row numbers, until it returns false.
    pub fn scan<E: From<CatalogError>>(&self, mut visit: impl FnMut(Row) -> Result<bool, E>) -> Result<(), E> {
        let db = self.lock();
        let sql = format!("SELECT {} FROM catalog ORDER BY rowid", self.columns);
        let mut statement = self.statement(&db, &sql)?;
        let mut rows = statement.query(()).map_err(self.sqlite("scan"))?;
        while let Some(row) = rows.next().map_err(self.sqlite("scan"))? {
            if !visit(self.row(row)?)? {
                break;
            }
        }
        Ok(())
    }

    /// Rows with numbers above `after`, in order, at most `count`: a scan that can be left and taken up again.
    pub fn rows_after(&self, after: i64, count: usize) -> Result<Vec<Row>, CatalogError> {
        let sql = format!("SELECT {} FROM catalog WHERE rowid > ?1 ORDER BY rowid LIMIT ?2", self.columns);
        self.rows(&sql, (after, count as i64))
    }

    /// Chunks of the file with this key, by offset.
    pub fn chunks(&self, key: PathKey, algorithm: Algorithm) -> Result<Vec<Chunk>, CatalogError> {
        if self.version.schema < 2.0 {
            return Ok(Vec::new());
        }
        let db = self.lock();
        let sql = "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 ORDER BY offset";
        let mut statement = self.statement(&db, sql)?;
        let mut rows = statement.query((key.high, key.low)).map_err(self.sqlite("chunks"))?;
        let mut chunks = Vec::new();
        while let Some(row) = rows.next().map_err(self.sqlite("chunks"))? {
            let number = |i| row.get_ref(i).ok().and_then(|v| v.as_i64().ok()).and_then(|v| u64::try_from(v).ok());
            let hash = row.get_ref(2).ok().and_then(|v| v.as_blob().ok());
            let chunk = number(0).zip(number(1)).zip(hash.and_then(|h| ContentHash::from_raw(algorithm, h)));
            let ((offset, size), hash) = chunk.ok_or_else(|| self.corrupt(format!("malformed chunk of {key:?}")))?;
            chunks.push(Chunk { offset, size, hash });
        }
        Ok(chunks)
    }

    /// The nested catalog, or bind mountpoint, at exactly this path (as written in this catalog).
    pub fn nested(&self, path: &RepoPath) -> Result<Option<NestedRef>, CatalogError> {
        let inner = self.inner_path(path);
        for (table, _) in self.nested_tables() {
            let found = self.nested_rows(table, Some(inner.as_bytes()))?.pop();
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// All direct nested catalogs (without bind mountpoints).
    pub fn nested_all(&self) -> Result<Vec<NestedRef>, CatalogError> {
        self.nested_rows("nested_catalogs", None)
    }

    /// All bind mountpoints.
    pub fn bind_mountpoints(&self) -> Result<Vec<NestedRef>, CatalogError> {
        if self.version.revision < 4 { Ok(Vec::new()) } else { self.nested_rows("bind_mountpoints", None) }
    }

    fn nested_tables(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let revision = self.version.revision;
        [("nested_catalogs", 0), ("bind_mountpoints", 4)].into_iter().filter(move |(_, since)| revision >= *since)
    }

    fn nested_rows(&self, table: &str, path: Option<&[u8]>) -> Result<Vec<NestedRef>, CatalogError> {
        let size = if self.version.revision >= 1 { "size" } else { "0" };
        let condition = if path.is_some() { " WHERE path = ?1" } else { "" };
        let sql = format!("SELECT path, sha1, {size} FROM {table}{condition}");
        let db = self.lock();
        let mut statement = self.statement(&db, &sql)?;
        let mut rows = match path {
            Some(path) => statement.query([Text(path)]),
            None => statement.query(()),
        }
        .map_err(self.sqlite("nested catalogs"))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(self.sqlite("nested catalogs"))? {
            let text = |i| row.get_ref(i).map(text_bytes).unwrap_or_default();
            let path = RepoPath::parse(text(0));
            let hash = std::str::from_utf8(text(1)).ok().and_then(|t| t.parse().ok());
            let size = row.get_ref(2).ok().and_then(|v| v.as_i64().ok()).unwrap_or(0);
            let (Ok(path), Some(hash), Ok(size)) = (path, hash, u64::try_from(size)) else {
                return Err(self.corrupt(format!("malformed row {:?} in {table}", String::from_utf8_lossy(text(0)))));
            };
            found.push(NestedRef { path, hash, size });
        }
        Ok(found)
    }

    /// Value of a property.
    pub fn property(&self, key: &str) -> Result<Option<String>, CatalogError> {
        Ok(self.property_bytes(key)?.map(|v| String::from_utf8_lossy(&v).into_owned()))
    }

    fn property_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        let db = self.lock();
        let mut statement = self.statement(&db, "SELECT value FROM properties WHERE key = ?1")?;
        let value = statement
            .query_row([key], |row| {
                Ok(match row.get_ref(0)? {
                    ValueRef::Text(text) => Some(text.to_vec()),
                    ValueRef::Integer(number) => Some(number.to_string().into_bytes()),
                    ValueRef::Real(number) => Some(number.to_string().into_bytes()),
                    _ => None,
                })
            })
            .optional()
            .map_err(self.sqlite("properties"))?;
        Ok(value.flatten())
    }

    fn number(&self, key: &str) -> Result<Option<u64>, CatalogError> {
        Ok(self.property(key)?.and_then(|v| v.parse().ok()))
    }

    /// Revision of the catalog; for the root catalog that of the repository.
    pub fn revision(&self) -> Result<u64, CatalogError> {
        Ok(self.number("revision")?.unwrap_or(0))
    }

    /// Seconds a client may go without asking for a new revision; `None` where it is not set.
    pub fn ttl(&self) -> Result<Option<u64>, CatalogError> {
        self.number("TTL")
    }

    /// Unix seconds of the last commit.
    pub fn last_modified(&self) -> Result<u64, CatalogError> {
        Ok(self.number("last_modified")?.unwrap_or(0))
    }

    /// Predecessor of this catalog; unreadable and null hashes count as none.
    pub fn previous_revision(&self) -> Result<Option<ContentHash>, CatalogError> {
        let hash = self.property("previous_revision")?.and_then(|v| v.parse::<ContentHash>().ok());
        Ok(hash.filter(|h| !h.is_null()))
    }

    /// Statistics as recorded (not recomputed). A missing counter is corrupt from the revision on that has it.
    pub fn counters(&self) -> Result<Counters, CatalogError> {
        let (counters, missing) = self.counters_and_missing()?;
        match missing.first() {
            Some(name) => Err(self.corrupt(format!("counter {name} is missing"))),
            None => Ok(counters),
        }
    }

    /// Statistics as recorded, and the names of counters that should be there and are not.
    pub fn counters_and_missing(&self) -> Result<(Counters, Vec<String>), CatalogError> {
        let db = self.lock();
        let mut statement = self.statement(&db, "SELECT counter, value FROM statistics")?;
        let mut rows = statement.query(()).map_err(self.sqlite("statistics"))?;
        let mut counters = Counters::default();
        let since = |name: &str| match name.trim_start_matches("self_").trim_start_matches("subtree_") {
            "xattr" => 2,
            "external" | "external_file_size" => 3,
            "special" => 5,
            _ => 0,
        };
        let revision = self.version.revision;
        let mut missing: Vec<String> =
            counters.rows().map(|(name, _)| name).filter(|name| since(name) <= revision).collect();
        while let Some(row) = rows.next().map_err(self.sqlite("statistics"))? {
            let name = row.get_ref(0).map(text_bytes).unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let value = row.get_ref(1).ok().and_then(|v| v.as_i64().ok());
            if let (Some(cell), Some(value)) = (counters.cell_mut(&name), value) {
                *cell = value;
                missing.retain(|m| *m != name);
            }
        }
        Ok((counters, missing))
    }

    /// Highest row number.
    pub fn max_rowid(&self) -> Result<i64, CatalogError> {
        self.integer("SELECT coalesce(max(rowid), 0) FROM catalog")
    }

    /// Number of rows.
    pub fn row_count(&self) -> Result<i64, CatalogError> {
        self.integer("SELECT count(*) FROM catalog")
    }

    fn integer(&self, sql: &str) -> Result<i64, CatalogError> {
        let db = self.lock();
        self.statement(&db, sql)?.query_row((), |row| row.get(0)).map_err(self.sqlite("count"))
    }

    fn rows(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<Vec<Row>, CatalogError> {
        let db = self.lock();
        let mut statement = self.statement(&db, sql)?;
        let mut rows = statement.query(parameters).map_err(self.sqlite("listing"))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(self.sqlite("listing"))? {
            found.push(self.row(row)?);
        }
        Ok(found)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // Nothing is left half done by a reader that panicked.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statement<'a>(&self, db: &'a Connection, sql: &str) -> Result<CachedStatement<'a>, CatalogError> {
        db.prepare_cached(sql).map_err(self.sqlite("cannot read its tables"))
    }

    fn sqlite(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> CatalogError + '_ {
        move |source| CatalogError::Sqlite { path: self.file.clone(), what, source }
    }

    fn corrupt(&self, what: String) -> CatalogError {
        CatalogError::Corrupt { path: self.file.clone(), what }
    }

    fn row(&self, row: &rusqlite::Row<'_>) -> Result<Row, CatalogError> {
        decode_row(row).map_err(|what| self.corrupt(what))
    }
}

/// Opens a database file that nobody changes: no locks, mapped. One whose schema would run statements of its own, or that
/// has anything but plain tables and indexes, is refused.
pub(crate) fn open_immutable(file: &Path) -> rusqlite::Result<Connection> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.set_prepared_statement_cache_capacity(16);
    connection.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA query_only = ON; PRAGMA mmap_size = 1073741824;",
    )?;
    refuse_live_schema(&connection)?;
    Ok(connection)
}

/// A view or a computed column answers what it likes, at any cost. Nobody writes such a database in good faith.
fn refuse_live_schema(db: &Connection) -> rusqlite::Result<()> {
    let alive =
        "SELECT name FROM sqlite_schema WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%' LIMIT 1";
    // Only plain tables are left when this is asked.
    let computed = "SELECT s.name || '.' || c.name FROM sqlite_schema AS s, pragma_table_xinfo(s.name) AS c
        WHERE s.type = 'table' AND c.hidden != 0 LIMIT 1";
    for sql in [alive, computed] {
        if let Some(name) = db.query_row(sql, (), |row| row.get::<_, String>(0)).optional()? {
            let what = format!("{name:?} is a view, a trigger, a virtual table or a computed column");
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_NOTADB), Some(what)));
        }
    }
    Ok(())
}

/// Bytes bound as TEXT: names and link targets need not be UTF-8.
pub(crate) struct Text<'a>(pub &'a [u8]);

impl rusqlite::ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

fn text_bytes(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    }
}

/// Checks and takes one row selected with [`schema::columns`].
pub(crate) fn decode_row(row: &rusqlite::Row<'_>) -> Result<Row, String> {
    let value = |i| row.get_ref(i).unwrap_or(ValueRef::Null);
    let integer = |i| match value(i) {
        ValueRef::Integer(number) => Some(number),
        _ => None,
    };
    let rowid = integer(0).unwrap_or(0);
    let bad = |what: &str| format!("row {rowid}: {what}");
    let key = |i| Some(PathKey { high: integer(i)?, low: integer(i + 1)? });
    let path_key = key(1).ok_or_else(|| bad("no path key"))?;
    let parent = key(3).ok_or_else(|| bad("no parent key"))?;
    let hardlinks = integer(5).unwrap_or(1) as u64;
    let flags = Flags(integer(11).and_then(|f| u32::try_from(f).ok()).ok_or_else(|| bad("no flags"))?);
    let algorithm = flags.algorithm().ok_or_else(|| bad("unknown hash algorithm"))?;
    flags.compression().ok_or_else(|| bad("unknown compression"))?;
    let content = match value(6) {
        ValueRef::Null => None,
        ValueRef::Blob([]) => None,
        ValueRef::Blob(raw) => Some(ContentHash::from_raw(algorithm, raw).ok_or_else(|| bad("hash is not 20 bytes"))?),
        _ => return Err(bad("hash is no blob")),
    };
    let mode = integer(8).and_then(|m| u32::try_from(m).ok()).ok_or_else(|| bad("no mode"))?;
    FileType::from_mode(mode).ok_or_else(|| bad("mode of no file type"))?;
    let name = text_bytes(value(12)).to_vec();
    if !name.is_empty() && !is_name(&name) {
        return Err(bad("name with a '/', NUL or more than 255 bytes"));
    }
    // uid_t is unsigned; old tools wrote it through a signed type.
    let id = |i| integer(i).unwrap_or(0) as u32;
    let entry = Entry {
        name,
        mode,
        size: integer(7).unwrap_or(0).max(0) as u64,
        mtime: integer(9).unwrap_or(0),
        mtime_ns: integer(10).and_then(|ns| u32::try_from(ns).ok()).filter(|ns| *ns < 1_000_000_000),
        uid: id(14),
        gid: id(15),
        links: hardlinks as u32,
        link_group: (hardlinks >> 32) as u32,
        content,
        flags,
        symlink: text_bytes(value(13)).to_vec(),
        xattrs: match value(16) {
            ValueRef::Blob(blob) => Some(blob.into()),
            _ => None,
        },
    };
    Ok(Row { rowid, key: path_key, parent, entry })
}
