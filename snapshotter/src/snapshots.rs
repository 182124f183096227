//! Snapshots as values, and the state machine that containerd drives: active or view → committed → removed.
//!
//! ```text
//! prepare ──▶ active ──commit──▶ committed ◀── insert_remote, conjured without a download
//! view ─────▶ view                   │ parent of
//!                                    ▼
//!                              other snapshots
//! ```
//! Nothing here knows of gRPC, of repositories or of time-outs; what it needs of the outside comes as arguments.
//!
//! Invariants
//! - Names of active, viewed and committed snapshots are one space. A parent is committed. Only what has no children is removed.
//! - A change is in the database or it did not happen; directories follow ([`crate::directories`] says how).
//! - A snapshot that was made without a download is found by (parent, target): its name is derived from both, so that two
//!   namespaces that stack the same layer on different parents don't take each other's.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use image::digest::{ChainId, LayerDigest};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::directories::{Directories, Record};
use crate::error::Error;
use crate::filter::Filter;
use crate::labels::{self, Labels};
use crate::metadata::{Metadata, Table};
use crate::overlay::{self, Layer, Mount};
use crate::usage::{self, Usage};

/// How long a scan of a writable directory stays good; CRI asks every 10 s.
const USAGE_FRESH: Duration = Duration::from_secs(8);
/// Bytes of directories of an overlay whose paths have nothing in common: options of a mount have one page, and containerd
/// can take out only what all have in common.
const MOST_PATHS: usize = 3000;
/// Snapshots read from the database at a time.
pub const PAGE: usize = 100;
/// Names and values of labels in one answer; a message takes four times as much.
const PAGE_BYTES: usize = 4 << 20;
/// Longest name and value of a label together: what containerd lets pass.
const MAX_LABEL: usize = 4096;
/// Labels of one snapshot, in bytes. They come from annotations of images, and whoever lists snapshots gets them all.
const MAX_LABELS: usize = 1 << 20;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// read-only, never committed
    View,
    /// writable
    Active,
    /// finished; can be a parent
    Committed,
}

impl Kind {
    /// The word of filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What containerd sees of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// unique
    pub name: String,
    /// name of the parent
    pub parent: Option<String>,
    /// what it is
    pub kind: Kind,
    /// nanoseconds since 1970
    pub created: i64,
    /// nanoseconds since 1970
    pub updated: i64,
    /// free text
    pub labels: Labels,
}

/// Number of a snapshot and its directory; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Id(pub i64);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A directory that stands for a snapshot instead of files of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Lower {
    /// name of the repository
    pub repository: String,
    /// which layer
    pub layer: LayerDigest,
    /// which directory of it
    pub part: Part,
}

/// Which directory of a layer stands in a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// `layerfs`
    Content,
    /// `.overlay/layerfs`: what the existing tool wrote, written again as overlayfs wants it
    Overlay,
    /// a local directory above a layer with literal whiteouts: hides their names
    Above,
    /// a local directory below it: deletes what they say
    Below,
    /// `.flat/xx/.cover-<hex>`; the digest is that of an image's config, as with the next
    Cover,
    /// `.flat/xx/<hex>`: with the cover over it the whole image
    Flat,
}

impl Part {
    /// The word in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Overlay => "overlay",
            Self::Above => "above",
            Self::Below => "below",
            Self::Cover => "cover",
            Self::Flat => "flat",
        }
    }

    /// Is it in a repository, and not local?
    pub const fn is_published(self) -> bool {
        !matches!(self, Self::Above | Self::Below)
    }

    /// Reads that word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Content, Self::Overlay, Self::Above, Self::Below, Self::Cover, Self::Flat]
            .into_iter()
            .find(|part| part.as_str() == text)
    }
}

/// Everything about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// its number
    pub id: Id,
    /// number of the parent
    pub parent: Option<Id>,
    /// what containerd sees
    pub info: Info,
    /// what stands for it, the top one first; empty for a snapshot with files of its own. After that perhaps cover and flat,
    /// which stand for it and all below it
    pub lowers: Vec<Lower>,
    /// which way it was found, for people; nothing for a snapshot with files of its own
    pub how: Option<String>,
    /// disk usage, measured when it was committed
    pub usage: Option<Usage>,
}

impl Snapshot {
    /// Refuses what can't be mounted.
    pub fn require_mountable(&self) -> Result<(), Error> {
        if self.info.kind == Kind::Committed {
            return Err(Error::FailedPrecondition(format!(
                "snapshot {:?} is committed; only active ones and views are mounted",
                self.info.name
            )));
        }
        Ok(())
    }

    /// Does it stand for directories of a repository?
    pub fn is_remote(&self) -> bool {
        !self.lowers.is_empty()
    }

    /// How many of its lowers stand for it alone.
    pub fn alone(&self) -> usize {
        self.lowers.iter().position(|lower| lower.part == Part::Cover).unwrap_or(self.lowers.len())
    }

    /// The directories that stand for it and all below it; none if there are none.
    pub fn whole(&self) -> &[Lower] {
        &self.lowers[self.alone()..]
    }
}

/// Those directories of repositories that a stack of snapshots, the nearest first, is mounted from.
pub fn used(stack: &[Snapshot]) -> impl Iterator<Item = &Lower> + Clone {
    let last = stack.iter().position(|snapshot| !snapshot.whole().is_empty());
    let (above, whole) = match last {
        Some(place) => (&stack[..place], stack[place].whole()),
        None => (stack, &[][..]),
    };
    above.iter().flat_map(|snapshot| &snapshot.lowers).chain(whole)
}

/// A layer that was found in a repository, ready to become a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// what stands for it, the top one first
    pub lowers: Vec<Lower>,
    /// which way it was found
    pub how: &'static str,
    /// what `usage = "logical"` reports
    pub logical: Usage,
    /// chain ID of the image that a thin image stands for, if it is all of the snapshot and the layers are known to make it
    pub stack: Option<ChainId>,
}

/// The name of a snapshot that is made without a download.
///
/// Not the target alone, as others do: if another namespace had it under another parent, containerd would be told that it
/// exists, would not find it under its own parent, and would give up the whole pull.
pub fn conjured_name(parent: Option<&str>, target: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(parent.unwrap_or_default());
    hash.update([0]);
    hash.update(target);
    format!("cvmfs/{}", hex::encode(hash.finalize()))
}

/// All snapshots of a state directory.
#[derive(Debug)]
pub struct Snapshots {
    metadata: Metadata,
    directories: Arc<Directories>,
    overlay: overlay::Options,
    measured: Mutex<HashMap<Id, (Instant, Usage)>>,
}

impl Snapshots {
    /// Snapshots with their rows in `metadata` and their files in `directories`.
    pub fn new(metadata: Metadata, directories: Arc<Directories>, overlay: overlay::Options) -> Self {
        Self { metadata, directories, overlay, measured: Mutex::default() }
    }

    /// The directories.
    pub fn directories(&self) -> &Arc<Directories> {
        &self.directories
    }

    /// The database, for reading.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// One snapshot.
    pub fn stat(&self, name: &str) -> Result<Snapshot, Error> {
        self.metadata.read(|table| table.get(name))
    }

    /// A snapshot and all that it stands on, the nearest first.
    pub fn with_ancestors(&self, name: &str) -> Result<(Snapshot, Vec<Snapshot>), Error> {
        self.metadata.read(|table| {
            let snapshot = table.get(name)?;
            let ancestors = table.ancestors(&snapshot)?;
            Ok((snapshot, ancestors))
        })
    }

    /// A committed snapshot that stands on `parent`, with its own parents, the nearest first; empty without a parent.
    pub fn lineage(&self, parent: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        self.metadata.read(|table| lineage(table, parent))
    }

    /// The snapshot that was made without a download for `target` on `parent`.
    pub fn conjured(&self, parent: Option<&str>, target: &str) -> Result<Option<Snapshot>, Error> {
        let name = conjured_name(parent, target);
        self.metadata.read(|table| match table.get(&name) {
            Err(Error::NotFound(_)) => Ok(None),
            found => found.map(Some),
        })
    }

    /// Makes an active snapshot, or a view, on a committed parent.
    ///
    /// The new directory gets the owner and mode of what will be seen as `/`: `root` is that of the parent.
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        root: Option<RootAttributes>,
    ) -> Result<(Snapshot, Vec<Snapshot>), Error> {
        let (key, parent, labels) = (valid(key)?.to_owned(), parent.map(str::to_owned), valid_labels(labels)?.clone());
        let id = self.metadata.number();
        let directories = Arc::clone(&self.directories);
        // The directory is made within the transaction: many made beside it at once hold up the flush of the disk that ends it.
        let made = self.metadata.write(move |table| {
            table.ensure_free(&key)?;
            let ancestors = lineage(table, parent.as_deref())?;
            let lowers = overlay::count(ancestors.iter());
            if lowers > overlay::MAX_LOWERS {
                return Err(Error::FailedPrecondition(format!(
                    "snapshot {key:?} would stand on {lowers} directories; overlayfs takes {}",
                    overlay::MAX_LOWERS
                )));
            }
            let now = now();
            let snapshot = Snapshot {
                id,
                parent: ancestors.first().map(|parent| parent.id),
                info: Info { name: key, parent, kind, created: now, updated: now, labels },
                lowers: Vec::new(),
                how: None,
                usage: None,
            };
            table.insert(&snapshot)?;
            directories.create(id, kind, root)?;
            directories.record(&Record::of(&snapshot))?;
            Ok((snapshot, ancestors))
        });
        if made.is_err() {
            self.forget(id);
        }
        made
    }

    /// Takes away the directory of a snapshot that did not come to be.
    fn forget(&self, id: Id) {
        if let Err(error) = self.directories.discard(id) {
            tracing::warn!(snapshot = %id, %error, "the directory of a snapshot that failed stays until the next start");
        }
    }

    /// Makes a committed snapshot that stands for directories of a repository; whoever comes second gets the first one's.
    pub fn insert_remote(
        &self,
        parent: Option<&str>,
        target: &str,
        labels: &Labels,
        found: &Found,
    ) -> Result<Snapshot, Error> {
        let name = conjured_name(parent, target);
        let mut labels = valid_labels(labels)?.clone();
        labels.remove(labels::THIN_STACK);
        labels.insert(labels::REMOTE.to_owned(), labels::REMOTE_VALUE.to_owned());
        labels.insert(labels::SNAPSHOT_REF.to_owned(), target.to_owned());
        let parent_id =
            self.metadata.read(|table| parent.map(|parent| Ok(committed(table, parent)?.id)).transpose())?;
        let (id, now) = (self.metadata.number(), now());
        let snapshot = Snapshot {
            id,
            parent: parent_id,
            info: Info {
                name,
                parent: parent.map(str::to_owned),
                kind: Kind::Committed,
                created: now,
                updated: now,
                labels,
            },
            lowers: found.lowers.clone(),
            how: Some(found.how.to_owned()),
            usage: Some(found.logical),
        };
        let add = |snapshot: Snapshot| {
            self.directories.link(id, &snapshot.lowers)?;
            self.directories.record(&Record::of(&snapshot))?;
            let directories = Arc::clone(&self.directories);
            self.metadata.write(move |table| {
                match table.get(&snapshot.info.name) {
                    Err(Error::NotFound(_)) => {}
                    Ok(existing) if existing.lowers == snapshot.lowers || !existing.is_remote() => return Ok(existing),
                    // What stood for it is gone from its repository, and was found elsewhere.
                    Ok(mut existing) => {
                        (existing.lowers, existing.how, existing.usage) =
                            (snapshot.lowers, snapshot.how, snapshot.usage);
                        table.replace(&mut existing)?;
                        directories.link(existing.id, &existing.lowers)?;
                        directories.record(&Record::of(&existing))?;
                        return Ok(existing);
                    }
                    Err(error) => return Err(error),
                }
                // The parent may have gone meanwhile.
                if let Some(parent) = &snapshot.info.parent
                    && Some(committed(table, parent)?.id) != snapshot.parent
                {
                    return Err(Error::NotFound(parent.clone()));
                }
                table.insert(&snapshot)?;
                Ok(snapshot)
            })
        };
        let made = add(snapshot);
        if made.as_ref().map_or(true, |made| made.id != id) {
            self.forget(id);
        }
        made
    }

    /// What to mount to use an active snapshot or a view.
    ///
    /// `better`: paths that are to be taken in place of others, where there is room for them.
    pub fn mounts(
        &self,
        snapshot: &Snapshot,
        ancestors: &[Snapshot],
        better: &HashMap<PathBuf, PathBuf>,
    ) -> Result<Vec<Mount>, Error> {
        snapshot.require_mountable()?;
        let usual = self.directories.stack(ancestors);
        let improve = |layer: &Layer| match layer.target.as_ref().and_then(|target| better.get(target)) {
            Some(path) => Layer { path: path.clone(), target: Some(path.clone()) },
            None => layer.clone(),
        };
        let improved: Vec<Layer> = usual.iter().map(improve).collect();
        let length: usize = improved.iter().map(|layer| layer.path.as_os_str().len() + 1).sum();
        let layers = if length <= MOST_PATHS { improved } else { usual };
        let own = self.directories.own(snapshot.id);
        Ok(overlay::mounts(&self.overlay, snapshot.info.kind, &own, &layers))
    }

    /// Turns an active snapshot into a committed one with a new name and new labels.
    ///
    /// A parent is accepted from whoever prepared without one (containerd 2.4 unpacks layers side by side and stacks them then).
    /// With `found` the snapshot stands for published layers from now on, and its own files go.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        found: Option<Found>,
    ) -> Result<Snapshot, Error> {
        let active = self.stat(key)?;
        require_active(&active)?;
        // Outside of the transaction: it may take long, and nobody writes into what is being committed.
        let usage = usage::scan(&self.directories.own(active.id).content)?;
        let (name, key, mut labels) = (valid(name)?.to_owned(), key.to_owned(), valid_labels(labels)?.clone());
        labels.remove(labels::THIN_STACK);
        if let Some(stack) = found.as_ref().and_then(|found| found.stack) {
            labels.insert(labels::THIN_STACK.to_owned(), stack.to_string());
        }
        let parent = parent.map(str::to_owned);
        let directories = Arc::clone(&self.directories);
        let committed_snapshot = self.metadata.write(move |table| {
            table.ensure_free(&name)?;
            let mut snapshot = table.get(&key)?;
            require_active(&snapshot)?;
            match (&parent, &snapshot.info.parent) {
                (Some(new), Some(old)) if new != old => {
                    return Err(Error::InvalidArgument(format!(
                        "snapshot {key:?} stands on {old:?}, it can't be committed on {new:?}"
                    )));
                }
                (Some(new), None) => {
                    snapshot.parent = match table.get(new) {
                        Ok(parent) if parent.info.kind == Kind::Committed => Some(parent.id),
                        _ => {
                            return Err(Error::FailedPrecondition(format!(
                                "{new:?} is no committed snapshot; {key:?} can't be committed on it"
                            )));
                        }
                    };
                    snapshot.info.parent = Some(new.clone());
                }
                _ => {}
            }
            snapshot.info = Info { name, kind: Kind::Committed, labels, created: now(), updated: 0, ..snapshot.info };
            snapshot.usage = Some(usage);
            if let Some(found) = found {
                snapshot.lowers = found.lowers;
                snapshot.how = Some(found.how.to_owned());
                snapshot.usage = Some(found.logical);
            }
            table.replace(&mut snapshot)?;
            directories.record(&Record::of(&snapshot))?;
            if snapshot.is_remote() {
                directories.link(snapshot.id, &snapshot.lowers)?;
            }
            Ok(snapshot)
        })?;
        self.measured.lock().remove(&active.id);
        Ok(committed_snapshot)
    }

    /// Makes the committed snapshot for `target` of an active one whose content was filled in by this program.
    pub fn commit_conjured(&self, key: &str, parent: Option<&str>, target: &str, labels: &Labels) -> Result<(), Error> {
        let mut labels = labels.clone();
        labels.insert(labels::SNAPSHOT_REF.to_owned(), target.to_owned());
        match self.commit(&conjured_name(parent, target), key, None, &labels, None) {
            // Somebody else was faster; what was filled in here is not needed.
            Err(Error::AlreadyExists(_)) => self.remove(key),
            done => done.map(drop),
        }
    }

    /// Removes a snapshot that no other stands on; its files go with the next [`Snapshots::cleanup`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        let id = self.metadata.write(move |table| {
            let snapshot = table.get(&name)?;
            if table.has_children(snapshot.id)? {
                return Err(Error::FailedPrecondition(format!("cannot remove snapshot with child: {name:?}")));
            }
            table.delete(snapshot.id)?;
            Ok(snapshot.id)
        })?;
        self.measured.lock().remove(&id);
        // A failure leaves a directory without a row, which the next start takes away.
        if let Err(error) = self.directories.discard(id) {
            tracing::warn!(snapshot = %id, %error, "files of a removed snapshot stay until the next start");
        }
        Ok(())
    }

    /// Deletes the files of removed snapshots.
    pub fn cleanup(&self) -> Result<(), Error> {
        self.directories.empty_trash()
    }

    /// Changes labels: all of them, or those that `paths` names.
    pub fn update(&self, name: &str, new: &Labels, paths: &[String]) -> Result<Snapshot, Error> {
        let (name, new, paths) = (name.to_owned(), new.clone(), paths.to_vec());
        let directories = Arc::clone(&self.directories);
        self.metadata.write(move |table| {
            let mut snapshot = table.get(&name)?;
            if paths.is_empty() {
                snapshot.info.labels = new;
            } else {
                for path in &paths {
                    if path == "labels" {
                        snapshot.info.labels.clone_from(&new);
                    } else if let Some(key) = path.strip_prefix("labels.") {
                        match new.get(key) {
                            Some(value) => snapshot.info.labels.insert(key.to_owned(), value.clone()),
                            None => snapshot.info.labels.remove(key),
                        };
                    } else {
                        return Err(Error::InvalidArgument(format!(
                            "field {path:?} of snapshot {name:?} can't be changed; only labels can"
                        )));
                    }
                }
            }
            valid_labels(&snapshot.info.labels)?;
            snapshot.info.updated = now();
            table.replace(&mut snapshot)?;
            directories.record(&Record::of(&snapshot))?;
            Ok(snapshot)
        })
    }

    /// At most [`PAGE`] snapshots after `last` that pass the filter, and where to go on; nothing when all were seen.
    pub fn list(&self, filter: &Filter, last: Option<Id>) -> Result<(Vec<Snapshot>, Option<Id>), Error> {
        self.metadata.read(|table| {
            let mut page = table.page(last, PAGE, filter.required_label())?;
            let mut next = (page.len() == PAGE).then(|| page[PAGE - 1].id);
            let mut room = PAGE_BYTES;
            let mut fits = |snapshot: &Snapshot| {
                room = room.saturating_sub(size(&snapshot.info.labels));
                room > 0
            };
            let fitting = page.iter().map_while(|snapshot| Some(()).filter(|()| fits(snapshot))).count().max(1);
            if fitting < page.len() {
                page.truncate(fitting);
                next = page.last().map(|snapshot| snapshot.id);
            }
            Ok((page.into_iter().filter(|snapshot| filter.matches(&snapshot.info)).collect(), next))
        })
    }

    /// Disk usage of a snapshot alone. Never looks into a repository.
    pub fn usage(&self, name: &str, logical: bool) -> Result<Usage, Error> {
        let snapshot = self.stat(name)?;
        if snapshot.is_remote() {
            return Ok(if logical { snapshot.usage.unwrap_or_default() } else { Usage::default() });
        }
        match (snapshot.info.kind, snapshot.usage) {
            (Kind::Committed, Some(usage)) => Ok(usage),
            (Kind::View, _) => Ok(Usage::default()),
            _ => {
                if let Some((when, usage)) = self.measured.lock().get(&snapshot.id)
                    && when.elapsed() < USAGE_FRESH
                {
                    return Ok(*usage);
                }
                let usage = usage::scan(&self.directories.own(snapshot.id).content)?;
                self.measured.lock().insert(snapshot.id, (Instant::now(), usage));
                Ok(usage)
            }
        }
    }

    /// Lets a snapshot stand for all below it as well, by cover and flat of its image. Mounts that exist stay as they are.
    pub fn adopt(&self, id: Id, whole: [Lower; 2]) -> Result<(), Error> {
        let directories = Arc::clone(&self.directories);
        self.metadata.write(move |table| {
            let mut snapshot = table.by_id(id)?;
            if !snapshot.is_remote() || !snapshot.whole().is_empty() {
                return Ok(());
            }
            snapshot.lowers.extend(whole);
            table.replace(&mut snapshot)?;
            directories.record(&Record::of(&snapshot))?;
            directories.link(id, &snapshot.lowers)
        })
    }

    /// Lets a local committed snapshot stand for directories of a repository instead; its own files go.
    ///
    /// Refused while a container or view stands on it: their mounts hold the files.
    pub fn convert(&self, id: Id, found: &Found) -> Result<u64, Error> {
        let (found, directories) = (found.clone(), Arc::clone(&self.directories));
        let (snapshot, freed) = self.metadata.write(move |table| {
            let mut snapshot = table.by_id(id)?;
            if snapshot.info.kind != Kind::Committed || snapshot.is_remote() {
                return Err(Error::FailedPrecondition(format!(
                    "snapshot {:?} has no files that could go",
                    snapshot.info.name
                )));
            }
            if table.has_mounted_descendant(id)? {
                return Err(Error::FailedPrecondition(format!("snapshot {:?} is in use", snapshot.info.name)));
            }
            let freed = snapshot.usage.map_or(0, |usage| usage.size);
            snapshot.lowers = found.lowers;
            snapshot.how = Some(format!("converted by {}", found.how));
            snapshot.usage = Some(found.logical);
            table.replace(&mut snapshot)?;
            directories.record(&Record::of(&snapshot))?;
            // Within the transaction, so that no container comes to stand on it before the files are exchanged. If the transaction
            // fails after all, or the machine stops here, the next start finds links where a row expects files and says so.
            directories.link(id, &snapshot.lowers)?;
            Ok((snapshot, freed))
        })?;
        tracing::info!(snapshot = %snapshot.info.name, freed, "a local snapshot now stands for published directories");
        Ok(freed)
    }
}

/// Owner and mode of the directory that a container sees as `/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootAttributes {
    /// user
    pub uid: u32,
    /// group
    pub gid: u32,
    /// permission bits
    pub mode: u32,
}

/// What stands on a parent stands on these, the nearest first.
fn lineage(table: &Table<'_>, parent: Option<&str>) -> Result<Vec<Snapshot>, Error> {
    let Some(parent) = parent else { return Ok(Vec::new()) };
    let parent = committed(table, parent)?;
    let mut lineage = table.ancestors(&parent)?;
    lineage.insert(0, parent);
    Ok(lineage)
}

fn committed(table: &Table<'_>, name: &str) -> Result<Snapshot, Error> {
    let parent = table.get(name)?;
    if parent.info.kind != Kind::Committed {
        return Err(Error::InvalidArgument(format!(
            "snapshot {name:?} is {}; only committed ones can be parents",
            parent.info.kind.as_str()
        )));
    }
    Ok(parent)
}

fn require_active(snapshot: &Snapshot) -> Result<(), Error> {
    if snapshot.info.kind == Kind::Active {
        return Ok(());
    }
    Err(Error::FailedPrecondition(format!(
        "snapshot {:?} is {}, not active",
        snapshot.info.name,
        snapshot.info.kind.as_str()
    )))
}

fn valid(name: &str) -> Result<&str, Error> {
    if name.is_empty() { Err(Error::InvalidArgument("a snapshot needs a name".into())) } else { Ok(name) }
}

fn size(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn valid_labels(labels: &Labels) -> Result<&Labels, Error> {
    if let Some((key, _)) = labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        let key = &key[..key.floor_char_boundary(100)];
        return Err(Error::InvalidArgument(format!("label {key:?} has more than {MAX_LABEL} bytes with its value")));
    }
    if size(labels) > MAX_LABELS {
        return Err(Error::InvalidArgument(format!("the labels of a snapshot have more than {MAX_LABELS} bytes")));
    }
    Ok(labels)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
