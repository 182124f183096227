//! The two key pairs of a repository and the certificate.
//!
//! The *master key* signs the whitelist and nothing else; its public half is what clients trust. The key of
//! the *certificate* signs manifests.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256};

use crate::hash::Algorithm;
use crate::signature::{PrivateKey, Scheme, SignatureError, seal};
use crate::trust::Certificate;
use crate::whitelist::{Whitelist, fingerprint};
use time::{Duration, OffsetDateTime, UtcDateTime};

/// Longest repository name that fits into the certificate's subject.
const NAME_LENGTH: usize = 30;
const CERTIFICATE_VALIDITY: Duration = Duration::days(365);

/// What signs manifests.
#[derive(Debug, Clone)]
pub struct Signer {
    /// Certificate in PEM form, as it becomes an object.
    pub certificate_pem: String,
    /// Its private key.
    pub key: PrivateKey,
}

impl Signer {
    /// A new key and a self-signed certificate for repository `fqrn`.
    pub fn generate(fqrn: &str, now: UtcDateTime) -> Result<Signer, SignatureError> {
        let key = PrivateKey::generate()?;
        let certificate_pem = certificate(fqrn, &key, now).map_err(|e| SignatureError::Rsa(e.to_string()))?;
        Ok(Signer { certificate_pem, key })
    }

    /// From the content of `FQRN.crt` and `FQRN.key`; refuses a key that is not the certificate's.
    pub fn from_pem(certificate_pem: String, key_pem: &str) -> Result<Signer, SignatureError> {
        let key = PrivateKey::from_pem(key_pem)?;
        let certificate =
            Certificate::from_pem(certificate_pem.as_bytes()).map_err(|_| SignatureError::Key("certificate"))?;
        if certificate.key != key.public() {
            return Err(SignatureError::Signature);
        }
        Ok(Signer { certificate_pem, key })
    }
}

fn certificate(fqrn: &str, key: &PrivateKey, now: UtcDateTime) -> Result<String, Box<dyn std::error::Error>> {
    let pair = KeyPair::from_pkcs8_pem_and_sign_algo(&key.to_pem()?, &PKCS_RSA_SHA256)?;
    let short: String = fqrn.chars().take(NAME_LENGTH).collect();
    let ellipsis = if short.len() < fqrn.len() { "[...]" } else { "" };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{short}{ellipsis} CernVM-FS Release Managers"));
    let from: OffsetDateTime = now.into();
    params.not_before = from;
    params.not_after = from + CERTIFICATE_VALIDITY;
    Ok(params.self_signed(&pair)?.pem())
}

/// Signs a whitelist that allows one certificate until `expires`.
pub fn sign_whitelist(
    fqrn: &str,
    algorithm: Algorithm,
    certificate_pem: &str,
    master: &PrivateKey,
    now: UtcDateTime,
    expires: UtcDateTime,
) -> Result<Vec<u8>, SignatureError> {
    let certificate =
        Certificate::from_pem(certificate_pem.as_bytes()).map_err(|_| SignatureError::Key("certificate"))?;
    let list = Whitelist {
        issued: now,
        expires,
        name: fqrn.to_owned(),
        fingerprints: vec![fingerprint(algorithm, &certificate.der)],
        unsupported: None,
    };
    seal(&list.print(), algorithm, master, Scheme::Raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_carries_the_key_and_a_short_name() {
        let signer = Signer::generate("a-very-long-repository-name.example.org", UtcDateTime::now()).unwrap();
        let again = Signer::from_pem(signer.certificate_pem.clone(), &signer.key.to_pem().unwrap()).unwrap();
        assert_eq!(again.key.public(), signer.key.public());
        let other = PrivateKey::generate().unwrap().to_pem().unwrap();
        assert!(Signer::from_pem(signer.certificate_pem, &other).is_err());
    }
}
