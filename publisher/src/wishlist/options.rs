//! What a list of version 2 says of an image besides its name: as values, each of them optional.
//!
//! An entry's own options win over the `defaults` of its file, and those over the `defaults` of the files that include it.

use std::path::PathBuf;
use std::time::Duration;

use image::platform::Platform;

use crate::cli::FlatPermissions;

/// The options of an image. What is absent is decided by the command line, or has its default there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageOptions {
    /// For which machines, the default platform first; empty: the one that the command line names.
    pub platforms: Vec<Platform>,
    /// What the plain path leads to.
    pub plain_path: Option<PlainPath>,
    /// What is made of the image.
    pub products: Option<Products>,
    /// Images of a higher priority come first.
    pub priority: Option<i32>,
    /// Whose it is.
    pub owner: Option<String>,
    /// Who is asked about it.
    pub contact: Option<String>,
    /// How often it is looked at.
    pub schedule: Option<Duration>,
    /// How long earlier images of its name are kept.
    pub retention: Retention,
    /// Name of the credentials to fetch it with; never a secret.
    pub credentials: Option<String>,
    /// Permissions of the files in its flat.
    pub permissions: Option<FlatPermissions>,
    /// How large it may be.
    pub quota: Quota,
    /// Whether everybody may read it, as far as the operator says so.
    pub public: Option<bool>,
    /// Who has to have signed it.
    pub signature: Option<SignatureRequirement>,
    /// What a start of it touches: a file that is published with it.
    pub startup: Option<PathBuf>,
    /// Whether its start-up list is published as a file bundle, too.
    pub bundles: Option<bool>,
}

/// What the plain path of an image of several platforms leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainPath {
    /// The image for the default platform.
    Default,
    /// The image for the client's own architecture (`$(CVMFS_ARCH)`).
    Variant,
}

/// What is made of an image. One of flat and layers at least; the store for Podman needs the flat, a thin image the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Products {
    /// The complete root, and the public link to it.
    pub flat: bool,
    /// The layers, for containerd, Docker and the flats of other images.
    pub layers: bool,
    /// An entry of the additional image store.
    pub podman: bool,
    /// A thin image, pushed to the name that `output_format` gives.
    pub thin: bool,
}

/// How long earlier images of a name are kept by `gc`, besides its own rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// The last ones, in number.
    pub versions: Option<usize>,
    /// Those that the name led to within so many days.
    pub days: Option<u32>,
}

/// Compressed bytes of layers, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Of the image, on each of its platforms.
    pub image: Option<u64>,
    /// Of all images of its owner together.
    pub owner: Option<u64>,
}

/// Who has to have signed an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureRequirement {
    /// Nobody: an exception from the defaults.
    Nobody,
    /// The owner of one of the public keys in these files.
    By(Vec<PathBuf>),
}

impl ImageOptions {
    /// Files with public keys, one of which has to have signed it; none if nobody has to.
    pub fn signers(&self) -> &[PathBuf] {
        match &self.signature {
            Some(SignatureRequirement::By(files)) => files,
            Some(SignatureRequirement::Nobody) | None => &[],
        }
    }

    /// These options, and those of `defaults` where there are none.
    #[must_use]
    pub fn or(self, defaults: &Self) -> Self {
        let defaults = defaults.clone();
        Self {
            platforms: if self.platforms.is_empty() { defaults.platforms } else { self.platforms },
            plain_path: self.plain_path.or(defaults.plain_path),
            products: self.products.or(defaults.products),
            priority: self.priority.or(defaults.priority),
            owner: self.owner.or(defaults.owner),
            contact: self.contact.or(defaults.contact),
            schedule: self.schedule.or(defaults.schedule),
            retention: Retention {
                versions: self.retention.versions.or(defaults.retention.versions),
                days: self.retention.days.or(defaults.retention.days),
            },
            credentials: self.credentials.or(defaults.credentials),
            permissions: self.permissions.or(defaults.permissions),
            quota: Quota {
                image: self.quota.image.or(defaults.quota.image),
                owner: self.quota.owner.or(defaults.quota.owner),
            },
            public: self.public.or(defaults.public),
            signature: self.signature.or(defaults.signature),
            startup: self.startup.or(defaults.startup),
            bundles: self.bundles.or(defaults.bundles),
        }
    }

    /// Whether a flat is made.
    pub fn has_flat(&self) -> bool {
        self.products.is_none_or(|products| products.flat)
    }

    /// Whether the layers are published.
    pub fn has_layers(&self) -> bool {
        self.products.is_none_or(|products| products.layers)
    }

    /// Whether a thin image is pushed, if the list says where to.
    pub fn has_thin(&self) -> bool {
        self.products.is_none_or(|products| products.thin)
    }

    /// The options in which two wishes differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let differ = [
            ("platforms", self.platforms != other.platforms),
            ("plain_path", self.plain_path != other.plain_path),
            ("products", self.products != other.products),
            ("priority", self.priority != other.priority),
            ("owner", self.owner != other.owner),
            ("contact", self.contact != other.contact),
            ("schedule", self.schedule != other.schedule),
            ("retention", self.retention != other.retention),
            ("credentials", self.credentials != other.credentials),
            ("permissions", self.permissions != other.permissions),
            ("quota", self.quota != other.quota),
            ("public", self.public != other.public),
            ("signature", self.signature != other.signature),
            ("startup", self.startup != other.startup),
            ("bundles", self.bundles != other.bundles),
        ];
        differ.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name).collect()
    }
}
