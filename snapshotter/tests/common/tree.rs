//! A directory as text, to compare what is seen with what should be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Paths, and what is there.
pub type Tree = BTreeMap<String, String>;

/// Everything in a directory: kind, mode, owner, content; the times of files.
pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let metadata = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = metadata.file_type();
        let what = if kind.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory".into()
        } else if kind.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() {
            format!("device {}", metadata.rdev())
        } else {
            let content = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            format!("file {:?}", String::from_utf8_lossy(&content))
        };
        let name = path.strip_prefix(root).expect("it is below").display().to_string();
        let (mode, uid, gid) = (metadata.mode() & 0o7777, metadata.uid(), metadata.gid());
        tree.insert(name, format!("{what} {mode:o} {uid}:{gid}"));
    }
    tree
}
