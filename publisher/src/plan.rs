//! Wishes against what is published: a value that says what has to be done, and is printed or executed as it is.
//!
//! Resolving costs one conditional request an image. Documents that the repository has (`.index/manifest`,
//! `.index/config`) are read from there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use image::digest::{ImageId, LayerDigest, ManifestDigest};
use image::layout::{FormatRecord, ImageFile, IndexKey, LayersJson, Layout, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::{Config, Document, Layer, LayerDescriptor, MAX_DOCUMENT, Manifest};
use image::platform::{Platform, PlatformDirectory, choose};
use image::podman::{self, StorePath};
use image::reference::{ImageSource, PublicName};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::ImageLimits;
use crate::failure::Failure;
use crate::layer::{LayerPlace, PreparedLayer, repo_path};
use crate::podman::{InStore, PodmanState, Stock};
use crate::removal::Owner;
use crate::repair::damaged::Damaged;
use crate::report::Outcome;
use crate::signature::{Claims, Fingerprint, Gate, Policy};
use crate::source::{Asked, RawDocument, Sources};
use crate::startup::GivenList;
use crate::target::Target;
use crate::wishlist::{ImageOptions, PlainPath};

/// One image, on one platform, that somebody wants published.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The wish, as it stands in the list or on the command line.
    pub wish: String,
    /// Its line.
    pub line: Option<u64>,
    /// Where the image is.
    pub source: ImageSource,
    /// Where it is to appear.
    pub name: PublicName,
    /// Whose it is.
    pub owner: Option<String>,
    /// How urgent it is; the more the sooner.
    pub priority: i32,
    /// For which machines.
    pub platform: Platform,
    /// Below which directory of `.multiarch` it is to appear; none: it is the one for the default platform, at the plain path.
    pub place: Option<PlatformDirectory>,
    /// Whether it is wanted for several platforms: the default one then has a link below `.multiarch` as well.
    pub several: bool,
    /// What else the list says of it.
    pub options: Arc<ImageOptions>,
    /// What a start of it touches, if somebody says so.
    pub startup: Option<Arc<GivenList>>,
}

impl Wanted {
    /// How sources are asked for it.
    pub fn asked(&self) -> Asked<'_> {
        Asked::new(&self.source, self.options.credentials.as_deref())
    }

    /// Who has its records.
    pub fn owner(&self) -> Owner {
        Owner { platform: self.place.clone(), name: self.name.clone() }
    }

    /// One of its records.
    pub fn file(&self, file: ImageFile) -> OwnedPath {
        OwnedPath::ImageFile { platform: self.place.clone(), name: self.name.clone(), file }
    }

    /// Its link: of the default platform the one at the plain path.
    pub fn public(&self) -> OwnedPath {
        OwnedPath::Public { platform: self.place.clone(), name: self.name.clone() }
    }

    /// The link below `.multiarch` that it has, or may have, although it is the one for the default platform.
    pub fn second_link(&self) -> Option<OwnedPath> {
        let platform = Some(self.platform.directory()).filter(|_| self.place.is_none());
        platform.map(|platform| OwnedPath::Public { platform: Some(platform), name: self.name.clone() })
    }

    /// The public links that it is to have, and their texts. None without a flat, to which they lead.
    pub fn links(&self, layout: &Layout, image: ImageId) -> Vec<(OwnedPath, String)> {
        if !self.options.has_flat() {
            return Vec::new();
        }
        let flat = OwnedPath::Flat(image);
        let public = self.public();
        let second = self.second_link().filter(|_| self.several);
        let text = match &second {
            Some(_) if self.options.plain_path == Some(PlainPath::Variant) => {
                layout.variant_link(&self.name, &self.platform.directory())
            }
            _ => layout.link(&public, &flat),
        };
        let second = second.map(|path| (path.clone(), layout.link(&path, &flat)));
        std::iter::once((public, text)).chain(second).collect()
    }

    /// The record by whose presence the image counts as converted: it names the layers that are published with it.
    pub fn record(&self, manifest: &Manifest) -> ManifestRecord {
        let record = manifest.record();
        let layers = if self.options.has_layers() { record.layers } else { Vec::new() };
        ManifestRecord { layers, ..record }
    }

    /// The platform, where the image is wanted for several.
    pub fn named_platform(&self) -> Option<String> {
        self.several.then(|| self.platform.to_string())
    }
}

/// Where a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// In the repository.
    Published,
    /// In the repository as the existing tool wrote it: good for its consumers, not to make anything from, since owners
    /// and attributes are lost.
    Legacy,
    /// Stored by an earlier run, not published yet.
    Prepared,
    /// To be fetched.
    Missing,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct LayerPlan {
    /// The layer.
    pub layer: Layer,
    /// Where it is.
    pub state: LayerState,
    /// Its catalog, if it has one.
    pub known: Option<NestedRef>,
    /// As an earlier run prepared it.
    pub prepared: Option<PreparedLayer>,
    /// Where it goes if it has to be published.
    pub place: LayerPlace,
    /// Whether what is published of it at that place has to be replaced: it is damaged, or was made without the blob.
    pub replaces: bool,
}

/// What has to be done for one image.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    /// What is wanted.
    pub wanted: Wanted,
    /// The image's name in full.
    pub image: String,
    /// Where it is to appear.
    pub name: PublicName,
    /// The index through which it was found, if there is one.
    pub index: Option<RawDocument>,
    /// Its manifest, raw.
    pub document: RawDocument,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its config, raw.
    pub config_bytes: Vec<u8>,
    /// Its config.
    pub config: Config,
    /// For which machines it is.
    pub platform: Platform,
    /// Layers, bottom first.
    pub layers: Vec<LayerPlan>,
    /// Whether the flat has to be made.
    pub needs_flat: bool,
    /// The catalog of the flat that is published.
    pub known_flat: Option<NestedRef>,
    /// Whether there is a flat that is damaged, and has to be replaced.
    pub flat_damaged: bool,
    /// Whether an image that is right lacks records or entries of the index: the existing tool has published it.
    pub needs_records: bool,
    /// What becomes of it in the store for Podman; nothing if that has nothing to do with it.
    pub podman: Option<PodmanState>,
    /// Keys that have signed it, of those that are asked for.
    pub signed_by: Vec<Fingerprint>,
    /// What will have happened when this plan was executed.
    pub outcome: Outcome,
    /// Links and records that are wrong: they go before the right ones are written.
    pub wrong: Vec<OwnedPath>,
}

impl ImagePlan {
    /// Whether anything has to be published for it.
    pub fn has_work(&self) -> bool {
        self.outcome != Outcome::Unchanged || self.needs_records || self.is_only_stored()
    }

    /// Whether it is published as it should be, and only the store for Podman has to change.
    pub fn is_only_stored(&self) -> bool {
        let is_published = self.outcome == Outcome::Unchanged && !self.needs_records;
        is_published && self.podman.is_some_and(PodmanState::is_change)
    }

    /// Compressed bytes to be fetched.
    pub fn missing_bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let missing = self.layers.iter().filter(|l| l.state == LayerState::Missing);
        missing.map(|l| &l.layer.descriptor).filter(|d| seen.insert(d.digest)).map(|d| d.size).sum()
    }

    /// The distinct layers, bottom first.
    pub fn distinct_layers(&self) -> impl Iterator<Item = &LayerPlan> {
        let mut seen: HashSet<LayerDigest> = HashSet::new();
        self.layers.iter().filter(move |l| seen.insert(l.layer.descriptor.digest))
    }
}

/// Makes plans against one revision of the repository.
#[derive(Debug)]
pub struct Planner<'a> {
    target: &'a Target,
    sources: &'a Sources,
    limits: &'a ImageLimits,
    view: Transaction,
    layout: Layout,
    damaged: Damaged,
    in_store: InStore,
    stock: Stock,
    policy: &'a Policy,
}

impl<'a> Planner<'a> {
    /// Plans against the current revision.
    pub fn new(
        target: &'a Target,
        sources: &'a Sources,
        limits: &'a ImageLimits,
        (in_store, store_limit): (InStore, usize),
        policy: &'a Policy,
    ) -> Result<Planner<'a>, Failure> {
        let view = target.view(time::UtcDateTime::now())?;
        let damaged = Damaged::read(target)?;
        let (layout, stock) = (Layout::new(), Stock::new(Vec::new(), store_limit));
        let mut planner = Planner { target, sources, limits, view, layout, damaged, in_store, stock, policy };
        let list = OwnedPath::PodmanFile(StorePath::Images);
        if let Some(bytes) = planner.read(&list)? {
            let broken = |error| Failure::Content(format!("{}: {error}", planner.layout.print(&list)));
            planner.stock = Stock::new(podman::read(&bytes).map_err(broken)?, store_limit);
        }
        Ok(planner)
    }

    /// What has to be done for an image whose tag was resolved to `digest`.
    pub fn plan(&mut self, wanted: &Wanted, digest: ManifestDigest) -> Result<ImagePlan, Failure> {
        let possible = [Some(wanted.public()), wanted.second_link().filter(|_| wanted.several)];
        possible.iter().flatten().try_for_each(|path| self.refuse_foreign(path))?;
        let (index, document, manifest) = self.choose(wanted.asked(), &wanted.platform, digest)?;
        let status = self.read(&wanted.file(ImageFile::Status))?.and_then(|s| StatusRecord::parse(&s).ok());
        let gate = Gate { policy: self.policy, sources: self.sources };
        let claims = Claims { public: wanted.options.public, keys: wanted.options.signers(), ..Claims::default() };
        let signed_by = gate.pass(wanted, digest, document.digest, status.as_ref(), &claims)?;
        if manifest.layers.len() > self.limits.max_layers {
            let what = format!("the image has {} layers", manifest.layers.len());
            return Err(Failure::Limit { what, option: "--max-layers" });
        }
        if let Some(allowed) = wanted.options.quota.image {
            let bytes = bytes_of(manifest.layers_once());
            if bytes > allowed {
                return Err(Failure::Quota { what: format!("the image has {bytes} bytes"), allowed });
            }
        }
        let config_bytes = self.config(wanted.asked(), &manifest)?;
        let config = Config::parse(&config_bytes)?;
        let platform = config.platform.clone().unwrap_or_else(|| wanted.platform.clone());
        if !wanted.platform.runs(&platform) {
            return Err(Failure::Content(format!("the image is for {platform}; {} was asked for", wanted.platform)));
        }
        let flat_path = OwnedPath::Flat(manifest.config);
        let has_flat = wanted.options.has_flat();
        let flat_damaged = has_flat && self.damaged.flats.contains(&manifest.config);
        let needs_flat = has_flat && (flat_damaged || self.lookup(&flat_path)?.is_none());
        // Layers that are not published are of use for making the flat only.
        let of_use = wanted.options.has_layers() || needs_flat;
        let mut layers = manifest
            .layers_with(&config)?
            .into_iter()
            .filter(|_| of_use)
            .map(|layer| self.plan_layer(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let mut diff_ids = HashMap::new();
        for Layer { descriptor, diff_id } in layers.iter().map(|l: &LayerPlan| &l.layer) {
            let found = *diff_ids.entry(descriptor.digest).or_insert(*diff_id);
            if found != *diff_id {
                return Err(Failure::DiffId { expected: *diff_id, found }.of_layer(descriptor.digest));
            }
        }
        for foreign in manifest.foreign() {
            tracing::warn!(image = %wanted.source, layer = %foreign.digest, "foreign layer is in no registry; left out");
        }
        let known_flat = self.view.nested_reference(&repo_path(&self.layout, &flat_path))?;
        let makes_something =
            needs_flat || layers.iter().any(|l| !matches!(l.state, LayerState::Published | LayerState::Legacy));
        for plan in layers.iter_mut().filter(|l| makes_something && l.state == LayerState::Legacy) {
            *plan = self.to_fetch(plan.layer.clone(), plan.place, plan.replaces);
        }
        let outcome = self.outcome(wanted, &document, &manifest, needs_flat, &layers, status.as_ref())?;
        let needs_records = match &status {
            Some(status) => signed_by.iter().any(|key| !status.signed_by.contains(key)),
            None => outcome == Outcome::Unchanged,
        };
        let in_store = match wanted.options.products {
            Some(products) => Some(products.podman),
            None => self.in_store.wants(&image_name(&wanted.source)),
        };
        // The store shows flats, and knows no platforms.
        let podman = match wanted.place {
            None => self.stock.decide(in_store, &wanted.name, manifest.config, document.digest),
            Some(_) => None,
        };
        Ok(ImagePlan {
            image: image_name(&wanted.source),
            name: wanted.name.clone(),
            wanted: wanted.clone(),
            index,
            document,
            manifest,
            config_bytes,
            config,
            platform,
            layers,
            needs_flat,
            known_flat,
            flat_damaged,
            needs_records,
            podman,
            signed_by,
            outcome,
            wrong: Vec::new(),
        })
    }

    /// When an image was made, by its config.
    pub fn created(&mut self, asked: Asked<'_>, platform: &Platform) -> Result<Option<OffsetDateTime>, Failure> {
        let digest = self.sources.resolve(asked)?;
        let (_, _, manifest) = self.choose(asked, platform, digest)?;
        let config = Config::parse(&self.config(asked, &manifest)?)?;
        Ok(config.created.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()))
    }

    fn config(&mut self, asked: Asked<'_>, manifest: &Manifest) -> Result<Vec<u8>, Failure> {
        match self.indexed(IndexKey::Config(manifest.config))? {
            Some(bytes) if ImageId::of(&bytes) == manifest.config => Ok(bytes),
            _ => self.sources.config(asked, manifest),
        }
    }

    fn choose(
        &mut self,
        asked: Asked<'_>,
        platform: &Platform,
        digest: ManifestDigest,
    ) -> Result<(Option<RawDocument>, RawDocument, Manifest), Failure> {
        let first = self.document(asked, digest)?;
        match first.parse()? {
            Document::Manifest(manifest) => Ok((None, first, manifest)),
            Document::Index(index) => {
                let choice = choose(&index, platform)?;
                tracing::debug!(image = %asked.source(), why = choice.why, "platform chosen");
                let second = self.document(asked, choice.entry.digest)?;
                match second.parse()? {
                    Document::Manifest(manifest) => Ok((Some(first), second, manifest)),
                    Document::Index(_) => Err(Failure::Content("an index within an index is not supported".into())),
                }
            }
        }
    }

    fn document(&mut self, asked: Asked<'_>, digest: ManifestDigest) -> Result<RawDocument, Failure> {
        match self.indexed(IndexKey::Manifest(digest))? {
            Some(bytes) if ManifestDigest::of(&bytes) == digest => Ok(RawDocument { digest, bytes, media_type: None }),
            _ => self.sources.document(asked, digest),
        }
    }

    /// What stands at an image's name, or above it, and is none of ours stays.
    fn refuse_foreign(&mut self, public: &OwnedPath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, public);
        for path in at.ancestors() {
            let Some(entry) = self.view.lookup(&path)? else { return Ok(()) };
            let is_ours = match path == at {
                true => std::str::from_utf8(&entry.symlink).is_ok_and(|text| self.layout.is_public_link(public, text)),
                false => entry.is_directory(),
            };
            if !is_ours {
                return Err(Failure::Content(format!(
                    "{path} exists and is no image of ours; nothing is published over it (remove it, or publish with --as NAME:TAG)"
                )));
            }
        }
        Ok(())
    }

    /// A raw document that the repository has.
    fn indexed(&mut self, key: IndexKey) -> Result<Option<Vec<u8>>, Failure> {
        self.read(&OwnedPath::Index(key))
    }

    fn read(&mut self, path: &OwnedPath) -> Result<Option<Vec<u8>>, Failure> {
        match self.lookup(path)? {
            Some(entry) => self.content(&entry),
            None => Ok(None),
        }
    }

    fn content(&self, entry: &Entry) -> Result<Option<Vec<u8>>, Failure> {
        let Some(hash) = entry.content else { return Ok(None) };
        let mut bytes = Vec::new();
        let id = hash.object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), MAX_DOCUMENT as u64, &mut bytes)?;
        Ok(Some(bytes))
    }

    fn lookup(&mut self, path: &OwnedPath) -> Result<Option<Entry>, Failure> {
        Ok(self.view.lookup(&repo_path(&self.layout, path))?)
    }

    fn plan_layer(&mut self, layer: Layer) -> Result<LayerPlan, Failure> {
        let digest = layer.descriptor.digest;
        if self.damaged.layers.contains(&digest) {
            return Ok(self.to_fetch(layer, LayerPlace::Own, true));
        }
        let mut replaces = false;
        for place in [LayerPlace::Own, LayerPlace::Beside] {
            let at = repo_path(&self.layout, &place.path(digest));
            if let Some(known) = self.view.nested_reference(&at)? {
                // What was made beside without the blob serves its consumers; nothing is made from it.
                if place == LayerPlace::Beside && !self.has_owners(&at)? {
                    replaces = true;
                    continue;
                }
                let (state, known) = (LayerState::Published, Some(known));
                return Ok(LayerPlan { layer, state, known, prepared: None, place, replaces });
            }
        }
        if self.lookup(&OwnedPath::LayerContent(digest))?.is_none_or(|e| !e.is_directory()) {
            return Ok(self.to_fetch(layer, LayerPlace::Own, false));
        }
        let record = self.read(&OwnedPath::LayerRecord(digest))?.and_then(|r| LayersJson::parse(&r).ok());
        if record.is_some_and(|r| r.diff_id != layer.diff_id) {
            return Ok(self.to_fetch(layer, LayerPlace::Beside, replaces));
        }
        let (state, place) = (LayerState::Legacy, LayerPlace::Beside);
        Ok(LayerPlan { layer, state, known: None, prepared: None, place, replaces })
    }

    fn has_owners(&mut self, layer: &RepoPath) -> Result<bool, Failure> {
        let record = self.view.lookup(&layer.join(".metadata").join("format.json"))?;
        let bytes = record.map(|entry| self.content(&entry)).transpose()?.flatten();
        Ok(bytes.and_then(|b| FormatRecord::parse(&b).ok()).is_some_and(|r| r.owners))
    }

    /// A layer that has to come from the registry, or has come in an earlier run.
    fn to_fetch(&self, layer: Layer, place: LayerPlace, replaces: bool) -> LayerPlan {
        let prepared = PreparedLayer::recall(self.target, layer.descriptor.digest, place);
        let state = if prepared.is_some() { LayerState::Prepared } else { LayerState::Missing };
        let known = prepared.as_ref().map(PreparedLayer::reference);
        LayerPlan { layer, state, known, prepared, place, replaces }
    }

    /// What will have happened. `status` is the record of what the name leads to now.
    fn outcome(
        &mut self,
        wanted: &Wanted,
        document: &RawDocument,
        manifest: &Manifest,
        needs_flat: bool,
        layers: &[LayerPlan],
        status: Option<&StatusRecord>,
    ) -> Result<Outcome, Failure> {
        let record = self.read(&wanted.file(ImageFile::Manifest))?.and_then(|m| ManifestRecord::parse(&m).ok());
        let links = wanted.links(&self.layout, manifest.config);
        let public = self.lookup(&wanted.public())?;
        // What was published without a flat has no link.
        let had_flat = status.is_none_or(|status| status.flat);
        if public.is_none() && (record.is_none() || had_flat && !links.is_empty()) {
            return Ok(Outcome::Added);
        }
        let mut leads = !links.is_empty() || public.is_none();
        for (path, text) in &links {
            leads &= self.lookup(path)?.is_some_and(|entry| entry.symlink == text.as_bytes());
        }
        let there = |l: &LayerPlan| matches!(l.state, LayerState::Published | LayerState::Legacy);
        let is_complete = !needs_flat && record.is_some() && layers.iter().all(there);
        let is_recorded = |record: &ManifestRecord| is_record_of(record, &wanted.record(manifest));
        let is_same = leads
            && match status {
                Some(status) => {
                    status.digest == document.digest
                        && status.flat == wanted.options.has_flat()
                        && record.as_ref().is_some_and(is_recorded)
                }
                // Of an image that the existing tool has published, the parts are known and not the manifest.
                None => record.as_ref().is_some_and(is_recorded),
            };
        let is_listed = wanted
            .startup
            .as_ref()
            .is_none_or(|given| status.is_some_and(|status| status.startup == Some(given.digest())));
        let has_bundles = status.is_some_and(|status| status.bundles);
        let is_bundled = wanted.options.bundles.is_none_or(|said| said == has_bundles);
        if !(is_same && is_complete && is_listed && is_bundled) {
            return Ok(Outcome::Updated);
        }
        Ok(Outcome::Unchanged)
    }
}

/// Whether a record says what another one says: the existing tool and other versions of ours may spell it otherwise.
pub(crate) fn is_record_of(record: &ManifestRecord, expected: &ManifestRecord) -> bool {
    let layers = |r: &ManifestRecord| r.layers.iter().map(|l| l.digest).collect::<Vec<_>>();
    record.config.digest == expected.config.digest && layers(record) == layers(expected)
}

/// Compressed bytes of layers.
pub(crate) fn bytes_of<'a>(layers: impl IntoIterator<Item = &'a LayerDescriptor>) -> u64 {
    layers.into_iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
}

/// The name of an image in full, as records state it. Of an image on disk only the last part: where the operator keeps
/// files is nobody's business.
pub fn image_name(source: &ImageSource) -> String {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    match source {
        ImageSource::Registry(reference) => reference.whole_name(),
        ImageSource::OciLayout { dir, tag: None } => format!("oci:{}", last(dir)),
        ImageSource::OciLayout { dir, tag: Some(tag) } => format!("oci:{}:{tag}", last(dir)),
        ImageSource::DockerArchive { file } => format!("docker-archive:{}", last(file)),
    }
}
