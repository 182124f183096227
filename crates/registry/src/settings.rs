//! What an operator says about registries: a value, read from any form that serde knows.
//!
//! ```toml
//! [credentials.robot]                       # a name; the secret is elsewhere
//! user = "robot$publisher"
//! password_file = "/etc/cvmfs-publisher/robot.password"
//! registries = ["quay.io/atlas"]            # who else may see it, besides those that name it below
//!
//! [registries."docker.io"]                  # HOST[:PORT], HOST/PATH for a part of it, "*" for all others
//! credentials = "robot"
//! mirrors = [{ url = "https://cache.example.org/hub" }, { url = "http://10.0.0.1:5000", resolve = false }]
//! ca_file = "/etc/ssl/site.pem"
//! plain_http = false
//! requests_per_second = 10
//! burst = 20
//! in_flight = 4
//! ```
//!
//! Invariants
//! - A secret is never part of this value: only where it is.
//! - A name in a wish list opens nothing by itself: credentials go to registries that the operator has named with them, and to no other.
//! - What is said of a path wins over what is said of its host, and that over `*`, field by field.

mod scope;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::reference::Repository;
use reqwest::Url;
use serde::Deserialize;

pub(crate) use self::scope::Scope;
use crate::budget::Limits;
use crate::credentials::named::{NamedCredential, Source};
use crate::error::Error;

/// What is said, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Credentials by name.
    pub credentials: BTreeMap<String, NamedCredential>,
    /// Registries by `host[:port]` or `host[:port]/path`; `*` for all others.
    pub registries: BTreeMap<String, RegistrySettings>,
}

/// What is said of one registry.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Name of the credentials that it may see.
    pub credentials: Option<String>,
    /// Who is asked before it, in this order.
    pub mirrors: Vec<MirrorSettings>,
    /// PEM file of a CA to trust besides the system's, for this registry only.
    pub ca_file: Option<PathBuf>,
    /// Whether `http://` may be used. Nothing said: yes, but no credentials of this configuration go over it.
    pub plain_http: Option<bool>,
    /// Requests a second, on average.
    pub requests_per_second: Option<f64>,
    /// Requests at once after a silence.
    pub burst: Option<u32>,
    /// Requests in flight at once.
    pub in_flight: Option<usize>,
}

/// A server that answers for a registry.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorSettings {
    /// `scheme://host[:port][/path]`; the path goes before the name of the image.
    pub url: String,
    /// Name of its own credentials; it never sees those of the registry.
    pub credentials: Option<String>,
    /// May it say what a tag stands for? If not, it is asked for content by digest only.
    #[serde(default = "yes")]
    pub resolve: bool,
    /// PEM file of a CA to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

fn yes() -> bool {
    true
}

/// A mirror, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mirror {
    pub(crate) url: Url,
    pub(crate) credentials: Option<String>,
    pub(crate) resolve: bool,
    pub(crate) ca_file: Option<PathBuf>,
}

/// The same, checked: every name that is used is there. The default says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Registries {
    rules: Vec<(Scope, RegistrySettings, Vec<Mirror>)>,
    names: BTreeMap<String, (Source, Vec<Scope>)>,
}

/// What holds for one image repository.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules<'a> {
    pub(crate) credentials: Option<&'a str>,
    pub(crate) mirrors: &'a [Mirror],
    pub(crate) ca_file: Option<&'a Path>,
    pub(crate) plain_http: Option<bool>,
    pub(crate) limits: Limits,
}

impl Settings {
    /// Checks what is said.
    pub fn check(self) -> Result<Registries, Error> {
        let mut names = BTreeMap::new();
        for (name, credential) in self.credentials {
            let scopes = credential.registries.iter().map(|text| Scope::parse(text)).collect::<Result<Vec<_>, _>>();
            let wrong = |why: String| Error::Configuration(format!("credentials.{name}: {why}"));
            let scopes = scopes.map_err(&wrong)?;
            if scopes.contains(&Scope::Any) {
                return Err(wrong("registries: credentials can't be for all registries; name them".to_owned()));
            }
            names.insert(name.clone(), (credential.source().map_err(wrong)?, scopes));
        }
        let mut rules = Vec::new();
        for (text, said) in self.registries {
            let wrong = |why: String| Error::Configuration(format!("registries.\"{text}\": {why}"));
            let scope = Scope::parse(&text).map_err(wrong)?;
            let mirrors: Vec<Mirror> = said.mirrors.iter().map(Mirror::new).collect::<Result<_, _>>().map_err(wrong)?;
            let used = said.credentials.iter().chain(mirrors.iter().filter_map(|mirror| mirror.credentials.as_ref()));
            if let Some(name) = used.into_iter().find(|name| !names.contains_key(*name)) {
                return Err(wrong(format!("credentials.{name} is not there; known: {}", list(names.keys()))));
            }
            if scope == Scope::Any && said.credentials.is_some() {
                return Err(wrong("credentials can't be for all registries; name the registry".to_owned()));
            }
            let of_host = [
                ("ca_file", said.ca_file.is_some()),
                ("plain_http", said.plain_http.is_some()),
                ("requests_per_second", said.requests_per_second.is_some()),
                ("burst", said.burst.is_some()),
                ("in_flight", said.in_flight.is_some()),
            ];
            if let Some((field, _)) = of_host.iter().find(|(_, is_said)| *is_said && scope.is_part()) {
                return Err(wrong(format!("{field} is a matter of the whole registry; say it without the path")));
            }
            let is_positive = |rate: f64| rate.is_finite() && rate > 0.0;
            if said.requests_per_second.is_some_and(|rate| !is_positive(rate))
                || said.burst == Some(0)
                || said.in_flight == Some(0)
            {
                return Err(wrong("requests_per_second, burst and in_flight have to be above zero".to_owned()));
            }
            rules.push((scope, said, mirrors));
        }
        // The narrowest first.
        rules.sort_by_key(|(scope, ..)| std::cmp::Reverse(scope.width()));
        if let Some(pair) = rules.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let twice = format!("registries: {} is there twice, under two of its names", pair[0].0);
            return Err(Error::Configuration(twice));
        }
        Ok(Registries { rules, names })
    }
}

impl Mirror {
    fn new(said: &MirrorSettings) -> Result<Self, String> {
        let MirrorSettings { url: text, credentials, resolve, ca_file } = said;
        let wrong = |why: &str| format!("mirrors: {text:?}: {why}; write scheme://host[:port][/path]");
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong("no address of the web"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("mirrors: an address must not hold a password; name credentials".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("neither ? nor # is of use"));
        }
        Ok(Self { url, credentials: credentials.clone(), resolve: *resolve, ca_file: ca_file.clone() })
    }
}

impl Registries {
    /// What holds for somebody without credentials. Mirrors are left out: they may have what they have through theirs.
    #[must_use]
    pub fn for_strangers(&self) -> Registries {
        let strip = |(scope, said, _): &(Scope, RegistrySettings, Vec<Mirror>)| {
            let said = RegistrySettings { credentials: None, mirrors: Vec::new(), ..said.clone() };
            (scope.clone(), said, Vec::new())
        };
        Registries { rules: self.rules.iter().map(strip).collect(), names: BTreeMap::new() }
    }

    /// What holds for an image repository.
    pub(crate) fn rules(&self, repository: &Repository) -> Rules<'_> {
        let matching: Vec<_> = self.rules.iter().filter(|(scope, ..)| scope.holds(repository)).collect();
        fn first<'a, T>(
            rules: &[&'a (Scope, RegistrySettings, Vec<Mirror>)],
            field: impl Fn(&'a RegistrySettings) -> Option<T>,
        ) -> Option<T> {
            rules.iter().find_map(|(_, said, _)| field(said))
        }
        let defaults = Limits::default();
        let mirrors = matching.iter().find(|(_, _, mirrors)| !mirrors.is_empty());
        Rules {
            credentials: first(&matching, |said| said.credentials.as_deref()),
            mirrors: mirrors.map_or(&[], |(_, _, mirrors)| mirrors),
            ca_file: first(&matching, |said| said.ca_file.as_deref()),
            plain_http: first(&matching, |said| said.plain_http),
            limits: Limits {
                in_flight: first(&matching, |said| said.in_flight).unwrap_or(defaults.in_flight),
                per_second: first(&matching, |said| said.requests_per_second).unwrap_or(defaults.per_second),
                burst: first(&matching, |said| said.burst).unwrap_or(defaults.burst),
            },
        }
    }

    /// Where the credentials of this name are, and whether the repository may see them.
    pub(crate) fn source(&self, name: &str, repository: &Repository) -> Result<&Source, Error> {
        let (source, scopes) = self.name(name)?;
        let named = self.rules.iter().filter(|(_, said, _)| said.credentials.as_deref() == Some(name));
        let mut scopes = scopes.iter().chain(named.map(|(scope, ..)| scope));
        if scopes.any(|scope| scope.holds(repository)) {
            return Ok(source);
        }
        Err(Error::Configuration(format!(
            "{repository}: credentials {name} are not for this registry; add it to credentials.{name}.registries if that is meant"
        )))
    }

    /// The same for a mirror, with which the operator has named them.
    pub(crate) fn source_of_mirror(&self, name: &str) -> Result<&Source, Error> {
        Ok(&self.name(name)?.0)
    }

    fn name(&self, name: &str) -> Result<&(Source, Vec<Scope>), Error> {
        self.names.get(name).ok_or_else(|| {
            let known = list(self.names.keys());
            Error::Configuration(format!("no credentials are named {name} in the configuration; known: {known}"))
        })
    }

    /// Fails unless there are credentials of this name.
    pub fn has(&self, name: &str) -> Result<(), Error> {
        self.name(name).map(drop)
    }

    /// All CA files that are named.
    pub(crate) fn ca_files(&self) -> impl Iterator<Item = &Path> {
        self.rules.iter().flat_map(|(_, said, mirrors)| {
            said.ca_file.as_deref().into_iter().chain(mirrors.iter().filter_map(|mirror| mirror.ca_file.as_deref()))
        })
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use image::reference::Reference;

    use super::*;

    fn check(json: serde_json::Value) -> Result<Registries, String> {
        let settings: Settings = serde_json::from_value(json).map_err(|error| error.to_string())?;
        settings.check().map_err(|error| error.to_string())
    }

    fn repository(text: &str) -> Repository {
        Reference::parse(text).unwrap().repository().clone()
    }

    fn robot() -> serde_json::Value {
        serde_json::json!({ "user": "robot", "password_file": "/nonexistent" })
    }

    #[test]
    fn the_narrowest_word_counts_field_by_field() {
        let registries = check(serde_json::json!({
            "credentials": { "robot": robot(), "atlas": robot() },
            "registries": {
                "*": { "in_flight": 3, "plain_http": false },
                "quay.io": { "credentials": "robot", "burst": 7, "mirrors": [{ "url": "http://m:1/x" }] },
                "quay.io/atlas": { "credentials": "atlas" },
                "docker.io": { "plain_http": true },
            },
        }))
        .unwrap();
        let rules = |image: &str| {
            let repository = repository(image);
            let rules = registries.rules(&repository);
            let Limits { in_flight, burst, .. } = rules.limits;
            (rules.credentials.map(str::to_owned), rules.mirrors.len(), in_flight, burst, rules.plain_http)
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(rules("quay.io/cms/x:1"), (name("robot"), 1, 3, 7, Some(false)));
        assert_eq!(rules("quay.io/atlas/x:1"), (name("atlas"), 1, 3, 7, Some(false)));
        assert_eq!(rules("quay.io/atlasx/x:1"), (name("robot"), 1, 3, 7, Some(false)));
        assert_eq!(rules("quay.io:444/atlas/x:1"), (None, 0, 3, 200, Some(false)));
        assert_eq!(rules("debian:12"), (None, 0, 3, 200, Some(true)));
        assert_eq!(Registries::default().rules(&repository("debian:12")).limits, Limits::default());
    }

    #[test]
    fn credentials_are_for_registries_that_the_operator_named() {
        let mut other = robot();
        other["registries"] = serde_json::json!(["ghcr.io/lab"]);
        let registries = check(serde_json::json!({
            "credentials": { "robot": robot(), "other": other },
            "registries": { "quay.io/atlas": { "credentials": "robot" } },
        }))
        .unwrap();
        for (name, image, is_allowed) in [
            ("robot", "quay.io/atlas/x:1", true),
            ("robot", "quay.io/cms/x:1", false),
            ("robot", "evil.example/quay.io/atlas/x:1", false),
            ("other", "ghcr.io/lab/x:1", true),
            ("other", "ghcr.io/x:1", false),
            ("nobody", "quay.io/atlas/x:1", false),
        ] {
            let found = registries.source(name, &repository(image));
            assert_eq!(found.is_ok(), is_allowed, "{name} {image}: {found:?}");
        }
    }

    #[test]
    fn says_what_makes_no_sense() {
        for (json, said) in [
            (serde_json::json!({ "registries": { "quay.io": { "credentials": "x" } } }), "credentials.x is not there"),
            (serde_json::json!({ "registries": { "quay.io": { "mirror": [] } } }), "unknown field `mirror`"),
            (serde_json::json!({ "registries": { "https://quay.io": {} } }), "HOST[:PORT]"),
            (serde_json::json!({ "registries": { "quay.io/a": { "burst": 1 } } }), "burst is a matter of the whole"),
            (serde_json::json!({ "registries": { "quay.io": { "in_flight": 0 } } }), "above zero"),
            (serde_json::json!({ "registries": { "docker.io": {}, "index.docker.io": {} } }), "twice"),
            (
                serde_json::json!({ "registries": { "x": { "mirrors": [{ "url": "http://u:p@m" }] } } }),
                "must not hold a password",
            ),
            (serde_json::json!({ "registries": { "x": { "mirrors": [{ "url": "m:5000" }] } } }), "no address"),
            (serde_json::json!({ "credentials": { "a": {} } }), "credentials.a: "),
            (
                serde_json::json!({ "credentials": { "a": robot() }, "registries": { "*": { "credentials": "a" } } }),
                "all registries",
            ),
        ] {
            let error = check(json.clone()).unwrap_err();
            assert!(error.contains(said) && !error.contains("u:p"), "{json}: {error}");
        }
    }
}
