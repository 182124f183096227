//! `images.json` and `layers.json`, as containers/storage reads them.
//!
//! One time that Go can't parse, or one name that two images have, makes it refuse the whole store; so both are made sure of here.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use image::digest::{Digest, ManifestDigest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::StoreError;
use crate::files::FileError;

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageEntry {
    pub(super) id: String,
    digest: ManifestDigest,
    #[serde(default)]
    pub(super) names: Vec<String>,
    pub(super) layer: String,
    big_data_names: Vec<String>,
    big_data_sizes: BTreeMap<String, u64>,
    big_data_digests: BTreeMap<String, Digest>,
    created: String,
}

impl ImageEntry {
    /// An image without a name yet.
    pub(super) fn new(
        id: String,
        digest: ManifestDigest,
        layer: String,
        created: String,
        big_data: &[(String, &[u8])],
    ) -> Self {
        Self {
            id,
            digest,
            names: Vec::new(),
            layer,
            big_data_names: big_data.iter().map(|(name, _)| name.clone()).collect(),
            big_data_sizes: big_data.iter().map(|(name, bytes)| (name.clone(), bytes.len() as u64)).collect(),
            big_data_digests: big_data.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect(),
            created,
        }
    }
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct LayerEntry {
    pub(super) id: String,
    created: String,
    diff_digest: Digest,
    diff_size: u64,
}

impl LayerEntry {
    /// A flat root as a layer. Its digest is made up: there is no tar of it, and none is asked for.
    pub(super) fn new(id: String, created: String, size: u64) -> Self {
        let diff_digest = Digest::parse_hex(&id).expect("the ID is a hash");
        Self { id, created, diff_digest, diff_size: size }
    }
}

/// The bytes of a list.
pub(super) fn print<T: Serialize>(list: &[T]) -> Vec<u8> {
    serde_json::to_vec(list).expect("records have string keys and no failing serialisers")
}

/// Reads a list.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, StoreError> {
    let bytes = std::fs::read(path).map_err(FileError::of("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| StoreError::Damaged { path: path.to_owned(), why: error.to_string() })
}

/// The first of these that is a time; else the beginning of 1970. In UTC.
pub(super) fn created<const N: usize>(candidates: [Option<&str>; N]) -> String {
    let parsed = candidates.into_iter().flatten().find_map(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let text = parsed.and_then(|time| time.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// The file for a name: itself if it is made of `a-z`, `0-9` and `.`, else base64 behind `=`.
pub(super) fn big_data_file(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.';
    if name.bytes().all(plain) {
        return name.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_containers_storage_names_them() {
        assert_eq!(big_data_file("manifest"), "manifest");
        // printf 'sha256:abc' | base64
        assert_eq!(big_data_file("sha256:abc"), "=c2hhMjU2OmFiYw==");
        assert!(!big_data_file(&format!("manifest-sha256:{}", "0f".repeat(32))).contains('/'));
    }

    #[test]
    fn times_are_ones_that_go_can_read() {
        for (candidates, expected) in [
            ([Some("2026-01-02T03:04:05.678Z"), None], "2026-01-02T03:04:05.678Z"),
            ([Some("2026-01-02T03:04:05+02:00"), None], "2026-01-02T01:04:05Z"),
            ([Some("yesterday"), Some("2026-01-02T03:04:05Z")], "2026-01-02T03:04:05Z"),
            ([None, None], "1970-01-01T00:00:00Z"),
            ([Some("0000-12-31T23:00:00-05:00"), None], "0001-01-01T04:00:00Z"),
            ([Some("9999-12-31T23:00:00-05:00"), None], "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(created(candidates), expected);
        }
    }
}
