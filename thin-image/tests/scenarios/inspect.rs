//! What a thin image is, from wherever it lies.

use std::fs;

use image::layout::OwnedPath;
use image::thin::Blob;
use registry::testing::TestRegistry;
use registry::{Client, ClientConfig};
use serde_json::{Value, json};
use thin_image::build::{Platforms, Thin};
use thin_image::inspect::{self, Report, State};
use thin_image::output::{Output, archive};
use thin_image::push::push;

use crate::repository::{APP, Fake, Image, NAME, layer, wanted};

fn thin(fake: &Fake) -> Thin {
    Thin::make(&fake.repository(), &wanted(APP), &Platforms::All).unwrap()
}

/// What does not depend on where it was found.
fn essence(report: &Report) -> Value {
    let mut value = serde_json::to_value(report).unwrap();
    value.as_object_mut().unwrap().remove("source");
    value
}

#[tokio::test]
async fn every_place_gives_the_same_report() {
    let fake = Fake::with_app();
    fake.publish(&Image { platform: "linux/arm64", elsewhere: true, ..Image::app() });
    let thin = thin(&fake);
    let place = tempfile::tempdir().unwrap();
    let (directory, file) = (place.path().join("layout"), place.path().join("app.tar"));
    for path in [&directory, &file] {
        Output::parse(path).write(&thin, APP).unwrap();
    }
    let registry = TestRegistry::spawn();
    let (client, target) = (Client::new(ClientConfig::default()).unwrap(), registry.reference("thin/app:1"));
    push(&client, &thin, &target).await.unwrap();
    let published = inspect::of_thin(APP, &thin, fake.cvmfs()).unwrap();
    for report in [
        inspect::of_path(&directory, fake.cvmfs()).unwrap(),
        inspect::of_path(&file, fake.cvmfs()).unwrap(),
        inspect::of_registry(&client, &target, fake.cvmfs()).await.unwrap(),
    ] {
        assert_eq!(essence(&report), essence(&published), "{}", report.source);
    }
    let image = &published.images[0];
    assert_eq!(image.origin_manifest, Some(Image::app().digest()));
    assert_eq!(image.layers[1].layer, layer("app"));
    assert_eq!(image.layers[1].directory, fake.path(&OwnedPath::LayerContent(layer("app"))));
    let text = published.text();
    for part in ["linux/arm64", "https://quay.io/tools/app:1", "2, 2 of them on this node, 2.0 MB to download", NAME] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn layers_are_looked_for_on_this_node() {
    let fake = Fake::with_app();
    let thin = thin(&fake);
    let states = || {
        let report = inspect::of_thin(APP, &thin, fake.cvmfs()).unwrap();
        report.images[0].layers.iter().map(|layer| layer.state).collect::<Vec<_>>()
    };
    assert_eq!(states(), [State::Present, State::Present]);
    fs::remove_dir_all(fake.path(&OwnedPath::Layer(layer("app")))).unwrap();
    assert_eq!(states(), [State::Present, State::Absent]);
    fs::remove_dir_all(fake.root()).unwrap();
    assert_eq!(states(), [State::NotMounted, State::NotMounted]);
}

#[test]
fn what_old_docker_saved_is_read() {
    let fake = Fake::with_app();
    let thin = thin(&fake);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("saved.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    add("manifest.json", br#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#);
    add("c.json", &thin.images[0].config.bytes);
    add("a/layer.tar", &thin.images[0].layer.bytes);
    add("b/layer.tar", &[7; 5 << 20]);
    builder.finish().unwrap();
    let report = inspect::of_path(&path, fake.cvmfs()).unwrap();
    assert_eq!((report.images[0].ordinary_layers, report.images[0].layers.len()), (1, 2));
}

#[test]
fn hostile_records_are_refused_with_the_reason() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("thin.json");
    let hex = "a".repeat(64);
    let one = |url: &str| json!({ "version": "1.0", "layers": [{ "digest": hex, "url": url }] });
    let good = one(&format!("cvmfs://a.b/.layers/aa/{hex}/layerfs"));
    let many = json!({ "version": "1.0", "layers": vec![good["layers"][0].clone(); 501] });
    for (record, reason) in [
        (one("file:///etc"), "is not the directory of layer"),
        (one(&format!("cvmfs://../.layers/aa/{hex}/layerfs")), "is not the directory of layer"),
        (one(&format!("cvmfs://a.b/.layers/aa/{hex}/layerfs/../../../../etc")), "is not the directory of layer"),
        (many, "501 layers"),
        (json!({ "version": "9", "layers": [] }), "version 9"),
        (json!([]), "can't be read"),
    ] {
        fs::write(&path, record.to_string()).unwrap();
        let error = format!("{:#}", inspect::of_path(&path, place.path()).unwrap_err());
        assert!(error.contains(reason), "{record}: {error}");
    }
    fs::write(&path, good.to_string()).unwrap();
    assert_eq!(inspect::of_path(&path, place.path()).unwrap().images[0].layers[0].state, State::NotMounted);
}

#[test]
fn damaged_and_ordinary_images_are_told_apart() {
    let fake = Fake::with_app();
    let thin = thin(&fake);
    let place = tempfile::tempdir().unwrap();
    let blob = |blob: &Blob| place.path().join("layout/blobs/sha256").join(blob.digest.hex());
    let write = || Output::parse(&place.path().join("layout")).write(&thin, APP).unwrap();
    let error = || format!("{:#}", inspect::of_path(&place.path().join("layout"), fake.cvmfs()).unwrap_err());
    write();
    fs::write(blob(&thin.images[0].layer), "other").unwrap();
    assert!(error().contains("has another content"), "{}", error());
    fs::remove_file(blob(&thin.images[0].layer)).unwrap();
    assert!(error().contains("is absent"), "{}", error());
    write();
    assert!(inspect::of_path(&place.path().join("layout"), fake.cvmfs()).is_ok(), "writing repairs");
    let cut = place.path().join("cut.tar");
    let bytes = archive(&thin, APP);
    fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(inspect::of_path(&cut, fake.cvmfs()).is_err());
    fs::write(&cut, "no archive").unwrap();
    assert!(inspect::of_path(&cut, fake.cvmfs()).is_err());
}

#[tokio::test]
async fn an_ordinary_image_in_a_registry_is_not_downloaded() {
    let fake = Fake::new();
    let registry = TestRegistry::spawn();
    let config = registry.put_blob(Image::app().config_bytes());
    let app = Image::app();
    assert_eq!(config, app.id().digest());
    registry.put_manifest("app", "1", "application/vnd.oci.image.manifest.v1+json", app.manifest_bytes());
    let client = Client::new(ClientConfig::default()).unwrap();
    let result = inspect::of_registry(&client, &registry.reference("app:1"), fake.cvmfs()).await;
    assert!(format!("{:#}", result.unwrap_err()).contains("ordinary image"));
    assert_eq!(registry.count("GET", &layer("base").to_string()), 0);
}
