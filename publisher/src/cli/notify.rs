//! Arguments of those commands that tell others what they do: `convert`, `convert-image`, `watch`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{history, values};

/// Who is told.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Notifications")]
pub struct Notifications {
    /// Append what happens to this file: one JSON object a line, in the form of the existing tool
    ///
    /// The file is made with mode 0660 and may be rotated at any time; several publishers may share it.
    #[arg(short = 'n', long = "notifications", value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Send the same objects to this address, one POST each
    ///
    /// A token for it is taken from the environment variable CVMFS_PUBLISHER_NOTIFY_TOKEN or the file of
    /// --notify-token-file. Publishing never waits for it: what can't be delivered after some attempts is counted and
    /// dropped.
    #[arg(long, value_name = "URL", value_parser = values::web_address)]
    pub notify_url: Option<reqwest::Url>,

    /// File with the token that is sent with each POST, as Authorization: Bearer
    #[arg(long, value_name = "FILE", requires = "notify_url")]
    pub notify_token_file: Option<PathBuf>,

    /// Tell when this stratum 1 serves what was published; may be repeated
    ///
    /// The URL of the repository there: what stands before /.cvmfspublished. It is asked until its revision is ours or
    /// later, with the chain of trust verified. convert and convert-image wait for that.
    #[arg(long = "stratum1", value_name = "URL", value_parser = values::repository_url)]
    pub stratum1: Vec<reqwest::Url>,

    /// How long a stratum 1 is asked for a revision
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = history::duration)]
    pub stratum1_timeout: Duration,
}

impl Notifications {
    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.file.is_none() && self.notify_url.is_none() && self.stratum1.is_empty()
    }
}
