//! The stored form of objects: compress, inflate, verify.
//!
//! The name of an object depends on its compressed bytes, hence on compressor, level and version: they are
//! a value ([`Codec`]) that is recorded wherever plain bytes are mapped to objects, so that two codecs never
//! share an index. Readers accept any zlib stream.
//!
//! Invariant: what [`Inflater`] or [`decode`] hand out has matched the object's hash, or they fail.

use std::fmt;
use std::io::{self, Read, Write};

use flate2::{Decompress, FlushDecompress, Status};

use crate::hash::{Algorithm, ContentHash, Hasher, ObjectId};

/// Compression of file content as catalogs record it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Compression {
    /// zlib format (RFC 1950).
    #[default]
    Zlib,
    /// Stored as it is.
    None,
}

impl Compression {
    /// Value of the three compression bits in a catalog row.
    pub fn flag_bits(self) -> u32 {
        self as u32
    }

    /// Inverse of [`Compression::flag_bits`].
    pub fn from_flag_bits(bits: u32) -> Option<Compression> {
        [Compression::Zlib, Compression::None].get(bits as usize).copied()
    }
}

/// How objects are compressed when they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// libdeflate at this level (1–12): fast, but other bytes than zlib itself makes.
    Libdeflate {
        /// Compression level.
        level: u8,
    },
    /// zlib itself at this level (0–9): slower, and the bytes that the reference implementation makes at 6.
    Zlib {
        /// Compression level.
        level: u8,
    },
    /// Not compressed.
    Store,
}

impl Default for Codec {
    fn default() -> Codec {
        // Level 5 makes objects as small as zlib at 6 in a third of its time; level 1 is twice as fast again
        // for 6 % more bytes.
        Codec::Libdeflate { level: 5 }
    }
}

impl fmt::Display for Codec {
    /// The identity that goes into indexes: compressor, version, level.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Must change with the pinned version in Cargo.toml.
            Codec::Libdeflate { level } => write!(f, "libdeflater-1.26.1:{level}"),
            // Its bytes are the same in all releases.
            Codec::Zlib { level } => write!(f, "zlib:{level}"),
            Codec::Store => f.write_str("store"),
        }
    }
}

impl Codec {
    /// What the reference implementation compresses with.
    pub const REFERENCE: Codec = Codec::Zlib { level: 6 };

    /// What catalogs record for objects of this codec.
    pub fn compression(self) -> Compression {
        match self {
            Codec::Libdeflate { .. } | Codec::Zlib { .. } => Compression::Zlib,
            Codec::Store => Compression::None,
        }
    }

    /// The codec of catalogs, tag databases, certificates and meta info where files have this one: always zlib format.
    pub fn of_databases(self) -> Codec {
        match self {
            // Catalogs are mostly hashes; higher levels cost time and save next to nothing.
            Codec::Libdeflate { .. } => Codec::Libdeflate { level: 4 },
            Codec::Zlib { .. } => self,
            // Nobody but the reference implementation has repositories like this.
            Codec::Store => Codec::REFERENCE,
        }
    }
}

/// How the objects of a repository are named and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Hash algorithm of names.
    pub algorithm: Algorithm,
    /// Compression of file content.
    pub codec: Codec,
}

impl From<Algorithm> for Encoding {
    /// With the codec of repositories of our own.
    fn from(algorithm: Algorithm) -> Encoding {
        Encoding { algorithm, codec: Codec::default() }
    }
}

/// Reusable compressor of whole objects; one a thread.
pub struct Encoder {
    algorithm: Algorithm,
    codec: Codec,
    engine: Engine,
    buffer: Vec<u8>,
}

enum Engine {
    Libdeflate(libdeflater::Compressor),
    Zlib(zlib::Deflater),
    Store,
}

impl Encoder {
    /// A compressor for objects named with `algorithm`.
    pub fn new(algorithm: Algorithm, codec: Codec) -> Encoder {
        let engine = match codec {
            Codec::Libdeflate { level } => {
                let level = libdeflater::CompressionLvl::new(i32::from(level.clamp(1, 12)));
                Engine::Libdeflate(libdeflater::Compressor::new(level.unwrap_or_default()))
            }
            Codec::Zlib { level } => Engine::Zlib(zlib::Deflater::new(level.min(9))),
            Codec::Store => Engine::Store,
        };
        Encoder { algorithm, codec, engine, buffer: Vec::new() }
    }

    /// The codec of this encoder.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Compresses `plain`; the stored bytes stay valid until the next call.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> (ContentHash, &'a [u8]) {
        let stored = match &mut self.engine {
            Engine::Store => plain,
            Engine::Zlib(zlib) => {
                let made = zlib.whole(plain, &mut self.buffer);
                &self.buffer[..made]
            }
            Engine::Libdeflate(deflate) => {
                let bound = deflate.zlib_compress_bound(plain.len());
                if self.buffer.len() < bound {
                    self.buffer.resize(bound, 0);
                }
                let written =
                    deflate.zlib_compress(plain, &mut self.buffer).expect("the buffer has the compressor's own bound");
                &self.buffer[..written]
            }
        };
        (ContentHash::of(self.algorithm, stored), stored)
    }

    /// Gives back the memory that one very large object took.
    pub fn shrink(&mut self, keep: usize) {
        self.buffer.truncate(keep);
        self.buffer.shrink_to(keep);
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("algorithm", &self.algorithm)
            .field("codec", &self.codec)
            .finish_non_exhaustive()
    }
}

/// Compresses a stream of any length into `out`: for catalogs, tag databases and their like, which are always zlib.
/// Gives the hash of the stored bytes and their number.
pub fn encode_stream(
    encoding: impl Into<Encoding>,
    plain: &mut dyn Read,
    out: &mut dyn Write,
) -> io::Result<(ContentHash, u64)> {
    let Encoding { algorithm, codec } = encoding.into();
    encode_file(Encoding { algorithm, codec: codec.of_databases() }, plain, out)
}

/// Compresses the content of one file of any length into `out`, as one object. Gives the hash of the stored bytes and
/// their number.
pub fn encode_file(encoding: Encoding, plain: &mut dyn Read, out: &mut dyn Write) -> io::Result<(ContentHash, u64)> {
    // Up to this size the whole is compressed at once, which libdeflate needs.
    const AT_ONCE: u64 = 16 << 20;
    let Encoding { algorithm, codec } = encoding;
    let mut head = Vec::new();
    plain.take(AT_ONCE + 1).read_to_end(&mut head)?;
    if head.len() as u64 <= AT_ONCE {
        let mut encoder = Encoder::new(algorithm, codec);
        let (hash, stored) = encoder.encode(&head);
        out.write_all(stored)?;
        return Ok((hash, stored.len() as u64));
    }
    let mut sink = HashingWriter { out, hasher: Hasher::new(algorithm), written: 0 };
    let mut plain = io::Cursor::new(head).chain(plain);
    match codec {
        Codec::Store => drop(io::copy(&mut plain, &mut sink)?),
        Codec::Zlib { level } => deflate(level.min(9), &mut plain, &mut sink)?,
        Codec::Libdeflate { level } => {
            let mut encoder = flate2::write::ZlibEncoder::new(&mut sink, flate2::Compression::new(level.min(9).into()));
            io::copy(&mut plain, &mut encoder)?;
            encoder.finish()?;
        }
    }
    Ok((sink.hasher.finish(), sink.written))
}

/// The rest of `plain` through zlib itself, in bounded memory.
fn deflate(level: u8, plain: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    let mut deflater = zlib::Deflater::new(level);
    let (mut input, mut output) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    loop {
        let read = match plain.read(&mut input) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let mut rest = &input[..read];
        loop {
            let progress = deflater.deflate(rest, &mut output, read == 0);
            out.write_all(&output[..progress.made])?;
            rest = &rest[progress.taken..];
            if progress.ended {
                return Ok(());
            }
            if read > 0 && rest.is_empty() {
                break;
            }
        }
    }
}

struct HashingWriter<'a> {
    out: &'a mut dyn Write,
    hasher: Hasher,
    written: u64,
}

impl Write for HashingWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Why stored bytes are not the object they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// Stored bytes hash to something else.
    #[error("object {expected}: stored bytes hash to {found}; the object is corrupt")]
    Mismatch {
        /// Object asked for.
        expected: ObjectId,
        /// Hash of the bytes that came.
        found: ContentHash,
    },
    /// Not a zlib stream, or cut off.
    #[error("object {0}: not a complete zlib stream")]
    Stream(ObjectId),
    /// Inflates to more than allowed.
    #[error("object {0}: inflates to more than {1} bytes")]
    TooLarge(ObjectId, u64),
    /// Writing the inflated bytes failed.
    #[error("object {0}: cannot write the inflated bytes")]
    Write(ObjectId, #[source] io::Error),
}

/// Streaming reader of one object: takes stored bytes as they come, writes plain bytes to `out`.
///
/// Nothing that was written may be used before [`Inflater::finish`] has said that the hash matched.
#[derive(Debug)]
pub struct Inflater<W> {
    id: ObjectId,
    hasher: Hasher,
    inflate: Option<Decompress>,
    ended: bool,
    limit: u64,
    plain: u64,
    buffer: Box<[u8]>,
    out: W,
}

impl<W: Write> Inflater<W> {
    /// Reads object `id`, stored with `compression`, of at most `limit` plain bytes.
    pub fn new(id: ObjectId, compression: Compression, limit: u64, out: W) -> Inflater<W> {
        let inflate = (compression == Compression::Zlib).then(|| Decompress::new(true));
        let buffer = vec![0; 128 * 1024].into_boxed_slice();
        Inflater { id, hasher: Hasher::new(id.hash.algorithm), inflate, ended: false, limit, plain: 0, buffer, out }
    }

    /// Takes the next stored bytes.
    pub fn push(&mut self, mut stored: &[u8]) -> Result<(), ObjectError> {
        self.hasher.update(stored);
        let Some(inflate) = &mut self.inflate else {
            return self.emit_plain(stored);
        };
        while !stored.is_empty() && !self.ended {
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate
                .decompress(stored, &mut self.buffer, FlushDecompress::None)
                .map_err(|_| ObjectError::Stream(self.id))?;
            let used = (inflate.total_in() - before_in) as usize;
            let made = (inflate.total_out() - before_out) as usize;
            stored = &stored[used..];
            self.plain += made as u64;
            if self.plain > self.limit {
                return Err(ObjectError::TooLarge(self.id, self.limit));
            }
            self.out.write_all(&self.buffer[..made]).map_err(|e| ObjectError::Write(self.id, e))?;
            self.ended = status == Status::StreamEnd;
            if used == 0 && made == 0 && !self.ended {
                return Err(ObjectError::Stream(self.id));
            }
        }
        // zlib may hold output back when the buffer was just filled; drain it.
        while !self.ended {
            let before = inflate.total_out();
            let status = match inflate.decompress(&[], &mut self.buffer, FlushDecompress::None) {
                Ok(status) => status,
                Err(_) => break,
            };
            let made = (inflate.total_out() - before) as usize;
            if made == 0 {
                self.ended = status == Status::StreamEnd;
                break;
            }
            self.plain += made as u64;
            if self.plain > self.limit {
                return Err(ObjectError::TooLarge(self.id, self.limit));
            }
            self.out.write_all(&self.buffer[..made]).map_err(|e| ObjectError::Write(self.id, e))?;
            self.ended = status == Status::StreamEnd;
        }
        Ok(())
    }

    fn emit_plain(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.plain += bytes.len() as u64;
        if self.plain > self.limit {
            return Err(ObjectError::TooLarge(self.id, self.limit));
        }
        self.out.write_all(bytes).map_err(|e| ObjectError::Write(self.id, e))
    }

    /// Whether the compressed stream is complete: what comes now belongs to nothing.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// All stored bytes came: checks the hash and that the stream is complete; gives the writer back and
    /// the number of plain bytes.
    pub fn finish(self) -> Result<(W, u64), ObjectError> {
        let found = self.hasher.finish();
        if found != self.id.hash {
            return Err(ObjectError::Mismatch { expected: self.id, found });
        }
        if self.inflate.is_some() && !self.ended {
            return Err(ObjectError::Stream(self.id));
        }
        Ok((self.out, self.plain))
    }
}

/// Verifies and inflates a small object held in memory.
pub fn decode(id: ObjectId, compression: Compression, stored: &[u8], limit: u64) -> Result<Vec<u8>, ObjectError> {
    let mut inflater = Inflater::new(id, compression, limit, Vec::new());
    inflater.push(stored)?;
    Ok(inflater.finish()?.0)
}

/// Reusable reader of whole objects whose plain size is known: in half the time of an [`Inflater`].
pub struct Decoder {
    engine: libdeflater::Decompressor,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { engine: libdeflater::Decompressor::new() }
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// Verifies object `id`, stored with `compression`, and inflates it into `room`, whose length is the most it may
    /// have. What is not compressed is given back from where it is.
    pub fn decode<'a>(
        &mut self,
        id: ObjectId,
        compression: Compression,
        stored: &'a [u8],
        room: &'a mut [u8],
    ) -> Result<&'a [u8], ObjectError> {
        let found = ContentHash::of(id.hash.algorithm, stored);
        if found != id.hash {
            return Err(ObjectError::Mismatch { expected: id, found });
        }
        let too_large = ObjectError::TooLarge(id, room.len() as u64);
        if compression == Compression::None {
            return if stored.len() <= room.len() { Ok(stored) } else { Err(too_large) };
        }
        match self.engine.zlib_decompress(stored, room) {
            Ok(plain) => Ok(&room[..plain]),
            Err(libdeflater::DecompressionError::BadData) => Err(ObjectError::Stream(id)),
            Err(libdeflater::DecompressionError::InsufficientSpace) => Err(too_large),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::ObjectKind;

    fn id(hash: &str) -> ObjectId {
        hash.parse::<ContentHash>().unwrap().object(ObjectKind::File)
    }

    #[test]
    fn worked_examples_of_stored_objects() {
        let empty = hex::decode("789c030000000001").unwrap();
        assert_eq!(decode(id("e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"), Compression::Zlib, &empty, 0).unwrap(), b"");
        let hello = hex::decode("789ccb48cdc9c9e70200084b021f").unwrap();
        assert_eq!(
            decode(id("5798f7f4ca7585d850eea64610a1f73d8f8de7a3"), Compression::Zlib, &hello, 6).unwrap(),
            b"hello\n"
        );
        assert_eq!(decode(id("da39a3ee5e6b4b0d3255bfef95601890afd80709"), Compression::None, b"", 0).unwrap(), b"");
    }

    #[test]
    fn every_codec_round_trips() {
        let big: Vec<u8> = (0..5_000_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect();
        let mut decoder = Decoder::default();
        for algorithm in Algorithm::ALL {
            for codec in [Codec::default(), Codec::Libdeflate { level: 1 }, Codec::REFERENCE, Codec::Store] {
                let mut encoder = Encoder::new(algorithm, codec);
                for plain in [&b""[..], b"a", &big] {
                    let (hash, stored) = encoder.encode(plain);
                    let id = hash.object(ObjectKind::File);
                    assert_eq!(decode(id, codec.compression(), stored, plain.len() as u64).unwrap(), plain);
                    let mut room = vec![0; plain.len()];
                    let decoded = decoder.decode(id, codec.compression(), stored, &mut room);
                    assert!(decoded.unwrap() == plain, "{codec} at once");
                }
            }
        }
        for plain in [&big[..], &big[..16 << 20], b"small", b""] {
            let mut stored = Vec::new();
            let (hash, size) = encode_stream(Algorithm::Sha1, &mut &plain[..], &mut stored).unwrap();
            assert_eq!(size, stored.len() as u64);
            assert!(decode(hash.object(ObjectKind::Catalog), Compression::Zlib, &stored, u64::MAX).unwrap() == plain);
            for codec in [Codec::REFERENCE, Codec::Store] {
                let mut encoder = Encoder::new(Algorithm::Rmd160, codec);
                let (whole, bytes) = encoder.encode(plain);
                let mut streamed = Vec::new();
                let encoding = Encoding { algorithm: Algorithm::Rmd160, codec };
                let (hash, size) = encode_file(encoding, &mut &plain[..], &mut streamed).unwrap();
                assert!((hash, size) == (whole, bytes.len() as u64) && streamed == bytes, "{codec} in a stream");
            }
        }
    }

    #[test]
    fn any_split_of_the_stored_bytes_gives_the_same() {
        let plain: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        let (hash, stored) = encoder.encode(&plain);
        for step in [1, 2, 7, 4096] {
            let mut inflater =
                Inflater::new(hash.object(ObjectKind::File), Compression::Zlib, plain.len() as u64, Vec::new());
            stored.chunks(step).for_each(|piece| inflater.push(piece).unwrap());
            assert_eq!(inflater.finish().unwrap().0, plain);
        }
    }

    #[test]
    fn refuses_corrupt_cut_and_oversized_objects() {
        let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        let plain = vec![7u8; 100_000];
        let (hash, stored) = encoder.encode(&plain);
        let (id, stored) = (hash.object(ObjectKind::File), stored.to_vec());
        let mut flipped = stored.clone();
        flipped[20] ^= 1;
        let noise = ContentHash::of(Algorithm::Sha1, b"not zlib").object(ObjectKind::File);
        let cut = ContentHash::of(Algorithm::Sha1, &stored[..50]).object(ObjectKind::File);
        let mut decoder = Decoder::default();
        let mut refused = |id, compression, stored: &[u8], limit| {
            let streamed = decode(id, compression, stored, limit).unwrap_err();
            let at_once = decoder.decode(id, compression, stored, &mut vec![0; limit as usize]).unwrap_err();
            (streamed, at_once)
        };
        let is_flipped = refused(id, Compression::Zlib, &flipped, 100_000);
        assert!(matches!(is_flipped.1, ObjectError::Mismatch { .. }), "{is_flipped:?}");
        for (id, stored) in [(cut, &stored[..50]), (noise, b"not zlib")] {
            let broken = refused(id, Compression::Zlib, stored, 100_000);
            assert!(matches!(broken, (ObjectError::Stream(_), ObjectError::Stream(_))), "{broken:?}");
        }
        for (id, compression, stored, limit) in
            [(id, Compression::Zlib, &stored[..], 99_999), (noise, Compression::None, b"not zlib", 7)]
        {
            let large = refused(id, compression, stored, limit);
            assert!(matches!(large, (ObjectError::TooLarge(..), ObjectError::TooLarge(..))), "{large:?}");
        }
        // What is less than it may be is the caller's to judge.
        assert_eq!(decoder.decode(id, Compression::Zlib, &stored, &mut [0; 200_000]).unwrap(), plain);
        assert!(decode(noise, Compression::None, b"not zlib", 100).is_ok());
    }
}
