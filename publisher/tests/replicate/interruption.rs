//! Runs of the program that end in the middle: the copy stays good, and nothing is fetched twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::Act;
use crate::site::{Site, manifest, objects};

/// Starts `cvmfs-publisher replicate` for the copy of a site.
fn start(site: &Site) -> Child {
    let key = site.directory.path().join("key.pub");
    fs::write(&key, &site.fixture.public_key).unwrap();
    Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"))
        .args(["--json", "replicate", &site.server.url(&site.fixture.fqrn)])
        .arg(site.copy())
        .arg("--public-key")
        .arg(key)
        .arg("--state")
        .arg(site.directory.path().join("state"))
        .args(["--connections", "3", "--blacklist", "/nonexistent"])
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs it until the server has been asked for more than it answers, then kills it (SIGKILL).
fn kill_after(site: &Site, answers: usize) {
    site.server.rule(move |_, number| if number > answers { Act::Hang } else { Act::Serve });
    let mut child = start(site);
    let begun = Instant::now();
    while site.server.requests() <= answers {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never made request {}", answers + 1);
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn run(site: &Site) -> serde_json::Value {
    let output = start(site).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the program's own check says of the copy.
fn check(site: &Site) -> serde_json::Value {
    let state = site.directory.path().join("state");
    let keys = site.directory.path().join("keys");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join(format!("{}.pub", site.fixture.fqrn)), &site.fixture.public_key).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"));
    command.args(["--json", "check", "--data", &site.fixture.fqrn]);
    command.arg("--storage").arg(site.copy()).arg("--state").arg(state).arg("--keys").arg(keys);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_program_copies_checks_and_brings_up_to_date() {
    let site = Site::of("updates-r3");
    let report = run(&site);
    assert_eq!((&report["schema"], &report["revision"]), (&1.into(), &3.into()));
    assert!(report["revision_before"].is_null() && report["stored"]["bytes"].as_u64() > Some(0), "{report}");
    check(&site);
    site.fixture.advance("updates-r4");
    let report = run(&site);
    assert_eq!((&report["revision_before"], &report["revision"]), (&3.into(), &4.into()));
    check(&site);
}

fn asked(site: &Site) -> BTreeSet<String> {
    site.server.log().into_iter().map(|(path, _)| path).filter(|p| p.starts_with("data/")).collect()
}

#[test]
fn killed_after_every_other_answer_the_copy_is_good_and_nothing_comes_twice() {
    let whole = Site::of("updates-r2");
    whole.replicate().unwrap();
    whole.fixture.advance("updates-r4");
    whole.server.rule(|_, _| Act::Serve);
    let requests = whole.replicate().unwrap().requests as usize;
    assert!(requests > 20);
    let all: BTreeSet<String> = objects(&whole.copy()).into_keys().collect();
    for answers in (0..requests).step_by(2) {
        let site = Site::of("updates-r2");
        site.replicate().unwrap();
        site.fixture.advance("updates-r4");
        kill_after(&site, answers);
        let before: BTreeSet<String> = objects(&site.copy()).into_keys().collect();
        site.assert_sound(2);
        site.server.rule(|_, _| Act::Serve);
        let report = run(&site);
        assert_eq!(report["revision"], 4);
        let asked = asked(&site);
        assert!(asked.is_disjoint(&before), "killed after {answers}: fetched again {:?}", asked.intersection(&before));
        let after: BTreeSet<String> = objects(&site.copy()).into_keys().collect();
        assert_eq!(after, all, "killed after {answers}");
        site.assert_sound(4);
        assert_eq!(left(&site.copy()), ["replicate.lock"], "killed after {answers}");
    }
}

#[test]
fn a_first_copy_can_be_killed_again_and_again() {
    let site = Site::of("basic");
    let mut best = 0;
    for round in 0..5 {
        kill_after(&site, 5 + 8 * round);
        let have = objects(&site.copy()).len();
        assert!(have >= best, "round {round}: {have} objects after {best}");
        best = have;
        assert!(!site.copy().join(".cvmfspublished").exists(), "no manifest before everything is there");
    }
    assert!(best > 60, "{best}");
    site.server.rule(|_, _| Act::Serve);
    let report = run(&site);
    assert_eq!(report["stored"]["objects"].as_u64().unwrap() as usize + best, objects(&site.copy()).len());
    assert!(!site.copy().join(".cvmfs_is_snapshotting").exists());
    site.assert_sound(6);
}

/// Names in `data/txn`.
fn left(copy: &Path) -> Vec<String> {
    let entries = fs::read_dir(copy.join("data/txn")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_a_power_failure_may_have_damaged_is_looked_at_again() {
    let site = Site::of("updates-r2");
    site.replicate().unwrap();
    site.fixture.advance("updates-r4");
    let old: BTreeSet<String> = objects(&site.copy()).into_keys().collect();
    let lock = site.copy().join("data/txn/replicate.lock");
    let boot = fs::read_to_string(&lock).unwrap();
    // A run that got almost to the end, and then the machine went down: of what it wrote, a file has lost its end,
    // another is empty, and the root catalog is there all the same.
    site.server.rule(|path, _| if path.ends_with('H') { Act::Hang } else { Act::Serve });
    let mut child = start(&site);
    let root = manifest(&site.fixture.storage).root_catalog.object(cvmfs::hash::ObjectKind::Catalog).path();
    // The tag database is asked for after the trees of the current root and its predecessors.
    let begun = Instant::now();
    while !site.copy().join(&root).exists() || !site.server.log().is_empty() && site.server.requests() < 20 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let files: Vec<String> =
        objects(&site.copy()).into_keys().filter(|p| !old.contains(p) && !p.ends_with('C')).collect();
    let cut = fs::read(site.copy().join(&files[0])).unwrap();
    fs::write(site.copy().join(&files[0]), &cut[..cut.len() / 2]).unwrap();
    fs::write(site.copy().join(&files[1]), b"").unwrap();
    fs::write(&lock, "another boot").unwrap();

    site.server.rule(|_, _| Act::Serve);
    let report = run(&site);
    assert_eq!(report["revision"], 4);
    let asked = asked(&site);
    assert!(asked.contains(&files[0]) && asked.contains(&files[1]) && asked.contains(&root), "{asked:?}");
    assert!(files[2..].iter().all(|path| !asked.contains(path)), "what was right is kept");
    assert!(asked.is_disjoint(&old), "what was there before the run is not doubted");
    assert_eq!(fs::read_to_string(&lock).unwrap(), boot);
    site.assert_sound(4);
}
