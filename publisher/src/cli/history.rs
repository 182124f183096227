//! Arguments of the commands about the past: `gc`, `tag`, `rollback`; and how times are written there.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use cvmfs::gc::Keep;
use cvmfs::hash::ContentHash;
use time::format_description::well_known::Rfc3339;
use time::{Date, UtcDateTime, macros::format_description};

use super::values;

/// Arguments of `gc`.
#[derive(Debug, Clone, Args)]
pub struct Gc {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// How long layers and flats stay that nothing needs, from the run that found it
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = duration)]
    pub grace: Duration,

    /// Keep the last N images that each published tag led to before, whatever their age
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keep_versions: usize,

    /// A wish list that says how long earlier images of its names are kept (retention); may be repeated
    ///
    /// What it says wins over --keep-versions.
    #[arg(long, value_name = "WISHLIST", conflicts_with = "no_images")]
    pub wishlist: Vec<PathBuf>,

    /// What nodes use: a report, or a directory of reports; may be repeated
    ///
    /// Any text will do: every digest in it that belongs to a layer, a flat or an image of the repository keeps that. For
    /// instance the output of cvmfs-snapshotter status --json, of ctr images list, or a list of paths.
    #[arg(long, value_name = "FILE|DIR")]
    pub in_use: Vec<PathBuf>,

    /// Remove objects from the storage, after that
    #[arg(long)]
    pub objects: bool,

    /// With --objects: leave the images of the present revision alone
    #[arg(long, requires = "objects", conflicts_with_all = ["keep_versions", "in_use"])]
    pub no_images: bool,

    /// Keep the present revision and N before it
    #[arg(long, value_name = "N", conflicts_with = "keep_since", help_heading = "With --objects")]
    pub keep_revisions: Option<u64>,

    /// Keep all revisions that were current then or later: 3d, 12h, 2026-11-01, 2026-11-01T10:00:00Z
    ///
    /// [default: 3d]
    #[arg(long, value_name = "WHEN", value_parser = when, help_heading = "With --objects")]
    pub keep_since: Option<When>,

    /// Never remove objects younger than this, nor anything that a revision published within this time refers to
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "48h",
        value_parser = duration,
        help_heading = "With --objects"
    )]
    pub min_age: Duration,

    /// Say what would be removed; change nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl Gc {
    /// How far back revisions are kept.
    pub fn keep(&self, now: UtcDateTime) -> Keep {
        match (self.keep_revisions, self.keep_since) {
            (Some(count), _) => Keep::Revisions(count),
            (None, when) => Keep::Since(when.unwrap_or(When::Ago(crate::gc::DEFAULT_KEEP)).seconds(now)),
        }
    }
}

/// Arguments of `tag`.
#[derive(Debug, Clone, Args)]
pub struct Tag {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// What to do; without it the tags are listed
    #[command(subcommand)]
    pub action: Option<TagAction>,
}

/// What to do with named snapshots.
#[derive(Debug, Clone, Subcommand)]
pub enum TagAction {
    /// List them, the newest first
    List,
    /// Name the present revision, or another one
    Add {
        /// Name: letters, digits and - _ . / :
        #[arg(value_name = "NAME")]
        name: String,
        /// Words for people
        #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
        message: String,
        /// Root catalog of the revision; a tag of this name is moved there
        #[arg(long, value_name = "HASH", conflicts_with = "revision")]
        root_hash: Option<ContentHash>,
        /// Number of the revision
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
    },
    /// Remove names; what they name goes with the next collection
    Remove {
        /// Names
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

/// Arguments of `rollback`.
#[derive(Debug, Clone, Args)]
pub struct Rollback {
    /// Name of the repository, fully qualified
    #[arg(value_name = "FQRN", value_parser = values::fqrn)]
    pub fqrn: String,

    /// Tag to go back to
    ///
    /// [default: trunk-previous, the revision before the present one]
    #[arg(value_name = "TAG")]
    pub tag: Option<String>,
}

/// A moment: that long ago, or a date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before now.
    Ago(Duration),
    /// Unix seconds.
    At(u64),
}

impl When {
    /// Unix seconds.
    pub fn seconds(self, now: UtcDateTime) -> u64 {
        let now = now.unix_timestamp().max(0) as u64;
        match self {
            When::Ago(duration) => now.saturating_sub(duration.as_secs()),
            When::At(seconds) => seconds,
        }
    }
}

/// A duration: a number and `s`, `m`, `h`, `d` or `w`; 0 needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        "w" => Some(7 * 24 * 3600),
        "" if number.trim_start_matches('0').is_empty() => Some(1),
        _ => None,
    };
    let seconds = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    let known = seconds.filter(|s| *s <= 1000 * 365 * 24 * 3600);
    known.map(Duration::from_secs).ok_or_else(|| "write a duration, for example 90m, 48h or 3d".to_owned())
}

fn when(text: &str) -> Result<When, String> {
    if let Ok(ago) = duration(text) {
        return Ok(When::Ago(ago));
    }
    let date =
        || Date::parse(text, format_description!("[year]-[month]-[day]")).ok().map(|d| d.midnight().assume_utc());
    let moment = time::OffsetDateTime::parse(text, &Rfc3339).ok().or_else(date);
    let seconds = moment.and_then(|m| u64::try_from(m.unix_timestamp()).ok());
    seconds
        .map(When::At)
        .ok_or_else(|| "write how long ago (3d, 12h) or a time (2026-11-01, 2026-11-01T10:00:00Z)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_and_moments() {
        let ago = |seconds| Ok(When::Ago(Duration::from_secs(seconds)));
        let cases = [
            ("0", ago(0)),
            ("90m", ago(5400)),
            ("48h", ago(172_800)),
            ("3d", ago(259_200)),
            ("2w", ago(1_209_600)),
            ("2026-11-01", Ok(When::At(1_793_491_200))),
            ("2026-11-01T10:00:00Z", Ok(When::At(1_793_527_200))),
            ("2026-11-01T10:00:00+01:00", Ok(When::At(1_793_523_600))),
        ];
        for (text, expected) in cases {
            assert_eq!(when(text), expected, "{text}");
        }
        for text in
            ["", "3", "-3d", "3 d", "3D", "yesterday", "2026-13-01", "1900-01-01", "99999999999999999999d", "9999999w"]
        {
            assert!(when(text).is_err(), "{text}");
        }
        let now = UtcDateTime::from_unix_timestamp(100).unwrap();
        assert_eq!((When::Ago(Duration::from_secs(200)).seconds(now), When::At(7).seconds(now)), (0, 7));
    }
}
