//! Which revision is shown when servers disagree, lie, or are gone: manifest, whitelist, certificate and root
//! catalog from real sockets.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::config::{Config, Flags};
use client::fetch::Objects;
use client::revision::{Chain, Mounted, Repository, RevisionError};
use client::stats::Stats;
use common::{Fault, Server, World};

struct Client {
    repository: Repository,
    stats: Arc<Stats>,
    _runtime: tokio::runtime::Runtime,
}

/// A client with the cache of `world`.
fn client(world: &World, servers: &str, options: &[&str]) -> Client {
    let quick = ["CVMFS_TIMEOUT_DIRECT=1", "CVMFS_BACKOFF_INIT=0", "CVMFS_MAX_RETRIES=0"];
    let flags = Flags {
        server_url: Some(servers.into()),
        public_keys: vec![world.key()],
        cache: Some(world.cache()),
        options: quick.iter().chain(options).map(|option| (*option).to_owned()).collect(),
        ..Flags::default()
    };
    let config = Config::load(&world.fqrn(), Path::new("/nonexistent"), &flags).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stats = Arc::new(Stats::default());
    let objects = Arc::new(Objects::new(&config, runtime.handle(), &stats).unwrap());
    Client { repository: Repository::new(&config, &objects).unwrap(), stats, _runtime: runtime }
}

fn mount(world: &World, servers: &str) -> Result<Mounted, RevisionError> {
    client(world, servers, &[]).repository.mount()
}

const MANIFEST: &str = "/.cvmfspublished";

/// The repository at its second and at its third revision, on a server each.
fn old_and_new() -> (World, World) {
    (World::new("updates-r2"), World::new("updates-r3"))
}

#[test]
fn a_server_with_an_older_revision_is_passed_over_once_the_newer_one_is_known() {
    let (old, new) = old_and_new();
    let both = format!("{};{}", old.server.repository(), new.server.repository());
    // Nothing is known: the first server is believed.
    assert_eq!(mount(&old, &both).unwrap().revision.number, 2);
    // The newer one was seen: the older one is not shown again, another server may have the newer one.
    let world = &new;
    assert_eq!(mount(world, &new.server.repository()).unwrap().revision.number, 3);
    let mounted = mount(world, &both).unwrap();
    assert!(mounted.revision.number == 3 && mounted.offline.is_none(), "{:?}", mounted.offline);
    // Without such a server it is shown from the cache.
    let mounted = mount(world, &old.server.repository()).unwrap();
    assert_eq!(mounted.revision.number, 3);
    let said = format!("{:#}", Chain(&mounted.offline.unwrap()));
    assert!(said.contains("offers revision 2") && said.contains("outdated"), "{said}");
}

#[test]
fn an_update_comes_from_the_server_that_has_it() {
    let (old, new) = old_and_new();
    let (mut first, second) = (Server::start(&old.directory.path().join("srv")), &new.server);
    let client = client(&old, &format!("{};{}", first.repository(), second.repository()), &[]);
    let mounted = client.repository.mount().unwrap().revision;
    assert_eq!(mounted.number, 2);
    assert!(client.repository.newer(&mounted).unwrap().is_none());
    // The server that lags behind dies; the next one has the third revision.
    first.stop();
    let newer = client.repository.newer(&mounted).unwrap().unwrap();
    assert_eq!((newer.number, client.stats.failovers.get()), (3, 1));
    assert!(client.repository.newer(&newer).unwrap().is_none());
}

#[test]
fn a_mount_is_not_disturbed_by_a_server_that_fell_behind() {
    let (old, new) = old_and_new();
    let client = client(&new, &format!("{};{}", new.server.repository(), old.server.repository()), &[]);
    let mounted = client.repository.mount().unwrap().revision;
    // The first server has trouble for one request, then the second one is used, which lags behind.
    new.server.fault_times(MANIFEST, Fault::Status(503), 1);
    let requests = new.server.requests(MANIFEST);
    assert!(client.repository.newer(&mounted).unwrap().is_none());
    // Asked, then the other one, then this one again: its answer counts.
    assert_eq!((new.server.requests(MANIFEST) - requests, old.server.requests(MANIFEST)), (2, 1));
}

#[test]
fn whatever_is_wrong_with_the_first_server_the_second_one_is_asked() {
    let world = World::new("updates-r3");
    let good = Server::start(&world.directory.path().join("srv"));
    for (name, file, fault, reason) in [
        ("no manifest", MANIFEST, Fault::Status(404), "404"),
        ("server error", MANIFEST, Fault::Status(500), "500"),
        ("truncated manifest", MANIFEST, Fault::Cut, "end of file before message length reached"),
        ("manifest that never comes", MANIFEST, Fault::Stall, "nothing more comes for 1s"),
        ("damaged manifest", MANIFEST, Fault::Corrupt, "manifest"),
        ("no whitelist", "/.cvmfswhitelist", Fault::Status(404), "404"),
        ("damaged whitelist", "/.cvmfswhitelist", Fault::Corrupt, "whitelist"),
        ("damaged certificate", "X", Fault::Corrupt, "certificate"),
        ("truncated certificate", "X", Fault::Cut, "end of file before message length reached"),
        ("no certificate", "X", Fault::Status(404), "404"),
        ("damaged root catalog", "C", Fault::Corrupt, "corrupt"),
        ("truncated root catalog", "C", Fault::Cut, "end of file before message length reached"),
        ("root catalog that never comes", "C", Fault::Stall, "nothing more comes for 1s"),
        ("no root catalog", "C", Fault::Status(404), "404"),
    ] {
        world.server.repair();
        world.server.fault(file, fault);
        let _ = std::fs::remove_dir_all(world.cache());
        // Alone, with nothing in the cache, there is nothing to show, and the reason is told.
        let said = format!("{:#}", Chain(&mount(&world, &world.server.repository()).err().unwrap()));
        assert!(said.contains(reason), "{name}: {said}");
        let asked = world.server.requests(file);
        let mounted = mount(&world, &format!("{};{}", world.server.repository(), good.repository()));
        assert_eq!(mounted.unwrap_or_else(|e| panic!("{name}: {:#}", Chain(&e))).revision.number, 3, "{name}");
        assert!(world.server.requests(file) - asked <= 2, "{name}: {} requests", world.server.requests(file));
    }
}

#[test]
fn a_hanging_server_holds_a_mount_up_no_longer_than_its_timeout() {
    let world = World::new("updates-r3");
    let good = Server::start(&world.directory.path().join("srv"));
    world.server.fault("", Fault::Delay(Duration::from_secs(60)));
    let started = std::time::Instant::now();
    mount(&world, &format!("{};{}", world.server.repository(), good.repository())).unwrap();
    // Once for the first request; the others go to the next server at once.
    let seconds = started.elapsed().as_secs_f64();
    assert!((1.0..6.0).contains(&seconds), "{seconds} s");
    assert_eq!(world.server.requests(""), 1);
}
