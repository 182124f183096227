//! Which bucket a repository is in, and how its server is spoken to.
//!
//! Two sources, one value: the location `s3://BUCKET/PREFIX`, whose server and credentials come from the usual
//! `AWS_*` variables, and the `CVMFS_S3_*` settings of a repository that the stock tools made (CernVM-FS documentation,
//! "S3 Compatible Storage Systems"). Requests are always signed with version 4 of the AWS scheme: the stock tools fall
//! back to version 2 where no region is set, servers that know only that one are gone.

use std::fmt;
use std::time::Duration;

/// Region named in signatures where none is configured; servers other than AWS accept any.
const DEFAULT_REGION: &str = "us-east-1";

/// A bucket, a place in it, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Settings {
    /// The bucket.
    pub bucket: String,
    /// What precedes `/.cvmfspublished` and `/data/` in keys; without slashes at its ends, may be empty.
    pub prefix: String,
    /// Who we are, and where the server is.
    pub access: S3Access,
    /// Requests under way at once.
    pub connections: usize,
    /// How often a request is repeated.
    pub retries: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// Whether an object is looked for before it is sent.
    pub peek: bool,
    /// Canned access control list of everything written, such as `public-read`.
    pub acl: Option<String>,
    /// Proxy for all requests, as a URL.
    pub proxy: Option<String>,
}

/// Where the server is and what it knows us by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Access {
    /// The `AWS_*` variables say it, or the machine's own identity.
    Environment,
    /// All of it is configured.
    Configured {
        /// URL of the server; for virtual-hosted requests with the bucket in its host name.
        endpoint: String,
        /// Whether the bucket is in the host name rather than in the path.
        virtual_hosted: bool,
        /// Region named in signatures.
        region: String,
        /// Access key.
        access_key: String,
        /// Secret key.
        secret_key: Secret,
    },
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text to itself.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for signing.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A storage in a bucket is described wrongly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not `s3://BUCKET/PREFIX`.
    #[error("{0}; write s3://BUCKET/PREFIX, for example s3://cvmfs/images.example.org")]
    Location(String),
    /// A setting without which nothing works.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A setting that means nothing.
    #[error("{name}={value}: {expected}")]
    Invalid {
        /// Its name.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

impl S3Settings {
    /// Settings for `s3://BUCKET/PREFIX`. `variable` gives the environment, of which only the tuning among the
    /// `CVMFS_S3_*` names is used here (connections, retries, time-out, list, proxy); the rest of it is read on opening.
    pub fn from_url(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<S3Settings, SettingsError> {
        let refuse = |why: &str| SettingsError::Location(format!("{text}: {why}"));
        let rest = text.strip_prefix("s3://").ok_or_else(|| refuse("not a location in S3"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let settings = S3Settings {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            access: S3Access::Environment,
            connections: 16,
            retries: 10,
            timeout: Duration::from_secs(60),
            peek: true,
            acl: None,
            proxy: None,
        };
        settings.check().map_err(|why| refuse(&why))?;
        settings.tuned(variable)
    }

    /// Settings of a repository of the stock tools: its `CVMFS_S3_*` settings and its alias, the part before `@` in the
    /// last field of `CVMFS_UPSTREAM_STORAGE=S3,<tmp>,<alias>@<file>`.
    pub fn from_cvmfs(alias: &str, setting: impl Fn(&str) -> Option<String>) -> Result<S3Settings, SettingsError> {
        let setting = |name: &'static str| setting(name).filter(|value| !value.is_empty());
        let wanted = |name| setting(name).ok_or(SettingsError::Missing(name));
        if let Some(value) = setting("CVMFS_S3_FLAVOR")
            && !matches!(value.as_str(), "awsv2" | "awsv4")
        {
            let expected = "only servers that speak S3 can be used (awsv4, awsv2)";
            return Err(SettingsError::Invalid { name: "CVMFS_S3_FLAVOR", value, expected });
        }
        let (host, bucket) = (wanted("CVMFS_S3_HOST")?, wanted("CVMFS_S3_BUCKET")?);
        let scheme = if switch(&setting, "CVMFS_S3_USE_HTTPS", false)? { "https" } else { "http" };
        let virtual_hosted = switch(&setting, "CVMFS_S3_DNS_BUCKETS", true)?;
        let port = match setting("CVMFS_S3_PORT") {
            Some(_) => format!(":{}", number::<u16>(&setting, "CVMFS_S3_PORT", 0)?),
            None => String::new(),
        };
        let name = if virtual_hosted { format!("{bucket}.") } else { String::new() };
        let settings = S3Settings {
            access: S3Access::Configured {
                endpoint: format!("{scheme}://{name}{host}{port}"),
                virtual_hosted,
                region: setting("CVMFS_S3_REGION").unwrap_or_else(|| DEFAULT_REGION.to_owned()),
                access_key: wanted("CVMFS_S3_ACCESS_KEY")?,
                secret_key: Secret::new(wanted("CVMFS_S3_SECRET_KEY")?),
            },
            bucket,
            prefix: alias.trim_matches('/').to_owned(),
            connections: 16,
            retries: 3,
            timeout: Duration::from_secs(60),
            peek: true,
            acl: Some("public-read".to_owned()),
            proxy: None,
        };
        settings.check().map_err(|why| SettingsError::Location(format!("CVMFS_UPSTREAM_STORAGE: {why}")))?;
        settings.tuned(setting)
    }

    /// The settings that change how, not what or where.
    fn tuned(self, setting: impl Fn(&'static str) -> Option<String>) -> Result<S3Settings, SettingsError> {
        let setting = |name: &'static str| setting(name).filter(|value| !value.is_empty());
        let connections = number(&setting, "CVMFS_S3_MAX_NUMBER_OF_PARALLEL_CONNECTIONS", self.connections)?;
        let timeout = number(&setting, "CVMFS_S3_TIMEOUT", self.timeout.as_secs())?;
        Ok(S3Settings {
            connections: connections.clamp(1, 1024),
            retries: number(&setting, "CVMFS_S3_MAX_RETRIES", self.retries)?,
            timeout: Duration::from_secs(timeout.max(1)),
            peek: switch(&setting, "CVMFS_S3_PEEK_BEFORE_PUT", self.peek)?,
            acl: setting("CVMFS_S3_X_AMZ_ACL").or(self.acl),
            proxy: setting("CVMFS_S3_PROXY").filter(|proxy| proxy != "DIRECT").or(self.proxy),
            ..self
        })
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.bucket.is_empty() || !self.bucket.chars().all(plain) {
            return Err("the name of a bucket consists of letters, digits, '-', '_' and '.'".to_owned());
        }
        let components = self.prefix.split('/').filter(|_| !self.prefix.is_empty());
        for component in components {
            if matches!(component, "" | "." | "..")
                || !component.chars().all(|c| plain(c) || matches!(c, '+' | '=' | '@'))
            {
                return Err(format!("{component:?} can't be a part of the prefix"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

/// As the stock tools read it: `true`, `yes`, `on`, `1` and their contraries.
fn switch(
    setting: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    default: bool,
) -> Result<bool, SettingsError> {
    let Some(value) = setting(name) else { return Ok(default) };
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(SettingsError::Invalid { name, value, expected: "write yes or no" }),
    }
}

fn number<T: std::str::FromStr>(
    setting: &impl Fn(&'static str) -> Option<String>,
    name: &'static str,
    default: T,
) -> Result<T, SettingsError> {
    let Some(value) = setting(name) else { return Ok(default) };
    value.trim().parse().map_err(|_| SettingsError::Invalid { name, value, expected: "write a number" })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn cvmfs(lines: &[&str]) -> Result<S3Settings, SettingsError> {
        let common = "CVMFS_S3_HOST=s3.example.org CVMFS_S3_BUCKET=b CVMFS_S3_ACCESS_KEY=id CVMFS_S3_SECRET_KEY=hush";
        let all = common.split(' ').chain(lines.iter().copied());
        let map: BTreeMap<&str, &str> = all.filter_map(|line| line.split_once('=')).collect();
        S3Settings::from_cvmfs("cvmfs/images.example.org", |name| map.get(name).map(|v| (*v).to_owned()))
    }

    fn endpoint(settings: &S3Settings) -> (&str, bool, &str) {
        match &settings.access {
            S3Access::Configured { endpoint, virtual_hosted, region, .. } => (endpoint, *virtual_hosted, region),
            S3Access::Environment => panic!("configured"),
        }
    }

    #[test]
    fn takes_bucket_and_prefix_from_a_location() {
        let cases = [
            ("s3://b/p", Some(("b", "p"))),
            ("s3://b", Some(("b", ""))),
            ("s3://b/", Some(("b", ""))),
            ("s3://my-bucket.1/cvmfs/images.example.org/", Some(("my-bucket.1", "cvmfs/images.example.org"))),
            ("s3:///p", None),
            ("s3://b/../p", None),
            ("s3://b/p//q", None),
            ("s3://b/p q", None),
            ("s3://b?acl/p", None),
            ("http://b/p", None),
        ];
        for (text, expected) in cases {
            let found = S3Settings::from_url(text, |_| None);
            let found = found.as_ref().ok().map(|s| (s.bucket.as_str(), s.prefix.as_str()));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn reads_the_settings_of_the_stock_tools() {
        let plain = cvmfs(&[]).unwrap();
        assert_eq!((plain.bucket.as_str(), plain.prefix.as_str()), ("b", "cvmfs/images.example.org"));
        assert_eq!(endpoint(&plain), ("http://b.s3.example.org", true, "us-east-1"));
        assert_eq!((plain.connections, plain.retries, plain.timeout.as_secs(), plain.peek), (16, 3, 60, true));
        assert_eq!(plain.acl.as_deref(), Some("public-read"));

        let path_style = ["CVMFS_S3_DNS_BUCKETS=false", "CVMFS_S3_PORT=9000", "CVMFS_S3_REGION=here"];
        assert_eq!(endpoint(&cvmfs(&path_style).unwrap()), ("http://s3.example.org:9000", false, "here"));
        let tls = cvmfs(&["CVMFS_S3_USE_HTTPS=true"]).unwrap();
        assert_eq!(endpoint(&tls), ("https://b.s3.example.org", true, "us-east-1"));

        let tuned = cvmfs(&[
            "CVMFS_S3_MAX_NUMBER_OF_PARALLEL_CONNECTIONS=64",
            "CVMFS_S3_MAX_RETRIES=9",
            "CVMFS_S3_TIMEOUT=5",
            "CVMFS_S3_PEEK_BEFORE_PUT=no",
            "CVMFS_S3_X_AMZ_ACL=private",
            "CVMFS_S3_PROXY=http://proxy:3128",
        ])
        .unwrap();
        assert_eq!((tuned.connections, tuned.retries, tuned.timeout.as_secs(), tuned.peek), (64, 9, 5, false));
        assert_eq!((tuned.acl.as_deref(), tuned.proxy.as_deref()), (Some("private"), Some("http://proxy:3128")));
    }

    #[test]
    fn refuses_settings_that_mean_nothing_by_name() {
        for (line, name) in [
            ("CVMFS_S3_PORT=many", "CVMFS_S3_PORT"),
            ("CVMFS_S3_DNS_BUCKETS=perhaps", "CVMFS_S3_DNS_BUCKETS"),
            ("CVMFS_S3_FLAVOR=azure", "CVMFS_S3_FLAVOR"),
            ("CVMFS_S3_BUCKET=", "CVMFS_S3_BUCKET"),
            ("CVMFS_S3_SECRET_KEY=", "CVMFS_S3_SECRET_KEY"),
        ] {
            assert!(cvmfs(&[line]).unwrap_err().to_string().contains(name), "{line}");
        }
    }

    #[test]
    fn never_shows_a_secret() {
        assert!(!format!("{:?}", cvmfs(&[]).unwrap()).contains("hush"));
    }
}
