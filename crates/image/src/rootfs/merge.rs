//! All rows of a merged tree in one pass.
//!
//! A k-way merge in tree order. Memory: one row a layer, and one entry for each directory on the way to the current
//! path below which lower layers are hidden. A layer that has a run of rows for itself costs one comparison a row,
//! however many layers there are: the second best layer is known and doesn't change meanwhile.

use std::cmp::Ordering;
use std::fmt;

use super::merged_group;
use crate::tree::{Node, NodeKind, TreePath, is_below, tree_order};

/// Why a merge stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError<E> {
    /// The rows of a layer can't be read.
    #[error("layer {} can't be read: {source}", layer + 1)]
    Source {
        /// index of the layer, bottom first
        layer: usize,
        /// what its reader said
        source: E,
    },
    /// The rows of a layer are not in tree order; the result would be wrong.
    #[error("rows of layer {} are out of order: \"{path}\" follows a later path", layer + 1)]
    Order {
        /// index of the layer, bottom first
        layer: usize,
        /// the row that comes too late
        path: TreePath,
    },
}

/// Lower layers are hidden below this path.
#[derive(Debug)]
struct Hidden {
    below: TreePath,
    /// the lowest visible layer
    floor: usize,
}

/// The rows of a merged tree, in tree order.
pub struct Merge<C, I> {
    layers: Vec<I>,
    /// the next row of each layer
    heads: Vec<Option<(TreePath, Node<C>)>>,
    /// layers with a next row, as a binary heap: the smallest path first, of equal paths the topmost layer
    heap: Vec<usize>,
    /// the layer that is next after `heap[0]`, while the heap stays as it is
    second: Option<usize>,
    hidden: Vec<Hidden>,
    started: bool,
    failed: bool,
}

impl<C, I> fmt::Debug for Merge<C, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge")
            .field("layers", &self.layers.len())
            .field("hidden", &self.hidden)
            .finish_non_exhaustive()
    }
}

type Row<C, E> = Result<(TreePath, Node<C>), E>;
/// A row and the layer that it comes from.
type Taken<C> = (usize, TreePath, Node<C>);

impl<C, E, I: Iterator<Item = Row<C, E>>> Merge<C, I> {
    /// Merges these layers, bottom first; each gives its rows in tree order.
    pub fn new(layers: Vec<I>) -> Self {
        let heads = layers.iter().map(|_| None).collect();
        Self { layers, heads, heap: Vec::new(), second: None, hidden: Vec::new(), started: false, failed: false }
    }

    fn start(&mut self) -> Result<(), MergeError<E>> {
        self.started = true;
        for layer in 0..self.layers.len() {
            self.heads[layer] = self.read(layer)?;
            if self.heads[layer].is_some() {
                self.heap.push(layer);
            }
        }
        (0..self.heap.len() / 2).rev().for_each(|at| self.sift(at));
        self.find_second();
        Ok(())
    }

    fn read(&mut self, layer: usize) -> Result<Option<(TreePath, Node<C>)>, MergeError<E>> {
        self.layers[layer].next().transpose().map_err(|source| MergeError::Source { layer, source })
    }

    /// Which of two layers is next?
    fn order(&self, a: usize, b: usize) -> Ordering {
        let path = |layer: usize| self.heads[layer].as_ref().map_or(&[][..], |(path, _)| path.as_bytes());
        tree_order(path(a), path(b)).then(b.cmp(&a))
    }

    fn sift(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= self.heap.len() {
                return;
            }
            let is_right = right < self.heap.len() && self.order(self.heap[right], self.heap[left]).is_lt();
            let child = if is_right { right } else { left };
            if self.order(self.heap[at], self.heap[child]).is_lt() {
                return;
            }
            self.heap.swap(at, child);
            at = child;
        }
    }

    fn find_second(&mut self) {
        self.second = match self.heap[..] {
            [] | [_] => None,
            [_, only] => Some(only),
            [_, left, right, ..] => Some(if self.order(left, right).is_lt() { left } else { right }),
        };
    }

    /// Takes the next row of all, with its layer.
    fn take(&mut self) -> Result<Option<Taken<C>>, MergeError<E>> {
        let Some(&layer) = self.heap.first() else { return Ok(None) };
        let next = self.read(layer)?;
        let (path, node) = self.heads[layer].take().expect("layers in the heap have a next row");
        match next {
            Some((next, _)) if tree_order(path.as_bytes(), next.as_bytes()).is_ge() => {
                return Err(MergeError::Order { layer, path: next });
            }
            Some(next) => {
                self.heads[layer] = Some(next);
                if self.second.is_some_and(|second| self.order(second, layer).is_lt()) {
                    self.sift(0);
                    self.find_second();
                }
            }
            None => {
                self.heap.swap_remove(0);
                self.sift(0);
                self.find_second();
            }
        }
        Ok(Some((layer, path, node)))
    }

    /// Is the next row of all at this path as well?
    fn also_at(&self, path: &TreePath) -> bool {
        self.heap.first().is_some_and(|&layer| self.heads[layer].as_ref().is_some_and(|(next, _)| next == path))
    }

    fn advance(&mut self) -> Result<Option<(TreePath, Node<C>)>, MergeError<E>> {
        if !self.started {
            self.start()?;
            if !self.also_at(&TreePath::root()) {
                let kind = NodeKind::Directory { opaque: false, implicit: false };
                return Ok(Some((TreePath::root(), Node::new(kind, 0o755))));
            }
        }
        while let Some((layer, path, node)) = self.take()? {
            while self.hidden.last().is_some_and(|hidden| !is_below(path.as_bytes(), hidden.below.as_bytes())) {
                self.hidden.pop();
            }
            let floor = self.hidden.last().map_or(0, |hidden| hidden.floor);
            let mut group = Group { floor, hides_directory: false, result: None, is_open: true };
            group.add(layer, node);
            while self.also_at(&path) {
                if let Some((layer, _, node)) = self.take()? {
                    group.add(layer, node);
                }
            }
            if group.hides_directory {
                self.hidden.push(Hidden { below: path.clone(), floor: group.floor });
            }
            if let Some(node) = group.result {
                return Ok(Some((path, node)));
            }
        }
        Ok(None)
    }
}

/// The rows of all layers at one path, topmost first.
struct Group<C> {
    /// lowest visible layer, here and below
    floor: usize,
    /// has a layer that is hidden from here on a directory here, hence perhaps rows below?
    hides_directory: bool,
    result: Option<Node<C>>,
    /// can a lower row still say something?
    is_open: bool,
}

impl<C> Group<C> {
    fn add(&mut self, layer: usize, mut node: Node<C>) {
        if layer < self.floor {
            // hidden by something further up the path: `hides_directory` would only repeat that
            self.hides_directory |= node.is_directory() && !self.is_open;
            return;
        }
        let NodeKind::Directory { opaque, implicit } = node.kind else {
            // whatever it is, it ends the directories of the layers below it
            self.floor = layer;
            if self.is_open && self.result.is_none() && !node.is_whiteout() {
                node.link_group = merged_group(layer, node.link_group);
                self.result = Some(node);
            }
            self.is_open = false;
            return;
        };
        if opaque {
            self.floor = layer;
        }
        if self.is_open {
            node.kind = NodeKind::Directory { opaque: false, implicit: false };
            node.link_group = merged_group(layer, node.link_group);
            // over an implicit directory of an upper layer only the metadata counts, which is all a directory has
            self.result = Some(node);
            self.is_open = implicit && !opaque;
        }
    }
}

impl<C, E, I: Iterator<Item = Row<C, E>>> Iterator for Merge<C, I> {
    type Item = Result<(TreePath, Node<C>), MergeError<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.advance();
        self.failed = row.is_err();
        row.transpose()
    }
}
