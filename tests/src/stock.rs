//! A stratum 0 as the reference tools leave it: the storage of a fixture, what they keep beside it, their configuration.
//!
//! The keys of the fixtures are destroyed, so certificate, whitelist and manifest are signed anew, as `cvmfs_server
//! resign` and a publish with another certificate would leave them; nothing else changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cvmfs::hash::{ContentHash, ObjectId, ObjectKind};
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::manifest::Manifest;
use cvmfs::object::{Codec, Compression, Encoding, decode, encode_file, encode_stream};
use cvmfs::reflog::{self, Ref, RefKind};
use cvmfs::signature::{PrivateKey, Scheme, seal};
use cvmfs::store::{LocalStore, Store as _, fetch, names, put_stream};
use time::{Duration, UtcDateTime};

use crate::fixtures::Fixture;

/// What `mkfs` writes into `server.conf` by default, but for names and places.
pub const DEFAULTS: &str = "CVMFS_CREATOR_VERSION=143
CVMFS_REPOSITORY_TYPE=stratum0
CVMFS_USE_FILE_CHUNKING=true
CVMFS_MIN_CHUNK_SIZE=4194304
CVMFS_AVG_CHUNK_SIZE=8388608
CVMFS_MAX_CHUNK_SIZE=16777216
CVMFS_UNION_FS_TYPE=overlayfs
CVMFS_HASH_ALGORITHM=sha1
CVMFS_COMPRESSION_ALGORITHM=default
CVMFS_EXTERNAL_DATA=false
CVMFS_AUTO_TAG=true
CVMFS_AUTO_TAG_TIMESPAN=
CVMFS_GARBAGE_COLLECTION=false
CVMFS_AUTO_REPAIR_MOUNTPOINT=true
CVMFS_AUTOCATALOGS=false
CVMFS_INCLUDE_XATTRS=false
";

/// Lines of `client.local` that are none of our business.
pub const CLIENT_LOCAL: &str = "CVMFS_SERVER_URL='http://localhost/cvmfs/x'\nCVMFS_RELOAD_SOCKETS=/var/run/cvmfs\n";

/// A stratum 0 of the reference tools.
#[derive(Debug)]
pub struct Stock {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// In place of `/etc/cvmfs`.
    pub etc: PathBuf,
    /// Root of the storage.
    pub storage: PathBuf,
    /// In place of `/var/spool/cvmfs/FQRN`.
    pub spool: PathBuf,
    /// Room for the publisher's own state.
    pub state: PathBuf,
    // The fixture's own directory, where all of it is.
    fixture: Fixture,
}

impl Stock {
    /// The repository of a fixture; `settings` follow the defaults in `server.conf`.
    pub fn new(fixture: &str, settings: &str) -> Stock {
        Stock::of(Fixture::unpack(fixture), settings)
    }

    /// The same with a fixture that was unpacked, and perhaps damaged.
    pub fn of(fixture: Fixture, settings: &str) -> Stock {
        let below = |name: &str| fixture.top().join(format!("machine/{name}"));
        let fqrn = fixture.fqrn.clone();
        let (etc, storage, spool, state) = (below("etc"), fixture.storage.clone(), below("spool"), below("state"));
        LocalStore::create(&storage).expect("all buckets");
        let stock = Stock { fqrn, etc, storage, spool, state, fixture };
        for directory in ["rdonly", "scratch", "ofs_workdir", "cache", "tmp"] {
            fs::create_dir_all(stock.spool.join(directory)).expect("a directory");
        }
        for directory in [stock.keys(), stock.conf().parent().expect("a directory").to_owned()] {
            fs::create_dir_all(directory).expect("a directory");
        }
        stock.configure(settings);
        stock.sign_anew();
        let line = format!("CVMFS_ROOT_HASH={}\n", stock.manifest().root_catalog);
        fs::write(stock.spool.join("client.local"), format!("{line}{CLIENT_LOCAL}")).expect("client.local");
        stock
    }

    /// Where the keys are.
    pub fn keys(&self) -> PathBuf {
        self.etc.join("keys")
    }

    fn conf(&self) -> PathBuf {
        self.etc.join("repositories.d").join(&self.fqrn).join("server.conf")
    }

    /// Writes `server.conf`: the defaults, then these settings.
    pub fn configure(&self, settings: &str) {
        let (fqrn, storage, spool) = (&self.fqrn, self.storage.display(), self.spool.display());
        let places = format!(
            "CVMFS_REPOSITORY_NAME={fqrn}\nCVMFS_USER=cvmfs\nCVMFS_UNION_DIR=/cvmfs/{fqrn}\nCVMFS_SPOOL_DIR={spool}\n\
             CVMFS_STRATUM0=http://localhost/cvmfs/{fqrn}\nCVMFS_UPSTREAM_STORAGE=local,{storage}/data/txn,{storage}\n"
        );
        fs::write(self.conf(), format!("{DEFAULTS}{places}{settings}\n")).expect("server.conf");
    }

    /// New keys, a certificate, and what has to follow from that.
    fn sign_anew(&self) {
        let now = UtcDateTime::now();
        let store = LocalStore::open(&self.storage);
        let master = PrivateKey::generate().expect("a key");
        let signer = Signer::generate(&self.fqrn, now).expect("a certificate");
        let key = |extension: &str, text: &str| {
            fs::write(self.keys().join(format!("{}.{extension}", self.fqrn)), text).expect("a key file");
        };
        key("masterkey", &master.to_pem().expect("PEM"));
        key("pub", &master.public().to_pem().expect("PEM"));
        key("key", &signer.key.to_pem().expect("PEM"));
        key("crt", &signer.certificate_pem);

        let mut manifest = self.manifest();
        let algorithm = manifest.root_catalog.algorithm;
        let encoding = Encoding { algorithm, codec: Codec::REFERENCE };
        let mut pem = signer.certificate_pem.as_bytes();
        let (certificate, _) = put_stream(&store, encoding, ObjectKind::Certificate, &mut pem).expect("an object");
        manifest.certificate = Some(certificate);
        let reflog = self.storage.join(names::REFLOG);
        let row = Ref { hash: certificate, kind: RefKind::Certificate, timestamp: manifest.published };
        reflog::append(&reflog, &self.fqrn, &[row]).expect("a reflog");
        let hash = ContentHash::of(algorithm, &fs::read(&reflog).expect("a reflog"));
        manifest.reflog = Some(hash);
        fs::write(self.spool.join("reflog.chksum"), hash.to_string()).expect("reflog.chksum");
        let sealed = seal(&manifest.print(), algorithm, &signer.key, Scheme::Digest).expect("a signature");
        store.replace(names::MANIFEST, &sealed).expect("a manifest");
        let until = now + Duration::days(30);
        let whitelist = sign_whitelist(&self.fqrn, algorithm, &signer.certificate_pem, &master, now, until);
        store.replace(names::WHITELIST, &whitelist.expect("a signature")).expect("a whitelist");
    }

    /// The manifest as it is.
    pub fn manifest(&self) -> Manifest {
        Manifest::parse(&fs::read(self.storage.join(names::MANIFEST)).expect("a manifest")).expect("a manifest")
    }

    /// The fixture that it was made from.
    pub fn fixture(&self) -> &Fixture {
        &self.fixture
    }

    /// Every file of the storage by its path, with its content.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        collect(&self.storage, &self.storage, &mut found);
        found
    }

    /// Names and content of the files beside the storage.
    pub fn spool_files(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        collect(&self.spool, &self.spool, &mut found);
        found.into_iter().map(|(name, content)| (name, String::from_utf8_lossy(&content).into_owned())).collect()
    }

    /// The content of every file of the fixture, by path.
    pub fn contents(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let store = LocalStore::open(&self.storage);
        let info = self.fixture.info();
        let mut contents = BTreeMap::new();
        for item in self.fixture.listing().into_iter().filter(|item| item.kind == "file") {
            let compression = match item.compression.as_deref() {
                Some("none") => Compression::None,
                _ => Compression::Zlib,
            };
            let object = |hash: &str, kind| hash.parse::<ContentHash>().expect("as the fixtures have it").object(kind);
            let objects: Vec<ObjectId> = match &item.object {
                Some(hash) => vec![object(hash, ObjectKind::File)],
                None => {
                    let path = std::str::from_utf8(&item.path).expect("as the fixtures have it");
                    let files = info["chunked_files"].as_array().expect("as the fixtures have it");
                    let file = files.iter().find(|file| file["path"] == path).expect("chunks of the file");
                    let chunks = file["chunks"].as_array().expect("as the fixtures have it");
                    chunks
                        .iter()
                        .map(|c| object(c["hash"].as_str().expect("as the fixtures have it"), ObjectKind::Chunk))
                        .collect()
                }
            };
            let mut content = Vec::new();
            for id in objects {
                fetch(&store, id, compression, u64::MAX, &mut content).expect("as the fixtures have it");
            }
            assert_eq!(content.len() as u64, item.size);
            contents.insert(item.path, content);
        }
        contents
    }
}

/// The objects among files of a storage.
pub fn objects(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<ObjectId, &Vec<u8>> {
    let id = |path: &str| {
        let (bucket, name) = path.strip_prefix("data/")?.split_once('/')?;
        ObjectId::from_path_parts(bucket, name)
    };
    files.iter().filter_map(|(path, content)| Some((id(path)?, content))).collect()
}

/// Fails unless everything that was there is there unchanged, but for the files that a publish replaces, and each new
/// object is what the reference tools would have made of its content. Gives the new objects.
#[track_caller]
pub fn assert_only_added(
    before: &BTreeMap<String, Vec<u8>>,
    after: &BTreeMap<String, Vec<u8>>,
    codec: Codec,
) -> Vec<ObjectId> {
    for (path, content) in before {
        let is_replaced = [names::MANIFEST, names::REFLOG, ".cvmfsleases"].contains(&path.as_str());
        assert!(is_replaced || after.get(path) == Some(content), "{path} was changed");
    }
    let old = objects(before);
    let others: Vec<&String> = after.keys().filter(|p| !before.contains_key(*p) && !p.starts_with("data/")).collect();
    assert!(others.iter().all(|path| *path == ".cvmfsleases"), "{others:?} appeared");
    let new: Vec<(ObjectId, &Vec<u8>)> = objects(after).into_iter().filter(|(id, _)| !old.contains_key(id)).collect();
    for (id, stored) in &new {
        let is_file = matches!(id.kind, ObjectKind::File | ObjectKind::Chunk);
        let compression = if is_file { codec.compression() } else { Compression::Zlib };
        let plain = decode(*id, compression, stored, u64::MAX).expect("an object");
        let (mut again, encoding) = (Vec::new(), Encoding { algorithm: id.hash.algorithm, codec });
        let (hash, _): (ContentHash, u64) = match is_file {
            true => encode_file(encoding, &mut &plain[..], &mut again).expect("memory"),
            false => encode_stream(encoding, &mut &plain[..], &mut again).expect("memory"),
        };
        assert!(hash == id.hash && again == **stored, "{id} is not what zlib makes of it");
    }
    new.into_iter().map(|(id, _)| id).collect()
}

fn collect(root: &Path, directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("a directory").map(|e| e.expect("an entry")) {
        let path = entry.path();
        match entry.file_type().expect("a type").is_dir() {
            true => collect(root, &path, found),
            false => {
                let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
}
