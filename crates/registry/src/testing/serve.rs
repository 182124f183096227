//! The routes of the distribution specification over a store in memory.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::response::Response as BodyResponse;
use axum::serve::Listener;
use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, LINK, LOCATION, RANGE,
};
use http::{HeaderValue, Request, Response, StatusCode};
use image::digest::Digest;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::chaos::Chaos;
use super::guard::{Refusal, plain};
use super::{Recorded, State, Store, fault};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(move |request: Request<Body>| handle(state.clone(), request))
}

async fn handle(state: Arc<State>, request: Request<Body>) -> BodyResponse {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return plain(StatusCode::BAD_REQUEST, "").map(Body::from);
    };
    let request = Request::from_parts(head, body);
    let path = request.uri().to_string();
    let upload = path.contains("/blobs/uploads/");
    let answered = Arc::new(OnceLock::new());
    let recorded = Recorded {
        method: request.method().to_string(),
        path,
        headers: request.headers().clone(),
        body: if upload { Bytes::new() } else { request.body().clone() },
        at: Instant::now(),
        answered: answered.clone(),
    };
    let answer = answer(&state, recorded, request).await;
    let _ = answered.set(Instant::now());
    answer
}

async fn answer(state: &State, recorded: Recorded, mut request: Request<Bytes>) -> BodyResponse {
    let (method, path) = (recorded.method.clone(), recorded.path.clone());
    let actions = {
        let mut store = state.store();
        store.requests.push(recorded);
        if let Some((repository, _)) = split(request.uri().path()) {
            let push = !matches!(method.as_str(), "GET" | "HEAD");
            if let Err(refusal) = store.guard.check(request.headers(), repository, push) {
                return refusal.map(Body::from);
            }
        }
        let mut actions = fault::take(&mut store.faults, &method, &path);
        actions.extend(store.chaos.as_mut().and_then(Chaos::pick));
        actions
    };
    if let Some(answer) = fault::before(&actions, &mut request).await {
        return answer;
    }
    let answer = if request.uri().path() == "/token" {
        let form = if method == "POST" { request.body() } else { request.uri().query().unwrap_or_default().as_bytes() };
        state.issuer().sell(&method, &fields(form), request.headers())
    } else {
        route(state, &request).unwrap_or_else(|refusal| *refusal)
    };
    fault::after(actions, answer)
}

/// `/v2/<repository>/<rest>`, split before `manifests/`, `blobs/`, `tags/` or `referrers/`.
fn split(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/v2/")?;
    let at = ["/manifests/", "/blobs/", "/tags/", "/referrers/"].iter().filter_map(|part| path.rfind(part)).max()?;
    Some((&path[..at], &path[at + 1..]))
}

fn route(state: &State, request: &Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
    let mut store = state.store();
    if request.uri().path() == "/v2/" {
        return Ok(plain(StatusCode::OK, "{}"));
    }
    let (repository, rest) = split(request.uri().path()).ok_or_else(|| missing("NAME_UNKNOWN"))?;
    let query = fields(request.uri().query().unwrap_or_default().as_bytes());
    match (request.method().as_str(), rest.split_once('/').unwrap_or_default()) {
        ("GET", ("tags", "list")) => tags(&store, repository, &query),
        ("GET", ("referrers", subject)) if store.lists_referrers => Ok(referrers(&store, repository, subject, &query)),
        ("GET", ("referrers", _)) => Err(missing("NAME_UNKNOWN")),
        ("GET" | "HEAD", ("manifests", name)) => {
            let found = store.manifests.get(repository).and_then(|names| names.get(name));
            let (media_type, bytes) = found.ok_or_else(|| missing("MANIFEST_UNKNOWN"))?.clone();
            Ok(content(request, &bytes, Digest::of(&bytes), &media_type))
        }
        ("PUT", ("manifests", name)) => put_manifest(&mut store, repository, name, request),
        ("POST", ("blobs", "uploads/")) => {
            store.uploads += 1;
            let base = store.upload_base.clone().unwrap_or_default();
            let place = format!("{base}/v2/{repository}/blobs/uploads/{}?state=s", store.uploads);
            Ok(with(plain(StatusCode::ACCEPTED, ""), LOCATION, &place))
        }
        ("PUT", ("blobs", upload)) if upload.starts_with("uploads/") => {
            let digest = query.get("digest").map(String::as_str).unwrap_or_default();
            let digest = Digest::parse(digest).map_err(|_| problem(StatusCode::BAD_REQUEST, "DIGEST_INVALID"))?;
            if Digest::of(request.body()) != digest || query.get("state").is_none_or(|state| state != "s") {
                return Err(problem(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
            }
            store.blobs.insert(digest, request.body().clone());
            Ok(with(plain(StatusCode::CREATED, ""), CONTENT_DIGEST, &digest.to_string()))
        }
        ("GET" | "HEAD", ("blobs", digest)) => {
            let digest = Digest::parse(digest).map_err(|_| problem(StatusCode::BAD_REQUEST, "DIGEST_INVALID"))?;
            let bytes = store.blobs.get(&digest).ok_or_else(|| missing("BLOB_UNKNOWN"))?.clone();
            Ok(content(request, &bytes, digest, "application/octet-stream"))
        }
        _ => Err(problem(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")),
    }
}

/// A document or a part of it.
fn content(request: &Request<Bytes>, bytes: &Bytes, digest: Digest, media_type: &str) -> Response<Bytes> {
    let tag = format!("\"{}\"", digest.hex());
    if request.headers().get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return with(plain(StatusCode::NOT_MODIFIED, ""), ETAG, &tag);
    }
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut response = match start {
        Some(start) if start >= bytes.len() => {
            return with(
                plain(StatusCode::RANGE_NOT_SATISFIABLE, ""),
                CONTENT_RANGE,
                &format!("bytes */{}", bytes.len()),
            );
        }
        Some(start) => {
            let mut part = Response::new(bytes.slice(start..));
            *part.status_mut() = StatusCode::PARTIAL_CONTENT;
            with(part, CONTENT_RANGE, &format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()))
        }
        None => Response::new(bytes.clone()),
    };
    let length = HeaderValue::from(response.body().len());
    response.headers_mut().insert(CONTENT_LENGTH, length);
    if request.method() == "HEAD" {
        *response.body_mut() = Bytes::new();
    }
    with(with(with(response, CONTENT_DIGEST, &digest.to_string()), CONTENT_TYPE, media_type), ETAG, &tag)
}

fn put_manifest(
    store: &mut Store,
    repository: &str,
    name: &str,
    request: &Request<Bytes>,
) -> Result<Response<Bytes>, Refusal> {
    let bytes = request.body().clone();
    let digest = Digest::of(&bytes);
    if name.contains(':') && name != digest.to_string() {
        return Err(problem(StatusCode::BAD_REQUEST, "DIGEST_INVALID"));
    }
    let document: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|_| problem(StatusCode::BAD_REQUEST, "MANIFEST_INVALID"))?;
    let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
    let known =
        |descriptor: &serde_json::Value| descriptor["digest"].as_str().and_then(|text| Digest::parse(text).ok());
    let config = document.get("config").into_iter().cloned();
    if !config.chain(list("layers")).all(|d| known(&d).is_some_and(|digest| store.blobs.contains_key(&digest))) {
        return Err(problem(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"));
    }
    let names = store.manifests.entry(repository.to_owned()).or_default();
    if !list("manifests").iter().all(|d| known(d).is_some_and(|digest| names.contains_key(&digest.to_string()))) {
        return Err(problem(StatusCode::BAD_REQUEST, "MANIFEST_UNKNOWN"));
    }
    let media_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for name in [name.to_owned(), digest.to_string()] {
        names.insert(name, (media_type.to_owned(), bytes.clone()));
    }
    Ok(with(plain(StatusCode::CREATED, ""), CONTENT_DIGEST, &digest.to_string()))
}

/// Tags in order; in pages if the test wants so, else all.
fn tags(store: &Store, repository: &str, query: &HashMap<String, String>) -> Result<Response<Bytes>, Refusal> {
    let names = store.manifests.get(repository).ok_or_else(|| missing("NAME_UNKNOWN"))?;
    let last = query.get("last").map(String::as_str).unwrap_or_default();
    let rest: Vec<_> = names.keys().filter(|name| !name.contains(':') && name.as_str() > last).collect();
    let page = &rest[..store.page_size.unwrap_or(rest.len()).min(rest.len())];
    let answer = plain(StatusCode::OK, &serde_json::json!({ "name": repository, "tags": page }).to_string());
    Ok(match page.last() {
        Some(last) if page.len() < rest.len() && !store.no_links => {
            with(answer, LINK, &format!(r#"</v2/{repository}/tags/list?last={last}>; rel="next""#))
        }
        _ => answer,
    })
}

/// What refers to a manifest, by what manifests say of their subject; in pages as tags are.
fn referrers(store: &Store, repository: &str, subject: &str, query: &HashMap<String, String>) -> Response<Bytes> {
    let wanted = query.get("artifactType");
    let last = query.get("last").map(String::as_str).unwrap_or_default();
    let names = store.manifests.get(repository).into_iter().flatten();
    let by_digest = names.filter(|(name, _)| name.contains(':') && name.as_str() > last);
    let describe = |(digest, (media_type, bytes)): (&String, &(String, Bytes))| {
        let manifest: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        let is_meant = wanted.is_none_or(|wanted| manifest["artifactType"] == wanted.as_str());
        (manifest["subject"]["digest"] == subject && is_meant).then(|| {
            serde_json::json!({
                "mediaType": media_type, "digest": digest, "size": bytes.len(),
                "artifactType": manifest["artifactType"], "annotations": manifest["annotations"],
            })
        })
    };
    let found: Vec<_> = by_digest.filter_map(describe).collect();
    let page = &found[..store.page_size.unwrap_or(found.len()).min(found.len())];
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": page });
    let answer = with(plain(StatusCode::OK, &index.to_string()), CONTENT_TYPE, media_type);
    match page.last().and_then(|last| last["digest"].as_str()) {
        Some(last) if page.len() < found.len() => {
            let kind = wanted.map(|kind| format!("&artifactType={kind}").replace('+', "%2B")).unwrap_or_default();
            with(answer, LINK, &format!(r#"</v2/{repository}/referrers/{subject}?last={last}{kind}>; rel="next""#))
        }
        _ => answer,
    }
}

fn fields(form: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(form).into_owned().fold(HashMap::new(), |mut fields, (name, value)| {
        let field: &mut String = fields.entry(name).or_default();
        if !field.is_empty() {
            field.push(' '); // a repeated scope
        }
        let _ = field.write_str(&value);
        fields
    })
}

fn missing(code: &str) -> Refusal {
    problem(StatusCode::NOT_FOUND, code)
}

fn problem(status: StatusCode, code: &str) -> Refusal {
    plain(status, &format!(r#"{{"errors":[{{"code":"{code}","message":"from the test registry"}}]}}"#)).into()
}

fn with(mut response: Response<Bytes>, name: HeaderName, value: &str) -> Response<Bytes> {
    response.headers_mut().insert(name, HeaderValue::from_str(value).expect("a header value"));
    response
}

/// A fresh certificate for 127.0.0.1, and its PEM form.
pub(super) fn tls() -> (TlsAcceptor, String) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the ring provider supports the default TLS versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("certificate and key belong together");
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

/// A listener that shakes hands before it hands out a connection.
pub(super) struct TlsListener<L> {
    pub(super) listener: L,
    pub(super) acceptor: TlsAcceptor,
}

impl<L: Listener<Io = TcpStream, Addr = SocketAddr>> Listener for TlsListener<L> {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.listener.accept().await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
