//! The documents at the top: manifest, whitelist, certificate, meta info, alternative links.

use super::report::chain;
use super::{CheckError, Identity, Report, Rule, fault};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::manifest::Manifest;
use crate::object::Compression;
use crate::signature::{Envelope, Scheme};
use crate::store::{Store, fetch, names};
use crate::trust::{Anchor, Certificate, TrustError};

/// Largest certificate or meta info, in plain bytes.
const DOCUMENT_LIMIT: u64 = 64 << 20;

/// Checks the documents; gives the manifest if it can be read.
pub(super) fn check(
    store: &dyn Store,
    identity: Identity<'_>,
    report: &mut Report,
) -> Result<Option<Manifest>, CheckError> {
    let document = store.read(names::MANIFEST)?.ok_or_else(|| CheckError::NoManifest(store.place()))?;
    let manifest = match Manifest::parse(&document) {
        Ok(manifest) => manifest,
        Err(error) => {
            report.add(Rule::ManifestSyntax, names::MANIFEST, error);
            return Ok(None);
        }
    };
    let expected = match identity {
        Identity::Any => manifest.name.as_str(),
        Identity::Name(name) => name,
        Identity::Trusted(anchor) => anchor.name,
    };
    let named = manifest.name == expected && !expected.is_empty();
    if !named {
        report.add_expecting(Rule::ManifestName, names::MANIFEST, expected, format!("{:?}", manifest.name));
    }
    let pem = check_certificate(store, manifest.certificate, report)?;
    let signed = check_signature(&document, pem.as_deref(), report);
    if let Identity::Trusted(anchor) = identity {
        // The whole chain in one go where the lower links are known to hold, else what is above them.
        let whole = pem.filter(|_| named && signed);
        check_whitelist(store, anchor, whole.map(|pem| (document, pem)), report)?;
    }
    if let Some(id) = manifest.meta_info.map(|h| h.object(ObjectKind::MetaInfo))
        && let Err(what) = load(store, id)?
    {
        report.add(Rule::MetaInfo, id, what);
    }
    if manifest.alternative_paths {
        let certificate = manifest.certificate.map(|c| c.object(ObjectKind::Certificate));
        for id in [Some(manifest.root_catalog.object(ObjectKind::Catalog)), certificate].into_iter().flatten() {
            let name = names::alternative(id);
            if store.read(&name)?.is_none() {
                report.add(Rule::AlternativeLink, name, "");
            }
        }
    }
    Ok(Some(manifest))
}

/// The certificate as PEM text, if it is one.
fn check_certificate(
    store: &dyn Store,
    hash: Option<ContentHash>,
    report: &mut Report,
) -> Result<Option<Vec<u8>>, CheckError> {
    let Some(id) = hash.map(|h| h.object(ObjectKind::Certificate)) else {
        report.add(Rule::Certificate, names::MANIFEST, "no line starts with 'X'");
        return Ok(None);
    };
    match load(store, id)?.and_then(|pem| Certificate::from_pem(&pem).map(|_| pem)) {
        Ok(pem) => Ok(Some(pem)),
        Err(what) => {
            report.add(Rule::Certificate, id, what);
            Ok(None)
        }
    }
}

fn check_signature(document: &[u8], pem: Option<&[u8]>, report: &mut Report) -> bool {
    let certificate = pem.and_then(|pem| Certificate::from_pem(pem).ok());
    let result = Envelope::open(document).and_then(|envelope| match &certificate {
        Some(certificate) => envelope.verify(&certificate.key, Scheme::Digest),
        None => Ok(()),
    });
    if let Err(error) = &result {
        report.add(Rule::ManifestSignature, names::MANIFEST, error);
    }
    result.is_ok()
}

fn check_whitelist(
    store: &dyn Store,
    anchor: &Anchor<'_>,
    manifest_and_certificate: Option<(Vec<u8>, Vec<u8>)>,
    report: &mut Report,
) -> Result<(), CheckError> {
    let Some(whitelist) = store.read(names::WHITELIST)? else {
        report.add(Rule::WhitelistSyntax, names::WHITELIST, "it is missing");
        return Ok(());
    };
    let result = match manifest_and_certificate {
        Some((manifest, pem)) => anchor.verify(&manifest, &pem, &whitelist).map(drop),
        None => anchor.verify_whitelist(&whitelist).map(drop),
    };
    if let Err(error) = result {
        let rule = match error {
            TrustError::Manifest(..) => Rule::ManifestSyntax,
            TrustError::ManifestSignature(..) => Rule::ManifestSignature,
            TrustError::Name { .. } => Rule::ManifestName,
            TrustError::Certificate(..) => Rule::Certificate,
            TrustError::Whitelist(..) => Rule::WhitelistSyntax,
            TrustError::WhitelistSignature(..) | TrustError::Unsupported(..) | TrustError::MasterKey(_) => {
                Rule::WhitelistSignature
            }
            TrustError::Expired(..) => Rule::WhitelistExpired,
            TrustError::NotListed(_) | TrustError::Blacklisted(_) => Rule::CertificateTrust,
        };
        report.add(rule, names::WHITELIST, chain(&error));
    }
    Ok(())
}

/// A small object, or words for what is wrong with it.
fn load(store: &dyn Store, id: ObjectId) -> Result<Result<Vec<u8>, String>, CheckError> {
    let mut content = Vec::new();
    match fetch(store, id, Compression::Zlib, DOCUMENT_LIMIT, &mut content) {
        Ok(_) => Ok(Ok(content)),
        Err(error) => fault(error).map(Err),
    }
}
