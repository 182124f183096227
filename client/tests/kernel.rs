//! What the kernel keeps, what it is told to forget, and what it still asks for.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use client::remount::Outcome;
use common::listing::{actual, difference, expected};
use common::published::{self, FQRN, Published, meta};
use common::{Mount, Server, World, client, has_fuse, read};
use cvmfs::entry::Entry;

struct Live {
    published: Published,
    mount: Mount,
    server: Server,
}

/// A repository of our own, mounted.
fn live(entries: impl FnOnce(&mut Published) -> Vec<(&'static str, Entry)>, options: &[&str]) -> Live {
    let mut published = Published::new();
    let entries = entries(&mut published);
    published.publish(entries);
    let server = Server::start(&published.served());
    let path = published.directory.path().join("mnt");
    std::fs::create_dir(&path).unwrap();
    let mut command = client();
    command.args(["mount", FQRN]).arg(&path).args(["--config-dir", "/nonexistent"]);
    command.args(["--server-url", &server.repository(), "-o", "CVMFS_MAX_RETRIES=0"]);
    command.args(options.iter().flat_map(|option| ["-o", option]));
    command.arg("--public-key").arg(published.key()).arg("--cache").arg(published.directory.path().join("cache"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Live { published, mount: Mount { path }, server }
}

impl Live {
    fn publish(&mut self, entries: Vec<(&str, Entry)>) {
        self.published.publish(entries);
        let outcome = self.mount.remount();
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
    }

    /// Requests of the kernel since the status before, by kind; those that it makes whenever it likes left out.
    fn requests(&self, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let mut made = self.mount.status().requests;
        made.iter_mut().for_each(|(kind, count)| *count -= before.get(kind).copied().unwrap_or(0));
        made.retain(|kind, count| *count > 0 && kind != "forget");
        made
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn directory() -> Entry {
    Entry::directory("", meta(0o755))
}

/// Cached objects of at least this size.
fn objects(cache: &Path, size: u64) -> Vec<PathBuf> {
    let buckets = std::fs::read_dir(cache).unwrap().flatten().filter(|e| e.file_name().len() == 2);
    let files = buckets.flat_map(|bucket| std::fs::read_dir(bucket.path()).unwrap().flatten());
    files.filter(|file| file.metadata().unwrap().len() == size).map(|file| file.path()).collect()
}

#[test]
fn what_is_published_later_is_found_although_it_was_asked_for_before() {
    if !has_fuse() {
        return;
    }
    let mut live = live(
        |p| {
            let file = p.file(0o644, b"old");
            vec![("/layers", directory()), ("/layers/a", file.clone()), ("/quiet", directory()), ("/quiet/a", file)]
        },
        &[],
    );
    let at = |live: &Live, path: &str| live.mount.join(path);
    // The kernel is told that there is no such name, and keeps that and both listings.
    for _ in 0..2 {
        assert_eq!(read(&at(&live, "layers/b")), Err(libc::ENOENT));
        assert_eq!((names(&at(&live, "layers")), names(&at(&live, "quiet"))), (vec!["a".into()], vec!["a".into()]));
    }
    let before = live.mount.status().requests;
    assert_eq!(read(&at(&live, "layers/b")), Err(libc::ENOENT));
    names(&at(&live, "layers"));
    assert_eq!(live.requests(&before), BTreeMap::new(), "answered by the kernel");

    let file = live.published.file(0o644, b"new");
    // A name that was asked for, and one that was not: nothing but the listing knows that it is missing.
    live.publish(vec![("/layers/b", file.clone()), ("/quiet/b", file)]);
    assert_eq!(read(&at(&live, "layers/b")).unwrap(), b"new");
    assert_eq!(names(&at(&live, "layers")), ["a", "b"]);
    assert_eq!(names(&at(&live, "quiet")), ["a", "b"]);
}

#[test]
fn a_moved_tag_is_seen_with_the_next_revision() {
    if !has_fuse() {
        return;
    }
    let mut live = live(
        |p| {
            let (one, two) = (p.file(0o644, b"one"), p.file(0o644, b"two"));
            let tag = Entry::symlink("", meta(0o777), "flat/1");
            vec![("/flat", directory()), ("/flat/1", one), ("/flat/2", two), ("/latest", tag)]
        },
        &[],
    );
    let tag = live.mount.join("latest");
    for _ in 0..2 {
        assert_eq!((std::fs::read_link(&tag).unwrap(), read(&tag).unwrap()), ("flat/1".into(), b"one".to_vec()));
    }
    live.publish(vec![("/latest", Entry::symlink("", meta(0o777), "flat/2"))]);
    assert_eq!((std::fs::read_link(&tag).unwrap(), read(&tag).unwrap()), ("flat/2".into(), b"two".to_vec()));
    // And back: the link it was is another inode than the one it is.
    live.publish(vec![("/latest", Entry::symlink("", meta(0o777), "flat/1"))]);
    assert_eq!((std::fs::read_link(&tag).unwrap(), read(&tag).unwrap()), ("flat/1".into(), b"one".to_vec()));
}

#[test]
fn a_tree_that_is_removed_under_the_mount_is_gone_and_what_is_open_goes_on() {
    if !has_fuse() {
        return;
    }
    let content = vec![b'x'; 300_000];
    let mut live = live(
        |p| {
            let file = p.file(0o644, &vec![b'x'; 300_000]);
            vec![("/layers", directory()), ("/layers/a", directory()), ("/layers/a/file", file)]
        },
        &[],
    );
    let file = live.mount.join("layers/a/file");
    assert_eq!(read(&file).unwrap(), content);
    let open = std::fs::File::open(&file).unwrap();
    let inside = std::fs::File::open(live.mount.join("layers/a")).unwrap();
    live.published.remove("/layers/a");
    assert!(matches!(live.mount.remount(), Outcome::Applied { .. }));
    assert_eq!(read(&file), Err(libc::ENOENT));
    assert_eq!(names(&live.mount.join("layers")), Vec::<String>::new());
    let mut bytes = vec![0; content.len()];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut bytes, 0).unwrap();
    assert!(bytes == content);
    drop((open, inside));
}

#[test]
fn a_warm_start_asks_for_nothing() {
    if !has_fuse() {
        return;
    }
    let live = live(
        |p| {
            let file = p.file(0o755, &vec![b'#'; 200_000]);
            let link = Entry::symlink("", meta(0o777), "file");
            vec![("/d", directory()), ("/d/e", directory()), ("/d/e/file", file), ("/d/e/link", link)]
        },
        &[],
    );
    let start = || {
        assert_eq!(read(&live.mount.join("d/e/link")).unwrap().len(), 200_000);
        assert_eq!(read(&live.mount.join("d/e/missing")), Err(libc::ENOENT));
        assert_eq!(names(&live.mount.join("d")), ["e"]);
        assert!(std::fs::metadata(live.mount.join("d/e/file")).unwrap().is_file());
    };
    start();
    start();
    let before = live.mount.status().requests;
    (0..10).for_each(|_| start());
    assert_eq!(live.requests(&before), BTreeMap::new());
    // Without it being told, it would have to ask again after a while; it is told, so nothing is left to time.
    assert!(before.values().sum::<u64>() > 5, "{before:?}");
}

#[test]
fn a_mount_without_attributes_is_asked_for_none() {
    if !has_fuse() {
        return;
    }
    let live = live(
        |p| vec![("/file", published::with_xattrs(p.file(0o644, b"x"), &[("user.name", b"value")]))],
        &["CVMFS_XATTRS=no"],
    );
    for _ in 0..10 {
        let error = xattr::get(live.mount.join("file"), "user.name").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    }
    assert_eq!(live.mount.status().requests["getxattr"], 1);
    let probed = client().arg("probe").arg(&live.mount.path).output().unwrap();
    assert!(probed.status.success(), "{probed:?}");
}

#[test]
fn an_object_that_is_evicted_while_its_file_is_open_is_fetched_again() {
    if !has_fuse() {
        return;
    }
    let live = live(|p| vec![("/file", p.file(0o644, &vec![b'x'; 300_001]))], &["CVMFS_PREFETCH=no"]);
    let file = live.mount.join("file");
    let open = std::fs::File::open(&file).unwrap();
    let cached = || objects(&live.published.directory.path().join("cache"), 300_001);
    let mut byte = [0];
    let read_at = |at| std::os::unix::fs::FileExt::read_exact_at(&open, &mut [0], at);
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut byte, 0).unwrap();
    assert_eq!((byte, cached().len()), ([b'x'], 1));
    // What the kernel has of it goes with the record, as does what the client has open.
    std::fs::remove_file(&cached()[0]).unwrap();
    let begin = || client().args(["record", "--start"]).arg(&live.mount.path).output().unwrap();
    assert!(begin().status.success());
    read_at(0).unwrap();
    assert_eq!(cached().len(), 1, "it is back");
    // One that is cut short in the cache is not shown, and without servers it is an error and not wrong bytes.
    std::fs::File::options().write(true).open(&cached()[0]).unwrap().set_len(1000).unwrap();
    live.server.fault("", common::Fault::Status(404));
    assert!(begin().status.success());
    assert_eq!(read_at(0).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_record_has_what_the_kernel_had_pages_of() {
    if !has_fuse() {
        return;
    }
    let live =
        live(|p| vec![("/a", p.file(0o644, b"touched")), ("/b", p.file(0o644, b"touched before the record"))], &[]);
    for name in ["a", "b"] {
        read(&live.mount.join(name)).unwrap();
    }
    let run = |arguments: &[&str]| client().args(arguments).arg(&live.mount.path).output().unwrap();
    assert!(run(&["record", "--start"]).status.success());
    read(&live.mount.join("a")).unwrap();
    let list = String::from_utf8(run(&["record", "--stop"]).stdout).unwrap();
    assert!(list.contains("/a") && !list.contains("/b"), "{list}");
}

/// A mount on which the kernel reads the cache itself; none where it can't.
fn passed(fixture: &str) -> Option<(World, Mount)> {
    let world = World::new(fixture);
    let listed = ["CVMFS_MAGIC_XATTRS_VISIBILITY=never", "FIXTURE_VAR=target", "unset=CVMFS_FQRN"];
    let mount = world.mount(&[&["passthrough=auto"][..], &listed].concat());
    let said = mount.status().passthrough;
    if said == "on" {
        return Some((world, mount));
    }
    println!("skipped: no passthrough ({said})");
    assert!(said.starts_with("not possible: "), "{said}");
    assert_eq!(difference(&expected(fixture), &actual(&mount.path)), "", "it works without, too");
    None
}

#[test]
fn passthrough_shows_the_same_content() {
    if !has_fuse() {
        return;
    }
    for fixture in ["basic", "chunked"] {
        let Some((_world, mount)) = passed(fixture) else { return };
        for _ in 0..2 {
            assert_eq!(difference(&expected(fixture), &actual(&mount.path)), "", "{fixture}");
        }
    }
}

#[test]
fn passed_files_stay_readable_when_evicted_and_are_verified_when_opened() {
    if !has_fuse() {
        return;
    }
    let Some((world, mount)) = passed("basic") else { return };
    let file = mount.join("sizes/text-65536");
    let content = read(&file).unwrap();
    assert!(!mount.status().requests.contains_key("read"), "{:?}", mount.status().requests);
    let object = expected("basic")[&b"/sizes/text-65536"[..]]["object"].as_str().unwrap().to_owned();
    let cached = world.cache().join(&object[..2]).join(&object[2..]);
    let open = [std::fs::File::open(&file).unwrap(), std::fs::File::open(&file).unwrap()];
    std::fs::remove_file(&cached).unwrap();
    world.server.fault(&object[2..], common::Fault::Status(404));
    let mut bytes = vec![0; content.len()];
    std::os::unix::fs::FileExt::read_exact_at(&open[0], &mut bytes, 0).unwrap();
    assert!(bytes == content, "the descriptor keeps it");
    assert_eq!(read(&file), Err(libc::EIO), "opened anew, it would have to be fetched");
    drop(open);
    world.server.repair();
    assert_eq!(read(&file).unwrap(), content);
    // A file of another size in the cache is no content of ours.
    std::fs::write(&cached, b"cut short").unwrap();
    assert_eq!(read(&file).unwrap(), content);
}

#[test]
fn a_chunked_file_is_passed_once_it_is_complete_in_the_cache() {
    if !has_fuse() {
        return;
    }
    let Some((world, mount)) = passed("chunked") else { return };
    let is_chunked = |facts: &common::listing::Facts| facts.get("chunks").is_some_and(|n| n.as_u64() > Some(2));
    let (path, facts) = expected("chunked").into_iter().find(|(_, facts)| is_chunked(facts)).unwrap();
    let file = mount.join(std::str::from_utf8(&path).unwrap());
    let reads = || mount.status().requests.get("read").copied().unwrap_or(0);
    let joined = || {
        let buckets = std::fs::read_dir(world.cache()).unwrap().flatten().map(|entry| entry.path());
        let names = buckets.filter_map(|path| path.read_dir().ok()).flat_map(|entries| entries.flatten());
        let mut found = names.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".joined"));
        found.next()
    };
    let held = std::fs::File::open(&file).unwrap();
    let content = read(&file).unwrap();
    assert_eq!(facts["size"].as_u64(), Some(content.len() as u64));
    assert_eq!((reads() > 0, joined()), (true, None), "chunks were absent when it was opened");
    assert!(read(&file).unwrap() == content);
    let before = reads();
    drop(held);
    let made = |what: &str| {
        common::wait_for(what, || {
            // Whoever has it open meanwhile reads it as before.
            assert!(read(&file).unwrap() == content);
            joined().is_some()
        });
    };
    made("it is put together");
    let seen = reads();
    assert!(read(&file).unwrap() == content && reads() == seen && seen <= before + 100, "{before} {seen}");
    // What was put together is gone or damaged: it is made again.
    std::fs::write(joined().unwrap(), b"cut short").unwrap();
    common::wait_for("it is right again", || {
        assert!(read(&file).unwrap() == content);
        joined().unwrap().metadata().unwrap().len() == content.len() as u64
    });
    let used = mount.status().cache_used;
    assert!(used >= 2 * content.len() as u64, "it counts: {used}");
}

#[test]
fn an_overlay_takes_a_mount_with_passthrough_as_lower_directory() {
    if !has_fuse() {
        return;
    }
    let Some((world, mount)) = passed("basic") else { return };
    let place = |name: &str| {
        let path = world.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
    let lower = mount.join("sizes");
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), nix::mount::MsFlags::empty(), Some(&*options))
        .unwrap();
    let (found, there) = (read(&merged.join("text-65536")), read(&lower.join("text-65536")));
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(found, there);
}
