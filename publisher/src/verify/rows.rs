//! The rows of a published tree in tree order, whatever the order of its catalogs' rows: directory by directory, by name.
//!
//! [`LayerRows`](crate::layer_rows::LayerRows) is the faster reader of what a conversion has written; this one reads what
//! anybody has changed since. Memory: one page of names for each directory on the way.

use std::collections::VecDeque;
use std::rc::Rc;

use cvmfs::catalog::{NestedRef, Row};
use cvmfs::path::{PathKey, RepoPath};
use cvmfs::traversal::{Loaded, Loader};
use image::tree::{Node, TreePath};

use crate::failure::Failure;
use crate::layer_rows::node_of;
use crate::rows::{FileContent, is_marker};

/// Names of a directory taken at a time.
const PAGE: usize = 16_384;

/// Iterates over a directory of a subtree, the directory itself first.
#[derive(Debug)]
pub struct TreeRows<'a> {
    loader: Loader<'a>,
    top: RepoPath,
    first: Option<(Rc<Loaded>, Row)>,
    open: Vec<Level>,
    path: Vec<u8>,
    failed: bool,
}

#[derive(Debug)]
struct Level {
    catalog: Rc<Loaded>,
    key: PathKey,
    path_len: usize,
    rows: VecDeque<Row>,
    after: Vec<u8>,
    is_last: bool,
}

impl<'a> TreeRows<'a> {
    /// The directory `inside` (nothing for the whole) of the subtree whose catalog this is; nothing if it is not there.
    pub fn open(loader: Loader<'a>, subtree: &NestedRef, inside: &[u8]) -> Result<Option<TreeRows<'a>>, Failure> {
        let catalog = Rc::new(loader.load(subtree)?);
        let top = subtree.path.join_path(inside).map_err(|e| Failure::Content(e.to_string()))?;
        let Some(row) = catalog.lookup_path(&top)? else { return Ok(None) };
        let first = Some((catalog, row));
        Ok(Some(TreeRows { loader, top, first, open: Vec::new(), path: Vec::new(), failed: false }))
    }

    /// Gives the row out, and goes on below it.
    fn take(&mut self, catalog: Rc<Loaded>, row: Row) -> Result<(TreePath, Node<FileContent>), Failure> {
        let path = TreePath::new(self.path.as_slice()).map_err(|e| Failure::Content(e.to_string()))?;
        if row.entry.is_directory() {
            let at = self.top.join_path(&self.path).map_err(|e| Failure::Content(e.to_string()))?;
            let (inner, key) = match row.entry.flags.is_nested_mountpoint() {
                true => {
                    let reference = catalog.nested(&at)?;
                    let reference =
                        reference.ok_or_else(|| Failure::Content(format!("nested catalog {at} is not registered")))?;
                    let inner = Rc::new(self.loader.load(&reference)?);
                    let key = inner.inner_path(&at).key();
                    (inner, key)
                }
                false => (catalog.clone(), row.key),
            };
            let path_len = self.path.len();
            let (rows, after, is_last) = (VecDeque::new(), Vec::new(), false);
            self.open.push(Level { catalog: inner, key, path_len, rows, after, is_last });
        }
        let node = node_of(&catalog, row.key, row.entry)?;
        Ok((path, node))
    }

    fn advance(&mut self) -> Result<Option<(TreePath, Node<FileContent>)>, Failure> {
        if let Some((catalog, row)) = self.first.take() {
            return self.take(catalog, row).map(Some);
        }
        while let Some(level) = self.open.last_mut() {
            if level.rows.is_empty() && !level.is_last {
                level.rows = level.catalog.list_after(level.key, &level.after, PAGE)?.into();
                level.is_last = level.rows.len() < PAGE;
                level.after = level.rows.back().map(|r| r.entry.name.clone()).unwrap_or_default();
            }
            let Some(row) = level.rows.pop_front() else {
                self.open.pop();
                continue;
            };
            if is_marker(&row.entry) {
                continue;
            }
            self.path.truncate(level.path_len);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&row.entry.name);
            let catalog = level.catalog.clone();
            return self.take(catalog, row).map(Some);
        }
        Ok(None)
    }
}

impl Iterator for TreeRows<'_> {
    type Item = Result<(TreePath, Node<FileContent>), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance();
        self.failed = next.is_err();
        next.transpose()
    }
}
