//! What is fetched ahead: when, once, within bounds, and without anybody noticing when it fails.

mod common;
#[path = "prefetch/needs.rs"]
mod needs;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use client::config::{Config, Flags};
use client::fetch::{Objects, Wait};
use client::fs::{FileSystem, FsError, Lookup};
use client::inode::{Numbers, ROOT};
use client::prefetch::{Announced, Announcement, Summary};
use client::revision::Repository;
use client::stats::Stats;
use common::published::{self, FQRN, Published};
use common::{Fault, Server};
use cvmfs::entry::{Chunk, Entry, FileType, Flags as EntryFlags};
use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs::object::Compression;
use cvmfs::path::RepoPath;
use cvmfs::startup::{StartupList, Touched};
use scripted::{Act, Getter, Object, Scripted};

/// A repository, its server, and file systems in this process.
struct World {
    published: Published,
    server: Server,
}

impl World {
    fn new(files: &[(&str, Vec<u8>)]) -> World {
        let mut published = Published::new();
        let mut entries = Vec::new();
        for (path, content) in files {
            entries.push((*path, published.file(0o644, content)));
        }
        publish(&mut published, entries);
        let server = Server::start(&published.served());
        World { published, server }
    }

    fn open(&self, options: &[&str]) -> Client {
        let directory = self.published.directory.path();
        let mut flags = Flags {
            server_url: Some(self.server.repository()),
            public_keys: vec![self.published.key()],
            cache: Some(directory.join("cache")),
            options: vec![
                "CVMFS_BACKOFF_INIT=0".into(),
                "CVMFS_PREFETCH_LATENCY=0".into(),
                format!("CVMFS_WORKSPACE={}", directory.join("work").display()),
            ],
            ..Flags::default()
        };
        flags.options.extend(options.iter().map(|option| (*option).to_owned()));
        let config = Config::load(FQRN, Path::new("/nonexistent"), &flags).unwrap();
        std::fs::create_dir_all(&config.workspace).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let objects = Arc::new(Objects::new(&config, runtime.handle(), &Arc::new(Stats::default())).unwrap());
        let repository = Repository::new(&config, &objects).unwrap();
        let revision = repository.mount().unwrap().revision;
        let numbers = Numbers::open(&config.workspace.join("numbers"), Duration::ZERO).unwrap();
        let fs = Arc::new(FileSystem::new(&config, objects, revision, numbers, repository.master_keys()));
        Client { fs, _runtime: runtime }
    }

    /// Name of the object of a file with this content below its bucket.
    fn object(content: &[u8]) -> String {
        let path = Object::of(content.to_vec()).id.path();
        path[path.rfind('/').unwrap() + 1..].to_owned()
    }

    fn forget_cache(&self) {
        std::fs::remove_dir_all(self.published.directory.path().join("cache")).unwrap();
    }
}

/// Publishes files together with the directories that they lie in.
fn publish(published: &mut Published, entries: Vec<(&str, Entry)>) {
    let mut directories: Vec<String> = Vec::new();
    for (path, _) in &entries {
        for directory in RepoPath::parse(path).unwrap().parent().unwrap().ancestors().filter(|path| !path.is_root()) {
            if !directories.contains(&directory.to_string()) {
                directories.push(directory.to_string());
            }
        }
    }
    let mut all: Vec<(&str, Entry)> =
        directories.iter().map(|path| (path.as_str(), Entry::directory("", published::meta(0o755)))).collect();
    all.extend(entries);
    published.publish(all);
}

struct Client {
    fs: Arc<FileSystem>,
    _runtime: tokio::runtime::Runtime,
}

impl Client {
    fn inode(&self, path: &str) -> Result<u32, FsError> {
        let mut inode = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Lookup::Found(node) = self.fs.lookup(inode, name.as_bytes(), Wait::Yes)? else {
                return Err(FsError::NotFound);
            };
            self.fs.remember(node.clone(), Some((inode, name.as_bytes().into())));
            inode = node.inode;
        }
        Ok(inode)
    }

    /// Reads a file as a kernel would: first what is here, then what has to be waited for.
    fn read(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(path)?;
        let handle = match self.fs.open(inode, Wait::No) {
            Err(FsError::WouldBlock) => self.fs.open(inode, Wait::For(1))?,
            result => result?,
        };
        let (mut content, mut buffer) = (Vec::new(), vec![0; 100_000]);
        let result = loop {
            match self.fs.read(handle, content.len() as u64, &mut buffer, Wait::For(1)) {
                Ok(0) => break Ok(content),
                Ok(count) => content.extend_from_slice(&buffer[..count]),
                Err(error) => break Err(error),
            }
        };
        self.fs.release(handle);
        result
    }

    /// Lists a directory as a kernel would; names of its files and directories, in the order of the listing.
    fn list(&self, path: &str) -> (Vec<String>, Vec<String>) {
        let inode = self.inode(path).unwrap();
        let listing = self.fs.listing(inode, true, Wait::For(1)).unwrap();
        self.fs.listed(inode);
        let names = |directories: bool| {
            let items = listing.items.iter().filter(|item| item.node.is_some());
            let items = items.filter(|item| (item.kind == FileType::Directory) == directories);
            items.map(|item| format!("{path}/{}", String::from_utf8_lossy(&item.name))).collect()
        };
        (names(false), names(true))
    }

    /// Reads all files below a directory, those of a directory before the directories in it; `seen` after each.
    fn read_through(&self, path: &str, seen: &mut impl FnMut(&str, Vec<u8>)) {
        let (files, directories) = self.list(path);
        for file in files {
            seen(&file, self.read(&file).unwrap());
        }
        directories.iter().for_each(|directory| self.read_through(directory, seen));
    }

    fn announce(&self, list: &StartupList, bases: &[&str]) -> Result<Announced, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), list.print()).unwrap();
        self.fs.prefetcher().announce(&Announcement {
            file: Some(file.path().display().to_string()),
            bases: bases.iter().map(|base| (*base).to_owned()).collect(),
            ..Announcement::default()
        })
    }

    /// State when nothing waits or runs any more.
    fn settled(&self) -> Summary {
        loop {
            let summary = self.fs.prefetcher().summary();
            if (summary.waiting, summary.running) == (0, 0) {
                return summary;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn touched(path: &str) -> Touched {
    Touched { path: RepoPath::parse(path).unwrap(), size: 1, parts: Vec::new() }
}

fn list(paths: impl IntoIterator<Item = impl AsRef<str>>) -> StartupList {
    StartupList { files: paths.into_iter().map(|path| touched(path.as_ref())).collect(), left_out: 0 }
}

/// Content that differs for each number, and does not compress.
fn content(number: usize, size: usize) -> Vec<u8> {
    let mut state = number as u64 * 2 + 1;
    let mut bytes = format!("{number} ").into_bytes();
    while bytes.len() < size {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    bytes
}

/// So many files, each in a directory of its own, so that nothing is guessed.
fn apart(count: usize, size: usize) -> (Vec<String>, World) {
    let paths: Vec<String> = (0..count).map(|number| format!("/{number}/file")).collect();
    let files: Vec<(&str, Vec<u8>)> =
        paths.iter().enumerate().map(|(number, path)| (path.as_str(), content(number, size))).collect();
    let world = World::new(&files);
    (paths, world)
}

/// The same in one directory.
fn together(count: usize, size: usize) -> (Vec<String>, World) {
    let paths: Vec<String> = (0..count).map(|number| format!("/d/{number:04}.x")).collect();
    let files: Vec<(&str, Vec<u8>)> =
        paths.iter().enumerate().map(|(number, path)| (path.as_str(), content(number, size))).collect();
    let world = World::new(&files);
    (paths, world)
}

const OFF: &str = "CVMFS_PREFETCH_LEARN=no";

#[test]
fn a_list_is_fetched_once_and_used() {
    let (paths, world) = apart(60, 2000);
    let client = world.open(&[OFF]);
    // Readers at the same time don't make anything come twice.
    let announced = client.announce(&list(&paths), &[]).unwrap();
    assert_eq!(announced, Announced { files: 60, bytes: 60, left_out: 0 });
    for (number, path) in paths.iter().enumerate().rev().take(20) {
        assert!(client.read(path).unwrap() == content(number, 2000), "{path}");
    }
    let summary = client.settled();
    assert_eq!((summary.failures, summary.left_out), (0, 0));
    for (number, path) in paths.iter().enumerate() {
        assert!(client.read(path).unwrap() == content(number, 2000), "{path}");
        assert_eq!(world.server.requests(&World::object(&content(number, 2000))), 1, "{path}");
    }
    let summary = client.settled();
    assert_eq!(summary.unused_bytes, 0);
    assert!(summary.used == summary.fetched && summary.used >= 40, "{summary:?}");
}

#[test]
fn a_list_is_looked_for_below_each_base_in_turn() {
    let world = World::new(&[
        ("/one/a", content(1, 10)),
        ("/two/a", content(2, 10)),
        ("/two/b", content(3, 10)),
        ("/lists/start.json", list(["/a", "/b", "/missing"]).print().into_bytes()),
    ]);
    let client = world.open(&[OFF]);
    let announcement = Announcement {
        list: Some("/lists/start.json".into()),
        bases: vec!["/nothing".into(), "/one".into(), "/two/".into()],
        ..Announcement::default()
    };
    assert_eq!(client.fs.prefetcher().announce(&announcement).unwrap().files, 3);
    assert_eq!(client.settled().fetched, 2);
    let asked = [1, 2, 3].map(|number| world.server.requests(&World::object(&content(number, 10))));
    assert_eq!(asked, [1, 0, 1]);
    for (list, says) in
        [("/lists/none.json", "no such file"), ("/one/a", "not a start-up list"), ("../x", "not a path")]
    {
        let wrong = Announcement { list: Some(list.into()), ..Announcement::default() };
        let error = client.fs.prefetcher().announce(&wrong).unwrap_err();
        assert!(error.contains(says), "{list}: {error}");
    }
    let error = client.fs.prefetcher().announce(&Announcement::default()).unwrap_err();
    assert!(error.contains("nothing has been learned"), "{error}");
}

#[test]
fn a_reader_overtakes_a_thousand_that_are_fetched_ahead() {
    let (paths, world) = apart(1001, 30);
    let client = world.open(&[OFF]);
    // All but one are never answered.
    let last = content(1000, 30);
    (0..1000).for_each(|n| world.server.fault(&World::object(&content(n, 30)), Fault::Delay(Duration::from_secs(600))));
    client.announce(&list(&paths), &[]).unwrap();
    while client.fs.prefetcher().summary().running < 12 {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(client.read(&paths[1000]).unwrap() == last);
    let summary = client.fs.prefetcher().summary();
    assert!(summary.fetched == 0 && summary.waiting > 900, "{summary:?}");
    client.fs.prefetcher().close();
    assert_eq!(client.fs.prefetcher().summary().waiting, 0);
}

#[test]
fn a_list_keeps_to_its_budget() {
    let (paths, world) = apart(10, 300_000);
    let client = world.open(&[OFF, "CVMFS_PREFETCH_BUDGET=1"]);
    client.announce(&list(&paths), &[]).unwrap();
    let summary = client.settled();
    assert_eq!((summary.fetched, summary.fetched_bytes, summary.left_out), (3, 900_000, 7));
    // What is there already costs nothing.
    client.announce(&list(&paths), &[]).unwrap();
    assert_eq!(client.settled().fetched, 6);
}

#[test]
fn failures_are_nobodys_and_nothing_corrupt_is_kept() {
    let (paths, world) = apart(40, 2000);
    let client = world.open(&[OFF, "CVMFS_MAX_RETRIES=0"]);
    for number in 0..40 {
        let fault = if number % 2 == 0 { Fault::Status(500) } else { Fault::Corrupt };
        world.server.fault(&World::object(&content(number, 2000)), fault);
    }
    client.announce(&list(&paths), &[]).unwrap();
    let summary = client.settled();
    // After some failures in a row it rests, and says why.
    assert!(summary.failures >= 3 && summary.failures < 20 && summary.fetched == 0, "{summary:?}");
    assert_eq!(summary.left_out + summary.failures, 40, "{summary:?}");
    assert!(summary.resting.unwrap().contains("object"));
    assert_eq!(client.fs.stats().io_errors.get(), 0);
    assert!(client.announce(&list(&paths), &[]).is_err());
    // A reader is told about his own file, and gets it as soon as it is right again.
    assert_eq!(client.read(&paths[1]).unwrap_err().errno(), libc::EIO);
    world.server.repair();
    for (number, path) in paths.iter().enumerate() {
        assert!(client.read(path).unwrap() == content(number, 2000), "{path}");
    }
}

#[test]
fn who_joins_a_download_that_fails_makes_his_own() {
    let object = Object::new(1, 30_000);
    let (asked, asks) = mpsc::channel();
    let (answer, answers) = mpsc::channel();
    let mut first = true;
    let server = Scripted::with(move |_| {
        if std::mem::take(&mut first) {
            asked.send(()).unwrap();
            answers.recv().unwrap();
            return Act::Status(500, "");
        }
        Act::Serve
    })
    .having(&object);
    let getter = Getter::new(&server.repository(), "DIRECT", &["CVMFS_TIMEOUT_DIRECT=60"]);
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| getter.objects.open(&object.want(), Wait::Ahead));
        asks.recv().unwrap();
        let reader = scope.spawn(|| getter.gets(&object));
        std::thread::sleep(Duration::from_millis(50));
        answer.send(()).unwrap();
        reader.join().unwrap();
        assert!(ahead.join().unwrap().is_err());
    });
    assert_eq!(server.count(), 2);
    let ledger = getter.objects.ledger();
    assert_eq!((ledger.fetched.objects.get(), ledger.demanded.objects.get()), (0, 1));
}

#[test]
fn hostile_lists_fetch_nothing_that_is_not_there() {
    let mut published = Published::new();
    let file = published.file(0o644, &content(1, 50));
    let link = |target: &str| Entry::symlink("", published::meta(0o777), target);
    let entries = vec![("/d/file", file), ("/d/loop", link("loop")), ("/d/up", link("..")), ("/d/out", link("/etc"))];
    publish(&mut published, entries);
    let server = Server::start(&published.served());
    let world = World { published, server };
    let client = world.open(&[OFF]);
    let before = world.server.requests("");
    let around = ["/d", "/d/loop", "/d/loop/x", "/d/up/d/file", "/d/out/passwd", "/d/file/x", "/none/at/all"];
    let mut hostile = list(around);
    hostile.files.extend((0..45_000).map(|number| touched(&format!("/d/none-{number}"))));
    client.announce(&hostile, &["/", "/d", "/d/loop"]).unwrap();
    let text = r#"{"schema":1,"files":[{"path":"/../../etc/passwd"},{"path":"/d/../d/file"},{"path":"/d/file","size":18446744073709551615,"parts":[[18446744073709551615,18446744073709551615]]}]}"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let announcement = Announcement { file: Some(file.path().display().to_string()), ..Announcement::default() };
    assert_eq!(client.fs.prefetcher().announce(&announcement).unwrap().left_out, 2);
    let summary = client.settled();
    assert_eq!((summary.fetched, summary.failures), (1, 0), "{summary:?}");
    assert_eq!(world.server.requests(""), before + 1);
}

#[test]
fn bundles_are_fetched_and_do_not_run_in_circles() {
    let bundle = |dependencies: &str| {
        format!(r#"{{"name":"CVMFS_BUNDLE","version":"1.0.0","encoding":"UTF-8","dependencies":[{dependencies}]}}"#)
    };
    let files = vec![
        ("/a/run", content(1, 50)),
        ("/a/.cvmfsbundle-run", bundle(r#""/b/lib","/b/.cvmfsbundle-lib","beside","/../x""#).into_bytes()),
        ("/a/beside", content(2, 50)),
        ("/b/lib", content(3, 50)),
        ("/b/.cvmfsbundle-lib", bundle(r#""/a/run","/c/more""#).into_bytes()),
        ("/c/more", content(4, 50)),
        ("/e/bad", content(5, 50)),
        ("/e/.cvmfsbundle-bad", b"#!/bin/sh\nrm -rf /".to_vec()),
    ];
    let world = World::new(&files);
    let asked = || [1, 2, 3, 4].map(|number| world.server.requests(&World::object(&content(number, 50))));
    let client = world.open(&[OFF, "CVMFS_PREFETCH_FILEBUNDLES=no"]);
    client.read("/a/run").unwrap();
    client.settled();
    assert_eq!(asked(), [1, 0, 0, 0]);
    drop(client);
    world.forget_cache();
    let client = world.open(&[OFF]);
    client.read("/a/run").unwrap();
    client.settled();
    assert_eq!(asked(), [2, 1, 1, 0]);
    // The bundle of what was fetched ahead counts when somebody opens that.
    client.read("/b/lib").unwrap();
    client.settled();
    assert_eq!(asked(), [2, 1, 1, 1]);
    client.read("/e/bad").unwrap();
    let summary = client.settled();
    assert_eq!((summary.failures, summary.left_out), (0, 0));
}

#[test]
fn a_directory_that_is_read_through_is_fetched_ahead_with_bounded_waste() {
    const FILES: usize = 80;
    const SIZE: usize = 20_000;
    for (waste, read) in [(0, 3), (0, 30), (1, 60)] {
        let (paths, world) = together(FILES, SIZE);
        let client = world.open(&[OFF, &format!("CVMFS_PREFETCH_WASTE={waste}")]);
        for (number, path) in paths.iter().enumerate().take(read) {
            assert!(client.read(path).unwrap() == content(number, SIZE));
            let summary = client.settled();
            let bound = (waste << 20) + (number as u64 + 1) * SIZE as u64;
            assert!(summary.unused_guessed_bytes <= bound, "{waste} MiB, {number}: {summary:?}");
        }
        let summary = client.settled();
        assert!(summary.used >= read as u64 / 2, "{summary:?}");
        assert_eq!(summary.used * SIZE as u64, summary.used_bytes);
        let asked = (0..FILES).map(|number| world.server.requests(&World::object(&content(number, SIZE))));
        let asked: usize = asked.inspect(|requests| assert!(*requests <= 1)).sum();
        assert!(asked as u64 >= summary.fetched && asked <= FILES);
    }
    // One file here and there says nothing.
    let (paths, world) = apart(30, 100);
    let client = world.open(&[OFF]);
    paths.iter().for_each(|path| drop(client.read(path).unwrap()));
    assert_eq!(client.settled().fetched, 0);
}

/// Files of a kind of their own each, two in each of many directories, so that no neighbour tells of another.
fn scattered(directories: usize, size: usize) -> (Vec<String>, World) {
    let place = |number: usize| format!("/t/{:02}/{:02}/{}.{number}", number / 20, number / 2 % 10, number % 2);
    let paths: Vec<String> = (0..directories * 2).map(place).collect();
    let files: Vec<(&str, Vec<u8>)> =
        paths.iter().enumerate().map(|(number, path)| (path.as_str(), content(number, size))).collect();
    let world = World::new(&files);
    (paths, world)
}

#[test]
fn a_tree_that_is_read_through_is_fetched_ahead_with_bounded_waste() {
    const SIZE: usize = 20_000;
    let (paths, world) = scattered(100, SIZE);
    // From far away and from nearby, where fewer are fetched at a time.
    for (latency, waste, most) in [(0, 0, 100), (0, 1, 180), (1000, 0, 100), (1000, 1, 180)] {
        let asked = |number: usize| world.server.requests(&World::object(&content(number, SIZE)));
        let before: usize = (0..paths.len()).map(asked).sum();
        let (latency, limit) = (format!("CVMFS_PREFETCH_LATENCY={latency}"), format!("CVMFS_PREFETCH_WASTE={waste}"));
        let client = world.open(&[OFF, &latency, &limit]);
        let mut read = 0;
        client.read_through("/t", &mut |path, found| {
            let number: usize = path.rsplit('.').next().unwrap().parse().unwrap();
            assert!(found == content(number, SIZE), "{path}");
            read += 1;
            let summary = client.settled();
            let bound = (waste << 20) + read * SIZE as u64;
            assert!(summary.unused_guessed_bytes <= bound, "{waste} MiB, {read}: {summary:?}");
        });
        let summary = client.settled();
        assert_eq!(read as usize, paths.len());
        assert!(summary.used > most, "{waste} MiB: {summary:?}");
        assert_eq!((summary.unused_bytes, summary.failures), (0, 0));
        // Each came once.
        assert_eq!((0..paths.len()).map(asked).sum::<usize>(), before + paths.len());
        drop(client);
        world.forget_cache();
    }
}

#[test]
fn who_leaves_a_tree_half_read_has_fetched_little_more() {
    const SIZE: usize = 20_000;
    let (paths, world) = scattered(100, SIZE);
    let client = world.open(&[OFF]);
    let (_, outer) = client.list("/t");
    let mut read = 0;
    client.read_through(&outer[0], &mut |_, _| {
        read += 1;
        client.settled();
    });
    let summary = client.settled();
    assert_eq!(read, 20);
    // A window, which has not grown beyond twice what was read.
    assert!(summary.fetched > 15 && summary.fetched <= 60, "{summary:?}");
    // Neither who reads without a listing, nor who picks, has more of it fetched.
    let picked: Vec<&String> = paths.iter().rev().step_by(5).collect();
    picked.iter().for_each(|path| drop(client.read(path).unwrap()));
    assert_eq!(client.settled().fetched, summary.fetched);
    let (_, outer) = client.list("/t");
    for directory in outer.iter().skip(3).step_by(2) {
        let (_, inner) = client.list(directory);
        let (files, _) = client.list(&inner[7]);
        client.read(&files[1]).unwrap();
    }
    assert_eq!(client.settled().fetched, summary.fetched);
}

#[test]
fn chunks_of_a_file_that_is_read_in_order_are_fetched_ahead() {
    const SIZE: usize = 70_000;
    let mut published = Published::new();
    let mut chunks = Vec::new();
    for number in 0..20 {
        let entry = published.file(0o644, &content(number, SIZE));
        let hash = entry.content.unwrap();
        // Chunks have a suffix of their own.
        let place = |object: cvmfs::hash::ObjectId| published.served().join(FQRN).join(object.path());
        std::fs::copy(place(hash.object(ObjectKind::File)), place(hash.object(ObjectKind::Chunk))).unwrap();
        chunks.push(Chunk { offset: (number * SIZE) as u64, size: SIZE as u64, hash });
    }
    let meta = published::meta(0o644);
    let mut entry = Entry::file("", meta, (20 * SIZE) as u64, ContentHash::of(Algorithm::Sha1, b""), Compression::Zlib);
    entry.flags = entry.flags.with(EntryFlags::CHUNKED);
    entry.content = None;
    published.publish_with_chunks(vec![("/big", entry, &chunks)]);
    let server = Server::start(&published.served());
    let world = World { published, server };
    let whole: Vec<u8> = (0..20).flat_map(|number| content(number, SIZE)).collect();
    let asked =
        || chunks.iter().map(|c| world.server.requests(&c.hash.object(ObjectKind::Chunk).path()[8..])).sum::<usize>();

    let client = world.open(&[OFF]);
    let handle = client.fs.open(client.inode("/big").unwrap(), Wait::For(1)).unwrap();
    let mut read = vec![0; whole.len()];
    for piece in 0..whole.len() / 35_000 {
        let at = piece * 35_000;
        client.fs.read(handle, at as u64, &mut read[at..at + 35_000], Wait::For(1)).unwrap();
        client.settled();
    }
    assert!(read == whole);
    let summary = client.settled();
    // All but the first were here before they were asked for.
    assert_eq!((asked(), summary.fetched, summary.unused_bytes), (20, 19, 0));
    drop(client);

    // Parts of a list are offsets: those that a chunk has are fetched, in their order.
    world.forget_cache();
    let client = world.open(&[OFF]);
    let parts = vec![(SIZE as u64 * 5 + 1, 1), (0, SIZE as u64), (10, 20)];
    let file = Touched { path: RepoPath::parse("/big").unwrap(), size: 0, parts };
    client.announce(&StartupList { files: vec![file], left_out: 0 }, &[]).unwrap();
    assert_eq!((client.settled().fetched, asked()), (2, 22));
}

#[test]
fn what_a_start_has_touched_is_fetched_at_the_next() {
    let (paths, world) = apart(30, 500);
    let client = world.open(&[]);
    paths.iter().take(20).for_each(|path| drop(client.read(path).unwrap()));
    assert_eq!(client.settled().fetched, 0);
    client.fs.prefetcher().close();
    drop(client);
    world.forget_cache();
    let client = world.open(&[]);
    client.read(&paths[0]).unwrap();
    let summary = client.settled();
    assert_eq!((summary.fetched, summary.unused_bytes), (19, 19 * 500), "{summary:?}");
    paths.iter().take(20).for_each(|path| drop(client.read(path).unwrap()));
    assert_eq!(client.settled().unused_bytes, 0);
    drop(client);
    // Told not to, it neither learns nor uses what was learned.
    world.forget_cache();
    let client = world.open(&[OFF]);
    client.read(&paths[0]).unwrap();
    assert_eq!(client.settled().fetched, 0);
}

#[test]
fn a_record_is_a_list_of_what_was_opened() {
    let (paths, world) = apart(5, 100);
    let client = world.open(&["CVMFS_PREFETCH=no"]);
    let prefetcher = client.fs.prefetcher();
    assert!(prefetcher.recorded(&RepoPath::ROOT).is_none());
    client.read(&paths[4]).unwrap();
    prefetcher.record();
    for number in [3, 1, 3, 4] {
        client.read(&paths[number]).unwrap();
    }
    let recorded = prefetcher.recorded(&RepoPath::ROOT).unwrap();
    let shown: Vec<_> = recorded.files.iter().map(|file| (file.path.to_string(), file.size)).collect();
    assert_eq!(shown, [("/3/file".into(), 100), ("/1/file".into(), 100), ("/4/file".into(), 100)]);
    assert!(prefetcher.recorded(&RepoPath::ROOT).is_none());
    prefetcher.record();
    client.read(&paths[2]).unwrap();
    assert_eq!(prefetcher.recorded(&RepoPath::parse("/2").unwrap()).unwrap(), {
        let file = Touched { path: RepoPath::parse("/file").unwrap(), size: 100, parts: vec![] };
        StartupList { files: vec![file], left_out: 0 }
    });
}

#[test]
fn nothing_is_fetched_ahead_when_it_is_switched_off() {
    let (paths, world) = together(50, 100);
    let client = world.open(&["CVMFS_PREFETCH=no"]);
    assert!(client.announce(&list(&paths), &[]).unwrap_err().contains("CVMFS_PREFETCH=no"));
    paths.iter().take(30).for_each(|path| drop(client.read(path).unwrap()));
    let summary = client.settled();
    assert!(!summary.enabled && summary.fetched == 0);
    let asked: usize = (0..50).map(|number| world.server.requests(&World::object(&content(number, 100)))).sum();
    assert_eq!(asked, 30);
}

#[test]
fn no_more_requests_run_at_once_than_allowed() {
    for (allowed, ahead) in [(1, 1), (4, 3), (16, 12)] {
        let objects: Vec<Object> = (0..40).map(|seed| Object::new(seed, 100)).collect();
        let server = objects.iter().fold(Scripted::new(Act::ServeAfter(Duration::from_millis(10))), Scripted::having);
        let getter = Getter::new(&server.repository(), "DIRECT", &[&format!("CVMFS_PARALLEL_DOWNLOADS={allowed}")]);
        std::thread::scope(|scope| {
            objects
                .iter()
                .for_each(|object| drop(scope.spawn(|| getter.objects.open(&object.want(), Wait::Ahead).unwrap())));
        });
        assert!(server.busiest() <= ahead, "{} at once, of {ahead}", server.busiest());
        assert_eq!(server.count(), 40);
    }
}
