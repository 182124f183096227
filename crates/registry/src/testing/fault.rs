//! What goes wrong, where, and how often.
//!
//! A fault applies to GET requests whose path contains [`Fault::on`], once, unless told otherwise. Requests that lack
//! authentication don't use it up. Faults of one kind that are given in a row happen in that order; different kinds
//! happen together, unless one takes the place of the answer.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::header::{CONTENT_LENGTH, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Request, StatusCode};

/// A scripted fault. `Fault::status(503).on("/manifests/").times(2)`.
#[derive(Debug, Clone)]
pub struct Fault {
    method: Option<&'static str>,
    path: String,
    left: usize,
    action: Action,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Status { code: u16, retry_after: Option<String>, body: String },
    Redirect(String),
    Stall,
    Late(Duration),
    IgnoreRange,
    CutAfter(usize),
    Shorten(usize),
    Corrupt,
    Slow { bytes: usize, pause: Duration },
    Header(String, Option<String>),
}

impl Fault {
    fn new(action: Action) -> Self {
        Self { method: Some("GET"), path: "/".to_owned(), left: 1, action }
    }

    /// Answers with this status.
    pub fn status(code: u16) -> Self {
        Self::new(Action::Status { code, retry_after: None, body: String::new() })
    }

    /// Answers with this status and this body.
    pub fn status_with_body(code: u16, body: &str) -> Self {
        Self::new(Action::Status { code, retry_after: None, body: body.to_owned() })
    }

    /// Answers with this status and this `Retry-After`: seconds or a date.
    pub fn retry_after(code: u16, value: &str) -> Self {
        Self::new(Action::Status { code, retry_after: Some(value.to_owned()), body: String::new() })
    }

    /// Redirects (307) to the same path at another address, scheme and host.
    pub fn redirect_to(base: &str) -> Self {
        Self::new(Action::Redirect(base.to_owned()))
    }

    /// Never answers.
    pub fn stall() -> Self {
        Self::new(Action::Stall)
    }

    /// Answers after so long.
    pub fn late(by: Duration) -> Self {
        Self::new(Action::Late(by))
    }

    /// Takes no notice of `Range`: sends all, with status 200.
    pub fn ignore_range() -> Self {
        Self::new(Action::IgnoreRange)
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_after(bytes: usize) -> Self {
        Self::new(Action::CutAfter(bytes))
    }

    /// Sends so many bytes less, and says so.
    pub fn shorten(bytes: usize) -> Self {
        Self::new(Action::Shorten(bytes))
    }

    /// Changes one byte in the middle of the body.
    pub fn corrupt() -> Self {
        Self::new(Action::Corrupt)
    }

    /// Sends `bytes` at a time with a pause after each.
    pub fn slow(bytes: usize, pause: Duration) -> Self {
        Self::new(Action::Slow { bytes: bytes.max(1), pause })
    }

    /// Sets a header of the answer.
    pub fn header(name: &str, value: &str) -> Self {
        Self::new(Action::Header(name.to_owned(), Some(value.to_owned())))
    }

    /// Leaves a header of the answer out.
    pub fn without_header(name: &str) -> Self {
        Self::new(Action::Header(name.to_owned(), None))
    }

    /// Only for paths (with query) that contain this.
    pub fn on(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// For this method instead of GET.
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// For all methods.
    pub fn any_method(mut self) -> Self {
        self.method = None;
        self
    }

    /// So many times.
    pub fn times(mut self, times: usize) -> Self {
        self.left = times;
        self
    }

    /// For ever.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }
}

impl Action {
    /// Does it take the place of the answer?
    fn replaces(&self) -> bool {
        matches!(self, Self::Status { .. } | Self::Redirect(_) | Self::Stall)
    }

    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Header(one, _), Self::Header(other, _)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Takes what applies to this request, and counts it: the first fault that replaces the answer, else the first of
/// each kind. So faults that are given in a row happen in that order.
pub(super) fn take(faults: &mut [Fault], method: &str, path: &str) -> Vec<Action> {
    let applies =
        |fault: &Fault| fault.left > 0 && fault.method.is_none_or(|m| m == method) && path.contains(&fault.path);
    let alone = faults.iter().any(|fault| applies(fault) && fault.action.replaces());
    let mut taken: Vec<Action> = Vec::new();
    for fault in faults.iter_mut().filter(|fault| applies(fault)) {
        if fault.action.replaces() != alone || taken.iter().any(|action| alone || action.is_like(&fault.action)) {
            continue;
        }
        if fault.left != usize::MAX {
            fault.left -= 1;
        }
        taken.push(fault.action.clone());
    }
    taken
}

/// The faults that act before the request is looked at: an answer in its place, or a changed request.
pub(super) async fn before(actions: &[Action], request: &mut Request<Bytes>) -> Option<Response> {
    for action in actions {
        match action {
            Action::Status { code, retry_after, body } => {
                let mut response = Response::new(Body::from(body.clone()));
                *response.status_mut() = StatusCode::from_u16(*code).expect("the test gives a status");
                if let Some(value) = retry_after {
                    response.headers_mut().insert(RETRY_AFTER, header(value));
                }
                return Some(response);
            }
            Action::Redirect(base) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
                response.headers_mut().insert(LOCATION, header(&format!("{base}{}", request.uri())));
                return Some(response);
            }
            Action::Stall => std::future::pending::<()>().await,
            Action::Late(by) => tokio::time::sleep(*by).await,
            Action::IgnoreRange => {
                request.headers_mut().remove(http::header::RANGE);
            }
            _ => {}
        }
    }
    None
}

/// The faults that act on the answer.
pub(super) fn after(actions: Vec<Action>, response: Response<Bytes>) -> Response {
    let (mut head, mut body) = response.into_parts();
    let mut cut = None;
    let mut slow = None;
    for action in actions {
        match action {
            Action::Shorten(bytes) => {
                body.truncate(body.len().saturating_sub(bytes));
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
            Action::Corrupt => {
                let mut bytes = body.to_vec();
                let middle = bytes.len() / 2;
                if let Some(byte) = bytes.get_mut(middle) {
                    *byte ^= 1;
                }
                body = bytes.into();
            }
            Action::CutAfter(bytes) => cut = Some(bytes),
            Action::Slow { bytes, pause } => slow = Some((bytes, pause)),
            Action::Header(name, value) => {
                let name = HeaderName::try_from(name).expect("the test names a header");
                head.headers.remove(&name);
                if let Some(value) = value {
                    head.headers.insert(name, header(&value));
                }
            }
            _ => {}
        }
    }
    let body = match (cut, slow) {
        (Some(cut), _) => {
            let start = body.slice(..cut.min(body.len()));
            // the server flushes what it has before it meets the error
            let error = async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(io::Error::other("cut"))
            };
            Body::from_stream(stream::iter([Ok(start)]).chain(stream::once(error)))
        }
        (None, Some((bytes, pause))) => {
            let parts: Vec<_> = body.chunks(bytes).map(Bytes::copy_from_slice).collect();
            Body::from_stream(stream::iter(parts).then(move |part| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(part)
            }))
        }
        (None, None) => Body::from(body),
    };
    Response::from_parts(head, body)
}

fn header(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("the test gives a header value")
}
