//! Which revision to show: the newest one that can be trusted.
//!
//! Trusted means: the manifest is signed by a certificate that the whitelist names, the whitelist is signed
//! by one of our master keys and has not expired, and everything names this repository. The newest revision
//! ever mounted is noted in a breadcrumb beside the cache, so that an old one can't be passed off as new
//! and a mount is possible while no server can be reached.
//!
//! Facts: a manifest whose time is older than what is known is refused; only a higher revision number
//! replaces what is mounted, whatever its hash. When the certificate is merely not on the whitelist, another
//! server is not asked; for any other failure to verify, it is, once.

pub mod breadcrumb;
mod tags;

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cvmfs::blacklist::Blacklist;
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::history::History;
use cvmfs::manifest::Manifest;
use cvmfs::signature::PublicKey;
use cvmfs::trust::{Anchor, TrustError};

use crate::catalogs::{AttachError, Catalogs, RootRef};
use crate::config::{Config, Snapshot};
use crate::fetch::http::TransportError;
use crate::fetch::route::Fault;
use crate::fetch::{FetchError, Objects, Source, Want};

pub use breadcrumb::Breadcrumb;

const MAX_MANIFEST: usize = 1 << 20;
const MAX_CERTIFICATE: u64 = 1 << 20;
/// A hundred thousand tags take some 20 MB.
const MAX_HISTORY: u64 = 1 << 30;

/// No revision can be shown, or no newer one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevisionError {
    /// A file of the configuration cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A master key is no key.
    #[error("{path} is not a public key: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Manifest or whitelist cannot be downloaded.
    #[error("cannot download {0}")]
    Download(&'static str, #[source] TransportError),
    /// The certificate cannot be had.
    #[error("cannot get the certificate")]
    Certificate(#[source] Arc<FetchError>),
    /// The tag database cannot be had.
    #[error("cannot get the tags of {fqrn}")]
    History {
        /// Repository.
        fqrn: String,
        /// Why.
        #[source]
        source: Arc<FetchError>,
    },
    /// The tag database is none of this repository.
    #[error("the tags of {fqrn}, object {hash}, cannot be used: {what}")]
    Tags {
        /// Repository.
        fqrn: String,
        /// The tag database.
        hash: ContentHash,
        /// What is wrong.
        what: String,
    },
    /// There is no such snapshot.
    #[error("{fqrn} has {reason}")]
    NoSnapshot {
        /// Repository.
        fqrn: String,
        /// What is missing, and what there is.
        reason: String,
    },
    /// The manifest names no certificate.
    #[error("the manifest names no certificate, so nothing proves that it is genuine")]
    NoCertificate,
    /// The trust chain is broken.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The server has an older state than we know.
    #[error(
        "the server offers revision {offered} of time {published}, but {known} of time {newest} is known: outdated or \
         replayed. If the repository was made anew, remove {breadcrumb}"
    )]
    Outdated {
        /// Revision of the server.
        offered: u64,
        /// Its time, Unix seconds.
        published: u64,
        /// Revision known.
        known: u64,
        /// Its time.
        newest: u64,
        /// Where the known revision is written down.
        breadcrumb: PathBuf,
    },
    /// This revision is blacklisted.
    #[error("revision {revision} of {fqrn} is blacklisted: at least {least} is required")]
    Blacklisted {
        /// Repository.
        fqrn: String,
        /// Revision.
        revision: u64,
        /// Lowest revision allowed.
        least: u64,
    },
    /// The root catalog cannot be opened.
    #[error(transparent)]
    Root(#[from] AttachError),
    /// The breadcrumb cannot be written.
    #[error("cannot write {path}")]
    Breadcrumb {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A revision that may be shown.
#[derive(Debug)]
pub struct Revision {
    /// Its number, by the manifest.
    pub number: u64,
    /// Time of publication, Unix seconds.
    pub published: u64,
    /// Name of the snapshot, when it was chosen by name or date.
    pub tag: Option<String>,
    /// Signed description; none when it was mounted from the cache or by its root hash.
    pub manifest: Option<Manifest>,
    /// Its catalogs.
    pub catalogs: Catalogs,
}

impl Revision {
    /// Root catalog.
    pub fn root_hash(&self) -> ContentHash {
        self.catalogs.root().hash()
    }
}

/// The repository as seen through its servers and the cache.
#[derive(Debug)]
pub struct Repository {
    objects: Arc<Objects>,
    fqrn: String,
    keys: Vec<PublicKey>,
    blacklists: Vec<PathBuf>,
    workspace: PathBuf,
    snapshot: Snapshot,
    watermark: usize,
}

/// How a revision came to be chosen at mount.
#[derive(Debug)]
pub struct Mounted {
    /// The revision.
    pub revision: Revision,
    /// Why the servers' state was not used, when it was not.
    pub offline: Option<RevisionError>,
}

impl Repository {
    /// Reads the master keys.
    pub fn new(config: &Config, objects: &Arc<Objects>) -> Result<Repository, RevisionError> {
        let key = |path: &PathBuf| {
            let pem =
                std::fs::read_to_string(path).map_err(|source| RevisionError::Read { path: path.clone(), source })?;
            PublicKey::from_pem(&pem).map_err(|e| RevisionError::Key { path: path.clone(), reason: e.to_string() })
        };
        Ok(Repository {
            objects: objects.clone(),
            fqrn: config.fqrn.clone(),
            keys: config.master_keys.iter().map(key).collect::<Result<_, _>>()?,
            blacklists: config.blacklists.clone(),
            workspace: config.workspace.clone(),
            snapshot: config.snapshot.clone(),
            watermark: config.watermark,
        })
    }

    /// Repository name.
    pub fn fqrn(&self) -> &str {
        &self.fqrn
    }

    /// Objects of the repository.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// The trusted master keys, as PEM text.
    pub fn master_keys(&self) -> String {
        self.keys.iter().filter_map(|key| key.to_pem().ok()).collect()
    }

    /// The revision to start with: the one that is asked for; else the servers' newest, or what is known from
    /// before when that is newer or the servers can't give anything trustworthy.
    pub fn mount(&self) -> Result<Mounted, RevisionError> {
        let newest = self.breadcrumb(&Snapshot::Newest);
        let opened = match &self.snapshot {
            Snapshot::Root(hash) => return self.mount_root(*hash),
            Snapshot::Newest => self.manifest(newest).and_then(|manifest| self.open(manifest)),
            chosen => self.manifest(newest).and_then(|manifest| self.open_tag(manifest, chosen)),
        };
        let error = match opened {
            Ok(revision) => {
                self.write_breadcrumb(&revision)?;
                return Ok(Mounted { revision, offline: None });
            }
            Err(error) => error,
        };
        let known = self.breadcrumb(&self.snapshot).filter(|_| !matches!(error, RevisionError::NoSnapshot { .. }));
        let Some(known) = known else { return Err(error) };
        tracing::warn!(
            error = format!("{:#}", Chain(&error)),
            revision = known.revision,
            "mounting the revision known from before"
        );
        self.check_revision(known.revision)?;
        match self.catalogs(RootRef { hash: known.root, size: 0, alternative: false }) {
            Ok(catalogs) => {
                let Breadcrumb { published, revision, tag, .. } = known;
                let revision = Revision { number: revision, published, tag, manifest: None, catalogs };
                Ok(Mounted { revision, offline: Some(error) })
            }
            // The first failure is the one to be repaired.
            Err(_) => Err(error),
        }
    }

    /// Whoever names a root catalog by its hash trusts it; nothing is left to verify but the hash.
    fn mount_root(&self, hash: ContentHash) -> Result<Mounted, RevisionError> {
        let catalogs = self.catalogs(RootRef { hash, size: 0, alternative: false })?;
        let root = catalogs.root();
        let number = root.catalog().revision().map_err(|e| root.error(e))?;
        let published = root.catalog().last_modified().map_err(|e| root.error(e))?;
        self.check_revision(number)?;
        let revision = Revision { number, published, tag: None, manifest: None, catalogs };
        Ok(Mounted { revision, offline: None })
    }

    fn open_tag(&self, manifest: Manifest, chosen: &Snapshot) -> Result<Revision, RevisionError> {
        let history = match manifest.history {
            Some(hash) => self.history(hash)?,
            None => History::new(&self.fqrn),
        };
        let tag = tags::choose(&history, chosen)
            .map_err(|reason| RevisionError::NoSnapshot { fqrn: self.fqrn.clone(), reason })?;
        self.check_revision(tag.revision)?;
        let catalogs = self.catalogs(RootRef { hash: tag.root, size: tag.size, alternative: false })?;
        let (number, published) = (tag.revision, tag.timestamp);
        Ok(Revision { number, published, tag: Some(tag.name.clone()), manifest: Some(manifest), catalogs })
    }

    fn history(&self, hash: ContentHash) -> Result<History, RevisionError> {
        let want = Want::bounded(hash.object(ObjectKind::History), MAX_HISTORY);
        let read = || {
            let file = self
                .objects
                .fetch(&want)
                .map_err(|source| RevisionError::History { fqrn: self.fqrn.clone(), source })?;
            // Through the descriptor, because another client may evict the file at this very moment.
            let history = History::read(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())));
            let what = match history {
                Ok(history) if history.fqrn == self.fqrn => return Ok(history),
                Ok(history) => format!("they are those of {}", history.fqrn),
                Err(error) => error.to_string(),
            };
            self.objects.discard(&want);
            Err(RevisionError::Tags { fqrn: self.fqrn.clone(), hash, what })
        };
        match read() {
            // The object was right when it came, so perhaps its file was damaged since.
            Err(RevisionError::Tags { .. }) => read(),
            result => result,
        }
    }

    /// A revision that is newer than `mounted`, if the servers have one.
    pub fn newer(&self, mounted: &Revision) -> Result<Option<Revision>, RevisionError> {
        let root = mounted.catalogs.root();
        let modified = root.catalog().last_modified().map_err(|e| root.error(e))?;
        let known = Breadcrumb {
            root: mounted.root_hash(),
            published: mounted.published.max(modified),
            revision: mounted.number,
            tag: None,
        };
        let manifest = self.manifest_after(known)?;
        let Some(manifest) = manifest else { return Ok(None) };
        let revision = self.open(manifest)?;
        revision.catalogs.succeed(&mounted.catalogs);
        self.write_breadcrumb(&revision)?;
        Ok(Some(revision))
    }

    /// The servers' manifest, verified; refused when it is older than what is known.
    fn manifest(&self, known: Option<Breadcrumb>) -> Result<Manifest, RevisionError> {
        self.verified(|manifest| match &known {
            Some(known) if manifest.published < known.published || manifest.revision < known.revision => {
                Err(self.outdated(manifest, known))
            }
            // The same number with other contents: what was there first stays.
            Some(known) if manifest.revision == known.revision && manifest.root_catalog != known.root => {
                Err(self.outdated(manifest, known))
            }
            _ => Ok(true),
        })
        .map(|manifest| manifest.expect("every manifest that is not refused is wanted"))
    }

    /// The same, but only if its revision is higher.
    fn manifest_after(&self, known: Breadcrumb) -> Result<Option<Manifest>, RevisionError> {
        self.verified(|manifest| match manifest.published < known.published {
            true => Err(self.outdated(manifest, &known)),
            false => Ok(manifest.revision > known.revision && manifest.root_catalog != known.root),
        })
    }

    /// Downloads and verifies the manifest, if `wanted` says so after a first look at it.
    fn verified(
        &self,
        wanted: impl Fn(&Manifest) -> Result<bool, RevisionError>,
    ) -> Result<Option<Manifest>, RevisionError> {
        let transport = self.objects.transport();
        let first = self.verify_once(&wanted);
        let second_server_may_help = match &first {
            Err(RevisionError::Trust(error)) => !matches!(error, TrustError::NotListed(_) | TrustError::Blacklisted(_)),
            Err(RevisionError::Certificate(_) | RevisionError::Outdated { .. }) => true,
            _ => false,
        };
        if second_server_may_help && transport.routes().servers().len() > 1 {
            // The one in use now is the one that gave it.
            let route = transport.routes().current(Instant::now());
            transport.routes().attempts().failed(&route, Fault::Host, Instant::now());
            return self.verify_once(&wanted);
        }
        first
    }

    fn verify_once(
        &self,
        wanted: &impl Fn(&Manifest) -> Result<bool, RevisionError>,
    ) -> Result<Option<Manifest>, RevisionError> {
        let transport = self.objects.transport();
        let blacklist = self.blacklist()?;
        let anchor = Anchor {
            name: &self.fqrn,
            master_keys: &self.keys,
            blacklist: &blacklist.fingerprints,
            now: time::UtcDateTime::now(),
        };
        let document = transport
            .get_small(".cvmfspublished", MAX_MANIFEST)
            .map_err(|e| RevisionError::Download("the manifest", e))?;
        let manifest = anchor.parse_manifest(&document)?;
        if !wanted(&manifest)? {
            return Ok(None);
        }
        self.check_revision(manifest.revision)?;
        let hash = manifest.certificate.ok_or(RevisionError::NoCertificate)?;
        let mut want = Want::bounded(hash.object(ObjectKind::Certificate), MAX_CERTIFICATE);
        if manifest.alternative_paths {
            want.source = Source::Alternative;
        }
        let whitelist = transport
            .get_small(".cvmfswhitelist", MAX_MANIFEST)
            .map_err(|e| RevisionError::Download("the whitelist", e))?;
        let verify = || -> Result<Manifest, RevisionError> {
            let file = self.objects.fetch(&want).map_err(RevisionError::Certificate)?;
            let certificate = read_all(&file)
                .map_err(|source| RevisionError::Read { path: format!("certificate {hash}").into(), source })?;
            Ok(anchor.verify(&document, &certificate, &whitelist)?)
        };
        let had_it = self.objects.cached(&want).is_some();
        let result = match verify() {
            // The object was right when it came, so perhaps its file was damaged since.
            Err(RevisionError::Trust(TrustError::Certificate(..))) if had_it => {
                self.objects.discard(&want);
                verify()
            }
            result => result,
        };
        if result.is_err() && !had_it {
            // Nothing stays of a repository that is not trusted.
            self.objects.discard(&want);
        }
        result.map(Some)
    }

    fn open(&self, manifest: Manifest) -> Result<Revision, RevisionError> {
        let root = RootRef {
            hash: manifest.root_catalog,
            size: manifest.root_catalog_size,
            alternative: manifest.alternative_paths,
        };
        let catalogs = self.catalogs(root)?;
        let (number, published) = (manifest.revision, manifest.published);
        Ok(Revision { number, published, tag: None, manifest: Some(manifest), catalogs })
    }

    fn catalogs(&self, root: RootRef) -> Result<Catalogs, AttachError> {
        Catalogs::open(&self.objects, root, self.watermark)
    }

    fn blacklist(&self) -> Result<Blacklist, RevisionError> {
        let mut list = Blacklist::default();
        for file in &self.blacklists {
            list.add_file(file, &self.fqrn).map_err(|source| RevisionError::Read { path: file.clone(), source })?;
        }
        Ok(list)
    }

    /// Refuses a revision that is blacklisted, perhaps only since it was mounted.
    pub fn check_revision(&self, revision: u64) -> Result<(), RevisionError> {
        let least = self.blacklist()?.least_revision;
        if revision < least {
            return Err(RevisionError::Blacklisted { fqrn: self.fqrn.clone(), revision, least });
        }
        Ok(())
    }

    fn outdated(&self, manifest: &Manifest, known: &Breadcrumb) -> RevisionError {
        RevisionError::Outdated {
            offered: manifest.revision,
            published: manifest.published,
            known: known.revision,
            newest: known.published,
            breadcrumb: Breadcrumb::place(&self.workspace, &self.fqrn, &Snapshot::Newest).unwrap_or_default(),
        }
    }

    fn breadcrumb(&self, snapshot: &Snapshot) -> Option<Breadcrumb> {
        Breadcrumb::read(&Breadcrumb::place(&self.workspace, &self.fqrn, snapshot)?)
    }

    fn write_breadcrumb(&self, revision: &Revision) -> Result<(), RevisionError> {
        let Some(path) = Breadcrumb::place(&self.workspace, &self.fqrn, &self.snapshot) else { return Ok(()) };
        let (root, published) = (revision.root_hash(), revision.published);
        let crumb = Breadcrumb { root, published, revision: revision.number, tag: revision.tag.clone() };
        crumb.write(&path).map_err(|source| RevisionError::Breadcrumb { path, source })
    }
}

fn read_all(file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// An error with all its causes on one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl std::fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
