//! The flat root of an image: the rows of its layers merged, the files for Apptainer on top.
//!
//! No content is read, whatever the size of the image: rows name objects, and the objects are there. Reading and
//! merging, encoding, and filling catalogs are three steps that run at the same time.

mod cover;

use std::collections::{BTreeMap, btree_map};
use std::sync::mpsc::{SyncSender, sync_channel};

use cvmfs::catalog::NestedRef;
use cvmfs::entry::{Chunk, Entry, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::put_content;
use cvmfs::subtree::{Graft, SubtreeOptions, SubtreeWriter};
use cvmfs::traversal::Loader;
use image::apptainer;
use image::digest::ImageId;
use image::layout::{Layout, OwnedPath};
use image::manifest::Config;
use image::rootfs::{Merge, MergeError, as_layer};
use image::tree::{Node, NodeKind, TreePath};
use time::UtcDateTime;

pub use self::cover::CoverRows;
use self::cover::WithAttributes;
use crate::cli::FlatPermissions;
use crate::content::Pool;
use crate::error::one_line;
use crate::failure::Failure;
use crate::layer::{Lower, merge_rows, merged, repo_path, subtree_options};
use crate::rows::{FileContent, to_entry};
use crate::target::Target;

/// Rows from which a directory of a flat gets a catalog of its own: what a start does not touch, it does not fetch.
const FLAT_BUDGET: u64 = 20_000;
/// Rows that go from one step to the next together, and how many such batches may wait.
const BATCH: usize = 1024;
const WAITING: usize = 8;

/// A flat that waits to be hung into the repository.
#[derive(Debug)]
pub struct PreparedFlat {
    /// How it goes into the repository.
    pub graft: Graft,
    /// Files and directories that not everybody can read.
    pub unreadable: u64,
    /// The first of them.
    pub first_unreadable: Option<TreePath>,
    /// Rows that make the image of it, in tree order; none where it differs from the image in more than can be hidden.
    pub cover: Option<CoverRows>,
}

impl PreparedFlat {
    /// Its catalog.
    pub fn reference(&self) -> NestedRef {
        NestedRef { path: self.graft.path.clone(), hash: self.graft.catalog, size: self.graft.size }
    }
}

type Row = (TreePath, Entry, u64, Vec<Chunk>);
type LayerRow = Result<(TreePath, Node<FileContent>), Failure>;

/// Merges the layers (bottom first) of an image into its flat.
pub fn flatten(
    target: &Target,
    pool: &Pool,
    image: ImageId,
    config: &Config,
    layers: &[NestedRef],
    permissions: FlatPermissions,
) -> Result<PreparedFlat, Failure> {
    let now = UtcDateTime::now();
    let loader = Loader::new(&*target.store, target.scratch());
    let (additions, cover) = additions(target, pool, loader, config, layers)?;
    let mut writing = Writing {
        target,
        path: repo_path(&Layout::new(), &OwnedPath::Flat(image)),
        options: subtree_options(target, pool.algorithm(), FLAT_BUDGET, now)?,
        permissions,
        writer: None,
        unreadable: 0,
        first_unreadable: None,
        attributes: WithAttributes::default(),
    };
    std::thread::scope(|scope| {
        let (send, batches) = sync_channel::<Vec<Row>>(WAITING);
        let reader = scope.spawn(move || merge(loader, layers, additions, &send));
        let written = batches.into_iter().flatten().try_for_each(|row| writing.take(row));
        let read = reader.join().map_err(|_| Failure::Elsewhere("the reader of the layers panicked".into()))?;
        read.and(written)
    })?;
    let Writing { writer, unreadable, first_unreadable, attributes, .. } = writing;
    let writer = writer.expect("the merge always gives a root");
    // Modes of files can't be covered.
    let mut cover = cover.filter(|_| permissions == FlatPermissions::Keep);
    if let Some(cover) = &mut cover {
        attributes.complete(cover);
    }
    Ok(PreparedFlat { graft: writer.finish()?, unreadable, first_unreadable, cover })
}

/// Sends the rows of the flat, in tree order. A receiver that went away has failed and says so itself.
fn merge(
    loader: Loader<'_>,
    layers: &[NestedRef],
    additions: BTreeMap<TreePath, Node<FileContent>>,
    send: &SyncSender<Vec<Row>>,
) -> Result<(), Failure> {
    let mut sources = Vec::with_capacity(layers.len() + 1);
    for layer in layers {
        sources.push(Source::Layer(Box::new(merge_rows(loader, layer)?)));
    }
    sources.push(Source::Additions(additions.into_iter()));
    let mut batch = Vec::with_capacity(BATCH);
    for row in Merge::new(sources) {
        let (path, node) = row.map_err(merge_failure)?;
        let group = node.link_group;
        let (entry, chunks) = to_entry(path.name(), node);
        batch.push((path, entry, group, chunks));
        if batch.len() == BATCH && send.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_err() {
            return Ok(());
        }
    }
    // As above.
    let _ = send.send(batch);
    Ok(())
}

/// The writing end of the merge.
struct Writing<'a> {
    target: &'a Target,
    path: RepoPath,
    options: SubtreeOptions,
    permissions: FlatPermissions,
    writer: Option<SubtreeWriter>,
    unreadable: u64,
    first_unreadable: Option<TreePath>,
    attributes: WithAttributes,
}

impl Writing<'_> {
    fn take(&mut self, (path, mut entry, group, chunks): Row) -> Result<(), Failure> {
        self.attributes.see(&path, &entry, group, &chunks);
        let for_all = match entry.file_type() {
            FileType::Directory => 0o005,
            FileType::Regular => 0o004,
            _ => 0,
        };
        if entry.mode & for_all != for_all {
            self.unreadable += 1;
            self.first_unreadable.get_or_insert_with(|| path.clone());
            if self.permissions == FlatPermissions::Readable {
                entry.mode |= for_all * 0o111;
            }
        }
        match &mut self.writer {
            Some(writer) => writer.add(path.as_bytes(), entry, group, &chunks)?,
            // The first row is the root.
            None => {
                let store = self.target.store.clone();
                self.writer = Some(SubtreeWriter::new(store, self.options.clone(), &self.path, entry)?);
            }
        }
        Ok(())
    }
}

/// Where rows of the merge come from.
enum Source<'a> {
    Layer(Box<dyn Iterator<Item = LayerRow> + 'a>),
    Additions(btree_map::IntoIter<TreePath, Node<FileContent>>),
}

impl Iterator for Source<'_> {
    type Item = LayerRow;

    fn next(&mut self) -> Option<LayerRow> {
        match self {
            Source::Layer(rows) => rows.next(),
            Source::Additions(rows) => rows.next().map(Ok),
        }
    }
}

fn merge_failure(error: MergeError<Failure>) -> Failure {
    match error {
        MergeError::Source { source, .. } => source,
        other => Failure::Content(one_line(&other)),
    }
}

type Additions = BTreeMap<TreePath, Node<FileContent>>;

/// The files for Apptainer as the topmost layer, their content stored; and what covers them.
fn additions(
    target: &Target,
    pool: &Pool,
    loader: Loader<'_>,
    config: &Config,
    layers: &[NestedRef],
) -> Result<(Additions, Option<CoverRows>), Failure> {
    let lower: Vec<Lower<'_>> = layers.iter().map(|l| Lower::new(loader, l.clone())).collect();
    let points = apptainer::MOUNT_POINTS.map(|name| TreePath::new(name).expect("plain names"));
    let unreadable = |e| Failure::Content(format!("the layers cannot be read: {e}"));
    let image = merged(&lower);
    let nodes = apptainer::additions(config, &image, &points).map_err(unreadable)?;
    let cover = cover::cover(nodes.iter().map(|(path, _)| path), &image).map_err(unreadable)?;
    let mut encoder = Encoder::new(pool.algorithm(), target.codec);
    let mut stored = Vec::with_capacity(nodes.len());
    for (path, node) in nodes {
        let content = match &node.kind {
            NodeKind::Regular { content, .. } => {
                let (hash, _) = put_content(&*target.store, &mut encoder, ObjectKind::File, content)?;
                Some(FileContent::Whole(hash, pool.compression()))
            }
            _ => None,
        };
        stored.push((path, node.map_content(|_| content.expect("set for every file"))));
    }
    Ok((as_layer(stored), cover))
}
