//! Every parameter of the field in one table: name, built-in default, meaning, and what becomes of it here.
//!
//! Names and meanings are those of the reference client 2.12. What is not honoured says why, in one of two
//! ways: nobody misses it ([`Effect::Silent`]), or whoever sets it expects something that does not happen
//! ([`Effect::Missing`]), which a mount warns about. A name that begins with `CVMFS_` and is not in the table
//! is warned about together with the nearest name that is.

use super::parameters::parse_flag;
use super::{Origin, Parameters, network};

/// What kind of value a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, a path, a list.
    Text,
    /// Yes or no.
    Flag,
    /// A number that is not negative.
    Number,
    /// A number.
    Signed,
}

/// What becomes of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does what it says.
    Honoured,
    /// It does nothing, for this reason, and nothing is lost by that.
    Silent(&'static str),
    /// It does nothing, for this reason, and whoever sets it should know.
    Missing(&'static str),
}

/// One parameter.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// Name; one `*` stands for any text.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Built-in default; empty when it is not set or depends on the user.
    pub default: &'static str,
    /// What it is for.
    pub meaning: &'static str,
    /// What becomes of it.
    pub effect: Effect,
}

const fn text(name: &'static str, default: &'static str, meaning: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Text, default, meaning, effect: Effect::Honoured }
}

const fn flag(name: &'static str, default: &'static str, meaning: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Flag, default, meaning, effect: Effect::Honoured }
}

const fn number(name: &'static str, default: &'static str, meaning: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Number, default, meaning, effect: Effect::Honoured }
}

const fn signed(name: &'static str, default: &'static str, meaning: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Signed, default, meaning, effect: Effect::Honoured }
}

const fn silent(name: &'static str, meaning: &'static str, why: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Text, default: "", meaning, effect: Effect::Silent(why) }
}

const fn missing(name: &'static str, meaning: &'static str, why: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Text, default: "", meaning, effect: Effect::Missing(why) }
}

const RESOLVER: &str = "names are resolved by the system";
const LOCAL_LOG: &str = "events go to the log file; see --log-level and --log-file";
const ONE_CACHE: &str = "there is one kind of cache: files in a directory";
const NO_METRICS: &str = "numbers are read with `cvmfs-client status --json`";
const NOT_BUILT: &str = "not built";

/// All parameters, grouped by what they are about.
#[rustfmt::skip]
pub const TABLE: &[Parameter] = &[
    // Servers and proxies
    text("CVMFS_SERVER_URL", "", "servers separated by ';', tried as a ring"),
    text("CVMFS_HTTP_PROXY", "DIRECT", "proxy groups separated by ';', members by '|', or DIRECT"),
    text("CVMFS_FALLBACK_PROXY", "", "groups behind the others; with them DIRECT is left out"),
    number("CVMFS_TIMEOUT", "5", "seconds to connect, and without data, through a proxy"),
    number("CVMFS_TIMEOUT_DIRECT", "10", "the same without a proxy"),
    number("CVMFS_LOW_SPEED_LIMIT", "1024", "bytes a second; slower for the timeout is a failure"),
    number("CVMFS_MAX_RETRIES", "1", "retries on the same path"),
    number("CVMFS_BACKOFF_INIT", "2", "seconds before the first retry, at most"),
    number("CVMFS_BACKOFF_MAX", "10", "seconds before any retry, at most"),
    number("CVMFS_PROXY_RESET_AFTER", "300", "seconds until the first proxy group is tried again; 0 = never"),
    number("CVMFS_HOST_RESET_AFTER", "1800", "seconds until the first server is tried again; 0 = never"),
    number("CVMFS_MAX_SERVERS", "0", "servers used of the list; 0 = all"),
    flag("CVMFS_FOLLOW_REDIRECTS", "no", "follow up to 4 redirects"),
    number("CVMFS_PARALLEL_DOWNLOADS", "16", "requests at the same time, 1 to 256; three quarters of them for what is fetched ahead"),
    text("CVMFS_EXTERNAL_URL", "", "servers of external files, separated by ';'"),
    text("CVMFS_EXTERNAL_HTTP_PROXY", "", "proxies for external files; those of the repository unless set"),
    text("CVMFS_EXTERNAL_FALLBACK_PROXY", "", "groups behind CVMFS_EXTERNAL_HTTP_PROXY"),
    number("CVMFS_EXTERNAL_TIMEOUT", "", "seconds through a proxy for external files; CVMFS_TIMEOUT unless set"),
    number("CVMFS_EXTERNAL_TIMEOUT_DIRECT", "", "the same without a proxy; CVMFS_TIMEOUT_DIRECT unless set"),
    number("CVMFS_EXTERNAL_MAX_SERVERS", "0", "external servers used of the list; 0 = all"),
    missing("CVMFS_PAC_URLS", "where proxies are described", "proxies are not discovered; name them in CVMFS_HTTP_PROXY"),
    flag("CVMFS_USE_GEOAPI", "no", "a server sorts the servers by distance"),
    missing("CVMFS_USE_CDN", "servers behind a CDN", "only the domain's own configuration files know them"),
    flag("CVMFS_PROXY_SHARD", "no", "spread objects over the proxies of a group, the same way for all clients"),
    flag("CVMFS_FAILOVER_INDEFINITELY", "no", "never give up on proxies"),
    missing("CVMFS_METALINK_URL", "servers by metalink", NOT_BUILT),
    silent("CVMFS_METALINK_RESET_AFTER", "back to the first metalink server", NOT_BUILT),
    silent("CVMFS_PROXY_TEMPLATE", "name for the Geo-API", "servers are tried in the order given"),
    number("CVMFS_MAX_IPADDR_PER_PROXY", "0", "addresses used of one proxy name; 0 = all"),
    number("CVMFS_IPFAMILY_PREFER", "4", "4 or 6: addresses of a proxy name that has both"),
    number("CVMFS_DNS_TIMEOUT", "3", "seconds to look up the name of a proxy"),
    number("CVMFS_DNS_MIN_TTL", "60", "seconds until names of proxies are looked up again, at least"),
    number("CVMFS_DNS_MAX_TTL", "86400", "the same, at most"),
    silent("CVMFS_DNS_RETRIES", "retries of lookups", RESOLVER),
    silent("CVMFS_DNS_SERVER", "who is asked", RESOLVER),
    silent("CVMFS_DNS_ROAMING", "follow changes of the resolver's configuration", RESOLVER),
    silent("CVMFS_SEND_INFO_HEADER", "send the path with requests", "paths stay on this machine"),
    silent("CVMFS_HTTP_TRACING", "send process and user with requests", "they stay on this machine"),
    silent("CVMFS_HTTP_TRACING_HEADERS", "send these headers with requests", NOT_BUILT),
    text("X509_CERT_BUNDLE", "", "file of certificate authorities, beside those of the system"),
    text("X509_CERT_DIR", "", "directory of certificate authorities, beside those of the system"),
    silent("CVMFS_USE_SSL_SYSTEM_CA", "certificate authorities of the system", "they are always used"),
    // Trust and identity
    text("CVMFS_PUBLIC_KEY", "", "master public keys, separated by ':'; directories stand for their *.pub"),
    text("CVMFS_KEYS_DIR", "", "directory of *.pub, when CVMFS_PUBLIC_KEY is not set; else keys/ beside the configuration"),
    text("CVMFS_BLACKLIST", "", "refused certificates and revisions; else blacklist beside the configuration"),
    text("CVMFS_DEFAULT_DOMAIN", "", "appended to repository names without a dot"),
    text("CVMFS_REPOSITORIES", "", "repositories of this machine, separated by commas or blanks: `probe`, CVMFS_STRICT_MOUNT"),
    flag("CVMFS_STRICT_MOUNT", "no", "mount only what CVMFS_REPOSITORIES names"),
    text("CVMFS_CONFIG_REPOSITORY", "", "repository with further configuration files"),
    flag("CVMFS_CONFIG_REPO_REQUIRED", "no", "mount nothing while it is not there"),
    text("CVMFS_MOUNT_DIR", "/cvmfs", "where repositories are mounted"),
    missing("CVMFS_AUTHZ_HELPER", "who may read secured repositories", "secured repositories are not supported"),
    silent("CVMFS_AUTHZ_SEARCH_PATH", "where such helpers are", "secured repositories are not supported"),
    // Cache
    text("CVMFS_CACHE_BASE", "", "parent of the cache [/var/lib, users ~/.cache]; ours is cvmfs-client below it"),
    text("CVMFS_CACHE_DIR", "", "the cache directory itself; wins over CVMFS_CACHE_BASE"),
    flag("CVMFS_SHARED_CACHE", "yes", "one cache for all repositories"),
    signed("CVMFS_QUOTA_LIMIT", "4000", "MiB the cache may hold; 0 and below = unlimited"),
    text("CVMFS_ALIEN_CACHE", "", "a cache that a group shares: objects 0660, no limit, never cleaned"),
    text("CVMFS_WORKSPACE", "", "where breadcrumbs and inode numbers live, if not in the cache"),
    silent("CVMFS_CACHE_REFCOUNT", "one descriptor for all opens of an object", "descriptors are not scarce: see CVMFS_NFILES"),
    missing("CVMFS_STREAMING_CACHE", "keep no file content", "content is kept; give a small CVMFS_QUOTA_LIMIT"),
    Parameter { name: "CVMFS_CACHE_PRIMARY", kind: Kind::Text, default: "default", meaning: "which cache instance to use", effect: Effect::Missing(ONE_CACHE) },
    missing("CVMFS_CACHE_*_TYPE", "kind of a cache instance", ONE_CACHE),
    silent("CVMFS_CACHE_*_UPPER", "upper part of a tiered cache", ONE_CACHE),
    silent("CVMFS_CACHE_*_LOWER", "lower part of a tiered cache", ONE_CACHE),
    silent("CVMFS_CACHE_*_LOWER_READONLY", "lower part is only read", ONE_CACHE),
    silent("CVMFS_CACHE_*_LOCATOR", "address of a cache plug-in", ONE_CACHE),
    silent("CVMFS_CACHE_*_CMDLINE", "how a cache plug-in is started", ONE_CACHE),
    silent("CVMFS_CACHE_*_SIZE", "size of a cache in memory", ONE_CACHE),
    silent("CVMFS_CACHE_*_MALLOC", "allocator of a cache in memory", ONE_CACHE),
    silent("CVMFS_CACHE_*_BASE", "CVMFS_CACHE_BASE of an instance", ONE_CACHE),
    silent("CVMFS_CACHE_*_SHARED", "CVMFS_SHARED_CACHE of an instance", ONE_CACHE),
    silent("CVMFS_CACHE_*_ALIEN", "CVMFS_ALIEN_CACHE of an instance", ONE_CACHE),
    silent("CVMFS_CACHE_*_QUOTA_LIMIT", "CVMFS_QUOTA_LIMIT of an instance", ONE_CACHE),
    silent("CVMFS_CACHE_*_REFCOUNT", "CVMFS_CACHE_REFCOUNT of an instance", ONE_CACHE),
    // What is fetched ahead
    flag("CVMFS_PREFETCH", "yes", "fetch ahead what will be wanted: lists, bundles, the next files and chunks"),
    number("CVMFS_PREFETCH_BUDGET", "512", "MiB that one start-up list or bundle may fetch, at most a quarter of the cache"),
    number("CVMFS_PREFETCH_WASTE", "8", "MiB that may be guessed in vain, beside as much as was asked for"),
    number("CVMFS_PREFETCH_LATENCY", "3", "ms from which on answers take long: what files name is fetched, and trees with all requests at a time; 0 = always"),
    flag("CVMFS_PREFETCH_LEARN", "yes", "keep what a start has touched for the next one"),
    flag("CVMFS_PREFETCH_FILEBUNDLES", "yes", "fetch what .cvmfsbundle-NAME says when NAME is opened"),
    silent("CVMFS_BUNDLE_POOL_SIZE", "threads for bundles", "three quarters of CVMFS_PARALLEL_DOWNLOADS"),
    // Revisions
    number("CVMFS_MAX_TTL", "0", "minutes between checks for a new revision, at most; 0 = as the repository says"),
    flag("CVMFS_AUTO_UPDATE", "yes", "look for new revisions"),
    text("CVMFS_ROOT_HASH", "", "show this root catalog for ever"),
    text("CVMFS_REPOSITORY_TAG", "", "show this named snapshot for ever"),
    text("CVMFS_REPOSITORY_DATE", "", "show the newest snapshot not after YYYY-MM-DDTHH:MM:SSZ for ever"),
    silent("CVMFS_INITIAL_GENERATION", "first inode generation", "inode numbers are kept in a database"),
    // What files look like
    flag("CVMFS_CLAIM_OWNERSHIP", "no", "all files belong to the user of the client"),
    text("CVMFS_UID_MAP", "", "file of `<from> <to>` and `* <to>` for users"),
    text("CVMFS_GID_MAP", "", "the same for groups"),
    flag("CVMFS_WORLD_READABLE", "no", "everybody may read everything"),
    flag("CVMFS_CHECK_PERMISSIONS", "yes", "the kernel checks permissions"),
    flag("CVMFS_CACHE_SYMLINKS", "yes", "the kernel may cache link targets"),
    number("CVMFS_KCACHE_TIMEOUT", "", "seconds for which the kernel may cache names and attributes [until it is told, or 60]"),
    text("CVMFS_PASSTHROUGH", "off", "auto = the kernel opens files, and reads them from the cache itself (chunked ones once all chunks are there); also -o passthrough="),
    flag("CVMFS_XATTRS", "yes", "no = no extended attributes at all, so that the kernel need not ask for them"),
    text("CVMFS_MAGIC_XATTRS_VISIBILITY", "rootonly", "which listings show information attributes: rootonly, never, always"),
    text("CVMFS_HIDE_MAGIC_XATTRS", "", "yes = never, no = always, when CVMFS_MAGIC_XATTRS_VISIBILITY is not set"),
    text("CVMFS_XATTR_PROTECTED_XATTRS", "", "information attributes for the groups below and root only, separated by commas"),
    text("CVMFS_XATTR_PRIVILEGED_GIDS", "", "groups that may read them, separated by commas"),
    text("CVMFS_FQRN", "", "value of $(CVMFS_FQRN) in links, if not the repository's name"),
    text("CVMFS_ARCH", "", "value of $(CVMFS_ARCH) in links, if not the machine's name"),
    missing("CVMFS_SUID", "honour set-id bits", "the mount is always nosuid; an overlay on top honours them"),
    missing("CVMFS_ENFORCE_ACLS", "honour POSIX ACLs", NOT_BUILT),
    missing("CVMFS_MOUNT_RW", "mount read-write", "the mount is always read-only"),
    missing("CVMFS_NFS_SOURCE", "export the mount by NFS", "not tested"),
    silent("CVMFS_NFS_SHARED", "directory for NFS", "see CVMFS_NFS_SOURCE"),
    silent("CVMFS_NFS_INTERLEAVED_INODES", "inode numbers for NFS", "inode numbers are kept in a database"),
    silent("CVMFS_STATFS_CACHE_TIMEOUT", "seconds to cache statfs", "statfs costs nothing here"),
    silent("CVMFS_MEMCACHE_SIZE", "MiB for inode and path caches", "memory follows what the kernel holds"),
    silent("CVMFS_FUSE_NOTIFY_INVALIDATION", "tell the kernel what changed", "it is always told"),
    // The process
    number("CVMFS_NFILES", "131072", "limit of open files; 512 of them are kept for the client itself"),
    number("CVMFS_CATALOG_WATERMARK", "1024", "nested catalogs that stay attached, at most"),
    number("CVMFS_FUSE3_MAX_THREADS", "", "threads that read requests [one a core, 4 to 16]"),
    signed("CVMFS_OOM_SCORE_ADJ", "", "-1000 to 1000: how readily the kernel kills the client for memory"),
    text("CVMFS_CPU_AFFINITY", "", "cores the client may use, separated by commas"),
    text("CVMFS_USYSLOG", "", "log file of the background process; --log-file wins"),
    silent("CVMFS_FUSE3_IDLE_THREADS", "threads kept without work", "threads are kept"),
    silent("CVMFS_USER", "user of the client", "it runs as whoever starts it"),
    silent("CVMFS_RELOAD_SOCKETS", "sockets for reloading", "there is no reload: unmount and mount"),
    silent("CVMFS_TALK_SOCKET", "control socket", "its place follows from the mountpoint"),
    silent("CVMFS_TALK_OWNER", "owner of the control socket", "it belongs to the user of the client"),
    silent("CVMFS_SYSLOG_LEVEL", "syslog level", LOCAL_LOG),
    silent("CVMFS_SYSLOG_FACILITY", "syslog facility", LOCAL_LOG),
    silent("CVMFS_SYSLOG_PREFIX", "name in syslog", LOCAL_LOG),
    missing("CVMFS_DEBUGLOG", "debug log", LOCAL_LOG),
    missing("CVMFS_TRACEFILE", "trace of all calls", LOCAL_LOG),
    silent("CVMFS_TRACEBUFFER", "entries of the trace buffer", LOCAL_LOG),
    silent("CVMFS_TRACEBUFFER_THRESHOLD", "when the trace is written", LOCAL_LOG),
    silent("CVMFS_INSTRUMENT_FUSE", "measure the latency of calls", NO_METRICS),
    missing("CVMFS_TELEMETRY_*", "send counters", NO_METRICS),
    missing("CVMFS_INFLUX_*", "send counters", NO_METRICS),
    silent("CVMFS_CLIENT_PROFILE", "choice of proxies in the shipped files", "only shipped files use it"),
    silent("CVMFS_AUTOFS_TIMEOUT", "seconds until autofs unmounts", "the automounter reads it"),
    silent("CVMFS_SYSTEMD_NOKILL", "survive the end of the session", "systemd does not know the client"),
    silent("CVMFS_REPOSITORY_NAME", "name of the repository", "it is given on the command line"),
];

/// The line of the table for a name.
pub fn find(name: &str) -> Option<&'static Parameter> {
    let exact = TABLE.iter().find(|parameter| parameter.name == name);
    exact.or_else(|| TABLE.iter().find(|parameter| matches(parameter.name, name)))
}

fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return false };
    let middle = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    middle.is_some_and(|middle| !middle.is_empty())
}

/// What whoever wrote these parameters should know: names that nobody knows, and wishes that stay unfulfilled.
pub fn remarks(parameters: &Parameters) -> Vec<String> {
    let mut remarks = Vec::new();
    for (name, value, origin) in parameters.iter().filter(|(name, ..)| name.starts_with("CVMFS_")) {
        match find(name) {
            None => {
                let nearest = nearest(name).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                remarks.push(format!("unknown parameter {name} ({origin}){nearest}"));
            }
            Some(Parameter { effect: Effect::Missing(why), default, .. })
                if value != *default && parse_flag(value) != Some(false) =>
            {
                remarks.push(format!("{name}={value} ({origin}) has no effect: {why}"));
            }
            Some(_) if network::PROXY_LISTS.contains(&name) && network::asks_for_discovery(value) => {
                remarks.push(format!("{name}={value} ({origin}): proxies are not discovered, auto is left out"));
            }
            Some(_) => {}
        }
    }
    remarks
}

/// The known name that takes the fewest changes, if they are few.
fn nearest(name: &str) -> Option<&'static str> {
    let names = TABLE.iter().map(|parameter| parameter.name).filter(|known| !known.contains('*'));
    let (distance, known) = names.map(|known| (edits(name, known), known)).min()?;
    (distance <= name.len() / 4).then_some(known)
}

/// Letters to add, drop or replace to get from one name to the other.
pub(crate) fn edits(from: &str, to: &str) -> usize {
    let to = to.as_bytes();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let cost = (diagonal + usize::from(a != *b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[to.len()]
}

/// One line of `showconfig`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// Name.
    pub name: String,
    /// Value in force; empty when it is not set.
    pub value: String,
    /// Where it comes from.
    pub origin: String,
    /// Whether it does anything.
    pub honoured: bool,
    /// Why it does nothing, or that nobody knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

/// Everything in force, sorted by name: all honoured parameters, and what else is set.
pub fn shown(parameters: &Parameters) -> Vec<Shown> {
    let set = parameters.iter().map(|(name, value, origin)| {
        let remark = match find(name).map(|parameter| parameter.effect) {
            Some(Effect::Honoured) => None,
            Some(Effect::Silent(why) | Effect::Missing(why)) => Some(format!("no effect: {why}")),
            None if name.starts_with("CVMFS_") => Some("unknown".into()),
            None => Some("symlink variable".into()),
        };
        Shown { name: name.into(), value: value.into(), origin: origin.to_string(), honoured: remark.is_none(), remark }
    });
    let defaults = TABLE.iter().filter(|p| p.effect == Effect::Honoured && parameters.get(p.name).is_none());
    let defaults = defaults.map(|p| Shown {
        name: p.name.into(),
        value: p.default.into(),
        origin: if p.default.is_empty() { "not set".into() } else { Origin::Default.to_string() },
        honoured: true,
        remark: None,
    });
    let mut all: Vec<Shown> = set.chain(defaults).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_well_formed() {
        for (i, parameter) in TABLE.iter().enumerate() {
            let Parameter { name, kind, default, meaning, effect } = *parameter;
            assert!(!meaning.is_empty(), "{name}");
            assert!(TABLE[i + 1..].iter().all(|other| other.name != name), "{name} is there twice");
            assert!(find(&name.replace('*', "x")).is_some_and(|found| found.name == name), "{name}");
            let fits = match kind {
                Kind::Text => true,
                Kind::Flag => !default.is_empty() && parse_flag(default).is_some(),
                Kind::Number => default.is_empty() || default.parse::<u64>().is_ok(),
                Kind::Signed => default.is_empty() || default.parse::<i64>().is_ok(),
            };
            assert!(fits, "{name} has the default {default:?}");
            assert!(effect == Effect::Honoured || kind == Kind::Text, "{name}");
        }
    }

    #[test]
    fn unknown_names_and_unfulfilled_wishes_are_remarked() {
        for (name, value, expected) in [
            ("CVMFS_SEVER_URL", "x", Some("did you mean CVMFS_SERVER_URL?")),
            ("CVMFS_QUOTALIMIT", "1", Some("did you mean CVMFS_QUOTA_LIMIT?")),
            ("CVMFS_ZZZZZZ", "1", Some("unknown parameter CVMFS_ZZZZZZ (from -o)")),
            ("CVMFS_SUID", "yes", Some("CVMFS_SUID=yes (from -o) has no effect: the mount is always nosuid")),
            ("CVMFS_SUID", "no", None),
            ("CVMFS_CACHE_PRIMARY", "default", None),
            ("CVMFS_CACHE_ram_TYPE", "ram", Some("one kind of cache")),
            ("CVMFS_DNS_SERVER", "127.0.0.1", None),
            ("CVMFS_HTTP_PROXY", "auto;DIRECT", Some("CVMFS_HTTP_PROXY=auto;DIRECT (from -o): proxies are not")),
            ("CVMFS_HTTP_PROXY", "http://automatic:3128;DIRECT", None),
            ("CVMFS_TIMEOUT", "3", None),
            ("SITE_VARIABLE", "3", None),
        ] {
            let mut parameters = Parameters::default();
            parameters.set(name, value, Origin::Option);
            let remarks = remarks(&parameters).join("\n");
            match expected {
                Some(expected) => assert!(remarks.contains(expected), "{name}: {remarks}"),
                None => assert_eq!(remarks, "", "{name}"),
            }
        }
        let mut parameters = Parameters::default();
        parameters.set("CVMFS_ZZZZZZ", "1", Origin::Option);
        assert!(!remarks(&parameters)[0].contains("did you mean"), "nothing is near");
    }

    #[test]
    fn distances_count_single_changes() {
        for (a, b, distance) in [("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "ab", 1), ("", "xy", 2)] {
            assert_eq!(edits(a, b), distance, "{a} {b}");
        }
    }
}
