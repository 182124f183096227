//! Arguments of `serve` and `replicate`: how repositories come to others.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::values;

/// Arguments of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
}

/// Arguments of `replicate`.
#[derive(Debug, Clone, Args)]
pub struct Replicate {
    /// URL of the repository on the server: what stands before /.cvmfspublished
    #[arg(value_name = "URL", value_parser = values::repository_url)]
    pub url: reqwest::Url,

    /// Directory of the copy
    #[arg(value_name = "DIR", value_parser = values::directory)]
    pub directory: PathBuf,

    /// Name of the repository, fully qualified
    ///
    /// [default: the last component of the URL]
    #[arg(long, value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: Option<String>,

    /// Public master key of the repository; may be repeated, one that matches suffices
    ///
    /// [default: FQRN.pub in the key directory]
    #[arg(long, value_name = "FILE")]
    pub public_key: Vec<PathBuf>,

    /// Certificates and revisions that are refused, in the format of /etc/cvmfs/blacklist
    #[arg(long, value_name = "FILE", default_value = "/etc/cvmfs/blacklist")]
    pub blacklist: PathBuf,

    /// Requests in flight
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub connections: u16,

    /// HTTP or SOCKS proxy
    ///
    /// [default: what the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY say]
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
}
