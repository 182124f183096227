//! The whole chain of trust in one place: master key → whitelist → certificate → manifest → root catalog.
//!
//! Everything else follows by hash: catalogs from the root catalog, files from catalogs.

use time::UtcDateTime;
use x509_cert::der::{Decode as _, DecodePem as _, Encode as _};

use crate::hash::ContentHash;
use crate::manifest::{Manifest, ManifestError};
use crate::signature::{Envelope, PublicKey, Scheme, SignatureError};
use crate::whitelist::{Whitelist, WhitelistError};

/// Why a repository is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The manifest does not parse.
    #[error("manifest of {0}")]
    Manifest(String, #[source] ManifestError),
    /// Manifest hash or signature do not match.
    #[error("manifest of {0} is not signed by its certificate")]
    ManifestSignature(String, #[source] SignatureError),
    /// The manifest is for another repository.
    #[error("the manifest is for repository {found:?}, not {expected:?}")]
    Name {
        /// Repository asked for.
        expected: String,
        /// Repository that the manifest names.
        found: String,
    },
    /// The manifest names no certificate, or the certificate does not parse.
    #[error("certificate of {0}: {1}")]
    Certificate(String, String),
    /// The whitelist does not parse.
    #[error("whitelist of {0}")]
    Whitelist(String, #[source] WhitelistError),
    /// The whitelist is not signed by a trusted master key.
    #[error("whitelist of {0} is signed by none of the {1} trusted master keys")]
    WhitelistSignature(String, usize),
    /// The whitelist asks for a way of verification that is not implemented.
    #[error("whitelist of {0} asks for {1}, which this program does not do")]
    Unsupported(String, String),
    /// The whitelist is too old.
    #[error("whitelist of {0} expired at {1}: the operator has to sign it anew (cvmfs-publisher sign {0})")]
    Expired(String, UtcDateTime),
    /// The certificate is not listed.
    #[error("the certificate that signed {0} is not on its whitelist")]
    NotListed(String),
    /// The certificate is listed as one that must not be trusted any more.
    #[error("the certificate that signed {0} is blacklisted")]
    Blacklisted(String),
    /// A master key does not parse.
    #[error("master key")]
    MasterKey(#[source] SignatureError),
}

/// What a client needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Anchor<'a> {
    /// Fully qualified repository name.
    pub name: &'a str,
    /// Trusted master keys; one that matches suffices.
    pub master_keys: &'a [PublicKey],
    /// Certificates that must not be trusted; wins over the whitelist.
    pub blacklist: &'a [ContentHash],
    /// Current time.
    pub now: UtcDateTime,
}

impl Anchor<'_> {
    /// Parses a manifest and checks what needs no other document: complete, and for this repository.
    pub fn parse_manifest(&self, manifest: &[u8]) -> Result<Manifest, TrustError> {
        let parsed = Manifest::parse(manifest).map_err(|e| TrustError::Manifest(self.name.into(), e))?;
        if parsed.name != self.name {
            return Err(TrustError::Name { expected: self.name.into(), found: parsed.name });
        }
        Ok(parsed)
    }

    /// Checks the chain over the raw documents. `certificate` is the PEM text of the object that the
    /// manifest names, its hash already verified.
    pub fn verify(&self, manifest: &[u8], certificate: &[u8], whitelist: &[u8]) -> Result<Manifest, TrustError> {
        let name = || self.name.to_owned();
        let parsed = self.parse_manifest(manifest)?;
        let certificate = Certificate::from_pem(certificate).map_err(|what| TrustError::Certificate(name(), what))?;
        Envelope::open(manifest)
            .and_then(|envelope| envelope.verify(&certificate.key, Scheme::Digest))
            .map_err(|e| TrustError::ManifestSignature(name(), e))?;
        let list = self.verify_whitelist(whitelist)?;
        let is = |listed: &ContentHash| *listed == ContentHash::of(listed.algorithm, &certificate.der);
        if self.blacklist.iter().any(is) {
            return Err(TrustError::Blacklisted(name()));
        }
        if !list.fingerprints.iter().any(is) {
            return Err(TrustError::NotListed(name()));
        }
        Ok(parsed)
    }

    /// Checks the whitelist alone.
    pub fn verify_whitelist(&self, document: &[u8]) -> Result<Whitelist, TrustError> {
        let name = || self.name.to_owned();
        let unsigned = || TrustError::WhitelistSignature(name(), self.master_keys.len());
        let envelope = Envelope::open(document).map_err(|_| unsigned())?;
        let list = Whitelist::parse(envelope.text).map_err(|e| TrustError::Whitelist(name(), e))?;
        if !list.is_valid_at(self.now) {
            return Err(TrustError::Expired(name(), list.expires));
        }
        if list.name != self.name {
            return Err(TrustError::Name { expected: name(), found: list.name });
        }
        if let Some(what) = list.unsupported {
            return Err(TrustError::Unsupported(name(), what));
        }
        if !self.master_keys.iter().any(|key| envelope.verify(key, Scheme::Raw).is_ok()) {
            return Err(unsigned());
        }
        Ok(list)
    }
}

/// A parsed certificate. Its dates are not looked at: what expires is the whitelist.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// DER form, which fingerprints hash.
    pub der: Vec<u8>,
    /// Its public key.
    pub key: PublicKey,
}

impl Certificate {
    /// From PEM text; errors say what is wrong.
    pub fn from_pem(pem: &[u8]) -> Result<Certificate, String> {
        let parsed = x509_cert::Certificate::from_pem(pem)
            .or_else(|_| x509_cert::Certificate::from_der(pem))
            .map_err(|e| format!("not an X.509 certificate in PEM form ({e})"))?;
        let der = parsed.to_der().map_err(|e| e.to_string())?;
        let key = parsed.tbs_certificate().subject_public_key_info().to_der().map_err(|e| e.to_string())?;
        Ok(Certificate { der, key: PublicKey::from_der(&key).map_err(|e| e.to_string())? })
    }
}
