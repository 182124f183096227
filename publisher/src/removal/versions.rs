//! What a name led to before: kept when it leads elsewhere or goes, put back when somebody wants it.
//!
//! The records of an image are moved as they are, below `.metadata/.versions`, with `version.json` beside them. Nothing
//! of its flat, its layers or the index is touched, so putting it back costs a link and a few rows.

use cvmfs::entry::Entry;
use cvmfs::path::RepoPath;
use cvmfs::subtree::MARKER;
use image::digest::{Digest, ImageId, LayerDigest, ManifestDigest};
use image::layout::{
    CondemnedKind, ImageFile, ManifestRecord, OwnedPath, PinRecord, VersionRecord, timestamp, unix_seconds,
};
use image::platform::PlatformDirectory;
use image::reference::PublicName;

use super::{Owner, Reason};
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::Hand;

/// An image that a name led to before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Earlier {
    /// Which of the images of that name.
    pub key: Digest,
    /// The index that the name led to.
    index: Option<ManifestDigest>,
    /// Unix seconds when that ended.
    pub since: i64,
}

impl Earlier {
    /// Whether these are the first digits of it, or of the index: those of an image for several platforms are the same.
    pub fn is_named_by(&self, hex: &str) -> bool {
        self.key.hex().starts_with(hex) || self.index.is_some_and(|index| index.hex().starts_with(hex))
    }
}

impl Hand<'_> {
    /// Moves the records of the image that a name leads to out of its way. Of an image without a readable manifest
    /// nothing can be put back, so nothing is kept: they go. `next` is the default platform from now on, where that may change.
    pub(crate) fn retire(
        &mut self,
        platform: Option<&PlatformDirectory>,
        name: &PublicName,
        reason: Reason,
        next: Option<&PlatformDirectory>,
    ) -> Result<(), Failure> {
        let (platform, name) = (platform.cloned(), name.clone());
        let file = |file| OwnedPath::ImageFile { platform: platform.clone(), name: name.clone(), file };
        let record = self.read(&file(ImageFile::Manifest))?.and_then(|m| ManifestRecord::parse(&m).ok());
        let from = OwnedPath::Image { platform: platform.clone(), name: name.clone() };
        let status = self.status_in(&from)?;
        let Some(record) = record else {
            tracing::warn!(image = %name, "its manifest.json is unreadable: it can't be undeleted");
            return Ok(self.transaction.remove(&repo_path(&self.layout, &from))?);
        };
        let several = platform.is_none() && self.second_place(&name)?.is_some();
        if let (None, Some(next)) = (&platform, next) {
            self.keep_place(&name, next)?;
        }
        let version = VersionRecord {
            since: timestamp(self.now.unix_timestamp()),
            reason: reason.as_str().to_owned(),
            digest: status.as_ref().map(|s| s.digest),
            index: status.as_ref().and_then(|s| s.index),
            config: record.config.digest,
            flat: status.as_ref().is_none_or(|s| s.flat),
            several,
            layers: record.distributable().collect(),
        };
        let key = version.digest.map_or(version.config.digest(), |d| d.digest());
        let to = OwnedPath::Version { platform: platform.clone(), name: name.clone(), key };
        let at = repo_path(&self.layout, &to);
        // The same image may have been left before.
        let was_pinned = self.transaction.lookup(&at.join(ImageFile::Pin.file_name()))?;
        self.transaction.remove(&at)?;
        self.file(&OwnedPath::VersionRecord { platform, name, key }, &version.to_bytes())?;
        if let Some(pin) = was_pinned {
            self.transaction.put(&at.join(ImageFile::Pin.file_name()), pin, &[])?;
        }
        self.copy_records(&from, &to)?;
        Ok(self.transaction.remove(&repo_path(&self.layout, &from))?)
    }

    /// Makes the records of an earlier image those of its name again, and gives it its link. What the name leads to now
    /// becomes an earlier image.
    pub(crate) fn restore(
        &mut self,
        platform: Option<&PlatformDirectory>,
        name: &PublicName,
        key: Digest,
    ) -> Result<(), Failure> {
        let (platform, name) = (platform.cloned(), name.clone());
        let version = OwnedPath::Version { platform: platform.clone(), name: name.clone(), key };
        let record_path = OwnedPath::VersionRecord { platform: platform.clone(), name: name.clone(), key };
        let Some(bytes) = self.read(&record_path)? else {
            return Err(Failure::Content(format!("{name} never led to sha256:{}, or its grace is over", key.hex())));
        };
        let record = VersionRecord::parse(&bytes)?;
        let flat = record.flat.then_some(OwnedPath::Flat(record.config));
        let layers = record.layers.iter().map(|l| OwnedPath::Layer(*l));
        for part in layers.chain(flat.clone()) {
            let at = repo_path(&self.layout, &part);
            if self.transaction.lookup(&at)?.is_none() {
                return Err(Failure::Content(format!(
                    "{at} of {name} is gone; publish the image again (convert, convert-image)"
                )));
            }
        }
        let to = OwnedPath::Image { platform: platform.clone(), name: name.clone() };
        if self.transaction.lookup(&repo_path(&self.layout, &to))?.is_some() {
            let next = self.status_in(&version)?.map(|status| status.place());
            self.retire(platform.as_ref(), &name, Reason::RolledBack, next.as_ref())?;
        }
        self.transaction.remove(&repo_path(&self.layout, &record_path))?;
        self.copy_records(&version, &to)?;
        self.remove_with_parents(&version)?;
        self.in_use_again(record.config, record.layers.iter().copied())?;
        match flat {
            Some(flat) => self.restore_links(platform, name, &flat, record.several),
            None => self.remove_with_parents(&OwnedPath::Public { platform, name }),
        }
    }

    /// The links of an image that is put back: that of the default platform has a second one where there are several, and a plain
    /// path that leads each client to its own architecture goes on doing so.
    fn restore_links(
        &mut self,
        platform: Option<PlatformDirectory>,
        name: PublicName,
        flat: &OwnedPath,
        several: bool,
    ) -> Result<(), Failure> {
        let public = OwnedPath::Public { platform: platform.clone(), name: name.clone() };
        let text = self.link_text(&public)?;
        if let Some(platform) = platform {
            self.alias_links(&platform)?;
            return self.link(&public, flat);
        }
        if let Some((place, second)) = self.second_link(&name)? {
            self.take_place(&name, &place, Reason::RolledBack)?;
            // One that is there never leads to another image.
            if several || self.link_text(&second)?.is_some() {
                self.link(&second, flat)?;
                self.alias_links(&place)?;
                if text.is_some_and(|text| self.layout.parse_variant_link(&name, &text) == Some(place)) {
                    return Ok(());
                }
            }
        }
        self.link(&public, flat)
    }

    /// The link below `.multiarch` of what the plain path is recorded to lead to, and the directory that it is in.
    pub(crate) fn second_link(&mut self, name: &PublicName) -> Result<Option<(PlatformDirectory, OwnedPath)>, Failure> {
        let status = self.status_in(&OwnedPath::Image { platform: None, name: name.clone() })?;
        Ok(status.map(|status| {
            let place = status.place();
            (place.clone(), OwnedPath::Public { platform: Some(place), name: name.clone() })
        }))
    }

    /// The directory that it is in, if it is there and belongs to the plain path: what has records has a link of its own.
    pub(crate) fn second_place(&mut self, name: &PublicName) -> Result<Option<PlatformDirectory>, Failure> {
        let Some((place, second)) = self.second_link(name)? else { return Ok(None) };
        let records = OwnedPath::Image { platform: Some(place.clone()), name: name.clone() };
        let is_own = self.transaction.lookup(&repo_path(&self.layout, &records))?.is_some();
        Ok(if !is_own && self.link_text(&second)?.is_some() { Some(place) } else { None })
    }

    /// Takes a name away: its link and its records, which are kept as an earlier image.
    pub(crate) fn take_away(
        &mut self,
        platform: Option<&PlatformDirectory>,
        name: &PublicName,
        reason: Reason,
    ) -> Result<(), Failure> {
        let (platform, name) = (platform.cloned(), name.clone());
        let records = OwnedPath::Image { platform: platform.clone(), name: name.clone() };
        if self.transaction.lookup(&repo_path(&self.layout, &records))?.is_some() {
            self.retire(platform.as_ref(), &name, reason, None)?;
            self.remove_with_parents(&records)?;
        }
        self.remove_with_parents(&OwnedPath::Public { platform: platform.clone(), name })?;
        platform.iter().try_for_each(|platform| self.clean_alias_links(platform))
    }

    /// Which earlier images of a name there are.
    pub(crate) fn keys(&mut self, owner: &Owner) -> Result<Vec<Digest>, Failure> {
        let Owner { platform, name } = owner.clone();
        let any = OwnedPath::Version { platform, name, key: Digest::of(b"") };
        let directory = repo_path(&self.layout, &any).parent().expect("it lies deep");
        let names = self.transaction.list(&directory)?.into_iter().filter(Entry::is_directory);
        Ok(names.filter_map(|e| Digest::parse_hex(std::str::from_utf8(&e.name).ok()?)).collect())
    }

    /// The earlier images of a name.
    pub(crate) fn earlier(&mut self, owner: &Owner) -> Result<Vec<Earlier>, Failure> {
        let Owner { platform, name } = owner.clone();
        let mut found = Vec::new();
        for key in self.keys(owner)? {
            let path = OwnedPath::VersionRecord { platform: platform.clone(), name: name.clone(), key };
            let Some(bytes) = self.read(&path)? else { continue };
            let record = VersionRecord::parse(&bytes)?;
            let since = unix_seconds(&record.since).unwrap_or(i64::MIN);
            found.push(Earlier { key, index: record.index, since });
        }
        Ok(found)
    }

    /// Whether what a name leads to is pinned.
    pub(crate) fn is_pinned(&mut self, owner: &Owner) -> Result<bool, Failure> {
        Ok(self.transaction.lookup(&repo_path(&self.layout, &pin_of(owner)))?.is_some())
    }

    /// Pins what a name leads to; whether it was not pinned before.
    pub(crate) fn pin(&mut self, owner: &Owner) -> Result<bool, Failure> {
        if self.is_pinned(owner)? {
            return Ok(false);
        }
        let record = PinRecord { since: timestamp(self.now.unix_timestamp()) };
        self.file(&pin_of(owner), &record.to_bytes())?;
        Ok(true)
    }

    /// What is pinned among the earlier images of a name is so when the name leads there, to `digest`, again.
    pub(crate) fn pin_again(&mut self, owner: &Owner, digest: ManifestDigest) -> Result<(), Failure> {
        let Owner { platform, name } = owner.clone();
        let version = OwnedPath::Version { platform, name, key: digest.digest() };
        let pin = repo_path(&self.layout, &version).join(ImageFile::Pin.file_name());
        match self.transaction.lookup(&pin)? {
            Some(pin) if !self.is_pinned(owner)? => {
                Ok(self.transaction.put(&repo_path(&self.layout, &pin_of(owner)), pin, &[])?)
            }
            _ => Ok(()),
        }
    }

    /// Gives up the pins of a name, of earlier images as well; whether there was one.
    pub(crate) fn unpin(&mut self, owner: &Owner) -> Result<bool, Failure> {
        let Owner { platform, name } = owner.clone();
        let mut pins = vec![repo_path(&self.layout, &pin_of(owner))];
        for key in self.keys(owner)? {
            let version = OwnedPath::Version { platform: platform.clone(), name: name.clone(), key };
            pins.push(repo_path(&self.layout, &version).join(ImageFile::Pin.file_name()));
        }
        let mut was_pinned = false;
        for pin in pins {
            was_pinned |= self.transaction.lookup(&pin)?.is_some();
            self.transaction.remove(&pin)?;
        }
        Ok(was_pinned)
    }

    /// Whoever uses something again begins a new count of grace when that use ends.
    pub(crate) fn in_use_again(
        &mut self,
        flat: ImageId,
        layers: impl Iterator<Item = LayerDigest>,
    ) -> Result<(), Failure> {
        let flat = OwnedPath::Condemned(CondemnedKind::Flat, flat.digest());
        let layers = layers.map(|l| OwnedPath::Condemned(CondemnedKind::Layer, l.digest()));
        for path in layers.chain([flat]) {
            self.transaction.remove(&repo_path(&self.layout, &path))?;
        }
        Ok(())
    }

    /// Removes what is at a path, and the directories above that nothing is left in.
    pub(crate) fn remove_with_parents(&mut self, path: &OwnedPath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, path);
        self.transaction.remove(&at)?;
        let top = RepoPath::ROOT.join_path(self.layout.prefix()).unwrap_or(RepoPath::ROOT);
        let mut parent = at.parent();
        while let Some(directory) = parent.filter(|p| *p != top && !p.is_root()) {
            let is_tree = directory.name().starts_with(b".");
            let is_empty = self.transaction.list(&directory)?.iter().all(|e| e.name == MARKER);
            if is_tree || !is_empty || self.transaction.lookup(&directory)?.is_none() {
                break;
            }
            self.transaction.remove(&directory)?;
            parent = directory.parent();
        }
        Ok(())
    }

    /// Copies the files of a directory of records; what is there already under a name stays.
    pub(crate) fn copy_records(&mut self, from: &OwnedPath, to: &OwnedPath) -> Result<(), Failure> {
        let at = repo_path(&self.layout, to);
        self.directories(to, &at.join("x"))?;
        for entry in self.transaction.list(&repo_path(&self.layout, from))? {
            let is_record = entry.content.is_some() && !entry.is_directory() && entry.name != MARKER;
            let at = at.join(&entry.name);
            if is_record && self.transaction.lookup(&at)?.is_none() {
                self.transaction.put(&at, Entry { links: 1, link_group: 0, ..entry }, &[])?;
            }
        }
        Ok(())
    }
}

fn pin_of(owner: &Owner) -> OwnedPath {
    let Owner { platform, name } = owner.clone();
    OwnedPath::ImageFile { platform, name, file: ImageFile::Pin }
}
