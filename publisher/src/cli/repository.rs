//! Arguments of commands for a repository as a whole: `init`, `images`, `check`, `sign`.

use clap::{Args, ValueEnum};

use super::values;

/// Arguments of `init`.
#[derive(Debug, Clone, Args)]
pub struct Init {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Seconds after which clients look for a new revision
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    pub ttl: u64,

    /// Hash algorithm that names the objects
    #[arg(long, value_enum, value_name = "NAME", default_value_t)]
    pub hash: HashName,

    /// Keep every object for ever
    ///
    /// The repository is then marked as one that garbage collection must not touch.
    #[arg(long)]
    pub no_gc: bool,
}

/// Hash algorithms that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum HashName {
    /// SHA-1, the one that every client reads
    #[default]
    Sha1,
    /// RIPEMD-160
    Rmd160,
    /// SHAKE-128, of which 160 bits are taken
    Shake128,
}

/// Arguments of `images`.
#[derive(Debug, Clone, Args)]
pub struct Images {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// List the images that can be undeleted instead, with the time until which their names led to them
    #[arg(long)]
    pub earlier: bool,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct Check {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Read every object and compare it with its hash
    #[arg(long)]
    pub data: bool,

    /// Repair what can be repaired, in one publish
    #[arg(long)]
    pub fix: bool,

    /// Print the plan of the repair and change nothing
    #[arg(long, requires = "fix")]
    pub dry_run: bool,

    /// Repair layers in place that running containers may hold open
    ///
    /// Layers whose deletions are files named .wh.* stay as they are, and a copy with whiteouts is written beside.
    /// With this option they are changed where they are: containers that run on them see deleted files vanish.
    #[arg(long, requires = "fix")]
    pub yes_change_live_layers: bool,
}

/// Arguments of `sign`.
#[derive(Debug, Clone, Args)]
pub struct Sign {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Days until the whitelist expires
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}
