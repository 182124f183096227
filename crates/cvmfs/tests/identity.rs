//! Everything that the reference implementation stored is made again, byte for byte, from its plain content: every
//! object of every fixture, and the cuts of every chunked file.

#[path = "../../../tests/src/fixtures.rs"]
#[allow(dead_code, missing_docs, reason = "the file is shared; not every test uses all of it")]
mod fixtures;

use std::collections::BTreeMap;
use std::fs;

use cvmfs::catalog::NestedRef;
use cvmfs::chunk::{ChunkSizes, Chunker};
use cvmfs::entry::FileType;
use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::manifest::Manifest;
use cvmfs::object::{Codec, Compression, Encoder, Encoding, decode, encode_stream};
use cvmfs::path::RepoPath;
use cvmfs::store::{LocalStore, Store, fetch, names};
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};

use fixtures::{Fixture, NAMES};

/// Repositories of the existing image publisher; they are larger and not part of this tree.
const OUTSIDE: [&str; 4] = ["ducc-run1", "ducc", "ducc-gc", "ducc-odd"];

fn all() -> impl Iterator<Item = (&'static str, Fixture)> {
    NAMES.into_iter().chain(OUTSIDE).filter_map(|name| {
        let fixture = Fixture::find(name);
        if fixture.is_none() {
            assert!(!NAMES.contains(&name) && std::env::var_os("ALL_TESTS").is_none(), "no fixture {name}");
            println!("skipped: fixture {name} is not here");
        }
        Some((name, fixture?))
    })
}

/// How file content is compressed in a fixture.
fn codec(name: &str) -> Codec {
    if name == "plain" { Codec::Store } else { Codec::REFERENCE }
}

/// Every object of a storage with its bytes.
fn objects(fixture: &Fixture) -> Vec<(ObjectId, Vec<u8>)> {
    let mut found = Vec::new();
    for bucket in fs::read_dir(fixture.storage.join("data")).unwrap().map(|e| e.unwrap()) {
        let name = bucket.file_name().into_string().unwrap();
        for object in fs::read_dir(bucket.path()).unwrap().map(|e| e.unwrap()) {
            let id = ObjectId::from_path_parts(&name, object.file_name().to_str().unwrap()).expect("an object");
            found.push((id, fs::read(object.path()).unwrap()));
        }
    }
    found
}

#[test]
fn every_object_is_made_again_from_its_plain_bytes() {
    for (name, fixture) in all() {
        let mut encoders: BTreeMap<Algorithm, Encoder> = BTreeMap::new();
        let mut seen: BTreeMap<ObjectKind, usize> = BTreeMap::new();
        for (id, stored) in objects(&fixture) {
            let is_file = matches!(id.kind, ObjectKind::File | ObjectKind::Chunk);
            let compression = if is_file { codec(name).compression() } else { Compression::Zlib };
            let plain = decode(id, compression, &stored, u64::MAX).unwrap_or_else(|e| panic!("{name}: {e}"));
            let algorithm = id.hash.algorithm;
            let encoder = encoders.entry(algorithm).or_insert_with(|| Encoder::new(algorithm, codec(name)));
            let (hash, again) = if is_file {
                let (hash, again) = encoder.encode(&plain);
                (hash, again.to_vec())
            } else {
                let mut again = Vec::new();
                let encoding = Encoding { algorithm, codec: codec(name) };
                (encode_stream(encoding, &mut &plain[..], &mut again).unwrap().0, again)
            };
            assert!(again == stored, "{name}: {id} ({} plain bytes) has other bytes", plain.len());
            assert_eq!(hash, id.hash, "{name}");
            *seen.entry(id.kind).or_default() += 1;
        }
        println!("{name}: {seen:?}");
        for kind in [ObjectKind::File, ObjectKind::Catalog, ObjectKind::Certificate, ObjectKind::MetaInfo] {
            assert!(seen.contains_key(&kind), "{name} has no {kind:?}");
        }
    }
}

/// Large files and where their content is: chunks, or one object.
struct Large<'a> {
    store: &'a dyn Store,
    codec: Codec,
    chunked: usize,
    whole: usize,
}

impl Visit for Large<'_> {
    type Error = TraversalError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, TraversalError> {
        let mut pending = vec![catalog.reference().path.clone()];
        while let Some(directory) = pending.pop() {
            for row in catalog.list(directory.key()).unwrap() {
                let (path, entry) = (directory.join(&row.entry.name), &row.entry);
                if entry.is_directory() && !entry.flags.is_nested_mountpoint() {
                    pending.push(path.clone());
                }
                if entry.file_type() != FileType::Regular || entry.size <= ChunkSizes::default().min {
                    continue;
                }
                let algorithm = entry.algorithm();
                let recorded: Vec<(u64, u64, ContentHash)> =
                    catalog.chunks(row.key, algorithm).unwrap().iter().map(|c| (c.offset, c.size, c.hash)).collect();
                let stored: Vec<ObjectId> = match entry.content {
                    Some(hash) => vec![hash.object(ObjectKind::File)],
                    None => recorded.iter().map(|(_, _, hash)| hash.object(ObjectKind::Chunk)).collect(),
                };
                let mut plain = Vec::new();
                for id in stored {
                    fetch(self.store, id, entry.compression(), u64::MAX, &mut plain).unwrap();
                }
                let pieces = cut(&plain, Encoder::new(algorithm, self.codec));
                match entry.content {
                    Some(hash) => {
                        assert_eq!(pieces, [(0, entry.size, hash)], "{path} is one object");
                        self.whole += 1;
                    }
                    None => {
                        assert_eq!(pieces, recorded, "{path}");
                        self.chunked += 1;
                    }
                }
            }
        }
        Ok(Descend::Into)
    }
}

fn cut(plain: &[u8], mut encoder: Encoder) -> Vec<(u64, u64, ContentHash)> {
    let (mut chunker, mut from, mut pieces) = (Chunker::new(ChunkSizes::default()), 0, Vec::new());
    loop {
        let end = chunker.find_cut(&plain[from..]).map_or(plain.len(), |at| from + at);
        let hash = encoder.encode(&plain[from..end]).0;
        pieces.push((from as u64, (end - from) as u64, hash));
        if end == plain.len() {
            return pieces;
        }
        from = end;
    }
}

#[test]
fn every_large_file_is_cut_where_the_reference_implementation_cut_it() {
    for (name, chunked, whole) in [("chunked", 8, 2), ("shake", 2, 1), ("rmd", 2, 1), ("plain", 2, 1)] {
        let fixture = Fixture::unpack(name);
        let store = LocalStore::open(&fixture.storage);
        let manifest = Manifest::parse(&store.read(names::MANIFEST).unwrap().unwrap()).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
        let mut large = Large { store: &store, codec: codec(name), chunked: 0, whole: 0 };
        walk(Loader::new(&store, scratch.path()), root, &mut large).unwrap();
        assert_eq!((large.chunked, large.whole), (chunked, whole), "{name}");
    }
}
