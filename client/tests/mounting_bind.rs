//! Bind mountpoints: the root catalog of another revision, shown at a directory of this one. No tool of the reference
//! implementation that makes them is among the fixtures, so a repository of our own gets the rows; what it shows
//! there is a fixture, with all that belongs to it.

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use common::listing::{actual, difference, expected};
use common::published::{self, FQRN, Published};
use common::{Mount, Server, client, has_fuse, read, unpack};
use cvmfs::entry::{Entry, Flags};

/// Root catalogs of the fixture `basic`: the newest, and that of tag v1, which has no nested catalogs; the nested catalog
/// of `/many`.
const NEWEST: &str = "e99b7612f31606a2c64e48982da260cd18e3628c";
const V1: &str = "e29829bf9d55faed04482f7b244486e227e1ce4b";
const MANY: &str = "f50f9851bab6c3fc0c7e94dfe79ea69769149146";

/// A repository with these bind mountpoints (path, root catalog) that also holds all objects of `basic`.
fn bound(rows: &[(&str, &str)]) -> Published {
    let mut published = Published::new();
    let file = published.file(0o644, b"own");
    let directory = |flag: u32| {
        let entry = Entry::directory("", published::meta(0o755));
        Entry { flags: entry.flags.with(flag), ..entry }
    };
    let mut entries = vec![("/file", file), ("/plain", directory(0))];
    entries.extend(rows.iter().map(|(path, _)| (*path, directory(Flags::BIND_MOUNTPOINT))));
    published.publish(entries);
    published.rewrite_root(|database| {
        for (path, hash) in rows {
            database.execute("INSERT INTO bind_mountpoints VALUES (?1, ?2, 0)", (path, hash)).unwrap();
        }
    });
    let other = published.directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    unpack("basic", &other);
    merge(&other.join("basic.fixture.example.org/data"), &published.served().join(FQRN).join("data"));
    published
}

fn merge(from: &Path, to: &Path) {
    for bucket in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(bucket.file_name());
        std::fs::create_dir_all(&target).unwrap();
        for object in std::fs::read_dir(bucket.path()).unwrap().map(Result::unwrap) {
            std::fs::copy(object.path(), target.join(object.file_name())).unwrap();
        }
    }
}

fn mount(published: &Published, server: &Server) -> Mount {
    let path = published.directory.path().join("mnt");
    std::fs::create_dir(&path).unwrap();
    let output = client()
        .args(["mount", FQRN])
        .arg(&path)
        .args(["--server-url", &server.repository(), "--config-dir", "/nonexistent", "--public-key"])
        .arg(published.key())
        .arg("--cache")
        .arg(published.directory.path().join("cache"))
        .args(["-o", "CVMFS_MAGIC_XATTRS_VISIBILITY=never", "-o", "FIXTURE_VAR=target", "-o", "unset=CVMFS_FQRN"])
        .args(["-o", "CVMFS_MAX_RETRIES=0"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Mount { path }
}

#[test]
fn another_root_catalog_and_all_below_it_is_shown_at_a_bind_mountpoint() {
    if !has_fuse() {
        return;
    }
    let published = bound(&[("/basic", NEWEST), ("/plain/v1", V1)]);
    let server = Server::start(&published.served());
    let mount = mount(&published, &server);
    assert_eq!(read(&mount.join("file")).unwrap(), b"own");
    let without_root = |mut tree: std::collections::BTreeMap<Vec<u8>, common::listing::Facts>| {
        // The directory itself is that of the repository it is in.
        assert!(tree.remove(&b"/"[..]).is_some());
        tree
    };
    let (listing, shown) = (without_root(expected("basic")), without_root(actual(&mount.join("basic"))));
    assert_eq!(difference(&listing, &shown), "");
    assert_eq!(actual(&mount.join("plain/v1")).len(), 284);
    let attribute = |path: &str| {
        String::from_utf8(xattr::get(mount.join(path), "user.catalog_counters").unwrap().unwrap()).unwrap()
    };
    assert!(attribute("basic").starts_with(&format!("catalog_hash: {NEWEST}\ncatalog_mountpoint: /basic\n")));
    assert!(attribute("basic/many").contains("\ncatalog_mountpoint: /basic/many\n"));
    // The same file at two places is two inodes.
    let inode = |path: &str| std::fs::symlink_metadata(mount.join(path)).unwrap().ino();
    assert_ne!(inode("basic/sizes/text-65536"), inode("plain/v1/sizes/text-65536"));
}

#[test]
fn a_bind_mountpoint_without_its_catalog_is_an_error_not_an_empty_directory() {
    if !has_fuse() {
        return;
    }
    let absent = "0123456789012345678901234567890123456789";
    let published = bound(&[("/basic", absent)]);
    let server = Server::start(&published.served());
    let mount = mount(&published, &server);
    let list = |path: &str| common::list(&mount.join(path));
    assert_eq!(list("basic"), Err(libc::EIO));
    assert!(std::fs::symlink_metadata(mount.join("basic")).unwrap().is_dir());
    assert_eq!(list(""), Ok(()));
    assert_eq!(read(&mount.join("file")).unwrap(), b"own");
}

#[test]
fn nested_catalogs_win_over_bind_mountpoints() {
    if !has_fuse() {
        return;
    }
    let mut published = Published::new();
    let directory = Entry::directory("", published::meta(0o755));
    let flags = directory.flags.with(Flags::BIND_MOUNTPOINT).with(Flags::NESTED_MOUNTPOINT);
    published.publish(vec![("/many", Entry { flags, ..directory })]);
    published.rewrite_root(|database| {
        database.execute("INSERT INTO bind_mountpoints VALUES ('/many', ?1, 0)", [V1]).unwrap();
        database.execute("INSERT INTO nested_catalogs VALUES ('/many', ?1, 0)", [MANY]).unwrap();
    });
    let other = published.directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    unpack("basic", &other);
    merge(&other.join("basic.fixture.example.org/data"), &published.served().join(FQRN).join("data"));
    let server = Server::start(&published.served());
    let mount = mount(&published, &server);
    let value = xattr::get(mount.join("many"), "user.catalog_counters").unwrap().unwrap();
    assert!(String::from_utf8(value).unwrap().starts_with(&format!("catalog_hash: {MANY}\n")));
    assert_eq!(std::fs::read_dir(mount.join("many")).unwrap().count(), names_in("/many"));
}

/// Number of names that the listing has directly below a directory.
fn names_in(directory: &str) -> usize {
    let below = format!("{directory}/");
    let names = expected("basic").into_keys().filter(|path| path.starts_with(below.as_bytes()));
    names.filter(|path| !path[below.len()..].contains(&b'/')).count()
}
