//! What survives: restarts, damage to the database, other daemons; and how the daemon starts and ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::Info;
use containerd_client::types::Mount;
use image::digest::ChainId;

use crate::common::{BINARY, Client, World, names, request};

const NAME: &str = "images.example.org";

/// Snapshots of every kind: remote and local layers, a view, containers with files, labels.
fn populate(world: &mut World) -> Vec<ChainId> {
    let repository = world.repository(NAME);
    let layers = [repository.layer("base"), repository.layer("top")];
    let chains = repository.index(&layers);
    if !nix::unistd::geteuid().is_root() {
        return chains; // what follows needs 0:0 devices
    }
    let legacy = repository.plain("legacy", |content| fs::write(content.join(".wh.gone"), "").unwrap());
    repository.index(&[layers[0], layers[1], legacy])
}

fn fill(world: &World, client: &mut Client, chains: &[ChainId]) {
    let mut parent = String::new();
    for chain in chains {
        parent = client.lazily("k", &parent, &request(*chain, None)).unwrap().expect("it is published").name;
    }
    client.prepare("key", &parent, &[]).unwrap();
    fs::write(world.content("key").join("file"), vec![1; 50_000]).unwrap();
    client.commit("default/7/local", "key", &[("containerd.io/gc.root", "x"), ("ü\n", "\0")]).unwrap();
    client.prepare("default/8/container", "default/7/local", &[("a", "b")]).unwrap();
    fs::write(world.content("default/8/container").join("mine"), "content").unwrap();
    client.view("default/9/view", &parent).unwrap();
    client.layer("removed", "");
    client.remove("removed").unwrap();
}

/// A snapshot, its mounts, its usage.
type Seen = (Info, Option<Vec<Mount>>, (i64, i64));

/// All that containerd can see.
fn seen(client: &mut Client) -> BTreeMap<String, Seen> {
    let everything = client.everything();
    let detail = |(name, info): (String, Info)| {
        let (mounts, usage) = (client.mounts(&name).ok(), client.usage(&name).unwrap());
        (name, (info, mounts, usage))
    };
    everything.into_iter().map(detail).collect()
}

#[test]
fn a_restart_and_a_kill_change_nothing() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let before = seen(&mut daemon.client());
    assert_eq!(before.len(), chains.len() + 3);
    assert!(daemon.stop().success());
    let daemon = world.start();
    assert_eq!(seen(&mut daemon.client()), before);
    daemon.kill();
    let daemon = world.start();
    assert_eq!(seen(&mut daemon.client()), before);
    assert_eq!(world.directories(), world.rows());
    assert_eq!(fs::read(world.content("default/8/container").join("mine")).unwrap(), b"content");
}

#[test]
fn a_start_needs_no_repository() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let before = daemon.client().everything();
    daemon.kill();
    fs::remove_dir_all(world.path("cvmfs")).unwrap();
    let start = Instant::now();
    let daemon = world.start();
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut client = daemon.client();
    assert_eq!(client.everything(), before);
    // Everything that needs no repository works.
    client.prepare("plain", "", &[]).unwrap();
    client.commit("layer", "plain", &[]).unwrap();
    client.remove("layer").unwrap();
    client.remove("default/8/container").unwrap();
    client.cleanup().unwrap();
}

#[test]
fn links_follow_a_mountpoint_that_was_moved() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let name = daemon.client().list(&["parent==\"\""])[0].name.clone();
    let old = fs::read_link(world.content(&name)).unwrap();
    assert!(daemon.stop().success());
    let file = world.path("config.toml");
    fs::rename(world.path("cvmfs"), world.path("moved")).unwrap();
    let mut command = world.command(&["serve"]);
    let text = fs::read_to_string(&file).unwrap().replace("/cvmfs/", "/moved/");
    fs::write(&file, text).unwrap();
    let daemon = world.start_command(&mut command);
    let new = fs::read_link(world.content(&name)).unwrap();
    assert_ne!(new, old);
    assert!(new.is_dir());
    daemon.client().mounts("default/8/container").unwrap();
}

/// A way to lose a database.
type Damage = fn(&Path);

#[test]
fn a_damaged_database_is_refused_untouched_and_made_anew_on_request() {
    let cases: [(&str, Damage, &str); 6] = [
        (
            "overwritten",
            |file| {
                let mut open = fs::File::options().write(true).open(file).unwrap();
                open.seek(SeekFrom::Start(4096)).unwrap();
                open.write_all(&[0x55; 8192]).unwrap();
            },
            "damaged",
        ),
        ("cut", |file| fs::File::options().write(true).open(file).unwrap().set_len(5000).unwrap(), "damaged"),
        ("empty", |file| fs::write(file, "").unwrap(), "damaged"),
        (
            "no database",
            |file| fs::write(file, "something else entirely, and rather long".repeat(100)).unwrap(),
            "damaged",
        ),
        ("zeros", |file| fs::write(file, vec![0; 40_000]).unwrap(), "damaged"),
        ("missing", |file| fs::remove_file(file).unwrap(), "missing"),
    ];
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let before = seen(&mut daemon.client());
    assert!(daemon.stop().success());
    for (case, damage, word) in cases {
        world.settle();
        damage(&world.database());
        let bytes = fs::read(world.database()).ok();
        let state = crate::common::tree(&world.snapshots());
        let text = world.fails(&["serve"]);
        assert!(text.contains(word) && text.contains("serve --rebuild"), "{case}: {text}");
        assert_eq!(fs::read(world.database()).ok(), bytes, "{case}: nothing was changed");
        assert_eq!(crate::common::tree(&world.snapshots()), state, "{case}");
        let aside = |world: &World| names(&world.root()).into_iter().filter(|n| n.contains("corrupt")).count();
        let earlier = aside(&world);
        let daemon = world.start_with(&["--rebuild"]);
        assert_eq!(seen(&mut daemon.client()), before, "{case}");
        assert_eq!(world.rows(), world.directories(), "{case}");
        assert!(aside(&world) > earlier || bytes.is_none(), "{case}: the old file is kept");
        // Numbers are not used again.
        let mut client = daemon.client();
        client.prepare("new", "", &[]).unwrap();
        assert!(world.id("new") > world.id("default/9/view"), "{case}");
        client.remove("new").unwrap();
        assert!(daemon.stop().success(), "{case}");
        let daemon = world.start();
        assert_eq!(seen(&mut daemon.client()), before, "{case}: the next start");
        assert!(daemon.stop().success());
        // Names of what is set aside have a second's resolution.
        std::thread::sleep(Duration::from_millis(1000));
    }
}

/// A log that is gone takes the last changes with it, and SQLite does not notice.
#[test]
fn files_of_snapshots_that_the_database_forgot_are_not_taken_away() {
    let mut world = World::new();
    let chains = populate(&mut world);
    world.start().kill();
    world.settle();
    let early = fs::read(world.database()).unwrap();
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let before = seen(&mut daemon.client());
    daemon.kill();
    world.settle();
    fs::write(world.database(), early).unwrap();
    let text = world.fails(&["serve"]);
    assert!(text.contains("no rows of 2 snapshots with files") && text.contains("serve --rebuild"), "{text}");
    assert_eq!(world.directories().len(), before.len());
    let daemon = world.start_with(&["--rebuild"]);
    assert_eq!(seen(&mut daemon.client()), before);
}

#[test]
fn a_snapshot_without_a_record_survives_a_rebuild_and_what_comes_after() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    fill(&world, &mut daemon.client(), &chains);
    let lost = world.id("default/8/container");
    assert!(daemon.stop().success());
    fs::write(world.snapshots().join(format!("{lost}/snapshot.json")), "").unwrap();
    fs::remove_file(world.database()).unwrap();
    let daemon = world.start_with(&["--rebuild"]);
    assert_eq!(daemon.client().everything().len(), chains.len() + 2);
    assert!(daemon.stop().success());
    let daemon = world.start();
    daemon.client().cleanup().unwrap();
    let kept: Vec<_> = names(&world.snapshots()).into_iter().filter(|name| name.parse::<i64>().is_err()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(world.snapshots().join(&kept[0]).join("fs/mine")).unwrap(), b"content");
}

#[test]
fn a_newer_database_is_refused() {
    let world = World::new();
    let daemon = world.start();
    daemon.client().layer("base", "");
    assert!(daemon.stop().success());
    let connection = rusqlite::Connection::open(world.database()).unwrap();
    connection.pragma_update(None, "user_version", 7).unwrap();
    drop(connection);
    let text = world.fails(&["serve"]);
    assert!(text.contains("schema 7"), "{text}");
    assert_eq!(world.rows().len(), 1);
}

#[test]
fn two_daemons_don_t_share_a_state_directory_or_a_socket() {
    let world = World::new();
    let daemon = world.start();
    daemon.client().layer("base", "");
    let other = world.path("other/snapshotter.sock");
    // Both wait a while for a daemon that is ending.
    std::thread::scope(|scope| {
        for rebuild in [&[][..], &["--rebuild"]] {
            let arguments = [&["--address", other.to_str().unwrap(), "serve"], rebuild].concat();
            let output = world.command(&arguments).stderr(std::process::Stdio::piped()).spawn().unwrap();
            scope.spawn(move || {
                let output = output.wait_with_output().unwrap();
                let text = String::from_utf8(output.stderr).unwrap();
                assert!(!output.status.success() && text.contains("in use by another process"), "{text}");
            });
        }
    });
    let root = world.path("other-root");
    let text = world.fails(&["--root", root.to_str().unwrap(), "serve"]);
    assert!(text.contains("another process answers"), "{text}");
    assert_eq!(daemon.client().everything().len(), 1, "the first one goes on");
    assert_eq!(daemon.status()["snapshots"]["local"], 1);
}

#[test]
fn a_socket_that_a_killed_daemon_left_is_replaced() {
    let world = World::new();
    world.start().kill();
    assert!(world.address().exists() && world.control().exists());
    let daemon = world.start();
    assert!(daemon.client().is_serving());
}

#[test]
fn a_socket_of_systemd_is_taken_over() {
    let world = World::new();
    fs::create_dir(world.path("r")).unwrap();
    let listener = UnixListener::bind(world.address()).unwrap();
    // A call that comes before the daemon waits for it.
    let early = std::thread::spawn({
        let address = world.address();
        move || Client::connect(&address).unwrap().everything().len()
    });
    for _ in 0..2 {
        let mut command = Command::new("sh");
        let activate = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null";
        let plain = world.command(&["serve"]);
        command.args(["-c", activate, BINARY]).args(plain.get_args());
        command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
        let daemon = world.start_command(&mut command);
        assert!(world.log().contains("activated=true"), "{}", world.log());
        daemon.client().layer(&format!("base {}", daemon.pid()), "");
        assert!(daemon.stop().success());
        assert!(world.address().exists(), "the socket is systemd's");
    }
    assert_eq!(early.join().unwrap(), 0);
}

#[test]
fn an_end_by_signal_is_quick_and_removes_nothing() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&world, &mut client, &chains);
    let state = crate::common::tree(&world.snapshots());
    let trash = world.trash();
    let start = Instant::now();
    assert!(daemon.stop().success());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(crate::common::tree(&world.snapshots()), state);
    assert_eq!(world.trash(), trash);
    assert!(!world.control().exists(), "whoever asks for the status is told at once");
    assert!(Client::connect(&world.address()).is_err());
}

#[test]
fn state_and_sockets_are_for_root_alone() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.layer("base", "");
    client.prepare("key", "base", &[]).unwrap();
    let id = world.id("key").to_string();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    let snapshot = world.snapshots().join(id);
    for (path, expected) in [
        (world.root(), 0o700),
        (world.snapshots(), 0o700),
        (snapshot.clone(), 0o700),
        (snapshot.join("fs"), 0o755),
        (snapshot.join("work"), 0o711),
        (world.path("r"), 0o700),
        (world.address(), 0o600),
        (world.control(), 0o600),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
}

#[test]
fn status_health_and_metrics_say_how_it_is() {
    let mut world = World::new();
    let chains = populate(&mut world);
    let daemon = world.start();
    let mut client = daemon.client();
    fill(&world, &mut client, &chains);
    assert!(client.is_serving());
    let status = daemon.status();
    let counts = serde_json::json!({"active": 1, "views": 1, "remote": chains.len(), "local": 1});
    assert_eq!(status["snapshots"], counts);
    assert_eq!((&status["repositories"][0]["name"], &status["repositories"][0]["down"]), (&NAME.into(), &().into()));
    let output = world.run(&["status"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("{} from repositories, 1 local, 1 active, 1 views", chains.len())), "{text}");
    assert!(text.contains(&format!("repository    {NAME} on")) && text.contains("can be read"), "{text}");
    let metrics = daemon.metrics();
    let remote = format!("snapshots{{kind=\"remote\"}} {}", chains.len());
    for line in [remote.as_str(), "snapshots{kind=\"local\"} 1", "repository_up{repository=\"images.example.org\"} 1"] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    fs::remove_dir_all(world.path("cvmfs")).unwrap();
    assert_eq!(world.run(&["status"]).status.code(), Some(1));
    assert!(daemon.stop().success());
    let text = world.fails(&["status"]);
    assert!(text.contains("is cvmfs-snapshotter running?"), "{text}");
}

#[test]
fn the_service_manager_hears_that_it_is_ready_alive_and_ending() {
    let mut world = World::new();
    world.repository(NAME);
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hear = |wanted: &str| {
        let mut buffer = [0; 1024];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            if std::str::from_utf8(&buffer[..length]).unwrap().lines().any(|line| line == wanted) {
                return;
            }
        }
    };
    let daemon =
        world.start_command(world.command(&["serve"]).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"));
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    assert!(daemon.stop().success());
    hear("STOPPING=1");
}

#[test]
fn each_decision_is_one_line_with_the_same_fields() {
    let mut world = World::with("log_format = \"json\"");
    let repository = world.repository(NAME);
    let chains = repository.index(&[repository.layer("base")]);
    let daemon = world.start();
    let mut client = daemon.client();
    client.lazily("default/1/extract", "", &request(chains[0], None)).unwrap().expect("it is published");
    let absent = ChainId::of(b"absent");
    assert!(client.lazily("default/2/extract", "", &request(absent, None)).unwrap().is_none());
    assert!(daemon.stop().success());
    let log = world.log();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("an object a line"));
    let decisions: Vec<_> =
        lines.map(|line| line["fields"].clone()).filter(|line| line["message"] == "prepare").collect();
    let said: Vec<_> = decisions
        .iter()
        .map(|line| (line["key"].as_str(), line["ref"].as_str(), line["remote-snapshot-prepared"].as_bool()))
        .collect();
    let (chain, absent) = (chains[0].to_string(), absent.to_string());
    assert_eq!(
        said,
        [
            (Some("default/1/extract"), Some(chain.as_str()), Some(true)),
            (Some("default/2/extract"), Some(absent.as_str()), Some(false))
        ]
    );
    assert!(
        decisions.iter().all(|line| line["ms"].is_u64() && !line["reason"].as_str().unwrap_or_default().is_empty())
    );
}
