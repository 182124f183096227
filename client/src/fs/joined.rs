//! Files that are kept in chunks, put together so that the kernel can read them itself.
//!
//! Once all chunks are in the cache, the next who opens the file has them copied into one object of the cache, which counts
//! and is evicted as any other. Its name is a hash of the list of chunks, so it is right whatever happens to them.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cvmfs::hash::ContentHash;

use super::file::piece;
use super::{FileSystem, FsError};
use crate::cache::{CacheKey, Form};
use crate::fetch::{Wait, Want};
use crate::inode::Node;

/// Chunks of a file that is put together.
const MOST_CHUNKS: usize = 16_384;
/// Part of the cache that one such file may take.
const PART_OF_CACHE: u64 = 4;

/// Bytes copied at a time. The kernel keeps what is written in pieces as large, and reads large ones faster.
const BLOCK: usize = 1 << 20;

impl FileSystem {
    /// The kernel opens files, and can read those of the cache itself.
    pub fn kernel_passes(&self) {
        self.joins.store(true, Ordering::Relaxed);
    }

    /// All of a chunked file in one piece; nothing when a chunk is not in the cache, or when there is no room.
    pub(super) fn joined(&self, node: &Node, wait: Wait) -> Result<Option<Arc<File>>, FsError> {
        if !self.joins.load(Ordering::Relaxed) || node.chunks.len() > MOST_CHUNKS || node.entry.flags.is_direct_io() {
            return Ok(None);
        }
        let (key, size) = (key(node), Some(node.entry.size));
        let cache = self.objects().cache();
        if let Some(file) = cache.get(key, size) {
            return Ok(Some(Arc::new(file)));
        }
        let wants: Vec<Want> = node.chunks.iter().map(|chunk| piece(&node.path, &node.entry, chunk)).collect();
        let has_room = cache.usage().1.is_none_or(|limit| node.entry.size <= limit / PART_OF_CACHE);
        if !has_room || !wants.iter().all(|want| self.objects().has(want)) {
            return Ok(None);
        }
        if wait == Wait::No {
            return Err(FsError::WouldBlock);
        }
        // Of those who open it at the same time one does the work.
        let _one = self.joining.lock();
        if let Some(file) = cache.get(key, size) {
            return Ok(Some(Arc::new(file)));
        }
        match self.join(node, &wants, key) {
            Ok(file) => Ok(Some(Arc::new(file))),
            Err(error) => {
                tracing::info!(path = %node.path, %error, "its chunks can't be put together: the client reads them");
                Ok(None)
            }
        }
    }

    fn join(&self, node: &Node, wants: &[Want], key: CacheKey) -> io::Result<File> {
        let cache = self.objects().cache();
        let mut whole = cache.begin(key, Some(node.entry.size)).map_err(io::Error::other)?;
        let mut buffer = vec![0; BLOCK];
        for (want, chunk) in wants.iter().zip(node.chunks.iter()) {
            let piece = self.objects().cached(want).ok_or(io::ErrorKind::NotFound)?;
            let mut at = 0;
            while at < chunk.size {
                let part = &mut buffer[..BLOCK.min((chunk.size - at) as usize)];
                piece.read_exact_at(part, at)?;
                whole.write_all(part)?;
                at += part.len() as u64;
            }
        }
        cache.commit(whole).map_err(io::Error::other)
    }
}

/// Name of the file that the chunks make.
fn key(node: &Node) -> CacheKey {
    let mut list = Vec::new();
    for chunk in node.chunks.iter() {
        list.extend_from_slice(format!("{} {} {}\n", chunk.hash, chunk.offset, chunk.size).as_bytes());
    }
    let algorithm = node.chunks.first().map_or_else(Default::default, |chunk| chunk.hash.algorithm);
    CacheKey { hash: ContentHash::of(algorithm, &list), form: Form::Joined(node.entry.compression()) }
}
