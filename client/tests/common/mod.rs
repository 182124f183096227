//! What the tests share: fixtures, a web server that can misbehave, and mounts that clean up after themselves.

#![allow(dead_code)] // each test binary uses a part of it

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub mod listing;
pub mod published;

/// Repositories written by the reference implementation.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").canonicalize().unwrap()
}

/// Directory that holds this fixture: those that may not be copied into this tree are looked for where `CVMFS_FIXTURES`
/// says (default: `../shared/fixtures` beside the tree). `None` if there is no such fixture.
pub fn home(fixture: &str) -> Option<PathBuf> {
    let here = fixtures();
    let outside = std::env::var_os("CVMFS_FIXTURES").map(PathBuf::from);
    let outside = outside.unwrap_or_else(|| here.join("../../../shared/fixtures"));
    [here, outside].into_iter().find(|d| d.join(format!("{fixture}.tar.zst")).is_file())
}

/// A file about a fixture.
pub fn about(fixture: &str, extension: &str) -> PathBuf {
    home(fixture).unwrap_or_else(|| panic!("no fixture {fixture}")).join(format!("{fixture}.{extension}"))
}

/// Unpacks a fixture below `target`; an older state of the same repository is moved forward.
pub fn unpack(fixture: &str, target: &Path) {
    let archive = std::fs::File::open(about(fixture, "tar.zst")).unwrap();
    let mut tar = tar::Archive::new(zstd::Decoder::new(archive).unwrap());
    tar.set_preserve_ownerships(false);
    tar.unpack(target).unwrap();
}

/// Lays a damaged overlay over an unpacked fixture.
pub fn damage(name: &str, repository: &Path) {
    let source = fixtures().join("damaged").join(name);
    copy_tree(&source.join("overlay"), repository);
    let gone = std::fs::read_to_string(source.join("delete.txt")).unwrap_or_default();
    gone.lines().filter(|line| !line.is_empty()).for_each(|line| std::fs::remove_file(repository.join(line)).unwrap());
}

fn copy_tree(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else { return };
    for entry in entries.map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            let _ = std::fs::remove_file(&target);
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Further options of every mount, separated by blanks: everything has to hold with other settings, too.
pub fn more_options() -> Vec<String> {
    let said = std::env::var("CVMFS_CLIENT_TEST_OPTIONS").unwrap_or_default();
    said.split_whitespace().map(str::to_owned).collect()
}

/// Name of the repository in a fixture.
pub fn fqrn(fixture: &str) -> String {
    format!("{}.fixture.example.org", fixture.split('-').next().unwrap())
}

/// How a server misbehaves for one path.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Answers 404 as a Squid does that cannot reach the server.
    ProxyError,
    /// Flips a bit in the middle.
    Corrupt,
    /// Ends the connection halfway.
    Cut,
    /// Waits before it answers.
    Delay(Duration),
    /// Sends the head and then nothing.
    Stall,
}

#[derive(Default)]
struct State {
    faults: HashMap<String, (Fault, usize)>,
    requests: HashMap<String, usize>,
    no_cache: HashMap<String, usize>,
    connections: usize,
    open: Vec<TcpStream>,
}

/// A web server for one directory. Also does for a proxy: the host of an absolute URL is ignored.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stopped: Arc<(AtomicBool, Mutex<()>, Condvar)>,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Serves `root` on a free port of the loopback interface.
    pub fn start(root: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let stopped = Arc::new((AtomicBool::new(false), Mutex::new(()), Condvar::new()));
        let (root, shared, stop) = (root.to_owned(), state.clone(), stopped.clone());
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.0.load(Ordering::SeqCst) {
                    break;
                }
                let (root, shared, stop) = (root.clone(), shared.clone(), stop.clone());
                {
                    let mut state = shared.lock().unwrap();
                    state.connections += 1;
                    state.open.push(stream.try_clone().unwrap());
                }
                std::thread::spawn(move || {
                    let _ = serve(&stream, &root, &shared, &stop);
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Server { address, state, stopped, accepting: Some(accepting) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Server URL of a repository.
    pub fn repository(&self) -> String {
        format!("{}/@fqrn@", self.url())
    }

    /// Misbehaves for the path that ends like this, from now on.
    pub fn fault(&self, path_end: &str, fault: Fault) {
        self.fault_times(path_end, fault, usize::MAX);
    }

    /// Misbehaves that many times.
    pub fn fault_times(&self, path_end: &str, fault: Fault, times: usize) {
        self.state.lock().unwrap().faults.insert(path_end.into(), (fault, times));
    }

    /// Behaves again.
    pub fn repair(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// Requests for the path that ends like this.
    pub fn requests(&self, path_end: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|(path, _)| path.ends_with(path_end)).map(|(_, n)| n).sum()
    }

    /// Those of them that asked to go past all caches.
    pub fn requests_past_caches(&self, path_end: &str) -> usize {
        self.state.lock().unwrap().no_cache.iter().filter(|(path, _)| path.ends_with(path_end)).map(|(_, n)| n).sum()
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// Stops answering; open connections are cut.
    pub fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            self.stopped.0.store(true, Ordering::SeqCst);
            self.stopped.2.notify_all();
            let _ = TcpStream::connect(self.address);
            accepting.join().unwrap();
            for stream in self.state.lock().unwrap().open.drain(..) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(
    stream: &TcpStream,
    root: &Path,
    state: &Mutex<State>,
    stop: &(AtomicBool, Mutex<()>, Condvar),
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if lines.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let (mut no_cache, mut range) = (false, None);
        loop {
            let mut header = String::new();
            lines.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            no_cache |= header == "pragma: no-cache";
            if let Some((first, last)) = header.strip_prefix("range: bytes=").and_then(|r| r.split_once('-')) {
                range = first.parse::<usize>().ok().zip(last.parse::<usize>().ok());
            }
            if header.is_empty() {
                break;
            }
        }
        let target = request.split(' ').nth(1).unwrap_or("/");
        let path = match target.strip_prefix("http://") {
            Some(absolute) => &absolute[absolute.find('/').unwrap_or(absolute.len())..],
            None => target,
        };
        let fault = {
            let mut state = state.lock().unwrap();
            *state.requests.entry(path.to_owned()).or_default() += 1;
            if no_cache {
                *state.no_cache.entry(path.to_owned()).or_default() += 1;
            }
            state.faults.iter_mut().find(|(end, (_, left))| path.ends_with(end.as_str()) && *left > 0).map(
                |(_, (fault, left))| {
                    *left -= 1;
                    fault.clone()
                },
            )
        };
        let decoded = percent_decode(path.trim_start_matches('/'));
        let (mut status, mut body) = match std::fs::read(root.join(decoded)) {
            Ok(body) => (200, body),
            Err(_) => (404, b"not found".to_vec()),
        };
        if let (200, Some((first, last))) = (status, range) {
            (status, body) = (206, body[first..=last.min(body.len() - 1)].to_vec());
        }
        let (mut sent, mut extra) = (body.len(), "");
        match fault {
            Some(Fault::Status(other)) => status = other,
            Some(Fault::ProxyError) => (status, extra) = (503, "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"),
            Some(Fault::Corrupt) => {
                let middle = body.len() / 2;
                body[middle] ^= 0x10;
            }
            Some(Fault::Cut) => sent /= 2,
            Some(Fault::Stall) => sent = 0,
            Some(Fault::Delay(time)) => {
                let guard = stop.1.lock().unwrap();
                drop(stop.2.wait_timeout_while(guard, time, |()| !stop.0.load(Ordering::SeqCst)).unwrap());
            }
            None => {}
        }
        let head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{extra}\r\n", body.len());
        let mut stream = stream;
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body[..sent])?;
        if matches!(fault_kind(sent, body.len()), Ending::Hold) && extra.is_empty() && status == 200 {
            let guard = stop.1.lock().unwrap();
            let long = Duration::from_secs(600);
            drop(stop.2.wait_timeout_while(guard, long, |()| !stop.0.load(Ordering::SeqCst)).unwrap());
        }
        if sent < body.len() {
            return Ok(());
        }
    }
}

enum Ending {
    Close,
    Hold,
}

fn fault_kind(sent: usize, length: usize) -> Ending {
    if sent == 0 && length > 0 { Ending::Hold } else { Ending::Close }
}

fn percent_decode(path: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;
    let bytes = path.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| path.get(at + 1..at + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    std::ffi::OsString::from_vec(decoded).into()
}

/// A served fixture with an empty cache beside it.
pub struct World {
    pub directory: tempfile::TempDir,
    pub server: Server,
    pub fixture: String,
}

impl World {
    /// Unpacks and serves a fixture.
    pub fn new(fixture: &str) -> World {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("srv");
        std::fs::create_dir(&root).unwrap();
        unpack(fixture, &root);
        let server = Server::start(&root);
        World { directory, server, fixture: fixture.into() }
    }

    /// The same, damaged.
    pub fn damaged(fixture: &str, damage_name: &str) -> World {
        let world = World::new(fixture);
        damage(damage_name, &world.repository());
        world
    }

    /// Directory of the repository.
    pub fn repository(&self) -> PathBuf {
        self.directory.path().join("srv").join(self.fqrn())
    }

    /// Moves the repository forward to another state of the same fixture.
    pub fn advance(&self, fixture: &str) {
        unpack(fixture, &self.directory.path().join("srv"));
    }

    pub fn fqrn(&self) -> String {
        fqrn(&self.fixture)
    }

    pub fn key(&self) -> PathBuf {
        about(&self.fixture, "pub")
    }

    pub fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// Arguments of a mount of this world, options as given.
    pub fn mount_arguments(&self, mountpoint: &Path, options: &[&str]) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> = vec!["mount".into(), self.fqrn().into(), mountpoint.into()];
        arguments.extend(["--server-url".into(), self.server.repository().into()]);
        arguments.extend(["--public-key".into(), self.key().into(), "--cache".into(), self.cache().into()]);
        arguments.extend(["--config-dir".into(), self.directory.path().join("no-config").into()]);
        arguments.extend(["-o".into(), "CVMFS_MAX_RETRIES=0".into()]);
        for option in more_options().iter().map(String::as_str).chain(options.iter().copied()) {
            arguments.extend(["-o".into(), option.into()]);
        }
        arguments
    }

    /// Mounts it; panics with the client's words when that fails.
    pub fn mount(&self, options: &[&str]) -> Mount {
        self.try_mount(options).unwrap_or_else(|output| panic!("mount failed: {output:?}"))
    }

    /// Mounts it, or gives what the client said.
    pub fn try_mount(&self, options: &[&str]) -> Result<Mount, Output> {
        let path = self.directory.path().join("mnt");
        let _ = std::fs::create_dir(&path);
        let output = client().args(self.mount_arguments(&path, options)).output().unwrap();
        if output.status.success() { Ok(Mount { path }) } else { Err(output) }
    }
}

/// The program.
pub fn client() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-client"));
    command.env_remove("CVMFS_CLIENT_LOG");
    command
}

/// A mount in the background; unmounted when dropped.
pub struct Mount {
    pub path: PathBuf,
}

impl Mount {
    /// State of the mount.
    pub fn status(&self) -> client::control::Status {
        client::control::ask_status(&client::control::socket(&self.path.canonicalize().unwrap())).unwrap()
    }

    /// Looks for a new revision.
    pub fn remount(&self) -> client::remount::Outcome {
        client::control::ask_remount(&client::control::socket(&self.path.canonicalize().unwrap())).unwrap()
    }

    /// Unmounts and waits for the client to end.
    pub fn unmount(self) {
        let output = client().arg("umount").arg(&self.path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub fn join(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = client().args(["umount", "--lazy"]).arg(&self.path).output();
    }
}

/// Whether FUSE can be used; says so on a line that `make test` counts, if not.
pub fn has_fuse() -> bool {
    let usable = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !usable || !nix::unistd::geteuid().is_root() {
        println!("skipped: /dev/fuse cannot be used, or not root");
        return false;
    }
    true
}

/// Waits until `condition` holds.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The whole file, or the number of the error.
pub fn read(path: &Path) -> Result<Vec<u8>, i32> {
    let mut bytes = Vec::new();
    let result = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    result.map(|_| bytes).map_err(|e| e.raw_os_error().unwrap_or(0))
}

/// Whether a directory can be listed, or the number of the error.
pub fn list(path: &Path) -> Result<(), i32> {
    let result = std::fs::read_dir(path).and_then(|mut entries| entries.next().transpose().map(drop));
    result.map_err(|e| e.raw_os_error().unwrap_or(0))
}
