//! Cut marks: where large files are split into chunks.
//!
//! A rolling value over the last 32 bytes is compared with a magic number, so that equal stretches of two
//! files are cut at the same places. The marks equal those of the reference implementation, which matters
//! for deduplication only: readers accept any partition.

/// Bytes that influence the rolling value.
const WINDOW: u64 = 32;
const MAGIC: u32 = 0x7fff_ffff;

/// Sizes between which chunks lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// Shortest chunk, in bytes (but for the last of a file); files up to this size are not split.
    pub min: u64,
    /// Wanted average.
    pub avg: u64,
    /// Longest chunk.
    pub max: u64,
}

impl Default for ChunkSizes {
    fn default() -> ChunkSizes {
        ChunkSizes { min: 4 << 20, avg: 8 << 20, max: 16 << 20 }
    }
}

/// Finds the cuts of one file.
#[derive(Debug, Clone)]
pub struct Chunker {
    sizes: ChunkSizes,
    threshold: u32,
    /// Bytes of the current chunk seen so far.
    position: u64,
    rolling: u32,
}

impl Chunker {
    /// Starts a file.
    pub fn new(sizes: ChunkSizes) -> Chunker {
        let threshold = u64::from(u32::MAX) / sizes.avg.max(1);
        Chunker { sizes, threshold: u32::try_from(threshold).unwrap_or(u32::MAX), position: 0, rolling: 0 }
    }

    /// Looks at the next bytes of the file. `Some(n)`: the first `n` of them end the current chunk, and the
    /// rest is to be given again; `None`: all of them belong to the current chunk, which goes on.
    ///
    /// A cut may come before the first byte (`Some(0)`); it is never given twice at the same place.
    pub fn find_cut(&mut self, bytes: &[u8]) -> Option<usize> {
        // Bytes before the window of the first possible cut have no influence.
        let skip = (self.sizes.min - WINDOW.min(self.sizes.min)).saturating_sub(self.position).min(bytes.len() as u64);
        self.position += skip;
        for (at, byte) in bytes.iter().enumerate().skip(skip as usize) {
            if self.position >= self.sizes.max {
                return Some(self.cut(at));
            }
            self.rolling = (self.rolling << 1) ^ u32::from(*byte);
            if self.position >= self.sizes.min && self.is_mark() {
                return Some(self.cut(at));
            }
            self.position += 1;
        }
        None
    }

    fn is_mark(&self) -> bool {
        let distance = self.rolling.wrapping_sub(MAGIC) as i32;
        // The most negative number has no absolute value; the reference takes it for a hit.
        distance == i32::MIN || distance.unsigned_abs() < self.threshold
    }

    fn cut(&mut self, at: usize) -> usize {
        self.position = 0;
        self.rolling = 0;
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Algorithm, ContentHash};
    use sha2::{Digest as _, Sha256};

    fn cuts(data: &[u8], sizes: ChunkSizes, step: usize) -> Vec<usize> {
        let mut chunker = Chunker::new(sizes);
        let mut cuts = Vec::new();
        for (i, piece) in data.chunks(step).enumerate() {
            let mut from = 0;
            while let Some(n) = chunker.find_cut(&piece[from..]) {
                from += n;
                cuts.push(i * step + from);
            }
        }
        cuts
    }

    fn test_data(len: usize, sha1: &str) -> Vec<u8> {
        let mut data: Vec<u8> = (0..len.div_ceil(32)).flat_map(|i| Sha256::digest(i.to_string())).collect();
        data.truncate(len);
        assert_eq!(ContentHash::of(Algorithm::Sha1, &data).to_string(), sha1);
        data
    }

    const SMALL: ChunkSizes = ChunkSizes { min: 4096, avg: 8192, max: 16384 };

    #[test]
    fn self_test_vectors() {
        let data = test_data(131072, "8848b17ed7dd3f3ebb1105f117cdb9c3ccc96c6f");
        let expected = [10885, 15497, 26860, 36703, 53087, 58173, 74557, 90101, 94894, 102709, 112059, 116923, 122211];
        for step in [1, 13, 4096, data.len()] {
            assert_eq!(cuts(&data, SMALL, step), expected, "given in steps of {step}");
        }
        let data = test_data(33554432, "4006b62b6306daf2685dd40ca26a8e17ba20bb00");
        assert_eq!(cuts(&data, ChunkSizes::default(), 65536), [4907099, 9633771, 14641844, 22509651]);
    }

    #[test]
    fn zeros_are_cut_at_the_maximum_and_never_at_the_end() {
        assert_eq!(cuts(&[0; 40000], SMALL, 1000), [16384, 32768]);
        assert_eq!(cuts(&[0; 32768], SMALL, 1000), [16384], "no empty chunk at the end of the file");
        assert!(cuts(&[0; 4096], SMALL, 1000).is_empty());
    }
}
