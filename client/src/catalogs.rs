//! The catalogs of one revision, attached on demand.
//!
//! A path belongs to the deepest catalog whose mountpoint lies above it; the chain of nested catalogs leads
//! there from the root. The entry of a mountpoint itself is read from the parent, so looking at a directory
//! does not load the catalog behind it; listing it does. At most a configured number of nested catalogs
//! stays attached; those not used for the longest time go first, and come back from the cache.
//!
//! Invariants
//! - An attached catalog is open and locked in the cache, so it is neither evicted nor lost.
//! - A nested catalog lies strictly below its parent's mountpoint, so nesting ends; it was written for that place.
//! - A directory that its catalog calls a mountpoint without naming the catalog is an error, not empty.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cvmfs::catalog::{Catalog, CatalogError, NestedRef, Row};
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::path::{PathKey, RepoPath};
use parking_lot::RwLock;

use crate::fetch::{FetchError, Objects, Source, Wait, Want};

/// Largest plain catalog that is read. The reference tools warn above 1 GiB.
const MAX_CATALOG: u64 = 16 << 30;

/// Bytes accepted of a catalog of which somebody trusted says that it has `size`; 0 when nobody does. The number
/// may be wrong, and the catalog is used all the same; but what inflates without end is not.
fn limit(size: u64) -> u64 {
    if size == 0 { MAX_CATALOG } else { size.saturating_mul(2).saturating_add(1 << 20).min(MAX_CATALOG) }
}

/// A catalog, or what it should hold, cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// It has to be downloaded first.
    #[error("the catalog is not here yet")]
    WouldBlock,
    /// It cannot be downloaded.
    #[error("catalog of {mountpoint}")]
    Fetch {
        /// Where it would be mounted.
        mountpoint: RepoPath,
        /// Why.
        #[source]
        source: Arc<FetchError>,
    },
    /// It is no proper catalog.
    #[error("catalog of {mountpoint}, object {hash}")]
    Catalog {
        /// Where it is mounted.
        mountpoint: RepoPath,
        /// Its hash.
        hash: ContentHash,
        /// What is wrong.
        #[source]
        source: Box<CatalogError>,
    },
    /// A mountpoint without a catalog.
    #[error("{0} should have a catalog of its own, but the catalog above does not name it")]
    Unregistered(RepoPath),
}

/// A catalog where it is mounted: the same one may be bound to several places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CatalogId {
    /// Its hash.
    pub hash: ContentHash,
    /// Its mountpoint.
    pub at: PathKey,
}

/// One open catalog.
#[derive(Debug)]
pub struct Attached {
    catalog: Catalog,
    hash: ContentHash,
    id: CatalogId,
    mountpoint: RepoPath,
    nested: HashMap<Box<[u8]>, (NestedRef, Binding)>,
    last_used: AtomicU64,
    /// Holds the lock that keeps it in the cache, and the descriptor that SQLite opened it through.
    _file: Arc<File>,
}

/// How a catalog hangs below its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    /// Same paths as written.
    Nested,
    /// Root catalog of another revision shown at a directory of this one.
    Bind,
}

impl Attached {
    fn open(
        objects: &Objects,
        mountpoint: RepoPath,
        inner: RepoPath,
        want: &Want,
        wait: Wait,
    ) -> Result<Attached, AttachError> {
        let hash = want.object.hash;
        let fetch = |source| AttachError::Fetch { mountpoint: mountpoint.clone(), source };
        let catalog = |e| AttachError::Catalog { mountpoint: mountpoint.clone(), hash, source: Box::new(e) };
        let mut last = false;
        loop {
            let file = objects.open(want, wait).map_err(fetch)?.ok_or(AttachError::WouldBlock)?;
            // Failing to lock costs a second download some day, nothing else.
            let _ = file.lock_shared();
            // Through the descriptor, because another client may evict the file at this very moment.
            let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
            let opened = if is_complete(&file) {
                Catalog::open(&path, inner.clone())
                    .and_then(|opened| Attached::new(opened, hash, mountpoint.clone(), &file))
            } else {
                Err(CatalogError::Corrupt { path, what: "the file is cut short".into() })
            };
            match opened {
                Ok(attached) => return Ok(attached),
                Err(error) if last => {
                    objects.discard(want);
                    return Err(catalog(error));
                }
                Err(error) => {
                    // The object was right when it came, so perhaps the file was damaged since.
                    tracing::warn!(%hash, %error, "unusable catalog in the cache; fetching it again");
                    objects.discard(want);
                    last = true;
                }
            }
        }
    }

    fn new(
        catalog: Catalog,
        hash: ContentHash,
        mountpoint: RepoPath,
        file: &Arc<File>,
    ) -> Result<Attached, CatalogError> {
        // Only what is bound may come from another place; else a tree could be shown within itself.
        if !catalog.mountpoint().is_root() && catalog.root_prefix() != catalog.mountpoint() {
            let (here, there) = (catalog.mountpoint(), catalog.root_prefix());
            let what = format!("it belongs to \"{there}\", and is referred to as the nested catalog of {here}");
            return Err(CatalogError::Corrupt { path: catalog.file().to_owned(), what });
        }
        // Without its root entry the rows belong elsewhere, and every directory would look empty.
        let root = catalog.lookup(catalog.root_prefix().key())?;
        if !root.is_some_and(|row| row.entry.is_directory()) {
            let what = format!("it has no entry for the directory {} where it is mounted", catalog.root_prefix());
            return Err(CatalogError::Corrupt { path: catalog.file().to_owned(), what });
        }
        let mut attached = Attached {
            catalog,
            hash,
            id: CatalogId { hash, at: mountpoint.key() },
            mountpoint,
            nested: HashMap::new(),
            last_used: AtomicU64::new(0),
            _file: file.clone(),
        };
        let nested = attached.catalog.nested_all()?.into_iter().map(|r| (r, Binding::Nested));
        let bound = attached.catalog.bind_mountpoints()?.into_iter().map(|r| (r, Binding::Bind));
        let mut children = HashMap::new();
        // Nested catalogs win over bind mountpoints of the same path.
        for (reference, binding) in bound.chain(nested) {
            if let Some(outer) = attached.outer(&reference.path) {
                children.insert(outer.as_bytes().into(), (reference, binding));
            }
        }
        attached.nested = children;
        Ok(attached)
    }

    /// Which catalog it is, and where.
    pub fn id(&self) -> CatalogId {
        self.id
    }

    /// Hash of the catalog object.
    pub fn hash(&self) -> ContentHash {
        self.hash
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &RepoPath {
        &self.mountpoint
    }

    /// The open catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The row of `path` of the mounted tree.
    pub fn lookup(&self, path: &RepoPath) -> Result<Option<Row>, AttachError> {
        self.catalog.lookup_path(&self.inner(path)).map_err(|e| self.error(e))
    }

    /// The rows of directory `path`, hidden ones included.
    pub fn list(&self, path: &RepoPath) -> Result<Vec<Row>, AttachError> {
        let inner = self.catalog.inner_path(&self.inner(path));
        self.catalog.list(inner.key()).map_err(|e| self.error(e))
    }

    /// Chunks of the file of this row.
    pub fn chunks(&self, row: &Row) -> Result<Vec<cvmfs::entry::Chunk>, AttachError> {
        self.catalog.chunks(row.key, row.entry.algorithm()).map_err(|e| self.error(e))
    }

    /// Wraps an error of this catalog.
    pub fn error(&self, source: CatalogError) -> AttachError {
        AttachError::Catalog { mountpoint: self.mountpoint.clone(), hash: self.hash, source: Box::new(source) }
    }

    /// From a path of the mounted tree to the one under which the catalog was opened.
    fn inner(&self, path: &RepoPath) -> RepoPath {
        swap_prefix(path, &self.mountpoint, self.catalog.mountpoint()).unwrap_or_else(|| path.clone())
    }

    /// From a path as the catalog writes it to the mounted tree; only if it lies strictly below.
    fn outer(&self, path: &RepoPath) -> Option<RepoPath> {
        swap_prefix(path, self.catalog.root_prefix(), &self.mountpoint).filter(|outer| *outer != self.mountpoint)
    }
}

fn swap_prefix(path: &RepoPath, from: &RepoPath, to: &RepoPath) -> Option<RepoPath> {
    if !from.contains(path) {
        return None;
    }
    let rest = &path.as_bytes()[from.as_bytes().len()..];
    RepoPath::parse([to.as_bytes(), rest].concat()).ok()
}

/// Whether an SQLite file is as long as its own header says.
fn is_complete(file: &File) -> bool {
    let mut header = [0; 100];
    if file.read_exact_at(&mut header, 0).is_err() {
        return false;
    }
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u64::from(size),
    };
    let (changes, pages, valid_for) = (word(24), u64::from(word(28)), word(92));
    // The page count only counts when it was written with the last change (SQLite file format, 1.3.8).
    let counted = pages != 0 && changes == valid_for;
    !counted || file.metadata().is_ok_and(|m| m.len() >= page_size * pages)
}

/// Which catalog is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that has the entry of the path.
    Entry,
    /// The one that has the entries below the path.
    Children,
}

/// Root catalog of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRef {
    /// Its hash.
    pub hash: ContentHash,
    /// Bytes of the plain database; 0 when unknown.
    pub size: u64,
    /// Whether it is fetched under an alternative name outside of `data/`.
    pub alternative: bool,
}

/// All catalogs of one revision.
#[derive(Debug)]
pub struct Catalogs {
    objects: Arc<Objects>,
    root: Arc<Attached>,
    attached: RwLock<HashMap<Box<[u8]>, Arc<Attached>>>,
    watermark: usize,
    clock: AtomicU64,
}

impl Catalogs {
    /// Opens the revision with this root catalog.
    pub fn open(objects: &Arc<Objects>, root: RootRef, watermark: usize) -> Result<Catalogs, AttachError> {
        let object = root.hash.object(ObjectKind::Catalog);
        let mut want = Want::bounded(object, limit(root.size));
        if root.alternative {
            want.source = Source::Alternative;
        }
        let root = Arc::new(Attached::open(objects, RepoPath::ROOT, RepoPath::ROOT, &want, Wait::Yes)?);
        Ok(Catalogs {
            objects: objects.clone(),
            root,
            attached: RwLock::default(),
            watermark: watermark.max(16),
            clock: AtomicU64::new(1),
        })
    }

    /// Takes over what `old` has attached: unchanged catalogs as they are, changed ones freshly fetched, so
    /// that nobody waits for them after the change of revision.
    pub fn succeed(&self, old: &Catalogs) {
        let mut inherited: Vec<Arc<Attached>> = old.attached.read().values().cloned().collect();
        inherited.sort_by_key(|attached| attached.mountpoint.as_bytes().len());
        for attached in inherited {
            let path = &attached.mountpoint;
            let Ok(parent) = self.find(path, Side::Entry, Wait::No) else { continue };
            match parent.nested.get(path.as_bytes()) {
                Some((reference, Binding::Nested)) if reference.hash == attached.hash => {
                    self.attached.write().insert(path.as_bytes().into(), attached);
                }
                Some(_) => {
                    if let Err(error) = self.find(path, Side::Children, Wait::Yes) {
                        tracing::warn!(%path, %error, "a catalog of the new revision is not available");
                    }
                }
                None => {}
            }
        }
    }

    /// The root catalog.
    pub fn root(&self) -> &Attached {
        &self.root
    }

    /// Number of attached catalogs.
    pub fn count(&self) -> usize {
        self.attached.read().len() + 1
    }

    /// All attached catalogs.
    pub fn ids(&self) -> HashSet<CatalogId> {
        self.attached.read().values().map(|a| a.id).chain([self.root.id]).collect()
    }

    /// The catalog that has the entry of `path`, or those below it; attaches what is missing on the way.
    pub fn find(&self, path: &RepoPath, side: Side, wait: Wait) -> Result<Arc<Attached>, AttachError> {
        let bytes = path.as_bytes();
        let end = match side {
            Side::Entry => bytes.len().saturating_sub(1),
            Side::Children => bytes.len(),
        };
        // Every place where a directory above ends, and the path's own end.
        let is_cut = |at: usize| at == bytes.len() || bytes[at] == b'/';
        let mut current = self.root.clone();
        {
            let attached = self.attached.read();
            if let Some(deepest) = (1..=end).rev().filter(|at| is_cut(*at)).find_map(|at| attached.get(&bytes[..at])) {
                current = deepest.clone();
            }
        }
        loop {
            current.last_used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            let below = current.mountpoint.as_bytes().len() + 1..=end;
            let Some(at) = below.filter(|at| is_cut(*at)).find(|at| current.nested.contains_key(&bytes[..*at])) else {
                return Ok(current);
            };
            current = self.attach(&current, &bytes[..at], wait)?;
        }
    }

    /// The catalogs on the way to the entry of `path` that are attached now, the root first.
    pub fn way(&self, path: &RepoPath) -> Vec<Arc<Attached>> {
        let bytes = path.as_bytes();
        let attached = self.attached.read();
        let cuts = (1..bytes.len()).filter(|at| bytes[*at] == b'/');
        std::iter::once(self.root.clone()).chain(cuts.filter_map(|at| attached.get(&bytes[..at]).cloned())).collect()
    }

    fn attach(&self, parent: &Attached, mountpoint: &[u8], wait: Wait) -> Result<Arc<Attached>, AttachError> {
        let (reference, binding) = &parent.nested[mountpoint];
        let outer = RepoPath::parse(mountpoint).expect("it was a path when it became a key");
        let want = Want::bounded(reference.hash.object(ObjectKind::Catalog), limit(reference.size));
        let inner = match binding {
            Binding::Nested => reference.path.clone(),
            Binding::Bind => RepoPath::ROOT,
        };
        let opened = Arc::new(Attached::open(&self.objects, outer, inner, &want, wait)?);
        let mut attached = self.attached.write();
        // Of two that opened it at the same time the first one stays.
        let result = attached.entry(mountpoint.into()).or_insert(opened).clone();
        if attached.len() > self.watermark {
            result.last_used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
            let mut ages: Vec<u64> = attached.values().map(|a| a.last_used.load(Ordering::Relaxed)).collect();
            let keep = self.watermark * 3 / 4;
            let drop = ages.len() - keep;
            let (_, youngest_to_go, _) = ages.select_nth_unstable(drop - 1);
            let limit = *youngest_to_go;
            attached.retain(|_, a| a.last_used.load(Ordering::Relaxed) > limit);
        }
        Ok(result)
    }
}
