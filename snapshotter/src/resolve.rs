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
use mounted::{is_absence, is_directory, record};
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Repository(tempfile::TempDir);

    fn layer(name: &str) -> LayerDigest {
        LayerDigest::of(name.as_bytes())
    }

    fn diff(name: &str) -> DiffId {
        DiffId::of(name.as_bytes())
    }

    fn format(name: &str, whiteouts: &str) -> FormatRecord {
        FormatRecord {
            whiteouts: whiteouts.into(),
            xattrs: true,
            diff_id: diff(name),
            size: 100,
            entries: 7,
            rows: 7,
            lost: Vec::new(),
            lost_more: 0,
            owners: true,
            settled_on: None,
            implicit: Vec::new(),
        }
    }

    impl Repository {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, bytes: &[u8]) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn publish(&self, name: &str, below: &str, format: Option<&FormatRecord>) {
            let directory = format!("{}{below}", Layout::new().print(&OwnedPath::Layer(layer(name))));
            self.write(&format!("{directory}/layerfs/file"), b"");
            if let Some(format) = format {
                self.write(&format!("{directory}/.metadata/format.json"), &format.to_bytes());
            }
        }

        fn link(&self, key: IndexKey, to: &OwnedPath) {
            let (layout, from) = (Layout::new(), OwnedPath::Index(key));
            let path = self.0.path().join(layout.print(&from));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(layout.link(&from, to), path).unwrap();
        }

        fn ask(&self, wanted: &Wanted, below: Below, ways: &[Way]) -> Option<Answer> {
            let query = Query { wanted: wanted.clone(), below, ways: ways.to_vec(), repository: "a.b".into() };
            ask(self.0.path(), &query).unwrap()
        }
    }

    fn wanted(chain: Option<ChainId>, layer: Option<LayerDigest>, diff: Option<DiffId>) -> Wanted {
        Wanted {
            target: chain.map(|chain| chain.to_string()).unwrap_or_default(),
            chain,
            layer,
            diff,
            thin: None,
            image: None,
            following: Vec::new(),
        }
    }

    #[test]
    fn a_way_that_leads_to_another_tar_is_no_end_of_the_search() {
        let repository = Repository::new();
        for name in ["right", "wrong"] {
            repository.publish(name, "", Some(&format(name, FormatRecord::OVERLAY)));
        }
        let chain = ChainId::on(None, diff("right"));
        let lie = wanted(Some(chain), Some(layer("wrong")), Some(diff("right")));
        let answer = repository.ask(&lie, Below::Nothing, &Way::ALL).expect("something is there");
        assert_eq!(answer.hit, None);
        let other = Unfit::OtherContent { layer: layer("wrong"), diff: diff("wrong"), chain };
        assert_eq!(answer.unfit, Some(other));
        repository.link(IndexKey::DiffId(diff("right")), &OwnedPath::Layer(layer("right")));
        let answer = repository.ask(&lie, Below::Nothing, &Way::ALL).expect("something is there");
        assert_eq!(answer.hit.map(|hit| (hit.way, hit.layer.layer)), Some((Way::Diff, layer("right"))));
        assert_eq!(repository.ask(&lie, Below::Nothing, &[Way::Chain, Way::Thin]), None);
    }

    #[test]
    fn every_way_is_held_to_what_is_known_of_the_layers_below() {
        let repository = Repository::new();
        let base = ChainId::on(None, diff("base"));
        let chain = ChainId::on(Some(base), diff("top"));
        repository.publish("top", "", Some(&format("top", FormatRecord::OVERLAY)));
        for key in [IndexKey::DiffId(diff("top")), IndexKey::ChainId(chain)] {
            repository.link(key, &OwnedPath::Layer(layer("top")));
        }
        let mut wanted = wanted(Some(chain), Some(layer("top")), Some(diff("top")));
        wanted.thin = Some(crate::labels::Thin { repository: "a.b".into(), layer: layer("top") });
        let settled = FormatRecord { settled_on: Some(base), ..format("top", FormatRecord::OVERLAY) };
        for (record, unknown) in
            [(format("top", FormatRecord::OVERLAY), [true; 4]), (settled, [false, false, false, true])]
        {
            repository.publish("top", "", Some(&record));
            for (way, unknown) in Way::ALL.into_iter().zip(unknown) {
                let hits = |below| repository.ask(&wanted, below, &[way]).is_some_and(|answer| answer.hit.is_some());
                assert!(hits(Below::Chain(base)), "{way:?}");
                assert!(!hits(Below::Nothing) && !hits(Below::Chain(chain)), "{way:?}");
                assert_eq!(hits(Below::Unknown), unknown, "{way:?}, settled on {:?}", record.settled_on);
            }
        }
    }

    #[test]
    fn records_say_what_a_layer_is() {
        let layers_json = LayersJson {
            created: String::new(),
            layer: layer("old"),
            compressed_size: None,
            diff_id: diff("old"),
            size: 55,
        };
        type Case = (Option<FormatRecord>, bool, bool, (Part, bool, Option<DiffId>, (u64, u64)));
        let ours = format("old", FormatRecord::OVERLAY);
        let literal = FormatRecord { size: 0, entries: 0, ..format("old", FormatRecord::LITERAL) };
        let cases: [Case; 6] = [
            (Some(ours.clone()), false, false, (Part::Content, false, Some(diff("old")), (100, 7))),
            // A copy beside our own layer is none of ours.
            (Some(ours.clone()), true, true, (Part::Content, false, Some(diff("old")), (100, 7))),
            (Some(literal.clone()), true, false, (Part::Content, true, Some(diff("old")), (0, 0))),
            (Some(literal), true, true, (Part::Overlay, false, Some(diff("old")), (100, 7))),
            (None, true, false, (Part::Content, true, Some(diff("old")), (55, 0))),
            (None, false, false, (Part::Content, true, None, (0, 0))),
        ];
        for (number, (record, older, copy, expected)) in cases.into_iter().enumerate() {
            let repository = Repository::new();
            repository.publish("old", "", record.as_ref());
            if older {
                let path = Layout::new().print(&OwnedPath::LayerRecord(layer("old")));
                repository.write(&path, &layers_json.to_bytes());
            }
            if copy {
                repository.publish("old", "/.overlay", Some(&ours));
            }
            let answer = repository.ask(&wanted(None, Some(layer("old")), None), Below::Unknown, &[Way::Digest]);
            let found = answer.and_then(|answer| answer.hit).expect("it is there").layer;
            assert_eq!((found.part, found.literal, found.diff, found.size), expected, "case {number}");
        }
    }

    #[test]
    fn thin_annotations_are_for_the_repository_that_they_name() {
        let repository = Repository::new();
        repository.publish("x", "", Some(&format("x", FormatRecord::OVERLAY)));
        for (name, expected) in [("a.b", true), ("a", false), ("a.b.c", false), ("", false)] {
            let mut wanted = wanted(None, None, None);
            wanted.thin = Some(crate::labels::Thin { repository: name.into(), layer: layer("x") });
            assert_eq!(repository.ask(&wanted, Below::Unknown, &Way::ALL).is_some(), expected, "{name:?}");
        }
    }

    #[test]
    fn an_absent_repository_is_an_error_and_an_empty_one_has_nothing() {
        let repository = Repository::new();
        let wanted = wanted(None, Some(layer("x")), None);
        assert_eq!(repository.ask(&wanted, Below::Unknown, &Way::ALL), None);
        let query = Query { wanted, below: Below::Unknown, ways: Way::ALL.to_vec(), repository: String::new() };
        assert!(ask(&repository.0.path().join("absent"), &query).is_err());
    }
}
