//! The members of an archive become rows below the base, their content becomes objects.
//!
//! Rows are kept by path relative to the base, in a database that spills to disk. Invariant: every row has all its
//! parents as directories in the same database (the root excepted), those that the archive does not list as *implicit*
//! ones; nothing lies below a row that is no directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Compression;
use cvmfs::path::RepoPath;
use cvmfs::store::Store;
use cvmfs::subtree::MARKER;
use image::layer::{Staging as _, owner_and_time};
use image::layout::LostRecord;
use image::tar::{TarEntry, TarKind, TarReader};
use image::tree::{Node, NodeKind, PATH_MAX, TreePath, makedev};

use super::refuse_foreign_trees;
use crate::cli::ArchiveLimits;
use crate::content::{Collector, Contents, Pool};
use crate::decompress::Unpacked;
use crate::failure::Failure;
use crate::rows::FileContent;
use crate::staging::{DatabaseStaging, Pending};

/// Entries of `lost`; further ones are counted.
const LOST_MAX: usize = 10_000;
/// Bytes of names that are held in memory: of links to what isn't in the archive, of directories with a marker.
const NAMES_MAX: usize = 64 << 20;
/// Links to links to links … that are not in the archive yet.
const CHAIN_MAX: usize = 40;

/// An archive, read.
#[derive(Debug)]
pub struct Archive {
    /// The rows, by path below the base.
    pub staging: DatabaseStaging,
    /// Directories that are to have a catalog of their own; some may have been replaced since.
    pub markers: BTreeSet<TreePath>,
    /// Members read.
    pub members: u64,
    /// Regular files among them, and their bytes.
    pub files: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Hard links across directories.
    pub broken_links: u64,
    /// What could not be kept.
    pub lost: Vec<LostRecord>,
    /// How many more.
    pub lost_more: u64,
    /// Hard links to what the archive did not have before them: link → target.
    links: BTreeMap<TreePath, TreePath>,
    names: usize,
    implicit: u64,
    max_implicit: u64,
    next_group: u64,
    /// A directory that is known to be there: most members share it with the one before.
    known: Option<TreePath>,
    contents: Option<Contents>,
    compression: Compression,
}

impl Archive {
    /// Reads all members and has their content stored.
    pub fn read(
        unpacked: Unpacked,
        base: &RepoPath,
        pool: &Pool,
        collector: &Arc<Collector>,
        limits: &ArchiveLimits,
    ) -> Result<Archive, Failure> {
        let mut tar = TarReader::with_limits(unpacked, limits.of_tar());
        let mut archive = Archive {
            staging: DatabaseStaging::new().map_err(rows_failed)?,
            markers: BTreeSet::new(),
            members: 0,
            files: 0,
            bytes: 0,
            broken_links: 0,
            lost: Vec::new(),
            lost_more: 0,
            links: BTreeMap::new(),
            names: 0,
            implicit: 0,
            max_implicit: limits.max_entries,
            next_group: 1,
            known: None,
            contents: None,
            compression: pool.compression(),
        };
        while let Some(entry) = tar.next_entry().map_err(Failure::tar)? {
            archive.members += 1;
            let Some(path) = archive.place_for(&entry, base)? else { continue };
            archive.ensure_parents(&path)?;
            match &entry.kind {
                TarKind::HardLink { target } => archive.link(path, target)?,
                TarKind::Regular { size } => {
                    let content = Pending::New(pool.store_file(collector, &mut tar.content(), *size)?);
                    archive.files += 1;
                    archive.bytes += size;
                    let kind = NodeKind::Regular { content, size: *size };
                    archive.add(&path, kind, entry)?;
                }
                kind => {
                    let kind = special(kind, &path)?;
                    archive.add(&path, kind, entry)?;
                }
            }
        }
        // Packed streams have checksums behind the last member.
        tar.into_inner().finish()?;
        archive.contents = Some(collector.finish(pool.algorithm())?);
        Ok(archive)
    }

    /// Where a member belongs; nothing for a marker of a nested catalog, which is taken note of.
    fn place_for(&mut self, entry: &TarEntry, base: &RepoPath) -> Result<Option<TreePath>, Failure> {
        let bad = |why: String| Failure::Content(format!("archive has a member that can't be published: {why}"));
        let path = TreePath::normalise(&entry.path).map_err(|e| bad(e.to_string()))?;
        if base.as_bytes().len() + 1 + path.as_bytes().len() > PATH_MAX {
            return Err(bad(format!("\"{path}\" is longer than {PATH_MAX} bytes below {base}")));
        }
        if path.is_root() && !matches!(entry.kind, TarKind::Directory) {
            return Err(bad("its root is something else than a directory".to_owned()));
        }
        if base.is_root() && !path.is_root() {
            refuse_foreign_trees(&full(base, &path))?;
        }
        let marks = |name: &[u8]| name == MARKER;
        if !path.components().any(marks) {
            return Ok(Some(path));
        }
        let directory = path.parent().unwrap_or_default();
        if directory.components().any(marks)
            || !matches!(entry.kind, TarKind::Regular { .. } | TarKind::HardLink { .. })
        {
            return Err(bad(format!("\"{path}\" has the name of a catalog's marker and is no regular file")));
        }
        if base.is_root() && directory.is_root() {
            return Err(bad("the root of a repository can't have a .cvmfscatalog".to_owned()));
        }
        self.ensure_parents(&path)?;
        self.count_names(&[&directory])?;
        self.markers.insert(directory);
        Ok(None)
    }

    /// Makes sure that everything above a path is a directory.
    fn ensure_parents(&mut self, path: &TreePath) -> Result<(), Failure> {
        let Some(parent) = path.parent().filter(|p| !p.is_root()) else { return Ok(()) };
        if self.known.as_ref() == Some(&parent) {
            return Ok(());
        }
        let mut missing = Vec::new();
        let mut at = Some(parent.clone());
        while let Some(directory) = at.filter(|d| !d.is_root()) {
            match self.staging.get(&directory).map_err(rows_failed)?.map(|node| node.kind) {
                Some(NodeKind::Directory { .. }) => break,
                None if !self.links.contains_key(&directory) => {}
                Some(NodeKind::Symlink { .. }) => {
                    return Err(Failure::Content(format!(
                        "archive member \"{path}\" lies below \"{directory}\", a symbolic link in the archive; links are \
                         never followed"
                    )));
                }
                _ => {
                    return Err(Failure::Content(format!(
                        "archive member \"{path}\" lies below \"{directory}\", which is no directory in the archive"
                    )));
                }
            }
            at = directory.parent();
            missing.push(directory);
        }
        self.implicit += missing.len() as u64;
        if self.implicit > self.max_implicit {
            let limit = self.max_implicit;
            let what = format!("the archive has members in more than {limit} directories that it doesn't list");
            return Err(Failure::Limit { what, option: "--max-entries" });
        }
        for directory in missing {
            self.staging.put(&directory, &Node::implicit_directory()).map_err(rows_failed)?;
        }
        self.known = Some(parent);
        Ok(())
    }

    fn add(&mut self, path: &TreePath, kind: NodeKind<Pending>, entry: TarEntry) -> Result<(), Failure> {
        let node = self.node(path, kind, entry)?;
        self.put(path, &node)
    }

    /// Puts a row in place of what the archive had there.
    pub fn put(&mut self, path: &TreePath, node: &Node<Pending>) -> Result<(), Failure> {
        let found = self.staging.get(path).map_err(rows_failed)?;
        if found.is_some_and(|found| found.is_directory()) && !node.is_directory() {
            self.clear_below(path)?;
        }
        self.links.remove(path);
        self.staging.put(path, node).map_err(rows_failed)
    }

    fn clear_below(&mut self, path: &TreePath) -> Result<(), Failure> {
        let below = self.links.range(path..).map(|(link, _)| link).skip_while(|l| *l == path);
        let gone: Vec<TreePath> = below.take_while(|link| link.is_below(path)).cloned().collect();
        for link in &gone {
            self.links.remove(link);
        }
        self.known = None;
        self.staging.remove_children(path).map_err(rows_failed)
    }

    fn link(&mut self, path: TreePath, target: &[u8]) -> Result<(), Failure> {
        let bad = |why: String| Failure::Content(format!("hard link \"{path}\" in the archive: {why}"));
        let target = TreePath::normalise(target).map_err(|e| bad(e.to_string()))?;
        if path.is_root() || target.is_root() {
            return Err(bad("it leads to a directory".to_owned()));
        }
        if target.name() == MARKER {
            return Err(bad("it leads to the marker of a nested catalog".to_owned()));
        }
        if target == path {
            return Ok(());
        }
        match self.shared(&path, &target)? {
            Some(node) => self.put(&path, &node),
            None => {
                self.count_names(&[&path, &target])?;
                if self.staging.get(&path).map_err(rows_failed)?.is_some() {
                    self.clear_below(&path)?;
                    self.staging.remove_subtree(&path).map_err(rows_failed)?;
                }
                self.links.insert(path, target);
                Ok(())
            }
        }
    }

    /// The row of a link's target, with the number of its group, if the archive has it.
    pub fn shared(&mut self, link: &TreePath, target: &TreePath) -> Result<Option<Node<Pending>>, Failure> {
        let Some(mut node) = self.staging.get(target).map_err(rows_failed)? else { return Ok(None) };
        if node.is_directory() {
            return Err(Failure::Content(format!(
                "hard link \"{link}\" in the archive leads to \"{target}\", a directory"
            )));
        }
        if node.link_group == 0 {
            node.link_group = self.new_group();
            self.staging.put(target, &node).map_err(rows_failed)?;
        }
        self.broken_links += u64::from(link.parent_bytes() != target.parent_bytes());
        Ok(Some(node))
    }

    /// A number for a group of hard links.
    pub fn new_group(&mut self) -> u64 {
        self.next_group += 1;
        self.next_group - 1
    }

    /// Links that are still to be resolved, each with the end of its chain of links. They are not kept any longer.
    pub fn take_links(&mut self) -> Result<Vec<(TreePath, TreePath)>, Failure> {
        let links = std::mem::take(&mut self.links);
        let end_of = |link: &TreePath| {
            let chain = std::iter::successors(links.get(link), |target| links.get(*target));
            chain
                .take(CHAIN_MAX + 1)
                .enumerate()
                .last()
                .filter(|(hops, _)| *hops < CHAIN_MAX)
                .map(|(_, end)| end.clone())
        };
        let resolved = links.keys().map(|link| match end_of(link) {
            Some(end) => Ok((link.clone(), end)),
            None => Err(Failure::Content(format!("hard link \"{link}\" in the archive leads in a circle"))),
        });
        resolved.collect()
    }

    /// The first row behind a path, with its content as the catalog says it.
    pub fn row_after(&self, path: Option<&TreePath>) -> Result<Option<(TreePath, Node<FileContent>)>, Failure> {
        let row = self.staging.after(path).map_err(rows_failed)?;
        Ok(row.map(|(path, node)| (path, node.map_content(|content| self.stored(content)))))
    }

    /// Whether the content of all files is in the storage.
    pub fn is_present(&self, store: &dyn Store) -> Result<bool, Failure> {
        let mut after = None;
        while let Some((path, node)) = self.row_after(after.as_ref())? {
            let objects: Vec<ObjectId> = match node.kind {
                NodeKind::Regular { content: FileContent::Whole(hash, _), .. } => vec![hash.object(ObjectKind::File)],
                NodeKind::Regular { content: FileContent::Chunks(chunks, ..), .. } => {
                    chunks.into_iter().map(|chunk| chunk.hash.object(ObjectKind::Chunk)).collect()
                }
                _ => Vec::new(),
            };
            for id in objects {
                if !store.exists(id)? {
                    return Ok(false);
                }
            }
            after = Some(path);
        }
        Ok(true)
    }

    fn stored(&self, content: Pending) -> FileContent {
        let contents = self.contents.as_ref().expect("set when the archive was read to its end");
        content.resolve(contents, self.compression)
    }

    fn count_names(&mut self, names: &[&TreePath]) -> Result<(), Failure> {
        // Besides its bytes, a name costs what a map needs for it.
        self.names += names.iter().map(|name| name.as_bytes().len() + 64).sum::<usize>();
        if self.names > NAMES_MAX {
            return Err(Failure::Content(
                "the archive has too many hard links to files outside, or too many .cvmfscatalog files; refused".into(),
            ));
        }
        Ok(())
    }

    /// The row of a member, without what can't be kept.
    fn node(&mut self, path: &TreePath, kind: NodeKind<Pending>, entry: TarEntry) -> Result<Node<Pending>, Failure> {
        let (uid, gid, mtime) = owner_and_time(entry.uid, entry.gid, entry.mtime, |what| self.lose(path, what));
        let mut xattrs = entry.xattrs;
        xattrs.sort();
        let mut room = cvmfs::xattr::LIMIT;
        xattrs.retain(|(name, value)| {
            let fits = cvmfs::xattr::fits(name, value).is_ok() && room > 0;
            if fits {
                room -= 1;
            } else {
                let name: String = name.escape_ascii().to_string().chars().take(300).collect();
                self.lose(path, format!("xattr {name}"));
            }
            fits
        });
        if let NodeKind::Symlink { target } = &kind
            && target.windows(2).any(|pair| pair == b"$(")
        {
            self.lose(path, "clients replace variables in its target".to_owned());
        }
        Ok(Node { kind, mode: entry.mode & 0o7777, uid, gid, mtime, mtime_ns: entry.mtime_ns, xattrs, link_group: 0 })
    }

    fn lose(&mut self, path: &TreePath, what: String) {
        if self.lost.len() < LOST_MAX {
            self.lost.push(LostRecord { path: String::from_utf8_lossy(path.as_bytes()).into_owned(), what });
        } else {
            self.lost_more += 1;
        }
    }
}

/// What a member is that has no content.
fn special(kind: &TarKind, path: &TreePath) -> Result<NodeKind<Pending>, Failure> {
    Ok(match kind {
        TarKind::Directory => NodeKind::Directory { opaque: false, implicit: false },
        TarKind::Symlink { target } if target.is_empty() || target.len() > PATH_MAX => {
            return Err(Failure::Content(format!(
                "symbolic link \"{path}\" in the archive has a target that is empty or longer than {PATH_MAX} bytes"
            )));
        }
        TarKind::Symlink { target } => NodeKind::Symlink { target: target.clone() },
        TarKind::CharDevice { major, minor } => NodeKind::CharDevice { rdev: makedev(*major, *minor) },
        TarKind::BlockDevice { major, minor } => NodeKind::BlockDevice { rdev: makedev(*major, *minor) },
        TarKind::Fifo => NodeKind::Fifo,
        TarKind::Regular { .. } | TarKind::HardLink { .. } => unreachable!("the caller has taken these"),
    })
}

/// A path of the archive as one of the repository.
pub fn full(base: &RepoPath, path: &TreePath) -> RepoPath {
    base.join_path(path.as_bytes()).expect("both crates have the same normal form")
}

/// For `map_err` of the database of rows.
pub fn rows_failed(error: impl std::fmt::Display) -> Failure {
    Failure::Content(format!("rows of the archive can't be kept: {error}"))
}
