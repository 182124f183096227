//! The conformance suite of containerd's snapshotters, as far as nothing has to be mounted for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use containerd_client::services::v1::snapshots::{Info, Kind};
use tonic::Code;

use crate::common::{Client, Failure, World, labels};

/// base ← top, an active one on each, a view on base.
fn stack(client: &mut Client) {
    client.layer("base", "");
    client.layer("top", "base");
    client.prepare("active", "top", &[]).unwrap();
    client.prepare("second", "base", &[]).unwrap();
    client.view("view", "base").unwrap();
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> Code {
    result.map_or_else(|failure| failure.code, |value| panic!("it should fail: {value:?}"))
}

#[test]
fn stat_shows_name_parent_kind_times_and_labels() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.prepare("key", "", &[("containerd.io/gc.root", "now"), ("x", "")]).unwrap();
    let active = client.stat("key").unwrap();
    assert_eq!((active.name.as_str(), active.parent.as_str(), active.kind()), ("key", "", Kind::Active));
    assert_eq!(active.labels, labels(&[("containerd.io/gc.root", "now"), ("x", "")]));
    assert_eq!(active.created_at, active.updated_at);
    let age = std::time::SystemTime::now().duration_since(
        std::time::UNIX_EPOCH + std::time::Duration::from_secs(active.created_at.unwrap().seconds.unsigned_abs()),
    );
    assert!(age.unwrap().as_secs() < 60);

    client.commit("name", "key", &[]).unwrap();
    let committed = client.stat("name").unwrap();
    assert_eq!((committed.name.as_str(), committed.parent.as_str(), committed.kind()), ("name", "", Kind::Committed));
    let time = |info: &Info| info.created_at.map(|at| (at.seconds, at.nanos)).unwrap();
    assert!(time(&committed) > time(&active));
    assert_eq!(committed.created_at, committed.updated_at);
    assert_eq!(code(client.stat("key")), Code::NotFound);
    client.view("view", "name").unwrap();
    let view = client.stat("view").unwrap();
    assert_eq!((view.parent.as_str(), view.kind()), ("name", Kind::View));
}

#[test]
fn parents_are_those_that_were_named() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    let parents = |client: &mut Client, name: &str| {
        let mut chain = vec![name.to_owned()];
        while let Some(parent) = Some(client.stat(chain.last().unwrap()).unwrap().parent).filter(|p| !p.is_empty()) {
            chain.push(parent);
        }
        chain
    };
    assert_eq!(parents(&mut client, "active"), ["active", "top", "base"]);
    assert_eq!(parents(&mut client, "second"), ["second", "base"]);
    assert_eq!(parents(&mut client, "view"), ["view", "base"]);
}

#[test]
fn snapshots_are_made_only_on_committed_parents_and_under_free_names() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    let before = client.everything();
    let cases = [
        ("new", "absent", Code::NotFound),
        ("new", "active", Code::InvalidArgument),
        ("new", "view", Code::InvalidArgument),
        ("active", "base", Code::AlreadyExists),
        ("active", "", Code::AlreadyExists),
        ("view", "top", Code::AlreadyExists),
        ("base", "", Code::AlreadyExists),
        ("top", "top", Code::AlreadyExists),
        ("", "base", Code::InvalidArgument),
        ("", "", Code::InvalidArgument),
    ];
    for (key, parent, expected) in cases {
        assert_eq!(code(client.prepare(key, parent, &[])), expected, "prepare {key:?} on {parent:?}");
        assert_eq!(code(client.view(key, parent)), expected, "view {key:?} on {parent:?}");
    }
    assert_eq!(client.everything(), before);
    assert_eq!(world.directories(), world.rows());
}

#[test]
fn labels_are_updated_as_the_mask_says() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    let old = [("a", "1"), ("b.c/d", "2")];
    type Pairs = &'static [(&'static str, &'static str)];
    let cases: [(Pairs, &[&str], Pairs); 8] = [
        (&[("a", "9")], &["labels"], &[("a", "9")]),
        (&[("a", "9")], &[], &[("a", "9")]),
        (&[], &[], &[]),
        (&[("a", "9"), ("z", "9")], &["labels.a"], &[("a", "9"), ("b.c/d", "2")]),
        (&[("b.c/d", "9")], &["labels.b.c/d"], &[("a", "1"), ("b.c/d", "9")]),
        (&[("z", "9")], &["labels.z"], &[("a", "1"), ("b.c/d", "2"), ("z", "9")]),
        (&[], &["labels.a"], &[("b.c/d", "2")]),
        (&[("z", "9")], &["labels.a", "labels.z"], &[("b.c/d", "2"), ("z", "9")]),
    ];
    for name in ["base", "active", "view"] {
        for (new, mask, expected) in cases {
            client.update(name, &old, &["labels"]).unwrap();
            let before = client.stat(name).unwrap();
            let answer = client.update(name, new, mask).unwrap();
            assert_eq!(answer.labels, labels(expected), "{new:?} {mask:?}");
            assert_eq!(client.stat(name).unwrap(), answer);
            let time = |info: &Info| info.updated_at.map(|at| (at.seconds, at.nanos)).unwrap();
            assert!(time(&answer) > time(&before), "an update is a change");
            let rest = Info { labels: answer.labels.clone(), updated_at: answer.updated_at, ..before };
            assert_eq!(answer, rest, "nothing else changes");
        }
    }
    let before = client.everything();
    for path in ["parent", "kind", "name", "created_at", "label", "labels2", ""] {
        assert_eq!(code(client.update("base", &[("a", "8")], &["labels.a", path])), Code::InvalidArgument, "{path:?}");
    }
    assert_eq!(code(client.update("absent", &[], &[])), Code::NotFound);
    assert_eq!(client.everything(), before, "a refused update changes nothing");
}

#[test]
fn only_what_nobody_stands_on_is_removed() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    for (name, expected) in [
        ("base", Code::FailedPrecondition),
        ("top", Code::FailedPrecondition),
        ("absent", Code::NotFound),
        ("", Code::NotFound),
    ] {
        assert_eq!(code(client.remove(name)), expected, "{name:?}");
    }
    assert_eq!(client.everything().len(), 5);
    for name in ["active", "top", "view", "second", "base"] {
        client.remove(name).unwrap();
        assert_eq!(code(client.remove(name)), Code::NotFound);
    }
    assert_eq!(client.everything().len(), 0);
    assert_eq!(world.directories(), BTreeSet::new());
    // The name is free, its directory is another one.
    client.prepare("base", "", &[]).unwrap();
    assert_eq!(world.directories(), [6].into());
}

#[test]
fn cleanup_deletes_the_files_of_what_was_removed() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let mounts = client.prepare("key", "", &[]).unwrap();
    fs::create_dir(Path::new(&mounts[0].source).join("directory")).unwrap();
    fs::write(Path::new(&mounts[0].source).join("directory/file"), "content").unwrap();
    client.remove("key").unwrap();
    assert_eq!(world.directories(), BTreeSet::new());
    assert_eq!(world.trash().len(), 1, "a removal is quick");
    client.cleanup().unwrap();
    assert_eq!(world.trash(), Vec::<String>::new());
    client.cleanup().unwrap();
}

#[test]
fn a_list_is_what_its_filters_say() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    client.update("base", &[("containerd.io/snapshot.ref", "sha256:1"), ("odd \"key\"", "a,b")], &[]).unwrap();
    client.update("top", &[("containerd.io/snapshot.ref", "sha256:2"), ("empty", "")], &[]).unwrap();
    let all = ["active", "base", "second", "top", "view"];
    let cases: [(&[&str], &[&str]); 21] = [
        (&[], &all),
        (&[""], &all),
        (&["name==base"], &["base"]),
        (&["name!=base"], &["active", "second", "top", "view"]),
        (&["name==absent"], &[]),
        (&["name~=/^(ba|se)/"], &["base", "second"]),
        (&["kind==active"], &["active", "second"]),
        (&["kind==committed"], &["base", "top"]),
        (&["kind==view"], &["view"]),
        (&["kind==view", "kind==active"], &["active", "second", "view"]),
        (&["parent==base"], &["second", "top", "view"]),
        (&["parent==\"\""], &["base"]),
        (&["parent==base,kind==committed"], &["top"]),
        (&["parent==base,kind==committed", "name==view"], &["top", "view"]),
        (&["labels.\"containerd.io/snapshot.ref\""], &["base", "top"]),
        (&["labels.\"containerd.io/snapshot.ref\"==sha256:1,parent==\"\""], &["base"]),
        (&["labels.\"containerd.io/snapshot.ref\"==sha256:1,parent==\"base\""], &[]),
        (&["labels.\"odd \\\"key\\\"\"==\"a,b\""], &["base"]),
        (&["labels.empty==\"\""], &["top"]),
        (&["labels.empty"], &["top"]),
        (&["no.such.field==x"], &[]),
    ];
    for (filters, expected) in cases {
        let found: BTreeSet<String> = client.list(filters).into_iter().map(|info| info.name).collect();
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{filters:?}");
    }
    for filter in ["name==\"", "==", "name~=(", &"x".repeat(100_000)] {
        let failure = client.pages(&[filter]).expect_err("it can't be read");
        assert_eq!(failure.code, Code::InvalidArgument);
        assert!(failure.text.len() < 1000, "{}", failure.text.len());
    }
}

#[test]
fn long_lists_come_in_pages_and_miss_nothing() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.layer("base", "");
    for number in 0..250 {
        client.prepare(&format!("c{number:03}"), "base", &[("even", if number % 2 == 0 { "y" } else { "n" })]).unwrap();
    }
    // Numbers with gaps.
    for number in (0..250).step_by(7) {
        client.remove(&format!("c{number:03}")).unwrap();
    }
    let left: BTreeSet<String> = (0..250).filter(|n| n % 7 != 0).map(|n| format!("c{n:03}")).collect();
    for (filters, expected) in [
        (vec!["parent==base"], left.clone()),
        (vec!["labels.even==y"], left.iter().filter(|n| n[1..].parse::<u32>().unwrap() % 2 == 0).cloned().collect()),
        (vec!["name==c249"], [String::from("c249")].into()),
    ] {
        let pages = client.pages(&filters).unwrap();
        assert!(pages.iter().all(|page| (1..=100).contains(&page.len())));
        let found: Vec<String> = pages.concat().into_iter().map(|info| info.name).collect();
        assert_eq!(found.len(), expected.len(), "each once");
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn stat_within_a_walk_sees_the_same() {
    let world = World::new();
    let daemon = world.start();
    let (mut client, mut other) = (daemon.client(), daemon.client());
    stack(&mut client);
    for info in client.list(&[]) {
        assert_eq!(other.stat(&info.name).unwrap(), info);
    }
}

#[test]
fn a_commit_needs_an_active_snapshot_and_a_free_name_and_replaces_labels() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    let before = client.everything();
    for (name, key, expected) in [
        ("new", "absent", Code::NotFound),
        ("new", "view", Code::FailedPrecondition),
        ("new", "base", Code::FailedPrecondition),
        ("base", "active", Code::AlreadyExists),
        ("view", "active", Code::AlreadyExists),
        ("active", "active", Code::AlreadyExists),
        ("", "active", Code::InvalidArgument),
    ] {
        assert_eq!(code(client.commit(name, key, &[])), expected, "{key:?} as {name:?}");
    }
    assert_eq!(client.everything(), before);
    client.prepare("labelled", "top", &[("old", "1"), ("both", "1")]).unwrap();
    client.commit("new", "labelled", &[("both", "2"), ("new", "2")]).unwrap();
    let info = client.stat("new").unwrap();
    assert_eq!((info.kind(), info.parent.as_str()), (Kind::Committed, "top"));
    assert_eq!(info.labels, labels(&[("both", "2"), ("new", "2")]));
    assert_eq!(code(client.stat("labelled")), Code::NotFound);
    assert_eq!(code(client.commit("again", "labelled", &[])), Code::NotFound);
}

#[test]
fn a_commit_may_bring_the_parent_that_the_prepare_lacked() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    stack(&mut client);
    client.prepare("alone", "", &[]).unwrap();
    for (key, parent, expected) in [
        ("alone", "absent", Code::FailedPrecondition),
        ("alone", "active", Code::FailedPrecondition),
        ("alone", "view", Code::FailedPrecondition),
        ("active", "base", Code::InvalidArgument),
        ("active", "absent", Code::InvalidArgument),
    ] {
        assert_eq!(code(client.commit_on("new", key, parent)), expected, "{key} on {parent}");
    }
    client.commit_on("same", "active", "top").expect("the parent that it has");
    client.commit_on("rebased", "alone", "top").unwrap();
    assert_eq!(client.stat("rebased").unwrap().parent, "top");
    assert_eq!(code(client.remove("top")), Code::FailedPrecondition);
    let mounts = client.prepare("container", "rebased", &[]).unwrap();
    let lowers = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    assert_eq!(lowers.split(':').count(), 3);
}

#[test]
fn mounts_answers_the_same_again_and_not_for_committed_snapshots() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    client.layer("base", "");
    client.layer("top", "base");
    for (key, parent) in [("a0", ""), ("a1", "base"), ("a2", "top")] {
        let first = client.prepare(key, parent, &[]).unwrap();
        assert_eq!(client.mounts(key).unwrap(), first);
        assert_eq!(client.mounts(key).unwrap(), first);
    }
    for (key, parent) in [("v0", ""), ("v1", "base"), ("v2", "top")] {
        let first = client.view(key, parent).unwrap();
        assert_eq!(client.mounts(key).unwrap(), first);
    }
    assert_eq!(code(client.mounts("top")), Code::FailedPrecondition);
    assert_eq!(code(client.mounts("absent")), Code::NotFound);
}

#[test]
fn usage_is_the_disk_of_one_snapshot_alone() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let mounts = client.prepare("key", "", &[]).unwrap();
    let content = Path::new(&mounts[0].source);
    fs::write(content.join("a"), vec![7; 100_000]).unwrap();
    fs::hard_link(content.join("a"), content.join("b")).unwrap();
    fs::create_dir(content.join("d")).unwrap();
    let near = |(size, inodes): (i64, i64)| (100_000..200_000).contains(&size) && inodes == 3;
    let active = client.usage("key").unwrap();
    assert!(near(active), "{active:?}");
    client.commit("base", "key", &[]).unwrap();
    let committed = client.usage("base").unwrap();
    assert!(near(committed), "{committed:?}");
    client.prepare("empty", "base", &[]).unwrap();
    let (size, inodes) = client.usage("empty").unwrap();
    assert!(size < 10_000 && inodes == 1, "what is below does not count");
    client.view("view", "base").unwrap();
    assert_eq!(client.usage("view").unwrap(), (0, 0));
    assert_eq!(code(client.usage("absent")), Code::NotFound);
}

#[test]
fn names_and_labels_are_any_text() {
    let world = World::new();
    let daemon = world.start();
    let mut client = daemon.client();
    let names = [
        "default/1/../../x",
        "/",
        "..",
        "a\nb",
        "ü \"q\" '; DROP TABLE snapshot; --",
        "nul\0inside",
        &"n".repeat(2000),
    ];
    for name in names {
        client.prepare(name, "", &[("k\0\n", "v\0\u{1}ü")]).unwrap();
        assert_eq!(client.stat(name).unwrap().labels, labels(&[("k\0\n", "v\0\u{1}ü")]));
    }
    assert_eq!(client.everything().len(), names.len());
    assert_eq!(world.directories(), (1..=7).collect());
    let before = client.everything();
    daemon.kill();
    let daemon = world.start();
    assert_eq!(daemon.client().everything(), before);
    assert_eq!(crate::common::names(&world.root()).iter().filter(|name| name.starts_with("metadata.db")).count(), 3);
}
