//! What a member of an archive becomes.

use cvmfs::entry::Meta;
use time::UtcDateTime;

use super::world::*;

#[test]
fn members_are_published_as_they_are() {
    let long = "n".repeat(255);
    let members = [
        dir("./").mode(0o2775).owner(7, 8),
        dir("bin/").owner(4_000_000_000, 5),
        file("./bin/tool", "run").mode(0o6755).owner(1000, 100),
        symlink("bin/link", "../nowhere/$x"),
        device("null", b'3', 1, 3).mode(0o666),
        device("disk", b'4', 259, 300),
        member("pipe", b'6', 0o600),
        file("empty", ""),
        file("/absolute", "below the base all the same"),
        file(&long, "long name"),
        file(b"bytes\xff", "not UTF-8"),
        file("bin/.wh.tool", "no whiteout"),
        file("bin/.wh..wh..opq", "no mark of an opaque directory"),
        device("zero", b'3', 0, 0),
        file("cap", "x")
            .pax("SCHILY.xattr.security.capability", b"\x01\0\n\0")
            .pax("SCHILY.xattr.user.a", "b")
            .pax("mtime", "-5.25"),
        file("deep/er/still", "parents are not listed"),
    ];
    let content = format!(
        "
        /sw/
        /sw/tools/ 2775 7:8
        /sw/tools/absolute \"below the base all the same\"
        /sw/tools/bin/ 4000000000:5
        /sw/tools/bin/.wh..wh..opq \"no mark of an opaque directory\"
        /sw/tools/bin/.wh.tool \"no whiteout\"
        /sw/tools/bin/link -> ../nowhere/$x
        /sw/tools/bin/tool \"run\" 6755 1000:100
        /sw/tools/bytes\\xff \"not UTF-8\"
        /sw/tools/cap \"x\" security.capability=\\x01\\x00\\n\\x00 user.a=b
        /sw/tools/deep/
        /sw/tools/deep/er/
        /sw/tools/deep/er/still \"parents are not listed\"
        /sw/tools/disk Block 0x11032c
        /sw/tools/empty \"\"
        /sw/tools/{long} \"long name\"
        /sw/tools/null Char 0x103 666
        /sw/tools/pipe Fifo 0x0
        /sw/tools/zero Char 0x0
"
    );
    let world = run(&[
        ("--base sw/tools", Some(&members), &content),
        ("--base /sw//tools/", Some(&members), &content),
        ("--base sw/tools --catalog", Some(&members), &content.replace("/sw/tools/ ", "/sw/tools/ catalog ")),
    ]);
    let capable = world.entry("/sw/tools/cap");
    assert_eq!((capable.mtime, capable.mtime_ns), (-6, Some(750_000_000)));
    let tool = world.entry("/sw/tools/bin/tool");
    assert_eq!((tool.mtime, tool.mtime_ns), (1_000_000_000, None));
    let made = world.entry("/sw/tools/deep");
    let meta = Meta { mtime: made.mtime, ..publisher::target::directory_meta(UtcDateTime::now()) };
    assert_eq!(made.meta(), meta, "of whoever publishes");
    assert!(made.mtime > 1_700_000_000);

    // The same through a subtree that is written beforehand.
    let tree = world.tree();
    world.try_ingest("--base sw/tools --catalog --delete sw", Some(&archive(&members))).unwrap();
    world.assert_sound("a subtree");
    assert_eq!(world.tree(), tree);
}

#[test]
fn every_packing_gives_the_same_and_the_same_again_publishes_nothing() {
    let plain = archive(&[dir("a"), file("a/f", "content"), symlink("a/l", "f"), hard("a/h", "a/f"), file("b/g", "")]);
    let world = World::new();
    let first = world.ingest("--base x", Some(&plain));
    assert_eq!((first.entries, first.files, first.bytes, first.revision), (5, 2, 7, 1));
    assert!(first.stored > 0);
    for packed in [plain.clone(), gzip(&plain), zstd::encode_all(&plain[..], 3).unwrap()] {
        let again = world.ingest("--base x", Some(&packed));
        assert_eq!((again.revision, again.stored), (1, 0));
        assert!(again.to_text().ends_with("in /x; revision 1, nothing to change\n"), "{}", again.to_text());
    }
    let report: serde_json::Value = serde_json::from_str(&first.to_json()).unwrap();
    assert_eq!(
        (&report["schema"], &report["revision_before"], &report["revision"], &report["base"], &report["deleted"]),
        (&1.into(), &0.into(), &1.into(), &"/x".into(), &serde_json::json!([]))
    );
    for empty in [vec![0; 1024], vec![0; 10240], Vec::new()] {
        assert_eq!(world.ingest("--base x", Some(&empty)).revision, 1);
    }
    assert_eq!(world.ingest("--base made/for/nothing", Some(&[0; 1024])).revision, 2);
}

#[test]
fn members_replace_what_has_their_name() {
    run(&[
        (
            "--base d",
            Some(&[
                dir("both").mode(0o700),
                file("both/kept", "old"),
                file("both/file", "old"),
                file("dir-to-file/x/y", "gone"),
                file("file-to-dir", "gone"),
                symlink("link-to-dir", "both"),
                file("file-to-link", "gone"),
                device("device-to-file", b'3', 1, 1),
                dir("untouched").mode(0o500),
            ]),
            "
            /d/
            /d/both/ 700
            /d/both/file \"old\"
            /d/both/kept \"old\"
            /d/device-to-file Char 0x101
            /d/dir-to-file/
            /d/dir-to-file/x/
            /d/dir-to-file/x/y \"gone\"
            /d/file-to-dir \"gone\"
            /d/file-to-link \"gone\"
            /d/link-to-dir -> both
            /d/untouched/ 500
            ",
        ),
        (
            "--base d",
            Some(&[
                dir("both").mode(0o711).owner(3, 4).pax("SCHILY.xattr.user.x", "y"),
                file("both/file", "new"),
                file("dir-to-file", "new"),
                dir("file-to-dir"),
                file("file-to-dir/new", "new"),
                dir("link-to-dir"),
                file("link-to-dir/new", "not in both"),
                symlink("file-to-link", "new"),
                file("device-to-file", "new"),
                file("untouched/new", "its directory is not listed"),
            ]),
            "
            /d/
            /d/both/ 711 3:4 user.x=y
            /d/both/file \"new\"
            /d/both/kept \"old\"
            /d/device-to-file \"new\"
            /d/dir-to-file \"new\"
            /d/file-to-dir/
            /d/file-to-dir/new \"new\"
            /d/file-to-link -> new
            /d/link-to-dir/
            /d/link-to-dir/new \"not in both\"
            /d/untouched/ 500
            /d/untouched/new \"its directory is not listed\"
            ",
        ),
        (
            "--base d --delete d",
            Some(&[
                file("first", "loses"),
                file("was/a/dir", "loses"),
                file("was", "a file now"),
                file("was-file", "loses"),
                dir("was-file"),
                file("was-file/x", "1"),
                symlink("first", "wins"),
                dir("kept").mode(0o700),
                file("kept/x", "2"),
                dir("kept").mode(0o711),
            ]),
            "
            /d/
            /d/first -> wins
            /d/kept/ 711
            /d/kept/x \"2\"
            /d/was \"a file now\"
            /d/was-file/
            /d/was-file/x \"1\"
            ",
        ),
        (
            "--base /",
            Some(&[dir(".").mode(0o700).owner(9, 9), file("top", "the root keeps its own metadata")]),
            "
            /d/
            /d/first -> wins
            /d/kept/ 711
            /d/kept/x \"2\"
            /d/was \"a file now\"
            /d/was-file/
            /d/was-file/x \"1\"
            /top \"the root keeps its own metadata\"
            ",
        ),
    ]);
}

#[test]
fn the_root_of_the_repository_keeps_its_metadata() {
    let world = World::new();
    let before = world.entry("");
    world.ingest("--base .", Some(&archive(&[dir("./").mode(0o700).owner(9, 9)])));
    assert_eq!(world.entry(""), before);
}
