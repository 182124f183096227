//! Named snapshots: which one is meant.
//!
//! Facts: by date, the newest revision on the default branch counts whose time is not later.

use cvmfs::history::{History, Tag};
use time::UtcDateTime;

use crate::config::Snapshot;
use crate::config::table::edits;

/// Names given in an error.
const NAMED: usize = 5;

/// The snapshot that is asked for, or why there is none. Not for the newest revision and root hashes, which no
/// tag is needed for.
pub(super) fn choose<'a>(history: &'a History, snapshot: &Snapshot) -> Result<&'a Tag, String> {
    match snapshot {
        Snapshot::Tag(name) => history.tag(name).ok_or_else(|| format!("no tag {name:?}; {}", near(history, name))),
        Snapshot::Date(date) => {
            let limit = u64::try_from(date.unix_timestamp()).unwrap_or(0);
            let candidates = history.tags.iter().filter(|tag| tag.branch.is_empty());
            candidates.clone().filter(|tag| tag.timestamp <= limit).max_by_key(|tag| tag.revision).ok_or_else(|| {
                match candidates.min_by_key(|tag| tag.timestamp) {
                    Some(oldest) => {
                        let of =
                            i64::try_from(oldest.timestamp).ok().and_then(|t| UtcDateTime::from_unix_timestamp(t).ok());
                        let of = of.map(|time| format!(" of {time}")).unwrap_or_default();
                        format!("no snapshot as old as {date}; the oldest is {}{of}", oldest.name)
                    }
                    None => "no snapshots".into(),
                }
            })
        }
        Snapshot::Newest | Snapshot::Root(_) => Err("nothing to choose".into()),
    }
}

fn near(history: &History, name: &str) -> String {
    let mut names: Vec<(usize, &str)> =
        history.tags.iter().map(|tag| (edits(name, &tag.name), tag.name.as_str())).collect();
    names.sort_unstable();
    let near: Vec<&str> = names.iter().take(NAMED).map(|(_, name)| *name).collect();
    match near[..] {
        [] => "it has no tags".into(),
        _ if names.len() > NAMED => format!("the nearest of {} are {}", names.len(), near.join(", ")),
        _ => format!("there are {}", near.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use cvmfs::hash::{Algorithm, ContentHash};

    use super::*;

    fn history() -> History {
        let mut history = History::new("a.b");
        for (name, revision, timestamp, branch) in [
            ("v1", 1, 1000, ""),
            ("v2", 2, 2000, ""),
            // Published by a machine whose clock is behind.
            ("v3", 3, 1500, ""),
            ("side", 9, 1200, "other"),
            ("trunk", 4, 3000, ""),
            ("generic-2026-11-21T20:14:38Z", 4, 3000, ""),
        ] {
            history.tags.push(Tag {
                name: name.into(),
                root: ContentHash::of(Algorithm::Sha1, name.as_bytes()),
                revision,
                timestamp,
                description: String::new(),
                size: 0,
                branch: branch.into(),
            });
        }
        history
    }

    #[test]
    fn a_name_means_its_tag_and_a_date_the_newest_revision_before_it() {
        let history = history();
        let by_date = |seconds| Snapshot::Date(UtcDateTime::from_unix_timestamp(seconds).unwrap());
        for (snapshot, expected) in [
            (Snapshot::Tag("v2".into()), "v2"),
            (Snapshot::Tag("side".into()), "side"),
            (by_date(1000), "v1"),
            (by_date(1400), "v1"),
            (by_date(1999), "v3"),
            (by_date(2500), "v3"),
        ] {
            assert_eq!(choose(&history, &snapshot).unwrap().name, expected, "{snapshot:?}");
        }
        assert_eq!(choose(&history, &by_date(1 << 33)).unwrap().revision, 4);
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let history = history();
        let error = choose(&history, &Snapshot::Tag("v4".into())).unwrap_err();
        assert!(error.starts_with("no tag \"v4\"; the nearest of 6 are v1, v2, v3"), "{error}");
        let error = choose(&history, &Snapshot::Date(UtcDateTime::UNIX_EPOCH)).unwrap_err();
        assert!(error.contains("the oldest is v1 of 1970-01-01"), "{error}");
        let error = choose(&History::new("a.b"), &Snapshot::Tag("v4".into())).unwrap_err();
        assert!(error.contains("it has no tags"), "{error}");
    }
}
