//! Which server and which proxy a request goes to, and what follows from a failure. No I/O.
//!
//! Servers form a ring. Proxies form groups that are tried in order; members of a group share the load. A
//! failure is charged to the server or to the proxy; the switch is global, but only the first of several
//! requests that failed on the same route makes it. A request gives up when it has used every server; with
//! all proxies failed, that counts as one failure of the server and the proxies are tried again.
//! After a while the preferred server and the first proxy group get another chance.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::{Network, NetworkLimits};

/// Who is charged with a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server answered, and the answer is wrong.
    Host,
    /// The proxy answered instead of the server.
    Proxy,
    /// The connection failed, stalled or ended too early: worth another try on the same route.
    Transfer,
    /// The name of server or proxy cannot be resolved.
    Resolve,
}

/// Server and proxy of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Index of the server.
    pub host: usize,
    /// Group and member of the proxy.
    pub proxy: (usize, usize),
}

#[derive(Debug)]
struct State {
    host: usize,
    group: usize,
    member: usize,
    /// Proxies of the current group that failed.
    burned: Vec<usize>,
    host_switched: Option<Instant>,
    proxy_switched: Option<Instant>,
}

/// The routes of one kind of data, shared by all requests.
#[derive(Debug)]
pub struct Routes {
    network: Network,
    limits: NetworkLimits,
    state: Mutex<State>,
    random: fn(usize) -> usize,
}

impl Routes {
    /// Routes to `network`, beginning with its first server and a random member of its first proxy group.
    pub fn new(network: Network, limits: NetworkLimits) -> Routes {
        Routes::with_random(network, limits, random_below)
    }

    fn with_random(network: Network, limits: NetworkLimits, random: fn(usize) -> usize) -> Routes {
        let member = random(network.proxies.first().map_or(1, Vec::len).max(1));
        let state = State { host: 0, group: 0, member, burned: Vec::new(), host_switched: None, proxy_switched: None };
        Routes { network, limits, state: Mutex::new(state), random }
    }

    /// The route that the next request takes.
    pub fn current(&self, now: Instant) -> Route {
        let mut state = self.state.lock();
        let over = |since: Option<Instant>, limit: Option<Duration>| {
            since.zip(limit).is_some_and(|(since, limit)| now.saturating_duration_since(since) >= limit)
        };
        if over(state.host_switched, self.limits.host_reset) {
            (state.host, state.host_switched) = (0, None);
        }
        if over(state.proxy_switched, self.limits.proxy_reset) {
            (state.group, state.proxy_switched) = (0, None);
            state.burned.clear();
            state.member = (self.random)(self.group_len(0));
        }
        Route { host: state.host, proxy: (state.group, state.member) }
    }

    /// URL of the server, without trailing slash.
    pub fn host(&self, route: Route) -> &str {
        self.network.servers.get(route.host).map_or("", String::as_str)
    }

    /// URL of the proxy; `None` = direct.
    pub fn proxy(&self, route: Route) -> Option<&str> {
        self.network.proxies.get(route.proxy.0)?.get(route.proxy.1)?.as_deref()
    }

    /// Servers and proxies.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Timeouts and retries.
    pub fn limits(&self) -> &NetworkLimits {
        &self.limits
    }

    /// Starts the account of one request.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts { routes: self, retries: 0, backoff: Duration::ZERO, hosts_failed: 0, proxies_failed: 0 }
    }

    fn group_len(&self, group: usize) -> usize {
        self.network.proxies.get(group).map_or(1, Vec::len).max(1)
    }

    fn proxy_count(&self) -> usize {
        self.network.proxies.iter().map(Vec::len).sum::<usize>().max(1)
    }

    fn switch_host(&self, failed: Route, now: Instant) {
        let mut state = self.state.lock();
        if state.host == failed.host && self.network.servers.len() > 1 {
            state.host = (state.host + 1) % self.network.servers.len();
            state.host_switched = (state.host != 0).then_some(now);
            tracing::warn!(
                failed = self.host(failed),
                now = self.network.servers[state.host],
                "switched to another server"
            );
        }
    }

    fn switch_proxy(&self, failed: Route, now: Instant) {
        let mut state = self.state.lock();
        if (state.group, state.member) != failed.proxy || self.proxy_count() == 1 {
            return;
        }
        let member = state.member;
        state.burned.push(member);
        let left: Vec<usize> = (0..self.group_len(state.group)).filter(|m| !state.burned.contains(m)).collect();
        if left.is_empty() {
            state.group = (state.group + 1) % self.network.proxies.len();
            state.burned.clear();
            state.member = (self.random)(self.group_len(state.group));
        } else {
            state.member = left[(self.random)(left.len())];
        }
        state.proxy_switched = Some(now);
        let now = Route { host: state.host, proxy: (state.group, state.member) };
        let name = |route| self.proxy(route).unwrap_or("DIRECT");
        tracing::warn!(failed = name(failed), now = name(now), "switched to another proxy");
    }
}

/// What a request does after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The same route once more, after a pause.
    Retry(Duration),
    /// Another route.
    Switched,
    /// Nothing is left to try.
    GiveUp,
}

/// The account of one request over all its attempts.
#[derive(Debug)]
pub struct Attempts<'a> {
    routes: &'a Routes,
    retries: u32,
    backoff: Duration,
    hosts_failed: usize,
    proxies_failed: usize,
}

impl Attempts<'_> {
    /// The attempt on `route` failed.
    pub fn failed(&mut self, route: Route, fault: Fault, now: Instant) -> Next {
        let limits = &self.routes.limits;
        if fault == Fault::Transfer && self.retries < limits.retries {
            self.retries += 1;
            self.backoff = match self.backoff.is_zero() {
                true => jitter(limits.backoff),
                false => (self.backoff * 2).min(limits.backoff_max),
            };
            return Next::Retry(self.backoff.max(Duration::from_millis(1)));
        }
        self.retries = 0;
        self.backoff = Duration::ZERO;
        let through_proxy = self.routes.proxy(route).is_some();
        let charged_to_proxy = fault != Fault::Host && (through_proxy || self.routes.proxy_count() > 1);
        if charged_to_proxy {
            self.proxies_failed += 1;
            self.routes.switch_proxy(route, now);
            if self.proxies_failed < self.routes.proxy_count() {
                return Next::Switched;
            }
            self.proxies_failed = 0;
        }
        self.hosts_failed += 1;
        self.routes.switch_host(route, now);
        if self.hosts_failed < self.routes.network.servers.len() { Next::Switched } else { Next::GiveUp }
    }
}

/// Random number below `n` (`n` > 0). Good enough to spread load, nothing else.
fn random_below(n: usize) -> usize {
    use std::hash::{BuildHasher as _, RandomState};
    // Every RandomState has its own key.
    (RandomState::new().hash_one(0) % n.max(1) as u64) as usize
}

fn jitter(limit: Duration) -> Duration {
    let millis = limit.as_millis().min(u128::from(u32::MAX)) as usize;
    Duration::from_millis(random_below(millis + 1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(hosts: usize, proxies: &[&[Option<&str>]]) -> Routes {
        let network = Network {
            servers: (0..hosts).map(|i| format!("http://h{i}")).collect(),
            proxies: proxies.iter().map(|g| g.iter().map(|p| p.map(str::to_owned)).collect()).collect(),
        };
        let limits = NetworkLimits {
            timeout_proxy: Duration::from_secs(5),
            timeout_direct: Duration::from_secs(5),
            low_speed: 1024,
            retries: 1,
            backoff: Duration::from_millis(10),
            backoff_max: Duration::from_millis(20),
            proxy_reset: Some(Duration::from_secs(300)),
            host_reset: Some(Duration::from_secs(1800)),
            follow_redirects: false,
        };
        Routes::with_random(network, limits, |_| 0)
    }

    /// Lets one request fail until it gives up; gives `host proxy` of every attempt.
    fn trace(routes: &Routes, fault: Fault) -> Vec<String> {
        let (mut attempts, mut seen, now) = (routes.attempts(), Vec::new(), Instant::now());
        loop {
            let route = routes.current(now);
            seen.push(format!(
                "{} {}",
                routes.host(route).trim_start_matches("http://"),
                routes.proxy(route).unwrap_or("-")
            ));
            assert!(seen.len() < 100, "it never gives up: {seen:?}");
            if attempts.failed(route, fault, now) == Next::GiveUp {
                return seen;
            }
        }
    }

    #[test]
    fn what_is_tried_before_giving_up() {
        let direct: &[&[Option<&str>]] = &[&[None]];
        let two_groups: &[&[Option<&str>]] = &[&[Some("a"), Some("b")], &[Some("c")]];
        for (hosts, proxies, fault, expected) in [
            (1, direct, Fault::Host, &["h0 -"][..]),
            (1, direct, Fault::Transfer, &["h0 -", "h0 -"]),
            (1, direct, Fault::Resolve, &["h0 -"]),
            (2, direct, Fault::Host, &["h0 -", "h1 -"]),
            (2, direct, Fault::Transfer, &["h0 -", "h0 -", "h1 -", "h1 -"]),
            (2, two_groups, Fault::Host, &["h0 a", "h1 a"]),
            (2, two_groups, Fault::Proxy, &["h0 a", "h0 b", "h0 c", "h1 a", "h1 b", "h1 c"]),
            (1, two_groups, Fault::Resolve, &["h0 a", "h0 b", "h0 c"]),
        ] {
            assert_eq!(trace(&routes(hosts, proxies), fault), expected, "{hosts} {proxies:?} {fault:?}");
        }
    }

    #[test]
    fn only_the_first_of_several_failures_on_a_route_switches() {
        let routes = routes(3, &[&[None]]);
        let now = Instant::now();
        let route = routes.current(now);
        let (mut one, mut two) = (routes.attempts(), routes.attempts());
        one.failed(route, Fault::Host, now);
        two.failed(route, Fault::Host, now);
        assert_eq!(routes.current(now).host, 1);
    }

    #[test]
    fn the_preferred_server_and_proxy_come_back() {
        let routes = routes(2, &[&[Some("a")], &[Some("b")]]);
        let now = Instant::now();
        let route = routes.current(now);
        routes.attempts().failed(route, Fault::Host, now);
        routes.attempts().failed(routes.current(now), Fault::Proxy, now);
        assert_eq!(routes.current(now), Route { host: 1, proxy: (1, 0) });
        let later = now + Duration::from_secs(301);
        assert_eq!(routes.current(later), Route { host: 1, proxy: (0, 0) });
        assert_eq!(routes.current(now + Duration::from_secs(1801)).host, 0);
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let mut routes = routes(1, &[&[None]]);
        routes.limits.retries = 5;
        let (mut attempts, now) = (routes.attempts(), Instant::now());
        let route = routes.current(now);
        for _ in 0..5 {
            let Next::Retry(pause) = attempts.failed(route, Fault::Transfer, now) else { panic!("no retry") };
            assert!(pause >= Duration::from_millis(1) && pause <= Duration::from_millis(20), "{pause:?}");
        }
        assert_eq!(attempts.failed(route, Fault::Transfer, now), Next::GiveUp);
    }
}
