//! What the tests share: a state directory, directories that look like mounted repositories, and the real daemon between them.

#![allow(dead_code)] // each test binary uses a part of it

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

mod client;
mod mounted;
mod repository;
mod tree;

pub use client::{Client, Failure, labels, request};
pub use mounted::{Mounted, Silent, may_mount};
pub use repository::{Layer, Repository};
pub use tree::{Tree, tree};

/// The program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cvmfs-snapshotter");
/// How long anything that takes milliseconds may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A state directory, sockets and repositories, all below one temporary directory with a short name.
pub struct World {
    directory: tempfile::TempDir,
    settings: String,
    repositories: String,
}

impl World {
    pub fn new() -> World {
        World::with("")
    }

    /// A world with more lines at the top of its configuration.
    pub fn with(settings: &str) -> World {
        let directory = tempfile::Builder::new().prefix("cs").tempdir().unwrap();
        mounted::ensure_upper(directory.path());
        for name in ["cvmfs", "m"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        World { directory, settings: settings.to_owned(), repositories: String::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The state directory.
    pub fn root(&self) -> PathBuf {
        self.path("s")
    }

    pub fn snapshots(&self) -> PathBuf {
        self.root().join("snapshots")
    }

    pub fn address(&self) -> PathBuf {
        self.path("r/snapshotter.sock")
    }

    pub fn control(&self) -> PathBuf {
        self.path("r/control.sock")
    }

    /// Configures a repository, and makes the directory where it is mounted.
    pub fn repository(&mut self, name: &str) -> Repository {
        self.repository_with(name, "")
    }

    /// The same with more lines of its configuration.
    pub fn repository_with(&mut self, name: &str, lines: &str) -> Repository {
        let path = self.path("cvmfs").join(name);
        let mountpoint = path.display();
        let more = format!("[[repositories]]\nname = \"{name}\"\nmountpoint = \"{mountpoint}\"\n{lines}\n");
        self.repositories.push_str(&more);
        Repository::make(name, &path)
    }

    /// The program with this world's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let file = self.path("config.toml");
        let (settings, repositories, root, address) = (&self.settings, &self.repositories, self.root(), self.address());
        // Never the containerd that this machine may have.
        let engine = self.path("no-containerd.sock");
        let text = format!(
            "root = {root:?}\naddress = {address:?}\n{settings}\n[containerd]\naddress = {engine:?}\n{repositories}"
        );
        // Not while a program that was just started reads it: it would find an empty file, and the directories of the machine.
        if fs::read_to_string(&file).ok().as_ref() != Some(&text) {
            fs::write(&file, text).unwrap();
        }
        let mut command = Command::new(BINARY);
        command.arg("--config").arg(file).args(arguments).env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the program, which must fail, and returns what it says.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let log = self.path("failure");
        let stderr = fs::File::create(&log).unwrap();
        let child = self.command(arguments).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        let status = Daemon { child, address: self.address(), control: self.control() }.wait();
        let text = fs::read_to_string(log).unwrap();
        assert!(!status.success(), "it should fail: {text}");
        text
    }

    pub fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.command(&[&["serve"], arguments].concat());
        self.start_command(&mut command)
    }

    pub fn start_command(&self, command: &mut Command) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child, address: self.address(), control: self.control() };
        let start = Instant::now();
        loop {
            // The control socket of this process, not what an earlier one left.
            if status_of(&self.control()).is_some_and(|status| status["pid"] == daemon.child.id())
                && Client::connect(&daemon.address).is_ok_and(|mut client| client.is_serving())
            {
                return daemon;
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Numbers of the snapshot directories.
    pub fn directories(&self) -> BTreeSet<i64> {
        names(&self.snapshots()).iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Removed snapshots whose files are still there.
    pub fn trash(&self) -> Vec<String> {
        names(&self.snapshots()).into_iter().filter(|name| name.starts_with("rm-")).collect()
    }

    pub fn database(&self) -> PathBuf {
        self.root().join("metadata.db")
    }

    /// Brings the log of the database into its file; while no daemon runs.
    pub fn settle(&self) {
        let connection = rusqlite::Connection::open(self.database()).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap();
        drop(connection);
        assert!(!self.root().join("metadata.db-wal").exists(), "the last one who closes it does that");
    }

    fn connection(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        rusqlite::Connection::open_with_flags(self.database(), flags).unwrap()
    }

    /// Numbers of the rows; the database has no damage.
    pub fn rows(&self) -> BTreeSet<i64> {
        let connection = self.connection();
        let check: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        let mut statement = connection.prepare("SELECT id FROM snapshot").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// Number of a snapshot.
    pub fn id(&self, name: &str) -> i64 {
        self.connection().query_row("SELECT id FROM snapshot WHERE name = ?1", [name], |row| row.get(0)).unwrap()
    }

    /// Which way a snapshot was found.
    pub fn how(&self, name: &str) -> Option<String> {
        self.connection().query_row("SELECT how FROM snapshot WHERE name = ?1", [name], |row| row.get(0)).unwrap()
    }

    /// The content of a snapshot: a directory, or a link to one.
    pub fn content(&self, name: &str) -> PathBuf {
        self.snapshots().join(self.id(name).to_string()).join("fs")
    }
}

/// Names in a directory.
pub fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    address: PathBuf,
    control: PathBuf,
}

impl Daemon {
    pub fn client(&self) -> Client {
        Client::connect(&self.address).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Gives it no chance to do anything.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `status` shows.
    pub fn status(&self) -> serde_json::Value {
        status_of(&self.control).expect("the daemon answers")
    }

    /// The counters.
    pub fn metrics(&self) -> String {
        http(&self.control, "/metrics").unwrap().1
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status_of(control: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&http(control, "/status").ok()?.1).ok()
}

/// Status and body of a request on the control socket.
pub fn http(control: &Path, path: &str) -> Result<(u16, String), reqwest::Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().unix_socket(control).timeout(PATIENCE).no_proxy().build()?;
        let answer = client.get(format!("http://localhost{path}")).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    })
}
