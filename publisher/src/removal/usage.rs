//! What nodes say that they use.
//!
//! A report is any text: every word of 64 hexadecimal digits in it that names a layer, a flat, a manifest or an index of
//! this repository keeps that. So the output of `cvmfs-snapshotter status --json`, of `ctr images list`, `/proc/mounts` or
//! a list of paths will do, and what nodes say of images from elsewhere is no mistake.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use image::digest::Digest;

use super::mark::{Parts, Seen, Unit};
use crate::failure::Failure;

/// Digests that are in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    digests: HashSet<Digest>,
}

impl Usage {
    /// Reads reports; of a directory all files in it. One that cannot be read is an error: it may name anything.
    pub fn read(paths: &[PathBuf]) -> Result<Usage, Failure> {
        let mut usage = Usage::default();
        for path in paths {
            if path.is_dir() {
                let unreadable = || Failure::io("read directory", path);
                for entry in fs::read_dir(path).map_err(unreadable())? {
                    usage.take(&entry.map_err(unreadable())?.path())?;
                }
            } else {
                usage.take(path)?;
            }
        }
        Ok(usage)
    }

    fn take(&mut self, file: &Path) -> Result<(), Failure> {
        self.add(&fs::read(file).map_err(Failure::io("read the report", file))?);
        Ok(())
    }

    /// Adds a report.
    pub fn add(&mut self, report: &[u8]) {
        let words = report.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| word.len() == 64);
        let texts = words.filter_map(|word| std::str::from_utf8(word).ok());
        self.digests.extend(texts.filter_map(|text| Digest::parse_hex(&text.to_ascii_lowercase())));
    }

    /// Makes roots of what is in use.
    pub(super) fn mark(&self, seen: &mut Seen) {
        if self.digests.is_empty() {
            return;
        }
        let is_named = |parts: &Parts| {
            let documents = [parts.digest, parts.index];
            documents.iter().flatten().any(|d| self.digests.contains(&d.digest()))
                || self.digests.contains(&parts.config.digest())
        };
        let of_image = seen.images.iter().map(|i| &i.parts).chain(seen.versions.iter().map(|v| &v.parts));
        let whole: Vec<Unit> = of_image.filter(|p| is_named(p)).flat_map(Parts::units).collect();
        let single = seen.units.iter().filter(|unit| {
            self.digests.contains(&match unit {
                Unit::Layer(layer) => layer.digest(),
                Unit::Flat(flat) => flat.digest(),
            })
        });
        let found: Vec<Unit> = single.copied().chain(whole).collect();
        seen.roots.extend(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_digests_in_any_text() {
        let (a, b, c) = ("ab".repeat(32), "cd".repeat(32), "ef".repeat(32));
        let mut usage = Usage::default();
        usage.add(format!("{{\"layers\":[\"sha256:{a}\"],\"x\":\"{}\"}}", "1".repeat(65)).as_bytes());
        usage.add(
            format!("/cvmfs/x/.layers/cd/{b}/layerfs overlay\n{} {}\n", c.to_uppercase(), "g".repeat(64)).as_bytes(),
        );
        let expected: HashSet<Digest> = [a, b, c].iter().map(|hex| Digest::parse_hex(hex).unwrap()).collect();
        assert_eq!(usage.digests, expected);
    }
}
