//! Files that appear whole or not at all.
//!
//! New content is written beside its place, reaches the disk, and gets its name by `rename`: a reader sees the old or the new, also
//! after a power failure. What a killed process leaves behind begins with [`LEFTOVER`].

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// How the names of temporary files and directories begin.
pub const LEFTOVER: &str = ".thin-image-";

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}")]
pub struct FileError {
    /// what was attempted
    pub doing: &'static str,
    /// where
    pub path: PathBuf,
    /// what the system says
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`.
    pub fn of(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { doing, path, source }
    }
}

/// Replaces a file, or makes it, readable by everybody.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write(path, bytes).map_err(FileError::of("write", path))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = parent(path);
    let mut file = tempfile::Builder::new().prefix(LEFTOVER).tempfile_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(parent)?.sync_all()
}

/// Replaces a symbolic link, or makes it.
pub fn replace_link(path: &Path, target: &Path) -> Result<(), FileError> {
    let make = || {
        let parent = parent(path);
        let temporary = parent.join(format!("{LEFTOVER}{:016x}", fastrand::u64(..)));
        symlink(target, &temporary)?;
        std::fs::rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    };
    make().map_err(FileError::of("link", path))
}

/// Makes a directory with all its files, or nothing. What is at `path` has to be absent or an empty directory.
pub fn new_directory(path: &Path, fill: impl FnOnce(&Path) -> Result<(), FileError>) -> Result<(), FileError> {
    let at = |doing| FileError::of(doing, path);
    let temporary = tempfile::Builder::new().prefix(LEFTOVER).tempdir_in(parent(path)).map_err(at("create"))?;
    fill(temporary.path())?;
    let finish = || {
        std::fs::set_permissions(temporary.path(), Permissions::from_mode(0o755))?;
        File::open(temporary.path())?.sync_all()?;
        std::fs::rename(temporary.path(), path)?;
        File::open(parent(path))?.sync_all()
    };
    finish().map_err(at("create"))?;
    // It has another name now.
    let _ = temporary.keep();
    Ok(())
}

/// The directory of a path; of a bare name the current one.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Removes what killed processes left in a directory. Nobody else may be writing there.
pub fn sweep(directory: &Path) -> Result<(), FileError> {
    for entry in std::fs::read_dir(directory).map_err(FileError::of("read", directory))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(LEFTOVER) {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_directory { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(FileError::of("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for content in ["one", "two"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        replace_link(&path, Path::new("/somewhere")).unwrap();
        assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("/somewhere"));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_can_t_be_filled_does_not_appear() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let broken = Path::new("/nonexistent/x");
        let error = new_directory(&path, |at| {
            replace(&at.join("a"), b"")?;
            replace(broken, b"")
        });
        assert_eq!(error.unwrap_err().path, broken);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        new_directory(&path, |at| replace(&at.join("a"), b"")).unwrap();
        assert!(path.join("a").exists());
        assert!(new_directory(&path, |_| Ok(())).is_err(), "it is not empty");
        assert!(path.join("a").exists());
    }

    #[test]
    fn leftovers_are_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join(".thin-image-abc/sub")).unwrap();
        for name in [".thin-image-def", "kept", ".kept"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        sweep(directory.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".kept", "kept"]);
    }
}
