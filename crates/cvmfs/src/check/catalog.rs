//! The tree of catalogs: how each fits its parent, and its statistics.
//!
//! The rows of one catalog are the business of [`super::rows`]; what has to outlive the visit of a catalog
//! until those below it were visited is one [`Frame`].

use std::collections::HashMap;

use super::presence::Presence;
use super::report::chain;
use super::rows::{self, Rows};
use super::{CheckError, Options, Report, Rule, fault};
use crate::catalog::counters::Counters;
use crate::catalog::reader::open_immutable;
use crate::catalog::{CatalogError, NestedRef};
use crate::entry::{Entry, Flags};
use crate::manifest::{DEFAULT_TTL, Manifest};
use crate::path::RepoPath;
use crate::traversal::{Descend, Loaded, Loader, TraversalError, Visit, has_write_ahead_log, walk};

/// Checks the root catalog and everything below.
pub(super) fn check(
    loader: Loader<'_>,
    manifest: &Manifest,
    options: &Options<'_>,
    report: &mut Report,
) -> Result<(), CheckError> {
    let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let presence = options.objects.then(|| Presence::new(loader.store(), options.parallel));
    let mut tree = Tree { manifest, presence, report, frames: Vec::new() };
    walk(loader, root, &mut tree)?;
    match tree.presence {
        Some(mut presence) => presence.flush(tree.report),
        None => Ok(()),
    }
}

impl From<TraversalError> for CheckError {
    fn from(error: TraversalError) -> CheckError {
        match error {
            TraversalError::Store { source, .. } => CheckError::Store(*source),
            other => CheckError::Scratch(other),
        }
    }
}

/// A catalog whose nested catalogs are being visited.
struct Frame {
    place: String,
    /// Statistics as recorded, by name.
    recorded: HashMap<String, i64>,
    /// Statistics as they should be; the subtree grows with each nested catalog.
    counted: Counters,
    /// Whether all rows were read, here and below; otherwise the subtree cannot be counted.
    complete: Complete,
    /// Transition points of nested catalogs that were not visited yet.
    transitions: HashMap<RepoPath, Entry>,
}

#[derive(Clone, Copy)]
struct Complete {
    own: bool,
    subtree: bool,
}

struct Tree<'a> {
    manifest: &'a Manifest,
    presence: Option<Presence<'a>>,
    report: &'a mut Report,
    frames: Vec<Frame>,
}

/// Path and hash of a catalog, for messages.
fn place(reference: &NestedRef) -> String {
    format!("{} (catalog {})", reference.path, reference.hash)
}

impl Visit for Tree<'_> {
    type Error = CheckError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, CheckError> {
        self.report.catalogs += 1;
        let place = place(catalog.reference());
        let mut frame = Frame {
            place: place.clone(),
            recorded: HashMap::new(),
            counted: Counters::default(),
            complete: Complete { own: false, subtree: false },
            transitions: HashMap::new(),
        };
        let transition = self.frames.last_mut().and_then(|parent| parent.transitions.remove(&catalog.reference().path));
        let descend = match self.check_catalog(catalog, transition, &mut frame)? {
            Ok(descend) => descend,
            Err(error) => {
                self.report.add(Rule::CatalogDatabase, place, chain(&*error));
                Descend::Past
            }
        };
        self.frames.push(frame);
        Ok(descend)
    }

    fn leave(&mut self, _: &NestedRef) -> Result<(), CheckError> {
        let frame = self.frames.pop().expect("every catalog that was entered has a frame");
        if frame.complete.own {
            self.compare_counters(&frame);
        }
        if let Some(parent) = self.frames.last_mut() {
            parent.counted.subtree.add(&frame.counted.total(), 1);
            parent.complete.subtree &= frame.complete.own && frame.complete.subtree;
        }
        Ok(())
    }

    fn failed(&mut self, reference: &NestedRef, error: TraversalError) -> Result<(), CheckError> {
        let (rule, what) = match error {
            TraversalError::Store { source, .. } => (Rule::CatalogObject, fault(*source)?),
            TraversalError::Catalog { source, .. } => (Rule::CatalogDatabase, chain(&*source)),
            other => return Err(CheckError::Scratch(other)),
        };
        self.report.add(rule, place(reference), what);
        if let Some(parent) = self.frames.last_mut() {
            parent.complete.subtree = false;
        }
        Ok(())
    }
}

/// Whether to go on below, or why the catalog cannot be read any further.
type Visited = Result<Descend, Box<dyn std::error::Error>>;

impl Tree<'_> {
    fn check_catalog(
        &mut self,
        catalog: &Loaded,
        transition: Option<Entry>,
        frame: &mut Frame,
    ) -> Result<Visited, CheckError> {
        let place = &frame.place;
        let reference = catalog.reference();
        if reference.size != 0 && reference.size != catalog.size() {
            self.report.add_expecting(Rule::CatalogSize, place, reference.size, catalog.size());
        }
        match self.check_database(catalog, frame) {
            Ok(Descend::Into) => {}
            past => return Ok(past),
        }
        if reference.path.is_root()
            && let Err(error) = self.compare_with_manifest(catalog)
        {
            return Ok(Err(error.into()));
        }
        let nested = match catalog.nested_all() {
            Ok(nested) => nested,
            Err(error) => return Ok(Err(error.into())),
        };
        if let Some(outside) = nested.iter().find(|n| n.path == reference.path || !reference.path.contains(&n.path)) {
            let what = format!("nested catalog {} is not below it", outside.path);
            return Ok(Err(what.into()));
        }
        let rows = match rows::check(catalog, nested, self.presence.as_mut(), self.report)? {
            Ok(rows) => rows,
            Err(error) => return Ok(Err(error)),
        };
        self.report.rows += rows.read;
        let Rows { root, counted, complete, transitions, .. } = rows;
        if let Some((transition, root)) = transition.zip(root) {
            self.compare_transition(&reference.path, &transition, &root);
        }
        frame.counted.own = counted;
        frame.complete = Complete { own: complete, subtree: true };
        frame.transitions = transitions;
        Ok(Ok(Descend::Into))
    }

    /// What the database is, apart from its rows.
    fn check_database(&mut self, catalog: &Loaded, frame: &mut Frame) -> Visited {
        let place = &frame.place;
        if has_write_ahead_log(catalog.file())? {
            self.report.add(Rule::CatalogDatabase, place, "it is in write-ahead-log mode, which clients don't read");
        }
        let db = open_immutable(catalog.file())?;
        let mut statement = db.prepare("SELECT counter, value FROM statistics LIMIT 1000")?;
        let recorded = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?;
        frame.recorded = recorded.collect::<rusqlite::Result<_>>()?;
        for name in catalog.counters_and_missing()?.1 {
            self.report.add(Rule::CounterMissing, place, name);
        }
        let prefix = catalog.property("root_prefix")?.unwrap_or_default();
        let path = &catalog.reference().path;
        if prefix.as_bytes() != path.as_bytes() {
            self.report.add_expecting(Rule::RootPrefix, place, path, format!("{prefix:?}"));
            // Keys of its rows belong to other paths: nothing further down can be right.
            return Ok(Descend::Past);
        }
        Ok(Descend::Into)
    }

    fn compare_with_manifest(&mut self, catalog: &Loaded) -> Result<(), CatalogError> {
        let place = crate::store::names::MANIFEST;
        let revision = catalog.revision()?;
        if revision != self.manifest.revision {
            self.report.add_expecting(Rule::ManifestRevision, place, revision, self.manifest.revision);
        }
        let modified = catalog.last_modified()?;
        if self.manifest.published < modified {
            let expected = format!("{modified} or later");
            self.report.add_expecting(Rule::ManifestTime, place, expected, self.manifest.published);
        }
        // Clients take the default where the catalog says nothing; the tools leave it out until the first publish.
        let ttl = catalog.ttl()?.unwrap_or(DEFAULT_TTL);
        if ttl != self.manifest.ttl {
            self.report.add_expecting(Rule::ManifestTtl, place, ttl, self.manifest.ttl);
        }
        Ok(())
    }

    /// Both rows of a directory that starts a nested catalog; clients show now the one, now the other.
    fn compare_transition(&mut self, path: &RepoPath, transition: &Entry, root: &Entry) {
        let external = |e: &Entry| e.flags.0 & Flags::EXTERNAL;
        let (t, r) = (transition, root);
        let show = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
        let octal = |mode: u32| format!("{mode:o}");
        let fields = [
            ("name", show(&t.name), show(&r.name)),
            ("mode", octal(t.mode), octal(r.mode)),
            ("link count", t.links.to_string(), r.links.to_string()),
            ("hard-link group", t.link_group.to_string(), r.link_group.to_string()),
            ("size", t.size.to_string(), r.size.to_string()),
            ("mtime", t.mtime.to_string(), r.mtime.to_string()),
            ("nanoseconds", format!("{:?}", t.mtime_ns), format!("{:?}", r.mtime_ns)),
            ("content hash", format!("{:?}", t.content), format!("{:?}", r.content)),
            ("link target", show(&t.symlink), show(&r.symlink)),
            ("external flag", external(t).to_string(), external(r).to_string()),
            ("extended attributes", t.xattrs.is_some().to_string(), r.xattrs.is_some().to_string()),
        ];
        for (what, parent, child) in fields.iter().filter(|(_, parent, child)| parent != child) {
            self.report.add_expecting(Rule::Transition, path, format!("{what} {parent}"), child);
        }
        if (t.uid, t.gid) != (r.uid, r.gid) {
            let owner = |e: &Entry| format!("owner {}:{}", e.uid, e.gid);
            self.report.add_expecting(Rule::TransitionOwner, path, owner(t), owner(r));
        }
        if t.xattrs != r.xattrs && t.xattrs.is_some() == r.xattrs.is_some() {
            self.report.add(Rule::TransitionOwner, path, "extended attributes");
        }
    }

    fn compare_counters(&mut self, frame: &Frame) {
        for (name, counted) in frame.counted.rows() {
            let comparable = frame.complete.subtree || name.starts_with("self_");
            // Counters that an older schema lacks are not there; missing ones were reported.
            let Some(recorded) = frame.recorded.get(&name).filter(|_| comparable) else { continue };
            if *recorded != counted {
                self.report.add_expecting(Rule::Counter, &frame.place, format!("{name} {counted}"), recorded);
            }
        }
    }
}
