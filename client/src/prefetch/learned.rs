//! What starts have taught this machine: one start-up list a tree, beside the breadcrumbs.
//!
//! ```text
//! <workspace>/startup.FQRN/KEY.json     a list as `cvmfs::startup` prints it; KEY = MD5 of the tree's name
//! ```
//!
//! A hint: what cannot be read is no list, what cannot be written is said once and missing later. At most some hundred
//! lists are kept; those that were not written for the longest time go first.

use std::fs::DirBuilder;
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use cvmfs::path::PathKey;
use cvmfs::startup::{MAX_BYTES, StartupList};

const MAX_LISTS: usize = 256;

/// The lists of one repository.
#[derive(Debug)]
pub struct Learned {
    directory: PathBuf,
}

impl Learned {
    /// The lists of repository `fqrn` in a workspace.
    pub fn new(workspace: &Path, fqrn: &str) -> Learned {
        Learned { directory: workspace.join(format!("startup.{fqrn}")) }
    }

    fn place(&self, name: &[u8]) -> PathBuf {
        let PathKey { high, low } = PathKey::of(name);
        self.directory.join(format!("{high:016x}{low:016x}.json"))
    }

    /// What is known of the tree of this name.
    pub fn load(&self, name: &[u8]) -> Option<StartupList> {
        let place = self.place(name);
        if std::fs::metadata(&place).ok()?.len() > MAX_BYTES {
            return None;
        }
        StartupList::parse(&std::fs::read(place).ok()?).ok()
    }

    /// Keeps what a start has touched, unless that is less than half of what is known: not every start is a whole one.
    pub fn save(&self, name: &[u8], list: &StartupList) {
        let known = self.load(name).map_or(0, |known| known.files.len());
        if list.files.is_empty() || list.files.len() * 2 < known {
            return;
        }
        if let Err(error) = self.write(&self.place(name), &list.print()) {
            tracing::warn!(directory = %self.directory.display(), %error, "cannot keep what a start has touched");
        }
    }

    fn write(&self, place: &Path, text: &str) -> io::Result<()> {
        // Whoever removes the cache of a client that runs does not get it back from here.
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(text.as_bytes())?;
        file.persist(place).map_err(|e| e.error)?;
        let age =
            |entry: &std::fs::DirEntry| entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut lists: Vec<_> = std::fs::read_dir(&self.directory)?.flatten().collect();
        if lists.len() > MAX_LISTS {
            lists.sort_by_cached_key(age);
            lists[..lists.len() - MAX_LISTS].iter().for_each(|entry| drop(std::fs::remove_file(entry.path())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cvmfs::path::RepoPath;
    use cvmfs::startup::Touched;

    use super::*;

    fn list(files: usize) -> StartupList {
        let file = |number| Touched { path: RepoPath::parse(format!("/{number}")).unwrap(), size: 1, parts: vec![] };
        StartupList { files: (0..files).map(file).collect(), left_out: 0 }
    }

    #[test]
    fn the_last_whole_start_counts() {
        let workspace = tempfile::tempdir().unwrap();
        let learned = Learned::new(workspace.path(), "a.example.org");
        let length = |learned: &Learned| learned.load(b"/tree").map(|list| list.files.len());
        for (files, kept) in [(0, None), (10, Some(10)), (4, Some(10)), (5, Some(5)), (100, Some(100)), (0, Some(100))]
        {
            learned.save(b"/tree", &list(files));
            assert_eq!(length(&learned), kept, "{files}");
        }
        assert_eq!(learned.load(b"/other"), None);
        assert_eq!(length(&Learned::new(workspace.path(), "b.example.org")), None);
    }

    #[test]
    fn what_is_damaged_is_no_list_and_is_replaced() {
        let workspace = tempfile::tempdir().unwrap();
        let learned = Learned::new(workspace.path(), "a.example.org");
        learned.save(b"/tree", &list(3));
        std::fs::write(learned.place(b"/tree"), b"{\"schema\":1,\"fi").unwrap();
        assert_eq!(learned.load(b"/tree"), None);
        learned.save(b"/tree", &list(1));
        assert_eq!(learned.load(b"/tree"), Some(list(1)));
        let removed = workspace.path().join("removed");
        Learned::new(&removed, "a.example.org").save(b"/tree", &list(1));
        assert!(!removed.exists(), "a workspace that is gone stays gone");
        // Nowhere to write: nothing is learned, and nothing fails.
        let nowhere = Learned::new(Path::new("/dev/null"), "a.example.org");
        nowhere.save(b"/tree", &list(1));
        assert_eq!(nowhere.load(b"/tree"), None);
    }

    #[test]
    fn a_bounded_number_of_lists_is_kept() {
        let workspace = tempfile::tempdir().unwrap();
        let learned = Learned::new(workspace.path(), "a.example.org");
        for number in 0..MAX_LISTS + 20 {
            learned.save(format!("/{number}").as_bytes(), &list(1));
        }
        assert_eq!(std::fs::read_dir(&learned.directory).unwrap().count(), MAX_LISTS);
        assert!(learned.load(format!("/{}", MAX_LISTS + 19).as_bytes()).is_some());
    }
}
