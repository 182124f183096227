//! Signatures of images, made by `cosign sign --key`: found beside the image, checked against keys that the operator has
//! named. Nothing else is asked: no transparency log, no certificate authority.
//!
//! cosign has put them there in two forms; an image is signed if either has a signature that counts.
//!
//! | | where | what is signed |
//! |---|---|---|
//! | [`simple`] | a manifest under the tag `sha256-<hex>.sig` | a payload that names the image |
//! | [`bundle`] | artifacts that refer to the image (cosign 3) | a statement whose subject is the image |
//!
//! Invariants
//! - What is signed is looked into only after a key has been found to have signed it.
//! - It counts only if it names the digest that is published: of the manifest, or of the index through which it was found.
//! - What an image's registry can make us fetch is bounded: [`MAX_SIGNATURES`] of each form, and the size of each.

pub mod bundle;
mod gate;
mod key;
mod policy;
pub mod simple;

pub use self::gate::{Claims, Gate};
pub use self::key::{Fingerprint, Key, KeyError};
pub use self::policy::{Policy, PolicyError, PolicySettings, PrivateImages, RuleSettings};

/// Signatures of one form that are looked at, of one image.
pub const MAX_SIGNATURES: usize = 64;

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Unsigned {
    /// Another key has made it, or it belongs to something else.
    #[error("signed by no key that is asked for")]
    Key,
    /// There is a certificate in the place of a key.
    #[error("signed with a certificate, and keys are asked for")]
    Certificate,
    /// What is signed can't be understood.
    #[error("what is signed is no statement about an image")]
    NoStatement,
    /// An attestation, for instance.
    #[error("what is signed is a statement of another kind")]
    OtherStatement,
    /// It was copied.
    #[error("what is signed is another image")]
    OtherImage,
    /// More bytes than any honest signature has.
    #[error("what is signed is too large")]
    TooLarge,
    /// Not of the form that its type says.
    #[error("a bundle that can't be read")]
    Bundle,
    /// The registry lists it and does not give it.
    #[error("the registry lists a signature that it has not got, or serves something else in its place")]
    Unreadable,
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

/// Looks at signatures until one counts: who has made it, or why none does.
pub fn first<'a, T, E>(
    found: impl IntoIterator<Item = T>,
    mut check: impl FnMut(T) -> Result<Result<&'a Key, Unsigned>, E>,
) -> Result<Result<Fingerprint, SignatureError>, E> {
    let (mut count, mut reasons): (usize, Vec<Unsigned>) = (0, Vec::new());
    for signature in found.into_iter().take(MAX_SIGNATURES) {
        count += 1;
        match check(signature)? {
            Ok(key) => return Ok(Ok(key.fingerprint())),
            Err(reason) if !reasons.contains(&reason) => reasons.push(reason),
            Err(_) => {}
        }
    }
    let why = reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    Ok(Err(SignatureError::None { count, why }))
}

#[cfg(test)]
mod tests;
