//! Paths inside a repository and the keys under which catalogs keep them.
//!
//! A path is bytes: a leading `/`, no trailing one, no empty, `.` or `..` component; the root is the
//! empty string. A catalog finds an entry by the MD5 of its path, cut into two signed 64-bit
//! little-endian halves.

use std::fmt;

use md5::{Digest as _, Md5};

/// Absolute path inside a repository; the root is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RepoPath(Vec<u8>);

/// The bytes are no path inside a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a path inside a repository: a leading '/', no empty, '.' or '..' component, none over 255 bytes")]
pub struct PathError(String);

impl RepoPath {
    /// The root of the repository.
    pub const ROOT: RepoPath = RepoPath(Vec::new());

    /// Checks and takes a path. `""` and `"/"` are the root.
    pub fn parse(path: impl AsRef<[u8]>) -> Result<RepoPath, PathError> {
        let path = path.as_ref();
        let error = || PathError(String::from_utf8_lossy(path).chars().take(200).collect());
        let Some(rest) = path.strip_prefix(b"/") else {
            return if path.is_empty() { Ok(RepoPath::ROOT) } else { Err(error()) };
        };
        if rest.is_empty() {
            return Ok(RepoPath::ROOT);
        }
        if rest.split(|b| *b == b'/').all(is_name) { Ok(RepoPath(path.to_vec())) } else { Err(error()) }
    }

    /// The path of an entry of this directory.
    ///
    /// `name` must be a single component: what a catalog or a checked path gave.
    pub fn join(&self, name: impl AsRef<[u8]>) -> RepoPath {
        let name = name.as_ref();
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        path.push(b'/');
        path.extend_from_slice(name);
        RepoPath(path)
    }

    /// This path followed by a relative one (`""` = this path itself).
    pub fn join_path(&self, relative: impl AsRef<[u8]>) -> Result<RepoPath, PathError> {
        let relative = relative.as_ref();
        if relative.is_empty() { Ok(self.clone()) } else { RepoPath::parse(self.join(relative).0) }
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<RepoPath> {
        let cut = self.0.iter().rposition(|b| *b == b'/')?;
        Some(RepoPath(self.0[..cut].to_vec()))
    }

    /// Last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.iter().rposition(|b| *b == b'/').map_or(&[], |cut| &self.0[cut + 1..])
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').skip(1)
    }

    /// This path and all directories above it, the root first.
    pub fn ancestors(&self) -> impl Iterator<Item = RepoPath> + '_ {
        let cuts = self.0.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        cuts.chain((!self.is_root()).then_some(self.0.len()))
            .map(|cut| RepoPath(self.0[..cut].to_vec()))
            .chain(self.is_root().then_some(RepoPath::ROOT))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `other` is this path or lies below it.
    pub fn contains(&self, other: &RepoPath) -> bool {
        other.0.starts_with(&self.0) && matches!(other.0.get(self.0.len()), None | Some(b'/'))
    }

    /// The bytes: empty, or starting with `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Key of this path in catalogs.
    pub fn key(&self) -> PathKey {
        PathKey::of(&self.0)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str("/") } else { f.write_str(&String::from_utf8_lossy(&self.0)) }
    }
}

impl fmt::Debug for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Whether these bytes may name a directory entry.
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name != b"."
        && name != b".."
        && name.len() <= 255
        && !name.contains(&0)
        && !name.contains(&b'/')
}

/// MD5 of a path as catalogs keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey {
    /// Bytes 0–7, little-endian.
    pub high: i64,
    /// Bytes 8–15, little-endian.
    pub low: i64,
}

impl PathKey {
    /// What the root entry has as parent.
    pub const NONE: PathKey = PathKey { high: 0, low: 0 };

    /// Key of the root.
    pub const ROOT: PathKey = PathKey { high: 338333539836370388, low: 9098107892288553193 };

    /// Key of the path with these bytes.
    pub fn of(path: &[u8]) -> PathKey {
        PathKey::finish(Md5::new_with_prefix(path))
    }

    /// Ends a running MD5 over a path.
    pub fn finish(hasher: Md5) -> PathKey {
        let digest: [u8; 16] = hasher.finalize().into();
        let (high, low) = digest.split_at(8);
        let half = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
        PathKey { high: half(high), low: half(low) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_examples_of_path_keys() {
        for (path, high, low) in [
            ("", 338333539836370388, 9098107892288553193),
            ("/foo", 5745132282796244766, -5819618580357280866),
            ("/foo/bar", -2822516800166431715, 9048809318629099454),
        ] {
            assert_eq!(RepoPath::parse(path).unwrap().key(), PathKey { high, low }, "{path}");
        }
        assert_eq!(RepoPath::ROOT.key(), PathKey::ROOT);
    }

    #[test]
    fn paths_are_checked() {
        for good in ["", "/", "/a", "/a/b", "/...", "/.a", "/ "] {
            assert!(RepoPath::parse(good).is_ok(), "{good}");
        }
        for bad in ["a", "/a/", "//a", "/a//b", "/.", "/..", "/a/../b", "/a\0"] {
            assert!(RepoPath::parse(bad).is_err(), "{bad}");
        }
        assert!(RepoPath::parse(format!("/{}", "n".repeat(255))).is_ok());
        assert!(RepoPath::parse(format!("/{}", "n".repeat(256))).is_err());
    }

    #[test]
    fn families() {
        let path = RepoPath::parse("/a/b/c").unwrap();
        assert_eq!(path.name(), b"c");
        assert_eq!(path.parent().unwrap(), RepoPath::parse("/a/b").unwrap());
        assert_eq!(RepoPath::parse("/a").unwrap().parent(), Some(RepoPath::ROOT));
        assert_eq!(RepoPath::ROOT.parent(), None);
        let up: Vec<String> = path.ancestors().map(|p| p.to_string()).collect();
        assert_eq!(up, ["/", "/a", "/a/b", "/a/b/c"]);
        assert_eq!(RepoPath::ROOT.ancestors().count(), 1);
        assert_eq!(path.components().count(), 3);
        assert_eq!(RepoPath::ROOT.components().count(), 0);
        let a = RepoPath::parse("/a").unwrap();
        assert!(a.contains(&path) && a.contains(&a) && RepoPath::ROOT.contains(&a));
        assert!(!a.contains(&RepoPath::parse("/ab").unwrap()));
    }
}
