//! From a wish to a published tree: the layout, the rows of layers, flats, and what a pass costs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use image::digest::{ChainId, LayerDigest};
use image::layout::StatusRecord;
use publisher::report::Outcome::{Added, Unchanged, Updated};
use registry::testing::TestRegistry;
use scenarios::image_builder::{
    Format, Image, Kind, Layer, MTIME, Member, Packing, Pushed, dir, file, hardlink, index_entry, media, noise, opaque,
    push_attestation, push_index, special, symlink, tar, whiteout,
};
use scenarios::naive::{self, device};
use scenarios::repository::{
    Site, assert_flat, assert_outcome, downloads, flat_path, layer_path, outcomes, public, wish,
};
use scenarios::tree::{Node, Tree, What, assert_same, below};
use serde_json::{Value, json};

fn content<'a>(tree: &'a Tree, path: &str) -> &'a [u8] {
    match &tree.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path}")).what {
        What::File(content) => content,
        other => panic!("{path} is {other:?}"),
    }
}

fn target(tree: &Tree, path: &str) -> String {
    match &tree.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path}")).what {
        What::Symlink(target) => String::from_utf8(target.clone()).unwrap(),
        other => panic!("{path} is {other:?}"),
    }
}

fn node(what: What, mode: u32) -> Node {
    Node { what, mode, uid: 0, gid: 0, mtime: MTIME, links: 1, xattrs: BTreeMap::new() }
}

fn tree_of(rows: impl IntoIterator<Item = (&'static str, Node)>) -> Tree {
    rows.into_iter().map(|(path, node)| (path.as_bytes().to_vec(), node)).collect()
}

/// A small system of two layers: the upper one deletes, replaces and adds.
fn two_layers() -> Image {
    Image::of(&[
        &[
            dir("bin"),
            file("bin/sh", "shell").mode(0o755),
            dir("etc"),
            file("etc/old", "old"),
            file("etc/kept", "kept"),
        ],
        &[dir("etc"), whiteout("etc/old"), file("etc/kept", "changed"), file("new", "new").owner(1000, 100)],
    ])
}

#[test]
fn lays_out_everything_as_documented() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = two_layers().push(&registry, "lab/x", "1");
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Added);
    assert_eq!((report.revision_before, report.revision), (Some(0), Some(1)), "one publish");
    site.assert_sound();
    let published = site.published("").unwrap();

    let host = registry.address().to_string();
    let records = format!(".metadata/{host}/lab/x:1");
    let config = pushed.config.hex();
    let chains = ChainId::stack(&pushed.diff_ids);
    let bucketed = |top: &str, hex: &str| format!("{top}/{}/{hex}", &hex[..2]);
    let index = |kind: &str, hex: &str| bucketed(&format!(".index/{kind}"), hex);
    let layers: Vec<String> = pushed.layers.iter().map(|l| bucketed(".layers", &l.hex())).collect();
    let flat = bucketed(".flat", &config);

    // Every path outside of the trees of layers and flat.
    let mut expected: BTreeSet<String> = BTreeSet::new();
    let mut expect = |path: &str| {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        expected.extend(ends.map(|end| path[..end].to_owned()));
    };
    expect(&format!("{host}/lab/x:1"));
    expect(&flat);
    for layer in &layers {
        expect(&format!("{layer}/layerfs"));
        expect(&format!("{layer}/.metadata/layers.json"));
        expect(&format!("{layer}/.metadata/format.json"));
    }
    for record in ["manifest.json", "image-manifest.json", "config.json", "status.json"] {
        expect(&format!("{records}/{record}"));
    }
    for (diff_id, chain) in pushed.diff_ids.iter().zip(&chains) {
        expect(&index("diff-id", &diff_id.hex()));
        expect(&index("chain-id", &chain.hex()));
    }
    expect(&index("config", &config));
    expect(&index("manifest", &pushed.manifest.hex()));
    expected.insert(String::new());
    let is_inside = |path: &str| path.contains("/layerfs/") || path.starts_with(&format!("{flat}/"));
    let found: BTreeSet<String> = published
        .tree
        .keys()
        .map(|path| String::from_utf8(path.clone()).unwrap())
        .filter(|path| !is_inside(path))
        .collect();
    assert_eq!(found, expected);

    // Every nested catalog.
    let mut catalogs: BTreeSet<String> =
        [host.clone(), ".metadata".into(), format!(".metadata/{host}"), ".index".into()].into();
    catalogs.extend([".flat".to_owned(), flat[..8].to_owned(), flat.clone(), ".layers".to_owned()]);
    for layer in &layers {
        catalogs.extend([layer[..10].to_owned(), layer.clone()]);
    }
    for entry in expected.iter().filter(|p| p.starts_with(".index/") && p.matches('/').count() == 2) {
        catalogs.insert(entry.clone());
    }
    assert_eq!(published.catalogs, catalogs);

    // Links, all of them relative.
    let tree = &published.tree;
    assert_eq!(target(tree, &format!("{host}/lab/x:1")), format!("../../{flat}"));
    for ((diff_id, chain), layer) in pushed.diff_ids.iter().zip(&chains).zip(&layers) {
        let to = format!("../../../{layer}");
        assert_eq!(target(tree, &index("diff-id", &diff_id.hex())), to);
        assert_eq!(target(tree, &index("chain-id", &chain.hex())), to);
    }

    // Records.
    assert_eq!(content(tree, &index("config", &config)), pushed.config_bytes);
    assert_eq!(content(tree, &index("manifest", &pushed.manifest.hex())), pushed.manifest_bytes);
    assert_eq!(content(tree, &format!("{records}/config.json")), pushed.config_bytes);
    assert_eq!(content(tree, &format!("{records}/image-manifest.json")), pushed.manifest_bytes);
    let json = |path: &str| serde_json::from_slice::<Value>(content(tree, path)).unwrap();
    let blob = |media_type: &str, size: u64, digest: &dyn std::fmt::Display| json!({"MediaType": media_type, "Size": size, "Digest": digest.to_string()});
    let packed = format!("{}+gzip", media::OCI_LAYER);
    let all: Vec<Value> = pushed.layers.iter().zip(&pushed.sizes).map(|(l, size)| blob(&packed, *size, l)).collect();
    assert_eq!(
        json(&format!("{records}/manifest.json")),
        json!({
            "SchemaVersion": 2,
            "MediaType": media::OCI_MANIFEST,
            "Config": blob(media::OCI_CONFIG, pushed.config_bytes.len() as u64, &pushed.config),
            "Layers": all,
        })
    );
    let status = json(&format!("{records}/status.json"));
    assert_eq!(status["schema"], 1);
    assert_eq!(status["image"], format!("http://{host}/lab/x:1"));
    assert_eq!(status["digest"], pushed.manifest.to_string());
    assert_eq!(status["config"], pushed.config.to_string());
    assert_eq!(status["platform"], "linux/amd64");
    assert_eq!(status["revision"], 1);
    assert!(status["published"].as_str().unwrap().ends_with('Z') && status["generator"].is_string(), "{status}");
    for (place, layer) in layers.iter().enumerate() {
        let records = json(&format!("{layer}/.metadata/layers.json"));
        assert_eq!(records.as_array().map(Vec::len), Some(1), "an array of one object");
        let record = &records[0];
        assert_eq!(record["id"], pushed.diff_ids[place].hex());
        assert_eq!(record["compressed-diff-digest"], pushed.layers[place].to_string());
        assert_eq!(record["compressed-size"], pushed.sizes[place]);
        assert_eq!(record["diff-digest"], pushed.diff_ids[place].to_string());
        let format = json(&format!("{layer}/.metadata/format.json"));
        assert_eq!(
            (&format["schema"], &format["whiteouts"], &format["xattrs"]),
            (&json!(1), &json!("overlay"), &json!(true))
        );
        assert_eq!(format["diff_id"], pushed.diff_ids[place].to_string());
        assert_eq!((&format["entries"], &format["lost"]), (&json!([5, 4][place]), &json!([])));
        assert_eq!(format["size"], record["diff-size"]);
    }
}

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

/// Stacks whose flat a person can tell; the naive model has to agree with both.
fn stacks() -> Vec<(&'static str, Vec<Vec<Member>>)> {
    let base = || {
        vec![
            dir("d").mode(0o700).owner(3, 4),
            file("d/a", "a"),
            file("d/b", "b"),
            dir("d/sub").mode(0o750),
            file("d/sub/deep", "deep"),
            file("f", "f"),
            symlink("l", "d"),
            symlink("abs", "/d/sub"),
        ]
    };
    let over = |upper: Vec<Member>| vec![base(), upper];
    vec![
        ("a file over a file", over(vec![file("f", "new").mode(0o600)])),
        ("a file over a directory", over(vec![file("d", "now a file")])),
        ("a directory over a file", over(vec![dir("f"), file("f/x", "x")])),
        ("a directory over a link", over(vec![dir("l"), file("l/x", "x")])),
        ("a link over a directory", over(vec![symlink("d", "f")])),
        (
            "file, directory and link by turns",
            vec![
                vec![file("x", "1")],
                vec![dir("x"), file("x/y", "2")],
                vec![symlink("x", "y")],
                vec![dir("x"), file("x/z", "3")],
            ],
        ),
        ("metadata of a directory", over(vec![dir("d").mode(0o711).owner(9, 9).mtime(77)])),
        ("a parent that is not listed", over(vec![file("d/sub/more", "m")])),
        ("through a link", over(vec![file("l/x", "by the link"), file("abs/y", "by the other")])),
        ("through a link of the same layer", over(vec![symlink("m", "d/sub"), file("m/x", "x")])),
        (
            "through a link that leads out",
            vec![vec![dir("usr/bin"), symlink("bin", "../../../usr/bin")], vec![file("bin/tool", "tool").mode(0o755)]],
        ),
        ("through a link that leads nowhere yet", vec![vec![symlink("run", "var/run")], vec![file("run/pid", "1")]]),
        ("a whiteout of a file", over(vec![whiteout("d/a")])),
        ("a whiteout of a directory", over(vec![whiteout("d")])),
        ("a whiteout of nothing", over(vec![whiteout("none")])),
        (
            "whiteout and recreation",
            over(vec![whiteout("f"), file("f", "again"), whiteout("d"), dir("d"), file("d/c", "c")]),
        ),
        (
            "recreation and whiteout",
            over(vec![file("f", "again"), whiteout("f"), dir("d"), file("d/c", "c"), whiteout("d")]),
        ),
        ("deleted and back", vec![base(), vec![whiteout("d")], vec![dir("d"), file("d/a", "back")]]),
        ("opaque before its content", over(vec![dir("d"), opaque("d"), file("d/c", "c")])),
        ("opaque after its content", over(vec![dir("d"), file("d/c", "c"), opaque("d")])),
        (
            "opaque in the middle of three",
            vec![base(), vec![dir("d"), opaque("d"), file("d/c", "c")], vec![file("d/e", "e")]],
        ),
        ("an opaque root", over(vec![dir(""), file(".wh..wh..opq", ""), file("alone", "alone")])),
        ("a file and then a directory over a directory", over(vec![file("d", "file"), dir("d"), file("d/new", "n")])),
        ("the last of duplicates", over(vec![file("f", "1"), file("f", "2").mode(0o600), file("f", "3")])),
        ("duplicates of two kinds", over(vec![file("n", "file"), dir("n"), file("n/x", "x"), symlink("n", "f")])),
        (
            "hard links of one layer",
            vec![vec![file("a", "same"), hardlink("b", "a"), dir("e"), hardlink("e/c", "a"), hardlink("e/d", "b")]],
        ),
        (
            "a hard link to a lower layer",
            over(vec![hardlink("d/again", "d/a"), hardlink("top", "f"), hardlink("top2", "f")]),
        ),
        ("renamed by a hard link", over(vec![hardlink("d/renamed", "d/a"), whiteout("d/a")])),
        (
            "one of two names deleted",
            vec![vec![file("a", "same"), hardlink("b", "a"), hardlink("c", "a")], vec![whiteout("a")]],
        ),
        ("one of two names changed", vec![vec![file("a", "same"), hardlink("b", "a")], vec![file("b", "else")]]),
        ("a hard link to a link", over(vec![hardlink("l2", "l")])),
        ("a device over a directory", over(vec![special("d", Kind::Char(1, 3))])),
        ("deep without parents", vec![vec![file("p/q/r/s", "s")]]),
        ("names with dots and slashes", vec![vec![dir("./p/"), file("./p//x", "x"), file("/p/./y", "y")]]),
        ("names that are no text", vec![vec![file(b"\xff\xfe", "bytes"), file("line\nfeed", "x"), file("-rf *", "y")]]),
        ("only a root", vec![vec![dir("").mode(0o700)]]),
        ("nothing at all", vec![vec![]]),
    ]
}

#[test]
fn flats_follow_the_rules_and_equal_what_unpacking_gives() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let stacks = stacks();
    let push = |(number, (_, layers)): (usize, &(&str, Vec<Vec<Member>>))| {
        let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
        Image::of(&layers).push(&registry, "lab/stack", &number.to_string())
    };
    let pushed: Vec<Pushed> = stacks.iter().enumerate().map(push).collect();
    let wishes: Vec<String> = (0..stacks.len()).map(|n| wish(&registry, &format!("lab/stack:{n}"))).collect();
    for ((name, _), outcome) in stacks.iter().zip(&site.convert(&wishes).wishes) {
        assert_eq!(outcome.outcome, Added, "{name}: {:?}", outcome.error);
    }
    for ((name, layers), pushed) in stacks.iter().zip(&pushed) {
        let expected = naive::unpack(layers.iter().map(Vec::as_slice));
        assert_flat(&site, pushed.config, &expected, name);
    }
    site.assert_sound();

    // The oracle is looked at as well: some of what a person would say.
    let by_name: HashMap<&str, Tree> =
        stacks.iter().map(|(name, l)| (*name, naive::unpack(l.iter().map(Vec::as_slice)))).collect();
    let has = |stack: &str, path: &str| by_name[stack].contains_key(path.as_bytes());
    assert_eq!(content(&by_name["through a link"], "d/x"), b"by the link");
    assert_eq!(content(&by_name["through a link"], "d/sub/y"), b"by the other");
    assert_eq!(content(&by_name["through a link that leads out"], "usr/bin/tool"), b"tool");
    assert!(has("whiteout and recreation", "d/c") && !has("whiteout and recreation", "d/a"));
    assert!(has("recreation and whiteout", "d/c") && !has("recreation and whiteout", "d/sub"));
    assert!(has("opaque after its content", "d/c") && !has("opaque after its content", "d/a"));
    assert_eq!(by_name["a parent that is not listed"][&b"d/sub"[..]].mode, 0o750);
    assert_eq!(by_name["one of two names deleted"][&b"b"[..]].links, 2);
    assert_eq!(content(&by_name["renamed by a hard link"], "d/renamed"), b"a");
    assert_eq!(content(&by_name["file, directory and link by turns"], "x/z"), b"3");
}

/// One blob is another tree on another base where it has links into the layers below, or names that lead through
/// their links. The directory of the layer stays that of the first image; no flat shows what belongs to another image.
#[test]
fn a_layer_above_other_layers_is_the_tree_that_its_blob_makes_there() {
    let bases: [Vec<Member>; 3] = [
        vec![dir("etc"), file("etc/secret", "of the first"), dir("usr"), dir("usr/bin"), symlink("bin", "usr/bin")],
        vec![dir("etc"), file("etc/secret", "of the second"), dir("bin"), file("bin/other", "o")],
        vec![dir("etc"), file("etc/secret", "of the third"), dir("opt"), symlink("bin", "opt")],
    ];
    let upper = [hardlink("copy", "etc/secret"), file("bin/tool", "tool")];
    let moved_only = [file("bin/tool", "tool")];
    for (order, upper) in [([0, 1, 2], &upper[..]), ([1, 2, 0], &upper[..]), ([1, 0, 2], &moved_only[..])] {
        for in_one_pass in [true, false] {
            let (registry, site) = (TestRegistry::spawn(), Site::new());
            let mut images = Vec::new();
            for place in order {
                let pushed = Image::of(&[&bases[place], upper]).push(&registry, "lab/on", &place.to_string());
                images.push((place, pushed));
            }
            let wishes: Vec<String> = order.iter().map(|n| wish(&registry, &format!("lab/on:{n}"))).collect();
            let passes: Vec<&[String]> = if in_one_pass { vec![&wishes[..]] } else { wishes.chunks(1).collect() };
            for wishes in passes {
                for outcome in &site.convert(wishes).wishes {
                    assert_outcome(outcome, Added);
                }
            }
            for (place, pushed) in &images {
                let expected = naive::unpack([&bases[*place][..], upper]);
                assert_flat(&site, pushed.config, &expected, &format!("base {place} in {order:?}"));
            }
            site.assert_sound();
        }
    }
}

#[test]
fn random_stacks_equal_what_unpacking_gives() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let stacks: Vec<Vec<Vec<Member>>> = (0..40).map(random_stack).collect();
    let mut images = Vec::new();
    for (seed, layers) in stacks.iter().enumerate() {
        let layers: Vec<&[Member]> = layers.iter().map(Vec::as_slice).collect();
        images.push(Image::of(&layers).push(&registry, "lab/random", &seed.to_string()));
    }
    let wishes: Vec<String> = (0..stacks.len()).map(|n| wish(&registry, &format!("lab/random:{n}"))).collect();
    for outcome in &site.convert(&wishes).wishes {
        assert_outcome(outcome, Added);
    }
    for (seed, (layers, pushed)) in stacks.iter().zip(&images).enumerate() {
        let expected = naive::unpack(layers.iter().map(Vec::as_slice));
        assert_flat(&site, pushed.config, &expected, &format!("seed {seed}: {layers:#?}"));
    }
    site.assert_sound();
}

/// Layers over a handful of names, so that they meet often. Parents that are links or files are listed anew as
/// directories, but not if the same layer brought them: no archive says file and directory of one name.
fn random_stack(seed: u64) -> Vec<Vec<Member>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut state = naive::Directory::default();
    let mut layers = Vec::new();
    for _ in 0..random.usize(2..5) {
        state.begin_layer();
        let mut copies = HashMap::new();
        let mut members: Vec<Member> = Vec::new();
        for _ in 0..random.usize(1..9) {
            let path: Vec<&str> = (0..random.usize(1..4)).map(|_| *random.choice(&["a", "b", "c"]).unwrap()).collect();
            let mut add = |state: &mut naive::Directory, member: Member| {
                state.add(&member, &mut copies);
                members.push(member);
            };
            let is_fixed =
                |path: &str| state.is_new(path) && state.get(path).is_some_and(|n| n.what != What::Directory);
            if (1..=path.len()).any(|depth| is_fixed(&path[..depth].join("/"))) {
                continue;
            }
            for depth in 1..path.len() {
                let parent = path[..depth].join("/");
                if state.get(&parent).is_some_and(|n| n.what != What::Directory) {
                    add(&mut state, dir(&parent).mode(0o701));
                }
            }
            let path = path.join("/");
            let number = random.u32(..) % 1000;
            let member = match random.u32(0..14) {
                0..5 => file(&path, format!("content {number}")).mode(0o600 + number % 0o70),
                5..8 => dir(&path).mode(0o700 + number % 0o70).owner(u64::from(number), 1),
                8 => symlink(&path, format!("target {number}")),
                9..11 => whiteout(&path),
                11 => {
                    if state.get(&path).is_none_or(|n| n.what != What::Directory) {
                        add(&mut state, dir(&path));
                    } else {
                        add(&mut state, dir(&path).mode(0o770));
                    }
                    opaque(&path)
                }
                _ => match random.choice(state.leaves()) {
                    Some(leaf) if !leaf.starts_with(&format!("{path}/")) => hardlink(&path, leaf),
                    _ => continue,
                },
            };
            add(&mut state, member);
        }
        layers.push(members);
    }
    layers
}

#[test]
fn a_second_run_publishes_nothing_and_downloads_nothing() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    two_layers().push(&registry, "lab/x", "1");
    let amd = two_layers().push_untagged(&registry, "lab/y");
    push_index(&registry, "lab/y", "1", Format::Oci, &[index_entry(&amd, media::OCI_MANIFEST, "linux/amd64")]);
    let wishes = &[wish(&registry, "lab/x:1"), wish(&registry, "lab/y:1")];
    assert_eq!(outcomes(&site.convert(wishes)), [Added, Added]);
    let site = site.reopened();
    let before = (site.revision(), site.stored_objects());
    registry.forget_requests();
    let report = site.convert(wishes);
    assert_eq!(outcomes(&report), [Unchanged, Unchanged]);
    assert_eq!((report.revision_before, report.revision), (Some(before.0), Some(before.0)));
    assert_eq!(downloads(&registry), (0, 0), "no GET of manifests or blobs");
    assert_eq!(registry.requests().len(), 2, "one HEAD an image");
    assert_eq!((site.revision(), site.stored_objects()), before, "nothing was stored");
}

#[test]
fn a_moved_tag_moves_the_link_and_leaves_the_old_flat() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = Image::of(&[&[file("version", "1"), file("big", noise(1, 5000))]]).push(&registry, "lab/x", "1");
    let wishes = [wish(&registry, "lab/x:1")];
    site.convert(&wishes);
    let new = Image::of(&[&[file("version", "2")]]).push(&registry, "lab/x", "1");
    let report = site.convert(&wishes);
    assert_eq!((outcomes(&report), report.revision), (vec![Updated], Some(2)));
    let tree = site.tree("");
    let link = public(&registry, "lab/x:1");
    assert_eq!(target(&tree, &link), format!("../../{}", flat_path(new.config)));
    assert_eq!(content(&tree, &format!("{}/version", flat_path(new.config))), b"2");
    assert_eq!(content(&tree, &format!("{}/version", flat_path(old.config))), b"1", "jobs may still run from it");
    let status = StatusRecord::parse(content(&tree, &format!(".metadata/{link}/status.json"))).unwrap();
    assert_eq!((status.digest, status.config, status.revision), (new.manifest, new.config, 2));
    assert_eq!(content(&tree, &format!(".metadata/{link}/config.json")), new.config_bytes);

    // And back: everything is there, so nothing is fetched but the tag.
    registry.put_manifest("lab/x", "1", media::OCI_MANIFEST, old.manifest_bytes.clone());
    registry.forget_requests();
    let report = site.convert(&wishes);
    assert_eq!((outcomes(&report), report.revision), (vec![Updated], Some(3)));
    assert_eq!(downloads(&registry), (0, 0));
    assert_eq!(target(&site.tree(""), &link), format!("../../{}", flat_path(old.config)));
    site.assert_sound();
}

#[test]
fn layers_that_images_share_are_fetched_once() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let shared = || Layer::new(&[file("base", noise(2, 300_000))], Packing::Gzip);
    let own = |n: u64| Layer::new(&[file("own", noise(n, 1000))], Packing::Gzip);
    let image = |n: u64| Image::new([shared(), own(n)]);
    for n in 0..4 {
        image(n + 10).push(&registry, "lab/x", &n.to_string());
    }
    let name = |n: u64| wish(&registry, &format!("lab/x:{n}"));
    let path = format!("/blobs/{}", shared().digest);
    // Three in one pass, the fourth in a later one.
    let report = site.convert(&[name(0), name(1), name(2)]);
    assert_eq!(outcomes(&report), [Added; 3]);
    assert_eq!(registry.count("GET", &path), 1);
    assert_eq!(registry.count("GET", "/blobs/"), 1 + 3 + 3, "shared layer, own layers, configs");
    assert_eq!(report.wishes.iter().map(|w| w.layers.fetched).sum::<u64>(), 4);
    let report = site.convert(&[name(3)]);
    assert_eq!((report.wishes[0].layers.fetched, report.wishes[0].layers.known), (1, 1));
    assert_eq!(registry.count("GET", &path), 1);
    site.assert_sound();
}

#[test]
fn a_repeated_empty_layer_is_one_layer() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let empty = || Layer::of_tar(&tar(&[]), Packing::Gzip);
    let system = Layer::new(&[dir("bin"), file("bin/sh", "sh")], Packing::Gzip);
    let image = Image::new([system, empty(), empty(), Layer::new(&[whiteout("bin/sh")], Packing::Gzip), empty()]);
    let pushed = image.push(&registry, "lab/x", "1");
    let report = site.convert(&[wish(&registry, "lab/x:1")]);
    assert_outcome(&report.wishes[0], Added);
    assert_eq!(registry.count("GET", &format!("/blobs/{}", empty().digest)), 1);
    let tree = site.tree("");
    for chain in ChainId::stack(&pushed.diff_ids) {
        let hex = chain.hex();
        assert!(tree.contains_key(format!(".index/chain-id/{}/{hex}", &hex[..2]).as_bytes()), "every stack is indexed");
    }
    let flat = below(&tree, &flat_path(pushed.config));
    assert!(flat.contains_key(&b"bin"[..]) && !flat.contains_key(&b"bin/sh"[..]));
    site.assert_sound();
}

#[test]
fn chooses_our_platform_from_an_index_and_overlooks_attestations() {
    for format in [Format::Oci, Format::Docker] {
        let (registry, site) = (TestRegistry::spawn(), Site::new());
        let of = |architecture: &str| {
            let image = Image::of(&[&[file("architecture", architecture)]]).architecture(architecture).format(format);
            image.push_untagged(&registry, "lab/x")
        };
        let media_type = if format == Format::Oci { media::OCI_MANIFEST } else { media::DOCKER_MANIFEST };
        let (arm, amd) = (of("arm64"), of("amd64"));
        let entries = [
            push_attestation(&registry, "lab/x", &arm),
            index_entry(&arm, media_type, "linux/arm64/v8"),
            index_entry(&amd, media_type, "linux/amd64"),
            push_attestation(&registry, "lab/x", &amd),
        ];
        let (index, bytes) = push_index(&registry, "lab/x", "1", format, &entries);
        let report = site.convert(&[wish(&registry, "lab/x:1")]);
        assert_outcome(&report.wishes[0], Added);
        let tree = site.tree("");
        let link = public(&registry, "lab/x:1");
        assert_eq!(target(&tree, &link), format!("../../{}", flat_path(amd.config)));
        assert_eq!(content(&tree, &format!("{}/architecture", flat_path(amd.config))), b"amd64");
        let hex = index.hex();
        assert_eq!(content(&tree, &format!(".index/manifest/{}/{hex}", &hex[..2])), bytes);
        assert_eq!(content(&tree, &format!(".metadata/{link}/image-manifest.json")), amd.manifest_bytes);
        assert!(!tree.contains_key(flat_path(arm.config).as_bytes()), "one platform an image");
        assert_eq!(registry.count("GET", &arm.layers[0].to_string()), 0, "nothing of other platforms is fetched");
        site.assert_sound();
    }
}

#[test]
fn images_that_are_ready_together_are_published_together() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let layer = Layer::new(&[file("f", "f")], Packing::Gzip);
    for n in 0..8 {
        let mut image = Image::new([layer.clone()]);
        image.config["config"]["Labels"] = json!({"n": n.to_string()});
        image.push(&registry, "lab/x", &n.to_string());
    }
    let report = site.convert(&(0..8).map(|n| wish(&registry, &format!("lab/x:{n}"))).collect::<Vec<_>>());
    assert_eq!(outcomes(&report), [Added; 8]);
    assert_eq!(report.revision, Some(1), "one publish for all");
    site.assert_sound();
}

#[test]
fn wildcards_publish_the_tags_that_match() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    registry.page_tags(2);
    for (tag, text) in [("1.0", "a"), ("1.1", "a"), ("1.1-rc", "b"), ("2.0", "c"), ("latest", "c")] {
        Image::of(&[&[file("f", text)]]).push(&registry, "lab/x", tag);
    }
    let wishes = [wish(&registry, "lab/x:1.*"), wish(&registry, "lab/x:*rc")];
    let report = site.convert(&wishes[..1]);
    let images: Vec<&str> = report.wishes.iter().filter_map(|w| w.image.as_deref()).collect();
    assert_eq!(images, ["1.0", "1.1", "1.1-rc"].map(|tag| wish(&registry, &format!("lab/x:{tag}"))));
    let tree = site.tree("");
    let links = |tree: &Tree| {
        let top = format!("{}/lab/", registry.address());
        tree.keys().filter(|p| p.starts_with(top.as_bytes())).count()
    };
    assert_eq!(links(&tree), 3);
    assert_eq!(
        tree.keys().filter(|p| p.starts_with(b".flat/") && p.len() == 73).count(),
        2,
        "equal images share a flat"
    );
    assert_eq!(outcomes(&site.convert(&wishes)), [Unchanged; 4]);
    site.assert_sound();
}

#[test]
fn digests_name_images_with_and_without_a_tag() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = Image::of(&[&[file("f", "old")]]).push(&registry, "lab/x", "1");
    let new = Image::of(&[&[file("f", "new")]]).push(&registry, "lab/x", "1");
    let wishes = [
        wish(&registry, &format!("lab/x@{}", old.manifest)),
        wish(&registry, &format!("lab/x:pinned@{}", old.manifest)),
        wish(&registry, "lab/x:1"),
    ];
    assert_eq!(outcomes(&site.convert(&wishes)), [Added; 3]);
    let tree = site.tree("");
    let to = |name: &str| target(&tree, &public(&registry, name));
    let flat = |pushed: &Pushed| format!("../../{}", flat_path(pushed.config));
    assert_eq!(to(&format!("lab/x:{}", old.manifest)), flat(&old), "NAME:sha256:<hex>");
    assert_eq!(to("lab/x:pinned"), flat(&old));
    assert_eq!(to("lab/x:1"), flat(&new));
    registry.forget_requests();
    assert_eq!(outcomes(&site.convert(&wishes[..2])), [Unchanged; 2]);
    assert!(registry.requests().is_empty(), "a digest needs no question");
    site.assert_sound();
}

#[test]
fn names_of_the_operators_choice_replace_those_of_the_registry() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&[file("f", "f")]]).push(&registry, "lab/x", "1");
    let report = site.convert_as(&[(&wish(&registry, "lab/x:1"), Some("tools/editor:3"))]);
    assert_outcome(&report.wishes[0], Added);
    let tree = site.tree("");
    assert_eq!(target(&tree, "tools/editor:3"), format!("../{}", flat_path(pushed.config)));
    assert!(tree.contains_key(&b".metadata/tools/editor:3/status.json"[..]));
    assert!(!tree.contains_key(registry.address().to_string().as_bytes()));
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

#[test]
fn files_that_are_known_are_not_stored_again() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let files = |prefix: &str, packing| {
        let files: Vec<Member> = (0..50).map(|n| file(format!("{prefix}{n}"), noise(n, 3000))).collect();
        Layer::new(&[files, vec![file(format!("{prefix}big"), noise(99, 12 << 20))]].concat(), packing)
    };
    Image::new([files("a", Packing::Gzip)]).push(&registry, "lab/x", "1");
    Image::new([files("b", Packing::Zstd)]).push(&registry, "lab/x", "2");
    site.convert(&[wish(&registry, "lab/x:1")]);
    let contents = |site: &Site| {
        // Catalogs, history, certificate and meta info have their letters; files have none, chunks have P.
        let all = site.stored_objects();
        all.into_iter().filter(|n| !n.ends_with(['C', 'H', 'X', 'M'])).collect::<BTreeSet<_>>()
    };
    let before = contents(&site);
    let site = site.reopened();
    let report = site.convert(&[wish(&registry, "lab/x:2")]);
    assert_outcome(&report.wishes[0], Added);
    let bytes = report.wishes[0].bytes;
    assert_eq!((bytes.stored, bytes.deduplicated), (0, 50 * 3000 + (12 << 20)));
    let new: Vec<_> = contents(&site).difference(&before).cloned().collect();
    // layers.json, format.json, and the records of the image: manifest, raw manifest, config, status.
    assert_eq!(new.len(), 6, "{new:?}");
    site.assert_sound();
}

#[test]
fn every_packing_and_format_gives_the_same_image() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let members = [dir("d"), file("d/f", "content"), symlink("l", "d/f")];
    let mut wishes = Vec::new();
    let mut pushed = Vec::new();
    for format in [Format::Oci, Format::Docker] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let tag = format!("{format:?}-{packing:?}");
            let mut image = Image::new([Layer::new(&members, packing)]).format(format);
            image.config["config"]["Labels"] = json!({"tag": tag});
            pushed.push(image.push(&registry, "lab/x", &tag));
            wishes.push(wish(&registry, &format!("lab/x:{tag}")));
        }
    }
    // The media type says gzip, the bytes are zstd.
    let lying = Layer { media_type: Some(format!("{}+gzip", media::OCI_LAYER)), ..Layer::new(&members, Packing::Zstd) };
    pushed.push(Image::new([lying]).push(&registry, "lab/x", "lying"));
    wishes.push(wish(&registry, "lab/x:lying"));
    for outcome in &site.convert(&wishes).wishes {
        assert_outcome(outcome, Added);
    }
    let expected = naive::unpack([&members[..]]);
    for (pushed, wish) in pushed.iter().zip(&wishes) {
        assert_flat(&site, pushed.config, &expected, wish);
    }
    site.assert_sound();
}

#[test]
fn foreign_layers_are_left_out() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let foreign = Layer {
        media_type: Some("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()),
        ..Layer::new(&[file("windows", "base")], Packing::Gzip)
    };
    let ours = Layer::new(&[file("ours", "x")], Packing::Gzip);
    let pushed = Image::new([foreign.clone(), ours]).format(Format::Docker).push(&registry, "lab/x", "1");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:1")]).wishes[0], Added);
    assert_eq!(registry.count("GET", &foreign.digest.to_string()), 0);
    let expected = naive::unpack([&[file("ours", "x")][..]]);
    assert_flat(&site, pushed.config, &expected, "without the foreign layer");
    site.assert_sound();
}

#[test]
fn directories_of_a_thousand_tags_get_a_catalog_of_their_own() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = Image::of(&[&[file("f", "f")]]).push(&registry, "lab/x", "t0");
    for n in 1..=1000 {
        registry.put_manifest("lab/x", &format!("t{n}"), media::OCI_MANIFEST, pushed.manifest_bytes.clone());
    }
    let wishes: Vec<String> = (0..1000).map(|n| wish(&registry, &format!("lab/x:t{n}"))).collect();
    let catalog = |site: &Site, top: &str| site.published(top).unwrap().catalogs.contains("lab");
    let (links, records) = (registry.address().to_string(), format!(".metadata/{}", registry.address()));
    assert!(site.convert(&wishes).wishes.iter().all(|w| w.outcome == Added));
    assert!(!catalog(&site, &links) && !catalog(&site, &records), "a thousand is not more than a thousand");
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:t1000")]).wishes[0], Added);
    assert!(catalog(&site, &links) && catalog(&site, &records));
    let tree = site.tree("");
    for n in 0..=1000 {
        let link = public(&registry, &format!("lab/x:t{n}"));
        assert_eq!(target(&tree, &link), format!("../../{}", flat_path(pushed.config)));
        assert!(tree.contains_key(format!(".metadata/{link}/status.json").as_bytes()));
    }
    site.assert_sound();
}

#[test]
fn the_first_writer_of_an_index_entry_stays() {
    // Two blobs, one content: the first writer of an index entry stays.
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let members = [file("f", "f")];
    let (gzip, zstd) = (Layer::new(&members, Packing::Gzip), Layer::new(&members, Packing::Zstd));
    assert_eq!(gzip.diff_id, zstd.diff_id);
    let first: LayerDigest = gzip.digest;
    Image::new([gzip]).push(&registry, "lab/x", "1");
    Image::new([zstd]).push(&registry, "lab/x", "2");
    site.convert(&[wish(&registry, "lab/x:1")]);
    let diff_id = Layer::new(&members, Packing::Plain).diff_id.hex();
    let entry = format!(".index/diff-id/{}/{diff_id}", &diff_id[..2]);
    assert_eq!(target(&site.tree(""), &entry), format!("../../../{}", layer_path(first)));
    assert_outcome(&site.convert(&[wish(&registry, "lab/x:2")]).wishes[0], Added);
    assert_eq!(target(&site.tree(""), &entry), format!("../../../{}", layer_path(first)));
    site.assert_sound();
}
