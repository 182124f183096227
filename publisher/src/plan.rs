//! Wishes against what is published: a value that says what has to be done, and is printed or executed as it is.
//!
//! ```text
//! wanted.rs ─▶ planner.rs ──┬─ documents.rs   manifests and configs: the repository's own, else the source's
//!                │          ├─ standing.rs    what stands at the image's name
//!                ▼          └─ layers.rs      which layers are there
//!            ImagePlan           all through view.rs: the repository, with few catalogs open
//! ```
//! Resolving costs one conditional request an image. Documents that the repository has (`.index/manifest`,
//! `.index/config`) are read from there.

mod documents;
mod layers;
mod planner;
mod standing;
mod view;
mod wanted;

use std::collections::HashSet;

use cvmfs::catalog::NestedRef;
use image::digest::LayerDigest;
use image::layout::{ManifestRecord, OwnedPath};
use image::manifest::{Config, Layer, LayerDescriptor, Manifest};
use image::platform::Platform;
use image::reference::{ImageSource, PublicName};
use serde::Serialize;

pub use self::planner::Planner;
pub use self::view::MOST_OPEN;
pub use self::wanted::Wanted;
use crate::layer::{LayerPlace, PreparedLayer};
use crate::podman::PodmanState;
use crate::report::Outcome;
use crate::signature::Fingerprint;
use crate::source::RawDocument;

/// Where a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// In the repository.
    Published,
    /// In the repository as the existing tool wrote it: good for its consumers, not to make anything from, since owners
    /// and attributes are lost.
    Legacy,
    /// Stored by an earlier run, not published yet.
    Prepared,
    /// To be fetched.
    Missing,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct LayerPlan {
    /// The layer.
    pub layer: Layer,
    /// Where it is.
    pub state: LayerState,
    /// Its catalog, if it has one.
    pub known: Option<NestedRef>,
    /// As an earlier run prepared it.
    pub prepared: Option<PreparedLayer>,
    /// Where it goes if it has to be published.
    pub place: LayerPlace,
    /// Whether what is published of it at that place has to be replaced: it is damaged, or was made without the blob.
    pub replaces: bool,
}

/// What has to be done for one image.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    /// What is wanted.
    pub wanted: Wanted,
    /// The image's name in full.
    pub image: String,
    /// Where it is to appear.
    pub name: PublicName,
    /// The index through which it was found, if there is one.
    pub index: Option<RawDocument>,
    /// Its manifest, raw.
    pub document: RawDocument,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config, raw.
    pub config_bytes: Vec<u8>,
    /// Its config.
    pub config: Config,
    /// For which machines it is.
    pub platform: Platform,
    /// Layers, bottom first.
    pub layers: Vec<LayerPlan>,
    /// Whether the flat has to be made.
    pub needs_flat: bool,
    /// The catalog of the flat that is published.
    pub known_flat: Option<NestedRef>,
    /// Whether there is a flat that is damaged, and has to be replaced.
    pub flat_damaged: bool,
    /// Whether an image that is right lacks records or entries of the index: the existing tool has published it.
    pub needs_records: bool,
    /// What becomes of it in the store for Podman; nothing if that has nothing to do with it.
    pub podman: Option<PodmanState>,
    /// Keys that have signed it, of those that are asked for.
    pub signed_by: Vec<Fingerprint>,
    /// What will have happened when this plan was executed.
    pub outcome: Outcome,
    /// Links and records that are wrong: they go before the right ones are written.
    pub wrong: Vec<OwnedPath>,
}

impl ImagePlan {
    /// Whether anything has to be published for it.
    pub fn has_work(&self) -> bool {
        self.outcome != Outcome::Unchanged || self.needs_records || self.is_only_stored()
    }

    /// Whether it is published as it should be, and only the store for Podman has to change.
    pub fn is_only_stored(&self) -> bool {
        let is_published = self.outcome == Outcome::Unchanged && !self.needs_records;
        is_published && self.podman.is_some_and(PodmanState::is_change)
    }

    /// Compressed bytes to be fetched.
    pub fn missing_bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let missing = self.layers.iter().filter(|l| l.state == LayerState::Missing);
        missing.map(|l| &l.layer.descriptor).filter(|d| seen.insert(d.digest)).map(|d| d.size).sum()
    }

    /// The distinct layers, bottom first.
    pub fn distinct_layers(&self) -> impl Iterator<Item = &LayerPlan> {
        let mut seen: HashSet<LayerDigest> = HashSet::new();
        self.layers.iter().filter(move |l| seen.insert(l.layer.descriptor.digest))
    }
}

/// Whether a record says what another one says: the existing tool and other versions of ours may spell it otherwise.
pub(crate) fn is_record_of(record: &ManifestRecord, expected: &ManifestRecord) -> bool {
    let layers = |r: &ManifestRecord| r.layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    record.config.digest == expected.config.digest && layers(record) == layers(expected)
}

/// Compressed bytes of layers.
pub(crate) fn bytes_of<'a>(layers: impl IntoIterator<Item = &'a LayerDescriptor>) -> u64 {
    layers.into_iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
}

/// The name of an image in full, as records state it. Of an image on disk only the last part: where the operator keeps
/// files is nobody's business.
pub fn image_name(source: &ImageSource) -> String {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    match source {
        ImageSource::Registry(reference) => reference.whole_name(),
        ImageSource::OciLayout { dir, tag: None } => format!("oci:{}", last(dir)),
        ImageSource::OciLayout { dir, tag: Some(tag) } => format!("oci:{}:{tag}", last(dir)),
        ImageSource::DockerArchive { file } => format!("docker-archive:{}", last(file)),
    }
}
