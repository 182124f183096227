//! Certificates and revisions that must not be trusted any more, as administrators list them.
//!
//! Facts: a line is a fingerprint in the syntax of whitelists, or `<FQRN N`: revisions of that repository below N are
//! refused. Other lines mean nothing. The blacklist wins over the whitelist.

use std::io;
use std::path::Path;

use crate::hash::ContentHash;
use crate::whitelist::parse_fingerprint;

/// What is refused of one repository.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Blacklist {
    /// Hashes of certificates in DER form.
    pub fingerprints: Vec<ContentHash>,
    /// Lowest revision allowed.
    pub least_revision: u64,
}

impl Blacklist {
    /// Adds what a file says about the repository `fqrn`. A file that is not there says nothing; one that cannot be read
    /// is an error: it may name the very thing that is about to be trusted.
    pub fn add_file(&mut self, file: &Path, fqrn: &str) -> io::Result<()> {
        match std::fs::read(file) {
            Ok(text) => self.add(&String::from_utf8_lossy(&text), fqrn),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Adds what a text says about the repository `fqrn`.
    pub fn add(&mut self, text: &str, fqrn: &str) {
        for line in text.lines() {
            let Some(rule) = line.strip_prefix('<') else {
                self.fingerprints.extend(parse_fingerprint(line));
                continue;
            };
            let mut words = rule.split_whitespace();
            if let (Some(name), Some(Ok(least)), None) = (words.next(), words.next().map(str::parse), words.next())
                && name == fqrn
            {
                self.least_revision = self.least_revision.max(least);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_certificates_and_revisions() {
        let mut list = Blacklist::default();
        list.add("# words\nE8:B6:D7:DD:4F:65:5E:8F:4E:39:B8:19:80:48:9A:99:AA:5A:F7:0D # stolen\n", "a.b");
        list.add("<a.b 7\n<a.b 5\n<c.d 9\n<a.b 99 more\n<a.b x\nnonsense\n", "a.b");
        assert_eq!((list.fingerprints.len(), list.least_revision), (1, 7));
        assert_eq!(list.fingerprints[0].to_string(), "e8b6d7dd4f655e8f4e39b81980489a99aa5af70d");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_an_absent_one_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("blacklist");
        let mut list = Blacklist::default();
        list.add_file(&file, "a.b").unwrap();
        assert_eq!(list, Blacklist::default());
        std::fs::write(&file, b"<a.b 3\n\xff\n").unwrap();
        list.add_file(&file, "a.b").unwrap();
        assert_eq!(list.least_revision, 3);
        list.add_file(directory.path(), "a.b").unwrap_err();
    }
}
