//! What becomes of the index when layers and images go: links whose layer goes lead to another one with the same content,
//! or go; documents that no record names go; which images use a layer is derived anew from their records.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::object::Encoder;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use image::digest::{ChainId, ImageId, LayerDigest, ManifestDigest};
use image::layout::{FormatRecord, IndexKey, Layout, OwnedPath, UsersRecord};
use image::manifest::{Config, MAX_DOCUMENT};

use super::mark::{Parts, Seen, Unit, read_all};
use super::plan::Plan;
use super::view::View;
use crate::failure::Failure;
use crate::layer::{format_record, repo_path};
use crate::target::Target;

/// What is to be done with the index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexPlan {
    /// Entries that go.
    pub remove: Vec<IndexKey>,
    /// Links that lead to another layer from now on.
    pub relink: Vec<(IndexKey, OwnedPath)>,
    /// Which images use a layer, where that has changed.
    pub users: Vec<(LayerDigest, UsersRecord)>,
}

impl IndexPlan {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.relink.is_empty() && self.users.is_empty()
    }

    /// Compares the index with what stays.
    pub fn make(target: &Target, seen: &Seen, plan: &Plan) -> Result<IndexPlan, Failure> {
        let view = View::new(target)?;
        let mut reader = IndexReader {
            target,
            layout: Layout::new(),
            swept: plan.swept(),
            seen,
            users: users(seen),
            configs: HashSet::new(),
            manifests: HashSet::new(),
            documents: Vec::new(),
            broken: Vec::new(),
            result: IndexPlan::default(),
        };
        for parts in stay(seen, plan) {
            reader.configs.insert(parts.config);
            reader.manifests.extend(parts.digest.iter().chain(&parts.index));
        }
        let top = RepoPath::ROOT.join_path(".index").expect("a normal path");
        if let Some(index) = view.directory(&top)? {
            for kind in index.list()?.into_iter().filter(Entry::is_directory) {
                let kind = view.enter(&index, &kind)?;
                for bucket in kind.list()?.into_iter().filter(Entry::is_directory) {
                    let bucket = view.enter(&kind, &bucket)?;
                    for entry in bucket.list()? {
                        reader.entry(&bucket.path.join(&entry.name), &entry)?;
                    }
                }
            }
        }
        reader.relink(&view, plan)?;
        let mut plan = reader.result;
        plan.users.extend(reader.users.into_iter().map(|(layer, images)| (layer, record(images))));
        plan.users.sort_by_key(|(layer, _)| *layer);
        Ok(plan)
    }
}

/// What the images are made of that are published or may be put back.
fn stay<'a>(seen: &'a Seen, plan: &'a Plan) -> impl Iterator<Item = &'a Parts> {
    seen.images.iter().map(|i| &i.parts).chain(plan.versions.iter().map(|v| &v.parts))
}

/// Which published images use a layer.
fn users(seen: &Seen) -> BTreeMap<LayerDigest, BTreeSet<ImageId>> {
    let mut users: BTreeMap<LayerDigest, BTreeSet<ImageId>> = BTreeMap::new();
    for parts in seen.images.iter().map(|i| &i.parts) {
        for layer in parts.layers.iter().filter(|l| seen.units.contains(&Unit::Layer(**l))) {
            users.entry(*layer).or_default().insert(parts.config);
        }
    }
    users
}

fn record(images: BTreeSet<ImageId>) -> UsersRecord {
    UsersRecord { images: images.into_iter().collect() }
}

struct IndexReader<'a> {
    target: &'a Target,
    layout: Layout,
    swept: BTreeSet<Unit>,
    seen: &'a Seen,
    /// Those that are not found to be recorded.
    users: BTreeMap<LayerDigest, BTreeSet<ImageId>>,
    configs: HashSet<ImageId>,
    manifests: HashSet<ManifestDigest>,
    /// Configs that stay.
    documents: Vec<(ImageId, Entry)>,
    /// Links whose layer goes or is gone.
    broken: Vec<IndexKey>,
    result: IndexPlan,
}

impl IndexReader<'_> {
    fn entry(&mut self, path: &RepoPath, entry: &Entry) -> Result<(), Failure> {
        let text = std::str::from_utf8(path.as_bytes()).ok();
        let Some(from @ OwnedPath::Index(key)) = text.and_then(|t| self.layout.parse(t)) else { return Ok(()) };
        match key {
            IndexKey::DiffId(_) | IndexKey::ChainId(_) | IndexKey::Image(_) => {
                let to = std::str::from_utf8(&entry.symlink).ok().and_then(|t| self.layout.parse_link(&from, t));
                let unit = match to {
                    Some(OwnedPath::Layer(layer) | OwnedPath::LayerOverlay(layer)) => Unit::Layer(layer),
                    Some(OwnedPath::Flat(flat)) if matches!(key, IndexKey::Image(_)) => Unit::Flat(flat),
                    // Not written by us: it stays.
                    _ => return Ok(()),
                };
                if self.swept.contains(&unit) || !self.seen.units.contains(&unit) {
                    self.broken.push(key);
                }
            }
            IndexKey::Config(config) if !self.configs.contains(&config) => self.result.remove.push(key),
            IndexKey::Manifest(manifest) if !self.manifests.contains(&manifest) => self.result.remove.push(key),
            IndexKey::Config(config) => self.documents.push((config, entry.clone())),
            IndexKey::Manifest(_) => {}
            IndexKey::Users(layer) => match self.users.remove(&layer) {
                None => self.result.remove.push(key),
                Some(images) => {
                    let record = record(images);
                    let mut encoder = Encoder::new(entry.algorithm(), self.target.codec);
                    if entry.content != Some(encoder.encode(&record.to_bytes()).0) {
                        self.result.users.push((layer, record));
                    }
                }
            },
        }
        Ok(())
    }

    /// Finds other layers for links whose layer goes: those of images that stay.
    fn relink(&mut self, view: &View<'_>, plan: &Plan) -> Result<(), Failure> {
        let broken = std::mem::take(&mut self.broken);
        if broken.is_empty() {
            return Ok(());
        }
        let wanted: HashSet<IndexKey> = broken.iter().copied().collect();
        let mut candidates: BTreeMap<IndexKey, BTreeSet<(LayerDigest, Option<ChainId>)>> = BTreeMap::new();
        let mut flats: BTreeMap<ChainId, BTreeSet<ImageId>> = BTreeMap::new();
        let images: HashMap<ImageId, &Parts> = stay(self.seen, plan).map(|parts| (parts.config, parts)).collect();
        let known = std::mem::take(&mut self.documents);
        let found = known.into_iter().filter(|(config, _)| images.contains_key(config)).collect();
        let store = &*self.target.store;
        let stacks = read_all(found, |(config, entry)| {
            let Some(hash) = entry.content else { return Ok((config, Vec::new())) };
            let mut bytes = Vec::new();
            fetch(store, hash.object(ObjectKind::File), entry.compression(), MAX_DOCUMENT as u64, &mut bytes)?;
            // Whoever wrote it: it counts if it has the digest.
            let parsed = Config::parse(&bytes).ok().filter(|_| ImageId::of(&bytes) == config);
            Ok((config, parsed.map_or_else(Vec::new, |c| c.diff_ids)))
        })?;
        for (config, diff_ids) in stacks {
            let layers = &images[&config].layers;
            if layers.len() != diff_ids.len() {
                continue;
            }
            let mut below = None;
            for ((layer, diff_id), chain) in layers.iter().zip(&diff_ids).zip(ChainId::stack(&diff_ids)) {
                let unit = Unit::Layer(*layer);
                if self.seen.units.contains(&unit) && !self.swept.contains(&unit) {
                    for key in [IndexKey::DiffId(*diff_id), IndexKey::ChainId(chain)] {
                        if wanted.contains(&key) {
                            candidates.entry(key).or_default().insert((*layer, below));
                        }
                    }
                }
                below = Some(chain);
            }
            let unit = Unit::Flat(config);
            if let Some(stack) = below.filter(|_| self.seen.units.contains(&unit) && !self.swept.contains(&unit)) {
                flats.entry(stack).or_default().insert(config);
            }
        }
        for key in broken {
            let mut target = match key {
                IndexKey::Image(stack) => flats.get(&stack).and_then(|f| f.first()).map(|flat| OwnedPath::Flat(*flat)),
                _ => None,
            };
            for (layer, below) in candidates.remove(&key).unwrap_or_default() {
                target = self.stands_for(view, key, layer, below)?;
                if target.is_some() {
                    break;
                }
            }
            match target {
                Some(to) => self.result.relink.push((key, to)),
                None => self.result.remove.push(key),
            }
        }
        Ok(())
    }

    /// The directory of a layer, if it is the tree that the key means.
    fn stands_for(
        &self,
        view: &View<'_>,
        key: IndexKey,
        layer: LayerDigest,
        below: Option<ChainId>,
    ) -> Result<Option<OwnedPath>, Failure> {
        let own = repo_path(&self.layout, &OwnedPath::Layer(layer));
        let Some(directory) = view.directory(&own)? else { return Ok(None) };
        let beside = directory.entry(&own.join(".overlay"))?.filter(Entry::is_directory);
        let (to, at, is_nested) = match &beside {
            Some(entry) => (OwnedPath::LayerOverlay(layer), own.join(".overlay"), entry.flags.is_nested_mountpoint()),
            None => (OwnedPath::Layer(layer), own, directory.is_top_of_catalog()),
        };
        if !is_nested {
            // Of the existing tool; the index never led to one whose record says something else.
            return Ok(Some(to));
        }
        let reference = match &beside {
            Some(_) => directory.nested(&at)?,
            None => directory.reference(),
        };
        let format: Option<FormatRecord> = format_record(view.loader(), &reference)?;
        let fits = format.is_none_or(|f| match key {
            IndexKey::DiffId(diff_id) => f.diff_id == diff_id,
            // A tree that was settled on other layers, or that may take directories from them, is left to a conversion.
            IndexKey::ChainId(_) => {
                let is_whole = below.is_none() || f.implicit.iter().all(String::is_empty);
                f.settled_on.is_none_or(|on| Some(on) == below) && is_whole
            }
            _ => false,
        });
        Ok(fits.then_some(to))
    }
}
