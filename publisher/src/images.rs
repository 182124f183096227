//! What is published: images from their records, named snapshots from the history.

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::history::Tag;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use image::layout::{ImageFile, Layout, OwnedPath, StatusRecord};
use serde::Serialize;

use crate::failure::Failure;
use crate::target::Target;

const RECORD_LIMIT: u64 = 4 << 20;

/// A published image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublishedImage {
    /// Where it is: path below the root of the repository.
    pub path: String,
    /// Its name in full.
    pub image: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Digest of its config.
    pub config: String,
    /// For which machines.
    pub platform: String,
    /// Since when.
    pub published: String,
    /// Revision that brought it.
    pub revision: u64,
}

/// All published images, by path. An image with an unreadable record is an error, not left out.
pub fn list(target: &Target) -> Result<Vec<PublishedImage>, Failure> {
    let mut view = target.view(time::UtcDateTime::now())?;
    let layout = Layout::new();
    let mut found = Vec::new();
    let top = RepoPath::parse("/.metadata").expect("a normal path");
    walk(target, &mut view, &layout, &top, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(
    target: &Target,
    view: &mut Transaction,
    layout: &Layout,
    directory: &RepoPath,
    found: &mut Vec<PublishedImage>,
) -> Result<(), Failure> {
    for entry in view.list(directory)? {
        let path = directory.join(&entry.name);
        if entry.is_directory() {
            walk(target, view, layout, &path, found)?;
            continue;
        }
        let text = String::from_utf8_lossy(path.as_bytes()).into_owned();
        if let Some(OwnedPath::ImageFile { platform, name, file: ImageFile::Status }) = layout.parse(&text) {
            let status = StatusRecord::parse(&read(target, &entry)?)?;
            found.push(PublishedImage {
                path: layout.print(&OwnedPath::Public { platform, name }),
                image: status.image,
                digest: status.digest.to_string(),
                config: status.config.to_string(),
                platform: status.platform.to_string(),
                published: status.published,
                revision: status.revision,
            });
        }
    }
    Ok(())
}

fn read(target: &Target, entry: &Entry) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if let Some(hash) = entry.content {
        let id = hash.object(ObjectKind::File);
        fetch(&*target.store, id, entry.compression(), RECORD_LIMIT, &mut bytes)?;
    }
    Ok(bytes)
}

/// One line an image.
pub fn to_text(images: &[PublishedImage]) -> String {
    let line = |i: &PublishedImage| format!("{}  {}  {}  revision {}\n", i.path, i.digest, i.published, i.revision);
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
