//! Collecting objects: what the reference collector sweeps, conversions under way, other collectors, and sudden ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cvmfs::check::{Identity, Options, check};
use cvmfs::gc::{self, Keep, Mode, Plan};
use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::reflog;
use cvmfs::repository::{Repository, Revision};
use cvmfs::signature::PublicKey;
use cvmfs::store::{Listed, Listing, LocalStore, Staged, Store, StoreError, Stored, names};
use cvmfs::trust::Anchor;
use publisher::failure::Failure;
use publisher::gc::{CollectOptions, Collected, collect};
use publisher::removal;
use publisher::report::Outcome::{Added, Updated};
use publisher::status::STATUS;
use publisher::tags;
use publisher::target::Target;
use registry::testing::{Fault, TestRegistry};
use scenarios::fixtures::{self, Fixture};
use scenarios::image_builder::{Image, Layer, Member, Packing, file, noise};
use scenarios::mounted::{self, Mounted};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, wish};
use time::UtcDateTime;

/// Nothing is too young; of the past only what has a tag stays.
const EVERYTHING: CollectOptions =
    CollectOptions { keep: Keep::Revisions(0), minimal_age: Duration::ZERO, dry_run: false };

fn objects(storage: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for bucket in fs::read_dir(storage.join("data")).unwrap().map(|e| e.unwrap()) {
        let name = bucket.file_name().into_string().unwrap();
        for object in fs::read_dir(bucket.path()).unwrap().map(|e| e.unwrap()).filter(|_| name != "txn") {
            found.insert(format!("data/{name}/{}", object.file_name().into_string().unwrap()));
        }
    }
    found
}

#[test]
fn sweeps_what_the_reference_collector_sweeps() {
    let (before, after) = (Fixture::unpack("gc-before"), Fixture::unpack("gc"));
    let swept: BTreeSet<String> =
        fs::read_to_string(fixtures::directory().join("gc-swept.txt")).unwrap().lines().map(str::to_owned).collect();
    let master_keys = [PublicKey::from_pem(&before.public_key).unwrap()];
    let anchor = Anchor { name: &before.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    let store = Arc::new(LocalStore::open(&before.storage));
    let scratch = tempfile::tempdir().unwrap();
    let repository = Repository::open(store.clone(), &anchor).unwrap();
    let manifest = store.read(names::MANIFEST).unwrap();
    let options = gc::Options {
        keep: Keep::Revisions(1),
        minimal_age: Duration::ZERO,
        now: SystemTime::now(),
        scratch: scratch.path(),
        threads: 2,
    };
    let mut plan = Plan::make(repository, &options).unwrap();
    let all = objects(&before.storage);
    let dry = plan.sweep(&*store, Mode::Count, &|| true).unwrap();
    assert_eq!(dry.total().objects as usize, swept.len());
    let checksum = scratch.path().join("reflog.chksum");
    plan.forget(None, 0, Some(&checksum)).unwrap();
    plan.sweep(&*store, Mode::Remove, &|| true).unwrap();
    let left = objects(&before.storage);
    assert_eq!(all.difference(&left).cloned().collect::<BTreeSet<_>>(), swept);
    assert_eq!(left, objects(&after.storage));
    let rows = |fixture: &Fixture| reflog::read(&fixture.storage.join(names::REFLOG)).unwrap();
    assert_eq!(rows(&before), rows(&after));
    assert_eq!(store.read(names::MANIFEST).unwrap(), manifest, "without a key the manifest stays");
    let mut options = Options::new(scratch.path());
    options.identity = Identity::Trusted(&anchor);
    options.reflog_checksum = Some(fs::read_to_string(&checksum).unwrap().parse().unwrap());
    let report = check(&*store, &options).unwrap();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn the_rules_of_time_are_those_of_the_reference_collector() {
    let fixture = Fixture::unpack("gc-before");
    let master_keys = [PublicKey::from_pem(&fixture.public_key).unwrap()];
    let anchor = Anchor { name: &fixture.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    let repository = Repository::open(Arc::new(LocalStore::open(&fixture.storage)), &anchor).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    // Times of the reflog: revision 10 …291, 9 …287, 8 …286, 7 …284, 6 …206; 9 has a tag. What is beyond the threshold
    // is kept itself, and its predecessor is not.
    for (since, roots) in [(1_795_292_292, 2), (1_795_292_288, 2), (1_795_292_287, 3), (1_795_292_285, 4), (0, 7)] {
        let options = gc::Options {
            keep: Keep::Since(since),
            minimal_age: Duration::ZERO,
            now: SystemTime::now(),
            scratch: scratch.path(),
            threads: 1,
        };
        let plan = Plan::make(repository.clone(), &options).unwrap();
        assert_eq!(plan.kept.len(), roots, "since {since}: {:?}", plan.kept);
    }
}

/// A repository with three revisions of one image; each has a file of its own and all share one.
struct Scene {
    registry: TestRegistry,
    site: Site,
    layers: Vec<Vec<Member>>,
}

impl Scene {
    fn new() -> Scene {
        let (registry, mut site) = (TestRegistry::spawn(), Site::new());
        site.options.jobs = 1;
        let mut scene = Scene { registry, site, layers: Vec::new() };
        for version in 1..=3 {
            scene.push(version);
            let expected = if version == 1 { Added } else { Updated };
            assert_outcome(&scene.site.convert(&[wish(&scene.registry, "lab/x:1")]).wishes[0], expected);
        }
        scene
    }

    /// The next version of the image: a layer that all have, and one of its own.
    fn push(&mut self, version: u64) -> scenarios::image_builder::Pushed {
        let shared = vec![file("shared", noise(1, 3000))];
        let own: Vec<Member> =
            (0..3).map(|n| file(format!("v{version}-{n}"), noise(100 * version + n, 3000))).collect();
        self.layers = vec![shared, own];
        let layers = self.layers.iter().map(|members| Layer::new(members, Packing::Gzip));
        Image::new(layers.collect::<Vec<_>>()).push(&self.registry, "lab/x", "1")
    }

    fn collect(&self) -> Collected {
        collect(&self.site.target, &EVERYTHING).unwrap()
    }
}

/// Another process that works on the same repository, in a hurry.
fn another(site: &Site) -> Target {
    let mut target = Target::open(&site.target.fqrn, site.target.paths.clone()).unwrap();
    target.patience = Duration::ZERO;
    target
}

#[test]
fn what_readers_see_stays_and_the_rest_goes() {
    let scene = Scene::new();
    let site = &scene.site;
    tags::add(&site.target, "second", "", Revision::Number(2)).unwrap();
    let (tree, revision, before) = (site.tree(""), site.revision(), objects(&site.storage()));
    let dry = collect(&site.target, &CollectOptions { dry_run: true, ..EVERYTHING }).unwrap();
    assert_eq!(objects(&site.storage()), before);
    assert!(!site.storage().join(STATUS).exists());
    let young = collect(&site.target, &CollectOptions { minimal_age: gc::MINIMAL_AGE, ..EVERYTHING }).unwrap();
    assert_eq!((young.removed.objects, young.roots_forgotten), (0, 0), "all of this is of today");
    fs::write(site.storage().join(STATUS), "{\"last_check\": \"some day\", \"last_gc\": \"once\"}").unwrap();
    let done = scene.collect();
    assert_eq!((done.removed, done.roots_kept), (dry.removed, dry.roots_kept));
    assert_eq!((done.roots_kept, done.roots_forgotten), (2, 2), "the first two revisions, the initial one included");
    // Catalogs: what earlier images are made of stays, as they can be put back.
    assert!(done.removed.objects > 3, "{done:?}");
    assert_eq!(site.tree(""), tree);
    assert_eq!(site.revision(), revision);
    site.assert_sound();
    let status: serde_json::Value = serde_json::from_slice(&fs::read(site.storage().join(STATUS)).unwrap()).unwrap();
    assert_eq!(status["last_check"], "some day");
    let last = status["last_gc"].as_str().unwrap();
    assert!(last.len() == 28 && last.contains(" UTC 20"), "{last:?} is as `date --utc` prints it");
    let again = scene.collect();
    assert_eq!((again.removed.objects, again.roots_forgotten), (0, 0));
    tags::roll_back(&site.target, Some("second")).unwrap();
    site.assert_sound();
    assert!(site.tree("").keys().any(|path| path.ends_with(b"/v2-0")), "everything of the tag is there");
}

#[test]
fn a_mount_with_an_empty_cache_reads_everything_while_collections_run() {
    if !mounted::is_possible() {
        return;
    }
    let scene = Scene::new();
    let site = &scene.site;
    // Readers of the revisions before are none of its business.
    let expected = Mounted::new(site).tree();
    let (reading, read, done) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let mount = Mounted::new(site);
                reading.store(true, Ordering::Relaxed);
                // Panics at the first error.
                let tree = mount.tree();
                reading.store(false, Ordering::Relaxed);
                assert!(tree == expected, "another tree after {read:?} others");
                read.fetch_add(1, Ordering::Relaxed);
            }
        });
        let (start, mut seed, mut during) = (Instant::now(), 0, 0);
        while read.load(Ordering::Relaxed) < 3 || during < 5 {
            assert!(!reader.is_finished() && start.elapsed() < Duration::from_secs(120), "{read:?} trees, {during}");
            // What nothing refers to, so that there is always something to collect.
            for _ in 0..300 {
                seed += 1;
                let bytes = noise(1_000_000 + seed, 500);
                let orphan = ContentHash::of(Algorithm::Sha1, &bytes).object(ObjectKind::File);
                site.target.store.put(orphan, &bytes).unwrap();
            }
            let before = reading.load(Ordering::Relaxed);
            assert!(scene.collect().removed.objects >= 300);
            during += u32::from(before && reading.load(Ordering::Relaxed));
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    site.assert_sound();
}

#[test]
fn content_that_was_collected_is_stored_again() {
    let mut scene = Scene::new();
    scene.collect();
    // The index of known files would name objects of the first version.
    let pushed = scene.push(1);
    assert_outcome(&scene.site.convert(&[wish(&scene.registry, "lab/x:1")]).wishes[0], Updated);
    assert_flat(&scene.site, pushed.config, &naive::unpack(scene.layers.iter().map(Vec::as_slice)), "version 1");
    scene.site.assert_sound();
}

#[test]
fn orphans_of_a_failed_run_go() {
    let mut scene = Scene::new();
    scene.collect();
    let clean = objects(&scene.site.storage());
    let pushed = scene.push(4);
    scene.registry.fault(Fault::status(404).on(&pushed.layers[1].to_string()).times(9));
    let report = scene.site.convert(&[wish(&scene.registry, "lab/x:1")]);
    assert!(report.wishes[0].error.is_some());
    let pushed = scene.push(5);
    scene.registry.fault(Fault::corrupt().on(&pushed.layers[1].to_string()).times(9));
    assert!(scene.site.convert(&[wish(&scene.registry, "lab/x:1")]).wishes[0].error.is_some());
    assert!(objects(&scene.site.storage()).len() > clean.len(), "the failed run left objects");
    scene.collect();
    assert_eq!(objects(&scene.site.storage()), clean);
    scene.site.assert_sound();
}

/// Runs a conversion whose second layer comes slowly, and `meanwhile` once the first one is prepared.
fn in_the_middle_of_a_fetch(scene: &mut Scene, meanwhile: impl FnOnce(&Scene)) {
    // The shared layer is published; both layers of this image are new.
    let layers: Vec<Vec<Member>> =
        (0..2).map(|n| (0..20).map(|m| file(format!("f{n}-{m}"), noise(9000 + 100 * n + m, 2000))).collect()).collect();
    let image = layers.iter().map(|members| Layer::new(members, Packing::Gzip)).collect::<Vec<_>>();
    let pushed = Image::new(image).push(&scene.registry, "lab/y", "1");
    let slow = pushed.layers[1].to_string();
    scene.registry.fault(Fault::slow(1500, Duration::from_millis(100)).on(&slow));
    let scene: &Scene = scene;
    std::thread::scope(|scope| {
        let conversion = scope.spawn(|| scene.site.convert(&[wish(&scene.registry, "lab/y:1")]));
        let prepared = scene.site.target.paths.state.join("prepared");
        let start = Instant::now();
        while fs::read_dir(&prepared).map_or(0, Iterator::count) == 0 || scene.registry.count("GET", &slow) == 0 {
            assert!(start.elapsed() < Duration::from_secs(60) && !conversion.is_finished(), "too late");
            std::thread::sleep(Duration::from_millis(5));
        }
        meanwhile(scene);
        assert!(!conversion.is_finished(), "the conversion was to be in the middle of a fetch");
        assert_outcome(&conversion.join().unwrap().wishes[0], Added);
    });
    assert_flat(&scene.site, pushed.config, &naive::unpack(layers.iter().map(Vec::as_slice)), "the new image");
    scene.site.assert_sound();
}

#[test]
fn a_conversion_keeps_collectors_away() {
    let mut scene = Scene::new();
    in_the_middle_of_a_fetch(&mut scene, |scene| {
        let refused = collect(&another(&scene.site), &EVERYTHING).unwrap_err();
        let Failure::Lease { source, .. } = &refused else { panic!("{refused}") };
        let said = source.to_string();
        assert!(said.contains("convert images") && said.contains(&std::process::id().to_string()), "{said}");
    });
    let done = scene.collect();
    assert!(done.removed.objects > 0);
    scene.site.assert_sound();
}

#[test]
fn a_collector_waits_for_a_conversion() {
    let mut scene = Scene::new();
    let mut collector = another(&scene.site);
    collector.patience = Duration::from_secs(120);
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        in_the_middle_of_a_fetch(&mut scene, |_| {
            scope.spawn(move || send.send(collect(&collector, &EVERYTHING)).unwrap());
            std::thread::sleep(Duration::from_millis(300));
        });
        assert!(receive.recv().unwrap().unwrap().removed.objects > 0);
    });
    scene.site.assert_sound();
}

#[test]
fn a_collector_keeps_conversions_and_publishes_away() {
    let mut scene = Scene::new();
    let collector = another(&scene.site);
    let lock = collector.lock_to_collect().unwrap();
    scene.push(4);
    scene.site.target.patience = Duration::ZERO;
    let refused = scene.site.try_convert(&[(&wish(&scene.registry, "lab/x:1"), None)]).unwrap_err();
    assert!(matches!(refused, Failure::Lease { .. }), "{refused}");
    drop(lock);
    scene.site.convert(&[wish(&scene.registry, "lab/x:1")]);
    scene.site.assert_sound();
}

#[test]
fn a_pass_with_nothing_new_needs_no_lease() {
    let scene = Scene::new();
    let collector = another(&scene.site);
    let _lock = collector.lock_to_collect().unwrap();
    let leases = fs::read(scene.site.storage().join(cvmfs::lease::LEASES)).unwrap();
    scene.site.convert(&[wish(&scene.registry, "lab/x:1")]);
    assert_eq!(fs::read(scene.site.storage().join(cvmfs::lease::LEASES)).unwrap(), leases);
}

/// The reference collector knows no leases and says nothing, but for the reflog.
fn collect_like_a_stranger(site: &Site) {
    let repository = site.target.repository().unwrap();
    let options = gc::Options {
        keep: Keep::Revisions(0),
        minimal_age: Duration::ZERO,
        now: SystemTime::now() + Duration::from_secs(1),
        scratch: site.target.scratch(),
        threads: 1,
    };
    let mut plan = Plan::make(repository, &options).unwrap();
    plan.forget(None, 0, None).unwrap();
    let swept = plan.sweep(&*site.target.store, Mode::Remove, &|| true).unwrap();
    assert!(swept.total().objects > 0);
}

#[test]
fn a_stranger_who_collects_in_the_middle_of_a_fetch_does_no_harm() {
    let mut scene = Scene::new();
    in_the_middle_of_a_fetch(&mut scene, |scene| collect_like_a_stranger(&scene.site));
}

#[test]
fn a_plan_made_before_a_collection_is_not_believed() {
    let scene = Scene::new();
    let shared: Vec<Member> = (0..9).map(|n| file(format!("s{n}"), noise(7000 + n, 2000))).collect();
    let last = vec![file("last", "last")];
    let layers = [shared, last].map(|members| Layer::new(&members, Packing::Gzip));
    let pushed = Image::new(layers).push(&scene.registry, "lab/z", "1");
    scene.registry.fault(Fault::status(404).on(&pushed.layers[1].to_string()));
    let wishes = [wish(&scene.registry, "lab/z:1")];
    assert!(scene.site.convert(&wishes).wishes[0].error.is_some());
    let plan = scene.site.plan(&wishes);
    collect_like_a_stranger(&scene.site);
    // Another process has seen and noted it; this one has not.
    drop(another(&scene.site));
    let report = scene.site.converter().apply(&plan).unwrap();
    assert_outcome(&report.wishes[0], Added);
    assert_eq!(report.wishes[0].layers.fetched, 2, "the prepared layer is gone and fetched again");
    scene.site.assert_sound();
}

#[test]
fn what_is_remembered_of_objects_is_dropped_after_a_stranger_collected() {
    let scene = Scene::new();
    let state = scene.site.target.paths.state.clone();
    let known = || {
        let index = publisher::raw_index::RawIndex::open(&state, Algorithm::Sha1, scene.site.target.codec).unwrap();
        index.is_empty().unwrap()
    };
    assert!(!known());
    drop(another(&scene.site));
    assert!(!known(), "nothing was collected");
    collect_like_a_stranger(&scene.site);
    drop(another(&scene.site));
    assert!(known());
}

/// A store whose process ends after some changes.
#[derive(Debug)]
struct Mortal {
    store: Arc<dyn Listing>,
    left: AtomicI64,
}

impl Mortal {
    fn step<T>(&self, action: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return action();
        }
        let source = io::Error::other("the process is dead");
        Err(StoreError::Io { action: "cannot write", what: "anything".into(), place: "test".into(), source })
    }
}

impl Store for Mortal {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.store.open(id)
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.store.exists(id)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.read(name)
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        self.step(|| self.store.stage())
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.step(|| self.store.put(id, stored))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.step(|| self.store.replace(name, content))
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.step(|| self.store.swap(name, expected, content))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.step(|| self.store.flush())
    }

    fn place(&self) -> String {
        self.store.place()
    }
}

impl Listing for Mortal {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.store.list(bucket, visit)
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.step(|| self.store.remove(id))
    }
}

#[test]
fn a_collection_that_ends_anywhere_leaves_a_sound_repository_and_is_completed() {
    let scene = Scene::new();
    let tree = scene.site.tree("");
    let whole = scene.site.fork();
    collect(&whole.target, &EVERYTHING).unwrap();
    let expected = objects(&whole.storage());
    let mut died = 0;
    for steps in 0.. {
        let mut site = scene.site.fork();
        let store = site.target.store.clone();
        site.target.store = Arc::new(Mortal { store: store.clone(), left: AtomicI64::new(steps) });
        let ended = collect(&site.target, &EVERYTHING);
        site.target.store = store;
        let site = site.reopened();
        site.assert_sound();
        // Where the manifest was signed again is decided by the clock; the content is what counts.
        assert_eq!(site.tree(""), tree, "after {steps} steps");
        collect(&site.target, &EVERYTHING).unwrap();
        let left = objects(&site.storage());
        assert_eq!(left, expected, "after {steps} steps");
        if ended.is_ok() {
            break;
        }
        died += 1;
    }
    assert!(died > 5, "{died} steps");
}

#[test]
fn what_was_swept_of_images_goes_with_the_revisions_that_had_it() {
    let mut scene = Scene::new();
    let usage = removal::Usage::default();
    let at_once = removal::Options {
        grace: Duration::ZERO,
        keep_versions: 0,
        lists: removal::Wanted::default(),
        usage,
        dry_run: false,
    };
    let swept = removal::collect(&scene.site.target, &at_once).unwrap();
    assert_eq!(swept.swept.len(), 4, "layer and flat of two versions");
    // The revision before the present one is kept, too.
    scene.push(4);
    assert_outcome(&scene.site.convert(&[wish(&scene.registry, "lab/x:1")]).wishes[0], Updated);
    let tree = scene.site.tree("");
    let done = scene.collect();
    assert!(done.removed.bytes > 2 * 3 * 3000, "the files of two versions: {done:?}");
    assert_eq!(scene.site.tree(""), tree);
    scene.site.assert_sound();
}

#[test]
fn a_reflog_that_is_signed_again_is_the_same_revision() {
    let scene = Scene::new();
    let before = scene.site.target.repository().unwrap().manifest().clone();
    scene.collect();
    let after = scene.site.target.repository().unwrap().manifest().clone();
    let reflog = fs::read(scene.site.storage().join(names::REFLOG)).unwrap();
    assert_eq!(after.reflog, Some(ContentHash::of(Algorithm::Sha1, &reflog)));
    assert_ne!(after.reflog, before.reflog);
    assert!(after.published >= before.published);
    let same = cvmfs::manifest::Manifest { reflog: before.reflog, published: before.published, ..after };
    assert_eq!(same, before);
}
