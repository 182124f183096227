//! Into a registry: blobs first, then the manifests that name them.
//!
//! A blob is asked for (HEAD) and, if absent, sent in one piece: POST opens an upload, PUT to the location it returns
//! closes it with the digest (distribution-spec, "POST then PUT"). A failed upload is begun again with a new POST.
//!
//! Invariants
//! - The order is the caller's: a manifest whose blobs are missing is refused by registries.
//! - `Authorization` goes to an upload location only at the registry itself (see `transport`).
//! - The registry's own digest of what it stored is compared with ours.

use std::path::PathBuf;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method};
use image::digest::{Digest, ManifestDigest};
use image::reference::{Reference, Repository};

use crate::auth::Access;
use crate::client::{Client, declared_digest, verify};
use crate::error::Error;
use crate::retry::Attempts;
use crate::transport::{Body, Call, Target, location};

/// Where the bytes of a blob come from; read again for each attempt.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// in memory
    Bytes(Bytes),
    /// a file of exactly `size` bytes
    File {
        /// where it is
        path: PathBuf,
        /// its length in bytes
        size: u64,
    },
}

impl From<BlobSource> for Body {
    fn from(source: BlobSource) -> Self {
        match source {
            BlobSource::Bytes(bytes) => Self::Bytes(bytes),
            BlobSource::File { path, size } => Self::File { path, size },
        }
    }
}

/// What a push of a blob had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// the registry had it
    Present,
    /// it was sent
    Uploaded,
}

impl Client {
    /// Does the repository have this blob?
    pub async fn has_blob(&self, repository: &Repository, digest: Digest) -> Result<bool, Error> {
        let target = self.target(repository)?;
        Ok(self.has(&target, Access::Pull, digest).await?.is_some())
    }

    /// The size of a blob in bytes as the registry declares it, for those who have its digest only; nothing if it is absent.
    pub async fn blob_size(&self, repository: &Repository, digest: Digest) -> Result<Option<u64>, Error> {
        let target = self.target(repository)?;
        let Some(headers) = self.has(&target, Access::Pull, digest).await? else { return Ok(None) };
        let size = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let reason = || "the answer does not say how long the blob is".to_owned();
        let unknown =
            || Error::Protocol { place: target.place.clone(), what: format!("blob {digest}"), reason: reason() };
        size.ok_or_else(unknown).map(Some)
    }

    async fn has(&self, target: &Target, access: Access, digest: Digest) -> Result<Option<HeaderMap>, Error> {
        let what = format!("blob {digest}");
        let url = target.url(&format!("blobs/{digest}"));
        let call = Call { access, method: Method::HEAD, ..Call::get(target, url, &what) };
        match self.call(&call, &mut Attempts::new(&target.retry)).await {
            Ok(answer) => Ok(Some(answer.headers().clone())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that the repository has the blob; the registry verifies the digest.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        digest: Digest,
        source: BlobSource,
    ) -> Result<Pushed, Error> {
        let target = self.target(repository)?;
        if self.has(&target, Access::Push, digest).await?.is_some() {
            return Ok(Pushed::Present);
        }
        let what = format!("upload of {digest}");
        let mut attempts = Attempts::new(&target.retry);
        let mut put = Call {
            access: Access::Push,
            method: Method::PUT,
            body: source.into(),
            ..Call::get(&target, target.base.clone(), &what)
        };
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        loop {
            let url = target.url("blobs/uploads/");
            let post = Call { access: Access::Push, method: Method::POST, ..Call::get(&target, url, &what) };
            let opened = self.call(&post, &mut attempts).await?;
            put.url = location(opened.url(), opened.headers(), &target.place, &what)?;
            put.url.query_pairs_mut().append_pair("digest", &digest.to_string());
            match Box::pin(self.attempt(&put)).await {
                Ok(response) => {
                    verify(&target, &what, declared_digest(response.headers()), digest)?;
                    return Ok(Pushed::Uploaded);
                }
                // the upload is spoilt, a new one may work
                Err(failure) => self.pause(&mut attempts, failure, &target.session).await?,
            }
        }
    }

    /// Stores a manifest or an index under the reference's tag, or under its digest if it has no tag.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<ManifestDigest, Error> {
        let target = self.target(reference.repository())?;
        let digest = ManifestDigest::of(&bytes);
        let name = reference.simple_reference();
        let what = format!("upload of manifest {name}");
        verify(&target, &what, reference.digest().map(|expected| expected.digest()), digest.digest())?;
        let content_type = HeaderValue::from_str(media_type)
            .map_err(|_| Error::Configuration(format!("{what}: media type {media_type:?} can't be sent")))?;
        let call = Call {
            access: Access::Push,
            method: Method::PUT,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, content_type)]),
            body: Body::Bytes(bytes),
            ..Call::get(&target, target.url(&format!("manifests/{name}")), &what)
        };
        let response = self.call(&call, &mut Attempts::new(&target.retry)).await?;
        verify(&target, &what, declared_digest(response.headers()), digest.digest())?;
        Ok(digest)
    }
}
