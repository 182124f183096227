//! The program with `--storage s3://…`: every command that a directory can have, but `serve`.

use std::fs;
use std::process::Output;

use axum::http::{Method, StatusCode};

use crate::server::{Fault, FaultKind};
use crate::world::World;

pub const FQRN: &str = "images.example.org";

pub fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

pub fn succeeds(world: &World, home: &std::path::Path, arguments: &[&str]) -> String {
    let output = world.program(home, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

pub fn archive(home: &std::path::Path, name: &str) {
    let file = fs::File::create(home.join(name)).unwrap();
    let mut tar = tar::Builder::new(file);
    for i in 0..50 {
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{name}.d/{i}"), &u32::to_le_bytes(i)[..]).unwrap();
    }
    tar.finish().unwrap();
}

/// Number of files below a directory.
fn walk(directory: &std::path::Path) -> usize {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { 1 }).sum()
}

#[test]
fn all_commands_work_on_a_bucket() {
    let world = World::new();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    assert!(succeeds(&world, home, &["init", FQRN]).contains("s3://cvmfs/images.example.org"));
    let again = world.program(home, &["init", FQRN]);
    assert_eq!(again.status.code(), Some(1), "{}", text(&again));
    for name in ["one.tar", "two.tar"] {
        archive(home, name);
        succeeds(&world, home, &["ingest", FQRN, "--tar", name, "--base", "data"]);
        succeeds(&world, home, &["check", FQRN, "--data"]);
    }
    let gc = ["gc", FQRN, "--objects", "--keep-revisions", "0", "--min-age", "0s"];
    let objects = |world: &World| walk(&world.file("data"));
    let before = objects(&world);
    succeeds(&world, home, &[&gc[..], &["--dry-run"]].concat());
    assert_eq!(objects(&world), before);
    succeeds(&world, home, &gc);
    assert!(objects(&world) < before, "old root catalogs and tag databases are gone");
    succeeds(&world, home, &["check", FQRN, "--data"]);
    succeeds(&world, home, &["check", FQRN, "--fix"]);
    succeeds(&world, home, &["rollback", FQRN]);
    succeeds(&world, home, &["images", FQRN]);
    succeeds(&world, home, &["sign", FQRN]);
    assert!(succeeds(&world, home, &["tag", FQRN, "list"]).contains("trunk"));
    let serve = world.program(home, &["serve", FQRN]);
    assert_eq!(serve.status.code(), Some(2), "{}", text(&serve));
    assert!(text(&serve).contains("its own server"), "{}", text(&serve));
    // The bucket has the layout of a directory: what the prefix holds can be copied out and served.
    for name in [".cvmfspublished", ".cvmfswhitelist", ".cvmfsreflog", ".cvmfs_master_replica"] {
        assert!(world.file(name).is_file(), "{name}");
    }
}

#[test]
fn a_publish_that_the_server_fails_leaves_the_old_revision_and_the_next_one_completes() {
    let world = World::new();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    succeeds(&world, home, &["init", FQRN]);
    archive(home, "a.tar");
    let ingest = ["ingest", FQRN, "--tar", "a.tar", "--base", "data"];
    for path in ["/data/", "/.cvmfsreflog", "/.cvmfspublished"] {
        let before = fs::read(world.file(".cvmfspublished")).unwrap();
        let kind = FaultKind::Refused(StatusCode::FORBIDDEN);
        world.controls.fail(vec![Fault { method: Method::PUT, path, kind }; 1000]);
        let failed = world.program(home, &ingest);
        assert!(!failed.status.success(), "{path}: {}", text(&failed));
        assert!(text(&failed).contains("s3:GetObject"), "{path}: {}", text(&failed));
        world.controls.clear();
        assert!(fs::read(world.file(".cvmfspublished")).unwrap() == before, "{path}");
        succeeds(&world, home, &["check", FQRN, "--data"]);
    }
    succeeds(&world, home, &ingest);
    succeeds(&world, home, &["check", FQRN, "--data"]);
}

#[test]
fn an_unusable_bucket_is_said_before_anything_is_made() {
    let world = World::new();
    let home = tempfile::tempdir().unwrap();
    world.remove_bucket();
    let output = world.program(home.path(), &["init", FQRN]);
    assert!(!output.status.success());
    assert!(text(&output).contains("no bucket cvmfs"), "{}", text(&output));
}
