//! Real mounts, in a mount namespace of the test's own thread: they vanish with it, and nobody else sees them.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use containerd_client::types::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::World;

const NO_PATH: Option<&Path> = None;

/// Whether this test may mount; says so on a line that `make test` counts, if not. The daemon has to be started after this.
pub fn may_mount() -> bool {
    let private = nix::unistd::geteuid().is_root()
        && unshare(CloneFlags::CLONE_NEWNS).is_ok()
        && mount(NO_PATH, "/", NO_PATH, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_PATH).is_ok();
    let overlay = private && {
        let directory = tempfile::tempdir().unwrap();
        ensure_upper(directory.path());
        let place = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work, merged) = (place("l"), place("u"), place("w"), place("m"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let mounted = mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
        let _ = umount2(directory.path(), MntFlags::MNT_DETACH);
        mounted.is_ok()
    };
    if !overlay {
        println!("skipped: not root, or overlayfs can't be mounted here");
    }
    overlay
}

/// The writable directory of an overlay can't be on another one, which is where containers have theirs.
pub fn ensure_upper(directory: &Path) {
    if statfs(directory).unwrap().filesystem_type() == OVERLAYFS_SUPER_MAGIC {
        // Without a namespace of its own the test mounts nothing, and any file system does.
        let _ = mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), NO_PATH);
    }
}

/// What the daemon answered, mounted as containerd does; unmounted when dropped.
pub struct Mounted {
    pub path: PathBuf,
}

impl Mounted {
    pub fn new(world: &World, mounts: &[Mount]) -> Mounted {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = world.path("m").join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).unwrap();
        let [answer] = mounts else { panic!("one mount is enough: {mounts:?}") };
        perform(answer, &path);
        Mounted { path }
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.path);
    }
}

fn perform(answer: &Mount, at: &Path) {
    let words: Vec<&str> = answer.options.iter().map(String::as_str).collect();
    if answer.r#type == "bind" {
        assert!(words.contains(&"rbind") && (words.contains(&"ro") != words.contains(&"rw")), "{answer:?}");
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(answer.source.as_str()), at, NO_PATH, bind, NO_PATH).unwrap_or_else(|e| panic!("{answer:?}: {e}"));
        if words.contains(&"ro") {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NO_PATH, at, NO_PATH, flags, NO_PATH).unwrap();
        }
        return;
    }
    assert_eq!((answer.r#type.as_str(), answer.source.as_str()), ("overlay", "overlay"));
    // The kernel takes a page; containerd changes into the longest common directory when that is too little.
    let (mut words, mut here) = (words.join(","), None);
    if words.len() > 4096 - 512 {
        let common = answer.options.iter().find_map(|word| word.strip_prefix("lowerdir=")).unwrap();
        let first = common.split(':').next().unwrap();
        let snapshots = Path::new(first).parent().and_then(Path::parent).unwrap();
        words = answer
            .options
            .iter()
            .map(|word| match word.strip_prefix("lowerdir=") {
                Some(lowers) => {
                    let short = lowers.split(':').map(|lower| {
                        Path::new(lower).strip_prefix(snapshots).expect("all are below").to_str().unwrap().to_owned()
                    });
                    format!("lowerdir={}", short.collect::<Vec<_>>().join(":"))
                }
                None => word.clone(),
            })
            .collect::<Vec<_>>()
            .join(",");
        here = Some(snapshots.to_owned());
    }
    // The namespace of this thread comes with a working directory of its own.
    let back = std::env::current_dir().unwrap();
    if let Some(here) = here {
        std::env::set_current_dir(here).unwrap();
    }
    let done = mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(words.as_str()));
    std::env::set_current_dir(back).unwrap();
    done.unwrap_or_else(|error| panic!("{error}: {words}"));
}

/// A mount whose client never answers: every look hangs, or is forbidden if the mount is another user's.
pub struct Silent {
    path: PathBuf,
    client: Option<fs::File>,
}

impl Silent {
    /// Nothing where /dev/fuse can't be used.
    pub fn new(path: &Path, user: u32) -> Option<Silent> {
        let Ok(client) = fs::File::options().read(true).write(true).open("/dev/fuse") else {
            println!("skipped: /dev/fuse can't be used");
            return None;
        };
        let options = format!("fd={},rootmode=40755,user_id={user},group_id={user}", client.as_raw_fd());
        mount(Some("silent"), path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Some(Silent { path: path.to_owned(), client: Some(client) })
    }

    /// The client is gone, its mount stays: what waits fails, and so does whatever comes.
    pub fn die(&mut self) {
        self.client = None;
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.client = None;
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
