//! Names of images, as operators write them in wish lists and on command lines.
//!
//! One parser and one printer for every form:
//!
//! ```text
//! https://quay.io/example/tool:1.4        URL form; http:// for plain registries; no scheme means https
//! host:5000/app:1   localhost/app:1       a first component with '.', ':' or "localhost" is a registry
//! debian:stable     user/app:1            Docker short names: registry.hub.docker.com/library/debian:stable
//! quay.io/app:1@sha256:…                  the digest is fetched, the tag names the published path
//! quay.io/app:1.4*                        '*' stands for any characters, everything else for itself
//! oci:DIR[:TAG]     docker-archive:FILE   images on disk
//! ```
//!
//! Invariants
//! - A [`Reference`] has a tag or a digest or both; every component obeys the grammar of the OCI distribution
//!   specification ("Pulling manifests"), so none can be empty, begin with a dot, or leave its directory.
//! - `parse(print(x)) == x`; printing always gives the full form.
//! - Docker Hub has many names and one published name, [`DOCKER_HUB`], the one existing wish lists use.
//! - A [`PublicName`] is a name that may appear in a repository: never one of the internal trees.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::ManifestDigest;

mod aliases;
mod grammar;
mod public_name;

pub use aliases::RegistryAliases;
use grammar::{NAME_MAX, TEXT_MAX, check_text, is_component, is_registry, is_tag};
pub use public_name::PublicName;

/// The name under which images of Docker Hub are published.
pub const DOCKER_HUB: &str = "registry.hub.docker.com";
/// The host that answers for [`DOCKER_HUB`] (the published name serves a web site's interface, too).
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Top-level directory for images that come from disk.
const LOCAL: &str = "local";

/// Why a text names no image. The message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing, blanks inside, control characters or an absurd length.
    #[error("image name is empty, longer than {TEXT_MAX} bytes, or contains blanks or control characters: \"{0}\"")]
    Text(String),
    /// A scheme that isn't http, https or docker.
    #[error("{name}: scheme \"{scheme}\" is not supported; write https://, http:// or no scheme")]
    Scheme {
        /// the whole text
        name: String,
        /// what stands before `://`
        scheme: String,
    },
    /// Registry host or port malformed.
    #[error("{name}: \"{registry}\" is not a registry; write HOST or HOST:PORT")]
    Registry {
        /// the whole text
        name: String,
        /// the offending part
        registry: String,
    },
    /// No repository after the registry, or one outside the OCI grammar.
    #[error(
        "{name}: \"{repository}\" is not an image repository; components are lower-case letters and digits, joined by . _ __ or -"
    )]
    Repository {
        /// the whole text
        name: String,
        /// the offending part
        repository: String,
    },
    /// Tag outside the OCI grammar.
    #[error("{name}: \"{tag}\" is not a tag; up to 128 letters, digits, _ . -, and not beginning with . or -")]
    Tag {
        /// the whole text
        name: String,
        /// the offending part
        tag: String,
    },
    /// Digest malformed or of an algorithm we can't verify.
    #[error("{name}: {source}")]
    Digest {
        /// the whole text
        name: String,
        /// what is wrong with the digest
        source: crate::digest::DigestError,
    },
    /// Neither tag nor digest; nothing is guessed, because the tag names the published path.
    #[error("{0}: neither tag nor digest; write {0}:TAG (for instance {0}:latest) or {0}@sha256:…")]
    NoTagNoDigest(String),
    /// A wildcard where a single image is wanted.
    #[error("{0}: a wildcard names many images; a single one is wanted here")]
    Wildcard(String),
    /// A wildcard together with a digest.
    #[error("{0}: a wildcard tag and a digest exclude each other; drop one of them")]
    WildcardWithDigest(String),
    /// `oci:` or `docker-archive:` without a path.
    #[error("{0}: no path; write oci:DIR, oci:DIR:TAG or docker-archive:FILE")]
    NoPath(String),
    /// The name would land outside the part of the repository that belongs to images.
    #[error("{name}: can't be published there: {why}")]
    Publication {
        /// the name asked for
        name: String,
        /// the rule that it breaks
        why: String,
    },
}

/// How a registry is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// `http://`: plain, for registries on the loopback interface and in closed networks.
    Http,
    /// `https://`: the default.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One repository of one registry: what a tag or a digest is asked from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    scheme: Scheme,
    registry: String,
    path: String,
}

impl Repository {
    /// How the registry is spoken to.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The registry as it is published: host, and port if one is given.
    pub fn registry_host(&self) -> &str {
        &self.registry
    }

    /// The registry as it is asked: the same, but for Docker Hub.
    pub fn api_host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_API } else { &self.registry }
    }

    /// The path within the registry, for instance `library/debian`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.registry, self.path)
    }
}

/// One image in a registry. Prints as the *whole name*: `scheme://REG/REPOSITORY[:TAG][@DIGEST]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<ManifestDigest>,
}

impl Reference {
    /// Parses a single image in a registry; wildcards and images on disk are errors.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        match Parts::split(text)?.finish(text)? {
            Wish::Image(ImageSource::Registry(reference)) => Ok(reference),
            _ => Err(ReferenceError::Wildcard(text.to_owned())),
        }
    }

    /// Where it is.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// How the registry is spoken to.
    pub const fn scheme(&self) -> Scheme {
        self.repository.scheme
    }

    /// The registry as it is published.
    pub fn registry_host(&self) -> &str {
        self.repository.registry_host()
    }

    /// The registry as it is asked.
    pub fn api_host(&self) -> &str {
        self.repository.api_host()
    }

    /// The tag, without the colon.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index.
    pub const fn digest(&self) -> Option<ManifestDigest> {
        self.digest
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => unreachable!("a reference has a tag or a digest"),
        }
    }

    /// The same image pinned to this digest, published under the same name.
    pub fn with_digest(&self, digest: ManifestDigest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// `REG/REPOSITORY[:TAG]`; a digest never appears in it.
    pub fn simple_name(&self) -> String {
        let Repository { registry, path, .. } = &self.repository;
        match &self.tag {
            Some(tag) => format!("{registry}/{path}:{tag}"),
            None => format!("{registry}/{path}"),
        }
    }

    /// `scheme://REG/REPOSITORY[:TAG][@DIGEST]`, the same as `to_string()`.
    pub fn whole_name(&self) -> String {
        self.to_string()
    }

    /// `:TAG`, `@DIGEST` or `:TAG@DIGEST`.
    pub fn suffix(&self) -> String {
        let mut suffix = String::new();
        if let Some(tag) = &self.tag {
            suffix = format!(":{tag}");
        }
        if let Some(digest) = &self.digest {
            suffix.push_str(&format!("@{digest}"));
        }
        suffix
    }

    /// The tag if there is one, else the digest.
    pub fn simple_reference(&self) -> String {
        self.tag.clone().or_else(|| self.digest.map(|d| d.to_string())).unwrap_or_default()
    }

    /// Where the image appears in the repository: `REG/REPOSITORY:` and the simple reference.
    pub fn public_path(&self) -> Result<PublicName, ReferenceError> {
        let Repository { registry, path, .. } = &self.repository;
        PublicName::new(&format!("{registry}/{path}"), &self.simple_reference())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.repository, self.suffix())
    }
}

/// A tag with at least one `*`, which stands for any characters (also none); everything else stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagPattern(String);

impl TagPattern {
    /// Parses a tag pattern: the characters of tags, and `*`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fits = text.contains('*') && is_tag(&text.replace('*', "_")) && !text.starts_with(['.', '-']);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ReferenceError::Tag { name: text.to_owned(), tag: text.to_owned() })
        }
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does the whole tag match?
    pub fn matches(&self, tag: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = tag.strip_prefix(first) else { return false };
        let mut pieces: Vec<&str> = pieces.collect();
        // a pattern has a '*', so there is a last piece after the first
        let Some(last) = pieces.pop() else { return rest.is_empty() };
        for piece in pieces {
            // the leftmost place leaves the most for what follows
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How tags begin that stand for what refers to an image, and for none themselves.
const ABOUT_DIGEST: &str = "sha256-";

/// Whether signers and builders keep something under a tag that belongs to an image: `sha256-<hex>` (distribution-spec, "Referrers Tag
/// Schema"), `sha256-<hex>.sig`, `.att`, `.sbom` (cosign).
fn is_about_digest(tag: &str) -> bool {
    let Some((digits, rest)) = tag.strip_prefix(ABOUT_DIGEST).and_then(|rest| rest.split_at_checked(64)) else {
        return false;
    };
    let is_suffix = rest.is_empty() || rest.starts_with('.');
    is_suffix && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Many images of one repository: `REG/REPOSITORY:PATTERN`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wildcard {
    repository: Repository,
    pattern: TagPattern,
}

impl Wildcard {
    /// Whose tags are meant.
    pub const fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Which tags are meant.
    pub const fn pattern(&self) -> &TagPattern {
        &self.pattern
    }

    /// The image with this tag, if the pattern takes it. A tag outside the grammar (a registry may say anything)
    /// is taken by no pattern, and one that names a digest only by a pattern that begins like it.
    pub fn select(&self, tag: &str) -> Option<Reference> {
        let is_meant = !is_about_digest(tag) || self.pattern.0.starts_with(ABOUT_DIGEST);
        (is_tag(tag) && is_meant && self.pattern.matches(tag)).then(|| Reference {
            repository: self.repository.clone(),
            tag: Some(tag.to_owned()),
            digest: None,
        })
    }
}

impl fmt::Display for Wildcard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.pattern)
    }
}

/// Where one image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageSource {
    /// a registry
    Registry(Reference),
    /// `oci:DIR[:TAG]`: an OCI image layout on disk
    OciLayout {
        /// the directory with `index.json`
        dir: String,
        /// which of its images; none: the only one
        tag: Option<String>,
    },
    /// `docker-archive:FILE`: what `docker save` writes
    DockerArchive {
        /// the tar file
        file: String,
    },
}

impl ImageSource {
    /// Parses one image of any form; a wildcard is an error.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        match Wish::parse(text)? {
            Wish::Image(source) => Ok(source),
            Wish::Wildcard(_) => Err(ReferenceError::Wildcard(text.to_owned())),
        }
    }

    /// Where the image appears in the repository, unless the operator says otherwise. An image on disk becomes
    /// `local/<base name>:TAG`; its tag is the one asked for, else `found` (what the file calls itself), else `latest`.
    pub fn public_path(&self, found: Option<&str>) -> Result<PublicName, ReferenceError> {
        let (path, tag) = match self {
            Self::Registry(reference) => return reference.public_path(),
            Self::OciLayout { dir, tag } => (dir, tag.as_deref()),
            Self::DockerArchive { file } => (file, None),
        };
        let base = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        PublicName::new(&format!("{LOCAL}/{base}"), tag.or(found).unwrap_or("latest")).map_err(|_| {
            ReferenceError::Publication {
                name: self.to_string(),
                why: format!("\"{base}\" is no name for an image; choose one with --as NAME:TAG"),
            }
        })
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::OciLayout { dir, tag: Some(tag) } => write!(f, "oci:{dir}:{tag}"),
            Self::OciLayout { dir, tag: None } => write!(f, "oci:{dir}"),
            Self::DockerArchive { file } => write!(f, "docker-archive:{file}"),
        }
    }
}

/// One entry of a wish list: one image, or all those that a wildcard takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wish {
    /// one image
    Image(ImageSource),
    /// all images whose tag matches
    Wildcard(Wildcard),
}

impl Wish {
    /// Parses every form that the module header lists.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        check_text(text)?;
        if let Some(path) = text.strip_prefix("oci:").filter(|path| !path.starts_with("//")) {
            // the tag is behind the last colon, unless that one belongs to a directory
            let (dir, tag) = match path.rsplit_once(':') {
                Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
                _ => (path, None),
            };
            if dir.is_empty() {
                return Err(ReferenceError::NoPath(text.to_owned()));
            }
            if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
                return Err(ReferenceError::Tag { name: text.to_owned(), tag: tag.to_owned() });
            }
            let source = ImageSource::OciLayout { dir: dir.to_owned(), tag: tag.map(str::to_owned) };
            return Ok(Self::Image(source));
        }
        if let Some(file) = text.strip_prefix("docker-archive:") {
            if file.is_empty() {
                return Err(ReferenceError::NoPath(text.to_owned()));
            }
            return Ok(Self::Image(ImageSource::DockerArchive { file: file.to_owned() }));
        }
        Parts::split(text)?.finish(text)
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(source) => source.fmt(f),
            Self::Wildcard(wildcard) => wildcard.fmt(f),
        }
    }
}

/// A name of an image in a registry, cut at its delimiters, not yet checked.
struct Parts<'a> {
    scheme: Scheme,
    registry: &'a str,
    repository: String,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn split(text: &'a str) -> Result<Self, ReferenceError> {
        check_text(text)?;
        let (scheme, rest, short) = match text.split_once("://") {
            None => (Scheme::Https, text, true),
            Some(("https", rest)) => (Scheme::Https, rest, false),
            Some(("http", rest)) => (Scheme::Http, rest, false),
            // what Docker-minded tools write before a short name
            Some(("docker", rest)) => (Scheme::Https, rest, true),
            Some((scheme, _)) => {
                return Err(ReferenceError::Scheme { name: text.to_owned(), scheme: scheme.to_owned() });
            }
        };
        let is_host =
            |first: &str| !short || first.contains(['.', ':', '[']) || first.eq_ignore_ascii_case("localhost");
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first, path),
            None if !short => (rest, ""),
            _ => (DOCKER_HUB, rest),
        };
        let (path, digest) = match path.split_once('@') {
            Some((path, digest)) => (path, Some(digest)),
            None => (path, None),
        };
        // a colon further left than the last component is no tag, and no valid repository either
        let (path, tag) = match path.find(':') {
            Some(colon) => (&path[..colon], Some(&path[colon + 1..])),
            None => (path, None),
        };
        let mut repository = path.trim_matches('/').to_owned();
        let hub = is_docker_hub(registry);
        if hub && !repository.is_empty() && !repository.contains('/') {
            repository.insert_str(0, "library/");
        }
        Ok(Self { scheme, registry: if hub { DOCKER_HUB } else { registry }, repository, tag, digest })
    }

    fn finish(self, text: &str) -> Result<Wish, ReferenceError> {
        let name = || text.to_owned();
        if !is_registry(self.registry) {
            return Err(ReferenceError::Registry { name: name(), registry: self.registry.to_owned() });
        }
        let long = self.registry.len() + 1 + self.repository.len() > NAME_MAX;
        if long || !self.repository.split('/').all(is_component) {
            return Err(ReferenceError::Repository { name: name(), repository: self.repository });
        }
        let digest = match self.digest.map(ManifestDigest::parse).transpose() {
            Ok(digest) => digest,
            Err(source) => return Err(ReferenceError::Digest { name: name(), source }),
        };
        let repository =
            Repository { scheme: self.scheme, registry: self.registry.to_ascii_lowercase(), path: self.repository };
        let tag = match self.tag {
            None if digest.is_none() => return Err(ReferenceError::NoTagNoDigest(name())),
            Some(tag) if tag.contains('*') => {
                if digest.is_some() {
                    return Err(ReferenceError::WildcardWithDigest(name()));
                }
                let pattern =
                    TagPattern::parse(tag).map_err(|_| ReferenceError::Tag { name: name(), tag: tag.to_owned() })?;
                return Ok(Wish::Wildcard(Wildcard { repository, pattern }));
            }
            Some(tag) if !is_tag(tag) => return Err(ReferenceError::Tag { name: name(), tag: tag.to_owned() }),
            tag => tag.map(str::to_owned),
        };
        Ok(Wish::Image(ImageSource::Registry(Reference { repository, tag, digest })))
    }
}

fn is_docker_hub(registry: &str) -> bool {
    [DOCKER_HUB, "docker.io", "index.docker.io"].iter().any(|hub| hub.eq_ignore_ascii_case(registry))
}

/// Text form everywhere: `FromStr` and serde by the one parser and the one printer.
macro_rules! text_form {
    ($($name:ident),*) => {$(
        impl FromStr for $name {
            type Err = ReferenceError;
            fn from_str(text: &str) -> Result<Self, ReferenceError> {
                Self::parse(text)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    )*};
}
text_form!(Reference, TagPattern, ImageSource, Wish, PublicName);

#[cfg(test)]
mod tests;
