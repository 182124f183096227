//! Starts a program in a flat image, as a container without an engine.
//!
//! The program has an overlay on the flat as its root (what it writes is in memory and gone afterwards), a `/proc`, `/dev`
//! and `/tmp` of its own, mounts, processes and IPC of its own, and the network of this machine. It has the user that
//! the image says, the capabilities that engines leave to root except that of making devices, and gets no others by
//! programs with set-id bits. Directories of this machine are out of sight before it begins.
//!
//! Two processes: the first makes the namespaces and the mounts and waits, the second is process 1 in them and becomes
//! the program. When the first ends, however it ends, the kernel ends the second and all that it started.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use serde::{Deserialize, Serialize};

use crate::cli::Inside;
use crate::error::{CommandError, ExitStatus};
use crate::failure::Failure;

/// Devices that every program may expect.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];
/// What in `/proc` would let root change the machine.
const KERNEL: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// How often it is looked whether the program has ended before its time.
const LOOK: Duration = Duration::from_millis(50);

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Root of the image.
    pub root: PathBuf,
    /// An empty directory.
    pub work: PathBuf,
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Its environment.
    pub environment: Vec<(String, String)>,
    /// Where it starts; empty for the root.
    pub directory: String,
    /// `user`, `user:group`, by number or name; empty for root.
    pub user: String,
    /// Seconds after which it is ended.
    pub seconds: Option<u64>,
}

/// The command behind `record-inside`.
pub fn inside(arguments: &Inside) -> Result<ExitStatus, CommandError> {
    let text = fs::read(&arguments.file).map_err(|e| CommandError::failed(Failure::io("read", &arguments.file)(e)))?;
    let start: Start = serde_json::from_slice(&text).map_err(CommandError::usage)?;
    let failed = |e: std::io::Error| CommandError::failed(e).context("cannot start the image");
    match arguments.entered {
        false => enclose(&start, &arguments.file).map_err(failed),
        true => Err(failed(become_program(&start))),
    }
}

fn enclose(start: &Start, order: &Path) -> std::io::Result<ExitStatus> {
    let own = std::env::current_exe()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount_tmpfs(&start.work, "mode=700", MsFlags::empty())?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| start.work.join(name));
    [&upper, &work, &root].iter().try_for_each(fs::create_dir)?;
    let (lower, upper, work) = (start.root.display(), upper.display(), work.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))?;
    for name in ["proc", "dev", "tmp"] {
        // A link would lead out.
        if !fs::symlink_metadata(root.join(name))?.is_dir() {
            return Err(std::io::Error::other(format!("/{name} of the image is no directory")));
        }
    }
    mount_tmpfs(&root.join("tmp"), "mode=1777", MsFlags::MS_NODEV)?;
    mount_tmpfs(&root.join("dev"), "mode=755", MsFlags::MS_NOEXEC)?;
    for name in DEVICES {
        let (from, to) = (Path::new("/dev").join(name), root.join("dev").join(name));
        fs::write(&to, "")?;
        mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    let mut child = Command::new(own).arg("record-inside").arg(order).arg("--entered").spawn()?;
    let until = start.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        match until {
            None => break child.wait()?,
            Some(until) => match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() < until => std::thread::sleep(LOOK),
                None => {
                    child.kill()?;
                    child.wait()?;
                    return Ok(ExitStatus::Success);
                }
            },
        }
    };
    Ok(if status.success() { ExitStatus::Success } else { ExitStatus::Failed })
}

fn mount_tmpfs(at: &Path, options: &str, flags: MsFlags) -> std::io::Result<()> {
    Ok(mount(Some("tmpfs"), at, Some("tmpfs"), flags | MsFlags::MS_NOSUID, Some(options))?)
}

/// Returns only why it could not.
fn become_program(start: &Start) -> std::io::Error {
    let prepare = || -> std::io::Result<Command> {
        set_pdeathsig(Signal::SIGKILL)?;
        let root = start.work.join("root");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), &root.join("proc"), Some("proc"), flags, None::<&str>)?;
        for name in KERNEL {
            let path = root.join("proc").join(name);
            if path.exists() {
                mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
                let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | flags;
                mount(None::<&str>, &path, None::<&str>, read_only, None::<&str>)?;
            }
        }
        std::env::set_current_dir(&root)?;
        // The old root lies on the new one then.
        rustix::process::pivot_root(".", ".")?;
        umount2(".", MntFlags::MNT_DETACH)?;
        std::env::set_current_dir("/")?;
        for link in ["fd", "stdin", "stdout", "stderr"].into_iter().zip(["", "/0", "/1", "/2"]) {
            std::os::unix::fs::symlink(format!("/proc/self/fd{}", link.1), Path::new("/dev").join(link.0))?;
        }
        if !start.directory.is_empty() {
            std::env::set_current_dir(&start.directory)?;
        }
        let (user, group) = user(&start.user)?;
        restrict()?;
        setgroups(&[])?;
        setgid(group)?;
        setuid(user)?;
        let (program, arguments) = start.arguments.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(start.environment.iter().cloned());
        Ok(command)
    };
    match prepare() {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

/// Leaves the capabilities that engines leave to root, without that of making devices.
fn restrict() -> std::io::Result<()> {
    let kept = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETPCAP
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::SYS_CHROOT
        | CapabilitySet::SETFCAP;
    let all = CapabilitySet::all().iter().filter(|capability| !kept.contains(*capability));
    for capability in all {
        match remove_capability_from_bounding_set(capability) {
            // This kernel does not know it.
            Err(rustix::io::Errno::INVAL) => {}
            other => other?,
        }
    }
    Ok(set_no_new_privs(true)?)
}

/// User and group as an image says them. The root directory is that of the image.
fn user(text: &str) -> std::io::Result<(Uid, Gid)> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let unknown = |kind: &str, name: &str| std::io::Error::other(format!("the image has no {kind} {name:?}"));
    let (uid, primary) = match user {
        "" => (0, 0),
        _ => match (find(&fs::read_to_string("/etc/passwd").unwrap_or_default(), user), user.parse()) {
            (Some(ids), _) => ids,
            (None, Ok(number)) => (number, 0),
            (None, Err(_)) => return Err(unknown("user", user)),
        },
    };
    let gid = match group {
        None | Some("") => primary,
        Some(group) => match (find(&fs::read_to_string("/etc/group").unwrap_or_default(), group), group.parse()) {
            (Some((gid, _)), _) => gid,
            (None, Ok(number)) => number,
            (None, Err(_)) => return Err(unknown("group", group)),
        },
    };
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// The line of a name, or number, in `/etc/passwd` or `/etc/group`: its number and, of a user, that of its group.
fn find(file: &str, name: &str) -> Option<(u32, u32)> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, id) = (fields.next()?, fields.nth(1)?);
        let number = id.parse().ok()?;
        (found == name || id == name).then(|| (number, fields.next().and_then(|group| group.parse().ok()).unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:44::/:/bin/false\n";
        assert_eq!(find(passwd, "web"), Some((33, 44)));
        assert_eq!(find(passwd, "33"), Some((33, 44)));
        assert_eq!(find(passwd, "root"), Some((0, 0)));
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find("video:x:39:web\n", "video"), Some((39, 0)));
    }
}
