//! A publish that ends anywhere: the crash points of `doc/PUBLISHING.md`, by their numbers.
//!
//! The store of the publisher is wrapped: at a chosen step it dies, and no write succeeds from then on. What is on
//! disk then is what a killed process leaves, and perhaps a little more state beside the repository, which counts for
//! nothing. The next run begins with a fresh publisher on the same directories.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::lease::LEASES;
use cvmfs::object::Encoder;
use cvmfs::store::{Listed, Listing, LocalStore, Staged, Store, StoreError, Stored, names};
use publisher::report::Outcome;
use publisher::report::Outcome::{Unchanged, Updated};
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Layer, Member, Packing, Pushed, dir, file, noise, whiteout};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, flat_path, public, wish};
use scenarios::tree::{Tree, What, assert_same};

/// Something that changes the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Object(ObjectKind),
    Flush,
    Named(String),
}

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Succeeds,
    /// The process ends before it.
    DiesBefore,
    /// The process ends when it is done.
    DiesAfter,
}

/// Decides by all steps up to and including the present one.
type Plan = Box<dyn FnMut(&[Step]) -> Fate + Send>;

/// A store whose process dies as planned.
struct Mortal {
    store: Arc<dyn Listing>,
    life: Mutex<Life>,
}

struct Life {
    steps: Vec<Step>,
    plan: Plan,
    is_dead: bool,
}

impl std::fmt::Debug for Mortal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mortal").field(&self.store).finish()
    }
}

impl Mortal {
    fn dead() -> StoreError {
        let source = io::Error::other("the process is dead");
        StoreError::Io { action: "cannot write", what: "anything".into(), place: "test".into(), source }
    }

    fn step<T>(&self, step: Step, action: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        // One step at a time: what the plan has seen has happened.
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if life.is_dead {
            return Err(Mortal::dead());
        }
        life.steps.push(step);
        let life = &mut *life;
        let fate = (life.plan)(&life.steps);
        life.is_dead = fate != Fate::Succeeds;
        match fate {
            Fate::Succeeds => action(),
            Fate::DiesBefore => Err(Mortal::dead()),
            Fate::DiesAfter => action().and(Err(Mortal::dead())),
        }
    }

    fn steps(&self) -> Vec<Step> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).steps.clone()
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
        Ok(Box::new(MortalStaged { mortal: self, staged: self.store.stage()? }))
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.step(Step::Object(id.kind), || self.store.put(id, stored))
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.step(Step::Named(name.to_owned()), || self.store.replace(name, content))
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        // A lease is taken and given back around everything; it is no part of the repository.
        if name == LEASES && !self.life.lock().unwrap_or_else(PoisonError::into_inner).is_dead {
            return self.store.swap(name, expected, content);
        }
        self.step(Step::Named(name.to_owned()), || self.store.swap(name, expected, content))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.step(Step::Flush, || self.store.flush())
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
        self.store.remove(id)
    }
}

struct MortalStaged<'a> {
    mortal: &'a Mortal,
    staged: Box<dyn Staged + 'a>,
}

impl Write for MortalStaged<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.staged.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.staged.flush()
    }
}

impl Staged for MortalStaged<'_> {
    fn commit(self: Box<Self>, id: ObjectId) -> Result<Stored, StoreError> {
        let MortalStaged { mortal, staged } = *self;
        mortal.step(Step::Object(id.kind), || staged.commit(id))
    }
}

const FILE: Step = Step::Object(ObjectKind::File);
const CATALOG: Step = Step::Object(ObjectKind::Catalog);
const HISTORY: Step = Step::Object(ObjectKind::History);
const CERTIFICATE: Step = Step::Object(ObjectKind::Certificate);

fn named(name: &str) -> Step {
    Step::Named(name.to_owned())
}

/// A repository with the first version of an image, and the second one waiting in the registry.
struct Scene {
    registry: Arc<TestRegistry>,
    site: Site,
    wishes: [String; 1],
    layers: [Vec<Member>; 2],
    second: Pushed,
    before: Tree,
}

impl Scene {
    fn new() -> Scene {
        let (registry, mut site) = (Arc::new(TestRegistry::spawn()), Site::new());
        // One reader, so that layers come one after the other.
        site.options.jobs = 1;
        let wishes = [wish(&registry, "lab/x:1")];
        Image::of(&[&[file("version", "1"), file("old", "old")]]).push(&registry, "lab/x", "1");
        site.convert(&wishes);
        let before = site.tree("");
        let (layers, second) = Scene::push_second(&registry);
        registry.forget_requests();
        Scene { registry, site, wishes, layers, second, before }
    }

    fn push_second(registry: &TestRegistry) -> ([Vec<Member>; 2], Pushed) {
        let lower: Vec<Member> = (0..4).map(|n| file(format!("lower{n}"), noise(n, 2000))).collect();
        let upper = vec![dir("d"), file("d/f", noise(7, 3000)), whiteout("lower0"), file("version", "2")];
        let layer = |members: &[Member]| Layer::new(members, Packing::Gzip);
        let pushed = Image::new([layer(&lower), layer(&upper)]).push(registry, "lab/x", "1");
        ([lower, upper], pushed)
    }

    /// The same scene in directories of its own.
    fn fork(&self) -> Scene {
        Scene {
            registry: self.registry.clone(),
            site: self.site.fork(),
            wishes: self.wishes.clone(),
            layers: self.layers.clone(),
            second: self.second.clone(),
            before: self.before.clone(),
        }
    }

    /// Runs a pass that dies as planned; gives its outcome, or what it said at its end, and its steps.
    fn die(&mut self, plan: impl FnMut(&[Step]) -> Fate + Send + 'static) -> (Result<Outcome, String>, Vec<Step>) {
        let store = self.site.target.store.clone();
        let life = Life { steps: Vec::new(), plan: Box::new(plan), is_dead: false };
        let mortal = Arc::new(Mortal { store: store.clone(), life: Mutex::new(life) });
        self.site.target.store = mortal.clone();
        let ended = match self.site.try_convert(&[(&self.wishes[0], None)]) {
            Ok(report) => report.wishes[0].error.clone().map_or(Ok(report.wishes[0].outcome), Err),
            Err(failure) => Err(failure.to_string()),
        };
        self.site.target.store = store;
        (ended, mortal.steps())
    }

    /// The next run of the program.
    fn restart(self) -> Scene {
        Scene { site: self.site.reopened(), ..self }
    }

    /// What readers see is the first version, and nothing is wrong with it.
    #[track_caller]
    fn assert_old(&self) {
        assert_same(&self.site.tree(""), &self.before, "the repository");
        self.site.assert_sound();
    }

    /// What readers see is the second version, and nothing is wrong with it.
    #[track_caller]
    fn assert_new(&self) {
        let tree = self.site.tree("");
        let link = &tree[public(&self.registry, "lab/x:1").as_bytes()];
        let target = format!("../../{}", flat_path(self.second.config));
        assert_eq!(link.what, What::Symlink(target.into_bytes()));
        let expected = naive::unpack(self.layers.iter().map(Vec::as_slice));
        assert_flat(&self.site, self.second.config, &expected, "the second version");
        self.site.assert_sound();
    }

    /// How often each layer was asked for.
    fn fetched(&self) -> [usize; 2] {
        [0, 1].map(|n: usize| self.registry.count("GET", &self.second.layers[n].to_string()))
    }

    /// The next run completes, and fetches these layers.
    #[track_caller]
    fn complete(&self, fetched: [usize; 2]) {
        self.registry.forget_requests();
        let revision = self.site.revision();
        assert_outcome(&self.site.convert(&self.wishes).wishes[0], Updated);
        assert_eq!(self.fetched(), fetched, "layers fetched again");
        assert_eq!(self.site.revision(), revision + 1);
        self.assert_new();
        self.registry.forget_requests();
        assert_outcome(&self.site.convert(&self.wishes).wishes[0], Unchanged);
        assert_eq!(self.site.revision(), revision + 1);
    }

    fn prepared(&self) -> usize {
        std::fs::read_dir(self.site.target.paths.state.join("prepared")).map_or(0, Iterator::count)
    }
}

/// Dies before the n-th step of a kind, counted from 1.
fn before_nth(step: Step, n: usize) -> impl FnMut(&[Step]) -> Fate + Send {
    move |steps| {
        let is_it = steps.last() == Some(&step) && steps.iter().filter(|s| **s == step).count() == n;
        if is_it { Fate::DiesBefore } else { Fate::Succeeds }
    }
}

#[test]
fn steps_come_in_the_documented_order() {
    let mut scene = Scene::new();
    let state = scene.site.target.reflog_checksum();
    let storage = scene.site.storage();
    let (ended, steps) = scene.die(move |steps| {
        let hash_of = |bytes: &[u8]| ContentHash::of(Algorithm::Sha1, bytes).to_string();
        let checksum = std::fs::read_to_string(&state).unwrap_or_default();
        let reflog = hash_of(&std::fs::read(storage.join(names::REFLOG)).unwrap());
        if steps.last() == Some(&named(names::REFLOG)) {
            assert_ne!(checksum, reflog, "the checksum is that of the new reflog before the reflog is replaced");
        }
        if steps.last() == Some(&named(names::MANIFEST)) {
            assert_eq!(checksum, reflog);
        }
        Fate::Succeeds
    });
    assert_eq!(ended, Ok(Updated));
    let end = [HISTORY, CERTIFICATE, Step::Flush, named(names::REFLOG), named(names::MANIFEST)];
    assert!(steps.ends_with(&end), "{steps:#?}");
    let rest = &steps[..steps.len() - end.len()];
    assert!(rest.iter().all(|s| matches!(s, Step::Object(ObjectKind::File | ObjectKind::Chunk | ObjectKind::Catalog))));
    // Two layers, the flat, and then those that the transaction touches.
    let catalogs: Vec<usize> = (0..rest.len()).filter(|n| rest[*n] == CATALOG).collect();
    let transaction = rest.iter().rposition(|s| *s == FILE).unwrap() + 1;
    assert!(rest[transaction..].iter().all(|s| *s == CATALOG), "catalogs come after all objects");
    assert_eq!(catalogs.iter().filter(|n| **n < transaction).count(), 3, "{rest:?}");
    scene.assert_new();
    assert_eq!(scene.prepared(), 0, "what is published is not kept");
}

#[test]
fn crash_point_1_some_objects_of_a_layer() {
    let mut scene = Scene::new();
    // After the catalog of the lower layer, so within the upper one.
    let (ended, _) = scene.die(|steps| match steps {
        [before @ .., FILE] if before.contains(&CATALOG) => Fate::DiesBefore,
        _ => Fate::Succeeds,
    });
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(scene.prepared(), 1);
    let scene = scene.restart();
    scene.assert_old();
    scene.complete([0, 1]);

    // Nothing of the first layer is complete: its files are there for the second try.
    let mut scene = Scene::new();
    assert!(scene.die(before_nth(FILE, 4)).0.is_err());
    assert_eq!(scene.prepared(), 0);
    let scene = scene.restart();
    scene.assert_old();
    let report = scene.site.convert(&scene.wishes);
    assert_outcome(&report.wishes[0], Updated);
    assert!(report.wishes[0].bytes.deduplicated >= 2 * 2000, "{:?}", report.wishes[0].bytes);
    scene.assert_new();
}

#[test]
fn crash_point_2_prepared_layers() {
    // Before the catalog of the upper layer, and before that of the flat.
    for (catalog, prepared, fetched) in [(2, 1, [0, 1]), (3, 2, [0, 0])] {
        let mut scene = Scene::new();
        let (ended, _) = scene.die(before_nth(CATALOG, catalog));
        assert!(ended.is_err(), "{ended:?}");
        assert_eq!(scene.prepared(), prepared);
        let scene = scene.restart();
        scene.assert_old();
        scene.complete(fetched);
    }

    // Records that can't be used are worth nothing and do no harm.
    let mut scene = Scene::new();
    assert!(scene.die(before_nth(CATALOG, 3)).0.is_err());
    let directory = scene.site.target.paths.state.join("prepared");
    let files: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    std::fs::write(&files[0], "{").unwrap();
    // An object that the other one needs was lost.
    let digest = files[1].file_stem().unwrap().to_string_lossy().into_owned();
    let name = if digest == scene.second.layers[0].hex() { 3 } else { 7 };
    let hash = {
        let mut encoder = Encoder::new(Algorithm::Sha1, scene.site.target.codec);
        encoder.encode(&noise(name, if name == 3 { 2000 } else { 3000 })).0
    };
    std::fs::remove_file(scene.site.storage().join(hash.object(ObjectKind::File).path())).unwrap();
    let scene = scene.restart();
    scene.assert_old();
    scene.complete([1, 1]);
}

#[test]
fn crash_point_3_some_catalogs() {
    let (_, steps) = Scene::new().die(|_| Fate::Succeeds);
    let count = steps.iter().filter(|s| **s == CATALOG).count();
    assert!(count > 8, "{count}");
    for catalog in [4, 6, count] {
        let mut scene = Scene::new();
        let (ended, _) = scene.die(before_nth(CATALOG, catalog));
        assert!(ended.is_err(), "{ended:?}");
        let scene = scene.restart();
        scene.assert_old();
        scene.complete([0, 0]);
    }
}

#[test]
fn crash_point_4_history() {
    die_at_the_end(before_nth(HISTORY, 1));
    die_at_the_end(before_nth(CERTIFICATE, 1));
}

#[test]
fn crash_point_5_certificate() {
    die_at_the_end(before_nth(Step::Flush, 1));
}

#[test]
fn crash_point_6_reflog_checksum() {
    let scene = die_at_the_end(before_nth(named(names::REFLOG), 1));
    assert_eq!(scene.prepared(), 0);
}

#[test]
fn crash_point_7_reflog() {
    die_at_the_end(before_nth(named(names::MANIFEST), 1));

    // Without the checksum nobody could tell this reflog from a damaged one; the next publish mends it.
    let mut scene = Scene::new();
    assert!(scene.die(before_nth(named(names::MANIFEST), 1)).0.is_err());
    std::fs::remove_file(scene.site.target.reflog_checksum()).unwrap();
    let scene = scene.restart();
    assert_same(&scene.site.tree(""), &scene.before, "the repository");
    scene.complete([0, 0]);
}

/// All layers are prepared when it dies; readers see the old revision; the next run fetches no layer.
fn die_at_the_end(plan: impl FnMut(&[Step]) -> Fate + Send + 'static) -> Scene {
    let mut scene = Scene::new();
    let (ended, _) = scene.die(plan);
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(scene.prepared(), 2);
    let scene = scene.restart();
    assert_eq!(scene.site.revision(), 1);
    scene.assert_old();
    scene.complete([0, 0]);
    scene
}

#[test]
fn crash_point_8_manifest() {
    let mut scene = Scene::new();
    let manifest = named(names::MANIFEST);
    let (ended, _) =
        scene.die(move |steps| if steps.last() == Some(&manifest) { Fate::DiesAfter } else { Fate::Succeeds });
    assert!(ended.is_err(), "it did not live to know");
    assert_eq!(scene.prepared(), 2, "it could not tidy up");
    let scene = scene.restart();
    assert_eq!(scene.site.revision(), 2);
    scene.assert_new();
    scene.registry.forget_requests();
    assert_outcome(&scene.site.convert(&scene.wishes).wishes[0], Unchanged);
    assert_eq!((scene.fetched(), scene.site.revision()), ([0, 0], 2));
}

#[test]
fn every_write_can_be_the_last_one() {
    let base = Scene::new();
    for last in 0.. {
        let mut scene = base.fork();
        let (ended, steps) = scene.die(move |steps| if steps.len() > last { Fate::DiesBefore } else { Fate::Succeeds });
        let prepared = scene.prepared();
        // The index of known files is a hint: a killed process has not written all of it.
        if last % 2 == 1 {
            let _ = std::fs::remove_file(scene.site.target.paths.state.join("objects.db"));
        }
        let scene = scene.restart();
        if steps.len() <= last {
            assert_eq!(ended, Ok(Updated));
            scene.assert_new();
            assert!(last > 25, "{last} steps");
            break;
        }
        assert!(ended.is_err(), "{ended:?}");
        scene.assert_old();
        scene.registry.forget_requests();
        assert_outcome(&scene.site.convert(&scene.wishes).wishes[0], Updated);
        assert_eq!(scene.fetched().iter().sum::<usize>(), 2 - prepared, "what was prepared is not fetched again");
        scene.assert_new();
    }
}

#[test]
fn a_manifest_that_appears_in_between_is_noticed() {
    // Somebody who does not know our lock puts the manifest of another repository there while we are about to publish.
    let mut scene = Scene::new();
    let store = LocalStore::open(scene.site.storage());
    let old = store.read(names::MANIFEST).unwrap().unwrap();
    let other = Scene::new();
    let foreign = LocalStore::open(other.site.storage()).read(names::MANIFEST).unwrap().unwrap();
    let storage = scene.site.storage();
    let (ended, steps) = scene.die(move |steps| {
        if steps.last() == Some(&HISTORY) {
            std::fs::write(storage.join(names::MANIFEST), &foreign).unwrap();
        }
        Fate::Succeeds
    });
    let error = ended.unwrap_err();
    // Going on from there needs its certificate.
    assert!(error.contains("X is not in the storage"), "{error}");
    assert!(!steps.contains(&named(names::MANIFEST)) && !steps.contains(&named(names::REFLOG)));
    store.replace(names::MANIFEST, &old).unwrap();
    let scene = scene.restart();
    scene.assert_old();
    scene.complete([0, 0]);
}
