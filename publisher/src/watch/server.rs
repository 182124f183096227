//! The server of a watching publisher.
//!
//! | path | answer |
//! |---|---|
//! | `POST /hooks/FORMAT` | 202 when the events are on disk; 401 without the token, 400 if it is no notification |
//! | `GET /` | the page: [`super::page`] |
//! | `GET /status.json` | [`Status`] |
//! | `GET /metrics` | counters, in the format of Prometheus |
//! | `GET /healthz` | 200: the process answers; 503 with the reason if somebody should look |
//!
//! The token of hooks comes as `Authorization: TOKEN` or `Bearer TOKEN`, as password of `Basic`, as `X-Gitlab-Token`, or, from registries
//! that can't send headers, as `?token=`. It is compared in constant time.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::hooks::{Format, parse};
use super::metrics::Metrics;
use super::page;
use super::queue::Queue;
use super::status::Status;
use crate::cli::print_result;
use crate::error::CommandError;
use crate::stop::Stop;

/// What the page may do: nothing but what stands in it.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
/// Largest notification that is read.
const MAX_BODY: usize = 1 << 20;
/// Shortest token that keeps anybody out.
const MIN_TOKEN: usize = 16;

/// What the server shows and takes; shared with the watcher.
#[derive(Debug)]
pub struct Site {
    queue: Arc<Queue>,
    secret: Option<Secret>,
    metrics: Metrics,
    status: RwLock<Status>,
    wake: Arc<Notify>,
    /// One writer of events at a time: each waits for the disk.
    putting: Mutex<()>,
}

/// The token of hooks, as its hash.
#[derive(Debug, Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// From the first line of a file.
    pub fn read(path: &Path) -> Result<Self, CommandError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            CommandError::config(error).context(format!("cannot read the token of hooks in {}", path.display()))
        })?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < MIN_TOKEN {
            let what = format!("the token of hooks in {} is shorter than {MIN_TOKEN} characters", path.display());
            return Err(CommandError::config(what).hint("make one: openssl rand -hex 32"));
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    /// Hashes are compared, so the time tells nothing of the token.
    fn is(&self, token: &str) -> bool {
        self.0 == <[u8; 32]>::from(Sha256::digest(token.trim()))
    }
}

impl Site {
    /// A site without visitors.
    pub fn new(queue: Arc<Queue>, secret: Option<Secret>, metrics: Metrics, status: Status) -> Self {
        let (status, wake) = (RwLock::new(status), Arc::new(Notify::new()));
        Self { queue, secret, metrics, status, wake, putting: Mutex::new(()) }
    }

    /// Events that wait.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Told when an event came.
    pub fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.write());
    }

    /// Looks at what is shown, but for what changes by itself.
    pub fn look<T>(&self, at: impl FnOnce(&Status) -> T) -> T {
        at(&self.status.read())
    }

    /// What is shown.
    pub fn status(&self) -> Status {
        let (queue, registries) = (self.queue.len(), self.metrics.registries());
        Status { queue, registries, ..self.status.read().clone() }
    }
}

/// The routes.
pub fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/", get(live_page))
        .route("/hooks/{format}", post(hook))
        .route("/status.json", get(async |State(site): State<Arc<Site>>| Json(site.status())))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(site)
}

/// Serves until somebody asks to stop; says where.
pub async fn start(site: Arc<Site>, address: SocketAddr, stop: Stop) -> Result<SocketAddr, CommandError> {
    let failed = |error| {
        CommandError::failed(error)
            .context(format!("cannot listen on {address}"))
            .hint("choose another address with --listen")
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let server = axum::serve(listener, router(site)).with_graceful_shutdown(async move { stop.wait().await });
    tokio::spawn(server.into_future());
    Ok(address)
}

/// Says that the program is at work.
pub fn announce(fqrn: &str, address: Option<SocketAddr>, json: bool) -> Result<(), CommandError> {
    print_result(&match (address, json) {
        (address, true) => format!(
            "{}\n",
            serde_json::json!({
                "repository": fqrn,
                "url": address.map(|address| format!("http://{address}")),
                "port": address.map(|address| address.port()),
            })
        ),
        (Some(address), false) => format!("watching for {fqrn}, listening on http://{address}\n"),
        (None, false) => format!("watching for {fqrn}\n"),
    })
}

#[derive(Debug, Deserialize)]
struct HookQuery {
    token: Option<String>,
}

async fn hook(
    State(site): State<Arc<Site>>,
    UrlPath(format): UrlPath<String>,
    Query(query): Query<HookQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Some(secret) = &site.secret else {
        site.metrics.hook("refused");
        return (StatusCode::FORBIDDEN, "hooks are off; start with --hook-token FILE\n").into_response();
    };
    if !tokens(&headers, query.token).iter().any(|token| secret.is(token)) {
        site.metrics.hook("refused");
        tracing::warn!(format, "a notification without the token of hooks was refused");
        return (StatusCode::UNAUTHORIZED, "the token is missing or wrong\n").into_response();
    }
    let Some(format) = Format::parse(&format) else {
        return (StatusCode::NOT_FOUND, "there are harbor, distribution, gitlab and quay\n").into_response();
    };
    let events = match parse(format, &body) {
        Ok(events) => events,
        Err(error) => {
            site.metrics.hook("bad");
            tracing::warn!(%error, "a notification was not understood");
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
    let keeping = site.clone();
    let kept = tokio::task::spawn_blocking(move || {
        let _one = keeping.putting.lock();
        keeping.queue.put(events)
    });
    match kept.await {
        Ok(Ok(())) => {
            site.metrics.hook("taken");
            site.wake.notify_one();
            (StatusCode::ACCEPTED, "queued\n").into_response()
        }
        // Whoever sends it tries again.
        failed => {
            site.metrics.hook("lost");
            tracing::error!(?failed, "a notification could not be kept");
            (StatusCode::SERVICE_UNAVAILABLE, "can't be kept now; send it again\n").into_response()
        }
    }
}

/// Wherever a token may stand.
fn tokens(headers: &HeaderMap, query: Option<String>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let mut tokens: Vec<String> = query.into_iter().chain(text("x-gitlab-token").map(str::to_owned)).collect();
    if let Some(value) = text(header::AUTHORIZATION.as_str()) {
        tokens.push(value.to_owned());
        if let Some((scheme, rest)) = value.split_once(' ') {
            match scheme.to_ascii_lowercase().as_str() {
                "basic" => {
                    let decoded = STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                    tokens.extend(decoded.and_then(|pair| Some(pair.split_once(':')?.1.to_owned())));
                }
                _ => tokens.push(rest.to_owned()),
            }
        }
    }
    tokens
}

async fn live_page() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, page::LIVE).into_response()
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], site.metrics.text(site.queue.len())).into_response()
}

async fn health(State(site): State<Arc<Site>>) -> Response {
    let status = site.status.read();
    let lines: Vec<&str> = status.troubles().collect();
    match lines.is_empty() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn site(directory: &Path, with_secret: bool) -> Arc<Site> {
        let queue = Arc::new(Queue::open(directory).unwrap());
        let secret = with_secret.then(|| Secret(Sha256::digest(TOKEN).into()));
        Arc::new(Site::new(
            queue,
            secret,
            Metrics::new(registry::Budgets::default()),
            Status::new("a.example.org", Path::new("list.yaml")),
        ))
    }

    async fn ask(site: &Arc<Site>, request: http::request::Builder, body: impl Into<Body>) -> (u16, String) {
        let response = router(site.clone()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    const BODY: &str = r#"{"repository":"a/b","updated_tags":["1"]}"#;

    #[tokio::test]
    async fn an_event_is_taken_with_the_token_wherever_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let site = site(directory.path(), true);
        let basic = format!("Basic {}", STANDARD.encode(format!("user:{TOKEN}")));
        for (uri, name, value, status) in [
            ("/hooks/quay", "authorization", TOKEN, 202),
            ("/hooks/quay", "authorization", &format!("Bearer {TOKEN}"), 202),
            ("/hooks/quay", "authorization", &basic, 202),
            ("/hooks/quay", "x-gitlab-token", TOKEN, 202),
            (&format!("/hooks/quay?token={TOKEN}"), "x-other", "", 202),
            ("/hooks/quay", "authorization", "Bearer wrong", 401),
            ("/hooks/quay", "x-other", "", 401),
            ("/hooks/quay?token=", "x-other", "", 401),
            ("/hooks/dockerhub", "authorization", TOKEN, 404),
        ] {
            let request = Request::post(uri).header(name, value);
            assert_eq!(ask(&site, request, BODY).await.0, status, "{uri} {name}: {value}");
        }
        assert_eq!(site.queue.len(), 1);
        let request = || Request::post("/hooks/harbor").header("authorization", TOKEN);
        assert_eq!(ask(&site, request(), BODY).await.0, 400);
        assert_eq!(ask(&site, request(), vec![b' '; MAX_BODY + 1]).await.0, 413);
        let (_, metrics) = ask(&site, Request::get("/metrics"), "").await;
        assert!(metrics.contains("cvmfs_publisher_hooks_total{result=\"taken\"} 5"), "{metrics}");
        assert!(metrics.contains("cvmfs_publisher_queue 1"), "{metrics}");
    }

    #[tokio::test]
    async fn without_a_token_there_are_no_hooks() {
        let directory = tempfile::tempdir().unwrap();
        let site = site(directory.path(), false);
        let (status, text) = ask(&site, Request::post("/hooks/quay"), BODY).await;
        assert!(status == 403 && text.contains("--hook-token"), "{status} {text}");
        assert!(site.queue.is_empty());
        let short = directory.path().join("token");
        std::fs::write(&short, "short\n").unwrap();
        assert!(Secret::read(&short).is_err());
    }

    #[tokio::test]
    async fn health_says_what_somebody_should_look_at() {
        let directory = tempfile::tempdir().unwrap();
        let site = site(directory.path(), true);
        assert_eq!(ask(&site, Request::get("/healthz"), "").await, (200, "ok\n".to_owned()));
        site.update(|status| status.trouble = Some("the repository can't be opened".to_owned()));
        assert_eq!(
            ask(&site, Request::get("/healthz"), "").await,
            (503, "the repository can't be opened\n".to_owned())
        );
        let (_, text) = ask(&site, Request::get("/status.json"), "").await;
        let status: Status = serde_json::from_str(&text).unwrap();
        assert_eq!((status.schema, status.repository.as_str()), (1, "a.example.org"));
    }
}
