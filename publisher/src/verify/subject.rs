//! The image that is verified, as its own documents describe it.

use std::collections::HashSet;

use image::digest::{ChainId, DiffId, ImageId, ManifestDigest};
use image::layout::{ImageFile, IndexKey, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::{Config, Document, Layer, Manifest};

use super::Verification;
use crate::failure::Failure;
use crate::publish::Hand;
use crate::removal::Owner;
use crate::source::{Asked, RawDocument};

/// An image as its documents describe it.
pub(super) struct Subject {
    pub(super) owner: Owner,
    pub(super) image: String,
    pub(super) digest: ManifestDigest,
    pub(super) document: Vec<u8>,
    pub(super) index: Option<(ManifestDigest, Vec<u8>)>,
    pub(super) manifest: Manifest,
    pub(super) config_bytes: Vec<u8>,
    pub(super) config: Config,
    pub(super) layers: Vec<Layer>,
    pub(super) wished: Wished,
}

/// What the operator wants made of an image, as its records show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wished {
    pub(super) flat: bool,
    pub(super) layers: bool,
}

impl Wished {
    /// An image without layers has none in `manifest.json`; one without flat says so in `status.json`.
    fn read(hand: &mut Hand<'_>, owner: &Owner, manifest: &Manifest) -> Result<Wished, Failure> {
        let mut record = |file| {
            let Owner { platform, name } = owner.clone();
            hand.read(&OwnedPath::ImageFile { platform, name, file })
        };
        let status: Option<serde_json::Value> =
            record(ImageFile::Status)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let published = record(ImageFile::Manifest)?.and_then(|bytes| ManifestRecord::parse(&bytes).ok());
        let has_none = |r: ManifestRecord| r.config.digest == manifest.config && r.layers.is_empty();
        Ok(Wished {
            flat: status.is_none_or(|status| status["flat"] != false),
            layers: manifest.layers.is_empty() || !published.is_some_and(has_none),
        })
    }
}

impl Subject {
    /// The documents that the index of the repository keeps.
    pub(super) fn documents(&self) -> impl Iterator<Item = (ManifestDigest, &[u8])> {
        let index = self.index.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()));
        index.chain([(self.digest, self.document.as_slice())])
    }

    /// Distinct layers, bottom first, each with the chain that it stands on.
    pub(super) fn distinct(&self) -> Vec<(&Layer, Option<ChainId>)> {
        let diff_ids: Vec<DiffId> = self.layers.iter().map(|l| l.diff_id).collect();
        let below = std::iter::once(None).chain(ChainId::stack(&diff_ids).into_iter().map(Some));
        let mut seen = HashSet::new();
        self.layers.iter().zip(below).filter(|(l, _)| seen.insert(l.descriptor.digest)).collect()
    }
}

impl Verification<'_> {
    /// The documents of the image that is published, from wherever their digests are right.
    pub(super) fn subject(
        &self,
        hand: &mut Hand<'_>,
        owner: &Owner,
        status: &StatusRecord,
        from: Option<Asked<'_>>,
    ) -> Result<Subject, Failure> {
        let record = |file| {
            let Owner { platform, name } = owner.clone();
            OwnedPath::ImageFile { platform, name, file }
        };
        let document = |hand: &mut Hand<'_>, digest, kept: Option<OwnedPath>| {
            let places = [OwnedPath::Index(IndexKey::Manifest(digest))].into_iter().chain(kept);
            if let Some(bytes) = self.kept(hand, places, &|bytes| ManifestDigest::of(bytes) == digest) {
                return Ok(RawDocument { digest, bytes, media_type: None });
            }
            match from {
                Some(source) => self.sources.document(source, digest),
                None => Err(Failure::Content(format!(
                    "the manifest {digest} is nowhere in the repository, and there is no registry to ask"
                ))),
            }
        };
        let first = document(hand, status.digest, Some(record(ImageFile::RawManifest)))?;
        let index = match status.index {
            Some(digest) => Some((digest, document(hand, digest, None)?.bytes)),
            None => None,
        };
        let Document::Manifest(manifest) = first.parse()? else {
            return Err(Failure::Content(format!("{} is no manifest of an image", status.digest)));
        };
        let config = manifest.config;
        let places = [OwnedPath::Index(IndexKey::Config(config)), record(ImageFile::Config)];
        let config_bytes = match self.kept(hand, places, &|bytes| ImageId::of(bytes) == config) {
            Some(bytes) => bytes,
            None => match from {
                Some(source) => self.sources.config(source, manifest.config)?,
                None => {
                    return Err(Failure::Content(format!(
                        "the config {config} is nowhere in the repository, and there is no registry to ask"
                    )));
                }
            },
        };
        let config = Config::parse(&config_bytes)?;
        let layers = manifest.layers_with(&config)?;
        let wished = Wished::read(hand, owner, &manifest)?;
        let (image, digest) = (status.image.clone(), status.digest);
        Ok(Subject {
            owner: owner.clone(),
            image,
            digest,
            document: first.bytes,
            index,
            manifest,
            config_bytes,
            config,
            layers,
            wished,
        })
    }

    /// The first of these files that is right. One that cannot be read is reported where it is compared.
    fn kept(
        &self,
        hand: &mut Hand<'_>,
        places: impl IntoIterator<Item = OwnedPath>,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        places.into_iter().find_map(|path| hand.read(&path).ok().flatten().filter(|bytes| is_right(bytes)))
    }
}
