//! A layer that holds nothing but `thin.json` stands for the layers of repositories that it lists.
//!
//! Docker compares every layer with its diff ID, so what `thin.json` says can't be put under the name of another image. What it says is
//! input from outside all the same: only layers of the repositories in the configuration are used, they have to be there, and paths are
//! made here from names and digests ([`image::thin`]), never taken from it.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::OwnedPath;
use image::thin::{FILE, MAX_THIN, ThinError, ThinRecord};

use super::home::{Form, MAX_LOWERS, Part};
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

/// What stands for a thin layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// directories, the nearest first: all of them are there
    pub parts: Vec<Part>,
    /// chain ID of the image that is meant, if the repository says of each layer what the image says of it
    pub stack: Option<ChainId>,
}

/// What stands for a thin layer.
pub fn resolve(record: &ThinRecord, repositories: &[Repository], looks: &Looks) -> Result<Resolved, Refusal> {
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
        .map(|layer| Part { repository: layer.repository.clone(), layer: layer.layer, form: Form::Content })
        .collect();
    let mut names: Vec<String> = parts.iter().map(|part| part.repository.clone()).collect();
    names.sort();
    names.dedup();
    // All of them before one is looked at.
    let used = names.iter().map(|name| allowed(repositories, name)).collect::<Result<Vec<_>, _>>().map_err(whose)?;
    let mut diffs: Vec<Option<DiffId>> = vec![None; parts.len()];
    for repository in used {
        looks.mounted(repository).map_err(whose)?;
        let own = parts.iter_mut().zip(&mut diffs).filter(|(part, _)| part.repository == repository.name());
        let own: Vec<(&mut Part, &mut Option<DiffId>)> = own.collect();
        let questions = own.iter().map(|(part, _)| part.layer).collect();
        let forms = looks.all(repository, questions, |repository, layer| form(repository, *layer)).map_err(whose)?;
        for ((part, diff), (form, known)) in own.into_iter().zip(forms) {
            (part.form, *diff) = (form, known);
        }
    }
    let said = record.layers.iter().rev().map(|layer| layer.diff_id);
    let is_known = said.zip(&diffs).all(|(said, known)| known.is_some() && said == *known);
    let diffs: Vec<DiffId> = diffs.into_iter().rev().flatten().collect();
    let stack = ChainId::stack(&diffs).last().copied().filter(|_| is_known);
    Ok(Resolved { parts, stack })
}

/// Cover and flat in the place of many layers, where the repository has them for this stack. A repository that does not
/// answer has none.
pub fn flat(repository: &Repository, stack: ChainId, looks: &Looks) -> Option<Vec<Part>> {
    let look = |repository: &Repository, stack: &ChainId| {
        mounted::flat(repository.mountpoint(), *stack).map_err(Refusal::of("the flat root can't be looked for"))
    };
    let image = match looks.all(repository, vec![stack], look) {
        Ok(found) => found.into_iter().next().flatten()?,
        Err(refusal) => {
            tracing::info!(image = %stack, repository = repository.name(), error = %refusal, "layers in place of the flat root");
            return None;
        }
    };
    let layer = LayerDigest::from_digest(image.digest());
    let part = |form| Part { repository: repository.name().to_owned(), layer, form };
    Some([Form::Cover, Form::Flat].map(part).into())
}

/// Which directory has to be used for a layer, and what tar it is. That of another tool may say deletions in its own way.
fn form(repository: &Repository, layer: LayerDigest) -> Result<(Form, Option<DiffId>), Refusal> {
    let trouble = |error| Refusal::of("it can't be looked at")(error);
    if !repository.has_layer(layer).map_err(trouble)? {
        return Err(Refusal::new(format!(
            "layer {layer} is not in repository {}; publish the image again, or take another one",
            repository.name()
        )));
    }
    if let Some(diff) = repository.for_overlay(layer).map_err(trouble)? {
        return Ok((Form::Content, Some(diff)));
    }
    if repository.is_directory(&OwnedPath::LayerOverlay(layer)).map_err(trouble)? {
        return Ok((Form::Overlay, None));
    }
    let content = repository.path(&OwnedPath::LayerContent(layer));
    match has_marks(&content) {
        Ok(Some(false)) => Ok((Form::Content, None)),
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
