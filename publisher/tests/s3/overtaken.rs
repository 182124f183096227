//! Two publishers of one bucket whom no lease keeps apart: the condition on the write tells who came too late, who then
//! publishes on top of it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axum::http::Method;
use cvmfs::lease::LEASES;
use cvmfs::path::RepoPath;
use cvmfs::reflog::RefKind;
use cvmfs::store::names;
use publisher::cli::Paths;
use publisher::target::Target;
use time::UtcDateTime;

use crate::program::{FQRN, archive, succeeds, text};
use crate::server::{Controls, Fault, FaultKind};
use crate::world::{World, program};

/// The next write of a file is ambushed.
fn lie_in_wait(controls: &Controls, path: &'static str) {
    controls.fail([Fault { method: Method::PUT, path, kind: FaultKind::Ambushed }]);
}

/// The repository as another machine sees it.
fn target(world: &World, home: &Path) -> Target {
    let (keys, state) = (home.join("keys"), home.join("another state"));
    Target::open(FQRN, Paths { storage: world.settings().into(), keys, state }).unwrap()
}

#[test]
fn who_is_overtaken_publishes_on_top_and_nothing_is_lost() {
    for (file, times) in [(names::MANIFEST, 1), (names::MANIFEST, 3), (names::REFLOG, 1)] {
        let world = World::new();
        let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        succeeds(&world, home.path(), &["init", FQRN]);
        let keys = other.path().join("keys");
        fs::create_dir(&keys).unwrap();
        for key in fs::read_dir(home.path().join("keys")).unwrap().map(|e| e.unwrap()) {
            fs::copy(key.path(), keys.join(key.file_name())).unwrap();
        }
        archive(home.path(), "mine.tar");
        archive(other.path(), "theirs.tar");

        let (controls, address, leases) = (Arc::downgrade(&world.controls), world.address, world.file(LEASES));
        let (other_home, mut number) = (other.path().to_owned(), 0);
        world.controls.ambush(move || {
            number += 1;
            // Whoever is at work is not seen any more.
            fs::remove_file(&leases).unwrap();
            let base = format!("theirs-{number}");
            let ran = program(address, &other_home, &["ingest", FQRN, "--tar", "theirs.tar", "--base", &base]);
            assert!(ran.status.success(), "{}", text(&ran));
            if number < times {
                lie_in_wait(&controls.upgrade().unwrap(), file);
            }
        });
        lie_in_wait(&world.controls, file);
        let said = succeeds(&world, home.path(), &["ingest", FQRN, "--tar", "mine.tar", "--base", "mine"]);
        assert_eq!((world.controls.overtaken(file), world.controls.faults_left()), (times, 0), "{file}: {said}");

        let target = target(&world, home.path());
        let root = target.view(UtcDateTime::now()).unwrap().list(&RepoPath::ROOT).unwrap();
        let found: Vec<String> = root.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
        let theirs = (1..=times).map(|number| format!("theirs-{number}"));
        for name in theirs.chain(["mine".to_owned()]) {
            assert!(found.contains(&name), "{name} is lost {times} times before {file}: {found:?}");
        }
        let repository = target.repository().unwrap();
        // The first one has the number 0.
        assert_eq!(repository.manifest().revision, 1 + times as u64);
        let rows = repository.reflog(target.scratch()).unwrap().unwrap();
        let catalogs = rows.iter().filter(|row| row.kind == RefKind::Catalog).count();
        assert!(catalogs >= 2 + times, "{catalogs} root catalogs {times} times before {file}");
        succeeds(&world, home.path(), &["check", FQRN, "--data"]);
    }
}
