//! What a list of version 2 says of its images: products, quotas, permissions, the choice of tags.

use publisher::gc;
use publisher::removal::{self, Options, Usage, Wanted};
use publisher::report::Outcome::{Added, Failed, Unchanged, Updated};
use publisher::wishlist::Severity;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Layer, Packing, dir, file, noise};
use scenarios::repository::{Site, flat_path, layer_path, list, outcomes, public, wish};
use scenarios::tree::What;

use crate::{content, target, two_layers};

fn entry(registry: &TestRegistry, name: &str, options: &str) -> String {
    format!("- {{image: '{}', {options}}}\n", wish(registry, name))
}

fn at_once() -> Options {
    let (grace, usage, lists) = (std::time::Duration::ZERO, Usage::default(), Wanted::default());
    Options { grace, keep_versions: 0, lists, usage, dry_run: false }
}

#[test]
fn an_image_can_be_published_without_its_layers() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = two_layers().push(&registry, "lab/x", "1");
    let list = |products: &str| format!("input:\n{}", entry(&registry, "lab/x:1", &format!("products: {products}")));
    assert_eq!(outcomes(&site.convert_list(&list("[flat]"))), [Added]);
    let (link, flat) = (public(&registry, "lab/x:1"), flat_path(pushed.config));
    let has_layers = || {
        let tree = site.tree("");
        pushed.layers.iter().map(|layer| tree.contains_key(layer_path(*layer).as_bytes())).collect::<Vec<_>>()
    };
    assert_eq!(target(&site.tree(""), &link), format!("../../{flat}"));
    assert_eq!(content(&site.tree(""), &format!("{flat}/etc/kept")), b"changed");
    assert_eq!(has_layers(), [false, false]);
    registry.forget_requests();
    assert_eq!(outcomes(&site.convert_list(&list("[flat]"))), [Unchanged]);
    assert_eq!(registry.count("GET", "/blobs/"), 0, "layers that are not published are not missed");
    site.assert_sound();
    assert!(gc::collect(&site.target, &everything()).is_ok());
    site.assert_sound();

    assert_eq!(outcomes(&site.convert_list(&list("[flat, layers]"))), [Updated]);
    assert_eq!(has_layers(), [true, true]);
    assert_eq!(outcomes(&site.convert_list(&list("[flat]"))), [Updated]);
    removal::collect(&site.target, &at_once()).unwrap();
    assert_eq!(has_layers(), [false, false], "nobody needs them any more");
    assert_eq!(content(&site.tree(""), &format!("{flat}/etc/kept")), b"changed");
    site.assert_sound();
}

fn everything() -> gc::CollectOptions {
    let minimal_age = std::time::Duration::ZERO;
    gc::CollectOptions { keep: cvmfs::gc::Keep::Revisions(0), minimal_age, dry_run: false }
}

#[test]
fn an_image_can_be_published_without_its_flat() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = two_layers().push(&registry, "lab/x", "1");
    let list = |products: &str| format!("input:\n{}", entry(&registry, "lab/x:1", &format!("products: {products}")));
    assert_eq!(outcomes(&site.convert_list(&list("[layers]"))), [Added]);
    let (link, flat) = (public(&registry, "lab/x:1"), flat_path(pushed.config));
    let has = |path: &str| site.tree("").contains_key(path.as_bytes());
    let records = format!(".metadata/{link}/manifest.json");
    assert!(has(&records) && has(&layer_path(pushed.layers[0])));
    assert!(!has(&link) && !has(&flat), "without a flat there is no link");
    let before = site.revision();
    assert_eq!(outcomes(&site.convert_list(&list("[layers]"))), [Unchanged]);
    assert_eq!(site.revision(), before);
    site.assert_sound();
    // The record is enough to keep the layers, and to remove the image and put it back.
    removal::collect(&site.target, &at_once()).unwrap();
    assert!(has(&layer_path(pushed.layers[0])));
    let image = wish(&registry, "lab/x:1");
    removal::remove(&site.target, &image, false).unwrap();
    assert!(!has(&records));
    removal::undelete(&site.target, &image, None, false).unwrap();
    assert!(has(&records) && !has(&link));
    assert_eq!(outcomes(&site.convert_list(&list("[layers, flat]"))), [Updated]);
    assert!(has(&link) && has(&flat));
    assert_eq!(outcomes(&site.convert_list(&list("[layers]"))), [Updated]);
    removal::collect(&site.target, &at_once()).unwrap();
    assert!(!has(&link) && !has(&flat), "nobody needs it any more");
    site.assert_sound();
}

#[test]
fn a_quota_refuses_before_anything_is_fetched() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let shared = || Layer::new(&[file("base", noise(1, 20_000))], Packing::Plain);
    let image = |seed: u64, size: usize| {
        Image::new([shared(), Layer::new(&[file(format!("f{seed}"), noise(seed, size))], Packing::Plain)])
    };
    for (name, seed, size) in [("a", 2, 5_000), ("b", 3, 30_000), ("c", 4, 5_000)] {
        image(seed, size).push(&registry, &format!("lab/{name}"), "1");
    }
    let options = "owner: lab, quota: {image: 50k, owner: 43k}";
    let list = ["a", "b", "c"].map(|name| entry(&registry, &format!("lab/{name}:1"), options)).concat();
    let report = site.convert_list(&format!("input:\n{list}"));
    assert_eq!(outcomes(&report), [Added, Failed, Added]);
    let error = report.wishes[1].error.as_deref().unwrap();
    assert!(error.ends_with(" bytes; the wish list allows 50000 (quota)"), "{error}");
    assert_eq!(registry.count("GET", "/blobs/"), 5, "two configs and three layers: the shared one once, nothing of b");

    // The next one fits by itself, but not beside what its owner has.
    let more = entry(&registry, "lab/d:1", &format!("{options}, priority: 9"));
    image(5, 9_000).push(&registry, "lab/d", "1");
    let report = site.convert_list(&format!("input:\n{list}{more}"));
    assert_eq!(outcomes(&report), [Unchanged, Failed, Unchanged, Failed]);
    let error = report.wishes[3].error.as_deref().unwrap();
    assert!(error.starts_with("lab would have ") && error.contains("allows 43000"), "{error}");
    // Another owner may have it.
    let other = more.replace("owner: lab", "owner: other");
    assert_eq!(outcomes(&site.convert_list(&format!("input:\n{other}"))), [Added]);
}

#[test]
fn permissions_are_those_that_the_list_says() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let of = |text: &str| Image::of(&[&[dir("d").mode(0o700), file("d/secret", text).mode(0o600)]]);
    let (kept, readable) = (of("a").push(&registry, "lab/a", "1"), of("b").push(&registry, "lab/b", "1"));
    let entries = entry(&registry, "lab/a:1", "owner: x") + &entry(&registry, "lab/b:1", "permissions: readable");
    assert_eq!(outcomes(&site.convert_list(&format!("input:\n{entries}"))), [Added; 2]);
    let tree = site.tree("");
    let mode = |image, path: &str| {
        let node = &tree[format!("{}/{path}", flat_path(image)).as_bytes()];
        assert!(matches!(node.what, What::File(_) | What::Directory), "{path}");
        node.mode & 0o777
    };
    assert_eq!((mode(kept.config, "d"), mode(kept.config, "d/secret")), (0o700, 0o600));
    assert_eq!((mode(readable.config, "d"), mode(readable.config, "d/secret")), (0o755, 0o644));
}

#[test]
fn a_wildcard_takes_the_tags_that_are_chosen() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let push = |tag: &str, created: &str| {
        let mut image = Image::of(&[&[file("tag", tag)]]);
        image.config["created"] = created.into();
        image.push(&registry, "lab/x", tag);
    };
    for (tag, created) in [
        ("1.9", "2020-01-01T00:00:00Z"),
        ("1.10", "2020-02-01T00:00:00Z"),
        ("2.0", "2099-01-01T00:00:00Z"),
        ("2.1-rc1", "2099-02-01T00:00:00Z"),
        ("2.1", "2099-03-01T00:00:00Z"),
        ("latest", "2099-03-01T00:00:00Z"),
    ] {
        push(tag, created);
    }
    let taken = |tags: &str, more: &str| -> Vec<String> {
        let list = format!("input:\n{}{more}", entry(&registry, "lab/x:*", &format!("tags: {tags}")));
        let report = site.convert_list(&list);
        report.wishes.iter().map(|w| w.image.as_deref().unwrap().rsplit(':').next().unwrap().to_owned()).collect()
    };
    for (tags, expected) in [
        ("{newest: 2}", vec!["2.1", "2.1-rc1"]),
        ("{newest: 2, exclude: '*-rc*'}", vec!["2.0", "2.1"]),
        ("{semver: '^1'}", vec!["1.10", "1.9"]),
        ("{semver: '>=1.10', newest: {count: 1, by: semver}}", vec!["2.1"]),
        ("{newest: {count: 1, by: name}}", vec!["latest"]),
        ("{semver: '*', not_older_than: 30d}", vec!["2.0", "2.1"]),
        ("{newest: 3, not_older_than: 30d, exclude: '*-rc*'}", vec!["2.0", "2.1"]),
    ] {
        assert_eq!(taken(tags, ""), expected, "{tags}");
    }
    let own = entry(&registry, "lab/x:2.1", "priority: 3");
    assert_eq!(taken("{newest: 1, exclude: '*-rc*'}", &own), ["2.0", "2.1"], "its own entry has it");
}

#[test]
fn lint_asks_the_registries_for_what_a_list_wishes() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    for tag in ["1.0", "2.0"] {
        Image::of(&[&[file("tag", tag)]]).push(&registry, "lab/x", tag);
    }
    let of = |name: &str| wish(&registry, name);
    let ignored = "ignoreErrors: ['*gone*']\n";
    let entries =
        ["lab/x:1.0", "lab/x:2.*", "lab/x:3.0", "lab/x:3.*", "lab/gone:1"].map(|name| format!("- {}\n", of(name)));
    let chosen = entry(&registry, "lab/x:*", "tags: {exclude: '*'}");
    let list = list(&format!("{ignored}input:\n{}{chosen}", entries.concat()));
    let found = publisher::wishlist::absent(&list, &site.converter().sources);
    let lines: Vec<_> = found.iter().map(|p| (p.line, p.field.as_str(), p.severity)).collect();
    let (error, warning) = (Severity::Error, Severity::Warning);
    let expected = [(7, "input[2]", error), (8, "input[3]", error), (9, "input[4]", warning), (10, "input[5]", error)];
    assert_eq!(lines, expected, "{found:#?}");
    assert!(found[1].message.contains("takes none of the 2 tags that are there"), "{}", found[1].message);
    assert_eq!(registry.count("GET", "/blobs/"), 0, "nothing is fetched");
}
