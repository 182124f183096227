//! A layer that holds nothing but `thin.json` stands for the layers of repositories that it lists.
//!
//! Docker compares every layer with its diff ID, so what `thin.json` says can't be put under the name of another image. What it says is
//! input from outside all the same: only layers of the repositories in the configuration are used, they have to be there, and paths are
//! made here from names and digests ([`image::thin`]), never taken from it.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use image::layout::OwnedPath;
use image::thin::{FILE, MAX_THIN, ThinError, ThinRecord};

use super::home::{MAX_LOWERS, Part};
use crate::look::Looks;
use crate::plugin::Refusal;
use crate::published::Repository;
use crate::text::printable;

/// Entries of a layer of another tool that are looked through for deletions.
const SCAN: usize = 20_000;

/// What an unpacked layer says, if it is thin; whether that can be believed is in the result. Runs within the layer.
pub fn read() -> Option<Result<ThinRecord, ThinError>> {
    let mut entries = fs::read_dir("/").ok()?;
    let only = entries.next()?.ok()?;
    if only.file_name() != FILE || !only.file_type().ok()?.is_file() || entries.next().is_some() {
        return None;
    }
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(nix::libc::O_NOFOLLOW).open(only.path()).ok()?;
    let mut bytes = Vec::new();
    file.take(MAX_THIN as u64 + 1).read_to_end(&mut bytes).ok()?;
    Some(ThinRecord::parse(&bytes))
}

/// The repository of that name, if it may be used.
pub fn allowed<'a>(repositories: &'a [Repository], name: &str) -> Result<&'a Repository, Refusal> {
    repositories.iter().find(|repository| repository.name() == name).ok_or_else(|| {
        Refusal::new(format!(
            "it wants layers of repository {0}, which is not configured; add [[repositories]] name = \"{0}\" to {1} and restart the plugin",
            printable(name, 255),
            crate::config::FILE
        ))
    })
}

/// What stands for a thin layer, the nearest first: all of it is there.
pub fn resolve(record: &ThinRecord, repositories: &[Repository], looks: &Looks) -> Result<Vec<Part>, Refusal> {
    let origin = printable(record.origin.as_deref().unwrap_or("without a name"), 300);
    let whose = |refusal: Refusal| Refusal::new(format!("thin image {origin}: {refusal}"));
    if record.layers.is_empty() || record.layers.len() > MAX_LOWERS {
        let count = record.layers.len();
        return Err(whose(Refusal::new(format!("it lists {count} layers; between 1 and {MAX_LOWERS} can be used"))));
    }
    // The list begins at the bottom, a stack at the top.
    let mut parts: Vec<Part> = record
        .layers
        .iter()
        .rev()
        .map(|layer| Part { repository: layer.repository.clone(), layer: layer.layer, overlay: false })
        .collect();
    let mut names: Vec<String> = parts.iter().map(|part| part.repository.clone()).collect();
    names.sort();
    names.dedup();
    // All of them before one is looked at.
    let used = names.iter().map(|name| allowed(repositories, name)).collect::<Result<Vec<_>, _>>().map_err(whose)?;
    for repository in used {
        looks.mounted(repository).map_err(whose)?;
        let own: Vec<&mut Part> = parts.iter_mut().filter(|part| part.repository == repository.name()).collect();
        let questions = own.iter().map(|part| part.layer).collect();
        let forms = looks.all(repository, questions, |repository, layer| form(repository, *layer)).map_err(whose)?;
        for (part, overlay) in own.into_iter().zip(forms) {
            part.overlay = overlay;
        }
    }
    Ok(parts)
}

/// Is it the copy made for overlayfs that has to be used for a layer? That of another tool may say deletions in its own way.
fn form(repository: &Repository, layer: image::digest::LayerDigest) -> Result<bool, Refusal> {
    let trouble = |error| Refusal::of("it can't be looked at")(error);
    if !repository.has_layer(layer).map_err(trouble)? {
        return Err(Refusal::new(format!(
            "layer {layer} is not in repository {}; publish the image again, or take another one",
            repository.name()
        )));
    }
    if repository.deletes_for_overlay(layer).map_err(trouble)? {
        return Ok(false);
    }
    if repository.is_directory(&OwnedPath::LayerOverlay(layer)).map_err(trouble)? {
        return Ok(true);
    }
    let content = repository.path(&OwnedPath::LayerContent(layer));
    match has_marks(&content) {
        Ok(Some(false)) => Ok(false),
        Ok(_) => Err(Refusal::new(format!(
            "layer {layer} in repository {} was published by another tool, and what it deletes is not said in the way of overlayfs; \
             cvmfs-publisher check --fix puts a copy beside it that can be used",
            repository.name()
        ))),
        Err(error) => Err(Refusal::of(format!("layer {layer} can't be looked through for deletions"))(error)),
    }
}

/// Does a layer have names that mean deletions? Nothing if it is too large to say.
fn has_marks(layer: &Path) -> std::io::Result<Option<bool>> {
    let (mut seen, mut open) = (0, vec![layer.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            seen += 1;
            if seen > SCAN {
                return Ok(None);
            }
            if entry.file_name().as_encoded_bytes().starts_with(super::unpack::WHITEOUT) {
                return Ok(Some(true));
            }
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(Some(false))
}
