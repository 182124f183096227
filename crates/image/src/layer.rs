//! A layer: the members of its archive, in order, become one tree.
//!
//! Rules (OCI image-spec "Image Layer Filesystem Changeset", and what container engines do beyond it):
//! - The last entry of a name wins. A directory over a directory keeps its children and takes the new metadata; any
//!   other replacement removes what was there, with everything below; a directory that takes the place of something
//!   else is opaque, since what it replaced hid the lower one.
//! - Whiteouts affect the layers below only. `.wh.NAME` beside a NAME of the same layer, before or after it, means
//!   that NAME replaces the lower one: a directory becomes opaque. A 0:0 character device is a whiteout as well.
//! - A parent that isn't listed becomes an *implicit* directory: 0755, root, time 0, unless a lower layer knows better
//!   ([`Layer::settle`]). A parent that is a link of this layer is followed inside the root.
//! - A hard link shares the node of its target; a target that this layer lacks is looked for in the layers below.
//!   Links keep a number of their group. It means something among siblings only: a repository has no hard links across
//!   directories, those are counted.
//! - `..`, names with NUL or above 255 bytes, whiteouts of nothing, links to directories: the layer is refused.
//! - What a repository can't hold has a fixed result and an entry in `lost`: attributes with a value or a name above
//!   255 bytes, without a name, or beyond the 255th are left out; owners that aren't 32-bit numbers become
//!   65534 ("nobody"); times before the year 1 or after 9999 are moved to that limit; link targets with `$(` are
//!   kept, but clients replace variables in them; members named `.cvmfscatalog` or `.cvmfsautocatalog` are left out.
//! - `trusted.overlay.*` and `user.overlay.*` are left out silently (they would be taken for our own marks), and so is
//!   `security.selinux`, a label of the machine that built the image.
//!
//! Invariant: every row has its parent in the same tree, up to the root.

mod member;
mod settle;
mod staging;

use std::collections::{BTreeMap, BTreeSet};

pub use staging::{MemoryStaging, Staging, StoreError};

use crate::digest::DiffId;
use crate::layout::{FormatRecord, IMPLICIT_MAX, LostRecord};
use crate::resolve::{ResolveError, resolve};
use crate::tar::{TarEntry, TarKind};
use crate::tree::{Node, NodeKind, PATH_MAX, PathError, TreePath, makedev};
use member::{Member, is_reserved};

/// Longest name and longest value of an extended attribute, in bytes, and most attributes of a node.
const XATTR_MAX: usize = 255;
/// Attributes that publishing adds to an opaque directory.
const OPAQUE_XATTRS: usize = 2;
/// Entries of [`Layer::lost`]; further ones are counted.
const LOST_MAX: usize = 10_000;
/// Hard links into lower layers; archives of builders have none or a few.
const PENDING_MAX: usize = 100_000;
/// Rows of a layer: the entries of its archive and the directories that it doesn't list.
const ROWS_MAX: u64 = 10_000_000;
/// Owner in place of one that isn't a 32-bit number.
const NOBODY: u32 = 65_534;
/// Seconds of the first moment of year 1 and the last one of year 9999.
const TIME_RANGE: (i64, i64) = (-62_135_596_800, 253_402_300_799);

/// Why a layer can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A name that no tree can have.
    #[error("layer has a member with a bad name: {0}")]
    Path(#[from] PathError),
    /// A parent or a link that leads nowhere.
    #[error("layer has a member that can't be placed: {0}")]
    Resolve(#[from] ResolveError),
    /// `.wh.` with nothing, `.` or `..` behind it, or something below a whiteout.
    #[error("layer has the malformed whiteout \"{0}\"; refused")]
    Whiteout(TreePath),
    /// The root is listed as something else than a directory.
    #[error("layer lists its root as something else than a directory; refused")]
    Root,
    /// A hard link to a directory.
    #[error("hard link \"{link}\" leads to \"{target}\", a directory; refused")]
    LinkToDirectory {
        /// the link
        link: TreePath,
        /// the directory
        target: TreePath,
    },
    /// A hard link whose target exists neither in the layer nor below.
    #[error("hard link \"{link}\" leads to \"{target}\", which exists neither in this layer nor in those below it")]
    Dangling {
        /// the link
        link: TreePath,
        /// what it should lead to
        target: TreePath,
    },
    /// A symbolic link without a target, or one too long for a file system.
    #[error("symbolic link \"{0}\" has a target that is empty, contains a NUL, or is longer than {PATH_MAX} bytes")]
    Target(TreePath),
    /// A regular file was added without its content.
    #[error("no content was given for the file \"{0}\"")]
    NoContent(TreePath),
    /// More than an honest layer has.
    #[error("layer has more than {limit} {what}; refused")]
    TooMany {
        /// of what
        what: &'static str,
        /// how many are accepted
        limit: u64,
    },
    /// The store of the rows failed.
    #[error("rows of the layer can't be kept: {0}")]
    Store(#[source] StoreError),
    /// The layers below can't be read.
    #[error("layers below can't be read: {0}")]
    Lower(#[source] StoreError),
}

/// Something that the repository can't hold as the image has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// where
    pub path: TreePath,
    /// what, for instance `xattr user.x`
    pub what: String,
}

/// Numbers for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// members of the archive
    pub entries: u64,
    /// regular files among them
    pub files: u64,
    /// bytes of those files
    pub bytes: u64,
    /// whiteouts and marks of opaque directories among them
    pub whiteouts: u64,
    /// members left out without a loss: bookkeeping of other tools
    pub dropped: u64,
    /// hard links that became independent files, because they lead to another directory or another layer
    pub broken_links: u64,
    /// rows that moved, because a parent is a link in a lower layer
    pub moved: u64,
    /// losses beyond the listed ones
    pub lost_more: u64,
}

/// Builds the tree of a layer from the members of its archive. `C` is whatever the caller knows of a file's content.
#[derive(Debug)]
pub struct LayerBuilder<C, S> {
    layer: Layer<S>,
    /// the last parent as archives name it, and the directory it leads to; most members share it with the one before
    parent: Option<(TreePath, TreePath)>,
    content: std::marker::PhantomData<fn(C)>,
}

/// The tree of a layer, and what is still open or worth knowing.
#[derive(Debug)]
pub struct Layer<S> {
    /// the rows
    pub staging: S,
    /// hard links to what this layer lacks: link → target; [`Layer::settle`] resolves them
    pub pending_links: BTreeMap<TreePath, TreePath>,
    /// what could not be kept, at most 10,000; [`Counts::lost_more`] counts the rest
    pub lost: Vec<Lost>,
    /// numbers for reports
    pub counts: Counts,
    /// the first [`IMPLICIT_MAX`] directories that the layer doesn't list
    implicit: BTreeSet<TreePath>,
    /// are there more?
    implicit_more: bool,
    /// has any directory been opaque? Nearly no layer has one, and then there is less to look up
    has_opaque: bool,
    /// number of the next group of hard links
    next_group: u64,
    rows_added: u64,
}

impl<C: Clone, S: Staging<C>> LayerBuilder<C, S> {
    /// Builds in this store, which is empty.
    pub fn new(staging: S) -> Self {
        let layer = Layer {
            staging,
            pending_links: BTreeMap::new(),
            lost: Vec::new(),
            counts: Counts::default(),
            implicit: BTreeSet::new(),
            implicit_more: false,
            has_opaque: false,
            next_group: 1,
            rows_added: 0,
        };
        Self { layer, parent: None, content: std::marker::PhantomData }
    }

    /// Is the content of this entry needed? Not for markers, and for nothing but files.
    pub fn wants_content(entry: &TarEntry) -> bool {
        matches!(entry.kind, TarKind::Regular { .. }) && matches!(Member::of(&entry.path), Ok(Member::Plain(_)))
    }

    /// Adds the next member of the archive. A file comes with its content ([`Self::wants_content`]).
    pub fn add(&mut self, entry: TarEntry, content: Option<C>) -> Result<(), LayerError> {
        self.layer.counts.entries += 1;
        let mut member = Member::of(&entry.path)?;
        if let (Member::Plain(path), TarKind::CharDevice { major: 0, minor: 0 }) = (&member, &entry.kind)
            && !path.is_root()
        {
            member = Member::Whiteout(path.clone());
        }
        match member {
            Member::Dropped => {
                self.layer.counts.dropped += 1;
                Ok(())
            }
            Member::Reserved(path) => {
                let what = format!("reserved name {}", path.name().escape_ascii());
                self.layer.lose(&path, what);
                Ok(())
            }
            Member::Whiteout(path) => self.whiteout(&path),
            Member::Opaque(directory) => self.opaque(&directory),
            Member::Plain(path) if path.is_root() => match entry.kind {
                TarKind::Directory => {
                    let node = self.layer.node(&path, entry, None)?;
                    self.layer.place(&path, node).map(drop)
                }
                _ => Err(LayerError::Root),
            },
            Member::Plain(path) => {
                let path = self.parent_of(&path)?;
                if let TarKind::HardLink { target } = &entry.kind {
                    return self.link(path, target);
                }
                let node = self.layer.node(&path, entry, content)?;
                self.place(&path, node)
            }
        }
    }

    /// The tree, once all members were added.
    pub fn finish(mut self) -> Result<Layer<S>, LayerError> {
        self.layer.ensure_directory(&TreePath::root())?;
        Ok(self.layer)
    }

    /// Follows links of this layer in the parent of a path and makes sure that it is a directory.
    fn parent_of(&mut self, path: &TreePath) -> Result<TreePath, LayerError> {
        let named = path.parent().unwrap_or_default();
        match &self.parent {
            Some((known, directory)) if *known == named => Ok(directory.join(path.name())?),
            _ => {
                let directory = self.layer.follow(&named)?;
                self.layer.ensure_directory(&directory)?;
                let path = directory.join(path.name())?;
                self.parent = Some((named, directory));
                Ok(path)
            }
        }
    }

    fn place(&mut self, path: &TreePath, node: Node<C>) -> Result<(), LayerError> {
        if self.layer.place(path, node)? {
            // what was replaced may have been on the way to the known parent
            self.parent = None;
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &TreePath) -> Result<(), LayerError> {
        self.layer.counts.whiteouts += 1;
        let path = self.parent_of(path)?;
        match self.layer.get(&path)? {
            // it hides the lower one, but stays
            Some(mut node) => {
                if let NodeKind::Directory { opaque, .. } = &mut node.kind {
                    *opaque = true;
                    self.layer.put(&path, &node)?;
                }
                Ok(())
            }
            None if self.layer.pending_links.contains_key(&path) => Ok(()),
            None => self.layer.put(&path, &Node::<C>::whiteout()),
        }
    }

    fn opaque(&mut self, directory: &TreePath) -> Result<(), LayerError> {
        self.layer.counts.whiteouts += 1;
        let directory = self.layer.follow(directory)?;
        self.layer.ensure_directory(&directory)?;
        let mut node = self.layer.get(&directory)?.unwrap_or_else(Node::<C>::implicit_directory);
        if let NodeKind::Directory { opaque, .. } = &mut node.kind {
            *opaque = true;
        }
        self.layer.put(&directory, &node)
    }

    fn link(&mut self, path: TreePath, target: &[u8]) -> Result<(), LayerError> {
        let target = TreePath::normalise(target)?;
        if is_reserved(&target) {
            let what = format!("hard link to the reserved name {target}");
            self.layer.lose(&path, what);
            return Ok(());
        }
        if target.is_root() {
            return Err(LayerError::LinkToDirectory { link: path, target });
        }
        let target = self.layer.follow(&target.parent().unwrap_or_default())?.join(target.name())?;
        if target == path {
            return Ok(());
        }
        match self.layer.get(&target)? {
            Some(node) if node.is_directory() => Err(LayerError::LinkToDirectory { link: path, target }),
            Some(mut node) if !node.is_whiteout() => {
                if node.link_group == 0 {
                    node.link_group = self.layer.next_group;
                    self.layer.next_group += 1;
                    self.layer.put(&target, &node)?;
                }
                self.layer.counts.broken_links += u64::from(target.parent_bytes() != path.parent_bytes());
                self.place(&path, node)
            }
            _ => {
                let target = self.layer.pending_links.get(&target).cloned().unwrap_or(target);
                if self.layer.pending_links.len() >= PENDING_MAX {
                    let (what, limit) = ("hard links into lower layers", PENDING_MAX as u64);
                    return Err(LayerError::TooMany { what, limit });
                }
                self.layer.clear(&path)?;
                self.parent = None;
                self.layer.pending_links.insert(path, target);
                Ok(())
            }
        }
    }
}

impl<S> Layer<S> {
    /// The record that describes the layer to readers. `size` is that of the uncompressed archive.
    pub fn format_record(&self, diff_id: DiffId, size: u64, rows: u64) -> FormatRecord {
        let lost = |lost: &Lost| LostRecord {
            path: String::from_utf8_lossy(lost.path.as_bytes()).into_owned(),
            what: lost.what.clone(),
        };
        FormatRecord {
            whiteouts: FormatRecord::OVERLAY.to_owned(),
            xattrs: true,
            diff_id,
            size,
            entries: self.counts.entries,
            rows,
            lost: self.lost.iter().map(lost).collect(),
            owners: true,
            lost_more: self.counts.lost_more,
            settled_on: None,
            implicit: self.implicit().filter_map(|path| String::from_utf8(path.as_bytes().to_vec()).ok()).collect(),
        }
    }

    /// Directories that the layer doesn't list itself, in tree order, at most [`IMPLICIT_MAX`].
    pub fn implicit(&self) -> impl Iterator<Item = &TreePath> {
        self.implicit.iter()
    }

    fn lose(&mut self, path: &TreePath, what: String) {
        if self.lost.len() < LOST_MAX {
            self.lost.push(Lost { path: path.clone(), what });
        } else {
            self.counts.lost_more += 1;
        }
    }

    fn get<C>(&self, path: &TreePath) -> Result<Option<Node<C>>, LayerError>
    where
        S: Staging<C>,
    {
        self.staging.get(path).map_err(LayerError::Store)
    }

    /// Sets a row and keeps the list of implicit directories.
    fn put<C>(&mut self, path: &TreePath, node: &Node<C>) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        self.rows_added += 1;
        if self.rows_added > ROWS_MAX {
            return Err(LayerError::TooMany { what: "rows", limit: ROWS_MAX });
        }
        self.has_opaque |= node.is_opaque();
        if !node.is_implicit() {
            self.implicit.remove(path);
        } else if self.implicit.len() < IMPLICIT_MAX {
            self.implicit.insert(path.clone());
        } else {
            self.implicit_more |= !self.implicit.contains(path);
        }
        self.staging.put(path, node).map_err(LayerError::Store)
    }

    /// Where a path leads by the links of this layer.
    fn follow<C>(&self, path: &TreePath) -> Result<TreePath, LayerError>
    where
        S: Staging<C>,
    {
        resolve(path, true, |path| {
            Ok(match self.get(path)?.map(|node| node.kind) {
                Some(NodeKind::Symlink { target }) => Some(target),
                _ => None,
            })
        })
    }

    /// Makes a path, which leads through no links, and everything above it a directory.
    fn ensure_directory<C>(&mut self, path: &TreePath) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        // upwards to what is there, then down again
        let mut missing = Vec::new();
        let mut at = Some(path.clone());
        while let Some(path) = at {
            match self.get(&path)? {
                Some(node) if node.is_directory() => break,
                found => {
                    at = path.parent();
                    let mut node = Node::implicit_directory();
                    // a whiteout or a file, and then something new: the lower one is gone
                    let hides = found.is_some() || self.pending_links.contains_key(&path);
                    node.kind = NodeKind::Directory { opaque: hides, implicit: true };
                    missing.push((path, node));
                }
            }
        }
        for (path, node) in missing.into_iter().rev() {
            self.pending_links.remove(&path);
            self.put(&path, &node)?;
        }
        Ok(())
    }

    /// Removes what is at a path and below.
    fn clear<C>(&mut self, path: &TreePath) -> Result<(), LayerError>
    where
        S: Staging<C>,
    {
        let is_gone = |row: &&TreePath| row.is_within(path);
        let links: Vec<TreePath> =
            self.pending_links.range(path..).map(|(row, _)| row).take_while(is_gone).cloned().collect();
        for row in &links {
            self.pending_links.remove(row);
        }
        let directories: Vec<TreePath> = self.implicit.range(path..).take_while(is_gone).cloned().collect();
        for row in &directories {
            self.implicit.remove(row);
        }
        self.staging.remove_subtree(path).map_err(LayerError::Store)
    }

    /// Puts a node where its parent is; says whether something else than a directory under a directory was replaced.
    fn place<C>(&mut self, path: &TreePath, mut node: Node<C>) -> Result<bool, LayerError>
    where
        S: Staging<C>,
    {
        let Some(found) = self.get(path)? else {
            self.pending_links.remove(path);
            self.put(path, &node)?;
            return Ok(false);
        };
        if let NodeKind::Directory { opaque, .. } = &mut node.kind {
            // what it replaces in this layer would have hidden the lower one as well
            *opaque |= found.is_opaque() || !found.is_directory();
        }
        let merges = found.is_directory() && node.is_directory();
        if found.is_directory() && !merges {
            self.clear(path)?;
        }
        self.put(path, &node)?;
        Ok(!merges)
    }

    /// The node of an entry; notes what can't be kept.
    fn node<C>(&mut self, path: &TreePath, entry: TarEntry, content: Option<C>) -> Result<Node<C>, LayerError> {
        let mut mode = entry.mode & 0o7777;
        let kind = match entry.kind {
            TarKind::Directory => NodeKind::Directory { opaque: false, implicit: false },
            TarKind::Regular { size } => {
                self.counts.files += 1;
                self.counts.bytes += size;
                let content = content.ok_or_else(|| LayerError::NoContent(path.clone()))?;
                NodeKind::Regular { content, size }
            }
            TarKind::Symlink { target } => {
                if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                    return Err(LayerError::Target(path.clone()));
                }
                if target.windows(2).any(|pair| pair == b"$(") {
                    self.lose(path, format!("link target {}", target.escape_ascii()));
                }
                // as on Linux, whatever the archive says
                mode = 0o777;
                NodeKind::Symlink { target }
            }
            TarKind::CharDevice { major, minor } => NodeKind::CharDevice { rdev: makedev(major, minor) },
            TarKind::BlockDevice { major, minor } => NodeKind::BlockDevice { rdev: makedev(major, minor) },
            TarKind::Fifo => NodeKind::Fifo,
            TarKind::HardLink { .. } => unreachable!("hard links share a node, they don't make one"),
        };
        let (uid, gid, mtime) = owner_and_time(entry.uid, entry.gid, entry.mtime, |what| self.lose(path, what));
        let most = XATTR_MAX - if matches!(kind, NodeKind::Directory { .. }) { OPAQUE_XATTRS } else { 0 };
        let xattrs = self.xattrs(path, entry.xattrs, most);
        Ok(Node { kind, mode, uid, gid, mtime, mtime_ns: entry.mtime_ns, xattrs, link_group: 0 })
    }

    /// The attributes that can be kept, sorted by name.
    fn xattrs(&mut self, path: &TreePath, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>, most: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        const FOREIGN: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
        xattrs.retain(|(key, _)| key != b"security.selinux" && !FOREIGN.iter().any(|prefix| key.starts_with(prefix)));
        xattrs.sort();
        let mut kept = Vec::with_capacity(xattrs.len().min(most));
        for (key, value) in xattrs {
            let holds = !key.is_empty() && !key.contains(&0) && key.len() <= XATTR_MAX && value.len() <= XATTR_MAX;
            if holds && kept.len() < most {
                kept.push((key, value));
            } else {
                let name: String = key.escape_ascii().to_string().chars().take(300).collect();
                self.lose(path, format!("xattr {name}"));
            }
        }
        kept
    }
}

/// Owner, group and time of a member as a repository can hold them; told of each that it can't.
pub fn owner_and_time(uid: i64, gid: i64, mtime: i64, mut lose: impl FnMut(String)) -> (u32, u32, i64) {
    let mut owner = |what: &str, id: i64| {
        u32::try_from(id).unwrap_or_else(|_| {
            lose(format!("{what} {id}"));
            NOBODY
        })
    };
    let (uid, gid) = (owner("uid", uid), owner("gid", gid));
    let held = mtime.clamp(TIME_RANGE.0, TIME_RANGE.1);
    if held != mtime {
        lose(format!("mtime {mtime}"));
    }
    (uid, gid, held)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
