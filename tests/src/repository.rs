//! A repository of its own for each test, with everything that publishes into it and looks at it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cvmfs::check::{Identity, Options, check};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::scrub::scrub;
use cvmfs::store::{LocalStore, Store, names};
use cvmfs::trust::Anchor;
use image::digest::{ImageId, LayerDigest};
use image::platform::Platform;
use image::reference::{PublicName, Wish};
use publisher::cli::{ArchiveLimits, FlatPermissions, ImageLimits, Paths};
use publisher::convert::{ConvertOptions, Converter, Plan, Request, RoomLimits};
use publisher::failure::Failure;
use publisher::podman::InStore;
use publisher::progress::{Event, Progress};
use publisher::quota::Held;
use publisher::report::{Outcome, Report, WishOutcome};
use publisher::source::Sources;
use publisher::target::{InitOptions, Target};
use publisher::wishlist::{Wish as ListedWish, WishList};
use registry::testing::TestRegistry;
use registry::{Client, ClientConfig, Credentials, RetryPolicy};
use tempfile::TempDir;
use time::UtcDateTime;
use tokio::runtime::Runtime;

use crate::tree::{self, Tree, What};

/// Name of the repositories.
pub const FQRN: &str = "images.example.org";

/// A repository with its publisher.
#[derive(Debug)]
pub struct Site {
    /// What is published to.
    pub target: Target,
    /// How.
    pub options: ConvertOptions,
    /// Passwords for registries.
    pub credentials: Credentials,
    runtime: Runtime,
    // Last, so that everything else is closed when it goes.
    directory: TempDir,
}

/// Progress that nobody looks at.
#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}

impl Default for Site {
    fn default() -> Site {
        Site::new()
    }
}

impl Site {
    /// A new repository in a temporary directory.
    pub fn new() -> Site {
        Site::with_algorithm(Algorithm::Sha1)
    }

    /// The same with objects named by this algorithm.
    pub fn with_algorithm(algorithm: Algorithm) -> Site {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let options = InitOptions { ttl: 240, algorithm, garbage_collectable: true };
        let target = Target::init(FQRN, paths(&directory), options).expect("a new repository");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Site {
            target,
            options: options_of_tests(),
            credentials: Credentials::anonymous(),
            runtime: runtime.expect("a runtime"),
            directory,
        }
    }

    /// A repository that is in a directory already, laid out as ours are there.
    pub fn existing(fqrn: &str, directory: TempDir) -> Site {
        Site {
            target: Target::open(fqrn, paths(&directory)).expect("the repository"),
            options: options_of_tests(),
            credentials: Credentials::anonymous(),
            runtime: Runtime::new().expect("a runtime"),
            directory,
        }
    }

    /// The same repository, as the next run of the program finds it.
    #[must_use]
    pub fn reopened(self) -> Site {
        let Site { target, options, credentials, runtime, directory } = self;
        let fqrn = target.fqrn.clone();
        drop(target);
        let target = Target::open(&fqrn, paths(&directory)).expect("the repository");
        Site { target, options, credentials, runtime, directory }
    }

    /// A copy of the repository and of all state, with a publisher of its own.
    pub fn fork(&self) -> Site {
        let directory = tempfile::tempdir().expect("a temporary directory");
        copy(self.directory.path(), directory.path());
        Site {
            target: Target::open(&self.target.fqrn, paths(&directory)).expect("the repository"),
            options: self.options.clone(),
            credentials: self.credentials.clone(),
            runtime: Runtime::new().expect("a runtime"),
            directory,
        }
    }

    /// The directory of the repository.
    pub fn storage(&self) -> PathBuf {
        self.target.paths.storage.directory().expect("a directory").to_owned()
    }

    /// Runs one pass over these wishes.
    pub fn convert(&self, wishes: &[String]) -> Report {
        self.convert_as(&wishes.iter().map(|w| (w.as_str(), None)).collect::<Vec<_>>())
    }

    /// Runs one pass over these wishes, some with names of the operator's choice.
    pub fn convert_as(&self, wishes: &[(&str, Option<&str>)]) -> Report {
        self.try_convert(wishes).expect("a pass")
    }

    /// The same, where the pass itself may fail.
    pub fn try_convert(&self, wishes: &[(&str, Option<&str>)]) -> Result<Report, Failure> {
        let converter = self.converter();
        let plan = converter.plan(&requests(wishes))?;
        converter.apply(&plan)
    }

    /// What a pass would do.
    pub fn plan(&self, wishes: &[String]) -> Plan {
        let wishes: Vec<_> = wishes.iter().map(|w| (w.as_str(), None)).collect();
        self.converter().plan(&requests(&wishes)).expect("a plan")
    }

    /// Runs one pass over a wish list of version 2: what follows its header.
    pub fn convert_list(&self, text: &str) -> Report {
        self.converter().apply(&self.plan_list(text)).expect("a pass")
    }

    /// What a pass over such a list would do.
    pub fn plan_list(&self, text: &str) -> Plan {
        let requests: Vec<Request> = list(text).wishes.iter().map(request_of).collect();
        let mut plan = self.converter().plan(&requests).expect("a plan");
        plan.keep_quotas(&Held::default());
        plan
    }

    /// What runs the passes.
    pub fn converter(&self) -> Converter<'_> {
        let config = ClientConfig {
            credentials: self.credentials.clone(),
            retry: RetryPolicy {
                attempts: 3,
                first_delay: Duration::from_millis(5),
                longest_delay: Duration::from_millis(20),
                ..RetryPolicy::default()
            },
            ..ClientConfig::default()
        };
        let stranger = ClientConfig { credentials: Credentials::anonymous(), ..config.clone() };
        let client = |config| Client::new(config).expect("a client");
        let runtime = self.runtime.handle().clone();
        Converter {
            target: &self.target,
            sources: Sources::new(client(config), runtime, self.target.scratch()).with_anonymous(client(stranger)),
            options: self.options.clone(),
            progress: Arc::new(Silent),
        }
    }

    /// The current revision.
    pub fn revision(&self) -> u64 {
        self.target.repository().expect("a trusted repository").manifest().revision
    }

    /// The tree below a path; empty if there is no such path.
    pub fn tree(&self, top: &str) -> Tree {
        self.published(top).map(|p| p.tree).unwrap_or_default()
    }

    /// The tree below a path with its nested catalogs.
    pub fn published(&self, top: &str) -> Option<tree::Published> {
        let repository = self.target.repository().expect("a trusted repository");
        tree::read(&repository, self.target.scratch(), top)
    }

    /// Fails unless the repository obeys all rules and every stored object has the content of its name, as the
    /// program's `check --data` sees it.
    #[track_caller]
    pub fn assert_sound(&self) {
        let store = LocalStore::open(self.storage());
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let master_keys = [self.target.master.clone()];
        let anchor =
            Anchor { name: &self.target.fqrn, master_keys: &master_keys, blacklist: &[], now: UtcDateTime::now() };
        let mut options = Options::new(scratch.path());
        options.identity = Identity::Trusted(&anchor);
        options.reflog_checksum = self.reflog_checksum(&store);
        let mut report = check(&store, &options).expect("a readable repository");
        report.merge(scrub(&store, 2).expect("a readable storage"));
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(report.is_sound(), "check finds:\n{}", findings.join("\n"));
    }

    /// The hash of the reflog kept in the publisher's state, if the reflog is the one it names.
    fn reflog_checksum(&self, store: &LocalStore) -> Option<ContentHash> {
        let text = std::fs::read_to_string(self.target.reflog_checksum()).ok()?;
        let kept: ContentHash = text.trim().parse().expect("a hash");
        let reflog = store.read(names::REFLOG).expect("a readable storage")?;
        (ContentHash::of(kept.algorithm, &reflog) == kept).then_some(kept)
    }

    /// Regular files of the storage: path → bytes. Unfinished objects are left out.
    pub fn stored_objects(&self) -> Vec<String> {
        let mut found = Vec::new();
        for bucket in std::fs::read_dir(self.storage().join("data")).expect("data").map(|e| e.expect("entry")) {
            let name = bucket.file_name().to_string_lossy().into_owned();
            if name == "txn" {
                continue;
            }
            for object in std::fs::read_dir(bucket.path()).expect("a bucket").map(|e| e.expect("entry")) {
                found.push(format!("{name}{}", object.file_name().to_string_lossy()));
            }
        }
        found.sort();
        found
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory").map(|e| e.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            std::fs::create_dir(&target).expect("a directory");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

fn paths(directory: &TempDir) -> Paths {
    let path = |name: &str| directory.path().join(name);
    Paths { storage: path("storage").into(), keys: path("keys"), state: path("state") }
}

fn requests(wishes: &[(&str, Option<&str>)]) -> Vec<Request> {
    let request = |(line, (text, name)): (usize, &(&str, Option<&str>))| Request {
        line: Some(line as u64 + 1),
        name: name.map(|n| PublicName::parse(n).expect("a name of the test")),
        ..Request::new(*text, Wish::parse(text).unwrap_or_else(|e| panic!("the test wishes for {text}: {e}")))
    };
    wishes.iter().enumerate().map(request).collect()
}

/// A wish list of version 2 without mistakes: what follows its header.
pub fn list(text: &str) -> WishList {
    let text = format!("version: 2\ncvmfs_repo: {FQRN}\n{text}");
    let list = WishList::parse(Path::new("list.yaml"), text.as_bytes()).unwrap_or_else(|e| panic!("{text}{e}"));
    assert_eq!(list.problems, [], "{text}");
    list
}

fn request_of(wish: &ListedWish) -> Request {
    wish.request(wish.source.clone())
}

/// Options with the limits that the program has by default, for linux/amd64 whatever runs the test.
pub fn options_of_tests() -> ConvertOptions {
    let layer = ArchiveLimits {
        max_layer_size: 500_000_000_000,
        max_entries: 5_000_000,
        max_expansion: 1000,
        max_zstd_window: 64 << 20,
        max_pax_header: 1 << 20,
    };
    ConvertOptions {
        platforms: vec![Platform::parse("linux/amd64").expect("a platform")],
        jobs: 4,
        room: RoomLimits { keep_free: 0, ..RoomLimits::default() },
        permissions: FlatPermissions::Keep,
        limits: ImageLimits { max_layers: 500, max_manifest_size: 4 << 20, layer },
        in_store: InStore::Follow,
        store_limit: publisher::podman::LIMIT,
        policy: Arc::default(),
    }
}

/// The wish for an image of a registry: `lab/x:1`, `lab/x@sha256:…`.
pub fn wish(registry: &TestRegistry, name: &str) -> String {
    format!("{}/{name}", registry.url())
}

/// The public path of an image of a registry.
pub fn public(registry: &TestRegistry, name: &str) -> String {
    format!("{}/{name}", registry.address())
}

/// How often a registry was asked for manifests and blobs with GET.
pub fn downloads(registry: &TestRegistry) -> (usize, usize) {
    (registry.count("GET", "/manifests/"), registry.count("GET", "/blobs/"))
}

/// Outcomes of a pass in the order of its wishes.
pub fn outcomes(report: &Report) -> Vec<Outcome> {
    report.wishes.iter().map(|w| w.outcome).collect()
}

/// Fails with the error of the wish unless it has this outcome.
#[track_caller]
pub fn assert_outcome(wish: &WishOutcome, outcome: Outcome) {
    assert_eq!(wish.outcome, outcome, "{}: {:?}", wish.wish, wish.error);
}

/// Fails unless the flat of an image shows this tree. What Apptainer needs on top may be there besides.
#[track_caller]
pub fn assert_flat(site: &Site, image: ImageId, expected: &Tree, what: &str) {
    let mut flat = site.tree(&flat_path(image));
    assert!(!flat.is_empty(), "{what} has no flat");
    flat.retain(|path, _| expected.contains_key(path) || !is_addition(path));
    tree::assert_same(&flat, expected, what);
    if cover(site, image).is_some() {
        assert_covered(site, image, expected, what);
    }
}

/// Fails unless the flat of an image with its cover shows exactly this tree.
#[track_caller]
pub fn assert_covered(site: &Site, image: ImageId, expected: &Tree, what: &str) {
    let cover = cover(site, image).unwrap_or_else(|| panic!("{what} has no cover"));
    tree::assert_same(&covered(site.tree(&flat_path(image)), &cover), expected, &format!("{what}, covered,"));
}

/// What lies over the flat of an image.
pub fn cover(site: &Site, image: ImageId) -> Option<Tree> {
    let cover = site.tree(&format!(".flat/{}/.cover-{}", &image.hex()[..2], image.hex()));
    Some(cover).filter(|cover| !cover.is_empty())
}

/// What overlayfs shows of a tree under another one.
fn covered(mut tree: Tree, cover: &Tree) -> Tree {
    for (path, node) in cover {
        let below = [&path[..], b"/"].concat();
        if node.what != What::Directory {
            tree.retain(|other, _| other != path && !other.starts_with(&below));
        }
        if node.what != What::Char(0) {
            tree.insert(path.clone(), node.clone());
        }
    }
    tree
}

/// Names that a flat has for the sake of Apptainer.
fn is_addition(path: &[u8]) -> bool {
    const NAMES: [&str; 18] = [
        ".exec",
        ".run",
        ".shell",
        ".singularity.d",
        ".test",
        "cvmfs",
        "dev",
        "environment",
        "etc",
        "home",
        "proc",
        "root",
        "singularity",
        "srv",
        "sys",
        "tmp",
        "var",
        "var/tmp",
    ];
    const FILES: [&str; 2] = ["etc/hosts", "etc/resolv.conf"];
    path.starts_with(b".singularity.d/") || NAMES.iter().chain(&FILES).any(|name| name.as_bytes() == path)
}

/// Where the flat of an image is.
pub fn flat_path(image: ImageId) -> String {
    format!(".flat/{}/{}", &image.hex()[..2], image.hex())
}

/// Where a layer is.
pub fn layer_path(layer: LayerDigest) -> String {
    format!(".layers/{}/{}", &layer.hex()[..2], layer.hex())
}
