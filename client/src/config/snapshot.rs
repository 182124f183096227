//! Which revision a mount shows: the newest one, or a fixed one.

use cvmfs::hash::ContentHash;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcDateTime};

use super::{ConfigError, Parameters};

/// Which revision is shown. Whatever is not the newest stays as long as the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// The newest one.
    Newest,
    /// The one with this root catalog.
    Root(ContentHash),
    /// The named snapshot.
    Tag(String),
    /// The newest named snapshot that is not younger.
    Date(UtcDateTime),
}

impl Snapshot {
    /// Root hash, tag and date, in this order; the first that is set counts.
    pub(super) fn from_parameters(p: &Parameters, fqrn: &str) -> Result<Snapshot, ConfigError> {
        if let Some(hash) = p.text("CVMFS_ROOT_HASH", fqrn) {
            let hash = hash.parse().map_err(|_| p.wrong("CVMFS_ROOT_HASH", "the hash of a root catalog"))?;
            return Ok(Snapshot::Root(hash));
        }
        if let Some(tag) = p.text("CVMFS_REPOSITORY_TAG", fqrn) {
            return Ok(Snapshot::Tag(tag));
        }
        if let Some(date) = p.text("CVMFS_REPOSITORY_DATE", fqrn) {
            let date = OffsetDateTime::parse(&date, &Rfc3339)
                .map_err(|_| p.wrong("CVMFS_REPOSITORY_DATE", "a time such as 2026-11-21T20:12:10Z"))?;
            return Ok(Snapshot::Date(date.to_utc()));
        }
        Ok(Snapshot::Newest)
    }
}
