//! Trees as values: what a repository shows below a path, what an image should look like, and how the two differ.
//!
//! A published tree is read through its catalogs and objects, as a client would. Markers of nested catalogs are left
//! out where they are hidden, as clients do; the catalogs themselves are listed apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use cvmfs::bundle::is_hidden_bundle;
use cvmfs::catalog::NestedRef;
use cvmfs::entry::{Entry, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::repository::Repository;
use cvmfs::store::{Store, fetch};
use cvmfs::traversal::{Loaded, Loader};
use image::digest::Digest;

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file with this content.
    File(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A character device; 0 is a whiteout.
    Char(u64),
    /// A block device.
    Block(u64),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of stat")]
pub struct Node {
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    /// Names of the same file; 1 for directories, whose count says something else.
    pub links: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Entries by path, relative, without slashes at the ends; the root is empty.
pub type Tree = BTreeMap<Vec<u8>, Node>;

/// A published tree.
#[derive(Debug, Default)]
pub struct Published {
    /// Its entries.
    pub tree: Tree,
    /// Directories that begin a nested catalog, the place where reading began not included.
    pub catalogs: BTreeSet<String>,
    /// File bundles that are hidden, by path.
    pub bundles: BTreeMap<String, Node>,
    /// Files that are marked as having one.
    pub triggers: BTreeSet<String>,
}

/// Reads what is below `top`; nothing if there is no such directory.
pub fn read(repository: &Repository, scratch: &Path, top: &str) -> Option<Published> {
    let store = &**repository.store();
    let loader = Loader::new(store, scratch);
    let manifest = repository.manifest();
    let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let mut catalog = loader.load(&root).expect("the root catalog");
    let top = RepoPath::ROOT.join_path(top).expect("a path");
    let mut entry = catalog.lookup_path(&RepoPath::ROOT).expect("a catalog").expect("a root entry").entry;
    for path in top.ancestors().filter(|p| !p.is_root()) {
        entry = catalog.lookup_path(&path).expect("a catalog")?.entry;
        if entry.flags.is_nested_mountpoint() {
            let nested = catalog.nested(&path).expect("a catalog").expect("a registered nested catalog");
            catalog = loader.load(&nested).expect("a nested catalog");
        }
    }
    let mut reader = Reader { loader, published: Published::default() };
    reader.published.tree.insert(Vec::new(), reader.node(&catalog, &top, &entry));
    if entry.is_directory() {
        reader.directory(&catalog, &top, &mut Vec::new());
    }
    Some(reader.published)
}

struct Reader<'a> {
    loader: Loader<'a>,
    published: Published,
}

impl Reader<'_> {
    fn directory(&mut self, catalog: &Loaded, path: &RepoPath, relative: &mut Vec<u8>) {
        for row in catalog.list(path.key()).expect("a readable catalog") {
            let entry = row.entry;
            let below = path.join(&entry.name);
            let place =
                String::from_utf8_lossy(&[&relative[..], b"/", &entry.name].concat()).trim_matches('/').to_owned();
            if entry.flags.is_bundle_trigger() {
                self.published.triggers.insert(place.clone());
            }
            if is_hidden_bundle(&entry) {
                let node = self.node(catalog, &below, &entry);
                self.published.bundles.insert(place, node);
                continue;
            }
            if entry.flags.is_hidden() {
                assert_eq!(entry.name, b".cvmfscatalog", "only markers and bundles are hidden");
                continue;
            }
            let length = relative.len();
            if !relative.is_empty() {
                relative.push(b'/');
            }
            relative.extend_from_slice(&entry.name);
            let node = self.node(catalog, &below, &entry);
            let before = self.published.tree.insert(relative.clone(), node);
            assert!(before.is_none(), "{below} is listed twice");
            if entry.flags.is_nested_mountpoint() {
                self.published.catalogs.insert(String::from_utf8_lossy(relative).into_owned());
                let nested = catalog.nested(&below).expect("a catalog").expect("a registered nested catalog");
                let nested = self.loader.load(&nested).expect("a nested catalog");
                self.directory(&nested, &below, relative);
            } else if entry.is_directory() {
                self.directory(catalog, &below, relative);
            }
            relative.truncate(length);
        }
    }

    fn node(&self, catalog: &Loaded, path: &RepoPath, entry: &Entry) -> Node {
        let what = match entry.file_type() {
            FileType::Directory => What::Directory,
            FileType::Regular => What::File(self.content(catalog, path, entry)),
            FileType::Symlink => What::Symlink(entry.symlink.clone()),
            FileType::Char => What::Char(entry.size),
            FileType::Block => What::Block(entry.size),
            FileType::Fifo => What::Fifo,
            FileType::Socket => What::Socket,
        };
        if let What::File(content) = &what {
            assert_eq!(content.len() as u64, entry.size, "size of {path}");
        }
        Node {
            what,
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            links: if entry.is_directory() { 1 } else { entry.links },
            xattrs: entry.xattrs().into_iter().collect(),
        }
    }

    fn content(&self, catalog: &Loaded, path: &RepoPath, entry: &Entry) -> Vec<u8> {
        let mut content = Vec::new();
        let store: &dyn Store = self.loader.store();
        let mut read = |id| fetch(store, id, entry.compression(), u64::MAX, &mut content);
        if entry.flags.is_chunked() {
            for chunk in catalog.chunks(path.key(), entry.algorithm()).expect("chunks") {
                let size = read(chunk.hash.object(ObjectKind::Chunk)).expect("a chunk");
                assert_eq!(size, chunk.size, "size of a chunk of {path}");
            }
        } else {
            let hash = entry.content.unwrap_or_else(|| panic!("{path} has no content"));
            read(hash.object(ObjectKind::File)).expect("an object");
        }
        content
    }
}

/// The entries at and below `top`, with paths from there.
pub fn below(tree: &Tree, top: &str) -> Tree {
    let prefix = format!("{top}/").into_bytes();
    tree.iter()
        .filter_map(|(path, node)| match path.strip_prefix(&prefix[..]) {
            Some(rest) => Some((rest.to_vec(), node.clone())),
            None if path == top.as_bytes() => Some((Vec::new(), node.clone())),
            None => None,
        })
        .collect()
}

/// The paths of a tree as text, for comparisons of names alone.
pub fn names(tree: &Tree) -> Vec<String> {
    tree.keys().map(|path| shown(path)).collect()
}

/// How `found` differs from `expected`, a line a path; empty if it doesn't.
pub fn difference(found: &Tree, expected: &Tree) -> String {
    let mut text = String::new();
    let paths: BTreeSet<&Vec<u8>> = found.keys().chain(expected.keys()).collect();
    for path in paths {
        let line = match (found.get(path), expected.get(path)) {
            (Some(found), None) => format!("unexpected: {}", line(found)),
            (None, Some(expected)) => format!("missing: {}", line(expected)),
            (Some(found), Some(expected)) if found != expected => {
                format!("found    {}\n{:width$}expected {}", line(found), "", line(expected), width = 4)
            }
            _ => continue,
        };
        writeln!(text, "  /{}\n    {line}", shown(path)).expect("strings take everything");
    }
    text
}

/// Fails with the difference unless both are the same.
#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree, what: &str) {
    let difference = difference(found, expected);
    assert!(difference.is_empty(), "{what} is not as expected:\n{difference}");
}

fn line(node: &Node) -> String {
    let what = match &node.what {
        What::File(content) if content.len() <= 40 => format!("file \"{}\"", shown(content)),
        What::File(content) => format!("file of {} bytes, {}", content.len(), Digest::of(content)),
        What::Symlink(target) => format!("link to \"{}\"", shown(target)),
        What::Char(0) => "whiteout".to_owned(),
        other => format!("{other:?}"),
    };
    let mut line = format!(
        "{what}, mode {:04o}, owner {}:{}, time {}, {} names",
        node.mode, node.uid, node.gid, node.mtime, node.links
    );
    for (name, value) in &node.xattrs {
        write!(line, ", {}=\"{}\"", shown(name), shown(value)).expect("strings take everything");
    }
    line
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
