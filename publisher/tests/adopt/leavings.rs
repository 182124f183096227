//! What a publish leaves in the storage and beside it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::object::Codec;
use cvmfs::reflog::{Ref, RefKind, append};
use cvmfs::store::names;

use super::stock::{CLIENT_LOCAL, Stock, assert_only_added};

pub(super) fn owners(directory: &Path, found: &mut Vec<(u32, u32)>) {
    for entry in fs::read_dir(directory).unwrap().map(|e| e.unwrap()) {
        let metadata = entry.metadata().unwrap();
        found.push((metadata.uid(), metadata.gid()));
        if metadata.is_dir() {
            owners(&entry.path(), found);
        }
    }
}

pub(super) fn give(directory: &Path, owner: (u32, u32)) {
    chown(directory, Some(owner.0), Some(owner.1)).unwrap();
    for entry in fs::read_dir(directory).unwrap().map(|e| e.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => give(&entry.path(), owner),
            false => chown(entry.path(), Some(owner.0), Some(owner.1)).unwrap(),
        }
    }
}

/// Fails unless all that stands beside the storage fits the published revision.
#[track_caller]
pub(super) fn assert_spool(stock: &Stock) {
    let manifest = stock.manifest();
    let reflog = fs::read(stock.storage.join(names::REFLOG)).unwrap();
    let hash = ContentHash::of(manifest.root_catalog.algorithm, &reflog);
    assert_eq!(manifest.reflog, Some(hash));
    let files = stock.spool_files();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["client.local", "reflog.chksum"], "no lock, no flag, nothing else");
    assert_eq!(files["reflog.chksum"], hash.to_string(), "without a newline");
    assert_eq!(files["client.local"], format!("CVMFS_ROOT_HASH={}\n{CLIENT_LOCAL}", manifest.root_catalog));
}

#[test]
fn a_publish_leaves_what_the_reference_tools_would_have_left() {
    // All automatic tags are younger than the time span but one.
    let settings = "CVMFS_AUTO_TAG_TIMESPAN='@1795292000'\nCVMFS_REPOSITORY_TTL=90\nCVMFS_GARBAGE_COLLECTION=true";
    let stock = Stock::new("basic", settings);
    let status = b"{\"last_check\": \"Sat Nov 21 20:18:14 UTC 2026\", \"check_status\": \"succeeded\"}";
    fs::write(stock.storage.join(".cvmfs_status.json"), status).unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("skipped: another owner takes root");
    } else {
        give(&stock.storage, (1234, 4321));
        give(&stock.spool, (1234, 4321));
    }
    let (before, old, tags_before) = (stock.files(), stock.manifest(), stock.tags());
    stock.ingest("new", &[("a", b"hello\n"), ("b", b"something else")]).ok();

    let (after, new, tags) = (stock.files(), stock.manifest(), stock.tags());
    let added = assert_only_added(&before, &after, Codec::REFERENCE);
    // One file, the root catalog, the tag database: "hello\n" and the certificate were there.
    assert!(added.len() <= 4, "{added:?}");
    assert_eq!((new.revision, new.ttl, new.garbage_collectable), (old.revision + 1, 90, true));
    assert_eq!((new.certificate, new.meta_info), (old.certificate, old.meta_info));
    assert_spool(&stock);
    stock.assert_sound();

    let mut expected: Vec<String> = tags_before.keys().cloned().collect();
    expected.retain(|name| name != "generic-2026-11-21T20:12:10Z");
    let made: Vec<&String> = tags.keys().filter(|name| !tags_before.contains_key(*name)).collect();
    assert!(made.len() == 1 && made[0].starts_with("generic-2") && made[0].ends_with('Z'), "{made:?}");
    expected.push(made[0].clone());
    expected.sort();
    assert_eq!(tags.keys().cloned().collect::<Vec<_>>(), expected);
    let mine = &tags[made[0]];
    assert_eq!((mine.root, mine.revision, mine.description.as_str()), (new.root_catalog, new.revision, ""));
    assert_eq!((mine.size, mine.timestamp), (new.root_catalog_size, new.published));
    assert_eq!((tags["trunk"].root, tags["trunk"].description.as_str()), (new.root_catalog, "current HEAD"));
    let previous = &tags["trunk-previous"];
    assert_eq!((previous.root, previous.description.as_str()), (old.root_catalog, "default undo target"));
    assert_eq!(tags["v1"], tags_before["v1"]);

    if is_root {
        let mut found = Vec::new();
        owners(&stock.storage, &mut found);
        owners(&stock.spool, &mut found);
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [(1234, 4321)], "all of it still belongs to the user of the tools");
    }
    // And again, with a tag in its way perhaps.
    stock.ingest("again", &[("a", b"more")]).ok();
    assert_spool(&stock);
    assert_eq!(stock.tags().len(), tags.len() + 1);
    stock.assert_sound();
}

#[test]
fn without_automatic_tags_only_the_two_last_revisions_are_named() {
    let stock = Stock::new("updates-r4", "CVMFS_AUTO_TAG=false");
    let before: Vec<String> = stock.tags().into_keys().collect();
    stock.ingest("new", &[("a", b"x")]).ok();
    assert_eq!(stock.tags().into_keys().collect::<Vec<_>>(), before);
    let manifest = stock.manifest();
    assert_eq!((manifest.ttl, manifest.garbage_collectable), (240, false), "as server.conf says");
    assert_spool(&stock);
    stock.assert_sound();
}

#[test]
fn tags_and_rollback_leave_the_same() {
    let stock = Stock::new("updates-r4", "CVMFS_AUTO_TAG=false\nCVMFS_GARBAGE_COLLECTION=true");
    stock.run(&["tag", &stock.fqrn, "add", "mine"]).ok();
    assert_spool(&stock);
    assert_eq!(stock.tags()["mine"].revision, 4);
    stock.run(&["rollback", &stock.fqrn, "rev3"]).ok();
    assert_eq!(stock.manifest().revision, 5);
    assert_spool(&stock);
    stock.assert_sound();
}

#[test]
fn a_reflog_that_is_not_the_one_that_was_left_is_refused() {
    let stock = Stock::new("updates-r4", "");
    let before = stock.files();
    let manifest = stock.manifest();
    fs::write(stock.spool.join("reflog.chksum"), "00".repeat(20)).unwrap();
    stock.ingest("a", &[("a", b"x")]).ok();
    assert_spool(&stock);
    assert_eq!(stock.manifest().revision, manifest.revision + 1, "the manifest knows it; the file is mended");

    let good = fs::read(stock.storage.join(names::REFLOG)).unwrap();
    fs::write(stock.storage.join(names::REFLOG), &before[names::REFLOG]).unwrap();
    let before = stock.files();
    stock.ingest("b", &[("a", b"y")]).refused(4, "reflog");
    let after = stock.files();
    assert_eq!(before[names::MANIFEST], after[names::MANIFEST]);
    fs::remove_file(stock.storage.join(names::REFLOG)).unwrap();
    stock.ingest("b", &[("a", b"y")]).refused(4, "is missing");
    fs::write(stock.storage.join(names::REFLOG), good).unwrap();
    stock.ingest("b", &[("a", b"y")]).ok();
    stock.assert_sound();

    // After a collection of theirs, only the file knows.
    let gone = Ref { hash: ContentHash::of(Algorithm::Sha1, b"old"), kind: RefKind::History, timestamp: 1 };
    let reflog = stock.storage.join(names::REFLOG);
    append(&reflog, &stock.fqrn, &[gone]).unwrap();
    let hash = ContentHash::of(Algorithm::Sha1, &fs::read(&reflog).unwrap());
    fs::write(stock.spool.join("reflog.chksum"), hash.to_string()).unwrap();
    assert_ne!(stock.manifest().reflog, Some(hash));
    stock.assert_sound();
    stock.ingest("c", &[("a", b"z")]).ok();
    assert_spool(&stock);
}
