//! From `server.conf` to a [`Stratum0`].
//!
//! Settings that are not named here do not concern a publish of ours: they are about the union mount, limits that the
//! reference tools apply to what users write there, statistics, and mail. Two that sound as if they did: extended
//! attributes (`CVMFS_INCLUDE_XATTRS`) and nanoseconds (`CVMFS_ENABLE_MTIME_NS`) say what the tools take from the mount;
//! rows of ours always have them, since layers need the former, and readers go by the row.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use cvmfs::chunk::ChunkSizes;
use cvmfs::hash::Algorithm;
use cvmfs::object::Codec;

use super::shell::{self, Settings};
use super::{AdoptError, AutoTags, Policy, Stratum0};
use crate::storage::{Location, S3Settings};

/// Finds and reads the description of a repository.
pub(super) fn find(directory: &Path, fqrn: &str) -> Result<Option<Stratum0>, AdoptError> {
    let directory = directory.join("repositories.d").join(fqrn);
    let (config, replica) = (directory.join("server.conf"), directory.join("replica.conf"));
    let is_there = |file: &Path| file.try_exists().map_err(AdoptError::io("look for", file));
    if is_there(&config)? {
        let settings = shell::read(&config)?;
        return Reader { config: &config, settings: &settings }.stratum0(fqrn).map(Some);
    }
    match is_there(&replica)? {
        true => Err(AdoptError::Config { config: replica, what: REPLICA.to_owned() }),
        false => Ok(None),
    }
}

const REPLICA: &str = "this machine holds a replica (stratum 1) of the repository; publish where its stratum 0 is";

struct Reader<'a> {
    config: &'a Path,
    settings: &'a Settings,
}

impl Reader<'_> {
    fn refuse(&self, what: impl Into<String>) -> AdoptError {
        AdoptError::Config { config: self.config.to_owned(), what: what.into() }
    }

    /// A setting; one that is empty counts as not there.
    fn get(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn wanted(&self, name: &str) -> Result<&str, AdoptError> {
        self.get(name).ok_or_else(|| self.refuse(format!("{name} is not set")))
    }

    /// The tools know one word for yes.
    fn is_set(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    fn parsed<T: FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, AdoptError> {
        let parse = |value: &str| value.parse().map_err(|_| self.refuse(format!("{name}={value}: {what} is wanted")));
        self.get(name).map(parse).transpose()
    }

    fn stratum0(&self, fqrn: &str) -> Result<Stratum0, AdoptError> {
        match self.get("CVMFS_REPOSITORY_TYPE") {
            Some("stratum1") => return Err(self.refuse(REPLICA)),
            Some("stratum0") | None => {}
            Some(other) => return Err(self.refuse(format!("CVMFS_REPOSITORY_TYPE={other}: stratum0 is wanted"))),
        }
        if let Some(name) = self.get("CVMFS_REPOSITORY_NAME").filter(|name| *name != fqrn) {
            return Err(self.refuse(format!("it describes the repository {name}, not {fqrn}")));
        }
        if self.is_set("CVMFS_EXTERNAL_DATA") {
            return Err(self.refuse(
                "CVMFS_EXTERNAL_DATA=true: content of this repository is kept elsewhere; images can't be published into it",
            ));
        }
        let spool = self.get("CVMFS_SPOOL_DIR").map_or_else(|| Path::new("/var/spool/cvmfs").join(fqrn), PathBuf::from);
        Ok(Stratum0 {
            fqrn: fqrn.to_owned(),
            config: self.config.to_owned(),
            storage: self.storage()?,
            spool,
            user: self.get("CVMFS_USER").map(str::to_owned),
            remarks: self.remarks(),
            algorithm: self
                .parsed::<Algorithm>("CVMFS_HASH_ALGORITHM", "sha1, rmd160 or shake128")?
                .unwrap_or_default(),
            codec: self.codec()?,
            policy: Policy {
                chunks: self.chunks()?,
                reuse_whole: true,
                ttl: self.parsed("CVMFS_REPOSITORY_TTL", "a number of seconds")?,
                garbage_collectable: self.get("CVMFS_GARBAGE_COLLECTION").map(|value| value == "true"),
                auto_tags: self
                    .is_set("CVMFS_AUTO_TAG")
                    .then(|| AutoTags { timespan: self.get("CVMFS_AUTO_TAG_TIMESPAN").map(str::to_owned) }),
            },
        })
    }

    /// Wishes that a publish of ours leaves for the next one of the tools.
    fn remarks(&self) -> Vec<&'static str> {
        let wishes = [
            (
                "CVMFS_VIRTUAL_DIR",
                "CVMFS_VIRTUAL_DIR=true: tags of this publish appear in /.cvmfs/snapshots with the next cvmfs_server publish",
            ),
            (
                "CVMFS_AUTOCATALOGS",
                "CVMFS_AUTOCATALOGS=true: catalogs are split by our own rules, those that the tools have split are left as they are",
            ),
        ];
        wishes.into_iter().filter(|(name, _)| self.is_set(name)).map(|(_, remark)| remark).collect()
    }

    fn codec(&self) -> Result<Codec, AdoptError> {
        match self.get("CVMFS_COMPRESSION_ALGORITHM") {
            None | Some("default" | "zlib") => Ok(Codec::REFERENCE),
            Some("none") => Ok(Codec::Store),
            Some(other) => {
                Err(self.refuse(format!("CVMFS_COMPRESSION_ALGORITHM={other}: default, zlib or none is wanted")))
            }
        }
    }

    fn chunks(&self) -> Result<Option<ChunkSizes>, AdoptError> {
        // Not set means no; `mkfs` writes yes.
        if !self.is_set("CVMFS_USE_FILE_CHUNKING") {
            return Ok(None);
        }
        let size = |name, default| Ok(self.parsed(name, "a number of bytes")?.unwrap_or(default));
        let default = ChunkSizes::default();
        let sizes = ChunkSizes {
            min: size("CVMFS_MIN_CHUNK_SIZE", default.min)?,
            avg: size("CVMFS_AVG_CHUNK_SIZE", default.avg)?,
            max: size("CVMFS_MAX_CHUNK_SIZE", default.max)?,
        };
        // Chunks are compressed in memory.
        const LONGEST: u64 = 1 << 30;
        match sizes.min >= 32 && sizes.min < sizes.avg && sizes.avg < sizes.max && sizes.max <= LONGEST {
            true => Ok(Some(sizes)),
            false => Err(self.refuse(format!(
                "chunk sizes {}, {}, {}: 32 <= CVMFS_MIN_CHUNK_SIZE < CVMFS_AVG_CHUNK_SIZE < CVMFS_MAX_CHUNK_SIZE <= {LONGEST} is wanted",
                sizes.min, sizes.avg, sizes.max
            ))),
        }
    }

    /// `DRIVER,TEMPORARY,WHERE`; objects that are not complete go where ours do, below the storage.
    fn storage(&self) -> Result<Location, AdoptError> {
        let upstream = self.wanted("CVMFS_UPSTREAM_STORAGE")?;
        let refuse = |why: &str| self.refuse(format!("CVMFS_UPSTREAM_STORAGE={upstream}: {why}"));
        let (driver, rest) = upstream.split_once(',').unwrap_or((upstream, ""));
        let (_, place) = rest.split_once(',').unwrap_or((rest, ""));
        if place.is_empty() {
            return Err(refuse("three fields with commas between them are wanted"));
        }
        match driver.to_ascii_lowercase().as_str() {
            "local" => Ok(Location::Directory(PathBuf::from(place))),
            "s3" => {
                let (alias, file) = place.split_once('@').ok_or_else(|| refuse("ALIAS@FILE is wanted at its end"))?;
                let settings = shell::read(Path::new(file))?;
                S3Settings::from_cvmfs(alias, |name| settings.get(name).cloned())
                    .map(Location::from)
                    .map_err(|e| AdoptError::Config { config: PathBuf::from(file), what: e.to_string() })
            }
            "gw" => Err(refuse(
                "this machine publishes through a gateway, which has the storage; publish on the machine of the gateway",
            )),
            _ => Err(refuse("only the drivers local and S3 are known")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FQRN: &str = "images.example.org";
    const UPSTREAM: &str = "CVMFS_UPSTREAM_STORAGE=local,/srv/cvmfs/x/data/txn,/srv/cvmfs/x\n";

    fn read(file: &str, text: &str) -> Result<Option<Stratum0>, AdoptError> {
        let etc = tempfile::tempdir().unwrap();
        let directory = etc.path().join("repositories.d").join(FQRN);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(file), text).unwrap();
        find(etc.path(), FQRN)
    }

    fn adopted(text: &str) -> Stratum0 {
        read("server.conf", &format!("{UPSTREAM}{text}")).unwrap().unwrap()
    }

    #[test]
    fn what_mkfs_writes_is_understood() {
        let text = "CVMFS_CREATOR_VERSION=143\nCVMFS_REPOSITORY_NAME=images.example.org\nCVMFS_REPOSITORY_TYPE=stratum0\n\
            CVMFS_USER=cvmfs\nCVMFS_UNION_DIR=/cvmfs/images.example.org\nCVMFS_SPOOL_DIR=/var/spool/cvmfs/images.example.org\n\
            CVMFS_STRATUM0=http://localhost/cvmfs/images.example.org\nCVMFS_USE_FILE_CHUNKING=true\nCVMFS_MIN_CHUNK_SIZE=4194304\n\
            CVMFS_AVG_CHUNK_SIZE=8388608\nCVMFS_MAX_CHUNK_SIZE=16777216\nCVMFS_UNION_FS_TYPE=overlayfs\nCVMFS_HASH_ALGORITHM=shake128\n\
            CVMFS_COMPRESSION_ALGORITHM=default\nCVMFS_EXTERNAL_DATA=false\nCVMFS_AUTO_TAG=true\nCVMFS_AUTO_TAG_TIMESPAN=\"4 weeks ago\"\n\
            CVMFS_GARBAGE_COLLECTION=true\nCVMFS_AUTO_REPAIR_MOUNTPOINT=true\nCVMFS_AUTOCATALOGS=false\nCVMFS_REPOSITORY_TTL=120\n";
        let found = adopted(text);
        assert_eq!(found.storage, Location::Directory("/srv/cvmfs/x".into()));
        assert_eq!(found.spool, Path::new("/var/spool/cvmfs/images.example.org"));
        assert_eq!(found.user.as_deref(), Some("cvmfs"));
        assert_eq!((found.algorithm, found.codec), (Algorithm::Shake128, Codec::REFERENCE));
        let auto_tags = Some(AutoTags { timespan: Some("4 weeks ago".into()) });
        let chunks = Some(ChunkSizes::default());
        let expected = Policy { chunks, reuse_whole: true, ttl: Some(120), garbage_collectable: Some(true), auto_tags };
        assert_eq!(found.policy, expected);
    }

    #[test]
    fn a_setting_alone_has_its_effect() {
        assert_eq!(adopted("").policy.chunks, None, "chunks are an option");
        assert_eq!(adopted("").algorithm, Algorithm::Sha1);
        assert_eq!(adopted("").spool, Path::new("/var/spool/cvmfs/images.example.org"));
        assert_eq!(adopted("CVMFS_COMPRESSION_ALGORITHM=none").codec, Codec::Store);
        assert_eq!(adopted("CVMFS_HASH_ALGORITHM=rmd160").algorithm, Algorithm::Rmd160);
        assert_eq!(adopted("CVMFS_AUTO_TAG=true").policy.auto_tags, Some(AutoTags { timespan: None }));
        assert_eq!(adopted("CVMFS_AUTO_TAG=false").policy.auto_tags, None);
        for (settings, names) in [
            ("", &[][..]),
            ("CVMFS_VIRTUAL_DIR=false\nCVMFS_AUTOCATALOGS=false", &[]),
            ("CVMFS_VIRTUAL_DIR=true\nCVMFS_AUTOCATALOGS=true", &["CVMFS_VIRTUAL_DIR=true", "CVMFS_AUTOCATALOGS=true"]),
        ] {
            let remarks = adopted(settings).remarks;
            assert_eq!(remarks.iter().map(|r| r.split(':').next().unwrap()).collect::<Vec<_>>(), names);
        }
        assert_eq!(adopted("CVMFS_GARBAGE_COLLECTION=false").policy.garbage_collectable, Some(false));
        let sizes =
            "CVMFS_USE_FILE_CHUNKING=true\nCVMFS_MIN_CHUNK_SIZE=40\nCVMFS_AVG_CHUNK_SIZE=50\nCVMFS_MAX_CHUNK_SIZE=60";
        assert_eq!(adopted(sizes).policy.chunks, Some(ChunkSizes { min: 40, avg: 50, max: 60 }));
    }

    #[test]
    fn what_cannot_be_published_to_is_refused_with_the_reason() {
        assert_eq!(read("other.conf", "").unwrap(), None);
        for (file, text, reason) in [
            ("replica.conf", "CVMFS_REPOSITORY_TYPE=stratum1\n", "replica"),
            ("server.conf", "CVMFS_REPOSITORY_TYPE=stratum1\n", "replica"),
            ("server.conf", "CVMFS_REPOSITORY_TYPE=other\n", "stratum0 is wanted"),
            ("server.conf", "CVMFS_USER=x\n", "CVMFS_UPSTREAM_STORAGE is not set"),
            ("server.conf", "CVMFS_UPSTREAM_STORAGE=gw,/tmp,http://g:4929/api/v1\n", "gateway"),
            ("server.conf", "CVMFS_UPSTREAM_STORAGE=ftp,/tmp,x\n", "drivers"),
            ("server.conf", "CVMFS_UPSTREAM_STORAGE=local,/tmp\n", "three fields"),
            ("server.conf", "CVMFS_UPSTREAM_STORAGE=S3,/tmp,alias\n", "ALIAS@FILE"),
            ("server.conf", "CVMFS_UPSTREAM_STORAGE=S3,/tmp,alias@/nonexistent/s3.conf\n", "/nonexistent/s3.conf"),
            ("server.conf", "CVMFS_REPOSITORY_NAME=other.example.org\n", "other.example.org"),
            ("server.conf", &format!("{UPSTREAM}CVMFS_EXTERNAL_DATA=true\n"), "CVMFS_EXTERNAL_DATA"),
            ("server.conf", &format!("{UPSTREAM}CVMFS_HASH_ALGORITHM=md5\n"), "md5"),
            ("server.conf", &format!("{UPSTREAM}CVMFS_COMPRESSION_ALGORITHM=lzma\n"), "lzma"),
            ("server.conf", &format!("{UPSTREAM}CVMFS_REPOSITORY_TTL=soon\n"), "soon"),
            (
                "server.conf",
                &format!("{UPSTREAM}CVMFS_USE_FILE_CHUNKING=true\nCVMFS_MIN_CHUNK_SIZE=9000000\n"),
                "chunk sizes",
            ),
        ] {
            let error = read(file, text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bucket_is_described_by_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let s3 = directory.path().join("s3.conf");
        let text = "CVMFS_S3_HOST=s3.example.org\nCVMFS_S3_ACCESS_KEY=a\nCVMFS_S3_SECRET_KEY=s\nCVMFS_S3_BUCKET=b\n";
        std::fs::write(&s3, text).unwrap();
        let upstream = format!("CVMFS_UPSTREAM_STORAGE=S3,/tmp,cvmfs/x@{}\n", s3.display());
        let Location::S3(settings) = read("server.conf", &upstream).unwrap().unwrap().storage else {
            panic!("no bucket")
        };
        assert_eq!((settings.bucket.as_str(), settings.prefix.as_str()), ("b", "cvmfs/x"));
        std::fs::write(&s3, "CVMFS_S3_HOST=s3.example.org\n").unwrap();
        let error = read("server.conf", &upstream).unwrap_err().to_string();
        assert!(error.contains("s3.conf") && error.contains("CVMFS_S3_"), "{error}");
    }
}
