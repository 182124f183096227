//! Thin images as files: an OCI image layout in a directory, or one archive for every engine.
//!
//! ```text
//! oci-layout  index.json  blobs/sha256/HEX     what containerd, Podman and Docker's containerd store read
//! manifest.json                                in archives: what Docker's own store reads
//! ```
//! The same image gives the same archive, byte for byte. An archive or a new directory appears whole or not at all; a directory that
//! has thin images of ours gets the new blobs first, then the new `index.json`, then loses what nobody names any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use image::thin::{Blob, REPOSITORY};
use serde_json::{Value, json};

use crate::build::Thin;
use crate::files::{self, FileError};
use crate::names::tag_of;

const LAYOUT: (&str, &str) = ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
const INDEX: &str = "index.json";
const BLOBS: &str = "blobs/sha256";

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The system.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else is there.
    #[error("{0} exists and is no directory of thin images; nothing was written over it")]
    Foreign(PathBuf),
}

/// Where thin images are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// a directory
    Directory(PathBuf),
    /// a tar file
    Archive(PathBuf),
    /// a tar on standard output
    Standard,
}

impl Output {
    /// `-` is standard output, `*.tar` an archive, everything else a directory.
    pub fn parse(path: &Path) -> Self {
        match path.extension() {
            _ if path == Path::new("-") => Self::Standard,
            Some(extension) if extension == "tar" => Self::Archive(path.to_owned()),
            _ => Self::Directory(path.to_owned()),
        }
    }

    /// Writes the image, which engines are going to call `name`.
    pub fn write(&self, thin: &Thin, name: &str) -> Result<(), OutputError> {
        match self {
            Self::Directory(path) => directory(path, thin, name),
            Self::Archive(path) => Ok(files::replace(path, &archive(thin, name))?),
            Self::Standard => {
                let written = io::Write::write_all(&mut io::stdout().lock(), &archive(thin, name));
                Ok(written.map_err(FileError::of("write", Path::new("standard output")))?)
            }
        }
    }
}

/// Where a blob is in a layout.
fn blob_path(blob: &Blob) -> String {
    format!("{BLOBS}/{}", blob.digest.hex())
}

/// `index.json`: the names by which containerd and Podman, and by which readers of the specification call the image.
fn index_json(thin: &Thin, name: &str) -> Vec<u8> {
    let mut entry = thin.top().descriptor();
    let annotations = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag_of(name),
        REPOSITORY: thin.repository,
    });
    entry.insert("annotations".into(), annotations);
    let media_type = "application/vnd.oci.image.index.v1+json";
    json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": [entry] }).to_string().into_bytes()
}

/// `manifest.json`, as `docker save` writes it. Docker's own store knows one platform a name: the default one.
fn docker_json(thin: &Thin, name: &str) -> Vec<u8> {
    let image = &thin.images[0];
    json!([{ "Config": blob_path(&image.config), "RepoTags": [name], "Layers": [blob_path(&image.layer)] }])
        .to_string()
        .into_bytes()
}

/// The archive.
pub fn archive(thin: &Thin, name: &str) -> Vec<u8> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::from([
        (LAYOUT.0.into(), LAYOUT.1.into()),
        (INDEX.into(), index_json(thin, name)),
        ("manifest.json".into(), docker_json(thin, name)),
    ]);
    files.extend(thin.parts().chain([thin.top()]).map(|blob| (blob_path(blob), blob.bytes.clone())));
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).expect("the names are short");
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, content).expect("writing to memory can't fail");
    };
    for directory in ["blobs/", "blobs/sha256/"] {
        add(directory, tar::EntryType::Directory, 0o755, &[]);
    }
    for (path, content) in &files {
        add(path, tar::EntryType::Regular, 0o644, content);
    }
    builder.into_inner().expect("writing to memory can't fail")
}

fn directory(path: &Path, thin: &Thin, name: &str) -> Result<(), OutputError> {
    let index = index_json(thin, name);
    let blobs: Vec<&Blob> = thin.parts().chain([thin.top()]).collect();
    let is_new = match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(OutputError::Foreign(path.to_owned()));
        }
        Err(error) => return Err(FileError::of("read", path)(error).into()),
    };
    if is_new {
        let fill = |at: &Path| {
            make_blobs(at)?;
            blobs.iter().try_for_each(|blob| files::replace(&at.join(blob_path(blob)), &blob.bytes))?;
            files::replace(&at.join(LAYOUT.0), LAYOUT.1.as_bytes())?;
            files::replace(&at.join(INDEX), &index)
        };
        return Ok(files::new_directory(path, fill)?);
    }
    if !is_ours(path) {
        return Err(OutputError::Foreign(path.to_owned()));
    }
    make_blobs(path)?;
    for blob in &blobs {
        let at = path.join(blob_path(blob));
        if std::fs::read(&at).ok().as_deref() != Some(&blob.bytes) {
            files::replace(&at, &blob.bytes)?;
        }
    }
    let at = path.join(INDEX);
    if std::fs::read(&at).ok().as_deref() != Some(&index) {
        files::replace(&at, &index)?;
    }
    let kept: Vec<String> = blobs.iter().map(|blob| blob.digest.hex()).collect();
    let blobs = path.join(BLOBS);
    for entry in std::fs::read_dir(&blobs).map_err(FileError::of("read", &blobs))?.flatten() {
        if !kept.iter().any(|kept| entry.file_name().to_str() == Some(kept)) {
            std::fs::remove_file(entry.path()).map_err(FileError::of("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn make_blobs(path: &Path) -> Result<(), FileError> {
    let blobs = path.join(BLOBS);
    std::fs::create_dir_all(&blobs).map_err(FileError::of("create", &blobs))
}

/// Did we write it? Every image in it is a thin one.
fn is_ours(path: &Path) -> bool {
    let read = |name: &str| std::fs::read(path.join(name)).ok();
    let index = read(INDEX).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()).unwrap_or_default();
    let is_thin = |entry: &Value| entry["annotations"][REPOSITORY].is_string();
    read(LAYOUT.0).is_some()
        && index["manifests"].as_array().is_some_and(|images| !images.is_empty() && images.iter().all(is_thin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_what_is_written() {
        for (path, output) in [
            ("-", Output::Standard),
            ("x.tar", Output::Archive("x.tar".into())),
            ("x", Output::Directory("x".into())),
            ("a.b/x:1", Output::Directory("a.b/x:1".into())),
        ] {
            assert_eq!(Output::parse(Path::new(path)), output);
        }
    }
}
