//! Wish lists: what the operator wants to be published.
//!
//! ```yaml
//! version: 2                                # lists of the existing tool are version 1
//! user: robot-publisher                     # account for pushing thin images
//! cvmfs_repo: images.example.org            # the repository
//! output_format: '$(scheme)://$(registry)/$(repository)_thin:$(tag)'
//! podman: ['https://quay.io/example/*']     # images in the store for Podman: true, false, or patterns
//! ignoreErrors: ['https://quay.io/unsteady/*']
//! include: [teams/physics.yaml]             # from here on: version 2 only
//! aliases: {mirror.example.org: docker.io}
//! defaults: {platforms: [linux/amd64, linux/arm64], owner: lab}
//! input:
//!   - https://quay.io/example/tool:1.4*
//!   - image: https://quay.io/example/app:*
//!     tags: {semver: '>=2', newest: 3}
//!     products: [flat]
//! ```
//!
//! `doc/WISHLISTS.md` is the reference; `schema.json` the same for programs.
//!
//! Two kinds of mistake:
//! - Those that leave no list to work on (no YAML, no repository, an unknown version) are a [`WishListError`]; nothing
//!   is done.
//! - Everything else is a [`Problem`]. All problems are found in one reading, each with file, line and field. A bad
//!   entry is a wish that has failed already ([`WishList::failed_wishes`]); the others proceed.
//!
//! Unknown keys are warnings in version 1, because lists of the existing tool have to work unchanged, and mistakes in version 2. Invariant: two wishes never
//! have the same public name, as far as that can be known without asking a registry.

mod fields;
mod lint;
mod names;
mod options;
mod reader;
mod selection;
mod template;
mod yaml;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::reference::Wish as Source;
use serde::Serialize;

pub use self::lint::{Lint, absent};
pub(crate) use self::names::glob;
pub use self::options::{ImageOptions, PlainPath, Products, Quota, Retention, SignatureRequirement};
pub use self::selection::{Newest, Order, TagSelection};
pub use self::template::expand_output_format;
use self::yaml::Located;
use crate::convert::Request;
use crate::error::CommandError;
use crate::podman::InStore;
use crate::report::WishOutcome;

/// Largest list that is read, with all that it includes. The largest known one has 562 entries in some 50 kB.
const MAX_BYTES: u64 = 16 << 20;
/// What `schema` prints: the JSON Schema of wish lists. What it accepts and refuses, the reader does as well.
pub const SCHEMA: &str = include_str!("wishlist/schema.json");

/// A wish list that can be worked on.
#[derive(Debug, Clone, PartialEq)]
pub struct WishList {
    /// Version of its syntax.
    pub version: u32,
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
    /// Everything that is wrong, in the order of the files.
    pub problems: Vec<Problem>,
    /// The file, and those that it includes.
    pub files: Vec<PathBuf>,
}

/// A valid entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// The file that it stands in.
    pub file: Arc<Path>,
    /// Its line, counted from 1.
    pub line: u64,
    /// The field, `input[0]`.
    pub field: String,
    /// The name as it stands in the file.
    pub text: String,
    /// What it means.
    pub source: Source,
    /// What else is said of it.
    pub options: Arc<ImageOptions>,
    /// Which of the tags that a wildcard takes are meant.
    pub tags: TagSelection,
}

impl Wish {
    /// What is asked for. `source` is the image itself, or one of those that it names.
    pub fn request(&self, source: Source) -> Request {
        Request {
            line: Some(self.line),
            owner: self.options.owner.clone(),
            priority: self.options.priority.unwrap_or_default(),
            options: self.options.clone(),
            tags: if source == self.source { self.tags.clone() } else { TagSelection::default() },
            ..Request::new(&self.text, source)
        }
    }
}

/// A list, or why there is none, and the files that were looked at for it: when one of them changes, it is worth another reading.
#[derive(Debug)]
pub struct Reading {
    /// The file, and those that it includes, also those that can't be read.
    pub files: Vec<PathBuf>,
    /// What came of it.
    pub list: Result<WishList, WishListError>,
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
        Self::reading(path).list
    }

    /// The same, with the files that were looked at.
    pub fn reading(path: &Path) -> Reading {
        match read_limited(path, MAX_BYTES) {
            Ok(bytes) => reader::read(path, &bytes),
            Err(error) => Reading { files: vec![path.to_owned()], list: Err(error) },
        }
    }

    /// Reads a list from the content of the file `path`; what it includes is read from disk.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, WishListError> {
        reader::read(path, bytes).list
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

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, WishListError> {
    let unreadable = |source| WishListError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 > limit {
        true => Err(WishListError::TooLarge { path: path.to_owned() }),
        false => Ok(bytes),
    }
}

fn tree(path: &Path, bytes: &[u8]) -> Result<Located, WishListError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count() as u64;
        WishListError::NotText { path: path.to_owned(), line }
    })?;
    yaml::parse(text).map_err(|error| WishListError::Yaml {
        path: path.to_owned(),
        line: error.line,
        column: error.column,
        message: error.message,
    })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_version_2;
