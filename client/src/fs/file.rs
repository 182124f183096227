//! Open files. What a file was when it was opened, it is until it is closed.
//!
//! Where the kernel need not open files ([`FileSystem::recent`]), it reads inodes, which stand for one content each: the
//! files it reads stay open for a while, so that they are found at the next read.
//!
//! A file kept as one object is downloaded completely by `open`, so that failures show there; a chunked one
//! chunk by chunk, as it is read. While a chunked file is read in order, the next chunks are fetched ahead: one, then two,
//! and so on, up to a bound.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use parking_lot::Mutex;

use super::{FileSystem, FsError};
use crate::fetch::{Source, Wait, Want};
use crate::inode::Node;

/// Chunk files kept open per handle: concurrent readers of one file rarely touch more.
const OPEN_CHUNKS: usize = 4;

/// Files that stay open after the kernel has read them.
const RECENT: usize = 128;

/// Chunks, and bytes of them, that are fetched ahead of somebody who reads a file in order.
const MOST_AHEAD: usize = 8;
const MOST_BYTES_AHEAD: u64 = 64 << 20;

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
        /// Chunk read last.
        last: AtomicUsize,
        /// How many are fetched ahead, and the one after the last that was.
        ahead: Mutex<(usize, usize)>,
    },
}

impl OpenFile {
    /// Whether the page cache is to be bypassed.
    pub fn is_direct(&self) -> bool {
        self.node.entry.flags.is_direct_io()
    }

    /// The cache's file with all of the content, if there is one.
    pub fn whole(&self) -> Option<&File> {
        match &self.body {
            Body::Whole(file) => Some(file),
            Body::Empty | Body::Chunked { .. } => None,
        }
    }
}

/// Files that the kernel reads without opening them, those read last.
#[derive(Debug)]
pub struct Recent {
    files: quick_cache::sync::Cache<u32, Arc<OpenFile>>,
    /// Clean-ups of the cache that they have seen.
    cleaned: AtomicU64,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { files: quick_cache::sync::Cache::new(RECENT), cleaned: AtomicU64::new(0) }
    }
}

impl Recent {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes that of an inode.
    pub fn remove(&self, inode: u32) {
        self.files.remove(&inode);
    }

    /// Closes all.
    pub fn clear(&self) {
        self.files.clear();
    }

    /// Closes all if the cache was cleaned up since: what it has removed takes room as long as it is open.
    fn follow(&self, clean_ups: u64) {
        if self.cleaned.swap(clean_ups, Ordering::Relaxed) != clean_ups {
            self.clear();
        }
    }
}

/// The object of a file that is kept in one piece; `None` when it has no content object.
pub(crate) fn whole(path: &RepoPath, entry: &Entry) -> Option<Want> {
    let mut want = Want::sized(entry.content?.object(ObjectKind::File), entry.compression(), entry.size);
    if entry.flags.is_external() {
        want.source = Source::External { path: escape(path), range: None };
    }
    Some(want)
}

/// The object of one chunk of a file.
pub(crate) fn piece(path: &RepoPath, entry: &Entry, chunk: &Chunk) -> Want {
    let mut want = Want::sized(chunk.hash.object(ObjectKind::Chunk), entry.compression(), chunk.size);
    if entry.flags.is_external() {
        want.source = Source::External { path: escape(path), range: Some((chunk.offset, chunk.size)) };
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
        if self.files.read().len() >= self.most_files {
            return Err(FsError::TooManyFiles);
        }
        let file = Arc::new(self.opened(inode, wait)?);
        let handle = self.handle();
        self.files.write().insert(handle, file);
        Ok(handle)
    }

    /// The file of an inode that the kernel reads without having opened it.
    pub fn recent(&self, inode: u32, wait: Wait) -> Result<Arc<OpenFile>, FsError> {
        self.recent.follow(self.objects().cache().evictions());
        if let Some(file) = self.recent.files.get(&inode) {
            return Ok(file);
        }
        let file = Arc::new(self.opened(inode, wait)?);
        self.recent.files.insert(inode, file.clone());
        Ok(file)
    }

    fn opened(&self, inode: u32, wait: Wait) -> Result<OpenFile, FsError> {
        let node = self.current(&self.view(), inode, wait)?;
        match node.entry.file_type() {
            FileType::Regular => {}
            FileType::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::WrongType),
        }
        let body = if node.entry.flags.is_chunked() && !node.chunks.is_empty() {
            check_chunks(&node)?;
            self.prefetcher().passes(&node.path);
            match self.joined(&node, wait)? {
                Some(whole) => Body::Whole(whole),
                None => Body::Chunked { open: Mutex::default(), last: AtomicUsize::new(0), ahead: Mutex::default() },
            }
        } else if let Some(want) = whole(&node.path, &node.entry) {
            Body::Whole(self.content(&node, &want, wait)?)
        } else if node.entry.size == 0 {
            Body::Empty
        } else {
            return Err(FsError::Inconsistent { path: node.path.clone(), what: "it has neither content nor chunks" });
        };
        self.stats().opens.add(1);
        self.prefetcher().opened(&node.path, &node.entry);
        Ok(OpenFile { node, body })
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
        self.read_from(&*self.file(handle)?, offset, buffer, wait)
    }

    /// The same from an open file.
    pub fn read_from(&self, file: &OpenFile, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<usize, FsError> {
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
                    let content = self.chunk(file, index, wait)?;
                    exact(&content, within, &mut buffer[done..done + count])?;
                    done += count;
                }
            }
        }
        Ok(length)
    }

    fn chunk(&self, file: &OpenFile, index: usize, wait: Wait) -> Result<Arc<File>, FsError> {
        let Body::Chunked { open, last, ahead } = &file.body else { return Err(FsError::Stale) };
        let node = &file.node;
        let before = last.swap(index, Ordering::Relaxed);
        let in_order = index == before || index == before + 1;
        if in_order {
            self.chunks_ahead(node, index, ahead);
        }
        {
            let mut open = open.lock();
            if let Some(at) = open.iter().position(|(i, _)| *i == index) {
                let entry = open.remove(at);
                open.push(entry);
                return Ok(open[open.len() - 1].1.clone());
            }
        }
        let content = self.object(node, &piece(&node.path, &node.entry, &node.chunks[index]), wait)?;
        self.prefetcher().read(&node.path, &node.chunks[index]);
        if wait != Wait::No && index == 0 && self.prefetcher().may_name(&node.path, &node.entry) {
            self.prefetcher().names(&node.path, &content);
        }
        let mut open = open.lock();
        if open.len() >= OPEN_CHUNKS {
            open.remove(0);
        }
        open.push((index, content.clone()));
        Ok(content)
    }

    /// Has the chunks after `index` fetched, more of them each time.
    fn chunks_ahead(&self, node: &Node, index: usize, ahead: &Mutex<(usize, usize)>) {
        let (next, end) = {
            let mut ahead = ahead.lock();
            let (window, until) = *ahead;
            // Half of the window is left: time for the next one.
            if index + 1 + window / 2 < until {
                return;
            }
            let window = (window * 2).clamp(1, MOST_AHEAD);
            let mut bytes = 0u64;
            let fits = |chunk: &&Chunk| {
                bytes = bytes.saturating_add(chunk.size);
                bytes <= MOST_BYTES_AHEAD
            };
            let count = node.chunks.iter().skip(index + 1).take(window).take_while(fits).count();
            let (next, end) = (until.max(index + 1), index + 1 + count);
            *ahead = (window, end.max(until));
            (next, end)
        };
        if next < end {
            self.prefetcher().next(node.chunks[next..end].iter().map(|chunk| piece(&node.path, &node.entry, chunk)));
        }
    }

    /// The object of a whole file. Who opens one for the first time tells what to fetch ahead.
    fn content(&self, node: &Node, want: &Want, wait: Wait) -> Result<Arc<File>, FsError> {
        if wait != Wait::No {
            let names = self.prefetcher().wanted(&node.path, &node.entry, None);
            let file = self.object(node, want, wait)?;
            if names {
                self.prefetcher().names(&node.path, &file);
            }
            return Ok(file);
        }
        let (file, guessed) = self.objects().cached_and_new(want).ok_or(FsError::WouldBlock)?;
        if guessed.is_some() && self.prefetcher().wanted(&node.path, &node.entry, guessed) {
            self.prefetcher().names(&node.path, &file);
        }
        Ok(file)
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
