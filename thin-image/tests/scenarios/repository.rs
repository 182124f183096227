//! A directory that looks like a mounted repository.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use image::digest::{ChainId, DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use image::layout::{FormatRecord, ImageFile, IndexKey, LayersJson, Layout, OwnedPath, StatusRecord};
use image::platform::{Platform, PlatformDirectory};
use image::reference::PublicName;
use serde_json::{Value, json};
use thin_image::names::Wanted;
use thin_image::published::Repository;

pub const NAME: &str = "images.example.org";
pub const APP: &str = "quay.io/tools/app:1";

/// The directory of all repositories with one of them in it.
pub struct Fake {
    cvmfs: tempfile::TempDir,
}

/// An image, described.
#[derive(Clone)]
pub struct Image {
    pub name: &'static str,
    pub platform: &'static str,
    /// goes below `.multiarch`
    pub elsewhere: bool,
    /// content of its layers, bottom first
    pub layers: Vec<&'static str>,
    pub config: Value,
    /// added to the manifest, so that it gets another digest
    pub note: &'static str,
    pub index: Option<Vec<u8>>,
}

impl Image {
    pub fn app() -> Self {
        Self {
            name: APP,
            platform: "linux/amd64",
            elsewhere: false,
            layers: vec!["base", "app"],
            config: json!({ "Cmd": ["/app", "it's $x"], "Env": ["PATH=/bin"], "User": "7" }),
            note: "",
            index: None,
        }
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        let platform = Platform::parse(self.platform).unwrap();
        let variant = platform.variant();
        json!({
            "architecture": platform.architecture(), "os": platform.os(), "variant": variant, "created": "2026-01-02T03:04:05.6Z",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.layers.iter().map(|layer| diff(layer)).collect::<Vec<_>>() },
        })
        .to_string()
        .into_bytes()
    }

    pub fn id(&self) -> ImageId {
        ImageId::of(&self.config_bytes())
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|content| {
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer(content), "size": 1_000_000 })
            })
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len() },
            "layers": layers,
            "annotations": { "note": self.note },
        })
        .to_string()
        .into_bytes()
    }

    pub fn digest(&self) -> ManifestDigest {
        ManifestDigest::of(&self.manifest_bytes())
    }
}

/// The blob digest of a layer.
pub fn layer(content: &str) -> LayerDigest {
    LayerDigest::of(format!("compressed {content}").as_bytes())
}

/// The digest of its tar.
pub fn diff(content: &str) -> DiffId {
    DiffId::of(content.as_bytes())
}

pub fn wanted(text: &str) -> Wanted {
    Wanted::parse(text).unwrap()
}

impl Fake {
    pub fn new() -> Self {
        let cvmfs = tempfile::tempdir().unwrap();
        fs::create_dir_all(cvmfs.path().join(NAME).join(".layers")).unwrap();
        Self { cvmfs }
    }

    /// One with the usual image.
    pub fn with_app() -> Self {
        let fake = Self::new();
        fake.publish(&Image::app());
        fake
    }

    /// Where repositories are mounted.
    pub fn cvmfs(&self) -> &Path {
        self.cvmfs.path()
    }

    pub fn root(&self) -> PathBuf {
        self.cvmfs.path().join(NAME)
    }

    pub fn repository(&self) -> Repository {
        Repository::new(NAME, &self.root()).unwrap()
    }

    pub fn path(&self, of: &OwnedPath) -> PathBuf {
        self.root().join(Layout::new().print(of))
    }

    pub fn put(&self, at: &OwnedPath, bytes: &[u8]) {
        let path = self.path(at);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Says of a layer how it is written; without that, nobody stacks it.
    pub fn describe(&self, content: &str, whiteouts: &str) {
        let record = FormatRecord {
            whiteouts: whiteouts.to_owned(),
            xattrs: true,
            diff_id: diff(content),
            size: 1000,
            entries: 1,
            rows: 1,
            lost: Vec::new(),
            lost_more: 0,
            owners: true,
            settled_on: None,
            implicit: Vec::new(),
        };
        self.put(&OwnedPath::LayerFormat(layer(content)), &record.to_bytes());
    }

    fn link(&self, from: &OwnedPath, to: &OwnedPath) {
        let path = self.path(from);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(Layout::new().link(from, to), path).unwrap();
    }

    /// Publishes an image as the publisher does.
    pub fn publish(&self, image: &Image) {
        let name = PublicName::parse(image.name).unwrap();
        let platform = Platform::parse(image.platform).unwrap();
        let place: Option<PlatformDirectory> = image.elsewhere.then(|| platform.directory());
        let (manifest, config) = (image.manifest_bytes(), image.config_bytes());
        let mut below = None;
        for content in &image.layers {
            fs::create_dir_all(self.path(&OwnedPath::LayerContent(layer(content)))).unwrap();
            let record = LayersJson {
                created: "2026-01-01T00:00:00Z".into(),
                layer: layer(content),
                compressed_size: None,
                diff_id: diff(content),
                size: 1000,
            };
            self.put(&OwnedPath::LayerRecord(layer(content)), &record.to_bytes());
            let chain = ChainId::on(below, diff(content));
            for key in [IndexKey::DiffId(diff(content)), IndexKey::ChainId(chain)] {
                self.link(&OwnedPath::Index(key), &OwnedPath::Layer(layer(content)));
            }
            below = Some(chain);
        }
        fs::create_dir_all(self.path(&OwnedPath::Flat(image.id()))).unwrap();
        let file = |file| OwnedPath::ImageFile { platform: place.clone(), name: name.clone(), file };
        self.put(&file(ImageFile::RawManifest), &manifest);
        self.put(&file(ImageFile::Config), &config);
        let status = StatusRecord {
            flat: true,
            signed_by: Vec::new(),
            image: format!("https://{name}"),
            digest: image.digest(),
            index: image.index.as_ref().map(|index| ManifestDigest::of(index)),
            config: image.id(),
            platform,
            wished: None,
            published: "2026-11-21T20:00:00Z".into(),
            revision: 1,
            generator: "test".into(),
            startup: None,
            bundles: false,
        };
        self.put(&file(ImageFile::Status), &status.to_bytes());
        self.put(&OwnedPath::Index(IndexKey::Config(image.id())), &config);
        self.put(&OwnedPath::Index(IndexKey::Manifest(image.digest())), &manifest);
        if let Some(index) = &image.index {
            self.put(&OwnedPath::Index(IndexKey::Manifest(ManifestDigest::of(index))), index);
        }
        self.link(&OwnedPath::Public { platform: place, name }, &OwnedPath::Flat(image.id()));
    }
}

/// Every path below a directory with what is there, for comparisons.
pub fn tree(root: &Path) -> Vec<(String, String)> {
    fn walk(root: &Path, at: &Path, found: &mut Vec<(String, String)>) {
        let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let kind = path.symlink_metadata().unwrap().file_type();
            if kind.is_dir() {
                found.push((name, "directory".into()));
                walk(root, &path, found);
            } else if kind.is_symlink() {
                found.push((name, format!("→ {}", fs::read_link(&path).unwrap().display())));
            } else {
                found.push((name, format!("{:?}", Digest::of(&fs::read(&path).unwrap()))));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, root, &mut found);
    found
}
