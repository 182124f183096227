//! Images made of a few lines: members → layer → image → registry. Honest by default; every part can be replaced by
//! a hostile one before the image is pushed.
//!
//! The archives are written here byte by byte (ustar headers, PAX records where a value does not fit), so that no
//! library corrects what a test wants wrong: names are taken as they are.
//!
//! Sources: POSIX pax ("ustar Interchange Format", "pax Header Block"), OCI image-spec (manifest, index, config,
//! "Image Layer Filesystem Changeset"), Docker "Image Manifest Version 2, Schema 2".

use std::fmt;
use std::io::Write as _;

use image::digest::{DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use registry::testing::TestRegistry;
use serde_json::{Value, json};

/// Media types.
#[allow(missing_docs, reason = "their names say it")]
pub mod media {
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
}

/// What a member of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file with this content.
    File(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// Another name of this path.
    HardLink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One member of an archive. Names are raw bytes, as they are to stand in the archive.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of a tar header")]
pub struct Member {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: i64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One short line: failing tests print archives.
impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.path.escape_ascii())?;
        match &self.kind {
            Kind::Directory => write!(f, "directory")?,
            Kind::File(content) => write!(f, "file of {} bytes", content.len())?,
            Kind::Symlink(target) => write!(f, "-> {}", target.escape_ascii())?,
            Kind::HardLink(target) => write!(f, "= {}", target.escape_ascii())?,
            other => write!(f, "{other:?}")?,
        }
        write!(f, " {:04o} {}:{}", self.mode, self.uid, self.gid)
    }
}

/// Modification time of members that don't say otherwise.
pub const MTIME: i64 = 1_700_000_000;

impl Member {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> Member {
        Member { path: path.as_ref().to_vec(), kind, mode, uid: 0, gid: 0, mtime: MTIME, xattrs: Vec::new() }
    }

    /// With this mode.
    #[must_use]
    pub fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }

    /// With this owner.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Member {
        Member { uid, gid, ..self }
    }

    /// With this time.
    #[must_use]
    pub fn mtime(self, mtime: i64) -> Member {
        Member { mtime, ..self }
    }

    /// With this extended attribute besides those it has.
    #[must_use]
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Member {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// A regular file, 0644.
pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::File(content.as_ref().to_vec()), 0o644)
}

/// A directory, 0755.
pub fn dir(path: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::Directory, 0o755)
}

/// A symbolic link.
pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
}

/// A hard link.
pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Member {
    Member::new(path, Kind::HardLink(target.as_ref().to_vec()), 0o644)
}

/// A device, a pipe.
pub fn special(path: impl AsRef<[u8]>, kind: Kind) -> Member {
    Member::new(path, kind, 0o600)
}

/// Deletes a path of the layers below.
pub fn whiteout(path: &str) -> Member {
    let (parent, name) = path.rsplit_once('/').map_or((String::new(), path), |(p, n)| (format!("{p}/"), n));
    file(format!("{parent}.wh.{name}"), "")
}

/// Hides what the layers below have in a directory.
pub fn opaque(directory: &str) -> Member {
    file(format!("{directory}/.wh..wh..opq"), "")
}

/// An archive of these members, with its end.
pub fn tar(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        write_member(&mut out, member);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn write_member(out: &mut Vec<u8>, member: &Member) {
    let empty: &[u8] = &[];
    let (flag, content, link, (major, minor)) = match &member.kind {
        Kind::Directory => (b'5', empty, empty, (0, 0)),
        Kind::File(content) => (b'0', &content[..], empty, (0, 0)),
        Kind::HardLink(target) => (b'1', empty, &target[..], (0, 0)),
        Kind::Symlink(target) => (b'2', empty, &target[..], (0, 0)),
        Kind::Char(major, minor) => (b'3', empty, empty, (*major, *minor)),
        Kind::Block(major, minor) => (b'4', empty, empty, (*major, *minor)),
        Kind::Fifo => (b'6', empty, empty, (0, 0)),
    };
    let mut pax = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| pax.extend(pax_record(key, value));
    if member.path.len() > 100 {
        record(b"path", &member.path);
    }
    if link.len() > 100 {
        record(b"linkpath", link);
    }
    for (name, id) in [("uid", member.uid), ("gid", member.gid)] {
        if id >= 1 << 21 {
            record(name.as_bytes(), id.to_string().as_bytes());
        }
    }
    if !(0..1 << 33).contains(&member.mtime) {
        record(b"mtime", member.mtime.to_string().as_bytes());
    }
    for (name, value) in &member.xattrs {
        record(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    if !pax.is_empty() {
        write_block(out, b"pax", b'x', &pax, &[], member, (0, 0));
    }
    write_block(out, &member.path, flag, content, link, member, (major, minor));
}

/// One PAX record: its own length, key, value.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len.to_string().len() + rest != len {
        len = len.to_string().len() + rest;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A header with its content. Long names and large numbers are cut: whoever writes those adds PAX records.
fn write_block(
    out: &mut Vec<u8>,
    path: &[u8],
    flag: u8,
    content: &[u8],
    link: &[u8],
    member: &Member,
    device: (u32, u32),
) {
    let mut header = [0u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |number: u64, width: usize| format!("{number:0width$o}\0");
    put(0, &path[..path.len().min(100)]);
    put(100, octal(u64::from(member.mode), 7).as_bytes());
    put(108, octal(member.uid.min((1 << 21) - 1), 7).as_bytes());
    put(116, octal(member.gid.min((1 << 21) - 1), 7).as_bytes());
    put(124, octal(content.len() as u64, 11).as_bytes());
    put(136, octal(member.mtime.clamp(0, (1 << 33) - 1) as u64, 11).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, octal(u64::from(device.0), 7).as_bytes());
    put(337, octal(u64::from(device.1), 7).as_bytes());
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// A bare tar.
    Plain,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// The bytes packed.
pub fn pack(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("memory takes it");
            encoder.finish().expect("memory takes it")
        }
        Packing::Zstd => zstd::encode_all(bytes, 1).expect("memory takes it"),
    }
}

/// A layer as the registry has it, and as the manifest and the config describe it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The blob.
    pub blob: Vec<u8>,
    /// Digest under which the manifest lists it.
    pub digest: LayerDigest,
    /// Size that the manifest states.
    pub size: u64,
    /// Digest of the tar, as the config lists it.
    pub diff_id: DiffId,
    /// Media type; none: that of its packing, in the words of the image's format.
    pub media_type: Option<String>,
    /// How it is packed, as far as its media type says.
    pub packing: Packing,
}

impl Layer {
    /// A layer of these members.
    pub fn new(members: &[Member], packing: Packing) -> Layer {
        Layer::of_tar(&tar(members), packing)
    }

    /// A layer of any bytes.
    pub fn of_tar(tar: &[u8], packing: Packing) -> Layer {
        let layer = Layer::of_blob(pack(tar, packing), packing);
        Layer { diff_id: DiffId::of(tar), ..layer }
    }

    /// A layer whose blob is anything at all; its diff ID is that of the blob.
    pub fn of_blob(blob: Vec<u8>, packing: Packing) -> Layer {
        let (digest, size) = (LayerDigest::of(&blob), blob.len() as u64);
        Layer { diff_id: DiffId::of(&blob), blob, digest, size, media_type: None, packing }
    }

    fn media_type(&self, format: Format) -> String {
        if let Some(media_type) = &self.media_type {
            return media_type.clone();
        }
        let base = if format == Format::Oci { media::OCI_LAYER } else { media::DOCKER_LAYER };
        let suffix = match (self.packing, format) {
            (Packing::Plain, _) => "",
            (Packing::Gzip, Format::Oci) => "+gzip",
            (Packing::Gzip, Format::Docker) => ".gzip",
            (Packing::Zstd, Format::Oci) => "+zstd",
            (Packing::Zstd, Format::Docker) => ".zstd",
        };
        format!("{base}{suffix}")
    }
}

/// In whose words manifest and config are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OCI
    Oci,
    /// Docker schema 2
    Docker,
}

/// An image: layers, and a config that can be changed.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layers, bottom first.
    pub layers: Vec<Layer>,
    /// The config.
    pub config: Value,
    /// Its format.
    pub format: Format,
}

/// What became of an image in the registry.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the manifest.
    pub manifest: ManifestDigest,
    /// Bytes of the manifest.
    pub manifest_bytes: Vec<u8>,
    /// Digest of the config.
    pub config: ImageId,
    /// Bytes of the config.
    pub config_bytes: Vec<u8>,
    /// Digests of the layers, bottom first.
    pub layers: Vec<LayerDigest>,
    /// Their diff IDs.
    pub diff_ids: Vec<DiffId>,
    /// The layers' sizes.
    pub sizes: Vec<u64>,
}

impl Image {
    /// An OCI image for linux/amd64 of these layers.
    pub fn new(layers: impl IntoIterator<Item = Layer>) -> Image {
        let config = json!({
            "created": "2024-01-02T03:04:05Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["sh"]},
        });
        Image { layers: layers.into_iter().collect(), config, format: Format::Oci }
    }

    /// An image with gzipped layers of these members.
    pub fn of(layers: &[&[Member]]) -> Image {
        Image::new(layers.iter().map(|members| Layer::new(members, Packing::Gzip)))
    }

    /// In this format.
    #[must_use]
    pub fn format(self, format: Format) -> Image {
        Image { format, ..self }
    }

    /// For this architecture.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Image {
        self.config["architecture"] = architecture.into();
        self
    }

    /// The bytes of the config.
    pub fn config_bytes(&self) -> Vec<u8> {
        let mut config = self.config.clone();
        let diff_ids: Vec<String> = self.layers.iter().map(|l| l.diff_id.to_string()).collect();
        if config.get("rootfs").is_none() {
            config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        }
        serde_json::to_vec(&config).expect("JSON")
    }

    /// The manifest as a value.
    pub fn manifest(&self) -> Value {
        let config = self.config_bytes();
        let (manifest_type, config_type) = match self.format {
            Format::Oci => (media::OCI_MANIFEST, media::OCI_CONFIG),
            Format::Docker => (media::DOCKER_MANIFEST, media::DOCKER_CONFIG),
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| json!({"mediaType": l.media_type(self.format), "size": l.size, "digest": l.digest.to_string()}))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {
                "mediaType": config_type, "size": config.len(), "digest": ImageId::of(&config).to_string(),
            },
            "layers": layers,
        })
    }

    /// Stores the blobs, without a manifest.
    pub fn push_blobs(&self, registry: &TestRegistry) {
        registry.put_blob(self.config_bytes());
        for layer in &self.layers {
            registry.put_false_blob(layer.digest.digest(), layer.blob.clone());
        }
    }

    /// Pushes the image under a tag of an image repository.
    pub fn push(&self, registry: &TestRegistry, repository: &str, tag: &str) -> Pushed {
        self.push_blobs(registry);
        self.push_manifest(registry, repository, tag, &self.manifest())
    }

    /// Pushes the image under its digest only.
    pub fn push_untagged(&self, registry: &TestRegistry, repository: &str) -> Pushed {
        let pushed = self.push(registry, repository, "untagged");
        registry.remove_tag(repository, "untagged");
        pushed
    }

    /// Stores a manifest that need not fit the image.
    pub fn push_manifest(&self, registry: &TestRegistry, repository: &str, tag: &str, manifest: &Value) -> Pushed {
        let bytes = serde_json::to_vec(manifest).expect("JSON");
        let media_type = manifest["mediaType"].as_str().unwrap_or(media::OCI_MANIFEST);
        let digest = registry.put_manifest(repository, tag, media_type, bytes.clone());
        let config_bytes = self.config_bytes();
        Pushed {
            manifest: digest,
            manifest_bytes: bytes,
            config: ImageId::of(&config_bytes),
            config_bytes,
            layers: self.layers.iter().map(|l| l.digest).collect(),
            diff_ids: self.layers.iter().map(|l| l.diff_id).collect(),
            sizes: self.layers.iter().map(|l| l.size).collect(),
        }
    }
}

/// An entry of an index: an image for a platform (`linux/arm64/v8`).
pub fn index_entry(pushed: &Pushed, media_type: &str, platform: &str) -> Value {
    let mut parts = platform.split('/');
    let mut entry = json!({
        "mediaType": media_type, "size": pushed.manifest_bytes.len(), "digest": pushed.manifest.to_string(),
        "platform": {"os": parts.next(), "architecture": parts.next()},
    });
    if let Some(variant) = parts.next() {
        entry["platform"]["variant"] = variant.into();
    }
    entry
}

/// Pushes an index (OCI) or a manifest list (Docker) of these entries.
pub fn push_index(
    registry: &TestRegistry,
    repository: &str,
    tag: &str,
    format: Format,
    entries: &[Value],
) -> (ManifestDigest, Vec<u8>) {
    let media_type = if format == Format::Oci { media::OCI_INDEX } else { media::DOCKER_LIST };
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    let bytes = serde_json::to_vec(&index).expect("JSON");
    (registry.put_manifest(repository, tag, media_type, bytes.clone()), bytes)
}

/// Pushes what builders store beside an image in an index: a manifest of an attestation; gives its entry.
pub fn push_attestation(registry: &TestRegistry, repository: &str, about: &Pushed) -> Value {
    let statement = registry.put_blob(r#"{"_type":"https://in-toto.io/Statement/v0.1"}"#);
    let config = registry
        .put_blob(r#"{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#);
    let size = |digest: Digest| registry.blob(digest).map_or(0, |b| b.len());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": media::OCI_CONFIG, "size": size(config), "digest": config.to_string()},
        "layers": [{"mediaType": "application/vnd.in-toto+json", "size": size(statement), "digest": statement.to_string()}],
    });
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    let digest = ManifestDigest::of(&bytes);
    registry.put_false_manifest(repository, &digest.to_string(), media::OCI_MANIFEST, bytes.clone());
    json!({
        "mediaType": media::OCI_MANIFEST, "size": bytes.len(), "digest": digest.to_string(),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": about.manifest.to_string(),
        },
    })
}

/// Bytes that no compressor and no accident produces; the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}
