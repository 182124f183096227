//! Finds everything in a revision that layers and flats are needed for.
//!
//! Roots: public links; records of images, ours and those of the existing tool; the additional image store and the
//! chains of that tool; what nodes report. Records of earlier images are read too, whether they count is a matter of
//! the rules ([`super::plan`]).
//!
//! Invariant: marking is total. A directory or record that cannot be read, or a public link to a flat that is gone, is
//! an error that names it, never "not needed".
//!
//! Cost: the catalogs of names, of records and of the two levels above layers and flats; two or three small objects an
//! image, one an earlier image, one a condemned path. Inside layers and flats nothing is read.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::{Store, fetch};
use image::digest::{Digest, ImageId, LayerDigest, ManifestDigest};
use image::layout::{
    Condemned, CondemnedKind, ImageFile, Layout, ManifestRecord, OwnedPath, StatusRecord, VersionRecord, unix_seconds,
};
use image::platform::PlatformDirectory;
use image::reference::PublicName;
use parking_lot::Mutex;

use super::usage::Usage;
use super::view::{Directory, View};
use crate::failure::Failure;
use crate::images::is_public;
use crate::target::Target;

/// Largest record that is read.
const RECORD_LIMIT: u64 = 4 << 20;
/// Records read at the same time: storage may be far away.
const READERS: usize = 16;

/// Something that is removed when nothing needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// A layer directory.
    Layer(LayerDigest),
    /// A flat.
    Flat(ImageId),
}

impl Unit {
    /// Where it is.
    pub fn path(self) -> OwnedPath {
        match self {
            Unit::Layer(layer) => OwnedPath::Layer(layer),
            Unit::Flat(flat) => OwnedPath::Flat(flat),
        }
    }

    /// Where the record is that it is condemned.
    pub fn condemned(self) -> OwnedPath {
        match self {
            Unit::Layer(layer) => OwnedPath::Condemned(CondemnedKind::Layer, layer.digest()),
            Unit::Flat(flat) => OwnedPath::Condemned(CondemnedKind::Flat, flat.digest()),
        }
    }
}

/// A name, on a platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// none: the default platform
    pub platform: Option<PlatformDirectory>,
    /// The name.
    pub name: PublicName,
}

/// What an image is made of, by its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Digest of the manifest, if it is known.
    pub digest: Option<ManifestDigest>,
    /// Digest of the index, if there is one.
    pub index: Option<ManifestDigest>,
    /// Names the flat.
    pub config: ImageId,
    /// Whether it has a flat.
    pub flat: bool,
    /// Its layers, bottom first; none if they are not published with it.
    pub layers: Vec<LayerDigest>,
}

impl Parts {
    /// What it needs.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        let flat = self.flat.then_some(Unit::Flat(self.config));
        self.layers.iter().map(|l| Unit::Layer(*l)).chain(flat)
    }
}

/// A published image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where its records are.
    pub at: RepoPath,
    /// Its name; none where the existing tool has records under a name that is no image's.
    pub owner: Option<Owner>,
    /// What it is made of.
    pub parts: Parts,
    /// Whether it is pinned.
    pub is_pinned: bool,
}

/// An image that a name led to before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its name.
    pub owner: Owner,
    /// Which of the images of that name.
    pub key: Digest,
    /// Unix seconds when the name ceased to lead to it.
    pub since: i64,
    /// Why.
    pub reason: String,
    /// What it is made of.
    pub parts: Parts,
    /// Whether it is pinned.
    pub is_pinned: bool,
}

/// What a revision has, and what needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The revision.
    pub revision: u64,
    /// Layers and flats that are there.
    pub units: BTreeSet<Unit>,
    /// Public links of ours, and where they lead.
    pub links: BTreeMap<Owner, ImageId>,
    /// What links of all kinds lead to, and what is in use on nodes.
    pub roots: HashSet<Unit>,
    /// Published images.
    pub images: Vec<Image>,
    /// Earlier images.
    pub versions: Vec<Version>,
    /// Condemned paths: since when (Unix seconds), with the record.
    pub condemned: BTreeMap<Unit, (i64, Condemned)>,
    /// Layers that a record names and that are not there: a matter of `check`.
    pub missing_layers: u64,
    /// Catalogs read.
    pub catalogs: u64,
    /// Records read.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
}

/// How much of a revision is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// All that needs layers and flats.
    All,
    /// Names, records and public links.
    Names,
}

impl Seen {
    /// Reads the current revision.
    pub fn read(target: &Target, usage: &Usage) -> Result<Seen, Failure> {
        let view = View::new(target)?;
        let mut marker = Marker::new(&view, Depth::All, target.repository()?.manifest().revision);
        marker.walk()?;
        marker.finish(target, usage)
    }

    /// Everything that was needed whatever the rules say.
    pub fn needed(&self) -> HashSet<Unit> {
        let images = self.images.iter().flat_map(|i| i.parts.units());
        self.roots.iter().copied().chain(images).collect()
    }

    /// Names that are published, by link or by records.
    pub fn names(&self) -> BTreeSet<&Owner> {
        self.images.iter().filter_map(|i| i.owner.as_ref()).chain(self.links.keys()).collect()
    }
}

/// The names of a revision: what can be removed, pinned and put back, whatever else may be wrong with the repository.
#[derive(Debug)]
pub struct Names {
    /// The revision.
    pub revision: u64,
    /// Published names, and whether what they lead to is pinned.
    pub published: BTreeMap<Owner, bool>,
    earlier: Vec<FoundVersion>,
}

impl Names {
    /// Reads the current revision: its names, no record.
    pub fn read(target: &Target) -> Result<Names, Failure> {
        let view = View::new(target)?;
        let mut marker = Marker::new(&view, Depth::Names, target.repository()?.manifest().revision);
        marker.walk()?;
        let images = marker.images.into_iter().filter_map(|i| Some((i.owner?, i.is_pinned)));
        let mut published: BTreeMap<Owner, bool> = images.collect();
        for owner in marker.seen.links.into_keys() {
            published.entry(owner).or_default();
        }
        Ok(Names { revision: marker.seen.revision, published, earlier: marker.versions })
    }

    /// Reads the records of earlier images.
    pub fn earlier(self, target: &Target) -> Result<Vec<Version>, Failure> {
        let reader = Reader { store: &*target.store, records: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        read_all(self.earlier, |found| found.read(&reader))
    }
}

/// A record that is to be read.
#[derive(Debug)]
struct Found {
    path: RepoPath,
    entry: Entry,
}

#[derive(Debug)]
struct FoundImage {
    at: RepoPath,
    owner: Option<Owner>,
    manifest: Option<Found>,
    status: Option<Found>,
    is_pinned: bool,
}

#[derive(Debug)]
struct FoundVersion {
    owner: Owner,
    key: Digest,
    record: Found,
    is_pinned: bool,
}

impl FoundVersion {
    fn read(self, reader: &Reader<'_>) -> Result<Version, Failure> {
        let record = reader.read(&self.record, VersionRecord::parse)?;
        let since = since(&self.record.path, &record.since)?;
        let VersionRecord { reason, digest, index, config, flat, layers, .. } = record;
        let parts = Parts { digest, index, config, flat, layers };
        Ok(Version { owner: self.owner, key: self.key, since, reason, parts, is_pinned: self.is_pinned })
    }
}

struct Marker<'a> {
    view: &'a View<'a>,
    depth: Depth,
    layout: Layout,
    seen: Seen,
    images: Vec<FoundImage>,
    versions: Vec<FoundVersion>,
    condemned: Vec<(Unit, Found)>,
}

/// For `map_err`: says what made marking incomplete.
fn unmarked(path: &RepoPath) -> impl FnOnce(Failure) -> Failure + use<> {
    let path = path.to_string();
    move |source| Failure::Unmarked { path, source: Box::new(source) }
}

impl<'a> Marker<'a> {
    fn new(view: &'a View<'a>, depth: Depth, revision: u64) -> Marker<'a> {
        Marker {
            view,
            depth,
            layout: Layout::new(),
            seen: Seen { revision, ..Seen::default() },
            images: Vec::new(),
            versions: Vec::new(),
            condemned: Vec::new(),
        }
    }

    fn walk(&mut self) -> Result<(), Failure> {
        let root = self.view.root()?;
        let tops = root.list()?;
        let find = |name: &[u8]| tops.iter().find(|e| e.name == name && e.is_directory());
        for (name, kind) in [(&b".layers"[..], CondemnedKind::Layer), (b".flat", CondemnedKind::Flat)] {
            if let Some(entry) = find(name).filter(|_| self.depth == Depth::All) {
                let directory = self.enter(&root, entry)?;
                self.units(&directory, kind)?;
            }
        }
        if let Some(entry) = find(b".metadata") {
            let directory = self.enter(&root, entry)?;
            self.metadata(&directory)?;
        }
        // Where nothing can be removed, links mean nothing: a repository of other things is not read.
        if self.depth == Depth::All && self.seen.units.is_empty() {
            return Ok(());
        }
        let others = |e: &Entry| self.depth == Depth::All && (e.name == b"podmanStore" || e.name == b".chains");
        let trees: Vec<&Entry> = tops.iter().filter(|e| is_public(&e.name) || others(e)).collect();
        trees.into_iter().try_for_each(|top| self.tree(&root, top))
    }

    fn parse(&self, path: &RepoPath) -> Option<OwnedPath> {
        self.layout.parse(std::str::from_utf8(path.as_bytes()).ok()?)
    }

    fn list(&self, directory: &Directory) -> Result<Vec<Entry>, Failure> {
        directory.list().map_err(unmarked(&directory.path))
    }

    fn enter(&self, directory: &Directory, entry: &Entry) -> Result<Directory, Failure> {
        self.view.enter(directory, entry).map_err(unmarked(&directory.path.join(&entry.name)))
    }

    /// `.layers/xx/*` or `.flat/xx/*`.
    fn units(&mut self, top: &Directory, kind: CondemnedKind) -> Result<(), Failure> {
        for bucket in self.list(top)?.into_iter().filter(Entry::is_directory) {
            let bucket = self.enter(top, &bucket)?;
            for entry in self.list(&bucket)?.into_iter().filter(Entry::is_directory) {
                match (kind, self.parse(&bucket.path.join(&entry.name))) {
                    (CondemnedKind::Layer, Some(OwnedPath::Layer(layer))) => {
                        self.seen.units.insert(Unit::Layer(layer));
                    }
                    (CondemnedKind::Flat, Some(OwnedPath::Flat(flat))) => {
                        self.seen.units.insert(Unit::Flat(flat));
                    }
                    // Not a thing of ours: it stays.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn metadata(&mut self, directory: &Directory) -> Result<(), Failure> {
        for entry in self.list(directory)?.into_iter().filter(Entry::is_directory) {
            let below = self.enter(directory, &entry)?;
            match &entry.name[..] {
                b".condemned" if self.depth == Depth::Names => {}
                b".condemned" => self.condemned(&below)?,
                b".versions" => self.earlier(&below)?,
                _ => self.records(&below)?,
            }
        }
        Ok(())
    }

    fn condemned(&mut self, directory: &Directory) -> Result<(), Failure> {
        for entry in self.list(directory)? {
            let path = directory.path.join(&entry.name);
            if entry.is_directory() {
                let below = self.enter(directory, &entry)?;
                self.condemned(&below)?;
            } else if let Some(OwnedPath::Condemned(kind, digest)) = self.parse(&path) {
                let unit = match kind {
                    CondemnedKind::Layer => Unit::Layer(LayerDigest::from_digest(digest)),
                    CondemnedKind::Flat => Unit::Flat(ImageId::from_digest(digest)),
                };
                self.condemned.push((unit, Found { path, entry }));
            }
        }
        Ok(())
    }

    /// Directories of records: those of names, and those of the existing tool under names without a tag.
    fn records(&mut self, directory: &Directory) -> Result<(), Failure> {
        let entries = self.list(directory)?;
        let find = |file: ImageFile| {
            let entry = entries.iter().find(|e| e.name == file.file_name().as_bytes() && !e.is_directory())?;
            Some(Found { path: directory.path.join(&entry.name), entry: entry.clone() })
        };
        let owner = match self.parse(&directory.path) {
            Some(OwnedPath::Image { platform, name }) => Some(Owner { platform, name }),
            _ => None,
        };
        let manifest = find(ImageFile::Manifest);
        if manifest.is_some() || owner.is_some() && entries.iter().any(|e| !e.is_directory()) {
            let (status, is_pinned) = (find(ImageFile::Status), find(ImageFile::Pin).is_some());
            self.images.push(FoundImage { at: directory.path.clone(), owner, manifest, status, is_pinned });
        }
        for entry in entries.iter().filter(|e| e.is_directory()) {
            let below = self.enter(directory, entry)?;
            self.records(&below)?;
        }
        Ok(())
    }

    fn earlier(&mut self, directory: &Directory) -> Result<(), Failure> {
        let entries = self.list(directory)?;
        if let Some(OwnedPath::Version { platform, name, key }) = self.parse(&directory.path) {
            let Some(entry) = entries.iter().find(|e| e.name == b"version.json") else {
                let what = "version.json is missing";
                return Err(unmarked(&directory.path)(Failure::Content(what.into())));
            };
            let record = Found { path: directory.path.join("version.json"), entry: entry.clone() };
            let is_pinned = entries.iter().any(|e| e.name == ImageFile::Pin.file_name().as_bytes());
            self.versions.push(FoundVersion { owner: Owner { platform, name }, key, record, is_pinned });
            return Ok(());
        }
        for entry in entries.iter().filter(|e| e.is_directory()) {
            let below = self.enter(directory, entry)?;
            self.earlier(&below)?;
        }
        Ok(())
    }

    /// Links at the top, or in a directory at the top and below.
    fn tree(&mut self, directory: &Directory, entry: &Entry) -> Result<(), Failure> {
        // What lies in the content of a layer of podman or of a chain leads nowhere outside of it.
        let path = directory.path.join(&entry.name);
        if !entry.is_directory() {
            return self.link(&path, entry);
        }
        let is_content = |below: &Entry| {
            let inner = path.components().next();
            let chain = inner == Some(b".chains") && path.components().count() == 2;
            let podman = inner == Some(b"podmanStore") && below.name == b"diff";
            below.is_directory() && (chain || podman)
        };
        let inner = self.enter(directory, entry)?;
        for below in self.list(&inner)?.into_iter().filter(|e| !is_content(e)) {
            self.tree(&inner, &below)?;
        }
        Ok(())
    }

    fn link(&mut self, path: &RepoPath, entry: &Entry) -> Result<(), Failure> {
        let Ok(text) = std::str::from_utf8(&entry.symlink) else { return Ok(()) };
        let Some(unit) = target_of(text) else { return Ok(()) };
        if let Some(public @ OwnedPath::Public { .. }) = self.parse(path)
            && let Some(OwnedPath::Flat(flat)) = self.layout.parse_link(&public, text)
            && let OwnedPath::Public { platform, name } = public
        {
            if self.depth == Depth::All && !self.seen.units.contains(&Unit::Flat(flat)) {
                let what = format!(
                    "the link leads to {text}, which is gone; convert the image again, remove it, or let check --fix take the link away"
                );
                return Err(unmarked(path)(Failure::Content(what)));
            }
            self.seen.links.insert(Owner { platform, name }, flat);
        }
        self.seen.roots.insert(unit);
        Ok(())
    }

    /// Reads the records that were found.
    fn finish(self, target: &Target, usage: &Usage) -> Result<Seen, Failure> {
        let Marker { view, mut seen, images, versions, condemned, .. } = self;
        let store = &*target.store;
        let reader = Reader { store, records: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        seen.images = read_all(images, |found| {
            let incomplete = || {
                let what = "manifest.json is missing beside the other records; convert the image again, or remove it";
                unmarked(&found.at)(Failure::Content(what.into()))
            };
            let record = reader.read(found.manifest.as_ref().ok_or_else(incomplete)?, ManifestRecord::parse)?;
            let status = found.status.as_ref().map(|s| reader.read(s, StatusRecord::parse)).transpose()?;
            let layers = record.distributable().collect();
            let parts = Parts {
                digest: status.as_ref().map(|s| s.digest),
                index: status.as_ref().and_then(|s| s.index),
                config: record.config.digest,
                flat: status.is_none_or(|s| s.flat),
                layers,
            };
            Ok(Image { at: found.at, owner: found.owner, parts, is_pinned: found.is_pinned })
        })?;
        seen.versions = read_all(versions, |found| found.read(&reader))?;
        let read = read_all(condemned, |(unit, found)| {
            let record = reader.read(&found, Condemned::parse)?;
            Ok((unit, (since(&found.path, &record.since)?, record)))
        })?;
        seen.condemned = read.into_iter().collect();
        seen.catalogs = view.catalogs.get();
        (seen.records, seen.record_bytes) = (reader.records.into_inner(), reader.bytes.into_inner());
        for layer in seen.images.iter().flat_map(|i| &i.parts.layers) {
            seen.missing_layers += u64::from(!seen.units.contains(&Unit::Layer(*layer)));
        }
        usage.mark(&mut seen);
        Ok(seen)
    }
}

/// What a link leads to, however it is spelled: relative, absolute, into the content of a layer.
fn target_of(text: &str) -> Option<Unit> {
    let mut parts = text.split('/').skip_while(|p| *p != ".flat" && *p != ".layers");
    let (kind, bucket, hex) = (parts.next()?, parts.next()?, parts.next()?);
    let digest = Digest::parse_hex(hex).filter(|_| hex.starts_with(bucket))?;
    Some(match kind {
        ".flat" => Unit::Flat(ImageId::from_digest(digest)),
        _ => Unit::Layer(LayerDigest::from_digest(digest)),
    })
}

fn since(path: &RepoPath, text: &str) -> Result<i64, Failure> {
    unix_seconds(text).ok_or_else(|| unmarked(path)(Failure::Content(format!("\"{text}\" is no time"))))
}

struct Reader<'a> {
    store: &'a dyn Store,
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Reader<'_> {
    fn read<T, E: Into<Failure>>(&self, found: &Found, parse: impl Fn(&[u8]) -> Result<T, E>) -> Result<T, Failure> {
        let read = || {
            let hash = found.entry.content.ok_or_else(|| Failure::Content("it is no plain file".into()))?;
            let mut bytes = Vec::new();
            fetch(self.store, hash.object(ObjectKind::File), found.entry.compression(), RECORD_LIMIT, &mut bytes)?;
            self.records.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            parse(&bytes).map_err(Into::into)
        };
        read().map_err(unmarked(&found.path))
    }
}

/// Applies `work` to all, many at a time; the results in the same order, or the first failure in that order.
pub(super) fn read_all<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R, Failure> + Sync,
) -> Result<Vec<R>, Failure> {
    let count = items.len();
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|i| Mutex::new(Some(i))).collect();
    let results: Vec<Mutex<Option<Result<R, Failure>>>> = (0..count).map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(count) {
            scope.spawn(|| {
                while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < count) {
                    let item = items[i].lock().take().expect("each is taken once");
                    *results[i].lock() = Some(work(item));
                }
            });
        }
    });
    results.into_iter().map(|r| r.into_inner().expect("all were worked on")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_units_however_they_are_spelled() {
        let hex = "ab".repeat(32);
        let (flat, layer) = (ImageId::parse_hex(&hex).unwrap(), LayerDigest::parse_hex(&hex).unwrap());
        let cases = [
            (format!("../../.flat/ab/{hex}"), Some(Unit::Flat(flat))),
            (format!("/cvmfs/x.org/.flat/ab/{hex}"), Some(Unit::Flat(flat))),
            (format!(".flat/ab/{hex}/etc"), Some(Unit::Flat(flat))),
            (format!("../../../.layers/ab/{hex}/layerfs"), Some(Unit::Layer(layer))),
            (format!("../../.flat/cd/{hex}"), None),
            (format!("x.flat/ab/{hex}"), None),
            (".flat/ab".to_owned(), None),
            ("amd64".to_owned(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(target_of(&text), expected, "{text}");
        }
    }
}
