//! A repository on a server and a copy of it, with everything that looks at the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cvmfs::blacklist::Blacklist;
use cvmfs::catalog::NestedRef;
use cvmfs::check::{Identity, Report, check};
use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::manifest::Manifest;
use cvmfs::path::RepoPath;
use cvmfs::repository::Repository;
use cvmfs::scrub::scrub;
use cvmfs::signature::PublicKey;
use cvmfs::store::{LocalStore, Store as _, names};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};
use cvmfs::trust::Anchor;
use publisher::progress::Silent;
use publisher::replicate::{Options, Patience, ReplicateError, Replicated, replicate};
use registry::RetryPolicy;
use tempfile::TempDir;
use time::UtcDateTime;

use crate::fixtures::Fixture;
use crate::server::Server;

/// A fixture behind a server, and the place of its copy.
pub struct Site {
    pub fixture: Fixture,
    pub server: Server,
    pub directory: TempDir,
}

impl Site {
    pub fn new(fixture: Fixture) -> Site {
        let server = Server::start(fixture.top());
        Site { fixture, server, directory: in_memory() }
    }

    pub fn of(name: &str) -> Site {
        Site::new(Fixture::unpack(name))
    }

    pub fn copy(&self) -> PathBuf {
        self.directory.path().join("copy")
    }

    pub fn options(&self) -> Options {
        Options {
            url: self.server.url(&self.fixture.fqrn).parse().unwrap(),
            directory: self.copy(),
            fqrn: self.fixture.fqrn.clone(),
            master_keys: vec![PublicKey::from_pem(&self.fixture.public_key).unwrap()],
            blacklist: Blacklist::default(),
            reflog_checksum: self.directory.path().join("state/reflog.chksum"),
            connections: 4,
            proxy: None,
            patience: Patience {
                connect: Duration::from_secs(2),
                silence: Duration::from_millis(400),
                retry: RetryPolicy {
                    attempts: 3,
                    first_delay: Duration::from_millis(5),
                    longest_delay: Duration::from_millis(20),
                    ..RetryPolicy::default()
                },
            },
        }
    }

    pub fn replicate(&self) -> Result<Replicated, ReplicateError> {
        replicate(&self.options(), &Silent)
    }

    /// Runs `replicate`, which has to fail; everything it says on one line.
    #[track_caller]
    pub fn refusal(&self) -> String {
        self.replicate().expect_err("a refusal").line()
    }

    pub fn check(&self, storage: &Path) -> Report {
        let store = LocalStore::open(storage);
        let scratch = tempfile::tempdir().unwrap();
        let master_keys = [PublicKey::from_pem(&self.fixture.public_key).unwrap()];
        let anchor =
            Anchor { name: &self.fixture.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
        let mut options = cvmfs::check::Options::new(scratch.path());
        options.identity = Identity::Trusted(&anchor);
        options.reflog_checksum = self.kept_checksum(&store);
        let mut report = check(&store, &options).expect("a readable repository");
        report.merge(scrub(&store, 2).expect("a readable storage"));
        report
    }

    fn kept_checksum(&self, store: &LocalStore) -> Option<ContentHash> {
        let reflog = store.read(names::REFLOG).unwrap()?;
        let kept = fs::read_to_string(self.options().reflog_checksum).ok()?;
        kept.lines().map(|l| l.parse::<ContentHash>().unwrap()).find(|k| ContentHash::of(k.algorithm, &reflog) == *k)
    }

    /// Fails unless the copy is sound to the last byte and shows the revision.
    #[track_caller]
    pub fn assert_sound(&self, revision: u64) {
        let report = self.check(&self.copy());
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(report.is_sound(), "check of the copy finds:\n{}", findings.join("\n"));
        assert_eq!(manifest(&self.copy()).revision, revision);
    }
}

/// A directory where syncing costs nothing, if there is such a place: every run does it several times.
pub fn in_memory() -> TempDir {
    let place = Path::new("/dev/shm");
    if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() }.unwrap()
}

pub fn manifest(storage: &Path) -> Manifest {
    Manifest::parse(&fs::read(storage.join(names::MANIFEST)).unwrap()).unwrap()
}

/// Every stored object with its size.
pub fn objects(storage: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for bucket in fs::read_dir(storage.join("data")).unwrap().map(Result::unwrap) {
        let name = bucket.file_name().into_string().unwrap();
        if name == "txn" {
            continue;
        }
        for object in fs::read_dir(bucket.path()).unwrap().map(Result::unwrap) {
            let path = format!("data/{name}/{}", object.file_name().to_string_lossy());
            found.insert(path, object.metadata().unwrap().len());
        }
    }
    found
}

/// Paths of the objects that the current revision and all tags refer to, by the library's own walk.
pub fn reachable(fixture: &Fixture) -> BTreeSet<String> {
    struct Collect(BTreeSet<String>);
    impl Collect {
        fn add(&mut self, hash: ContentHash, kind: ObjectKind) {
            self.0.insert(hash.object(kind).path());
        }
    }
    impl Visit for Collect {
        type Error = TraversalError;

        fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
            self.add(catalog.reference().hash, ObjectKind::Catalog);
            for row in catalog.rows_after(i64::MIN, usize::MAX >> 1).unwrap() {
                if row.entry.flags.is_external() {
                    continue;
                }
                row.entry.content.inspect(|hash| self.add(*hash, ObjectKind::File));
                for chunk in catalog.chunks(row.key, row.entry.algorithm()).unwrap() {
                    self.add(chunk.hash, ObjectKind::Chunk);
                }
            }
            Ok(Descend::Into)
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&fixture.storage);
    let manifest = manifest(&fixture.storage);
    let mut collect = Collect(BTreeSet::new());
    let mut roots = vec![manifest.root_catalog];
    roots.extend(repository(fixture).history(scratch.path()).unwrap().tags.iter().map(|t| t.root));
    for hash in roots {
        let root = NestedRef { path: RepoPath::ROOT, hash, size: 0 };
        walk(Loader::new(&store, scratch.path()), root, &mut collect).unwrap();
    }
    collect.add(manifest.certificate.unwrap(), ObjectKind::Certificate);
    manifest.history.inspect(|hash| collect.add(*hash, ObjectKind::History));
    manifest.meta_info.inspect(|hash| collect.add(*hash, ObjectKind::MetaInfo));
    collect.0
}

pub fn repository(fixture: &Fixture) -> Repository {
    let master_keys = [PublicKey::from_pem(&fixture.public_key).unwrap()];
    let anchor = Anchor { name: &fixture.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
    Repository::open(std::sync::Arc::new(LocalStore::open(&fixture.storage)), &anchor).unwrap()
}

/// The object of the file at `path` in the current revision.
pub fn object_of(fixture: &Fixture, path: &str) -> ObjectId {
    let item = fixture.listing().into_iter().find(|i| i.path == path.as_bytes()).expect("a path of the fixture");
    item.object.expect("one object").parse::<ContentHash>().unwrap().object(ObjectKind::File)
}
