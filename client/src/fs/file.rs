//! Open files. What a file was when it was opened, it is until it is closed.
//!
//! A file kept as one object is downloaded completely by `open`, so that failures show there; a chunked one
//! chunk by chunk, as it is read. While a chunked file is read in order, the next chunk is fetched ahead.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cvmfs::entry::{Chunk, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use parking_lot::Mutex;

use super::{FileSystem, FsError};
use crate::fetch::{Source, Wait, Want};
use crate::inode::Node;

/// Chunk files kept open per handle: concurrent readers of one file rarely touch more.
const OPEN_CHUNKS: usize = 4;

/// A file somebody has open.
#[derive(Debug)]
pub struct OpenFile {
    node: Arc<Node>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Empty,
    Whole(Arc<File>),
    Chunked {
        /// Most recently used last.
        open: Mutex<Vec<(usize, Arc<File>)>>,
        /// Chunk read last, and the one after the last that was fetched ahead.
        last: AtomicUsize,
        ahead: AtomicUsize,
    },
}

impl OpenFile {
    /// Whether the page cache is to be bypassed.
    pub fn is_direct(&self) -> bool {
        self.node.entry.flags.is_direct_io()
    }
}

/// The object of a file that is kept in one piece; `None` when it has no content object.
pub(crate) fn whole(node: &Node) -> Option<Want> {
    let entry = &node.entry;
    let mut want = Want::sized(entry.content?.object(ObjectKind::File), entry.compression(), entry.size);
    if entry.flags.is_external() {
        want.source = Source::External { path: escape(&node.path), range: None };
    }
    Some(want)
}

fn piece(node: &Node, chunk: &Chunk) -> Want {
    let mut want = Want::sized(chunk.hash.object(ObjectKind::Chunk), node.entry.compression(), chunk.size);
    if node.entry.flags.is_external() {
        want.source = Source::External { path: escape(&node.path), range: Some((chunk.offset, chunk.size)) };
    }
    want
}

/// A path as part of a URL, without leading slash.
fn escape(path: &RepoPath) -> String {
    let mut url = String::new();
    for byte in path.as_bytes().iter().skip(1) {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => url.push(char::from(*byte)),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

/// Chunks must follow each other from 0 to the end of the file, or bytes would be missing or double.
fn check_chunks(node: &Node) -> Result<(), FsError> {
    let mut end = Some(0u64);
    for chunk in node.chunks.iter() {
        end = end.filter(|end| *end == chunk.offset && chunk.size > 0).and_then(|end| end.checked_add(chunk.size));
    }
    if end == Some(node.entry.size) {
        return Ok(());
    }
    Err(FsError::Inconsistent { path: node.path.clone(), what: "its chunks do not cover it without gap or overlap" })
}

impl FileSystem {
    /// Opens a file; gives a handle for it.
    pub fn open(&self, inode: u32, wait: Wait) -> Result<u64, FsError> {
        let node = self.current(&self.view(), inode, wait)?;
        match node.entry.file_type() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::WrongType),
        }
        if self.files.read().len() >= self.most_files {
            return Err(FsError::TooManyFiles);
        }
        let body = if node.entry.flags.is_chunked() && !node.chunks.is_empty() {
            check_chunks(&node)?;
            Body::Chunked { open: Mutex::default(), last: AtomicUsize::new(0), ahead: AtomicUsize::new(0) }
        } else if let Some(want) = whole(&node) {
            Body::Whole(self.object(&node, &want, wait)?)
        } else if node.entry.size == 0 {
            Body::Empty
        } else {
            return Err(FsError::Inconsistent { path: node.path.clone(), what: "it has neither content nor chunks" });
        };
        self.stats().opens.add(1);
        let handle = self.handle();
        self.files.write().insert(handle, Arc::new(OpenFile { node, body }));
        Ok(handle)
    }

    /// The file behind a handle.
    pub fn file(&self, handle: u64) -> Result<Arc<OpenFile>, FsError> {
        self.files.read().get(&handle).cloned().ok_or(FsError::Stale)
    }

    /// Closes a file.
    pub fn release(&self, handle: u64) {
        self.files.write().remove(&handle);
    }

    /// Reads at `offset` into `buffer`; fewer bytes than fit only at the end of the file.
    pub fn read(&self, handle: u64, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<usize, FsError> {
        let file = self.file(handle)?;
        let size = file.node.entry.size;
        let length = buffer.len().min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..length];
        let exact = |from: &File, at, into: &mut [u8]| {
            from.read_exact_at(into, at).map_err(|source| FsError::Read { path: file.node.path.clone(), source })
        };
        match &file.body {
            Body::Empty => {}
            Body::Whole(content) => exact(content, offset, buffer)?,
            Body::Chunked { .. } => {
                let chunks = &file.node.chunks;
                let mut done = 0;
                while done < length {
                    let at = offset + done as u64;
                    let index = chunks.partition_point(|chunk| chunk.offset <= at) - 1;
                    let within = at - chunks[index].offset;
                    let count = (length - done).min((chunks[index].size - within) as usize);
                    let content = self.chunk(&file, index, wait)?;
                    exact(&content, within, &mut buffer[done..done + count])?;
                    done += count;
                }
            }
        }
        Ok(length)
    }

    fn chunk(&self, file: &Arc<OpenFile>, index: usize, wait: Wait) -> Result<Arc<File>, FsError> {
        let Body::Chunked { open, last, ahead } = &file.body else { return Err(FsError::Stale) };
        let before = last.swap(index, Ordering::Relaxed);
        let next = index + 1;
        let in_order = index == before || index == before + 1;
        if in_order && next < file.node.chunks.len() && ahead.fetch_max(next + 1, Ordering::Relaxed) <= next {
            let (objects, want) = (self.objects().clone(), piece(&file.node, &file.node.chunks[next]));
            // If it fails, whoever reads the chunk learns why.
            self.pool().run(move || drop(objects.fetch(&want)));
        }
        {
            let mut open = open.lock();
            if let Some(at) = open.iter().position(|(i, _)| *i == index) {
                let entry = open.remove(at);
                open.push(entry);
                return Ok(open[open.len() - 1].1.clone());
            }
        }
        let content = self.object(&file.node, &piece(&file.node, &file.node.chunks[index]), wait)?;
        let mut open = open.lock();
        if open.len() >= OPEN_CHUNKS {
            open.remove(0);
        }
        open.push((index, content.clone()));
        Ok(content)
    }

    fn object(&self, node: &Node, want: &Want, wait: Wait) -> Result<Arc<File>, FsError> {
        let found = self.objects().open(want, wait);
        found.map_err(|source| FsError::Content { path: node.path.clone(), source })?.ok_or(FsError::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_urls() {
        let path = RepoPath::parse("/a b/ü?#%.txt").unwrap();
        assert_eq!(escape(&path), "a%20b/%C3%BC%3F%23%25.txt");
    }
}
