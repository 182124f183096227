//! Images made again whose objects were collected meanwhile, by somebody who does not wait for us.

use super::CONVERTING;
use super::fetch::{Fetch, key, read};
use super::pass::{Pass, Slot};
use crate::error::one_line;
use crate::failure::Failure;
use crate::plan::{ImagePlan, LayerState};
use crate::publish::ReadyImage;

/// How often a pass makes images again.
const AGAIN: u32 = 3;

impl<'a> Pass<'a> {
    /// Whether objects were collected since this pass began, by somebody who does not wait, and it is worth another try.
    pub(super) fn was_collected(&mut self) -> bool {
        let target = self.converter.target;
        let undisturbed = self.preparation.as_ref().is_none_or(|p| p.is_undisturbed(target).unwrap_or(true));
        if undisturbed || self.again == AGAIN {
            return false;
        }
        self.again += 1;
        true
    }

    /// Fetches what is gone of images that were under way when objects were collected, and publishes those that are
    /// ready.
    pub(super) fn make_again(&mut self, places: &[usize]) {
        let target = self.converter.target;
        let renewed = self.preparation.as_mut().map_or(Ok(()), |p| p.renew(target, CONVERTING));
        self.variants.clear();
        for place in places {
            let Ok(image) = &self.plan.images[*place] else { continue };
            let made = match &renewed {
                Ok(()) => self.make(*place, image),
                Err(e) => Err(one_line(e)),
            };
            match made {
                Ok(Some(ready)) => self.ready.push((*place, ready)),
                Ok(None) => {
                    self.open.insert(*place);
                }
                Err(what) => self.fail(*place, &image.image, &what),
            }
        }
        self.publish_ready();
    }

    /// An image, as far as its layers have arrived; none if one has not.
    fn make(&mut self, payer: usize, image: &'a ImagePlan) -> Result<Option<ReadyImage<'a>>, String> {
        let plain = |e: Failure| one_line(&e);
        for layer in image.distinct_layers().filter(|l| l.state != LayerState::Legacy) {
            let is_there = match self.slots.get(&key(&layer.layer)) {
                Some(Slot::Ready(reference, Some(_))) => {
                    let reference = reference.clone();
                    self.converter.target.is_present(&reference).map_err(plain)?
                }
                // What is published no collection takes.
                Some(Slot::Ready(_, None) | Slot::Awaited) => true,
                _ => false,
            };
            if !is_there {
                let (place, source) = (layer.place, image.wanted.asked());
                let fetch = Fetch { layer: &layer.layer, place, source, image: &image.image };
                let arrived = read(self.converter, self.pool, &fetch);
                self.payer.entry(arrived.layer).or_insert(payer);
                self.take(arrived);
            }
        }
        match self.settle(image)? {
            true => self.complete(image).map(Some).map_err(plain),
            false => Ok(None),
        }
    }
}
