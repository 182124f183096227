//! Whoever wants to know is told when a replica serves what was published.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use publisher::cli::Notifications;
use publisher::notify::Notifier;
use publisher::report::Report;
use publisher::stop::Stop;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, file};
use scenarios::repository::{Site, wish};

/// A web server for a directory that can be changed; says what it was asked for.
struct Replica {
    url: String,
    root: Arc<Mutex<PathBuf>>,
    asked: Receiver<String>,
}

impl Replica {
    fn of(root: &Path) -> Replica {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/cvmfs/images.example.org", listener.local_addr().unwrap());
        let root = Arc::new(Mutex::new(root.to_owned()));
        let (send, asked) = channel();
        let served = root.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map(Result::unwrap) {
                let mut reader = BufReader::new(stream);
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                let mut rest = String::new();
                while reader.read_line(&mut rest).unwrap() > 2 {}
                let path = line.split(' ').nth(1).unwrap_or_default();
                let path = path.trim_start_matches("/cvmfs/images.example.org/").to_owned();
                let found = std::fs::read(served.lock().unwrap().join(&path));
                let (status, body) = found.map_or((404, Vec::new()), |body| (200, body));
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = reader.get_mut().write_all(&[head.into_bytes(), body].concat());
                let _ = send.send(path);
            }
        });
        Replica { url, root, asked }
    }

    fn serve(&self, root: &Path) {
        root.clone_into(&mut self.root.lock().unwrap());
    }

    /// Waits until the manifest was asked for.
    fn was_asked(&self) {
        while self.asked.recv().unwrap() != ".cvmfspublished" {}
    }
}

struct World {
    registry: TestRegistry,
    site: Site,
    log: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World { registry: TestRegistry::spawn(), site: Site::new(), log: tempfile::tempdir().unwrap() }
    }

    fn publish(&self, name: &str) -> Report {
        Image::of(&[&[file("f", name)]]).push(&self.registry, "lab/x", name);
        self.site.convert(&[wish(&self.registry, &format!("lab/x:{name}"))])
    }

    fn file(&self) -> PathBuf {
        self.log.path().join("log")
    }

    fn notifier(&self, replicas: &[&Replica], stratum1_timeout: Duration) -> Notifier {
        let stratum1 = replicas.iter().map(|replica| replica.url.parse().unwrap()).collect();
        let options = Notifications { file: Some(self.file()), stratum1, stratum1_timeout, ..Notifications::default() };
        Notifier::start(&options, &Stop::default()).unwrap().unwrap()
    }

    /// What was told about replicas: status, revision, reason.
    fn propagated(&self) -> Vec<(String, String, String)> {
        let text = std::fs::read_to_string(self.file()).unwrap();
        let objects = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let field = |object: &serde_json::Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
        objects
            .filter(|object| object["action"] == "propagated")
            .map(|object| (field(&object, "status"), field(&object, "revision"), field(&object, "error")))
            .collect()
    }
}

#[test]
fn a_replica_that_comes_after_is_told_when_it_has_come() {
    let world = World::new();
    world.publish("1");
    let before = world.site.fork();
    let (late, early) = (Replica::of(&before.storage()), Replica::of(&world.site.storage()));
    let notifier = world.notifier(&[&late, &early], Duration::from_secs(600));
    let report = world.publish("2");
    notifier.published(&world.site.target, &report);
    late.was_asked();
    late.serve(&world.site.storage());
    drop(notifier);
    let expected = ("ok".to_owned(), "2".to_owned(), String::new());
    assert_eq!(world.propagated(), [expected.clone(), expected]);
}

#[test]
fn a_replica_that_does_not_come_is_told_after_a_time_and_one_of_another_is_not_believed() {
    let (world, stranger) = (World::new(), World::new());
    world.publish("1");
    let before = world.site.fork();
    stranger.publish("1");
    stranger.publish("2");
    let (late, other) = (Replica::of(&before.storage()), Replica::of(&stranger.site.storage()));
    let notifier = world.notifier(&[&late, &other], Duration::ZERO);
    let report = world.publish("2");
    notifier.published(&world.site.target, &report);
    drop(notifier);
    let mut told = world.propagated();
    told.sort();
    assert!(told.iter().all(|(status, revision, _)| status == "error" && revision == "2"), "{told:?}");
    assert!(told.iter().any(|(.., why)| why == "it serves revision 1"), "{told:?}");
    assert!(told.iter().any(|(.., why)| why.contains("trusted master keys")), "{told:?}");
}

#[test]
fn nothing_new_is_waited_for_by_nobody() {
    let world = World::new();
    world.publish("1");
    let replica = Replica::of(&world.site.storage());
    let notifier = world.notifier(&[&replica], Duration::from_secs(600));
    notifier.published(&world.site.target, &world.publish("1"));
    drop(notifier);
    assert!(world.propagated().is_empty() && replica.asked.try_recv().is_err());
}
