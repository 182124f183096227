//! How fast rows of layers become the catalogs of a flat. `make bench` prints it as rows a second.
//!
//! `flatten --rows N [--layers K]` makes K layers with N rows in all (one in ten names of a layer hides one below), merges
//! them, and prints rows, wall seconds, and the processor seconds that compressing the finished catalogs takes alone.

use std::fs::File;
use std::time::Instant;

use clap::Parser;
use cvmfs::catalog::NestedRef;
use cvmfs::entry::{Entry, Meta};
use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs::object::{Compression, encode_stream};
use cvmfs::subtree::SubtreeWriter;
use cvmfs::traversal::Loader;
use image::digest::{ImageId, LayerDigest};
use image::layout::{Layout, OwnedPath};
use image::manifest::Config;
use publisher::cli::{FlatPermissions, Paths};
use publisher::content::Pool;
use publisher::flat::flatten;
use publisher::layer::{repo_path, subtree_options};
use publisher::raw_index::RawIndex;
use publisher::target::{InitOptions, Target};

#[derive(Parser)]
struct Arguments {
    /// Rows in all layers together
    #[arg(long, default_value_t = 500_000)]
    rows: u64,
    /// Layers
    #[arg(long, default_value_t = 5)]
    layers: u64,
}

const FILES: u64 = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let lab = tempfile::tempdir()?;
    let at = |name: &str| lab.path().join(name);
    let paths = Paths { storage: at("storage").into(), keys: at("keys"), state: at("state") };
    let options = InitOptions { ttl: 240, algorithm: Algorithm::Sha1, garbage_collectable: true };
    let target = Target::init("bench.example.org", paths, options)?;
    let index = RawIndex::open(&target.paths.state, Algorithm::Sha1, target.codec)?.into();
    let pool = Pool::start(target.store.clone(), index, Algorithm::Sha1, target.codec, 1);
    let layers: Vec<NestedRef> = (0..arguments.layers)
        .map(|n| make_layer(&target, n, arguments.rows / arguments.layers))
        .collect::<Result<_, _>>()?;
    let config = Config::parse(b"{}")?;
    let image = ImageId::of(b"bench");
    let start = Instant::now();
    let flat = flatten(&target, &pool, image, &config, &layers, FlatPermissions::Keep)?;
    let seconds = start.elapsed().as_secs_f64();
    let result = serde_json::json!({
        "rows": arguments.rows,
        "flat_rows": flat.graft.rows,
        "catalogs": flat.graft.catalogs,
        "seconds": seconds,
        "compress_seconds": compress_again(&target, &flat.graft)?,
    });
    println!("{result}");
    Ok(())
}

fn make_layer(target: &Target, number: u64, rows: u64) -> Result<NestedRef, Box<dyn std::error::Error>> {
    let path = repo_path(&Layout::new(), &OwnedPath::Layer(LayerDigest::of(&number.to_le_bytes())));
    let options = subtree_options(target, Algorithm::Sha1, 50_000, time::UtcDateTime::now())?;
    let meta = Meta { permissions: 0o755, mtime: 1_700_000_000, ..Meta::default() };
    let directory = Entry::directory("", meta);
    let mut writer = SubtreeWriter::new(target.store.clone(), options, &path, directory.clone())?;
    writer.add(b"layerfs", directory.clone(), 0, &[])?;
    writer.add(b"layerfs/usr", directory.clone(), 0, &[])?;
    let directories = rows / (FILES + 1);
    let width = directories.isqrt().max(1);
    for outer in 0..directories.div_ceil(width) {
        let parent = format!("layerfs/usr/package-{outer:06}");
        writer.add(parent.as_bytes(), directory.clone(), 0, &[])?;
        for inner in 0..width.min(directories - outer * width) {
            // One directory in ten is in every layer.
            let owner = if inner % 10 == 0 { 0 } else { number };
            let middle = format!("{parent}/part-{inner:05}-{owner}");
            writer.add(middle.as_bytes(), directory.clone(), 0, &[])?;
            for file in 0..FILES {
                let name = format!("{middle}/some_file_name_{file:03}.py");
                let hash = ContentHash::of(Algorithm::Sha1, name.as_bytes());
                writer.add(name.as_bytes(), Entry::file("", meta, file * 1000, hash, Compression::Zlib), 0, &[])?;
            }
        }
    }
    let graft = writer.finish()?;
    Ok(NestedRef { path: graft.path, hash: graft.catalog, size: graft.size })
}

/// Seconds of compressing all catalogs of the flat once more, on one thread.
fn compress_again(target: &Target, graft: &cvmfs::subtree::Graft) -> Result<f64, Box<dyn std::error::Error>> {
    let loader = Loader::new(&*target.store, target.scratch());
    let mut open = vec![NestedRef { path: graft.path.clone(), hash: graft.catalog, size: graft.size }];
    let mut seconds = 0.0;
    while let Some(reference) = open.pop() {
        let catalog = loader.load(&reference)?;
        open.extend(catalog.nested_all()?);
        let start = Instant::now();
        let (hash, _) = encode_stream(Algorithm::Sha1, &mut File::open(catalog.file())?, &mut std::io::sink())?;
        seconds += start.elapsed().as_secs_f64();
        assert_eq!(hash.object(ObjectKind::Catalog), reference.hash.object(ObjectKind::Catalog));
    }
    Ok(seconds)
}
