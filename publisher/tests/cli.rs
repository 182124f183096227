//! The program as a shell sees it: results on standard output, talk on standard error, exit status.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn publisher(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = publisher(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn wish_list(dir: &Path, text: &str) -> String {
    let path = dir.join("wishlist.yaml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_and_version_are_results() {
    for argument in ["--help", "-h", "--version", "help"] {
        let (status, stdout, stderr) = run(&[argument]);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{argument}");
        assert!(stdout.contains("cvmfs-publisher"), "{argument}: {stdout}");
    }
}

#[test]
fn a_wrong_command_line_is_status_2_and_says_so_on_standard_error() {
    for arguments in [&["frobnicate"][..], &["check"], &["check", "images"], &["lint", "w.yaml", "--offline"], &[]] {
        let (status, stdout, stderr) = run(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains("Usage:") || stderr.contains("error:"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn the_schema_is_a_result() {
    let (status, stdout, stderr) = run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, stderr.as_str(), schema["type"].as_str()), (Some(0), "", Some("object")));
}

#[test]
fn lint_with_a_look_at_the_registries_tells_what_is_absent_from_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let text = "version: 2\ncvmfs_repo: images.example.org\ninput:\n- oci:/nonexistent/x\n- docker-archive:/nonexistent/y.tar\n";
    let path = wish_list(dir.path(), text);
    assert_eq!(run(&["lint", &path]).0, Some(0));
    let (status, stdout, _) = run(&["--json", "lint", &path, "--online"]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let lines: Vec<_> = value["absent"].as_array().unwrap().iter().map(|p| p["line"].as_u64().unwrap()).collect();
    assert_eq!((status, lines), (Some(1), vec![4, 5]), "{stdout}");
    let wrong = wish_list(dir.path(), &format!("{text}- image: debian:12\n  owner: []\n"));
    assert_eq!(run(&["lint", &wrong, "--online"]).0, Some(3));
}

#[test]
fn lint_prints_every_mistake_and_tells_by_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let path = wish_list(
        dir.path(),
        "version: 1\ncvmfs_repo: images.example.org\nimput: x\ninput:\n- debian:12\n- debian\n- https://podmanstore/x:1\n",
    );
    let (status, stdout, stderr) = run(&["lint", &path]);
    assert_eq!((status, stderr.as_str()), (Some(3), ""));
    let lines: Vec<&str> = stdout.lines().map(|line| line.strip_prefix(&path).unwrap()).collect();
    assert_eq!(lines.len(), 4, "{stdout}");
    assert_eq!(lines[0], ":3: warning: imput: unknown key, ignored; did you mean input?");
    assert!(lines[1].starts_with(":6: input[1]: debian: neither tag nor digest"), "{stdout}");
    assert!(lines[2].starts_with(":7: input[2]: "), "{stdout}");
    assert_eq!(lines[3], ": 1 valid wishes, 2 errors, 1 warnings");

    let (status, stdout, _) = run(&["--json", "lint", &path]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, value["problems"].as_array().unwrap().len()), (Some(3), 3));

    let sound = wish_list(dir.path(), "version: 1\ncvmfs_repo: images.example.org\ninput: ['debian:12']\n");
    assert_eq!(run(&["lint", &sound]).0, Some(0));
}

#[test]
fn a_file_that_is_no_wish_list_is_status_3_with_its_position() {
    let dir = tempfile::tempdir().unwrap();
    let path = wish_list(dir.path(), "version: 1\ninput: [\n");
    let (status, stdout, stderr) = run(&["lint", &path]);
    assert_eq!((status, stdout.as_str()), (Some(3), ""));
    assert!(stderr.starts_with("Error: ") && stderr.contains(&format!("1: {path}:2:8: ")), "{stderr}");

    let (status, _, stderr) = run(&["lint", "/nonexistent/wishlist.yaml"]);
    assert_eq!(status, Some(3));
    assert!(stderr.contains("/nonexistent/wishlist.yaml") && stderr.contains("No such file"), "{stderr}");
}

#[test]
fn serving_nothing_is_status_4_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let storage = dir.path().to_str().unwrap();
    let (status, stdout, stderr) =
        run(&["--storage", storage, "serve", "images.example.org", "--listen", "127.0.0.1:0"]);
    assert_eq!((status, stdout.as_str()), (Some(4), ""));
    assert!(stderr.contains(storage) && stderr.contains("Hint: "), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "version: 1\ncvmfs_repo: images.example.org\ninput: ['debian:12']\n".to_owned();
    for number in 0..5000 {
        text.push_str(&format!("unknown{number}: x\n"));
    }
    let path = wish_list(dir.path(), &text);
    // More than a pipe holds, and nobody reads it.
    let mut child = publisher(&["lint", &path]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn prune_refuses_lists_that_do_not_say_what_to_keep() {
    let dir = tempfile::tempdir().unwrap();
    let header = "version: 1\nuser: x\ncvmfs_repo: images.example.org\n";
    let list = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = list("good.yaml", &format!("{header}input: ['debian:12']\n"));
    let bad = list("bad.yaml", &format!("{header}input: ['debian:12', 'debian']\n"));
    let empty = list("empty.yaml", &format!("{header}input: []\n"));
    let other = list("other.yaml", "version: 1\ncvmfs_repo: other.example.org\ninput: ['debian:12']\n");
    for (lists, why) in
        [(vec![&bad], "neither tag nor digest"), (vec![&empty], "nothing"), (vec![&good, &other], "other.example.org")]
    {
        let arguments: Vec<&str> = ["prune"].into_iter().chain(lists.iter().map(|l| l.as_str())).collect();
        let (status, stdout, stderr) = run(&arguments);
        assert_eq!((status, stdout.as_str()), (Some(3), ""), "{stderr}");
        assert!(stderr.contains(why), "{stderr}");
    }
}

#[test]
fn images_are_removed_and_collected_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (storage, keys, state) = (place("storage"), place("keys"), place("state"));
    let run = |arguments: &[&str]| {
        let paths = ["--storage", &storage, "--keys", &keys, "--state", &state];
        run(&paths.into_iter().chain(arguments.iter().copied()).collect::<Vec<_>>())
    };
    let fqrn = "images.example.org";
    assert_eq!(run(&["init", fqrn]).0, Some(0));
    let (status, stdout, stderr) = run(&["gc", fqrn]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.ends_with("(revision 0, nothing published)\n"), "{stdout}");
    let (status, _, stderr) = run(&["remove", "debian:12", fqrn]);
    assert_eq!(status, Some(1));
    assert!(
        stderr.contains("there is no published image debian:12 or registry.hub.docker.com/library/debian:12"),
        "{stderr}"
    );
    let missing = place("report");
    let (status, _, stderr) = run(&["gc", fqrn, "--in-use", &missing]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains(&missing), "{stderr}");
    let (status, stdout, _) = run(&["--json", "gc", fqrn, "--objects", "--min-age", "0"]);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &value["images"]["schema"], &value["schema"]), (Some(0), &1.into(), &1.into()));
    assert_eq!(run(&["gc", fqrn, "--no-images"]).0, Some(2));
}
