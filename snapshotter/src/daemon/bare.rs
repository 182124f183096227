//! Containers on a mount without extended attributes, where what they stand on has none.
//!
//! Which directories have none is asked once: what is published does not change. Whether the mount is there is asked each
//! time: clients come and go. Where anything is in doubt, containers get the usual paths.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use mounted::{bare, startup};
use parking_lot::Mutex;

use super::Daemon;
use crate::repository::Repository;
use crate::snapshots::{Lower, Snapshot, used};

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
    /// Better paths for directories that snapshots stand on.
    pub(super) async fn better_paths(&self, ancestors: &[Snapshot]) -> HashMap<PathBuf, PathBuf> {
        let mut paths = HashMap::new();
        let published = used(ancestors).filter(|lower| self.config.bare_mounts && lower.part.is_published());
        for lower in published.take(MAX_LOWERS) {
            let repository = self.repository(&lower.repository);
            let target = self.snapshots.directories().target(lower);
            if let Some(better) = self.better_path(&repository, lower, target.clone()).await {
                paths.insert(target, better);
            }
        }
        paths
    }

    async fn better_path(&self, repository: &Arc<Repository>, lower: &Lower, target: PathBuf) -> Option<PathBuf> {
        let known = self.bare.plain.lock().get(lower).copied();
        let is_plain = match known {
            Some(known) => known,
            None => {
                let directory = target.clone();
                let found = repository.look(move |_| bare::has_none(&directory).map(Some)).await.ok()??;
                let mut plain = self.bare.plain.lock();
                if plain.len() >= MOST {
                    plain.clear();
                }
                plain.insert(lower.clone(), found);
                found
            }
        };
        if !is_plain {
            return None;
        }
        let below = target.strip_prefix(repository.mountpoint()).ok()?.to_owned();
        let kept = self.bare.places.lock().get(repository.name()).cloned();
        if let Some(place) = kept
            && let Some(better) = verified(repository, place.join(&below), target.clone()).await
        {
            return Some(better);
        }
        let place = self.ask_for_bare(repository).await?;
        verified(repository, place.join(&below), target).await
    }

    async fn ask_for_bare(&self, repository: &Repository) -> Option<PathBuf> {
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
