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

mod bare;
mod downloads;
mod flat;
mod layer;
mod startup;
mod thin;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use image::digest::{ChainId, LayerDigest};
use mounted::startup::Recent;
use parking_lot::Mutex;

pub use self::downloads::Downloaded;
use self::downloads::Downloads;
use crate::config::{Config, UsageReport};
use crate::error::Error;
use crate::labels::{Labels, SNAPSHOT_REF, THIN_STACK, Wanted};
use crate::metrics::Metrics;
use crate::overlay::{self, Mount};
use crate::repository::{Down, Repository};
use crate::snapshots::{Kind, Lower, RootAttributes, Snapshot, Snapshots, used};
use crate::usage::Usage;

/// How long a layer that was seen counts as there.
const SEEN: Duration = Duration::from_secs(30);
/// How long all layers of a container may take to show that they are there.
const GATHER: Duration = Duration::from_secs(10);

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
    announced: Arc<Recent>,
    /// images whose flat can't stand for them
    flats: Recent,
    downloads: Downloads,
    bare: bare::Bare,
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
            announced: Arc::default(),
            flats: Recent::default(),
            downloads: Downloads::default(),
            bare: bare::Bare::default(),
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
            Some(wanted) => {
                let asked = layer::Asked { key, parent, labels: &labels, wanted: &wanted, start: Instant::now() };
                self.prepare_layer(&asked).await
            }
            None => {
                let lineage = self.prefer_flat(self.lineage(parent).await?).await?;
                if kind == Kind::Active {
                    self.announce(&lineage);
                }
                self.create_on(&lineage, kind, key, parent, labels).await
            }
        }
    }

    /// Makes a snapshot with files of its own, once all that it stands on is there.
    async fn create(&self, kind: Kind, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>, Error> {
        let lineage = self.lineage(parent).await?;
        self.create_on(&lineage, kind, key, parent, labels).await
    }

    async fn lineage(&self, parent: Option<&str>) -> Result<Vec<Snapshot>, Error> {
        let parent = parent.map(str::to_owned);
        self.blocking(move |snapshots| snapshots.lineage(parent.as_deref())).await
    }

    async fn create_on(
        &self,
        lineage: &[Snapshot],
        kind: Kind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        let root = self.gather(lineage).await?;
        let (key, parent) = (key.to_owned(), parent.map(str::to_owned));
        self.blocking(move |snapshots| {
            let (snapshot, ancestors) = snapshots.create(kind, &key, parent.as_deref(), &labels, root)?;
            snapshots.mounts(&snapshot, &ancestors, &HashMap::new())
        })
        .await
    }

    /// `Mounts`.
    pub async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        let key = key.to_owned();
        let (snapshot, ancestors) = self.blocking(move |snapshots| snapshots.with_ancestors(&key)).await?;
        snapshot.require_mountable()?;
        self.gather(&ancestors).await?;
        self.snapshots.mounts(&snapshot, &ancestors, &self.better_paths(&snapshot, &ancestors).await)
    }

    /// Makes sure that all layers of repositories that a snapshot stands on are there, and says what its `/` is.
    async fn gather(&self, ancestors: &[Snapshot]) -> Result<Option<RootAttributes>, Error> {
        // A layer that was seen a moment ago may be in the kernel's cache while its client is dead; this question is not answered from there.
        let names: HashSet<&str> = used(ancestors).map(|lower| lower.repository.as_str()).collect();
        let answers = join_all(names.into_iter().map(|name| self.ask_client(name))).await;
        if let Some(down) = answers.into_iter().flatten().next() {
            return Err(Error::Unavailable(format!("{down}. Mount the repository and start the container again")));
        }
        let wanted: HashSet<Lower> = {
            let mut seen = self.seen.lock();
            seen.retain(|_, when| when.elapsed() < SEEN);
            let lowers = used(ancestors).filter(|lower| lower.part.is_published());
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
        let Some(nearest) = self.snapshots.directories().stack(ancestors).into_iter().next() else {
            return Ok(None);
        };
        let path = nearest.target.unwrap_or(nearest.path);
        let lower = ancestors[0].whole().first().or(ancestors[0].lowers.first());
        self.root_attributes(lower, path).await
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
                    .then(|| crate::thin::read(&directories.own(snapshot.id).content))
                    .flatten();
                Ok((record, overlay::count(ancestors.iter())))
            })
            .await?;
        let found = match record {
            None => None,
            // A parent may be named only now.
            Some(Ok(record)) => Some(self.thin(&record, below, below > 0 || parent.is_some()).await?),
            // A container of it would have one file, and no word of why.
            Some(Err(error)) if error.is_of_a_record() => {
                return Err(Error::FailedPrecondition(format!("this is no thin image that can be used: {error}")));
            }
            Some(Err(error)) => {
                tracing::warn!(key, %error, "a layer looks like one of a thin image and is none; it is an ordinary layer");
                None
            }
        };
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.map(str::to_owned));
        let committed = {
            let key = key.clone();
            self.blocking(move |snapshots| snapshots.commit(&name, &key, parent.as_deref(), &labels, found)).await?
        };
        self.downloaded(&key, &committed);
        Ok(())
    }

    /// `Remove`.
    pub async fn remove(&self, key: &str) -> Result<(), Error> {
        self.downloads.forget(key);
        let key = key.to_owned();
        self.blocking(move |snapshots| snapshots.remove(&key)).await
    }

    /// What was downloaded since the start, the last images first.
    pub fn downloads(&self) -> Vec<Downloaded> {
        self.downloads.last()
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

/// The chain ID of the image that a committed snapshot shows with all below. One that stands for a thin image has that of the
/// image that is meant, if it is known.
pub fn stack_of(snapshot: &Snapshot) -> Option<ChainId> {
    let meant = snapshot.info.labels.get(THIN_STACK).and_then(|text| ChainId::parse(text).ok());
    meant.or_else(|| chain_of(snapshot))
}

/// The chain ID of a committed snapshot and all below: from its label, or from the name that an unpacker gave it.
pub fn chain_of(snapshot: &Snapshot) -> Option<ChainId> {
    let label = snapshot.info.labels.get(SNAPSHOT_REF).and_then(|text| ChainId::parse(text).ok());
    label.or_else(|| ChainId::parse(snapshot.info.name.rsplit('/').next()?).ok())
}
