//! One directory entry, as a row of a catalog describes it.
//!
//! The type of an entry follows from `mode`; flags tell only what the mode can't (transition points,
//! chunks, compression, hash algorithm, visibility).

use crate::hash::{Algorithm, ContentHash};
use crate::object::Compression;
use crate::xattr::{self, Xattrs};

/// File type bits of `mode` and their values.
pub mod mode {
    /// Mask of the type bits.
    pub const TYPE: u32 = 0o170000;
    /// Socket.
    pub const SOCKET: u32 = 0o140000;
    /// Symbolic link.
    pub const SYMLINK: u32 = 0o120000;
    /// Regular file.
    pub const REGULAR: u32 = 0o100000;
    /// Block device.
    pub const BLOCK: u32 = 0o060000;
    /// Directory.
    pub const DIRECTORY: u32 = 0o040000;
    /// Character device.
    pub const CHAR: u32 = 0o020000;
    /// Named pipe.
    pub const FIFO: u32 = 0o010000;
}

/// Type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl FileType {
    /// Whether the entry is a device, pipe or socket.
    pub fn is_special(self) -> bool {
        matches!(self, FileType::Char | FileType::Block | FileType::Fifo | FileType::Socket)
    }

    /// Type bits of `mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileType::Regular => mode::REGULAR,
            FileType::Directory => mode::DIRECTORY,
            FileType::Symlink => mode::SYMLINK,
            FileType::Char => mode::CHAR,
            FileType::Block => mode::BLOCK,
            FileType::Fifo => mode::FIFO,
            FileType::Socket => mode::SOCKET,
        }
    }

    /// From the type bits of `mode`; `None` for bits that no file has.
    pub fn from_mode(bits: u32) -> Option<FileType> {
        Some(match bits & mode::TYPE {
            mode::REGULAR => FileType::Regular,
            mode::DIRECTORY => FileType::Directory,
            mode::SYMLINK => FileType::Symlink,
            mode::CHAR => FileType::Char,
            mode::BLOCK => FileType::Block,
            mode::FIFO => FileType::Fifo,
            mode::SOCKET => FileType::Socket,
            _ => return None,
        })
    }
}

/// The flags column of a catalog row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u32);

macro_rules! flag {
    ($($constant:ident = $bit:expr, $test:ident, $doc:literal;)*) => {
        impl Flags {
            $(#[doc = $doc] pub const $constant: u32 = $bit;
              #[doc = concat!("Whether this is set: ", $doc)] pub fn $test(self) -> bool { self.0 & Self::$constant != 0 })*
        }
    };
}

flag! {
    DIRECTORY = 0x1, is_directory, "directory";
    NESTED_MOUNTPOINT = 0x2, is_nested_mountpoint, "transition point, in the parent catalog";
    FILE = 0x4, is_file, "everything that is no directory";
    SYMLINK = 0x8, is_symlink, "symbolic link (together with FILE)";
    SPECIAL = 0x10, is_special, "device, pipe or socket (together with FILE)";
    NESTED_ROOT = 0x20, is_nested_root, "root entry of a nested catalog";
    CHUNKED = 0x40, is_chunked, "content is in chunks";
    EXTERNAL = 0x80, is_external, "content is not in the object store";
    BIND_MOUNTPOINT = 0x4000, is_bind_mountpoint, "directory that leads to another root catalog";
    HIDDEN = 0x8000, is_hidden, "not listed, found by lookup";
    DIRECT_IO = 0x10000, is_direct_io, "to be opened with direct I/O";
    BUNDLE_TRIGGER = 0x20000, is_bundle_trigger, "a file bundle lies beside it";
}

const HASH_SHIFT: u32 = 8;
const COMPRESSION_SHIFT: u32 = 11;
const THREE_BITS: u32 = 0b111;

impl Flags {
    /// Hash algorithm of the content; `None` for numbers nobody uses.
    pub fn algorithm(self) -> Option<Algorithm> {
        Algorithm::from_flag_bits((self.0 >> HASH_SHIFT) & THREE_BITS)
    }

    /// Compression of the content; `None` for numbers nobody uses.
    pub fn compression(self) -> Option<Compression> {
        Compression::from_flag_bits((self.0 >> COMPRESSION_SHIFT) & THREE_BITS)
    }

    /// With these bits set.
    #[must_use]
    pub fn with(self, bits: u32) -> Flags {
        Flags(self.0 | bits)
    }

    /// With these bits cleared.
    #[must_use]
    pub fn without(self, bits: u32) -> Flags {
        Flags(self.0 & !bits)
    }
}

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the file.
    pub offset: u64,
    /// Plain bytes.
    pub size: u64,
    /// Hash of the stored chunk object.
    pub hash: ContentHash,
}

/// One directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Last component of the path; empty for the root of the repository.
    pub name: Vec<u8>,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Regular file: bytes; symlink: length of the target; device: device number; directory: 4096.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of the modification time, when recorded.
    pub mtime_ns: Option<u32>,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Link count; directories: 2 + number of sub-directories.
    pub links: u32,
    /// Hard-link group within the catalog; 0 = none.
    pub link_group: u32,
    /// Hash of the content's object, for unchunked regular files.
    pub content: Option<ContentHash>,
    /// Flags column.
    pub flags: Flags,
    /// Link target; empty for everything else.
    pub symlink: Vec<u8>,
    /// Packed extended attributes.
    pub xattrs: Option<Box<[u8]>>,
}

/// What all entries have: permission bits, owner, time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits (07777).
    pub permissions: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds, when recorded.
    pub mtime_ns: Option<u32>,
}

impl Entry {
    fn new(file_type: FileType, name: impl Into<Vec<u8>>, meta: Meta, flags: u32) -> Entry {
        Entry {
            name: name.into(),
            mode: file_type.mode_bits() | (meta.permissions & 0o7777),
            size: 0,
            mtime: meta.mtime,
            mtime_ns: meta.mtime_ns,
            uid: meta.uid,
            gid: meta.gid,
            links: 1,
            link_group: 0,
            content: None,
            flags: Flags(flags),
            symlink: Vec::new(),
            xattrs: None,
        }
    }

    /// A directory without sub-directories.
    pub fn directory(name: impl Into<Vec<u8>>, meta: Meta) -> Entry {
        Entry { links: 2, size: 4096, ..Entry::new(FileType::Directory, name, meta, Flags::DIRECTORY) }
    }

    /// A regular file kept as one object.
    pub fn file(
        name: impl Into<Vec<u8>>,
        meta: Meta,
        size: u64,
        content: ContentHash,
        compression: Compression,
    ) -> Entry {
        let flags = Flags::FILE | content_bits(content.algorithm, compression);
        Entry { size, content: Some(content), ..Entry::new(FileType::Regular, name, meta, flags) }
    }

    /// A regular file kept in chunks, which stand in a table of their own.
    pub fn chunked(
        name: impl Into<Vec<u8>>,
        meta: Meta,
        size: u64,
        algorithm: Algorithm,
        compression: Compression,
    ) -> Entry {
        let flags = Flags::FILE | Flags::CHUNKED | content_bits(algorithm, compression);
        Entry { size, ..Entry::new(FileType::Regular, name, meta, flags) }
    }

    /// A symbolic link.
    pub fn symlink(name: impl Into<Vec<u8>>, meta: Meta, target: impl Into<Vec<u8>>) -> Entry {
        let symlink = target.into();
        let size = symlink.len() as u64;
        Entry { symlink, size, ..Entry::new(FileType::Symlink, name, meta, Flags::FILE | Flags::SYMLINK) }
    }

    /// A device (with its number as of `makedev`), pipe or socket (number 0).
    pub fn special(file_type: FileType, name: impl Into<Vec<u8>>, meta: Meta, device: u64) -> Entry {
        let size = if matches!(file_type, FileType::Char | FileType::Block) { device } else { 0 };
        Entry { size, ..Entry::new(file_type, name, meta, Flags::FILE | Flags::SPECIAL) }
    }

    /// Type of the entry. Unknown type bits were refused when the row was read.
    pub fn file_type(&self) -> FileType {
        FileType::from_mode(self.mode).unwrap_or(FileType::Regular)
    }

    /// Whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & mode::TYPE == mode::DIRECTORY
    }

    /// Hash algorithm of the content or of its chunks.
    pub fn algorithm(&self) -> Algorithm {
        self.flags.algorithm().unwrap_or_default()
    }

    /// Compression of the content.
    pub fn compression(&self) -> Compression {
        self.flags.compression().unwrap_or_default()
    }

    /// Extended attributes by name.
    pub fn xattrs(&self) -> Xattrs {
        self.xattrs.as_deref().map(xattr::unpack).unwrap_or_default()
    }

    /// Permission bits, owner and time.
    pub fn meta(&self) -> Meta {
        Meta {
            permissions: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            mtime_ns: self.mtime_ns,
        }
    }

    /// The `hardlinks` column: group in the upper half, link count in the lower.
    pub fn hardlinks_column(&self) -> i64 {
        ((u64::from(self.link_group) << 32) | u64::from(self.links)) as i64
    }
}

fn content_bits(algorithm: Algorithm, compression: Compression) -> u32 {
    algorithm.flag_bits() << HASH_SHIFT | compression.flag_bits() << COMPRESSION_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_flag_values() {
        let meta = Meta::default();
        let hash = |a| ContentHash::null(a);
        for (entry, flags) in [
            (Entry::directory("d", meta), 1),
            (Entry::file("f", meta, 0, hash(Algorithm::Sha1), Compression::Zlib), 4),
            (Entry::file("f", meta, 0, hash(Algorithm::Sha1), Compression::None), 2052),
            (Entry::file("f", meta, 0, hash(Algorithm::Shake128), Compression::Zlib), 516),
            (Entry::symlink("l", meta, "t"), 12),
            (Entry::special(FileType::Fifo, "p", meta, 0), 20),
            (Entry::chunked("c", meta, 9, Algorithm::Sha1, Compression::Zlib), 68),
            (Entry::chunked("c", meta, 9, Algorithm::Shake128, Compression::Zlib), 580),
            (Entry::chunked("c", meta, 9, Algorithm::Rmd160, Compression::Zlib), 324),
            (Entry::chunked("c", meta, 9, Algorithm::Sha1, Compression::None), 2116),
        ] {
            assert_eq!(entry.flags.0, flags, "{entry:?}");
        }
    }

    #[test]
    fn hardlink_column_holds_group_and_count() {
        let mut entry = Entry::symlink("l", Meta::default(), "t");
        (entry.link_group, entry.links) = (3, 2);
        assert_eq!(entry.hardlinks_column(), 12884901890);
    }
}
