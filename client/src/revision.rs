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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::manifest::Manifest;
use cvmfs::signature::PublicKey;
use cvmfs::trust::{Anchor, TrustError};

use crate::catalogs::{AttachError, Catalogs, RootRef};
use crate::config::Config;
use crate::fetch::http::TransportError;
use crate::fetch::route::Fault;
use crate::fetch::{FetchError, Objects, Source, Want};

const MAX_MANIFEST: usize = 1 << 20;
const MAX_CERTIFICATE: u64 = 1 << 20;

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

/// What is remembered of the newest revision mounted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breadcrumb {
    /// Root catalog.
    pub root: ContentHash,
    /// Time of publication, Unix seconds.
    pub published: u64,
    /// Revision.
    pub revision: u64,
}

impl Breadcrumb {
    /// `<root hash>T<time>R<revision>`.
    fn parse(text: &str) -> Option<Breadcrumb> {
        let (root, rest) = text.trim_end().split_once('T')?;
        let (published, revision) = rest.split_once('R')?;
        Some(Breadcrumb {
            root: root.parse().ok()?,
            published: published.parse().ok()?,
            revision: revision.parse().ok()?,
        })
    }

    fn print(&self) -> String {
        format!("{}T{}R{}\n", self.root, self.published, self.revision)
    }
}

/// A revision that may be shown.
#[derive(Debug)]
pub struct Revision {
    /// Its number, by the manifest.
    pub number: u64,
    /// Time of publication, Unix seconds.
    pub published: u64,
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

/// Fingerprints and revisions that are refused.
#[derive(Debug, Default, Clone)]
struct Blacklist {
    fingerprints: Vec<ContentHash>,
    least_revision: u64,
}

impl Blacklist {
    /// Lines are fingerprints, or `<FQRN N`: revisions below N must not be mounted.
    fn parse(text: &str, fqrn: &str) -> Blacklist {
        let mut list = Blacklist::default();
        for line in text.lines() {
            if let Some(rule) = line.strip_prefix('<') {
                let mut words = rule.split_whitespace();
                let rule = (words.next(), words.next().map(str::parse), words.next());
                if let (Some(name), Some(Ok(least)), None) = rule
                    && name == fqrn
                {
                    list.least_revision = list.least_revision.max(least);
                }
                continue;
            }
            let text = line.split([' ', '\t', '#']).next().unwrap_or_default();
            list.fingerprints.extend(text.replace(':', "").to_ascii_lowercase().parse::<ContentHash>().ok());
        }
        list
    }
}

/// The repository as seen through its servers and the cache.
#[derive(Debug)]
pub struct Repository {
    objects: Arc<Objects>,
    fqrn: String,
    keys: Vec<PublicKey>,
    blacklists: Vec<PathBuf>,
    breadcrumb: PathBuf,
    root_hash: Option<ContentHash>,
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
            blacklists: vec![config.blacklist.clone().unwrap_or_else(|| "/etc/cvmfs/blacklist".into())],
            breadcrumb: config.cache.join(format!("breadcrumb.{}", config.fqrn)),
            root_hash: config.root_hash,
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

    /// The revision to start with: the servers' newest, or what the cache knows when that is newer or the
    /// servers can't give anything trustworthy.
    pub fn mount(&self) -> Result<Mounted, RevisionError> {
        if let Some(hash) = self.root_hash {
            let catalogs = self.catalogs(RootRef { hash, alternative: false })?;
            let number = catalogs.root().catalog().revision().map_err(|e| catalogs.root().error(e))?;
            return Ok(Mounted {
                revision: Revision { number, published: 0, manifest: None, catalogs },
                offline: None,
            });
        }
        let known = self.read_breadcrumb();
        let error = match self.manifest(known).and_then(|manifest| self.open(manifest)) {
            Ok(revision) => {
                self.write_breadcrumb(&revision)?;
                return Ok(Mounted { revision, offline: None });
            }
            Err(error) => error,
        };
        let Some(known) = known else { return Err(error) };
        tracing::warn!(
            error = format!("{:#}", Chain(&error)),
            revision = known.revision,
            "mounting the revision known from before"
        );
        self.check_revision(known.revision)?;
        match self.catalogs(RootRef { hash: known.root, alternative: false }) {
            Ok(catalogs) => {
                let revision =
                    Revision { number: known.revision, published: known.published, manifest: None, catalogs };
                Ok(Mounted { revision, offline: Some(error) })
            }
            // The first failure is the one to be repaired.
            Err(_) => Err(error),
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
        };
        self.check_revision(mounted.number)?;
        let manifest = self.manifest_after(known)?;
        let Some(manifest) = manifest else { return Ok(None) };
        let revision = self.open(manifest)?;
        revision.catalogs.succeed(&mounted.catalogs);
        self.write_breadcrumb(&revision)?;
        Ok(Some(revision))
    }

    /// The servers' manifest, verified; refused when it is older than what is known.
    fn manifest(&self, known: Option<Breadcrumb>) -> Result<Manifest, RevisionError> {
        self.verified(|manifest| match known {
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
            true => Err(self.outdated(manifest, known)),
            false => Ok(manifest.revision > known.revision && manifest.root_catalog != known.root),
        })
    }

    /// Downloads and verifies the manifest, if `wanted` says so after a first look at it.
    fn verified(
        &self,
        wanted: impl Fn(&Manifest) -> Result<bool, RevisionError>,
    ) -> Result<Option<Manifest>, RevisionError> {
        let transport = self.objects.transport();
        let route = transport.routes().current(Instant::now());
        let first = self.verify_once(&wanted);
        let second_server_may_help = match &first {
            Err(RevisionError::Trust(error)) => !matches!(error, TrustError::NotListed(_) | TrustError::Blacklisted(_)),
            Err(RevisionError::Certificate(_)) => true,
            _ => false,
        };
        if second_server_may_help && transport.routes().network().servers.len() > 1 {
            transport.routes().attempts().failed(route, Fault::Host, Instant::now());
            return self.verify_once(&wanted);
        }
        first
    }

    fn verify_once(
        &self,
        wanted: &impl Fn(&Manifest) -> Result<bool, RevisionError>,
    ) -> Result<Option<Manifest>, RevisionError> {
        let transport = self.objects.transport();
        let blacklist = self.blacklist();
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
        match verify() {
            // The object was right when it came, so perhaps its file was damaged since.
            Err(RevisionError::Trust(TrustError::Certificate(..))) => {
                self.objects.discard(&want);
                verify().map(Some)
            }
            result => result.map(Some),
        }
    }

    fn open(&self, manifest: Manifest) -> Result<Revision, RevisionError> {
        let root = RootRef { hash: manifest.root_catalog, alternative: manifest.alternative_paths };
        let catalogs = self.catalogs(root)?;
        Ok(Revision { number: manifest.revision, published: manifest.published, manifest: Some(manifest), catalogs })
    }

    fn catalogs(&self, root: RootRef) -> Result<Catalogs, AttachError> {
        Catalogs::open(&self.objects, root, self.watermark)
    }

    fn blacklist(&self) -> Blacklist {
        let texts: Vec<String> = self.blacklists.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        Blacklist::parse(&texts.join("\n"), &self.fqrn)
    }

    fn check_revision(&self, revision: u64) -> Result<(), RevisionError> {
        let least = self.blacklist().least_revision;
        if revision < least {
            return Err(RevisionError::Blacklisted { fqrn: self.fqrn.clone(), revision, least });
        }
        Ok(())
    }

    fn outdated(&self, manifest: &Manifest, known: Breadcrumb) -> RevisionError {
        RevisionError::Outdated {
            offered: manifest.revision,
            published: manifest.published,
            known: known.revision,
            newest: known.published,
            breadcrumb: self.breadcrumb.clone(),
        }
    }

    fn read_breadcrumb(&self) -> Option<Breadcrumb> {
        Breadcrumb::parse(&std::fs::read_to_string(&self.breadcrumb).ok()?)
    }

    fn write_breadcrumb(&self, revision: &Revision) -> Result<(), RevisionError> {
        let crumb = Breadcrumb { root: revision.root_hash(), published: revision.published, revision: revision.number };
        if self.read_breadcrumb() == Some(crumb) {
            return Ok(());
        }
        write_durably(&self.breadcrumb, crumb.print().as_bytes())
            .map_err(|source| RevisionError::Breadcrumb { path: self.breadcrumb.clone(), source })
    }
}

fn read_all(file: &std::fs::File) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Old or new contents, never a mixture, even after a power failure.
fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(directory)?.sync_all()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breadcrumbs_round_trip() {
        let text = "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78-rmd160T1760000000R17\n";
        let crumb = Breadcrumb::parse(text).unwrap();
        assert_eq!((crumb.published, crumb.revision), (1760000000, 17));
        assert_eq!(crumb.print(), text);
        for bad in ["", "e8", "T1R2", "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78T1", "zT1R1"] {
            assert_eq!(Breadcrumb::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn blacklists_name_certificates_and_revisions() {
        let text = "# comment\nE8:B6:D7:DD:4F:65:5E:8F:4E:39:B8:19:80:48:9A:99:AA:5A:F7:0D # stolen\n\
                    <a.example.org 7\n<a.example.org 5\n<b.example.org 9\n<a.example.org 99 extra\nnonsense\n";
        let list = Blacklist::parse(text, "a.example.org");
        assert_eq!(list.least_revision, 7);
        assert_eq!(list.fingerprints.len(), 1);
    }
}
