//! Into a registry, without any engine, and only what changed.
//!
//! One HEAD tells whether the name has these very bytes already. If not: blobs, then manifests by digest, then the name; so whatever
//! is cut or refused on the way, the name has what it had before.

use bytes::Bytes;
use image::digest::ManifestDigest;
use image::reference::Reference;
use registry::{BlobSource, Client, Credential, Credentials, Error};

use crate::build::Thin;

/// Variables with the password for `--user`, in the order in which they are looked at; one whose name ends in `_FILE` names a file.
pub const PASSWORDS: [&str; 3] =
    ["CVMFS_PUBLISHER_OUTPUT_PASSWORD", "CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE", "DUCC_OUTPUT_REGISTRY_PASS"];

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordError {
    /// No variable has one.
    #[error("no password for user {user}: set {}", PASSWORDS.join(" or "))]
    Absent {
        /// whose
        user: String,
    },
    /// The file can't be read.
    #[error("the file that {variable} names can't be read: {source}")]
    File {
        /// which variable
        variable: &'static str,
        /// why
        source: std::io::Error,
    },
    /// The rest of the configuration is wrong.
    #[error(transparent)]
    Registry(#[from] Error),
}

/// The credentials of this process, with those of `user` for the registry of `target`.
pub fn credentials(
    target: &Reference,
    user: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Credentials, PasswordError> {
    let credentials = Credentials::from_variables(&variable)?;
    let Some(user) = user else { return Ok(credentials) };
    let password = password(variable)?.ok_or_else(|| PasswordError::Absent { user: user.to_owned() })?;
    Ok(credentials.with(target.registry_host(), Credential::password(user, password)))
}

/// The password, if a variable has one.
fn password(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, PasswordError> {
    for name in PASSWORDS {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
        if !name.ends_with("_FILE") {
            return Ok(Some(value));
        }
        let text = std::fs::read_to_string(&value).map_err(|source| PasswordError::File { variable: name, source })?;
        // Editors end a file with a line feed; passwords don't.
        return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    Ok(None)
}

/// What was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// the name had these bytes
    Unchanged,
    /// the name has them now
    Changed,
}

/// Makes sure that `target` is this image.
pub async fn push(client: &Client, thin: &Thin, target: &Reference) -> Result<(ManifestDigest, Pushed), Error> {
    let top = thin.top();
    let digest = ManifestDigest::from_digest(top.digest);
    if target.digest().is_some() {
        return Err(Error::Configuration(format!("{target}: a thin image has a digest of its own; name a tag alone")));
    }
    match client.resolve(target).await {
        Ok(found) if found == digest => return Ok((digest, Pushed::Unchanged)),
        // Some registries refuse to be asked about what isn't there yet. Whether we may write, the upload tells.
        Ok(_) | Err(Error::NotFound { .. } | Error::Unauthorized { .. }) => {}
        Err(error) => return Err(error),
    }
    for image in &thin.images {
        for blob in [&image.layer, &image.config] {
            let source = BlobSource::Bytes(Bytes::from(blob.bytes.clone()));
            client.push_blob(target.repository(), blob.digest, source).await?;
        }
    }
    if thin.index.is_some() {
        for manifest in thin.images.iter().map(|image| &image.manifest) {
            let name = format!("{}@{}", target.repository(), manifest.digest);
            let by_digest = Reference::parse(&name)
                .map_err(|error| Error::Configuration(format!("{name} can't be pushed: {error}")))?;
            let bytes = Bytes::from(manifest.bytes.clone());
            client.push_manifest(&by_digest, manifest.media_type, bytes).await?;
        }
    }
    client.push_manifest(target, top.media_type, Bytes::from(top.bytes.clone())).await?;
    Ok((digest, Pushed::Changed))
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
        assert!(gone.to_string().contains("CVMFS_PUBLISHER_OUTPUT_PASSWORD_FILE"), "{gone}");
        let target = Reference::parse("registry.example.org/x:1").unwrap();
        assert!(matches!(credentials(&target, Some("me"), |_| None), Err(PasswordError::Absent { .. })));
        assert!(credentials(&target, None, |_| None).is_ok());
    }
}
