//! Mirrors of registries, as containerd's `certs.d` names them.
//!
//! For a registry `HOST` or `HOST:PORT` the first of `DIR/HOST:PORT`, `DIR/HOST_PORT_`, `DIR/_default` that is there counts, and its
//! `hosts.toml` says who is asked before the registry, in that order:
//!
//! ```toml
//! [host."http://127.0.0.1:5080"]
//!   capabilities = ["pull", "resolve"]
//! ```
//!
//! Only documents are asked of them: manifests, indexes, configs. A host that wants more than a plain question (a certificate, a header,
//! a path of its own) is passed over, with a line in the log: whoever is passed over is answered for by the registry.

use std::path::{Path, PathBuf};

use image::digest::{Digest, ManifestDigest};
use image::reference::{Reference, Repository};
use registry::{Client, ClientConfig, Error, RawManifest, RetryPolicy};
use reqwest::Url;
use toml_edit::{DocumentMut, Item};

/// Why a `hosts.toml` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It can't be read.
    #[error("{path} can't be read: {source}")]
    Io {
        /// which file
        path: PathBuf,
        /// why
        source: std::io::Error,
    },
    /// It says something else than `hosts.toml` should.
    #[error("{path}: {why}; see https://github.com/containerd/containerd/blob/main/docs/hosts.md")]
    Content {
        /// which file
        path: PathBuf,
        /// what
        why: String,
    },
}

/// A server that answers for registries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// where it is
    pub url: Url,
    /// may it say what a tag stands for?
    pub resolves: bool,
}

/// The hosts that are asked before a registry: none if nothing in `directory` is about it.
pub fn read(directory: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let escaped = registry.split_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), escaped, Some("_default".to_owned())];
    let Some(path) = names.into_iter().flatten().map(|name| directory.join(name)).find(|path| path.is_dir()) else {
        return Ok(Vec::new());
    };
    let path = path.join("hosts.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(|why| HostsError::Content { path, why }),
        // A directory of certificates only.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(HostsError::Io { path, source }),
    }
}

/// Reads a file, in its own order.
fn parse(text: &str) -> Result<Vec<Host>, String> {
    let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| error.to_string())?;
    let Some(hosts) = document.get("host") else { return Ok(Vec::new()) };
    let hosts = hosts.as_table_like().ok_or("`host` is no table")?;
    let mut found = Vec::new();
    for (name, host) in hosts.iter() {
        // Without a scheme containerd means HTTPS.
        let address = if name.contains("://") { name.to_owned() } else { format!("https://{name}") };
        let url = Url::parse(&address).map_err(|error| format!("{name:?} is no address: {error}"))?;
        let host = host.as_table_like().ok_or_else(|| format!("`host.{name:?}` is no table"))?;
        let has = |wanted: &str| match host.get("capabilities") {
            None => Ok(true),
            Some(list) => {
                let list = list.as_array().ok_or_else(|| format!("`capabilities` of {name:?} is no list"))?;
                Ok::<_, String>(list.iter().any(|one| one.as_str() == Some(wanted)))
            }
        };
        let strange = |key: &str, item: &Item| key != "capabilities" && !item.is_none();
        if let Some((key, _)) = host.iter().find(|(key, item)| strange(key, item)) {
            tracing::warn!(host = name, key, "this host is not asked: its {key} is not understood here");
        } else if has("pull")? {
            found.push(Host { url, resolves: has("resolve")? });
        }
    }
    Ok(found)
}

/// A registry, and those who are asked before it.
#[derive(Debug)]
pub struct Sources {
    mirrors: Vec<(Host, Client)>,
    /// the registry itself
    pub registry: Client,
}

impl Sources {
    /// The registry alone.
    pub fn only(registry: Client) -> Self {
        Self { mirrors: Vec::new(), registry }
    }

    /// A registry with mirrors. One that does not answer is not waited for: the next one will.
    pub fn new(hosts: Vec<Host>, registry: Client) -> Result<Self, Error> {
        let client = |host: Host| {
            let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
            let config = ClientConfig { mirror: Some(host.url.clone()), retry, ..ClientConfig::default() };
            Ok((host, Client::new(config)?))
        };
        Ok(Self { mirrors: hosts.into_iter().map(client).collect::<Result<_, Error>>()?, registry })
    }

    /// The digest of a reference, from the first who knows it and may say it.
    pub async fn resolve(&self, reference: &Reference) -> Result<ManifestDigest, Error> {
        for (_, mirror) in self.mirrors.iter().filter(|(host, _)| host.resolves) {
            if let Some(found) = answer(mirror.resolve(reference).await) {
                return Ok(found);
            }
        }
        self.registry.resolve(reference).await
    }

    /// A manifest or an index; of a mirror by its digest only.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, Error> {
        for (host, mirror) in &self.mirrors {
            if (host.resolves || reference.digest().is_some())
                && let Some(found) = answer(mirror.manifest(reference).await)
            {
                return Ok(found);
            }
        }
        self.registry.manifest(reference).await
    }

    /// A config.
    pub async fn blob_bytes(&self, repository: &Repository, digest: Digest) -> Result<Vec<u8>, Error> {
        for (_, mirror) in &self.mirrors {
            if let Some(found) = answer(mirror.blob_bytes(repository, digest).await) {
                return Ok(found.to_vec());
            }
        }
        Ok(self.registry.blob_bytes(repository, digest).await?.to_vec())
    }
}

/// What a mirror says, if it is of use.
fn answer<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|error| tracing::info!(%error, "the next one is asked")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(hosts: &[Host]) -> Vec<(&str, bool)> {
        hosts.iter().map(|host| (host.url.as_str(), host.resolves)).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file() {
        let text = r#"
            server = "https://registry.example.org"
            [host."http://z:1"]
            capabilities = ["pull"]
            [host."a.example.org"]
            [host."http://b"]
            capabilities = ["push", "resolve"]
            [host."http://c"]
            skip_verify = true
        "#;
        assert_eq!(shown(&parse(text).unwrap()), [("http://z:1/", false), ("https://a.example.org/", true)]);
        assert_eq!(parse("").unwrap(), []);
        for text in
            ["x", "host = 1", "[host]\n\"http://a\" = 1", "[host.\"http://\"]", "[host.\"http://a\"]\ncapabilities = 1"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_directory_of_the_registry_comes_before_that_of_all() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, host: &str| {
            std::fs::create_dir(directory.path().join(name)).unwrap();
            std::fs::write(directory.path().join(name).join("hosts.toml"), format!("[host.\"{host}\"]\n")).unwrap();
        };
        let found = |registry: &str| read(directory.path(), registry).unwrap();
        assert_eq!(found("quay.io"), []);
        make("_default", "http://all");
        make("quay.io", "http://quay");
        make("127.0.0.1:5000", "http://port");
        make("127.0.0.1_6000_", "http://escaped");
        std::fs::create_dir(directory.path().join("ghcr.io")).unwrap();
        for (registry, host) in [
            ("quay.io", "http://quay/"),
            ("127.0.0.1:5000", "http://port/"),
            ("127.0.0.1:6000", "http://escaped/"),
            ("127.0.0.1:7000", "http://all/"),
        ] {
            assert_eq!(shown(&found(registry)), [(host, true)], "{registry}");
        }
        assert_eq!(found("ghcr.io"), []);
        std::fs::write(directory.path().join("quay.io/hosts.toml"), "[").unwrap();
        let error = read(directory.path(), "quay.io").unwrap_err().to_string();
        assert!(error.contains("quay.io/hosts.toml"), "{error}");
    }
}
