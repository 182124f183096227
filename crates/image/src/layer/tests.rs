//! Layers from archives: what a container engine would make of them.

use super::*;
use crate::rootfs::TreeLookup;
use crate::tar::TarReader;
use ::tar::{Builder, EntryType, Header};
use std::io::Read as _;

type Tree = Layer<MemoryStaging<Vec<u8>>>;

/// An archive in memory, member by member.
pub(crate) struct Archive(Builder<Vec<u8>>);

impl Archive {
    pub fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn member(
        mut self,
        kind: EntryType,
        path: &str,
        mode: u32,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(1);
        header.set_gid(2);
        header.set_mtime(7);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        self.member(EntryType::Regular, path, 0o644, content.as_bytes(), |_| {})
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.member(EntryType::Directory, path, mode, b"", |_| {})
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(EntryType::Symlink, path, 0o777, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.member(EntryType::Link, path, 0o644, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        self.member(EntryType::Char, path, 0o600, b"", |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        })
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn try_build(self) -> Result<Tree, LayerError> {
        let bytes = self.bytes();
        let mut reader = TarReader::new(&bytes[..]);
        let mut builder = LayerBuilder::new(MemoryStaging::default());
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut content = Vec::new();
            reader.content().read_to_end(&mut content).unwrap();
            builder.add(entry, Some(content))?;
        }
        builder.finish()
    }

    pub fn build(self) -> Tree {
        self.try_build().unwrap()
    }
}

/// The rows below the root in short: `d755 a`, `f a/b=content`, `l a → x`, `w gone`, `c`; `!` opaque, `?` implicit.
fn rows(layer: &Tree) -> Vec<String> {
    let text = |(path, node): (&TreePath, &Node<Vec<u8>>)| match &node.kind {
        NodeKind::Directory { opaque, implicit } => {
            let marks = [if *opaque { "!" } else { "" }, if *implicit { "?" } else { "" }].concat();
            format!("d{:o}{marks} {path}", node.mode)
        }
        NodeKind::Regular { content, .. } => format!("f {path}={}", String::from_utf8_lossy(content)),
        NodeKind::Symlink { target } => format!("l {path} > {}", String::from_utf8_lossy(target)),
        NodeKind::Whiteout => format!("w {path}"),
        other => format!("{other:?} {path}"),
    };
    layer.staging.iter().skip(1).map(text).collect()
}

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn group(layer: &Tree, at: &str) -> u64 {
    Staging::get(&layer.staging, &path(at)).unwrap().unwrap().link_group
}

#[test]
fn applies_entries_in_order() {
    let a = Archive::new;
    for (what, archive, expected) in [
        ("parents appear", a().file("a/b/c", "1"), &["d755? a", "d755? a/b", "f a/b/c=1"][..]),
        ("the last file wins", a().file("a", "1").file("a", "2"), &["f a=2"]),
        ("absolute and dotted names", a().file("/a", "1").file("./b", "2"), &["f a=1", "f b=2"]),
        (
            "a directory takes new metadata",
            a().dir("a", 0o700).file("a/b", "1").dir("a/", 0o1777),
            &["d1777 a", "f a/b=1"],
        ),
        ("a listed directory is explicit", a().file("a/b", "1").dir("a", 0o700), &["d700 a", "f a/b=1"]),
        ("a file over a directory removes it", a().file("a/b/c", "1").file("a/b", "2"), &["d755? a", "f a/b=2"]),
        ("a directory over a file", a().file("a", "1").dir("a", 0o700).file("a/b", "2"), &["d700! a", "f a/b=2"]),
        ("a directory over a link", a().dir("t", 0o700).symlink("a", "t").dir("a", 0o711), &["d711! a", "d700 t"]),
        ("a parent that is a file", a().file("a", "1").file("a/b", "2"), &["d755!? a", "f a/b=2"]),
        ("a link over a directory", a().file("a/b", "1").symlink("a", "x"), &["l a > x"]),
        (
            "again after a replacement",
            a().file("a/b/c", "1").file("a", "2").file("a/b/d", "3"),
            &["d755!? a", "d755? a/b", "f a/b/d=3"],
        ),
    ] {
        assert_eq!(rows(&archive.build()), expected, "{what}");
    }
}

#[test]
fn follows_links_of_the_layer_inside_the_root() {
    let a = Archive::new;
    for (what, archive, expected) in [
        (
            "relative",
            a().symlink("bin", "usr/bin").file("bin/x", "1"),
            &["l bin > usr/bin", "d755? usr", "d755? usr/bin", "f usr/bin/x=1"][..],
        ),
        ("absolute", a().symlink("e", "/etc").file("e/passwd", "1"), &["l e > /etc", "d755? etc", "f etc/passwd=1"]),
        (
            "out of the root",
            a().symlink("e", "../../../etc").file("e/passwd", "1"),
            &["l e > ../../../etc", "d755? etc", "f etc/passwd=1"],
        ),
        ("whiteouts, too", a().symlink("e", "etc").file("e/.wh.x", ""), &["l e > etc", "d755? etc", "w etc/x"]),
        (
            "retargeted between",
            a().symlink("e", "a").file("e/1", "1").symlink("e", "b").file("e/2", "2"),
            &["d755? a", "f a/1=1", "d755? b", "f b/2=2", "l e > b"],
        ),
    ] {
        assert_eq!(rows(&archive.build()), expected, "{what}");
    }
}

#[test]
fn reads_whiteouts() {
    let a = Archive::new;
    for (what, archive, expected) in [
        ("a deletion", a().file("a/.wh.b", ""), &["d755? a", "w a/b"][..]),
        ("a device is one", a().device("a/b", 0, 0), &["d755? a", "w a/b"]),
        ("a real device isn't", a().device("null", 1, 3), &["CharDevice { rdev: 259 } null"]),
        ("a file after it", a().file(".wh.a", "").file("a", "1"), &["f a=1"]),
        ("a file before it", a().file("a", "1").file(".wh.a", ""), &["f a=1"]),
        ("a directory after it", a().file(".wh.a", "").dir("a", 0o700), &["d700! a"]),
        ("a directory before it", a().dir("a", 0o700).file(".wh.a", ""), &["d700! a"]),
        ("an unlisted directory after it", a().file(".wh.a", "").file("a/b", "1"), &["d755!? a", "f a/b=1"]),
        ("an unlisted directory before it", a().file("a/b", "1").file(".wh.a", ""), &["d755!? a", "f a/b=1"]),
        ("listed after all", a().file(".wh.a", "").file("a/b", "1").dir("a", 0o700), &["d700! a", "f a/b=1"]),
        ("opaque before", a().file("a/.wh..wh..opq", "").file("a/b", "1").dir("a", 0o700), &["d700! a", "f a/b=1"]),
        ("opaque after", a().dir("a", 0o700).file("a/b", "1").file("a/.wh..wh..opq", ""), &["d700! a", "f a/b=1"]),
        (
            "bookkeeping",
            a().dir(".wh..wh.plnk", 0o700)
                .file(".wh..wh.plnk/1", "1")
                .file(".wh..wh.aufs", "")
                .file("stargz.index.json", "{}"),
            &[],
        ),
        ("a name with dots", a().file(".wh..x", ""), &["w .x"]),
    ] {
        assert_eq!(rows(&archive.build()), expected, "{what}");
    }
    let layer = a().file(".wh..wh..opq", "").build();
    assert!(Staging::get(&layer.staging, &TreePath::root()).unwrap().unwrap().is_opaque());
}

#[test]
fn keeps_hard_links_within_a_directory() {
    let layer =
        Archive::new().file("d/a", "1").hardlink("d/b", "./d/a").hardlink("d/c", "/d/b").file("d/e", "2").build();
    assert_eq!(rows(&layer), ["d755? d", "f d/a=1", "f d/b=1", "f d/c=1", "f d/e=2"]);
    let first = group(&layer, "d/a");
    assert!(first != 0 && first == group(&layer, "d/b") && first == group(&layer, "d/c"));
    assert_eq!((group(&layer, "d/e"), layer.counts.broken_links), (0, 0));

    let layer = Archive::new().file("d/a", "1").hardlink("e/a", "d/a").hardlink("a", "a").build();
    assert_eq!(rows(&layer), ["d755? d", "f d/a=1", "d755? e", "f e/a=1"], "a link to itself is nothing");
    assert_eq!(layer.counts.broken_links, 1);

    let layer = Archive::new().file("a", "1").hardlink("b", "a").file("a", "2").build();
    assert_eq!(rows(&layer), ["f a=2", "f b=1"], "the name is replaced, not the file");
    let layer = Archive::new().symlink("s", "d").file("d/a", "1").hardlink("s/b", "s/a").build();
    assert_eq!(rows(&layer), ["d755? d", "f d/a=1", "f d/b=1", "l s > d"]);
}

#[test]
fn finds_hard_link_targets_below() {
    let base = Archive::new().file("d/a", "1").symlink("s", "d").dir("x", 0o755).build().staging;
    let settle = |archive: Archive, lower: &dyn TreeLookup<Vec<u8>>| {
        let mut layer = archive.try_build()?;
        layer.settle(lower).map(|()| layer)
    };
    let layer =
        settle(Archive::new().hardlink("d/b", "d/a").hardlink("e", "s/a").hardlink("d/c", "d/b"), &base).unwrap();
    assert_eq!(rows(&layer), ["d755? d", "f d/b=1", "f d/c=1", "f e=1"]);
    assert_eq!(group(&layer, "d/b"), group(&layer, "d/c"));
    assert_eq!((layer.counts.broken_links, layer.pending_links.len()), (3, 0));
    // a rename: the new name is a link, the old one deleted
    let layer = settle(Archive::new().file("d/.wh.a", "").hardlink("d/b", "d/a"), &base).unwrap();
    assert_eq!(rows(&layer), ["d755? d", "w d/a", "f d/b=1"]);
    // replaced later, replaced before, whited out beside
    let layer = settle(Archive::new().hardlink("q", "none").file("q", "2"), &base).unwrap();
    assert_eq!(rows(&layer), ["f q=2"]);
    let layer = settle(Archive::new().hardlink("q/r", "none").file("q", "2"), &base).unwrap();
    assert_eq!(rows(&layer), ["f q=2"]);
    let layer = settle(Archive::new().file("q/x", "2").hardlink("q", "d/a").file(".wh.q", ""), &base).unwrap();
    assert_eq!(rows(&layer), ["f q=1"]);

    let error = settle(Archive::new().hardlink("q", "d/none"), &base).unwrap_err();
    assert!(matches!(error, LayerError::Dangling { .. }));
    assert!(error.to_string().contains("\"q\"") && error.to_string().contains("\"d/none\""), "{error}");
    assert!(matches!(settle(Archive::new().hardlink("q", "x"), &base), Err(LayerError::LinkToDirectory { .. })));
}

#[test]
fn gives_unlisted_directories_the_metadata_below() {
    let base = Archive::new().dir("tmp", 0o1777).dir("a", 0o711).dir("a/b", 0o700).file("f", "1").build().staging;
    let mut layer = Archive::new().file("tmp/x", "").file("a/b/c/d", "").file("f/g", "").file("new/h", "").build();
    layer.settle(&base).unwrap();
    let expected = [
        "d711? a",
        "d700? a/b",
        "d755? a/b/c",
        "f a/b/c/d=",
        "d755? f",
        "f f/g=",
        "d755? new",
        "f new/h=",
        "d1777? tmp",
        "f tmp/x=",
    ];
    assert_eq!(rows(&layer), expected);
    let tmp = Staging::get(&layer.staging, &path("tmp")).unwrap().unwrap();
    assert_eq!((tmp.uid, tmp.gid, tmp.mtime), (1, 2, 7));
    let mut layer = Archive::new().file("a/.wh..wh..opq", "").file("a/b/x", "").build();
    layer.settle(&base).unwrap();
    assert_eq!(rows(&layer), ["d755!? a", "d755? a/b", "f a/b/x="], "nothing is inherited through an opaque directory");
    let record = layer.format_record(DiffId::of(b""), 10, 4);
    assert_eq!(record.implicit, ["", "a", "a/b"]);
}

#[test]
fn moves_what_is_below_a_lower_link() {
    let base = Archive::new()
        .dir("usr", 0o755)
        .dir("usr/bin", 0o711)
        .symlink("bin", "usr/bin")
        .symlink("up", "../../usr")
        .symlink("usr/deep", "/opt/deep")
        .symlink("gone", "nowhere/at/all")
        .symlink("file", "plain")
        .file("plain", "1")
        .symlink("loop", "loop")
        .build()
        .staging;
    let settle = |archive: Archive| {
        let mut layer = archive.build();
        layer.settle(&base).map(|()| layer)
    };
    for (what, archive, expected) in [
        (
            "merged directories",
            Archive::new().file("bin/a", "1").file("bin/.wh.b", ""),
            &["d755? usr", "d711? usr/bin", "f usr/bin/a=1", "w usr/bin/b"][..],
        ),
        (
            "what is there stays",
            Archive::new().file("bin/a", "1").file("usr/bin/a", "2"),
            &["d755? usr", "d711? usr/bin", "f usr/bin/a=2"],
        ),
        (
            "links behind links",
            Archive::new().file("up/deep/x", "1"),
            &["d755? opt", "d755? opt/deep", "f opt/deep/x=1", "d755? usr"],
        ),
        (
            "into nothing",
            Archive::new().file("gone/x", "1"),
            &["d755? nowhere", "d755? nowhere/at", "d755? nowhere/at/all", "f nowhere/at/all/x=1"],
        ),
        ("a link to a file is replaced", Archive::new().file("file/x", "1"), &["d755? file", "f file/x=1"]),
        (
            "a listed directory replaces the link",
            Archive::new().dir("bin", 0o700).file("bin/a", "1"),
            &["d700 bin", "f bin/a=1"],
        ),
        ("a deleted link is none", Archive::new().file(".wh.bin", "").file("bin/a", "1"), &["d755!? bin", "f bin/a=1"]),
        (
            "subtrees merge",
            Archive::new().file("up/bin/s/x", "1").dir("usr/bin/s", 0o700),
            &["d755? usr", "d711? usr/bin", "d700 usr/bin/s", "f usr/bin/s/x=1"],
        ),
    ] {
        assert_eq!(rows(&settle(archive).unwrap()), expected, "{what}");
    }
    let mut layer = Archive::new().file("usr/bin/q", "").build();
    layer.settle(&base).unwrap();
    let layer = settle(Archive::new().hardlink("bin/p", "bin/a"));
    assert!(matches!(layer, Err(LayerError::Dangling { .. })), "pending links move along: {layer:?}");
    assert!(matches!(settle(Archive::new().file("loop/x", "1")), Err(LayerError::Resolve(ResolveError::Loop(_)))));
}

#[test]
fn refuses_hostile_members() {
    type Check = fn(&LayerError) -> bool;
    let a = Archive::new;
    let long = "x".repeat(99);
    let pax = |records: &[(&str, &[u8])]| Archive::new().pax(records).file("f", "1");
    let table: Vec<(&str, Archive, Check)> = vec![
        ("dots", a().file("../etc/passwd", "1"), |e| matches!(e, LayerError::Path(PathError::DotDot(_)))),
        ("dots inside", a().file("a/../../etc/passwd", "1"), |e| matches!(e, LayerError::Path(PathError::DotDot(_)))),
        ("dots in a hard link", a().hardlink("a", "../x"), |e| matches!(e, LayerError::Path(PathError::DotDot(_)))),
        ("a name of 256 bytes", pax(&[("path", &[b'x'; 256])]), |e| {
            matches!(e, LayerError::Path(PathError::TooLong(_)))
        }),
        ("a root that is a file", a().file("./", "1"), |e| matches!(e, LayerError::Root)),
        ("a root that is a device", a().device("/", 0, 0), |e| matches!(e, LayerError::Root)),
        ("an empty whiteout", a().file(".wh.", ""), |e| matches!(e, LayerError::Whiteout(_))),
        ("a whiteout of the parent", a().file(".wh...", ""), |e| matches!(e, LayerError::Whiteout(_))),
        ("a loop of links", a().symlink("l", "l").file("l/x", "1"), |e| matches!(e, LayerError::Resolve(_))),
        ("a hard link to a directory", a().dir("d", 0o700).hardlink("l", "d"), |e| {
            matches!(e, LayerError::LinkToDirectory { .. })
        }),
        ("a hard link to the root", a().hardlink("l", "/"), |e| matches!(e, LayerError::LinkToDirectory { .. })),
        ("a link to nothing", a().symlink("l", ""), |e| matches!(e, LayerError::Target(_))),
    ];
    for (what, archive, expected) in table {
        let error = archive.try_build().expect_err(what);
        assert!(expected(&error), "{what}: {error:?}");
    }
    assert_eq!(rows(&a().file(&long, "1").build()), [format!("f {long}=1")]);
    let longest = pax(&[("path", &[b'x'; 255])]).build();
    assert_eq!(longest.staging.iter().count(), 2, "255 bytes are a name");
    let bytes = pax(&[("path", b"\xff\xfe/\n")]).build();
    assert!(Staging::get(&bytes.staging, &TreePath::new(*b"\xff\xfe/\n").unwrap()).unwrap().is_some());
}

#[test]
fn reports_what_a_repository_cannot_hold() {
    let many: Vec<(String, Vec<u8>)> = (0..300).map(|i| (format!("SCHILY.xattr.user.n{i:03}"), vec![1])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (&**key, &**value)).collect();
    let long_key = format!("SCHILY.xattr.user.{}", "k".repeat(251));
    let layer = Archive::new()
        .pax(&[
            ("SCHILY.xattr.user.fits", &[1; 255]),
            ("SCHILY.xattr.user.long", &[1; 256]),
            (&long_key, b"1"),
            ("SCHILY.xattr.", b"1"),
            ("SCHILY.xattr.user.nul\0", b"1"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n\0"),
            ("SCHILY.xattr.trusted.x", b"\n"),
            ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
        ])
        .file("x", "1")
        .pax(&many)
        .file("many", "1")
        .pax(&many)
        .dir("many-dir", 0o755)
        .pax(&[("uid", b"4294967296"), ("gid", b"-2"), ("mtime", b"999999999999999")])
        .file("ids", "1")
        .symlink("link", "/x/$(ARCH)/y")
        .file("a/.cvmfscatalog", "")
        .file(".cvmfscatalog/b", "")
        .hardlink("to-reserved", ".cvmfscatalog")
        .build();
    let node = |at: &str| Staging::get(&layer.staging, &path(at)).unwrap().unwrap();
    let keys: Vec<String> = node("x").xattrs.iter().map(|(key, _)| String::from_utf8(key.clone()).unwrap()).collect();
    assert_eq!(keys, ["security.capability", "system.posix_acl_access", "trusted.x", "user.fits"]);
    assert_eq!(node("x").xattrs[0].1, b"\x01\0\0\x02\n\0");
    assert_eq!((node("many").xattrs.len(), node("many-dir").xattrs.len()), (255, 253));
    assert_eq!((node("ids").uid, node("ids").gid, node("ids").mtime), (NOBODY, NOBODY, TIME_RANGE.1));
    let lost =
        |at: &str| layer.lost.iter().filter(|lost| lost.path == path(at)).map(|lost| &*lost.what).collect::<Vec<_>>();
    assert_eq!(lost("x").len(), 4);
    assert!(lost("x").contains(&"xattr user.long") && lost("x").contains(&"xattr "));
    assert_eq!((lost("many").len(), lost("many-dir").len()), (45, 47));
    assert_eq!(lost("ids"), ["uid 4294967296", "gid -2", "mtime 999999999999999"]);
    assert_eq!(lost("link"), ["link target /x/$(ARCH)/y"]);
    assert_eq!(lost("a/.cvmfscatalog"), ["reserved name .cvmfscatalog"]);
    assert_eq!(lost("to-reserved"), ["hard link to the reserved name .cvmfscatalog"]);
    assert!(Staging::get(&layer.staging, &path("a")).unwrap().is_none() && node("link").mode == 0o777);
}

#[test]
fn bounds_the_list_of_losses() {
    let mut builder = LayerBuilder::<(), _>::new(MemoryStaging::default());
    for i in 0..LOST_MAX + 5 {
        let entry = TarEntry {
            path: format!("{i}").into_bytes(),
            kind: TarKind::Fifo,
            mode: 0o600,
            uid: -1,
            gid: 0,
            mtime: 0,
            mtime_ns: 0,
            xattrs: Vec::new(),
        };
        builder.add(entry, None).unwrap();
    }
    let layer = builder.finish().unwrap();
    assert_eq!((layer.lost.len(), layer.counts.lost_more), (LOST_MAX, 5));
    assert_eq!(layer.format_record(DiffId::of(b""), 0, 0).lost_more, 5);
}

#[test]
fn asks_for_the_content_of_files_only() {
    let entry = |path: &str, kind| TarEntry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_ns: 0,
        xattrs: Vec::new(),
    };
    let wants = |path, kind| LayerBuilder::<(), MemoryStaging<()>>::wants_content(&entry(path, kind));
    assert!(wants("a", TarKind::Regular { size: 1 }));
    for path in [".wh.a", "a/.wh..wh..opq", ".cvmfscatalog", "stargz.index.json", "../a"] {
        assert!(!wants(path, TarKind::Regular { size: 1 }), "{path}");
    }
    assert!(!wants("a", TarKind::Directory) && !wants("a", TarKind::HardLink { target: b"b".to_vec() }));
    let mut builder = LayerBuilder::<(), _>::new(MemoryStaging::default());
    assert!(matches!(builder.add(entry("a", TarKind::Regular { size: 1 }), None), Err(LayerError::NoContent(_))));
}
