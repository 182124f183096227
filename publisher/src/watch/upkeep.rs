//! What a watching publisher does besides passes: images that nobody wishes go, what nothing needs is collected, the page is published.
//!
//! When that was done last is kept in the state; losing it has it done once more.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cvmfs::gc::Keep;
use image::layout::OwnedPath;
use serde::{Deserialize, Serialize};
use time::UtcDateTime;

use super::outcomes::Moment;
use super::page;
use super::server::Site;
use super::status::CollectionStatus;
use crate::cli::Upkeep as Options;
use crate::error::one_line;
use crate::failure::Failure;
use crate::gc::{self, CollectOptions, DEFAULT_KEEP};
use crate::publish::edit;
use crate::removal::{self, Usage, Wanted};
use crate::target::Target;
use crate::wishlist::WishList;

/// How long something that failed is left alone.
const REST: Duration = Duration::from_secs(3600);
/// Objects younger than this stay, whatever refers to them: somebody may be about to.
const MINIMAL_AGE: Duration = Duration::from_secs(48 * 3600);

/// What is done, and when it was done last.
#[derive(Debug)]
pub struct Upkeep {
    options: Options,
    file: PathBuf,
    done: Done,
    /// What was asked for when nothing was left to prune, and in which revision.
    pruned: Option<(Wanted, u64)>,
    /// Until when what failed rests.
    rest: Option<UtcDateTime>,
}

/// The file in the state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Done {
    collected: Option<Moment>,
    page: Option<Page>,
}

/// The page that is published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Page {
    at: Moment,
    /// The revision that brought it.
    revision: u64,
}

impl Upkeep {
    /// With what the state knows.
    pub fn new(options: &Options, file: PathBuf) -> Self {
        let done = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { options: options.clone(), file, done, pruned: None, rest: None }
    }

    /// When something of it is due next.
    pub fn next(&self, now: UtcDateTime) -> Option<UtcDateTime> {
        let collection = self.options.collect.0.map(|every| self.done.collected.map_or(now, |last| last.0 + every));
        collection.map(|due| self.rest.map_or(due, |rest| rest.max(due)))
    }

    /// Does what is due, and shows it. What fails is tried again after an hour, the rest is done.
    pub fn work(&mut self, target: &Target, list: &WishList, site: &Site, now: UtcDateTime) {
        if self.rest.is_some_and(|rest| now < rest && rest <= now + REST) {
            return;
        }
        let before = self.done.clone();
        let results = [
            ("images that nobody wishes are not removed", self.prune(target, list, site)),
            ("what nothing needs is not collected", self.collect(target, list, site, now)),
            ("the page is not published", self.publish_page(target, site, now)),
        ];
        let failed =
            results.into_iter().filter_map(|(what, result)| Some(format!("{what}: {}", one_line(&result.err()?))));
        let troubles: Vec<String> = failed.collect();
        self.rest = (!troubles.is_empty()).then(|| now + REST);
        troubles.iter().for_each(|trouble| tracing::error!("{trouble}"));
        site.update(|status| status.upkeep.trouble = (!troubles.is_empty()).then(|| troubles.join("; ")));
        if self.done != before {
            let bytes = serde_json::to_vec(&self.done).expect("moments and numbers");
            if let Err(error) = fs::write(&self.file, bytes) {
                tracing::warn!(file = %self.file.display(), %error, "what was done is not kept; it is done again after a restart");
            }
        }
    }

    /// Only by a list that is understood to the last entry, and that asks for something.
    fn prune(&mut self, target: &Target, list: &WishList, site: &Site) -> Result<(), Failure> {
        if !self.options.prune || list.wishes.is_empty() {
            return Ok(());
        }
        let (is_bad, now_at) = site.look(|status| (status.list.error.is_some(), status.revision));
        if is_bad || list.clone().strict().is_err() {
            return Ok(());
        }
        let wanted = Wanted::of(&list.wishes)?;
        // Where the newest tags are wished for, each new one makes another one old.
        let newest = list.wishes.iter().any(|wish| wish.tags.newest.is_some());
        let is_done = |(known, revision): &(Wanted, u64)| *known == wanted && (!newest || now_at == Some(*revision));
        if self.pruned.as_ref().is_some_and(is_done) {
            return Ok(());
        }
        let removed = removal::prune(target, &wanted, false)?;
        if !removed.images.is_empty() {
            tracing::info!(
                images = removed.images.len(),
                revision = removed.revision,
                "images that nobody wishes were removed"
            );
        }
        site.update(|status| status.revision = Some(removed.revision));
        self.pruned = Some((wanted, removed.revision));
        Ok(())
    }

    fn collect(&mut self, target: &Target, list: &WishList, site: &Site, now: UtcDateTime) -> Result<(), Failure> {
        let Some(every) = self.options.collect.0 else { return Ok(()) };
        if self.done.collected.is_some_and(|last| last.0 <= now && now < last.0 + every) {
            return Ok(());
        }
        let begun = Instant::now();
        let options = removal::Options {
            grace: self.options.grace,
            keep_versions: self.options.keep_versions,
            lists: Wanted::of(&list.wishes)?,
            usage: Usage::read(&self.options.in_use)?,
            dry_run: false,
        };
        let images = removal::collect(target, &options)?;
        let keep = Keep::Since((now - DEFAULT_KEEP).unix_timestamp().max(0) as u64);
        let objects = match self.options.objects {
            true => Some(gc::collect(target, &CollectOptions { keep, minimal_age: MINIMAL_AGE, dry_run: false })?),
            false => None,
        };
        self.done.collected = Some(Moment(now));
        let collection = CollectionStatus {
            began: Moment(now),
            seconds: begun.elapsed().as_secs_f64(),
            condemned: images.condemned.len() + images.waiting.len(),
            swept: images.swept.len(),
            objects: objects.map(|objects| (objects.removed.objects, objects.removed.bytes)),
        };
        tracing::info!(?collection, "what nothing needs was collected");
        site.metrics().collected(&collection);
        site.update(|status| {
            status.revision = Some(images.revision);
            status.upkeep.collection = Some(collection);
        });
        Ok(())
    }

    /// A copy of the page, if something else was published since the last one.
    fn publish_page(&mut self, target: &Target, site: &Site, now: UtcDateTime) -> Result<(), Failure> {
        let Some(every) = self.options.publish_page.0 else { return Ok(()) };
        let is_due = self.done.page.is_none_or(|page| now < page.at.0 || page.at.0 + every <= now);
        let (is_empty, now_at) = site.look(|status| (status.images.is_empty(), status.revision));
        let is_out_of_date = self.done.page.map(|page| page.revision) != now_at;
        if !is_due || !is_out_of_date || is_empty {
            return Ok(());
        }
        let bytes = page::copy(&site.status()).into_bytes();
        let (_, (_, revision)) = edit(target, |hand| Ok((hand.file(&OwnedPath::StatusPage, &bytes)?, true)))?;
        site.update(|status| status.revision = Some(revision));
        self.done.page = Some(Page { at: Moment(now), revision });
        Ok(())
    }
}
