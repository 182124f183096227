//! Objects: what was put is there, once, whatever the network does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::time::{Duration, SystemTime};

use axum::http::{Method, StatusCode};
use cvmfs::hash::ObjectId;
use cvmfs::store::{ListedKind, Listing as _, Store as _, StoreError, Stored};
use publisher::storage::s3::S3Store;
use publisher::storage::{S3Access, S3Settings, Secret};

use crate::server::{Fault, FaultKind};
use crate::world::{SECRET_KEY, World, object};

const OVERLOADED: FaultKind = FaultKind::Refused(StatusCode::SERVICE_UNAVAILABLE);

fn read(store: &S3Store, id: ObjectId) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.open(id).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn put_all(store: &S3Store, objects: &[(ObjectId, Vec<u8>)]) {
    for (id, bytes) in objects {
        store.put(*id, bytes).unwrap();
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn objects_of_all_sizes_come_back_before_and_after_they_are_stored() {
    let world = World::new();
    let store = world.store();
    for size in [0, 1, 100_000, 17 << 20] {
        let (id, bytes) = object(size as u64, size);
        assert!(!store.exists(id).unwrap(), "{size}");
        assert!(matches!(store.open(id), Err(StoreError::Missing(missing)) if missing == id), "{size}");
        assert_eq!(store.put(id, &bytes).unwrap(), Stored::New(size as u64));
        assert!(store.exists(id).unwrap());
        assert!(read(&store, id) == bytes, "{size} bytes on their way");
        store.flush().unwrap();
        assert!(fs::read(world.file(&id.path())).unwrap() == bytes, "{size} bytes on the server");
        for store in [&store, &world.store()] {
            assert!(store.exists(id).unwrap());
            assert!(read(store, id) == bytes, "{size} bytes back");
        }
        assert_eq!(store.put(id, &bytes).unwrap(), Stored::Present);
    }
}

#[test]
fn staged_objects_of_all_sizes_are_stored_under_the_name_that_they_get_in_the_end() {
    let world = World::new();
    let store = world.store();
    // In memory, in a temporary file, in parts.
    for size in [10, 5 << 20, 40 << 20] {
        let (id, bytes) = object(size as u64, size);
        for expected in [Stored::New(size as u64), Stored::Present] {
            let mut staged = store.stage().unwrap();
            bytes.chunks(100_000).for_each(|part| staged.write_all(part).unwrap());
            assert_eq!(staged.commit(id).unwrap(), expected, "{size}");
        }
        drop(store.stage().unwrap());
        store.flush().unwrap();
        assert!(fs::read(world.file(&id.path())).unwrap() == bytes, "{size}");
    }
}

#[test]
fn uploads_run_side_by_side_and_an_object_is_sent_once() {
    let world = World::new();
    let store = world.store();
    let objects: Vec<_> = (0..200).map(|seed| object(seed, 2000)).collect();
    world.controls.slow_down(Duration::from_millis(20));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| put_all(&store, &objects));
        }
    });
    store.flush().unwrap();
    assert_eq!(world.controls.take_requests(&Method::PUT, "/data/"), objects.len());
    let most = world.controls.most_uploads();
    assert!((2..=world.settings().connections).contains(&most), "{most} at once");
    assert!(objects.iter().all(|(id, bytes)| read(&store, *id) == *bytes));
}

#[test]
fn an_object_that_is_there_already_is_not_sent_again() {
    let world = World::new();
    let (id, bytes) = object(1, 100_000);
    for sent in [1, 0] {
        let store = world.store();
        store.put(id, &bytes).unwrap();
        store.flush().unwrap();
        assert_eq!(world.controls.take_requests(&Method::PUT, "/data/"), sent);
    }
    let settings = S3Settings { peek: false, ..world.settings() };
    let store = S3Store::open(&settings).unwrap();
    store.put(id, &bytes).unwrap();
    store.flush().unwrap();
    assert_eq!(world.controls.take_requests(&Method::PUT, "/data/"), 1, "without looking first");
}

#[test]
fn requests_that_fail_are_repeated() {
    let world = World::new();
    let store = world.store();
    let (id, bytes) = object(1, 20 << 20);
    let fault = |method, kind| Fault { method, path: "/data/", kind };
    world.controls.fail([
        fault(Method::PUT, OVERLOADED),
        fault(Method::PUT, FaultKind::AnswerLost),
        fault(Method::GET, OVERLOADED),
        fault(Method::HEAD, OVERLOADED),
    ]);
    assert!(!store.exists(id).unwrap());
    store.put(id, &bytes).unwrap();
    store.flush().unwrap();
    assert!(read(&world.store(), id) == bytes);
    assert_eq!(world.controls.faults_left(), 0);
}

#[test]
fn an_upload_that_fails_for_good_fails_this_flush_and_every_later_one() {
    let world = World::new();
    let store = world.store();
    let (id, bytes) = object(1, 1000);
    let refused = Fault { method: Method::PUT, path: "/data/", kind: FaultKind::Refused(StatusCode::FORBIDDEN) };
    world.controls.fail([refused]);
    store.put(id, &bytes).unwrap();
    for _ in 0..2 {
        let said = chain(&store.flush().unwrap_err());
        for part in [&id.to_string(), "s3://cvmfs/images.example.org", "denied", "s3:GetObject"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
    }
    assert!(!store.exists(id).unwrap(), "nobody is told that it is there");
    assert!(store.put(id, &bytes).is_err());
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let world = World::new();
    let with = |change: &dyn Fn(&mut S3Settings)| {
        let mut settings = world.settings();
        settings.retries = 1;
        change(&mut settings);
        let store = S3Store::open(&settings).unwrap();
        chain(&store.probe().unwrap_err())
    };
    let access = |endpoint: &str, key: &str, secret: &str| S3Access::Configured {
        endpoint: endpoint.to_owned(),
        virtual_hosted: false,
        region: "us-east-1".to_owned(),
        access_key: key.to_owned(),
        secret_key: Secret::new(secret),
    };
    let endpoint = format!("http://{}", world.address);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases = [
        (with(&|s| s.bucket = "absent".into()), ["no bucket absent", "correct --storage"]),
        (with(&|s| s.access = access(&endpoint, "publisher", "wrong")), ["AWS_SECRET_ACCESS_KEY", "publisher"]),
        (with(&|s| s.access = access(&endpoint, "nobody", SECRET_KEY)), ["nobody", "AWS_ACCESS_KEY_ID"]),
        (
            with(&|s| s.access = access(&format!("http://{closed}"), "publisher", SECRET_KEY)),
            ["can't be reached", "AWS_ENDPOINT_URL"],
        ),
    ];
    for (said, parts) in cases {
        for part in parts {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        assert!(said.contains("s3://"), "{said}");
        assert!(!said.contains(SECRET_KEY), "{said}");
    }
}

#[test]
fn many_questions_are_answered_from_the_listing() {
    let world = World::new();
    let objects: Vec<_> = (0..1500).map(|seed| object(seed, 10)).collect();
    let store = world.store();
    put_all(&store, &objects);
    store.flush().unwrap();
    // All in one directory are asked for, and none of the others.
    let mut asked: Vec<_> = objects.iter().filter(|(id, _)| id.hash.digest[0] == objects[0].0.hash.digest[0]).collect();
    asked.extend(objects.iter().filter(|(id, _)| id.hash.digest[0] < 16));
    let store = world.store();
    world.controls.take_requests(&Method::HEAD, "");
    assert!(asked.iter().all(|(id, _)| store.exists(*id).unwrap()));
    let requests = world.controls.take_requests(&Method::HEAD, "/data/");
    assert!(requests < asked.len() && requests <= 17 * 9, "{requests} for {} objects", asked.len());
    assert!(!store.exists(object(9999, 10).0).unwrap(), "what the listing does not have is asked for");
    // Somebody else adds one after that.
    let (late, bytes) = object(77_777, 10);
    let other = world.store();
    other.put(late, &bytes).unwrap();
    other.flush().unwrap();
    assert!(store.exists(late).unwrap());
}

#[test]
fn everything_is_listed_with_size_and_time_and_can_be_removed() {
    let world = World::new();
    let store = world.store();
    let mut expected = BTreeSet::new();
    let mut id = None;
    // More than a page in one directory.
    for seed in 0..1100u32 {
        let mut name = object(u64::from(seed), 10).0;
        name.hash.digest[0] = 0xab;
        store.put(name, &seed.to_le_bytes()[..(seed % 4) as usize]).unwrap();
        expected.insert((name.path().rsplit('/').next().unwrap().to_owned(), u64::from(seed % 4)));
        id = Some(name);
    }
    store.flush().unwrap();
    let mut found = BTreeSet::new();
    store
        .list(Some("ab"), &mut |listed| {
            assert_eq!(listed.kind, ListedKind::File);
            let age = SystemTime::now().duration_since(listed.modified.unwrap()).unwrap_or_default();
            assert!(age.as_secs() < 600, "{age:?}");
            assert!(found.insert((listed.name.to_owned(), listed.size)));
        })
        .unwrap();
    assert_eq!(found, expected);
    let mut directories = Vec::new();
    store.list(None, &mut |listed| directories.push((listed.name.to_owned(), listed.kind))).unwrap();
    assert_eq!(directories, [("ab".to_owned(), ListedKind::Directory)]);
    store.list(Some("cd"), &mut |_| panic!("nothing there")).unwrap();

    let id = id.unwrap();
    assert!(store.exists(id).unwrap());
    store.remove(id).unwrap();
    store.remove(id).unwrap();
    assert!(!store.exists(id).unwrap());
    assert!(!world.file(&id.path()).exists());
}

#[test]
fn caches_are_told_how_long_to_keep_what_and_lists_are_set_if_wished() {
    let world = World::new();
    let (id, bytes) = object(1, 1000);
    for acl in [None, Some("public-read")] {
        let settings = S3Settings { acl: acl.map(str::to_owned), peek: false, ..world.settings() };
        let store = S3Store::open(&settings).unwrap();
        store.put(id, &bytes).unwrap();
        store.flush().unwrap();
        store.replace(".cvmfswhitelist", b"x").unwrap();
        for (path, kind, age) in [
            (id.path(), "application/octet-stream", "max-age=259200"),
            (".cvmfswhitelist".to_owned(), "application/x-cvmfs", "max-age=61"),
        ] {
            let uploads = world.controls.uploads(&path);
            let [(_, headers)] = &uploads[..] else { panic!("{path}: {uploads:?}") };
            let value = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!((value("content-type"), value("cache-control")), (Some(kind), Some(age)));
            assert_eq!(value("x-amz-acl"), acl, "{path}");
            let signed = value("authorization").unwrap();
            assert_eq!(signed.contains("x-amz-acl"), acl.is_some(), "{signed}");
        }
    }
}
