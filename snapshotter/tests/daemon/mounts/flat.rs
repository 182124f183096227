//! Containers on the flat root of their image.

use std::fs;

use image::digest::{ChainId, ImageId};
use image::layout::{IndexKey, Layout, OwnedPath};
use serde_json::json;

use crate::common::{Client, Layer, Mounted, Repository, World, may_mount, names, request};
use crate::thin;

const NAME: &str = "images.example.org";

/// An image of layers with a file each, and its flat, which has a file more and says so in its cover.
pub(super) fn publish(repository: &Repository, count: usize) -> (Vec<ChainId>, ImageId) {
    let layers: Vec<Layer> = (0..count).map(|number| repository.layer(&format!("f{number}"))).collect();
    let chains = repository.index(&layers);
    let diffs: Vec<String> = layers.iter().map(|layer| layer.diff.to_string()).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diffs}});
    let config = config.to_string();
    let image = ImageId::of(config.as_bytes());
    repository.write(&OwnedPath::Index(IndexKey::Config(image)), config.as_bytes());
    let flat = repository.at(&OwnedPath::Flat(image));
    fs::create_dir_all(&flat).unwrap();
    (0..count).for_each(|number| fs::write(flat.join(format!("f{number}")), "in the flat").unwrap());
    fs::write(flat.join("environment"), "").unwrap();
    let cover = repository.at(&OwnedPath::FlatCover(image));
    fs::create_dir_all(&cover).unwrap();
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty());
    nix::sys::stat::mknod(&cover.join("environment"), kind, mode, 0).unwrap();
    link(repository, *chains.last().unwrap(), image);
    (chains, image)
}

fn link(repository: &Repository, stack: ChainId, image: ImageId) {
    let key = IndexKey::Image(stack);
    repository.link(key, &Layout::new().link(&OwnedPath::Index(key), &OwnedPath::Flat(image)));
}

pub(super) fn pull(client: &mut Client, chains: &[ChainId]) -> String {
    let mut parent = String::new();
    for chain in chains {
        parent = client.lazily("k", &parent, &request(*chain, None)).unwrap().expect("it is published").name;
    }
    parent
}

/// The directories below a container.
fn lowers(mounts: &[containerd_client::types::Mount]) -> usize {
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    lowers.split(':').count()
}

/// A container that stands on the flat of the image of six layers and on its cover, and sees the image.
pub(super) fn on_the_flat(world: &World, answer: &[containerd_client::types::Mount]) -> Mounted {
    assert_eq!(lowers(answer), 2);
    let container = Mounted::new(world, answer);
    assert_eq!(names(&container.path), (0..6).map(|number| format!("f{number}")).collect());
    assert_eq!(fs::read_to_string(container.join("f3")).unwrap(), "in the flat");
    container
}

#[test]
fn a_container_of_many_layers_gets_the_flat_and_sees_the_image() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (chains, _) = publish(&repository, 6);
    let daemon = world.start();
    let mut client = daemon.client();
    let top = pull(&mut client, &chains);
    let answer = client.prepare("one", &top, &[]).unwrap();
    let container = on_the_flat(&world, &answer);
    fs::write(container.join("f3"), "mine").unwrap();
    daemon.kill();
    let daemon = world.start();
    let mut client = daemon.client();
    assert_eq!(lowers(&client.mounts("one").unwrap()), 2, "it is remembered");
    // A layer on top stands on the flat as well.
    client.commit("mine", "one", &[]).unwrap();
    let above = client.prepare("above", "mine", &[]).unwrap();
    assert_eq!(lowers(&above), 3);
    drop(container);
    assert_eq!(fs::read_to_string(Mounted::new(&world, &above).join("f3")).unwrap(), "mine");
    assert_eq!(pull(&mut client, &chains), top, "its layers are still there for who asks");
}

#[test]
fn layers_are_used_where_the_flat_is_not_wanted_or_not_the_image() {
    if !may_mount() {
        return;
    }
    type Damage = fn(&Repository, &[ChainId], ImageId);
    let nothing: Damage = |_, _, _| {};
    let cases: [(&str, usize, Damage, usize); 7] = [
        ("prefer_flat = \"off\"", 6, nothing, 6),
        ("", 3, nothing, 3),
        ("prefer_flat = \"on\"", 3, nothing, 2),
        ("", 6, |repository, _, image| fs::remove_dir_all(repository.at(&OwnedPath::FlatCover(image))).unwrap(), 6),
        ("", 6, |repository, _, image| fs::remove_dir_all(repository.at(&OwnedPath::Flat(image))).unwrap(), 6),
        ("", 6, |repository, _, image| repository.write(&OwnedPath::Index(IndexKey::Config(image)), b"{}"), 6),
        // The index leads to the flat of another image.
        ("", 6, |repository, chains, _| link(repository, chains[5], publish(repository, 5).1), 6),
    ];
    for (number, (settings, layers, damage, expected)) in cases.into_iter().enumerate() {
        let mut world = World::with(settings);
        let repository = world.repository(NAME);
        let (chains, image) = publish(&repository, layers);
        damage(&repository, &chains, image);
        let daemon = world.start();
        let mut client = daemon.client();
        let top = pull(&mut client, &chains);
        assert_eq!(lowers(&client.prepare("one", &top, &[]).unwrap()), expected, "case {number}");
    }
}

#[test]
fn a_container_of_a_thin_image_gets_the_flat_where_image_and_repository_agree() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let (chains, _) = publish(&repository, 6);
    let daemon = world.start();
    let mut client = daemon.client();
    let layers: Vec<Layer> = (0..6).map(|number| Layer::named(&format!("f{number}"))).collect();
    let all: Vec<(&str, &Layer)> = layers.iter().map(|layer| (NAME, layer)).collect();
    thin::unpack(&mut client, "thin", "", &thin::record(&all)).unwrap();
    let answer = client.prepare("one", "thin", &[]).unwrap();
    let container = on_the_flat(&world, &answer);
    drop(container);

    // Other layers under the name of this image, and an image that stands on something.
    let liar = repository.layer("liar");
    let lying = Layer { digest: liar.digest, ..Layer::named("f3") };
    let mut others = all.clone();
    others[3] = (NAME, &lying);
    thin::unpack(&mut client, "lie", "", &thin::record(&others)).unwrap();
    assert_eq!(lowers(&client.prepare("two", "lie", &[]).unwrap()), 6);
    client.layer("below", "");
    thin::unpack(&mut client, "on", "below", &thin::record(&all)).unwrap();
    assert_eq!(lowers(&client.prepare("three", "on", &[]).unwrap()), 7);

    // An ordinary layer can't say that it means an image.
    client.prepare("k", "", &[]).unwrap();
    client.commit("claim", "k", &[("ch.cern.cvmfs.thin.stack", &chains[5].to_string())]).unwrap();
    assert_eq!(client.stat("claim").unwrap().labels.get("ch.cern.cvmfs.thin.stack"), None);
}
