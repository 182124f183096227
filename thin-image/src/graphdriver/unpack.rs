//! From the archive of a layer to its directory as overlayfs wants it.
//!
//! | in the archive | in the directory |
//! |---|---|
//! | `.wh.NAME`, or a 0:0 device | a 0:0 device NAME |
//! | `.wh..wh..opq` | the directory is opaque |
//! | other names with `.wh..wh.` | nothing: bookkeeping of AUFS |
//! | attributes `trusted.overlay.*`, `user.overlay.*` | nothing: they would tell overlayfs what to show |
//!
//! Deletions are of what the layers below have: what the archive itself has under a deleted name stays, and if it is a directory, shows
//! nothing of theirs. Owners, modes with their set-id bits, times, other attributes, hard links, devices and pipes are kept.
//!
//! All paths are absolute: this runs within the layer ([`super::jail`]). Parents that the archive doesn't list are made as Docker's own
//! driver makes them, for root and with mode 0755.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use image::tar::{TarEntry, TarKind, TarReader};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::plugin::Refusal;
use crate::text::printable;

/// What makes a directory opaque.
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// Families of attributes that belong to overlayfs.
pub const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// How names of deletions begin in archives.
pub const WHITEOUT: &[u8] = b".wh.";
/// The name that makes its directory opaque.
pub const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const BOOKKEEPING: &[u8] = b".wh..wh.";

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// bytes of all files
    pub size: u64,
    /// the root directory is opaque
    pub opaque: bool,
}

/// A member that can't be made, for the error.
struct Trouble {
    path: PathBuf,
    why: String,
}

impl Trouble {
    fn at<E: ToString>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self { path, why: error.to_string() }
    }
}

/// Unpacks a whole archive into the root directory, and reads the stream to its end.
pub fn unpack(source: impl Read) -> Result<Unpacked, Refusal> {
    let mut reader = TarReader::new(source);
    let mut layer = Layer::default();
    let archive = |error| Refusal::of("the layer's archive can't be unpacked")(error);
    while let Some(entry) = reader.next_entry().map_err(archive)? {
        layer.add(&entry, &mut reader.content()).map_err(|trouble| {
            let path = printable(&trouble.path.to_string_lossy(), 300);
            Refusal::new(format!("the layer's archive can't be unpacked: {path}: {}", trouble.why))
        })?;
    }
    layer.finish().map_err(Refusal::of("the times of directories can't be set"))?;
    reader.drain().map_err(archive)?;
    Ok(layer.unpacked)
}

#[derive(Default)]
struct Layer {
    unpacked: Unpacked,
    /// directories that are known to be there; emptied when one might have gone
    parents: HashSet<PathBuf>,
    /// times of directories, which are set when nothing is made in them any more
    times: BTreeMap<PathBuf, (i64, u32)>,
}

impl Layer {
    fn add(&mut self, entry: &TarEntry, content: &mut impl Read) -> Result<(), Trouble> {
        let path = absolute(&entry.path).map_err(Trouble::at(Path::new(OsStr::from_bytes(&entry.path))))?;
        let fail = |error: io::Error| Trouble::at(&path)(error);
        let Some(name) = path.file_name().map(OsStr::as_bytes) else {
            return match entry.kind {
                TarKind::Directory => self.attributes(entry, &path),
                _ => Err(fail(io::Error::other("the root is a directory"))),
            };
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        if name == OPAQUE_MARK {
            self.parents_of(&path).map_err(fail)?;
            self.unpacked.opaque |= parent == Path::new("/");
            return xattr::set(parent, OPAQUE, b"y").map_err(fail);
        }
        if name.starts_with(BOOKKEEPING) {
            return Ok(());
        }
        if let Some(deleted) = name.strip_prefix(WHITEOUT) {
            if matches!(deleted, b"" | b"." | b"..") {
                return Err(fail(io::Error::other("it deletes nothing that can be named")));
            }
            self.parents_of(&path).map_err(fail)?;
            return self.delete(entry, &parent.join(OsStr::from_bytes(deleted)));
        }
        self.parents_of(&path).map_err(fail)?;
        if let TarKind::CharDevice { major: 0, minor: 0 } = entry.kind {
            return self.delete(entry, &path);
        }
        let hides = self.make_room(entry, &path).map_err(fail)?;
        match &entry.kind {
            TarKind::Directory => {
                match fs::create_dir(&path) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(fail(error)),
                    _ => {}
                }
                if hides {
                    xattr::set(&path, OPAQUE, b"y").map_err(fail)?;
                }
            }
            TarKind::Regular { size } => {
                let mut file = fs::File::create_new(&path).map_err(fail)?;
                let written = io::copy(content, &mut file).map_err(fail)?;
                if written != *size {
                    return Err(fail(ErrorKind::UnexpectedEof.into()));
                }
                self.unpacked.size += written;
            }
            TarKind::HardLink { target } => {
                let from = absolute(target).map_err(Trouble::at(&path))?;
                // Attributes are those of the file that it leads to.
                return fs::hard_link(&from, &path).map_err(|error| {
                    fail(io::Error::other(format!("a link to {}: {error}", printable(&from.to_string_lossy(), 300))))
                });
            }
            TarKind::Symlink { target } => symlink(OsStr::from_bytes(target), &path).map_err(fail)?,
            TarKind::CharDevice { major, minor } => node(&path, SFlag::S_IFCHR, *major, *minor).map_err(fail)?,
            TarKind::BlockDevice { major, minor } => node(&path, SFlag::S_IFBLK, *major, *minor).map_err(fail)?,
            TarKind::Fifo => node(&path, SFlag::S_IFIFO, 0, 0).map_err(fail)?,
        }
        self.attributes(entry, &path)
    }

    /// Makes sure that the parent is there. As in a container, parents may be links.
    fn parents_of(&mut self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        if self.parents.contains(parent) {
            return Ok(());
        }
        let mut at = PathBuf::from("/");
        for component in parent.components().skip(1) {
            at.push(component);
            if self.parents.contains(&at) {
                continue;
            }
            match fs::metadata(&at) {
                Ok(found) if found.is_dir() => {}
                // Deleted by the same archive: what comes in its place shows nothing of what was there.
                Ok(found) if is_whiteout(&found) => {
                    fs::remove_file(&at)?;
                    self.directory(&at)?;
                    xattr::set(&at, OPAQUE, b"y")?;
                }
                Ok(_) => return Err(ErrorKind::NotADirectory.into()),
                Err(error) if error.kind() == ErrorKind::NotFound => self.directory(&at)?,
                Err(error) => return Err(error),
            }
            self.parents.insert(at.clone());
        }
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "one of the ways in which a layer grows")]
    fn directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    }

    /// Takes away what a member replaces. Was that a deletion, so that a directory has to hide what is below?
    fn make_room(&mut self, entry: &TarEntry, path: &Path) -> io::Result<bool> {
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        if found.is_dir() {
            if entry.kind == TarKind::Directory {
                return Ok(false);
            }
            fs::remove_dir_all(path)?;
            self.parents.clear();
            self.times.retain(|directory, _| !directory.starts_with(path));
        } else {
            fs::remove_file(path)?;
            self.parents.clear();
        }
        Ok(is_whiteout(&found))
    }

    /// Deletes a name of the layers below.
    fn delete(&mut self, entry: &TarEntry, path: &Path) -> Result<(), Trouble> {
        let fail = |error: io::Error| Trouble::at(path)(error);
        match fs::symlink_metadata(path) {
            // This archive's own, of which nothing below may be seen.
            Ok(found) if found.is_dir() => xattr::set(path, OPAQUE, b"y").map_err(fail),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).map_err(|error| fail(error.into()))?;
                let (uid, gid) = owner(entry).map_err(fail)?;
                lchown(path, Some(uid), Some(gid)).map_err(fail)
            }
            Err(error) => Err(fail(error)),
        }
    }

    /// Gives a member its owner, mode, attributes and time, in the order in which none takes another away.
    fn attributes(&mut self, entry: &TarEntry, path: &Path) -> Result<(), Trouble> {
        let fail = |error: io::Error| Trouble::at(path)(error);
        let (uid, gid) = owner(entry).map_err(fail)?;
        lchown(path, Some(uid), Some(gid)).map_err(fail)?;
        if !matches!(entry.kind, TarKind::Symlink { .. }) {
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode & 0o7777)).map_err(fail)?;
        }
        for (name, value) in &entry.xattrs {
            if OVERLAY.iter().any(|family| name.starts_with(family)) {
                continue;
            }
            xattr::set(path, OsStr::from_bytes(name), value).map_err(|error| {
                fail(io::Error::other(format!("attribute {}: {error}", printable(&String::from_utf8_lossy(name), 100))))
            })?;
        }
        if entry.kind == TarKind::Directory {
            self.times.insert(path.to_owned(), (entry.mtime, entry.mtime_ns));
            return Ok(());
        }
        set_time(path, entry.mtime, entry.mtime_ns).map_err(fail)
    }

    /// Sets the times of directories, the deepest first.
    fn finish(&self) -> io::Result<()> {
        self.times.iter().rev().try_for_each(|(path, (seconds, nanoseconds))| set_time(path, *seconds, *nanoseconds))
    }
}

/// A path below the root. Nothing leads out of it.
fn absolute(path: &[u8]) -> Result<PathBuf, &'static str> {
    let mut out = PathBuf::from("/");
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("the name has \"..\" in it"),
            name => out.push(OsStr::from_bytes(name)),
        }
    }
    Ok(out)
}

/// Is it a deletion?
pub fn is_whiteout(found: &fs::Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

fn owner(entry: &TarEntry) -> io::Result<(u32, u32)> {
    let number = |id: i64| u32::try_from(id).map_err(|_| io::Error::other(format!("no owner has the number {id}")));
    Ok((number(entry.uid)?, number(entry.gid)?))
}

fn node(path: &Path, kind: SFlag, major: u32, minor: u32) -> io::Result<()> {
    mknod(path, kind, Mode::from_bits_truncate(0o600), makedev(major.into(), minor.into())).map_err(Into::into)
}

fn set_time(path: &Path, seconds: i64, nanoseconds: u32) -> io::Result<()> {
    let time = TimeSpec::new(seconds, nanoseconds.into());
    utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(Into::into)
}
