//! Lives of repositories, collected, and compared with a second way to find out what has to stay: plain walks from the
//! roots that the rules name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use time::UtcDateTime;

use super::*;
use crate::catalog::NestedRef;
use crate::entry::{Entry, Flags, Meta};
use crate::hash::{Algorithm, ObjectId, ObjectKind};
use crate::history::Tag;
use crate::manifest::Manifest;
use crate::object::{Codec, Compression, Encoder};
use crate::path::RepoPath;
use crate::repository::{CreateOptions, Retag, Revision};
use crate::signature::PrivateKey;
use crate::store::{MemoryStore, Store as _, names, put_content};
use crate::transaction::{Commit, Transaction, TransactionOptions};
use crate::traversal::{Descend, Loaded, Loader, Visit, walk};
use crate::trust::Anchor;

const FQRN: &str = "x.example.org";
const META: Meta = Meta { permissions: 0o755, uid: 0, gid: 0, mtime: 1_700_000_000, mtime_ns: None };
/// When the repository was made; revision n is published n minutes later.
const BIRTH: i64 = 1_760_000_000;

/// Made once: this takes seconds.
static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::generate(FQRN, at(0)).unwrap());
static MASTER: LazyLock<PrivateKey> = LazyLock::new(|| PrivateKey::generate().unwrap());

struct World {
    store: Arc<MemoryStore>,
    repository: Repository,
    scratch: tempfile::TempDir,
    dice: u64,
}

fn at(revision: u64) -> UtcDateTime {
    UtcDateTime::from_unix_timestamp(BIRTH + 60 * revision as i64).unwrap()
}

fn objects(store: &MemoryStore) -> BTreeSet<String> {
    store.content().keys().filter(|path| path.starts_with("data/")).cloned().collect()
}

impl World {
    fn new(seed: u64) -> World {
        let (store, scratch) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let options = CreateOptions {
            fqrn: FQRN.into(),
            algorithm: Algorithm::Sha1,
            ttl: 240,
            garbage_collectable: true,
            root: META,
            now: at(0),
            whitelist_expires: at(0) + time::Duration::days(30),
            scratch: scratch.path().to_owned(),
        };
        let repository = Repository::create(store.clone(), &options, &SIGNER, &MASTER).unwrap();
        World { store, repository, scratch, dice: seed }
    }

    /// The same world, to live on by itself.
    fn fork(&self) -> World {
        let store = Arc::new(MemoryStore::default());
        *store.content() = self.store.content().clone();
        let mut repository = self.repository.clone();
        repository.store = store.clone();
        World { store, repository, scratch: tempfile::tempdir().unwrap(), dice: self.dice }
    }

    fn throw(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn file(&self, content: u64) -> Entry {
        let plain = content.to_string();
        let mut encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        let (hash, _) = put_content(&*self.store, &mut encoder, ObjectKind::File, plain.as_bytes()).unwrap();
        Entry::file("", META, plain.len() as u64, hash, Compression::Zlib)
    }

    /// One publish of random changes in a few directories, some with catalogs of their own.
    fn publish(&mut self) {
        let marker = self.file(0);
        let marker = Entry { name: b".cvmfscatalog".to_vec(), flags: marker.flags.with(Flags::HIDDEN), ..marker };
        let now = at(self.repository.manifest.revision + 1);
        let options = TransactionOptions { now, scratch: self.scratch.path().to_owned(), marker };
        let mut transaction = Transaction::begin(self.repository.clone(), options).unwrap();
        for _ in 0..=self.throw(4) {
            let directory = RepoPath::parse(format!("/d{}/e{}", self.throw(3), self.throw(2))).unwrap();
            let nested = |p: &RepoPath| p.components().count() == 1 || p.as_bytes().ends_with(b"e1");
            transaction.ensure_directories(&directory, META, &nested).unwrap();
            let path = directory.join(format!("f{}", self.throw(4)));
            if self.throw(4) == 0 && transaction.lookup(&path).unwrap().is_some() {
                transaction.remove(&path).unwrap();
            } else {
                let content = self.throw(30);
                let entry = Entry { name: path.name().to_vec(), ..self.file(content) };
                transaction.put(&path, entry, &[]).unwrap();
            }
        }
        let commit = Commit { signer: &SIGNER, reflog_checksum: None, tags: &[], ttl: None };
        self.repository = transaction.commit(&commit).unwrap().repository;
    }

    fn tag(&mut self, name: &str, revision: Revision) {
        let mut history = self.repository.history(self.scratch.path()).unwrap();
        let tag = self.repository.tag_of(revision, self.scratch.path()).unwrap();
        history.add(Tag { name: name.into(), ..tag }, false).unwrap();
        let retag = Retag {
            signer: &SIGNER,
            now: at(self.repository.manifest.revision),
            scratch: self.scratch.path(),
            reflog_checksum: None,
        };
        self.repository = self.repository.clone().publish_tags(&history, &retag).unwrap();
    }

    fn options(&self, keep: Keep) -> Options<'_> {
        // The store says that everything was written just now; that is long past for the collector.
        let now = SystemTime::now() + Duration::from_secs(30 * 24 * 3600);
        Options { keep, minimal_age: MINIMAL_AGE, now, scratch: self.scratch.path(), threads: 2 }
    }

    fn collect(&mut self, keep: Keep) -> Result<Swept, GcError> {
        let mut plan = Plan::make(self.repository.clone(), &self.options(keep))?;
        plan.forget(Some(&SIGNER), at(self.repository.manifest.revision).unix_timestamp() as u64, None)?;
        let swept = plan.sweep(&*self.store, Mode::Remove, &|| true)?;
        self.reopen();
        Ok(swept)
    }

    fn reopen(&mut self) {
        let keys = [MASTER.public()];
        let anchor = Anchor { name: FQRN, master_keys: &keys, blacklist: &[], now: at(0) };
        self.repository = Repository::open(self.store.clone(), &anchor).unwrap();
        let reflog = self.store.content()[names::REFLOG].clone();
        assert_eq!(self.repository.manifest.reflog, Some(ContentHash::of(Algorithm::Sha1, &reflog)));
    }

    fn objects(&self) -> BTreeSet<String> {
        objects(&self.store)
    }

    /// Everything that these root catalogs refer to.
    fn reach(&self, roots: impl IntoIterator<Item = ContentHash>) -> BTreeSet<String> {
        struct Collect(BTreeSet<String>);
        impl Visit for Collect {
            type Error = TraversalError;
            fn enter(&mut self, catalog: &Loaded) -> Result<Descend, Self::Error> {
                self.0.insert(catalog.reference().hash.object(ObjectKind::Catalog).path());
                catalog
                    .scan::<CatalogError>(|row| {
                        self.0.extend(row.entry.content.map(|hash| hash.object(ObjectKind::File).path()));
                        Ok(true)
                    })
                    .unwrap();
                Ok(Descend::Into)
            }
        }
        let mut all = Collect(BTreeSet::new());
        for hash in roots {
            let root = NestedRef { path: RepoPath::ROOT, hash, size: 0 };
            walk(Loader::new(&*self.store, self.scratch.path()), root, &mut all).unwrap();
        }
        all.0
    }

    fn roots(&self) -> BTreeMap<u64, ContentHash> {
        let revision = self.repository.manifest.revision;
        (0..=revision)
            .filter_map(|n| Some((n, self.repository.tag_of(Revision::Number(n), self.scratch.path()).ok()?.root)))
            .collect()
    }
}

#[test]
fn what_stays_is_what_the_kept_revisions_refer_to() {
    for seed in 1..=6 {
        let mut world = World::new(seed);
        for _ in 0..12 {
            world.publish();
        }
        world.tag("v5", Revision::Number(5));
        let roots = world.roots();
        assert_eq!(roots.len(), 13);
        let count = 12 - world.throw(12);
        // Seconds between two publishes: the one before is beyond it and kept, its predecessor is not.
        let since = at(12 - count).unix_timestamp() as u64 + 30;
        for (keep, first) in [(Keep::Revisions(count), 12 - count), (Keep::Since(since), 12 - count)] {
            let World { store, repository, .. } = world.fork();
            let plan = Plan::make(repository, &world.options(keep)).unwrap();
            let tagged: Vec<u64> = vec![5, 11];
            let kept = (first..=12).chain(tagged).map(|n| roots[&n]);
            let mut expected = world.reach(kept);
            let listed = world.repository.reflog(world.scratch.path()).unwrap().unwrap();
            let time = |hash: ContentHash| listed.iter().find(|r| r.hash == hash).unwrap().timestamp;
            let manifest = &world.repository.manifest;
            for r in listed.iter().filter(|r| r.timestamp >= time(roots[&first])) {
                expected.extend(match r.kind {
                    crate::reflog::RefKind::Catalog => None,
                    crate::reflog::RefKind::Certificate => Some(r.hash.object(ObjectKind::Certificate).path()),
                    crate::reflog::RefKind::History => Some(r.hash.object(ObjectKind::History).path()),
                    crate::reflog::RefKind::MetaInfo => Some(r.hash.object(ObjectKind::MetaInfo).path()),
                });
            }
            expected.insert(manifest.meta_info.unwrap().object(ObjectKind::MetaInfo).path());
            expected.insert(manifest.certificate.unwrap().object(ObjectKind::Certificate).path());
            let before = world.objects();
            let dry = plan.sweep(&*store, Mode::Count, &|| true).unwrap();
            assert_eq!(objects(&store), before, "counting changes nothing");
            let swept = plan.sweep(&*store, Mode::Remove, &|| true).unwrap();
            assert_eq!(swept, dry);
            assert_eq!(objects(&store), expected, "seed {seed}, {keep:?}");
            assert_eq!(swept.total().objects as usize, before.len() - expected.len());
        }
    }
}

#[test]
fn orphans_go_and_the_young_stay() {
    let mut world = World::new(1);
    world.publish();
    world.publish();
    world.collect(Keep::Revisions(9)).unwrap();
    let old = world.file(1_000_001).content.unwrap().object(ObjectKind::File);
    let young = world.file(1_000_002).content.unwrap().object(ObjectKind::File);
    let now = world.options(Keep::Revisions(9)).now;
    world.store.set_modified(young, now - MINIMAL_AGE + Duration::from_secs(1));
    let future = world.file(1_000_003).content.unwrap().object(ObjectKind::File);
    world.store.set_modified(future, now + Duration::from_secs(9));
    world.store.content().insert("data/00/stranger".into(), b"?".to_vec());
    let manifest = world.repository.manifest.clone();
    let swept = world.collect(Keep::Revisions(9)).unwrap();
    assert!(!world.store.exists(old).unwrap());
    assert!(world.store.exists(young).unwrap() && world.store.exists(future).unwrap());
    assert_eq!((swept.total().objects, swept.young.objects, swept.strangers), (1, 2, 1));
    assert_eq!(world.repository.manifest, manifest, "nothing was to be forgotten, so nothing was published");
}

#[test]
fn a_revision_of_late_keeps_all_that_it_refers_to() {
    let mut world = World::new(3);
    for _ in 0..5 {
        world.publish();
    }
    let roots = world.roots();
    let mut options = world.options(Keep::Revisions(0));
    // As seen a day after revision 3; its old objects are older than that.
    options.now = SystemTime::UNIX_EPOCH + Duration::from_secs(at(3).unix_timestamp() as u64 + 24 * 3600);
    options.minimal_age = Duration::from_secs(24 * 3600 + 30);
    let plan = Plan::make(world.repository.clone(), &options).unwrap();
    let kept: BTreeSet<ContentHash> = plan.kept.iter().map(|root| root.hash).collect();
    assert_eq!(kept, (3..=5).map(|n| roots[&n]).collect());
}

#[test]
fn an_unreadable_catalog_stops_everything_but_revisions_that_are_gone_do_not() {
    let mut world = World::new(5);
    for _ in 0..6 {
        world.publish();
    }
    world.tag("v2", Revision::Number(2));
    let roots = world.roots();
    let nested: Vec<ObjectId> = {
        let loader = Loader::new(&*world.store, world.scratch.path());
        let root = loader.load(&NestedRef { path: RepoPath::ROOT, hash: roots[&2], size: 0 }).unwrap();
        root.nested_all().unwrap().into_iter().map(|n| n.hash.object(ObjectKind::Catalog)).collect()
    };
    let lost = world.store.content().remove(&nested[0].path()).unwrap();
    let before = world.store.content().clone();
    assert!(matches!(world.collect(Keep::Revisions(0)), Err(GcError::Unreadable { .. })));
    assert_eq!(*world.store.content(), before);
    world.store.content().insert(nested[0].path(), lost);
    let head = world.repository.manifest.root_catalog.object(ObjectKind::Catalog);
    let lost = world.store.content().remove(&head.path()).unwrap();
    assert!(matches!(world.collect(Keep::Revisions(0)), Err(GcError::Unreadable { .. })));
    world.store.content().insert(head.path(), lost);
    world.store.content().remove(&roots[&4].object(ObjectKind::Catalog).path());
    let swept = world.collect(Keep::Revisions(9)).unwrap();
    assert!(swept.total().objects > 0);
    assert_eq!(world.roots().keys().copied().collect::<Vec<_>>(), [2, 5, 6]);
    let left = world.repository.reflog(world.scratch.path()).unwrap().unwrap();
    assert!(left.iter().all(|r| r.hash != roots[&4] && r.hash != roots[&3]), "the reflog forgot what is gone");
}

#[test]
fn a_collection_that_stopped_anywhere_is_completed_by_the_next() {
    let mut world = World::new(7);
    for _ in 0..8 {
        world.publish();
    }
    for stop in [0, 1, 40, 200] {
        let mut world = world.fork();
        let roots = world.roots();
        let expected = world.reach([roots[&7], roots[&8]]);
        let mut plan = Plan::make(world.repository.clone(), &world.options(Keep::Revisions(0))).unwrap();
        plan.forget(Some(&SIGNER), 0, None).unwrap();
        let asked = AtomicU32::new(0);
        let stopped = plan.sweep(&*world.store, Mode::Remove, &|| asked.fetch_add(1, Ordering::Relaxed) < stop);
        assert!(matches!(stopped, Err(GcError::Stopped(_))));
        world.reopen();
        assert!(world.objects().is_superset(&expected));
        // A wider threshold finds revisions that the first one had begun to remove.
        world.collect(Keep::Revisions(5)).unwrap();
        assert!(world.objects().is_superset(&expected));
        world.collect(Keep::Revisions(0)).unwrap();
        let files = |all: &BTreeSet<String>| {
            all.iter().filter(|p| !p.ends_with(['H', 'X', 'M'])).cloned().collect::<BTreeSet<_>>()
        };
        assert_eq!(files(&world.objects()), files(&expected));
    }
}

#[test]
fn a_publish_meanwhile_stops_the_sweep() {
    let mut world = World::new(9);
    for _ in 0..4 {
        world.publish();
    }
    let plan = Plan::make(world.repository.clone(), &world.options(Keep::Revisions(0))).unwrap();
    world.publish();
    let before = world.objects();
    assert!(matches!(plan.sweep(&*world.store, Mode::Remove, &|| true), Err(GcError::Stopped(_))));
    assert_eq!(world.objects(), before);
}

#[test]
fn what_is_not_collectable_is_not_collected() {
    let mut world = World::new(2);
    world.publish();
    let manifest = Manifest { garbage_collectable: false, ..world.repository.manifest.clone() };
    let mut fixed = world.repository.clone();
    fixed.manifest = manifest;
    assert!(matches!(Plan::make(fixed, &world.options(Keep::Revisions(0))), Err(GcError::NotAllowed(_))));
    world.store.content().remove(names::REFLOG);
    let blind = Plan::make(world.repository.clone(), &world.options(Keep::Revisions(0)));
    assert!(matches!(blind, Err(GcError::NoReflog(_))));
}

#[test]
fn marks_are_a_set_of_objects() {
    let scratch = tempfile::tempdir().unwrap();
    let marks = Marks::new(scratch.path()).unwrap();
    let id = |n: u64| {
        let mut hash = ContentHash::of(Algorithm::Sha1, &n.to_le_bytes());
        // Many in one bucket, so that it is sorted now and then.
        hash.digest[0] = if n.is_multiple_of(3) { 0xab } else { hash.digest[0] };
        hash.object(ObjectKind::ALL[n as usize % 6])
    };
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (marks, id) = (&marks, &id);
            scope.spawn(move || {
                let mut marker = marks.marker();
                (0..300_000).for_each(|n| marker.mark(id((n * 7 + thread) % 120_000)).unwrap());
                marker.flush().unwrap();
            });
        }
    });
    let buckets: Vec<_> = (0..=255).map(|b| marks.of_bucket(b).unwrap()).collect();
    assert_eq!(buckets.iter().map(marks::Marked::len).sum::<usize>(), 120_000);
    let contains = |id: ObjectId| buckets[usize::from(id.hash.digest[0])].contains(id);
    assert!((0..120_000).all(|n| contains(id(n))));
    assert!((120_000..240_000).all(|n| !contains(id(n))));
    assert!(!contains(ObjectId { kind: ObjectKind::Catalog, ..id(0) }), "the kind belongs to it");
    assert!(std::fs::read_dir(scratch.path()).unwrap().next().is_none(), "no names are left behind");
}
