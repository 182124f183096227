//! Tags that every publish into a stratum 0 makes when its configuration wants them: `generic-2026-11-22T01:02:03Z`.
//!
//! They are removed again when their revision is older than a time span, which is in words of `date(1)` ("4 weeks
//! ago"). The reference tools ask `date`, and so do we.

use std::process::{Command, Stdio};

use cvmfs::history::History;
use cvmfs::transaction::TagEdit;
use time::UtcDateTime;

use super::{AdoptError, Stratum0};

/// Automatic tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoTags {
    /// Before which time they go, in words; never, without.
    pub timespan: Option<String>,
}

impl Stratum0 {
    /// What a publish at `now` changes of the tags, besides those of the present revision and the one before.
    pub fn tag_edits(&self, history: &History, now: UtcDateTime) -> Result<Vec<TagEdit>, AdoptError> {
        let Some(auto) = &self.policy.auto_tags else { return Ok(Vec::new()) };
        let oldest = auto.timespan.as_deref().map(|timespan| self.since(timespan)).transpose()?;
        Ok(edits(history, now, oldest))
    }

    fn since(&self, timespan: &str) -> Result<i64, AdoptError> {
        let refuse = |says: &str| AdoptError::Config {
            config: self.config.clone(),
            what: format!("CVMFS_AUTO_TAG_TIMESPAN={timespan}: {says}"),
        };
        let output = Command::new("date")
            .arg(format!("--date={timespan}"))
            .arg("+%s")
            .stdin(Stdio::null())
            .output()
            .map_err(|e| refuse(&format!("cannot run date to understand it: {e}")))?;
        let seconds = std::str::from_utf8(&output.stdout).ok().and_then(|text| text.trim().parse().ok());
        seconds.ok_or_else(|| refuse(String::from_utf8_lossy(&output.stderr).trim()))
    }
}

fn edits(history: &History, now: UtcDateTime, oldest: Option<i64>) -> Vec<TagEdit> {
    let is_old = |timestamp: u64| oldest.is_some_and(|oldest| i64::try_from(timestamp).is_ok_and(|t| t < oldest));
    let old = history.tags.iter().filter(|tag| is_automatic(&tag.name) && is_old(tag.timestamp));
    let mut edits: Vec<TagEdit> = old.map(|tag| TagEdit::Remove { name: tag.name.clone() }).collect();
    let time = image::layout::timestamp(now.unix_timestamp());
    let mut name = format!("generic-{time}");
    // Those that are about to go have their names still.
    for number in 1.. {
        if history.tag(&name).is_none() {
            break;
        }
        name = format!("generic_{number}-{time}");
    }
    edits.push(TagEdit::Add { name, description: String::new() });
    edits
}

/// `generic-` or `generic_N-`, then a time; what follows is not looked at.
fn is_automatic(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("generic") else { return false };
    let time = match rest.strip_prefix('_') {
        Some(numbered) => {
            let digits = numbered.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 { return false } else { &numbered[digits..] }
        }
        None => rest,
    };
    const PATTERN: &[u8] = b"-0000-00-00T00:00:00Z";
    let matches = |(byte, pattern): (u8, &u8)| if *pattern == b'0' { byte.is_ascii_digit() } else { byte == *pattern };
    time.len() >= PATTERN.len() && time.bytes().zip(PATTERN).all(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvmfs::hash::{Algorithm, ContentHash};
    use cvmfs::history::Tag;
    use time::macros::utc_datetime;

    const NOW: UtcDateTime = utc_datetime!(2026-11-22 01:02:03);

    fn history(tags: &[(&str, u64)]) -> History {
        let mut history = History::new("images.example.org");
        history.tags = tags
            .iter()
            .map(|(name, timestamp)| Tag {
                name: (*name).to_owned(),
                root: ContentHash::null(Algorithm::Sha1),
                revision: 1,
                timestamp: *timestamp,
                description: String::new(),
                size: 0,
                branch: String::new(),
            })
            .collect();
        history
    }

    fn planned(tags: &[(&str, u64)], oldest: Option<i64>) -> Vec<String> {
        let text = |edit| match edit {
            TagEdit::Add { name, description } => format!("+{name}{description}"),
            TagEdit::Remove { name } => format!("-{name}"),
        };
        edits(&history(tags), NOW, oldest).into_iter().map(text).collect()
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let plain = "generic-2026-11-22T01:02:03Z";
        let (first, second) = ("generic_1-2026-11-22T01:02:03Z", "generic_2-2026-11-22T01:02:03Z");
        assert_eq!(planned(&[("trunk", 9)], None), [format!("+{plain}")]);
        assert_eq!(planned(&[(plain, 9)], None), [format!("+{first}")]);
        assert_eq!(planned(&[(plain, 9), (first, 9)], None), [format!("+{second}")]);
    }

    #[test]
    fn only_old_automatic_tags_go() {
        let tags = [
            ("generic-2026-01-01T00:00:00Z", 99),
            ("generic_12-2026-01-01T00:00:00Z", 99),
            ("generic-2026-01-01T00:00:00.123Z", 99),
            ("generic-2026-01-02T00:00:00Z", 100),
            ("generic-release", 1),
            ("generic_-2026-01-01T00:00:00Z", 1),
            ("generic", 1),
            ("my-generic-2026-01-01T00:00:00Z", 1),
            ("trunk-previous", 1),
        ];
        let expected =
            ["-generic-2026-01-01T00:00:00Z", "-generic_12-2026-01-01T00:00:00Z", "+generic-2026-11-22T01:02:03Z"];
        assert_eq!(planned(&tags, Some(100)), expected);
        assert_eq!(planned(&tags, None), expected[2..]);
    }
}
