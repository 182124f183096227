//! Changes of the tags, as the reference tools make them.

use super::{History, TRUNK, TRUNK_PREVIOUS, Tag};
use crate::hash::ContentHash;

/// A tag cannot be changed as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// Characters that no tag has.
    #[error("{0:?} is no name of a tag: letters, digits and - _ . / : are allowed")]
    Name(String),
    /// One of the automatic tags.
    #[error("the tag {0} is moved by every publish and is not changed by hand")]
    Automatic(String),
    /// It is there already.
    #[error("there is a tag {0} already, of another revision; it moves only to a root hash that is given")]
    Exists(String),
    /// It is not there.
    #[error("there is no tag {0}")]
    Missing(String),
    /// The tag of the present revision.
    #[error("the tag {0} is the present revision; there is nothing to roll back")]
    IsHead(String),
    /// Not on the default branch.
    #[error("the tag {0} is on branch {1}; only the default branch can be rolled back")]
    Branch(String, String),
    /// A tag of a root catalog that is not known.
    #[error("the repository has no revision {0} that is still known by its reflog")]
    Unknown(String),
}

/// Whether a tag can have this name.
pub fn is_tag_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(allowed)
}

fn by_hand(name: &str) -> Result<(), TagError> {
    match name {
        TRUNK | TRUNK_PREVIOUS => Err(TagError::Automatic(name.to_owned())),
        _ if is_tag_name(name) => Ok(()),
        _ => Err(TagError::Name(name.to_owned())),
    }
}

impl History {
    /// Adds a tag. One of this name is moved if `moves` says so, and then keeps its branch, and its description unless
    /// there is a new one; the same tag of the same root is left as it is.
    pub fn add(&mut self, tag: Tag, moves: bool) -> Result<(), TagError> {
        by_hand(&tag.name)?;
        let Some(old) = self.tags.iter_mut().find(|t| t.name == tag.name) else {
            self.tags.push(tag);
            return Ok(());
        };
        if old.root != tag.root && !moves {
            return Err(TagError::Exists(tag.name));
        }
        let description =
            if tag.description.is_empty() { std::mem::take(&mut old.description) } else { tag.description };
        *old = Tag { description, branch: std::mem::take(&mut old.branch), ..tag };
        Ok(())
    }

    /// Removes a tag.
    pub fn remove(&mut self, name: &str) -> Result<Tag, TagError> {
        by_hand(name)?;
        let place = self.tags.iter().position(|t| t.name == name);
        place.map(|place| self.tags.remove(place)).ok_or_else(|| TagError::Missing(name.to_owned()))
    }

    /// The tag to go back to: `name`, or the revision before the present one.
    pub fn rollback_target(&self, name: Option<&str>, head: ContentHash) -> Result<&Tag, TagError> {
        let name = name.unwrap_or(TRUNK_PREVIOUS);
        let tag = self.tag(name).ok_or_else(|| TagError::Missing(name.to_owned()))?;
        match tag {
            _ if !tag.branch.is_empty() => Err(TagError::Branch(name.to_owned(), tag.branch.clone())),
            _ if tag.root == head => Err(TagError::IsHead(name.to_owned())),
            _ => Ok(tag),
        }
    }

    /// The tags after a rollback to `name`, whose content is now at `head`: later ones of the default branch go, the tag
    /// itself moves to the new revision. The way back of `trunk-previous` is gone with it; so a rollback without a tag
    /// works once in a row.
    pub fn roll_back(&mut self, name: &str, head: &Tag) -> Result<(), TagError> {
        let target = self.tag(name).cloned().ok_or_else(|| TagError::Missing(name.to_owned()))?;
        self.tags.retain(|t| !t.branch.is_empty() || (t.revision <= target.revision && t.name != target.name));
        self.tags.push(Tag { name: target.name, description: target.description, ..head.clone() });
        self.advance_trunk(head.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Algorithm;

    fn tag(name: &str, revision: u64) -> Tag {
        Tag {
            name: name.into(),
            root: ContentHash::of(Algorithm::Sha1, &revision.to_le_bytes()),
            revision,
            timestamp: 1000 + revision,
            description: String::new(),
            size: 4096,
            branch: String::new(),
        }
    }

    fn history(tags: &[(&str, u64)]) -> History {
        let mut history = History::new("x.example.org");
        history.tags = tags.iter().map(|(name, revision)| tag(name, *revision)).collect();
        history
    }

    fn names(history: &History) -> Vec<(&str, u64)> {
        let mut names: Vec<_> = history.tags.iter().map(|t| (t.name.as_str(), t.revision)).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn names_of_tags() {
        for name in ["v1", "a-b_c.d/e:f", "generic-2026-11-22T00:00:00Z"] {
            assert!(is_tag_name(name), "{name}");
        }
        for name in ["", "a b", "a@b", "ä", "a\n", &"x".repeat(256)] {
            assert!(!is_tag_name(name), "{name}");
            assert_eq!(history(&[]).add(tag(name, 1), true), Err(TagError::Name(name.to_owned())));
        }
        assert_eq!(history(&[]).add(tag(TRUNK, 1), true), Err(TagError::Automatic(TRUNK.into())));
        assert_eq!(history(&[(TRUNK, 1)]).remove(TRUNK), Err(TagError::Automatic(TRUNK.into())));
    }

    #[test]
    fn a_tag_moves_only_when_told() {
        let mut tags = history(&[("v1", 1)]);
        tags.tags[0].description = "first".into();
        tags.tags[0].branch = "b".into();
        assert_eq!(tags.add(tag("v1", 2), false), Err(TagError::Exists("v1".into())));
        tags.add(tag("v1", 1), false).unwrap();
        tags.add(tag("v1", 2), true).unwrap();
        assert_eq!(
            (tags.tags[0].revision, tags.tags[0].description.as_str(), tags.tags[0].branch.as_str()),
            (2, "first", "b")
        );
        tags.add(Tag { description: "new".into(), ..tag("v1", 3) }, true).unwrap();
        assert_eq!(tags.tags[0].description, "new");
        assert_eq!(tags.remove("v1").unwrap().revision, 3);
        assert_eq!(tags.remove("v1"), Err(TagError::Missing("v1".into())));
    }

    #[test]
    fn a_rollback_takes_later_tags_along() {
        let before = [("v1", 3), ("v2", 5), ("v0", 1), (TRUNK_PREVIOUS, 8), (TRUNK, 9)];
        let head = tag("", 10);
        let mut tags = history(&before);
        tags.tags.push(Tag { branch: "b".into(), ..tag("elsewhere", 7) });
        tags.roll_back("v1", &head).unwrap();
        assert_eq!(names(&tags), [("elsewhere", 7), (TRUNK, 10), ("v0", 1), ("v1", 10)]);
        let mut tags = history(&before);
        tags.roll_back(TRUNK_PREVIOUS, &head).unwrap();
        assert_eq!(names(&tags), [(TRUNK, 10), ("v0", 1), ("v1", 3), ("v2", 5)]);
        assert_eq!(tags.rollback_target(None, head.root), Err(TagError::Missing(TRUNK_PREVIOUS.into())));
    }

    #[test]
    fn what_cannot_be_rolled_back_to() {
        let mut tags = history(&[("v1", 3), (TRUNK, 9)]);
        tags.tags.push(Tag { branch: "b".into(), ..tag("elsewhere", 7) });
        let head = tag("", 9).root;
        assert_eq!(tags.rollback_target(Some("v1"), head).unwrap().revision, 3);
        assert_eq!(tags.rollback_target(Some(TRUNK), head), Err(TagError::IsHead(TRUNK.into())));
        assert!(matches!(tags.rollback_target(Some("elsewhere"), head), Err(TagError::Branch(..))));
        assert!(matches!(tags.rollback_target(Some("none"), head), Err(TagError::Missing(_))));
    }
}
