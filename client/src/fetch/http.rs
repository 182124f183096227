//! One GET after another until one succeeds: connections, timeouts, classification of failures.
//!
//! Callers are ordinary threads; only the sockets live in the asynchronous runtime. A caller drives its own
//! request, so bytes are hashed, inflated and written where they are waited for and nothing queues up in
//! memory. Connections are kept alive and shared by all requests through the same proxy.
//!
//! Facts: 400, 404 and 5xx are the server's fault unless the answer says that a proxy made it
//! (`X-Squid-Error`, `Proxy-Status: …error=`); other answers than 2xx are charged to the proxy, if there is
//! one. Data that does not verify is asked for once more past all caches, then counts against the server.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{CACHE_CONTROL, HeaderMap, HeaderValue, PRAGMA, RANGE};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::route::{Fault, Next, Route, Routes};
use crate::config::{Network, NetworkLimits};
use crate::stats::Stats;

/// Requests that run at the same time; more wait for their turn.
const MAX_IN_FLIGHT: usize = 64;
/// Idle connections kept for each server or proxy.
const KEEP_ALIVE: usize = 16;

/// Takes the bytes of one answer.
pub trait Sink {
    /// Forgets everything: a new attempt begins.
    fn restart(&mut self) -> Result<(), SinkError>;
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError>;
    /// The answer is complete.
    fn finish(&mut self) -> Result<(), SinkError>;
}

/// Why a sink refuses bytes.
#[derive(Debug)]
pub enum SinkError {
    /// The bytes are wrong; another server may have the right ones.
    Corrupt(String),
    /// Something is wrong here; no server can help.
    Local(Box<dyn std::error::Error + Send + Sync>),
}

/// A request that no server answered properly.
#[derive(Debug)]
pub struct TransportError {
    /// What was asked for last.
    pub url: String,
    /// Why the last attempt failed.
    pub reason: String,
    /// The bytes came and were wrong.
    pub corrupt: bool,
    /// The failure is on this machine.
    pub local: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.reason)
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.local.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

enum Failure {
    Network(Fault, String),
    Corrupt(String),
    Local(Box<dyn std::error::Error + Send + Sync>),
}

/// HTTP access to the servers of one kind of data.
#[derive(Debug)]
pub struct Transport {
    runtime: tokio::runtime::Handle,
    routes: Routes,
    clients: Mutex<HashMap<Option<String>, reqwest::Client>>,
    in_flight: Semaphore,
    stats: Arc<Stats>,
}

impl Transport {
    /// Access through `network`; sockets are served by `runtime`.
    pub fn new(
        network: Network,
        limits: NetworkLimits,
        runtime: tokio::runtime::Handle,
        stats: Arc<Stats>,
    ) -> Transport {
        // Err means that somebody in this process installed a provider before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let routes = Routes::new(network, limits);
        Transport { runtime, routes, clients: Mutex::default(), in_flight: Semaphore::new(MAX_IN_FLIGHT), stats }
    }

    /// Servers, proxies and their state.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Gets `path` (relative to the server URL, already escaped), or `range` (first byte, length) of it.
    pub fn get(&self, path: &str, range: Option<(u64, u64)>, sink: &mut dyn Sink) -> Result<(), TransportError> {
        let started = Instant::now();
        let result = self.runtime.block_on(self.run(path, range, sink));
        self.stats.transfer_micros.add(started.elapsed().as_micros() as u64);
        result
    }

    /// Gets a document of at most `limit` bytes into memory.
    pub fn get_small(&self, path: &str, limit: usize) -> Result<Vec<u8>, TransportError> {
        let mut sink = Memory { bytes: Vec::new(), limit };
        self.get(path, None, &mut sink)?;
        Ok(sink.bytes)
    }

    async fn run(&self, path: &str, range: Option<(u64, u64)>, sink: &mut dyn Sink) -> Result<(), TransportError> {
        let _turn = self.in_flight.acquire().await.expect("the semaphore is never closed");
        let mut attempts = self.routes.attempts();
        let mut no_cache = false;
        loop {
            let route = self.routes.current(Instant::now());
            let url = format!("{}/{path}", self.routes.host(route));
            let failure = match self.attempt(route, &url, range, no_cache, sink).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let (fault, reason, corrupt) = match failure {
                Failure::Network(fault, reason) => (fault, reason, false),
                Failure::Corrupt(reason) if !no_cache => {
                    tracing::warn!(url, reason, "corrupt data; asking again past all caches");
                    self.stats.retries.add(1);
                    no_cache = true;
                    continue;
                }
                Failure::Corrupt(reason) => (Fault::Host, reason, true),
                Failure::Local(error) => {
                    let reason = error.to_string();
                    return Err(TransportError { url, reason, corrupt: false, local: Some(error) });
                }
            };
            tracing::debug!(url, reason, ?fault, "request failed");
            no_cache = false;
            match attempts.failed(route, fault, Instant::now()) {
                Next::Retry(pause) => {
                    self.stats.retries.add(1);
                    tokio::time::sleep(pause).await;
                }
                Next::Switched => self.stats.failovers.add(1),
                Next::GiveUp => return Err(TransportError { url, reason, corrupt, local: None }),
            }
        }
    }

    async fn attempt(
        &self,
        route: Route,
        url: &str,
        range: Option<(u64, u64)>,
        no_cache: bool,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let proxy = self.routes.proxy(route);
        let limits = self.routes.limits();
        let patience = if proxy.is_some() { limits.timeout_proxy } else { limits.timeout_direct };
        let client = self.client(proxy, patience)?;
        let mut request = client.get(url);
        if no_cache {
            request = request.header(PRAGMA, "no-cache").header(CACHE_CONTROL, "no-cache");
        }
        if let Some((first, length)) = range {
            request = request.header(RANGE, format!("bytes={first}-{}", first + length.saturating_sub(1)));
        }
        sink.restart().map_err(sink_failure)?;
        // The connection has its own timeout; the first byte of the answer gets the same time again.
        let answer = timeout(patience * 2, request.send()).await.map_err(|_| stalled("no answer", patience * 2))?;
        let mut answer = answer.map_err(|e| connection_failure(&e))?;
        let status = answer.status();
        let wanted = if range.is_some() { 206 } else { 200 };
        if status.as_u16() != wanted {
            let fault = classify(status.as_u16(), answer.headers(), proxy.is_some());
            return Err(Failure::Network(fault, format!("the server answers {status}")));
        }
        let (mut since, mut window) = (Instant::now(), 0);
        loop {
            let piece = timeout(patience, answer.chunk()).await.map_err(|_| stalled("nothing more comes", patience))?;
            let Some(piece) = piece.map_err(|e| Failure::Network(Fault::Transfer, chain(&e)))? else { break };
            self.stats.received.add(piece.len() as u64);
            window += piece.len() as u64;
            sink.write(&piece).map_err(sink_failure)?;
            let elapsed = since.elapsed();
            if elapsed > patience {
                if window < limits.low_speed.saturating_mul(elapsed.as_secs()) {
                    let reason = format!("slower than {} bytes a second for {elapsed:?}", limits.low_speed);
                    return Err(Failure::Network(Fault::Transfer, reason));
                }
                (since, window) = (Instant::now(), 0);
            }
        }
        sink.finish().map_err(sink_failure)
    }

    fn client(&self, proxy: Option<&str>, connect_timeout: Duration) -> Result<reqwest::Client, Failure> {
        let mut clients = self.clients.lock();
        let key = proxy.map(str::to_owned);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let local = |e: reqwest::Error| Failure::Local(Box::new(e));
        let redirect = match self.routes.limits().follow_redirects {
            true => reqwest::redirect::Policy::limited(4),
            false => reqwest::redirect::Policy::none(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(reqwest::header::ACCEPT, HeaderValue::from_static("*/*"));
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("cvmfs-client/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(KEEP_ALIVE)
            .connect_timeout(connect_timeout)
            .redirect(redirect)
            .referer(false)
            .no_proxy();
        if let Some(url) = proxy {
            builder = builder.proxy(reqwest::Proxy::all(url).map_err(local)?);
        }
        let network = self.routes.network();
        let mut urls = network.servers.iter().chain(network.proxies.iter().flatten().flatten());
        if !urls.any(|url| url.starts_with("https:")) {
            // Nothing needs the system's certificates, so a machine without any will do.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(local)?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

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
            return Err(SinkError::Corrupt(format!("longer than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn sink_failure(error: SinkError) -> Failure {
    match error {
        SinkError::Corrupt(reason) => Failure::Corrupt(reason),
        SinkError::Local(error) => Failure::Local(error),
    }
}

fn stalled(what: &str, patience: Duration) -> Failure {
    Failure::Network(Fault::Transfer, format!("{what} for {patience:?}"))
}

fn connection_failure(error: &reqwest::Error) -> Failure {
    let reason = chain(error);
    // The connector gives no type for this; its text is stable.
    let fault = if reason.contains("dns error") { Fault::Resolve } else { Fault::Transfer };
    Failure::Network(fault, reason)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn classify(status: u16, headers: &HeaderMap, through_proxy: bool) -> Fault {
    let proxy_says = headers.contains_key("x-squid-error")
        || headers.get_all("proxy-status").iter().any(|v| v.as_bytes().windows(6).any(|w| w == b"error="));
    match status {
        429 => Fault::Transfer,
        400 | 404 | 500..=599 if !(through_proxy && proxy_says) => Fault::Host,
        _ if through_proxy => Fault::Proxy,
        _ => Fault::Host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_charged_to_server_or_proxy() {
        let none = HeaderMap::new();
        let mut squid = HeaderMap::new();
        squid.insert("x-squid-error", HeaderValue::from_static("ERR_DNS_FAIL 0"));
        let mut status = HeaderMap::new();
        status.insert("proxy-status", HeaderValue::from_static("cache; error=connection_timeout"));
        for (code, headers, proxy, fault) in [
            (404, &none, false, Fault::Host),
            (404, &none, true, Fault::Host),
            (503, &none, true, Fault::Host),
            (503, &squid, true, Fault::Proxy),
            (502, &status, true, Fault::Proxy),
            (502, &status, false, Fault::Host),
            (403, &none, true, Fault::Proxy),
            (403, &none, false, Fault::Host),
            (302, &none, false, Fault::Host),
            (429, &none, false, Fault::Transfer),
        ] {
            assert_eq!(classify(code, headers, proxy), fault, "{code} {headers:?} {proxy}");
        }
    }
}
