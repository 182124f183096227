//! Wish lists, version 1: what the operator wants to be published.
//!
//! ```yaml
//! version: 1
//! user: robot-publisher                     # account for pushing thin images
//! cvmfs_repo: images.example.org            # the repository
//! output_format: '$(scheme)://$(registry)/$(repository)_thin:$(tag)'
//! podman: ['https://quay.io/example/*']     # images in the store for Podman: true, false, or patterns
//! ignoreErrors: ['https://quay.io/unsteady/*']
//! input:
//!   - https://quay.io/example/tool:1.4*
//! ```
//!
//! Two kinds of mistake:
//! - Those that leave no list to work on (no YAML, no repository, an unknown version) are a [`WishListError`]; nothing
//!   is done.
//! - Everything else is a [`Problem`]. All problems are found in one reading, each with file, line and field. A bad
//!   entry is a wish that has failed already ([`WishList::failed_wishes`]); the others proceed.
//!
//! Unknown keys are warnings, because lists of the existing tool have to work unchanged. Invariant: two wishes never
//! have the same public name, as far as that can be known without asking a registry.

mod lint;
mod names;
mod template;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use image::reference::{ImageSource, ReferenceError, Wish as Source};
use serde::Serialize;

pub use self::lint::Lint;
pub(crate) use self::names::glob;
pub use self::template::expand_output_format;
use self::yaml::{Located, Node};
use crate::cli::fqrn;
use crate::error::CommandError;
use crate::podman::InStore;
use crate::report::WishOutcome;

/// Largest file that is read. The largest known list has 562 entries in some 50 kB.
const MAX_BYTES: u64 = 16 << 20;
/// The keys of version 1.
const KEYS: [&str; 7] = ["version", "user", "cvmfs_repo", "output_format", "podman", "input", "ignoreErrors"];

/// A wish list that can be worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct WishList {
    /// Name of the repository (`cvmfs_repo`).
    pub repository: String,
    /// Account for pushing thin images; may be empty.
    pub user: String,
    /// Template of thin image names, see [`expand_output_format`].
    pub output_format: Option<String>,
    /// Which images go into the store for Podman (`podman`).
    pub podman: InStore,
    /// Patterns of whole names whose failures don't count.
    pub ignore_errors: Vec<String>,
    /// The valid entries, in the order of the file.
    pub wishes: Vec<Wish>,
    /// Everything that is wrong, in the order of the file.
    pub problems: Vec<Problem>,
}

/// A valid entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// Its line, counted from 1.
    pub line: u64,
    /// The entry as it stands in the file.
    pub text: String,
    /// What it means.
    pub source: Source,
}

/// Something wrong in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u64,
    /// The field: a key, or `input[0]`, counted from 0.
    pub field: String,
    /// What is wrong, and what to write instead.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// The entry of the list that is a failed wish because of this problem.
    pub wish: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, field, message, severity, .. } = self;
        let severity = match severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        write!(f, "{}:{line}: {severity}{field}: {message}", file.display())
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was wished for can't be had.
    Error,
    /// Probably a slip; everything that is understood is done.
    Warning,
}

/// A file that is no wish list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WishListError {
    /// It can't be read.
    #[error("cannot read the wish list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is far larger than any list.
    #[error("{}: larger than {} MiB; this is no wish list", path.display(), MAX_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no text.
    #[error("{}:{line}: not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line with the first offending byte.
        line: u64,
    },
    /// It is no YAML, or YAML beyond the limits.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1; 0 if the parser can't tell.
        line: u64,
        /// Column, counted from 1; 0 if the parser can't tell.
        column: u64,
        /// What the parser says.
        message: String,
    },
    /// Its header is unusable. All problems of the file are listed, those of entries as well.
    #[error("{}", lines(problems))]
    Header {
        /// At least one error outside of the entries.
        problems: Vec<Problem>,
    },
    /// The list has bad entries, and the operator wants all or nothing.
    #[error("{}", lines(problems))]
    Strict {
        /// All problems.
        problems: Vec<Problem>,
    },
}

impl From<WishListError> for CommandError {
    fn from(error: WishListError) -> Self {
        Self::config(error).context("the wish list can't be used; nothing was done")
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl WishList {
    /// Reads a list from a file.
    pub fn read(path: &Path) -> Result<Self, WishListError> {
        let unreadable = |source| WishListError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(WishListError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &bytes)
    }

    /// Reads a list from the content of the file `path`, whose name is only used in messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, WishListError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64;
            WishListError::NotText { path: path.to_owned(), line }
        })?;
        let tree = yaml::parse(text).map_err(|error| WishListError::Yaml {
            path: path.to_owned(),
            line: error.line,
            column: error.column,
            message: error.message,
        })?;
        Reader { path, problems: Vec::new(), unusable: false }.list(&tree)
    }

    /// The list itself if all its entries are valid; warnings are no obstacle.
    pub fn strict(self) -> Result<Self, WishListError> {
        if self.problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(WishListError::Strict { problems: self.problems });
        }
        Ok(self)
    }

    /// An outcome for every entry that is no valid wish.
    pub fn failed_wishes(&self) -> impl Iterator<Item = WishOutcome> {
        self.problems.iter().filter_map(|problem| {
            let wish = problem.wish.as_ref()?;
            let mut outcome = WishOutcome::failed(wish, Some(problem.line), problem.to_string());
            outcome.ignored = self.ignores_errors(wish);
            Some(outcome)
        })
    }

    /// Does the list say that failures of this image don't count? `whole_name` is `scheme://REG/REPOSITORY:TAG`.
    pub fn ignores_errors(&self, whole_name: &str) -> bool {
        self.ignore_errors.iter().any(|pattern| glob(pattern, whole_name))
    }
}

/// Interprets the tree and gathers what is wrong with it.
struct Reader<'a> {
    path: &'a Path,
    problems: Vec<Problem>,
    /// Whether the header is so wrong that there is no list.
    unusable: bool,
}

impl Reader<'_> {
    fn list(mut self, tree: &Located) -> Result<WishList, WishListError> {
        let mut list = WishList {
            repository: String::new(),
            user: String::new(),
            output_format: None,
            podman: InStore::Follow,
            ignore_errors: Vec::new(),
            wishes: Vec::new(),
            problems: Vec::new(),
        };
        let top = yaml::line(tree).max(1);
        let (mut version, mut repository, mut input) = (false, false, false);
        match &tree.value {
            Node::Mapping(entries) => {
                for (key, value) in entries {
                    match key.value.0.as_str() {
                        "version" => {
                            version = true;
                            self.version(value);
                        }
                        "user" => list.user = self.text("user", value).unwrap_or_default(),
                        "cvmfs_repo" => {
                            repository = true;
                            list.repository = self.repository(value).unwrap_or_default();
                        }
                        "output_format" => list.output_format = self.output_format(value),
                        "podman" => list.podman = self.podman(value),
                        "ignoreErrors" => list.ignore_errors = self.patterns("ignoreErrors", value),
                        "input" => {
                            input = true;
                            list.wishes = self.wishes(value);
                        }
                        unknown => {
                            let meant = names::nearest(unknown, &KEYS)
                                .map_or_else(String::new, |known| format!("; did you mean {known}?"));
                            self.warn(yaml::line(key), unknown, format!("unknown key, ignored{meant}"));
                        }
                    }
                }
            }
            other => self.refuse(
                top,
                "wish list",
                format!("expected a mapping with {}, found {}", KEYS.join(", "), other.kind()),
            ),
        }
        if !version && !self.unusable {
            self.warn(top, "version", "missing; 1 is assumed".to_owned());
        }
        if !repository && !self.unusable {
            self.refuse(top, "cvmfs_repo", "missing; name the repository, for example images.example.org".to_owned());
        }
        if !input && !self.unusable {
            self.warn(top, "input", "missing; the list wishes for nothing".to_owned());
        }
        self.problems.sort_by_key(|problem| problem.line);
        if self.unusable {
            return Err(WishListError::Header { problems: self.problems });
        }
        list.problems = self.problems;
        Ok(list)
    }

    fn version(&mut self, value: &Located) {
        match &value.value {
            Node::Scalar(text) if text == "1" => {}
            Node::Scalar(text) => self.refuse(
                yaml::line(value),
                "version",
                format!("wish lists of version {text:?} are not known; this program reads version 1"),
            ),
            other => self.refuse(yaml::line(value), "version", format!("expected 1, found {}", other.kind())),
        }
    }

    fn repository(&mut self, value: &Located) -> Option<String> {
        let text = self.text("cvmfs_repo", value)?;
        fqrn(&text).map_err(|message| self.refuse(yaml::line(value), "cvmfs_repo", format!("{text:?}: {message}"))).ok()
    }

    fn output_format(&mut self, value: &Located) -> Option<String> {
        let text = self.text("output_format", value)?;
        for unknown in template::unknown_variables(&text) {
            let known = template::VARIABLES.map(|name| format!("$({name})")).join(", ");
            self.warn(yaml::line(value), "output_format", format!("unknown variable $({unknown}); there are {known}"));
        }
        (!text.is_empty()).then_some(text)
    }

    fn podman(&mut self, value: &Located) -> InStore {
        match &value.value {
            Node::Scalar(text) if text == "true" => InStore::All,
            Node::Scalar(text) if text == "false" => InStore::Nothing,
            Node::Scalar(text) => {
                let message = format!("expected true, false or a list of patterns, found {text:?}");
                self.refuse(yaml::line(value), "podman", message);
                InStore::Follow
            }
            _ => InStore::Matching(self.patterns("podman", value)),
        }
    }

    fn patterns(&mut self, field: &str, value: &Located) -> Vec<String> {
        self.items(field, value)
            .iter()
            .enumerate()
            .filter_map(|(index, item)| match &item.value {
                Node::Scalar(pattern) => Some(pattern.clone()),
                other => {
                    let message = format!("expected a pattern, found {}; ignored", other.kind());
                    self.warn(yaml::line(item), &format!("{field}[{index}]"), message);
                    None
                }
            })
            .collect()
    }

    fn wishes(&mut self, value: &Located) -> Vec<Wish> {
        let mut wishes = Vec::new();
        // Where each wish, and each public name, was seen first.
        let mut seen: HashMap<Source, u64> = HashMap::new();
        let mut names: HashMap<String, u64> = HashMap::new();
        for (index, item) in self.items("input", value).iter().enumerate() {
            let (line, field) = (yaml::line(item), format!("input[{index}]"));
            let text = match &item.value {
                Node::Scalar(text) => text,
                other => {
                    let message = format!("expected the name of an image, found {}", other.kind());
                    self.fail(line, field, message, other.kind());
                    continue;
                }
            };
            let source = match Source::parse(text) {
                Ok(source) => source,
                Err(error) => {
                    self.fail(line, field, error.to_string(), text);
                    continue;
                }
            };
            if let Some(first) = seen.get(&source) {
                self.warn(line, &field, format!("{text:?} is wished for in line {first} already"));
                continue;
            }
            match public_name(&source) {
                Ok(Some(name)) => {
                    if let Some(first) = names.get(&name) {
                        let message = format!("{text:?} would be published as {name}, as would be line {first}");
                        self.fail(line, field, message, text);
                        continue;
                    }
                    names.insert(name, line);
                }
                Ok(None) => {}
                Err(error) => {
                    self.fail(line, field, error.to_string(), text);
                    continue;
                }
            }
            seen.insert(source.clone(), line);
            wishes.push(Wish { line, text: text.clone(), source });
        }
        wishes
    }

    /// The text of a header field; nothing at all is an empty text.
    fn text(&mut self, field: &str, value: &Located) -> Option<String> {
        match &value.value {
            Node::Scalar(text) => Some(text.clone()),
            Node::Null => Some(String::new()),
            other => {
                self.refuse(yaml::line(value), field, format!("expected a text, found {}", other.kind()));
                None
            }
        }
    }

    /// The items of a list; nothing at all is an empty list.
    fn items<'v>(&mut self, field: &str, value: &'v Located) -> &'v [Located] {
        match &value.value {
            Node::Sequence(items) => items,
            Node::Null => &[],
            other => {
                self.refuse(yaml::line(value), field, format!("expected a list, found {}", other.kind()));
                &[]
            }
        }
    }

    /// Notes a mistake that leaves no list to work on.
    fn refuse(&mut self, line: u64, field: &str, message: String) {
        self.unusable = true;
        self.note(line, field.to_owned(), message, Severity::Error, None);
    }

    /// Notes an entry that is no wish.
    fn fail(&mut self, line: u64, field: String, message: String, wish: &str) {
        self.note(line, field, message, Severity::Error, Some(wish.to_owned()));
    }

    fn warn(&mut self, line: u64, field: &str, message: String) {
        self.note(line, field.to_owned(), message, Severity::Warning, None);
    }

    fn note(&mut self, line: u64, field: String, message: String, severity: Severity, wish: Option<String>) {
        self.problems.push(Problem { file: self.path.to_owned(), line, field, message, severity, wish });
    }
}

/// Where a wish will be published, as far as it can be known now; an error if that is no place for an image.
fn public_name(source: &Source) -> Result<Option<String>, ReferenceError> {
    match source {
        Source::Image(image @ ImageSource::Registry(_)) => Ok(Some(image.public_path(None)?.to_string())),
        // The tag of an image on disk may stand in its file; its directory part is known.
        Source::Image(on_disk) => on_disk.public_path(None).map(|_| None),
        Source::Wildcard(wildcard) => {
            // Any tag that the pattern takes shows whether the directory is one for images.
            let tag = wildcard.pattern().as_str().replace('*', "0");
            wildcard.select(&tag).map_or(Ok(None), |image| image.public_path().map(|_| None))
        }
    }
}

#[cfg(test)]
mod tests;
