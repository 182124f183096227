//! A published repository as users have it: served over HTTP and mounted by our client.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use client::config::{Config, Flags};
use publisher::serve::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::repository::{FQRN, Site};
use crate::tree::{Node, Tree, What};

/// Whether mounts work here; says so on a line that `make test` counts, if not.
pub fn is_possible() -> bool {
    let usable = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !(usable && root) {
        println!("skipped: /dev/fuse cannot be used, or not root");
    }
    usable && root
}

/// A mounted repository; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    client: Option<JoinHandle<()>>,
    // Last, so that they outlive the mount.
    _server: Runtime,
    _directory: TempDir,
}

impl Mounted {
    /// Serves and mounts the current revision.
    pub fn new(site: &Site) -> Mounted {
        Mounted::at(&site.storage(), &site.target.paths.keys.join(format!("{FQRN}.pub")))
    }

    /// The same with the repository of that name in any directory.
    pub fn at(storage: &Path, public_key: &Path) -> Mounted {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mountpoint = directory.path().join("mnt");
        std::fs::create_dir(&mountpoint).expect("a mountpoint");
        let server = Runtime::new().expect("a runtime");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listening = server.block_on(Server::bind(FQRN, storage, any)).expect("a server");
        let flags = Flags {
            server_url: Some(listening.url()),
            public_keys: vec![public_key.to_owned()],
            cache: Some(directory.path().join("cache")),
            // Else the root shows what the client has to say of itself.
            options: vec!["CVMFS_MAGIC_XATTRS_VISIBILITY=never".into()],
            ..Flags::default()
        };
        server.spawn(listening.run(std::future::pending()));
        let config = Config::load(FQRN, Path::new("/nonexistent"), &flags).expect("a configuration");
        let (ready, mounted) = mpsc::channel();
        let place = mountpoint.clone();
        let client = std::thread::spawn(move || {
            let ready = move || ready.send(()).expect("the test waits");
            client::mount::run(&config, &place, ready).expect("a mount");
        });
        mounted.recv().expect("the client mounts");
        Mounted { mountpoint, client: Some(client), _server: server, _directory: directory }
    }

    /// A path in the repository, on this machine.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.mountpoint.join(below)
    }

    /// Everything, as the kernel shows it.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        self.walk(&mut Vec::new(), &mut tree);
        tree
    }

    fn walk(&self, path: &mut Vec<u8>, tree: &mut Tree) {
        let full = self.mountpoint.join(OsStr::from_bytes(path));
        let node = node(&full);
        let is_directory = node.what == What::Directory;
        tree.insert(path.clone(), node);
        if is_directory {
            for entry in std::fs::read_dir(&full).expect("a listing") {
                let length = path.len();
                if length > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(entry.expect("an entry").file_name().as_bytes());
                self.walk(path, tree);
                path.truncate(length);
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // In order would mean to wait for the end of the process that the client runs in, and that is this one.
        let unmounted = client::mount::unmount(&self.mountpoint, true);
        if unmounted.is_ok()
            && let Some(client) = self.client.take()
        {
            // It fails with its own words, and the test fails anyhow.
            let _ = client.join();
        }
    }
}

fn node(path: &Path) -> Node {
    let metadata = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_dir() => What::Directory,
        () if kind.is_symlink() => {
            What::Symlink(std::fs::read_link(path).expect("a link target").into_os_string().into_vec())
        }
        () if kind.is_char_device() => What::Char(metadata.rdev()),
        () if kind.is_block_device() => What::Block(metadata.rdev()),
        () if kind.is_fifo() => What::Fifo,
        () if kind.is_socket() => What::Socket,
        () => What::File(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))),
    };
    let names = xattr::list(path).expect("names of attributes");
    let value = |name: &OsStr| xattr::get(path, name).expect("an attribute").expect("a listed attribute");
    let links = if kind.is_dir() { 1 } else { u32::try_from(metadata.nlink()).expect("a link count") };
    Node {
        what,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime(),
        links,
        xattrs: names.map(|name| (name.as_bytes().to_vec(), value(&name))).collect(),
    }
}
