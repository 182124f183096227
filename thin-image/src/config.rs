//! The configuration of what serves, the mirror and the plugins of Docker: one typed value, from a file and the command line.
//!
//! ```toml
//! listen = "127.0.0.1:5080"
//! resolve = true                  # false: tags are left to the registries, only digests are answered
//! prefer_flat = "auto"            # containers of Docker get the flat root in place of layers: "on", "off", or of four and more
//! [[repositories]]
//! name = "images.example.org"
//! mountpoint = "/cvmfs/images.example.org"    # the usual place if absent
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::published::{PublishedError, Repository};

/// Where the configuration is unless the command line says otherwise.
pub const FILE: &str = "/etc/thin-image/config.toml";
/// Where the mirror listens unless somebody says otherwise.
pub const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5080);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// which
        path: PathBuf,
        /// why
        source: std::io::Error,
    },
    /// It is no TOML, or has keys that nobody knows.
    #[error("{path}: {source}")]
    Syntax {
        /// which
        path: PathBuf,
        /// where and why
        source: Box<toml::de::Error>,
    },
    /// A repository has no possible name.
    #[error("{path}: {source}")]
    Repository {
        /// which file
        path: PathBuf,
        /// which name
        source: Box<PublishedError>,
    },
    /// Nothing to serve.
    #[error("no repository to serve: name one with --repo, or in {0}")]
    NoRepository(PathBuf),
}

/// Whether the flat root of an image is given in place of its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferFlat {
    /// where it is faster: in place of many layers
    #[default]
    Auto,
    /// wherever it is published
    On,
    /// never
    Off,
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// where to listen
    pub listen: SocketAddr,
    /// are tags answered?
    pub resolve: bool,
    /// do containers get the flat root of a thin image in place of its layers?
    pub prefer_flat: PreferFlat,
    /// repositories, the first one that has something serves it
    pub repositories: Vec<Repository>,
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    listen: SocketAddr,
    resolve: bool,
    prefer_flat: PreferFlat,
    repositories: Vec<RepositoryDocument>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepositoryDocument {
    name: String,
    mountpoint: Option<PathBuf>,
}

impl Default for Document {
    fn default() -> Self {
        Self { listen: LISTEN, resolve: true, prefer_flat: PreferFlat::Auto, repositories: Vec::new() }
    }
}

impl Config {
    /// Reads a file; one that nobody named may be absent. Repositories are mounted below `cvmfs` unless it says otherwise.
    pub fn read(file: Option<&Path>, cvmfs: &Path) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(FILE));
        let document = match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => Document::default(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let repository = |found: &RepositoryDocument| {
            let usual = || cvmfs.join(&found.name);
            Repository::new(&found.name, &found.mountpoint.clone().unwrap_or_else(usual))
                .map_err(|source| ConfigError::Repository { path: path.to_owned(), source: Box::new(source) })
        };
        let repositories = document.repositories.iter().map(repository).collect::<Result<_, _>>()?;
        let Document { listen, resolve, prefer_flat, .. } = document;
        Ok(Self { listen, resolve, prefer_flat, repositories })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_everything_and_nothing_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Config::read(Some(&path), Path::new("/cvmfs")).map_err(|error| error.to_string())
        };
        let config = read("listen = \"127.0.0.1:1\"\nresolve = false\nprefer_flat = \"off\"\n[[repositories]]\nname = \"a.b\"\n[[repositories]]\nname = \"c.d\"\nmountpoint = \"/mnt\"").unwrap();
        assert_eq!((config.listen.port(), config.resolve, config.prefer_flat), (1, false, PreferFlat::Off));
        let at: Vec<_> = config.repositories.iter().map(|r| (r.name(), r.mountpoint())).collect();
        assert_eq!(at, [("a.b", Path::new("/cvmfs/a.b")), ("c.d", Path::new("/mnt"))]);
        let nothing = read("").unwrap();
        assert_eq!((nothing.listen, nothing.resolve, nothing.repositories.len()), (LISTEN, true, 0));
        for (text, reason) in [
            ("lisen = 1", "lisen"),
            ("[[repositories]]\nname = \"../x\"", "is not the name of a repository"),
            ("listen = \"nowhere\"", "nowhere"),
            ("[[repositories]]\nnam = \"a\"", "nam"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason) && error.contains("config.toml"), "{error}");
        }
        assert!(Config::read(Some(Path::new("/nonexistent/x")), Path::new("/cvmfs")).is_err());
    }
}
