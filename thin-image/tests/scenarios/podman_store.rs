//! Additional image stores.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use image::digest::{Digest, ManifestDigest};
use image::layout::OwnedPath;
use serde_json::{Value, json};
use thin_image::podman_store::{Outcome, Store, StoreError, Wish};

use crate::repository::{APP, Fake, Image, NAME, tree, wanted};

fn wish(fake: &Fake, name: &str) -> Wish {
    let repository = fake.repository();
    let image = repository.find(&wanted(name)).unwrap().swap_remove(0);
    let index = image.index.and_then(|digest| repository.document(digest).unwrap());
    Wish { image, repository, index, flat: false }
}

fn add(fake: &Fake, store: &Path, names: &[&str]) -> Vec<Outcome> {
    let wishes: Vec<Wish> = names.iter().map(|name| wish(fake, name)).collect();
    Store::open(store).unwrap().add(&wishes).unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Everything that containers/storage needs to be there and to fit together.
fn check(store: &Path) {
    let images = json(&store.join("overlay-images/images.json"));
    let layers = json(&store.join("overlay-layers/layers.json"));
    let mut names: Vec<&str> = Vec::new();
    for image in images.as_array().unwrap() {
        let top = image["layer"].as_str().unwrap();
        assert!(layers.as_array().unwrap().iter().any(|layer| layer["id"] == top), "layer {top}");
        let directory = store.join("overlay-images").join(image["id"].as_str().unwrap());
        for name in image["big-data-names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            let file = if name.bytes().all(|b| b.is_ascii_lowercase()) {
                name.to_owned()
            } else {
                format!("={}", base64::engine::general_purpose::STANDARD.encode(name))
            };
            let content = fs::read(directory.join(file)).unwrap();
            assert_eq!(image["big-data-sizes"][name], content.len(), "{name}");
            assert_eq!(image["big-data-digests"][name], Digest::of(&content).to_string(), "{name}");
        }
        assert_eq!(image["digest"], image["big-data-digests"]["manifest"]);
        names.extend(image["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()));
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name of two images makes the store unreadable");
    for layer in layers.as_array().unwrap() {
        let directory = store.join("overlay").join(layer["id"].as_str().unwrap());
        let target = fs::read_link(directory.join("diff")).unwrap();
        assert!(target.is_absolute() && target.is_dir(), "{target:?}");
        let link = fs::read_to_string(directory.join("link")).unwrap();
        assert_eq!(fs::canonicalize(store.join("overlay/l").join(&link)).unwrap(), fs::canonicalize(target).unwrap());
        let parent = layers.as_array().unwrap().iter().find(|below| below["id"] == layer["parent"]);
        let expected = parent.map(|below| {
            let below = store.join("overlay").join(below["id"].as_str().unwrap());
            let rest =
                fs::read_to_string(below.join("lower")).map_or_else(|_| String::new(), |rest| format!(":{rest}"));
            format!("l/{}{rest}", fs::read_to_string(below.join("link")).unwrap())
        });
        assert_eq!(fs::read_to_string(directory.join("lower")).ok(), expected);
    }
    for lock in ["overlay-images/images.lock", "overlay-layers/layers.lock"] {
        assert_eq!(fs::metadata(store.join(lock)).unwrap().len(), 64);
    }
}

/// The tokens that tell other programs to read again.
fn tokens(store: &Path) -> [Vec<u8>; 2] {
    ["overlay-layers/layers.lock", "overlay-images/images.lock"].map(|lock| fs::read(store.join(lock)).unwrap())
}

#[test]
fn a_store_has_the_shape_that_containers_storage_reads() {
    let fake = Fake::new();
    let index = br#"{"schemaVersion":2,"manifests":[]}"#.to_vec();
    let app = Image { index: Some(index.clone()), ..Image::app() };
    fake.publish(&app);
    let place = tempfile::tempdir().unwrap();
    let store = place.path().join("a/store");
    assert_eq!(add(&fake, &store, &[APP]), [Outcome::Added]);
    check(&store);
    let id = app.id().hex();
    let layer = Digest::of(format!("cvmfs-flat-layer:{id}").as_bytes());
    let (manifest, config) = (app.manifest_bytes(), app.config_bytes());
    let (by_index, by_digest) =
        (format!("manifest-{}", ManifestDigest::of(&index)), format!("manifest-{}", app.digest()));
    assert_eq!(
        json(&store.join("overlay-images/images.json")),
        json!([{
            "id": id, "digest": app.digest(), "names": ["quay.io/tools/app:1"], "layer": layer.hex(),
            "big-data-names": [by_index, by_digest, "manifest", app.id()],
            "big-data-sizes": { &by_index: index.len(), &by_digest: manifest.len(), "manifest": manifest.len(), app.id().to_string(): config.len() },
            "big-data-digests": {
                &by_index: ManifestDigest::of(&index), &by_digest: app.digest(), "manifest": app.digest(), app.id().to_string(): app.id(),
            },
            "created": "2026-01-02T03:04:05.6Z",
        }])
    );
    assert_eq!(
        json(&store.join("overlay-layers/layers.json")),
        json!([{ "id": layer.hex(), "created": "2026-01-02T03:04:05.6Z", "diff-digest": layer, "diff-size": 2000 }])
    );
    assert_eq!(
        fs::read_link(store.join("overlay").join(layer.hex()).join("diff")).unwrap(),
        fake.path(&OwnedPath::Flat(app.id()))
    );
    // Rootless users read it.
    for path in ["overlay-images/images.json", "overlay-images/images.lock", &format!("overlay-images/{id}/manifest")] {
        let mode = fs::metadata(store.join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{path}");
    }
    assert_eq!(fs::metadata(store.join("overlay-images").join(&id)).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn an_image_has_the_layers_of_the_registry_if_all_are_published_as_overlayfs_wants_them() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let ids = |store: &Path| -> Vec<Value> {
        let layers = json(&store.join("overlay-layers/layers.json"));
        layers.as_array().unwrap().iter().map(|layer| layer["id"].clone()).collect()
    };
    let flat = json!(Digest::of(format!("cvmfs-flat-layer:{}", Image::app().id().hex()).as_bytes()).hex());
    for (base, app) in [(None, None), (Some("overlay"), None), (Some("overlay"), Some("literal"))] {
        base.into_iter().for_each(|form| fake.describe("base", form));
        app.into_iter().for_each(|form| fake.describe("app", form));
        add(&fake, place.path(), &[APP]);
        assert_eq!(ids(place.path()), std::slice::from_ref(&flat));
    }
    fake.describe("app", "overlay");
    assert_eq!(add(&fake, place.path(), &[APP]), [Outcome::Updated]);
    check(place.path());
    let below = crate::repository::diff("base").hex();
    let top = Digest::of(format!("{below}+{}", crate::repository::diff("app").hex()).as_bytes()).hex();
    let mut expected = [json!(below), json!(top)];
    expected.sort_by_key(ToString::to_string);
    assert_eq!(ids(place.path()), expected);
    assert_eq!(json(&place.path().join("overlay-images/images.json"))[0]["layer"], json!(top));
    let content = fs::read_link(place.path().join("overlay").join(&top).join("diff")).unwrap();
    assert_eq!(content, fake.path(&OwnedPath::LayerContent(crate::repository::layer("app"))));

    // Another image on the same base.
    fake.publish(&Image { name: "quay.io/tools/other:1", layers: vec!["base", "other"], ..Image::app() });
    fake.describe("other", "overlay");
    let before = json(&place.path().join("overlay-layers/layers.json"));
    assert_eq!(add(&fake, place.path(), &["quay.io/tools/other:1"]), [Outcome::Added]);
    check(place.path());
    let after = json(&place.path().join("overlay-layers/layers.json"));
    assert_eq!(after.as_array().unwrap().len(), 3);
    assert!(before.as_array().unwrap().iter().all(|layer| after.as_array().unwrap().contains(layer)));
    let opened = Store::open(place.path()).unwrap();
    opened.remove(&[vec![APP.to_owned()]]).unwrap();
    check(place.path());
    assert_eq!(ids(place.path()).len(), 2, "what the other image needs stays");
    drop(opened);

    let wish = Wish { flat: true, ..wish(&fake, APP) };
    Store::open(place.path()).unwrap().add(&[wish]).unwrap();
    assert!(ids(place.path()).contains(&flat));
    check(place.path());
}

#[test]
fn the_same_again_changes_nothing_and_every_change_shows_in_the_locks() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let store = place.path();
    assert_eq!(add(&fake, store, &[APP]), [Outcome::Added]);
    let before = tree(store);
    assert_eq!(add(&fake, store, &[APP]), [Outcome::Unchanged]);
    assert_eq!(tree(store), before);

    let [layers, images] = tokens(store);
    fake.publish(&Image { name: "quay.io/tools/other:1", ..Image::app() });
    assert_eq!(add(&fake, store, &["quay.io/tools/other:1"]), [Outcome::Added]);
    check(store);
    let after = tokens(store);
    assert_eq!(after[0], layers, "the layer is the same");
    assert_ne!(after[1], images);
    assert_eq!(
        json(&store.join("overlay-images/images.json"))[0]["names"],
        json!(["quay.io/tools/app:1", "quay.io/tools/other:1"])
    );
}

#[test]
fn a_name_that_moves_takes_the_image_that_nobody_names_with_it() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let store = place.path();
    add(&fake, store, &[APP]);
    let moved = Image { config: json!({ "Cmd": ["/new"] }), ..Image::app() };
    fake.publish(&moved);
    assert_eq!(add(&fake, store, &[APP]), [Outcome::Updated]);
    check(store);
    let images = json(&store.join("overlay-images/images.json"));
    assert_eq!((images.as_array().unwrap().len(), &images[0]["id"]), (1, &json!(moved.id().hex())));
    assert_eq!(fs::read_dir(store.join("overlay")).unwrap().count(), 2, "one layer and the short names");
    assert_eq!(fs::read_dir(store.join("overlay/l")).unwrap().count(), 1);
}

#[test]
fn other_documents_of_the_same_image_replace_the_old_ones() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let store = place.path();
    add(&fake, store, &[APP]);
    let packed_otherwise = Image { note: "zstd", name: "quay.io/tools/app:zstd", ..Image::app() };
    assert_eq!(packed_otherwise.id(), Image::app().id());
    fake.publish(&packed_otherwise);
    assert_eq!(add(&fake, store, &["quay.io/tools/app:zstd"]), [Outcome::Added]);
    check(store);
    assert_eq!(json(&store.join("overlay-images/images.json"))[0]["digest"], json!(packed_otherwise.digest()));
    for _ in 0..2 {
        add(&fake, store, &[APP, "quay.io/tools/app:zstd"]);
        check(store);
    }
}

#[test]
fn images_are_taken_out_by_name() {
    let fake = Fake::with_app();
    fake.publish(&Image { name: "registry.hub.docker.com/library/debian:12", layers: vec!["debian"], ..Image::app() });
    let place = tempfile::tempdir().unwrap();
    let store = place.path();
    add(&fake, store, &[APP, "debian:12"]);
    check(store);
    let opened = Store::open(store).unwrap();
    let names: Vec<_> = opened.list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["docker.io/library/debian:12", "quay.io/tools/app:1"]);
    let outcomes = opened.remove(&[vec!["docker.io/library/debian:12".into()], vec!["x:1".into()]]).unwrap();
    assert_eq!(outcomes, [Outcome::Removed, Outcome::Absent]);
    check(store);
    assert_eq!(opened.list().unwrap().len(), 1);
    assert_eq!(fs::read_dir(store.join("overlay/l")).unwrap().count(), 1);
    assert_eq!(opened.remove(&[vec!["quay.io/tools/app:1".into()]]).unwrap(), [Outcome::Removed]);
    check(store);
    assert_eq!(fs::read(store.join("overlay-images/images.json")).unwrap(), b"[]");
}

#[test]
fn an_image_without_a_flat_root_changes_nothing() {
    let fake = Fake::with_app();
    fake.publish(&Image { name: "quay.io/tools/other:1", layers: vec!["other"], ..Image::app() });
    let place = tempfile::tempdir().unwrap();
    add(&fake, place.path(), &[APP]);
    let flat = Image { layers: vec!["other"], ..Image::app() }.id();
    fs::remove_dir(fake.path(&OwnedPath::Flat(flat))).unwrap();
    let before = tree(place.path());
    let wishes = [wish(&fake, APP), wish(&fake, "quay.io/tools/other:1")];
    let error = Store::open(place.path()).unwrap().add(&wishes).unwrap_err();
    assert!(matches!(&error, StoreError::NoFlat { repository, .. } if repository == NAME), "{error}");
    assert_eq!(tree(place.path()), before);
}

#[test]
fn directories_of_others_and_damaged_lists_are_left_alone() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("overlay")).unwrap();
    let before = tree(place.path());
    assert!(matches!(Store::open(place.path()), Err(StoreError::Foreign(_))));
    assert_eq!(tree(place.path()), before);

    let fake = Fake::with_app();
    let store = tempfile::tempdir().unwrap();
    add(&fake, store.path(), &[APP]);
    fs::write(store.path().join("overlay-images/images.json"), "[{").unwrap();
    let before = tree(store.path());
    let error = Store::open(store.path()).unwrap().add(&[wish(&fake, APP)]).unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { path, .. } if path.ends_with("images.json")), "{error}");
    assert_eq!(tree(store.path()), before);
}

/// The program, which is going to be killed.
fn load(fake: &Fake, store: &Path, names: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thin-image"));
    command.arg("--cvmfs").arg(fake.cvmfs()).args(["load", "--repo", NAME, "--podman-store"]).arg(store).args(names);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command
}

fn many(fake: &Fake, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("quay.io/tools/app:{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let config = json!({ "Cmd": [number.to_string()] });
        fake.publish(&Image { name: name.clone().leak(), config, ..Image::app() });
    }
    names
}

#[test]
fn several_at_once_lose_nothing() {
    let fake = Fake::new();
    let names = many(&fake, 6);
    let place = tempfile::tempdir().unwrap();
    let running: Vec<_> = names.iter().map(|name| load(&fake, place.path(), &[name]).spawn().unwrap()).collect();
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    check(place.path());
    assert_eq!(Store::open(place.path()).unwrap().list().unwrap().len(), names.len());
}

#[test]
fn a_killed_run_leaves_a_readable_store_that_the_next_one_completes() {
    let fake = Fake::new();
    let names = many(&fake, 12);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = tempfile::tempdir().unwrap();
    let store = place.path();
    add(&fake, store, &names[..1]);
    // How long a whole run takes here says when there is something to interrupt.
    let whole = tempfile::tempdir().unwrap();
    let begin = std::time::Instant::now();
    assert!(load(&fake, whole.path(), &names).status().unwrap().success());
    let whole = begin.elapsed();
    for part in 1..10 {
        let mut child = load(&fake, store, &names).spawn().unwrap();
        std::thread::sleep(whole * part / 10);
        child.kill().unwrap();
        child.wait().unwrap();
        check(store);
        if part % 3 == 0 {
            // From the beginning, so that the next ones have something to do.
            let gone = names[1..].iter().map(|name| vec![(*name).to_owned()]).collect::<Vec<_>>();
            Store::open(store).unwrap().remove(&gone).unwrap();
            check(store);
        }
    }
    assert!(load(&fake, store, &names).status().unwrap().success());
    check(store);
    assert_eq!(Store::open(store).unwrap().list().unwrap().len(), names.len());
    let leftovers = tree(store).into_iter().filter(|(path, _)| path.contains(".thin-image-")).count();
    assert_eq!(leftovers, 0);
}
