//! Layers whose deletions are files named `.wh.NAME` and `.wh..wh..opq`, as the existing tool writes them.
//!
//! overlayfs knows only 0:0 devices and attributes. So such a layer is stacked between two small local directories:
//!
//! ```text
//! above    0:0 devices named `.wh.NAME`, `.wh..wh..opq`, `.cvmfscatalog`: hides what the layer shows too much of
//! layerfs  as published
//! below    0:0 devices named NAME, opaque directories: deletes what the layers further down have
//! ```
//! A name that the layer deletes and makes anew is right as well: the layer stands above the device that deletes. Directories of
//! `above` are copies of the layer's, since the topmost directory decides what a container sees of mode, owner and time.
//!
//! One thing can't be said this way: the roots of all layers merge whatever is in them, so a layer that empties `/` is refused.
//!
//! The two directories depend on the layer alone, are made once, and are shared by all snapshots of it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

const PREFIX: &[u8] = b".wh.";
/// What makes a directory opaque, and how another version of the existing tool spelled it.
const OPAQUE: [&[u8]; 2] = [b".wh..wh..opq", b".wh..opq"];
/// Other names that tools of the time of AUFS left behind; they delete nothing.
const LEFTOVER: &[u8] = b".wh..wh.";
const CATALOG: &[u8] = b".cvmfscatalog";

/// What a layer deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Markers {
    /// paths of files that must not be seen
    pub hidden: Vec<PathBuf>,
    /// paths that are deleted
    pub deleted: Vec<PathBuf>,
    /// directories that hide what is below
    pub opaque: Vec<PathBuf>,
}

impl Markers {
    /// Is the layer right as it is?
    pub fn is_empty(&self) -> bool {
        self.hidden.is_empty()
    }
}

/// Looks through a whole layer. Nothing if it has more than `limit` entries.
pub fn scan(layer: &Path, limit: usize) -> io::Result<Option<Markers>> {
    let mut markers = Markers::default();
    let mut seen = 0;
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(layer.join(&directory))? {
            let entry = entry?;
            seen += 1;
            if seen > limit {
                return Ok(None);
            }
            let name = entry.file_name();
            let path = directory.join(&name);
            if entry.file_type()?.is_dir() {
                open.push(path);
                continue;
            }
            let bytes = name.as_bytes();
            if OPAQUE.contains(&bytes) {
                markers.opaque.push(directory.clone());
            } else if bytes.starts_with(LEFTOVER) {
                // Only out of sight.
            } else if let Some(deleted) = bytes.strip_prefix(PREFIX).filter(|name| !matches!(*name, b"" | b"." | b".."))
            {
                markers.deleted.push(directory.join(OsStr::from_bytes(deleted)));
            } else if !(directory.as_os_str().is_empty() && bytes == CATALOG) {
                continue;
            }
            markers.hidden.push(path);
        }
    }
    for paths in [&mut markers.hidden, &mut markers.deleted, &mut markers.opaque] {
        paths.sort();
    }
    Ok(Some(markers))
}

/// Makes `SHADOW/above` and `SHADOW/below` for a layer; whoever comes second finds the first one's.
pub fn build(layer: &Path, markers: &Markers, shadow: &Path) -> io::Result<()> {
    if shadow.join("below").is_dir() {
        return Ok(());
    }
    if markers.opaque.iter().any(|path| path.as_os_str().is_empty()) {
        return Err(io::Error::other("it empties the whole root, which overlayfs can't do"));
    }
    let parent = shadow.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(parent)?;
    let new = tempdir(parent)?;
    let (above, below) = (new.join("above"), new.join("below"));
    for root in [&above, &below] {
        fs::create_dir(root)?;
        copy_attributes(layer, root)?;
    }
    for path in &markers.hidden {
        whiteout(layer, &above, path)?;
    }
    for path in &markers.deleted {
        whiteout(layer, &below, path)?;
    }
    for path in &markers.opaque {
        // Deleted as a whole, it hides what is below already.
        let Some(directory) = directories(layer, &below, path)? else { continue };
        for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
            xattr::set(&directory, name, b"y")?;
        }
    }
    copy_times(layer, &above)?;
    match fs::rename(&new, shadow) {
        Err(_) if shadow.join("below").is_dir() => fs::remove_dir_all(&new),
        done => done,
    }
}

fn tempdir(parent: &Path) -> io::Result<PathBuf> {
    for number in 0.. {
        let mut name = OsString::from_vec(b".new-".to_vec());
        name.push(format!("{}-{number}", std::process::id()));
        match fs::create_dir(parent.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| parent.join(name)),
        }
    }
    unreachable!("numbers don't end")
}

/// A 0:0 device at a path, in copies of the layer's directories.
fn whiteout(layer: &Path, root: &Path, path: &Path) -> io::Result<()> {
    let Some(directory) = directories(layer, root, path.parent().unwrap_or(Path::new("")))? else { return Ok(()) };
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    match mknod(&directory.join(name), SFlag::S_IFCHR, Mode::empty(), 0) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes copies of the layer's directories down to a path; nothing if one of them is a device that deletes all of it.
fn directories(layer: &Path, root: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    let (mut from, mut to) = (layer.to_owned(), root.to_owned());
    for component in path.components() {
        from.push(component);
        to.push(component);
        match fs::create_dir(&to) {
            Ok(()) => copy_attributes(&from, &to)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !to.symlink_metadata()?.is_dir() {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(to))
}

/// Gives directories the times of the layer's, once nothing is made in them any more.
fn copy_times(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_times(&from.join(entry.file_name()), &entry.path())?;
        }
    }
    let metadata = from.symlink_metadata()?;
    let times = fs::FileTimes::new().set_accessed(metadata.accessed()?).set_modified(metadata.modified()?);
    fs::File::open(to)?.set_times(times)
}

fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    for name in xattr::list(from)? {
        let private =
            [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|family| name.as_bytes().starts_with(family));
        // Magic attributes of the client are in the list of no directory; what can't be copied is not worth a failed start.
        if !private && let Some(value) = xattr::get(from, &name)? {
            let _ = xattr::set(to, &name, &value);
        }
    }
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for path in [
            "etc/keep",
            "etc/.wh.gone",
            "etc/.wh.renewed",
            "etc/renewed",
            "data/.wh..wh..opq",
            "data/new",
            "old/.wh..opq",
            ".cvmfscatalog",
            "x/.wh..wh.plnk",
            "x/.cvmfscatalog",
        ] {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), path).unwrap();
        }
        fs::set_permissions(root.join("etc"), fs::Permissions::from_mode(0o2751)).unwrap();
        directory
    }

    #[test]
    fn markers_are_found_and_counted() {
        let directory = layer();
        let paths = |texts: &[&str]| texts.iter().map(PathBuf::from).collect::<Vec<_>>();
        let markers = scan(directory.path(), 100).unwrap().expect("few entries");
        let hidden =
            [".cvmfscatalog", "data/.wh..wh..opq", "etc/.wh.gone", "etc/.wh.renewed", "old/.wh..opq", "x/.wh..wh.plnk"];
        assert_eq!(markers.hidden, paths(&hidden));
        assert_eq!(markers.deleted, paths(&["etc/gone", "etc/renewed"]));
        assert_eq!(markers.opaque, paths(&["data", "old"]));
        assert_eq!(scan(directory.path(), 5).unwrap(), None);
    }

    #[test]
    fn a_layer_without_markers_is_right_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("wh.file"), "").unwrap();
        assert!(scan(directory.path(), 10).unwrap().expect("few entries").is_empty());
    }

    #[test]
    fn directories_of_the_shadow_are_copies() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: 0:0 devices need root");
            return;
        }
        let (directory, state) = (layer(), tempfile::tempdir().unwrap());
        let markers = scan(directory.path(), 100).unwrap().expect("few entries");
        let shadow = state.path().join("images.example.org/hex");
        build(directory.path(), &markers, &shadow).unwrap();
        build(directory.path(), &markers, &shadow).expect("a second time");
        let device = |path: &str| {
            let metadata = shadow.join(path).symlink_metadata().unwrap_or_else(|error| panic!("{path}: {error}"));
            metadata.rdev() == 0 && metadata.mode() & 0o170_000 == 0o020_000
        };
        for path in [
            "above/etc/.wh.gone",
            "above/.cvmfscatalog",
            "above/data/.wh..wh..opq",
            "below/etc/gone",
            "below/etc/renewed",
        ] {
            assert!(device(path), "{path}");
        }
        assert_eq!(shadow.join("above/etc").metadata().unwrap().mode() & 0o7777, 0o2751);
        assert_eq!(xattr::get(shadow.join("below/data"), "trusted.overlay.opaque").unwrap(), Some(b"y".to_vec()));
        assert!(!shadow.join("below/etc/.wh.gone").exists() && !shadow.join("above/etc/gone").exists());
    }
}
