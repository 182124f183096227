//! Random list edits, pushes, removals and collections under a clock that jumps, against what a person would expect:
//!
//! - what is published is complete, and is what the registry had when the list was converted last;
//! - what was needed at some time is there for a grace after that time, and whatever a name led to within its grace can
//!   be put back;
//! - what is not needed is gone after the first collection that comes a grace after the first one that could see it.
//!
//! All of it on each platform: images are for one, or indexes of several that share layers; entries of the list ask for platforms in
//! any order, so the default one changes, and an index may lose what it had.
//!
//! The model ([`mind`]) knows sets of layers and times when they were needed; it knows nothing of marks, records and plans.
//! `MODEL_STEPS` and `MODEL_SEED` choose another run.

mod images;
mod mind;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use cvmfs::gc::Keep;
use image::digest::{ImageId, ManifestDigest};
use publisher::gc::{self, CollectOptions};
use publisher::removal::{self, Options, Pin, Usage, Version, Wanted};
use publisher::report::{Outcome, Report};
use scenarios::image_builder::{
    Format, Image as BuiltImage, Layer, Member, Packing, Pushed, index_entry, media, push_index,
};
use scenarios::naive;
use scenarios::repository::{assert_flat, list};
use scenarios::tree::Tree;

use self::images::{Arch, Entry, Image, Offer, Part};
use self::mind::{Left, Model, Owner};
use crate::world::{DAY, Look, World, members, packed, usual};

const NAMES: [&str; 5] = ["a:1", "a:2", "b:1", "c/d:1", "c/d:2"];
const GRACE: i64 = 30 * DAY;

fn parts_of(look: &Look) -> BTreeSet<Part> {
    let layers = look.layers.iter().map(|l| format!("layer/{l}"));
    layers.chain(look.flats.iter().map(|f| format!("flat/{f}"))).collect()
}

/// What happened, for the last line.
#[derive(Debug, Default)]
struct Counts {
    pushed: usize,
    indexes: usize,
    published: usize,
    failed: usize,
    undeleted: usize,
    condemned: usize,
    swept: usize,
    reprieved: usize,
}

struct Run {
    world: World,
    model: Model,
    random: fastrand::Rng,
    layers: Vec<Layer>,
    /// What each image of the registry unpacks to.
    trees: BTreeMap<ImageId, Tree>,
    /// Everything that was ever pushed.
    known: BTreeMap<ManifestDigest, Image>,
    counts: Counts,
    /// What is in the last revision that was looked at.
    seen: RefCell<Option<(u64, Rc<Look>)>>,
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
            known: BTreeMap::new(),
            counts: Counts::default(),
            seen: RefCell::default(),
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.random.usize(..NAMES.len())]
    }

    /// The place of an owner in the repository.
    fn path(&self, owner: Owner) -> String {
        let path = self.world.path(owner.name);
        match owner.place {
            None => path,
            Some(arch) => format!(".multiarch/{}/{path}", arch.directory()),
        }
    }

    /// The owner of a place.
    fn owner_of(&self, version: &Version) -> Owner {
        let directory = version.owner.platform.as_ref().map(|platform| platform.as_str());
        let arch = |text: &str| Arch::ALL.into_iter().find(|arch| arch.directory() == text).expect("a platform");
        let name = NAMES.into_iter().find(|name| self.world.path(name) == version.owner.name.as_str());
        Owner { name: name.expect("a name"), place: directory.map(arch) }
    }

    fn push(&mut self) -> String {
        let name = self.name();
        let repository = format!("lab/{}", name.split_once(':').expect("a tag").0);
        let is_index = self.random.u8(..3) > 0;
        let mut some = || self.random.usize(1..=Arch::ALL.len());
        let count = if is_index { some().max(some()) } else { 1 };
        let mut offer = Offer::new();
        let mut entries = Vec::new();
        for arch in self.random.choose_multiple(Arch::ALL, count) {
            let count = self.random.usize(1..=3);
            let picked = self.random.choose_multiple(0..self.layers.len(), count);
            let members: Vec<Vec<Member>> = picked.iter().map(|i| members(*i as u64 / 2)).collect();
            let (architecture, variant) = arch.built();
            let mut built =
                BuiltImage::new(picked.into_iter().map(|i| self.layers[i].clone())).architecture(architecture);
            if let Some(variant) = variant {
                built.config["variant"] = variant.into();
            }
            let Pushed { manifest, config, layers, .. } = match is_index {
                true => {
                    let pushed = built.push_untagged(&self.world.registry, &repository);
                    let platform = ["linux", architecture].into_iter().chain(variant).collect::<Vec<_>>().join("/");
                    entries.push(index_entry(&pushed, media::OCI_MANIFEST, &platform));
                    pushed
                }
                false => built.push(&self.world.registry, &repository, name.split_once(':').expect("a tag").1),
            };
            self.trees.insert(config, naive::unpack(members.iter().map(Vec::as_slice)));
            offer.insert(arch, Image { arch, manifest, index: None, config, layers });
        }
        if is_index {
            let tag = name.split_once(':').expect("a tag").1;
            let (index, _) = push_index(&self.world.registry, &repository, tag, Format::Oci, &entries);
            offer.values_mut().for_each(|image| image.index = Some(index));
        }
        self.counts.pushed += offer.len();
        self.counts.indexes += usize::from(is_index);
        self.known.extend(offer.values().map(|image| (image.manifest, image.clone())));
        let platforms: Vec<Arch> = offer.keys().copied().collect();
        self.model.registry.insert(name, offer);
        format!("push {name} for {platforms:?}{}", if is_index { ", an index" } else { "" })
    }

    fn edit_list(&mut self) -> String {
        let name = self.name();
        if self.model.list.contains_key(name) && self.random.bool() {
            self.model.list.remove(name);
        } else {
            let entry = Entry::random(&mut self.random);
            self.model.list.insert(name, entry);
        }
        format!("list {:?}", self.model.list)
    }

    /// Entries whose names the registry has.
    fn listed(&self) -> Vec<(&'static str, Entry)> {
        let there = self.model.list.iter().filter(|(name, _)| self.model.registry.contains_key(*name));
        there.map(|(name, entry)| (*name, entry.clone())).collect()
    }

    fn text(&self, entries: &[(&'static str, Entry)]) -> String {
        let text: String = entries.iter().map(|(name, entry)| entry.text(&self.world.wish(name))).collect();
        if text.is_empty() { "input: []\n".to_owned() } else { format!("input:\n{text}") }
    }

    fn convert(&mut self) -> String {
        let entries = self.listed();
        let report = self.world.site.convert_list(&self.text(&entries));
        self.published(&entries, &report);
        format!("convert {entries:?}")
    }

    /// A conversion that was planned before others collected, even objects, with no grace at all.
    fn convert_late(&mut self) -> String {
        let entries = self.listed();
        let converter = self.world.site.converter();
        let plan = self.world.site.plan_list(&self.text(&entries));
        self.world.pass(100 * DAY);
        removal::collect(&self.world.site.target, &Options { grace: Duration::ZERO, ..usual() }).unwrap();
        let there = self.there();
        let report = converter.apply(&plan).unwrap();
        self.after_collection(0, &there);
        self.published(&entries, &report);
        format!("late convert {entries:?}")
    }

    /// What a conversion must have done.
    fn published(&mut self, entries: &[(&'static str, Entry)], report: &Report) {
        let now = self.world.now();
        let mut outcomes = report.wishes.iter();
        for (name, entry) in entries {
            for (n, arch) in entry.wanted().into_iter().enumerate() {
                let wish = outcomes.next().expect("an outcome each");
                let owner = if n == 0 { Owner::plain(name) } else { Owner::below(name, arch) };
                let offered = self.model.registry[name].get(&arch).cloned();
                assert_eq!(wish.error.is_none(), offered.is_some(), "{name} for {arch:?}: {wish:?}");
                let Some(image) = offered else {
                    self.counts.failed += 1;
                    continue;
                };
                if wish.outcome == Outcome::Unchanged {
                    let there = self.model.published.get(&owner).map(|there| there.manifest);
                    assert_eq!(there, Some(image.manifest), "{owner:?} is said to be unchanged");
                    continue;
                }
                self.counts.published += 1;
                match n {
                    0 => self.model.publish_plain(name, entry, image, now),
                    _ => self.model.publish_below(name, image, now),
                }
            }
        }
        assert!(outcomes.next().is_none(), "{report:?}");
    }

    fn remove(&mut self) -> String {
        let name = self.name();
        let result = removal::remove(&self.world.site.target, &self.world.wish(name), false);
        let owners = self.model.owners(name);
        let expected = !owners.is_empty() && !owners.iter().any(|owner| self.model.is_pinned(*owner));
        assert_eq!(result.is_ok(), expected, "{result:?}");
        if expected {
            self.model.remove(name, self.world.now());
        }
        format!("remove {name}: {expected}")
    }

    fn prune(&mut self) -> String {
        let entries: Vec<_> = self.model.list.iter().map(|(name, entry)| (*name, entry.clone())).collect();
        let wanted = Wanted::of(&list(&self.text(&entries)).wishes).unwrap();
        removal::prune(&self.world.site.target, &wanted, false).unwrap();
        self.model.prune(self.world.now());
        format!("prune to {:?}", self.model.list)
    }

    /// Puts back what a name led to, by the digest of a manifest, of an index, or the last of all.
    fn undelete(&mut self) -> String {
        let now = self.world.now();
        let earlier = removal::earlier(&self.world.site.target).unwrap();
        let listed: BTreeSet<_> = earlier.iter().map(|v| (self.owner_of(v), v.key)).collect();
        for ((owner, manifest), left) in self.model.left.iter().filter(|(_, left)| left.since + GRACE > now) {
            assert!(listed.contains(&(*owner, manifest.digest())), "{owner:?} left {manifest} at {}", left.since);
        }
        let Some(chosen) = self.random.choice(&earlier) else { return "nothing to undelete".to_owned() };
        let name = self.owner_of(chosen).name;
        let digest = match self.random.u8(..4) {
            0 => None,
            1 => chosen.parts.index,
            _ => chosen.parts.digest,
        };
        // Of each place the one that is meant, if there is one alone.
        let mut meant: BTreeMap<Owner, Vec<&Version>> = BTreeMap::new();
        for version in earlier.iter().filter(|version| self.owner_of(version).name == name) {
            let is_named = digest.is_none() || [version.parts.digest, version.parts.index].contains(&digest);
            if is_named {
                meant.entry(self.owner_of(version)).or_default().push(version);
            }
        }
        if digest.is_some() {
            meant.retain(|_, versions| versions.len() == 1);
        }
        let is_refused = digest.is_none() && meant.keys().any(|owner| self.model.owners(name).contains(owner));
        let meant: Vec<(Owner, Version)> = meant
            .into_iter()
            .filter_map(|(owner, versions)| {
                Some((owner, versions.into_iter().max_by_key(|version| (version.since, version.key))?.clone()))
            })
            .collect();
        let text = digest.map(|digest| digest.to_string());
        let result = removal::undelete(&self.world.site.target, &self.world.wish(name), text.as_deref(), false);
        let must = |(owner, version): &(Owner, Version)| {
            let manifest = version.parts.digest.expect("a digest");
            let left = self.model.left.get(&(*owner, manifest));
            let is_shown = self.model.published.get(owner).is_some_and(|image| image.manifest == manifest);
            is_shown || self.model.pinned.contains(&(*owner, manifest)) || left.is_some_and(|l| l.since + GRACE > now)
        };
        if is_refused || meant.is_empty() {
            assert!(result.is_err(), "{name} {text:?}: {result:?}");
        } else {
            assert!(result.is_ok() || !meant.iter().all(must), "{name} {text:?} {meant:?}: {result:?}");
        }
        if result.is_ok() {
            self.counts.undeleted += 1;
            for (owner, version) in &meant {
                // The plain path may have brought the link of its platform with it.
                let manifest = version.parts.digest.expect("a digest");
                let plain = meant.first().filter(|(owner, _)| owner.place.is_none());
                let is_back = match digest {
                    None => self.model.owners(name).contains(owner),
                    Some(_) => {
                        plain.is_some_and(|(_, plain)| plain.key == version.key)
                            && self.model.second_link(name) == Some(*owner)
                    }
                };
                if is_back {
                    continue;
                }
                let left = self.model.left.get(&(*owner, manifest)).cloned();
                let left = left.unwrap_or_else(|| self.forgotten(*owner, manifest));
                self.model.restore(*owner, &left, now);
            }
        }
        format!("undelete {name} {text:?}: {}", result.is_ok())
    }

    /// What is put back although the name leads to it, or although nobody had to keep it.
    fn forgotten(&self, owner: Owner, manifest: ManifestDigest) -> Left {
        let second = owner.place.is_none() && self.model.second.contains(owner.name);
        Left { since: 0, image: self.known[&manifest].clone(), second }
    }

    fn pin(&mut self) -> String {
        let name = self.name();
        let target = &self.world.site.target;
        let pinned = removal::pin(target, &self.world.wish(name), Pin::Set).is_ok();
        let recorded: Vec<(Owner, ManifestDigest)> = self
            .model
            .published
            .iter()
            .filter(|(owner, _)| owner.name == name)
            .map(|(owner, image)| (*owner, image.manifest))
            .collect();
        assert_eq!(pinned, !recorded.is_empty());
        self.model.pinned.extend(recorded);
        format!("pin {name}: {pinned}")
    }

    fn unpin(&mut self) -> String {
        let name = self.name();
        // Whoever never published the name has nothing to give up.
        let done = removal::pin(&self.world.site.target, &self.world.wish(name), Pin::Remove).is_ok();
        assert!(done || !self.model.pinned.iter().any(|(owner, _)| owner.name == name));
        self.model.pinned.retain(|(owner, _)| owner.name != name);
        format!("unpin {name}")
    }

    fn collect(&mut self) -> String {
        let mut usage = Usage::default();
        self.model.in_use.clear();
        if self.random.u8(..4) == 0 {
            let look = self.look();
            if let Some(layer) = self.random.choice(look.layers.iter().cloned().collect::<Vec<_>>()) {
                usage.add(layer.as_bytes());
                self.model.in_use.insert(format!("layer/{layer}"));
            }
        }
        let options = Options { usage, ..usual() };
        let dry = self.world.collect_with(&Options { dry_run: true, ..options.clone() });
        let done = self.world.collect_with(&options);
        assert_eq!((&dry.condemned, &dry.swept, &dry.reprieved), (&done.condemned, &done.swept, &done.reprieved));
        self.counts.condemned += done.condemned.len();
        self.counts.swept += done.swept.len();
        self.counts.reprieved += done.reprieved.len();
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
            self.model.left.retain(|_, left| left.image.parts().iter().all(|p| there.contains(p)));
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

    /// What is in the present revision. Most steps publish nothing.
    fn look(&self) -> Rc<Look> {
        let revision = self.world.site.revision();
        let mut seen = self.seen.borrow_mut();
        let (_, look) = match seen.take() {
            Some(seen) if seen.0 == revision => seen,
            _ => (revision, Rc::new(self.world.look())),
        };
        seen.insert((revision, look)).1.clone()
    }

    fn there(&self) -> BTreeSet<Part> {
        parts_of(&self.look())
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
        let (now, look) = (self.world.now(), self.look());
        self.compare_links(&look);
        let digests: BTreeMap<String, ManifestDigest> =
            self.model.published.iter().map(|(owner, image)| (self.path(*owner), image.manifest)).collect();
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
            let index = image.index.map(|index| format!("manifest/{}", index.hex()));
            let own = [format!("config/{}", image.config.hex()), format!("manifest/{}", image.manifest.hex())];
            for document in own.into_iter().chain(index) {
                assert!(look.documents.contains(&document), "{document} is missing");
            }
        }
    }

    fn compare_links(&self, look: &Look) {
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        let mut variants: BTreeMap<String, String> = BTreeMap::new();
        for (owner, image) in &self.model.published {
            if owner.place.is_none() && self.model.variant.contains(owner.name) {
                let default = image.arch.directory();
                variants.insert(self.path(*owner), format!("$(CVMFS_ARCH:-{default})"));
            } else {
                expected.insert(self.path(*owner), image.config.hex());
            }
        }
        for name in &self.model.second {
            let second = self.model.second_link(name).expect("the plain path leads somewhere");
            expected.insert(self.path(second), self.model.published[&Owner::plain(name)].config.hex());
        }
        assert_eq!(look.links, expected, "public links");
        for (path, text) in &look.variants {
            let default = variants.remove(path).unwrap_or_else(|| panic!("{path} leads to {text}"));
            assert!(text.contains(&format!(".multiarch/{default}/")), "{path} leads to {text}");
        }
        assert_eq!(variants, BTreeMap::new(), "links by architecture");
        let has =
            |arch: &Arch| expected.keys().any(|path| path.starts_with(&format!(".multiarch/{}/", arch.directory())));
        let of =
            |arch: Arch| arch.aliases().iter().map(move |alias| ((*alias).to_owned(), arch.directory().to_owned()));
        let aliases: BTreeMap<String, String> = Arch::ALL.into_iter().filter(has).flat_map(of).collect();
        assert_eq!(look.aliases, aliases, "other names of architectures");
    }

    fn compare_content(&mut self) {
        self.world.site.assert_sound();
        for (owner, image) in &self.model.published {
            assert_flat(&self.world.site, image.config, &self.trees[&image.config], &format!("{owner:?}"));
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
    eprintln!("{steps} steps, MODEL_SEED={seed}: {:?}", run.counts);
}
