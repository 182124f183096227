//! What a person keeps in mind of what should be published: sets, and times when something was needed.

use std::collections::{BTreeMap, BTreeSet};

use image::digest::ManifestDigest;

use super::images::{Arch, Entry, Image, Offer, Part};

/// A name on a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub name: &'static str,
    /// None: the plain path, which belongs to the default platform.
    pub place: Option<Arch>,
}

impl Owner {
    pub fn plain(name: &'static str) -> Owner {
        Owner { name, place: None }
    }

    pub fn below(name: &'static str, arch: Arch) -> Owner {
        Owner { name, place: Some(arch) }
    }
}

/// An image that a name led to.
#[derive(Debug, Clone)]
pub struct Left {
    /// When that ended.
    pub since: i64,
    pub image: Image,
    /// Whether it had a link below `.multiarch` as well as the plain path.
    pub second: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Model {
    pub registry: BTreeMap<&'static str, Offer>,
    pub list: BTreeMap<&'static str, Entry>,
    pub published: BTreeMap<Owner, Image>,
    /// Names whose default platform has a link below `.multiarch` as well.
    pub second: BTreeSet<&'static str>,
    /// Names whose plain path leads each client to its own architecture.
    pub variant: BTreeSet<&'static str>,
    pub pinned: BTreeSet<(Owner, ManifestDigest)>,
    pub left: BTreeMap<(Owner, ManifestDigest), Left>,
    /// What is in use on nodes.
    pub in_use: BTreeSet<Part>,
    /// When something was needed last.
    pub needed: BTreeMap<Part, i64>,
    /// Since which collection it could be known that something is not needed.
    pub seen_unneeded: BTreeMap<Part, i64>,
}

impl Model {
    pub fn needed_now(&self) -> BTreeSet<Part> {
        let published = self.published.values();
        let pinned = self.left.iter().filter(|(key, _)| self.pinned.contains(key)).map(|(_, left)| &left.image);
        published.chain(pinned).flat_map(Image::parts).collect()
    }

    /// The places where a name has records or a link.
    pub fn owners(&self, name: &'static str) -> BTreeSet<Owner> {
        let recorded = self.published.keys().filter(|owner| owner.name == name).copied();
        recorded.chain(self.second_link(name)).collect()
    }

    /// The link below `.multiarch` of the default platform.
    pub fn second_link(&self, name: &'static str) -> Option<Owner> {
        let image = self.published.get(&Owner::plain(name)).filter(|_| self.second.contains(name))?;
        Some(Owner::below(name, image.arch))
    }

    pub fn is_pinned(&self, owner: Owner) -> bool {
        self.published.get(&owner).is_some_and(|image| self.pinned.contains(&(owner, image.manifest)))
    }

    /// A name ceases to lead to what it leads to.
    pub fn leave(&mut self, owner: Owner, now: i64) {
        if let Some(image) = self.published.remove(&owner) {
            let is_plain = owner.place.is_none();
            let second = is_plain && self.second.remove(owner.name);
            if is_plain {
                self.variant.remove(owner.name);
            }
            self.left.insert((owner, image.manifest), Left { since: now, image, second });
        }
    }

    /// A name leads to an image: for the first time, or again. What it is made of is needed, so its grace begins anew when it is not.
    fn show(&mut self, owner: Owner, image: Image) {
        self.left.remove(&(owner, image.manifest));
        let parts = image.parts();
        self.seen_unneeded.retain(|part, _| !parts.contains(part));
        self.published.insert(owner, image);
    }

    /// A name leads to an image at the plain path. Of the platform that was the default one before, nothing is lost: it has its own
    /// place if it had a link there.
    fn show_plain(&mut self, name: &'static str, image: Image, several: bool, now: i64) {
        let (plain, own) = (Owner::plain(name), Owner::below(name, image.arch));
        let old = self.published.get(&plain).cloned();
        let had_second = self.second.contains(name);
        let was_variant = self.variant.contains(name);
        if old.as_ref().is_none_or(|old| old.manifest != image.manifest) {
            self.leave(plain, now);
        }
        let same = old.as_ref().is_some_and(|old| old.arch == image.arch);
        if let Some(old) = old.filter(|_| had_second && !same) {
            let place = Owner::below(name, old.arch);
            if !self.published.contains_key(&place) {
                self.show(place, old);
            }
        }
        let had_own = self.published.contains_key(&own);
        self.leave(own, now);
        self.show(plain, image);
        if several || had_own || had_second && same {
            self.second.insert(name);
        }
        if was_variant && same && self.second.contains(name) {
            self.variant.insert(name);
        }
    }

    /// The default platform of a wish is published.
    pub fn publish_plain(&mut self, name: &'static str, entry: &Entry, image: Image, now: i64) {
        self.show_plain(name, image, entry.is_for_several(), now);
        match entry.variant {
            true => self.variant.insert(name),
            false => self.variant.remove(name),
        };
    }

    /// Another platform is published, or put back.
    pub fn publish_below(&mut self, name: &'static str, image: Image, now: i64) {
        let owner = Owner::below(name, image.arch);
        if self.second_link(name) == Some(owner) {
            self.second.remove(name);
        }
        if self.published.get(&owner).is_none_or(|old| old.manifest != image.manifest) {
            self.leave(owner, now);
        }
        self.show(owner, image);
    }

    /// What a name led to is put back.
    pub fn restore(&mut self, owner: Owner, left: &Left, now: i64) {
        match owner.place {
            None => self.show_plain(owner.name, left.image.clone(), left.second, now),
            Some(_) => self.publish_below(owner.name, left.image.clone(), now),
        }
    }

    pub fn remove(&mut self, name: &'static str, now: i64) {
        for owner in self.owners(name) {
            self.leave(owner, now);
        }
    }

    /// What no entry of the list asks for goes.
    pub fn prune(&mut self, now: i64) {
        let names: BTreeSet<&'static str> = self.published.keys().map(|owner| owner.name).collect();
        for name in names {
            let entry = self.list.get(name).cloned();
            let is_plain_pinned = self.is_pinned(Owner::plain(name));
            let is_asked =
                |owner: &Owner| entry.as_ref().is_some_and(|entry| owner.place.is_none_or(|arch| entry.asks_for(arch)));
            let second = self.second_link(name);
            // What the plain path needs to lead anywhere stays with it.
            let default = self.published.get(&Owner::plain(name)).map(|image| image.arch);
            let leads_on =
                |owner: &Owner| self.variant.contains(name) && owner.place.is_some() && owner.place == default;
            let keeps_plain = is_plain_pinned || is_asked(&Owner::plain(name));
            let dropped: Vec<Owner> = self
                .owners(name)
                .into_iter()
                .filter(|owner| !is_plain_pinned && !self.is_pinned(*owner) && !is_asked(owner))
                .filter(|owner| !(keeps_plain && leads_on(owner)))
                .collect();
            for owner in dropped {
                if second == Some(owner) && !self.published.contains_key(&owner) {
                    self.second.remove(name);
                }
                self.leave(owner, now);
            }
        }
    }
}
