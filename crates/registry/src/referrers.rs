//! What refers to an image: signatures, attestations and other artifacts that name its digest as their subject.
//!
//! Registries of distribution-spec 1.1 list them ("Listing Referrers"). With others, who pushes an artifact keeps the list: an index
//! under the tag `sha256-<hex>` ("Referrers Tag Schema").
//!
//! Invariants
//! - A list is a hint. It is not verified, and cannot be; what it names is fetched by digest.
//! - It is bounded: 16 pages of a document's size, 1000 entries. What comes after them is left out.
//! - A mirror that knows of none is no proof that there is none: the registry itself is asked.

use std::collections::BTreeMap;

use http::HeaderValue;
use http::header::ACCEPT;
use image::digest::ManifestDigest;
use image::reference::{Reference, Repository};

use crate::client::Client;
use crate::endpoints::{Wants, useful};
use crate::error::Error;
use crate::pages::next_page;
use crate::transport::{Call, Target};

/// Pages that are read of a list.
const PAGES: usize = 16;
/// Entries that are given.
const ENTRIES: usize = 1000;
/// Media type of a list.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Something that refers to an image, as a list describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// Digest of its manifest.
    pub digest: ManifestDigest,
    /// What it says of itself.
    pub annotations: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Page {
    manifests: Vec<Entry>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    digest: String,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Page {
    /// Those of a type. Who pushes to the tag may have left the type out.
    fn of_type(self, artifact_type: &str) -> impl Iterator<Item = Referrer> {
        let is_meant = move |entry: &Entry| entry.artifact_type.as_deref().is_none_or(|found| found == artifact_type);
        let parse = |entry: Entry| {
            let digest = ManifestDigest::parse(&entry.digest).ok()?;
            Some(Referrer { digest, annotations: entry.annotations.unwrap_or_default() })
        };
        self.manifests.into_iter().filter(is_meant).filter_map(parse)
    }
}

impl Client {
    /// The artifacts of this type that refer to a manifest or an index.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: ManifestDigest,
        artifact_type: &str,
    ) -> Result<Vec<Referrer>, Error> {
        let endpoints = self.endpoints(repository, Wants::Names)?;
        for mirror in &endpoints.mirrors {
            let found = useful(mirror, self.referrers_at(mirror, subject, artifact_type).await);
            if let Some(found) = found.filter(|found| !found.is_empty()) {
                return Ok(found);
            }
        }
        self.referrers_at(&endpoints.origin, subject, artifact_type).await
    }

    async fn referrers_at(
        &self,
        target: &Target,
        subject: ManifestDigest,
        artifact_type: &str,
    ) -> Result<Vec<Referrer>, Error> {
        match self.listed_referrers(target, subject, artifact_type).await? {
            Some(found) => Ok(found),
            None => self.tagged_referrers(target, subject, artifact_type).await,
        }
    }

    /// What the registry lists; nothing if it keeps no such lists.
    async fn listed_referrers(
        &self,
        target: &Target,
        subject: ManifestDigest,
        artifact_type: &str,
    ) -> Result<Option<Vec<Referrer>>, Error> {
        let what = format!("list of what refers to {subject}");
        let mut url = target.url(&format!("referrers/{subject}"));
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        let mut found = Vec::new();
        for page in 0..PAGES {
            let mut call = Call::get(target, url, &what);
            call.headers.insert(ACCEPT, HeaderValue::from_static(INDEX));
            let (headers, from, body) = match self.document(&call, self.config().document_limit).await {
                Ok(answer) => answer,
                // 404 is what the specification says; the others are what registries say that know no such path.
                Err(Error::NotFound { .. } | Error::Status { status: 400 | 405 | 406 | 501, .. }) if page == 0 => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            let Ok(list) = serde_json::from_slice::<Page>(&body) else {
                // Some answer every path with a page for people.
                return Ok((page > 0).then_some(found));
            };
            found.extend(list.of_type(artifact_type).take(ENTRIES - found.len()));
            match next_page(target, &from, &headers, &what)? {
                Some(next) if found.len() < ENTRIES => url = next,
                _ => break,
            }
        }
        Ok(Some(found))
    }

    /// What stands under the tag; nothing that is an index there means that nothing refers to the subject.
    async fn tagged_referrers(
        &self,
        target: &Target,
        subject: ManifestDigest,
        artifact_type: &str,
    ) -> Result<Vec<Referrer>, Error> {
        let tag = format!("{}:sha256-{}", target.repository, subject.hex());
        let tag = Reference::parse(&tag).map_err(|error| Error::Configuration(format!("{tag}: {error}")))?;
        let list = match self.manifest_at(target, &tag).await {
            Ok(manifest) => serde_json::from_slice::<Page>(&manifest.bytes),
            Err(Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(list.map(|list| list.of_type(artifact_type).take(ENTRIES).collect()).unwrap_or_default())
    }
}
