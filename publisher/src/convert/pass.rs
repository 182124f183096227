//! The execution of a plan: readers fetch in the order of the schedule, one coordinator prepares, flattens and publishes what is complete.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};
use cvmfs::catalog::NestedRef;
use cvmfs::hash::ContentHash;
use image::digest::ChainId;
use image::layout::{FormatRecord, Layout, OwnedPath};
use image::reference::PublicName;
use parking_lot::Mutex;

use super::fetch::{Arrived, Fetch, LayerKey, Staged, key, read};
use super::room::{Entered, Room, disks};
use super::schedule::{Job, order};
use super::{Converter, Plan};
use crate::content::Pool;
use crate::error::one_line;
use crate::failure::Failure;
use crate::layer::{PreparedLayer, StagedLayer};
use crate::plan::{ImagePlan, LayerState};
use crate::podman::{PodmanOutcome, PodmanState};
use crate::progress::Event;
use crate::publish::{ReadyImage, publish};
use crate::report::{Outcome, WishOutcome};
use crate::target::Preparation;

/// Images published together at most.
const BATCH: usize = 64;

/// A layer on its way.
#[derive(Debug)]
pub(super) enum Slot {
    /// Being fetched.
    Awaited,
    /// Read, waiting for those below it in the room that it takes.
    Staged(Box<StagedLayer>, Option<Entered>),
    /// Its catalog is stored; with the layer if it is not published yet.
    Ready(NestedRef, Option<PreparedLayer>),
    /// It failed, and so do the images that need it.
    Failed(String),
}

/// The execution of one plan.
pub(super) struct Pass<'a> {
    pub(super) converter: &'a Converter<'a>,
    pub(super) pool: &'a Pool,
    pub(super) plan: &'a Plan,
    pub(super) slots: HashMap<LayerKey, Slot>,
    /// Images by place in the plan that are not ready and have not failed.
    pub(super) open: BTreeSet<usize>,
    pub(super) ready: Vec<(usize, ReadyImage<'a>)>,
    /// Images that are wanted for several platforms, by name.
    platforms: HashMap<&'a PublicName, Vec<usize>>,
    pub(super) outcomes: Vec<Option<WishOutcome>>,
    /// Which image pays for a layer in the report.
    pub(super) payer: HashMap<LayerKey, usize>,
    /// What stored layers are, by their own records.
    pub(super) recorded: HashMap<ContentHash, Option<Arc<FormatRecord>>>,
    /// Layers as they are on another base than the one that they are published on.
    pub(super) variants: HashMap<(LayerKey, Option<ChainId>), NestedRef>,
    pub(super) start: Instant,
    pub(super) revision: Option<u64>,
    /// Keeps collectors away; none if there is nothing to prepare.
    pub(super) preparation: Option<Preparation>,
    /// How often images were made again.
    pub(super) again: u32,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        converter: &'a Converter<'a>,
        pool: &'a Pool,
        plan: &'a Plan,
        preparation: Option<Preparation>,
    ) -> Pass<'a> {
        let mut platforms: HashMap<&PublicName, Vec<usize>> = HashMap::new();
        for (place, image) in plan.images.iter().enumerate() {
            if let Some(image) = image.as_ref().ok().filter(|image| image.wanted.several) {
                platforms.entry(&image.name).or_default().push(place);
            }
        }
        Pass {
            converter,
            pool,
            plan,
            slots: HashMap::new(),
            open: BTreeSet::new(),
            ready: Vec::new(),
            platforms,
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

    pub(super) fn run(&mut self) {
        let fetches = self.begin();
        let (send, arrivals) = unbounded::<Arrived>();
        let (converter, pool) = (self.converter, self.pool);
        let jobs = converter.options.jobs.max(1);
        let room = Room::new(converter.options.room, jobs, disks(converter.target));
        let line = Mutex::new(fetches.iter());
        // Who is next waits for room, and the others behind it: nobody overtakes.
        let next = || {
            let mut line = line.lock();
            let fetch = line.next()?;
            Some((fetch, room.enter(fetch.layer.descriptor.size)))
        };
        std::thread::scope(|scope| {
            for _ in 0..jobs.min(fetches.len()) {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || {
                    while let Some((fetch, room)) = next() {
                        let arrived = match room {
                            Ok(room) => Arrived { room: Some(room), ..read(converter, pool, fetch) },
                            Err(failure) => fetch.refused(failure),
                        };
                        // The coordinator listens until all readers are done.
                        let _ = send.send(arrived);
                    }
                });
            }
            drop(send);
            self.coordinate(&arrivals);
        });
    }

    /// Sorts the plan: outcomes that stand already, slots, and what has to be fetched, in the order of the schedule.
    fn begin(&mut self) -> Vec<Fetch<'a>> {
        let (mut jobs, mut places) = (Vec::new(), Vec::new());
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
            outcome.platform = image.wanted.named_platform();
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
            self.open.insert(place);
            let mut missing = Vec::new();
            for layer in image.distinct_layers().filter(|l| l.state != LayerState::Legacy) {
                let key = key(&layer.layer);
                let Some(known) = &layer.known else {
                    missing.push((key, layer.layer.descriptor.size));
                    continue;
                };
                if !self.slots.contains_key(&key) {
                    let text = key.0.to_string();
                    self.tell(Event::LayerFinished { image: &image.image, layer: &text, bytes: 0, known: true });
                    self.slots.insert(key, Slot::Ready(known.clone(), layer.prepared.clone()));
                }
            }
            let (owner, priority) = (image.wanted.owner.as_deref(), image.wanted.priority);
            jobs.push(Job { owner, priority, layers: missing });
            places.push((place, image));
        }
        order(&jobs).into_iter().filter_map(|turn| self.line_up(places[turn.job], turn.layer)).collect()
    }

    /// A layer to be fetched for an image, which pays for it; none if it is there.
    fn line_up(&mut self, (place, image): (usize, &'a ImagePlan), wanted: LayerKey) -> Option<Fetch<'a>> {
        let layer = image.distinct_layers().find(|l| key(&l.layer) == wanted && !self.slots.contains_key(&wanted))?;
        self.slots.insert(wanted, Slot::Awaited);
        self.payer.insert(wanted, place);
        let (source, name) = (image.wanted.asked(), &image.image);
        Some(Fetch { layer: &layer.layer, place: layer.place, source, image: name })
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
        // Nothing comes any more that could be waited for.
        while !self.ready.is_empty() {
            let ready = std::mem::take(&mut self.ready);
            self.publish(ready);
        }
    }

    pub(super) fn take(&mut self, arrived: Arrived) {
        if let Some(outcome) = self.payer.get(&arrived.layer).and_then(|place| self.outcomes[*place].as_mut()) {
            outcome.layers.fetched += u64::from(arrived.result.is_ok());
            outcome.bytes.downloaded += arrived.bytes;
            outcome.bytes.stored += arrived.stored;
            outcome.bytes.deduplicated += arrived.deduplicated;
        }
        // What an image that failed meanwhile was to have may be of use to others, but takes no room from them.
        let is_open = self.payer.get(&arrived.layer).is_some_and(|place| self.open.contains(place));
        let slot = match arrived.result {
            Ok(Staged::Waits(staged)) => Slot::Staged(staged, arrived.room.filter(|_| is_open)),
            Ok(Staged::Done(prepared)) => Slot::Ready(prepared.reference(), Some(prepared)),
            Err(e) => Slot::Failed(one_line(&e)),
        };
        self.slots.insert(arrived.layer, slot);
    }

    /// Brings every open image as far as its layers allow; publishes what is complete.
    fn advance(&mut self) {
        let mut lost = Vec::new();
        for place in self.open.clone() {
            let Ok(image) = &self.plan.images[place] else { continue };
            let made = match self.settle(image) {
                Ok(false) => continue,
                Ok(true) => self.complete(image).map_err(|e| one_line(&e)),
                Err(what) => Err(what),
            };
            self.open.remove(&place);
            match made {
                Ok(ready) => self.ready.push((place, ready)),
                Err(what) => lost.push((place, what)),
            }
            if self.ready.len() >= BATCH {
                self.publish_ready();
            }
        }
        let lost_any = !lost.is_empty();
        if lost_any && self.was_collected() {
            let places: Vec<usize> = lost.iter().map(|(place, _)| *place).collect();
            self.make_again(&places);
        } else {
            for (place, what) in lost {
                if let Ok(image) = &self.plan.images[place] {
                    self.fail(place, &image.image, &what);
                }
            }
        }
        if lost_any {
            self.make_room();
        }
        self.publish_ready();
    }

    /// Lets go of layers that wait for nothing that is sure to come: those of images that failed. Others may need them nevertheless, but
    /// they must not keep out what these others wait for.
    fn make_room(&mut self) {
        let images = self.open.iter().filter_map(|place| self.plan.images[*place].as_ref().ok());
        let needed: HashSet<LayerKey> = images.flat_map(|i| i.layers.iter().map(|l| key(&l.layer))).collect();
        let (payer, open) = (&self.payer, &self.open);
        self.slots.retain(|key, slot| {
            if let Slot::Staged(_, room) = slot
                && !payer.get(key).is_some_and(|place| open.contains(place))
            {
                *room = None;
            }
            !matches!(slot, Slot::Staged(..)) || needed.contains(key)
        });
    }

    /// Publishes what is ready: all platforms of an image together, as far as they don't fail.
    pub(super) fn publish_ready(&mut self) {
        let (open, platforms) = (&self.open, &self.platforms);
        let waits = |image: &ReadyImage<'_>| {
            let siblings = platforms.get(&image.plan.name).filter(|_| image.plan.wanted.several);
            siblings.is_some_and(|siblings| siblings.iter().any(|place| open.contains(place)))
        };
        let (wait, ready) = std::mem::take(&mut self.ready).into_iter().partition(|(_, image)| waits(image));
        self.ready = wait;
        self.publish(ready);
    }

    fn publish(&mut self, ready: Vec<(usize, ReadyImage<'a>)>) {
        if ready.is_empty() {
            return;
        }
        let (places, images): (Vec<usize>, Vec<ReadyImage<'_>>) = ready.into_iter().unzip();
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
                    self.published(image);
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

    fn published(&self, image: &ReadyImage<'_>) {
        let plan = image.plan;
        let flat = Layout::new().print(&OwnedPath::Flat(plan.manifest.config));
        let layers: Vec<String> = image.layers.iter().map(|layer| layer.digest.to_string()).collect();
        let (path, revision) = (plan.name.as_str(), self.revision.unwrap_or_default());
        self.tell(Event::ImagePublished { image: &plan.image, path, flat: &flat, layers: &layers, revision });
    }

    pub(super) fn fail(&mut self, place: usize, image: &str, what: &str) {
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

    pub(super) fn tell(&self, event: Event<'_>) {
        self.converter.progress.event(event);
    }
}
