//! From the trees of a list and of the files that it includes to wishes, with everything that is wrong gathered.
//!
//! Two kinds of mistake: `refuse` leaves no list to work on, `fail` costs one entry. An included file that can't be read is of the
//! first kind: nobody knows what it asks for.

mod entries;
mod header;
mod include;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::reference::{RegistryAliases, Wish as Source};

use super::options::ImageOptions;
use super::selection::TagSelection;
use super::yaml::{self, Located, Node};
use super::{MAX_BYTES, Problem, Reading, Severity, WishList, WishListError, names, tree};
use crate::podman::InStore;

/// The keys of version 1.
const KEYS: [&str; 7] = ["version", "user", "cvmfs_repo", "output_format", "podman", "input", "ignoreErrors"];
/// Those that version 2 has besides.
const KEYS_OF_2: [&str; 10] = [
    "version",
    "user",
    "cvmfs_repo",
    "output_format",
    "podman",
    "input",
    "ignoreErrors",
    "include",
    "aliases",
    "defaults",
];
/// Those that an included file may have.
const KEYS_OF_INCLUDED: [&str; 5] = ["version", "cvmfs_repo", "input", "include", "defaults"];

/// A line of a file.
#[derive(Debug, Clone)]
struct Place {
    file: Arc<Path>,
    line: u64,
}

impl Place {
    /// What to call it in a message about something in `file`.
    fn seen_from(&self, file: &Path) -> String {
        match *self.file == *file {
            true => format!("line {}", self.line),
            false => format!("{}:{}", self.file.display(), self.line),
        }
    }
}

/// The file that is being read.
#[derive(Debug)]
struct File {
    path: Arc<Path>,
    version: u32,
    is_top: bool,
    /// What its entries have where they say nothing.
    defaults: Arc<ImageOptions>,
    /// The files that include it, and itself: real paths.
    chain: Vec<PathBuf>,
}

impl File {
    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

/// What an entry says besides its name.
type Details = (Arc<ImageOptions>, TagSelection);

pub(super) struct Reader {
    list: WishList,
    /// Whether the header is so wrong that there is no list.
    unusable: bool,
    aliases: RegistryAliases,
    /// Where each wish was seen first, and with what.
    seen: HashMap<Source, (Place, Details)>,
    /// Where each public name was.
    names: HashMap<String, Place>,
    /// What each owner may have, and where that stands.
    quotas: HashMap<String, (u64, Place)>,
    included: HashSet<PathBuf>,
    bytes_left: u64,
}

/// Reads a list from the content of the file `path`.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Reading {
    let tree = match tree(path, bytes) {
        Ok(tree) => tree,
        Err(error) => return Reading { files: vec![path.to_owned()], list: Err(error) },
    };
    let list = WishList {
        version: 1,
        repository: String::new(),
        user: String::new(),
        output_format: None,
        podman: InStore::Follow,
        ignore_errors: Vec::new(),
        wishes: Vec::new(),
        problems: Vec::new(),
        files: vec![path.to_owned()],
    };
    let mut reader = Reader {
        list,
        unusable: false,
        aliases: RegistryAliases::default(),
        seen: HashMap::new(),
        names: HashMap::new(),
        quotas: HashMap::new(),
        included: HashSet::new(),
        bytes_left: MAX_BYTES.saturating_sub(bytes.len() as u64),
    };
    let chain: Vec<PathBuf> = std::fs::canonicalize(path).into_iter().collect();
    reader.included.extend(chain.iter().cloned());
    let defaults = Arc::default();
    reader.file(File { path: path.into(), version: 1, is_top: true, defaults, chain }, &tree);
    reader.own_entries_win();
    let Reader { mut list, unusable, .. } = reader;
    let order: HashMap<&Path, usize> = list.files.iter().enumerate().map(|(n, file)| (file.as_path(), n)).collect();
    list.problems.sort_by_key(|problem| (order.get(problem.file.as_path()).copied(), problem.line));
    let files = list.files.clone();
    let list = if unusable { Err(WishListError::Header { problems: list.problems }) } else { Ok(list) };
    Reading { files, list }
}

impl Reader {
    fn file(&mut self, mut file: File, tree: &Located) {
        let top = yaml::line(tree).max(1);
        let Node::Mapping(entries) = &tree.value else {
            let message = format!("expected a mapping with {}, found {}", KEYS.join(", "), tree.value.kind());
            return self.refuse(&file, top, "wish list", message);
        };
        let find = |name: &str| entries.iter().find(|(key, _)| key.value.0 == name).map(|(_, value)| value);
        match find("version") {
            Some(value) => file.version = self.version(&file, value),
            None => self.warn(&file, top, "version", "missing; 1 is assumed".to_owned()),
        }
        self.keys(&file, entries);
        if file.is_top {
            self.list.version = file.version;
            self.header(&file, top, &find);
        } else if let Some(value) = find("cvmfs_repo") {
            self.same_repository(&file, value);
        }
        if file.version >= 2 {
            // Nobody has said that what only credentials can read is meant for everybody.
            let public = Some(file.defaults.public.unwrap_or(false));
            file.defaults = Arc::new(ImageOptions { public, ..ImageOptions::clone(&file.defaults) });
            if let Some(value) = find("defaults") {
                file.defaults = self.defaults(&file, value);
            }
            if let Some(value) = find("include") {
                self.includes(&file, value);
            }
        }
        match find("input") {
            Some(value) => {
                for (index, item) in self.items(&file, "input", value).iter().enumerate() {
                    self.entry(&file, index, item);
                }
            }
            None if file.is_top && !self.unusable && find("include").is_none() => {
                self.warn(&file, top, "input", "missing; the list wishes for nothing".to_owned());
            }
            None => {}
        }
    }

    /// Notes keys that mean nothing. Lists of version 1 come from the existing tool, which ignores them.
    fn keys(&mut self, file: &File, entries: &[(serde_saphyr::Spanned<yaml::Key>, Located)]) {
        for (key, _) in entries {
            let (line, name) = (yaml::line(key), key.value.0.as_str());
            let known: &[&str] = match (file.version, file.is_top) {
                (2, true) => &KEYS_OF_2,
                (2, false) => &KEYS_OF_INCLUDED,
                _ => &KEYS,
            };
            if known.contains(&name) {
                if file.version == 1 && !file.is_top && !KEYS_OF_INCLUDED.contains(&name) {
                    self.warn(file, line, name, "has no effect in an included file".to_owned());
                }
                continue;
            }
            let meant =
                names::nearest(name, known).map_or_else(String::new, |known| format!("; did you mean {known}?"));
            match file.version {
                2 if KEYS_OF_2.contains(&name) => {
                    self.refuse(file, line, name, "belongs into the list that includes this file".to_owned());
                }
                2 => self.refuse(file, line, name, format!("unknown key{meant}")),
                _ => self.warn(file, line, name, format!("unknown key, ignored{meant}")),
            }
        }
    }

    /// The text of a header field; nothing at all is an empty text.
    fn text(&mut self, file: &File, field: &str, value: &Located) -> Option<String> {
        match &value.value {
            Node::Scalar(text) => Some(text.clone()),
            Node::Null => Some(String::new()),
            other => {
                self.refuse(file, yaml::line(value), field, format!("expected a text, found {}", other.kind()));
                None
            }
        }
    }

    /// The items of a list; nothing at all is an empty list.
    fn items<'v>(&mut self, file: &File, field: &str, value: &'v Located) -> &'v [Located] {
        match &value.value {
            Node::Sequence(items) => items,
            Node::Null => &[],
            other => {
                self.refuse(file, yaml::line(value), field, format!("expected a list, found {}", other.kind()));
                &[]
            }
        }
    }

    /// Notes a mistake that leaves no list to work on.
    fn refuse(&mut self, file: &File, line: u64, field: &str, message: String) {
        self.unusable = true;
        self.note(file, line, field.to_owned(), message, Severity::Error, None);
    }

    /// Notes an entry that is no wish.
    fn fail(&mut self, file: &File, line: u64, field: String, message: String, wish: &str) {
        self.note(file, line, field, message, Severity::Error, Some(wish.to_owned()));
    }

    fn warn(&mut self, file: &File, line: u64, field: &str, message: String) {
        self.note(file, line, field.to_owned(), message, Severity::Warning, None);
    }

    fn note(
        &mut self,
        file: &File,
        line: u64,
        field: String,
        message: String,
        severity: Severity,
        wish: Option<String>,
    ) {
        self.list.problems.push(Problem { file: file.path.to_path_buf(), line, field, message, severity, wish });
    }
}
