//! Mounts and unmounts.
//!
//! A mount in the background is a second run of this program with `--foreground`, which says on its standard
//! output when the file system can be used, or why not; until then the first run waits. Nothing is forked
//! with threads in it.
//!
//! The mount is always `ro,nosuid,nodev`. Dead mounts, whose client was killed, are detached lazily, both by
//! `umount` and before mounting at the same place again.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config as FuseConfig, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::bare::{self, Bare};
use crate::cache::CacheError;
use crate::config::Config;
use crate::control::{self, Control, Shown};
use crate::device;
use crate::fetch::Objects;
use crate::fs::FileSystem;
use crate::fuse::{Fuse, Invalidator};
use crate::inode::{InodeError, Numbers};
use crate::place::Place;
use crate::remount::{Ended, Updater};
use crate::revision::{Repository, RevisionError};
use crate::stats::Stats;

/// Mounting or unmounting failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The mountpoint cannot be used.
    #[error("cannot use {path} as mountpoint")]
    Mountpoint {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something of ours is mounted there already.
    #[error("{fqrn} is already mounted on {path} (process {pid})")]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Repository there.
        fqrn: String,
        /// Its client.
        pid: u32,
    },
    /// The repository cannot be shown.
    #[error(transparent)]
    Revision(#[from] RevisionError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Inode numbers cannot be had.
    #[error(transparent)]
    Inode(#[from] InodeError),
    /// The kernel refuses.
    #[error("cannot mount on {path}")]
    Fuse {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket, a thread, the runtime.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The background process ended early; its own words.
    #[error("{0}")]
    Background(String),
    /// Unmounting failed.
    #[error("cannot unmount {path}{hint}")]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> MountError {
    move |source| MountError::System { what, source }
}

/// Shows a repository at `mountpoint` until it is unmounted; calls `ready` as soon as it can be used.
pub fn run(config: &Config, mountpoint: &Path, ready: impl FnOnce()) -> Result<(), MountError> {
    let (mountpoint, follows) = prepare(mountpoint)?;
    apply_limits(config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("network")
        .enable_all()
        .build()
        .map_err(system("start the network runtime"))?;
    let stats = Arc::new(Stats::default());
    let objects = Arc::new(Objects::new(config, runtime.handle(), &stats)?);
    let repository = Repository::new(config, &objects)?;
    let first = repository.mount()?;
    let numbers = open_numbers(config, &mountpoint, follows)?;
    let fs = FileSystem::new(config, objects, first.revision, numbers, repository.master_keys());
    let fs = Arc::new(fs);
    let hidden = if config.xattrs { 0 } else { fs.attributed() };
    if hidden > 0 {
        tracing::warn!(
            entries = hidden,
            "CVMFS_XATTRS=no hides attributes of this repository: opaque directories, capabilities"
        );
    }

    let fuse = Fuse::new(fs.clone(), config);
    let kernel = fuse.kernel();
    let heed = |kind| {
        let _runtime = runtime.enter();
        signal(kind).map_err(system("heed signals"))
    };
    // Before there is a mount: a signal that nobody heeds would leave it dead.
    let signals = [heed(SignalKind::terminate())?, heed(SignalKind::interrupt())?];
    let (session, mounted) = open_session(fuse, config, &mountpoint)?;
    let place = mounted.place().clone();
    let device = session.as_fd().try_clone_to_owned().map_err(system("keep the connection to the kernel"))?;
    let invalidator = Invalidator::new(device, kernel.clone());
    let bare = Arc::new(Bare::new(fs.clone(), config, &mountpoint));
    let beside = bare.clone();
    let updater = Arc::new(Updater::new(
        fs.clone(),
        repository,
        config.auto_update,
        config.max_ttl,
        first.offline.as_ref(),
        Box::new(move |stale| {
            invalidator.forget(stale);
            beside.forget(stale);
        }),
    ));
    let control = Control::listen(&mountpoint).map_err(system("listen on the control socket"))?;
    fs.info().control.get_or_init(|| control.path().to_owned());
    let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(run).map_err(system("start a thread"))
    };
    let (listener, served) = (control.try_clone().map_err(system("share the control socket"))?, updater.clone());
    let shown = Shown { place: place.clone(), fs: fs.clone(), updater: served, kernel, bare: bare.clone() };
    spawn("control", Box::new(move || listener.serve(&Arc::new(shown))))?;
    let (updating, revoked) = (updater.clone(), place.clone());
    let update = move || {
        if updating.run() == Ended::Revoked && hide(&revoked).is_err() {
            tracing::error!(mountpoint = %revoked.mountpoint().display(), "cannot unmount it");
        }
    };
    let updates = spawn("update", Box::new(update))?;
    runtime.spawn(unmount_on_signal(signals, place));
    // Until the session runs, requests wait in the kernel.
    ready();
    let view = fs.view();
    tracing::info!(
        repository = config.fqrn,
        mountpoint = %mountpoint.display(),
        revision = view.revision.number,
        root = %view.revision.root_hash(),
        "mounted"
    );
    drop(view);
    let ended = serve(session, mounted);
    drop(control);
    bare.close();
    fs.prefetcher().close();
    updater.stop();
    // A check may wait for the network; the process need not wait for it.
    drop(updates);
    runtime.shutdown_background();
    fs.objects().cache().close();
    tracing::info!(repository = config.fqrn, "unmounted");
    match ended {
        Ok(()) => Ok(()),
        // The connection ended while a request was being read.
        Err(error) if is_end(&error) => Ok(()),
        Err(source) => Err(MountError::Fuse { path: mountpoint, source }),
    }
}

/// A mount of this process. It goes out of sight when this is dropped: nobody would answer.
#[derive(Debug)]
pub(crate) struct Mounted(Place);

impl Mounted {
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = hide(&self.0);
    }
}

/// Answers the kernel until nobody uses the mount any more.
pub(crate) fn serve(session: Session<Fuse>, mounted: Mounted) -> io::Result<()> {
    let ended = session.run();
    drop(mounted);
    ended
}

/// Whether the connection ended because nobody uses the mount any more.
pub(crate) fn is_end(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ECONNABORTED))
}

/// Mounts a file system; it is served by [`serve`].
pub(crate) fn open_session(
    fuse: Fuse,
    config: &Config,
    mountpoint: &Path,
) -> Result<(Session<Fuse>, Mounted), MountError> {
    // The kernel would only say "permission denied", without saying to what.
    let device = device::open()
        .map_err(system("use /dev/fuse: load the kernel module fuse, and give users access (mode 0666)"))?;
    // Other users may look unless the system forbids it to ordinary users.
    let allow_others = may_allow_others();
    let options = device::Options { noexec: config.noexec, check_permissions: config.check_permissions, allow_others };
    let mut fuse_config = FuseConfig::default();
    // Readers of requests answer from memory and cache; more than cores, because a long listing takes a while.
    let threads = || std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 16);
    fuse_config.n_threads = Some(config.threads.unwrap_or_else(threads));
    fuse_config.clone_fd = true;
    let acl = if allow_others { SessionACL::All } else { SessionACL::Owner };
    let failed = |source| MountError::Fuse { path: mountpoint.to_owned(), source };
    let device = device::mount_on(mountpoint, device, options).map_err(failed)?;
    let mounted = Mounted(Place::of(mountpoint));
    let session = Session::from_fd(fuse, device, acl, fuse_config).map_err(failed)?;
    Ok((session, mounted))
}

fn may_allow_others() -> bool {
    let allowed = |text: String| text.lines().any(|line| line.trim() == "user_allow_other");
    nix::unistd::geteuid().is_root() || std::fs::read_to_string("/etc/fuse.conf").is_ok_and(allowed)
}

/// Absolute path of a directory that something can be mounted on, and whether a client that was mounted there serves others
/// still; a dead mount of ours is cleared away.
fn prepare(mountpoint: &Path) -> Result<(PathBuf, bool), MountError> {
    let wrong = |source| MountError::Mountpoint { path: mountpoint.to_owned(), source };
    if is_dead(mountpoint) {
        detach(mountpoint).map_err(wrong)?;
    }
    let path = mountpoint.canonicalize().map_err(wrong)?;
    device::place(&path).map_err(wrong)?;
    let follows = match control::ask_status(&control::socket(&path)) {
        Ok(status) if !status.detached => {
            return Err(MountError::Busy { path, fqrn: status.fqrn, pid: status.pid });
        }
        other => other.is_ok(),
    };
    bare::clear_away(&path)?;
    Ok((path, follows))
}

/// Whether the client behind a mountpoint is gone. `stat` would not tell while the kernel has its answer cached.
pub(crate) fn is_dead(mountpoint: &Path) -> bool {
    let Ok(place) = device::place(mountpoint) else { return false };
    // Who asks while it dies is told that the connection was aborted.
    matches!(nix::sys::statvfs::fstatvfs(&place), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// The list of numbers of this mountpoint; the first free one if somebody else uses a mountpoint of the same
/// name (in another mount namespace, or `follows`: before us).
fn open_numbers(config: &Config, mountpoint: &Path, follows: bool) -> Result<Numbers, InodeError> {
    // Somebody who is about to end is waited for.
    let patience = if follows { Duration::ZERO } else { Duration::from_secs(5) };
    let directory = config.workspace.join("inodes");
    // When it cannot be made, opening a file in it says why.
    let _ = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    let base = format!("{}@{}", config.fqrn, control::key(mountpoint));
    let mut result = Numbers::open(&directory.join(&base), patience);
    for other in 2..=16 {
        match &result {
            Err(InodeError::Database { source: rusqlite::Error::SqliteFailure(e, _), .. })
                if e.code == rusqlite::ErrorCode::DatabaseBusy =>
            {
                result = Numbers::open(&directory.join(format!("{base}.{other}")), Duration::ZERO);
            }
            _ => break,
        }
    }
    result
}

/// What the configuration says about this process. None of it is worth failing for.
fn apply_limits(config: &Config) {
    // Every open file of the mount takes a descriptor here.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = config.open_files;
        let hard = if nix::unistd::geteuid().is_root() { hard.max(wanted) } else { hard };
        if setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted.min(hard)), hard).is_err() || hard < wanted {
            tracing::info!(wanted, allowed = hard, "fewer open files than CVMFS_NFILES says");
        }
    }
    if let Some(score) = config.oom_score
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::warn!(score, %error, "cannot set CVMFS_OOM_SCORE_ADJ");
    }
    if !config.cores.is_empty() {
        let mut set = nix::sched::CpuSet::new();
        let all = config.cores.iter().try_for_each(|core| set.set(*core));
        // Threads that are started later inherit it.
        if let Err(error) = all.and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)) {
            tracing::warn!(cores = ?config.cores, %error, "cannot set CVMFS_CPU_AFFINITY");
        }
    }
}

async fn unmount_on_signal([mut terminate, mut interrupt]: [Signal; 2], place: Place) {
    loop {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(mountpoint = %place.mountpoint().display(), "unmounting on a signal");
        let place = place.clone();
        let _ = tokio::task::spawn_blocking(move || hide(&place)).await;
    }
}

/// Takes a mount of this process out of sight, gone with its last user. What others have mounted over it stays.
fn hide(place: &Place) -> io::Result<()> {
    if !place.is_seen() {
        return Ok(());
    }
    unmount_now(place.mountpoint()).or_else(|_| detach(place.mountpoint()))
}

fn unmount_now(mountpoint: &Path) -> io::Result<()> {
    match umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => fusermount(mountpoint, "-u"),
        result => Ok(result?),
    }
}

pub(crate) fn detach(mountpoint: &Path) -> io::Result<()> {
    match umount2(mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => fusermount(mountpoint, "-uz"),
        result => Ok(result?),
    }
}

fn fusermount(mountpoint: &Path, how: &str) -> io::Result<()> {
    let output = Command::new("fusermount3").arg(how).arg("--").arg(mountpoint).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Unmounts and waits until the client has ended.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let fail = |hint| move |source| MountError::Unmount { path: mountpoint.to_owned(), hint, source };
    if is_dead(mountpoint) {
        detach(mountpoint).map_err(fail(""))?;
        return bare::clear_away(&mountpoint.canonicalize().map_err(fail(""))?);
    }
    let path = mountpoint.canonicalize().map_err(fail(""))?;
    let client = control::ask_status(&control::socket(&path)).ok().filter(|client| !client.detached);
    if lazy {
        return detach(&path).map_err(fail(""));
    }
    let busy = |source: io::Error| {
        let hint = match source.raw_os_error() {
            Some(libc::EBUSY) => {
                ": it is in use (see `fuser -vm`); --lazy takes it out of sight and ends it with its last user"
            }
            Some(libc::EINVAL) => ": nothing is mounted there",
            _ => "",
        };
        fail(hint)(source)
    };
    // Containers use that one. Whoever asks for it again gets another.
    if let Some(bare) = client.as_ref().and_then(|client| client.bare.as_deref()) {
        match unmount_now(Path::new(bare)) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(busy(error)),
            _ => {}
        }
    }
    unmount_now(&path).map_err(busy)?;
    let Some(client) = client else { return Ok(()) };
    // A zombie has no program any more, whether or not its parent has noticed. A client that another mount
    // namespace still uses goes on; so do we, after a while.
    let program = PathBuf::from(format!("/proc/{}/exe", client.pid));
    let until = Instant::now() + Duration::from_secs(10);
    let runs = || !matches!(std::fs::read_link(&program), Err(e) if e.kind() == io::ErrorKind::NotFound);
    while runs() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// First word of the line by which the background process says that all is well.
const READY: &str = "ready";

/// Says to systemd that the mount can be used, if it is systemd who started us.
pub fn notify() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Leaves the session of whoever started us, says to the waiting first run that the mount can be used, and lets go of its
/// pipe.
pub fn say_ready() {
    // Not before there is a mount: until then, autofs lets nobody have a look at its place but the processes of its own group.
    let _ = nix::unistd::setsid();
    let mut out = io::stdout();
    let _ = writeln!(out, "{READY}").and_then(|()| out.flush());
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

/// Runs this program again with `arguments` in the background; returns when the mount can be used. What it
/// logs goes to the file `log`.
pub fn in_background(arguments: &[std::ffi::OsString], log: &Path) -> Result<(), MountError> {
    let log_file = std::fs::File::options().create(true).append(true).open(log).map_err(system("open the log file"))?;
    let program = std::env::current_exe().map_err(system("find this program"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(system("start the background process"))?;
    let mut said = String::new();
    let pipe = child.stdout.take().expect("it was asked for");
    for line in BufReader::new(pipe).lines() {
        let line = line.map_err(system("listen to the background process"))?;
        if line == READY {
            return Ok(());
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().map_err(system("wait for the background process"))?;
    let said = said.trim_end();
    let text = if said.is_empty() {
        format!("the client ended at once ({status}); see {}", log.display())
    } else {
        said.to_owned()
    };
    Err(MountError::Background(text))
}
