//! A repository with a clock that the test sets, and looks at it that owe nothing to what is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use cvmfs::entry::Entry;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use image::digest::{ImageId, LayerDigest};
use image::layout::{Condemned, StatusRecord, UsersRecord};
use publisher::failure::Failure;
use publisher::removal::{self, Collected, DEFAULT_GRACE, Options, Usage, Wanted};
use publisher::target::Clock;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Layer, Member, Packing, Pushed, file};
use scenarios::repository::{Site, wish};
use time::UtcDateTime;

pub const DAY: i64 = 24 * 3600;

/// Options of a collection that nothing was said about.
pub fn usual() -> Options {
    Options {
        grace: DEFAULT_GRACE,
        keep_versions: 0,
        lists: Wanted::default(),
        usage: Usage::default(),
        dry_run: false,
    }
}

/// A registry and a repository.
pub struct World {
    pub registry: TestRegistry,
    pub site: Site,
    clock: Arc<AtomicI64>,
}

impl World {
    pub fn new() -> World {
        World::of(Site::new())
    }

    pub fn of(site: Site) -> World {
        let clock = Arc::new(AtomicI64::new(UtcDateTime::now().unix_timestamp()));
        let mut world = World { registry: TestRegistry::spawn(), site, clock };
        world.site.target.clock = Clock::Set(world.clock.clone());
        world
    }

    pub fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Pushes an image of these layers to `lab/NAME`.
    pub fn push(&self, name: &str, layers: &[Layer]) -> Pushed {
        let (repository, tag) = name.split_once(':').expect("a tag");
        Image::new(layers.to_vec()).push(&self.registry, &format!("lab/{repository}"), tag)
    }

    pub fn wish(&self, name: &str) -> String {
        wish(&self.registry, &format!("lab/{name}"))
    }

    /// The path of an image in the repository.
    pub fn path(&self, name: &str) -> String {
        format!("{}/lab/{name}", self.registry.address())
    }

    pub fn convert(&self, names: &[&str]) {
        let wishes: Vec<String> = names.iter().map(|n| self.wish(n)).collect();
        let report = self.site.convert(&wishes);
        assert!(report.wishes.iter().all(|w| w.error.is_none()), "{report:?}");
    }

    pub fn collect(&self) -> Collected {
        self.collect_with(&usual())
    }

    #[track_caller]
    pub fn collect_with(&self, options: &Options) -> Collected {
        removal::collect(&self.site.target, options).expect("a collection")
    }

    pub fn collect_error(&self) -> Failure {
        let before = self.site.revision();
        let error = removal::collect(&self.site.target, &usual()).expect_err("no collection");
        assert_eq!(self.site.revision(), before, "nothing is published");
        error
    }

    pub fn look(&self) -> Look {
        Look::at(&self.site)
    }

    /// Changes the repository behind the back of what is tested.
    pub fn edit(&self, edit: impl FnOnce(&mut cvmfs::transaction::Transaction)) {
        let target = &self.site.target;
        let lock = target.lock().unwrap();
        let mut transaction = target.begin(&lock, UtcDateTime::now()).unwrap();
        edit(&mut transaction);
        target.commit(transaction).unwrap();
    }
}

/// A layer with one file, and perhaps its own directory.
pub fn layer(n: u64) -> Layer {
    packed(n, Packing::Gzip)
}

pub fn packed(n: u64, packing: Packing) -> Layer {
    Layer::new(&members(n), packing)
}

pub fn members(n: u64) -> Vec<Member> {
    vec![file(format!("f{n}"), format!("content {n}"))]
}

/// What is in a repository, read directory by directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Public links, below `.multiarch` as well: path → flat.
    pub links: BTreeMap<String, String>,
    /// Links that lead each client to its own architecture: path → text.
    pub variants: BTreeMap<String, String>,
    /// Other names of directories below `.multiarch`.
    pub aliases: BTreeMap<String, String>,
    /// Digits of layers.
    pub layers: BTreeSet<String>,
    /// Digits of flats.
    pub flats: BTreeSet<String>,
    /// Digits of flats that have a cover.
    pub covers: BTreeSet<String>,
    /// Condemned: `layer/<hex>` or `flat/<hex>`.
    pub condemned: BTreeMap<String, Condemned>,
    /// Status records of published images: path → record.
    pub statuses: BTreeMap<String, StatusRecord>,
    /// Earlier images: path/<hex>.
    pub earlier: BTreeSet<String>,
    /// Links of the index: kind/<hex> → digits of the layer.
    pub index: BTreeMap<String, String>,
    /// Documents of the index: kind/<hex>.
    pub documents: BTreeSet<String>,
    /// Users: digits of the layer → configs.
    pub users: BTreeMap<String, BTreeSet<ImageId>>,
}

impl Look {
    pub fn at(site: &Site) -> Look {
        let mut view = site.target.view(UtcDateTime::now()).unwrap();
        let mut look = Look::default();
        let mut waiting = vec![RepoPath::ROOT];
        while let Some(directory) = waiting.pop() {
            for entry in view.list(&directory).unwrap() {
                let path = directory.join(&entry.name);
                let text = String::from_utf8(path.as_bytes()[1..].to_vec()).unwrap();
                if look.take(site, &text, &entry) && entry.is_directory() {
                    waiting.push(path);
                }
            }
        }
        assert!(look.covers.is_subset(&look.flats), "a cover goes with its flat");
        look
    }

    /// Notes an entry; whether what is below it is of interest.
    fn take(&mut self, site: &Site, path: &str, entry: &Entry) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        let last = parts[parts.len() - 1].to_owned();
        let target = String::from_utf8(entry.symlink.clone()).unwrap();
        let leads_to = target.trim_start_matches("../").split('/').nth(2).unwrap_or_default().to_owned();
        let bytes = || {
            let mut bytes = Vec::new();
            let id = entry.content.unwrap().object(ObjectKind::File);
            fetch(&*site.target.store, id, entry.compression(), 1 << 20, &mut bytes).unwrap();
            bytes
        };
        match (parts[0], parts.len()) {
            (_, _) if last == ".cvmfscatalog" => return false,
            (".layers", 3) => {
                self.layers.insert(last);
                return false;
            }
            (".flat", 3) => {
                match last.strip_prefix(".cover-") {
                    Some(flat) => self.covers.insert(flat.to_owned()),
                    None => self.flats.insert(last),
                };
                return false;
            }
            (".index", 4) => match parts[1] {
                "diff-id" | "chain-id" => drop(self.index.insert(format!("{}/{last}", parts[1]), leads_to)),
                "users" => {
                    let images = UsersRecord::parse(&bytes()).unwrap().images.into_iter().collect();
                    self.users.insert(last.trim_end_matches(".json").to_owned(), images);
                }
                kind => drop(self.documents.insert(format!("{kind}/{last}"))),
            },
            (".metadata", 5) if parts[1] == ".condemned" => {
                let unit = format!("{}/{}", parts[2], last.trim_end_matches(".json"));
                self.condemned.insert(unit, Condemned::parse(&bytes()).unwrap());
            }
            (".metadata", 2..) if parts[1] == ".versions" && last == "version.json" => {
                self.earlier.insert(parts[2..parts.len() - 1].join("/"));
            }
            (".metadata", 2..) if parts[1] == ".versions" => {}
            (".metadata", _) if last == "status.json" => {
                let of = parts[1..parts.len() - 1].join("/");
                self.statuses.insert(of, StatusRecord::parse(&bytes()).unwrap());
            }
            (".multiarch", 2) if !target.is_empty() => drop(self.aliases.insert(last, target)),
            (".multiarch", _) if target.contains(".flat/") => drop(self.links.insert(path.to_owned(), leads_to)),
            (top, _) if !top.starts_with('.') && target.contains(".flat/") => {
                self.links.insert(path.to_owned(), leads_to);
            }
            (top, _) if !top.starts_with('.') && !target.is_empty() => {
                self.variants.insert(path.to_owned(), target);
            }
            _ => {}
        }
        true
    }

    pub fn has_layer(&self, layer: LayerDigest) -> bool {
        self.layers.contains(&layer.hex())
    }

    pub fn has_flat(&self, flat: ImageId) -> bool {
        self.flats.contains(&flat.hex())
    }

    pub fn is_condemned(&self, layer: LayerDigest) -> bool {
        self.condemned.contains_key(&format!("layer/{}", layer.hex()))
    }
}

/// So long that every grace is over.
pub const AGES: i64 = 1000 * DAY;

/// No grace at all.
pub fn at_once() -> Options {
    Options { grace: Duration::ZERO, ..usual() }
}
