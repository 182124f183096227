//! What a collection or a removal did, or would do: for people and for programs, from the same values.

use std::fmt::Write as _;
use std::time::Instant;

use cvmfs::transaction::Published;
use image::layout::{Layout, timestamp};
use serde::Serialize;

use super::mark::{Owner, Unit, Version};
use super::plan::Sentence;
use super::{WholePlan, hexes};
use crate::target::Target;

/// A layer or flat that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its path below the root of the repository.
    pub path: String,
    /// `layer` or `flat`.
    pub kind: &'static str,
    /// Its digest.
    pub digest: String,
    /// Since when it is condemned.
    pub since: String,
    /// When its grace ends.
    pub until: String,
    /// Why its last known use ended.
    pub reason: String,
    /// Names of the images that used it last.
    pub last_images: Vec<String>,
}

fn line(layout: &Layout, sentence: &Sentence) -> Line {
    let (kind, digest) = kind(sentence.unit);
    Line {
        path: layout.print(&sentence.unit.path()),
        kind,
        digest,
        since: sentence.record.since.clone(),
        until: timestamp(sentence.until),
        reason: sentence.record.reason.clone(),
        last_images: sentence.record.last_images.clone(),
    }
}

fn kind(unit: Unit) -> (&'static str, String) {
    match unit {
        Unit::Layer(layer) => ("layer", layer.to_string()),
        Unit::Flat(flat) => ("flat", flat.to_string()),
    }
}

/// What a collection of images did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Collected {
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Its revision before.
    pub revision_before: u64,
    /// Its revision now: the same if nothing was published.
    pub revision: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Published images.
    pub images: u64,
    /// Earlier images that can be undeleted.
    pub earlier: u64,
    /// Layers and flats that were condemned.
    pub condemned: Vec<Line>,
    /// Layers and flats that were condemned before and wait for the end of their grace.
    pub waiting: Vec<Line>,
    /// Layers and flats that were removed.
    pub swept: Vec<Line>,
    /// Paths of layers and flats that were condemned, and are needed again or gone.
    pub reprieved: Vec<String>,
    /// Earlier images that can't be undeleted any more.
    pub forgotten: u64,
    /// Entries of the index that were removed, lead elsewhere, or say anew who uses a layer.
    pub index: u64,
    /// Layers that records name and that are not there: a matter of `check`.
    pub missing_layers: u64,
    /// What finding it out took: catalogs and records read, and bytes of the latter.
    pub read: Read,
    /// Catalogs that the publish wrote.
    pub catalogs_written: u64,
    /// Their compressed bytes.
    pub catalog_bytes: u64,
    /// Wall-clock time.
    pub seconds: f64,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Read {
    /// Catalogs of names and records.
    pub catalogs: u64,
    /// Records.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Collected {
    pub(super) fn new(
        target: &Target,
        whole: &WholePlan,
        dry_run: bool,
        published: Option<&Published>,
        start: Instant,
    ) -> Collected {
        let (layout, WholePlan { plan, index, seen }) = (Layout::new(), whole);
        let lines = |sentences: &[Sentence]| sentences.iter().map(|s| line(&layout, s)).collect();
        Collected {
            schema: 1,
            repository: target.fqrn.clone(),
            revision_before: plan.revision,
            revision: published.map_or(plan.revision, |p| p.repository.manifest().revision),
            dry_run,
            images: seen.names().len() as u64,
            earlier: plan.versions.len() as u64,
            condemned: lines(&plan.condemn),
            waiting: lines(&plan.waiting),
            swept: lines(&plan.sweep),
            reprieved: plan.reprieve.iter().map(|unit| layout.print(&unit.path())).collect(),
            forgotten: plan.forget.len() as u64,
            index: (index.remove.len() + index.relink.len() + index.users.len()) as u64,
            missing_layers: seen.missing_layers,
            read: Read { catalogs: seen.catalogs, records: seen.records, bytes: seen.record_bytes },
            catalogs_written: published.map_or(0, |p| p.catalogs),
            catalog_bytes: published.map_or(0, |p| p.catalog_bytes),
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let verb = |done: &'static str, would: &'static str| if self.dry_run { would } else { done };
        let mut list = |word: &str, lines: &[Line]| {
            for line in lines {
                let of = match line.last_images.first() {
                    Some(first) if line.last_images.len() > 1 => {
                        format!(" of {first} and {} more", line.last_images.len() - 1)
                    }
                    Some(first) => format!(" of {first}"),
                    None => String::new(),
                };
                let (path, reason, until) = (&line.path, &line.reason, &line.until);
                let _ = writeln!(text, "{word:<9} {path}{of}: {reason}, until {until}");
            }
        };
        list("sweep", &self.swept);
        list("condemn", &self.condemned);
        for path in &self.reprieved {
            let _ = writeln!(text, "reprieve  {path}");
        }
        let count = |kind: &str, lines: &[Line]| lines.iter().filter(|l| l.kind == kind).count();
        let both = |lines: &[Line]| format!("{} layers and {} flats", count("layer", lines), count("flat", lines));
        let _ = write!(
            text,
            "{}: {} {}, {} {}, {} reprieved; {} wait for the end of their grace; {} images published, {} earlier ones can be undeleted",
            self.repository,
            both(&self.swept),
            verb("removed", "would be removed"),
            both(&self.condemned),
            verb("condemned", "would be condemned"),
            self.reprieved.len(),
            both(&self.waiting),
            self.images,
            self.earlier,
        );
        if self.missing_layers > 0 {
            let _ = write!(text, "; {} layers that records name are missing (see check)", self.missing_layers);
        }
        let _ = match self.revision == self.revision_before {
            true => writeln!(text, " (revision {}, nothing published)", self.revision),
            false => writeln!(text, " (revision {} -> {})", self.revision_before, self.revision),
        };
        text
    }

    /// For programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only strings and numbers");
        text.push('\n');
        text
    }
}

/// What `remove`, `prune`, `undelete` or `pin` changed, or would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Its revision before.
    pub revision_before: u64,
    /// Its revision now: the same if nothing was published.
    pub revision: u64,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Paths of the images that were changed.
    pub images: Vec<String>,
}

impl Removed {
    pub(super) fn new(target: &Target, changed: Vec<Owner>, revisions: (u64, u64), dry_run: bool) -> Removed {
        Removed {
            schema: 1,
            repository: target.fqrn.clone(),
            revision_before: revisions.0,
            revision: revisions.1,
            dry_run,
            images: changed.iter().map(path_of).collect(),
        }
    }

    /// For people: a line an image; `word` says what happened to it.
    pub fn to_text(&self, word: &str) -> String {
        let mut text = String::new();
        self.images.iter().for_each(|image| text.push_str(&format!("{word:<9} {image}\n")));
        let _ = match (self.dry_run, self.revision == self.revision_before) {
            (true, _) => writeln!(text, "{}: {} images; nothing was changed", self.repository, self.images.len()),
            (false, true) => writeln!(text, "{}: nothing to do (revision {})", self.repository, self.revision),
            (false, false) => {
                writeln!(text, "{}: revision {} -> {}", self.repository, self.revision_before, self.revision)
            }
        };
        text
    }

    /// For programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only strings and numbers");
        text.push('\n');
        text
    }
}

fn path_of(owner: &Owner) -> String {
    let Owner { platform, name } = owner.clone();
    Layout::new().print(&image::layout::OwnedPath::Public { platform, name })
}

/// Earlier images for people: a line each.
pub fn earlier_to_text(versions: &[Version]) -> String {
    let line = |v: &Version| {
        let pinned = if v.is_pinned { ", pinned" } else { "" };
        format!("{}  sha256:{}  until {}: {}{pinned}\n", path_of(&v.owner), v.key.hex(), timestamp(v.since), v.reason)
    };
    versions.iter().map(line).collect()
}

/// Earlier images for programs.
pub fn earlier_to_json(versions: &[Version]) -> String {
    let object = |v: &Version| {
        serde_json::json!({
            "path": path_of(&v.owner),
            "version": format!("sha256:{}", v.key.hex()),
            "digest": v.parts.digest.map(|d| d.to_string()),
            "config": v.parts.config.to_string(),
            "layers": hexes(&v.parts.layers),
            "until": timestamp(v.since),
            "reason": v.reason,
            "pinned": v.is_pinned,
        })
    };
    format!("{:#}\n", serde_json::Value::Array(versions.iter().map(object).collect()))
}
