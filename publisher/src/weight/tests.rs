//! No catalog on the way to an image grows with the repository.

use image::digest::{DiffId, Digest, ManifestDigest};
use image::layout::{CatalogRule, IndexKey, Layout};
use image::reference::PublicName;

use super::*;
use crate::cli::Paths;
use crate::target::{InitOptions, directory_meta};

const HOSTS: usize = 2;
const GROUPS: usize = 40;

fn target(directory: &std::path::Path) -> Target {
    let path = |name: &str| directory.join(name);
    let paths = Paths { storage: path("storage").into(), keys: path("keys"), state: path("state") };
    let options = InitOptions { ttl: 240, algorithm: cvmfs::hash::Algorithm::Sha1, garbage_collectable: true };
    Target::init("images.example.org", paths, options).unwrap()
}

/// The name of an image: of two registries, in many image repositories, one of them large.
fn name(n: usize) -> PublicName {
    let group = if n.is_multiple_of(3) { "large".to_owned() } else { format!("group{}", n % GROUPS) };
    PublicName::parse(&format!("registry{}.example.org/{group}/image{n}:1", n % HOSTS)).unwrap()
}

/// Publishes images as rows: links, records and index entries of each, layer and flat of every tenth.
fn publish(target: &Target, images: std::ops::Range<usize>) {
    let (lock, now) = (target.lock().unwrap(), UtcDateTime::now());
    let mut transaction = target.begin(&lock, now).unwrap();
    let mut hand = Hand::new(target, &mut transaction, now).unwrap();
    for n in images {
        let bytes = format!("image {n}");
        let digest = Digest::of(bytes.as_bytes());
        let (config, layer) = (ImageId::from_digest(digest), LayerDigest::from_digest(digest));
        if n.is_multiple_of(10) {
            for path in [OwnedPath::Layer(layer), OwnedPath::Flat(config)] {
                let at = repo_path(&hand.layout, &path);
                hand.directories(&path, &at).unwrap();
                let starts = hand.layout.nested_catalogs(&path);
                let is_start = |p: &RepoPath| {
                    starts.iter().any(|n| n.rule == CatalogRule::Always && p.as_bytes()[1..] == *n.path.as_bytes())
                };
                hand.transaction.ensure_directories(&at, directory_meta(now), &is_start).unwrap();
            }
        }
        for file in [ImageFile::Manifest, ImageFile::RawManifest, ImageFile::Config, ImageFile::Status] {
            let path = OwnedPath::ImageFile { platform: None, name: name(n), file };
            hand.file(&path, b"{}").unwrap();
        }
        for key in [IndexKey::Config(config), IndexKey::Manifest(ManifestDigest::from_digest(digest))] {
            hand.file(&OwnedPath::Index(key), b"{}").unwrap();
        }
        let diff_id = OwnedPath::Index(IndexKey::DiffId(DiffId::from_digest(digest)));
        hand.link(&diff_id, &OwnedPath::Layer(layer)).unwrap();
        hand.link(&OwnedPath::Public { platform: None, name: name(n) }, &OwnedPath::Flat(config)).unwrap();
    }
    target.commit(transaction).unwrap();
}

fn catalogs(target: &Target) -> Vec<CatalogWeight> {
    let manifest = target.repository().unwrap().manifest().clone();
    let root = NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size };
    let mut scale = Scale::default();
    walk(Loader::new(&*target.store, target.scratch()), root, &mut scale).map_err(Failure::from).unwrap();
    scale.0
}

#[test]
fn catalogs_on_the_way_to_an_image_stay_small_however_many_images_there_are() {
    let directory = tempfile::tempdir().unwrap();
    let target = target(directory.path());
    let mut roots = Vec::new();
    let mut published = 0;
    for count in [100, 400, 3000] {
        while published < count {
            let batch = (count - published).min(300);
            publish(&target, published..published + batch);
            published += batch;
        }
        let catalogs = catalogs(&target);
        roots.push(catalogs[0].rows);
        let large = Layout::CROWDED_CATALOG as u64 + 10 * Layout::LARGE_DIRECTORY as u64 / 2;
        for CatalogWeight { path, rows, .. } in &catalogs {
            assert!(*rows <= large, "{count} images: {path} has {rows} rows");
        }
    }
    assert!(roots.iter().all(|rows| *rows == roots[0]) && roots[0] < 20, "the root never grows: {roots:?}");

    let paths: Vec<String> = catalogs(&target).into_iter().map(|catalog| catalog.path).collect();
    let has = |path: &str| paths.iter().any(|found| found == path);
    assert!(has("/registry0.example.org") && has("/.metadata/registry0.example.org"), "each registry");
    assert!(has("/.metadata/registry0.example.org/large"), "a large image repository");
    assert!(has("/.metadata/registry1.example.org/group7"), "many small ones in a crowded catalog");
    assert!(!has("/registry1.example.org/group7"), "none where there is room");

    let way = {
        let now = UtcDateTime::now();
        let mut view = target.view(now).unwrap();
        let mut hand = Hand::new(&target, &mut view, now).unwrap();
        way(&mut hand, &OwnedPath::Image { platform: None, name: name(2999) }).unwrap()
    };
    let way: Vec<&str> = way.iter().map(|catalog| catalog.path.as_str()).collect();
    assert_eq!(
        way,
        ["/", "/.metadata", "/.metadata/registry1.example.org", "/.metadata/registry1.example.org/group39"]
    );
}
