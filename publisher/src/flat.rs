//! The flat root of an image: the rows of its layers merged, the files for Apptainer on top.
//!
//! No content is read, whatever the size of the image: rows name objects, and the objects are there. Reading and
//! merging, encoding, and filling catalogs are three steps that run at the same time.

use std::sync::mpsc::sync_channel;

use cvmfs::catalog::NestedRef;
use cvmfs::entry::{Chunk, Entry};
use cvmfs::hash::ObjectKind;
use cvmfs::object::Encoder;
use cvmfs::store::put_content;
use cvmfs::subtree::{Graft, SubtreeWriter};
use cvmfs::traversal::Loader;
use image::digest::ImageId;
use image::layout::{Layout, OwnedPath};
use image::manifest::Config;
use image::rootfs::{Merge, MergeError, as_layer};
use image::tree::{Node, NodeKind, TreePath};
use time::UtcDateTime;

use crate::cli::FlatPermissions;
use crate::content::Pool;
use crate::error::one_line;
use crate::failure::Failure;
use crate::layer::{Lower, merge_rows, merged, repo_path, subtree_options};
use crate::rows::{FileContent, to_entry};
use crate::target::{Target, directory_meta};

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
}

type Row = (TreePath, Entry, u64, Vec<Chunk>);

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
    let additions = additions(target, pool, loader, config, layers, now)?;
    let path = repo_path(&Layout::new(), &OwnedPath::Flat(image));
    let options = subtree_options(target, pool.algorithm(), FLAT_BUDGET, now)?;
    let mut flat = None;
    let (mut unreadable, mut first_unreadable) = (0, None);
    std::thread::scope(|scope| {
        let (rows, merged) = sync_channel::<Vec<Row>>(WAITING);
        let reader = scope.spawn(move || -> Result<(), Failure> {
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
                if batch.len() == BATCH && rows.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_err() {
                    // The writer failed and says so.
                    return Ok(());
                }
            }
            // As above.
            let _ = rows.send(batch);
            Ok(())
        });
        let mut write = || -> Result<(), Failure> {
            let mut writer: Option<SubtreeWriter> = None;
            for (path, mut entry, group, chunks) in merged.into_iter().flatten() {
                if entry.flags.is_file() && entry.file_type() == cvmfs::entry::FileType::Symlink {
                } else if entry.mode & 0o004 == 0 || entry.is_directory() && entry.mode & 0o001 == 0 {
                    unreadable += 1;
                    first_unreadable.get_or_insert_with(|| path.clone());
                    if permissions == FlatPermissions::Readable {
                        entry.mode |= if entry.is_directory() { 0o555 } else { 0o444 };
                    }
                }
                match &mut writer {
                    Some(writer) => writer.add(path.as_bytes(), entry, group, &chunks)?,
                    None => {
                        writer = Some(SubtreeWriter::new(target.store.clone(), options.clone(), &repo_path(&Layout::new(), &OwnedPath::Flat(image)), entry)?);
                    }
                }
            }
            flat = writer;
            Ok(())
        };
        let written = write();
        let read = reader.join().map_err(|_| Failure::Elsewhere("the reader of the layers panicked".into()));
        read.and_then(|r| r).and(written)
    })?;
    let writer = match flat {
        Some(writer) => writer,
        // An image without layers.
        None => {
            let options = subtree_options(target, pool.algorithm(), FLAT_BUDGET, now)?;
            SubtreeWriter::new(target.store.clone(), options, &path, Entry::directory("", directory_meta(now)))?
        }
    };
    Ok(PreparedFlat { graft: writer.finish()?, unreadable, first_unreadable })
}

/// Where rows of the merge come from.
enum Source<'a> {
    Layer(Box<dyn Iterator<Item = Result<(TreePath, Node<FileContent>), Failure>> + 'a>),
    Additions(std::collections::btree_map::IntoIter<TreePath, Node<FileContent>>),
}

impl Iterator for Source<'_> {
    type Item = Result<(TreePath, Node<FileContent>), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
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

/// The files for Apptainer as the topmost layer, their content stored.
fn additions(
    target: &Target,
    pool: &Pool,
    loader: Loader<'_>,
    config: &Config,
    layers: &[NestedRef],
    now: UtcDateTime,
) -> Result<std::collections::BTreeMap<TreePath, Node<FileContent>>, Failure> {
    let lower: Vec<Lower<'_>> = layers.iter().map(|l| Lower::new(loader, l.clone())).collect();
    let nodes: Vec<(TreePath, Node<Vec<u8>>)> = { let _ = (config, merged(&lower)); Vec::new() };
    let mut encoder = Encoder::new(pool.algorithm(), target.codec);
    let mut stored = Vec::with_capacity(nodes.len());
    for (path, node) in nodes {
        let mut bytes = None;
        if let NodeKind::Regular { content, .. } = &node.kind {
            let (hash, _) = put_content(&*target.store, &mut encoder, ObjectKind::File, content)?;
            bytes = Some(FileContent::Whole(hash, pool.compression()));
        }
        let mut node = node.map_content(|_| bytes.expect("set for every file"));
        node.mtime = now.unix_timestamp();
        stored.push((path, node));
    }
    Ok(as_layer(stored))
}
