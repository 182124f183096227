//! From the bytes of a blob to those of a tar: packing recognised by content, size and expansion bounded, both hashed.
//!
//! What the media type says is a hint only; magic numbers decide. Limits apply while the bytes stream.

use std::cell::Cell;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::rc::Rc;

use image::digest::DiffId;
use image::manifest::LayerCompression;
use sha2::{Digest as _, Sha256};

use crate::cli::ArchiveLimits;
use crate::failure::Failure;

/// Bytes by which packings and tars are recognised.
const HEAD: usize = 512;
/// Expansion is not looked at before this many bytes came out: small archives of zeros are harmless.
const GRACE: u64 = 64 << 20;

type Packed = Counted<Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>>;

enum Decoder {
    Plain(Packed),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Packed>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Packed>>),
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(reader) => reader.read(buffer),
            Decoder::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// Counts what was read.
struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// The uncompressed bytes of a layer.
pub struct Unpacked {
    decoder: Decoder,
    packed: Rc<Cell<u64>>,
    hasher: Sha256,
    size: u64,
    max_size: u64,
    max_expansion: u64,
}

impl std::fmt::Debug for Unpacked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacked").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Unpacked {
    /// Recognises the packing of `blob`.
    pub fn new(mut blob: Box<dyn Read + Send>, limits: &ArchiveLimits) -> Result<Unpacked, Failure> {
        let mut head = Vec::with_capacity(HEAD);
        blob.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(Failure::read("the archive"))?;
        let packing = LayerCompression::sniff(&head);
        // An empty tar is two blocks of zeros, or nothing at all.
        let is_empty = head.iter().all(|b| *b == 0);
        let packed = Rc::new(Cell::new(0));
        let source = Counted { inner: Cursor::new(head).chain(blob), count: packed.clone() };
        let decoder = match packing {
            Some(LayerCompression::Gzip) => {
                let source = BufReader::with_capacity(128 << 10, source);
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(source)))
            }
            Some(LayerCompression::Zstd) => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(128 << 10, source))
                    .map_err(Failure::read("the zstd stream"))?;
                let window = limits.max_zstd_window.max(1 << 10).ilog2().min(31);
                decoder.window_log_max(window).map_err(Failure::read("the zstd stream"))?;
                Decoder::Zstd(decoder)
            }
            Some(LayerCompression::Plain) => Decoder::Plain(source),
            _ if is_empty => Decoder::Plain(source),
            _ => {
                return Err(Failure::Content(
                    "the archive is neither a tar nor one packed with gzip or zstd".to_owned(),
                ));
            }
        };
        Ok(Unpacked {
            decoder,
            packed,
            hasher: Sha256::new(),
            size: 0,
            max_size: limits.max_layer_size,
            max_expansion: limits.max_expansion,
        })
    }

    /// Reads what follows the last member, to the end of the blob; gives digest and size of the uncompressed bytes.
    /// The end of the blob is where its own digest is compared.
    pub fn finish(mut self) -> Result<(DiffId, u64), Failure> {
        io::copy(&mut self, &mut io::sink()).map_err(Failure::read("the archive"))?;
        let rest = match &mut self.decoder {
            Decoder::Plain(reader) => io::copy(reader, &mut io::sink()),
            Decoder::Gzip(reader) => io::copy(reader.get_mut(), &mut io::sink()),
            Decoder::Zstd(reader) => io::copy(reader.get_mut(), &mut io::sink()),
        };
        rest.map_err(Failure::read("the archive"))?;
        Ok((DiffId::from_bytes(self.hasher.finalize().into()), self.size))
    }

    /// A counter of packed bytes that can be looked at while this is being read.
    pub fn packed_counter(&self) -> Rc<Cell<u64>> {
        self.packed.clone()
    }

    fn check_limits(&self) -> Result<(), Failure> {
        if self.size > self.max_size {
            let what = format!("the archive unpacks to more than {} bytes", self.max_size);
            return Err(Failure::Limit { what, option: "--max-layer-size" });
        }
        if self.size > GRACE && self.size / self.packed.get().max(1) > self.max_expansion {
            let what = format!("the archive expands more than {} times", self.max_expansion);
            return Err(Failure::Limit { what, option: "--max-expansion" });
        }
        Ok(())
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.size += read as u64;
        self.check_limits().map_err(Failure::into_io)?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use std::io::Write as _;

    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        limits: ArchiveLimits,
    }

    fn limits() -> ArchiveLimits {
        Defaults::parse_from(["x"]).limits
    }

    fn tar(content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, "f", content).unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(blob: Vec<u8>, limits: &ArchiveLimits) -> Result<(DiffId, u64), Failure> {
        Unpacked::new(Box::new(Cursor::new(blob)), limits)?.finish()
    }

    #[test]
    fn every_packing_gives_the_same_diff_id() {
        let tar = tar(b"content");
        let expected = (DiffId::of(&tar), tar.len() as u64);
        let two_members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
        for blob in [tar.clone(), gzip(&tar), two_members, zstd::encode_all(&tar[..], 1).unwrap()] {
            assert_eq!(unpack(blob, &limits()).unwrap(), expected);
        }
        assert_eq!(unpack(vec![0; 1024], &limits()).unwrap().1, 1024);
        assert_eq!(unpack(Vec::new(), &limits()).unwrap().1, 0);
    }

    /// A frame that decoders skip, as zstd:chunked puts its table of contents into them.
    fn skippable(content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18], &length[..], content].concat()
    }

    /// The end of an eStargz blob: an empty member whose extra field says where the table of contents is.
    fn footer() -> Vec<u8> {
        let extra = b"SG\x16\x00000000000000002aSTARGZ";
        let length = u16::try_from(extra.len()).unwrap().to_le_bytes();
        let head = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
        [&head[..], &length[..], &extra[..], &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat()
    }

    #[test]
    fn lazy_formats_are_read_as_what_they_are_to_everybody_else() {
        let tar = tar(&[7; 5000]);
        let expected = (DiffId::of(&tar), tar.len() as u64);
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let chunked = [frame(&tar[..600]), skippable(b"table"), frame(&tar[600..]), skippable(b"footer")].concat();
        let begins_with_one = [skippable(b"first"), frame(&tar)].concat();
        let lazy = [gzip(&tar[..1024]), gzip(&tar[1024..]), footer()].concat();
        for (what, blob) in [("zstd:chunked", chunked), ("skippable first", begins_with_one), ("eStargz", lazy)] {
            assert_eq!(unpack(blob, &limits()).unwrap(), expected, "{what}");
        }
        assert!(
            unpack([frame(&tar), vec![1, 2, 3, 4, 5]].concat(), &limits()).is_err(),
            "rubbish behind the last frame"
        );
    }

    #[test]
    fn refuses_noise_truncation_and_bombs() {
        assert!(matches!(unpack(b"<html>not a layer</html>".repeat(40), &limits()), Err(Failure::Content(_))));
        let packed = gzip(&tar(&vec![7; 10_000]));
        assert!(matches!(unpack(packed[..packed.len() / 2].to_vec(), &limits()), Err(Failure::Read { .. })));
        let bomb = gzip(&tar(&vec![0; 200 << 20]));
        let tight = ArchiveLimits { max_expansion: 100, ..limits() };
        assert!(matches!(unpack(bomb.clone(), &tight), Err(Failure::Limit { option: "--max-expansion", .. })));
        let small = ArchiveLimits { max_layer_size: 1 << 20, ..limits() };
        assert!(matches!(unpack(bomb, &small), Err(Failure::Limit { option: "--max-layer-size", .. })));
    }
}
