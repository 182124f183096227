//! Documents that describe an image: manifest, index (manifest list), config; Docker schema 2 and OCI.
//!
//! The raw bytes are the truth: the caller keeps them and checks them against the digest they were asked by. What is
//! parsed here is a reading of them, checked once: digests are typed, media types known, numbers bounded, so later
//! stages don't look at JSON again.
//!
//! Invariants
//! - A document is either an image manifest or an index. One that could be read as both is refused (the confusion
//!   would let two readers see two images under one digest), and so is one that contradicts its declared type.
//! - Artifacts, attestations, encrypted layers and schema 1 are refused with a sentence that names them.
//! - At most [`MAX_DOCUMENT`] bytes a document and [`MAX_LAYERS`] layers an image.
//!
//! Sources: OCI image-spec v1.1 (manifest, image-index, config, layer media types), Docker "Image Manifest Version 2,
//! Schema 2".

use std::collections::{BTreeMap, HashSet};

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use crate::digest::{DiffId, DigestError, ImageId, LayerDigest, ManifestDigest};
use crate::layout::{DescriptorRecord, ManifestRecord};
use crate::platform::Platform;

/// Largest accepted manifest, index or config, in bytes.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// Most layers that an image may have.
pub const MAX_LAYERS: usize = 500;

/// Media types to accept when asking a registry for a manifest or an index.
pub const ACCEPT: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// BuildKit marks attestations in an index by this annotation.
const ATTESTATION: &str = "vnd.docker.reference.type";
/// The tag of an entry in `index.json` of an image layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why a document describes no image that could be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More bytes than any honest document has.
    #[error("{what} is larger than {MAX_DOCUMENT} bytes; refused")]
    TooLarge {
        /// manifest, config, …
        what: &'static str,
    },
    /// Not JSON, or not of the expected shape.
    #[error("{what} can't be read: {source}")]
    Json {
        /// manifest, config, …
        what: &'static str,
        /// where and why
        source: serde_json::Error,
    },
    /// Docker's first format, which has no config and no checksums of its own.
    #[error(
        "manifest of schema 1, which registries stopped serving years ago; push the image again with a current tool"
    )]
    Schema1,
    /// Neither manifest nor index.
    #[error("\"{0}\" is neither an image manifest nor an index")]
    MediaType(String),
    /// Could be read as manifest and as index, or contradicts its declared type.
    #[error("document is declared as \"{declared}\" but has the shape of {shape}; refused")]
    Ambiguous {
        /// the media type it is declared as
        declared: String,
        /// what it looks like
        shape: &'static str,
    },
    /// A manifest of something that isn't a container image.
    #[error("an artifact of type \"{0}\", not a container image")]
    Artifact(String),
    /// A layer that can't be unpacked.
    #[error("layer {position} has media type \"{media_type}\", which can't be unpacked{hint}")]
    Layer {
        /// counted from 1, bottom first
        position: usize,
        /// as the manifest states it
        media_type: String,
        /// more about it, or nothing
        hint: &'static str,
    },
    /// Too many layers.
    #[error("{0} layers; at most {MAX_LAYERS} are accepted")]
    TooManyLayers(usize),
    /// A digest that can't be verified.
    #[error("{what}: {source}")]
    Digest {
        /// of what
        what: &'static str,
        /// what is wrong with it
        source: DigestError,
    },
    /// The config describes other layers than the manifest.
    #[error("manifest has {layers} layers, but the config lists {diff_ids} diff IDs; the image is inconsistent")]
    LayerCount {
        /// layers in the manifest
        layers: usize,
        /// entries of `rootfs.diff_ids`
        diff_ids: usize,
    },
    /// `index.json` has no entry with this tag, or several and no tag was asked for.
    #[error("no image {wanted} in the image layout; it has {available}")]
    NoEntry {
        /// what was asked for
        wanted: String,
        /// what is there
        available: String,
    },
}

/// How the bytes of a layer are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// a bare tar
    Plain,
    /// tar in gzip
    Gzip,
    /// tar in Zstandard (also zstd:chunked)
    Zstd,
    /// "foreign" or "non-distributable": not in the registry, skipped with a warning
    Foreign,
}

impl LayerCompression {
    /// The packing that a media type declares; nothing if the type is no layer.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match MediaType::from(media_type) {
            MediaType::ImageLayer => return Some(Self::Plain),
            MediaType::ImageLayerGzip => return Some(Self::Gzip),
            MediaType::ImageLayerZstd => return Some(Self::Zstd),
            MediaType::ImageLayerNonDistributable
            | MediaType::ImageLayerNonDistributableGzip
            | MediaType::ImageLayerNonDistributableZstd => return Some(Self::Foreign),
            _ => {}
        }
        if let Some(packing) = media_type.strip_prefix(DOCKER_LAYER) {
            return match packing {
                "" => Some(Self::Plain),
                ".gzip" | "+gzip" => Some(Self::Gzip),
                ".zstd" | "+zstd" => Some(Self::Zstd),
                _ => None,
            };
        }
        media_type
            .strip_prefix(DOCKER_FOREIGN)
            .filter(|packing| matches!(*packing, "" | ".gzip" | ".zstd"))
            .map(|_| Self::Foreign)
    }

    /// What the first bytes of a blob say; 512 are enough. Media types lie now and then, magic numbers don't.
    /// Nothing: neither gzip nor Zstandard nor tar.
    pub fn sniff(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // a skippable frame, as zstd:chunked may begin with
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ if crate::tar::is_header(start) => Some(Self::Plain),
            _ => None,
        }
    }
}

/// A layer, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDescriptor {
    /// digest of the blob
    pub digest: LayerDigest,
    /// size of the blob in bytes
    pub size: u64,
    /// how the media type says it is packed
    pub compression: LayerCompression,
    /// the media type itself
    pub media_type: String,
}

/// A layer with what the config adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// as the manifest lists it
    pub descriptor: LayerDescriptor,
    /// digest of the uncompressed tar
    pub diff_id: DiffId,
}

/// An image manifest: one config, layers from the bottom up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// the media type of the document
    pub media_type: String,
    /// media type of the config
    pub config_media_type: String,
    /// digest of the config: the image ID
    pub config: ImageId,
    /// size of the config in bytes
    pub config_size: u64,
    /// layers, bottom first
    pub layers: Vec<LayerDescriptor>,
}

/// What an entry of an index leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// an image manifest
    Image,
    /// a further index
    Index,
    /// an attestation, a signature, some artifact: never chosen
    Other,
}

/// An entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// digest of the document it leads to
    pub digest: ManifestDigest,
    /// size of that document
    pub size: u64,
    /// what it leads to
    pub kind: EntryKind,
    /// for which machines, if stated
    pub platform: Option<Platform>,
    /// its tag, in `index.json` of an image layout
    pub ref_name: Option<String>,
}

impl IndexEntry {
    /// Does it lead to an image?
    pub fn is_image(&self) -> bool {
        self.kind == EntryKind::Image
    }
}

/// An index, also called manifest list: images of one name for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// in the order of the document
    pub entries: Vec<IndexEntry>,
}

impl Index {
    /// The entry with this tag in `index.json` of an image layout; without a tag, the only one that is there.
    pub fn tagged(&self, tag: Option<&str>) -> Result<&IndexEntry, ManifestError> {
        // the annotation is a tag or a whole name that ends in one
        let is_named = |entry: &&IndexEntry| {
            let Some(tag) = tag else { return true };
            entry
                .ref_name
                .as_deref()
                .is_some_and(|name| name == tag || name.strip_suffix(tag).is_some_and(|rest| rest.ends_with(':')))
        };
        let usable: Vec<&IndexEntry> = self.entries.iter().filter(|entry| entry.kind != EntryKind::Other).collect();
        match usable.iter().copied().filter(is_named).collect::<Vec<_>>()[..] {
            [entry] => Ok(entry),
            _ => Err(ManifestError::NoEntry {
                wanted: tag.map_or_else(|| "without a tag".to_owned(), |tag| format!("\"{tag}\"")),
                available: match &usable[..] {
                    [] => "none".to_owned(),
                    some => some
                        .iter()
                        .take(20)
                        .map(|entry| entry.ref_name.clone().unwrap_or_else(|| entry.digest.to_string()))
                        .collect::<Vec<_>>()
                        .join(", "),
                },
            }),
        }
    }
}

/// What a registry answers when asked for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// one image
    Manifest(Manifest),
    /// images for several platforms
    Index(Index),
}

/// What has to be known of a document before it is read as one type or the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index. `content_type` is what the registry declared in its header, if it did; the
    /// document's own word counts more.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let shape: Shape = parse_json("manifest", bytes)?;
        let declared = shape
            .media_type
            .clone()
            .or_else(|| Some(content_type?.split(';').next()?.trim().to_owned()))
            // plain JSON is what servers of static files say
            .filter(|declared| !declared.is_empty() && declared != "application/json");
        if shape.schema_version == 1
            || shape.fs_layers.is_some()
            || declared.as_deref().is_some_and(|declared| declared.contains("manifest.v1+"))
                && declared.as_deref().is_some_and(|declared| declared.contains("docker.distribution"))
        {
            return Err(ManifestError::Schema1);
        }
        let is_index = shape.manifests.is_some();
        let is_manifest = shape.layers.is_some() || shape.config.is_some();
        let looks = match (is_manifest, is_index) {
            (true, true) => "both a manifest and an index",
            (true, false) => "a manifest",
            (false, true) => "an index",
            (false, false) => "neither a manifest nor an index",
        };
        let agrees = match declared.as_deref() {
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => is_manifest && !is_index,
            Some(OCI_INDEX | DOCKER_LIST) => is_index && !is_manifest,
            None => is_index != is_manifest,
            Some(other) => return Err(ManifestError::MediaType(other.chars().take(200).collect())),
        };
        if !agrees {
            let declared = declared.unwrap_or_else(|| "nothing".to_owned());
            return Err(ManifestError::Ambiguous { declared, shape: looks });
        }
        if is_index {
            index(&parse_json("index", bytes)?).map(Self::Index)
        } else {
            let media_type = declared.unwrap_or_else(|| OCI_MANIFEST.to_owned());
            manifest(&parse_json("manifest", bytes)?, media_type).map(Self::Manifest)
        }
    }
}

fn parse_json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, ManifestError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(ManifestError::TooLarge { what });
    }
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what, source })
}

fn manifest(parsed: &ImageManifest, media_type: String) -> Result<Manifest, ManifestError> {
    let config = parsed.config();
    let config_media_type = config.media_type().as_ref().to_owned();
    if !matches!(config.media_type(), MediaType::ImageConfig) && config_media_type != DOCKER_CONFIG {
        let artifact = parsed.artifact_type().as_ref().map_or(&*config_media_type, |artifact| artifact.as_ref());
        return Err(ManifestError::Artifact(artifact.chars().take(200).collect()));
    }
    if config.size() > MAX_DOCUMENT as u64 {
        return Err(ManifestError::TooLarge { what: "config" });
    }
    if parsed.layers().len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(parsed.layers().len()));
    }
    let layer = |(below, layer): (usize, &Descriptor)| {
        let media_type: String = layer.media_type().as_ref().chars().take(200).collect();
        let compression = LayerCompression::from_media_type(&media_type).ok_or_else(|| ManifestError::Layer {
            position: below + 1,
            hint: match () {
                () if media_type.ends_with("+encrypted") => "; encrypted layers are not supported",
                () if media_type.contains("in-toto") => "; this is an attestation, not an image",
                () => "",
            },
            media_type: media_type.clone(),
        })?;
        let digest = LayerDigest::parse(layer.digest().as_ref())
            .map_err(|source| ManifestError::Digest { what: "layer", source })?;
        Ok(LayerDescriptor { digest, size: layer.size(), compression, media_type })
    };
    Ok(Manifest {
        media_type,
        config: ImageId::parse(config.digest().as_ref())
            .map_err(|source| ManifestError::Digest { what: "config", source })?,
        config_size: config.size(),
        config_media_type,
        layers: parsed.layers().iter().enumerate().map(layer).collect::<Result<_, _>>()?,
    })
}

fn index(parsed: &ImageIndex) -> Result<Index, ManifestError> {
    let entry = |entry: &Descriptor| {
        let annotation = |key| entry.annotations().as_ref().and_then(|all| all.get(key));
        let unknown = entry.platform().as_ref().is_some_and(|p| p.os().to_string() == "unknown");
        let kind = match entry.media_type().as_ref() {
            _ if annotation(ATTESTATION).is_some() || entry.artifact_type().is_some() || unknown => EntryKind::Other,
            OCI_MANIFEST | DOCKER_MANIFEST => EntryKind::Image,
            OCI_INDEX | DOCKER_LIST => EntryKind::Index,
            _ => EntryKind::Other,
        };
        Ok(IndexEntry {
            digest: ManifestDigest::parse(entry.digest().as_ref())
                .map_err(|source| ManifestError::Digest { what: "entry of the index", source })?,
            size: entry.size(),
            kind,
            // a platform nobody can name is a platform nobody asks for
            platform: entry.platform().as_ref().and_then(|platform| {
                let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
                Platform::new(&os, &architecture, platform.variant().as_deref()).ok()
            }),
            ref_name: annotation(REF_NAME).cloned(),
        })
    };
    Ok(Index { entries: parsed.manifests().iter().map(entry).collect::<Result<_, _>>()? })
}

impl Manifest {
    /// Brings layers and diff IDs together, bottom first, and checks that they fit. Foreign layers are left out
    /// (their blobs are in no registry); the config may list their diff IDs or not.
    pub fn layers_with(&self, config: &Config) -> Result<Vec<Layer>, ManifestError> {
        let pair = |(descriptor, diff_id): (&LayerDescriptor, &DiffId)| Layer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
        };
        let is_ours = |descriptor: &LayerDescriptor| descriptor.compression != LayerCompression::Foreign;
        let ours: Vec<&LayerDescriptor> = self.layers.iter().filter(|layer| is_ours(layer)).collect();
        if config.diff_ids.len() == self.layers.len() {
            let all = self.layers.iter().zip(&config.diff_ids);
            Ok(all.filter(|(layer, _)| is_ours(layer)).map(pair).collect())
        } else if config.diff_ids.len() == ours.len() {
            Ok(ours.into_iter().zip(&config.diff_ids).map(pair).collect())
        } else {
            Err(ManifestError::LayerCount { layers: self.layers.len(), diff_ids: config.diff_ids.len() })
        }
    }

    /// Layers whose content no registry has.
    pub fn foreign(&self) -> impl Iterator<Item = &LayerDescriptor> {
        self.layers.iter().filter(|layer| layer.compression == LayerCompression::Foreign)
    }

    /// The layers that a registry gives, each once.
    pub fn layers_once(&self) -> impl Iterator<Item = &LayerDescriptor> {
        let mut seen = HashSet::new();
        let given = self.layers.iter().filter(|layer| layer.compression != LayerCompression::Foreign);
        given.filter(move |layer| seen.insert(layer.digest))
    }

    /// The record that existing tools look for.
    pub fn record(&self) -> ManifestRecord {
        ManifestRecord {
            schema_version: 2,
            media_type: self.media_type.clone(),
            config: DescriptorRecord {
                media_type: self.config_media_type.clone(),
                size: self.config_size,
                digest: self.config,
            },
            layers: self
                .layers
                .iter()
                .map(|layer| DescriptorRecord {
                    media_type: layer.media_type.clone(),
                    size: layer.size,
                    digest: layer.digest,
                })
                .collect(),
        }
    }
}

/// The config of an image: what to run in it, and the diff IDs of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// for which machines; nothing if the document states none
    pub platform: Option<Platform>,
    /// environment, `NAME=value`
    pub env: Vec<String>,
    /// first words of the command line
    pub entrypoint: Vec<String>,
    /// further words, replaced by those of the user
    pub cmd: Vec<String>,
    /// where the command starts; empty: the root
    pub working_dir: String,
    /// user, or `user:group`, by name or number; empty: root
    pub user: String,
    /// labels
    pub labels: BTreeMap<String, String>,
    /// time of the build, as stated
    pub created: Option<String>,
    /// digests of the uncompressed layers, bottom first
    pub diff_ids: Vec<DiffId>,
}

/// The parts of the document that are read. Everything may be missing or null: builders differ.
#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawProcess>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawProcess {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Vec<DiffId>>,
}

impl Config {
    /// Reads a config document of Docker or OCI. Bytes that aren't UTF-8 become U+FFFD, as the engines do.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(ManifestError::TooLarge { what: "config" });
        }
        let text = String::from_utf8_lossy(bytes);
        let raw: RawConfig =
            serde_json::from_str(&text).map_err(|source| ManifestError::Json { what: "config", source })?;
        let process = raw.config.unwrap_or_default();
        let platform = match (raw.os, raw.architecture) {
            (Some(os), Some(architecture)) => Platform::new(&os, &architecture, raw.variant.as_deref()).ok(),
            _ => None,
        };
        let diff_ids = raw.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(diff_ids.len()));
        }
        let labels = process.labels.unwrap_or_default();
        Ok(Self {
            platform,
            env: process.env.unwrap_or_default(),
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            working_dir: process.working_dir.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            labels: labels.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect(),
            created: raw.created,
            diff_ids,
        })
    }
}

#[cfg(test)]
mod tests;
