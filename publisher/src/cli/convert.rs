//! Arguments of `convert` and `convert-image`, and how images are converted by all commands that do it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use image::reference::{PublicName, Wish};

use super::{ImageLimits, Notifications, values};

/// Arguments of `convert`.
#[derive(Debug, Clone, Args)]
pub struct Convert {
    /// The wish list, a YAML file
    #[arg(value_name = "WISHLIST")]
    pub wishlist: PathBuf,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Refuse the whole list if one entry is bad
    #[arg(long)]
    pub strict: bool,

    /// Push no thin images, whatever output_format says
    ///
    /// Without it, the thin image of every published image is pushed to the name that output_format gives, if it
    /// changed. The password of the list's user is in CVMFS_PUBLISHER_OUTPUT_PASSWORD, in the file that
    /// CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE names, or in DUCC_OUTPUT_REGISTRY_PASS; a list without a user takes the
    /// Docker configuration's.
    #[arg(long, alias = "skip-thin-image")]
    pub no_thin_images: bool,

    /// Put all images of the list into the store for Podman, whatever the list says
    #[arg(long, conflicts_with = "no_podman_store")]
    pub podman_store: bool,

    /// Put none into the store for Podman that is not there
    ///
    /// Without it, the key podman of the list says which images go into the additional image store of the repository,
    /// podmanStore: true, false, or patterns as in ignoreErrors. Images that are in it follow their names in any case.
    #[arg(long, alias = "skip-podman")]
    pub no_podman_store: bool,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,

    /// Who is told.
    #[command(flatten)]
    pub notifications: Notifications,
}

/// Arguments of `convert-image`.
#[derive(Debug, Clone, Args)]
pub struct ConvertImage {
    /// The image, in the syntax of wish lists
    #[arg(value_name = "IMAGE", value_parser = Wish::parse)]
    pub image: Wish,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Publish under this name
    ///
    /// Without it, the name is that of the image: REGISTRY/REPOSITORY:TAG; an image on disk is local/NAME:TAG.
    #[arg(long = "as", value_name = "NAME:TAG", value_parser = PublicName::parse)]
    pub name: Option<PublicName>,

    /// Publish this start-up list beside the image
    ///
    /// What a start touches, for clients that fetch it ahead. Without it, an image keeps the list that its name has.
    #[arg(long, value_name = "FILE")]
    pub startup: Option<PathBuf>,

    /// Publish the start-up list as a file bundle, too
    ///
    /// For stock clients from 2.14 on that are mounted with CVMFS_PREFETCH_FILEBUNDLES=yes: a hidden file in the flat,
    /// beside the first file of the list. Without it, an image keeps what its name has.
    #[arg(long, conflicts_with = "no_bundles")]
    pub bundles: bool,

    /// Publish no file bundle, and take away the one that is there
    #[arg(long)]
    pub no_bundles: bool,

    /// Ask with the credentials of this name in the configuration
    ///
    /// As credentials: NAME of a wish list. Without it they are those that the configuration has for the registry.
    #[arg(long, value_name = "NAME")]
    pub credentials: Option<String>,

    /// Put the image into the store for Podman, too: podmanStore in the repository
    #[arg(long)]
    pub podman_store: bool,

    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,

    /// Who is told.
    #[command(flatten)]
    pub notifications: Notifications,
}

/// How images are converted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Conversion")]
pub struct Conversion {
    /// Platform to choose where an image has several; may be repeated
    ///
    /// The first one is the default platform, whose image is at the plain path. With more than one, every image is
    /// published below .multiarch/ARCH[:VARIANT] for each of them. What a wish list says of platforms wins.
    ///
    /// [default: linux and the architecture of this machine]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Vec<String>,

    /// Layers to work on at the same time
    ///
    /// [default: number of processors]
    #[arg(long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,

    /// Packed bytes of layers that are fetched and not stored yet, at most; a larger layer goes alone
    ///
    /// Sizes take the units k, M, G, T (powers of 1000) and Ki, Mi, Gi, Ti (powers of 1024).
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "64G")]
    pub max_preparing: u64,

    /// Room that is left free on the disks of the storage and of the state
    ///
    /// An image whose layers would take it fails; those that fit go on.
    #[arg(long, value_name = "SIZE", value_parser = values::size, default_value = "512Mi")]
    pub keep_free: u64,

    /// Permissions of files in flat images
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub flat_permissions: FlatPermissions,

    /// Images in the store for Podman, at most: every program that has it open reads the list of all
    #[arg(long, value_name = "N", default_value_t = crate::podman::LIMIT)]
    pub podman_limit: usize,

    /// Limits.
    #[command(flatten)]
    pub limits: ImageLimits,
}

/// Permissions of files in flat images. Files that not everybody may read are reported either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FlatPermissions {
    /// as in the image
    #[default]
    Keep,
    /// everything becomes readable for everybody
    Readable,
}
