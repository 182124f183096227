//! Removal of images, and of layers and flats that nothing needs any more. What stays and for how long:
//! `doc/REMOVING.md`.
//!
//! ```text
//! published ──tag moved, removed, wish dropped──▶ earlier image ──undelete──▶ published
//!                                                     │
//! layers and flats:  needed ──▶ condemned ──grace──▶ swept ──gc --objects──▶ gone from the storage
//!                      ▲────reprieved────┘
//! ```
//!
//! A name that moves or goes costs its own records only (`versions`). What that leaves unused is found by the next
//! collection, which reads all records (`mark`), decides (`plan`: pure, printed by `--dry-run`, executed as it is)
//! and publishes once.
//!
//! Invariants
//! - Marking is total: one unreadable record stops the run before anything is condemned.
//! - A path needed again while condemned is needed: whoever publishes it takes its record away.
//! - Grace counts from the recorded time, never from file times.
//! - A plan is executed against the revision that it was made for; if somebody published meanwhile, it is made again
//!   under the lock.

mod index;
mod mark;
mod names;
mod plan;
mod report;
mod usage;
mod versions;
mod view;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use cvmfs::transaction::Published;
use image::digest::LayerDigest;
use image::layout::{IndexKey, OwnedPath};
use image::reference::PublicName;

pub use self::index::IndexPlan;
pub use self::mark::{Image, Names, Owner, Parts, Seen, Unit, Version};
pub use self::names::{Sort, Wanted};
pub use self::plan::{Plan, Rules, Sentence};
pub use self::report::{Collected, Removed, earlier_to_json, earlier_to_text};
pub use self::usage::Usage;
use self::versions::Earlier;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::{Hand, edit};
use crate::target::{Lock, Target, until_first};

/// How long what nothing needs stays, where nothing else is said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a name ceased to lead to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its tag means another image now.
    TagMoved,
    /// No wish list asks for it.
    WishDropped,
    /// Somebody removed it.
    Removed,
    /// An earlier image was put back in its place.
    RolledBack,
}

impl Reason {
    /// The word in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::TagMoved => "tag moved",
            Reason::WishDropped => "wish dropped",
            Reason::Removed => "removed",
            Reason::RolledBack => "rolled back",
        }
    }
}

/// How images are collected.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How long what nothing needs stays.
    pub grace: Duration,
    /// How many earlier images of each published name are kept whatever their age.
    pub keep_versions: usize,
    /// Wish lists that say it for their images (`retention`).
    pub lists: Wanted,
    /// What nodes use.
    pub usage: Usage,
    /// Change nothing.
    pub dry_run: bool,
}

/// What is to be done, in all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WholePlan {
    /// With layers, flats and records.
    pub plan: Plan,
    /// With the index.
    pub index: IndexPlan,
    /// What was seen, for the report.
    pub seen: Seen,
}

impl WholePlan {
    /// Reads the repository and decides.
    pub fn make(target: &Target, options: &Options) -> Result<WholePlan, Failure> {
        let seen = Seen::read(target, &options.usage)?;
        let now = target.clock.now().unix_timestamp();
        let (grace, keep_versions, lists) = (options.grace, options.keep_versions, &options.lists);
        let rules = Rules { now, grace, keep_versions, lists };
        let plan = Plan::make(&seen, &rules);
        let index = IndexPlan::make(target, &seen, &plan)?;
        Ok(WholePlan { plan, index, seen })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Plan { condemn, sweep, reprieve, forget, .. } = &self.plan;
        condemn.is_empty() && sweep.is_empty() && reprieve.is_empty() && forget.is_empty() && self.index.is_empty()
    }
}

/// Condemns, reprieves and sweeps, in one publish; nothing is published where there is nothing to do.
pub fn collect(target: &Target, options: &Options) -> Result<Collected, Failure> {
    let start = Instant::now();
    let plan = WholePlan::make(target, options)?;
    if options.dry_run || plan.is_empty() {
        return Ok(Collected::new(target, &plan, options.dry_run, None, start));
    }
    let mut plan = Some(plan);
    let (plan, published) = until_first(|| {
        let lock = target.lock()?;
        let present = target.repository()?.manifest().revision;
        let plan = match plan.take().filter(|p| p.plan.revision == present) {
            Some(plan) => plan,
            None => WholePlan::make(target, options)?,
        };
        let published = if plan.is_empty() { None } else { Some(apply(target, &lock, &plan)?) };
        Ok((plan, published))
    })?;
    Ok(Collected::new(target, &plan, false, published.as_ref(), start))
}

/// Executes a plan. The caller holds the lock, and has seen that nobody published since the plan was made.
fn apply(target: &Target, lock: &Lock, plan: &WholePlan) -> Result<Published, Failure> {
    let now = target.clock.now();
    let mut transaction = target.begin(lock, now)?;
    let mut hand = Hand::new(target, &mut transaction, now)?;
    for unit in &plan.plan.reprieve {
        hand.transaction.remove(&repo_path(&hand.layout, &unit.condemned()))?;
    }
    for sentence in &plan.plan.sweep {
        let beside = match sentence.unit {
            Unit::Flat(flat) => vec![OwnedPath::FlatStartup(flat), OwnedPath::FlatCover(flat)],
            Unit::Layer(_) => Vec::new(),
        };
        for path in [sentence.unit.condemned(), sentence.unit.path()].into_iter().chain(beside) {
            hand.transaction.remove(&repo_path(&hand.layout, &path))?;
        }
    }
    for sentence in &plan.plan.condemn {
        hand.file(&sentence.unit.condemned(), &sentence.record.to_bytes())?;
    }
    for Version { owner, key, .. } in &plan.plan.forget {
        let Owner { platform, name } = owner.clone();
        hand.remove_with_parents(&OwnedPath::Version { platform, name, key: *key })?;
    }
    for key in &plan.index.remove {
        hand.transaction.remove(&repo_path(&hand.layout, &OwnedPath::Index(*key)))?;
    }
    for (key, to) in &plan.index.relink {
        hand.link(&OwnedPath::Index(*key), to)?;
    }
    for (layer, users) in &plan.index.users {
        hand.file(&OwnedPath::Index(IndexKey::Users(*layer)), &users.to_bytes())?;
    }
    target.commit(transaction)
}

/// Changes names in one publish; `change` says which it changed. Nothing is published if it changed none.
fn change(
    target: &Target,
    dry_run: bool,
    mut change: impl FnMut(&mut Hand<'_>) -> Result<Vec<Owner>, Failure>,
) -> Result<Removed, Failure> {
    let (changed, revisions) = edit(target, |hand| {
        let changed = change(hand)?;
        if !changed.is_empty() {
            hand.clean_podman_store()?;
        }
        let is_change = !dry_run && !changed.is_empty();
        Ok((changed, is_change))
    })?;
    Ok(Removed::new(target, changed, revisions, dry_run))
}

/// Removes an image: its link and records. What it is made of waits for its grace.
pub fn remove(target: &Target, image: &str, dry_run: bool) -> Result<Removed, Failure> {
    change(target, dry_run, |hand| {
        let owners = hand.find(image, Sort::Published)?;
        for owner in &owners {
            if hand.is_pinned(owner)? {
                let name = &owner.name;
                return Err(Failure::Content(format!(
                    "{name} is pinned; nothing was removed (pin --remove gives it up)"
                )));
            }
            hand.take_away(owner.platform.as_ref(), &owner.name, Reason::Removed)?;
        }
        Ok(owners)
    })
}

/// Removes every image that no wish asks for, on every platform that none asks for it, but pinned ones.
pub fn prune(target: &Target, wanted: &Wanted, dry_run: bool) -> Result<Removed, Failure> {
    change(target, dry_run, |hand| {
        let published = Names::read(target)?.published;
        let asked = wanted.select(published.keys());
        // The link below .multiarch of the default platform has no records of its own: what it leads to is pinned with the name.
        let is_pinned = |owner: &Owner| {
            let plain = Owner { platform: None, name: owner.name.clone() };
            [owner, &plain].into_iter().any(|owner| published.get(owner) == Some(&true))
        };
        let is_dropped = |owner: &&Owner| !is_pinned(owner) && !asked.contains(*owner);
        let mut dropped: Vec<Owner> = published.keys().filter(is_dropped).cloned().collect();
        // A plain path that leads each client to its own architecture needs the default one.
        let stays = |name: &PublicName| !dropped.iter().any(|owner| owner.platform.is_none() && owner.name == *name);
        let mut needed = HashSet::new();
        for owner in dropped.iter().filter(|owner| owner.platform.is_some() && stays(&owner.name)) {
            if hand.default_of_variant(&owner.name)? == owner.platform {
                needed.insert(owner.clone());
            }
        }
        dropped.retain(|owner| !needed.contains(owner));
        for owner in &dropped {
            hand.take_away(owner.platform.as_ref(), &owner.name, Reason::WishDropped)?;
        }
        Ok(dropped)
    })
}

/// Puts back what a name led to before: the last one, or the one whose digest begins with `version`.
pub fn undelete(target: &Target, image: &str, version: Option<&str>, dry_run: bool) -> Result<Removed, Failure> {
    change(target, dry_run, |hand| {
        // What is meant is settled before anything moves: putting one back makes others earlier images.
        let mut meant = Vec::new();
        for owner in hand.find(image, Sort::Earlier)? {
            if version.is_none() && hand.is_published(&owner)? {
                let name = &owner.name;
                return Err(Failure::Content(format!(
                    "{name} is published; to go back to an earlier image of that name give its digest: --version sha256:… (images --earlier lists them)"
                )));
            }
            let hex = version.map(|text| text.strip_prefix("sha256:").unwrap_or(text));
            let mut versions = hand.earlier(&owner)?;
            let is_meant = |version: &Earlier| hex.is_none_or(|hex| !hex.is_empty() && version.is_named_by(hex));
            versions.retain(is_meant);
            let last = versions.iter().max_by_key(|version| (version.since, version.key)).map(|version| version.key);
            if let Some(key) = last.filter(|_| hex.is_none() || versions.len() == 1) {
                meant.push((owner, key));
            }
        }
        let (mut restored, mut plain) = (Vec::new(), None);
        for (owner, key) in meant {
            // The plain path may have brought the link of its platform with it.
            let is_back = match version {
                None => hand.is_published(&owner)?,
                Some(_) => plain == Some(key) && hand.second_place(&owner.name)? == owner.platform,
            };
            if !is_back {
                hand.restore(owner.platform.as_ref(), &owner.name, key)?;
                plain = plain.or(owner.platform.is_none().then_some(key));
                restored.push(owner);
            }
        }
        match (restored.is_empty(), version) {
            (true, Some(version)) => Err(Failure::Content(format!(
                "{image} has no single earlier image {version} (images --earlier lists them)"
            ))),
            _ => Ok(restored),
        }
    })
}

/// What `pin` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// What the name leads to now stays.
    Set,
    /// Nothing of the name is pinned any more, neither the present image nor earlier ones.
    Remove,
}

/// Pins what a name leads to, or gives its pins up.
pub fn pin(target: &Target, image: &str, pin: Pin) -> Result<Removed, Failure> {
    change(target, false, |hand| {
        let sort = match pin {
            Pin::Set => Sort::Recorded,
            Pin::Remove => Sort::Known,
        };
        let mut changed = Vec::new();
        for owner in hand.find(image, sort)? {
            let did = match pin {
                Pin::Set => hand.pin(&owner)?,
                Pin::Remove => hand.unpin(&owner)?,
            };
            changed.extend(did.then_some(owner));
        }
        Ok(changed)
    })
}

/// Earlier images, the last ones first.
pub fn earlier(target: &Target) -> Result<Vec<Version>, Failure> {
    let mut versions = Names::read(target)?.earlier(target)?;
    versions.sort_by(|a, b| b.since.cmp(&a.since).then_with(|| (&a.owner, a.key).cmp(&(&b.owner, b.key))));
    Ok(versions)
}

/// Digests of layers, for reports.
fn hexes(layers: &[LayerDigest]) -> Vec<String> {
    layers.iter().map(ToString::to_string).collect()
}
