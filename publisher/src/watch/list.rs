//! The wish list as a file that others change, by hand or by git.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::error::CommandError;
use crate::wishlist::WishList;

/// How often a git directory is pulled.
const PULL: Duration = Duration::from_secs(60);

/// The list, at its last good reading.
#[derive(Debug)]
pub struct ListFile {
    path: PathBuf,
    list: WishList,
    seen: Vec<(PathBuf, Option<Seen>)>,
    trouble: Option<String>,
    git: Option<Option<Instant>>,
}

/// By what a change is noticed: cheap, and right for editors that replace the file as well.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl Seen {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { modified: metadata.modified().ok()?, length: metadata.len(), inode: metadata.ino() })
    }

    fn of_all(files: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, Option<Self>)> {
        let see = |file: PathBuf| (Self::of(&file), file);
        files.into_iter().map(see).map(|(seen, file)| (file, seen)).collect()
    }
}

impl ListFile {
    /// Reads the list; it has to be good at first. With `git`, the directory of the file is pulled before each look.
    pub fn open(path: &Path, git: bool) -> Result<Self, CommandError> {
        let reading = WishList::reading(path);
        let (seen, list) = (Seen::of_all(reading.files), reading.list?);
        let mut file = Self { path: path.to_owned(), list, seen, trouble: None, git: git.then_some(None) };
        file.tell();
        Ok(file)
    }

    /// The last good list.
    pub fn current(&self) -> &WishList {
        &self.list
    }

    /// Why the file is not at work as it is now, if so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether there is another file than at the last reading, or among those that it includes.
    pub fn has_changed(&self) -> bool {
        self.pull_is_due() || self.seen.iter().any(|(file, seen)| Seen::of(file) != *seen)
    }

    /// Reads the file again if it changed. The name of another repository is returned, and that list is not taken.
    pub fn refresh(&mut self) -> Option<String> {
        if self.pull_is_due() {
            self.pull();
        }
        // Before the reading: what is written meanwhile has another length or time at the next look.
        let seen = Seen::of_all(self.seen.iter().map(|(file, _)| file.clone()));
        if seen == self.seen {
            return None;
        }
        let reading = WishList::reading(&self.path);
        let (known, new): (Vec<PathBuf>, Vec<PathBuf>) =
            reading.files.into_iter().partition(|file| seen.iter().any(|(known, _)| known == file));
        self.seen = seen.into_iter().filter(|(file, _)| known.contains(file)).chain(Seen::of_all(new)).collect();
        match reading.list {
            Ok(list) if list.repository != self.list.repository => {
                self.trouble = Some(format!("it is for {} now; restart to serve that", list.repository));
                Some(list.repository)
            }
            Ok(list) => {
                tracing::info!(wishes = list.wishes.len(), "the wish list was read again");
                self.list = list;
                self.trouble = None;
                self.tell();
                None
            }
            Err(error) => {
                tracing::error!("{error}; the last good list stays at work");
                self.trouble = Some(error.to_string());
                None
            }
        }
    }

    fn tell(&mut self) {
        for problem in &self.list.problems {
            tracing::warn!("{problem}");
        }
    }

    fn pull_is_due(&self) -> bool {
        self.git.is_some_and(|last| last.is_none_or(|last| last.elapsed() >= PULL))
    }

    fn pull(&mut self) {
        self.git = Some(Some(Instant::now()));
        let directory = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut command = Command::new("timeout");
        command.args(["60", "git", "-C"]).arg(directory).args(["pull", "--ff-only", "--quiet"]);
        let result = command.stdin(Stdio::null()).env("GIT_TERMINAL_PROMPT", "0").output();
        let trouble = match result {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        match trouble {
            Some(what) => {
                tracing::warn!(directory = %directory.display(), "git pull failed: {what}");
                self.trouble = Some(format!("git pull failed: {what}"));
            }
            None if self.trouble.as_ref().is_some_and(|t| t.starts_with("git pull")) => self.trouble = None,
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text(repository: &str, image: &str) -> String {
        format!("version: 1\ncvmfs_repo: {repository}\ninput: ['https://quay.io/{image}']\n")
    }

    #[test]
    fn a_change_is_taken_and_a_bad_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list.yaml");
        assert!(ListFile::open(&path, false).is_err());
        fs::write(&path, text("a.example.org", "tools/app:1")).unwrap();
        let mut file = ListFile::open(&path, false).unwrap();
        assert!(!file.has_changed());
        fs::write(&path, text("a.example.org", "tools/other:10")).unwrap();
        assert!(file.has_changed());
        assert_eq!(file.refresh(), None);
        assert_eq!(file.current().wishes[0].text, "https://quay.io/tools/other:10");
        for bad in ["{", &text("b.example.org", "tools/app:1")] {
            fs::write(&path, bad).unwrap();
            assert_eq!(file.refresh().is_some(), bad != "{");
            assert!(file.trouble().is_some());
            assert_eq!(file.current().wishes[0].text, "https://quay.io/tools/other:10");
        }
        fs::remove_file(&path).unwrap();
        file.refresh();
        fs::write(&path, text("a.example.org", "tools/app:3")).unwrap();
        file.refresh();
        assert_eq!((file.trouble(), file.current().wishes[0].text.as_str()), (None, "https://quay.io/tools/app:3"));
    }

    #[test]
    fn a_change_of_an_included_file_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let (path, team) = (directory.path().join("list.yaml"), directory.path().join("team.yaml"));
        let images = |name: &str| format!("version: 2\ninput: [{name}]\n");
        fs::write(&path, "version: 2\ncvmfs_repo: a.b\ninclude: team.yaml\n").unwrap();
        fs::write(&team, images("app:1")).unwrap();
        let mut file = ListFile::open(&path, false).unwrap();
        fs::write(&team, images("other:10")).unwrap();
        assert!(file.has_changed());
        file.refresh();
        assert_eq!(file.current().wishes[0].text, "other:10");
        fs::remove_file(&team).unwrap();
        assert!(file.has_changed());
        file.refresh();
        assert!(file.trouble().is_some_and(|trouble| trouble.contains("team.yaml")), "{:?}", file.trouble());
        assert_eq!(file.current().wishes.len(), 1, "the last good list stays at work");
        fs::write(&team, images("third:100")).unwrap();
        assert!(file.has_changed(), "a file that was missing is watched");
        file.refresh();
        assert_eq!((file.current().wishes[0].text.as_str(), file.trouble()), ("third:100", None));
    }

    #[test]
    fn a_git_directory_is_pulled() {
        let directory = tempfile::tempdir().unwrap();
        let (upstream, clone) = (directory.path().join("upstream"), directory.path().join("clone"));
        fs::create_dir(&upstream).unwrap();
        let git = |arguments: &[&str]| {
            let identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"];
            let output = Command::new("git").arg("-C").arg(&upstream).args(identity).args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        git(&["init", "--quiet"]);
        fs::write(upstream.join("list.yaml"), text("a.example.org", "tools/app:1")).unwrap();
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", "one"]);
        git(&["clone", "--quiet", ".", clone.to_str().unwrap()]);
        let mut file = ListFile::open(&clone.join("list.yaml"), true).unwrap();
        fs::write(upstream.join("list.yaml"), text("a.example.org", "tools/app:2")).unwrap();
        git(&["commit", "--quiet", "--all", "--message", "two"]);
        assert!(file.has_changed());
        file.refresh();
        assert_eq!(file.current().wishes[0].text, "https://quay.io/tools/app:2");
        fs::remove_dir_all(&upstream).unwrap();
        file.git = Some(None);
        file.refresh();
        assert!(file.trouble().unwrap().starts_with("git pull failed"), "{:?}", file.trouble());
    }
}
