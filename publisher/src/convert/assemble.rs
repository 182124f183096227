//! From the layers of an image that have arrived to an image that can be published: layers settled bottom up, the flat made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use cvmfs::traversal::Loader;
use image::digest::{ChainId, DiffId};
use image::layout::FormatRecord;
use image::manifest::Layer;

use super::fetch::{Fetch, LayerKey, Staged, key, read};
use super::pass::{Pass, Slot};
use crate::error::one_line;
use crate::failure::Failure;
use crate::flat::flatten;
use crate::layer::{Base, LayerPlace, Lower, format_record};
use crate::plan::{ImagePlan, LayerPlan, LayerState};
use crate::progress::Event;
use crate::publish::ReadyImage;

/// What the distinct layers of an image stand on, by chain ID; none for the lowest.
fn bases(image: &ImagePlan) -> Vec<Option<ChainId>> {
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|l| l.layer.diff_id).collect();
    let below = std::iter::once(None).chain(ChainId::stack(&diff_ids).into_iter().map(Some));
    let mut seen = HashSet::new();
    let first = image.layers.iter().zip(below).filter(|(l, _)| seen.insert(l.layer.descriptor.digest));
    first.map(|(_, chain)| chain).collect()
}

impl<'a> Pass<'a> {
    /// Prepares the layers of an image from the bottom up, as far as they have arrived; whether all are ready.
    pub(super) fn settle(&mut self, image: &'a ImagePlan) -> Result<bool, String> {
        let target = self.converter.target;
        let loader = Loader::new(&*target.store, target.scratch());
        if let Some(Slot::Failed(what)) = image
            .distinct_layers()
            .filter_map(|l| self.slots.get(&key(&l.layer)))
            .find(|s| matches!(s, Slot::Failed(_)))
        {
            return Err(what.clone());
        }
        let mut base = Base::default();
        let layers = image.distinct_layers().zip(bases(image));
        // Where anything has to be made, no layer is left as the existing tool wrote it.
        for (layer, chain) in layers.filter(|(l, _)| l.state != LayerState::Legacy) {
            base.chain = chain;
            let key = key(&layer.layer);
            let slot = match self.slots.remove(&key).unwrap_or(Slot::Awaited) {
                Slot::Staged(staged, _room) => match staged.prepare(target, self.pool, &base) {
                    Ok(prepared) => Slot::Ready(prepared.reference(), Some(prepared)),
                    Err(e) => Slot::Failed(one_line(&e)),
                },
                other => other,
            };
            let result = match &slot {
                Slot::Ready(reference, _) => Ok(Some(reference.clone())),
                Slot::Failed(what) => Err(what.clone()),
                _ => Ok(None),
            };
            self.slots.insert(key, slot);
            let Some(reference) = result? else { return Ok(false) };
            let reference = self.on_base(image, &layer.layer, reference, &base).map_err(|e| one_line(&e))?;
            base.layers.push(Lower::new(loader, reference));
        }
        Ok(true)
    }

    /// The stored layer, or, where it is another tree on this base, a variant of it: fetched again, for the flat of
    /// this image only. Layers of container builders are never like that; those of other tools are, now and then.
    fn on_base(
        &mut self,
        image: &'a ImagePlan,
        layer: &'a Layer,
        stored: NestedRef,
        base: &Base<'_>,
    ) -> Result<NestedRef, Failure> {
        let place = (key(layer), base.chain);
        if let Some(variant) = self.variants.get(&place) {
            return Ok(variant.clone());
        }
        let fits = match self.record(&stored)? {
            Some(record) => base.carries(&record)?,
            None => true,
        };
        if fits {
            return Ok(stored);
        }
        let fetch = Fetch { layer, place: LayerPlace::Own, source: image.wanted.asked(), image: &image.image };
        let arrived = read(self.converter, self.pool, &fetch);
        let variant = match arrived.result? {
            Staged::Waits(staged) => staged.prepare_variant(self.converter.target, self.pool, base)?.reference(),
            Staged::Done(prepared) => prepared.reference(),
        };
        self.variants.insert(place, variant.clone());
        Ok(variant)
    }

    /// How a stored layer was written.
    fn record(&mut self, stored: &NestedRef) -> Result<Option<Arc<FormatRecord>>, Failure> {
        if let Some(known) = self.recorded.get(&stored.hash) {
            return Ok(known.clone());
        }
        let target = self.converter.target;
        let record = format_record(Loader::new(&*target.store, target.scratch()), stored)?.map(Arc::new);
        self.recorded.insert(stored.hash, record.clone());
        Ok(record)
    }

    /// All layers are ready: makes the flat.
    pub(super) fn complete(&mut self, image: &'a ImagePlan) -> Result<ReadyImage<'a>, Failure> {
        for layer in image.distinct_layers().filter(|l| l.known.is_some()) {
            self.check_known(layer)?;
        }
        let ready = |layer: &Layer| match self.slots.get(&key(layer)) {
            Some(Slot::Ready(reference, prepared)) => (reference.clone(), prepared.clone()),
            _ => unreachable!("settled before"),
        };
        let variants: HashMap<LayerKey, NestedRef> = image
            .distinct_layers()
            .zip(bases(image))
            .filter_map(|(l, chain)| Some((key(&l.layer), self.variants.get(&(key(&l.layer), chain))?.clone())))
            .collect();
        let on_base = |layer: &Layer| variants.get(&key(layer)).cloned().unwrap_or_else(|| ready(layer).0);
        let flat = if image.needs_flat {
            self.tell(Event::ImageStage { image: &image.image, stage: "flattening" });
            let stack: Vec<_> = image.layers.iter().map(|l| on_base(&l.layer)).collect();
            let permissions = self.converter.options.permissions;
            let target = self.converter.target;
            let flat = flatten(target, self.pool, image.manifest.config, &image.config, &stack, permissions)?;
            if let Some(first) = &flat.first_unreadable {
                let text = format!(
                    "{}: {} files or directories of the flat image are not readable by everybody, the first is /{first}",
                    image.image, flat.unreadable
                );
                self.tell(Event::Message { text: &text });
            }
            Some(flat)
        } else {
            None
        };
        let made = image.distinct_layers().filter(|l| l.state != LayerState::Legacy);
        let layers = made.filter_map(|l| ready(&l.layer).1).collect();
        let variants = variants.into_keys().map(|(digest, _)| digest).collect();
        Ok(ReadyImage { plan: image, layers, flat, variants })
    }

    /// A layer that was not fetched now is still compared with what this image's config says of it.
    fn check_known(&mut self, layer: &LayerPlan) -> Result<(), Failure> {
        let (digest, expected) = key(&layer.layer);
        let Some(known) = &layer.known else { return Ok(()) };
        let now = self.slots.get(&key(&layer.layer));
        // What was fetched after all was compared then.
        if matches!(now, Some(Slot::Ready(reference, _)) if reference.hash != known.hash) {
            return Ok(());
        }
        match self.record(known)? {
            Some(record) if record.diff_id != expected => {
                Err(Failure::DiffId { expected, found: record.diff_id }.of_layer(digest))
            }
            _ => Ok(()),
        }
    }
}
