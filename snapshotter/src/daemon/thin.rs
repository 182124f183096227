//! Thin images: the layers that one lists, found in the repositories that it names.

use std::sync::Arc;

use futures_util::future::join_all;
use image::digest::ChainId;
use image::thin::ThinRecord;

use super::{Daemon, unavailable};
use crate::decision::{Action, Decision};
use crate::error::Error;
use crate::labels::{LayerName, Wanted};
use crate::overlay;
use crate::repository::Repository;
use crate::resolve::{Below, Way};
use crate::snapshots::Found;
use crate::usage::Usage;

impl Daemon {
    /// What stands for a thin image: its layers, all of them, from configured repositories.
    pub(super) async fn thin(&self, record: &ThinRecord, below: usize, has_parent: bool) -> Result<Found, Error> {
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
                    // What the image says of its layers is used where the repository says the same.
                    let is_known = layer.diff_id.is_some() && layer.diff_id == hit.layer.diff;
                    Ok((lowers, hit.layer.size, is_known))
                }
                Action::Download(reason) => Err(Error::Unavailable(format!(
                    "layer {} of thin image {origin} can't be used: {reason}; publish the image again, or mount the repository",
                    layer.layer
                ))),
                Action::Refuse(down) => Err(unavailable(&down, layer.layer)),
            }
        });
        let whole = match chain {
            Below::Chain(stack) if !has_parent => Some(stack),
            _ => None,
        };
        let mut found = Found { lowers: Vec::new(), how: "thin", logical: Usage::default(), stack: whole };
        // The list begins at the bottom, a stack at the top.
        for layer in join_all(looks).await.into_iter().rev() {
            let (lowers, (size, inodes), is_known) = layer?;
            found.lowers.extend(lowers);
            found.stack = found.stack.filter(|_| is_known);
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
}
