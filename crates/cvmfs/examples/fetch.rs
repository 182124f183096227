//! The floor of a download without a network: verifies and inflates, with one thread, the objects of a repository in a
//! directory that a client's cache has, and writes each to a file of its own: `fetch STORAGE CACHE TARGET`. `make bench-warm`
//! compares a client with it.
//!
//! Prints objects, plain bytes, and the seconds for it as JSON.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::object::{Compression, Inflater};

/// Plain bytes of an object, at most.
const LIMIT: u64 = 1 << 40;

/// Names of the files that a cache has.
fn names(cache: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for bucket in fs::read_dir(cache)?.flatten() {
        let first = bucket.file_name().to_string_lossy().into_owned();
        if first.len() == 2 {
            let rest =
                fs::read_dir(bucket.path())?.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
            names.extend(rest.map(|rest| first.clone() + &rest));
        }
    }
    Ok(names)
}

/// The object of content that has this name in the cache; none of catalogs and of what is stored as it is.
fn object(storage: &Path, name: &str) -> Option<(ObjectId, PathBuf)> {
    let hash: ContentHash = name.parse().ok()?;
    let kinds = [ObjectKind::File, ObjectKind::Chunk].into_iter().map(|kind| hash.object(kind));
    kinds.map(|object| (object, storage.join(object.path()))).find(|(_, path)| path.exists())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(storage), Some(cache), Some(target)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: fetch STORAGE CACHE TARGET".into());
    };
    let objects: Vec<_> = names(&cache)?.iter().filter_map(|name| object(&storage, name)).collect();
    for bucket in 0..=255 {
        fs::create_dir(target.join(format!("{bucket:02x}")))?;
    }
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    let start = Instant::now();
    for (object, stored) in &objects {
        let unfinished = target.join("unfinished");
        let mut inflater = Inflater::new(*object, Compression::Zlib, LIMIT, File::create(&unfinished)?);
        let mut stored = File::open(stored)?;
        loop {
            match stored.read(&mut buffer)? {
                0 => break,
                count => inflater.push(&buffer[..count])?,
            }
        }
        bytes += inflater.finish()?.1;
        let name = object.hash.to_string();
        fs::rename(&unfinished, target.join(&name[..2]).join(&name[2..]))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(r#"{{"objects": {}, "bytes": {bytes}, "seconds": {seconds}}}"#, objects.len());
    Ok(())
}
