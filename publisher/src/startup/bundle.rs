//! File bundles made of start-up lists, for the stock client from 2.14 on, which knows no lists.
//!
//! ```text
//! .flat/xx/<config>/usr/bin/app                       marked: a client that opens it looks for its bundle
//! .flat/xx/<config>/usr/bin/.cvmfsbundle-app          hidden: the files of the list, as paths in the repository
//! .flat/xx/.cover-<config>/usr/bin/.cvmfsbundle-app   a whiteout: containers on flat and cover don't find it by name either
//! ```
//!
//! The file that begins the list is the trigger: the program that is started. A flat has one bundle at most, which is found
//! again by the list beside the flat, and goes with it. The bundle is no part of the image: comparisons of trees leave out
//! what is hidden ([`crate::rows::is_marker`]).
//!
//! Where several names lead to one file, their rows have to be equal, and a flag would mark all of them; so the trigger is
//! the first file of one name. Files of which a start reads a part only are left out: that client would fetch all of them.

use cvmfs::bundle::{self, is_hidden_bundle};
use cvmfs::entry::{Entry, FileType, Flags};
use cvmfs::path::RepoPath;
use cvmfs::startup::{MAX_BYTES, StartupList};
use image::digest::ImageId;
use image::layout::OwnedPath;
use image::tree::{Node, NodeKind};

use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::Hand;
use crate::rows::to_entry;

/// A bundle, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    trigger: RepoPath,
    bundle: RepoPath,
}

impl Hand<'_> {
    /// Gives a flat the bundle of this list, or none. The list beside the flat has to be the one before.
    pub(super) fn change_bundle(&mut self, flat: ImageId, list: Option<&StartupList>) -> Result<(), Failure> {
        let top = repo_path(&self.layout, &OwnedPath::Flat(flat));
        let old = self.bundle_of_flat(flat)?;
        let new = list.map(|list| self.place(&top, list)).transpose()?.flatten();
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            self.transaction.set_flags(&old.trigger, Flags::BUNDLE_TRIGGER, false)?;
            self.transaction.remove(&old.bundle)?;
            self.uncover(flat, &top, &old.bundle)?;
        }
        let (Some(place), Some(list)) = (new, list) else { return Ok(()) };
        let whole = list.files.iter().filter(|file| file.bytes() >= file.size);
        let paths = whole.filter_map(|file| top.join_path(&file.path.as_bytes()[1..]).ok());
        let dependencies: Vec<RepoPath> = paths.filter(|path| *path != place.trigger).collect();
        let text = bundle::print(&dependencies);
        let entry = self.stored(&place.bundle, text.as_bytes())?;
        if self.transaction.lookup(&place.bundle)?.is_none_or(|old| old.content != entry.content) {
            let hidden = Entry { flags: entry.flags.with(Flags::HIDDEN), ..entry };
            self.transaction.put(&place.bundle, hidden, &[])?;
        }
        self.transaction.set_flags(&place.trigger, Flags::BUNDLE_TRIGGER, true)?;
        self.cover_bundle(flat, &top, &place.bundle)
    }

    /// Hides the bundle of a flat whose cover was made anew.
    pub(crate) fn cover_again(&mut self, flat: ImageId) -> Result<(), Failure> {
        match self.bundle_of_flat(flat)? {
            Some(Place { bundle, .. }) => {
                self.cover_bundle(flat, &repo_path(&self.layout, &OwnedPath::Flat(flat)), &bundle)
            }
            None => Ok(()),
        }
    }

    /// The bundle that a flat has.
    fn bundle_of_flat(&mut self, flat: ImageId) -> Result<Option<Place>, Failure> {
        let text = self.read_up_to(&OwnedPath::FlatStartup(flat), MAX_BYTES)?;
        // Who can't read the list has made no bundle of it.
        let Some(list) = text.and_then(|text| StartupList::parse(&text).ok()) else { return Ok(None) };
        let place = self.place(&repo_path(&self.layout, &OwnedPath::Flat(flat)), &list)?;
        let Some(place) = place else { return Ok(None) };
        Ok(self.transaction.lookup(&place.bundle)?.is_some().then_some(place))
    }

    /// Where the bundle of a list is. A file that the image has there itself stays.
    fn place(&mut self, top: &RepoPath, list: &StartupList) -> Result<Option<Place>, Failure> {
        for file in &list.files {
            let Ok(trigger) = top.join_path(&file.path.as_bytes()[1..]) else { continue };
            let Some(bundle) = bundle::of(&trigger) else { continue };
            let is_single = |entry: Entry| entry.file_type() == FileType::Regular && entry.link_group == 0;
            if self.transaction.lookup(&trigger)?.is_some_and(is_single)
                && self.transaction.lookup(&bundle)?.is_none_or(|entry| is_hidden_bundle(&entry))
            {
                return Ok(Some(Place { trigger, bundle }));
            }
        }
        Ok(None)
    }

    /// Puts a whiteout for the bundle into the cover, if there is one.
    fn cover_bundle(&mut self, flat: ImageId, top: &RepoPath, bundle: &RepoPath) -> Result<(), Failure> {
        let cover = repo_path(&self.layout, &OwnedPath::FlatCover(flat));
        if self.transaction.lookup(&cover)?.is_none() {
            return Ok(());
        }
        let (at, above) = over(&cover, top, bundle)?;
        for (over, under) in above {
            match self.transaction.lookup(&over)? {
                Some(entry) if entry.is_directory() => {}
                // What is hidden with its directory needs nothing more.
                Some(_) => return Ok(()),
                // The directory shows as the flat has it.
                None => {
                    let Some(entry) = self.transaction.lookup(&under)? else { return Ok(()) };
                    let entry = Entry { links: 2, flags: Flags(Flags::DIRECTORY), ..entry };
                    self.transaction.put(&over, entry, &[])?;
                }
            }
        }
        match self.transaction.lookup(&at)? {
            Some(_) => Ok(()),
            None => {
                let (whiteout, _) = to_entry(at.name(), Node::new(NodeKind::Whiteout, 0));
                Ok(self.transaction.put(&at, whiteout, &[])?)
            }
        }
    }

    /// Takes the whiteout away again, with the directories that nothing else needs. One with attributes is there for them.
    fn uncover(&mut self, flat: ImageId, top: &RepoPath, bundle: &RepoPath) -> Result<(), Failure> {
        let cover = repo_path(&self.layout, &OwnedPath::FlatCover(flat));
        let (at, above) = over(&cover, top, bundle)?;
        self.transaction.remove(&at)?;
        for (directory, _) in above.into_iter().rev() {
            let found = self.transaction.lookup(&directory)?;
            let is_needed = found.is_none_or(|entry| !entry.is_directory() || entry.xattrs.is_some());
            if is_needed || !self.transaction.list(&directory)?.is_empty() {
                break;
            }
            self.transaction.remove(&directory)?;
        }
        Ok(())
    }
}

type Above = Vec<(RepoPath, RepoPath)>;

/// The place over a path of a flat in its cover, and the directories above it, the top one first: in the cover, in the flat.
fn over(cover: &RepoPath, top: &RepoPath, path: &RepoPath) -> Result<(RepoPath, Above), Failure> {
    let in_cover = |path: &RepoPath| {
        let below = path.as_bytes().strip_prefix(top.as_bytes()).and_then(|rest| rest.strip_prefix(b"/"));
        let below = below.and_then(|below| cover.join_path(below).ok());
        below.ok_or_else(|| Failure::Content(format!("{path} is not below {top}")))
    };
    let directories =
        path.ancestors().filter(|directory| directory != path && directory != top && top.contains(directory));
    let above = directories.map(|directory| Ok((in_cover(&directory)?, directory))).collect::<Result<_, Failure>>()?;
    Ok((in_cover(path)?, above))
}
