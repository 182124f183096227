//! What is wrong with a repository as one of container images, and what makes it right without the registry.
//!
//! Looks at names, records, links and layers; the rows of catalogs are the business of [`cvmfs::repair`].

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use cvmfs::catalog::NestedRef;
use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use cvmfs::traversal::{Loader, TraversalError};
use image::digest::{ChainId, DiffId, ImageId, LayerDigest};
use image::layout::{FormatRecord, ImageFile, IndexKey, LayersJson, Layout, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::Config;
use image::platform::PlatformDirectory;
use image::reference::PublicName;

use super::legacy::literal_whiteouts;
use super::{Action, Fault, Live, Survey};
use crate::failure::Failure;
use crate::images::{is_public, walk};
use crate::layer::repo_path;
use crate::publish::legacy_format;
use crate::target::Target;

const RECORD_LIMIT: u64 = 4 << 20;
/// Most of something that is named one by one in a note.
const NAMED: usize = 20;

/// A record of an image.
struct Image {
    platform: Option<PlatformDirectory>,
    name: PublicName,
    manifest: Option<ManifestRecord>,
    has_status: bool,
    has_config: bool,
    /// Whether it is to have a flat, and a link to it.
    wants_flat: bool,
}

pub(super) struct Surveyor<'a> {
    target: &'a Target,
    view: &'a mut Transaction,
    layout: Layout,
    live: Live,
    /// Layers that are there, with their diff IDs where a record tells.
    layers: BTreeMap<LayerDigest, Option<DiffId>>,
    /// Layers that have, or will have, a copy beside the content of the existing tool.
    beside: BTreeSet<LayerDigest>,
    looks: u64,
    survey: Survey,
}

/// Looks at everything that containers need.
pub(super) fn survey(target: &Target, view: &mut Transaction, live: Live) -> Result<Survey, Failure> {
    let (layers, beside) = (BTreeMap::new(), BTreeSet::new());
    let layout = Layout::new();
    let mut surveyor = Surveyor { target, view, layout, live, layers, beside, looks: 0, survey: Survey::default() };
    let images = surveyor.images()?;
    let configs = surveyor.configs(&images)?;
    surveyor.layers(&images, &configs)?;
    let linked = surveyor.links()?;
    surveyor.records(&images, &configs)?;
    surveyor.index(&images, &configs)?;
    surveyor.flats(&linked, &configs)?;
    surveyor.podman()?;
    surveyor.chains()?;
    Ok(surveyor.survey)
}

impl Surveyor<'_> {
    fn repair(&mut self, fault: Fault, place: impl ToString, what: impl Into<String>, action: Action) {
        self.survey.repair(fault, place.to_string(), what.into(), action);
    }

    /// Bounds the number of catalogs that are open.
    fn close_some(&mut self) {
        self.looks += 1;
        if self.looks.is_multiple_of(256) {
            self.view.close_unchanged();
        }
    }

    fn lookup(&mut self, path: &OwnedPath) -> Result<Option<Entry>, Failure> {
        Ok(self.view.lookup(&repo_path(&self.layout, path))?)
    }

    fn read(&self, entry: &Entry) -> Option<Vec<u8>> {
        let hash = entry.content?;
        let mut bytes = Vec::new();
        let id = hash.object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), RECORD_LIMIT, &mut bytes).ok()?;
        Some(bytes)
    }

    fn read_at(&mut self, path: &RepoPath) -> Result<Option<Vec<u8>>, Failure> {
        let entry = self.view.lookup(path)?;
        Ok(entry.and_then(|e| self.read(&e)))
    }

    fn directories(&mut self, path: &str) -> Result<Vec<RepoPath>, Failure> {
        let path = RepoPath::parse(path).expect("a normal path");
        let entries = self.view.list(&path)?;
        Ok(entries.into_iter().filter(Entry::is_directory).map(|e| path.join(&e.name)).collect())
    }

    /// Directories in buckets, as `.layers/xx/*`.
    fn in_buckets(&mut self, top: &str) -> Result<Vec<OwnedPath>, Failure> {
        let mut found = Vec::new();
        for bucket in self.directories(top)? {
            self.view.close_unchanged();
            for entry in self.view.list(&bucket)?.into_iter().filter(Entry::is_directory) {
                let path = bucket.join(&entry.name);
                found.extend(self.layout.parse(&String::from_utf8_lossy(path.as_bytes())));
            }
        }
        Ok(found)
    }

    /// All images that have a record.
    fn images(&mut self) -> Result<Vec<Image>, Failure> {
        let mut files: BTreeMap<OwnedPath, Vec<(ImageFile, Entry)>> = BTreeMap::new();
        let layout = self.layout.clone();
        let top = RepoPath::parse("/.metadata").expect("a normal path");
        walk(self.view, &top, &mut |path, entry| {
            let text = String::from_utf8_lossy(path.as_bytes());
            if let Some(OwnedPath::ImageFile { platform, name, file }) = layout.parse(&text) {
                let image = OwnedPath::Image { platform, name };
                files.entry(image).or_default().push((file, entry.clone()));
            }
            Ok(())
        })?;
        let mut images = Vec::new();
        for (path, files) in files {
            let OwnedPath::Image { platform, name } = path.clone() else { continue };
            let find = |file| files.iter().find(|(f, _)| *f == file).map(|(_, entry)| entry);
            let record = find(ImageFile::Manifest).and_then(|e| self.read(e));
            let manifest = record.as_deref().and_then(|r| ManifestRecord::parse(r).ok());
            if manifest.is_none() {
                let why = "manifest.json is missing or unreadable; convert the image again";
                self.survey.left(Fault::ImageRecord, self.layout.print(&path), why);
            }
            let (has_status, has_config) = (find(ImageFile::Status).is_some(), find(ImageFile::Config).is_some());
            let status = find(ImageFile::Status).and_then(|entry| self.read(entry));
            let wants_flat = status.and_then(|s| StatusRecord::parse(&s).ok()).is_none_or(|s| s.flat);
            images.push(Image { platform, name, manifest, has_status, has_config, wants_flat });
        }
        Ok(images)
    }

    /// Configs that are somewhere in the repository, by image.
    fn configs(&mut self, images: &[Image]) -> Result<BTreeMap<ImageId, Vec<u8>>, Failure> {
        let mut configs = BTreeMap::new();
        for image in images {
            let Some(manifest) = &image.manifest else { continue };
            let id = manifest.config.digest;
            if configs.contains_key(&id) {
                continue;
            }
            let name = OwnedPath::ImageFile {
                platform: image.platform.clone(),
                name: image.name.clone(),
                file: ImageFile::Config,
            };
            // Key of the config in the store of podman: "=" and base64, as for all keys with other than [a-z0-9.].
            let podman = podman_config(id);
            let places = [
                repo_path(&self.layout, &OwnedPath::Index(IndexKey::Config(id))),
                repo_path(&self.layout, &name),
                RepoPath::parse(&podman).expect("hex digits and base64"),
            ];
            for place in places {
                let found = self.read_at(&place)?;
                // Whoever put it there: it is the config if it has the digest.
                if let Some(bytes) = found.filter(|b| ImageId::of(b) == id && Config::parse(b).is_ok()) {
                    configs.insert(id, bytes);
                    break;
                }
            }
        }
        Ok(configs)
    }

    /// Layers without content, without record, with deletions that overlayfs does not read.
    fn layers(&mut self, images: &[Image], configs: &BTreeMap<ImageId, Vec<u8>>) -> Result<(), Failure> {
        let known = diff_ids(images, configs);
        for path in self.in_buckets("/.layers")? {
            let OwnedPath::Layer(layer) = path else { continue };
            let at = repo_path(&self.layout, &path);
            self.close_some();
            if self.view.nested_reference(&at)?.is_some() {
                // One of ours: it came in one piece, with its records.
                self.layers.insert(layer, known.get(&layer).copied());
                continue;
            }
            let content_path = at.join("layerfs");
            if !self.view.lookup(&content_path)?.is_some_and(|e| e.is_directory()) {
                let what = "the directory has no content: a conversion failed half-way; it goes";
                self.repair(Fault::LayerHalfMade, &at, what, Action::Remove(at.clone()));
                continue;
            }
            self.legacy_layer(layer, &at, &content_path, known.get(&layer).copied())?;
        }
        Ok(())
    }

    fn legacy_layer(
        &mut self,
        layer: LayerDigest,
        at: &RepoPath,
        content: &RepoPath,
        known: Option<DiffId>,
    ) -> Result<(), Failure> {
        let record = self.read_at(&repo_path(&self.layout, &OwnedPath::LayerRecord(layer)))?;
        let record = record.and_then(|r| LayersJson::parse(&r).ok());
        let diff_id = record.as_ref().map(|r| r.diff_id).or(known);
        self.layers.insert(layer, diff_id);
        let has_copy = self.lookup(&OwnedPath::LayerOverlay(layer))?.is_some();
        if has_copy {
            self.beside.insert(layer);
        }
        let Some(diff_id) = diff_id else {
            let why = "layers.json is missing, and no config in the repository says which layer it is; convert an image that has it";
            self.survey.left(Fault::LayerRecord, at, why);
            return Ok(());
        };
        if record.is_none() {
            let what = "layers.json is written from the config of an image; the size of the archive stays unknown";
            self.repair(Fault::LayerRecord, at, what, Action::LayersJson { layer, diff_id });
        }
        let format_path = repo_path(&self.layout, &OwnedPath::LayerFormat(layer));
        let format = self.read_at(&format_path)?.and_then(|f| FormatRecord::parse(&f).ok());
        let reference = self.view.nested_reference(content)?;
        let whiteouts = match &reference {
            // What was looked at before, or has no catalog of its own.
            _ if format.as_ref().is_some_and(|f| f.whiteouts == FormatRecord::OVERLAY) => 0,
            Some(reference) => self.whiteouts(reference)?,
            None => 0,
        };
        let literal = FormatRecord { diff_id, ..legacy_format(diff_id, record.as_ref().map_or(0, |r| r.size)) };
        let overlay = FormatRecord { whiteouts: FormatRecord::OVERLAY.to_owned(), ..literal.clone() };
        if whiteouts > 0 && self.live == Live::Change {
            let what =
                format!("{whiteouts} files .wh.* become whiteouts, in place: containers that run on it see it change");
            let (content, format) = (reference.expect("it was counted in it"), overlay);
            self.repair(Fault::Whiteouts, at, what, Action::WhiteoutsInPlace { layer, content, format });
            return Ok(());
        }
        if format.is_none() {
            // Nothing in it is deleted, so nothing is spelled in a wrong way.
            let format = if whiteouts == 0 { overlay.clone() } else { literal };
            let what = format!("format.json says how it is written ({})", format.whiteouts);
            self.repair(Fault::LayerFormat, at, what, Action::Format { layer, format });
        }
        if whiteouts > 0 && !has_copy {
            let what = format!(
                "{whiteouts} files .wh.* are whiteouts in a copy beside; the layer itself stays as it is, unless --yes-change-live-layers"
            );
            let content = reference.expect("it was counted in it");
            self.beside.insert(layer);
            self.repair(Fault::Whiteouts, at, what, Action::Beside { layer, content, format: overlay, record });
        }
        Ok(())
    }

    fn whiteouts(&mut self, content: &NestedRef) -> Result<u64, Failure> {
        let loader = Loader::new(&*self.target.store, self.target.scratch());
        match literal_whiteouts(loader, content) {
            Ok(count) => Ok(count),
            // The check says what is wrong with it.
            Err(Failure::Traversal(_)) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Public links, and which flats they lead to; those that lead to nothing go.
    fn links(&mut self) -> Result<BTreeSet<ImageId>, Failure> {
        let mut links = Vec::new();
        let layout = self.layout.clone();
        for top in self.view.list(&RepoPath::ROOT)?.into_iter().filter(|e| is_public(&e.name)) {
            let path = RepoPath::ROOT.join(&top.name);
            let mut visit = |path: &RepoPath, entry: &Entry| {
                let text = String::from_utf8_lossy(path.as_bytes()).into_owned();
                if let Some(public @ OwnedPath::Public { .. }) = layout.parse(&text)
                    && let Ok(link) = std::str::from_utf8(&entry.symlink)
                    && let Some(OwnedPath::Flat(flat)) = layout.parse_link(&public, link)
                {
                    links.push((path.clone(), flat));
                }
                Ok(())
            };
            match top.is_directory() {
                true => walk(self.view, &path, &mut visit)?,
                false => visit(&path, &top)?,
            }
        }
        let mut linked = BTreeSet::new();
        for (path, flat) in links {
            if self.lookup(&OwnedPath::Flat(flat))?.is_some() {
                linked.insert(flat);
                continue;
            }
            let what = "the link leads to a flat that is gone; it goes, and the next convert makes both again";
            self.repair(Fault::Link, &path, what, Action::Remove(path.clone()));
        }
        Ok(linked)
    }

    /// Images without link, without layers, without the records that we keep.
    fn records(&mut self, images: &[Image], configs: &BTreeMap<ImageId, Vec<u8>>) -> Result<(), Failure> {
        let mut unrecorded = Vec::new();
        for image in images {
            let Some(manifest) = &image.manifest else { continue };
            let (platform, name) = (image.platform.clone(), image.name.clone());
            let public = OwnedPath::Public { platform: platform.clone(), name: name.clone() };
            let place = self.layout.print(&public);
            let flat = OwnedPath::Flat(manifest.config.digest);
            let has_flat = self.lookup(&flat)?.is_some();
            if !image.wants_flat {
                // The operator wants its layers only.
            } else if has_flat && self.lookup(&public)?.is_none() {
                let what = "the image has its flat and its record, and no link; it is made";
                self.repair(Fault::Link, &place, what, Action::Link { from: public, to: flat });
            } else if !has_flat && self.lookup(&public)?.is_none() {
                self.survey.note(Fault::Link, &place, "the image has no flat; convert makes one");
            }
            for layer in manifest.layers.iter().filter(|l| !is_foreign(&l.media_type)) {
                if !self.layers.contains_key(&layer.digest) {
                    let why = format!("layer {} is missing; the next convert fetches it", layer.digest);
                    self.survey.left(Fault::LayerMissing, &place, why);
                }
            }
            if !image.has_config
                && let Some(bytes) = configs.get(&manifest.config.digest)
            {
                let path = OwnedPath::ImageFile { platform, name, file: ImageFile::Config };
                self.repair(
                    Fault::ImageRecord,
                    &place,
                    "config.json is written",
                    Action::File { path, bytes: bytes.clone() },
                );
            }
            if !image.has_status {
                unrecorded.push(place);
            }
        }
        let more = unrecorded.len().saturating_sub(NAMED);
        for place in unrecorded.into_iter().take(NAMED) {
            let what = "published by the existing tool; image-manifest.json and status.json come with the next convert";
            self.survey.note(Fault::ImageRecord, place, what);
        }
        if more > 0 {
            self.survey.note(Fault::ImageRecord, "/.metadata", format!("and {more} more images of the existing tool"));
        }
        Ok(())
    }

    /// Entries of the index that can be made without the registry.
    fn index(&mut self, images: &[Image], configs: &BTreeMap<ImageId, Vec<u8>>) -> Result<(), Failure> {
        let mut wanted: BTreeMap<OwnedPath, LayerDigest> = BTreeMap::new();
        for manifest in images.iter().filter_map(|i| i.manifest.as_ref()) {
            let id = manifest.config.digest;
            let Some(bytes) = configs.get(&id) else { continue };
            let path = OwnedPath::Index(IndexKey::Config(id));
            if self.lookup(&path)?.is_none() {
                let place = self.layout.print(&path);
                self.repair(Fault::Index, place, "the config is entered", Action::File { path, bytes: bytes.clone() });
            }
            let stack = stack(manifest, bytes);
            let chains = ChainId::stack(&stack.iter().map(|(_, diff_id)| *diff_id).collect::<Vec<_>>());
            for ((layer, diff_id), chain) in stack.into_iter().zip(chains) {
                // A record of the layer that says something else is right: somebody has read the layer.
                if self.layers.get(&layer).is_some_and(|found| found.is_none_or(|f| f == diff_id)) {
                    wanted.entry(OwnedPath::Index(IndexKey::DiffId(diff_id))).or_insert(layer);
                    wanted.entry(OwnedPath::Index(IndexKey::ChainId(chain))).or_insert(layer);
                }
            }
        }
        let mut made = 0;
        for (from, layer) in wanted {
            self.close_some();
            let to = match self.beside.contains(&layer) {
                true => OwnedPath::LayerOverlay(layer),
                false => OwnedPath::Layer(layer),
            };
            let entry = self.lookup(&from)?;
            let text = entry.map(|e| String::from_utf8_lossy(&e.symlink).into_owned());
            let found = text.and_then(|t| self.layout.parse_link(&from, &t));
            let is_right = match &found {
                Some(found) if *found == OwnedPath::Layer(layer) => to == *found,
                Some(found) => *found == to || self.lookup(found)?.is_some(),
                None => false,
            };
            if !is_right {
                made += 1;
                self.survey.actions.push(Action::Link { from, to });
            }
        }
        if made > 0 {
            let what = format!("{made} links from diff IDs and chain IDs to layers are made");
            self.survey.line(Fault::Index, "/.index", what);
        }
        Ok(())
    }

    /// Flats without what Apptainer needs, and those that no link leads to.
    fn flats(&mut self, linked: &BTreeSet<ImageId>, configs: &BTreeMap<ImageId, Vec<u8>>) -> Result<(), Failure> {
        let mut unlinked = Vec::new();
        for path in self.in_buckets("/.flat")? {
            let OwnedPath::Flat(flat) = path else { continue };
            let at = repo_path(&self.layout, &path);
            self.close_some();
            if !linked.contains(&flat) {
                unlinked.push(at.clone());
            }
            let missing = !self.has_apptainer_files(&at)?;
            match configs.get(&flat) {
                _ if !missing => {}
                Some(config) => {
                    let what = "the files for Apptainer are missing (.singularity.d and links to it); they are made";
                    self.repair(Fault::Apptainer, &at, what, Action::Apptainer { flat, config: config.clone() });
                }
                None if linked.contains(&flat) => {
                    let why = "the files for Apptainer are missing, and the config that they are made from is not in the repository; convert the image, then repeat";
                    self.survey.left(Fault::Apptainer, &at, why);
                }
                None => {}
            }
        }
        for at in unlinked.iter().take(NAMED) {
            self.survey.note(Fault::Flat, at, "no image links to it; it is left to gc");
        }
        if unlinked.len() > NAMED {
            let what = format!("and {} more flats that no image links to", unlinked.len() - NAMED);
            self.survey.note(Fault::Flat, "/.flat", what);
        }
        Ok(())
    }

    /// Whether a flat has them, without keeping its catalog open. What cannot be read is told by the check.
    fn has_apptainer_files(&mut self, flat: &RepoPath) -> Result<bool, Failure> {
        let path = flat.join(".singularity.d");
        let Some(reference) = self.view.nested_reference(flat)? else {
            return Ok(self.view.lookup(&path)?.is_some());
        };
        match Loader::new(&*self.target.store, self.target.scratch()).load(&reference) {
            Ok(catalog) => Ok(catalog.lookup_path(&path)?.is_some()),
            Err(e @ TraversalError::Scratch { .. }) => Err(e.into()),
            Err(_) => Ok(true),
        }
    }

    /// Layers in the store of podman that lead to nothing; podman does not look at what no image of its list has.
    fn podman(&mut self) -> Result<(), Failure> {
        let mut gone = 0;
        for directory in self.directories("/podmanStore/overlay")? {
            self.close_some();
            let Some(link) = self.view.lookup(&directory.join("diff"))? else { continue };
            let text = String::from_utf8_lossy(&link.symlink).into_owned();
            let path = self.layout.parse(text.trim_start_matches("../"));
            if let Some(OwnedPath::LayerContent(layer)) = path
                && !self.layers.contains_key(&layer)
            {
                gone += 1;
            }
        }
        if gone > 0 {
            let what =
                format!("{gone} layers lead to layers that are gone; the store is left as the existing tool wrote it");
            self.survey.note(Fault::Podman, "/podmanStore/overlay", what);
        }
        Ok(())
    }

    /// The cache of half-made images that the existing tool keeps.
    fn chains(&mut self) -> Result<(), Failure> {
        for (name, what) in [
            (".dirty-chains", "marks of conversions under way in the existing tool"),
            (".chains", "a cache of the existing tool that nothing reads"),
        ] {
            let path = RepoPath::ROOT.join(name);
            let Some(_) = self.view.lookup(&path)? else { continue };
            let count = match name {
                ".chains" => self.in_chains()?,
                _ => self.view.list(&path)?.len(),
            };
            let what = format!("{what}, {count} entries; it goes (flats do not need it)");
            self.repair(Fault::Chains, &path, what, Action::Remove(path.clone()));
        }
        Ok(())
    }

    fn in_chains(&mut self) -> Result<usize, Failure> {
        let mut count = 0;
        for bucket in self.directories("/.chains")? {
            count += self.view.list(&bucket)?.into_iter().filter(Entry::is_directory).count();
        }
        Ok(count)
    }
}

/// Where the store of podman keeps a config.
fn podman_config(id: ImageId) -> String {
    let key = base64::engine::general_purpose::STANDARD.encode(id.to_string());
    format!("/podmanStore/overlay-images/{}/={key}", id.hex())
}

/// Layers of an image with their diff IDs, bottom first.
fn stack(manifest: &ManifestRecord, config: &[u8]) -> Vec<(LayerDigest, DiffId)> {
    let Ok(config) = Config::parse(config) else { return Vec::new() };
    let layers: Vec<LayerDigest> =
        manifest.layers.iter().filter(|l| !is_foreign(&l.media_type)).map(|l| l.digest).collect();
    match layers.len() == config.diff_ids.len() {
        true => layers.into_iter().zip(config.diff_ids).collect(),
        false => Vec::new(),
    }
}

fn diff_ids(images: &[Image], configs: &BTreeMap<ImageId, Vec<u8>>) -> BTreeMap<LayerDigest, DiffId> {
    let manifests = images.iter().filter_map(|i| i.manifest.as_ref());
    let with_config = manifests.filter_map(|m| Some((m, configs.get(&m.config.digest)?)));
    with_config.flat_map(|(manifest, config)| stack(manifest, config)).collect()
}

/// Whether a layer is one that no registry gives.
fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
}
