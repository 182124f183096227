//! From a wish to a published tree.

mod algorithms;
mod bundles;
mod flats;
mod images;
mod layout;
mod options;
mod passes;
mod platforms;
mod podman;
mod rows;
mod schedule;
mod startup;
mod thin;

use std::collections::BTreeMap;

use scenarios::image_builder::{Image, MTIME, dir, file, whiteout};
use scenarios::tree::{Node, Tree, What};

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
