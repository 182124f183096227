//! Signatures as `cosign sign` has put them beside images for years ("simple signing").
//!
//! ```text
//! REPOSITORY:sha256-<hex of the image's digest>.sig     a manifest, whose layers are payloads
//!   layer: bytes of a payload, signature in an annotation
//!     payload: {"critical": {"image": {"docker-manifest-digest": "sha256:…"}, …}}
//! ```
//!
//! Source of facts: cosign's `specs/SIGNATURE_SPEC.md` (payload, annotation, tag), Red Hat's "simple signing" for the
//! payload's shape.

use std::collections::BTreeMap;

use base64::Engine as _;
use image::digest::{Digest, ManifestDigest};
use serde::Deserialize;

use super::{Key, MAX_SIGNATURES, SignatureError, Unsigned};

/// Largest payload in bytes; cosign's have a few hundred.
pub const MAX_PAYLOAD: u64 = 64 << 10;
/// Media type of a payload.
pub(super) const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation that holds a signature.
pub(super) const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a payload says that it is about. Older programs write the second.
pub(super) const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

/// The tag under which signatures of an image are.
pub fn tag(digest: ManifestDigest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// A signature that was found, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Digest of the payload's blob.
    pub payload: Digest,
    /// The signature.
    pub signature: Vec<u8>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest", alias = "Docker-manifest-digest")]
    digest: ManifestDigest,
}

/// The signatures that a manifest lists. What is too large, or no signature at all, is left out.
pub fn list(manifest: &[u8], tag: &str) -> Result<Vec<Found>, SignatureError> {
    let manifest: Manifest = serde_json::from_slice(manifest)
        .map_err(|error| SignatureError::Document(tag.to_owned(), error.to_string().chars().take(200).collect()))?;
    let engine = base64::engine::general_purpose::STANDARD;
    let is_payload = |layer: &&Layer| layer.media_type == PAYLOAD && layer.size <= MAX_PAYLOAD;
    let payloads = manifest.layers.iter().filter(is_payload).take(MAX_SIGNATURES);
    let found: Vec<Found> = payloads
        .filter_map(|layer| {
            let signature = engine.decode(layer.annotations.get(ANNOTATION)?.trim()).ok()?;
            Some(Found { payload: layer.digest, signature })
        })
        .collect();
    match found.is_empty() {
        true => Err(SignatureError::Document(tag.to_owned(), "no payload has a signature".to_owned())),
        false => Ok(found),
    }
}

/// Whether one of the keys has signed a payload that names the digest: that key, or why it does not count.
pub fn check<'a>(
    keys: &'a [Key],
    digest: ManifestDigest,
    payload: &[u8],
    signature: &[u8],
) -> Result<&'a Key, Unsigned> {
    if payload.len() as u64 > MAX_PAYLOAD {
        return Err(Unsigned::TooLarge);
    }
    let key = keys.iter().find(|key| key.has_signed(payload, signature)).ok_or(Unsigned::Key)?;
    let payload: Payload = serde_json::from_slice(payload).map_err(|_| Unsigned::NoStatement)?;
    if !TYPES.contains(&payload.critical.kind.as_str()) {
        return Err(Unsigned::OtherStatement);
    }
    match payload.critical.image.digest == digest {
        true => Ok(key),
        false => Err(Unsigned::OtherImage),
    }
}
