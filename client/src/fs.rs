//! The file system: every operation of the mount, without a word of FUSE.
//!
//! An operation runs twice at most: first with [`Wait::No`], which answers from what is on this machine or
//! says [`FsError::WouldBlock`]; then, on a thread that may wait, with [`Wait::Yes`].
//!
//! One *view* is current at any time: a revision and the catalogs attached for it. Every operation takes the
//! view once and keeps it to its end. A change of revision replaces the view; inodes the kernel holds are
//! looked up again when they are next used, and those whose content is gone keep what they were.

pub mod directory;
pub mod file;
mod joined;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cvmfs::catalog::Row;
use cvmfs::catalog::counters::Counter;
use cvmfs::entry::{Entry, FileType};
use cvmfs::path::{PathKey, RepoPath, is_name};
use parking_lot::RwLock;

use crate::catalogs::{AttachError, Attached, CatalogId, Side};
use crate::config::{Config, Ownership};
use crate::fetch::{FetchError, Objects, Wait};
use crate::inode::{self, Identity, InodeError, Name, Node, Numbers, Stale, Table};
use crate::pool::Pool;
use crate::prefetch::Prefetcher;
use crate::revision::Revision;
use crate::stats::Stats;
use crate::{variables, xattr};

use directory::Directory;
use file::{OpenFile, Recent};

/// Descriptors that files of the mount leave to the client itself.
const RESERVED_FILES: u64 = 512;

/// Listings that are being read.
const LISTINGS: usize = 64;

/// How long the kernel may keep names and attributes: when it can be told what has changed, and when it can't.
const UNTIL_TOLD: Duration = Duration::from_secs(24 * 3600);
const UNTOLD: Duration = Duration::from_secs(60);

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FsError {
    /// The answer is not on this machine; ask again with leave to wait.
    #[error("the answer has to be downloaded")]
    WouldBlock,
    /// No such entry.
    #[error("no such entry")]
    NotFound,
    /// Not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// Is a directory.
    #[error("is a directory")]
    IsDirectory,
    /// Not a link, or not a file.
    #[error("not possible for this type of entry")]
    WrongType,
    /// An inode or a handle that nobody holds.
    #[error("inode or handle is not in use")]
    Stale,
    /// No extended attribute of this name.
    #[error("no such attribute")]
    NoAttribute,
    /// A catalog is not available.
    #[error("{path}")]
    Catalog {
        /// What was looked for.
        path: RepoPath,
        /// Why.
        #[source]
        source: AttachError,
    },
    /// Content is not available.
    #[error("{path}")]
    Content {
        /// The file.
        path: RepoPath,
        /// Why.
        #[source]
        source: Arc<FetchError>,
    },
    /// The catalog contradicts itself.
    #[error("{path}: {what}")]
    Inconsistent {
        /// The entry.
        path: RepoPath,
        /// What is wrong.
        what: &'static str,
    },
    /// The cache file cannot be read.
    #[error("{path}: cannot read the cached content")]
    Read {
        /// The file.
        path: RepoPath,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CVMFS_NFILES does not allow more.
    #[error("too many open files: raise CVMFS_NFILES")]
    TooManyFiles,
    /// No inode number can be had.
    #[error(transparent)]
    Inode(#[from] InodeError),
}

impl FsError {
    /// Number for the system call.
    pub fn errno(&self) -> i32 {
        match self {
            FsError::WouldBlock => libc::EAGAIN,
            FsError::NotFound => libc::ENOENT,
            FsError::NotDirectory => libc::ENOTDIR,
            FsError::IsDirectory => libc::EISDIR,
            FsError::WrongType => libc::EINVAL,
            FsError::Stale => libc::ESTALE,
            FsError::NoAttribute => libc::ENODATA,
            FsError::TooManyFiles => libc::EMFILE,
            FsError::Content { source, .. } if matches!(**source, FetchError::Cache(_)) => match &**source {
                FetchError::Cache(crate::cache::CacheError::Io { .. }) => libc::EIO,
                _ => libc::ENOSPC,
            },
            _ => libc::EIO,
        }
    }

    /// Whether this is a failure rather than an answer.
    pub fn is_failure(&self) -> bool {
        matches!(self.errno(), libc::EIO | libc::ENOSPC)
    }
}

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub inode: u32,
    /// Type and permissions.
    pub mode: u32,
    /// Number of names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Device number of devices.
    pub rdev: u32,
    /// Time of modification, also given as time of access and change: seconds and nanoseconds.
    pub mtime: (i64, u32),
}

/// Numbers for `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes the cache may hold.
    pub total: u64,
    /// Bytes of it that are free.
    pub free: u64,
    /// Entries of the repository.
    pub entries: u64,
}

/// A revision, and when it became the current one.
#[derive(Debug)]
pub struct View {
    /// Counts the changes of revision since the mount.
    pub generation: u64,
    /// The revision.
    pub revision: Revision,
}

/// Answer to a lookup.
#[derive(Debug)]
pub enum Lookup {
    /// The entry.
    Found(Arc<Node>),
    /// Nothing there, by this catalog, in the view of this generation.
    Missing {
        /// Catalog that decided.
        catalog: CatalogId,
        /// View that was asked.
        generation: u64,
    },
}

/// The mounted repository.
#[derive(Debug)]
pub struct FileSystem {
    objects: Arc<Objects>,
    view: Arc<RwLock<Arc<View>>>,
    numbers: Numbers,
    table: Table,
    files: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    recent: Recent,
    /// Whether chunked files are put together for the kernel.
    joins: AtomicBool,
    joining: parking_lot::Mutex<()>,
    listings: quick_cache::sync::Cache<u32, Arc<Directory>>,
    /// First name of a hard-link group, by catalog, directory and group.
    groups: quick_cache::sync::Cache<(CatalogId, PathKey, u32), Arc<[u8]>>,
    pool: Pool,
    prefetcher: Prefetcher,
    ownership: Ownership,
    world_readable: bool,
    variables: variables::Variables,
    /// As configured, if it is.
    kernel_ttl: Option<Duration>,
    /// Whether the kernel can be told that a name has expired.
    is_told: AtomicBool,
    /// Files that may be open at the same time.
    most_files: usize,
    pub(crate) access: xattr::Access,
    pub(crate) info: Info,
}

/// Facts about the mount that never change; shown by information attributes.
#[derive(Debug, Clone)]
pub struct Info {
    /// Repository name.
    pub fqrn: String,
    /// Trusted master keys, as text.
    pub master_keys: String,
    /// Time of the mount.
    pub since: Instant,
    /// When the next check for a new revision is due; set by the updater.
    pub next_check: Arc<RwLock<Option<Instant>>>,
    /// Control socket of the mount, once there is one.
    pub control: OnceLock<PathBuf>,
}

impl FileSystem {
    /// Shows `revision`. Inode numbers are kept in the database `numbers`.
    pub fn new(
        config: &Config,
        objects: Arc<Objects>,
        revision: Revision,
        numbers: Numbers,
        master_keys: String,
    ) -> FileSystem {
        let info = Info {
            fqrn: config.fqrn.clone(),
            master_keys,
            since: Instant::now(),
            next_check: Arc::default(),
            control: OnceLock::new(),
        };
        let view = Arc::new(RwLock::new(Arc::new(View { generation: 1, revision })));
        let pool = Pool::default();
        FileSystem {
            prefetcher: Prefetcher::new(config, &objects, &view, &pool),
            objects,
            view,
            numbers,
            table: Table::default(),
            files: RwLock::default(),
            next_handle: AtomicU64::new(1),
            recent: Recent::default(),
            joins: AtomicBool::new(false),
            joining: parking_lot::Mutex::default(),
            listings: quick_cache::sync::Cache::new(LISTINGS),
            groups: quick_cache::sync::Cache::new(1 << 14),
            pool,
            ownership: config.ownership.clone(),
            world_readable: config.world_readable,
            variables: config.variables.clone(),
            kernel_ttl: config.kernel_ttl,
            is_told: AtomicBool::new(false),
            most_files: usize::try_from(config.open_files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX),
            access: xattr::Access::of(config),
            info,
        }
    }

    /// The current view.
    pub fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        self.objects.stats()
    }

    /// Cache and servers.
    pub fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    /// Threads that may wait.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What fetches ahead.
    pub fn prefetcher(&self) -> &Prefetcher {
        &self.prefetcher
    }

    /// Facts about the mount.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Inodes held by the kernel, open files, listings being read, and the highest inode number so far.
    pub fn held(&self) -> (usize, usize, usize, u32) {
        let files = self.files.read().len() + self.recent.len();
        (self.table.len(), files, self.listings.len(), self.numbers.next() - 1)
    }

    /// From now on the kernel is told when a name has expired, so it may keep answers until then.
    pub fn kernel_is_told(&self) {
        self.is_told.store(true, Ordering::Relaxed);
    }

    /// How long the kernel may keep an answer.
    fn ttl(&self) -> Duration {
        self.kernel_ttl.unwrap_or(if self.is_told.load(Ordering::Relaxed) { UNTIL_TOLD } else { UNTOLD })
    }

    /// Shows another revision from now on; gives what the kernel has to forget.
    pub fn switch(&self, revision: Revision) -> Stale {
        let kept = revision.catalogs.ids();
        {
            let mut view = self.view.write();
            let generation = view.generation + 1;
            *view = Arc::new(View { generation, revision });
        }
        // From here on, answers from the view before are given without leave to cache them.
        self.table.stale(&kept)
    }

    /// Calls `reply` with the time for which the kernel may cache an answer from the view `generation`, and whether
    /// that is the current one. The view does not change before `reply` returns, so a change of revision comes either
    /// before the answer, which is then not cached, or after it, and then takes it back.
    pub fn with_ttl<R>(&self, generation: u64, reply: impl FnOnce(Duration, bool) -> R) -> R {
        let view = self.view.read();
        let is_current = view.generation == generation;
        reply(if is_current { self.ttl() } else { Duration::ZERO }, is_current)
    }

    /// The kernel is about to be told about `node` under this name.
    pub fn remember(&self, node: Arc<Node>, name: Option<Name>) {
        self.table.remember(node, name);
    }

    /// The kernel is about to be told that a name does not exist; for how long it may cache that, if at all.
    pub fn remember_missing(&self, parent: u32, name: &[u8], catalog: CatalogId) -> Option<Duration> {
        self.table.remember_missing((parent, name.into()), catalog, self.ttl(), UNTOLD)
    }

    /// The kernel dropped references to an inode.
    pub fn forget(&self, inode: u32, lookups: u64) {
        if self.table.forget(inode, lookups) {
            self.recent.remove(inode);
        }
    }

    /// Has everything that is read from now on asked for again; gives what the kernel has to forget for that.
    pub fn read_anew(&self) -> Stale {
        self.recent.clear();
        self.table.files()
    }

    /// The entry `name` of a directory.
    pub fn lookup(&self, parent: u32, name: &[u8], wait: Wait) -> Result<Lookup, FsError> {
        let view = self.view();
        let directory = self.current(&view, parent, wait)?;
        if !directory.entry.is_directory() {
            return Err(FsError::NotDirectory);
        }
        if !is_name(name) {
            return Ok(Lookup::Missing { catalog: directory.catalog, generation: view.generation });
        }
        let path = directory.path.join(name);
        let attached = self.children(&view, &directory, wait)?;
        let row = attached.lookup(&path).map_err(|e| failed(&path, e))?;
        Ok(match row {
            Some(row) => Lookup::Found(self.node(&view, &attached, path, row)?),
            None => Lookup::Missing { catalog: attached.id(), generation: view.generation },
        })
    }

    /// What `stat` shows of an inode.
    pub fn getattr(&self, inode: u32, wait: Wait) -> Result<(Attr, u64), FsError> {
        let view = self.view();
        let node = self.current(&view, inode, wait)?;
        Ok((self.attr(&node), view.generation))
    }

    /// Target of a link.
    pub fn readlink(&self, inode: u32, wait: Wait) -> Result<Vec<u8>, FsError> {
        let node = self.current(&self.view(), inode, wait)?;
        match node.entry.file_type() {
            FileType::Symlink => Ok(variables::expand(&node.entry.symlink, &self.variables)),
            _ => Err(FsError::WrongType),
        }
    }

    /// Size of cache and repository.
    pub fn statfs(&self) -> StatFs {
        let (used, limit) = self.objects.cache().usage();
        let total = limit.unwrap_or(u64::MAX >> 16);
        let view = self.view();
        let counters = view.revision.catalogs.root().catalog().counters();
        let entries = counters.map_or(0, |c| u64::try_from(c.total().entries()).unwrap_or(0));
        StatFs { total, free: total.saturating_sub(used), entries }
    }

    /// Entries of the repository that have extended attributes, as it says itself.
    pub fn attributed(&self) -> u64 {
        let view = self.view();
        let counters = view.revision.catalogs.root().catalog().counters();
        counters.map_or(0, |c| u64::try_from(c.total()[Counter::Xattr]).unwrap_or(0))
    }

    /// Attributes of a node.
    pub fn attr(&self, node: &Node) -> Attr {
        let entry = &node.entry;
        let (uid, gid) = self.ownership.apply(entry.uid, entry.gid);
        let kind = entry.file_type();
        let is_device = matches!(kind, FileType::Char | FileType::Block);
        let size = match kind {
            FileType::Symlink => variables::expand(&entry.symlink, &self.variables).len() as u64,
            FileType::Directory => {
                if entry.size == 0 {
                    4096
                } else {
                    entry.size
                }
            }
            FileType::Regular => entry.size,
            _ => 0,
        };
        let readable = match (self.world_readable, kind) {
            (false, _) => 0,
            (true, FileType::Directory) => 0o555,
            (true, _) => 0o444,
        };
        Attr {
            inode: node.inode,
            mode: entry.mode | readable,
            links: entry.links.max(1),
            uid,
            gid,
            size,
            // Device numbers above 32 bits do not exist in the kernel's own encoding.
            rdev: if is_device { entry.size as u32 } else { 0 },
            mtime: (entry.mtime, entry.mtime_ns.unwrap_or(0)),
        }
    }

    /// The node of an inode as the view has it. Content that the view no longer has stays as it was.
    pub(crate) fn current(&self, view: &View, inode: u32, wait: Wait) -> Result<Arc<Node>, FsError> {
        let held = match self.table.get(inode) {
            Some(node) => node,
            None if inode == inode::ROOT => {
                let node = self.find(view, RepoPath::ROOT, wait)?.ok_or(FsError::NotFound)?;
                self.table.remember(node.clone(), None);
                return Ok(node);
            }
            None => return Err(FsError::Stale),
        };
        if held.generation >= view.generation {
            return Ok(held);
        }
        let node = match self.find(view, held.path.clone(), wait)? {
            Some(found) if found.inode == inode => found,
            _ => Arc::new(Node { generation: view.generation, ..(*held).clone() }),
        };
        self.table.refresh(node.clone());
        Ok(node)
    }

    /// The entry at `path`.
    pub(crate) fn find(&self, view: &View, path: RepoPath, wait: Wait) -> Result<Option<Arc<Node>>, FsError> {
        let catalogs = &view.revision.catalogs;
        let attached = catalogs.find(&path, Side::Entry, wait).map_err(|e| failed(&path, e))?;
        let row = attached.lookup(&path).map_err(|e| failed(&path, e))?;
        row.map(|row| self.node(view, &attached, path, row)).transpose()
    }

    /// The catalog that has the entries of a directory.
    pub(crate) fn children(&self, view: &View, directory: &Node, wait: Wait) -> Result<Arc<Attached>, FsError> {
        let path = &directory.path;
        let attached = view.revision.catalogs.find(path, Side::Children, wait).map_err(|e| failed(path, e))?;
        let flags = directory.entry.flags;
        let is_mountpoint = flags.is_nested_mountpoint() || flags.is_bind_mountpoint();
        // A directory that is gone in this view says nothing about it any more.
        if is_mountpoint && attached.mountpoint() != path && self.is_in(view, directory) {
            return Err(failed(path, AttachError::Unregistered(path.clone())));
        }
        Ok(attached)
    }

    fn is_in(&self, view: &View, node: &Node) -> bool {
        view.revision.catalogs.ids().contains(&node.catalog)
    }

    fn node(&self, view: &View, attached: &Attached, path: RepoPath, row: Row) -> Result<Arc<Node>, FsError> {
        let mut nodes = self.nodes(view, attached, vec![(path, row)])?;
        Ok(nodes.pop().expect("one row gives one node"))
    }

    /// Nodes of rows of one catalog, in the same order.
    pub(crate) fn nodes(
        &self,
        view: &View,
        attached: &Attached,
        rows: Vec<(RepoPath, Row)>,
    ) -> Result<Vec<Arc<Node>>, FsError> {
        let mut nodes = Vec::with_capacity(rows.len());
        let mut identities = Vec::with_capacity(rows.len());
        for (path, row) in rows {
            let chunks = match row.entry.flags.is_chunked() && row.entry.file_type() == FileType::Regular {
                true => attached.chunks(&row).map_err(|e| failed(&path, e))?.into(),
                false => Arc::default(),
            };
            let is_linked = row.entry.link_group != 0 && row.entry.links > 1 && !row.entry.is_directory();
            let shared = if is_linked { self.first_name(attached, &path, &row)? } else { None };
            identities.push(Identity::of(shared.as_ref().unwrap_or(&path), &row.entry, &chunks));
            let (catalog, generation) = (attached.id(), view.generation);
            nodes.push(Node { inode: 0, path, entry: row.entry, chunks, catalog, generation });
        }
        let is_root = nodes.first().is_some_and(|node| node.path.is_root());
        let numbers = if is_root { vec![inode::ROOT] } else { self.numbers.of(&identities)? };
        Ok(nodes.into_iter().zip(numbers).map(|(node, inode)| Arc::new(Node { inode, ..node })).collect())
    }

    /// Path of the first name of a hard-link group.
    fn first_name(&self, attached: &Attached, path: &RepoPath, row: &Row) -> Result<Option<RepoPath>, FsError> {
        let Some(directory) = path.parent() else { return Ok(None) };
        let key = |group| (attached.id(), row.parent, group);
        if let Some(name) = self.groups.get(&key(row.entry.link_group)) {
            return Ok(Some(directory.join(&*name)));
        }
        let mut first: HashMap<u32, Vec<u8>> = HashMap::new();
        for Row { entry: Entry { name, link_group, .. }, .. } in
            attached.list(&directory).map_err(|e| failed(path, e))?
        {
            if link_group != 0 {
                let smallest = first.entry(link_group).or_insert_with(|| name.clone());
                if name < *smallest {
                    *smallest = name;
                }
            }
        }
        let result = first.get(&row.entry.link_group).map(|name| directory.join(name));
        first.into_iter().for_each(|(group, name)| self.groups.insert(key(group), name.into()));
        Ok(result)
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }
}

fn failed(path: &RepoPath, source: AttachError) -> FsError {
    match source {
        AttachError::WouldBlock => FsError::WouldBlock,
        source => FsError::Catalog { path: path.clone(), source },
    }
}
