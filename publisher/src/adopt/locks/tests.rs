//! The locks against those of a shell, which takes them by the same protocol.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};

use super::*;
use cvmfs::store::MemoryStore;

use crate::adopt::Policy;
use crate::storage::Location;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);

fn stratum0(spool: &Path) -> Arc<Stratum0> {
    Arc::new(Stratum0 {
        fqrn: "images.example.org".into(),
        config: spool.join("server.conf"),
        storage: Location::Directory(spool.join("storage")),
        spool: spool.to_owned(),
        user: None,
        remarks: Vec::new(),
        algorithm: cvmfs::hash::Algorithm::Sha1,
        codec: cvmfs::object::Codec::REFERENCE,
        policy: Policy::default(),
    })
}

impl Stratum0 {
    fn lock(self: &Arc<Stratum0>, patience: Duration) -> Result<StockLock, AdoptError> {
        self.hold(LeaseKind::Publish, &store(), patience)
    }

    fn keep_collector_out(self: &Arc<Stratum0>, patience: Duration) -> Result<StockLock, AdoptError> {
        self.hold(LeaseKind::Prepare, &store(), patience)
    }

    fn lock_collecting(self: &Arc<Stratum0>, patience: Duration) -> Result<StockLock, AdoptError> {
        self.hold(LeaseKind::Collect, &store(), patience)
    }
}

fn store() -> Arc<dyn Listing> {
    Arc::new(MemoryStore::default())
}

/// A shell that holds a lock until it is dropped, and then ends without letting go of anything itself.
struct Holder(Child);

impl Holder {
    fn of(file: &Path) -> Holder {
        let mut shell = Command::new("flock")
            .args(["-n", "--no-fork"])
            .arg(file)
            .args(["sh", "-c", "echo locked; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock of util-linux");
        let mut line = String::new();
        io::BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Holder(shell)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Whether a shell gets the lock. It leaves the file behind, as a tool that was killed does.
fn is_free(file: &Path) -> bool {
    Command::new("flock").arg("-n").arg(file).arg("true").status().unwrap().success()
}

#[test]
fn a_shell_that_publishes_or_collects_is_waited_for_and_named() {
    for (file, doing) in [("is_publishing.lock", "being published"), ("is_collecting.lock", "being collected")] {
        let spool = tempfile::tempdir().unwrap();
        let (stratum0, file) = (stratum0(spool.path()), spool.path().join(file));
        let holder = Holder::of(&file);
        let error = stratum0.lock(SHORT).unwrap_err();
        assert!(matches!(&error, AdoptError::Busy { lock, .. } if *lock == file), "{error}");
        assert!(error.to_string().contains(doing), "{error}");
        assert!(!spool.path().join("in_transaction.lock").exists(), "nothing is left of the attempt");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stratum0.lock(LONG).map(drop));
            std::thread::sleep(SHORT);
            assert!(!waiting.is_finished());
            drop(holder);
            waiting.join().unwrap().unwrap();
        });
    }
}

#[test]
fn while_we_publish_a_shell_gets_no_lock_and_sees_a_transaction() {
    let spool = tempfile::tempdir().unwrap();
    let stratum0 = stratum0(spool.path());
    let files = ["is_publishing.lock", "is_collecting.lock", "in_transaction.lock"].map(|f| spool.path().join(f));
    let lock = stratum0.lock(SHORT).unwrap();
    assert!(!is_free(&files[0]) && !is_free(&files[1]) && files[2].exists());
    assert!(matches!(stratum0.lock(SHORT), Err(AdoptError::Busy { .. })), "and so do others of ours");
    drop(lock);
    assert!(files.iter().all(|file| !file.exists()), "all are removed");
    assert!(is_free(&files[0]) && is_free(&files[1]));
    drop(stratum0.lock(SHORT).expect("files that nobody has locked are in nobody's way"));
}

#[test]
fn several_of_ours_keep_the_collector_out_until_the_last_is_done() {
    let spool = tempfile::tempdir().unwrap();
    let stratum0 = stratum0(spool.path());
    let file = spool.path().join("is_collecting.lock");
    let (first, second) = (stratum0.keep_collector_out(SHORT).unwrap(), stratum0.keep_collector_out(SHORT).unwrap());
    drop(stratum0.lock(SHORT).expect("preparing keeps no publish out"));
    assert!(!is_free(&file));
    drop(first);
    assert!(!is_free(&file) && stratum0.lock_collecting(SHORT).is_err());
    drop(second);
    assert!(!file.exists());
    let collecting = stratum0.lock_collecting(SHORT).unwrap();
    assert!(!is_free(&file) && stratum0.keep_collector_out(SHORT).is_err());
    drop(collecting);
}

#[test]
fn an_open_transaction_or_checkout_is_refused_and_left_alone() {
    for (name, content) in [("in_transaction.lock", ""), ("in_transaction.lock", "4711\n"), ("checkout", "v1 abc\n")] {
        let spool = tempfile::tempdir().unwrap();
        let stratum0 = stratum0(spool.path());
        let file = spool.path().join(name);
        fs::write(&file, content).unwrap();
        let error = stratum0.lock(LONG).unwrap_err();
        match name {
            "checkout" => assert!(matches!(error, AdoptError::CheckedOut { .. }), "{error}"),
            _ => assert!(matches!(error, AdoptError::InTransaction { .. }), "{error}"),
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), content);
        assert!(is_free(&spool.path().join("is_publishing.lock")));
    }
}

#[test]
fn what_a_killed_publish_of_ours_left_is_taken_over() {
    let spool = tempfile::tempdir().unwrap();
    let stratum0 = stratum0(spool.path());
    let flag = spool.path().join("in_transaction.lock");
    for file in ["is_publishing.lock", "is_collecting.lock"] {
        fs::write(spool.path().join(file), "").unwrap();
    }
    fs::write(&flag, "cvmfs-publisher 4711\n").unwrap();
    let lock = stratum0.lock(SHORT).unwrap();
    assert_eq!(fs::read_to_string(&flag).unwrap(), format!("cvmfs-publisher {}\n", std::process::id()));
    drop(lock);
    assert!(!flag.exists());
    // Taken over by another, the flag is not ours to remove.
    let lock = stratum0.lock(SHORT).unwrap();
    fs::write(&flag, "").unwrap();
    drop(lock);
    assert!(flag.exists());
}

#[test]
fn one_at_a_time_with_shells_that_remove_the_file_under_our_hands() {
    const EACH: u32 = 25;
    let spool = tempfile::tempdir().unwrap();
    let stratum0 = stratum0(spool.path());
    let counter = spool.path().join("counter");
    fs::write(&counter, "0").unwrap();
    // Opens, locks, looks whether the path still leads there; counts; removes, then closes.
    let script = r#"
        i=0
        while [ $i -lt $2 ]; do
            exec 9<>"$1/is_publishing.lock"
            if flock -n 9 && [ "$(stat -L -c %i /proc/self/fd/9)" = "$(stat -c %i "$1/is_publishing.lock" 2>/dev/null)" ]; then
                n=$(cat "$1/counter"); echo $((n + 1)) > "$1/counter"
                i=$((i + 1))
                rm -f "$1/is_publishing.lock"
            fi
            exec 9>&-
            sleep 0.01
        done"#;
    let shell = || {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(spool.path()).arg(EACH.to_string()).spawn().unwrap()
    };
    let shells = [shell(), shell()];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let lock = stratum0.lock(LONG).unwrap();
                    let n: u32 = fs::read_to_string(&counter).unwrap().trim().parse().unwrap();
                    fs::write(&counter, (n + 1).to_string()).unwrap();
                    drop(lock);
                }
            });
        }
    });
    for mut shell in shells {
        assert!(shell.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(&counter).unwrap().trim(), (4 * EACH).to_string(), "no step was lost");
}
