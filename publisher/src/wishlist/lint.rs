//! `lint`: everything that is wrong with a list, for people and for checks of merge requests.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use image::reference::Wish as Source;
use parking_lot::Mutex;
use serde::Serialize;

use super::{Problem, Severity, Wish, WishList, WishListError};
use crate::error::{ExitStatus, one_line, printable};
use crate::source::{Asked, Sources};

/// Images asked for at the same time.
const ASKED_AT_ONCE: usize = 16;

/// The findings about one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lint {
    /// Version of the JSON form.
    schema: u32,
    /// The file.
    pub file: PathBuf,
    /// Number of valid wishes; absent if the header makes the file unusable.
    pub wishes: Option<usize>,
    /// Everything wrong.
    pub problems: Vec<Problem>,
    /// Wishes that no registry can fulfil now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub absent: Vec<Problem>,
}

impl Lint {
    /// What a reading found. A file that is no YAML at all is an error; a list with problems is a result.
    pub fn of(path: &Path, list: Result<WishList, WishListError>) -> Result<Self, WishListError> {
        let (wishes, problems) = match list {
            Ok(list) => (Some(list.wishes.len()), list.problems),
            Err(WishListError::Header { problems }) => (None, problems),
            Err(error) => return Err(error),
        };
        Ok(Self { schema: 1, file: path.to_owned(), wishes, problems, absent: Vec::new() })
    }

    /// 3 if there is an error in the list, else 1 if a registry lacks something, 0 if there are at most warnings.
    pub fn exit_status(&self) -> ExitStatus {
        let is_error = |problem: &Problem| problem.severity == Severity::Error;
        match (self.problems.iter().any(is_error), self.absent.iter().any(is_error)) {
            (true, _) => ExitStatus::Config,
            (false, true) => ExitStatus::Failed,
            (false, false) => ExitStatus::Success,
        }
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().chain(&self.absent).filter(|problem| problem.severity == severity).count()
    }

    /// One line for every problem, and a summary.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        for problem in self.problems.iter().chain(&self.absent) {
            let _ = writeln!(text, "{}", printable(&problem.to_string()));
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let wishes = self.wishes.map_or_else(|| "unusable".to_owned(), |wishes| format!("{wishes} valid wishes"));
        let file = self.file.display().to_string();
        let _ = writeln!(text, "{}: {wishes}, {errors} errors, {warnings} warnings", printable(&file));
        text
    }

    /// One JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        // A path that is no UTF-8 can't be printed as JSON: it is shown as well as possible.
        let shown = Self { file: self.file.to_string_lossy().into_owned().into(), ..self.clone() };
        let mut text = serde_json::to_string_pretty(&shown).expect("strings and numbers only");
        text.push('\n');
        text
    }
}

/// Asks for every image of a list whether it is there, and for every wildcard whether it takes a tag. Of images whose failures
/// don't count, the answer is a warning.
pub fn absent(list: &WishList, sources: &Sources) -> Vec<Problem> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<(usize, Problem)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..ASKED_AT_ONCE.min(list.wishes.len()) {
            scope.spawn(|| {
                while let Some(n) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < list.wishes.len()) {
                    let wish = &list.wishes[n];
                    let Some(message) = why_absent(wish, sources) else { continue };
                    let severity = match list.ignores_errors(&wish.source.to_string()) {
                        true => Severity::Warning,
                        false => Severity::Error,
                    };
                    let (file, line, field) = (wish.file.to_path_buf(), wish.line, wish.field.clone());
                    let wish = Some(wish.text.clone());
                    found.lock().push((n, Problem { file, line, field, message, severity, wish }));
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(n, _)| *n);
    found.into_iter().map(|(_, problem)| problem).collect()
}

fn why_absent(wish: &Wish, sources: &Sources) -> Option<String> {
    let credentials = wish.options.credentials.as_deref();
    let wildcard = match &wish.source {
        Source::Image(image) => {
            return sources.resolve(Asked::new(image, credentials)).err().map(|error| one_line(&error));
        }
        Source::Wildcard(wildcard) => wildcard,
    };
    match sources.tags(wildcard.repository(), credentials) {
        Ok(tags) => {
            let taken = tags.iter().map(String::as_str).filter(|tag| wildcard.select(tag).is_some());
            let none = wish.tags.candidates(taken).is_empty();
            none.then(|| format!("{wildcard} takes none of the {} tags that are there", tags.len()))
        }
        Err(error) => Some(one_line(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lint(text: &str) -> Result<Lint, WishListError> {
        let path = Path::new("w.yaml");
        Lint::of(path, WishList::parse(path, text.as_bytes()))
    }

    #[test]
    fn a_sound_list_passes() {
        let lint = lint("version: 1\ncvmfs_repo: a.b\ninput: ['debian:12']\n").unwrap();
        assert_eq!(lint.to_text(), "w.yaml: 1 valid wishes, 0 errors, 0 warnings\n");
        assert_eq!(lint.exit_status(), ExitStatus::Success);
    }

    #[test]
    fn bad_entries_fail_and_warnings_do_not() {
        let lint1 = lint("version: 1\ncvmfs_repo: a.b\ninputs: []\ninput:\n- debian:12\n- de bian\n").unwrap();
        let text = lint1.to_text();
        assert!(text.contains("w.yaml:3: warning: inputs: unknown key, ignored; did you mean input?\n"), "{text}");
        assert!(text.contains("w.yaml:6: input[1]: "), "{text}");
        assert!(text.ends_with("w.yaml: 1 valid wishes, 1 errors, 1 warnings\n"), "{text}");
        assert_eq!(lint1.exit_status(), ExitStatus::Config);

        let lint2 = lint("version: 1\ncvmfs_repo: a.b\ninputs: []\ninput: []\n").unwrap();
        assert_eq!(lint2.exit_status(), ExitStatus::Success);
    }

    #[test]
    fn an_unusable_header_is_a_finding_and_broken_yaml_an_error() {
        let unusable = lint("version: 7\ninput: ['de bian']\n").unwrap();
        assert_eq!((unusable.wishes, unusable.count(Severity::Error)), (None, 2));
        assert!(unusable.to_text().contains("w.yaml: unusable"));
        assert!(matches!(lint("a: ["), Err(WishListError::Yaml { .. })));
    }

    #[test]
    fn json_has_all_fields_of_a_problem() {
        let text = lint("version: 1\ncvmfs_repo: a.b\ninput: ['de bian']\n").unwrap().to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["wishes"], 0);
        let problem = &value["problems"][0];
        assert_eq!(
            (&problem["file"], &problem["line"], &problem["field"], &problem["severity"], &problem["wish"]),
            (&"w.yaml".into(), &3.into(), &"input[0]".into(), &"error".into(), &"de bian".into())
        );
    }
}
