//! Between rows of a tree (crate `image`) and rows of a catalog (crate `cvmfs`), which don't know each other.
//!
//! In a layer, a whiteout is a 0:0 character device and an opaque directory carries the overlayfs attribute in both of
//! its families; a flat has neither.

use cvmfs::entry::{Chunk, Entry, FileType, Meta};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::object::Compression;
use cvmfs::xattr::{self, Xattrs};
use image::tree::{Node, NodeKind};

/// Attributes that make a directory opaque for overlayfs, mounted by root and by others.
const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
const YES: &[u8] = b"y";

/// Where the content of a regular file is, as a catalog says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// One object.
    Whole(ContentHash, Compression),
    /// Several.
    Chunks(Vec<Chunk>, Algorithm, Compression),
}

/// The catalog row of a node named `name`; its chunks apart.
pub fn to_entry(name: &[u8], node: Node<FileContent>) -> (Entry, Vec<Chunk>) {
    let meta = Meta {
        permissions: node.mode,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        mtime_ns: (node.mtime_ns != 0).then_some(node.mtime_ns),
    };
    let mut chunks = Vec::new();
    let mut xattrs = node.xattrs;
    let mut entry = match node.kind {
        NodeKind::Directory { opaque, .. } => {
            if opaque {
                xattrs.extend(OPAQUE.map(|name| (name.to_vec(), YES.to_vec())));
            }
            Entry::directory(name, meta)
        }
        NodeKind::Regular { content: FileContent::Whole(hash, compression), size } => {
            Entry::file(name, meta, size, hash, compression)
        }
        NodeKind::Regular { content: FileContent::Chunks(list, algorithm, compression), size } => {
            chunks = list;
            Entry::chunked(name, meta, size, algorithm, compression)
        }
        NodeKind::Symlink { target } => Entry::symlink(name, Meta { permissions: 0o777, ..meta }, target),
        NodeKind::CharDevice { rdev } => Entry::special(FileType::Char, name, meta, rdev),
        NodeKind::BlockDevice { rdev } => Entry::special(FileType::Block, name, meta, rdev),
        NodeKind::Fifo => Entry::special(FileType::Fifo, name, meta, 0),
        NodeKind::Socket => Entry::special(FileType::Socket, name, meta, 0),
        NodeKind::Whiteout => Entry::special(FileType::Char, name, meta, 0),
    };
    if !xattrs.is_empty() {
        // The layer builder has dropped what a catalog cannot hold.
        let packed = xattr::pack(&xattrs.into_iter().collect::<Xattrs>()).ok().flatten();
        entry.xattrs = packed.map(Vec::into_boxed_slice);
    }
    (entry, chunks)
}

/// The node of a catalog row. `chunks` are those of a chunked file.
pub fn to_node(entry: Entry, chunks: Vec<Chunk>) -> Node<FileContent> {
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = match &entry.xattrs {
        Some(packed) => xattr::unpack(packed).into_iter().collect(),
        None => Vec::new(),
    };
    let kind = match entry.file_type() {
        FileType::Directory => {
            let before = xattrs.len();
            xattrs.retain(|(name, value)| !(OPAQUE.contains(&name.as_slice()) && value == YES));
            NodeKind::Directory { opaque: xattrs.len() < before, implicit: false }
        }
        FileType::Regular => {
            let (algorithm, compression) = (entry.algorithm(), entry.compression());
            let content = match entry.content {
                Some(hash) if !entry.flags.is_chunked() => FileContent::Whole(hash, compression),
                _ => FileContent::Chunks(chunks, algorithm, compression),
            };
            NodeKind::Regular { content, size: entry.size }
        }
        FileType::Symlink => NodeKind::Symlink { target: entry.symlink },
        FileType::Char if entry.size == 0 => NodeKind::Whiteout,
        FileType::Char => NodeKind::CharDevice { rdev: entry.size },
        FileType::Block => NodeKind::BlockDevice { rdev: entry.size },
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
    };
    Node {
        kind,
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        mtime_ns: entry.mtime_ns.unwrap_or(0),
        xattrs,
        link_group: entry.link_group.into(),
    }
}

/// Whether this is the marker that begins a nested catalog, or a file bundle that we put beside a file of an image: neither
/// is part of a tree.
pub fn is_marker(entry: &Entry) -> bool {
    entry.name == cvmfs::subtree::MARKER && entry.flags.is_hidden() || cvmfs::bundle::is_hidden_bundle(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_survive_the_catalog() {
        let hash = ContentHash::of(Algorithm::Sha1, b"x");
        let chunk = Chunk { offset: 0, size: 9, hash };
        let kinds = [
            NodeKind::Directory { opaque: false, implicit: false },
            NodeKind::Directory { opaque: true, implicit: false },
            NodeKind::Regular { content: FileContent::Whole(hash, Compression::Zlib), size: 9 },
            NodeKind::Regular {
                content: FileContent::Chunks(vec![chunk], Algorithm::Sha1, Compression::None),
                size: 9,
            },
            NodeKind::CharDevice { rdev: 2049 },
            NodeKind::BlockDevice { rdev: 2049 },
            NodeKind::Fifo,
            NodeKind::Socket,
            NodeKind::Whiteout,
        ];
        for kind in kinds {
            let xattrs = vec![(b"security.capability".to_vec(), vec![1, 0, 10])];
            let node = Node { mtime: -5, mtime_ns: 7, uid: 1, gid: 2, xattrs, ..Node::new(kind, 0o4755) };
            let (entry, chunks) = to_entry(b"n", node.clone());
            assert_eq!(to_node(entry, chunks), node);
        }
    }

    #[test]
    fn an_opaque_directory_carries_both_attributes() {
        let node = Node::new(NodeKind::Directory { opaque: true, implicit: false }, 0o755);
        let (entry, _) = to_entry(b"d", node);
        let names: Vec<Vec<u8>> = entry.xattrs().into_keys().collect();
        assert_eq!(names, [b"trusted.overlay.opaque".to_vec(), b"user.overlay.opaque".to_vec()]);
    }
}
