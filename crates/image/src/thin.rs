//! Thin images: ordinary images of a few KB whose only layer holds `thin.json`, which says where the real layers are.
//!
//! ```text
//! thin.json   layers bottom first, each with its blob's digest and its directory in a repository
//! layer       a tar with that one file, in gzip without compression
//! config      the source's, with everything that says how to run it; its layers are the one above
//! manifest    of OCI, with annotations that name the source
//! ```
//! The same source gives the same bytes, on every machine and with every version of a compressor: nothing in it depends on time, and the
//! gzip stream holds stored blocks only. So a thin image is pushed again only when its source has changed.
//!
//! `thin.json` is what the graph driver of 2018 reads (`version` "1.0", digests without prefix, `cvmfs://` URLs), with more fields, which
//! that one passes over. It is input from outside wherever it is read: a [`ThinRecord`] exists only if every URL is the directory of the
//! digest beside it in a repository with a well-formed name.

use std::io::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::{DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use crate::layout::{Layout, OwnedPath};
use crate::manifest::{MAX_LAYERS, Manifest, ManifestError};
use crate::platform::Platform;

/// Longest `thin.json` that is read, in bytes.
pub const MAX_THIN: usize = 256 << 10;
/// Name of the only file of the layer.
pub const FILE: &str = "thin.json";
/// Variable that thin images have always set.
const MARK: &str = "CVMFS_IMAGE=true";
/// Annotations that name the image that a thin image stands for.
const BASE_NAME: &str = "org.opencontainers.image.base.name";
const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
/// Annotation that names the repository with the layers; whatever has it is a thin image of ours.
pub const REPOSITORY: &str = "ch.cern.cvmfs.thin.repository";

/// Why there is no thin image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThinError {
    /// The document is no `thin.json`.
    #[error("{FILE} can't be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Its size or number of layers is absurd.
    #[error("{FILE} has {found} {what}; at most {limit} are read")]
    TooLarge {
        /// bytes or layers
        what: &'static str,
        /// how many
        found: usize,
        /// how many are read
        limit: usize,
    },
    /// Written for later programs.
    #[error("{FILE} is for programs that know version {0}; this one knows 1.0")]
    Version(String),
    /// Somebody wants to lead us elsewhere.
    #[error(
        "layer {position} of {FILE}: {url:?} is not the directory of layer {digest:?} in a repository; only cvmfs://REPOSITORY/.layers/xx/HEX/layerfs is"
    )]
    Url {
        /// from the bottom, beginning with 0
        position: usize,
        /// as it stands
        url: String,
        /// as it stands
        digest: String,
    },
    /// The source is no usable image.
    #[error(transparent)]
    Source(#[from] ManifestError),
}

impl ThinError {
    /// Can the document have been meant as a record? Any image may have a file of that name with something else in it.
    pub fn is_of_a_record(&self) -> bool {
        !matches!(self, Self::Json(_))
    }
}

/// A layer of a thin image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinLayer {
    /// name of the repository that has it
    pub repository: String,
    /// which layer
    pub layer: LayerDigest,
    /// digest of its tar, if known
    pub diff_id: Option<DiffId>,
    /// size of its blob in bytes, if known
    pub size: Option<u64>,
}

/// What `thin.json` says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinRecord {
    /// name of the source
    pub origin: Option<String>,
    /// digest of the source's manifest
    pub manifest: Option<ManifestDigest>,
    /// the source's image ID
    pub config: Option<ImageId>,
    /// for which machines
    pub platform: Option<String>,
    /// layers, bottom first
    pub layers: Vec<ThinLayer>,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin_manifest_digest: Option<ManifestDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin_config_digest: Option<ImageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    layers: Vec<LayerDocument>,
}

#[derive(Serialize, Deserialize)]
struct LayerDocument {
    digest: String,
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diffid: Option<DiffId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

fn url(repository: &str, layer: LayerDigest) -> String {
    format!("cvmfs://{repository}/{}", Layout::new().print(&OwnedPath::LayerContent(layer)))
}

/// Is this a name that a repository can have? It becomes a component of a path.
pub fn is_repository_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) && !name.starts_with('.')
}

impl ThinRecord {
    /// The record for an image whose layers are all in one repository. Foreign layers are in no repository and are left out.
    pub fn new(source: &Source<'_>) -> Result<Self, ThinError> {
        let config = crate::manifest::Config::parse(source.config)?;
        let layers = source.manifest.layers_with(&config)?.into_iter().map(|layer| ThinLayer {
            repository: source.repository.to_owned(),
            layer: layer.descriptor.digest,
            diff_id: Some(layer.diff_id),
            size: Some(layer.descriptor.size),
        });
        Ok(Self {
            origin: Some(source.name.to_owned()),
            manifest: Some(source.manifest_digest),
            config: Some(source.manifest.config),
            platform: config.platform.as_ref().map(Platform::to_string),
            layers: layers.collect(),
        })
    }

    /// The bytes of the record: two spaces a level, keys in a fixed order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let layers = self.layers.iter().map(|layer| LayerDocument {
            digest: layer.layer.hex(),
            url: url(&layer.repository, layer.layer),
            diffid: layer.diff_id,
            size: layer.size,
        });
        let document = Document {
            version: "1.0".into(),
            min_version: Some("1.0".into()),
            origin: self.origin.clone(),
            origin_manifest_digest: self.manifest,
            origin_config_digest: self.config,
            platform: self.platform.clone(),
            layers: layers.collect(),
        };
        serde_json::to_vec_pretty(&document).expect("records have string keys and no failing serialisers")
    }

    /// Reads a record, and trusts nothing in it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ThinError> {
        if bytes.len() > MAX_THIN {
            return Err(ThinError::TooLarge { what: "bytes", found: bytes.len(), limit: MAX_THIN });
        }
        let document: Document = serde_json::from_slice(bytes)?;
        let needed = document.min_version.unwrap_or(document.version);
        if !matches!(needed.as_str(), "1" | "1.0") {
            return Err(ThinError::Version(needed));
        }
        if document.layers.len() > MAX_LAYERS {
            return Err(ThinError::TooLarge { what: "layers", found: document.layers.len(), limit: MAX_LAYERS });
        }
        let read = |(position, layer): (usize, LayerDocument)| {
            let digest = Digest::parse_hex(&layer.digest).map(LayerDigest::from_digest);
            let repository = layer.url.strip_prefix("cvmfs://").and_then(|rest| rest.split('/').next());
            match (digest, repository) {
                (Some(digest), Some(repository))
                    if is_repository_name(repository) && url(repository, digest) == layer.url =>
                {
                    Ok(ThinLayer {
                        repository: repository.to_owned(),
                        layer: digest,
                        diff_id: layer.diffid,
                        size: layer.size,
                    })
                }
                _ => Err(ThinError::Url { position, url: layer.url, digest: layer.digest }),
            }
        };
        Ok(Self {
            origin: document.origin,
            manifest: document.origin_manifest_digest,
            config: document.origin_config_digest,
            platform: document.platform,
            layers: document.layers.into_iter().enumerate().map(read).collect::<Result<_, _>>()?,
        })
    }
}

/// The image that a thin image stands for.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// its whole name
    pub name: &'a str,
    /// its manifest
    pub manifest: &'a Manifest,
    /// digest of that
    pub manifest_digest: ManifestDigest,
    /// its config, as it is
    pub config: &'a [u8],
    /// the repository that has its layers
    pub repository: &'a str,
}

/// A document or blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// what it is
    pub media_type: &'static str,
    /// digest of the bytes
    pub digest: Digest,
    /// the bytes
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }

    /// How a document refers to it.
    pub fn descriptor(&self) -> Map<String, Value> {
        let Value::Object(map) =
            json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
        else {
            unreachable!("it is written as an object")
        };
        map
    }
}

/// A thin image, ready to be pushed or written: layer and config first, then the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThinImage {
    /// the layer with `thin.json`
    pub layer: Blob,
    /// the config
    pub config: Blob,
    /// the manifest
    pub manifest: Blob,
    /// what `thin.json` says
    pub record: ThinRecord,
    /// for which machines, as an index states it
    pub platform: Option<Platform>,
}

impl ThinImage {
    /// Makes the thin image of an image.
    pub fn new(source: &Source<'_>) -> Result<Self, ThinError> {
        Self::with_record(source, ThinRecord::new(source)?)
    }

    /// The same with a record that was changed, for instance to name another layer of the same content.
    pub fn with_record(source: &Source<'_>, record: ThinRecord) -> Result<Self, ThinError> {
        let tar = tar_of(&record.to_bytes());
        let diff_id = DiffId::of(&tar);
        let layer = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", stored(&tar));
        let config = Blob::new("application/vnd.oci.image.config.v1+json", config_of(source.config, diff_id)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
            "annotations": {
                BASE_NAME: source.name,
                BASE_DIGEST: source.manifest_digest,
                REPOSITORY: source.repository,
            },
        });
        let platform = crate::manifest::Config::parse(source.config)?.platform;
        Ok(Self {
            layer,
            config,
            manifest: document("application/vnd.oci.image.manifest.v1+json", &manifest),
            record,
            platform,
        })
    }

    /// Bytes that a registry stores for it.
    pub fn size(&self) -> usize {
        self.layer.bytes.len() + self.config.bytes.len() + self.manifest.bytes.len()
    }
}

/// The index of the thin images of several platforms.
pub fn index(images: &[ThinImage], name: &str) -> Blob {
    let entries: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut entry = image.manifest.descriptor();
            if let Some(platform) = &image.platform {
                let mut value = json!({ "architecture": platform.architecture(), "os": platform.os() });
                if let Some(variant) = platform.variant() {
                    value["variant"] = json!(variant);
                }
                entry.insert("platform".into(), value);
            }
            entry.into()
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    document(
        media_type,
        &json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries, "annotations": { BASE_NAME: name } }),
    )
}

fn document(media_type: &'static str, value: &Value) -> Blob {
    Blob::new(media_type, serde_json::to_vec(value).expect("values have string keys"))
}

/// The source's config with the one layer instead of its own. Whatever says how to run the image stays as it is.
fn config_of(source: &[u8], diff_id: DiffId) -> Result<Vec<u8>, ThinError> {
    let text = String::from_utf8_lossy(source);
    let mut config: Map<String, Value> = serde_json::from_str(&text)?;
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": [diff_id] }));
    let mut step = json!({ "created_by": "layers in a CernVM-FS repository, listed in thin.json" });
    if let Some(created) = config.get("created").filter(|created| created.is_string()) {
        step["created"] = created.clone();
    }
    config.insert("history".into(), json!([step]));
    // What a container of the build left behind.
    for key in ["container", "container_config", "docker_version"] {
        config.remove(key);
    }
    let process = config.entry("config").or_insert_with(|| json!({}));
    if !process.is_object() {
        *process = json!({});
    }
    let env = process.as_object_mut().expect("it was just made one").entry("Env").or_insert_with(|| json!([]));
    match env {
        Value::Array(env) if env.iter().any(|variable| variable == MARK) => {}
        Value::Array(env) => env.push(MARK.into()),
        other => *other = json!([MARK]),
    }
    Ok(serde_json::to_vec(&config).expect("values have string keys"))
}

/// A tar with the one file, the same bytes for the same content.
fn tar_of(content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(FILE).expect("the name is short");
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, content).expect("writing to memory can't fail");
    builder.into_inner().expect("writing to memory can't fail")
}

/// gzip with stored blocks (RFC 1951, 3.2.4; RFC 1952), written here because a compressor's bytes change with its version.
fn stored(content: &[u8]) -> Vec<u8> {
    // no name, no time, maximum compression not claimed, operating system unknown
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = content.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).expect("a block is shorter than 64 KiB");
        gzip.push(u8::from(blocks.peek().is_none()));
        gzip.extend(length.to_le_bytes());
        gzip.extend((!length).to_le_bytes());
        gzip.write_all(block).expect("writing to memory can't fail");
    }
    gzip.extend(crc32(content).to_le_bytes());
    gzip.extend((content.len() as u32).to_le_bytes());
    gzip
}

/// The checksum of gzip (RFC 1952, 8). The content is a few KB.
fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;
