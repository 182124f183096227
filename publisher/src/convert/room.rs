//! How much is fetched and held at once: bounded by layers, by bytes, and by what the disks have left.
//!
//! Who reads a layer enters first, in the order of the schedule; nobody overtakes. The room is left when the layer's catalog is stored, or
//! when nothing of it is needed any more.
//!
//! Invariants
//! - A layer that is larger than all room is let in alone.
//! - A layer that a disk has no space for fails, and with it the images that need it; smaller ones go on. While others are at work it
//!   waits: they may take less than they could.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::statvfs::statvfs;
use parking_lot::{Condvar, Mutex};

use crate::failure::Failure;
use crate::target::Target;

/// Layers that may wait for those below them, besides those that are being read.
const WAITING: usize = 8;
/// Rows and catalogs of a layer take about this part of its packed bytes.
const ROWS: u64 = 8;

/// What an operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomLimits {
    /// Packed bytes of layers that are fetched and not in a catalog yet.
    pub preparing: u64,
    /// Bytes that are left free on each disk.
    pub keep_free: u64,
}

impl Default for RoomLimits {
    fn default() -> Self {
        Self { preparing: 64_000_000_000, keep_free: 512 << 20 }
    }
}

/// A disk that layers need space on.
pub(super) struct Disk {
    pub(super) path: PathBuf,
    /// A layer takes this part of its packed bytes there: one in so many.
    pub(super) part: u64,
    /// Bytes that are left; nothing if that can't be known.
    pub(super) free: Box<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).field("part", &self.part).finish_non_exhaustive()
    }
}

/// The room of one pass.
#[derive(Debug)]
pub(super) struct Room {
    limits: RoomLimits,
    layers: usize,
    disks: Vec<Disk>,
    taken: Mutex<Taken>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    layers: usize,
    bytes: u64,
}

/// A layer that was let in.
#[derive(Debug)]
pub(super) struct Entered {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(limits: RoomLimits, jobs: usize, disks: Vec<Disk>) -> Arc<Self> {
        let (taken, left) = (Mutex::default(), Condvar::new());
        Arc::new(Self { limits, layers: jobs + WAITING, disks, taken, left })
    }

    /// Waits until a layer of so many packed bytes may be read.
    pub(super) fn enter(self: &Arc<Self>, bytes: u64) -> Result<Entered, Failure> {
        let mut taken = self.taken.lock();
        loop {
            let is_alone = taken.layers == 0;
            let has_room = taken.layers < self.layers && taken.bytes.saturating_add(bytes) <= self.limits.preparing;
            if is_alone || has_room {
                match self.disks.iter().find_map(|disk| self.lacks(disk, taken.bytes, bytes)) {
                    None => break,
                    Some(failure) if is_alone => return Err(failure),
                    Some(_) => {}
                }
            }
            self.left.wait(&mut taken);
        }
        taken.layers += 1;
        taken.bytes += bytes;
        Ok(Entered { room: self.clone(), bytes })
    }

    /// Why a disk has no space for so many bytes more than those that are taken.
    fn lacks(&self, disk: &Disk, taken: u64, bytes: u64) -> Option<Failure> {
        let free = (disk.free)()?;
        let wanted = taken.saturating_add(bytes) / disk.part;
        let keep = self.limits.keep_free;
        (free < wanted.saturating_add(keep)).then(|| Failure::NoSpace { path: disk.path.clone(), free, wanted, keep })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        taken.layers -= 1;
        taken.bytes -= self.bytes;
        self.room.left.notify_all();
    }
}

/// The disks that publishing into a repository needs.
pub(super) fn disks(target: &Target) -> Vec<Disk> {
    let mut disks: Vec<(u64, Disk)> = Vec::new();
    let storage = target.paths.storage.directory().map(|root| (root.to_owned(), 1));
    for (path, part) in storage.into_iter().chain([(target.paths.state.clone(), ROWS)]) {
        let Ok(device) = fs::metadata(&path).map(|metadata| metadata.dev()) else { continue };
        if disks.iter().any(|(known, _)| *known == device) {
            continue;
        }
        let at = path.clone();
        disks.push((device, Disk { path, part, free: Box::new(move || free(&at)) }));
    }
    disks.into_iter().map(|(_, disk)| disk).collect()
}

fn free(path: &Path) -> Option<u64> {
    let found = statvfs(path).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    const LIMITS: RoomLimits = RoomLimits { preparing: 100, keep_free: 10 };

    fn disk(free: &Arc<AtomicU64>) -> Disk {
        let free = free.clone();
        let free = Box::new(move || Some(free.load(Ordering::SeqCst)));
        Disk { path: "/d".into(), part: 1, free }
    }

    #[test]
    fn a_layer_larger_than_all_room_goes_alone() {
        let room = Room::new(LIMITS, 2, Vec::new());
        let first = room.enter(1000).unwrap();
        let (told, said) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = room.enter(1).unwrap();
                told.send(()).unwrap();
                drop(second);
            });
            assert!(said.try_recv().is_err(), "nobody enters beside it");
            drop(first);
            said.recv().unwrap();
        });
        assert_eq!(room.taken.lock().layers, 0);
    }

    #[test]
    fn layers_are_counted_and_room_that_is_left_is_taken() {
        let room = Room::new(LIMITS, 2, Vec::new());
        let mut inside: Vec<_> = (0..2 + WAITING).map(|_| room.enter(1).unwrap()).collect();
        std::thread::scope(|scope| {
            let late = scope.spawn(|| room.enter(1).unwrap());
            inside.pop();
            late.join().unwrap();
        });
    }

    #[test]
    fn a_full_disk_fails_what_does_not_fit_and_nothing_else() {
        let free = Arc::new(AtomicU64::new(60));
        let room = Room::new(LIMITS, 2, vec![disk(&free)]);
        let error = room.enter(51).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/d") && text.contains("--keep-free"), "{text}");
        let first = room.enter(50).unwrap();
        // While that is at work, another one waits; it fails when nothing is there that could make room.
        std::thread::scope(|scope| {
            let second = scope.spawn(|| room.enter(20).is_ok());
            free.store(20, Ordering::SeqCst);
            drop(first);
            assert!(!second.join().unwrap());
        });
        room.enter(10).unwrap();
    }
}
