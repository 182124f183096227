//! Changes a repository: edits and grafts, then one publish.
//!
//! Only catalogs on touched paths are fetched and rewritten. A [`Graft`] costs one row, whatever its size.
//! [`Transaction::commit`] writes catalogs leaf to root, then tags, reflog and, last, the manifest — and that
//! only if the manifest is still the one the transaction began with. Whoever calls holds the repository's
//! lock; the comparison is the second line of defence.
//!
//! Invariants
//! - A directory's link count is 2 + its sub-directories, in both rows of a transition point.
//! - Counters are kept exact by difference; they are never recounted.
//! - Dropping a transaction leaves the repository as it was.

mod edit;
mod links;
mod repaired;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use time::UtcDateTime;

use crate::catalog::counters::{Counter, Counters, Tally};
use crate::catalog::writer::CatalogWriter;
use crate::entry::Entry;
use crate::hash::{ContentHash, ObjectKind};
use crate::history::Tag;
use crate::keys::Signer;
use crate::manifest::Manifest;
use crate::path::RepoPath;
use crate::repair::mend_history;
use crate::repository::{Repository, RepositoryError, fetch_to_scratch, scratch_error};
use crate::store::{Stored, put_stream};

pub use crate::subtree::Graft;

/// What a transaction needs from outside.
#[derive(Debug, Clone)]
pub struct TransactionOptions {
    /// Now.
    pub now: UtcDateTime,
    /// Where scratch files go.
    pub scratch: PathBuf,
    /// The marker file of nested catalogs, as an entry; its object must be in the store.
    pub marker: Entry,
}

/// What a commit needs from outside.
#[derive(Debug)]
pub struct Commit<'a> {
    /// Signs the manifest.
    pub signer: &'a Signer,
    /// File beside the repository with the hash of the reflog.
    pub reflog_checksum: Option<&'a Path>,
    /// What changes of the tags besides those of the present and the previous revision.
    pub tags: &'a [TagEdit],
    /// Time to live to be set, if not the present one.
    pub ttl: Option<u64>,
}

/// A change of the tags that comes with a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagEdit {
    /// A tag of the new revision; one of this name moves.
    Add {
        /// Its name.
        name: String,
        /// Words for people.
        description: String,
    },
    /// A tag that goes, if it is there.
    Remove {
        /// Its name.
        name: String,
    },
}

/// What a commit did.
#[derive(Debug)]
pub struct Published {
    /// The repository at its new revision.
    pub repository: Repository,
    /// Catalogs rewritten.
    pub catalogs: u64,
    /// Compressed bytes of those catalogs: what a client that had all of them fetches again.
    pub catalog_bytes: u64,
}

/// A catalog that may change.
#[derive(Debug)]
struct OpenCatalog {
    // Declared first: closed before its file goes.
    writer: CatalogWriter,
    file: NamedTempFile,
    /// Catalog that refers to it; none for the root.
    parent: Option<RepoPath>,
    /// The object it was read from; none if it is new.
    previous: Option<ContentHash>,
    counters: Counters,
    /// What the parent's `subtree` holds for it.
    accounted: Tally,
    dirty: bool,
}

/// Changes that are not visible yet.
#[derive(Debug)]
pub struct Transaction {
    repository: Repository,
    base: Manifest,
    options: TransactionOptions,
    open: BTreeMap<RepoPath, OpenCatalog>,
    /// Tags and reflog are mended with the publish.
    is_repair: bool,
}

impl Transaction {
    /// Begins at the repository's current revision.
    pub fn begin(repository: Repository, options: TransactionOptions) -> Result<Transaction, RepositoryError> {
        let base = repository.manifest.clone();
        let mut transaction = Transaction { repository, base, options, open: BTreeMap::new(), is_repair: false };
        let root = transaction.load(transaction.base.root_catalog, None)?;
        transaction.open.insert(RepoPath::ROOT, root);
        Ok(transaction)
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        !self.open.values().any(|c| c.dirty)
    }

    /// How many catalogs are open: those that were looked into, and those that were changed.
    pub fn open_catalogs(&self) -> usize {
        self.open.len()
    }

    fn load(&self, hash: ContentHash, parent: Option<RepoPath>) -> Result<OpenCatalog, RepositoryError> {
        let id = hash.object(ObjectKind::Catalog);
        let file = fetch_to_scratch(&*self.repository.store, id, &self.options.scratch)?;
        let writer = CatalogWriter::open(file.path())?;
        let counters = writer.counters()?;
        let accounted = counters.total();
        Ok(OpenCatalog { writer, file, parent, previous: Some(hash), counters, accounted, dirty: false })
    }

    /// Publishes the changes as one new revision.
    pub fn commit(mut self, commit: &Commit<'_>) -> Result<Published, RepositoryError> {
        let revision = self.base.revision + 1;
        let now = (self.options.now.unix_timestamp().max(0) as u64).max(self.base.published);
        let (mut catalogs, mut catalog_bytes) = (0, 0);
        let mut written = None;
        let mut paths: Vec<RepoPath> = self.open.keys().cloned().collect();
        paths.sort_by_key(|p| std::cmp::Reverse(p.components().count()));
        for path in paths {
            let catalog = self.open.remove(&path).expect("its own key");
            if !catalog.dirty && !path.is_root() {
                continue;
            }
            let properties =
                Properties { revision: path.is_root().then_some(revision), now, ttl: commit.ttl, base: &self.base };
            let (total, accounted, parent) = (catalog.counters.total(), catalog.accounted, catalog.parent.clone());
            let (hash, size, stored) = self.write(&path, catalog, &properties)?;
            catalogs += 1;
            if let Stored::New(bytes) = stored {
                catalog_bytes += bytes;
            }
            match parent.and_then(|p| self.open.get_mut(&p)) {
                Some(parent) => {
                    parent.writer.set_nested(&path, hash, size)?;
                    parent.counters.subtree.add(&total, 1);
                    parent.counters.subtree.add(&accounted, -1);
                    parent.dirty = true;
                }
                None => written = Some((hash, size)),
            }
        }
        let (root_catalog, root_catalog_size) = written.expect("the root catalog is always open");
        let Transaction { repository, base, options, is_repair, .. } = self;
        let algorithm = base.root_catalog.algorithm;
        let mut history = repository.history(&options.scratch)?;
        let head = Tag {
            name: String::new(),
            root: root_catalog,
            revision,
            timestamp: now,
            description: String::new(),
            size: root_catalog_size,
            branch: String::new(),
        };
        for edit in commit.tags {
            let (TagEdit::Add { name, .. } | TagEdit::Remove { name }) = edit;
            history.tags.retain(|t| t.name != *name);
            if let TagEdit::Add { name, description } = edit {
                history.tags.push(Tag { name: name.clone(), description: description.clone(), ..head.clone() });
            }
        }
        history.advance_trunk(head);
        if is_repair {
            mend_history(&mut history, &*repository.store, &repository.fqrn)?;
        }
        let previous = base.history.unwrap_or(ContentHash::null(algorithm));
        let written = repository.write_history(&history, previous, algorithm, &options.scratch)?;
        let mut pem = commit.signer.certificate_pem.as_bytes();
        let (certificate, _) =
            put_stream(&*repository.store, repository.encoding(), ObjectKind::Certificate, &mut pem)?;
        let manifest = Manifest {
            root_catalog,
            root_catalog_size,
            ttl: commit.ttl.unwrap_or(base.ttl),
            revision,
            certificate: Some(certificate),
            history: Some(written),
            published: now,
            ..base
        };
        repository.expect_unmoved()?;
        if is_repair {
            repaired::mend_reflog(&repository, &options, &history)?;
        }
        let repository = repository.finish(manifest, commit.signer, &options.scratch, commit.reflog_checksum)?;
        Ok(Published { repository, catalogs, catalog_bytes })
    }

    fn write(
        &self,
        path: &RepoPath,
        catalog: OpenCatalog,
        properties: &Properties<'_>,
    ) -> Result<(ContentHash, u64, Stored), RepositoryError> {
        let OpenCatalog { writer, file, previous, counters, .. } = catalog;
        let algorithm = properties.base.root_catalog.algorithm;
        writer.set_counters(&counters)?;
        let recorded: u64 = writer.property("revision")?.and_then(|r| r.parse().ok()).unwrap_or(0);
        writer.set_property("revision", &properties.revision.unwrap_or(recorded + 1).to_string())?;
        writer.set_property("previous_revision", &previous.unwrap_or(ContentHash::null(algorithm)).to_string())?;
        writer.set_property("last_modified", &properties.now.to_string())?;
        if path.is_root() {
            writer.set_property("TTL", &properties.ttl.unwrap_or(properties.base.ttl).to_string())?;
        }
        writer.compact()?;
        let size = writer.finish()?;
        let mut plain = File::open(file.path()).map_err(scratch_error(&self.options.scratch))?;
        let (hash, stored) =
            put_stream(&*self.repository.store, self.repository.encoding(), ObjectKind::Catalog, &mut plain)?;
        Ok((hash, size, stored))
    }
}

struct Properties<'a> {
    /// Revision of the repository, for the root catalog.
    revision: Option<u64>,
    now: u64,
    ttl: Option<u64>,
    base: &'a Manifest,
}

impl OpenCatalog {
    fn count(&mut self, entry: &Entry, chunks: i64, sign: i64) {
        self.counters.own.count(entry, sign);
        self.counters.own[Counter::Chunks] += chunks * sign;
        self.dirty = true;
    }
}

#[cfg(test)]
mod tests;
