//! A small life of a repository; the randomised version compares with a model and runs `check`.

use std::sync::Arc;

use time::UtcDateTime;

use super::*;
use crate::entry::{Flags, Meta};
use crate::hash::Algorithm;
use crate::keys::Signer;
use crate::object::{Codec, Compression, Encoder};
use crate::repository::CreateOptions;
use crate::signature::PrivateKey;
use crate::store::{MemoryStore, Store, put_content};
use crate::subtree::{SubtreeOptions, SubtreeWriter};
use crate::trust::Anchor;

const META: Meta = Meta { permissions: 0o755, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_ns: None };

struct World {
    store: Arc<MemoryStore>,
    repository: Repository,
    signer: Signer,
    master: PrivateKey,
    scratch: tempfile::TempDir,
    marker: Entry,
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

impl World {
    fn new() -> World {
        let (store, scratch) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let now = UtcDateTime::from_unix_timestamp(1_760_000_000).unwrap();
        let signer = Signer::generate("x.example.org", now).unwrap();
        let master = PrivateKey::generate().unwrap();
        let options = CreateOptions {
            fqrn: "x.example.org".into(),
            algorithm: Algorithm::Sha1,
            ttl: 240,
            garbage_collectable: true,
            root: META,
            now,
            whitelist_expires: now + time::Duration::days(30),
            scratch: scratch.path().to_owned(),
        };
        let repository = Repository::create(store.clone(), &options, &signer, &master).unwrap();
        let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        let (empty, _) = put_content(&*store, &mut encoder, ObjectKind::File, b"").unwrap();
        let marker_meta = Meta { permissions: 0o644, ..META };
        let mut marker = Entry::file(".cvmfscatalog", marker_meta, 0, empty, Compression::Zlib);
        marker.flags = marker.flags.with(Flags::HIDDEN);
        World { store, repository, signer, master, scratch, marker }
    }

    fn begin(&self) -> Transaction {
        let options = TransactionOptions {
            now: UtcDateTime::from_unix_timestamp(1_760_000_100).unwrap(),
            scratch: self.scratch.path().to_owned(),
            marker: self.marker.clone(),
        };
        Transaction::begin(self.repository.clone(), options).unwrap()
    }

    fn publish(&mut self, transaction: Transaction) -> Published {
        let commit = Commit { signer: &self.signer, reflog_checksum: None, tags: &[], ttl: None };
        let published = transaction.commit(&commit).unwrap();
        self.repository = published.repository.clone();
        let keys = [self.master.public()];
        let now = UtcDateTime::from_unix_timestamp(1_760_000_200).unwrap();
        let anchor = Anchor { name: "x.example.org", master_keys: &keys, blacklist: &[], now };
        let reopened = Repository::open(self.store.clone(), &anchor).unwrap();
        assert_eq!(reopened.manifest(), self.repository.manifest());
        published
    }

    fn graft(&self, at: &str, entries: &[(&str, Entry)], budget: u64) -> Graft {
        let options = SubtreeOptions {
            algorithm: Algorithm::Sha1,
            codec: Codec::default(),
            budget,
            last_modified: 1_760_000_050,
            scratch: self.scratch.path().to_owned(),
            marker: self.marker.clone(),
            workers: 2,
        };
        let store: Arc<dyn Store> = self.store.clone();
        let mut writer = SubtreeWriter::new(store, options, &path(at), Entry::directory("", META)).unwrap();
        for (relative, entry) in entries {
            writer.add(relative.as_bytes(), entry.clone(), 0, &[]).unwrap();
        }
        writer.finish().unwrap()
    }

    fn counters(&mut self) -> Counters {
        self.begin().open[&RepoPath::ROOT].counters
    }
}

#[test]
fn grafts_edits_and_removals_keep_links_and_counters_exact() {
    let mut world = World::new();
    let before = world.counters();
    let link = Entry::symlink("", META, "target");
    let directory = Entry::directory("", META);
    let small = world.graft("/a/b/one", &[("d", directory.clone()), ("d/l", link.clone()), ("m", link.clone())], 100);
    let split =
        [("d", directory.clone()), ("d/1", link.clone()), ("d/2", link.clone()), ("e", directory), ("z", link.clone())];
    let large = world.graft("/a/b/two", &split, 2);
    assert_eq!((small.catalogs, large.catalogs), (1, 2));
    assert_eq!((small.entry.links, large.entry.links), (3, 4));

    let mut transaction = world.begin();
    assert!(transaction.is_empty());
    transaction.ensure_directories(&path("/a/b"), META, &|p| *p == path("/a/b")).unwrap();
    transaction.graft(&small).unwrap();
    transaction.graft(&large).unwrap();
    transaction.put(&path("/a/link"), link.clone(), &[]).unwrap();
    let published = world.publish(transaction);
    assert_eq!((published.catalogs, world.repository.manifest().revision), (2, 1));

    let mut transaction = world.begin();
    for (at, links) in [("/", 3), ("/a", 3), ("/a/b", 4), ("/a/b/two", 4), ("/a/b/two/d", 2)] {
        assert_eq!(transaction.lookup(&path(at)).unwrap().unwrap().links, links, "{at}");
    }
    assert_eq!(transaction.list(&path("/a/b/two/d")).unwrap().len(), 3, "two links and the marker");
    assert!(transaction.lookup(&path("/a/link/x")).unwrap().is_none());
    transaction.put(&path("/a/b/one"), link, &[]).unwrap();
    world.publish(transaction);
    let mut transaction = world.begin();
    assert_eq!(transaction.lookup(&path("/a/b")).unwrap().unwrap().links, 3);
    transaction.remove(&path("/a")).unwrap();
    world.publish(transaction);
    assert_eq!(world.counters(), before);
    let history = world.repository.history(world.scratch.path()).unwrap();
    let tags: Vec<(&str, u64)> = history.tags.iter().map(|t| (t.name.as_str(), t.revision)).collect();
    assert_eq!(tags, [("trunk-previous", 2), ("trunk", 3)]);
}

#[test]
fn flags_change_in_a_grafted_catalog_and_nothing_else_does() {
    let mut world = World::new();
    let hello = "5798f7f4ca7585d850eea64610a1f73d8f8de7a3".parse().unwrap();
    let file = Entry::file("", META, 6, hello, Compression::Zlib);
    let graft = world.graft("/g", &[("d", Entry::directory("", META)), ("d/f", file)], 100);
    let mut transaction = world.begin();
    transaction.graft(&graft).unwrap();
    world.publish(transaction);
    let (counters, at) = (world.counters(), path("/g/d/f"));
    let before = world.begin().lookup(&at).unwrap().unwrap();
    for is_set in [true, false] {
        let mut transaction = world.begin();
        transaction.set_flags(&at, Flags::BUNDLE_TRIGGER, is_set).unwrap();
        assert!(!transaction.is_empty());
        assert_eq!(world.publish(transaction).catalogs, 2, "the root and the graft");
        let mut transaction = world.begin();
        let flags = if is_set { before.flags.with(Flags::BUNDLE_TRIGGER) } else { before.flags };
        assert_eq!(transaction.lookup(&at).unwrap().unwrap(), Entry { flags, ..before.clone() });
        transaction.set_flags(&at, Flags::BUNDLE_TRIGGER, is_set).unwrap();
        transaction.set_flags(&path("/g/d"), Flags::BUNDLE_TRIGGER, true).unwrap();
        transaction.set_flags(&path("/g/none/at/all"), Flags::BUNDLE_TRIGGER, true).unwrap();
        assert!(transaction.is_empty(), "what is so already, a directory, and what is not there");
    }
    assert_eq!(world.counters(), counters);
}

/// Section "minimal complete example" of the format: a root with one file and one link.
#[test]
fn minimal_complete_example() {
    let mut world = World::new();
    let meta = |permissions| Meta { permissions, mtime: 1_760_000_000, ..META };
    let hello = "5798f7f4ca7585d850eea64610a1f73d8f8de7a3".parse().unwrap();
    let mut transaction = world.begin();
    transaction.put(&path("/hello"), Entry::file("", meta(0o644), 6, hello, Compression::Zlib), &[]).unwrap();
    transaction.put(&path("/lnk"), Entry::symlink("", meta(0o777), "hello"), &[]).unwrap();
    world.publish(transaction);
    let manifest = world.repository.manifest().clone();
    let id = manifest.root_catalog.object(ObjectKind::Catalog);
    let file = fetch_to_scratch(&*world.store, id, world.scratch.path()).unwrap();
    let catalog = crate::catalog::Catalog::open(file.path(), RepoPath::ROOT).unwrap();
    let rows = catalog.rows_after(0, 10).unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|r| {
            let e = &r.entry;
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            (e.hardlinks_column(), e.content, e.size, e.mode, e.flags.0, text(&e.name), text(&e.symlink))
        })
        .collect();
    assert_eq!(
        shown,
        [
            (2, None, 4096, 16877, 1, String::new(), String::new()),
            (1, Some(hello), 6, 33188, 4, "hello".into(), String::new()),
            (1, None, 5, 41471, 12, "lnk".into(), "hello".into()),
        ]
    );
    assert_eq!((rows[0].rowid, rows[0].parent), (1, crate::path::PathKey::NONE));
    assert!(rows[1..].iter().all(|r| r.parent == crate::path::PathKey::ROOT));
    let mut expected = Counters::default();
    expected.own[Counter::Regular] = 1;
    expected.own[Counter::Symlink] = 1;
    expected.own[Counter::Dir] = 1;
    expected.own[Counter::FileSize] = 6;
    assert_eq!(catalog.counters().unwrap(), expected);
    for (key, value) in [("schema", "2.5"), ("schema_revision", "7"), ("revision", "1"), ("TTL", "240")] {
        assert_eq!(catalog.property(key).unwrap().as_deref(), Some(value), "{key}");
    }
    assert_eq!(catalog.property("root_prefix").unwrap(), None);
    assert!(catalog.previous_revision().unwrap().is_some(), "the empty revision 0");
}

#[test]
fn refuses_to_publish_over_another_revision() {
    let mut world = World::new();
    let mut late = world.begin();
    late.put(&path("/late"), Entry::directory("", META), &[]).unwrap();
    let mut first = world.begin();
    first.put(&path("/first"), Entry::directory("", META), &[]).unwrap();
    world.publish(first);
    let commit = Commit { signer: &world.signer, reflog_checksum: None, tags: &[], ttl: None };
    assert!(matches!(late.commit(&commit), Err(RepositoryError::Moved { expected: 0, found: 1, .. })));
}

#[test]
fn a_write_that_fails_at_any_step_leaves_the_old_or_the_new_revision() {
    for step in 0.. {
        let mut world = World::new();
        let mut transaction = world.begin();
        transaction.ensure_directories(&path("/a/b"), META, &|_| true).unwrap();
        world.store.fail_after(step);
        let commit = Commit { signer: &world.signer, reflog_checksum: None, tags: &[], ttl: None };
        let ended = transaction.commit(&commit).map(|p| p.repository);
        world.store.fail_after(i64::MAX);
        let keys = [world.master.public()];
        let now = UtcDateTime::from_unix_timestamp(1_760_000_200).unwrap();
        let anchor = Anchor { name: "x.example.org", master_keys: &keys, blacklist: &[], now };
        world.repository = Repository::open(world.store.clone(), &anchor).unwrap();
        let expected = u64::from(ended.is_ok());
        assert_eq!(world.repository.manifest().revision, expected, "failed at write {step}");
        world.begin().list(&path("/a/b")).unwrap();
        if ended.is_ok() {
            assert!(step > 4, "the writes of a publish were counted");
            break;
        }
    }
}

#[test]
fn alternative_paths_are_kept_up() {
    let mut world = World::new();
    let mut manifest = world.repository.manifest.clone();
    manifest.alternative_paths = true;
    let repository = world.repository.clone().finish(manifest, &world.signer, world.scratch.path(), None).unwrap();
    world.repository = repository;
    let mut transaction = world.begin();
    transaction.ensure_directories(&path("/d"), META, &|_| false).unwrap();
    world.publish(transaction);
    let manifest = world.repository.manifest();
    assert!(manifest.alternative_paths);
    let root = manifest.root_catalog.object(ObjectKind::Catalog);
    let content = world.store.content();
    assert_eq!(content.get(&crate::store::names::alternative(root)), content.get(&root.path()));
    let links = content.keys().filter(|k| k.starts_with(".cvmfsalt-")).count();
    assert_eq!(links, 6, "two root catalogs, two tag databases, certificate, meta info");
}
