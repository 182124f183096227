//! The program itself.

use std::io::Write as _;
use std::process::{Command as Process, Stdio};

use super::world::*;

#[test]
fn the_program_reads_archives_from_its_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], input: &[u8]| {
        let mut process = Process::new(env!("CARGO_BIN_EXE_cvmfs-publisher"))
            .args(arguments)
            .args(["--storage", "storage", "--keys", "keys", "--state", "state"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses its arguments doesn't read.
        let _ = process.stdin.take().unwrap().write_all(input);
        let output = process.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&["init", FQRN], b"").0, Some(0));
    let tar = gzip(&archive(&[file("bin/tool", "run").mode(0o755)]));
    let (status, stdout, stderr) = run(&["--json", "ingest", FQRN, "--tar", "-", "--base", "sw"], &tar);
    assert_eq!(status, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["revision"], &report["entries"]), (&1.into(), &1.into()));

    let (status, stdout, _) = run(&["ingest", FQRN, "--delete", "sw/bin", "--delete", "x"], b"");
    let expected = format!("deleted   /sw/bin\nmissing   /x: nothing to delete\n{FQRN}: revision 1 -> 2\n");
    assert_eq!((status, stdout), (Some(0), expected));

    let (status, stdout, stderr) = run(&["ingest", FQRN, "--tar", "-", "--base", ".flat"], &tar);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with(&format!("Error: cannot ingest - into {FQRN}\n")), "{stderr}");
    assert!(stderr.contains("1: /.flat belongs to the published images"), "{stderr}");
    assert_eq!(run(&["check", FQRN, "--data"], b"").0, Some(0));
}
