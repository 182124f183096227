//! What the kernel can do, and what was agreed with it when the connection began.
//!
//! It opens no directories and, unless passthrough is wished for, no files: an inode stands for its content, so a number
//! is all it needs to read. Opens that are not answered can't fail, and count nowhere; reads do instead.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{InitFlags, KernelConfig};

/// Requests that may wait at the same time: a file that has to be downloaded is waited for by its reads. The kernel's
/// own number is 12.
const MAX_BACKGROUND: u16 = 1024;

/// Backing files may not lie on a stacked file system themselves; what is stacked on the mount may be an overlay.
const STACK_DEPTH: u32 = 1;

/// What is agreed with the kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    expires_names: AtomicBool,
    opens_files: AtomicBool,
    passes: AtomicBool,
    /// Why it does not read the cache itself although that is wished for.
    refused: OnceLock<String>,
}

impl Kernel {
    /// Agrees on everything; `passthrough` if it may read files of the cache itself.
    pub(super) fn agree(&self, config: &mut KernelConfig, cache_symlinks: bool, passthrough: bool) {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        // Another target is another inode, so cached targets are right.
        let links = cache_symlinks.then_some(InitFlags::FUSE_CACHE_SYMLINKS);
        for capability in wanted.into_iter().chain(links) {
            // What an old kernel can't do is merely slower.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let can = |flag| config.capabilities().contains(flag);
        self.expires_names.store(can(InitFlags::FUSE_HAS_EXPIRE_ONLY), Ordering::Relaxed);
        let needs_open = !can(InitFlags::FUSE_NO_OPEN_SUPPORT);
        let passes = passthrough
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok();
        if passthrough && !passes {
            self.refuse("the kernel can't (Linux 6.9 can)".into());
        }
        self.passes.store(passes, Ordering::Relaxed);
        self.opens_files.store(passes || needs_open, Ordering::Relaxed);
    }

    /// Whether names can be made to expire.
    pub fn expires_names(&self) -> bool {
        self.expires_names.load(Ordering::Relaxed)
    }

    /// Whether files are opened before they are read.
    pub fn opens_files(&self) -> bool {
        self.opens_files.load(Ordering::Relaxed)
    }

    /// Whether it reads files of the cache itself.
    pub fn passes(&self) -> bool {
        self.passes.load(Ordering::Relaxed)
    }

    /// It won't read files of the cache itself from now on.
    pub(super) fn refuse(&self, why: String) {
        self.passes.store(false, Ordering::Relaxed);
        if self.refused.get().is_none() {
            tracing::info!(why, "no passthrough: the client reads files for the kernel");
        }
        let _ = self.refused.set(why);
    }

    /// How files are read, for people.
    pub fn describe(&self) -> String {
        match (self.passes(), self.refused.get()) {
            (true, _) => "on".into(),
            (false, Some(why)) => format!("not possible: {why}"),
            (false, None) => "off".into(),
        }
    }
}
