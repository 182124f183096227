//! The repository that we publish to: its storage, keys, lock and our own state beside it.
//!
//! State is never authoritative. `lock` serialises publishes; `reflog.chksum` names the hash of the reflog while a
//! publish is between its last two steps; `objects.db`, `prepared/` and `tmp/` save work and can be deleted.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::entry::{Entry, Flags, Meta};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::object::{Codec, Encoder};
use cvmfs::repository::{CreateOptions, Repository};
use cvmfs::signature::{PrivateKey, PublicKey};
use cvmfs::store::{LocalStore, Store, names, put_content};
use cvmfs::subtree::MARKER;
use cvmfs::transaction::{Commit, Published, Transaction, TransactionOptions};
use cvmfs::trust::Anchor;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;
use time::UtcDateTime;

use crate::cli::Paths;
use crate::failure::Failure;

/// How long a publish waits for another one to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);
/// Leftovers of killed runs in the storage are removed when they are older than this.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// A repository with everything that publishing needs.
#[derive(Debug)]
pub struct Target {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// Its directories.
    pub paths: Paths,
    /// Its storage.
    pub store: Arc<dyn Store>,
    /// What signs its manifests.
    pub signer: Signer,
    /// The master key that clients trust.
    pub master: PublicKey,
    /// How objects are compressed.
    pub codec: Codec,
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
        if let Some(name) = [names::MANIFEST, names::WHITELIST].iter().find(|n| paths.storage.join(n).exists()) {
            return Err(Failure::Content(format!(
                "{} exists: this directory holds a repository already, and a new one is never made over it",
                paths.storage.join(name).display()
            )));
        }
        for directory in [&paths.storage, &paths.keys, &paths.state] {
            fs::create_dir_all(directory).map_err(Failure::io("create directory", directory))?;
        }
        let store: Arc<dyn Store> = Arc::new(LocalStore::create(&paths.storage)?);
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
        Ok(Target {
            fqrn: fqrn.to_owned(),
            paths,
            store,
            signer,
            master: master.public(),
            codec: Codec::default(),
            scratch,
        })
    }

    /// Opens an existing repository for publishing.
    pub fn open(fqrn: &str, paths: Paths) -> Result<Target, Failure> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::open(&paths.storage));
        if !paths.storage.join(names::MANIFEST).exists() {
            return Err(Failure::Repository(cvmfs::repository::RepositoryError::NotFound {
                fqrn: fqrn.to_owned(),
                place: store.place(),
                missing: names::MANIFEST,
            }));
        }
        fs::create_dir_all(&paths.state).map_err(Failure::io("create directory", &paths.state))?;
        let scratch = scratch_directory(&paths.state)?;
        remove_leftovers(&paths.storage.join("data/txn"));
        let key = KeyFiles { directory: &paths.keys, fqrn };
        let (signer, master) = (key.signer()?, key.public()?);
        let target = Target { fqrn: fqrn.to_owned(), paths, store, signer, master, codec: Codec::default(), scratch };
        target.repository()?;
        Ok(target)
    }

    /// The repository at its current revision, trust verified.
    pub fn repository(&self) -> Result<Repository, Failure> {
        let master_keys = [self.master.clone()];
        let anchor = Anchor { name: &self.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
        Ok(Repository::open(self.store.clone(), &anchor)?)
    }

    /// Directory for scratch files of this run; removed at its end.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// File that names the hash of the reflog.
    pub fn reflog_checksum(&self) -> PathBuf {
        self.paths.state.join("reflog.chksum")
    }

    /// Takes the lock that serialises publishes; waits for others up to ten minutes.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let path = self.paths.state.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Failure::io("open the lock file", &path))?;
        let start = Instant::now();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Lock(lock)),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if start.elapsed() > LOCK_PATIENCE => {
                    return Err(Failure::Locked { fqrn: self.fqrn.clone(), path });
                }
                Err((back, nix::errno::Errno::EWOULDBLOCK | nix::errno::Errno::EINTR)) => {
                    file = back;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err((_, e)) => return Err(Failure::io("lock", &path)(e.into())),
            }
        }
    }

    /// The marker of nested catalogs: an empty file that containers don't see.
    pub fn marker(&self, algorithm: Algorithm, now: UtcDateTime) -> Result<Entry, Failure> {
        let mut encoder = Encoder::new(algorithm, self.codec);
        let (empty, _) = put_content(&*self.store, &mut encoder, ObjectKind::File, b"")?;
        let mut marker = Entry::file(MARKER, file_meta(now), 0, empty, self.codec.compression());
        marker.flags = marker.flags.with(Flags::HIDDEN);
        Ok(marker)
    }

    /// Begins a transaction at the current revision. The caller holds the lock.
    pub fn begin(&self, _lock: &Lock, now: UtcDateTime) -> Result<Transaction, Failure> {
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
        let commit = Commit { signer: &self.signer, reflog_checksum: Some(&checksum), tags: &[], ttl: None };
        Ok(transaction.commit(&commit)?)
    }
}

/// Signs the whitelist of a repository anew; does not need the old one to be valid.
pub fn sign_whitelist_file(
    store: &dyn Store,
    fqrn: &str,
    keys: &Path,
    now: UtcDateTime,
    validity: time::Duration,
) -> Result<UtcDateTime, Failure> {
    let key = KeyFiles { directory: keys, fqrn };
    let (master, signer) = (key.master()?, key.signer()?);
    let manifest = store.read(names::MANIFEST)?.and_then(|m| cvmfs::manifest::Manifest::parse(&m).ok());
    let algorithm = manifest.map_or(Algorithm::Sha1, |m| m.root_catalog.algorithm);
    let expires = now + validity;
    let document = sign_whitelist(fqrn, algorithm, &signer.certificate_pem, &master, now, expires)
        .map_err(|source| Failure::Key { path: key.file("masterkey"), source })?;
    store.replace(names::WHITELIST, &document)?;
    Ok(expires)
}

/// Held while a publish is under way.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

/// Metadata of directories that we make.
pub fn directory_meta(now: UtcDateTime) -> Meta {
    Meta { permissions: 0o755, ..file_meta(now) }
}

/// Metadata of files that we make: they belong to whoever publishes.
pub fn file_meta(now: UtcDateTime) -> Meta {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Meta { permissions: 0o644, uid, gid, mtime: now.unix_timestamp(), mtime_ns: None }
}

/// The key files of one repository.
struct KeyFiles<'a> {
    directory: &'a Path,
    fqrn: &'a str,
}

impl KeyFiles<'_> {
    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.fqrn))
    }

    fn read(&self, extension: &str) -> Result<String, Failure> {
        let path = self.file(extension);
        fs::read_to_string(&path).map_err(Failure::io("read", &path))
    }

    /// Writes a new key file; never over an existing one.
    fn write(&self, extension: &str, content: &str, mode: u32) -> Result<(), Failure> {
        let path = self.file(extension);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(Failure::io("create", &path))?;
        file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(Failure::io("write", &path))
    }

    fn parsed<T>(
        &self,
        extension: &str,
        parse: impl FnOnce(String) -> Result<T, cvmfs::signature::SignatureError>,
    ) -> Result<T, Failure> {
        parse(self.read(extension)?).map_err(|source| Failure::Key { path: self.file(extension), source })
    }

    fn master(&self) -> Result<PrivateKey, Failure> {
        self.parsed("masterkey", |pem| PrivateKey::from_pem(&pem))
    }

    fn public(&self) -> Result<PublicKey, Failure> {
        self.parsed("pub", |pem| PublicKey::from_pem(&pem))
    }

    fn signer(&self) -> Result<Signer, Failure> {
        let certificate = self.read("crt")?;
        self.parsed("key", |key| Signer::from_pem(certificate, &key))
    }

    fn ensure_master(&self) -> Result<PrivateKey, Failure> {
        let bad = |source| Failure::Key { path: self.file("masterkey"), source };
        if !self.file("masterkey").exists() {
            let key = PrivateKey::generate().map_err(bad)?;
            self.write("masterkey", &key.to_pem().map_err(bad)?, 0o400)?;
        }
        let key = self.master()?;
        if !self.file("pub").exists() {
            self.write("pub", &key.public().to_pem().map_err(bad)?, 0o444)?;
        }
        if self.public()? == key.public() {
            Ok(key)
        } else {
            Err(bad(cvmfs::signature::SignatureError::Key("private key that belongs to the .pub file beside it")))
        }
    }

    fn ensure_signer(&self, now: UtcDateTime) -> Result<Signer, Failure> {
        if !self.file("key").exists() {
            let bad = |source| Failure::Key { path: self.file("key"), source };
            let signer = Signer::generate(self.fqrn, now).map_err(bad)?;
            self.write("key", &signer.key.to_pem().map_err(bad)?, 0o400)?;
            self.write("crt", &signer.certificate_pem, 0o444)?;
        }
        self.signer()
    }
}

/// A scratch directory of our own; those of runs that were killed go.
fn scratch_directory(state: &Path) -> Result<TempDir, Failure> {
    let parent = state.join("tmp");
    fs::create_dir_all(&parent).map_err(Failure::io("create directory", &parent))?;
    for entry in fs::read_dir(&parent).map_err(Failure::io("read directory", &parent))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.split('.').nth(1)).and_then(|p| p.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Whatever cannot be removed only takes room.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("run.{}.", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir_in(&parent).map_err(Failure::io("create directory in", &parent))
}

/// Removes objects that were never finished.
fn remove_leftovers(txn: &Path) {
    let Ok(entries) = fs::read_dir(txn) else { return };
    let now = UtcDateTime::now().unix_timestamp();
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("new.")) {
        let old = entry.metadata().is_ok_and(|m| now - m.mtime() > LEFTOVER_AGE.as_secs() as i64);
        if old {
            // Whatever cannot be removed only takes room.
            let _ = fs::remove_file(entry.path());
        }
    }
}
