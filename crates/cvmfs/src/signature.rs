//! Signed documents: manifest and whitelist share one envelope.
//!
//! ```text
//! text, ending in a newline
//! --
//! hash of the text, ending in a newline
//! raw RSA signature to the end of the file
//! ```
//!
//! The manifest is signed with RSASSA-PKCS1-v1_5 and SHA-1 over the *hash text*. The whitelist puts the hash
//! text itself, without a DigestInfo, through PKCS#1 type 1 padding and the private key.

use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding,
};
use rsa::{Pkcs1v15Sign, RsaPrivateKey, RsaPublicKey};
use sha1::{Digest as _, Sha1};

use crate::hash::{Algorithm, ContentHash};

/// DER head of a DigestInfo for SHA-1 (RFC 8017, section 9.2).
const SHA1_DIGEST_INFO: [u8; 15] =
    [0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14];

const RSA_BITS: usize = 2048;

/// The two ways to sign a hash text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Manifest: a signature over the SHA-1 digest of the hash text.
    Digest,
    /// Whitelist: the padded hash text itself.
    Raw,
}

impl Scheme {
    fn padding(self) -> Pkcs1v15Sign {
        match self {
            Scheme::Digest => Pkcs1v15Sign { hash_len: Some(20), prefix: SHA1_DIGEST_INFO.into() },
            Scheme::Raw => Pkcs1v15Sign::new_unprefixed(),
        }
    }

    fn message(self, hash_text: &[u8]) -> Vec<u8> {
        match self {
            Scheme::Digest => Sha1::digest(hash_text).to_vec(),
            Scheme::Raw => hash_text.to_vec(),
        }
    }
}

/// Why a key or a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The envelope is not complete.
    #[error("no signature block: the line \"--\", a hash line and a signature must follow the text")]
    Envelope,
    /// The text was changed.
    #[error("the hash line says {expected}, the text hashes to {found}: the document was changed")]
    Hash {
        /// Hash line.
        expected: ContentHash,
        /// Hash of the text.
        found: ContentHash,
    },
    /// The signature was made with another key or over something else.
    #[error("the signature does not match the key")]
    Signature,
    /// Not a key.
    #[error("not an RSA {0} in PEM form")]
    Key(&'static str),
    /// Making a key or a signature failed.
    #[error("RSA: {0}")]
    Rsa(String),
}

/// A document split into its parts.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// The signed text, with the newline before the separator.
    pub text: &'a [u8],
    /// The hash line, parsed.
    pub hash: ContentHash,
    hash_text: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Splits a document and compares the hash line with the text.
    pub fn open(document: &'a [u8]) -> Result<Envelope<'a>, SignatureError> {
        const SEPARATOR: &[u8] = b"\n--\n";
        let at = document.windows(SEPARATOR.len()).position(|w| w == SEPARATOR).ok_or(SignatureError::Envelope)?;
        let (text, rest) = (&document[..=at], &document[at + SEPARATOR.len()..]);
        let end = rest.iter().take(64).position(|b| *b == b'\n').ok_or(SignatureError::Envelope)?;
        let (hash_text, signature) = (&rest[..end], &rest[end + 1..]);
        let hash = std::str::from_utf8(hash_text).ok().and_then(|t| t.parse::<ContentHash>().ok());
        let hash = hash.ok_or(SignatureError::Envelope)?;
        let found = ContentHash::of(hash.algorithm, text);
        if found != hash {
            return Err(SignatureError::Hash { expected: hash, found });
        }
        Ok(Envelope { text, hash, hash_text, signature })
    }

    /// Checks the signature.
    pub fn verify(&self, key: &PublicKey, scheme: Scheme) -> Result<(), SignatureError> {
        key.0
            .verify(scheme.padding(), &scheme.message(self.hash_text), self.signature)
            .map_err(|_| SignatureError::Signature)
    }
}

/// Puts the envelope around a text that ends in a newline.
pub fn seal(text: &str, algorithm: Algorithm, key: &PrivateKey, scheme: Scheme) -> Result<Vec<u8>, SignatureError> {
    let hash_text = ContentHash::of(algorithm, text.as_bytes()).to_string();
    let message = scheme.message(hash_text.as_bytes());
    let signature = key.0.sign(scheme.padding(), &message).map_err(|e| SignatureError::Rsa(e.to_string()))?;
    let mut document = format!("{text}--\n{hash_text}\n").into_bytes();
    document.extend(signature);
    Ok(document)
}

/// RSA public key: a master key that clients trust, or that of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(RsaPublicKey);

impl PublicKey {
    /// From PEM text.
    pub fn from_pem(pem: &str) -> Result<PublicKey, SignatureError> {
        RsaPublicKey::from_public_key_pem(pem).map(PublicKey).map_err(|_| SignatureError::Key("public key"))
    }

    /// From the DER form of a SubjectPublicKeyInfo.
    pub fn from_der(der: &[u8]) -> Result<PublicKey, SignatureError> {
        RsaPublicKey::from_public_key_der(der).map(PublicKey).map_err(|_| SignatureError::Key("public key"))
    }

    /// PEM text, as kept in `FQRN.pub`.
    pub fn to_pem(&self) -> Result<String, SignatureError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|e| SignatureError::Rsa(e.to_string()))
    }
}

/// RSA private key. Shows nothing of itself.
#[derive(Clone)]
pub struct PrivateKey(RsaPrivateKey);

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl PrivateKey {
    /// A new 2048-bit key from the system's random numbers.
    pub fn generate() -> Result<PrivateKey, SignatureError> {
        let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, RSA_BITS);
        key.map(PrivateKey).map_err(|e| SignatureError::Rsa(e.to_string()))
    }

    /// From PEM text, PKCS#8 or PKCS#1.
    pub fn from_pem(pem: &str) -> Result<PrivateKey, SignatureError> {
        RsaPrivateKey::from_pkcs8_pem(pem)
            .ok()
            .or_else(|| RsaPrivateKey::from_pkcs1_pem(pem).ok())
            .map(PrivateKey)
            .ok_or(SignatureError::Key("private key"))
    }

    /// PEM text, PKCS#8.
    pub fn to_pem(&self) -> Result<String, SignatureError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|e| SignatureError::Rsa(e.to_string()))?;
        Ok(pem.to_string())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.to_public_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_the_worked_examples() {
        let manifest = crate::manifest::Manifest::parse(
            b"Ca1b2c3d4e5f60718293a4b5c6d7e8f9012345678\nB25600\nRd41d8cd98f00b204e9800998ecf8427e\nD240\nS7\n\
              Nimages.example.org\nX0f1e2d3c4b5a69788796a5b4c3d2e1f001234567\n\
              H1111222233334444555566667777888899990000\nT1760000000\nMabababababababababababababababababababab\n\
              Ycdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\n",
        );
        let text = manifest.unwrap().print();
        assert_eq!(text.len(), 299);
        assert_eq!(
            ContentHash::of(Algorithm::Sha1, text.as_bytes()).to_string(),
            "e61c1b30d6461ac9c88d7b42afd382b9e533157c"
        );
        let whitelist = "20251001120000\nE20251031120000\nNimages.example.org\n\
            E8:B6:D7:DD:4F:65:5E:8F:4E:39:B8:19:80:48:9A:99:AA:5A:F7:0D\n";
        assert_eq!(
            ContentHash::of(Algorithm::Sha1, whitelist.as_bytes()).to_string(),
            "bf250ab363904b00c3819de284e0a63046cb417e"
        );
    }

    #[test]
    fn seals_and_opens_in_both_schemes_and_all_algorithms() {
        let (key, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        for algorithm in Algorithm::ALL {
            for scheme in [Scheme::Digest, Scheme::Raw] {
                let document = seal("Nx\nS1\n", algorithm, &key, scheme).unwrap();
                assert_eq!(document.len(), "Nx\nS1\n--\n".len() + 41 + algorithm.id().len() + RSA_BITS / 8);
                let envelope = Envelope::open(&document).unwrap();
                assert_eq!(envelope.text, b"Nx\nS1\n");
                envelope.verify(&key.public(), scheme).unwrap();
                assert_eq!(envelope.verify(&other.public(), scheme), Err(SignatureError::Signature));
                let wrong = if scheme == Scheme::Raw { Scheme::Digest } else { Scheme::Raw };
                assert_eq!(envelope.verify(&key.public(), wrong), Err(SignatureError::Signature));
                let mut changed = document.clone();
                changed[1] ^= 1;
                assert!(matches!(Envelope::open(&changed), Err(SignatureError::Hash { .. })));
                assert!(Envelope::open(&document[..12]).is_err());
            }
        }
        assert!(Envelope::open(b"").is_err());
        let again = PrivateKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(again.public(), PublicKey::from_pem(&key.public().to_pem().unwrap()).unwrap());
        assert_eq!(format!("{key:?}"), "PrivateKey");
    }
}
