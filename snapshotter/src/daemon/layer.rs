//! A request for a layer of an image: from what is asked to what is answered.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use image::digest::LayerDigest;

use super::downloads::Missed;
use super::{Daemon, chain_of};
use crate::config::FillMissing;
use crate::decision::{Action, Decision, Outcome};
use crate::error::Error;
use crate::fill;
use crate::labels::{Labels, Wanted};
use crate::legacy;
use crate::overlay::{self, Mount};
use crate::repository::Repository;
use crate::resolve::{self, Below, Hit, Published};
use crate::snapshots::{Found, Kind, Lower, Part, Snapshot, Snapshots, conjured_name};
use crate::usage::Usage;

/// Entries of a layer that are looked through for literal whiteouts, and how long that may take.
const SCAN_LIMIT: usize = 500_000;
const SCAN_TIME: Duration = Duration::from_secs(60);
/// Layers that are remembered as looked at ahead.
const WARMED: usize = 10_000;
/// Layers looked at ahead at a time; fewer than a repository is asked at once, so that nobody who waits has to wait for them.
const AHEAD: usize = 8;

/// A request for a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    /// name of the snapshot if it has to be unpacked
    pub(super) key: &'a str,
    /// name of the snapshot that it stands on
    pub(super) parent: Option<&'a str>,
    /// labels as they came
    pub(super) labels: &'a Labels,
    /// what they say of the layer
    pub(super) wanted: &'a Wanted,
    /// when it came
    pub(super) start: Instant,
}

impl Asked<'_> {
    /// Parent, target and labels, for a thread that may outlive the request.
    fn owned(&self) -> (Option<String>, String, Labels) {
        (self.parent.map(str::to_owned), self.wanted.target.clone(), self.labels.clone())
    }

    /// The answer that makes containerd skip the layer.
    fn prepared(&self, reason: &str) -> Error {
        self.log(true, reason);
        Error::AlreadyExists(self.wanted.target.clone())
    }

    /// The one line that says what was decided; others read it under this name of the field as well.
    fn log(&self, prepared: bool, reason: &str) {
        tracing::info!(
            key = self.key,
            parent = self.parent,
            "ref" = self.wanted.target,
            image = self.wanted.image,
            "remote-snapshot-prepared" = prepared,
            reason,
            ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "prepare"
        );
    }
}

impl Daemon {
    /// A layer of an image.
    pub(super) async fn prepare_layer(&self, asked: &Asked<'_>) -> Result<Vec<Mount>, Error> {
        let Asked { parent, wanted, start, .. } = *asked;
        let (owned, target) = (parent.map(str::to_owned), wanted.target.clone());
        let (existing, lineage) = self
            .blocking(move |snapshots| {
                Ok((snapshots.conjured(owned.as_deref(), &target)?, snapshots.lineage(owned.as_deref())?))
            })
            .await?;
        if let Some(existing) = existing
            && !self.is_gone(&existing).await
        {
            self.metrics.prepared("existing", existing.how.as_deref().unwrap_or("local"), "", start);
            return Err(asked.prepared("made before"));
        }
        let below =
            lineage.first().map_or(Below::Nothing, |parent| chain_of(parent).map_or(Below::Unknown, Below::Chain));
        let decision = self.find(wanted, below).await;
        self.warm(wanted);
        match decision.action() {
            Action::Serve { repository, hit } => match self.lowers(&repository, &hit.layer).await {
                Ok(lowers) if overlay::count(lineage.iter()) + lowers.len() <= overlay::MAX_LOWERS => {
                    self.serve(asked, &repository, &hit, lowers).await
                }
                Ok(_) => self.miss(asked, &decision, "too many layers").await,
                Err(reason) => self.miss(asked, &decision, &reason).await,
            },
            Action::Refuse(down) => {
                self.metrics.prepared("refused", "", &down.repository, start);
                asked.log(false, &down.to_string());
                let target = &wanted.target;
                Err(Error::Unavailable(format!("{down}; layer {target} may be in it, and on_error is \"fail\"")))
            }
            Action::Download(reason) => self.miss(asked, &decision, &reason).await,
        }
    }

    /// Has a repository said that it has not any more what stands for this snapshot? Whether it can be asked does not matter here.
    async fn is_gone(&self, snapshot: &Snapshot) -> bool {
        for lower in snapshot.lowers[..snapshot.alone()].iter().filter(|lower| lower.part.is_published()) {
            let path = self.snapshots.directories().target(lower);
            let look = move |_: &Path| path.symlink_metadata().map(Some);
            if matches!(self.repository(&lower.repository).look(look).await, Ok(None)) {
                return true;
            }
        }
        false
    }

    async fn serve(
        &self,
        asked: &Asked<'_>,
        repository: &Repository,
        hit: &Hit,
        lowers: Vec<Lower>,
    ) -> Result<Vec<Mount>, Error> {
        let size = Usage { size: hit.layer.size.0, inodes: hit.layer.size.1 };
        let how = hit.way.as_str();
        let found = Found { lowers, how, logical: size, stack: None };
        let (parent, target, labels) = asked.owned();
        self.blocking(move |snapshots| snapshots.insert_remote(parent.as_deref(), &target, &labels, &found)).await?;
        self.metrics.prepared("remote", how, repository.name(), asked.start);
        self.metrics.avoided(size.size);
        Err(asked.prepared(&format!("layer {} of {}, found by {how}", hit.layer.layer, repository.name())))
    }

    /// The layer has to come from elsewhere.
    async fn miss(&self, asked: &Asked<'_>, decision: &Decision, reason: &str) -> Result<Vec<Mount>, Error> {
        if self.config.fill_missing != FillMissing::Off && decision.is_absent() {
            match self.fill(asked).await {
                Ok(true) => {
                    self.metrics.prepared("filled", "content", "", asked.start);
                    return Err(asked.prepared("filled in"));
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    key = asked.key,
                    "ref" = asked.wanted.target,
                    error = format!("{error:#}"),
                    "an absent layer could not be filled in; containerd downloads it"
                ),
            }
        }
        let mounts = self.create(Kind::Active, asked.key, asked.parent, asked.labels.clone()).await?;
        self.metrics.prepared("miss", "", "", asked.start);
        self.metrics.fallback(decision.class());
        let image = asked.wanted.image.clone().unwrap_or_else(|| asked.wanted.target.clone());
        self.downloads.begin(asked.key, Missed { image, reason: reason.to_owned(), class: decision.class() });
        asked.log(false, reason);
        Ok(mounts)
    }

    /// A snapshot was committed: if it is a layer that had to be downloaded, now it is known how large it is.
    pub(super) fn downloaded(&self, key: &str, committed: &Snapshot) {
        let bytes = committed.usage.map_or(0, |usage| usage.size);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let Some(missed) = self.downloads.end(key, bytes, now) else { return };
        self.metrics.downloaded(missed.class, bytes);
        tracing::warn!(
            image = missed.image,
            layer = committed.info.name,
            bytes,
            reason = missed.reason,
            "a layer was downloaded in full"
        );
    }

    /// Unpacks an absent layer here, so that containerd does not download everything above it; false if that would bring nothing.
    async fn fill(&self, asked: &Asked<'_>) -> anyhow::Result<bool> {
        let Asked { key, parent, wanted, .. } = *asked;
        let Some(source) = fill::Source::of(&self.config, key, wanted) else { return Ok(false) };
        if !self.any_published(&wanted.following).await {
            return Ok(false);
        }
        let name = conjured_name(parent, &wanted.target);
        let turn = Arc::clone(self.filling.lock().entry(name.clone()).or_default());
        let filled = {
            let _turn = turn.lock().await;
            self.fill_in_turn(asked, &source).await
        };
        // Whoever waits has a share of its own.
        self.filling.lock().retain(|other, turn| *other != name || Arc::strong_count(turn) > 2);
        filled
    }

    async fn fill_in_turn(&self, asked: &Asked<'_>, source: &fill::Source) -> anyhow::Result<bool> {
        let (parent, target, labels) = asked.owned();
        let (above, wanted) = (parent.clone(), target.clone());
        let existing = self.blocking(move |snapshots| snapshots.conjured(above.as_deref(), &wanted)).await?;
        if let Some(existing) = existing {
            // Another request was faster, or its layer has gone from its repository; then its name is taken.
            return Ok(!self.is_gone(&existing).await);
        }
        let Some(blob) = source.obtain().await? else { return Ok(false) };
        let own_key = format!("cvmfs-fill/{}", conjured_name(asked.parent, &target));
        let removed = own_key.clone();
        // Of a process that was killed while it was filling.
        let _ = self.blocking(move |snapshots| snapshots.remove(&removed)).await;
        let mounts = self.create(Kind::Active, &own_key, asked.parent, Labels::new()).await?;
        let below = match parent.clone() {
            None => Below::Nothing,
            Some(parent) => {
                let parent = self.blocking(move |snapshots| snapshots.stat(&parent)).await?;
                chain_of(&parent).map_or(Below::Unknown, Below::Chain)
            }
        };
        match source.apply(&blob, &mounts, below, asked.wanted).await {
            Ok(()) => {
                let commit = move |snapshots: &Snapshots| {
                    snapshots.commit_conjured(&own_key, parent.as_deref(), &target, &labels)
                };
                self.blocking(commit).await?;
                Ok(true)
            }
            Err(error) => {
                let _ = self.blocking(move |snapshots| snapshots.remove(&own_key)).await;
                Err(error)
            }
        }
    }

    async fn any_published(&self, layers: &[LayerDigest]) -> bool {
        for repository in &self.repositories {
            let layers = layers.to_vec();
            let look = move |mountpoint: &Path| resolve::any(mountpoint, &layers);
            if repository.look(look).await.is_ok_and(|found| found.is_some()) {
                return true;
            }
        }
        false
    }

    /// Asks the repositories for a layer.
    pub async fn find(&self, wanted: &Wanted, below: Below) -> Decision {
        let decision = Decision::make(&self.repositories, wanted, below, &self.config.resolve).await;
        for attempt in &decision.attempts {
            self.metrics.repository_up(attempt.repository.name(), !matches!(attempt.outcome, Outcome::Down(_)));
        }
        decision
    }

    /// Looks at the layers that will be asked for next, some at a time: on a line with a long way each takes a few round trips.
    fn warm(&self, wanted: &Wanted) {
        let fresh: Vec<LayerDigest> = {
            let mut warmed = self.warmed.lock();
            if warmed.len() > WARMED {
                warmed.clear();
            }
            wanted.following.iter().copied().filter(|layer| warmed.insert(*layer)).collect()
        };
        if fresh.is_empty() {
            return;
        }
        let repositories = self.repositories.clone();
        tokio::spawn(async move {
            let looks = fresh.into_iter().map(|layer| {
                let repositories = repositories.clone();
                async move {
                    for repository in repositories {
                        let look = move |mountpoint: &Path| resolve::any(mountpoint, &[layer]);
                        if repository.look(look).await.is_ok_and(|found| found.is_some()) {
                            break;
                        }
                    }
                }
            });
            futures_util::stream::iter(looks).buffer_unordered(AHEAD).for_each(async |()| ()).await;
        });
    }

    /// The directories that stand for a layer, the top one first; or why they can't.
    pub async fn lowers(&self, repository: &Repository, published: &Published) -> Result<Vec<Lower>, String> {
        let lower = |part| Lower { repository: repository.name().to_owned(), layer: published.layer, part };
        if published.literal && self.has_literal_whiteouts(repository, published.layer).await? {
            return Ok(vec![lower(Part::Above), lower(Part::Content), lower(Part::Below)]);
        }
        Ok(vec![lower(published.part)])
    }

    /// Does a layer of the existing tool delete anything? If so, the directories around it are made.
    async fn has_literal_whiteouts(&self, repository: &Repository, layer: LayerDigest) -> Result<bool, String> {
        let content = self.snapshots.directories().target(&Lower {
            repository: repository.name().to_owned(),
            layer,
            part: Part::Content,
        });
        let shadow = self.snapshots.directories().shadow(repository.name(), &layer);
        let work = tokio::task::spawn_blocking(move || -> std::io::Result<Option<bool>> {
            let plain = shadow.with_extension("plain");
            if plain.exists() {
                return Ok(Some(false));
            }
            if shadow.join("below").is_dir() {
                return Ok(Some(true));
            }
            let Some(markers) = legacy::scan(&content, SCAN_LIMIT)? else { return Ok(None) };
            if !markers.is_empty() {
                return legacy::build(&content, &markers, &shadow).map(|()| Some(true));
            }
            std::fs::create_dir_all(shadow.parent().unwrap_or(Path::new("/")))?;
            std::fs::write(plain, b"")?;
            Ok(Some(false))
        });
        match tokio::time::timeout(SCAN_TIME, work).await {
            Ok(Ok(Ok(Some(deletes)))) => {
                if deletes {
                    self.metrics.legacy();
                }
                Ok(deletes)
            }
            Ok(Ok(Ok(None))) => Err(format!(
                "layer {layer} may delete files in the old way and has more than {SCAN_LIMIT} entries to look through"
            )),
            Ok(Ok(Err(error))) => {
                Err(format!("layer {layer} could not be looked through for deletions of the old way: {error}"))
            }
            Ok(Err(panic)) => Err(panic.to_string()),
            Err(_) => Err(format!(
                "layer {layer} could not be looked through for deletions of the old way in {} s",
                SCAN_TIME.as_secs()
            )),
        }
    }
}
