//! The control socket of a mount: ask for its state, make it look for a new revision.
//!
//! A request is one line of text, the answer one line of JSON; `{"error": TEXT}` says why there is none.
//!
//! | request | answer |
//! |---|---|
//! | `status` | [`Status`] |
//! | `remount` | [`Outcome`] |
//! | `prefetch ANNOUNCEMENT` | what is fetched ahead: [`Announced`], for an [`Announcement`] in JSON |
//! | `bare` | `{"mountpoint": PATH}`: the same without extended attributes, see [`Bare`] |
//! | `record start` | `{}`; what is read from now on is recorded, the kernel's pages are dropped for that |
//! | `record stop DIRECTORY` | `{"list": TEXT}`: the start-up list of what was touched below a directory of the repository |
//!
//! The socket's name follows from the mountpoint, so commands find it without a registry; other programs find it in the
//! attribute `user.control` of the mountpoint; a name left over by a killed client is taken over, as is that of
//! a client whose mount is out of sight.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cvmfs::path::{PathKey, RepoPath};
use serde::{Deserialize, Serialize};

use crate::bare::Bare;
use crate::fs::FileSystem;
use crate::fuse::Kernel;
use crate::place::Place;
use crate::prefetch::{Announced, Announcement, MAX_ANNOUNCEMENT, Summary};
use crate::remount::{Outcome, Updater};
use crate::revision::Chain;
use crate::stats::Request;
use crate::xattr::{current_host, current_proxy};

/// How long a client of the socket is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_REQUEST: u64 = MAX_ANNOUNCEMENT + 4096;

/// State of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this record.
    pub schema: u32,
    /// Repository name.
    pub fqrn: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// It was unmounted lazily, and serves those who still use it. Another client may take its place.
    #[serde(default)]
    pub detached: bool,
    /// Process.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Seconds since the mount.
    pub uptime: u64,
    /// Revision shown.
    pub revision: u64,
    /// Root catalog of it.
    pub root_hash: String,
    /// Named snapshot, when it was chosen by name or date.
    #[serde(default)]
    pub tag: Option<String>,
    /// Why the servers' state is not known, if so.
    pub offline: Option<String>,
    /// Seconds to the next check; none when the revision is fixed.
    pub next_check: Option<u64>,
    /// Server in use.
    pub host: String,
    /// Proxy in use.
    pub proxy: String,
    /// Attached catalogs.
    pub catalogs: usize,
    /// Inodes held by the kernel.
    pub inodes: usize,
    /// Open files.
    pub open_files: usize,
    /// Cache directory.
    pub cache: String,
    /// Bytes in the cache.
    pub cache_used: u64,
    /// Bytes the cache may hold.
    pub cache_limit: Option<u64>,
    /// Times old objects were removed.
    pub cache_evictions: u64,
    /// Objects downloaded.
    pub downloads: u64,
    /// Bytes received.
    pub received: u64,
    /// Objects found in the cache, in thousandths.
    pub hit_rate: u64,
    /// Requests sent again after a failure.
    pub retries: u64,
    /// Changes of server or proxy after a failure.
    pub failovers: u64,
    /// Operations that ended in an I/O error.
    pub io_errors: u64,
    /// Names that the kernel asked for.
    #[serde(default)]
    pub lookups: u64,
    /// All that the kernel asked for, by kind.
    #[serde(default)]
    pub requests: BTreeMap<String, u64>,
    /// Whether the kernel reads files of the cache itself: `on`, `off`, or why not.
    #[serde(default)]
    pub passthrough: String,
    /// Milliseconds of all requests together; divided by the time they took, the number that ran at once.
    #[serde(default)]
    pub transfer_millis: u64,
    /// Since when a server or proxy is used that is not the first choice, in seconds.
    #[serde(default)]
    pub switched: Option<u64>,
    /// What is fetched ahead.
    #[serde(default)]
    pub prefetch: Summary,
    /// Where it is mounted without extended attributes, if it is.
    #[serde(default)]
    pub bare: Option<String>,
}

/// What a control socket is of.
#[derive(Debug)]
pub struct Shown {
    /// Where it is mounted.
    pub place: Place,
    /// What is shown there.
    pub fs: Arc<FileSystem>,
    /// Who looks for new revisions.
    pub updater: Arc<Updater>,
    /// What is agreed with the kernel.
    pub kernel: Arc<Kernel>,
    /// The same without extended attributes.
    pub bare: Arc<Bare>,
}

/// Directory of the sockets of this user.
pub fn directory() -> PathBuf {
    let uid = nix::unistd::geteuid();
    // Who is root in a user namespace only (`podman unshare`) sees that /run belongs to somebody else.
    let is_ours = |path: &str| std::fs::metadata(path).is_ok_and(|found| found.uid() == 0);
    if uid.is_root() && is_ours("/run") {
        return "/run/cvmfs-client".into();
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    runtime.map_or_else(|| format!("/tmp/cvmfs-client-{uid}").into(), |path| path.join("cvmfs-client"))
}

/// Socket of the mount at `mountpoint`, an absolute path. A hash, because socket names are short.
pub fn socket(mountpoint: &Path) -> PathBuf {
    directory().join(format!("{}.sock", key(mountpoint)))
}

/// Where what this process mounts at `mountpoint` is mounted without extended attributes. A client that takes the place of one
/// which still has users has a place of its own.
pub fn bare(mountpoint: &Path) -> PathBuf {
    directory().join(format!("{}.{}.bare", key(mountpoint), std::process::id()))
}

/// The same of all clients of `mountpoint`, this one and those before it.
pub fn bare_of_all(mountpoint: &Path) -> Vec<PathBuf> {
    let start = format!("{}.", key(mountpoint));
    let is_one = |name: &std::ffi::OsStr| name.to_str().is_some_and(|n| n.starts_with(&start) && n.ends_with(".bare"));
    let entries = std::fs::read_dir(directory()).into_iter().flatten().flatten();
    entries.filter(|entry| is_one(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// Short name of a mountpoint.
pub fn key(mountpoint: &Path) -> String {
    let PathKey { high, low } = PathKey::of(mountpoint.as_os_str().as_bytes());
    format!("{high:016x}{low:016x}")
}

/// A listening socket; removed when dropped.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    /// Inode of the socket: by its name somebody else may listen meanwhile.
    inode: u64,
}

impl Control {
    /// Listens for the mount at `mountpoint`.
    pub fn listen(mountpoint: &Path) -> io::Result<Control> {
        let path = socket(mountpoint);
        let directory = directory();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        // Below /tmp somebody else may have been first.
        if std::fs::symlink_metadata(&directory)?.uid() != nix::unistd::geteuid().as_raw() {
            let message = format!("{} belongs to another user", directory.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let is_socket = std::fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket());
        let is_free = || UnixStream::connect(&path).is_err() || ask_status(&path).is_ok_and(|status| status.detached);
        if is_socket && is_free() {
            std::fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        let inode = std::fs::symlink_metadata(&path)?.ino();
        Ok(Control { listener, path, inode })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers requests until the process ends.
    pub fn serve(&self, shown: &Arc<Shown>) {
        for stream in self.listener.incoming().flatten() {
            let shown = shown.clone();
            // A check may take long; others want to ask meanwhile.
            fs_thread(move || {
                if let Err(error) = answer(stream, &shown) {
                    tracing::debug!(%error, "control connection ended");
                }
            });
        }
    }

    /// Another handle for the same socket, for the thread that serves it.
    pub fn try_clone(&self) -> io::Result<Control> {
        Ok(Control { listener: self.listener.try_clone()?, path: PathBuf::new(), inode: 0 })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn fs_thread(run: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name("control".into()).spawn(run) {
        tracing::warn!(%error, "cannot answer a control request");
    }
}

fn answer(stream: UnixStream, shown: &Shown) -> io::Result<()> {
    let Shown { fs, updater, .. } = shown;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new((&stream).take(MAX_REQUEST)).read_line(&mut line)?;
    let text = match line.trim() {
        "status" => serde_json::to_string(&status(shown))?,
        "remount" => serde_json::to_string(&updater.check())?,
        "bare" => match shown.bare.open() {
            Ok(place) => serde_json::json!({ "mountpoint": place }).to_string(),
            Err(error) => serde_json::json!({ "error": Chain(&error).to_string() }).to_string(),
        },
        "record start" => {
            fs.prefetcher().record();
            updater.read_anew();
            "{}".into()
        }
        other => {
            let result = match other.split_once(' ') {
                Some(("prefetch", announcement)) => announce(fs, announcement),
                Some(("record", stop)) => recorded(fs, stop),
                _ => Err(format!("unknown request {:?}", other.chars().take(100).collect::<String>())),
            };
            result.unwrap_or_else(|error| serde_json::json!({ "error": error }).to_string())
        }
    };
    writeln!(&stream, "{text}")
}

fn announce(fs: &FileSystem, announcement: &str) -> Result<String, String> {
    let announcement: Announcement = serde_json::from_str(announcement).map_err(|error| error.to_string())?;
    let announced = fs.prefetcher().announce(&announcement)?;
    serde_json::to_string(&announced).map_err(|error| error.to_string())
}

fn recorded(fs: &FileSystem, request: &str) -> Result<String, String> {
    let base = request.strip_prefix("stop ").ok_or("record what? `record start` or `record stop DIRECTORY`")?;
    let base = RepoPath::parse(base.trim_end_matches('/')).map_err(|error| error.to_string())?;
    let list = fs.prefetcher().recorded(&base).ok_or("nothing is being recorded")?;
    Ok(serde_json::json!({ "list": list.print() }).to_string())
}

fn status(shown: &Shown) -> Status {
    let Shown { place, fs, updater, kernel, bare } = shown;
    let view = fs.view();
    let (stats, objects) = (fs.stats(), fs.objects());
    let (inodes, open_files, ..) = fs.held();
    let (cache_used, cache_limit) = objects.cache().usage();
    let next = *fs.info().next_check.read();
    Status {
        schema: 1,
        fqrn: fs.info().fqrn.clone(),
        mountpoint: place.mountpoint().display().to_string(),
        detached: !place.is_mounted(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime: fs.info().since.elapsed().as_secs(),
        revision: view.revision.number,
        root_hash: view.revision.root_hash().to_string(),
        tag: view.revision.tag.clone(),
        offline: updater.offline(),
        next_check: next.map(|at| at.saturating_duration_since(Instant::now()).as_secs()),
        host: current_host(objects.transport()),
        proxy: current_proxy(objects.transport()),
        catalogs: view.revision.catalogs.count(),
        inodes,
        open_files,
        cache: objects.cache().directory().display().to_string(),
        cache_used,
        cache_limit,
        cache_evictions: objects.cache().evictions(),
        downloads: stats.downloads.get(),
        received: stats.received.get(),
        hit_rate: stats.hit_rate(),
        retries: stats.retries.get(),
        failovers: stats.failovers.get(),
        io_errors: stats.io_errors.get(),
        lookups: stats.requests.get(Request::Lookup),
        requests: stats.requests.made(),
        passthrough: kernel.describe(),
        transfer_millis: stats.transfer_micros.get() / 1000,
        switched: objects.transport().routes().switched(Instant::now()).map(|time| time.as_secs()),
        prefetch: fs.prefetcher().summary(),
        bare: bare.place().map(|place| place.display().to_string()),
    }
}

fn ask(socket: &Path, request: &str, patience: Option<Duration>) -> io::Result<String> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    writeln!(&stream, "{request}")?;
    let mut reply = String::new();
    BufReader::new(&stream).read_line(&mut reply)?;
    if reply.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(reply) }
}

/// State of the mount behind a socket.
pub fn ask_status(socket: &Path) -> io::Result<Status> {
    Ok(serde_json::from_str(&ask(socket, "status", Some(PATIENCE))?)?)
}

/// Makes the mount behind a socket look for a new revision; takes as long as that takes.
pub fn ask_remount(socket: &Path) -> io::Result<Outcome> {
    Ok(serde_json::from_str(&ask(socket, "remount", None)?)?)
}

/// Has the mount behind a socket fetch what a list names.
pub fn ask_prefetch(socket: &Path, announcement: &Announcement) -> io::Result<Announced> {
    answered(&ask(socket, &format!("prefetch {}", serde_json::to_string(announcement)?), None)?)
}

/// Has the mount behind a socket record what is opened.
pub fn ask_record(socket: &Path) -> io::Result<()> {
    ask(socket, "record start", Some(PATIENCE)).map(drop)
}

/// Has what is behind a socket mounted without extended attributes as well; where.
pub fn ask_bare(socket: &Path) -> io::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Made {
        mountpoint: PathBuf,
    }
    answered(&ask(socket, "bare", Some(PATIENCE))?).map(|Made { mountpoint }| mountpoint)
}

/// Ends the record; gives the start-up list of what was touched below `base`.
pub fn ask_recorded(socket: &Path, base: &RepoPath) -> io::Result<String> {
    #[derive(Deserialize)]
    struct List {
        list: String,
    }
    answered(&ask(socket, &format!("record stop {base}"), Some(PATIENCE))?).map(|List { list }| list)
}

/// The answer, or the error in its place.
fn answered<T: serde::de::DeserializeOwned>(text: &str) -> io::Result<T> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    match serde_json::from_str(text) {
        Ok(Refusal { error }) => Err(io::Error::other(error)),
        Err(_) => Ok(serde_json::from_str(text)?),
    }
}

/// Sockets of all mounts of this user that answer.
pub fn all() -> Vec<Status> {
    let entries = std::fs::read_dir(directory()).into_iter().flatten().flatten();
    let mut found: Vec<Status> = entries.filter_map(|entry| ask_status(&entry.path()).ok()).collect();
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    found
}
