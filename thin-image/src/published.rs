//! What is published under a name, read from a mounted repository.
//!
//! Everything blocks: a repository that hangs, hangs the caller. What is read there is input from outside: no link is followed but
//! those of the index, which are parsed and not followed either; documents are bounded, and have the digest they are asked by.
//!
//! A repository may move to its next revision between two reads, so records that don't belong together are read once more.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use image::digest::{ChainId, DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use image::layout::{FormatRecord, ImageFile, IndexKey, Layout, OwnedPath, StatusRecord};
use image::manifest::{Config, Document, Layer, MAX_DOCUMENT, Manifest, ManifestError};
use image::platform::{Platform, PlatformDirectory};
use image::reference::PublicName;
use image::thin::is_repository_name;
use mounted::is_absence;
use nix::fcntl::OFlag;

use crate::names::Wanted;

/// Most platforms of an image that are looked for.
const MAX_PLATFORMS: usize = 64;

/// Why a repository can't be used, or has no such image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// No name that a repository can have.
    #[error("{0:?} is not the name of a repository; write for instance unpacked.cern.ch")]
    Name(String),
    /// Nothing is mounted.
    #[error("repository {repository} is not mounted at {mountpoint}: {why}")]
    NotMounted {
        /// its name
        repository: String,
        /// where it should be
        mountpoint: PathBuf,
        /// what the system says
        why: String,
    },
    /// It can't be read.
    #[error("repository {repository} can't be read: {path}: {source}")]
    Io {
        /// its name
        repository: String,
        /// which path
        path: String,
        /// what the system says
        source: io::Error,
    },
    /// There is no such image.
    #[error("{image} is not published in {repository}")]
    Absent {
        /// as it was asked for
        image: String,
        /// where
        repository: String,
    },
    /// There is, but not with this digest.
    #[error("{image} is not what {repository} has under this name: that is {found}")]
    OtherDigest {
        /// as it was asked for
        image: String,
        /// where
        repository: String,
        /// digest of what is there
        found: ManifestDigest,
    },
    /// The existing tool published it.
    #[error(
        "{image} was published in {repository} without its config, by another tool; publish it again with cvmfs-publisher, which takes the layers as they are"
    )]
    Incomplete {
        /// which image
        image: String,
        /// where
        repository: String,
    },
    /// Its records contradict each other.
    #[error("the records of {image} in {repository} are damaged: {why}")]
    Damaged {
        /// which image
        image: String,
        /// where
        repository: String,
        /// what is wrong
        why: String,
    },
    /// Its documents are no image.
    #[error("{image} in {repository}: {source}")]
    Document {
        /// which image
        image: String,
        /// where
        repository: String,
        /// what is wrong
        source: ManifestError,
    },
}

impl PublishedError {
    /// Is it about the repository itself, so that every other image has the same trouble?
    pub fn is_repository(&self) -> bool {
        matches!(self, Self::Name(_) | Self::NotMounted { .. } | Self::Io { .. })
    }
}

/// An image of one platform, as published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// its public name
    pub name: PublicName,
    /// below which directory of `.multiarch`; nothing: the default platform
    pub place: Option<PlatformDirectory>,
    /// whole name of its source
    pub origin: String,
    /// the raw manifest
    pub manifest_bytes: Vec<u8>,
    /// the manifest
    pub manifest: Manifest,
    /// its digest
    pub digest: ManifestDigest,
    /// the raw config
    pub config_bytes: Vec<u8>,
    /// the config
    pub config: Config,
    /// when it was published, as recorded
    pub published: Option<String>,
    /// digest of the index that the name led to at the registry, as recorded
    pub index: Option<ManifestDigest>,
}

impl Published {
    /// Its layers, bottom first.
    pub fn layers(&self) -> Result<Vec<Layer>, ManifestError> {
        self.manifest.layers_with(&self.config)
    }
}

/// A repository that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: String,
    mountpoint: PathBuf,
    layout: Layout,
}

impl Repository {
    /// A repository at this directory; nothing is read yet.
    pub fn new(name: &str, mountpoint: &Path) -> Result<Self, PublishedError> {
        if !is_repository_name(name) {
            return Err(PublishedError::Name(name.chars().take(100).collect()));
        }
        Ok(Self { name: name.to_owned(), mountpoint: mountpoint.to_owned(), layout: Layout::new() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Tells a repository without an image from a directory on which nothing is mounted.
    pub fn check(&self) -> Result<(), PublishedError> {
        let not_mounted = |why: String| PublishedError::NotMounted {
            repository: self.name.clone(),
            mountpoint: self.mountpoint.clone(),
            why,
        };
        let mut entries = std::fs::read_dir(&self.mountpoint).map_err(|error| not_mounted(error.to_string()))?;
        match entries.next() {
            Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(not_mounted(error.to_string())),
            None => Err(not_mounted("the directory is empty".into())),
        }
    }

    /// The path of something, on this machine.
    pub fn path(&self, of: &OwnedPath) -> PathBuf {
        self.mountpoint.join(self.layout.print(of))
    }

    fn io(&self, path: &str) -> impl FnOnce(io::Error) -> PublishedError {
        let (repository, path) = (self.name.clone(), path.to_owned());
        move |source| PublishedError::Io { repository, path, source }
    }

    /// A file of at most `limit` bytes; nothing if it is absent or longer.
    fn read(&self, of: &OwnedPath, limit: usize) -> Result<Option<Vec<u8>>, PublishedError> {
        self.read_path(&self.layout.print(of), limit)
    }

    fn read_path(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, PublishedError> {
        let read = || {
            let Some(file) = open(&self.mountpoint, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else {
                return Ok(None);
            };
            if !file.metadata()?.is_file() {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
            Ok(Some(bytes).filter(|bytes| bytes.len() <= limit))
        };
        read().map_err(self.io(path))
    }

    /// Is there a directory, and no link to one?
    pub fn is_directory(&self, of: &OwnedPath) -> Result<bool, PublishedError> {
        self.is_directory_path(&self.layout.print(of))
    }

    fn is_directory_path(&self, path: &str) -> Result<bool, PublishedError> {
        let found = open(&self.mountpoint, path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(self.io(path))?;
        Ok(found.is_some())
    }

    /// Is there the complete root of this image?
    pub fn has_flat(&self, image: ImageId) -> Result<bool, PublishedError> {
        self.is_directory(&OwnedPath::Flat(image))
    }

    /// Is there the content of this layer?
    pub fn has_layer(&self, layer: LayerDigest) -> Result<bool, PublishedError> {
        self.is_directory(&OwnedPath::LayerContent(layer))
    }

    /// The tar of a layer that says what it deletes in the way of overlayfs. Other tools don't, and don't say how.
    pub fn for_overlay(&self, layer: LayerDigest) -> Result<Option<DiffId>, PublishedError> {
        let bytes = self.read(&OwnedPath::LayerFormat(layer), MAX_DOCUMENT)?;
        let record = bytes.and_then(|bytes| FormatRecord::parse(&bytes).ok());
        Ok(record.filter(|record| record.whiteouts == FormatRecord::OVERLAY).map(|record| record.diff_id))
    }

    /// The published layer that stands for this one: itself, else one with the same content. Nothing: there is none.
    pub fn layer(&self, layer: &Layer) -> Result<Option<LayerDigest>, PublishedError> {
        if self.has_layer(layer.descriptor.digest)? {
            return Ok(Some(layer.descriptor.digest));
        }
        match self.linked(&OwnedPath::Index(IndexKey::DiffId(layer.diff_id)))? {
            Some(OwnedPath::Layer(other)) if self.has_layer(other)? => Ok(Some(other)),
            _ => Ok(None),
        }
    }

    /// What a link of ours leads to; nothing if there is none.
    fn linked(&self, from: &OwnedPath) -> Result<Option<OwnedPath>, PublishedError> {
        let path = self.layout.print(from);
        let target = match std::fs::read_link(self.mountpoint.join(&path)) {
            Ok(target) => target,
            Err(error) if is_absence(&error) || error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(None),
            Err(error) => return Err(self.io(&path)(error)),
        };
        Ok(target.to_str().and_then(|target| self.layout.parse_link(from, target)))
    }

    /// Where the content of a layer is as overlayfs stacks it on the layers that make this chain ID, and the size of its tar. Nothing: it
    /// is not published, or not in this form.
    pub fn layer_on(&self, chain: ChainId, layer: &Layer) -> Result<Option<(PathBuf, u64)>, PublishedError> {
        let from = OwnedPath::Index(IndexKey::ChainId(chain));
        let Some(directory) = self.linked(&from)? else { return Ok(None) };
        let within = |directory: &str, rest: &str| format!("{directory}/{rest}");
        let directory = match directory {
            found @ (OwnedPath::Layer(_) | OwnedPath::LayerOverlay(_)) => self.layout.print(&found),
            _ => return Ok(None),
        };
        let record = self.read_path(&within(&directory, ".metadata/format.json"), MAX_DOCUMENT)?;
        let Some(record) = record.and_then(|bytes| FormatRecord::parse(&bytes).ok()) else { return Ok(None) };
        let is_usable = record.whiteouts == FormatRecord::OVERLAY && record.owners && record.diff_id == layer.diff_id;
        let content = within(&directory, "layerfs");
        if !is_usable || !self.is_directory_path(&content)? {
            return Ok(None);
        }
        Ok(Some((self.mountpoint.join(content), record.size)))
    }

    /// The raw manifest or index with this digest.
    pub fn document(&self, digest: ManifestDigest) -> Result<Option<Vec<u8>>, PublishedError> {
        self.addressed(IndexKey::Manifest(digest), digest.digest())
    }

    /// The raw config with this digest.
    pub fn config(&self, digest: ImageId) -> Result<Option<Vec<u8>>, PublishedError> {
        self.addressed(IndexKey::Config(digest), digest.digest())
    }

    fn addressed(&self, key: IndexKey, digest: Digest) -> Result<Option<Vec<u8>>, PublishedError> {
        let found = self.read(&OwnedPath::Index(key), MAX_DOCUMENT)?;
        match found {
            Some(bytes) if Digest::of(&bytes) != digest => Err(PublishedError::Damaged {
                image: digest.to_string(),
                repository: self.name.clone(),
                why: "its content has another digest".into(),
            }),
            found => Ok(found),
        }
    }

    /// The image of one platform; nothing if there is none.
    pub fn image(
        &self,
        name: &PublicName,
        place: Option<&PlatformDirectory>,
    ) -> Result<Option<Published>, PublishedError> {
        match self.image_once(name, place) {
            Err(PublishedError::Damaged { .. }) => self.image_once(name, place),
            found => found,
        }
    }

    fn image_once(
        &self,
        name: &PublicName,
        place: Option<&PlatformDirectory>,
    ) -> Result<Option<Published>, PublishedError> {
        let file = |file| OwnedPath::ImageFile { platform: place.cloned(), name: name.clone(), file };
        let (image, repository) = (|| name.to_string(), || self.name.clone());
        let Some(manifest_bytes) = self.read(&file(ImageFile::RawManifest), MAX_DOCUMENT)? else {
            return match self.read(&file(ImageFile::Manifest), MAX_DOCUMENT)? {
                Some(_) => Err(PublishedError::Incomplete { image: image(), repository: repository() }),
                None => Ok(None),
            };
        };
        let document = |source| PublishedError::Document { image: image(), repository: repository(), source };
        let damaged =
            |why: &str| PublishedError::Damaged { image: image(), repository: repository(), why: why.to_owned() };
        let Document::Manifest(manifest) = Document::parse(&manifest_bytes, None).map_err(document)? else {
            return Err(damaged("an index stands in the place of its manifest"));
        };
        let config_bytes = match self.read(&file(ImageFile::Config), MAX_DOCUMENT)? {
            Some(bytes) => bytes,
            None => match self.config(manifest.config)? {
                Some(bytes) => bytes,
                None => return Err(PublishedError::Incomplete { image: image(), repository: repository() }),
            },
        };
        if ImageId::of(&config_bytes) != manifest.config {
            return Err(damaged("the config is not the one that its manifest names"));
        }
        let digest = ManifestDigest::of(&manifest_bytes);
        let status = self.read(&file(ImageFile::Status), MAX_DOCUMENT)?;
        let status = status.and_then(|bytes| StatusRecord::parse(&bytes).ok()).filter(|s| s.digest == digest);
        Ok(Some(Published {
            name: name.clone(),
            place: place.cloned(),
            origin: status.as_ref().map_or_else(image, |status| status.image.clone()),
            config: Config::parse(&config_bytes).map_err(document)?,
            manifest,
            digest,
            manifest_bytes,
            config_bytes,
            index: status.as_ref().and_then(|status| status.index),
            published: status.map(|status| status.published),
        }))
    }

    /// The images of all platforms, that of the default one first; none if the name is not published.
    pub fn platforms(&self, name: &PublicName) -> Result<Vec<Published>, PublishedError> {
        let mut images: Vec<Published> = self.image(name, None)?.into_iter().collect();
        let mut places = Vec::new();
        match std::fs::read_dir(self.mountpoint.join(".metadata/.multiarch")) {
            Ok(entries) => {
                for entry in entries.take(MAX_PLATFORMS) {
                    let entry = entry.map_err(self.io(".metadata/.multiarch"))?;
                    places.extend(entry.file_name().to_str().and_then(PlatformDirectory::parse));
                }
            }
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(self.io(".metadata/.multiarch")(error)),
        }
        places.sort();
        for place in places {
            let found = self.image(name, Some(&place))?;
            images.extend(found.filter(|found| images.iter().all(|other| other.digest != found.digest)));
        }
        Ok(images)
    }

    /// All platforms of a wanted image, at least one.
    pub fn find(&self, wanted: &Wanted) -> Result<Vec<Published>, PublishedError> {
        self.check()?;
        for name in &wanted.names {
            let images = match &wanted.place {
                Some(place) => self.image(name, Some(place))?.into_iter().collect(),
                None => self.platforms(name)?,
            };
            let Some(first) = images.first() else { continue };
            let found = first.digest;
            return match wanted.digest {
                None => Ok(images),
                Some(digest) => {
                    let images = self.with_digest(images, digest)?;
                    if images.is_empty() {
                        let (image, repository) = (wanted.text.clone(), self.name.clone());
                        return Err(PublishedError::OtherDigest { image, repository, found });
                    }
                    Ok(images)
                }
            };
        }
        Err(PublishedError::Absent { image: wanted.text.clone(), repository: self.name.clone() })
    }

    /// Those that have this digest or stand in the index with it.
    fn with_digest(&self, images: Vec<Published>, digest: ManifestDigest) -> Result<Vec<Published>, PublishedError> {
        if images.iter().any(|image| image.digest == digest) {
            return Ok(images.into_iter().filter(|image| image.digest == digest).collect());
        }
        match self.document(digest)?.map(|bytes| Document::parse(&bytes, None)) {
            Some(Ok(Document::Index(index))) => {
                let listed = |image: &Published| index.entries.iter().any(|entry| entry.digest == image.digest);
                Ok(images.into_iter().filter(listed).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Tags below `REGISTRY/REPOSITORY`, sorted, at most `limit` after `last`, and whether there are more. Nothing: there is no such
    /// image repository.
    pub fn tags(
        &self,
        repository: &str,
        last: &str,
        limit: usize,
    ) -> Result<Option<(Vec<String>, bool)>, PublishedError> {
        // Only the shape of it counts here.
        let Ok(probe) = PublicName::parse(&format!("{repository}:x")) else { return Ok(None) };
        let directory = probe.directory();
        let entries = match open(&self.mountpoint, non_empty(directory), OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(Some(_)) => std::fs::read_dir(self.mountpoint.join(directory)).map_err(self.io(directory))?,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.io(directory)(error)),
        };
        let mut tags = std::collections::BTreeSet::new();
        let (mut any, mut more) = (false, false);
        for entry in entries {
            let entry = entry.map_err(self.io(directory))?;
            let path = if directory.is_empty() { String::new() } else { format!("{directory}/") };
            let name = entry.file_name().to_str().and_then(|name| PublicName::parse(&format!("{path}{name}")).ok());
            let Some(name) = name.filter(|name| name.repository() == repository) else { continue };
            any = true;
            // What is published by its digest alone has no tag.
            if name.reference().contains(':') || name.reference() <= last {
                continue;
            }
            tags.insert(name.reference().to_owned());
            if tags.len() > limit {
                tags.pop_last();
                more = true;
            }
        }
        Ok(any.then(|| (tags.into_iter().collect(), more)))
    }

    /// Sum of the sizes of the layers' tars in bytes, as far as records tell.
    pub fn unpacked_size(&self, image: &Published) -> Result<u64, PublishedError> {
        let mut sum = 0_u64;
        for layer in &image.manifest.layers {
            let record = self.read(&OwnedPath::LayerRecord(layer.digest), MAX_DOCUMENT)?;
            let record = record.and_then(|bytes| image::layout::LayersJson::parse(&bytes).ok());
            sum = sum.saturating_add(record.map_or(0, |record| record.size));
        }
        Ok(sum)
    }
}

/// The image that a machine runs: the first one for exactly this platform, else the first that it can run.
pub fn choose(images: Vec<Published>, wanted: &Platform) -> Option<Published> {
    let exact = images.iter().position(|image| image.config.platform.as_ref() == Some(wanted));
    let runs = |image: &Published| image.config.platform.as_ref().is_none_or(|platform| wanted.runs(platform));
    let at = exact.or_else(|| images.iter().position(runs))?;
    images.into_iter().nth(at)
}

/// `openat2` wants a path also for the directory itself.
fn non_empty(directory: &str) -> &str {
    if directory.is_empty() { "." } else { directory }
}

/// Opens what is below a repository; nothing if that, or the repository, is absent.
fn open(repository: &Path, path: &str, flags: OFlag) -> io::Result<Option<File>> {
    match mounted::open(repository, path, flags) {
        Err(error) if is_absence(&error) => Ok(None),
        answer => answer,
    }
}
