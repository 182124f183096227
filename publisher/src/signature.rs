//! Signatures of images, made by `cosign sign --key`: found beside the image, checked against keys that the operator has
//! named. Nothing else is asked: no transparency log, no certificate authority.
//!
//! ```text
//! REPOSITORY:sha256-<hex of the image's digest>.sig     a manifest, whose layers are payloads
//!   layer: bytes of a payload, signature in an annotation
//!     payload: {"critical": {"image": {"docker-manifest-digest": "sha256:…"}, …}}
//! ```
//!
//! Invariants
//! - A payload is looked into only after a key has been found to have signed it.
//! - It counts only if it names the digest that is published: of the manifest, or of the index through which it was found.
//! - What an image's registry can make us fetch is bounded: [`MAX_SIGNATURES`] payloads of [`MAX_PAYLOAD`] bytes.
//!
//! Source of facts: cosign's `specs/SIGNATURE_SPEC.md` (payload, annotation, tag), Red Hat's "simple signing" for the
//! payload's shape.

mod gate;
mod key;
mod policy;

use std::collections::BTreeMap;

use base64::Engine as _;
use image::digest::{Digest, ManifestDigest};
use serde::Deserialize;

pub use self::gate::{Claims, Gate};
pub use self::key::{Fingerprint, Key, KeyError};
pub use self::policy::{Policy, PolicyError, PolicySettings, PrivateImages, RuleSettings};

/// Signatures of one image that are looked at.
pub const MAX_SIGNATURES: usize = 64;
/// Largest payload in bytes; cosign's have a few hundred.
pub const MAX_PAYLOAD: u64 = 64 << 10;
/// Media type of a payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation that holds a signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// What a payload says that it is about. Older programs write the second.
const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

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

/// Why signatures do not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The document under the tag is none of signatures.
    #[error("{0} holds no signatures: {1}")]
    Document(String, String),
    /// None of the signatures counts.
    #[error("none of {count} signatures counts: {why}")]
    None {
        /// How many there are.
        count: usize,
        /// What is wrong with them, each once.
        why: String,
    },
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
) -> Result<&'a Key, &'static str> {
    let key = keys.iter().find(|key| key.has_signed(payload, signature)).ok_or("signed by no key that is asked for")?;
    let payload: Payload =
        serde_json::from_slice(payload).map_err(|_| "what is signed is no statement about an image")?;
    if !TYPES.contains(&payload.critical.kind.as_str()) {
        return Err("what is signed is a statement of another kind");
    }
    match payload.critical.image.digest == digest {
        true => Ok(key),
        false => Err("what is signed is another image"),
    }
}

/// Looks for a signature by one of the keys, which covers the digest. `fetch` gives the bytes of a payload.
pub fn verify<E>(
    keys: &[Key],
    digest: ManifestDigest,
    found: &[Found],
    mut fetch: impl FnMut(Digest) -> Result<Vec<u8>, E>,
) -> Result<Result<Fingerprint, SignatureError>, E> {
    let mut why: Vec<&str> = Vec::new();
    for Found { payload, signature } in found {
        let bytes = fetch(*payload)?;
        let checked = match bytes.len() as u64 > MAX_PAYLOAD {
            true => Err("what is signed is too large"),
            false => check(keys, digest, &bytes, signature),
        };
        match checked {
            Ok(key) => return Ok(Ok(key.fingerprint())),
            Err(reason) if !why.contains(&reason) => why.push(reason),
            Err(_) => {}
        }
    }
    Ok(Err(SignatureError::None { count: found.len(), why: why.join("; ") }))
}

#[cfg(test)]
mod tests;
