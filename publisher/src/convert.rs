//! One pass over wishes: resolve, plan, execute, report. Life of a wish: design in `doc/ARCHITECTURE.md`.
//!
//! Threads: `jobs` readers fetch distinct missing layers, each exactly once, for whichever images need them; the pool
//! compresses on all cores; the coordinator prepares, flattens and publishes what is complete while others are still
//! fetched. One image's failure never stops another.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};
use cvmfs::catalog::NestedRef;
use cvmfs::hash::ContentHash;
use cvmfs::traversal::Loader;
use image::digest::{ChainId, DiffId, LayerDigest, ManifestDigest};
use image::layout::FormatRecord;
use image::manifest::Layer;
use image::platform::Platform;
use image::reference::{ImageSource, PublicName, Wish as WishSource};
use parking_lot::Mutex;

use crate::cli::{FlatPermissions, ImageLimits};
use crate::content::{Collector, Pool};
use crate::error::one_line;
use crate::failure::Failure;
use crate::flat::flatten;
use crate::layer::{Base, LayerPlace, LayerProgress, Lower, PreparedLayer, StagedLayer, format_record, read_layer};
use crate::plan::{ImagePlan, LayerPlan, LayerState, Planner, Wanted, image_name};
use crate::podman::{InStore, PodmanOutcome, PodmanState};
use crate::progress::{Event, Progress};
use crate::publish::{ReadyImage, publish};
use crate::raw_index::RawIndex;
use crate::report::{Outcome, Report, WishOutcome};
use crate::source::Sources;
use crate::startup::GivenList;
use crate::target::{Preparation, Target};

/// Tags resolved at the same time.
const RESOLVERS: usize = 16;
/// Images published together at most.
const BATCH: usize = 64;
/// What a conversion is called by those who have to wait for it.
const CONVERTING: &str = "convert images";
/// How often a pass makes images again whose objects were collected by somebody who does not wait.
const AGAIN: u32 = 3;

/// How images are converted.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Platform to choose where an image has several.
    pub platform: Platform,
    /// Layers fetched at the same time.
    pub jobs: usize,
    /// Permissions of files in flats.
    pub permissions: FlatPermissions,
    /// Limits against hostile input.
    pub limits: ImageLimits,
    /// Which images go into the store for Podman.
    pub in_store: InStore,
    /// How many it may have.
    pub store_limit: usize,
}

/// A wish before anybody was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// As it stands in the list or on the command line.
    pub text: String,
    /// Its line.
    pub line: Option<u64>,
    /// What it means.
    pub source: WishSource,
    /// A name of the operator's choice.
    pub name: Option<PublicName>,
    /// What a start of the image touches, if somebody says so.
    pub startup: Option<Arc<GivenList>>,
    /// Whose it is. The images of several owners take turns.
    pub owner: Option<String>,
    /// Images of a higher priority are fetched before those of a lower one, whoever owns them.
    pub priority: i32,
}

impl Request {
    /// A wish of nobody in particular, from the command line.
    pub fn new(text: impl Into<String>, source: WishSource) -> Self {
        Self { text: text.into(), line: None, source, name: None, startup: None, owner: None, priority: 0 }
    }
}

/// What a pass will do: one entry an image, in the order of the wishes.
#[derive(Debug)]
pub struct Plan {
    /// Revision that the plan was made against.
    pub revision: u64,
    /// Images with their plans, and wishes that failed already.
    pub images: Vec<Result<ImagePlan, Box<WishOutcome>>>,
}

/// Converts images into one repository.
#[derive(Debug)]
pub struct Converter<'a> {
    /// The repository.
    pub target: &'a Target,
    /// Where images come from.
    pub sources: Sources,
    /// How.
    pub options: ConvertOptions,
    /// Who is told.
    pub progress: Arc<dyn Progress>,
}

impl Converter<'_> {
    /// Asks the registries and compares with the repository.
    pub fn plan(&self, requests: &[Request]) -> Result<Plan, Failure> {
        self.plan_some(requests, &|_| true)
    }

    /// The same for those images only that are wanted.
    pub fn plan_some(&self, requests: &[Request], is_wanted: &dyn Fn(&Wanted) -> bool) -> Result<Plan, Failure> {
        let options = &self.options;
        let store = (options.in_store.clone(), options.store_limit);
        let mut planner = Planner::new(self.target, &self.sources, &options.limits, options.platform.clone(), store)?;
        let revision = self.target.repository()?.manifest().revision;
        let mut wanted = Vec::new();
        for request in requests {
            wanted.extend(self.expand(request).into_iter().filter(|w| w.as_ref().map_or(true, is_wanted)));
        }
        let digests = self.resolve_all(&wanted);
        let images = wanted
            .into_iter()
            .zip(digests)
            .map(|(wanted, digest)| {
                let wanted = wanted?;
                let plan = digest.and_then(|digest| planner.plan(&wanted, digest));
                plan.map_err(|e| failed(&wanted, &e))
            })
            .collect();
        Ok(Plan { revision, images })
    }

    /// The images of a wish; a wildcard has many.
    fn expand(&self, request: &Request) -> Vec<Result<Wanted, Box<WishOutcome>>> {
        let refuse = |e: Failure| Box::new(WishOutcome::failed(&request.text, request.line, one_line(&e)));
        let make = |source: ImageSource| {
            let name = match &request.name {
                Some(name) => Ok(name.clone()),
                None => source.public_path(None).map_err(|e| refuse(e.into())),
            };
            let (wish, line, startup) = (request.text.clone(), request.line, request.startup.clone());
            Ok(Wanted { wish, line, name: name?, source, startup })
        };
        match &request.source {
            WishSource::Image(source) => vec![make(source.clone())],
            WishSource::Wildcard(wildcard) => match self.sources.tags(wildcard.repository()) {
                Ok(tags) => {
                    let mut tags: Vec<_> = tags.iter().filter_map(|tag| wildcard.select(tag)).collect();
                    tags.sort();
                    tags.into_iter().map(|reference| make(ImageSource::Registry(reference))).collect()
                }
                Err(e) => vec![Err(refuse(e))],
            },
        }
    }

    fn resolve_all(&self, wanted: &[Result<Wanted, Box<WishOutcome>>]) -> Vec<Result<ManifestDigest, Failure>> {
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<ManifestDigest, Failure>>>> =
            wanted.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..RESOLVERS.min(wanted.len()) {
                scope.spawn(|| {
                    while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < wanted.len()) {
                        if let Ok(wanted) = &wanted[i] {
                            *results[i].lock() = Some(self.sources.resolve(&wanted.source));
                        }
                    }
                });
            }
        });
        let unasked = || Err(Failure::Elsewhere("the wish failed before".into()));
        results.into_iter().map(|r| r.into_inner().unwrap_or_else(unasked)).collect()
    }

    /// Executes a plan.
    pub fn apply(&self, plan: &Plan) -> Result<Report, Failure> {
        let mut report = Report::new(&self.target.fqrn);
        report.revision_before = Some(plan.revision);
        let repository = self.target.repository()?;
        report.revision = Some(repository.manifest().revision);
        let algorithm = repository.algorithm();
        let index = Arc::new(RawIndex::open(&self.target.paths.state, algorithm, self.target.codec)?);
        let work = |image: &Result<ImagePlan, _>| image.as_ref().is_ok_and(ImagePlan::has_work);
        // A pass with nothing new changes nothing, not even this.
        let preparation = match plan.images.iter().any(work) {
            true => Some(self.target.prepare(CONVERTING)?),
            false => None,
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = self.target.pool(index.clone(), threads)?;
        let mut pass = Pass::new(self, &pool, plan, preparation);
        pass.run();
        index.flush()?;
        if let Some(revision) = pass.revision {
            report.revision = Some(revision);
        }
        report.wishes = pass.outcomes.into_iter().flatten().collect();
        Ok(report)
    }
}

fn failed(wanted: &Wanted, failure: &Failure) -> Box<WishOutcome> {
    let outcome = WishOutcome::failed(&wanted.wish, wanted.line, one_line(failure));
    Box::new(WishOutcome { image: Some(image_name(&wanted.source)), ..outcome })
}

/// A blob, and what its content is said to be: a config that lies about a blob is a matter of its own image only.
type LayerKey = (LayerDigest, DiffId);

fn key(layer: &Layer) -> LayerKey {
    (layer.descriptor.digest, layer.diff_id)
}

/// What the distinct layers of an image stand on, by chain ID; none for the lowest.
fn bases(image: &ImagePlan) -> Vec<Option<ChainId>> {
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|l| l.layer.diff_id).collect();
    let below = std::iter::once(None).chain(ChainId::stack(&diff_ids).into_iter().map(Some));
    let mut seen = HashSet::new();
    let first = image.layers.iter().zip(below).filter(|(l, _)| seen.insert(l.layer.descriptor.digest));
    first.map(|(_, chain)| chain).collect()
}

/// A layer on its way.
#[derive(Debug)]
enum Slot {
    /// Being fetched.
    Awaited,
    /// Read, waiting for those below it.
    Staged(Box<StagedLayer>),
    /// Its catalog is stored; with the layer if it is not published yet.
    Ready(NestedRef, Option<PreparedLayer>),
    /// It failed, and so do the images that need it.
    Failed(String),
}

/// What a reader sends.
struct Arrived {
    layer: LayerKey,
    bytes: u64,
    stored: u64,
    deduplicated: u64,
    result: Result<Staged, Failure>,
}

enum Staged {
    Waits(Box<StagedLayer>),
    Done(PreparedLayer),
}

/// The execution of one plan.
struct Pass<'a> {
    converter: &'a Converter<'a>,
    pool: &'a Pool,
    plan: &'a Plan,
    slots: HashMap<LayerKey, Slot>,
    /// Images by place in the plan that are not finished.
    open: Vec<usize>,
    ready: Vec<(usize, ReadyImage<'a>)>,
    outcomes: Vec<Option<WishOutcome>>,
    /// Which image pays for a layer in the report.
    payer: HashMap<LayerKey, usize>,
    /// What stored layers are, by their own records.
    recorded: HashMap<ContentHash, Option<Arc<FormatRecord>>>,
    /// Layers as they are on another base than the one that they are published on.
    variants: HashMap<(LayerKey, Option<ChainId>), NestedRef>,
    start: Instant,
    revision: Option<u64>,
    /// Keeps collectors away; none if there is nothing to prepare.
    preparation: Option<Preparation>,
    /// How often images were made again.
    again: u32,
}

/// A layer to be fetched.
struct Fetch<'a> {
    layer: &'a Layer,
    place: LayerPlace,
    source: &'a ImageSource,
    image: &'a str,
}

impl<'a> Pass<'a> {
    fn new(converter: &'a Converter<'a>, pool: &'a Pool, plan: &'a Plan, preparation: Option<Preparation>) -> Pass<'a> {
        Pass {
            converter,
            pool,
            plan,
            slots: HashMap::new(),
            open: Vec::new(),
            ready: Vec::new(),
            outcomes: plan.images.iter().map(|_| None).collect(),
            payer: HashMap::new(),
            recorded: HashMap::new(),
            variants: HashMap::new(),
            start: Instant::now(),
            revision: None,
            preparation,
            again: 0,
        }
    }

    fn run(&mut self) {
        let fetches = self.begin();
        let (send, arrivals) = unbounded::<Arrived>();
        let next = AtomicUsize::new(0);
        let (converter, pool) = (self.converter, self.pool);
        std::thread::scope(|scope| {
            for _ in 0..converter.options.jobs.max(1).min(fetches.len()) {
                let (send, next, fetches) = (send.clone(), &next, &fetches);
                scope.spawn(move || {
                    while let Some(fetch) = fetches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The coordinator listens until all readers are done.
                        let _ = send.send(read(converter, pool, fetch));
                    }
                });
            }
            drop(send);
            self.coordinate(&arrivals);
        });
    }

    /// Sorts the plan: outcomes that stand already, slots, and what has to be fetched, in the order of the images.
    fn begin(&mut self) -> Vec<Fetch<'a>> {
        let mut fetches = Vec::new();
        for (place, image) in self.plan.images.iter().enumerate() {
            let image = match image {
                Ok(image) => image,
                Err(outcome) => {
                    self.outcomes[place] = Some((**outcome).clone());
                    continue;
                }
            };
            let mut outcome = WishOutcome::new(&image.wanted.wish, image.wanted.line, image.outcome);
            outcome.image = Some(image.image.clone());
            outcome.digest = Some(image.document.digest.to_string());
            let count = |state| image.distinct_layers().filter(|l| l.state == state).count() as u64;
            outcome.layers.known =
                [LayerState::Published, LayerState::Legacy, LayerState::Prepared].into_iter().map(count).sum();
            outcome.podman = image.podman.map(|state| self.stored(image, state));
            self.outcomes[place] = Some(outcome);
            if !image.has_work() {
                continue;
            }
            if image.is_only_stored() {
                let nothing = (Vec::new(), None, HashSet::new());
                let (layers, flat, variants) = nothing;
                self.ready.push((place, ReadyImage { plan: image, layers, flat, variants }));
                continue;
            }
            let total = Some(image.missing_bytes());
            self.tell(Event::ImageStarted { image: &image.image, layers: image.layers.len(), total });
            self.open.push(place);
            for layer in image.distinct_layers().filter(|l| l.state != LayerState::Legacy) {
                let key = key(&layer.layer);
                if self.slots.contains_key(&key) {
                    continue;
                }
                let slot = match &layer.known {
                    Some(known) => {
                        let text = key.0.to_string();
                        self.tell(Event::LayerFinished { image: &image.image, layer: &text, bytes: 0, known: true });
                        Slot::Ready(known.clone(), layer.prepared.clone())
                    }
                    None => {
                        let (layer, to, source) = (&layer.layer, layer.place, &image.wanted.source);
                        fetches.push(Fetch { layer, place: to, source, image: &image.image });
                        self.payer.insert(key, place);
                        Slot::Awaited
                    }
                };
                self.slots.insert(key, slot);
            }
        }
        fetches
    }

    fn stored(&self, image: &ImagePlan, state: PodmanState) -> PodmanOutcome {
        PodmanOutcome::new(&image.name, state, self.converter.options.store_limit)
    }

    fn coordinate(&mut self, arrivals: &Receiver<Arrived>) {
        self.advance();
        while let Ok(arrived) = arrivals.recv() {
            self.take(arrived);
            for more in arrivals.try_iter().collect::<Vec<_>>() {
                self.take(more);
            }
            self.advance();
        }
        self.publish_ready();
    }

    fn take(&mut self, arrived: Arrived) {
        if let Some(outcome) = self.payer.get(&arrived.layer).and_then(|place| self.outcomes[*place].as_mut()) {
            outcome.layers.fetched += u64::from(arrived.result.is_ok());
            outcome.bytes.downloaded += arrived.bytes;
            outcome.bytes.stored += arrived.stored;
            outcome.bytes.deduplicated += arrived.deduplicated;
        }
        let slot = match arrived.result {
            Ok(Staged::Waits(staged)) => Slot::Staged(staged),
            Ok(Staged::Done(prepared)) => Slot::Ready(prepared.reference(), Some(prepared)),
            Err(e) => Slot::Failed(one_line(&e)),
        };
        self.slots.insert(arrived.layer, slot);
    }

    /// Brings every open image as far as its layers allow; publishes what is complete.
    fn advance(&mut self) {
        let mut lost = Vec::new();
        for place in std::mem::take(&mut self.open) {
            let Ok(image) = &self.plan.images[place] else { continue };
            match self.settle(image) {
                Ok(false) => self.open.push(place),
                Ok(true) => match self.complete(image) {
                    Ok(ready) => self.ready.push((place, ready)),
                    Err(e) => lost.push((place, one_line(&e))),
                },
                Err(what) => lost.push((place, what)),
            }
            if self.ready.len() >= BATCH {
                self.publish_ready();
            }
        }
        if !lost.is_empty() && self.was_collected() {
            let places: Vec<usize> = lost.iter().map(|(place, _)| *place).collect();
            self.make_again(&places);
        } else {
            for (place, what) in lost {
                if let Ok(image) = &self.plan.images[place] {
                    self.fail(place, &image.image, &what);
                }
            }
        }
        self.publish_ready();
    }

    /// Prepares the layers of an image from the bottom up, as far as they have arrived; whether all are ready.
    fn settle(&mut self, image: &'a ImagePlan) -> Result<bool, String> {
        let target = self.converter.target;
        let loader = Loader::new(&*target.store, target.scratch());
        if let Some(Slot::Failed(what)) = image
            .distinct_layers()
            .filter_map(|l| self.slots.get(&key(&l.layer)))
            .find(|s| matches!(s, Slot::Failed(_)))
        {
            return Err(what.clone());
        }
        let mut base = Base::default();
        let layers = image.distinct_layers().zip(bases(image));
        // Where anything has to be made, no layer is left as the existing tool wrote it.
        for (layer, chain) in layers.filter(|(l, _)| l.state != LayerState::Legacy) {
            base.chain = chain;
            let key = key(&layer.layer);
            let slot = match self.slots.remove(&key).unwrap_or(Slot::Awaited) {
                Slot::Staged(staged) => match staged.prepare(target, self.pool, &base) {
                    Ok(prepared) => Slot::Ready(prepared.reference(), Some(prepared)),
                    Err(e) => Slot::Failed(one_line(&e)),
                },
                other => other,
            };
            let result = match &slot {
                Slot::Ready(reference, _) => Ok(Some(reference.clone())),
                Slot::Failed(what) => Err(what.clone()),
                _ => Ok(None),
            };
            self.slots.insert(key, slot);
            let Some(reference) = result? else { return Ok(false) };
            let reference = self.on_base(image, &layer.layer, reference, &base).map_err(|e| one_line(&e))?;
            base.layers.push(Lower::new(loader, reference));
        }
        Ok(true)
    }

    /// The stored layer, or, where it is another tree on this base, a variant of it: fetched again, for the flat of
    /// this image only. Layers of container builders are never like that; those of other tools are, now and then.
    fn on_base(
        &mut self,
        image: &'a ImagePlan,
        layer: &'a Layer,
        stored: NestedRef,
        base: &Base<'_>,
    ) -> Result<NestedRef, Failure> {
        let place = (key(layer), base.chain);
        if let Some(variant) = self.variants.get(&place) {
            return Ok(variant.clone());
        }
        let fits = match self.record(&stored)? {
            Some(record) => base.carries(&record)?,
            None => true,
        };
        if fits {
            return Ok(stored);
        }
        let fetch = Fetch { layer, place: LayerPlace::Own, source: &image.wanted.source, image: &image.image };
        let arrived = read(self.converter, self.pool, &fetch);
        let variant = match arrived.result? {
            Staged::Waits(staged) => staged.prepare_variant(self.converter.target, self.pool, base)?.reference(),
            Staged::Done(prepared) => prepared.reference(),
        };
        self.variants.insert(place, variant.clone());
        Ok(variant)
    }

    /// How a stored layer was written.
    fn record(&mut self, stored: &NestedRef) -> Result<Option<Arc<FormatRecord>>, Failure> {
        if let Some(known) = self.recorded.get(&stored.hash) {
            return Ok(known.clone());
        }
        let target = self.converter.target;
        let record = format_record(Loader::new(&*target.store, target.scratch()), stored)?.map(Arc::new);
        self.recorded.insert(stored.hash, record.clone());
        Ok(record)
    }

    /// All layers are ready: makes the flat.
    fn complete(&mut self, image: &'a ImagePlan) -> Result<ReadyImage<'a>, Failure> {
        for layer in image.distinct_layers().filter(|l| l.known.is_some()) {
            self.check_known(layer)?;
        }
        let ready = |layer: &Layer| match self.slots.get(&key(layer)) {
            Some(Slot::Ready(reference, prepared)) => (reference.clone(), prepared.clone()),
            _ => unreachable!("settled before"),
        };
        let variants: HashMap<LayerKey, NestedRef> = image
            .distinct_layers()
            .zip(bases(image))
            .filter_map(|(l, chain)| Some((key(&l.layer), self.variants.get(&(key(&l.layer), chain))?.clone())))
            .collect();
        let on_base = |layer: &Layer| variants.get(&key(layer)).cloned().unwrap_or_else(|| ready(layer).0);
        let flat = if image.needs_flat {
            self.tell(Event::ImageStage { image: &image.image, stage: "flattening" });
            let stack: Vec<_> = image.layers.iter().map(|l| on_base(&l.layer)).collect();
            let permissions = self.converter.options.permissions;
            let target = self.converter.target;
            let flat = flatten(target, self.pool, image.manifest.config, &image.config, &stack, permissions)?;
            if let Some(first) = &flat.first_unreadable {
                let text = format!(
                    "{}: {} files or directories of the flat image are not readable by everybody, the first is /{first}",
                    image.image, flat.unreadable
                );
                self.tell(Event::Message { text: &text });
            }
            Some(flat)
        } else {
            None
        };
        let made = image.distinct_layers().filter(|l| l.state != LayerState::Legacy);
        let layers = made.filter_map(|l| ready(&l.layer).1).collect();
        let variants = variants.into_keys().map(|(digest, _)| digest).collect();
        Ok(ReadyImage { plan: image, layers, flat, variants })
    }

    /// A layer that was not fetched now is still compared with what this image's config says of it.
    fn check_known(&mut self, layer: &LayerPlan) -> Result<(), Failure> {
        let (digest, expected) = key(&layer.layer);
        let Some(known) = &layer.known else { return Ok(()) };
        let now = self.slots.get(&key(&layer.layer));
        // What was fetched after all was compared then.
        if matches!(now, Some(Slot::Ready(reference, _)) if reference.hash != known.hash) {
            return Ok(());
        }
        match self.record(known)? {
            Some(record) if record.diff_id != expected => {
                Err(Failure::DiffId { expected, found: record.diff_id }.of_layer(digest))
            }
            _ => Ok(()),
        }
    }

    fn publish_ready(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let (places, images): (Vec<usize>, Vec<ReadyImage<'_>>) = std::mem::take(&mut self.ready).into_iter().unzip();
        for image in &images {
            self.tell(Event::ImageStage { image: &image.plan.image, stage: "publishing" });
        }
        let preparation = self.preparation.as_ref().expect("there was something to prepare");
        match publish(self.converter.target, &images, preparation) {
            Err(Failure::Collected { .. }) if self.was_collected() => self.make_again(&places),
            Ok(published) => {
                self.revision = Some(published.repository.manifest().revision);
                tracing::info!(
                    revision = published.repository.manifest().revision,
                    images = images.len(),
                    catalogs = published.catalogs,
                    catalog_bytes = published.catalog_bytes,
                    "published"
                );
                for (place, image) in places.into_iter().zip(&images) {
                    self.finish(place, &image.plan.image, None);
                }
            }
            Err(e) => {
                let what = one_line(&e);
                for (place, image) in places.into_iter().zip(&images) {
                    self.fail(place, &image.plan.image, &what);
                }
            }
        }
    }

    /// Whether objects were collected since this pass began, by somebody who does not wait, and it is worth another try.
    fn was_collected(&mut self) -> bool {
        let target = self.converter.target;
        let undisturbed = self.preparation.as_ref().is_none_or(|p| p.is_undisturbed(target).unwrap_or(true));
        if undisturbed || self.again == AGAIN {
            return false;
        }
        self.again += 1;
        true
    }

    /// Fetches what is gone of images that were under way when objects were collected, and publishes those that are
    /// ready.
    fn make_again(&mut self, places: &[usize]) {
        let target = self.converter.target;
        let renewed = self.preparation.as_mut().map_or(Ok(()), |p| p.renew(target, CONVERTING));
        self.variants.clear();
        for place in places {
            let Ok(image) = &self.plan.images[*place] else { continue };
            let made = match &renewed {
                Ok(()) => self.make(*place, image),
                Err(e) => Err(one_line(e)),
            };
            match made {
                Ok(Some(ready)) => self.ready.push((*place, ready)),
                Ok(None) => self.open.push(*place),
                Err(what) => self.fail(*place, &image.image, &what),
            }
        }
        self.publish_ready();
    }

    /// An image, as far as its layers have arrived; none if one has not.
    fn make(&mut self, payer: usize, image: &'a ImagePlan) -> Result<Option<ReadyImage<'a>>, String> {
        let plain = |e: Failure| one_line(&e);
        for layer in image.distinct_layers().filter(|l| l.state != LayerState::Legacy) {
            let is_there = match self.slots.get(&key(&layer.layer)) {
                Some(Slot::Ready(reference, Some(_))) => {
                    let reference = reference.clone();
                    self.converter.target.is_present(&reference).map_err(plain)?
                }
                // What is published no collection takes.
                Some(Slot::Ready(_, None) | Slot::Awaited) => true,
                _ => false,
            };
            if !is_there {
                let (place, source) = (layer.place, &image.wanted.source);
                let fetch = Fetch { layer: &layer.layer, place, source, image: &image.image };
                let arrived = read(self.converter, self.pool, &fetch);
                self.payer.entry(arrived.layer).or_insert(payer);
                self.take(arrived);
            }
        }
        match self.settle(image)? {
            true => self.complete(image).map(Some).map_err(plain),
            false => Ok(None),
        }
    }

    fn fail(&mut self, place: usize, image: &str, what: &str) {
        self.finish(place, image, Some(what));
    }

    fn finish(&mut self, place: usize, image: &str, error: Option<&str>) {
        let seconds = self.start.elapsed().as_secs_f64();
        let Some(outcome) = self.outcomes[place].as_mut() else { return };
        outcome.seconds = seconds;
        if let Some(what) = error {
            outcome.outcome = Outcome::Failed;
            outcome.error = Some(what.to_owned());
            outcome.podman = None;
        }
        let outcome = outcome.outcome;
        self.tell(Event::ImageFinished { image, outcome, error, seconds });
    }

    fn tell(&self, event: Event<'_>) {
        self.converter.progress.event(event);
    }
}

/// Reads one layer; prepares it at once if nothing below it matters.
fn read(converter: &Converter<'_>, pool: &Pool, fetch: &Fetch<'_>) -> Arrived {
    struct Teller<'a> {
        progress: &'a dyn Progress,
        image: &'a str,
        layer: &'a str,
        total: u64,
    }
    impl LayerProgress for Teller<'_> {
        fn read(&self, bytes: u64) {
            let (image, layer) = (self.image, self.layer);
            self.progress.event(Event::LayerBytes { image, layer, done: bytes, total: Some(self.total) });
        }
    }
    let descriptor = &fetch.layer.descriptor;
    let text = descriptor.digest.to_string();
    let teller = Teller { progress: &*converter.progress, image: fetch.image, layer: &text, total: descriptor.size };
    let collector = Arc::new(Collector::default());
    let work = || {
        let blob = converter.sources.layer(fetch.source, descriptor).map_err(|e| e.of_layer(descriptor.digest))?;
        let staged = read_layer(fetch.layer, blob, pool, &collector, &converter.options.limits.layer, &teller)?;
        let staged = staged.at(fetch.place);
        if staged.depends_on_lower() {
            return Ok(Staged::Waits(Box::new(staged)));
        }
        Ok(Staged::Done(staged.prepare(converter.target, pool, &Base::default())?))
    };
    let result = work();
    let bytes = if result.is_ok() { descriptor.size } else { 0 };
    if result.is_ok() {
        teller.progress.event(Event::LayerFinished { image: fetch.image, layer: &text, bytes, known: false });
    }
    let cost = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Arrived {
        layer: key(fetch.layer),
        bytes,
        stored: cost(&collector.cost.stored),
        deduplicated: cost(&collector.cost.deduplicated),
        result,
    }
}
