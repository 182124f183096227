//! Threads that fetch what the walk asks for: many requests in flight, each object once, nothing visible unverified.
//!
//! ```text
//! walk ── want(object) ──▶ bounded queue ──▶ threads ──▶ storage, under its name
//!      ── begin(database) ─▶ goes first  ──▶          ──▶ scratch files, until the walk stores it
//! ```
//!
//! Invariants
//! - An object that several catalogs refer to at once is fetched once; each [`Pending`] that waits for it is told.
//! - The queue is bounded: who asks faster than the server answers waits.
//! - After the first failure nothing new is begun; what is under way ends soon, and the walk gets that failure.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use cvmfs::hash::{Hasher, ObjectId};
use cvmfs::object::{Compression, Inflater, ObjectError};
use cvmfs::path::RepoPath;
use cvmfs::store::{DATABASE_LIMIT, Staged, Store, Stored};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tempfile::{NamedTempFile, TempPath};

use super::error::ReplicateError;
use super::remote::{Remote, Sink, SinkError};

/// Objects that wait for a thread, for each thread.
const WAITING: usize = 4;

/// How many objects a catalog still waits for.
#[derive(Debug, Default)]
pub(super) struct Pending(AtomicUsize);

impl Pending {
    /// Whether everything is there.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// Who refers to an object, for messages.
#[derive(Debug, Clone)]
pub(super) struct Referrer {
    /// Where the catalog is mounted.
    pub(super) catalog: Arc<RepoPath>,
    /// Name of the file.
    pub(super) name: Box<[u8]>,
}

#[derive(Debug)]
struct Wanted {
    id: ObjectId,
    limit: u64,
    referrer: Referrer,
}

/// A catalog or tag database that has come: as it was sent, and inflated.
#[derive(Debug)]
pub(super) struct Database {
    /// Stored bytes, verified.
    pub(super) stored: TempPath,
    /// Plain database.
    pub(super) plain: TempPath,
}

#[derive(Debug)]
struct WantedDatabase {
    id: ObjectId,
    /// Plain bytes, if known.
    size: u64,
    what: String,
}

#[derive(Debug, Default)]
struct State {
    objects: VecDeque<Wanted>,
    databases: VecDeque<WantedDatabase>,
    /// Waiting or being fetched.
    in_flight: HashMap<ObjectId, Vec<Arc<Pending>>>,
    /// Begun; what came of it once it has ended.
    begun: HashMap<ObjectId, Option<Result<Database, ReplicateError>>>,
    failure: Option<ReplicateError>,
    closed: bool,
}

/// What was done, for the report.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Objects stored, catalogs included.
    pub(super) objects: AtomicU64,
    /// Their stored bytes.
    pub(super) bytes: AtomicU64,
    /// References to objects that were there already.
    pub(super) present: AtomicU64,
}

/// The threads and what they work on.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    remote: &'a Remote,
    store: &'a dyn Store,
    scratch: &'a Path,
    capacity: usize,
    state: Mutex<State>,
    /// Something can be fetched, or nothing ever again.
    work: Condvar,
    /// Something has been fetched, or has failed.
    done: Condvar,
    pub(super) tally: Tally,
}

impl<'a> Pool<'a> {
    /// Runs `body` with that many threads at its service.
    pub(super) fn run<T>(
        remote: &'a Remote,
        store: &'a dyn Store,
        scratch: &'a Path,
        threads: usize,
        body: impl FnOnce(&Pool<'a>) -> Result<T, ReplicateError>,
    ) -> Result<T, ReplicateError> {
        let pool = Pool {
            remote,
            store,
            scratch,
            capacity: threads * WAITING,
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            tally: Tally::default(),
        };
        thread::scope(|scope| {
            let _close = Close(&pool);
            for _ in 0..threads.max(1) {
                scope.spawn(|| pool.serve());
            }
            body(&pool)
        })
    }

    /// The storage of the copy.
    pub(super) fn store(&self) -> &'a dyn Store {
        self.store
    }

    /// Directory for scratch files.
    pub(super) fn scratch(&self) -> &'a Path {
        self.scratch
    }

    /// The object must be in the storage before `pending` is over. Its stored form has at most `limit` bytes.
    pub(super) fn want(
        &self,
        id: ObjectId,
        limit: u64,
        referrer: impl FnOnce() -> Referrer,
        pending: &Arc<Pending>,
    ) -> Result<(), ReplicateError> {
        let mut state = self.state.lock();
        self.check(&mut state)?;
        if let Some(waiting) = state.in_flight.get_mut(&id) {
            pending.0.fetch_add(1, Ordering::AcqRel);
            waiting.push(pending.clone());
            return Ok(());
        }
        // Asked under the lock: what is no longer in flight is in the storage by now.
        if self.store.exists(id)? {
            self.tally.present.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        while state.objects.len() >= self.capacity {
            self.done.wait(&mut state);
            self.check(&mut state)?;
        }
        pending.0.fetch_add(1, Ordering::AcqRel);
        state.in_flight.insert(id, vec![pending.clone()]);
        state.objects.push_back(Wanted { id, limit, referrer: referrer() });
        self.work.notify_one();
        Ok(())
    }

    /// Begins to fetch a database, unless that was done before. `size` is that of the plain file, 0 if unknown.
    pub(super) fn begin(&self, id: ObjectId, size: u64, what: impl FnOnce() -> String) {
        let mut state = self.state.lock();
        if state.begun.contains_key(&id) {
            return;
        }
        state.begun.insert(id, None);
        state.databases.push_back(WantedDatabase { id, size, what: what() });
        self.work.notify_one();
    }

    /// Waits for a database that was begun, and takes it.
    pub(super) fn take(&self, id: ObjectId) -> Result<Database, ReplicateError> {
        let mut state = self.state.lock();
        loop {
            self.check(&mut state)?;
            match state.begun.get(&id) {
                Some(Some(_)) => break,
                Some(None) => self.done.wait(&mut state),
                None => return Err(ReplicateError::Died(id)),
            }
        }
        state.begun.remove(&id).flatten().unwrap_or(Err(ReplicateError::Died(id)))
    }

    /// Waits until everything that `pending` stands for is in the storage.
    pub(super) fn wait(&self, pending: &Pending) -> Result<(), ReplicateError> {
        let mut state = self.state.lock();
        loop {
            self.check(&mut state)?;
            if pending.is_over() {
                return Ok(());
            }
            self.done.wait(&mut state);
        }
    }

    /// Stores a database under its name. The caller knows that all it refers to is there.
    pub(super) fn keep(&self, id: ObjectId, stored: &Path) -> Result<(), ReplicateError> {
        let mut file = File::open(stored).map_err(ReplicateError::io("read", stored))?;
        let mut staged = self.store.stage()?;
        io::copy(&mut file, &mut staged).map_err(ReplicateError::io("copy", stored))?;
        self.count(staged.commit(id)?);
        Ok(())
    }

    /// Counts an object that was put into the storage.
    pub(super) fn count(&self, stored: Stored) {
        if let Stored::New(bytes) = stored {
            self.tally.objects.fetch_add(1, Ordering::Relaxed);
            self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn check(&self, state: &mut MutexGuard<'_, State>) -> Result<(), ReplicateError> {
        state.failure.take().map_or(Ok(()), |failure| {
            state.closed = true;
            Err(failure)
        })
    }

    /// What each thread does.
    fn serve(&self) {
        loop {
            let mut state = self.state.lock();
            let job = loop {
                if state.closed || state.failure.is_some() {
                    return;
                }
                if let Some(database) = state.databases.pop_front() {
                    break Err(database);
                }
                if let Some(object) = state.objects.pop_front() {
                    break Ok(object);
                }
                self.work.wait(&mut state);
            };
            drop(state);
            match job {
                Ok(object) => {
                    let alarm = Alarm { pool: self, id: object.id };
                    let result = self.fetch(&object);
                    drop(alarm);
                    self.finished(object.id, result);
                }
                Err(database) => {
                    let alarm = Alarm { pool: self, id: database.id };
                    let result = self.fetch_database(&database);
                    drop(alarm);
                    self.state.lock().begun.insert(database.id, Some(result));
                    self.done.notify_all();
                }
            }
        }
    }

    fn finished(&self, id: ObjectId, result: Result<(), ReplicateError>) {
        let mut state = self.state.lock();
        match result {
            Ok(()) => {
                for pending in state.in_flight.remove(&id).unwrap_or_default() {
                    pending.0.fetch_sub(1, Ordering::AcqRel);
                }
            }
            Err(error) => self.fail(&mut state, error),
        }
        self.done.notify_all();
    }

    fn fail(&self, state: &mut MutexGuard<'_, State>, error: ReplicateError) {
        if !state.closed {
            state.failure.get_or_insert(error);
        }
        self.work.notify_all();
    }

    fn fetch(&self, wanted: &Wanted) -> Result<(), ReplicateError> {
        let Wanted { id, limit, referrer } = wanted;
        let mut sink = ObjectSink {
            store: self.store,
            id: *id,
            limit: *limit,
            hasher: Hasher::new(id.hash.algorithm),
            received: 0,
            staged: None,
        };
        let what = || {
            let name = String::from_utf8_lossy(&referrer.name);
            format!("object {id} ({name:?} in the catalog of {})", referrer.catalog)
        };
        self.remote.get(&id.path(), &what, &mut sink)?;
        let staged = sink.staged.expect("an attempt that succeeded has staged its bytes");
        self.count(staged.commit(*id)?);
        Ok(())
    }

    fn fetch_database(&self, wanted: &WantedDatabase) -> Result<Database, ReplicateError> {
        let plain_limit = if wanted.size == 0 { DATABASE_LIMIT } else { wanted.size.min(DATABASE_LIMIT) };
        let mut sink = DatabaseSink {
            scratch: self.scratch,
            id: wanted.id,
            stored_limit: stored_limit(plain_limit),
            received: 0,
            files: None,
            plain: None,
        };
        self.remote.get(&wanted.id.path(), &|| wanted.what.clone(), &mut sink)?;
        let (stored, plain) = sink.files.expect("an attempt that succeeded has its files");
        Ok(Database { stored: stored.into_temp_path(), plain: plain.into_temp_path() })
    }
}

/// The most that the stored form of so many plain bytes may take. Compressors add a few bytes to what does not
/// compress; catalogs that are a little wrong about sizes do no harm here.
pub(super) fn stored_limit(plain: u64) -> u64 {
    plain.saturating_mul(2).saturating_add(1 << 20)
}

/// Lets the threads go, whatever became of the walk.
struct Close<'p, 'a>(&'p Pool<'a>);

impl Drop for Close<'_, '_> {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.remote.stop();
        self.0.work.notify_all();
    }
}

/// Says so when a thread dies, or the walk would wait for ever.
struct Alarm<'p, 'a> {
    pool: &'p Pool<'a>,
    id: ObjectId,
}

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.pool.finished(self.id, Err(ReplicateError::Died(self.id)));
        }
    }
}

/// Takes the stored bytes of an object straight into the storage.
struct ObjectSink<'a> {
    store: &'a dyn Store,
    id: ObjectId,
    limit: u64,
    hasher: Hasher,
    received: u64,
    staged: Option<Box<dyn Staged + 'a>>,
}

impl Sink for ObjectSink<'_> {
    fn restart(&mut self) -> Result<(), SinkError> {
        self.hasher = Hasher::new(self.id.hash.algorithm);
        self.received = 0;
        self.staged = Some(self.store.stage().map_err(|e| SinkError::Local(e.into()))?);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.received += bytes.len() as u64;
        bounded(self.received, self.limit)?;
        self.hasher.update(bytes);
        let staged = self.staged.as_mut().expect("an attempt begins with a restart");
        let place = self.store.place();
        staged.write_all(bytes).map_err(|e| SinkError::Local(ReplicateError::io("write an object in", place)(e)))
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let found = std::mem::replace(&mut self.hasher, Hasher::new(self.id.hash.algorithm)).finish();
        if found == self.id.hash {
            return Ok(());
        }
        Err(SinkError::Wrong(format!("{} bytes came, which hash to {found}", self.received)))
    }
}

/// Takes a database into two files: as it comes, and inflated.
struct DatabaseSink<'a> {
    scratch: &'a Path,
    id: ObjectId,
    stored_limit: u64,
    received: u64,
    files: Option<(NamedTempFile, NamedTempFile)>,
    plain: Option<Inflater<File>>,
}

impl DatabaseSink<'_> {
    fn local(&self, error: io::Error) -> SinkError {
        SinkError::Local(ReplicateError::io("write a temporary file in", self.scratch)(error))
    }

    fn judged(&self, error: ObjectError) -> SinkError {
        match error {
            ObjectError::Write(_, error) => self.local(error),
            wrong => SinkError::Wrong(wrong.to_string()),
        }
    }
}

impl Sink for DatabaseSink<'_> {
    fn restart(&mut self) -> Result<(), SinkError> {
        let file = || tempfile::Builder::new().prefix("database.").tempfile_in(self.scratch);
        let open = || {
            let (stored, plain) = (file()?, file()?);
            let out = plain.reopen()?;
            Ok((stored, plain, out))
        };
        let (stored, plain, out) = open().map_err(|e| self.local(e))?;
        self.received = 0;
        self.files = Some((stored, plain));
        self.plain = Some(Inflater::new(self.id, Compression::Zlib, DATABASE_LIMIT, out));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.received += bytes.len() as u64;
        bounded(self.received, self.stored_limit)?;
        let (Some((stored, _)), Some(plain)) = (&mut self.files, &mut self.plain) else {
            unreachable!("an attempt begins with a restart")
        };
        // The size of a database may be unknown, but it ends where its stream does.
        if plain.is_ended() {
            return Err(SinkError::Wrong(format!("more bytes come after its end, {} by now", self.received)));
        }
        let written = stored.write_all(bytes);
        let inflated = plain.push(bytes);
        written.map_err(|e| self.local(e))?;
        inflated.map_err(|e| self.judged(e))
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let plain = self.plain.take().expect("an attempt begins with a restart");
        plain.finish().map(drop).map_err(|e| self.judged(e))
    }
}

fn bounded(received: u64, limit: u64) -> Result<(), SinkError> {
    if received <= limit {
        return Ok(());
    }
    Err(SinkError::Wrong(format!("more than {limit} bytes, which is more than it can have")))
}
