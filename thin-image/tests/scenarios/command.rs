//! The program as a shell sees it: results on standard output, talk on standard error, exit status.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use registry::testing::{Fault, TestRegistry};
use serde_json::Value;

use crate::repository::{APP, Fake, NAME};

fn program(fake: &Fake) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thin-image"));
    command.arg("--cvmfs").arg(fake.cvmfs()).env_remove("DOCKER_HOST").env("DOCKER_CONFIG", fake.cvmfs());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8(stderr).unwrap())
}

#[test]
fn statuses_tell_whose_fault_it_is() {
    let fake = Fake::with_app();
    let missing = fake.cvmfs().join("missing.toml");
    let missing = missing.to_str().unwrap();
    for (arguments, status, word) in [
        (&["build", APP, "--output", "-"][..], 2, "--repo"),
        (&["build", "debian", "--repo", NAME, "--output", "-"], 2, "neither tag nor digest"),
        (&["build", APP, "--repo", "..", "--output", "-"], 2, "not the name of a repository"),
        (&["build", APP, "--repo", NAME], 2, "--output"),
        (&["build", APP, "--repo", NAME, "--platform", "x", "--output", "-"], 2, "not a platform"),
        (&["load", APP, "--repo", NAME], 2, "--podman-store"),
        (&["load", APP, "--repo", NAME, "--docker", "--containerd"], 2, "cannot be used with"),
        (&["load", APP, "--repo", NAME, "--docker", "--remove"], 2, "cannot be used with"),
        (&["push", APP, "localhost/x@sha256:aa", "--repo", NAME], 2, "digest"),
        (&["mirror", "--config", missing], 3, "missing.toml"),
        (&["build", APP, "--repo", "down.example.org", "--output", "-"], 4, "is not mounted"),
        (&["build", "quay.io/tools/app:2", "--repo", NAME, "--output", "-"], 1, "is not published"),
        (&["push", APP, "localhost/x:1", "--repo", NAME, "--user", "me"], 1, "CVMFS_PUBLISHER_OUTPUT_PASSWORD"),
    ] {
        let (found, stdout, stderr) = run(program(&fake).args(arguments));
        assert_eq!((found, stdout.as_str()), (Some(status), ""), "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
}

#[test]
fn what_is_built_can_be_inspected() {
    let fake = Fake::with_app();
    let file = fake.cvmfs().join("app.tar");
    let path = fake.root().join(APP);
    let (status, stdout, stderr) =
        run(program(&fake).arg("build").arg(&path).arg("--output").arg(&file).args(["--as", "debian:thin"]));
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("docker.io/library/debian:thin  sha256:"), "{stdout}");
    let (_, stdout, _) = run(program(&fake).arg("inspect").arg(&file).arg("--json"));
    let built: Value = serde_json::from_str(&stdout).unwrap();
    let (_, stdout, _) = run(program(&fake).arg("inspect").arg(&path).arg("--json"));
    let published: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(built["images"], published["images"]);
    let output = program(&fake).arg("build").arg(&path).args(["--output", "-"]).output().unwrap();
    assert!(tar::Archive::new(output.stdout.as_slice()).entries().unwrap().count() > 5);
}

#[test]
fn a_push_says_whether_anything_changed() {
    let (fake, registry) = (Fake::with_app(), TestRegistry::spawn());
    registry.require_basic("me", "secret");
    let push = |password: &str| {
        let target = format!("{}/thin/app:1", registry.url());
        run(program(&fake)
            .args(["push", APP, &target, "--repo", NAME, "--user", "me", "--json"])
            .env("DUCC_OUTPUT_REGISTRY_PASS", password))
    };
    for pushed in [true, false] {
        let (status, stdout, stderr) = push("secret");
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["pushed"], pushed);
    }
    let (status, stdout, stderr) = push("wrong");
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("access refused") && !stderr.contains("wrong"), "{stderr}");
}

#[test]
fn a_registry_that_refuses_is_named_and_keeps_what_it_had() {
    let fake = Fake::with_app();
    for (fault, says) in [
        (Fault::status(401), "access refused"),
        (Fault::status(403), "access refused"),
        (Fault::retry_after(429, "86400"), "asks to come back in 86400 s"),
        (Fault::status(400), "400"),
        (Fault::status(507), "507"),
    ] {
        for (method, path) in [("POST", "/blobs/uploads/"), ("PUT", "/blobs/uploads/"), ("PUT", "/manifests/1")] {
            let registry = TestRegistry::spawn();
            registry.put_manifest("thin/app", "1", "application/vnd.oci.image.manifest.v1+json", "{}");
            registry.fault(fault.clone().method(method).on(path).always());
            let target = format!("{}/thin/app:1", registry.url());
            let (status, stdout, stderr) = run(program(&fake).args(["push", APP, &target, "--repo", NAME]));
            assert_eq!((status, stdout.as_str()), (Some(1), ""), "{method} {path}: {stderr}");
            assert!(stderr.contains(says) && stderr.contains("thin/app"), "{method} {path}: {stderr}");
            assert_eq!(registry.manifest("thin/app", "1").unwrap().1, "{}", "{method} {path}");
        }
    }
    // What passes is waited out.
    let registry = TestRegistry::spawn();
    registry.fault(Fault::status(503).method("PUT").on("/manifests/1"));
    let target = format!("{}/thin/app:1", registry.url());
    let (status, _, stderr) = run(program(&fake).args(["push", APP, &target, "--repo", NAME]));
    assert_eq!(status, Some(0), "{stderr}");
    assert!(registry.manifest("thin/app", "1").is_some());
}

/// An engine's command that keeps what it gets, and does as it is told.
fn fake_engine(directory: &Path, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join(name);
    std::fs::write(
        &path,
        format!("#!/bin/sh\necho \"$@\" > '{0}/arguments'\ncat > '{0}/input'\n{script}\n", directory.display()),
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn commands_of_engines_get_the_archive() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let load =
        |arguments: &[&str]| run(program(&fake).args(["load", APP, "--repo", NAME]).args(arguments).env("PATH", &path));
    fake_engine(place.path(), "ctr", "");
    let (status, stdout, stderr) = load(&[
        "--containerd",
        "--namespace",
        "k8s.io",
        "--snapshotter",
        "cvmfs-snapshotter",
        "--address",
        "/run/x.sock",
    ]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("quay.io/tools/app:1  sha256:"), "{stdout}");
    let arguments = std::fs::read_to_string(place.path().join("arguments")).unwrap();
    assert_eq!(
        arguments.trim(),
        "--address /run/x.sock --namespace k8s.io images import --snapshotter cvmfs-snapshotter -"
    );
    let input = std::fs::read(place.path().join("input")).unwrap();
    let (_, built, _) = run(program(&fake).args(["build", APP, "--repo", NAME, "--output", "-"]));
    assert_eq!(String::from_utf8_lossy(&input), built);

    fake_engine(place.path(), "podman", "echo no space left >&2; exit 125");
    let (status, _, stderr) = load(&["--podman"]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("podman failed") && stderr.contains("no space left"), "{stderr}");
}

#[test]
fn docker_is_spoken_to_on_its_socket_and_its_errors_are_errors() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    for (number, (answer, status)) in
        [(r#"{"stream":"Loaded image\n"}"#, 0), (r#"{"errorDetail":{},"error":"invalid diffID"}"#, 1)]
            .into_iter()
            .enumerate()
    {
        let socket = place.path().join(format!("{number}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut part = [0; 65536];
            let (head, length) = loop {
                let count = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
                let Some(end) = text.find("\r\n\r\n") else { continue };
                let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
                break (end + 4, length.parse::<usize>().unwrap());
            };
            while request.len() < head + length {
                let count = stream.read(&mut part).unwrap();
                request.extend_from_slice(&part[..count]);
            }
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).unwrap();
            request
        });
        let mut command = program(&fake);
        command
            .args(["load", APP, "--repo", NAME, "--docker"])
            .env("DOCKER_HOST", format!("unix://{}", socket.display()));
        let (found, _, stderr) = run(command.stdin(Stdio::null()));
        assert_eq!(found, Some(status), "{stderr}");
        assert_eq!(stderr.contains("invalid diffID"), status == 1, "{stderr}");
        let request = served.join().unwrap();
        assert!(request.starts_with(b"POST /images/load?quiet=1 HTTP/1.1\r\n"));
    }
    let socket = place.path().join("nobody.sock");
    let (status, _, stderr) =
        run(program(&fake).args(["load", APP, "--repo", NAME, "--docker", "--socket"]).arg(&socket));
    assert_eq!(status, Some(1));
    assert!(stderr.contains("Docker does not answer on"), "{stderr}");
}

#[test]
fn a_store_is_made_and_emptied() {
    let fake = Fake::with_app();
    let place = tempfile::tempdir().unwrap();
    let store = |more: &[&str]| {
        run(program(&fake).args(["load", APP]).args(more).arg("--podman-store").arg(place.path().join("store")))
    };
    let repo = ["--repo", NAME];
    assert_eq!(store(&repo), (Some(0), "added      quay.io/tools/app:1\n".into(), String::new()));
    assert_eq!(store(&repo), (Some(0), "unchanged  quay.io/tools/app:1\n".into(), String::new()));
    assert_eq!(store(&["--remove"]), (Some(0), "removed    quay.io/tools/app:1\n".into(), String::new()));
    let (status, stdout, stderr) = store(&["--remove"]);
    assert_eq!((status, stdout.as_str()), (Some(1), "absent     quay.io/tools/app:1\n"));
    assert!(stderr.contains("is not in"), "{stderr}");
}

#[test]
fn a_mirror_ends_by_signal_and_prints_what_engines_need() {
    let fake = Fake::with_app();
    let (status, stdout, _) = run(program(&fake).args(["mirror", "--print", "docker", "--listen", "127.0.0.1:7"]));
    assert_eq!(status, Some(0));
    assert!(stdout.contains("http://127.0.0.1:7"), "{stdout}");
    let mut child = program(&fake)
        .args(["mirror", "--repo", NAME, "--listen", "127.0.0.1:0"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut log, &mut line).unwrap();
    let address =
        line.split("address=").nth(1).unwrap_or_else(|| panic!("{line}")).split(' ').next().unwrap().to_owned();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /v2/quay.io/tools/app/manifests/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
