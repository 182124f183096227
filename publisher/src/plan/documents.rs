//! The documents of images: what the repository keeps of them is read there, in the order of its paths; sources are asked for the rest,
//! for many at once.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use image::digest::{ImageId, ManifestDigest};
use image::layout::{IndexKey, OwnedPath};
use image::manifest::{Document, Manifest};
use image::platform::{Platform, choose};

use super::planner::Planner;
use crate::failure::Failure;
use crate::source::{Asked, RawDocument, Sources};

/// An image whose name was resolved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolved<'a> {
    pub(super) asked: Asked<'a>,
    pub(super) platform: &'a Platform,
    pub(super) digest: ManifestDigest,
}

/// What leads to an image's config and layers.
#[derive(Debug)]
pub(super) struct Documents {
    /// The index through which it was found, if there is one.
    pub(super) index: Option<RawDocument>,
    pub(super) document: RawDocument,
    pub(super) manifest: Manifest,
}

/// What a name led to.
enum Named {
    Image(Documents),
    /// An index, and which of its manifests is the one.
    Index(RawDocument, ManifestDigest),
}

fn named(document: RawDocument, image: &Resolved<'_>) -> Result<Named, Failure> {
    Ok(match document.parse()? {
        Document::Manifest(manifest) => Named::Image(Documents { index: None, document, manifest }),
        Document::Index(index) => {
            let choice = choose(&index, image.platform)?;
            tracing::debug!(image = %image.asked.source(), why = choice.why, "platform chosen");
            Named::Index(document, choice.entry.digest)
        }
    })
}

fn behind(index: RawDocument, document: RawDocument) -> Result<Documents, Failure> {
    match document.parse()? {
        Document::Manifest(manifest) => Ok(Documents { index: Some(index), document, manifest }),
        Document::Index(_) => Err(Failure::Content("an index within an index is not supported".into())),
    }
}

impl Planner<'_> {
    /// The manifests of images on their platforms.
    pub(super) fn documents(&mut self, images: &[Resolved<'_>]) -> Vec<Result<Documents, Failure>> {
        let asked: Vec<_> = images.iter().map(|image| (image.asked, image.digest)).collect();
        let first = self.raw_documents(&asked).into_iter().zip(images);
        let first: Vec<Result<Named, Failure>> = first.map(|(document, image)| named(document?, image)).collect();
        let of_index = first.iter().zip(images).filter_map(|(first, image)| match first {
            Ok(Named::Index(_, digest)) => Some((image.asked, *digest)),
            _ => None,
        });
        let mut second = self.raw_documents(&of_index.collect::<Vec<_>>()).into_iter();
        let complete = |first| match first? {
            Named::Image(documents) => Ok(documents),
            Named::Index(index, _) => behind(index, second.next().expect("one for each index")?),
        };
        first.into_iter().map(complete).collect()
    }

    fn raw_documents(&mut self, asked: &[(Asked<'_>, ManifestDigest)]) -> Vec<Result<RawDocument, Failure>> {
        let keep = |digest, bytes| RawDocument { digest, bytes, media_type: None };
        self.kept_or_fetched(asked, (IndexKey::Manifest, ManifestDigest::of), keep, Sources::documents)
    }

    /// The configs of images.
    pub(super) fn configs(&mut self, asked: &[(Asked<'_>, ImageId)]) -> Vec<Result<Vec<u8>, Failure>> {
        self.kept_or_fetched(asked, (IndexKey::Config, ImageId::of), |_, bytes| bytes, Sources::configs)
    }

    /// Documents by digest, in the order in which they are asked for. `of` says whether bytes are the ones.
    fn kept_or_fetched<'q, D: Copy + Ord + Hash, T>(
        &mut self,
        asked: &[(Asked<'q>, D)],
        (key, of): (impl Fn(D) -> IndexKey, impl Fn(&[u8]) -> D),
        keep: impl Fn(D, Vec<u8>) -> T,
        fetch: impl FnOnce(&Sources, &[(Asked<'q>, D)]) -> Vec<Result<T, Failure>>,
    ) -> Vec<Result<T, Failure>> {
        let distinct: BTreeSet<D> = asked.iter().map(|(_, digest)| *digest).collect();
        let mut read = |digest| {
            let kept = self.view.read(&OwnedPath::Index(key(digest)));
            (digest, kept.map(|bytes| bytes.filter(|bytes| of(bytes) == digest)).map_err(Arc::new))
        };
        let kept: HashMap<D, Result<Option<Vec<u8>>, Arc<Failure>>> = distinct.into_iter().map(&mut read).collect();
        let missing: Vec<_> = asked.iter().copied().filter(|(_, digest)| matches!(kept[digest], Ok(None))).collect();
        let mut fetched = fetch(self.sources, &missing).into_iter();
        let answer = |(_, digest): &(Asked<'q>, D)| match &kept[digest] {
            Ok(Some(bytes)) => Ok(keep(*digest, bytes.clone())),
            Ok(None) => fetched.next().expect("one for each that is missing"),
            Err(failure) => Err(Failure::Shared(failure.clone())),
        };
        asked.iter().map(answer).collect()
    }
}
