//! Reads images from disk: OCI layouts, archives, layers; only small files, and not more than an honest image has.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};
use image::digest::Digest;
use image::manifest::{Document, LayerCompression, MAX_DOCUMENT};
use image::thin::{FILE, MAX_THIN};
use serde::Deserialize;

/// Largest layer that may hold a `thin.json`, in bytes: the file, its header, padding and some room for attributes.
pub(super) const MAX_LAYER: usize = MAX_THIN + (64 << 10);
/// Most members of an archive.
const MAX_MEMBERS: usize = 10_000;
/// Most bytes that are kept of an archive.
const MAX_KEPT: usize = 64 << 20;

/// Documents and blobs by their digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// indexes and manifests to begin with
    pub tops: Vec<Digest>,
    /// everything small that is there
    pub blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Bundle {
    /// A blob, verified.
    pub(super) fn get(&self, digest: Digest) -> anyhow::Result<&[u8]> {
        let bytes = self
            .blobs
            .get(&digest)
            .with_context(|| format!("blob {digest} is absent, or too large for a thin image"))?;
        let found = Digest::of(bytes);
        if found != digest {
            bail!("blob {digest} has another content: {found}");
        }
        Ok(bytes)
    }
}

/// An image of an archive without `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DockerImage {
    pub(super) config: Vec<u8>,
    /// bottom first; content of the bottom one only
    pub(super) layers: Vec<Vec<u8>>,
}

/// What an archive holds.
pub(super) enum Archive {
    Oci(Bundle),
    Docker(Vec<DockerImage>),
}

/// A file that has to be small.
pub(super) fn small(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(name)?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes).with_context(name)?;
    if bytes.len() > MAX_DOCUMENT {
        bail!("{} is longer than {MAX_DOCUMENT} bytes", path.display());
    }
    Ok(bytes)
}

/// An OCI layout in a directory.
pub(super) fn directory(path: &Path) -> anyhow::Result<Bundle> {
    let tops = tops(&small(&path.join("index.json")).context("this is no OCI layout")?)?;
    let mut blobs = BTreeMap::new();
    let mut kept = 0;
    let directory = path.join("blobs/sha256");
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?.take(MAX_MEMBERS) {
        let entry = entry?;
        let Some(digest) = entry.file_name().to_str().and_then(Digest::parse_hex) else { continue };
        let metadata = entry.metadata()?;
        if metadata.is_file() && metadata.len() <= MAX_DOCUMENT as u64 {
            kept += metadata.len();
            if kept > MAX_KEPT as u64 {
                bail!("{} has too many blobs for thin images", path.display());
            }
            blobs.insert(digest, small(&entry.path())?);
        }
    }
    Ok(Bundle { tops, blobs })
}

fn tops(index_json: &[u8]) -> anyhow::Result<Vec<Digest>> {
    match Document::parse(index_json, None).context("index.json")? {
        Document::Index(index) => Ok(index.entries.iter().map(|entry| entry.digest.digest()).collect()),
        Document::Manifest(_) => bail!("index.json is no index"),
    }
}

/// What `build`, `docker save` or `podman save` wrote.
pub(super) fn archive(path: &Path) -> anyhow::Result<Archive> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        config: String,
        layers: Vec<String>,
    }
    let name = || path.display().to_string();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut kept = 0;
    let mut archive = tar::Archive::new(File::open(path).with_context(name)?);
    for (number, member) in archive.entries().with_context(name)?.enumerate() {
        let member = member.with_context(|| format!("{}: no archive, or a damaged one", path.display()))?;
        let size = member.size();
        if number == MAX_MEMBERS || kept > MAX_KEPT as u64 {
            bail!("{} has too much in it for thin images", path.display());
        }
        if member.header().entry_type() != tar::EntryType::Regular || size > MAX_DOCUMENT as u64 {
            continue;
        }
        kept += size;
        let at = String::from_utf8_lossy(&member.path_bytes()).trim_start_matches("./").to_owned();
        let mut bytes = Vec::new();
        member.take(MAX_DOCUMENT as u64).read_to_end(&mut bytes).with_context(name)?;
        files.insert(at, bytes);
    }
    if let Some(index) = files.get("index.json") {
        let tops = tops(index)?;
        let digest = |path: &str| path.strip_prefix("blobs/sha256/").and_then(Digest::parse_hex);
        let blobs = files.iter().filter_map(|(path, bytes)| Some((digest(path)?, bytes.clone()))).collect();
        return Ok(Archive::Oci(Bundle { tops, blobs }));
    }
    let manifest = files.get("manifest.json").with_context(|| format!("{} holds no image", path.display()))?;
    let entries: Vec<Entry> = serde_json::from_slice(manifest).context("manifest.json")?;
    let get =
        |at: &str| files.get(at).cloned().with_context(|| format!("{at} is absent, or too large for a thin image"));
    let images = entries.iter().map(|entry| {
        let above = entry.layers.iter().skip(1).map(|_| Ok(Vec::new()));
        let bottom = entry.layers.first().map(|at| get(at));
        let layers = bottom.into_iter().chain(above).collect::<anyhow::Result<_>>()?;
        Ok(DockerImage { config: get(&entry.config)?, layers })
    });
    Ok(Archive::Docker(images.collect::<anyhow::Result<_>>()?))
}

/// The `thin.json` of a layer that holds nothing else.
pub(super) fn thin_json(blob: &[u8]) -> anyhow::Result<Vec<u8>> {
    let tar = match LayerCompression::sniff(blob) {
        Some(LayerCompression::Gzip) => {
            let mut tar = Vec::new();
            let decoder = flate2::read::MultiGzDecoder::new(blob);
            decoder.take(MAX_LAYER as u64 + 1).read_to_end(&mut tar).context("the layer's gzip is damaged")?;
            tar
        }
        Some(LayerCompression::Plain) => blob.to_vec(),
        _ => bail!("the bottom layer is no tar, or packed in a way that thin images aren't"),
    };
    if tar.len() > MAX_LAYER {
        bail!("this is an ordinary image: its bottom layer holds more than {MAX_LAYER} bytes");
    }
    let mut found = None;
    for member in tar::Archive::new(tar.as_slice()).entries()? {
        let mut member = member.context("the layer's tar is damaged")?;
        let kind = member.header().entry_type();
        let name = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        match name.trim_start_matches("./").trim_end_matches('/') {
            "" => {}
            FILE if kind == tar::EntryType::Regular && found.is_none() => {
                let mut bytes = Vec::new();
                member.read_to_end(&mut bytes).context("the layer's tar is damaged")?;
                found = Some(bytes);
            }
            other => bail!(
                "this is an ordinary image: its bottom layer holds {:?}, not {FILE} alone",
                crate::text::printable(other, 100)
            ),
        }
    }
    found.with_context(|| format!("this is an ordinary image: its bottom layer has no {FILE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(members: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in members {
            let mut header = tar::Header::new_ustar();
            header.set_path(path).unwrap();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_thin_layer_holds_the_one_file_and_nothing_else() {
        use tar::EntryType::{Directory, Regular, Symlink};
        let thin = ("thin.json", Regular, "{}");
        for (members, good) in [
            (vec![thin], true),
            (vec![("./", Directory, ""), ("./thin.json", Regular, "{}")], true),
            (vec![], false),
            (vec![("etc", Directory, "")], false),
            (vec![thin, ("bin", Directory, "")], false),
            (vec![thin, thin], false),
            (vec![("thin.json", Symlink, "")], false),
            (vec![("a/thin.json", Regular, "{}")], false),
        ] {
            let found = thin_json(&tar(&members));
            assert_eq!(found.as_deref().ok(), good.then_some(&b"{}"[..]), "{members:?}");
        }
        assert!(thin_json(b"neither").is_err());
    }

    #[test]
    fn a_layer_that_unpacks_to_much_more_is_not_unpacked() {
        use std::io::Write as _;
        let large = " ".repeat(8 << 20);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar(&[("thin.json", tar::EntryType::Regular, &large)])).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(packed.len() < MAX_LAYER);
        assert!(thin_json(&packed).unwrap_err().to_string().contains("ordinary image"));
    }
}
