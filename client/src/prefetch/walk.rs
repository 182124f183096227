//! Trees that are being read through, as `tar`, `cp -a` or a search does: what comes next can be told.
//!
//! ```text
//!  a/ ── 1, 2, 3 ── b/ ── 4, 5 ── c/ ── 6        3 was read: 4, 5 and 6 are expected
//!        read       └──── window ────┘
//! ```
//!
//! Pure values. Who walks lists a directory, reads its files in the order of the listing, and goes on with the
//! directories in it, or does both in one order. So the first file of a listed directory that is not in the cache begins
//! a walk, which merely expects the next few files. When most of those are read it is one: a window opens over what
//! comes next, and doubles each time half of it has been read. Files that are passed over count as unread for a while,
//! so the window of somebody who picks his files does not move on.

use std::collections::{HashMap, HashSet, VecDeque};

use cvmfs::catalog::Row;
use cvmfs::path::{PathKey, RepoPath};

/// Directories known to have been listed.
const MAX_LISTED: usize = 1 << 14;
/// Walks that are watched.
const MAX_WALKS: usize = 8;
/// Files that are expected of what may be a walk, and how many of them have to be read.
const EXPECTED: usize = 4;
const PROOF: usize = 3;
/// Files of a window, at first and at most, and their bytes.
const FIRST: usize = 8;
const MOST: usize = 256;
const MOST_BYTES: u64 = 32 << 20;
/// So many files behind the last one that was read, one that was not is passed over.
const PASSED: u64 = 64;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 1 << 16;

/// What a walk wants to know: the next files of its course.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which walk.
    pub walk: u64,
    /// How many files.
    pub files: usize,
    /// How many bytes they may have, unless it is one file.
    pub bytes: u64,
    /// Whether they are worth fetching.
    pub fetch: bool,
}

#[derive(Debug)]
struct Walk {
    number: u64,
    /// Directory that it began in.
    directory: PathKey,
    /// None while somebody follows it.
    course: Option<Course>,
    /// Files that should be read next: their places in the course, and their sizes.
    expected: HashMap<PathKey, (u64, u64)>,
    bytes: u64,
    /// Files of its course so far.
    passed: u64,
    read: usize,
    /// Files of the window; none as long as it may be no walk.
    window: usize,
    used: u64,
}

/// What is being read through.
#[derive(Debug, Default)]
pub struct Walks {
    listed: HashSet<PathKey>,
    walks: Vec<Walk>,
    clock: u64,
}

impl Walks {
    /// A directory was listed.
    pub fn listed(&mut self, directory: &RepoPath) {
        if self.listed.len() >= MAX_LISTED {
            self.listed.clear();
        }
        self.listed.insert(directory.key());
    }

    /// A file is read for the first time, in a catalog mounted at `top`; what is to be found out now, if anything.
    /// Whether the file belongs to a walk is told by [`Walks::expects`] before.
    pub fn read(&mut self, path: &RepoPath, top: impl FnOnce() -> RepoPath) -> Option<Ask> {
        self.clock += 1;
        let key = path.key();
        if let Some(walk) = self.walks.iter_mut().find(|walk| walk.expected.contains_key(&key)) {
            walk.used = self.clock;
            return walk.read(key);
        }
        let directory = path.parent()?.key();
        if !self.listed.contains(&directory) {
            return None;
        }
        let begun = self.walks.iter().find(|walk| walk.window == 0 && walk.directory == directory);
        if begun.is_some_and(|walk| walk.course.is_none()) {
            return None;
        }
        self.walks.retain(|walk| walk.window > 0 || walk.directory != directory);
        if self.walks.len() >= MAX_WALKS {
            let oldest = self.walks.iter().map(|walk| walk.used).min()?;
            self.walks.retain(|walk| walk.used > oldest);
        }
        let (number, course) = (self.clock, Course::after(path.clone(), top()));
        let walk = Walk {
            number,
            directory,
            course: Some(course),
            expected: HashMap::new(),
            bytes: 0,
            passed: 0,
            read: 0,
            window: 0,
            used: self.clock,
        };
        self.walks.push(walk);
        Some(Ask { walk: number, files: EXPECTED, bytes: u64::MAX, fetch: false })
    }

    /// Whether this file is in the window of a walk.
    pub fn expects(&self, path: &RepoPath) -> bool {
        !self.walks.is_empty() && {
            let key = path.key();
            self.walks.iter().any(|walk| walk.window > 0 && walk.expected.contains_key(&key))
        }
    }

    /// The course of a walk, for whoever follows it; none if the walk is over or somebody does.
    pub fn follow(&mut self, walk: u64) -> Option<Course> {
        self.walks.iter_mut().find(|other| other.number == walk)?.course.take()
    }

    /// These files, with their sizes, were found on it; none: it has ended.
    pub fn found(&mut self, walk: u64, course: Course, files: &[(PathKey, u64)]) {
        let Some(at) = self.walks.iter().position(|other| other.number == walk) else { return };
        let walk = &mut self.walks[at];
        walk.course = Some(course);
        for (key, bytes) in files {
            walk.passed += 1;
            if walk.expected.insert(*key, (walk.passed, *bytes)).is_none() {
                walk.bytes += bytes;
            }
        }
        if walk.expected.is_empty() {
            self.walks.swap_remove(at);
        }
    }

    /// A walk can't be followed any further.
    pub fn lost(&mut self, walk: u64) {
        self.walks.retain(|other| other.number != walk);
    }
}

impl Walk {
    fn read(&mut self, key: PathKey) -> Option<Ask> {
        let (place, bytes) = self.expected.remove(&key)?;
        self.bytes -= bytes;
        self.read += 1;
        let dropped = &mut self.bytes;
        self.expected.retain(|_, (other, bytes)| {
            let stays = *other + PASSED >= place;
            *dropped -= if stays { 0 } else { *bytes };
            stays
        });
        let is_time = match self.window {
            0 => self.read >= PROOF,
            window => self.expected.len() <= window / 2 && self.bytes <= MOST_BYTES / 2,
        };
        if !is_time || self.course.is_none() {
            return None;
        }
        self.window = (self.window * 2).clamp(FIRST, MOST);
        let files = self.window.saturating_sub(self.expected.len());
        Some(Ask { walk: self.number, files, bytes: MOST_BYTES.saturating_sub(self.bytes), fetch: true })
    }
}

/// The files that come after one, directory by directory: those of a directory before the directories in it.
#[derive(Debug)]
pub struct Course {
    /// It does not leave this directory.
    top: RepoPath,
    /// What it began with, or the directory of the first level.
    below: RepoPath,
    begun: bool,
    levels: Vec<Level>,
}

/// What of a directory lies ahead.
#[derive(Debug)]
struct Level {
    path: RepoPath,
    files: VecDeque<Row>,
    directories: VecDeque<Vec<u8>>,
}

impl Level {
    fn new(path: RepoPath, rows: impl Iterator<Item = Row>) -> Level {
        let mut level = Level { path, files: VecDeque::new(), directories: VecDeque::new() };
        for row in rows.take(MAX_ENTRIES).filter(|row| !row.entry.flags.is_hidden() && !row.entry.name.is_empty()) {
            if row.entry.is_directory() {
                level.directories.push_back(row.entry.name);
            } else {
                level.files.push_back(row);
            }
        }
        level
    }
}

impl Course {
    /// What comes after `file`, within `top`.
    pub fn after(file: RepoPath, top: RepoPath) -> Course {
        Course { top, below: file, begun: false, levels: Vec::new() }
    }

    /// The next entry that is no directory, with its path; `list` gives the entries of a directory. After an error it goes
    /// on where it was.
    pub fn next<E>(
        &mut self,
        list: &mut impl FnMut(&RepoPath) -> Result<Vec<Row>, E>,
    ) -> Result<Option<(RepoPath, Row)>, E> {
        loop {
            let Some(level) = self.levels.last_mut() else {
                let is_inside = self.below != self.top && self.top.contains(&self.below);
                let Some(path) = self.below.parent().filter(|_| is_inside) else { return Ok(None) };
                self.levels.push(self.rest(&path, list(&path)?));
                (self.below, self.begun) = (path, true);
                continue;
            };
            if let Some(row) = level.files.pop_front() {
                return Ok(Some((level.path.join(&row.entry.name), row)));
            }
            match level.directories.front() {
                Some(name) => {
                    let path = level.path.join(name);
                    let rows = list(&path)?;
                    level.directories.pop_front();
                    self.levels.push(Level::new(path, rows.into_iter()));
                }
                None => drop(self.levels.pop()),
            }
        }
    }

    /// What comes behind the place where it came from.
    fn rest(&self, path: &RepoPath, rows: Vec<Row>) -> Level {
        let from = self.below.name();
        let at = rows.iter().position(|row| row.entry.name == from).map_or(0, |at| at + 1);
        // Who reads files first has all directories ahead of him, and nobody has read any of them before the first file.
        let behind =
            |(number, row): (usize, Row)| (number >= at || (!self.begun && row.entry.is_directory())).then_some(row);
        Level::new(path.clone(), rows.into_iter().enumerate().filter_map(behind))
    }
}

#[cfg(test)]
mod tests {
    use cvmfs::entry::{Entry, Meta};

    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::parse(text).unwrap()
    }

    /// Rows of a directory among files with these paths, by name.
    fn list(files: &[&str], directory: &RepoPath) -> Vec<Row> {
        let meta = Meta { permissions: 0o755, uid: 0, gid: 0, mtime: 0, mtime_ns: None };
        let mut rows: Vec<Row> = Vec::new();
        for file in files.iter().map(|file| path(file)).filter(|file| directory.contains(file)) {
            let rest = &file.as_bytes()[directory.as_bytes().len() + 1..];
            let name = rest.split(|byte| *byte == b'/').next().unwrap();
            let entry = match name.len() == rest.len() {
                true => Entry::symlink(name, meta, "x"),
                false => Entry::directory(name, meta),
            };
            if !rows.iter().any(|row| row.entry.name == name) {
                let path = directory.join(name);
                rows.push(Row { rowid: 0, key: path.key(), parent: directory.key(), entry });
            }
        }
        rows
    }

    fn rest(files: &[&str], after: &str, top: &str) -> Vec<String> {
        let mut course = Course::after(path(after), path(top));
        let mut list = |directory: &RepoPath| Ok::<_, ()>(list(files, directory));
        std::iter::from_fn(|| course.next(&mut list).unwrap()).map(|(path, _)| path.to_string()).collect()
    }

    const TREE: [&str; 9] =
        ["/t/1", "/t/a/1", "/t/a/2", "/t/a/in/1", "/t/a/in/out/1", "/t/b/1", "/t/c", "/t/d/1", "/u/1"];

    #[test]
    fn a_course_goes_through_a_tree_and_does_not_leave_it() {
        assert_eq!(
            rest(&TREE, "/t/1", "/t"),
            ["/t/c", "/t/a/1", "/t/a/2", "/t/a/in/1", "/t/a/in/out/1", "/t/b/1", "/t/d/1"]
        );
        assert_eq!(rest(&TREE, "/t/a/1", "/t"), ["/t/a/2", "/t/a/in/1", "/t/a/in/out/1", "/t/c", "/t/b/1", "/t/d/1"]);
        assert_eq!(rest(&TREE, "/t/a/in/out/1", "/t/a/in"), [""; 0]);
        assert_eq!(rest(&TREE, "/t/d/1", ""), ["/u/1"]);
        assert_eq!(rest(&TREE, "/gone/1", "/t"), [""; 0]);
    }

    #[test]
    fn a_course_goes_on_where_a_listing_failed() {
        let mut course = Course::after(path("/t/a/2"), path("/t"));
        let mut found = Vec::new();
        for round in 0.. {
            let mut listed = 0;
            let mut list = |directory: &RepoPath| {
                listed += 1;
                // Each time one further.
                if listed > 1 { Err(()) } else { Ok(list(&TREE, directory)) }
            };
            loop {
                match course.next(&mut list) {
                    Ok(Some((path, _))) => found.push(path.to_string()),
                    Ok(None) => {
                        assert_eq!(found, ["/t/a/in/1", "/t/a/in/out/1", "/t/c", "/t/b/1", "/t/d/1"]);
                        return;
                    }
                    Err(()) => break,
                }
            }
            assert!(round < 10, "{found:?}");
        }
    }

    /// Reads files of a listed directory in this order; the numbers of files that were to be fetched, and how many of
    /// them were not read.
    fn window(order: impl Iterator<Item = u32>) -> (Vec<usize>, usize) {
        let file = |number: u32| path(&format!("/d/{number}"));
        let mut walks = Walks::default();
        walks.listed(&path("/d"));
        let (mut asked, mut next) = (Vec::new(), 0);
        for number in order {
            let Some(ask) = walks.read(&file(number), || RepoPath::ROOT) else { continue };
            let course = walks.follow(ask.walk).unwrap();
            assert!(walks.follow(ask.walk).is_none(), "two follow the same walk");
            next = if ask.fetch { next } else { number + 1 };
            let files: Vec<_> = (next..).take(ask.files).map(|number| (file(number).key(), 10)).collect();
            next += ask.files as u32;
            walks.found(ask.walk, course, &files);
            asked.extend(ask.fetch.then_some(ask.files));
        }
        (asked, walks.walks.iter().map(|walk| walk.expected.len()).sum())
    }

    #[test]
    fn who_reads_one_after_another_walks() {
        let (asked, left) = window(0..4000);
        // One of the four that were merely expected is left when the window opens, and half of each is read.
        assert_eq!(asked[..6], [FIRST - 1, 12, 24, 48, 96, 192]);
        assert!(asked[6..].iter().all(|files| *files == MOST / 2), "{asked:?}");
        assert!(left <= MOST);
    }

    #[test]
    fn who_picks_does_not() {
        assert_eq!(window((0..4000).map(|number| number * 2)), (vec![], 4));
        assert_eq!(window((0..4000).rev()), (vec![], 4));
        // One that is left out now and then is passed over, and makes no window narrow for ever.
        let (asked, _) = window((0..4000).filter(|number| number % 10 != 9));
        assert!(asked.iter().sum::<usize>() > 3900, "{asked:?}");
        // Who changes his mind has nothing more fetched.
        let (asked, left) = window((0..100).chain((1000..2000).map(|number| number * 7)));
        assert!(asked.iter().sum::<usize>() < 300 && left < 300, "{asked:?} {left}");
    }

    #[test]
    fn who_has_not_listed_a_directory_does_not_walk() {
        let mut walks = Walks::default();
        let mut read = |number: u32| walks.read(&path(&format!("/d/{number}")), || RepoPath::ROOT);
        assert!((0..100).all(|number| read(number).is_none()));
    }

    #[test]
    fn large_files_open_a_window_of_few() {
        let mut walks = Walks::default();
        walks.listed(&path("/d"));
        let file = |number: u32| path(&format!("/d/{number}"));
        let begun = walks.read(&file(0), || RepoPath::ROOT).unwrap();
        let course = walks.follow(begun.walk).unwrap();
        let large = |numbers: std::ops::Range<u32>| numbers.map(|n| (file(n).key(), 10 << 20)).collect::<Vec<_>>();
        walks.found(begun.walk, course, &large(1..5));
        let asks: Vec<Ask> = (1..5).filter_map(|number| walks.read(&file(number), || RepoPath::ROOT)).collect();
        let walk = begun.walk;
        let first = Ask { walk, files: FIRST - 1, bytes: MOST_BYTES - (10 << 20), fetch: true };
        assert_eq!(asks, [first, Ask { files: FIRST * 2, bytes: MOST_BYTES, ..first }]);
    }

    #[test]
    fn what_is_watched_is_bounded() {
        let mut walks = Walks::default();
        for number in 0..3 * MAX_LISTED {
            let directory = path(&format!("/{number}"));
            walks.listed(&directory);
            assert!(walks.read(&directory.join("file"), || RepoPath::ROOT).is_some());
            assert!(walks.walks.len() <= MAX_WALKS && walks.listed.len() <= MAX_LISTED);
        }
        let last = walks.clock;
        let course = walks.follow(last).unwrap();
        walks.found(last, course, &[]);
        assert!(walks.follow(last).is_none(), "a walk that has ended is watched");
    }
}
