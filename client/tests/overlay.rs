//! The mount as lower directory of a kernel overlay: what containers see of an image.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::published::{FQRN, Published, meta, with_xattrs};
use common::{Mount, Server, client, has_fuse, read};
use cvmfs::entry::{Entry, FileType, Flags};

/// `cap_dac_read_search+ep`, as the kernel stores it (version 2): read whatever permissions say.
const READ_EVERYTHING: [u8; 20] = [1, 0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn names(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Two layers: a base, and one that removes, replaces and adds.
fn layers() -> Published {
    let mut published = Published::new();
    let program = |name: &str| std::fs::read(format!("/usr/bin/{name}")).unwrap();
    let file = published.file(0o644, b"text\n");
    let secret = published.file(0o600, b"secret\n");
    let set_id = published.file(0o4755, &program("id"));
    let capable = published.file(0o755, &program("cat"));
    let capable = with_xattrs(capable, &[("security.capability", &READ_EVERYTHING)]);
    let hidden = Entry { flags: file.flags.with(Flags::HIDDEN), ..file.clone() };
    let directory = || Entry::directory("", meta(0o755));
    let opaque = with_xattrs(directory(), &[("trusted.overlay.opaque", b"y"), ("user.overlay.opaque", b"y")]);
    let whiteout = Entry::special(FileType::Char, "", meta(0), 0);
    published.publish(vec![
        ("/base", directory()),
        ("/base/.hidden", hidden),
        ("/base/etc", directory()),
        ("/base/etc/gone", file.clone()),
        ("/base/etc/kept", file.clone()),
        ("/base/etc/secret", secret),
        ("/base/dir", directory()),
        ("/base/dir/a", file.clone()),
        ("/base/dir/b", file.clone()),
        ("/base/bin", directory()),
        ("/base/bin/id", set_id),
        ("/base/bin/cat", capable),
        ("/base/bin/link", Entry::symlink("", meta(0o777), "cat")),
        ("/top", directory()),
        ("/top/etc", directory()),
        ("/top/etc/gone", whiteout),
        ("/top/dir", opaque),
        ("/top/dir/c", file),
    ]);
    published
}

struct Overlay {
    merged: PathBuf,
    _mount: Mount,
    _server: Server,
    published: Published,
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.merged, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn mounted(published: &Published, server: &Server) -> Mount {
    let path = published.directory.path().join("mnt");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(published.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = client();
    command.args(["mount", FQRN]).arg(&path).args([
        "--config-dir",
        "/nonexistent",
        "--server-url",
        &server.repository(),
    ]);
    command.arg("--public-key").arg(published.key()).arg("--cache").arg(published.directory.path().join("cache"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Mount { path }
}

fn overlay() -> Overlay {
    let published = layers();
    let server = Server::start(&published.served());
    let mount = mounted(&published, &server);
    let place = |name: &str| {
        let path = published.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    let (upper, work, merged) = (place("upper"), place("work"), place("merged"));
    let lower = format!("{}:{}", mount.join("top").display(), mount.join("base").display());
    let options = format!("lowerdir={lower},upperdir={},workdir={}", upper.display(), work.display());
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), nix::mount::MsFlags::empty(), Some(options.as_str()))
        .unwrap();
    Overlay { merged, _mount: mount, _server: server, published }
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_lies_below() {
    if !has_fuse() {
        return;
    }
    let overlay = overlay();
    let merged = &overlay.merged;
    assert_eq!(read(&merged.join("etc/gone")), Err(libc::ENOENT));
    assert_eq!(names(&merged.join("etc")), BTreeSet::from(["kept".into(), "secret".into()]));
    assert_eq!(names(&merged.join("dir")), BTreeSet::from(["c".into()]));
    assert_eq!(read(&merged.join("etc/kept")).unwrap(), b"text\n");
    assert_eq!(std::fs::read_link(merged.join("bin/link")).unwrap(), Path::new("cat"));
    // Copied up, removed, made anew.
    std::fs::write(merged.join("etc/kept"), "mine").unwrap();
    std::fs::remove_file(merged.join("dir/c")).unwrap();
    std::fs::write(merged.join("etc/gone"), "back").unwrap();
    assert_eq!(read(&merged.join("etc/kept")).unwrap(), b"mine");
    assert_eq!(read(&merged.join("etc/gone")).unwrap(), b"back");
    assert!(names(&merged.join("dir")).is_empty());
}

#[test]
fn set_id_bits_and_capabilities_work_as_root_and_as_nobody() {
    if !has_fuse() {
        return;
    }
    let overlay = overlay();
    let run = |user: u32, program: &str, argument: &str| {
        let mut command = Command::new(overlay.merged.join(program));
        let output = command.arg(argument).uid(user).gid(user).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let secret = overlay.merged.join("etc/secret");
    let secret = secret.to_str().unwrap();
    for user in [0, 65534] {
        assert_eq!(run(user, "bin/id", "-u"), "0\n", "set-id root for user {user}");
        assert_eq!(run(user, "bin/cat", secret), "secret\n", "capability for user {user}");
    }
    // Without the capability nobody may not read it: the test would notice if it were not needed.
    let plain = Command::new("/usr/bin/cat").arg(secret).uid(65534).gid(65534).output().unwrap();
    assert!(!plain.status.success());
    // The mount itself honours none of it.
    let direct = overlay._mount.join("base/bin/id");
    let output = Command::new(direct).arg("-u").uid(65534).gid(65534).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "65534\n");
}

#[test]
fn overlays_in_user_namespaces_read_the_user_attributes() {
    if !has_fuse() {
        return;
    }
    let overlay = overlay();
    let place = |name: &str| {
        let path = overlay.published.directory.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.display().to_string()
    };
    let (mount, upper, work, merged) =
        (overlay._mount.path.display(), place("upper2"), place("work2"), place("merged2"));
    let script = format!(
        "mount -t overlay overlay -o userxattr,lowerdir={mount}/top:{mount}/base,upperdir={upper},workdir={work} {merged} && \
         ls {merged}/dir && ls {merged}/etc"
    );
    let output = Command::new("unshare").args(["-Urm", "sh", "-c", &script]).output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "c\nkept\nsecret\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn hidden_entries_are_found_but_not_listed() {
    if !has_fuse() {
        return;
    }
    let published = layers();
    let server = Server::start(&published.served());
    let mount = mounted(&published, &server);
    assert_eq!(names(&mount.join("base")), BTreeSet::from(["bin", "dir", "etc"].map(String::from)));
    assert_eq!(read(&mount.join("base/.hidden")).unwrap(), b"text\n");
    let attribute = |path: &str, name: &str| xattr::get(mount.join(path), name).unwrap();
    assert_eq!(attribute("base/bin/cat", "security.capability").unwrap(), READ_EVERYTHING);
    assert_eq!(attribute("top/dir", "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(attribute("top/dir", "user.overlay.opaque").unwrap(), b"y");
    assert_eq!(attribute("top/etc", "trusted.overlay.opaque"), None);
}
