//! What is published: images from their records, those of the existing tool from their links; named snapshots from the
//! history.

use std::collections::BTreeMap;

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::history::Tag;
use cvmfs::path::RepoPath;
use cvmfs::startup;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use image::layout::{ImageFile, Layout, OwnedPath, StatusRecord};
use serde::Serialize;

use crate::failure::Failure;
use crate::startup::ListSize;
use crate::target::Target;

const RECORD_LIMIT: u64 = 4 << 20;

/// A published image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublishedImage {
    /// Where it is: path below the root of the repository.
    pub path: String,
    /// Its name in full.
    pub image: String,
    /// Digest of its manifest; unknown of an image of the existing tool.
    pub digest: Option<String>,
    /// Digest of its config.
    pub config: String,
    /// For which machines, if that is recorded.
    pub platform: Option<String>,
    /// Since when.
    pub published: String,
    /// Revision that brought it, if that is recorded.
    pub revision: Option<u64>,
    /// Whether the existing tool published it: there is a link, and none of our records.
    pub legacy: bool,
    /// What its start-up list asks for, if it has one.
    pub startup: Option<ListSize>,
    /// Whether its start-up list is a file bundle in the flat, too.
    pub bundles: bool,
}

/// All published images, by path. An image with an unreadable record is an error, not left out.
pub fn list(target: &Target) -> Result<Vec<PublishedImage>, Failure> {
    let mut view = target.view(time::UtcDateTime::now())?;
    let layout = Layout::new();
    let mut found = BTreeMap::new();
    let mut lists = BTreeMap::new();
    let top = RepoPath::parse("/.metadata").expect("a normal path");
    walk(&mut view, &top, &mut |path, entry| {
        let text = String::from_utf8_lossy(path.as_bytes());
        let Some(OwnedPath::ImageFile { platform, name, file }) = layout.parse(&text) else { return Ok(()) };
        let path = layout.print(&OwnedPath::Public { platform, name });
        if file == ImageFile::Startup {
            lists.insert(path, ListSize::of(&read(target, entry, startup::MAX_BYTES)?));
        } else if file == ImageFile::Status {
            let status = StatusRecord::parse(&read(target, entry, RECORD_LIMIT)?)?;
            let image = PublishedImage {
                path: path.clone(),
                image: status.image,
                digest: Some(status.digest.to_string()),
                config: status.config.to_string(),
                platform: Some(status.platform.to_string()),
                published: status.published,
                revision: Some(status.revision),
                legacy: false,
                startup: None,
                bundles: status.bundles,
            };
            found.insert(path, image);
        }
        Ok(())
    })?;
    for top in view.list(&RepoPath::ROOT)?.into_iter().filter(|e| is_public(&e.name)) {
        let path = RepoPath::ROOT.join(&top.name);
        let mut visit = |path: &RepoPath, entry: &Entry| {
            if let Some(image) = legacy_image(&layout, path, entry)
                && !is_second_link(&layout, &found, &image)
            {
                found.entry(image.path.clone()).or_insert(image);
            }
            Ok(())
        };
        match top.is_directory() {
            true => walk(&mut view, &path, &mut visit)?,
            false => visit(&path, &top)?,
        }
    }
    for (path, size) in lists {
        if let Some(image) = found.get_mut(&path) {
            image.startup = size;
        }
    }
    Ok(found.into_values().collect())
}

/// Whether a name at the top belongs to the tree of public links.
pub(crate) fn is_public(name: &[u8]) -> bool {
    !name.starts_with(b".") && name != b"podmanStore" || name == b".multiarch"
}

/// The image behind a public link, as far as the link tells.
fn legacy_image(layout: &Layout, path: &RepoPath, entry: &Entry) -> Option<PublishedImage> {
    let text = std::str::from_utf8(path.as_bytes().strip_prefix(b"/")?).ok()?;
    let public = layout.parse(text).filter(|p| matches!(p, OwnedPath::Public { .. }))?;
    let OwnedPath::Flat(config) = layout.parse_link(&public, std::str::from_utf8(&entry.symlink).ok()?)? else {
        return None;
    };
    Some(PublishedImage {
        path: text.to_owned(),
        image: text.to_owned(),
        digest: None,
        config: config.to_string(),
        platform: None,
        published: image::layout::timestamp(entry.mtime),
        revision: None,
        legacy: true,
        startup: None,
        bundles: false,
    })
}

/// Whether a link below `.multiarch` leads to the same as the plain path, whose records are those of the image.
fn is_second_link(layout: &Layout, found: &BTreeMap<String, PublishedImage>, link: &PublishedImage) -> bool {
    let Some(OwnedPath::Public { platform: Some(_), name }) = layout.parse(&link.path) else { return false };
    found.get(name.as_str()).is_some_and(|image| image.config == link.config)
}

/// Visits all that is no directory below a directory. Names of images have few components.
pub(crate) fn walk(
    view: &mut Transaction,
    directory: &RepoPath,
    visit: &mut dyn FnMut(&RepoPath, &Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    const DEEPEST: usize = 64;
    // What waits for removal is no image.
    let others = |e: &Entry| e.is_directory() && matches!(&e.name[..], b".versions" | b".condemned");
    for entry in view.list(directory)?.into_iter().filter(|e| !others(e)) {
        let path = directory.join(&entry.name);
        match entry.is_directory() {
            true if path.components().count() > DEEPEST => {
                return Err(Failure::Content(format!("{path} lies too deep for the name of an image")));
            }
            true => walk(view, &path, visit)?,
            false => visit(&path, &entry)?,
        }
    }
    Ok(())
}

fn read(target: &Target, entry: &Entry, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if let Some(hash) = entry.content {
        let id = hash.object(ObjectKind::File);
        fetch(&*target.store, id, entry.compression(), most, &mut bytes)?;
    }
    Ok(bytes)
}

/// One line an image.
pub fn to_text(images: &[PublishedImage]) -> String {
    let line = |i: &PublishedImage| {
        let bundles = if i.bundles { ", and a file bundle" } else { "" };
        let listed = |list: ListSize| format!("  start-up list of {} files, {} bytes{bundles}", list.files, list.bytes);
        let startup = i.startup.map_or_else(String::new, listed);
        match (&i.digest, i.revision) {
            (Some(digest), Some(revision)) => {
                let platform = i.platform.as_deref().unwrap_or("-");
                format!("{}  {digest}  {platform}  {}  revision {revision}{startup}\n", i.path, i.published)
            }
            _ => format!("{}  legacy, config {}  {}{startup}\n", i.path, i.config, i.published),
        }
    };
    images.iter().map(line).collect()
}

/// An array of objects.
pub fn to_json(images: &[PublishedImage]) -> String {
    let mut text = serde_json::to_string_pretty(images).expect("strings and numbers");
    text.push('\n');
    text
}

/// Named snapshots, the newest first.
pub fn tags(target: &Target) -> Result<Vec<Tag>, Failure> {
    let mut tags = target.repository()?.history(target.scratch())?.tags;
    tags.sort_by(|a, b| b.revision.cmp(&a.revision).then_with(|| a.name.cmp(&b.name)));
    Ok(tags)
}

fn time_of(tag: &Tag) -> String {
    image::layout::timestamp(i64::try_from(tag.timestamp).unwrap_or(i64::MAX))
}

/// One line a snapshot.
pub fn tags_to_text(tags: &[Tag]) -> String {
    tags.iter().map(|t| format!("{}  revision {}  {}  {}\n", t.name, t.revision, time_of(t), t.root)).collect()
}

/// An array of objects.
pub fn tags_to_json(tags: &[Tag]) -> String {
    let objects: Vec<serde_json::Value> = tags
        .iter()
        .map(|t| {
            serde_json::json!({
                "name": t.name, "revision": t.revision, "timestamp": time_of(t), "root": t.root.to_string(),
                "description": t.description,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(objects))
}
