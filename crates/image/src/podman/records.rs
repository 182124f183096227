//! `images.json` and `layers.json`, as containers/storage reads them.
//!
//! One time that Go can't parse, or one name that two images have, makes it refuse the whole store; so both are made sure of here and in
//! [`super::place`]. What another tool has written into a list stays as it is.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::{LayerId, StoreDocument};
use crate::digest::{DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use crate::manifest::{Layer, LayerCompression};

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageEntry {
    /// hex digits of the digest of its config
    pub id: String,
    /// of its manifest
    pub digest: ManifestDigest,
    /// all of them belong to this image only
    #[serde(default)]
    pub names: Vec<String>,
    /// its topmost layer
    pub layer: String,
    big_data_names: Vec<String>,
    big_data_sizes: BTreeMap<String, u64>,
    big_data_digests: BTreeMap<String, Digest>,
    created: String,
}

impl ImageEntry {
    /// An image without a name yet.
    pub fn new(
        image: ImageId,
        digest: ManifestDigest,
        layer: LayerId,
        created: &str,
        documents: &[StoreDocument],
    ) -> Self {
        Self {
            id: image.hex(),
            digest,
            names: Vec::new(),
            layer: layer.hex(),
            big_data_names: documents.iter().map(|(name, _)| name.clone()).collect(),
            big_data_sizes: documents.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect(),
            big_data_digests: documents.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect(),
            created: created.to_owned(),
        }
    }
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerEntry {
    /// hex digits
    pub id: String,
    /// the one that it stands on
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    created: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compressed_diff_digest: Option<LayerDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compressed_size: Option<u64>,
    diff_digest: DiffId,
    diff_size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compression: Option<u8>,
}

impl LayerEntry {
    /// A flat root as a layer. Its digest is made up: there is no tar of it, and none is asked for.
    pub(super) fn flat(id: LayerId, created: &str, size: u64) -> Self {
        Self {
            id: id.hex(),
            parent: None,
            created: created.to_owned(),
            compressed_diff_digest: None,
            compressed_size: None,
            diff_digest: DiffId::from_digest(id.0),
            diff_size: size,
            compression: None,
        }
    }

    /// A layer of a registry.
    pub(super) fn of(id: LayerId, below: Option<LayerId>, layer: &Layer, size: u64, created: &str) -> Self {
        let descriptor = &layer.descriptor;
        // The numbers of containers/storage; 0 is left out.
        let compression = match descriptor.compression {
            LayerCompression::Gzip => Some(2),
            LayerCompression::Zstd => Some(4),
            _ => None,
        };
        Self {
            id: id.hex(),
            parent: below.map(|below| below.hex()),
            created: created.to_owned(),
            compressed_diff_digest: Some(descriptor.digest),
            compressed_size: Some(descriptor.size),
            diff_digest: layer.diff_id,
            diff_size: size,
            compression,
        }
    }
}

/// An entry of a list: one of ours, or what another tool has written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Listed<T = ImageEntry> {
    /// as we write it
    Ours(T),
    /// with other fields; kept
    Other(Value),
}

impl Listed {
    /// Hex digits.
    pub fn id(&self) -> &str {
        match self {
            Self::Ours(image) => &image.id,
            Self::Other(other) => text(other, "id").unwrap_or_default(),
        }
    }

    /// All its names.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Ours(image) => image.names.clone(),
            Self::Other(other) => {
                let names = other.get("names").and_then(Value::as_array).into_iter().flatten();
                names.filter_map(Value::as_str).map(str::to_owned).collect()
            }
        }
    }

    /// Its topmost layer.
    pub fn layer(&self) -> Option<&str> {
        match self {
            Self::Ours(image) => Some(&image.layer),
            Self::Other(other) => text(other, "layer"),
        }
    }

    /// Takes names away; whether it had one.
    pub fn drop_names(&mut self, gone: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Ours(image) => {
                let before = image.names.len();
                image.names.retain(|name| !gone(name));
                image.names.len() != before
            }
            Self::Other(other) => {
                let Some(names) = other.get_mut("names").and_then(Value::as_array_mut) else { return false };
                let before = names.len();
                names.retain(|name| name.as_str().is_none_or(|name| !gone(name)));
                names.len() != before
            }
        }
    }
}

impl Listed<LayerEntry> {
    /// Hex digits.
    pub fn id(&self) -> &str {
        match self {
            Self::Ours(layer) => &layer.id,
            Self::Other(other) => text(other, "id").unwrap_or_default(),
        }
    }

    /// The one that it stands on.
    pub fn parent(&self) -> Option<&str> {
        match self {
            Self::Ours(layer) => layer.parent.as_deref(),
            Self::Other(other) => text(other, "parent"),
        }
    }
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

/// Why a list is none.
#[derive(Debug, thiserror::Error)]
#[error("no list of containers/storage: {0}")]
pub struct ListError(#[from] serde_json::Error);

/// The bytes of a list.
pub fn print<T: Serialize>(list: &[T]) -> Vec<u8> {
    serde_json::to_vec(list).expect("records have string keys and no failing serialisers")
}

/// Reads a list.
pub fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, ListError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// The first of these that is a time; else the beginning of 1970. In UTC.
pub fn created<const N: usize>(candidates: [Option<&str>; N]) -> String {
    let parsed = candidates.into_iter().flatten().find_map(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let text = parsed.and_then(|time| time.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}
