//! Beside the reference tools: their locks and flags, and ours when we are killed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::stock::Stock;

fn is_free(file: &Path) -> bool {
    Command::new("flock").arg("-n").arg(file).arg("true").status().unwrap().success()
}

/// A shell that holds the lock.
fn holder(file: &Path) -> Child {
    let mut shell = Command::new("flock")
        .args(["-n", "--no-fork"])
        .arg(file)
        .args(["sh", "-c", "echo locked; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock of util-linux");
    let mut line = String::new();
    BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    shell
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(mut child: Child) -> (bool, String) {
    let mut stderr = String::new();
    let status = child.wait().unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (status.success(), stderr)
}

#[test]
fn an_open_transaction_is_refused_before_any_work() {
    let stock = Stock::new("updates-r4", "");
    for (file, reason) in [("in_transaction.lock", "cvmfs_server abort"), ("checkout", "checked out")] {
        let path = stock.spool.join(file);
        fs::write(&path, "").unwrap();
        let before = stock.files();
        stock.ingest("new", &[("a", b"new content")]).refused(4, reason);
        assert_eq!(stock.files().len(), before.len(), "nothing was stored");
        stock.run(&["ingest", &stock.fqrn, "--delete", "rev"]).refused(4, reason);
        assert_eq!(stock.manifest().revision, 4);
        stock.run(&["images", &stock.fqrn]).ok();
        stock.run(&["check", &stock.fqrn]).ok();
        assert_eq!(fs::read(&path).unwrap(), b"", "the flag is theirs");
        fs::remove_file(path).unwrap();
    }
    stock.ingest("new", &[("a", b"new content")]).ok();
    stock.assert_sound();
}

#[test]
fn a_publish_or_collection_of_theirs_is_waited_for() {
    for lock in ["is_publishing.lock", "is_collecting.lock"] {
        let stock = Stock::new("updates-r4", "");
        let file = stock.spool.join(lock);
        let mut shell = holder(&file);
        let mut publish = stock.command(&["ingest", &stock.fqrn, "--delete", "rev"]).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert!(publish.try_wait().unwrap().is_none(), "{lock} is waited for");
        assert_eq!(stock.manifest().revision, 4);
        // Killed, it leaves the file behind, which locks nothing.
        shell.kill().unwrap();
        shell.wait().unwrap();
        let (ok, stderr) = end(publish);
        assert!(ok, "{stderr}");
        assert_eq!(stock.manifest().revision, 5);
        assert!(!file.exists());
        stock.assert_sound();
    }
}

#[test]
fn killed_while_publishing_we_leave_nothing_that_is_in_the_way_for_long() {
    let stock = Stock::new("updates-r4", "");
    let (publishing, flag) = (stock.spool.join("is_publishing.lock"), stock.spool.join("in_transaction.lock"));
    // Whatever replaces a file of the storage has to wait for this, also a publish that has all its locks.
    let hold = || Flock::lock(File::open(&stock.storage).unwrap(), FlockArg::LockExclusive).unwrap();
    let held = hold();
    let mut publish = stock.command(&["ingest", &stock.fqrn, "--delete", "rev"]).spawn().unwrap();
    wait_until("the flag is set", || fs::read(&flag).is_ok_and(|text| !text.is_empty()));
    assert!(!is_free(&publishing), "publish of the tools would be refused");
    assert!(!is_free(&stock.spool.join("is_collecting.lock")), "and so would gc");
    assert!(fs::read_to_string(&flag).unwrap().starts_with("cvmfs-publisher "), "and transaction");
    publish.kill().unwrap();
    publish.wait().unwrap();
    assert!(flag.exists() && is_free(&publishing), "the kernel frees locks, not flags");
    drop(held);
    assert_eq!(stock.manifest().revision, 4);
    stock.assert_sound();

    // The next of ours goes on as if nothing had been.
    stock.run(&["ingest", &stock.fqrn, "--delete", "rev"]).ok();
    assert!(!flag.exists() && !publishing.exists());
    assert_eq!(stock.manifest().revision, 5);
    stock.assert_sound();
}

#[test]
fn several_of_ours_and_a_shell_publish_one_after_another() {
    let stock = Stock::new("updates-r4", "CVMFS_AUTO_TAG=false");
    let shell = holder(&stock.spool.join("is_publishing.lock"));
    let publishes: Vec<Child> = ["rev", "d/same", "d/changed"]
        .map(|path| stock.command(&["ingest", &stock.fqrn, "--delete", path]).spawn().unwrap())
        .into();
    std::thread::sleep(Duration::from_secs(1));
    let mut shell = shell;
    shell.kill().unwrap();
    shell.wait().unwrap();
    for publish in publishes {
        let (ok, stderr) = end(publish);
        assert!(ok, "{stderr}");
    }
    assert_eq!(stock.manifest().revision, 7);
    assert_eq!(stock.spool_files().keys().collect::<Vec<_>>(), ["client.local", "reflog.chksum"]);
    stock.assert_sound();
}
