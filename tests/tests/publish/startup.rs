//! Start-up lists beside images.

use std::sync::Arc;
use std::time::Duration;

use cvmfs::startup::StartupList;
use image::digest::{ChainId, Digest, ImageId};
use image::layout::StatusRecord;
use image::reference::Wish;
use publisher::cli::FlatPermissions;
use publisher::convert::Request;
use publisher::images;
use publisher::removal::{self, Options, Usage, Wanted};
use publisher::report::Outcome::{Added, Unchanged, Updated};
use publisher::startup::{GivenList, ListSize, publish_list};
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, Member, dir, file, hardlink, noise, symlink};
use scenarios::naive;
use scenarios::repository::{Site, assert_covered, cover, flat_path, outcomes, public, wish};
use scenarios::tree::Tree;

use crate::{content, target};

const LIST: &str = r#"{"schema":1,"files":[
    {"path":"/bin/run","size":1},{"path":"/link","size":9},{"path":"/bin","size":9},{"path":"/gone","size":9},
    {"path":"/data/a","size":1,"parts":[[0,100],[6000,10]]}]}"#;

fn image(run: &str) -> Image {
    Image::of(&[
        &[dir("bin"), file("bin/run", run).mode(0o755), symlink("link", "bin/run")],
        &[dir("data"), file("data/a", noise(1, 5000))],
    ])
}

fn list_path(image: ImageId) -> String {
    format!(".flat/{}/.cvmfsstartup-{}", &image.hex()[..2], image.hex())
}

/// Path, size and parts of a file.
type Line = (String, u64, Vec<(u64, u64)>);

/// What a published list has.
fn lines(tree: &Tree, path: &str) -> Vec<Line> {
    let list = StartupList::parse(content(tree, path)).unwrap();
    list.files.into_iter().map(|file| (file.path.to_string(), file.size, file.parts)).collect()
}

fn pass(site: &Site, wish: &str, list: Option<&str>) -> publisher::report::Report {
    let startup = list.map(|text| Arc::new(GivenList::parse(text.as_bytes()).unwrap()));
    let request = Request { startup, ..Request::new(wish, Wish::parse(wish).unwrap()) };
    let converter = site.converter();
    converter.apply(&converter.plan(&[request]).unwrap()).unwrap()
}

#[test]
fn a_list_is_published_with_its_image_and_goes_on_with_the_name() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let old = image("first").push(&registry, "lab/x", "1");
    let (wish, link) = (wish(&registry, "lab/x:1"), public(&registry, "lab/x:1"));
    let report = pass(&site, &wish, Some(LIST));
    assert_eq!((outcomes(&report), report.revision), (vec![Added], Some(1)), "one publish");
    let tree = site.tree("");
    let record = format!(".metadata/{link}/startup.json");
    let expected = vec![("/bin/run".to_owned(), 5, vec![]), ("/data/a".to_owned(), 5000, vec![(0, 100)])];
    assert_eq!(lines(&tree, &record), expected, "files that are there, with their sizes");
    assert_eq!(content(&tree, &list_path(old.config)), content(&tree, &record));
    let stack = *ChainId::stack(&old.diff_ids).last().unwrap();
    let index = |stack: ChainId| format!(".index/image/{}/{}", &stack.hex()[..2], stack.hex());
    assert_eq!(target(&tree, &index(stack)), format!("../../../{}", flat_path(old.config)));
    let status = |tree: &Tree| StatusRecord::parse(content(tree, &format!(".metadata/{link}/status.json"))).unwrap();
    assert_eq!(status(&tree).startup, Some(Digest::of(LIST.as_bytes())));
    assert_eq!(images::list(&site.target).unwrap()[0].startup, Some(ListSize { files: 2, bytes: 105 }));

    for list in [Some(LIST), None] {
        assert_eq!(outcomes(&pass(&site, &wish, list)), [Unchanged], "neither the same list nor none is a change");
    }
    let new = image("second run").push(&registry, "lab/x", "1");
    assert_eq!(outcomes(&pass(&site, &wish, None)), [Updated]);
    let tree = site.tree("");
    assert_eq!(lines(&tree, &record)[0], ("/bin/run".to_owned(), 10, vec![]));
    assert_eq!(content(&tree, &list_path(new.config)), content(&tree, &record));
    assert_eq!(lines(&tree, &list_path(old.config)), expected, "who still starts the old image finds its list");
    assert_eq!(status(&tree).startup, Some(Digest::of(LIST.as_bytes())));
    assert_eq!(outcomes(&pass(&site, &wish, Some(LIST))), [Unchanged]);
    let shorter = r#"{"schema":1,"files":[{"path":"/bin/run","size":1}]}"#;
    assert_eq!(outcomes(&pass(&site, &wish, Some(shorter))), [Updated], "another list is a change");
    assert_eq!(lines(&site.tree(""), &record).len(), 1);
    site.assert_sound();

    let grace = Duration::ZERO;
    let options =
        Options { grace, keep_versions: 0, usage: Usage::default(), lists: Wanted::default(), dry_run: false };
    for _ in 0..2 {
        removal::collect(&site.target, &options).unwrap();
    }
    let tree = site.tree("");
    assert!(!tree.contains_key(flat_path(old.config).as_bytes()), "the collection has taken the old flat");
    for gone in [list_path(old.config), index(stack)] {
        assert!(!tree.contains_key(gone.as_bytes()), "{gone}");
    }
    assert!(tree.contains_key(list_path(new.config).as_bytes()));
    site.assert_sound();
}

#[test]
fn a_flat_has_a_cover_that_makes_the_image_of_it_where_that_can_be() {
    let (registry, mut site) = (TestRegistry::spawn(), Site::new());
    let resolv = symlink("etc/resolv.conf", "../run/resolv.conf");
    let plain = [dir("").mode(0o751).owner(1, 2), dir("etc").mode(0o711), resolv, dir("var").owner(3, 4)];
    let own = [dir(".singularity.d"), dir(".singularity.d/env"), file(".singularity.d/env/01-base.sh", "mine")];
    for (tag, members, expected) in [("plain", &plain[..], true), ("own", &own[..], false)] {
        let pushed = Image::of(&[members]).push(&registry, "lab/x", tag);
        site.convert(&[wish(&registry, &format!("lab/x:{tag}"))]);
        let stack = *ChainId::stack(&pushed.diff_ids).last().unwrap();
        let tree = site.tree("");
        let is_indexed = tree.contains_key(format!(".index/image/{}/{}", &stack.hex()[..2], stack.hex()).as_bytes());
        assert_eq!((cover(&site, pushed.config).is_some(), is_indexed), (expected, expected), "{tag}");
        if expected {
            assert_covered(&site, pushed.config, &naive::unpack([members]), tag);
        }
    }
    site.options.permissions = FlatPermissions::Readable;
    let readable = Image::of(&[&[dir("d").mode(0o700)]]).push(&registry, "lab/x", "readable");
    site.convert(&[wish(&registry, "lab/x:readable")]);
    assert_eq!(cover(&site, readable.config), None, "other modes can't be covered");
    site.assert_sound();
}

#[test]
fn what_has_attributes_is_in_the_cover_as_well_where_it_is_little() {
    const CAPABILITY: [u8; 20] = *b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let capable = |path: String| file(path, noise(2, 900)).mode(0o755).xattr("security.capability", CAPABILITY);
    let ping = [dir("usr").mode(0o711), dir("usr/bin"), capable("usr/bin/ping".into()), file("usr/bin/ls", "ls")];
    let over = [dir("usr/lib").xattr("user.x", "1"), file("usr/lib/a", "a"), capable("usr/lib/large".into())];
    let linked = [capable("ping".into()), hardlink("ping4", "ping")];
    let many: Vec<_> = (0..200).map(|number| capable(format!("f{number}"))).collect();
    let deep: Vec<_> = (1..=250).map(|depth| dir(vec!["d"; depth].join("/")).xattr("user.x", "1")).collect();
    let full = |file: Member| (0..40).fold(file, |file, number| file.xattr(format!("user.{number}"), "v".repeat(250)));
    let heavy: Vec<_> = (0..9).map(|number| full(file(format!("f{number}"), ""))).collect();
    let covered = vec!["usr", "usr/bin", "usr/bin/ping", "usr/lib", "usr/lib/large"];
    for (tag, layers, expected) in [
        ("few", vec![&ping[..], &over[..]], covered),
        ("linked", vec![&linked[..]], vec![]),
        ("many", vec![&many[..]], vec![]),
        ("deep", vec![&deep[..]], vec![]),
        ("heavy", vec![&heavy[..]], vec![]),
    ] {
        let pushed = Image::of(&layers).push(&registry, "lab/x", tag);
        site.convert(&[wish(&registry, &format!("lab/x:{tag}"))]);
        let tree = naive::unpack(layers.iter().copied());
        assert_covered(&site, pushed.config, &tree, tag);
        let cover = cover(&site, pushed.config).unwrap();
        let of_image = cover.iter().filter(|(path, _)| !path.is_empty() && tree.contains_key(*path));
        let of_image: Vec<_> = of_image.map(|(path, node)| (std::str::from_utf8(path).unwrap(), node)).collect();
        assert_eq!(of_image.iter().map(|(path, _)| *path).collect::<Vec<_>>(), expected, "{tag}");
        assert!(of_image.iter().all(|(path, node)| *node == &tree[path.as_bytes()]), "{tag}");
    }
    site.assert_sound();
}

#[test]
fn a_published_image_gets_and_loses_a_list() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    let pushed = image("first").push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    site.convert(std::slice::from_ref(&wish));
    let list = GivenList::parse(LIST.as_bytes()).unwrap();
    let listed = publish_list(&site.target, &wish, Some(&list), None).unwrap();
    assert_eq!((listed.startup.files, listed.revision), (2, 2));
    assert_eq!(publish_list(&site.target, &wish, Some(&list), None).unwrap().revision, 2, "twice is once");
    assert_eq!(outcomes(&pass(&site, &wish, Some(LIST))), [Unchanged], "a wish for the same list has nothing to do");
    let foreign = GivenList::parse(br#"{"schema":1,"files":[{"path":"/none"}]}"#).unwrap();
    assert!(publish_list(&site.target, &wish, Some(&foreign), None).is_err());
    assert!(publish_list(&site.target, "lab/absent:1", Some(&list), None).is_err());
    assert_eq!(site.revision(), 2);
    assert_eq!(publish_list(&site.target, &wish, None, None).unwrap().revision, 3);
    assert!(!site.tree("").contains_key(list_path(pushed.config).as_bytes()));
    assert_eq!(images::list(&site.target).unwrap()[0].startup, None);
    site.assert_sound();
}

#[test]
fn an_image_that_is_removed_takes_its_list_along_and_brings_it_back() {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    image("first").push(&registry, "lab/x", "1");
    let wish = wish(&registry, "lab/x:1");
    pass(&site, &wish, Some(LIST));
    removal::remove(&site.target, &wish, false).unwrap();
    assert!(images::list(&site.target).unwrap().is_empty());
    removal::undelete(&site.target, &wish, None, false).unwrap();
    assert_eq!(images::list(&site.target).unwrap()[0].startup, Some(ListSize { files: 2, bytes: 105 }));
    site.assert_sound();
}
