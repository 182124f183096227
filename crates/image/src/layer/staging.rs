//! Where a layer under construction is kept: an ordered map from paths to nodes.
//!
//! Entries of an archive come in any order and change what was there, while everything after wants rows in tree
//! order. For a layer of millions of rows the map belongs on disk; the one in memory serves tests and small trees.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::tree::{Node, TreePath};

/// What a store says when it fails.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// An ordered map from paths to nodes, in tree order ([`TreePath::to_key`] gives keys that `memcmp` sorts so).
pub trait Staging<C> {
    /// The node at a path.
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError>;
    /// Sets the node at a path.
    fn put(&mut self, path: &TreePath, node: &Node<C>) -> Result<(), StoreError>;
    /// Removes everything below a path, but not the node itself.
    fn remove_children(&mut self, path: &TreePath) -> Result<(), StoreError>;
    /// Removes a path and everything below.
    fn remove_subtree(&mut self, path: &TreePath) -> Result<(), StoreError>;
    /// The first row behind a path in tree order; for `None` the first of all.
    fn after(&self, path: Option<&TreePath>) -> Result<Option<(TreePath, Node<C>)>, StoreError>;
}

/// Rows in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryStaging<C>(BTreeMap<TreePath, Node<C>>);

impl<C> Default for MemoryStaging<C> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<C> MemoryStaging<C> {
    /// The rows in tree order.
    pub fn iter(&self) -> impl Iterator<Item = (&TreePath, &Node<C>)> {
        self.0.iter()
    }

    /// The rows in tree order, as the map that they are.
    pub fn into_rows(self) -> BTreeMap<TreePath, Node<C>> {
        self.0
    }
}

impl<C: Clone> Staging<C> for MemoryStaging<C> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<C>>, StoreError> {
        Ok(self.0.get(path).cloned())
    }

    fn put(&mut self, path: &TreePath, node: &Node<C>) -> Result<(), StoreError> {
        self.0.insert(path.clone(), node.clone());
        Ok(())
    }

    fn remove_children(&mut self, path: &TreePath) -> Result<(), StoreError> {
        let below = (Bound::Excluded(path), Bound::Unbounded);
        let gone: Vec<TreePath> =
            self.0.range(below).take_while(|(row, _)| row.is_below(path)).map(|(row, _)| row.clone()).collect();
        gone.iter().for_each(|row| drop(self.0.remove(row)));
        Ok(())
    }

    fn remove_subtree(&mut self, path: &TreePath) -> Result<(), StoreError> {
        self.remove_children(path)?;
        self.0.remove(path);
        Ok(())
    }

    fn after(&self, path: Option<&TreePath>) -> Result<Option<(TreePath, Node<C>)>, StoreError> {
        let start = path.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(self.0.range((start, Bound::Unbounded)).next().map(|(path, node)| (path.clone(), node.clone())))
    }
}
