//! What people and monitoring ask the daemon: HTTP on a socket of its own, and metrics on a TCP port if one is configured.
//!
//! | path | answer |
//! |---|---|
//! | `GET /metrics` | counters, in the format of Prometheus |
//! | `GET /healthz` | 200: the process answers |
//! | `GET /readyz` | 200: at least one repository can be read; 503 with the reasons otherwise |
//! | `GET /status` | [`Status`] |
//! | `POST /convert-local` | [`Converted`]: see [`crate::convert_local`] |

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::convert_local::{self, Converted};
use crate::daemon::{Daemon, Downloaded};
use crate::metadata::Counts;

/// State of a daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// version of this record
    pub schema: u32,
    /// version of the program
    pub version: String,
    /// process
    pub pid: u32,
    /// seconds since the start
    pub uptime: u64,
    /// state directory
    pub root: PathBuf,
    /// socket for containerd
    pub address: PathBuf,
    /// snapshots by kind
    pub snapshots: Counts,
    /// layers that were asked for since the start, by what became of them
    pub layers: std::collections::BTreeMap<String, u64>,
    /// repositories in order
    pub repositories: Vec<RepositoryStatus>,
    /// images of which layers had to be downloaded since the start, the last ones first
    #[serde(default)]
    pub downloads: Vec<Downloaded>,
}

/// State of a repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// its name
    pub name: String,
    /// where it is mounted
    pub mountpoint: PathBuf,
    /// why it can't be read, if so
    pub down: Option<String>,
}

/// The routes over a daemon.
pub fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(async |State(daemon): State<Arc<Daemon>>| failed(status(&daemon).await)))
        .route("/convert-local", post(convert))
        .with_state(daemon)
}

/// The routes that anybody on this machine may see.
pub fn public_router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(daemon)
}

async fn metrics(State(daemon): State<Arc<Daemon>>) -> Response {
    // A count of the database is as fresh as the question.
    if let Ok(counts) = daemon.blocking(|snapshots| snapshots.metadata().read(|table| table.counts())).await {
        daemon.metrics().count(counts);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([("content-type", kind)], daemon.metrics().text()).into_response()
}

async fn ready(State(daemon): State<Arc<Daemon>>) -> Response {
    let repositories = repositories(&daemon).await;
    if repositories.iter().any(|repository| repository.down.is_none()) {
        return "ok\n".into_response();
    }
    let reasons: Vec<String> = repositories.into_iter().filter_map(|repository| repository.down).collect();
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

#[derive(Debug, Deserialize)]
struct ConvertQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn convert(State(daemon): State<Arc<Daemon>>, Query(query): Query<ConvertQuery>) -> Response {
    failed(convert_local::convert(&daemon, query.dry_run).await.map_err(anyhow::Error::from))
}

fn failed<T: Serialize>(result: anyhow::Result<T>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn repositories(daemon: &Daemon) -> Vec<RepositoryStatus> {
    let states = daemon.repositories().iter().map(|repository| async move {
        let down = repository.probe().await.err().map(|down| down.to_string());
        daemon.metrics().repository_up(repository.name(), down.is_none());
        RepositoryStatus { name: repository.name().to_owned(), mountpoint: repository.mountpoint().to_owned(), down }
    });
    join_all(states).await
}

async fn status(daemon: &Daemon) -> anyhow::Result<Status> {
    let counts = daemon.blocking(|snapshots| snapshots.metadata().read(|table| table.counts())).await?;
    Ok(Status {
        schema: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime: daemon.uptime().as_secs(),
        root: daemon.config().root.clone(),
        address: daemon.config().address.clone(),
        snapshots: counts,
        layers: daemon.metrics().results().into_iter().map(|(result, count)| (result.to_owned(), count)).collect(),
        repositories: repositories(daemon).await,
        downloads: daemon.downloads(),
    })
}

/// Asks a running daemon for its state.
pub async fn ask_status(socket: &Path) -> anyhow::Result<Status> {
    ask(socket, reqwest::Method::GET, "/status", Duration::from_secs(30)).await
}

/// Makes a running daemon convert; takes as long as that takes.
pub async fn ask_convert(socket: &Path, dry_run: bool) -> anyhow::Result<Converted> {
    let path = format!("/convert-local?dry_run={dry_run}");
    ask(socket, reqwest::Method::POST, &path, Duration::from_secs(3600)).await
}

async fn ask<T: serde::de::DeserializeOwned>(
    socket: &Path,
    method: reqwest::Method,
    path: &str,
    timeout: Duration,
) -> anyhow::Result<T> {
    let client = reqwest::Client::builder().unix_socket(socket).timeout(timeout).no_proxy().build()?;
    let answer = client.request(method, format!("http://localhost{path}")).send().await;
    let answer =
        answer.with_context(|| format!("no daemon answers on {}; is cvmfs-snapshotter running?", socket.display()))?;
    if !answer.status().is_success() {
        bail!("{}", answer.text().await.unwrap_or_default().trim());
    }
    Ok(answer.json().await?)
}
