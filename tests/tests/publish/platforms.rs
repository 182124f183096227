//! Images for several platforms: links, records, shared layers.

use std::time::Duration;

use image::layout::{ImageFile, StatusRecord};
use publisher::images;
use publisher::report::Outcome::{Added, Failed, Unchanged, Updated};
use publisher::report::Report;
use registry::testing::{Fault, TestRegistry};
use scenarios::image_builder::{
    Format, Image, Layer, Packing, Pushed, file, index_entry, media, push_attestation, push_index,
};
use scenarios::repository::{Site, flat_path, layer_path, outcomes, public, wish};
use serde_json::{Value, json};

use crate::{content, target};

const BOTH: &str = "[linux/amd64, linux/arm64]";

struct World {
    registry: TestRegistry,
    site: Site,
    link: String,
}

/// An image for some platforms: the lowest layer is the same for all of them.
fn image(text: &str, architecture: &str) -> Image {
    let base = Layer::new(&[file("base", "the same")], Packing::Gzip);
    let own = Layer::new(&[file("own", format!("{text} {architecture}"))], Packing::Gzip);
    Image::new([base, own]).architecture(architecture)
}

impl World {
    fn new() -> World {
        let registry = TestRegistry::spawn();
        let link = public(&registry, "lab/x:1");
        World { registry, site: Site::new(), link }
    }

    /// Pushes `lab/x:1`, with what builders and signers put beside the images.
    fn push(&self, text: &str, platforms: &[&str]) -> Vec<Pushed> {
        let mut entries: Vec<Value> = Vec::new();
        let mut images = Vec::new();
        for platform in platforms {
            let architecture = platform.split('/').nth(1).unwrap();
            let pushed = image(text, architecture).push_untagged(&self.registry, "lab/x");
            entries.push(push_attestation(&self.registry, "lab/x", &pushed));
            entries.push(index_entry(&pushed, media::OCI_MANIFEST, platform));
            images.push(pushed);
        }
        entries.push(json!({
            "mediaType": media::OCI_MANIFEST, "artifactType": "application/vnd.example+json", "size": 2,
            "digest": format!("sha256:{}", "e".repeat(64)),
        }));
        push_index(&self.registry, "lab/x", "1", Format::Oci, &entries);
        images
    }

    fn convert(&self, options: &str) -> Report {
        self.site.convert_list(&format!("input: [{{image: '{}', {options}}}]\n", wish(&self.registry, "lab/x:1")))
    }

    fn targets(&self, paths: &[&str]) -> Vec<String> {
        let tree = self.site.tree("");
        paths.iter().map(|path| target(&tree, &path.replace("NAME", &self.link))).collect()
    }

    fn has(&self, path: &str) -> bool {
        self.site.tree("").contains_key(path.replace("NAME", &self.link).as_bytes())
    }
}

#[test]
fn every_wished_platform_of_an_index_is_published_and_shared_layers_are_fetched_once() {
    let world = World::new();
    let pushed = world.push("one", &["linux/amd64", "linux/arm64/v8", "linux/s390x"]);
    let report = world.convert(&format!("platforms: {BOTH}"));
    assert_eq!(outcomes(&report), [Added; 2]);
    let platforms: Vec<_> = report.wishes.iter().map(|w| w.platform.as_deref().unwrap()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    let flat = |n: usize| flat_path(pushed[n].config);
    let expected =
        [format!("../../{}", flat(0)), format!("../../../../{}", flat(0)), format!("../../../../{}", flat(1))];
    assert_eq!(world.targets(&["NAME", ".multiarch/amd64/NAME", ".multiarch/arm64:v8/NAME"]), expected);
    for (alias, directory) in [("x86_64", "amd64"), ("x86-64", "amd64"), ("aarch64", "arm64:v8"), ("arm64", "arm64:v8")]
    {
        assert_eq!(world.targets(&[&format!(".multiarch/{alias}")]), [directory]);
    }
    let tree = world.site.tree("");
    assert_eq!(content(&tree, &format!("{}/own", flat(1))), b"one arm64");
    for (n, records) in [(0, ".metadata"), (1, ".metadata/.multiarch/arm64:v8")] {
        let records = format!("{records}/{}", world.link);
        assert_eq!(content(&tree, &format!("{records}/image-manifest.json")), pushed[n].manifest_bytes);
        let status =
            StatusRecord::parse(content(&tree, &format!("{records}/{}", ImageFile::Status.file_name()))).unwrap();
        assert_eq!((status.digest, status.config), (pushed[n].manifest, pushed[n].config));
        assert!(status.index.is_some());
    }
    assert!(!world.has(".metadata/.multiarch/amd64"), "the records of the default platform are at the plain path");
    assert!(!world.has(&flat(2)) && !world.has(&layer_path(pushed[2].layers[1])), "nobody wished for s390x");
    assert_eq!(pushed[0].layers[0], pushed[1].layers[0]);
    assert_eq!(world.registry.count("GET", &pushed[0].layers[0].to_string()), 1, "a shared layer is fetched once");
    assert_eq!(world.registry.count("HEAD", "/manifests/1"), 1, "and the tag asked for once");
    world.site.assert_sound();
    assert_eq!(outcomes(&world.convert(&format!("platforms: {BOTH}"))), [Unchanged; 2]);
    assert_eq!(world.site.revision(), report.revision.unwrap());
    let listed: Vec<_> = images::list(&world.site.target).unwrap().into_iter().map(|i| (i.path, i.legacy)).collect();
    assert_eq!(listed, [(format!(".multiarch/arm64:v8/{}", world.link), false), (world.link, false)]);
}

#[test]
fn all_platforms_of_an_image_become_visible_in_one_revision() {
    let world = World::new();
    let pushed = world.push("one", &["linux/amd64", "linux/arm64"]);
    image("alone", "amd64").push(&world.registry, "lab/alone", "1");
    let slow = || Fault::slow(8, Duration::from_millis(30)).on(&pushed[1].layers[1].to_string()).always();
    world.registry.fault(slow());
    let list = |platforms: &str| {
        let images = ["lab/x:1", "lab/alone:1"].map(|name| wish(&world.registry, name));
        format!("input: [{{image: '{}', {platforms}}}, '{}']\n", images[0], images[1])
    };
    let report = world.site.convert_list(&list(&format!("platforms: {BOTH}")));
    assert_eq!(outcomes(&report), [Added; 3]);
    let status = |place: &str, name: &str| {
        let path = format!(".metadata/{place}{}/status.json", public(&world.registry, name));
        StatusRecord::parse(content(&world.site.tree(""), &path)).unwrap().revision
    };
    let revisions = [status("", "lab/x:1"), status(".multiarch/arm64:v8/", "lab/x:1"), status("", "lab/alone:1")];
    assert_eq!(revisions, [2, 2, 1], "the other image did not wait, the first platform did");
    assert_eq!(world.site.revision(), 2);

    // A platform that fails late keeps nobody waiting for ever.
    let pushed = world.push("two", &["linux/amd64", "linux/arm64"]);
    world.registry.heal();
    world.registry.fault(Fault::corrupt().on(&pushed[1].layers[1].to_string()).always());
    let report = world.convert(&format!("platforms: {BOTH}"));
    assert_eq!(outcomes(&report), [Updated, Failed]);
    assert_eq!((report.wishes[1].platform.as_deref(), report.revision), (Some("linux/arm64"), Some(3)));
    assert_eq!(world.targets(&[".multiarch/amd64/NAME"]), [format!("../../../../{}", flat_path(pushed[0].config))]);
    world.site.assert_sound();
}

#[test]
fn the_plain_path_can_lead_each_client_to_its_own_architecture() {
    let world = World::new();
    let pushed = world.push("one", &["linux/amd64", "linux/arm64"]);
    assert_eq!(outcomes(&world.convert(&format!("platforms: {BOTH}"))), [Added; 2]);
    let variant = format!("platforms: {BOTH}, plain_path: variant");
    assert_eq!(outcomes(&world.convert(&variant)), [Updated, Unchanged]);
    let text = format!("../../.multiarch/$(CVMFS_ARCH:-amd64)/{}", world.link);
    assert_eq!(world.targets(&["NAME"])[0], text);
    assert_eq!(outcomes(&world.convert(&variant)), [Unchanged; 2]);
    world.push("two", &["linux/amd64", "linux/arm64"]);
    assert_eq!(outcomes(&world.convert(&variant)), [Updated; 2]);
    assert_eq!(world.targets(&["NAME"]), [text]);
    assert_ne!(world.targets(&[".multiarch/amd64/NAME"]), [format!("../../../../{}", flat_path(pushed[0].config))]);
    world.site.assert_sound();
    assert_eq!(outcomes(&world.convert(&format!("platforms: {BOTH}"))), [Updated, Unchanged], "and back again");
    assert!(world.targets(&["NAME"])[0].contains("/.flat/"));
}

#[test]
fn a_platform_that_an_image_lacks_fails_alone_and_says_what_there_is() {
    let world = World::new();
    world.push("one", &["linux/amd64", "linux/s390x"]);
    let report = world.convert(&format!("platforms: {BOTH}"));
    assert_eq!(outcomes(&report), [Added, Failed]);
    let error = report.wishes[1].error.as_deref().unwrap();
    assert_eq!(error, "no image for linux/arm64; the index has linux/amd64, linux/s390x");
    assert_eq!((report.exit_status().code(), report.wishes[1].platform.as_deref()), (1, Some("linux/arm64")));
    assert!(report.to_text().contains("lab/x:1 for linux/arm64"), "{}", report.to_text());
    assert!(world.has("NAME") && !world.has(".multiarch/arm64:v8"));
    // An image that is no index is for one platform.
    image("single", "arm64").push(&world.registry, "lab/x", "1");
    let report = world.convert(&format!("platforms: {BOTH}"));
    assert_eq!(outcomes(&report), [Failed, Added]);
    assert!(report.wishes[0].error.as_deref().unwrap().contains("the image is for linux/arm64"));
    assert!(world.has("NAME"), "what was published before still is");
    world.site.assert_sound();
}

#[test]
fn another_default_platform_takes_the_plain_path() {
    let world = World::new();
    let pushed = world.push("one", &["linux/amd64", "linux/arm64"]);
    world.convert(&format!("platforms: {BOTH}"));
    let turned = "platforms: [linux/arm64, linux/amd64]";
    assert_eq!(outcomes(&world.convert(turned)), [Updated; 2]);
    let (amd, arm) = (flat_path(pushed[0].config), flat_path(pushed[1].config));
    let expected = [format!("../../{arm}"), format!("../../../../{amd}"), format!("../../../../{arm}")];
    assert_eq!(world.targets(&["NAME", ".multiarch/amd64/NAME", ".multiarch/arm64:v8/NAME"]), expected);
    assert!(world.has(".metadata/.multiarch/amd64/NAME/status.json"));
    assert!(!world.has(".metadata/.multiarch/arm64:v8/NAME"), "its records moved to the plain path");
    assert_eq!(outcomes(&world.convert(turned)), [Unchanged; 2]);
    world.site.assert_sound();
}

#[test]
fn a_link_of_a_platform_that_is_not_wished_for_any_more_follows_or_stays() {
    let world = World::new();
    world.push("one", &["linux/amd64", "linux/arm64"]);
    world.convert(&format!("platforms: {BOTH}"));
    let arm = world.targets(&[".multiarch/arm64:v8/NAME"]);
    let pushed = world.push("two", &["linux/amd64", "linux/arm64"]);
    assert_eq!(outcomes(&world.convert("platforms: linux/amd64")), [Updated]);
    let expected = [format!("../../../../{}", flat_path(pushed[0].config))];
    assert_eq!(world.targets(&[".multiarch/amd64/NAME"]), expected, "never the image of an old tag");
    assert_eq!(world.targets(&[".multiarch/arm64:v8/NAME"]), arm, "until it is pruned");
    world.site.assert_sound();
}
