//! Arguments of the commands that take images away and put them back: `remove`, `undelete`, `pin`, `prune`.

use std::path::PathBuf;

use clap::Args;

use super::values;

/// Arguments of `remove`.
#[derive(Debug, Clone, Args)]
pub struct Remove {
    /// The image, in the syntax of wish lists or as its path in the repository
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Print what would be removed; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `undelete`.
#[derive(Debug, Clone, Args)]
pub struct Undelete {
    /// The image, in the syntax of wish lists or as its path in the repository
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Which of the earlier images of that name, as images --earlier lists them; the first digits suffice
    #[arg(long, value_name = "DIGEST")]
    pub version: Option<String>,

    /// Print what would be put back; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `pin`.
#[derive(Debug, Clone, Args)]
pub struct Pin {
    /// The image, in the syntax of wish lists or as its path in the repository
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Give up all pins of that name, of earlier images as well
    #[arg(long)]
    pub remove: bool,
}

/// Arguments of `prune`.
#[derive(Debug, Clone, Args)]
pub struct Prune {
    /// Wish lists, YAML files; what one of them asks for stays
    #[arg(value_name = "WISHLIST", required = true)]
    pub wishlists: Vec<PathBuf>,

    /// Print what would be removed; change nothing
    #[arg(long)]
    pub dry_run: bool,
}
