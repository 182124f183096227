//! How servers and proxies are chosen: the parameters for it.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{ConfigError, Parameters};

/// Family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// How servers and proxies are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Members of a proxy group share the objects by name instead of the clients by chance.
    pub shard: bool,
    /// Once everything failed, begin again instead of giving up.
    pub indefinitely: bool,
    /// Addresses used of each proxy name; `None` = all.
    pub max_addresses: Option<usize>,
    /// Addresses used where a proxy name has both kinds.
    pub prefer: Family,
    /// How long the name of a proxy is looked up.
    pub lookup: Duration,
    /// Time until names are looked up again: the longer one where all were found, the shorter where not.
    pub lookup_again: (Duration, Duration),
    /// Whether a server sorts the servers by distance.
    pub geo: bool,
    /// Servers used; `None` = all.
    pub max_servers: Option<usize>,
    /// Files and directories of certificate authorities, beside those of the system.
    pub authorities: Vec<PathBuf>,
}

/// The system's resolver does not tell how long its answers are valid.
const LOOKUP_AGAIN: Duration = Duration::from_secs(300);

impl Default for Selection {
    fn default() -> Selection {
        Selection {
            shard: false,
            indefinitely: false,
            max_addresses: None,
            prefer: Family::V4,
            lookup: Duration::from_secs(3),
            lookup_again: (Duration::from_secs(60), LOOKUP_AGAIN),
            geo: false,
            max_servers: None,
            authorities: Vec::new(),
        }
    }
}

impl Selection {
    /// Reads the parameters of the repository's servers.
    pub fn from_parameters(p: &Parameters) -> Result<Selection, ConfigError> {
        let at_most = |name| p.number(name).map(|count: usize| (count > 0).then_some(count));
        let prefer = match p.number("CVMFS_IPFAMILY_PREFER")? {
            0 | 4 => Family::V4,
            6 => Family::V6,
            _ => return Err(p.wrong("CVMFS_IPFAMILY_PREFER", "4 or 6")),
        };
        let shortest = p.seconds("CVMFS_DNS_MIN_TTL")?;
        let longest = p.seconds("CVMFS_DNS_MAX_TTL")?.max(shortest);
        let authorities = ["X509_CERT_BUNDLE", "X509_CERT_DIR"].map(|name| p.effective(name));
        Ok(Selection {
            shard: p.flag("CVMFS_PROXY_SHARD")?,
            indefinitely: p.flag("CVMFS_FAILOVER_INDEFINITELY")?,
            max_addresses: at_most("CVMFS_MAX_IPADDR_PER_PROXY")?,
            prefer,
            lookup: p.seconds("CVMFS_DNS_TIMEOUT")?.max(Duration::from_secs(1)),
            lookup_again: (shortest, LOOKUP_AGAIN.clamp(shortest, longest)),
            geo: p.flag("CVMFS_USE_GEOAPI")?,
            max_servers: at_most("CVMFS_MAX_SERVERS")?,
            authorities: authorities.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
        })
    }

    /// The same for external files, whose servers are nobody's to sort and were counted before.
    pub fn of_external(&self) -> Selection {
        Selection { geo: false, max_servers: None, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Origin;

    fn read(values: &[(&str, &str)]) -> Result<Selection, ConfigError> {
        let mut parameters = Parameters::default();
        values.iter().for_each(|(name, value)| parameters.set(name, *value, Origin::Option));
        Selection::from_parameters(&parameters)
    }

    #[test]
    fn nothing_set_means_the_defaults() {
        assert_eq!(read(&[]).unwrap(), Selection::default());
    }

    #[test]
    fn every_parameter_is_read() {
        let all = read(&[
            ("CVMFS_PROXY_SHARD", "yes"),
            ("CVMFS_FAILOVER_INDEFINITELY", "yes"),
            ("CVMFS_MAX_IPADDR_PER_PROXY", "2"),
            ("CVMFS_IPFAMILY_PREFER", "6"),
            ("CVMFS_DNS_TIMEOUT", "7"),
            ("CVMFS_DNS_MIN_TTL", "5"),
            ("CVMFS_DNS_MAX_TTL", "9"),
            ("CVMFS_USE_GEOAPI", "yes"),
            ("CVMFS_MAX_SERVERS", "3"),
            ("X509_CERT_DIR", "/ca"),
        ]);
        let expected = Selection {
            shard: true,
            indefinitely: true,
            max_addresses: Some(2),
            prefer: Family::V6,
            lookup: Duration::from_secs(7),
            lookup_again: (Duration::from_secs(5), Duration::from_secs(9)),
            geo: true,
            max_servers: Some(3),
            authorities: vec!["/ca".into()],
        };
        assert_eq!(all.unwrap(), expected);
        assert!(read(&[("CVMFS_IPFAMILY_PREFER", "5")]).unwrap_err().to_string().contains("4 or 6"));
    }
}
