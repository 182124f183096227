//! What is not served: layers that are not what is wanted, labels and links that mean harm, repositories that can't be read.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{FormatRecord, IndexKey, Layout, OwnedPath};
use nix::sys::stat::Mode;
use tonic::Code;

use crate::common::{Client, Layer, Repository, World, request};

const NAME: &str = "images.example.org";
const DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const THIN: &str = "containerd.io/snapshot/cvmfs.layer";

fn chain(layer: &Layer) -> ChainId {
    ChainId::on(None, layer.diff)
}

/// Is the layer served? A snapshot that was made for it is removed again.
fn served<T: AsRef<str>>(client: &mut Client, parent: &str, labels: &[(&str, T)]) -> bool {
    let info = client.lazily("key", parent, labels).unwrap();
    client.remove(info.as_ref().map_or("key", |info| &info.name)).unwrap();
    info.is_some()
}

#[test]
fn a_layer_that_does_not_make_the_wanted_chain_is_not_used() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (base, top, other) = (repository.layer("base"), repository.layer("top"), repository.layer("other"));
    let chains = ChainId::stack(&[base.diff, top.diff]);
    let daemon = world.start();
    let mut client = daemon.client();
    let parent = format!("default/1/{}", chains[0]);
    client.layer(&parent, "");
    client.layer("named by nobody", "");
    let cases = [
        (parent.as_str(), chains[1], top, true),
        (&parent, chains[1], other, false),
        ("", chains[1], top, false),
        ("", chain(&top), top, true),
        ("", chain(&other), top, false),
        // Nothing is known of the parent, so nothing speaks against it.
        ("named by nobody", chains[1], top, true),
    ];
    for (parent, chain, layer, expected) in cases {
        assert_eq!(served(&mut client, parent, &request(chain, Some(layer.digest))), expected, "on {parent:?}");
        let thin = [request(chain, None), vec![(THIN, format!("{NAME}:{}", layer.digest.hex()))]].concat();
        assert_eq!(served(&mut client, parent, &thin), expected, "thin, on {parent:?}");
    }
    let metrics = daemon.metrics();
    assert!(metrics.contains("fallback_total{reason=\"unfit\"} 6"), "{metrics}");
}

#[test]
fn a_layer_that_was_settled_on_others_is_used_only_on_them() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (base, other, top) = (repository.layer("base"), repository.layer("other"), repository.layer("top"));
    let chains = ChainId::stack(&[base.diff, top.diff]);
    let format = FormatRecord { settled_on: Some(chains[0]), ..top.format() };
    repository.write(&OwnedPath::LayerFormat(top.digest), &format.to_bytes());
    let daemon = world.start();
    let mut client = daemon.client();
    let (right, wrong) = (format!("default/1/{}", chains[0]), format!("default/2/{}", chain(&other)));
    for parent in [&right, &wrong] {
        client.layer(parent, "");
    }
    client.layer("named by nobody", "");
    let elsewhere = ChainId::on(Some(chain(&other)), top.diff);
    for (parent, chain, expected) in [
        (right.as_str(), chains[1], true),
        (&wrong, elsewhere, false),
        ("named by nobody", chains[1], false),
        ("", chain(&top), false),
    ] {
        assert_eq!(served(&mut client, parent, &request(chain, Some(top.digest))), expected, "on {parent:?}");
    }
}

#[test]
fn labels_that_are_not_well_formed_are_as_good_as_none() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.layer("layer");
    fs::create_dir_all(world.path("outside/layerfs")).unwrap();
    let daemon = world.start();
    let mut client = daemon.client();
    let (hex, target) = (layer.digest.hex(), chain(&layer).to_string());
    let reference = "containerd.io/snapshot.ref";
    let long = "x".repeat(10_000);
    let cases = [
        (DIGEST, format!("sha256:{hex}"), true),
        (DIGEST, format!("sha256:../{}", &hex[3..]), false),
        (DIGEST, "sha256:../../outside".into(), false),
        (DIGEST, format!("sha256:{hex}/.."), false),
        (DIGEST, format!("sha256:{}", hex.to_uppercase()), false),
        (DIGEST, format!("sha512:{hex}"), false),
        (DIGEST, hex.clone(), false),
        (DIGEST, format!("sha256:{hex}\0"), false),
        (DIGEST, long.chars().take(3000).collect(), false),
        (THIN, format!("{NAME}:{hex}"), true),
        (THIN, format!("other.example.org:{hex}"), false),
        (THIN, format!("../{NAME}:{hex}"), false),
        (THIN, format!("/cvmfs/{NAME}:{hex}"), false),
        (THIN, format!(":{hex}"), false),
        (THIN, format!("{NAME}:../../../outside"), false),
        (THIN, format!("{NAME}:{hex}/../x"), false),
        (THIN, format!("cvmfs://{NAME}:{hex}"), false),
        ("containerd.io/snapshot/cri.image-layers", format!("{hex},,\0,{long:.3000}"), false),
        ("containerd.io/snapshot/diff-id", "\u{1}".into(), false),
    ];
    for (key, value, expected) in cases {
        let labels = [(reference, target.as_str()), (key, &value)];
        assert_eq!(served(&mut client, "", &labels), expected, "{key} = {value:.100}");
    }
    // Targets of any form are kept as they are.
    for target in ["..", "sha256:x", "a\"b,c\\", "\n"] {
        client.prepare("key", "", &[(reference, target)]).expect("it is downloaded");
        assert_eq!(client.stat("key").unwrap().labels[reference], target);
        client.remove("key").unwrap();
    }
}

#[test]
fn labels_are_limited_so_that_lists_can_be_sent() {
    let mut world = World::new();
    world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let huge = "x".repeat(10 << 20);
    let failure = client.prepare("huge", "", &[("containerd.io/snapshot/x", &huge)]).expect_err("a label of 10 MB");
    assert_eq!(failure.code, Code::InvalidArgument);
    let value = "v".repeat(4000);
    let many: Vec<String> = (0..1000).map(|number| format!("containerd.io/snapshot/{number}")).collect();
    let failure = client
        .prepare("many", "", &many.iter().map(|key| (key.as_str(), value.as_str())).collect::<Vec<_>>())
        .expect_err("4 MB in labels");
    assert_eq!(failure.code, Code::InvalidArgument);
    assert_eq!(client.everything().len(), 0);
    // What is allowed can be listed, however many of those there are.
    let most: Vec<(&str, &str)> = many.iter().take(200).map(|key| (key.as_str(), value.as_str())).collect();
    for number in 0..22 {
        client.prepare(&format!("k{number}"), "", &most).unwrap();
    }
    assert_eq!(client.list(&[]).len(), 22);
    for (name, failure) in [
        ("commit", client.commit("new", "k0", &[("x", &huge)]).err()),
        ("update", client.update("k0", &[("x", &huge)], &[]).err()),
        ("update of one", client.update("k0", &[("x", &huge)], &["labels.x"]).err()),
    ] {
        assert_eq!(failure.map(|failure| failure.code), Some(Code::InvalidArgument), "{name}");
    }
}

#[test]
fn links_of_an_index_that_lead_elsewhere_are_not_followed() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.layer("layer");
    fs::create_dir_all(world.path("outside/layerfs")).unwrap();
    let outside = world.path("outside").display().to_string();
    let daemon = world.start();
    let mut client = daemon.client();
    let key = IndexKey::ChainId(chain(&layer));
    let right = Layout::new().link(&OwnedPath::Index(key), &OwnedPath::Layer(layer.digest));
    let absent = Layout::new().link(&OwnedPath::Index(key), &OwnedPath::Layer(LayerDigest::of(b"absent")));
    let content = Layout::new().link(&OwnedPath::Index(key), &OwnedPath::LayerContent(layer.digest));
    for (target, expected) in [
        (right.as_str(), true),
        (&outside, false),
        ("../../../../outside", false),
        ("../../../.layers", false),
        (&absent, false),
        (&content, false),
        (&format!("../{right}"), false),
        (&format!("{right}/.."), false),
        ("nonsense", false),
        (".", false),
    ] {
        repository.link(key, target);
        assert_eq!(served(&mut client, "", &request(chain(&layer), None)), expected, "{target}");
    }
    let link = repository.at(&OwnedPath::Index(key));
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    assert!(!served(&mut client, "", &request(chain(&layer), None)), "a directory where a link should be");
}

#[test]
fn layer_directories_that_are_no_plain_directories_are_not_used() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    fs::create_dir_all(world.path("outside/layerfs")).unwrap();
    type Replace = fn(&Repository, &Layer, &Path);
    let cases: [(&str, Replace); 5] = [
        ("layerfs is a link out of the repository", |repository, layer, outside| {
            fs::remove_dir_all(repository.content(layer)).unwrap();
            symlink(outside.join("layerfs"), repository.content(layer)).unwrap();
        }),
        ("layerfs is a link within the repository", |repository, layer, _| {
            fs::rename(repository.content(layer), repository.content(layer).with_file_name("real")).unwrap();
            symlink("real", repository.content(layer)).unwrap();
        }),
        ("the layer is a link", |repository, layer, outside| {
            let directory = repository.at(&OwnedPath::Layer(layer.digest));
            fs::remove_dir_all(&directory).unwrap();
            symlink(outside, directory).unwrap();
        }),
        ("layerfs is a file", |repository, layer, _| {
            fs::remove_dir_all(repository.content(layer)).unwrap();
            fs::write(repository.content(layer), "").unwrap();
        }),
        ("a record never ends", |repository, layer, _| {
            let record = repository.at(&OwnedPath::LayerFormat(layer.digest));
            fs::remove_dir_all(repository.content(layer)).unwrap();
            fs::remove_file(&record).unwrap();
            nix::unistd::mkfifo(&record, Mode::S_IRWXU).unwrap();
        }),
    ];
    let daemon = world.start();
    let mut client = daemon.client();
    for (case, replace) in cases {
        let layer = repository.layer(case);
        repository.index(&[layer]);
        assert!(served(&mut client, "", &request(chain(&layer), Some(layer.digest))));
        replace(&repository, &layer, &world.path("outside"));
        assert!(!served(&mut client, "", &request(chain(&layer), Some(layer.digest))), "{case}");
    }
}

#[test]
fn records_that_can_t_be_read_don_t_hang_or_stop_anything() {
    let mut world = World::new();
    let repository = world.repository_with(NAME, "timeout = 2");
    let daemon = world.start();
    let mut client = daemon.client();
    type Replace = fn(&Path);
    let cases: [(&str, Replace); 4] = [
        ("nonsense", |record| fs::write(record, "{").unwrap()),
        ("a pipe", |record| {
            fs::remove_file(record).unwrap();
            nix::unistd::mkfifo(record, Mode::S_IRWXU).unwrap();
        }),
        ("a directory", |record| {
            fs::remove_file(record).unwrap();
            fs::create_dir(record).unwrap();
        }),
        ("a link", |record| {
            fs::remove_file(record).unwrap();
            symlink("/etc/passwd", record).unwrap();
        }),
    ];
    for (case, replace) in cases {
        let layer = repository.layer(case);
        replace(&repository.at(&OwnedPath::LayerFormat(layer.digest)));
        replace(&repository.at(&OwnedPath::LayerRecord(layer.digest)));
        let start = std::time::Instant::now();
        let labels = request(chain(&layer), Some(layer.digest));
        assert!(served(&mut client, "", &labels), "{case}: without a record the layer is one of the existing tool");
        assert!(start.elapsed().as_secs() < 2, "{case}");
    }
}

#[test]
fn a_repository_that_is_not_mounted_is_no_repository_without_the_layer() {
    let mut world = World::new();
    let fallback = world.repository("fallback.example.org");
    let fail = world.repository_with("fail.example.org", "on_error = \"fail\"");
    let layer = Layer::named("layer");
    let labels = request(chain(&layer), Some(layer.digest));
    let daemon = world.start();
    let mut client = daemon.client();
    assert!(!served(&mut client, "", &labels), "both say that they don't have it");
    fs::remove_dir(fail.path.join(".layers")).unwrap();
    let failure = client.lazily("key", "", &labels).expect_err("an empty mountpoint");
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.text.contains("fail.example.org") && failure.text.contains("nothing is mounted"), "{failure:?}");
    assert!(client.stat("key").is_err());
    fs::remove_dir(&fail.path).unwrap();
    let failure = client.lazily("key", "", &labels).expect_err("no mountpoint");
    assert_eq!(failure.code, Code::Unavailable);
    let (code, text) = crate::common::http(&world.control(), "/readyz").unwrap();
    assert_eq!(code, 200, "one can be read: {text}");

    // The other one has it: nobody needs to wait for the first.
    fallback.index(&[fallback.layer("layer")]);
    assert!(served(&mut client, "", &labels));
    // The other one is not mounted, and the first one is.
    fs::remove_dir_all(&fallback.path).unwrap();
    assert_eq!(client.lazily("key", "", &labels).expect_err("one is down").code, Code::Unavailable);
    let (code, text) = crate::common::http(&world.control(), "/readyz").unwrap();
    assert_eq!(code, 503);
    assert!(text.contains("fallback.example.org") && text.contains("fail.example.org"), "{text}");
    Repository::make("fail.example.org", &fail.path);
    assert!(!served(&mut client, "", &labels), "down and fallback: it is downloaded");
    let metrics = daemon.metrics();
    assert!(metrics.contains("fallback_total{reason=\"repository-down\"} 1"), "{metrics}");
    assert!(metrics.contains("repository_up{repository=\"fallback.example.org\"} 0"), "{metrics}");
    fail.index(&[fail.layer("layer")]);
    assert!(served(&mut client, "", &labels));
}

#[test]
fn a_container_waits_for_a_layer_that_has_vanished() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers = [repository.layer("base"), repository.layer("top")];
    let chains = repository.index(&layers);
    let daemon = world.start();
    let mut client = daemon.client();
    let base = client.lazily("k", "", &request(chains[0], None)).unwrap().expect("it is published").name;
    let top = client.lazily("k", &base, &request(chains[1], None)).unwrap().expect("it is published").name;
    client.prepare("container", &top, &[]).unwrap();
    // A daemon that was there remembers for a while what it has seen.
    daemon.kill();
    let daemon = world.start();
    let mut client = daemon.client();
    let (content, away) = (repository.content(&layers[0]), world.path("away"));
    let refused = |client: &mut Client, case: &str, words: &[&str]| {
        let calls = [client.prepare("other", &top, &[]), client.view("other", &top), client.mounts("container")];
        for failure in calls.map(|call| call.expect_err(case)) {
            assert_eq!(failure.code, Code::Unavailable, "{case}: {failure:?}");
            assert!(words.iter().all(|word| failure.text.contains(word)), "{case}: {failure:?}");
        }
        assert!(client.stat("other").is_err(), "{case}");
    };
    let digest = layers[0].digest.to_string();
    fs::rename(&content, &away).unwrap();
    refused(&mut client, "the layer is gone", &[&digest, NAME, "gone"]);
    fs::rename(&away, &content).unwrap();
    fs::rename(&repository.path, &away).unwrap();
    fs::create_dir(&repository.path).unwrap();
    refused(&mut client, "nothing is mounted", &["sha256:", NAME, "nothing is mounted"]);
    // What needs no layer goes on.
    client.prepare("plain", "", &[]).unwrap();
    client.stat("container").unwrap();
    fs::remove_dir(&repository.path).unwrap();
    fs::rename(&away, &repository.path).unwrap();
    client.mounts("container").expect("it is back");
    client.prepare("other", &top, &[]).unwrap();
}

#[test]
fn diff_and_chain_indexes_of_another_digest_are_no_way_around_the_chain() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (honest, foreign) = (repository.layer("honest"), repository.layer("foreign"));
    // Not even the repository's own index makes a tar into another one.
    let target =
        Layout::new().link(&OwnedPath::Index(IndexKey::DiffId(honest.diff)), &OwnedPath::Layer(foreign.digest));
    repository.link(IndexKey::DiffId(honest.diff), &target);
    repository.link(IndexKey::ChainId(chain(&honest)), &target);
    let daemon = world.start();
    let mut client = daemon.client();
    let diff = ("containerd.io/snapshot/diff-id", honest.diff.to_string());
    assert!(!served(&mut client, "", &[request(chain(&honest), None), vec![diff]].concat()));
    assert!(!served(&mut client, "", &request(chain(&honest), None)));
    let lie = ("containerd.io/snapshot/diff-id", foreign.diff.to_string());
    repository.index(&[foreign]);
    assert!(!served(&mut client, "", &[request(ChainId::on(None, DiffId::of(b"x")), None), vec![lie]].concat()));
}
