//! From the trees of a list and of the files that it includes to wishes, with everything that is wrong gathered.
//!
//! Two kinds of mistake: `refuse` leaves no list to work on, `fail` costs one entry. An included file that can't be read is of the
//! first kind: nobody knows what it asks for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::reference::{ImageSource, ReferenceError, RegistryAliases, Wish as Source};

use super::fields::{Fault, Fields, OPTIONS, join};
use super::options::ImageOptions;
use super::selection::TagSelection;
use super::yaml::{self, Located, Node};
use super::{
    MAX_BYTES, Problem, Reading, Severity, Wish, WishList, WishListError, names, read_limited, template, tree,
};
use crate::cli::fqrn;
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
/// How deep files include one another.
const MAX_DEPTH: usize = 8;
/// Most files of one list.
const MAX_FILES: usize = 256;

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

    /// What is said once for the whole list.
    fn header<'v>(&mut self, file: &File, top: u64, find: &impl Fn(&str) -> Option<&'v Located>) {
        if let Some(value) = find("user") {
            self.list.user = self.text(file, "user", value).unwrap_or_default();
        }
        match find("cvmfs_repo") {
            Some(value) => self.list.repository = self.repository(file, value).unwrap_or_default(),
            None if !self.unusable || file.version == 2 => {
                let message = "missing; name the repository, for example images.example.org";
                self.refuse(file, top, "cvmfs_repo", message.to_owned());
            }
            None => {}
        }
        if let Some(value) = find("output_format") {
            self.list.output_format = self.output_format(file, value);
        }
        if let Some(value) = find("podman") {
            self.list.podman = self.podman(file, value);
        }
        if let Some(value) = find("ignoreErrors") {
            self.list.ignore_errors = self.patterns(file, "ignoreErrors", value);
        }
        if let Some(value) = find("aliases").filter(|_| file.version == 2) {
            self.aliases(file, value);
        }
    }

    fn version(&mut self, file: &File, value: &Located) -> u32 {
        let line = yaml::line(value);
        match &value.value {
            Node::Scalar(text) if text == "1" => return 1,
            Node::Scalar(text) if text == "2" => return 2,
            Node::Scalar(text) => {
                let message =
                    format!("wish lists of version {text:?} are not known; this program reads versions 1 and 2");
                self.refuse(file, line, "version", message);
            }
            other => self.refuse(file, line, "version", format!("expected 1 or 2, found {}", other.kind())),
        }
        1
    }

    fn repository(&mut self, file: &File, value: &Located) -> Option<String> {
        let text = self.text(file, "cvmfs_repo", value)?;
        let refused = fqrn(&text).map_err(|message| format!("{text:?}: {message}"));
        refused.map_err(|message| self.refuse(file, yaml::line(value), "cvmfs_repo", message)).ok()
    }

    fn same_repository(&mut self, file: &File, value: &Located) {
        let Some(found) = self.text(file, "cvmfs_repo", value) else { return };
        if found != self.list.repository {
            let message = format!("{found:?}: the list that includes this file is for {}", self.list.repository);
            self.refuse(file, yaml::line(value), "cvmfs_repo", message);
        }
    }

    fn output_format(&mut self, file: &File, value: &Located) -> Option<String> {
        let text = self.text(file, "output_format", value)?;
        for unknown in template::unknown_variables(&text) {
            let known = template::VARIABLES.map(|name| format!("$({name})")).join(", ");
            let message = format!("unknown variable $({unknown}); there are {known}");
            self.warn(file, yaml::line(value), "output_format", message);
        }
        (!text.is_empty()).then_some(text)
    }

    fn podman(&mut self, file: &File, value: &Located) -> InStore {
        match &value.value {
            Node::Scalar(text) if text == "true" => InStore::All,
            Node::Scalar(text) if text == "false" => InStore::Nothing,
            Node::Scalar(text) => {
                let message = format!("expected true, false or a list of patterns, found {text:?}");
                self.refuse(file, yaml::line(value), "podman", message);
                InStore::Follow
            }
            _ => InStore::Matching(self.patterns(file, "podman", value)),
        }
    }

    fn patterns(&mut self, file: &File, field: &str, value: &Located) -> Vec<String> {
        let mut patterns = Vec::new();
        for (index, item) in self.items(file, field, value).iter().enumerate() {
            match &item.value {
                Node::Scalar(pattern) => patterns.push(pattern.clone()),
                other => {
                    let message = format!("expected a pattern, found {}; ignored", other.kind());
                    self.warn(file, yaml::line(item), &format!("{field}[{index}]"), message);
                }
            }
        }
        patterns
    }

    fn aliases(&mut self, file: &File, value: &Located) {
        let Node::Mapping(entries) = &value.value else {
            let message = format!("expected a mapping of registries, found {}", value.value.kind());
            return self.refuse(file, yaml::line(value), "aliases", message);
        };
        for (alias, registry) in entries {
            let (line, field) = (yaml::line(alias), join("aliases", &alias.value.0));
            let Some(registry) = self.text(file, &field, registry) else { continue };
            if let Err(error) = self.aliases.add(&alias.value.0, &registry) {
                self.refuse(file, line, &field, error.to_string());
            }
        }
        if let Some(alias) = self.aliases.chained().map(str::to_owned) {
            let message = "it means another alias; write the registry that is meant in the end".to_owned();
            self.refuse(file, yaml::line(value), &join("aliases", &alias), message);
        }
    }

    fn defaults(&mut self, file: &File, value: &Located) -> Arc<ImageOptions> {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let mut options = ImageOptions::default();
        let keys: Vec<&'static str> = OPTIONS.into_iter().filter(|key| *key != "startup").collect();
        for (key, value) in fields.mapping("defaults", value, &keys) {
            fields.option("defaults", key, value, &mut options);
        }
        self.thin_has_a_name(&options, "defaults", value, &mut fields);
        for Fault { line, field, message } in fields.faults {
            self.refuse(file, line, &field, message);
        }
        let options = options.or(&file.defaults);
        self.quota(file, yaml::line(value), &options);
        Arc::new(options)
    }

    fn thin_has_a_name(&self, options: &ImageOptions, at: &str, value: &Located, fields: &mut Fields<'_>) {
        if options.products.is_some_and(|products| products.thin) && self.list.output_format.is_none() {
            let message = "thin needs the key output_format of the list, which names thin images";
            fields.fault(value, &join(at, "products"), message.to_owned());
        }
    }

    /// An owner has one quota, wherever it is said.
    fn quota(&mut self, file: &File, line: u64, options: &ImageOptions) {
        let (Some(owner), Some(quota)) = (&options.owner, options.quota.owner) else { return };
        let place = Place { file: file.path.clone(), line };
        match self.quotas.get(owner).cloned() {
            Some((other, first)) if other != quota => {
                let message = format!(
                    "{owner} may have {quota} bytes here and {other} in {}; the smaller number counts",
                    first.seen_from(&file.path)
                );
                self.warn(file, line, "quota.owner", message);
                if quota < other {
                    self.quotas.insert(owner.clone(), (quota, place));
                }
            }
            Some(_) => {}
            None => drop(self.quotas.insert(owner.clone(), (quota, place))),
        }
    }

    fn includes(&mut self, file: &File, value: &Located) {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let texts = fields.texts("include", value);
        for Fault { line, field, message } in fields.faults {
            self.refuse(file, line, &field, message);
        }
        let lines: Vec<u64> = match &value.value {
            Node::Sequence(items) => items.iter().map(yaml::line).collect(),
            _ => vec![yaml::line(value)],
        };
        for (text, line) in texts.iter().zip(lines) {
            if let Err(message) = self.include(file, text) {
                self.refuse(file, line, "include", format!("{text:?}: {message}"));
            }
        }
    }

    fn include(&mut self, file: &File, text: &str) -> Result<(), String> {
        let path = file.directory().join(text);
        if file.chain.len() >= MAX_DEPTH || self.list.files.len() >= MAX_FILES {
            return Err(format!("a list has up to {MAX_FILES} files, {MAX_DEPTH} deep"));
        }
        if !self.list.files.contains(&path) {
            self.list.files.push(path.clone());
        }
        let real = std::fs::canonicalize(&path).map_err(|error| format!("cannot be read: {error}"))?;
        let top = file.chain.first().and_then(|top| top.parent());
        if !Path::new(text).is_absolute() && top.is_none_or(|top| !real.starts_with(top)) {
            return Err("leads out of the directory of the list; write an absolute path if that is meant".to_owned());
        }
        if file.chain.contains(&real) {
            return Err("includes itself, directly or through others".to_owned());
        }
        if !self.included.insert(real.clone()) {
            return Err("is included already".to_owned());
        }
        let bytes = read_limited(&path, self.bytes_left).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        self.bytes_left -= bytes.len() as u64;
        let tree = tree(&path, &bytes).map_err(|error| error.to_string())?;
        let chain = file.chain.iter().cloned().chain([real]).collect();
        let defaults = file.defaults.clone();
        self.file(File { path: path.into(), version: 1, is_top: false, defaults, chain }, &tree);
        Ok(())
    }

    fn entry(&mut self, file: &File, index: usize, item: &Located) {
        let (line, field) = (yaml::line(item), format!("input[{index}]"));
        match &item.value {
            Node::Scalar(text) => {
                let details = (file.defaults.clone(), TagSelection::default());
                self.wish(file, line, &field, text, details);
            }
            Node::Mapping(entries) if file.version == 2 => self.entry_with_options(file, &field, item, entries),
            other => {
                let message = format!("expected the name of an image, found {}", other.kind());
                self.fail(file, line, field, message, other.kind());
            }
        }
    }

    fn entry_with_options(
        &mut self,
        file: &File,
        field: &str,
        item: &Located,
        entries: &[(serde_saphyr::Spanned<yaml::Key>, Located)],
    ) {
        let mut fields = Fields { directory: file.directory(), faults: Vec::new() };
        let (mut image, mut options, mut tags) = (None, ImageOptions::default(), None);
        for (key, value) in entries {
            match key.value.0.as_str() {
                "image" => image = Some(value),
                "tags" => tags = Some(fields.tags(&join(field, "tags"), value)),
                other if fields.option(field, other, value, &mut options) => {}
                other => {
                    let known: Vec<&str> = ["image", "tags"].into_iter().chain(OPTIONS).collect();
                    fields.unknown(yaml::line(key), field, other, &known);
                }
            }
        }
        let text = match image {
            Some(value) => fields.text(&join(field, "image"), value),
            None => {
                fields.fault(item, &join(field, "image"), "missing; name the image".to_owned());
                None
            }
        };
        if tags.is_some()
            && text.as_deref().and_then(|t| Source::parse(t).ok()).is_some_and(|s| matches!(s, Source::Image(_)))
        {
            fields.fault(
                item,
                &join(field, "tags"),
                "the image has one tag; write a wildcard to choose among several".to_owned(),
            );
        }
        self.thin_has_a_name(&options, field, item, &mut fields);
        let line = yaml::line(item);
        let shown = text.clone().unwrap_or_else(|| "an entry without an image".to_owned());
        let failed = !fields.faults.is_empty();
        for (number, Fault { line, field, message }) in fields.faults.into_iter().enumerate() {
            // One entry is one failed wish, however much is wrong with it.
            let wish = (number == 0).then(|| shown.clone());
            self.note(file, line, field, message, Severity::Error, wish);
        }
        let Some(text) = text.filter(|_| !failed) else { return };
        let options = Arc::new(options.or(&file.defaults));
        self.quota(file, line, &options);
        self.wish(file, line, field, &text, (options, tags.unwrap_or_default()));
    }

    fn wish(&mut self, file: &File, line: u64, field: &str, text: &str, details: Details) {
        let field = field.to_owned();
        let source = match Source::parse(text) {
            Ok(source) => self.aliases.resolve(source),
            Err(error) => return self.fail(file, line, field, error.to_string(), text),
        };
        if let Some((first, other)) = self.seen.get(&source) {
            let place = first.seen_from(&file.path);
            let differences = differences(&details, other);
            if differences.is_empty() {
                return self.warn(file, line, &field, format!("{text:?} is wished for in {place} already"));
            }
            let message = format!(
                "{text:?} is wished for in {place} already, with another {}; one of them has to go",
                differences.join(", ")
            );
            return self.fail(file, line, field, message, text);
        }
        let place = Place { file: file.path.clone(), line };
        match public_name(&source) {
            Ok(Some(name)) => {
                if let Some(first) = self.names.get(&name) {
                    let first = first.seen_from(&file.path);
                    let message = format!("{text:?} would be published as {name}, as would be {first}");
                    return self.fail(file, line, field, message, text);
                }
                self.names.insert(name, place.clone());
            }
            Ok(None) => {}
            Err(error) => return self.fail(file, line, field, error.to_string(), text),
        }
        self.seen.insert(source.clone(), (place, details.clone()));
        let (file, text, (options, tags)) = (file.path.clone(), text.to_owned(), details);
        self.list.wishes.push(Wish { file, line, field, text, source, options, tags });
    }

    /// In version 2, what an entry names is none of those that wildcards take: it has the options of its own entry.
    fn own_entries_win(&mut self) {
        if self.list.version < 2 {
            return;
        }
        let mut tags: HashMap<String, Vec<String>> = HashMap::new();
        for wish in &self.list.wishes {
            if let Source::Image(ImageSource::Registry(image)) = &wish.source
                && let Some(tag) = image.tag()
            {
                tags.entry(image.repository().to_string()).or_default().push(tag.to_owned());
            }
        }
        for wish in &mut self.list.wishes {
            if let Source::Wildcard(wildcard) = &wish.source
                && let Some(named) = tags.get(&wildcard.repository().to_string())
            {
                wish.tags.exclude.extend(named.iter().filter(|tag| wildcard.select(tag).is_some()).cloned());
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

/// In what two wishes for the same thing differ.
fn differences(a: &Details, b: &Details) -> Vec<&'static str> {
    let mut differences = a.0.differences(&b.0);
    if a.1 != b.1 {
        differences.push("tags");
    }
    differences
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
