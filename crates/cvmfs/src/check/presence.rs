//! Whether the objects that files refer to are in the storage.
//!
//! Layers and flat images share most of their objects, so an object that was found once is remembered in a
//! table of fixed size, and asked for again only when another one has taken its place there. Questions go to
//! the storage in batches, several at a time: behind S3 each is a round trip.

use std::thread;

use super::{CheckError, Report, Rule};
use crate::hash::{DIGEST_LEN, ObjectId, ObjectKind};
use crate::path::RepoPath;
use crate::store::{Store, StoreError};

const BATCH: usize = 4096;
const SLOTS: usize = 1 << 20;

/// A reference to an object.
#[derive(Debug)]
struct Wanted {
    id: ObjectId,
    path: RepoPath,
    /// Offset and size, for chunks.
    chunk: Option<(u64, u64)>,
}

/// Digest, kind and algorithm of an object; all zero = free.
type Slot = [u8; DIGEST_LEN + 2];

/// Collects references and looks for their objects.
#[derive(Debug)]
pub(super) struct Presence<'a> {
    store: &'a dyn Store,
    parallel: usize,
    found: Vec<Slot>,
    batch: Vec<Wanted>,
}

impl<'a> Presence<'a> {
    pub(super) fn new(store: &'a dyn Store, parallel: usize) -> Presence<'a> {
        Presence { store, parallel: parallel.max(1), found: vec![[0; DIGEST_LEN + 2]; SLOTS], batch: Vec::new() }
    }

    /// The object must be there; says so at the next flush if it isn't.
    pub(super) fn require(
        &mut self,
        id: ObjectId,
        path: &RepoPath,
        chunk: Option<(u64, u64)>,
        report: &mut Report,
    ) -> Result<(), CheckError> {
        report.references += 1;
        let (at, slot) = slot(id);
        if self.found[at] == slot {
            return Ok(());
        }
        self.batch.push(Wanted { id, path: path.clone(), chunk });
        if self.batch.len() < BATCH { Ok(()) } else { self.flush(report) }
    }

    /// Asks the storage for everything collected.
    pub(super) fn flush(&mut self, report: &mut Report) -> Result<(), CheckError> {
        let batch = std::mem::take(&mut self.batch);
        let store = self.store;
        let share = batch.len().div_ceil(self.parallel).max(1);
        let ask = |part: &[Wanted]| part.iter().map(|w| store.exists(w.id)).collect::<Result<Vec<bool>, StoreError>>();
        let answers = thread::scope(|scope| {
            // More threads than questions would only cost; the first share needs no thread of its own.
            let mut parts = batch.chunks(share);
            let first = parts.next().unwrap_or_default();
            let others: Vec<_> = parts.map(|part| scope.spawn(move || ask(part))).collect();
            let mut answers = ask(first)?;
            for other in others {
                answers.extend(other.join().expect("asking a store does not panic")?);
            }
            Ok::<_, StoreError>(answers)
        })?;
        for (wanted, present) in batch.iter().zip(answers) {
            if present {
                let (at, slot) = slot(wanted.id);
                self.found[at] = slot;
                continue;
            }
            let rule = if wanted.id.kind == ObjectKind::Chunk { Rule::ChunkMissing } else { Rule::ObjectMissing };
            let found = match wanted.chunk {
                Some((offset, size)) => format!("{} (offset {offset}, size {size})", wanted.id),
                None => wanted.id.to_string(),
            };
            report.add(rule, &wanted.path, found);
        }
        Ok(())
    }
}

fn slot(id: ObjectId) -> (usize, Slot) {
    let mut slot = [0; DIGEST_LEN + 2];
    slot[..DIGEST_LEN].copy_from_slice(&id.hash.digest);
    slot[DIGEST_LEN] = id.kind as u8 + 1;
    slot[DIGEST_LEN + 1] = id.hash.algorithm as u8;
    let [a, b, c, ..] = id.hash.digest;
    (u32::from_le_bytes([a, b, c, 0]) as usize % SLOTS, slot)
}
