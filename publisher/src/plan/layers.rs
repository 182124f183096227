//! Which layers are in the repository, and where the others come from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cvmfs::path::RepoPath;
use image::digest::{DiffId, LayerDigest};
use image::layout::{FormatRecord, LayersJson, OwnedPath};
use image::manifest::Layer;

use super::planner::Planner;
use super::{LayerPlan, LayerState};
use crate::failure::Failure;
use crate::layer::{LayerPlace, PreparedLayer, repo_path};

/// Layers that were looked for, each once however many images have it.
pub(super) struct KnownLayers(HashMap<(LayerDigest, DiffId), Result<LayerPlan, Arc<Failure>>>);

impl KnownLayers {
    /// A layer as one image has it.
    pub(super) fn of(&self, layer: Layer) -> Result<LayerPlan, Failure> {
        match &self.0[&(layer.descriptor.digest, layer.diff_id)] {
            Ok(plan) => Ok(LayerPlan { layer, ..plan.clone() }),
            Err(failure) => Err(Failure::Shared(failure.clone())),
        }
    }
}

impl Planner<'_> {
    /// Looks for layers, in the order of the repository's paths.
    pub(super) fn layers<'l>(&mut self, layers: impl Iterator<Item = &'l Layer>) -> KnownLayers {
        let distinct: BTreeMap<_, _> = layers.map(|layer| ((layer.descriptor.digest, layer.diff_id), layer)).collect();
        let mut look = |(key, layer): (_, &Layer)| (key, self.layer(layer.clone()).map_err(Arc::new));
        KnownLayers(distinct.into_iter().map(&mut look).collect())
    }

    fn layer(&mut self, layer: Layer) -> Result<LayerPlan, Failure> {
        let digest = layer.descriptor.digest;
        if self.damaged.layers.contains(&digest) {
            return Ok(self.to_fetch(layer, LayerPlace::Own, true));
        }
        let mut replaces = false;
        for place in [LayerPlace::Own, LayerPlace::Beside] {
            let at = repo_path(&self.view.layout, &place.path(digest));
            if let Some(known) = self.view.nested(&at)? {
                // What was made beside without the blob serves its consumers; nothing is made from it.
                if place == LayerPlace::Beside && !self.has_owners(&at)? {
                    replaces = true;
                    continue;
                }
                let (state, known) = (LayerState::Published, Some(known));
                return Ok(LayerPlan { layer, state, known, prepared: None, place, replaces });
            }
        }
        if self.view.lookup(&OwnedPath::LayerContent(digest))?.is_none_or(|e| !e.is_directory()) {
            return Ok(self.to_fetch(layer, LayerPlace::Own, false));
        }
        let record = self.view.read(&OwnedPath::LayerRecord(digest))?.and_then(|r| LayersJson::parse(&r).ok());
        if record.is_some_and(|r| r.diff_id != layer.diff_id) {
            return Ok(self.to_fetch(layer, LayerPlace::Beside, replaces));
        }
        let (state, place) = (LayerState::Legacy, LayerPlace::Beside);
        Ok(LayerPlan { layer, state, known: None, prepared: None, place, replaces })
    }

    fn has_owners(&mut self, layer: &RepoPath) -> Result<bool, Failure> {
        let record = self.view.entry(&layer.join(".metadata").join("format.json"))?;
        let bytes = record.map(|entry| self.view.content(&entry)).transpose()?.flatten();
        Ok(bytes.and_then(|b| FormatRecord::parse(&b).ok()).is_some_and(|r| r.owners))
    }

    /// A layer that has to come from the registry, or has come in an earlier run.
    pub(super) fn to_fetch(&self, layer: Layer, place: LayerPlace, replaces: bool) -> LayerPlan {
        let prepared = PreparedLayer::recall(self.view.target, layer.descriptor.digest, place);
        let state = if prepared.is_some() { LayerState::Prepared } else { LayerState::Missing };
        let known = prepared.as_ref().map(PreparedLayer::reference);
        LayerPlan { layer, state, known, prepared, place, replaces }
    }
}
