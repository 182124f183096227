//! The rows of one catalog.
//!
//! Listing by listing from the root entry down, as a client would see it; each row is read once. A row that no
//! listing shows is noticed because the numbers don't match. Listings come in pages, and a directory that
//! waits for its turn costs its name: a catalog of millions of rows needs little memory, whatever its shape.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::rc::Rc;

use md5::{Digest as _, Md5};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::presence::Presence;
use super::{CheckError, Report, Rule};
use crate::catalog::counters::{Counter, Tally};
use crate::catalog::reader::{decode_row, open_immutable};
use crate::catalog::{NestedRef, Row, schema};
use crate::entry::{Entry, FileType, Flags};
use crate::hash::{ContentHash, ObjectKind};
use crate::path::{PathKey, RepoPath};
use crate::traversal::Loaded;
use crate::xattr;

/// Rows of a directory that are held at a time.
const PAGE: usize = 1024;

/// Without an index every listing reads the whole table: catalogs with more rows than this are left alone.
const MAX_ROWS_WITHOUT_INDEX: i64 = 20_000;

const MARKER: &[u8] = b".cvmfscatalog";

/// What the rows of a catalog say.
#[derive(Debug)]
pub(super) struct Rows {
    /// The root entry.
    pub root: Option<Entry>,
    /// Statistics of the catalog itself.
    pub counted: Tally,
    /// Whether all rows were seen, so that `counted` is the truth.
    pub complete: bool,
    /// Transition points to registered nested catalogs.
    pub transitions: HashMap<RepoPath, Entry>,
    /// Number of rows read.
    pub read: u64,
}

/// Rows, or why the database cannot be read.
type Checked = Result<Rows, Box<dyn Error>>;

/// Checks the rows of a catalog with these `nested` catalogs.
pub(super) fn check(
    catalog: &Loaded,
    nested: Vec<NestedRef>,
    presence: Option<&mut Presence<'_>>,
    report: &mut Report,
) -> Result<Checked, CheckError> {
    let scan = match Scan::new(catalog, nested, presence, report) {
        Ok(scan) => scan,
        Err(error) => return Ok(Err(error)),
    };
    match scan.run() {
        Ok(rows) => Ok(Ok(rows)),
        Err(Stop::Check(error)) => Err(error),
        Err(Stop::Database(error)) => Ok(Err(error)),
    }
}

/// Why a scan ends early: the check as a whole failed, or this database cannot be read.
enum Stop {
    Check(CheckError),
    Database(Box<dyn Error>),
}

impl From<CheckError> for Stop {
    fn from(error: CheckError) -> Stop {
        Stop::Check(error)
    }
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Stop {
        Stop::Database(error.into())
    }
}

/// A directory whose listing waits.
struct Pending {
    parent: Rc<RepoPath>,
    name: Box<[u8]>,
    links: u32,
}

/// The names of one hard-link group in one directory.
struct Group {
    first: Entry,
    names: u32,
}

struct Scan<'a, 'p> {
    db: Connection,
    root: &'a RepoPath,
    listing: String,
    has_links: bool,
    has_chunks: bool,
    row_count: i64,
    listed: i64,
    pending: Vec<Pending>,
    /// Registered nested catalogs, and whether their transition point was seen.
    nested: HashMap<RepoPath, bool>,
    binds: HashSet<RepoPath>,
    marker_seen: bool,
    rows: Rows,
    presence: Option<&'a mut Presence<'p>>,
    report: &'a mut Report,
}

impl<'a, 'p> Scan<'a, 'p> {
    fn new(
        catalog: &'a Loaded,
        nested: Vec<NestedRef>,
        presence: Option<&'a mut Presence<'p>>,
        report: &'a mut Report,
    ) -> Result<Scan<'a, 'p>, Box<dyn Error>> {
        let version = catalog.version();
        let columns = schema::columns(version.schema, version.revision);
        let listing = format!(
            "SELECT {columns} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND rowid > ?3 ORDER BY rowid LIMIT ?4"
        );
        let root = &catalog.reference().path;
        let row_count = catalog.row_count()?;
        let binds: HashSet<RepoPath> = catalog.bind_mountpoints()?.into_iter().map(|b| b.path).collect();
        for both in nested.iter().filter(|n| binds.contains(&n.path)) {
            report.add(Rule::NestedExclusive, &both.path, "");
        }
        let rows = Rows {
            root: catalog.lookup(root.key())?.map(|row| row.entry),
            counted: Tally::default(),
            complete: false,
            transitions: HashMap::new(),
            read: 0,
        };
        Ok(Scan {
            db: open_immutable(catalog.file())?,
            root,
            listing,
            has_links: version.schema >= 2.0,
            has_chunks: version.schema >= 2.4,
            row_count,
            listed: 0,
            pending: Vec::new(),
            nested: nested.into_iter().map(|n| (n.path, false)).collect(),
            binds,
            marker_seen: false,
            rows,
            presence,
            report,
        })
    }

    fn run(mut self) -> Result<Rows, Stop> {
        if !self.check_index()? || !self.check_root()? {
            return Ok(self.rows);
        }
        while let Some(directory) = self.pending.pop() {
            let path = match directory.name.is_empty() {
                true => RepoPath::clone(&directory.parent),
                false => directory.parent.join(&directory.name),
            };
            self.check_directory(&Rc::new(path), directory.links)?;
            if self.listed > self.row_count {
                return Err(Stop::Database("rows are listed more than once".into()));
            }
        }
        if self.listed != self.row_count {
            let found = format!("{} of {} rows", self.row_count - self.listed, self.row_count);
            self.report.add(Rule::UnreachableRows, self.root, found);
        }
        for (path, _) in self.nested.iter().filter(|(_, seen)| !**seen) {
            self.report.add(Rule::NestedStray, path, "");
        }
        if !self.root.is_root() && !self.marker_seen {
            self.report.add(Rule::MarkerMissing, self.root, "");
        }
        if self.has_chunks {
            let chunks: i64 = self.db.query_row("SELECT count(*) FROM chunks", (), |row| row.get(0))?;
            let known = self.rows.counted[Counter::Chunks];
            if chunks != known {
                self.report.add_expecting(Rule::ChunkStray, self.root, known, chunks);
            }
        }
        self.rows.complete = true;
        Ok(self.rows)
    }

    /// Whether listings can be had at bearable cost.
    fn check_index(&mut self) -> Result<bool, Stop> {
        let sql = "SELECT count(*) FROM sqlite_schema AS s, pragma_index_info(s.name) AS i
            WHERE s.type = 'index' AND s.tbl_name = 'catalog' AND i.seqno = 0 AND i.name = 'parent_1'";
        let indexes: i64 = self.db.query_row(sql, (), |row| row.get(0))?;
        if indexes == 0 {
            self.report.add(Rule::CatalogIndex, self.root, "");
        }
        Ok(indexes > 0 || self.row_count <= MAX_ROWS_WITHOUT_INDEX)
    }

    fn check_root(&mut self) -> Result<bool, Stop> {
        let sql = "SELECT rowid, parent_1, parent_2 FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2";
        let key = self.root.key();
        let Some(entry) = self.rows.root.clone().filter(Entry::is_directory) else {
            self.report.add(Rule::CatalogRoot, self.root, "");
            return Ok(false);
        };
        let (rowid, high, low): (i64, i64, i64) =
            self.db.query_row(sql, (key.high, key.low), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let parent = self.root.parent().map_or(PathKey::NONE, |p| p.key());
        if (PathKey { high, low }) != parent {
            self.report.add(Rule::CatalogRoot, self.root, "its parent key is not that of the directory above");
        }
        if self.root.is_root() && rowid != 1 {
            self.report.add_expecting(Rule::RootRow, self.root, 1, rowid);
        }
        if entry.flags.is_nested_root() == self.root.is_root() {
            self.report.add(Rule::NestedFlags, self.root, format!("flags {:#x}", entry.flags.0));
        }
        self.check_any(self.root, &entry);
        self.listed = 1;
        self.rows.read = 1;
        self.rows.counted.count(&entry, 1);
        let root = Rc::new(self.root.clone());
        self.pending.push(Pending { parent: root, name: Box::default(), links: entry.links });
        Ok(true)
    }

    fn check_directory(&mut self, path: &Rc<RepoPath>, links: u32) -> Result<(), Stop> {
        let key = path.key();
        let prefix = Md5::new_with_prefix(path.as_bytes()).chain_update(b"/");
        let mut groups: HashMap<u32, Group> = HashMap::new();
        let mut directories = 0;
        let mut after = 0;
        loop {
            let page = self.page(key, after, path)?;
            let count = page.len();
            for (rowid, row) in page {
                after = rowid;
                self.listed += 1;
                self.rows.read += 1;
                let Some(row) = row else { continue };
                directories += u32::from(row.entry.is_directory());
                self.check_row(path, &prefix, row, &mut groups)?;
            }
            if count < PAGE || self.listed > self.row_count {
                break;
            }
        }
        for group in groups.values().filter(|g| g.names != g.first.links) {
            let place = path.join(&group.first.name);
            self.report.add_expecting(Rule::HardlinkGroup, place, format!("{} names", group.first.links), group.names);
        }
        if self.has_links && links != directories.saturating_add(2) {
            self.report.add_expecting(Rule::DirectoryLinks, path, u64::from(directories) + 2, links);
        }
        Ok(())
    }

    /// The next rows of a listing; without content where it is malformed.
    fn page(&mut self, key: PathKey, after: i64, path: &RepoPath) -> Result<Vec<(i64, Option<Row>)>, Stop> {
        let mut statement = self.db.prepare_cached(&self.listing)?;
        let mut rows = statement.query((key.high, key.low, after, PAGE as i64))?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            let rowid = row.get(0)?;
            // Column numbers as in `schema::columns`.
            let null = |i| matches!(row.get_ref(i), Ok(ValueRef::Null));
            let place = || format!("{path} row {rowid}");
            for (column, name) in [(12, "name"), (13, "symlink")] {
                if null(column) {
                    self.report.add(Rule::MalformedRow, place(), format!("{name} is NULL, clients crash on it"));
                }
            }
            if !matches!(row.get_ref(7), Ok(ValueRef::Integer(0..=MAX_SIZE))) {
                self.report.add(Rule::MalformedRow, place(), "size is no number of bytes");
            }
            let decoded = decode_row(row).and_then(|row| match row.entry.size <= MAX_SIZE as u64 {
                true => Ok(row),
                false => Err(format!("row {rowid}: the size is absurd")),
            });
            match decoded {
                Ok(decoded) => page.push((rowid, Some(decoded))),
                Err(what) => {
                    self.report.add(Rule::MalformedRow, path, what);
                    page.push((rowid, None));
                }
            }
        }
        Ok(page)
    }

    fn check_row(
        &mut self,
        directory: &Rc<RepoPath>,
        prefix: &Md5,
        row: Row,
        groups: &mut HashMap<u32, Group>,
    ) -> Result<(), Stop> {
        let entry = row.entry;
        self.rows.counted.count(&entry, 1);
        if entry.name.is_empty() {
            self.report.add(Rule::EntryName, directory, format!("row {}", row.rowid));
            return Ok(());
        }
        let path = directory.join(&entry.name);
        let key = PathKey::finish(prefix.clone().chain_update(&entry.name));
        let reachable = key == row.key;
        if !reachable {
            self.report.add(Rule::PathKey, &path, format!("row {}", row.rowid));
        }
        self.check_any(&path, &entry);
        if entry.flags.is_nested_root() {
            self.report.add(Rule::NestedFlags, &path, "flag of a catalog's root entry on another one");
        }
        if entry.name == MARKER {
            match **directory == *self.root {
                true => self.marker_seen = true,
                false => self.report.add(Rule::MarkerPlace, &path, ""),
            }
        }
        if entry.is_directory() {
            return self.check_subdirectory(directory, path, key, entry, reachable);
        }
        if entry.links > 1 {
            self.check_group(&path, &entry, groups);
        }
        match entry.file_type() {
            FileType::Regular => self.check_file(&path, key, &entry),
            FileType::Symlink => {
                if let Some(hash) = entry.content {
                    self.report.add(Rule::Symlink, path, hash);
                }
                Ok(())
            }
            special => {
                self.check_special(&path, special, &entry);
                Ok(())
            }
        }
    }

    /// Rules for entries of every type.
    fn check_any(&mut self, path: &RepoPath, entry: &Entry) {
        let (flags, file_type) = (entry.flags, entry.file_type());
        if self.has_links && entry.links == 0 {
            self.report.add(Rule::LinkCount, path, "");
        }
        let expected = match file_type {
            FileType::Directory => Flags::DIRECTORY,
            FileType::Regular => Flags::FILE,
            FileType::Symlink => Flags::FILE | Flags::SYMLINK,
            _ => Flags::FILE | Flags::SPECIAL,
        };
        let types = flags.0 & (Flags::DIRECTORY | Flags::FILE | Flags::SYMLINK | Flags::SPECIAL);
        let is_directory = file_type == FileType::Directory;
        let misplaced = (!is_directory && flags.0 & (Flags::NESTED_MOUNTPOINT | Flags::BIND_MOUNTPOINT) != 0)
            || (file_type != FileType::Regular && flags.is_chunked());
        if types != expected || misplaced {
            self.report.add(Rule::TypeFlags, path, format!("flags {:#x} on a {file_type:?}", flags.0));
        }
        if file_type != FileType::Regular {
            if flags.is_direct_io() {
                self.report.add(Rule::DirectIo, path, format!("{file_type:?}"));
            }
            if flags.is_external() {
                self.report.add(Rule::External, path, format!("{file_type:?}"));
            }
        }
        if is_directory && entry.link_group != 0 {
            self.report.add(Rule::HardlinkGroup, path, format!("a directory in group {}", entry.link_group));
        }
        if entry.xattrs.as_deref().is_some_and(|blob| xattr::unpack(blob).is_empty()) {
            self.report.add(Rule::XattrBlob, path, "");
        }
    }

    fn check_subdirectory(
        &mut self,
        directory: &Rc<RepoPath>,
        path: RepoPath,
        key: PathKey,
        entry: Entry,
        reachable: bool,
    ) -> Result<(), Stop> {
        let (nested, bind) = (entry.flags.is_nested_mountpoint(), entry.flags.is_bind_mountpoint());
        if !nested && !bind {
            if reachable {
                let name = entry.name.into_boxed_slice();
                self.pending.push(Pending { parent: directory.clone(), name, links: entry.links });
            }
            return Ok(());
        }
        if nested && bind {
            self.report.add(Rule::NestedExclusive, &path, "both flags");
        }
        let mut statement =
            self.db.prepare_cached("SELECT 1 FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 LIMIT 1")?;
        if statement.exists((key.high, key.low))? {
            self.report.add(Rule::NestedCovered, &path, "");
        }
        drop(statement);
        if bind && !self.binds.contains(&path) {
            self.report.add(Rule::BindUnregistered, &path, "");
        }
        if nested {
            self.rows.counted[Counter::Nested] += 1;
            match self.nested.get_mut(&path) {
                Some(seen) => *seen = true,
                None => self.report.add(Rule::NestedUnregistered, &path, ""),
            }
            self.rows.transitions.insert(path, entry);
        }
        Ok(())
    }

    fn check_group(&mut self, path: &RepoPath, entry: &Entry, groups: &mut HashMap<u32, Group>) {
        if entry.link_group == 0 {
            let found = format!("link count {}, no group", entry.links);
            self.report.add(Rule::HardlinkGroup, path, found);
            return;
        }
        match groups.entry(entry.link_group) {
            Slot::Vacant(free) => {
                free.insert(Group { first: entry.clone(), names: 1 });
            }
            Slot::Occupied(mut group) => {
                let Group { first, names } = group.get_mut();
                *names += 1;
                let renamed = Entry { name: first.name.clone(), ..entry.clone() };
                if renamed != *first {
                    let first = String::from_utf8_lossy(&first.name);
                    self.report.add(Rule::HardlinkGroup, path, format!("differs from {first:?} of its group"));
                }
            }
        }
    }

    fn check_special(&mut self, path: &RepoPath, file_type: FileType, entry: &Entry) {
        let is_device = matches!(file_type, FileType::Char | FileType::Block);
        let what = match entry {
            Entry { content: Some(_), .. } => "it has a content hash",
            Entry { symlink, .. } if !symlink.is_empty() => "it has a link target",
            Entry { size: 1.., .. } if !is_device => "it has a size",
            _ => return,
        };
        self.report.add(Rule::SpecialFile, path, what);
    }

    fn check_file(&mut self, path: &RepoPath, key: PathKey, entry: &Entry) -> Result<(), Stop> {
        if entry.flags.is_chunked() {
            self.check_chunks(path, key, entry)?;
        } else if entry.content.is_none() {
            self.report.add(Rule::ContentHash, path, "");
        }
        match entry.content {
            Some(hash) => self.require(hash, ObjectKind::File, path, None, entry),
            None => Ok(()),
        }
    }

    fn check_chunks(&mut self, path: &RepoPath, key: PathKey, entry: &Entry) -> Result<(), Stop> {
        if !self.has_chunks {
            return Ok(());
        }
        let (mut next, mut sum) = (Some(0u64), Some(0u64));
        let mut after: Option<(i64, i64)> = None;
        loop {
            // In pages, since a file may have any number of chunks and the storage is asked in between.
            let page = self.chunk_page(key, after)?;
            let count = page.len();
            for (offset, size, hash) in page {
                self.rows.counted[Counter::Chunks] += 1;
                after = Some((offset, size));
                let hash = hash.and_then(|raw| ContentHash::from_raw(entry.algorithm(), &raw));
                let (Some(hash), Ok(from), Ok(length)) = (hash, u64::try_from(offset), u64::try_from(size)) else {
                    self.report.add(Rule::MalformedRow, path, format!("chunk at {offset} of size {size}"));
                    (next, sum) = (None, None);
                    continue;
                };
                if next.is_some_and(|next| next != from) {
                    self.report.add_expecting(Rule::ChunkOffset, path, next.unwrap_or_default(), from);
                }
                next = from.checked_add(length);
                sum = sum.and_then(|sum| sum.checked_add(length));
                self.require(hash, ObjectKind::Chunk, path, Some((from, length)), entry)?;
            }
            if count < PAGE {
                break;
            }
        }
        if sum != Some(entry.size) {
            let found = sum.map_or_else(|| "malformed chunks".into(), |sum| sum.to_string());
            self.report.add_expecting(Rule::ChunkSum, path, entry.size, found);
        }
        Ok(())
    }

    #[allow(clippy::type_complexity, reason = "one row of the chunks table, used in one place")]
    fn chunk_page(
        &self,
        key: PathKey,
        after: Option<(i64, i64)>,
    ) -> rusqlite::Result<Vec<(i64, i64, Option<Vec<u8>>)>> {
        let (offset, size) = after.unwrap_or((i64::MIN, i64::MIN));
        let mut statement = self.db.prepare_cached(
            "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2
               AND (offset, size) > (?3, ?4) ORDER BY offset, size LIMIT ?5",
        )?;
        let rows = statement.query_map((key.high, key.low, offset, size, PAGE as i64), |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, Option<Vec<u8>>>(2).unwrap_or_default()))
        })?;
        rows.collect()
    }

    fn require(
        &mut self,
        hash: ContentHash,
        kind: ObjectKind,
        path: &RepoPath,
        chunk: Option<(u64, u64)>,
        entry: &Entry,
    ) -> Result<(), Stop> {
        match &mut self.presence {
            Some(presence) if !entry.flags.is_external() => {
                Ok(presence.require(hash.object(kind), path, chunk, self.report)?)
            }
            _ => Ok(()),
        }
    }
}

/// Largest size of a file that is believed; sums of sizes must not overflow.
const MAX_SIZE: i64 = 1 << 53;
