//! The client through the kernel.

mod common;

use std::io::{Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use client::remount::Outcome;
use common::listing::{actual, difference, expected};
use common::{Fault, World, client, has_fuse, read, wait_for};

/// What the listings were taken with.
const AS_LISTED: [&str; 2] = ["CVMFS_MAGIC_XATTRS_VISIBILITY=never", "FIXTURE_VAR=target"];

#[test]
fn the_mount_is_read_only_without_devices_and_set_id() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&["suid,dev,rw"]);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let place = mount.path.canonicalize().unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == place.to_str()).unwrap();
    for option in ["ro", "nosuid", "nodev", "default_permissions", "allow_other"] {
        assert!(line.split([' ', ',']).any(|word| word == option), "{option} in {line}");
    }
    let refused = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    refused(std::fs::write(mount.join("new"), "x"));
    refused(std::fs::remove_file(mount.join("sizes/text-65536")));
    refused(std::fs::create_dir(mount.join("d")));
    refused(std::fs::File::options().write(true).open(mount.join("sizes/text-65536")).map(drop));
}

#[test]
fn the_kernel_checks_permissions_for_other_users() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    // Others must be able to get to the mountpoint.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.directory.path(), open).unwrap();
    let mount = world.mount(&[]);
    let listing = expected("basic");
    let with_mode = |mode: &str| {
        let found = listing.iter().find(|(_, f)| f["type"] == "file" && f["mode"] == mode && f["uid"] == 0);
        String::from_utf8(found.unwrap().0.clone()).unwrap()
    };
    let as_nobody =
        |path: &str| Command::new("cat").arg(mount.join(path)).uid(65534).gid(65534).output().unwrap().status.success();
    assert!(as_nobody(&with_mode("0644")));
    assert!(!as_nobody(&with_mode("0600")));
}

#[test]
fn status_probe_and_information_attributes_describe_the_mount() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&[]);
    assert!(read(&mount.join("sizes/text-65536")).is_ok());
    let status = mount.status();
    assert_eq!((status.fqrn.as_str(), status.revision), ("basic.fixture.example.org", 6));
    assert!(status.downloads > 1 && status.received > 1000 && status.offline.is_none());
    let attribute =
        |path: &str, name: &str| String::from_utf8(xattr::get(mount.join(path), name).unwrap().unwrap()).unwrap();
    assert_eq!(attribute("", "user.fqrn"), "basic.fixture.example.org");
    assert_eq!(attribute("sizes", "user.revision"), "6");
    assert_eq!(attribute("", "user.root_hash"), status.root_hash);
    assert_eq!(attribute("", "user.pid"), status.pid.to_string());
    assert!(attribute("", "user.host").starts_with("http://127.0.0.1:"));
    assert!(attribute("many", "user.catalog_counters").contains("catalog_mountpoint: /many\n"));
    assert_eq!(attribute("", "user.expires"), "4");
    // Where programs that know nothing but the mountpoint find the control socket.
    let socket = attribute("", "user.control");
    assert_eq!(client::control::ask_status(socket.as_ref()).unwrap().pid, status.pid);
    assert_eq!(xattr::get(mount.join("sizes"), "user.nonsense").unwrap(), None);
    let names = |path: &str| xattr::list(mount.join(path)).unwrap().count();
    assert!(names("") > 20);
    assert_eq!(names("sizes"), 0);
    let sizes = nix::sys::statvfs::statvfs(&mount.path).unwrap();
    assert_eq!(sizes.blocks() * sizes.fragment_size(), 4000 << 20, "the size of the cache");
    assert_eq!(sizes.files(), 814 + 45 + 10 + 93);
    assert!(sizes.blocks_free() < sizes.blocks() && sizes.name_max() == 255);
    let run = |arguments: &[&str]| client().args(arguments).arg(&mount.path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&run(&["status", "--json"]).stdout).unwrap();
    assert_eq!(json["revision"], 6);
    assert!(String::from_utf8(run(&["status"]).stdout).unwrap().contains("revision    6 ("));
    let metrics = String::from_utf8(run(&["status", "--metrics"]).stdout).unwrap();
    let at = mount.path.canonicalize().unwrap();
    let labels = format!("repository=\"basic.fixture.example.org\",mountpoint=\"{}\"", at.display());
    for line in [format!("revision{{{labels}}} 6"), format!("kernel_requests_total{{{labels},kind=\"statfs\"}} 1")] {
        assert!(metrics.lines().any(|found| found == format!("cvmfs_client_{line}")), "{line}\n{metrics}");
    }
    assert_eq!(json["requests"]["statfs"], 1);
    assert!(String::from_utf8(run(&["probe"]).stdout).unwrap().ends_with("... OK\n"));
    assert!(String::from_utf8(run(&["remount"]).stdout).unwrap().contains("up to date: revision 6"));
    let twice = world.try_mount(&[]).err().unwrap();
    assert_eq!(twice.status.code(), Some(4));
    assert!(String::from_utf8(twice.stderr).unwrap().contains("already mounted"));
}

#[test]
fn exit_statuses_tell_what_is_wrong() {
    let run = |arguments: &[&str]| client().args(arguments).output().unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let nowhere = nowhere.path().to_str().unwrap();
    for (arguments, code, says) in [
        (&["mount"][..], 2, "Usage"),
        (&["mount", "a.b", nowhere, "--config-dir", "/nonexistent"], 3, "--server-url"),
        (&["mount", "a.b", nowhere, "--config-dir", "/nonexistent", "-o", "CVMFS_TIMEOUT=x"], 3, "CVMFS_SERVER_URL"),
        (&["status", nowhere], 4, "nothing of ours is mounted"),
        (&["umount", nowhere], 4, "nothing is mounted there"),
        (&["probe", nowhere], 1, "not all mounts"),
        (&["record", nowhere], 2, "--start|--stop|COMMAND"),
        (&["record", nowhere, "--start"], 4, "nothing of ours is mounted"),
        (&["record", nowhere, "--stop"], 1, "no start-up list"),
        (&["prefetch", nowhere, "/dev/null"], 1, "nothing is fetched ahead"),
        (&["prefetch", nowhere, "--base", "/"], 2, "is not below the mountpoint"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{arguments:?} {output:?}");
    }
}

#[test]
fn every_command_explains_itself_with_examples() {
    for command in ["", "mount", "umount", "status", "remount", "prefetch", "record", "probe", "showconfig"] {
        let arguments: Vec<&str> = [command, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        let output = client().args(&arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Examples:\n  cvmfs-client "), "{arguments:?}\n{text}");
    }
}

#[test]
fn showconfig_names_the_origin_of_every_value() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("default.local");
    std::fs::write(&file, "CVMFS_SERVER_URL='http://one/@fqrn@;http://two/@fqrn@'\nCVMFS_TIMEOUT=3\n").unwrap();
    let output = client()
        .args(["showconfig", "images.example.org", "-o", "CVMFS_TIMEOUT=9", "--proxy", "http://p:3128", "--config-dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "CVMFS_REPOSITORY_NAME=images.example.org".to_owned(),
        format!("CVMFS_SERVER_URL=http://one/@fqrn@;http://two/@fqrn@    # from {}", file.display()),
        "CVMFS_TIMEOUT=9    # from -o".to_owned(),
        "CVMFS_HTTP_PROXY=http://p:3128    # from the command line".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn a_new_revision_appears_under_a_live_mount() {
    if !has_fuse() {
        return;
    }
    let world = World::new("updates-r2");
    let mount = world.mount(&AS_LISTED);
    let tree = |mount: &common::Mount| actual(&mount.path);
    assert_eq!(difference(&expected("updates-r2"), &tree(&mount)), "");
    let inode = |path: &str| std::fs::symlink_metadata(mount.join(path)).unwrap().ino();
    let (same, changed) = (inode("d/same"), inode("d/changed"));

    // What is open stays what it was.
    let mut open = std::fs::File::open(mount.join("d/changed")).unwrap();
    let (before, old) = (open.metadata().unwrap(), read(&mount.join("d/changed")).unwrap());
    let mut removed = std::fs::File::open(mount.join("d/removed")).unwrap();
    assert_eq!(read(&mount.join("d/added")), Err(libc::ENOENT));
    world.advance("updates-r3");
    assert_eq!(mount.remount(), Outcome::Applied { from: 2, revision: 3 });
    assert_eq!(difference(&expected("updates-r3"), &tree(&mount)), "");
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, old);
    assert_eq!(open.metadata().unwrap().len(), before.len());
    assert_ne!(read(&mount.join("d/changed")).unwrap(), old);
    bytes.clear();
    removed.read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty());
    assert_eq!(inode("d/same"), same);
    assert_ne!(inode("d/changed"), changed);

    world.advance("updates-r4");
    assert_eq!(mount.remount(), Outcome::Applied { from: 3, revision: 4 });
    assert_eq!(difference(&expected("updates-r4"), &tree(&mount)), "");
    assert_eq!(inode("d/changed"), changed, "the old content is back, and its inode with it");
    open.rewind().unwrap();
    bytes.clear();
    open.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, old);
    assert_eq!(mount.remount(), Outcome::UpToDate { revision: 4 });
}

#[test]
fn the_next_check_is_planned_by_ttl_and_cap() {
    if !has_fuse() {
        return;
    }
    let world = World::new("updates-r2");
    for (options, expected) in [(&["CVMFS_MAX_TTL=1"][..], 50..=60), (&[], 220..=240)] {
        let mount = world.mount(options);
        let due = mount.status().next_check.unwrap();
        assert!(expected.contains(&due), "{due}");
        mount.unmount();
    }
    let mount = world.mount(&["CVMFS_AUTO_UPDATE=no"]);
    assert_eq!(mount.status().next_check, None);
    world.advance("updates-r3");
    assert_eq!(mount.remount(), Outcome::Fixed { revision: 2 });
}

#[test]
fn a_slow_object_holds_up_nothing_else() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let listing = expected("basic");
    let object = |path: &str| listing[path.as_bytes()]["object"].as_str().unwrap()[2..].to_owned();
    world.server.fault(&object("/sizes/random-65536"), Fault::Delay(Duration::from_secs(4)));
    let mount = world.mount(&[]);
    std::thread::scope(|scope| {
        let started = Instant::now();
        // More waiting readers than the client has threads that read requests.
        let slow: Vec<_> = (0..16).map(|_| scope.spawn(|| read(&mount.join("sizes/random-65536")))).collect();
        std::thread::sleep(Duration::from_millis(200));
        assert!(read(&mount.join("sizes/text-65536")).is_ok());
        assert!(std::fs::read_dir(mount.join("deep")).unwrap().filter(Result::is_ok).count() > 0);
        assert!(std::fs::metadata(mount.join("links/target")).is_ok());
        let others = started.elapsed();
        assert!(others < Duration::from_secs(3), "{others:?}");
        slow.into_iter().for_each(|reader| assert!(reader.join().unwrap().is_ok()));
        assert!(started.elapsed() > Duration::from_secs(3), "the slow object was not slow");
    });
    assert_eq!(world.server.requests(&object("/sizes/random-65536")), 1);
}

#[test]
fn a_killed_client_leaves_a_mount_that_can_be_replaced() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let mount = world.mount(&AS_LISTED);
    let inodes = |mount: &common::Mount| {
        let mut all = std::collections::BTreeMap::new();
        for path in actual(&mount.path).into_keys() {
            let path = String::from_utf8(path).unwrap();
            let inode = std::fs::symlink_metadata(mount.join(&path)).unwrap().ino();
            assert!(inode <= u64::from(u32::MAX));
            all.insert(path, inode);
        }
        all
    };
    let before = inodes(&mount);
    let pid = nix::unistd::Pid::from_raw(mount.status().pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let dead = |path: &std::path::Path| nix::sys::statvfs::statvfs(path) == Err(nix::errno::Errno::ENOTCONN);
    wait_for("the mount to be dead", || dead(&mount.path));
    let requests = world.server.requests("");
    let again = world.mount(&AS_LISTED);
    assert_eq!(difference(&expected("hardlinks"), &actual(&again.path)), "");
    assert_eq!(inodes(&again), before);
    let documents = 2;
    assert_eq!(world.server.requests("") - requests, documents, "everything but manifest and whitelist was cached");

    let pid = nix::unistd::Pid::from_raw(again.status().pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("the mount to be dead", || dead(&again.path));
    assert!(client().arg("umount").arg(&again.path).output().unwrap().status.success());
    assert!(std::fs::read_dir(&again.path).unwrap().next().is_none());
    std::mem::forget(mount);
}

#[test]
fn inode_numbers_are_the_same_after_an_orderly_restart() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let numbers = |mount: &common::Mount| {
        let names = ["", "many", "sizes/text-65536", "links/var-fqrn", "nested/two/a"];
        names.map(|path| std::fs::symlink_metadata(mount.join(path)).unwrap().ino())
    };
    let mount = world.mount(&[]);
    let before = numbers(&mount);
    mount.unmount();
    let mount = world.mount(&[]);
    // In another order, so that they are not merely handed out anew in the same way.
    let _ = std::fs::read_dir(mount.join("names")).unwrap().count();
    assert_eq!(numbers(&mount), before);
}

#[test]
fn a_terminated_client_unmounts() {
    if !has_fuse() {
        return;
    }
    let world = World::new("hardlinks");
    let mount = world.mount(&[]);
    let pid = mount.status().pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    wait_for("the client to end", || !std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
    assert!(std::fs::read_dir(&mount.path).unwrap().next().is_none(), "it is unmounted");
}

#[test]
fn the_cache_stays_below_its_limit_while_large_files_are_read() {
    if !has_fuse() {
        return;
    }
    let world = World::new("chunked");
    let mut arguments = vec!["CVMFS_QUOTA_LIMIT=64"];
    arguments.extend(AS_LISTED);
    let mount = world.mount(&arguments);
    let limit = 64 << 20;
    let used = || {
        let buckets = std::fs::read_dir(world.cache()).unwrap().flatten().filter(|e| e.file_name().len() == 2);
        let files = buckets.flat_map(|bucket| std::fs::read_dir(bucket.path()).unwrap().flatten());
        files.map(|file| file.metadata().map_or(0, |m| m.len())).sum::<u64>()
    };
    for (path, facts) in expected("chunked") {
        if facts["type"] == "file" {
            let path = String::from_utf8(path).unwrap();
            let content = read(&mount.join(&path)).unwrap();
            assert_eq!(content.len() as u64, facts["size"].as_u64().unwrap(), "{path}");
            let used = used();
            assert!(used <= limit, "{used} bytes after {path}");
        }
    }
    assert!(mount.status().cache_evictions > 0);
    let memory = std::fs::read_to_string(format!("/proc/{}/status", mount.status().pid)).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100_000, "peak memory {peak} KiB");
}

#[test]
fn serves_a_kernel_overlay_as_lower_directories() {
    if !has_fuse() {
        return;
    }
    let world = World::new("updates-r2");
    let mount = world.mount(&[]);
    let place = |name: &str| {
        let path = world.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        mount.join("d").display(),
        mount.join("n").display(),
        upper.display(),
        work.display()
    );
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(options.as_str())).unwrap();
    let merged = Overlay(merged);
    let merged = &merged.0;
    assert_eq!(std::fs::read(merged.join("same")).unwrap(), std::fs::read(mount.join("d/same")).unwrap());
    std::fs::write(merged.join("dir-file-dir/new"), "mine").unwrap();
    std::fs::remove_file(merged.join("removed")).unwrap();
    assert_eq!(read(&merged.join("removed")), Err(libc::ENOENT));
    assert!(read(&merged.join("a")).is_ok(), "from the second lower directory");
    let mut open = std::fs::File::open(merged.join("changed")).unwrap();
    // A change of revision below does not disturb what has not changed, nor what is open.
    world.advance("updates-r3");
    assert_eq!(mount.remount(), Outcome::Applied { from: 2, revision: 3 });
    assert_eq!(std::fs::read(merged.join("same")).unwrap(), std::fs::read(mount.join("d/same")).unwrap());
    assert_eq!(std::fs::metadata(merged.join("meta")).unwrap().uid(), 12);
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old.len(), 22);
}

struct Overlay(std::path::PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
