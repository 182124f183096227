//! Arguments of `verify`.

use clap::Args;
use image::reference::ImageSource;

use super::{Conversion, values};

/// Arguments of `verify`.
#[derive(Debug, Clone, Args)]
pub struct Verify {
    /// The image, in the syntax of wish lists or as its path in the repository
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Read every object of the image, too
    #[arg(long)]
    pub data: bool,

    /// Ask no registry: compare what the repository keeps with itself
    ///
    /// Records with each other, the flat with the layers. The same happens when the registry has lost the image.
    #[arg(long, conflicts_with = "fix")]
    pub offline: bool,

    /// Where the image comes from, in the syntax of wish lists
    ///
    /// [default: as the image's record says; an image from a disk is looked for under IMAGE]
    #[arg(long, value_name = "IMAGE", value_parser = ImageSource::parse)]
    pub from: Option<ImageSource>,

    /// Ask with the credentials of this name in the configuration
    ///
    /// As the wish of the image says in its list. Without it they are those that the configuration has for the registry.
    #[arg(long, value_name = "NAME", conflicts_with = "offline")]
    pub credentials: Option<String>,

    /// Convert what differs again, in one publish, and verify once more
    #[arg(long)]
    pub fix: bool,

    /// Differences of each kind that are listed; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub show: usize,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,
}
