//! Arguments of `watch` and `status`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Conversion, Notifications, history, values};

/// Arguments of `watch`.
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// The wish list, a YAML file; read again when it changes
    #[arg(value_name = "WISHLIST")]
    pub wishlist: PathBuf,

    /// How often each image is looked at without being told
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = history::duration)]
    pub interval: Duration,

    /// Address and port of webhooks, metrics and the status; port 0 takes a free one
    ///
    /// Without it, nothing is served.
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,

    /// File with the token that registries have to send with webhooks
    ///
    /// Without it, webhooks are refused.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub hook_token: Option<PathBuf>,

    /// Pull the git directory of the wish list once a minute
    #[arg(long)]
    pub git_pull: bool,

    /// What is done besides passes.
    #[command(flatten)]
    pub upkeep: Upkeep,

    /// Push no thin images, whatever output_format says
    #[arg(long, alias = "skip-thin-image")]
    pub no_thin_images: bool,

    /// How images are converted.
    #[command(flatten)]
    pub conversion: Conversion,

    /// Who is told.
    #[command(flatten)]
    pub notifications: Notifications,
}

/// What `watch` does besides passes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Upkeep")]
pub struct Upkeep {
    /// Remove images that the list asks for no longer; undelete puts them back within the grace
    ///
    /// For repositories that have no other list. A list with an entry that is not understood removes nothing.
    #[arg(long)]
    pub prune: bool,

    /// How often layers and flats are condemned and swept that nothing needs; "never" leaves that to gc
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = every)]
    pub collect: Every,

    /// How long layers and flats stay that nothing needs, from the run that found it
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = history::duration)]
    pub grace: Duration,

    /// Keep the last N images that each published tag led to before, whatever their age
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_versions: usize,

    /// What nodes use: a report, or a directory of reports, read before each collection; may be repeated
    #[arg(long, value_name = "FILE|DIR")]
    pub in_use: Vec<PathBuf>,

    /// Remove objects from the storage after each collection: those that no revision of the last three days refers to
    #[arg(long)]
    pub objects: bool,

    /// Publish a copy of the page as /.status.html when something else was published, at most so often
    #[arg(long, value_name = "TIME", default_value = "never", value_parser = every)]
    pub publish_page: Every,
}

/// How often something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(pub Option<Duration>);

fn every(text: &str) -> Result<Every, String> {
    match text {
        "never" => Ok(Every(None)),
        text => history::duration(text).map(|time| Every(Some(time))).map_err(|why| format!("{why}, or never")),
    }
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,
}
