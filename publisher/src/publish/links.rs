//! The public links of images: at the plain path, below `.multiarch`, and what else architectures are called.

use cvmfs::entry::{Entry, Meta};
use cvmfs::path::RepoPath;
use image::digest::ImageId;
use image::layout::{ImageFile, OwnedPath};
use image::platform::PlatformDirectory;
use image::reference::PublicName;

use super::Hand;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::plan::Wanted;
use crate::removal::{Owner, Reason};
use crate::target::file_meta;

impl Hand<'_> {
    /// Makes the links of an image, and takes away those that it had and is not to have.
    pub(super) fn public_links(&mut self, wanted: &Wanted, image: ImageId) -> Result<(), Failure> {
        let links = wanted.links(&self.layout, image);
        for (path, text) in &links {
            self.link_to(path, text.clone())?;
            if let OwnedPath::Public { platform: Some(platform), .. } = path {
                self.alias_links(platform)?;
            }
        }
        if links.is_empty() && self.transaction.lookup(&repo_path(&self.layout, &wanted.public()))?.is_some() {
            self.remove_with_parents(&wanted.public())?;
        }
        let Some(second) = wanted.second_link() else { return Ok(()) };
        self.take_place(&wanted.name, &wanted.platform.directory(), Reason::TagMoved)?;
        if links.len() < 2 && self.transaction.lookup(&repo_path(&self.layout, &second))?.is_some() {
            // From when it was wanted for several platforms: it stays until it is pruned, and never leads to an old image.
            match links.is_empty() {
                true => self.remove_with_parents(&second)?,
                false => self.link(&second, &OwnedPath::Flat(image))?,
            }
        }
        Ok(())
    }

    /// The image of a platform that becomes the default one is recorded at the plain path, and below `.multiarch` no more.
    pub(crate) fn take_place(
        &mut self,
        name: &PublicName,
        place: &PlatformDirectory,
        reason: Reason,
    ) -> Result<(), Failure> {
        let records = OwnedPath::Image { platform: Some(place.clone()), name: name.clone() };
        if self.transaction.lookup(&repo_path(&self.layout, &records))?.is_some() {
            self.retire(Some(place), name, reason, None)?;
            self.remove_with_parents(&records)?;
        }
        Ok(())
    }

    /// The image of a platform that is the default one no more, as `next` is now, keeps its place below `.multiarch` if it had a link
    /// there: with records, as every image has that stays until it is pruned.
    pub(crate) fn keep_place(&mut self, name: &PublicName, next: &PlatformDirectory) -> Result<(), Failure> {
        let Some(place) = self.second_place(name)?.filter(|place| place != next) else { return Ok(()) };
        let to = OwnedPath::Image { platform: Some(place.clone()), name: name.clone() };
        self.copy_records(&OwnedPath::Image { platform: None, name: name.clone() }, &to)?;
        // Who pinned the name meant what it led to, and that is pinned where it goes from there.
        self.transaction.remove(&repo_path(&self.layout, &to).join(ImageFile::Pin.file_name()))?;
        match self.status_in(&to)? {
            Some(status) => self.pin_again(&Owner { platform: Some(place), name: name.clone() }, status.digest),
            None => Ok(()),
        }
    }

    /// Makes the links beside the directory of a platform, where nothing else stands.
    pub(crate) fn alias_links(&mut self, platform: &PlatformDirectory) -> Result<(), Failure> {
        for (path, text) in self.layout.alias_links(platform) {
            let at = RepoPath::ROOT.join_path(path).expect("a normal path");
            if self.transaction.lookup(&at)?.is_none() {
                let meta = Meta { permissions: 0o777, ..file_meta(self.now) };
                self.transaction.put(&at, Entry::symlink(at.name(), meta, text), &[])?;
            }
        }
        Ok(())
    }

    /// Takes the links beside the directory of a platform away if the directory is gone.
    pub(crate) fn clean_alias_links(&mut self, platform: &PlatformDirectory) -> Result<(), Failure> {
        let any =
            OwnedPath::Public { platform: Some(platform.clone()), name: PublicName::parse("x:1").expect("a name") };
        let directory = repo_path(&self.layout, &any).parent().expect("it lies in the directory");
        if self.transaction.lookup(&directory)?.is_some() {
            return Ok(());
        }
        for (path, text) in self.layout.alias_links(platform) {
            let at = RepoPath::ROOT.join_path(path).expect("a normal path");
            if self.transaction.lookup(&at)?.is_some_and(|entry| entry.symlink == text.as_bytes()) {
                self.transaction.remove(&at)?;
            }
        }
        Ok(())
    }

    /// The text of the link at a path, if there is one.
    pub(crate) fn link_text(&mut self, path: &OwnedPath) -> Result<Option<String>, Failure> {
        let entry = self.transaction.lookup(&repo_path(&self.layout, path))?;
        Ok(entry.filter(|entry| !entry.symlink.is_empty()).and_then(|entry| String::from_utf8(entry.symlink).ok()))
    }

    /// The directory of the default platform, if the plain path leads each client to its own architecture.
    pub(crate) fn default_of_variant(&mut self, name: &PublicName) -> Result<Option<PlatformDirectory>, Failure> {
        let public = OwnedPath::Public { platform: None, name: name.clone() };
        Ok(self.link_text(&public)?.and_then(|text| self.layout.parse_variant_link(name, &text)))
    }

    /// The image that the plain path of a name leads to, by way of the default platform's link if it is a variant link.
    pub(crate) fn image_of(&mut self, name: &PublicName) -> Result<Option<ImageId>, Failure> {
        let public = OwnedPath::Public { platform: None, name: name.clone() };
        let Some(text) = self.link_text(&public)? else { return Ok(None) };
        let (public, text) = match self.layout.parse_variant_link(name, &text) {
            Some(default) => {
                let second = OwnedPath::Public { platform: Some(default), name: name.clone() };
                let Some(text) = self.link_text(&second)? else { return Ok(None) };
                (second, text)
            }
            None => (public, text),
        };
        Ok(match self.layout.parse_link(&public, &text) {
            Some(OwnedPath::Flat(image)) => Some(image),
            _ => None,
        })
    }
}
