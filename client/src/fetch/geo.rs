//! The Geo-API: a server sorts the servers by their distance from the client.
//!
//! Facts: `GET <server>/api/v1.0/geo/<proxy>/<host>,<host>,…` gives the numbers of the hosts from 1, nearest
//! first, separated by commas. `<proxy>` is the name of the proxy's machine, or a unique name of the client
//! when it asks directly. An answer that is no permutation is worth nothing.

/// Longest answer worth reading.
pub(super) const MAX_ANSWER: usize = 64 * 1024;
/// Servers asked at most.
pub(super) const ASKED: usize = 3;

/// What is asked for: `servers` and `proxy` are URLs.
pub(super) fn path<'a>(proxy: Option<&str>, servers: impl Iterator<Item = &'a str>) -> String {
    let host = |url: &str| reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let client = || {
        // Nobody looks for this client by its name; it need only be its own.
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_or_else(|_| "direct".into(), |id| id.trim().into())
    };
    let from = proxy.and_then(host).unwrap_or_else(client);
    let hosts: Vec<String> = servers.map(|url| host(url).unwrap_or_else(|| "invalid".into())).collect();
    format!("api/v1.0/geo/{from}/{}", hosts.join(","))
}

/// Indices of the servers in the order of the answer, if it is one.
pub(super) fn order(answer: &[u8], servers: usize) -> Option<Vec<usize>> {
    let text = std::str::from_utf8(answer).ok()?;
    let order: Vec<usize> =
        text.trim().split(',').map(|n| n.parse::<usize>().ok()?.checked_sub(1)).collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..servers).then_some(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_permutation_counts() {
        for (answer, expected) in [
            ("2,1,3\n", Some(vec![1, 0, 2])),
            ("1,2,3", Some(vec![0, 1, 2])),
            ("1,2", None),
            ("1,2,3,4", None),
            ("1,1,3", None),
            ("0,1,2", None),
            ("1,2,18446744073709551616", None),
            ("1, 2,3", None),
            ("", None),
            ("<html>", None),
        ] {
            assert_eq!(order(answer.as_bytes(), 3), expected, "{answer:?}");
        }
        assert_eq!(order(b"\xff", 1), None);
    }

    #[test]
    fn the_question_names_proxy_and_servers_without_ports() {
        let servers = ["http://a.example.org:8000/cvmfs/x", "https://b.example.org/cvmfs/x"];
        assert_eq!(
            path(Some("http://squid.example.org:3128"), servers.into_iter()),
            "api/v1.0/geo/squid.example.org/a.example.org,b.example.org"
        );
        let (one, two) = (path(None, servers.into_iter()), path(None, servers.into_iter()));
        assert!(one.len() > 60 && one != two, "{one}");
    }
}
