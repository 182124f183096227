//! What a thin image is, whoever made it and wherever it lies.
//!
//! ```text
//! published name ── made anew ──┐
//! registry ── pulled ───────────┤
//! OCI layout, archive ── read ──┼── manifests ── bottom layer ── thin.json, checked ── layers, looked for on this node
//! thin.json itself ─────────────┘
//! ```
//! All of it is input from outside: bounded, digests verified, and `thin.json` refused as a whole if one of its layers leads anywhere but
//! to a layer of a repository.

mod read;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use image::digest::{DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use image::layout::OwnedPath;
use image::manifest::{Config, Document, Manifest};
use image::reference::Reference;
use image::thin::ThinRecord;
use registry::Client;
use serde::Serialize;

use crate::build::Thin;
use crate::published::Repository;
use crate::text::{bytes, printable};
pub use read::Bundle;

/// Most images of an index that are looked at.
const MAX_IMAGES: usize = 64;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// version of this record
    pub schema: u32,
    /// what was looked at
    pub source: String,
    /// digest of the index or manifest
    pub digest: Option<Digest>,
    /// one a platform
    pub images: Vec<ImageReport>,
}

/// A thin image of one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// digest of its manifest
    pub manifest: Option<ManifestDigest>,
    /// its image ID
    pub config: Option<ImageId>,
    /// for which machines, as the config states it
    pub platform: Option<String>,
    /// bytes of its documents and of the layer with `thin.json`
    pub size: u64,
    /// ordinary layers above that layer: somebody built on it
    pub ordinary_layers: usize,
    /// name of the image that it stands for
    pub origin: Option<String>,
    /// digest of that one's manifest
    pub origin_manifest: Option<ManifestDigest>,
    /// that one's image ID
    pub origin_config: Option<ImageId>,
    /// its layers, bottom first
    pub layers: Vec<LayerReport>,
}

/// A layer that a thin image names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerReport {
    /// which layer
    pub layer: LayerDigest,
    /// digest of its tar
    pub diff_id: Option<DiffId>,
    /// bytes of its blob
    pub size: Option<u64>,
    /// which repository has it
    pub repository: String,
    /// where that is on this node
    pub directory: PathBuf,
    /// whether it is there
    pub state: State,
}

/// Whether a layer is on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// its directory is there
    Present,
    /// the repository has no such layer
    Absent,
    /// the repository is not mounted, or can't be read
    NotMounted,
}

/// A published image, as `build` would write it.
pub fn of_thin(source: &str, thin: &Thin, cvmfs: &Path) -> anyhow::Result<Report> {
    let blobs = thin.parts().chain([thin.top()]).map(|blob| (blob.digest, blob.bytes.clone())).collect();
    report(source, &Bundle { tops: vec![thin.top().digest], blobs }, cvmfs)
}

/// A directory with an OCI layout, an archive, or a file `thin.json`.
pub fn of_path(path: &Path, cvmfs: &Path) -> anyhow::Result<Report> {
    let source = path.display().to_string();
    if path.is_dir() {
        return report(&source, &read::directory(path)?, cvmfs);
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        let record = ThinRecord::parse(&read::small(path)?).context(source.clone())?;
        let image = ImageReport { size: 0, ..image(&record, cvmfs) };
        return Ok(Report { schema: 1, source, digest: None, images: vec![image] });
    }
    match read::archive(path)? {
        read::Archive::Oci(bundle) => report(&source, &bundle, cvmfs),
        read::Archive::Docker(images) => {
            let images = images.iter().map(|found| {
                let bottom = found.layers.first().with_context(|| format!("{source}: an image without layers"))?;
                let record = ThinRecord::parse(&read::thin_json(bottom)?).context(source.clone())?;
                Ok(ImageReport {
                    config: Some(ImageId::of(&found.config)),
                    platform: platform(&found.config)?,
                    size: (found.config.len() + bottom.len()) as u64,
                    ordinary_layers: found.layers.len() - 1,
                    ..image(&record, cvmfs)
                })
            });
            let images = images.collect::<anyhow::Result<_>>()?;
            Ok(Report { schema: 1, source, digest: None, images })
        }
    }
}

/// An image in a registry; nothing but its documents and its bottom layer is pulled.
pub async fn of_registry(client: &Client, reference: &Reference, cvmfs: &Path) -> anyhow::Result<Report> {
    let top = client.manifest(reference).await?;
    let mut blobs = BTreeMap::from([(top.digest.digest(), top.bytes.to_vec())]);
    let mut manifests = Vec::new();
    match Document::parse(&top.bytes, Some(&top.media_type))? {
        Document::Manifest(manifest) => manifests.push(manifest),
        Document::Index(index) => {
            for entry in index.entries.iter().filter(|entry| entry.is_image()).take(MAX_IMAGES) {
                let found = client.manifest(&reference.with_digest(entry.digest)).await?;
                if let Document::Manifest(manifest) = Document::parse(&found.bytes, Some(&found.media_type))? {
                    manifests.push(manifest);
                }
                blobs.insert(entry.digest.digest(), found.bytes.to_vec());
            }
        }
    }
    for manifest in &manifests {
        let bottom = manifest.layers.first().filter(|layer| layer.size <= read::MAX_LAYER as u64);
        let layer = bottom.map(|layer| layer.digest.digest());
        for digest in [manifest.config.digest()].into_iter().chain(layer) {
            let bytes = client.blob_bytes(reference.repository(), digest).await?;
            blobs.insert(digest, bytes.to_vec());
        }
    }
    report(&reference.to_string(), &Bundle { tops: vec![top.digest.digest()], blobs }, cvmfs)
}

fn report(source: &str, bundle: &Bundle, cvmfs: &Path) -> anyhow::Result<Report> {
    let mut images = Vec::new();
    for top in &bundle.tops {
        let bytes = bundle.get(*top)?;
        match Document::parse(bytes, None)? {
            Document::Manifest(manifest) => {
                images.push(of_manifest(bundle, ManifestDigest::from_digest(*top), &manifest, cvmfs)?);
            }
            Document::Index(index) => {
                for entry in index.entries.iter().filter(|entry| entry.is_image()).take(MAX_IMAGES) {
                    let Document::Manifest(manifest) = Document::parse(bundle.get(entry.digest.digest())?, None)?
                    else {
                        bail!("an index within an index is not supported")
                    };
                    images.push(of_manifest(bundle, entry.digest, &manifest, cvmfs)?);
                }
            }
        }
    }
    if images.is_empty() {
        bail!("{source} has no images");
    }
    let digest = match bundle.tops[..] {
        [top] => Some(top),
        _ => None,
    };
    Ok(Report { schema: 1, source: source.to_owned(), digest, images })
}

fn of_manifest(
    bundle: &Bundle,
    digest: ManifestDigest,
    manifest: &Manifest,
    cvmfs: &Path,
) -> anyhow::Result<ImageReport> {
    let bottom = manifest.layers.first().with_context(|| format!("{digest} has no layers"))?;
    if bottom.size > read::MAX_LAYER as u64 {
        bail!("{digest} is an ordinary image: its bottom layer has {}", bytes(bottom.size));
    }
    let config = bundle.get(manifest.config.digest())?;
    let layer = bundle.get(bottom.digest.digest())?;
    let record = ThinRecord::parse(&read::thin_json(layer)?).with_context(|| format!("image {digest}"))?;
    let manifest_size = bundle.get(digest.digest())?.len();
    Ok(ImageReport {
        manifest: Some(digest),
        config: Some(manifest.config),
        platform: platform(config)?,
        size: (manifest_size + config.len() + layer.len()) as u64,
        ordinary_layers: manifest.layers.len() - 1,
        ..image(&record, cvmfs)
    })
}

fn platform(config: &[u8]) -> anyhow::Result<Option<String>> {
    Ok(Config::parse(config)?.platform.map(|platform| platform.to_string()))
}

/// What the record alone tells.
fn image(record: &ThinRecord, cvmfs: &Path) -> ImageReport {
    let mut repositories: BTreeMap<&str, Option<Repository>> = BTreeMap::new();
    let layers = record.layers.iter().map(|layer| {
        let repository = repositories.entry(&layer.repository).or_insert_with(|| {
            let repository = Repository::new(&layer.repository, &cvmfs.join(&layer.repository)).ok()?;
            repository.check().ok().map(|()| repository)
        });
        let content = OwnedPath::LayerContent(layer.layer);
        LayerReport {
            layer: layer.layer,
            diff_id: layer.diff_id,
            size: layer.size,
            repository: layer.repository.clone(),
            directory: cvmfs.join(&layer.repository).join(image::layout::Layout::new().print(&content)),
            state: match repository.as_ref().map(|repository| repository.has_layer(layer.layer)) {
                Some(Ok(true)) => State::Present,
                Some(Ok(false)) => State::Absent,
                Some(Err(_)) | None => State::NotMounted,
            },
        }
    });
    ImageReport {
        manifest: None,
        config: None,
        platform: record.platform.clone(),
        size: 0,
        ordinary_layers: 0,
        origin: record.origin.clone(),
        origin_manifest: record.manifest,
        origin_config: record.config,
        layers: layers.collect(),
    }
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = printable(&self.source, 500);
        if let Some(digest) = self.digest {
            let _ = write!(text, "\n{digest}");
        }
        for image in &self.images {
            text.push('\n');
            image.describe(&mut text);
        }
        text
    }
}

impl ImageReport {
    fn describe(&self, text: &mut String) {
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12}{value}");
        };
        let unknown = || "not stated".to_owned();
        line("platform", self.platform.as_deref().map_or_else(unknown, |platform| printable(platform, 100)));
        if let Some(manifest) = self.manifest {
            line("manifest", format!("{manifest}  {}", bytes(self.size)));
        }
        if let Some(config) = self.config {
            line("image ID", config.to_string());
        }
        line("stands for", self.origin.as_deref().map_or_else(unknown, |origin| printable(origin, 500)));
        if let Some(manifest) = self.origin_manifest {
            line("", format!("manifest {manifest}"));
        }
        if let Some(config) = self.origin_config {
            line("", format!("image ID {config}"));
        }
        if self.ordinary_layers > 0 {
            line("above it", format!("{} ordinary layers", self.ordinary_layers));
        }
        let here = self.layers.iter().filter(|layer| layer.state == State::Present).count();
        let sum = self.layers.iter().filter_map(|layer| layer.size).sum();
        line("layers", format!("{}, {here} of them on this node, {} to download", self.layers.len(), bytes(sum)));
        for layer in &self.layers {
            let state = match layer.state {
                State::Present => "present",
                State::Absent => "absent",
                State::NotMounted => "not mounted",
            };
            let size = layer.size.map_or_else(|| "-".to_owned(), bytes);
            let _ = writeln!(text, "  {}  {size:>9}  {state:<11}  {}", layer.layer, layer.repository);
        }
    }
}
