//! The merge against a model that applies one layer after the other, as a container runtime does.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::layer::StoreError;
use crate::tree::NodeKind;

type Rows = BTreeMap<TreePath, Node<u32>>;

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn merge(layers: &[Rows]) -> Rows {
    let sources = layers.iter().map(|layer| layer.clone().into_iter().map(Ok::<_, Infallible>)).collect();
    let rows: Vec<(TreePath, Node<u32>)> = Merge::new(sources).map(Result::unwrap).collect();
    assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0), "rows in tree order");
    rows.into_iter().collect()
}

/// The layers applied one after the other to a tree that can be changed.
fn model(layers: &[Rows]) -> Rows {
    let plain = NodeKind::Directory { opaque: false, implicit: false };
    let mut tree = Rows::from([(TreePath::root(), Node::new(plain.clone(), 0o755))]);
    let mut is_default = true;
    for (index, layer) in layers.iter().enumerate() {
        for (path, node) in layer {
            let mut node = Node { link_group: merged_group(index, node.link_group), ..node.clone() };
            let was_directory = tree.get(path).is_some_and(Node::is_directory);
            if !node.is_directory() || node.is_opaque() {
                tree.retain(|row, _| !row.is_below(path));
            }
            if node.is_whiteout() {
                tree.remove(path);
                continue;
            }
            let is_root = path.is_root();
            // the assumed root isn't listed by anyone
            let inherits = node.is_implicit() && !node.is_opaque() && was_directory && !(is_root && is_default);
            is_default &= !is_root;
            if node.is_directory() {
                node.kind = plain.clone();
            }
            if !inherits {
                tree.insert(path.clone(), node);
            }
        }
    }
    tree
}

/// A layer from arbitrary nodes: those whose parent can't be a directory are left out, missing parents are added.
fn layer(nodes: Vec<(TreePath, Node<u32>)>) -> Rows {
    let mut rows = Rows::new();
    for (path, node) in nodes.into_iter().collect::<Rows>() {
        let mut above = Vec::new();
        let mut parent = path.parent();
        while let Some(directory) = parent {
            parent = directory.parent();
            above.push(directory);
        }
        if above.iter().all(|directory| rows.get(directory).is_none_or(Node::is_directory)) {
            for directory in above {
                rows.entry(directory).or_insert_with(Node::implicit_directory);
            }
            rows.insert(path, node);
        }
    }
    rows
}

fn any_path() -> impl Strategy<Value = TreePath> {
    let name = prop_oneof![Just("a"), Just("b"), Just("a!"), Just("c"), Just("aa")];
    proptest::collection::vec(name, 0..4).prop_map(|names| path(&names.join("/")))
}

fn any_node() -> impl Strategy<Value = Node<u32>> {
    let kind = prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(opaque, implicit)| NodeKind::Directory { opaque, implicit }),
        4 => (0u32..1000).prop_map(|content| NodeKind::Regular { content, size: 1 }),
        1 => Just(NodeKind::Symlink { target: b"a".to_vec() }),
        2 => Just(NodeKind::Whiteout),
    ];
    (kind, 0u32..0o1000, 0u32..10, 0u64..3).prop_map(|(kind, mode, uid, link_group)| {
        let link_group = if matches!(kind, NodeKind::Regular { .. }) { link_group } else { 0 };
        Node { uid, link_group, ..Node::new(kind, mode) }
    })
}

fn any_layer() -> impl Strategy<Value = Rows> {
    proptest::collection::vec((any_path(), any_node()), 0..25).prop_map(|mut nodes| {
        nodes.retain(|(path, node)| !path.is_root() || node.is_directory());
        layer(nodes)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merges_as_a_runtime_applies(layers in proptest::collection::vec(any_layer(), 0..6)) {
        prop_assert_eq!(merge(&layers), model(&layers));
    }

    #[test]
    fn looks_up_what_it_merges(layers in proptest::collection::vec(any_layer(), 0..6), others in proptest::collection::vec(any_path(), 20)) {
        let merged = merge(&layers);
        let lookup = MergedLookup::new(layers.iter().map(|layer| Box::new(layer) as Box<dyn TreeLookup<u32> + '_>).collect());
        let known = layers.iter().flat_map(|layer| layer.keys().cloned());
        for path in known.chain(others) {
            prop_assert_eq!(lookup.get(&path).unwrap(), merged.get(&path).cloned(), "{}", path);
        }
    }
}

fn file(content: u32) -> Node<u32> {
    Node::new(NodeKind::Regular { content, size: 1 }, 0o644)
}

fn directory(mode: u32) -> Node<u32> {
    Node::new(NodeKind::Directory { opaque: false, implicit: false }, mode)
}

fn opaque() -> Node<u32> {
    Node::new(NodeKind::Directory { opaque: true, implicit: false }, 0o700)
}

#[test]
fn replaces_types_and_hides_what_was_below() {
    let base = as_layer([(path("x/y"), file(1)), (path("x"), directory(0o711)), (path("z"), file(2))]);
    for (what, top, expected) in [
        ("a whiteout", as_layer([(path("x"), Node::whiteout())]), &["/", "z"][..]),
        ("an opaque directory", as_layer([(path("x"), opaque())]), &["/", "x", "z"]),
        ("file over directory", as_layer([(path("x"), file(3))]), &["/", "x", "z"]),
        ("directory over file", as_layer([(path("z/q"), file(3))]), &["/", "x", "x/y", "z", "z/q"]),
        ("an unlisted parent", as_layer([(path("x/w"), file(3))]), &["/", "x", "x/w", "x/y", "z"]),
    ] {
        let merged = merge(&[base.clone(), top]);
        assert_eq!(merged.keys().map(TreePath::to_string).collect::<Vec<_>>(), expected, "{what}");
        assert!(merged.values().all(|node| !node.is_whiteout() && !node.is_opaque() && !node.is_implicit()), "{what}");
    }
    let merged = merge(&[base, as_layer([(path("x/w"), file(3))])]);
    assert_eq!(merged[&path("x")].mode, 0o711, "metadata from below");
}

#[test]
fn file_to_directory_to_link_replacement() {
    let layers = [
        as_layer([(path("a"), file(1))]),
        as_layer([(path("a/b"), file(2)), (path("a"), directory(0o700))]),
        as_layer([(path("a"), Node::new(NodeKind::Symlink { target: b"c".to_vec() }, 0o777))]),
    ];
    assert_eq!(merge(&layers[..2]).len(), 3);
    let merged = merge(&layers);
    assert_eq!(merged.len(), 2);
    assert!(matches!(merged[&path("a")].kind, NodeKind::Symlink { .. }));
}

#[test]
fn keeps_link_groups_of_layers_apart() {
    let linked = |content| Node { link_group: 5, ..file(content) };
    let layers = [
        as_layer([(path("a"), linked(1)), (path("b"), linked(1))]),
        as_layer([(path("b"), linked(2)), (path("c"), linked(2)), (path("d"), file(3))]),
    ];
    let merged = merge(&layers);
    let group = |at: &str| merged[&path(at)].link_group;
    assert_eq!(group("b"), group("c"));
    assert_ne!(group("a"), group("b"));
    assert_eq!(group("d"), 0);
}

#[test]
fn has_a_root_even_without_layers() {
    for layers in [&[][..], &[Rows::new()]] {
        let merged = merge(layers);
        assert_eq!(merged.len(), 1);
        assert_eq!(merged[&TreePath::root()].mode, 0o755);
    }
}

#[test]
fn stops_at_unreadable_and_unsorted_layers() {
    let row = |text: &str| (path(text), file(1));
    let mut merge = Merge::new(vec![vec![Ok(row("a")), Err("disk")].into_iter()]);
    assert!(merge.next().unwrap().is_ok());
    assert!(matches!(merge.next(), Some(Err(MergeError::Source { layer: 0, source: "disk" }))));
    assert!(merge.next().is_none());
    for second in ["a", "b"] {
        let rows = vec![Ok::<_, Infallible>(row("b")), Ok(row(second))];
        let found: Vec<_> = Merge::new(vec![Vec::new().into_iter(), rows.into_iter()]).collect();
        assert!(matches!(found.last(), Some(Err(MergeError::Order { layer: 1, .. }))), "{second}");
    }
}

#[test]
fn resolves_links_across_layers() {
    let link = |target: &str| Node::new(NodeKind::Symlink { target: target.as_bytes().to_vec() }, 0o777);
    let layers = [
        as_layer([(path("lib"), link("usr/lib")), (path("usr/lib/x"), link("/etc/x"))]),
        as_layer([(path("etc/x"), file(1))]),
    ];
    let lookup =
        MergedLookup::new(layers.iter().map(|layer| Box::new(layer) as Box<dyn TreeLookup<u32> + '_>).collect());
    let resolve = |at: &str, follow| lookup.resolve::<Failure>(&path(at), follow).unwrap();
    assert_eq!(resolve("lib/x", false), path("usr/lib/x"));
    assert_eq!(resolve("lib/x", true), path("etc/x"));
    assert_eq!(lookup.get(&path("lib/x")).unwrap(), None, "nothing is behind a link");
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Resolve(#[from] crate::resolve::ResolveError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
