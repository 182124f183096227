//! Files that say which other files they need: programs and libraries name libraries, Python files name modules.
//!
//! ```text
//!  read: numpy/__pycache__/__init__.pyc ── names ── core, lib, linalg, json ──┬── numpy/core/__pycache__/__init__.pyc
//!                                                                            ├── …
//!                                                                            └── json/__pycache__/__init__.pyc ── names ── …
//! ```
//!
//! A name is looked for where the dynamic linker and the interpreter would look, as far as that can be known from
//! outside: beside the file, in the packages around it, and in the directories of the same tree where such files were
//! found before. What is found is a guess as any other and bounded like one; what it names in turn is looked at as well,
//! a few steps far, so that what a start needs comes in parallel and not step by step.

mod elf;
mod marshal;
mod python;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::entry::{Entry, FileType};
use cvmfs::path::{PathKey, RepoPath};

use super::Shared;
use super::jobs::{Found, all};
use super::queue::Job;
use super::workers::Failure;
use crate::catalogs::Side;
use crate::fetch::{Wait, Want};

/// Steps from a file that was read to one that is fetched.
pub(super) const MOST_STEPS: u8 = 4;
/// Bytes of a file that are looked at.
const MOST_BYTES: u64 = 2 << 20;
/// Files that one file may name, packages around it, and packages among its names whose modules are looked for in turn.
const MOST_NAMED: usize = 1024;
const MOST_AROUND: usize = 16;
const MOST_PACKAGES: usize = 32;
/// Of files above this that are kept in chunks, the first and the last one are fetched.
const WHOLE: u64 = 16 << 20;
/// Directories with modules or libraries of a tree.
const MOST_PLACES: usize = 16;
const MAX_TREES: usize = 64;
/// Directories whose names are kept, and their names.
const MAX_LISTINGS: usize = 512;
const MAX_NAMES: usize = 1 << 17;
const MAX_SEEN: usize = 1 << 16;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 1 << 14;
/// How long a listing is kept, and no file looked into again.
const FRESH: Duration = Duration::from_secs(60);
/// Links that are followed on the way to a file.
const MAX_LINKS: usize = 16;
/// Directories of a root file system where libraries are.
const USUAL: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "lib64",
    "lib",
];
/// Directories beside the standard library that have modules as well.
const BESIDE: [&str; 3] = ["lib-dynload", "site-packages", "dist-packages"];

/// Names of a directory.
type Listing = Arc<BTreeMap<Vec<u8>, FileType>>;

/// What is known about the places of files.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// By the directory that stands for `/`.
    trees: HashMap<RepoPath, Places>,
    listings: HashMap<RepoPath, (Instant, Listing)>,
    /// Names in all listings.
    names: usize,
    /// Files that were looked into, when, and how far from one that was read.
    seen: HashMap<PathKey, (Instant, u8)>,
}

/// Where files of a tree were found, the last one first.
#[derive(Debug, Default, Clone)]
struct Places {
    modules: Vec<RepoPath>,
    libraries: Vec<RepoPath>,
}

fn remember(places: &mut Vec<RepoPath>, place: RepoPath) {
    places.retain(|known| *known != place);
    places.insert(0, place);
    places.truncate(MOST_PLACES);
}

/// A file that another one names.
#[derive(Debug)]
pub struct Need {
    path: RepoPath,
    want: Want,
    /// Whether it is worth looking at what it names in turn.
    scan: bool,
    steps: u8,
}

impl Need {
    /// An object that is named so many steps from what was read.
    #[cfg(test)]
    pub fn of(path: RepoPath, want: Want, steps: u8) -> Need {
        Need { path, want, scan: false, steps }
    }

    /// The file.
    #[cfg(test)]
    pub fn path(&self) -> &RepoPath {
        &self.path
    }

    /// How far it is from a file that was read.
    pub fn steps(&self) -> u8 {
        self.steps
    }
}

/// The directory that stands for `/` of a published file, if there is one.
fn root_of(path: &RepoPath) -> Option<RepoPath> {
    let depth = match path.components().next()? {
        b".flat" => 3,
        b".layers" => 4,
        _ => return None,
    };
    path.ancestors().nth(depth)
}

/// Whether a file may name others.
pub(super) fn may_name(path: &RepoPath, entry: &Entry) -> bool {
    let name = path.name();
    python::Kind::of(name).is_some() || entry.mode & 0o111 != 0 || name.windows(3).any(|part| part == b".so")
}

impl Shared {
    /// Looks for what a file names that was read just now.
    pub(super) fn needs(self: &Arc<Shared>, path: &RepoPath, file: &File) -> Result<(), Failure> {
        self.look_into(path, file, 0)
    }

    /// Fetches a file that was named, and looks into it.
    pub(super) fn need(self: &Arc<Shared>, need: &Need) -> Result<(), Failure> {
        let Some(file) = self.guess(&need.want)? else { return Ok(()) };
        if need.scan && need.steps < MOST_STEPS { self.look_into(&need.path, &file, need.steps) } else { Ok(()) }
    }

    fn look_into(self: &Arc<Shared>, path: &RepoPath, file: &File, steps: u8) -> Result<(), Failure> {
        {
            let mut needs = self.needs.lock();
            if needs.seen.len() >= MAX_SEEN {
                needs.seen.clear();
            }
            // What is read itself makes what it names more urgent than it was.
            let known = needs.seen.get(&path.key());
            if known.is_some_and(|(when, before)| when.elapsed() < FRESH && steps >= *before) {
                return Ok(());
            }
            needs.seen.insert(path.key(), (Instant::now(), steps));
        }
        tracing::trace!(%path, steps, "looked into");
        let length = file.metadata().map_err(Failure::Read)?.len().min(MOST_BYTES);
        let mut content = vec![0; length as usize];
        file.read_exact_at(&mut content, 0).map_err(Failure::Read)?;
        let kind = python::Kind::of(path.name());
        let mut found = Vec::new();
        if elf::is_elf(&content) {
            self.libraries(path, &elf::libraries(&content), &mut found)?;
        }
        if let Some(kind) = kind {
            self.modules(path, kind, &python::names(kind, &content), &mut found)?;
        }
        let (mut needs, mut known) = (Vec::new(), HashSet::new());
        for found in found.into_iter().filter(|found| known.insert(found.path.key())) {
            let (scan, mut wants) = (may_name(&found.path, &found.entry), all(&found));
            let last = wants.len().saturating_sub(1);
            if last > 1 && found.entry.size > WHOLE {
                wants.drain(1..last);
            }
            for (number, want) in wants.into_iter().enumerate().filter(|(_, want)| !self.objects.has(want)) {
                needs.push(Need { path: found.path.clone(), want, scan: scan && number == 0, steps: steps + 1 });
            }
        }
        self.push_all(needs.into_iter().map(Job::Need));
        Ok(())
    }

    fn libraries(&self, file: &RepoPath, named: &elf::Libraries, found: &mut Vec<Found>) -> Result<(), Failure> {
        let (Some(directory), root) = (file.parent(), root_of(file)) else { return Ok(()) };
        let known = root.as_ref().and_then(|root| self.needs.lock().trees.get(root).cloned()).unwrap_or_default();
        let beside = named.beside.iter().filter_map(|place| relative(&directory, place));
        let usual = USUAL.iter().filter_map(|place| root.as_ref()?.join_path(place).ok());
        let mut places: Vec<RepoPath> = Vec::new();
        for place in beside.chain([directory.clone()]).chain(known.libraries).chain(usual) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        for name in named.names.iter().filter(|name| name.as_slice() != file.name()) {
            if found.len() >= MOST_NAMED {
                break;
            }
            for place in &places {
                if !self.names_of(place)?.contains_key(name) {
                    continue;
                }
                if let Some(library) = self.follow(place.join(name), root.as_ref())? {
                    if let Some(root) = &root {
                        self.remember(root, |places| remember(&mut places.libraries, place.clone()));
                    }
                    found.push(library);
                }
                break;
            }
        }
        Ok(())
    }

    fn modules(
        &self,
        file: &RepoPath,
        kind: python::Kind,
        names: &[Vec<u8>],
        found: &mut Vec<Found>,
    ) -> Result<(), Failure> {
        let Some(mut directory) = file.parent() else { return Ok(()) };
        if kind == python::Kind::Compiled && directory.name() == b"__pycache__" {
            directory = directory.parent().unwrap_or_default();
        }
        let root = root_of(file).or_else(|| file.ancestors().nth(1)).unwrap_or_default();
        // Packages around the file, and the directory that they are in.
        let mut around = vec![directory.clone()];
        while self.names_of(&directory)?.contains_key(&b"__init__.py"[..])
            && around.len() < MOST_AROUND
            && let Some(parent) = directory.parent().filter(|parent| root.contains(parent))
        {
            around.push(parent.clone());
            directory = parent;
        }
        let listing = self.names_of(&directory)?;
        let beside = BESIDE.iter().filter(|name| listing.contains_key(name.as_bytes()));
        for place in beside.map(|name| directory.join(name)).chain([directory.clone()]) {
            self.remember(&root, |places| {
                if !places.modules.contains(&place) {
                    remember(&mut places.modules, place);
                }
            });
        }
        let places = self.needs.lock().trees.get(&root).map(|places| places.modules.clone()).unwrap_or_default();
        around.extend(places.into_iter().filter(|place| *place != directory));
        let mut packages = Vec::new();
        for name in names {
            for place in &around {
                if self.module(place, name, &root, &mut packages, found)? {
                    break;
                }
            }
        }
        // What is imported from a package may be a module of it.
        for package in packages.clone().iter().take(MOST_PACKAGES) {
            for name in names.iter().filter(|name| !name.contains(&b'.')) {
                self.module(package, name, &root, &mut packages, found)?;
            }
        }
        Ok(())
    }

    /// Adds what the interpreter reads for a dotted name below a directory, with the packages on the way; whether it is there.
    fn module(
        &self,
        place: &RepoPath,
        name: &[u8],
        root: &RepoPath,
        packages: &mut Vec<RepoPath>,
        found: &mut Vec<Found>,
    ) -> Result<bool, Failure> {
        let (mut place, mut any) = (place.clone(), false);
        if found.len() >= MOST_NAMED {
            return Ok(true);
        }
        for part in name.split(|byte| *byte == b'.') {
            let listing = self.names_of(&place)?;
            match listing.get(part) {
                Some(FileType::Directory) => {
                    let package = place.join(part);
                    if !packages.contains(&package) {
                        let inside = self.names_of(&package)?;
                        let Some(path) = self.code(&package, &inside, b"__init__")? else { return Ok(any) };
                        found.extend(self.follow(path, Some(root))?);
                        packages.push(package.clone());
                    }
                    (place, any) = (package, true);
                }
                _ => {
                    let Some(path) = self.code(&place, &listing, part)? else { return Ok(any) };
                    found.extend(self.follow(path, Some(root))?);
                    return Ok(true);
                }
            }
        }
        Ok(any)
    }

    /// The file that is read for a module of this name: compiled, source, or extension.
    fn code(&self, place: &RepoPath, listing: &Listing, name: &[u8]) -> Result<Option<RepoPath>, Failure> {
        let start = [name, b"."].concat();
        let with = |listing: &Listing, end: &[u8]| {
            let range = listing.range(start.clone()..).take_while(|(name, _)| name.starts_with(&start));
            // Optimised code is read by who asks for it.
            let is_plain = |name: &[u8]| name.ends_with(end) && !name.windows(5).any(|part| part == b".opt-");
            range.map(|(name, _)| name).find(|name| is_plain(name)).cloned()
        };
        let Some(source) = with(listing, b".py").filter(|source| source.len() == name.len() + 3) else {
            return Ok(with(listing, b".so").or_else(|| with(listing, b".pyc")).map(|name| place.join(name)));
        };
        if listing.contains_key(&b"__pycache__"[..]) {
            let cache = place.join("__pycache__");
            if let Some(compiled) = with(&self.names_of(&cache)?, b".pyc") {
                return Ok(Some(cache.join(compiled)));
            }
        }
        Ok(Some(place.join(source)))
    }

    /// The names in a directory; none if it is no directory.
    fn names_of(&self, directory: &RepoPath) -> Result<Listing, Failure> {
        if let Some((when, listing)) = self.needs.lock().listings.get(directory)
            && when.elapsed() < FRESH
        {
            return Ok(listing.clone());
        }
        let rows = self.attached(directory, Side::Children, Wait::Ahead)?.list(directory)?;
        let names = rows.into_iter().take(MAX_ENTRIES).map(|row| (row.entry.file_type(), row.entry.name));
        let listing: Listing = Arc::new(names.map(|(kind, name)| (name, kind)).collect());
        let mut needs = self.needs.lock();
        if needs.listings.len() >= MAX_LISTINGS || needs.names + listing.len() > MAX_NAMES {
            needs.listings.clear();
            needs.names = 0;
        }
        needs.names += listing.len();
        if let Some((_, before)) = needs.listings.insert(directory.clone(), (Instant::now(), listing.clone())) {
            needs.names -= before.len();
        }
        Ok(listing)
    }

    fn remember(&self, root: &RepoPath, change: impl FnOnce(&mut Places)) {
        let mut needs = self.needs.lock();
        if needs.trees.len() >= MAX_TREES && !needs.trees.contains_key(root) {
            needs.trees.clear();
        }
        change(needs.trees.entry(root.clone()).or_default());
    }

    /// A regular file, through links; those that begin with `/` are followed below `root`.
    fn follow(&self, path: RepoPath, root: Option<&RepoPath>) -> Result<Option<Found>, Failure> {
        let mut path = path;
        for _ in 0..MAX_LINKS {
            // Most names are no links, and neither are the directories above them.
            if let Some(found) = self.find(path.clone(), Wait::Ahead)? {
                match found.entry.file_type() {
                    FileType::Regular => return Ok(Some(found)),
                    FileType::Symlink => {}
                    _ => return Ok(None),
                }
            }
            match self.through_link(&path, root)? {
                Some(next) => path = next,
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The path that the first link on a path makes of it.
    fn through_link(&self, path: &RepoPath, root: Option<&RepoPath>) -> Result<Option<RepoPath>, Failure> {
        let bytes = path.as_bytes();
        let inside = root.map_or(0, |root| root.as_bytes().len());
        for step in path.ancestors().filter(|step| step.as_bytes().len() > inside) {
            let Some(found) = self.find(step.clone(), Wait::Ahead)? else { return Ok(None) };
            if found.entry.file_type() != FileType::Symlink {
                continue;
            }
            let rest = bytes[step.as_bytes().len()..].strip_prefix(b"/").unwrap_or_default();
            let target = found.entry.symlink.as_slice();
            let base = match target.strip_prefix(b"/") {
                Some(target) => root.and_then(|root| relative(root, target)),
                None => step.parent().and_then(|parent| relative(&parent, target)),
            };
            return Ok(base.and_then(|base| base.join_path(rest).ok()));
        }
        Ok(None)
    }
}

/// A relative path from a directory, with `.` and `..`.
fn relative(directory: &RepoPath, path: &[u8]) -> Option<RepoPath> {
    let mut at = directory.clone();
    for part in path.split(|byte| *byte == b'/') {
        at = match part {
            b"" | b"." => at,
            b".." => at.parent()?,
            name => at.join_path(name).ok()?,
        };
    }
    Some(at)
}
