//! Who owns the files: the owners recorded in the catalog, mapped or not, or the user of the client.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{ConfigError, Parameters};

/// Who owns the files of the mount.
#[derive(Debug, Clone)]
pub enum Ownership {
    /// The owners of the catalog, after these maps.
    Catalog {
        /// Users.
        users: IdMap,
        /// Groups.
        groups: IdMap,
    },
    /// The user and group of this process.
    Claim {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

impl Ownership {
    pub(super) fn from_parameters(p: &Parameters, fqrn: &str) -> Result<Ownership, ConfigError> {
        if p.flag("CVMFS_CLAIM_OWNERSHIP")? {
            let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            return Ok(Ownership::Claim { uid, gid });
        }
        let map = |name: &str| match p.text(name, fqrn) {
            Some(path) => IdMap::read(Path::new(&path)),
            None => Ok(IdMap::default()),
        };
        Ok(Ownership::Catalog { users: map("CVMFS_UID_MAP")?, groups: map("CVMFS_GID_MAP")? })
    }

    /// Owner and group to show for those of the catalog.
    pub fn apply(&self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Ownership::Catalog { users, groups } => (users.apply(uid), groups.apply(gid)),
            Ownership::Claim { uid, gid } => (*uid, *gid),
        }
    }
}

/// Replaces numeric ids; ids that it does not name stay, unless there is a wildcard.
#[derive(Debug, Clone, Default)]
pub struct IdMap {
    map: HashMap<u32, u32>,
    wildcard: Option<u32>,
}

impl IdMap {
    fn read(path: &Path) -> Result<IdMap, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        IdMap::parse(&text).map_err(|line| ConfigError::IdMap { path: PathBuf::from(path), line })
    }

    /// Lines `<from> <to>` and `* <to>`, `#` starts a comment. Gives the number of the first wrong line.
    pub fn parse(text: &str) -> Result<IdMap, usize> {
        let mut ids = IdMap::default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["*", to] => ids.wildcard = Some(to.parse().map_err(|_| number)?),
                [from, to] => {
                    ids.map.insert(from.parse().map_err(|_| number)?, to.parse().map_err(|_| number)?);
                }
                _ => return Err(number),
            }
        }
        Ok(ids)
    }

    /// What `id` becomes.
    pub fn apply(&self, id: u32) -> u32 {
        self.map.get(&id).copied().or(self.wildcard).unwrap_or(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_kept_or_caught_by_the_wildcard() {
        let ids = IdMap::parse("# comment\n0 1000\n12 13 # trailing\n\n").unwrap();
        assert_eq!([0, 12, 13, 99].map(|id| ids.apply(id)), [1000, 13, 13, 99]);
        let ids = IdMap::parse("0 0\n* 65534\n").unwrap();
        assert_eq!([0, 7].map(|id| ids.apply(id)), [0, 65534]);
        for (text, line) in [("0 x", 1), ("0 1\n5", 2), ("1 2 3", 1), ("-1 2", 1)] {
            assert_eq!(IdMap::parse(text).unwrap_err(), line, "{text}");
        }
    }
}
