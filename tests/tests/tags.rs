//! Named snapshots and going back.

use std::collections::BTreeSet;

use cvmfs::history::TagError;
use cvmfs::repository::{RetagError, Revision};
use publisher::failure::Failure;
use publisher::tags;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Image, file};
use scenarios::repository::{Site, wish};

fn names(site: &Site) -> Vec<(String, u64)> {
    let mut tags: Vec<_> =
        publisher::images::tags(&site.target).unwrap().into_iter().map(|t| (t.name, t.revision)).collect();
    tags.sort();
    tags
}

fn named(list: &[(&str, u64)]) -> Vec<(String, u64)> {
    list.iter().map(|(name, revision)| ((*name).to_owned(), *revision)).collect()
}

#[track_caller]
fn refused(result: Result<tags::Retagged, Failure>) -> TagError {
    match result {
        Err(Failure::Retag(RetagError::Tag(error))) => error,
        other => panic!("{other:?}"),
    }
}

/// A repository with `count` revisions of one image.
fn site(count: u64) -> (TestRegistry, Site) {
    let (registry, site) = (TestRegistry::spawn(), Site::new());
    for version in 1..=count {
        let name = format!("version-{version}");
        Image::of(&[&[file("kept", "kept"), file(&*name, "x")]]).push(&registry, "lab/x", "1");
        site.convert(&[wish(&registry, "lab/x:1")]);
    }
    (registry, site)
}

#[test]
fn names_are_given_moved_and_taken() {
    let (_registry, site) = site(3);
    let root = |n| site.target.repository().unwrap().tag_of(Revision::Number(n), site.target.scratch()).unwrap().root;
    let (first, published) = (root(1), site.target.repository().unwrap().manifest().published);
    let added = tags::add(&site.target, "now", "as it is", Revision::Head).unwrap();
    assert_eq!((added.set, added.removed, added.revision), (vec!["now".to_owned()], vec![], 3));
    site.assert_sound();
    tags::add(&site.target, "v1", "", Revision::Number(1)).unwrap();
    let all = named(&[("now", 3), ("trunk", 3), ("trunk-previous", 2), ("v1", 1)]);
    assert_eq!(names(&site), all);
    assert_eq!(refused(tags::add(&site.target, "now", "", Revision::Number(1))), TagError::Exists("now".into()));
    assert_eq!(refused(tags::add(&site.target, "n w", "", Revision::Head)), TagError::Name("n w".into()));
    assert_eq!(refused(tags::add(&site.target, "trunk", "", Revision::Head)), TagError::Automatic("trunk".into()));
    assert_eq!(refused(tags::add(&site.target, "v9", "", Revision::Number(9))), TagError::Unknown("9".into()));
    let missing = refused(tags::remove(&site.target, &["v1".into(), "v2".into()]));
    assert_eq!(missing, TagError::Missing("v2".into()));
    assert_eq!(names(&site), all, "all or nothing");
    let moved = tags::add(&site.target, "now", "", Revision::Root(first)).unwrap();
    assert_eq!(moved.set, ["now"]);
    let tag = site.target.repository().unwrap().history(site.target.scratch()).unwrap().tag("now").unwrap().clone();
    assert_eq!((tag.root, tag.revision, tag.description.as_str()), (first, 1, "as it is"));
    let before = site.stored_objects();
    tags::add(&site.target, "now", "", Revision::Root(first)).unwrap();
    assert_eq!(site.stored_objects(), before, "nothing to change, nothing published");
    tags::remove(&site.target, &["v1".into(), "now".into()]).unwrap();
    assert_eq!(names(&site), named(&[("trunk", 3), ("trunk-previous", 2)]));
    site.assert_sound();
    let manifest = site.target.repository().unwrap().manifest().clone();
    assert_eq!(manifest.revision, 3, "names are no revision");
    assert!(manifest.published >= published);
    let unknown = first.to_string().replace(|c: char| c.is_ascii_digit(), "0").parse().unwrap();
    assert!(matches!(refused(tags::add(&site.target, "x", "", Revision::Root(unknown))), TagError::Unknown(_)));
}

#[test]
fn a_rollback_shows_the_content_of_the_tag() {
    let (registry, site) = site(2);
    let second = site.tree("");
    tags::add(&site.target, "good", "known to work", Revision::Head).unwrap();
    Image::of(&[&[file("version-3", "x")]]).push(&registry, "lab/x", "1");
    site.convert(&[wish(&registry, "lab/x:1")]);
    tags::add(&site.target, "bad", "", Revision::Head).unwrap();
    assert_ne!(site.tree(""), second);
    let before: BTreeSet<String> = site.stored_objects().into_iter().collect();
    let back = tags::roll_back(&site.target, Some("good")).unwrap();
    assert_eq!((back.revision_before, back.revision), (3, 4));
    assert_eq!(back.set, ["good", "trunk"]);
    assert_eq!(back.removed, ["bad", "trunk-previous"]);
    assert_eq!(site.tree(""), second);
    site.assert_sound();
    assert_eq!(names(&site), named(&[("good", 4), ("trunk", 4)]));
    let new: Vec<String> = site.stored_objects().into_iter().filter(|o| !before.contains(o)).collect();
    assert_eq!(new.len(), 2, "a root catalog and a tag database: {new:?}");
    let is_head = refused(tags::roll_back(&site.target, Some("good")));
    assert_eq!(is_head, TagError::IsHead("good".into()));
    // Publishing goes on from there.
    assert_eq!(site.convert(&[wish(&registry, "lab/x:1")]).revision, Some(5));
    site.assert_sound();
    assert_eq!(names(&site), named(&[("good", 4), ("trunk", 5), ("trunk-previous", 4)]));
}

#[test]
fn the_last_publish_is_undone_once_in_a_row() {
    let (registry, site) = site(1);
    let first = site.tree("");
    Image::of(&[&[file("version-2", "x")]]).push(&registry, "lab/x", "1");
    site.convert(&[wish(&registry, "lab/x:1")]);
    tags::roll_back(&site.target, None).unwrap();
    assert_eq!(site.tree(""), first);
    assert_eq!(names(&site), named(&[("trunk", 3)]));
    site.assert_sound();
    assert_eq!(refused(tags::roll_back(&site.target, None)), TagError::Missing("trunk-previous".into()));
}
