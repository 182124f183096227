//! Random list edits, pushes, removals and collections under a clock that jumps, against what a person would expect:
//!
//! - what is published is complete, and is what the registry had when the list was converted last;
//! - what was needed at some time is there for a grace after that time, and whatever a name led to within its grace can
//!   be put back;
//! - what is not needed is gone after the first collection that comes a grace after the first one that could see it.
//!
//! The model knows sets of layers and times when they were needed; it knows nothing of marks, records and plans.
//! `MODEL_STEPS` and `MODEL_SEED` choose another run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cvmfs::gc::Keep;
use image::digest::{ImageId, LayerDigest, ManifestDigest};
use image::reference::Wish;
use publisher::gc::{self, CollectOptions};
use publisher::removal::{self, Options, Pin, Usage, Wanted};
use scenarios::image_builder::{Layer, Member, Packing, Pushed};
use scenarios::naive;
use scenarios::repository::assert_flat;
use scenarios::tree::Tree;

use crate::world::{DAY, Look, World, members, packed, usual};

const NAMES: [&str; 6] = ["a:1", "a:2", "b:1", "c/d:1", "c/d:2", "e:latest"];
const GRACE: i64 = 30 * DAY;

/// A layer or a flat, as a directory listing shows it.
type Part = String;

/// An image of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Image {
    manifest: ManifestDigest,
    config: ImageId,
    layers: Vec<LayerDigest>,
}

impl Image {
    fn parts(&self) -> BTreeSet<Part> {
        let layers = self.layers.iter().map(|l| format!("layer/{}", l.hex()));
        layers.chain([format!("flat/{}", self.config.hex())]).collect()
    }
}

/// What a person keeps in mind.
#[derive(Debug, Default)]
struct Model {
    registry: BTreeMap<&'static str, Image>,
    published: BTreeMap<&'static str, Image>,
    pinned: BTreeSet<(&'static str, ManifestDigest)>,
    /// When a name ceased to lead to an image.
    left: BTreeMap<(&'static str, ManifestDigest), (i64, Image)>,
    /// What is in use on nodes.
    in_use: BTreeSet<Part>,
    /// When something was needed last.
    needed: BTreeMap<Part, i64>,
    /// Since which collection it could be known that something is not needed.
    seen_unneeded: BTreeMap<Part, i64>,
}

impl Model {
    fn needed_now(&self) -> BTreeSet<Part> {
        let published = self.published.values();
        let pinned = self.left.iter().filter(|(key, _)| self.pinned.contains(key)).map(|(_, (_, image))| image);
        published.chain(pinned).flat_map(Image::parts).collect()
    }

    fn leave(&mut self, name: &'static str, now: i64) {
        if let Some(image) = self.published.remove(name) {
            self.left.insert((name, image.manifest), (now, image));
        }
    }

    fn publish(&mut self, name: &'static str, now: i64) {
        let image = self.registry[name].clone();
        if self.published.get(name) != Some(&image) {
            self.leave(name, now);
            self.show(name, image);
        }
    }

    /// A name leads to an image: for the first time, or again. What it is made of is needed, so its grace begins anew when it is not.
    fn show(&mut self, name: &'static str, image: Image) {
        self.left.remove(&(name, image.manifest));
        let parts = image.parts();
        self.seen_unneeded.retain(|part, _| !parts.contains(part));
        self.published.insert(name, image);
    }

    fn is_pinned(&self, name: &'static str) -> bool {
        self.published.get(name).is_some_and(|image| self.pinned.contains(&(name, image.manifest)))
    }
}

fn parts_of(look: &Look) -> BTreeSet<Part> {
    let layers = look.layers.iter().map(|l| format!("layer/{l}"));
    layers.chain(look.flats.iter().map(|f| format!("flat/{f}"))).collect()
}

struct Run {
    world: World,
    model: Model,
    random: fastrand::Rng,
    layers: Vec<Layer>,
    /// What each image of the registry unpacks to.
    trees: BTreeMap<ImageId, Tree>,
    list: BTreeSet<&'static str>,
}

impl Run {
    fn new(seed: u64) -> Run {
        // Each content twice: packed in two ways it is two layers with one diff ID.
        let layers = (0..7).flat_map(|n| [packed(n, Packing::Gzip), packed(n, Packing::Zstd)]).collect();
        Run {
            world: World::new(),
            model: Model::default(),
            random: fastrand::Rng::with_seed(seed),
            layers,
            trees: BTreeMap::new(),
            list: BTreeSet::new(),
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.random.usize(..NAMES.len())]
    }

    fn push(&mut self) -> String {
        let name = self.name();
        let count = self.random.usize(1..=3);
        let picked = self.random.choose_multiple(0..self.layers.len(), count);
        let members: Vec<Vec<Member>> = picked.iter().map(|i| members(*i as u64 / 2)).collect();
        let layers: Vec<Layer> = picked.into_iter().map(|i| self.layers[i].clone()).collect();
        let Pushed { manifest, config, layers, .. } = self.world.push(name, &layers);
        self.trees.insert(config, naive::unpack(members.iter().map(Vec::as_slice)));
        self.model.registry.insert(name, Image { manifest, config, layers });
        format!("push {name}")
    }

    fn edit_list(&mut self) -> String {
        let name = self.name();
        if !self.list.remove(name) {
            self.list.insert(name);
        }
        format!("list {:?}", self.list)
    }

    fn listed(&self) -> Vec<&'static str> {
        self.list.iter().copied().filter(|name| self.model.registry.contains_key(name)).collect()
    }

    fn convert(&mut self) -> String {
        let names = self.listed();
        self.world.convert(&names);
        let now = self.world.now();
        names.iter().for_each(|name| self.model.publish(name, now));
        format!("convert {names:?}")
    }

    /// A conversion that was planned before others collected, even objects, with no grace at all.
    fn convert_late(&mut self) -> String {
        let names = self.listed();
        let wishes: Vec<String> = names.iter().map(|n| self.world.wish(n)).collect();
        let converter = self.world.site.converter();
        let plan = self.world.site.plan(&wishes);
        self.world.pass(100 * DAY);
        removal::collect(&self.world.site.target, &Options { grace: Duration::ZERO, ..usual() }).unwrap();
        let there = self.there();
        let report = converter.apply(&plan).unwrap();
        assert!(report.wishes.iter().all(|w| w.error.is_none()), "{report:?}");
        let now = self.world.now();
        self.after_collection(0, &there);
        names.iter().for_each(|name| self.model.publish(name, now));
        format!("late convert {names:?}")
    }

    fn remove(&mut self) -> String {
        let name = self.name();
        let result = removal::remove(&self.world.site.target, &self.world.wish(name), false);
        let expected = self.model.published.contains_key(name) && !self.model.is_pinned(name);
        assert_eq!(result.is_ok(), expected, "{result:?}");
        if expected {
            self.model.leave(name, self.world.now());
        }
        format!("remove {name}: {expected}")
    }

    fn prune(&mut self) -> String {
        let wishes: Vec<Wish> = self.list.iter().map(|n| Wish::parse(&self.world.wish(n)).unwrap()).collect();
        removal::prune(&self.world.site.target, &Wanted::new(&wishes).unwrap(), false).unwrap();
        let dropped: Vec<&'static str> = self.model.published.keys().copied().collect();
        for name in dropped.into_iter().filter(|n| !self.list.contains(n)).collect::<Vec<_>>() {
            if !self.model.is_pinned(name) {
                self.model.leave(name, self.world.now());
            }
        }
        format!("prune to {:?}", self.list)
    }

    fn undelete(&mut self) -> String {
        let (name, now) = (self.name(), self.world.now());
        let versions: Vec<_> =
            self.model.left.iter().filter(|((n, _), _)| *n == name).map(|(_, v)| v.clone()).collect();
        let Some((since, image)) = self.random.choice(versions) else { return "nothing to undelete".to_owned() };
        let digest = image.manifest.to_string();
        let wish = self.world.wish(name);
        let result = removal::undelete(&self.world.site.target, &wish, Some(&digest), false);
        let must = since + GRACE > now || self.model.pinned.contains(&(name, image.manifest));
        assert!(result.is_ok() || !must, "{name} left {digest} only {} days ago: {result:?}", (now - since) / DAY);
        if result.is_ok() && self.model.published.get(name) != Some(&image) {
            self.model.leave(name, now);
            self.model.show(name, image);
        } else if result.is_err() {
            self.model.left.remove(&(name, image.manifest));
        }
        format!("undelete {name} {digest}: {}", result.is_ok())
    }

    fn pin(&mut self) -> String {
        let name = self.name();
        let target = &self.world.site.target;
        let pinned = removal::pin(target, &self.world.wish(name), Pin::Set).is_ok();
        assert_eq!(pinned, self.model.published.contains_key(name));
        if let Some(image) = self.model.published.get(name) {
            self.model.pinned.insert((name, image.manifest));
        }
        format!("pin {name}: {pinned}")
    }

    fn unpin(&mut self) -> String {
        let name = self.name();
        // Whoever never published the name has nothing to give up.
        let done = removal::pin(&self.world.site.target, &self.world.wish(name), Pin::Remove).is_ok();
        assert!(done || !self.model.pinned.iter().any(|(n, _)| *n == name));
        self.model.pinned.retain(|(n, _)| *n != name);
        format!("unpin {name}")
    }

    fn collect(&mut self) -> String {
        let mut usage = Usage::default();
        self.model.in_use.clear();
        if self.random.u8(..4) == 0 {
            let look = self.world.look();
            if let Some(layer) = self.random.choice(look.layers.iter().cloned().collect::<Vec<_>>()) {
                usage.add(layer.as_bytes());
                self.model.in_use.insert(format!("layer/{layer}"));
            }
        }
        let options = Options { usage, ..usual() };
        let dry = self.world.collect_with(&Options { dry_run: true, ..options.clone() });
        let done = self.world.collect_with(&options);
        assert_eq!((dry.condemned, dry.swept, dry.reprieved), (done.condemned, done.swept.clone(), done.reprieved));
        let there = self.there();
        self.after_collection(GRACE, &there);
        self.model.in_use.clear();
        format!("collect, {} swept", done.swept.len())
    }

    /// What a collection must have found, and must have left.
    fn after_collection(&mut self, grace: i64, there: &BTreeSet<Part>) {
        let now = self.world.now();
        let needed: BTreeSet<Part> = self.model.needed_now().union(&self.model.in_use).cloned().collect();
        for part in &self.model.in_use {
            self.model.needed.insert(part.clone(), now);
        }
        self.model.seen_unneeded.retain(|part, _| there.contains(part) && !needed.contains(part));
        for part in there.iter().filter(|p| !needed.contains(*p)) {
            let since = *self.model.seen_unneeded.entry(part.clone()).or_insert(now);
            assert!(
                grace > 0 && now < since + grace,
                "{part} outlives its grace: not needed {} days",
                (now - since) / DAY
            );
        }
        if grace == 0 {
            // Nothing waits for anything; the model forgets it as well.
            self.model.needed.retain(|part, _| needed.contains(part));
            self.model.left.retain(|_, (_, image)| image.parts().iter().all(|p| there.contains(p)));
        }
    }

    fn collect_objects(&mut self) -> String {
        let options = CollectOptions { keep: Keep::Revisions(0), minimal_age: Duration::ZERO, dry_run: false };
        gc::collect(&self.world.site.target, &options).unwrap();
        "collect objects".to_owned()
    }

    fn pass(&mut self) -> String {
        let days = self.random.i64(1..20);
        self.world.pass(days * DAY);
        format!("{days} days pass")
    }

    fn there(&self) -> BTreeSet<Part> {
        parts_of(&self.world.look())
    }

    fn step(&mut self) -> String {
        match self.random.u8(..100) {
            0..20 => self.push(),
            20..35 => self.edit_list(),
            35..55 => self.convert(),
            55..58 => self.convert_late(),
            58..63 => self.remove(),
            63..67 => self.prune(),
            67..73 => self.undelete(),
            73..76 => self.pin(),
            76..79 => self.unpin(),
            79..89 => self.collect(),
            89..91 => self.collect_objects(),
            _ => self.pass(),
        }
    }

    fn compare(&mut self) {
        let (now, look) = (self.world.now(), self.world.look());
        let expected: BTreeMap<String, String> =
            self.model.published.iter().map(|(name, image)| (self.world.path(name), image.config.hex())).collect();
        assert_eq!(look.links, expected, "public links");
        let digests: BTreeMap<String, ManifestDigest> =
            self.model.published.iter().map(|(name, image)| (self.world.path(name), image.manifest)).collect();
        assert_eq!(look.statuses.iter().map(|(n, s)| (n.clone(), s.digest)).collect::<BTreeMap<_, _>>(), digests);
        let there = parts_of(&look);
        for part in self.model.needed_now() {
            assert!(there.contains(&part), "{part} is needed and gone");
            self.model.needed.insert(part, now);
        }
        for (part, last) in &self.model.needed {
            assert!(
                there.contains(part) || last + GRACE <= now,
                "{part} went {} days after its use",
                (now - last) / DAY
            );
        }
        for (key, layer) in &look.index {
            assert!(look.layers.contains(layer), "{key} leads to a layer that is gone");
        }
        for image in self.model.published.values() {
            for document in [format!("config/{}", image.config.hex()), format!("manifest/{}", image.manifest.hex())] {
                assert!(look.documents.contains(&document), "{document} is missing");
            }
        }
    }

    fn compare_content(&mut self) {
        self.world.site.assert_sound();
        for (name, image) in &self.model.published {
            assert_flat(&self.world.site, image.config, &self.trees[&image.config], name);
        }
    }
}

#[test]
fn nothing_wanted_is_lost_and_nothing_unwanted_outlives_its_grace() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (steps, seed) = (number("MODEL_STEPS").unwrap_or(200), number("MODEL_SEED").unwrap_or(7));
    let mut run = Run::new(seed);
    let mut history: Vec<String> = Vec::new();
    for step in 0..steps {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            history.push(run.step());
            run.compare();
            if step % 50 == 49 {
                run.compare_content();
            }
        }));
        if let Err(panic) = outcome {
            let from = history.len().saturating_sub(40);
            for (number, line) in history.iter().enumerate().skip(from) {
                eprintln!("{number}: {line}");
            }
            eprintln!("failed in step {step} with MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    run.compare_content();
}
