//! What stands at the name of an image: its records, and where its links lead.

use image::digest::ImageId;
use image::layout::{ImageFile, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::Manifest;

use super::view::View;
use super::{LayerPlan, LayerState, Wanted, is_record_of};
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::report::Outcome;
use crate::source::RawDocument;

/// The name as it is now.
#[derive(Debug)]
pub(super) struct Standing {
    /// The record of what it leads to.
    pub(super) status: Option<StatusRecord>,
    record: Option<ManifestRecord>,
    /// Whether there is a public link.
    is_public: bool,
    /// Whether the image is to have links.
    has_links: bool,
    /// Whether they lead where they should.
    leads: bool,
}

impl View<'_> {
    /// What stands at the name of an image that is to lead to the flat of `image`. What is none of ours stays: that is refused.
    pub(super) fn standing(&mut self, wanted: &Wanted, image: ImageId) -> Result<Standing, Failure> {
        let possible = [Some(wanted.public()), wanted.second_link().filter(|_| wanted.several)];
        possible.iter().flatten().try_for_each(|path| self.refuse_foreign(path))?;
        let status = self.read(&wanted.file(ImageFile::Status))?.and_then(|s| StatusRecord::parse(&s).ok());
        let record = self.read(&wanted.file(ImageFile::Manifest))?.and_then(|m| ManifestRecord::parse(&m).ok());
        let is_public = self.lookup(&wanted.public())?.is_some();
        let links = wanted.links(&self.layout, image);
        let mut leads = !links.is_empty() || !is_public;
        for (path, text) in &links {
            leads &= self.lookup(path)?.is_some_and(|entry| entry.symlink == text.as_bytes());
        }
        Ok(Standing { status, record, is_public, has_links: !links.is_empty(), leads })
    }

    /// What stands at an image's name, or above it, and is none of ours stays.
    fn refuse_foreign(&mut self, public: &OwnedPath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, public);
        for path in at.ancestors() {
            let Some(entry) = self.entry(&path)? else { return Ok(()) };
            let is_ours = match path == at {
                true => std::str::from_utf8(&entry.symlink).is_ok_and(|text| self.layout.is_public_link(public, text)),
                false => entry.is_directory(),
            };
            if !is_ours {
                return Err(Failure::Content(format!(
                    "{path} exists and is no image of ours; nothing is published over it (remove it, or publish with --as NAME:TAG)"
                )));
            }
        }
        Ok(())
    }
}

impl Standing {
    /// What will have happened when the name leads to this image.
    pub(super) fn outcome(
        &self,
        wanted: &Wanted,
        document: &RawDocument,
        manifest: &Manifest,
        needs_flat: bool,
        layers: &[LayerPlan],
    ) -> Outcome {
        let (record, status) = (self.record.as_ref(), self.status.as_ref());
        // What was published without a flat has no link.
        let had_flat = status.is_none_or(|status| status.flat);
        if !self.is_public && (record.is_none() || had_flat && self.has_links) {
            return Outcome::Added;
        }
        let there = |l: &LayerPlan| matches!(l.state, LayerState::Published | LayerState::Legacy);
        let is_complete = !needs_flat && record.is_some() && layers.iter().all(there);
        let is_recorded = |record: &ManifestRecord| is_record_of(record, &wanted.record(manifest));
        let is_same = self.leads
            && match status {
                Some(status) => {
                    status.digest == document.digest
                        && status.flat == wanted.options.has_flat()
                        && record.is_some_and(is_recorded)
                }
                // Of an image that the existing tool has published, the parts are known and not the manifest.
                None => record.is_some_and(is_recorded),
            };
        let is_listed = wanted
            .startup
            .as_ref()
            .is_none_or(|given| status.is_some_and(|status| status.startup == Some(given.digest())));
        let has_bundles = status.is_some_and(|status| status.bundles);
        let is_bundled = wanted.options.bundles.is_none_or(|said| said == has_bundles);
        match is_same && is_complete && is_listed && is_bundled {
            true => Outcome::Unchanged,
            false => Outcome::Updated,
        }
    }
}
