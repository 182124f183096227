//! Writes `podmanStore` with the images themselves: the same transaction, so that a reader sees both or neither.

use std::collections::BTreeSet;

use image::digest::{Digest, ImageId};
use image::layout::{LayersJson, OwnedPath};
use image::podman::{self, ImageEntry, LayerEntry, LayerId, Listed, StoreLayer, StorePath};
use serde::de::DeserializeOwned;

use super::{Hand, ReadyImage};
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::plan::ImagePlan;
use crate::podman::PodmanState;

impl Hand<'_> {
    /// Does what was decided about these images, and takes out what is published no more. The lists are written only if they change,
    /// and with each its lock, whose 64 bytes tell running programs to read again.
    pub(super) fn podman_store(&mut self, images: &[ReadyImage<'_>]) -> Result<(), Failure> {
        let state = |image: &ReadyImage<'_>| image.plan.podman;
        if !images.iter().filter_map(state).any(PodmanState::is_change) {
            return Ok(());
        }
        self.write_podman_store(images)
    }

    /// Takes out what is published no more, if there is a store.
    pub(crate) fn clean_podman_store(&mut self) -> Result<(), Failure> {
        match self.read(&OwnedPath::PodmanFile(StorePath::Images))? {
            Some(_) => self.write_podman_store(&[]),
            None => Ok(()),
        }
    }

    fn write_podman_store(&mut self, images: &[ReadyImage<'_>]) -> Result<(), Failure> {
        let mut listed: Vec<Listed> = self.list(StorePath::Images)?;
        let mut layers: Vec<Listed<LayerEntry>> = self.list(StorePath::Layers)?;
        let ids = |images: &[Listed], layers: &[Listed<LayerEntry>]| -> (BTreeSet<String>, BTreeSet<String>) {
            (images.iter().map(|i| i.id().to_owned()).collect(), layers.iter().map(|l| l.id().to_owned()).collect())
        };
        let before = ids(&listed, &layers);
        for image in images {
            match image.plan.podman {
                Some(PodmanState::Added | PodmanState::Updated) => {
                    self.store_image(image.plan, &mut listed, &mut layers)?;
                }
                Some(PodmanState::Removed) => {
                    podman::take_name(&mut listed, &podman::engine_name(&image.plan.name));
                }
                _ => {}
            }
        }
        self.drop_unpublished(&mut listed)?;
        podman::settle(&mut listed, &mut layers);
        self.store_list(StorePath::Layers, StorePath::LayersLock, &podman::print(&layers))?;
        self.store_list(StorePath::Images, StorePath::ImagesLock, &podman::print(&listed))?;
        let after = ids(&listed, &layers);
        for gone in before.0.difference(&after.0).filter_map(|hex| ImageId::parse_hex(hex)) {
            self.remove(StorePath::Image(gone))?;
            self.remove(StorePath::Layer(LayerId::flat(gone)))?;
            self.remove(StorePath::Short(LayerId::flat(gone).short()))?;
        }
        Ok(())
    }

    fn list<T: DeserializeOwned>(&mut self, list: StorePath) -> Result<Vec<T>, Failure> {
        let path = OwnedPath::PodmanFile(list);
        let Some(bytes) = self.read(&path)? else { return Ok(Vec::new()) };
        podman::read(&bytes).map_err(|error| Failure::Content(format!("{}: {error}", self.layout.print(&path))))
    }

    fn store_image(
        &mut self,
        plan: &ImagePlan,
        images: &mut Vec<Listed>,
        layers: &mut Vec<Listed<LayerEntry>>,
    ) -> Result<(), Failure> {
        let id = plan.manifest.config;
        let index = plan.index.as_ref().map(|index| index.bytes.as_slice());
        let documents = podman::documents(&plan.document.bytes, id, &plan.config_bytes, index);
        let created = podman::created([plan.config.created.as_deref()]);
        let mut size = 0_u64;
        for layer in &plan.layers {
            let record = self.read(&OwnedPath::LayerRecord(layer.layer.descriptor.digest))?;
            let record = record.and_then(|bytes| LayersJson::parse(&bytes).ok());
            size = size.saturating_add(record.map_or(0, |record| record.size));
        }
        // By convention every client shows the repository there.
        let target = format!("/cvmfs/{}/{}", self.target.fqrn, self.layout.print(&OwnedPath::Flat(id)));
        let layer = StoreLayer::flat(id, &created, size, target);
        let entry = ImageEntry::new(id, plan.document.digest, layer.id, &created, &documents);
        podman::place(images, &podman::engine_name(&plan.name), entry);
        for (name, bytes) in &documents {
            self.file(&OwnedPath::PodmanFile(StorePath::Document(id, name.clone())), bytes)?;
        }
        let short = layer.id.short();
        self.link_to(&OwnedPath::PodmanFile(StorePath::Diff(layer.id)), layer.target)?;
        self.file(&OwnedPath::PodmanFile(StorePath::Link(layer.id)), short.as_str().as_bytes())?;
        let to = format!("../{}/diff", layer.id.hex());
        self.link_to(&OwnedPath::PodmanFile(StorePath::Short(short)), to)?;
        layers.retain(|known| known.id() != layer.entry.id);
        layers.push(Listed::Ours(layer.entry));
        Ok(())
    }

    /// Takes the names of ours that lead to other images, or nowhere.
    fn drop_unpublished(&mut self, images: &mut [Listed]) -> Result<(), Failure> {
        for image in images {
            if matches!(image, Listed::Other(_)) {
                continue;
            }
            let mut gone = Vec::new();
            for name in image.names() {
                let mut is_published = false;
                for published in podman::published_names(&name) {
                    is_published |= self.image_of(&published)?.is_some_and(|found| found.hex() == image.id());
                }
                if !is_published {
                    gone.push(name);
                }
            }
            image.drop_names(|name| gone.iter().any(|gone| gone == name));
        }
        Ok(())
    }

    fn store_list(&mut self, list: StorePath, lock: StorePath, bytes: &[u8]) -> Result<(), Failure> {
        let (list, lock) = (OwnedPath::PodmanFile(list), OwnedPath::PodmanFile(lock));
        if self.read(&list)?.as_deref() == Some(bytes) {
            return Ok(());
        }
        // The revision tells apart the same list at different times.
        let token = Digest::of(format!("{} {}", self.revision, Digest::of(bytes)).as_bytes()).hex();
        self.file(&list, bytes)?;
        self.file(&lock, token.as_bytes())
    }

    fn remove(&mut self, path: StorePath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, &OwnedPath::PodmanFile(path));
        match self.transaction.lookup(&at)? {
            Some(_) => Ok(self.transaction.remove(&at)?),
            None => Ok(()),
        }
    }
}
