//! Thin images of what is published, all layers being there.
//!
//! One published platform gives a manifest, several give an index of manifests. The bytes depend on nothing but the source, see
//! [`image::thin`].

use image::digest::LayerDigest;
use image::platform::Platform;
use image::reference::PublicName;
use image::thin::{self, Blob, Source, ThinError, ThinImage, ThinRecord};

use crate::names::Wanted;
use crate::published::{Published, PublishedError, Repository};

/// For which machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platforms {
    /// all that are published
    All,
    /// what this one runs
    One(Platform),
    /// what this one runs; if only one is published, that
    Prefer(Platform),
}

impl std::str::FromStr for Platforms {
    type Err = image::platform::PlatformError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" { Ok(Self::All) } else { Platform::parse(text).map(Self::One) }
    }
}

/// The platform of this machine.
pub fn this_machine() -> Platform {
    Platform::new("linux", std::env::consts::ARCH, None)
        .expect("the architecture that this was compiled for has a name")
}

/// Why there is no thin image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The repository, or the image in it.
    #[error(transparent)]
    Published(#[from] PublishedError),
    /// It is published for other machines.
    #[error("{image} is not published for {wanted}; there is {available}")]
    Platform {
        /// which image
        image: String,
        /// what was asked for
        wanted: Platform,
        /// what there is
        available: String,
    },
    /// Layers are not in the repository.
    #[error("{} of the layers of {image} are not in {repository}: {}", layers.len(), list(layers))]
    MissingLayers {
        /// which image
        image: String,
        /// where they should be
        repository: String,
        /// which
        layers: Vec<LayerDigest>,
    },
    /// The image can't be written as a thin one.
    #[error("{image}: {source}")]
    Thin {
        /// which image
        image: String,
        /// why
        source: ThinError,
    },
}

fn list(layers: &[LayerDigest]) -> String {
    layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A thin image, or several with their index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// under which name its source is published
    pub name: PublicName,
    /// which repository has the layers
    pub repository: String,
    /// one a platform, that of the default platform first
    pub images: Vec<ThinImage>,
    /// of all of them, if there are several
    pub index: Option<Blob>,
}

impl Thin {
    /// Makes the thin images of a published one.
    pub fn make(repository: &Repository, wanted: &Wanted, platforms: &Platforms) -> Result<Self, BuildError> {
        let published = select(repository.find(wanted)?, platforms)?;
        let name = published[0].name.clone();
        let origin = published[0].origin.clone();
        let images: Vec<ThinImage> =
            published.iter().map(|image| make_one(repository, image)).collect::<Result<_, _>>()?;
        let index = (images.len() > 1).then(|| thin::index(&images, &origin));
        Ok(Self { name, repository: repository.name().to_owned(), images, index })
    }

    /// What the name of the image leads to: the index or the only manifest.
    pub fn top(&self) -> &Blob {
        self.index.as_ref().unwrap_or(&self.images[0].manifest)
    }

    /// Everything but the top: layers and configs, then manifests.
    pub fn parts(&self) -> impl Iterator<Item = &Blob> {
        let blobs = self.images.iter().flat_map(|image| [&image.layer, &image.config]);
        let manifests = self.images.iter().map(|image| &image.manifest).filter(|_| self.index.is_some());
        blobs.chain(manifests)
    }

    /// Bytes of all documents and blobs.
    pub fn size(&self) -> usize {
        self.parts().chain([self.top()]).map(|blob| blob.bytes.len()).sum()
    }
}

/// The images for the wanted machines, at least one.
pub fn select(images: Vec<Published>, platforms: &Platforms) -> Result<Vec<Published>, BuildError> {
    let (wanted, alone) = match platforms {
        Platforms::All => return Ok(images),
        Platforms::One(wanted) => (wanted, false),
        Platforms::Prefer(wanted) => (wanted, images.len() == 1),
    };
    if alone {
        return Ok(images);
    }
    let image = images[0].name.to_string();
    let names = images.iter().map(|image| match &image.config.platform {
        Some(platform) => platform.to_string(),
        None => "one that states no platform".into(),
    });
    let available = names.collect::<Vec<_>>().join(", ");
    match crate::published::choose(images, wanted) {
        Some(image) => Ok(vec![image]),
        None => Err(BuildError::Platform { image, wanted: wanted.clone(), available }),
    }
}

fn make_one(repository: &Repository, image: &Published) -> Result<ThinImage, BuildError> {
    let thin = |source: ThinError| BuildError::Thin { image: image.name.to_string(), source };
    let source = Source {
        name: &image.origin,
        manifest: &image.manifest,
        manifest_digest: image.digest,
        config: &image.config_bytes,
        repository: repository.name(),
    };
    let mut record = ThinRecord::new(&source).map_err(thin)?;
    let layers = image.layers().map_err(|source| thin(source.into()))?;
    let mut missing = Vec::new();
    for (entry, layer) in record.layers.iter_mut().zip(&layers) {
        match repository.layer(layer)? {
            Some(found) if found == entry.layer => {}
            // The blob is another one, so its size is another one.
            Some(found) => (entry.layer, entry.size) = (found, None),
            None => missing.push(layer.descriptor.digest),
        }
    }
    if !missing.is_empty() {
        return Err(BuildError::MissingLayers {
            image: image.name.to_string(),
            repository: repository.name().to_owned(),
            layers: missing,
        });
    }
    ThinImage::with_record(&source, record).map_err(thin)
}
