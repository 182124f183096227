//! A repository of the existing container publisher is taken over: what is right stays and is not downloaded again.

use publisher::images;
use publisher::report::Outcome::{Added, Unchanged, Updated};
use registry::testing::TestRegistry;
use scenarios::fixtures::Fixture;
use scenarios::repository::{Site, downloads, outcomes};
use scenarios::takeover::{HOST, Images, adopt_with_new_keys, available, wishes};

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
    let names = |tree: &scenarios::tree::Tree| tree.keys().cloned().collect::<Vec<_>>();
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
    let to_beside =
        index.values().filter(|n| matches!(&n.what, scenarios::tree::What::Symlink(t) if t.ends_with(b"/.overlay")));
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
