//! Layers on top of each other: the tree that a container sees.
//!
//! Rules: the topmost layer that has a path decides. A whiteout, a node that is no directory, and an opaque directory
//! hide everything that lower layers have there and below. An implicit directory takes the metadata of the next
//! directory below that is listed. The result has no whiteouts and no marks, and always a root.
//!
//! [`Merge`] gives all rows in one pass over the rows of the layers, [`MergedLookup`] one row at a time; both by the
//! same rules. File content is never looked at.
//!
//! Sources: OCI image-spec "Image Layer Filesystem Changeset"; overlayfs documentation of Linux, "whiteouts and opaque
//! directories".

mod lookup;
mod merge;

pub use lookup::{MergedLookup, RowsLookup, TreeLookup};
pub use merge::{Merge, MergeError};

use std::collections::BTreeMap;

use crate::tree::{Node, TreePath};

/// Makes a layer of single nodes that are to be put on top of a flat tree: sorted, parents added as implicit
/// directories, the last of equal paths kept. Give it to [`Merge`] as the topmost layer.
pub fn as_layer<C>(additions: impl IntoIterator<Item = (TreePath, Node<C>)>) -> BTreeMap<TreePath, Node<C>> {
    let mut rows = BTreeMap::new();
    for (path, node) in additions {
        let mut parent = path.parent();
        while let Some(directory) = parent {
            parent = directory.parent();
            rows.entry(directory).or_insert_with(Node::implicit_directory);
        }
        rows.insert(path, node);
    }
    rows
}

/// The number of a hard link group in a merged tree: groups of different layers never meet.
fn merged_group(layer: usize, group: u64) -> u64 {
    if group == 0 { 0 } else { (layer as u64 + 1) << 48 | group & ((1 << 48) - 1) }
}

#[cfg(test)]
mod tests;
