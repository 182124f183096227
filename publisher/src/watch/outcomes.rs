//! What became of each image at the last look, and when the next one is: kept in the publisher's state, never in the repository.
//!
//! Losing the file costs one pass that looks at everything.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use image::digest::LayerDigest;
use serde::{Deserialize, Serialize};
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;

use crate::convert::Plan;
use crate::quota::Held;
use crate::report::{Outcome, Report, WishOutcome};
use crate::wishlist::WishList;

/// How long a failed image rests at first.
const FIRST_REST: Duration = Duration::from_secs(30);
/// How long at most.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcomes {
    schema: u32,
    /// Sizes of the layers of each image, by the image's whole name and the layer's digest.
    #[serde(default)]
    layers: BTreeMap<String, BTreeMap<LayerDigest, u64>>,
    /// When a wish was looked at as a whole, by its text.
    pub wishes: BTreeMap<String, Moment>,
    /// By the whole name of the image; what failed before it had one, by the text of the wish.
    pub images: BTreeMap<String, ImageOutcome>,
}

/// The state of one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageOutcome {
    /// The wish that it belongs to, as it stands in the list.
    pub wish: String,
    /// Digest at the last look that succeeded.
    pub digest: Option<String>,
    /// For which machines.
    pub platform: Option<String>,
    /// Where it is published, below the root of the repository.
    pub path: Option<String>,
    /// Compressed bytes of its layers.
    pub size: Option<u64>,
    /// Those of them that another image has as well.
    pub shared: Option<u64>,
    /// The last look.
    pub last_check: Moment,
    /// The last one that succeeded.
    pub last_success: Option<Moment>,
    /// When a new digest was published last, by this program.
    pub last_change: Option<Moment>,
    /// What became of it at the last look.
    pub outcome: Outcome,
    /// Why it failed.
    pub error: Option<String>,
    /// Failures in a row.
    pub failures: u32,
    /// Not before this; none while all is well.
    pub next_try: Option<Moment>,
}

/// A moment, written as RFC 3339 does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub UtcDateTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.0.replace_nanosecond(0).unwrap_or(self.0);
        f.write_str(&whole.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Moment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = UtcDateTime::parse(&text, &Rfc3339);
        parsed.map(Self).map_err(serde::de::Error::custom)
    }
}

impl Outcomes {
    /// Reads the file; a missing or unreadable one is empty.
    pub fn read(path: &Path) -> Self {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %path.display(), %error, "what became of images before is not known; all are looked at");
                Self::default()
            }),
            Err(_) => Self::default(),
        }
    }

    /// Replaces the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&Self { schema: 1, ..self.clone() })?)?;
        file.sync_all()?;
        fs::rename(new, path)
    }

    /// Notes a pass: what it reported, and which wishes it looked at as a whole. Images of those that it did not see are gone, but for
    /// the ones that it left out because they rest.
    pub fn note(&mut self, report: &Report, whole: &[String], rested: &HashSet<String>, now: UtcDateTime) {
        let now = Moment(now);
        let mut seen: HashSet<&str> = rested.iter().map(String::as_str).collect();
        for wish in by_image(report) {
            let name = wish.image.as_deref().unwrap_or(&wish.wish);
            let old = self.images.get(name);
            let failures = match wish.has_failed() {
                true => old.map_or(0, |old| old.failures).saturating_add(1),
                false => 0,
            };
            let succeeded = !wish.has_failed();
            let changed = matches!(wish.outcome, Outcome::Added | Outcome::Updated);
            let error = wish.error.clone().or_else(|| wish.thin.as_ref()?.error.clone());
            let outcome = ImageOutcome {
                wish: wish.wish.clone(),
                digest: wish.digest.clone().or_else(|| old?.digest.clone()),
                platform: old.and_then(|old| old.platform.clone()),
                path: old.and_then(|old| old.path.clone()),
                size: old.and_then(|old| old.size),
                shared: old.and_then(|old| old.shared),
                last_check: now,
                last_success: if succeeded { Some(now) } else { old.and_then(|old| old.last_success) },
                last_change: if changed { Some(now) } else { old.and_then(|old| old.last_change) },
                outcome: wish.outcome,
                error,
                failures,
                next_try: (failures > 0).then(|| Moment(now.0 + rest(failures))),
            };
            self.images.insert(name.to_owned(), outcome);
        }
        seen.extend(report.wishes.iter().map(|wish| wish.image.as_deref().unwrap_or(&wish.wish)));
        self.images.retain(|name, image| seen.contains(name.as_str()) || !whole.contains(&image.wish));
        self.wishes.extend(whole.iter().map(|wish| (wish.clone(), now)));
    }

    /// Notes what a pass saw of images that are published now: where they are, for whom, and how large. One that is published for
    /// several platforms is one image.
    pub fn describe(&mut self, plan: &Plan) {
        let mut described: HashSet<&str> = HashSet::new();
        for plan in plan.images.iter().flatten() {
            let Some(image) = self.images.get_mut(&plan.image).filter(|image| image.failures == 0) else { continue };
            let layers = self.layers.entry(plan.image.clone()).or_default();
            let platform = plan.platform.to_string();
            image.path = Some(plan.name.to_string());
            match image.platform.as_mut().filter(|_| !described.insert(&plan.image)) {
                Some(platforms) => platforms.push_str(&format!(", {platform}")),
                None => {
                    image.platform = Some(platform);
                    layers.clear();
                }
            }
            layers.extend(plan.manifest.layers_once().map(|layer| (layer.digest, layer.size)));
        }
        self.measure();
    }

    /// The layers of images that a pass does not look at, by the owners of their wishes.
    pub fn held(&self, list: &WishList, plan: &Plan) -> Held {
        let looked_at: HashSet<&str> = plan.images.iter().flatten().map(|image| image.image.as_str()).collect();
        let owners: HashMap<&str, &str> =
            list.wishes.iter().filter_map(|wish| Some((wish.text.as_str(), wish.options.owner.as_deref()?))).collect();
        let mut held = Held::new();
        for (name, layers) in self.layers.iter().filter(|(name, _)| !looked_at.contains(name.as_str())) {
            if let Some(owner) = self.images.get(name).and_then(|image| owners.get(image.wish.as_str())) {
                held.entry((*owner).to_owned()).or_default().extend(layers);
            }
        }
        held
    }

    /// Sizes of images, and what each shares with others.
    fn measure(&mut self) {
        self.layers.retain(|name, _| self.images.contains_key(name));
        let mut users: HashMap<LayerDigest, u32> = HashMap::new();
        for digest in self.layers.values().flat_map(BTreeMap::keys) {
            *users.entry(*digest).or_default() += 1;
        }
        for (name, layers) in &self.layers {
            let Some(image) = self.images.get_mut(name) else { continue };
            let shared = layers.iter().filter(|(digest, _)| users[digest] > 1);
            image.shared = Some(shared.map(|(_, size)| size).sum());
            image.size = Some(layers.values().sum());
        }
    }

    /// Forgets what belongs to no wish of the list.
    pub fn keep_wishes(&mut self, wishes: &HashSet<&str>) {
        self.wishes.retain(|wish, _| wishes.contains(wish.as_str()));
        self.images.retain(|_, image| wishes.contains(image.wish.as_str()));
    }
}

/// The outcomes of a pass, one an image: that of several platforms has failed if one of them has, and changed if one of them has.
fn by_image(report: &Report) -> Vec<WishOutcome> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut merged: Vec<WishOutcome> = Vec::new();
    for wish in &report.wishes {
        let mut wish_here = wish.clone();
        let platform = wish.platform.as_deref();
        wish_here.error = wish.error.as_ref().map(|error| platform.map_or(error.clone(), |p| format!("{p}: {error}")));
        let Some(place) = platform.and(wish.image.as_deref()).and_then(|name| places.get(name)) else {
            places.insert(wish.image.as_deref().unwrap_or(&wish.wish), merged.len());
            merged.push(wish_here);
            continue;
        };
        let first = &mut merged[*place];
        let news = |outcome| match outcome {
            Outcome::Failed => 3,
            Outcome::Updated => 2,
            Outcome::Added | Outcome::Removed => 1,
            Outcome::Unchanged => 0,
        };
        if news(wish.outcome) > news(first.outcome) {
            first.outcome = wish.outcome;
        }
        first.thin = first.thin.take().or(wish_here.thin);
        first.error = match (first.error.take(), wish_here.error) {
            (Some(one), Some(other)) => Some(format!("{one}; {other}")),
            (one, other) => one.or(other),
        };
    }
    merged
}

/// How long an image rests after so many failures in a row: doubled each time.
fn rest(failures: u32) -> Duration {
    FIRST_REST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> UtcDateTime {
        UtcDateTime::from_unix_timestamp(1_795_000_000 + seconds).unwrap()
    }

    fn report(outcomes: &[(&str, &str, Outcome)]) -> Report {
        let mut report = Report::new("images.example.org");
        report.wishes = outcomes
            .iter()
            .map(|(wish, image, outcome)| {
                let image = (!image.is_empty()).then(|| (*image).to_owned());
                let error = (*outcome == Outcome::Failed).then(|| "unreachable".to_owned());
                WishOutcome { image, error, ..WishOutcome::new(*wish, Some(1), *outcome) }
            })
            .collect();
        report
    }

    #[test]
    fn failures_rest_longer_each_time_and_a_success_ends_that() {
        let mut outcomes = Outcomes::default();
        let mut rests = Vec::new();
        for number in 0..9 {
            outcomes.note(&report(&[("w", "a", Outcome::Failed)]), &[], &HashSet::new(), at(number));
            let image = &outcomes.images["a"];
            rests.push((image.next_try.unwrap().0 - at(number)).whole_seconds());
            assert_eq!((image.failures, image.last_success), (number as u32 + 1, None));
        }
        assert_eq!(rests, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        outcomes.note(&report(&[("w", "a", Outcome::Added)]), &[], &HashSet::new(), at(100));
        let image = &outcomes.images["a"];
        assert_eq!((image.failures, image.next_try, image.error.as_deref()), (0, None, None));
        assert_eq!((image.last_success, image.last_change), (Some(Moment(at(100))), Some(Moment(at(100)))));
        outcomes.note(&report(&[("w", "a", Outcome::Unchanged)]), &[], &HashSet::new(), at(200));
        assert_eq!(outcomes.images["a"].last_change, Some(Moment(at(100))));
        assert_eq!(rest(u32::MAX), LONGEST_REST);
    }

    #[test]
    fn images_that_left_a_wildcard_are_forgotten_and_those_that_rest_are_not() {
        let mut outcomes = Outcomes::default();
        let all = [
            ("w*", "1", Outcome::Added),
            ("w*", "2", Outcome::Failed),
            ("w*", "3", Outcome::Added),
            ("v", "4", Outcome::Added),
        ];
        outcomes.note(&report(&all), &["w*".into(), "v".into()], &HashSet::new(), at(0));
        // An event brings one of them only.
        outcomes.note(&report(&all[..1]), &[], &HashSet::new(), at(1));
        assert_eq!(outcomes.images.len(), 4);
        outcomes.note(&report(&all[..1]), &["w*".into()], &HashSet::from(["2".to_owned()]), at(2));
        assert_eq!(outcomes.images.keys().collect::<Vec<_>>(), ["1", "2", "4"]);
        outcomes.keep_wishes(&HashSet::from(["v"]));
        assert_eq!(outcomes.images.keys().collect::<Vec<_>>(), ["4"]);
        assert_eq!(outcomes.wishes.len(), 1);
    }

    #[test]
    fn an_image_for_several_platforms_is_one_that_fails_as_a_whole() {
        let mut outcomes = Outcomes::default();
        let mut report =
            report(&[("w", "a", Outcome::Unchanged), ("w", "a", Outcome::Failed), ("w", "a", Outcome::Failed)]);
        for (wish, platform) in report.wishes.iter_mut().zip(["linux/amd64", "linux/arm64", "linux/s390x"]) {
            wish.platform = Some(platform.to_owned());
        }
        outcomes.note(&report, &[], &HashSet::new(), at(0));
        let image = &outcomes.images["a"];
        assert_eq!((image.outcome, image.failures), (Outcome::Failed, 1));
        assert_eq!(image.error.as_deref(), Some("linux/arm64: unreachable; linux/s390x: unreachable"));
        report.wishes.truncate(1);
        outcomes.note(&report, &[], &HashSet::new(), at(1));
        assert_eq!((outcomes.images["a"].failures, outcomes.images["a"].outcome), (0, Outcome::Unchanged));
    }

    #[test]
    fn the_file_is_read_back_and_a_damaged_one_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.json");
        let mut outcomes = Outcomes::default();
        outcomes.note(&report(&[("w", "", Outcome::Failed)]), &["w".into()], &HashSet::new(), at(0));
        outcomes.write(&path).unwrap();
        assert_eq!(Outcomes::read(&path), Outcomes { schema: 1, ..outcomes });
        fs::write(&path, "{").unwrap();
        assert_eq!(Outcomes::read(&path), Outcomes::default());
    }
}
