//! Repositories of the existing container publisher, taken over: the fixtures `ducc*` with keys of ours, and a registry
//! with the images that they were made from.
//!
//! The keys of the fixtures are destroyed, so whitelist and manifest are signed anew; nothing else changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;

use cvmfs::hash::{Algorithm, ContentHash, ObjectKind};
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::manifest::Manifest;
use cvmfs::signature::{PrivateKey, Scheme, seal};
use cvmfs::store::{LocalStore, Store as _, names, put_stream};
use publisher::cli::Paths;
use registry::testing::TestRegistry;
use serde_json::Value;
use tempfile::TempDir;
use time::{Duration, UtcDateTime};

use crate::fixtures::Fixture;
use crate::repository::Site;

/// Host name under which the images of the fixtures were published.
pub const HOST: &str = "registry.fixture.example.org";

/// The wishes of the fixtures: image repository, tag, and the image of the layout in the first and the second pass.
pub const WISHES: [(&str, &str, &str, &str); 4] = [
    ("fixture/app", "1.0", "app-1.0", "app-1.0"),
    ("fixture/moving", "latest", "moving-first", "moving-second"),
    ("fixture/wild", "v1.0", "wild-v1.0", "wild-v1.0"),
    ("fixture/wild", "v1.1", "wild-v1.1", "wild-v1.1"),
];

/// Whether the fixtures of this module are there; says so if not, and fails where all tests are wanted.
pub fn available() -> bool {
    let found = home("ducc").is_some();
    if !found {
        assert!(std::env::var_os("ALL_TESTS").is_none(), "fixture ducc is not there; set CVMFS_FIXTURES");
        eprintln!("skipped: fixture ducc is not there; set CVMFS_FIXTURES");
    }
    found
}

fn home(name: &str) -> Option<PathBuf> {
    let beside = crate::fixtures::directory().join("../../../shared/fixtures");
    let directory = std::env::var_os("CVMFS_FIXTURES").map_or(beside, PathBuf::from);
    directory.join(format!("{name}.tar.zst")).is_file().then_some(directory)
}

/// A fixture as a repository of ours: signed with fresh keys, with a publisher's state of its own.
pub fn adopt_with_new_keys(fixture: &Fixture) -> Site {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let paths = paths(&directory);
    let storage = paths.storage.directory().expect("a directory");
    crate::repository::copy(&fixture.storage, storage);
    fs::create_dir_all(&paths.keys).expect("a directory");
    let now = UtcDateTime::now();
    let master = PrivateKey::generate().expect("a key");
    let signer = Signer::generate(&fixture.fqrn, now).expect("a key");
    let write = |extension: &str, text: &str| {
        fs::write(paths.keys.join(format!("{}.{extension}", fixture.fqrn)), text).expect("a key file");
    };
    write("masterkey", &master.to_pem().expect("PEM"));
    write("pub", &master.public().to_pem().expect("PEM"));
    write("key", &signer.key.to_pem().expect("PEM"));
    write("crt", &signer.certificate_pem);
    let store = LocalStore::open(storage);
    let sealed = store.read(names::MANIFEST).expect("a storage").expect("a manifest");
    let mut manifest = Manifest::parse(&sealed).expect("a manifest");
    let algorithm = manifest.root_catalog.algorithm;
    let mut pem = signer.certificate_pem.as_bytes();
    let (certificate, _) = put_stream(&store, algorithm, ObjectKind::Certificate, &mut pem).expect("a storage");
    manifest.certificate = Some(certificate);
    enter_into_reflog(&store, &mut manifest, certificate);
    let whitelist =
        sign_whitelist(&fixture.fqrn, algorithm, &signer.certificate_pem, &master, now, now + Duration::days(30));
    store.replace(names::WHITELIST, &whitelist.expect("a whitelist")).expect("a storage");
    sign(&store, &manifest, algorithm, &signer);
    Site::existing(&fixture.fqrn, directory)
}

/// Signs the manifest of a repository that somebody has changed by hand.
pub fn sign(store: &LocalStore, manifest: &Manifest, algorithm: Algorithm, signer: &Signer) {
    let sealed = seal(&manifest.print(), algorithm, &signer.key, Scheme::Digest).expect("a signature");
    store.replace(names::MANIFEST, &sealed).expect("a storage");
}

/// The new certificate has to be in the reflog; whether the manifest was right about it stays as it is.
fn enter_into_reflog(store: &LocalStore, manifest: &mut Manifest, certificate: ContentHash) {
    let Some(old) = store.read(names::REFLOG).expect("a storage") else { return };
    let was_right = manifest.reflog.is_some_and(|h| h == ContentHash::of(h.algorithm, &old));
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), old).expect("a file");
    let entry = cvmfs::reflog::Ref {
        hash: certificate,
        kind: cvmfs::reflog::RefKind::Certificate,
        timestamp: manifest.published,
    };
    if cvmfs::reflog::append(file.path(), &manifest.name, &[entry]).is_err() {
        return;
    }
    let new = fs::read(file.path()).expect("a file");
    store.replace(names::REFLOG, &new).expect("a storage");
    if was_right {
        manifest.reflog = Some(ContentHash::of(certificate.algorithm, &new));
    }
}

fn paths(directory: &TempDir) -> Paths {
    let path = |name: &str| directory.path().join(name);
    fs::create_dir_all(path("storage")).expect("a directory");
    Paths { storage: path("storage").into(), keys: path("keys"), state: path("state") }
}

/// The images that the fixtures were made from.
#[derive(Debug)]
pub struct Images {
    /// Files of the layout by path.
    files: BTreeMap<String, Vec<u8>>,
}

impl Images {
    /// Reads the archive with the layout.
    pub fn read() -> Images {
        let home = home("ducc-images").expect("the images are beside the fixtures");
        let archive = File::open(home.join("ducc-images.tar.zst")).expect("the archive");
        let mut archive = tar::Archive::new(zstd::Decoder::new(archive).expect("zstd"));
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            if let Some((_, below)) = path.split_once("/oci/") {
                files.insert(below.to_owned(), content);
            }
        }
        Images { files }
    }

    fn blob(&self, digest: &str) -> &[u8] {
        &self.files[&format!("blobs/{}", digest.replace(':', "/"))]
    }

    /// Pushes an image of the layout, byte for byte.
    pub fn push(&self, registry: &TestRegistry, image: &str, repository: &str, tag: &str) {
        let index: Value = serde_json::from_slice(&self.files["index.json"]).expect("JSON");
        let named = |m: &&Value| m["annotations"]["org.opencontainers.image.ref.name"] == image;
        let entry = index["manifests"].as_array().expect("a list").iter().find(named).expect("an image of the layout");
        let bytes = self.blob(entry["digest"].as_str().expect("a digest"));
        let manifest: Value = serde_json::from_slice(bytes).expect("JSON");
        let layers = manifest["layers"].as_array().expect("a list").iter();
        for part in layers.chain([&manifest["config"]]) {
            registry.put_blob(self.blob(part["digest"].as_str().expect("a digest")).to_vec());
        }
        registry.put_manifest(repository, tag, entry["mediaType"].as_str().expect("a type"), bytes.to_vec());
    }

    /// Pushes what the wishes of the fixtures name after their second pass.
    pub fn push_all(&self, registry: &TestRegistry) {
        for (repository, tag, _, image) in WISHES {
            self.push(registry, image, repository, tag);
        }
    }
}

/// The wishes as a converter takes them: images of this registry under the names that the fixtures know.
pub fn wishes(registry: &TestRegistry) -> Vec<(String, String)> {
    let wish = |(repository, tag, ..): &(&str, &str, &str, &str)| {
        (format!("{}/{repository}:{tag}", registry.url()), format!("{HOST}/{repository}:{tag}"))
    };
    WISHES.iter().map(wish).collect()
}
