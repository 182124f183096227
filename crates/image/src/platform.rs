//! Operating system and architecture of an image, and the choice of one image among several.
//!
//! Names are those of Go and OCI (`linux/amd64`, `linux/arm64/v8`); what `uname -m` says is understood as well.
//! The rules are those of container engines: an entry for exactly the platform wins, the first one if there are
//! several; else the highest variant below the wanted one (an ARMv7 machine runs ARMv6 code). Attestations and other
//! entries that are no images are never chosen. The choice can always be explained: a [`Choice`] says why, an error
//! lists what is there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::manifest::{Index, IndexEntry};

/// Why no platform could be parsed or chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The text is no platform.
    #[error("\"{0}\" is not a platform; write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, for instance linux/amd64")]
    Malformed(String),
    /// The index has images, but none that the platform can run.
    #[error("no image for {wanted}; the index has {}", list(.available))]
    Missing {
        /// what was asked for
        wanted: Platform,
        /// what the index offers
        available: Vec<Platform>,
    },
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "no images at all".to_owned();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}

/// Operating system, architecture, and variant of the architecture where that matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// A platform from its parts, as documents of a registry state them. Unusual spellings are brought to the usual
    /// one; parts that aren't short words of letters, digits, `.`, `_` and `-` are refused (they become directories).
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Result<Self, PlatformError> {
        let variant = variant.filter(|variant| !variant.is_empty());
        let word = |text: &str| {
            (1..=32).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
                && !text.starts_with('.')
        };
        if !word(os) || !word(architecture) || !variant.is_none_or(word) {
            let text: String =
                [Some(os), Some(architecture), variant].into_iter().flatten().collect::<Vec<_>>().join("/");
            return Err(PlatformError::Malformed(text.chars().take(100).collect()));
        }
        let lower = str::to_ascii_lowercase;
        let (architecture, implied) = match lower(architecture).as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" | "armv7l" | "armv7" => ("arm".to_owned(), Some("v7")),
            "armel" | "armv6l" => ("arm".to_owned(), Some("v6")),
            "i386" | "i686" => ("386".to_owned(), None),
            other => (other.to_owned(), None),
        };
        let os = if os.eq_ignore_ascii_case("macos") { "darwin".to_owned() } else { lower(os) };
        Ok(Self { os, architecture, variant: variant.or(implied).map(lower) })
    }

    /// Parses `OS/ARCHITECTURE[/VARIANT]`.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if variant != Some("") => {
                Self::new(os, architecture, variant).map_err(|_| PlatformError::Malformed(text.to_owned()))
            }
            _ => Err(PlatformError::Malformed(text.chars().take(100).collect())),
        }
    }

    /// For instance `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// For instance `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// For instance `v8`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The directory below `.multiarch`: `<architecture>[:<variant>]`. An architecture whose variant goes without saying
    /// has one directory, however it is spelled: `arm64` is `arm64:v8`, `arm` is `arm:v7`, `amd64/v1` is `amd64`.
    pub fn directory(&self) -> PlatformDirectory {
        let variant = match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm64", None) => Some("v8"),
            ("arm", None) => Some("v7"),
            ("amd64", Some("v1")) => None,
            (_, variant) => variant,
        };
        PlatformDirectory(match variant {
            Some(variant) => format!("{}:{variant}", self.architecture),
            None => self.architecture.clone(),
        })
    }

    /// How far down the variants of the architecture this one is; the default where none is stated. None: no number.
    fn level(&self) -> Option<u32> {
        let default = match self.architecture.as_str() {
            "arm64" => "v8",
            "arm" => "v7",
            "amd64" => "v1",
            _ => "v0",
        };
        let level = self.variant.as_deref().unwrap_or(default).strip_prefix('v')?;
        // "v8.1" and the like: the part before the dot decides
        level.split('.').next()?.parse().ok()
    }

    /// How well an image for `other` runs here: nothing, or the smaller the better.
    fn distance(&self, other: &Self) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        match (self.level(), other.level()) {
            _ if self.variant == other.variant => Some(0),
            (Some(here), Some(there)) => here.checked_sub(there),
            _ => None,
        }
    }

    /// Can an image for `other` run here?
    pub fn runs(&self, other: &Self) -> bool {
        self.distance(other).is_some()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        Self::parse(text)
    }
}

impl Serialize for Platform {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A directory below `.multiarch`: `amd64`, `arm64:v8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlatformDirectory(String);

impl PlatformDirectory {
    /// Parses `<architecture>[:<variant>]`; nothing for other names.
    pub fn parse(text: &str) -> Option<Self> {
        let (architecture, variant) = match text.split_once(':') {
            Some((architecture, variant)) => (architecture, Some(variant)),
            None => (text, None),
        };
        let directory = Platform::new("linux", architecture, variant).ok()?.directory();
        (directory.0 == text).then_some(directory)
    }

    /// The name of the directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Other names that people and machines (`uname -m`) have for it: links beside the directory.
    pub fn aliases(&self) -> impl Iterator<Item = &'static str> + '_ {
        ALIASES.iter().filter(|(_, directory)| *directory == self.0).map(|(alias, _)| *alias)
    }
}

/// Names of architectures, and the directories that they mean.
const ALIASES: [(&str, &str); 12] = [
    ("x86_64", "amd64"),
    ("x86-64", "amd64"),
    ("aarch64", "arm64:v8"),
    ("arm64", "arm64:v8"),
    ("arm", "arm:v7"),
    ("armhf", "arm:v7"),
    ("armv7", "arm:v7"),
    ("armv7l", "arm:v7"),
    ("armel", "arm:v6"),
    ("armv6l", "arm:v6"),
    ("i386", "386"),
    ("i686", "386"),
];

impl fmt::Display for PlatformDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The entry of an index that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// the entry
    pub entry: IndexEntry,
    /// one sentence for logs and reports
    pub why: String,
}

/// Chooses the image for a platform.
///
/// An index with a single image that states no platform is taken at its word (local image layouts look like this);
/// the config says afterwards what it is.
pub fn choose(index: &Index, wanted: &Platform) -> Result<Choice, PlatformError> {
    let images: Vec<&IndexEntry> = index.entries.iter().filter(|entry| entry.is_image()).collect();
    let best = images
        .iter()
        .filter_map(|entry| Some((wanted.distance(entry.platform.as_ref()?)?, *entry)))
        .min_by_key(|(distance, _)| *distance);
    if let Some((distance, entry)) = best {
        let equals = images.iter().filter(|other| other.platform == entry.platform).count();
        let found = entry.platform.as_ref().unwrap_or(wanted);
        let mut why = match distance {
            0 => format!("{found} is what was asked for"),
            _ => format!("{found} is the best of {} that {wanted} can run", images.len()),
        };
        if equals > 1 {
            why.push_str(&format!("; the first of {equals} entries for it"));
        }
        return Ok(Choice { entry: entry.clone(), why });
    }
    if let [only] = images[..]
        && only.platform.is_none()
    {
        return Ok(Choice { entry: only.clone(), why: "the only image, and it states no platform".to_owned() });
    }
    let mut available: Vec<Platform> = images.iter().filter_map(|entry| entry.platform.clone()).collect();
    available.sort();
    available.dedup();
    Err(PlatformError::Missing { wanted: wanted.clone(), available })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ManifestDigest;
    use crate::manifest::EntryKind;

    fn entry(name: &str) -> IndexEntry {
        IndexEntry {
            digest: ManifestDigest::of(name.as_bytes()),
            size: 1,
            kind: EntryKind::Image,
            platform: name.split('#').next().filter(|name| !name.is_empty()).map(|name| Platform::parse(name).unwrap()),
            ref_name: None,
        }
    }

    #[test]
    fn chooses_what_the_machine_can_run() {
        for (wanted, offered, expected) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some("linux/amd64")),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64/v3", &["linux/amd64/v2", "linux/amd64"], Some("linux/amd64/v2")),
            ("linux/amd64/v1", &["linux/amd64"], Some("linux/amd64")),
            ("linux/arm64", &["linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6"], Some("linux/arm/v6")),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/x86_64", &["linux/amd64"], Some("linux/amd64")),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &["linux/amd64#first", "linux/amd64#second"], Some("linux/amd64#first")),
            ("linux/amd64", &[""], Some("")),
            ("linux/amd64", &["", "linux/arm64"], None),
        ] {
            let index = Index { entries: offered.iter().map(|name| entry(name)).collect() };
            let found = choose(&index, &Platform::parse(wanted).unwrap()).ok().map(|choice| choice.entry);
            assert_eq!(found, expected.map(entry), "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn explains_what_is_there() {
        let index = Index { entries: vec![entry("linux/s390x"), entry("linux/arm64/v8")] };
        let message = choose(&index, &Platform::parse("linux/amd64").unwrap()).unwrap_err().to_string();
        assert_eq!(message, "no image for linux/amd64; the index has linux/arm64/v8, linux/s390x");
    }

    #[test]
    fn refuses_platforms_that_are_no_words() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/amd64/", "linux/a/b/c", "linux/../x", "li nux/amd64"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "x86_64", "arm64", "a:b:c", "..", "a/b"] {
            assert_eq!(PlatformDirectory::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_spelling_of_a_platform_has_one_directory() {
        for (text, directory) in [
            ("linux/arm64/v8", "arm64:v8"),
            ("linux/arm64", "arm64:v8"),
            ("linux/aarch64", "arm64:v8"),
            ("linux/arm64/v9", "arm64:v9"),
            ("linux/arm", "arm:v7"),
            ("linux/armel", "arm:v6"),
            ("linux/x86_64/v1", "amd64"),
            ("linux/amd64/v3", "amd64:v3"),
            ("linux/i386", "386"),
        ] {
            let found = Platform::parse(text).unwrap().directory();
            assert_eq!(found.as_str(), directory, "{text}");
            assert_eq!(PlatformDirectory::parse(directory), Some(found));
        }
        for (alias, directory) in ALIASES {
            assert_eq!(PlatformDirectory::parse(alias), None, "{alias} is a link, not a directory");
            let meant = Platform::new("linux", alias, None).unwrap().directory();
            assert_eq!(meant.as_str(), directory, "{alias}");
            assert!(meant.aliases().any(|found| found == alias));
        }
    }
}
