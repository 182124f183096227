//! Random transactions against a model: after each publish the repository has exactly the model's tree, and the
//! check finds nothing, not even a warning.

use std::collections::BTreeMap;
use std::sync::Arc;

use cvmfs::catalog::Row;
use cvmfs::check::{Identity, Options, check};
use cvmfs::entry::{Chunk, Entry, FileType, Flags, Meta};
use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::object::{Codec, Compression, Encoder};
use cvmfs::path::RepoPath;
use cvmfs::repository::{CreateOptions, Repository};
use cvmfs::scrub::scrub;
use cvmfs::signature::PrivateKey;
use cvmfs::store::{MemoryStore, Store, put_content};
use cvmfs::subtree::{Graft, MARKER, SubtreeOptions, SubtreeWriter};
use cvmfs::transaction::{Commit, Transaction, TransactionOptions};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};
use cvmfs::trust::Anchor;
use time::UtcDateTime;
use time::macros::utc_datetime;

const NOW: UtcDateTime = utc_datetime!(2026-11-22 00:00:00);
const NAME: &str = "model.example.org";

/// SplitMix64: small, good enough, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// An entry of the model. Link counts follow from the tree.
#[derive(Debug, Clone)]
struct Node {
    entry: Entry,
    chunks: Vec<Chunk>,
    /// Names of one directory with the same number ≠ 0 are one file.
    group: u64,
}

type Model = BTreeMap<RepoPath, Node>;

fn remove(model: &mut Model, path: &RepoPath) {
    model.retain(|p, _| !path.contains(p));
}

/// The tree as a reader is to see it.
fn expected(model: &Model) -> BTreeMap<RepoPath, (Entry, Vec<Chunk>)> {
    let count = |parent: &RepoPath, wanted: &dyn Fn(&Node) -> bool| {
        model.iter().filter(|(p, n)| p.parent().as_ref() == Some(parent) && wanted(n)).count() as u32
    };
    let shown = model.iter().map(|(path, node)| {
        let mut entry = visible(&node.entry);
        entry.links = match (&entry, node.group) {
            (e, _) if e.is_directory() => 2 + count(path, &|n| n.entry.is_directory()),
            (_, 0) => 1,
            (_, group) => count(&path.parent().unwrap(), &|n| n.group == group),
        };
        (path.clone(), (entry, node.chunks.clone()))
    });
    shown.collect()
}

/// An entry without what the model does not know: numbers of groups, nesting, sizes of directories.
fn visible(entry: &Entry) -> Entry {
    let nesting = Flags::NESTED_MOUNTPOINT | Flags::NESTED_ROOT;
    let size = if entry.is_directory() { 0 } else { entry.size };
    Entry { flags: entry.flags.without(nesting), link_group: 0, size, ..entry.clone() }
}

struct Reader(BTreeMap<RepoPath, (Entry, Vec<Chunk>)>);

impl Visit for Reader {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        let mut take = |path: RepoPath, row: &Row| {
            let chunks = catalog.chunks(row.key, row.entry.algorithm()).unwrap();
            self.0.insert(path, (visible(&row.entry), chunks));
        };
        let root = catalog.reference().path.clone();
        take(root.clone(), &catalog.lookup_path(&root).unwrap().unwrap());
        let mut pending = vec![root];
        while let Some(directory) = pending.pop() {
            for row in catalog.list(directory.key()).unwrap().iter().filter(|row| row.entry.name != MARKER) {
                let path = directory.join(&row.entry.name);
                take(path.clone(), row);
                if row.entry.is_directory() && !row.entry.flags.is_nested_mountpoint() {
                    pending.push(path);
                }
            }
        }
        Ok(Descend::Into)
    }
}

struct World {
    store: Arc<MemoryStore>,
    algorithm: Algorithm,
    encoder: Encoder,
    repository: Repository,
    signer: Signer,
    master: PrivateKey,
    scratch: tempfile::TempDir,
    marker: Entry,
    random: Random,
    groups: u64,
}

impl World {
    fn new(algorithm: Algorithm, seed: u64, signer: Signer, master: PrivateKey) -> World {
        let (store, scratch) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let options = CreateOptions {
            fqrn: NAME.into(),
            algorithm,
            ttl: 240,
            garbage_collectable: true,
            root: Meta { permissions: 0o755, mtime: 1, ..Meta::default() },
            now: NOW,
            whitelist_expires: NOW + time::Duration::days(30),
            scratch: scratch.path().to_owned(),
        };
        let repository = Repository::create(store.clone(), &options, &signer, &master).unwrap();
        let mut encoder = Encoder::new(algorithm, Codec::default());
        let (empty, _) = put_content(&*store, &mut encoder, ObjectKind::File, b"").unwrap();
        let marker = Entry::file(MARKER, Meta { permissions: 0o600, ..Meta::default() }, 0, empty, Compression::Zlib);
        let random = Random(seed);
        World { store, algorithm, encoder, repository, signer, master, scratch, marker, random, groups: 0 }
    }

    /// A path of one to four components.
    fn path(&mut self) -> RepoPath {
        let depth = 1 + self.random.below(4);
        (0..depth).fold(RepoPath::ROOT, |path, _| {
            let letter = b'a' + self.random.below(4) as u8;
            path.join([letter])
        })
    }

    fn meta(&mut self) -> Meta {
        Meta {
            permissions: (self.random.next() & 0o7777) as u32,
            uid: self.random.below(3) as u32,
            gid: u32::MAX - self.random.below(3) as u32,
            mtime: self.random.below(1 << 33) as i64 - (1 << 31),
            mtime_ns: (self.random.below(2) == 0).then(|| self.random.below(1_000_000_000) as u32),
        }
    }

    fn object(&mut self, kind: ObjectKind) -> (ContentHash, u64) {
        let size = self.random.below(50);
        let content: Vec<u8> = (0..size).map(|_| self.random.next() as u8).collect();
        let (hash, _) = put_content(&*self.store, &mut self.encoder, kind, &content).unwrap();
        (hash, size)
    }

    fn node(&mut self, name: &[u8]) -> Node {
        let meta = self.meta();
        let mut chunks = Vec::new();
        let mut entry = match self.random.below(8) {
            0..3 => Entry::directory(name, meta),
            3 => Entry::symlink(name, meta, "../some/where"),
            4 => Entry::special(FileType::Char, name, meta, 0),
            5 => Entry::special(FileType::Fifo, name, meta, 0),
            6 => {
                for _ in 0..3 {
                    let (hash, size) = self.object(ObjectKind::Chunk);
                    let offset = chunks.last().map_or(0, |c: &Chunk| c.offset + c.size);
                    chunks.push(Chunk { offset, size: size + 1, hash });
                }
                let size = chunks.iter().map(|c| c.size).sum();
                Entry::chunked(name, meta, size, self.algorithm, Compression::Zlib)
            }
            _ => {
                let (hash, size) = self.object(ObjectKind::File);
                Entry::file(name, meta, size, hash, Compression::Zlib)
            }
        };
        if self.random.below(4) == 0 {
            entry.xattrs = Some(b"\x01\x01\x06\x01user.kv".as_slice().into());
        }
        Node { entry, chunks, group: 0 }
    }

    /// A random tree at `root`, in the model and as a graft.
    fn graft(&mut self, root: &RepoPath, model: &mut Model) -> Graft {
        remove(model, root);
        let mut top = self.node(root.name());
        while !top.entry.is_directory() {
            top = self.node(root.name());
        }
        let options = SubtreeOptions {
            algorithm: self.algorithm,
            codec: Codec::default(),
            budget: 1 + self.random.below(12),
            last_modified: NOW.unix_timestamp() as u64,
            scratch: self.scratch.path().to_owned(),
            marker: self.marker.clone(),
            workers: 2,
        };
        let store: Arc<dyn Store> = self.store.clone();
        let mut writer = SubtreeWriter::new(store, options, root, top.entry.clone()).unwrap();
        model.insert(root.clone(), top);
        let mut pending: Vec<RepoPath> = vec![root.clone()];
        let mut written = 0;
        while let Some(path) = pending.pop() {
            let node = match path == *root {
                true => model[&path].clone(),
                false => {
                    let mut node = self.node(path.name());
                    let parent = path.parent().unwrap();
                    let mut siblings = model.iter().filter(|(p, _)| p.parent().as_ref() == Some(&parent));
                    let twin = siblings.find(|(_, n)| n.group != 0).map(|(_, n)| n.clone());
                    match twin.filter(|_| self.random.below(2) == 0) {
                        Some(twin) => {
                            node = twin;
                            node.entry.name = path.name().to_vec();
                        }
                        None if !node.entry.is_directory() && self.random.below(2) == 0 => {
                            self.groups += 1;
                            node.group = self.groups;
                        }
                        None => {}
                    }
                    let relative = &path.as_bytes()[root.as_bytes().len() + 1..];
                    writer.add(relative, node.entry.clone(), node.group, &node.chunks).unwrap();
                    node
                }
            };
            written += 1;
            if node.entry.is_directory() && written < 40 {
                let children = self.random.below(6) as u8;
                pending.extend((0..children).map(|i| path.join([b'a' + i])));
            }
            model.insert(path, node);
        }
        writer.finish().unwrap()
    }

    /// One random edit, in the model and in the repository.
    fn edit(&mut self, transaction: &mut Transaction, model: &mut Model) {
        let path = self.path();
        let parent = path.parent().unwrap();
        let has_directory = model.get(&parent).is_some_and(|n| n.entry.is_directory());
        match self.random.below(8) {
            0..3 if has_directory => {
                let mut node = self.node(path.name());
                transaction.put(&path, node.entry.clone(), &node.chunks).unwrap();
                match model.get_mut(&path) {
                    Some(old) if old.entry.is_directory() && node.entry.is_directory() => *old = node,
                    _ => {
                        remove(model, &path);
                        node.group = 0;
                        model.insert(path, node);
                    }
                }
            }
            3 => {
                transaction.remove(&path).unwrap();
                remove(model, &path);
            }
            4 => {
                let meta = self.meta();
                let every = 1 + self.random.below(3);
                let blocked = path.ancestors().any(|p| model.get(&p).is_some_and(|n| !n.entry.is_directory()));
                let result =
                    transaction.ensure_directories(&path, meta, &|p| u64::from(p.name()[0]).is_multiple_of(every));
                assert_eq!(result.is_err(), blocked, "{result:?}");
                for directory in path.ancestors() {
                    let new = Entry::directory(directory.name(), meta);
                    let node = Node { entry: new, chunks: Vec::new(), group: 0 };
                    if !model.entry(directory).or_insert(node).entry.is_directory() {
                        break;
                    }
                }
            }
            5 if has_directory => {
                let graft = self.graft(&path, model);
                transaction.graft(&graft).unwrap();
            }
            6 => {
                let entries = self.random.below(3);
                match self.random.below(2) {
                    0 => transaction.split_if_larger(&path, entries).unwrap(),
                    _ => transaction.split_if_crowded(&path, entries, 1 + entries / 4).unwrap(),
                }
            }
            _ => {}
        }
    }

    fn begin(&self) -> Transaction {
        let options =
            TransactionOptions { now: NOW, scratch: self.scratch.path().to_owned(), marker: self.marker.clone() };
        Transaction::begin(self.repository.clone(), options).unwrap()
    }

    fn publish(&mut self, transaction: Transaction) {
        let commit = Commit { signer: &self.signer, reflog_checksum: None, tags: &[], ttl: None };
        self.repository = transaction.commit(&commit).unwrap().repository;
    }

    fn compare(&self, model: &Model, what: &str) {
        let keys = [self.master.public()];
        let anchor = Anchor { name: NAME, master_keys: &keys, blacklist: &[], now: NOW };
        let options = Options { identity: Identity::Trusted(&anchor), ..Options::new(self.scratch.path()) };
        let mut report = check(&*self.store, &options).unwrap();
        report.merge(scrub(&*self.store, 1).unwrap());
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{what}: {findings:#?}");

        let manifest = self.repository.manifest();
        let root = cvmfs::catalog::NestedRef {
            path: RepoPath::ROOT,
            hash: manifest.root_catalog,
            size: manifest.root_catalog_size,
        };
        let mut reader = Reader(BTreeMap::new());
        walk(Loader::new(&*self.store, self.scratch.path()), root, &mut reader).unwrap();
        let expected = expected(model);
        for (path, found) in &reader.0 {
            assert_eq!(Some(found), expected.get(path), "{what}: {path}");
        }
        let missing: Vec<_> = expected.keys().filter(|p| !reader.0.contains_key(p)).collect();
        assert!(missing.is_empty(), "{what}: {missing:?}");
    }
}

/// One life of a repository for each seed.
fn live(algorithm: Algorithm, seeds: std::ops::Range<u64>) {
    let (signer, master) = (Signer::generate(NAME, NOW).unwrap(), PrivateKey::generate().unwrap());
    for seed in seeds {
        let mut world = World::new(algorithm, seed, signer.clone(), master.clone());
        let root = Meta { permissions: 0o755, mtime: 1, ..Meta::default() };
        let root = Node { entry: Entry::directory("", root), chunks: Vec::new(), group: 0 };
        let mut model = Model::from([(RepoPath::ROOT, root)]);
        world.compare(&model, "at the beginning");
        for revision in 1..=12 {
            let mut transaction = world.begin();
            for _ in 0..=world.random.below(8) {
                world.edit(&mut transaction, &mut model);
            }
            world.publish(transaction);
            world.compare(&model, &format!("{algorithm:?}, seed {seed}, revision {revision}"));
        }
    }
}

#[test]
fn sha1_repositories_follow_the_model() {
    live(Algorithm::Sha1, 0..10);
}

#[test]
fn rmd160_repositories_follow_the_model() {
    live(Algorithm::Rmd160, 100..104);
}

#[test]
fn shake128_repositories_follow_the_model() {
    live(Algorithm::Shake128, 200..204);
}
