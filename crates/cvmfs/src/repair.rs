//! Makes a repository sound again, as far as what is stored says what is right.
//!
//! ```text
//! root catalog ─ nested catalogs …    rows.rs: what is wrong in one catalog, as edits
//!    leaf to root                     edits.rs: the edits, written
//! tag database, reflog                top.rs: mended by the publish that follows
//! ```
//!
//! Every catalog is read, faults become edits, and a catalog with edits, or above one with edits, gets a new version;
//! the others stay as they are. [`survey`] only tells; [`crate::transaction::Transaction::begin_repaired`] writes the
//! nested catalogs and begins a transaction on the repaired root, so that whatever else is to be changed comes with the
//! same publish.
//!
//! What is taken as right
//! - Of transition point and root entry that differ, the root entry: it belongs to the catalog that has the directory.
//! - Of chunks, the objects: they are read where offsets and sizes do not fit the file.
//! - Of counters and link counts, the rows. Rows that no listing shows go: nobody can see them.
//! - Names of a hard-link group that differ from its first one become files of their own.
//!
//! Nothing is invented: what only the lost bytes could tell is a [`Refusal`].

mod edits;
mod rows;
mod top;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use tempfile::NamedTempFile;

pub(crate) use self::edits::{Edit, apply};
pub use self::top::{advice, mends};
pub(crate) use self::top::{mend_history, reflog_refs};
use crate::catalog::counters::{Counters, Tally};
use crate::catalog::reader::open_immutable;
use crate::catalog::writer::CatalogWriter;
use crate::catalog::{Catalog, NestedRef};
use crate::check::Rule;
use crate::entry::{Entry, Flags};
use crate::hash::{ContentHash, ObjectKind};
use crate::manifest::Manifest;
use crate::object::Encoding;
use crate::path::RepoPath;
use crate::repository::{RepositoryError, fetch_to_scratch, scratch_error};
use crate::store::{Store, StoreError, put_stream};
use crate::traversal::has_write_ahead_log;

/// Catalogs nested deeper than this are left alone.
const DEEPEST: usize = 256;

/// One fault that is repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// The rule that is broken.
    pub rule: Rule,
    /// Path in the repository.
    pub place: String,
    /// What is done.
    pub what: String,
}

/// One fault that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that is broken.
    pub rule: Rule,
    /// Path in the repository.
    pub place: String,
    /// Why it is not repaired.
    pub why: String,
}

/// What a survey found, or a repair did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Faults that are repaired, in the order of the catalogs.
    pub repairs: Vec<Repair>,
    /// Faults that stay.
    pub refusals: Vec<Refusal>,
}

/// Kept in full; a repository with more faults is repaired all the same.
const MAX_FINDINGS: usize = 10_000;

impl Findings {
    fn repair(&mut self, rule: Rule, place: impl ToString, what: impl Into<String>) {
        if self.repairs.len() < MAX_FINDINGS {
            self.repairs.push(Repair { rule, place: place.to_string(), what: what.into() });
        }
    }

    fn refuse(&mut self, rule: Rule, place: impl ToString, why: impl Into<String>) {
        if self.refusals.len() < MAX_FINDINGS {
            self.refusals.push(Refusal { rule, place: place.to_string(), why: why.into() });
        }
    }
}

/// What repairing needs from outside.
#[derive(Debug, Clone, Copy)]
pub struct Tools<'a> {
    /// The storage.
    pub store: &'a dyn Store,
    /// Where scratch files go.
    pub scratch: &'a Path,
    /// Now, Unix seconds.
    pub now: u64,
    /// The marker file of nested catalogs, as an entry; its object must be in the store.
    pub marker: &'a Entry,
}

/// What is wrong with the catalogs of a repository and would be repaired; nothing is written.
pub fn survey(tools: Tools<'_>, manifest: &Manifest) -> Result<Findings, RepositoryError> {
    let (_, findings) = mend(tools, manifest, None)?;
    Ok(findings)
}

/// The root catalog: what has to be done to it.
#[derive(Debug)]
pub(crate) struct Root {
    /// A private copy of its database, not edited yet.
    pub(crate) file: NamedTempFile,
    pub(crate) edits: Vec<Edit>,
    /// Statistics as they should be.
    pub(crate) counters: Counters,
    /// Its properties, which a manifest may contradict.
    pub(crate) revision: u64,
    pub(crate) last_modified: u64,
    pub(crate) ttl: Option<u64>,
}

/// Repairs all nested catalogs, if there is an encoding to write them; gives what the root needs.
pub(crate) fn mend(
    tools: Tools<'_>,
    manifest: &Manifest,
    encoding: Option<Encoding>,
) -> Result<(Option<Root>, Findings), RepositoryError> {
    let mut mender = Mender { tools, encoding, findings: Findings::default() };
    let reference = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let root = match mender.examine(&reference, None, 0)? {
        Some(examined) => {
            let Examined { file, edits, counters, properties, .. } = examined;
            let Properties { revision, last_modified, ttl } = properties;
            Some(Root { file, edits, counters, revision, last_modified, ttl })
        }
        None => None,
    };
    Ok((root, mender.findings))
}

struct Mender<'a> {
    tools: Tools<'a>,
    encoding: Option<Encoding>,
    findings: Findings,
}

/// A catalog whose own rows and those below it were looked at.
struct Examined {
    file: NamedTempFile,
    edits: Vec<Edit>,
    /// Its root entry as it will be.
    root: Entry,
    /// Statistics as recorded.
    recorded: Counters,
    /// As they should be, and whether they are not.
    counters: Counters,
    is_miscounted: bool,
    properties: Properties,
}

/// What a catalog records about itself.
struct Statistics {
    recorded: Counters,
    /// Counters that it has at all.
    names: HashSet<String>,
    /// How many it lacks that its schema wants.
    missing: usize,
}

#[derive(Debug, Default)]
struct Properties {
    revision: u64,
    last_modified: u64,
    ttl: Option<u64>,
}

/// A nested catalog after its repair.
struct Mended {
    root: Entry,
    hash: ContentHash,
    size: u64,
    changed: bool,
    before: Tally,
    after: Tally,
}

impl Mender<'_> {
    /// What has to be done to a catalog; those below it are repaired. Nothing if it cannot be read.
    fn examine(
        &mut self,
        reference: &NestedRef,
        transition: Option<&Entry>,
        depth: usize,
    ) -> Result<Option<Examined>, RepositoryError> {
        let path = &reference.path;
        let id = reference.hash.object(ObjectKind::Catalog);
        let file = match fetch_to_scratch(self.tools.store, id, self.tools.scratch) {
            Ok(file) => file,
            Err(RepositoryError::Store(error @ (StoreError::Missing(_) | StoreError::Object(_)))) => {
                self.findings.refuse(Rule::CatalogObject, path, format!("{error}; {}", advice(Rule::CatalogObject)));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if depth > DEEPEST {
            self.findings.refuse(Rule::CatalogDatabase, path, "catalogs are nested too deep");
            return Ok(None);
        }
        let mut edits = Vec::new();
        let read = self.read(file.path(), reference, transition, &mut edits);
        let (scan, statistics, properties) = match read {
            Ok(read) => read,
            Err(Unreadable::Repository(error)) => return Err(error),
            Err(Unreadable::Database(why)) => {
                // The private copy is nobody's business.
                let why = why.replace(&*file.path().to_string_lossy(), &reference.hash.to_string());
                let why = format!("{why}; {}", advice(Rule::CatalogDatabase));
                self.findings.refuse(Rule::CatalogDatabase, path, why);
                return Ok(None);
            }
            Err(Unreadable::Told) => return Ok(None),
        };
        let Statistics { recorded, names, missing } = statistics;
        let rows::Scan { root, own, complete, transitions, .. } = scan;
        let mut counters = Counters { own, subtree: Tally::default() };
        let mut subtree = recorded.subtree;
        let mut all_below = true;
        for (nested, (rowid, entry)) in transitions {
            let Some(mended) = self.nested(&nested, &entry, depth + 1)? else {
                all_below = false;
                continue;
            };
            counters.subtree.add(&mended.after, 1);
            subtree.add(&mended.after, 1);
            subtree.add(&mended.before, -1);
            if mended.changed {
                edits.push(Edit::SetNested { path: nested.path.clone(), hash: mended.hash, size: mended.size });
            } else if nested.size != 0 && nested.size != mended.size {
                let what = format!("recorded size {} becomes {}", nested.size, mended.size);
                self.findings.repair(Rule::CatalogSize, &nested.path, what);
                edits.push(Edit::SetNested { path: nested.path.clone(), hash: mended.hash, size: mended.size });
            }
            let flags = Flags::NESTED_MOUNTPOINT | Flags::NESTED_ROOT;
            let same = Flags(mended.root.flags.without(flags).0 | (entry.flags.0 & flags));
            let wanted = Entry { flags: same, ..mended.root };
            if wanted != entry {
                let rule = match (Entry { uid: wanted.uid, gid: wanted.gid, ..entry.clone() }) == wanted {
                    true => Rule::TransitionOwner,
                    false => Rule::Transition,
                };
                self.findings.repair(rule, &nested.path, "the transition point becomes what the root entry is");
                // Directories count the same whatever their metadata; attributes do not.
                counters.own.count(&entry, -1);
                counters.own.count(&wanted, 1);
                edits.push(Edit::Update { rowid, key: nested.path.key(), entry: wanted.into() });
            }
        }
        if !all_below {
            counters.subtree = subtree;
        }
        if !complete {
            counters.own = recorded.own;
        }
        // Older revisions of the schema know fewer counters.
        let both = counters.rows().zip(recorded.rows());
        let differs = both.filter(|((name, now), (_, then))| now != then && names.contains(name)).count();
        if differs > 0 {
            self.findings.repair(Rule::Counter, path, format!("{differs} statistics counters are counted anew"));
        } else if missing > 0 {
            self.findings.repair(Rule::CounterMissing, path, format!("{missing} statistics counters are entered"));
        }
        let is_miscounted = differs > 0 || missing > 0;
        Ok(Some(Examined { file, edits, root, recorded, counters, is_miscounted, properties }))
    }

    #[allow(clippy::type_complexity, reason = "handed on once, in the function above")]
    fn read(
        &mut self,
        file: &Path,
        reference: &NestedRef,
        transition: Option<&Entry>,
        edits: &mut Vec<Edit>,
    ) -> Result<(rows::Scan, Statistics, Properties), Unreadable> {
        let path = &reference.path;
        if has_write_ahead_log(file).map_err(database)? {
            leave_write_ahead_log(file).map_err(database)?;
            self.findings.repair(Rule::CatalogDatabase, path, "it leaves write-ahead-log mode");
            edits.push(Edit::Touch);
        }
        // Refuses whatever would run statements of its own.
        let indexes: i64 =
            open_immutable(file).and_then(|db| db.query_row(rows::INDEXES, (), |row| row.get(0))).map_err(database)?;
        if indexes == 0 {
            let create = || rusqlite::Connection::open(file)?.execute_batch(crate::catalog::schema::CREATE_INDEX);
            create().map_err(database)?;
            self.findings.repair(Rule::CatalogIndex, path, "the index is made");
            edits.push(Edit::Touch);
        }
        let catalog = Catalog::open(file, path.clone()).map_err(database)?;
        if (catalog.version().schema - 2.5).abs() > 1e-3 {
            // What was never written by anybody in use is read, and not written either.
            return Err(Unreadable::Told);
        }
        let (recorded, missing) = catalog.counters_and_missing().map_err(database)?;
        let names = open_immutable(file).and_then(|db| {
            let mut statement = db.prepare("SELECT counter FROM statistics LIMIT 1000")?;
            statement.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<HashSet<String>>>()
        });
        let statistics = Statistics { recorded, names: names.map_err(database)?, missing: missing.len() };
        let properties = Properties {
            revision: catalog.revision().map_err(database)?,
            last_modified: catalog.last_modified().map_err(database)?,
            ttl: catalog.ttl().map_err(database)?,
        };
        let scan = rows::scan(&catalog, self.tools, transition, edits, &mut self.findings)?;
        Ok((scan, statistics, properties))
    }

    /// Repairs a nested catalog with all below it. Nothing if it cannot be read.
    fn nested(
        &mut self,
        reference: &NestedRef,
        transition: &Entry,
        depth: usize,
    ) -> Result<Option<Mended>, RepositoryError> {
        let Some(examined) = self.examine(reference, Some(transition), depth)? else { return Ok(None) };
        let Examined { file, edits, root, recorded, counters, is_miscounted, .. } = examined;
        let (before, after) = (recorded.total(), counters.total());
        let changed = !edits.is_empty() || is_miscounted;
        let (hash, size) = match (changed, self.encoding) {
            (true, Some(encoding)) => self.write(reference, &file, &edits, &counters, encoding)?,
            _ => {
                let size = file.as_file().metadata().map_err(scratch_error(self.tools.scratch))?.len();
                (reference.hash, size)
            }
        };
        Ok(Some(Mended { root, hash, size, changed, before, after }))
    }

    fn write(
        &self,
        reference: &NestedRef,
        file: &NamedTempFile,
        edits: &[Edit],
        counters: &Counters,
        encoding: Encoding,
    ) -> Result<(ContentHash, u64), RepositoryError> {
        let writer = CatalogWriter::open(file.path())?;
        apply(&writer, edits, &reference.path)?;
        writer.set_counters(counters)?;
        let revision: u64 = writer.property("revision")?.and_then(|r| r.parse().ok()).unwrap_or(0);
        writer.set_property("revision", &revision.saturating_add(1).to_string())?;
        writer.set_property("previous_revision", &reference.hash.to_string())?;
        writer.set_property("last_modified", &self.tools.now.to_string())?;
        writer.compact()?;
        let size = writer.finish()?;
        let mut plain = File::open(file.path()).map_err(scratch_error(self.tools.scratch))?;
        let (hash, _) = put_stream(self.tools.store, encoding, ObjectKind::Catalog, &mut plain)?;
        Ok((hash, size))
    }
}

/// Why the rows of a catalog cannot be read.
enum Unreadable {
    Repository(RepositoryError),
    Database(String),
    /// The findings say it.
    Told,
}

impl From<RepositoryError> for Unreadable {
    fn from(error: RepositoryError) -> Unreadable {
        Unreadable::Repository(error)
    }
}

fn database(error: impl std::error::Error) -> Unreadable {
    Unreadable::Database(crate::check::chain(&error))
}

impl From<rusqlite::Error> for Unreadable {
    fn from(error: rusqlite::Error) -> Unreadable {
        database(error)
    }
}

/// A private copy; whatever its log held never was in the object.
fn leave_write_ahead_log(file: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    file.seek(SeekFrom::Start(18))?;
    file.write_all(&[1, 1])
}

/// Transition points that lead to a registered catalog: the row, and the entry as it will be.
type Transitions = Vec<(NestedRef, (i64, Entry))>;

/// Registered catalogs by path.
type Registered = HashMap<RepoPath, NestedRef>;
