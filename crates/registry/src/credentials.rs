//! Whose password goes to which registry.
//!
//! Looked up in this order, only when a registry asks for it:
//! 1. values given by the program ([`Credentials::with`]), by exact `host[:port]`;
//! 2. what the operator's configuration names for the registry ([`crate::settings`]);
//! 3. the existing tool's variables: `DUCC_AUTH_REGISTRIES=N,M` and for each of them `DUCC_N_IDENT` with either
//!    `DUCC_N_USER` and `DUCC_N_PASS`, or `DUCC_N_PROXY`. The first N wins whose IDENT is a substring of the address
//!    `scheme://host/repository`. PROXY (`host[/path]`) replaces the host and prefixes the repository; USER and PASS
//!    of that N are then ignored;
//! 4. the Docker configuration (`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`), credential helpers and
//!    identity tokens included, by the host that is really asked.
//!
//! Invariants
//! - A match of IDENT must begin within the scheme or host. The existing tool takes one anywhere, so that
//!   `https://evil.example/registry.example.org/x` in a wish list would be sent the password of registry.example.org.
//!   IDENT should be a complete host name all the same: `cern` also matches `cern.evil.example`.
//! - Credentials that are asked for by name go to registries that the configuration names with them, and to no other.
//! - A half-configured N is an error at start-up; nothing falls back silently to anonymous.
//! - Secrets have no `Display`, and a `Debug` without content.

pub mod named;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use image::reference::{DOCKER_HUB, Reference, Repository};

use crate::error::Error;
use crate::settings::Registries;

/// Names of Docker Hub; its key in the Docker configuration is the first.
const HUB_KEYS: [&str; 2] = ["https://index.docker.io/v1/", "index.docker.io"];

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What identifies us to one registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password, or an access token used as one.
    Password {
        /// user name
        user: String,
        /// password
        password: Secret,
    },
    /// An OAuth refresh token, as `docker login` keeps it for some registries.
    IdentityToken(Secret),
}

impl Credential {
    /// User name and password.
    pub fn password(user: impl Into<String>, password: impl Into<Box<str>>) -> Self {
        Self::Password { user: user.into(), password: Secret::new(password) }
    }
}

/// One symbolic name of `DUCC_AUTH_REGISTRIES`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    ident: String,
    access: Access,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    Credential(Credential),
    Proxy { host: String, path: String },
}

/// All sources of credentials.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    explicit: Vec<(String, Credential)>,
    named: Vec<Named>,
    docker_config: Option<PathBuf>,
    registries: Arc<Registries>,
}

impl Credentials {
    /// None at all.
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// The environment variables and the Docker configuration of this process.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// The same from any source of variables (`DUCC_*`, `DOCKER_CONFIG`, `HOME`).
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let value = |name: &str| get(name).filter(|value| !value.is_empty());
        let names = value("DUCC_AUTH_REGISTRIES").unwrap_or_default();
        let named = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        let named = named.map(|name| Named::read(name, &value)).collect::<Result<_, _>>()?;
        let home = || Some(PathBuf::from(value("HOME")?).join(".docker"));
        let docker = value("DOCKER_CONFIG").map(PathBuf::from).or_else(home);
        let docker_config = docker.map(|dir| dir.join("config.json"));
        Ok(Self { explicit: Vec::new(), named, docker_config, registries: Arc::default() })
    }

    /// Adds a credential for one registry, `host[:port]` as written in references; wins over all other sources.
    pub fn with(mut self, host: impl Into<String>, credential: Credential) -> Self {
        self.explicit.insert(0, (host.into(), credential));
        self
    }

    /// Uses this Docker configuration file.
    pub fn with_docker_config(mut self, file: impl Into<PathBuf>) -> Self {
        self.docker_config = Some(file.into());
        self
    }

    /// Takes the credentials that the configuration names.
    pub(crate) fn with_registries(mut self, registries: Arc<Registries>) -> Self {
        self.registries = registries;
        self
    }

    /// The credential that the operator's configuration calls by this name, if it is for this repository. Runs credential helpers:
    /// blocking.
    pub fn named(&self, name: &str, repository: &Repository) -> Result<Credential, Error> {
        self.registries.source(name, repository)?.read(name, &keys(repository))
    }

    /// The same for a mirror at this `host[:port]`, with which the operator has named it.
    pub(crate) fn of_mirror(&self, name: &str, host: &str) -> Result<Credential, Error> {
        self.registries.source_of_mirror(name)?.read(name, &[host])
    }

    /// Where requests for the repository really go: host and repository path there.
    pub(crate) fn route(&self, repository: &Repository) -> (String, String) {
        match self.ducc(repository).map(|named| &named.access) {
            Some(Access::Proxy { host, path }) => (host.clone(), format!("{path}{}", repository.path())),
            _ => (repository.api_host().to_owned(), repository.path().to_owned()),
        }
    }

    /// The credential for the repository, if there is one. Runs credential helpers: blocking.
    pub(crate) fn find(&self, repository: &Repository) -> Result<Option<Credential>, Error> {
        let (host, _) = self.route(repository);
        let routed = host != repository.api_host();
        let names = [host.as_str(), if routed { &host } else { repository.registry_host() }];
        if let Some((_, credential)) =
            self.explicit.iter().find(|(host, _)| names.iter().any(|name| name.eq_ignore_ascii_case(host)))
        {
            return Ok(Some(credential.clone()));
        }
        if let Some(name) = self.registries.rules(repository).credentials.filter(|_| !routed) {
            return self.named(name, repository).map(Some);
        }
        if let Some(Named { access: Access::Credential(credential), .. }) = self.ducc(repository) {
            return Ok(Some(credential.clone()));
        }
        let Some(path) = &self.docker_config else { return Ok(None) };
        let keys = if routed { vec![names[1]] } else { keys(repository) };
        keys.into_iter().map(|key| docker_entry(path, key)).find_map(Result::transpose).transpose()
    }

    fn ducc(&self, repository: &Repository) -> Option<&Named> {
        let addresses = [repository.registry_host(), repository.api_host()].map(|host| {
            let scheme = repository.scheme();
            (format!("{scheme}://{host}/{}", repository.path()), scheme.as_str().len() + 3 + host.len())
        });
        self.named.iter().find(|named| {
            addresses.iter().any(|(address, host_end)| address.find(&named.ident).is_some_and(|at| at < *host_end))
        })
    }
}

/// The keys of a registry in Docker configurations.
fn keys(repository: &Repository) -> Vec<&str> {
    let host = repository.registry_host();
    (host == DOCKER_HUB).then_some(HUB_KEYS).into_iter().flatten().chain([host]).collect()
}

/// The entry of a Docker configuration.
fn docker_entry(path: &Path, key: &str) -> Result<Option<Credential>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(Error::Io { path: path.to_owned(), source }),
    };
    entry(io::BufReader::new(file), &path.display().to_string(), key)
}

/// What a credential helper has.
fn helper_entry(helper: &str, key: &str) -> Result<Option<Credential>, Error> {
    let config = serde_json::json!({ "credHelpers": { key: helper } }).to_string();
    entry(config.as_bytes(), &format!("docker-credential-{helper}"), key)
}

fn entry(config: impl io::Read, place: &str, key: &str) -> Result<Option<Credential>, Error> {
    let failure = |why: String| Error::Configuration(format!("{place}: entry for {key}: {why}"));
    match docker_credential::get_credential_from_reader(config, key) {
        Ok(DockerCredential::UsernamePassword(user, password)) if user.is_empty() && password.is_empty() => Ok(None),
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credential::password(user, password))),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::IdentityToken(Secret::new(token)))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // the words that every helper uses for "none stored" (docker/docker-credential-helpers)
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if [&stdout, &stderr].iter().any(|text| text.contains("credentials not found")) =>
        {
            Ok(None)
        }
        // its output may hold secrets: only its name is repeated
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            Err(failure(format!("{helper} failed; run it by hand, or log in without a credential helper")))
        }
        Err(error) => Err(failure(format!("{error}; log in again"))),
    }
}

impl Named {
    fn read(name: &str, value: &impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let variable = |part: &str| value(&format!("DUCC_{name}_{part}"));
        let wrong = |why: &str| {
            Error::Configuration(format!("DUCC_AUTH_REGISTRIES names {name}, but {why}; set it, or take {name} out"))
        };
        let ident = variable("IDENT").ok_or_else(|| wrong(&format!("DUCC_{name}_IDENT is not set")))?;
        let access = match (variable("PROXY"), variable("USER"), variable("PASS")) {
            (Some(proxy), _, _) => {
                // valid exactly when an image below it has a name
                let probe = Reference::parse(&format!("https://{}/x:1", proxy.trim_end_matches('/')));
                let probe =
                    probe.map_err(|_| wrong(&format!("DUCC_{name}_PROXY is not of the form host[:port][/path]")))?;
                let path = probe.repository().path();
                Access::Proxy { host: probe.api_host().to_owned(), path: path[..path.len() - 1].to_owned() }
            }
            (None, Some(user), Some(password)) => Access::Credential(Credential::password(user, password)),
            _ => return Err(wrong(&format!("neither DUCC_{name}_USER and DUCC_{name}_PASS nor DUCC_{name}_PROXY is"))),
        };
        Ok(Self { ident, access })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials(variables: &[(&str, &str)]) -> Result<Credentials, Error> {
        Credentials::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn repository(text: &str) -> Repository {
        Reference::parse(text).unwrap().repository().clone()
    }

    fn user(credentials: &Credentials, image: &str) -> Option<String> {
        match credentials.find(&repository(image)).unwrap()? {
            Credential::Password { user, .. } => Some(user),
            Credential::IdentityToken(token) => Some(format!("token {}", token.expose())),
        }
    }

    #[test]
    fn takes_the_first_name_whose_ident_is_part_of_the_address() {
        let found = credentials(&[
            ("DUCC_AUTH_REGISTRIES", "A, B,C"),
            ("DUCC_A_IDENT", "example.org/atlas"),
            ("DUCC_A_USER", "a"),
            ("DUCC_A_PASS", "x"),
            ("DUCC_B_IDENT", "registry.example.org"),
            ("DUCC_B_USER", "b"),
            ("DUCC_B_PASS", "x"),
            ("DUCC_C_IDENT", "registry.hub.docker.com"),
            ("DUCC_C_USER", "c"),
            ("DUCC_C_PASS", "x"),
        ])
        .unwrap();
        for (image, expected) in [
            ("https://registry.example.org/atlas/x:1", Some("a")),
            ("https://registry.example.org/cms/x:1", Some("b")),
            ("https://registry.example.org:5000/cms/x:1", Some("b")),
            ("https://registry.hub.docker.com/library/x:1", Some("c")),
            ("debian:stable", Some("c")),
            ("https://other.example/x/y:1", None),
            ("https://evil.example/registry.example.org/x:1", None),
        ] {
            assert_eq!(user(&found, image).as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn a_proxy_replaces_the_host_prefixes_the_repository_and_drops_the_password() {
        let found = credentials(&[
            ("DUCC_AUTH_REGISTRIES", "HUB,PLAIN"),
            ("DUCC_HUB_IDENT", "registry.hub.docker.com"),
            ("DUCC_HUB_USER", "u"),
            ("DUCC_HUB_PASS", "p"),
            ("DUCC_HUB_PROXY", "harbor.example/cache/"),
            ("DUCC_PLAIN_IDENT", "quay.io"),
            ("DUCC_PLAIN_PROXY", "127.0.0.1:5000"),
        ])
        .unwrap();
        let hub = repository("https://registry.hub.docker.com/library/debian:1");
        assert_eq!(found.route(&hub), ("harbor.example".into(), "cache/library/debian".into()));
        assert_eq!(found.find(&hub).unwrap(), None);
        assert_eq!(found.route(&repository("quay.io/a/b:1")), ("127.0.0.1:5000".into(), "a/b".into()));
        assert_eq!(found.route(&repository("https://ghcr.io/a/b:1")), ("ghcr.io".into(), "a/b".into()));
        let own = found.with("harbor.example", Credential::password("h", "x"));
        assert_eq!(user(&own, "debian:1").as_deref(), Some("h"), "credentials of the proxy itself");
        let old = own.with("registry.hub.docker.com", Credential::password("hub", "x"));
        assert_eq!(user(&old, "debian:1").as_deref(), Some("h"), "a proxy never gets the password of its origin");
    }

    #[test]
    fn refuses_half_configured_names() {
        for (variables, expected) in [
            (&[("DUCC_AUTH_REGISTRIES", "A")][..], "DUCC_A_IDENT"),
            (&[("DUCC_AUTH_REGISTRIES", "A"), ("DUCC_A_IDENT", "x"), ("DUCC_A_USER", "u")], "DUCC_A_PASS"),
            (&[("DUCC_AUTH_REGISTRIES", "A"), ("DUCC_A_IDENT", "x"), ("DUCC_A_PROXY", "http://h")], "DUCC_A_PROXY"),
            (&[("DUCC_AUTH_REGISTRIES", "A"), ("DUCC_A_IDENT", "x"), ("DUCC_A_PROXY", "h/../x")], "DUCC_A_PROXY"),
        ] {
            let message = credentials(variables).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn reads_the_docker_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        // dXNlcjpwOnc= is user:p:w
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"quay.io":{"auth":"dXNlcjpwOnc="},
            "127.0.0.1:5000":{"identitytoken":"abc"},"empty.example":{}}}"#;
        std::fs::write(&file, json).unwrap();
        let found = credentials(&[("DOCKER_CONFIG", dir.path().to_str().unwrap()), ("HOME", "/nonexistent")]).unwrap();
        for (image, expected) in [
            ("debian:stable", Some("hub")),
            ("quay.io/x/y:1", Some("user")),
            ("quay.io:444/x/y:1", None),
            ("http://127.0.0.1:5000/x:1", Some("token abc")),
            ("empty.example/x:1", None),
            ("ghcr.io/x/y:1", None),
        ] {
            assert_eq!(user(&found, image).as_deref(), expected, "{image}");
        }
        let explicit = found.with("quay.io", Credential::password("mine", "x"));
        assert_eq!(user(&explicit, "quay.io/x/y:1").as_deref(), Some("mine"));

        std::fs::write(&file, "{").unwrap();
        assert!(explicit.find(&repository("ghcr.io/x/y:1")).unwrap_err().to_string().contains("config.json"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(user(&explicit, "ghcr.io/x/y:1"), None);
    }

    #[test]
    fn finds_the_docker_configuration_below_home() {
        let found = credentials(&[("HOME", "/home/me")]).unwrap();
        assert_eq!(found.docker_config, Some(PathBuf::from("/home/me/.docker/config.json")));
    }

    #[test]
    fn never_shows_a_secret() {
        let found = credentials(&[
            ("DUCC_AUTH_REGISTRIES", "A"),
            ("DUCC_A_IDENT", "x"),
            ("DUCC_A_USER", "u"),
            ("DUCC_A_PASS", "hunter2"),
        ])
        .unwrap()
        .with("h", Credential::IdentityToken(Secret::new("hunter2")));
        assert!(!format!("{found:?} {found:#?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_credential_helper_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, r#"{"credsStore":"surely-not-installed-here"}"#).unwrap();
        let found = Credentials::anonymous().with_docker_config(file);
        assert!(matches!(found.find(&repository("ghcr.io/x/y:1")), Err(Error::Configuration(_))));
    }
}
