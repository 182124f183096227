//! One request to a registry: address, credentials, redirects, time limits, repetition.
//!
//! Invariants
//! - `Authorization` is sent to the configured registry (same scheme, host and port) and nowhere else: once a
//!   redirect or an upload location leaves it, it is dropped and not added again on the way back.
//! - `https` never turns into `http`, by redirect or by location.
//! - Only GET and HEAD follow redirects, ten at most.
//! - No answer is waited for without limit, and no document is read beyond its limit.
//! - Every request to a registry goes through its [`Budget`]: a pause that it asks for holds all of them.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method};
use image::reference::{DOCKER_HUB, Repository};
use reqwest::{Response, Url};
use tokio::time::{sleep, timeout};
use tokio_util::io::ReaderStream;

use crate::auth::{Access, Grant, Grants};
use crate::budget::{Budget, Class};
use crate::challenge::Challenge;
use crate::client::Client;
use crate::error::{Error, Source, said};
use crate::lines::Lines;
use crate::retry::{Attempts, RetryPolicy, Trouble, parse_retry_after};

/// Redirects followed for one request.
const REDIRECTS: usize = 10;
/// So much of an error document is read, in bytes.
const ERROR_LIMIT: u64 = 16 * 1024;
/// The slowest upload we wait for, in bytes a second.
const SLOWEST_UPLOAD: u64 = 64 * 1024;

/// What we know of a registry, shared by all who use it with the same credentials.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) grants: Grants,
    pub(crate) budget: Arc<Budget>,
    pub(crate) lines: Arc<Lines>,
}

/// With which credentials a registry is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Login {
    /// Those that are configured for it, wherever.
    Configured,
    /// Those of this name, if they are for the registry.
    Named(Arc<str>),
    /// A mirror's own.
    Mirror(Option<Arc<str>>),
}

/// One repository of one registry, as it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// as the user named it
    pub(crate) repository: Repository,
    /// the same as text, for messages
    pub(crate) place: String,
    /// path at the registry: behind a proxy it has a prefix
    pub(crate) path: String,
    /// `scheme://host/v2/path/`, for a mirror with `?ns=registry`
    pub(crate) base: Url,
    pub(crate) session: Arc<Session>,
    pub(crate) login: Login,
    /// what is tried again
    pub(crate) retry: RetryPolicy,
}

impl Target {
    /// Is it asked in the place of a registry?
    pub(crate) fn is_mirror(&self) -> bool {
        matches!(self.login, Login::Mirror(_))
    }

    /// `host[:port]` of the registry.
    pub(crate) fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// The address of something in this repository; `tail` starts with `manifests/`, `blobs/` or `tags/`.
    pub(crate) fn url(&self, tail: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{tail}", self.base.path()));
        url
    }
}

/// `scheme://host/v2/path/`
pub(crate) fn base_url(repository: &Repository, host: &str, path: &str) -> Result<Url, Error> {
    let text = format!("{}://{host}/v2/{path}/", repository.scheme());
    Url::parse(&text).map_err(|error| Error::Configuration(format!("{text}: no usable address: {error}")))
}

/// The same at a mirror, which hears which registry is meant. A path of its own goes before the name of the image.
pub(crate) fn mirror_url(mirror: &Url, repository: &Repository) -> Result<Url, Error> {
    let unusable = || Error::Configuration(format!("{}: no usable address of a mirror", shown(mirror)));
    let prefix = mirror.path().trim_matches('/');
    let separator = if prefix.is_empty() { "" } else { "/" };
    let below = format!("/v2/{prefix}{separator}{}/", repository.path());
    let mut url = mirror.join(&below).map_err(|_| unusable())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(unusable());
    }
    let registry = match repository.registry_host() {
        DOCKER_HUB => "docker.io",
        host => host,
    };
    url.query_pairs_mut().append_pair("ns", registry);
    Ok(url)
}

/// Scheme, host and port: all that messages tell of an address, for queries and paths can hold signatures.
pub(crate) fn shown(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// What is sent along; can be sent again.
#[derive(Debug)]
pub(crate) enum Body {
    Empty,
    Bytes(Bytes),
    File { path: PathBuf, size: u64 },
}

impl Body {
    fn size(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

/// One request, before authentication.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: &'a Body,
    /// the only origin that may see `Authorization`
    pub(crate) home: url::Origin,
    pub(crate) lines: &'a Lines,
    pub(crate) place: &'a str,
    pub(crate) what: &'a str,
}

/// What came back from the last hop.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// it isn't the registry who answers
    foreign: bool,
}

/// An error, and whether to try again.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) trouble: Trouble,
}

impl Failure {
    pub(crate) fn last(error: Error) -> Self {
        Self { error, trouble: Trouble::Final }
    }

    pub(crate) fn line(place: &str, what: &str, host: String, source: impl Into<Source>) -> Self {
        let error = Error::Transport { place: place.to_owned(), what: what.to_owned(), host, source: source.into() };
        Self { error, trouble: Trouble::Line }
    }

    pub(crate) fn from_status(response: &Response, place: &str, what: &str, said: String) -> Self {
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| parse_retry_after(value, SystemTime::now()));
        let (place, what) = (place.to_owned(), what.to_owned());
        let code = response.status().as_u16();
        let error = match code {
            404 => Error::NotFound { place, what, said },
            429 => Error::RateLimited { place, what, retry_after },
            status => Error::Status { place, what, status, said },
        };
        Self { error, trouble: Trouble::Status { code, retry_after } }
    }

    fn from_reqwest(error: reqwest::Error, place: &str, what: &str, url: &Url) -> Self {
        let error = error.without_url();
        let host = shown(url);
        if is_tls(&error) {
            return Self::last(Error::Tls {
                place: place.to_owned(),
                what: what.to_owned(),
                host,
                source: error.into(),
            });
        }
        let mut failure = Self::line(place, what, host, error);
        if matches!(&failure.error, Error::Transport { source, .. } if is_ours(source.as_ref())) {
            failure.trouble = Trouble::Final;
        }
        failure
    }
}

/// Did the TLS library refuse, not the network? `io::Error` hides what it wraps from `source()`, so look inside.
fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>() || inside.is_some_and(|inside| is_tls(inside)) || error.source().is_some_and(is_tls)
}

/// Is it the request that can't be made (a bug or a hostile address), not the line?
fn is_ours(error: &(dyn StdError + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_builder)
}

/// One request with authentication and repetition.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) target: &'a Target,
    pub(crate) access: Access,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// for messages: "manifest 1.0", "blob sha256:…"
    pub(crate) what: &'a str,
}

impl<'a> Call<'a> {
    pub(crate) fn get(target: &'a Target, url: Url, what: &'a str) -> Self {
        Self {
            target,
            access: Access::Pull,
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Body::Empty,
            what,
        }
    }

    /// What registries count apart.
    fn class(&self) -> Option<Class> {
        if self.method != Method::GET {
            return None;
        }
        let tail = self.url.path().strip_prefix(self.target.base.path())?;
        Some(match tail.split('/').next()? {
            "manifests" => Class::Manifests,
            "blobs" => Class::Blobs,
            _ => Class::Tags,
        })
    }
}

impl Client {
    /// Makes the call, several times if need be; answers with a success status only.
    pub(crate) async fn call(&self, call: &Call<'_>, attempts: &mut Attempts) -> Result<Response, Error> {
        loop {
            match Box::pin(self.attempt(call)).await {
                Ok(response) => return Ok(response),
                Err(failure) => self.pause(attempts, failure, &call.target.session).await?,
            }
        }
    }

    /// Makes the call once; twice when the registry asks who we are.
    pub(crate) async fn attempt(&self, call: &Call<'_>) -> Result<Response, Failure> {
        let Call { target, what, .. } = call;
        let request = Request {
            method: call.method.clone(),
            url: call.url.clone(),
            headers: call.headers.clone(),
            body: &call.body,
            home: target.base.origin(),
            lines: &target.session.lines,
            place: &target.place,
            what,
        };
        let grant = self.grant(target, call.access, None).await.map_err(Failure::last)?;
        let answer = self.admitted(call, &request, grant.as_ref()).await?;
        if answer.response.status() != 401 || answer.foreign {
            return self.accept(call, answer, grant.as_ref()).await;
        }
        let challenge = Challenge::choose(answer.response.headers()).map_err(|reason| {
            Failure::last(target.unauthorized(what, format!("the registry answers 401, but {reason}")))
        })?;
        drop(answer);
        let newer = self.grant(target, call.access, Some((challenge, grant.clone()))).await.map_err(Failure::last)?;
        if grant.is_some() && grant.as_ref().map(|old| &old.header) == newer.as_ref().map(|new| &new.header) {
            return Err(Failure::last(target.unauthorized(what, refusal(newer.as_ref(), 401, ""))));
        }
        let answer = self.admitted(call, &request, newer.as_ref()).await?;
        self.accept(call, answer, newer.as_ref()).await
    }

    /// Sends the request when its turn has come.
    async fn admitted(&self, call: &Call<'_>, request: &Request<'_>, grant: Option<&Grant>) -> Result<Answer, Failure> {
        let (budget, class) = (&call.target.session.budget, call.class());
        let admission = budget.admit(class, call.target.retry.longest_wait).await.map_err(|wait| {
            let (place, what) = (request.place.to_owned(), request.what.to_owned());
            Failure::last(Error::RateLimited { place, what, retry_after: Some(wait) })
        })?;
        let answer = self.send(request, grant.map(|grant| &grant.header)).await?;
        drop(admission);
        if !answer.foreign && !matches!(answer.response.status().as_u16(), 429 | 503) {
            budget.answered(class, answer.response.headers());
        }
        Ok(answer)
    }

    /// A success, or what the status means.
    async fn accept(&self, call: &Call<'_>, answer: Answer, grant: Option<&Grant>) -> Result<Response, Failure> {
        let Call { target, what, .. } = call;
        let Answer { response, foreign } = answer;
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let from = shown(response.url());
        let mut failure = Failure::from_status(&response, &target.place, what, String::new());
        let words = match self.bounded(response, ERROR_LIMIT, &target.place, what).await {
            Ok(body) => said(&body, grant.and_then(Grant::secret)),
            Err(_) => String::new(),
        };
        match &mut failure.error {
            error if matches!(status, 401 | 403) => {
                let refusal = if foreign {
                    format!("{from}, to which the registry points, answers {status}")
                } else {
                    refusal(grant, status, &words)
                };
                *error = target.unauthorized(what, refusal);
            }
            Error::NotFound { said, .. } | Error::Status { said, .. } => *said = words,
            _ => {}
        }
        Err(failure)
    }

    /// Waits before the next attempt, or gives the error back. A registry that asks for a pause gets one from everybody.
    pub(crate) async fn pause(
        &self,
        attempts: &mut Attempts,
        failure: Failure,
        session: &Session,
    ) -> Result<(), Error> {
        let delay = attempts.next(failure.trouble);
        let asks = match failure.trouble {
            Trouble::Status { code: 429, retry_after } => Some(retry_after),
            Trouble::Status { retry_after: Some(wait), .. } => Some(Some(wait)),
            _ => None,
        };
        if let Some(asked) = asks {
            let wait = [asked, delay].into_iter().flatten().max().unwrap_or(attempts.longest_delay());
            tracing::info!(error = %failure.error, wait_ms = wait.as_millis() as u64, "a registry asks for a pause");
            session.budget.pause(wait);
        }
        let Some(delay) = delay else { return Err(failure.error) };
        tracing::debug!(error = %failure.error, delay_ms = delay.as_millis() as u64, "trying again");
        sleep(delay).await;
        Ok(())
    }

    /// One round: the request and its redirects.
    pub(crate) async fn send(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let Request { place, what, .. } = *request;
        let idle = self.config().idle_timeout;
        let limit = idle + Duration::from_secs(request.body.size() / SLOWEST_UPLOAD);
        let mut url = request.url.clone();
        let mut foreign = false;
        for _ in 0..=REDIRECTS {
            foreign |= url.origin() != request.home;
            let mut builder = request.lines.for_url(&url).request(request.method.clone(), url.clone());
            builder = builder.headers(request.headers.clone());
            if let Some(authorization) = authorization.filter(|_| !foreign) {
                builder = builder.header(AUTHORIZATION, authorization.clone());
            }
            builder = match request.body {
                Body::Empty if request.method == Method::GET || request.method == Method::HEAD => builder,
                Body::Empty => builder.header(CONTENT_LENGTH, 0),
                Body::Bytes(bytes) => builder.body(bytes.clone()),
                Body::File { path, size } => {
                    let opened = tokio::fs::File::open(path).await;
                    let file = opened.map_err(|source| Failure::last(Error::Io { path: path.clone(), source }))?;
                    let stream = ReaderStream::with_capacity(file, 256 * 1024);
                    builder.header(CONTENT_LENGTH, *size).body(reqwest::Body::wrap_stream(stream))
                }
            };
            let response = match timeout(limit, builder.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(Failure::from_reqwest(error, place, what, &url)),
                Err(_) => {
                    return Err(Failure::line(
                        place,
                        what,
                        shown(&url),
                        format!("no answer for {} s", limit.as_secs()),
                    ));
                }
            };
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, foreign });
            }
            if request.method != Method::GET && request.method != Method::HEAD {
                return Err(Failure::last(Error::Protocol {
                    place: place.to_owned(),
                    what: what.to_owned(),
                    reason: format!("{} redirects a {}, which is not followed", shown(&url), request.method),
                }));
            }
            url = location(&url, response.headers(), place, what).map_err(Failure::last)?;
        }
        let reason = format!("more than {REDIRECTS} redirects");
        Err(Failure::last(Error::Protocol { place: place.to_owned(), what: what.to_owned(), reason }))
    }

    /// The whole body, if it is not longer than `limit` bytes.
    pub(crate) async fn bounded(
        &self,
        mut response: Response,
        limit: u64,
        place: &str,
        what: &str,
    ) -> Result<Bytes, Failure> {
        let too_large = || Error::TooLarge { place: place.to_owned(), what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(Failure::last(too_large()));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut response, place, what).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(Failure::last(too_large()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The next part of a body; `None` at its end.
    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
        place: &str,
        what: &str,
    ) -> Result<Option<Bytes>, Failure> {
        let idle = self.config().idle_timeout;
        match timeout(idle, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Failure::from_reqwest(error, place, what, &response.url().clone())),
            Err(_) => {
                let why = format!("no bytes for {} s", idle.as_secs());
                Err(Failure::line(place, what, shown(response.url()), why))
            }
        }
    }

    /// Makes the call and reads the whole answer, which is a document of at most `limit` bytes.
    pub(crate) async fn document(&self, call: &Call<'_>, limit: u64) -> Result<(HeaderMap, Url, Bytes), Error> {
        let mut attempts = Attempts::new(&call.target.retry);
        loop {
            let response = self.call(call, &mut attempts).await?;
            let (headers, url) = (response.headers().clone(), response.url().clone());
            match self.bounded(response, limit, &call.target.place, call.what).await {
                Ok(body) => return Ok((headers, url, body)),
                Err(failure) => self.pause(&mut attempts, failure, &call.target.session).await?,
            }
        }
    }
}

/// Who was refused, as far as it can be told.
fn refusal(grant: Option<&Grant>, status: u16, said: &str) -> String {
    let who =
        if grant.is_some_and(|grant| grant.identified) { "the configured credentials" } else { "anonymous access" };
    format!("{status}{said} for {who}")
}

/// Where a `Location` header points, if we may go there.
pub(crate) fn location(from: &Url, headers: &HeaderMap, place: &str, what: &str) -> Result<Url, Error> {
    let protocol = |reason: String| Error::Protocol { place: place.to_owned(), what: what.to_owned(), reason };
    let text = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| protocol(format!("{} points elsewhere without saying where", shown(from))))?;
    let bad = || protocol(format!("{} points to an address that can't be used", shown(from)));
    let mut url = from.join(text).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(bad());
    }
    // an address must not bring credentials of its own
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err(bad());
    }
    if from.scheme() == "https" && url.scheme() == "http" {
        let reason = format!("{} points to {}", shown(from), shown(&url));
        return Err(Error::Downgrade { place: place.to_owned(), what: what.to_owned(), reason });
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(from: &str, to: &str) -> Result<String, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(to).unwrap());
        location(&Url::parse(from).unwrap(), &headers, "place", "what").map(|url| url.to_string())
    }

    #[test]
    fn goes_only_where_a_location_may_point() {
        for (from, to, expected) in [
            ("http://a/v2/x", "/y?z=1", Some("http://a/y?z=1")),
            ("http://a/v2/x", "https://b/y", Some("https://b/y")),
            ("https://a/v2/x", "//b/y", Some("https://b/y")),
            ("https://a/v2/x", "https://user:secret@b/y", Some("https://b/y")),
            ("http://a/v2/x", "file:///etc/passwd", None),
            ("http://a/v2/x", "http://", None),
        ] {
            assert_eq!(follow(from, to).ok().as_deref(), expected, "{from} {to}");
        }
        assert!(matches!(follow("https://a/x", "http://a/x"), Err(Error::Downgrade { .. })));
        assert!(location(&Url::parse("http://a").unwrap(), &HeaderMap::new(), "p", "w").is_err());
    }

    #[test]
    fn finds_the_tls_error_inside_an_io_error() {
        let tls = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::UnsupportedNameType);
        assert!(is_tls(&io::Error::other(tls)));
        assert!(!is_tls(&io::Error::other("reset")));
    }
}
