//! File trees as sequences of (path, node) rows: the form in which layers and flat images are built and merged.
//!
//! Rows come in *tree order*: paths compare bytewise with `/` lowest, so a directory is followed at once by its whole
//! subtree, and siblings stand by name. That makes merging a single pass, and "everything below" a contiguous range.
//!
//! Invariants
//! - A [`TreePath`] is relative and normalised: no leading slash, no `.` or `..`, no empty component, no NUL, no
//!   component above 255 bytes, at most [`PATH_MAX`] bytes in all. The empty path is the root. Bytes, not text.
//! - No path is ever looked up on a host; trees know nothing of file systems.

use std::cmp::Ordering;
use std::fmt;

/// Longest file name in bytes; what Linux and the catalog hold.
pub const NAME_MAX: usize = 255;
/// Longest path in bytes, as container engines can create it.
pub const PATH_MAX: usize = 4095;

/// Why bytes are no path in a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// A `..` component: it could lead out of the root, so it is refused, not resolved.
    #[error("path \"{0}\" contains \"..\"; refused")]
    DotDot(String),
    /// A NUL byte.
    #[error("path \"{0}\" contains a NUL byte; refused")]
    Nul(String),
    /// A component or the whole is too long for a file system.
    #[error("path \"{0}…\" is too long: at most {NAME_MAX} bytes a component and {PATH_MAX} in all")]
    TooLong(String),
    /// Not in the normal form.
    #[error("path \"{0}\" is not normalised: it begins or ends with a slash, or has an empty component or a \".\"")]
    NotNormal(String),
}

/// Bytes of a path for a message: printable, at most 200 characters.
pub(crate) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string().chars().take(200).collect()
}

/// A normalised path relative to the root of a tree; empty for the root itself. Ordered in tree order.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// The root of the tree.
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Takes a path that is already in the normal form.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let path = path.into();
        let normal = Self::normalise(&path)?;
        if normal.0 == path { Ok(normal) } else { Err(PathError::NotNormal(shown(&path))) }
    }

    /// Brings a path as archives have it (`./a//b/`, `/a/b`) to the normal form; `..` is refused.
    pub fn normalise(path: &[u8]) -> Result<Self, PathError> {
        let mut normal = Vec::with_capacity(path.len());
        for component in path.split(|&b| b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(PathError::DotDot(shown(path))),
                _ if component.contains(&0) => return Err(PathError::Nul(shown(path))),
                _ if component.len() > NAME_MAX => return Err(PathError::TooLong(shown(path))),
                _ => {}
            }
            if !normal.is_empty() {
                normal.push(b'/');
            }
            normal.extend_from_slice(component);
        }
        if normal.len() > PATH_MAX {
            return Err(PathError::TooLong(shown(path)));
        }
        Ok(Self(normal))
    }

    /// The bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes of the path.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Is this the root?
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that holds it; nothing for the root.
    pub fn parent(&self) -> Option<Self> {
        Some(Self(self.parent_bytes()?.to_vec()))
    }

    /// The bytes of the directory that holds it; nothing for the root.
    pub fn parent_bytes(&self) -> Option<&[u8]> {
        if self.is_root() {
            return None;
        }
        Some(self.0.iter().rposition(|&b| b == b'/').map_or(&[][..], |slash| &self.0[..slash]))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        self.0.iter().rposition(|&b| b == b'/').map_or(&self.0[..], |slash| &self.0[slash + 1..])
    }

    /// The path of an entry of this directory.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/');
        if !plain {
            return Err(PathError::NotNormal(shown(name)));
        }
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self::normalise(&path)
    }

    /// The names on the way from the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|component| !component.is_empty())
    }

    /// How many components it has; 0 for the root.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { 1 + self.0.iter().filter(|&&b| b == b'/').count() }
    }

    /// Is it this path or anything below it?
    pub fn is_within(&self, top: &Self) -> bool {
        self.0 == top.0 || self.is_below(top)
    }

    /// Is it below this path?
    pub fn is_below(&self, top: &Self) -> bool {
        is_below(&self.0, &top.0)
    }

    /// The same place below another directory: `a/b/c` moved from `a` to `x/y` is `x/y/b/c`. Nothing if the path is not
    /// within `from`.
    pub fn moved(&self, from: &Self, to: &Self) -> Option<Result<Self, PathError>> {
        let rest = if from.is_root() {
            &self.0[..]
        } else if self.0 == from.0 {
            &[]
        } else if self.is_below(from) {
            &self.0[from.0.len() + 1..]
        } else {
            return None;
        };
        let mut path = to.0.clone();
        if !path.is_empty() && !rest.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(rest);
        Some(if path.len() > PATH_MAX { Err(PathError::TooLong(shown(&path))) } else { Ok(Self(path)) })
    }

    /// Bytes that sort by `memcmp` as paths do in tree order: the key for ordered stores.
    pub fn to_key(&self) -> Vec<u8> {
        self.0.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
    }

    /// The path of such a key.
    pub fn from_key(key: &[u8]) -> Result<Self, PathError> {
        Self::new(key.iter().map(|&b| if b == 0 { b'/' } else { b }).collect::<Vec<u8>>())
    }
}

/// Is `path` below `top`? Both normalised.
#[inline]
pub(crate) fn is_below(path: &[u8], top: &[u8]) -> bool {
    if top.is_empty() {
        return !path.is_empty();
    }
    path.len() > top.len() && path[top.len()] == b'/' && path.starts_with(top)
}

/// Compares two normalised paths in tree order.
#[inline]
pub fn tree_order(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.len().min(b.len());
    let mut at = 0;
    // eight bytes at a time as long as they are equal: paths share long beginnings
    while at + 8 <= common && a[at..at + 8] == b[at..at + 8] {
        at += 8;
    }
    while at < common && a[at] == b[at] {
        at += 1;
    }
    let rank = |path: &[u8]| match path.get(at) {
        None => 0u16,
        Some(b'/') => 1,
        Some(&byte) => u16::from(byte) + 1,
    };
    rank(a).cmp(&rank(b))
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        tree_order(&self.0, &other.0)
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str("/") } else { write!(f, "{}", self.0.escape_ascii()) }
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreePath({self})")
    }
}

impl AsRef<[u8]> for TreePath {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What stands at a path. `C` is what the caller knows of a file's content: a hash, a list of chunks, bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind<C> {
    /// A directory.
    Directory {
        /// In a layer: hides everything that lower layers have in it.
        opaque: bool,
        /// In a layer: not listed by the layer itself, so lower layers decide about its metadata.
        implicit: bool,
    },
    /// A regular file.
    Regular {
        /// its content
        content: C,
        /// its size in bytes
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// where it points to, bytes as they are
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// number of the device as [`makedev`] packs it
        rdev: u64,
    },
    /// A block device.
    BlockDevice {
        /// number of the device as [`makedev`] packs it
        rdev: u64,
    },
    /// A named pipe.
    Fifo,
    /// A socket. Archives have none; other trees may.
    Socket,
    /// In a layer: what lower layers have here is gone.
    Whiteout,
}

/// A row of a tree, without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<C> {
    /// what it is
    pub kind: NodeKind<C>,
    /// permissions, set-id bits and sticky bit: the lower twelve bits
    pub mode: u32,
    /// owner
    pub uid: u32,
    /// group
    pub gid: u32,
    /// seconds since 1970
    pub mtime: i64,
    /// nanoseconds on top, below 10^9
    pub mtime_ns: u32,
    /// extended attributes, sorted by name, each name once
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// rows of one directory with the same number are one file; 0: no others
    pub link_group: u64,
}

impl<C> Node<C> {
    /// A directory of root, 0755, time 0, as it is assumed where an archive names only what is below.
    pub const fn implicit_directory() -> Self {
        Self::new(NodeKind::Directory { opaque: false, implicit: true }, 0o755)
    }

    /// A node of root with this mode, time 0 and nothing else.
    pub const fn new(kind: NodeKind<C>, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime: 0, mtime_ns: 0, xattrs: Vec::new(), link_group: 0 }
    }

    /// A whiteout.
    pub const fn whiteout() -> Self {
        Self::new(NodeKind::Whiteout, 0)
    }

    /// Is it a directory?
    pub const fn is_directory(&self) -> bool {
        matches!(self.kind, NodeKind::Directory { .. })
    }

    /// Is it a directory that the layer did not list itself?
    pub const fn is_implicit(&self) -> bool {
        matches!(self.kind, NodeKind::Directory { implicit: true, .. })
    }

    /// Is it a directory that hides what lower layers have in it?
    pub const fn is_opaque(&self) -> bool {
        matches!(self.kind, NodeKind::Directory { opaque: true, .. })
    }

    /// Is it a whiteout?
    pub const fn is_whiteout(&self) -> bool {
        matches!(self.kind, NodeKind::Whiteout)
    }

    /// The same node with another notion of content.
    pub fn map_content<D>(self, change: impl FnOnce(C) -> D) -> Node<D> {
        let kind = match self.kind {
            NodeKind::Directory { opaque, implicit } => NodeKind::Directory { opaque, implicit },
            NodeKind::Regular { content, size } => NodeKind::Regular { content: change(content), size },
            NodeKind::Symlink { target } => NodeKind::Symlink { target },
            NodeKind::CharDevice { rdev } => NodeKind::CharDevice { rdev },
            NodeKind::BlockDevice { rdev } => NodeKind::BlockDevice { rdev },
            NodeKind::Fifo => NodeKind::Fifo,
            NodeKind::Socket => NodeKind::Socket,
            NodeKind::Whiteout => NodeKind::Whiteout,
        };
        let Self { mode, uid, gid, mtime, mtime_ns, xattrs, link_group, .. } = self;
        Node { kind, mode, uid, gid, mtime, mtime_ns, xattrs, link_group }
    }
}

/// Packs a device number as glibc does: all 32 bits of both parts.
pub const fn makedev(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (major & 0xffff_f000) << 32 | (major & 0xfff) << 8 | (minor & 0xffff_ff00) << 12 | minor & 0xff
}

/// The major part of a device number.
pub const fn major(rdev: u64) -> u32 {
    ((rdev >> 32) & 0xffff_f000 | (rdev >> 8) & 0xfff) as u32
}

/// The minor part of a device number.
pub const fn minor(rdev: u64) -> u32 {
    ((rdev >> 12) & 0xffff_ff00 | rdev & 0xff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text).unwrap()
    }

    #[test]
    fn normalises_what_archives_have() {
        for (given, expected) in [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("./", ""),
            ("./a", "a"),
            ("/a/b/", "a/b"),
            ("a//b/./c", "a/b/c"),
            ("..a/...", "..a/..."),
        ] {
            assert_eq!(TreePath::normalise(given.as_bytes()).unwrap(), path(expected), "{given}");
        }
        let (fits, long) = ("x".repeat(255), "x".repeat(256));
        assert!(TreePath::normalise(fits.as_bytes()).is_ok());
        assert!(matches!(TreePath::normalise(long.as_bytes()), Err(PathError::TooLong(_))));
        assert!(matches!(TreePath::normalise("a/".repeat(2049).as_bytes()), Err(PathError::TooLong(_))));
        for bad in ["..", "a/..", "../a", "a/../b", "/../a"] {
            assert!(matches!(TreePath::normalise(bad.as_bytes()), Err(PathError::DotDot(_))), "{bad}");
        }
        assert!(matches!(TreePath::normalise(b"a\0b"), Err(PathError::Nul(_))));
        assert!(TreePath::normalise(b"\xff\xfe").is_ok(), "names are bytes");
        for bad in ["/a", "a/", "a//b", "./a"] {
            assert!(matches!(TreePath::new(bad), Err(PathError::NotNormal(_))), "{bad}");
        }
    }

    #[test]
    fn orders_a_directory_before_its_subtree_before_its_siblings() {
        let sorted = ["", "a", "a/b", "a/b/c", "a/b!", "a!", "a-b", "a0", "aaaaaaaa", "aaaaaaaa/b", "aaaaaaaab"];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(path(a).cmp(&path(b)), i.cmp(&j), "{a} {b}");
                assert_eq!(path(a).to_key().cmp(&path(b).to_key()), i.cmp(&j), "{a} {b}");
            }
            assert_eq!(TreePath::from_key(&path(a).to_key()).unwrap(), path(a));
        }
    }

    #[test]
    fn takes_paths_apart() {
        let deep = path("a/b/c");
        assert_eq!((deep.parent(), deep.name(), deep.depth()), (Some(path("a/b")), &b"c"[..], 3));
        assert_eq!((path("a").parent(), TreePath::root().parent()), (Some(TreePath::root()), None));
        assert_eq!(deep.components().collect::<Vec<_>>(), [b"a", b"b", b"c"]);
        assert_eq!(TreePath::root().components().count(), 0);
        assert!(deep.is_below(&path("a")) && deep.is_within(&deep) && !deep.is_below(&deep));
        assert!(!path("ab").is_below(&path("a")) && path("a").is_below(&TreePath::root()));
        assert_eq!(path("a").join(b"b").unwrap(), path("a/b"));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert!(path("a").join(bad).is_err());
        }
        assert_eq!(deep.moved(&path("a"), &path("x/y")).unwrap().unwrap(), path("x/y/b/c"));
        assert_eq!(deep.moved(&path("a/b/c"), &TreePath::root()).unwrap().unwrap(), TreePath::root());
        assert_eq!(deep.moved(&TreePath::root(), &path("x")).unwrap().unwrap(), path("x/a/b/c"));
        assert!(deep.moved(&path("b"), &path("x")).is_none());
    }

    #[test]
    fn packs_device_numbers_as_glibc_does() {
        for (numbers, packed) in [((8, 1), 0x801), ((259, 300), 0x11032c), ((4095, 1_048_575), 0xffff_ffff)] {
            let rdev = makedev(numbers.0, numbers.1);
            assert_eq!(rdev, packed, "{numbers:?}");
            assert_eq!((major(rdev), minor(rdev)), numbers);
        }
        assert_eq!((major(makedev(u32::MAX, u32::MAX)), minor(makedev(u32::MAX, u32::MAX))), (u32::MAX, u32::MAX));
    }
}
