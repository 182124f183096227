//! A directory that looks like a mounted repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{FormatRecord, IndexKey, LayersJson, Layout, OwnedPath};

/// Digests of a layer; they follow from a name.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    pub digest: LayerDigest,
    pub diff: DiffId,
}

impl Layer {
    pub fn named(name: &str) -> Layer {
        Layer { digest: LayerDigest::of(format!("blob {name}").as_bytes()), diff: DiffId::of(name.as_bytes()) }
    }

    /// The record of a layer as this project writes it.
    pub fn format(&self) -> FormatRecord {
        FormatRecord {
            whiteouts: FormatRecord::OVERLAY.into(),
            xattrs: true,
            diff_id: self.diff,
            size: 10_000,
            entries: 3,
            rows: 3,
            lost: Vec::new(),
            lost_more: 0,
            owners: true,
            settled_on: None,
            implicit: Vec::new(),
        }
    }
}

/// A repository.
#[derive(Debug, Clone)]
pub struct Repository {
    pub name: String,
    pub path: PathBuf,
}

impl Repository {
    /// An empty one: the directory of layers is there.
    pub fn make(name: &str, path: &Path) -> Repository {
        fs::create_dir_all(path.join(".layers")).unwrap();
        Repository { name: name.to_owned(), path: path.to_owned() }
    }

    pub fn at(&self, path: &OwnedPath) -> PathBuf {
        self.path.join(Layout::new().print(path))
    }

    /// Where the content of a layer is.
    pub fn content(&self, layer: &Layer) -> PathBuf {
        self.at(&OwnedPath::LayerContent(layer.digest))
    }

    pub fn write(&self, path: &OwnedPath, bytes: &[u8]) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A layer as this project publishes it, with one file named after it.
    pub fn layer(&self, name: &str) -> Layer {
        self.layer_with(name, |content| fs::write(content.join(name), name).unwrap())
    }

    pub fn layer_with(&self, name: &str, fill: impl FnOnce(&Path)) -> Layer {
        let layer = self.plain(name, fill);
        self.write(&OwnedPath::LayerFormat(layer.digest), &layer.format().to_bytes());
        layer
    }

    /// A layer as the existing tool publishes it: no word about how deletions are written.
    pub fn plain(&self, name: &str, fill: impl FnOnce(&Path)) -> Layer {
        let layer = Layer::named(name);
        let content = self.content(&layer);
        fs::create_dir_all(&content).unwrap();
        fill(&content);
        let record = LayersJson {
            created: "2026-01-01T00:00:00Z".into(),
            layer: layer.digest,
            compressed_size: Some(1000),
            diff_id: layer.diff,
            size: 10_000,
        };
        self.write(&OwnedPath::LayerRecord(layer.digest), &record.to_bytes());
        layer
    }

    /// The indexes of an image; returns its chain IDs, bottom first.
    pub fn index(&self, layers: &[Layer]) -> Vec<ChainId> {
        let chains = ChainId::stack(&layers.iter().map(|layer| layer.diff).collect::<Vec<_>>());
        for (layer, chain) in layers.iter().zip(&chains) {
            let to = OwnedPath::Layer(layer.digest);
            for key in [IndexKey::DiffId(layer.diff), IndexKey::ChainId(*chain)] {
                let from = OwnedPath::Index(key);
                self.link(key, &Layout::new().link(&from, &to));
            }
        }
        chains
    }

    /// One link of an index, wherever it leads.
    pub fn link(&self, key: IndexKey, target: &str) {
        let path = self.at(&OwnedPath::Index(key));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }
}
