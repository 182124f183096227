//! `docker-archive:FILE`: what `docker save` and `podman save` write, laid out on disk as an OCI image layout.
//!
//! Newer archives are such a layout inside a tar already. Older ones have `manifest.json`, a config and layers as plain
//! tars; their manifest is made here. The archive is copied once into scratch space; no name in it is used as a path.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use image::digest::Digest;
use image::tar::{TarKind, TarReader};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir};

use crate::error::one_line;
use crate::failure::Failure;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Largest document of an archive.
const DOCUMENT: u64 = 4 << 20;

/// An archive unpacked; the directory goes when this is dropped.
#[derive(Debug)]
pub struct DockerArchive {
    directory: TempDir,
}

/// `manifest.json` of the older form.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

impl DockerArchive {
    /// Copies the files of an archive into `scratch`, by digest.
    pub fn unpack(file: &Path, scratch: &Path) -> Result<DockerArchive, Failure> {
        let directory = tempfile::Builder::new()
            .prefix("archive.")
            .tempdir_in(scratch)
            .map_err(Failure::io("create a directory in", scratch))?;
        let blobs = directory.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(Failure::io("create directory", &blobs))?;
        let source = File::open(file).map_err(Failure::io("open", file))?;
        let mut tar = TarReader::new(BufReader::with_capacity(1 << 20, source));
        let mut files: HashMap<Vec<u8>, (Digest, u64)> = HashMap::new();
        let mut links: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        while let Some(entry) = tar.next_entry()? {
            let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
            match entry.kind {
                TarKind::Regular { .. } => drop(files.insert(name, keep(&mut tar.content(), &blobs)?)),
                // Equal layers may be links to one of them: by name in the archive, or relative to their directory.
                TarKind::Symlink { target } => links.push((name, sibling(&target))),
                TarKind::HardLink { target } => links.push((name, target)),
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(found) = files.get(&target).copied() {
                files.insert(name, found);
            }
        }
        let archive = DockerArchive { directory };
        let index = match files.get(&b"index.json"[..]) {
            Some((digest, _)) => archive.document(*digest)?,
            None => archive.make_index(&files)?,
        };
        archive.write("index.json", &index)?;
        Ok(archive)
    }

    /// The OCI image layout.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.directory.path().join("blobs/sha256").join(digest.hex())
    }

    fn document(&self, digest: Digest) -> Result<Vec<u8>, Failure> {
        let path = self.blob(digest);
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(Failure::io("open", &path))?;
        file.take(DOCUMENT).read_to_end(&mut bytes).map_err(Failure::io("read", &path))?;
        Ok(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).map_err(Failure::io("write", &path))
    }

    /// Manifest and index for an archive of the older form.
    fn make_index(&self, files: &HashMap<Vec<u8>, (Digest, u64)>) -> Result<Vec<u8>, Failure> {
        let find = |name: &str| {
            let missing =
                || Failure::Content(format!("the archive has no file {name:?}; it was not written by docker save"));
            files.get(name.as_bytes()).copied().ok_or_else(missing)
        };
        let saved: Vec<Saved> = serde_json::from_slice(&self.document(find("manifest.json")?.0)?)
            .map_err(|e| Failure::Content(format!("manifest.json of the archive: {}", one_line(&e))))?;
        let [saved] = &saved[..] else {
            return Err(Failure::Content(format!(
                "the archive holds {} images; save one image to a file",
                saved.len()
            )));
        };
        let descriptor = |media_type: &str, (digest, size): (Digest, u64)| serde_json::json!({"mediaType": media_type, "digest": digest.to_string(), "size": size});
        let layers = saved
            .layers
            .iter()
            .map(|name| Ok(descriptor(OCI_LAYER, find(name)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, find(&saved.config)?),
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        self.write(&format!("blobs/sha256/{}", digest.hex()), &manifest)?;
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [descriptor(OCI_MANIFEST, (digest, manifest.len() as u64))],
        });
        Ok(index.to_string().into_bytes())
    }
}

/// `../ID/layer.tar`, as old archives write it, without the dots.
fn sibling(target: &[u8]) -> Vec<u8> {
    target.strip_prefix(b"../").unwrap_or(target).to_vec()
}

/// Copies a file to a place named by its digest.
fn keep(source: &mut dyn Read, blobs: &Path) -> Result<(Digest, u64), Failure> {
    let mut file = NamedTempFile::new_in(blobs).map_err(Failure::io("create a file in", blobs))?;
    let (mut hasher, mut size) = (Sha256::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = source.read(&mut buffer).map_err(Failure::read("the archive"))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
        file.write_all(&buffer[..read]).map_err(Failure::io("write to", blobs))?;
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    let path = blobs.join(digest.hex());
    file.persist(&path).map_err(|e| Failure::io("write", &path)(e.error))?;
    Ok((digest, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::manifest::Document;

    fn archive(members: &[(&str, &[u8])], links: &[(&str, &str)]) -> NamedTempFile {
        let mut builder = tar::Builder::new(NamedTempFile::new().unwrap());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        for (name, target) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn an_old_archive_gets_a_manifest_that_names_its_files() {
        let scratch = tempfile::tempdir().unwrap();
        let saved = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
        let file = archive(
            &[("a/layer.tar", b"layer"), ("c.json", b"{}"), ("manifest.json", saved)],
            &[("b/layer.tar", "../a/layer.tar")],
        );
        let archive = DockerArchive::unpack(file.path(), scratch.path()).unwrap();
        let index = fs::read(archive.directory().join("index.json")).unwrap();
        let Document::Index(index) = Document::parse(&index, None).unwrap() else { panic!("no index") };
        let digest = index.tagged(None).unwrap().digest;
        let manifest = archive.document(digest.digest()).unwrap();
        let Document::Manifest(manifest) = Document::parse(&manifest, None).unwrap() else { panic!("no manifest") };
        assert_eq!(manifest.layers.len(), 2);
        assert!(manifest.layers.iter().all(|l| l.digest.digest() == Digest::of(b"layer")));
        assert_eq!(manifest.config.digest(), Digest::of(b"{}"));
    }

    #[test]
    fn refuses_archives_that_are_none_or_hold_several_images() {
        let scratch = tempfile::tempdir().unwrap();
        let two = br#"[{"Config":"c","Layers":[]},{"Config":"c","Layers":[]}]"#;
        for members in [&[("x", &b"x"[..])][..], &[("manifest.json", two)], &[("manifest.json", b"[]")]] {
            let file = archive(members, &[]);
            assert!(matches!(DockerArchive::unpack(file.path(), scratch.path()), Err(Failure::Content(_))));
        }
    }
}
