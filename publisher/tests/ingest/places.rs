//! Where things go, and what goes away.

use cvmfs::entry::{Entry, Flags, Meta};
use cvmfs::hash::Algorithm;
use cvmfs::path::RepoPath;
use time::UtcDateTime;

use super::world::*;

#[test]
fn paths_are_deleted_first() {
    let world = World::new();
    let tree = [file("a/b/c", "1"), file("a/d", "2"), file("e/f", "3"), symlink("l", "a")];
    world.ingest("--base /", Some(&archive(&tree)));
    world.ingest("--base n --catalog", Some(&archive(&[file("x/y", "nested")])));

    let report = world.ingest("--delete a/b --delete /e/f --delete nothing/there --delete l", None);
    assert_eq!(
        (report.deleted, report.missing),
        (vec!["/a/b".into(), "/e/f".into(), "/l".into()], vec!["/nothing/there".into()])
    );
    assert_eq!(world.tree(), "/a/\n/a/d \"2\"\n/e/\n/n/ catalog\n/n/x/\n/n/x/y \"nested\"\n");

    let report = world.ingest("--delete a/b", None);
    assert_eq!((report.missing, report.revision), (vec!["/a/b".to_owned()], 3));

    world.ingest("--base n/x --delete n/x --delete e", Some(&archive(&[file("z", "new")])));
    assert_eq!(world.tree(), "/a/\n/a/d \"2\"\n/n/ catalog\n/n/x/\n/n/x/z \"new\"\n");
    world.ingest("--delete n --delete a", None);
    assert_eq!(world.tree(), "");

    // A link in the way goes first.
    world.ingest("--base /", Some(&archive(&[symlink("current", "v1"), file("v1/f", "1")])));
    world.ingest("--base current --delete current", Some(&archive(&[file("f", "2")])));
    assert_eq!(world.tree(), "/current/\n/current/f \"2\"\n/v1/\n/v1/f \"1\"\n");
}

#[test]
fn directories_get_catalogs_where_asked_for() {
    let marked = |name: &str| file(format!("{name}.cvmfscatalog"), "");
    run(&[
        (
            "--base new --catalog",
            Some(&[file("f", "")]),
            "
            /new/ catalog
            /new/f \"\"
            ",
        ),
        (
            "--base new/empty",
            Some(&[]),
            "
            /new/ catalog
            /new/empty/
            /new/f \"\"
            ",
        ),
        (
            "--base new/empty --catalog",
            Some(&[dir("d").mode(0o700)]),
            "
            /new/ catalog
            /new/empty/ catalog
            /new/empty/d/ 700
            /new/f \"\"
            ",
        ),
        // Its catalog is there already, and stays.
        (
            "--base new --catalog --delete new/empty",
            Some(&[file("g/h", "")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/
            /new/g/h \"\"
            ",
        ),
        (
            "--base new/g --catalog",
            Some(&[file("i", "")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/ catalog
            /new/g/h \"\"
            /new/g/i \"\"
            ",
        ),
        // Markers inside: in a tree that is in use …
        (
            "--base new",
            Some(&[dir("p"), marked("p/"), file("p/q/r", ""), marked("p/q/"), marked("g/")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/ catalog
            /new/g/h \"\"
            /new/g/i \"\"
            /new/p/ catalog
            /new/p/q/ catalog
            /new/p/q/r \"\"
            ",
        ),
        // … and in a new one, where the one at its top is like --catalog.
        (
            "--base other --delete new",
            Some(&[
                marked("./"),
                marked("p/q/"),
                file("p/q/r", ""),
                dir("s"),
                hard("s/.cvmfscatalog", "p/q/r"),
                marked("t/"),
                file("t", "no directory any more"),
            ]),
            "
            /other/ catalog
            /other/p/
            /other/p/q/ catalog
            /other/p/q/r \"\"
            /other/s/ catalog
            /other/t \"no directory any more\"
            ",
        ),
        (
            "--base / --catalog",
            Some(&[file("top", "")]),
            "
            /other/ catalog
            /other/p/
            /other/p/q/ catalog
            /other/p/q/r \"\"
            /other/s/ catalog
            /other/t \"no directory any more\"
            /top \"\"
            ",
        ),
    ]);
}

#[test]
fn names_of_published_images_are_left_alone() {
    let world = World::new();
    // As a conversion leaves them: records, and links with the public names.
    let lock = world.target.lock().unwrap();
    let now = UtcDateTime::now();
    let mut transaction = world.target.begin(&lock, now).unwrap();
    let meta = publisher::target::directory_meta(now);
    let path = |text: &str| RepoPath::parse(text).unwrap();
    for directory in ["/.metadata/registry.example.org/app:1", "/registry.example.org", "/other"] {
        transaction.ensure_directories(&path(directory), meta, &|_| false).unwrap();
    }
    let marker = world.target.marker(Algorithm::Sha1, now).unwrap();
    let record = Entry { flags: marker.flags.without(Flags::HIDDEN), ..marker };
    transaction.put(&path("/.metadata/registry.example.org/app:1/manifest.json"), record, &[]).unwrap();
    let link = Entry::symlink("", Meta { permissions: 0o777, ..meta }, "../.flat/ab/x");
    transaction.put(&path("/registry.example.org/app:1"), link.clone(), &[]).unwrap();
    transaction.put(&path("/other/app:1"), link, &[]).unwrap();
    world.target.commit(transaction).unwrap();
    drop(lock);

    let refused = [
        ("--delete registry.example.org/app:1", None),
        ("--delete registry.example.org", None),
        ("--base registry.example.org", Some(archive(&[file("app:1", "x")]))),
        ("--base registry.example.org", Some(archive(&[dir("app:1")]))),
        ("--base /", Some(archive(&[file("registry.example.org", "x")]))),
        ("--base /", Some(archive(&[file("other/x", ""), hard("registry.example.org/app:1", "other/x")]))),
    ];
    for (options, tar) in refused {
        let error = world.try_ingest(options, tar.as_deref()).expect_err(options);
        assert!(error.contains("is the name of published images"), "{options}: {error}");
    }
    assert_eq!(world.revision(), 1);
    world.ingest("--base registry.example.org", Some(&archive(&[file("README", "beside them")])));
    world.ingest("--delete other/app:1", None);
}

#[test]
fn large_archives_become_subtrees_with_catalogs_of_their_own() {
    let world = World::new();
    let mut members: Vec<Member> = (0..1100).map(|i| file(format!("d{}/f{i}", i % 7), i.to_string())).collect();
    let big = noise(17 << 20);
    members.push(file("big", &big));
    members.push(hard("big-too", "big"));
    let tar = archive(&members);
    let report = world.ingest("--base many", Some(&tar));
    assert_eq!((report.entries, report.revision), (1102, 1));
    let tree = world.tree();
    assert!(tree.starts_with("/many/ catalog\n/many/big 17825792 bytes in"), "{tree}");
    assert_eq!(tree.lines().filter(|l| l.ends_with("chunks (big=big-too)")).count(), 2, "{tree}");

    // Row by row the second time: nothing to change; then one file and a link to the chunked one.
    assert_eq!(world.ingest("--base many", Some(&tar)).revision, 1);
    world.ingest("--base many", Some(&archive(&[file("d3/f3", "new"), hard("more", "big"), hard("d1/copy", "big")])));
    let tree = world.tree();
    assert_eq!(tree.lines().filter(|l| l.contains("(big=big-too=more)")).count(), 3);
    assert!(tree.contains("/many/d1/copy 17825792 bytes in") && tree.contains("/many/d3/f3 \"new\"\n"));

    // Into a directory that is in use, however many.
    world.ingest("--base many/d0 --catalog", Some(&archive(&members[..1050])));
    let new = world.tree();
    assert!(new.contains("/many/d0/ catalog\n") && new.contains("/many/d0/d6/f6 \"6\"\n"));
    assert!(new.contains("/many/d0/f0 \"0\"\n"), "what was there stays");
    assert_eq!(new.lines().count(), tree.lines().count() + 1050 + 7);
}
