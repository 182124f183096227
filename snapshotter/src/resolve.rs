//! Which published layer is the wanted one, if any.
//!
//! Four ways lead to a layer; the configured order decides which is tried first, and the first repository that has it wins:
//!
//! | way | from | in the repository |
//! |---|---|---|
//! | thin | an annotation of a thin image | `.layers/xx/HEX` of the named repository |
//! | digest | digest of the blob | `.layers/xx/HEX` |
//! | diff | digest of the tar | `.index/diff-id/xx/HEX` |
//! | chain | digest of this layer and all below | `.index/chain-id/xx/HEX` |
//!
//! Every unpacker names the chain; a digest comes with CRI, Docker and newer clients; a digest of the tar with containerd 2.4.
//!
//! Trust. containerd verifies nothing that it does not unpack, so an image that lies about its layers could put foreign files under
//! the chain ID of an honest image. Where a layer's record says what tar it is, that has to give the wanted chain ID together with
//! the chain ID of the parent; otherwise the layer is not used. A layer that was settled on other layers is another tree here, and
//! is not used either.

use std::fs;
use std::io;
use std::path::Path;

use image::digest::{ChainId, DiffId, LayerDigest};
use image::layout::{FormatRecord, IndexKey, LayersJson, Layout, OwnedPath};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::{Deserialize, Serialize};

use crate::labels::Wanted;
use crate::snapshots::Part;

/// A way to find a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// annotations of a thin image
    Thin,
    /// digest of the blob
    Digest,
    /// digest of the tar
    Diff,
    /// digest of the stack
    Chain,
}

impl Way {
    /// The usual order: the digest leads to catalogs that a container needs anyway, indexes are catalogs of their own.
    pub const ALL: [Self; 4] = [Self::Thin, Self::Digest, Self::Diff, Self::Chain];

    /// The word in logs and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Digest => "digest",
            Self::Diff => "diff",
            Self::Chain => "chain",
        }
    }
}

/// What is asked of a repository: owned, because the answer may come after nobody waits for it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// by which names
    pub wanted: Wanted,
    /// chain ID of the layers below: none if there are none
    pub below: Below,
    /// which ways, in which order
    pub ways: Vec<Way>,
    /// name of the repository that is asked, for thin images
    pub repository: String,
}

/// What is known of the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// there are none
    Nothing,
    /// these
    Chain(ChainId),
    /// some, which nobody named
    Unknown,
}

impl Below {
    /// The chain ID of these layers with one more on top.
    fn with(self, diff: DiffId) -> Option<ChainId> {
        match self {
            Self::Nothing => Some(ChainId::on(None, diff)),
            Self::Chain(chain) => Some(ChainId::on(Some(chain), diff)),
            Self::Unknown => None,
        }
    }
}

/// A layer in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// which way led here
    pub way: Way,
    /// what it found
    pub layer: Published,
}

/// A layer directory of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// which layer
    pub layer: LayerDigest,
    /// where its content is
    pub part: Part,
    /// are its deletions files of the existing tool?
    pub literal: bool,
    /// digest of its tar, if a record says so
    pub diff: Option<DiffId>,
    /// size of its tar and number of its entries, 0 if not known
    pub size: (u64, u64),
}

/// Why a layer that is there was not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The chain ID is of another tar.
    #[error(
        "layer {layer} is the tar {diff}, which is not what {chain} wants; the image's config and manifest disagree, or a parent is another one"
    )]
    OtherContent {
        /// which layer
        layer: LayerDigest,
        /// its tar
        diff: DiffId,
        /// what was wanted
        chain: ChainId,
    },
    /// The tree depends on other layers.
    #[error("layer {layer} was unpacked on other layers than these; on these it is another tree")]
    Settled {
        /// which layer
        layer: LayerDigest,
    },
}

/// What a repository answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// the layer
    pub hit: Option<Hit>,
    /// what was there but could not be used
    pub unfit: Option<Unfit>,
}

/// Asks a mounted repository; nothing means that it has no such layer. Blocks.
pub fn ask(repository: &Path, query: &Query) -> io::Result<Option<Answer>> {
    let mut answer = Answer::default();
    for way in &query.ways {
        let thin = query.wanted.thin.as_ref().filter(|thin| thin.repository == query.repository).map(|thin| thin.layer);
        let found = match way {
            Way::Thin => thin.map(|layer| by_digest(repository, layer)).transpose()?.flatten(),
            Way::Digest => query.wanted.layer.map(|layer| by_digest(repository, layer)).transpose()?.flatten(),
            Way::Diff => by_index(repository, query.wanted.diff.map(IndexKey::DiffId))?,
            Way::Chain => by_index(repository, query.wanted.chain.map(IndexKey::ChainId))?,
        };
        let Some((layer, format)) = found else { continue };
        match unfit(query, *way, &layer, format.as_ref()) {
            None => {
                answer.hit = Some(Hit { way: *way, layer });
                return Ok(Some(answer));
            }
            Some(unfit) => answer.unfit = answer.unfit.or(Some(unfit)),
        }
    }
    Ok(Some(answer).filter(|answer| answer.unfit.is_some()))
}

/// Looks at layers by their digests until one is there. What was read is in the client's cache then, which is why one may ask.
pub fn any(repository: &Path, layers: &[LayerDigest]) -> io::Result<Option<()>> {
    for layer in layers {
        if by_digest(repository, *layer)?.is_some() {
            return Ok(Some(()));
        }
    }
    Ok(None)
}

type Candidate = (Published, Option<FormatRecord>);

fn unfit(query: &Query, way: Way, layer: &Published, format: Option<&FormatRecord>) -> Option<Unfit> {
    // A chain ID names the content with all that is below; the other ways name the layer alone.
    let unknown = way == Way::Chain && query.below == Below::Unknown;
    if let Some(settled_on) = format.and_then(|format| format.settled_on)
        && query.below != Below::Chain(settled_on)
        && !unknown
    {
        return Some(Unfit::Settled { layer: layer.layer });
    }
    // The index may be right and the parent another one: containerd names none where it unpacks layers side by side.
    let (chain, diff) = (query.wanted.chain?, layer.diff?);
    let made = query.below.with(diff)?;
    (made != chain).then_some(Unfit::OtherContent { layer: layer.layer, diff, chain })
}

/// The directory of a layer digest, the corrected copy before the original.
fn by_digest(repository: &Path, layer: LayerDigest) -> io::Result<Option<Candidate>> {
    let directory = Layout::new().print(&OwnedPath::Layer(layer));
    if !is_directory(repository, &format!("{directory}/layerfs"))? {
        return Ok(None);
    }
    let format = record(repository, &format!("{directory}/.metadata/format.json"))?
        .and_then(|bytes| FormatRecord::parse(&bytes).ok());
    // Only beside what the existing tool wrote there can be a corrected copy.
    if format.as_ref().is_none_or(|format| format.whiteouts != FormatRecord::OVERLAY)
        && let Some(copy) = overlay(repository, layer)?
    {
        return Ok(Some(copy));
    }
    let diff = match &format {
        Some(format) => Some((format.diff_id, format.size)),
        None => record(repository, &format!("{directory}/.metadata/layers.json"))?
            .and_then(|bytes| LayersJson::parse(&bytes).ok())
            .map(|record| (record.diff_id, record.size)),
    };
    let literal = format.as_ref().is_none_or(|format| format.whiteouts != FormatRecord::OVERLAY);
    let entries = format.as_ref().map_or(0, |format| format.entries);
    let published = Published {
        layer,
        part: Part::Content,
        literal,
        diff: diff.map(|(diff, _)| diff),
        size: (diff.map_or(0, |(_, size)| size), entries),
    };
    Ok(Some((published, format)))
}

/// The corrected copy beside a layer.
fn overlay(repository: &Path, layer: LayerDigest) -> io::Result<Option<Candidate>> {
    let directory = Layout::new().print(&OwnedPath::LayerOverlay(layer));
    if !is_directory(repository, &format!("{directory}/layerfs"))? {
        return Ok(None);
    }
    let format = record(repository, &format!("{directory}/.metadata/format.json"))?
        .and_then(|bytes| FormatRecord::parse(&bytes).ok());
    let published = Published {
        layer,
        part: Part::Overlay,
        literal: false,
        diff: format.as_ref().map(|format| format.diff_id),
        size: format.as_ref().map_or((0, 0), |format| (format.size, format.entries)),
    };
    Ok(Some((published, format)))
}

/// Follows a link of an index, if it is one of ours.
fn by_index(repository: &Path, key: Option<IndexKey>) -> io::Result<Option<Candidate>> {
    let Some(key) = key else { return Ok(None) };
    let (layout, from) = (Layout::new(), OwnedPath::Index(key));
    let target = match fs::read_link(repository.join(layout.print(&from))) {
        Ok(target) => target,
        Err(error) if is_absence(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match target.to_str().and_then(|target| layout.parse_link(&from, target)) {
        Some(OwnedPath::Layer(layer)) => by_digest(repository, layer),
        Some(OwnedPath::LayerOverlay(layer)) => overlay(repository, layer),
        _ => {
            tracing::warn!(link = %layout.print(&from), target = %target.display(), "a link of an index leads to no layer; it is not followed");
            Ok(None)
        }
    }
}

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 20;

/// A small file; nothing if it is absent.
fn record(repository: &Path, path: &str) -> io::Result<Option<Vec<u8>>> {
    use std::io::Read as _;
    // A pipe would wait for a writer.
    let Some(file) = open(repository, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else { return Ok(None) };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= MAX_RECORD))
}

fn is_directory(repository: &Path, path: &str) -> io::Result<bool> {
    Ok(open(repository, path, OFlag::O_PATH | OFlag::O_DIRECTORY)?.is_some())
}

/// Opens what is below a repository without following any link: what is published there is input from outside.
fn open(repository: &Path, path: &str, flags: OFlag) -> io::Result<Option<fs::File>> {
    let root = fs::File::open(repository)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(&root, path, how).map_err(io::Error::from) {
        Ok(found) => Ok(Some(found.into())),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_absence(error: &io::Error) -> bool {
    use nix::libc::{ELOOP, ENOTDIR, EXDEV};
    // A link or a file where a directory should be is as good as nothing; it is not what we published.
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(ELOOP | ENOTDIR | EXDEV))
}
