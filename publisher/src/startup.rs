//! Start-up lists as they are published: what a start of an image touches, beside the image.
//!
//! ```text
//! .metadata/…/NAME:TAG/startup.json       the list of a name, which goes on when its tag moves
//! .flat/xx/.cvmfsstartup-<config>         the same, where clients look for it when something starts in the flat
//! .index/image/xx/<chain ID>              leads to that flat from what a container engine knows of the image
//! ```
//!
//! A list is given by an operator or was recorded ([`crate::record`]). It is published in the transaction that makes the
//! image visible. What is published holds only regular files that the flat has, with their present sizes; so a list
//! outlives the version of the image that it was made for. `status.json` has the digest of the list as it was given,
//! by which a pass sees that there is nothing to do.
//!
//! Of two names of one image with different lists the one published last is what clients find.
//!
//! Where the operator says so, the stock client gets the same as a file bundle inside of the flat (`startup/bundle.rs`).

mod bundle;

use std::path::Path;

use cvmfs::entry::FileType;
use cvmfs::path::RepoPath;
use cvmfs::startup::{MAX_BYTES, StartupList, Touched};
use image::digest::{ChainId, DiffId, Digest, ImageId};
use image::layout::{ImageFile, IndexKey, ManifestRecord, OwnedPath, StatusRecord};
use image::manifest::Config;
use serde::Serialize;

use crate::error::one_line;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::plan::ImagePlan;
use crate::publish::{Hand, edit};
use crate::removal::{Owner, Sort};
use crate::target::Target;

/// Bytes that a published list may ask for; what comes after them in the list is dropped.
const MAX_ASKED: u64 = 4 << 30;

/// A list that somebody gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenList {
    list: StartupList,
    digest: Digest,
}

impl GivenList {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        use std::io::Read as _;
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(Failure::io("read", path))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(Failure::io("read", path))?;
        Self::parse(&text).map_err(|error| Failure::Content(format!("{}: {}", path.display(), one_line(&error))))
    }

    /// Reads a list. One with lines that are no paths below the root of an image, or with too many, is refused.
    pub fn parse(text: &[u8]) -> Result<Self, Failure> {
        let list = StartupList::parse(text).map_err(|error| Failure::Content(one_line(&error)))?;
        if list.left_out > 0 {
            return Err(Failure::Content(format!(
                "{} entries of the start-up list are no paths of files below /, or too many",
                list.left_out
            )));
        }
        Ok(Self { list, digest: Digest::of(text) })
    }

    /// Digest of its text.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// A list that fits the image beside which it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Startup {
    list: StartupList,
    /// Digest of the list that it was made from, if that is known.
    pub(crate) given: Option<Digest>,
}

/// What a list asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ListSize {
    /// Files.
    pub files: u64,
    /// Bytes of them, or of what is read of them.
    pub bytes: u64,
}

impl ListSize {
    /// Of a published list; none if it is not understood.
    pub fn of(text: &[u8]) -> Option<Self> {
        StartupList::parse(text).ok().map(|list| Self::of_list(&list))
    }

    fn of_list(list: &StartupList) -> Self {
        Self { files: list.files.len() as u64, bytes: list.bytes() }
    }
}

/// The files of a list that are there, with their present sizes.
fn fit(
    list: &StartupList,
    mut size_of: impl FnMut(&RepoPath) -> Result<Option<u64>, Failure>,
) -> Result<StartupList, Failure> {
    let mut fitting = StartupList::default();
    let mut asked: u64 = 0;
    for Touched { path, parts, .. } in &list.files {
        let Some(size) = size_of(path)? else { continue };
        let inside = |(offset, length): &(u64, u64)| (*offset, (*length).min(size - *offset));
        let kept: Vec<_> = parts.iter().filter(|(offset, _)| *offset < size).map(inside).collect();
        // A file of which only the end was read, and which has become shorter, is worth nothing.
        if kept.is_empty() && !parts.is_empty() {
            continue;
        }
        let file = Touched { path: path.clone(), size, parts: kept };
        asked = asked.saturating_add(file.bytes());
        if asked > MAX_ASKED {
            break;
        }
        fitting.files.push(file);
    }
    while fitting.print().len() as u64 > MAX_BYTES {
        fitting.files.truncate(fitting.files.len() * 9 / 10);
    }
    Ok(fitting)
}

impl Hand<'_> {
    /// The list of an image that is about to be published: the one that was given, or else the one that its name has.
    /// The flat has to be in its place.
    pub(crate) fn startup_of(&mut self, plan: &ImagePlan) -> Result<Option<Startup>, Failure> {
        if !plan.wanted.options.has_flat() {
            return Ok(None);
        }
        let owner = plan.wanted.owner();
        let (list, given) = match &plan.wanted.startup {
            Some(given) => (given.list.clone(), Some(given.digest)),
            None => match self.published_list(&owner)? {
                Some(list) => (list, self.status_of(&owner)?.and_then(|status| status.startup)),
                None => return Ok(None),
            },
        };
        self.fit_to(plan.manifest.config, &list, given, &plan.image).map(Some)
    }

    /// Whether the list of an image goes into its flat as a bundle, too: as its name has it, unless somebody says.
    pub(crate) fn bundles_of(&mut self, plan: &ImagePlan) -> Result<bool, Failure> {
        match plan.wanted.options.bundles {
            Some(said) => Ok(said),
            None => Ok(self.status_of(&plan.wanted.owner())?.is_some_and(|status| status.bundles)),
        }
    }

    fn fit_to(
        &mut self,
        flat: ImageId,
        list: &StartupList,
        given: Option<Digest>,
        image: &str,
    ) -> Result<Startup, Failure> {
        let top = repo_path(&self.layout, &OwnedPath::Flat(flat));
        let fitting = fit(list, |path| {
            let Ok(path) = top.join_path(&path.as_bytes()[1..]) else { return Ok(None) };
            let entry = self.transaction.lookup(&path)?;
            Ok(entry.filter(|e| e.file_type() == FileType::Regular).map(|e| e.size))
        })?;
        self.transaction.close_unchanged();
        let (files, dropped) = (fitting.files.len(), list.files.len() - fitting.files.len());
        match files {
            0 => tracing::warn!(image, dropped, "the image has no file of its start-up list; none is published"),
            _ => tracing::info!(image, files, dropped, bytes = fitting.bytes(), "start-up list"),
        }
        Ok(Startup { list: fitting, given })
    }

    /// Publishes the list of a name; an empty one is none. With it, or without, goes its bundle.
    pub(crate) fn put_startup(
        &mut self,
        owner: &Owner,
        flat: ImageId,
        diff_ids: &[DiffId],
        startup: &Startup,
        bundles: bool,
    ) -> Result<(), Failure> {
        self.change_bundle(flat, Some(&startup.list).filter(|_| bundles))?;
        let places = [record_of(owner, ImageFile::Startup), OwnedPath::FlatStartup(flat)];
        if startup.list.files.is_empty() {
            return places.iter().try_for_each(|path| Ok(self.transaction.remove(&repo_path(&self.layout, path))?));
        }
        let text = startup.list.print();
        places.iter().try_for_each(|path| self.file(path, text.as_bytes()))?;
        match ChainId::stack(diff_ids).last() {
            Some(stack) => self.first_link(&OwnedPath::Index(IndexKey::Image(*stack)), &OwnedPath::Flat(flat)),
            None => Ok(()),
        }
    }

    fn published_list(&mut self, owner: &Owner) -> Result<Option<StartupList>, Failure> {
        let path = record_of(owner, ImageFile::Startup);
        let Some(text) = self.read_up_to(&path, MAX_BYTES)? else { return Ok(None) };
        match StartupList::parse(&text) {
            Ok(list) => Ok(Some(list)),
            Err(error) => {
                tracing::warn!(image = %owner.name, %error, "its start-up list is not understood and is dropped");
                Ok(None)
            }
        }
    }

    fn status_of(&mut self, owner: &Owner) -> Result<Option<StatusRecord>, Failure> {
        Ok(self.read(&record_of(owner, ImageFile::Status))?.and_then(|bytes| StatusRecord::parse(&bytes).ok()))
    }

    /// Gives a published name another list, or none; returns what is published then.
    fn change_startup(
        &mut self,
        owner: &Owner,
        given: Option<&GivenList>,
        bundles: Option<bool>,
    ) -> Result<ListSize, Failure> {
        let name = &owner.name;
        let manifest = self.read(&record_of(owner, ImageFile::Manifest))?;
        let manifest = manifest.ok_or_else(|| Failure::Content(format!("{name} has no manifest.json")))?;
        let flat = ManifestRecord::parse(&manifest)?.config.digest;
        let config = self.read(&record_of(owner, ImageFile::Config))?;
        // An image of the existing tool has none; its list has no way from the stack of layers.
        let diff_ids = config.map(|bytes| Config::parse(&bytes)).transpose()?.map_or_else(Vec::new, |c| c.diff_ids);
        let startup = match given {
            Some(given) => self.fit_to(flat, &given.list, Some(given.digest), name.as_str())?,
            None => Startup { list: StartupList::default(), given: None },
        };
        if given.is_some() && startup.list.files.is_empty() {
            return Err(Failure::Content(format!("{name} has no file of the start-up list; nothing was changed")));
        }
        let status = self.status_of(owner)?;
        let bundles = bundles.unwrap_or_else(|| status.as_ref().is_some_and(|status| status.bundles));
        self.put_startup(owner, flat, &diff_ids, &startup, bundles)?;
        if let Some(status) = status {
            let status = StatusRecord { startup: startup.given, bundles, ..status };
            self.file(&record_of(owner, ImageFile::Status), &status.to_bytes())?;
        }
        Ok(ListSize::of_list(&startup.list))
    }
}

fn record_of(owner: &Owner, file: ImageFile) -> OwnedPath {
    let Owner { platform, name } = owner.clone();
    OwnedPath::ImageFile { platform, name, file }
}

/// What became of a list that was given to a published image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Version of this report.
    pub schema: u32,
    /// The image, as its path in the repository.
    pub image: String,
    /// What its list asks for now.
    pub startup: ListSize,
    /// Revision that shows it.
    pub revision: u64,
}

/// Publishes the list of an image that is published, on all its platforms; or takes it away. `bundles` says whether as a
/// bundle, too; otherwise that stays as it is.
pub fn publish_list(
    target: &Target,
    image: &str,
    given: Option<&GivenList>,
    bundles: Option<bool>,
) -> Result<Listed, Failure> {
    let (mut listed, (_, revision)) = edit(target, |hand| {
        let mut listed = Listed { schema: 1, image: String::new(), startup: ListSize::default(), revision: 0 };
        for owner in hand.find(image, Sort::Recorded)? {
            listed.startup = hand.change_startup(&owner, given, bundles)?;
            listed.image = owner.name.to_string();
        }
        Ok((listed, !hand.transaction.is_empty()))
    })?;
    listed.revision = revision;
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Line<'a> = (&'a str, u64, &'a [(u64, u64)]);

    fn list(files: &[Line<'_>]) -> StartupList {
        let touched = |(path, size, parts): &Line<'_>| Touched {
            path: RepoPath::parse(path).unwrap(),
            size: *size,
            parts: parts.to_vec(),
        };
        StartupList { files: files.iter().map(touched).collect(), left_out: 0 }
    }

    #[test]
    fn what_is_published_fits_the_image() {
        let given = list(&[
            ("/gone", 5, &[]),
            ("/grown", 5, &[]),
            ("/big", 1000, &[(900, 100), (0, 50), (480, 50)]),
            ("/cut", 1000, &[(900, 100)]),
        ]);
        let sizes = |path: &RepoPath| {
            Ok(match path.as_bytes() {
                b"/gone" => None,
                b"/grown" => Some(9),
                _ => Some(500),
            })
        };
        let fitting = fit(&given, sizes).unwrap();
        assert_eq!(fitting, list(&[("/grown", 9, &[]), ("/big", 500, &[(0, 50), (480, 20)])]));
        assert_eq!(fit(&fitting, sizes).unwrap(), fitting, "once is enough");
        let huge = fit(&list(&[("/a", 1, &[]), ("/b", 1, &[]), ("/c", 1, &[])]), |_| Ok(Some(2 << 30))).unwrap();
        assert_eq!((huge.files.len(), huge.bytes()), (2, MAX_ASKED));
    }

    #[test]
    fn hostile_lists_are_refused() {
        let error = |text: &str| one_line(&GivenList::parse(text.as_bytes()).unwrap_err());
        for path in ["../x", "/a/../../etc/shadow", "relative", "/", "/a//b"] {
            let text = format!(r#"{{"schema":1,"files":[{{"path":"/ok"}},{{"path":"{path}"}}]}}"#);
            assert!(error(&text).starts_with("1 entries"), "{path}");
        }
        assert!(error("[]").contains("not a start-up list"));
        let many = format!(r#"{{"schema":1,"files":[{}{{"path":"/a"}}]}}"#, r#"{"path":"/a"},"#.repeat(50_000));
        assert!(error(&many).starts_with("1 entries"));
        let text = br#"{"schema":1,"files":[{"path":"/a","size":3}]}"#;
        assert_eq!(GivenList::parse(text).unwrap().digest(), Digest::of(text));
        assert_eq!(ListSize::of(text), Some(ListSize { files: 1, bytes: 3 }));
    }
}
