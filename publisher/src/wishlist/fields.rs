//! Fields of version 2: each read into its type, or noted as wrong with its line and what to write instead.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use image::platform::{Platform, PlatformDirectory};
use semver::VersionReq;

use super::names::nearest;
use super::options::{ImageOptions, PlainPath, Products, Quota, Retention, SignatureRequirement};
use super::selection::{Newest, Order, TagSelection};
use super::yaml::{self, Located, Node};
use crate::cli::{FlatPermissions, duration, values};

/// The options of an image, in `defaults` and in entries.
pub(super) const OPTIONS: [&str; 15] = [
    "platforms",
    "plain_path",
    "products",
    "priority",
    "owner",
    "contact",
    "schedule",
    "retention",
    "credentials",
    "permissions",
    "quota",
    "public",
    "signature",
    "startup",
    "bundles",
];
/// Nobody has to look more often.
const SHORTEST_SCHEDULE: Duration = Duration::from_secs(10);
/// More platforms than container builders know.
const MAX_PLATFORMS: usize = 32;

/// Something wrong with a field.
#[derive(Debug)]
pub(super) struct Fault {
    pub line: u64,
    pub field: String,
    pub message: String,
}

/// Reads fields of one file.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    /// The directory that paths are relative to.
    pub directory: &'a Path,
    /// What was found to be wrong.
    pub faults: Vec<Fault>,
}

impl Fields<'_> {
    /// Reads one option; whether there is one of that name.
    pub fn option(&mut self, at: &str, key: &str, value: &Located, to: &mut ImageOptions) -> bool {
        let field = join(at, key);
        match key {
            "platforms" => to.platforms = self.platforms(&field, value),
            "plain_path" => {
                let choices = [("default", PlainPath::Default), ("variant", PlainPath::Variant)];
                to.plain_path = self.choice(&field, value, &choices);
            }
            "products" => to.products = self.products(&field, value),
            "priority" => to.priority = self.number(&field, value, "a whole number, for instance 10 or -1"),
            "owner" => to.owner = self.line_of_text(&field, value),
            "contact" => to.contact = self.line_of_text(&field, value),
            "schedule" => to.schedule = self.schedule(&field, value),
            "retention" => to.retention = self.retention(&field, value),
            "credentials" => to.credentials = self.credentials(&field, value),
            "permissions" => {
                let choices = [("keep", FlatPermissions::Keep), ("readable", FlatPermissions::Readable)];
                to.permissions = self.choice(&field, value, &choices);
            }
            "quota" => to.quota = self.quota(&field, value),
            "public" => to.public = self.choice(&field, value, &[("true", true), ("false", false)]),
            "signature" => to.signature = self.signature(&field, value),
            "startup" => to.startup = self.path(&field, value),
            "bundles" => to.bundles = self.choice(&field, value, &[("true", true), ("false", false)]),
            _ => return false,
        }
        true
    }

    /// `tags` of an entry with a wildcard.
    pub fn tags(&mut self, at: &str, value: &Located) -> TagSelection {
        let mut tags = TagSelection::default();
        for (key, value) in self.mapping(at, value, &["exclude", "semver", "newest", "not_older_than"]) {
            let field = join(at, key);
            match key {
                "exclude" => tags.exclude = self.texts(&field, value),
                "semver" => {
                    let range = |text: &str| {
                        VersionReq::parse(text).map_err(|error| {
                            format!("{text:?} is no range of versions ({error}); write for instance \">=1.2, <2\"")
                        })
                    };
                    tags.semver = self.parsed(&field, value, range);
                }
                "newest" => tags.newest = self.newest(&field, value),
                _ => tags.not_older_than = self.parsed(&field, value, duration),
            }
        }
        tags
    }

    fn newest(&mut self, field: &str, value: &Located) -> Option<Newest> {
        const COUNT: &str = "a number of tags, at least 1";
        let positive = |count: &usize| *count > 0;
        if !matches!(value.value, Node::Mapping(_)) {
            let count = self.number(field, value, COUNT).filter(positive);
            return self.wanted(count, field, value, COUNT).map(|count| Newest { count, by: Order::default() });
        }
        let (mut count, mut by) = (None, Some(Order::default()));
        for (key, value) in self.mapping(field, value, &["count", "by"]) {
            let field = join(field, key);
            match key {
                "count" => {
                    let found = self.number(&field, value, COUNT).filter(positive);
                    count = Some(self.wanted(found, &field, value, COUNT));
                }
                _ => by = self.choice(&field, value, &[("semver", Order::Semver), ("name", Order::Name)]),
            }
        }
        if count.is_none() {
            self.fault(value, field, "count is missing".to_owned());
        }
        Some(Newest { count: count??, by: by? })
    }

    fn platforms(&mut self, field: &str, value: &Located) -> Vec<Platform> {
        let texts = self.texts(field, value);
        if texts.len() > MAX_PLATFORMS {
            self.fault(value, field, format!("more than {MAX_PLATFORMS} platforms"));
            return Vec::new();
        }
        let mut platforms: Vec<Platform> = Vec::new();
        let mut directories: BTreeSet<PlatformDirectory> = BTreeSet::new();
        for text in texts {
            match Platform::parse(&text) {
                Ok(platform) if platform.os() != "linux" => {
                    self.fault(value, field, format!("{text}: only images for linux can be published"));
                }
                Ok(platform) if !directories.insert(platform.directory()) => {
                    let what =
                        format!("{text} is named twice: its images are below .multiarch/{}", platform.directory());
                    self.fault(value, field, what);
                }
                Ok(platform) => platforms.push(platform),
                Err(error) => self.fault(value, field, error.to_string()),
            }
        }
        platforms
    }

    fn products(&mut self, field: &str, value: &Located) -> Option<Products> {
        let texts = self.texts(field, value);
        let mut products = Products { flat: false, layers: false, podman: false, thin: false };
        let mut is_known = !texts.is_empty();
        for text in &texts {
            let product = match text.as_str() {
                "flat" => &mut products.flat,
                "layers" => &mut products.layers,
                "podman" => &mut products.podman,
                "thin" => &mut products.thin,
                other => {
                    self.fault(value, field, format!("{other:?} is no product; there are flat, layers, podman, thin"));
                    is_known = false;
                    continue;
                }
            };
            if std::mem::replace(product, true) {
                self.fault(value, field, format!("{text} is named twice"));
            }
        }
        let missing = match products {
            _ if !is_known => return None,
            Products { flat: false, podman: true, .. } => "podman needs flat: the store shows the flat image",
            Products { layers: false, thin: true, .. } => "thin needs layers: a thin image names the published layers",
            _ => return Some(products),
        };
        self.fault(value, field, missing.to_owned());
        None
    }

    fn schedule(&mut self, field: &str, value: &Located) -> Option<Duration> {
        self.parsed(field, value, |text| {
            let often = format!("{text}: nothing is looked at more often than every 10s");
            duration(text).and_then(|interval| (interval >= SHORTEST_SCHEDULE).then_some(interval).ok_or(often))
        })
    }

    fn retention(&mut self, field: &str, value: &Located) -> Retention {
        let mut retention = Retention::default();
        for (key, value) in self.mapping(field, value, &["versions", "days"]) {
            let field = join(field, key);
            match key {
                "versions" => retention.versions = self.number(&field, value, "a number of earlier images"),
                _ => retention.days = self.number(&field, value, "a number of days"),
            }
        }
        retention
    }

    fn quota(&mut self, field: &str, value: &Located) -> Quota {
        let mut quota = Quota::default();
        for (key, value) in self.mapping(field, value, &["image", "owner"]) {
            let size = self.parsed(&join(field, key), value, values::size);
            match key {
                "image" => quota.image = size,
                _ => quota.owner = size,
            }
        }
        quota
    }

    fn credentials(&mut self, field: &str, value: &Located) -> Option<String> {
        self.parsed(field, value, |text| {
            let is_name = (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
            // What is no name may be a secret: it is not shown.
            is_name.then(|| text.to_owned()).ok_or_else(|| {
                "the name of credentials is wanted (up to 64 letters, digits and . _ -), never a user or a password"
                    .to_owned()
            })
        })
    }

    fn signature(&mut self, field: &str, value: &Located) -> Option<SignatureRequirement> {
        if !matches!(value.value, Node::Mapping(_)) {
            let none = self.choice(field, value, &[("none", SignatureRequirement::Nobody)]);
            return none;
        }
        let mut keys = Vec::new();
        for (key, value) in self.mapping(field, value, &["keys"]) {
            keys = self.paths(&join(field, key), value);
        }
        if keys.is_empty() {
            self.fault(value, field, "name keys, or write none".to_owned());
            return None;
        }
        Some(SignatureRequirement::By(keys))
    }

    fn paths(&mut self, field: &str, value: &Located) -> Vec<PathBuf> {
        self.texts(field, value).iter().filter_map(|text| self.place(field, value, text)).collect()
    }

    fn path(&mut self, field: &str, value: &Located) -> Option<PathBuf> {
        let text = self.text(field, value)?;
        self.place(field, value, &text)
    }

    /// The file that a text names. A list that strangers contribute to can't lead out of its directory unnoticed.
    pub fn place(&mut self, field: &str, value: &Located, text: &str) -> Option<PathBuf> {
        let path = Path::new(text);
        if text.is_empty() || text.chars().any(char::is_control) {
            self.fault(value, field, "the name of a file is wanted".to_owned());
            return None;
        }
        if !path.is_absolute() && path.components().any(|part| part == Component::ParentDir) {
            self.fault(
                value,
                field,
                format!("{text:?} leads out of the directory of the list; write an absolute path"),
            );
            return None;
        }
        Some(self.directory.join(path))
    }

    /// The entries of a mapping with these keys, in the order of the file; others are noted. An empty one is wrong.
    pub fn mapping<'v>(
        &mut self,
        field: &str,
        value: &'v Located,
        known: &[&'static str],
    ) -> Vec<(&'static str, &'v Located)> {
        let Node::Mapping(entries) = &value.value else {
            self.expected(value, field, &format!("a mapping with {}", known.join(", ")));
            return Vec::new();
        };
        if entries.is_empty() {
            self.fault(value, field, format!("nothing is said; there are {}", known.join(", ")));
        }
        let mut found = Vec::new();
        for (key, value) in entries {
            match known.iter().find(|known| **known == key.value.0) {
                Some(known) => found.push((*known, value)),
                None => self.unknown(yaml::line(key), field, &key.value.0, known),
            }
        }
        found
    }

    /// Notes a key that means nothing here.
    pub fn unknown(&mut self, line: u64, at: &str, key: &str, known: &[&str]) {
        let meant = match nearest(key, known) {
            Some(known) => format!("; did you mean {known}?"),
            None => format!("; there are {}", known.join(", ")),
        };
        self.faults.push(Fault { line, field: join(at, key), message: format!("unknown key{meant}") });
    }

    /// One text, or a list of them; not none.
    pub fn texts(&mut self, field: &str, value: &Located) -> Vec<String> {
        match &value.value {
            Node::Sequence(items) if items.is_empty() => {
                self.fault(value, field, "the list is empty".to_owned());
                Vec::new()
            }
            Node::Sequence(items) => {
                items.iter().enumerate().filter_map(|(n, item)| self.text(&format!("{field}[{n}]"), item)).collect()
            }
            _ => self.text(field, value).into_iter().collect(),
        }
    }

    /// A text that is not empty.
    pub fn text(&mut self, field: &str, value: &Located) -> Option<String> {
        match &value.value {
            Node::Scalar(text) if !text.is_empty() => Some(text.clone()),
            _ => {
                self.expected(value, field, "a text");
                None
            }
        }
    }

    fn line_of_text(&mut self, field: &str, value: &Located) -> Option<String> {
        self.parsed(field, value, |text| match text.chars().any(char::is_control) || text.len() > 256 {
            true => Err("one line of up to 256 bytes is wanted".to_owned()),
            false => Ok(text.to_owned()),
        })
    }

    fn parsed<T>(&mut self, field: &str, value: &Located, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(field, value)?;
        parse(&text).map_err(|message| self.fault(value, field, message)).ok()
    }

    fn number<T: std::str::FromStr>(&mut self, field: &str, value: &Located, what: &str) -> Option<T> {
        self.parsed(field, value, |text| text.parse().map_err(|_| format!("expected {what}, found {text:?}")))
    }

    fn wanted<T>(&mut self, found: Option<T>, field: &str, value: &Located, what: &str) -> Option<T> {
        // What could not be read at all is noted already.
        if found.is_none() && self.faults.last().is_none_or(|fault| fault.field != field) {
            self.expected(value, field, what);
        }
        found
    }

    fn choice<T: Clone>(&mut self, field: &str, value: &Located, choices: &[(&str, T)]) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        self.parsed(field, value, |text| {
            let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
            found.ok_or_else(|| format!("expected {}, found {text:?}", words.join(" or ")))
        })
    }

    fn expected(&mut self, value: &Located, field: &str, what: &str) {
        self.fault(value, field, format!("expected {what}, found {}", value.value.kind()));
    }

    pub fn fault(&mut self, value: &Located, field: &str, message: String) {
        self.faults.push(Fault { line: yaml::line(value), field: field.to_owned(), message });
    }
}

/// A field within another one.
pub(super) fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}
