//! What a word about registries is about: all, one, or a part of one.

use std::fmt;

use image::reference::{Reference, Repository};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// `*`
    Any,
    /// `host[:port]`, by the name that references have for it, and a path below it, which may be empty.
    Registry { host: String, path: String },
}

impl Scope {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let wrong = || format!("{text:?} is no registry; write HOST[:PORT], HOST[:PORT]/PATH, or * for all");
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        if host.is_empty() || text.contains("://") || text.ends_with('/') {
            return Err(wrong());
        }
        // Valid exactly when an image below it has a name.
        let below = if path.is_empty() { "x/x".to_owned() } else { format!("{path}/x") };
        let probe = Reference::parse(&format!("https://{host}/{below}:1")).map_err(|_| wrong())?;
        Ok(Self::Registry { host: probe.registry_host().to_ascii_lowercase(), path: path.to_owned() })
    }

    pub(crate) fn holds(&self, repository: &Repository) -> bool {
        let Self::Registry { host, path } = self else { return true };
        repository.registry_host().eq_ignore_ascii_case(host)
            && (path.is_empty()
                || repository.path().strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/')))
    }

    /// Is it less than a whole registry?
    pub(crate) fn is_part(&self) -> bool {
        matches!(self, Self::Registry { path, .. } if !path.is_empty())
    }

    /// For the order: the greater, the narrower.
    pub(crate) fn width(&self) -> (usize, Self) {
        let length = match self {
            Self::Any => 0,
            Self::Registry { path, .. } => 1 + path.len(),
        };
        (length, self.clone())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Registry { host, path } if path.is_empty() => f.write_str(host),
            Self::Registry { host, path } => write!(f, "{host}/{path}"),
        }
    }
}
