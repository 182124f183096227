//! What a pass fetches, stores and publishes, and what it leaves alone.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::store::{Listed, Listing, Staged, Store, StoreError, Stored};
use image::digest::{ChainId, ManifestDigest};
use image::layout::StatusRecord;
use publisher::plan::{MOST_OPEN, Planner, Wanted};
use publisher::report::Outcome::{Added, Unchanged, Updated};
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{
    Format, Image, Layer, Member, Packing, dir, file, index_entry, media, noise, push_index, tar, whiteout,
};
use scenarios::repository::{Site, assert_outcome, downloads, flat_path, outcomes, public, wish};
use scenarios::tree::below;
use serde_json::json;

use crate::{content, target, two_layers};

#[test]
fn a_second_run_publishes_nothing_and_downloads_nothing() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    two_layers().push(&registry, "lab/x", "1");
    let amd = two_layers().push_untagged(&registry, "lab/y");
    push_index(&registry, "lab/y", "1", Format::Oci, &[index_entry(&amd, media::OCI_MANIFEST, "linux/amd64")]);
    let wishes = &[wish(&registry, "lab/x:1"), wish(&registry, "lab/y:1")];
    assert_eq!(outcomes(&site.convert(wishes)), [Added, Added]);
    let site = site.reopened();
    let before = (site.revision(), site.stored_objects());
    registry.forget_requests();
    let report = site.convert(wishes);
    assert_eq!(outcomes(&report), [Unchanged, Unchanged]);
    assert_eq!((report.revision_before, report.revision), (Some(before.0), Some(before.0)));
    assert_eq!(downloads(&registry), (0, 0), "no GET of manifests or blobs");
    assert_eq!(registry.requests().len(), 2, "one HEAD an image");
    assert_eq!((site.revision(), site.stored_objects()), before, "nothing was stored");
}

#[test]
fn a_moved_tag_moves_the_link_and_leaves_the_old_flat() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = Image::of(&[&[file("version", "1"), file("big", noise(1, 5000))]]).push(&registry, "lab/x", "1");
    let wishes = [wish(&registry, "lab/x:1")];
    site.convert(&wishes);
    let new = Image::of(&[&[file("version", "2")]]).push(&registry, "lab/x", "1");
    let report = site.convert(&wishes);
    assert_eq!((outcomes(&report), report.revision), (vec![Updated], Some(2)));
    let tree = site.tree("");
    let link = public(&registry, "lab/x:1");
    assert_eq!(target(&tree, &link), format!("../../{}", flat_path(new.config)));
    assert_eq!(content(&tree, &format!("{}/version", flat_path(new.config))), b"2");
    assert_eq!(content(&tree, &format!("{}/version", flat_path(old.config))), b"1", "jobs may still run from it");
    let status = StatusRecord::parse(content(&tree, &format!(".metadata/{link}/status.json"))).unwrap();
    assert_eq!((status.digest, status.config, status.revision), (new.manifest, new.config, 2));
    assert_eq!(content(&tree, &format!(".metadata/{link}/config.json")), new.config_bytes);

    // And back: everything is there, so nothing is fetched but the tag.
    registry.put_manifest("lab/x", "1", media::OCI_MANIFEST, old.manifest_bytes.clone());
    registry.forget_requests();
    let report = site.convert(&wishes);
    assert_eq!((outcomes(&report), report.revision), (vec![Updated], Some(3)));
    assert_eq!(downloads(&registry), (0, 0));
    assert_eq!(target(&site.tree(""), &link), format!("../../{}", flat_path(old.config)));
    site.assert_sound();
}

#[test]
fn layers_that_images_share_are_fetched_once() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let shared = || Layer::new(&[file("base", noise(2, 300_000))], Packing::Gzip);
    let own = |n: u64| Layer::new(&[file("own", noise(n, 1000))], Packing::Gzip);
    let image = |n: u64| Image::new([shared(), own(n)]);
    for n in 0..4 {
        image(n + 10).push(&registry, "lab/x", &n.to_string());
    }
    let name = |n: u64| wish(&registry, &format!("lab/x:{n}"));
    let path = format!("/blobs/{}", shared().digest);
    // Three in one pass, the fourth in a later one.
    let report = site.convert(&[name(0), name(1), name(2)]);
    assert_eq!(outcomes(&report), [Added; 3]);
    assert_eq!(registry.count("GET", &path), 1);
    assert_eq!(registry.count("GET", "/blobs/"), 1 + 3 + 3, "shared layer, own layers, configs");
    assert_eq!(report.wishes.iter().map(|w| w.layers.fetched).sum::<u64>(), 4);
    let report = site.convert(&[name(3)]);
    assert_eq!((report.wishes[0].layers.fetched, report.wishes[0].layers.known), (1, 1));
    assert_eq!(registry.count("GET", &path), 1);
    site.assert_sound();
}

#[test]
fn documents_of_new_images_are_fetched_many_at_once() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let names: Vec<String> = (0..12).map(|n| format!("lab/x:{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let (repository, tag) = name.split_once(':').unwrap();
        let image = Image::of(&[&[file("n", n.to_string())]]);
        match n % 2 {
            0 => drop(image.push(&registry, repository, tag)),
            _ => {
                let pushed = image.push_untagged(&registry, repository);
                let entry = index_entry(&pushed, media::OCI_MANIFEST, "linux/amd64");
                push_index(&registry, repository, tag, Format::Oci, &[entry]);
            }
        }
    }
    registry.fault(Fault::late(Duration::from_millis(200)).always());
    let wishes: Vec<String> = names.iter().chain([&names[3]]).map(|name| wish(&registry, name)).collect();
    let plan = site.plan(&wishes);
    let planned: Vec<_> = plan.images.iter().map(|image| image.as_ref().unwrap().wanted.wish.clone()).collect();
    assert_eq!(planned, wishes, "in the order of the list");
    assert_eq!(downloads(&registry), (12 + 6, 12), "each once");
    for part in ["/manifests/", "/blobs/"] {
        let most = registry.most_at_once("GET", part);
        assert!((4..=16).contains(&most), "{most} of {part} at once");
    }
}

#[test]
fn planning_keeps_few_catalogs_open_and_opens_none_again_and_again() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    let wishes: Vec<String> = (0..50).map(|n| wish(&registry, &format!("lab/x:{n}"))).collect();
    for n in 0..50 {
        Image::of(&[&[file("n", n.to_string())]]).push(&registry, "lab/x", &n.to_string());
    }
    assert_eq!(outcomes(&site.convert(&wishes)), [Added; 50]);
    let reads = Arc::<AtomicUsize>::default();
    site.target.store = Arc::new(Counting { inner: site.target.store.clone(), catalogs: reads.clone() });
    let plan = site.plan(&wishes);
    let images: Vec<(&Wanted, ManifestDigest)> =
        plan.images.iter().flatten().map(|image| (&image.wanted, image.document.digest)).collect();
    let (converter, options) = (site.converter(), &site.options);
    let store = (options.in_store.clone(), options.store_limit);
    let mut planner = Planner::new(&site.target, &converter.sources, &options.limits, store, &options.policy).unwrap();
    reads.store(0, Relaxed);
    let plans = planner.plan(&images);
    assert_eq!(plans.into_iter().map(|plan| plan.unwrap().outcome).collect::<Vec<_>>(), [Unchanged; 50]);
    let (read, open) = (reads.load(Relaxed), planner.open_catalogs());
    assert!(read > MOST_OPEN, "there are more catalogs than may be open: {read}");
    assert!(open <= MOST_OPEN + 4, "{open} catalogs are open");
    let there = site.stored_objects().iter().filter(|name| name.ends_with('C')).count();
    // Of 50 images: the shards of manifests, configs, flats and layers, and what is above them.
    assert!(read <= 4 * 50 + 10, "{read} catalogs were opened, of {there} objects");
}

/// Counts catalogs that are read.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Listing>,
    catalogs: Arc<AtomicUsize>,
}

impl Store for Counting {
    fn open(&self, id: ObjectId) -> Result<Box<dyn Read + Send>, StoreError> {
        self.catalogs.fetch_add(usize::from(id.kind == ObjectKind::Catalog), Relaxed);
        self.inner.open(id)
    }

    fn exists(&self, id: ObjectId) -> Result<bool, StoreError> {
        self.inner.exists(id)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.read(name)
    }

    fn stage(&self) -> Result<Box<dyn Staged + '_>, StoreError> {
        self.inner.stage()
    }

    fn put(&self, id: ObjectId, stored: &[u8]) -> Result<Stored, StoreError> {
        self.inner.put(id, stored)
    }

    fn replace(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.inner.replace(name, content)
    }

    fn swap(&self, name: &str, expected: Option<&[u8]>, content: &[u8]) -> Result<bool, StoreError> {
        self.inner.swap(name, expected, content)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush()
    }

    fn place(&self) -> String {
        self.inner.place()
    }
}

impl Listing for Counting {
    fn list(&self, bucket: Option<&str>, visit: &mut dyn FnMut(Listed<'_>)) -> Result<(), StoreError> {
        self.inner.list(bucket, visit)
    }

    fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.inner.remove(id)
    }
}

#[test]
fn a_repeated_empty_layer_is_one_layer() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let empty = || Layer::of_tar(&tar(&[]), Packing::Gzip);
    let system = Layer::new(&[dir("bin"), file("bin/sh", "sh")], Packing::Gzip);
    let image = Image::new([system, empty(), empty(), Layer::new(&[whiteout("bin/sh")], Packing::Gzip), empty()]);
    let pushed = image.push(&registry, "lab/x", "1");
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Added);
    assert_eq!(registry.count("GET", &format!("/blobs/{}", empty().digest)), 1);
    let tree = site.tree("");
    for chain in ChainId::stack(&pushed.diff_ids) {
        let hex = chain.hex();
        assert!(tree.contains_key(format!(".index/chain-id/{}/{hex}", &hex[..2]).as_bytes()), "every stack is indexed");
    }
    let flat = below(&tree, &flat_path(pushed.config));
    assert!(flat.contains_key(&b"bin"[..]) && !flat.contains_key(&b"bin/sh"[..]));
    site.assert_sound();
}

#[test]
fn images_that_are_ready_together_are_published_together() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let layer = Layer::new(&[file("f", "f")], Packing::Gzip);
    for n in 0..8 {
        let mut image = Image::new([layer.clone()]);
        image.config["config"]["Labels"] = json!({"n": n.to_string()});
        image.push(&registry, "lab/x", &n.to_string());
    }
    let report = site.convert(&(0..8).map(|n| wish(&registry, &format!("lab/x:{n}"))).collect::<Vec<_>>());
    assert_eq!(outcomes(&report), [Added; 8]);
    assert_eq!(report.revision, Some(1), "one publish for all");
    site.assert_sound();
}

#[test]
fn files_that_are_known_are_not_stored_again() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let files = |prefix: &str, packing| {
        let files: Vec<Member> = (0..50).map(|n| file(format!("{prefix}{n}"), noise(n, 3000))).collect();
        Layer::new(&[files, vec![file(format!("{prefix}big"), noise(99, 12 << 20))]].concat(), packing)
    };
    Image::new([files("a", Packing::Gzip)]).push(&registry, "lab/x", "1");
    Image::new([files("b", Packing::Zstd)]).push(&registry, "lab/x", "2");
    site.convert(&[wish(&registry, "lab/x:1")]);
    let contents = |site: &Site| {
        // Catalogs, history, certificate and meta info have their letters; files have none, chunks have P.
        let all = site.stored_objects();
        all.into_iter().filter(|n| !n.ends_with(['C', 'H', 'X', 'M'])).collect::<BTreeSet<_>>()
    };
    let before = contents(&site);
    let site = site.reopened();
    let report = site.convert(&[wish(&registry, "lab/x:2")]);
    assert_outcome(&report.wishes[0], Added);
    let bytes = report.wishes[0].bytes;
    assert_eq!((bytes.stored, bytes.deduplicated), (0, 50 * 3000 + (12 << 20)));
    let new: Vec<_> = contents(&site).difference(&before).cloned().collect();
    // layers.json, format.json, and the records of the image: manifest, raw manifest, config, status.
    assert_eq!(new.len(), 6, "{new:?}");
    site.assert_sound();
}
