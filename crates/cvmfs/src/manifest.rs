//! The manifest `.cvmfspublished`: what the current revision is.
//!
//! Text lines of a key letter and a value, then the signature block of [`crate::signature`]. Order does not
//! matter to readers, unknown keys are ignored, of double keys the last wins.

use std::fmt::Write as _;

use crate::hash::ContentHash;

/// MD5 of the empty path, which every manifest names.
const ROOT_PATH_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Seconds until clients ask again, where nothing else is said.
pub const DEFAULT_TTL: u64 = 240;

/// The fields of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `C`: root catalog.
    pub root_catalog: ContentHash,
    /// `B`: bytes of the plain root catalog; 0 = unknown.
    pub root_catalog_size: u64,
    /// `D`: time to live in seconds. Clients take that of the root catalog; both are kept equal.
    pub ttl: u64,
    /// `S`: revision.
    pub revision: u64,
    /// `G`: whether old revisions may be collected.
    pub garbage_collectable: bool,
    /// `A`: whether alternative paths exist.
    pub alternative_paths: bool,
    /// `N`: fully qualified repository name.
    pub name: String,
    /// `X`: certificate object.
    pub certificate: Option<ContentHash>,
    /// `H`: tag database object.
    pub history: Option<ContentHash>,
    /// `T`: time of publication, Unix seconds; 0 = not recorded.
    pub published: u64,
    /// `M`: meta info object.
    pub meta_info: Option<ContentHash>,
    /// `Y`: hash of the reflog file.
    pub reflog: Option<ContentHash>,
}

/// Why a text is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// A mandatory key is not there.
    #[error("manifest is incomplete: no line starts with {0:?}")]
    Incomplete(char),
    /// A value does not parse.
    #[error("manifest: the value {value:?} of key {key:?} is malformed")]
    Value {
        /// Key letter.
        key: char,
        /// What stands behind it.
        value: String,
    },
    /// The manifest is not for the root of a repository.
    #[error("manifest: key 'R' is not the MD5 of the root path")]
    RootPath,
}

impl Manifest {
    /// Parses the text before the signature block (a complete file is fine as well).
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let mut values: [Option<String>; 26] = Default::default();
        for line in bytes.split(|b| *b == b'\n') {
            if line == b"--" {
                break;
            }
            if let [key @ b'A'..=b'Z', value @ ..] = line {
                values[usize::from(key - b'A')] = Some(String::from_utf8_lossy(value).into_owned());
            }
        }
        let text = |key: char| values[key as usize - 'A' as usize].as_deref();
        let bad = |key, value: &str| ManifestError::Value { key, value: value.chars().take(80).collect() };
        let hash = |key| text(key).map(|v| v.parse::<ContentHash>().map_err(|_| bad(key, v))).transpose();
        let number = |key| text(key).map(|v| v.parse::<u64>().map_err(|_| bad(key, v))).transpose();
        let yes = |key| text(key) == Some("yes");
        let root_catalog = hash('C')?.ok_or(ManifestError::Incomplete('C'))?;
        let root_path = text('R').ok_or(ManifestError::Incomplete('R'))?;
        let ttl = number('D')?.ok_or(ManifestError::Incomplete('D'))?;
        let revision = number('S')?.ok_or(ManifestError::Incomplete('S'))?;
        if root_path != ROOT_PATH_MD5 {
            return Err(ManifestError::RootPath);
        }
        Ok(Manifest {
            root_catalog,
            root_catalog_size: number('B')?.unwrap_or(0),
            ttl,
            revision,
            garbage_collectable: yes('G'),
            alternative_paths: yes('A'),
            name: text('N').unwrap_or_default().to_owned(),
            certificate: hash('X')?,
            history: hash('H')?,
            published: number('T')?.unwrap_or(0),
            meta_info: hash('M')?,
            reflog: hash('Y')?,
        })
    }

    /// The text to be signed, in the order of the reference implementation.
    pub fn print(&self) -> String {
        let yes = |flag| if flag { "yes" } else { "no" };
        let mut text = format!(
            "C{}\nB{}\nR{ROOT_PATH_MD5}\nD{}\nS{}\nG{}\nA{}\n",
            self.root_catalog,
            self.root_catalog_size,
            self.ttl,
            self.revision,
            yes(self.garbage_collectable),
            yes(self.alternative_paths),
        );
        let mut line = |key: char, value: Option<String>| {
            if let Some(value) = value {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{key}{value}");
            }
        };
        line('N', (!self.name.is_empty()).then(|| self.name.clone()));
        line('X', self.certificate.map(|h| h.to_string()));
        line('H', self.history.map(|h| h.to_string()));
        line('T', (self.published > 0).then(|| self.published.to_string()));
        line('M', self.meta_info.map(|h| h.to_string()));
        line('Y', self.reflog.map(|h| h.to_string()));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const SAMPLE: &str = "Ca1b2c3d4e5f60718293a4b5c6d7e8f9012345678\nB25600\n\
        Rd41d8cd98f00b204e9800998ecf8427e\nD240\nS7\nGno\nAno\nNimages.example.org\n\
        X0f1e2d3c4b5a69788796a5b4c3d2e1f001234567\nH1111222233334444555566667777888899990000\nT1760000000\n\
        Mabababababababababababababababababababab\nYcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\n";

    #[test]
    fn sample_round_trips() {
        let manifest = Manifest::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!((manifest.revision, manifest.ttl, manifest.published), (7, 240, 1760000000));
        assert_eq!(manifest.name, "images.example.org");
        assert_eq!(manifest.print(), SAMPLE);
    }

    #[test]
    fn what_a_parser_must_bear_and_refuse() {
        let with = |extra: &str| Manifest::parse(format!("{SAMPLE}{extra}--\nCjunk\n").as_bytes());
        assert_eq!(with("Q?\nZa\nZb\n").unwrap(), Manifest::parse(SAMPLE.as_bytes()).unwrap());
        assert_eq!(with("S8\n").unwrap().revision, 8, "the last of double keys wins");
        assert!(matches!(with("S-1\n"), Err(ManifestError::Value { key: 'S', .. })));
        for key in ['C', 'R', 'D', 'S'] {
            let cut: String = SAMPLE.lines().filter(|l| !l.starts_with(key)).map(|l| format!("{l}\n")).collect();
            assert_eq!(Manifest::parse(cut.as_bytes()), Err(ManifestError::Incomplete(key)));
        }
        assert_eq!(with("R00000000000000000000000000000000\n"), Err(ManifestError::RootPath));
        assert!(Manifest::parse(b"").is_err());
    }
}
