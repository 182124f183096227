//! The small products of an image: public link, records, index, store for Podman. Each is compared with what its
//! manifest and config say.

use cvmfs::path::RepoPath;
use image::digest::{ChainId, DiffId, ImageId};
use image::layout::{ImageFile, IndexKey, LayersJson, OwnedPath, StatusRecord};
use image::podman::{self, Listed, StorePath};

use super::report::{Findings, Kind};
use super::subject::Subject;
use super::text_of;
use crate::failure::Failure;
use crate::layer::{LayerPlace, repo_path};
use crate::publish::Hand;
use crate::removal::Owner;

/// Looks at the small products.
pub(super) struct Products<'a, 'b> {
    pub(super) hand: &'a mut Hand<'b>,
    pub(super) findings: &'a Findings,
}

impl Products<'_, '_> {
    fn at(&self, path: &OwnedPath) -> RepoPath {
        repo_path(&self.hand.layout, path)
    }

    fn wrong(&self, kind: Kind, path: &OwnedPath, expected: impl ToString, found: impl ToString) {
        self.findings.add(kind, self.at(path), expected, found);
        self.findings.damaged_path(path);
    }

    /// All of an image but what its layers hold.
    pub(super) fn look(&mut self, subject: &Subject, status: &StatusRecord) -> Result<(), Failure> {
        let Owner { platform, name } = subject.owner.clone();
        let record = |file| OwnedPath::ImageFile { platform: platform.clone(), name: name.clone(), file };
        let flat = OwnedPath::Flat(subject.manifest.config);
        if subject.wished.flat {
            self.link(Kind::PublicLink, &OwnedPath::Public { platform: platform.clone(), name: name.clone() }, &flat)?;
        }
        self.file(Kind::Record, &record(ImageFile::RawManifest), &subject.document)?;
        self.file(Kind::Record, &record(ImageFile::Config), &subject.config_bytes)?;
        let mut converted = subject.manifest.record();
        if !subject.wished.layers {
            converted.layers.clear();
        }
        self.file(Kind::Record, &record(ImageFile::Manifest), &converted.to_bytes())?;
        let file = record(ImageFile::Status);
        if status.config != subject.manifest.config {
            self.wrong(Kind::Record, &file, subject.manifest.config, format!("config {}", status.config));
        }
        if let Some(expected) = subject.config.platform.as_ref().filter(|p| **p != status.platform) {
            self.wrong(Kind::Record, &file, expected, format!("platform {}", status.platform));
        }
        self.file(Kind::Index, &OwnedPath::Index(IndexKey::Config(subject.manifest.config)), &subject.config_bytes)?;
        for (digest, bytes) in subject.documents() {
            self.file(Kind::Index, &OwnedPath::Index(IndexKey::Manifest(digest)), bytes)?;
        }
        if platform.is_none() {
            self.podman(subject)?;
        }
        Ok(())
    }

    fn file(&mut self, kind: Kind, path: &OwnedPath, expected: &[u8]) -> Result<(), Failure> {
        match self.hand.read(path) {
            Ok(Some(found)) if found == expected => {}
            Ok(Some(found)) => {
                let what = format!("{} bytes that differ", found.len());
                self.wrong(kind, path, format!("{} bytes of the image", expected.len()), what);
            }
            Ok(None) => self.wrong(kind, path, "the file", ""),
            Err(Failure::Store(error)) => self.wrong(kind, path, "", error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// A link of ours leads to exactly this.
    fn link(&mut self, kind: Kind, path: &OwnedPath, to: &OwnedPath) -> Result<(), Failure> {
        let expected = self.hand.layout.link(path, to);
        match self.hand.transaction.lookup(&self.at(path))? {
            Some(entry) if entry.symlink == expected.as_bytes() => {}
            Some(entry) => self.wrong(kind, path, expected, format!("-> {}", entry.symlink.escape_ascii())),
            None => self.wrong(kind, path, format!("link to {expected}"), ""),
        }
        Ok(())
    }

    /// The entries of the index that lead to layers. The first writer of an entry stays, so it may lead to another layer
    /// with the same content. `strangers` stand on other layers than those of this image: no chain leads to them.
    pub(super) fn layer_index(&mut self, subject: &Subject, strangers: &[DiffId]) -> Result<(), Failure> {
        let diff_ids: Vec<DiffId> = subject.layers.iter().map(|l| l.diff_id).collect();
        for (layer, chain) in subject.layers.iter().zip(ChainId::stack(&diff_ids)) {
            let is_stranger = strangers.contains(&layer.diff_id);
            for key in [IndexKey::DiffId(layer.diff_id), IndexKey::ChainId(chain)] {
                let path = OwnedPath::Index(key);
                match self.hand.transaction.lookup(&self.at(&path))? {
                    Some(entry) => {
                        let leads_to = String::from_utf8_lossy(&entry.symlink).into_owned();
                        if self.diff_id_of(&path, &leads_to)? != Some(layer.diff_id) {
                            let expected = format!("a layer with diff ID {}", layer.diff_id);
                            self.wrong(Kind::Index, &path, expected, format!("-> {leads_to}"));
                        }
                    }
                    None if is_stranger => {}
                    None => self.wrong(Kind::Index, &path, "link to the layer", ""),
                }
            }
        }
        Ok(())
    }

    /// The diff ID of the layer that an entry of the index leads to, by the layer's record.
    fn diff_id_of(&mut self, from: &OwnedPath, link: &str) -> Result<Option<DiffId>, Failure> {
        let (digest, place) = match self.hand.layout.parse_link(from, link) {
            Some(OwnedPath::Layer(digest)) => (digest, LayerPlace::Own),
            Some(OwnedPath::LayerOverlay(digest)) => (digest, LayerPlace::Beside),
            _ => return Ok(None),
        };
        let top = self.at(&place.path(digest));
        let record = text_of(self.hand, &top.join(".metadata").join("layers.json"))?;
        Ok(record.and_then(|bytes| LayersJson::parse(&bytes).ok()).map(|record| record.diff_id))
    }

    /// If the image is in the store for Podman, all that the store keeps of it.
    fn podman(&mut self, subject: &Subject) -> Result<(), Failure> {
        let list = OwnedPath::PodmanFile(StorePath::Images);
        let Some(bytes) = self.hand.read(&list)? else { return Ok(()) };
        let images: Vec<Listed> = match podman::read(&bytes) {
            Ok(images) => images,
            Err(error) => {
                self.findings.add(Kind::Podman, self.at(&list), "", error);
                return Ok(());
            }
        };
        let (name, id) = (podman::engine_name(&subject.owner.name), subject.manifest.config);
        let Some(listed) = images.iter().find(|image| image.names().contains(&name)) else { return Ok(()) };
        if listed.id() != id.hex() {
            self.wrong(Kind::Podman, &list, id.hex(), format!("{name} is image {}", listed.id()));
            return Ok(());
        }
        self.podman_image(subject, id)
    }

    fn podman_image(&mut self, subject: &Subject, id: ImageId) -> Result<(), Failure> {
        let index = subject.index.as_ref().map(|(_, bytes)| bytes.as_slice());
        for (name, bytes) in podman::documents(&subject.document, id, &subject.config_bytes, index) {
            self.file(Kind::Podman, &OwnedPath::PodmanFile(StorePath::Document(id, name)), &bytes)?;
        }
        let layer = podman::LayerId::flat(id);
        let short = layer.short();
        self.file(Kind::Podman, &OwnedPath::PodmanFile(StorePath::Link(layer)), short.as_str().as_bytes())?;
        let flat = self.hand.layout.print(&OwnedPath::Flat(id));
        let links = [
            (StorePath::Diff(layer), format!("/cvmfs/{}/{flat}", self.hand.target.fqrn)),
            (StorePath::Short(short), format!("../{}/diff", layer.hex())),
        ];
        for (path, expected) in links {
            let path = OwnedPath::PodmanFile(path);
            match self.hand.transaction.lookup(&self.at(&path))? {
                Some(entry) if entry.symlink == expected.as_bytes() => {}
                Some(entry) => {
                    self.wrong(Kind::Podman, &path, expected, format!("-> {}", entry.symlink.escape_ascii()));
                }
                None => self.wrong(Kind::Podman, &path, expected, ""),
            }
        }
        Ok(())
    }
}
