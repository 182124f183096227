//! What a layer says is kept row by row, and comes back.

use std::collections::BTreeMap;

use publisher::report::Outcome::Added;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Kind, dir, file, hardlink, noise, opaque, special, symlink, whiteout};
use scenarios::naive::device;
use scenarios::repository::{Site, assert_flat, assert_outcome, flat_path, layer_path, wish};
use scenarios::tree::{Node, What, assert_same, below};

use crate::{content, node, tree_of};

#[test]
fn keeps_what_a_layer_says_row_by_row() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let members = [
        dir("").mode(0o711).mtime(12),
        dir("a").mode(0o1777).owner(7, 8),
        file("a/setuid", "s").mode(0o6755).owner(0, 5),
        file("a/cap", "c").xattr("security.capability", capability).xattr("user.note", "x\ny=z\0"),
        file("a/labelled", "l").xattr("security.selinux", "label").xattr("trusted.overlay.opaque", "y"),
        file("a/one", "linked").mode(0o640),
        hardlink("a/two", "a/one"),
        hardlink("b/three", "a/one"),
        whiteout("a/gone"),
        dir("covered"),
        opaque("covered"),
        file("covered/new", ""),
        symlink("link", "../../outside").owner(1, 2),
        special("dev/tty", Kind::Char(5, 300)),
        special("dev/disk", Kind::Block(259, 70000)),
        special("dev/pipe", Kind::Fifo),
        special("gone-too", Kind::Char(0, 0)),
        file(".wh..wh.plnk", "bookkeeping"),
        file("early", "").mtime(-5),
        file("owner", "").owner(4_000_000_000, 3_000_000_000),
    ];
    let pushed = Image::of(&[&members]).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    let opaque_marks: BTreeMap<Vec<u8>, Vec<u8>> =
        ["trusted.overlay.opaque", "user.overlay.opaque"].map(|name| (name.as_bytes().to_vec(), b"y".to_vec())).into();
    let implicit = Node { mtime: 0, ..node(What::Directory, 0o755) };
    let text = |text: &str| What::File(text.as_bytes().to_vec());
    let gone = Node { mtime: 0, ..node(What::Char(0), 0) };
    let xattrs = |pairs: &[(&str, &[u8])]| pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec())).collect();
    let mut expected = tree_of([
        ("", Node { mtime: 12, ..node(What::Directory, 0o711) }),
        ("a", Node { uid: 7, gid: 8, ..node(What::Directory, 0o1777) }),
        ("a/setuid", Node { gid: 5, ..node(text("s"), 0o6755) }),
        (
            "a/cap",
            Node {
                xattrs: xattrs(&[("security.capability", &capability), ("user.note", b"x\ny=z\0")]),
                ..node(text("c"), 0o644)
            },
        ),
        ("a/labelled", node(text("l"), 0o644)),
        ("a/one", Node { links: 2, ..node(text("linked"), 0o640) }),
        ("a/two", Node { links: 2, ..node(text("linked"), 0o640) }),
        ("a/gone", gone.clone()),
        ("b", implicit.clone()),
        ("b/three", node(text("linked"), 0o640)),
        ("covered", Node { xattrs: opaque_marks, ..node(What::Directory, 0o755) }),
        ("covered/new", node(text(""), 0o644)),
        ("link", Node { uid: 1, gid: 2, ..node(What::Symlink(b"../../outside".to_vec()), 0o777) }),
        ("dev", implicit),
        ("dev/tty", node(What::Char(device(5, 300)), 0o600)),
        ("dev/disk", node(What::Block(device(259, 70000)), 0o600)),
        ("dev/pipe", node(What::Fifo, 0o600)),
        ("gone-too", gone),
        ("early", Node { mtime: -5, ..node(text(""), 0o644) }),
        ("owner", Node { uid: 4_000_000_000, gid: 3_000_000_000, ..node(text(""), 0o644) }),
    ]);
    let layer = site.tree(&format!("{}/layerfs", layer_path(pushed.layers[0])));
    assert_same(&layer, &expected, "the layer");

    // The flat is the same without marks.
    expected.retain(|path, _| !path.ends_with(b"gone") && path != b"gone-too");
    expected.get_mut(&b"covered"[..]).unwrap().xattrs.clear();
    assert_flat(&site, pushed.config, &expected, "the flat");
    site.assert_sound();
}

#[test]
fn large_files_come_back_whole_in_chunks() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let mut big = noise(5, 20 << 20);
    big[3 << 20..9 << 20].fill(0);
    let pushed =
        Image::of(&[&[file("big", &big), hardlink("same", "big"), file("small", "s")], &[hardlink("other", "big")]])
            .push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    let tree = site.tree("");
    let flat = below(&tree, &flat_path(pushed.config));
    for name in ["big", "same", "other"] {
        assert!(content(&flat, name) == big, "{name} differs");
    }
    assert_eq!(flat[&b"big"[..]].links, 2);
    let chunks = site.stored_objects().iter().filter(|name| name.ends_with('P')).count();
    assert!(chunks > 1, "{chunks} chunks");
    site.assert_sound();
}
