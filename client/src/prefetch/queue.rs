//! What waits to be fetched ahead, the most certain first.
//!
//! A pure value. Each kind of work has its bound; what does not fit is left out and counted by whoever adds it, never
//! waited for. Lists are not copied into the queue: each is walked in order, several in turn, and what one file of a
//! list turns into goes before the next file.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cvmfs::path::RepoPath;
use cvmfs::startup::StartupList;

use super::needs::{MOST_STEPS, Need};
use super::walk::Ask;
use crate::fetch::Want;

/// Objects of files that are being read in order.
const MAX_CHUNKS: usize = 256;
/// Lists and bundles that are being fetched at the same time.
const MAX_RUNS: usize = 16;
/// Parts of listed files.
const MAX_PARTS: usize = 8192;
/// Files to look into, which are kept open.
const MAX_LOOKS: usize = 64;
/// Files that others name.
const MAX_NEEDS: usize = 4096;
/// Everything else.
const MAX_GUESSES: usize = 4096;

/// A list that is being fetched.
#[derive(Debug)]
pub struct Run {
    /// What the log calls it.
    pub name: String,
    /// The list.
    pub list: StartupList,
    /// Directories below which its paths are looked for; the first that has one of that name counts.
    pub bases: Vec<RepoPath>,
    /// Bytes that it may still fetch.
    left: AtomicU64,
}

impl Run {
    /// A run over `list` that fetches at most `budget` bytes.
    pub fn new(name: String, list: StartupList, bases: Vec<RepoPath>, budget: u64) -> Run {
        Run { name, list, bases, left: AtomicU64::new(budget) }
    }

    /// Takes `bytes` from the budget; whether they were there.
    pub fn spend(&self, bytes: u64) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// One thing to do ahead.
#[derive(Debug)]
pub enum Job {
    /// Fetch the next object of a file that is read in order.
    Chunk(Want),
    /// Attach the catalog that has what is in this directory.
    Catalog(RepoPath),
    /// Fetch an object of a listed file.
    Part(Want),
    /// Look up a file of a list and fetch it.
    Listed(Arc<Run>, usize),
    /// Read what is known about a start of this tree.
    Tree(RepoPath),
    /// Read the bundle of this file.
    Bundle(RepoPath),
    /// Fetch so many files that lie beside this one.
    Neighbours(RepoPath, usize),
    /// Find the next files of a tree that may be read through.
    Walk(Ask),
    /// Look for what this file names, which was read just now.
    Needs(RepoPath, Arc<File>),
    /// Fetch a file that another one names.
    Need(Need),
    /// Fetch a file that may be wanted.
    Guess(Want),
    /// Fetch a file of a tree that is being read through.
    Step(Want),
}

/// Work that waits.
#[derive(Debug, Default)]
pub struct Queue {
    chunks: VecDeque<Job>,
    parts: VecDeque<Job>,
    /// Lists, and the file of each that is next.
    runs: VecDeque<(Arc<Run>, usize)>,
    looks: VecDeque<Job>,
    /// What files name, by how far it is from one that was read. The names of the last file that was looked into come
    /// first: who reads a file with names goes into depth.
    needs: [VecDeque<Job>; MOST_STEPS as usize],
    guesses: VecDeque<Job>,
    /// Files of trees that are being read through: who takes one says how many may be fetched at the same time.
    steps: VecDeque<Job>,
}

impl Queue {
    /// Adds a job; whether there was room for it.
    pub fn push(&mut self, job: Job) -> bool {
        let (queue, most) = match job {
            Job::Chunk(_) => (&mut self.chunks, MAX_CHUNKS),
            Job::Catalog(_) | Job::Part(_) | Job::Listed(..) => (&mut self.parts, MAX_PARTS),
            Job::Needs(..) => (&mut self.looks, MAX_LOOKS),
            Job::Need(ref need) => (&mut self.needs[usize::from(need.steps() - 1)], MAX_NEEDS),
            Job::Step(_) => (&mut self.steps, MAX_GUESSES),
            Job::Tree(_) | Job::Bundle(_) | Job::Walk(_) | Job::Neighbours(..) | Job::Guess(_) => {
                (&mut self.guesses, MAX_GUESSES)
            }
        };
        let fits = queue.len() < most;
        match job {
            // What leads to a list is as urgent as the list, and a walk does not wait.
            Job::Tree(_) | Job::Bundle(_) | Job::Walk(_) | Job::Need(_) if fits => queue.push_front(job),
            job if fits => queue.push_back(job),
            _ => {}
        }
        fits
    }

    /// Adds a list; whether there was room for it.
    pub fn push_run(&mut self, run: Arc<Run>) -> bool {
        let fits = self.runs.len() < MAX_RUNS;
        if fits {
            self.runs.push_back((run, 0));
        }
        fits
    }

    /// The next thing to do; `walks`: whether that may be a step.
    pub fn pop(&mut self, walks: bool) -> Option<Job> {
        let first = self.pop_look().or_else(|| self.chunks.pop_front()).or_else(|| self.parts.pop_front());
        if first.is_some() {
            return first;
        }
        while let Some((run, next)) = self.runs.pop_front() {
            if next < run.list.files.len() {
                self.runs.push_back((run.clone(), next + 1));
                return Some(Job::Listed(run, next));
            }
        }
        let guess = self.needs.iter_mut().find_map(VecDeque::pop_front).or_else(|| self.guesses.pop_front());
        guess.or_else(|| walks.then(|| self.steps.pop_front()).flatten())
    }

    /// The next file to look into, which takes no time on the network.
    pub fn pop_look(&mut self) -> Option<Job> {
        self.looks.pop_front()
    }

    /// Whether a list is being fetched.
    pub fn has_lists(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Steps that wait.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Jobs and files of lists that wait.
    pub fn count(&self) -> usize {
        let listed = self.runs.iter().map(|(run, next)| run.list.files.len() - next).sum::<usize>();
        self.chunks.len()
            + self.parts.len()
            + listed
            + self.looks.len()
            + self.needs.iter().map(VecDeque::len).sum::<usize>()
            + self.guesses.len()
            + self.steps.len()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
    use cvmfs::object::Compression;
    use cvmfs::startup::Touched;

    use super::*;

    pub(in crate::prefetch) fn want(number: u64) -> Want {
        let hash = ContentHash::of(Algorithm::Sha1, &number.to_le_bytes());
        Want::sized(hash.object(ObjectKind::File), Compression::Zlib, number)
    }

    fn run(name: &str, files: usize, budget: u64) -> Arc<Run> {
        let file = |number| Touched { path: RepoPath::parse(format!("/{number}")).unwrap(), size: 1, parts: vec![] };
        let list = StartupList { files: (0..files).map(file).collect(), left_out: 0 };
        Arc::new(Run::new(name.into(), list, vec![RepoPath::ROOT], budget))
    }

    fn shown(job: Job) -> String {
        match job {
            Job::Listed(run, index) => format!("{}{index}", run.name),
            Job::Chunk(want) => format!("chunk{}", want.limit),
            Job::Part(want) => format!("part{}", want.limit),
            Job::Guess(want) => format!("guess{}", want.limit),
            Job::Step(want) => format!("step{}", want.limit),
            Job::Walk(ask) => format!("walk{}", ask.walk),
            Job::Need(need) => need.path().to_string(),
            Job::Neighbours(path, _)
            | Job::Needs(path, _)
            | Job::Tree(path)
            | Job::Bundle(path)
            | Job::Catalog(path) => path.to_string(),
        }
    }

    #[test]
    fn the_most_certain_comes_first_and_lists_take_turns() {
        let mut queue = Queue::default();
        let path = |text: &str| RepoPath::parse(text).unwrap();
        queue.push(Job::Step(want(5)));
        queue.push(Job::Guess(want(1)));
        queue.push(Job::Neighbours(path("/near"), 3));
        queue.push_run(run("a", 3, 0));
        queue.push_run(run("b", 1, 0));
        queue.push_run(run("empty", 0, 0));
        queue.push(Job::Part(want(2)));
        queue.push(Job::Chunk(want(3)));
        queue.push(Job::Tree(path("/tree")));
        for (name, steps) in [("/far", 2), ("/early", 1), ("/late", 1)] {
            queue.push(Job::Need(Need::of(path(name), want(4), steps)));
        }
        queue.push(Job::Needs(path("/read"), Arc::new(tempfile::tempfile().unwrap())));
        assert_eq!(queue.count(), 14);
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(false)).map(shown).collect();
        assert_eq!(
            order,
            ["/read", "chunk3", "part2", "a0", "b0", "a1", "a2", "/late", "/early", "/far", "/tree", "guess1", "/near"]
        );
        assert_eq!((queue.count(), queue.steps()), (1, 1));
        assert_eq!(queue.pop(true).map(shown).as_deref(), Some("step5"));
        assert_eq!(queue.count(), 0);
    }

    #[test]
    fn every_kind_of_work_is_bounded() {
        let mut queue = Queue::default();
        let mut taken = |job: fn(Want) -> Job| (0..20_000).filter(|n| queue.push(job(want(*n)))).count();
        assert_eq!(taken(Job::Chunk), MAX_CHUNKS);
        assert_eq!(taken(Job::Part), MAX_PARTS);
        assert_eq!(taken(Job::Guess), MAX_GUESSES);
        assert_eq!(taken(Job::Step), MAX_GUESSES);
        let list = run("a", 10, 0);
        assert_eq!((0..100).filter(|_| queue.push_run(list.clone())).count(), MAX_RUNS);
    }

    #[test]
    fn a_budget_is_spent_and_no_more() {
        let run = run("a", 1, 100);
        assert!(run.spend(60) && !run.spend(41) && run.spend(40) && !run.spend(1) && run.spend(0));
        assert!(!run.spend(u64::MAX));
    }
}
