//! Makes prepared images visible: one transaction for all that are ready.
//!
//! Grafts, index links, records, public links — a reader sees all of an image or nothing. What is there already (another
//! publisher may have been faster) is left as it is.

mod links;
mod podman;

use std::collections::HashSet;

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::{fetch, put_content};
use cvmfs::subtree::Graft;
use cvmfs::transaction::{Published, Transaction};
use cvmfs::traversal::Loader;
use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{
    CatalogRule, FormatRecord, ImageFile, IndexKey, LayersJson, Layout, ManifestRecord, OwnedPath, StatusRecord,
    timestamp,
};
use image::manifest::Layer;
use time::UtcDateTime;

use crate::failure::Failure;
use crate::flat::PreparedFlat;
use crate::layer::{PreparedLayer, graft_of, repo_path};
use crate::plan::{ImagePlan, LayerState, is_record_of};
use crate::removal::Reason;
use crate::repair::damaged::Damaged;
use crate::target::{Preparation, Target, directory_meta, file_meta, until_first};

/// What wrote the records.
const GENERATOR: &str = concat!("cvmfs-publisher ", env!("CARGO_PKG_VERSION"));

/// Largest record that is read.
const RECORD_LIMIT: u64 = 4 << 20;

/// An image with all its parts, none of them visible yet.
#[derive(Debug)]
pub struct ReadyImage<'a> {
    /// What is to be published.
    pub plan: &'a ImagePlan,
    /// Layers that the repository did not have when the plan was made.
    pub layers: Vec<PreparedLayer>,
    /// Its flat, unless the repository had it.
    pub flat: Option<PreparedFlat>,
    /// Layers whose published directory is not what this image has: it stands on other layers.
    pub variants: HashSet<LayerDigest>,
}

impl ReadyImage<'_> {
    /// Fails unless everything that the new parts refer to is in the storage.
    fn prove(&self, target: &Target) -> Result<(), Failure> {
        let flat = self.flat.as_ref().map(PreparedFlat::reference);
        for reference in self.layers.iter().map(PreparedLayer::reference).chain(flat) {
            if !target.is_present(&reference)? {
                return Err(Failure::Collected { what: self.plan.image.clone() });
            }
        }
        Ok(())
    }
}

/// Publishes images in one transaction. If objects may have been collected since they were prepared, all are proven to
/// be there still.
pub fn publish(target: &Target, images: &[ReadyImage<'_>], preparation: &Preparation) -> Result<Published, Failure> {
    let published = until_first(|| publish_once(target, images, preparation))?;
    for layer in images.iter().flat_map(|image| &image.layers) {
        PreparedLayer::forget(target, layer.digest);
    }
    Damaged::forget(target, images)?;
    Ok(published)
}

fn publish_once(target: &Target, images: &[ReadyImage<'_>], preparation: &Preparation) -> Result<Published, Failure> {
    let now = target.clock.now();
    let lock = target.lock()?;
    if !preparation.is_undisturbed(target)? {
        images.iter().try_for_each(|image| image.prove(target))?;
    }
    let mut transaction = target.begin(&lock, now)?;
    let mut hand = Hand::new(target, &mut transaction, now)?;
    let mut new: Vec<_> = images.iter().filter(|image| !image.plan.is_only_stored()).collect();
    // What the plain path led to may move to a place of its own, and has to be there before the next image of that place.
    new.sort_by_key(|image| image.plan.wanted.place.is_some());
    new.into_iter().try_for_each(|image| hand.hang(image))?;
    hand.podman_store(images)?;
    target.commit(transaction)
}

/// What a layer of the existing tool is.
pub(crate) fn legacy_format(diff_id: DiffId, size: u64) -> FormatRecord {
    FormatRecord {
        whiteouts: FormatRecord::LITERAL.to_owned(),
        xattrs: false,
        diff_id,
        size,
        entries: 0,
        rows: 0,
        lost: Vec::new(),
        lost_more: 0,
        owners: false,
        settled_on: None,
        implicit: Vec::new(),
    }
}

/// Makes edits in one publish. `change` says what they came to, and whether anything is to be published; it may be asked again, when
/// others were faster. With the revisions before and after.
pub(crate) fn edit<T>(
    target: &Target,
    mut change: impl FnMut(&mut Hand<'_>) -> Result<(T, bool), Failure>,
) -> Result<(T, (u64, u64)), Failure> {
    until_first(|| {
        let lock = target.lock()?;
        let now = target.clock.now();
        let before = target.repository()?.manifest().revision;
        let mut transaction = target.begin(&lock, now)?;
        let (result, is_change) = change(&mut Hand::new(target, &mut transaction, now)?)?;
        let after = match is_change {
            true => target.commit(transaction)?.repository.manifest().revision,
            false => before,
        };
        Ok((result, (before, after)))
    })
}

/// Makes the edits of a transaction, in terms of the layout.
pub(crate) struct Hand<'a> {
    pub(crate) target: &'a Target,
    encoder: Encoder,
    pub(crate) layout: Layout,
    pub(crate) now: UtcDateTime,
    revision: u64,
    pub(crate) transaction: &'a mut Transaction,
}

impl<'a> Hand<'a> {
    pub(crate) fn new(
        target: &'a Target,
        transaction: &'a mut Transaction,
        now: UtcDateTime,
    ) -> Result<Hand<'a>, Failure> {
        let repository = target.repository()?;
        Ok(Hand {
            target,
            encoder: Encoder::new(repository.algorithm(), target.codec),
            layout: Layout::new(),
            now,
            revision: repository.manifest().revision + 1,
            transaction,
        })
    }
}

impl Hand<'_> {
    fn hang(&mut self, image: &ReadyImage<'_>) -> Result<(), Failure> {
        let plan = image.plan;
        for path in &plan.wrong {
            let at = repo_path(&self.layout, path);
            if self.transaction.lookup(&at)?.is_some() {
                self.transaction.remove(&at)?;
            }
        }
        let wanted = &plan.wanted;
        let has_layers = wanted.options.has_layers();
        for layer in image.layers.iter().filter(|_| has_layers) {
            let damaged = plan.layers.iter().any(|l| l.layer.descriptor.digest == layer.digest && l.replaces);
            self.graft(&layer.place.path(layer.digest), &layer.graft, damaged)?;
        }
        if let Some(flat) = &image.flat {
            self.graft(&OwnedPath::Flat(plan.manifest.config), &flat.graft, plan.flat_damaged)?;
            self.cover(plan, flat)?;
        }
        self.hang_back(image)?;
        for layer in plan.distinct_layers().filter(|l| has_layers && l.state == LayerState::Legacy) {
            self.mark_legacy(&layer.layer)?;
        }
        let (startup, bundles) = (self.startup_of(plan)?, self.bundles_of(plan)?);
        let layers = plan.layers.iter().filter(|_| has_layers).map(|l| l.layer.descriptor.digest);
        self.in_use_again(plan.manifest.config, layers)?;
        let next = wanted.platform.directory();
        if self.leads_elsewhere(plan)? {
            self.retire(wanted.place.as_ref(), &plan.name, Reason::TagMoved, Some(&next))?;
        } else if wanted.place.is_none() {
            self.keep_place(&plan.name, &next)?;
        }
        self.index(plan, &image.variants)?;
        self.file(&wanted.file(ImageFile::RawManifest), &plan.document.bytes)?;
        self.file(&wanted.file(ImageFile::Config), &plan.config_bytes)?;
        let status = StatusRecord {
            image: plan.image.clone(),
            digest: plan.document.digest,
            index: plan.index.as_ref().map(|index| index.digest),
            config: plan.manifest.config,
            platform: plan.platform.clone(),
            wished: Some(&wanted.platform).filter(|wished| wished.directory() != plan.platform.directory()).cloned(),
            flat: wanted.options.has_flat(),
            signed_by: plan.signed_by.clone(),
            published: timestamp(self.now.unix_timestamp()),
            revision: self.revision,
            generator: GENERATOR.to_owned(),
            startup: startup.as_ref().and_then(|list| list.given),
            bundles,
        };
        self.file(&wanted.file(ImageFile::Status), &status.to_bytes())?;
        self.pin_again(&wanted.owner(), plan.document.digest)?;
        self.file(&wanted.file(ImageFile::Manifest), &wanted.record(&plan.manifest).to_bytes())?;
        if let Some(list) = startup {
            self.put_startup(&wanted.owner(), plan.manifest.config, &plan.config.diff_ids, &list, bundles)?;
        }
        self.public_links(wanted, plan.manifest.config)
    }

    /// Hangs in what makes the image of its flat, and says of which stack of layers.
    fn cover(&mut self, plan: &ImagePlan, flat: &PreparedFlat) -> Result<(), Failure> {
        let image = plan.manifest.config;
        let path = OwnedPath::FlatCover(image);
        let at = repo_path(&self.layout, &path);
        self.transaction.remove(&at)?;
        let (Some(rows), Some(stack)) = (&flat.cover, ChainId::stack(&plan.config.diff_ids).last().copied()) else {
            return Ok(());
        };
        self.directories(&path, &at)?;
        for (below, (entry, chunks)) in rows {
            let place = if below.is_root() { Ok(at.clone()) } else { at.join_path(below.as_bytes()) };
            let place = place.map_err(|e| Failure::Content(format!("{at}: {e}")))?;
            self.transaction.put(&place, entry.clone(), chunks)?;
        }
        self.cover_again(image)?;
        self.first_link(&OwnedPath::Index(IndexKey::Image(stack)), &OwnedPath::Flat(image))
    }

    /// What was published when the plan was made, and was swept since, is hung in again: its objects are there as long
    /// as nobody may collect any.
    fn hang_back(&mut self, image: &ReadyImage<'_>) -> Result<(), Failure> {
        let plan = image.plan;
        let options = &plan.wanted.options;
        let keeps_flat = options.has_flat() && image.flat.is_none();
        let flat = keeps_flat.then_some((OwnedPath::Flat(plan.manifest.config), &plan.known_flat));
        let layers = plan.distinct_layers().filter(|_| options.has_layers()).filter_map(|l| {
            let digest = l.layer.descriptor.digest;
            match l.state {
                LayerState::Published => Some((l.place.path(digest), &l.known)),
                LayerState::Legacy => Some((OwnedPath::LayerContent(digest), &None)),
                LayerState::Prepared | LayerState::Missing => None,
            }
        });
        for (path, known) in layers.chain(flat) {
            let at = repo_path(&self.layout, &path);
            if self.transaction.lookup(&at)?.is_some() {
                continue;
            }
            let gone = || Failure::Content(format!("{at} was removed meanwhile; run again"));
            let known = known.as_ref().ok_or_else(gone)?;
            if !self.target.is_present(known)? {
                return Err(gone());
            }
            let graft = graft_of(Loader::new(&*self.target.store, self.target.scratch()), known)?;
            self.graft(&path, &graft, false)?;
        }
        Ok(())
    }

    /// Whether the name leads to another image than the one that comes now.
    fn leads_elsewhere(&mut self, plan: &ImagePlan) -> Result<bool, Failure> {
        let wanted = &plan.wanted;
        let status = self.read(&wanted.file(ImageFile::Status))?.and_then(|s| StatusRecord::parse(&s).ok());
        let record = self.read(&wanted.file(ImageFile::Manifest))?.and_then(|m| ManifestRecord::parse(&m).ok());
        Ok(match (status, record) {
            (Some(status), _) => status.digest != plan.document.digest,
            (None, Some(record)) => !is_record_of(&record, &plan.manifest.record()),
            (None, None) => false,
        })
    }

    fn index(&mut self, plan: &ImagePlan, variants: &HashSet<LayerDigest>) -> Result<(), Failure> {
        let diff_ids: Vec<_> = plan.layers.iter().map(|l| l.layer.diff_id).collect();
        let published = plan.layers.iter().zip(ChainId::stack(&diff_ids)).filter(|_| plan.wanted.options.has_layers());
        for (layer, chain) in published {
            let digest = layer.layer.descriptor.digest;
            if variants.contains(&digest) {
                continue;
            }
            let to = match self.transaction.lookup(&repo_path(&self.layout, &OwnedPath::LayerOverlay(digest)))? {
                Some(_) => OwnedPath::LayerOverlay(digest),
                None => OwnedPath::Layer(digest),
            };
            self.first_link(&OwnedPath::Index(IndexKey::DiffId(layer.layer.diff_id)), &to)?;
            self.first_link(&OwnedPath::Index(IndexKey::ChainId(chain)), &to)?;
        }
        self.first_file(&OwnedPath::Index(IndexKey::Config(plan.manifest.config)), &plan.config_bytes)?;
        for document in plan.index.iter().chain([&plan.document]) {
            self.first_file(&OwnedPath::Index(IndexKey::Manifest(document.digest)), &document.bytes)?;
        }
        Ok(())
    }

    /// Says of a layer of the existing tool how it is written.
    fn mark_legacy(&mut self, layer: &Layer) -> Result<(), Failure> {
        let digest = layer.descriptor.digest;
        let format = OwnedPath::LayerFormat(digest);
        if self.transaction.lookup(&repo_path(&self.layout, &format))?.is_some() {
            return Ok(());
        }
        let record = self.read(&OwnedPath::LayerRecord(digest))?.and_then(|r| LayersJson::parse(&r).ok());
        self.file(&format, &legacy_format(layer.diff_id, record.map_or(0, |r| r.size)).to_bytes())
    }

    fn graft(&mut self, path: &OwnedPath, graft: &Graft, replace: bool) -> Result<(), Failure> {
        let at = repo_path(&self.layout, path);
        let content = match path {
            // A directory without content is what the existing tool leaves behind when it fails.
            OwnedPath::Layer(_) => at.join("layerfs"),
            _ => at.clone(),
        };
        if !replace && self.transaction.lookup(&content)?.is_some() {
            return Ok(());
        }
        if !self.target.store.exists(graft.catalog.object(ObjectKind::Catalog))? {
            return Err(Failure::Content(format!("the catalog of {at} is not in the storage any more; run again")));
        }
        self.directories(path, &at)?;
        Ok(self.transaction.graft(graft)?)
    }

    /// A link whose first writer stays, as long as it leads somewhere.
    pub(crate) fn first_link(&mut self, path: &OwnedPath, to: &OwnedPath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, path);
        if let Some(entry) = self.transaction.lookup(&at)? {
            let leads_to = std::str::from_utf8(&entry.symlink).ok().and_then(|t| self.layout.parse_link(path, t));
            if let Some(found) = leads_to
                && !matches!((found.clone(), to), (OwnedPath::Layer(old), OwnedPath::LayerOverlay(new)) if old == *new)
                && self.transaction.lookup(&repo_path(&self.layout, &found))?.is_some()
            {
                return Ok(());
            }
        }
        self.link(path, to)
    }

    pub(crate) fn link(&mut self, path: &OwnedPath, to: &OwnedPath) -> Result<(), Failure> {
        let target = self.layout.link(path, to);
        self.link_to(path, target)
    }

    pub(crate) fn link_to(&mut self, path: &OwnedPath, target: String) -> Result<(), Failure> {
        let at = repo_path(&self.layout, path);
        let old = self.transaction.lookup(&at)?;
        if old.as_ref().is_some_and(|e| e.symlink == target.as_bytes()) {
            return Ok(());
        }
        if old.is_some_and(|e| e.symlink.is_empty()) {
            return Err(Failure::Content(format!(
                "{at} exists and is no image of ours; nothing was published over it (remove it, or publish with --as NAME:TAG)"
            )));
        }
        self.directories(path, &at)?;
        let meta = cvmfs::entry::Meta { permissions: 0o777, ..file_meta(self.now) };
        self.transaction.put(&at, Entry::symlink(at.name(), meta, target), &[])?;
        self.split_large(path)
    }

    pub(crate) fn read(&mut self, path: &OwnedPath) -> Result<Option<Vec<u8>>, Failure> {
        self.read_up_to(path, RECORD_LIMIT)
    }

    pub(crate) fn read_up_to(&mut self, path: &OwnedPath, most: u64) -> Result<Option<Vec<u8>>, Failure> {
        self.read_at(&repo_path(&self.layout, path), most)
    }

    fn read_at(&mut self, at: &RepoPath, most: u64) -> Result<Option<Vec<u8>>, Failure> {
        let Some(entry) = self.transaction.lookup(at)? else { return Ok(None) };
        let Some(hash) = entry.content else { return Ok(None) };
        let mut bytes = Vec::new();
        let id = hash.object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), most, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// The record of an image in a directory of records.
    pub(crate) fn status_in(&mut self, directory: &OwnedPath) -> Result<Option<StatusRecord>, Failure> {
        let at = repo_path(&self.layout, directory).join(ImageFile::Status.file_name());
        Ok(self.read_at(&at, RECORD_LIMIT)?.and_then(|bytes| StatusRecord::parse(&bytes).ok()))
    }

    fn first_file(&mut self, path: &OwnedPath, bytes: &[u8]) -> Result<(), Failure> {
        match self.transaction.lookup(&repo_path(&self.layout, path))? {
            Some(_) => Ok(()),
            None => self.file(path, bytes),
        }
    }

    pub(crate) fn file(&mut self, path: &OwnedPath, bytes: &[u8]) -> Result<(), Failure> {
        let at = repo_path(&self.layout, path);
        let entry = self.stored(&at, bytes)?;
        if self.transaction.lookup(&at)?.is_some_and(|old| old.content == entry.content) {
            return Ok(());
        }
        self.directories(path, &at)?;
        self.transaction.put(&at, entry, &[])?;
        self.split_large(path)
    }

    /// The row of a file with this content, which is in the storage then.
    pub(crate) fn stored(&mut self, at: &RepoPath, bytes: &[u8]) -> Result<Entry, Failure> {
        let (hash, _) = put_content(&*self.target.store, &mut self.encoder, ObjectKind::File, bytes)?;
        let compression = self.target.codec.compression();
        Ok(Entry::file(at.name(), file_meta(self.now), bytes.len() as u64, hash, compression))
    }

    /// Makes the directories above a path, with the nested catalogs that the layout wants.
    pub(crate) fn directories(&mut self, path: &OwnedPath, at: &RepoPath) -> Result<(), Failure> {
        let Some(parent) = at.parent() else { return Ok(()) };
        let starts: Vec<RepoPath> = self
            .layout
            .nested_catalogs(path)
            .into_iter()
            .filter(|n| n.rule == CatalogRule::Always)
            .filter_map(|n| RepoPath::ROOT.join_path(n.path).ok())
            .collect();
        let meta = directory_meta(self.now);
        Ok(self.transaction.ensure_directories(&parent, meta, &|p| starts.contains(p))?)
    }

    /// Directories of names become catalogs of their own when they have grown large.
    fn split_large(&mut self, path: &OwnedPath) -> Result<(), Failure> {
        let large = self.layout.nested_catalogs(path).into_iter().filter(|n| n.rule == CatalogRule::WhenLarge);
        for directory in large.filter_map(|n| RepoPath::ROOT.join_path(n.path).ok()) {
            self.transaction.split_if_larger(&directory, Layout::LARGE_DIRECTORY as u64)?;
            let (crowd, least) = (Layout::CROWDED_CATALOG as u64, Layout::WORTH_A_CATALOG as u64);
            self.transaction.split_if_crowded(&directory, crowd, least)?;
        }
        Ok(())
    }
}
