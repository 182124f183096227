//! Rows of an archive go into the repository: as one prepared subtree where there was nothing, else one by one.
//!
//! Rows that are there already, equal in everything, are not written again: an archive that changes nothing publishes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::path::RepoPath;
use cvmfs::subtree::{Graft, SubtreeWriter};
use cvmfs::transaction::Transaction;
use image::layer::Staging as _;
use image::tree::{Node, TreePath};
use time::UtcDateTime;

use super::Incoming;
use super::archive::{Archive, full, rows_failed};
use crate::content::Pool;
use crate::failure::Failure;
use crate::layer::subtree_options;
use crate::rows::{FileContent, is_marker, to_entry, to_node};
use crate::staging::Pending;
use crate::target::{Target, directory_meta};

/// Rows from which a directory of a new subtree gets a catalog of its own.
const BUDGET: u64 = 20_000;
/// Catalogs that an archive may ask for in directories that are in use; each is held open until the publish.
const CATALOGS_MAX: usize = 200;

/// What is at the base.
pub enum Base {
    /// Nothing.
    Missing,
    /// A directory without content.
    Empty(Box<Entry>),
    /// A directory with content.
    InUse,
}

/// Looks at the base; anything but a directory, or one below a link, is refused.
pub fn base_state(transaction: &mut Transaction, base: &RepoPath) -> Result<Base, Failure> {
    refuse_links_above(transaction, base)?;
    match transaction.lookup(base)? {
        None => Ok(Base::Missing),
        Some(entry) if !entry.is_directory() => Err(no_directory(base, &entry)),
        Some(entry) => match transaction.list(base)?.iter().all(is_marker) {
            true => Ok(Base::Empty(Box::new(entry))),
            false => Ok(Base::InUse),
        },
    }
}

/// Refuses a path that leads through anything but directories.
pub fn refuse_links_above(transaction: &mut Transaction, path: &RepoPath) -> Result<(), Failure> {
    for directory in path.ancestors().filter(|p| p != path) {
        match transaction.lookup(&directory)? {
            Some(entry) if !entry.is_directory() => return Err(no_directory(&directory, &entry)),
            Some(_) => {}
            None => break,
        }
    }
    Ok(())
}

fn no_directory(path: &RepoPath, entry: &Entry) -> Failure {
    Failure::Content(match entry.file_type() {
        FileType::Symlink => format!(
            "{path} is a symbolic link (to {}); links are never followed: name the directory that it leads to, or \
             replace the link with --delete",
            entry.symlink.escape_ascii()
        ),
        _ => format!("{path} exists and is no directory; delete it first, with --delete"),
    })
}

/// Refuses to take away the public name of an image, or a directory with such names.
pub fn refuse_images(transaction: &mut Transaction, path: &RepoPath) -> Result<(), Failure> {
    let records = RepoPath::ROOT.join(".metadata").join_path(&path.as_bytes()[1..]);
    let mut pending = vec![records.expect("the path is normal and not the root")];
    while let Some(directory) = pending.pop() {
        for entry in transaction.list(&directory)?.into_iter().filter(|e| !is_marker(e)) {
            if !entry.is_directory() {
                return Err(Failure::Content(format!(
                    "{path} is the name of published images ({directory} has their records), which \"cvmfs-publisher \
                     convert\" and \"convert-image\" write; ingest never touches them"
                )));
            }
            pending.push(directory.join(&entry.name));
        }
    }
    Ok(())
}

/// Writes the archive as a subtree that can be hung in at the base. `root` is the directory that is there, if any.
pub fn write_subtree(
    target: &Target,
    archive: &mut Archive,
    base: &RepoPath,
    root: Option<Entry>,
    pool: &Pool,
) -> Result<Graft, Failure> {
    settle_links(archive, None)?;
    let now = UtcDateTime::now();
    let options = subtree_options(target, pool.algorithm(), BUDGET, now)?;
    let mut row = archive.row_after(None)?;
    let listed = row.take_if(|(path, _)| path.is_root()).map(|(_, node)| to_entry(b"", node).0);
    let root = listed.or_else(|| root.map(|e| Entry { xattrs: e.xattrs.clone(), ..Entry::directory("", e.meta()) }));
    let root = root.unwrap_or_else(|| Entry::directory("", directory_meta(now)));
    if row.is_none() {
        row = archive.row_after(Some(&TreePath::root()))?;
    }
    let mut writer = SubtreeWriter::new(target.store.clone(), options, base, root)?;
    while let Some((path, node)) = row {
        let (group, is_implicit) = (node.link_group, node.is_implicit());
        let (mut entry, chunks) = to_entry(path.name(), node);
        if is_implicit {
            entry = Entry::directory(path.name(), directory_meta(now));
        }
        let splits = entry.is_directory() && archive.markers.contains(&path);
        writer.add(path.as_bytes(), entry, group, &chunks)?;
        if splits {
            writer.split_here();
        }
        row = archive.row_after(Some(&path))?;
    }
    Ok(writer.finish()?)
}

/// Puts the archive into the repository.
pub fn place(transaction: &mut Transaction, incoming: &mut Incoming, now: UtcDateTime) -> Result<(), Failure> {
    let Incoming { base, archive, catalog, graft, .. } = incoming;
    let state = base_state(transaction, base)?;
    let meta = directory_meta(now);
    if let Some(graft) = graft
        && let Some(parent) = base.parent()
        && !matches!(state, Base::InUse)
    {
        transaction.ensure_directories(&parent, meta, &|_| false)?;
        return Ok(transaction.graft(graft)?);
    }
    transaction.ensure_directories(base, meta, &|_| false)?;
    settle_links(archive, Some((&mut *transaction, &*base)))?;
    Placing { transaction, base, archive, now, linked: Vec::new() }.run()?;
    let mut catalogs: Vec<RepoPath> = Vec::new();
    for directory in &archive.markers {
        if archive.staging.get(directory).map_err(rows_failed)?.is_some_and(|node| node.is_directory()) {
            catalogs.push(full(base, directory));
        }
    }
    if *catalog {
        catalogs.push(base.clone());
    }
    if catalogs.len() > CATALOGS_MAX {
        return Err(Failure::Content(format!(
            "the archive asks for {} nested catalogs in a directory that is in use; {CATALOGS_MAX} at a time are possible",
            catalogs.len()
        )));
    }
    catalogs.sort_by_key(|path| std::cmp::Reverse(path.as_bytes().len()));
    for directory in catalogs {
        transaction.split_if_larger(&directory, 0)?;
    }
    Ok(())
}

fn dangling(link: &TreePath, target: &TreePath) -> Failure {
    Failure::Content(format!(
        "hard link \"{link}\" in the archive leads to \"{target}\", which exists neither in the archive nor in the \
         repository below the base"
    ))
}

/// Gives every open link its row: that of its target in the archive, else in the repository.
///
/// Where link and target are in the same directory of the repository, the target and its other names get rows too, so
/// that all of them become one file; unless the archive replaces them.
fn settle_links(archive: &mut Archive, mut repository: Option<(&mut Transaction, &RepoPath)>) -> Result<(), Failure> {
    let mut known: BTreeMap<TreePath, Node<Pending>> = BTreeMap::new();
    for (link, target) in archive.take_links()? {
        if let Some(node) = archive.shared(&link, &target)? {
            archive.put(&link, &node)?;
            continue;
        }
        let Some((transaction, base)) = &mut repository else { return Err(dangling(&link, &target)) };
        let node = match known.get(&target) {
            Some(node) => node.clone(),
            None => {
                let link_group = archive.new_group();
                let node = Node { link_group, ..target_of(transaction, base, &link, &target)? };
                known.insert(target.clone(), node.clone());
                node
            }
        };
        let directory = link.parent().unwrap_or_default();
        if target.parent().unwrap_or_default() == directory {
            for name in names_of(transaction, &full(base, &target))? {
                let path = directory.join(&name).map_err(rows_failed)?;
                if archive.staging.get(&path).map_err(rows_failed)?.is_none() {
                    archive.put(&path, &node)?;
                }
            }
        } else {
            archive.broken_links += 1;
        }
        archive.put(&link, &node)?;
    }
    Ok(())
}

/// The file in the repository that a hard link leads to.
fn target_of(
    transaction: &mut Transaction,
    base: &RepoPath,
    link: &TreePath,
    target: &TreePath,
) -> Result<Node<Pending>, Failure> {
    let at = full(base, target);
    let Some(entry) = transaction.lookup(&at)? else { return Err(dangling(link, target)) };
    if entry.is_directory() || entry.flags.is_external() {
        return Err(Failure::Content(format!(
            "hard link \"{link}\" in the archive leads to {at}, which is a directory or an external file"
        )));
    }
    let chunks = transaction.chunks(&at)?;
    Ok(to_node(entry, chunks).map_content(Pending::Known))
}

/// All names that an existing file has in its directory.
fn names_of(transaction: &mut Transaction, file: &RepoPath) -> Result<Vec<Vec<u8>>, Failure> {
    let group = transaction.lookup(file)?.map_or(0, |entry| entry.link_group);
    let mut names = vec![file.name().to_vec()];
    if let Some(directory) = file.parent().filter(|_| group != 0) {
        let entries = transaction.list(&directory)?;
        names.extend(entries.into_iter().filter(|e| e.link_group == group && e.name != file.name()).map(|e| e.name));
    }
    Ok(names)
}

/// Names of one file in one directory.
struct Linked {
    names: BTreeSet<Vec<u8>>,
    entry: Entry,
    chunks: Vec<Chunk>,
}

/// Puts rows in, in tree order. Names of one file wait until their directory is complete.
struct Placing<'a> {
    transaction: &'a mut Transaction,
    base: &'a RepoPath,
    archive: &'a Archive,
    now: UtcDateTime,
    linked: Vec<(TreePath, BTreeMap<u64, Linked>)>,
}

impl Placing<'_> {
    fn run(mut self) -> Result<(), Failure> {
        let mut row = self.archive.row_after(None)?;
        while let Some((path, node)) = row {
            while self.linked.last().is_some_and(|(directory, _)| !path.is_within(directory)) {
                self.put_linked()?;
            }
            self.put(&path, node)?;
            row = self.archive.row_after(Some(&path))?;
        }
        while !self.linked.is_empty() {
            self.put_linked()?;
        }
        Ok(())
    }

    fn put(&mut self, path: &TreePath, node: Node<FileContent>) -> Result<(), Failure> {
        let at = full(self.base, path);
        if at.is_root() {
            return Ok(());
        }
        if node.is_implicit() {
            return self.ensure_directory(path, &at);
        }
        let group = node.link_group;
        let (entry, chunks) = to_entry(path.name(), node);
        if group == 0 {
            return self.put_entry(&at, entry, &chunks);
        }
        let directory = path.parent().unwrap_or_default();
        if self.linked.last().is_none_or(|(open, _)| *open != directory) {
            self.linked.push((directory, BTreeMap::new()));
        }
        let (_, groups) = self.linked.last_mut().expect("pushed just now, if it was not there");
        let linked = groups.entry(group).or_insert_with(|| Linked { names: BTreeSet::new(), entry, chunks });
        linked.names.insert(path.name().to_vec());
        Ok(())
    }

    /// A directory that the archive needs and does not list.
    fn ensure_directory(&mut self, path: &TreePath, at: &RepoPath) -> Result<(), Failure> {
        match self.transaction.lookup(at)? {
            Some(entry) if entry.is_directory() => Ok(()),
            Some(entry) => {
                let what = if entry.file_type() == FileType::Symlink { "a symbolic link" } else { "no directory" };
                Err(Failure::Content(format!(
                    "the archive has members below \"{path}\" without listing it, and {at} is {what} in the repository; \
                     links are never followed (to replace it, delete it with --delete)"
                )))
            }
            None => Ok(self.transaction.put(at, Entry::directory(at.name(), directory_meta(self.now)), &[])?),
        }
    }

    fn put_entry(&mut self, at: &RepoPath, entry: Entry, chunks: &[Chunk]) -> Result<(), Failure> {
        if let Some(old) = self.transaction.lookup(at)? {
            let is_same = match entry.is_directory() {
                true => old.is_directory() && old.meta() == entry.meta() && old.xattrs == entry.xattrs,
                false => old == entry && self.transaction.chunks(at)? == chunks,
            };
            if is_same {
                return Ok(());
            }
            self.refuse_image(at, &old, &entry)?;
        }
        Ok(self.transaction.put(at, entry, chunks)?)
    }

    /// A replaced link may be the name of an image, a replaced directory may hold some.
    fn refuse_image(&mut self, at: &RepoPath, old: &Entry, new: &Entry) -> Result<(), Failure> {
        let is_risk = old.file_type() == FileType::Symlink || (old.is_directory() && !new.is_directory());
        if is_risk { refuse_images(self.transaction, at) } else { Ok(()) }
    }

    /// Puts the linked files of the innermost directory that waits.
    fn put_linked(&mut self) -> Result<(), Failure> {
        let Some((directory, groups)) = self.linked.pop() else { return Ok(()) };
        let directory = full(self.base, &directory);
        for Linked { names, entry, chunks } in groups.into_values() {
            let mut names_left = names.iter();
            if let (Some(name), None) = (names_left.next(), names_left.next()) {
                let entry = Entry { name: name.clone(), ..entry };
                self.put_entry(&directory.join(name), entry, &chunks)?;
                continue;
            }
            if self.is_linked(&directory, &names, &entry, &chunks)? {
                continue;
            }
            for name in &names {
                let at = directory.join(name);
                if let Some(old) = self.transaction.lookup(&at)? {
                    self.refuse_image(&at, &old, &entry)?;
                }
            }
            self.transaction.put_links(&directory, &names, &entry, &chunks)?;
        }
        Ok(())
    }

    /// Whether exactly these names are this file already.
    fn is_linked(
        &mut self,
        directory: &RepoPath,
        names: &BTreeSet<Vec<u8>>,
        entry: &Entry,
        chunks: &[Chunk],
    ) -> Result<bool, Failure> {
        let mut group = None;
        for name in names {
            let at = directory.join(name);
            let Some(old) = self.transaction.lookup(&at)? else { return Ok(false) };
            let link_group = *group.get_or_insert(old.link_group);
            let expected = Entry { name: name.clone(), links: names.len() as u32, link_group, ..entry.clone() };
            if link_group == 0 || old != expected || self.transaction.chunks(&at)? != chunks {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
