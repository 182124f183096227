//! Copies of repositories over real sockets: complete, incremental, resumable, and not to be fooled.

#[path = "../../../tests/src/fixtures.rs"]
#[allow(dead_code, reason = "shared with the tests of other crates")]
mod fixtures;
mod hostile;
mod interruption;
mod server;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cvmfs::reflog::{self, RefKind};
use publisher::replicate::{ReplicateError, replicate};

use crate::fixtures::{Fixture, NAMES};
use crate::server::{Act, Server};
use crate::site::{Site, in_memory, manifest, objects, reachable};

/// What a run asks for where nothing is new.
const DOCUMENTS: [&str; 3] = [".cvmfs_master_replica", ".cvmfspublished", ".cvmfswhitelist"];

fn paths(log: &[(String, u64)]) -> BTreeSet<String> {
    log.iter().map(|(path, _)| path.clone()).collect()
}

fn expected(objects: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    objects.into_iter().chain(DOCUMENTS.map(str::to_owned)).collect()
}

#[test]
fn every_fixture_is_copied_completely_and_verbatim() {
    for name in NAMES {
        let site = Site::of(name);
        fs::write(site.fixture.storage.join(".cvmfs_master_replica"), "yes\n").unwrap();
        let report = site.replicate().unwrap_or_else(|e| panic!("{name}: {}", e.line()));
        let (there, here) = (objects(&site.fixture.storage), objects(&site.copy()));
        let wanted = reachable(&site.fixture);
        assert_eq!(here.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{name}");
        assert!(here.iter().all(|(path, size)| there[path] == *size), "{name}");
        for document in [".cvmfspublished", ".cvmfswhitelist"] {
            let read = |storage: &std::path::Path| fs::read(storage.join(document)).unwrap();
            assert_eq!(read(&site.fixture.storage), read(&site.copy()), "{name}: {document}");
        }
        assert_eq!(report.stored.objects, here.len() as u64, "{name}");
        assert_eq!(report.stored.bytes, here.values().sum::<u64>(), "{name}");
        assert_eq!(report.requests as usize, here.len() + DOCUMENTS.len(), "{name}: no object twice");
        site.assert_sound(manifest(&site.fixture.storage).revision);
    }
}

#[test]
fn a_copy_has_what_the_stock_tools_copy() {
    let site = Site::of("basic");
    site.replicate().unwrap();
    let stock = Fixture::unpack("basic-s1");
    assert_eq!(objects(&site.copy()), objects(&stock.storage));
    let refs = |storage: &std::path::Path| {
        let refs = reflog::read(&storage.join(".cvmfsreflog")).unwrap();
        refs.into_iter().map(|r| (r.hash, r.kind.number())).collect::<BTreeSet<_>>()
    };
    assert_eq!(refs(&site.copy()), refs(&stock.storage));
    let top = |storage: &std::path::Path| {
        let names = fs::read_dir(storage).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    assert_eq!(top(&site.copy()), top(&stock.storage));
    let keys = |storage: &std::path::Path| {
        let status = fs::read(storage.join(".cvmfs_status.json")).unwrap();
        let status: BTreeMap<String, String> = serde_json::from_slice(&status).unwrap();
        status.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(keys(&site.copy()), keys(&stock.storage));
}

#[test]
fn an_update_moves_what_is_new_and_nothing_else() {
    let site = Site::of("updates-r2");
    site.replicate().unwrap();
    for (name, revision) in [("updates-r3", 3), ("updates-r4", 4)] {
        let before = objects(&site.copy());
        site.fixture.advance(name);
        site.server.rule(|_, _| Act::Serve);
        let report = site.replicate().unwrap();
        let mut new = objects(&site.copy());
        new.retain(|path, _| !before.contains_key(path));
        let log = site.server.log();
        assert!(!new.is_empty() && log.len() == paths(&log).len(), "{log:?}");
        assert_eq!(paths(&log), expected(new.keys().cloned()), "{name}");
        let documents: u64 = log.iter().filter(|(p, _)| DOCUMENTS.contains(&p.as_str())).map(|(_, n)| n).sum();
        assert_eq!(report.received, new.values().sum::<u64>() + documents, "{name}");
        assert_eq!((report.revision_before, report.revision), (Some(revision - 1), revision));
        assert_eq!(report.stored.objects, new.len() as u64);
        site.assert_sound(revision);
    }
    site.server.rule(|_, _| Act::Serve);
    let report = site.replicate().unwrap();
    assert_eq!(paths(&site.server.log()), expected([]), "nothing new costs three small requests");
    assert_eq!((report.stored.objects, report.requests), (0, 3));
    site.assert_sound(4);
}

#[test]
fn a_renewed_whitelist_comes_with_an_unchanged_revision() {
    let site = Site::of("basic");
    site.replicate().unwrap();
    let there = site.fixture.storage.join(".cvmfswhitelist");
    let here = site.copy().join(".cvmfswhitelist");
    let whitelist = fs::read(&there).unwrap();
    fs::write(&here, "the one before").unwrap();
    site.replicate().unwrap();
    assert_eq!(fs::read(here).unwrap(), whitelist);
}

#[test]
fn revisions_between_two_runs_are_copied_too_but_not_those_before_the_first() {
    let site = Site::of("updates-r2");
    let first = manifest(&site.fixture.storage).root_catalog;
    site.replicate().unwrap();
    site.fixture.advance("updates-r3");
    let between = manifest(&site.fixture.storage).root_catalog;
    site.fixture.advance("updates-r4");
    site.replicate().unwrap();
    let last = manifest(&site.fixture.storage).root_catalog;
    let refs = reflog::read(&site.copy().join(".cvmfsreflog")).unwrap();
    let roots: BTreeSet<_> = refs.iter().filter(|r| r.kind == RefKind::Catalog).map(|r| r.hash).collect();
    assert!([first, between, last].iter().all(|root| roots.contains(root)), "{roots:?}");
    site.assert_sound(4);
}

#[test]
fn collected_revisions_are_left_out_only_where_collection_is_allowed() {
    // Revision 3 is both a predecessor and tagged.
    let site = Site::of("updates-r2");
    site.replicate().unwrap();
    site.fixture.advance("updates-r3");
    let root = manifest(&site.fixture.storage).root_catalog.object(cvmfs::hash::ObjectKind::Catalog);
    site.fixture.advance("updates-r4");
    fs::remove_file(site.fixture.storage.join(root.path())).unwrap();
    let report = site.replicate().unwrap();
    assert!(report.collected > 0 && report.revision == 4, "{report:?}");

    let site = Site::of("basic");
    assert!(!manifest(&site.fixture.storage).garbage_collectable);
    let tags = site::repository(&site.fixture).history(site.directory.path()).unwrap().tags;
    let root = tags.iter().find(|t| t.name == "v1").unwrap().root.object(cvmfs::hash::ObjectKind::Catalog);
    fs::remove_file(site.fixture.storage.join(root.path())).unwrap();
    let refusal = site.refusal();
    assert!(refusal.contains(&root.hash.to_string()) && refusal.contains("not on the server"), "{refusal}");
}

#[test]
fn a_copy_can_be_copied_when_its_operator_allows_it() {
    let first = Site::of("shake");
    first.replicate().unwrap();
    // As `cvmfs-publisher serve` or any web server would export it.
    let top = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(first.copy(), top.path().join(&first.fixture.fqrn)).unwrap();
    let server = Server::start(top.path());
    let second = Site { server, directory: in_memory(), fixture: Fixture::unpack("shake") };
    assert!(matches!(second.replicate(), Err(ReplicateError::NotReplicable(_))));
    assert!(!second.copy().exists(), "nothing is made before the server has agreed");
    fs::write(first.copy().join(".cvmfs_master_replica"), "yes\n").unwrap();
    second.replicate().unwrap();
    assert_eq!(objects(&first.copy()), objects(&second.copy()));
    second.assert_sound(4);
    first.fixture.storage.metadata().unwrap();
    first.replicate().unwrap();
    assert!(first.copy().join(".cvmfs_master_replica").exists());
}

#[test]
fn passing_faults_are_waited_out() {
    let site = Site::of("updates-r4");
    // Every object fails when it is asked for first, and again when it is asked for the second time.
    let asked = std::sync::Mutex::new(BTreeMap::<String, usize>::new());
    site.server.rule(move |path, _| {
        let mut asked = asked.lock().unwrap();
        let times = asked.entry(path.to_owned()).or_default();
        *times += 1;
        match times {
            1 => Act::Status(503),
            2 => Act::Cut,
            _ => Act::Serve,
        }
    });
    let report = site.replicate().unwrap();
    assert_eq!(report.requests, 3 * (report.stored.objects + 3), "{report:?}");
    site.assert_sound(4);
}

#[test]
fn a_repository_with_alternative_paths_gets_its_links() {
    use cvmfs::hash::Algorithm;
    use cvmfs::signature::{Scheme, seal};
    use publisher::target::{InitOptions, Target};
    const FQRN: &str = "images.example.org";
    let home = in_memory();
    let path = |name: &str| home.path().join(name);
    let paths = publisher::cli::Paths { storage: path(FQRN).into(), keys: path("keys"), state: path("state") };
    let init = InitOptions { ttl: 240, algorithm: Algorithm::Sha1, garbage_collectable: true };
    let target = Target::init(FQRN, paths, init).unwrap();
    let mut manifest = target.repository().unwrap().manifest().clone();
    manifest.alternative_paths = true;
    let sealed = seal(&manifest.print(), Algorithm::Sha1, &target.signer.key, Scheme::Digest).unwrap();
    fs::write(path(FQRN).join(".cvmfspublished"), sealed).unwrap();
    let server = Server::start(home.path());
    let mut options = Site::of("updates-r2").options();
    options.url = server.url(FQRN).parse().unwrap();
    options.directory = path("copy");
    options.fqrn = FQRN.to_owned();
    options.master_keys = vec![target.master];
    options.reflog_checksum = path("copy-state/reflog.chksum");
    for _ in 0..2 {
        replicate(&options, &publisher::progress::Silent).unwrap_or_else(|e| panic!("{}", e.line()));
    }
    let suffixes = [
        (Some(manifest.root_catalog), "C"),
        (manifest.certificate, "X"),
        (manifest.history, "H"),
        (manifest.meta_info, "M"),
    ];
    for (hash, suffix) in suffixes {
        let link = path("copy").join(format!(".cvmfsalt-{}{suffix}", hash.unwrap()));
        let target = fs::read_link(&link).unwrap();
        assert!(target.starts_with("data") && link.metadata().unwrap().is_file(), "{}", link.display());
    }
}
