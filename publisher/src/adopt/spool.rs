//! What the reference tools keep beside the storage and look at in their next command.
//!
//! Files that are replaced stay those of their owner: who publishes as root leaves nothing that the owner of the
//! repository cannot write.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use cvmfs::hash::ContentHash;
use cvmfs::manifest::Manifest;
use cvmfs::store::{Store, names};

use super::{AdoptError, Stratum0};

/// The setting that pins the read-only mount to a root catalog.
const ROOT_HASH: &str = "CVMFS_ROOT_HASH=";

/// Sets the root catalog in `client.local`; all other lines stay.
pub(super) fn set_root(spool: &Path, root: ContentHash) -> Result<(), AdoptError> {
    let path = spool.join("client.local");
    let old = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(AdoptError::io("read", &path)(e)),
    };
    let new = with_root(&old, root);
    if new == old {
        return Ok(());
    }
    replace(&path, &new).map_err(AdoptError::io("replace", &path))
}

fn with_root(old: &[u8], root: ContentHash) -> Vec<u8> {
    let line = format!("{ROOT_HASH}{root}\n");
    let (mut new, mut is_set) = (Vec::with_capacity(old.len() + line.len()), false);
    for kept in old.split_inclusive(|b| *b == b'\n') {
        match kept.starts_with(ROOT_HASH.as_bytes()) {
            true => {
                new.extend_from_slice(line.as_bytes());
                is_set = true;
            }
            false => new.extend_from_slice(kept),
        }
    }
    if !is_set {
        if new.last().is_some_and(|b| *b != b'\n') {
            new.push(b'\n');
        }
        new.extend_from_slice(line.as_bytes());
    }
    new
}

/// Replaces a file at once; owner and permissions stay.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new.").tempfile_in(directory)?;
    file.write_all(content)?;
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode());
    file.as_file().set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    give_to_owner(file.as_file(), path)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Gives a new file to the owner of the directory it is in, which only root can and has to.
pub(super) fn give_to_owner(file: &File, path: &Path) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(path.parent().unwrap_or(Path::new(".")))?;
    let present = file.metadata()?;
    match (present.uid(), present.gid()) == (owner.uid(), owner.gid()) {
        true => Ok(()),
        false => std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid())),
    }
}

impl Stratum0 {
    /// Fails unless the reflog is the one that the tools left: its hash stands beside the storage or in the manifest.
    pub fn expect_reflog(&self, store: &dyn Store, manifest: &Manifest) -> Result<(), AdoptError> {
        let wrong = |what: &str| AdoptError::Reflog { fqrn: self.fqrn.clone(), what: what.to_owned() };
        let path = self.spool.join("reflog.chksum");
        let kept = match fs::read_to_string(&path) {
            Ok(text) => Some(text.trim().parse().map_err(|_| wrong(&format!("has no hash in {}", path.display())))?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(AdoptError::io("read", &path)(e)),
        };
        let known: Vec<ContentHash> = [kept, manifest.reflog].into_iter().flatten().collect();
        let stored = store.read(names::REFLOG).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
        match stored {
            // A repository may do without.
            None if known.is_empty() => Ok(()),
            None => Err(wrong(&format!("({}) is missing", names::REFLOG))),
            // The collector of the tools leaves the manifest alone, a publish that was killed the file beside it.
            Some(reflog) if known.iter().any(|k| ContentHash::of(k.algorithm, &reflog) == *k) => Ok(()),
            Some(_) => {
                Err(wrong(&format!("is neither the one that {} names nor that of the manifest", path.display())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvmfs::hash::Algorithm;

    #[test]
    fn the_root_hash_changes_and_all_other_lines_stay() {
        let root = ContentHash::of(Algorithm::Rmd160, b"root");
        let line = format!("CVMFS_ROOT_HASH={root}\n");
        for (old, new) in [
            (String::new(), line.clone()),
            ("CVMFS_ROOT_HASH=old\n".into(), line.clone()),
            ("CVMFS_ROOT_HASH=old".into(), line.clone()),
            ("A=1\nCVMFS_ROOT_HASH=old\nB='x\ny'\n".into(), format!("A=1\n{line}B='x\ny'\n")),
            ("A=1".into(), format!("A=1\n{line}")),
            ("# CVMFS_ROOT_HASH=old\n".into(), format!("# CVMFS_ROOT_HASH=old\n{line}")),
        ] {
            assert_eq!(String::from_utf8(with_root(old.as_bytes(), root)).unwrap(), new, "{old:?}");
        }
        assert!(with_root(b"\xff\n", root).starts_with(b"\xff\nCVMFS_ROOT_HASH="), "whatever the bytes are");
    }

    #[test]
    fn replaced_files_keep_owner_and_permissions() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("client.local");
        fs::write(&path, "A=1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let is_root = nix::unistd::geteuid().is_root();
        if !is_root {
            println!("skipped: another owner takes root");
        } else {
            for file in [spool.path(), &path] {
                std::os::unix::fs::chown(file, Some(1234), Some(4321)).unwrap();
            }
        }
        set_root(spool.path(), ContentHash::of(Algorithm::Sha1, b"root")).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert!(!is_root || (found.uid(), found.gid()) == (1234, 4321));
    }
}
