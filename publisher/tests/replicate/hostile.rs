//! Servers that are wrong, behind or malicious: nothing of theirs becomes visible, and the message says what it was.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use publisher::progress::Silent;
use publisher::replicate::{Options, ReplicateError, replicate};

use crate::fixtures::Fixture;
use crate::server::{Act, Server};
use crate::site::{Site, manifest, object_of, objects};

/// Every object under its name is what its name says, whatever happened.
#[track_caller]
fn assert_only_true_objects(site: &Site, what: &str) {
    if !site.copy().exists() {
        return;
    }
    let store = cvmfs::store::LocalStore::open(site.copy());
    let report = cvmfs::scrub::scrub(&store, 2).unwrap();
    assert!(report.is_sound(), "{what}: {:?}", report.findings);
    let left: Vec<_> = fs::read_dir(site.copy().join("data/txn")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["replicate.lock"], "{what}");
}

#[test]
fn wrong_bytes_for_any_object_stop_the_copy_before_they_are_visible() {
    let site = Site::of("updates-r4");
    let manifest = manifest(&site.fixture.storage);
    let file = object_of(&site.fixture, "/many-times").path();
    let root = format!("{}C", manifest.root_catalog);
    let path = |text: &str| format!("data/{}/{}", &text[..2], &text[2..]);
    let objects = [
        ("a file", file),
        ("the root catalog", path(&root)),
        ("the tag database", path(&format!("{}H", manifest.history.unwrap()))),
        ("the certificate", path(&format!("{}X", manifest.certificate.unwrap()))),
        ("the meta info", path(&format!("{}M", manifest.meta_info.unwrap()))),
    ];
    let acts = [
        (Act::Flip, "wrong bytes"),
        (Act::Cut, "(3 attempts)"),
        (Act::Status(404), "not on the server"),
        (Act::Short, "wrong bytes"),
        (Act::Endless, "wrong bytes"),
        (Act::Send(b"nonsense".to_vec()), "wrong bytes"),
        (Act::Send(Vec::new()), "wrong bytes"),
        (Act::Status(500), "500"),
        (Act::Hang, "nothing came"),
    ];
    for (number, (what, path)) in objects.iter().enumerate() {
        // The small objects come the same way as the documents at the top.
        let acts = if number < 3 { &acts[..] } else { &acts[..3] };
        for (act, words) in acts {
            let _ = fs::remove_dir_all(site.copy());
            let (bad, answer) = (path.clone(), act.clone());
            site.server.rule(move |asked, _| if asked == bad { answer.clone() } else { Act::Serve });
            let refusal = site.refusal();
            let label = format!("{what}, {act:?}: {refusal}");
            let hash = path.replace("data/", "").replace('/', "");
            assert!(refusal.contains(&hash[..40]), "the message names the object: {label}");
            assert!(refusal.contains(words), "{label}");
            assert!(!site.copy().join(path).exists(), "{label}");
            assert!(!site.copy().join(".cvmfspublished").exists(), "{label}");
            assert_only_true_objects(&site, &label);
            site.server.rule(|_, _| Act::Serve);
            site.replicate().unwrap_or_else(|e| panic!("{label}; then {}", e.line()));
        }
        site.assert_sound(4);
    }
}

#[test]
fn a_missing_object_keeps_the_old_revision() {
    let site = Site::of("updates-r2");
    site.replicate().unwrap();
    site.fixture.advance("updates-r4");
    let gone = Fixture::unpack("updates-r4");
    let id = object_of(&gone, "/many-times");
    fs::remove_file(site.fixture.storage.join(id.path())).unwrap();
    let refusal = site.refusal();
    assert!(refusal.contains(&id.to_string()) && refusal.contains("many-times"), "{refusal}");
    site.assert_sound(2);
    fs::copy(gone.storage.join(id.path()), site.fixture.storage.join(id.path())).unwrap();
    site.replicate().unwrap();
    site.assert_sound(4);
}

#[test]
fn refuses_what_it_cannot_trust() {
    let cases = [
        ("bad-manifest-hash", "not signed"),
        ("bad-manifest-signature", "not signed"),
        ("expired-whitelist", "expired"),
        ("manifest-other-key", "not signed"),
        ("manifest-other-name", "other.fixture.example.org"),
        ("whitelist-other-fingerprint", "not on its whitelist"),
        ("whitelist-other-key", "master keys"),
    ];
    let copied = Site::of("basic");
    copied.replicate().unwrap();
    let before = objects(&copied.copy());
    for (case, words) in cases {
        let site = Site::new(Fixture::damaged(case));
        let refusal = site.refusal();
        assert!(refusal.contains(words), "{case}: {refusal}");
        assert!(!site.copy().exists(), "{case}: nothing is made");

        let update = Options { url: site.options().url, ..copied.options() };
        replicate(&update, &Silent).expect_err(case);
        assert_eq!(objects(&copied.copy()), before, "{case}");
    }
    copied.assert_sound(6);
}

#[test]
fn refuses_a_name_that_was_not_asked_for() {
    let site = Site::of("basic");
    let mut options = site.options();
    options.fqrn = "other.example.org".to_owned();
    let refusal = replicate(&options, &Silent).unwrap_err().line();
    assert!(refusal.contains("other.example.org") && refusal.contains("basic.fixture.example.org"), "{refusal}");
}

#[test]
fn refuses_to_go_back() {
    let site = Site::of("updates-r4");
    site.replicate().unwrap();
    let new = fs::read(site.fixture.storage.join(".cvmfspublished")).unwrap();
    site.fixture.advance("updates-r3");
    assert!(matches!(site.replicate(), Err(ReplicateError::Outdated { offered: 3, known: 4, .. })));
    site.assert_sound(4);
    fs::write(site.fixture.storage.join(".cvmfspublished"), new).unwrap();
    site.replicate().unwrap();

    let site = Site::of("updates-r3");
    site.replicate().unwrap();
    site.fixture.apply("update-T-behind");
    assert!(matches!(site.replicate(), Err(ReplicateError::Outdated { offered: 4, known: 3, .. })));
    site.assert_sound(3);
}

#[test]
fn refuses_what_is_blacklisted() {
    let site = Site::of("updates-r4");
    for (line, words) in
        [("<updates.fixture.example.org 5\n".to_owned(), "at least 5"), (fingerprint(&site), "blacklisted")]
    {
        let mut options = site.options();
        options.blacklist.add(&line, &site.fixture.fqrn);
        let refusal = replicate(&options, &Silent).unwrap_err().line();
        assert!(refusal.contains(words), "{refusal}");
    }
}

fn fingerprint(site: &Site) -> String {
    use cvmfs::whitelist::{Whitelist, print_fingerprint};
    let list = Whitelist::parse(&fs::read(site.fixture.storage.join(".cvmfswhitelist")).unwrap()).unwrap();
    format!("{} # stolen\n", print_fingerprint(&list.fingerprints[0]))
}

#[test]
fn refuses_a_directory_that_holds_something_else() {
    let site = Site::of("updates-r4");
    let mut options = site.options();
    options.directory = site.fixture.storage.clone();
    let before = objects(&site.fixture.storage);
    let refusal = replicate(&options, &Silent).unwrap_err().line();
    assert!(refusal.contains("not a copy"), "{refusal}");
    assert_eq!(objects(&site.fixture.storage), before);
    assert!(!site.fixture.storage.join(".cvmfs_last_snapshot").exists());

    let other = Site::of("basic");
    other.replicate().unwrap();
    options.directory = other.copy();
    let refusal = replicate(&options, &Silent).unwrap_err().line();
    assert!(refusal.contains("another repository"), "{refusal}");
    other.assert_sound(6);
}

#[test]
fn one_run_at_a_time() {
    let site = Site::of("updates-r4");
    site.server.rule(|path, _| if path.ends_with('H') { Act::Hang } else { Act::Serve });
    let mut slow = site.options();
    slow.patience.silence = Duration::from_secs(60);
    let (told, ended) = mpsc::channel();
    let first = std::thread::spawn(move || told.send(replicate(&slow, &Silent).is_ok()));
    while !site.server.log().iter().any(|(path, _)| path.ends_with('C')) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(matches!(site.replicate(), Err(ReplicateError::Busy(_))));
    let Site { fixture, server, directory } = site;
    drop(server);
    assert!(!ended.recv_timeout(Duration::from_secs(30)).unwrap(), "its server went away");
    first.join().unwrap().unwrap();
    let site = Site { server: Server::start(fixture.top()), fixture, directory };
    site.replicate().unwrap();
    site.assert_sound(4);
}
