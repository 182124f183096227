//! Objects: from the cache, or downloaded, verified and put into it.
//!
//! Promises
//! - What is handed out has matched its hash, and the size the catalog gives it.
//! - One object is downloaded once, however many ask for it at the same time.
//! - Memory does not depend on the size of an object: stored bytes are hashed and inflated as they come, or in one go
//!   where they are few (`fetch/sink.rs`), and written to a file of the cache, which gets its name only when everything was right.
//! - An answer is read no further than its object can be long, so neither streams that inflate without end
//!   nor streams that never inflate fill anything.
//! - Files that cannot be had, one after another, are slowed down.
//! - What nobody waits for gives way to what somebody does ([`lanes`]), and its failure is nobody's but its own:
//!   whoever asks for the object meanwhile downloads it himself.

mod connect;
mod driver;
mod geo;
pub mod http;
pub mod lanes;
pub mod ledger;
pub mod pace;
mod resolve;
pub mod route;
pub mod selection;
mod sink;
mod throttle;
mod tls;

use std::collections::HashMap;
use std::collections::hash_map;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Compression;
use parking_lot::{Condvar, Mutex};

use crate::cache::{CacheError, CacheKey, DiskCache, Form};
use crate::config::{Config, NetworkLimits};
use crate::log::Seldom;
use crate::stats::Stats;
use http::{Transport, TransportError};
use lanes::Lane;
use ledger::{Guess, Ledger};
use pace::Pace;
use sink::{Benches, ObjectSink};
use throttle::Throttle;

/// An object cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No server gave it.
    #[error("cannot download object {object}: {reason}")]
    Unavailable {
        /// The object.
        object: ObjectId,
        /// Last address and its failure.
        reason: String,
    },
    /// Servers gave wrong bytes.
    #[error("object {object} is corrupt on every server: {reason}")]
    Corrupt {
        /// The object.
        object: ObjectId,
        /// Last address and what was wrong.
        reason: String,
    },
    /// The object is right, but has another size than its catalog says.
    #[error("object {object} has {found} plain bytes where its catalog says {expected}")]
    Size {
        /// The object.
        object: ObjectId,
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// No server for external files is configured.
    #[error("object {0} is external data, but CVMFS_EXTERNAL_URL is not set")]
    NoExternalServer(ObjectId),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The thread that was downloading it ended without a result.
    #[error("the download of object {0} was given up")]
    Abandoned(ObjectId),
}

/// Where the bytes of an object are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Below `data/`.
    Store,
    /// Beside the manifest, under `.cvmfsalt-<hash>`, for servers that protect `data/`.
    Alternative,
    /// Outside: the path of the file on the external servers, and the part of it.
    External {
        /// Escaped path without leading slash.
        path: String,
        /// First byte and length, for one chunk of a file.
        range: Option<(u64, u64)>,
    },
}

/// An object somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Its name.
    pub object: ObjectId,
    /// How it is stored.
    pub compression: Compression,
    /// Plain size, where known for sure.
    pub size: Option<u64>,
    /// Largest plain size to accept.
    pub limit: u64,
    /// Where it is.
    pub source: Source,
}

impl Want {
    /// An object of the store whose plain size is known.
    pub fn sized(object: ObjectId, compression: Compression, size: u64) -> Want {
        Want { object, compression, size: Some(size), limit: size, source: Source::Store }
    }

    /// An object of the store, always compressed, of at most `limit` plain bytes.
    pub fn bounded(object: ObjectId, limit: u64) -> Want {
        Want { object, compression: Compression::Zlib, size: None, limit, source: Source::Store }
    }

    /// Most bytes the object can have as it is stored.
    fn stored_limit(&self) -> u64 {
        stored_limit(self.limit)
    }

    /// Whether it is what readers of files wait for, and no catalog or certificate.
    fn is_content(&self) -> bool {
        matches!(self.object.kind, ObjectKind::File | ObjectKind::Chunk)
    }

    fn key(&self) -> CacheKey {
        CacheKey { hash: self.object.hash, form: Form::Stored(self.compression) }
    }
}

/// Most bytes that so many plain ones are stored in: what can't be compressed grows a little.
const fn stored_limit(plain: u64) -> u64 {
    plain.saturating_add(plain / 16).saturating_add(64 * 1024)
}

/// Whether an operation may wait for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Only what is on this machine.
    No,
    /// Downloads where needed.
    Yes,
    /// The same for a process, which takes turns with others.
    For(u32),
    /// Downloads where needed, when nobody else wants the network, and not after [`Objects::end_ahead`].
    Ahead,
}

/// A reader who waits longer than this, and a second more for each MB, while others are served ahead is told of.
const PATIENCE: Duration = Duration::from_secs(1);

/// Result of a fetch, shared by all who asked.
pub type Fetched = Result<Arc<File>, Arc<FetchError>>;

/// Cache and servers of one repository.
#[derive(Debug)]
pub struct Objects {
    cache: DiskCache,
    transport: Transport,
    external: Option<Transport>,
    external_limits: NetworkLimits,
    flights: Mutex<HashMap<CacheKey, Arc<Flight>>>,
    benches: Benches,
    throttle: Throttle,
    ledger: Ledger,
    pace: Pace,
    remarks: Seldom,
    stats: Arc<Stats>,
}

impl Objects {
    /// Opens the cache and prepares the connections that `config` names.
    pub fn new(config: &Config, runtime: &tokio::runtime::Handle, stats: &Arc<Stats>) -> Result<Objects, CacheError> {
        let transport =
            |network, limits, selection| Transport::new(network, limits, selection, runtime.clone(), stats.clone());
        let external = |network| transport(network, config.external_limits, config.selection.of_external());
        Ok(Objects {
            cache: DiskCache::open_for(config.cache_sharing, &config.cache, config.cache_limit)?,
            transport: transport(config.network.clone(), config.limits, config.selection.clone()),
            external: config.external.clone().map(external),
            external_limits: config.external_limits,
            flights: Mutex::default(),
            benches: Benches::default(),
            throttle: Throttle::default(),
            ledger: Ledger::default(),
            pace: Pace::default(),
            remarks: Seldom::default(),
            stats: stats.clone(),
        })
    }

    /// The cache.
    pub fn cache(&self) -> &DiskCache {
        &self.cache
    }

    /// The servers of the repository.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The servers of external files.
    pub fn external(&self) -> Option<&Transport> {
        self.external.as_ref()
    }

    /// Timeouts and retries for external files.
    pub fn external_limits(&self) -> NetworkLimits {
        self.external_limits
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How long servers take to answer.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// What was fetched ahead, and what became of it.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Ends what is being fetched ahead, and lets nothing more begin.
    pub fn end_ahead(&self) {
        std::iter::once(&self.transport).chain(&self.external).for_each(|transport| transport.lanes().close());
    }

    /// The object, when the cache has it.
    pub fn cached(&self, want: &Want) -> Option<Arc<File>> {
        self.cached_and_new(want).map(|(file, _)| file)
    }

    /// The object when the cache has it; and if it was fetched ahead and nobody had opened it so far, whether it was
    /// guessed.
    pub fn cached_and_new(&self, want: &Want) -> Option<(Arc<File>, Option<bool>)> {
        let file = self.cache.get(want.key(), want.size)?;
        self.stats.cache_hits.add(1);
        Some((Arc::new(file), self.ledger.claim(want.key())))
    }

    /// Whether the cache has the object, for somebody who does not want to read it.
    pub fn has(&self, want: &Want) -> bool {
        self.cache.get(want.key(), want.size).is_some()
    }

    /// Removes an object that verified and is unusable all the same, such as a damaged cache file.
    pub fn discard(&self, want: &Want) {
        self.cache.remove(want.key());
    }

    /// The object; `None` when it has to be downloaded and `wait` forbids it.
    pub fn open(&self, want: &Want, wait: Wait) -> Result<Option<Arc<File>>, Arc<FetchError>> {
        match wait {
            Wait::No => Ok(self.cached(want)),
            Wait::Yes => self.fetch(want).map(Some),
            Wait::For(process) => self.fetch_for(want, process).map(Some),
            Wait::Ahead => self.fetch_ahead(want, None).map(Some),
        }
    }

    /// The object, downloaded when the cache does not have it. May take as long as timeouts and retries allow.
    pub fn fetch(&self, want: &Want) -> Fetched {
        self.fetch_for(want, 0)
    }

    fn fetch_for(&self, want: &Want, process: u32) -> Fetched {
        loop {
            if let Some(file) = self.cached(want) {
                return Ok(file);
            }
            let landing = match self.board(want.key(), false) {
                Boarding::First(landing) => landing,
                Boarding::Taken(flight) => match flight.wait() {
                    // What nobody waited for when it began was perhaps given up, or not tried hard.
                    Err(_) if flight.ahead => continue,
                    result => {
                        self.ledger.claim(want.key());
                        return result;
                    }
                },
            };
            // Another flight may have landed between the look into the cache and ours being announced.
            if let Some(file) = self.cached(want) {
                return landing.land(Ok(file));
            }
            self.stats.cache_misses.add(1);
            let (began, beside) = (Instant::now(), self.transport.lanes().in_use().1);
            let result = self.transport_of(want).and_then(|transport| {
                let lane = transport.lanes().demand(process);
                self.download(want, transport, lane)
            });
            match &result {
                Ok(file) => {
                    let (bytes, took) = (size_of(file), began.elapsed());
                    if want.is_content() {
                        self.ledger.demanded(bytes);
                    }
                    if bytes <= pace::SMALL {
                        self.pace.answered(took);
                    }
                    self.remark(want, took, bytes, beside);
                }
                Err(error) => {
                    tracing::debug!(object = %want.object, %error, "download failed");
                    // Programs that open what cannot be had again and again must not wear servers out. Whoever asks
                    // for it meanwhile waits with us. A catalog fails for a whole tree at once and is no sign of that.
                    if want.is_content() {
                        std::thread::sleep(self.throttle.failed(Instant::now()));
                    }
                }
            }
            return landing.land(result.map(Arc::new).map_err(Arc::new));
        }
    }

    /// The same for an object that nobody has asked for yet, by leave of the ledger if nobody has said that it will be wanted.
    pub(crate) fn fetch_ahead(&self, want: &Want, guess: Option<Guess<'_>>) -> Fetched {
        let have = || self.cache.get(want.key(), want.size).map(Arc::new);
        if let Some(file) = have() {
            return Ok(file);
        }
        // The lane comes first: who asks for an object that is announced should not have to wait for it to begin.
        let transport = self.transport_of(want).map_err(Arc::new)?;
        let lane = transport.lanes().ahead().ok_or_else(|| Arc::new(FetchError::Abandoned(want.object)))?;
        let landing = match self.board(want.key(), true) {
            Boarding::First(landing) => landing,
            Boarding::Taken(flight) => {
                drop((lane, guess));
                return flight.wait();
            }
        };
        if let Some(file) = have() {
            return landing.land(Ok(file));
        }
        let result = self.download(want, transport, lane);
        // A catalog stays open once it was used, so nobody would take it out of the ledger.
        if let Ok(file) = &result
            && want.is_content()
        {
            // Entered before it lands, so whoever opens it from now on takes it out again.
            match landing.flight.joined.load(Ordering::Acquire) {
                true => self.ledger.claimed_early(size_of(file), guess),
                false => self.ledger.enter(want.key(), size_of(file), guess),
            }
        }
        landing.land(result.map(Arc::new).map_err(Arc::new))
    }

    /// Joins the download of an object, or begins it.
    fn board(&self, key: CacheKey, ahead: bool) -> Boarding<'_> {
        match self.flights.lock().entry(key) {
            hash_map::Entry::Occupied(entry) => {
                let flight = entry.get().clone();
                if !ahead {
                    flight.joined.store(true, Ordering::Release);
                }
                Boarding::Taken(flight)
            }
            hash_map::Entry::Vacant(entry) => {
                let flight = entry.insert(Arc::new(Flight { ahead, ..Flight::default() })).clone();
                Boarding::First(Landing { objects: self, key, flight })
            }
        }
    }

    /// Says, but not all the time, that a reader waited beside what is fetched ahead.
    fn remark(&self, want: &Want, waited: Duration, bytes: u64, beside: usize) {
        if beside == 0 || waited < PATIENCE + Duration::from_micros(bytes) {
            return;
        }
        self.stats.delayed.add(1);
        if self.remarks.is_due() {
            let object = want.object;
            tracing::warn!(%object, bytes, ?waited, beside, "a reader waited while objects were fetched ahead; CVMFS_PREFETCH=no ends that");
        }
    }

    fn transport_of(&self, want: &Want) -> Result<&Transport, FetchError> {
        match &want.source {
            Source::Store | Source::Alternative => Ok(&self.transport),
            Source::External { .. } => self.external.as_ref().ok_or(FetchError::NoExternalServer(want.object)),
        }
    }

    fn download(&self, want: &Want, transport: &Transport, lane: Lane<'_>) -> Result<File, FetchError> {
        let (object, began, ahead) = (want.object, Instant::now(), lane.is_ahead());
        let (path, range) = match &want.source {
            Source::Store => (object.path(), None),
            Source::Alternative => (format!(".cvmfsalt-{object}"), None),
            Source::External { path, range } => (path.clone(), *range),
        };
        let closed = || ahead && transport.lanes().is_closed();
        let mut sink = ObjectSink::new(&self.cache, &self.benches, want, &closed);
        transport.get(&path, range, lane, &mut sink).map_err(|e| failure(object, e))?;
        let (received, partial, plain) = sink.finished();
        if let Some(expected) = want.size.filter(|size| *size != plain) {
            return Err(FetchError::Size { object, found: plain, expected });
        }
        self.stats.downloads.add(1);
        tracing::debug!(%object, ahead, received, plain, took = ?began.elapsed(), "downloaded");
        Ok(self.cache.commit(partial)?)
    }
}

fn size_of(file: &File) -> u64 {
    file.metadata().map_or(0, |metadata| metadata.len())
}

fn failure(object: ObjectId, error: TransportError) -> FetchError {
    let reason = error.to_string();
    match error {
        TransportError { local: Some(local), .. } => match local.downcast::<CacheError>() {
            Ok(error) => FetchError::Cache(*error),
            Err(error) => FetchError::Unavailable { object, reason: error.to_string() },
        },
        TransportError { corrupt: true, .. } => FetchError::Corrupt { object, reason },
        _ => FetchError::Unavailable { object, reason },
    }
}

/// Random number below `n`, 0 if that is 0. Good enough to spread load, nothing else.
fn random_below(n: usize) -> usize {
    use std::hash::{BuildHasher as _, RandomState};
    // Every RandomState has its own key.
    (RandomState::new().hash_one(0) % n.max(1) as u64) as usize
}

/// A download that several may wait for.
#[derive(Debug, Default)]
struct Flight {
    /// Nobody waited for it when it began.
    ahead: bool,
    /// Somebody waits for it now.
    joined: AtomicBool,
    result: Mutex<Option<Fetched>>,
    landed: Condvar,
}

impl Flight {
    fn wait(&self) -> Fetched {
        let mut result = self.result.lock();
        while result.is_none() {
            self.landed.wait(&mut result);
        }
        result.clone().expect("the loop ends when it is there")
    }
}

/// Result of asking for a download.
enum Boarding<'a> {
    /// It is ours to make.
    First(Landing<'a>),
    /// It is being made.
    Taken(Arc<Flight>),
}

/// Ends a flight, whatever happens to the thread that made it.
struct Landing<'a> {
    objects: &'a Objects,
    key: CacheKey,
    flight: Arc<Flight>,
}

impl Landing<'_> {
    fn land(self, result: Fetched) -> Fetched {
        *self.flight.result.lock() = Some(result.clone());
        result
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.objects.flights.lock().remove(&self.key);
        let object = self.key.hash.object(ObjectKind::File);
        self.flight.result.lock().get_or_insert_with(|| Err(Arc::new(FetchError::Abandoned(object))));
        self.flight.landed.notify_all();
    }
}
