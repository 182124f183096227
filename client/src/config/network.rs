//! Servers and proxies as lists, and how patient we are with them.

use std::time::Duration;

use super::{ConfigError, Parameters};

/// Timeouts and retries of downloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkLimits {
    /// Connect and low-speed time through a proxy.
    pub timeout_proxy: Duration,
    /// The same without a proxy.
    pub timeout_direct: Duration,
    /// Bytes a second below which a transfer counts as stalled.
    pub low_speed: u64,
    /// Retries on the same path.
    pub retries: u32,
    /// First pause between retries.
    pub backoff: Duration,
    /// Longest pause between retries.
    pub backoff_max: Duration,
    /// After this time the first proxy group is tried again.
    pub proxy_reset: Option<Duration>,
    /// After this time the first server is tried again.
    pub host_reset: Option<Duration>,
    /// Whether redirects are followed (up to 4).
    pub follow_redirects: bool,
    /// Requests at the same time.
    pub parallel: usize,
}

impl NetworkLimits {
    pub(super) fn from_parameters(p: &Parameters) -> Result<NetworkLimits, ConfigError> {
        let reset = |name| p.seconds(name).map(|time| (!time.is_zero()).then_some(time));
        Ok(NetworkLimits {
            timeout_proxy: p.seconds("CVMFS_TIMEOUT")?,
            timeout_direct: p.seconds("CVMFS_TIMEOUT_DIRECT")?,
            low_speed: p.number("CVMFS_LOW_SPEED_LIMIT")?,
            retries: p.number("CVMFS_MAX_RETRIES")?,
            backoff: p.seconds("CVMFS_BACKOFF_INIT")?,
            backoff_max: p.seconds("CVMFS_BACKOFF_MAX")?,
            proxy_reset: reset("CVMFS_PROXY_RESET_AFTER")?,
            host_reset: reset("CVMFS_HOST_RESET_AFTER")?,
            follow_redirects: p.flag("CVMFS_FOLLOW_REDIRECTS")?,
            parallel: p.number::<usize>("CVMFS_PARALLEL_DOWNLOADS")?.clamp(1, 256),
        })
    }

    /// The same for external files, which may have timeouts of their own.
    pub(super) fn of_external(self, p: &Parameters) -> Result<NetworkLimits, ConfigError> {
        let own = |name, general| Ok(p.number_if_set(name)?.map_or(general, Duration::from_secs));
        Ok(NetworkLimits {
            timeout_proxy: own("CVMFS_EXTERNAL_TIMEOUT", self.timeout_proxy)?,
            timeout_direct: own("CVMFS_EXTERNAL_TIMEOUT_DIRECT", self.timeout_direct)?,
            ..self
        })
    }
}

/// Servers and proxies of one kind of data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// Servers, tried as a ring; without trailing slash.
    pub servers: Vec<String>,
    /// Proxy groups: members share the load, groups are tried in order. `None` is a direct connection.
    pub proxies: Vec<Vec<Option<String>>>,
}

impl Network {
    /// Where the repository is; the list of servers may be empty.
    pub(super) fn of_repository(p: &Parameters, fqrn: &str) -> Result<Network, ConfigError> {
        Ok(Network {
            servers: servers(p, fqrn, "CVMFS_SERVER_URL", "CVMFS_MAX_SERVERS")?,
            proxies: proxies(p, fqrn, "CVMFS_HTTP_PROXY", "CVMFS_FALLBACK_PROXY")?,
        })
    }

    /// Where external files are, if anywhere; without proxies of their own through those of the repository.
    pub(super) fn of_external(p: &Parameters, fqrn: &str, main: &Network) -> Result<Option<Network>, ConfigError> {
        let servers = servers(p, fqrn, "CVMFS_EXTERNAL_URL", "CVMFS_EXTERNAL_MAX_SERVERS")?;
        let proxies = match p.text("CVMFS_EXTERNAL_HTTP_PROXY", fqrn) {
            Some(_) => proxies(p, fqrn, "CVMFS_EXTERNAL_HTTP_PROXY", "CVMFS_EXTERNAL_FALLBACK_PROXY")?,
            None => main.proxies.clone(),
        };
        Ok((!servers.is_empty()).then_some(Network { servers, proxies }))
    }
}

fn servers(p: &Parameters, fqrn: &str, name: &str, most: &str) -> Result<Vec<String>, ConfigError> {
    let urls = p.text(name, fqrn).unwrap_or_default();
    let urls = urls.split(';').map(|url| url.trim().trim_end_matches('/').to_owned()).filter(|url| !url.is_empty());
    Ok(match p.number(most)? {
        0 => urls.collect(),
        // The nearest ones count, once they are sorted.
        _ if p.flag("CVMFS_USE_GEOAPI")? => urls.collect(),
        most => urls.take(most).collect(),
    })
}

/// The member that asks for automatic discovery, of which we know nothing.
const AUTO: &str = "auto";

/// Parameters that list proxies.
pub(super) const PROXY_LISTS: [&str; 4] =
    ["CVMFS_HTTP_PROXY", "CVMFS_FALLBACK_PROXY", "CVMFS_EXTERNAL_HTTP_PROXY", "CVMFS_EXTERNAL_FALLBACK_PROXY"];

/// Whether a list of proxies asks for some that are to be discovered.
pub(super) fn asks_for_discovery(list: &str) -> bool {
    members(list).any(|member| member == AUTO)
}

fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split([';', '|']).map(str::trim).filter(|member| !member.is_empty())
}

/// Groups separated by `;`, members by `|`. Fallback groups come last; with them no group is direct.
fn proxies(p: &Parameters, fqrn: &str, main: &str, fallback: &str) -> Result<Vec<Vec<Option<String>>>, ConfigError> {
    let mut all = groups(p, fqrn, main);
    let last = groups(p, fqrn, fallback);
    // The connection must not become direct because nothing else is understood.
    if all.is_empty() && last.is_empty() && asks_for_discovery(p.effective(main)) {
        return Err(p.wrong(main, "a list of proxies; automatic discovery is not supported"));
    }
    if !last.is_empty() {
        all.extend(last);
        all.iter_mut().for_each(|group| group.retain(Option::is_some));
        all.retain(|group| !group.is_empty());
    }
    if all.is_empty() {
        all.push(vec![None]);
    }
    Ok(all)
}

fn groups(p: &Parameters, fqrn: &str, name: &str) -> Vec<Vec<Option<String>>> {
    let text = p.text(name, fqrn).unwrap_or_default();
    let member = |proxy: &str| match proxy {
        "DIRECT" => None,
        proxy if proxy.contains("://") => Some(proxy.to_owned()),
        proxy => Some(format!("http://{proxy}")),
    };
    let group = |group| members(group).filter(|proxy| *proxy != AUTO).map(member).collect::<Vec<_>>();
    text.split(';').map(group).filter(|group| !group.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;

    fn parameters(values: &[(&str, &str)]) -> Parameters {
        let mut p = Parameters::default();
        values.iter().for_each(|(name, value)| p.set(name, *value, Origin::Option));
        p
    }

    #[test]
    fn proxies_have_groups_members_and_fallbacks() {
        let some = |s: &str| Some(s.to_owned());
        for (values, expected) in [
            (
                &[("CVMFS_HTTP_PROXY", "http://p1:3128|p2;http://p3;DIRECT")][..],
                vec![vec![some("http://p1:3128"), some("http://p2")], vec![some("http://p3")], vec![None]],
            ),
            (
                &[("CVMFS_HTTP_PROXY", "p1;DIRECT"), ("CVMFS_FALLBACK_PROXY", "f")],
                vec![vec![some("http://p1")], vec![some("http://f")]],
            ),
            (&[("CVMFS_HTTP_PROXY", "auto;DIRECT")], vec![vec![None]]),
            (&[("CVMFS_HTTP_PROXY", "auto;p1|auto;auto;p2")], vec![vec![some("http://p1")], vec![some("http://p2")]]),
            (&[("CVMFS_HTTP_PROXY", "auto"), ("CVMFS_FALLBACK_PROXY", "f")], vec![vec![some("http://f")]]),
            (&[("CVMFS_HTTP_PROXY", "")], vec![vec![None]]),
            (&[], vec![vec![None]]),
        ] {
            let network = Network::of_repository(&parameters(values), "a.b").unwrap();
            assert_eq!(network.proxies, expected, "{values:?}");
        }
    }

    #[test]
    fn servers_are_cleaned_and_counted() {
        let list = ("CVMFS_SERVER_URL", "http://a/@fqrn@/; ;http://b/@org@;http://c");
        let servers = |most: &str| {
            let p = parameters(&[list, ("CVMFS_MAX_SERVERS", most)]);
            Network::of_repository(&p, "x.y.z").unwrap().servers
        };
        assert_eq!(servers(""), ["http://a/x.y.z", "http://b/x", "http://c"]);
        assert_eq!(servers("2"), ["http://a/x.y.z", "http://b/x"]);
    }

    #[test]
    fn external_files_inherit_proxies_and_timeouts() {
        let p = parameters(&[("CVMFS_HTTP_PROXY", "p"), ("CVMFS_TIMEOUT", "3"), ("CVMFS_EXTERNAL_URL", "http://e")]);
        let main = Network::of_repository(&p, "a.b").unwrap();
        let external = Network::of_external(&p, "a.b", &main).unwrap().unwrap();
        assert_eq!((external.servers, external.proxies), (vec!["http://e".to_owned()], main.proxies.clone()));
        let limits = NetworkLimits::from_parameters(&p).unwrap();
        assert_eq!(limits.of_external(&p).unwrap(), limits);
        let mut p = p;
        p.set("CVMFS_EXTERNAL_TIMEOUT", "8", Origin::Option);
        p.set("CVMFS_EXTERNAL_HTTP_PROXY", "DIRECT", Origin::Option);
        assert_eq!(limits.of_external(&p).unwrap().timeout_proxy, Duration::from_secs(8));
        assert_eq!(Network::of_external(&p, "a.b", &main).unwrap().unwrap().proxies, [[None]]);
        assert_eq!(Network::of_external(&parameters(&[]), "a.b", &main).unwrap(), None);
    }
}
