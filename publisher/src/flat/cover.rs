//! What lies over a flat where a container has to see the image and nothing else.
//!
//! A flat has files for Apptainer beside those of the image, so by itself it is not the image. The cover is a layer that
//! takes them back: whiteouts where the image has nothing, and the link that stood where an empty file was put. Cover and
//! flat in one overlay are what all layers of the image are; two directories in place of any number.
//!
//! There is none where something else than a link was replaced.

use std::collections::BTreeMap;

use cvmfs::entry::Entry;
use image::layer::StoreError;
use image::rootfs::TreeLookup;
use image::tree::{Node, NodeKind, TreePath};

use crate::rows::{FileContent, to_entry};

/// The rows of a cover, in tree order; the first is its root.
pub type CoverRows = Vec<(TreePath, Entry)>;

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
    Ok(Some(rows.into_iter().map(|(path, node)| (path.clone(), to_entry(path.name(), node).0)).collect()))
}

fn without_content<C>(node: Node<C>) -> Node<FileContent> {
    node.map_content(|_| unreachable!("links and directories have none"))
}
