//! A repository written by our own library, for what the fixtures do not have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cvmfs::entry::{Chunk, Entry, Flags, Meta};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::manifest::Manifest;
use cvmfs::object::{Codec, Compression, Encoder};
use cvmfs::path::RepoPath;
use cvmfs::repository::{CreateOptions, Repository};
use cvmfs::signature::{PrivateKey, Scheme, seal};
use cvmfs::store::{LocalStore, Store, put_content, put_stream};
use cvmfs::transaction::{Commit, Transaction, TransactionOptions};
use cvmfs::xattr::Xattrs;
use time::{Duration, UtcDateTime};

pub const FQRN: &str = "published.example.org";

pub struct Published {
    pub directory: tempfile::TempDir,
    signer: Signer,
    repository: Option<Repository>,
    encoder: Encoder,
}

/// Metadata with these permissions, owned by root.
pub fn meta(permissions: u32) -> Meta {
    Meta { permissions, mtime: 1_700_000_000, ..Meta::default() }
}

impl Published {
    /// An empty repository in `srv/FQRN` of a new directory, its key in `FQRN.pub`.
    pub fn new() -> Published {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("srv").join(FQRN);
        std::fs::create_dir_all(&root).unwrap();
        let store: Arc<dyn Store> = Arc::new(LocalStore::create(&root).unwrap());
        let now = UtcDateTime::now();
        let (signer, master) = (Signer::generate(FQRN, now).unwrap(), PrivateKey::generate().unwrap());
        std::fs::write(directory.path().join("key.pub"), master.public().to_pem().unwrap()).unwrap();
        let options = CreateOptions {
            fqrn: FQRN.into(),
            algorithm: Algorithm::Sha1,
            ttl: 240,
            garbage_collectable: true,
            root: meta(0o755),
            now,
            whitelist_expires: now + Duration::days(30),
            scratch: directory.path().to_owned(),
        };
        let repository = Repository::create(store, &options, &signer, &master).unwrap();
        let encoder = Encoder::new(Algorithm::Sha1, Codec::default());
        Published { directory, signer, repository: Some(repository), encoder }
    }

    pub fn key(&self) -> PathBuf {
        self.directory.path().join("key.pub")
    }

    pub fn served(&self) -> PathBuf {
        self.directory.path().join("srv")
    }

    /// Stores content; gives the entry of a file that has it.
    pub fn file(&mut self, permissions: u32, content: &[u8]) -> Entry {
        let store = self.repository.as_ref().unwrap().store().clone();
        let (hash, _) = put_content(&*store, &mut self.encoder, ObjectKind::File, content).unwrap();
        Entry::file("", meta(permissions), content.len() as u64, hash, Compression::Zlib)
    }

    /// Publishes these entries over what is there.
    pub fn publish(&mut self, entries: Vec<(&str, Entry)>) {
        self.publish_with_chunks(entries.into_iter().map(|(path, entry)| (path, entry, &[][..])).collect());
    }

    /// The same for chunked files.
    pub fn publish_with_chunks(&mut self, entries: Vec<(&str, Entry, &[Chunk])>) {
        self.transaction(|transaction| {
            for (path, entry, chunks) in entries {
                transaction.put(&RepoPath::parse(path).unwrap(), entry, chunks).unwrap();
            }
        });
    }

    /// Publishes without this path and what is below it.
    pub fn remove(&mut self, path: &str) {
        self.transaction(|transaction| transaction.remove(&RepoPath::parse(path).unwrap()).unwrap());
    }

    fn transaction(&mut self, edit: impl FnOnce(&mut Transaction)) {
        let marker = self.file(0o644, b"");
        let marker = Entry { flags: marker.flags.with(Flags::HIDDEN), ..marker };
        let scratch: &Path = self.directory.path();
        let options = TransactionOptions { now: UtcDateTime::now(), scratch: scratch.to_owned(), marker };
        let mut transaction = Transaction::begin(self.repository.take().unwrap(), options).unwrap();
        edit(&mut transaction);
        let commit = Commit { signer: &self.signer, reflog_checksum: None, tags: &[], ttl: None };
        self.repository = Some(transaction.commit(&commit).unwrap().repository);
    }
}

impl Published {
    /// Changes the database of the root catalog itself, and signs the result as the next revision. The last thing to
    /// be done: nothing can be published over it.
    pub fn rewrite_root(&mut self, edit: impl FnOnce(&rusqlite::Connection)) {
        let repository = self.repository.take().unwrap();
        let object = repository.manifest().root_catalog.object(ObjectKind::Catalog);
        let stored = std::fs::read(self.served().join(FQRN).join(object.path())).unwrap();
        let plain = cvmfs::object::decode(object, Compression::Zlib, &stored, 1 << 30).unwrap();
        let file = self.directory.path().join("root-catalog");
        std::fs::write(&file, plain).unwrap();
        let database = rusqlite::Connection::open(&file).unwrap();
        let revision = (repository.manifest().revision + 1).to_string();
        database.execute("UPDATE properties SET value = ?1 WHERE key = 'revision'", [revision]).unwrap();
        edit(&database);
        drop(database);
        self.repository = Some(repository);
        self.replace_root(&mut std::fs::File::open(&file).unwrap());
    }

    /// Stores anything as root catalog, and signs it as the next revision. The last thing to be done, too.
    pub fn replace_root(&mut self, plain: &mut dyn std::io::Read) {
        let repository = self.repository.as_ref().unwrap();
        let (root, _) = put_stream(&**repository.store(), Algorithm::Sha1, ObjectKind::Catalog, plain).unwrap();
        self.sign_next(|manifest| {
            manifest.root_catalog = root;
            // Not known.
            manifest.root_catalog_size = 0;
        });
    }

    /// Signs another manifest as the next revision.
    pub fn sign_next(&self, edit: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.repository.as_ref().unwrap().manifest().clone();
        manifest.revision += 1;
        manifest.published += 1;
        edit(&mut manifest);
        let sealed = seal(&manifest.print(), Algorithm::Sha1, &self.signer.key, Scheme::Digest).unwrap();
        std::fs::write(self.served().join(FQRN).join(".cvmfspublished"), sealed).unwrap();
    }
}

/// The entry with these extended attributes.
pub fn with_xattrs(entry: Entry, xattrs: &[(&str, &[u8])]) -> Entry {
    let xattrs: Xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    Entry { xattrs: cvmfs::xattr::pack(&xattrs).unwrap().map(Into::into), ..entry }
}
