//! The file system without a kernel: downloads, failures, trust, updates.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::config::{Config, Flags};
use client::fetch::{Objects, Wait};
use client::fs::{FileSystem, FsError, Lookup};
use client::inode::{Node, Numbers, ROOT};
use client::prefetch::Announcement;
use client::remount::{Outcome, Updater};
use client::revision::{Chain, Repository, RevisionError};
use client::stats::Stats;
use common::listing::expected;
use common::published::{self, Published};
use common::{Fault, Server, World};
use cvmfs::entry::{Chunk, Entry, Flags as EntryFlags};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::object::Compression;
use cvmfs::startup::StartupList;

/// A file system in this process.
struct Client {
    fs: Arc<FileSystem>,
    updater: Updater,
    offline: bool,
    _runtime: tokio::runtime::Runtime,
}

impl Client {
    fn open(world: &World, options: &[&str]) -> Result<Client, RevisionError> {
        Client::with_servers(world, &world.server.repository(), options)
    }

    fn with_servers(world: &World, servers: &str, options: &[&str]) -> Result<Client, RevisionError> {
        let mut flags = Flags {
            server_url: Some(servers.into()),
            public_keys: vec![world.key()],
            cache: Some(world.cache()),
            options: ["CVMFS_BACKOFF_INIT=0", "CVMFS_TIMEOUT=1", "CVMFS_TIMEOUT_DIRECT=1"].map(String::from).into(),
            ..Flags::default()
        };
        flags.options.extend(common::more_options());
        flags.options.extend(options.iter().map(|o| o.to_string()));
        Client::from_flags(&world.fqrn(), &flags)
    }

    fn from_flags(fqrn: &str, flags: &Flags) -> Result<Client, RevisionError> {
        let config = Config::load(fqrn, Path::new("/nonexistent"), flags).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let objects = Arc::new(Objects::new(&config, runtime.handle(), &Arc::new(Stats::default())).unwrap());
        let repository = Repository::new(&config, &objects).unwrap();
        let mounted = repository.mount()?;
        let numbers = Numbers::open(&config.cache.join("inodes/test"), Duration::ZERO).unwrap();
        let fs = Arc::new(FileSystem::new(&config, objects, mounted.revision, numbers, repository.master_keys()));
        let offline = mounted.offline;
        let automatic = config.auto_update;
        let updater = Updater::new(fs.clone(), repository, automatic, None, offline.as_ref(), Box::new(|_| ()));
        Ok(Client { fs, updater, offline: offline.is_some(), _runtime: runtime })
    }

    fn node(&self, path: &str, wait: Wait) -> Result<Arc<Node>, FsError> {
        let mut inode = ROOT;
        let mut found = Err(FsError::NotFound);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Lookup::Found(node) = self.fs.lookup(inode, name.as_bytes(), wait)? else {
                return Err(FsError::NotFound);
            };
            self.fs.remember(node.clone(), Some((inode, name.as_bytes().into())));
            inode = node.inode;
            found = Ok(node);
        }
        found
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, FsError> {
        self.read_inode(self.node(path, Wait::Yes)?.inode)
    }

    fn read_inode(&self, inode: u32) -> Result<Vec<u8>, FsError> {
        let handle = self.fs.open(inode, Wait::Yes)?;
        let (mut content, mut buffer) = (Vec::new(), vec![0; 100_000]);
        loop {
            let count = self.fs.read(handle, content.len() as u64, &mut buffer, Wait::Yes)?;
            content.extend_from_slice(&buffer[..count]);
            if count == 0 {
                self.fs.release(handle);
                return Ok(content);
            }
        }
    }

    fn errno(&self, path: &str) -> i32 {
        self.read(path).map_or_else(|e| e.errno(), |content| panic!("{path} has {} bytes", content.len()))
    }
}

/// Name of a file's object below its bucket.
fn object(fixture: &str, path: &str) -> String {
    expected(fixture)[path.as_bytes()]["object"].as_str().unwrap()[2..].to_owned()
}

const FILE: &str = "/sizes/random-65536";

#[test]
fn an_object_is_downloaded_once_for_many_readers() {
    let world = World::new("basic");
    world.server.fault(&object("basic", FILE), Fault::Delay(Duration::from_millis(500)));
    let client = Client::open(&world, &[]).unwrap();
    let inode = client.node(FILE, Wait::Yes).unwrap().inode;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..16).map(|_| scope.spawn(|| client.read_inode(inode).unwrap().len())).collect();
        readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), 65536));
    });
    assert_eq!(world.server.requests(&object("basic", FILE)), 1);
}

#[test]
fn what_is_not_here_is_said_not_waited_for() {
    let world = World::new("basic");
    let client = Client::open(&world, &[]).unwrap();
    let before = world.server.requests("");
    let inode = client.node(FILE, Wait::No).unwrap().inode;
    assert!(matches!(client.fs.open(inode, Wait::No), Err(FsError::WouldBlock)));
    let many = client.node("/many", Wait::No).unwrap().inode;
    assert!(matches!(client.fs.listing(many, true, Wait::No), Err(FsError::WouldBlock)));
    assert!(matches!(client.fs.lookup(many, b"x", Wait::No), Err(FsError::WouldBlock)));
    assert_eq!(world.server.requests(""), before);
    client.read_inode(inode).unwrap();
    client.fs.listing(many, true, Wait::Yes).unwrap();
    assert!(client.fs.open(inode, Wait::No).is_ok());
    assert!(client.fs.listing(many, true, Wait::No).is_ok());
}

#[test]
fn catalogs_of_announced_directories_are_attached_ahead() {
    let world = World::new("basic");
    let client = Client::open(&world, &[]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), StartupList::default().print()).unwrap();
    let announcement = Announcement {
        file: Some(file.path().display().to_string()),
        bases: ["/many", "/nested/two", "/missing"].map(String::from).into(),
        ..Announcement::default()
    };
    let attached = || client.fs.view().revision.catalogs.count();
    assert_eq!(attached(), 1);
    client.fs.prefetcher().announce(&announcement).unwrap();
    common::wait_for("the catalogs", || attached() > 2);
    let many = client.node("/many", Wait::No).unwrap().inode;
    assert!(client.fs.listing(many, true, Wait::No).is_ok());
}

#[test]
fn many_files_share_few_connections() {
    many_files(&["CVMFS_PREFETCH=no"], 3);
    // One that becomes free while another one is being made leaves one too many.
    many_files(&["CVMFS_PREFETCH=yes"], 2 * 16);
    many_files(&["CVMFS_PARALLEL_DOWNLOADS=4"], 2 * 4);
}

/// Reads many files one after another over this many connections.
fn many_files(options: &[&str], most: usize) {
    let world = World::new("basic");
    let client = Client::open(&world, options).unwrap();
    let directory = client.fs.listing(client.node("/many", Wait::Yes).unwrap().inode, true, Wait::Yes).unwrap();
    for item in directory.items.iter().filter_map(|item| item.node.clone()) {
        client.fs.remember(item.clone(), None);
        client.read_inode(item.inode).unwrap();
    }
    assert!(world.server.requests("") > 20);
    assert!(world.server.connections() <= most, "{} connections, {options:?}", world.server.connections());
}

#[test]
fn wrong_bytes_are_never_shown_and_never_kept() {
    let world = World::new("basic");
    let client = Client::open(&world, &[]).unwrap();
    let name = object("basic", FILE);
    for fault in [Fault::Corrupt, Fault::Cut, Fault::Status(500), Fault::Status(404), Fault::Status(301)] {
        world.server.fault(&name, fault.clone());
        assert_eq!(client.errno(FILE), libc::EIO, "{fault:?}");
        assert!(client.read("/sizes/text-65536").is_ok(), "{fault:?}");
    }
    assert!(world.server.requests_past_caches(&name) >= 1, "corrupt data is asked for past the caches");
    world.server.repair();
    assert_eq!(client.read(FILE).unwrap().len(), 65536);
}

#[test]
fn a_passing_fault_is_not_noticed() {
    let world = World::new("basic");
    let client = Client::open(&world, &["CVMFS_MAX_RETRIES=2"]).unwrap();
    let name = object("basic", FILE);
    for fault in [Fault::Corrupt, Fault::Cut, Fault::Status(429), Fault::Stall] {
        world.server.fault_times(&name, fault.clone(), 1);
        assert_eq!(client.read(FILE).unwrap().len(), 65536, "{fault:?}");
        std::fs::read_dir(world.cache()).unwrap().flatten().filter(|e| e.file_name().len() == 2).for_each(|bucket| {
            for file in std::fs::read_dir(bucket.path()).unwrap().flatten() {
                if file.path().to_string_lossy().ends_with(&name) {
                    std::fs::remove_file(file.path()).unwrap();
                }
            }
        });
    }
    assert!(client.fs.stats().retries.get() >= 4);
}

#[test]
fn another_server_takes_over() {
    let world = World::new("basic");
    let second = Server::start(&world.directory.path().join("srv"));
    let dead = "http://127.0.0.1:1/@fqrn@";
    let servers = format!("{dead};{};{}", world.server.repository(), second.repository());
    let client = Client::with_servers(&world, &servers, &["CVMFS_MAX_RETRIES=0"]).unwrap();
    let name = object("basic", FILE);
    for fault in [Fault::Status(503), Fault::Corrupt, Fault::Cut] {
        world.server.fault(&name, fault);
    }
    assert_eq!(client.read(FILE).unwrap().len(), 65536);
    assert_eq!(second.requests(&name), 1);
    assert!(client.fs.stats().failovers.get() >= 2);
}

#[test]
fn proxies_are_tried_in_groups_and_a_broken_one_is_left() {
    let world = World::new("basic");
    let (broken, good) =
        (Server::start(&world.directory.path().join("srv")), Server::start(&world.directory.path().join("srv")));
    broken.fault("", Fault::ProxyError);
    let proxies = format!("CVMFS_HTTP_PROXY=http://127.0.0.1:1;{};{}", broken.url(), good.url());
    // No server of this name exists, so every byte comes through the proxies.
    let client =
        Client::with_servers(&world, "http://stratum.invalid/@fqrn@", &[&proxies, "CVMFS_MAX_RETRIES=0"]).unwrap();
    assert_eq!(client.read(FILE).unwrap().len(), 65536);
    assert_eq!(broken.requests(""), 1, "left at its first failure");
    assert!(good.requests("") > 3);
}

#[test]
fn a_hanging_server_is_given_up_in_time() {
    let world = World::new("basic");
    let client = Client::open(&world, &["CVMFS_MAX_RETRIES=0"]).unwrap();
    for fault in [Fault::Stall, Fault::Delay(Duration::from_secs(20))] {
        world.server.fault(&object("basic", FILE), fault.clone());
        let started = Instant::now();
        assert_eq!(client.errno(FILE), libc::EIO);
        assert!(started.elapsed() < Duration::from_secs(6), "{fault:?} {:?}", started.elapsed());
    }
}

#[test]
fn a_wrong_master_key_is_refused() {
    let mut world = World::new("basic");
    let fqrn = world.fqrn();
    world.fixture = "chunked".into();
    let key = world.key();
    let flags = Flags {
        server_url: Some(world.server.repository()),
        public_keys: vec![key],
        cache: Some(world.cache()),
        ..Flags::default()
    };
    let config = Config::load(&fqrn, &PathBuf::from("/nonexistent"), &flags).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let objects = Arc::new(Objects::new(&config, runtime.handle(), &Arc::default()).unwrap());
    let error = Repository::new(&config, &objects).unwrap().mount().unwrap_err();
    assert!(error.to_string().contains("signed by none of the 1 trusted master keys"), "{error}");
}

#[test]
fn a_mount_without_servers_shows_what_the_cache_has() {
    let mut world = World::new("basic");
    let client = Client::open(&world, &[]).unwrap();
    client.read(FILE).unwrap();
    client.fs.listing(client.node("/many", Wait::Yes).unwrap().inode, true, Wait::Yes).unwrap();
    drop(client);
    world.server.stop();
    let client = Client::open(&world, &["CVMFS_MAX_RETRIES=0"]).unwrap();
    assert!(client.offline);
    assert_eq!(client.read(FILE).unwrap().len(), 65536);
    assert_eq!(client.errno("/sizes/text-65536"), libc::EIO);
    assert_eq!(client.errno("/sizes/nothing"), libc::ENOENT);
    assert!(client.node("/many", Wait::No).is_ok());
    assert!(matches!(client.updater.check(), Outcome::Failed { revision: 6, .. }));
    assert!(client.updater.offline().is_some());
}

#[test]
fn nothing_in_the_cache_and_no_server_is_an_error() {
    let mut world = World::new("basic");
    world.server.stop();
    let error = Client::open(&world, &["CVMFS_MAX_RETRIES=0"]).err().unwrap();
    assert!(Chain(&error).to_string().contains("cannot download the manifest"), "{}", Chain(&error));
}

#[test]
fn an_older_revision_is_not_mounted_after_a_newer_one() {
    let world = World::new("updates-r4");
    drop(Client::open(&world, &[]).unwrap());
    common::damage("update-older", &world.repository());
    let client = Client::open(&world, &[]).unwrap();
    assert!(client.offline);
    assert_eq!(client.fs.view().revision.number, 4);
}

#[test]
fn a_fixed_root_catalog_is_shown_whatever_is_newest() {
    let world = World::new("updates-r2");
    let root = Client::open(&world, &[]).unwrap().fs.view().revision.root_hash();
    world.advance("updates-r4");
    let client = Client::open(&world, &[&format!("CVMFS_ROOT_HASH={root}")]).unwrap();
    assert_eq!(String::from_utf8(client.read("/rev").unwrap()).unwrap().trim(), "2");
    assert_eq!(client.updater.check(), Outcome::Fixed { revision: 2 });
}

#[test]
fn unchanged_catalogs_are_taken_over_by_a_new_revision() {
    let world = World::new("updates-r2");
    let client = Client::open(&world, &[]).unwrap();
    client.read("/n/a").unwrap();
    let attached = client.fs.view().revision.catalogs.count();
    assert!(attached > 1);
    world.advance("updates-r3");
    assert!(matches!(client.updater.check(), Outcome::Applied { from: 2, revision: 3 }));
    assert_eq!(
        client.fs.view().revision.catalogs.count(),
        attached,
        "the changed catalog is there before anybody asks"
    );
}

#[test]
fn a_damaged_file_in_the_cache_is_fetched_again() {
    let world = World::new("basic");
    let client = Client::open(&world, &[]).unwrap();
    let want = client.read(FILE).unwrap();
    drop(client);
    let buckets = std::fs::read_dir(world.cache()).unwrap().flatten().filter(|e| e.file_name().len() == 2);
    for file in buckets.flat_map(|bucket| std::fs::read_dir(bucket.path()).unwrap().flatten()) {
        let length = file.metadata().unwrap().len();
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(length / 2).unwrap();
    }
    let client = Client::open(&world, &[]).unwrap();
    assert!(!client.offline);
    assert_eq!(client.read(FILE).unwrap(), want);
}

#[test]
fn two_clients_share_a_cache() {
    let world = World::new("basic");
    let one = Client::open(&world, &[]).unwrap();
    one.read(FILE).unwrap();
    let before = world.server.requests(&object("basic", FILE));
    let config = ["CVMFS_QUOTA_LIMIT=4000"];
    // A second list of inode numbers: this one is locked by the first client.
    let flags = Flags {
        server_url: Some(world.server.repository()),
        public_keys: vec![world.key()],
        cache: Some(world.cache()),
        options: config.map(String::from).into(),
        ..Flags::default()
    };
    let config = Config::load(&world.fqrn(), &PathBuf::from("/nonexistent"), &flags).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let objects = Arc::new(Objects::new(&config, runtime.handle(), &Arc::default()).unwrap());
    let repository = Repository::new(&config, &objects).unwrap();
    let numbers = Numbers::open(&world.cache().join("inodes/second"), Duration::ZERO).unwrap();
    let revision = repository.mount().unwrap().revision;
    let two = FileSystem::new(&config, objects, revision, numbers, String::new());
    let Lookup::Found(directory) = two.lookup(ROOT, b"sizes", Wait::No).unwrap() else { panic!("no /sizes") };
    two.remember(directory.clone(), None);
    let Lookup::Found(file) = two.lookup(directory.inode, b"random-65536", Wait::No).unwrap() else {
        panic!("no file")
    };
    two.remember(file.clone(), None);
    assert!(two.open(file.inode, Wait::No).is_ok());
    assert_eq!(world.server.requests(&object("basic", FILE)), before);
}

#[test]
fn a_blacklisted_revision_is_refused() {
    let world = World::new("basic");
    let blacklist = world.directory.path().join("blacklist");
    let option = format!("CVMFS_BLACKLIST={}", blacklist.display());
    std::fs::write(&blacklist, "<basic.fixture.example.org 6\n").unwrap();
    drop(Client::open(&world, &[&option]).unwrap());
    std::fs::write(&blacklist, "<basic.fixture.example.org 7\n").unwrap();
    let error = Client::open(&world, &[&option]).err().unwrap().to_string();
    assert!(error.contains("at least 7"), "{error}");
}

#[test]
fn owners_and_permissions_follow_the_configuration() {
    let world = World::new("updates-r3");
    let map = world.directory.path().join("map");
    std::fs::write(&map, "12 112\n").unwrap();
    let rest = world.directory.path().join("rest");
    std::fs::write(&rest, "0 100\n* 65534\n").unwrap();
    let users = format!("CVMFS_UID_MAP={}", map.display());
    let (other_users, groups) =
        (format!("CVMFS_UID_MAP={}", rest.display()), format!("CVMFS_GID_MAP={}", rest.display()));
    let me = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    for (options, owner, of_root) in [
        (&[][..], (12, 34), (0, 0)),
        (&["CVMFS_CLAIM_OWNERSHIP=yes"], me, me),
        (&[users.as_str()], (112, 34), (0, 0)),
        (&[groups.as_str()], (12, 65534), (0, 100)),
        (&[other_users.as_str()], (65534, 34), (100, 0)),
        (&[users.as_str(), groups.as_str()], (112, 65534), (0, 100)),
        (&["CVMFS_WORLD_READABLE=yes"], (12, 34), (0, 0)),
    ] {
        let client = Client::open(&world, options).unwrap();
        for (path, owner) in [("/d/meta", owner), ("/d", of_root)] {
            let attr = client.fs.attr(&client.node(path, Wait::Yes).unwrap());
            assert_eq!((attr.uid, attr.gid), owner, "{path} with {options:?}");
        }
        let meta = client.fs.attr(&client.node("/d/meta", Wait::Yes).unwrap());
        assert_eq!(meta.mode & 0o7777, 0o644, "{options:?}");
    }
    let world = World::new("updates-r2");
    let client = Client::open(&world, &["CVMFS_WORLD_READABLE=yes"]).unwrap();
    assert_eq!(client.fs.attr(&client.node("/d/meta", Wait::Yes).unwrap()).mode & 0o7777, 0o644);
}

#[test]
fn external_files_come_from_the_external_servers() {
    let mut published = Published::new();
    let content: Vec<u8> = (0..200_000u32).map(|i| (i % 249) as u8).collect();
    let outside = published.directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("a file"), &content).unwrap();
    std::fs::write(outside.join("chunked"), &content).unwrap();
    let hash = |bytes: &[u8]| ContentHash::of(Algorithm::Sha1, bytes);
    let meta = || published::meta(0o644);
    let external = |entry: Entry| Entry { flags: entry.flags.with(EntryFlags::EXTERNAL), ..entry };
    let whole = Entry::file("", meta(), content.len() as u64, hash(&content), Compression::None);
    let pieces = Entry::chunked("", meta(), content.len() as u64, Algorithm::Sha1, Compression::None);
    let (first, second) = content.split_at(120_000);
    let chunks = [
        Chunk { offset: 0, size: 120_000, hash: hash(first) },
        Chunk { offset: 120_000, size: 80_000, hash: hash(second) },
    ];
    published.publish_with_chunks(vec![("/a file", external(whole), &[]), ("/chunked", external(pieces), &chunks)]);
    let (server, elsewhere) = (Server::start(&published.served()), Server::start(&outside));
    let open = |options: &[String]| {
        let flags = Flags {
            server_url: Some(server.repository()),
            public_keys: vec![published.key()],
            cache: Some(published.directory.path().join("cache")),
            options: options.to_vec(),
            ..Flags::default()
        };
        Client::from_flags(published::FQRN, &flags).unwrap()
    };
    let client = open(&[format!("CVMFS_EXTERNAL_URL={}", elsewhere.url())]);
    assert_eq!(client.read("/a file").unwrap(), content);
    assert_eq!(client.read("/chunked").unwrap(), content);
    let inode = client.node("/chunked", Wait::No).unwrap().inode;
    assert_eq!(client.fs.getxattr(inode, b"user.external_file", Wait::No).unwrap(), b"1");
    drop(client);
    std::fs::remove_dir_all(published.directory.path().join("cache")).unwrap();
    let client = open(&[]);
    let error = Chain(&client.read("/a file").unwrap_err()).to_string();
    assert!(error.contains("CVMFS_EXTERNAL_URL is not set"), "{error}");
}

#[test]
fn all_catalogs_can_be_walked_with_the_least_number_attached() {
    let world = World::new("basic");
    let client = Client::open(&world, &["CVMFS_CATALOG_WATERMARK=1"]).unwrap();
    let mut waiting = vec![ROOT];
    let mut seen = 0;
    while let Some(inode) = waiting.pop() {
        for node in client.fs.listing(inode, true, Wait::Yes).unwrap().items.iter().filter_map(|item| item.node.clone())
        {
            client.fs.remember(node.clone(), None);
            seen += 1;
            if node.entry.is_directory() {
                waiting.push(node.inode);
            }
        }
    }
    assert!(seen >= expected("basic").len() - 1, "{seen}");
}
