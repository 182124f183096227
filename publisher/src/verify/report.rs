//! What `verify` found: differences by kind, bounded, told to people and to programs.
//!
//! Names of kinds are stable, texts are not. Paths and values come from images, so what is printed for people is made
//! harmless first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use image::digest::LayerDigest;
use image::layout::OwnedPath;
use indicatif::DecimalBytes;
use parking_lot::Mutex;
use serde::Serialize;

use crate::error::{ExitStatus, printable};

/// In which way something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A name of the image is not there.
    Missing,
    /// There is a name that the image does not have.
    Extra,
    /// A file is a directory, a link is a file, …
    Type,
    /// Permissions, set-id bits.
    Mode,
    /// User or group.
    Owner,
    /// Length of a file.
    Size,
    /// Time of the last change.
    Mtime,
    /// Extended attributes.
    Xattr,
    /// Where a symbolic link leads.
    LinkTarget,
    /// Number of a device.
    Device,
    /// Names that are one file, or are not.
    HardLink,
    /// The bytes of a file.
    Content,
    /// The object of a file is missing or damaged.
    Object,
    /// A layer as a whole.
    Layer,
    /// The flat as a whole.
    Flat,
    /// The public link.
    PublicLink,
    /// A record beside the image or in a layer.
    Record,
    /// An entry of the index.
    Index,
    /// The store for Podman.
    Podman,
}

impl Kind {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Extra => "extra",
            Kind::Type => "type",
            Kind::Mode => "mode",
            Kind::Owner => "owner",
            Kind::Size => "size",
            Kind::Mtime => "mtime",
            Kind::Xattr => "xattr",
            Kind::LinkTarget => "link-target",
            Kind::Device => "device",
            Kind::HardLink => "hard-link",
            Kind::Content => "content",
            Kind::Object => "object",
            Kind::Layer => "layer",
            Kind::Flat => "flat",
            Kind::PublicLink => "public-link",
            Kind::Record => "record",
            Kind::Index => "index",
            Kind::Podman => "podman",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// In which way.
    pub kind: Kind,
    /// Where: a path in the repository.
    pub place: String,
    /// What the image says; empty if that is nothing.
    pub expected: String,
    /// What is published; empty if that is nothing.
    pub found: String,
}

/// What has to be made again to put things right.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Layers.
    pub layers: BTreeSet<LayerDigest>,
    /// Whether the flat is one of it.
    pub flat: bool,
    /// Links and records.
    pub paths: BTreeSet<OwnedPath>,
}

impl Damage {
    /// Whether nothing has.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && !self.flat && self.paths.is_empty()
    }
}

/// Where the expected tree came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// From the layers that the registry has.
    Registry,
    /// From what the repository keeps: records against each other, the flat against the layers.
    Repository,
}

/// Gathers differences, from several threads.
#[derive(Debug)]
pub struct Findings {
    inner: Mutex<Inner>,
    show: usize,
}

#[derive(Debug, Default)]
struct Inner {
    listed: Vec<Difference>,
    counts: BTreeMap<Kind, u64>,
    notes: Vec<String>,
    damage: Damage,
    objects: u64,
    bytes: u64,
    rows: u64,
}

impl Findings {
    /// Lists the first `show` of each kind, and counts the others.
    pub fn new(show: usize) -> Findings {
        Findings { inner: Mutex::default(), show }
    }

    /// Something differs.
    pub fn add(&self, kind: Kind, place: impl ToString, expected: impl ToString, found: impl ToString) {
        let mut inner = self.inner.lock();
        let count = inner.counts.entry(kind).or_default();
        *count += 1;
        if *count <= self.show as u64 {
            let (place, expected, found) = (place.to_string(), expected.to_string(), found.to_string());
            inner.listed.push(Difference { kind, place, expected, found });
        }
    }

    /// How many differences there are so far.
    pub fn count(&self) -> u64 {
        self.inner.lock().counts.values().sum()
    }

    /// What could not be compared, and what else is worth a line.
    pub fn note(&self, text: impl Into<String>) {
        self.inner.lock().notes.push(text.into());
    }

    /// A layer has to be fetched again.
    pub fn damaged_layer(&self, layer: LayerDigest) {
        self.inner.lock().damage.layers.insert(layer);
    }

    /// The flat has to be made again.
    pub fn damaged_flat(&self) {
        self.inner.lock().damage.flat = true;
    }

    /// A link or record has to be written again.
    pub fn damaged_path(&self, path: &OwnedPath) {
        self.inner.lock().damage.paths.insert(path.clone());
    }

    /// Objects were read.
    pub fn read(&self, objects: u64, bytes: u64) {
        let mut inner = self.inner.lock();
        inner.objects += objects;
        inner.bytes += bytes;
    }

    /// Rows were compared.
    pub fn compared(&self, rows: u64) {
        self.inner.lock().rows += rows;
    }

    /// The report of one image.
    pub fn into_report(self, image: String, path: String, digest: Option<String>, origin: Origin) -> ImageReport {
        let Inner { mut listed, counts, notes, damage, objects, bytes, rows } = self.inner.into_inner();
        listed.sort_by_key(|d| d.kind);
        let same = counts.is_empty();
        ImageReport {
            image,
            path,
            digest,
            origin,
            same,
            differences: listed,
            counts,
            notes,
            rows,
            objects,
            bytes,
            damage,
        }
    }
}

/// What was found of one image on one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// Its name in full.
    pub image: String,
    /// Its path in the repository.
    pub path: String,
    /// Digest of the manifest that is published, if a record tells.
    pub digest: Option<String>,
    /// What it was compared with.
    pub origin: Origin,
    /// Whether there is no difference.
    pub same: bool,
    /// The first differences of each kind.
    pub differences: Vec<Difference>,
    /// All differences, by kind.
    pub counts: BTreeMap<Kind, u64>,
    /// What was not compared, and why.
    pub notes: Vec<String>,
    /// Rows compared.
    pub rows: u64,
    /// Objects read.
    pub objects: u64,
    /// Plain bytes of these.
    pub bytes: u64,
    /// What has to be made again.
    #[serde(skip)]
    pub damage: Damage,
}

/// The result of `verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Its revision.
    pub revision: u64,
    /// Whether nothing differs.
    pub same: bool,
    /// The image, on each platform for which it is published.
    pub images: Vec<ImageReport>,
}

impl Report {
    /// Of these images.
    pub fn new(repository: &str, revision: u64, images: Vec<ImageReport>) -> Report {
        let same = images.iter().all(|i| i.same);
        Report { schema: 1, repository: repository.to_owned(), revision, same, images }
    }

    /// 0 if nothing differs.
    pub fn exit_status(&self) -> ExitStatus {
        if self.same { ExitStatus::Success } else { ExitStatus::Failed }
    }

    /// For programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report holds only strings and numbers");
        text.push('\n');
        text
    }

    /// For people: one line a difference, the notes, then the verdict with what was looked at.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for image in &self.images {
            image.write(&mut text, self.revision);
        }
        text
    }
}

impl ImageReport {
    fn write(&self, text: &mut String, revision: u64) {
        for Difference { kind, place, expected, found } in &self.differences {
            let _ = write!(text, "{:<12} {}: ", kind.name(), printable(place));
            let _ = match (&expected[..], &found[..]) {
                ("", found) => writeln!(text, "{}", printable(found)),
                (expected, "") => writeln!(text, "{} is missing", printable(expected)),
                (expected, found) => writeln!(text, "{}, expected {}", printable(found), printable(expected)),
            };
        }
        for (kind, count) in &self.counts {
            let listed = self.differences.iter().filter(|d| d.kind == *kind).count() as u64;
            if listed < *count {
                let _ = writeln!(text, "{:<12} and {} more", kind.name(), count - listed);
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "{:<12} {}", "note", printable(note));
        }
        let _ = write!(text, "{}: ", printable(&self.path));
        let _ = match self.counts.values().sum::<u64>() {
            0 => write!(text, "as the image"),
            count => write!(text, "NOT as the image, {count} differences"),
        };
        let origin = match self.origin {
            Origin::Registry => "compared with the registry",
            Origin::Repository => "compared with what the repository keeps",
        };
        let _ = write!(text, " (revision {revision}, {origin}, {} rows", self.rows);
        if self.objects > 0 {
            let _ = write!(text, ", {} objects read, {}", self.objects, DecimalBytes(self.bytes));
        }
        text.push_str(")\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_first_of_each_kind_and_counts_the_rest() {
        let findings = Findings::new(2);
        for n in 0..5 {
            findings.add(Kind::Mode, format!("/.flat/x/{n}\u{1b}"), "0755", "0700");
        }
        findings.add(Kind::Missing, "/.flat/x/etc", "directory", "");
        findings.add(Kind::Extra, "/.flat/x/new", "", "file");
        findings.note("the tag leads elsewhere");
        findings.compared(7);
        let image = findings.into_report("q/x:1".into(), "q/x:1".into(), None, Origin::Registry);
        let report = Report::new("a.example.org", 3, vec![image]);
        assert_eq!(
            report.to_text(),
            "missing      /.flat/x/etc: directory is missing\n\
             extra        /.flat/x/new: file\n\
             mode         /.flat/x/0\u{fffd}: 0700, expected 0755\n\
             mode         /.flat/x/1\u{fffd}: 0700, expected 0755\n\
             mode         and 3 more\n\
             note         the tag leads elsewhere\n\
             q/x:1: NOT as the image, 7 differences (revision 3, compared with the registry, 7 rows)\n"
        );
        assert_eq!(report.exit_status(), ExitStatus::Failed);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["images"][0]["counts"], serde_json::json!({"missing": 1, "extra": 1, "mode": 5}));
        assert_eq!(json["images"][0]["differences"][0]["kind"], "missing");
    }
}
