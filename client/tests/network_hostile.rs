//! Servers that mean harm: what they send is bounded, refused with the reason, and not kept.

#[path = "common/scripted.rs"]
mod scripted;

use std::time::{Duration, Instant};

use client::fetch::Want;
use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs::object::Compression;
use scripted::{Act, Getter, Object, Scripted, compressed};

/// What a name can't tell: an object whose hash is right and which inflates to more than it may.
fn bomb(plain: usize) -> Object {
    let mut object = Object::of(vec![0; plain]);
    object.plain.truncate(1000);
    object
}

#[test]
fn an_object_that_inflates_without_end_is_refused_although_its_hash_is_right() {
    // As many bytes as no object of that size has, and as many as one might have.
    for (plain, words) in [(200 << 20, "no end"), (40 << 20, "inflates to more than 1000 bytes")] {
        let object = bomb(plain);
        let server = Scripted::new(Act::Serve).having(&object);
        let getter = Getter::new(&server.repository(), "DIRECT", &[]);
        let said = getter.refuses(&object);
        assert!(said.contains(words), "{} bytes: {said}", object.stored.len());
        assert_eq!(getter.objects.cache().usage().0, 0);
    }
    let object = bomb(200 << 20);
    assert!(object.stored.len() < 1 << 20, "{} bytes", object.stored.len());
    let server = Scripted::new(Act::Serve).having(&object);
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    // The same without a known size: as far as the limit, no further.
    let want = Want::bounded(object.id, 1 << 20);
    assert!(getter.objects.fetch(&want).is_err());
    assert_eq!((getter.objects.cache().usage().0, getter.unfinished()), (0, 0));
}

#[test]
fn streams_without_end_are_cut_soon_whatever_they_inflate_to() {
    // Empty stored blocks: valid zlib that never gives a byte. A complete object with rubbish behind it.
    let empty_blocks = [0x78, 0x01].into_iter().chain([0, 0, 0, 0xff, 0xff].into_iter().cycle().take(50_000)).collect();
    let tail = [compressed(b"hello\n"), vec![0; 50_000]].concat();
    for (name, bytes) in [("nothing", empty_blocks), ("rubbish behind", tail), ("rubbish", vec![0x5a; 50_000])] {
        let bytes: Vec<u8> = bytes;
        let object = Object::new(20, 10_000);
        let (bad, good) = (Scripted::new(Act::Endless(bytes.into())), Scripted::new(Act::Serve).having(&object));
        let getter = Getter::new(&format!("{};{}", bad.repository(), good.repository()), "DIRECT", &[]);
        let started = Instant::now();
        getter.gets(&object);
        assert!(started.elapsed() < Duration::from_secs(10), "{name}");
        // What sockets hold of two answers, not more.
        let received = getter.stats.received.get();
        assert!(received < 4 << 20, "{name}: {received} bytes taken");
        assert_eq!((bad.count(), good.count(), getter.unfinished()), (2, 1, 0), "{name}");
    }
}

#[test]
fn objects_stored_as_they_are_have_their_size_and_no_byte_more() {
    let content = vec![7; 5000];
    let id = ContentHash::of(Algorithm::Sha1, &content).object(ObjectKind::File);
    let server = Scripted::new(Act::Serve);
    server.put(&id.path(), content);
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    assert!(getter.objects.fetch(&Want::sized(id, Compression::None, 4999)).is_err());
    assert!(getter.objects.fetch(&Want::sized(id, Compression::None, 5001)).is_err());
    assert_eq!(getter.objects.cache().usage().0, 0);
    assert!(getter.objects.fetch(&Want::sized(id, Compression::None, 5000)).is_ok());
}

#[test]
fn documents_in_memory_are_bounded() {
    let server = Scripted::new(Act::Endless(vec![b'C'; 10_000].into()));
    let getter = Getter::new(&server.repository(), "DIRECT", &[]);
    let error = getter.objects.transport().get_small(".cvmfspublished", 100_000).unwrap_err();
    assert!(error.to_string().contains("longer than 100000 bytes"), "{error}");
    assert!(getter.stats.received.get() < 4 << 20);
}

#[test]
fn a_head_without_end_takes_no_memory_and_no_time() {
    let server = Scripted::new(Act::EndlessHead);
    let getter = Getter::new(&server.repository(), "DIRECT", &["CVMFS_MAX_RETRIES=0"]);
    let started = Instant::now();
    getter.refuses(&Object::new(21, 1000));
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(server.sent() < 16 << 20, "{} bytes of head taken", server.sent());
}
