//! What is wrong with the rows of one catalog, and what makes it right.
//!
//! Listing by listing from the root entry down, as `check` does it and as clients see it; a row is looked at once, those
//! of a broken hard-link group twice. Memory holds the directories that wait, one entry a hard-link group of a directory,
//! and the edits: as many as there are faults, up to [`MAX_EDITS`].

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use md5::{Digest as _, Md5};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension as _};

use super::{Edit, Findings, Registered, Tools, Transitions, Unreadable, database};
use crate::catalog::counters::{Counter, Tally};
use crate::catalog::reader::{decode_row, open_immutable};
use crate::catalog::{Catalog, Row, schema};
use crate::check::Rule;
use crate::entry::{Chunk, Entry, FileType, Flags};
use crate::hash::ObjectKind;
use crate::path::{PathKey, RepoPath};
use crate::store::fetch;
use crate::subtree::MARKER;
use crate::xattr;

/// Number of indexes that serve listings.
pub(super) const INDEXES: &str = "SELECT count(*) FROM sqlite_schema AS s, pragma_index_info(s.name) AS i
    WHERE s.type = 'index' AND s.tbl_name = 'catalog' AND i.seqno = 0 AND i.name = 'parent_1'";

/// Rows of a directory that are held at a time.
const PAGE: usize = 1024;
/// With more faults than this a catalog is beyond repair.
const MAX_EDITS: usize = 1 << 20;
/// Largest size of a file that is believed, as in the check.
const MAX_SIZE: u64 = 1 << 53;
/// Most chunks of a file that are put in order.
const MAX_CHUNKS: usize = 1 << 16;

/// What the rows of a catalog will be.
pub(super) struct Scan {
    pub root: Entry,
    pub own: Tally,
    /// Whether every row counts in `own`.
    pub complete: bool,
    pub transitions: Transitions,
}

/// A directory whose listing waits.
struct Pending {
    parent: Rc<RepoPath>,
    name: Box<[u8]>,
    rowid: i64,
    links: u32,
}

/// The names of one hard-link group in one directory.
struct Group {
    first: Entry,
    /// Names in all, and those that are equal to the first.
    names: u32,
    same: u32,
    is_right: bool,
}

struct Scanner<'a> {
    db: Connection,
    listing: String,
    tools: Tools<'a>,
    top: &'a RepoPath,
    edits: &'a mut Vec<Edit>,
    findings: &'a mut Findings,
    nested: Registered,
    binds: HashSet<RepoPath>,
    pending: Vec<Pending>,
    own: Tally,
    complete: bool,
    listed: i64,
    marker_seen: bool,
    /// Tells edits of unreachable rows from rows that are only there once too often.
    covered: bool,
    transitions: Transitions,
}

/// Looks at the rows of a catalog.
pub(super) fn scan(
    catalog: &Catalog,
    tools: Tools<'_>,
    transition: Option<&Entry>,
    edits: &mut Vec<Edit>,
    findings: &mut Findings,
) -> Result<Scan, Unreadable> {
    let top = catalog.mountpoint();
    let version = catalog.version();
    let columns = schema::columns(version.schema, version.revision);
    let nested: Registered = catalog.nested_all().map_err(database)?.into_iter().map(|n| (n.path.clone(), n)).collect();
    if let Some(outside) = nested.keys().find(|p| *p == top || !top.contains(p)) {
        return Err(Unreadable::Database(format!("nested catalog {outside} is not below it")));
    }
    let binds = catalog.bind_mountpoints().map_err(database)?.into_iter().map(|b| b.path).collect();
    let listing = format!(
        "SELECT {columns} FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 AND rowid > ?3 ORDER BY rowid LIMIT ?4"
    );
    let mut scanner = Scanner {
        db: open_immutable(catalog.file())?,
        listing,
        tools,
        top,
        edits,
        findings,
        nested,
        binds,
        pending: Vec::new(),
        own: Tally::default(),
        complete: true,
        listed: 0,
        marker_seen: false,
        covered: false,
        transitions: Vec::new(),
    };
    let (rowid, before) = scanner.root(transition)?;
    let root = scanner.corrected(top, &before, true);
    let prefix = catalog.property("root_prefix").map_err(database)?;
    let is_named = top.is_root() || prefix.is_some_and(|p| !p.is_empty());
    scanner.prefix(is_named && catalog.root_prefix() == top);
    let row_count = catalog.row_count().map_err(database)? + i64::from(rowid.is_none());
    scanner.run(root, &before, rowid, row_count)
}

impl Scanner<'_> {
    /// The root entry and its row; one that is missing is taken from the transition point.
    fn root(&mut self, transition: Option<&Entry>) -> Result<(Option<i64>, Entry), Unreadable> {
        let key = self.top.key();
        let found: Option<(i64, i64, i64)> = self
            .db
            .query_row(
                "SELECT rowid, parent_1, parent_2 FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2",
                (key.high, key.low),
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let parent = self.top.parent().map_or(PathKey::NONE, |p| p.key());
        let Some((rowid, high, low)) = found else {
            let Some(transition) = transition.filter(|_| self.has_rows_below(key).unwrap_or(false)) else {
                self.findings.refuse(Rule::CatalogRoot, self.top, super::advice(Rule::CatalogRoot));
                return Err(Unreadable::Told);
            };
            let flags = transition.flags.without(Flags::NESTED_MOUNTPOINT).with(Flags::NESTED_ROOT);
            let entry = Entry { flags, ..transition.clone() };
            self.findings.repair(Rule::CatalogRoot, self.top, "the root entry is made from the transition point");
            self.edits.push(Edit::Insert { key, parent, entry: entry.clone().into() });
            return Ok((None, entry));
        };
        let sql = self.listing.replace("parent_1 = ?1 AND parent_2 = ?2 AND rowid > ?3", "rowid = ?3 AND ?1 = ?2");
        let row = self.db.query_row(&sql, (1, 1, rowid, 1), |row| Ok(decode_row(row)))?;
        let entry = match row {
            Ok(row) if row.entry.is_directory() => row.entry,
            _ => {
                self.findings.refuse(Rule::CatalogRoot, self.top, super::advice(Rule::CatalogRoot));
                return Err(Unreadable::Told);
            }
        };
        if (PathKey { high, low }) != parent {
            self.findings.repair(Rule::CatalogRoot, self.top, "the root entry hangs below its directory again");
            self.edits.push(Edit::Parent { rowid, parent });
        }
        if self.top.is_root() && rowid != 1 {
            self.findings.repair(Rule::RootRow, self.top, "the root entry becomes the first row");
            self.edits.push(Edit::RootFirst { rowid });
        }
        Ok((Some(rowid), entry))
    }

    fn has_rows_below(&self, key: PathKey) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM catalog WHERE parent_1 = ?1 AND parent_2 = ?2 LIMIT 1";
        self.db.prepare_cached(sql)?.exists((key.high, key.low))
    }

    /// The rows are those of this path, or there would be no root entry.
    fn prefix(&mut self, is_right: bool) {
        if !is_right {
            self.findings.repair(Rule::RootPrefix, self.top, "root_prefix says where the catalog is mounted");
            self.edits.push(Edit::RootPrefix);
        }
    }

    fn run(mut self, mut root: Entry, before: &Entry, rowid: Option<i64>, row_count: i64) -> Result<Scan, Unreadable> {
        self.listed = 1;
        let top = Rc::new(self.top.clone());
        let directories = self.directory(&top)?;
        self.fix_links(&top, &mut root.links, directories);
        while let Some(Pending { parent, name, rowid, links }) = self.pending.pop() {
            let path = Rc::new(parent.join(&name));
            let directories = self.directory(&path)?;
            let mut now = links;
            self.fix_links(&path, &mut now, directories);
            if now != links {
                self.edit(Edit::Links { rowid, links: now })?;
            }
            if self.listed > row_count {
                return Err(Unreadable::Database("rows are listed more than once".into()));
            }
        }
        if root.name != self.top.name() {
            root.name = self.top.name().to_vec();
        }
        // An edit of the row's number comes first, the one of its content finds it by its key.
        if root != *before {
            let rowid = rowid.map_or(-1, |id| if self.top.is_root() && id != 1 { 1 } else { id });
            self.edit(Edit::Update { rowid, key: self.top.key(), entry: root.clone().into() })?;
        }
        self.own.count(&root, 1);
        if !self.top.is_root() && !self.marker_seen {
            self.findings.repair(Rule::MarkerMissing, self.top, "the marker of the catalog is made");
            let entry = Entry { name: MARKER.to_vec(), ..self.tools.marker.clone() };
            self.own.count(&entry, 1);
            let (key, parent) = (self.top.join(MARKER).key(), self.top.key());
            self.edit(Edit::Insert { key, parent, entry: entry.into() })?;
        }
        if self.listed != row_count {
            let count = row_count - self.listed;
            let rule = if self.covered { Rule::NestedCovered } else { Rule::UnreachableRows };
            self.findings.repair(rule, self.top, format!("{count} rows that no directory leads to go"));
            self.edit(Edit::DropUnreachable)?;
        }
        self.stray()?;
        Ok(Scan { root, own: self.own, complete: self.complete, transitions: self.transitions })
    }

    /// Registered catalogs without a transition point, chunks without a file.
    fn stray(&mut self) -> Result<(), Unreadable> {
        let seen: HashSet<&RepoPath> = self.transitions.iter().map(|(n, _)| &n.path).collect();
        let mut stray: Vec<RepoPath> = self.nested.keys().filter(|p| !seen.contains(p)).cloned().collect();
        stray.sort();
        for path in stray {
            self.findings.repair(
                Rule::NestedStray,
                &path,
                "the nested catalog that nobody finds is registered no more",
            );
            self.edit(Edit::RemoveNested { path })?;
        }
        let chunks: i64 = self.db.query_row("SELECT count(*) FROM chunks", (), |row| row.get(0))?;
        if chunks != self.own[Counter::Chunks] {
            let count = chunks.wrapping_sub(self.own[Counter::Chunks]);
            self.findings.repair(Rule::ChunkStray, self.top, format!("{count} chunks of no chunked file go"));
            self.edit(Edit::DropStrayChunks)?;
        }
        Ok(())
    }

    fn edit(&mut self, edit: Edit) -> Result<(), Unreadable> {
        if self.edits.len() >= MAX_EDITS {
            return Err(Unreadable::Database(format!("more than {MAX_EDITS} of its rows are wrong")));
        }
        self.edits.push(edit);
        Ok(())
    }

    fn fix_links(&mut self, path: &RepoPath, links: &mut u32, directories: u32) {
        let expected = directories.saturating_add(2);
        if *links != expected {
            self.findings.repair(Rule::DirectoryLinks, path, format!("link count {links} becomes {expected}"));
            *links = expected;
        }
    }

    /// The rows of a directory; gives the number of sub-directories.
    fn directory(&mut self, path: &Rc<RepoPath>) -> Result<u32, Unreadable> {
        let key = path.key();
        let prefix = Md5::new_with_prefix(path.as_bytes()).chain_update(b"/");
        let mut groups: HashMap<u32, Group> = HashMap::new();
        let (mut directories, mut after) = (0u32, 0);
        loop {
            let page = self.page(key, after, path)?;
            let count = page.len();
            for (rowid, row) in page {
                after = rowid;
                self.listed += 1;
                let Some((row, is_forced)) = row else {
                    self.complete = false;
                    continue;
                };
                if row.entry.is_directory() {
                    directories = directories.saturating_add(1);
                }
                self.row(path, &prefix, row, is_forced, &mut groups)?;
            }
            if count < PAGE {
                break;
            }
        }
        groups.retain(|_, group| !group.is_right || group.names != group.first.links || group.names < 2);
        if !groups.is_empty() {
            self.untie(path, &groups)?;
        }
        Ok(directories)
    }

    /// Rows of a directory, and whether one has to be written because of a value that has no place in an entry.
    #[allow(clippy::type_complexity, reason = "used in one place")]
    fn page(
        &mut self,
        key: PathKey,
        after: i64,
        path: &RepoPath,
    ) -> Result<Vec<(i64, Option<(Row, bool)>)>, Unreadable> {
        let mut statement = self.db.prepare_cached(&self.listing)?;
        let mut rows = statement.query((key.high, key.low, after, PAGE as i64))?;
        let mut page = Vec::new();
        while let Some(row) = rows.next()? {
            let rowid: i64 = row.get(0)?;
            let is_null = |i| matches!(row.get_ref(i), Ok(ValueRef::Null));
            match decode_row(row) {
                Ok(decoded) if decoded.entry.size > MAX_SIZE => {
                    self.findings.refuse(Rule::MalformedRow, path, format!("row {rowid}: the size is absurd"));
                    page.push((rowid, None));
                }
                Ok(decoded) if decoded.entry.name.is_empty() => {
                    let why = format!("row {rowid}: {}", super::advice(Rule::EntryName));
                    self.findings.refuse(Rule::EntryName, path, why);
                    page.push((rowid, None));
                }
                Ok(decoded) => {
                    let is_forced = is_null(13);
                    if is_forced {
                        let place = path.join(&decoded.entry.name);
                        self.findings.repair(Rule::MalformedRow, place, "a link target that is NULL becomes empty");
                    }
                    page.push((rowid, Some((decoded, is_forced))));
                }
                Err(what) => {
                    let why = format!("{what}; {}", super::advice(Rule::MalformedRow));
                    self.findings.refuse(Rule::MalformedRow, path, why);
                    page.push((rowid, None));
                }
            }
        }
        Ok(page)
    }

    fn row(
        &mut self,
        directory: &Rc<RepoPath>,
        prefix: &Md5,
        row: Row,
        is_forced: bool,
        groups: &mut HashMap<u32, Group>,
    ) -> Result<(), Unreadable> {
        let (rowid, before) = (row.rowid, row.entry);
        let path = directory.join(&before.name);
        let key = PathKey::finish(prefix.clone().chain_update(&before.name));
        let mut entry = self.corrected(&path, &before, false);
        let mut is_changed = is_forced || entry != before;
        if key != row.key {
            if self.is_taken(key)? {
                self.findings.refuse(Rule::PathKey, &path, "another row has its key: two entries of one name");
                self.complete = false;
                return Ok(());
            }
            self.findings.repair(Rule::PathKey, &path, "the row gets the key of its path");
            is_changed = true;
            if self.has_chunks(row.key)? && !self.has_chunks(key)? {
                self.edit(Edit::MoveChunks { from: row.key, to: key })?;
            }
        }
        if entry.name == MARKER {
            if **directory == *self.top {
                self.marker_seen = true;
            } else if entry.size == 0 && !entry.is_directory() {
                self.findings.repair(Rule::MarkerPlace, &path, "a marker that begins no catalog goes");
                return self.edit(Edit::Delete { rowid });
            } else {
                self.findings.refuse(Rule::MarkerPlace, &path, super::advice(Rule::MarkerPlace));
            }
        }
        if entry.is_directory() {
            return self.subdirectory(directory, path, key, rowid, entry, is_changed);
        }
        if entry.file_type() == FileType::Regular {
            self.file(&path, row.key, key, &mut entry, &mut is_changed)?;
        }
        self.own.count(&entry, 1);
        if entry.links > 1 && entry.link_group == 0 {
            self.findings.repair(Rule::HardlinkGroup, &path, "a link count without a group becomes 1");
            (entry.links, is_changed) = (1, true);
        }
        if entry.links > 1 {
            let alike = Entry { name: Vec::new(), ..entry.clone() };
            let group = groups.entry(entry.link_group).or_insert_with(|| Group {
                first: alike.clone(),
                names: 0,
                same: 0,
                is_right: true,
            });
            group.names += 1;
            group.is_right &= alike == group.first;
            group.same += u32::from(Entry { links: group.first.links, ..alike } == group.first);
        }
        if is_changed {
            self.edit(Edit::Update { rowid, key, entry: entry.into() })?;
        }
        Ok(())
    }

    fn is_taken(&self, key: PathKey) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM catalog WHERE md5path_1 = ?1 AND md5path_2 = ?2 LIMIT 1";
        self.db.prepare_cached(sql)?.exists((key.high, key.low))
    }

    fn has_chunks(&self, key: PathKey) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 LIMIT 1";
        self.db.prepare_cached(sql)?.exists((key.high, key.low))
    }

    /// An entry without what contradicts its type.
    fn corrected(&mut self, path: &RepoPath, before: &Entry, is_root: bool) -> Entry {
        let mut entry = before.clone();
        let file_type = entry.file_type();
        let is_directory = file_type == FileType::Directory;
        let mut fix = |rule, what: &str| self.findings.repair(rule, path, what);
        if !is_directory && entry.links == 0 {
            fix(Rule::LinkCount, "link count 0 becomes 1");
            entry.links = 1;
        }
        let types = Flags::DIRECTORY | Flags::FILE | Flags::SYMLINK | Flags::SPECIAL;
        let expected = match file_type {
            FileType::Directory => Flags::DIRECTORY,
            FileType::Regular => Flags::FILE,
            FileType::Symlink => Flags::FILE | Flags::SYMLINK,
            _ => Flags::FILE | Flags::SPECIAL,
        };
        let mut misplaced = if is_directory { 0 } else { Flags::NESTED_MOUNTPOINT | Flags::BIND_MOUNTPOINT };
        if file_type != FileType::Regular {
            misplaced |= Flags::CHUNKED;
        }
        let flags = entry.flags.without(types | misplaced).with(expected);
        if flags != entry.flags {
            fix(Rule::TypeFlags, "the flags become those of its type");
            entry.flags = flags;
        }
        if file_type != FileType::Regular {
            for (rule, bit) in [(Rule::DirectIo, Flags::DIRECT_IO), (Rule::External, Flags::EXTERNAL)] {
                if entry.flags.0 & bit != 0 {
                    fix(rule, "a flag that only regular files have goes");
                    entry.flags = entry.flags.without(bit);
                }
            }
        }
        let is_nested_root = is_root && !path.is_root();
        if entry.flags.is_nested_root() != is_nested_root {
            fix(Rule::NestedFlags, "the flag of a nested catalog's root entry stands there and nowhere else");
            entry.flags = match is_nested_root {
                true => entry.flags.with(Flags::NESTED_ROOT),
                false => entry.flags.without(Flags::NESTED_ROOT),
            };
        }
        if is_directory && entry.link_group != 0 {
            fix(Rule::HardlinkGroup, "a directory is in no hard-link group");
            entry.link_group = 0;
        }
        if entry.xattrs.as_deref().is_some_and(|blob| xattr::unpack(blob).is_empty()) {
            fix(Rule::XattrBlob, "attributes that nobody can decode go");
            entry.xattrs = None;
        }
        if file_type == FileType::Symlink && entry.content.is_some() {
            fix(Rule::Symlink, "the content hash of a symbolic link goes");
            entry.content = None;
        }
        if file_type.is_special() {
            let is_device = matches!(file_type, FileType::Char | FileType::Block);
            if entry.content.is_some() || !entry.symlink.is_empty() || (!is_device && entry.size != 0) {
                fix(Rule::SpecialFile, "content of a special file goes");
                (entry.content, entry.symlink) = (None, Vec::new());
                entry.size = if is_device { entry.size } else { 0 };
            }
        }
        entry
    }

    fn subdirectory(
        &mut self,
        directory: &Rc<RepoPath>,
        path: RepoPath,
        key: PathKey,
        rowid: i64,
        mut entry: Entry,
        mut is_changed: bool,
    ) -> Result<(), Unreadable> {
        let has_rows = self.has_rows_below(key)?;
        if entry.flags.is_bind_mountpoint() && !self.binds.contains(&path) {
            if !has_rows {
                self.findings.refuse(Rule::BindUnregistered, &path, super::advice(Rule::BindUnregistered));
            } else {
                self.findings.repair(Rule::BindUnregistered, &path, "it is a directory and no bind mountpoint");
                entry.flags = entry.flags.without(Flags::BIND_MOUNTPOINT);
                is_changed = true;
            }
        }
        if self.nested.contains_key(&path) && self.binds.contains(&path) {
            match (entry.flags.is_nested_mountpoint(), entry.flags.is_bind_mountpoint()) {
                (true, false) => {
                    self.findings.repair(Rule::NestedExclusive, &path, "it is no bind mountpoint");
                    self.binds.remove(&path);
                    self.edit(Edit::RemoveBind { path: path.clone() })?;
                }
                (false, true) => {
                    self.findings.repair(Rule::NestedExclusive, &path, "it is no nested catalog");
                    self.nested.remove(&path);
                    self.edit(Edit::RemoveNested { path: path.clone() })?;
                }
                _ => self.findings.refuse(Rule::NestedExclusive, &path, super::advice(Rule::NestedExclusive)),
            }
        }
        let (nested, bind) = (entry.flags.is_nested_mountpoint(), entry.flags.is_bind_mountpoint());
        self.covered |= (nested || bind) && has_rows;
        self.own.count(&entry, 1);
        if nested {
            self.own[Counter::Nested] += 1;
        }
        match self.nested.get(&path) {
            Some(registered) if nested => {
                self.transitions.push((registered.clone(), (rowid, entry.clone())));
            }
            None if nested => {
                let why = super::advice(Rule::NestedUnregistered);
                self.findings.refuse(Rule::NestedUnregistered, &path, why);
            }
            _ if bind => {}
            _ => {
                let name = entry.name.clone().into_boxed_slice();
                self.pending.push(Pending { parent: directory.clone(), name, rowid, links: entry.links });
            }
        }
        if is_changed {
            self.edit(Edit::Update { rowid, key, entry: entry.into() })?;
        }
        Ok(())
    }

    /// Content of a regular file: the empty one is known, and chunks tell their sizes.
    fn file(
        &mut self,
        path: &RepoPath,
        old_key: PathKey,
        key: PathKey,
        entry: &mut Entry,
        is_changed: &mut bool,
    ) -> Result<(), Unreadable> {
        if !entry.flags.is_chunked() {
            if entry.content.is_some() || entry.flags.is_external() {
                return Ok(());
            }
            if entry.size != 0 {
                self.findings.refuse(Rule::ContentHash, path, super::advice(Rule::ContentHash));
                return Ok(());
            }
            let marker = self.tools.marker;
            self.findings.repair(Rule::ContentHash, path, "an empty file gets the empty object");
            let kept = Flags::FILE | Flags::HIDDEN | Flags::DIRECT_IO | Flags::BUNDLE_TRIGGER;
            entry.content = marker.content;
            entry.flags = Flags((marker.flags.0 & !kept) | (entry.flags.0 & kept));
            *is_changed = true;
            return Ok(());
        }
        let stored_at = if self.has_chunks(key)? { key } else { old_key };
        let Some(chunks) = self.chunks(stored_at, entry, path)? else {
            self.complete = false;
            return Ok(());
        };
        self.own[Counter::Chunks] += chunks.len() as i64;
        let mut next = 0u64;
        let contiguous = chunks.iter().all(|c| {
            let fits = c.offset == next;
            next = next.saturating_add(c.size);
            fits
        });
        if contiguous && next == entry.size {
            return Ok(());
        }
        let rule = if contiguous { Rule::ChunkSum } else { Rule::ChunkOffset };
        match self.measured(&chunks, entry) {
            Some(measured) => {
                self.findings.repair(rule, path, "offsets and sizes of chunks become those of the stored objects");
                self.edit(Edit::Chunks { key, chunks: measured })
            }
            None => {
                self.findings.refuse(rule, path, super::advice(Rule::ChunkSum));
                Ok(())
            }
        }
    }

    fn chunks(&mut self, key: PathKey, entry: &Entry, path: &RepoPath) -> Result<Option<Vec<Chunk>>, Unreadable> {
        let mut statement = self.db.prepare_cached(
            "SELECT offset, size, hash FROM chunks WHERE md5path_1 = ?1 AND md5path_2 = ?2 ORDER BY offset, size",
        )?;
        let mut rows = statement.query((key.high, key.low))?;
        let mut chunks = Vec::new();
        while let Some(row) = rows.next()? {
            let number = |i| row.get::<_, i64>(i).ok().and_then(|n| u64::try_from(n).ok());
            let hash = row.get::<_, Vec<u8>>(2).ok();
            let hash = hash.and_then(|h| crate::hash::ContentHash::from_raw(entry.algorithm(), &h));
            let (Some(offset), Some(size), Some(hash)) = (number(0), number(1), hash) else {
                self.findings.refuse(Rule::MalformedRow, path, "a chunk of it is malformed");
                return Ok(None);
            };
            if chunks.len() >= MAX_CHUNKS << 4 {
                self.findings.refuse(Rule::MalformedRow, path, "it has too many chunks");
                return Ok(None);
            }
            chunks.push(Chunk { offset, size, hash });
        }
        Ok(Some(chunks))
    }

    /// The chunks with the sizes that their objects have, if those make up the file.
    fn measured(&self, chunks: &[Chunk], entry: &Entry) -> Option<Vec<Chunk>> {
        if chunks.is_empty() || chunks.len() > MAX_CHUNKS {
            return None;
        }
        let mut measured = Vec::with_capacity(chunks.len());
        let mut offset = 0u64;
        for chunk in chunks {
            let id = chunk.hash.object(ObjectKind::Chunk);
            let limit = entry.size.checked_sub(offset)?;
            let size = fetch(self.tools.store, id, entry.compression(), limit.max(1), &mut std::io::sink()).ok()?;
            measured.push(Chunk { offset, size, hash: chunk.hash });
            offset = offset.checked_add(size)?;
        }
        (offset == entry.size).then_some(measured)
    }

    /// Names of a group that are equal to its first stay together; the others become files of their own.
    fn untie(&mut self, path: &Rc<RepoPath>, groups: &HashMap<u32, Group>) -> Result<(), Unreadable> {
        let mut told: Vec<&u32> = groups.keys().collect();
        told.sort();
        for number in told {
            self.findings.repair(Rule::HardlinkGroup, &**path, format!("hard-link group {number} is tied anew"));
        }
        let (key, mut after) = (path.key(), 0);
        let prefix = Md5::new_with_prefix(path.as_bytes()).chain_update(b"/");
        loop {
            let page = {
                // What there is to say about these rows was said in the first pass.
                let mut silent = Findings::default();
                std::mem::swap(self.findings, &mut silent);
                let page = self.page(key, after, path);
                std::mem::swap(self.findings, &mut silent);
                page?
            };
            let count = page.len();
            for (rowid, row) in page {
                after = rowid;
                let Some((row, _)) = row else { continue };
                let Some(group) = groups.get(&row.entry.link_group).filter(|_| row.entry.links > 1) else { continue };
                let alike = Entry { name: Vec::new(), links: group.first.links, ..row.entry.clone() };
                let stays = alike == group.first && group.same > 1;
                let (links, link_group) = if stays { (group.same, row.entry.link_group) } else { (1, 0) };
                let key = PathKey::finish(prefix.clone().chain_update(&row.entry.name));
                let entry = Entry { links, link_group, ..row.entry };
                self.edit(Edit::Update { rowid, key, entry: entry.into() })?;
            }
            if count < PAGE {
                break;
            }
        }
        Ok(())
    }
}
