//! Which images a wish means, and in which forms they come.

use publisher::report::Outcome::{Added, Unchanged};
use registry::testing::TestRegistry;
use scenarios::image_builder::{
    Format, Image, Layer, Packing, Pushed, dir, file, index_entry, media, push_attestation, push_index, symlink,
};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, flat_path, outcomes, public, wish};
use scenarios::tree::Tree;
use serde_json::json;

use crate::{content, target};

#[test]
fn chooses_our_platform_from_an_index_and_overlooks_attestations() {
    for format in [Format::Oci, Format::Docker] {
        let (registry, site) = (TestRegistry::spawn(), Site::new());
        let of = |architecture: &str| {
            let image = Image::of(&[&[file("architecture", architecture)]]).architecture(architecture).format(format);
            image.push_untagged(&registry, "lab/x")
        };
        let media_type = if format == Format::Oci { media::OCI_MANIFEST } else { media::DOCKER_MANIFEST };
        let (arm, amd) = (of("arm64"), of("amd64"));
        let entries = [
            push_attestation(&registry, "lab/x", &arm),
            index_entry(&arm, media_type, "linux/arm64/v8"),
            index_entry(&amd, media_type, "linux/amd64"),
            push_attestation(&registry, "lab/x", &amd),
        ];
        let (index, bytes) = push_index(&registry, "lab/x", "1", format, &entries);
        let report = site.convert(&[wish(&registry, "lab/x:1")]);
        assert_outcome(&report.wishes[0], Added);
        let tree = site.tree("");
        let link = public(&registry, "lab/x:1");
        assert_eq!(target(&tree, &link), format!("../../{}", flat_path(amd.config)));
        assert_eq!(content(&tree, &format!("{}/architecture", flat_path(amd.config))), b"amd64");
        let hex = index.hex();
        assert_eq!(content(&tree, &format!(".index/manifest/{}/{hex}", &hex[..2])), bytes);
        assert_eq!(content(&tree, &format!(".metadata/{link}/image-manifest.json")), amd.manifest_bytes);
        assert!(!tree.contains_key(flat_path(arm.config).as_bytes()), "one platform an image");
        assert_eq!(registry.count("GET", &arm.layers[0].to_string()), 0, "nothing of other platforms is fetched");
        site.assert_sound();
    }
}

#[test]
fn wildcards_publish_the_tags_that_match() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    registry.page_tags(2);
    for (tag, text) in [("1.0", "a"), ("1.1", "a"), ("1.1-rc", "b"), ("2.0", "c"), ("latest", "c")] {
        Image::of(&[&[file("f", text)]]).push(&registry, "lab/x", tag);
    }
    let wishes = [wish(&registry, "lab/x:1.*"), wish(&registry, "lab/x:*rc")];
    let report = site.convert(&wishes[..1]);
    let images: Vec<&str> = report.wishes.iter().filter_map(|w| w.image.as_deref()).collect();
    assert_eq!(images, ["1.0", "1.1", "1.1-rc"].map(|tag| wish(&registry, &format!("lab/x:{tag}"))));
    let tree = site.tree("");
    let links = |tree: &Tree| {
        let top = format!("{}/lab/", registry.address());
        tree.keys().filter(|p| p.starts_with(top.as_bytes())).count()
    };
    assert_eq!(links(&tree), 3);
    assert_eq!(
        tree.keys().filter(|p| p.starts_with(b".flat/") && p.len() == 73).count(),
        2,
        "equal images share a flat"
    );
    assert_eq!(outcomes(&site.convert(&wishes)), [Unchanged; 4]);
    site.assert_sound();
}

#[test]
fn digests_name_images_with_and_without_a_tag() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = Image::of(&[&[file("f", "old")]]).push(&registry, "lab/x", "1");
    let new = Image::of(&[&[file("f", "new")]]).push(&registry, "lab/x", "1");
    let wishes = [
        wish(&registry, &format!("lab/x@{}", old.manifest)),
        wish(&registry, &format!("lab/x:pinned@{}", old.manifest)),
        wish(&registry, "lab/x:1"),
    ];
    assert_eq!(outcomes(&site.convert(&wishes)), [Added; 3]);
    let tree = site.tree("");
    let to = |name: &str| target(&tree, &public(&registry, name));
    let flat = |pushed: &Pushed| format!("../../{}", flat_path(pushed.config));
    assert_eq!(to(&format!("lab/x:{}", old.manifest)), flat(&old), "NAME:sha256:<hex>");
    assert_eq!(to("lab/x:pinned"), flat(&old));
    assert_eq!(to("lab/x:1"), flat(&new));
    registry.forget_requests();
    assert_eq!(outcomes(&site.convert(&wishes[..2])), [Unchanged; 2]);
    assert!(registry.requests().is_empty(), "a digest needs no question");
    site.assert_sound();
}

#[test]
fn every_packing_and_format_gives_the_same_image() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let members = [dir("d"), file("d/f", "content"), symlink("l", "d/f")];
    let mut wishes = Vec::new();
    let mut pushed = Vec::new();
    for format in [Format::Oci, Format::Docker] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let tag = format!("{format:?}-{packing:?}");
            let mut image = Image::new([Layer::new(&members, packing)]).format(format);
            image.config["config"]["Labels"] = json!({"tag": tag});
            pushed.push(image.push(&registry, "lab/x", &tag));
            wishes.push(wish(&registry, &format!("lab/x:{tag}")));
        }
    }
    // The media type says gzip, the bytes are zstd.
    let lying = Layer { media_type: Some(format!("{}+gzip", media::OCI_LAYER)), ..Layer::new(&members, Packing::Zstd) };
    pushed.push(Image::new([lying]).push(&registry, "lab/x", "lying"));
    wishes.push(wish(&registry, "lab/x:lying"));
    for outcome in &site.convert(&wishes).wishes {
        assert_outcome(outcome, Added);
    }
    let expected = naive::unpack([&members[..]]);
    for (pushed, wish) in pushed.iter().zip(&wishes) {
        assert_flat(&site, pushed.config, &expected, wish);
    }
    site.assert_sound();
}

#[test]
fn foreign_layers_are_left_out() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let foreign = Layer {
        media_type: Some("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()),
        ..Layer::new(&[file("windows", "base")], Packing::Gzip)
    };
    let ours = Layer::new(&[file("ours", "x")], Packing::Gzip);
    let pushed = Image::new([foreign.clone(), ours]).format(Format::Docker).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    assert_eq!(registry.count("GET", &foreign.digest.to_string()), 0);
    let expected = naive::unpack([&[file("ours", "x")][..]]);
    assert_flat(&site, pushed.config, &expected, "without the foreign layer");
    site.assert_sound();
}
