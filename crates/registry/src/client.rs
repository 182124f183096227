//! Questions to a registry: which digest has this tag, what is in this manifest, which tags are there.
//!
//! Source of facts: OCI distribution-spec 1.1 ("Pulling manifests", "Listing Tags"), and what registries really do:
//! some leave the digest header out, some answer HEAD with an error, some page tag lists whatever is asked.
//!
//! Invariants
//! - Bytes are returned only if they have the digest that was asked for; for a tag, the digest that the registry
//!   declares is checked against the bytes, and the one that is returned is computed from them.
//! - All four manifest types are accepted at once: registries answer 404 for a type they aren't asked for.
//! - Documents are limited to [`ClientConfig::document_limit`], tag lists to [`ClientConfig::tag_pages`] and sixteen times that limit.
//! - An image that did not move costs one request: HEAD, or where that is of no use a GET that the registry may answer with 304.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method};
use image::digest::{Digest, ManifestDigest};
use image::reference::{Reference, Repository};
use reqwest::Url;

use crate::blob::BlobReader;
use crate::budget::Budgets;
use crate::credentials::Credentials;
use crate::endpoints::{Sessions, Wants, useful};
use crate::error::Error;
use crate::retry::{Attempts, RetryPolicy};
use crate::settings::Registries;
use crate::transport::{Call, Target};

/// The four types of manifests and indexes.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Documents whose `ETag` is remembered.
const ETAGS: usize = 100_000;
/// No longer ones are, in bytes.
const LONGEST_ETAG: usize = 256;
/// The header that names the digest of what is served (distribution-spec, "Pulling manifests").
const CONTENT_DIGEST: &str = "docker-content-digest";

/// How the client behaves. `ClientConfig::default()` is anonymous, patient and strict.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Whose password goes to which registry.
    pub credentials: Credentials,
    /// PEM files with CA certificates to trust besides the system's.
    pub extra_ca_files: Vec<PathBuf>,
    /// What is tried again and when.
    pub retry: RetryPolicy,
    /// Limit for opening a connection.
    pub connect_timeout: Duration,
    /// Limit for silence: until an answer begins, and between two parts of it.
    pub idle_timeout: Duration,
    /// Requests in flight at once to one registry (streaming blobs don't count).
    pub requests_per_registry: usize,
    /// Largest manifest, config or page of tags, in bytes.
    pub document_limit: u64,
    /// Most pages of a tag list.
    pub tag_pages: usize,
    /// What we call ourselves.
    pub user_agent: String,
    /// A server that is asked in the place of every registry, `http://127.0.0.1:5080`. It hears in the parameter `ns` which registry is
    /// meant, as containerd tells its mirrors, and no password of any of them.
    pub mirror: Option<Url>,
    /// What the operator says about registries; its credentials are taken before those of the environment.
    pub registries: Arc<Registries>,
    /// How often registries are asked. Clients that are given clones of one value keep one budget together.
    pub budgets: Budgets,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            credentials: Credentials::anonymous(),
            extra_ca_files: Vec::new(),
            retry: RetryPolicy::default(),
            connect_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(60),
            requests_per_registry: 16,
            document_limit: 4 * 1024 * 1024,
            tag_pages: 1000,
            user_agent: concat!("cvmfs-containers/", env!("CARGO_PKG_VERSION")).to_owned(),
            mirror: None,
            registries: Arc::default(),
            budgets: Budgets::default(),
        }
    }
}

/// A manifest or an index as the registry serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    /// the exact bytes
    pub bytes: Bytes,
    /// media type: of the answer, else what the document says of itself; may be empty
    pub media_type: String,
    /// digest of the bytes
    pub digest: ManifestDigest,
}

/// A client for any number of registries. Cheap to clone; clones share connections, tokens and pauses.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
    login: Option<Arc<str>>,
}

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    sessions: Sessions,
    unmoved: Unmoved,
}

impl Client {
    /// Reads the CA certificates; connects to nobody yet.
    pub fn new(mut config: ClientConfig) -> Result<Self, Error> {
        config.credentials = match config.mirror {
            Some(_) => Credentials::anonymous(),
            None => config.credentials.with_registries(config.registries.clone()),
        };
        let sessions = Sessions::new(&config)?;
        Ok(Self { inner: Arc::new(Inner { config, sessions, unmoved: Unmoved::default() }), login: None })
    }

    /// The same client, with the credentials of this name in the place of those that are configured for a registry; it shares all the
    /// rest. Registries that may not see them are not asked at all.
    pub fn with_credentials(&self, name: Option<&str>) -> Result<Self, Error> {
        if let Some(name) = name {
            self.config().registries.has(name)?;
        }
        Ok(Self { inner: self.inner.clone(), login: name.map(Arc::from) })
    }

    /// Whether there are credentials to ask this repository with. Runs credential helpers: blocking.
    pub fn has_credentials(&self, repository: &Repository) -> Result<bool, Error> {
        match &self.login {
            Some(name) => self.config().credentials.named(name, repository).map(|_| true),
            None => Ok(self.config().credentials.find(repository)?.is_some()),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(crate) fn login(&self) -> Option<Arc<str>> {
        self.login.clone()
    }

    /// The digest that a tag has now: one HEAD request, which registries with pull limits don't count. A reference
    /// with a digest is answered without a request.
    pub async fn resolve(&self, reference: &Reference) -> Result<ManifestDigest, Error> {
        if let Some(digest) = reference.digest() {
            return Ok(digest);
        }
        let endpoints = self.endpoints(reference.repository(), Wants::Names)?;
        for mirror in &endpoints.mirrors {
            if let Some(digest) = useful(mirror, self.resolve_at(mirror, reference).await) {
                return Ok(digest);
            }
        }
        self.resolve_at(&endpoints.origin, reference).await
    }

    async fn resolve_at(&self, target: &Target, reference: &Reference) -> Result<ManifestDigest, Error> {
        let what = format!("manifest {}", reference.target());
        let mut call = Call { method: Method::HEAD, ..manifest_call(target, reference, &what) };
        let unmoved = &self.inner.unmoved;
        let known = unmoved.get(&call.url);
        if known.is_none() {
            match self.call(&call, &mut Attempts::new(&target.retry)).await {
                Ok(response) => {
                    if let Some(digest) = declared_digest(response.headers()) {
                        return Ok(ManifestDigest::from_digest(digest));
                    }
                }
                // registries that don't do HEAD properly
                Err(Error::Status { status: 400 | 405 | 406 | 501, .. } | Error::Protocol { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        call.method = Method::GET;
        if let Some((tag, _)) = &known {
            call.headers.insert(IF_NONE_MATCH, tag.clone());
        }
        let (headers, bytes) = match (self.document(&call, self.config().document_limit).await, known) {
            (Ok((headers, _, bytes)), _) => (headers, bytes),
            (Err(Error::Status { status: 304, .. }), Some((_, digest))) => return Ok(digest),
            (Err(error), _) => return Err(error),
        };
        let manifest = checked_manifest(target, reference, &headers, bytes)?;
        unmoved.note(&call.url, headers.get(ETAG), manifest.digest);
        Ok(manifest.digest)
    }

    /// The manifest or index that the reference names, by its digest if it has one.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, Error> {
        let wants = if reference.digest().is_some() { Wants::Content } else { Wants::Names };
        let endpoints = self.endpoints(reference.repository(), wants)?;
        for mirror in &endpoints.mirrors {
            if let Some(manifest) = useful(mirror, self.manifest_at(mirror, reference).await) {
                return Ok(manifest);
            }
        }
        self.manifest_at(&endpoints.origin, reference).await
    }

    pub(crate) async fn manifest_at(&self, target: &Target, reference: &Reference) -> Result<RawManifest, Error> {
        let what = format!("manifest {}", reference.target());
        let call = manifest_call(target, reference, &what);
        let (headers, _, bytes) = self.document(&call, self.config().document_limit).await?;
        checked_manifest(target, reference, &headers, bytes)
    }

    /// A small blob as a whole, usually a config: at most [`ClientConfig::document_limit`] bytes, verified.
    pub async fn blob_bytes(&self, repository: &Repository, digest: Digest) -> Result<Bytes, Error> {
        let endpoints = self.endpoints(repository, Wants::Content)?;
        for mirror in &endpoints.mirrors {
            if let Some(bytes) = useful(mirror, self.blob_bytes_at(mirror, digest).await) {
                return Ok(bytes);
            }
        }
        self.blob_bytes_at(&endpoints.origin, digest).await
    }

    async fn blob_bytes_at(&self, target: &Target, digest: Digest) -> Result<Bytes, Error> {
        let what = format!("blob {digest}");
        let call = Call::get(target, target.url(&format!("blobs/{digest}")), &what);
        let (_, _, bytes) = self.document(&call, self.config().document_limit).await?;
        verify(target, &what, Some(digest), Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A blob of `size` bytes as a stream; see [`BlobReader`]. Returns when the registry has begun to answer.
    pub async fn blob(&self, repository: &Repository, digest: Digest, size: u64) -> Result<BlobReader, Error> {
        BlobReader::open(self.clone(), self.endpoints(repository, Wants::Content)?, digest, size).await
    }

    /// All tags of the repository, in the registry's order. Names outside the tag grammar may be among them;
    /// `image::reference::Wildcard::select` takes none of those.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        let endpoints = self.endpoints(repository, Wants::Names)?;
        for mirror in &endpoints.mirrors {
            if let Some(tags) = useful(mirror, self.tags_at(mirror).await) {
                return Ok(tags);
            }
        }
        self.tags_at(&endpoints.origin).await
    }
}

/// A manifest, if it is what was asked for.
fn checked_manifest(
    target: &Target,
    reference: &Reference,
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<RawManifest, Error> {
    let what = format!("manifest {}", reference.target());
    let digest = ManifestDigest::of(&bytes);
    let expected = reference.digest().map(|digest| digest.digest()).or_else(|| declared_digest(headers));
    verify(target, &what, expected, digest.digest())?;
    let wrong = |reason| Error::Protocol { place: target.place.clone(), what, reason };
    let media_type = media_type(headers, &bytes).map_err(wrong)?;
    Ok(RawManifest { bytes, media_type, digest })
}

/// What registries of no use for HEAD said of a document last, by its address: their `ETag` (RFC 9110, 8.8.3) and its digest.
#[derive(Debug, Default)]
struct Unmoved(Mutex<HashMap<Url, (HeaderValue, ManifestDigest)>>);

impl Unmoved {
    fn get(&self, url: &Url) -> Option<(HeaderValue, ManifestDigest)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(url).cloned()
    }

    fn note(&self, url: &Url, tag: Option<&HeaderValue>, digest: ManifestDigest) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tag.filter(|tag| tag.len() <= LONGEST_ETAG) {
            Some(tag) if known.len() < ETAGS || known.contains_key(url) => {
                known.insert(url.clone(), (tag.clone(), digest));
            }
            _ => drop(known.remove(url)),
        }
    }
}

fn manifest_call<'a>(target: &'a Target, reference: &Reference, what: &'a str) -> Call<'a> {
    let mut call = Call::get(target, target.url(&format!("manifests/{}", reference.target())), what);
    let accept = HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).expect("constant media types are a header value");
    call.headers.insert(ACCEPT, accept);
    call
}

/// The digest that the answer declares; one that can't be verified here is as good as none.
pub(crate) fn declared_digest(headers: &HeaderMap) -> Option<Digest> {
    Digest::parse(headers.get(CONTENT_DIGEST)?.to_str().ok()?.trim()).ok()
}

pub(crate) fn verify(target: &Target, what: &str, expected: Option<Digest>, actual: Digest) -> Result<(), Error> {
    match expected {
        Some(expected) if expected != actual => {
            Err(Error::DigestMismatch { place: target.place.clone(), what: what.to_owned(), expected, actual })
        }
        _ => Ok(()),
    }
}

/// The type of a manifest. One document must not be a manifest to us and an index to others: an answer whose header
/// and `mediaType` field contradict each other is refused (image-spec, "manifest.md", mediaType).
fn media_type(headers: &HeaderMap, bytes: &[u8]) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let header = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let header = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let own = serde_json::from_slice::<Typed>(bytes).ok().and_then(|typed| typed.media_type);
    let known = |name: &str| MANIFEST_TYPES.contains(&name);
    match own {
        Some(own) if known(&header) && known(&own) && own != header => {
            Err(format!("it is served as {header}, but says of itself to be {own}"))
        }
        Some(own) if !known(&header) => Ok(own.chars().take(256).collect()),
        _ => Ok(header),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_media_type_from_the_answer_or_the_document() {
        let [oci, index, ..] = MANIFEST_TYPES;
        let document = |own: &str| format!(r#"{{"mediaType":"{own}"}}"#);
        for (header, body, expected) in [
            (Some(oci.to_owned()), "{}".to_owned(), Some(oci)),
            (Some(format!("{oci}; charset=utf-8")), document(oci), Some(oci)),
            (Some("application/json".into()), document(index), Some(index)),
            (None, document(index), Some(index)),
            (None, "not json".into(), Some("")),
            (Some(oci.to_owned()), document(index), None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = &header {
                headers.insert(CONTENT_TYPE, HeaderValue::from_str(header).unwrap());
            }
            assert_eq!(media_type(&headers, body.as_bytes()).ok().as_deref(), expected, "{header:?} {body}");
        }
    }
}
