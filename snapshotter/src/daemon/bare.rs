//! Containers on a mount without extended attributes, where what they stand on has none, or the cover of a flat hides it.
//!
//! Which directories have none is asked once: what is published does not change. Whether the mount is there is asked each
//! time: clients come and go. Where anything is in doubt, containers get the usual paths.
//!
//! So does who asks for the mounts of a container that has been started: that may be a differ, and containerd's asks for
//! attributes by name and takes "there are none on this mount" for a failure. containerd does not say what mounts are
//! for; but overlayfs leaves something in its work directory when it is mounted writable for the first time, and the
//! mounts that containerd makes before the start, to look users up, are read-only.

use std::collections::HashMap;
use std::path::PathBuf;

use mounted::{bare, startup};
use parking_lot::Mutex;

use super::Daemon;
use crate::repository::Repository;
use crate::snapshots::{Kind, Lower, Part, Snapshot, used};

/// Directories of which it is kept whether they have attributes.
const MOST: usize = 10_000;

/// Directories of one container that are looked at.
const MAX_LOWERS: usize = 32;

/// What was learned.
#[derive(Debug, Default)]
pub(super) struct Bare {
    plain: Mutex<HashMap<Lower, bool>>,
    /// mounts without attributes, by repository
    places: Mutex<HashMap<String, PathBuf>>,
}

impl Daemon {
    /// Better paths for directories that the snapshot of a container stands on which was not started yet.
    pub(super) async fn better_paths(&self, snapshot: &Snapshot, ancestors: &[Snapshot]) -> HashMap<PathBuf, PathBuf> {
        let (mut paths, mut places) = (HashMap::new(), HashMap::new());
        if !self.config.bare_mounts || snapshot.info.kind != Kind::Active || self.was_writable(snapshot).await {
            return paths;
        }
        let published = used(ancestors).filter(|lower| lower.part.is_published());
        for lower in published.take(MAX_LOWERS) {
            let repository = self.repository(&lower.repository);
            let target = self.snapshots.directories().target(lower);
            if !self.is_plain(&repository, lower).await {
                continue;
            }
            let place = match places.get(&lower.repository) {
                Some(place) => Option::clone(place),
                None => {
                    let place = self.bare_place(&repository).await;
                    places.insert(lower.repository.clone(), place.clone());
                    place
                }
            };
            let below = target.strip_prefix(repository.mountpoint());
            if let (Some(place), Ok(below)) = (place, below)
                && let Some(better) = verified(&repository, place.join(below), target.clone()).await
            {
                paths.insert(target, better);
            }
        }
        paths
    }

    /// Whether an overlay was ever mounted to write into a snapshot.
    async fn was_writable(&self, snapshot: &Snapshot) -> bool {
        let work = self.snapshots.directories().own(snapshot.id).work;
        let untouched = move || work.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        !tokio::task::spawn_blocking(untouched).await.unwrap_or(false)
    }

    /// Whether nobody who stands on a directory sees attributes of it. A flat has its cover over it.
    async fn is_plain(&self, repository: &Repository, lower: &Lower) -> bool {
        let known = self.bare.plain.lock().get(lower).copied();
        if let Some(known) = known {
            return known;
        }
        let directories = self.snapshots.directories();
        let target = directories.target(lower);
        let cover = Some(lower).filter(|lower| lower.part == Part::Flat);
        let cover = cover.map(|flat| directories.target(&Lower { part: Part::Cover, ..flat.clone() }));
        let look = move |_: &_| {
            let plain = match cover {
                Some(cover) => bare::covers(&cover, &target),
                None => bare::has_none(&target),
            };
            plain.map(Some)
        };
        let Ok(Some(found)) = repository.look(look).await else { return false };
        let mut plain = self.bare.plain.lock();
        if plain.len() >= MOST {
            plain.clear();
        }
        plain.insert(lower.clone(), found);
        found
    }

    /// The mount without attributes beside a repository: the one that was there before, or what its client says.
    async fn bare_place(&self, repository: &Repository) -> Option<PathBuf> {
        let kept = self.bare.places.lock().get(repository.name()).cloned();
        if let Some(place) = kept
            && verified(repository, place.clone(), repository.mountpoint().to_owned()).await.is_some()
        {
            return Some(place);
        }
        let socket = repository.look(startup::socket).await.ok()??;
        match bare::ask(&socket).await {
            Ok(place) => {
                self.bare.places.lock().insert(repository.name().to_owned(), place.clone());
                Some(place)
            }
            Err(error) => {
                tracing::debug!(repository = repository.name(), %error, "no mount without attributes");
                None
            }
        }
    }
}

/// A path, if it leads to the same directory as the usual one.
async fn verified(repository: &Repository, better: PathBuf, usual: PathBuf) -> Option<PathBuf> {
    repository.look(move |_| Ok(bare::is_same(&better, &usual).then_some(better))).await.ok()?
}
