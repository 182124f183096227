//! What a member of a layer archive means, by its name.
//!
//! Sources: OCI image-spec "Image Layer Filesystem Changeset" (whiteouts, opaque directories); names of AUFS and of
//! eStargz and zstd:chunked as their builders write them.

use super::LayerError;
use crate::tree::TreePath;

/// Whiteouts begin so.
const WHITEOUT: &[u8] = b".wh.";
/// Bookkeeping of AUFS begins so.
const AUFS: &[u8] = b".wh..wh.";
/// Marks its directory as opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Names that mean something to CernVM-FS itself, in every directory.
const RESERVED: [&[u8]; 2] = [b".cvmfscatalog", b".cvmfsautocatalog"];
/// Members that lazy-pulling formats add at the root of a layer.
const LANDMARKS: [&[u8]; 3] = [b".prefetch.landmark", b".no.prefetch.landmark", b"stargz.index.json"];

/// The meaning of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// a node of the tree
    Plain(TreePath),
    /// this path disappears from the layers below
    Whiteout(TreePath),
    /// the layers below disappear from this directory
    Opaque(TreePath),
    /// not part of the tree and no loss
    Dropped,
    /// a name that can't be published
    Reserved(TreePath),
}

/// Does a name of CernVM-FS occur in the path?
pub(super) fn is_reserved(path: &TreePath) -> bool {
    path.components().any(|component| RESERVED.contains(&component))
}

impl Member {
    /// Looks at the name of a member.
    pub fn of(path: &[u8]) -> Result<Self, LayerError> {
        let path = TreePath::normalise(path)?;
        if LANDMARKS.contains(&path.as_bytes()) || path.components().any(|c| c.starts_with(AUFS) && c != OPAQUE) {
            return Ok(Self::Dropped);
        }
        let parent = path.parent().unwrap_or_default();
        if parent.components().any(|component| component.starts_with(WHITEOUT)) {
            return Err(LayerError::Whiteout(path));
        }
        let meaning = match path.name() {
            OPAQUE => Self::Opaque(parent),
            name => match name.strip_prefix(WHITEOUT) {
                None => Self::Plain(path),
                Some(hidden) => Self::Whiteout(parent.join(hidden).map_err(|_| LayerError::Whiteout(path))?),
            },
        };
        let (Self::Plain(path) | Self::Whiteout(path) | Self::Opaque(path)) = &meaning else { return Ok(meaning) };
        match meaning {
            // nothing of that name is ever published, so there is nothing to hide
            Self::Whiteout(_) if is_reserved(path) => Ok(Self::Dropped),
            _ if is_reserved(path) => Ok(Self::Reserved(path.clone())),
            _ => Ok(meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_meaning_of_names() {
        let path = |text: &str| TreePath::new(text).unwrap();
        for (name, expected) in [
            ("./a/b", Member::Plain(path("a/b"))),
            ("/a", Member::Plain(path("a"))),
            ("./", Member::Plain(path(""))),
            ("a/.wh.b", Member::Whiteout(path("a/b"))),
            (".wh.b", Member::Whiteout(path("b"))),
            (".wh..b", Member::Whiteout(path(".b"))),
            ("a/.wh..wh..opq", Member::Opaque(path("a"))),
            (".wh..wh..opq", Member::Opaque(path(""))),
            (".wh..wh.plnk", Member::Dropped),
            (".wh..wh.plnk/1.2", Member::Dropped),
            (".wh..wh.aufs", Member::Dropped),
            (".wh..wh.orph/", Member::Dropped),
            ("a/.wh..wh..tmp", Member::Dropped),
            ("stargz.index.json", Member::Dropped),
            (".no.prefetch.landmark", Member::Dropped),
            ("a/stargz.index.json", Member::Plain(path("a/stargz.index.json"))),
            ("a/.cvmfscatalog", Member::Reserved(path("a/.cvmfscatalog"))),
            ("a/.cvmfscatalog/b", Member::Reserved(path("a/.cvmfscatalog/b"))),
            (".cvmfsautocatalog", Member::Reserved(path(".cvmfsautocatalog"))),
            ("a/.wh..cvmfscatalog", Member::Dropped),
        ] {
            assert_eq!(Member::of(name.as_bytes()).unwrap(), expected, "{name}");
        }
        for bad in [".wh.", ".wh..", ".wh...", ".wh.a/b", "a/.wh../b", ".wh..wh..opq/x"] {
            assert!(matches!(Member::of(bad.as_bytes()), Err(LayerError::Whiteout(_))), "{bad}");
        }
        for bad in ["../a", "a/../../b", "/..", "a\0b"] {
            assert!(matches!(Member::of(bad.as_bytes()), Err(LayerError::Path(_))), "{bad}");
        }
    }
}
