//! Layers and flat: what is expected, made as a conversion makes it, and what is published, row by row.

use std::sync::Arc;

use cvmfs::catalog::NestedRef;
use cvmfs::path::RepoPath;
use image::digest::LayerDigest;
use image::layout::{FormatRecord, LayersJson, OwnedPath};
use image::manifest::Layer;

use super::compare::Comparison;
use super::content::{Comparer, Seen};
use super::report::{Findings, Kind, Origin};
use super::rows::TreeRows;
use super::subject::Subject;
use super::{Verification, Verifier, text_of};
use crate::cli::FlatPermissions;
use crate::content::Collector;
use crate::error::one_line;
use crate::failure::Failure;
use crate::flat::flatten;
use crate::layer::{Base, LayerPlace, Lower, format_record, read_layer, repo_path};
use crate::progress::{Event, Teller};
use crate::publish::Hand;
use crate::source::Asked;

/// What a layer is compared with, and what is published of it.
pub(super) struct Pair {
    pub(super) layer: Layer,
    pub(super) expected: Option<NestedRef>,
    pub(super) published: Option<(NestedRef, LayerPlace)>,
    /// Whether what is published stands on these layers.
    pub(super) fits: bool,
}

impl Verification<'_> {
    /// Makes what is expected of each layer, bottom first, and finds what is published of it.
    pub(super) fn pairs(
        &self,
        hand: &mut Hand<'_>,
        subject: &Subject,
        from: Option<Asked<'_>>,
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
        source: Asked<'_>,
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

    pub(super) fn layer(
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
            None => {
                findings.add(Kind::Record, &path, "the record", "");
                return Ok(());
            }
            Some(Err(error)) => {
                findings.add(Kind::Record, &path, "", one_line(&error));
                return Ok(());
            }
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
        let comparison = Comparison { place: at.to_string(), findings, contents: &comparer, may_be_readable };
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
    pub(super) fn flat(
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
