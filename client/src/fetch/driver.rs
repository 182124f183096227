//! What drives requests: a runtime of one thread, which is the caller's, and the connections that belong to it.
//!
//! A request and its connection are polled by whoever waits for them, so an answer wakes one thread, once. A driver is
//! used by one caller at a time, and there are as many as requests have run at the same time. While nobody uses it nothing
//! in it moves: that a server has closed a connection meanwhile is noticed when it is used next, before anything is sent.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderValue};

use super::connect::Watch;
use super::route::{Member, Place, Proxy, Routes};
use super::tls;

/// Proxies whose connections are kept, far above what a site has.
const MAX_CLIENTS: usize = 64;

/// How long connections are kept that nobody uses, as the HTTP client itself does.
const KEPT: Duration = Duration::from_secs(90);

/// One of as many as requests run at the same time.
#[derive(Debug)]
pub(super) struct Driver {
    runtime: tokio::runtime::Runtime,
    clients: Clients,
    used: Instant,
}

impl Driver {
    pub(super) fn new() -> std::io::Result<Driver> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Driver { runtime, clients: Clients::default(), used: Instant::now() })
    }

    /// Does something with its connections, on this thread.
    pub(super) fn drive<T>(&mut self, work: impl AsyncFnOnce(&mut Clients) -> T) -> T {
        let result = self.runtime.block_on(work(&mut self.clients));
        self.used = Instant::now();
        result
    }

    /// Whether servers will have closed its connections by now.
    pub(super) fn is_old(&self) -> bool {
        self.used.elapsed() > KEPT
    }
}

/// Kept connections, by proxy.
#[derive(Debug, Default)]
pub(super) struct Clients(HashMap<Member, reqwest::Client>);

impl Clients {
    /// The connections through this proxy.
    pub(super) fn through(
        &mut self,
        proxy: &Member,
        routes: &Routes,
        connect_timeout: Duration,
    ) -> reqwest::Result<reqwest::Client> {
        if let Some(client) = self.0.get(proxy) {
            return Ok(client.clone());
        }
        let client = build(proxy.as_deref(), routes, connect_timeout)?;
        if self.0.len() >= MAX_CLIENTS {
            self.0.clear();
        }
        self.0.insert(proxy.clone(), client.clone());
        Ok(client)
    }
}

fn build(proxy: Option<&Proxy>, routes: &Routes, connect_timeout: Duration) -> reqwest::Result<reqwest::Client> {
    let redirect = match routes.limits().follow_redirects {
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
        .pool_max_idle_per_host(1)
        .connect_timeout(connect_timeout)
        .connector_layer(Watch)
        .redirect(redirect)
        .referer(false)
        .no_proxy();
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::all(&proxy.url)?);
        let name = reqwest::Url::parse(&proxy.url).ok().and_then(|url| url.host_str().map(str::to_owned));
        if let (Place::At(address), Some(name)) = (&proxy.place, name) {
            // The port is that of the URL.
            builder = builder.resolve(&name, SocketAddr::new(*address, 0));
        }
    }
    let network = routes.network();
    let mut urls = network.servers.iter().chain(network.proxies.iter().flatten().flatten());
    builder = if urls.any(|url| url.starts_with("https:")) || routes.limits().follow_redirects {
        builder.tls_certs_merge(tls::authorities(&routes.selection().authorities))
    } else {
        // Nothing needs certificates, so a machine without any will do.
        builder.tls_certs_only([])
    };
    builder.build()
}
