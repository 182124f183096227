//! The database of snapshots: SQLite, one writer, many readers.
//!
//! A change is durable when it is answered. As each takes a flush of the disk, changes that come in meanwhile share the next one:
//! the writer takes all that wait, each in a savepoint of its own, and commits them together. What fails is undone alone.
//!
//! Readers never wait for the writer. The file is checked when it is opened; one that is damaged is never replaced without being
//! asked ([`Metadata::rebuild`]), and never deleted.

mod table;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};

use crate::directories::{Directories, Record};
use crate::error::Error;
use crate::snapshots::{Id, Kind, Snapshot};

pub use table::{Counts, Table};

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

#[cfg(test)]
mod tests;
