//! Publishes that change no file: tags, and going back to an earlier revision.
//!
//! Tags are changed within a revision: a new tag database, and a manifest that names it. A rollback is a new revision
//! whose root catalog is that of the tag but for three properties; nested catalogs are used as they are.

use std::fs::File;
use std::path::Path;

use time::UtcDateTime;

use super::{Repository, RepositoryError, fetch_to_scratch, scratch_error};
use crate::catalog::NestedRef;
use crate::catalog::writer::CatalogWriter;
use crate::hash::{ContentHash, ObjectKind};
use crate::history::{History, Tag, TagError};
use crate::keys::Signer;
use crate::manifest::Manifest;
use crate::path::RepoPath;
use crate::reflog::RefKind;
use crate::store::put_stream;
use crate::traversal::{Loaded, Loader, TraversalError};

/// What such a publish needs from outside. The caller holds the repository's lock.
#[derive(Debug, Clone, Copy)]
pub struct Retag<'a> {
    /// Signs the manifest.
    pub signer: &'a Signer,
    /// Now.
    pub now: UtcDateTime,
    /// Where scratch files go.
    pub scratch: &'a Path,
    /// File beside the repository with the hash of the reflog.
    pub reflog_checksum: Option<&'a Path>,
}

/// Which revision a new tag names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// The present one.
    Head,
    /// That of this root catalog.
    Root(ContentHash),
    /// That with this number.
    Number(u64),
}

/// A tag or rollback failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetagError {
    /// It is not allowed.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// A root catalog cannot be read.
    #[error(transparent)]
    Traversal(#[from] TraversalError),
    /// The repository cannot be used or changed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl Repository {
    /// A tag of this revision; `name` and `description` are empty.
    pub fn tag_of(&self, revision: Revision, scratch: &Path) -> Result<Tag, RetagError> {
        let manifest = &self.manifest;
        let catalog = match revision {
            Revision::Head => self.root(manifest.root_catalog, scratch)?,
            Revision::Root(hash) => {
                self.expect_listed(hash, scratch)?;
                self.root(hash, scratch)?
            }
            Revision::Number(number) => self.root_of(number, scratch)?,
        };
        Ok(Tag {
            name: String::new(),
            root: catalog.reference().hash,
            revision: catalog.revision().map_err(RepositoryError::from)?,
            timestamp: catalog.last_modified().map_err(RepositoryError::from)?,
            description: String::new(),
            size: catalog.size(),
            branch: String::new(),
        })
    }

    fn root(&self, hash: ContentHash, scratch: &Path) -> Result<Loaded, TraversalError> {
        Loader::new(&*self.store, scratch).load(&NestedRef { path: RepoPath::ROOT, hash, size: 0 })
    }

    /// What the reflog does not list may have been collected in part.
    fn expect_listed(&self, hash: ContentHash, scratch: &Path) -> Result<(), RetagError> {
        let Some(refs) = self.reflog(scratch)? else { return Ok(()) };
        match refs.iter().any(|r| r.kind == RefKind::Catalog && r.hash == hash) {
            true => Ok(()),
            false => Err(TagError::Unknown(hash.to_string()).into()),
        }
    }

    /// The root catalog with this number: among the tags, or among the predecessors of the present one.
    fn root_of(&self, number: u64, scratch: &Path) -> Result<Loaded, RetagError> {
        let unknown = || TagError::Unknown(number.to_string());
        if let Some(tag) = self.history(scratch)?.tags.iter().find(|t| t.revision == number && t.branch.is_empty()) {
            return Ok(self.root(tag.root, scratch)?);
        }
        let mut next = Some(self.manifest.root_catalog);
        while let Some(hash) = next {
            let catalog = match self.root(hash, scratch) {
                Ok(catalog) => catalog,
                Err(_) if hash != self.manifest.root_catalog => return Err(unknown().into()),
                Err(error) => return Err(error.into()),
            };
            let found = catalog.revision().map_err(RepositoryError::from)?;
            if found == number {
                self.expect_listed(hash, scratch)?;
                return Ok(catalog);
            }
            // Revisions fall on the way back, or the chain is not worth following.
            next = if found > number { catalog.previous_revision().map_err(RepositoryError::from)? } else { None };
        }
        Err(unknown().into())
    }

    /// Publishes other tags within the present revision. Nothing is published if they are those that it has.
    pub fn publish_tags(self, history: &History, retag: &Retag<'_>) -> Result<Repository, RepositoryError> {
        if *history == self.history(retag.scratch)? {
            return Ok(self);
        }
        let manifest = self.manifest.clone();
        self.publish_history(history, manifest, retag)
    }

    /// Goes back to a tag, without one to the revision before, as a new revision.
    pub fn roll_back(self, tag: Option<&str>, retag: &Retag<'_>) -> Result<Repository, RetagError> {
        let mut history = self.history(retag.scratch)?;
        let target = history.rollback_target(tag, self.manifest.root_catalog)?.clone();
        let head = self.copy_root(&target, retag)?;
        history.roll_back(&target.name, &head.tag)?;
        let manifest = Manifest {
            root_catalog: head.tag.root,
            root_catalog_size: head.tag.size,
            ttl: head.ttl.unwrap_or(self.manifest.ttl),
            revision: head.tag.revision,
            ..self.manifest.clone()
        };
        Ok(self.publish_history(&history, manifest, retag)?)
    }

    /// The root catalog of a tag as that of the next revision.
    fn copy_root(&self, target: &Tag, retag: &Retag<'_>) -> Result<NewRoot, RepositoryError> {
        let (revision, now) = (self.manifest.revision + 1, self.time(retag));
        let file = fetch_to_scratch(&*self.store, target.root.object(ObjectKind::Catalog), retag.scratch)?;
        let writer = CatalogWriter::open(file.path())?;
        writer.set_property("revision", &revision.to_string())?;
        writer.set_property("previous_revision", &self.manifest.root_catalog.to_string())?;
        writer.set_property("last_modified", &now.to_string())?;
        let ttl = writer.property("TTL")?.and_then(|ttl| ttl.parse().ok());
        let size = writer.finish()?;
        let mut plain = File::open(file.path()).map_err(scratch_error(retag.scratch))?;
        let (root, _) = put_stream(&*self.store, self.encoding(), ObjectKind::Catalog, &mut plain)?;
        let (name, description, branch) = (String::new(), String::new(), String::new());
        Ok(NewRoot { tag: Tag { name, root, revision, timestamp: now, description, size, branch }, ttl })
    }

    fn time(&self, retag: &Retag<'_>) -> u64 {
        (retag.now.unix_timestamp().max(0) as u64).max(self.manifest.published)
    }

    fn publish_history(
        self,
        history: &History,
        manifest: Manifest,
        retag: &Retag<'_>,
    ) -> Result<Repository, RepositoryError> {
        let algorithm = self.algorithm();
        let previous = self.manifest.history.unwrap_or(ContentHash::null(algorithm));
        let written = self.write_history(history, previous, algorithm, retag.scratch)?;
        let mut pem = retag.signer.certificate_pem.as_bytes();
        let (certificate, _) = put_stream(&*self.store, self.encoding(), ObjectKind::Certificate, &mut pem)?;
        let published = self.time(retag);
        let manifest = Manifest { history: Some(written), certificate: Some(certificate), published, ..manifest };
        self.expect_unmoved()?;
        self.finish(manifest, retag.signer, retag.scratch, retag.reflog_checksum)
    }
}

struct NewRoot {
    tag: Tag,
    ttl: Option<u64>,
}
