//! A transaction on a repository that is repaired on the way in, so that the repair and whatever else has to change come
//! with one publish.

use std::collections::BTreeMap;

use super::{OpenCatalog, Transaction, TransactionOptions};
use crate::catalog::writer::CatalogWriter;
use crate::history::History;
use crate::manifest::{DEFAULT_TTL, Manifest};
use crate::path::RepoPath;
use crate::reflog;
use crate::repair::{Findings, Tools, apply, mend, reflog_refs};
use crate::repository::{Repository, RepositoryError, scratch_error, scratch_file};
use crate::store::names;

impl Transaction {
    /// Begins at the repository's current revision as [`crate::repair`] makes it, and tells what that was. The nested
    /// catalogs are written; nothing is visible before the commit.
    pub fn begin_repaired(
        repository: Repository,
        options: TransactionOptions,
    ) -> Result<(Transaction, Findings), RepositoryError> {
        let tools = Tools {
            store: &*repository.store,
            scratch: &options.scratch,
            now: options.now.unix_timestamp().max(0) as u64,
            marker: &options.marker,
        };
        let (root, findings) = mend(tools, &repository.manifest, Some(repository.encoding()))?;
        let Some(root) = root else {
            let what = "its catalog cannot be read, so nothing can be repaired; bring it back from a replica";
            return Err(RepositoryError::Path { path: RepoPath::ROOT, what });
        };
        let manifest = &repository.manifest;
        let base = Manifest {
            revision: manifest.revision.max(root.revision),
            published: manifest.published.max(root.last_modified),
            ttl: root.ttl.unwrap_or(DEFAULT_TTL),
            ..manifest.clone()
        };
        let writer = CatalogWriter::open(root.file.path())?;
        apply(&writer, &root.edits, &RepoPath::ROOT)?;
        let counters = root.counters;
        let (previous, accounted) = (Some(manifest.root_catalog), counters.total());
        let catalog = OpenCatalog { writer, file: root.file, parent: None, previous, counters, accounted, dirty: true };
        let open = BTreeMap::from([(RepoPath::ROOT, catalog)]);
        Ok((Transaction { repository, base, options, open, is_repair: true }, findings))
    }
}

/// Replaces a reflog that is missing, unreadable, for another repository or incomplete. The manifest that follows names
/// its hash; until then the fault is one that the next repair mends.
pub(super) fn mend_reflog(
    repository: &Repository,
    options: &TransactionOptions,
    history: &History,
) -> Result<(), RepositoryError> {
    let wanted = reflog_refs(&repository.manifest, history);
    let file = scratch_file(&options.scratch)?;
    let failed = |source| RepositoryError::Database { what: "reflog", fqrn: repository.fqrn.clone(), source };
    let mut known = None;
    if let Some(old) = repository.store.read(names::REFLOG)? {
        std::fs::write(file.path(), old).map_err(scratch_error(&options.scratch))?;
        let is_ours = reflog::repository(file.path()).is_ok_and(|name| name.as_deref() == Some(&*repository.fqrn));
        known = reflog::read(file.path()).ok().filter(|_| is_ours);
    }
    if known.is_none() {
        std::fs::write(file.path(), b"").map_err(scratch_error(&options.scratch))?;
    }
    let known = known.unwrap_or_default();
    let missing: Vec<_> = wanted.into_iter().filter(|r| !known.iter().any(|k| k.hash == r.hash)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    reflog::append(file.path(), &repository.fqrn, &missing).map_err(failed)?;
    let content = std::fs::read(file.path()).map_err(scratch_error(&options.scratch))?;
    Ok(repository.store.replace(names::REFLOG, &content)?)
}
