//! Compression by zlib itself.
//!
//! An object's name is the hash of its compressed bytes, so whoever wants the names that the reference implementation
//! gives needs the very compressor. zlib is deterministic for a level: the bytes depend neither on its 1.2 and 1.3
//! releases nor on how the input is cut, as long as nothing is flushed in between. Other deflate implementations make
//! other bytes. zlib is linked statically, as the crate `libz-sys` brings it, whatever the system has.
//!
//! Invariants
//! - The C state lives in a box that never moves and is freed once.
//! - Pointers into slices are handed to zlib for the length of one call only.

use std::ffi::c_int;
use std::fmt;
use std::mem::{MaybeUninit, size_of};

use libz_sys as z;

/// A compressor into zlib format (RFC 1950), reusable for one stream after the other.
pub struct Deflater {
    // zlib keeps a pointer back to this structure: it must stay where it is.
    stream: Box<z::z_stream>,
    level: u8,
}

// SAFETY: the state that the raw pointers lead to belongs to this value alone, and zlib keeps nothing per thread.
unsafe impl Send for Deflater {}

/// What one call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the input.
    pub taken: usize,
    /// Bytes put into the output.
    pub made: usize,
    /// The stream is complete.
    pub ended: bool,
}

impl Deflater {
    /// A compressor of this level (0–9); the default of zlib is 6.
    ///
    /// # Panics
    /// Without memory (about 270 kB), and for other levels.
    pub fn new(level: u8) -> Deflater {
        assert!(level <= 9, "levels of zlib are 0 to 9");
        let mut stream = Box::new(MaybeUninit::<z::z_stream>::zeroed());
        let size = c_int::try_from(size_of::<z::z_stream>()).expect("a small structure");
        // SAFETY: a zeroed structure is what zlib asks for (null allocators mean its own ones); the pointer is valid,
        // and the version text is the constant of the library that is linked.
        let result = unsafe { z::deflateInit_(stream.as_mut_ptr(), level.into(), z::zlibVersion(), size) };
        assert_eq!(result, z::Z_OK, "zlib has no memory");
        // SAFETY: initialised by the call above, and the allocators, which may not be null in Rust, are set by it.
        Deflater { stream: unsafe { stream.assume_init() }, level }
    }

    /// The level.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Compresses from `input` into `output`, as much as either allows. With `finish`, `input` is the last of the
    /// stream; call again with the rest of it and more room until the stream has ended.
    pub fn deflate(&mut self, input: &[u8], output: &mut [u8], finish: bool) -> Progress {
        let clamp = |len: usize| z::uInt::try_from(len).unwrap_or(z::uInt::MAX);
        let (available, room) = (clamp(input.len()), clamp(output.len()));
        // Not the last piece if it does not fit into one call.
        let finish = finish && available as usize == input.len();
        let stream = &mut *self.stream;
        // zlib does not write through `next_in`; the type has no const in older headers.
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = available;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = room;
        // SAFETY: the stream is initialised; both pointers are valid for the lengths beside them during the call.
        let result = unsafe { z::deflate(stream, if finish { z::Z_FINISH } else { z::Z_NO_FLUSH }) };
        // Z_BUF_ERROR says that neither input nor room was there; the caller sees it as no progress.
        assert!(matches!(result, z::Z_OK | z::Z_STREAM_END | z::Z_BUF_ERROR), "deflate cannot fail ({result})");
        Progress {
            taken: (available - stream.avail_in) as usize,
            made: (room - stream.avail_out) as usize,
            ended: result == z::Z_STREAM_END,
        }
    }

    /// Makes ready for the next stream.
    pub fn reset(&mut self) {
        // SAFETY: the stream is initialised.
        let result = unsafe { z::deflateReset(&mut *self.stream) };
        assert_eq!(result, z::Z_OK, "only a damaged state cannot be reset");
    }

    /// The most bytes that a stream of `len` bytes can take.
    pub fn bound(len: usize) -> usize {
        // Stored blocks hold 16383 bytes or more behind five bytes each; six bytes of frame, and some for the last block.
        len + len / 16383 * 5 + 64
    }

    /// Compresses a whole stream into `output`, which grows as needed; gives the length of what is at its beginning.
    pub fn whole(&mut self, input: &[u8], output: &mut Vec<u8>) -> usize {
        self.reset();
        let bound = Deflater::bound(input.len());
        if output.len() < bound {
            output.resize(bound, 0);
        }
        let (mut taken, mut made) = (0, 0);
        loop {
            let step = self.deflate(&input[taken..], &mut output[made..], true);
            taken += step.taken;
            made += step.made;
            if step.ended {
                return made;
            }
            if made == output.len() {
                output.resize(made + made / 8 + 4096, 0);
            }
        }
    }
}

impl Drop for Deflater {
    fn drop(&mut self) {
        // SAFETY: initialised, and not used after this. The result only says whether input was pending.
        unsafe { z::deflateEnd(&mut *self.stream) };
    }
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").field("level", &self.level).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 88172645463325252u64;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn samples() -> Vec<Vec<u8>> {
        let text: Vec<u8> =
            (0..70_000u32).flat_map(|i| format!("line {} of {}\n", i % 977, i / 3).into_bytes()).collect();
        let mut mixed = noise(200_000);
        mixed.extend(&text[..300_000]);
        mixed.extend(vec![0; 100_000]);
        vec![Vec::new(), b"hello\n".to_vec(), vec![0; 1_000_000], noise(1_000_000), text, mixed]
    }

    fn in_pieces(input: &[u8], step: usize, room: usize) -> Vec<u8> {
        let mut deflater = Deflater::new(6);
        let (mut out, mut buffer) = (Vec::new(), vec![0; room]);
        let mut pieces: Vec<&[u8]> = input.chunks(step).collect();
        pieces.push(&[]);
        let last = pieces.len() - 1;
        for (i, mut piece) in pieces.into_iter().enumerate() {
            loop {
                let progress = deflater.deflate(piece, &mut buffer, i == last);
                out.extend_from_slice(&buffer[..progress.made]);
                piece = &piece[progress.taken..];
                if progress.ended || (i < last && piece.is_empty() && progress.made < room) {
                    break;
                }
            }
        }
        out
    }

    #[test]
    fn worked_examples_of_the_format() {
        let mut deflater = Deflater::new(6);
        let mut out = Vec::new();
        let len = deflater.whole(b"", &mut out);
        assert_eq!(out[..len], [0x78, 0x9c, 3, 0, 0, 0, 0, 1]);
        let len = deflater.whole(b"hello\n", &mut out);
        assert_eq!(out[..len], [0x78, 0x9c, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0xe7, 2, 0, 8, 0x4b, 2, 0x1f]);
    }

    #[test]
    fn the_bytes_do_not_depend_on_how_the_input_is_cut() {
        let mut deflater = Deflater::new(6);
        let mut whole = Vec::new();
        for sample in samples() {
            let len = deflater.whole(&sample, &mut whole);
            assert!(len <= Deflater::bound(sample.len()), "{} bytes", sample.len());
            for (step, room) in [(1, 7), (8192, 16384), (100_000, 1 << 20), (usize::MAX, 333)] {
                assert!(in_pieces(&sample, step, room) == whole[..len], "{} bytes in steps of {step}", sample.len());
            }
        }
    }

    #[test]
    fn levels_differ_and_compressors_move_between_threads() {
        let sample = samples().swap_remove(4);
        let sizes: Vec<usize> = [1, 6, 9]
            .map(|level| (Deflater::new(level), sample.clone()))
            .map(|(mut deflater, sample)| std::thread::spawn(move || deflater.whole(&sample, &mut Vec::new())))
            .map(|thread| thread.join().unwrap())
            .to_vec();
        assert!(sizes[0] > sizes[1] && sizes[1] >= sizes[2], "{sizes:?}");
    }
}
