//! The labels of snapshots: the only place where their names occur.
//!
//! A request to prepare a layer carries what containerd and its clients know of it. Which labels are there depends on the client
//! and its version, so each is optional, and each is input from outside: a value that is not well-formed is as good as none.

use std::collections::BTreeMap;

use image::digest::{ChainId, DiffId, LayerDigest};

/// Labels of a snapshot or a request, in the order of their names.
pub type Labels = BTreeMap<String, String>;

/// Names the snapshot that an extraction is for; every unpacker since containerd 1.4 sets it to the chain ID.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// What this program adds to snapshots that it made without a download.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Its value.
pub const REMOTE_VALUE: &str = "cvmfs";

/// What this program adds to a snapshot that stands for a thin image: the chain ID of the image that is meant. Nobody else can
/// say it: it is taken away where it comes with a request.
pub const THIN_STACK: &str = "ch.cern.cvmfs.thin.stack";

/// The uncompressed digest (containerd 2.4).
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// Set for CRI, Docker, nerdctl and, on request, the transfer service.
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// Annotation of a layer of a thin image: `REPOSITORY:HEX`.
const THIN_LAYER: &str = "containerd.io/snapshot/cvmfs.layer";

/// More layers than this are not taken from one label; containerd cuts the list at about 55 itself.
const MAX_FOLLOWING: usize = 500;

/// Where a thin image says that a layer is.
///
/// A layer alone, never a whole image: what stands for a chain ID has to be verified against it, and a list of layers can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// name of the repository, to be found among the configured ones
    pub repository: String,
    /// which layer
    pub layer: LayerDigest,
}

/// The layer that a request wants, by all the names that the request gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// the value of [`SNAPSHOT_REF`] as it is; what the made snapshot has to carry
    pub target: String,
    /// the same, if it is a chain ID
    pub chain: Option<ChainId>,
    /// digest of the blob
    pub layer: Option<LayerDigest>,
    /// digest of the tar
    pub diff: Option<DiffId>,
    /// where a thin image says that it is
    pub thin: Option<Thin>,
    /// name of the image; for policies and messages
    pub image: Option<String>,
    /// digests of the layers above this one, the next one first
    pub following: Vec<LayerDigest>,
}

/// One name of a layer, where nothing else is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerName {
    /// digest of the blob
    Layer(LayerDigest),
    /// digest of the tar
    Diff(DiffId),
    /// digest of the stack
    Chain(ChainId),
}

impl Wanted {
    /// A layer that is known by one name.
    pub fn named(name: LayerName) -> Self {
        let mut wanted = Self {
            target: String::new(),
            chain: None,
            layer: None,
            diff: None,
            thin: None,
            image: None,
            following: Vec::new(),
        };
        match name {
            LayerName::Layer(layer) => wanted.layer = Some(layer),
            LayerName::Diff(diff) => wanted.diff = Some(diff),
            LayerName::Chain(chain) => {
                wanted.target = chain.to_string();
                wanted.chain = Some(chain);
            }
        }
        wanted
    }

    /// What a request to prepare a snapshot wants; nothing if it is not for a layer of an image.
    pub fn of(labels: &Labels) -> Option<Self> {
        let target = labels.get(SNAPSHOT_REF).filter(|target| !target.is_empty())?.clone();
        let text = |key: &str| labels.get(key).map(String::as_str);
        let layer = text(LAYER_DIGEST).and_then(|text| LayerDigest::parse(text).ok());
        let following = text(IMAGE_LAYERS).map(|list| {
            let digests = list.split(',').map_while(|text| LayerDigest::parse(text.trim()).ok());
            digests.filter(|digest| Some(*digest) != layer).take(MAX_FOLLOWING).collect()
        });
        Some(Self {
            chain: ChainId::parse(&target).ok(),
            layer,
            diff: text(DIFF_ID).and_then(|text| DiffId::parse(text).ok()),
            thin: text(THIN_LAYER).and_then(thin),
            image: text(IMAGE_REF).map(str::to_owned),
            following: following.unwrap_or_default(),
            target,
        })
    }
}

fn thin(text: &str) -> Option<Thin> {
    let (repository, hex) = text.split_once(':')?;
    Some(Thin { repository: repository.to_owned(), layer: LayerDigest::parse(&format!("sha256:{hex}")).ok()? })
}

/// Labels that a client asks for when it wants the layer lazily, as containerd's own clients do.
pub fn request(chain: &ChainId, image: &str, layer: &LayerDigest, following: &[LayerDigest]) -> Labels {
    // containerd refuses a label whose name and value are longer than 4096 bytes together.
    let room = (4096 - IMAGE_LAYERS.len()) / (layer.to_string().len() + 1);
    let layers: Vec<String> = std::iter::once(layer).chain(following).take(room).map(ToString::to_string).collect();
    [
        (SNAPSHOT_REF, chain.to_string()),
        (IMAGE_REF, image.to_owned()),
        (LAYER_DIGEST, layer.to_string()),
        (IMAGE_LAYERS, layers.join(",")),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn a_container_wants_no_layer() {
        assert_eq!(Wanted::of(&Labels::new()), None);
        assert_eq!(Wanted::of(&labels(&[(SNAPSHOT_REF, ""), (LAYER_DIGEST, &digest('a'))])), None);
    }

    #[test]
    fn every_name_of_a_layer_is_read() {
        let list = [digest('b'), digest('c'), digest('d')].join(",");
        let wanted = Wanted::of(&labels(&[
            (SNAPSHOT_REF, &digest('a')),
            (LAYER_DIGEST, &digest('b')),
            (IMAGE_LAYERS, &list),
            (DIFF_ID, &digest('e')),
            (IMAGE_REF, "docker.io/library/x:1"),
        ]))
        .expect("a layer");
        assert_eq!(wanted.chain.map(|c| c.to_string()), Some(digest('a')));
        assert_eq!(wanted.layer.map(|c| c.to_string()), Some(digest('b')));
        assert_eq!(wanted.diff.map(|c| c.to_string()), Some(digest('e')));
        assert_eq!(wanted.following.iter().map(ToString::to_string).collect::<Vec<_>>(), [digest('c'), digest('d')]);
        assert_eq!(wanted.image.as_deref(), Some("docker.io/library/x:1"));
    }

    #[test]
    fn what_is_not_well_formed_is_as_good_as_none() {
        let wanted = Wanted::of(&labels(&[
            (SNAPSHOT_REF, "anything"),
            (LAYER_DIGEST, "../../etc"),
            (DIFF_ID, "sha256:XY"),
            (IMAGE_LAYERS, "x,y"),
            (THIN_LAYER, "images.example.org:../../x"),
        ]))
        .expect("a layer");
        let nothing = Wanted {
            target: "anything".into(),
            chain: None,
            layer: None,
            diff: None,

            thin: None,
            image: None,
            following: Vec::new(),
        };
        assert_eq!(wanted, nothing);
    }

    #[test]
    fn thin_images_name_a_layer_of_a_repository() {
        let layer = Thin { repository: "a.b".into(), layer: LayerDigest::parse(&digest('1')).unwrap() };
        assert_eq!(thin(&format!("a.b:{}", "1".repeat(64))), Some(layer));
        for text in ["", "a.b", "a.b:", "a.b:../x", &digest('1')[..70]] {
            assert_eq!(thin(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_stays_within_the_limit_of_labels() {
        let layer = LayerDigest::parse(&digest('b')).unwrap();
        let made = request(&ChainId::parse(&digest('a')).unwrap(), "x", &layer, &[layer; 100]);
        assert!(made.iter().all(|(key, value)| key.len() + value.len() <= 4096));
        assert_eq!(Wanted::of(&made).expect("a layer").layer, Some(layer));
    }
}
