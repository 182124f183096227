//! What each kind of work does.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use cvmfs::bundle;
use cvmfs::catalog::Row;
use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::path::RepoPath;
use cvmfs::startup::{self, StartupList, Touched};

use super::neighbours::kind;
use super::queue::{Job, Run};
use super::walk::Ask;
use super::workers::Failure;
use super::{SMALL, Shared};
use crate::catalogs::{AttachError, Attached, Side};
use crate::fetch::{Source, Wait, Want};
use crate::fs::file::{piece, whole};

/// Directories that are listed at a time for a walk.
const MOST_DIRECTORIES: usize = 64;

/// A path and what the catalog says about it.
pub(super) struct Found {
    pub(super) path: RepoPath,
    pub(super) entry: Entry,
    chunks: Vec<Chunk>,
}

impl Shared {
    pub(super) fn run(self: &Arc<Shared>, job: Job) -> Result<(), Failure> {
        match job {
            Job::Chunk(want) | Job::Part(want) => self.fetch(&want),
            Job::Catalog(path) => Ok(self.attached(&path, Side::Children, Wait::Ahead).map(drop)?),
            Job::Listed(run, index) => self.listed(&run, index),
            Job::Tree(tree) => self.tree(tree),
            Job::Bundle(path) => self.bundle(&path),
            Job::Walk(ask) => self.walk(ask),
            Job::Neighbours(path, count) => self.neighbours(&path, count),
            Job::Needs(path, file) => self.needs(&path, &file),
            Job::Need(need) => self.need(&need),
            Job::Guess(want) | Job::Step(want) => self.guess(&want).map(drop),
        }
    }

    fn fetch(&self, want: &Want) -> Result<(), Failure> {
        self.objects.fetch_ahead(want, None).map(drop).map_err(Failure::Fetch)
    }

    /// What a list says about a file.
    fn listed(self: &Arc<Shared>, run: &Run, index: usize) -> Result<(), Failure> {
        let file = &run.list.files[index];
        let mut found = None;
        for base in &run.bases {
            let Ok(path) = base.join_path(&file.path.as_bytes()[1..]) else { continue };
            // A name that is there hides those of the directories after this one.
            found = self.find(path, Wait::Ahead)?;
            if found.is_some() {
                break;
            }
        }
        let Some(found) = found else { return Ok(()) };
        let mut wants = wants(&found, &file.parts).into_iter().filter(|want| !self.objects.has(want));
        let Some(first) = wants.next() else { return Ok(()) };
        for want in wants {
            if run.spend(want.limit) {
                self.push(Job::Part(want));
            } else {
                self.objects.stats().ahead_left_out.add(1);
            }
        }
        if !run.spend(first.limit) {
            tracing::debug!(list = run.name, path = %found.path, "left out: the budget is spent");
            self.objects.stats().ahead_left_out.add(1);
            return Ok(());
        }
        self.fetch(&first)
    }

    /// A list that lies beside a tree, or else what was learned about it.
    fn tree(self: &Arc<Shared>, tree: RepoPath) -> Result<(), Failure> {
        let beside = tree.parent().map(|parent| parent.join([b".cvmfsstartup-", tree.name()].concat()));
        let published = match &beside {
            Some(path) => self.content(path, startup::MAX_BYTES, Wait::Ahead)?,
            None => None,
        };
        let list = match (published, &beside) {
            (Some(text), Some(path)) => match StartupList::parse(&text) {
                Ok(list) => Some(list),
                Err(error) => {
                    tracing::warn!(%path, %error, "ignored");
                    None
                }
            },
            _ => self.learner.lock().load(&tree),
        };
        if let Some(list) = list {
            self.start(tree.to_string(), list, vec![tree]);
        }
        Ok(())
    }

    pub(super) fn has_bundle(&self, path: &RepoPath) -> bool {
        let Some(bundle) = bundle::of(path) else { return false };
        let view = self.view.read().clone();
        let attached = view.revision.catalogs.find(&bundle, Side::Entry, Wait::No);
        attached.and_then(|attached| attached.lookup(&bundle)).is_ok_and(|row| row.is_some())
    }

    fn bundle(self: &Arc<Shared>, file: &RepoPath) -> Result<(), Failure> {
        let Some(path) = bundle::of(file) else { return Ok(()) };
        let Some(text) = self.content(&path, bundle::MAX_BYTES, Wait::Ahead)? else { return Ok(()) };
        match bundle::parse(&path, &text) {
            Ok(dependencies) => {
                let touched = |path| Touched { path, size: 0, parts: Vec::new() };
                let list = StartupList { files: dependencies.into_iter().map(touched).collect(), left_out: 0 };
                self.start(path.to_string(), list, vec![RepoPath::ROOT]);
            }
            Err(error) => tracing::warn!(%path, %error, "ignored"),
        }
        Ok(())
    }

    /// Adds files of the same kind that lie beside one, those after it first.
    fn neighbours(self: &Arc<Shared>, path: &RepoPath, count: usize) -> Result<(), Failure> {
        let Some(directory) = path.parent() else { return Ok(()) };
        let attached = self.attached(&directory, Side::Children, Wait::Ahead)?;
        let mut rows: Vec<Entry> = attached
            .list(&directory)?
            .into_iter()
            .map(|row| row.entry)
            .filter(|entry| is_like(entry, path.name()))
            .collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        let after = rows.partition_point(|entry| entry.name.as_slice() <= path.name());
        rows.rotate_left(after);
        let wants = rows.iter().filter_map(|entry| whole(&directory.join(&entry.name), entry));
        for want in wants.filter(|want| !self.objects.has(want)).take(count) {
            self.push(Job::Guess(want));
        }
        Ok(())
    }

    /// Finds the next files of a walk, and has them fetched if it is one.
    fn walk(self: &Arc<Shared>, ask: Ask) -> Result<(), Failure> {
        let Some(mut course) = self.walks.lock().follow(ask.walk) else { return Ok(()) };
        let wait = if ask.fetch { Wait::Ahead } else { Wait::No };
        let (mut files, mut guesses, mut bytes, mut directories) = (Vec::new(), Vec::new(), 0, 0);
        let mut list = |directory: &RepoPath| {
            directories += 1;
            if directories > MOST_DIRECTORIES {
                return Err(AttachError::WouldBlock);
            }
            self.attached(directory, Side::Children, wait)?.list(directory)
        };
        while files.len() < ask.files && bytes < ask.bytes {
            let (path, row) = match course.next(&mut list) {
                Ok(Some(found)) => found,
                Ok(None) | Err(AttachError::WouldBlock) => break,
                Err(error) => {
                    self.walks.lock().lost(ask.walk);
                    return Err(error.into());
                }
            };
            let chunks =
                if is_chunked(&row) { self.attached(&path, Side::Entry, wait)?.chunks(&row)? } else { Vec::new() };
            let mut wants = all(&Found { path: path.clone(), entry: row.entry, chunks });
            wants.retain(|want| want.source == Source::Store && want.limit <= ask.bytes && !self.objects.has(want));
            let mut size = 0;
            for want in wants {
                // Who reads a large file has the rest of it fetched.
                if size > 0 && size + want.limit > ask.bytes {
                    break;
                }
                size += want.limit;
                guesses.push(want);
            }
            if size > 0 {
                files.push((path.key(), size));
                bytes += size;
            }
        }
        self.walks.lock().found(ask.walk, course, &files);
        if ask.fetch {
            guesses.into_iter().for_each(|want| self.push(Job::Step(want)));
        }
        Ok(())
    }

    /// Fetches what nobody has asked for, unless too much was guessed in vain.
    pub(super) fn guess(&self, want: &Want) -> Result<Option<Arc<File>>, Failure> {
        let Some(guess) = self.objects.ledger().guess(want.limit, self.limits.waste) else {
            self.objects.stats().ahead_left_out.add(1);
            return Ok(None);
        };
        self.objects.fetch_ahead(want, Some(guess)).map(Some).map_err(Failure::Fetch)
    }

    pub(super) fn attached(&self, path: &RepoPath, side: Side, wait: Wait) -> Result<Arc<Attached>, AttachError> {
        let view = self.view.read().clone();
        view.revision.catalogs.find(path, side, wait)
    }

    pub(super) fn find(&self, path: RepoPath, wait: Wait) -> Result<Option<Found>, AttachError> {
        let attached = self.attached(&path, Side::Entry, wait)?;
        let Some(row) = attached.lookup(&path)? else { return Ok(None) };
        let chunks = if is_chunked(&row) { attached.chunks(&row)? } else { Vec::new() };
        Ok(Some(Found { path, entry: row.entry, chunks }))
    }

    /// Content of a small file of the repository; none if there is no such file, or it is longer.
    pub(super) fn content(&self, path: &RepoPath, most: u64, wait: Wait) -> Result<Option<Vec<u8>>, Failure> {
        let Some(found) = self.find(path.clone(), wait)? else { return Ok(None) };
        let Found { entry, chunks, .. } = found;
        if entry.file_type() != FileType::Regular || entry.size > most {
            return Ok(None);
        }
        let wants: Vec<Want> = match chunks.is_empty() {
            true => whole(path, &entry).into_iter().collect(),
            false => chunks.iter().map(|chunk| piece(path, &entry, chunk)).collect(),
        };
        let mut text = Vec::new();
        for want in wants {
            let Some(file) = self.objects.open(&want, wait).map_err(Failure::Fetch)? else { return Ok(None) };
            let start = text.len();
            text.resize(start + file.metadata().map_or(0, |m| m.len() as usize), 0);
            file.read_exact_at(&mut text[start..], 0).map_err(Failure::Read)?;
        }
        Ok(Some(text))
    }
}

fn is_chunked(row: &Row) -> bool {
    row.entry.flags.is_chunked() && row.entry.file_type() == FileType::Regular
}

/// Whether an entry is a small file of the same kind.
fn is_like(entry: &Entry, name: &[u8]) -> bool {
    entry.file_type() == FileType::Regular
        && entry.content.is_some()
        && entry.size <= SMALL
        && !(entry.flags.is_chunked() || entry.flags.is_external() || entry.flags.is_hidden())
        && kind(&entry.name) == kind(name)
        && entry.name != name
}

/// The objects of a file.
pub(super) fn all(found: &Found) -> Vec<Want> {
    wants(found, &[])
}

/// The objects of a file that a list asks for, in its order; all of them if it names no parts.
fn wants(found: &Found, parts: &[(u64, u64)]) -> Vec<Want> {
    let Found { path, entry, chunks } = found;
    if entry.file_type() != FileType::Regular {
        return Vec::new();
    }
    if chunks.is_empty() {
        return whole(path, entry).into_iter().collect();
    }
    let mut order: Vec<usize> = Vec::new();
    for (offset, length) in parts {
        let end = offset.saturating_add(*length);
        let touched =
            chunks.iter().enumerate().filter(|(_, c)| c.offset < end && c.offset.saturating_add(c.size) > *offset);
        touched.for_each(|(number, _)| {
            if !order.contains(&number) {
                order.push(number);
            }
        });
    }
    if parts.is_empty() {
        order = (0..chunks.len()).collect();
    }
    order.into_iter().map(|number| piece(path, entry, &chunks[number])).collect()
}
