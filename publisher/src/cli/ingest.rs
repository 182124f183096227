//! Arguments of `ingest`.

use std::path::PathBuf;

use clap::Args;

use super::{ArchiveLimits, values};

/// Arguments of `ingest`.
#[derive(Debug, Clone, Args)]
pub struct Ingest {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// The tar file, or - for standard input
    ///
    /// Compression (gzip, zstd) is recognised by content.
    #[arg(long, value_name = "FILE", requires = "base", required_unless_present = "delete")]
    pub tar: Option<PathBuf>,

    /// Directory of the repository that receives the content; created if missing
    #[arg(long, value_name = "DIR", requires = "tar")]
    pub base: Option<String>,

    /// Give the directory a catalog of its own
    ///
    /// Clients load catalogs as a whole when they enter the directory: a tree of many files deserves one.
    #[arg(long, requires = "base")]
    pub catalog: bool,

    /// Delete this path of the repository first, with everything below; may be repeated
    #[arg(long, value_name = "PATH")]
    pub delete: Vec<String>,

    /// Limits.
    #[command(flatten)]
    pub limits: ArchiveLimits,
}
