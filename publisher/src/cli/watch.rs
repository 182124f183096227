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

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,
}
