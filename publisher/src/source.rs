//! Where images come from: registries, OCI layouts and saved archives on disk, behind the same few questions.
//!
//! Everything handed out was compared with its digest; a stream reports its end only after it matched. The questions
//! are blocking: network work runs on the runtime, callers are threads of the pipeline.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::hash::Hash;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use image::digest::{Digest, ImageId, LayerDigest, ManifestDigest};
use image::manifest::{Document, Index, LayerDescriptor, MAX_DOCUMENT};
use image::reference::{ImageSource, Reference, Repository};
use parking_lot::Mutex;
use registry::{Client, RawManifest};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio_util::io::SyncIoBridge;

use crate::docker_archive::DockerArchive;
use crate::error::Signal;
use crate::failure::Failure;
use crate::pulse::Pulse;
use crate::signature::simple::Found;
use crate::signature::{bundle, simple};
use crate::stop::Stop;

/// Questions that one registry has to answer at the same time.
const TOGETHER: usize = 16;
/// Network reads come in pieces of this size.
const BUFFER: usize = 256 << 10;

/// Opens sources.
#[derive(Debug)]
pub struct Sources {
    client: Client,
    /// The same without any credentials.
    anonymous: Option<Client>,
    runtime: Handle,
    scratch: PathBuf,
    stop: Stop,
    pulse: Pulse,
    archives: Mutex<HashMap<String, Arc<DockerArchive>>>,
}

/// An image, and with whose credentials it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked<'a> {
    source: &'a ImageSource,
    credentials: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// With the credentials that the operator's configuration calls by this name.
    pub fn new(source: &'a ImageSource, credentials: Option<&'a str>) -> Self {
        Self { source, credentials }
    }

    /// The image.
    pub fn source(&self) -> &'a ImageSource {
        self.source
    }
}

impl<'a> From<&'a ImageSource> for Asked<'a> {
    fn from(source: &'a ImageSource) -> Self {
        Self { source, credentials: None }
    }
}

/// A document with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDocument {
    /// Digest of the bytes.
    pub digest: ManifestDigest,
    /// Bytes.
    pub bytes: Vec<u8>,
    /// What it was declared to be.
    pub media_type: Option<String>,
}

impl RawDocument {
    /// The document as a value.
    pub fn parse(&self) -> Result<Document, Failure> {
        Ok(Document::parse(&self.bytes, self.media_type.as_deref())?)
    }
}

impl From<RawManifest> for RawDocument {
    fn from(raw: RawManifest) -> Self {
        Self { digest: raw.digest, bytes: raw.bytes.to_vec(), media_type: Some(raw.media_type) }
    }
}

impl Sources {
    /// Registries are asked by `client` on `runtime`; archives are unpacked into `scratch`.
    pub fn new(client: Client, runtime: Handle, scratch: &Path) -> Sources {
        let (stop, pulse, archives) = (Stop::default(), Pulse::default(), Mutex::default());
        Sources { client, anonymous: None, runtime, scratch: scratch.to_owned(), stop, pulse, archives }
    }

    /// The same, which can find out what everybody may read: by asking with a client that has no credentials.
    #[must_use]
    pub fn with_anonymous(self, client: Client) -> Sources {
        Sources { anonymous: Some(client), ..self }
    }

    /// The same, until somebody asks to stop.
    #[must_use]
    pub fn with_stop(self, stop: Stop) -> Sources {
        Sources { stop, ..self }
    }

    /// The same, whose answers are signs of life.
    #[must_use]
    pub fn with_pulse(self, pulse: Pulse) -> Sources {
        Sources { pulse, ..self }
    }

    /// Waits for a registry, but not for longer than it may.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, registry::Error>>) -> Result<T, Failure> {
        self.runtime.block_on(self.stoppable(answer))
    }

    async fn stoppable<T>(&self, answer: impl Future<Output = Result<T, registry::Error>>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.stop.wait() => Err(Failure::Stopped(self.stop.asked().unwrap_or(Signal::Terminate))),
            answer = answer => {
                self.pulse.beat();
                Ok(answer?)
            }
        }
    }

    /// An archive, unpacked at its first use.
    fn archive(&self, file: &str) -> Result<Arc<DockerArchive>, Failure> {
        let mut archives = self.archives.lock();
        if let Some(known) = archives.get(file) {
            return Ok(known.clone());
        }
        let archive = Arc::new(DockerArchive::unpack(Path::new(file), &self.scratch)?);
        archives.insert(file.to_owned(), archive.clone());
        Ok(archive)
    }

    /// The client that has the credentials which are named.
    fn client(&self, credentials: Option<&str>) -> Result<Client, Failure> {
        Ok(self.client.with_credentials(credentials)?)
    }

    /// Asks many questions at once, each once however often it stands there; answers are in the order of the questions. Each registry is
    /// asked at its own pace: one that is slow or paused holds back nobody's images but its own.
    fn all<'a, Q, T>(
        &self,
        questions: &[Q],
        asked: impl Fn(&Q) -> Asked<'a>,
        registry: impl AsyncFn(Client, &Reference, &Q) -> Result<T, registry::Error>,
        disk: impl Fn(&Q) -> Result<T, Failure>,
    ) -> Vec<Result<T, Failure>>
    where
        Q: Copy + Eq + Hash,
        T: Clone,
    {
        let mut answers: HashMap<Q, Result<T, Arc<Failure>>> = HashMap::new();
        let mut registries: BTreeMap<&str, Vec<(&Reference, Q)>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for question in questions.iter().copied().filter(|question| seen.insert(*question)) {
            match asked(&question).source {
                ImageSource::Registry(reference) => {
                    registries.entry(reference.registry_host()).or_default().push((reference, question));
                }
                _ => {
                    answers.insert(question, disk(&question).map_err(Arc::new));
                }
            }
        }
        let one = async |(reference, question): (&Reference, Q)| {
            let answer = match self.client(asked(&question).credentials) {
                Ok(client) => self.stoppable(registry(client, reference, &question)).await,
                Err(failure) => Err(failure),
            };
            (question, answer.map_err(Arc::new))
        };
        let of_registry = |asked| stream::iter(asked).map(&one).buffer_unordered(TOGETHER).collect::<Vec<_>>();
        let all = join_all(registries.into_values().map(of_registry));
        answers.extend(self.runtime.block_on(all).into_iter().flatten());
        let unasked = || Err(Failure::Elsewhere("nobody was asked".into()));
        let answer = |answer: &Result<T, Arc<Failure>>| answer.clone().map_err(Failure::Shared);
        questions.iter().map(|question| answers.get(question).map_or_else(unasked, answer)).collect()
    }

    /// [`Self::resolve`] for many at once.
    pub fn resolve_all(&self, asked: &[Asked<'_>]) -> Vec<Result<ManifestDigest, Failure>> {
        let resolve = async |client: Client, reference: &Reference, _: &_| client.resolve(reference).await;
        self.all(asked, |asked| *asked, resolve, |asked| self.resolve(*asked))
    }

    /// [`Self::document`] for many at once.
    pub fn documents(&self, asked: &[(Asked<'_>, ManifestDigest)]) -> Vec<Result<RawDocument, Failure>> {
        let document = async |client: Client, reference: &Reference, (_, digest): &(Asked<'_>, ManifestDigest)| {
            Ok(client.manifest(&reference.with_digest(*digest)).await?.into())
        };
        self.all(asked, |(asked, _)| *asked, document, |(asked, digest)| self.document(*asked, *digest))
    }

    /// [`Self::config`] for many at once.
    pub fn configs(&self, asked: &[(Asked<'_>, ImageId)]) -> Vec<Result<Vec<u8>, Failure>> {
        let config = async |client: Client, reference: &Reference, (_, config): &(Asked<'_>, ImageId)| {
            Ok(client.blob_bytes(reference.repository(), config.digest()).await?.to_vec())
        };
        self.all(asked, |(asked, _)| *asked, config, |(asked, config)| self.config(*asked, *config))
    }

    /// Digest of the document that a source names now.
    pub fn resolve<'a>(&self, asked: impl Into<Asked<'a>>) -> Result<ManifestDigest, Failure> {
        let Asked { source, credentials } = asked.into();
        match source {
            ImageSource::Registry(reference) => self.wait(self.client(credentials)?.resolve(reference)),
            ImageSource::OciLayout { dir, tag } => {
                Ok(OciLayout(Path::new(dir)).index()?.tagged(tag.as_deref())?.digest)
            }
            ImageSource::DockerArchive { file } => {
                Ok(OciLayout(self.archive(file)?.directory()).index()?.tagged(None)?.digest)
            }
        }
    }

    /// The document with this digest.
    pub fn document<'a>(&self, asked: impl Into<Asked<'a>>, digest: ManifestDigest) -> Result<RawDocument, Failure> {
        let Asked { source, credentials } = asked.into();
        match source {
            ImageSource::Registry(reference) => {
                Ok(self.wait(self.client(credentials)?.manifest(&reference.with_digest(digest)))?.into())
            }
            ImageSource::OciLayout { dir, .. } => {
                let bytes = OciLayout(Path::new(dir)).small(digest.digest())?;
                Ok(RawDocument { digest, bytes, media_type: None })
            }
            ImageSource::DockerArchive { .. } => {
                Err(Failure::Content("docker-archive has no documents by digest".into()))
            }
        }
    }

    /// The bytes of a config.
    pub fn config<'a>(&self, asked: impl Into<Asked<'a>>, config: ImageId) -> Result<Vec<u8>, Failure> {
        let Asked { source, credentials } = asked.into();
        let digest = config.digest();
        match source {
            ImageSource::Registry(reference) => {
                Ok(self.wait(self.client(credentials)?.blob_bytes(reference.repository(), digest))?.to_vec())
            }
            ImageSource::OciLayout { dir, .. } => OciLayout(Path::new(dir)).small(digest),
            ImageSource::DockerArchive { file } => OciLayout(self.archive(file)?.directory()).small(digest),
        }
    }

    /// The bytes of a layer as a stream.
    pub fn layer<'a>(
        &self,
        asked: impl Into<Asked<'a>>,
        layer: &LayerDescriptor,
    ) -> Result<Box<dyn Read + Send>, Failure> {
        let Asked { source, credentials } = asked.into();
        if let Some(signal) = self.stop.asked() {
            return Err(Failure::Stopped(signal));
        }
        match source {
            ImageSource::Registry(reference) => {
                self.blob(&self.client(credentials)?, reference.repository(), layer.digest, layer.size)
            }
            ImageSource::OciLayout { dir, .. } => OciLayout(Path::new(dir)).blob(layer.digest.digest(), layer.size),
            ImageSource::DockerArchive { file } => {
                OciLayout(self.archive(file)?.directory()).blob(layer.digest.digest(), layer.size)
            }
        }
    }

    fn blob(
        &self,
        client: &Client,
        repository: &Repository,
        layer: LayerDigest,
        size: u64,
    ) -> Result<Box<dyn Read + Send>, Failure> {
        let reader = self.wait(client.blob(repository, layer.digest(), size))?;
        let bridge = SyncIoBridge::new_with_handle(self.stop.guard(reader), self.runtime.clone());
        Ok(Box::new(BufReader::with_capacity(BUFFER, self.pulse.of_reader(bridge))))
    }

    /// The signatures beside the image with this digest, as cosign puts them there; nothing if there are none.
    pub fn signatures<'a>(
        &self,
        asked: impl Into<Asked<'a>>,
        digest: ManifestDigest,
    ) -> Result<Option<Vec<Found>>, Failure> {
        let Asked { source, credentials } = asked.into();
        let ImageSource::Registry(reference) = source else { return Ok(None) };
        let tag = simple::tag(digest);
        let beside = Reference::parse(&format!("{}:{tag}", reference.repository()))?;
        match self.wait(self.client(credentials)?.manifest(&beside)) {
            Ok(manifest) => Ok(Some(simple::list(&manifest.bytes, &tag)?)),
            Err(Failure::Registry(registry::Error::NotFound { .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Manifests of the bundles that refer to the image with this digest and may be signatures of it.
    pub fn bundles<'a>(
        &self,
        asked: impl Into<Asked<'a>>,
        digest: ManifestDigest,
    ) -> Result<Vec<ManifestDigest>, Failure> {
        let Asked { source, credentials } = asked.into();
        let ImageSource::Registry(reference) = source else { return Ok(Vec::new()) };
        let client = self.client(credentials)?;
        let found = self.wait(client.referrers(reference.repository(), digest, bundle::BUNDLE))?;
        Ok(found.iter().filter(|referrer| bundle::may_be_signature(referrer)).map(|referrer| referrer.digest).collect())
    }

    /// What a signature covers, or a bundle.
    pub fn payload<'a>(&self, asked: impl Into<Asked<'a>>, payload: Digest) -> Result<Vec<u8>, Failure> {
        let Asked { source, credentials } = asked.into();
        match source {
            ImageSource::Registry(reference) => {
                Ok(self.wait(self.client(credentials)?.blob_bytes(reference.repository(), payload))?.to_vec())
            }
            _ => Err(Failure::Content("images on disk have no signatures beside them".into())),
        }
    }

    /// Whether everybody may read an image. What is on disk is the operator's own; what was read without credentials needs no question.
    pub fn is_public<'a>(&self, asked: impl Into<Asked<'a>>, digest: ManifestDigest) -> Result<bool, Failure> {
        let Asked { source, credentials } = asked.into();
        let (ImageSource::Registry(reference), Some(anonymous)) = (source, &self.anonymous) else { return Ok(true) };
        if !self.client(credentials)?.has_credentials(reference.repository())? {
            return Ok(true);
        }
        match self.wait(anonymous.manifest(&reference.with_digest(digest))) {
            Ok(_) => Ok(true),
            // Some registries deny to strangers that there is such a thing.
            Err(Failure::Registry(registry::Error::Unauthorized { .. } | registry::Error::NotFound { .. })) => {
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The tags of an image repository, asked for with the credentials of this name.
    pub fn tags(&self, repository: &Repository, credentials: Option<&str>) -> Result<Vec<String>, Failure> {
        self.wait(self.client(credentials)?.tags(repository))
    }
}

/// An OCI image layout.
struct OciLayout<'a>(&'a Path);

impl OciLayout<'_> {
    fn index(&self) -> Result<Index, Failure> {
        let bytes = read_small(&self.0.join("index.json"))?;
        match Document::parse(&bytes, None)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Failure::Content(format!("{}/index.json is not an index", self.0.display()))),
        }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.hex())
    }

    fn small(&self, digest: Digest) -> Result<Vec<u8>, Failure> {
        let path = self.path(digest);
        let bytes = read_small(&path)?;
        let found = Digest::of(&bytes);
        if found == digest { Ok(bytes) } else { Err(mismatch(&path, found)) }
    }

    fn blob(&self, digest: Digest, size: u64) -> Result<Box<dyn Read + Send>, Failure> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(Failure::io("open", &path))?;
        let found = file.metadata().map_err(Failure::io("examine", &path))?.len();
        if found != size {
            return Err(Failure::Content(format!("{} has {found} bytes, the manifest says {size}", path.display())));
        }
        let source = BufReader::with_capacity(BUFFER, file);
        Ok(Box::new(Verified { source, hasher: Some(Sha256::new()), digest, path }))
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, Failure> {
    let file = File::open(path).map_err(Failure::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes).map_err(Failure::io("read", path))?;
    Ok(bytes)
}

fn mismatch(path: &Path, found: Digest) -> Failure {
    Failure::Content(format!("{} has digest {found}, not that of its name", path.display()))
}

/// A file whose digest is compared before its end is reported.
struct Verified<R> {
    source: R,
    hasher: Option<Sha256>,
    digest: Digest,
    path: PathBuf,
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        let Some(hasher) = &mut self.hasher else { return Ok(read) };
        hasher.update(&buffer[..read]);
        if read == 0 && !buffer.is_empty() {
            let found = Digest::from_bytes(self.hasher.take().expect("checked above").finalize().into());
            if found != self.digest {
                return Err(mismatch(&self.path, found).into_io());
            }
        }
        Ok(read)
    }
}
