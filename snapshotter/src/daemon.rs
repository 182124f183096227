//! What the daemon does with a request: looks for the layer, decides, and lets [`Snapshots`] do it.
//!
//! ```text
//! Prepare ── names a layer? ── no ──▶ are the parents' layers there? ──▶ active snapshot, mounts
//!                │ yes
//!                ├─ made before on this parent ──────────────▶ already exists
//!                ├─ a repository has it ─▶ committed snapshot ▶ already exists
//!                ├─ a repository is down, and says `fail` ───▶ unavailable
//!                ├─ absent, but layers above are there ─▶ filled in ─▶ already exists
//!                └─ absent ──▶ active snapshot, mounts: containerd downloads it
//! ```
//! *Already exists* makes containerd look for the snapshot and skip the download. The daemon mounts nothing and holds nothing that
//! a container needs: whoever stops it, or kills it, stops the making of snapshots and nothing else.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use image::digest::{ChainId, LayerDigest};
use image::thin::ThinRecord;
use parking_lot::Mutex;

use crate::config::{Config, FillMissing, UsageReport};
use crate::decision::{Action, Decision, Outcome};
use crate::error::Error;
use crate::fill;
use crate::labels::{Labels, LayerName, SNAPSHOT_REF, Wanted};
use crate::legacy;
use crate::metrics::Metrics;
use crate::overlay::{self, Mount};
use crate::repository::{Down, Repository};
use crate::resolve::{self, Below, Published, Way};
use crate::snapshots::{Found, Kind, Lower, Part, RootAttributes, Snapshot, Snapshots};
use crate::thin;
use crate::usage::Usage;

/// How long a layer that was seen counts as there.
const SEEN: Duration = Duration::from_secs(30);
/// How long all layers of a container may take to show that they are there.
const GATHER: Duration = Duration::from_secs(10);
/// Entries of a layer that are looked through for literal whiteouts, and how long that may take.
const SCAN_LIMIT: usize = 500_000;
const SCAN_TIME: Duration = Duration::from_secs(60);
/// Layers that are remembered as looked at ahead.
const WARMED: usize = 10_000;

/// The daemon's state; requests share it.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    snapshots: Arc<Snapshots>,
    repositories: Vec<Arc<Repository>>,
    /// repositories of snapshots that the configuration does not name any more
    former: Mutex<HashMap<String, Arc<Repository>>>,
    metrics: Arc<Metrics>,
    seen: Mutex<HashMap<Lower, Instant>>,
    warmed: Mutex<HashSet<LayerDigest>>,
    /// layers that are being filled in, by the names of their snapshots
    filling: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    started: Instant,
}

impl Daemon {
    /// A daemon over opened snapshots.
    pub fn new(config: Config, snapshots: Arc<Snapshots>, metrics: Arc<Metrics>) -> Self {
        Self {
            repositories: config.repositories(),
            config,
            snapshots,
            former: Mutex::default(),
            metrics,
            seen: Mutex::default(),
            warmed: Mutex::default(),
            filling: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The snapshots.
    pub fn snapshots(&self) -> &Arc<Snapshots> {
        &self.snapshots
    }

    /// The configured repositories, in order.
    pub fn repositories(&self) -> &[Arc<Repository>] {
        &self.repositories
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How long it has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs what touches disk or database outside of the threads that answer requests.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshots) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let snapshots = Arc::clone(&self.snapshots);
        let done = tokio::task::spawn_blocking(move || work(&snapshots)).await;
        done.unwrap_or_else(|panic| Err(Error::Unavailable(format!("a request failed inside the daemon: {panic}"))))
    }

    /// `Prepare` and `View`.
    pub async fn prepare(
        &self,
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        match Wanted::of(&labels).filter(|_| kind == Kind::Active) {
            Some(wanted) => self.prepare_layer(key, parent, labels, wanted).await,
            None => self.create(kind, key, parent, labels).await,
        }
    }

    /// Makes a snapshot with files of its own, once all that it stands on is there.
    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let owned = parent.map(str::to_owned);
        let lineage = self.blocking(move |snapshots| snapshots.lineage(owned.as_deref())).await?;
        let root = self.gather(&lineage).await?;
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |snapshots| {
            let (snapshot, ancestors) = snapshots.create(kind, &key, parent.as_deref(), &labels, root)?;
            snapshots.mounts(&snapshot, &ancestors)
        })
        .await
    }

    /// `Mounts`.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let key = key.to_owned();
        let (snapshot, ancestors) = self.blocking(move |snapshots| snapshots.with_ancestors(&key)).await?;
        let mounts = self.snapshots.mounts(&snapshot, &ancestors)?;
        self.gather(&ancestors).await?;
        Ok(mounts)
    }

    /// A layer of an image.
    async fn prepare_layer(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        wanted: Wanted,
    ) -> Result<Vec<Mount>, Error> {
        let start = Instant::now();
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
            tracing::info!(
                key,
                parent,
                "ref" = wanted.target,
                "remote-snapshot-prepared" = true,
                reason = "made before",
                ms = ms(start),
                "prepare"
            );
            return Err(Error::AlreadyExists(wanted.target));
        }
        let below =
            lineage.first().map_or(Below::Nothing, |parent| chain_of(parent).map_or(Below::Unknown, Below::Chain));
        let decision = self.find(&wanted, below).await;
        self.warm(&wanted);
        match decision.action() {
            Action::Serve { repository, hit } => {
                let lowers = self.lowers(&repository, &hit.layer).await;
                match lowers {
                    Ok(lowers) if overlay::count(lineage.iter()) + lowers.len() <= overlay::MAX_LOWERS => {
                        return self.serve(key, parent, &labels, &wanted, (&repository, &hit, lowers), start).await;
                    }
                    Ok(_) => self.miss(key, parent, labels, &wanted, &decision, "too many layers", start).await,
                    Err(reason) => self.miss(key, parent, labels, &wanted, &decision, &reason, start).await,
                }
            }
            Action::Refuse(down) => {
                self.metrics.prepared("refused", "", &down.repository, start);
                tracing::warn!(key, parent, "ref" = wanted.target, "remote-snapshot-prepared" = false, reason = %down, ms = ms(start), "prepare");
                Err(Error::Unavailable(format!(
                    "{down}; layer {} may be in it, and on_error is \"fail\"",
                    wanted.target
                )))
            }
            Action::Download(reason) => self.miss(key, parent, labels, &wanted, &decision, &reason, start).await,
        }
    }

    /// Has a repository said that it has not any more what stands for this snapshot? Whether it can be asked does not matter here.
    async fn is_gone(&self, snapshot: &Snapshot) -> bool {
        for lower in snapshot.lowers.iter().filter(|lower| lower.part.is_published()) {
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
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        wanted: &Wanted,
        (repository, hit, lowers): (&Repository, &resolve::Hit, Vec<Lower>),
        start: Instant,
    ) -> Result<Vec<Mount>, Error> {
        let size = Usage { size: hit.layer.size.0, inodes: hit.layer.size.1 };
        let how = hit.way.as_str();
        let found = Found { lowers, how, logical: size };
        let (owned, target, labels) = (parent.map(str::to_owned), wanted.target.clone(), labels.clone());
        self.blocking(move |snapshots| snapshots.insert_remote(owned.as_deref(), &target, &labels, &found)).await?;
        self.metrics.prepared("remote", how, repository.name(), start);
        self.metrics.avoided(size.size);
        tracing::info!(
            key,
            parent,
            "ref" = wanted.target,
            repository = repository.name(),
            layer = %hit.layer.layer,
            method = how,
            "remote-snapshot-prepared" = true,
            ms = ms(start),
            "prepare"
        );
        Err(Error::AlreadyExists(wanted.target.clone()))
    }

    /// The layer has to come from elsewhere.
    async fn miss(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        wanted: &Wanted,
        decision: &Decision,
        reason: &str,
        start: Instant,
    ) -> Result<Vec<Mount>, Error> {
        if self.config.fill_missing != FillMissing::Off && decision.is_absent() {
            match self.fill(key, parent, &labels, wanted).await {
                Ok(true) => {
                    self.metrics.prepared("filled", "content", "", start);
                    tracing::info!(
                        key,
                        parent,
                        "ref" = wanted.target,
                        "remote-snapshot-prepared" = true,
                        reason = "filled in",
                        ms = ms(start),
                        "prepare"
                    );
                    return Err(Error::AlreadyExists(wanted.target.clone()));
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(
                    key,
                    "ref" = wanted.target,
                    error = format!("{error:#}"),
                    "an absent layer could not be filled in; containerd downloads it"
                ),
            }
        }
        let mounts = self.create(Kind::Active, key, parent, labels).await?;
        self.metrics.prepared("miss", "", "", start);
        self.metrics.fallback(decision.class());
        tracing::info!(
            key,
            parent,
            "ref" = wanted.target,
            "remote-snapshot-prepared" = false,
            reason,
            ms = ms(start),
            "prepare"
        );
        Ok(mounts)
    }

    /// Unpacks an absent layer here, so that containerd does not download everything above it; false if that would bring nothing.
    async fn fill(&self, key: &str, parent: Option<&str>, labels: &Labels, wanted: &Wanted) -> anyhow::Result<bool> {
        let Some(source) = fill::Source::of(&self.config, key, wanted) else { return Ok(false) };
        if !self.any_published(&wanted.following).await {
            return Ok(false);
        }
        let name = crate::snapshots::conjured_name(parent, &wanted.target);
        let turn = Arc::clone(self.filling.lock().entry(name.clone()).or_default());
        let filled = {
            let _turn = turn.lock().await;
            self.fill_in_turn(parent, labels, wanted, &source).await
        };
        // Whoever waits has a share of its own.
        self.filling.lock().retain(|other, turn| *other != name || Arc::strong_count(turn) > 2);
        filled
    }

    async fn fill_in_turn(
        &self,
        parent: Option<&str>,
        labels: &Labels,
        wanted: &Wanted,
        source: &fill::Source,
    ) -> anyhow::Result<bool> {
        let (owned, target) = (parent.map(str::to_owned), wanted.target.clone());
        if self.blocking(move |snapshots| snapshots.conjured(owned.as_deref(), &target)).await?.is_some() {
            return Ok(true);
        }
        let Some(blob) = source.obtain().await? else { return Ok(false) };
        let own_key = format!("cvmfs-fill/{}", crate::snapshots::conjured_name(parent, &wanted.target));
        let removed = own_key.clone();
        // Of a process that was killed while it was filling.
        let _ = self.blocking(move |snapshots| snapshots.remove(&removed)).await;
        let mounts = self.create(Kind::Active, &own_key, parent, Labels::new()).await?;
        let below = match parent {
            None => Below::Nothing,
            Some(parent) => {
                let parent = parent.to_owned();
                let parent = self.blocking(move |snapshots| snapshots.stat(&parent)).await?;
                chain_of(&parent).map_or(Below::Unknown, Below::Chain)
            }
        };
        let applied = source.apply(&blob, &mounts, below, wanted).await;
        let (parent, target, labels) = (parent.map(str::to_owned), wanted.target.clone(), labels.clone());
        match applied {
            Ok(()) => {
                self.blocking(move |snapshots| {
                    snapshots.commit_conjured(&own_key, parent.as_deref(), &target, &labels)
                })
                .await?;
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

    /// Looks at the layers that will be asked for next, all at once: on a line with a long way each takes a few round trips.
    fn warm(&self, wanted: &Wanted) {
        let fresh: Vec<LayerDigest> = {
            let mut warmed = self.warmed.lock();
            if warmed.len() > WARMED {
                warmed.clear();
            }
            wanted.following.iter().copied().filter(|layer| warmed.insert(*layer)).collect()
        };
        for layer in fresh {
            let repositories = self.repositories.clone();
            tokio::spawn(async move {
                for repository in repositories {
                    let look = move |mountpoint: &Path| resolve::any(mountpoint, &[layer]);
                    if repository.look(look).await.is_ok_and(|found| found.is_some()) {
                        break;
                    }
                }
            });
        }
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

    /// Makes sure that all layers of repositories that a snapshot stands on are there, and says what its `/` is.
    async fn gather(&self, ancestors: &[Snapshot]) -> Result<Option<RootAttributes>, Error> {
        // A layer that was seen a moment ago may be in the kernel's cache while its client is dead; this question is not answered from there.
        let names: HashSet<&str> =
            ancestors.iter().flat_map(|ancestor| &ancestor.lowers).map(|lower| lower.repository.as_str()).collect();
        for down in join_all(names.into_iter().map(|name| self.ask_client(name))).await.into_iter().flatten() {
            return Err(Error::Unavailable(format!("{down}. Mount the repository and start the container again")));
        }
        let wanted: HashSet<Lower> = {
            let mut seen = self.seen.lock();
            seen.retain(|_, when| when.elapsed() < SEEN);
            let lowers =
                ancestors.iter().flat_map(|ancestor| &ancestor.lowers).filter(|lower| lower.part.is_published());
            lowers.filter(|lower| !seen.contains_key(lower)).cloned().collect()
        };
        let checks = wanted.into_iter().map(|lower| async move {
            let repository = self.repository(&lower.repository);
            let path = self.snapshots.directories().target(&lower);
            match repository.look(move |_| path.symlink_metadata().map(Some)).await {
                Ok(Some(_)) => {
                    self.seen.lock().insert(lower, Instant::now());
                    Ok(())
                }
                Ok(None) => Err(Error::Unavailable(format!(
                    "layer {} is gone from repository {}; remove the image and pull it again, so that it comes from where it is now",
                    lower.layer, lower.repository
                ))),
                Err(down) => Err(unavailable(&down, lower.layer)),
            }
        });
        let all = tokio::time::timeout(GATHER, join_all(checks)).await;
        all.map_err(|_| {
            Error::Unavailable(format!(
                "layers did not show within {} s; are the repositories mounted?",
                GATHER.as_secs()
            ))
        })?
        .into_iter()
        .collect::<Result<(), Error>>()?;
        let Some(nearest) =
            ancestors.first().and_then(|nearest| self.snapshots.directories().layers(nearest).into_iter().next())
        else {
            return Ok(None);
        };
        let path = nearest.target.unwrap_or(nearest.path);
        self.root_attributes(ancestors[0].lowers.first(), path).await
    }

    /// Does the client of a repository answer?
    async fn ask_client(&self, repository: &str) -> Option<Down> {
        let look = |mountpoint: &Path| nix::sys::statvfs::statvfs(mountpoint).map(Some).map_err(std::io::Error::from);
        self.repository(repository).look(look).await.err()
    }

    async fn root_attributes(&self, lower: Option<&Lower>, path: PathBuf) -> Result<Option<RootAttributes>, Error> {
        let attributes = |path: &Path| {
            let metadata = path.metadata()?;
            Ok(RootAttributes { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o7777 })
        };
        match lower {
            Some(lower) => {
                let layer = lower.layer;
                let repository = self.repository(&lower.repository);
                let found = repository.look(move |_| attributes(&path).map(Some)).await;
                found.map_err(|down| unavailable(&down, layer))
            }
            None => {
                let found =
                    tokio::task::spawn_blocking(move || attributes(&path).map_err(Error::io("look at", path))).await;
                found.map_err(|panic| Error::Unavailable(panic.to_string()))?.map(Some)
            }
        }
    }

    fn repository(&self, name: &str) -> Arc<Repository> {
        if let Some(repository) = self.repositories.iter().find(|repository| repository.name() == name) {
            return Arc::clone(repository);
        }
        let mut former = self.former.lock();
        let usual = || {
            Arc::new(Repository::new(
                name,
                &Path::new("/cvmfs").join(name),
                crate::repository::OnError::Fail,
                Duration::from_secs(5),
            ))
        };
        Arc::clone(former.entry(name.to_owned()).or_insert_with(usual))
    }

    /// `Commit`. A layer of a thin image becomes a snapshot that stands for the layers that it lists.
    pub async fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<(), Error> {
        let owned = key.to_owned();
        let directories = Arc::clone(self.snapshots.directories());
        let (record, below) = self
            .blocking(move |snapshots| {
                let (snapshot, ancestors) = snapshots.with_ancestors(&owned)?;
                let record = (snapshot.info.kind == Kind::Active)
                    .then(|| thin::read(&directories.own(snapshot.id).content))
                    .flatten();
                Ok((record, overlay::count(ancestors.iter())))
            })
            .await?;
        let found = match record {
            None => None,
            Some(Ok(record)) => Some(self.thin(&record, below).await?),
            Some(Err(error)) => {
                tracing::warn!(key, %error, "a layer looks like one of a thin image and is none; it is an ordinary layer");
                None
            }
        };
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |snapshots| snapshots.commit(&name, &key, parent.as_deref(), &labels, found).map(drop)).await
    }

    /// What stands for a thin image: its layers, all of them, from configured repositories.
    async fn thin(&self, record: &ThinRecord, below: usize) -> Result<Found, Error> {
        let origin = record.origin.as_deref().unwrap_or("without a name");
        let mut chain = Below::Nothing;
        let looks = record.layers.iter().map(|layer| {
            let query = (layer, chain);
            chain = match (chain, layer.diff_id) {
                (Below::Nothing, Some(diff)) => Below::Chain(ChainId::on(None, diff)),
                (Below::Chain(chain), Some(diff)) => Below::Chain(ChainId::on(Some(chain), diff)),
                _ => Below::Unknown,
            };
            query
        });
        let looks = looks.collect::<Vec<_>>().into_iter().map(|(layer, below)| async move {
            let named = |repository: &&Arc<Repository>| repository.name() == layer.repository;
            let repository = self.repositories.iter().find(named).ok_or_else(|| {
                Error::FailedPrecondition(format!(
                    "thin image {origin} wants layers of repository {0}, which is not configured; add [[repositories]] name = \"{0}\"",
                    layer.repository
                ))
            })?;
            let wanted = Wanted::named(LayerName::Layer(layer.layer));
            let decision = Decision::make(std::slice::from_ref(repository), &wanted, below, &[Way::Digest]).await;
            match decision.action() {
                Action::Serve { hit, .. } => {
                    let lowers = self.lowers(repository, &hit.layer).await.map_err(Error::Unavailable)?;
                    Ok((lowers, hit.layer.size))
                }
                Action::Download(reason) => Err(Error::Unavailable(format!(
                    "layer {} of thin image {origin} can't be used: {reason}; publish the image again, or mount the repository",
                    layer.layer
                ))),
                Action::Refuse(down) => Err(unavailable(&down, layer.layer)),
            }
        });
        let mut found = Found { lowers: Vec::new(), how: "thin", logical: Usage::default() };
        // The list begins at the bottom, a stack at the top.
        for layer in join_all(looks).await.into_iter().rev() {
            let (lowers, (size, inodes)) = layer?;
            found.lowers.extend(lowers);
            found.logical.size = found.logical.size.saturating_add(size);
            found.logical.inodes = found.logical.inodes.saturating_add(inodes);
        }
        let all = below + found.lowers.len();
        if found.lowers.is_empty() || all > overlay::MAX_LOWERS {
            return Err(Error::FailedPrecondition(format!(
                "thin image {origin} would need {all} directories; overlayfs takes between 1 and {}",
                overlay::MAX_LOWERS
            )));
        }
        self.metrics.avoided(found.logical.size);
        tracing::info!(origin, layers = record.layers.len(), "a thin image stands for published layers");
        Ok(found)
    }

    /// `Usage`.
    pub async fn usage(&self, key: &str) -> Result<Usage, Error> {
        let (key, logical) = (key.to_owned(), self.config.usage == UsageReport::Logical);
        self.blocking(move |snapshots| snapshots.usage(&key, logical)).await
    }
}

fn unavailable(down: &Down, layer: LayerDigest) -> Error {
    Error::Unavailable(format!(
        "layer {layer} can't be reached: {down}. Mount the repository and start the container again"
    ))
}

/// The chain ID of a committed snapshot and all below: from its label, or from the name that an unpacker gave it.
pub fn chain_of(snapshot: &Snapshot) -> Option<ChainId> {
    let label = snapshot.info.labels.get(SNAPSHOT_REF).and_then(|text| ChainId::parse(text).ok());
    label.or_else(|| ChainId::parse(snapshot.info.name.rsplit('/').next()?).ok())
}

fn ms(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
