//! No catalog on the way to an image grows with the repository.

use image::digest::{DiffId, Digest, ManifestDigest};
use image::layout::{CatalogRule, IndexKey, Layout};
use image::reference::PublicName;

use super::*;
use crate::cli::Paths;
use crate::target::{InitOptions, directory_meta};

const GROUPS: usize = 20;

fn target(directory: &std::path::Path) -> Target {
    let path = |name: &str| directory.join(name);
    let paths = Paths { storage: path("storage").into(), keys: path("keys"), state: path("state") };
    let options = InitOptions { ttl: 240, algorithm: cvmfs::hash::Algorithm::Sha1, garbage_collectable: true };
    Target::init("images.example.org", paths, options).unwrap()
}

/// The name of an image: of two registries, the second with many image repositories.
fn name(n: usize) -> PublicName {
    PublicName::parse(&format!(
        "registry{}.example.org/group{}/image{n}:1",
        usize::from(!n.is_multiple_of(8)),
        n % GROUPS
    ))
    .unwrap()
}

/// Publishes images as rows: links, records and index entries of each, layer and flat of some.
fn publish(target: &Target, images: std::ops::Range<usize>) {
    let (lock, now) = (target.lock().unwrap(), UtcDateTime::now());
    let mut transaction = target.begin(&lock, now).unwrap();
    let mut hand = Hand::new(target, &mut transaction, now).unwrap();
    for n in images {
        let bytes = format!("image {n}");
        let digest = Digest::of(bytes.as_bytes());
        let (config, layer) = (ImageId::from_digest(digest), LayerDigest::from_digest(digest));
        if n.is_multiple_of(40) {
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
    for count in [100, 400, 2000] {
        while published < count {
            let batch = (count - published).min(500);
            publish(&target, published..published + batch);
            published += batch;
        }
        let catalogs = catalogs(&target);
        roots.push(catalogs[0].rows);
        let most = Layout::CROWDED_CATALOG + Layout::LARGE_DIRECTORY;
        for CatalogWeight { path, rows, .. } in &catalogs {
            assert!(*rows <= most as u64, "{count} images: {path} has {rows} rows");
        }
    }
    assert!(roots.iter().all(|rows| *rows == roots[0]) && roots[0] < 20, "the root never grows: {roots:?}");

    let paths: Vec<String> = catalogs(&target).into_iter().map(|catalog| catalog.path).collect();
    let has = |path: &str| paths.iter().any(|found| found == path);
    assert!(has("/registry0.example.org") && has("/.metadata/registry1.example.org"), "each registry");
    let is_split = |n: &usize| {
        let name = name(*n);
        has(&format!("/.metadata/{}", name.as_str().rsplit_once('/').unwrap().0))
    };
    let n = (0..2000).find(is_split).expect("a crowded catalog gives directories up");
    assert!(!has("/registry1.example.org/group1"), "none where there is room");
    let now = UtcDateTime::now();
    let mut view = target.view(now).unwrap();
    let mut hand = Hand::new(&target, &mut view, now).unwrap();
    let way = way(&mut hand, &OwnedPath::Image { platform: None, name: name(n) }).unwrap();
    let way: Vec<&str> = way.iter().map(|catalog| catalog.path.as_str()).collect();
    let group = format!("/.metadata/registry1.example.org/group{}", n % GROUPS);
    assert_eq!(way, ["/", "/.metadata", "/.metadata/registry1.example.org", &group]);
}
