//! What catalogs weigh: those that a client fetches on the way to an image, and those of the image itself.
//!
//! A client fetches the catalogs on its way as a whole, so none of them may grow with the repository; see
//! [`image::layout::Layout::nested_catalogs`] for what keeps them small, and the tests here for the proof.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cvmfs::catalog::NestedRef;
use cvmfs::catalog::counters::Counter;
use cvmfs::path::RepoPath;
use cvmfs::traversal::{Descend, Loaded, Loader, TraversalError, Visit, walk};
use image::digest::{ImageId, LayerDigest};
use image::layout::{ImageFile, ManifestRecord, OwnedPath};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;
use time::UtcDateTime;

use crate::error::printable;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::Hand;
use crate::removal::{Names, Owner, Sort};
use crate::target::Target;

/// One catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogWeight {
    /// Where it is mounted.
    pub path: String,
    /// Its rows.
    pub rows: u64,
    /// Bytes of the plain database.
    pub bytes: u64,
}

/// A tree of catalogs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TreeWeight {
    /// Where it begins.
    pub path: String,
    /// Catalogs.
    pub catalogs: u64,
    /// Rows of all.
    pub rows: u64,
    /// Plain bytes of all.
    pub bytes: u64,
    /// The one with the most bytes.
    pub largest: CatalogWeight,
}

/// An image, catalog by catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageWeight {
    schema: u32,
    /// Its path in the repository.
    pub image: String,
    /// From the root of the repository to its public link.
    pub way_to_link: Vec<CatalogWeight>,
    /// From the root to its records.
    pub way_to_records: Vec<CatalogWeight>,
    /// From the root to its flat.
    pub way_to_flat: Vec<CatalogWeight>,
    /// Its flat.
    pub flat: Option<TreeWeight>,
    /// Its layers, bottom first; other images may have them too.
    pub layers: Vec<TreeWeight>,
}

/// An image in the list of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListedWeight {
    /// Its path in the repository.
    pub image: String,
    /// Catalogs of its flat and layers.
    pub catalogs: u64,
    /// Entries of them.
    pub entries: u64,
}

/// The catalogs of one image, each of them read.
pub fn image(target: &Target, text: &str) -> Result<Vec<ImageWeight>, Failure> {
    let now = UtcDateTime::now();
    let mut view = target.view(now)?;
    let mut hand = Hand::new(target, &mut view, now)?;
    let owners = hand.find(text, Sort::Published)?;
    owners.iter().map(|owner| weigh(&mut hand, owner)).collect()
}

/// What an image is made of, by its record: flat and layers, those first that others stand on.
fn parts(hand: &mut Hand<'_>, owner: &Owner) -> Result<Option<(ImageId, Vec<LayerDigest>)>, Failure> {
    let Owner { platform, name } = owner.clone();
    let record = hand.read(&OwnedPath::ImageFile { platform, name, file: ImageFile::Manifest })?;
    let record = record.map(|bytes| ManifestRecord::parse(&bytes)).transpose()?;
    Ok(record.map(|record| (record.config.digest, record.distributable().collect())))
}

fn weigh(hand: &mut Hand<'_>, owner: &Owner) -> Result<ImageWeight, Failure> {
    let (flat, layers) = match parts(hand, owner)? {
        Some((config, layers)) => (Some(OwnedPath::Flat(config)), layers),
        None => (None, Vec::new()),
    };
    let Owner { platform, name } = owner.clone();
    let public = OwnedPath::Public { platform: platform.clone(), name: name.clone() };
    let records = OwnedPath::Image { platform, name };
    Ok(ImageWeight {
        schema: 1,
        image: hand.layout.print(&public),
        way_to_link: way(hand, &public)?,
        way_to_records: way(hand, &records)?,
        way_to_flat: flat.as_ref().map_or(Ok(Vec::new()), |flat| way(hand, flat))?,
        flat: flat.as_ref().map_or(Ok(None), |flat| tree(hand, flat))?,
        layers: layers
            .into_iter()
            .filter_map(|layer| tree(hand, &OwnedPath::Layer(layer)).transpose())
            .collect::<Result<_, _>>()?,
    })
}

/// The catalogs from the root to a path, the root's first.
fn way(hand: &mut Hand<'_>, path: &OwnedPath) -> Result<Vec<CatalogWeight>, Failure> {
    let at = repo_path(&hand.layout, path);
    let manifest = hand.target.repository()?.manifest().clone();
    let loader = Loader::new(&*hand.target.store, hand.target.scratch());
    let mut next =
        Some(NestedRef { path: RepoPath::ROOT, hash: manifest.root_catalog, size: manifest.root_catalog_size });
    let mut way = Vec::new();
    while let Some(reference) = next.take() {
        let catalog = loader.load(&reference)?;
        way.push(weight_of(&catalog)?);
        let below = at.ancestors().filter(|a| reference.path.contains(a) && *a != reference.path && *a != at);
        for ancestor in below {
            if let Some(nested) = catalog.nested(&ancestor)? {
                next = Some(nested);
                break;
            }
        }
    }
    Ok(way)
}

fn weight_of(catalog: &Loaded) -> Result<CatalogWeight, Failure> {
    let (path, rows) = (catalog.mountpoint().to_string(), catalog.row_count()?.unsigned_abs());
    Ok(CatalogWeight { path, rows, bytes: catalog.size() })
}

/// A tree with a catalog of its own; nothing if there is none there.
fn tree(hand: &mut Hand<'_>, path: &OwnedPath) -> Result<Option<TreeWeight>, Failure> {
    let at = repo_path(&hand.layout, path);
    let Some(reference) = hand.transaction.nested_reference(&at)? else { return Ok(None) };
    let mut scale = Scale::default();
    walk(Loader::new(&*hand.target.store, hand.target.scratch()), reference, &mut scale)?;
    let sum = |field: fn(&CatalogWeight) -> u64| scale.0.iter().map(field).sum();
    let (catalogs, rows, bytes) = (scale.0.len() as u64, sum(|c| c.rows), sum(|c| c.bytes));
    let largest = scale.0.into_iter().max_by_key(|catalog| catalog.bytes);
    let largest = largest.ok_or_else(|| Failure::Content(format!("{at} has no catalog")))?;
    Ok(Some(TreeWeight { path: at.to_string(), catalogs, rows, bytes, largest }))
}

/// Weighs every catalog of a walk.
#[derive(Default)]
struct Scale(Vec<CatalogWeight>);

impl Visit for Scale {
    type Error = ScaleError;

    fn enter(&mut self, catalog: &Loaded) -> Result<Descend, ScaleError> {
        self.0.push(weight_of(catalog).map_err(ScaleError)?);
        Ok(Descend::Into)
    }
}

struct ScaleError(Failure);

impl From<TraversalError> for ScaleError {
    fn from(error: TraversalError) -> ScaleError {
        ScaleError(error.into())
    }
}

impl From<ScaleError> for Failure {
    fn from(error: ScaleError) -> Failure {
        error.0
    }
}

/// All images, the heaviest first, by the counters of their own catalogs: one catalog is read for each flat and layer.
pub fn list(target: &Target) -> Result<Vec<ListedWeight>, Failure> {
    let now = UtcDateTime::now();
    let mut view = target.view(now)?;
    let mut hand = Hand::new(target, &mut view, now)?;
    let loader = Loader::new(&*target.store, target.scratch());
    let mut known: BTreeMap<OwnedPath, (u64, u64)> = BTreeMap::new();
    let mut listed = Vec::new();
    for owner in Names::read(target)?.published.into_keys() {
        let Some((config, layers)) = parts(&mut hand, &owner)? else { continue };
        let layers = layers.into_iter().map(OwnedPath::Layer);
        let mut sum = (0, 0);
        for part in layers.chain([OwnedPath::Flat(config)]) {
            let weight = match known.get(&part) {
                Some(weight) => *weight,
                None => {
                    let weight = match hand.transaction.nested_reference(&repo_path(&hand.layout, &part))? {
                        Some(reference) => {
                            let total = loader.load(&reference)?.counters()?.total();
                            (1 + total[Counter::Nested].unsigned_abs(), total.entries().unsigned_abs())
                        }
                        None => (0, 0),
                    };
                    known.insert(part, weight);
                    // Bounds the number of catalogs that are open.
                    hand.transaction.close_unchanged();
                    weight
                }
            };
            sum = (sum.0 + weight.0, sum.1 + weight.1);
        }
        let Owner { platform, name } = owner;
        let image = hand.layout.print(&OwnedPath::Public { platform, name });
        listed.push(ListedWeight { image, catalogs: sum.0, entries: sum.1 });
    }
    listed.sort_by(|a, b| b.entries.cmp(&a.entries).then_with(|| a.image.cmp(&b.image)));
    Ok(listed)
}

/// One line an image.
pub fn list_to_text(images: &[ListedWeight]) -> String {
    let line = |image: &ListedWeight| {
        let entries = HumanCount(image.entries).to_string();
        format!("{entries:>12} entries  {:>6} catalogs  {}\n", image.catalogs, printable(&image.image))
    };
    images.iter().map(line).collect()
}

/// For programs: one JSON object, with a line feed at its end.
pub fn list_to_json(images: &[ListedWeight]) -> String {
    format!("{:#}\n", serde_json::json!({"schema": 1, "images": images}))
}

/// The ways, then the trees, one line a catalog or tree.
pub fn image_to_text(images: &[ImageWeight]) -> String {
    let mut text = String::new();
    for image in images {
        let _ = writeln!(text, "{}", printable(&image.image));
        let ways = [("link", &image.way_to_link), ("records", &image.way_to_records), ("flat", &image.way_to_flat)];
        for (name, way) in ways {
            let bytes = DecimalBytes(way.iter().map(|c| c.bytes).sum());
            let _ = writeln!(text, "  on the way to its {name}: {} catalogs, {bytes}", way.len());
            for CatalogWeight { path, rows, bytes } in way {
                let _ =
                    writeln!(text, "    {:>10}  {rows:>9} rows  {}", DecimalBytes(*bytes).to_string(), printable(path));
            }
        }
        for tree in image.flat.iter().chain(&image.layers) {
            let TreeWeight { path, catalogs, rows, bytes, largest } = tree;
            let _ = writeln!(
                text,
                "  {}: {catalogs} catalogs, {rows} rows, {}; the largest {}, {} rows, {}",
                printable(path),
                DecimalBytes(*bytes),
                printable(&largest.path),
                largest.rows,
                DecimalBytes(largest.bytes)
            );
        }
    }
    text
}

/// For programs: an array of objects, with a line feed at its end.
pub fn image_to_json(images: &[ImageWeight]) -> String {
    let mut text = serde_json::to_string_pretty(images).expect("strings and numbers");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
