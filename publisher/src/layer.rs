//! One layer: from the bytes of its blob to a subtree that waits to be hung into the repository.
//!
//! One pass does it all: blob digest verified, unpacked, diff ID verified, members read, content stored, rows kept.
//! Nothing is visible before; what was stored stays for the next run. A layer that depends on those below it (hard
//! links into them, directories it does not list) is settled when those are known.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use cvmfs::entry::{Entry, Flags};
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::{Store, fetch, put_content};
use cvmfs::subtree::{Graft, SubtreeOptions, SubtreeWriter};
use cvmfs::traversal::{Loaded, Loader};
use image::digest::{ChainId, LayerDigest};
use image::layer::{Layer as Tree, LayerBuilder, LayerError, StoreError};
use image::layout::{FormatRecord, LayersJson, Layout, OwnedPath, timestamp};
use image::manifest::Layer;
use image::rootfs::{MergedLookup, TreeLookup};
use image::tar::{TarError, TarReader};
use image::tree::{Node, NodeKind, TreePath};
use serde::{Deserialize, Serialize};
use time::UtcDateTime;

use crate::cli::ArchiveLimits;
use crate::content::{Collector, Contents, Pool};
use crate::decompress::Unpacked;
use crate::failure::Failure;
use crate::layer_rows::{LayerIndex, LayerRows};
use crate::rows::{FileContent, to_entry};
use crate::staging::{DatabaseStaging, Pending};
use crate::target::{Target, directory_meta, file_meta};

/// Rows from which a directory of a layer gets a catalog of its own. Layers are mounted as a whole and looked up in,
/// not listed, so they are split later than flats.
pub(crate) const LAYER_BUDGET: u64 = 50_000;
/// Version of the files in `prepared/`.
const PREPARED_SCHEMA: u32 = 1;
const FORMAT_LIMIT: u64 = 64 << 20;

/// A layer read and stored, its rows not yet in a catalog.
#[derive(Debug)]
pub struct StagedLayer {
    layer: Layer,
    tree: Tree<DatabaseStaging>,
    contents: Contents,
    size: u64,
    place: LayerPlace,
}

/// Where a layer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerPlace {
    /// To its own directory.
    #[default]
    Own,
    /// Beside the content that the existing tool has put there.
    Beside,
}

impl LayerPlace {
    /// The directory of a layer at this place.
    pub fn path(self, layer: LayerDigest) -> OwnedPath {
        match self {
            LayerPlace::Own => OwnedPath::Layer(layer),
            LayerPlace::Beside => OwnedPath::LayerOverlay(layer),
        }
    }
}

/// A layer whose catalog is stored.
#[derive(Debug, Clone)]
pub struct PreparedLayer {
    /// The layer.
    pub digest: LayerDigest,
    /// Where it goes.
    pub place: LayerPlace,
    /// How it goes into the repository.
    pub graft: Box<Graft>,
}

/// What reading a layer tells while it goes on.
pub trait LayerProgress {
    /// Packed bytes read so far.
    fn read(&self, bytes: u64);
}

/// Reads a layer's blob and stores the content of its files.
pub fn read_layer(
    layer: &Layer,
    blob: Box<dyn std::io::Read + Send>,
    pool: &Pool,
    collector: &Arc<Collector>,
    limits: &ArchiveLimits,
    progress: &dyn LayerProgress,
) -> Result<StagedLayer, Failure> {
    let digest = layer.descriptor.digest;
    let read = || {
        let unpacked = Unpacked::new(blob, limits)?;
        let packed = unpacked.packed_counter();
        let mut tar = TarReader::with_limits(unpacked, limits.of_tar());
        let staging = DatabaseStaging::new().map_err(|e| Failure::Content(format!("rows of the layer: {e}")))?;
        let mut builder = LayerBuilder::<Pending, _>::new(staging);
        let mut told = 0;
        while let Some(entry) = tar.next_entry().map_err(tar_failure)? {
            let content = match (&entry.kind, LayerBuilder::<Pending, DatabaseStaging>::wants_content(&entry)) {
                (image::tar::TarKind::Regular { size }, true) => {
                    Some(Pending::New(pool.store_file(collector, &mut tar.content(), *size)?))
                }
                _ => None,
            };
            builder.add(entry, content).map_err(layer_failure)?;
            if packed.get() - told >= 1 << 20 {
                told = packed.get();
                progress.read(told);
            }
        }
        let tree = builder.finish().map_err(layer_failure)?;
        let (found, size) = tar.into_inner().finish()?;
        progress.read(packed.get());
        if found != layer.diff_id {
            return Err(Failure::DiffId { expected: layer.diff_id, found });
        }
        let contents = collector.finish(pool.algorithm())?;
        Ok(StagedLayer { layer: layer.clone(), tree, contents, size, place: LayerPlace::Own })
    };
    read().map_err(|e: Failure| e.of_layer(digest))
}

/// As [`Failure::tar`]; a limit is named with the option that raises it.
fn tar_failure(error: TarError) -> Failure {
    let TarError::Limit { what, limit } = error else { return Failure::tar(error) };
    let option = match what {
        "entries" => "--max-entries",
        "bytes in an extended header" => "--max-pax-header",
        "bytes" => "--max-layer-size",
        _ => return Failure::tar(error),
    };
    Failure::Limit { what: format!("the archive has more than {limit} {what}"), option }
}

fn layer_failure(error: LayerError) -> Failure {
    Failure::Content(crate::error::one_line(&error))
}

impl StagedLayer {
    /// Whether its rows depend on the layers below.
    pub fn depends_on_lower(&self) -> bool {
        !self.tree.pending_links.is_empty() || self.tree.implicit().next().is_some()
    }

    /// Digest of the blob.
    pub fn digest(&self) -> LayerDigest {
        self.layer.descriptor.digest
    }

    /// The same, to be put there.
    #[must_use]
    pub fn at(self, place: LayerPlace) -> StagedLayer {
        StagedLayer { place, ..self }
    }

    /// Settles what depends on the layers below and writes the catalog; keeps it for the next run.
    pub fn prepare(self, target: &Target, pool: &Pool, base: &Base<'_>) -> Result<PreparedLayer, Failure> {
        let prepared = self.prepare_variant(target, pool, base)?;
        prepared.remember(target).map_err(|e| e.of_layer(prepared.digest))?;
        Ok(prepared)
    }

    /// The same for the flat of one image only, whose layers below are not those that the published layer stands on.
    pub fn prepare_variant(mut self, target: &Target, pool: &Pool, base: &Base<'_>) -> Result<PreparedLayer, Failure> {
        let digest = self.digest();
        self.prepare_inner(target, pool, base).map_err(|e| e.of_layer(digest))
    }

    fn prepare_inner(&mut self, target: &Target, pool: &Pool, base: &Base<'_>) -> Result<PreparedLayer, Failure> {
        let takes_from_below = !self.tree.pending_links.is_empty();
        if self.depends_on_lower() {
            self.tree.settle(&merged(&base.layers)).map_err(layer_failure)?;
        }
        let settled_on = (takes_from_below || self.tree.counts.moved > 0).then_some(base.chain).flatten();
        let now = UtcDateTime::now();
        let layout = Layout::new();
        let digest = self.digest();
        let path = repo_path(&layout, &self.place.path(digest));
        let algorithm = pool.algorithm();
        let mut encoder = Encoder::new(algorithm, target.codec);
        let rows = self.tree.staging.count().map_err(|e| Failure::Content(format!("rows of the layer: {e}")))?;
        let format = self.tree.format_record(self.layer.diff_id, self.size, rows);
        let format = FormatRecord { settled_on, ..format }.to_bytes();
        let record = LayersJson {
            created: timestamp(now.unix_timestamp()),
            layer: digest,
            compressed_size: Some(self.layer.descriptor.size),
            diff_id: self.layer.diff_id,
            size: self.size,
        }
        .to_bytes();
        let mut file = |bytes: &[u8]| {
            let (hash, _) = put_content(&*target.store, &mut encoder, ObjectKind::File, bytes)?;
            Ok::<_, Failure>(Entry::file("", file_meta(now), bytes.len() as u64, hash, pool.compression()))
        };
        let (format, record) = (file(&format)?, file(&record)?);
        let options = subtree_options(target, algorithm, LAYER_BUDGET, now)?;
        let root = Entry::directory("", directory_meta(now));
        let mut writer = SubtreeWriter::new(target.store.clone(), options, &path, root.clone())?;
        writer.add(b".metadata", root, 0, &[])?;
        writer.add(b".metadata/format.json", format, 0, &[])?;
        writer.add(b".metadata/layers.json", record, 0, &[])?;
        let mut relative = Vec::new();
        let contents = &self.contents;
        self.tree.staging.for_each(|path, node| {
            relative.clear();
            relative.extend_from_slice(b"layerfs");
            if !path.is_root() {
                relative.push(b'/');
                relative.extend_from_slice(path.as_bytes());
            }
            let group = node.link_group;
            let node = node.map_content(|content| content.resolve(contents, pool.compression()));
            let (entry, chunks) = to_entry(path.name(), node);
            writer.add(&relative, entry, group, &chunks).map_err(|e| Visit(e.into()))
        })?;
        let graft = Box::new(writer.finish()?);
        Ok(PreparedLayer { digest, place: self.place, graft })
    }
}

/// Carries failures through the iteration over rows.
struct Visit(Failure);

impl From<StoreError> for Visit {
    fn from(error: StoreError) -> Visit {
        Visit(Failure::Content(format!("rows of the layer: {error}")))
    }
}

impl From<Visit> for Failure {
    fn from(visit: Visit) -> Failure {
        visit.0
    }
}

/// The layers that another one stands on.
#[derive(Debug, Default)]
pub struct Base<'a> {
    /// Bottom first, each once.
    pub layers: Vec<Lower<'a>>,
    /// What identifies them; none below the lowest layer.
    pub chain: Option<ChainId>,
}

impl Base<'_> {
    /// Whether a layer that is stored already is on this base the tree that its blob makes there. It is not when it
    /// took something from another base, or has directories of its own where this one has links.
    pub fn carries(&self, format: &FormatRecord) -> Result<bool, Failure> {
        if format.settled_on.is_some() {
            return Ok(format.settled_on == self.chain);
        }
        let below = merged(&self.layers);
        for directory in format.implicit.iter().filter(|d| !d.is_empty()) {
            let path = TreePath::new(directory.as_bytes()).map_err(|e| Failure::Content(e.to_string()))?;
            let found = below.get(&path).map_err(|e| Failure::Content(format!("the layers below: {e}")))?;
            if found.is_some_and(|node| matches!(node.kind, NodeKind::Symlink { .. })) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A layer that others stand on, to be asked for single rows; its catalog is fetched at the first question.
#[derive(Debug)]
pub struct Lower<'a> {
    loader: Loader<'a>,
    reference: NestedRef,
    index: OnceCell<LayerIndex<'a>>,
}

impl<'a> Lower<'a> {
    /// The layer whose catalog this is.
    pub fn new(loader: Loader<'a>, reference: NestedRef) -> Lower<'a> {
        Lower { loader, reference, index: OnceCell::new() }
    }

    fn get(&self, path: &TreePath) -> Result<Option<Node<FileContent>>, Failure> {
        let index = match self.index.get() {
            Some(index) => index,
            None => {
                let opened = LayerIndex::open(self.loader, &self.reference)?;
                self.index.get_or_init(|| opened)
            }
        };
        index.get(path)
    }
}

impl TreeLookup<Pending> for Lower<'_> {
    fn get(&self, path: &TreePath) -> Result<Option<Node<Pending>>, StoreError> {
        Ok(Lower::get(self, path)?.map(|node| node.map_content(Pending::Known)))
    }
}

/// Layers, bottom first, as one tree.
pub fn merged<'a, 'b: 'a>(layers: &'a [Lower<'b>]) -> MergedLookup<'a, Pending> {
    MergedLookup::new(layers.iter().map(|l| Box::new(l) as Box<dyn TreeLookup<Pending>>).collect())
}

/// How subtrees of images are written.
pub fn subtree_options(
    target: &Target,
    algorithm: cvmfs::hash::Algorithm,
    budget: u64,
    now: UtcDateTime,
) -> Result<SubtreeOptions, Failure> {
    Ok(SubtreeOptions {
        algorithm,
        codec: target.codec,
        budget,
        last_modified: now.unix_timestamp().max(0) as u64,
        scratch: target.scratch().to_owned(),
        marker: target.marker(algorithm, now)?,
        workers: std::thread::available_parallelism().map_or(2, usize::from),
    })
}

/// A path of ours as a path of the repository.
pub fn repo_path(layout: &Layout, path: &OwnedPath) -> RepoPath {
    RepoPath::ROOT.join_path(layout.print(path)).expect("the layout prints normal paths")
}

/// What is kept about a prepared layer until it is published.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    schema: u32,
    fqrn: String,
    #[serde(default)]
    place: LayerPlace,
    catalog: String,
    size: u64,
    catalogs: u64,
    rows: u64,
}

impl PreparedLayer {
    fn file(target: &Target, digest: LayerDigest) -> PathBuf {
        target.paths.state.join("prepared").join(format!("{}.json", digest.hex()))
    }

    /// Keeps it for the next run, should this one not come to publish it.
    fn remember(&self, target: &Target) -> Result<(), Failure> {
        let path = PreparedLayer::file(target, self.digest);
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(Failure::io("create directory", directory))?;
        let remembered = Remembered {
            schema: PREPARED_SCHEMA,
            fqrn: target.fqrn.clone(),
            place: self.place,
            catalog: self.graft.catalog.to_string(),
            size: self.graft.size,
            catalogs: self.graft.catalogs,
            rows: self.graft.rows,
        };
        let bytes = serde_json::to_vec(&remembered).expect("plain fields");
        let mut file =
            tempfile::NamedTempFile::new_in(directory).map_err(Failure::io("create a file in", directory))?;
        file.write_all(&bytes).map_err(Failure::io("write", &path))?;
        file.persist(&path).map_err(|e| Failure::io("write", &path)(e.error))?;
        Ok(())
    }

    /// A layer that an earlier run prepared. Every object it needs is proven to be there; anything doubtful is none.
    pub fn recall(target: &Target, digest: LayerDigest, place: LayerPlace) -> Option<PreparedLayer> {
        let bytes = fs::read(PreparedLayer::file(target, digest)).ok()?;
        let known: Remembered = serde_json::from_slice(&bytes).ok()?;
        if known.schema != PREPARED_SCHEMA || known.fqrn != target.fqrn || known.place != place {
            return None;
        }
        let path = repo_path(&Layout::new(), &place.path(digest));
        let reference = NestedRef { path, hash: known.catalog.parse().ok()?, size: known.size };
        let loader = Loader::new(&*target.store, target.scratch());
        let mut graft = Box::new(graft_of(loader, &reference).ok()?);
        (graft.catalogs, graft.rows) = (known.catalogs, known.rows);
        objects_are_present(loader, &*target.store, &reference).ok()?.then_some(PreparedLayer { digest, place, graft })
    }

    /// It is published; nothing needs to be kept.
    pub fn forget(target: &Target, digest: LayerDigest) {
        // A leftover is found out of date and harmless.
        let _ = fs::remove_file(PreparedLayer::file(target, digest));
    }

    /// Its catalog.
    pub fn reference(&self) -> NestedRef {
        NestedRef { path: self.graft.path.clone(), hash: self.graft.catalog, size: self.graft.size }
    }
}

/// The graft of a stored catalog.
pub fn graft_of(loader: Loader<'_>, reference: &NestedRef) -> Result<Graft, Failure> {
    let catalog = loader.load(reference)?;
    let root = catalog
        .lookup_path(&reference.path)?
        .ok_or_else(|| Failure::Content(format!("the catalog of {} has no root entry", reference.path)))?;
    let entry = Entry { flags: root.entry.flags.without(Flags::NESTED_ROOT), ..root.entry };
    let counters = catalog.counters()?;
    Ok(Graft {
        path: reference.path.clone(),
        entry,
        catalog: reference.hash,
        size: reference.size,
        counters,
        catalogs: 1,
        rows: counters.total().entries().max(0) as u64,
    })
}

/// Whether all objects that the catalogs name are in the store.
pub fn objects_are_present(loader: Loader<'_>, store: &dyn Store, reference: &NestedRef) -> Result<bool, Failure> {
    let mut seen: HashSet<ContentHash> = HashSet::new();
    let catalog = loader.load(reference)?;
    let mut present = true;
    let mut after = 0;
    loop {
        let rows = catalog.rows_after(after, 4096)?;
        let Some(last) = rows.last() else { break };
        after = last.rowid;
        seen.clear();
        for row in rows {
            if let Some(hash) = row.entry.content.filter(|h| seen.insert(*h)) {
                present &= store.exists(hash.object(ObjectKind::File))?;
            }
            if row.entry.flags.is_chunked() {
                for chunk in catalog.chunks(row.key, row.entry.algorithm())? {
                    present &= store.exists(chunk.hash.object(ObjectKind::Chunk))?;
                }
            }
        }
        if !present {
            return Ok(false);
        }
    }
    for nested in catalog.nested_all()? {
        if !store.exists(nested.hash.object(ObjectKind::Catalog))? || !objects_are_present(loader, store, &nested)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The record of how a stored layer was written.
pub fn format_record(loader: Loader<'_>, reference: &NestedRef) -> Result<Option<FormatRecord>, Failure> {
    format_of(loader.store(), &loader.load(reference)?)
}

fn format_of(store: &dyn Store, layer: &Loaded) -> Result<Option<FormatRecord>, Failure> {
    let path = layer.mountpoint().join(".metadata").join("format.json");
    let Some(row) = layer.lookup_path(&path)? else { return Ok(None) };
    let Some(hash) = row.entry.content else { return Ok(None) };
    let mut bytes = Vec::new();
    fetch(store, hash.object(ObjectKind::File), row.entry.compression(), FORMAT_LIMIT, &mut bytes)?;
    Ok(Some(FormatRecord::parse(&bytes)?))
}

/// The rows of a published or prepared layer as the merge wants them: directories that the layer did not list are
/// marked, so that they take the metadata of what is below.
pub fn merge_rows<'a>(
    loader: Loader<'a>,
    reference: &NestedRef,
) -> Result<impl Iterator<Item = Result<(TreePath, Node<FileContent>), Failure>> + use<'a>, Failure> {
    let rows = LayerRows::open(loader, reference)?;
    let implicit: HashSet<Vec<u8>> = format_of(loader.store(), rows.layer())?
        .map(|record| record.implicit.into_iter().map(String::into_bytes).collect())
        .unwrap_or_default();
    Ok(rows.map(move |row| {
        let (path, mut node) = row?;
        if let NodeKind::Directory { implicit: flag, .. } = &mut node.kind {
            *flag = !implicit.is_empty() && implicit.contains(path.as_bytes());
        }
        Ok((path, node))
    }))
}
