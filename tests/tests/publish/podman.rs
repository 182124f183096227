//! The additional image store in the repository.

use image::digest::Digest;
use publisher::podman::{InStore, PodmanState};
use publisher::removal;
use publisher::report::Outcome::{Added, Unchanged, Updated};
use publisher::report::Report;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Pushed, file, media};
use scenarios::repository::{FQRN, Site, flat_path, outcomes, public, wish};
use scenarios::tree::Tree;
use serde_json::{Value, json};

use crate::{content, target, two_layers};

fn stored(report: &Report) -> Vec<Option<PodmanState>> {
    report.wishes.iter().map(|wish| wish.podman.as_ref().map(|podman| podman.outcome)).collect()
}

fn list(tree: &Tree, path: &str) -> Value {
    serde_json::from_slice(content(tree, path)).unwrap()
}

/// IDs and names of the images in the store; fails unless everything that containers/storage needs is there and nothing else.
#[track_caller]
fn store(site: &Site) -> Vec<(String, Vec<String>)> {
    let published = site.published("podmanStore").expect("a store");
    assert!(published.catalogs.is_empty(), "one catalog");
    let tree = published.tree;
    let (images, layers) = (list(&tree, "overlay-images/images.json"), list(&tree, "overlay-layers/layers.json"));
    let (images, layers) = (images.as_array().unwrap(), layers.as_array().unwrap());
    for lock in ["overlay-images/images.lock", "overlay-layers/layers.lock"] {
        assert_eq!(content(&tree, lock).len(), 64);
    }
    let below = |top: &str| {
        let names = tree.keys().filter_map(|path| std::str::from_utf8(path).unwrap().strip_prefix(top));
        names.filter(|name| !name.contains('/') && !name.contains('.') && *name != "l").count()
    };
    assert_eq!(
        (below("overlay/"), below("overlay/l/"), below("overlay-images/")),
        (layers.len(), layers.len(), images.len())
    );
    for layer in layers {
        let directory = format!("overlay/{}", layer["id"].as_str().unwrap());
        let link = std::str::from_utf8(content(&tree, &format!("{directory}/link"))).unwrap();
        assert_eq!(target(&tree, &format!("overlay/l/{link}")), format!("../{}/diff", layer["id"].as_str().unwrap()));
        let flat = target(&tree, &format!("{directory}/diff"));
        let flat = flat.strip_prefix(&format!("/cvmfs/{FQRN}/")).expect("absolute, where clients show the repository");
        assert!(!site.tree(flat).is_empty(), "{flat}");
    }
    let described = |image: &Value| {
        let id = image["id"].as_str().unwrap().to_owned();
        assert!(layers.iter().any(|layer| layer["id"] == image["layer"]));
        assert_eq!(content(&tree, &format!("overlay-images/{id}/manifest")).len(), image["big-data-sizes"]["manifest"]);
        assert_eq!(image["digest"], Digest::of(content(&tree, &format!("overlay-images/{id}/manifest"))).to_string());
        (id, image["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect())
    };
    images.iter().map(described).collect()
}

fn locks(site: &Site) -> [Vec<u8>; 2] {
    let tree = site.tree("podmanStore");
    ["overlay-images/images.lock", "overlay-layers/layers.lock"].map(|lock| content(&tree, lock).to_vec())
}

fn with(mut site: Site, in_store: InStore) -> Site {
    site.options.in_store = in_store;
    site
}

fn version(registry: &TestRegistry, name: &str, number: u32) -> Pushed {
    Image::of(&[&[file("version", number.to_string())]]).push(registry, name, "1")
}

#[test]
fn an_image_is_in_the_store_if_somebody_wants_it_there() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = two_layers().push(&registry, "lab/x", "1");
    let wishes = [wish(&registry, "lab/x:1")];
    assert_eq!(stored(&site.convert(&wishes)), [None]);
    assert!(site.published("podmanStore").is_none(), "opt-in");

    // Of an image that is published already, only the store is written.
    let status = |site: &Site| {
        content(&site.tree(".metadata"), &format!("{}/status.json", public(&registry, "lab/x:1"))).to_vec()
    };
    let before = status(&site);
    let site = with(site, InStore::All);
    registry.forget_requests();
    let report = site.convert(&wishes);
    assert_eq!(
        (outcomes(&report), stored(&report), report.revision),
        (vec![Unchanged], vec![Some(PodmanState::Added)], Some(2))
    );
    assert_eq!(registry.count("GET", "/blobs/"), 0);
    assert_eq!(status(&site), before);
    let name = public(&registry, "lab/x:1");
    assert_eq!(store(&site), [(pushed.config.hex(), vec![name])]);
    let tree = site.tree("podmanStore");
    let layer = Digest::of(format!("cvmfs-flat-layer:{}", pushed.config.hex()).as_bytes());
    let entry = &list(&tree, "overlay-layers/layers.json")[0];
    assert_eq!((&entry["id"], &entry["diff-digest"]), (&json!(layer.hex()), &json!(layer)));
    assert!(entry["diff-size"].as_u64().unwrap() > 0);
    assert_eq!(
        target(&tree, &format!("overlay/{}/diff", layer.hex())),
        format!("/cvmfs/{FQRN}/{}", flat_path(pushed.config))
    );

    let report = site.convert(&wishes);
    assert_eq!((stored(&report), report.revision), (vec![Some(PodmanState::Unchanged)], Some(2)), "nothing to publish");
    site.assert_sound();
}

#[test]
fn the_image_and_its_entry_come_with_one_publish_and_the_same_bytes_each_time() {
    let registry = TestRegistry::spawn();
    two_layers().push(&registry, "lab/x", "1");
    version(&registry, "lab/y", 1);
    let wishes = [wish(&registry, "lab/x:1"), wish(&registry, "lab/y:1")];
    let lists = || {
        let site = with(Site::new(), InStore::All);
        let report = site.convert(&wishes);
        assert_eq!((outcomes(&report), stored(&report)), (vec![Added, Added], vec![Some(PodmanState::Added); 2]));
        assert_eq!(store(&site).len(), 2);
        site.assert_sound();
        let tree = site.tree("podmanStore");
        ["overlay-images/images.json", "overlay-layers/layers.json"].map(|path| content(&tree, path).to_vec())
    };
    assert_eq!(lists(), lists());
}

#[test]
fn entries_follow_their_names_whoever_moves_them() {
    let (registry, site) = (TestRegistry::spawn(), with(Site::new(), InStore::All));
    let old = version(&registry, "lab/x", 1);
    let wishes = [wish(&registry, "lab/x:1")];
    site.convert(&wishes);
    let before = locks(&site);
    let new = version(&registry, "lab/x", 2);
    // A pass that says nothing about the store.
    let site = with(site, InStore::Follow);
    let report = site.convert(&wishes);
    assert_eq!((outcomes(&report), stored(&report)), (vec![Updated], vec![Some(PodmanState::Updated)]));
    let name = public(&registry, "lab/x:1");
    assert_eq!(store(&site), [(new.config.hex(), vec![name.clone()])]);
    let after = locks(&site);
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "running programs are told");

    registry.put_manifest("lab/x", "1", media::OCI_MANIFEST, old.manifest_bytes.clone());
    site.convert(&wishes);
    assert_eq!(store(&site), [(old.config.hex(), vec![name])]);
    let back = locks(&site);
    assert!(
        before.iter().zip(&back).all(|(before, back)| before != back),
        "the lists are the old ones, the tokens are not"
    );
    site.assert_sound();
}

#[test]
fn two_names_of_one_image_are_one_entry_and_a_pattern_takes_names_out() {
    let (registry, site) = (TestRegistry::spawn(), with(Site::new(), InStore::All));
    let pushed = version(&registry, "lab/x", 1);
    version(&registry, "other/x", 1);
    let wishes = [wish(&registry, "lab/x:1"), wish(&registry, "other/x:1")];
    site.convert(&wishes);
    let names = || vec![public(&registry, "lab/x:1"), public(&registry, "other/x:1")];
    assert_eq!(store(&site), [(pushed.config.hex(), names())]);
    let [images, layers] = locks(&site);
    let site = with(site, InStore::Matching(vec![format!("{}/lab/*", registry.url())]));
    let report = site.convert(&wishes);
    assert_eq!(stored(&report), [Some(PodmanState::Unchanged), Some(PodmanState::Removed)]);
    assert_eq!(store(&site), [(pushed.config.hex(), names()[..1].to_vec())]);
    let [images_after, layers_after] = locks(&site);
    assert!(images != images_after && layers == layers_after, "each lock changes with its list");

    let site = with(site, InStore::Nothing);
    assert_eq!(stored(&site.convert(&wishes)), [Some(PodmanState::Removed), None]);
    assert_eq!(store(&site), [], "an empty store is one: programs refuse to start without");
    site.assert_sound();
}

#[test]
fn what_the_store_has_no_room_for_is_published_and_told() {
    let (registry, mut site) = (TestRegistry::spawn(), with(Site::new(), InStore::All));
    site.options.store_limit = 2;
    let wishes: Vec<String> = (0..3)
        .map(|number| {
            version(&registry, &format!("lab/{number}"), number);
            wish(&registry, &format!("lab/{number}:1"))
        })
        .collect();
    let report = site.convert(&wishes);
    assert_eq!(outcomes(&report), [Added; 3]);
    assert_eq!(stored(&report), [Some(PodmanState::Added), Some(PodmanState::Added), Some(PodmanState::Full)]);
    assert!(report.wishes[2].has_failed());
    let error = report.wishes[2].podman.as_ref().unwrap().error.as_ref().unwrap();
    assert!(error.contains("2 images already") && error.contains("--podman-limit"), "{error}");
    assert_eq!(store(&site).len(), 2);
    let revision = site.revision();
    assert_eq!(stored(&site.convert(&wishes))[2], Some(PodmanState::Full), "it is told each time");
    assert_eq!(site.revision(), revision, "and nothing is written for it");
}

#[test]
fn images_that_are_published_no_more_go_with_the_next_change() {
    let (registry, site) = (TestRegistry::spawn(), with(Site::new(), InStore::All));
    version(&registry, "lab/gone", 1);
    let kept = version(&registry, "lab/kept", 2);
    site.convert(&[wish(&registry, "lab/gone:1")]);
    // As an administrator removes a name with the tools of the repository.
    let lock = site.target.lock().unwrap();
    let mut transaction = site.target.begin(&lock, time::UtcDateTime::now()).unwrap();
    let path = cvmfs::path::RepoPath::parse(format!("/{}", public(&registry, "lab/gone:1"))).unwrap();
    transaction.remove(&path).unwrap();
    site.target.commit(transaction).unwrap();
    drop(lock);
    site.convert(&[wish(&registry, "lab/kept:1")]);
    assert_eq!(store(&site), [(kept.config.hex(), vec![public(&registry, "lab/kept:1")])]);
    site.assert_sound();
}

#[test]
fn an_image_that_is_removed_is_not_in_the_store_and_not_kept_by_it() {
    let (registry, site) = (TestRegistry::spawn(), with(Site::new(), InStore::All));
    let (gone, kept) = (version(&registry, "lab/gone", 1), version(&registry, "lab/kept", 2));
    site.convert(&[wish(&registry, "lab/gone:1"), wish(&registry, "lab/kept:1")]);
    assert_eq!(store(&site).len(), 2);
    let before = locks(&site);
    removal::remove(&site.target, &wish(&registry, "lab/gone:1"), false).unwrap();
    assert_eq!(store(&site), [(kept.config.hex(), vec![public(&registry, "lab/kept:1")])]);
    assert!(before.iter().zip(locks(&site)).all(|(before, after)| *before != after));
    let usage = removal::Usage::default();
    let options = removal::Options {
        grace: removal::DEFAULT_GRACE,
        keep_versions: 0,
        lists: removal::Wanted::default(),
        usage,
        dry_run: false,
    };
    let marked = removal::collect(&site.target, &options).unwrap();
    assert!(format!("{:?}", marked.condemned).contains(&gone.config.hex()), "{:?}", marked.condemned);
    site.assert_sound();
}
