//! What somebody wants, once wishes were expanded: one image on one platform.

use std::sync::Arc;

use image::digest::ImageId;
use image::layout::{ImageFile, Layout, ManifestRecord, OwnedPath};
use image::manifest::Manifest;
use image::platform::{Platform, PlatformDirectory};
use image::reference::{ImageSource, PublicName};

use crate::removal::Owner;
use crate::source::Asked;
use crate::startup::GivenList;
use crate::wishlist::{ImageOptions, PlainPath};

/// One image, on one platform, that somebody wants published.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The wish, as it stands in the list or on the command line.
    pub wish: String,
    /// Its line.
    pub line: Option<u64>,
    /// Where the image is.
    pub source: ImageSource,
    /// Where it is to appear.
    pub name: PublicName,
    /// Whose it is.
    pub owner: Option<String>,
    /// How urgent it is; the more the sooner.
    pub priority: i32,
    /// For which machines.
    pub platform: Platform,
    /// Below which directory of `.multiarch` it is to appear; none: it is the one for the default platform, at the plain path.
    pub place: Option<PlatformDirectory>,
    /// Whether it is wanted for several platforms: the default one then has a link below `.multiarch` as well.
    pub several: bool,
    /// What else the list says of it.
    pub options: Arc<ImageOptions>,
    /// What a start of it touches, if somebody says so.
    pub startup: Option<Arc<GivenList>>,
}

impl Wanted {
    /// How sources are asked for it.
    pub fn asked(&self) -> Asked<'_> {
        Asked::new(&self.source, self.options.credentials.as_deref())
    }

    /// Who has its records.
    pub fn owner(&self) -> Owner {
        Owner { platform: self.place.clone(), name: self.name.clone() }
    }

    /// One of its records.
    pub fn file(&self, file: ImageFile) -> OwnedPath {
        OwnedPath::ImageFile { platform: self.place.clone(), name: self.name.clone(), file }
    }

    /// Its link: of the default platform the one at the plain path.
    pub fn public(&self) -> OwnedPath {
        OwnedPath::Public { platform: self.place.clone(), name: self.name.clone() }
    }

    /// The link below `.multiarch` that it has, or may have, although it is the one for the default platform.
    pub fn second_link(&self) -> Option<OwnedPath> {
        let platform = Some(self.platform.directory()).filter(|_| self.place.is_none());
        platform.map(|platform| OwnedPath::Public { platform: Some(platform), name: self.name.clone() })
    }

    /// The public links that it is to have, and their texts. None without a flat, to which they lead.
    pub fn links(&self, layout: &Layout, image: ImageId) -> Vec<(OwnedPath, String)> {
        if !self.options.has_flat() {
            return Vec::new();
        }
        let flat = OwnedPath::Flat(image);
        let public = self.public();
        let second = self.second_link().filter(|_| self.several);
        let text = match &second {
            Some(_) if self.options.plain_path == Some(PlainPath::Variant) => {
                layout.variant_link(&self.name, &self.platform.directory())
            }
            _ => layout.link(&public, &flat),
        };
        let second = second.map(|path| (path.clone(), layout.link(&path, &flat)));
        std::iter::once((public, text)).chain(second).collect()
    }

    /// The record by whose presence the image counts as converted: it names the layers that are published with it.
    pub fn record(&self, manifest: &Manifest) -> ManifestRecord {
        let record = manifest.record();
        let layers = if self.options.has_layers() { record.layers } else { Vec::new() };
        ManifestRecord { layers, ..record }
    }

    /// The platform, where the image is wanted for several.
    pub fn named_platform(&self) -> Option<String> {
        self.several.then(|| self.platform.to_string())
    }
}
