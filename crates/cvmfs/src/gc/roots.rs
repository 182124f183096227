//! Which revisions are kept.
//!
//! The rules are those of the reference collector: HEAD; the chain of `previous_revision`, where a root beyond the
//! threshold is still kept and its predecessor is not looked for; every tag. The time of a root is that of its row in
//! the reflog. Further: roots published within the minimal age, so that nothing young loses what it refers to.

use std::collections::{HashMap, HashSet};

use super::{GcError, Keep, Options};
use crate::catalog::NestedRef;
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::path::RepoPath;
use crate::reflog::{Ref, RefKind};
use crate::repository::Repository;
use crate::store::StoreError;
use crate::traversal::{Loaded, Loader, TraversalError};

/// A root catalog that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRoot {
    /// The catalog.
    pub hash: ContentHash,
    /// Why it stays, for people: "HEAD", "revision 12", "tag v1", …
    pub why: String,
}

/// What may be missing below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Nothing.
    Whole,
    /// Anything: the reflog does not know the root, so a collection that did not come to its end may have begun with it.
    WhatIsThere,
}

/// Roots, found one after the other.
pub(super) struct Roots<'a> {
    repository: &'a Repository,
    options: &'a Options<'a>,
    loader: Loader<'a>,
    refs: Vec<Ref>,
    times: HashMap<ContentHash, u64>,
    pub(super) kept: Vec<KeptRoot>,
    pub(super) missing: Vec<KeptRoot>,
    is_kept: HashSet<ContentHash>,
    /// Roots that the reflog does not know; their trees come last.
    pub(super) unlisted: Vec<KeptRoot>,
    oldest: u64,
}

impl<'a> Roots<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        options: &'a Options<'a>,
        loader: Loader<'a>,
    ) -> Result<Roots<'a>, GcError> {
        let Some(refs) = repository.reflog(options.scratch)? else {
            return Err(GcError::NoReflog(repository.fqrn().to_owned()));
        };
        let times = refs.iter().filter(|r| r.kind == RefKind::Catalog).map(|r| (r.hash, r.timestamp)).collect();
        Ok(Roots {
            repository,
            options,
            loader,
            refs,
            times,
            kept: Vec::new(),
            missing: Vec::new(),
            is_kept: HashSet::new(),
            unlisted: Vec::new(),
            oldest: u64::MAX,
        })
    }

    /// Loads every root that is kept, and hands it out unless its tree comes last.
    pub(super) fn find(
        &mut self,
        mut visit: impl FnMut(&Loaded, &KeptRoot) -> Result<(), GcError>,
    ) -> Result<(), GcError> {
        self.chain(&mut visit)?;
        for tag in self.repository.history(self.options.scratch)?.tags {
            self.add(tag.root, format!("tag {}", tag.name), &mut visit)?;
        }
        let young = self.options.young_since().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let lately: Vec<ContentHash> =
            self.times.iter().filter(|(_, time)| **time > young).map(|(hash, _)| *hash).collect();
        for hash in lately {
            self.add(hash, "a revision published within the minimal age".into(), &mut visit)?;
        }
        Ok(())
    }

    /// HEAD and its predecessors.
    fn chain(&mut self, visit: &mut impl FnMut(&Loaded, &KeptRoot) -> Result<(), GcError>) -> Result<(), GcError> {
        let mut next = Some(self.repository.manifest().root_catalog);
        let mut depth = 0;
        while let Some(hash) = next.filter(|h| !self.is_kept.contains(h)) {
            let why = if depth == 0 { "HEAD" } else { "the past within the threshold" };
            let root = KeptRoot { hash, why: format!("{why} (root catalog {hash})") };
            let catalog = match self.load(&root) {
                Ok(catalog) => catalog,
                Err(error) if depth > 0 && is_missing(&error) => {
                    self.missing.push(root);
                    break;
                }
                Err(error) => return Err(unreadable(&root, error)),
            };
            let broken = |source: crate::catalog::CatalogError| GcError::Catalog {
                root: root.why.clone(),
                catalog: hash,
                source: Box::new(source),
            };
            let listed = self.times.get(&hash).copied();
            let time = match listed {
                Some(time) => time,
                None => catalog.last_modified().map_err(broken)?,
            };
            self.oldest = self.oldest.min(time);
            let beyond = match self.options.keep {
                Keep::Revisions(count) => depth >= count,
                Keep::Since(since) => time < since,
            };
            next = if beyond { None } else { catalog.previous_revision().map_err(broken)? };
            self.is_kept.insert(hash);
            if depth > 0 && listed.is_none() {
                self.unlisted.push(root.clone());
            } else {
                visit(&catalog, &root)?;
            }
            self.kept.push(root);
            depth += 1;
        }
        Ok(())
    }

    fn add(
        &mut self,
        hash: ContentHash,
        why: String,
        visit: &mut impl FnMut(&Loaded, &KeptRoot) -> Result<(), GcError>,
    ) -> Result<(), GcError> {
        if !self.is_kept.insert(hash) {
            // Its tree is demanded whole now.
            if let Some(place) = self.unlisted.iter().position(|r| r.hash == hash) {
                let root = self.unlisted.remove(place);
                let catalog = self.load(&root).map_err(|e| unreadable(&root, e))?;
                visit(&catalog, &KeptRoot { hash, why })?;
            }
            return Ok(());
        }
        let root = KeptRoot { hash, why };
        match self.load(&root) {
            Ok(catalog) => {
                visit(&catalog, &root)?;
                self.kept.push(root);
                Ok(())
            }
            Err(error) if is_missing(&error) => {
                self.is_kept.remove(&hash);
                self.missing.push(root);
                Ok(())
            }
            Err(error) => Err(unreadable(&root, error)),
        }
    }

    pub(super) fn load(&self, root: &KeptRoot) -> Result<Loaded, TraversalError> {
        self.loader.load(&NestedRef { path: RepoPath::ROOT, hash: root.hash, size: 0 })
    }

    /// Sorts the reflog: objects other than catalogs that stay, and rows to be forgotten. Certificates, tag databases
    /// and meta infos stay while they are current, or not older than the oldest kept predecessor of HEAD.
    pub(super) fn sort_refs(&self) -> (Vec<ObjectId>, Vec<Ref>) {
        let manifest = self.repository.manifest();
        let current: Vec<ObjectId> = [
            manifest.certificate.map(|h| h.object(ObjectKind::Certificate)),
            manifest.history.map(|h| h.object(ObjectKind::History)),
            manifest.meta_info.map(|h| h.object(ObjectKind::MetaInfo)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut stay = current.clone();
        let mut forgotten = Vec::new();
        let young = self.options.young_since().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        for reference in &self.refs {
            let kind = match reference.kind {
                RefKind::Catalog if self.is_kept.contains(&reference.hash) => continue,
                RefKind::Catalog => {
                    forgotten.push(*reference);
                    continue;
                }
                RefKind::Certificate => ObjectKind::Certificate,
                RefKind::History => ObjectKind::History,
                RefKind::MetaInfo => ObjectKind::MetaInfo,
            };
            let id = reference.hash.object(kind);
            if reference.timestamp >= self.oldest.min(young) {
                stay.push(id);
            } else if !current.contains(&id) {
                forgotten.push(*reference);
            }
        }
        (stay, forgotten)
    }
}

pub(super) fn is_missing(error: &TraversalError) -> bool {
    matches!(error, TraversalError::Store { source, .. } if matches!(**source, StoreError::Missing(_)))
}

pub(super) fn unreadable(root: &KeptRoot, source: TraversalError) -> GcError {
    match source {
        TraversalError::Scratch { directory, source } => GcError::Scratch { directory, source },
        source => GcError::Unreadable { root: root.why.clone(), source: Box::new(source) },
    }
}
