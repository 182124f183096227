//! `lint`: everything that is wrong with a list, for people and for checks of merge requests.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Problem, Severity, WishList, WishListError};
use crate::error::{ExitStatus, printable};

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
}

impl Lint {
    /// Reads a file. A file that is no YAML at all is an error; a list with problems is a result.
    pub fn read(path: &Path) -> Result<Self, WishListError> {
        Self::of(path, WishList::read(path))
    }

    fn of(path: &Path, list: Result<WishList, WishListError>) -> Result<Self, WishListError> {
        let (wishes, problems) = match list {
            Ok(list) => (Some(list.wishes.len()), list.problems),
            Err(WishListError::Header { problems }) => (None, problems),
            Err(error) => return Err(error),
        };
        Ok(Self { schema: 1, file: path.to_owned(), wishes, problems })
    }

    /// 3 if there is an error, 0 if there are at most warnings.
    pub fn exit_status(&self) -> ExitStatus {
        if self.count(Severity::Error) == 0 { ExitStatus::Success } else { ExitStatus::Config }
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// One line for every problem, and a summary.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        for problem in &self.problems {
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
