//! Arguments of `catalogs`.

use clap::Args;

use super::values;

/// Arguments of `catalogs`.
#[derive(Debug, Clone, Args)]
pub struct Catalogs {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// The image, in the syntax of wish lists or as its path in the repository
    ///
    /// Without it, all images are listed with what their own catalogs say, the heaviest first.
    #[arg(value_name = "IMAGE")]
    pub image: Option<String>,
}
