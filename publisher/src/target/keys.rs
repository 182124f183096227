//! The key files of a repository: `FQRN.masterkey`, `.pub`, `.key`, `.crt`. Nothing that exists is overwritten.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use cvmfs::hash::Algorithm;
use cvmfs::keys::{Signer, sign_whitelist};
use cvmfs::signature::{Envelope, PrivateKey, PublicKey, Scheme, seal};
use cvmfs::store::{Store, names};
use cvmfs::whitelist::Whitelist;
use time::UtcDateTime;

use crate::failure::Failure;

/// The list, if this key has signed it, whether or not it is still good.
fn signed_by(document: &[u8], master: &PublicKey) -> Option<Whitelist> {
    let envelope = Envelope::open(document).ok()?;
    envelope.verify(master, Scheme::Raw).ok()?;
    Whitelist::parse(envelope.text).ok()
}

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

/// When too little is left of a whitelist to wait any longer.
pub const NEAR: time::Duration = time::Duration::days(10);

/// The end of a whitelist, and what can be done about it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WhitelistEnd {
    /// When clients refuse it; none if there is no list, or none that can be read.
    pub expires: Option<UtcDateTime>,
    /// Whether the master key is at hand.
    pub has_master: bool,
}

impl WhitelistEnd {
    /// Of a repository.
    pub fn of(store: &dyn Store, keys: &Path, fqrn: &str) -> Self {
        let list = store.read(names::WHITELIST).ok().flatten().and_then(|list| Whitelist::parse(&list).ok());
        let has_master = KeyFiles { directory: keys, fqrn }.file("masterkey").exists();
        Self { expires: list.map(|list| list.expires), has_master }
    }

    /// Whether it has to be renewed by now.
    pub fn is_near(&self, now: UtcDateTime) -> bool {
        self.expires.is_none_or(|expires| expires - now < NEAR)
    }

    /// What to say about it, if there is something to say.
    pub fn warning(&self, fqrn: &str, now: UtcDateTime) -> Option<String> {
        if !self.is_near(now) {
            return None;
        }
        let end = match self.expires {
            None => "can't be read".to_owned(),
            Some(expires) if expires <= now => format!("expired at {expires}: clients refuse the repository"),
            Some(expires) => format!("expires at {expires}"),
        };
        let remedy = match self.has_master {
            true => format!("renew it: cvmfs-publisher sign {fqrn}"),
            false => {
                "there is no master key here: renew it where the key is (cvmfs-publisher sign or cvmfs_server resign)"
                    .to_owned()
            }
        };
        Some(format!("the whitelist of {fqrn} {end}; {remedy}"))
    }
}

/// Says that the whitelist ends soon, and who can do what about it.
pub(super) fn warn_of_expiry(store: &dyn Store, keys: &Path, fqrn: &str) {
    if let Some(warning) = WhitelistEnd::of(store, keys, fqrn).warning(fqrn, UtcDateTime::now()) {
        tracing::warn!("{warning}");
    }
}

/// Signs the whitelist of a repository anew; does not need the old one to be valid. Certificates that the old one
/// allows, signed by the same key, stay allowed.
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
    let bad = |source| Failure::Key { path: key.file("masterkey"), source };
    let old = match store.read(names::WHITELIST)? {
        Some(old) => signed_by(&old, &master.public()),
        None => None,
    };
    if let Some(what) = old.as_ref().and_then(|old| old.unsupported.as_ref()) {
        return Err(Failure::Content(format!(
            "the whitelist of {fqrn} asks for a verification that is not made here ({what}); renew it with cvmfs_server resign"
        )));
    }
    let document = sign_whitelist(fqrn, algorithm, &signer.certificate_pem, &master, now, expires).map_err(bad)?;
    let document = match old {
        Some(old) => {
            let mut list = Envelope::open(&document)
                .ok()
                .and_then(|new| Whitelist::parse(new.text).ok())
                .expect("what was just signed");
            let others = old.fingerprints.into_iter().filter(|f| !list.fingerprints.contains(f)).collect::<Vec<_>>();
            list.fingerprints.extend(others);
            seal(&list.print(), algorithm, &master, Scheme::Raw).map_err(bad)?
        }
        None => document,
    };
    store.replace(names::WHITELIST, &document)?;
    Ok(expires)
}
