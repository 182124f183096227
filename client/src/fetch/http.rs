//! One GET after another until one succeeds: connections, timeouts, classification of failures.
//!
//! Callers are ordinary threads. Each drives its own request and the connection that it runs over (`fetch/driver.rs`), so bytes
//! are hashed, inflated and written where they are waited for, no other thread has to be woken for them, and nothing
//! queues up in memory. Connections are kept alive; the one that was used last is used first.
//!
//! Facts: 400, 404 and 5xx are the server's fault unless the answer says that a proxy made it
//! (`X-Squid-Error`, `Proxy-Status: …error=`); 429 asks for patience; other answers than 2xx, redirects that
//! are not followed among them, are charged to the proxy, if there is one. Data that does not verify is asked
//! for once more past all caches, then counts against the server. A server gets as long for the connection as
//! for the first byte after it, and as long again for each moment without a byte; slower than the low-speed
//! limit for that long counts as stalled, whatever trickles in.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{CACHE_CONTROL, HeaderMap, PRAGMA, RANGE, RETRY_AFTER};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::connect::answered;
use super::driver::{Clients, Driver};
use super::geo;
use super::lanes::{Lane, Lanes};
use super::random_below;
use super::resolve::Resolver;
use super::route::{Attempts, Fault, Next, Place, Route, Routes};
use super::selection::Selection;
use crate::config::{Network, NetworkLimits};
use crate::log::Seldom;
use crate::stats::Stats;

/// What a timeout of 0 means: as good as none.
const NO_TIMEOUT: Duration = Duration::from_secs(300);

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
    /// Attempts in all.
    pub tried: u32,
    /// The bytes came and were wrong.
    pub corrupt: bool,
    /// The failure is on this machine.
    pub local: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl TransportError {
    /// Nothing was asked for.
    fn local(path: &str, error: std::io::Error) -> TransportError {
        let reason = format!("cannot prepare to ask: {error}");
        TransportError { url: path.to_owned(), reason, tried: 0, corrupt: false, local: Some(Box::new(error)) }
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.reason)?;
        if self.tried > 1 { write!(f, " (the last of {} attempts)", self.tried) } else { Ok(()) }
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.local.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

enum Failure {
    Network {
        fault: Fault,
        reason: String,
        /// How long the server wants to be left alone.
        after: Option<Duration>,
    },
    Corrupt(String),
    Local(Box<dyn std::error::Error + Send + Sync>),
}

fn network(fault: Fault, reason: impl Into<String>) -> Failure {
    Failure::Network { fault, reason: reason.into(), after: None }
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// Relative to the server's URL, escaped.
    path: &'a str,
    /// First byte and length.
    range: Option<(u64, u64)>,
}

/// HTTP access to the servers of one kind of data.
#[derive(Debug)]
pub struct Transport {
    runtime: tokio::runtime::Handle,
    routes: Arc<Routes>,
    resolver: Arc<Resolver>,
    prepared: OnceCell<()>,
    drivers: Mutex<Vec<Driver>>,
    lanes: Lanes,
    remarks: Seldom,
    stats: Arc<Stats>,
}

impl Transport {
    /// Access through `network`; what nobody waits for is done in `runtime`.
    pub fn new(
        network: Network,
        limits: NetworkLimits,
        selection: Selection,
        runtime: tokio::runtime::Handle,
        stats: Arc<Stats>,
    ) -> Transport {
        // Err means that somebody in this process installed a provider before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let resolver = Arc::new(Resolver::new(&network.proxies, &selection));
        let lanes = Lanes::new(limits.parallel);
        Transport {
            runtime,
            routes: Arc::new(Routes::new(network, limits, selection)),
            resolver,
            prepared: OnceCell::new(),
            drivers: Mutex::default(),
            lanes,
            remarks: Seldom::default(),
            stats,
        }
    }

    /// Servers, proxies and their state.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Who may ask next.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Gets `path` (relative to the server URL, already escaped), or `range` (first byte, length) of it. The lane is kept
    /// over all attempts: as long as requests fail, those that wait don't join them.
    pub fn get(
        &self,
        path: &str,
        range: Option<(u64, u64)>,
        lane: Lane<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), TransportError> {
        let started = Instant::now();
        let idle = self.drivers.lock().pop();
        let mut driver = idle.map_or_else(Driver::new, Ok).map_err(|error| TransportError::local(path, error))?;
        let result = driver.drive(async |clients| {
            let first = &mut *clients;
            self.prepared.get_or_init(move || self.prepare(first)).await;
            self.look_again();
            self.run(Target { path, range }, None, clients, sink).await
        });
        let mut drivers = self.drivers.lock();
        drivers.retain(|idle| !idle.is_old());
        drivers.push(driver);
        drop(drivers);
        self.stats.transfer_micros.add(started.elapsed().as_micros() as u64);
        drop(lane);
        result
    }

    /// Gets a document of at most `limit` bytes into memory.
    pub fn get_small(&self, path: &str, limit: usize) -> Result<Vec<u8>, TransportError> {
        let mut sink = Memory { bytes: Vec::new(), limit };
        self.get(path, None, self.lanes.demand(0), &mut sink)?;
        Ok(sink.bytes)
    }

    /// Before the first request: where proxies are, which servers are near.
    async fn prepare(&self, clients: &mut Clients) {
        self.routes.set_proxies(self.resolver.look().await);
        let selection = self.routes.selection();
        let mut servers = self.routes.servers();
        if selection.geo && servers.len() > 1 {
            match self.sorted_by_distance(&servers, clients).await {
                Some(sorted) => servers = sorted,
                None => tracing::warn!("no server sorts the servers by distance; their order stays as configured"),
            }
        }
        servers.truncate(selection.max_servers.unwrap_or(usize::MAX));
        self.routes.set_servers(servers);
    }

    async fn sorted_by_distance(&self, servers: &[Arc<str>], clients: &mut Clients) -> Option<Vec<Arc<str>>> {
        let proxy = self.routes.current(Instant::now()).proxy;
        let path = geo::path(proxy.as_ref().map(|proxy| proxy.url.as_str()), servers.iter().map(|url| &**url));
        let mut candidates = servers.to_vec();
        for _ in 0..geo::ASKED.min(servers.len()) {
            let asked = candidates.swap_remove(random_below(candidates.len()));
            let mut sink = Memory { bytes: Vec::new(), limit: geo::MAX_ANSWER };
            let target = Target { path: &path, range: None };
            match self.run(target, Some(&asked), clients, &mut sink).await {
                Ok(()) => match geo::order(&sink.bytes, servers.len()) {
                    Some(order) => return Some(order.into_iter().map(|i| servers[i].clone()).collect()),
                    None => tracing::warn!(server = &*asked, "its order of the servers is no permutation"),
                },
                Err(error) => tracing::warn!(server = &*asked, %error, "cannot ask for the order of the servers"),
            }
        }
        None
    }

    /// Looks names up again when it is time, beside the requests.
    fn look_again(&self) {
        if self.resolver.is_due(Instant::now()) {
            let (routes, resolver) = (self.routes.clone(), self.resolver.clone());
            self.runtime.spawn(async move { routes.set_proxies(resolver.look().await) });
        }
    }

    /// Asks until somebody answers; `only` this server, if given.
    async fn run(
        &self,
        target: Target<'_>,
        only: Option<&Arc<str>>,
        clients: &mut Clients,
        sink: &mut dyn Sink,
    ) -> Result<(), TransportError> {
        let mut attempts: Attempts<'_> =
            if only.is_some() { self.routes.attempts_of_one_server() } else { self.routes.attempts() };
        let (mut no_cache, mut tried) = (false, 0);
        loop {
            let mut route = self.routes.current_for(target.path, Instant::now());
            if let Some(host) = only {
                route = route.to(host);
            }
            let url = format!("{}/{}", route.host, target.path);
            tried += 1;
            let failure = match self.attempt(&route, &url, target.range, no_cache, clients, sink).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let (fault, reason, after, corrupt) = match failure {
                Failure::Network { fault, reason, after } => (fault, reason, after, false),
                Failure::Corrupt(reason) if !no_cache => {
                    tracing::warn!(url, reason, "corrupt data; asking again past all caches");
                    self.stats.retries.add(1);
                    no_cache = true;
                    continue;
                }
                Failure::Corrupt(reason) => (Fault::Host, reason, None, true),
                Failure::Local(error) => {
                    let reason = error.to_string();
                    return Err(TransportError { url, reason, tried, corrupt: false, local: Some(error) });
                }
            };
            tracing::debug!(url, proxy = route.proxy_name(), reason, ?fault, "request failed");
            no_cache = false;
            match attempts.failed(&route, fault, Instant::now()) {
                Next::Retry(pause) => {
                    self.stats.retries.add(1);
                    if self.remarks.is_due() {
                        let (proxy, retries) = (route.proxy_name(), self.stats.retries.get());
                        tracing::warn!(
                            url,
                            proxy,
                            reason,
                            retries,
                            "a request has to be sent again; more of them are only counted for a while"
                        );
                    }
                    let wish = after.unwrap_or_default().min(self.routes.limits().backoff_max);
                    tokio::time::sleep(pause.max(wish)).await;
                }
                Next::Switched => self.stats.failovers.add(1),
                Next::GiveUp => return Err(TransportError { url, reason, tried, corrupt, local: None }),
            }
        }
    }

    async fn attempt(
        &self,
        route: &Route,
        url: &str,
        range: Option<(u64, u64)>,
        no_cache: bool,
        clients: &mut Clients,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let through_proxy = route.proxy.is_some();
        let transfer = if through_proxy { Fault::ProxyTransfer } else { Fault::HostTransfer };
        let limits = self.routes.limits();
        let patience = if through_proxy { limits.timeout_proxy } else { limits.timeout_direct };
        let patience = if patience.is_zero() { NO_TIMEOUT } else { patience };
        if let Some(Place::Unknown(reason)) = route.proxy.as_ref().map(|proxy| &proxy.place) {
            return Err(network(Fault::Proxy, reason.clone()));
        }
        let client = clients.through(&route.proxy, &self.routes, patience).map_err(|e| Failure::Local(Box::new(e)))?;
        let mut request = client.get(url);
        if no_cache {
            request = request.header(PRAGMA, "no-cache").header(CACHE_CONTROL, "no-cache");
        }
        if let Some((first, length)) = range {
            request =
                request.header(RANGE, format!("bytes={first}-{}", first.saturating_add(length).saturating_sub(1)));
        }
        sink.restart().map_err(sink_failure)?;
        // The connection has a limit of its own; the head of the answer gets the same time after it.
        let stalled = |what, time| network(transfer, format!("{what} for {time:?}"));
        let answer = answered(patience, request.send()).await.ok_or_else(|| stalled("no answer", patience))?;
        let mut answer = answer.map_err(|e| connection_failure(&e, route))?;
        let status = answer.status();
        let right =
            if range.is_some() { status.as_u16() == 206 } else { status.is_success() && status.as_u16() != 206 };
        if !right {
            let fault = classify(status.as_u16(), answer.headers(), through_proxy);
            let after = answer.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
            let reason = format!("the server answers {status}");
            return Err(Failure::Network { fault, reason, after: after.map(Duration::from_secs) });
        }
        let (mut waited, mut window) = (Duration::ZERO, 0);
        loop {
            // What the sink takes to write is not the network's fault.
            let asked = Instant::now();
            let piece = timeout(patience, answer.chunk()).await.map_err(|_| stalled("nothing more comes", patience))?;
            waited += asked.elapsed();
            let Some(piece) = piece.map_err(|e| network(transfer, chain(&e)))? else { break };
            self.stats.received.add(piece.len() as u64);
            window += piece.len() as u64;
            sink.write(&piece).map_err(sink_failure)?;
            if waited > patience {
                if window < limits.low_speed.saturating_mul(waited.as_secs()) {
                    return Err(network(
                        transfer,
                        format!("slower than {} bytes a second for {waited:?}", limits.low_speed),
                    ));
                }
                (waited, window) = (Duration::ZERO, 0);
            }
        }
        sink.finish().map_err(sink_failure)
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

/// Who is to blame when there is no answer.
fn connection_failure(error: &reqwest::Error, route: &Route) -> Failure {
    let reason = chain(error);
    let proxy = route.proxy.as_ref();
    // The connector gives no types for these; its texts are stable.
    let no_name = reason.contains("dns error");
    let no_trust = reason.contains("invalid peer certificate");
    let fault = match proxy {
        // The proxy resolves the names of servers, and leads to their certificates unseen.
        Some(proxy) if no_name || (no_trust && proxy.url.starts_with("https:")) => Fault::Proxy,
        _ if no_name || no_trust || error.is_redirect() || error.is_builder() => Fault::Host,
        Some(_) => Fault::ProxyTransfer,
        None => Fault::HostTransfer,
    };
    network(fault, reason)
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
        429 => Fault::HostTransfer,
        400 | 404 | 500..=599 if !(through_proxy && proxy_says) => Fault::Host,
        _ if through_proxy => Fault::Proxy,
        _ => Fault::Host,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

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
            (302, &none, true, Fault::Proxy),
            (407, &none, true, Fault::Proxy),
            (429, &none, false, Fault::HostTransfer),
            (429, &none, true, Fault::HostTransfer),
        ] {
            assert_eq!(classify(code, headers, proxy), fault, "{code} {headers:?} {proxy}");
        }
    }
}
