//! Arguments of `lint`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `lint`.
#[derive(Debug, Clone, Args)]
pub struct Lint {
    /// The wish list, a YAML file
    #[arg(value_name = "WISHLIST")]
    pub wishlist: PathBuf,

    /// Ask the registries as well: does every image exist, does every wildcard take a tag?
    ///
    /// Sixteen at a time. Images whose failures don't count (ignoreErrors) get a warning.
    #[arg(long)]
    pub online: bool,
}
