//! Containers on a mount without extended attributes. A directory that is mounted once more stands for that of a client.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use image::layout::OwnedPath;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::json;

use super::flat;
use crate::common::{Layer, Mounted, Repository, World, may_mount, names, request};

const NAME: &str = "images.example.org";

/// The same directory at a second place; unmounted when dropped.
struct Again(PathBuf);

impl Again {
    fn new(world: &World, repository: &Repository) -> Again {
        let place = world.path("bare");
        fs::create_dir_all(&place).unwrap();
        mount(Some(&repository.path), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Again(place)
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A client that answers `answer` whenever it is asked.
fn client_of(world: &World, repository: &Repository, answer: String) {
    let socket = world.path("client.sock");
    xattr::set(&repository.path, "user.control", socket.to_str().unwrap().as_bytes()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let answer = if line == "bare\n" { answer.as_str() } else { r#"{"error":"unknown request"}"# };
            writeln!(&stream, "{answer}").unwrap();
        }
    });
}

fn made(place: &Path) -> String {
    json!({ "mountpoint": place }).to_string()
}

/// Three layers, the middle one with an attribute.
fn publish(repository: &Repository) -> Vec<Layer> {
    let plain = |name: &str| repository.layer(name);
    let marked = repository.layer_with("f1", |content| {
        fs::write(content.join("f1"), "").unwrap();
        xattr::set(content.join("f1"), "user.mark", b"x").unwrap();
    });
    vec![plain("f0"), marked, plain("f2")]
}

fn lowers(mounts: &[Mount]) -> Vec<PathBuf> {
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    lowers.split(':').map(PathBuf::from).collect()
}

#[test]
fn directories_without_attributes_are_taken_from_the_mount_without() {
    if !may_mount() {
        return;
    }
    let mut world = World::with("");
    let repository = world.repository(NAME);
    let layers = publish(&repository);
    let again = Again::new(&world, &repository);
    client_of(&world, &repository, made(&again.0));
    let daemon = world.start();
    let mut client = daemon.client();
    let mut top = String::new();
    for chain in repository.index(&layers) {
        top = client.lazily("k", &top, &request(chain, None)).unwrap().expect("it is published").name;
    }
    client.prepare("one", &top, &[]).unwrap();
    let answer = client.mounts("one").unwrap();
    let bare = |lowers: Vec<PathBuf>| lowers.iter().map(|path| path.starts_with(&again.0)).collect::<Vec<_>>();
    assert_eq!(bare(lowers(&answer)), [true, false, true], "{answer:?}");
    let container = Mounted::new(&world, &answer);
    assert_eq!(names(&container.path), ["f0", "f1", "f2"].map(String::from).into());
    assert_eq!(xattr::get(container.join("f1"), "user.mark").unwrap().as_deref(), Some(&b"x"[..]));
    fs::write(container.join("f0"), "changed").unwrap();
    // From its start on, who asks may be a differ.
    assert_eq!(bare(lowers(&client.mounts("one").unwrap())), [false; 3]);
    drop(container);
    let answer = client.mounts("one").unwrap();
    assert_eq!(bare(lowers(&answer)), [false; 3]);
    let container = Mounted::new(&world, &answer);
    assert_eq!(fs::read(container.join("f0")).unwrap(), b"changed");
    assert_eq!(xattr::get(container.join("f2"), "security.capability").unwrap(), None);
    drop(container);
    // The same goes for views, which differs compare with.
    client.view("view", &top).unwrap();
    assert_eq!(bare(lowers(&client.mounts("view").unwrap())), [false; 3]);
    // The client comes and goes; a container that was not started yet gets what is there.
    client.prepare("two", &top, &[]).unwrap();
    umount2(&again.0, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(bare(lowers(&client.mounts("two").unwrap())), [false; 3]);
    mount(Some(&repository.path), &again.0, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    assert_eq!(bare(lowers(&client.mounts("two").unwrap())), [true, false, true]);
}

#[test]
fn a_flat_whose_attributes_are_all_in_its_cover_is_taken_from_the_mount_without() {
    if !may_mount() {
        return;
    }
    // In which of the two the file with an attribute is, and which of them is taken from the mount without.
    for (flat_has, cover_has, expected) in [(true, true, [false, true]), (true, false, [true, false])] {
        let mut world = World::with("");
        let repository = world.repository(NAME);
        let (chains, image) = flat::publish(&repository, 6);
        for (path, has) in [(OwnedPath::Flat(image), flat_has), (OwnedPath::FlatCover(image), cover_has)] {
            if has {
                let file = repository.at(&path).join("f1");
                fs::write(&file, "in the flat").unwrap();
                xattr::set(&file, "user.mark", b"x").unwrap();
            }
        }
        let again = Again::new(&world, &repository);
        client_of(&world, &repository, made(&again.0));
        let daemon = world.start();
        let mut client = daemon.client();
        let top = flat::pull(&mut client, &chains);
        client.prepare("one", &top, &[]).unwrap();
        let answer = client.mounts("one").unwrap();
        let bare: Vec<bool> = lowers(&answer).iter().map(|path| path.starts_with(&again.0)).collect();
        assert_eq!(bare, expected, "{answer:?}");
        let container = flat::on_the_flat(&world, &answer);
        assert_eq!(xattr::get(container.join("f1"), "user.mark").unwrap().as_deref(), Some(&b"x"[..]));
    }
}

#[test]
fn the_usual_paths_are_used_where_anything_is_in_doubt() {
    if !may_mount() {
        return;
    }
    type Answer = fn(&Path, &Path) -> String;
    let refusal: Answer = |_, _| r#"{"error":"cannot mount"}"#.into();
    let cases: [(&str, Answer); 5] = [
        ("bare_mounts = false", |again, _| made(again)),
        ("", refusal),
        ("", |_, _| "what?".into()),
        ("", |_, world| made(&world.join("absent"))),
        // The same names, another tree.
        ("", |_, world| made(&world.join("copy"))),
    ];
    for (number, (settings, answer)) in cases.into_iter().enumerate() {
        let mut world = World::with(settings);
        let repository = world.repository(NAME);
        let layers = publish(&repository);
        let again = Again::new(&world, &repository);
        let copied = std::process::Command::new("cp").arg("-a").arg(&repository.path).arg(world.path("copy")).status();
        assert!(copied.unwrap().success());
        let place = world.path(".");
        client_of(&world, &repository, answer(&again.0, &place));
        let daemon = world.start();
        let mut client = daemon.client();
        let chains = repository.index(&layers[..1]);
        let top = client.lazily("k", "", &request(chains[0], None)).unwrap().expect("it is published").name;
        client.prepare("one", &top, &[]).unwrap();
        let answer = client.mounts("one").unwrap();
        assert!(lowers(&answer)[0].starts_with(world.root()), "case {number}: {answer:?}");
    }
}
