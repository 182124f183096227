//! Somebody else publishes in the instant before the manifest is replaced, past all locks and leases: both publishes
//! are there in the end, and the reflog has each revision.

use std::io::Read;
use std::sync::{Arc, Mutex};

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectId;
use cvmfs::path::RepoPath;
use cvmfs::reflog::RefKind;
use cvmfs::store::{Listed, Listing, Staged, Store, StoreError, Stored, names};
use publisher::report::Outcome;
use publisher::target::{Target, directory_meta};
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, file};
use scenarios::repository::{FQRN, Site, assert_outcome, wish};
use scenarios::tree::names as names_in;
use time::UtcDateTime;

type Hook = Box<dyn FnMut() + Send>;

/// A store under which something happens just before a file is swapped.
struct Ambush {
    store: Arc<dyn Listing>,
    /// Before the swap of which file, how often, and what.
    hook: Mutex<(&'static str, u32, Hook)>,
}

impl std::fmt::Debug for Ambush {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ambush").field(&self.store).finish()
    }
}

impl Store for Ambush {
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
        self.store.stage()
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.store.put(id, stored)
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.store.replace(name, content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        let mut hook = self.hook.lock().unwrap();
        if hook.0 == name && hook.1 > 0 {
            hook.1 -= 1;
            (hook.2)();
        }
        self.store.swap(name, expected, content)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }

    fn place(&self) -> String {
        self.store.place()
    }
}

impl Listing for Ambush {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.store.list(bucket, visit)
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.store.remove(id)
    }
}

/// Publishes a directory without asking anybody.
fn intrude(target: &Target, number: u32) {
    let now = UtcDateTime::now();
    let mut transaction = target.view(now).unwrap();
    let name = format!("/intruder-{number}");
    let entry = Entry::directory(&name[1..], directory_meta(now));
    transaction.put(&RepoPath::parse(&name).unwrap(), entry, &[]).unwrap();
    target.commit(transaction).unwrap();
}

#[test]
fn who_is_overtaken_publishes_on_top_and_nothing_is_lost() {
    let registry = TestRegistry::spawn();
    Image::of(&[&[file("a", "content")]]).push(&registry, "lab/x", "1");
    for (before, times) in [(names::MANIFEST, 1), (names::REFLOG, 1), (names::MANIFEST, 3), (names::REFLOG, 3)] {
        let mut site = Site::new();
        let other = Target::open(FQRN, site.target.paths.clone()).unwrap();
        let mut number = 0;
        let hook: Hook = Box::new(move || {
            number += 1;
            intrude(&other, number);
        });
        site.target.store =
            Arc::new(Ambush { store: site.target.store.clone(), hook: Mutex::new((before, times, hook)) });
        let wishes = [wish(&registry, "lab/x:1")];
        assert_outcome(&site.convert(&wishes).wishes[0], Outcome::Added);
        assert_eq!(site.revision(), u64::from(times) + 1, "{times} before {before}");
        assert_outcome(&site.convert(&wishes).wishes[0], Outcome::Unchanged);
        let names = names_in(&site.tree(""));
        for number in 1..=times {
            assert!(names.iter().any(|name| name.ends_with(&format!("intruder-{number}"))), "{number} before {before}");
        }
        site.assert_sound();
        let rows = site.target.repository().unwrap().reflog(site.target.scratch()).unwrap().unwrap();
        let catalogs = rows.iter().filter(|row| row.kind == RefKind::Catalog).count() as u64;
        assert!(catalogs > site.revision(), "{catalogs} root catalogs for {} revisions", site.revision());
    }
}

#[test]
fn who_is_overtaken_again_and_again_gives_up_and_says_so() {
    let registry = TestRegistry::spawn();
    Image::of(&[&[file("a", "content")]]).push(&registry, "lab/x", "1");
    let mut site = Site::new();
    let other = Target::open(FQRN, site.target.paths.clone()).unwrap();
    let mut number = 0;
    let hook: Hook = Box::new(move || {
        number += 1;
        intrude(&other, number);
    });
    site.target.store =
        Arc::new(Ambush { store: site.target.store.clone(), hook: Mutex::new((names::MANIFEST, u32::MAX, hook)) });
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_eq!(report.wishes[0].outcome, Outcome::Failed);
    let error = report.wishes[0].error.clone().unwrap();
    assert!(error.contains("published by somebody else"), "{error}");
    assert_eq!(site.revision(), 10);
}
