//! Named files: of several writers at once, one wins, whatever the server makes of conditions.

use axum::http::{Method, StatusCode};
use cvmfs::store::Store as _;

use crate::server::{Conditions, Fault, FaultKind};
use crate::world::World;

const NAME: &str = ".cvmfspublished";
const KINDS: [Conditions; 3] = [Conditions::Honoured, Conditions::Ignored, Conditions::Refused];

/// A server with a repository, as far as it takes to find out about conditions.
fn world(conditions: Conditions) -> World {
    let world = World::new();
    world.store().replace(".cvmfs_master_replica", b"for stratum 1").unwrap();
    world.controls.set_conditions(conditions);
    world
}

/// The number in "NUMBER written by WRITER": like a signed manifest, what one writer writes is not what another does.
fn count(content: &[u8]) -> u32 {
    let text = std::str::from_utf8(content).unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_swap_happens_only_if_the_file_is_what_it_is_expected_to_be() {
    for conditions in KINDS {
        let world = world(conditions);
        let store = world.store();
        assert_eq!(store.read(NAME).unwrap(), None);
        let steps = [
            (Some("a"), "b", false),
            (None, "a", true),
            (None, "b", false),
            (Some("b"), "c", false),
            (Some("a"), "b", true),
            (Some("a"), "c", false),
        ];
        for (expected, content, swapped) in steps {
            let before = store.read(NAME).unwrap();
            let result = store.swap(NAME, expected.map(str::as_bytes), content.as_bytes()).unwrap();
            assert_eq!(result, swapped, "{conditions:?} {expected:?}");
            let after = if swapped { Some(content.into()) } else { before };
            assert_eq!(store.read(NAME).unwrap(), after);
        }
        store.replace(NAME, b"anything").unwrap();
        assert_eq!(world.store().read(NAME).unwrap().unwrap(), b"anything");
    }
}

#[test]
fn of_six_writers_at_once_each_increment_counts() {
    let world = world(Conditions::Honoured);
    world.store().replace(NAME, b"0").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..6 {
            let world = &world;
            scope.spawn(move || {
                let store = world.store();
                let mut done = 0;
                while done < 6 {
                    let old = store.read(NAME).unwrap().unwrap();
                    let new = format!("{} written by {writer}", count(&old) + 1);
                    done += u32::from(store.swap(NAME, Some(&old), new.as_bytes()).unwrap());
                }
            });
        }
    });
    assert_eq!(count(&world.store().read(NAME).unwrap().unwrap()), 36);
}

#[test]
fn of_eight_who_create_a_file_one_does() {
    let world = world(Conditions::Honoured);
    let created = std::thread::scope(|scope| {
        let create = |i: u32| {
            let world = &world;
            scope.spawn(move || world.store().swap(NAME, None, i.to_string().as_bytes()).unwrap())
        };
        let writers: Vec<_> = (0..8).map(create).collect();
        writers.into_iter().map(|w| u32::from(w.join().unwrap())).sum::<u32>()
    });
    assert_eq!(created, 1);
}

#[test]
fn a_write_whose_answer_was_lost_counts() {
    for (old, times) in [(None, 1), (Some(&b"old"[..]), 1), (None, 9), (Some(b"old"), 9)] {
        let world = world(Conditions::Honoured);
        let store = world.store();
        if let Some(old) = old {
            store.replace(NAME, old).unwrap();
        }
        let lost = Fault { method: Method::PUT, path: NAME, kind: FaultKind::AnswerLost };
        world.controls.fail(vec![lost; times]);
        assert!(store.swap(NAME, old, b"new").unwrap(), "{old:?}, {times} lost");
        assert_eq!(store.read(NAME).unwrap().unwrap(), b"new");
    }
}

#[test]
fn a_swap_that_the_server_refuses_is_an_error_and_changes_nothing() {
    let world = world(Conditions::Honoured);
    let store = world.store();
    store.replace(NAME, b"old").unwrap();
    assert!(store.swap(NAME, Some(b"old"), b"older").unwrap());
    for status in [StatusCode::FORBIDDEN, StatusCode::SERVICE_UNAVAILABLE] {
        let refused = Fault { method: Method::PUT, path: NAME, kind: FaultKind::Refused(status) };
        world.controls.fail(vec![refused; 100]);
        assert!(store.swap(NAME, Some(b"older"), b"new").is_err(), "{status}");
        assert_eq!(store.read(NAME).unwrap().unwrap(), b"older");
        world.controls.clear();
    }
}
