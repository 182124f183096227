//! The name under which an image appears in a repository.
//!
//! Invariant: a [`PublicName`] never touches an internal tree, and none of its components is empty, begins with a dot
//! or is too long for a directory entry.

use std::fmt;

use super::grammar::{NAME_MAX, check_text, is_component, is_registry, is_tag};
use super::{ManifestDigest, ReferenceError};

/// Top-level names of the repository that no image may take, besides everything that starts with a dot.
/// (`new_repository` is the file that marks a fresh repository.)
const RESERVED: [&str; 2] = ["podmanStore", "new_repository"];

/// A path in the public part of a repository: `DIRECTORY/…/NAME:TAG`, or `NAME:sha256:<hex>` for a bare digest.
///
/// The first component may be a registry (`host:5000`); the others obey the OCI grammar for repositories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicName {
    text: String,
    /// where the tag or digest begins in `text`
    split: usize,
}

impl PublicName {
    /// Parses `REGISTRY/REPOSITORY:TAG`, `NAME:TAG`, `…:sha256:<hex>`: the path that an operator asks for, or one
    /// found in a repository.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        check_text(text)?;
        let start = text.rfind('/').map_or(0, |slash| slash + 1);
        match text[start..].find(':') {
            Some(colon) => Self::new(&text[..start + colon], &text[start + colon + 1..]),
            None => Err(ReferenceError::NoTagNoDigest(text.to_owned())),
        }
    }

    /// Puts a name together from its directory part and its tag or digest.
    pub(super) fn new(path: &str, reference: &str) -> Result<Self, ReferenceError> {
        let text = format!("{path}:{reference}");
        let refuse = |why: &str| ReferenceError::Publication { name: text.clone(), why: why.to_owned() };
        let first = path.split('/').next().unwrap_or_default();
        if first.starts_with('.') {
            return Err(refuse("names at the top that begin with a dot belong to the repository itself"));
        }
        if RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(first)) {
            return Err(refuse(&format!("the top-level name {first} belongs to the repository itself")));
        }
        let is_digest = ManifestDigest::parse(reference).is_ok();
        if !is_digest && !is_tag(reference) {
            return Err(ReferenceError::Tag { name: text, tag: reference.to_owned() });
        }
        let (top, rest) = path.split_once('/').map_or((path, None), |(top, rest)| (top, Some(rest)));
        let top_fits = is_component(top) || (rest.is_some() && is_registry(top) && top == top.to_ascii_lowercase());
        if !top_fits || rest.is_some_and(|rest| !rest.split('/').all(is_component)) {
            return Err(ReferenceError::Repository { name: text.clone(), repository: path.to_owned() });
        }
        if text.split('/').any(|component| component.len() > NAME_MAX) {
            return Err(refuse("a component is longer than 255 bytes"));
        }
        Ok(Self { split: path.len(), text })
    }

    /// The path, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The directory that holds the link; empty for the root of the repository.
    pub fn directory(&self) -> &str {
        self.text.rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// The name of the link in its directory: `NAME:TAG`.
    pub fn file_name(&self) -> &str {
        self.text.rsplit_once('/').map_or(&self.text, |(_, name)| name)
    }

    /// Everything before the tag: `REGISTRY/REPOSITORY`.
    pub fn repository(&self) -> &str {
        &self.text[..self.split]
    }

    /// The tag, or the digest as text.
    pub fn reference(&self) -> &str {
        &self.text[self.split + 1..]
    }

    /// How many directories lie above the link.
    pub fn depth(&self) -> usize {
        self.text.matches('/').count()
    }
}

impl fmt::Display for PublicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
