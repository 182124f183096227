//! The records that lie beside images and layers: JSON, `"schema": 1`, the same bytes for the same values.
//!
//! Readers ignore fields they don't know and refuse a schema they don't know. `manifest.json` and `layers.json` are
//! older than this program and keep the shape that existing tools wrote: capitalised keys in the one, an array with
//! one object in the other; they are read whatever the case of their keys, which those tools do as well.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::digest::{ChainId, DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use crate::platform::{Platform, PlatformDirectory};

/// The version of the records that we write.
const SCHEMA: u32 = 1;
/// Longest list of implicit directories in a [`FormatRecord`].
pub const IMPLICIT_MAX: usize = 65_536;
/// Longest record that is read, in bytes: the longest list of implicit directories fits.
const MAX_RECORD: usize = 64 << 20;

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not JSON or not of the expected shape.
    #[error("{what} can't be read: {source}")]
    Json {
        /// name of the record
        what: &'static str,
        /// where and why
        source: serde_json::Error,
    },
    /// Written by a later program.
    #[error("{what} has schema {found}, this program reads schema {SCHEMA}; use a newer program")]
    Schema {
        /// name of the record
        what: &'static str,
        /// its schema
        found: u64,
    },
    /// Absurdly long.
    #[error("{what} is longer than {MAX_RECORD} bytes; refused")]
    TooLarge {
        /// name of the record
        what: &'static str,
    },
}

/// A point in time as records state it: RFC 3339, UTC, whole seconds. Times that no calendar has become year 9999.
pub fn timestamp(unix_seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

/// The same read back: Unix seconds; nothing if it is no such text.
pub fn unix_seconds(timestamp: &str) -> Option<i64> {
    OffsetDateTime::parse(timestamp, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

/// Writes and reads one kind of record.
macro_rules! record {
    ($name:ident, $what:literal, schema) => {
        impl $name {
            /// The bytes of the record, ending in a newline.
            pub fn to_bytes(&self) -> Vec<u8> {
                #[derive(Serialize)]
                struct Versioned<'a> {
                    schema: u32,
                    #[serde(flatten)]
                    record: &'a $name,
                }
                print(&Versioned { schema: SCHEMA, record: self })
            }
            /// Reads the record.
            pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
                #[derive(Deserialize)]
                struct Version {
                    schema: u64,
                }
                match parse::<Version>($what, bytes)?.schema {
                    1 => parse($what, bytes),
                    found => Err(RecordError::Schema { what: $what, found }),
                }
            }
        }
    };
}

fn print<T: Serialize>(record: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(record).expect("records have string keys and no failing serialisers");
    bytes.push(b'\n');
    bytes
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, RecordError> {
    if bytes.len() > MAX_RECORD {
        return Err(RecordError::TooLarge { what });
    }
    serde_json::from_slice(bytes).map_err(|source| RecordError::Json { what, source })
}

/// Something that the repository can't hold as the image has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRecord {
    /// where; bytes that aren't UTF-8 are shown as U+FFFD
    pub path: String,
    /// what, for instance `xattr user.x`
    pub what: String,
}

/// `format.json`: how a layer was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormatRecord {
    /// how deletions are written; we write `overlay`
    pub whiteouts: String,
    /// are extended attributes kept?
    pub xattrs: bool,
    /// digest of the uncompressed tar
    pub diff_id: DiffId,
    /// size of the uncompressed tar in bytes
    pub size: u64,
    /// members of the tar
    pub entries: u64,
    /// catalog rows of the layer
    #[serde(default)]
    pub rows: u64,
    /// what could not be kept, up to a limit
    #[serde(default)]
    pub lost: Vec<LostRecord>,
    /// how many more were lost beyond the limit
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_more: u64,
    /// are owners kept? Only layers of the existing tool, and what was made of them without the blob, lost them
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub owners: bool,
    /// chain ID of the layers below from which content was copied (hard links) or whose links moved rows: on other
    /// layers the same blob is another tree. Nothing if the tree is the same everywhere
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_on: Option<ChainId>,
    /// directories that the layer did not list itself; in a stack they take the metadata of the layer below.
    /// At most [`IMPLICIT_MAX`]. Paths that aren't UTF-8 are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implicit: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_no(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_yes(value: &bool) -> bool {
    *value
}

impl FormatRecord {
    /// The only way in which we write deletions: 0:0 character devices and opaque attributes.
    pub const OVERLAY: &'static str = "overlay";
    /// A layer of the existing tool: deletions are files named `.wh.*`, everything belongs to whoever published,
    /// extended attributes and hard links are gone. What is not known of it (`entries`, perhaps `size`) is 0.
    pub const LITERAL: &'static str = "literal";
}
record!(FormatRecord, "format.json", schema);

/// `status.json`: which image stands behind a public link, since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRecord {
    /// whole name of the image
    pub image: String,
    /// digest of its manifest
    pub digest: ManifestDigest,
    /// digest of the index that its name led to, if it led to one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<ManifestDigest>,
    /// digest of its config
    pub config: ImageId,
    /// for which machines
    pub platform: Platform,
    /// the platform that was wished for, if it is another one that runs the image; its directory is named after this one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wished: Option<Platform>,
    /// whether it has a flat; the operator may want layers only
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub flat: bool,
    /// who has signed it, of those that were asked for: SHA-256 of the keys
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<Digest>,
    /// when, see [`timestamp`]
    pub published: String,
    /// revision of the repository that brought it
    pub revision: u64,
    /// program and version
    pub generator: String,
    /// digest of the start-up list as somebody gave it; what is published of it has the sizes of this image
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Digest>,
    /// whether its start-up list is a file bundle in the flat, too
    #[serde(default, skip_serializing_if = "is_no")]
    pub bundles: bool,
}
record!(StatusRecord, "status.json", schema);

impl StatusRecord {
    /// The directory below `.multiarch` that images of its platform are in.
    pub fn place(&self) -> PlatformDirectory {
        self.wished.as_ref().unwrap_or(&self.platform).directory()
    }
}

/// `.metadata/.condemned/…`: waits for its removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// when it was first found that nothing uses it, see [`timestamp`]
    pub since: String,
    /// why its last known use ended: `wish dropped`, `tag moved`, `removed`, `rolled back`; `unused` if no record tells
    pub reason: String,
    /// public names of the images that used it last
    pub last_images: Vec<String>,
}
record!(Condemned, "condemned record", schema);

/// `version.json`: what a name led to before, until when, and what it needs to lead there again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// when the name ceased to lead to it, see [`timestamp`]
    pub since: String,
    /// `wish dropped`, `tag moved`, `removed`, `rolled back`
    pub reason: String,
    /// digest of its manifest; not known of images of the existing tool
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<ManifestDigest>,
    /// digest of the index that the name led to, if it led to one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<ManifestDigest>,
    /// digest of its config, which names its flat
    pub config: ImageId,
    /// whether it has a flat
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub flat: bool,
    /// whether it was the image for the default platform, and had a link below `.multiarch` as well
    #[serde(default, skip_serializing_if = "is_no")]
    pub several: bool,
    /// its layers, bottom first; those that no registry gives are left out
    pub layers: Vec<LayerDigest>,
}
record!(VersionRecord, "version.json", schema);

/// `pin.json`: what this image is made of stays, whatever becomes of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRecord {
    /// since when, see [`timestamp`]
    pub since: String,
}
record!(PinRecord, "pin.json", schema);

/// `.index/users/…`: images that use a layer; derived from the records of the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersRecord {
    /// digests of their configs, sorted, each once
    pub images: Vec<ImageId>,
}
record!(UsersRecord, "users record", schema);

/// `layers.json`: compressed and uncompressed digest of a layer, in the shape of containers/storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayersJson {
    /// time of the ingestion, see [`timestamp`]
    pub created: String,
    /// digest of the blob
    pub layer: LayerDigest,
    /// size of the blob in bytes; unknown in old records
    pub compressed_size: Option<u64>,
    /// digest of the uncompressed tar
    pub diff_id: DiffId,
    /// size of the uncompressed tar in bytes
    pub size: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct LayersEntry {
    id: String,
    created: String,
    compressed_diff_digest: LayerDigest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compressed_size: Option<u64>,
    diff_digest: DiffId,
    diff_size: u64,
}

impl LayersJson {
    /// The bytes of the record.
    pub fn to_bytes(&self) -> Vec<u8> {
        print(&[LayersEntry {
            id: self.diff_id.hex(),
            created: self.created.clone(),
            compressed_diff_digest: self.layer,
            compressed_size: self.compressed_size,
            diff_digest: self.diff_id,
            diff_size: self.size,
        }])
    }

    /// Reads the record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let [entry] = parse::<[LayersEntry; 1]>("layers.json", bytes)?;
        Ok(Self {
            created: entry.created,
            layer: entry.compressed_diff_digest,
            compressed_size: entry.compressed_size,
            diff_id: entry.diff_digest,
            size: entry.diff_size,
        })
    }
}

/// A blob in a [`ManifestRecord`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct DescriptorRecord<D = Digest> {
    /// media type
    #[serde(alias = "MediaType", alias = "mediaType")]
    pub media_type: String,
    /// size in bytes
    #[serde(alias = "Size")]
    pub size: u64,
    /// digest
    #[serde(alias = "Digest")]
    pub digest: D,
}

/// `manifest.json`: the existing record, by whose presence and config digest existing tools see that an image is
/// converted. One line, capitalised keys, only these fields, no newline at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub struct ManifestRecord {
    /// always 2
    #[serde(alias = "SchemaVersion", alias = "schemaVersion")]
    pub schema_version: u32,
    /// media type of the manifest
    #[serde(alias = "MediaType", alias = "mediaType", default)]
    pub media_type: String,
    /// the config
    #[serde(alias = "Config")]
    pub config: DescriptorRecord<ImageId>,
    /// the layers, bottom first
    #[serde(alias = "Layers")]
    pub layers: Vec<DescriptorRecord<LayerDigest>>,
}

impl ManifestRecord {
    /// The bytes of the record, as the existing tool writes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records have string keys and no failing serialisers")
    }

    /// Reads the record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        parse("manifest.json", bytes)
    }

    /// The layers that a registry gives, bottom first; the others are in no repository.
    pub fn distributable(&self) -> impl Iterator<Item = LayerDigest> {
        let foreign = |text: &str| text.contains(".foreign.") || text.contains(".nondistributable.");
        self.layers.iter().filter(move |l| !foreign(&l.media_type)).map(|l| l.digest)
    }
}
