//! Which server and which proxy a request goes to, and what follows from a failure. No I/O.
//!
//! Servers form a ring. Proxies form groups that are tried in order; a client uses one member of the group,
//! chosen by chance, or for each object the one that its name leads to (sharding). A failure is charged to
//! the server or to the proxy, without a proxy always to the server. Failed transfers are tried again on the
//! same route first. A failed proxy is burned until its group is used up; then the next group follows.
//! Switches are global, but only the first of several requests that failed on the same route makes one.
//!
//! A request gives up when it has used as many servers as there are; when all proxies failed, that counts as
//! one failure of the server, and the next server is tried with the first group. Some time after they were
//! left, the first server and the first group (and burned members) get another chance.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::hash::{Algorithm, ContentHash};
use parking_lot::Mutex;

use super::random_below;
use super::selection::Selection;
use crate::config::{Network, NetworkLimits};

/// Who is charged with a failure, and what kind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server answered, and the answer is wrong; or its name cannot be resolved.
    Host,
    /// The proxy answered instead of the server; or its name cannot be resolved.
    Proxy,
    /// The connection to the server failed, stalled or ended too early: worth another try on the same route.
    HostTransfer,
    /// The same for the connection to the proxy.
    ProxyTransfer,
}

impl Fault {
    fn is_transfer(self) -> bool {
        matches!(self, Fault::HostTransfer | Fault::ProxyTransfer)
    }

    fn is_of_proxy(self) -> bool {
        matches!(self, Fault::Proxy | Fault::ProxyTransfer)
    }
}

/// Where a proxy is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// Its URL says it.
    InUrl,
    /// One of the addresses of its name.
    At(IpAddr),
    /// Nobody knows, and why.
    Unknown(String),
}

/// One proxy; each address of a name counts as one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// As configured.
    pub url: String,
    /// Where it is.
    pub place: Place,
}

/// One member of a group; `None` is a direct connection.
pub type Member = Option<Arc<Proxy>>;

/// Server and proxy of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// URL of the server, without trailing slash.
    pub host: Arc<str>,
    /// Group of the proxy.
    group: usize,
    /// The proxy.
    pub proxy: Member,
}

impl Route {
    /// The proxy as configured, or `DIRECT`.
    pub fn proxy_name(&self) -> &str {
        self.proxy.as_ref().map_or("DIRECT", |proxy| &proxy.url)
    }

    /// The same server and proxy for another request, with `host` in place of the server.
    pub(super) fn to(&self, host: &Arc<str>) -> Route {
        Route { host: host.clone(), ..self.clone() }
    }
}

#[derive(Debug)]
struct State {
    servers: Vec<Arc<str>>,
    groups: Vec<Vec<Member>>,
    host: usize,
    group: usize,
    /// Member in use, where names of objects don't choose it.
    member: Member,
    /// Members of the current group that failed.
    burned: Vec<Member>,
    left_first_host: Option<Instant>,
    left_first_group: Option<Instant>,
    burned_since: Option<Instant>,
}

impl State {
    fn unburned(&self) -> impl Iterator<Item = &Member> {
        self.groups.get(self.group).into_iter().flatten().filter(|member| !self.burned.contains(member))
    }

    fn proxy_count(&self) -> usize {
        self.groups.iter().map(Vec::len).sum::<usize>().max(1)
    }
}

/// The routes of one kind of data, shared by all requests.
#[derive(Debug)]
pub struct Routes {
    network: Network,
    limits: NetworkLimits,
    selection: Selection,
    state: Mutex<State>,
    random: fn(usize) -> usize,
}

impl Routes {
    /// Routes to `network`, beginning with its first server and a random member of its first proxy group.
    pub fn new(network: Network, limits: NetworkLimits, selection: Selection) -> Routes {
        Routes::with_random(network, limits, selection, random_below)
    }

    fn with_random(
        network: Network,
        limits: NetworkLimits,
        selection: Selection,
        random: fn(usize) -> usize,
    ) -> Routes {
        let proxy = |url: &String| Arc::new(Proxy { url: url.clone(), place: Place::InUrl });
        let groups = network.proxies.iter().map(|group| group.iter().map(|url| url.as_ref().map(proxy)).collect());
        let state = State {
            servers: network.servers.iter().map(|url| url.as_str().into()).collect(),
            groups: groups.collect(),
            host: 0,
            group: 0,
            member: None,
            burned: Vec::new(),
            left_first_host: None,
            left_first_group: None,
            burned_since: None,
        };
        let routes = Routes { network, limits, selection, state: Mutex::new(state), random };
        routes.pick(&mut routes.state.lock());
        routes
    }

    /// The route of the next request for nothing particular.
    pub fn current(&self, now: Instant) -> Route {
        self.current_for("", now)
    }

    /// The route of the next request for the object at `path`.
    pub fn current_for(&self, path: &str, now: Instant) -> Route {
        let mut state = self.state.lock();
        let over = |since: Option<Instant>, limit: Option<Duration>| {
            since.zip(limit).is_some_and(|(since, limit)| now.saturating_duration_since(since) >= limit)
        };
        if over(state.left_first_host, self.limits.host_reset) {
            tracing::info!(now = &*state.servers[0], "back to the first server");
            (state.host, state.left_first_host) = (0, None);
        }
        let group_again = over(state.left_first_group, self.limits.proxy_reset);
        if group_again || over(state.burned_since, self.limits.proxy_reset) {
            if group_again {
                tracing::info!("back to the first group of proxies");
                (state.group, state.left_first_group) = (0, None);
            }
            state.burned.clear();
            self.pick(&mut state);
        }
        let proxy = if self.selection.shard { shard(state.unburned(), path) } else { state.member.clone() };
        let host = state.servers.get(state.host).cloned().unwrap_or_default();
        Route { host, group: state.group, proxy }
    }

    /// Servers in their present order.
    pub fn servers(&self) -> Vec<Arc<str>> {
        self.state.lock().servers.clone()
    }

    /// Puts the servers into another order, the first one to be used now.
    pub(super) fn set_servers(&self, servers: Vec<Arc<str>>) {
        let mut state = self.state.lock();
        (state.servers, state.host, state.left_first_host) = (servers, 0, None);
    }

    /// Puts what their names lead to in place of the proxies; as many groups as before.
    pub(super) fn set_proxies(&self, groups: Vec<Vec<Member>>) {
        let mut state = self.state.lock();
        if state.groups == groups {
            return;
        }
        state.groups = groups;
        let State { groups, group, burned, .. } = &mut *state;
        burned.retain(|member| groups.get(*group).is_some_and(|members| members.contains(member)));
        let still_there = state.unburned().any(|member| *member == state.member);
        if !still_there {
            self.pick(&mut state);
        }
    }

    /// Servers and proxies as configured.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Timeouts and retries.
    pub fn limits(&self) -> &NetworkLimits {
        &self.limits
    }

    /// How servers and proxies are chosen.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Starts the account of one request.
    pub fn attempts(&self) -> Attempts<'_> {
        let servers = self.state.lock().servers.len();
        Attempts { routes: self, servers, retries: 0, backoff: Duration::ZERO, hosts_failed: 0, proxies_failed: 0 }
    }

    /// Starts the account of one request that one server alone can answer.
    pub(super) fn attempts_of_one_server(&self) -> Attempts<'_> {
        Attempts { servers: 1, ..self.attempts() }
    }

    /// Chooses a member of the current group; after the group is used up, all of them count again.
    fn pick(&self, state: &mut State) {
        if state.unburned().next().is_none() {
            state.burned.clear();
        }
        if state.burned.is_empty() {
            state.burned_since = None;
        }
        let left: Vec<&Member> = state.unburned().collect();
        state.member = left.get((self.random)(left.len().max(1))).copied().cloned().flatten();
    }

    /// For how long requests have not gone the way that is preferred.
    pub fn switched(&self, now: Instant) -> Option<Duration> {
        let state = self.state.lock();
        let since = [state.left_first_host, state.left_first_group, state.burned_since].into_iter().flatten().min()?;
        Some(now.saturating_duration_since(since))
    }

    fn switch_host(&self, failed: &Route, now: Instant) {
        let mut state = self.state.lock();
        if state.servers.get(state.host) == Some(&failed.host) && state.servers.len() > 1 {
            state.host = (state.host + 1) % state.servers.len();
            state.left_first_host = (state.host != 0).then(|| state.left_first_host.unwrap_or(now));
            tracing::warn!(failed = &*failed.host, now = &*state.servers[state.host], "switched to another server");
        }
    }

    fn switch_proxy(&self, failed: &Route, now: Instant) {
        let mut state = self.state.lock();
        let in_use = if self.selection.shard {
            state.unburned().any(|m| *m == failed.proxy)
        } else {
            state.member == failed.proxy
        };
        if state.group != failed.group || !in_use || state.proxy_count() == 1 {
            return;
        }
        state.burned.push(failed.proxy.clone());
        if state.unburned().next().is_some() {
            state.burned_since.get_or_insert(now);
        } else {
            state.burned.clear();
            state.group = (state.group + 1) % state.groups.len().max(1);
            state.left_first_group = (state.group != 0).then(|| state.left_first_group.unwrap_or(now));
        }
        self.pick(&mut state);
        let chosen = state.member.as_ref().map_or("DIRECT", |proxy| &proxy.url);
        tracing::warn!(failed = failed.proxy_name(), now = chosen, "switched to another proxy");
    }

    /// All proxies failed: they are tried again with the next server, unless another request began with that.
    fn first_group(&self) {
        let mut state = self.state.lock();
        if state.group > 0 || !state.burned.is_empty() {
            (state.group, state.left_first_group) = (0, None);
            state.burned.clear();
            self.pick(&mut state);
        }
    }
}

/// The member that the name of an object leads to. Where one member goes, only its objects move (rendezvous
/// hashing), and all clients agree.
fn shard<'a>(members: impl Iterator<Item = &'a Member>, path: &str) -> Member {
    let weight = |member: &&Member| {
        let name = member.as_ref().map_or_else(String::new, |proxy| format!("{} {:?}", proxy.url, proxy.place));
        ContentHash::of(Algorithm::Sha1, format!("{name} {path}").as_bytes()).to_string()
    };
    members.max_by_key(weight).cloned().flatten()
}

/// What a request does after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Once more, after a pause.
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
    /// Servers that may be used.
    servers: usize,
    retries: u32,
    backoff: Duration,
    hosts_failed: usize,
    proxies_failed: usize,
}

impl Attempts<'_> {
    /// The attempt on `route` failed.
    pub fn failed(&mut self, route: &Route, fault: Fault, now: Instant) -> Next {
        let limits = &self.routes.limits;
        if fault.is_transfer() && self.retries < limits.retries {
            self.retries += 1;
            self.backoff = match self.backoff.is_zero() {
                true => jitter(limits.backoff).min(limits.backoff_max),
                false => (self.backoff * 2).min(limits.backoff_max),
            };
            return Next::Retry(self.backoff);
        }
        self.retries = 0;
        self.backoff = Duration::ZERO;
        let of_proxy = fault.is_of_proxy() && route.proxy.is_some();
        if of_proxy {
            self.proxies_failed += 1;
            self.routes.switch_proxy(route, now);
            let proxies = self.routes.state.lock().proxy_count();
            if self.proxies_failed < proxies {
                return Next::Switched;
            }
            self.proxies_failed = 0;
            self.routes.first_group();
        }
        self.hosts_failed += 1;
        if self.hosts_failed < self.servers {
            self.routes.switch_host(route, now);
            return Next::Switched;
        }
        if of_proxy && self.routes.selection.indefinitely {
            self.hosts_failed = 0;
            self.routes.switch_host(route, now);
            return Next::Retry(limits.backoff_max.max(Duration::from_millis(100)));
        }
        Next::GiveUp
    }
}

fn jitter(limit: Duration) -> Duration {
    let millis = limit.as_millis().min(u128::from(u32::MAX)) as usize;
    Duration::from_millis(random_below(millis + 1) as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn routes_with(hosts: usize, proxies: &[&[Option<&str>]], selection: Selection) -> Routes {
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
            parallel: 16,
        };
        Routes::with_random(network, limits, selection, |_| 0)
    }

    fn routes(hosts: usize, proxies: &[&[Option<&str>]]) -> Routes {
        routes_with(hosts, proxies, Selection::default())
    }

    fn shown(route: &Route) -> String {
        format!("{} {}", route.host.trim_start_matches("http://"), route.proxy_name())
    }

    /// Lets one request fail until it gives up; gives `host proxy` of every attempt. Through a direct
    /// connection the fault is the server's.
    fn trace(routes: &Routes, fault: Fault) -> Vec<String> {
        let (mut attempts, mut seen, now) = (routes.attempts(), Vec::new(), Instant::now());
        loop {
            let route = routes.current(now);
            seen.push(shown(&route));
            assert!(seen.len() < 100, "it never gives up: {seen:?}");
            let fault = match (fault, &route.proxy) {
                (Fault::ProxyTransfer, None) => Fault::HostTransfer,
                (Fault::Proxy, None) => Fault::Host,
                (fault, _) => fault,
            };
            if attempts.failed(&route, fault, now) == Next::GiveUp {
                return seen;
            }
        }
    }

    const DIRECT: &[&[Option<&str>]] = &[&[None]];
    const TWO_GROUPS: &[&[Option<&str>]] = &[&[Some("a"), Some("b")], &[Some("c")]];
    const LAST_DIRECT: &[&[Option<&str>]] = &[&[Some("a")], &[None]];

    #[test]
    fn what_is_tried_before_giving_up() {
        for (hosts, proxies, fault, expected) in [
            (1, DIRECT, Fault::Host, "h0 DIRECT"),
            (1, DIRECT, Fault::HostTransfer, "h0 DIRECT, h0 DIRECT"),
            (2, DIRECT, Fault::Host, "h0 DIRECT, h1 DIRECT"),
            (2, DIRECT, Fault::HostTransfer, "h0 DIRECT, h0 DIRECT, h1 DIRECT, h1 DIRECT"),
            (2, TWO_GROUPS, Fault::Host, "h0 a, h1 a"),
            (2, TWO_GROUPS, Fault::HostTransfer, "h0 a, h0 a, h1 a, h1 a"),
            (1, TWO_GROUPS, Fault::Proxy, "h0 a, h0 b, h0 c"),
            (2, TWO_GROUPS, Fault::Proxy, "h0 a, h0 b, h0 c, h1 a, h1 b, h1 c"),
            (1, TWO_GROUPS, Fault::ProxyTransfer, "h0 a, h0 a, h0 b, h0 b, h0 c, h0 c"),
            (2, LAST_DIRECT, Fault::Proxy, "h0 a, h0 DIRECT, h1 DIRECT"),
            (2, LAST_DIRECT, Fault::ProxyTransfer, "h0 a, h0 a, h0 DIRECT, h0 DIRECT, h1 DIRECT, h1 DIRECT"),
        ] {
            assert_eq!(trace(&routes(hosts, proxies), fault).join(", "), expected, "{hosts} {proxies:?} {fault:?}");
        }
    }

    #[test]
    fn only_the_first_of_several_failures_on_a_route_switches() {
        let routes = routes(3, TWO_GROUPS);
        let now = Instant::now();
        let route = routes.current(now);
        for fault in [Fault::Host, Fault::Proxy] {
            for mut attempts in [routes.attempts(), routes.attempts(), routes.attempts()] {
                assert_eq!(attempts.failed(&route, fault, now), Next::Switched);
            }
        }
        assert_eq!(shown(&routes.current(now)), "h1 b");
    }

    #[test]
    fn the_preferred_server_and_proxy_come_back() {
        let routes = routes(2, &[&[Some("a")], &[Some("b")]]);
        let now = Instant::now();
        routes.attempts().failed(&routes.current(now), Fault::Host, now);
        routes.attempts().failed(&routes.current(now), Fault::Proxy, now);
        assert_eq!(shown(&routes.current(now)), "h1 b");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(299))), "h1 b");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(300))), "h1 a");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(1800))), "h0 a");
    }

    #[test]
    fn failures_of_a_backup_do_not_put_off_the_return() {
        let routes = routes(3, &[&[Some("a")], &[Some("b")], &[Some("c")]]);
        let now = Instant::now();
        for minute in 0..2 {
            let now = now + Duration::from_secs(60 * minute);
            routes.attempts().failed(&routes.current(now), Fault::Host, now);
            routes.attempts().failed(&routes.current(now), Fault::Proxy, now);
        }
        assert_eq!(shown(&routes.current(now + Duration::from_secs(299))), "h2 c");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(300))), "h2 a");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(1800))), "h0 a");
    }

    #[test]
    fn a_burned_member_is_used_again_after_a_while_and_when_its_group_is_used_up() {
        let routes = routes(1, &[&[Some("a"), Some("b")]]);
        let now = Instant::now();
        routes.attempts().failed(&routes.current(now), Fault::Proxy, now);
        assert_eq!(shown(&routes.current(now)), "h0 b");
        assert_eq!(shown(&routes.current(now + Duration::from_secs(300))), "h0 a");
        let later = now + Duration::from_secs(301);
        routes.attempts().failed(&routes.current(later), Fault::Proxy, later);
        routes.attempts().failed(&routes.current(later), Fault::Proxy, later);
        assert_eq!(shown(&routes.current(later)), "h0 a");
    }

    #[test]
    fn no_reset_time_means_no_return() {
        let mut routes = routes(2, &[&[Some("a")], &[Some("b")]]);
        (routes.limits.proxy_reset, routes.limits.host_reset) = (None, None);
        let now = Instant::now();
        routes.attempts().failed(&routes.current(now), Fault::Host, now);
        routes.attempts().failed(&routes.current(now), Fault::Proxy, now);
        assert_eq!(shown(&routes.current(now + Duration::from_secs(100_000))), "h1 b");
    }

    #[test]
    fn failing_over_for_ever_begins_again_after_a_pause() {
        let routes = routes_with(2, TWO_GROUPS, Selection { indefinitely: true, ..Selection::default() });
        let (mut attempts, now) = (routes.attempts(), Instant::now());
        let mut seen = Vec::new();
        for _ in 0..13 {
            let route = routes.current(now);
            let next = attempts.failed(&route, Fault::Proxy, now);
            assert_ne!(next, Next::GiveUp);
            seen.push(shown(&route) + if next == Next::Switched { "" } else { " pause" });
        }
        let round = ["h0 a", "h0 b", "h0 c", "h1 a", "h1 b", "h1 c pause"];
        assert_eq!(seen, [&round[..], &round, &round[..1]].concat());
        // Without proxies it gives up all the same.
        let direct = routes_with(1, DIRECT, Selection { indefinitely: true, ..Selection::default() });
        assert_eq!(trace(&direct, Fault::Host), ["h0 DIRECT"]);
    }

    #[test]
    fn shards_share_the_objects_and_move_only_those_of_a_lost_member() {
        let names: Vec<String> = (0..4).map(|i| format!("http://p{i}")).collect();
        let group: Vec<Option<&str>> = names.iter().map(|name| Some(name.as_str())).collect();
        let shards = || routes_with(1, &[&group], Selection { shard: true, ..Selection::default() });
        let (routes, now) = (shards(), Instant::now());
        let paths: Vec<String> = (0..1000).map(|i| format!("data/{i}")).collect();
        let placed = |routes: &Routes| -> Vec<Route> { paths.iter().map(|p| routes.current_for(p, now)).collect() };
        let before = placed(&routes);
        assert_eq!(before, placed(&shards()), "another client places them elsewhere");
        let mut load = BTreeMap::new();
        before.iter().for_each(|route| *load.entry(route.proxy_name().to_owned()).or_insert(0) += 1);
        assert!(load.len() == 4 && load.values().all(|n| (180..320).contains(n)), "{load:?}");
        let lost = before[0].clone();
        routes.attempts().failed(&lost, Fault::Proxy, now);
        for (old, new) in before.iter().zip(placed(&routes)) {
            assert!(if old.proxy == lost.proxy { new.proxy != lost.proxy } else { *old == new }, "{old:?} {new:?}");
        }
    }

    #[test]
    fn new_addresses_keep_the_proxy_in_use_where_it_is_among_them() {
        let routes = routes(1, &[&[Some("p")]]);
        let at = |last| Some(Arc::new(Proxy { url: "p".into(), place: Place::At([10, 0, 0, last].into()) }));
        let now = Instant::now();
        routes.set_proxies(vec![vec![at(1), at(2)]]);
        assert_eq!(routes.current(now).proxy, at(1));
        assert_eq!(trace(&routes, Fault::Proxy), ["h0 p", "h0 p"]);
        routes.attempts().failed(&routes.current(now), Fault::Proxy, now);
        let used = routes.current(now).proxy;
        assert_eq!(used, at(2));
        routes.set_proxies(vec![vec![at(3), at(2)]]);
        assert_eq!(routes.current(now).proxy, used);
        routes.set_proxies(vec![vec![at(4)]]);
        assert_eq!(routes.current(now).proxy, at(4));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let mut routes = routes(1, DIRECT);
        routes.limits.retries = 5;
        let (mut attempts, now) = (routes.attempts(), Instant::now());
        let route = routes.current(now);
        let mut last = Duration::ZERO;
        for _ in 0..5 {
            let Next::Retry(pause) = attempts.failed(&route, Fault::HostTransfer, now) else { panic!("no retry") };
            assert!(pause <= Duration::from_millis(20), "{pause:?}");
            assert!(last.is_zero() || pause == (last * 2).min(Duration::from_millis(20)), "{last:?} {pause:?}");
            last = pause;
        }
        assert_eq!(attempts.failed(&route, Fault::HostTransfer, now), Next::GiveUp);
    }
}
