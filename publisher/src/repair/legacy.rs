//! Layers of the existing tool with their deletions in the form that overlayfs reads, made from their rows.
//!
//! The tool kept `.wh.NAME` and `.wh..wh..opq` as ordinary files. Here they become 0:0 devices and attributes of their
//! directory, everything else stays as it is: owners and attributes were lost when the layer was published, and only the
//! blob has them.

use std::collections::BTreeMap;
use std::rc::Rc;

use cvmfs::catalog::{NestedRef, Row};
use cvmfs::entry::{Chunk, Entry, Flags};
use cvmfs::hash::ObjectKind;
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::put_content;
use cvmfs::subtree::{Graft, MARKER, SubtreeWriter};
use cvmfs::traversal::{Loaded, Loader};
use image::digest::LayerDigest;
use image::layout::{FormatRecord, LayersJson, Layout, OwnedPath};
use image::tree::{Node, NodeKind};
use time::UtcDateTime;

use crate::failure::Failure;
use crate::layer::{LAYER_BUDGET, repo_path, subtree_options};
use crate::rows::{FileContent, to_entry, to_node};
use crate::target::{Target, directory_meta, file_meta};

/// What the names of deletions begin with, and the name that makes a directory opaque.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const LEFTOVER: &[u8] = b".wh..wh.";
/// Directories within each other; no file system that a layer comes from has more.
const DEEPEST: usize = 512;

/// Number of files in a layer that stand for deletions.
pub(super) fn literal_whiteouts(loader: Loader<'_>, content: &NestedRef) -> Result<u64, Failure> {
    let catalog = loader.load(content)?;
    let mut count = 0;
    catalog.scan::<Failure>(|row| {
        count += u64::from(row.entry.name.starts_with(WHITEOUT));
        Ok(true)
    })?;
    for nested in catalog.nested_all()? {
        if nested.path == content.path || !content.path.contains(&nested.path) {
            let (outer, inner) = (&content.path, &nested.path);
            return Err(Failure::Content(format!("nested catalog {inner} is not below {outer}; run check")));
        }
        count += literal_whiteouts(loader, &nested)?;
    }
    Ok(count)
}

/// The corrected content of a layer, to be hung in where it was.
pub(super) fn in_place(target: &Target, content: &NestedRef, now: UtcDateTime) -> Result<Graft, Failure> {
    let loader = Loader::new(&*target.store, target.scratch());
    let catalog = Rc::new(loader.load(content)?);
    let options = subtree_options(target, target.repository()?.algorithm(), LAYER_BUDGET, now)?;
    let mut writer = None;
    let store = target.store.clone();
    Walk { loader }.directory(catalog, &content.path, None, &mut |path, entry, chunks| {
        match &mut writer {
            None => writer = Some(SubtreeWriter::new(store.clone(), options.clone(), &content.path, entry)?),
            Some(writer) => writer.add(path, entry, 0, chunks)?,
        }
        Ok(())
    })?;
    Ok(writer.expect("the first row is the root").finish()?)
}

/// The corrected layer with its records, to be hung in beside the one that stays.
pub(super) fn beside(
    target: &Target,
    layer: LayerDigest,
    content: &NestedRef,
    records: (&FormatRecord, Option<&LayersJson>),
    now: UtcDateTime,
) -> Result<Graft, Failure> {
    let loader = Loader::new(&*target.store, target.scratch());
    let catalog = Rc::new(loader.load(content)?);
    let algorithm = target.repository()?.algorithm();
    let path = repo_path(&Layout::new(), &OwnedPath::LayerOverlay(layer));
    let options = subtree_options(target, algorithm, LAYER_BUDGET, now)?;
    let root = Entry::directory("", directory_meta(now));
    let mut writer = SubtreeWriter::new(target.store.clone(), options, &path, root.clone())?;
    let mut encoder = Encoder::new(algorithm, target.codec);
    let mut file = |bytes: &[u8]| {
        let (hash, _) = put_content(&*target.store, &mut encoder, ObjectKind::File, bytes)?;
        Ok::<_, Failure>(Entry::file("", file_meta(now), bytes.len() as u64, hash, target.codec.compression()))
    };
    writer.add(b".metadata", root, 0, &[])?;
    writer.add(b".metadata/format.json", file(&records.0.to_bytes())?, 0, &[])?;
    if let Some(record) = records.1 {
        writer.add(b".metadata/layers.json", file(&record.to_bytes())?, 0, &[])?;
    }
    let mut relative = Vec::new();
    Walk { loader }.directory(catalog, &content.path, None, &mut |path, entry, chunks| {
        relative.clear();
        relative.extend_from_slice(b"layerfs");
        if !path.is_empty() {
            relative.push(b'/');
            relative.extend_from_slice(path);
        }
        Ok(writer.add(&relative, entry, 0, chunks)?)
    })?;
    Ok(writer.finish()?)
}

/// Takes the rows of the corrected content, in tree order, with paths relative to it.
type Emit<'a> = dyn FnMut(&[u8], Entry, &[Chunk]) -> Result<(), Failure> + 'a;

struct Walk<'a> {
    loader: Loader<'a>,
}

impl Walk<'_> {
    /// A directory with all below it. `below` is its own row, with the path relative to the content.
    fn directory(
        &self,
        catalog: Rc<Loaded>,
        path: &RepoPath,
        own: Option<(&[u8], Node<FileContent>)>,
        emit: &mut Emit<'_>,
    ) -> Result<(), Failure> {
        let (relative, mut node) = match own {
            Some((relative, node)) => (relative, node),
            None => {
                let root = catalog
                    .lookup_path(path)?
                    .ok_or_else(|| Failure::Content(format!("the catalog of {path} has no root entry; run check")))?;
                (&b""[..], to_node(root.entry, Vec::new()))
            }
        };
        if path.components().count() > DEEPEST {
            return Err(Failure::Content(format!("directories are nested too deep below {path}")));
        }
        let is_top = path == catalog.mountpoint();
        let mut children: BTreeMap<Vec<u8>, Child> = BTreeMap::new();
        let mut deleted = Vec::new();
        let mut opaque = false;
        for row in catalog.list(catalog.inner_path(path).key())? {
            let name = &row.entry.name;
            if is_top && name == MARKER {
                continue;
            }
            if let Some(rest) = name.strip_prefix(WHITEOUT) {
                match () {
                    () if name == OPAQUE => opaque = true,
                    () if name.starts_with(LEFTOVER) || rest.is_empty() => {}
                    () => deleted.push(rest.to_vec()),
                }
                continue;
            }
            children.insert(row.entry.name.clone(), Child::Row(Box::new(row)));
        }
        for name in deleted {
            // What the layer itself has under that name is not what it deletes, but it hides it.
            match children.remove(&name) {
                Some(Child::Row(row)) => drop(children.insert(name, Child::Replacing(row))),
                _ => drop(children.insert(name, Child::Whiteout)),
            }
        }
        if let NodeKind::Directory { opaque: flag, .. } = &mut node.kind {
            *flag |= opaque;
        }
        let (entry, _) = to_entry(path.name(), Node { link_group: 0, ..node });
        emit(relative, plain(entry), &[])?;
        for (name, child) in children {
            let below = if relative.is_empty() { name.clone() } else { [relative, b"/", &name].concat() };
            let (row, replaces) = match child {
                Child::Row(row) => (row, false),
                Child::Replacing(row) => (row, true),
                Child::Whiteout => {
                    let (entry, _) = to_entry(&name, Node::new(NodeKind::Whiteout, 0));
                    emit(&below, entry, &[])?;
                    continue;
                }
            };
            self.child(&catalog, &path.join(&name), &below, *row, replaces, emit)?;
        }
        Ok(())
    }

    fn child(
        &self,
        catalog: &Rc<Loaded>,
        path: &RepoPath,
        relative: &[u8],
        row: Row,
        replaces: bool,
        emit: &mut Emit<'_>,
    ) -> Result<(), Failure> {
        let Row { key, entry, .. } = row;
        if !entry.is_directory() {
            let chunks = match entry.flags.is_chunked() {
                true => catalog.chunks(key, entry.algorithm())?,
                false => Vec::new(),
            };
            return emit(relative, plain(entry), &chunks);
        }
        let is_nested = entry.flags.is_nested_mountpoint();
        let mut node = to_node(entry, Vec::new());
        if let NodeKind::Directory { opaque, .. } = &mut node.kind {
            *opaque |= replaces;
        }
        let catalog = match is_nested {
            true => {
                let unregistered = || Failure::Content(format!("nested catalog {path} is not registered; run check"));
                Rc::new(self.loader.load(&catalog.nested(path)?.ok_or_else(unregistered)?)?)
            }
            false => catalog.clone(),
        };
        self.directory(catalog, path, Some((relative, node)), emit)
    }
}

/// Something in a directory of the corrected content.
enum Child {
    Row(Box<Row>),
    /// Stands where the layer deletes something of the same name.
    Replacing(Box<Row>),
    Whiteout,
}

/// An entry without what ties it to its old catalog.
fn plain(mut entry: Entry) -> Entry {
    entry.flags = entry.flags.without(Flags::NESTED_MOUNTPOINT | Flags::NESTED_ROOT);
    entry.link_group = 0;
    entry.links = if entry.is_directory() { 2 } else { 1 };
    entry
}
