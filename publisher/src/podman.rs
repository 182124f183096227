//! Which images are in the additional image store of the repository, `podmanStore`: decided here, written by `publish`.
//!
//! The store is opt-in, for every program that has it open reads the list of all its images; so it is for the few that all users of a
//! repository want by name, and bounded. For more, or others, `thin-image load --podman-store` makes a store on the node.
//!
//! Invariants
//! - What is in the store is what is published under its name: it follows when the name moves, and goes when the name goes.
//! - An image beyond the limit is published, and its wish says that it is not in the store.

use image::digest::{ImageId, ManifestDigest};
use image::podman::{Listed, engine_name, take_name};
use image::reference::PublicName;
use serde::Serialize;

use crate::wishlist::glob;

/// Images in the store, unless the operator says otherwise. Each takes about 2 KB of what every start of a program reads.
pub const LIMIT: usize = 500;

/// Which images of a pass go into the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum InStore {
    /// No more than there are; those that are in it follow their names.
    #[default]
    Follow,
    /// All.
    All,
    /// None.
    Nothing,
    /// Those whose whole name one of these patterns takes.
    Matching(Vec<String>),
}

impl InStore {
    /// Whether an image is to be in the store; none: nobody says.
    pub fn wants(&self, whole_name: &str) -> Option<bool> {
        match self {
            Self::Follow => None,
            Self::All => Some(true),
            Self::Nothing => Some(false),
            Self::Matching(patterns) => Some(patterns.iter().any(|pattern| glob(pattern, whole_name))),
        }
    }
}

/// What becomes of an image in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodmanState {
    /// It was not in it.
    Added,
    /// Another image had its name.
    Updated,
    /// It is as wished.
    Unchanged,
    /// It is taken out.
    Removed,
    /// There is no room for it.
    Full,
}

impl PodmanState {
    /// Whether the store has to be written.
    pub fn is_change(self) -> bool {
        matches!(self, Self::Added | Self::Updated | Self::Removed)
    }

    /// What a plan says of it, after what it says of the image.
    pub fn as_planned(self) -> &'static str {
        match self {
            Self::Added => ", add it to the store for Podman",
            Self::Updated => ", update the store for Podman",
            Self::Unchanged => "",
            Self::Removed => ", take it out of the store for Podman",
            Self::Full => ", no room in the store for Podman",
        }
    }
}

/// What became of one image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodmanOutcome {
    /// The name that Podman knows.
    pub image: String,
    /// What became of it.
    pub outcome: PodmanState,
    /// Why it is not in the store.
    pub error: Option<String>,
}

impl PodmanOutcome {
    /// The outcome of an image.
    pub fn new(name: &PublicName, outcome: PodmanState, limit: usize) -> Self {
        let full = || {
            format!(
                "the store for Podman has {limit} images already; name fewer in the list, raise --podman-limit, or make stores on the \
                 nodes with thin-image load --podman-store"
            )
        };
        Self { image: engine_name(name), outcome, error: (outcome == PodmanState::Full).then(full) }
    }
}

/// The store as it will be when everything that was decided so far is done.
#[derive(Debug)]
pub struct Stock {
    images: Vec<Listed>,
    names: usize,
    limit: usize,
}

impl Stock {
    /// The store as it is.
    pub fn new(images: Vec<Listed>, limit: usize) -> Self {
        let names = images.iter().map(|image| image.names().len()).sum();
        Self { images, names, limit }
    }

    /// Decides about an image that is published under this name now, or will be.
    pub fn decide(
        &mut self,
        wanted: Option<bool>,
        name: &PublicName,
        image: ImageId,
        digest: ManifestDigest,
    ) -> Option<PodmanState> {
        let name = engine_name(name);
        let found = self.images.iter().find(|listed| listed.names().contains(&name));
        let is_same = matches!(found, Some(Listed::Ours(entry)) if entry.id == image.hex() && entry.digest == digest);
        match (wanted, found.is_some()) {
            (Some(false), true) => {
                take_name(&mut self.images, &name);
                self.names -= 1;
                Some(PodmanState::Removed)
            }
            (Some(true), true) if is_same => Some(PodmanState::Unchanged),
            (None, true) if is_same => None,
            (_, true) => Some(PodmanState::Updated),
            (Some(true), false) if self.names >= self.limit => Some(PodmanState::Full),
            (Some(true), false) => {
                self.names += 1;
                Some(PodmanState::Added)
            }
            (_, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_in_the_store_is_decided_by_the_wish_the_store_and_the_limit() {
        let (old, new) = (ImageId::of(b"old"), ImageId::of(b"new"));
        let digest = ManifestDigest::of(b"manifest");
        let entry = json!([{
            "id": old.hex(), "digest": digest, "names": ["quay.io/a:1"], "layer": "x", "big-data-names": [],
            "big-data-sizes": {}, "big-data-digests": {}, "created": "1970-01-01T00:00:00Z",
        }]);
        let stock = |limit| Stock::new(image::podman::read(entry.to_string().as_bytes()).unwrap(), limit);
        let decide =
            |wanted, name: &str, id, limit| stock(limit).decide(wanted, &PublicName::parse(name).unwrap(), id, digest);
        for (wanted, name, id, limit, expected) in [
            (Some(true), "quay.io/a:1", old, 1, Some(PodmanState::Unchanged)),
            (None, "quay.io/a:1", old, 1, None),
            (Some(true), "quay.io/a:1", new, 1, Some(PodmanState::Updated)),
            (None, "quay.io/a:1", new, 1, Some(PodmanState::Updated)),
            (Some(false), "quay.io/a:1", old, 1, Some(PodmanState::Removed)),
            (Some(true), "quay.io/b:1", new, 2, Some(PodmanState::Added)),
            (Some(true), "quay.io/b:1", new, 1, Some(PodmanState::Full)),
            (Some(false), "quay.io/b:1", new, 2, None),
            (None, "quay.io/b:1", new, 2, None),
        ] {
            assert_eq!(decide(wanted, name, id, limit), expected, "{wanted:?} {name} {limit}");
        }
        let mut stock = stock(2);
        let mut add = |name: &str| stock.decide(Some(true), &PublicName::parse(name).unwrap(), new, digest);
        assert_eq!([add("quay.io/b:1"), add("quay.io/c:1")], [Some(PodmanState::Added), Some(PodmanState::Full)]);
    }

    #[test]
    fn patterns_take_whole_names() {
        let rule = InStore::Matching(vec!["https://quay.io/tools/*".into()]);
        assert_eq!(rule.wants("https://quay.io/tools/app:1"), Some(true));
        assert_eq!(rule.wants("https://quay.io/other/app:1"), Some(false));
        assert_eq!(InStore::Follow.wants("x"), None);
    }
}
