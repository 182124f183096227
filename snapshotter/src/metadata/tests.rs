use std::sync::Arc;

use image::digest::LayerDigest;

use super::*;
use crate::error::Error;
use crate::snapshots::{Info, Lower, Part};

struct State {
    directory: tempfile::TempDir,
    directories: Directories,
}

impl State {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let directories = Directories::open(&directory.path().join("s"), HashMap::new()).unwrap();
        Self { directory, directories }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("s").join(name)
    }
}

fn info(name: &str, parent: Option<&str>, kind: Kind) -> Info {
    let labels = [("n".to_owned(), name.to_owned())].into();
    Info { name: name.into(), parent: parent.map(str::to_owned), kind, created: 1, updated: 0, labels }
}

fn add(metadata: &Metadata, name: &str, parent: Option<&str>, kind: Kind) -> Snapshot {
    let info = info(name, parent, kind);
    let parent = parent.map(str::to_owned);
    let id = metadata.number();
    metadata
        .write(move |table| {
            let parent = parent.map(|parent| table.get(&parent)).transpose()?.map(|parent| parent.id);
            let snapshot = Snapshot { id, parent, info, lowers: Vec::new(), how: None, usage: None };
            table.insert(&snapshot)?;
            Ok(snapshot)
        })
        .unwrap()
}

#[test]
fn a_change_that_fails_is_undone_alone() {
    let state = State::new();
    let metadata = Arc::new(Metadata::open(&state.directories).unwrap());
    let workers = (0..200).map(|number| {
        let metadata = Arc::clone(&metadata);
        std::thread::spawn(move || {
            let info = info(&number.to_string(), None, Kind::Active);
            let id = metadata.number();
            let made = Snapshot { id, parent: None, info, lowers: Vec::new(), how: None, usage: None };
            metadata.write(move |table| {
                table.insert(&made)?;
                if number % 2 == 0 { Ok(made.id) } else { Err(Error::InvalidArgument(number.to_string())) }
            })
        })
    });
    let answers: Vec<_> = workers.collect::<Vec<_>>().into_iter().map(|worker| worker.join().unwrap()).collect();
    for (number, answer) in answers.iter().enumerate() {
        let found = metadata.read(|table| table.get(&number.to_string()));
        match answer {
            Ok(id) => assert_eq!(found.unwrap().id, *id),
            Err(_) => assert!(matches!(found, Err(Error::NotFound(_))), "{number}"),
        }
    }
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
}

#[test]
fn what_is_used_below_is_seen_from_above() {
    let state = State::new();
    let metadata = Metadata::open(&state.directories).unwrap();
    let base = add(&metadata, "base", None, Kind::Committed);
    let middle = add(&metadata, "middle", Some("base"), Kind::Committed);
    let top = add(&metadata, "top", Some("middle"), Kind::Committed);
    let other = add(&metadata, "other", Some("base"), Kind::Committed);
    let used = |id: Id| metadata.read(|table| table.has_mounted_descendant(id)).unwrap();
    assert!(![&base, &middle, &top, &other].into_iter().any(|snapshot| used(snapshot.id)));
    add(&metadata, "view", Some("middle"), Kind::View);
    assert_eq!([&base, &middle, &top, &other].map(|snapshot| used(snapshot.id)), [true, true, false, false]);
    let ancestors = metadata.read(|table| table.ancestors(&top)).unwrap();
    assert_eq!(ancestors.iter().map(|snapshot| snapshot.info.name.as_str()).collect::<Vec<_>>(), ["middle", "base"]);
}

#[test]
fn numbers_are_never_used_twice() {
    let state = State::new();
    let metadata = Metadata::open(&state.directories).unwrap();
    let first = add(&metadata, "a", None, Kind::Active).id;
    metadata.write(move |table| table.delete(first)).unwrap();
    let second = add(&metadata, "a", None, Kind::Active).id;
    assert!(second > first);
    metadata.write(move |table| table.delete(second)).unwrap();
    drop(metadata);
    let metadata = Metadata::open(&state.directories).unwrap();
    assert!(add(&metadata, "a", None, Kind::Active).id > second);
}

#[test]
fn pages_are_those_of_the_label_and_in_order() {
    let state = State::new();
    let metadata = Metadata::open(&state.directories).unwrap();
    for number in 0..10 {
        add(&metadata, &number.to_string(), None, Kind::Active);
    }
    let names = |last, limit, label| -> Vec<String> {
        let page = metadata.read(|table| table.page(last, limit, label)).unwrap();
        page.into_iter().map(|snapshot| snapshot.info.name).collect()
    };
    assert_eq!(names(None, 3, None), ["0", "1", "2"]);
    assert_eq!(names(Some(Id(8)), 3, None), ["8", "9"]);
    assert_eq!(names(None, 3, Some(("n", "7"))), ["7"]);
    assert_eq!(names(Some(Id(8)), 3, Some(("n", "7"))), [""; 0]);
    assert_eq!(names(None, 3, Some(("other", "7"))), [""; 0]);
}

/// Records of directories, each with a row that a rebuild should make.
fn record(state: &State, id: i64, name: &str, parent: Option<&str>) {
    state.directories.create(Id(id), Kind::Active, None).unwrap();
    let info = Info { updated: 1, ..info(name, parent, Kind::Committed) };
    let snapshot = Snapshot { id: Id(id), parent: None, info, lowers: Vec::new(), how: None, usage: None };
    state.directories.record(&Record::of(&snapshot)).unwrap();
}

#[test]
fn a_rebuild_takes_parents_first_and_sets_aside_what_has_none() {
    let state = State::new();
    // Unpacked side by side: a parent may have the higher number.
    record(&state, 1, "top", Some("base"));
    record(&state, 2, "base", None);
    record(&state, 3, "orphan", Some("absent"));
    record(&state, 4, "child of the orphan", Some("orphan"));
    record(&state, 5, "a", Some("b"));
    record(&state, 6, "b", Some("a"));
    record(&state, 7, "twice", None);
    record(&state, 8, "twice", None);
    let (metadata, count) = Metadata::rebuild(&state.directories).unwrap();
    assert_eq!(count, 3);
    let names: Vec<(i64, String)> = metadata
        .read(|table| table.page(None, 100, None))
        .unwrap()
        .into_iter()
        .map(|snapshot| (snapshot.id.0, snapshot.info.name))
        .collect();
    assert_eq!(names, [(1, "top".into()), (2, "base".into()), (8, "twice".into())]);
    for id in [3, 4, 5, 6, 7] {
        assert!(state.path(&format!("snapshots/lost-{id}/snapshot.json")).exists(), "{id}");
    }
    assert_eq!(add(&metadata, "new", None, Kind::Active).id, Id(9));
}

#[test]
fn a_start_takes_away_what_a_kill_left_and_keeps_what_has_a_row() {
    let state = State::new();
    let metadata = Metadata::open(&state.directories).unwrap();
    let kept = add(&metadata, "kept", None, Kind::Active).id;
    drop(metadata);
    state.directories.create(kept, Kind::Active, None).unwrap();
    let own = state.directories.own(kept).content;
    std::fs::write(own.join("file"), "").unwrap();
    // A directory of a change that was never committed has nothing in it.
    state.directories.create(Id(kept.0 + 1), Kind::Active, None).unwrap();
    drop(Metadata::open(&state.directories).unwrap());
    assert_eq!(state.directories.numbers().unwrap(), [kept]);
    assert!(own.join("file").exists());
    assert_eq!(state.directories.read_record(kept).map(|record| record.name), Some("kept".into()));
    // One with files was there for somebody.
    state.directories.create(Id(kept.0 + 1), Kind::Active, None).unwrap();
    std::fs::write(state.directories.own(Id(kept.0 + 1)).content.join("file"), "").unwrap();
    let error = Metadata::open(&state.directories).expect_err("rows are missing");
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert_eq!(state.directories.numbers().unwrap().len(), 2);
}

#[test]
fn an_active_snapshot_never_stands_for_a_repository() {
    let state = State::new();
    let metadata = Metadata::open(&state.directories).unwrap();
    let id = add(&metadata, "active", None, Kind::Active).id;
    drop(metadata);
    // The commit of a thin layer that made its links and its record, and was killed then.
    state.directories.create(id, Kind::Active, None).unwrap();
    let layer = LayerDigest::of(b"x");
    let lowers = vec![Lower { repository: "a.b".into(), layer, part: Part::Content }];
    let info = info("committed", None, Kind::Committed);
    let snapshot = Snapshot { id, parent: None, info, lowers, how: None, usage: None };
    state.directories.link(id, &snapshot.lowers).unwrap();
    state.directories.record(&Record::of(&snapshot)).unwrap();
    let metadata = Metadata::open(&state.directories).unwrap();
    let active = metadata.read(|table| table.get("active")).unwrap();
    assert!(!active.is_remote() && !state.directories.is_linked(id) && !state.directories.has_content(id));
}
