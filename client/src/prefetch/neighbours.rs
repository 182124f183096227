//! Directories that are being read through: when a program reads one file after another of the same kind, the next
//! ones are worth fetching.
//!
//! A pure value. The kind of a file is the end of its name after the last dot. With the second file of a kind in a
//! directory begins a window that doubles each time half of it has been read, as in the kernel's own read-ahead. Where
//! guesses have been right so far, the first file is enough and the window begins large. Directories that were not touched for the longest time are forgotten.

use std::collections::HashMap;

use cvmfs::path::{PathKey, RepoPath};

/// Directories that are watched.
const MAX_DIRECTORIES: usize = 512;
/// Files fetched at a time: at first, at first where guesses have been right, and at most.
const FIRST: usize = 4;
const FIRST_TRUSTED: usize = 32;
const MOST: usize = 64;

/// Files of one kind in one directory.
#[derive(Debug, Default)]
struct Reading {
    files: u64,
    /// Size of the window, and files of it that have not been read.
    window: usize,
    left: usize,
    used: u64,
}

/// What is being read through.
#[derive(Debug, Default)]
pub struct Neighbours {
    directories: HashMap<PathKey, Reading>,
    clock: u64,
}

/// The kind of a file: the end of its name, with the dot.
pub fn kind(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => &name[dot..],
        _ => b"",
    }
}

impl Neighbours {
    /// A file is read for the first time; how many of those beside it are worth fetching. `trusted`: guesses have been
    /// right so far.
    pub fn read(&mut self, path: &RepoPath, trusted: bool) -> usize {
        let Some(directory) = path.parent() else { return 0 };
        self.clock += 1;
        if self.directories.len() >= MAX_DIRECTORIES {
            self.forget();
        }
        let mut key = directory.as_bytes().to_vec();
        key.push(0);
        key.extend_from_slice(kind(path.name()));
        let reading = self.directories.entry(PathKey::of(&key)).or_default();
        reading.files += 1;
        reading.used = self.clock;
        if reading.files == 1 && !trusted {
            return 0;
        }
        reading.left = reading.left.saturating_sub(1);
        if reading.left > reading.window / 2 {
            return 0;
        }
        reading.window = (reading.window * 2).clamp(if trusted { FIRST_TRUSTED } else { FIRST }, MOST);
        reading.left += reading.window;
        reading.window
    }

    /// Forgets the older half.
    fn forget(&mut self) {
        let mut ages: Vec<u64> = self.directories.values().map(|reading| reading.used).collect();
        let middle = ages.len() / 2;
        let limit = *ages.select_nth_unstable(middle).1;
        self.directories.retain(|_, reading| reading.used > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    #[test]
    fn a_window_opens_with_the_second_file_of_a_kind() {
        let mut neighbours = Neighbours::default();
        let mut read = |text: &str| neighbours.read(&path(text), false);
        assert_eq!([read("/d/a.pyc"), read("/d/b.so"), read("/e/c.pyc"), read("/d/README")], [0; 4]);
        assert_eq!([read("/d/d.pyc"), read("/d/e.pyc"), read("/d/f.pyc"), read("/d/f.so")], [4, 0, 8, 4]);
        let grown: Vec<usize> = (0..200).map(|n| read(&format!("/d/{n}.pyc"))).filter(|count| *count > 0).collect();
        assert_eq!(grown[..4], [16, 32, MOST, MOST]);
        // A window is never more than half again ahead of what is read.
        assert!(grown.iter().sum::<usize>() <= 200 + MOST + MOST / 2);
        assert_eq!(read("/"), 0);
    }

    #[test]
    fn trust_opens_it_with_the_first() {
        let mut neighbours = Neighbours::default();
        assert_eq!([neighbours.read(&path("/d/a"), true), neighbours.read(&path("/d/b"), true)], [FIRST_TRUSTED, 0]);
    }

    #[test]
    fn directories_out_of_use_are_forgotten() {
        let mut neighbours = Neighbours::default();
        for number in 0..100_000 {
            neighbours.read(&path(&format!("/{number}/a")), false);
        }
        assert!(neighbours.directories.len() <= MAX_DIRECTORIES);
        assert_eq!(neighbours.read(&path("/99999/b"), false), 4);
        assert_eq!(neighbours.read(&path("/0/b"), false), 0);
    }

    #[test]
    fn kinds_are_ends_of_names() {
        for (name, expected) in [("a.cpython-311.pyc", ".pyc"), ("a", ""), (".profile", ""), ("x.", "."), ("", "")] {
            assert_eq!(kind(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }
}
