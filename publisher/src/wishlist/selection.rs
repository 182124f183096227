//! Which of the tags that a wildcard takes are meant: without exclusions, within a range of versions, the newest ones, the
//! young ones.

use std::cmp::Ordering;
use std::time::Duration;

use semver::{Version, VersionReq};

use super::names::glob;

/// A choice among tags. The default takes all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TagSelection {
    /// Patterns of tags that are left out.
    pub exclude: Vec<String>,
    /// Only tags that are versions in this range.
    pub semver: Option<VersionReq>,
    /// Only the newest ones.
    pub newest: Option<Newest>,
    /// Only images that were made within this time.
    pub not_older_than: Option<Duration>,
}

/// So many, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// How many.
    pub count: usize,
    /// What newer means.
    pub by: Order,
}

/// What makes one tag newer than another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// A higher version; tags that are no versions are not taken.
    #[default]
    Semver,
    /// A name further back in the alphabet: for dates.
    Name,
}

impl TagSelection {
    /// Whether all tags are taken.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the tag is taken, as far as its name alone tells.
    pub fn takes(&self, tag: &str) -> bool {
        let in_range = |range: &VersionReq| version(tag).is_some_and(|version| range.matches(&version));
        let by_version = self.newest.is_some_and(|newest| newest.by == Order::Semver);
        !self.exclude.iter().any(|pattern| glob(pattern, tag))
            && self.semver.as_ref().is_none_or(in_range)
            && (!by_version || version(tag).is_some())
    }

    /// The tags that are taken, the newest first. How old their images are has not been looked at, so the newest ones are not
    /// counted yet.
    pub fn candidates<'a>(&self, tags: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let mut taken: Vec<&str> = tags.into_iter().filter(|tag| self.takes(tag)).collect();
        let by =
            self.newest.map_or(if self.semver.is_some() { Order::Semver } else { Order::Name }, |newest| newest.by);
        taken.sort_by(|a, b| by.compare(b, a));
        taken.dedup();
        taken
    }

    /// How many of the candidates that are young enough are taken.
    pub fn count(&self) -> usize {
        self.newest.map_or(usize::MAX, |newest| newest.count)
    }
}

impl Order {
    fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::Semver => version(a).cmp(&version(b)).then_with(|| a.cmp(b)),
            Self::Name => a.cmp(b),
        }
    }
}

/// The version that a tag is: with or without `v`, and `1.4` is `1.4.0`. What follows a hyphen is a pre-release, as
/// Semantic Versioning has it.
fn version(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('v').unwrap_or(tag);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (core, rest) = text.split_at(end);
    let missing = 2_usize.checked_sub(core.matches('.').count())?;
    Version::parse(&format!("{core}{}{rest}", ".0".repeat(missing))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(selection: &TagSelection, tags: &[&str]) -> Vec<String> {
        let candidates = selection.candidates(tags.iter().copied());
        candidates.into_iter().take(selection.count()).map(str::to_owned).collect()
    }

    #[test]
    fn tags_are_taken_by_name_version_and_age() {
        let tags = ["1.9", "v1.10.0", "1.2.0", "2.0.0-rc1", "2.0.0", "latest", "2024-01-31", "2023-12-01"];
        let all = TagSelection::default;
        let range = |text: &str| Some(VersionReq::parse(text).unwrap());
        let newest = |count, by| Some(Newest { count, by });
        for (selection, expected) in [
            (TagSelection { semver: range(">=1.5, <3"), ..all() }, vec!["2.0.0", "v1.10.0", "1.9"]),
            (TagSelection { semver: range("^1"), newest: newest(1, Order::Semver), ..all() }, vec!["v1.10.0"]),
            (
                TagSelection {
                    newest: newest(2, Order::Semver),
                    exclude: vec!["*-rc*".into(), "20??-*".into()],
                    ..all()
                },
                vec!["2.0.0", "v1.10.0"],
            ),
            (
                TagSelection { exclude: vec!["v*".into(), "latest".into()], newest: newest(2, Order::Name), ..all() },
                vec!["2024-01-31", "2023-12-01"],
            ),
        ] {
            assert_eq!(select(&selection, &tags), expected, "{selection:?}");
        }
        assert_eq!(select(&all(), &tags).len(), tags.len());
    }

    #[test]
    fn a_tag_is_a_version_with_up_to_three_numbers() {
        for (tag, expected) in [
            ("1", Some("1.0.0")),
            ("v1.4", Some("1.4.0")),
            ("1.4.2-slim", Some("1.4.2-slim")),
            ("3.12-rc1", Some("3.12.0-rc1")),
            ("1.2.3.4", None),
            ("latest", None),
            ("01.2", None),
            ("", None),
        ] {
            assert_eq!(version(tag).map(|v| v.to_string()).as_deref(), expected, "{tag}");
        }
    }
}
