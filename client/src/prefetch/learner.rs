//! Notices that something starts in a tree, and what that touches.
//!
//! A *tree* is the topmost catalog on the way to a file that holds files of its own: directories above it merely lead
//! to trees. It is known by its path, or by a name that somebody gave it, so that the next version of what is there
//! finds what this one has taught. A start begins with the first file that is opened in a tree, or the first after a long
//! pause, and is over after a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::catalog::counters::Counter;
use cvmfs::hash::ContentHash;
use cvmfs::path::RepoPath;
use cvmfs::startup::StartupList;

use super::learned::Learned;
use super::recorder::Recorder;
use crate::catalogs::Attached;

/// How long a start takes.
const START: Duration = Duration::from_secs(60);
/// After this time without a file being opened, the next one is a new start.
const PAUSE: Duration = Duration::from_secs(600);
/// Starts that are watched, trees that are known.
const MAX_STARTS: usize = 16;
const MAX_TREES: usize = 4096;

#[derive(Debug)]
struct Start {
    since: Instant,
    last: Instant,
    /// None when it is over.
    touched: Option<Recorder>,
}

/// What a start has touched, to be kept.
#[derive(Debug)]
pub struct Finished {
    learned: Arc<Learned>,
    key: Vec<u8>,
    list: StartupList,
}

impl Finished {
    /// Keeps it. Takes as long as the disk does.
    pub fn save(self) {
        self.learned.save(&self.key, &self.list);
    }
}

/// The starts that are going on.
#[derive(Debug)]
pub struct Learner {
    /// Where lists are kept; none when nothing is learned and starts are merely noticed.
    learned: Option<Arc<Learned>>,
    finished: Vec<Finished>,
    starts: HashMap<RepoPath, Start>,
    /// Which catalogs are those of trees.
    trees: HashMap<ContentHash, bool>,
    names: HashMap<RepoPath, String>,
}

impl Learner {
    /// Keeps what it learns in `learned`, if it is to learn.
    pub fn new(learned: Option<Learned>) -> Learner {
        Learner {
            learned: learned.map(Arc::new),
            finished: Vec::new(),
            starts: HashMap::new(),
            trees: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Knows the tree at `path` by a name from now on.
    pub fn name(&mut self, path: RepoPath, name: String) {
        if self.names.len() < MAX_TREES {
            self.names.insert(path, name);
        }
    }

    /// What is known about a start of a tree.
    pub fn load(&self, tree: &RepoPath) -> Option<StartupList> {
        self.learned.as_ref()?.load(self.key(tree))
    }

    fn key<'a>(&'a self, tree: &'a RepoPath) -> &'a [u8] {
        self.names.get(tree).map_or(tree.as_bytes(), |name| name.as_bytes())
    }

    /// The tree of a file with these catalogs on its way, the root first.
    fn tree(&mut self, way: &[Arc<Attached>]) -> Option<RepoPath> {
        for attached in way {
            if self.trees.len() >= MAX_TREES {
                self.trees.clear();
            }
            let is_tree = *self.trees.entry(attached.hash()).or_insert_with(|| {
                // Each nested catalog has a marker file at its root, and so has this one.
                let counted = attached.catalog().counters_and_missing().map(|(counters, _)| counters.own);
                counted.is_ok_and(|own| own[Counter::Regular] > own[Counter::Nested] + 1)
            });
            if is_tree {
                return Some(attached.mountpoint().clone());
            }
        }
        None
    }

    /// A file was opened; the tree, if this is the beginning of a start in it.
    pub fn opened(&mut self, way: &[Arc<Attached>], path: &RepoPath, size: u64, now: Instant) -> Option<RepoPath> {
        let tree = self.tree(way)?;
        let expired: Vec<RepoPath> =
            self.starts.iter().filter(|(_, s)| s.is_over(now)).map(|(t, _)| t.clone()).collect();
        expired.iter().for_each(|tree| self.finish(tree));
        if !self.starts.contains_key(&tree) && self.starts.len() >= MAX_STARTS {
            let oldest = self.starts.iter().min_by_key(|(_, start)| start.last).map(|(tree, _)| tree.clone());
            oldest.iter().for_each(|tree| {
                self.finish(tree);
                self.starts.remove(tree);
            });
        }
        let learns = self.learned.is_some();
        let begin = || Start { since: now, last: now, touched: learns.then(Recorder::default) };
        let mut begins = false;
        let start = self.starts.entry(tree.clone()).or_insert_with(|| {
            begins = true;
            begin()
        });
        if now.saturating_duration_since(start.last) > PAUSE {
            *start = begin();
            begins = true;
        }
        start.last = now;
        if let Some(touched) = &mut start.touched {
            touched.opened(path, size);
        }
        begins.then_some(tree)
    }

    /// A part of a file was read.
    pub fn read(&mut self, path: &RepoPath, offset: u64, length: u64) {
        let starts = self.starts.iter_mut().filter(|(tree, _)| tree.contains(path));
        starts.filter_map(|(_, start)| start.touched.as_mut()).for_each(|touched| touched.read(path, offset, length));
    }

    fn finish(&mut self, tree: &RepoPath) {
        let touched = self.starts.get_mut(tree).and_then(|start| start.touched.take());
        if let (Some(touched), Some(learned)) = (touched, &self.learned) {
            let key = self.key(tree).to_vec();
            self.finished.push(Finished { learned: learned.clone(), key, list: touched.below(tree) });
        }
    }

    /// What is to be kept by now.
    pub fn finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.finished)
    }

    /// Ends all starts.
    pub fn finish_all(&mut self) {
        let trees: Vec<RepoPath> = self.starts.keys().cloned().collect();
        trees.iter().for_each(|tree| self.finish(tree));
    }
}

impl Start {
    fn is_over(&self, now: Instant) -> bool {
        self.touched.is_some() && now.saturating_duration_since(self.since) > START
    }
}
