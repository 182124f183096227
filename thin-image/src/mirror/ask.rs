//! What a request asks for; pure.

use axum::extract::Query;
use axum::http::{StatusCode, Uri};
use image::digest::{Digest, ManifestDigest};
use image::reference::{PublicName, Reference};
use serde::Deserialize;
use serde_json::json;

use crate::text::printable;

/// Tags in one answer, at most.
const MAX_TAGS: usize = 10_000;

/// Why a request gets no answer, as the distribution specification writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status
    pub status: StatusCode,
    /// error code of the specification
    pub code: &'static str,
    /// for people
    pub message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        Self { status, code, message: printable(message, 500) }
    }
    pub(super) fn unknown_manifest() -> Self {
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "not published in any repository that is served here")
    }
    pub(super) fn unknown_blob() -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "layers are not served here, and no such config is published")
    }
    pub(super) fn unknown_name() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "not published in any repository that is served here")
    }
    pub(super) fn read_only() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only")
    }
    pub(super) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "too many requests at once")
    }
    pub(super) fn down(why: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", why)
    }
    fn name(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", why)
    }
    fn digest(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", why)
    }

    /// The body of the answer.
    pub fn body(&self) -> Vec<u8> {
        json!({ "errors": [{ "code": self.code, "message": self.message }] }).to_string().into_bytes()
    }
}

/// What is wanted of an image repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// is there a registry?
    Base,
    /// what a tag leads to
    Tag(String),
    /// a manifest or an index
    Manifest(ManifestDigest),
    /// a blob
    Blob(Digest),
    /// tags after `last`, at most `limit`
    Tags {
        /// where the list goes on
        last: String,
        /// how many
        limit: usize,
        /// the name as it was asked for
        asked: String,
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// names under which the image may be published
    pub names: Vec<PublicName>,
    /// what is wanted of it
    pub what: What,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    ns: Option<String>,
    n: Option<usize>,
    last: Option<String>,
}

impl Ask {
    /// Reads path and query.
    pub fn parse(uri: &Uri) -> Result<Self, Refusal> {
        // A colon in a digest is the one character that some clients escape.
        let path = uri.path().replace("%3A", ":").replace("%3a", ":");
        let Some(path) = path.strip_prefix("/v2").filter(|path| path.is_empty() || path.starts_with('/')) else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "only /v2/ is served here"));
        };
        if matches!(path, "" | "/") {
            return Ok(Self { names: Vec::new(), what: What::Base });
        }
        let Query(parameters) =
            Query::<Parameters>::try_from_uri(uri).map_err(|error| Refusal::name(&error.to_string()))?;
        let places = ["/manifests/", "/blobs/", "/tags/"];
        let Some((at, part)) = places.iter().filter_map(|part| Some((path.rfind(part)?, *part))).max() else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"));
        };
        let (name, rest) = (path[..at].trim_start_matches('/'), &path[at + part.len()..]);
        let digest = |text: &str| Digest::parse(text).map_err(|error| Refusal::digest(&error.to_string()));
        let (tag, what) = match part {
            "/manifests/" if rest.contains(':') => ("x", What::Manifest(ManifestDigest::from_digest(digest(rest)?))),
            "/manifests/" => (rest, What::Tag(rest.to_owned())),
            "/blobs/" => ("x", What::Blob(digest(rest)?)),
            _ if rest == "list" => {
                let limit = parameters.n.unwrap_or(MAX_TAGS).min(MAX_TAGS);
                let last = parameters.last.unwrap_or_default();
                ("x", What::Tags { last, limit, asked: name.to_owned() })
            }
            _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint")),
        };
        Ok(Self { names: names(parameters.ns.as_deref(), name, tag)?, what })
    }
}

/// Where the publisher puts an image of this name.
fn names(ns: Option<&str>, name: &str, tag: &str) -> Result<Vec<PublicName>, Refusal> {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    // Podman can't have a colon within the location of a mirror; no host name has an underscore.
    let with_port = |first: &str| match first.rsplit_once('_') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => format!("{host}:{port}"),
        _ => first.to_owned(),
    };
    let (registry, path) = match (ns, name.split_once('/')) {
        (Some(ns), _) => (ns.to_owned(), name),
        (None, Some((first, rest))) if is_host(&with_port(first)) => (with_port(first), rest),
        (None, _) => ("docker.io".to_owned(), name),
    };
    let refuse = |error: image::reference::ReferenceError| Refusal::name(&error.to_string());
    let reference = Reference::parse(&format!("https://{registry}/{path}:{tag}")).map_err(refuse)?;
    let mut names = vec![reference.public_path().map_err(refuse)?];
    // Engines call what is published without a registry an image of this machine.
    if registry == "localhost" {
        names.extend(PublicName::parse(&format!("{path}:{tag}")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(uri: &str) -> Result<(Vec<String>, What), &'static str> {
        let ask = Ask::parse(&uri.parse().unwrap()).map_err(|refusal| refusal.code)?;
        Ok((ask.names.iter().map(ToString::to_string).collect(), ask.what))
    }

    #[test]
    fn names_are_those_of_the_registry_that_the_client_means() {
        let hub = "registry.hub.docker.com";
        for (uri, expected) in [
            ("/v2/library/debian/manifests/12?ns=docker.io", format!("{hub}/library/debian:12")),
            ("/v2/debian/manifests/12", format!("{hub}/library/debian:12")),
            ("/v2/library/debian/manifests/12", format!("{hub}/library/debian:12")),
            ("/v2/quay.io/a/b/manifests/1", "quay.io/a/b:1".into()),
            ("/v2/a/b/manifests/1?ns=quay.io", "quay.io/a/b:1".into()),
            ("/v2/a/manifests/1?ns=127.0.0.1%3A5000", "127.0.0.1:5000/a:1".into()),
            ("/v2/127.0.0.1:5000/a/manifests/1", "127.0.0.1:5000/a:1".into()),
            ("/v2/127.0.0.1_5000/a/manifests/1", "127.0.0.1:5000/a:1".into()),
            ("/v2/registry_5000/a/manifests/1", "registry:5000/a:1".into()),
            ("/v2/a_b/c_1/manifests/1", format!("{hub}/a_b/c_1:1")),
            ("/v2/a/manifests/b/manifests/1?ns=quay.io", "quay.io/a/manifests/b:1".into()),
        ] {
            let (names, what) = ask(uri).unwrap_or_else(|code| panic!("{uri}: {code}"));
            assert_eq!(names, [expected], "{uri}");
            assert!(matches!(what, What::Tag(_)), "{uri}");
        }
        let (names, _) = ask("/v2/local/app/manifests/1?ns=localhost").unwrap();
        assert_eq!(names, ["localhost/local/app:1", "local/app:1"]);
    }

    #[test]
    fn endpoints_are_those_of_the_specification() {
        let digest = Digest::of(b"x");
        let escaped = digest.to_string().replace(':', "%3A");
        assert_eq!(ask("/v2/").unwrap().1, What::Base);
        assert_eq!(ask("/v2").unwrap().1, What::Base);
        for text in [digest.to_string(), escaped] {
            let manifest = ask(&format!("/v2/quay.io/a/manifests/{text}")).unwrap().1;
            assert_eq!(manifest, What::Manifest(ManifestDigest::from_digest(digest)));
            assert_eq!(ask(&format!("/v2/quay.io/a/blobs/{text}")).unwrap().1, What::Blob(digest));
        }
        let tags = ask("/v2/quay.io/a/tags/list?n=5&last=b").unwrap().1;
        assert_eq!(tags, What::Tags { last: "b".into(), limit: 5, asked: "quay.io/a".into() });
        let What::Tags { limit, .. } = ask("/v2/quay.io/a/tags/list?n=99999999").unwrap().1 else { panic!("tags") };
        assert_eq!(limit, MAX_TAGS);
    }

    #[test]
    fn nothing_but_names_of_images_becomes_a_path() {
        for (uri, code) in [
            ("/", "UNSUPPORTED"),
            ("/v3/", "UNSUPPORTED"),
            ("/v2/x", "UNSUPPORTED"),
            ("/v2/quay.io/a/tags/x", "UNSUPPORTED"),
            ("/v2/../etc/manifests/1", "NAME_INVALID"),
            ("/v2/quay.io/../../etc/manifests/passwd", "NAME_INVALID"),
            ("/v2/quay.io/%2e%2e/etc/manifests/passwd", "NAME_INVALID"),
            ("/v2/quay.io/a/manifests/..", "NAME_INVALID"),
            ("/v2/quay.io/a/manifests/", "NAME_INVALID"),
            ("/v2/quay.io/a/manifests/a%2fb", "NAME_INVALID"),
            ("/v2/a/manifests/1?ns=../../etc", "NAME_INVALID"),
            ("/v2/a/manifests/1?ns=.flat", "NAME_INVALID"),
            ("/v2/a/manifests/1?ns=podmanStore", "NAME_INVALID"),
            ("/v2/a/manifests/1?ns=", "NAME_INVALID"),
            ("/v2//manifests/1", "NAME_INVALID"),
            ("/v2/quay.io/a/manifests/*", "NAME_INVALID"),
            ("/v2/quay.io/a/blobs/x", "DIGEST_INVALID"),
            ("/v2/quay.io/a/blobs/sha256:../../x", "DIGEST_INVALID"),
            ("/v2/quay.io/a/manifests/sha512:aa", "DIGEST_INVALID"),
            ("/v2/quay.io/a/tags/list?n=x", "NAME_INVALID"),
        ] {
            assert_eq!(ask(uri), Err(code), "{uri}");
        }
    }
}
