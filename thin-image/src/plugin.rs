//! The rim of Docker's legacy plugins: a socket on which HTTP calls with JSON bodies come, one path a method.
//!
//! | call | answer |
//! |---|---|
//! | `/Plugin.Activate` | what the plugin implements |
//! | `/GraphDriver.*`, `/VolumeDriver.*` | an object; what went wrong is its `Err` |
//! | any other | 404, by which Docker knows a plugin that is older than the method |
//!
//! Docker tries a call again for half a minute when the connection breaks, so a restart of the plugin is not seen by it. It tries calls
//! again whose answer was lost, too: every method can be called twice. Work that blocks runs in threads of its own.

use std::fmt::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::signals::Signals;

/// Where Docker finds the plugin called `cvmfs`.
pub const SOCKET: &str = "/run/docker/plugins/cvmfs.sock";
/// What the plugins remember over restarts.
pub const STATE: &str = "/var/lib/thin-image";
/// Longest request that is read, but for archives.
const MAX_REQUEST: usize = 1 << 20;
/// What running requests get after a signal.
const GRACE: Duration = Duration::from_secs(10);
/// What Docker expects of answers.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Why a call failed, for whoever sits before Docker: what, where, what next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

impl Refusal {
    /// With its whole text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// An error with its causes, for `map_err`.
    pub fn of<E: std::error::Error>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let mut text = doing.into();
        move |error| {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(error) = cause {
                let said = error.to_string();
                if !text.ends_with(&said) {
                    let _ = write!(text, ": {said}");
                }
                cause = error.source();
            }
            Self(text)
        }
    }
}

/// The answer to a call that went well.
pub fn answer(value: &Value) -> Response {
    respond(StatusCode::OK, value)
}

/// The answer to a call that failed. Docker looks for `Err` whatever the status; where a stream is the answer it needs the status.
pub fn refuse(method: &str, refusal: &Refusal, status: StatusCode) -> Response {
    tracing::warn!(method, error = %refusal, "refused");
    respond(status, &json!({ "Err": refusal.to_string() }))
}

fn respond(status: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    response
}

/// The object in a request. Docker sends no body at all with some methods.
pub async fn read<T: DeserializeOwned>(request: Request<Body>) -> Result<T, Refusal> {
    let bytes = axum::body::to_bytes(request.into_body(), MAX_REQUEST).await;
    let bytes = bytes.map_err(|error| Refusal::new(format!("the request can't be read: {error}")))?;
    let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { &b"{}"[..] } else { &bytes[..] };
    serde_json::from_slice(bytes).map_err(|error| Refusal::new(format!("the request can't be read: {error}")))
}

/// Does blocking work for a call.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(Refusal::new(format!("the plugin failed: {panic}; this is a defect of it"))))
}

/// The method with which Docker begins.
pub fn activate(implements: &'static [&'static str]) -> Router {
    Router::new().route("/Plugin.Activate", post(move || async move { answer(&json!({ "Implements": implements })) }))
}

/// Serves on a socket until a signal comes; running requests get a few seconds.
pub async fn serve(router: Router, socket: &Path) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let listener = match inherited()? {
        Some(listener) => listener,
        None => listen(socket)?,
    };
    tracing::info!(socket = %socket.display(), "ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // The socket stays: Docker asks again until the next process answers, and one without a socket it would forget.
    Ok(signals.serve(listener, router, GRACE).await?)
}

/// The socket that systemd holds for us, if it does.
fn inherited() -> anyhow::Result<Option<UnixListener>> {
    let mut handed = listenfd::ListenFd::from_env();
    let Some(listener) = handed.take_unix_listener(0).context("systemd handed over something that is no socket")?
    else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(UnixListener::from_std(listener)?))
}

/// A socket for root alone; one that an ended process left behind is replaced, one that is answered is not.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let directory = path.parent().context("a socket needs a directory")?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process answers on {}; is this plugin running already?", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_replaced_only_if_nobody_answers_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plugins/x.sock");
        let first = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap_err().to_string().contains("another process"));
        drop(first);
        listen(&path).unwrap();
    }

    #[test]
    fn causes_are_in_the_text_once() {
        let error = std::io::Error::other("no space");
        assert_eq!(Refusal::of("cannot write x")(error).to_string(), "cannot write x: no space");
    }
}
