//! Signatures as cosign 3 makes them: Sigstore bundles, artifacts that refer to the image.
//!
//! ```text
//! what refers to the image, of the type of bundles     (crates/registry/src/referrers.rs)
//!   manifest: one layer, the bundle
//!     bundle: {"mediaType": …, "verificationMaterial": {…}, "dsseEnvelope": {"payloadType": …, "payload": …, "signatures": [{"sig": …}]}}
//!       payload: {"_type": …, "predicateType": "https://sigstore.dev/cosign/sign/v1", "subject": [{"digest": {"sha256": …}}]}
//! ```
//!
//! Signed is the *pre-authentication encoding* of the payload with its type. Attestations have the same form and another predicate: that
//! somebody has signed how an image was built does not say that it may be published. What the bundle says of its key, of transparency
//! logs and of time stamps is not looked at: nobody vouches for it, and the key is known.
//!
//! Source of facts: cosign's `specs/BUNDLE_SPEC.md` and its `sign` (predicate, annotations), Sigstore's `sigstore_bundle.proto` (fields,
//! one signature a bundle), DSSE's `protocol.md` (encoding), in-toto's Statement v1.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::digest::{Digest, ManifestDigest};
use registry::Referrer;
use serde::Deserialize;

use super::{Key, Unsigned};

/// Largest bundle in bytes; those with proofs of a transparency log have about ten thousand.
pub const MAX_BUNDLE: u64 = 256 << 10;
/// Media type of a bundle, and the type of the artifact that it is in.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The same, as it was spelled before.
const SPELLED: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";
/// Annotation of an artifact: what its statement says.
const PREDICATE: &str = "dev.sigstore.bundle.predicateType";
/// What `cosign sign` says of an image.
pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
/// Type of what is signed.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Type of the statement.
const STATEMENT: &str = "https://in-toto.io/Statement/v1";

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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Option<Material>,
    dsse_envelope: Option<Envelope>,
}

/// Only to tell what there is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    certificate: Option<serde::de::IgnoredAny>,
    x509_certificate_chain: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: BTreeMap<String, String>,
}

/// Whether it may be a signature, as far as its description tells.
pub fn may_be_signature(referrer: &Referrer) -> bool {
    referrer.annotations.get(PREDICATE).is_none_or(|predicate| predicate == SIGN)
}

/// The bundle that the manifest of an artifact leads to.
pub fn in_manifest(manifest: &[u8]) -> Result<Digest, Unsigned> {
    let manifest: Manifest = serde_json::from_slice(manifest).map_err(|_| Unsigned::Bundle)?;
    match &manifest.layers[..] {
        [layer] if layer.size > MAX_BUNDLE => Err(Unsigned::TooLarge),
        [layer] if [BUNDLE, SPELLED].contains(&layer.media_type.as_str()) => Ok(layer.digest),
        _ => Err(Unsigned::Bundle),
    }
}

/// Whether one of the keys has signed a statement whose subject is the digest: that key, or why the bundle does not count.
pub fn check<'a>(keys: &'a [Key], digest: ManifestDigest, bundle: &[u8]) -> Result<&'a Key, Unsigned> {
    if bundle.len() as u64 > MAX_BUNDLE {
        return Err(Unsigned::TooLarge);
    }
    let bundle: Bundle = serde_json::from_slice(bundle).map_err(|_| Unsigned::Bundle)?;
    if ![BUNDLE, SPELLED].contains(&bundle.media_type.as_str()) {
        return Err(Unsigned::Bundle);
    }
    // The other content of a bundle is a signature of a file, which `cosign sign` never makes.
    let envelope = bundle.dsse_envelope.ok_or(Unsigned::NoStatement)?;
    let [Signature { sig }] = &envelope.signatures[..] else { return Err(Unsigned::Bundle) };
    let (payload, signature) = (bytes(&envelope.payload)?, bytes(sig)?);
    let message = encode(&envelope.payload_type, &payload);
    let Some(key) = keys.iter().find(|key| key.has_signed(&message, &signature)) else {
        let certified = |m: &Material| m.certificate.is_some() || m.x509_certificate_chain.is_some();
        let is_certified = bundle.verification_material.as_ref().is_some_and(certified);
        return Err(if is_certified { Unsigned::Certificate } else { Unsigned::Key });
    };
    if envelope.payload_type != IN_TOTO {
        return Err(Unsigned::NoStatement);
    }
    let statement: Statement = serde_json::from_slice(&payload).map_err(|_| Unsigned::NoStatement)?;
    if statement.kind != STATEMENT || statement.predicate_type != SIGN {
        return Err(Unsigned::OtherStatement);
    }
    let is_meant = |subject: &Subject| subject.digest.get("sha256") == Some(&digest.hex());
    if statement.subject.iter().any(is_meant) { Ok(key) } else { Err(Unsigned::OtherImage) }
}

/// What is signed (DSSE, "Signature Definition"): no payload can be taken for one of another type.
pub fn encode(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Bytes as JSON of protocol buffers has them: either alphabet, with padding or without.
fn bytes(text: &str) -> Result<Vec<u8>, Unsigned> {
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config).decode(text).map_err(|_| Unsigned::Bundle)
}
