//! Content: what is there under the names of the reference tools is not stored again.

use cvmfs::chunk::ChunkSizes;
use cvmfs::hash::{ObjectId, ObjectKind};
use cvmfs::object::Codec;

use super::stock::{Stock, assert_only_added};

fn kinds(objects: &[ObjectId], kind: ObjectKind) -> usize {
    objects.iter().filter(|id| id.kind == kind).count()
}

#[test]
fn content_that_the_repository_has_costs_nothing_whatever_its_hash_and_compression() {
    let shake = "CVMFS_HASH_ALGORITHM=shake128";
    let rmd = "CVMFS_HASH_ALGORITHM=rmd160";
    let plain = "CVMFS_COMPRESSION_ALGORITHM=none";
    for (fixture, settings, codec, large) in [
        ("basic", "", Codec::REFERENCE, 0),
        ("chunked", "", Codec::REFERENCE, 10),
        ("shake", shake, Codec::REFERENCE, 3),
        ("rmd", rmd, Codec::REFERENCE, 3),
        ("plain", plain, Codec::Store, 3),
    ] {
        let stock = Stock::new(fixture, settings);
        let contents: Vec<Vec<u8>> = stock.contents().into_values().collect();
        let min = ChunkSizes::default().min;
        assert_eq!(contents.iter().filter(|c| c.len() as u64 > min).count(), large, "{fixture}");
        let names: Vec<String> = (0..contents.len()).map(|i| format!("file{i}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().zip(&contents).map(|(n, c)| (n.as_str(), &c[..])).collect();
        let before = stock.files();
        let report = stock.ingest("copies", &files).ok();
        assert_eq!((&report["stored"], &report["files"]), (&0.into(), &files.len().into()), "{fixture}");
        let added = assert_only_added(&before, &stock.files(), codec);
        assert_eq!(kinds(&added, ObjectKind::File) + kinds(&added, ObjectKind::Chunk), 0, "{fixture}: {added:?}");
        stock.assert_sound();

        // New content is named and cut in the same way.
        let mut new = contents.into_iter().max_by_key(Vec::len).unwrap();
        new.reverse();
        let before = stock.files();
        stock.ingest("new", &[("large", &new), ("small", b"never seen before")]).ok();
        let added = assert_only_added(&before, &stock.files(), codec);
        assert!(added.iter().all(|id| id.hash.algorithm == stock.manifest().root_catalog.algorithm));
        assert!(kinds(&added, ObjectKind::File) >= 1, "{fixture}: {added:?}");
        assert_eq!(kinds(&added, ObjectKind::Chunk) > 1, large > 0, "{fixture}: {added:?}");
        stock.assert_sound();
    }
}

/// Content of which half can be compressed.
fn large(seed: u64) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..20_000_000).map(|i| if i & 4096 == 0 { next() } else { b'x' }).collect()
}

#[test]
fn a_large_file_that_was_stored_whole_is_not_stored_again_in_chunks() {
    let whole = "CVMFS_USE_FILE_CHUNKING=false\nCVMFS_AUTO_TAG=false";
    let stock = Stock::new("updates-r4", whole);
    let (first, second) = (large(1), large(2));
    // As `cvmfs_server ingest` would have done, and the image publisher that is made of it.
    let before = stock.files();
    stock.ingest("whole", &[("first", &first)]).ok();
    let added = assert_only_added(&before, &stock.files(), Codec::REFERENCE);
    assert_eq!((kinds(&added, ObjectKind::File), kinds(&added, ObjectKind::Chunk)), (1, 0), "{added:?}");

    stock.configure("CVMFS_AUTO_TAG=false");
    for run in ["unknown to the index", "known"] {
        let before = stock.files();
        let report = stock.ingest(&run.replace(' ', "-"), &[("first", &first), ("copy", &first)]).ok();
        assert_eq!(report["stored"], 0, "{run}");
        let added = assert_only_added(&before, &stock.files(), Codec::REFERENCE);
        assert_eq!(kinds(&added, ObjectKind::File) + kinds(&added, ObjectKind::Chunk), 0, "{run}: {added:?}");
        // What was remembered is only a help.
        if run == "known" {
            std::fs::remove_dir_all(&stock.state).unwrap();
        }
    }
    // One of the same size that is not there is cut as usual.
    let before = stock.files();
    stock.ingest("second", &[("second", &second)]).ok();
    let added = assert_only_added(&before, &stock.files(), Codec::REFERENCE);
    assert!(kinds(&added, ObjectKind::File) == 0 && kinds(&added, ObjectKind::Chunk) > 1, "{added:?}");
    // What is there in chunks is found in chunks.
    let report = stock.ingest("third", &[("second", &second)]).ok();
    assert_eq!(report["stored"], 0);
    stock.assert_sound();
}
