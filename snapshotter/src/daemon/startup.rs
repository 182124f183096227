//! Tells the client of a repository when an image starts whose start-up list is published.
//!
//! A container does not wait for this and does not fail by it. Of many containers of one image that start together the
//! client is told once.

use std::sync::Arc;

use image::digest::ChainId;
use mounted::startup::{Announcement, MAX_BASES, announce, find};

use super::{Daemon, stack_of};
use crate::metrics::Metrics;
use crate::repository::Repository;
use crate::snapshots::{Snapshot, used};

impl Daemon {
    /// A container is going to start on these snapshots, the nearest first.
    pub(super) fn announce(&self, ancestors: &[Snapshot]) {
        let Some(stack) = ancestors.first().and_then(stack_of) else { return };
        let published = used(ancestors).filter(|lower| lower.part.is_published());
        let Some(first) = published.clone().next() else { return };
        let repository = self.repository(&first.repository);
        let bases: Vec<String> = published
            .filter(|lower| lower.repository == first.repository)
            .filter_map(|lower| {
                let path = self.snapshots.directories().target(lower);
                Some(format!("/{}", path.strip_prefix(repository.mountpoint()).ok()?.to_str()?))
            })
            .take(MAX_BASES)
            .collect();
        if !bases.is_empty() && self.announced.add(stack) {
            let (metrics, announced) = (Arc::clone(&self.metrics), Arc::clone(&self.announced));
            tokio::spawn(async move {
                if !tell(&repository, stack, bases, &metrics).await {
                    // The next start may find one.
                    announced.forget(stack);
                }
            });
        }
    }
}

/// Whether there is a list, or may be one.
async fn tell(repository: &Repository, stack: ChainId, bases: Vec<String>, metrics: &Metrics) -> bool {
    let place = match repository.look(move |mountpoint| find(mountpoint, stack)).await {
        Ok(Some(place)) => place,
        Ok(None) => return false,
        Err(down) => {
            metrics.announced("failed");
            tracing::info!(image = %stack, %down, "start-up list not announced");
            return true;
        }
    };
    let announcement = Announcement { list: place.list, bases };
    match announce(&place.socket, &announcement).await {
        Ok(fetching) => {
            metrics.announced("fetching");
            tracing::info!(
                image = %stack,
                repository = repository.name(),
                list = announcement.list,
                files = fetching.files,
                bytes = fetching.bytes,
                "start-up list announced"
            );
        }
        Err(error) => {
            metrics.announced("failed");
            tracing::info!(
                image = %stack,
                repository = repository.name(),
                list = announcement.list,
                error = format!("{error:#}"),
                "start-up list not announced"
            );
        }
    }
    true
}
