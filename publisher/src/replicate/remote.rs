//! The server that is copied from: one GET after another until the right bytes have come.
//!
//! Callers are ordinary threads; only sockets live in the asynchronous runtime. A thread drives its own request, so
//! bytes are hashed and written where they are waited for and nothing queues up in memory.
//!
//! Invariants
//! - No answer is waited for without limit: connecting, silence and crawling each have theirs.
//! - Who takes the bytes ([`Sink`]) decides whether they are right. Wrong ones are asked for once more past all caches,
//!   then never again.
//! - What is tried again, and after which pause, is the rule of [`registry::retry`].

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cvmfs::hash::ObjectId;
use cvmfs::object::{Compression, decode};
use registry::RetryPolicy;
use registry::retry::{Trouble, parse_retry_after};
use reqwest::header::{CACHE_CONTROL, HeaderValue, PRAGMA, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::error::ReplicateError;

/// Slower than this on average over the time that silence may take, a transfer is given up: bytes a second.
const CRAWL: u64 = 1024;

/// How patient we are with a server.
#[derive(Debug, Clone)]
pub struct Patience {
    /// For a connection to be made.
    pub connect: Duration,
    /// Without a byte.
    pub silence: Duration,
    /// Attempts and the pauses between them.
    pub retry: RetryPolicy,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            retry: RetryPolicy { longest_delay: Duration::from_secs(10), ..RetryPolicy::default() },
        }
    }
}

/// Takes the bytes of one answer.
pub(super) trait Sink {
    /// Forgets everything: an attempt begins.
    fn restart(&mut self) -> Result<(), SinkError>;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// The answer is complete.
    fn finish(&mut self) -> Result<(), SinkError>;
}

/// Why a sink does not go on.
#[derive(Debug)]
pub(super) enum SinkError {
    /// These are not the bytes that were asked for.
    Wrong(String),
    /// Something is wrong on this machine.
    Local(ReplicateError),
}

/// Takes a document of bounded size into memory.
#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    limit: usize,
}

impl Sink for Memory {
    fn restart(&mut self) -> Result<(), SinkError> {
        self.bytes.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(SinkError::Wrong(format!("longer than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Takes a small object into memory, as it is stored and plain.
struct Small {
    id: ObjectId,
    stored: Memory,
    plain: Vec<u8>,
}

impl Sink for Small {
    fn restart(&mut self) -> Result<(), SinkError> {
        self.stored.restart()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.stored.write(bytes)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let plain = decode(self.id, Compression::Zlib, &self.stored.bytes, self.stored.limit as u64);
        self.plain = plain.map_err(|e| SinkError::Wrong(e.to_string()))?;
        Ok(())
    }
}

/// What has gone over the wire.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) requests: AtomicU64,
    /// Bytes of bodies, those of failed attempts included.
    pub(super) bytes: AtomicU64,
}

/// Why one attempt failed.
enum Failed {
    Missing,
    Trouble(Trouble, String),
    Wrong(String),
    Local(ReplicateError),
}

/// A repository on a server.
#[derive(Debug)]
pub(super) struct Remote {
    runtime: Runtime,
    client: reqwest::Client,
    base: String,
    patience: Patience,
    /// Nobody needs anything any more.
    stopped: AtomicBool,
    pub(super) traffic: Arc<Traffic>,
}

impl Remote {
    /// The repository at `url`, with that many connections at most kept open.
    pub(super) fn new(
        url: &Url,
        proxy: Option<&str>,
        connections: usize,
        patience: Patience,
    ) -> Result<Remote, ReplicateError> {
        // Err means that somebody in this process installed a provider before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = |error: reqwest::Error| ReplicateError::Http(error.into());
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("cvmfs-publisher/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(connections)
            .connect_timeout(patience.connect)
            .redirect(reqwest::redirect::Policy::limited(4))
            .referer(false);
        if let Some(proxy) = proxy {
            builder = builder.no_proxy().proxy(reqwest::Proxy::all(proxy).map_err(http)?);
        }
        if url.scheme() == "http" && !proxy.is_some_and(|p| p.starts_with("https:")) {
            // Nothing needs the system's certificates, so a machine without any will do.
            builder = builder.tls_certs_only([]);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Ok(Remote {
            runtime: runtime.map_err(|e| ReplicateError::Http(e.into()))?,
            client: builder.build().map_err(http)?,
            base: url.as_str().trim_end_matches('/').to_owned(),
            patience,
            stopped: AtomicBool::new(false),
            traffic: Arc::default(),
        })
    }

    /// The address of the repository.
    pub(super) fn url(&self) -> &str {
        &self.base
    }

    /// Ends transfers with the next piece that comes, and begins no further attempts.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Gets a document of at most `limit` bytes into memory.
    pub(super) fn document(&self, name: &str, limit: usize) -> Result<Vec<u8>, ReplicateError> {
        let mut sink = Memory { bytes: Vec::new(), limit };
        self.get(name, &|| name.to_owned(), &mut sink)?;
        Ok(sink.bytes)
    }

    /// Gets a compressed object of at most `limit` bytes, stored or plain, into memory: its stored and its plain form.
    pub(super) fn small_object(&self, id: ObjectId, limit: usize) -> Result<(Vec<u8>, Vec<u8>), ReplicateError> {
        let mut sink = Small { id, stored: Memory { bytes: Vec::new(), limit }, plain: Vec::new() };
        self.get(&id.path(), &|| format!("object {id}"), &mut sink)?;
        Ok((sink.stored.bytes, sink.plain))
    }

    /// Gets `path`; `what` names it in messages.
    pub(super) fn get(&self, path: &str, what: &dyn Fn() -> String, sink: &mut dyn Sink) -> Result<(), ReplicateError> {
        self.runtime.block_on(self.attempts(path, what, sink))
    }

    async fn attempts(&self, path: &str, what: &dyn Fn() -> String, sink: &mut dyn Sink) -> Result<(), ReplicateError> {
        let url = format!("{}/{path}", self.base);
        let (mut failed, mut past_caches) = (0, false);
        loop {
            match self.attempt(&url, past_caches, sink).await {
                Ok(()) => return Ok(()),
                Err(Failed::Missing) => return Err(ReplicateError::Missing { what: what(), url }),
                Err(Failed::Local(error)) => return Err(error),
                Err(Failed::Wrong(reason)) if past_caches => {
                    return Err(ReplicateError::Wrong { what: what(), url, reason });
                }
                Err(Failed::Wrong(reason)) => {
                    tracing::warn!(url, reason, "wrong bytes; asking again past all caches");
                    past_caches = true;
                }
                Err(Failed::Trouble(trouble, reason)) => {
                    failed += 1;
                    let trouble = if self.stopped.load(Ordering::Relaxed) { Trouble::Final } else { trouble };
                    let Some(pause) = self.patience.retry.delay(failed, trouble, fastrand::f64()) else {
                        let reason = format!("{reason} ({failed} attempts)");
                        return Err(ReplicateError::Transfer { what: what(), url, reason });
                    };
                    tracing::debug!(url, reason, pause_ms = pause.as_millis() as u64, "trying again");
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn attempt(&self, url: &str, past_caches: bool, sink: &mut dyn Sink) -> Result<(), Failed> {
        let silence = self.patience.silence;
        let mut request = self.client.get(url);
        if past_caches {
            let no_cache = HeaderValue::from_static("no-cache");
            request = request.header(PRAGMA, no_cache.clone()).header(CACHE_CONTROL, no_cache);
        }
        sink.restart().map_err(refused)?;
        self.traffic.requests.fetch_add(1, Ordering::Relaxed);
        // The connection has its own limit; the head of the answer gets the same as every piece of it.
        let answer = timeout(self.patience.connect + silence, request.send()).await;
        let mut answer = answer.map_err(|_| silent(silence))?.map_err(|e| line(&e))?;
        let status = answer.status();
        if status != StatusCode::OK {
            if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
                return Err(Failed::Missing);
            }
            let retry_after = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
            let retry_after = retry_after.and_then(|v| parse_retry_after(v, SystemTime::now()));
            let trouble = Trouble::Status { code: status.as_u16(), retry_after };
            return Err(Failed::Trouble(trouble, format!("the server answers {status}")));
        }
        let (mut since, mut window) = (Instant::now(), 0);
        loop {
            let piece = timeout(silence, answer.chunk()).await.map_err(|_| silent(silence))?;
            let Some(piece) = piece.map_err(|e| line(&e))? else { break };
            self.traffic.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            window += piece.len() as u64;
            sink.write(&piece).map_err(refused)?;
            if self.stopped.load(Ordering::Relaxed) {
                return Err(Failed::Trouble(Trouble::Final, "another transfer failed".to_owned()));
            }
            let elapsed = since.elapsed();
            if elapsed > silence {
                if window < CRAWL.saturating_mul(elapsed.as_secs()) {
                    return Err(Failed::Trouble(Trouble::Line, format!("slower than {CRAWL} bytes a second")));
                }
                (since, window) = (Instant::now(), 0);
            }
        }
        sink.finish().map_err(refused)
    }
}

fn refused(error: SinkError) -> Failed {
    match error {
        SinkError::Wrong(reason) => Failed::Wrong(reason),
        SinkError::Local(error) => Failed::Local(error),
    }
}

fn silent(limit: Duration) -> Failed {
    Failed::Trouble(Trouble::Line, format!("nothing came for {} s", limit.as_secs_f32()))
}

fn line(error: &reqwest::Error) -> Failed {
    // The address stands in the message already; what went wrong is at the end of the chain.
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        reason = next.to_string();
        cause = next.source();
    }
    Failed::Trouble(if error.is_builder() { Trouble::Final } else { Trouble::Line }, reason)
}
