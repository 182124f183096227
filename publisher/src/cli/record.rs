//! Arguments of `record`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::history::duration;
use super::values;

/// Arguments of `record`.
#[derive(Debug, Clone, Args)]
pub struct Record {
    /// The image, in the syntax of wish lists or as its path in the repository
    #[arg(value_name = "IMAGE")]
    pub image: String,

    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Publish this list instead of recording one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["remove", "command", "time", "output", "client", "server_url"])]
    pub list: Option<PathBuf>,

    /// Take the list of the image away
    #[arg(long, conflicts_with_all = ["command", "time", "output", "client", "server_url"])]
    pub remove: bool,

    /// Publish the list as a file bundle in the flat, too
    ///
    /// For stock clients from 2.14 on that are mounted with CVMFS_PREFETCH_FILEBUNDLES=yes. Without it, an image keeps what
    /// its name has.
    #[arg(long, conflicts_with_all = ["no_bundles", "remove", "output"])]
    pub bundles: bool,

    /// Publish no file bundle, and take away the one that is there
    #[arg(long, conflicts_with = "output")]
    pub no_bundles: bool,

    /// Write the list to this file and publish nothing
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// End the command after this time: 90s, 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub time: Option<Duration>,

    /// The client to mount the repository with
    ///
    /// [default: cvmfs-client beside this program, or in PATH]
    #[arg(long, value_name = "FILE")]
    pub client: Option<PathBuf>,

    /// Where to read the repository
    ///
    /// [default: a server of its own for the directory of the repository]
    #[arg(long, value_name = "URL", value_parser = values::repository_url)]
    pub server_url: Option<reqwest::Url>,

    /// The command, and its arguments
    ///
    /// [default: entrypoint and command of the image]
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Arguments of `record-inside`.
#[derive(Debug, Clone, Args)]
pub struct Inside {
    /// What to start, as JSON
    pub file: PathBuf,

    /// It is process 1 of its namespaces already
    #[arg(long)]
    pub entered: bool,
}
