//! From root catalogs to everything they refer to.
//!
//! Threads take catalogs from one stack; each catalog is read once, however many revisions share it. Deepest first, so
//! the stack holds the siblings on the way down and no more.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::marks::{Marker, Marks};
use super::roots::{Demand, KeptRoot, Roots, is_missing, unreadable};
use super::{GcError, Options};
use crate::catalog::{CatalogError, NestedRef};
use crate::hash::{ContentHash, ObjectKind};
use crate::reflog::Ref;
use crate::repository::Repository;
use crate::traversal::{Loaded, Loader};

/// What marking found.
pub(super) struct Reach {
    pub(super) kept: Vec<KeptRoot>,
    pub(super) missing: Vec<KeptRoot>,
    pub(super) forgotten: Vec<Ref>,
    pub(super) catalogs: u64,
}

/// Marks everything that stays.
pub(super) fn mark(repository: &Repository, options: &Options<'_>, marks: &Marks) -> Result<Reach, GcError> {
    let loader = Loader::new(&**repository.store(), options.scratch);
    let mut roots = Roots::new(repository, options, loader)?;
    let walk = Walk { loader, options, marks, state: Mutex::default(), change: Condvar::new() };
    let mut marker = marks.marker();
    roots.find(|catalog, root| {
        walk.state().seen.insert(root.hash);
        walk.enter(catalog, root, &mut marker)
    })?;
    walk.run(Demand::Whole)?;
    // Last, since a catalog that was reached already is not asked for again.
    for root in std::mem::take(&mut roots.unlisted) {
        if walk.state().seen.insert(root.hash) {
            let catalog = roots.load(&root).map_err(|e| unreadable(&root, e))?;
            walk.enter(&catalog, &root, &mut marker)?;
        }
    }
    walk.run(Demand::WhatIsThere)?;
    let (stay, forgotten) = roots.sort_refs();
    for id in stay {
        marker.mark(id).map_err(|e| walk.scratch(e))?;
    }
    marker.flush().map_err(|e| walk.scratch(e))?;
    let catalogs = walk.state().seen.len() as u64;
    Ok(Reach { kept: roots.kept, missing: roots.missing, forgotten, catalogs })
}

struct Walk<'a> {
    loader: Loader<'a>,
    options: &'a Options<'a>,
    marks: &'a Marks,
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    /// Catalogs that were read or wait.
    seen: HashSet<ContentHash>,
    waiting: Vec<(NestedRef, KeptRoot)>,
    /// Threads that may still add to what waits.
    busy: usize,
    error: Option<GcError>,
}

impl Walk<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scratch(&self, source: std::io::Error) -> GcError {
        GcError::Scratch { directory: self.options.scratch.to_owned(), source }
    }

    /// Marks what one catalog refers to; the catalogs below it wait.
    fn enter(&self, catalog: &Loaded, root: &KeptRoot, marker: &mut Marker<'_>) -> Result<(), GcError> {
        let hash = catalog.reference().hash;
        let mark = |marker: &mut Marker<'_>, id| marker.mark(id).map_err(|e| self.scratch(e));
        mark(marker, hash.object(ObjectKind::Catalog))?;
        let broken =
            |source: CatalogError| GcError::Catalog { root: root.why.clone(), catalog: hash, source: Box::new(source) };
        catalog.objects(|id| mark(marker, id).map_err(Visit::Gc)).map_err(|e| match e {
            Visit::Gc(error) => error,
            Visit::Catalog(error) => broken(error),
        })?;
        let mut below = catalog.nested_all().map_err(broken)?;
        below.extend(catalog.bind_mountpoints().map_err(broken)?);
        let mut state = self.state();
        for reference in below {
            if state.seen.insert(reference.hash) {
                state.waiting.push((reference, root.clone()));
            }
        }
        self.change.notify_all();
        Ok(())
    }

    /// Reads everything that waits, and what it leads to.
    fn run(&self, demand: Demand) -> Result<(), GcError> {
        thread::scope(|scope| {
            for _ in 0..self.options.threads.max(1) {
                scope.spawn(|| {
                    let mut marker = self.marks.marker();
                    while let Some((reference, root)) = self.next() {
                        let result = match self.loader.load(&reference) {
                            Ok(catalog) => self.enter(&catalog, &root, &mut marker),
                            Err(error) if demand == Demand::WhatIsThere && is_missing(&error) => Ok(()),
                            Err(error) => Err(unreadable(&root, error)),
                        };
                        self.done(result);
                    }
                    if let Err(error) = marker.flush() {
                        self.state().error.get_or_insert(self.scratch(error));
                    }
                });
            }
        });
        self.state().error.take().map_or(Ok(()), Err)
    }

    fn next(&self) -> Option<(NestedRef, KeptRoot)> {
        let mut state = self.state();
        loop {
            if state.error.is_some() {
                return None;
            }
            if let Some(next) = state.waiting.pop() {
                state.busy += 1;
                return Some(next);
            }
            if state.busy == 0 {
                return None;
            }
            state = self.change.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, result: Result<(), GcError>) {
        let mut state = self.state();
        state.busy -= 1;
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        self.change.notify_all();
    }
}

/// Tells a catalog that cannot be read from a mark that cannot be written.
enum Visit {
    Gc(GcError),
    Catalog(CatalogError),
}

impl From<CatalogError> for Visit {
    fn from(error: CatalogError) -> Visit {
        Visit::Catalog(error)
    }
}
