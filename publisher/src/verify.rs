//! Whether what is published of an image is what the image says: every row of every layer and of the flat, and every link
//! and record beside them.
//!
//! ```text
//! registry ── layers ──▶ expected catalogs ┐
//!                              │ merge     ├─ compare ──▶ differences
//! repository ─────────▶ published catalogs ┘
//! ```
//!
//! The expected catalogs are made by the very code that converts ([`crate::layer`], [`crate::flat`]), into a scratch
//! storage on top of the repository ([`overlay`]); nothing is written into the repository. Content is compared by the
//! names of its objects, and by its plain bytes where those differ.
//!
//! Without the registry, records are compared with each other and the flat with the published layers.
//!
//! Memory is that of a conversion: catalogs are streamed, never a whole tree in memory.

mod command;
mod compare;
mod content;
mod overlay;
mod products;
mod report;
mod rows;

use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::{Listing, fetch};
use cvmfs::traversal::Loader;
use image::digest::{ChainId, DiffId, LayerDigest, ManifestDigest};
use image::layout::{FormatRecord, ImageFile, IndexKey, LayersJson, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::{Config, Document, Layer, MAX_DOCUMENT, Manifest};
use image::reference::ImageSource;
use time::UtcDateTime;

pub use self::command::verify as run;
use self::compare::Comparison;
use self::content::{Comparer, Seen};
use self::overlay::{Nowhere, Overlay};
use self::products::Products;
use self::report::Findings;
pub use self::report::{Damage, Difference, ImageReport, Kind, Origin, Report};
use self::rows::TreeRows;
use crate::cli::{FlatPermissions, ImageLimits};
use crate::content::{Collector, Pool};
use crate::error::one_line;
use crate::failure::Failure;
use crate::flat::flatten;
use crate::layer::{Base, LayerPlace, LayerProgress, Lower, format_record, read_layer, repo_path};
use crate::plan::image_name;
use crate::progress::{Event, Progress};
use crate::publish::Hand;
use crate::raw_index::RawIndex;
use crate::removal::{Owner, Sort};
use crate::report::Outcome;
use crate::source::{RawDocument, Sources};
use crate::target::Target;

/// Largest record that is read.
const RECORD_LIMIT: u64 = 64 << 20;

/// How an image is verified.
#[derive(Debug, Clone)]
pub struct Options {
    /// Read every published object, too.
    pub data: bool,
    /// Ask no registry.
    pub offline: bool,
    /// Where the image comes from, if its record does not say.
    pub from: Option<ImageSource>,
    /// How many differences of each kind are listed.
    pub show: usize,
    /// Limits against hostile input.
    pub limits: ImageLimits,
}

/// Verifies images of one repository, which it only reads.
#[derive(Debug)]
pub struct Verifier {
    target: Target,
    store: Arc<dyn Listing>,
    raws: Arc<RawIndex>,
    pool: Pool,
    threads: usize,
}

/// An image as its documents describe it.
struct Subject {
    owner: Owner,
    image: String,
    digest: ManifestDigest,
    document: Vec<u8>,
    index: Option<(ManifestDigest, Vec<u8>)>,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    config: Config,
    layers: Vec<Layer>,
    wished: Wished,
}

/// What the operator wants made of an image, as its records show.
#[derive(Debug, Clone, Copy)]
struct Wished {
    flat: bool,
    layers: bool,
}

impl Wished {
    /// An image without layers has none in `manifest.json`; one without flat says so in `status.json`.
    fn read(hand: &mut Hand<'_>, owner: &Owner, manifest: &Manifest) -> Result<Wished, Failure> {
        let mut record = |file| {
            let Owner { platform, name } = owner.clone();
            hand.read(&OwnedPath::ImageFile { platform, name, file })
        };
        let status: Option<serde_json::Value> =
            record(ImageFile::Status)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let published = record(ImageFile::Manifest)?.and_then(|bytes| ManifestRecord::parse(&bytes).ok());
        let has_none = |r: ManifestRecord| r.config.digest == manifest.config && r.layers.is_empty();
        Ok(Wished {
            flat: status.is_none_or(|status| status["flat"] != false),
            layers: manifest.layers.is_empty() || !published.is_some_and(has_none),
        })
    }
}

impl Subject {
    /// The documents that the index of the repository keeps.
    fn documents(&self) -> impl Iterator<Item = (ManifestDigest, &[u8])> {
        let index = self.index.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()));
        index.chain([(self.digest, self.document.as_slice())])
    }

    /// Distinct layers, bottom first, each with the chain that it stands on.
    fn distinct(&self) -> Vec<(&Layer, Option<ChainId>)> {
        let diff_ids: Vec<DiffId> = self.layers.iter().map(|l| l.diff_id).collect();
        let below = std::iter::once(None).chain(ChainId::stack(&diff_ids).into_iter().map(Some));
        let mut seen = std::collections::HashSet::new();
        self.layers.iter().zip(below).filter(|(l, _)| seen.insert(l.descriptor.digest)).collect()
    }
}

/// What a layer is compared with, and what is published of it.
struct Pair {
    layer: Layer,
    expected: Option<NestedRef>,
    published: Option<(NestedRef, LayerPlace)>,
    /// Whether what is published stands on these layers.
    fits: bool,
}

impl Verifier {
    /// Takes a target of its own, since nothing may be published through it.
    pub fn new(mut target: Target) -> Result<Verifier, Failure> {
        let store = target.store.clone();
        let directory = target.scratch().join("verify");
        std::fs::create_dir_all(&directory).map_err(Failure::io("create directory", &directory))?;
        target.store = Arc::new(Overlay::new(store.clone(), &directory)?);
        let algorithm = target.repository()?.algorithm();
        let raws = Arc::new(RawIndex::open(&directory, algorithm, target.codec)?);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = Pool::start(Arc::new(Nowhere), raws.clone(), algorithm, target.codec, threads);
        let pool = pool.with_chunks(target.policy.chunks, None);
        Ok(Verifier { target, store, raws, pool, threads })
    }

    /// The repository, with everything that was written for comparisons on top.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Verifies what a text means, on all platforms that it is published for.
    pub fn verify(
        &self,
        text: &str,
        sources: &Sources,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<(Report, Vec<Owner>), Failure> {
        let now = UtcDateTime::now();
        let mut view = self.target.view(now)?;
        let mut hand = Hand::new(&self.target, &mut view, now)?;
        let mut owners = hand.find(text, Sort::Published)?;
        let second = self.second_links(&mut hand, &owners)?;
        owners.retain(|owner| !second.contains(owner));
        let mut images = Vec::new();
        for owner in &owners {
            let verification = Verification { verifier: self, sources, options, progress, text };
            images.push(verification.run(&mut hand, owner)?);
        }
        let revision = self.target.repository()?.manifest().revision;
        Ok((Report::new(&self.target.fqrn, revision, images), owners))
    }
}

impl Verifier {
    /// Links below `.multiarch` to what the plain name leads to: they have no records of their own.
    fn second_links(&self, hand: &mut Hand<'_>, owners: &[Owner]) -> Result<Vec<Owner>, Failure> {
        let mut second = Vec::new();
        for owner in owners.iter().filter(|owner| owner.platform.is_some()) {
            let Owner { platform, name } = owner.clone();
            let status =
                OwnedPath::ImageFile { platform: platform.clone(), name: name.clone(), file: ImageFile::Status };
            if hand.read(&status)?.is_some() {
                continue;
            }
            let mut leads_to = |platform| {
                let public = OwnedPath::Public { platform, name: name.clone() };
                let entry = hand.transaction.lookup(&repo_path(&hand.layout, &public))?;
                let text = entry.and_then(|entry| String::from_utf8(entry.symlink).ok());
                Ok::<_, Failure>(text.and_then(|text| hand.layout.parse_link(&public, &text)))
            };
            let found = leads_to(platform)?;
            if found.is_some() && found == leads_to(None)? {
                second.push(owner.clone());
            }
        }
        Ok(second)
    }
}

/// One run.
struct Verification<'a> {
    verifier: &'a Verifier,
    sources: &'a Sources,
    options: &'a Options,
    progress: &'a dyn Progress,
    text: &'a str,
}

impl Verification<'_> {
    fn loader(&self) -> Loader<'_> {
        Loader::new(&*self.verifier.target.store, self.verifier.target.scratch())
    }

    fn run(&self, hand: &mut Hand<'_>, owner: &Owner) -> Result<ImageReport, Failure> {
        let findings = Arc::new(Findings::new(self.options.show));
        let Owner { platform, name } = owner.clone();
        let path = hand.layout.print(&OwnedPath::Public { platform: platform.clone(), name: name.clone() });
        let at = OwnedPath::ImageFile { platform, name, file: ImageFile::Status };
        let status = hand.read(&at)?.map(|bytes| StatusRecord::parse(&bytes)).transpose();
        let place = repo_path(&hand.layout, &at);
        let unknown = |findings: Arc<Findings>, expected: &str, found: String| {
            findings.add(Kind::Record, &place, expected, found);
            findings.damaged_path(&at);
            let findings = Arc::into_inner(findings).expect("nobody else has it yet");
            findings.note("nothing else was compared: which image it is, only this record tells; convert it again");
            findings.into_report(path.clone(), path.clone(), None, Origin::Repository)
        };
        let status = match status {
            Ok(Some(status)) => status,
            Ok(None) => return Ok(unknown(findings, "the record", String::new())),
            Err(error) => return Ok(unknown(findings, "", one_line(&error))),
        };
        self.progress.event(Event::ImageStarted { image: &status.image, layers: 0, total: None });
        let source = self.source(&status);
        let origin = match self.origin(&status, source.as_ref(), &findings)? {
            true => Origin::Registry,
            false => Origin::Repository,
        };
        let from = source.as_ref().filter(|_| origin == Origin::Registry);
        let subject = self.subject(hand, owner, &status, from)?;
        let mut products = Products { hand, findings: &findings };
        products.look(&subject, &status)?;
        let pairs = self.pairs(hand, &subject, from, &findings)?;
        self.stage(&subject, "comparing");
        let seen = Seen::default();
        if subject.wished.layers {
            let strangers: Vec<DiffId> = pairs.iter().filter(|p| !p.fits).map(|p| p.layer.diff_id).collect();
            Products { hand, findings: &findings }.layer_index(&subject, &strangers)?;
            for pair in &pairs {
                self.layer(hand, &subject, pair, origin, &findings, &seen)?;
            }
        }
        if subject.wished.flat {
            self.flat(hand, &subject, &pairs, &findings, &seen)?;
        }
        let findings = Arc::into_inner(findings).expect("the threads that had it have ended");
        let (image, digest) = (subject.image, subject.digest.to_string());
        let report = findings.into_report(image.clone(), path, Some(digest), origin);
        let (outcome, error) = match report.same {
            true => (Outcome::Unchanged, None),
            false => (Outcome::Failed, Some("what is published differs from the image")),
        };
        self.progress.event(Event::ImageFinished { image: &image, outcome, error, seconds: 0.0 });
        Ok(report)
    }

    fn stage(&self, subject: &Subject, stage: &str) {
        self.progress.event(Event::ImageStage { image: &subject.image, stage });
    }

    /// Where the image comes from. The record of an image from a disk does not say where that was.
    fn source(&self, status: &StatusRecord) -> Option<ImageSource> {
        let recorded = || ImageSource::parse(&status.image).ok().filter(|s| matches!(s, ImageSource::Registry(_)));
        self.options.from.clone().or_else(recorded).or_else(|| ImageSource::parse(self.text).ok())
    }

    /// Whether the source still has the image that is published.
    fn origin(
        &self,
        status: &StatusRecord,
        source: Option<&ImageSource>,
        findings: &Findings,
    ) -> Result<bool, Failure> {
        if self.options.offline {
            return Ok(false);
        }
        let Some(source) = source else {
            findings.note("no record says where the image came from; say it with --from to compare with it");
            return Ok(false);
        };
        let named = status.index.unwrap_or(status.digest);
        match self.sources.resolve(source) {
            Ok(digest) if digest == named || digest == status.digest => {}
            Ok(digest) => findings.note(format!("{} leads to {digest} now", image_name(source))),
            Err(stopped @ Failure::Stopped(_)) => return Err(stopped),
            Err(error) => findings.note(format!("{} cannot be asked: {}", image_name(source), one_line(&error))),
        }
        match self.sources.document(source, status.digest) {
            Ok(_) => Ok(true),
            Err(stopped @ Failure::Stopped(_)) => Err(stopped),
            Err(error) => {
                findings.note(format!("the source has not got the image that is published: {}", one_line(&error)));
                Ok(false)
            }
        }
    }

    /// The documents of the image that is published, from wherever their digests are right.
    fn subject(
        &self,
        hand: &mut Hand<'_>,
        owner: &Owner,
        status: &StatusRecord,
        from: Option<&ImageSource>,
    ) -> Result<Subject, Failure> {
        let record = |file| {
            let Owner { platform, name } = owner.clone();
            OwnedPath::ImageFile { platform, name, file }
        };
        let document = |hand: &mut Hand<'_>, digest, kept: Option<OwnedPath>| {
            let places = [OwnedPath::Index(IndexKey::Manifest(digest))].into_iter().chain(kept);
            if let Some(bytes) = self.kept(hand, places, &|bytes| ManifestDigest::of(bytes) == digest) {
                return Ok(RawDocument { digest, bytes, media_type: None });
            }
            match from {
                Some(source) => self.sources.document(source, digest),
                None => Err(Failure::Content(format!(
                    "the manifest {digest} is nowhere in the repository, and there is no registry to ask"
                ))),
            }
        };
        let first = document(hand, status.digest, Some(record(ImageFile::RawManifest)))?;
        let index = match status.index {
            Some(digest) => Some((digest, document(hand, digest, None)?.bytes)),
            None => None,
        };
        let Document::Manifest(manifest) = first.parse()? else {
            return Err(Failure::Content(format!("{} is no manifest of an image", status.digest)));
        };
        let config = manifest.config;
        let places = [OwnedPath::Index(IndexKey::Config(config)), record(ImageFile::Config)];
        let config_bytes = match self.kept(hand, places, &|bytes| image::digest::ImageId::of(bytes) == config) {
            Some(bytes) => bytes,
            None => match from {
                Some(source) => self.sources.config(source, &manifest)?,
                None => {
                    return Err(Failure::Content(format!(
                        "the config {config} is nowhere in the repository, and there is no registry to ask"
                    )));
                }
            },
        };
        let config = Config::parse(&config_bytes)?;
        let layers = manifest.layers_with(&config)?;
        let wished = Wished::read(hand, owner, &manifest)?;
        let (image, digest) = (status.image.clone(), status.digest);
        Ok(Subject {
            owner: owner.clone(),
            image,
            digest,
            document: first.bytes,
            index,
            manifest,
            config_bytes,
            config,
            layers,
            wished,
        })
    }

    /// The first of these files that is right. One that cannot be read is reported where it is compared.
    fn kept(
        &self,
        hand: &mut Hand<'_>,
        places: impl IntoIterator<Item = OwnedPath>,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        places.into_iter().find_map(|path| hand.read(&path).ok().flatten().filter(|bytes| is_right(bytes)))
    }

    /// Makes what is expected of each layer, bottom first, and finds what is published of it.
    fn pairs(
        &self,
        hand: &mut Hand<'_>,
        subject: &Subject,
        from: Option<&ImageSource>,
        findings: &Findings,
    ) -> Result<Vec<Pair>, Failure> {
        let mut base = Base::default();
        let mut pairs = Vec::new();
        for (layer, chain) in subject.distinct() {
            base.chain = chain;
            let digest = layer.descriptor.digest;
            let published = self.published(hand, digest)?;
            let place = published.as_ref().map_or(LayerPlace::Own, |(_, place)| *place);
            let record = match &published {
                Some((reference, _)) => format_record(self.loader(), reference),
                None => Ok(None),
            };
            let format_at = repo_path(&hand.layout, &place.path(digest)).join(".metadata").join("format.json");
            let record = record.unwrap_or_else(|error| {
                findings.add(Kind::Record, &format_at, "", one_line(&error));
                findings.damaged_layer(digest);
                None
            });
            let expected = match from {
                Some(source) => Some(self.expected(subject, layer, source, place, &base)?),
                // Only the tree as it is published can be merged.
                None => published.as_ref().map(|(reference, _)| reference.clone()),
            };
            let fits = match &record {
                Some(record) => base.carries(record)?,
                None => true,
            };
            if let Some(expected) = &expected {
                base.layers.push(Lower::new(self.loader(), expected.clone()));
            }
            let expected = expected.filter(|_| from.is_some());
            pairs.push(Pair { layer: layer.clone(), expected, published, fits });
        }
        Ok(pairs)
    }

    /// The catalog of a layer of ours.
    fn published(&self, hand: &mut Hand<'_>, digest: LayerDigest) -> Result<Option<(NestedRef, LayerPlace)>, Failure> {
        for place in [LayerPlace::Own, LayerPlace::Beside] {
            let at = repo_path(&hand.layout, &place.path(digest));
            if let Some(reference) = hand.transaction.nested_reference(&at)? {
                return Ok(Some((reference, place)));
            }
        }
        Ok(None)
    }

    /// Reads a layer again as a conversion does.
    fn expected(
        &self,
        subject: &Subject,
        layer: &Layer,
        source: &ImageSource,
        place: LayerPlace,
        base: &Base<'_>,
    ) -> Result<NestedRef, Failure> {
        let (target, pool) = (&self.verifier.target, &self.verifier.pool);
        let descriptor = &layer.descriptor;
        let text = descriptor.digest.to_string();
        let teller = Teller { progress: self.progress, image: &subject.image, layer: &text, total: descriptor.size };
        let collector = Arc::new(Collector::default());
        let blob = self.sources.layer(source, descriptor).map_err(|e| e.of_layer(descriptor.digest))?;
        let staged = read_layer(layer, blob, pool, &collector, &self.options.limits.layer, &teller)?;
        let prepared = staged.at(place).prepare_variant(target, pool, base)?;
        let bytes = descriptor.size;
        self.progress.event(Event::LayerFinished { image: &subject.image, layer: &text, bytes, known: false });
        Ok(prepared.reference())
    }

    fn comparer(&self, findings: &Arc<Findings>, seen: &Seen) -> Comparer<'_> {
        let Verifier { target, store, raws, threads, .. } = self.verifier;
        let comparer = Comparer::new(&*target.store, raws);
        match self.options.data {
            true => comparer.reading(store.clone(), findings.clone(), seen.clone(), *threads),
            false => comparer,
        }
    }

    fn layer(
        &self,
        hand: &mut Hand<'_>,
        subject: &Subject,
        pair: &Pair,
        origin: Origin,
        findings: &Arc<Findings>,
        seen: &Seen,
    ) -> Result<(), Failure> {
        let digest = pair.layer.descriptor.digest;
        let before = findings.count();
        let Some((published, place)) = &pair.published else {
            let at = repo_path(&hand.layout, &OwnedPath::Layer(digest));
            if hand.transaction.lookup(&at.join("layerfs"))?.is_some() {
                findings.note(format!("layer {digest} is as the existing tool wrote it, without owners; not compared"));
            } else {
                findings.add(Kind::Layer, &at, "the layer", "");
                findings.damaged_layer(digest);
            }
            return Ok(());
        };
        let at = repo_path(&hand.layout, &place.path(digest));
        self.layer_records(hand, pair, &at, findings)?;
        for entry in hand.transaction.list(&at)? {
            if ![&b".metadata"[..], b"layerfs", b".overlay", b".cvmfscatalog"].contains(&&entry.name[..]) {
                findings.add(Kind::Extra, at.join(&entry.name), "", "not of a layer");
            }
        }
        if !pair.fits {
            findings.note(format!(
                "layer {digest} is published as it is on other layers than those of {}; compared in the flat only",
                subject.image
            ));
        } else if origin == Origin::Registry || self.options.data {
            // Offline there is nothing to compare with, but what there is can be read.
            let expected = pair.expected.as_ref().unwrap_or(published);
            self.trees(expected, published, b"layerfs", at.join("layerfs"), false, findings, seen)?;
        }
        if findings.count() > before {
            findings.damaged_layer(digest);
        }
        Ok(())
    }

    /// The records within a layer.
    fn layer_records(
        &self,
        hand: &mut Hand<'_>,
        pair: &Pair,
        at: &RepoPath,
        findings: &Findings,
    ) -> Result<(), Failure> {
        let Layer { descriptor, diff_id } = &pair.layer;
        let metadata = at.join(".metadata");
        let path = metadata.join("layers.json");
        let found = text_of(hand, &path)?.map(|bytes| LayersJson::parse(&bytes));
        match found {
            None => findings.add(Kind::Record, &path, "the record", ""),
            Some(Err(error)) => findings.add(Kind::Record, &path, "", one_line(&error)),
            Some(Ok(record)) => {
                let found = (record.layer, record.diff_id, record.compressed_size.unwrap_or(descriptor.size));
                let expected = (descriptor.digest, *diff_id, descriptor.size);
                if found != expected {
                    let text = |(layer, diff_id, size)| format!("layer {layer}, diff ID {diff_id}, {size} bytes");
                    findings.add(Kind::Record, &path, text(expected), text(found));
                }
            }
        }
        let path = metadata.join("format.json");
        let found = text_of(hand, &path)?.map(|bytes| FormatRecord::parse(&bytes));
        let found = match found {
            None => return Ok(findings.add(Kind::Record, &path, "the record", "")),
            Some(Err(error)) => return Ok(findings.add(Kind::Record, &path, "", one_line(&error))),
            Some(Ok(found)) => found,
        };
        if found.diff_id != *diff_id {
            findings.add(Kind::Record, &path, format!("diff ID {diff_id}"), found.diff_id);
        } else if let Some(expected) = pair.expected.as_ref().filter(|_| pair.fits) {
            let expected = format_record(self.loader(), expected)?;
            if expected.as_ref() != Some(&found) {
                let text = |r: &FormatRecord| String::from_utf8_lossy(&r.to_bytes()).trim().to_owned();
                findings.add(Kind::Record, &path, expected.as_ref().map(text).unwrap_or_default(), text(&found));
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "two trees, and where their differences go")]
    fn trees(
        &self,
        expected: &NestedRef,
        published: &NestedRef,
        inside: &[u8],
        at: RepoPath,
        may_be_readable: bool,
        findings: &Arc<Findings>,
        seen: &Seen,
    ) -> Result<(), Failure> {
        let Some(rows) = TreeRows::open(self.loader(), expected, inside)? else { return Ok(()) };
        let comparer = self.comparer(findings, seen);
        let comparison =
            Comparison { place: at.to_string(), findings: &**findings, contents: &comparer, may_be_readable };
        match TreeRows::open(self.loader(), published, inside) {
            Ok(Some(found)) => match comparison.run(rows, found) {
                Ok(_) => {}
                // What is published cannot be read further; the check says more.
                Err(error @ (Failure::Traversal(_) | Failure::Catalog(_))) => {
                    findings.add(Kind::Object, &at, "", one_line(&error));
                }
                Err(error) => return Err(error),
            },
            Ok(None) => findings.add(Kind::Missing, &at, "directory", ""),
            Err(error) => findings.add(Kind::Object, &at, "", one_line(&error)),
        }
        comparer.finish()
    }

    /// The flat, against the layers merged anew.
    fn flat(
        &self,
        hand: &mut Hand<'_>,
        subject: &Subject,
        pairs: &[Pair],
        findings: &Arc<Findings>,
        seen: &Seen,
    ) -> Result<(), Failure> {
        let config = subject.manifest.config;
        let at = repo_path(&hand.layout, &OwnedPath::Flat(config));
        let before = findings.count();
        let Some(published) = hand.transaction.nested_reference(&at)? else {
            if hand.transaction.lookup(&at)?.is_some() {
                findings.note("the flat is as the existing tool made it; not compared");
            } else {
                findings.add(Kind::Flat, &at, "the flat", "");
                findings.damaged_flat();
            }
            return Ok(());
        };
        let by_digest = |layer: &Layer| {
            let pair = pairs.iter().find(|p| p.layer.descriptor.digest == layer.descriptor.digest)?;
            let kept = pair.published.as_ref().filter(|_| pair.fits).map(|(reference, _)| reference);
            pair.expected.as_ref().or(kept).cloned()
        };
        let Some(stack) = subject.layers.iter().map(by_digest).collect::<Option<Vec<_>>>() else {
            findings.note("the flat was not compared: not all layers of the image are at hand");
            return Ok(());
        };
        let (target, pool) = (&self.verifier.target, &self.verifier.pool);
        self.stage(subject, "flattening");
        let expected = match flatten(target, pool, config, &subject.config, &stack, FlatPermissions::Keep) {
            Ok(flat) => flat.reference(),
            // Of published layers only: those that were read anew are right.
            Err(error) if pairs.iter().all(|p| p.expected.is_none()) => {
                findings.add(Kind::Layer, &at, "layers that can be merged", one_line(&error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.trees(&expected, &published, b"", at, true, findings, seen)?;
        if findings.count() > before {
            findings.damaged_flat();
        }
        Ok(())
    }
}

struct Teller<'a> {
    progress: &'a dyn Progress,
    image: &'a str,
    layer: &'a str,
    total: u64,
}

impl LayerProgress for Teller<'_> {
    fn read(&self, done: u64) {
        let (image, layer, total) = (self.image, self.layer, Some(self.total));
        self.progress.event(Event::LayerBytes { image, layer, done, total });
    }
}

/// The bytes of a small file; nothing if it is not there or cannot be read, which is found where objects are read.
fn text_of(hand: &mut Hand<'_>, path: &RepoPath) -> Result<Option<Vec<u8>>, Failure> {
    let Some(entry) = hand.transaction.lookup(path)? else { return Ok(None) };
    let Some(hash) = entry.content else { return Ok(None) };
    let mut bytes = Vec::new();
    let limit = RECORD_LIMIT.max(MAX_DOCUMENT as u64);
    let read = fetch(&*hand.target.store, hash.object(ObjectKind::File), entry.compression(), limit, &mut bytes);
    Ok(read.is_ok().then_some(bytes))
}
