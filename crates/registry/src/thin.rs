//! Thin images into a registry: only what changed, the name last.
//!
//! One HEAD tells whether the name has these very bytes already. If not: blobs, then manifests by digest, then the name; so whatever
//! is cut or refused on the way, the name has what it had before.

use std::path::Path;

use bytes::Bytes;
use image::digest::ManifestDigest;
use image::reference::Reference;
use image::thin::{Blob, ThinImage};

use crate::client::Client;
use crate::error::Error;
use crate::push::{BlobSource, Pushed};

/// Variables with the password for pushing thin images, in the order in which they are looked at. One whose name ends in `_FILE` names
/// a file; the last one is that of the existing tool.
pub const PASSWORDS: [&str; 3] =
    ["CVMFS_PUBLISHER_OUTPUT_PASSWORD", "CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE", "DUCC_OUTPUT_REGISTRY_PASS"];

/// The password for pushing thin images, if a variable has one.
pub fn password(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, Error> {
    for name in PASSWORDS {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
        if !name.ends_with("_FILE") {
            return Ok(Some(value));
        }
        let path = Path::new(&value);
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        // Editors end a file with a line feed; passwords don't.
        return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    Ok(None)
}

impl Client {
    /// Makes sure that `target`, a name with a tag, is this image: `index` if there is one, else the only manifest.
    pub async fn push_thin(
        &self,
        images: &[ThinImage],
        index: Option<&Blob>,
        target: &Reference,
    ) -> Result<(ManifestDigest, Pushed), Error> {
        let wrong = |why: &str| Error::Configuration(format!("{target}: {why}"));
        // It would be answered by itself, without asking anybody.
        if target.digest().is_some() {
            return Err(wrong("a thin image has a digest of its own; name a tag alone"));
        }
        let top = match (index, images) {
            (Some(index), _) => index,
            (None, [image]) => &image.manifest,
            (None, _) => return Err(wrong("several images need an index")),
        };
        let digest = ManifestDigest::from_digest(top.digest);
        match self.resolve(target).await {
            Ok(found) if found == digest => return Ok((digest, Pushed::Present)),
            // Some registries refuse to be asked about what isn't there yet. Whether we may write, the upload tells.
            Ok(_) | Err(Error::NotFound { .. } | Error::Unauthorized { .. }) => {}
            Err(error) => return Err(error),
        }
        for blob in images.iter().flat_map(|image| [&image.layer, &image.config]) {
            let source = BlobSource::Bytes(Bytes::from(blob.bytes.clone()));
            self.push_blob(target.repository(), blob.digest, source).await?;
        }
        for manifest in images.iter().map(|image| &image.manifest).filter(|_| index.is_some()) {
            let by_digest = Reference::parse(&format!("{}@{}", target.repository(), manifest.digest))
                .map_err(|error| wrong(&error.to_string()))?;
            self.push_manifest(&by_digest, manifest.media_type, Bytes::from(manifest.bytes.clone())).await?;
        }
        self.push_manifest(target, top.media_type, Bytes::from(top.bytes.clone())).await?;
        Ok((digest, Pushed::Uploaded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_comes_from_the_first_variable_that_has_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        std::fs::write(&file, "from-file\n").unwrap();
        let file = file.to_str().unwrap();
        let find = |variables: &[(&str, &str)]| {
            password(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        for (variables, expected) in [
            (&[("CVMFS_PUBLISHER_OUTPUT_PASSWORD", "a"), ("DUCC_OUTPUT_REGISTRY_PASS", "b")][..], Some("a")),
            (&[("CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE", file), ("DUCC_OUTPUT_REGISTRY_PASS", "b")], Some("from-file")),
            (&[("CVMFS_PUBLISHER_OUTPUT_PASSWORD", ""), ("DUCC_OUTPUT_REGISTRY_PASS", "b")], Some("b")),
            (&[], None),
        ] {
            assert_eq!(find(variables).unwrap().as_deref(), expected, "{variables:?}");
        }
        let gone = find(&[("CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE", "/nonexistent")]).unwrap_err();
        assert!(gone.to_string().contains("/nonexistent"), "{gone}");
    }
}
