//! A tar stream, taken apart into entries.
//!
//! The `tar` crate supplies the header layouts; the walk over records is our own, because that crate can't honour what
//! PAX says: it splits records at newlines (binary attributes such as `security.capability` are lost) and in raw mode
//! it knows neither a PAX size nor sparse maps, so it would take file content for headers.
//!
//! Understood: v7, ustar, star, GNU (long names, old sparse, base-256 numbers), PAX (length-prefixed records, sparse
//! 0.0, 0.1 and 1.0). Where programs differ we follow the reader that container engines use (Go's `archive/tar`), so
//! that an image has the same content here as there: global PAX headers are checked and ignored, links and directories
//! have no data whatever their size field says, GNU long names win over PAX paths.
//!
//! Invariants
//! - Every length is checked before it is used; memory is bounded by [`Limits`], whatever the stream says.
//! - A stream that ends inside an entry, a bad checksum, an unknown type: an error that says where. The end is two
//!   blocks of zeros, or the end of the stream between entries.
//!
//! Sources: POSIX.1-2024 "pax", GNU tar manual "Basic Tar Format" and "Sparse Formats".

mod content;
mod numbers;
mod pax;
mod sparse;

use std::io::{self, Read};

use ::tar::Header;

pub use content::Content;
use numbers::number;
use pax::PaxHeader;
use sparse::SparseMap;

/// Size of a tar block.
const BLOCK: usize = 512;

/// What a stream may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// entries
    pub entries: u64,
    /// bytes of the stream, and bytes of all files together (sparse files expand)
    pub bytes: u64,
    /// bytes of a PAX header or a long name
    pub header: u64,
    /// data segments of a sparse file
    pub segments: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 5_000_000, bytes: 500_000_000_000, header: 1 << 20, segments: 1 << 20 }
    }
}

/// Why a stream can't be read. Positions are bytes from its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The source failed.
    #[error("tar stream can't be read at byte {at}: {source}")]
    Read {
        /// where
        at: u64,
        /// what the source said
        source: io::Error,
    },
    /// The stream ends too early.
    #[error("tar stream ends in the middle of an entry, at byte {at}; the layer is truncated")]
    Truncated {
        /// where
        at: u64,
    },
    /// The first block is no header.
    #[error("not a tar archive: no valid header at its start")]
    NotTar,
    /// A header that makes no sense.
    #[error("bad tar header at byte {at}: {what}")]
    Header {
        /// where
        at: u64,
        /// what is wrong
        what: String,
    },
    /// A type of entry that is not supported.
    #[error("tar entry \"{path}\" at byte {at} has the unsupported type '{kind}'")]
    Unsupported {
        /// where
        at: u64,
        /// name of the entry
        path: String,
        /// type flag
        kind: String,
    },
    /// More than [`Limits`] allow.
    #[error("tar stream exceeds the limit of {limit} {what}; refused")]
    Limit {
        /// of what
        what: &'static str,
        /// how many
        limit: u64,
    },
}

impl From<TarError> for io::Error {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Truncated { .. } => Self::new(io::ErrorKind::UnexpectedEof, error),
            TarError::Read { ref source, .. } => Self::new(source.kind(), error),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarKind {
    /// a directory
    Directory,
    /// a file; its content is read from [`TarReader::content`]
    Regular {
        /// size in bytes, holes included
        size: u64,
    },
    /// another name for an earlier entry
    HardLink {
        /// path of that entry, as written
        target: Vec<u8>,
    },
    /// a symbolic link
    Symlink {
        /// where it points to
        target: Vec<u8>,
    },
    /// a character device
    CharDevice {
        /// major number
        major: u32,
        /// minor number
        minor: u32,
    },
    /// a block device
    BlockDevice {
        /// major number
        major: u32,
        /// minor number
        minor: u32,
    },
    /// a named pipe
    Fifo,
}

/// An entry as the archive has it: nothing is normalised, resolved or refused yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// its path, as written
    pub path: Vec<u8>,
    /// what it is
    pub kind: TarKind,
    /// the lower twelve bits of the mode
    pub mode: u32,
    /// owner; may be out of the range of real ids
    pub uid: i64,
    /// group; may be out of the range of real ids
    pub gid: i64,
    /// seconds since 1970
    pub mtime: i64,
    /// nanoseconds on top
    pub mtime_ns: u32,
    /// extended attributes in the order of the archive, the last of equal names only
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Could these first bytes of a stream be a tar archive? 512 bytes are looked at.
pub fn is_header(start: &[u8]) -> bool {
    start.first_chunk::<BLOCK>().is_some_and(|block| is_zero(block) || has_checksum(block))
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|&b| b == 0)
}

/// The sum over the header with blanks in place of the checksum; very old programs summed signed bytes.
fn has_checksum(block: &[u8; BLOCK]) -> bool {
    let Ok(stored) = number(&block[148..156]) else { return false };
    let rest = || block[..148].iter().chain(&block[156..]);
    let unsigned: i64 = rest().map(|&b| i64::from(b)).sum();
    let signed: i64 = rest().map(|&b| i64::from(b as i8)).sum();
    let blanks = 8 * i64::from(b' ');
    stored == unsigned + blanks || stored == signed + blanks
}

/// The bytes of a field up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// Reads entries from a stream. The source should be buffered, or cheap to read in blocks of 512 bytes.
#[derive(Debug)]
pub struct TarReader<R> {
    input: Input<R>,
    limits: Limits,
    entries: u64,
    /// bytes of all files so far
    content: u64,
    current: content::State,
    done: bool,
}

/// The source with a count of what was read.
#[derive(Debug)]
struct Input<R> {
    source: R,
    at: u64,
    limit: u64,
}

impl<R: Read> Input<R> {
    /// Reads at most `buffer`; the end of the stream is no error here.
    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.source.read(buffer) {
                Ok(read) => {
                    self.at += read as u64;
                    if self.at > self.limit {
                        return Err(TarError::Limit { what: "bytes", limit: self.limit });
                    }
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { at: self.at, source }),
            }
        }
    }

    /// Reads a whole block; nothing if the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated { at: self.at }),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    /// Reads `size` bytes and the padding behind them.
    fn padded(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < size {
            let block = self.block()?.ok_or(TarError::Truncated { at: self.at })?;
            bytes.extend_from_slice(&block);
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), TarError> {
        let mut scratch = [0; 16 << 10];
        while bytes > 0 {
            let wanted = bytes.min(scratch.len() as u64) as usize;
            match self.some(&mut scratch[..wanted])? {
                0 => return Err(TarError::Truncated { at: self.at }),
                read => bytes -= read as u64,
            }
        }
        Ok(())
    }
}

impl<R: Read> TarReader<R> {
    /// Reads from this source with the usual limits.
    pub fn new(source: R) -> Self {
        Self::with_limits(source, Limits::default())
    }

    /// Reads from this source with these limits.
    pub fn with_limits(source: R, limits: Limits) -> Self {
        let input = Input { source, at: 0, limit: limits.bytes };
        Self { input, limits, entries: 0, content: 0, current: content::State::default(), done: false }
    }

    /// How many bytes of the stream were read.
    pub fn position(&self) -> u64 {
        self.input.at
    }

    /// How many entries were seen.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The content of the entry that [`Self::next_entry`] returned last; nothing for what is no file.
    pub fn content(&mut self) -> Content<'_, R> {
        Content { reader: self }
    }

    /// Reads what follows the end of the archive (padding, mostly), so that a digest over the stream sees it all.
    /// Returns the size of the stream.
    pub fn drain(&mut self) -> Result<u64, TarError> {
        let mut scratch = [0; 16 << 10];
        while self.input.some(&mut scratch)? > 0 {}
        Ok(self.input.at)
    }

    /// The source, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input.source
    }

    /// The next entry; unread content of the last one is skipped. Nothing at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        if self.done {
            return Ok(None);
        }
        let rest = std::mem::take(&mut self.current);
        self.input.skip(rest.stored_left())?;
        let mut pax: Option<PaxHeader> = None;
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let at = self.input.at;
            let header_at = |what: String| TarError::Header { at, what };
            let pending = pax.is_some() || long_name.is_some() || long_link.is_some();
            let Some(block) = self.input.block()? else {
                if pending {
                    return Err(TarError::Truncated { at });
                }
                self.done = true;
                return Ok(None);
            };
            if is_zero(&block) {
                return match self.input.block()? {
                    _ if pending => Err(header_at("the archive ends between the parts of a header".to_owned())),
                    Some(second) if !is_zero(&second) => Err(header_at("a lone block of zeros".to_owned())),
                    _ => {
                        self.done = true;
                        Ok(None)
                    }
                };
            }
            if !has_checksum(&block) {
                return Err(if at == 0 { TarError::NotTar } else { header_at("wrong checksum".to_owned()) });
            }
            let header = Header::from_byte_slice(&block);
            let field = |name: &str, bytes: &[u8]| number(bytes).map_err(|what| header_at(format!("{name}: {what}")));
            let size = u64::try_from(field("size", &header.as_old().size)?)
                .map_err(|_| header_at("negative size".to_owned()))?;
            let flag = header.as_old().linkflag[0];
            match flag {
                b'x' | b'X' | b'g' | b'L' | b'K' => {
                    if size > self.limits.header {
                        return Err(TarError::Limit { what: "bytes in an extended header", limit: self.limits.header });
                    }
                    let bytes = self.input.padded(size)?;
                    match flag {
                        b'L' => long_name = Some(text(&bytes).to_vec()),
                        b'K' => long_link = Some(text(&bytes).to_vec()),
                        _ => {
                            let parsed = PaxHeader::parse(&bytes).map_err(header_at)?;
                            // global records are checked only, see the module header
                            if flag != b'g' {
                                pax = Some(parsed);
                            }
                        }
                    }
                    continue;
                }
                // the label of a volume
                b'V' => {
                    self.input.skip(size.next_multiple_of(BLOCK as u64))?;
                    continue;
                }
                _ => {}
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(TarError::Limit { what: "entries", limit: self.limits.entries });
            }
            return self.entry(at, &block, flag, size, pax.unwrap_or_default(), long_name, long_link).map(Some);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry, gathered by the only caller")]
    fn entry(
        &mut self,
        at: u64,
        block: &[u8; BLOCK],
        flag: u8,
        size: u64,
        pax: PaxHeader,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<TarEntry, TarError> {
        let header_at = |what: String| TarError::Header { at, what };
        let header = Header::from_byte_slice(block);
        let old = header.as_old();
        let field = |name: &str, bytes: &[u8]| number(bytes).map_err(|what| header_at(format!("{name}: {what}")));
        // PAX writers of sparse files leave a placeholder in the other places
        let path = pax.sparse.name.clone().or(long_name).or(pax.path).unwrap_or_else(|| short_name(header));
        let target = long_link.or(pax.linkpath).unwrap_or_else(|| text(&old.linkname).to_vec());
        if path.contains(&0) || target.contains(&0) {
            return Err(header_at("a NUL byte in a name".to_owned()));
        }
        let (major, minor) = match header.as_ustar().map(|h| (h.dev_major, h.dev_minor)) {
            Some(numbers) => numbers,
            None => header.as_gnu().map_or(([0; 8], [0; 8]), |h| (h.dev_major, h.dev_minor)),
        };
        let device = |name: &str, bytes: &[u8; 8]| {
            u32::try_from(field(name, bytes)?).map_err(|_| header_at(format!("{name} is out of range")))
        };
        let mut stored = 0;
        let mut map = None;
        let kind = match flag {
            b'5' => TarKind::Directory,
            // an old archive without a type for directories
            0 if path.ends_with(b"/") => TarKind::Directory,
            // a GNU dump directory: a list of names follows as content
            b'D' => {
                stored = size;
                TarKind::Directory
            }
            0 | b'0' | b'7' | b'S' => {
                stored = pax.size.unwrap_or(size);
                let data_at = self.input.at;
                if flag == b'S' {
                    let gnu =
                        header.as_gnu().ok_or_else(|| header_at("sparse file without a GNU header".to_owned()))?;
                    map = Some(SparseMap::old_gnu(gnu, &mut self.input, self.limits.segments, stored)?);
                } else if pax.sparse.is_present {
                    map = Some(SparseMap::pax(&pax.sparse, &mut self.input, self.limits.segments, stored)?);
                }
                if pax.sparse.is_version_1() {
                    // the map stands at the start of the data
                    stored -= self.input.at - data_at;
                }
                TarKind::Regular { size: map.as_ref().map_or(stored, |map| map.size) }
            }
            b'1' => TarKind::HardLink { target },
            b'2' => TarKind::Symlink { target },
            b'3' => TarKind::CharDevice { major: device("major", &major)?, minor: device("minor", &minor)? },
            b'4' => TarKind::BlockDevice { major: device("major", &major)?, minor: device("minor", &minor)? },
            b'6' => TarKind::Fifo,
            other => {
                let (path, kind) = (crate::tree::shown(&path), other.escape_ascii().to_string());
                return Err(TarError::Unsupported { at, path, kind });
            }
        };
        if let TarKind::Regular { size } = kind {
            self.content = self.content.saturating_add(size);
            if self.content > self.limits.bytes {
                return Err(TarError::Limit { what: "bytes", limit: self.limits.bytes });
            }
        }
        let size = if let TarKind::Regular { size } = kind { size } else { 0 };
        self.current = content::State::new(size, stored, map).map_err(header_at)?;
        let (mtime, mtime_ns) = match pax.mtime {
            Some(mtime) => mtime,
            None => (field("mtime", &old.mtime)?, 0),
        };
        Ok(TarEntry {
            path,
            kind,
            mode: (field("mode", &old.mode)? & 0o7777) as u32,
            uid: pax.uid.map_or_else(|| field("uid", &old.uid), Ok)?,
            gid: pax.gid.map_or_else(|| field("gid", &old.gid), Ok)?,
            mtime,
            mtime_ns,
            xattrs: pax.xattrs,
        })
    }
}

/// The name in the header itself, with the prefix that ustar and star put before it.
fn short_name(header: &Header) -> Vec<u8> {
    let name = text(&header.as_old().name);
    let prefix = match header.as_ustar() {
        // star keeps times behind a shorter prefix
        Some(ustar) if &header.as_bytes()[508..] == b"tar\0" => text(&ustar.prefix[..131]),
        Some(ustar) => text(&ustar.prefix),
        None => b"",
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

#[cfg(test)]
mod tests;
