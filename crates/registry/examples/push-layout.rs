//! Pushes an image of an OCI image layout, with all its blobs:
//!
//! ```text
//! push-layout OCI_LAYOUT_DIR[:TAG] http://HOST:PORT/REPOSITORY:TAG
//! ```
//!
//! Without TAG the layout must hold one image. Credentials come from the environment and the Docker configuration.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use image::digest::{Digest, ManifestDigest};
use image::reference::Reference;
use registry::{BlobSource, Client, ClientConfig, Credentials};
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = push().await else { return ExitCode::SUCCESS };
    let mut cause = Some(error.as_ref() as &dyn Error);
    while let Some(error) = cause {
        eprintln!("{error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}

async fn push() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [source, target] = &arguments[..] else {
        return Err("usage: push-layout OCI_LAYOUT_DIR[:TAG] http://HOST:PORT/REPOSITORY:TAG".into());
    };
    let (dir, tag) = match source.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (PathBuf::from(dir), Some(tag)),
        _ => (PathBuf::from(source), None),
    };
    let target = Reference::parse(target)?;
    let client = Client::new(ClientConfig { credentials: Credentials::from_env()?, ..ClientConfig::default() })?;

    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
    let images = index["manifests"].as_array().ok_or("index.json lists no images")?;
    let name = |image: &Value| image["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
    let mut chosen = images.iter().filter(|image| tag.is_none() || name(image).as_deref() == tag);
    let (Some(image), None) = (chosen.next(), chosen.next()) else {
        let names: Vec<_> = images.iter().filter_map(name).collect();
        return Err(format!("{}: name one image of {names:?}", dir.display()).into());
    };
    // an index comes after its manifests: collect from the top, push from the end
    let mut documents = vec![image.clone()];
    let mut next = 0;
    while let Some(descriptor) = documents.get(next) {
        let document: Value = serde_json::from_slice(&std::fs::read(blob(&dir, descriptor)?.1)?)?;
        let blobs = document["layers"].as_array().into_iter().flatten().chain(document.get("config"));
        for descriptor in blobs {
            let (digest, path) = blob(&dir, descriptor)?;
            let size = std::fs::metadata(&path)?.len();
            let done = client.push_blob(target.repository(), digest, BlobSource::File { path, size }).await?;
            println!("{digest} {size} {done:?}");
        }
        documents.extend(document["manifests"].as_array().into_iter().flatten().cloned());
        next += 1;
    }
    for (place, descriptor) in documents.iter().enumerate().rev() {
        let (digest, path) = blob(&dir, descriptor)?;
        let name = match place {
            0 => target.clone(),
            _ => {
                let repository = target.repository();
                Reference::parse(&format!("{repository}@{}", ManifestDigest::from_digest(digest)))?
            }
        };
        let media_type = descriptor["mediaType"].as_str().ok_or("a descriptor lacks its mediaType")?;
        client.push_manifest(&name, media_type, std::fs::read(path)?.into()).await?;
        println!("{digest} {name}");
    }
    Ok(())
}

/// Digest and file of a descriptor.
fn blob(dir: &Path, descriptor: &Value) -> Result<(Digest, PathBuf)> {
    let digest = Digest::parse(descriptor["digest"].as_str().ok_or("a descriptor lacks its digest")?)?;
    Ok((digest, dir.join("blobs/sha256").join(digest.hex())))
}
