//! A repository in a store: made, or opened with its chain of trust verified.
//!
//! States are types: a [`Repository`] exists only after trust was established, and only it can begin a
//! [`crate::transaction::Transaction`].

mod forget;
mod retag;

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;
use time::UtcDateTime;

use crate::catalog::counters::{Counter, Counters};
use crate::catalog::reader::CatalogError;
use crate::catalog::writer::CatalogWriter;
use crate::entry::{Entry, Meta};
use crate::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use crate::history::History;
use crate::keys::{Signer, sign_whitelist};
use crate::manifest::Manifest;
use crate::object::{Codec, Compression, Encoding};
use crate::path::PathKey;
use crate::reflog::{self, Ref, RefKind};
use crate::signature::{PrivateKey, Scheme, SignatureError, seal};
use crate::store::{DATABASE_LIMIT, Store, StoreError, fetch, names, put_stream};
use crate::trust::{Anchor, TrustError};

pub use self::retag::{Retag, RetagError, Revision};

/// Largest certificate or meta info object.
const SMALL_OBJECT: u64 = 1 << 20;

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// There is none.
    #[error("no repository {fqrn} in {place}: there is no {missing} (create one with: cvmfs-publisher init {fqrn})")]
    NotFound {
        /// Repository asked for.
        fqrn: String,
        /// Storage.
        place: String,
        /// File that is not there.
        missing: &'static str,
    },
    /// There is one already.
    #[error("{place} holds a repository already; a new one is never made over it")]
    Exists {
        /// Storage.
        place: String,
    },
    /// Somebody else published since this transaction began.
    #[error(
        "repository {fqrn} was published by somebody else (revision {found}, expected {expected}); nothing was changed, run again"
    )]
    Moved {
        /// Repository.
        fqrn: String,
        /// Revision at the start of the transaction.
        expected: u64,
        /// Revision now.
        found: u64,
    },
    /// The path cannot be edited as asked.
    #[error("{path}: {what}")]
    Path {
        /// Where.
        path: crate::path::RepoPath,
        /// Why not.
        what: &'static str,
    },
    /// The chain of trust does not hold.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Signing failed.
    #[error("cannot sign for repository {0}")]
    Sign(String, #[source] SignatureError),
    /// The storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalog is unusable.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The tag database or the reflog is unusable.
    #[error("{what} of repository {fqrn}")]
    Database {
        /// Which database.
        what: &'static str,
        /// Repository.
        fqrn: String,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// A scratch file failed.
    #[error("cannot use scratch space in {place}")]
    Scratch {
        /// Directory.
        place: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// How a new repository is made.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// Hash algorithm.
    pub algorithm: Algorithm,
    /// Seconds until clients ask again.
    pub ttl: u64,
    /// Whether old revisions may be collected.
    pub garbage_collectable: bool,
    /// Owner of the root directory, and its time.
    pub root: Meta,
    /// Now.
    pub now: UtcDateTime,
    /// When the whitelist ends.
    pub whitelist_expires: UtcDateTime,
    /// Where scratch files go.
    pub scratch: PathBuf,
}

/// A trusted repository at one revision.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) fqrn: String,
    pub(crate) manifest: Manifest,
    /// The manifest as it is stored; none before the first one.
    sealed: Option<Vec<u8>>,
    /// How file content is compressed, which decides about databases too.
    codec: Codec,
}

impl Repository {
    /// Makes a repository whose first revision is an empty root directory.
    pub fn create(
        store: Arc<dyn Store>,
        options: &CreateOptions,
        signer: &Signer,
        master: &PrivateKey,
    ) -> Result<Repository, RepositoryError> {
        for name in [names::MANIFEST, names::WHITELIST] {
            if store.read(name)?.is_some() {
                return Err(RepositoryError::Exists { place: store.place() });
            }
        }
        let fqrn = &options.fqrn;
        let algorithm = options.algorithm;
        let sign = |source| RepositoryError::Sign(fqrn.clone(), source);
        let (root_catalog, root_catalog_size) = empty_root(&*store, options)?;
        let now = options.now.unix_timestamp().max(0) as u64;
        let put = |kind, mut bytes: &[u8]| put_stream(&*store, algorithm, kind, &mut bytes).map(|(hash, _)| hash);
        let meta_info = put(ObjectKind::MetaInfo, meta_info_text(fqrn).as_bytes())?;
        let mut manifest = Manifest {
            root_catalog,
            root_catalog_size,
            ttl: options.ttl,
            revision: 0,
            garbage_collectable: options.garbage_collectable,
            alternative_paths: false,
            name: fqrn.clone(),
            certificate: Some(put(ObjectKind::Certificate, signer.certificate_pem.as_bytes())?),
            history: None,
            published: now,
            meta_info: Some(meta_info),
            reflog: None,
        };
        let mut history = History::new(fqrn);
        history.advance_trunk(crate::history::Tag {
            name: String::new(),
            root: root_catalog,
            revision: 0,
            timestamp: now,
            description: String::new(),
            size: root_catalog_size,
            branch: String::new(),
        });
        let repository =
            Repository { store, fqrn: fqrn.clone(), manifest: manifest.clone(), sealed: None, codec: Codec::default() };
        manifest.history =
            Some(repository.write_history(&history, ContentHash::null(algorithm), algorithm, &options.scratch)?);
        repository.store.replace(names::MASTER_REPLICA, b"This file allows replication of the repository.\n")?;
        let whitelist =
            sign_whitelist(fqrn, algorithm, &signer.certificate_pem, master, options.now, options.whitelist_expires)
                .map_err(sign)?;
        repository.store.replace(names::WHITELIST, &whitelist)?;
        repository.finish(manifest, signer, &options.scratch, None)
    }

    /// Opens the repository in `store` and verifies its chain of trust.
    pub fn open(store: Arc<dyn Store>, anchor: &Anchor<'_>) -> Result<Repository, RepositoryError> {
        let read = |missing| {
            store.read(missing)?.ok_or_else(|| RepositoryError::NotFound {
                fqrn: anchor.name.to_owned(),
                place: store.place(),
                missing,
            })
        };
        let sealed = read(names::MANIFEST)?;
        let parsed = anchor.parse_manifest(&sealed)?;
        let no_certificate = || TrustError::Certificate(anchor.name.to_owned(), "the manifest names none".into());
        let certificate = parsed.certificate.ok_or_else(no_certificate)?.object(ObjectKind::Certificate);
        let mut pem = Vec::new();
        fetch(&*store, certificate, Compression::Zlib, SMALL_OBJECT, &mut pem)?;
        let manifest = anchor.verify(&sealed, &pem, &read(names::WHITELIST)?)?;
        let codec = Codec::default();
        Ok(Repository { fqrn: anchor.name.to_owned(), store, manifest, sealed: Some(sealed), codec })
    }

    /// Fully qualified repository name.
    pub fn fqrn(&self) -> &str {
        &self.fqrn
    }

    /// The manifest of this revision.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the repository is kept.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Hash algorithm of the root catalog, used for everything that is written.
    pub fn algorithm(&self) -> Algorithm {
        self.manifest.root_catalog.algorithm
    }

    /// The same repository, published to with another codec than ours.
    #[must_use]
    pub fn with_codec(self, codec: Codec) -> Repository {
        Repository { codec, ..self }
    }

    /// The same repository, whose next revision allows garbage collection or does not.
    #[must_use]
    pub fn with_garbage_collection(mut self, garbage_collectable: bool) -> Repository {
        self.manifest.garbage_collectable = garbage_collectable;
        self
    }

    /// How its objects are named and made.
    pub fn encoding(&self) -> Encoding {
        Encoding { algorithm: self.algorithm(), codec: self.codec }
    }

    /// The tags; a repository without a tag database has none.
    pub fn history(&self, scratch: &Path) -> Result<History, RepositoryError> {
        let Some(hash) = self.manifest.history else { return Ok(History::new(&self.fqrn)) };
        let file = fetch_to_scratch(&*self.store, hash.object(ObjectKind::History), scratch)?;
        History::read(file.path()).map_err(self.database("tag database"))
    }

    pub(crate) fn write_history(
        &self,
        history: &History,
        previous: ContentHash,
        algorithm: Algorithm,
        scratch: &Path,
    ) -> Result<ContentHash, RepositoryError> {
        let file = scratch_file(scratch)?;
        history.write(file.path(), previous).map_err(self.database("tag database"))?;
        let mut plain = File::open(file.path()).map_err(scratch_error(scratch))?;
        Ok(put_stream(&*self.store, Encoding { algorithm, codec: self.codec }, ObjectKind::History, &mut plain)?.0)
    }

    /// Whether the stored manifest is still the one that was opened; the error says which revision is there now.
    pub(crate) fn expect_unmoved(&self) -> Result<(), RepositoryError> {
        let current = self.store.read(names::MANIFEST)?;
        if current == self.sealed { Ok(()) } else { Err(self.moved(current)) }
    }

    fn moved(&self, current: Option<Vec<u8>>) -> RepositoryError {
        let found = current.and_then(|m| Manifest::parse(&m).ok()).map_or(0, |m| m.revision);
        RepositoryError::Moved { fqrn: self.fqrn.clone(), expected: self.manifest.revision, found }
    }

    /// Last steps of every publish: reflog, everything durable, manifest.
    ///
    /// `checksum` is the file beside the repository that names the hash of the reflog. It is written first, the
    /// manifest last: whatever stands between them, the reflog matches one of the two.
    pub(crate) fn finish(
        self,
        manifest: Manifest,
        signer: &Signer,
        scratch: &Path,
        checksum: Option<&Path>,
    ) -> Result<Repository, RepositoryError> {
        let file = scratch_file(scratch)?;
        let old = self.store.read(names::REFLOG)?;
        if let Some(old) = &old {
            std::fs::write(file.path(), old).map_err(scratch_error(scratch))?;
        }
        let entries = [
            (Some(manifest.root_catalog), RefKind::Catalog),
            (manifest.certificate, RefKind::Certificate),
            (manifest.history, RefKind::History),
            (manifest.meta_info, RefKind::MetaInfo),
        ];
        let refs: Vec<Ref> = entries
            .into_iter()
            .filter_map(|(hash, kind)| Some(Ref { hash: hash?, kind, timestamp: manifest.published }))
            .collect();
        reflog::append(file.path(), &self.fqrn, &refs).map_err(self.database("reflog"))?;
        let content = std::fs::read(file.path()).map_err(scratch_error(scratch))?;
        self.replace_manifest(manifest, old.as_deref(), &content, signer, checksum)
    }

    /// The last of these steps, for a reflog that is made already.
    fn replace_manifest(
        self,
        mut manifest: Manifest,
        old_reflog: Option<&[u8]>,
        reflog: &[u8],
        signer: &Signer,
        checksum: Option<&Path>,
    ) -> Result<Repository, RepositoryError> {
        let algorithm = manifest.root_catalog.algorithm;
        let hash = ContentHash::of(algorithm, reflog);
        manifest.reflog = Some(hash);
        let sealed = seal(&manifest.print(), algorithm, &signer.key, Scheme::Digest)
            .map_err(|source| RepositoryError::Sign(self.fqrn.clone(), source))?;
        if manifest.alternative_paths {
            let objects = [
                Some(manifest.root_catalog.object(ObjectKind::Catalog)),
                manifest.certificate.map(|h| h.object(ObjectKind::Certificate)),
                manifest.history.map(|h| h.object(ObjectKind::History)),
                manifest.meta_info.map(|h| h.object(ObjectKind::MetaInfo)),
            ];
            for id in objects.into_iter().flatten() {
                self.store.alias(&names::alternative(id), id)?;
            }
        }
        self.replace_reflog(old_reflog, reflog, hash, checksum)?;
        if !self.store.swap(names::MANIFEST, self.sealed.as_deref(), &sealed)? {
            return Err(self.moved(self.store.read(names::MANIFEST)?));
        }
        Ok(Repository { manifest, sealed: Some(sealed), ..self })
    }

    /// Everything durable, then the hash of the reflog, then the reflog, if it is still the old one: of two publishers,
    /// none may take out what the other added.
    fn replace_reflog(
        &self,
        old: Option<&[u8]>,
        new: &[u8],
        hash: ContentHash,
        checksum: Option<&Path>,
    ) -> Result<(), RepositoryError> {
        self.store.flush()?;
        if let Some(path) = checksum {
            write_checksum(path, hash).map_err(scratch_error(path))?;
        }
        if !self.store.swap(names::REFLOG, old, new)? {
            return Err(self.moved(self.store.read(names::MANIFEST)?));
        }
        Ok(())
    }

    fn database(&self, what: &'static str) -> impl Fn(rusqlite::Error) -> RepositoryError + '_ {
        move |source| RepositoryError::Database { what, fqrn: self.fqrn.clone(), source }
    }
}

fn write_checksum(path: &Path, hash: ContentHash) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = NamedTempFile::new_in(directory)?;
    io::Write::write_all(&mut file, hash.to_string().as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    // Who publishes as root leaves the file to whom the directory belongs.
    let owner = std::fs::metadata(directory)?;
    if nix::unistd::geteuid().is_root() && owner.uid() != 0 {
        fchown(file.as_file(), Some(owner.uid()), Some(owner.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    // It has to be there before the reflog that it names.
    File::open(directory)?.sync_all()
}

/// An empty root catalog of revision 0, stored.
fn empty_root(store: &dyn Store, options: &CreateOptions) -> Result<(ContentHash, u64), RepositoryError> {
    let file = scratch_file(&options.scratch)?;
    let catalog = CatalogWriter::create(file.path())?;
    catalog.insert(PathKey::ROOT, PathKey::NONE, &Entry::directory("", options.root))?;
    let mut counters = Counters::default();
    counters.own[Counter::Dir] = 1;
    catalog.set_counters(&counters)?;
    catalog.set_property("revision", "0")?;
    catalog.set_property("TTL", &options.ttl.to_string())?;
    catalog.set_property("last_modified", &options.now.unix_timestamp().to_string())?;
    let size = catalog.finish()?;
    let mut plain = File::open(file.path()).map_err(scratch_error(&options.scratch))?;
    Ok((put_stream(store, options.algorithm, ObjectKind::Catalog, &mut plain)?.0, size))
}

fn meta_info_text(fqrn: &str) -> String {
    let info = serde_json::json!({
        "administrator": "", "email": "", "organisation": "", "description": format!("Container images: {fqrn}"),
        "url": "", "recommended-stratum0": "", "recommended-stratum1s": [], "custom": {},
    });
    format!("{info:#}\n")
}

/// A private copy of a database object, verified.
pub(crate) fn fetch_to_scratch(
    store: &dyn Store,
    id: ObjectId,
    scratch: &Path,
) -> Result<NamedTempFile, RepositoryError> {
    let file = scratch_file(scratch)?;
    let mut out = io::BufWriter::new(file.as_file());
    fetch(store, id, Compression::Zlib, DATABASE_LIMIT, &mut out)?;
    out.into_inner().map_err(|e| scratch_error(scratch)(e.into_error()))?;
    Ok(file)
}

pub(crate) fn scratch_file(scratch: &Path) -> Result<NamedTempFile, RepositoryError> {
    tempfile::Builder::new().prefix("cvmfs.").tempfile_in(scratch).map_err(scratch_error(scratch))
}

pub(crate) fn scratch_error(place: &Path) -> impl FnOnce(io::Error) -> RepositoryError + use<> {
    let place = place.to_owned();
    move |source| RepositoryError::Scratch { place, source }
}
