//! An additional image store for Podman, CRI-O and Buildah, made on this node for just the images that it wants.
//!
//! ```text
//! overlay/LAYER/diff           → /cvmfs/REPOSITORY/.flat/xx/HEX     absolute: containers/storage refuses relative ones
//! overlay/LAYER/link           26 characters; overlay/l/THEM → ../LAYER/diff
//! overlay-layers/layers.json   layers.lock
//! overlay-images/IMAGE/        manifest, config and what else containers/storage calls big data
//! overlay-images/images.json   images.lock
//! .thin-image.lock             ours; a directory without it is none of ours
//! ```
//! An image has one layer, its flat root, whatever its number of layers in the registry: so it needs no whiteouts, and its containers
//! have one lower directory. The layer's ID is made from the image ID.
//!
//! Invariants
//! - Programs that have the store open see a list of layers and a list of images, each the old or the new one. What a list names is there:
//!   directories come before the lists and go after them, layers come before images and go after them.
//! - The 64 bytes in a lock file change with each change of the list beside it, and only then. Without that, CRI-O would never look again.
//! - One of us at a time changes a store; who is killed leaves a store as above, and the next one clears up.

mod lock;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::digest::{Digest, ImageId, ManifestDigest};
use image::layout::OwnedPath;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use crate::files::{self, FileError};
use crate::names::engine_name;
use crate::published::{Published, PublishedError, Repository};
use lock::Lock;
use records::{ImageEntry, LayerEntry, big_data_file};

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
}

impl Wish {
    /// The name that engines know.
    pub fn name(&self) -> String {
        engine_name(&self.image.name)
    }

    fn id(&self) -> String {
        self.image.manifest.config.hex()
    }

    /// Documents by the names of containers/storage.
    fn big_data(&self) -> Vec<(String, &[u8])> {
        let image = &self.image;
        let manifest = image.manifest_bytes.as_slice();
        let index =
            self.index.iter().map(|index| (format!("manifest-{}", ManifestDigest::of(index)), index.as_slice()));
        let image = [
            (format!("manifest-{}", image.digest), manifest),
            ("manifest".to_owned(), manifest),
            (image.manifest.config.to_string(), image.config_bytes.as_slice()),
        ];
        index.chain(image).collect()
    }

    fn entry(&self) -> ImageEntry {
        ImageEntry::new(
            self.id(),
            self.image.digest,
            layer_id(self.image.manifest.config),
            self.created(),
            &self.big_data(),
        )
    }

    fn created(&self) -> String {
        records::created([self.image.config.created.as_deref(), self.image.published.as_deref()])
    }
}

/// The layer of an image, as the existing tool names it.
fn layer_id(image: ImageId) -> String {
    Digest::of(format!("cvmfs-flat-layer:{}", image.hex()).as_bytes()).hex()
}

/// The short name of a layer: 26 characters, because all of them have to fit into one page of mount options.
fn link_id(layer: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = Digest::of(format!("link:{layer}").as_bytes());
    let bits = hash.as_bytes().iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let bits: Vec<u8> = bits.take(26 * 5).collect();
    let letter = |five: &[u8]| char::from(LETTERS[five.iter().fold(0, |sum, bit| sum << 1 | usize::from(*bit))]);
    bits.chunks(5).map(letter).collect()
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

    fn at(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        for path in ["overlay/l", "overlay-images", "overlay-layers"] {
            let path = self.at(path);
            std::fs::create_dir_all(&path).map_err(FileError::of("create", &path))?;
            files::sweep(&path)?;
        }
        files::sweep(&self.at("overlay"))?;
        for (list, lock) in [(LAYERS, LAYERS_LOCK), (IMAGES, IMAGES_LOCK)] {
            Lock::ensure(&self.at(lock))?;
            if !self.at(list).exists() {
                files::replace(&self.at(list), b"[]")?;
            }
        }
        Ok(())
    }

    /// The images, by ID.
    fn images(&self) -> Result<Vec<ImageEntry>, StoreError> {
        records::read(&self.at(IMAGES))
    }

    /// Names and IDs of the images in the store, sorted.
    pub fn list(&self) -> Result<Vec<(String, String)>, StoreError> {
        let images = self.images()?;
        let names = images.iter().flat_map(|image| image.names.iter().map(|name| (name.clone(), image.id.clone())));
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Puts images into the store, or brings them up to date. Either all of them or none.
    pub fn add(&self, wishes: &[Wish]) -> Result<Vec<Outcome>, StoreError> {
        let mut layers: Vec<LayerEntry> = records::read(&self.at(LAYERS))?;
        let mut images = self.images()?;
        for wish in wishes {
            self.put_layer(wish)?;
            let id = layer_id(wish.image.manifest.config);
            let entry = LayerEntry::new(id, wish.created(), wish.repository.unpacked_size(&wish.image)?);
            layers.retain(|layer| layer.id != entry.id);
            layers.push(entry);
        }
        let outcomes = wishes.iter().map(|wish| place(&mut images, wish)).collect();
        self.commit(layers, images, wishes)?;
        Ok(outcomes)
    }

    /// Takes names out of the store, and with its last name an image. Running containers of it lose their files.
    pub fn remove(&self, names: &[Vec<String>]) -> Result<Vec<Outcome>, StoreError> {
        let mut images = self.images()?;
        let mut outcomes = Vec::new();
        for spellings in names {
            let mut outcome = Outcome::Absent;
            for image in &mut images {
                let before = image.names.len();
                image.names.retain(|name| !spellings.contains(name));
                if image.names.len() != before {
                    outcome = Outcome::Removed;
                }
            }
            outcomes.push(outcome);
        }
        self.commit(records::read(&self.at(LAYERS))?, images, &[])?;
        Ok(outcomes)
    }

    /// Makes these the lists of the store. `layers` still has those of images that go.
    fn commit(
        &self,
        mut layers: Vec<LayerEntry>,
        mut images: Vec<ImageEntry>,
        wishes: &[Wish],
    ) -> Result<(), StoreError> {
        images.retain(|image| !image.names.is_empty());
        images.sort_by(|a, b| a.id.cmp(&b.id));
        layers.sort_by(|a, b| a.id.cmp(&b.id));
        self.write(LAYERS, LAYERS_LOCK, &records::print(&layers))?;
        self.write_images(&images, wishes)?;
        let used: BTreeSet<&str> = images.iter().map(|image| image.layer.as_str()).collect();
        layers.retain(|layer| used.contains(layer.id.as_str()));
        self.write(LAYERS, LAYERS_LOCK, &records::print(&layers))?;
        self.clear("overlay", &used, &["l"])?;
        let links: BTreeSet<String> = used.iter().map(|layer| link_id(layer)).collect();
        self.clear("overlay/l", &links.iter().map(String::as_str).collect(), &[])?;
        let ids = images.iter().map(|image| image.id.as_str()).collect();
        self.clear("overlay-images", &ids, &["images.json", "images.lock"])
    }

    fn write(&self, list: &str, lock: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if self.has(list, bytes) {
            return Ok(());
        }
        let lock = Lock::take(&self.at(lock), PATIENCE)?;
        files::replace(&self.at(list), bytes)?;
        Ok(lock.touch()?)
    }

    fn has(&self, path: &str, bytes: &[u8]) -> bool {
        std::fs::read(self.at(path)).is_ok_and(|found| found == bytes)
    }

    /// The list of images with their documents. An image whose documents change is out of the list meanwhile, so that nobody reads
    /// the one with the other's digest.
    fn write_images(&self, images: &[ImageEntry], wishes: &[Wish]) -> Result<(), StoreError> {
        // Of two names for one image with different documents, the later one counts, as in the list.
        let last: BTreeMap<String, &Wish> = wishes.iter().map(|wish| (wish.id(), wish)).collect();
        let stale: Vec<&Wish> = last.into_values().filter(|wish| !self.has_big_data(wish)).collect();
        let bytes = records::print(images);
        if stale.is_empty() {
            return self.write(IMAGES, IMAGES_LOCK, &bytes);
        }
        let lock = Lock::take(&self.at(IMAGES_LOCK), PATIENCE)?;
        let mut meanwhile = self.images()?;
        let before = meanwhile.len();
        meanwhile.retain(|image| stale.iter().all(|wish| wish.id() != image.id));
        if meanwhile.len() != before {
            files::replace(&self.at(IMAGES), &records::print(&meanwhile))?;
            lock.touch()?;
        }
        for wish in stale {
            let directory = self.at("overlay-images").join(wish.id());
            remove_all(&directory)?;
            files::new_directory(&directory, |at| {
                wish.big_data()
                    .iter()
                    .try_for_each(|(name, bytes)| files::replace(&at.join(big_data_file(name)), bytes))
            })?;
        }
        files::replace(&self.at(IMAGES), &bytes)?;
        Ok(lock.touch()?)
    }

    fn has_big_data(&self, wish: &Wish) -> bool {
        let directory = Path::new("overlay-images").join(wish.id());
        wish.big_data().iter().all(|(name, bytes)| {
            std::fs::read(self.directory.join(&directory).join(big_data_file(name))).is_ok_and(|found| found == *bytes)
        })
    }

    /// The directory of a layer and its short name.
    fn put_layer(&self, wish: &Wish) -> Result<(), StoreError> {
        let (image, repository) = (&wish.image, &wish.repository);
        if !repository.has_flat(image.manifest.config)? {
            let (image, repository) = (image.name.to_string(), repository.name().to_owned());
            return Err(StoreError::NoFlat { image, repository });
        }
        let target = repository.path(&OwnedPath::Flat(image.manifest.config));
        if !target.is_absolute() || target.to_str().is_none() {
            return Err(StoreError::Mountpoint(target));
        }
        let id = layer_id(image.manifest.config);
        let link = link_id(&id);
        let directory = self.at("overlay").join(&id);
        if std::fs::read(directory.join("link")).is_ok_and(|found| found == link.as_bytes()) {
            if std::fs::read_link(directory.join("diff")).ok().as_deref() != Some(&target) {
                files::replace_link(&directory.join("diff"), &target)?;
            }
        } else {
            remove_all(&directory)?;
            files::new_directory(&directory, |at| {
                files::replace_link(&at.join("diff"), &target)?;
                files::replace(&at.join("link"), link.as_bytes())
            })?;
        }
        let short = self.at("overlay/l").join(&link);
        let to = Path::new("..").join(&id).join("diff");
        if std::fs::read_link(&short).ok().as_deref() != Some(&to) {
            files::replace_link(&short, &to)?;
        }
        Ok(())
    }

    /// Removes what no list names.
    fn clear(&self, directory: &str, named: &BTreeSet<&str>, others: &[&str]) -> Result<(), StoreError> {
        let directory = self.at(directory);
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

const LAYERS: &str = "overlay-layers/layers.json";
const LAYERS_LOCK: &str = "overlay-layers/layers.lock";
const IMAGES: &str = "overlay-images/images.json";
const IMAGES_LOCK: &str = "overlay-images/images.lock";

/// Puts an image into the list; a name belongs to one image.
fn place(images: &mut Vec<ImageEntry>, wish: &Wish) -> Outcome {
    let name = wish.name();
    let mut entry = wish.entry();
    let had_name = images.iter().any(|image| image.names.contains(&name));
    let old = images.iter().position(|image| image.id == entry.id).map(|at| images.swap_remove(at));
    if let Some(old) = &old {
        entry.names.clone_from(&old.names);
    }
    if !entry.names.contains(&name) {
        entry.names.push(name.clone());
        entry.names.sort();
    }
    for image in images.iter_mut() {
        image.names.retain(|other| *other != name);
    }
    let outcome = match old {
        Some(old) if old == entry => Outcome::Unchanged,
        _ if had_name => Outcome::Updated,
        _ => Outcome::Added,
    };
    images.push(entry);
    outcome
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_those_that_others_use() {
        // printf 'cvmfs-flat-layer:aa…a' | sha256sum
        let image = ImageId::parse_hex(&"a".repeat(64)).unwrap();
        let layer = layer_id(image);
        assert_eq!(layer, "7772180363c2b584ed6c56003f85da96d4fafe1d03a2488df092e9850b2f819d");
        let link = link_id(&layer);
        assert_eq!(link.len(), 26);
        assert!(link.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b)), "{link}");
        assert_ne!(link, link_id("other"));
    }
}
