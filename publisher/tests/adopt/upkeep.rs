//! Collecting and repairing in a stratum 0 of the reference tools: what they keep beside it stays true.

use std::fs;

use super::fixtures::{self, Fixture};
use super::leavings::assert_spool;
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
