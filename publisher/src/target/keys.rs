//! The key files of a repository: `FQRN.masterkey`, `.pub`, `.key`, `.crt`. Nothing that exists is overwritten.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cvmfs::hash::Algorithm;
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::signature::{PrivateKey, PublicKey};
use cvmfs::store::{Store, names};
use time::UtcDateTime;

use crate::failure::Failure;

/// The key files of one repository.
#[derive(Debug)]
pub(super) struct KeyFiles<'a> {
    pub(super) directory: &'a Path,
    pub(super) fqrn: &'a str,
}

impl KeyFiles<'_> {
    pub(super) fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.fqrn))
    }

    fn read(&self, extension: &str) -> Result<String, Failure> {
        let path = self.file(extension);
        fs::read_to_string(&path).map_err(Failure::io("read", &path))
    }

    /// Writes a new key file; never over an existing one.
    fn write(&self, extension: &str, content: &str, mode: u32) -> Result<(), Failure> {
        let path = self.file(extension);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(Failure::io("create", &path))?;
        file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).map_err(Failure::io("write", &path))
    }

    fn parsed<T>(
        &self,
        extension: &str,
        parse: impl FnOnce(String) -> Result<T, cvmfs::signature::SignatureError>,
    ) -> Result<T, Failure> {
        parse(self.read(extension)?).map_err(|source| Failure::Key { path: self.file(extension), source })
    }

    pub(super) fn master(&self) -> Result<PrivateKey, Failure> {
        self.parsed("masterkey", |pem| PrivateKey::from_pem(&pem))
    }

    pub(super) fn public(&self) -> Result<PublicKey, Failure> {
        self.parsed("pub", |pem| PublicKey::from_pem(&pem))
    }

    pub(super) fn signer(&self) -> Result<Signer, Failure> {
        let certificate = self.read("crt")?;
        self.parsed("key", |key| Signer::from_pem(certificate, &key))
    }

    pub(super) fn ensure_master(&self) -> Result<PrivateKey, Failure> {
        let bad = |source| Failure::Key { path: self.file("masterkey"), source };
        if !self.file("masterkey").exists() {
            let key = PrivateKey::generate().map_err(bad)?;
            self.write("masterkey", &key.to_pem().map_err(bad)?, 0o400)?;
        }
        let key = self.master()?;
        if !self.file("pub").exists() {
            self.write("pub", &key.public().to_pem().map_err(bad)?, 0o444)?;
        }
        if self.public()? == key.public() {
            Ok(key)
        } else {
            Err(bad(cvmfs::signature::SignatureError::Key("private key that belongs to the .pub file beside it")))
        }
    }

    pub(super) fn ensure_signer(&self, now: UtcDateTime) -> Result<Signer, Failure> {
        if !self.file("key").exists() {
            let bad = |source| Failure::Key { path: self.file("key"), source };
            let signer = Signer::generate(self.fqrn, now).map_err(bad)?;
            self.write("key", &signer.key.to_pem().map_err(bad)?, 0o400)?;
            self.write("crt", &signer.certificate_pem, 0o444)?;
        }
        self.signer()
    }
}

/// Signs the whitelist of a repository anew; does not need the old one to be valid.
pub fn sign_whitelist_file(
    store: &dyn Store,
    fqrn: &str,
    keys: &Path,
    now: UtcDateTime,
    validity: time::Duration,
) -> Result<UtcDateTime, Failure> {
    let key = KeyFiles { directory: keys, fqrn };
    let (master, signer) = (key.master()?, key.signer()?);
    let manifest = store.read(names::MANIFEST)?.and_then(|m| cvmfs::manifest::Manifest::parse(&m).ok());
    let algorithm = manifest.map_or(Algorithm::Sha1, |m| m.root_catalog.algorithm);
    let expires = now + validity;
    let document = sign_whitelist(fqrn, algorithm, &signer.certificate_pem, &master, now, expires)
        .map_err(|source| Failure::Key { path: key.file("masterkey"), source })?;
    store.replace(names::WHITELIST, &document)?;
    Ok(expires)
}
