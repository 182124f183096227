//! Tells the client of a repository that a container starts whose image has a start-up list. Nothing waits for it or fails by it.

use std::sync::Arc;

use image::digest::ChainId;
use mounted::startup::{Announcement, MAX_BASES, Recent, announce, find};

use super::home::Part;
use crate::look::Looks;
use crate::plugin::Refusal;
use crate::published::Repository;

/// Who is told, and who was told a moment ago.
#[derive(Debug, Default)]
pub struct Announcer {
    recent: Arc<Recent>,
}

impl Announcer {
    /// A container begins on these directories of a repository, which are the image of this stack of layers.
    pub fn begins(&self, looks: &Looks, repository: &Repository, stack: ChainId, parts: &[Part]) {
        // Outside of a server there is nobody who could wait for an answer.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.recent.add(stack) {
            return;
        }
        let own = parts.iter().filter(|part| part.repository == repository.name());
        let bases = own.filter_map(|part| {
            let content = part.content(repository);
            Some(format!("/{}", content.strip_prefix(repository.mountpoint()).ok()?.to_str()?))
        });
        let bases: Vec<String> = bases.take(MAX_BASES).collect();
        let (looks, repository, recent) = (looks.clone(), repository.clone(), Arc::clone(&self.recent));
        runtime.spawn(async move {
            let name = repository.name().to_owned();
            let look = |repository: &Repository, stack: &ChainId| {
                find(repository.mountpoint(), *stack).map_err(Refusal::of("its start-up list can't be looked for"))
            };
            let found = tokio::task::spawn_blocking(move || looks.all(&repository, vec![stack], look)).await;
            let place = match found {
                Ok(Ok(found)) => found.into_iter().next().flatten(),
                Ok(Err(refusal)) => {
                    tracing::info!(image = %stack, repository = name, error = %refusal, "start-up list not announced");
                    return;
                }
                Err(_) => None,
            };
            let Some(place) = place else {
                // The next start may find one.
                recent.forget(stack);
                return;
            };
            let announcement = Announcement { list: place.list, bases };
            match announce(&place.socket, &announcement).await {
                Ok(fetching) => tracing::info!(
                    image = %stack,
                    repository = name,
                    list = announcement.list,
                    files = fetching.files,
                    bytes = fetching.bytes,
                    "start-up list announced"
                ),
                Err(error) => tracing::info!(
                    image = %stack,
                    repository = name,
                    list = announcement.list,
                    error = format!("{error:#}"),
                    "start-up list not announced"
                ),
            }
        });
    }
}
