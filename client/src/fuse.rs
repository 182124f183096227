//! Translates between the kernel's requests and the file system; decides nothing.
//!
//! A request is answered in place when everything it needs is on this machine. Otherwise it goes, with its
//! reply, to a thread that may wait; the threads that read requests never do. One place turns errors into
//! numbers for the kernel, logs failures with path and cause, and counts them.
//!
//! Every request costs whoever makes it two changes of process, so the best answer is one that the kernel keeps: names,
//! attributes and listings until they change ([`Invalidator`]), pages and targets of links as long as it likes.

mod attributes;
mod invalidator;
mod kernel;
mod passthrough;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use crate::config::Config;
use crate::fetch::Wait;
use crate::fs::directory::Directory;
use crate::fs::{FileSystem, FsError, Lookup};
use crate::revision::Chain;
use crate::stats::Request as Asked;
use crate::xattr::Reader;
use attributes::{attributes, kind, nothing};
pub use invalidator::Invalidator;
pub use kernel::Kernel;
use passthrough::Backings;

/// The kernel's side of a mount.
#[derive(Debug)]
pub struct Fuse {
    fs: Arc<FileSystem>,
    kernel: Arc<Kernel>,
    backings: Arc<Backings<BackingId>>,
    cache_symlinks: bool,
    passthrough: bool,
    xattrs: bool,
}

impl Fuse {
    /// Serves `fs` as `config` says.
    pub fn new(fs: Arc<FileSystem>, config: &Config) -> Fuse {
        let Config { cache_symlinks, passthrough, xattrs, .. } = *config;
        Fuse { fs, kernel: Arc::default(), backings: Arc::default(), cache_symlinks, passthrough, xattrs }
    }

    /// Facts about the kernel, filled in by the first request.
    pub fn kernel(&self) -> Arc<Kernel> {
        self.kernel.clone()
    }

    fn count(&self, asked: Asked) {
        self.fs.stats().requests.count(asked);
    }

    /// Answers in place if possible, otherwise on a thread that may wait.
    fn answer<R: Send + 'static, T>(
        &self,
        (asked, request): (Asked, &Request),
        inode: INodeNo,
        reply: R,
        operation: impl Fn(&FileSystem, u32, Wait) -> Result<T, FsError> + Send + 'static,
        send: impl FnOnce(&FileSystem, R, Result<T, Errno>) + Send + 'static,
    ) {
        self.count(asked);
        let (what, number) = (asked.name(), number(inode));
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

/// Number of an inode; 0, which is none, for what cannot be one.
fn number(inode: INodeNo) -> u32 {
    u32::try_from(inode.0).unwrap_or(0)
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
        self.kernel.agree(config, self.cache_symlinks, self.passthrough);
        if self.kernel.expires_names() {
            self.fs.kernel_is_told();
        }
        if self.kernel.passes() {
            self.fs.kernel_passes();
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name: Arc<[u8]> = name.as_bytes().into();
        let copy = name.clone();
        let operation = move |fs: &FileSystem, parent, wait| Ok((parent, fs.lookup(parent, &copy, wait)?));
        self.answer((Asked::Lookup, request), parent, reply, operation, move |fs, reply, result| match result {
            Ok((parent, Lookup::Found(node))) => {
                let attr = attributes(&fs.attr(&node));
                let generation = node.generation;
                fs.remember(node, Some((parent, (*name).into())));
                fs.with_ttl(generation, |ttl, _| reply.entry(&ttl, &attr, GENERATION));
            }
            Ok((parent, Lookup::Missing { catalog, generation })) => {
                match fs.remember_missing(parent, &name, catalog) {
                    Some(most) => {
                        fs.with_ttl(generation, |ttl, _| reply.entry(&ttl.min(most), &nothing(), GENERATION));
                    }
                    None => reply.error(Errno::ENOENT),
                }
            }
            Err(error) => reply.error(error),
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.count(Asked::Forget);
        self.fs.forget(number(inode), lookups);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer((Asked::Getattr, request), inode, reply, FileSystem::getattr, |fs, reply, result| match result {
            Ok((attr, generation)) => fs.with_ttl(generation, |ttl, _| reply.attr(&ttl, &attributes(&attr))),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        self.answer((Asked::Readlink, request), inode, reply, FileSystem::readlink, |_, reply, result| match result {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if !self.kernel.opens_files() {
            self.count(Asked::Open);
            // It never asks again, nor does it tell when a file is closed.
            return reply.error(Errno::ENOSYS);
        }
        let (kernel, backings) = (self.kernel.clone(), self.backings.clone());
        self.answer((Asked::Open, request), inode, reply, FileSystem::open, move |fs, reply, result| match result {
            Ok(handle) => send_opened(fs, &kernel, &backings, (number(inode), handle), reply),
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
        let read = move |fs: &FileSystem, inode, wait| {
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < size as usize {
                    buffer.resize(size as usize, 0);
                }
                let buffer = &mut buffer[..size as usize];
                match handle.0 {
                    0 => fs.read_from(&*fs.recent(inode, wait)?, offset, buffer, wait),
                    handle => fs.read(handle, offset, buffer, wait),
                }
            })
        };
        self.answer((Asked::Read, request), inode, reply, read, |_, reply, result| match result {
            // The same thread has just read into it.
            Ok(length) => BUFFER.with_borrow(|buffer| reply.data(&buffer[..length])),
            Err(error) => reply.error(error),
        });
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Asked::Release);
        self.fs.release(handle.0);
        self.backings.close(number(inode));
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.count(Asked::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Asked::Opendir);
        // It never asks again, and keeps listings.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.count(Asked::Readdir);
        send_listing(&self.fs, request.pid(), (number(inode), offset), Wait::No, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.count(Asked::Readdirplus);
        send_listing(&self.fs, request.pid(), (number(inode), offset), Wait::No, reply);
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.count(Asked::Statfs);
        const BLOCK: u32 = 512;
        let stat = self.fs.statfs();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK);
        reply.statfs(blocks(stat.total), blocks(stat.free), blocks(stat.free), stat.entries, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            self.count(Asked::Getxattr);
            // It never asks again.
            return reply.error(Errno::ENOSYS);
        }
        let name: Box<[u8]> = name.as_bytes().into();
        let reader = Reader { uid: request.uid(), gid: request.gid() };
        let operation = move |fs: &FileSystem, inode, wait| fs.getxattr_as(reader, inode, &name, wait);
        self.answer((Asked::Getxattr, request), inode, reply, operation, move |_, reply, result| match result {
            Ok(value) => send_bytes(reply, size, &value),
            Err(error) => reply.error(error),
        });
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            self.count(Asked::Listxattr);
            // Nothing to list is no error for programs, as it is on other file systems.
            return send_bytes(reply, size, &[]);
        }
        self.answer((Asked::Listxattr, request), inode, reply, FileSystem::listxattr, move |_, reply, result| {
            match result {
                Ok(names) => {
                    let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
                    send_bytes(reply, size, &list);
                }
                Err(error) => reply.error(error),
            }
        });
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _most: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask whether a file is a terminal.
        self.count(Asked::Ioctl);
        reply.error(Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // Where holes are: it answers that itself from now on.
        self.count(Asked::Other);
        reply.error(Errno::ENOSYS);
    }
}

/// Answers who opened a file: from the cache itself, if the kernel can.
fn send_opened(
    fs: &FileSystem,
    kernel: &Kernel,
    backings: &Backings<BackingId>,
    (inode, handle): (u32, u64),
    reply: ReplyOpen,
) {
    let (file, handle) = (fs.file(handle).ok(), FileHandle(handle));
    let register = || {
        let whole = file.as_ref().filter(|file| kernel.passes() && !file.is_direct())?;
        // It may not be able to for this file system, or not let us: so it will be for every file.
        reply.open_backing(whole.whole()?).map_err(|error| kernel.refuse(error.to_string())).ok()
    };
    if let Some(backing) = backings.open(inode, register) {
        return reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
    }
    // An inode stands for its content, so pages from before are right.
    let pages = match file.is_some_and(|file| file.is_direct()) {
        true => FopenFlags::FOPEN_DIRECT_IO,
        false => FopenFlags::FOPEN_KEEP_CACHE,
    };
    reply.opened(handle, pages | FopenFlags::FOPEN_NOFLUSH);
}

/// An answer with names.
trait Names: Send + Sized + 'static {
    /// Adds those from `first` on that fit; whether that was all, and there was none.
    fn fill(&mut self, fs: &FileSystem, directory: &Directory, first: usize, ttl: &Duration) -> bool;
    fn send(self);
    fn fail(self, error: Errno);
}

impl Names for ReplyDirectory {
    fn fill(&mut self, _fs: &FileSystem, directory: &Directory, first: usize, _ttl: &Duration) -> bool {
        let items = directory.items.get(first..).unwrap_or_default();
        for (next, item) in (first as u64 + 1..).zip(items) {
            if self.add(INodeNo(item.inode.into()), next, kind(item.kind), OsStr::from_bytes(&item.name)) {
                break;
            }
        }
        items.is_empty()
    }

    fn send(self) {
        self.ok();
    }

    fn fail(self, error: Errno) {
        self.error(error);
    }
}

impl Names for ReplyDirectoryPlus {
    fn fill(&mut self, fs: &FileSystem, directory: &Directory, first: usize, ttl: &Duration) -> bool {
        let items = directory.items.get(first..).unwrap_or_default();
        for (next, item) in (first as u64 + 1..).zip(items) {
            let number = INodeNo(item.inode.into());
            // The kernel takes nothing but the number from "." and "..", and does not count them.
            let attr = match &item.node {
                Some(node) => attributes(&fs.attr(node)),
                None => FileAttr { ino: number, kind: fuser::FileType::Directory, ..nothing() },
            };
            if self.add(number, next, OsStr::from_bytes(&item.name), ttl, &attr, GENERATION) {
                break;
            }
            if let Some(node) = &item.node {
                fs.remember(node.clone(), Some((directory.inode, item.name.clone())));
            }
        }
        items.is_empty()
    }

    fn send(self) {
        self.ok();
    }

    fn fail(self, error: Errno) {
        self.error(error);
    }
}

/// Answers with the names of a directory from an offset on, on a thread that may wait if it has to.
fn send_listing<N: Names>(fs: &Arc<FileSystem>, task: u32, (inode, offset): (u32, u64), wait: Wait, mut names: N) {
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    loop {
        let directory = match fs.listing(inode, first == 0, wait) {
            Ok(directory) => directory,
            Err(FsError::WouldBlock) => {
                let later = fs.clone();
                return fs.pool().run(move || {
                    send_listing(&later, task, (inode, offset), Wait::For(process_of(task)), names);
                });
            }
            Err(error) => return names.fail(errno(fs, "readdir", inode, &error)),
        };
        // The kernel keeps what begins now, so it has to be of the view that it is told the end of.
        let sent = fs.with_ttl(directory.generation, |ttl, is_current| {
            if first == 0 && !is_current {
                return Err(names);
            }
            let is_end = names.fill(fs, &directory, first, &ttl);
            names.send();
            Ok(is_end)
        });
        match sent {
            Ok(is_end) => {
                if is_end {
                    fs.listed(inode);
                }
                return;
            }
            Err(unsent) => names = unsent,
        }
    }
}
