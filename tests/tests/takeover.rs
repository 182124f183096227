//! A repository of the existing container publisher is taken over: what is right stays and is not downloaded again.

use std::collections::BTreeMap;

use cvmfs::entry::Entry;
use cvmfs::hash::{ContentHash, ObjectKind};
use cvmfs::path::RepoPath;
use publisher::cli::Check;
use publisher::error::ExitStatus;
use publisher::images;
use publisher::repair::{self, Live};
use publisher::report::Outcome::{Added, Unchanged, Updated};
use publisher::target::file_meta;
use registry::testing::TestRegistry;
use scenarios::fixtures::Fixture;
use scenarios::repository::{Site, downloads, outcomes};
use scenarios::takeover::{HOST, Images, adopt_with_new_keys, available, wishes};
use scenarios::tree::{Tree, What};
use serde_json::Value;
use time::UtcDateTime;

/// A fixture with our keys, and a registry with the images of its wishes.
fn world(name: &str) -> Option<(Site, TestRegistry, Images)> {
    if !available() {
        return None;
    }
    let site = adopt_with_new_keys(&Fixture::unpack(name));
    let (registry, images) = (TestRegistry::spawn(), Images::read());
    images.push_all(&registry);
    Some((site, registry, images))
}

fn convert(site: &Site, registry: &TestRegistry) -> publisher::report::Report {
    let wishes = wishes(registry);
    site.convert_as(&wishes.iter().map(|(w, n)| (w.as_str(), Some(n.as_str()))).collect::<Vec<_>>())
}

fn blobs_of_layers(registry: &TestRegistry, images: usize) -> usize {
    // Each image has its config asked for once.
    downloads(registry).1 - images
}

#[test]
fn what_the_existing_publisher_has_published_is_not_downloaded_again() {
    let Some((site, registry, _)) = world("ducc") else { return };
    site.assert_sound();
    let before = site.revision();
    let published = images::list(&site.target).unwrap();
    assert_eq!(published.len(), 4, "{published:?}");
    assert!(published.iter().all(|i| i.legacy && i.path.starts_with(HOST)), "{published:?}");
    let (layer, flat) = (site.tree(".layers"), site.tree(".flat"));

    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4], "{report:?}");
    assert_eq!(blobs_of_layers(&registry, 4), 0, "no blob but configs");
    assert_eq!(site.revision(), before + 1, "records and index come in one publish");
    site.assert_sound();
    assert_eq!(site.tree(".flat"), flat);
    let mut now = site.tree(".layers");
    now.retain(|path, _| !path.ends_with(b"/.metadata/format.json"));
    let names = |tree: &Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&now), names(&layer));
    assert!(images::list(&site.target).unwrap().iter().all(|i| !i.legacy));

    registry.forget_requests();
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4]);
    assert_eq!(downloads(&registry), (0, 0), "documents are read from the repository now");
    assert_eq!(site.revision(), before + 1, "nothing new, nothing published");
}

#[test]
fn a_moved_tag_downloads_what_it_needs_once_and_writes_it_beside() {
    let Some((site, registry, _)) = world("ducc-run1") else { return };
    let legacy = site.tree(".layers");
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged, Updated, Unchanged, Unchanged], "{report:?}");
    let fetched: u64 = report.wishes.iter().map(|w| w.layers.fetched).sum();
    assert_eq!(fetched, 2, "the base, of which owners were lost, and the new layer");
    assert_eq!(blobs_of_layers(&registry, 4), 2);
    site.assert_sound();
    let now = site.tree(".layers");
    for (path, node) in legacy.iter().filter(|(path, _)| path.windows(8).any(|w| w == b"/layerfs")) {
        assert_eq!(
            now.get(path),
            Some(node),
            "what containers may hold open stays: {:?}",
            String::from_utf8_lossy(path)
        );
    }
    let beside: Vec<String> = now
        .keys()
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .filter(|p| p.ends_with("/.overlay/.metadata/format.json"))
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    let index = site.tree(".index/diff-id");
    let to_beside = index.values().filter(|n| matches!(&n.what, What::Symlink(t) if t.ends_with(b"/.overlay")));
    assert_eq!(to_beside.count(), 1);

    registry.forget_requests();
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4], "{report:?}");
    assert_eq!(downloads(&registry), (0, 0));
}

#[test]
fn a_new_image_on_a_known_base_has_the_owners_that_the_base_lost() {
    let Some((site, registry, images)) = world("ducc") else { return };
    convert(&site, &registry);
    registry.forget_requests();
    images.push(&registry, "wild-other", "fixture/wild", "other");
    let report = site.convert_as(&[(&format!("{}/fixture/wild:other", registry.url()), None)]);
    assert_eq!(outcomes(&report), [Added], "{report:?}");
    site.assert_sound();
    let fresh = Site::new();
    let report = fresh.convert_as(&[(&format!("{}/fixture/wild:other", registry.url()), None)]);
    assert_eq!(outcomes(&report), [Added]);
    let flats = fresh.tree(".flat");
    let ours = site.tree(".flat");
    let rows = |path: &Vec<u8>| path.iter().filter(|b| **b == b'/').count() > 1;
    for (path, node) in flats.iter().filter(|(path, _)| rows(path)) {
        let found = ours.get(path).unwrap_or_else(|| panic!("no {:?}", String::from_utf8_lossy(path)));
        assert_eq!((found.mode, found.uid, found.gid, &found.what), (node.mode, node.uid, node.gid, &node.what));
    }
}

/// A repair as `check --fix` makes it: the plan as JSON, and what a second plan says is left.
fn fix(site: &Site, live: Live) -> (Value, Value) {
    let target = &site.target;
    let plan = || repair::plan(target, &repair::examine(target, false).unwrap(), live).unwrap();
    let json = |plan: &repair::Plan| serde_json::from_str(&repair::to_json(plan, &target.fqrn, None)).unwrap();
    let first = plan();
    let before = site.revision();
    let published = repair::apply(target, &first).unwrap();
    assert_eq!(published.is_some(), !first.is_empty());
    assert_eq!(site.revision(), before + u64::from(published.is_some()), "one publish");
    let second = plan();
    assert!(second.is_empty(), "nothing is left to do: {}", repair::to_text(&second, &target.fqrn));
    (json(&first), json(&second))
}

/// Names of the faults in a part of a plan, each with its number.
fn faults(plan: &Value, part: &str) -> BTreeMap<String, usize> {
    let mut faults = BTreeMap::new();
    for line in plan[part].as_array().unwrap() {
        *faults.entry(line["fault"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    faults
}

fn expect(faults: &[(&str, usize)]) -> BTreeMap<String, usize> {
    faults.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn is_content(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').nth(2) == Some(b"layerfs")
}

/// What is below the content directories of the layers, by path.
fn contents(site: &Site) -> Tree {
    let mut tree = site.tree(".layers");
    tree.retain(|path, _| is_content(path));
    tree
}

#[test]
fn leftovers_of_the_existing_publisher_are_repaired_in_one_publish() {
    let Some((site, registry, _)) = world("ducc") else { return };
    let (before, podman, flats) = (contents(&site), site.tree("podmanStore"), site.tree(".flat"));
    let schedule = site.tree(".metadata").get(&b"remove-schedule.json"[..]).cloned();
    let (plan, rest) = fix(&site, Live::Keep);
    assert_eq!(
        faults(&plan, "repairs"),
        expect(&[("chains-left", 2), ("image-record", 4), ("index", 5), ("layer-format", 5), ("whiteouts-literal", 2)]),
        "{plan:#}"
    );
    assert_eq!(faults(&rest, "left"), expect(&[]), "{rest:#}");
    assert_eq!(faults(&plan, "notes"), expect(&[("flat-unlinked", 1), ("image-record", 4)]), "{plan:#}");
    assert!(plan["repairs"].as_array().unwrap().iter().all(|line| line["live"] == false));
    site.assert_sound();
    assert!(site.tree(".chains").is_empty() && site.tree(".dirty-chains").is_empty());
    assert_eq!(contents(&site), before, "layers that containers may hold open stay as they are");
    assert_eq!((site.tree("podmanStore"), site.tree(".flat")), (podman, flats));
    assert!(schedule.is_some());
    assert_eq!(site.tree(".metadata").get(&b"remove-schedule.json"[..]).cloned(), schedule);

    let layer = "07/074ee0bc67108a6f15b0f6a00f533a4e1e106c96556d8c14daf530a7357b707e";
    let beside = site.tree(&format!(".layers/{layer}/.overlay/layerfs"));
    let device = |path: &str| matches!(beside[path.as_bytes()].what, What::Char(0));
    assert!(device("opt/whole") && device("opt/data/one"), "{beside:?}");
    assert!(beside[&b"opt/opaque"[..]].xattrs.contains_key(&b"trusted.overlay.opaque"[..]));
    assert!(!beside.keys().any(|path| path.windows(4).any(|w| w == b".wh.")));
    let literal = site.tree(&format!(".layers/{layer}/layerfs"));
    let kept = |path: &&Vec<u8>| !path.windows(4).any(|w| w == b".wh.") && path.as_slice() != b".cvmfscatalog";
    for path in literal.keys().filter(kept) {
        assert_eq!(beside[path].what, literal[path].what);
    }

    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4], "{report:?}");
    assert_eq!(downloads(&registry).1, 0, "configs are known, and all else is right");
    let (plan, _) = fix(&site, Live::Keep);
    assert_eq!(faults(&plan, "notes"), expect(&[("flat-unlinked", 1)]));
}

#[test]
fn a_layer_made_without_its_blob_is_fetched_before_anything_is_made_from_it() {
    let Some((site, registry, _)) = world("ducc-run1") else { return };
    fix(&site, Live::Keep);
    let layer = ".layers/96/96f6609240b4ccfd5f34635ad5226dbac7dce956ce9314f540e4bac0ae2d5cf4/.overlay";
    let before = site.tree(layer);
    assert!(!before.is_empty());
    // A new image with all layers of another one, under a config of its own, is not at hand: the flat goes instead.
    let flat = ".flat/3d/3da759ea4abaaf3c5f26b233af55107c7b4138213fa074750a48b0ef483a1e0a";
    edit(&site, |transaction| transaction.remove(&RepoPath::parse(format!("/{flat}")).unwrap()).unwrap());
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report)[0], Updated, "{report:?}");
    site.assert_sound();
    assert!(!site.tree(flat).is_empty());
    let owned =
        site.tree(".layers/4f/4f5d38aced70eb96d8c54b65d9ca5bc32fb6e9a9f79f22723e3af09b89d89333/.overlay/layerfs");
    assert!(owned.values().any(|node| node.uid != 0), "owners come with the blob");
}

#[test]
fn whiteouts_change_in_place_only_when_that_is_asked_for() {
    let Some((site, registry, _)) = world("ducc") else { return };
    let (plan, rest) = fix(&site, Live::Change);
    let live = plan["repairs"].as_array().unwrap().iter().filter(|line| line["live"] == true);
    assert_eq!(live.count(), 2, "{plan:#}");
    assert_eq!(faults(&rest, "left"), expect(&[]));
    site.assert_sound();
    let content = contents(&site);
    assert!(!content.keys().any(|path| path.windows(4).any(|w| w == b".wh.")), "no file stands for a deletion");
    assert_eq!(content.values().filter(|n| matches!(n.what, What::Char(0))).count(), 3);
    assert!(!site.tree(".layers").keys().any(|path| path.windows(9).any(|w| w == b"/.overlay")));
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4], "{report:?}");
    assert_eq!(blobs_of_layers(&registry, 0), 0);
}

#[test]
fn a_repository_that_the_reference_checker_refuses_is_sound_afterwards() {
    let Some((site, ..)) = world("ducc-odd") else { return };
    assert!(!repair::examine(&site.target, false).unwrap().is_sound());
    let check = |dry_run| Check {
        fqrn: site.target.fqrn.clone(),
        data: false,
        fix: true,
        dry_run,
        yes_change_live_layers: false,
    };
    // Whoever looks stores the empty object that marks catalogs; it is not what this is about.
    drop(site.target.view(UtcDateTime::now()).unwrap());
    let (before, stored) = (site.revision(), site.stored_objects());
    assert_eq!(repair::fix(&check(true), &site.target, true).unwrap(), ExitStatus::Failed);
    assert!((site.revision(), site.stored_objects()) == (before, stored), "a dry run changes nothing");
    let other = site.fork();
    assert_eq!(repair::fix(&check(false), &other.target, false).unwrap(), ExitStatus::Success);
    assert_eq!(repair::fix(&check(true), &other.target, false).unwrap(), ExitStatus::Success, "nothing is left to do");
    let (plan, rest) = fix(&site, Live::Keep);
    let found = faults(&plan, "repairs");
    assert!(found["directory-links"] >= 2 && found["counter"] >= 1, "{plan:#}");
    assert_eq!(faults(&rest, "left"), expect(&[]));
    site.assert_sound();
}

/// Publishes a change made by hand.
fn edit(site: &Site, change: impl FnOnce(&mut cvmfs::transaction::Transaction)) {
    let lock = site.target.lock().unwrap();
    let mut transaction = site.target.begin(&lock, UtcDateTime::now()).unwrap();
    change(&mut transaction);
    site.target.commit(transaction).unwrap();
}

#[test]
fn what_failed_conversions_left_behind_is_found() {
    let Some((site, registry, _)) = world("ducc") else { return };
    let path = |text: &str| RepoPath::parse(text).unwrap();
    let layer = "/.layers/96/96f6609240b4ccfd5f34635ad5226dbac7dce956ce9314f540e4bac0ae2d5cf4";
    let flat = "/.flat/3d/3da759ea4abaaf3c5f26b233af55107c7b4138213fa074750a48b0ef483a1e0a";
    edit(&site, |transaction| {
        // The files for Apptainer, a public link, the records and the content of layers.
        transaction.remove(&path(flat).join(".singularity.d")).unwrap();
        transaction.remove(&path("/registry.fixture.example.org/fixture/wild:v1.0")).unwrap();
        transaction.remove(&path(layer).join(".metadata")).unwrap();
        transaction
            .remove(&path("/.layers/0e/0e8a04cc6bea0fd024c51ddec71380e3f6b1400924a7e14cd4c2c75371a658da/layerfs"))
            .unwrap();
        let gone = Entry::symlink("x", file_meta(UtcDateTime::now()), format!("../../.flat/aa/{}", "aa".repeat(32)));
        transaction.put(&path("/registry.fixture.example.org/fixture/gone:1"), gone, &[]).unwrap();
    });
    let runscript = site.tree(&format!("{}/.singularity.d", &flat[1..]));
    assert!(runscript.is_empty());
    let (plan, rest) = fix(&site, Live::Keep);
    let found = faults(&plan, "repairs");
    for fault in ["apptainer-files", "layer-record", "layer-half-made"] {
        assert_eq!(found[fault], 1, "{fault}: {plan:#}");
    }
    assert_eq!(found["image-link"], 2, "{plan:#}");
    assert_eq!(faults(&rest, "left"), expect(&[]), "{rest:#}");
    site.assert_sound();
    let made = site.tree(&flat[1..]);
    assert!(
        made.contains_key(&b".singularity.d/runscript"[..]) && made.contains_key(&b".singularity.d/actions/exec"[..])
    );
    let links = site.tree("registry.fixture.example.org/fixture");
    assert!(links.contains_key(&b"wild:v1.0"[..]) && !links.contains_key(&b"gone:1"[..]));
    let report = convert(&site, &registry);
    assert_eq!(outcomes(&report), [Unchanged; 4], "{report:?}");
    assert_eq!(blobs_of_layers(&registry, 0), 0);
}

/// The content of some file below a directory.
fn file_below(site: &Site, directory: &str) -> ContentHash {
    let mut view = site.target.view(UtcDateTime::now()).unwrap();
    let mut pending = vec![RepoPath::parse(directory).unwrap()];
    let mut found = None;
    while let Some(directory) = pending.pop() {
        for entry in view.list(&directory).unwrap() {
            match entry.is_directory() {
                true => pending.push(directory.join(&entry.name)),
                false if entry.size > 0 => found = entry.content.or(found),
                false => {}
            }
        }
    }
    found.expect("a file with content")
}

#[test]
fn content_that_is_gone_is_fetched_by_the_next_conversion() {
    let Some((site, registry, _)) = world("ducc") else { return };
    convert(&site, &registry);
    // An object that only one layer and its flats have.
    let layer = "/.layers/b5/b55bf5a40175c6bd1e74bb800c84c620e5b2d85486e64868b9e2cddc4f93683c/layerfs";
    let victim = file_below(&site, layer);
    site.target.store.remove(victim.object(ObjectKind::File)).unwrap();
    assert!(!repair::examine(&site.target, false).unwrap().is_sound());
    let (plan, rest) = fix(&site, Live::Keep);
    assert!(faults(&plan, "left")["object-missing"] >= 2, "{plan:#}");
    assert!(faults(&rest, "left")["object-missing"] >= 2, "it takes the registry to repair that: {rest:#}");

    registry.forget_requests();
    let report = convert(&site, &registry);
    let updated = outcomes(&report).into_iter().filter(|o| *o == Updated).count();
    assert!(updated >= 1, "{report:?}");
    site.assert_sound();
    registry.forget_requests();
    assert_eq!(outcomes(&convert(&site, &registry)), [Unchanged; 4]);
    assert_eq!(downloads(&registry), (0, 0), "what was damaged is right again");
}

#[test]
fn content_that_is_not_what_its_name_says_is_replaced() {
    let Some((site, registry, _)) = world("ducc") else { return };
    convert(&site, &registry);
    fix(&site, Live::Keep);
    let layer = "/.layers/b5/b55bf5a40175c6bd1e74bb800c84c620e5b2d85486e64868b9e2cddc4f93683c/layerfs";
    let victim = file_below(&site, layer);
    let path = site.storage().join(victim.object(ObjectKind::File).path());
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let check =
        Check { fqrn: site.target.fqrn.clone(), data: true, fix: true, dry_run: false, yes_change_live_layers: false };
    assert_eq!(repair::fix(&check, &site.target, true).unwrap(), ExitStatus::Failed, "the content is not at hand");
    assert!(!path.exists());
    let report = convert(&site, &registry);
    assert!(outcomes(&report).contains(&Updated), "{report:?}");
    site.assert_sound();
    assert_eq!(repair::fix(&check, &site.target, true).unwrap(), ExitStatus::Success);
}

#[test]
fn a_layer_whose_catalog_is_gone_is_made_again() {
    if !available() {
        return;
    }
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let images = Images::read();
    for tag in ["v1.0", "v1.1"] {
        images.push(&registry, &format!("wild-{tag}"), "fixture/wild", tag);
    }
    let wishes: Vec<String> =
        ["v1.0", "v1.1"].iter().map(|tag| format!("{}/fixture/wild:{tag}", registry.url())).collect();
    assert_eq!(outcomes(&site.convert(&wishes)), [Added; 2]);
    let before = site.tree(".layers");
    let layer =
        RepoPath::parse("/.layers/4f/4f5d38aced70eb96d8c54b65d9ca5bc32fb6e9a9f79f22723e3af09b89d89333").unwrap();
    let catalog = site.target.view(UtcDateTime::now()).unwrap().nested_reference(&layer).unwrap().expect("a catalog");
    site.target.store.remove(catalog.hash.object(ObjectKind::Catalog)).unwrap();
    // An image published before the loss is known is not what the loss is about.
    let (plan, rest) = fix(&site, Live::Keep);
    assert_eq!((faults(&plan, "repairs"), faults(&rest, "left")), (expect(&[]), expect(&[("catalog-object", 1)])));
    let report = site.convert(&wishes);
    assert!(outcomes(&report).contains(&Updated), "{report:?}");
    site.assert_sound();
    let kept = |tree: Tree| -> Tree { tree.into_iter().filter(|(path, _)| is_content(path)).collect() };
    assert_eq!(kept(site.tree(".layers")), kept(before));
}

#[test]
fn what_the_collection_of_the_existing_publisher_left_in_the_store_of_podman_is_noted() {
    let Some((site, registry, _)) = world("ducc-gc") else { return };
    let podman = site.tree("podmanStore");
    let (plan, rest) = fix(&site, Live::Keep);
    assert_eq!(faults(&plan, "notes"), expect(&[("image-record", 4), ("podman-layer", 1)]), "{plan:#}");
    assert_eq!(faults(&rest, "left"), expect(&[]));
    site.assert_sound();
    assert_eq!(site.tree("podmanStore"), podman);
    assert_eq!(outcomes(&convert(&site, &registry)), [Unchanged; 4]);
}
