//! A registry on this node that has no layers: manifests, indexes and configs from `/cvmfs`, with the original names and digests.
//!
//! | path | answer |
//! |---|---|
//! | `/v2/` | 200 |
//! | `/v2/NAME/manifests/TAG` | the index that the tag led to when it was published, else the manifest; raw bytes |
//! | `/v2/NAME/manifests/DIGEST` | manifest or index with this digest, raw bytes |
//! | `/v2/NAME/blobs/DIGEST` | a config; 404 for layers, so that clients that want one go on to the registry |
//! | `/v2/NAME/tags/list` | tags that are published |
//!
//! NAME is the image repository at the registry that the query parameter `ns` names (containerd), else at the registry that NAME begins
//! with (Podman; its port stands behind an underscore), else at Docker Hub (Docker). Names become paths only through `image::reference`.
//!
//! Invariants
//! - Read-only, and no body is read.
//! - What is served by a digest has it.
//! - Looks into repositories are bounded in number and time; a repository that hangs costs some threads and gets 503 for answer, upon
//!   which clients ask the registry.

pub mod ask;
pub mod snippets;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LINK, RETRY_AFTER};
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;
use image::digest::Digest;
use image::manifest::{ACCEPT, Document};
use image::reference::PublicName;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::published::{PublishedError, Repository};
use crate::signals::Signals;
use ask::{Ask, Refusal, What};

/// Looks into repositories at a time.
const LOOKS: usize = 32;
/// Requests that may wait for one.
const WAITING: usize = 512;
/// What a look gets.
const PATIENCE: Duration = Duration::from_secs(10);
/// What running requests get after a signal.
const GRACE: Duration = Duration::from_secs(5);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What is served.
#[derive(Debug)]
pub struct Mirror {
    repositories: Vec<Repository>,
    resolve: bool,
    looks: Arc<Semaphore>,
    waiting: Semaphore,
    patience: Duration,
}

impl Mirror {
    /// A mirror of these repositories. `resolve`: are tags answered?
    pub fn new(repositories: Vec<Repository>, resolve: bool) -> Self {
        Self {
            repositories,
            resolve,
            looks: Arc::new(Semaphore::new(LOOKS)),
            waiting: Semaphore::new(WAITING),
            patience: PATIENCE,
        }
    }

    /// Looks into one repository after the other, until one has it.
    async fn look(
        self: &Arc<Self>,
        look: impl Fn(&Repository) -> Result<Option<Found>, PublishedError> + Send + 'static,
    ) -> Result<Option<Found>, Refusal> {
        let Ok(_place) = self.waiting.try_acquire() else { return Err(Refusal::busy()) };
        let work = async {
            let permit = Arc::clone(&self.looks).acquire_owned().await.map_err(|_| Refusal::busy())?;
            let mirror = Arc::clone(self);
            let task = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let mut down = None;
                for repository in &mirror.repositories {
                    match look(repository).and_then(|found| match found {
                        // Nothing mounted looks like nothing published.
                        None => repository.check().map(|()| None),
                        found => Ok(found),
                    }) {
                        Ok(Some(found)) => return Ok(Some(found)),
                        Ok(None) => {}
                        Err(error) if error.is_repository() => down = Some(error),
                        Err(error) => tracing::warn!(repository = repository.name(), %error, "not served"),
                    }
                }
                down.map_or(Ok(None), |error| Err(Refusal::down(&error.to_string())))
            });
            task.await.unwrap_or_else(|_| Err(Refusal::down("looking failed")))
        };
        tokio::time::timeout(self.patience, work)
            .await
            .unwrap_or_else(|_| Err(Refusal::down(&format!("no answer within {} s", self.patience.as_secs()))))
    }

    async fn answer(self: &Arc<Self>, uri: &Uri) -> Result<Found, Refusal> {
        let Ask { names, what } = Ask::parse(uri)?;
        let unknown = match what {
            What::Base => return Ok(Found::Base),
            What::Tag(_) if !self.resolve => return Err(Refusal::unknown_manifest()),
            What::Tag(_) | What::Manifest(_) => Refusal::unknown_manifest(),
            What::Blob(_) => Refusal::unknown_blob(),
            What::Tags { .. } => Refusal::unknown_name(),
        };
        let look = move |repository: &Repository| match &what {
            What::Base => Ok(None),
            What::Tag(_) => first(&names, |name| tagged(repository, name)),
            What::Manifest(digest) => Ok(repository.document(*digest)?.and_then(Found::document)),
            What::Blob(digest) => {
                let found = repository.config(image::digest::ImageId::from_digest(*digest))?;
                Ok(found.map(|bytes| Found::Content { media_type: OCTETS, digest: *digest, bytes }))
            }
            What::Tags { last, limit, asked } => first(&names, |name| {
                let found = repository.tags(name.repository(), last, *limit)?;
                Ok(found.map(|(tags, more)| Found::Tags { name: asked.clone(), tags, more, limit: *limit }))
            }),
        };
        self.look(look).await?.ok_or(unknown)
    }
}

const OCTETS: &str = "application/octet-stream";

fn first(
    names: &[PublicName],
    look: impl Fn(&PublicName) -> Result<Option<Found>, PublishedError>,
) -> Result<Option<Found>, PublishedError> {
    for name in names {
        if let Some(found) = look(name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What a tag leads to, also if it is published for other platforms than the default one only.
fn tagged(repository: &Repository, name: &PublicName) -> Result<Option<Found>, PublishedError> {
    let image = match repository.image(name, None)? {
        Some(image) => Some(image),
        None => repository.platforms(name)?.into_iter().next(),
    };
    let Some(image) = image else { return Ok(None) };
    let index = image.index.map(|digest| repository.document(digest)).transpose()?.flatten();
    Ok(Found::document(index.unwrap_or(image.manifest_bytes)))
}

/// What was asked for.
#[derive(Debug)]
enum Found {
    Base,
    Content { media_type: &'static str, digest: Digest, bytes: Vec<u8> },
    Tags { name: String, tags: Vec<String>, more: bool, limit: usize },
}

impl Found {
    /// A manifest or an index, with the type that it states, or has by its shape.
    fn document(bytes: Vec<u8>) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Typed {
            media_type: Option<String>,
        }
        let shape = match Document::parse(&bytes, None).ok()? {
            Document::Manifest(_) => "application/vnd.oci.image.manifest.v1+json",
            Document::Index(_) => "application/vnd.oci.image.index.v1+json",
        };
        let own = serde_json::from_slice::<Typed>(&bytes).ok()?.media_type;
        let media_type = ACCEPT.into_iter().find(|known| own.as_deref() == Some(known)).unwrap_or(shape);
        Some(Self::Content { media_type, digest: Digest::of(&bytes), bytes })
    }
}

/// The routes.
pub fn router(mirror: Arc<Mirror>) -> Router {
    Router::new().fallback(handle).with_state(mirror)
}

async fn handle(State(mirror): State<Arc<Mirror>>, method: Method, uri: Uri) -> Response {
    let is_head = match method {
        Method::GET => false,
        Method::HEAD => true,
        _ => return respond(Err(Refusal::read_only()), false),
    };
    let answer = mirror.answer(&uri).await;
    tracing::debug!(%uri, status = %answer.as_ref().map_or_else(|r| r.status, |_| StatusCode::OK), "answered");
    respond(answer, is_head)
}

fn respond(answer: Result<Found, Refusal>, is_head: bool) -> Response {
    let (status, media_type, bytes) = match &answer {
        Ok(Found::Base) => (StatusCode::OK, "application/json", b"{}".to_vec()),
        Ok(Found::Content { media_type, bytes, .. }) => (StatusCode::OK, *media_type, bytes.clone()),
        Ok(Found::Tags { name, tags, .. }) => {
            (StatusCode::OK, "application/json", json!({ "name": name, "tags": tags }).to_string().into_bytes())
        }
        Err(refusal) => (refusal.status, "application/json", refusal.body()),
    };
    let length = bytes.len();
    let mut response = Response::new(if is_head { Body::empty() } else { Body::from(bytes) });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    let text = |text: String| HeaderValue::from_str(&text).expect("digests, names and tags are visible ASCII");
    match &answer {
        Ok(Found::Content { digest, .. }) => {
            headers.insert(CONTENT_DIGEST, text(digest.to_string()));
        }
        Ok(Found::Tags { name, tags, more: true, limit }) => {
            let last = tags.last().map(String::as_str).unwrap_or_default();
            headers.insert(LINK, text(format!("</v2/{name}/tags/list?n={limit}&last={last}>; rel=\"next\"")));
        }
        Err(refusal) if refusal.status == StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Err(refusal) if refusal.status == StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

/// Serves until a signal comes; running requests get a few seconds.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "everybody who reaches this address can read what is published");
    }
    let names: Vec<&str> = config.repositories.iter().map(Repository::name).collect();
    tracing::info!(%address, repositories = names.join(","), tags = config.resolve, "serving");
    let router = router(Arc::new(Mirror::new(config.repositories, config.resolve)));
    Ok(signals.serve(listener, router, GRACE).await?)
}
