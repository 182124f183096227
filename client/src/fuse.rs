//! Translates between the kernel's requests and the file system; decides nothing.
//!
//! A request is answered in place when everything it needs is on this machine. Otherwise it goes, with its
//! reply, to a thread that may wait; the threads that read requests never do. One place turns errors into
//! numbers for the kernel, logs failures with path and cause, and counts them.
//!
//! Invalidations are written by hand, because the binding has none that merely *expires* a name: expired, a
//! name is looked up again when it is next used; invalidated, it would be cut off, with everything that is
//! mounted on it, and an overlay on top would lose its lower directory.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cvmfs::entry::FileType;
use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};

use crate::fetch::Wait;
use crate::fs::{Attr, FileSystem, FsError, Lookup};
use crate::inode::Stale;
use crate::revision::Chain;
use crate::xattr::Reader;

/// Requests the kernel sends ahead (read-ahead) before it waits; its own default is 12.
const MAX_BACKGROUND: u16 = 128;

/// What the kernel said about itself when the connection began.
#[derive(Debug, Default)]
pub struct Kernel {
    expires_names: AtomicBool,
}

/// The kernel's side of a mount.
#[derive(Debug)]
pub struct Fuse {
    fs: Arc<FileSystem>,
    kernel: Arc<Kernel>,
    cache_symlinks: bool,
}

impl Fuse {
    /// Serves `fs`; the kernel may cache link targets if it is told so.
    pub fn new(fs: Arc<FileSystem>, cache_symlinks: bool) -> Fuse {
        Fuse { fs, kernel: Arc::default(), cache_symlinks }
    }

    /// Facts about the kernel, filled in by the first request.
    pub fn kernel(&self) -> Arc<Kernel> {
        self.kernel.clone()
    }

    /// Answers in place if possible, otherwise on a thread that may wait.
    fn answer<R: Send + 'static, T>(
        &self,
        (what, request): (&'static str, &Request),
        inode: INodeNo,
        reply: R,
        operation: impl Fn(&FileSystem, u32, Wait) -> Result<T, FsError> + Send + 'static,
        send: impl FnOnce(&FileSystem, R, Result<T, Errno>) + Send + 'static,
    ) {
        let number = u32::try_from(inode.0).unwrap_or(0);
        match operation(&self.fs, number, Wait::No) {
            Err(FsError::WouldBlock) => {
                let (fs, task) = (self.fs.clone(), request.pid());
                self.fs.pool().run(move || {
                    let result = operation(&fs, number, Wait::For(process_of(task)));
                    let result = result.map_err(|error| errno(&fs, what, number, &error));
                    send(&fs, reply, result);
                });
            }
            result => {
                let result = result.map_err(|error| errno(&self.fs, what, number, &error));
                send(&self.fs, reply, result);
            }
        }
    }
}

/// The process of a task, by which waiting readers take turns; the task itself when nobody can tell.
fn process_of(task: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.unwrap_or(task)
}

/// The only way from an error to the kernel.
fn errno(fs: &FileSystem, operation: &'static str, inode: u32, error: &FsError) -> Errno {
    if error.is_failure() {
        fs.stats().io_error();
        tracing::error!(operation, inode, error = %Chain(error), "failed");
    }
    Errno::from_i32(error.errno())
}

fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

fn kind(file_type: FileType) -> fuser::FileType {
    match file_type {
        FileType::Regular => fuser::FileType::RegularFile,
        FileType::Directory => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Char => fuser::FileType::CharDevice,
        FileType::Block => fuser::FileType::BlockDevice,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
    }
}

fn attributes(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime.0, attr.mtime.1);
    FileAttr {
        ino: INodeNo(attr.inode.into()),
        size: attr.size,
        blocks: 1 + attr.size / 512,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(FileType::from_mode(attr.mode).unwrap_or(FileType::Regular)),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// What "there is no such name" looks like when the kernel may remember it: inode 0.
fn nothing() -> FileAttr {
    attributes(&Attr { inode: 0, mode: 0, links: 0, uid: 0, gid: 0, size: 0, rdev: 0, mtime: (0, 0) })
}

/// Inodes are never used for something else, so one generation is enough.
const GENERATION: Generation = Generation(0);

fn send_bytes(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

thread_local! {
    /// One buffer a thread instead of one a read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Fuse {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        // Another target is another inode, so cached targets are right.
        let links = self.cache_symlinks.then_some(InitFlags::FUSE_CACHE_SYMLINKS);
        for capability in wanted.into_iter().chain(links) {
            // What an old kernel can't do is merely slower.
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let expires = config.capabilities().contains(InitFlags::FUSE_HAS_EXPIRE_ONLY);
        self.kernel.expires_names.store(expires, Ordering::Relaxed);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name: Arc<[u8]> = name.as_bytes().into();
        let copy = name.clone();
        self.fs.stats().lookups.add(1);
        let operation = move |fs: &FileSystem, parent, wait| Ok((parent, fs.lookup(parent, &copy, wait)?));
        self.answer(("lookup", request), parent, reply, operation, move |fs, reply, result| match result {
            Ok((parent, Lookup::Found(node))) => {
                let attr = attributes(&fs.attr(&node));
                let generation = node.generation;
                fs.remember(node, Some((parent, (*name).into())));
                fs.with_ttl(generation, |ttl| reply.entry(&ttl, &attr, GENERATION));
            }
            Ok((parent, Lookup::Missing { catalog, generation })) => {
                if fs.remember_missing(parent, &name, catalog) {
                    fs.with_ttl(generation, |ttl| reply.entry(&ttl, &nothing(), GENERATION));
                } else {
                    reply.error(Errno::ENOENT);
                }
            }
            Err(error) => reply.error(error),
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.fs.forget(u32::try_from(inode.0).unwrap_or(0), lookups);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(("getattr", request), inode, reply, FileSystem::getattr, |fs, reply, result| match result {
            Ok((attr, generation)) => fs.with_ttl(generation, |ttl| reply.attr(&ttl, &attributes(&attr))),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        self.answer(("readlink", request), inode, reply, FileSystem::readlink, |_, reply, result| match result {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        self.answer(("open", request), inode, reply, FileSystem::open, |fs, reply, result| match result {
            Ok(handle) => {
                // An inode stands for its content, so pages from before are right.
                let mut flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                if fs.file(handle).is_ok_and(|file| file.is_direct()) {
                    flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                }
                reply.opened(FileHandle(handle), flags);
            }
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = move |fs: &FileSystem, _inode, wait| {
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < size as usize {
                    buffer.resize(size as usize, 0);
                }
                fs.read(handle.0, offset, &mut buffer[..size as usize], wait)
            })
        };
        self.answer(("read", request), inode, reply, read, |_, reply, result| match result {
            // The same thread has just read into it.
            Ok(length) => BUFFER.with_borrow(|buffer| reply.data(&buffer[..length])),
            Err(error) => reply.error(error),
        });
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(handle.0);
        reply.ok();
    }

    fn opendir(&self, request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer(("opendir", request), inode, reply, FileSystem::open_directory, |_, reply, result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(&self, _request: &Request, _inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let directory = match self.fs.directory(handle.0) {
            Ok(directory) => directory,
            Err(error) => return reply.error(Errno::from_i32(error.errno())),
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, item) in (offset + 1..).zip(directory.items.iter().skip(first)) {
            if reply.add(INodeNo(item.inode.into()), next, kind(item.kind), OsStr::from_bytes(&item.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = &self.fs;
        let directory = match fs.directory(handle.0) {
            Ok(directory) => directory,
            Err(error) => return reply.error(Errno::from_i32(error.errno())),
        };
        let parent = u32::try_from(inode.0).unwrap_or(0);
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        fs.with_ttl(directory.generation, |ttl| {
            for (next, item) in (offset + 1..).zip(directory.items.iter().skip(first)) {
                let number = INodeNo(item.inode.into());
                // The kernel takes nothing but the number from "." and "..", and does not count them.
                let attr = match &item.node {
                    Some(node) => attributes(&fs.attr(node)),
                    None => FileAttr { ino: number, kind: fuser::FileType::Directory, ..nothing() },
                };
                if reply.add(number, next, OsStr::from_bytes(&item.name), &ttl, &attr, GENERATION) {
                    break;
                }
                if let Some(node) = &item.node {
                    fs.remember(node.clone(), Some((parent, item.name.clone())));
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.release_directory(handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 512;
        let stat = self.fs.statfs();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK);
        reply.statfs(blocks(stat.total), blocks(stat.free), blocks(stat.free), stat.entries, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name: Box<[u8]> = name.as_bytes().into();
        let reader = Reader { uid: request.uid(), gid: request.gid() };
        let operation = move |fs: &FileSystem, inode, wait| fs.getxattr_as(reader, inode, &name, wait);
        self.answer(("getxattr", request), inode, reply, operation, move |_, reply, result| match result {
            Ok(value) => send_bytes(reply, size, &value),
            Err(error) => reply.error(error),
        });
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            ("listxattr", request),
            inode,
            reply,
            FileSystem::listxattr,
            move |_, reply, result| match result {
                Ok(names) => {
                    let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
                    send_bytes(reply, size, &list);
                }
                Err(error) => reply.error(error),
            },
        );
    }
}

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

    /// Writes to `device`, the connection of the mount.
    pub fn new(device: OwnedFd, kernel: Arc<Kernel>) -> Invalidator {
        Invalidator { device: device.into(), kernel }
    }

    /// Expires the attributes of these inodes and these names. Pages stay: an inode's content never changes.
    ///
    /// Waits for operations in the directories concerned, so nothing that an operation needs may be held.
    pub fn forget(&self, stale: &Stale) {
        for inode in &stale.inodes {
            // A negative offset: attributes only.
            let body = [&u64::from(*inode).to_ne_bytes()[..], &(-1i64).to_ne_bytes(), &0i64.to_ne_bytes()].concat();
            self.notify(Self::INVAL_INODE, &body);
        }
        let flags = if self.kernel.expires_names.load(Ordering::Relaxed) { Self::EXPIRE_ONLY } else { 0 };
        for (parent, name) in &stale.names {
            let length = name.len() as u32;
            let head = [&u64::from(*parent).to_ne_bytes()[..], &length.to_ne_bytes(), &flags.to_ne_bytes()].concat();
            self.notify(Self::INVAL_ENTRY, &[&head, &name[..], &[0]].concat());
        }
    }

    /// `fuse_out_header` with the code in place of an error and no request number, then the body.
    fn notify(&self, code: i32, body: &[u8]) {
        let length = (16 + body.len()) as u32;
        let message = [&length.to_ne_bytes()[..], &code.to_ne_bytes(), &0u64.to_ne_bytes(), body].concat();
        // The kernel may have forgotten by itself (ENOENT), or the mount may be gone: nothing to do either way.
        if let Err(error) = (&self.device).write(&message) {
            tracing::trace!(code, %error, "the kernel knows nothing of it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_far_away_keep_their_value() {
        for (seconds, nanoseconds) in [(0, 0), (-1, 500_000_000), (-2_147_483_648, 0), (15_032_385_535, 999_999_999)] {
            let at = time(seconds, nanoseconds);
            let back = match at.duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
            assert_eq!(back, i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds));
        }
        let _ = time(i64::MIN, 0);
        let _ = time(i64::MAX, 999_999_999);
    }
}
