//! Sparse files: which parts of a file are stored; the rest reads as zeros.
//!
//! Four spellings: the old GNU one (in the header and in blocks behind it), PAX 0.0 (one record a number), 0.1 (one
//! record with a list) and 1.0 (text at the start of the data).

use std::io::Read;

use ::tar::{GnuExtSparseHeader, GnuHeader};

use super::numbers::{decimal, number};
use super::pax::PaxSparse;
use super::{BLOCK, Input, TarError};

/// The stored parts of a file: in order, apart, within its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// size of the file, holes included
    pub size: u64,
    /// offset, length
    pub segments: Vec<(u64, u64)>,
}

impl SparseMap {
    /// The old GNU form. Reads the blocks that continue the map, which stand before the data.
    pub fn old_gnu<R: Read>(
        header: &GnuHeader,
        input: &mut Input<R>,
        limit: u64,
        stored: u64,
    ) -> Result<Self, TarError> {
        let at = input.at;
        let error = |what: String| TarError::Header { at, what: format!("sparse map: {what}") };
        let value = |field: &[u8]| number(field).and_then(|n| u64::try_from(n).map_err(|_| "negative".to_owned()));
        let size = value(&header.realsize).map_err(error)?;
        let mut segments = Vec::new();
        let mut take = |parts: &[::tar::GnuSparseHeader]| -> Result<(), TarError> {
            for part in parts.iter().filter(|part| part.offset[0] != 0) {
                segments.push((value(&part.offset).map_err(error)?, value(&part.numbytes).map_err(error)?));
                if segments.len() as u64 > limit {
                    return Err(TarError::Limit { what: "segments in a sparse file", limit });
                }
            }
            Ok(())
        };
        take(&header.sparse)?;
        let mut more = header.isextended[0] == 1;
        while more {
            let block = input.block()?.ok_or(TarError::Truncated { at: input.at })?;
            let mut extended = GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            take(extended.sparse())?;
            more = extended.is_extended();
        }
        Self { size, segments }.checked(stored).map_err(error)
    }

    /// The PAX forms. Version 1.0 reads the map from the start of the data.
    pub fn pax<R: Read>(
        sparse: &PaxSparse,
        input: &mut Input<R>,
        limit: u64,
        mut stored: u64,
    ) -> Result<Self, TarError> {
        let start = input.at;
        let error = |what: String| TarError::Header { at: start, what: format!("sparse map: {what}") };
        let size = sparse.size.ok_or_else(|| error("no size of the whole file".to_owned()))?;
        let segments = match (sparse.major, sparse.minor) {
            (0, _) => sparse.map.clone(),
            (1, 0) => {
                let (mut block, mut used) = ([0; BLOCK], BLOCK);
                let mut next = |input: &mut Input<R>| -> Result<u64, TarError> {
                    let mut digits = Vec::new();
                    loop {
                        if used == BLOCK {
                            if input.at - start >= stored {
                                return Err(error("longer than the data".to_owned()));
                            }
                            block = input.block()?.ok_or(TarError::Truncated { at: input.at })?;
                            used = 0;
                        }
                        used += 1;
                        match block[used - 1] {
                            b'\n' => return decimal(&digits).map_err(error),
                            digit if digits.len() < 20 => digits.push(digit),
                            _ => return Err(error("a number without an end".to_owned())),
                        }
                    }
                };
                let count = next(input)?;
                if count > limit {
                    return Err(TarError::Limit { what: "segments in a sparse file", limit });
                }
                let mut segments = Vec::new();
                for _ in 0..count {
                    segments.push((next(input)?, next(input)?));
                }
                stored =
                    stored.checked_sub(input.at - start).ok_or_else(|| error("longer than the data".to_owned()))?;
                segments
            }
            (major, minor) => return Err(error(format!("unknown version {major}.{minor}"))),
        };
        Self { size, segments }.checked(stored).map_err(error)
    }

    /// Parts in order, apart, within the file, and exactly as long as what is stored.
    fn checked(self, stored: u64) -> Result<Self, String> {
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in &self.segments {
            if offset < end {
                return Err("segments overlap or are out of order".to_owned());
            }
            end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or("a segment beyond the end")?;
            sum += length;
        }
        if sum != stored {
            return Err(format!("segments have {sum} bytes, {stored} are stored"));
        }
        Ok(self)
    }
}
