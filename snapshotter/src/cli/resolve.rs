//! `resolve`: explains where layers would come from.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{ImageFile, Layout, OwnedPath};
use image::manifest::{Config as ImageConfig, Document};
use image::reference::Reference;
use serde::Serialize;

use crate::config::Config;
use crate::decision::{Action, Decision};
use crate::labels::{LayerName, Wanted};
use crate::repository::Repository;
use crate::resolve::Below;

/// One layer, and what was found of it.
#[derive(Debug, Serialize)]
struct Explained {
    name: String,
    lazily: bool,
    repository: Option<String>,
    layer: Option<LayerDigest>,
    way: Option<&'static str>,
    reason: Option<String>,
}

/// Prints where an image's layers, or one layer, would come from; status 1 if any would be downloaded.
pub async fn resolve(config: &Config, what: &str, json: bool) -> anyhow::Result<ExitCode> {
    let repositories = config.repositories();
    let explained = if what.starts_with("sha256:") {
        vec![digest(config, &repositories, what).await?]
    } else {
        image(config, &repositories, what).await?
    };
    let all = explained.iter().all(|layer| layer.lazily);
    super::print(&if json { serde_json::to_string_pretty(&explained)? } else { text(&explained) })?;
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A digest may be any of three; the first meaning that leads somewhere is taken.
async fn digest(config: &Config, repositories: &[Arc<Repository>], text: &str) -> anyhow::Result<Explained> {
    let layer = LayerDigest::parse(text)?;
    let names = [
        ("layer digest", LayerName::Layer(layer)),
        ("diff ID", LayerName::Diff(DiffId::from_digest(layer.digest()))),
        ("chain ID", LayerName::Chain(ChainId::from_digest(layer.digest()))),
    ];
    let mut last = None;
    for (meaning, name) in names {
        let decision = Decision::make(repositories, &Wanted::named(name), Below::Unknown, &config.resolve).await;
        let explained = explain(format!("{text} as {meaning}"), &decision);
        if explained.lazily {
            return Ok(explained);
        }
        last = Some(Explained { name: text.to_owned(), ..explained });
    }
    last.context("there are three meanings")
}

/// All layers of a published image, bottom first.
async fn image(config: &Config, repositories: &[Arc<Repository>], text: &str) -> anyhow::Result<Vec<Explained>> {
    let reference = Reference::parse(text).or_else(|_| crate::fill::parse_reference(text))?;
    let name = reference.public_path()?;
    let path = |file| Layout::new().print(&OwnedPath::ImageFile { platform: None, name: name.clone(), file });
    let (manifest_path, config_path) = (path(ImageFile::RawManifest), path(ImageFile::Config));
    for repository in repositories {
        let (manifest_path, config_path) = (manifest_path.clone(), config_path.clone());
        let read = move |mountpoint: &std::path::Path| {
            Ok(Some((std::fs::read(mountpoint.join(manifest_path))?, std::fs::read(mountpoint.join(config_path))?)))
        };
        let Some((manifest, image_config)) = repository.look(read).await? else { continue };
        let Document::Manifest(manifest) = Document::parse(&manifest, None)? else {
            bail!("the published manifest of {text} is an index")
        };
        let layers = manifest.layers_with(&ImageConfig::parse(&image_config)?)?;
        let chains = ChainId::stack(&layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
        let mut explained = Vec::new();
        let mut below = Below::Nothing;
        for (layer, chain) in layers.iter().zip(chains) {
            let mut wanted = Wanted::named(LayerName::Chain(chain));
            (wanted.layer, wanted.diff) = (Some(layer.descriptor.digest), Some(layer.diff_id));
            wanted.image = Some(reference.simple_name());
            explained.push(explain(
                layer.descriptor.digest.to_string(),
                &Decision::make(repositories, &wanted, below, &config.resolve).await,
            ));
            below = Below::Chain(chain);
        }
        return Ok(explained);
    }
    let names: Vec<&str> = repositories.iter().map(|repository| repository.name()).collect();
    bail!(
        "{text} is not published in {}; its layers may be there all the same: ask for their digests",
        names.join(", ")
    )
}

fn explain(name: String, decision: &Decision) -> Explained {
    match decision.action() {
        Action::Serve { repository, hit } => Explained {
            name,
            lazily: true,
            repository: Some(repository.name().to_owned()),
            layer: Some(hit.layer.layer),
            way: Some(hit.way.as_str()),
            reason: None,
        },
        Action::Download(reason) => {
            Explained { name, lazily: false, repository: None, layer: None, way: None, reason: Some(reason) }
        }
        Action::Refuse(down) => Explained {
            name,
            lazily: false,
            repository: None,
            layer: None,
            way: None,
            reason: Some(format!("refused: {down}")),
        },
    }
}

fn text(explained: &[Explained]) -> String {
    let mut text = String::new();
    for layer in explained {
        match (&layer.repository, &layer.layer, layer.way, &layer.reason) {
            (Some(repository), Some(found), Some(way), _) => {
                let _ = writeln!(
                    text,
                    "lazily    {}\n          from {repository}, layer {found}, found by {way}",
                    layer.name
                );
            }
            (.., reason) => {
                let _ = writeln!(text, "download  {}\n          {}", layer.name, reason.as_deref().unwrap_or_default());
            }
        }
    }
    text.trim_end().to_owned()
}
