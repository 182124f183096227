//! The second mount without extended attributes: the same tree, kept up to date, and there as long as somebody uses it.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use client::control;
use client::remount::Outcome;
use common::published::{FQRN, Published, meta};
use common::{Mount, Server, World, client, has_fuse, read, wait_for};
use cvmfs::entry::Entry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What there is to know of an entry without its attributes.
#[derive(Debug, PartialEq)]
struct Facts {
    /// mode, owner, group, inode, size, seconds, links
    numbers: [u64; 7],
    target: Option<PathBuf>,
    content: Vec<u8>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut found, mut waiting) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(path) = waiting.pop() {
        let full = root.join(&path);
        let metadata = full.symlink_metadata().unwrap();
        if metadata.is_dir() {
            waiting.extend(full.read_dir().unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let numbers = [
            metadata.mode().into(),
            metadata.uid().into(),
            metadata.gid().into(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime() as u64,
            metadata.nlink(),
        ];
        let target = metadata.is_symlink().then(|| std::fs::read_link(&full).unwrap());
        let content = if metadata.is_file() { std::fs::read(&full).unwrap() } else { Vec::new() };
        found.insert(path, Facts { numbers, target, content });
    }
    found
}

fn ask(mount: &Mount) -> PathBuf {
    control::ask_bare(&control::socket(&mount.path.canonicalize().unwrap())).unwrap()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

fn ends(pid: u32) {
    let program = PathBuf::from(format!("/proc/{pid}/exe"));
    wait_for("the client ends", || std::fs::read_link(&program).is_err());
}

#[test]
fn it_shows_the_same_without_attributes_and_without_asking_for_any() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&[]);
    assert_eq!(mount.status().bare, None, "made for who asks");
    let bare = ask(&mount);
    assert_eq!((ask(&mount), mount.status().bare), (bare.clone(), Some(bare.display().to_string())));
    let (usual, found) = (tree(&mount.path), tree(&bare));
    assert!(usual.len() > 900, "{}", usual.len());
    assert!(usual == found, "{:?}", usual.iter().find(|(path, facts)| found.get(*path) != Some(facts)));
    let asked = |mount: &Mount| {
        let requests = mount.status().requests;
        ["getxattr", "listxattr"].map(|kind| requests.get(kind).copied().unwrap_or(0))
    };
    let before = asked(&mount);
    for path in usual.keys().take(100).map(|path| bare.join(path)) {
        let error = xattr::get(&path, "security.anything").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{}", path.display());
        assert_eq!(xattr::list(&path).unwrap().count(), 0, "{}", path.display());
    }
    assert!(asked(&mount)[0] <= before[0] + 1, "the kernel knows the answer");
    assert!(xattr::get(&mount.path, "user.fqrn").unwrap().is_some(), "the usual mount has them");
}

#[test]
fn a_new_revision_is_seen_in_both_mounts() {
    if !has_fuse() {
        return;
    }
    let mut published = Published::new();
    let (old, directory) = (published.file(0o644, b"old"), Entry::directory("", meta(0o755)));
    published.publish(vec![("/d", directory), ("/d/file", old)]);
    let server = Server::start(&published.served());
    let path = published.directory.path().join("mnt");
    std::fs::create_dir(&path).unwrap();
    let mut command = client();
    command.args(["mount", FQRN]).arg(&path).args(["--config-dir", "/nonexistent"]);
    command.args(["--server-url", &server.repository(), "--public-key"]).arg(published.key());
    let output = command.arg("--cache").arg(published.directory.path().join("cache")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mount = Mount { path };
    let places = [mount.path.clone(), ask(&mount)];
    for place in &places {
        assert_eq!(read(&place.join("d/file")).unwrap(), b"old");
        assert_eq!(read(&place.join("d/more")), Err(libc::ENOENT));
        assert_eq!(std::fs::read_dir(place.join("d")).unwrap().count(), 1);
    }
    let (new, more) = (published.file(0o644, b"changed"), published.file(0o644, b"more"));
    published.publish(vec![("/d/file", new), ("/d/more", more)]);
    assert!(matches!(mount.remount(), Outcome::Applied { .. }));
    for place in &places {
        assert_eq!(read(&place.join("d/file")).unwrap(), b"changed", "{}", place.display());
        assert_eq!(read(&place.join("d/more")).unwrap(), b"more", "{}", place.display());
        assert_eq!(std::fs::read_dir(place.join("d")).unwrap().count(), 2);
    }
}

#[test]
fn who_uses_it_keeps_it() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&[]);
    let (bare, pid) = (ask(&mount), mount.status().pid);
    let (path, facts) = tree(&mount.path).into_iter().find(|(_, facts)| !facts.content.is_empty()).unwrap();
    let held = std::fs::File::open(bare.join(&path)).unwrap();
    let refused = client().arg("umount").arg(&mount.path).output().unwrap();
    assert!(!refused.status.success() && is_mounted(&mount.path) && is_mounted(&bare), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("it is in use"), "{refused:?}");
    // As a machine does that shuts down: out of sight at once, there for who uses it.
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    wait_for("both are out of sight", || !is_mounted(&mount.path) && !is_mounted(&bare));
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut &held, &mut content).unwrap();
    assert!(content == facts.content);
    // A new client is not in the way of the old one, nor the other way round.
    let next = world.mount(&[]);
    assert_eq!(read(&ask(&next).join(&path)).unwrap(), content);
    drop(held);
    ends(pid);
    assert_eq!(read(&ask(&next).join(&path)).unwrap(), content);
    let pid = next.status().pid;
    next.unmount();
    ends(pid);
    assert!(!is_mounted(&bare) && !bare.exists());
}

#[test]
fn it_is_made_again_after_its_end() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let mount = world.mount(&[]);
    let bare = ask(&mount);
    nix::mount::umount2(&bare, nix::mount::MntFlags::empty()).unwrap();
    wait_for("it is known to be gone", || mount.status().bare.is_none());
    assert_eq!(ask(&mount), bare);
    assert!(is_mounted(&bare) && bare.join(".").read_dir().unwrap().count() > 0);
    // A client that was killed leaves both mounts behind.
    killed(mount);
    let next = world.mount(&[]);
    let again = ask(&next);
    assert!(again != bare && again.read_dir().unwrap().count() > 0);
    assert!(!is_mounted(&bare) && !bare.exists(), "it is cleared away");
    next.unmount();
    assert!(!is_mounted(&again) && !again.exists());
}

#[test]
fn what_a_killed_client_has_left_is_known_for_it_and_goes() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let held = world.directory.path().join("held");
    std::fs::create_dir_all(&held).unwrap();
    let left = || {
        let mount = world.mount(&[]);
        let bare = ask(&mount);
        assert!(mounted::bare::is_same(&bare, &mount.path));
        bind(&bare, &held);
        assert!(mounted::bare::is_same(&held, &mount.path));
        (killed(mount), bare)
    };
    let (_, bare) = left();
    let next = world.mount(&[]);
    assert!(!is_mounted(&bare) && !bare.exists(), "a new mount clears it away");
    // Who still has it sees what the kernel remembers.
    assert_eq!(held.metadata().unwrap().ino(), next.path.metadata().unwrap().ino());
    assert!(!mounted::bare::is_same(&held, &next.path));
    next.unmount();
    unbind(&held);
    let (path, bare) = left();
    client::mount::unmount(&path, false).unwrap();
    assert!(!is_mounted(&path) && !is_mounted(&bare) && !bare.exists(), "so does its unmounting");
    unbind(&held);
}

/// Kills the client of a mount; where it was.
fn killed(mount: Mount) -> PathBuf {
    let (pid, path) = (mount.status().pid, mount.path.clone());
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    ends(pid);
    std::mem::forget(mount);
    path
}

fn bind(from: &Path, to: &Path) {
    nix::mount::mount(Some(from), to, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn unbind(path: &Path) {
    nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
}
