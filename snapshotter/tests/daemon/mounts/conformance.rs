//! The conformance suite of containerd's snapshotters: what a container sees of layers that change each other.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use crate::common::{Client, Mounted, World, may_mount, names, tree};

type Step = fn(&Path);

fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
}

fn write_with(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    mode_of(path, mode);
}

fn mode_of(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn directory(path: &Path, mode: u32) {
    fs::create_dir(path).unwrap();
    mode_of(path, mode);
}

/// As `mv` does it: a directory of a lower layer can't be renamed unless the kernel writes redirections.
fn rename(from: &Path, to: &Path) {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
            assert!(status.success());
            fs::remove_dir_all(from).unwrap();
        }
        done => done.unwrap(),
    }
}

const CASES: [(&str, &[Step]); 8] = [
    (
        "files change",
        &[
            |root| {
                directory(&root.join("etc"), 0o700);
                write_with(&root.join("etc/hosts"), "mydomain 10.0.0.1", 0o644);
                write_with(&root.join("etc/profile"), "PATH=/usr/bin", 0o644);
            },
            |root| {
                write(&root.join("etc/hosts"), "mydomain 10.0.0.2");
                mode_of(&root.join("etc/profile"), 0o666);
                directory(&root.join("root"), 0o700);
                write_with(&root.join("root/.bashrc"), "PATH=/usr/sbin:/usr/bin", 0o644);
            },
            |root| write(&root.join("etc/hosts"), "mydomain 10.0.0.3"),
        ],
    ),
    (
        "a directory is removed and made anew",
        &[
            |root| {
                directory(&root.join("dir1"), 0o700);
                write(&root.join("dir1/f1.txt"), "1");
                directory(&root.join("dir1/deep"), 0o700);
            },
            |root| {
                fs::remove_dir_all(root.join("dir1")).unwrap();
                directory(&root.join("dir1"), 0o711);
                write(&root.join("dir1/f2.txt"), "2");
            },
            |root| write(&root.join("dir1/f3.txt"), "3"),
        ],
    ),
    (
        "owners change",
        &[
            |root| {
                for path in ["opt", "opt/a", "opt/a/b"] {
                    directory(&root.join(path), 0o700);
                }
                write_with(&root.join("opt/a/b/file.txt"), "hello", 0o644);
            },
            |root| {
                chown(root.join("opt"), Some(1), Some(1)).unwrap();
                chown(root.join("opt/a/b/file.txt"), Some(2), Some(3)).unwrap();
            },
        ],
    ),
    (
        "directories keep mode and owner when something is made in them",
        &[
            |root| {
                for (number, mode) in (0..).zip([0o700, 0o777, 0o755, 0o1777, 0o2750]) {
                    let path = root.join(format!("dir{number}"));
                    directory(&path, mode);
                    chown(&path, Some(number), Some(number)).unwrap();
                    mode_of(&path, mode);
                }
            },
            |root| {
                for number in 0..5 {
                    write(&root.join(format!("dir{number}/file")), "x");
                }
            },
            |root| {
                for number in 0..5 {
                    directory(&root.join(format!("dir{number}/d")), 0o755);
                    fs::remove_file(root.join(format!("dir{number}/file"))).unwrap();
                }
            },
        ],
    ),
    (
        "what a child deletes stays deleted",
        &[
            |root| {
                directory(&root.join("foo"), 0o755);
                write(&root.join("foo/f1"), "1");
                write(&root.join("foo/f2"), "2");
                symlink("f1", root.join("foo/link")).unwrap();
                directory(&root.join("foo/empty"), 0o755);
            },
            |root| {
                fs::remove_file(root.join("foo/f1")).unwrap();
                fs::remove_dir(root.join("foo/empty")).unwrap();
            },
            |root| write(&root.join("foo/f3"), "3"),
            |root| fs::remove_file(root.join("foo/link")).unwrap(),
            |root| fs::remove_dir_all(root.join("foo")).unwrap(),
        ],
    ),
    (
        "a file is moved from a lower layer",
        &[
            |root| {
                directory(&root.join("dir1"), 0o700);
                write(&root.join("dir1/f1"), "Hello");
                directory(&root.join("dir2"), 0o700);
                write(&root.join("dir2/f2"), "World");
            },
            |root| {
                rename(&root.join("dir1/f1"), &root.join("dir1/f2"));
                rename(&root.join("dir2/f2"), &root.join("dir1/f3"));
            },
        ],
    ),
    (
        "a directory and a replaced file are renamed",
        &[
            |root| {
                directory(&root.join("dir1"), 0o700);
                write(&root.join("dir1/inside"), "x");
                directory(&root.join("somefiles"), 0o700);
                write(&root.join("somefiles/f1"), "was here first!");
            },
            |root| {
                rename(&root.join("dir1"), &root.join("dir2"));
                write(&root.join("somefiles/f1-overwrite"), "new content 1");
                rename(&root.join("somefiles/f1-overwrite"), &root.join("somefiles/f1"));
            },
            |root| rename(&root.join("dir2"), &root.join("dir1")),
        ],
    ),
    (
        "a file becomes a directory, and a directory a file",
        &[
            |root| {
                write(&root.join("a"), "file");
                directory(&root.join("b"), 0o755);
                write(&root.join("b/inside"), "x");
            },
            |root| {
                fs::remove_file(root.join("a")).unwrap();
                directory(&root.join("a"), 0o755);
                write(&root.join("a/inside"), "y");
                fs::remove_dir_all(root.join("b")).unwrap();
                write(&root.join("b"), "file");
            },
        ],
    ),
];

#[test]
fn layers_change_each_other_as_if_there_was_one_directory() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    for (case, steps) in CASES {
        let plain = world.path("plain");
        directory(&plain, 0o755);
        let mut parent = String::new();
        for (number, step) in steps.iter().enumerate() {
            let key = format!("{case} {number} key");
            let mounted = Mounted::new(&world, &client.prepare(&key, &parent, &[]).unwrap());
            step(&mounted.path);
            step(&plain);
            assert_eq!(tree(&mounted.path), tree(&plain), "{case}, step {number}");
            drop(mounted);
            let name = format!("{case} {number}");
            client.commit(&name, &key, &[]).unwrap();
            let view = Mounted::new(&world, &client.view(&format!("{name} view"), &name).unwrap());
            assert_eq!(tree(&view.path), tree(&plain), "{case}, view of step {number}");
            parent = name;
        }
        fs::remove_dir_all(plain).unwrap();
    }
}

/// containerd's first case: two layers, views and containers on them, and everything is taken down in order.
#[test]
fn a_stack_is_prepared_committed_viewed_and_removed() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let first = Mounted::new(&world, &client.prepare("one", "", &[]).unwrap());
    for (path, content) in [("foo", "foo\n"), ("bar", "bar\n")] {
        write(&first.join(path), content);
    }
    fs::create_dir_all(first.join("a/b/c")).unwrap();
    drop(first);
    client.commit("base", "one", &[]).unwrap();
    let second = Mounted::new(&world, &client.prepare("two", "base", &[]).unwrap());
    write(&second.join("bar"), "changed\n");
    fs::remove_file(second.join("foo")).unwrap();
    fs::remove_dir(second.join("a/b/c")).unwrap();
    drop(second);
    client.commit("top", "two", &[]).unwrap();
    let view = Mounted::new(&world, &client.view("view", "top").unwrap());
    assert_eq!(names(&view.path), ["a".into(), "bar".into()].into());
    assert_eq!(names(&view.join("a/b")).len(), 0);
    assert_eq!(fs::read_to_string(view.join("bar")).unwrap(), "changed\n");
    let base = Mounted::new(&world, &client.view("base view", "base").unwrap());
    assert_eq!(names(&base.path), ["a".into(), "bar".into(), "foo".into()].into(), "a child changes no parent");
    drop((view, base));
    for name in ["view", "top", "base view", "base"] {
        client.remove(name).unwrap();
    }
    client.cleanup().unwrap();
    assert_eq!(client.everything().len(), 0);
    assert_eq!(names(&world.snapshots()).len(), 0);
}

#[test]
fn views_are_read_only_and_containers_are_not() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.layer("base", "");
    client.layer("top", "base");
    for (number, parent) in ["", "base", "top"].into_iter().enumerate() {
        let view = Mounted::new(&world, &client.view(&format!("v{number}"), parent).unwrap());
        let error = fs::write(view.join("x"), "").expect_err("a view is read-only");
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{parent:?}");
        let container = Mounted::new(&world, &client.prepare(&format!("c{number}"), parent, &[]).unwrap());
        fs::write(container.join("x"), "").unwrap();
    }
}

#[test]
fn the_root_has_mode_and_owner_of_the_parents_root() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let root = |path: &Path| path.metadata().map(|m| (m.mode() & 0o7777, m.uid(), m.gid())).unwrap();
    let first = Mounted::new(&world, &client.prepare("key", "", &[]).unwrap());
    assert_eq!(root(&first.path), (0o755, 0, 0));
    chown(&first.path, Some(12), Some(34)).unwrap();
    mode_of(&first.path, 0o2511);
    drop(first);
    client.commit("base", "key", &[]).unwrap();
    let check = |client: &mut Client, key: &str, parent: &str| {
        let mounted = Mounted::new(&world, &client.prepare(key, parent, &[]).unwrap());
        assert_eq!(root(&mounted.path), (0o2511, 12, 34), "{key}");
        write(&mounted.join("x"), "");
        assert_eq!(root(&mounted.path), (0o2511, 12, 34), "{key}");
    };
    check(&mut client, "second", "base");
    client.commit("top", "second", &[]).unwrap();
    check(&mut client, "third", "top");
    let view = Mounted::new(&world, &client.view("view", "top").unwrap());
    assert_eq!(root(&view.path), (0o2511, 12, 34));
}

#[test]
fn an_intermediate_snapshot_goes_when_its_children_are_gone_and_leaves_the_rest() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let mut parent = String::new();
    for name in ["base", "middle", "top"] {
        let mounted = Mounted::new(&world, &client.prepare("key", &parent, &[]).unwrap());
        write(&mounted.join(name), name);
        drop(mounted);
        client.commit(name, "key", &[]).unwrap();
        parent = name.into();
    }
    assert!(client.remove("middle").is_err());
    client.remove("top").unwrap();
    client.remove("middle").unwrap();
    client.cleanup().unwrap();
    let view = Mounted::new(&world, &client.view("view", "base").unwrap());
    assert_eq!(names(&view.path), ["base".into()].into());
}

#[test]
fn a_mount_has_128_layers() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let mut parent = String::new();
    for number in 0..128 {
        let key = format!("k{number}");
        client.prepare(&key, &parent, &[]).unwrap();
        // As what a mount of each would give; the next test of the suite looks at those.
        write(&world.content(&key).join(format!("f{number}")), &number.to_string());
        write(&world.content(&key).join("last"), &number.to_string());
        parent = format!("l{number}");
        client.commit(&parent, &key, &[]).unwrap();
    }
    let container = Mounted::new(&world, &client.prepare("container", &parent, &[]).unwrap());
    let view = Mounted::new(&world, &client.view("view", &parent).unwrap());
    for seen in [&container, &view] {
        assert_eq!(names(&seen.path).len(), 129);
        assert_eq!(fs::read_to_string(seen.join("last")).unwrap(), "127");
        assert_eq!(fs::read_to_string(seen.join("f0")).unwrap(), "0");
    }
}
