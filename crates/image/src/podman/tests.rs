//! Against what containers/storage and containers/image make.

use serde_json::json;

use super::*;
use crate::digest::{DiffId, LayerDigest};
use crate::manifest::{LayerCompression, LayerDescriptor};

fn layer(content: &str) -> Layer {
    let descriptor = LayerDescriptor {
        digest: LayerDigest::of(format!("compressed {content}").as_bytes()),
        size: 7,
        compression: LayerCompression::Gzip,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
    };
    Layer { descriptor, diff_id: DiffId::of(content.as_bytes()) }
}

fn entry(config: &str) -> ImageEntry {
    let image = ImageId::of(config.as_bytes());
    let documents = documents(b"{}", image, config.as_bytes(), None);
    ImageEntry::new(image, ManifestDigest::of(b"{}"), LayerId::flat(image), "1970-01-01T00:00:00Z", &documents)
}

#[test]
fn identifiers_are_those_that_others_use() {
    // printf 'cvmfs-flat-layer:aa…a' | sha256sum
    let flat = LayerId::flat(ImageId::parse_hex(&"a".repeat(64)).unwrap());
    assert_eq!(flat.hex(), "7772180363c2b584ed6c56003f85da96d4fafe1d03a2488df092e9850b2f819d");
    let short = flat.short();
    assert_eq!(ShortName::parse(short.as_str()), Some(short.clone()));
    assert_ne!(short, LayerId::on(None, &layer("x")).short());
}

#[test]
fn a_stack_has_the_ids_that_a_pull_gives_it() {
    let layers: Vec<_> =
        ["a", "b", "c"].iter().map(|content| (layer(content), 1000, format!("/cvmfs/{content}"))).collect();
    let stack = StoreLayer::stack(&layers, "2026-01-02T03:04:05Z");
    let hex = |content: &str| DiffId::of(content.as_bytes()).hex();
    let second = Digest::of(format!("{}+{}", hex("a"), hex("b")).as_bytes()).hex();
    let third = Digest::of(format!("{second}+{}", hex("c")).as_bytes()).hex();
    assert_eq!(stack.iter().map(|layer| layer.id.hex()).collect::<Vec<_>>(), [hex("a"), second.clone(), third]);
    let [a, b] = [stack[0].id.short(), stack[1].id.short()];
    let lowers: Vec<_> = stack.iter().map(|layer| layer.lower.clone()).collect();
    assert_eq!(lowers, [None, Some(format!("l/{a}")), Some(format!("l/{b}:l/{a}"))]);
    assert_eq!(
        serde_json::to_value(&stack[2].entry).unwrap(),
        json!({
            "id": stack[2].id.hex(), "parent": second, "created": "2026-01-02T03:04:05Z",
            "compressed-diff-digest": LayerDigest::of(b"compressed c"), "compressed-size": 7,
            "diff-digest": DiffId::of(b"c"), "diff-size": 1000, "compression": 2,
        })
    );
}

#[test]
fn documents_lie_in_files_as_containers_storage_names_them() {
    assert_eq!(document_file("manifest"), "manifest");
    // printf 'sha256:abc' | base64
    assert_eq!(document_file("sha256:abc"), "=c2hhMjU2OmFiYw==");
    assert!(!document_file(&format!("manifest-sha256:{}", "0f".repeat(32))).contains('/'));
}

#[test]
fn paths_mean_what_they_print() {
    let (layer, image) = (LayerId::on(None, &layer("x")), ImageId::of(b"x"));
    for path in [
        StorePath::Layer(layer),
        StorePath::Diff(layer),
        StorePath::Link(layer),
        StorePath::Lower(layer),
        StorePath::Short(layer.short()),
        StorePath::Image(image),
        StorePath::Document(image, "manifest".into()),
        StorePath::Document(image, image.to_string()),
        StorePath::Images,
        StorePath::ImagesLock,
        StorePath::Layers,
        StorePath::LayersLock,
    ] {
        assert_eq!(StorePath::parse(&path.print()), Some(path));
    }
    for other in
        ["", "overlay", "overlay/l", "overlay/../x", "overlay/l/x", "overlay-images/x", "overlay-images/=/=", "x"]
    {
        assert_eq!(StorePath::parse(other), None, "{other}");
    }
}

#[test]
fn times_are_ones_that_go_can_read() {
    for (candidates, expected) in [
        ([Some("2026-01-02T03:04:05.678Z"), None], "2026-01-02T03:04:05.678Z"),
        ([Some("2026-01-02T03:04:05+02:00"), None], "2026-01-02T01:04:05Z"),
        ([Some("yesterday"), Some("2026-01-02T03:04:05Z")], "2026-01-02T03:04:05Z"),
        ([None, None], "1970-01-01T00:00:00Z"),
        ([Some("0000-12-31T23:00:00-05:00"), None], "0001-01-01T04:00:00Z"),
        ([Some("9999-12-31T23:00:00-05:00"), None], "1970-01-01T00:00:00Z"),
    ] {
        assert_eq!(created(candidates), expected);
    }
}

#[test]
fn a_name_belongs_to_one_image_and_what_others_wrote_stays() {
    let other = json!({ "id": "ff", "names": ["r.io/a:1", "r.io/b:1"], "layer": "ee", "created": "x", "more": 1 });
    let mut images: Vec<Listed> = read(json!([other]).to_string().as_bytes()).unwrap();
    assert_eq!(place(&mut images, "r.io/a:1", entry("one")), Placed::Updated);
    assert_eq!(images[0].names(), ["r.io/b:1"]);
    assert_eq!(place(&mut images, "r.io/a:1", entry("one")), Placed::Unchanged);
    assert_eq!(place(&mut images, "r.io/c:1", entry("one")), Placed::Added);
    assert_eq!(place(&mut images, "r.io/c:1", entry("two")), Placed::Updated);
    assert!(take_name(&mut images, "r.io/a:1") && !take_name(&mut images, "r.io/a:1"));
    let below: Listed<LayerEntry> = Listed::Other(json!({ "id": "dd", "parent": "" }));
    let of = |config: &str| {
        let image = ImageId::of(config.as_bytes());
        Listed::Ours(StoreLayer::flat(image, "1970-01-01T00:00:00Z", 1, "/x".into()).entry)
    };
    let mut layers = vec![of("one"), below.clone(), of("two")];
    settle(&mut images, &mut layers);
    assert_eq!(images.len(), 2, "an image without a name goes: {images:?}");
    assert_eq!(layers, [below, of("two")], "and its layer");
    assert_eq!(serde_json::to_value(&images).unwrap()[1]["more"], 1);
}

#[test]
fn names_lead_to_published_images_and_back() {
    let hex = "ab".repeat(32);
    for (published, name) in [
        ("registry.hub.docker.com/library/debian:stable", "docker.io/library/debian:stable"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("127.0.0.1:5000/a:1", "127.0.0.1:5000/a:1"),
        ("local/app:1", "localhost/local/app:1"),
        (&format!("quay.io/a:sha256:{hex}"), &format!("quay.io/a:sha256-{hex}")),
    ] {
        let published = PublicName::parse(published).unwrap();
        assert_eq!(engine_name(&published), name);
        assert!(published_names(name).contains(&published), "{name}");
    }
    assert!(published_names("../x:1").is_empty());
}
