//! What cannot be trusted is refused with the reason, leaves nothing in the cache, and disturbs nothing that is shown.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::config::{Config, Flags};
use client::fetch::Objects;
use client::remount::Outcome;
use client::revision::{Chain, Mounted, Repository, Revision, RevisionError};
use common::published::{self, FQRN, Published};
use common::{Server, World, has_fuse, read, wait_for};

/// A repository as a client sees it, without a mount.
struct Client {
    repository: Repository,
    _runtime: tokio::runtime::Runtime,
}

impl Client {
    fn new(fqrn: &str, server: &str, key: PathBuf, cache: &Path, options: &[String]) -> Client {
        let mut flags = Flags {
            server_url: Some(server.into()),
            public_keys: vec![key],
            cache: Some(cache.to_owned()),
            options: vec!["CVMFS_MAX_RETRIES=0".into()],
            ..Flags::default()
        };
        flags.options.extend(options.iter().cloned());
        let config = Config::load(fqrn, Path::new("/nonexistent"), &flags).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let objects = Arc::new(Objects::new(&config, runtime.handle(), &Arc::default()).unwrap());
        Client { repository: Repository::new(&config, &objects).unwrap(), _runtime: runtime }
    }

    fn of(world: &World, options: &[String]) -> Client {
        Client::new(&world.fqrn(), &world.server.repository(), world.key(), &world.cache(), options)
    }

    fn mount(&self) -> Result<Mounted, RevisionError> {
        self.repository.mount()
    }
}

/// Objects in a cache, and files that are being written.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let directories = std::fs::read_dir(cache).into_iter().flatten().flatten().map(|e| e.path());
    let directories = directories.filter(|d| d.is_dir() && d.file_name().unwrap().len() == 2);
    directories.flat_map(|d| std::fs::read_dir(d).unwrap().map(|e| e.unwrap().path())).collect()
}

fn edit(file: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(&file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

fn manifest(repository: &Path) -> PathBuf {
    repository.join(".cvmfspublished")
}

fn whitelist(repository: &Path) -> PathBuf {
    repository.join(".cvmfswhitelist")
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("no {from:?}"));
    bytes.splice(at..at + from.len(), to.bytes());
}

/// The certificate's object, as the manifest names it.
fn certificate(repository: &Path) -> PathBuf {
    let text = std::fs::read(manifest(repository)).unwrap();
    let line = text.split(|b| *b == b'\n').find(|line| line.first() == Some(&b'X')).unwrap();
    let hash = std::str::from_utf8(&line[1..]).unwrap();
    repository.join("data").join(&hash[..2]).join(format!("{}X", &hash[2..]))
}

type Attack = (&'static str, fn(&Path), &'static str);

/// What is done to a repository that offers something newer, and what the refusal says.
const ATTACKS: &[Attack] = &[
    ("no manifest", |r| std::fs::remove_file(manifest(r)).unwrap(), "cannot download the manifest"),
    ("empty manifest", |r| edit(manifest(r), Vec::clear), "manifest of"),
    ("half a manifest", |r| edit(manifest(r), |m| m.truncate(60)), "manifest of"),
    (
        "manifest without signature",
        |r| edit(manifest(r), |m| m.truncate(m.windows(4).position(|w| w == b"\n--\n").unwrap() + 4)),
        "not signed by its certificate",
    ),
    ("manifest cut by one byte", |r| edit(manifest(r), |m| m.truncate(m.len() - 1)), "not signed by its certificate"),
    ("a page of a portal", |r| edit(manifest(r), |m| *m = b"<html>Log in, please</html>\n".to_vec()), "manifest of"),
    ("manifest without end", |r| edit(manifest(r), |m| m.resize(3 << 20, b'x')), "the manifest"),
    (
        "forged time to live",
        |r| edit(manifest(r), |m| replace(m, "\nD240\n", "\nD999\n")),
        "not signed by its certificate",
    ),
    ("forged name", |r| edit(manifest(r), |m| replace(m, "\nNupdates.", "\nNother.")), "other.fixture.example.org"),
    (
        "no certificate named",
        |r| {
            edit(manifest(r), |m| {
                let start = m.windows(2).position(|w| w == b"\nX").unwrap() + 1;
                let length = m[start..].iter().position(|b| *b == b'\n').unwrap() + 1;
                m.drain(start..start + length);
            });
        },
        "names no certificate",
    ),
    ("no whitelist", |r| std::fs::remove_file(whitelist(r)).unwrap(), "cannot download the whitelist"),
    ("empty whitelist", |r| edit(whitelist(r), Vec::clear), "whitelist"),
    ("half a whitelist", |r| edit(whitelist(r), |w| w.truncate(40)), "whitelist"),
    ("whitelist cut by one byte", |r| edit(whitelist(r), |w| w.truncate(w.len() - 1)), "signed by none"),
    ("forged expiry", |r| edit(whitelist(r), |w| replace(w, "\nE2126", "\nE2127")), "signed by none"),
    (
        "whitelist with another certificate added",
        |r| {
            edit(whitelist(r), |w| {
                replace(w, "\n--\n", "\n00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33\n--\n");
            });
        },
        "signed by none",
    ),
    ("expired whitelist", |r| common::damage("update-expired-whitelist", r), "expired at 2026-01-31"),
    ("bad signature", |r| common::damage("update-bad-signature", r), "not signed by its certificate"),
    ("no root catalog", |r| common::damage("update-missing-root-catalog", r), "catalog of /"),
];

#[test]
fn a_fresh_mount_refuses_with_the_reason_and_keeps_nothing() {
    for (what, attack, says) in ATTACKS {
        let world = World::new("updates-r4");
        attack(&world.repository());
        let error = Client::of(&world, &[]).mount().expect_err(what);
        let text = Chain(&error).to_string();
        assert!(text.contains(says), "{what}: {text}");
        // The certificate of a repository that is trusted stays, whatever its catalogs are.
        let left = cached(&world.cache()).into_iter().filter(|file| {
            let object = certificate(&world.repository());
            *what != "no root catalog" || !object.ends_with(format!("{}X", file.file_name().unwrap().to_str().unwrap()))
        });
        assert_eq!(left.collect::<Vec<_>>(), [] as [PathBuf; 0], "{what}");
        assert!(!world.cache().join("breadcrumb.updates.fixture.example.org").exists(), "{what}");
    }
}

#[test]
fn a_certificate_that_is_wrong_is_refused_and_not_kept() {
    let damages: [Attack; 4] = [
        ("missing", |r| std::fs::remove_file(certificate(r)).unwrap(), "cannot get the certificate"),
        ("one bit", |r| edit(certificate(r), |c| c[20] ^= 1), "corrupt"),
        ("cut", |r| edit(certificate(r), |c| c.truncate(100)), "corrupt"),
        ("endless", |r| edit(certificate(r), |c| c.resize(8 << 20, 0)), "corrupt"),
    ];
    for (what, attack, says) in damages {
        let world = World::new("updates-r4");
        attack(&world.repository());
        let error = Client::of(&world, &[]).mount().expect_err(what);
        let text = Chain(&error).to_string();
        assert!(text.contains("cannot get the certificate") && text.contains(says), "{what}: {text}");
        assert_eq!(cached(&world.cache()), [] as [PathBuf; 0], "{what}");
    }
}

#[test]
fn a_running_client_stays_on_its_revision_and_goes_on_when_all_is_well_again() {
    for (what, attack, says) in ATTACKS {
        let world = World::new("updates-r3");
        let client = Client::of(&world, &[]);
        let shown: Revision = client.mount().unwrap().revision;
        world.advance("updates-r4");
        attack(&world.repository());
        let error = client.repository.newer(&shown).expect_err(what);
        let text = Chain(&error).to_string();
        assert!(text.contains(says), "{what}: {text}");
        assert_eq!(shown.number, 3);
        let root = shown.catalogs.root();
        assert!(root.lookup(&cvmfs::path::RepoPath::parse("/rev").unwrap()).unwrap().is_some(), "{what}");
        // Nor does a new start show anything else.
        drop(client);
        let client = Client::of(&world, &[]);
        let mounted = client.mount().unwrap_or_else(|e| panic!("{what}: {}", Chain(&e)));
        assert_eq!((mounted.revision.number, mounted.offline.is_some()), (3, true), "{what}");
        std::fs::remove_dir_all(world.repository()).unwrap();
        world.advance("updates-r4");
        let newer = client.repository.newer(&mounted.revision).unwrap_or_else(|e| panic!("{what}: {}", Chain(&e)));
        assert_eq!(newer.map(|revision| revision.number), Some(4), "{what}");
    }
}

#[test]
fn an_old_state_is_not_taken_for_new() {
    let world = World::new("updates-r3");
    let client = Client::of(&world, &[]);
    let shown = client.mount().unwrap().revision;
    // Manifest and everything else of revision 2, correctly signed.
    std::fs::remove_dir_all(world.repository()).unwrap();
    world.advance("updates-r2");
    let error = client.repository.newer(&shown).unwrap_err();
    assert!(matches!(error, RevisionError::Outdated { offered: 2, known: 3, .. }), "{}", Chain(&error));
    drop(client);
    let client = Client::of(&world, &[]);
    let mounted = client.mount().unwrap();
    assert_eq!(mounted.revision.number, 3);
    assert!(matches!(mounted.offline, Some(RevisionError::Outdated { offered: 2, known: 3, .. })));
    // Who has never seen revision 3 has no way to know.
    let fresh = world.directory.path().join("fresh");
    let client = Client::new(&world.fqrn(), &world.server.repository(), world.key(), &fresh, &[]);
    assert_eq!(client.mount().unwrap().revision.number, 2);
}

#[test]
fn a_repository_under_another_name_is_refused() {
    let world = World::new("updates-r4");
    // All of it, correctly signed, with its own master key, as another repository.
    let other = world.directory.path().join("srv/other.example.org");
    std::fs::rename(world.repository(), other).unwrap();
    let client = Client::new("other.example.org", &world.server.repository(), world.key(), &world.cache(), &[]);
    let text = Chain(&client.mount().unwrap_err()).to_string();
    assert!(text.contains("is for repository \"updates.fixture.example.org\", not \"other.example.org\""), "{text}");
    assert_eq!(cached(&world.cache()), [] as [PathBuf; 0]);
}

#[test]
fn whoever_is_blacklisted_is_refused() {
    let world = World::new("updates-r3");
    let list = std::fs::read_to_string(world.repository().join(".cvmfswhitelist"));
    let list = list.unwrap_or_else(|_| {
        String::from_utf8_lossy(&std::fs::read(whitelist(&world.repository())).unwrap()).into_owned()
    });
    let fingerprint = list.lines().find(|line| line.matches(':').count() == 19).unwrap().to_owned();
    let blacklist = world.directory.path().join("blacklist");
    let option = [format!("CVMFS_BLACKLIST={}", blacklist.display())];
    for (text, says) in [
        (format!("# stolen\n{fingerprint} # in May\n"), Some("is blacklisted")),
        (fingerprint.to_lowercase().replace(':', "") + "\n", Some("is blacklisted")),
        ("<updates.fixture.example.org 4\n".into(), Some("at least 4 is required")),
        ("<updates.fixture.example.org 3\n<other.example.org 9\n".into(), None),
        ("00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33\n".into(), None),
    ] {
        std::fs::write(&blacklist, &text).unwrap();
        let _ = std::fs::remove_dir_all(world.cache());
        match (Client::of(&world, &option).mount(), says) {
            (Ok(mounted), None) => assert_eq!(mounted.revision.number, 3),
            (Err(error), Some(says)) => {
                assert!(Chain(&error).to_string().contains(says), "{text}: {}", Chain(&error));
                assert_eq!(cached(&world.cache()), [] as [PathBuf; 0], "{text}");
            }
            (result, _) => panic!("{text}: {result:?}"),
        }
    }
    // Blacklisted while it runs: the new revision is signed by the same certificate.
    std::fs::write(&blacklist, "").unwrap();
    let client = Client::of(&world, &option);
    let shown = client.mount().unwrap().revision;
    std::fs::write(&blacklist, &fingerprint).unwrap();
    world.advance("updates-r4");
    let text = Chain(&client.repository.newer(&shown).unwrap_err()).to_string();
    assert!(text.contains("blacklisted"), "{text}");
    // A snapshot does not go around it, nor does a root hash.
    std::fs::write(&blacklist, "<updates.fixture.example.org 3\n").unwrap();
    for choice in ["CVMFS_REPOSITORY_TAG=rev2", "CVMFS_REPOSITORY_TAG=rev3"] {
        let result = Client::of(&world, &[option[0].clone(), choice.into()]).mount();
        assert_eq!(result.is_ok(), choice.ends_with('3'), "{choice}");
    }
}

#[test]
fn a_mount_whose_revision_is_revoked_moves_on_or_ends() {
    if !has_fuse() {
        return;
    }
    let world = World::new("updates-r3");
    let blacklist = world.directory.path().join("blacklist");
    let option = format!("CVMFS_BLACKLIST={}", blacklist.display());
    let mount = world.mount(&[&option]);
    world.advance("updates-r4");
    std::fs::write(&blacklist, "<updates.fixture.example.org 4\n").unwrap();
    assert_eq!(mount.remount(), Outcome::Applied { from: 3, revision: 4 }, "what is newer is good enough");
    std::fs::write(&blacklist, "<updates.fixture.example.org 5\n").unwrap();
    let Outcome::Failed { error, .. } = mount.remount() else { panic!("it goes on") };
    assert!(error.contains("at least 5 is required"), "{error}");
    wait_for("the mount to end", || std::fs::read_dir(&mount.path).is_ok_and(|mut entries| entries.next().is_none()));
    let output = world.try_mount(&[&option]).err().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("blacklisted"), "{output:?}");
}

/// Zeros without end, of which compression leaves next to nothing.
struct Zeros(u64);

impl std::io::Read for Zeros {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(usize::try_from(self.0).unwrap_or(usize::MAX));
        buffer[..count].fill(0);
        self.0 -= count as u64;
        Ok(count)
    }
}

#[test]
fn signed_root_catalogs_that_are_none_are_refused_and_not_kept() {
    type Make = fn(&mut Published);
    let cases: [(&str, Make, &str); 5] = [
        ("text", |p| p.replace_root(&mut &b"not a database at all"[..]), "catalog"),
        ("empty", |p| p.replace_root(&mut std::io::empty()), "catalog"),
        ("no tables", |p| p.rewrite_root(|db| db.execute_batch("DROP TABLE properties").unwrap()), "no such table"),
        (
            "schema of the future",
            |p| {
                const SQL: &str = "UPDATE properties SET value = '9.5' WHERE key = 'schema'";
                p.rewrite_root(|db| db.execute_batch(SQL).unwrap());
            },
            "schema",
        ),
        ("100 MB of nothing", |p| p.replace_root(&mut Zeros(100 << 20)), "the cache is full"),
    ];
    let mut published = Published::new();
    let file = published.file(0o644, b"content");
    published.publish(vec![("/file", file)]);
    let (server, key) = (Server::start(&published.served()), published.key());
    let place = published.directory.path().to_owned();
    let open = |cache: &str| {
        let options = ["CVMFS_QUOTA_LIMIT=32".to_owned()];
        Client::new(FQRN, &server.repository(), key.clone(), &place.join(cache), &options)
    };
    let client = open("cache");
    let shown = client.mount().unwrap().revision;
    let before = cached(&place.join("cache")).len();
    for (what, make, says) in cases {
        make(&mut published);
        let error = client.repository.newer(&shown).expect_err(what);
        assert!(Chain(&error).to_string().contains(says), "{what}: {}", Chain(&error));
        // Room was made for what turned out to be too large, so there may be less.
        assert!(cached(&place.join("cache")).len() <= before, "{what}");
        let mounted = open("cache").mount().unwrap();
        assert_eq!((mounted.revision.number, mounted.offline.is_some()), (shown.number, true), "{what}");
        // Without anything known before there is nothing to show.
        assert!(open("fresh").mount().is_err(), "{what}");
    }
}

#[test]
fn a_nested_catalog_at_itself_above_or_outside_is_an_error_and_ends() {
    if !has_fuse() {
        return;
    }
    // The reference to the root is of no use; the one to what is no path makes the catalog malformed.
    for (path, refused) in [("/loop", false), ("", false), ("/elsewhere/../x", true)] {
        let mut published = Published::new();
        let directory = cvmfs::entry::Entry::directory("", published::meta(0o755));
        let nested = directory.flags.with(cvmfs::entry::Flags::NESTED_MOUNTPOINT);
        let file = published.file(0o644, b"own");
        published.publish(vec![("/file", file), ("/loop", cvmfs::entry::Entry { flags: nested, ..directory })]);
        // The root catalog of the revision before, as if it were nested in this one.
        let before = std::fs::read(manifest(&published.served().join(FQRN))).unwrap();
        let hash = String::from_utf8_lossy(&before[1..41]).into_owned();
        published.rewrite_root(|db| {
            db.execute("INSERT INTO nested_catalogs VALUES (?1, ?2, 0)", (path, &hash)).unwrap();
        });
        let server = Server::start(&published.served());
        let mountpoint = published.directory.path().join("mnt");
        std::fs::create_dir(&mountpoint).unwrap();
        let output = common::client()
            .args(["mount", FQRN])
            .arg(&mountpoint)
            .args(["--server-url", &server.repository(), "--config-dir", "/nonexistent", "--public-key"])
            .arg(published.key())
            .arg("--cache")
            .arg(published.directory.path().join("cache"))
            .output()
            .unwrap();
        assert_eq!(output.status.success(), !refused, "{path:?}: {output:?}");
        if refused {
            assert!(String::from_utf8_lossy(&output.stderr).contains("malformed"), "{path:?}: {output:?}");
            continue;
        }
        let mount = common::Mount { path: mountpoint };
        assert_eq!(read(&mount.join("file")).unwrap(), b"own");
        let listing = common::list(&mount.join("loop"));
        assert_eq!(listing, Err(libc::EIO), "{path:?}");
        assert_eq!(read(&mount.join("loop/file")), Err(libc::EIO), "{path:?}");
        assert!(mount.status().catalogs <= 2, "{path:?}");
    }
}
