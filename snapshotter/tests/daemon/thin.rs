//! Thin images: a layer that lists others, unpacked and committed like any other.

use std::fs;

use containerd_client::services::v1::snapshots::Kind;
use image::digest::LayerDigest;
use image::thin::{ThinLayer, ThinRecord};
use tonic::Code;

use crate::common::{Client, Layer, World};

const NAME: &str = "images.example.org";

pub fn record(layers: &[(&str, &Layer)]) -> Vec<u8> {
    let layers = layers.iter().map(|(repository, layer)| ThinLayer {
        repository: (*repository).to_owned(),
        layer: layer.digest,
        diff_id: Some(layer.diff),
        size: None,
    });
    let origin = Some("https://registry.example.org/x:1".to_owned());
    ThinRecord { origin, manifest: None, config: None, platform: None, layers: layers.collect() }.to_bytes()
}

/// What containerd does with the layer of a thin image: prepares, unpacks, commits.
pub fn unpack(client: &mut Client, name: &str, parent: &str, thin: &[u8]) -> Result<(), crate::common::Failure> {
    let key = format!("extract {name}");
    let mounts = client.prepare(&key, parent, &[])?;
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    fs::write(format!("{}/thin.json", upper.unwrap_or(&mounts[0].source)), thin).expect("a directory to write to");
    client.commit(name, &key, &[])
}

#[test]
fn a_container_of_a_thin_image_stands_on_the_layers_that_it_lists() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers = ["base", "middle", "top"].map(|name| repository.layer(name));
    repository.index(&layers);
    let daemon = world.start();
    let mut client = daemon.client();
    let all: Vec<(&str, &Layer)> = layers.iter().map(|layer| (NAME, layer)).collect();
    unpack(&mut client, "default/1/thin", "", &record(&all)).unwrap();
    assert_eq!(client.stat("default/1/thin").unwrap().kind(), Kind::Committed);
    assert_eq!(world.how("default/1/thin").as_deref(), Some("thin"));
    // An image built on a thin one is layers as any on it.
    client.layer("default/2/more", "default/1/thin");
    client.prepare("default/3/container", "default/2/more", &[]).unwrap();
    let mut daemon = daemon;
    for _ in 0..2 {
        let mounts = daemon.client().mounts("default/3/container").unwrap();
        let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
        let mut lowers = lowers.split(':');
        assert_eq!(lowers.next(), world.content("default/2/more").to_str());
        let targets: Vec<_> = lowers.map(|lower| fs::read_link(lower).unwrap()).collect();
        assert_eq!(targets, [2, 1, 0].map(|number| repository.content(&layers[number])), "the top one first");
        daemon.kill();
        daemon = world.start();
    }
}

#[test]
fn a_thin_image_that_can_t_be_had_is_not_committed() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.layer("base");
    let absent = Layer { digest: LayerDigest::of(b"absent"), ..Layer::named("absent") };
    let daemon = world.start();
    let mut client = daemon.client();
    for (thin, code, says) in [
        (record(&[(NAME, &layer), (NAME, &absent)]), Code::Unavailable, "can't be used"),
        (record(&[("other.example.org", &layer)]), Code::FailedPrecondition, "which is not configured"),
        (record(&[]), Code::FailedPrecondition, "overlayfs takes between 1 and"),
    ] {
        let failure = unpack(&mut client, "thin", "", &thin).expect_err(says);
        assert_eq!(failure.code, code, "{}", failure.text);
        assert!(failure.text.contains(says), "{}", failure.text);
        client.remove("extract thin").unwrap();
    }
    assert_eq!(client.everything().len(), 0);
}

#[test]
fn what_leads_elsewhere_or_is_out_of_bounds_is_refused_and_leaves_nothing() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.layer("base");
    let daemon = world.start();
    let mut client = daemon.client();
    let good = String::from_utf8(record(&[(NAME, &layer)])).unwrap();
    let entry = format!(
        r#"{{"digest":"{0}","url":"cvmfs://{NAME}/.layers/{1}/{0}/layerfs"}}"#,
        layer.digest.hex(),
        layer.digest.bucket()
    );
    let many = |count: usize| format!(r#"{{"version":"1.0","layers":[{}]}}"#, vec![entry.as_str(); count].join(","));
    for (thin, says) in [
        (good.replace("/layerfs", "/layerfs/../../../.."), "is not the directory of layer"),
        (good.replace("cvmfs://", "file:///"), "is not the directory of layer"),
        (good.replace("cvmfs://", "https://"), "is not the directory of layer"),
        (good.replace(NAME, ".."), "is not the directory of layer"),
        (good.replacen(&layer.digest.hex(), &"0".repeat(64), 1), "is not the directory of layer"),
        (good.replace("\"1.0\"", "\"9.0\""), "version 9.0"),
        (many(501), "501 layers"),
        (many(1_000_000), "bytes; at most"),
        (good.replace("x:1", &"x".repeat(1 << 20)), "bytes; at most"),
    ] {
        let failure = unpack(&mut client, "thin", "", thin.as_bytes()).expect_err(says);
        assert_eq!(failure.code, Code::FailedPrecondition, "{}", failure.text);
        assert!(failure.text.contains(says) && failure.text.len() < 2000, "{}", failure.text);
        client.remove("extract thin").unwrap();
    }
    assert_eq!(client.everything().len(), 0);
}

#[test]
fn a_file_of_that_name_with_something_else_in_it_is_an_ordinary_layer() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for (number, thin) in ["{}", "", "[1]", r#"{"version":3}"#, r#"{"layers":"none"}"#].iter().enumerate() {
        let name = format!("layer {number}");
        unpack(&mut client, &name, "", thin.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(world.content(&name).join("thin.json")).unwrap(), *thin);
        assert_eq!(world.how(&name), None);
    }
}
