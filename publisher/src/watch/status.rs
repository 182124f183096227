//! What a watching publisher knows, as one value: served as JSON, shown by `status`, printed on the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use registry::budget::Snapshot;
use time::UtcDateTime;

use super::outcomes::{ImageOutcome, Moment, Outcomes};
use crate::error::printable;
use crate::report::{Outcome, Report};
use crate::target::{Target, WhitelistEnd};

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of this form.
    pub schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Its revision at the last pass.
    pub revision: Option<u64>,
    /// When clients refuse its whitelist.
    pub whitelist_expires: Option<Moment>,
    /// What to do about that, if it is near.
    pub whitelist_warning: Option<String>,
    /// Why nothing can be done now, if so.
    pub trouble: Option<String>,
    /// The wish list.
    pub list: ListStatus,
    /// Events that wait.
    pub queue: usize,
    /// The last pass.
    pub last_pass: Option<PassStatus>,
    /// Registries and mirrors that were asked since the start, as they are now.
    #[serde(default)]
    pub registries: Vec<Snapshot>,
    /// Images by whole name.
    pub images: BTreeMap<String, ImageOutcome>,
}

/// The wish list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListStatus {
    /// Its file.
    pub path: String,
    /// How many wishes it has.
    pub wishes: usize,
    /// What is wrong with entries.
    pub problems: Vec<String>,
    /// Why the file is not at work as it is now.
    pub error: Option<String>,
}

/// A pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PassStatus {
    /// When it began.
    pub began: Moment,
    /// How long it took.
    pub seconds: f64,
    /// Images by what became of them.
    pub images: BTreeMap<String, usize>,
}

impl PassStatus {
    /// Of a report.
    pub fn new(report: &Report, began: Moment, took: Duration) -> Self {
        let all = [Outcome::Added, Outcome::Updated, Outcome::Removed, Outcome::Unchanged, Outcome::Failed];
        let images = all.map(|outcome| (outcome.as_str().to_owned(), report.count(outcome))).into();
        Self { began, seconds: took.as_secs_f64(), images }
    }
}

impl Status {
    /// Before the first pass.
    pub fn new(fqrn: &str, list: &Path) -> Self {
        Self {
            schema: 1,
            repository: fqrn.to_owned(),
            revision: None,
            whitelist_expires: None,
            whitelist_warning: None,
            trouble: None,
            list: ListStatus { path: list.display().to_string(), ..ListStatus::default() },
            queue: 0,
            last_pass: None,
            registries: Vec::new(),
            images: BTreeMap::new(),
        }
    }

    /// The status for programs.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a status holds only texts and numbers");
        text.push('\n');
        text
    }

    /// The status for people: what fails first, then the rest.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}", printable(&self.repository));
        if let Some(revision) = self.revision {
            let _ = write!(text, ", revision {revision}");
        }
        if let Some(expires) = &self.whitelist_expires {
            let _ = write!(text, ", whitelist until {expires}");
        }
        text.push('\n');
        for trouble in [&self.trouble, &self.whitelist_warning, &self.list.error].into_iter().flatten() {
            let _ = writeln!(text, "  {}", printable(trouble));
        }
        if self.images.is_empty() {
            text.push_str(
                "  nothing is known of images: neither watch nor convert was run with this state directory\n",
            );
        }
        for registry in &self.registries {
            let Snapshot { registry, paused, passed_over, .. } = registry;
            if let Some(seconds) = paused {
                let _ = writeln!(text, "  {} asked for a pause, {seconds} s of it are left", printable(registry));
            }
            if let Some(seconds) = passed_over {
                let _ = writeln!(text, "  {} failed and is passed over for {seconds} s", printable(registry));
            }
        }
        let mut images: Vec<_> = self.images.iter().collect();
        images.sort_by_key(|(name, image)| (image.failures == 0, *name));
        for (name, image) in images {
            let _ = write!(text, "  {:<9} {}, looked at {}", image.outcome.as_str(), printable(name), image.last_check);
            if let Some(next) = &image.next_try {
                let _ = write!(text, ", {} failures in a row, next try {next}", image.failures);
            }
            text.push('\n');
            if let Some(error) = &image.error {
                let _ = writeln!(text, "  {:<9} {}", "", printable(error));
            }
        }
        text
    }

    /// Whether somebody should look.
    pub fn is_well(&self) -> bool {
        self.trouble.is_none() && self.whitelist_warning.is_none() && self.list.error.is_none()
    }
}

/// What the state of a repository says, without asking the watching program.
pub fn read(target: &Target, now: UtcDateTime) -> Status {
    let end = WhitelistEnd::of(&*target.store, &target.paths.keys, &target.fqrn);
    Status {
        revision: target.repository().ok().map(|repository| repository.manifest().revision),
        whitelist_expires: end.expires.map(Moment),
        whitelist_warning: end.warning(&target.fqrn, now),
        images: Outcomes::read(&super::images_file(&target.paths)).images,
        ..Status::new(&target.fqrn, Path::new(""))
    }
}
