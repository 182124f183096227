//! Layers of the existing tool, whose deletions are files: a container sees what the image says.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use image::digest::ChainId;
use image::layout::{FormatRecord, OwnedPath};

use crate::common::{Layer, Mounted, Tree, World, may_mount, names, request, tree};

const NAME: &str = "images.example.org";

/// What is in a layer: a directory if the path ends in a slash, a link if the text begins with `->`.
type Files = &'static [(&'static str, &'static str)];

fn fill(root: &Path, files: Files) {
    for (number, (path, text)) in (0..).zip(files) {
        let at = root.join(path);
        if path.ends_with('/') {
            fs::create_dir_all(&at).unwrap();
            // Modes and owners of directories tell from which layer they are.
            fs::set_permissions(&at, Permissions::from_mode(0o700 + number)).unwrap();
            chown(&at, Some(number), Some(100 + number)).unwrap();
            continue;
        }
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        match text.strip_prefix("->") {
            Some(target) => symlink(target, &at).unwrap(),
            None => fs::write(&at, text).unwrap(),
        }
        lchown(&at, Some(number), None).unwrap();
    }
    fs::write(root.join(".cvmfscatalog"), "").unwrap();
}

/// Applies a layer as the specification of images says it: deletions first, to what is below; then what the layer has.
fn apply(layer: &Path, target: &Path) {
    fn delete(path: &Path) {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
            Ok(_) => fs::remove_file(path).unwrap(),
            Err(_) => {}
        }
    }
    fn deletions(layer: &Path, target: &Path) {
        for name in names(layer) {
            let from = layer.join(&name);
            if name == ".wh..wh..opq" || name == ".wh..opq" {
                for below in fs::read_dir(target).into_iter().flatten() {
                    delete(&below.unwrap().path());
                }
            } else if !name.starts_with(".wh..wh.")
                && let Some(deleted) = name.strip_prefix(".wh.")
            {
                delete(&target.join(deleted));
            } else if from.symlink_metadata().unwrap().is_dir() && !target.join(&name).is_symlink() {
                deletions(&from, &target.join(&name));
            }
        }
    }
    fn additions(layer: &Path, target: &Path, top: bool) {
        for name in names(layer) {
            if name.starts_with(".wh.") || (top && name == ".cvmfscatalog") {
                continue;
            }
            let (from, to) = (layer.join(&name), target.join(&name));
            let metadata = from.symlink_metadata().unwrap();
            if metadata.is_dir() {
                if !to.symlink_metadata().is_ok_and(|old| old.is_dir()) {
                    delete(&to);
                    fs::create_dir(&to).unwrap();
                }
                additions(&from, &to, false);
            } else {
                delete(&to);
                match fs::read_link(&from) {
                    Ok(link) => symlink(link, &to).unwrap(),
                    Err(_) => fs::write(&to, fs::read(&from).unwrap()).unwrap(),
                }
            }
            lchown(&to, Some(metadata.uid()), Some(metadata.gid())).unwrap();
            if !metadata.is_symlink() {
                fs::set_permissions(&to, Permissions::from_mode(metadata.mode() & 0o7777)).unwrap();
            }
        }
    }
    deletions(layer, target);
    additions(layer, target, true);
}

/// Times of directories, which a container sees as the topmost layer has them.
fn times(root: &Path, tree: &Tree) -> Vec<(String, i64)> {
    let time = |path: &String| root.join(path).symlink_metadata().unwrap().mtime();
    tree.iter().filter(|(_, what)| what.starts_with("directory")).map(|(path, _)| (path.clone(), time(path))).collect()
}

const CASES: [(&str, &[Files]); 9] = [
    (
        "files are deleted",
        &[
            &[("etc/", ""), ("etc/a", "1"), ("etc/b", "2"), ("c", "3"), ("link", "->etc/a")],
            &[("etc/", ""), ("etc/.wh.a", ""), (".wh.c", ""), (".wh.link", ""), ("etc/new", "4")],
        ],
    ),
    (
        "a directory is opaque",
        &[
            &[("d/", ""), ("d/old", "1"), ("d/sub/", ""), ("d/sub/old", "2"), ("keep/", ""), ("keep/x", "3")],
            &[("d/", ""), ("d/.wh..wh..opq", ""), ("d/new", "4"), ("d/sub/", ""), ("d/sub/new", "5")],
        ],
    ),
    (
        "opaque in the other spelling",
        &[&[("d/", ""), ("d/old", "1")], &[("d/", ""), ("d/.wh..opq", ""), ("d/new", "2")]],
    ),
    (
        "opaque beside merged",
        &[
            &[("a/", ""), ("a/1", "1"), ("a/o/", ""), ("a/o/1", "1"), ("a/m/", ""), ("a/m/1", "1")],
            &[("a/", ""), ("a/o/", ""), ("a/o/.wh..wh..opq", ""), ("a/o/2", "2"), ("a/m/", ""), ("a/m/2", "2")],
            &[("a/", ""), ("a/o/", ""), ("a/o/3", "3"), ("a/m/", ""), ("a/m/.wh.1", ""), ("a/2", "2")],
        ],
    ),
    (
        "deleted and made anew in one layer",
        &[
            &[("f", "1"), ("d/", ""), ("d/old", "1"), ("was-file", "1"), ("was-dir/", ""), ("was-dir/x", "1")],
            &[
                (".wh.f", ""),
                ("f", "2"),
                (".wh.d", ""),
                ("d/", ""),
                ("d/new", "2"),
                (".wh.was-file", ""),
                ("was-file/", ""),
                ("was-file/in", "2"),
                (".wh.was-dir", ""),
                ("was-dir", "2"),
            ],
        ],
    ),
    (
        "deleted as a whole and in parts",
        &[
            &[("d/", ""), ("d/a", "1"), ("d/e/", ""), ("d/e/x", "1"), ("o/", ""), ("o/a", "1")],
            &[
                (".wh.d", ""),
                ("d/", ""),
                ("d/.wh.a", ""),
                ("d/e/", ""),
                ("d/e/.wh..wh..opq", ""),
                ("d/new", "2"),
                (".wh.o", ""),
                ("o/", ""),
                ("o/.wh..wh..opq", ""),
                ("o/.wh.a", ""),
                ("o/b", "2"),
            ],
        ],
    ),
    (
        "a directory is deleted, and comes back later",
        &[
            &[("d/", ""), ("d/1", "1"), ("d/sub/", ""), ("d/sub/1", "1")],
            &[(".wh.d", ""), ("x", "2")],
            &[("d/", ""), ("d/3", "3")],
        ],
    ),
    (
        "what a layer deletes, another brings",
        &[
            &[("a", "1"), ("b", "1"), ("d/", ""), ("d/a", "1")],
            &[(".wh.a", ""), (".wh.b", ""), ("d/", ""), ("d/.wh.a", "")],
            &[("a", "3"), (".wh.never", ""), ("d/", ""), ("d/a", "3")],
        ],
    ),
    (
        "names that only look like deletions",
        &[
            &[("wh.a", "1"), (".wha", "1"), ("d/", ""), ("d/.cvmfscatalog", "1"), ("a", "1")],
            &[("x.wh.a", "2"), (".wh..wh.plnk/", ""), (".wh..wh.aufs", ""), ("d/", ""), ("d/y", "2")],
        ],
    ),
];

#[test]
fn containers_see_what_the_image_says() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let daemon = world.start();
    let mut client = daemon.client();
    for (case, contents) in CASES {
        let layers: Vec<Layer> = (0..)
            .zip(contents)
            .map(|(number, files)| repository.plain(&format!("{case} {number}"), |content| fill(content, files)))
            .collect();
        let chains = ChainId::stack(&layers.iter().map(|layer| layer.diff).collect::<Vec<_>>());
        let expected = world.path("expected");
        fs::create_dir(&expected).unwrap();
        let mut parent = String::new();
        for (number, (layer, chain)) in layers.iter().zip(&chains).enumerate() {
            apply(&repository.content(layer), &expected);
            let labels = request(*chain, Some(layer.digest));
            parent = client.lazily("k", &parent, &labels).unwrap().expect("it is published").name;
            let key = format!("{case} {number}");
            let container = Mounted::new(&world, &client.prepare(&key, &parent, &[]).unwrap());
            let view = Mounted::new(&world, &client.view(&format!("{key} view"), &parent).unwrap());
            let (mut seen, expected) = (tree(&container.path), tree(&expected));
            // The first layer of the existing tool has what the tool itself put there, and nothing that deletes.
            assert_eq!(tree(&view.path), seen, "{case}, layer {number}");
            // Directories for the tool of AUFS hold nothing.
            seen.retain(|path, _| !path.starts_with(".wh..wh."));
            assert_eq!(seen, expected, "{case}, layer {number}");
        }
        fs::remove_dir_all(expected).unwrap();
    }
}

#[test]
fn a_container_can_change_what_a_legacy_layer_has_and_deletes() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let files: [Files; 2] = [&[("d/", ""), ("d/a", "1"), ("d/b", "1")], &[("d/", ""), ("d/.wh.a", ""), ("d/c", "2")]];
    let layers =
        ["base", "top"].map(|name| repository.plain(name, |content| fill(content, files[usize::from(name == "top")])));
    let chains = repository.index(&layers);
    let daemon = world.start();
    let mut client = daemon.client();
    let mut parent = String::new();
    for chain in chains {
        parent = client.lazily("k", &parent, &request(chain, None)).unwrap().expect("it is published").name;
    }
    let container = Mounted::new(&world, &client.prepare("container", &parent, &[]).unwrap());
    fs::write(container.join("d/a"), "back").unwrap();
    fs::remove_file(container.join("d/b")).unwrap();
    fs::write(container.join("d/.wh.x"), "a name like any other").unwrap();
    drop(container);
    client.commit("committed", "container", &[]).unwrap();
    let view = Mounted::new(&world, &client.view("view", "committed").unwrap());
    assert_eq!(names(&view.join("d")), [".wh.x".into(), "a".into(), "c".into()].into());
    assert_eq!(fs::read_to_string(view.join("d/a")).unwrap(), "back");
    let metrics = daemon.metrics();
    assert!(metrics.contains("legacy_layers_total 2"), "{metrics}");
}

#[test]
fn times_of_directories_are_those_of_the_layer() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layer = repository.plain("layer", |content| {
        fill(content, &[("d/", ""), ("d/e/", ""), ("d/e/.wh.a", ""), ("d/.wh..wh..opq", ""), ("f/", ""), ("f/g", "1")]);
        for (path, day) in [("d/e", 1), ("d", 2), ("f", 3), ("", 4)] {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(day * 86400);
            fs::File::open(content.join(path)).unwrap().set_modified(time).unwrap();
        }
    });
    let chain = repository.index(&[layer])[0];
    let daemon = world.start();
    let mut client = daemon.client();
    let parent = client.lazily("k", "", &request(chain, None)).unwrap().expect("it is published").name;
    let view = Mounted::new(&world, &client.view("view", &parent).unwrap());
    let day = |path: &str, day: i64| (path.to_owned(), day * 86400);
    assert_eq!(times(&view.path, &tree(&view.path)), [day("", 4), day("d", 2), day("d/e", 1), day("f", 3)]);
}

#[test]
fn the_corrected_copy_beside_a_layer_is_preferred() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let base = repository.layer("base");
    let layer = repository.plain("layer", |content| fill(content, &[("d/", ""), ("d/.wh.a", ""), ("old", "1")]));
    let copy = repository.at(&OwnedPath::LayerOverlay(layer.digest));
    fs::create_dir_all(copy.join("layerfs")).unwrap();
    fs::create_dir_all(copy.join(".metadata")).unwrap();
    fs::write(copy.join("layerfs/corrected"), "").unwrap();
    fs::write(copy.join(".metadata/format.json"), layer.format().to_bytes()).unwrap();
    let chains = repository.index(&[base, layer]);
    let daemon = world.start();
    let mut client = daemon.client();
    let parent = client.lazily("k", "", &request(chains[0], None)).unwrap().expect("it is published").name;
    for labels in [request(chains[1], None), request(chains[1], Some(layer.digest))] {
        let name = client.lazily("k", &parent, &labels).unwrap().expect("it is published").name;
        assert_eq!(fs::read_link(world.content(&name)).unwrap(), copy.join("layerfs"));
        let view = Mounted::new(&world, &client.view("view", &name).unwrap());
        assert_eq!(names(&view.path), ["base".into(), "corrected".into()].into());
        drop(view);
        client.remove("view").unwrap();
        client.remove(&name).unwrap();
    }
    assert!(!world.root().join("shadow").exists(), "nothing had to be made around the layer");
}

#[test]
fn a_layer_whose_record_says_literal_is_looked_through_and_one_of_ours_is_not() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let files: Files = &[(".wh.a", ""), ("b", "1")];
    let ours = repository.layer_with("ours", |content| fill(content, files));
    let theirs = repository.plain("theirs", |content| fill(content, files));
    let format = FormatRecord { whiteouts: FormatRecord::LITERAL.into(), owners: false, ..theirs.format() };
    repository.write(&OwnedPath::LayerFormat(theirs.digest), &format.to_bytes());
    let base = repository.layer("a");
    let daemon = world.start();
    let mut client = daemon.client();
    let parent = client.lazily("k", "", &request(ChainId::on(None, base.diff), Some(base.digest))).unwrap();
    let parent = parent.expect("it is published").name;
    for (layer, expected) in [(ours, vec![".cvmfscatalog", ".wh.a", "a", "b"]), (theirs, vec!["b"])] {
        let chain = ChainId::on(Some(ChainId::on(None, base.diff)), layer.diff);
        let name = client.lazily("k", &parent, &request(chain, Some(layer.digest))).unwrap().expect("published").name;
        let key = format!("view {chain}");
        let view = Mounted::new(&world, &client.view(&key, &name).unwrap());
        assert_eq!(names(&view.path).into_iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_layer_that_empties_the_root_is_downloaded() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let base = repository.layer("base");
    // overlayfs has no way to say this: the root of a layer always merges.
    let top = repository.plain("top", |content| fill(content, &[(".wh..wh..opq", ""), ("new", "1")]));
    let chains = repository.index(&[base, top]);
    let daemon = world.start();
    let mut client = daemon.client();
    let parent = client.lazily("k", "", &request(chains[0], None)).unwrap().expect("it is published").name;
    assert_eq!(client.lazily("k", &parent, &request(chains[1], None)).unwrap(), None);
    assert!(world.log().contains("empties"), "{}", world.log());
}

#[test]
fn what_was_made_around_a_layer_goes_when_nobody_needs_it() {
    if !may_mount() {
        return;
    }
    let mut world = World::new();
    let repository = world.repository(NAME);
    let layers = ["kept", "left"].map(|name| repository.plain(name, |content| fill(content, &[(".wh.a", "")])));
    let daemon = world.start();
    let mut client = daemon.client();
    let snapshots = layers.map(|layer| {
        let labels = request(ChainId::on(None, layer.diff), Some(layer.digest));
        client.lazily("k", "", &labels).unwrap().expect("it is published").name
    });
    let shadow = world.root().join("shadow").join(NAME);
    assert_eq!(names(&shadow).len(), 2);
    fs::create_dir(shadow.join(".new-1-0")).unwrap();
    client.remove(&snapshots[1]).unwrap();
    daemon.kill();
    let daemon = world.start();
    assert_eq!(names(&shadow), [layers[0].digest.hex()].into());
    // It is made again when it is wanted.
    let labels = request(ChainId::on(None, layers[1].diff), Some(layers[1].digest));
    let mut client = daemon.client();
    let name = client.lazily("k", "", &labels).unwrap().expect("it is published").name;
    let view = Mounted::new(&world, &client.view("view", &name).unwrap());
    assert_eq!(names(&view.path).len(), 0);
}
