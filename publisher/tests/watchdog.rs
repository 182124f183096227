//! What systemd hears of a watching publisher.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::digest::Digest;
use registry::testing::{Fault, TestRegistry};
use serde_json::json;

const FQRN: &str = "images.example.org";
const LIMIT: Duration = Duration::from_secs(2);

/// Pushes `lab/x:1`, with one layer; its digest.
fn push(registry: &TestRegistry) -> Digest {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(100_000);
    header.set_mode(0o644);
    header.set_cksum();
    let content: Vec<u8> = (0..100_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    tar.append_data(&mut header, "file", &content[..]).unwrap();
    let layer = tar.into_inner().unwrap();
    let (size, diff_id) = (layer.len(), Digest::of(&layer).to_string());
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = config.to_string();
    let kind = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": kind("manifest.v1+json"),
        "config": {
            "mediaType": kind("config.v1+json"), "size": config.len(), "digest": Digest::of(config.as_bytes()).to_string(),
        },
        "layers": [{"mediaType": kind("layer.v1.tar"), "size": size, "digest": diff_id}],
    });
    registry.put_blob(config);
    let digest = registry.put_blob(layer);
    registry.put_manifest("lab/x", "1", &kind("manifest.v1+json"), manifest.to_string());
    digest
}

fn publisher(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"));
    for option in ["storage", "keys", "state"] {
        command.arg(format!("--{option}")).arg(directory.join(option));
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A publisher that watches `lab/x:1`, and the socket of its service manager.
struct Watched {
    child: Child,
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl Watched {
    fn start(registry: &TestRegistry) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert!(publisher(directory.path()).args(["init", FQRN]).status().unwrap().success());
        let list = format!("version: 1\ncvmfs_repo: {FQRN}\ninput:\n- '{}/lab/x:1'\n", registry.url());
        fs::write(path("list.yaml"), list).unwrap();
        let socket = UnixDatagram::bind(path("notify")).unwrap();
        let mut command = publisher(directory.path());
        command.arg("watch").arg(path("list.yaml")).args(["--keep-free", "0", "--platform", "linux/amd64"]);
        command.env("NOTIFY_SOCKET", path("notify")).env_remove("WATCHDOG_PID");
        command.env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
        let child = command.spawn().unwrap();
        Self { child, socket, directory }
    }

    /// Signs of life within the next time.
    fn signs(&self, within: Duration) -> usize {
        let (end, mut signs, mut message) = (Instant::now() + within, 0, [0; 256]);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left)).unwrap();
            if let Ok(read) = self.socket.recv(&mut message) {
                signs += usize::from(message[..read].starts_with(b"WATCHDOG=1"));
            }
        }
        signs
    }

    /// Waits until the layer is asked for.
    fn await_fetch(&self, registry: &TestRegistry, layer: Digest) {
        let begun = Instant::now();
        while registry.count("GET", &layer.to_string()) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is fetched");
            std::thread::sleep(Duration::from_millis(20));
        }
        // What was said before.
        self.signs(Duration::from_millis(200));
    }

    fn revision(&self) -> String {
        let manifest = fs::read(self.directory.path().join("storage/.cvmfspublished")).unwrap();
        let text = String::from_utf8_lossy(&manifest).into_owned();
        text.lines().find(|line| line.starts_with('S')).unwrap().to_owned()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_long_pass_shows_signs_of_life() {
    let registry = TestRegistry::spawn();
    let layer = push(&registry);
    // Six seconds and more.
    registry.fault(Fault::slow(2000, Duration::from_millis(120)).on(&layer.to_string()).always());
    let watched = Watched::start(&registry);
    watched.await_fetch(&registry, layer);
    for second in 0..2 {
        assert!(watched.signs(LIMIT) > 0, "systemd would kill it in second {second}");
    }
    assert_eq!(watched.revision(), "S0", "the pass is not over");
}

#[test]
fn a_pass_that_is_stuck_shows_none() {
    let registry = TestRegistry::spawn();
    let layer = push(&registry);
    registry.fault(Fault::stall().on(&layer.to_string()).always());
    let watched = Watched::start(&registry);
    watched.await_fetch(&registry, layer);
    assert_eq!(watched.signs(2 * LIMIT), 0);
    assert_eq!(watched.revision(), "S0");
}
