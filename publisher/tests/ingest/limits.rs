//! What the format cannot hold, and what is refused.

use clap::Parser as _;
use publisher::cli::{Cli, Command};
use publisher::ingest::ingest;

use super::world::*;

#[test]
fn what_the_format_cannot_hold_is_listed() {
    let mut many = file("many", "");
    for i in 0..256 {
        many = many.pax(format!("SCHILY.xattr.user.{i:03}"), "");
    }
    let members = [
        file("big", "").pax("SCHILY.xattr.user.big", [b'x'; 256]).pax("SCHILY.xattr.user.fits", [b'x'; 255]),
        many,
        file("owner", "").pax("uid", "4294967296").pax("gid", "4294967295"),
        file("time", "").pax("mtime", "999999999999"),
        symlink("variable", "/opt/$(ARCH)/x"),
    ];
    let world = World::new();
    let report = world.ingest("--base x", Some(&archive(&members)));
    let lost: Vec<_> = report.lost.iter().map(|lost| format!("{}: {}", lost.path, lost.what)).collect();
    assert_eq!(
        lost,
        [
            "big: xattr user.big",
            "many: xattr user.255",
            "owner: uid 4294967296",
            "time: mtime 999999999999",
            "variable: clients replace variables in its target",
        ]
    );
    let xattrs = |path| world.entry(path).xattrs().len();
    assert_eq!((xattrs("/x/big"), xattrs("/x/many")), (1, 255));
    let owner = world.entry("/x/owner");
    assert_eq!((owner.uid, owner.gid), (65534, u32::MAX));
    assert_eq!(world.entry("/x/variable").symlink, b"/opt/$(ARCH)/x");
    assert!(report.to_text().starts_with("lost      big: xattr user.big\n"), "{}", report.to_text());
}

#[test]
fn refuses_what_is_malformed_or_hostile_and_changes_nothing() {
    let world = World::new();
    let present = [file("in/use", "1"), symlink("link", "in"), file("file", "2"), file(".keep", "")];
    world.ingest("--base /", Some(&archive(&present)));
    let tree = world.tree();
    let revision = world.revision();
    let ok = || archive(&[file("f", "x")]);
    let truncated = |bytes: Vec<u8>, at: usize| bytes[..at].to_vec();
    let long_path = (0..20).map(|_| "d".repeat(250)).collect::<Vec<_>>().join("/");
    let cases: Vec<(&str, Option<Vec<u8>>, &str)> = vec![
        // names
        ("--base x", Some(archive(&[file("../f", "")])), "contains \"..\""),
        ("--base x", Some(archive(&[file("a/../../f", "")])), "contains \"..\""),
        ("--base x", Some(archive(&[hard("f", "../../etc/passwd")])), "contains \"..\""),
        ("--base x", Some(archive(&[file("n".repeat(256), "")])), "too long"),
        ("--base x", Some(archive(&[file(&long_path, "")])), "too long"),
        ("--base x", Some(archive(&[file("./", "")])), "its root is something else than a directory"),
        ("--base x/../y", Some(ok()), "contains \"..\""),
        ("--delete ../x", None, "contains \"..\""),
        // links are never followed
        ("--base x", Some(archive(&[symlink("l", "/etc"), file("l/f", "")])), "a symbolic link in the archive"),
        ("--base x", Some(archive(&[symlink("l", "../in"), dir("l/d")])), "a symbolic link in the archive"),
        ("--base x", Some(archive(&[file("f", ""), file("f/g", "")])), "which is no directory in the archive"),
        ("--base x", Some(archive(&[hard("h", "later"), file("h/g", "")])), "which is no directory in the archive"),
        ("--base /", Some(archive(&[file("link/f", "")])), "/link is a symbolic link in the repository"),
        ("--base /", Some(archive(&[file("file/f", "")])), "/file is no directory in the repository"),
        ("--base link", Some(ok()), "/link is a symbolic link (to in)"),
        ("--base link/sub", Some(ok()), "/link is a symbolic link (to in)"),
        ("--base file", Some(ok()), "/file exists and is no directory"),
        ("--delete link/use", None, "/link is a symbolic link (to in)"),
        ("--base /", Some(archive(&[hard("x", "link/use")])), "exists neither"),
        // links that lead nowhere
        ("--base x", Some(archive(&[hard("h", "nothing")])), "exists neither"),
        ("--base x --catalog", Some(archive(&[hard("h", "nothing")])), "exists neither"),
        ("--base /", Some(archive(&[hard("h", "in")])), "which is a directory"),
        ("--base x", Some(archive(&[dir("d"), hard("h", "d")])), "a directory"),
        ("--base x", Some(archive(&[hard("h", ".")])), "leads to a directory"),
        ("--base x", Some(archive(&[hard("a", "b"), hard("b", "a")])), "leads in a circle"),
        ("--base / --delete in/use", Some(archive(&[hard("h", "in/use")])), "exists neither"),
        ("--base x", Some(archive(&[symlink("l", "")])), "target that is empty"),
        // markers
        ("--base /", Some(archive(&[file(".cvmfscatalog", "")])), "the root of a repository"),
        ("--base x", Some(archive(&[symlink("d/.cvmfscatalog", "y")])), "is no regular file"),
        ("--base x", Some(archive(&[dir(".cvmfscatalog")])), "is no regular file"),
        ("--base x", Some(archive(&[file(".cvmfscatalog/f", "")])), "is no regular file"),
        ("--base x", Some(archive(&[file("d/.cvmfscatalog", ""), hard("h", "d/.cvmfscatalog")])), "marker"),
        ("--base x/.cvmfscatalog", Some(ok()), "no directory can be named"),
        ("--delete in/.cvmfscatalog", None, "marks a nested catalog"),
        // what belongs to images
        ("--base .flat/x", Some(ok()), "convert"),
        ("--base ./.metadata", Some(ok()), "convert"),
        ("--base podmanStore", Some(ok()), "convert"),
        ("--base .cvmfs/snapshots", Some(ok()), "virtual directory"),
        ("--base /", Some(archive(&[file("./.layers/ab/x", "")])), "convert"),
        ("--base /", Some(archive(&[dir(".index")])), "convert"),
        ("--delete /.layers", None, "convert"),
        ("--delete .multiarch/arm64/x", None, "convert"),
        ("--delete /", None, "the root of a repository"),
        // archives
        ("--base x", Some(b"<html>not found</html>".repeat(50)), "neither a tar nor"),
        ("--base x", Some(truncated(archive(&[file("f", noise(5000))]), 3000)), "ends in the middle"),
        ("--base x", Some(truncated(gzip(&archive(&[file("f", noise(5000))])), 3000)), "cannot read"),
        ("--base x --max-entries 2", Some(archive(&[dir("a"), dir("b"), dir("c")])), "limit of 2 entries"),
        ("--base x --max-entries 2", Some(archive(&[file("a/b/c/d", "")])), "more than 2 directories"),
        ("--base x --max-layer-size 5000", Some(archive(&[file("f", [0; 9000])])), "5000 bytes"),
        ("--base x --max-pax-header 100", Some(archive(&[file("f", "").pax("comment", [b'x'; 200])])), "limit of 100"),
    ];
    for (options, tar, expected) in cases {
        let error = world.try_ingest(options, tar.as_deref()).expect_err(options);
        assert!(error.contains(expected), "{options}: {error}\nis to contain: {expected}");
        assert_eq!(world.revision(), revision, "{options}: {error}");
    }
    assert_eq!(world.tree(), tree);
    world.assert_sound("after all refusals");
    let missing = Cli::try_parse_from(["x", "ingest", FQRN, "--tar", "/nonexistent/f.tar", "--base", "x"]).unwrap();
    let Command::Ingest(arguments) = missing.command else { panic!("not ingest") };
    let error = ingest(&world.target, &arguments).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/f.tar"), "{error}");
}
