//! The database of snapshots: SQLite, one writer, many readers.
//!
//! A change is durable when it is answered. As each takes a flush of the disk, changes that come in meanwhile share the next one:
//! the writer takes all that wait, each in a savepoint of its own, and commits them together. What fails is undone alone.
//!
//! Readers never wait for the writer. The file is checked when it is opened; one that is damaged is never replaced without being
//! asked ([`Metadata::rebuild`]), and never deleted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use image::digest::LayerDigest;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, params};

use crate::directories::{Directories, Record};
use crate::error::Error;
use crate::labels::Labels;
use crate::snapshots::{Id, Info, Kind, Lower, Part, Snapshot};
use crate::usage::Usage;

/// Name of the file below the state directory.
pub const FILE: &str = "metadata.db";
/// Version of the tables.
const SCHEMA: i32 = 1;
/// Changes that are committed together at most; bounds how long a single one waits.
const BATCH: usize = 128;
/// Connections that are kept for reading.
const READERS: usize = 16;

const TABLES: &str = "
    CREATE TABLE snapshot (
        id      INTEGER PRIMARY KEY AUTOINCREMENT,
        name    TEXT NOT NULL UNIQUE,
        kind    TEXT NOT NULL,
        parent  INTEGER REFERENCES snapshot (id),
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        size    INTEGER,
        inodes  INTEGER,
        how     TEXT
    );
    CREATE INDEX snapshot_parent ON snapshot (parent);
    CREATE TABLE label (
        snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
        key      TEXT NOT NULL,
        value    TEXT NOT NULL,
        PRIMARY KEY (snapshot, key)
    ) WITHOUT ROWID;
    CREATE INDEX label_value ON label (key, value);
    CREATE TABLE lower (
        snapshot   INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
        position   INTEGER NOT NULL,
        repository TEXT NOT NULL,
        layer      TEXT NOT NULL,
        part       TEXT NOT NULL,
        PRIMARY KEY (snapshot, position)
    ) WITHOUT ROWID;
    CREATE INDEX lower_layer ON lower (layer);
";

/// Why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a database, or one with damage.
    #[error(
        "{path} is damaged: {why}\nNothing was changed. `cvmfs-snapshotter serve --rebuild` sets the file aside and makes it anew from the snapshot directories"
    )]
    Damaged {
        /// the file
        path: PathBuf,
        /// what SQLite says
        why: String,
    },
    /// Directories of snapshots without a database.
    #[error(
        "{path} is missing, but {snapshots} snapshot directories are there\nNothing was changed. `cvmfs-snapshotter serve --rebuild` makes the database anew from them"
    )]
    Missing {
        /// the file
        path: PathBuf,
        /// how many
        snapshots: usize,
    },
    /// Written by a later program.
    #[error(
        "{path} has schema {found}, this program knows {SCHEMA}; go back to the newer program, or use another --root"
    )]
    Newer {
        /// the file
        path: PathBuf,
        /// its schema
        found: i32,
    },
    /// Another process has it.
    #[error("{path} is in use by another process; is a cvmfs-snapshotter running with the same --root?")]
    Busy {
        /// the lock file
        path: PathBuf,
    },
    /// The rest.
    #[error(transparent)]
    Other(#[from] Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Other(error.into())
    }
}

type Job = Box<dyn FnOnce(&Connection) -> Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send> + Send>;

/// The database, open.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    jobs: mpsc::SyncSender<Job>,
    readers: Mutex<Vec<Connection>>,
    /// the number of the next snapshot
    next: AtomicI64,
    /// held for as long as the process lives
    _lock: nix::fcntl::Flock<std::fs::File>,
}

impl Metadata {
    /// Opens the database of a state directory, which may be empty, and brings rows and directories in agreement.
    pub fn open(directories: &Directories) -> Result<Self, OpenError> {
        let path = directories.root().join(FILE);
        let lock = lock(&directories.root().join("lock"))?;
        let exists = path.exists();
        let numbers = directories.numbers()?;
        if !exists && !numbers.is_empty() {
            return Err(OpenError::Missing { path, snapshots: numbers.len() });
        }
        let damaged = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                OpenError::Damaged { path: path.clone(), why: error.to_string() }
            }
            _ => error.into(),
        };
        // An empty file is a new database to SQLite, which then deletes the log of the old one.
        if exists && std::fs::metadata(&path).map_err(Error::io("look at", &path))?.len() == 0 {
            return Err(OpenError::Damaged { path, why: "it is empty".into() });
        }
        let connection = connect(&path).map_err(damaged)?;
        if exists {
            let found: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(damaged)?;
            if found > SCHEMA {
                return Err(OpenError::Newer { path, found });
            }
            let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(damaged)?;
            if check != "ok" || found < 1 {
                return Err(OpenError::Damaged {
                    path: path.clone(),
                    why: if found < 1 { "it has no tables".into() } else { check },
                });
            }
        } else {
            connection.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT"))?;
        }
        let table = Table(&connection);
        let orphans = orphans(&table, numbers)?;
        // A kill leaves directories of snapshots that were never answered, so nothing was ever written into them.
        let last =
            connection.query_row("SELECT max(seq) FROM sqlite_sequence", [], |row| row.get::<_, Option<i64>>(0))?;
        let lost = orphans.iter().filter(|id| id.0 > last.unwrap_or(0) && directories.has_files(**id)).count();
        if lost > 0 {
            return Err(OpenError::Damaged { path, why: format!("it has no rows of {lost} snapshots with files") });
        }
        agree(&table, directories)?;
        let next = 1 + orphans.iter().map(|id| id.0).chain(last).max().unwrap_or(0);
        for id in orphans {
            tracing::info!(snapshot = %id, "a snapshot directory without a row is taken away");
            directories.discard(id)?;
        }
        Ok(Self::start(path, connection, lock, next))
    }

    /// Sets the database aside, if there is one, and makes it anew from the records in the snapshot directories.
    ///
    /// Returns the database and how many snapshots are in it; a directory that no record explains is set aside and stays.
    pub fn rebuild(directories: &Directories) -> Result<(Self, usize), OpenError> {
        let path = directories.root().join(FILE);
        let lock = lock(&directories.root().join("lock"))?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for suffix in ["", "-wal", "-shm"] {
            let file = directories.root().join(format!("{FILE}{suffix}"));
            if file.exists() {
                let aside = directories.root().join(format!("{FILE}.corrupt-{seconds}{suffix}"));
                std::fs::rename(&file, aside).map_err(Error::io("set aside", file))?;
            }
        }
        let connection = connect(&path)?;
        connection.execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT"))?;
        let mut records: HashMap<String, Snapshot> = HashMap::new();
        let numbers = directories.numbers()?;
        for id in &numbers {
            match directories.read_record(*id) {
                Some(record) => {
                    // Two records of one name: the earlier snapshot was being removed.
                    let snapshot = record.into_snapshot();
                    let newer = records.get(&snapshot.info.name).is_none_or(|other| other.id < snapshot.id);
                    if newer {
                        records.insert(snapshot.info.name.clone(), snapshot);
                    }
                }
                None => tracing::error!(snapshot = %id, "a snapshot directory has no record"),
            }
        }
        connection.execute_batch("BEGIN")?;
        let table = Table(&connection);
        let highest = numbers.iter().max().map_or(0, |id| id.0);
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshot', ?1)", [highest])?;
        let mut count = 0;
        // Parents first, as rows refer to them.
        while !records.is_empty() {
            let ready: Vec<String> = records
                .values()
                .filter(|snapshot| snapshot.info.parent.as_ref().is_none_or(|parent| !records.contains_key(parent)))
                .map(|snapshot| snapshot.info.name.clone())
                .collect();
            if ready.is_empty() {
                tracing::error!(snapshots = records.len(), "records name each other as parents");
                break;
            }
            for name in ready {
                let mut snapshot = records.remove(&name).expect("it was just found");
                if let Some(parent) = &snapshot.info.parent {
                    match table.get(parent) {
                        Ok(parent) => snapshot.parent = Some(parent.id),
                        Err(error) => {
                            tracing::error!(snapshot = %name, %error, "a snapshot has lost its parent");
                            continue;
                        }
                    }
                }
                table.insert(&snapshot)?;
                count += 1;
            }
        }
        agree(&table, directories)?;
        // The next start would take them for what a killed process left.
        for id in orphans(&table, numbers)? {
            let aside = directories.set_aside(id)?;
            tracing::error!(directory = %aside.display(), "a snapshot directory without a row was set aside; it is never deleted");
        }
        connection.execute_batch("COMMIT")?;
        Ok((Self::start(path, connection, lock, highest + 1), count))
    }

    fn start(path: PathBuf, connection: Connection, lock: nix::fcntl::Flock<std::fs::File>, next: i64) -> Self {
        let (jobs, queue) = mpsc::sync_channel::<Job>(1024);
        std::thread::Builder::new()
            .name("metadata".into())
            .spawn(move || run(&connection, &queue))
            .expect("a thread can be started at the start");
        Self { path, jobs, readers: Mutex::default(), next: AtomicI64::new(next), _lock: lock }
    }

    /// A number that no snapshot has or had, so that what is small can be made before the writer is asked: for everything that is done
    /// in a transaction all others wait.
    pub fn number(&self) -> Id {
        Id(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Reads in one snapshot of the database.
    pub fn read<T>(&self, read: impl FnOnce(&Table<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let pooled = self.readers.lock().pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(&self.path, flags)?;
                connection.busy_timeout(Duration::from_secs(5))?;
                connection
            }
        };
        connection.execute_batch("BEGIN")?;
        let result = read(&Table(&connection));
        connection.execute_batch("COMMIT")?;
        let mut readers = self.readers.lock();
        if readers.len() < READERS {
            readers.push(connection);
        }
        result
    }

    /// Makes a change; it is durable when this returns, or undone when it returns an error.
    pub fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Table<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |connection| {
            let done = savepoint(connection, write);
            Box::new(move |committed| {
                let _ = answer.send(done.and_then(|value| committed.map(|()| value).map_err(Error::from)));
            })
        });
        let gone = || Error::Unavailable("the daemon is ending".into());
        self.jobs.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())?
    }
}

fn lock(path: &Path) -> Result<nix::fcntl::Flock<std::fs::File>, OpenError> {
    use nix::fcntl::{Flock, FlockArg};
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io("open", path))?;
    // A daemon that is just ending holds it for a moment more.
    let mut file = file;
    for _ in 0..50 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, _)) => {
                file = back;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    Err(OpenError::Busy { path: path.to_owned() })
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn savepoint<T>(connection: &Connection, write: impl FnOnce(&Table<'_>) -> Result<T, Error>) -> Result<T, Error> {
    connection.execute_batch("SAVEPOINT change")?;
    let result = write(&Table(connection));
    connection.execute_batch(if result.is_ok() { "RELEASE change" } else { "ROLLBACK TO change; RELEASE change" })?;
    result
}

/// The writer's thread.
fn run(connection: &Connection, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let begun = connection.execute_batch("BEGIN IMMEDIATE");
        let mut answers = Vec::new();
        if begun.is_ok() {
            answers.push(first(connection));
            while answers.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                answers.push(job(connection));
            }
        } else {
            // The job runs into the same failure outside of a transaction, where its savepoint is one.
            answers.push(first(connection));
        }
        let committed = begun.and_then(|()| connection.execute_batch("COMMIT"));
        if let Err(error) = &committed {
            tracing::error!(%error, "changes of snapshots could not be written and are undone");
            let _ = connection.execute_batch("ROLLBACK");
        }
        let mut failure = committed.err();
        for answer in answers {
            // SQLite's errors can't be copied; the others learn that much.
            let again = failure.as_ref().map(|_| rusqlite::Error::ExecuteReturnedResults);
            let result = failure.take().map_or(Ok(()), Err);
            failure = again;
            answer(result);
        }
    }
}

/// Directories without a row.
fn orphans(table: &Table<'_>, mut numbers: Vec<Id>) -> Result<Vec<Id>, Error> {
    let mut statement = table.0.prepare("SELECT 1 FROM snapshot WHERE id = ?1")?;
    let mut failed = Ok(());
    numbers.retain(|id| match statement.exists([id.0]) {
        Ok(exists) => !exists,
        Err(error) => {
            failed = Err(error);
            true
        }
    });
    failed?;
    Ok(numbers)
}

/// Brings directories in agreement with rows at the start, when nobody else is there: a row without its links or its record, or
/// with those of a change that was not committed, gets the right ones; a row without its files is reported and stays.
fn agree(table: &Table<'_>, directories: &Directories) -> Result<(), Error> {
    let mut last = None;
    loop {
        let page = table.page(last, 1000, None)?;
        last = page.last().map(|snapshot| snapshot.id);
        let full = page.len() == 1000;
        for mut snapshot in page {
            let record = directories.read_record(snapshot.id);
            if !snapshot.is_remote() && directories.is_linked(snapshot.id) {
                let found = record.as_ref().filter(|record| !record.lowers.is_empty());
                match found.filter(|_| snapshot.info.kind == Kind::Committed) {
                    // A conversion whose last step was not written: the links are there, the row is the old one.
                    Some(record) => {
                        snapshot.lowers.clone_from(&record.lowers);
                        (snapshot.how, snapshot.usage) = (record.how.clone(), record.usage);
                        table.replace(&mut snapshot)?;
                    }
                    // A commit of a thin layer that was not written: nobody may write into the repository, or commit nothing.
                    None => directories.unlink(snapshot.id)?,
                }
            }
            if snapshot.is_remote() {
                directories.link(snapshot.id, &snapshot.lowers)?;
            } else if !directories.has_content(snapshot.id) {
                tracing::error!(snapshot = %snapshot.info.name, id = %snapshot.id, "the files of a snapshot are gone; containers on it can't start");
                continue;
            }
            let right = Record::of(&snapshot);
            if record.as_ref() != Some(&right) {
                directories.record(&right)?;
            }
        }
        if !full {
            break;
        }
    }
    directories.sweep_shadows(&table.layers()?.into_iter().collect());
    Ok(())
}

/// The tables within a transaction.
#[derive(Debug)]
pub struct Table<'a>(&'a Connection);

const COLUMNS: &str = "s.id, s.name, s.kind, s.parent, p.name, s.created, s.updated, s.size, s.inodes, s.how";
const FROM: &str = "FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent";

impl Table<'_> {
    /// The snapshot of a name.
    pub fn get(&self, name: &str) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.name = ?1"))?;
        let found = statement.query_row([name], row).optional()?;
        self.complete(found.ok_or_else(|| Error::NotFound(name.to_owned()))?)
    }

    /// The snapshot of a number.
    pub fn by_id(&self, id: Id) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id = ?1"))?;
        let found = statement.query_row([id.0], row).optional()?;
        self.complete(found.ok_or_else(|| Error::NotFound(id.to_string()))?)
    }

    /// All that a snapshot stands on, the nearest first.
    pub fn ancestors(&self, snapshot: &Snapshot) -> Result<Vec<Snapshot>, Error> {
        let mut ancestors: Vec<Snapshot> = Vec::new();
        let mut next = snapshot.parent;
        while let Some(id) = next {
            let ancestor = self.by_id(id)?;
            next = ancestor.parent;
            ancestors.push(ancestor);
        }
        Ok(ancestors)
    }

    /// Fails if a snapshot has this name.
    pub fn ensure_free(&self, name: &str) -> Result<(), Error> {
        let mut statement = self.0.prepare_cached("SELECT 1 FROM snapshot WHERE name = ?1")?;
        if statement.exists([name])? { Err(Error::AlreadyExists(name.to_owned())) } else { Ok(()) }
    }

    /// Does another snapshot stand on this one?
    pub fn has_children(&self, id: Id) -> Result<bool, Error> {
        let mut statement = self.0.prepare_cached("SELECT 1 FROM snapshot WHERE parent = ?1 LIMIT 1")?;
        Ok(statement.exists([id.0])?)
    }

    /// Does an active snapshot or a view stand on this one, directly or not?
    pub fn has_mounted_descendant(&self, id: Id) -> Result<bool, Error> {
        let mut statement = self.0.prepare_cached(
            "WITH RECURSIVE below (id, kind) AS (
                 SELECT id, kind FROM snapshot WHERE parent = ?1
                 UNION ALL SELECT s.id, s.kind FROM snapshot s JOIN below b ON s.parent = b.id
             ) SELECT 1 FROM below WHERE kind <> 'committed' LIMIT 1",
        )?;
        Ok(statement.exists([id.0])?)
    }

    /// Adds a snapshot under the number that it has.
    pub fn insert(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.write_row(
            "INSERT INTO snapshot (id, name, kind, parent, created, updated, size, inodes, how) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            snapshot,
        )?;
        self.insert_details(snapshot)
    }

    /// Writes a snapshot under its number, where there is one. A time of change that is 0 becomes the time of creation.
    pub fn replace(&self, snapshot: &mut Snapshot) -> Result<(), Error> {
        if snapshot.info.updated == 0 {
            snapshot.info.updated = snapshot.info.created;
        }
        self.write_row(
            "UPDATE snapshot SET name = ?2, kind = ?3, parent = ?4, created = ?5, updated = ?6, size = ?7, inodes = ?8, how = ?9 WHERE id = ?1",
            snapshot,
        )?;
        for table in ["label", "lower"] {
            self.0.prepare_cached(&format!("DELETE FROM {table} WHERE snapshot = ?1"))?.execute([snapshot.id.0])?;
        }
        self.insert_details(snapshot)
    }

    fn write_row(&self, statement: &str, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { id, parent, info, how, usage, .. } = snapshot;
        let (parent, (size, inodes)) = (parent.map(|id| id.0), columns(*usage));
        let kind = info.kind.as_str();
        self.0.prepare_cached(statement)?.execute(params![
            id.0,
            info.name,
            kind,
            parent,
            info.created,
            info.updated,
            size,
            inodes,
            how
        ])?;
        Ok(())
    }

    /// What is not in the row itself.
    fn insert_details(&self, Snapshot { id, info, lowers, .. }: &Snapshot) -> Result<(), Error> {
        let mut statement = self.0.prepare_cached("INSERT INTO label (snapshot, key, value) VALUES (?1, ?2, ?3)")?;
        for (key, value) in &info.labels {
            statement.execute(params![id.0, key, value])?;
        }
        let mut statement = self.0.prepare_cached(
            "INSERT INTO lower (snapshot, position, repository, layer, part) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for (position, lower) in lowers.iter().enumerate() {
            let position = i64::try_from(position).expect("a stack has at most 500 directories");
            statement.execute(params![id.0, position, lower.repository, lower.layer.hex(), lower.part.as_str()])?;
        }
        Ok(())
    }

    /// Takes a snapshot away.
    pub fn delete(&self, id: Id) -> Result<(), Error> {
        self.0.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([id.0])?;
        Ok(())
    }

    /// At most `limit` snapshots with numbers after `last`; only those with a label, if one is given.
    pub fn page(&self, last: Option<Id>, limit: usize, label: Option<(&str, &str)>) -> Result<Vec<Snapshot>, Error> {
        let after = last.map_or(0, |id| id.0);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found: Vec<Snapshot> = match label {
            None => {
                let mut statement = self
                    .0
                    .prepare_cached(&format!("SELECT {COLUMNS} {FROM} WHERE s.id > ?1 ORDER BY s.id LIMIT ?2"))?;
                statement.query_map([after, limit], row)?.collect::<Result<_, _>>()?
            }
            Some((key, value)) => {
                let mut statement = self.0.prepare_cached(&format!(
                    "SELECT {COLUMNS} {FROM} WHERE s.id > ?1 AND s.id IN (SELECT snapshot FROM label WHERE key = ?3 AND value = ?4)
                     ORDER BY s.id LIMIT ?2"
                ))?;
                statement.query_map(params![after, limit, key, value], row)?.collect::<Result<_, _>>()?
            }
        };
        found.into_iter().map(|snapshot| self.complete(snapshot)).collect()
    }

    /// How many snapshots there are of each kind, those of repositories apart.
    pub fn counts(&self) -> Result<Counts, Error> {
        let mut statement = self.0.prepare_cached(
            "SELECT kind, EXISTS (SELECT 1 FROM lower WHERE snapshot = s.id) AS remote, count(*) FROM snapshot s GROUP BY 1, 2",
        )?;
        let mut counts = Counts::default();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (kind, remote, count): (String, bool, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let count = count.unsigned_abs();
            match (kind.as_str(), remote) {
                ("active", _) => counts.active += count,
                ("view", _) => counts.views += count,
                (_, true) => counts.remote += count,
                (_, false) => counts.local += count,
            }
        }
        Ok(counts)
    }

    /// Layers of repositories that snapshots stand for, each once.
    pub fn layers(&self) -> Result<Vec<(String, LayerDigest)>, Error> {
        let mut statement = self.0.prepare_cached("SELECT DISTINCT repository, layer FROM lower")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        let mut layers = Vec::new();
        for row in rows {
            let (repository, hex) = row?;
            layers.extend(LayerDigest::parse(&format!("sha256:{hex}")).ok().map(|layer| (repository, layer)));
        }
        Ok(layers)
    }

    /// Adds what is not in the row itself.
    fn complete(&self, mut snapshot: Snapshot) -> Result<Snapshot, Error> {
        let mut statement = self.0.prepare_cached("SELECT key, value FROM label WHERE snapshot = ?1")?;
        let labels = statement.query_map([snapshot.id.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        snapshot.info.labels = labels.collect::<Result<Labels, _>>()?;
        let mut statement =
            self.0.prepare_cached("SELECT repository, layer, part FROM lower WHERE snapshot = ?1 ORDER BY position")?;
        let mut rows = statement.query([snapshot.id.0])?;
        while let Some(row) = rows.next()? {
            let (layer, part): (String, String) = (row.get(1)?, row.get(2)?);
            let layer = LayerDigest::parse(&format!("sha256:{layer}")).map_err(|_| invalid(1))?;
            snapshot.lowers.push(Lower {
                repository: row.get(0)?,
                layer,
                part: Part::parse(&part).ok_or_else(|| invalid(2))?,
            });
        }
        Ok(snapshot)
    }
}

/// Snapshots by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// writable ones
    pub active: u64,
    /// views
    pub views: u64,
    /// committed ones that stand for directories of repositories
    pub remote: u64,
    /// committed ones with files of their own
    pub local: u64,
}

/// Disk usage as columns.
fn columns(usage: Option<Usage>) -> (Option<i64>, Option<i64>) {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    (usage.map(|usage| number(usage.size)), usage.map(|usage| number(usage.inodes)))
}

fn invalid(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "text of a kind that is not known".into(), rusqlite::types::Type::Text)
}

fn row(row: &Row<'_>) -> Result<Snapshot, rusqlite::Error> {
    let kind = match row.get_ref(2)?.as_str()? {
        "view" => Kind::View,
        "active" => Kind::Active,
        "committed" => Kind::Committed,
        _ => return Err(invalid(2)),
    };
    let usage = match (row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?) {
        (Some(size), Some(inodes)) => Some(Usage { size: size.unsigned_abs(), inodes: inodes.unsigned_abs() }),
        _ => None,
    };
    Ok(Snapshot {
        id: Id(row.get(0)?),
        parent: row.get::<_, Option<i64>>(3)?.map(Id),
        info: Info {
            name: row.get(1)?,
            parent: row.get(4)?,
            kind,
            created: row.get(5)?,
            updated: row.get(6)?,
            labels: Labels::new(),
        },
        lowers: Vec::new(),
        how: row.get(9)?,
        usage,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct State {
        directory: tempfile::TempDir,
        directories: Directories,
    }

    impl State {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let directories = Directories::open(&directory.path().join("s"), HashMap::new()).unwrap();
            Self { directory, directories }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join("s").join(name)
        }
    }

    fn info(name: &str, parent: Option<&str>, kind: Kind) -> Info {
        let labels = [("n".to_owned(), name.to_owned())].into();
        Info { name: name.into(), parent: parent.map(str::to_owned), kind, created: 1, updated: 0, labels }
    }

    fn add(metadata: &Metadata, name: &str, parent: Option<&str>, kind: Kind) -> Snapshot {
        let info = info(name, parent, kind);
        let parent = parent.map(str::to_owned);
        let id = metadata.number();
        metadata
            .write(move |table| {
                let parent = parent.map(|parent| table.get(&parent)).transpose()?.map(|parent| parent.id);
                let snapshot = Snapshot { id, parent, info, lowers: Vec::new(), how: None, usage: None };
                table.insert(&snapshot)?;
                Ok(snapshot)
            })
            .unwrap()
    }

    #[test]
    fn a_change_that_fails_is_undone_alone() {
        let state = State::new();
        let metadata = Arc::new(Metadata::open(&state.directories).unwrap());
        let workers = (0..200).map(|number| {
            let metadata = Arc::clone(&metadata);
            std::thread::spawn(move || {
                let info = info(&number.to_string(), None, Kind::Active);
                let id = metadata.number();
                let made = Snapshot { id, parent: None, info, lowers: Vec::new(), how: None, usage: None };
                metadata.write(move |table| {
                    table.insert(&made)?;
                    if number % 2 == 0 { Ok(made.id) } else { Err(Error::InvalidArgument(number.to_string())) }
                })
            })
        });
        let answers: Vec<_> = workers.collect::<Vec<_>>().into_iter().map(|worker| worker.join().unwrap()).collect();
        for (number, answer) in answers.iter().enumerate() {
            let found = metadata.read(|table| table.get(&number.to_string()));
            match answer {
                Ok(id) => assert_eq!(found.unwrap().id, *id),
                Err(_) => assert!(matches!(found, Err(Error::NotFound(_))), "{number}"),
            }
        }
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
    }

    #[test]
    fn what_is_used_below_is_seen_from_above() {
        let state = State::new();
        let metadata = Metadata::open(&state.directories).unwrap();
        let base = add(&metadata, "base", None, Kind::Committed);
        let middle = add(&metadata, "middle", Some("base"), Kind::Committed);
        let top = add(&metadata, "top", Some("middle"), Kind::Committed);
        let other = add(&metadata, "other", Some("base"), Kind::Committed);
        let used = |id: Id| metadata.read(|table| table.has_mounted_descendant(id)).unwrap();
        assert!(![&base, &middle, &top, &other].into_iter().any(|snapshot| used(snapshot.id)));
        add(&metadata, "view", Some("middle"), Kind::View);
        assert_eq!([&base, &middle, &top, &other].map(|snapshot| used(snapshot.id)), [true, true, false, false]);
        let ancestors = metadata.read(|table| table.ancestors(&top)).unwrap();
        assert_eq!(
            ancestors.iter().map(|snapshot| snapshot.info.name.as_str()).collect::<Vec<_>>(),
            ["middle", "base"]
        );
    }

    #[test]
    fn numbers_are_never_used_twice() {
        let state = State::new();
        let metadata = Metadata::open(&state.directories).unwrap();
        let first = add(&metadata, "a", None, Kind::Active).id;
        metadata.write(move |table| table.delete(first)).unwrap();
        let second = add(&metadata, "a", None, Kind::Active).id;
        assert!(second > first);
        metadata.write(move |table| table.delete(second)).unwrap();
        drop(metadata);
        let metadata = Metadata::open(&state.directories).unwrap();
        assert!(add(&metadata, "a", None, Kind::Active).id > second);
    }

    #[test]
    fn pages_are_those_of_the_label_and_in_order() {
        let state = State::new();
        let metadata = Metadata::open(&state.directories).unwrap();
        for number in 0..10 {
            add(&metadata, &number.to_string(), None, Kind::Active);
        }
        let names = |last, limit, label| -> Vec<String> {
            let page = metadata.read(|table| table.page(last, limit, label)).unwrap();
            page.into_iter().map(|snapshot| snapshot.info.name).collect()
        };
        assert_eq!(names(None, 3, None), ["0", "1", "2"]);
        assert_eq!(names(Some(Id(8)), 3, None), ["8", "9"]);
        assert_eq!(names(None, 3, Some(("n", "7"))), ["7"]);
        assert_eq!(names(Some(Id(8)), 3, Some(("n", "7"))), [""; 0]);
        assert_eq!(names(None, 3, Some(("other", "7"))), [""; 0]);
    }

    /// Records of directories, each with a row that a rebuild should make.
    fn record(state: &State, id: i64, name: &str, parent: Option<&str>) {
        state.directories.create(Id(id), Kind::Active, None).unwrap();
        let info = Info { updated: 1, ..info(name, parent, Kind::Committed) };
        let snapshot = Snapshot { id: Id(id), parent: None, info, lowers: Vec::new(), how: None, usage: None };
        state.directories.record(&Record::of(&snapshot)).unwrap();
    }

    #[test]
    fn a_rebuild_takes_parents_first_and_sets_aside_what_has_none() {
        let state = State::new();
        // Unpacked side by side: a parent may have the higher number.
        record(&state, 1, "top", Some("base"));
        record(&state, 2, "base", None);
        record(&state, 3, "orphan", Some("absent"));
        record(&state, 4, "child of the orphan", Some("orphan"));
        record(&state, 5, "a", Some("b"));
        record(&state, 6, "b", Some("a"));
        record(&state, 7, "twice", None);
        record(&state, 8, "twice", None);
        let (metadata, count) = Metadata::rebuild(&state.directories).unwrap();
        assert_eq!(count, 3);
        let names: Vec<(i64, String)> = metadata
            .read(|table| table.page(None, 100, None))
            .unwrap()
            .into_iter()
            .map(|snapshot| (snapshot.id.0, snapshot.info.name))
            .collect();
        assert_eq!(names, [(1, "top".into()), (2, "base".into()), (8, "twice".into())]);
        for id in [3, 4, 5, 6, 7] {
            assert!(state.path(&format!("snapshots/lost-{id}/snapshot.json")).exists(), "{id}");
        }
        assert_eq!(add(&metadata, "new", None, Kind::Active).id, Id(9));
    }

    #[test]
    fn a_start_takes_away_what_a_kill_left_and_keeps_what_has_a_row() {
        let state = State::new();
        let metadata = Metadata::open(&state.directories).unwrap();
        let kept = add(&metadata, "kept", None, Kind::Active).id;
        drop(metadata);
        state.directories.create(kept, Kind::Active, None).unwrap();
        let own = state.directories.own(kept).content;
        std::fs::write(own.join("file"), "").unwrap();
        // A directory of a change that was never committed has nothing in it.
        state.directories.create(Id(kept.0 + 1), Kind::Active, None).unwrap();
        drop(Metadata::open(&state.directories).unwrap());
        assert_eq!(state.directories.numbers().unwrap(), [kept]);
        assert!(own.join("file").exists());
        assert_eq!(state.directories.read_record(kept).map(|record| record.name), Some("kept".into()));
        // One with files was there for somebody.
        state.directories.create(Id(kept.0 + 1), Kind::Active, None).unwrap();
        std::fs::write(state.directories.own(Id(kept.0 + 1)).content.join("file"), "").unwrap();
        let error = Metadata::open(&state.directories).expect_err("rows are missing");
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert_eq!(state.directories.numbers().unwrap().len(), 2);
    }

    #[test]
    fn an_active_snapshot_never_stands_for_a_repository() {
        let state = State::new();
        let metadata = Metadata::open(&state.directories).unwrap();
        let id = add(&metadata, "active", None, Kind::Active).id;
        drop(metadata);
        // The commit of a thin layer that made its links and its record, and was killed then.
        state.directories.create(id, Kind::Active, None).unwrap();
        let layer = LayerDigest::of(b"x");
        let lowers = vec![Lower { repository: "a.b".into(), layer, part: Part::Content }];
        let info = info("committed", None, Kind::Committed);
        let snapshot = Snapshot { id, parent: None, info, lowers, how: None, usage: None };
        state.directories.link(id, &snapshot.lowers).unwrap();
        state.directories.record(&Record::of(&snapshot)).unwrap();
        let metadata = Metadata::open(&state.directories).unwrap();
        let active = metadata.read(|table| table.get("active")).unwrap();
        assert!(!active.is_remote() && !state.directories.is_linked(id) && !state.directories.has_content(id));
    }
}
