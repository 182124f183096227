//! Makes plans for many images, one kind of question after another: so that registries answer many at the same time, and the repository
//! is read in the order of its paths. The plans are those of each image alone, in the order of the images.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use image::digest::{ImageId, ManifestDigest};
use image::layout::OwnedPath;
use image::manifest::{Config, Layer};
use image::platform::Platform;
use image::podman::{self, StorePath};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::documents::{Documents, Resolved};
use super::layers::KnownLayers;
use super::standing::Standing;
use super::view::View;
use super::{ImagePlan, LayerState, Wanted, bytes_of, image_name};
use crate::cli::ImageLimits;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::podman::{InStore, Stock};
use crate::repair::damaged::Damaged;
use crate::report::Outcome;
use crate::signature::{Claims, Fingerprint, Gate, Policy};
use crate::source::{Asked, Sources};
use crate::target::Target;

/// Images planned together: what is kept of each meanwhile takes some 20 KB.
const TOGETHER: usize = 2048;

/// Makes plans against one revision of the repository.
#[derive(Debug)]
pub struct Planner<'a> {
    pub(super) sources: &'a Sources,
    pub(super) view: View<'a>,
    pub(super) damaged: Damaged,
    limits: &'a ImageLimits,
    in_store: InStore,
    stock: Stock,
    policy: &'a Policy,
}

/// An image that may be published.
struct Admitted<'w> {
    wanted: &'w Wanted,
    documents: Documents,
    standing: Standing,
    signed_by: Vec<Fingerprint>,
}

/// The same with its config.
struct Described<'w> {
    admitted: Admitted<'w>,
    config_bytes: Vec<u8>,
    config: Config,
    platform: Platform,
    layers: Vec<Layer>,
}

/// A flat as it is published.
#[derive(Debug, Clone)]
struct KnownFlat {
    is_there: bool,
    catalog: Option<NestedRef>,
}

/// What the repository has of the parts of images.
struct Parts {
    flats: HashMap<ImageId, Result<KnownFlat, Arc<Failure>>>,
    layers: KnownLayers,
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
        let mut view = View::new(target)?;
        let damaged = Damaged::read(target)?;
        let list = OwnedPath::PodmanFile(StorePath::Images);
        let listed = match view.read(&list)? {
            Some(bytes) => podman::read(&bytes)
                .map_err(|error| Failure::Content(format!("{}: {error}", view.layout.print(&list))))?,
            None => Vec::new(),
        };
        let stock = Stock::new(listed, store_limit);
        Ok(Planner { sources, view, damaged, limits, in_store, stock, policy })
    }

    /// How many catalogs of the repository are open.
    pub fn open_catalogs(&self) -> usize {
        self.view.open_catalogs()
    }

    /// What has to be done for images whose tags were resolved to these digests.
    pub fn plan(&mut self, images: &[(&Wanted, ManifestDigest)]) -> Vec<Result<ImagePlan, Failure>> {
        images.chunks(TOGETHER).flat_map(|some| self.plan_together(some)).collect()
    }

    fn plan_together(&mut self, images: &[(&Wanted, ManifestDigest)]) -> Vec<Result<ImagePlan, Failure>> {
        let resolved = images.iter().map(|(wanted, digest)| Resolved {
            asked: wanted.asked(),
            platform: &wanted.platform,
            digest: *digest,
        });
        let documents = self.documents(&resolved.collect::<Vec<_>>());
        let named: Vec<_> = images.iter().zip(documents).map(|((w, d), documents)| (*w, *d, documents)).collect();
        let by_name = |(wanted, ..): &(&Wanted, _, _)| (wanted.place.clone(), wanted.name.clone());
        let admitted = in_order(named, by_name, |(wanted, digest, documents)| self.admit(wanted, digest, documents?));
        let asked = admitted.iter().flatten().map(|image| (image.wanted.asked(), image.documents.manifest.config));
        let mut configs = self.configs(&asked.collect::<Vec<_>>()).into_iter();
        let describe = |image: Result<_, _>| described(image?, configs.next().expect("one for each that is admitted")?);
        let described: Vec<Result<Described<'_>, Failure>> = admitted.into_iter().map(describe).collect();
        let parts = self.parts(&described.iter().flatten().collect::<Vec<_>>());
        described.into_iter().map(|image| self.complete(image?, &parts)).collect()
    }

    /// Lets an image through, before anything but its manifests is fetched.
    fn admit<'w>(
        &mut self,
        wanted: &'w Wanted,
        digest: ManifestDigest,
        documents: Documents,
    ) -> Result<Admitted<'w>, Failure> {
        let manifest = &documents.manifest;
        let standing = self.view.standing(wanted, manifest.config)?;
        let gate = Gate { policy: self.policy, sources: self.sources };
        let claims = Claims { public: wanted.options.public, keys: wanted.options.signers(), ..Claims::default() };
        let signed_by = gate.pass(wanted, digest, documents.document.digest, standing.status.as_ref(), &claims)?;
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
        Ok(Admitted { wanted, documents, standing, signed_by })
    }

    /// Looks for flats and layers, in the order of the repository's paths.
    fn parts(&mut self, images: &[&Described<'_>]) -> Parts {
        let flats: BTreeSet<ImageId> = images.iter().map(|i| i.admitted.documents.manifest.config).collect();
        let flats = flats.into_iter().map(|image| (image, self.flat(image).map_err(Arc::new))).collect();
        Parts { flats, layers: self.layers(images.iter().flat_map(|image| &image.layers)) }
    }

    fn flat(&mut self, image: ImageId) -> Result<KnownFlat, Failure> {
        let path = repo_path(&self.view.layout, &OwnedPath::Flat(image));
        Ok(KnownFlat { is_there: self.view.entry(&path)?.is_some(), catalog: self.view.nested(&path)? })
    }

    fn complete(&mut self, image: Described<'_>, parts: &Parts) -> Result<ImagePlan, Failure> {
        let Described { admitted, config_bytes, config, platform, layers } = image;
        let Admitted { wanted, documents, standing, signed_by } = admitted;
        let Documents { index, document, manifest } = documents;
        let known_flat = parts.flats[&manifest.config].clone().map_err(Failure::Shared)?;
        let has_flat = wanted.options.has_flat();
        let flat_damaged = has_flat && self.damaged.flats.contains(&manifest.config);
        let needs_flat = has_flat && (flat_damaged || !known_flat.is_there);
        // Layers that are not published are of use for making the flat only.
        let of_use = wanted.options.has_layers() || needs_flat;
        let layers = layers.into_iter().filter(|_| of_use).map(|layer| parts.layers.of(layer));
        let mut layers = layers.collect::<Result<Vec<_>, _>>()?;
        let mut diff_ids = HashMap::new();
        for Layer { descriptor, diff_id } in layers.iter().map(|l| &l.layer) {
            let found = *diff_ids.entry(descriptor.digest).or_insert(*diff_id);
            if found != *diff_id {
                return Err(Failure::DiffId { expected: *diff_id, found }.of_layer(descriptor.digest));
            }
        }
        for foreign in manifest.foreign() {
            tracing::warn!(image = %wanted.source, layer = %foreign.digest, "foreign layer is in no registry; left out");
        }
        let makes_something =
            needs_flat || layers.iter().any(|l| !matches!(l.state, LayerState::Published | LayerState::Legacy));
        for plan in layers.iter_mut().filter(|l| makes_something && l.state == LayerState::Legacy) {
            *plan = self.to_fetch(plan.layer.clone(), plan.place, plan.replaces);
        }
        let outcome = standing.outcome(wanted, &document, &manifest, needs_flat, &layers);
        let needs_records = match &standing.status {
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
            known_flat: known_flat.catalog,
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
        let documents = self.documents(&[Resolved { asked, platform, digest }]).remove(0)?;
        let config = Config::parse(&self.configs(&[(asked, documents.manifest.config)]).remove(0)?)?;
        Ok(config.created.and_then(|text| OffsetDateTime::parse(&text, &Rfc3339).ok()))
    }
}

fn described(admitted: Admitted<'_>, config_bytes: Vec<u8>) -> Result<Described<'_>, Failure> {
    let config = Config::parse(&config_bytes)?;
    let wanted = &admitted.wanted.platform;
    let platform = config.platform.clone().unwrap_or_else(|| wanted.clone());
    if !wanted.runs(&platform) {
        return Err(Failure::Content(format!("the image is for {platform}; {wanted} was asked for")));
    }
    let layers = admitted.documents.manifest.layers_with(&config)?;
    Ok(Described { admitted, config_bytes, config, platform, layers })
}

/// Works on things in the order of their keys; the results are in the order of the things.
fn in_order<T, K: Ord, R>(things: Vec<T>, key: impl Fn(&T) -> K, mut work: impl FnMut(T) -> R) -> Vec<R> {
    let mut places: Vec<(usize, T)> = things.into_iter().enumerate().collect();
    places.sort_by_cached_key(|(_, thing)| key(thing));
    let mut results: Vec<(usize, R)> = places.into_iter().map(|(place, thing)| (place, work(thing))).collect();
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}
