//! Copies a repository from a server into a directory (a stratum 1), and brings such a copy up to date.
//!
//! Order
//! 1. `.cvmfs_master_replica`, manifest, certificate and whitelist are fetched; the chain of trust is verified, and the
//!    revision is compared with the one of the copy. Nothing is written before that.
//! 2. The tree of the current root catalog, then those of its predecessors back to the revision that the copy has (not
//!    for the first copy), then those of all tags. Each catalog is stored after everything that it refers to
//!    (`walk.rs`), so what is there need not be looked at again.
//! 3. Tag database, certificate, meta info; everything durable; reflog, whitelist; at last the manifest.
//!
//! Invariants
//! - Every object matches its hash before it has a name.
//! - Readers of the copy see the revision it had, completely, until the manifest is replaced, and then the new one.
//! - Killed at any moment, a run is taken up by the next: only what is missing is fetched.
//! - One run at a time in a directory.
//!
//! The facts are those of the stock tools: predecessors and tags whose root catalog the server has collected are left
//! out where the manifest allows collection; objects are copied as they are; external files are not copied.

mod copy;
mod error;
mod pool;
mod remote;
mod report;
mod walk;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cvmfs::blacklist::Blacklist;
use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::history::History;
use cvmfs::manifest::Manifest;
use cvmfs::object::{Compression, decode};
use cvmfs::reflog::{Ref, RefKind};
use cvmfs::signature::PublicKey;
use cvmfs::store::{LocalStore, Store, names};
use cvmfs::trust::{Anchor, TrustError};
use time::UtcDateTime;

use self::copy::Copy;
pub use self::error::ReplicateError;
use self::pool::Pool;
pub use self::remote::Patience;
use self::remote::Remote;
pub use self::report::{Amount, Replicated};
use self::walk::{Root, Walker};
use crate::cli::{self, Paths};
use crate::error::CommandError;
use crate::progress::{Event, Progress};

/// Largest manifest or whitelist.
const DOCUMENT_LIMIT: usize = 1 << 20;
/// Largest certificate or meta info object.
const SMALL_OBJECT: u64 = 1 << 20;
/// Time between two lines of progress.
const TALK: Duration = Duration::from_secs(10);

/// What is copied, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// URL of the repository, that of its `.cvmfspublished` without the name.
    pub url: reqwest::Url,
    /// The copy.
    pub directory: PathBuf,
    /// Name of the repository.
    pub fqrn: String,
    /// Trusted master keys; one that matches suffices.
    pub master_keys: Vec<PublicKey>,
    /// What must not be trusted any more.
    pub blacklist: Blacklist,
    /// File beside the copy that names the hash of its reflog.
    pub reflog_checksum: PathBuf,
    /// Requests in flight.
    pub connections: usize,
    /// HTTP or SOCKS proxy; without it, the usual variables of the environment count.
    pub proxy: Option<String>,
    /// When to give up.
    pub patience: Patience,
}

impl Options {
    /// What the command line says; `paths` gives the directories of a repository.
    pub fn from_arguments(
        arguments: &cli::Replicate,
        paths: impl FnOnce(&str) -> Result<Paths, CommandError>,
    ) -> Result<Options, CommandError> {
        let url = &arguments.url;
        let fqrn = arguments.fqrn.clone().or_else(|| name_in_url(url));
        let fqrn = fqrn.ok_or_else(|| {
            let reason = "it does not end in the name of a repository; say which one it is with --fqrn".into();
            ReplicateError::Url { url: url.to_string(), reason }
        })?;
        let paths = paths(&fqrn)?;
        let mut files = arguments.public_key.clone();
        if files.is_empty() {
            files.push(paths.keys.join(format!("{fqrn}.pub")));
        }
        let key = |path: &PathBuf| {
            let pem = std::fs::read_to_string(path).map_err(|e| {
                CommandError::config(ReplicateError::io("read", path)(e))
                    .hint("replicate needs the public master key of the repository; name it with --public-key")
            })?;
            PublicKey::from_pem(&pem).map_err(|e| CommandError::config(e).context(path.display().to_string()))
        };
        Ok(Options {
            url: url.clone(),
            directory: arguments.directory.clone(),
            master_keys: files.iter().map(key).collect::<Result<_, _>>()?,
            blacklist: read_blacklist(&arguments.blacklist, &fqrn)?,
            reflog_checksum: paths.state.join("reflog.chksum"),
            connections: arguments.connections.into(),
            proxy: arguments.proxy.clone(),
            patience: Patience::default(),
            fqrn,
        })
    }
}

/// The documents that make a revision trusted, as they came.
struct Offer {
    manifest: Manifest,
    sealed: Vec<u8>,
    whitelist: Vec<u8>,
    /// Stored form of the certificate.
    certificate: (ObjectId, Vec<u8>),
}

/// Copies the repository, or what is new in it.
pub fn replicate(options: &Options, progress: &dyn Progress) -> Result<Replicated, ReplicateError> {
    let started = Instant::now();
    let remote = Remote::new(&options.url, options.proxy.as_deref(), options.connections, options.patience.clone())?;
    let known = copy::manifest(&options.directory, &options.fqrn)?;
    let offer = offer(options, &remote)?;
    if let Some((known, _)) = &known {
        compare(&offer.manifest, known)?;
    }
    let now = UtcDateTime::now();
    let copy = Copy::open(&options.directory, now)?;
    // Read again under the lock: another run may have ended meanwhile.
    let known = copy::manifest(&options.directory, &options.fqrn)?;
    if let Some((known, _)) = &known {
        compare(&offer.manifest, known)?;
    }
    let store = copy.store.clone();
    let mut report = Pool::run(&remote, &store, copy.scratch(), options.connections, |pool| {
        let job = Job { options, remote: &remote, copy: &copy, pool, offer: &offer, progress };
        job.run(known.as_ref().map(|(manifest, _)| manifest), started)
    })?;
    store.flush()?;
    copy.add_to_reflog(&options.fqrn, &report.refs, &options.reflog_checksum)?;
    if store.read(names::WHITELIST)?.as_deref() != Some(&offer.whitelist) {
        store.replace(names::WHITELIST, &offer.whitelist)?;
    }
    if known.as_ref().is_none_or(|(_, sealed)| *sealed != offer.sealed) {
        store.replace(names::MANIFEST, &offer.sealed)?;
    }
    copy.finish(UtcDateTime::now())?;
    report.revision_before = known.map(|(manifest, _)| manifest.revision);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The revision that a server serves now, its chain of trust verified. `store` may have the certificate.
pub fn served_revision(
    url: &reqwest::Url,
    fqrn: &str,
    master_keys: &[PublicKey],
    store: &dyn Store,
) -> Result<u64, ReplicateError> {
    let retry = registry::RetryPolicy { attempts: 1, ..Patience::default().retry };
    let remote = Remote::new(url, None, 1, Patience { retry, ..Patience::default() })?;
    let anchor = Anchor { name: fqrn, master_keys, blacklist: &[], now: UtcDateTime::now() };
    Ok(trusted(&anchor, &remote, store)?.manifest.revision)
}

/// What the server offers, verified.
fn offer(options: &Options, remote: &Remote) -> Result<Offer, ReplicateError> {
    let anchor = Anchor {
        name: &options.fqrn,
        master_keys: &options.master_keys,
        blacklist: &options.blacklist.fingerprints,
        now: UtcDateTime::now(),
    };
    remote.document(names::MASTER_REPLICA, DOCUMENT_LIMIT).map_err(|error| match error {
        error if error.is_missing() => ReplicateError::NotReplicable(remote.url().to_owned()),
        error => error,
    })?;
    let offer = trusted(&anchor, remote, &LocalStore::open(&options.directory))?;
    let (revision, least) = (offer.manifest.revision, options.blacklist.least_revision);
    if revision < least {
        return Err(ReplicateError::Blacklisted { fqrn: options.fqrn.clone(), revision, least });
    }
    Ok(offer)
}

/// The documents of the present revision, verified. A certificate that `store` has is not asked for.
fn trusted(anchor: &Anchor<'_>, remote: &Remote, store: &dyn Store) -> Result<Offer, ReplicateError> {
    let sealed = remote.document(names::MANIFEST, DOCUMENT_LIMIT)?;
    let parsed = anchor.parse_manifest(&sealed)?;
    let unsigned = || TrustError::Certificate(anchor.name.to_owned(), "the manifest names none".into());
    let id = parsed.certificate.ok_or_else(unsigned)?.object(ObjectKind::Certificate);
    let (stored, pem) = small(store, remote, id)?;
    let whitelist = remote.document(names::WHITELIST, DOCUMENT_LIMIT)?;
    let manifest = anchor.verify(&sealed, &pem, &whitelist)?;
    Ok(Offer { manifest, sealed, whitelist, certificate: (id, stored) })
}

/// The copy never goes back.
fn compare(offered: &Manifest, known: &Manifest) -> Result<(), ReplicateError> {
    if offered.revision >= known.revision && offered.published >= known.published {
        return Ok(());
    }
    Err(ReplicateError::Outdated {
        offered: offered.revision,
        published: offered.published,
        known: known.revision,
        newest: known.published,
    })
}

/// A small object, as it is stored and plain: from the copy if it has it.
fn small(store: &dyn Store, remote: &Remote, id: ObjectId) -> Result<(Vec<u8>, Vec<u8>), ReplicateError> {
    use std::io::Read as _;
    if store.exists(id)? {
        let mut stored = Vec::new();
        let read = store.open(id)?.take(SMALL_OBJECT).read_to_end(&mut stored);
        // One that was damaged here may be sound there.
        if let (Ok(_), Ok(plain)) = (read, decode(id, Compression::Zlib, &stored, SMALL_OBJECT)) {
            return Ok((stored, plain));
        }
    }
    remote.small_object(id, SMALL_OBJECT as usize)
}

/// One run, after trust was established.
struct Job<'r, 'p, 'a> {
    options: &'r Options,
    remote: &'r Remote,
    copy: &'r Copy,
    pool: &'p Pool<'a>,
    offer: &'r Offer,
    progress: &'r dyn Progress,
}

impl Job<'_, '_, '_> {
    /// Copies everything but the documents at the top.
    fn run(&self, known: Option<&Manifest>, started: Instant) -> Result<Replicated, ReplicateError> {
        let manifest = &self.offer.manifest;
        let mut roots =
            Roots { job: self, walker: Walker::new(self.pool), refs: Vec::new(), collected: 0, told: started };
        roots.chain(known)?;
        let history = self.history()?;
        if let Some((_, history)) = &history {
            roots.tags(history)?;
        }
        let Roots { walker, mut refs, collected, .. } = roots;
        let now = UtcDateTime::now().unix_timestamp().max(0) as u64;
        let mut put = |id: ObjectId, kind, stored: &[u8]| {
            self.pool.count(self.pool.store().put(id, stored)?);
            refs.push(Ref { hash: id.hash, kind, timestamp: now });
            Ok::<_, ReplicateError>(())
        };
        let (certificate, stored) = &self.offer.certificate;
        let mut linked = vec![manifest.root_catalog.object(ObjectKind::Catalog), *certificate];
        put(*certificate, RefKind::Certificate, stored)?;
        if let Some(id) = manifest.meta_info.map(|h| h.object(ObjectKind::MetaInfo)) {
            let (stored, _) = small(self.pool.store(), self.remote, id)?;
            put(id, RefKind::MetaInfo, &stored)?;
            linked.push(id);
        }
        if let Some((stored, _)) = history {
            let id = manifest.history.expect("it was read").object(ObjectKind::History);
            if let Some(stored) = stored {
                self.pool.keep(id, &stored)?;
            }
            refs.push(Ref { hash: id.hash, kind: RefKind::History, timestamp: now });
            linked.push(id);
        }
        if manifest.alternative_paths {
            self.copy.link(&linked)?;
        }
        Ok(self.report(&walker, refs, collected))
    }

    /// The tag database: its stored form, unless the copy has it, and its content.
    fn history(&self) -> Result<Option<(Option<tempfile::TempPath>, History)>, ReplicateError> {
        let Some(hash) = self.offer.manifest.history else { return Ok(None) };
        let id = hash.object(ObjectKind::History);
        let what = || format!("tag database {hash}");
        let database = |source| ReplicateError::Database { what: what(), source };
        if self.pool.store().exists(id)? {
            let plain = self.copy.scratch().join("history");
            let mut file = std::fs::File::create(&plain).map_err(ReplicateError::io("create", &plain))?;
            cvmfs::store::fetch(self.pool.store(), id, Compression::Zlib, cvmfs::store::DATABASE_LIMIT, &mut file)?;
            return Ok(Some((None, History::read(&plain).map_err(database)?)));
        }
        self.pool.begin(id, 0, what);
        let files = self.pool.take(id)?;
        let history = History::read(&files.plain).map_err(database)?;
        Ok(Some((Some(files.stored), history)))
    }

    fn report(&self, walker: &Walker<'_, '_>, refs: Vec<Ref>, collected: u64) -> Replicated {
        use std::sync::atomic::Ordering::Relaxed;
        let (tally, traffic) = (&self.pool.tally, &self.remote.traffic);
        Replicated {
            repository: self.options.fqrn.clone(),
            url: self.remote.url().to_owned(),
            revision_before: None,
            revision: self.offer.manifest.revision,
            stored: Amount { objects: tally.objects.load(Relaxed), bytes: tally.bytes.load(Relaxed) },
            catalogs: walker.catalogs(),
            present: tally.present.load(Relaxed),
            collected,
            requests: traffic.requests.load(Relaxed),
            received: traffic.bytes.load(Relaxed),
            seconds: 0.0,
            refs,
        }
    }
}

/// The root catalogs of a run.
struct Roots<'j, 'r, 'p, 'a> {
    job: &'j Job<'r, 'p, 'a>,
    walker: Walker<'p, 'a>,
    refs: Vec<Ref>,
    /// Roots that the server has no more.
    collected: u64,
    told: Instant,
}

impl Roots<'_, '_, '_, '_> {
    /// The current root, and its predecessors back to the one that the copy has.
    fn chain(&mut self, known: Option<&Manifest>) -> Result<(), ReplicateError> {
        let manifest = &self.job.offer.manifest;
        let follow = !self.job.copy.is_initial() && known.is_some();
        let known = known.map(|m| m.root_catalog);
        let mut next = Some((manifest.root_catalog, manifest.root_catalog_size));
        while let Some((hash, size)) = next {
            let previous = self.root(hash, size)?.filter(|_| follow && Some(hash) != known);
            next = previous.map(|hash| (hash, 0));
        }
        Ok(())
    }

    fn tags(&mut self, history: &History) -> Result<(), ReplicateError> {
        for tag in &history.tags {
            self.root(tag.root, tag.size)?;
        }
        Ok(())
    }

    /// Copies one root with everything below; gives its predecessor.
    fn root(&mut self, hash: ContentHash, size: u64) -> Result<Option<ContentHash>, ReplicateError> {
        let Roots { job, walker, told, .. } = self;
        let mut each = || {
            if told.elapsed() >= TALK {
                *told = Instant::now();
                job.talk();
            }
        };
        match walker.root(hash, size, &mut each)? {
            Root::Complete(previous) => {
                let timestamp = UtcDateTime::now().unix_timestamp().max(0) as u64;
                self.refs.push(Ref { hash, kind: RefKind::Catalog, timestamp });
                Ok(previous)
            }
            // What is no longer the current revision may have been collected.
            Root::Missing if job.offer.manifest.garbage_collectable && hash != job.offer.manifest.root_catalog => {
                self.collected += 1;
                Ok(None)
            }
            Root::Missing => {
                let id = hash.object(ObjectKind::Catalog);
                let url = format!("{}/{}", job.remote.url(), id.path());
                Err(ReplicateError::Missing { what: format!("root catalog {hash}"), url })
            }
        }
    }
}

impl Job<'_, '_, '_> {
    fn talk(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        let tally = &self.pool.tally;
        let (objects, bytes) = (tally.objects.load(Relaxed), tally.bytes.load(Relaxed));
        let size = indicatif::DecimalBytes(bytes);
        let text = format!("{}: {objects} objects copied, {size}", self.options.fqrn);
        self.progress.event(Event::Message { text: &text });
    }
}

/// The name of a repository as its URL ends: `http://host/cvmfs/images.example.org`.
fn name_in_url(url: &reqwest::Url) -> Option<String> {
    let last = url.path_segments()?.rfind(|s| !s.is_empty())?;
    cli::fqrn(last).ok()
}

/// Reads the blacklist of the administrator; one that is not there is empty.
fn read_blacklist(file: &Path, fqrn: &str) -> Result<Blacklist, ReplicateError> {
    let mut list = Blacklist::default();
    list.add_file(file, fqrn).map_err(ReplicateError::io("read", file))?;
    Ok(list)
}
