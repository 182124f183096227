//! What the start of a container sets off, and what a download leaves behind.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};

use image::digest::{ChainId, ImageId};
use image::layout::{IndexKey, Layout, OwnedPath};
use serde_json::{Value, json};

use crate::common::{Client, Layer, PATIENCE, Repository, World, request};
use crate::thin;

const NAME: &str = "images.example.org";

/// A client that answers every announcement, and what it was told.
fn client_of(world: &World, repository: &Repository, answer: &'static str) -> Option<Receiver<Value>> {
    let socket = world.path("client.sock");
    if let Err(error) = xattr::set(&repository.path, "user.control", socket.to_str().unwrap().as_bytes()) {
        println!("skipped: no user attributes below {}: {error}", repository.path.display());
        return None;
    }
    let listener = UnixListener::bind(socket).unwrap();
    let (send, told) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let Some(told) = line.strip_prefix("prefetch ") else {
                writeln!(&stream, r#"{{"error":"unknown request"}}"#).unwrap();
                continue;
            };
            writeln!(&stream, "{answer}").unwrap();
            if send.send(serde_json::from_str(told).unwrap()).is_err() {
                return;
            }
        }
    });
    Some(told)
}

/// Publishes the start-up list of an image; returns where it is.
fn publish_list(repository: &Repository, stack: ChainId) -> String {
    let flat = ImageId::of(stack.to_string().as_bytes());
    let (layout, key) = (Layout::new(), IndexKey::Image(stack));
    repository.link(key, &layout.link(&OwnedPath::Index(key), &OwnedPath::Flat(flat)));
    let list = OwnedPath::FlatStartup(flat);
    repository.write(&list, b"{}");
    format!("/{}", layout.print(&list))
}

/// Makes the snapshots of an image and returns the name of the topmost.
fn pull(client: &mut Client, chains: &[ChainId]) -> String {
    let mut parent = String::new();
    for chain in chains {
        parent = client.lazily("k", &parent, &request(*chain, None)).unwrap().expect("it is published").name;
    }
    parent
}

#[test]
fn a_container_makes_the_client_fetch_the_list_of_its_image_once() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers: Vec<Layer> = (0..4).map(|number| repository.layer(&format!("f{number}"))).collect();
    let (first, second, plain) =
        (repository.index(&layers[..2]), repository.index(&layers[2..3]), repository.index(&layers[3..]));
    let (list, other) = (publish_list(&repository, first[1]), publish_list(&repository, second[0]));
    let Some(told) = client_of(&world, &repository, r#"{"files":3,"bytes":10,"left_out":0}"#) else { return };
    let daemon = world.start();
    let mut client = daemon.client();
    let tops = [&first, &second, &plain].map(|chains| pull(&mut client, chains));
    client.prepare("no list", &tops[2], &[]).unwrap();
    client.view("a look", &tops[0]).unwrap();
    for key in ["one", "two"] {
        client.prepare(key, &tops[0], &[]).unwrap();
    }
    let base = |layer: &Layer| format!("/{}", Layout::new().print(&OwnedPath::LayerContent(layer.digest)));
    let expected = json!({"list": list, "bases": [base(&layers[1]), base(&layers[0])]});
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);
    client.prepare("three", &tops[1], &[]).unwrap();
    let expected = json!({"list": other, "bases": [base(&layers[2])]});
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected, "the second container is none of news");
}

#[test]
fn a_container_of_a_thin_image_makes_the_client_fetch_the_list_of_the_image_that_is_meant() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers: Vec<Layer> = (0..2).map(|number| repository.layer(&format!("f{number}"))).collect();
    let list = publish_list(&repository, repository.index(&layers)[1]);
    let Some(told) = client_of(&world, &repository, r#"{"files":3,"bytes":10,"left_out":0}"#) else { return };
    let daemon = world.start();
    let mut client = daemon.client();
    let all: Vec<(&str, &Layer)> = layers.iter().map(|layer| (NAME, layer)).collect();
    thin::unpack(&mut client, "thin", "", &thin::record(&all)).unwrap();
    client.prepare("one", "thin", &[]).unwrap();
    let base = |layer: &Layer| format!("/{}", Layout::new().print(&OwnedPath::LayerContent(layer.digest)));
    let expected = json!({"list": list, "bases": [base(&layers[1]), base(&layers[0])]});
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), expected);
}

#[test]
fn a_client_that_refuses_or_is_gone_disturbs_no_container() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers: Vec<Layer> = (0..2).map(|number| repository.layer(&format!("f{number}"))).collect();
    let chains = [repository.index(&layers[..1]), repository.index(&layers[1..])];
    chains.iter().for_each(|chains| drop(publish_list(&repository, chains[0])));
    let Some(told) = client_of(&world, &repository, r#"{"error":"nothing is fetched ahead"}"#) else { return };
    let daemon = world.start();
    let mut client = daemon.client();
    let tops = chains.map(|chains| pull(&mut client, &chains));
    client.prepare("one", &tops[0], &[]).unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    fs::remove_file(world.path("client.sock")).unwrap();
    client.prepare("two", &tops[1], &[]).unwrap();
}

#[test]
fn what_was_downloaded_and_why_is_shown() {
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    let absent = Layer::named("absent");
    let chain = ChainId::on(None, absent.diff);
    let labels = [request(chain, None), vec![("containerd.io/snapshot/cri.image-ref", "docker.io/lab/x:1".into())]];
    for key in ["given up", "extract"] {
        assert!(client.lazily(key, "", &labels.concat()).unwrap().is_none());
    }
    client.remove("given up").unwrap();
    fs::write(world.content("extract").join("file"), vec![1; 100_000]).unwrap();
    assert_eq!(daemon.status()["downloads"], json!([]), "it is not there yet");
    client.commit("name", "extract", &[]).unwrap();
    let shown = &daemon.status()["downloads"][0];
    assert_eq!((&shown["image"], &shown["layers"]), (&json!("docker.io/lab/x:1"), &json!(1)));
    assert!(shown["bytes"].as_u64().unwrap() >= 100_000, "{shown}");
    assert!(shown["reason"].as_str().unwrap().contains(&repository.name), "{shown}");
    let metrics = daemon.metrics();
    assert!(metrics.contains("cvmfs_snapshotter_downloaded_bytes_total{reason=\"absent\"} 1"), "{metrics}");
    let text = String::from_utf8(world.run(&["status"]).stdout).unwrap();
    assert!(text.contains("downloaded    docker.io/lab/x:1: 1 layers, 0.1 MB unpacked: "), "{text}");
    // Layers of which nobody was asked for are no downloads.
    client.layer("of a build", "");
    assert_eq!(daemon.status()["downloads"].as_array().unwrap().len(), 1);
}
