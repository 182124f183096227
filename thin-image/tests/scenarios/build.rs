//! Thin images from a repository, and on disk.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use image::digest::{Digest, ManifestDigest};
use image::layout::{ImageFile, OwnedPath};
use image::manifest::Document;
use image::platform::Platform;
use image::reference::PublicName;
use image::thin::ThinRecord;
use serde_json::Value;
use thin_image::build::{BuildError, Platforms, Thin};
use thin_image::output::{Output, OutputError, archive};
use thin_image::published::PublishedError;

use crate::repository::{APP, Fake, Image, NAME, layer, tree, wanted};

fn make(fake: &Fake, name: &str, platforms: &Platforms) -> Result<Thin, BuildError> {
    Thin::make(&fake.repository(), &wanted(name), platforms)
}

fn arm() -> Image {
    Image { platform: "linux/arm64/v8", elsewhere: true, layers: vec!["base arm"], ..Image::app() }
}

#[test]
fn an_image_of_one_platform_becomes_a_manifest() {
    let fake = Fake::with_app();
    let thin = make(&fake, APP, &Platforms::All).unwrap();
    assert!(thin.index.is_none());
    let ThinRecord { origin, manifest, config, platform, layers } = thin.images[0].record.clone();
    let source = Image::app();
    assert_eq!((manifest, config), (Some(source.digest()), Some(source.id())));
    assert_eq!(origin.as_deref(), Some("https://quay.io/tools/app:1"));
    assert_eq!(platform.as_deref(), Some("linux/amd64"));
    let layers: Vec<_> = layers.iter().map(|found| (found.repository.as_str(), found.layer)).collect();
    assert_eq!(layers, [(NAME, layer("base")), (NAME, layer("app"))]);
    assert!(thin.size() < 10_000, "{}", thin.size());
}

#[test]
fn several_platforms_become_an_index_with_the_default_one_first() {
    let fake = Fake::with_app();
    fake.publish(&arm());
    let thin = make(&fake, APP, &Platforms::All).unwrap();
    let Document::Index(index) = Document::parse(&thin.top().bytes, None).unwrap() else { panic!("an index") };
    let platforms: Vec<_> = index.entries.iter().map(|entry| entry.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64/v8"]);
    for (platform, expected) in
        [("linux/arm64", Some("linux/arm64/v8")), ("linux/amd64", Some("linux/amd64")), ("linux/s390x", None)]
    {
        let wanted = Platforms::One(Platform::parse(platform).unwrap());
        let found = make(&fake, APP, &wanted);
        let platform = found.as_ref().ok().map(|thin| thin.images[0].platform.as_ref().unwrap().to_string());
        assert_eq!(platform.as_deref(), expected);
        match found {
            Ok(thin) => assert!(thin.index.is_none()),
            Err(error) => assert!(error.to_string().contains("linux/amd64, linux/arm64/v8"), "{error}"),
        }
    }
}

#[test]
fn an_image_that_the_default_platform_has_not_is_one_of_the_others() {
    let fake = Fake::new();
    fake.publish(&arm());
    let armv7 = Image { platform: "linux/arm/v7", elsewhere: true, layers: vec!["base armv7"], ..Image::app() };
    fake.publish(&armv7);
    let thin = make(&fake, APP, &Platforms::All).unwrap();
    let platforms: Vec<_> = thin.images.iter().map(|i| i.platform.as_ref().unwrap().to_string()).collect();
    assert_eq!(platforms, ["linux/arm64/v8", "linux/arm/v7"]);
    assert!(thin.index.is_some());
    // The other platform's layers are its own, and one of them is needed.
    fs::remove_dir_all(fake.path(&OwnedPath::Layer(layer("base armv7")))).unwrap();
    assert!(matches!(make(&fake, APP, &Platforms::All), Err(BuildError::MissingLayers { .. })));
    let one = Platforms::One(Platform::parse("linux/arm64").unwrap());
    assert_eq!(make(&fake, APP, &one).unwrap().images.len(), 1);
}

#[test]
fn missing_layers_are_named() {
    let fake = Fake::with_app();
    fs::remove_dir_all(fake.path(&OwnedPath::Layer(layer("app")))).unwrap();
    match make(&fake, APP, &Platforms::All) {
        Err(BuildError::MissingLayers { layers, .. }) => assert_eq!(layers, [layer("app")]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_layer_with_the_same_content_stands_for_one_that_is_gone() {
    let fake = Fake::with_app();
    let (gone, other) = (layer("app"), layer("app, packed otherwise"));
    fs::rename(fake.path(&OwnedPath::Layer(gone)), fake.root().join("moved")).unwrap();
    let place = fake.path(&OwnedPath::Layer(other));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::rename(fake.root().join("moved"), place).unwrap();
    let key = image::layout::IndexKey::DiffId(crate::repository::diff("app"));
    let link = fake.path(&OwnedPath::Index(key));
    fs::remove_file(&link).unwrap();
    let target = image::layout::Layout::new().link(&OwnedPath::Index(key), &OwnedPath::Layer(other));
    std::os::unix::fs::symlink(target, &link).unwrap();
    let thin = make(&fake, APP, &Platforms::All).unwrap();
    let record = &thin.images[0].record.layers[1];
    assert_eq!((record.layer, record.size), (other, None));
    // A link that leads elsewhere is not followed.
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    assert!(matches!(make(&fake, APP, &Platforms::All), Err(BuildError::MissingLayers { .. })));
}

#[test]
fn what_is_not_published_is_told_from_what_can_t_be_read() {
    let fake = Fake::with_app();
    let error = |name: &str| match make(&fake, name, &Platforms::All) {
        Err(BuildError::Published(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(error("quay.io/tools/app:2"), PublishedError::Absent { .. }));
    let good = format!("{APP}@{}", Image::app().digest());
    assert!(make(&fake, &good, &Platforms::All).is_ok());
    let other = format!("{APP}@{}", ManifestDigest::of(b"other"));
    assert!(matches!(error(&other), PublishedError::OtherDigest { found, .. } if found == Image::app().digest()));

    let name = PublicName::parse(APP).unwrap();
    let file = |file| OwnedPath::ImageFile { platform: None, name: name.clone(), file };
    fake.put(&file(ImageFile::Config), b"{}");
    assert!(matches!(error(APP), PublishedError::Damaged { .. }));
    fs::remove_file(fake.path(&file(ImageFile::RawManifest))).unwrap();
    fake.put(&file(ImageFile::Manifest), b"{}");
    assert!(matches!(error(APP), PublishedError::Incomplete { .. }));
    fs::remove_dir_all(fake.root()).unwrap();
    assert!(matches!(error(APP), PublishedError::NotMounted { .. }));
    fs::create_dir(fake.root()).unwrap();
    assert!(matches!(error(APP), PublishedError::NotMounted { .. }));
}

#[test]
fn a_digest_of_the_index_selects_what_stands_in_it() {
    let fake = Fake::new();
    let app = Image::app();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": app.digest(), "size": 1 }] });
    let index = index.to_string().into_bytes();
    let digest = ManifestDigest::of(&index);
    fake.publish(&Image { index: Some(index), ..app });
    fake.publish(&arm());
    let thin = make(&fake, &format!("{APP}@{digest}"), &Platforms::All).unwrap();
    assert_eq!((thin.images.len(), thin.index.is_none()), (1, true));
}

#[test]
fn archives_are_the_same_byte_for_byte_and_hold_both_formats() {
    let fake = Fake::with_app();
    fake.publish(&arm());
    let thin = make(&fake, APP, &Platforms::All).unwrap();
    let bytes = archive(&thin, APP);
    assert_eq!(bytes, archive(&make(&fake, APP, &Platforms::All).unwrap(), APP));
    let mut files = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            assert_eq!(Digest::of(&content).hex(), hex);
        }
        files.insert(path, content);
    }
    let json = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
    let docker = &json("manifest.json")[0];
    assert_eq!(docker["RepoTags"][0], APP);
    for path in [&docker["Config"], &docker["Layers"][0]] {
        assert!(files.contains_key(path.as_str().unwrap()), "{path}");
    }
    // Docker compares the config's diff IDs with the unpacked layers.
    assert_eq!(docker["Config"], format!("blobs/sha256/{}", thin.images[0].config.digest.hex()));
    let entry = &json("index.json")["manifests"][0];
    assert_eq!(entry["digest"], thin.top().digest.to_string());
    assert_eq!(entry["annotations"]["io.containerd.image.name"], APP);
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "1");
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    assert_eq!(files.len(), 3 + 2 + 3 * 2 + 1, "{:?}", files.keys());
}

#[test]
fn a_directory_is_made_whole_updated_and_never_taken_from_others() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("layout");
    let write = |thin: &Thin| Output::parse(&at).write(thin, APP);
    let first = make(&fake, APP, &Platforms::All).unwrap();
    write(&first).unwrap();
    let before = tree(&at);
    assert_eq!(before.len(), 2 + 2 + 3, "{before:?}");
    write(&first).unwrap();
    assert_eq!(tree(&at), before);

    let changed = Image { config: serde_json::json!({ "Cmd": ["/other"] }), ..Image::app() };
    fake.publish(&changed);
    let second = make(&fake, APP, &Platforms::All).unwrap();
    write(&second).unwrap();
    let after = tree(&at);
    assert_eq!(after.len(), before.len(), "the old blobs are gone: {after:?}");
    assert!(at.join("blobs/sha256").join(second.top().digest.hex()).exists());
    assert_eq!(tree(place.path()).len(), after.len() + 1, "nothing is left beside it");

    for name in ["foreign", "layout-of-others"] {
        let foreign = place.path().join(name);
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("oci-layout"), "{}").unwrap();
        if name != "foreign" {
            fs::write(foreign.join("index.json"), r#"{"manifests":[{"annotations":{}}]}"#).unwrap();
        }
        let before = tree(&foreign);
        assert!(matches!(Output::parse(&foreign).write(&first, APP), Err(OutputError::Foreign(_))), "{name}");
        assert_eq!(tree(&foreign), before);
    }
    assert!(matches!(Output::parse(Path::new("/dev/null")).write(&first, APP), Err(OutputError::Foreign(_))));
}
