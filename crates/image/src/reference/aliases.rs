//! Other names of registries: mirrors and host names that the operator says are one and the same.

use std::collections::BTreeMap;

use super::grammar::is_registry;
use super::{DOCKER_HUB, ImageSource, ReferenceError, Repository, Scheme, Wildcard, Wish, is_docker_hub};

/// Which registry is meant by which name. Docker Hub's own names need no alias.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryAliases(BTreeMap<String, (Scheme, String)>);

impl RegistryAliases {
    /// `alias` means `registry`: `HOST`, `HOST:PORT`, `https://…` or `http://…`.
    pub fn add(&mut self, alias: &str, registry: &str) -> Result<(), ReferenceError> {
        let malformed = |registry: &str| ReferenceError::Registry {
            name: format!("alias {alias}"),
            registry: registry.chars().take(100).collect(),
        };
        if alias.is_empty() || !is_registry(alias) {
            return Err(malformed(alias));
        }
        let (scheme, host) = match registry.split_once("://") {
            None | Some(("https", _)) => (Scheme::Https, registry.trim_start_matches("https://")),
            Some(("http", host)) => (Scheme::Http, host),
            Some(_) => return Err(malformed(registry)),
        };
        if host.is_empty() || !is_registry(host) {
            return Err(malformed(registry));
        }
        let host = if is_docker_hub(host) { DOCKER_HUB.to_owned() } else { host.to_ascii_lowercase() };
        self.0.insert(alias.to_ascii_lowercase(), (scheme, host));
        Ok(())
    }

    /// An alias whose registry is an alias itself, if there is one: nothing follows from one to the next.
    pub fn chained(&self) -> Option<&str> {
        self.0.iter().find(|(_, (_, host))| self.0.contains_key(host)).map(|(alias, _)| alias.as_str())
    }

    fn rename(&self, repository: &mut Repository) {
        let Some((scheme, host)) = self.0.get(&repository.registry) else { return };
        (repository.scheme, repository.registry) = (*scheme, host.clone());
        if host == DOCKER_HUB && !repository.path.contains('/') {
            repository.path.insert_str(0, "library/");
        }
    }

    /// The wish at the registry that is meant.
    pub fn resolve(&self, mut wish: Wish) -> Wish {
        match &mut wish {
            Wish::Image(ImageSource::Registry(reference)) => self.rename(&mut reference.repository),
            Wish::Wildcard(Wildcard { repository, .. }) => self.rename(repository),
            Wish::Image(_) => {}
        }
        wish
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_the_registry_that_it_means() {
        let mut aliases = RegistryAliases::default();
        aliases.add("mirror.example.org", "docker.io").unwrap();
        aliases.add("Lab:5000", "http://127.0.0.1:5000").unwrap();
        aliases.add("old.example.org", "https://quay.io").unwrap();
        for (text, expected) in [
            ("mirror.example.org/debian:12", "https://registry.hub.docker.com/library/debian:12"),
            ("https://mirror.example.org/a/b:1", "https://registry.hub.docker.com/a/b:1"),
            ("lab:5000/x:1.*", "http://127.0.0.1:5000/x:1.*"),
            ("http://old.example.org/x:1", "https://quay.io/x:1"),
            ("other.example.org/x:1", "https://other.example.org/x:1"),
            ("oci:/tmp/x:1", "oci:/tmp/x:1"),
        ] {
            assert_eq!(aliases.resolve(Wish::parse(text).unwrap()).to_string(), expected, "{text}");
        }
        assert_eq!(aliases.chained(), None);
        aliases.add("older.example.org", "old.example.org").unwrap();
        assert_eq!(aliases.chained(), Some("older.example.org"));
    }

    #[test]
    fn names_that_are_no_registries_are_refused() {
        let mut aliases = RegistryAliases::default();
        for (alias, registry) in [
            ("", "quay.io"),
            ("a/b", "quay.io"),
            ("a", ""),
            ("a", "ftp://quay.io"),
            ("a", "quay.io/x"),
            ("a", "https://"),
        ] {
            assert!(aliases.add(alias, registry).is_err(), "{alias} {registry}");
        }
    }
}
