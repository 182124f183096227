//! What stands between an image and the repository: signatures that the operator asks for, and whether everybody may
//! read it. Asked before anything but manifests is fetched.
//!
//! An image that is published already, by the same digest, was let through then: its record says who has signed it. Only
//! keys that are asked for since make the registry be asked again.

use std::path::PathBuf;

use image::digest::ManifestDigest;
use image::layout::StatusRecord;

use super::simple::Found;
use super::{Fingerprint, Key, Policy, PrivateImages, SignatureError, Unsigned, bundle, first, simple};
use crate::error::one_line;
use crate::failure::Failure;
use crate::plan::{Wanted, image_name};
use crate::source::Sources;

/// What the wish itself says of an image, besides the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claims<'a> {
    /// Whether it is meant for everybody.
    pub public: Option<bool>,
    /// Files with public keys, one of which has to have signed it; none: the wish asks for no signature.
    pub keys: &'a [PathBuf],
    /// What becomes of a private image where nobody says anything.
    pub usual: PrivateImages,
}

/// Who has signed, or why nobody has; nothing if there is nothing to look at.
type Looked = Result<Option<Result<Fingerprint, SignatureError>>, Failure>;

/// One signature that a registry lists and does not give says nothing of the others; a registry that fails does.
fn readable<T>(answer: Result<T, Failure>) -> Result<Result<T, Unsigned>, Failure> {
    use registry::Error::{DigestMismatch, NotFound, Protocol, TooLarge};
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(Failure::Registry(NotFound { .. } | DigestMismatch { .. } | TooLarge { .. } | Protocol { .. })) => {
            Ok(Err(Unsigned::Unreadable))
        }
        Err(failure) => Err(failure),
    }
}

/// Lets images through, or not.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// The operator's word.
    pub policy: &'a Policy,
    /// Who is asked.
    pub sources: &'a Sources,
}

impl Gate<'_> {
    /// Lets an image through whose name led to `named`: its manifest `document`, or an index with it. Gives the keys that
    /// have signed it. `published` is the record of what the name leads to now.
    pub fn pass(
        &self,
        wanted: &Wanted,
        named: ManifestDigest,
        document: ManifestDigest,
        published: Option<&StatusRecord>,
        claims: &Claims<'_>,
    ) -> Result<Vec<Fingerprint>, Failure> {
        let published = published.filter(|status| status.digest == document);
        let claimed: Vec<Key> = claims.keys.iter().map(|path| Key::read(path)).collect::<Result<_, _>>()?;
        let signed_by = self.signed(wanted, named, document, published, &claimed)?;
        if published.is_none() {
            self.expose(wanted, document, claims)?;
        }
        Ok(signed_by)
    }

    fn signed(
        &self,
        wanted: &Wanted,
        named: ManifestDigest,
        document: ManifestDigest,
        published: Option<&StatusRecord>,
        claimed: &[Key],
    ) -> Result<Vec<Fingerprint>, Failure> {
        let known = published.map(|status| status.signed_by.as_slice()).unwrap_or_default();
        let name = image_name(&wanted.source);
        let mut signed_by = Vec::new();
        let claimed = Some(claimed).filter(|keys| !keys.is_empty());
        for keys in self.policy.signers(&name).into_iter().chain(claimed) {
            let recorded = keys.iter().map(|key| key.fingerprint()).find(|key| known.contains(key));
            let signer = match recorded {
                Some(key) => key,
                None => self.ask(wanted, &name, keys, named, document)?,
            };
            if !signed_by.contains(&signer) {
                signed_by.push(signer);
            }
        }
        Ok(signed_by)
    }

    /// Looks for a signature of the index, then of the manifest, in each form.
    fn ask(
        &self,
        wanted: &Wanted,
        name: &str,
        keys: &[Key],
        named: ManifestDigest,
        document: ManifestDigest,
    ) -> Result<Fingerprint, Failure> {
        let mut refused = Vec::new();
        for digest in [named, document].into_iter().take(if named == document { 1 } else { 2 }) {
            for look in [Gate::simple, Gate::bundles] {
                match look(self, wanted, keys, digest)? {
                    Some(Ok(key)) => return Ok(key),
                    Some(Err(error)) => refused.push(error.to_string()),
                    None => {}
                }
            }
        }
        let why = match refused.is_empty() {
            true => format!("there is no {}, and no bundle refers to {named}", simple::tag(named)),
            false => refused.join("; "),
        };
        let asked: Vec<String> = keys.iter().map(|key| key.fingerprint().to_string()).collect();
        Err(Failure::Content(format!(
            "{name} is not signed as the configuration or the wish list asks: {why}; nothing of it was fetched (sign it with cosign sign --key, by one of {})",
            asked.join(", ")
        )))
    }

    /// Looks at the signatures under the tag beside the image; nothing if there is no such tag.
    fn simple(&self, wanted: &Wanted, keys: &[Key], digest: ManifestDigest) -> Looked {
        let found = match self.sources.signatures(wanted.asked(), digest) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(Failure::Signature(error)) => return Ok(Some(Err(error))),
            Err(failure) => return Err(failure),
        };
        let check = |Found { payload, signature }| {
            let payload = readable(self.sources.payload(wanted.asked(), payload))?;
            Ok(payload.and_then(|payload| simple::check(keys, digest, &payload, &signature)))
        };
        first(found, check).map(Some)
    }

    /// Looks at the bundles that refer to the image; nothing if none does.
    fn bundles(&self, wanted: &Wanted, keys: &[Key], digest: ManifestDigest) -> Looked {
        let found = self.sources.bundles(wanted.asked(), digest)?;
        if found.is_empty() {
            return Ok(None);
        }
        let check = |manifest| {
            let manifest = readable(self.sources.document(wanted.asked(), manifest))?;
            let payload = match manifest.and_then(|manifest| bundle::in_manifest(&manifest.bytes)) {
                Ok(payload) => payload,
                Err(reason) => return Ok(Err(reason)),
            };
            let bytes = readable(self.sources.payload(wanted.asked(), payload))?;
            Ok(bytes.and_then(|bytes| bundle::check(keys, digest, &bytes)))
        };
        first(found, check).map(Some)
    }

    /// The repository can be read by everybody: what only credentials can read does not belong there unseen.
    fn expose(&self, wanted: &Wanted, document: ManifestDigest, claims: &Claims<'_>) -> Result<(), Failure> {
        let name = image_name(&wanted.source);
        let decision = match claims.public {
            Some(true) => PrivateImages::Allow,
            // Whoever says that it is not public does not want it in a repository that is.
            Some(false) => self.policy.private(&name, PrivateImages::Refuse),
            None => self.policy.private(&name, claims.usual),
        };
        if decision == PrivateImages::Allow {
            return Ok(());
        }
        match self.sources.is_public(wanted.asked(), document) {
            Ok(true) => return Ok(()),
            Ok(false) if decision == PrivateImages::Warn => {
                tracing::warn!(image = %name, "only credentials can read this image, and everybody can read the repository");
                return Ok(());
            }
            Err(error) if decision == PrivateImages::Warn && !matches!(error, Failure::Stopped(_)) => {
                let error = one_line(&error);
                tracing::warn!(image = %name, error, "whether everybody may read this image can't be found out");
                return Ok(());
            }
            Ok(false) => {}
            Err(error) => return Err(error),
        }
        Err(Failure::Content(format!(
            "{name} can be read with credentials only, and everybody can read the repository; nothing of it was fetched (if that is meant, say public: true in the wish list, or add it to public_images of the configuration)"
        )))
    }
}
