//! Flats equal what unpacking the layers one after the other gives.

use std::collections::HashMap;

use publisher::report::Outcome::Added;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Kind, Member, Pushed, dir, file, hardlink, opaque, special, symlink, whiteout};
use scenarios::naive;
use scenarios::repository::{Site, assert_flat, assert_outcome, wish};
use scenarios::tree::{Tree, What};

use crate::content;

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
