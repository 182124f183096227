//! The whitelist `.cvmfswhitelist`: which certificates may sign manifests, and until when.
//!
//! Signed by the master key. Expiry counts to the hour: the list ends at the *start* of the hour it names.

use time::{Date, Duration, Month, PrimitiveDateTime, Time, UtcDateTime};

use crate::hash::{Algorithm, ContentHash};

/// How long a whitelist is good for when nothing else is said.
pub const DEFAULT_VALIDITY: Duration = Duration::days(30);

/// The fields of a whitelist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whitelist {
    /// When it was issued (informative).
    pub issued: UtcDateTime,
    /// When it ends; minutes and seconds don't count.
    pub expires: UtcDateTime,
    /// Fully qualified repository name.
    pub name: String,
    /// Hashes of the DER form of the allowed certificates.
    pub fingerprints: Vec<ContentHash>,
    /// Whether the list wants a verification that this program does not do (`Vpkcs7`, `Wcachain`).
    pub unsupported: Option<String>,
}

/// Why a text is no whitelist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WhitelistError {
    /// One of the first three lines is missing or malformed.
    #[error("whitelist: line {0} is malformed; the first three are issue time, 'E' + expiry, 'N' + name")]
    Line(usize),
    /// No certificate is allowed.
    #[error("whitelist: it lists no certificate")]
    Empty,
}

impl Whitelist {
    /// Parses the text before the signature block.
    pub fn parse(text: &[u8]) -> Result<Whitelist, WhitelistError> {
        let text = String::from_utf8_lossy(text);
        let mut lines = text.lines().take_while(|l| *l != "--");
        let mut line = |number: usize, prefix: &str| {
            let line = lines.next().and_then(|l| l.strip_prefix(prefix)).ok_or(WhitelistError::Line(number))?;
            Ok(line.to_owned())
        };
        let issued = parse_time(&line(1, "")?).ok_or(WhitelistError::Line(1))?;
        let expires = parse_time(&line(2, "E")?).ok_or(WhitelistError::Line(2))?;
        let name = line(3, "N")?;
        let rest: Vec<&str> = lines.collect();
        let unsupported = rest.iter().find(|l| l.starts_with('V') || l.starts_with('W')).map(|l| (*l).to_owned());
        let fingerprints: Vec<ContentHash> = rest.iter().filter_map(|l| parse_fingerprint(l)).collect();
        if fingerprints.is_empty() {
            return Err(WhitelistError::Empty);
        }
        Ok(Whitelist { issued, expires, name, fingerprints, unsupported })
    }

    /// The text to be signed.
    pub fn print(&self) -> String {
        let mut text = format!("{}\nE{}\nN{}\n", print_time(self.issued), print_time(self.expires), self.name);
        for fingerprint in &self.fingerprints {
            text.push_str(&print_fingerprint(fingerprint));
            text.push('\n');
        }
        text
    }

    /// Whether it is still good at this time.
    pub fn is_valid_at(&self, now: UtcDateTime) -> bool {
        let hour = |t: UtcDateTime| (t.date(), t.hour());
        hour(now) < hour(self.expires)
    }
}

fn parse_time(text: &str) -> Option<UtcDateTime> {
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u16>().ok();
    let small = |from: usize| number(from, from + 2).and_then(|n| u8::try_from(n).ok());
    let month = Month::try_from(small(4)?).ok()?;
    let date = Date::from_calendar_date(i32::from(number(0, 4)?), month, small(6)?).ok()?;
    Some(PrimitiveDateTime::new(date, Time::from_hms(small(8)?, small(10)?, small(12)?).ok()?).as_utc())
}

fn print_time(t: UtcDateTime) -> String {
    let (year, month, day) = t.to_calendar_date();
    format!("{year:04}{:02}{day:02}{:02}{:02}{:02}", u8::from(month), t.hour(), t.minute(), t.second())
}

pub(crate) fn parse_fingerprint(line: &str) -> Option<ContentHash> {
    let end = line.find([' ', '\t', '#']).unwrap_or(line.len());
    line[..end].replace(':', "").to_ascii_lowercase().parse().ok()
}

/// Text form of a certificate's hash in a whitelist: upper-case pairs with colons, then the algorithm.
pub fn print_fingerprint(hash: &ContentHash) -> String {
    let pairs: Vec<String> = hash.digest.iter().map(|b| format!("{b:02X}")).collect();
    format!("{}{}", pairs.join(":"), hash.algorithm.id().to_ascii_uppercase())
}

/// Hash of a certificate in DER form, as whitelists list it.
pub fn fingerprint(algorithm: Algorithm, certificate_der: &[u8]) -> ContentHash {
    ContentHash::of(algorithm, certificate_der)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "20251001120000\nE20251031120000\nNimages.example.org\n\
        E8:B6:D7:DD:4F:65:5E:8F:4E:39:B8:19:80:48:9A:99:AA:5A:F7:0D\n";

    #[test]
    fn sample_round_trips() {
        let list = Whitelist::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(list.print(), SAMPLE);
        assert_eq!(list.fingerprints[0].to_string(), "e8b6d7dd4f655e8f4e39b81980489a99aa5af70d");
    }

    #[test]
    fn comments_junk_and_other_algorithms() {
        let extra = "nonsense\n7F9C2BA4E88F827D616045507605853ED73B8093-SHAKE128  # spare key\n--\nE8:B6\n";
        let list = Whitelist::parse(format!("{SAMPLE}{extra}").as_bytes()).unwrap();
        assert_eq!(list.fingerprints.len(), 2);
        assert!(print_fingerprint(&list.fingerprints[1]).ends_with(":93-SHAKE128"));
        assert!(list.unsupported.is_none());
        let pkcs7 = SAMPLE.replace("E8:", "Vpkcs7\nE8:");
        assert_eq!(Whitelist::parse(pkcs7.as_bytes()).unwrap().unsupported.as_deref(), Some("Vpkcs7"));
    }

    #[test]
    fn expires_at_the_start_of_the_hour() {
        let list = Whitelist::parse(SAMPLE.replace("E20251031120000", "E20251031125959").as_bytes()).unwrap();
        for (now, valid) in [("20251031115959", true), ("20251031120000", false), ("20251101000000", false)] {
            assert_eq!(list.is_valid_at(parse_time(now).unwrap()), valid, "{now}");
        }
    }

    #[test]
    fn refuses_other_texts() {
        for (text, error) in [
            (SAMPLE.replace("20251001120000\n", "2025100112000\n"), WhitelistError::Line(1)),
            (SAMPLE.replace("E20251031", "E20251331"), WhitelistError::Line(2)),
            (SAMPLE.replace("Nimages", "images"), WhitelistError::Line(3)),
            (SAMPLE.replace("E8:B6", "E8:"), WhitelistError::Empty),
            (String::new(), WhitelistError::Line(1)),
        ] {
            assert_eq!(Whitelist::parse(text.as_bytes()), Err(error), "{text}");
        }
    }
}
