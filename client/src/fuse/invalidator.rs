//! Takes back what the kernel was told.
//!
//! Messages are written by hand, because the binding has none that merely *expires* a name: expired, a name is looked up
//! again when it is next used; invalidated, it would be cut off, with everything that is mounted on it, and an overlay on
//! top would lose its lower directory.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::kernel::Kernel;
use crate::inode::Stale;

/// Tells the kernel what to forget.
#[derive(Debug)]
pub struct Invalidator {
    device: File,
    kernel: Arc<Kernel>,
}

impl Invalidator {
    const INVAL_INODE: i32 = 2;
    const INVAL_ENTRY: i32 = 3;
    const EXPIRE_ONLY: u32 = 1;
    /// A negative offset: attributes only.
    const ATTRIBUTES: i64 = -1;
    const PAGES: i64 = 0;

    /// Writes to `device`, the connection of the mount.
    pub fn new(device: OwnedFd, kernel: Arc<Kernel>) -> Invalidator {
        Invalidator { device: device.into(), kernel }
    }

    /// Expires the attributes of these inodes, these listings and these names. Pages of files stay, unless it says
    /// otherwise: an inode's content never changes.
    ///
    /// Waits for operations in the directories concerned, so nothing that an operation needs may be held.
    pub fn forget(&self, stale: &Stale) {
        stale.inodes.iter().for_each(|inode| self.expire(*inode, Self::ATTRIBUTES));
        for directory in &stale.listings {
            // Whoever lists it has not put all of an answer from before among its pages. A name that no directory has
            // waits for that.
            self.expire_name(*directory, b".");
            self.expire(*directory, Self::PAGES);
        }
        stale.names.iter().for_each(|(parent, name)| self.expire_name(*parent, name));
        stale.pages.iter().for_each(|inode| self.expire(*inode, Self::PAGES));
    }

    fn expire(&self, inode: u32, from: i64) {
        let body = [&u64::from(inode).to_ne_bytes()[..], &from.to_ne_bytes(), &0i64.to_ne_bytes()].concat();
        self.notify(Self::INVAL_INODE, &body);
    }

    fn expire_name(&self, parent: u32, name: &[u8]) {
        let flags = if self.kernel.expires_names() { Self::EXPIRE_ONLY } else { 0 };
        let length = name.len() as u32;
        let head = [&u64::from(parent).to_ne_bytes()[..], &length.to_ne_bytes(), &flags.to_ne_bytes()].concat();
        self.notify(Self::INVAL_ENTRY, &[&head, name, &[0]].concat());
    }

    /// `fuse_out_header` with the code in place of an error and no request number, then the body.
    fn notify(&self, code: i32, body: &[u8]) {
        let length = (16 + body.len()) as u32;
        let message = [&length.to_ne_bytes()[..], &code.to_ne_bytes(), &0u64.to_ne_bytes(), body].concat();
        match (&self.device).write(&message).map_err(|error| (error.raw_os_error(), error)) {
            // The kernel may have forgotten by itself, or the mount may be gone: nothing to do either way.
            Ok(_) | Err((Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN), _)) => {}
            Err((_, error)) => tracing::warn!(code, %error, "the kernel could not be told what has changed"),
        }
    }
}
