//! Quotas of owners: what all their images may have together, in compressed bytes of layers, each counted once. The quota of a
//! single image is a matter of its plan.

use std::cmp::Reverse;
use std::collections::HashMap;

use image::digest::LayerDigest;

use crate::convert::Plan;
use crate::error::one_line;
use crate::failure::Failure;
use crate::plan::ImagePlan;
use crate::report::{Outcome, WishOutcome};

/// Layers of images that a pass does not look at, by owner.
pub type Held = HashMap<String, HashMap<LayerDigest, u64>>;

impl Plan {
    /// Refuses the images that would take their owners beyond their quotas, before anything of them is fetched. What is published
    /// stays; of the others, those of a higher priority come first.
    pub fn keep_quotas(&mut self, held: &Held) {
        let mut quotas: HashMap<String, u64> = HashMap::new();
        for image in self.images.iter().flatten() {
            let options = &image.wanted.options;
            if let (Some(owner), Some(quota)) = (&options.owner, options.quota.owner) {
                quotas.entry(owner.clone()).and_modify(|known| *known = quota.min(*known)).or_insert(quota);
            }
        }
        if quotas.is_empty() {
            return;
        }
        let mut used = held.clone();
        let mut order: Vec<usize> = (0..self.images.len()).collect();
        order.sort_by_key(|place| match &self.images[*place] {
            Ok(image) => {
                (image.outcome != Outcome::Unchanged, Reverse(image.wanted.options.priority.unwrap_or_default()))
            }
            Err(_) => (true, Reverse(i32::MIN)),
        });
        for place in order {
            let Ok(image) = &self.images[place] else { continue };
            let Some((owner, quota)) = image.wanted.options.owner.as_ref().and_then(|o| Some((o, *quotas.get(o)?)))
            else {
                continue;
            };
            let used = used.entry(owner.clone()).or_default();
            let new: Vec<(LayerDigest, u64)> = layers(image).filter(|(digest, _)| !used.contains_key(digest)).collect();
            let total = sum(used.values().copied().chain(new.iter().map(|(_, size)| *size)));
            if image.outcome != Outcome::Unchanged && !new.is_empty() && total > quota {
                let failure = Failure::Quota { what: format!("{owner} would have {total} bytes"), allowed: quota };
                self.images[place] = Err(refused(image, &failure));
            } else {
                used.extend(new);
            }
        }
    }
}

fn layers(image: &ImagePlan) -> impl Iterator<Item = (LayerDigest, u64)> + '_ {
    image.manifest.layers_once().map(|layer| (layer.digest, layer.size))
}

fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

fn refused(image: &ImagePlan, failure: &Failure) -> Box<WishOutcome> {
    let outcome = WishOutcome::failed(&image.wanted.wish, image.wanted.line, one_line(failure));
    let (name, platform) = (Some(image.image.clone()), image.wanted.named_platform());
    Box::new(WishOutcome { image: name, platform, digest: Some(image.document.digest.to_string()), ..outcome })
}
