//! Single rows of a merged tree.

use std::collections::BTreeMap;

use super::merged_group;
use crate::layer::{MemoryStaging, Staging, StoreError};
use crate::resolve::{ResolveError, resolve};
use crate::tree::{Node, NodeKind, TreePath};

/// A tree that can be asked for single rows. Paths are taken literally: links are not followed, so nothing is found
/// behind one.
pub trait TreeLookup<C> {
    /// The row at a path.
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError>;
}

impl<C, T: TreeLookup<C> + ?Sized> TreeLookup<C> for &T {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        (**self).get(path)
    }
}

impl<C, T: TreeLookup<C> + ?Sized> TreeLookup<C> for Box<T> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        (**self).get(path)
    }
}

impl<C: Clone> TreeLookup<C> for BTreeMap<TreePath, Node<C>> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        Ok(Self::get(self, path).cloned())
    }
}

impl<C: Clone> TreeLookup<C> for MemoryStaging<C> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        Staging::get(self, path)
    }
}

/// A staging store as a tree to look up.
#[derive(Debug)]
pub struct RowsLookup<'a, S>(pub &'a S);

impl<C, S: Staging<C>> TreeLookup<C> for RowsLookup<'_, S> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        self.0.get(path)
    }
}

/// Layers on top of each other as one tree; what [`super::Merge`] gives, row by row.
pub struct MergedLookup<'a, C> {
    /// bottom first
    layers: Vec<Box<dyn TreeLookup<C> + 'a>>,
}

impl<C> std::fmt::Debug for MergedLookup<'_, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MergedLookup({} layers)", self.layers.len())
    }
}

impl<'a, C> MergedLookup<'a, C> {
    /// Merges these layers, bottom first; none is fine.
    pub fn new(layers: Vec<Box<dyn TreeLookup<C> + 'a>>) -> Self {
        Self { layers }
    }

    /// Where a path leads inside the root, links in its parents followed, and the last component as well if asked for.
    pub fn resolve<E>(&self, path: &TreePath, follow_last: bool) -> Result<TreePath, E>
    where
        E: From<ResolveError> + From<StoreError>,
    {
        resolve(path, follow_last, |path| {
            Ok(match self.get(path)?.map(|node| node.kind) {
                Some(NodeKind::Symlink { target }) => Some(target),
                _ => None,
            })
        })
    }
}

impl<C> TreeLookup<C> for MergedLookup<'_, C> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        // an implicit directory that waits for the metadata of a lower one
        let mut open: Option<Node<C>> = None;
        'layers: for (index, layer) in self.layers.iter().enumerate().rev() {
            // the way down: nothing at one level means nothing below it
            let mut hides = false;
            let mut way = TreePath::root();
            for name in std::iter::once(None).chain(path.components().map(Some)) {
                if let Some(name) = name {
                    way = way.join(name)?;
                }
                let is_last = way.as_bytes().len() == path.as_bytes().len();
                let Some(mut node) = layer.get(&way)? else {
                    // a layer that doesn't list its root can still list what is below
                    if way.is_root() && !is_last {
                        continue;
                    }
                    break;
                };
                hides |= !node.is_directory() || node.is_opaque();
                if !is_last {
                    if !node.is_directory() {
                        break;
                    }
                    continue;
                }
                if node.is_whiteout() || !node.is_directory() && open.is_some() {
                    break;
                }
                node.link_group = merged_group(index, node.link_group);
                let is_settled = !node.is_implicit();
                if let Some(upper) = open.take() {
                    node = Node { kind: upper.kind, ..node };
                }
                if let NodeKind::Directory { opaque, implicit } = &mut node.kind {
                    (*opaque, *implicit) = (false, false);
                }
                if is_settled {
                    return Ok(Some(node));
                }
                open = Some(node);
            }
            if hides {
                break 'layers;
            }
        }
        if open.is_none() && path.is_root() {
            let kind = NodeKind::Directory { opaque: false, implicit: false };
            return Ok(Some(Node::new(kind, 0o755)));
        }
        Ok(open)
    }
}
