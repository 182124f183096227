//! What was touched, in order: each file once, of large files the parts that were read.
//!
//! A pure value, bounded as start-up lists are.

use std::collections::{HashMap, HashSet};

use cvmfs::path::RepoPath;
use cvmfs::startup::{MAX_FILES, MAX_PARTS, StartupList, Touched};

/// A record that is being made.
#[derive(Debug, Default)]
pub struct Recorder {
    files: Vec<Touched>,
    /// Where each path is in the list, and which parts of it are there.
    places: HashMap<RepoPath, (usize, HashSet<u64>)>,
}

impl Recorder {
    /// A file was opened.
    pub fn opened(&mut self, path: &RepoPath, size: u64) {
        if self.files.len() < MAX_FILES && !self.places.contains_key(path) {
            self.places.insert(path.clone(), (self.files.len(), HashSet::new()));
            self.files.push(Touched { path: path.clone(), size, parts: Vec::new() });
        }
    }

    /// A part of an open file was read.
    pub fn read(&mut self, path: &RepoPath, offset: u64, length: u64) {
        let Some((place, parts)) = self.places.get_mut(path) else { return };
        if parts.len() < MAX_PARTS && parts.insert(offset) {
            self.files[*place].parts.push((offset, length));
        }
    }

    /// What was touched below `base`, as a list about that directory.
    pub fn below(&self, base: &RepoPath) -> StartupList {
        let inside = self.files.iter().filter_map(|file| {
            let rest = file.path.as_bytes().strip_prefix(base.as_bytes()).filter(|rest| rest.starts_with(b"/"))?;
            Some(Touched { path: RepoPath::parse(rest).ok()?, ..file.clone() })
        });
        StartupList { files: inside.collect(), left_out: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    #[test]
    fn files_come_in_order_and_once() {
        let mut recorder = Recorder::default();
        for (name, size) in [("/t/b", 1), ("/t/a/big", 100), ("/other", 5), ("/t/b", 1), ("/tt/x", 1), ("/t", 0)] {
            recorder.opened(&path(name), size);
        }
        for (offset, length) in [(50, 25), (0, 50), (50, 25)] {
            recorder.read(&path("/t/a/big"), offset, length);
            recorder.read(&path("/unknown"), offset, length);
        }
        let list = recorder.below(&path("/t"));
        let shown: Vec<_> = list.files.iter().map(|f| (f.path.to_string(), f.size, f.parts.clone())).collect();
        assert_eq!(shown, [("/b".into(), 1, vec![]), ("/a/big".into(), 100, vec![(50, 25), (0, 50)])]);
        assert_eq!(recorder.below(&RepoPath::ROOT).files.len(), 5);
    }

    #[test]
    fn a_record_is_bounded() {
        let mut recorder = Recorder::default();
        (0..MAX_FILES + 1000).for_each(|number| recorder.opened(&path(&format!("/{number}")), 1));
        (0..MAX_PARTS as u64 + 10).for_each(|number| recorder.read(&path("/0"), number, 1));
        assert_eq!((recorder.files.len(), recorder.files[0].parts.len()), (MAX_FILES, MAX_PARTS));
    }
}
