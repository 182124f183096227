//! Every fixture is opened, its chain of trust verified, walked completely and compared with its listing.

use std::collections::BTreeMap;
use std::sync::Arc;

use cvmfs::catalog::{Counters, NestedRef, Row};
use cvmfs::entry::{Entry, FileType};
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::repository::Repository;
use cvmfs::store::{LocalStore, Store, fetch};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::fixtures::{Fixture, Item, NAMES};
use crate::trusting;

/// A whole repository, read through the library.
struct Tree<'a> {
    store: &'a dyn Store,
    items: BTreeMap<Vec<u8>, Item>,
    /// As in the info.json: catalogs by path.
    catalogs: BTreeMap<String, Value>,
    /// Offset, size and hash of the chunks by path.
    chunks: BTreeMap<String, Vec<(u64, u64, String)>>,
}

impl Visit for Tree<'_> {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        let root = &catalog.reference().path;
        let info = catalog_info(catalog);
        self.catalogs.insert(root.to_string(), info);
        let row = catalog.lookup_path(root).unwrap().expect("a root entry");
        self.add(catalog, root.clone(), row);
        let mut pending = vec![root.clone()];
        while let Some(directory) = pending.pop() {
            for row in catalog.list(directory.key()).unwrap() {
                let path = directory.join(&row.entry.name);
                assert_eq!(catalog.lookup_path(&path).unwrap().as_ref(), Some(&row), "{path}");
                if row.entry.is_directory() && !row.entry.flags.is_nested_mountpoint() {
                    pending.push(path.clone());
                }
                self.add(catalog, path, row);
            }
        }
        Ok(Descend::Into)
    }
}

impl Tree<'_> {
    fn add(&mut self, catalog: &Loaded, path: RepoPath, row: Row) {
        let entry = &row.entry;
        let regular = entry.file_type() == FileType::Regular;
        let objects: Vec<_> = match entry.flags.is_chunked() {
            true => {
                let chunks = catalog.chunks(row.key, entry.algorithm()).unwrap();
                let shown = chunks.iter().map(|c| (c.offset, c.size, c.hash.to_string())).collect();
                self.chunks.insert(path.to_string(), shown);
                chunks.iter().map(|c| c.hash.object(ObjectKind::Chunk)).collect()
            }
            false => entry.content.iter().map(|hash| hash.object(ObjectKind::File)).collect(),
        };
        let sha256 = regular.then(|| {
            let mut hasher = Hashing(Sha256::new());
            let read: u64 = objects
                .iter()
                .map(|id| fetch(self.store, *id, entry.compression(), entry.size, &mut hasher).unwrap())
                .sum();
            assert_eq!(read, entry.size, "{path}");
            hex::encode(hasher.0.finalize())
        });
        let is_device = matches!(entry.file_type(), FileType::Char | FileType::Block);
        let item = Item {
            path: if path.is_root() { b"/".to_vec() } else { path.as_bytes().to_vec() },
            kind: kind(entry).to_owned(),
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            size: match entry.file_type() {
                FileType::Char | FileType::Block => 0,
                // Not the column: an ingested archive leaves 0 there.
                FileType::Symlink => entry.symlink.len() as u64,
                _ => entry.size,
            },
            mtime: entry.mtime,
            mtime_ns: entry.mtime_ns.unwrap_or(0),
            nlink: entry.links,
            target: (entry.file_type() == FileType::Symlink).then(|| entry.symlink.clone()),
            rawlink: None,
            rdev: is_device
                .then(|| (nix::sys::stat::major(entry.size) as u32, nix::sys::stat::minor(entry.size) as u32)),
            xattrs: entry.xattrs(),
            sha256,
            object: entry.content.filter(|_| !entry.flags.is_chunked()).map(|hash| hash.to_string()),
            chunks: regular.then_some(objects.len() as u64),
            compression: regular.then(|| if entry.compression().flag_bits() == 0 { "zlib" } else { "none" }.to_owned()),
        };
        self.items.insert(item.path.clone(), item);
    }
}

struct Hashing(Sha256);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn kind(entry: &Entry) -> &'static str {
    match entry.file_type() {
        FileType::Regular => "file",
        FileType::Directory => "dir",
        FileType::Symlink => "symlink",
        FileType::Char => "char",
        FileType::Block => "block",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

fn catalog_info(catalog: &Loaded) -> Value {
    let recorded: Counters = catalog.counters().unwrap();
    let counters: BTreeMap<String, i64> = recorded.rows().collect();
    let keys = ["schema", "schema_revision", "TTL", "last_modified", "revision", "previous_revision", "root_prefix"];
    let properties: BTreeMap<&str, String> =
        keys.iter().filter_map(|key| Some((*key, catalog.property(key).unwrap()?))).collect();
    serde_json::json!({
        "path": catalog.reference().path.to_string(),
        "hash": catalog.reference().hash.to_string(),
        "size": catalog.size(),
        "recorded_size": catalog.reference().size,
        "rows": catalog.row_count().unwrap(),
        "max_rowid": catalog.max_rowid().unwrap(),
        "properties": properties,
        "counters": counters,
    })
}

fn read<'a>(store: &'a Arc<dyn Store>, fixture: &Fixture) -> (Repository, Tree<'a>) {
    let repository = trusting(fixture, |anchor| Repository::open(store.clone(), anchor)).unwrap();
    let manifest = repository.manifest();
    let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let mut tree = Tree { store: &**store, items: BTreeMap::new(), catalogs: BTreeMap::new(), chunks: BTreeMap::new() };
    walk(Loader::new(&**store, fixture.top()), root, &mut tree).unwrap();
    (repository, tree)
}

/// An item as our reading can show it: links have the target that was published, and its length.
fn unexpanded(mut item: Item) -> Item {
    if let Some(raw) = item.rawlink.take() {
        item.size = raw.len() as u64;
        item.target = Some(raw);
    }
    item
}

fn compare(name: &str) {
    let fixture = Fixture::unpack(name);
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&fixture.storage));
    let (repository, mut tree) = read(&store, &fixture);

    let listing = fixture.listing();
    for item in listing {
        let item = unexpanded(item);
        let shown = String::from_utf8_lossy(&item.path).into_owned();
        let found = tree.items.remove(&item.path).unwrap_or_else(|| panic!("{name}: {shown} is not there"));
        assert_eq!(found, item, "{name}: {shown}");
    }
    assert!(tree.items.is_empty(), "{name}: not in the listing: {:?}", tree.items.keys());

    let info = fixture.info();
    let mut catalogs: BTreeMap<&str, &Value> =
        info["catalogs"].as_array().unwrap().iter().map(|c| (c["path"].as_str().unwrap(), c)).collect();
    for (path, catalog) in &tree.catalogs {
        let expected = catalogs.remove(path.as_str()).unwrap_or_else(|| panic!("{name}: catalog {path} too many"));
        assert_eq!(catalog, expected, "{name}: catalog {path}");
    }
    assert!(catalogs.is_empty(), "{name}: catalogs not found: {catalogs:?}");

    let chunked = info["chunked_files"].as_array().unwrap();
    assert_eq!(chunked.len(), tree.chunks.len(), "{name}");
    for file in chunked {
        let chunks = file["chunks"].as_array().unwrap().iter().map(|c| {
            let number = |key: &str| c[key].as_u64().unwrap();
            (number("offset"), number("size"), c["hash"].as_str().unwrap().to_owned())
        });
        let path = file["path"].as_str().unwrap();
        assert_eq!(tree.chunks[path], chunks.collect::<Vec<_>>(), "{name}: chunks of {path}");
    }

    let history = repository.history(fixture.top()).unwrap();
    let mut tags: Vec<Value> = history
        .tags
        .iter()
        .map(|tag| {
            serde_json::json!({
                "name": tag.name, "hash": tag.root.to_string(), "revision": tag.revision, "timestamp": tag.timestamp,
                "description": tag.description, "size": tag.size,
            })
        })
        .collect();
    let mut expected = info["tags"].as_array().unwrap().clone();
    for list in [&mut tags, &mut expected] {
        list.sort_by_key(|tag| tag["name"].to_string());
    }
    assert_eq!(tags, expected, "{name}: tags");
    assert_eq!(repository.manifest().revision.to_string(), info["manifest"]["S"].as_str().unwrap());
}

macro_rules! fixtures_equal_their_listings {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $test() { compare($name); })*

        #[test]
        fn every_fixture_is_compared() {
            let mut compared = [$($name),*];
            let mut all = NAMES;
            compared.sort_unstable();
            all.sort_unstable();
            assert_eq!(compared, all);
        }
    };
}

fixtures_equal_their_listings! {
    basic_equals_its_listing: "basic",
    basic_s1_equals_its_listing: "basic-s1",
    chunked_equals_its_listing: "chunked",
    hardlinks_equal_their_listing: "hardlinks",
    shake_equals_its_listing: "shake",
    rmd_equals_its_listing: "rmd",
    plain_equals_its_listing: "plain",
    gc_before_equals_its_listing: "gc-before",
    gc_equals_its_listing: "gc",
    updates_r2_equals_its_listing: "updates-r2",
    updates_r3_equals_its_listing: "updates-r3",
    updates_r4_equals_its_listing: "updates-r4",
}

/// Repositories that the existing container publisher made; they hold a GPL binary and lie outside of this tree.
#[test]
fn repositories_of_the_existing_publisher_equal_their_listings() {
    for name in ["ducc-run1", "ducc", "ducc-gc", "ducc-odd"] {
        match Fixture::find(name) {
            Some(_) => compare(name),
            None => println!("skipped: no fixture {name} in the directory that CVMFS_FIXTURES names"),
        }
    }
}
