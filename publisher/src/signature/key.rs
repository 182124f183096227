//! Public keys that sign images, as cosign writes them: PEM, `BEGIN PUBLIC KEY`.
//!
//! ECDSA on P-256 with SHA-256 (what `cosign generate-key-pair` makes), RSA (PKCS #1 v1.5) of 2048 bits and more with
//! SHA-256, Ed25519.

use std::fmt;
use std::fs;
use std::path::Path;

use image::digest::Digest;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_cert::der::{DecodePem as _, Encode as _, asn1::ObjectIdentifier};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

/// RFC 5480, 2.1.1: an elliptic curve, and the one called P-256.
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// RFC 8017, A.1.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// RFC 8410, 3.
const ED_25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// Largest key file that is read.
const LARGEST: u64 = 64 << 10;

/// What identifies a key: the SHA-256 of its DER form, as `openssl pkey -pubin -outform der | sha256sum` prints it.
pub type Fingerprint = Digest;

/// A key that a signature can be checked with.
#[derive(Clone)]
pub struct Key {
    algorithm: &'static dyn VerificationAlgorithm,
    bytes: Vec<u8>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// A file is no key that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It cannot be read.
    #[error("cannot read the public key {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{0}: no public key in PEM form (BEGIN PUBLIC KEY), as cosign and openssl write it")]
    NotPem(String),
    /// A key of another kind.
    #[error("{path}: a key of the kind {kind} is not known; use ECDSA on P-256, RSA or Ed25519")]
    Kind {
        /// The file.
        path: String,
        /// Its object identifier.
        kind: String,
    },
}

impl Key {
    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Key, KeyError> {
        let name = path.display().to_string();
        let failed = |source| KeyError::Read { path: name.clone(), source };
        let size = fs::metadata(path).map_err(failed)?.len();
        if size > LARGEST {
            return Err(KeyError::NotPem(name));
        }
        let bytes = fs::read(path).map_err(failed)?;
        Key::from_pem(&bytes, &name)
    }

    /// From the content of a file; `name` is for messages.
    pub fn from_pem(pem: &[u8], name: &str) -> Result<Key, KeyError> {
        let not_pem = || KeyError::NotPem(name.to_owned());
        let key = SubjectPublicKeyInfoOwned::from_pem(pem).map_err(|_| not_pem())?;
        let der = key.to_der().map_err(|_| not_pem())?;
        let oid = key.algorithm.oid;
        let curve = key.algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok());
        let algorithm: &'static dyn VerificationAlgorithm = match oid {
            EC_PUBLIC_KEY if curve == Some(P256) => &ECDSA_P256_SHA256_ASN1,
            RSA => &RSA_PKCS1_2048_8192_SHA256,
            ED_25519 => &ED25519,
            _ => {
                let kind = curve.map_or_else(|| oid.to_string(), |curve| format!("{oid} {curve}"));
                return Err(KeyError::Kind { path: name.to_owned(), kind });
            }
        };
        let bytes = key.subject_public_key.as_bytes().ok_or_else(not_pem)?.to_vec();
        Ok(Key { algorithm, bytes, fingerprint: Digest::of(&der) })
    }

    /// What identifies it.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether it has signed this message.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}
