//! Certificates and revisions that are refused, as files of the administrator and of the configuration
//! repository name them.
//!
//! Facts: a line is a fingerprint in the syntax of whitelists, or `<FQRN N`: revisions of that repository below
//! N must not be shown. Other lines mean nothing. The blacklist wins over the whitelist.

use std::path::PathBuf;

use cvmfs::hash::ContentHash;

/// What is refused for one repository.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Blacklist {
    /// Hashes of certificates.
    pub fingerprints: Vec<ContentHash>,
    /// Lowest revision allowed.
    pub least_revision: u64,
}

impl Blacklist {
    /// Reads the files that are there. One that is there and cannot be read is an error: it may name the very
    /// thing that is about to be trusted.
    pub fn read(files: &[PathBuf], fqrn: &str) -> Result<Blacklist, (PathBuf, std::io::Error)> {
        let mut list = Blacklist::default();
        for file in files {
            match std::fs::read(file) {
                Ok(text) => list.add(&String::from_utf8_lossy(&text), fqrn),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err((file.clone(), e)),
            }
        }
        Ok(list)
    }

    fn add(&mut self, text: &str, fqrn: &str) {
        for line in text.lines() {
            if let Some(rule) = line.strip_prefix('<') {
                let mut words = rule.split_whitespace();
                let rule = (words.next(), words.next().map(str::parse), words.next());
                if let (Some(name), Some(Ok(least)), None) = rule
                    && name == fqrn
                {
                    self.least_revision = self.least_revision.max(least);
                }
                continue;
            }
            let text = line.split([' ', '\t', '#']).next().unwrap_or_default();
            self.fingerprints.extend(text.replace(':', "").to_ascii_lowercase().parse::<ContentHash>().ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_revisions_are_named() {
        let text = "# comment\nE8:B6:D7:DD:4F:65:5E:8F:4E:39:B8:19:80:48:9A:99:AA:5A:F7:0D # stolen\n\
                    <a.example.org 7\n<a.example.org 5\n<b.example.org 9\n<a.example.org 99 extra\nnonsense\n";
        let mut list = Blacklist::default();
        list.add(text, "a.example.org");
        assert_eq!(list.least_revision, 7);
        assert_eq!(list.fingerprints.len(), 1);
    }

    #[test]
    fn all_files_count_and_an_unreadable_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        std::fs::write(&one, "<a.b 3\n").unwrap();
        let absent = directory.path().join("absent");
        let files = [absent, one, two.clone()];
        assert_eq!(Blacklist::read(&files, "a.b").unwrap().least_revision, 3);
        std::fs::write(&two, "<a.b 5\n").unwrap();
        assert_eq!(Blacklist::read(&files, "a.b").unwrap().least_revision, 5);
        std::fs::remove_file(&two).unwrap();
        std::fs::create_dir(&two).unwrap();
        assert_eq!(Blacklist::read(&files, "a.b").unwrap_err().0, two);
    }
}
