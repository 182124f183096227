//! The HTTP server, over real sockets: in this process, and as the command.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use publisher::error::CommandError;
use publisher::serve::{ServeError, Server};
use tempfile::TempDir;

const FQRN: &str = "images.example.org";
const SMALL: &str = "data/e8/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78";
const LARGE: &str = "data/aa/00000000000000000000000000000000000000P";
const LISTEN: &str = "127.0.0.1:0";

/// A directory with the names of a repository; the server does not look into files.
fn repository() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    write(".cvmfspublished", b"C0123\n--\n");
    write(".cvmfs_status.json", b"{}");
    write(SMALL, b"0123456789");
    write(LARGE, &large());
    write("data/txn/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78", b"half written");
    write("secret", b"nobody's business");
    fs::create_dir(dir.path().join(".cvmfsreflog")).unwrap();
    dir
}

/// Three MiB in which every position is told apart from its neighbours.
fn large() -> Vec<u8> {
    (0..3_u32 << 20).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

/// Runs `test` against a server for `root`, then stops the server, which has to end by itself.
fn with_server(root: &Path, test: impl FnOnce(SocketAddr) + Send + 'static) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Server::bind(FQRN, root, LISTEN.parse().unwrap()).await.unwrap();
        let address = server.address();
        assert_eq!(server.url(), format!("http://{address}/cvmfs/{FQRN}"));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(server.run(async move { stopped.await.unwrap() }));
        tokio::task::spawn_blocking(move || test(address)).await.unwrap();
        stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(5), running).await.expect("stops").unwrap().unwrap();
    });
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads one answer from a connection that may go on.
    fn read(reader: &mut impl BufRead, with_body: bool) -> Self {
        let line = |reader: &mut dyn BufRead| {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line(reader).split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let header = line(reader);
            let Some((name, value)) = header.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut answer = Self { status, headers, body: Vec::new() };
        let length: usize = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        if with_body {
            answer.body.resize(length, 0);
            reader.read_exact(&mut answer.body).unwrap();
        }
        answer
    }
}

/// One request on a connection of its own. `path` is sent as it is.
fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").unwrap();
    Answer::read(&mut BufReader::new(stream), method != "HEAD")
}

fn get(address: SocketAddr, name: &str, headers: &str) -> Answer {
    request(address, "GET", &format!("/cvmfs/{FQRN}/{name}"), headers)
}

#[test]
fn sends_files_with_type_and_age() {
    let dir = repository();
    with_server(dir.path(), |address| {
        let cases: [(&str, &[u8], &str, &str); 4] = [
            (".cvmfspublished", b"C0123\n--\n", "application/x-cvmfs", "max-age=61"),
            (".cvmfs_status.json", b"{}", "application/json", "max-age=61"),
            (SMALL, b"0123456789", "application/octet-stream", "max-age=259200"),
            (LARGE, &large(), "application/octet-stream", "max-age=259200"),
        ];
        for (name, body, content_type, age) in cases {
            let answer = get(address, name, "");
            assert_eq!((answer.status, answer.body == body), (200, true), "{name}");
            assert_eq!(answer.header("content-type"), Some(content_type), "{name}");
            assert_eq!(answer.header("cache-control"), Some(age), "{name}");
            assert_eq!((answer.header("etag"), answer.header("last-modified")), (None, None), "{name}");

            let head = request(address, "HEAD", &format!("/cvmfs/{FQRN}/{name}"), "");
            assert_eq!(head.status, 200, "{name}");
            assert_eq!(head.header("content-length"), Some(body.len().to_string().as_str()), "{name}");
            assert_eq!(head.header("content-type"), Some(content_type), "{name}");
        }
    });
}

#[test]
fn sends_single_ranges_of_small_and_large_files() {
    let dir = repository();
    with_server(dir.path(), |address| {
        let large = large();
        let cases: [(&str, &str, &[u8], &str); 4] = [
            (SMALL, "bytes=2-4", b"234", "bytes 2-4/10"),
            (SMALL, "bytes=-2", b"89", "bytes 8-9/10"),
            (LARGE, "bytes=1000000-2999999", &large[1_000_000..3_000_000], "bytes 1000000-2999999/3145728"),
            (LARGE, "bytes=3145700-", &large[3_145_700..], "bytes 3145700-3145727/3145728"),
        ];
        for (name, range, body, content_range) in cases {
            let answer = get(address, name, &format!("Range: {range}\r\n"));
            assert_eq!((answer.status, answer.body == body), (206, true), "{name} {range}");
            assert_eq!(answer.header("content-range"), Some(content_range), "{name} {range}");
        }
        let beyond = get(address, SMALL, "Range: bytes=10-\r\n");
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
        // No validator can match, so the condition is never met.
        let conditional = get(address, SMALL, "Range: bytes=2-4\r\nIf-Range: \"x\"\r\n");
        assert_eq!((conditional.status, conditional.body.len()), (200, 10));
        let several = get(address, SMALL, "Range: bytes=0-1,3-4\r\n");
        assert_eq!((several.status, several.body.len()), (200, 10));
    });
}

#[test]
fn serves_nothing_but_the_repository() {
    let dir = repository();
    with_server(dir.path(), |address| {
        let paths = [
            "/".to_owned(),
            format!("/cvmfs/{FQRN}/"),
            format!("/cvmfs/{FQRN}/secret"),
            format!("/cvmfs/{FQRN}/data/../secret"),
            format!("/cvmfs/{FQRN}/data/%2e%2e/secret"),
            format!("/cvmfs/{FQRN}/%2ecvmfspublished"),
            format!("/cvmfs/{FQRN}/data/txn/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"),
            format!("/cvmfs/{FQRN}/data/e8/../../secret"),
            format!("/cvmfs/{FQRN}/data/ff/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"),
            // Allowed as a name, but a directory here.
            format!("/cvmfs/{FQRN}/.cvmfsreflog"),
            // Allowed as a name, but absent.
            format!("/cvmfs/{FQRN}/.cvmfswhitelist"),
            "/cvmfs/other.example.org/.cvmfspublished".to_owned(),
        ];
        for path in paths {
            let answer = request(address, "GET", &path, "");
            assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = request(address, method, &format!("/cvmfs/{FQRN}/.cvmfspublished"), "");
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")), "{method}");
        }
    });
}

#[test]
fn lists_the_repository() {
    let dir = repository();
    with_server(dir.path(), |address| {
        let answer = request(address, "GET", "/cvmfs/info/v1/repositories.json", "");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let list: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(
            list,
            serde_json::json!({
                "schema": 1,
                "repositories": [{"name": FQRN, "url": format!("/cvmfs/{FQRN}")}],
                "replicas": [],
            })
        );
    });
    // The same directory as a copy: with the mark that the first run leaves when it is complete.
    fs::write(dir.path().join(".cvmfs_last_snapshot"), "Sat Nov 21 20:20:57 UTC 2026\n").unwrap();
    fs::write(dir.path().join(".cvmfs_status.json"), "{}").unwrap();
    with_server(dir.path(), move |address| {
        let answer = request(address, "GET", "/cvmfs/info/v1/repositories.json", "");
        let list: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(list["repositories"], serde_json::json!([]));
        assert_eq!(list["replicas"], serde_json::json!([{"name": FQRN, "url": format!("/cvmfs/{FQRN}")}]));
        for name in [".cvmfs_last_snapshot", ".cvmfs_status.json"] {
            assert_eq!(request(address, "GET", &format!("/cvmfs/{FQRN}/{name}"), "").status, 200, "{name}");
        }
    });
}

#[test]
fn a_connection_serves_many_requests_and_new_revisions() {
    let dir = repository();
    let manifest = dir.path().join(".cvmfspublished");
    with_server(dir.path(), move |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for revision in 0..100 {
            let content = format!("S{revision}\n");
            fs::write(manifest.with_extension("new"), &content).unwrap();
            fs::rename(manifest.with_extension("new"), &manifest).unwrap();
            write!(stream, "GET /cvmfs/{FQRN}/.cvmfspublished HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_eq!(Answer::read(&mut reader, true).body, content.as_bytes());
        }
        // The connection stays open: stopping must not wait for it.
        std::mem::forget((stream, reader));
    });
}

#[test]
fn a_directory_without_manifest_is_no_repository() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(Server::bind(FQRN, dir.path(), LISTEN.parse().unwrap())).unwrap_err();
    assert!(matches!(error, ServeError::NoRepository { .. }), "{error}");
    assert_eq!(CommandError::from(error).exit_status().code(), 4);
}

#[test]
fn a_taken_address_is_an_error() {
    let dir = repository();
    let taken = std::net::TcpListener::bind(LISTEN).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let error = runtime.block_on(Server::bind(FQRN, dir.path(), taken.local_addr().unwrap())).unwrap_err();
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
}

#[test]
fn the_command_prints_its_address_first_and_ends_with_a_signal() {
    for (json, signal) in [(false, nix::sys::signal::Signal::SIGTERM), (true, nix::sys::signal::Signal::SIGINT)] {
        let dir = repository();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"));
        command.args(["serve", FQRN, "--listen", LISTEN, "--storage"]).arg(dir.path());
        if json {
            command.arg("--json");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        let address = if json {
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            let port = value["port"].as_u64().unwrap();
            assert_eq!(value["url"], format!("http://127.0.0.1:{port}/cvmfs/{FQRN}"));
            value["address"].as_str().unwrap().to_owned()
        } else {
            let url = line.trim_end().strip_prefix("listening on http://").unwrap();
            url.strip_suffix(&format!("/cvmfs/{FQRN}")).unwrap().to_owned()
        };
        assert_eq!(get(address.parse().unwrap(), SMALL, "").body, b"0123456789");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "the address is the only result");
    }
}
