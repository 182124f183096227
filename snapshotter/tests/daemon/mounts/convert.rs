//! `convert-local`: layers that were unpacked before they were published give their disk back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use image::digest::ChainId;
use serde_json::Value;

use crate::common::{Client, Daemon, Layer, Mounted, Repository, World, may_mount, names, request, tree};

const NAME: &str = "images.example.org";

/// Three layers that nobody has published.
fn layers() -> [Layer; 3] {
    ["base", "middle", "top"].map(Layer::named)
}

fn chains() -> Vec<ChainId> {
    ChainId::stack(&layers().map(|layer| layer.diff))
}

fn content(path: &Path, number: usize) {
    fs::write(path.join(format!("f{number}")), vec![b'0'; 100_000]).unwrap();
    fs::write(path.join("last"), number.to_string()).unwrap();
}

/// Pulls the image the ordinary way; returns the names that containerd gives its layers.
fn unpack(world: &World, client: &mut Client, namespace: &str) -> Vec<String> {
    let mut made: Vec<String> = Vec::new();
    for (number, chain) in chains().iter().enumerate() {
        let parent = made.last().cloned().unwrap_or_default();
        let key = format!("{namespace}/{number}/extract {chain}");
        assert_eq!(client.lazily(&key, &parent, &request(*chain, None)).unwrap(), None);
        content(&world.content(&key), number);
        let name = format!("{namespace}/{}/{chain}", number + 10);
        client.commit(&name, &key, &[("containerd.io/snapshot.ref", &chain.to_string()), ("kept", "x")]).unwrap();
        made.push(name);
    }
    made
}

fn publish(repository: &Repository) {
    for (number, name) in ["base", "middle", "top"].into_iter().enumerate() {
        repository.layer_with(name, |path| content(path, number));
    }
    repository.index(&layers());
}

fn convert(world: &World, arguments: &[&str]) -> Value {
    let output = world.run(&[&["convert-local", "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn local(world: &World, daemon: &Daemon) -> Vec<bool> {
    daemon.client().everything().keys().map(|name| !world.content(name).is_symlink()).collect()
}

#[test]
fn published_layers_give_their_disk_back_and_stay_what_they_are() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let made = unpack(&world, &mut client, "default");
    client.layer("default/20/of-nobody", &made[2]);
    let before = client.everything();
    let disk = |client: &mut Client| made.iter().map(|name| client.usage(name).unwrap().0).sum::<i64>();
    let used = disk(&mut client);
    let view = Mounted::new(&world, &client.view("view", &made[2]).unwrap());
    let seen = tree(&view.path);
    drop(view);
    client.remove("view").unwrap();

    let nothing = convert(&world, &[]);
    assert_eq!((&nothing["converted"], &nothing["absent"]), (&Value::Array(vec![]), &3.into()));
    publish(&repository);
    let plan = convert(&world, &["--dry-run"]);
    assert_eq!((plan["converted"].as_array().unwrap().len(), &plan["freed"]), (3, &used.into()));
    assert_eq!(local(&world, &daemon), [true; 4], "a plan changes nothing");
    let done = convert(&world, &[]);
    assert_eq!(done, plan, "what was shown is what is done");
    assert_eq!(local(&world, &daemon), [false, false, false, true]);
    assert_eq!(client.everything(), before, "names, parents, labels and times");
    assert_eq!(disk(&mut client), 0);
    assert_eq!(world.trash(), Vec::<String>::new(), "the disk is free");
    assert!(world.how(&made[0]).unwrap().contains("converted"));
    let view = Mounted::new(&world, &client.view("view", &made[2]).unwrap());
    assert_eq!(tree(&view.path), seen);
    drop(view);
    assert_eq!(convert(&world, &[])["converted"], Value::Array(vec![]), "a second time there is nothing to do");
    let before = client.everything();
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.client().everything(), before);
    assert_eq!(local(&world, &daemon), [false, false, false, true, true]);
    // A pull finds converted layers as containerd knows them, and new ones beside.
    let text = String::from_utf8(world.run(&["convert-local"]).stdout).unwrap();
    assert!(text.contains("0 layers"), "{text}");
}

#[test]
fn what_a_container_stands_on_is_left_alone() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let made = unpack(&world, &mut client, "default");
    let other = unpack(&world, &mut client, "moby");
    let container = Mounted::new(&world, &client.prepare("container", &made[1], &[]).unwrap());
    publish(&repository);
    let plan = convert(&world, &["--dry-run"]);
    let done = convert(&world, &[]);
    assert_eq!(done, plan);
    let sorted = |value: &Value| {
        let mut names: Vec<String> = value.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(sorted(&done["in_use"]), made[..2]);
    assert_eq!(sorted(&done["converted"]), [&made[2..], &other[..]].concat());
    assert_eq!(fs::read_to_string(container.join("last")).unwrap(), "1");
    fs::write(container.join("last"), "mine").unwrap();
    drop(container);
    client.remove("container").unwrap();
    assert_eq!(sorted(&convert(&world, &[])["converted"]), made[..2], "when it is gone they go as well");
}

#[test]
fn a_kill_between_the_steps_of_a_conversion_is_repaired() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let made = unpack(&world, &mut client, "default");
    let before = client.everything();
    publish(&repository);
    // What a conversion leaves behind, from the last step back: taken from a real one.
    let ids: Vec<i64> = made.iter().map(|name| world.id(name)).collect();
    assert!(daemon.stop().success());
    world.settle();
    let (database, snapshots) = (fs::read(world.database()).unwrap(), world.snapshots());
    let save = |id: i64| {
        let saved = world.path(&format!("saved-{id}"));
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .arg(snapshots.join(id.to_string()))
                .arg(&saved)
                .status()
                .unwrap()
                .success()
        );
        saved
    };
    let saved: Vec<_> = ids.iter().map(|id| save(*id)).collect();
    let daemon = world.start();
    convert(&world, &[]);
    daemon.kill();
    let steps = ["the row is missing", "the old files wait beside the link", "only the record is written"];
    for step in steps {
        for (id, saved) in ids.iter().zip(&saved) {
            let directory = snapshots.join(id.to_string());
            match step {
                "the row is missing" => {}
                "the old files wait beside the link" => {
                    let status = std::process::Command::new("cp")
                        .arg("-a")
                        .arg(saved.join("fs"))
                        .arg(directory.join("new"))
                        .status();
                    assert!(status.unwrap().success());
                }
                _ => {
                    fs::remove_file(directory.join("fs")).unwrap();
                    let status = std::process::Command::new("cp")
                        .arg("-a")
                        .arg(saved.join("fs"))
                        .arg(directory.join("fs"))
                        .status();
                    assert!(status.unwrap().success());
                }
            }
        }
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", world.database().display()));
        }
        fs::write(world.database(), &database).unwrap();
        let daemon = world.start();
        let mut client = daemon.client();
        assert_eq!(client.everything(), before, "{step}");
        client.cleanup().unwrap();
        let view = Mounted::new(&world, &client.view("view", &made[2]).unwrap());
        assert_eq!(names(&view.path).len(), 4, "{step}");
        drop(view);
        client.remove("view").unwrap();
        client.cleanup().unwrap();
        for id in &ids {
            assert!(!snapshots.join(id.to_string()).join("new").exists(), "{step}: the disk is free");
        }
        let expected = step == "only the record is written";
        assert_eq!(local(&world, &daemon), [expected; 3], "{step}");
        // A database that is made anew from these records serves them as well.
        assert!(daemon.stop().success());
        let daemon = world.start_with(&["--rebuild"]);
        let mut client = daemon.client();
        assert_eq!(client.everything(), before, "{step}");
        let view = Mounted::new(&world, &client.view("view", &made[2]).unwrap());
        assert_eq!(fs::read_to_string(view.join("last")).unwrap(), "2", "{step}");
        assert_eq!(names(&view.path).len(), 4, "{step}");
        drop(view);
        client.remove("view").unwrap();
        convert(&world, &[]);
        assert_eq!(local(&world, &daemon), [false; 3], "{step}");
        daemon.kill();
    }
}

#[test]
fn a_layer_of_the_existing_tool_converts_with_what_is_made_around_it() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let layers = [Layer::named("low"), Layer::named("high")];
    let chains = ChainId::stack(&layers.map(|layer| layer.diff));
    let (low, high) = (format!("default/1/{}", chains[0]), format!("default/2/{}", chains[1]));
    client.prepare("k", "", &[]).unwrap();
    fs::write(world.content("k").join("a"), "1").unwrap();
    fs::write(world.content("k").join("b"), "1").unwrap();
    client.commit(&low, "k", &[]).unwrap();
    let container = Mounted::new(&world, &client.prepare("k", &low, &[]).unwrap());
    fs::remove_file(container.join("a")).unwrap();
    fs::write(container.join("c"), "2").unwrap();
    drop(container);
    client.commit(&high, "k", &[]).unwrap();
    let key = world.id(&high);
    repository.plain("high", |path| {
        fs::write(path.join(".wh.a"), "").unwrap();
        fs::write(path.join("c"), "2").unwrap();
    });
    repository.index(&layers);
    let done = convert(&world, &[]);
    assert_eq!(done["converted"], serde_json::json!([high]));
    let links: Vec<String> =
        names(&world.snapshots().join(key.to_string())).into_iter().filter(|n| n.starts_with("fs")).collect();
    assert_eq!(links, ["fs", "fs1", "fs2"]);
    let view = Mounted::new(&world, &client.view("view", &high).unwrap());
    assert_eq!(names(&view.path), ["b".into(), "c".into()].into());
    drop(view);
    client.remove("view").unwrap();
    // A kill in the middle of three links.
    assert!(daemon.stop().success());
    let directory = world.snapshots().join(key.to_string());
    fs::remove_file(directory.join("fs1")).unwrap();
    fs::remove_file(directory.join("fs2")).unwrap();
    symlink("/nonexistent", directory.join("fs2")).unwrap();
    let daemon = world.start();
    let view = Mounted::new(&world, &daemon.client().view("view", &high).unwrap());
    assert_eq!(names(&view.path), ["b".into(), "c".into()].into());
}
