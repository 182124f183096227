//! A graph driver for Docker up to 27: keeps images and containers as overlay2 does, and lets thin images stand on published layers.
//!
//! ```text
//! thin image   pulled as any other: a few KB, verified by Docker. Its layer's thin.json names layers of repositories
//! its child    a container or a layer: an overlay on those layers in /cvmfs, without the thin layer itself
//! other image  unpacked below Docker's directory
//! ```
//! | module | promise |
//! |---|---|
//! | [`id`] | names from requests that can be part of a path |
//! | [`home`] | what is on disk, whole or not at all |
//! | [`driver`] | the methods |
//! | [`mounts`] | stacks, and what the kernel says of them |
//! | [`jail`] | work within a layer, from where nothing else can be reached |
//! | [`mod@unpack`], [`mod@pack`] | archives to and from directories |
//! | [`thin`] | which layers may stand for a thin one |
//!
//! Invariants
//! - The daemon serves no file: containers go on when it ends, in whichever way.
//! - Nothing is mounted for a container but its own files, files of its images' layers, and layers of repositories in the configuration.

pub mod driver;
pub mod home;
pub mod id;
pub mod jail;
pub mod mounts;
pub mod pack;
pub mod startup;
pub mod thin;
pub mod unpack;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use futures_util::TryStreamExt as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::plugin::{Refusal, answer, blocking, read, refuse};
use driver::Driver;
use home::Kind;
use id::LayerId;

/// Bytes of an archive that travel at once, and how many such parts wait.
const PART: usize = 128 << 10;
const WAITING: usize = 8;

/// What the plugin says that it implements.
pub const IMPLEMENTS: &str = "GraphDriver";

/// A request, of whichever method; what a method doesn't need is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Call {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Parent")]
    parent: Option<String>,
    #[serde(rename = "MountLabel")]
    label: Option<String>,
    #[serde(rename = "StorageOpt")]
    options: Option<Map<String, Value>>,
    #[serde(rename = "Home")]
    home: Option<PathBuf>,
    #[serde(rename = "Opts")]
    init_options: Option<Vec<String>>,
    #[serde(rename = "UIDMaps")]
    users: Option<Vec<Value>>,
    #[serde(rename = "GIDMaps")]
    groups: Option<Vec<Value>>,
}

impl Call {
    fn id(&self) -> Result<LayerId, Refusal> {
        LayerId::parse(&self.id)
    }

    fn parent(&self) -> Result<Option<LayerId>, Refusal> {
        LayerId::parse_parent(self.parent.as_deref().unwrap_or_default())
    }
}

/// The methods that take and give an object.
const METHODS: [&str; 13] = [
    "Init",
    "Capabilities",
    "Create",
    "CreateReadWrite",
    "Remove",
    "Get",
    "Put",
    "Exists",
    "Status",
    "GetMetadata",
    "Cleanup",
    "Changes",
    "DiffSize",
];

fn call(driver: &Driver, method: &str, call: &Call) -> Result<Value, Refusal> {
    let nothing = |()| json!({});
    match method {
        "Init" => init(driver, call).map(nothing),
        // Docker keeps what it needs to write an archive of ours as it was.
        "Capabilities" => Ok(json!({ "Capabilities": { "ReproducesExactDiffs": false } })),
        "Create" => create(driver, call, Kind::Image).map(nothing),
        "CreateReadWrite" => create(driver, call, Kind::Container).map(nothing),
        "Remove" => driver.remove(&call.id()?).map(nothing),
        "Get" => Ok(json!({ "Dir": driver.get(&call.id()?, call.label.as_deref().unwrap_or_default())? })),
        "Put" => driver.put(&call.id()?).map(nothing),
        "Exists" => Ok(json!({ "Exists": driver.exists(&call.id()?)? })),
        "Status" => Ok(json!({ "Status": driver.status() })),
        "GetMetadata" => {
            let pairs = driver.metadata(&call.id()?)?;
            let map: Map<String, Value> =
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
            Ok(json!({ "Metadata": map }))
        }
        "Cleanup" => driver.cleanup().map(nothing),
        "Changes" => {
            let changes = driver.changes(&call.id()?, call.parent()?.as_ref())?;
            let list: Vec<Value> = changes
                .iter()
                .map(|(path, change)| json!({ "Path": path.to_string_lossy(), "Kind": *change as u8 }))
                .collect();
            Ok(json!({ "Changes": list }))
        }
        "DiffSize" => Ok(json!({ "Size": driver.diff_size(&call.id()?, call.parent()?.as_ref())? })),
        other => Err(Refusal::new(format!("there is no method {other}"))),
    }
}

fn init(driver: &Driver, call: &Call) -> Result<(), Refusal> {
    if let Some(option) = call.init_options.iter().flatten().next() {
        return Err(Refusal::new(format!(
            "storage-opts has {option:?}; this driver is configured in {}",
            crate::config::FILE
        )));
    }
    if call.users.iter().chain(&call.groups).any(|map| !map.is_empty()) {
        return Err(Refusal::new("userns-remap is not supported: published layers can't be given to other users"));
    }
    let home = call.home.as_ref().ok_or_else(|| Refusal::new("Docker does not say where its directory is"))?;
    driver.init(home)?;
    tracing::info!(home = %home.display(), "in use by Docker");
    Ok(())
}

fn create(driver: &Driver, call: &Call, kind: Kind) -> Result<(), Refusal> {
    if let Some((option, _)) = call.options.iter().flatten().next() {
        return Err(Refusal::new(format!("the storage option {option:?} is not supported")));
    }
    driver.create(&call.id()?, call.parent()?.as_ref(), kind)
}

/// The routes.
pub fn router(driver: Arc<Driver>) -> Router {
    let mut router = Router::new();
    for method in METHODS {
        let handle = async move |State(driver): State<Arc<Driver>>, request: Request<Body>| -> Response {
            let done = match read::<Call>(request).await {
                Ok(arguments) => blocking(move || call(&driver, method, &arguments)).await,
                Err(refusal) => Err(refusal),
            };
            done.map_or_else(|refusal| refuse(method, &refusal, StatusCode::OK), |value| answer(&value))
        };
        router = router.route(&format!("/GraphDriver.{method}"), post(handle));
    }
    router.route("/GraphDriver.Diff", post(diff)).route("/GraphDriver.ApplyDiff", post(apply)).with_state(driver)
}

#[derive(Debug, Deserialize)]
struct Applied {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parent: String,
}

async fn apply(State(driver): State<Arc<Driver>>, Query(which): Query<Applied>, request: Request<Body>) -> Response {
    let stream = request.into_body().into_data_stream().map_err(io::Error::other);
    let archive = SyncIoBridge::new(Box::pin(StreamReader::new(stream)));
    let done = blocking(move || {
        let mut archive = archive;
        let mut apply = || {
            let (id, parent) = (LayerId::parse(&which.id)?, LayerId::parse_parent(&which.parent)?);
            driver.apply(&id, parent.as_ref(), &mut archive)
        };
        let done = apply();
        if done.is_err() {
            // Docker would take an answer in the middle of its sending for a broken connection, and try again with the rest.
            let _ = io::copy(&mut archive, &mut io::sink());
        }
        done
    })
    .await;
    done.map_or_else(|refusal| refuse("ApplyDiff", &refusal, StatusCode::OK), |size| answer(&json!({ "Size": size })))
}

async fn diff(State(driver): State<Arc<Driver>>, request: Request<Body>) -> Response {
    let (parts, mut stream) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(WAITING);
    let call = match read::<Call>(request).await {
        Ok(call) => call,
        Err(refusal) => return refuse("Diff", &refusal, StatusCode::INTERNAL_SERVER_ERROR),
    };
    let work = blocking(move || {
        let (id, parent) = (call.id()?, call.parent()?);
        let mut sink = Parts { parts: &parts, buffer: Vec::with_capacity(PART) };
        let done = driver.diff(&id, parent.as_ref(), &mut sink);
        let done = done.and_then(|()| sink.flush().map_err(Refusal::of("Docker does not read the archive")));
        if let Err(error) = &done {
            // A connection that breaks off can't be taken for a whole archive.
            let _ = parts.blocking_send(Err(io::Error::other(error.clone())));
        }
        done
    });
    let work = tokio::spawn(work);
    // The status depends on whether there is anything to send.
    match stream.recv().await {
        Some(Ok(first)) => {
            let rest = futures_util::stream::unfold(stream, async |mut stream| Some((stream.recv().await?, stream)));
            let all = futures_util::StreamExt::chain(futures_util::stream::iter([Ok(first)]), rest);
            Response::new(Body::from_stream(all))
        }
        _ => {
            let done = work.await.unwrap_or_else(|panic| Err(Refusal::new(panic.to_string())));
            let refusal = done.err().unwrap_or_else(|| Refusal::new("the archive is empty"));
            refuse("Diff", &refusal, StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// A sink that sends what is written in parts of some size.
struct Parts<'a> {
    parts: &'a tokio::sync::mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PART {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(PART));
        self.parts.blocking_send(Ok(full.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
