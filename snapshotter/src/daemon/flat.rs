//! Containers on the flat root of their image in place of its layers: two directories, whatever the number of layers.
//!
//! Each directory of a stack is asked for each name, and each layer brings catalogs of its own, so a start from many layers
//! takes several times as long as one from the flat. The flat stands for a stack when the repository says of which one, the
//! config makes that chain ID, and a cover is there that hides what the flat has beside the image (`image::layout`).

use image::digest::{ImageId, LayerDigest};

use super::{Daemon, stack_of};
use crate::config::Auto;
use crate::error::Error;
use crate::overlay;
use crate::snapshots::{Lower, Part, Snapshot};

impl Daemon {
    /// Lets the topmost snapshot of an image stand for all of it, if that can be and is wanted; the stack as it is then.
    pub(super) async fn prefer_flat(&self, stack: Vec<Snapshot>) -> Result<Vec<Snapshot>, Error> {
        let is_wanted = match self.config.prefer_flat {
            Auto::Off => false,
            Auto::On => true,
            Auto::Auto => overlay::count(stack.iter()) >= mounted::MANY_DIRECTORIES,
        };
        let Some(top) = stack.first().filter(|top| is_wanted && top.is_remote() && top.whole().is_empty()) else {
            return Ok(stack);
        };
        let Some(chain) = stack_of(top).filter(|chain| !self.flats.has(*chain)) else { return Ok(stack) };
        let repository = self.repository(&top.lowers[0].repository);
        let image = match repository.look(move |mountpoint| mounted::flat(mountpoint, chain)).await {
            Ok(Some(image)) => image,
            Ok(None) => {
                self.flats.add(chain);
                return Ok(stack);
            }
            Err(down) => {
                tracing::debug!(image = %chain, %down, "it is not known whether there is a flat");
                return Ok(stack);
            }
        };
        let (id, name) = (top.id, top.info.name.clone());
        let whole = [Part::Cover, Part::Flat].map(|part| lower(repository.name(), image, part));
        self.blocking(move |snapshots| snapshots.adopt(id, whole)).await?;
        tracing::info!(image = %chain, repository = repository.name(), config = %image, "containers get the flat root");
        self.lineage(Some(&name)).await
    }
}

fn lower(repository: &str, image: ImageId, part: Part) -> Lower {
    Lower { repository: repository.to_owned(), layer: LayerDigest::from_digest(image.digest()), part }
}
