//! An additional image store for Podman, CRI-O and Buildah, made on this node for just the images that it wants.
//!
//! The form is that of [`image::podman`], with `.thin-image.lock` of ours beside it; a directory without that file is none of ours. An
//! image is layered if all its layers are published as overlayfs stacks them: then a pull of its name finds all its layers, and containers
//! see just what the registry has. Otherwise it is flat, and has what was added to its flat root as well.
//!
//! Invariants
//! - Programs that have the store open see a list of layers and a list of images, each the old or the new one. What a list names is there:
//!   directories come before the lists and go after them, layers come before images and go after them.
//! - The 64 bytes in a lock file change with each change of the list beside it, and only then. Without that, CRI-O would never look again.
//! - One of us at a time changes a store; who is killed leaves a store as above, and the next one clears up.

mod lock;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::digest::ChainId;
use image::layout::OwnedPath;
use image::podman::{self, ImageEntry, LayerEntry, LayerId, Listed, Placed, StoreDocument, StoreLayer, StorePath};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use crate::files::{self, FileError};
use crate::published::{Published, PublishedError, Repository};
use lock::Lock;

/// Our own lock, by which a directory is known as ours.
const MARKER: &str = ".thin-image.lock";
/// How long to wait for others.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a store could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Something else is there.
    #[error("{0} has something in it, and is no store of ours; nothing was changed (name another directory)")]
    Foreign(PathBuf),
    /// A store of another program.
    #[error("{path} can't be read: {why}; remove the directory and load the images again")]
    Damaged {
        /// which file
        path: PathBuf,
        /// why
        why: String,
    },
    /// Somebody else is at it.
    #[error("{path} is held by another process for {} s", PATIENCE.as_secs())]
    Locked {
        /// which lock
        path: PathBuf,
    },
    /// The image has no complete root there.
    #[error("{image} has no flat root in {repository}; publish it with one")]
    NoFlat {
        /// which image
        image: String,
        /// where
        repository: String,
    },
    /// A link has to be absolute and readable for programs in Go.
    #[error("{0} is not an absolute path in UTF-8; containers/storage can't follow it")]
    Mountpoint(PathBuf),
    /// The repository.
    #[error(transparent)]
    Published(#[from] PublishedError),
    /// The system.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// it is new
    Added,
    /// its name led to another image, or its documents are others
    Updated,
    /// it was there
    Unchanged,
    /// it is gone
    Removed,
    /// there was no such name
    Absent,
}

/// An image to be put into a store.
#[derive(Debug, Clone)]
pub struct Wish {
    /// as published
    pub image: Published,
    /// where
    pub repository: Repository,
    /// the index that it was found by, if one is known
    pub index: Option<Vec<u8>>,
    /// take its flat root even if it could be layered
    pub flat: bool,
}

impl Wish {
    /// The name that engines know.
    pub fn name(&self) -> String {
        podman::engine_name(&self.image.name)
    }

    fn documents(&self) -> Vec<StoreDocument> {
        let image = &self.image;
        let index = self.index.as_deref();
        podman::documents(&image.manifest_bytes, image.manifest.config, &image.config_bytes, index)
    }

    fn created(&self) -> String {
        podman::created([self.image.config.created.as_deref(), self.image.published.as_deref()])
    }

    /// Its layers in the store, the lowest first.
    fn layers(&self) -> Result<Vec<StoreLayer>, StoreError> {
        match self.stack()?.filter(|_| !self.flat) {
            Some(stack) => Ok(stack),
            None => Ok(vec![self.flat_layer()?]),
        }
    }

    /// Those of the registry, if all of them are published as overlayfs wants them on this stack.
    fn stack(&self) -> Result<Option<Vec<StoreLayer>>, StoreError> {
        let (mut layers, mut below) = (Vec::new(), None);
        for layer in self.image.layers().unwrap_or_default() {
            let chain = ChainId::on(below, layer.diff_id);
            below = Some(chain);
            let Some((content, size)) = self.repository.layer_on(chain, &layer)? else { return Ok(None) };
            layers.push((layer, size, link_target(content)?));
        }
        Ok(Some(StoreLayer::stack(&layers, &self.created())).filter(|stack| !stack.is_empty()))
    }

    fn flat_layer(&self) -> Result<StoreLayer, StoreError> {
        let (image, repository) = (&self.image, &self.repository);
        let id = image.manifest.config;
        if !repository.has_flat(id)? {
            let (image, repository) = (image.name.to_string(), repository.name().to_owned());
            return Err(StoreError::NoFlat { image, repository });
        }
        let target = link_target(repository.path(&OwnedPath::Flat(id)))?;
        Ok(StoreLayer::flat(id, &self.created(), repository.unpacked_size(image)?, target))
    }
}

/// A link has to be absolute, and text.
fn link_target(path: PathBuf) -> Result<String, StoreError> {
    match path.to_str().filter(|_| path.is_absolute()) {
        Some(text) => Ok(text.to_owned()),
        None => Err(StoreError::Mountpoint(path)),
    }
}

/// A wish with what it takes in the store.
struct Ready {
    image: String,
    documents: Vec<StoreDocument>,
    entry: ImageEntry,
}

/// A store that is ours to change until it is dropped.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens a store, or makes an empty one, and clears up after killed processes.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(FileError::of("create", directory))?;
        let marker = directory.join(MARKER);
        let is_empty = || {
            let mut entries = std::fs::read_dir(directory).map_err(FileError::of("read", directory))?;
            Ok::<_, StoreError>(entries.next().is_none())
        };
        // Another process may make it while we look: the marker comes first.
        if !marker.exists() && !is_empty()? && !marker.exists() {
            return Err(StoreError::Foreign(directory.to_owned()));
        }
        let file = OpenOptions::new().create(true).append(true).open(&marker);
        let file = file.map_err(FileError::of("open", &marker))?;
        let store = Self { directory: directory.to_owned(), _lock: wait_for(file, &marker)? };
        store.prepare()?;
        Ok(store)
    }

    fn at(&self, path: &StorePath) -> PathBuf {
        self.directory.join(path.print())
    }

    fn prepare(&self) -> Result<(), StoreError> {
        for path in ["overlay/l", "overlay-images", "overlay-layers"] {
            let path = self.directory.join(path);
            std::fs::create_dir_all(&path).map_err(FileError::of("create", &path))?;
            files::sweep(&path)?;
        }
        files::sweep(&self.directory.join("overlay"))?;
        for (list, lock) in [(StorePath::Layers, StorePath::LayersLock), (StorePath::Images, StorePath::ImagesLock)] {
            Lock::ensure(&self.at(&lock))?;
            if !self.at(&list).exists() {
                files::replace(&self.at(&list), b"[]")?;
            }
        }
        Ok(())
    }

    fn read<T: serde::de::DeserializeOwned>(&self, list: &StorePath) -> Result<Vec<T>, StoreError> {
        let path = self.at(list);
        let bytes = std::fs::read(&path).map_err(FileError::of("read", &path))?;
        podman::read(&bytes).map_err(|error| StoreError::Damaged { path, why: error.to_string() })
    }

    /// The images.
    fn images(&self) -> Result<Vec<Listed>, StoreError> {
        self.read(&StorePath::Images)
    }

    /// Names and IDs of the images in the store, sorted.
    pub fn list(&self) -> Result<Vec<(String, String)>, StoreError> {
        let images = self.images()?;
        let names = images.iter().flat_map(|image| image.names().into_iter().map(|name| (name, image.id().to_owned())));
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Puts images into the store, or brings them up to date. Either all of them or none.
    pub fn add(&self, wishes: &[Wish]) -> Result<Vec<Outcome>, StoreError> {
        let mut layers: Vec<Listed<LayerEntry>> = self.read(&StorePath::Layers)?;
        let mut images = self.images()?;
        let (mut outcomes, mut ready) = (Vec::new(), Vec::new());
        for wish in wishes {
            let stack = wish.layers()?;
            let Some(top) = stack.last() else { continue };
            let (id, documents) = (wish.image.manifest.config, wish.documents());
            let entry = ImageEntry::new(id, wish.image.digest, top.id, &wish.created(), &documents);
            for layer in stack {
                self.put_layer(&layer)?;
                // A layer that two images share keeps the time of the first.
                let shared = layer.entry.parent.is_some() || layer.id != LayerId::flat(id);
                if !(shared && layers.iter().any(|known| known.id() == layer.entry.id)) {
                    layers.retain(|known| known.id() != layer.entry.id);
                    layers.push(Listed::Ours(layer.entry));
                }
            }
            ready.push(Ready { image: id.hex(), documents, entry: entry.clone() });
            outcomes.push(match podman::place(&mut images, &wish.name(), entry) {
                Placed::Added => Outcome::Added,
                Placed::Updated => Outcome::Updated,
                Placed::Unchanged => Outcome::Unchanged,
            });
        }
        self.commit(layers, images, &ready)?;
        Ok(outcomes)
    }

    /// Takes names out of the store, and with its last name an image. Running containers of it lose their files.
    pub fn remove(&self, names: &[Vec<String>]) -> Result<Vec<Outcome>, StoreError> {
        let mut images = self.images()?;
        let mut outcomes = Vec::new();
        for spellings in names {
            let taken = spellings.iter().filter(|name| podman::take_name(&mut images, name)).count();
            outcomes.push(if taken > 0 { Outcome::Removed } else { Outcome::Absent });
        }
        self.commit(self.read(&StorePath::Layers)?, images, &[])?;
        Ok(outcomes)
    }

    /// Makes these the lists of the store. `layers` still has those of images that go.
    fn commit(
        &self,
        mut layers: Vec<Listed<LayerEntry>>,
        mut images: Vec<Listed>,
        ready: &[Ready],
    ) -> Result<(), StoreError> {
        layers.sort_by(|a, b| a.id().cmp(b.id()));
        self.write(&StorePath::Layers, &StorePath::LayersLock, &podman::print(&layers))?;
        podman::settle(&mut images, &mut layers);
        self.write_images(&images, ready)?;
        self.write(&StorePath::Layers, &StorePath::LayersLock, &podman::print(&layers))?;
        let used: BTreeSet<&str> = layers.iter().map(Listed::<LayerEntry>::id).collect();
        self.clear("overlay", &used, &["l"])?;
        let ids = images.iter().map(Listed::<ImageEntry>::id).collect();
        self.clear("overlay-images", &ids, &["images.json", "images.lock"])?;
        self.clear_short_names()
    }

    fn write(&self, list: &StorePath, lock: &StorePath, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has(list, bytes) {
            return Ok(());
        }
        let lock = Lock::take(&self.at(lock), PATIENCE)?;
        files::replace(&self.at(list), bytes)?;
        Ok(lock.touch()?)
    }

    fn has(&self, path: &StorePath, bytes: &[u8]) -> bool {
        std::fs::read(self.at(path)).is_ok_and(|found| found == bytes)
    }

    /// The list of images with their documents. An image whose documents change is out of the list meanwhile, so that nobody reads
    /// the one with the other's digest.
    fn write_images(&self, images: &[Listed], ready: &[Ready]) -> Result<(), StoreError> {
        // Of two names for one image with different documents, the later one counts, as in the list.
        let last: BTreeMap<&str, &Ready> = ready.iter().map(|ready| (ready.image.as_str(), ready)).collect();
        let stale: Vec<&Ready> = last.into_values().filter(|ready| !self.has_documents(ready)).collect();
        let bytes = podman::print(images);
        if stale.is_empty() {
            return self.write(&StorePath::Images, &StorePath::ImagesLock, &bytes);
        }
        let list = self.at(&StorePath::Images);
        let lock = Lock::take(&self.at(&StorePath::ImagesLock), PATIENCE)?;
        let mut meanwhile = self.images()?;
        let before = meanwhile.len();
        meanwhile.retain(|image| stale.iter().all(|ready| ready.image != image.id()));
        if meanwhile.len() != before {
            files::replace(&list, &podman::print(&meanwhile))?;
            lock.touch()?;
        }
        for ready in stale {
            let directory = self.directory.join("overlay-images").join(&ready.image);
            remove_all(&directory)?;
            files::new_directory(&directory, |at| {
                ready
                    .documents
                    .iter()
                    .try_for_each(|(name, bytes)| files::replace(&at.join(podman::document_file(name)), bytes))
            })?;
        }
        files::replace(&list, &bytes)?;
        Ok(lock.touch()?)
    }

    fn has_documents(&self, ready: &Ready) -> bool {
        let directory = self.directory.join("overlay-images").join(&ready.entry.id);
        ready.documents.iter().all(|(name, bytes)| {
            std::fs::read(directory.join(podman::document_file(name))).is_ok_and(|found| found == *bytes)
        })
    }

    /// The directory of a layer and its short name.
    fn put_layer(&self, layer: &StoreLayer) -> Result<(), StoreError> {
        let short = layer.id.short();
        let link = short.as_str();
        let (directory, target) = (self.at(&StorePath::Layer(layer.id)), Path::new(&layer.target));
        let lower = layer.lower.as_deref();
        let is_right = std::fs::read(directory.join("link")).is_ok_and(|found| found == link.as_bytes())
            && std::fs::read(directory.join("lower")).ok().as_deref() == lower.map(str::as_bytes);
        if is_right {
            if std::fs::read_link(directory.join("diff")).ok().as_deref() != Some(target) {
                files::replace_link(&directory.join("diff"), target)?;
            }
        } else {
            remove_all(&directory)?;
            files::new_directory(&directory, |at| {
                files::replace_link(&at.join("diff"), target)?;
                if let Some(lower) = lower {
                    files::replace(&at.join("lower"), lower.as_bytes())?;
                }
                files::replace(&at.join("link"), link.as_bytes())
            })?;
        }
        let short = self.at(&StorePath::Short(short.clone()));
        let to = Path::new("..").join(layer.id.hex()).join("diff");
        if std::fs::read_link(&short).ok().as_deref() != Some(&to) {
            files::replace_link(&short, &to)?;
        }
        Ok(())
    }

    /// Removes short names of layers that are gone.
    fn clear_short_names(&self) -> Result<(), StoreError> {
        let directory = self.directory.join("overlay/l");
        for entry in std::fs::read_dir(&directory).map_err(FileError::of("read", &directory))?.flatten() {
            if !leads_to_a_layer(&directory, &entry.path()) {
                remove_all(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes what no list names.
    fn clear(&self, directory: &str, named: &BTreeSet<&str>, others: &[&str]) -> Result<(), StoreError> {
        let directory = self.directory.join(directory);
        for entry in std::fs::read_dir(&directory).map_err(FileError::of("read", &directory))?.flatten() {
            let name = entry.file_name();
            let is_kept = name.to_str().is_some_and(|name| named.contains(name) || others.contains(&name));
            if !is_kept {
                remove_all(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether a short name leads to a layer of the store, wherever that leads.
fn leads_to_a_layer(directory: &Path, short: &Path) -> bool {
    std::fs::read_link(short).is_ok_and(|to| directory.join(to).symlink_metadata().is_ok())
}

fn wait_for(mut file: File, path: &Path) -> Result<Flock<File>, StoreError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Err(StoreError::Locked { path: path.to_owned() });
            }
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(FileError::of("lock", path)(errno.into()).into()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a file, a link, or a directory with everything in it; absent is fine. Links are not followed.
fn remove_all(path: &Path) -> Result<(), FileError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(FileError::of("remove", path)),
    }
}
