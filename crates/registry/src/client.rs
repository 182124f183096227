//! Questions to a registry: which digest has this tag, what is in this manifest, which tags are there.
//!
//! Source of facts: OCI distribution-spec 1.1 ("Pulling manifests", "Listing Tags"), and what registries really do:
//! some leave the digest header out, some answer HEAD with an error, some page tag lists whatever is asked.
//!
//! Invariants
//! - Bytes are returned only if they have the digest that was asked for; for a tag, the digest that the registry
//!   declares is checked against the bytes, and the one that is returned is computed from them.
//! - All four manifest types are accepted at once: registries answer 404 for a type they aren't asked for.
//! - Documents are limited to [`ClientConfig::document_limit`], tag lists to [`ClientConfig::tag_pages`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LINK};
use http::{HeaderMap, HeaderValue, Method};
use image::digest::{Digest, ManifestDigest};
use image::reference::{Reference, Repository};

use crate::blob::BlobReader;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::lines::Lines;
use crate::retry::{Attempts, RetryPolicy};
use crate::transport::{Call, Session, Target, base_url, mirror_url, shown};

/// The four types of manifests and indexes.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Tags asked for in one page; registries may give fewer, or all.
const TAGS_PER_PAGE: usize = 1000;
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
    pub mirror: Option<reqwest::Url>,
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
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ClientConfig,
    lines: Lines,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
}

impl Client {
    /// Reads the CA certificates; connects to nobody yet.
    pub fn new(mut config: ClientConfig) -> Result<Self, Error> {
        if config.mirror.is_some() {
            config.credentials = Credentials::anonymous();
        }
        let lines = Lines::new(&config)?;
        Ok(Self(Arc::new(Inner { config, lines, sessions: Mutex::default() })))
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.0.config
    }

    pub(crate) fn lines(&self) -> &Lines {
        &self.0.lines
    }

    pub(crate) fn target(&self, repository: &Repository) -> Result<Target, Error> {
        let (place, path, base) = match &self.0.config.mirror {
            Some(mirror) => {
                let path = repository.path().to_owned();
                (format!("{repository}, asked of {}", shown(mirror)), path, mirror_url(mirror, repository)?)
            }
            None => {
                let (host, path) = self.0.config.credentials.route(repository);
                let base = base_url(repository, &host, &path)?;
                (repository.to_string(), path, base)
            }
        };
        let mut sessions = self.0.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.entry(shown(&base)).or_insert_with(|| Arc::new(Session::new(&self.0.config))).clone();
        Ok(Target { repository: repository.clone(), place, path, base, session })
    }

    /// The digest that a tag has now: one HEAD request, which registries with pull limits don't count. A reference
    /// with a digest is answered without a request.
    pub async fn resolve(&self, reference: &Reference) -> Result<ManifestDigest, Error> {
        if let Some(digest) = reference.digest() {
            return Ok(digest);
        }
        let target = self.target(reference.repository())?;
        let what = format!("manifest {}", reference.target());
        let call = Call { method: Method::HEAD, ..manifest_call(&target, reference, &what) };
        match self.call(&call, &mut Attempts::new(&self.config().retry)).await {
            Ok(response) => {
                if let Some(digest) = declared_digest(response.headers()) {
                    return Ok(ManifestDigest::from_digest(digest));
                }
            }
            // registries that don't do HEAD properly
            Err(Error::Status { status: 400 | 405 | 406 | 501, .. } | Error::Protocol { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(self.manifest(reference).await?.digest)
    }

    /// The manifest or index that the reference names, by its digest if it has one.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, Error> {
        let target = self.target(reference.repository())?;
        let what = format!("manifest {}", reference.target());
        let call = manifest_call(&target, reference, &what);
        let (headers, _, bytes) = self.document(&call, self.config().document_limit).await?;
        let digest = ManifestDigest::of(&bytes);
        let expected = reference.digest().map(|digest| digest.digest()).or_else(|| declared_digest(&headers));
        verify(&target, &what, expected, digest.digest())?;
        let media_type = media_type(&headers, &bytes).map_err(|reason| Error::Protocol {
            place: target.place.clone(),
            what,
            reason,
        })?;
        Ok(RawManifest { bytes, media_type, digest })
    }

    /// A small blob as a whole, usually a config: at most [`ClientConfig::document_limit`] bytes, verified.
    pub async fn blob_bytes(&self, repository: &Repository, digest: Digest) -> Result<Bytes, Error> {
        let target = self.target(repository)?;
        let what = format!("blob {digest}");
        let call = Call::get(&target, target.url(&format!("blobs/{digest}")), &what);
        let (_, _, bytes) = self.document(&call, self.config().document_limit).await?;
        verify(&target, &what, Some(digest), Digest::of(&bytes))?;
        Ok(bytes)
    }

    /// A blob of `size` bytes as a stream; see [`BlobReader`]. Returns when the registry has begun to answer.
    pub async fn blob(&self, repository: &Repository, digest: Digest, size: u64) -> Result<BlobReader, Error> {
        BlobReader::open(self.clone(), self.target(repository)?, digest, size).await
    }

    /// All tags of the repository, in the registry's order. Names outside the tag grammar may be among them;
    /// `image::reference::Wildcard::select` takes none of those.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let target = self.target(repository)?;
        let what = "tag list";
        let protocol = |reason: String| Error::Protocol { place: target.place.clone(), what: what.to_owned(), reason };
        let mut url = target.url("tags/list");
        url.query_pairs_mut().append_pair("n", &TAGS_PER_PAGE.to_string());
        let mut tags = Vec::new();
        for _ in 0..self.config().tag_pages {
            let call = Call::get(&target, url.clone(), what);
            let (headers, from, body) = self.document(&call, self.config().document_limit).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|error| protocol(format!("no tag list: {error}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next_page(&headers) else { return Ok(tags) };
            let next = from.join(&next).map_err(|_| protocol("the next page has no usable address".to_owned()))?;
            if next.origin() != target.base.origin() {
                return Err(protocol(format!("the next page lies at another host, {}", shown(&next))));
            }
            if next == url {
                return Err(protocol("the next page is the same page again".to_owned()));
            }
            url = next;
        }
        Err(protocol(format!("the list has more than {} pages", self.config().tag_pages)))
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

/// The address of the next page (RFC 8288): `Link: </v2/…>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    for value in headers.get_all(LINK) {
        let mut rest = value.to_str().ok()?;
        while let Some((_, after)) = rest.split_once('<') {
            let (address, after) = after.split_once('>')?;
            let parameters = &after[..after.find('<').unwrap_or(after.len())];
            let next =
                parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel")
                        && value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
                });
            if next {
                return Some(address.to_owned());
            }
            rest = after;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_next_page() {
        for (link, expected) in [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            ("</x>; rel=next", Some("/x")),
            (r#"</first>; rel="first", </x,y;z>; title="t"; REL="prev next""#, Some("/x,y;z")),
            (r#"</x>; rel="last""#, None),
            ("</x", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_str(link).unwrap())]);
            assert_eq!(next_page(&headers).as_deref(), expected, "{link}");
        }
        assert_eq!(next_page(&HeaderMap::new()), None);
    }

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
