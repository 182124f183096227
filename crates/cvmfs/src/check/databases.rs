//! The two databases beside the catalogs: tags and reflog.

use rusqlite::{Connection, OptionalExtension as _};

use super::report::chain;
use super::{CheckError, Report, Rule, fault};
use crate::catalog::reader::open_immutable;
use crate::hash::{ContentHash, ObjectKind};
use crate::history::History;
use crate::manifest::Manifest;
use crate::reflog::RefKind;
use crate::store::names;
use crate::traversal::{DatabaseError, Loader};

/// Checks the tag database that the manifest names; a repository may have none.
pub(super) fn check_history(loader: Loader<'_>, manifest: &Manifest, report: &mut Report) -> Result<(), CheckError> {
    let Some(id) = manifest.history.map(|h| h.object(ObjectKind::History)) else { return Ok(()) };
    let file = match loader.database(id) {
        Ok((file, _)) => file,
        Err(DatabaseError::Scratch(source)) => return Err(CheckError::Scratch(loader.scratch(source))),
        Err(DatabaseError::Store(error)) => {
            report.add(Rule::History, id, fault(error)?);
            return Ok(());
        }
    };
    let history = match History::read(&file) {
        Ok(history) => history,
        Err(error) => {
            report.add(Rule::History, id, error);
            return Ok(());
        }
    };
    if history.fqrn != manifest.name {
        report.add_expecting(Rule::HistoryName, id, &manifest.name, &history.fqrn);
    }
    let mut unused: Vec<&str> = history.branches.iter().map(|b| b.name.as_str()).collect();
    for tag in &history.tags {
        let place = format!("tag {}", tag.name);
        unused.retain(|name| *name != tag.branch);
        match history.branches.iter().find(|b| b.name == tag.branch) {
            None => report.add(Rule::HistoryTagBranch, &place, format!("branch {:?}", tag.branch)),
            Some(branch) if tag.revision < branch.initial_revision => {
                let expected = format!("{} or later", branch.initial_revision);
                report.add_expecting(Rule::HistoryTagRevision, &place, expected, tag.revision);
            }
            Some(_) => {}
        }
        let root = tag.root.object(ObjectKind::Catalog);
        if !loader.store().exists(root)? {
            report.add(Rule::HistoryTagRoot, &place, root);
        }
    }
    for branch in unused {
        report.add(Rule::HistoryUnusedBranch, id, format!("branch {branch:?}"));
    }
    Ok(())
}

/// Checks the reflog; a repository may have none.
pub(super) fn check_reflog(
    loader: Loader<'_>,
    manifest: &Manifest,
    local_checksum: Option<ContentHash>,
    report: &mut Report,
) -> Result<(), CheckError> {
    let expected = local_checksum.or(manifest.reflog);
    let Some(content) = loader.store().read(names::REFLOG)? else {
        if let Some(expected) = expected {
            report.add_expecting(Rule::ReflogMissing, names::REFLOG, expected, "");
        }
        return Ok(());
    };
    match expected {
        None => report.add(Rule::ReflogUnknownHash, names::REFLOG, ""),
        Some(expected) => {
            let found = ContentHash::of(expected.algorithm, &content);
            if found != expected {
                report.add_expecting(Rule::ReflogHash, names::REFLOG, expected, found);
            }
        }
    }
    let file = loader.keep(&content).map_err(CheckError::Scratch)?;
    drop(content);
    match open_immutable(&file).and_then(|db| check_references(&db, manifest, report)) {
        Ok(()) => Ok(()),
        Err(error) => {
            report.add(Rule::Reflog, names::REFLOG, chain(&error));
            Ok(())
        }
    }
}

fn check_references(db: &Connection, manifest: &Manifest, report: &mut Report) -> rusqlite::Result<()> {
    let name: Option<String> =
        db.query_row("SELECT value FROM properties WHERE key = 'fqrn'", (), |row| row.get(0)).optional()?;
    if name.as_deref() != Some(manifest.name.as_str()) {
        report.add_expecting(Rule::Reflog, names::REFLOG, &manifest.name, format!("repository {name:?}"));
    }
    let named = [
        (RefKind::Catalog, ObjectKind::Catalog, Some(manifest.root_catalog)),
        (RefKind::Certificate, ObjectKind::Certificate, manifest.certificate),
        (RefKind::History, ObjectKind::History, manifest.history),
        (RefKind::MetaInfo, ObjectKind::MetaInfo, manifest.meta_info),
    ];
    let mut statement = db.prepare("SELECT count(*) FROM refs WHERE hash = ?1 AND type = ?2")?;
    for (kind, object, hash) in named {
        let Some(hash) = hash else { continue };
        let count: i64 = statement.query_row((hash.to_string(), kind.number()), |row| row.get(0))?;
        if count == 0 {
            report.add(Rule::ReflogEntry, names::REFLOG, hash.object(object));
        }
    }
    Ok(())
}
