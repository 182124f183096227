//! Open directories: a listing taken when the directory was opened, which a change of revision leaves alone.

use std::sync::Arc;

use cvmfs::entry::FileType;

use super::{FileSystem, FsError};
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
    /// Takes the listing of a directory; gives a handle for it.
    pub fn open_directory(&self, inode: u32, wait: Wait) -> Result<u64, FsError> {
        let view = self.view();
        let directory = self.current(&view, inode, wait)?;
        if !directory.entry.is_directory() {
            return Err(FsError::NotDirectory);
        }
        let parent = match directory.path.parent() {
            Some(path) => self.find(&view, path, wait)?.map_or(inode::ROOT, |node| node.inode),
            None => inode::ROOT,
        };
        let dots = |name: &[u8], inode| Item { name: name.into(), inode, kind: FileType::Directory, node: None };
        let mut items = vec![dots(b".", inode), dots(b"..", parent)];
        let attached = self.children(&view, &directory, wait)?;
        let rows = attached.list(&directory.path).map_err(|e| super::failed(&directory.path, e))?;
        // The root entry of the repository has the null parent, so it cannot be its own child.
        let shown = rows.into_iter().filter(|row| !row.entry.flags.is_hidden() && !row.entry.name.is_empty());
        let rows = shown.map(|row| (directory.path.join(&row.entry.name), row)).collect();
        items.extend(self.nodes(&view, &attached, rows)?.into_iter().map(|node| Item {
            name: node.entry.name.as_slice().into(),
            inode: node.inode,
            kind: node.entry.file_type(),
            node: Some(node),
        }));
        self.stats().directory_opens.add(1);
        let handle = self.handle();
        let directory = Arc::new(Directory { inode, items, generation: view.generation });
        self.directories.write().insert(handle, directory);
        Ok(handle)
    }

    /// The listing behind a handle.
    pub fn directory(&self, handle: u64) -> Result<Arc<Directory>, FsError> {
        self.directories.read().get(&handle).cloned().ok_or(FsError::Stale)
    }

    /// Closes a directory.
    pub fn release_directory(&self, handle: u64) {
        self.directories.write().remove(&handle);
    }
}
