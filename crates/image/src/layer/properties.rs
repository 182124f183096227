//! What holds for every archive, sane or hostile.

use proptest::prelude::*;

use super::*;
use crate::rootfs::{MergedLookup, TreeLookup};

fn entry(path: &str, kind: TarKind) -> TarEntry {
    TarEntry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_ns: 0,
        xattrs: Vec::new(),
    }
}

fn any_name() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 1 => Just("."), 1 => Just("")];
    proptest::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn any_hostile_name() -> impl Strategy<Value = String> {
    let odd = prop_oneof![
        Just(".wh.a"),
        Just(".wh..wh..opq"),
        Just(".wh..wh.plnk"),
        Just(".cvmfscatalog"),
        Just(".wh."),
        Just("..")
    ];
    prop_oneof![8 => any_name(), 2 => (any_name(), odd).prop_map(|(name, odd)| format!("{name}/{odd}"))]
}

fn any_entry() -> impl Strategy<Value = TarEntry> {
    let kind = prop_oneof![
        3 => Just(TarKind::Directory),
        4 => Just(TarKind::Regular { size: 0 }),
        2 => any_hostile_name().prop_map(|target| TarKind::HardLink { target: target.into_bytes() }),
        3 => prop_oneof![any_hostile_name(), Just("/b/c".to_owned()), Just("../../a".to_owned())]
            .prop_map(|target| TarKind::Symlink { target: target.into_bytes() }),
        1 => Just(TarKind::CharDevice { major: 0, minor: 0 }),
    ];
    (any_hostile_name(), kind).prop_map(|(name, kind)| entry(&name, kind))
}

/// Adds what is acceptable and leaves out the rest.
fn built(entries: Vec<TarEntry>) -> Layer<MemoryStaging<u32>> {
    let mut builder = LayerBuilder::new(MemoryStaging::default());
    for (content, entry) in (0..).zip(entries) {
        // refused members are the matter of other tests
        drop(builder.add(entry, Some(content)));
    }
    builder.finish().unwrap()
}

fn check(layer: &Layer<MemoryStaging<u32>>) -> Result<(), TestCaseError> {
    let rows = layer.staging.clone().into_rows();
    for path in rows.keys() {
        if let Some(parent) = path.parent() {
            prop_assert!(rows.get(&parent).is_some_and(Node::is_directory), "{} has no parent", path);
        }
    }
    let implicit: Vec<&TreePath> = rows.iter().filter(|(_, node)| node.is_implicit()).map(|(path, _)| path).collect();
    prop_assert_eq!(implicit, layer.implicit().collect::<Vec<_>>());
    prop_assert!(layer.pending_links.keys().all(|link| rows.get(link).is_none_or(Node::is_whiteout)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stays_a_tree_whatever_an_archive_says(lower in proptest::collection::vec(any_entry(), 0..15), upper in proptest::collection::vec(any_entry(), 0..15)) {
        let lower = built(lower);
        check(&lower)?;
        let lower = MergedLookup::new(vec![Box::new(lower.staging)]);
        let mut upper = built(upper);
        check(&upper)?;
        if upper.settle(&lower).is_ok() {
            check(&upper)?;
            prop_assert!(upper.pending_links.is_empty());
            // nothing stands below a link of the lower layers
            for (path, node) in upper.staging.iter().filter(|(_, node)| node.is_implicit()) {
                let below = lower.get(path).unwrap().map(|node| node.kind);
                let leads = matches!(below, Some(NodeKind::Symlink { .. })) && !upper.hides_lower::<u32>(path).unwrap();
                if leads {
                    let end = resolve(path, true, |path| upper.union_link(&lower, path)).unwrap();
                    prop_assert!(!upper.is_directory_or_nothing(&lower, &end).unwrap(), "{} is still a link: {:?}", path, node);
                }
            }
        }
    }

    #[test]
    fn files_and_directories_end_as_on_a_file_system(entries in proptest::collection::vec((any_name(), any::<bool>()), 0..20)) {
        // a directory has no content
        let mut model: BTreeMap<TreePath, Option<u32>> = BTreeMap::from([(TreePath::root(), None)]);
        let mut archive = Vec::new();
        for (content, (name, is_file)) in (0..).zip(entries) {
            let path = TreePath::normalise(name.as_bytes()).unwrap();
            let is_file = is_file && !path.is_root();
            archive.push(entry(&name, if is_file { TarKind::Regular { size: 0 } } else { TarKind::Directory }));
            let mut parent = path.parent();
            while let Some(directory) = parent {
                parent = directory.parent();
                model.insert(directory, None);
            }
            if is_file {
                model.retain(|row, _| !row.is_below(&path));
            }
            model.insert(path, is_file.then_some(content));
        }
        let rows = built(archive).staging.into_rows();
        let found: BTreeMap<TreePath, Option<u32>> = rows.into_iter().map(|(path, node)| match node.kind {
            NodeKind::Regular { content, .. } => (path, Some(content)),
            _ => (path, None),
        }).collect();
        // entries that were refused have no content either, so the numbers agree
        prop_assert_eq!(found, model);
    }
}
