//! What becomes of layers, flats and earlier images: a pure function of what was seen, the time and the rules.
//!
//! Invariants
//! - What is needed is never condemned and never swept; if it was condemned, it is reprieved.
//! - Grace counts from the recorded time: that of the collection which first found the path unused, or the end of a
//!   later use that was recorded since. File times mean nothing.
//! - An earlier image whose parts wait for the end of their grace is kept with them, so it can be undeleted as long as
//!   they are there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use image::layout::{Condemned, timestamp};

use super::mark::{Owner, Seen, Unit, Version};
use super::names::Wanted;

/// The rules of a collection.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Unix seconds.
    pub now: i64,
    /// How long what nothing needs stays.
    pub grace: Duration,
    /// How many earlier images of each published name are kept whatever their age.
    pub keep_versions: usize,
    /// Wish lists that say it for their images.
    pub lists: &'a Wanted,
}

/// Something condemned, with its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// What.
    pub unit: Unit,
    /// The record.
    pub record: Condemned,
    /// Unix seconds when its grace ends.
    pub until: i64,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The revision that it was made for.
    pub revision: u64,
    /// Units that nothing needs, found now; their records are written.
    pub condemn: Vec<Sentence>,
    /// Units that wait for the end of their grace.
    pub waiting: Vec<Sentence>,
    /// Units whose grace is over: they are removed with their records.
    pub sweep: Vec<Sentence>,
    /// Condemned units that are needed again, or gone: their records are removed.
    pub reprieve: Vec<Unit>,
    /// Earlier images that nobody can want back any more: their records are removed.
    pub forget: Vec<Version>,
    /// Earlier images that stay.
    pub versions: Vec<Version>,
}

impl Plan {
    /// Decides.
    pub fn make(seen: &Seen, rules: &Rules<'_>) -> Plan {
        let kept = kept_versions(seen, rules);
        let mut needed = seen.needed();
        for index in &kept {
            needed.extend(seen.versions[*index].parts.units());
        }
        let left = last_uses(seen);
        let mut plan = Plan { revision: seen.revision, ..Plan::default() };
        let mut waiting: HashSet<Unit> = HashSet::new();
        for unit in &seen.units {
            let recorded = seen.condemned.get(unit);
            if needed.contains(unit) {
                if recorded.is_some() {
                    plan.reprieve.push(*unit);
                }
                continue;
            }
            let uses = left.get(unit);
            let since = recorded.map_or(rules.now, |(since, _)| *since);
            let since = uses.map_or(since, |uses| since.max(uses.last.since));
            let record = match recorded {
                Some((_, record)) => record.clone(),
                None => Condemned {
                    since: timestamp(rules.now),
                    reason: uses.map_or("unused", |uses| &uses.last.reason).to_owned(),
                    last_images: uses
                        .map_or_else(Vec::new, |uses| uses.names.iter().map(|n| (*n).to_owned()).collect()),
                },
            };
            let grace = i64::try_from(rules.grace.as_secs()).unwrap_or(i64::MAX);
            let until = since.saturating_add(grace);
            let sentence = Sentence { unit: *unit, record, until };
            match (until <= rules.now, recorded) {
                (true, _) => plan.sweep.push(sentence),
                (false, None) => plan.condemn.push(sentence),
                (false, Some(_)) => plan.waiting.push(sentence),
            }
            if until > rules.now {
                waiting.insert(*unit);
            }
        }
        plan.reprieve.extend(seen.condemned.keys().filter(|unit| !seen.units.contains(unit)));
        for (index, version) in seen.versions.iter().enumerate() {
            let grace = i64::try_from(rules.grace.as_secs()).unwrap_or(i64::MAX);
            let is_over = version.since.saturating_add(grace) <= rules.now;
            let stays = kept.contains(&index) || !is_over || version.parts.units().any(|unit| waiting.contains(&unit));
            if stays { &mut plan.versions } else { &mut plan.forget }.push(version.clone());
        }
        plan
    }

    /// What is removed.
    pub fn swept(&self) -> BTreeSet<Unit> {
        self.sweep.iter().map(|s| s.unit).collect()
    }
}

/// Places of earlier images that count as published: pinned ones, and the last ones of each published name.
fn kept_versions(seen: &Seen, rules: &Rules<'_>) -> HashSet<usize> {
    let names = seen.names();
    let mut by_name: BTreeMap<&Owner, Vec<usize>> = BTreeMap::new();
    for (index, version) in seen.versions.iter().enumerate() {
        if names.contains(&version.owner) {
            by_name.entry(&version.owner).or_default().push(index);
        }
    }
    // What the name leads to now is no earlier image, even if it was one in between.
    let present: HashSet<_> = seen
        .images
        .iter()
        .filter_map(|i| Some((i.owner.as_ref()?, &i.parts)))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(o, p)| (o, p.digest, p.config))
        .collect();
    let mut kept: HashSet<usize> = HashSet::new();
    for (owner, mut versions) in by_name {
        let retention = rules.lists.retention(&owner.name);
        let count = retention.versions.unwrap_or(rules.keep_versions);
        let young = |since: i64| retention.days.is_some_and(|days| since + i64::from(days) * 86_400 > rules.now);
        versions.retain(|i| {
            let version = &seen.versions[*i];
            !present.contains(&(&version.owner, version.parts.digest, version.parts.config))
        });
        versions.sort_by_key(|i| (std::cmp::Reverse(seen.versions[*i].since), seen.versions[*i].key));
        let is_kept = |(n, index): &(usize, usize)| *n < count || young(seen.versions[*index].since);
        kept.extend(versions.into_iter().enumerate().filter(is_kept).map(|(_, index)| index));
    }
    kept.extend(seen.versions.iter().enumerate().filter(|(_, v)| v.is_pinned).map(|(i, _)| i));
    kept
}

/// What is known of the uses of a unit that have ended.
struct Uses<'a> {
    last: &'a Version,
    names: BTreeSet<&'a str>,
}

fn last_uses(seen: &Seen) -> HashMap<Unit, Uses<'_>> {
    let mut uses: HashMap<Unit, Uses<'_>> = HashMap::new();
    for version in &seen.versions {
        for unit in version.parts.units() {
            let known = uses.entry(unit).or_insert_with(|| Uses { last: version, names: BTreeSet::new() });
            known.names.insert(version.owner.name.as_str());
            if version.since > known.last.since {
                known.last = version;
            }
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use image::digest::{Digest, ImageId, LayerDigest, ManifestDigest};
    use image::reference::PublicName;

    use super::super::mark::{Image, Parts};
    use super::*;
    use crate::wishlist::WishList;
    use cvmfs::path::RepoPath;
    use std::path::Path;

    const DAY: i64 = 24 * 3600;

    fn layer(n: u8) -> LayerDigest {
        LayerDigest::from_bytes([n; 32])
    }

    fn flat(n: u8) -> ImageId {
        ImageId::from_bytes([n; 32])
    }

    fn owner(name: &str) -> Owner {
        Owner { platform: None, name: PublicName::parse(name).unwrap() }
    }

    fn parts(image: u8, layers: &[u8]) -> Parts {
        let digest = Some(ManifestDigest::from_bytes([image; 32]));
        let layers = layers.iter().map(|n| layer(*n)).collect();
        Parts { digest, index: None, config: flat(image), flat: true, layers }
    }

    /// A repository with layers 1 to 5 and flats 1 to 3.
    struct World(Seen);

    impl World {
        fn new() -> World {
            let units = (1..=5).map(|n| Unit::Layer(layer(n))).chain((1..=3).map(|n| Unit::Flat(flat(n))));
            World(Seen { revision: 7, units: units.collect(), ..Seen::default() })
        }

        fn image(mut self, name: &str, image: u8, layers: &[u8]) -> World {
            let at = RepoPath::ROOT.join(name);
            let parts = parts(image, layers);
            self.0.images.push(Image { at, owner: Some(owner(name)), parts, is_pinned: false });
            self
        }

        fn version(mut self, name: &str, since: i64, image: u8, layers: &[u8]) -> World {
            let (parts, reason) = (parts(image, layers), "tag moved".to_owned());
            let key = Digest::from_bytes([image; 32]);
            self.0.versions.push(Version { owner: owner(name), key, since, reason, parts, is_pinned: false });
            self
        }

        fn condemned(mut self, unit: Unit, since: i64) -> World {
            let (reason, last_images) = ("unused".to_owned(), Vec::new());
            let record = Condemned { since: timestamp(since), reason, last_images };
            self.0.condemned.insert(unit, (since, record));
            self
        }

        fn plan(&self, now: i64, keep_versions: usize) -> Plan {
            self.plan_with(now, keep_versions, "")
        }

        /// With what a list says of its images.
        fn plan_with(&self, now: i64, keep_versions: usize, input: &str) -> Plan {
            let text = format!("version: 2\ncvmfs_repo: a.b\ninput: [{input}]\n");
            let list = WishList::parse(Path::new("w.yaml"), text.as_bytes()).unwrap();
            let lists = Wanted::of(&list.wishes).unwrap();
            let grace = Duration::from_secs(30 * 24 * 3600);
            Plan::make(&self.0, &Rules { now, grace, keep_versions, lists: &lists })
        }
    }

    fn units(sentences: &[Sentence]) -> Vec<Unit> {
        sentences.iter().map(|s| s.unit).collect()
    }

    const L: fn(u8) -> Unit = |n| Unit::Layer(layer(n));
    const F: fn(u8) -> Unit = |n| Unit::Flat(flat(n));

    #[test]
    fn condemns_what_nothing_needs_and_says_why() {
        let world = World::new().image("a:1", 1, &[1, 2]).version("a:1", 5, 2, &[1, 3]).version("b:1", 9, 2, &[1, 3]);
        let plan = world.plan(10, 0);
        assert_eq!(units(&plan.condemn), [L(3), L(4), L(5), F(2), F(3)]);
        assert!(plan.sweep.is_empty() && plan.reprieve.is_empty() && plan.forget.is_empty());
        assert_eq!(plan.condemn[0].record.reason, "tag moved");
        assert_eq!(plan.condemn[0].record.last_images, ["a:1", "b:1"]);
        assert_eq!(plan.condemn[0].record.since, timestamp(10), "from when it was found, not from when it was left");
        assert_eq!((plan.condemn[1].record.reason.as_str(), plan.condemn[1].until), ("unused", 10 + 30 * DAY));
    }

    #[test]
    fn sweeps_when_grace_is_over_and_not_before() {
        let world = World::new().image("a:1", 1, &[1, 2, 3, 4, 5]).image("c:1", 3, &[]).condemned(F(2), 0);
        assert_eq!(units(&world.plan(30 * DAY - 1, 0).waiting), [F(2)]);
        assert_eq!(units(&world.plan(30 * DAY, 0).sweep), [F(2)]);
    }

    #[test]
    fn reprieves_what_is_needed_again_and_forgets_records_of_what_is_gone() {
        let world = World::new().image("a:1", 1, &[1]).condemned(L(1), 0).condemned(L(9), 0);
        let plan = world.plan(400 * DAY, 0);
        assert_eq!(plan.reprieve, [L(1), L(9)]);
        assert!(!plan.swept().contains(&L(1)));
    }

    #[test]
    fn a_use_that_ended_later_begins_grace_anew() {
        // Condemned long ago, used and left again since.
        let world = World::new().image("a:1", 1, &[1]).condemned(L(2), 0).version("a:1", 100 * DAY, 2, &[2]);
        let plan = world.plan(101 * DAY, 0);
        assert!(units(&plan.waiting).contains(&L(2)));
        assert!(world.plan(130 * DAY, 0).swept().contains(&L(2)));
    }

    #[test]
    fn keeps_the_last_images_of_published_names_and_pinned_ones() {
        let mut world = World::new()
            .image("a:1", 1, &[1])
            .version("a:1", 5, 2, &[2])
            .version("a:1", 9, 3, &[3])
            .version("gone:1", 9, 2, &[4]);
        let plan = world.plan(10, 1);
        assert_eq!(units(&plan.condemn), [L(2), L(4), L(5), F(2)]);
        world.0.versions[2].is_pinned = true;
        assert_eq!(units(&world.plan(10, 1).condemn), [L(2), L(5)]);
    }

    #[test]
    fn a_list_says_how_long_earlier_images_of_its_names_are_kept() {
        let world = World::new().image("quay.io/a:1", 1, &[1]).version("quay.io/a:1", 50 * DAY, 2, &[2]).version(
            "quay.io/a:1",
            90 * DAY,
            3,
            &[3],
        );
        let condemned = |keep, input: &str| units(&world.plan_with(100 * DAY, keep, input).condemn);
        let waits_for_nothing = [L(4), L(5)];
        for (keep, input, also) in [
            (0, "", vec![L(2), L(3), F(2), F(3)]),
            (0, "{image: 'quay.io/a:1', retention: {versions: 1}}", vec![L(2), F(2)]),
            (2, "{image: 'quay.io/a:1', retention: {versions: 0}}", vec![L(2), L(3), F(2), F(3)]),
            (0, "{image: 'quay.io/a:*', retention: {days: 20}}", vec![L(2), F(2)]),
            (0, "{image: 'quay.io/a:1', retention: {days: 51}}", vec![]),
            (0, "{image: 'quay.io/b:1', retention: {days: 51}}", vec![L(2), L(3), F(2), F(3)]),
        ] {
            let expected: BTreeSet<Unit> = also.into_iter().chain(waits_for_nothing).collect();
            assert_eq!(condemned(keep, input).into_iter().collect::<BTreeSet<_>>(), expected, "{keep} {input}");
        }
    }

    #[test]
    fn an_image_without_a_flat_needs_none() {
        let mut world = World::new().image("a:1", 1, &[1, 2, 3, 4, 5]);
        world.0.images[0].parts.flat = false;
        assert_eq!(units(&world.plan(10, 0).condemn), [F(1), F(2), F(3)]);
    }

    #[test]
    fn an_earlier_image_is_kept_as_long_as_its_parts_wait() {
        let world = World::new().image("a:1", 1, &[1]).version("a:1", 0, 2, &[1, 2]).condemned(L(2), 20 * DAY);
        let world = world.condemned(F(2), 5 * DAY);
        let plan = world.plan(40 * DAY, 0);
        assert!(plan.swept().contains(&F(2)) && !plan.swept().contains(&L(2)));
        assert_eq!((plan.versions.len(), plan.forget.len()), (1, 0));
        assert_eq!(world.plan(50 * DAY, 0).forget.len(), 1);
        // Its parts are all in use elsewhere: its own grace counts.
        let world = World::new().image("a:1", 1, &[1]).version("b:1", 3 * DAY, 1, &[1]);
        assert_eq!((world.plan(33 * DAY - 1, 0).forget.len(), world.plan(33 * DAY, 0).forget.len()), (0, 1));
    }

    #[test]
    fn what_links_and_nodes_need_stays() {
        let mut world = World::new().condemned(L(4), 0);
        world.0.roots.extend([L(4), F(3)]);
        let plan = world.plan(100 * DAY, 0);
        assert_eq!(plan.reprieve, [L(4)]);
        assert_eq!(units(&plan.condemn), [L(1), L(2), L(3), L(5), F(1), F(2)]);
    }
}
