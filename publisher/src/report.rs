//! What became of each wish, told once: to people, to programs, and to the shell.
//!
//! A pass ends with one [`WishOutcome`] for every image of every wish. The summary, the JSON report and the exit status
//! are all derived from these values, so they can't disagree.

use std::fmt::Write as _;

use indicatif::DecimalBytes;
use serde::{Deserialize, Serialize};

use crate::error::{ExitStatus, printable};
use crate::podman::{PodmanOutcome, PodmanState};
use crate::thin::{ThinOutcome, ThinState};

/// What happened to one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was not published before and is now.
    Added,
    /// It was published from another digest before.
    Updated,
    /// What is published is what was wished for; nothing was written.
    Unchanged,
    /// It is not published as wished; what was published before still is.
    Failed,
    /// It was published before and isn't any more.
    Removed,
}

impl Outcome {
    /// The word that the report uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }

    const ALL: [Self; 5] = [Self::Added, Self::Updated, Self::Removed, Self::Unchanged, Self::Failed];
}

/// Number of layers of an image, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerCounts {
    /// Downloaded in this pass.
    pub fetched: u64,
    /// In the repository (or in our state) already.
    pub known: u64,
}

/// Bytes that an image cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ByteCounts {
    /// Received from the registry.
    pub downloaded: u64,
    /// Written into the repository's storage, as stored there (compressed).
    pub stored: u64,
    /// Plain bytes of files that the repository had already.
    pub deduplicated: u64,
}

/// The outcome of one image of one wish.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WishOutcome {
    /// The wish as it stands in the list or on the command line.
    pub wish: String,
    /// Its line in the wish list, counted from 1; absent for an image named on the command line.
    pub line: Option<u64>,
    /// The image that the wish resolved to, if it got so far. A wish with a wildcard has many outcomes, one an image.
    pub image: Option<String>,
    /// For which machines, where the image is wished for on several platforms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Digest of the image manifest, if it is known.
    pub digest: Option<String>,
    /// What happened.
    pub outcome: Outcome,
    /// Why it failed, on one line ([`crate::error::one_line`]).
    pub error: Option<String>,
    /// Layers of the image.
    pub layers: LayerCounts,
    /// Bytes it cost.
    pub bytes: ByteCounts,
    /// Wall-clock time from the first request to the end, seconds.
    pub seconds: f64,
    /// Its thin image, if one was to be pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thin: Option<ThinOutcome>,
    /// What became of it in the store for Podman, if it is to be there or was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub podman: Option<PodmanOutcome>,
    /// Whether the wish list says that a failure of this image doesn't count (`ignoreErrors`).
    #[serde(skip)]
    pub ignored: bool,
}

impl WishOutcome {
    /// An outcome that nothing was spent on yet.
    pub fn new(wish: impl Into<String>, line: Option<u64>, outcome: Outcome) -> Self {
        Self {
            wish: wish.into(),
            line,
            image: None,
            platform: None,
            digest: None,
            outcome,
            error: None,
            layers: LayerCounts::default(),
            bytes: ByteCounts::default(),
            seconds: 0.0,
            thin: None,
            podman: None,
            ignored: false,
        }
    }

    /// Is something missing of what was wished for?
    pub fn has_failed(&self) -> bool {
        let states = (self.thin_state(), self.podman_state());
        self.outcome == Outcome::Failed || matches!(states, (Some(ThinState::Failed), _) | (_, Some(PodmanState::Full)))
    }

    fn podman_state(&self) -> Option<PodmanState> {
        self.podman.as_ref().map(|podman| podman.outcome)
    }

    fn thin_state(&self) -> Option<ThinState> {
        self.thin.as_ref().map(|thin| thin.outcome)
    }

    /// A wish that failed before anything was fetched.
    pub fn failed(wish: impl Into<String>, line: Option<u64>, error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::new(wish, line, Outcome::Failed) }
    }
}

/// The result of a whole pass.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of the JSON form.
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Revision that the pass began with; absent if the repository was not opened.
    pub revision_before: Option<u64>,
    /// Revision that the pass left behind. Equal to `revision_before` if nothing was published.
    pub revision: Option<u64>,
    /// One entry for every image, in the order of the wish list.
    pub wishes: Vec<WishOutcome>,
}

impl Report {
    /// A report without outcomes yet.
    pub fn new(repository: impl Into<String>) -> Self {
        Self { schema: 1, repository: repository.into(), revision_before: None, revision: None, wishes: Vec::new() }
    }

    /// How many outcomes are of this kind.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.wishes.iter().filter(|wish| wish.outcome == outcome).count()
    }

    /// The exit status: 1 as soon as one wish failed, unless the list says that it doesn't count.
    pub fn exit_status(&self) -> ExitStatus {
        let counts = |wish: &WishOutcome| wish.has_failed() && !wish.ignored;
        if self.wishes.iter().any(counts) { ExitStatus::Failed } else { ExitStatus::Success }
    }

    /// The report for programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report holds only strings and numbers");
        text.push('\n');
        text
    }

    /// The report for people. Images that did not change are counted, not listed, unless their thin images did.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let is_news = |wish: &&WishOutcome| {
            let thin = matches!(wish.thin_state(), Some(ThinState::Pushed | ThinState::Failed));
            let podman = wish.podman_state().is_some_and(|state| state != PodmanState::Unchanged);
            wish.outcome != Outcome::Unchanged || thin || podman
        };
        for wish in self.wishes.iter().filter(is_news) {
            write_wish(&mut text, wish);
        }
        let counts: Vec<String> = Outcome::ALL
            .iter()
            .map(|&outcome| (self.count(outcome), outcome.as_str()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        let counts = if counts.is_empty() { "no wishes".to_owned() } else { counts.join(", ") };
        let repository = printable(&self.repository);
        let revision = match (self.revision_before, self.revision) {
            (Some(before), Some(after)) if before != after => format!("revision {before} -> {after}"),
            (_, Some(revision)) => format!("revision {revision}, nothing published"),
            (_, None) => "nothing published".to_owned(),
        };
        let _ = writeln!(text, "{repository}: {counts} ({revision})");
        text
    }
}

/// One line for an image, and one more for the reason of a failure. Writing to a string can't fail.
fn write_wish(text: &mut String, wish: &WishOutcome) {
    let name = printable(wish.image.as_deref().unwrap_or(&wish.wish));
    let platform = wish.platform.as_ref().map(|platform| format!(" for {platform}")).unwrap_or_default();
    let _ = write!(text, "{:<9} {name}{platform}", wish.outcome.as_str());
    if wish.outcome == Outcome::Failed {
        let mut line = wish.line.map(|line| format!(" (line {line})")).unwrap_or_default();
        if wish.ignored {
            line.push_str(", ignored");
        }
        let error = printable(wish.error.as_deref().unwrap_or("no reason given"));
        let _ = writeln!(text, "{line}\n{:<9} {error}", "");
        return;
    }
    if !matches!(wish.outcome, Outcome::Removed | Outcome::Unchanged) {
        let layers = wish.layers.fetched.saturating_add(wish.layers.known);
        let _ = write!(
            text,
            ": {layers} layers, {} fetched, {} downloaded, {} stored, {:.1} s",
            wish.layers.fetched,
            DecimalBytes(wish.bytes.downloaded),
            DecimalBytes(wish.bytes.stored),
            wish.seconds
        );
    }
    text.push('\n');
    if let Some(thin) = &wish.thin {
        write_thin(text, thin);
    }
    if let Some(podman) = &wish.podman {
        write_podman(text, podman);
    }
}

/// What became of an image in the store for Podman, if it is news.
fn write_podman(text: &mut String, podman: &PodmanOutcome) {
    let name = printable(&podman.image);
    let _ = match (podman.outcome, &podman.error) {
        (PodmanState::Unchanged, _) => Ok(()),
        (PodmanState::Added, _) => writeln!(text, "{:<9} added to the store for Podman as {name}", ""),
        (PodmanState::Updated, _) => writeln!(text, "{:<9} updated in the store for Podman as {name}", ""),
        (PodmanState::Removed, _) => writeln!(text, "{:<9} {name} taken out of the store for Podman", ""),
        (PodmanState::Full, error) => {
            let error = printable(error.as_deref().unwrap_or("no reason given"));
            writeln!(text, "{:<9} {name} is not in the store for Podman: {error}", "")
        }
    };
}

/// What became of a thin image, if it is news.
fn write_thin(text: &mut String, thin: &ThinOutcome) {
    let name = printable(&thin.image);
    let _ = match (thin.outcome, &thin.error) {
        (ThinState::Unchanged, _) => Ok(()),
        (ThinState::Pushed, _) => writeln!(text, "{:<9} thin image {name} pushed", ""),
        (ThinState::Failed, error) => {
            let error = printable(error.as_deref().unwrap_or("no reason given"));
            writeln!(text, "{:<9} thin image {name} failed: {error}", "")
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Report {
        let mut report = Report::new("images.example.org");
        report.revision_before = Some(16);
        report.revision = Some(17);
        let mut added = WishOutcome::new("https://quay.io/tools/app:1.*", Some(4), Outcome::Added);
        added.image = Some("https://quay.io/tools/app:1.2".to_owned());
        added.digest = Some("sha256:aa".to_owned());
        added.layers = LayerCounts { fetched: 2, known: 3 };
        added.bytes = ByteCounts { downloaded: 48_000_000, stored: 50_100_000, deduplicated: 7 };
        added.seconds = 12.04;
        report.wishes = vec![
            added,
            WishOutcome::new("https://quay.io/tools/old:1", Some(5), Outcome::Unchanged),
            WishOutcome::failed("https://quay.io/tools/none:1", Some(6), "not found\u{1b}[0m"),
        ];
        report
    }

    #[test]
    fn text_lists_what_changed_and_counts_the_rest() {
        assert_eq!(
            example().to_text(),
            "added     https://quay.io/tools/app:1.2: 5 layers, 2 fetched, 48.00 MB downloaded, 50.10 MB stored, 12.0 s\n\
             failed    https://quay.io/tools/none:1 (line 6)\n          \
             not found\u{fffd}[0m\n\
             images.example.org: 1 added, 1 unchanged, 1 failed (revision 16 -> 17)\n"
        );
    }

    #[test]
    fn text_says_when_nothing_was_published() {
        let mut report = Report::new("images.example.org");
        assert_eq!(report.to_text(), "images.example.org: no wishes (nothing published)\n");
        report.revision_before = Some(3);
        report.revision = Some(3);
        report.wishes.push(WishOutcome::new("a", None, Outcome::Unchanged));
        assert_eq!(report.to_text(), "images.example.org: 1 unchanged (revision 3, nothing published)\n");
    }

    #[test]
    fn json_has_the_documented_keys_in_order() {
        let expected = r#"{"schema":1,"repository":"images.example.org","revision_before":16,"revision":17,"wishes":[{"wish":"https://quay.io/tools/app:1.*","line":4,"image":"https://quay.io/tools/app:1.2","digest":"sha256:aa","outcome":"added","error":null,"layers":{"fetched":2,"known":3},"bytes":{"downloaded":48000000,"stored":50100000,"deduplicated":7},"seconds":12.04}]}"#;
        let mut report = example();
        report.wishes.truncate(1);
        let value: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(value.to_string(), expected);
    }

    #[test]
    fn one_failed_wish_makes_the_pass_fail() {
        let mut report = example();
        assert_eq!(report.exit_status(), ExitStatus::Failed);
        report.wishes[2].ignored = true;
        assert_eq!(report.exit_status(), ExitStatus::Success);
        assert!(report.to_text().contains("none:1 (line 6), ignored\n"), "{}", report.to_text());
        report.wishes.pop();
        assert_eq!(report.exit_status(), ExitStatus::Success);
        assert_eq!(Report::new("x").exit_status(), ExitStatus::Success);
    }

    #[test]
    fn thin_images_are_told_if_they_are_news_and_fail_the_pass() {
        let mut report = Report::new("images.example.org");
        let thin = |outcome, error: Option<&str>| {
            let error = error.map(str::to_owned);
            Some(ThinOutcome { image: "https://h.example/x:1".into(), digest: None, outcome, error })
        };
        let mut wish = WishOutcome::new("https://quay.io/x:1", Some(4), Outcome::Unchanged);
        for (outcome, error, told, status) in [
            (ThinState::Unchanged, None, "", ExitStatus::Success),
            (
                ThinState::Pushed,
                None,
                "unchanged https://quay.io/x:1\n          thin image https://h.example/x:1 pushed\n",
                ExitStatus::Success,
            ),
            (
                ThinState::Failed,
                Some("access\nrefused"),
                "unchanged https://quay.io/x:1\n          thin image https://h.example/x:1 failed: access\u{fffd}refused\n",
                ExitStatus::Failed,
            ),
        ] {
            wish.thin = thin(outcome, error);
            report.wishes = vec![wish.clone()];
            let text = report.to_text();
            assert_eq!(text.strip_suffix("images.example.org: 1 unchanged (nothing published)\n"), Some(told));
            assert_eq!(report.exit_status(), status);
        }
        report.wishes[0].ignored = true;
        assert_eq!(report.exit_status(), ExitStatus::Success);
        assert!(report.to_json().contains("\"outcome\": \"failed\""), "{}", report.to_json());
    }

    #[test]
    fn an_image_for_which_the_store_has_no_room_fails_the_pass() {
        let name = image::reference::PublicName::parse("quay.io/x:1").unwrap();
        let mut report = Report::new("images.example.org");
        report.wishes.push(WishOutcome::new("https://quay.io/x:1", Some(4), Outcome::Unchanged));
        for (state, told, status) in [
            (PodmanState::Unchanged, "", ExitStatus::Success),
            (PodmanState::Added, "added to the store for Podman as quay.io/x:1", ExitStatus::Success),
            (PodmanState::Full, "the store for Podman has 7 images already", ExitStatus::Failed),
        ] {
            report.wishes[0].podman = Some(PodmanOutcome::new(&name, state, 7));
            assert!(
                report.to_text().contains(told)
                    && report.to_text().lines().count() == 1 + 2 * usize::from(!told.is_empty())
            );
            assert_eq!(report.exit_status(), status);
        }
    }

    #[test]
    fn every_outcome_is_counted_in_the_summary() {
        let mut report = Report::new("r");
        for outcome in Outcome::ALL {
            report.wishes.push(WishOutcome::new("w", None, outcome));
        }
        assert!(report.to_text().contains("1 added, 1 updated, 1 removed, 1 unchanged, 1 failed"));
    }
}
