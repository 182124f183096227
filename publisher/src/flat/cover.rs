//! What lies over a flat where a container has to see the image and nothing else.
//!
//! A flat has files for Apptainer beside those of the image, so by itself it is not the image. The cover is a layer that
//! takes them back: whiteouts where the image has nothing, and the link that stood where an empty file was put. Cover and
//! flat in one overlay are what all layers of the image are; two directories in place of any number.
//!
//! There is none where something else than a link was replaced.
//!
//! Beside that it has what carries extended attributes, if that is little: one file with capabilities would keep the whole
//! flat from being mounted where the kernel need not ask for attributes (`snapshotter`'s bare mounts). Who stands on both
//! never sees those rows of the flat.

use std::collections::BTreeMap;

use cvmfs::entry::{Chunk, Entry};
use cvmfs::subtree::CHUNK_BYTES;
use image::layer::StoreError;
use image::rootfs::TreeLookup;
use image::tree::{Node, NodeKind, TreePath};

use crate::rows::{FileContent, to_entry};

/// The rows of a cover, in tree order; the first is its root.
pub type CoverRows = BTreeMap<TreePath, (Entry, Vec<Chunk>)>;

/// Rows that are in a cover for the sake of attributes, and bytes of these and of lists of chunks. A cover is part of a catalog
/// that other images share, and who mounts it looks through 256 rows at most.
const MOST_ROWS: usize = 200;
const MOST_BYTES: usize = 64 << 10;

/// The rows of a cover for these additions to an image.
pub(super) fn cover<'a, C>(
    additions: impl Iterator<Item = &'a TreePath>,
    image: &dyn TreeLookup<C>,
) -> Result<Option<CoverRows>, StoreError> {
    let mut rows: BTreeMap<TreePath, Node<FileContent>> = BTreeMap::new();
    // A directory comes before what is in it.
    let mut paths: Vec<&TreePath> = additions.collect();
    paths.sort();
    for path in paths {
        let mut above = Vec::new();
        let mut parent = path.parent();
        while let Some(directory) = parent {
            parent = directory.parent();
            above.push(directory);
        }
        if above.iter().any(|directory| rows.get(directory).is_some_and(|node| node.kind == NodeKind::Whiteout)) {
            continue;
        }
        let node = match image.get(path)? {
            None => Node::new(NodeKind::Whiteout, 0),
            Some(node) if matches!(node.kind, NodeKind::Symlink { .. }) => without_content(node),
            Some(_) => return Ok(None),
        };
        for directory in above {
            let Some(found) = image.get(&directory)?.filter(Node::is_directory) else { return Ok(None) };
            let kind = NodeKind::Directory { opaque: false, implicit: false };
            rows.entry(directory).or_insert_with(|| Node { kind, ..without_content(found) });
        }
        rows.insert(path.clone(), node);
    }
    let row = |(path, node): (TreePath, Node<FileContent>)| {
        let row = to_entry(path.name(), node);
        (path, row)
    };
    Ok(Some(rows.into_iter().map(row).collect()))
}

/// What of a flat has attributes, found while its rows pass by in tree order.
#[derive(Debug, Default)]
pub(super) struct WithAttributes {
    /// the directories that are open, the root first
    above: Vec<(TreePath, Entry)>,
    rows: CoverRows,
    bytes: usize,
    /// rows that can't be taken, or too much
    gave_up: bool,
}

impl WithAttributes {
    /// Takes note of a row. `group` is that of a file with several names, else 0.
    pub(super) fn see(&mut self, path: &TreePath, entry: &Entry, group: u64, chunks: &[Chunk]) {
        if self.gave_up {
            return;
        }
        let parent = path.parent();
        while self.above.last().is_some_and(|(directory, _)| parent.as_ref() != Some(directory)) {
            self.above.pop();
        }
        if let Some(packed) = &entry.xattrs {
            for (directory, entry) in &self.above {
                self.rows.entry(directory.clone()).or_insert_with(|| (entry.clone(), Vec::new()));
            }
            self.rows.insert(path.clone(), (entry.clone(), chunks.to_vec()));
            self.bytes += packed.len() + chunks.len() * CHUNK_BYTES;
            // Names of one file would have to stay together.
            self.gave_up = group != 0 || self.rows.len() > MOST_ROWS || self.bytes > MOST_BYTES;
        }
        if entry.is_directory() {
            self.above.push((path.clone(), entry.clone()));
        }
    }

    /// Adds them to a cover: all or none.
    pub(super) fn complete(self, cover: &mut CoverRows) {
        if !self.gave_up {
            for (path, row) in self.rows {
                cover.entry(path).or_insert(row);
            }
        }
    }
}

fn without_content<C>(node: Node<C>) -> Node<FileContent> {
    node.map_content(|_| unreachable!("links and directories have none"))
}
