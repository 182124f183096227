//! Additional image stores of Podman, CRI-O and Buildah, as values: what the node's store and the one in a repository have in common.
//!
//! ```text
//! overlay/LAYER/diff           → where the content is     absolute: containers/storage refuses relative ones
//! overlay/LAYER/link           26 characters; overlay/l/THEM → ../LAYER/diff
//! overlay/LAYER/lower          short names of the layers below, the nearest first; not of the lowest
//! overlay-layers/layers.json   layers.lock
//! overlay-images/IMAGE/        manifest, config and what else containers/storage calls big data
//! overlay-images/images.json   images.lock
//! ```
//! An image is in a store in one of two forms. *Flat*: one layer, its complete root, whatever its number of layers in the registry. That
//! needs no whiteouts, and its containers have one lower directory. *Layered*: the layers of the registry, under the IDs that a pull
//! would give them, so that a pull finds all of them present and a build on the image shares them.
//!
//! Invariants
//! - The same image gives the same bytes.
//! - A name belongs to one image, an ID to one layer with one parent; a store in which that isn't so is one that can't be read.

mod records;

use std::collections::BTreeSet;

use crate::digest::{Digest, ImageId, ManifestDigest};
use crate::manifest::Layer;
use crate::reference::{DOCKER_HUB, PublicName};

pub use records::{ImageEntry, LayerEntry, ListError, Listed, created, print, read};

/// How engines call Docker Hub.
const HUB_OF_ENGINES: &str = "docker.io";

/// A layer of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(Digest);

impl LayerId {
    /// The only layer of a flat image, as the existing tool names it.
    pub fn flat(image: ImageId) -> Self {
        Self(Digest::of(format!("cvmfs-flat-layer:{}", image.hex()).as_bytes()))
    }

    /// A layer on others, as containers/image names it: the lowest by its diff ID, each further one by the digest of the text
    /// `<ID below>+<diff ID>`, hex digits only. This is not the chain ID.
    pub fn on(below: Option<Self>, layer: &Layer) -> Self {
        match below {
            None => Self(layer.diff_id.digest()),
            Some(below) => Self(Digest::of(format!("{}+{}", below.hex(), layer.diff_id.hex()).as_bytes())),
        }
    }

    /// The hex digits by which a store knows it.
    pub fn hex(&self) -> String {
        self.0.hex()
    }

    /// Its short name.
    pub fn short(&self) -> ShortName {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let hash = Digest::of(format!("link:{}", self.hex()).as_bytes());
        let bits = hash.as_bytes().iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
        let bits: Vec<u8> = bits.take(26 * 5).collect();
        let letter = |five: &[u8]| char::from(LETTERS[five.iter().fold(0, |sum, bit| sum << 1 | usize::from(*bit))]);
        ShortName(bits.chunks(5).map(letter).collect())
    }

    fn parse(hex: &str) -> Option<Self> {
        Digest::parse_hex(hex).map(Self)
    }
}

/// The short name of a layer: 26 characters, because those of all layers of a container have to fit into one page of mount options.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortName(String);

impl ShortName {
    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let is_letter = |b: u8| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b);
        (text.len() == 26 && text.bytes().all(is_letter)).then(|| Self(text.to_owned()))
    }
}

impl std::fmt::Display for ShortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file, link or list of a store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorePath {
    /// `overlay/LAYER`: what is kept of a layer
    Layer(LayerId),
    /// `overlay/LAYER/diff`: link to its content
    Diff(LayerId),
    /// `overlay/LAYER/link`: its short name
    Link(LayerId),
    /// `overlay/LAYER/lower`: what it stands on
    Lower(LayerId),
    /// `overlay/l/SHORT`: link to the layer with this short name
    Short(ShortName),
    /// `overlay-images/IMAGE`: the documents of an image
    Image(ImageId),
    /// `overlay-images/IMAGE/FILE`: one of them, by its name in containers/storage
    Document(ImageId, String),
    /// `overlay-images/images.json`
    Images,
    /// `overlay-images/images.lock`
    ImagesLock,
    /// `overlay-layers/layers.json`
    Layers,
    /// `overlay-layers/layers.lock`
    LayersLock,
}

impl StorePath {
    /// The path below the store.
    pub fn print(&self) -> String {
        match self {
            Self::Layer(layer) => format!("overlay/{}", layer.hex()),
            Self::Diff(layer) => format!("overlay/{}/diff", layer.hex()),
            Self::Link(layer) => format!("overlay/{}/link", layer.hex()),
            Self::Lower(layer) => format!("overlay/{}/lower", layer.hex()),
            Self::Short(name) => format!("overlay/l/{name}"),
            Self::Image(image) => format!("overlay-images/{}", image.hex()),
            Self::Document(image, name) => format!("overlay-images/{}/{}", image.hex(), document_file(name)),
            Self::Images => "overlay-images/images.json".to_owned(),
            Self::ImagesLock => "overlay-images/images.lock".to_owned(),
            Self::Layers => "overlay-layers/layers.json".to_owned(),
            Self::LayersLock => "overlay-layers/layers.lock".to_owned(),
        }
    }

    /// What a path below the store means; nothing if it is none of these.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        let image = |hex| Digest::parse_hex(hex).map(ImageId::from_digest);
        match parts[..] {
            ["overlay", "l", name] => ShortName::parse(name).map(Self::Short),
            ["overlay", layer] => LayerId::parse(layer).map(Self::Layer),
            ["overlay", layer, "diff"] => LayerId::parse(layer).map(Self::Diff),
            ["overlay", layer, "link"] => LayerId::parse(layer).map(Self::Link),
            ["overlay", layer, "lower"] => LayerId::parse(layer).map(Self::Lower),
            ["overlay-images", "images.json"] => Some(Self::Images),
            ["overlay-images", "images.lock"] => Some(Self::ImagesLock),
            ["overlay-layers", "layers.json"] => Some(Self::Layers),
            ["overlay-layers", "layers.lock"] => Some(Self::LayersLock),
            ["overlay-images", hex] => image(hex).map(Self::Image),
            ["overlay-images", hex, file] => Some(Self::Document(image(hex)?, document_name(file)?)),
            _ => None,
        }
    }
}

/// The file of a document: its name if that is made of `a-z`, `0-9` and `.`, else base64 behind `=`.
pub fn document_file(name: &str) -> String {
    use base64::Engine as _;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.';
    if name.bytes().all(plain) {
        return name.to_owned();
    }
    format!("={}", base64::engine::general_purpose::STANDARD.encode(name))
}

/// The document in a file.
fn document_name(file: &str) -> Option<String> {
    use base64::Engine as _;
    let name = match file.strip_prefix('=') {
        Some(text) => String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).ok()?).ok()?,
        None => file.to_owned(),
    };
    (document_file(&name) == file).then_some(name)
}

/// A layer with what its directory holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLayer {
    /// Which it is.
    pub id: LayerId,
    /// Its entry in the list.
    pub entry: LayerEntry,
    /// Content of `lower`; none for the lowest.
    pub lower: Option<String>,
    /// Where its content is, an absolute path.
    pub target: String,
}

impl StoreLayer {
    /// The complete root of an image at `target`; `size` is that of the image's tars.
    pub fn flat(image: ImageId, created: &str, size: u64, target: String) -> Self {
        let id = LayerId::flat(image);
        Self { id, entry: LayerEntry::flat(id, created, size), lower: None, target }
    }

    /// The layers of an image from the bottom up, each with the size of its tar and where its content is.
    pub fn stack(layers: &[(Layer, u64, String)], created: &str) -> Vec<Self> {
        let mut stack: Vec<Self> = Vec::with_capacity(layers.len());
        for (layer, size, target) in layers {
            let below = stack.last();
            let id = LayerId::on(below.map(|below| below.id), layer);
            let lower = below.map(|below| match &below.lower {
                None => format!("l/{}", below.id.short()),
                Some(rest) => format!("l/{}:{rest}", below.id.short()),
            });
            let entry = LayerEntry::of(id, below.map(|below| below.id), layer, *size, created);
            stack.push(Self { id, entry, lower, target: target.clone() });
        }
        stack
    }
}

/// A document of an image by its name in containers/storage.
pub type StoreDocument = (String, Vec<u8>);

/// The documents of an image: found by the digest of its manifest, and by that of the index that its name led to.
pub fn documents(manifest: &[u8], image: ImageId, config: &[u8], index: Option<&[u8]>) -> Vec<StoreDocument> {
    let by_digest = |document: &[u8]| (format!("manifest-{}", ManifestDigest::of(document)), document.to_vec());
    let own = [by_digest(manifest), ("manifest".to_owned(), manifest.to_vec()), (image.to_string(), config.to_vec())];
    index.map(by_digest).into_iter().chain(own).collect()
}

/// What became of an image in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// it is new, or has this name now too
    Added,
    /// its name led to another image, or its documents are others
    Updated,
    /// it was there
    Unchanged,
}

/// Puts an image into a list under a name; the name is taken from all others.
pub fn place(images: &mut Vec<Listed>, name: &str, mut entry: ImageEntry) -> Placed {
    let had_name = images.iter().any(|image| image.names().iter().any(|found| found == name));
    let old = images.iter().position(|image| image.id() == entry.id).map(|at| images.swap_remove(at));
    if let Some(old) = &old {
        entry.names = old.names();
    }
    if !entry.names.iter().any(|found| found == name) {
        entry.names.push(name.to_owned());
        entry.names.sort();
    }
    take_name(images, name);
    let placed = match old {
        Some(Listed::Ours(old)) if old == entry => Placed::Unchanged,
        _ if had_name => Placed::Updated,
        _ => Placed::Added,
    };
    images.push(Listed::Ours(entry));
    placed
}

/// Takes a name out of a list; an image may be left without one.
pub fn take_name(images: &mut [Listed], name: &str) -> bool {
    let mut taken = false;
    for image in images {
        taken |= image.drop_names(|found| found == name);
    }
    taken
}

/// Sorts both lists, and leaves out images of ours without a name and layers that no image stands on.
pub fn settle(images: &mut Vec<Listed>, layers: &mut Vec<Listed<LayerEntry>>) {
    images.retain(|image| !matches!(image, Listed::Ours(image) if image.names.is_empty()));
    images.sort_by(|a, b| a.id().cmp(b.id()));
    let parents: std::collections::BTreeMap<&str, Option<&str>> =
        layers.iter().map(|layer| (layer.id(), layer.parent())).collect();
    let mut used: BTreeSet<String> = BTreeSet::new();
    for image in images.iter() {
        let mut next = image.layer();
        while let Some(id) = next.filter(|id| used.insert((*id).to_owned())) {
            next = parents.get(id).copied().flatten();
        }
    }
    layers.retain(|layer| matches!(layer, Listed::Other(_)) || used.contains(layer.id()));
    layers.sort_by(|a, b| a.id().cmp(b.id()));
}

/// The name that engines know: `docker.io/library/debian:stable`. An image that is published by its digest alone gets a tag that states
/// it, since a digest is no name in a store.
pub fn engine_name(name: &PublicName) -> String {
    let repository = name.repository();
    let repository = match repository.strip_prefix(DOCKER_HUB).and_then(|rest| rest.strip_prefix('/')) {
        Some(path) => format!("{HUB_OF_ENGINES}/{path}"),
        // Without a registry it would be one of Docker Hub.
        None if !repository
            .split('/')
            .next()
            .is_some_and(|first| first.contains(['.', ':']) || first == "localhost") =>
        {
            format!("localhost/{repository}")
        }
        None => repository.to_owned(),
    };
    format!("{repository}:{}", name.reference().replacen(':', "-", 1))
}

/// The names under which an image may be published that engines know by this name.
pub fn published_names(engine_name: &str) -> Vec<PublicName> {
    let mut texts = vec![engine_name.to_owned()];
    texts.extend(engine_name.strip_prefix(HUB_OF_ENGINES).map(|path| format!("{DOCKER_HUB}{path}")));
    texts.extend(engine_name.strip_prefix("localhost/").map(str::to_owned));
    texts.extend(engine_name.rsplit_once(":sha256-").map(|(name, hex)| format!("{name}:sha256:{hex}")));
    let names = texts.iter().filter_map(|text| PublicName::parse(text).ok());
    names.filter(|name| self::engine_name(name) == engine_name).collect()
}

#[cfg(test)]
mod tests;
