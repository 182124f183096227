//! Makes a mount of the kernel: by mount(2), or for ordinary users by fusermount3.
//!
//! fuser could do it as well, but when a session ends it unmounts what is at its place then, whoever's that is (0.18.0; mended
//! in its repository by pull request 703).
//!
//! Source: fuse(4), `Documentation/filesystems/fuse` of the kernel; fusermount3 hands the device over on the socket that
//! `_FUSE_COMMFD` names.

use std::fs::File;
use std::io::{self, IoSliceMut, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// The name that `df` shows; scripts of the field look for it.
const NAME: &str = "cvmfs2";

/// How something is mounted, beside `ro,nosuid,nodev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// No programs are started from it.
    pub noexec: bool,
    /// The kernel checks owners and permissions.
    pub check_permissions: bool,
    /// Other users may look.
    pub allow_others: bool,
}

impl Options {
    /// Those that the kernel's FUSE knows, each after a comma.
    fn of_fuse(&self) -> String {
        let one = |on, name: &str| if on { format!(",{name}") } else { String::new() };
        one(self.check_permissions, "default_permissions") + &one(self.allow_others, "allow_other")
    }
}

/// Opens the kernel's FUSE, which nothing is mounted from yet.
pub fn open() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/fuse")?.into())
}

/// Mounts on a directory; requests wait on what is returned: `device`, or the one of fusermount3.
pub fn mount_on(directory: &Path, device: OwnedFd, options: Options) -> io::Result<OwnedFd> {
    match by_the_kernel(directory, &device, options) {
        Err(Errno::EPERM) => by_fusermount(directory, options),
        result => Ok(result.map(|()| device)?),
    }
}

/// Opens a directory as a place only: nothing is asked of what is mounted there, and nothing is mounted by that.
pub fn place(directory: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory)
}

fn by_the_kernel(directory: &Path, device: &OwnedFd, options: Options) -> Result<(), Errno> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let data = format!("fd={},rootmode=40000,user_id={user},group_id={group}{}", device.as_raw_fd(), options.of_fuse());
    let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_NOEXEC, options.noexec);
    mount(Some(NAME), directory, Some("fuse"), flags, Some(data.as_str()))
}

fn by_fusermount(directory: &Path, options: Options) -> io::Result<OwnedFd> {
    let noexec = if options.noexec { ",noexec" } else { "" };
    let text = format!("ro,nosuid,nodev{noexec},fsname={NAME}{}", options.of_fuse());
    let (ours, theirs) = UnixStream::pair()?;
    let mut child = Command::new("fusermount3")
        .args(["-o", &text, "--"])
        .arg(directory)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("fusermount3, by which ordinary users mount: {error}"))
        })?;
    let device = receive(&ours);
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    let status = child.wait()?;
    match device? {
        Some(device) if status.success() => Ok(device),
        _ => Err(io::Error::other(format!("fusermount3 ended with {status}: {}", said.trim()))),
    }
}

/// The file that comes with one byte; none if the other end is closed.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    }))
}
