//! The content of the current entry, holes filled with zeros.

use std::io::{self, Read};

use super::sparse::SparseMap;
use super::{BLOCK, TarError, TarReader};

/// Where reading of the current entry stands.
#[derive(Debug, Default)]
pub(super) struct State {
    /// size of the file
    size: u64,
    /// how far it was read
    position: u64,
    /// stored bytes not read yet
    stored: u64,
    /// zeros behind the stored bytes, up to the next block
    padding: u64,
    /// none: everything is stored
    map: Option<SparseMap>,
    /// first segment that isn't read to its end
    segment: usize,
}

impl State {
    pub fn new(size: u64, stored: u64, map: Option<SparseMap>) -> Result<Self, String> {
        let padded = stored.checked_next_multiple_of(BLOCK as u64).ok_or("size out of range")?;
        Ok(Self { size, position: 0, stored, padding: padded - stored, map, segment: 0 })
    }

    /// What is left of the entry in the stream, padding included.
    pub fn stored_left(&self) -> u64 {
        // can't overflow: new() has computed the sum
        self.stored + self.padding
    }

    /// How many bytes follow at the position, and whether they are stored (else they are a hole).
    fn run(&mut self) -> (u64, bool) {
        let Some(map) = &self.map else { return (self.stored, true) };
        while let Some(&(offset, length)) = map.segments.get(self.segment) {
            if self.position < offset {
                return (offset - self.position, false);
            }
            if self.position < offset + length {
                return (offset + length - self.position, true);
            }
            self.segment += 1;
        }
        (self.size - self.position, false)
    }
}

/// Reads the content of the current entry. Dropping it early is fine: the rest is skipped.
#[derive(Debug)]
pub struct Content<'a, R> {
    pub(super) reader: &'a mut TarReader<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = &mut self.reader.current;
        if state.position >= state.size || buffer.is_empty() {
            return Ok(0);
        }
        let (run, is_stored) = state.run();
        let wanted = run.min(buffer.len() as u64) as usize;
        let read = if is_stored {
            match self.reader.input.some(&mut buffer[..wanted])? {
                0 => return Err(TarError::Truncated { at: self.reader.input.at }.into()),
                read => read,
            }
        } else {
            buffer[..wanted].fill(0);
            wanted
        };
        let state = &mut self.reader.current;
        state.position += read as u64;
        if is_stored {
            state.stored -= read as u64;
        }
        Ok(read)
    }
}
