//! What stands above the catalogs: which faults the publish mends that follows every repair, and what to do about the
//! faults that nothing stored can mend.

use std::collections::BTreeSet;

use crate::check::Rule;
use crate::hash::ObjectKind;
use crate::history::{Branch, History};
use crate::manifest::Manifest;
use crate::reflog::{Ref, RefKind};
use crate::store::{Store, StoreError};

/// What the publish of a repair does about a fault above the catalogs; nothing if it is of no help.
pub fn mends(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::ManifestRevision => "the new revision is above that of manifest and root catalog",
        Rule::ManifestTime => "the new manifest is not older than its root catalog",
        Rule::ManifestTtl => "the manifest gets the time to live that clients take from the catalog",
        Rule::AlternativeLink => "the alternative paths are made",
        Rule::HistoryName => "the tag database is written for this repository",
        Rule::HistoryTagBranch => "the branch is entered",
        Rule::HistoryTagRevision => "the branch begins with its first tag",
        Rule::HistoryUnusedBranch => "the branch without tags goes",
        Rule::HistoryTagRoot => "the tag goes, since its root catalog is gone",
        Rule::ReflogMissing | Rule::Reflog => "the reflog is made anew from manifest and tags",
        Rule::ReflogUnknownHash | Rule::ReflogHash => "the new manifest names the hash of the reflog",
        Rule::ReflogEntry => "the objects are entered into the reflog",
        _ => return None,
    })
}

/// What to do about a fault that is not repaired.
pub fn advice(rule: Rule) -> &'static str {
    match rule {
        Rule::ManifestSyntax | Rule::ManifestSignature | Rule::ManifestName => {
            "bring back .cvmfspublished from a replica or a backup"
        }
        Rule::Certificate | Rule::CertificateTrust => {
            "bring back the certificate from a replica, or sign the whitelist for the present one (sign)"
        }
        Rule::WhitelistSyntax | Rule::WhitelistSignature | Rule::WhitelistExpired => "sign the whitelist anew (sign)",
        Rule::MetaInfo | Rule::History => "bring back the object from a replica or a backup",
        Rule::CatalogObject | Rule::CatalogDatabase | Rule::CatalogRoot => {
            "bring back the object from a replica; below .layers and .flat the next convert makes it again"
        }
        Rule::NestedUnregistered => {
            "only the lost row knew the catalog: go back to a good tag (rollback); below .layers and .flat the next convert makes it again"
        }
        Rule::ObjectMissing | Rule::ChunkMissing | Rule::ObjectContent => {
            "bring back the object from a replica; below .layers and .flat the next convert fetches the content again"
        }
        Rule::ObjectName => "look at the file; if nobody needs it, remove it",
        Rule::ChunkOffset | Rule::ChunkSum => "the stored chunks do not make up the file; ingest or convert it again",
        Rule::ContentHash | Rule::MalformedRow | Rule::EntryName => {
            "nothing stored says what belongs there; ingest or convert it again"
        }
        Rule::MarkerPlace => "it has content, so it may be meant as a file; rename it where it comes from",
        Rule::BindUnregistered | Rule::NestedExclusive => "nothing stored says which catalog belongs there",
        _ => "nothing stored says what is right",
    }
}

/// Tags as they should be.
pub(crate) fn mend_history(history: &mut History, store: &dyn Store, fqrn: &str) -> Result<(), StoreError> {
    history.fqrn = fqrn.to_owned();
    let mut kept = Vec::with_capacity(history.tags.len());
    for tag in std::mem::take(&mut history.tags) {
        if store.exists(tag.root.object(ObjectKind::Catalog))? {
            kept.push(tag);
        }
    }
    history.tags = kept;
    let named: BTreeSet<&str> = history.tags.iter().map(|t| t.branch.as_str()).collect();
    // The default branch is used by the tags that every publish makes.
    history.branches.retain(|b| b.name.is_empty() || named.contains(b.name.as_str()));
    for name in named {
        if !history.branches.iter().any(|b| b.name == name) {
            let parent = (!name.is_empty()).then(String::new);
            history.branches.push(Branch { name: name.to_owned(), parent, initial_revision: u64::MAX });
        }
    }
    for branch in &mut history.branches {
        let first = history.tags.iter().filter(|t| t.branch == branch.name).map(|t| t.revision).min();
        branch.initial_revision = branch.initial_revision.min(first.unwrap_or(0));
    }
    Ok(())
}

/// What a reflog has to list beside the new revision: what the manifest before it named, and the tags.
pub(crate) fn reflog_refs(base: &Manifest, history: &History) -> Vec<Ref> {
    let named = [
        (Some(base.root_catalog), RefKind::Catalog),
        (base.certificate, RefKind::Certificate),
        (base.history, RefKind::History),
        (base.meta_info, RefKind::MetaInfo),
    ];
    let manifest =
        named.into_iter().filter_map(|(hash, kind)| Some(Ref { hash: hash?, kind, timestamp: base.published }));
    let tags = history.tags.iter().map(|t| Ref { hash: t.root, kind: RefKind::Catalog, timestamp: t.timestamp });
    let mut refs: Vec<Ref> = tags.chain(manifest).collect();
    refs.sort_by_key(|r| (r.timestamp, r.hash.to_string()));
    refs.dedup_by_key(|r| r.hash);
    refs
}
