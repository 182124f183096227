//! The reflog, as garbage collection sees it.

use std::path::Path;

use super::{Repository, RepositoryError, scratch_error, scratch_file};
use crate::hash::{ContentHash, ObjectId, ObjectKind};
use crate::keys::Signer;
use crate::manifest::Manifest;
use crate::reflog::{self, Ref, RefKind};
use crate::store::{names, put_stream};

impl Repository {
    /// All rows of the reflog; none if there is no reflog.
    pub fn reflog(&self, scratch: &Path) -> Result<Option<Vec<Ref>>, RepositoryError> {
        let Some(content) = self.store.read(names::REFLOG)? else { return Ok(None) };
        let file = scratch_file(scratch)?;
        std::fs::write(file.path(), content).map_err(scratch_error(scratch))?;
        reflog::read(file.path()).map(Some).map_err(self.database("reflog"))
    }

    /// Whether the stored manifest is still the one that this repository was opened with.
    pub fn is_current(&self) -> Result<bool, RepositoryError> {
        Ok(self.store.read(names::MANIFEST)? == self.sealed)
    }

    /// Takes rows out of the reflog. With a signer, a manifest of the same revision names the new hash of the reflog;
    /// the reference collector leaves the manifest alone, so that its `Y` is out of date until the next publish. Gives
    /// the repository as it is then, and the objects that the new manifest needs besides those of the old one.
    pub(crate) fn forget(
        self,
        refs: &[Ref],
        signer: Option<&Signer>,
        now: u64,
        scratch: &Path,
        checksum: Option<&Path>,
    ) -> Result<(Repository, Vec<ObjectId>), RepositoryError> {
        self.expect_unmoved()?;
        let algorithm = self.algorithm();
        let file = scratch_file(scratch)?;
        let old = self.store.read(names::REFLOG)?;
        std::fs::write(file.path(), old.as_deref().unwrap_or_default()).map_err(scratch_error(scratch))?;
        let certificate = match signer {
            Some(signer) => {
                let mut pem = signer.certificate_pem.as_bytes();
                Some(put_stream(&*self.store, self.encoding(), ObjectKind::Certificate, &mut pem)?.0)
            }
            None => None,
        };
        reflog::remove(file.path(), refs).map_err(self.database("reflog"))?;
        let published = now.max(self.manifest.published);
        if let Some(hash) = certificate.filter(|c| self.manifest.certificate != Some(*c)) {
            let new = Ref { hash, kind: RefKind::Certificate, timestamp: published };
            reflog::append(file.path(), &self.fqrn, &[new]).map_err(self.database("reflog"))?;
        }
        let content = std::fs::read(file.path()).map_err(scratch_error(scratch))?;
        let Some((signer, certificate)) = signer.zip(certificate) else {
            self.replace_reflog(old.as_deref(), &content, ContentHash::of(algorithm, &content), checksum)?;
            return Ok((self, Vec::new()));
        };
        let manifest = Manifest { published, certificate: Some(certificate), ..self.manifest.clone() };
        let repository = self.replace_manifest(manifest, old.as_deref(), &content, signer, checksum)?;
        Ok((repository, vec![certificate.object(ObjectKind::Certificate)]))
    }
}
