//! A fixture in memory, signed with keys of our own, so that it can be changed in one place and be right in all
//! others: catalogs above a changed one, reflog and manifest follow.

use std::fs::File;

use cvmfs::check::{Identity, Options, Report, check};
use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::manifest::Manifest;
use cvmfs::object::Compression;
use cvmfs::path::RepoPath;
use cvmfs::reflog::{self, Ref, RefKind};
use cvmfs::scrub::scrub;
use cvmfs::signature::{PrivateKey, Scheme, seal};
use cvmfs::store::{MemoryStore, Store as _, fetch, names, put_stream};
use cvmfs::trust::Anchor;
use rusqlite::Connection;
use tempfile::{NamedTempFile, TempDir};
use time::{Duration, UtcDateTime};

use crate::NOW;
use crate::fixtures::Files;

/// Master key and publisher's key; making them takes a while, so tests share them.
pub struct Keys {
    pub signer: Signer,
    pub master: PrivateKey,
}

impl Keys {
    pub fn generate() -> Keys {
        Keys {
            signer: Signer::generate("laboratory.example.org", NOW).unwrap(),
            master: PrivateKey::generate().unwrap(),
        }
    }
}

pub struct Laboratory<'a> {
    pub store: MemoryStore,
    pub manifest: Manifest,
    pub keys: &'a Keys,
    scratch: TempDir,
}

impl<'a> Laboratory<'a> {
    pub fn new(files: &Files, keys: &'a Keys) -> Laboratory<'a> {
        let store = MemoryStore::default();
        store.content().clone_from(files);
        let manifest = Manifest::parse(&files[names::MANIFEST]).unwrap();
        let mut laboratory = Laboratory { store, manifest, keys, scratch: tempfile::tempdir().unwrap() };
        let algorithm = laboratory.algorithm();
        let mut pem = keys.signer.certificate_pem.as_bytes();
        let (certificate, _) = put_stream(&laboratory.store, algorithm, ObjectKind::Certificate, &mut pem).unwrap();
        laboratory.manifest.certificate = Some(certificate);
        laboratory.whitelist(&keys.signer.certificate_pem, &keys.master, NOW + Duration::days(30));
        laboratory.publish();
        laboratory
    }

    /// The same for files that somebody has damaged: signed anew, and nothing put right on the way.
    pub fn with_faults(files: &Files, keys: &'a Keys) -> Laboratory<'a> {
        let store = MemoryStore::default();
        store.content().clone_from(files);
        let manifest = Manifest::parse(&files[names::MANIFEST]).unwrap();
        let mut laboratory = Laboratory { store, manifest, keys, scratch: tempfile::tempdir().unwrap() };
        let algorithm = laboratory.algorithm();
        let mut pem = keys.signer.certificate_pem.as_bytes();
        let (certificate, _) = put_stream(&laboratory.store, algorithm, ObjectKind::Certificate, &mut pem).unwrap();
        laboratory.manifest.certificate = Some(certificate);
        laboratory.whitelist(&keys.signer.certificate_pem, &keys.master, NOW + Duration::days(30));
        laboratory.sign();
        laboratory
    }

    pub fn algorithm(&self) -> Algorithm {
        self.manifest.root_catalog.algorithm
    }

    /// Issues a whitelist.
    pub fn whitelist(&self, certificate_pem: &str, master: &PrivateKey, expires: UtcDateTime) {
        let name = &self.manifest.name;
        let list = sign_whitelist(name, self.algorithm(), certificate_pem, master, NOW, expires).unwrap();
        self.store.replace(names::WHITELIST, &list).unwrap();
    }

    /// Enters the objects of the manifest into the reflog and signs.
    pub fn publish(&mut self) {
        let refs: Vec<Ref> = [
            (Some(self.manifest.root_catalog), RefKind::Catalog),
            (self.manifest.certificate, RefKind::Certificate),
            (self.manifest.history, RefKind::History),
            (self.manifest.meta_info, RefKind::MetaInfo),
        ]
        .into_iter()
        .filter_map(|(hash, kind)| Some(Ref { hash: hash?, kind, timestamp: 1 }))
        .collect();
        let name = self.manifest.name.clone();
        self.edit_reflog(|file| reflog::append(file, &name, &refs).unwrap());
        self.sign();
    }

    /// Changes the reflog and its hash in the manifest, which is not signed.
    pub fn edit_reflog(&mut self, edit: impl FnOnce(&std::path::Path)) {
        let file = self.scratch_file();
        std::fs::write(file.path(), self.store.read(names::REFLOG).unwrap().unwrap()).unwrap();
        edit(file.path());
        let content = std::fs::read(file.path()).unwrap();
        self.manifest.reflog = Some(ContentHash::of(self.algorithm(), &content));
        self.store.replace(names::REFLOG, &content).unwrap();
    }

    /// Signs the manifest as it is.
    pub fn sign(&self) {
        let sealed = seal(&self.manifest.print(), self.algorithm(), &self.keys.signer.key, Scheme::Digest).unwrap();
        self.store.replace(names::MANIFEST, &sealed).unwrap();
    }

    /// Runs SQL on the tag database.
    pub fn history(&mut self, sql: &str) {
        let old = self.manifest.history.unwrap();
        self.manifest.history = Some(self.edit_database(old.object(ObjectKind::History), sql).0);
        self.publish();
    }

    /// Runs SQL on the catalog mounted at `path`.
    pub fn catalog(&mut self, path: &str, sql: &str) {
        let path = RepoPath::parse(path).unwrap();
        let (hash, size) = self.edit_catalog(self.manifest.root_catalog, &RepoPath::ROOT, &path, sql);
        (self.manifest.root_catalog, self.manifest.root_catalog_size) = (hash, size);
        self.publish();
    }

    fn edit_catalog(&self, hash: ContentHash, at: &RepoPath, target: &RepoPath, sql: &str) -> (ContentHash, u64) {
        let id = hash.object(ObjectKind::Catalog);
        if at == target {
            return self.edit_database(id, sql);
        }
        let db = self.database(id);
        let db = Connection::open(db.path()).unwrap();
        let mut nested = db.prepare("SELECT path, sha1 FROM nested_catalogs").unwrap();
        let nested: Vec<(String, String)> =
            nested.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
        let (path, child) = nested
            .into_iter()
            .find(|(path, _)| RepoPath::parse(path).unwrap().contains(target))
            .expect("a catalog on the way");
        let (child, size) = self.edit_catalog(child.parse().unwrap(), &RepoPath::parse(&path).unwrap(), target, sql);
        let follow = format!("UPDATE nested_catalogs SET sha1 = '{child}', size = {size} WHERE path = '{path}'");
        self.edit_database(id, &follow)
    }

    fn edit_database(&self, id: ObjectId, sql: &str) -> (ContentHash, u64) {
        let file = self.database(id);
        let db = Connection::open(file.path()).unwrap();
        db.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        db.execute_batch(sql).unwrap_or_else(|e| panic!("{sql}: {e}"));
        db.close().unwrap();
        let mut plain = File::open(file.path()).unwrap();
        let size = plain.metadata().unwrap().len();
        (put_stream(&self.store, self.algorithm(), id.kind, &mut plain).unwrap().0, size)
    }

    fn database(&self, id: ObjectId) -> NamedTempFile {
        let mut file = self.scratch_file();
        fetch(&self.store, id, Compression::Zlib, u64::MAX, file.as_file_mut()).unwrap();
        file
    }

    fn scratch_file(&self) -> NamedTempFile {
        NamedTempFile::new_in(self.scratch.path()).unwrap()
    }

    /// Removes an object.
    pub fn remove(&self, id: ObjectId) {
        self.store.content().remove(&id.path()).expect("an object to remove");
    }

    /// Hash of the catalog mounted at a path directly below the root.
    pub fn nested(&self, path: &str) -> ContentHash {
        let file = self.database(self.manifest.root_catalog.object(ObjectKind::Catalog));
        let db = Connection::open(file.path()).unwrap();
        let text: String =
            db.query_row("SELECT sha1 FROM nested_catalogs WHERE path = ?1", [path], |row| row.get(0)).unwrap();
        text.parse().unwrap()
    }

    /// The database of the root catalog.
    pub fn plain_catalog(&self) -> Vec<u8> {
        std::fs::read(self.database(self.manifest.root_catalog.object(ObjectKind::Catalog)).path()).unwrap()
    }

    /// Check with the master key, then all stored bytes.
    pub fn examine(&self) -> Report {
        let master_keys = [self.keys.master.public()];
        // The name as it was before anybody tampered with it.
        let name = String::from_utf8_lossy(&self.store.read(names::WHITELIST).unwrap().unwrap_or_default())
            .lines()
            .find_map(|line| line.strip_prefix('N').map(str::to_owned))
            .unwrap_or_else(|| self.manifest.name.clone());
        let anchor = Anchor { name: &name, master_keys: &master_keys, blacklist: &[], now: NOW };
        let options = Options { identity: Identity::Trusted(&anchor), ..Options::new(self.scratch.path()) };
        let mut report = check(&self.store, &options).unwrap();
        report.merge(scrub(&self.store, 1).unwrap());
        report
    }
}

/// SQL condition for the row of a path.
pub fn at(path: &str) -> String {
    let key = RepoPath::parse(path).unwrap().key();
    format!("md5path_1 = {} AND md5path_2 = {}", key.high, key.low)
}

/// SQL that renames an entry within its directory.
pub fn rename(from: &str, to: &str) -> String {
    let to = RepoPath::parse(to).unwrap();
    let (key, name) = (to.key(), String::from_utf8_lossy(to.name()).into_owned());
    format!("UPDATE catalog SET md5path_1 = {}, md5path_2 = {}, name = '{name}' WHERE {}", key.high, key.low, at(from))
}
