//! Published layers below containers, and repositories that hang.

use std::fs;
use std::time::{Duration, Instant};

use image::digest::ChainId;
use tonic::Code;

use crate::common::{Layer, Mounted, Silent, World, may_mount, names, request};

const NAME: &str = "images.example.org";

#[test]
fn containers_see_published_and_local_layers_through_restarts() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers: Vec<Layer> = (0..60).map(|number| repository.layer(&format!("f{number}"))).collect();
    let chains = repository.index(&layers);
    let daemon = world.start();
    let mut client = daemon.client();
    let mut parent = String::new();
    for chain in &chains {
        parent = client.lazily("k", &parent, &request(*chain, None)).unwrap().expect("it is published").name;
    }
    let first = Mounted::new(&world, &client.prepare("first", &parent, &[]).unwrap());
    assert_eq!(names(&first.path).len(), 60);
    fs::write(first.join("f0"), "mine").unwrap();
    fs::remove_file(first.join("f1")).unwrap();
    daemon.kill();
    fs::write(first.join("while it was down"), "").unwrap();
    let daemon = world.start();
    let mut client = daemon.client();
    fs::remove_file(first.join("f2")).unwrap();
    let other = Mounted::new(&world, &client.prepare("other", &parent, &[]).unwrap());
    assert_eq!(names(&other.path).len(), 60, "containers don't share what they write");
    // As after a reboot: the same snapshot is mounted again.
    drop(first);
    let first = Mounted::new(&world, &client.mounts("first").unwrap());
    assert_eq!(names(&first.path).len(), 59);
    assert_eq!(fs::read_to_string(first.join("f0")).unwrap(), "mine");
    drop(first);
    client.commit("committed", "first", &[]).unwrap();
    let view = Mounted::new(&world, &client.view("view", "committed").unwrap());
    assert_eq!(names(&view.path).len(), 59);
    assert_eq!(fs::read_to_string(repository.content(&layers[0]).join("f0")).unwrap(), "f0");
    let lowest = client.list(&["parent==\"\""]).remove(0).name;
    let base = Mounted::new(&world, &client.view("base", &lowest).unwrap());
    assert_eq!(names(&base.path), ["f0".into()].into());
    assert!(fs::write(base.join("x"), "").is_err());
}

#[test]
fn a_repository_that_hangs_is_down_and_left_alone_for_a_while() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository_with(NAME, "timeout = 2\non_error = \"fail\"");
    let chains = repository.index(&[repository.layer("base"), repository.layer("top")]);
    let daemon = world.start();
    let mut client = daemon.client();
    let base = client.lazily("k", "", &request(chains[0], None)).unwrap().expect("it is published").name;
    let Some(silent) = Silent::new(&repository.path, 0) else { return };
    let top = request(chains[1], None);
    let (mut slow, mut quick) = (0, 0);
    for _ in 0..6 {
        let start = Instant::now();
        let failure = client.lazily("k", &base, &top).expect_err("it hangs");
        assert_eq!(failure.code, Code::Unavailable);
        if failure.text.contains("did not answer within 2 s") {
            slow += 1;
            assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        } else {
            assert!(failure.text.contains("in a row"), "{failure:?}");
            assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
            quick += 1;
        }
    }
    assert!((1..=3).contains(&slow) && quick >= 3, "{slow} {quick}");
    // Nothing else waits for it.
    let start = Instant::now();
    client.prepare("plain", "", &[]).unwrap();
    client.stat(&base).unwrap();
    assert_eq!(client.everything().len(), 2);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    assert_eq!(crate::common::http(&world.control(), "/readyz").unwrap().0, 503);
    drop(silent);
    let start = Instant::now();
    loop {
        match client.lazily("k", &base, &top) {
            Ok(found) => break assert!(found.is_some()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
        assert!(start.elapsed() < Duration::from_secs(20), "it should be asked again");
    }
}

#[test]
fn the_daemon_ends_in_time_though_a_request_hangs() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository_with(NAME, "timeout = 60");
    let chains = repository.index(&[repository.layer("base")]);
    let daemon = world.start();
    let Some(_silent) = Silent::new(&repository.path, 0) else { return };
    let mut client = daemon.client();
    let waiting = std::thread::spawn(move || client.lazily("k", "", &request(chains[0], None)).is_err());
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    assert!(daemon.stop().success());
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    assert!(waiting.join().unwrap());
}

#[test]
fn mounts_that_belong_to_others_or_are_dead_are_down() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let fail = world.repository_with("fail.example.org", "on_error = \"fail\"");
    let layer = Layer::named("layer");
    let labels = request(ChainId::on(None, layer.diff), Some(layer.digest));
    let daemon = world.start();
    let mut client = daemon.client();
    let Some(other) = Silent::new(&fail.path, 1000) else { return };
    let failure = client.lazily("k", "", &labels).expect_err("the mount of another user");
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.text.contains("ermission denied"), "{failure:?}");
    assert!(world.log().contains("allow_other"), "the remedy is said");
    drop(other);
    assert_eq!(client.lazily("k", "", &labels).unwrap(), None, "it is back");
    client.remove("k").unwrap();
    let Some(mut dead) = Silent::new(&fail.path, 0) else { return };
    dead.die();
    let failure = client.lazily("k", "", &labels).expect_err("a mount whose client is gone");
    assert_eq!(failure.code, Code::Unavailable);
    assert!(failure.text.contains("fail.example.org"), "{failure:?}");
}
