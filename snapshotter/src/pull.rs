//! Pulls an image through containerd, lazily with every version of it.
//!
//! The clients of containerd 1 tell a snapshotter nothing of the layer they are about to unpack, so they download all of it. This is a
//! client that does: it asks for each layer first, and downloads what the snapshotter does not have.
//!
//! ```text
//! tag ─▶ index ─▶ manifest, config ─▶ content store        nothing of a layer yet
//! for each layer, from the bottom: is its snapshot there? ── yes ─▶ present
//!     Prepare with the layer's names ── already exists ─▶ lazily
//!                                    ── mounts ─▶ blob into the content store ─▶ unpacked, verified, Commit ─▶ downloaded
//! name of the image ─▶ end of the lease
//! ```
//! Layers that no repository has are downloaded beside each other, while those below them are unpacked.
//!
//! Everything is made under a lease. It ends with the last step, when the name of the image keeps everything, or with a failure; if the
//! process is killed, it ends by itself after a day, and a pull until then goes on where this one stopped.
//!
//! The snapshotter is not told of the layers above: it would fill in what is absent, which is done here, with the credentials of
//! whoever pulls.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use futures_util::future::join_all;
use image::digest::{ChainId, DiffId, Digest};
use image::manifest::{Config as ImageConfig, Document, LayerDescriptor, Manifest};
use image::platform::{Platform, choose};
use image::reference::{DOCKER_HUB, Reference};
use registry::{Client, ClientConfig, Credentials, RawManifest};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::containerd::Engine;
use crate::containerd::content::{Blob, source_label};
use crate::containerd::snapshots::Prepared;
use crate::decision::{Action, Decision};
use crate::fill::parse_reference;
use crate::hosts::{self, Sources};
use crate::labels::{self, Labels, LayerName, Wanted};
use crate::resolve::Below;

/// Layers downloaded at a time.
const DOWNLOADS: usize = 3;
/// How often a snapshotter may say that it has a layer which containerd then does not find.
const ATTEMPTS: usize = 3;
/// Annotations of a layer with names like this are labels of its snapshot.
const INHERITED: &str = "containerd.io/snapshot/";

/// What is to be pulled.
#[derive(Debug, Clone)]
pub struct Wish {
    /// which image
    pub image: Reference,
    /// for which machine
    pub platform: Platform,
    /// into which namespace
    pub namespace: String,
    /// directory that names the mirrors of registries, see `hosts`
    pub hosts: Option<PathBuf>,
}

/// Where a layer came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// it was there
    Present,
    /// from a repository
    Lazily(Option<String>),
    /// from the registry, or from containerd's store
    Downloaded {
        /// bytes that came from the registry
        bytes: u64,
        /// why it was not taken from a repository
        reason: Option<String>,
    },
}

/// A layer that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// its number, from 1
    pub number: usize,
    /// digest of its blob
    pub layer: Digest,
    /// where it came from
    pub how: How,
}

/// How many layers came from where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    /// from repositories
    pub lazy: usize,
    /// from the registry
    pub downloaded: usize,
    /// they were there
    pub present: usize,
}

/// A pulled image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pulled {
    /// its name in containerd
    pub image: String,
    /// what the name stands for
    pub digest: String,
    /// where its layers came from
    pub layers: Layers,
    /// bytes that came from the registry or a mirror, with the documents
    pub bytes: u64,
    /// how long it took
    pub seconds: f64,
}

/// The reference that a user of containerd means. Without a scheme, registries of this machine are asked over plain HTTP, and others
/// if `plain_http` says so.
pub fn reference(text: &str, plain_http: bool) -> anyhow::Result<Reference> {
    if text.contains("://") {
        return Ok(Reference::parse(text)?);
    }
    let reference = parse_reference(text)?;
    if !plain_http || reference.registry_host() == DOCKER_HUB {
        return Ok(reference);
    }
    Ok(Reference::parse(&format!("http://{text}"))?)
}

/// The name under which containerd's clients look for an image: `docker.io/library/debian:stable`, `quay.io/x@sha256:…`.
pub fn image_name(reference: &Reference) -> String {
    let base = format!("{}/{}", registry_name(reference), reference.repository().path());
    match (reference.digest(), reference.tag()) {
        // CRI, Docker and nerdctl drop the tag.
        (Some(digest), _) => format!("{base}@{digest}"),
        (None, tag) => format!("{base}:{}", tag.unwrap_or_default()),
    }
}

fn registry_name(reference: &Reference) -> &str {
    match reference.registry_host() {
        DOCKER_HUB => "docker.io",
        host => host,
    }
}

/// Pulls; `report` hears of each layer.
pub async fn pull(config: &Config, wish: &Wish, report: &(dyn Fn(&Done) + Sync)) -> anyhow::Result<Pulled> {
    let start = Instant::now();
    let client = Client::new(ClientConfig { credentials: Credentials::from_env()?, ..ClientConfig::default() })?;
    let mut engine = Engine::connect(&config.containerd.address, &wish.namespace).await?;
    let sources = match &wish.hosts {
        Some(directory) => Sources::new(hosts::read(directory, registry_name(&wish.image))?, client.clone())?,
        None => Sources::only(client.clone()),
    };
    let documents = Documents::obtain(&sources, &engine, wish).await?;
    let layers = documents.layers()?;
    engine.lease("pull").await?;
    let name = image_name(&wish.image);
    let pull = Pull {
        config,
        client,
        engine: Arc::new(engine),
        reference: wish.image.clone(),
        source: source_label(registry_name(&wish.image), wish.image.repository().path()),
        name: name.clone(),
        layers,
    };
    let done = pull.all(&documents, report).await;
    // Whatever came of it: what is named now stays, the rest must not stay for a day.
    let ended = pull.engine.end_lease().await;
    let (counts, bytes) = done?;
    ended?;
    Ok(Pulled {
        image: name,
        digest: documents.target().digest.to_string(),
        layers: counts,
        bytes: bytes + documents.fetched,
        seconds: (start.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    })
}

/// A document with the blob it is in the content store.
type Stored = (Blob, Vec<u8>);

/// What an image consists of besides its layers.
struct Documents {
    index: Option<Stored>,
    manifest: Stored,
    config: Stored,
    parsed: Manifest,
    parsed_config: ImageConfig,
    /// bytes that came from the registry
    fetched: u64,
}

impl Documents {
    /// From containerd's store as far as they are there, else from a mirror or the registry.
    async fn obtain(sources: &Sources, engine: &Engine, wish: &Wish) -> anyhow::Result<Self> {
        let mut fetched = 0;
        let digest = sources.resolve(&wish.image).await?;
        let top = document(sources, engine, &wish.image.with_digest(digest), &mut fetched).await?;
        let (index, manifest) = match Document::parse(&top.bytes, Some(&top.media_type))? {
            Document::Manifest(_) => (None, top),
            Document::Index(index) => {
                let choice = choose(&index, &wish.platform).with_context(|| wish.image.to_string())?;
                tracing::info!(image = %wish.image, manifest = %choice.entry.digest, why = choice.why, "chosen");
                let reference = wish.image.with_digest(choice.entry.digest);
                (Some(top), document(sources, engine, &reference, &mut fetched).await?)
            }
        };
        let Document::Manifest(parsed) = Document::parse(&manifest.bytes, Some(&manifest.media_type))? else {
            bail!("{}: {} is an index within an index", wish.image, manifest.digest);
        };
        let digest = parsed.config.digest();
        let bytes = match there(engine, digest).await? {
            Some(bytes) => bytes,
            None => {
                let bytes = sources.blob_bytes(wish.image.repository(), digest).await?;
                fetched += bytes.len() as u64;
                bytes
            }
        };
        let parsed_config = ImageConfig::parse(&bytes)?;
        if let Some(platform) = parsed_config.platform.as_ref().filter(|platform| !wish.platform.runs(platform)) {
            bail!("{} is for {platform}, not for {}; pass --platform {platform}", wish.image, wish.platform);
        }
        let blob = |digest, bytes: &[u8], media_type: &str| Blob {
            digest,
            size: bytes.len() as u64,
            media_type: media_type.to_owned(),
        };
        let stored = |raw: RawManifest| {
            let bytes = raw.bytes.to_vec();
            (blob(raw.digest.digest(), &bytes, &raw.media_type), bytes)
        };
        let manifest = RawManifest { media_type: parsed.media_type.clone(), ..manifest };
        Ok(Self {
            index: index.map(stored),
            manifest: stored(manifest),
            config: (blob(digest, &bytes, &parsed.config_media_type), bytes),
            parsed,
            parsed_config,
            fetched,
        })
    }

    /// What the name of the image stands for.
    fn target(&self) -> &Blob {
        &self.index.as_ref().unwrap_or(&self.manifest).0
    }

    /// The layers, bottom first.
    fn layers(&self) -> anyhow::Result<Vec<Layer>> {
        if let Some(foreign) = self.parsed.foreign().next() {
            bail!("layer {} is in no registry (foreign); such images are not for Linux", foreign.digest);
        }
        let layers = self.parsed.layers_with(&self.parsed_config)?;
        let annotations = annotations(&self.manifest.1)?;
        let chains = ChainId::stack(&layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
        let layer = |((layer, chain), inherited): ((image::manifest::Layer, ChainId), Labels)| Layer {
            descriptor: layer.descriptor,
            diff: layer.diff_id,
            chain,
            inherited,
        };
        Ok(layers.into_iter().zip(chains).zip(annotations).map(layer).collect())
    }
}

/// A manifest or an index, from containerd's store if it is there.
async fn document(
    sources: &Sources,
    engine: &Engine,
    reference: &Reference,
    fetched: &mut u64,
) -> anyhow::Result<RawManifest> {
    if let Some(digest) = reference.digest()
        && let Some(bytes) = there(engine, digest.digest()).await?
        && let Some(media_type) = own_media_type(&bytes)
    {
        return Ok(RawManifest { bytes: bytes.into(), media_type, digest });
    }
    let raw = sources.manifest(reference).await?;
    *fetched += raw.bytes.len() as u64;
    Ok(raw)
}

/// The media type that a document states. What states none was served with a type that is not in the store.
fn own_media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: String,
    }
    serde_json::from_slice::<Typed>(bytes).ok().map(|typed| typed.media_type)
}

/// A small blob of containerd's store.
async fn there(engine: &Engine, digest: Digest) -> anyhow::Result<Option<Vec<u8>>> {
    match engine.size(digest).await? {
        Some(size) if size <= image::manifest::MAX_DOCUMENT as u64 => {
            let bytes = engine.read(digest, size).await?;
            Ok(Some(bytes).filter(|bytes| Digest::of(bytes) == digest))
        }
        _ => Ok(None),
    }
}

/// Those annotations of each layer that its snapshot inherits.
fn annotations(manifest: &[u8]) -> anyhow::Result<Vec<Labels>> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(default)]
        layers: Vec<Annotated>,
    }
    let layers = serde_json::from_slice::<Annotations>(manifest)?.layers;
    let inherited = |layer: Annotated| {
        let all = layer.annotations.unwrap_or_default().into_iter();
        all.filter(|(key, value)| key.starts_with(INHERITED) && key.len() + value.len() <= 4096).collect()
    };
    Ok(layers.into_iter().map(inherited).collect())
}

/// One layer of the image.
struct Layer {
    descriptor: LayerDescriptor,
    diff: DiffId,
    chain: ChainId,
    inherited: Labels,
}

/// A pull that has begun.
struct Pull<'a> {
    config: &'a Config,
    client: Client,
    engine: Arc<Engine>,
    reference: Reference,
    /// the label that names the repository of all blobs
    source: (String, String),
    name: String,
    layers: Vec<Layer>,
}

/// A download that ends with whoever started it.
struct Download(JoinHandle<anyhow::Result<u64>>);

impl Drop for Download {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is expected of a layer before its turn comes.
struct Expected {
    repository: Option<String>,
    reason: Option<String>,
    download: Option<Download>,
}

impl Pull<'_> {
    /// Everything under the lease: documents, layers, the name of the image.
    async fn all(&self, documents: &Documents, report: &(dyn Fn(&Done) + Sync)) -> anyhow::Result<(Layers, u64)> {
        self.store(documents).await?;
        let done = self.unpack(report).await?;
        if let Some(top) = self.layers.last() {
            let key = format!("containerd.io/gc.ref.snapshot.{}", self.config.containerd.snapshotter);
            self.engine.label(documents.config.0.digest, &HashMap::from([(key, top.chain.to_string())])).await?;
        }
        self.engine.name_image(&self.name, documents.target()).await?;
        Ok(done)
    }

    fn snapshotter(&self) -> &str {
        &self.config.containerd.snapshotter
    }

    /// Brings the documents into the content store, with labels that say what refers to what.
    async fn store(&self, documents: &Documents) -> anyhow::Result<()> {
        let with_source = |references: Vec<(String, Digest)>| {
            let references = references.into_iter();
            let references =
                references.map(|(kind, to)| (format!("containerd.io/gc.ref.content.{kind}"), to.to_string()));
            references.chain([self.source.clone()]).collect::<HashMap<_, _>>()
        };
        let mut references = vec![("config".to_owned(), documents.config.0.digest)];
        let layers = self.layers.iter().enumerate();
        references.extend(layers.map(|(number, layer)| (format!("l.{number}"), layer.descriptor.digest.digest())));
        self.put(&documents.config, with_source(Vec::new())).await?;
        self.put(&documents.manifest, with_source(references)).await?;
        if let Some(index) = &documents.index {
            self.put(index, with_source(vec![("m.0".to_owned(), documents.manifest.0.digest)])).await?;
        }
        Ok(())
    }

    async fn put(&self, (blob, bytes): &Stored, labels: HashMap<String, String>) -> anyhow::Result<()> {
        let content = async { anyhow::Ok(&bytes[..]) };
        self.engine.write(blob.digest, blob.size, content, &labels).await?;
        Ok(())
    }

    /// Makes the snapshots of all layers; returns how many came from where, and how many bytes were downloaded.
    async fn unpack(&self, report: &(dyn Fn(&Done) + Sync)) -> anyhow::Result<(Layers, u64)> {
        let mut counts = Layers { present: self.present().await?, ..Layers::default() };
        let mut bytes = 0;
        let done = |number: usize, how| {
            report(&Done { number: number + 1, layer: self.layers[number].descriptor.digest.digest(), how });
        };
        for number in 0..counts.present {
            done(number, How::Present);
        }
        let first = counts.present;
        let expected = self.expect(first).await?;
        for (number, expected) in (first..).zip(expected) {
            let how = self.layer(number, expected).await.with_context(|| {
                let (of, layer) = (self.layers.len(), self.layers[number].descriptor.digest);
                format!(
                    "{}: layer {} of {of}, {layer}, could not be brought in; run the same command again, it goes on from there",
                    self.name,
                    number + 1
                )
            })?;
            match &how {
                How::Present => counts.present += 1,
                How::Lazily(_) => counts.lazy += 1,
                How::Downloaded { bytes: some, .. } => {
                    counts.downloaded += 1;
                    bytes += some;
                }
            }
            done(number, how);
        }
        Ok((counts, bytes))
    }

    /// How many layers are there, from the bottom: a snapshot is never without those below it.
    async fn present(&self) -> anyhow::Result<usize> {
        let (mut least, mut most) = (0, self.layers.len());
        while least < most {
            // The whole image is the usual question.
            let middle = if most == self.layers.len() { most } else { (least + most).div_ceil(2) };
            if self.engine.has_chain(self.snapshotter(), self.layers[middle - 1].chain).await? {
                least = middle;
            } else {
                most = middle - 1;
            }
        }
        Ok(least)
    }

    /// Looks which layers the snapshotter will have, and begins to download the others.
    async fn expect(&self, first: usize) -> anyhow::Result<Vec<Expected>> {
        let repositories = self.config.repositories();
        let decisions = join_all((first..self.layers.len()).map(|number| {
            let layer = &self.layers[number];
            let mut wanted =
                Wanted::of(&self.labels(layer)).unwrap_or_else(|| Wanted::named(LayerName::Chain(layer.chain)));
            wanted.diff = Some(layer.diff);
            let below = number.checked_sub(1).map_or(Below::Nothing, |below| Below::Chain(self.layers[below].chain));
            let repositories = &repositories;
            async move { Decision::make(repositories, &wanted, below, &self.config.resolve).await }
        }))
        .await;
        let permits = Arc::new(Semaphore::new(DOWNLOADS));
        let expected = self.layers[first..].iter().zip(decisions).map(|(layer, decision)| match decision.action() {
            Action::Serve { repository, .. } => {
                Expected { repository: Some(repository.name().to_owned()), reason: None, download: None }
            }
            Action::Download(reason) => {
                Expected { repository: None, reason: Some(reason), download: Some(self.download(layer, &permits)) }
            }
            Action::Refuse(down) => Expected { repository: None, reason: Some(down.to_string()), download: None },
        });
        Ok(expected.collect())
    }

    /// Begins to bring a blob into the content store; its result is the number of bytes that came from the registry.
    fn download(&self, layer: &Layer, permits: &Arc<Semaphore>) -> Download {
        let (client, engine) = (self.client.clone(), Arc::clone(&self.engine));
        let (repository, permits) = (self.reference.repository().clone(), Arc::clone(permits));
        let (digest, size) = (layer.descriptor.digest.digest(), layer.descriptor.size);
        let labels = HashMap::from([self.source.clone()]);
        Download(tokio::spawn(async move {
            let _permit = permits.acquire().await;
            if engine.keep_blob(digest).await?.is_some() {
                engine.label(digest, &labels).await?;
                return Ok(0);
            }
            let content = async { anyhow::Ok(client.blob(&repository, digest, size).await?) };
            let fetched = engine.write(digest, size, content, &labels).await?;
            Ok(if fetched { size } else { 0 })
        }))
    }

    /// Labels of a layer's snapshot.
    fn labels(&self, layer: &Layer) -> Labels {
        let mut labels = layer.inherited.clone();
        labels.extend(labels::request(&layer.chain, &self.name, &layer.descriptor.digest, &[]));
        labels
    }

    /// Makes the snapshot of one layer.
    async fn layer(&self, number: usize, expected: Expected) -> anyhow::Result<How> {
        let (engine, snapshotter, layer) = (&self.engine, self.snapshotter(), &self.layers[number]);
        let parent = number.checked_sub(1).map(|below| self.layers[below].chain);
        let labels = self.labels(layer);
        for _ in 0..ATTEMPTS {
            let key = format!("extract-{}-{} {}", unique(), std::process::id(), layer.chain);
            match engine.prepare(snapshotter, &key, parent, &labels).await? {
                Prepared::Exists if engine.is_there(snapshotter, layer.chain).await? => {
                    // What had been downloaded before the snapshotter took it is not lazy.
                    return match expected.download {
                        Some(mut download) if download.0.is_finished() => {
                            let bytes = (&mut download.0).await??;
                            Ok(How::Downloaded { bytes, reason: expected.reason })
                        }
                        _ => Ok(How::Lazily(expected.repository)),
                    };
                }
                Prepared::Exists => {}
                Prepared::Mounts(mounts) => {
                    let done = async {
                        let mut download =
                            expected.download.unwrap_or_else(|| self.download(layer, &Arc::new(Semaphore::new(1))));
                        let bytes = (&mut download.0).await??;
                        self.apply(layer, &mounts).await?;
                        engine.commit(snapshotter, layer.chain, &key, &labels).await?;
                        anyhow::Ok(bytes)
                    };
                    let done = done.await;
                    if done.is_err() {
                        engine.discard(snapshotter, &key).await;
                    }
                    return Ok(How::Downloaded { bytes: done?, reason: expected.reason });
                }
            }
        }
        bail!(
            "{snapshotter} says that it has {}, but containerd does not find it; see the log of cvmfs-snapshotter",
            layer.chain
        )
    }

    /// Unpacks a blob and makes sure that it is what the config says.
    async fn apply(&self, layer: &Layer, mounts: &[crate::overlay::Mount]) -> anyhow::Result<()> {
        let (digest, size) = (layer.descriptor.digest.digest(), layer.descriptor.size);
        let media_type = self.engine.media_type(digest, size).await?.to_owned();
        let diff = self.engine.apply(&Blob { digest, size, media_type }, mounts).await?;
        if diff != layer.diff {
            bail!("it is the tar {diff} instead of {}; the image's manifest and config disagree", layer.diff);
        }
        let uncompressed = ("containerd.io/uncompressed".to_owned(), diff.to_string());
        self.engine.label(digest, &HashMap::from([uncompressed])).await
    }
}

fn unique() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_get_the_names_that_containerd_s_clients_look_for() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = format!("quay.io/x/y:1@{digest}");
        let name = format!("quay.io/x/y@{digest}");
        for (text, expected) in [
            ("debian:stable", "docker.io/library/debian:stable"),
            ("user/app:1", "docker.io/user/app:1"),
            ("docker.io/library/debian:stable", "docker.io/library/debian:stable"),
            ("index.docker.io/library/debian:stable", "docker.io/library/debian:stable"),
            ("https://registry.hub.docker.com/library/debian:stable", "docker.io/library/debian:stable"),
            ("127.0.0.1:5000/lab/x:1", "127.0.0.1:5000/lab/x:1"),
            ("http://127.0.0.1:5000/lab/x:1", "127.0.0.1:5000/lab/x:1"),
            ("quay.io/x/y:1", "quay.io/x/y:1"),
            (&pinned, &name),
        ] {
            assert_eq!(image_name(&reference(text, false).unwrap()), expected, "{text}");
        }
        assert!(reference("quay.io/x/y", false).is_err(), "no tag is no name");
    }

    #[test]
    fn registries_are_asked_over_plain_http_only_where_that_is_meant() {
        for (text, plain_http, expected) in [
            ("127.0.0.1:5000/x:1", false, "http://127.0.0.1:5000/x:1"),
            ("localhost/x:1", false, "http://localhost/x:1"),
            ("quay.io/x:1", false, "https://quay.io/x:1"),
            ("quay.io/x:1", true, "http://quay.io/x:1"),
            ("debian:stable", true, "https://registry.hub.docker.com/library/debian:stable"),
            ("https://127.0.0.1:5000/x:1", true, "https://127.0.0.1:5000/x:1"),
        ] {
            assert_eq!(reference(text, plain_http).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn only_annotations_for_snapshotters_become_labels() {
        let manifest = br#"{"layers":[{"digest":"x"},{"annotations":null},
            {"annotations":{"containerd.io/snapshot/cvmfs.layer":"a.b:1","org.example":"no"}}]}"#;
        let found = annotations(manifest).unwrap();
        let counts: Vec<_> = found.iter().map(|labels| labels.len()).collect();
        assert_eq!(counts, [0, 0, 1]);
        assert_eq!(found[2]["containerd.io/snapshot/cvmfs.layer"], "a.b:1");
    }
}
