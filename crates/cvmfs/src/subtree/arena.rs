//! Rows that wait for their catalog, encoded one after the other.
//!
//! Layout of a row: total length (u32), chunk count (u32), the fixed columns, the variable ones with their
//! lengths, the chunks; little-endian. The `hardlinks` column stands at a fixed place, so that it can be
//! patched when a directory or a hard-link group is complete.

use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use tempfile::SpooledTempFile;

use crate::catalog::writer::RowRef;
use crate::entry::{Chunk, Entry};
use crate::hash::{Algorithm, ContentHash, DIGEST_LEN};
use crate::path::PathKey;

/// Rows beyond this many bytes go to a scratch file, and are not handed over as a whole.
const IN_MEMORY: usize = 48 << 20;
const HARDLINKS_AT: u64 = 8;

/// The waiting rows.
#[derive(Debug)]
pub struct Arena {
    file: SpooledTempFile,
    len: u64,
    row: Vec<u8>,
}

impl Arena {
    /// An empty arena that spills into `scratch`.
    pub fn new(scratch: &Path) -> Arena {
        Arena { file: tempfile::spooled_tempfile_in(IN_MEMORY, scratch), len: 0, row: Vec::new() }
    }

    /// Appends a row; gives its place.
    pub fn push(&mut self, key: PathKey, parent: PathKey, entry: &Entry, chunks: &[Chunk]) -> io::Result<u64> {
        let at = self.len;
        self.row.clear();
        encode(&mut self.row, &RowRef::of(key, parent, entry), chunks);
        self.file.write_all(&self.row)?;
        self.len += self.row.len() as u64;
        Ok(at)
    }

    /// Changes the `hardlinks` column of the row at `at`.
    pub fn patch_links(&mut self, at: u64, column: i64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at + HARDLINKS_AT))?;
        self.file.write_all(&column.to_le_bytes())?;
        self.file.seek(SeekFrom::Start(self.len)).map(drop)
    }

    /// Whether the rows from `start` on are few enough to be handed over in memory.
    pub fn fits_in_memory(&self, start: u64) -> bool {
        self.len - start <= IN_MEMORY as u64
    }

    /// Takes the rows from `start` to the end out.
    pub fn take(&mut self, start: u64) -> io::Result<Vec<u8>> {
        let mut rows = vec![0; (self.len - start) as usize];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut rows)?;
        self.truncate(start)?;
        Ok(rows)
    }

    /// Reads the rows from `start` on.
    pub fn reader(&mut self, start: u64) -> io::Result<impl Read + '_> {
        self.file.seek(SeekFrom::Start(start))?;
        Ok(BufReader::with_capacity(1 << 20, &mut self.file))
    }

    /// Forgets the rows from `start` on.
    pub fn truncate(&mut self, start: u64) -> io::Result<()> {
        self.file.set_len(start)?;
        self.file.seek(SeekFrom::Start(start))?;
        self.len = start;
        Ok(())
    }
}

fn encode(out: &mut Vec<u8>, row: &RowRef<'_>, chunks: &[Chunk]) {
    out.extend([0; 4]);
    out.extend((chunks.len() as u32).to_le_bytes());
    let numbers = [
        row.hardlinks,
        row.key.high,
        row.key.low,
        row.parent.high,
        row.parent.low,
        row.size as i64,
        row.mtime,
        row.mtime_ns.map_or(-1, i64::from),
        i64::from(row.mode) << 32 | i64::from(row.flags),
        i64::from(row.uid) << 32 | i64::from(row.gid),
    ];
    numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
    let variable = [row.hash.unwrap_or_default(), row.name, row.symlink, row.xattrs.unwrap_or_default()];
    variable.iter().for_each(|v| out.extend((v.len() as u32).to_le_bytes()));
    variable.iter().for_each(|v| out.extend_from_slice(v));
    for chunk in chunks {
        out.extend(chunk.offset.to_le_bytes());
        out.extend(chunk.size.to_le_bytes());
        out.push(chunk.hash.algorithm.flag_bits() as u8);
        out.extend(chunk.hash.digest);
    }
    let len = out.len() as u32;
    out[..4].copy_from_slice(&len.to_le_bytes());
}

/// Takes rows apart again.
#[derive(Debug)]
pub struct RowReader<R> {
    input: R,
    row: Vec<u8>,
}

impl<R: Read> RowReader<R> {
    /// Reads rows as [`Arena::push`] wrote them.
    pub fn new(input: R) -> RowReader<R> {
        RowReader { input, row: Vec::new() }
    }

    /// The next row and its chunks; `None` at the end.
    pub fn next_row(&mut self) -> io::Result<Option<(RowRef<'_>, Vec<Chunk>)>> {
        let mut len = [0; 4];
        match self.input.read_exact(&mut len) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        self.row.resize((u32::from_le_bytes(len) as usize).saturating_sub(4), 0);
        self.input.read_exact(&mut self.row)?;
        decode(&self.row).map(Some).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn decode(row: &[u8]) -> Option<(RowRef<'_>, Vec<Chunk>)> {
    let mut rest = row;
    let chunk_count = u32::from_le_bytes(take(&mut rest)?);
    let mut numbers = [0; 10];
    for number in &mut numbers {
        *number = i64::from_le_bytes(take(&mut rest)?);
    }
    let mut lengths = [0; 4];
    for length in &mut lengths {
        *length = u32::from_le_bytes(take(&mut rest)?) as usize;
    }
    let mut variable = [&[][..]; 4];
    for (slice, length) in variable.iter_mut().zip(lengths) {
        (*slice, rest) = rest.split_at_checked(length)?;
    }
    let mut chunks = Vec::with_capacity(chunk_count as usize);
    for _ in 0..chunk_count {
        let (offset, size) = (u64::from_le_bytes(take(&mut rest)?), u64::from_le_bytes(take(&mut rest)?));
        let [algorithm] = take(&mut rest)?;
        let algorithm = Algorithm::from_flag_bits(algorithm.into())?;
        chunks.push(Chunk { offset, size, hash: ContentHash { algorithm, digest: take::<DIGEST_LEN>(&mut rest)? } });
    }
    let [hardlinks, key_high, key_low, parent_high, parent_low, size, mtime, ns, mode_flags, owner] = numbers;
    let [hash, name, symlink, xattrs] = variable;
    Some((
        RowRef {
            key: PathKey { high: key_high, low: key_low },
            parent: PathKey { high: parent_high, low: parent_low },
            hardlinks,
            hash: (!hash.is_empty()).then_some(hash),
            size: size as u64,
            mode: (mode_flags >> 32) as u32,
            mtime,
            mtime_ns: u32::try_from(ns).ok(),
            flags: mode_flags as u32,
            name,
            symlink,
            uid: (owner >> 32) as u32,
            gid: owner as u32,
            xattrs: (!xattrs.is_empty()).then_some(xattrs),
        },
        chunks,
    ))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
