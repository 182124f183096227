//! Listings of directories. The kernel opens none: it asks for the names of an inode piece by piece and keeps them.
//!
//! A listing is taken when the first piece is asked for, and given to the end even when the revision changes meanwhile. A
//! first piece is always of the current view: what the kernel keeps of it, it is told to forget at the next change.

use std::sync::Arc;

use cvmfs::entry::FileType;
use cvmfs::path::RepoPath;

use super::{FileSystem, FsError, View};
use crate::fetch::Wait;
use crate::inode::{self, Node};

/// One line of a listing.
#[derive(Debug, Clone)]
pub struct Item {
    /// Name: `.`, `..`, or that of the entry.
    pub name: Box<[u8]>,
    /// Inode number.
    pub inode: u32,
    /// Type.
    pub kind: FileType,
    /// The entry; none for `.` and `..`.
    pub node: Option<Arc<Node>>,
}

/// The listing of a directory.
#[derive(Debug)]
pub struct Directory {
    /// Inode of the directory.
    pub inode: u32,
    /// Its lines: `.`, `..`, then the entries in the order of the catalog, hidden ones left out.
    pub items: Vec<Item>,
    /// View it was taken from.
    pub generation: u64,
}

impl FileSystem {
    /// The listing of a directory, for a reader that begins or goes on with it.
    pub fn listing(&self, inode: u32, begins: bool, wait: Wait) -> Result<Arc<Directory>, FsError> {
        let view = self.view();
        let begun = self.listings.get(&inode).filter(|begun| !begins || begun.generation == view.generation);
        if let Some(directory) = begun {
            return Ok(directory);
        }
        let (path, directory) = self.list(&view, inode, wait)?;
        self.prefetcher().listed(&path);
        let directory = Arc::new(directory);
        self.listings.insert(inode, directory.clone());
        Ok(directory)
    }

    /// A reader has seen all of a listing.
    pub fn listed(&self, inode: u32) {
        self.listings.remove(&inode);
    }

    fn list(&self, view: &View, inode: u32, wait: Wait) -> Result<(RepoPath, Directory), FsError> {
        let directory = self.current(view, inode, wait)?;
        if !directory.entry.is_directory() {
            return Err(FsError::NotDirectory);
        }
        let parent = match directory.path.parent() {
            Some(path) => self.find(view, path, wait)?.map_or(inode::ROOT, |node| node.inode),
            None => inode::ROOT,
        };
        let dots = |name: &[u8], inode| Item { name: name.into(), inode, kind: FileType::Directory, node: None };
        let mut items = vec![dots(b".", inode), dots(b"..", parent)];
        let attached = self.children(view, &directory, wait)?;
        let rows = attached.list(&directory.path).map_err(|e| super::failed(&directory.path, e))?;
        // The root entry of the repository has the null parent, so it cannot be its own child.
        let shown = rows.into_iter().filter(|row| !row.entry.flags.is_hidden() && !row.entry.name.is_empty());
        let rows = shown.map(|row| (directory.path.join(&row.entry.name), row)).collect();
        items.extend(self.nodes(view, &attached, rows)?.into_iter().map(|node| Item {
            name: node.entry.name.as_slice().into(),
            inode: node.inode,
            kind: node.entry.file_type(),
            node: Some(node),
        }));
        self.stats().directory_opens.add(1);
        Ok((directory.path.clone(), Directory { inode, items, generation: view.generation }))
    }
}
