//! A second mount of the same file system, which has no extended attributes.
//!
//! Overlayfs asks for an attribute of every file that a new container looks up, and the kernel keeps but one answer to that:
//! that a whole mount has no attributes. So what has none, as most images, starts faster from a mount that says so. It is
//! made when somebody asks for it, below the directory of the control sockets; it shares everything but the kernel's own
//! memory with the mount beside it. It goes out of sight with that one and ends with its last user.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::config::Config;
use crate::control;
use crate::fs::FileSystem;
use crate::fuse::{Fuse, Invalidator};
use crate::inode::Stale;
use crate::mount::{self, MountError};

/// The second mount of a file system, made or not.
#[derive(Debug)]
pub struct Bare {
    fs: Arc<FileSystem>,
    config: Config,
    mountpoint: PathBuf,
    place: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    invalidator: Arc<Invalidator>,
    session: JoinHandle<io::Result<()>>,
}

/// Takes away what clients of `mountpoint` that were killed have left. What is in use by others stays: it is no empty
/// directory.
pub(crate) fn clear_away(mountpoint: &Path) -> Result<(), MountError> {
    for place in control::bare_of_all(mountpoint) {
        if mount::is_dead(&place) {
            mount::detach(&place).map_err(|source| MountError::Mountpoint { path: place.clone(), source })?;
        }
        let _ = std::fs::remove_dir(place);
    }
    Ok(())
}

impl Bare {
    /// Of `fs`, which is mounted at `mountpoint`.
    pub fn new(fs: Arc<FileSystem>, config: &Config, mountpoint: &Path) -> Bare {
        let (mountpoint, place) = (mountpoint.to_owned(), control::bare(mountpoint));
        Bare { fs, config: Config { xattrs: false, ..config.clone() }, mountpoint, place, running: Mutex::default() }
    }

    /// Where it is, made if it is not there.
    pub fn open(&self) -> Result<&Path, MountError> {
        let mut running = self.running.lock();
        if running.as_ref().is_some_and(|running| !running.session.is_finished()) {
            return Ok(&self.place);
        }
        *running = Some(self.start()?);
        tracing::info!(mountpoint = %self.place.display(), "mounted without extended attributes, for new containers");
        Ok(&self.place)
    }

    fn start(&self) -> Result<Running, MountError> {
        clear_away(&self.mountpoint)?;
        let unusable = |source| MountError::Mountpoint { path: self.place.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.place).map_err(unusable)?;
        let fuse = Fuse::new(self.fs.clone(), &self.config);
        let kernel = fuse.kernel();
        let (session, mounted) = mount::open_session(fuse, &self.config, &self.place)?;
        let device = session.as_fd().try_clone_to_owned();
        let device = device.map_err(mount::system("keep the connection to the kernel"))?;
        let invalidator = Arc::new(Invalidator::new(device, kernel));
        let run = move || mount::serve(session, mounted);
        let session = std::thread::Builder::new().name("bare".into()).spawn(run);
        Ok(Running { invalidator, session: session.map_err(mount::system("start a thread"))? })
    }

    /// Where it is, if it is there.
    pub fn place(&self) -> Option<&Path> {
        let running = self.running.lock();
        running.as_ref().is_some_and(|running| !running.session.is_finished()).then_some(&self.place)
    }

    /// Tells its kernel what to forget.
    pub fn forget(&self, stale: &Stale) {
        // Telling waits for operations, and those may be waited for by who asks for the mount.
        let invalidator = self.running.lock().as_ref().map(|running| running.invalidator.clone());
        if let Some(invalidator) = invalidator {
            invalidator.forget(stale);
        }
    }

    /// Takes it out of sight and waits for its last user.
    pub fn close(&self) {
        let Some(running) = self.running.lock().take() else { return };
        if !running.session.is_finished() {
            // Somebody else may have unmounted it.
            let _ = mount::detach(&self.place);
        }
        let _ = std::fs::remove_dir(&self.place);
        match running.session.join() {
            Ok(Err(error)) if !mount::is_end(&error) => tracing::warn!(%error, "the mount without attributes failed"),
            _ => {}
        }
    }
}
