//! Which directories begin a nested catalog.
//!
//! Clients fetch the catalogs on the way to a path, and the root catalog at every revision. So images, layers and
//! indexes are cut off at each level that grows: a client that wants one image fetches the catalogs of its name, of
//! one bucket and of the image, however many others there are; and one more image rewrites no others.

use super::{Layout, OwnedPath};

/// When a directory begins a nested catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CatalogRule {
    /// from its first entry on
    Always,
    /// once it has more than [`Layout::LARGE_DIRECTORY`] entries, or the catalog that it is in more than
    /// [`Layout::CROWDED_CATALOG`] rows and it takes part with [`Layout::WORTH_A_CATALOG`]
    WhenLarge,
}

/// A directory that begins a nested catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NestedCatalog {
    /// the directory
    pub path: String,
    /// from when on
    pub rule: CatalogRule,
}

impl Layout {
    /// From this many entries on, a directory of names becomes a catalog of its own.
    pub const LARGE_DIRECTORY: usize = 1000;
    /// From this many rows on, a catalog of names gives directories up: many repositories, none of them large, are many
    /// rows as well, and one more image rewrites them all.
    pub const CROWDED_CATALOG: usize = 8000;
    /// Rows below a directory for which a further request is not too much.
    pub const WORTH_A_CATALOG: usize = 32;

    /// The directories on the way to a path, and perhaps the path itself, that begin a nested catalog; outermost first.
    ///
    /// A flat is split further inside, by a budget of entries; that is the matter of who writes it.
    pub fn nested_catalogs(&self, path: &OwnedPath) -> Vec<NestedCatalog> {
        use CatalogRule::{Always, WhenLarge};
        let text = self.print(path);
        let inner = &text[self.prefix.len()..];
        let components = inner.split('/').count();
        // depths that always begin a catalog, the depth from which directories of names do when large, and how many
        // components at the end are no directories of names
        let (always, large, tail): (&[usize], usize, usize) = match path {
            OwnedPath::Flat(_)
            | OwnedPath::Layer(_)
            | OwnedPath::LayerContent(_)
            | OwnedPath::LayerRecord(_)
            | OwnedPath::LayerFormat(_) => (&[1, 2, 3], usize::MAX, 0),
            OwnedPath::FlatStartup(_) | OwnedPath::FlatCover(_) => (&[1, 2], usize::MAX, 0),
            OwnedPath::LayerOverlay(_) => (&[1, 2, 3, 4], usize::MAX, 0),
            OwnedPath::Index(_) => (&[1, 3], usize::MAX, 0),
            OwnedPath::PodmanStore | OwnedPath::PodmanFile(_) => (&[1], usize::MAX, 0),
            OwnedPath::StatusPage => (&[], usize::MAX, 0),
            OwnedPath::Condemned(..) => (&[1, 2, 3], usize::MAX, 0),
            OwnedPath::Public { platform: None, .. } => (&[1], 2, 1),
            OwnedPath::Public { platform: Some(_), .. } => (&[2], 3, 1),
            OwnedPath::Image { platform: None, .. } => (&[1, 2], 3, 1),
            OwnedPath::Image { platform: Some(_), .. } => (&[1, 3], 4, 1),
            OwnedPath::Version { platform: None, .. } => (&[1, 2, 3], 4, 2),
            OwnedPath::Version { platform: Some(_), .. } => (&[1, 2, 4], 5, 2),
            OwnedPath::VersionRecord { platform: None, .. } => (&[1, 2, 3], 4, 3),
            OwnedPath::VersionRecord { platform: Some(_), .. } => (&[1, 2, 4], 5, 3),
            OwnedPath::ImageFile { platform: None, .. } => (&[1, 2], 3, 2),
            OwnedPath::ImageFile { platform: Some(_), .. } => (&[1, 3], 4, 2),
        };
        let directories = components - tail;
        let always = always.iter().filter(|depth| **depth <= directories).map(|depth| (*depth, Always));
        let large = (large..=directories).map(|depth| (depth, WhenLarge));
        always
            .chain(large)
            .map(|(depth, rule)| {
                let end = inner.match_indices('/').nth(depth - 1).map_or(inner.len(), |(at, _)| at);
                NestedCatalog { path: format!("{}{}", self.prefix, &inner[..end]), rule }
            })
            .collect()
    }
}
