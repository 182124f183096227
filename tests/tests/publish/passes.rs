//! What a pass fetches, stores and publishes, and what it leaves alone.

use std::collections::BTreeSet;

use image::digest::ChainId;
use image::layout::StatusRecord;
use publisher::report::Outcome::{Added, Unchanged, Updated};
use registry::testing::TestRegistry;
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
