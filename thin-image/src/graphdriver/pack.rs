//! From the directory of a layer to its archive, its size, and the list of what it changes.
//!
//! The archive has the form that registries keep: `.wh.NAME` for a deletion, `.wh..wh..opq` in an opaque directory. What
//! [`super::unpack`] keeps is in it, and unpacking it gives the same directory. Members are sorted: the same directory gives the same bytes.
//!
//! A container may be running on the directory: a file that changes while it is read has the length that it had when its header was written.
//! All paths are absolute: this runs within the layer ([`super::jail`]).

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{major, minor};
use tar::{EntryType, Header};

use super::unpack::{OPAQUE, OPAQUE_MARK, OVERLAY, WHITEOUT, is_whiteout};

const BLOCK: usize = 512;
/// Attributes that say what this machine thinks of a file.
const MACHINE: &[u8] = b"security.selinux";

/// What happened to a path, as Docker numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// it was there and is another now
    Modified = 0,
    /// it is new
    Added = 1,
    /// it is gone
    Deleted = 2,
}

/// Calls `visit` with everything below a directory, parents first and names in order; what vanishes meanwhile is passed over.
fn walk(directory: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name());
    }
    names.sort();
    for name in names {
        let path = directory.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            found => found?,
        };
        visit(&path, &found)?;
        if found.is_dir() {
            match walk(&path, visit) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                walked => walked?,
            }
        }
    }
    Ok(())
}

/// Bytes of all files; one with several names counts once.
pub fn size() -> io::Result<u64> {
    let (mut sum, mut seen) = (0, HashSet::new());
    walk(Path::new("/"), &mut |_, found| {
        if found.is_file() && (found.nlink() == 1 || seen.insert(found.ino())) {
            sum += found.len();
        }
        Ok(())
    })?;
    Ok(sum)
}

/// What the layer changes of what is below it; nothing below: all is new.
pub fn changes(below: Option<&OwnedFd>) -> io::Result<Vec<(PathBuf, Change)>> {
    let mut changes = Vec::new();
    walk(Path::new("/"), &mut |path, found| {
        let existed = below.map_or(Ok(false), |below| exists(below, path))?;
        let change = match (is_whiteout(found), existed) {
            (true, true) => Change::Deleted,
            // Made and deleted again.
            (true, false) => return Ok(()),
            (false, true) => Change::Modified,
            (false, false) => Change::Added,
        };
        changes.push((path.to_owned(), change));
        Ok(())
    })?;
    Ok(changes)
}

/// Is there something at a path below a directory? No link is followed.
fn exists(below: &OwnedFd, path: &Path) -> io::Result<bool> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(below, path, how).map_err(io::Error::from) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(nix::libc::ENOENT | nix::libc::ENOTDIR | nix::libc::ELOOP) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Writes the archive of the root directory.
pub fn pack(sink: &mut impl Write) -> io::Result<()> {
    let mut links: HashMap<u64, PathBuf> = HashMap::new();
    let mut members = Members { sink };
    walk(Path::new("/"), &mut |path, found| {
        let name = path.strip_prefix("/").expect("all paths begin there");
        if is_whiteout(found) {
            return members.mark(&with_prefix(name), found);
        }
        if !found.is_dir() && found.nlink() > 1 {
            if let Some(first) = links.get(&found.ino()) {
                return members.link(name, found, first);
            }
            links.insert(found.ino(), name.to_owned());
        }
        members.add(path, name, found)
    })?;
    sink.write_all(&[0; 2 * BLOCK])
}

fn with_prefix(name: &Path) -> PathBuf {
    let last = name.file_name().map(OsStr::as_bytes).unwrap_or_default();
    name.with_file_name(OsString::from_vec([WHITEOUT, last].concat()))
}

struct Members<'a, W> {
    sink: &'a mut W,
}

impl<W: Write> Members<'_, W> {
    fn add(&mut self, path: &Path, name: &Path, found: &fs::Metadata) -> io::Result<()> {
        let kind = found.file_type();
        let mut name = name.as_os_str().as_bytes().to_vec();
        let records = attributes(path)?;
        if kind.is_dir() {
            name.push(b'/');
            self.header(EntryType::Directory, &name, b"", found, 0, records)?;
            if xattr::get(path, OPAQUE)?.as_deref() == Some(b"y") {
                name.extend(OPAQUE_MARK);
                self.mark(Path::new(OsStr::from_bytes(&name)), found)?;
            }
            return Ok(());
        }
        if kind.is_symlink() {
            let target = fs::read_link(path)?;
            return self.header(EntryType::Symlink, &name, target.as_os_str().as_bytes(), found, 0, records);
        }
        if kind.is_file() {
            let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path)?;
            self.header(EntryType::Regular, &name, b"", found, found.len(), records)?;
            let written = io::copy(&mut file.take(found.len()), self.sink)?;
            let missing = found.len() - written;
            let padding = found.len().next_multiple_of(BLOCK as u64) - found.len();
            io::copy(&mut io::repeat(0).take(missing + padding), self.sink)?;
            return Ok(());
        }
        let kind = match kind {
            kind if kind.is_char_device() => EntryType::Char,
            kind if kind.is_block_device() => EntryType::Block,
            kind if kind.is_fifo() => EntryType::Fifo,
            // A socket is of no use without the process that listens on it, and archives have none.
            _ => return Ok(()),
        };
        self.header(kind, &name, b"", found, 0, records)
    }

    fn link(&mut self, name: &Path, found: &fs::Metadata, first: &Path) -> io::Result<()> {
        self.header(EntryType::Link, name.as_os_str().as_bytes(), first.as_os_str().as_bytes(), found, 0, Vec::new())
    }

    /// An empty file that means something by its name.
    fn mark(&mut self, name: &Path, found: &fs::Metadata) -> io::Result<()> {
        self.header(EntryType::Regular, name.as_os_str().as_bytes(), b"", found, 0, Vec::new())
    }

    /// A header, with what doesn't fit into it as PAX records before it (POSIX.1-2024, pax, "pax Extended Header").
    fn header(
        &mut self,
        kind: EntryType,
        name: &[u8],
        target: &[u8],
        found: &fs::Metadata,
        size: u64,
        mut records: Vec<u8>,
    ) -> io::Result<()> {
        const OCTAL_8: u64 = 0o777_7777;
        const OCTAL_12: u64 = 0o777_7777_7777;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        let fields = header.as_old_mut();
        for (field, text, key) in [(&mut fields.name, name, "path"), (&mut fields.linkname, target, "linkpath")] {
            let fits = text.len().min(field.len());
            field[..fits].copy_from_slice(&text[..fits]);
            if text.len() > field.len() {
                record(&mut records, key.as_bytes(), text);
            }
        }
        let mut number = |key: &str, value: u64, most: u64| {
            if value > most {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
            if value > most { 0 } else { value }
        };
        header.set_uid(number("uid", found.uid().into(), OCTAL_8));
        header.set_gid(number("gid", found.gid().into(), OCTAL_8));
        header.set_size(number("size", size, OCTAL_12));
        let time = u64::try_from(found.mtime());
        header.set_mtime(time.unwrap_or(0));
        if time.is_err() {
            record(&mut records, b"mtime", found.mtime().to_string().as_bytes());
        }
        header.set_mode(found.mode() & 0o7777);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(u32::try_from(major(found.rdev())).map_err(io::Error::other)?)?;
            header.set_device_minor(u32::try_from(minor(found.rdev())).map_err(io::Error::other)?)?;
        }
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
            extended.set_mode(0o644);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(records.len() as u64);
            extended.set_cksum();
            self.sink.write_all(extended.as_bytes())?;
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            self.sink.write_all(&records)?;
        }
        header.set_cksum();
        self.sink.write_all(header.as_bytes())
    }
}

/// The attributes of a file as PAX records.
fn attributes(path: &Path) -> io::Result<Vec<u8>> {
    let mut names: Vec<OsString> = xattr::list(path)?.collect();
    names.sort();
    let mut records = Vec::new();
    for name in names {
        let bytes = name.as_bytes();
        // A record's key ends at "=".
        if OVERLAY.iter().any(|family| bytes.starts_with(family)) || bytes == MACHINE || bytes.contains(&b'=') {
            continue;
        }
        if let Some(value) = xattr::get(path, &name)? {
            record(&mut records, &[b"SCHILY.xattr.", bytes].concat(), &value);
        }
    }
    Ok(records)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend(part);
    }
}
