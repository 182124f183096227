//! Publishes the content of any archive below a directory of the repository, in one publish.
//!
//! ```text
//! members → rows in tree order, content → objects        archive.rs   no lock
//! many rows into a new or empty directory → a subtree     place.rs     no lock
//! deletions, then the subtree or the rows                 place.rs     under the lock, one transaction
//! ```
//!
//! What an archive means
//! - Members replace what has their name, with everything below it. A directory over a directory keeps its content and
//!   takes the new metadata; only the root of the repository keeps its own. The last member of a name wins.
//! - Kept as they are: names (bytes), modes with set-id bits, times, numeric owners, extended attributes, link targets,
//!   devices, pipes, holes as zeros. Nothing is a whiteout: `.wh.` files and 0:0 devices are published like any other.
//! - Directories that are needed and not listed: 0755, of whoever publishes, now; existing ones are not touched.
//! - Links are never followed: a member or a base below a symbolic link, in the archive or in the repository, is refused.
//! - Hard links may lead to a member or to what the repository has below the base. Names in one directory are one file;
//!   across directories, where the format has no hard links, they become files of their own (counted).
//! - A file `.cvmfscatalog` gives its directory a nested catalog. The file itself is not kept: the catalog gets the
//!   hidden marker that all ours have.
//! - What the format can't hold is listed as `lost`: attributes with a name or value over 255 bytes or beyond the 255th
//!   are left out, owners that are no 32-bit numbers become 65534, times outside the years 1 to 9999 move to that limit.
//!
//! Refused: `..`, NUL and over-long names, links to directories or to nothing, members below what is no directory, and
//! everything that belongs to published images. A refused archive changes nothing.

mod archive;
mod place;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cvmfs::catalog::NestedRef;
use cvmfs::path::RepoPath;
use cvmfs::subtree::MARKER;
use cvmfs::transaction::Transaction;
use image::layout::LostRecord;
use image::tree::TreePath;
use indicatif::DecimalBytes;
use serde::Serialize;
use time::UtcDateTime;

use crate::cli;
use crate::content::Collector;
use crate::decompress::Unpacked;
use crate::error::printable;
use crate::failure::Failure;
use crate::raw_index::RawIndex;
use crate::target::{Target, until_first};
use archive::Archive;
use place::Base;

/// Top-level names of the trees that images are published in.
const IMAGE_TREES: [&[u8]; 6] = [b".flat", b".layers", b".index", b".metadata", b".multiarch", b"podmanStore"];
/// Members from which an archive for a new or empty directory is written as a subtree of its own.
const MANY: u64 = 1000;

/// What an ingest did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ingested {
    /// Version of the JSON form.
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// The directory that received the content, if there was an archive.
    pub base: Option<String>,
    /// Revision before.
    pub revision_before: u64,
    /// Revision now; the same if there was nothing to change.
    pub revision: u64,
    /// Members of the archive.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Bytes of those files.
    pub bytes: u64,
    /// Bytes written into the repository's storage for them.
    pub stored: u64,
    /// Bytes of files that the repository had already.
    pub deduplicated: u64,
    /// Hard links across directories, which became files of their own.
    pub broken_links: u64,
    /// Paths deleted.
    pub deleted: Vec<String>,
    /// Paths to delete that were not there.
    pub missing: Vec<String>,
    /// What could not be kept; paths as the archive has them.
    pub lost: Vec<LostRecord>,
    /// How many more could not be kept.
    pub lost_more: u64,
    /// Wall-clock time.
    pub seconds: f64,
}

impl Ingested {
    /// For people: what deserves attention, then one line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for path in &self.deleted {
            let _ = writeln!(text, "deleted   {}", printable(path));
        }
        for path in &self.missing {
            let _ = writeln!(text, "missing   {}: nothing to delete", printable(path));
        }
        for lost in &self.lost {
            let _ = writeln!(text, "lost      {}: {}", printable(&lost.path), printable(&lost.what));
        }
        if self.lost_more > 0 {
            let _ = writeln!(text, "lost      and {} more", self.lost_more);
        }
        if self.broken_links > 0 {
            let _ = writeln!(text, "{} hard links across directories became files of their own", self.broken_links);
        }
        let _ = write!(text, "{}: ", printable(&self.repository));
        if let Some(base) = &self.base {
            let (read, stored) = (DecimalBytes(self.bytes), DecimalBytes(self.stored));
            let base = printable(base);
            let _ = write!(text, "{} members, {read} of files, {stored} stored, in {base}; ", self.entries);
        }
        let _ = match self.revision == self.revision_before {
            true => writeln!(text, "revision {}, nothing to change", self.revision),
            false => writeln!(text, "revision {} -> {}", self.revision_before, self.revision),
        };
        text
    }

    /// For programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only strings and numbers");
        text.push('\n');
        text
    }
}

/// Publishes an archive, deletes paths, or both.
pub fn ingest(target: &Target, arguments: &cli::Ingest) -> Result<Ingested, Failure> {
    let start = Instant::now();
    let delete = arguments.delete.iter().map(|path| path_to_delete(path)).collect::<Result<Vec<_>, _>>()?;
    let (mut incoming, preparation) = match (&arguments.tar, &arguments.base) {
        (Some(tar), Some(base)) => {
            let preparation = target.prepare("ingest an archive")?;
            (Some(Incoming::read(target, arguments, tar, base, &delete)?), Some(preparation))
        }
        _ => (None, None),
    };
    let (revision_before, revision, deleted, missing) = until_first(|| {
        let lock = target.lock()?;
        if let Some((incoming, preparation)) = incoming.as_ref().zip(preparation.as_ref())
            && !preparation.is_undisturbed(target)?
        {
            incoming.prove(target)?;
        }
        let now = UtcDateTime::now();
        let mut transaction = target.begin(&lock, now)?;
        let revision_before = target.repository()?.manifest().revision;
        let (deleted, missing) = remove(&mut transaction, &delete)?;
        if let Some(incoming) = &mut incoming {
            place::place(&mut transaction, incoming, now)?;
        }
        let revision = match transaction.is_empty() {
            true => revision_before,
            false => target.commit(transaction)?.repository.manifest().revision,
        };
        Ok((revision_before, revision, deleted, missing))
    })?;
    let shown = |paths: Vec<RepoPath>| paths.iter().map(ToString::to_string).collect();
    let mut report = Ingested {
        schema: 1,
        repository: target.fqrn.clone(),
        base: None,
        revision_before,
        revision,
        entries: 0,
        files: 0,
        bytes: 0,
        stored: 0,
        deduplicated: 0,
        broken_links: 0,
        deleted: shown(deleted),
        missing: shown(missing),
        lost: Vec::new(),
        lost_more: 0,
        seconds: start.elapsed().as_secs_f64(),
    };
    if let Some(Incoming { base, archive, cost, .. }) = incoming {
        report.base = Some(base.to_string());
        (report.entries, report.files, report.bytes) = (archive.members, archive.files, archive.bytes);
        (report.stored, report.deduplicated) = cost;
        report.broken_links = archive.broken_links;
        (report.lost, report.lost_more) = (archive.lost, archive.lost_more);
    }
    Ok(report)
}

/// An archive whose content is stored, ready to be placed.
struct Incoming {
    base: RepoPath,
    archive: Archive,
    /// Whether the base is to have a catalog of its own.
    catalog: bool,
    /// The finished subtree, for a base that was missing or empty when the archive was read.
    graft: Option<cvmfs::transaction::Graft>,
    /// Bytes written and bytes that were there.
    cost: (u64, u64),
}

impl Incoming {
    fn read(
        target: &Target,
        arguments: &cli::Ingest,
        tar: &Path,
        base: &str,
        delete: &[RepoPath],
    ) -> Result<Incoming, Failure> {
        let base = base_directory(base)?;
        // What stands in the way is better said before a long archive is read.
        let state = {
            let mut view = target.view(UtcDateTime::now())?;
            remove(&mut view, delete)?;
            place::base_state(&mut view, &base)?
        };
        let source: Box<dyn Read + Send> = match tar == Path::new("-") {
            true => Box::new(io::stdin()),
            false => Box::new(File::open(tar).map_err(Failure::io("open", tar))?),
        };
        let algorithm = target.repository()?.algorithm();
        let index = Arc::new(RawIndex::open(&target.paths.state, algorithm, target.codec)?);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = target.pool(index.clone(), threads)?;
        let collector = Arc::new(Collector::default());
        let unpacked = Unpacked::new(source, &arguments.limits)?;
        let read = Archive::read(unpacked, &base, &pool, &collector, &arguments.limits);
        index.flush()?;
        let archive = read?;
        let catalog = arguments.catalog || archive.markers.contains(&TreePath::root());
        let cost = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let cost = (cost(&collector.cost.stored), cost(&collector.cost.deduplicated));
        let mut incoming = Incoming { base, archive, catalog, graft: None, cost };
        let is_new = !matches!(state, Base::InUse) && !incoming.base.is_root();
        if is_new && (catalog || incoming.archive.members > MANY) {
            let root = if let Base::Empty(entry) = state { Some(*entry) } else { None };
            let Incoming { base, archive, graft, .. } = &mut incoming;
            *graft = Some(place::write_subtree(target, archive, base, root, &pool)?);
        }
        Ok(incoming)
    }
}

impl Incoming {
    /// Fails unless all that was stored is in the storage.
    fn prove(&self, target: &Target) -> Result<(), Failure> {
        let is_present = match &self.graft {
            Some(graft) => {
                let (path, hash, size) = (graft.path.clone(), graft.catalog, graft.size);
                target.is_present(&NestedRef { path, hash, size })?
            }
            None => self.archive.is_present(&*target.store)?,
        };
        if is_present { Ok(()) } else { Err(Failure::Collected { what: "the archive".into() }) }
    }
}

/// Deletes paths; gives those that were there and those that were not.
fn remove(transaction: &mut Transaction, paths: &[RepoPath]) -> Result<(Vec<RepoPath>, Vec<RepoPath>), Failure> {
    let (mut deleted, mut missing) = (Vec::new(), Vec::new());
    for path in paths {
        place::refuse_links_above(transaction, path)?;
        if transaction.lookup(path)?.is_none() {
            missing.push(path.clone());
            continue;
        }
        place::refuse_images(transaction, path)?;
        transaction.remove(path)?;
        deleted.push(path.clone());
    }
    Ok((deleted, missing))
}

/// The directory that receives the content.
fn base_directory(text: &str) -> Result<RepoPath, Failure> {
    let path = path_of(text).map_err(|e| Failure::Content(format!("--base {text}: {e}")))?;
    if path.components().any(|name| name == MARKER) {
        return Err(Failure::Content(format!("--base {text}: no directory can be named .cvmfscatalog")));
    }
    refuse_foreign_trees(&path)?;
    Ok(path)
}

fn path_to_delete(text: &str) -> Result<RepoPath, Failure> {
    let refuse = |why: &str| Err(Failure::Content(format!("--delete {text}: {why}")));
    let path = match path_of(text) {
        Ok(path) => path,
        Err(e) => return refuse(&e.to_string()),
    };
    if path.is_root() {
        return refuse("the root of a repository can't be deleted");
    }
    if path.name() == MARKER {
        return refuse("this file marks a nested catalog and goes with its directory only");
    }
    refuse_foreign_trees(&path)?;
    Ok(path)
}

fn path_of(text: &str) -> Result<RepoPath, image::tree::PathError> {
    let path = TreePath::normalise(text.as_bytes())?;
    Ok(RepoPath::ROOT.join_path(path.as_bytes()).expect("both crates have the same normal form"))
}

/// Images are published and removed as a whole, with their records; the virtual directory belongs to the reference tools.
fn refuse_foreign_trees(path: &RepoPath) -> Result<(), Failure> {
    match path.components().next() {
        Some(top) if IMAGE_TREES.contains(&top) => Err(Failure::Content(format!(
            "{path} belongs to the published images, which \"cvmfs-publisher convert\" and \"convert-image\" write; \
             ingest never touches them"
        ))),
        Some(b".cvmfs") => Err(Failure::Content(format!(
            "{path} belongs to the virtual directory, in which the reference tools show the repository's tags; ingest \
             never touches it"
        ))),
        _ => Ok(()),
    }
}
