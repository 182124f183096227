//! Collecting and repairing in a stratum 0 of the reference tools: what they keep beside it stays true.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use cvmfs::hash::ObjectKind;

use super::fixtures::{self, Fixture};
use super::leavings::{assert_spool, give};
use super::stock::Stock;

#[test]
fn a_collection_removes_what_theirs_would_and_keeps_the_spool_true() {
    let stock = Stock::new("gc-before", "CVMFS_AUTO_TAG=false\nCVMFS_GARBAGE_COLLECTION=true");
    let revision = stock.manifest().revision;
    let swept = fs::read_to_string(fixtures::directory().join("gc-swept.txt")).unwrap();
    let is_there = |object: &&str| stock.storage.join(object).exists();
    assert!(swept.lines().count() > 0 && swept.lines().all(|o| is_there(&o)), "{swept}");
    stock.run(&["gc", &stock.fqrn, "--objects", "--keep-revisions", "1", "--min-age", "0s"]).ok();
    assert_eq!(swept.lines().filter(is_there).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(stock.manifest().revision, revision);
    assert_spool(&stock);
    stock.assert_sound();
    stock.ingest("after", &[("a", b"x")]).ok();
    assert_spool(&stock);
    stock.assert_sound();
}

#[test]
fn a_collection_refuses_an_open_transaction() {
    let stock = Stock::new("gc-before", "CVMFS_GARBAGE_COLLECTION=true");
    let before = stock.files();
    let flag = stock.spool.join("in_transaction.lock");
    fs::write(&flag, "").unwrap();
    let gc = ["gc", &stock.fqrn, "--objects", "--keep-revisions", "0", "--min-age", "0s"];
    stock.run(&gc).refused(4, "transaction");
    assert!(flag.exists() && stock.files() == before);
    fs::remove_file(&flag).unwrap();
    stock.run(&gc).ok();
    stock.assert_sound();
}

#[test]
fn faults_of_catalogs_are_repaired_in_one_publish() {
    for case in ["wrong-counter", "wrong-linkcount", "transition-mismatch", "orphan-row"] {
        let stock = Stock::of(Fixture::damaged(case), "CVMFS_AUTO_TAG=false");
        let revision = stock.manifest().revision;
        stock.run(&["check", &stock.fqrn, "--fix", "--dry-run"]);
        assert_eq!(stock.manifest().revision, revision, "{case}");
        assert_eq!(stock.run(&["check", &stock.fqrn]).status, Some(1), "{case}");
        stock.run(&["check", &stock.fqrn, "--fix"]).ok();
        assert_eq!(stock.manifest().revision, revision + 1, "{case}");
        assert_spool(&stock);
        stock.assert_sound();
    }
}

#[test]
fn what_monitors_read_says_when_it_was_collected_and_checked_and_keeps_the_rest() {
    let stock = Stock::new("gc-before", "CVMFS_AUTO_TAG=false\nCVMFS_GARBAGE_COLLECTION=true");
    let file = stock.storage.join(".cvmfs_status.json");
    let earlier = "Sat Nov 21 20:18:14 UTC 2026";
    let written = format!("{{\"last_check\": \"{earlier}\", \"check_status\": \"failed\", \"mine\": \"stays\"}}");
    fs::write(&file, written).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        give(&stock.storage, (1234, 4321));
        give(&stock.spool, (1234, 4321));
    } else {
        println!("skipped: another owner takes root");
    }
    let read = |expected: &[(&str, &str)]| {
        let status: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for (name, value) in expected.iter().chain(&[("mine", "stays")]) {
            assert_eq!(status[name], *value, "{status}");
        }
        let owner = fs::metadata(&file).map(|m| (m.uid(), m.gid())).unwrap();
        assert!(!is_root || owner == (1234, 4321), "{owner:?}");
        status
    };
    stock.run(&["gc", &stock.fqrn, "--objects", "--keep-revisions", "1", "--min-age", "0s"]).ok();
    let status = read(&[("last_check", earlier), ("check_status", "failed")]);
    let collected = status["last_gc"].as_str().unwrap().to_owned();
    assert!(collected.contains(" UTC 20") && collected.len() == earlier.len(), "{collected}");

    stock.run(&["check", &stock.fqrn]).ok();
    let status = read(&[("last_gc", &collected), ("check_status", "succeeded")]);
    let checked = status["last_check"].as_str().unwrap();
    assert!(checked != earlier && checked.contains(" UTC 20"), "{checked}");

    let gone = stock.storage.join(stock.manifest().history.unwrap().object(ObjectKind::History).path());
    let kept = fs::read(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    assert_eq!(stock.run(&["check", &stock.fqrn]).status, Some(1));
    read(&[("last_gc", &collected), ("check_status", "failed")]);
    fs::write(&gone, kept).unwrap();
    stock.run(&["check", &stock.fqrn, "--fix", "--dry-run"]).ok();
    read(&[("check_status", "failed")]);
    stock.run(&["check", &stock.fqrn, "--fix"]).ok();
    read(&[("check_status", "succeeded")]);
}

#[test]
fn the_plan_of_a_repair_names_what_changes_live_layers_and_the_option_for_it() {
    let Some(fixture) = Fixture::find("ducc") else {
        println!("skipped: fixture ducc is not there; set CVMFS_FIXTURES");
        return;
    };
    const OPTION: &str = "--yes-change-live-layers";
    let stock = Stock::of(fixture, "");
    let check = ["check", &stock.fqrn, "--fix", "--dry-run"];
    let lines = |text: &str, word: &str| -> Vec<String> {
        text.lines().filter(|l| l.split(' ').next() == Some(word)).map(str::to_owned).collect()
    };
    let careful = stock.run_plain(&check);
    assert_eq!(careful.status, Some(1), "{careful:?}");
    assert_eq!(lines(&careful.stdout, "LIVE"), [""; 0], "{}", careful.stdout);
    let beside: Vec<String> = lines(&careful.stdout, "repair").into_iter().filter(|l| l.contains(".wh.*")).collect();
    assert!(beside.len() == 2 && beside.iter().all(|l| l.contains(OPTION)), "{}", careful.stdout);

    let live = stock.run_plain(&[&check[..], &[OPTION]].concat());
    assert_eq!(live.status, Some(1), "{live:?}");
    let changed = lines(&live.stdout, "LIVE");
    assert!(changed.len() == 2 && changed.iter().all(|l| l.contains("containers that run on it")), "{}", live.stdout);
    assert!(live.stdout.contains("2 of them change layers that running containers may hold open"), "{}", live.stdout);
}

#[test]
fn settings_that_only_the_reference_tools_honour_are_warned_about() {
    let stock = Stock::new("updates-r4", "");
    let ran = stock.ingest("a", &[("a", b"x")]);
    assert!(!ran.stderr.contains("CVMFS_"), "{}", ran.stderr);
    ran.ok();
    stock.configure("CVMFS_VIRTUAL_DIR=true\nCVMFS_AUTOCATALOGS=true");
    let ran = stock.ingest("b", &[("a", b"y")]);
    for name in ["CVMFS_VIRTUAL_DIR=true", "CVMFS_AUTOCATALOGS=true"] {
        assert!(ran.stderr.contains(name), "{}", ran.stderr);
    }
    ran.ok();
}
