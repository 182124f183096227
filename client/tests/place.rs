//! Who is mounted where: a client that is out of sight and the one that follows it, and mount(8).

mod common;

use std::io::{Read as _, Seek as _};
use std::path::PathBuf;
use std::process::Command;

use common::{Mount, World, client, has_fuse, read, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FILE: &str = "sizes/text-65536";

fn program(pid: u32) -> PathBuf {
    format!("/proc/{pid}/exe").into()
}

fn take_out_of_sight(mount: &Mount) {
    let output = client().args(["umount", "--lazy"]).arg(&mount.path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_client_that_is_out_of_sight_leaves_its_follower_alone() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    for signalled in [false, true] {
        let first = world.mount(&[]);
        let before = first.status();
        assert!(!before.detached);
        let content = read(&first.join(FILE)).unwrap();
        let mut open = std::fs::File::open(first.join(FILE)).unwrap();
        take_out_of_sight(&first);
        let status = first.status();
        assert!(status.detached && status.pid == before.pid, "{status:?}");
        let shown = client().arg("status").arg(&first.path).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains("DETACHED"), "{shown:?}");

        let second = world.mount(&[]);
        let after = second.status();
        assert!(after.pid != before.pid && !after.detached);
        let follower = || second.status().pid == after.pid && read(&second.join(FILE)).as_ref() == Ok(&content);
        assert!(follower());
        // The first one goes on for who has something of it open, whatever signals it gets.
        if signalled {
            kill(Pid::from_raw(before.pid as i32), Signal::SIGTERM).unwrap();
        }
        let mut again = Vec::new();
        open.rewind().unwrap();
        open.read_to_end(&mut again).unwrap();
        assert_eq!(again, content);
        assert!(follower());
        drop(open);
        wait_for("the first client to end", || !program(before.pid).exists());
        assert!(follower(), "what is mounted there stays, and so does its socket");
        std::mem::forget(first);
        second.unmount();
        assert!(!program(after.pid).exists());
    }
}

#[test]
fn a_mount_that_fails_half_way_leaves_nothing() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let path = world.directory.path().join("mnt");
    std::fs::create_dir(&path).unwrap();
    // Where the control socket should be is something else.
    let socket = client::control::socket(&path.canonicalize().unwrap());
    std::fs::create_dir_all(&socket).unwrap();
    let output = world.try_mount(&[]).err().unwrap();
    std::fs::remove_dir(&socket).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("control socket"), "{output:?}");
    assert!(std::fs::read_dir(&path).unwrap().next().is_none(), "nothing is mounted, dead or alive");
    world.mount(&[]).unmount();
}

#[test]
fn mount_8_calls_the_same_program_by_another_name() {
    if !has_fuse() {
        return;
    }
    let world = World::new("basic");
    let (path, helper) = (world.directory.path().join("mnt"), world.directory.path().join("mount.cvmfs"));
    std::fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cvmfs-client"), &helper).unwrap();
    let call = |options: &str, more: &[&str]| {
        let mut command = Command::new(&helper);
        command.arg(world.fqrn()).arg(&path).args(more).args(["-o", options]).output().unwrap()
    };
    let given = [
        format!("CVMFS_SERVER_URL={}", world.server.repository()),
        format!("CVMFS_PUBLIC_KEY={}", world.key().display()),
        format!("CVMFS_CACHE_DIR={}", world.cache().display()),
        "CVMFS_QUOTA_LIMIT=1234".to_owned(),
    ]
    .join(",");
    let fake = call("rw", &["-f"]);
    assert!(fake.status.success() && std::fs::read_dir(&path).unwrap().next().is_none(), "{fake:?}");
    let refused = call("rw,_netdev,bogus", &["-v"]);
    assert_eq!(refused.status.code(), Some(32), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("bogus"), "{refused:?}");
    let remount = call("remount,rw", &[]);
    assert_eq!(remount.status.code(), Some(32), "{remount:?}");
    assert!(String::from_utf8_lossy(&remount.stderr).contains("unmount it"), "{remount:?}");

    let options = format!("rw,noexec,_netdev,x-systemd.automount,X-mount.mkdir,{given}");
    let mounted = call(&options, &["-s", "-n", "-N", "/proc/self/ns/mnt", "-t", "cvmfs"]);
    assert!(mounted.status.success(), "{mounted:?}");
    // Nobody has said what is never so.
    assert!(!String::from_utf8_lossy(&mounted.stderr).contains("always ro"), "{mounted:?}");
    let mount = Mount { path: path.clone() };
    assert!(read(&mount.join(FILE)).is_ok());
    assert_eq!(mount.status().cache_limit, Some(1234 << 20));
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == mount.path.to_str()).unwrap();
    assert!(line.starts_with("cvmfs2 ") && line.contains(" fuse ro,nosuid,nodev,noexec,"), "{line}");
    let twice = call(&options, &[]);
    assert_eq!(twice.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("already mounted"), "{twice:?}");
    mount.unmount();
}
