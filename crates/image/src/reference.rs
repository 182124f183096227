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
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::ManifestDigest;

/// The name under which images of Docker Hub are published.
pub const DOCKER_HUB: &str = "registry.hub.docker.com";
/// The host that answers for [`DOCKER_HUB`] (the published name serves a web site's interface, too).
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Top-level directory for images that come from disk.
const LOCAL: &str = "local";
/// Top-level names of the repository that no image may take, besides everything that starts with a dot.
/// (`new_repository` is the file that marks a fresh repository.)
const RESERVED: [&str; 2] = ["podmanStore", "new_repository"];
/// Longest file name that a repository can hold.
const NAME_MAX: usize = 255;
/// Longest accepted text: registry, repository, tag and digest at their limits fit well below.
const TEXT_MAX: usize = 1024;

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
    /// is taken by no pattern.
    pub fn select(&self, tag: &str) -> Option<Reference> {
        (is_tag(tag) && self.pattern.matches(tag)).then(|| Reference {
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
    fn new(path: &str, reference: &str) -> Result<Self, ReferenceError> {
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

fn check_text(text: &str) -> Result<(), ReferenceError> {
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ReferenceError::Text(text.chars().take(80).flat_map(char::escape_debug).collect()));
    }
    Ok(())
}

fn is_docker_hub(registry: &str) -> bool {
    [DOCKER_HUB, "docker.io", "index.docker.io"].iter().any(|hub| hub.eq_ignore_ascii_case(registry))
}

/// `HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT`.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            (None, port.strip_prefix(':').or((!port.is_empty()).then_some(port)))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.len() <= 253 && host.split('.').all(label))
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// One component of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the OCI distribution specification has it.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    word(first)
        && word(last)
        && bytes
            .split(|&b| word(b))
            .all(|joint| matches!(joint, [] | b"." | b"_" | b"__") || joint.iter().all(|&b| b == b'-'))
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
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
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "ab".repeat(32))
    }

    #[test]
    fn prints_the_full_form_of_every_spelling() {
        for (text, whole) in [
            ("hub.docker.com/library/redis:5", "https://hub.docker.com/library/redis:5"),
            (
                "https://registry.hub.docker.com/library/debian:stable",
                "https://registry.hub.docker.com/library/debian:stable",
            ),
            ("debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
            ("docker.io/debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
            ("docker.io/library/debian:stable", "https://registry.hub.docker.com/library/debian:stable"),
            ("index.docker.io/user/app:1", "https://registry.hub.docker.com/user/app:1"),
            ("docker://user/app:1", "https://registry.hub.docker.com/user/app:1"),
            ("user/app:1", "https://registry.hub.docker.com/user/app:1"),
            ("localhost/app:1", "https://localhost/app:1"),
            ("http://localhost:5000/app:1", "http://localhost:5000/app:1"),
            ("host:5000/a/b/c:1", "https://host:5000/a/b/c:1"),
            ("http://127.0.0.1:5000/demo/python:3.12-slim", "http://127.0.0.1:5000/demo/python:3.12-slim"),
            ("http://[::1]:5000/app:1", "http://[::1]:5000/app:1"),
            ("https://QUAY.io/a/b:V1", "https://quay.io/a/b:V1"),
            ("quay.io//a/b:1", "https://quay.io/a/b:1"),
            ("quay.io/a/b__c-d--e.f:1", "https://quay.io/a/b__c-d--e.f:1"),
            ("quay.io/a:1*", "https://quay.io/a:1*"),
            ("quay.io/a:*", "https://quay.io/a:*"),
            ("oci:/tmp/x:1", "oci:/tmp/x:1"),
            ("oci:/tmp/a:b/x", "oci:/tmp/a:b/x"),
            ("docker-archive:/tmp/x.tar", "docker-archive:/tmp/x.tar"),
        ] {
            let wish = Wish::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(wish.to_string(), whole, "{text}");
            assert_eq!(Wish::parse(whole).unwrap(), wish, "{text}");
        }
    }

    #[test]
    fn refuses_what_names_no_image() {
        use ReferenceError as E;
        let both = format!("quay.io/a:1*@{}", digest());
        let long_tag = format!("quay.io/a:{}", "x".repeat(129));
        let long_name = format!("quay.io/{}:1", "x".repeat(255));
        let very_long = "x".repeat(2000);
        type Check = fn(&E) -> bool;
        let table: &[(&str, Check)] = &[
            ("", |e| matches!(e, E::Text(_))),
            ("quay.io/a b:1", |e| matches!(e, E::Text(_))),
            ("quay.io/a:1\n", |e| matches!(e, E::Text(_))),
            (&very_long, |e| matches!(e, E::Text(_))),
            ("ftp://quay.io/a:1", |e| matches!(e, E::Scheme { .. })),
            ("oci://quay.io/a:1", |e| matches!(e, E::Scheme { .. })),
            ("https://ubuntu:latest", |e| matches!(e, E::Registry { .. })),
            ("https://user@quay.io/a:1", |e| matches!(e, E::Registry { .. })),
            ("quay.io:0/a:1", |e| matches!(e, E::Registry { .. })),
            ("quay.io:70000/a:1", |e| matches!(e, E::Registry { .. })),
            ("quay.io:/a:1", |e| matches!(e, E::Registry { .. })),
            ("-x.io/a:1", |e| matches!(e, E::Registry { .. })),
            ("http://[::1]5000/a:1", |e| matches!(e, E::Registry { .. })),
            ("http://[::z]/a:1", |e| matches!(e, E::Registry { .. })),
            ("../a:1", |e| matches!(e, E::Registry { .. })),
            ("https://quay.io", |e| matches!(e, E::Repository { .. })),
            ("https://quay.io/:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a/../b:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a/.b:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a//b:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/A:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a___b:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a*:1", |e| matches!(e, E::Repository { .. })),
            ("quay.io/a?x=1", |e| matches!(e, E::Repository { .. })),
            (&long_name, |e| matches!(e, E::Repository { .. })),
            ("hub.docker.com/library/redis:5:4", |e| matches!(e, E::Tag { .. })),
            ("quay.io/a:1/b:2", |e| matches!(e, E::Tag { .. })),
            ("quay.io/a:", |e| matches!(e, E::Tag { .. })),
            ("quay.io/a:.1", |e| matches!(e, E::Tag { .. })),
            ("quay.io/a:-*", |e| matches!(e, E::Tag { .. })),
            (&long_tag, |e| matches!(e, E::Tag { .. })),
            ("hub.docker.com/library/redis:5@sha256:aaabbbccc", |e| matches!(e, E::Digest { .. })),
            ("quay.io/a@md5:12", |e| matches!(e, E::Digest { .. })),
            ("hub.docker.com/library/redis/", |e| matches!(e, E::NoTagNoDigest(_))),
            ("debian", |e| matches!(e, E::NoTagNoDigest(_))),
            (&both, |e| matches!(e, E::WildcardWithDigest(_))),
            ("oci:", |e| matches!(e, E::NoPath(_))),
            ("oci::1", |e| matches!(e, E::NoPath(_))),
            ("oci:/x:.y", |e| matches!(e, E::Tag { .. })),
            ("docker-archive:", |e| matches!(e, E::NoPath(_))),
        ];
        for (text, expected) in table {
            match Wish::parse(text) {
                Ok(wish) => panic!("{text} was accepted as {wish}"),
                Err(error) => assert!(expected(&error), "{text}: {error:?}"),
            }
        }
    }

    #[test]
    fn says_what_to_write_when_the_tag_is_missing() {
        let message = Wish::parse("quay.io/a").unwrap_err().to_string();
        assert!(message.contains("quay.io/a:latest") && message.contains("quay.io/a@sha256:"), "{message}");
    }

    #[test]
    fn derives_the_names_of_the_existing_tool() {
        let both = Reference::parse(&format!("http://r:5000/x/y:1@{}", digest())).unwrap();
        assert_eq!(both.simple_name(), "r:5000/x/y:1");
        assert_eq!(both.whole_name(), format!("http://r:5000/x/y:1@{}", digest()));
        assert_eq!(both.suffix(), format!(":1@{}", digest()));
        assert_eq!(both.simple_reference(), "1");
        assert_eq!(both.target(), digest());
        assert_eq!(both.public_path().unwrap().as_str(), "r:5000/x/y:1");
        let bare = Reference::parse(&format!("r.io/x@{}", digest())).unwrap();
        assert_eq!(bare.simple_name(), "r.io/x");
        let public = bare.public_path().unwrap();
        assert_eq!(public.as_str(), format!("r.io/x:{}", digest()));
        assert_eq!((public.directory(), public.repository()), ("r.io", "r.io/x"));
        assert_eq!((public.reference(), public.depth()), (digest().as_str(), 1));
        let hub = Reference::parse("debian:stable").unwrap();
        assert_eq!((hub.registry_host(), hub.api_host()), ("registry.hub.docker.com", "registry-1.docker.io"));
    }

    #[test]
    fn takes_only_literal_characters_and_stars() {
        for (pattern, tag, expected) in [
            ("*-foo", "bar-foo", true),
            ("*-foo", "ubuntu-foo", true),
            ("*-foo", "foo-bar", false),
            ("rhel7-m*", "rhel7-m1", true),
            ("rhel7-m*", "rhel7", false),
            ("rhel7-m*", "tmp-rhel7-m1", false),
            ("21.2.1*", "21.2.10", true),
            ("21.2.1*", "21.2.100-20191127", true),
            ("21.2.1*", "21.2.15-20180118", true),
            ("21.2.1*", "21.3.10", false),
            ("21.2.1*", "21x2.10", false),
            ("*", "anything", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**b", "ab", true),
        ] {
            assert_eq!(TagPattern::parse(pattern).unwrap().matches(tag), expected, "{pattern} {tag}");
        }
        assert!(TagPattern::parse("rhel7").is_err(), "no star, no pattern");
        let Wish::Wildcard(wildcard) = Wish::parse("r.io/x:1.*").unwrap() else { panic!("a wildcard") };
        assert_eq!(wildcard.select("1.2").unwrap().to_string(), "https://r.io/x:1.2");
        assert_eq!(wildcard.select("2.2"), None);
        assert_eq!(wildcard.select("1./../x"), None, "registries may list anything");
    }

    #[test]
    fn keeps_images_out_of_internal_trees() {
        for text in [
            ".flat/x:1",
            ".layers:1",
            "./x:1",
            "../x:1",
            "podmanStore/x:1",
            "podmanStore:1",
            "new_repository:1",
            "new_repository/x:1",
            "a/.b:1",
            "a/../b:1",
            "a//b:1",
            "/a:1",
            "a/:1",
            "a",
            "a:",
            "a:b:c",
            "A/x:1",
            "a/x:1*",
            "",
        ] {
            assert!(PublicName::parse(text).is_err(), "{text} was accepted");
        }
        assert!(Reference::parse("https://podmanStore/x:1").unwrap().public_path().is_err());
        let long = format!("a/{}:{}", "x".repeat(200), "y".repeat(100));
        assert!(PublicName::parse(&long).is_err());
        for text in ["debian:12", "local/x:1", "host:5000/x/y:1", "[::1]:5000/x:1"] {
            assert_eq!(PublicName::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_images_from_disk() {
        let name =
            |text: &str, found| ImageSource::parse(text).unwrap().public_path(found).map(|name| name.to_string());
        assert_eq!(name("oci:/tmp/app/:2", None).unwrap(), "local/app:2");
        assert_eq!(name("oci:/tmp/app", Some("3")).unwrap(), "local/app:3");
        assert_eq!(name("docker-archive:app.tar", None).unwrap(), "local/app.tar:latest");
        assert!(
            name("docker-archive:/tmp/My App".replace(' ', "").as_str(), None)
                .unwrap_err()
                .to_string()
                .contains("--as")
        );
    }
}
