//! The rows of a layer directory, read back from its catalogs in tree order.
//!
//! Catalogs that this program writes have their rows in tree order, so reading is one scan; nested catalogs are entered
//! where their transition point stands. The order is checked, not assumed.

use std::collections::VecDeque;

use cvmfs::catalog::{NestedRef, Row};
use cvmfs::entry::Entry;
use cvmfs::path::{PathKey, RepoPath};
use cvmfs::traversal::{Loaded, Loader};
use image::tree::{Node, TreePath};

use crate::failure::Failure;
use crate::rows::{FileContent, is_marker, to_node};

/// Rows taken from a catalog at a time.
const BATCH: usize = 4096;
/// Directory of a layer that holds its content.
const CONTENT: &[u8] = b"layerfs";

/// Iterates over the content of one layer.
#[derive(Debug)]
pub struct LayerRows<'a> {
    loader: Loader<'a>,
    open: Vec<Level>,
    /// Directories on the way to the last row: their keys, and the length of their paths.
    directories: Vec<(PathKey, usize)>,
    path: Vec<u8>,
    failed: bool,
}

#[derive(Debug)]
struct Level {
    catalog: Loaded,
    after: i64,
    rows: VecDeque<Row>,
}

impl<'a> LayerRows<'a> {
    /// Reads the layer whose catalog this is.
    pub fn open(loader: Loader<'a>, layer: &NestedRef) -> Result<LayerRows<'a>, Failure> {
        let mut rows = LayerRows { loader, open: Vec::new(), directories: Vec::new(), path: Vec::new(), failed: false };
        rows.enter(layer)?;
        Ok(rows)
    }

    /// The layer's own catalog; open until the first row behind its last one was asked for.
    pub(crate) fn layer(&self) -> &Loaded {
        &self.open[0].catalog
    }

    fn enter(&mut self, reference: &NestedRef) -> Result<(), Failure> {
        let catalog = self.loader.load(reference)?;
        self.open.push(Level { catalog, after: 0, rows: VecDeque::new() });
        Ok(())
    }

    fn next_row(&mut self) -> Result<Option<Row>, Failure> {
        while let Some(level) = self.open.last_mut() {
            if level.rows.is_empty() {
                level.rows = level.catalog.rows_after(level.after, BATCH)?.into();
            }
            match level.rows.pop_front() {
                Some(row) => {
                    level.after = row.rowid;
                    return Ok(Some(row));
                }
                None => drop(self.open.pop()),
            }
        }
        Ok(None)
    }

    /// The next row that is content, with its path.
    fn next_content(&mut self) -> Result<Option<(TreePath, Node<FileContent>)>, Failure> {
        while let Some(row) = self.next_row()? {
            if is_marker(&row.entry) || row.entry.flags.is_nested_root() && !self.directories.is_empty() {
                continue;
            }
            if self.directories.is_empty() {
                self.directories.push((row.key, 0));
                continue;
            }
            while self.directories.last().is_some_and(|(key, _)| *key != row.parent) {
                self.directories.pop();
            }
            let Some((_, len)) = self.directories.last() else {
                return Err(Failure::Content(format!(
                    "the catalog of {} does not have its rows in tree order: it was not written by this program",
                    self.open.first().map_or_else(String::new, |l| l.catalog.mountpoint().to_string())
                )));
            };
            self.path.truncate(*len);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&row.entry.name);
            if row.entry.is_directory() {
                self.directories.push((row.key, self.path.len()));
            }
            let level = self.open.last().expect("the row came from there");
            let nested = match row.entry.flags.is_nested_mountpoint() {
                true => Some(self.nested(&level.catalog)?),
                false => None,
            };
            let found = match self.path.strip_prefix(CONTENT) {
                Some([]) => Some(TreePath::root()),
                Some([b'/', rest @ ..]) => Some(TreePath::new(rest).map_err(|e| Failure::Content(e.to_string()))?),
                _ => None,
            };
            let node = match found.is_some() {
                true => Some(node_of(&level.catalog, row.key, row.entry)?),
                false => None,
            };
            if let Some(reference) = nested {
                self.enter(&reference)?;
            }
            if let (Some(path), Some(node)) = (found, node) {
                return Ok(Some((path, node)));
            }
        }
        Ok(None)
    }

    fn nested(&self, catalog: &Loaded) -> Result<NestedRef, Failure> {
        let path =
            self.open[0].catalog.mountpoint().join_path(&self.path).map_err(|e| Failure::Content(e.to_string()))?;
        catalog.nested(&path)?.ok_or_else(|| Failure::Content(format!("nested catalog {path} is not registered")))
    }
}

impl Iterator for LayerRows<'_> {
    type Item = Result<(TreePath, Node<FileContent>), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_content();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// The node of a row, its chunks included.
pub(crate) fn node_of(catalog: &Loaded, key: PathKey, entry: Entry) -> Result<Node<FileContent>, Failure> {
    let chunks = match entry.flags.is_chunked() {
        true => catalog.chunks(key, entry.algorithm())?,
        false => Vec::new(),
    };
    Ok(to_node(entry, chunks))
}

/// Looks up single paths of one layer.
#[derive(Debug)]
pub struct LayerIndex<'a> {
    loader: Loader<'a>,
    content: RepoPath,
    open: std::cell::RefCell<Vec<Loaded>>,
}

impl<'a> LayerIndex<'a> {
    /// Opens the layer whose catalog this is.
    pub fn open(loader: Loader<'a>, layer: &NestedRef) -> Result<LayerIndex<'a>, Failure> {
        let content = layer.path.join(CONTENT);
        Ok(LayerIndex { loader, content, open: vec![loader.load(layer)?].into() })
    }

    /// The node at a path.
    pub fn get(&self, path: &TreePath) -> Result<Option<Node<FileContent>>, Failure> {
        let path = self.content.join_path(path.as_bytes()).map_err(|e| Failure::Content(e.to_string()))?;
        loop {
            let open = self.open.borrow();
            // The innermost open catalog on the way.
            let innermost = open.iter().filter(|c| c.mountpoint().contains(&path));
            let catalog = innermost.max_by_key(|c| c.mountpoint().as_bytes().len()).expect("the layer's own catalog");
            let mut next = None;
            for ancestor in path.ancestors().filter(|a| catalog.mountpoint().contains(a) && a != catalog.mountpoint()) {
                let Some(row) = catalog.lookup_path(&ancestor)? else { return Ok(None) };
                if row.entry.flags.is_nested_mountpoint() && ancestor != path {
                    next = catalog.nested(&ancestor)?;
                    break;
                }
                if ancestor == path {
                    return Ok(Some(node_of(catalog, row.key, row.entry)?));
                }
            }
            let Some(reference) = next else {
                // The path is the root of a catalog that was entered for something below it.
                return match catalog.lookup_path(&path)? {
                    Some(row) => Ok(Some(node_of(catalog, row.key, row.entry)?)),
                    None => Ok(None),
                };
            };
            drop(open);
            let loaded = self.loader.load(&reference)?;
            self.open.borrow_mut().push(loaded);
        }
    }
}
