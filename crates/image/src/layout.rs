//! Every path that we own in a repository, printed and parsed here and nowhere else.
//!
//! ```text
//! REGISTRY/REPO/NAME:TAG                 → relative link to .flat/xx/<config hex>
//! .multiarch/<arch>[:variant]/REGISTRY/… the same for each platform of an image of several
//! .multiarch/<alias>                     → <arch>[:variant]: what else the architecture is called
//! .flat/xx/<config hex>                  complete root, Apptainer files included
//! .flat/xx/.cvmfsstartup-<config hex>    what a start of the image touches: clients fetch it when one begins there
//! .flat/xx/.cover-<config hex>/          lies over the flat where a container has to see the image and nothing else
//! .layers/xx/<layer hex>/layerfs         content of a layer
//! .layers/xx/<layer hex>/.metadata/      layers.json, format.json
//! .layers/xx/<layer hex>/.overlay/       beside a layer of the existing tool: the same as we write it, layerfs and .metadata
//! .metadata/REGISTRY/REPO/NAME:TAG/      manifest.json, image-manifest.json, config.json, status.json, startup.json, pin.json
//! .metadata/.multiarch/<arch>[:variant]/REGISTRY/…
//! .metadata/.versions/[.multiarch/…/]REGISTRY/REPO/NAME:TAG/<hex>/   the same of what the name led to before, and version.json
//! .metadata/.condemned/{layer,flat}/xx/<hex>.json
//! .index/{diff-id,chain-id}/xx/<hex>     → ../../../.layers/xx/<hex>
//! .index/image/xx/<chain ID hex>         → ../../../.flat/xx/<hex> of an image that is this whole stack
//! .index/{config,manifest}/xx/<hex>      raw bytes
//! .index/users/xx/<layer hex>.json
//! podmanStore/…                          additional image store, see [`crate::podman`]
//! .status.html                           the publisher's status page, as it was at its last publish
//! ```
//!
//! `xx` is the first two hex digits, so a directory never has more than 256 of them. Paths are relative to the root
//! of the repository, without a leading slash, below an optional prefix; the empty path is that root.
//!
//! Invariants
//! - `parse(print(path)) == path` for every [`OwnedPath`]; nothing else parses.
//! - Links are relative and stay below the prefix, so the whole tree can be moved.
//! - A public link leads to a flat, or, at the plain path, by the operator's choice to the link of the client's own
//!   architecture ([`Layout::variant_link`]).
//! - [`Layout::nested_catalogs`] lists the directories that begin a nested catalog; the root catalog holds no rows of
//!   images but a link at the very top that the operator asked for by `--as NAME:TAG`.
//!
//! The part that existing tools and clients know is unchanged: `.flat`, `.layers/…/layerfs`, `manifest.json`, the
//! public links, `.multiarch`.

mod catalogs;
mod records;

use std::fmt::Write as _;

use crate::digest::{ChainId, DiffId, Digest, ImageId, LayerDigest, ManifestDigest};
use crate::platform::PlatformDirectory;
use crate::podman::StorePath;
use crate::reference::PublicName;

pub use catalogs::{CatalogRule, NestedCatalog};
pub use records::{
    Condemned, DescriptorRecord, FormatRecord, IMPLICIT_MAX, LayersJson, LostRecord, ManifestRecord, PinRecord,
    RecordError, StatusRecord, UsersRecord, VersionRecord, timestamp, unix_seconds,
};

/// What clients put before the name of a directory to find its start-up list beside it.
const STARTUP_PREFIX: &str = ".cvmfsstartup-";
const COVER_PREFIX: &str = ".cover-";

/// Kinds of things that can wait for their removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CondemnedKind {
    /// a layer directory
    Layer,
    /// a flat directory
    Flat,
}

/// The files beside an image's public link, below `.metadata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageFile {
    /// `manifest.json`: the existing record; its presence says "converted"
    Manifest,
    /// `image-manifest.json`: raw bytes of the manifest
    RawManifest,
    /// `config.json`: raw bytes of the config
    Config,
    /// `status.json`
    Status,
    /// `startup.json`: what a start of the image touches
    Startup,
    /// `pin.json`: nothing removes what this image is made of
    Pin,
}

impl ImageFile {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Manifest, Self::RawManifest, Self::Config, Self::Status, Self::Startup, Self::Pin];

    /// The name of the file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest.json",
            Self::RawManifest => "image-manifest.json",
            Self::Config => "config.json",
            Self::Status => "status.json",
            Self::Startup => "startup.json",
            Self::Pin => "pin.json",
        }
    }
}

/// An entry of one of the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IndexKey {
    /// link to the layer with this uncompressed digest
    DiffId(DiffId),
    /// link to the topmost layer of this stack
    ChainId(ChainId),
    /// link to the flat of an image with this stack
    Image(ChainId),
    /// raw config
    Config(ImageId),
    /// raw manifest or index
    Manifest(ManifestDigest),
    /// which images use a layer
    Users(LayerDigest),
}

impl IndexKey {
    const fn kind(self) -> &'static str {
        match self {
            Self::DiffId(_) => "diff-id",
            Self::ChainId(_) => "chain-id",
            Self::Image(_) => "image",
            Self::Config(_) => "config",
            Self::Manifest(_) => "manifest",
            Self::Users(_) => "users",
        }
    }

    const fn digest(self) -> Digest {
        match self {
            Self::DiffId(digest) => digest.digest(),
            Self::ChainId(digest) | Self::Image(digest) => digest.digest(),
            Self::Config(digest) => digest.digest(),
            Self::Manifest(digest) => digest.digest(),
            Self::Users(digest) => digest.digest(),
        }
    }

    fn parse(kind: &str, bucket: &str, name: &str) -> Option<Self> {
        let hex = if kind == "users" { name.strip_suffix(".json")? } else { name };
        let digest = bucketed(bucket, hex)?;
        Some(match kind {
            "diff-id" => Self::DiffId(DiffId::from_digest(digest)),
            "chain-id" => Self::ChainId(ChainId::from_digest(digest)),
            "image" => Self::Image(ChainId::from_digest(digest)),
            "config" => Self::Config(ImageId::from_digest(digest)),
            "manifest" => Self::Manifest(ManifestDigest::from_digest(digest)),
            "users" => Self::Users(LayerDigest::from_digest(digest)),
            _ => return None,
        })
    }
}

/// A path that we own: what it means instead of how it is spelled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OwnedPath {
    /// a public link; with a platform: below `.multiarch`
    Public {
        /// none: the default platform
        platform: Option<PlatformDirectory>,
        /// the name of the image
        name: PublicName,
    },
    /// `.flat/xx/<hex>`: the complete root of an image
    Flat(ImageId),
    /// `.flat/xx/.cvmfsstartup-<hex>`: the start-up list of an image, under the name by which clients find it
    FlatStartup(ImageId),
    /// `.flat/xx/.cover-<hex>`: hides what the flat has beside the image; as an upper layer on the flat it makes the image
    FlatCover(ImageId),
    /// `.layers/xx/<hex>`: the directory of a layer
    Layer(LayerDigest),
    /// `.layers/xx/<hex>/layerfs`: its content
    LayerContent(LayerDigest),
    /// `.layers/xx/<hex>/.overlay`: a layer directory within the layer directory, where `layerfs` was written by the
    /// existing tool and stays as it is
    LayerOverlay(LayerDigest),
    /// `.layers/xx/<hex>/.metadata/layers.json`
    LayerRecord(LayerDigest),
    /// `.layers/xx/<hex>/.metadata/format.json`
    LayerFormat(LayerDigest),
    /// `.metadata/…/NAME:TAG`: the directory of an image's records
    Image {
        /// none: the default platform
        platform: Option<PlatformDirectory>,
        /// the name of the image
        name: PublicName,
    },
    /// `.metadata/…/NAME:TAG/FILE`
    ImageFile {
        /// none: the default platform
        platform: Option<PlatformDirectory>,
        /// the name of the image
        name: PublicName,
        /// which of its records
        file: ImageFile,
    },
    /// `.metadata/.versions/…/NAME:TAG/<hex>`: the records of an image that the name led to before. The digits are
    /// those of its manifest, or of its config where the manifest is not known
    Version {
        /// none: the default platform
        platform: Option<PlatformDirectory>,
        /// the name of the image
        name: PublicName,
        /// which of its images
        key: Digest,
    },
    /// `.metadata/.versions/…/NAME:TAG/<hex>/version.json`
    VersionRecord {
        /// none: the default platform
        platform: Option<PlatformDirectory>,
        /// the name of the image
        name: PublicName,
        /// which of its images
        key: Digest,
    },
    /// `.metadata/.condemned/{layer,flat}/xx/<hex>.json`
    Condemned(CondemnedKind, Digest),
    /// `.index/KIND/xx/<hex>`
    Index(IndexKey),
    /// `podmanStore`: the additional image store
    PodmanStore,
    /// `podmanStore/…`: what is in it
    PodmanFile(StorePath),
    /// `.status.html`: a copy of the publisher's status page
    StatusPage,
}

/// Prints and parses paths below a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// empty, or directories with a slash at the end
    prefix: String,
}

impl Layout {
    /// The layout at the root of a repository.
    pub fn new() -> Self {
        Self::default()
    }

    /// The layout in a sub-directory, for instance `images` or `site/images`; nothing if that is no plain relative path.
    pub fn below(directory: &str) -> Option<Self> {
        let directory = directory.trim_matches('/');
        if directory.is_empty() {
            return Some(Self::new());
        }
        let plain = |component: &str| {
            !matches!(component, "" | "." | "..") && component.len() <= 255 && !component.contains('\0')
        };
        directory.split('/').all(plain).then(|| Self { prefix: format!("{directory}/") })
    }

    /// The prefix without a slash at the end; empty for the root.
    pub fn prefix(&self) -> &str {
        self.prefix.trim_end_matches('/')
    }

    /// The path of something that we own.
    pub fn print(&self, path: &OwnedPath) -> String {
        let mut text = self.prefix.clone();
        let metadata = |text: &mut String, platform: &Option<PlatformDirectory>, name: &PublicName| {
            text.push_str(".metadata/");
            platform.iter().for_each(|platform| push(text, format_args!(".multiarch/{platform}/")));
            text.push_str(name.as_str());
        };
        let layer = |text: &mut String, layer: &LayerDigest, rest: &str| {
            push(text, format_args!(".layers/{}/{}{rest}", layer.bucket(), layer.hex()));
        };
        match path {
            OwnedPath::Public { platform, name } => {
                platform.iter().for_each(|platform| push(&mut text, format_args!(".multiarch/{platform}/")));
                text.push_str(name.as_str());
            }
            OwnedPath::Flat(image) => push(&mut text, format_args!(".flat/{}/{}", image.bucket(), image.hex())),
            OwnedPath::FlatStartup(image) => {
                push(&mut text, format_args!(".flat/{}/{STARTUP_PREFIX}{}", image.bucket(), image.hex()));
            }
            OwnedPath::FlatCover(image) => {
                push(&mut text, format_args!(".flat/{}/{COVER_PREFIX}{}", image.bucket(), image.hex()));
            }
            OwnedPath::Layer(digest) => layer(&mut text, digest, ""),
            OwnedPath::LayerContent(digest) => layer(&mut text, digest, "/layerfs"),
            OwnedPath::LayerOverlay(digest) => layer(&mut text, digest, "/.overlay"),
            OwnedPath::LayerRecord(digest) => layer(&mut text, digest, "/.metadata/layers.json"),
            OwnedPath::LayerFormat(digest) => layer(&mut text, digest, "/.metadata/format.json"),
            OwnedPath::Image { platform, name } => metadata(&mut text, platform, name),
            OwnedPath::ImageFile { platform, name, file } => {
                metadata(&mut text, platform, name);
                push(&mut text, format_args!("/{}", file.file_name()));
            }
            OwnedPath::Version { platform, name, key } | OwnedPath::VersionRecord { platform, name, key } => {
                text.push_str(".metadata/.versions/");
                platform.iter().for_each(|platform| push(&mut text, format_args!(".multiarch/{platform}/")));
                push(&mut text, format_args!("{name}/{}", key.hex()));
                if matches!(path, OwnedPath::VersionRecord { .. }) {
                    text.push_str("/version.json");
                }
            }
            OwnedPath::Condemned(kind, digest) => {
                let kind = match kind {
                    CondemnedKind::Layer => "layer",
                    CondemnedKind::Flat => "flat",
                };
                push(&mut text, format_args!(".metadata/.condemned/{kind}/{}/{}.json", digest.bucket(), digest.hex()));
            }
            OwnedPath::Index(key) => {
                let (kind, digest) = (key.kind(), key.digest());
                let suffix = if kind == "users" { ".json" } else { "" };
                push(&mut text, format_args!(".index/{kind}/{}/{}{suffix}", digest.bucket(), digest.hex()));
            }
            OwnedPath::PodmanStore => text.push_str("podmanStore"),
            OwnedPath::PodmanFile(path) => push(&mut text, format_args!("podmanStore/{}", path.print())),
            OwnedPath::StatusPage => text.push_str(".status.html"),
        }
        text
    }

    /// What a path means; nothing if it is none of ours. A leading slash is accepted.
    pub fn parse(&self, path: &str) -> Option<OwnedPath> {
        let path = path.strip_prefix('/').unwrap_or(path).strip_prefix(self.prefix.as_str())?;
        let (top, rest) = path.split_once('/').unwrap_or((path, ""));
        match top {
            ".flat" => {
                let (bucket, name) = rest.split_once('/')?;
                let image = |hex: &str| bucketed(bucket, hex).map(ImageId::from_digest);
                match (name.strip_prefix(STARTUP_PREFIX), name.strip_prefix(COVER_PREFIX)) {
                    (Some(hex), _) => image(hex).map(OwnedPath::FlatStartup),
                    (_, Some(hex)) => image(hex).map(OwnedPath::FlatCover),
                    _ => image(name).map(OwnedPath::Flat),
                }
            }
            ".layers" => {
                let (bucket, rest) = rest.split_once('/')?;
                let (hex, rest) = rest.split_once('/').map_or((rest, None), |(hex, rest)| (hex, Some(rest)));
                let layer = LayerDigest::from_digest(bucketed(bucket, hex)?);
                match rest {
                    None => Some(OwnedPath::Layer(layer)),
                    Some("layerfs") => Some(OwnedPath::LayerContent(layer)),
                    Some(".overlay") => Some(OwnedPath::LayerOverlay(layer)),
                    Some(".metadata/layers.json") => Some(OwnedPath::LayerRecord(layer)),
                    Some(".metadata/format.json") => Some(OwnedPath::LayerFormat(layer)),
                    Some(_) => None,
                }
            }
            ".multiarch" => {
                let (platform, name) = rest.split_once('/')?;
                Some(OwnedPath::Public {
                    platform: Some(PlatformDirectory::parse(platform)?),
                    name: PublicName::parse(name).ok()?,
                })
            }
            ".metadata" => parse_metadata(rest),
            ".index" => {
                let mut parts = rest.split('/');
                let key = IndexKey::parse(parts.next()?, parts.next()?, parts.next()?)?;
                parts.next().is_none().then_some(OwnedPath::Index(key))
            }
            ".status.html" if path == top => Some(OwnedPath::StatusPage),
            "podmanStore" if path == top => Some(OwnedPath::PodmanStore),
            "podmanStore" => StorePath::parse(rest).map(OwnedPath::PodmanFile),
            _ => Some(OwnedPath::Public { platform: None, name: PublicName::parse(path).ok()? }),
        }
    }

    /// The text of a relative link at `from` that leads to `to`.
    pub fn link(&self, from: &OwnedPath, to: &OwnedPath) -> String {
        let (from, to) = (self.print(from), self.print(to));
        let from = &from[self.prefix.len()..];
        let to = &to[self.prefix.len()..];
        format!("{}{to}", "../".repeat(from.matches('/').count()))
    }

    /// The text of a link at the plain path of an image that leads each client to the image for its own architecture.
    /// Clients that don't say which that is (`CVMFS_ARCH`) get the one for `default`.
    pub fn variant_link(&self, name: &PublicName, default: &PlatformDirectory) -> String {
        format!("{}.multiarch/$({ARCHITECTURE}:-{default})/{name}", "../".repeat(name.depth()))
    }

    /// Which platform's image is the default of such a link; nothing if it is none of ours.
    pub fn parse_variant_link(&self, name: &PublicName, text: &str) -> Option<PlatformDirectory> {
        let inner = text.strip_prefix(&"../".repeat(name.depth()))?.strip_prefix(".multiarch/$(")?;
        let default = inner.strip_prefix(ARCHITECTURE)?.strip_prefix(":-")?;
        let default = default.strip_suffix(name.as_str())?.strip_suffix(")/")?;
        PlatformDirectory::parse(default)
    }

    /// Whether a public link of ours has this text.
    pub fn is_public_link(&self, public: &OwnedPath, text: &str) -> bool {
        let OwnedPath::Public { platform, name } = public else { return false };
        let is_variant = platform.is_none() && self.parse_variant_link(name, text).is_some();
        is_variant || matches!(self.parse_link(public, text), Some(OwnedPath::Flat(_)))
    }

    /// The links beside the directory of a platform: path and text.
    pub fn alias_links(&self, platform: &PlatformDirectory) -> Vec<(String, String)> {
        let link = |alias: &str| (format!("{}.multiarch/{alias}", self.prefix), platform.to_string());
        platform.aliases().map(link).collect()
    }

    /// What a link of ours at `from` leads to; nothing if it leads anywhere else or is spelled in another way.
    pub fn parse_link(&self, from: &OwnedPath, target: &str) -> Option<OwnedPath> {
        let from_path = self.print(from);
        let depth = from_path[self.prefix.len()..].matches('/').count();
        let inner = target.strip_prefix(&"../".repeat(depth))?;
        self.parse(&format!("{}{inner}", self.prefix))
    }
}

/// What clients replace in links by the name of their architecture, as `uname -m` says it.
const ARCHITECTURE: &str = "CVMFS_ARCH";

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string can't fail");
}

/// A digest below its own bucket.
fn bucketed(bucket: &str, hex: &str) -> Option<Digest> {
    hex.starts_with(bucket).then_some(())?;
    Digest::parse_hex(hex).filter(|_| bucket.len() == 2)
}

/// What stands below `.metadata/`.
fn parse_metadata(rest: &str) -> Option<OwnedPath> {
    if let Some(rest) = rest.strip_prefix(".condemned/") {
        let (kind, rest) = rest.split_once('/')?;
        let kind = match kind {
            "layer" => CondemnedKind::Layer,
            "flat" => CondemnedKind::Flat,
            _ => return None,
        };
        let (bucket, name) = rest.split_once('/')?;
        return Some(OwnedPath::Condemned(kind, bucketed(bucket, name.strip_suffix(".json")?)?));
    }
    let (is_version, rest) = rest.strip_prefix(".versions/").map_or((false, rest), |rest| (true, rest));
    let (platform, rest) = match rest.strip_prefix(".multiarch/") {
        Some(rest) => {
            let (platform, rest) = rest.split_once('/')?;
            (Some(PlatformDirectory::parse(platform)?), rest)
        }
        None => (None, rest),
    };
    if is_version {
        let (rest, is_record) = rest.strip_suffix("/version.json").map_or((rest, false), |rest| (rest, true));
        let (name, hex) = rest.rsplit_once('/')?;
        let (name, key) = (PublicName::parse(name).ok()?, Digest::parse_hex(hex)?);
        return Some(match is_record {
            true => OwnedPath::VersionRecord { platform, name, key },
            false => OwnedPath::Version { platform, name, key },
        });
    }
    if let Ok(name) = PublicName::parse(rest) {
        return Some(OwnedPath::Image { platform, name });
    }
    let (name, file) = rest.rsplit_once('/')?;
    let file = ImageFile::ALL.into_iter().find(|known| known.file_name() == file)?;
    Some(OwnedPath::ImageFile { platform, name: PublicName::parse(name).ok()?, file })
}

#[cfg(test)]
mod tests;
