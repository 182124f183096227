//! Thin images: a layer that holds nothing but `thin.json` stands for the layers that it lists.
//!
//! Such a layer is a few KB, so it is downloaded and unpacked like any other, and containerd verifies it: what it says can't be put
//! under the name of another image. It is recognised when it is committed.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use image::thin::{FILE, MAX_THIN, ThinError, ThinRecord};

/// What an unpacked layer says, if it is one of a thin image; whether that can be believed is in the result.
pub fn read(layer: &Path) -> Option<Result<ThinRecord, ThinError>> {
    let mut entries = fs::read_dir(layer).ok()?;
    let only = entries.next()?.ok()?;
    if only.file_name() != FILE || !only.file_type().ok()?.is_file() || entries.next().is_some() {
        return None;
    }
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(nix::libc::O_NOFOLLOW).open(only.path()).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_THIN as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(ThinRecord::parse(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_layer_with_the_one_file_is_thin() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(read(directory.path()).is_none());
        fs::write(path(FILE), r#"{"version":"1.0","layers":[]}"#).unwrap();
        assert!(read(directory.path()).expect("thin").is_ok());
        fs::write(path("other"), "").unwrap();
        assert!(read(directory.path()).is_none());
        fs::remove_file(path("other")).unwrap();
        fs::write(path(FILE), "{}").unwrap();
        assert!(read(directory.path()).expect("thin").is_err());
        fs::remove_file(path(FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path(FILE)).unwrap();
        assert!(read(directory.path()).is_none());
        fs::remove_file(path(FILE)).unwrap();
        fs::create_dir(path(FILE)).unwrap();
        assert!(read(directory.path()).is_none());
    }
}
