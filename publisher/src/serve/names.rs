//! Which names a repository has on a server, and how long what they stand for stays valid.
//!
//! The names are those of the format's layout (top-level files, `data/xx/…`); every other path is nobody's business.

use cvmfs::hash::ObjectId;

/// What a request path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resource<'a> {
    /// The list of repositories of the server.
    Repositories,
    /// A file below the repository root.
    File {
        /// What is in it.
        kind: Kind,
        /// Its path below the root: a name from here or one that was checked letter by letter.
        path: &'a str,
    },
}

/// What is in a file, as far as servers and caches care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file that changes with each revision.
    Top,
    /// The same, for people and scripts.
    Json,
    /// Named by its hash: never changes.
    Object,
}

impl Kind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Top => "application/x-cvmfs",
            Self::Json => "application/json",
            Self::Object => "application/octet-stream",
        }
    }

    pub(super) fn cache_control(self) -> &'static str {
        match self {
            Self::Top | Self::Json => "max-age=61",
            Self::Object => "max-age=259200",
        }
    }
}

/// Files at the top of a repository, those of a replica included.
const TOP: [&str; 7] = [
    ".cvmfspublished",
    ".cvmfswhitelist",
    ".cvmfswhitelist.pkcs7",
    ".cvmfsreflog",
    ".cvmfs_master_replica",
    ".cvmfs_last_snapshot",
    ".cvmfs_is_snapshotting",
];

impl<'a> Resource<'a> {
    /// What the path of a URL stands for in the repository `fqrn`.
    pub(super) fn parse(path: &'a str, fqrn: &str) -> Option<Self> {
        let below = path.strip_prefix("/cvmfs/")?;
        if below == "info/v1/repositories.json" {
            return Some(Self::Repositories);
        }
        let path = below.strip_prefix(fqrn)?.strip_prefix('/')?;
        let kind = if TOP.contains(&path) {
            Kind::Top
        } else if path == ".cvmfs_status.json" {
            Kind::Json
        } else {
            // An alias of an object, for servers that protect data/, stands for the same content for ever.
            let (bucket, rest) = match path.strip_prefix(".cvmfsalt-") {
                Some(hash) => hash.split_at_checked(2)?,
                None => path.strip_prefix("data/")?.split_once('/')?,
            };
            ObjectId::from_path_parts(bucket, rest)?;
            Kind::Object
        };
        Some(Self::File { kind, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FQRN: &str = "images.example.org";

    fn kind(path: &str) -> Option<Kind> {
        match Resource::parse(path, FQRN)? {
            Resource::File { kind, path: below } => {
                assert_eq!(format!("/cvmfs/{FQRN}/{below}"), path);
                Some(kind)
            }
            Resource::Repositories => panic!("{path} is the list of repositories"),
        }
    }

    #[test]
    fn knows_the_files_of_a_repository() {
        let hex = "ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78";
        for name in TOP {
            assert_eq!(kind(&format!("/cvmfs/{FQRN}/{name}")), Some(Kind::Top), "{name}");
        }
        assert_eq!(kind(&format!("/cvmfs/{FQRN}/.cvmfs_status.json")), Some(Kind::Json));
        for ending in ["", "C", "H", "X", "M", "P", "-rmd160", "-rmd160C", "-shake128", "-shake128P"] {
            assert_eq!(kind(&format!("/cvmfs/{FQRN}/data/e8/{hex}{ending}")), Some(Kind::Object), "{ending}");
            assert_eq!(kind(&format!("/cvmfs/{FQRN}/.cvmfsalt-e8{hex}{ending}")), Some(Kind::Object), "{ending}");
        }
        assert_eq!(Resource::parse("/cvmfs/info/v1/repositories.json", FQRN), Some(Resource::Repositories));
    }

    #[test]
    fn knows_nothing_else() {
        let hex = "ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78";
        let paths = [
            "/".to_owned(),
            String::new(),
            "/cvmfs".to_owned(),
            "/cvmfs/info/v1/../repositories.json".to_owned(),
            format!("/cvmfs/{FQRN}"),
            format!("/cvmfs/{FQRN}/"),
            format!("/cvmfs/{FQRN}x/.cvmfspublished"),
            "/cvmfs/other.example.org/.cvmfspublished".to_owned(),
            format!("/cvmfs/{FQRN}/.cvmfspublished/"),
            format!("/cvmfs/{FQRN}//.cvmfspublished"),
            format!("/cvmfs/{FQRN}/data/../.cvmfspublished"),
            format!("/cvmfs/{FQRN}/%2ecvmfspublished"),
            format!("/cvmfs/{FQRN}/../keys/{FQRN}.masterkey"),
            format!("/cvmfs/{FQRN}/data"),
            format!("/cvmfs/{FQRN}/data/"),
            format!("/cvmfs/{FQRN}/data/txn"),
            format!("/cvmfs/{FQRN}/data/txn/{hex}"),
            format!("/cvmfs/{FQRN}/data/e8/"),
            format!("/cvmfs/{FQRN}/data/E8/{hex}"),
            format!("/cvmfs/{FQRN}/data/e8/{}", &hex[1..]),
            format!("/cvmfs/{FQRN}/data/e8/{hex}0"),
            format!("/cvmfs/{FQRN}/data/e8/{hex}T"),
            format!("/cvmfs/{FQRN}/data/e8/{hex}CC"),
            format!("/cvmfs/{FQRN}/data/e8/{hex}-md5"),
            format!("/cvmfs/{FQRN}/data/e8/{hex}-rmd160-shake128"),
            format!("/cvmfs/{FQRN}/data/e8/{}", hex.to_uppercase()),
            format!("/cvmfs/{FQRN}/data/e8/{hex}/x"),
            format!("/cvmfs/{FQRN}/data/e8/{}ä", &hex[1..]),
            format!("/cvmfs/{FQRN}/data/../{hex}"),
            format!("/cvmfs/{FQRN}/data/e8/../{}", &hex[3..]),
            format!("/cvmfs/{FQRN}/.cvmfsalt-{hex}"),
            format!("/cvmfs/{FQRN}/.cvmfsalt-../x"),
            format!("/cvmfs/{FQRN}/stats/x"),
        ];
        for path in paths {
            assert_eq!(Resource::parse(&path, FQRN), None, "{path}");
        }
    }
}
