//! What is remembered of revisions mounted before: so that an old state can't be passed off as new, and a mount
//! is possible while no server can be reached.
//!
//! One file for the newest revision, `breadcrumb.FQRN`, as the reference client has it beside its cache, and one
//! for each named snapshot or date that was asked for, which remembers what was chosen.

use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use cvmfs::hash::ContentHash;
use cvmfs::path::PathKey;

use crate::config::Snapshot;

/// A revision that was mounted before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breadcrumb {
    /// Root catalog.
    pub root: ContentHash,
    /// Time of publication, Unix seconds.
    pub published: u64,
    /// Revision.
    pub revision: u64,
    /// Name of the snapshot, for one that was chosen by name or date.
    pub tag: Option<String>,
}

impl Breadcrumb {
    /// Where it is kept for this choice; nowhere if the choice needs no memory.
    pub fn place(workspace: &Path, fqrn: &str, snapshot: &Snapshot) -> Option<PathBuf> {
        let choice = match snapshot {
            Snapshot::Newest => return Some(workspace.join(format!("breadcrumb.{fqrn}"))),
            Snapshot::Root(_) => return None,
            Snapshot::Tag(tag) => format!("tag {tag}"),
            Snapshot::Date(date) => format!("date {}", date.unix_timestamp()),
        };
        // Tags may have any length and characters that no file name has.
        let PathKey { high, low } = PathKey::of(choice.as_bytes());
        Some(workspace.join(format!("breadcrumb.{fqrn}@{high:016x}{low:016x}")))
    }

    /// Reads it; none if there is none that makes sense.
    pub fn read(file: &Path) -> Option<Breadcrumb> {
        Breadcrumb::parse(&std::fs::read_to_string(file).ok()?)
    }

    /// Writes it, unless it is there already.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        if Breadcrumb::read(file).as_ref() == Some(self) {
            return Ok(());
        }
        let directory = file.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        write_durably(file, directory, self.print().as_bytes())
    }

    /// `<root hash>T<time>R<revision>`, then the tag on a line of its own.
    fn parse(text: &str) -> Option<Breadcrumb> {
        let mut lines = text.lines();
        let (root, rest) = lines.next()?.split_once('T')?;
        let (published, revision) = rest.split_once('R')?;
        Some(Breadcrumb {
            root: root.parse().ok()?,
            published: published.parse().ok()?,
            revision: revision.parse().ok()?,
            tag: lines.next().map(str::to_owned),
        })
    }

    fn print(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!("{tag}\n")).collect::<String>();
        format!("{}T{}R{}\n{tag}", self.root, self.published, self.revision)
    }
}

/// Old or new contents, never a mixture, even after a power failure.
fn write_durably(path: &Path, directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breadcrumbs_round_trip() {
        let line = "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78-rmd160T1760000000R17\n";
        for (text, tag) in [(line.to_owned(), None), (format!("{line}v3/rc-1\n"), Some("v3/rc-1".to_owned()))] {
            let crumb = Breadcrumb::parse(&text).unwrap();
            assert_eq!((crumb.published, crumb.revision, &crumb.tag), (1760000000, 17, &tag));
            assert_eq!(crumb.print(), text);
        }
        for bad in ["", "e8", "T1R2", "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78T1", "zT1R1"] {
            assert_eq!(Breadcrumb::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_choice_has_a_place_of_its_own_in_a_directory_that_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let workspace = directory.path().join("new/workspace");
        let place = |snapshot| Breadcrumb::place(&workspace, "a.b", &snapshot).unwrap();
        let date = time::UtcDateTime::from_unix_timestamp(5).unwrap();
        let places = [Snapshot::Newest, Snapshot::Tag("v/1".into()), Snapshot::Tag("v/2".into()), Snapshot::Date(date)]
            .map(place);
        let distinct: std::collections::HashSet<&PathBuf> = places.iter().collect();
        assert_eq!(distinct.len(), places.len());
        let root = "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78".parse().unwrap();
        let crumb = Breadcrumb { root, published: 1, revision: 2, tag: Some("v/1".into()) };
        crumb.write(&places[1]).unwrap();
        assert_eq!(Breadcrumb::read(&places[1]), Some(crumb));
        assert_eq!(Breadcrumb::read(&places[2]), None);
    }
}
