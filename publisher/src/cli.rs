//! The command line: every option, its help text and its default in one place.
//!
//! Scripts depend on it. The whole help text is kept in `tests/cli-reference.txt` and compared by a test, so neither an
//! option nor a default changes unseen. What the options mean for the work is decided elsewhere; here they only become
//! typed values. A command that does not work yet is not declared.

// The comments on commands and options are help texts for a terminal, not documentation in Markdown.
#![allow(rustdoc::bare_urls, rustdoc::broken_intra_doc_links)]

mod commands;
mod convert;
pub(crate) mod history;
mod ingest;
mod limits;
mod lint;
mod notify;
mod paths;
mod record;
mod removal;
mod repository;
mod serve;
pub(crate) mod values;
mod verify;
mod watch;
mod weight;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};

pub use self::commands::Command;
pub use self::convert::{Conversion, Convert, ConvertImage, FlatPermissions};
pub use self::history::{Gc, Rollback, Tag, TagAction, When, duration};
pub use self::ingest::Ingest;
pub use self::limits::{ArchiveLimits, ImageLimits};
pub use self::lint::Lint;
pub use self::notify::Notifications;
pub use self::paths::{Environment, NoDefault, PathOptions, Paths, Unresolved};
pub use self::record::{Inside, Record};
pub use self::removal::{Pin, Prune, Remove, Undelete};
pub use self::repository::{Check, HashName, Images, Init, Sign};
pub use self::serve::{Replicate, Serve};
pub use self::values::fqrn;
pub use self::verify::Verify;
pub use self::watch::{Every, Status, Upkeep, Watch};
pub use self::weight::Catalogs;
use crate::error::CommandError;
use crate::progress::ProgressMode;

/// Publish container images into a CernVM-FS repository
///
/// Images named in a wish list become root file systems (.flat, for Apptainer and the like) and layers (.layers, for
/// containerd, Docker and Podman) in a signed repository that any CernVM-FS client can mount. Only what is missing is
/// fetched, and a pass with nothing new publishes nothing.
///
/// Results go to standard output, talk to standard error.
#[derive(Debug, Parser)]
#[command(
    name = "cvmfs-publisher",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "\
Exit status:
    0  everything wished for is published; the repository is sound
    1  some wishes failed, or check found damage
    2  the command line is wrong
    3  the configuration or the wish list is wrong; nothing was done
    4  the repository can't be used: not found, not trusted, locked
  130  interrupted, after a clean abort
  143  terminated, after a clean abort

Examples:
  Create a repository, publish one image into it and serve it:
    cvmfs-publisher init images.example.org
    cvmfs-publisher convert-image debian:stable images.example.org
    cvmfs-publisher serve images.example.org --listen 0.0.0.0:8000"
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Directories.
    #[command(flatten)]
    pub paths: PathOptions,

    /// What the operator says about registries: credentials, mirrors, CA files, request budgets
    ///
    /// TOML; doc/REGISTRIES.md has every key. Secrets are named in it, never written.
    ///
    /// [default: /etc/cvmfs-publisher/config.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,

    /// Print results as JSON
    ///
    /// One object on standard output; its fields are a contract, the text for people is not.
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,

    /// Show progress on standard error
    #[arg(long, global = true, value_enum, value_name = "FORM", default_value_t, help_heading = "Output")]
    pub progress: ProgressMode,

    /// Log events of this level and above on standard error
    #[arg(long, global = true, value_enum, value_name = "LEVEL", default_value_t, help_heading = "Output")]
    pub log_level: LogLevel,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogLevel {
    /// what went wrong
    Error,
    /// and what looks wrong
    #[default]
    Warn,
    /// and what was done
    Info,
    /// and each request
    Debug,
    /// and everything else
    Trace,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// What a pair of options says, of which one contradicts the other.
pub fn said(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

/// Writes a result to standard output. A reader that went away ends the program without complaint.
pub fn print_result(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CommandError::output)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("cvmfs-publisher").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_and_behind_the_command() {
        for line in ["--json --storage /s lint w.yaml", "lint w.yaml --json --storage /s"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json);
            assert_eq!(cli.global.paths.storage, Some(PathBuf::from("/s").into()));
            assert_eq!(cli.global.progress, ProgressMode::Auto);
        }
    }

    #[test]
    fn limits_have_the_designed_defaults() {
        let Command::Convert(convert) = parse("convert w.yaml").unwrap().command else { panic!("not convert") };
        assert_eq!(
            convert.conversion.limits,
            ImageLimits {
                max_layers: 500,
                max_manifest_size: 4 << 20,
                layer: ArchiveLimits {
                    max_layer_size: 500_000_000_000,
                    max_entries: 5_000_000,
                    max_expansion: 1000,
                    max_zstd_window: 64 << 20,
                    max_pax_header: 1 << 20,
                },
            }
        );
    }

    #[test]
    fn each_limit_has_its_option() {
        let line = "convert-image debian:12 a.b --max-layer-size 1 --max-entries 2 --max-expansion 3 \
                    --max-zstd-window 4k --max-pax-header 5Ki --max-layers 6 --max-manifest-size 7";
        let Command::ConvertImage(convert) = parse(line).unwrap().command else { panic!("not convert-image") };
        let limits = convert.conversion.limits;
        assert_eq!((limits.layer.max_layer_size, limits.layer.max_entries, limits.layer.max_expansion), (1, 2, 3));
        assert_eq!((limits.layer.max_zstd_window, limits.layer.max_pax_header), (4000, 5 << 10));
        assert_eq!((limits.max_layers, limits.max_manifest_size), (6, 7));
    }

    #[test]
    fn the_old_name_of_convert_image_works() {
        let Command::ConvertImage(convert) =
            parse("convert-single-image debian:12 images.example.org --as tools/debian:12").unwrap().command
        else {
            panic!("not convert-image")
        };
        assert_eq!(convert.image.to_string(), "https://registry.hub.docker.com/library/debian:12");
        assert_eq!(convert.name.unwrap().as_str(), "tools/debian:12");
    }

    #[test]
    fn ingest_wants_something_to_do() {
        let cases = [
            ("ingest a.b --tar - --base x", true),
            ("ingest a.b --tar - --base x --catalog --delete y --delete z", true),
            ("ingest a.b --delete y", true),
            ("ingest a.b", false),
            ("ingest a.b --tar -", false),
            ("ingest a.b --base x", false),
            ("ingest a.b --delete y --catalog", false),
        ];
        for (line, accepted) in cases {
            assert_eq!(parse(line).is_ok(), accepted, "{line}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused_with_status_2() {
        let cases = [
            ("", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("frobnicate w.yaml", ErrorKind::InvalidSubcommand),
            ("init images", ErrorKind::ValueValidation),
            ("init images.example.org --hash sha256", ErrorKind::InvalidValue),
            ("convert-image not/a:good:name images.example.org", ErrorKind::ValueValidation),
            ("convert-image debian:12 images.example.org --as .flat/x:1", ErrorKind::ValueValidation),
            ("convert w.yaml --jobs 0", ErrorKind::ValueValidation),
            ("convert w.yaml --max-layer-size many", ErrorKind::ValueValidation),
            ("serve images.example.org --listen 8000", ErrorKind::ValueValidation),
            ("--storage ftp://host/x check a.b", ErrorKind::ValueValidation),
            ("--storage s3:///x check a.b", ErrorKind::ValueValidation),
            ("sign a.b --days 0", ErrorKind::ValueValidation),
        ];
        for (line, kind) in cases {
            let error = parse(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
        }
    }
}
