//! The machine: overlayfs, SELinux, and the file system of the state directory, which containers write to through overlayfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use mountinfo::MountTable;
use nix::libc;
use rustix::fs::{Dir, FileType};
use xattr::FileExt as _;

use super::Check;

/// The boolean of SELinux that lets containers read file systems in user space.
const BOOLEAN: &str = "virt_sandbox_use_fusefs";

/// Looks at all of it. Blocks.
pub fn examine(root: &Path) -> Vec<Check> {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let read = |path: String| std::fs::read_to_string(path).ok();
    let boolean = read(format!("/sys/fs/selinux/booleans/{BOOLEAN}"));
    vec![
        overlayfs(&filesystems),
        selinux(read("/sys/fs/selinux/enforce".to_owned()).as_deref(), boolean.as_deref()),
        state_directory(root),
    ]
}

fn overlayfs(filesystems: &str) -> Check {
    if filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("overlay")) {
        Check::ok("overlayfs", "the kernel has it")
    } else {
        Check::fail(
            "overlayfs",
            "the kernel does not have it now",
            "modprobe overlay, and add it to /etc/modules-load.d",
        )
    }
}

fn selinux(enforce: Option<&str>, boolean: Option<&str>) -> Check {
    // The first number of a boolean is its value, the second one what is pending.
    match (enforce.map(str::trim), boolean.map(|text| text.starts_with('1'))) {
        (Some("1"), Some(true)) => Check::ok("SELinux", format!("enforcing, with {BOOLEAN}")),
        (Some("1"), _) => Check::warn(
            "SELinux",
            format!("enforcing, without {BOOLEAN}: confined containers may not read published layers"),
            format!("setsebool -P {BOOLEAN} 1"),
        ),
        _ => Check::ok("SELinux", "not enforcing"),
    }
}

/// What is known of a directory's file system.
struct Place {
    kind: String,
    trusted: io::Result<()>,
    types: bool,
}

fn state_directory(root: &Path) -> Check {
    let name = "state directory";
    let Some(directory) = root.ancestors().find(|path| path.is_dir()) else {
        return Check::fail(
            name,
            format!("{} can't be there", root.display()),
            "choose another root in the configuration",
        );
    };
    let mounts = MountTable::own().unwrap_or_default();
    let kind = mounts.around(directory).map_or("unknown", |mount| mount.kind.as_str()).to_owned();
    let place = Place { kind, trusted: trusted(directory), types: types(directory) };
    judge(root, &place)
}

fn judge(root: &Path, place: &Place) -> Check {
    const ADVICE: &str = "put root on a local file system: ext4, btrfs, or xfs with ftype=1";
    let (name, root, kind) = ("state directory", root.display(), place.kind.as_str());
    let remote = kind.starts_with("fuse")
        || kind.starts_with("nfs")
        || ["overlay", "ceph", "lustre", "9p", "cifs"].contains(&kind);
    if remote {
        return Check::fail(name, format!("{root} is on {kind}, on which overlayfs can't write"), ADVICE);
    }
    match &place.trusted {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Check::warn(name, format!("{root} on {kind} can't be tried: {error}"), "run doctor as root");
        }
        Err(error) => {
            return Check::fail(name, format!("{root} on {kind} has no trusted attributes: {error}"), ADVICE);
        }
        Ok(()) => {}
    }
    if !place.types {
        return Check::fail(name, format!("{root} on {kind} does not tell types of entries (d_type)"), ADVICE);
    }
    if kind == "tmpfs" {
        return Check::warn(
            name,
            format!("{root} is on tmpfs: what is in it is gone after a restart of the machine"),
            ADVICE,
        );
    }
    Check::ok(name, format!("{root} on {kind}, with trusted attributes and types of entries"))
}

/// Can a file have an attribute that only root sees?
fn trusted(directory: &Path) -> io::Result<()> {
    // A file without a name: nothing is left of it, whatever happens.
    let file: File = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(directory)?;
    file.set_xattr("trusted.overlay.doctor", b"y")
}

/// Does a directory tell of what type its entries are?
fn types(directory: &Path) -> bool {
    let Ok(entries) = File::open(directory).and_then(|file| Ok(Dir::read_from(file)?)) else { return true };
    entries.flatten().all(|entry| entry.file_type() != FileType::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn facts_are_judged() {
        let with = "nodev\tproc\n\text4\nnodev\toverlay\n";
        assert_eq!([overlayfs(with).state, overlayfs("\text4\n").state], [State::Ok, State::Fail]);
        for (enforce, boolean, expected) in [
            (None, None, State::Ok),
            (Some("0"), None, State::Ok),
            (Some("1\n"), None, State::Warn),
            (Some("1"), Some("0 0"), State::Warn),
            (Some("1"), Some("1 1"), State::Ok),
        ] {
            assert_eq!(selinux(enforce, boolean).state, expected, "{enforce:?} {boolean:?}");
        }
        let root = Path::new("/var/lib/x");
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for (kind, trusted, types, expected) in [
            ("ext4", Ok(()), true, State::Ok),
            ("xfs", Ok(()), false, State::Fail),
            ("ext4", Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)), true, State::Fail),
            ("ext4", Err(denied()), true, State::Warn),
            ("tmpfs", Ok(()), true, State::Warn),
            ("nfs4", Ok(()), true, State::Fail),
            ("fuse.sshfs", Ok(()), true, State::Fail),
            ("overlay", Ok(()), true, State::Fail),
        ] {
            let place = Place { kind: kind.to_owned(), trusted, types };
            assert_eq!(judge(root, &place).state, expected, "{kind}");
        }
    }

    #[test]
    fn a_directory_of_this_machine_tells_types() {
        assert!(types(tempfile::tempdir().unwrap().path()));
    }
}
