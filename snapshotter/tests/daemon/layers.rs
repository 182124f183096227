//! Layers that are there without a download: what containerd asks, is told, and finds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Barrier;

use containerd_client::services::v1::snapshots::Kind;
use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{IndexKey, OwnedPath};
use tonic::Code;

use crate::common::{Client, Layer, Repository, World, request};

const NAME: &str = "images.example.org";
const REMOTE: (&str, &str) = ("containerd.io/snapshot/remote", "cvmfs");

/// An image of some layers, published.
fn image(repository: &Repository, names: &[&str]) -> (Vec<Layer>, Vec<ChainId>) {
    let layers: Vec<Layer> = names.iter().map(|name| repository.layer(name)).collect();
    let chains = repository.index(&layers);
    (layers, chains)
}

/// Asks for all layers of an image, as one namespace does; returns the names of the snapshots that are found.
fn pull(client: &mut Client, namespace: &str, chains: &[ChainId]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (number, chain) in chains.iter().enumerate() {
        let key = format!("{namespace}/{number}/extract-1 {chain}");
        let parent = names.last().cloned().unwrap_or_default();
        let info = client.lazily(&key, &parent, &request(*chain, None)).unwrap().expect("it is published");
        names.push(info.name);
    }
    names
}

#[test]
fn a_published_image_needs_no_download() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (layers, chains) = image(&repository, &["base", "middle", "top"]);
    let daemon = world.start();
    let mut client = daemon.client();
    let names = pull(&mut client, "default", &chains);
    for (name, layer) in names.iter().zip(&layers) {
        assert_eq!(fs::read_link(world.content(name)).unwrap(), repository.content(layer));
        let info = client.stat(name).unwrap();
        assert_eq!(info.labels.get(REMOTE.0).map(String::as_str), Some(REMOTE.1));
        assert_eq!(client.usage(name).unwrap(), (0, 0), "no local disk is used");
    }
    assert_eq!(pull(&mut client, "default", &chains), names, "a second pull finds the same");
    assert_eq!(client.everything().len(), 3, "no key stays behind");
    let status = daemon.status();
    assert_eq!((&status["layers"]["remote"], &status["layers"]["existing"]), (&3.into(), &3.into()));
    assert_eq!(status["snapshots"]["remote"], 3);

    let mounts = client.prepare("default/9/container", &names[2], &[]).unwrap();
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let expected: Vec<String> = names.iter().rev().map(|name| world.content(name).display().to_string()).collect();
    assert_eq!(lowers.split(':').collect::<Vec<_>>(), expected, "the nearest parent first");
    let view = client.view("default/10/view", &names[0]).unwrap();
    assert_eq!(Path::new(&view[0].source), repository.content(&layers[0]), "a bind names the directory itself");
}

#[test]
fn namespaces_with_other_parents_don_t_take_each_others_layers() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (_, chains) = image(&repository, &["base", "top"]);
    let daemon = world.start();
    let mut client = daemon.client();
    // One namespace has unpacked the base itself.
    let local = format!("moby/1/{}", chains[0]);
    client.layer(&local, "");
    let top = request(chains[1], None);
    let in_moby = client.lazily("moby/2/extract", &local, &top).unwrap().expect("it is published");
    let names = pull(&mut client, "k8s.io", &chains);
    assert_ne!(in_moby.name, names[1]);
    let again = client.lazily("moby/3/extract", &local, &top).unwrap().expect("it is there");
    assert_eq!(again.name, in_moby.name);
    assert_eq!(client.everything().len(), 4);
    // Either can go without the other.
    client.remove(&in_moby.name).unwrap();
    client.remove(&local).unwrap();
    assert!(client.mounts(&names[1]).is_err_and(|failure| failure.code == Code::FailedPrecondition));
}

#[test]
fn whoever_asks_at_the_same_time_finds_the_same_snapshot() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (_, chains) = image(&repository, &["base", "top"]);
    let daemon = world.start();
    let barrier = Barrier::new(32);
    let found: BTreeSet<Vec<String>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..32)
            .map(|number| {
                let (daemon, barrier, chains) = (&daemon, &barrier, &chains);
                scope.spawn(move || {
                    let mut client = daemon.client();
                    barrier.wait();
                    pull(&mut client, &format!("n{number}"), chains)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(daemon.client().everything().len(), 2);
    assert_eq!(world.directories(), world.rows());
}

#[test]
fn every_name_of_a_layer_leads_to_it() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.layer("layer");
    let chain = ChainId::on(None, layer.diff);
    let (from_diff, from_chain) = (repository.layer("by diff"), repository.layer("by chain"));
    repository.index(&[from_diff]);
    fs::remove_file(repository.at(&OwnedPath::Index(IndexKey::ChainId(ChainId::on(None, from_diff.diff))))).unwrap();
    repository.index(&[from_chain]);
    fs::remove_file(repository.at(&OwnedPath::Index(IndexKey::DiffId(from_chain.diff)))).unwrap();
    let daemon = world.start();
    let mut client = daemon.client();
    let cases = [
        ("thin", chain, ("containerd.io/snapshot/cvmfs.layer", format!("{NAME}:{}", layer.digest.hex()))),
        ("digest", chain, ("containerd.io/snapshot/cri.layer-digest", layer.digest.to_string())),
        ("diff", ChainId::on(None, from_diff.diff), ("containerd.io/snapshot/diff-id", from_diff.diff.to_string())),
        ("chain", ChainId::on(None, from_chain.diff), ("containerd.io/snapshot/cri.image-ref", "x".into())),
    ];
    for (way, chain, label) in cases {
        let labels = [request(chain, None), vec![label]].concat();
        let info = client.lazily("key", "", &labels).unwrap().unwrap_or_else(|| panic!("{way}"));
        assert_eq!(world.how(&info.name).as_deref(), Some(way));
        client.remove(&info.name).unwrap();
    }
    let metrics = daemon.metrics();
    for way in ["thin", "digest", "diff", "chain"] {
        let line = format!("result=\"remote\",method=\"{way}\",repository=\"{NAME}\"}} 1");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[test]
fn the_order_of_ways_is_that_of_the_configuration() {
    let mut world = World::with("resolve = [\"chain\", \"digest\"]");
    let repository = world.repository(NAME);
    let (layers, chains) = image(&repository, &["layer"]);
    let daemon = world.start();
    let mut client = daemon.client();
    let by_both = client.lazily("key", "", &request(chains[0], Some(layers[0].digest))).unwrap().expect("it is there");
    assert_eq!(world.how(&by_both.name).as_deref(), Some("chain"));
    let other = repository.layer("thin only");
    let label = ("containerd.io/snapshot/cvmfs.layer", format!("{NAME}:{}", other.digest.hex()));
    let labels = [request(ChainId::on(None, other.diff), None), vec![label]].concat();
    assert_eq!(client.lazily("key", "", &labels).unwrap(), None, "this way is not configured");
}

#[test]
fn repositories_are_asked_in_order_and_only_for_their_images() {
    let mut world = World::new();
    let first = world.repository_with("first.example.org", "include = [\"docker.io/*\"]\nexclude = [\"*:nightly\"]");
    let second = world.repository("second.example.org");
    for repository in [&first, &second] {
        let layers = [repository.layer("both")];
        repository.index(&layers);
    }
    second.index(&[second.layer("second only")]);
    let daemon = world.start();
    let mut client = daemon.client();
    let cases = [
        ("both", Some("docker.io/library/x:1"), "first"),
        ("both", None, "first"),
        ("both", Some("docker.io/library/x:nightly"), "second"),
        ("both", Some("quay.io/x:1"), "second"),
        ("second only", Some("docker.io/library/x:1"), "second"),
    ];
    for (layer, image, expected) in cases {
        let layer = Layer::named(layer);
        let mut labels = request(ChainId::on(None, layer.diff), Some(layer.digest));
        labels.extend(image.map(|image| ("containerd.io/snapshot/cri.image-ref", image.to_owned())));
        let info = client.lazily("key", "", &labels).unwrap().expect("one has it");
        let target = fs::read_link(world.content(&info.name)).unwrap();
        let repository = if expected == "first" { &first } else { &second };
        assert_eq!(target, repository.content(&layer), "{image:?}");
        client.remove(&info.name).unwrap();
    }
}

#[test]
fn layers_of_an_image_may_come_from_several_repositories_and_from_a_download() {
    let mut world = World::new();
    let (first, second) = (world.repository("first.example.org"), world.repository("second.example.org"));
    let layers = [first.layer("base"), Layer::named("absent"), second.layer("top")];
    let chains = ChainId::stack(&layers.map(|layer| layer.diff));
    let daemon = world.start();
    let mut client = daemon.client();
    let ask = |client: &mut Client, number: usize, parent: &str| {
        client.lazily("default/1/extract", parent, &request(chains[number], Some(layers[number].digest))).unwrap()
    };
    let base = ask(&mut client, 0, "").expect("it is published").name;
    assert_eq!(ask(&mut client, 1, &base), None);
    let absent = format!("default/2/{}", chains[1]);
    client.commit(&absent, "default/1/extract", &[]).unwrap();
    let top = ask(&mut client, 2, &absent).expect("it is published").name;
    let kinds: Vec<bool> = [&base, &absent, &top].iter().map(|name| world.content(name).is_symlink()).collect();
    assert_eq!(kinds, [true, false, true]);
    let mounts = client.prepare("default/3/container", &top, &[]).unwrap();
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    assert_eq!(lowers.split(':').count(), 3);
    let metrics = daemon.metrics();
    assert!(metrics.contains("fallback_total{reason=\"absent\"} 1"), "{metrics}");
}

#[test]
fn sizes_are_those_of_the_records_where_that_is_wanted() {
    let mut world = World::with("usage = \"logical\"");
    let repository = world.repository(NAME);
    let (_, chains) = image(&repository, &["layer"]);
    let daemon = world.start();
    let mut client = daemon.client();
    let name = pull(&mut client, "default", &chains).remove(0);
    assert_eq!(client.usage(&name).unwrap(), (10_000, 3));
}

#[test]
fn a_request_without_a_target_or_for_a_view_wants_no_layer() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (layers, _) = image(&repository, &["layer"]);
    let daemon = world.start();
    let mut client = daemon.client();
    let digest = layers[0].digest.to_string();
    for (key, target) in [("a", None), ("b", Some(""))] {
        let mut labels = vec![("containerd.io/snapshot/cri.layer-digest", digest.as_str())];
        labels.extend(target.map(|target| ("containerd.io/snapshot.ref", target)));
        client.prepare(key, "", &labels).expect("an ordinary snapshot");
        assert_eq!(client.stat(key).unwrap().kind(), Kind::Active);
    }
}

/// containerd that unpacks layers side by side names no parent; a snapshot without one would break the chain of the image.
#[test]
fn an_upper_layer_without_its_parent_is_not_conjured() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (layers, chains) = image(&repository, &["base", "top"]);
    let daemon = world.start();
    let mut client = daemon.client();
    for digest in [None, Some(layers[1].digest)] {
        let key = format!("{digest:?}");
        assert_eq!(client.lazily(&key, "", &request(chains[1], digest)).unwrap(), None);
        assert_eq!(client.stat(&key).unwrap().kind(), Kind::Active);
    }
}

#[test]
fn a_remote_snapshot_is_made_again_after_it_was_removed() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (_, chains) = image(&repository, &["layer"]);
    let daemon = world.start();
    let mut client = daemon.client();
    for _ in 0..3 {
        let names = pull(&mut client, "default", &chains);
        client.remove(&names[0]).unwrap();
        client.cleanup().unwrap();
        assert_eq!(world.directories(), BTreeSet::new());
    }
    assert!(repository.content(&Layer::named("layer")).join("layer").is_file(), "a removal follows no link");
}

#[test]
fn digests_that_nobody_published_are_downloaded() {
    let mut world = World::new();
    world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let chain = ChainId::on(None, DiffId::of(b"absent"));
    let labels = request(chain, Some(LayerDigest::of(b"absent")));
    assert_eq!(client.lazily("key", "", &labels).unwrap(), None);
    let info = client.stat("key").unwrap();
    assert_eq!(info.labels["containerd.io/snapshot.ref"], chain.to_string(), "the labels of the request are kept");
    assert_eq!(daemon.status()["layers"]["miss"], 1);
}
