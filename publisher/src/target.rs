//! The repository that we publish to: its storage, keys, lock and our own state beside it.
//!
//! It is one of our own, or a stratum 0 of the reference tools ([`crate::adopt`]) with locks and settings of its own.
//!
//! State is never authoritative. `lock` serialises publishes; `reflog.chksum` names the hash of the reflog while a
//! publish is between its last two steps; `objects.db`, `prepared/` and `tmp/` save work and can be deleted, as can
//! `collections.json`, which tells whether what they say may be out of date.

mod clock;
mod collections;
mod keys;
mod lease;
mod lock;
mod overtaken;
mod preparation;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::entry::{Entry, Flags, Meta};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::lease::{LeaseError, LeaseKind};
use cvmfs::object::{Codec, Encoder};
use cvmfs::repository::{CreateOptions, Repository};
use cvmfs::signature::PublicKey;
use cvmfs::store::{Listing, names, put_content};
use cvmfs::subtree::MARKER;
use cvmfs::transaction::{Commit, Published, Transaction, TransactionOptions};
use cvmfs::trust::Anchor;
use parking_lot::Mutex;
use tempfile::TempDir;
use time::UtcDateTime;

pub use self::clock::Clock;
pub use self::collections::Traces;
use self::keys::KeyFiles;
pub use self::keys::{WhitelistEnd, sign_whitelist_file};
pub use self::lease::{LeaseGuard, TERM};
pub use self::lock::Lock;
use self::lock::{FileLock, PATIENCE};
pub use self::overtaken::until_first;
pub use self::preparation::Preparation;
use self::scratch::{remove_leftovers, scratch_directory};
use crate::adopt::{AdoptError, Policy};
use crate::cli::Paths;
use crate::content::{Pool, WholeFiles};
use crate::failure::Failure;
use crate::raw_index::RawIndex;

/// A repository with everything that publishing needs.
#[derive(Debug)]
pub struct Target {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// Its directories.
    pub paths: Paths,
    /// Its storage.
    pub store: Arc<dyn Listing>,
    /// What signs its manifests.
    pub signer: Signer,
    /// The master key that clients trust.
    pub master: PublicKey,
    /// How objects are compressed.
    pub codec: Codec,
    /// What else the repository wants of a publish.
    pub policy: Policy,
    /// How long a lease counts without being renewed.
    pub lease_term: Duration,
    /// How long somebody who is in the way is waited for.
    pub patience: Duration,
    /// What time it is, as records state it.
    pub clock: Clock,
    /// What was seen of collections when this was opened, or at the last look.
    traces: Mutex<Option<Traces>>,
    scratch: TempDir,
}

/// How a new repository is made.
#[derive(Debug, Clone, Copy)]
pub struct InitOptions {
    /// Seconds until clients ask again.
    pub ttl: u64,
    /// Hash algorithm.
    pub algorithm: Algorithm,
    /// Whether old revisions may be collected.
    pub garbage_collectable: bool,
}

impl Target {
    /// Makes a new repository: storage, keys, whitelist, first revision. Existing keys of that name are used, an
    /// existing repository is never touched.
    pub fn init(fqrn: &str, paths: Paths, options: InitOptions) -> Result<Target, Failure> {
        let now = UtcDateTime::now();
        for directory in [&paths.keys, &paths.state] {
            fs::create_dir_all(directory).map_err(Failure::io("create directory", directory))?;
        }
        let store = paths.storage.open()?;
        for name in [names::MANIFEST, names::WHITELIST] {
            if store.read(name)?.is_some() {
                return Err(Failure::Content(format!(
                    "{name} exists in {}: there is a repository already, and a new one is never made over it",
                    paths.storage
                )));
            }
        }
        let store = paths.storage.create()?;
        let scratch = scratch_directory(&paths.state)?;
        let key = KeyFiles { directory: &paths.keys, fqrn };
        let master = key.ensure_master()?;
        let signer = key.ensure_signer(now)?;
        let create = CreateOptions {
            fqrn: fqrn.to_owned(),
            algorithm: options.algorithm,
            ttl: options.ttl,
            garbage_collectable: options.garbage_collectable,
            root: directory_meta(now),
            now,
            whitelist_expires: now + cvmfs::whitelist::DEFAULT_VALIDITY,
            scratch: scratch.path().to_owned(),
        };
        Repository::create(store.clone(), &create, &signer, &master)?;
        let target = Target {
            fqrn: fqrn.to_owned(),
            paths,
            store,
            signer,
            master: master.public(),
            codec: Codec::default(),
            policy: Policy::default(),
            lease_term: TERM,
            patience: PATIENCE,
            clock: Clock::default(),
            traces: Mutex::new(None),
            scratch,
        };
        target.forget_if_collected()?;
        Ok(target)
    }

    /// Opens an existing repository for publishing.
    pub fn open(fqrn: &str, paths: Paths) -> Result<Target, Failure> {
        let store = paths.storage.open()?;
        if store.read(names::MANIFEST)?.is_none() {
            return Err(Failure::Repository(cvmfs::repository::RepositoryError::NotFound {
                fqrn: fqrn.to_owned(),
                place: store.place(),
                missing: names::MANIFEST,
            }));
        }
        fs::create_dir_all(&paths.state).map_err(Failure::io("create directory", &paths.state))?;
        let scratch = scratch_directory(&paths.state)?;
        if let Some(root) = paths.storage.directory() {
            remove_leftovers(&root.join("data/txn"));
        }
        let key = KeyFiles { directory: &paths.keys, fqrn };
        let (signer, master) = (key.signer()?, key.public()?);
        let (codec, policy) = match paths.storage.stratum0() {
            Some(stratum0) => (stratum0.codec, stratum0.policy.clone()),
            None => (Codec::default(), Policy::default()),
        };
        let target = Target {
            fqrn: fqrn.to_owned(),
            paths,
            store,
            signer,
            master,
            codec,
            policy,
            lease_term: TERM,
            patience: PATIENCE,
            clock: Clock::default(),
            traces: Mutex::new(None),
            scratch,
        };
        let algorithm = target.repository()?.algorithm();
        if let Some(stratum0) = target.paths.storage.stratum0() {
            stratum0.expect_ours(algorithm)?;
            stratum0.remarks.iter().for_each(|remark| tracing::warn!(fqrn, "{remark}"));
        }
        keys::warn_of_expiry(&*target.store, &target.paths.keys, fqrn);
        target.forget_if_collected()?;
        Ok(target)
    }

    /// The repository at its current revision, trust verified.
    pub fn repository(&self) -> Result<Repository, Failure> {
        let master_keys = [self.master.clone()];
        let anchor = Anchor { name: &self.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
        let repository = Repository::open(self.store.clone(), &anchor)?.with_codec(self.codec);
        Ok(match self.policy.garbage_collectable {
            Some(yes) => repository.with_garbage_collection(yes),
            None => repository,
        })
    }

    /// Directory for scratch files of this run; removed at its end.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// File that names the hash of the reflog.
    pub fn reflog_checksum(&self) -> PathBuf {
        self.paths.reflog_checksum()
    }

    /// Takes the lock that serialises publishes; waits for others up to ten minutes.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let file = FileLock::take(&self.fqrn, &self.paths.state)?;
        let lease = self.lease(LeaseKind::Publish, "publish", self.patience)?;
        Ok(Lock { lease, file })
    }

    /// Takes the lock that keeps everybody else from publishing, preparing and collecting; waits for others.
    pub fn lock_to_collect(&self) -> Result<Lock, Failure> {
        let start = Instant::now();
        loop {
            // Whoever prepares something may want to publish it, so nobody is kept from that by waiting.
            let file = FileLock::take(&self.fqrn, &self.paths.state)?;
            match self.lease(LeaseKind::Collect, "collect garbage", Duration::ZERO) {
                Err(Failure::Lease { source: LeaseError::Held(_), .. } | Failure::Adopt(AdoptError::Busy { .. }))
                    if start.elapsed() < self.patience =>
                {
                    drop(file);
                }
                lease => return Ok(Lock { lease: lease?, file }),
            }
            std::thread::sleep(Duration::from_secs(1).min(self.patience));
        }
    }

    fn lease(&self, kind: LeaseKind, what: &str, patience: Duration) -> Result<LeaseGuard, Failure> {
        // Those who share a stratum 0 with the reference tools lock as they do, too.
        let stock = match self.paths.storage.stratum0() {
            Some(stratum0) => Some(stratum0.hold(kind, &self.store, patience)?),
            None => None,
        };
        Ok(LeaseGuard::take(&self.fqrn, &self.store, kind, what, self.lease_term, patience)?.with_stock(stock))
    }

    /// Threads that store content as the repository wants it.
    pub fn pool(&self, index: Arc<RawIndex>, threads: usize) -> Result<Pool, Failure> {
        let repository = self.repository()?;
        let whole = match self.policy.chunks.filter(|_| self.policy.reuse_whole) {
            Some(sizes) => Some(WholeFiles::look(&repository, &self.paths.state, self.scratch(), sizes.min)?),
            None => None,
        };
        let pool = Pool::start(self.store.clone(), index, repository.algorithm(), self.codec, threads);
        Ok(pool.with_chunks(self.policy.chunks, whole))
    }

    /// The marker of nested catalogs: an empty file that containers don't see.
    pub fn marker(&self, algorithm: Algorithm, now: UtcDateTime) -> Result<Entry, Failure> {
        let mut encoder = Encoder::new(algorithm, self.codec);
        let (empty, _) = put_content(&*self.store, &mut encoder, ObjectKind::File, b"")?;
        let mut marker = Entry::file(MARKER, file_meta(now), 0, empty, self.codec.compression());
        marker.flags = marker.flags.with(Flags::HIDDEN);
        Ok(marker)
    }

    /// Fails if the log of root references is not the one that the reference tools left, where they are at work too:
    /// nothing is published over it unseen. The caller holds the lock.
    pub fn expect_reflog(&self) -> Result<(), Failure> {
        match self.paths.storage.stratum0() {
            Some(stratum0) => Ok(stratum0.expect_reflog(&*self.store, self.repository()?.manifest())?),
            None => Ok(()),
        }
    }

    /// Begins a transaction at the current revision. The caller holds the lock.
    pub fn begin(&self, _lock: &Lock, now: UtcDateTime) -> Result<Transaction, Failure> {
        self.expect_reflog()?;
        self.view(now)
    }

    /// A look at the current revision through the eyes of a transaction; it must not be committed.
    pub fn view(&self, now: UtcDateTime) -> Result<Transaction, Failure> {
        let repository = self.repository()?;
        let marker = self.marker(repository.algorithm(), now)?;
        let options = TransactionOptions { now, scratch: self.scratch().to_owned(), marker };
        Ok(Transaction::begin(repository, options)?)
    }

    /// Publishes a transaction.
    pub fn commit(&self, transaction: Transaction) -> Result<Published, Failure> {
        let checksum = self.reflog_checksum();
        let tags = match self.paths.storage.stratum0() {
            Some(stratum0) => stratum0.tag_edits(&self.repository()?.history(self.scratch())?, UtcDateTime::now())?,
            None => Vec::new(),
        };
        let (signer, ttl) = (&self.signer, self.policy.ttl);
        Ok(transaction.commit(&Commit { signer, reflog_checksum: Some(&checksum), tags: &tags, ttl })?)
    }
}

/// Metadata of directories that we make.
pub fn directory_meta(now: UtcDateTime) -> Meta {
    Meta { permissions: 0o755, ..file_meta(now) }
}

/// Metadata of files that we make: they belong to whoever publishes.
pub fn file_meta(now: UtcDateTime) -> Meta {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Meta { permissions: 0o644, uid, gid, mtime: now.unix_timestamp(), mtime_ns: None }
}
