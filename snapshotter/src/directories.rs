//! The directories of snapshots.
//!
//! ```text
//! ROOT/snapshots/ID/fs             a layer's own files, or a link to the directory that stands for them
//! ROOT/snapshots/ID/fs1, fs2 …     more links, where several directories stand for one snapshot; the top one is fs
//! ROOT/snapshots/ID/work           what overlayfs needs beside a writable directory
//! ROOT/snapshots/ID/snapshot.json  the snapshot's row again, to make the database anew if it is lost
//! ROOT/snapshots/rm-ID-N           to be deleted
//! ROOT/snapshots/lost-ID           what no record explains when a database is made anew; for people, never deleted
//! ROOT/shadow/REPOSITORY/HEX/{above,below}   see [`crate::legacy`]
//! ```
//! A published layer is a symbolic link, not a mount: overlayfs follows it when a container's stack is mounted. So there is nothing
//! to mount, to restore after a restart, or to leak, and names stay short, of which a page of mount options then takes hundreds.
//!
//! Order. A directory is made before its row is committed and discarded after the row is gone, so that a row always has its
//! directory; one without a row is what a killed process left, and the next start discards it. A number is never used twice.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use image::digest::{ImageId, LayerDigest};
use image::layout::{Layout, OwnedPath};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::overlay::{Layer, Own};
use crate::snapshots::{Id, Info, Kind, Lower, Part, RootAttributes, Snapshot};
use crate::usage::Usage;

const RECORD: &str = "snapshot.json";
const TRASH: &str = "rm-";
const LOST: &str = "lost-";

/// `snapshot.json`: a row of the database, with the parent by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// version of this record
    pub schema: u32,
    /// number of the snapshot
    pub id: Id,
    /// its name
    pub name: String,
    /// name of its parent
    pub parent: Option<String>,
    /// what it is
    pub kind: Kind,
    /// nanoseconds since 1970
    pub created: i64,
    /// nanoseconds since 1970
    pub updated: i64,
    /// free text
    pub labels: crate::labels::Labels,
    /// what stands for it
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowers: Vec<Lower>,
    /// which way it was found
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<String>,
    /// disk usage
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

impl Record {
    /// The record of a snapshot.
    pub fn of(snapshot: &Snapshot) -> Self {
        let info = snapshot.info.clone();
        Self {
            schema: 1,
            id: snapshot.id,
            name: info.name,
            parent: info.parent,
            kind: info.kind,
            created: info.created,
            updated: info.updated,
            labels: info.labels,
            lowers: snapshot.lowers.clone(),
            how: snapshot.how.clone(),
            usage: snapshot.usage,
        }
    }

    /// The snapshot of a record; its parent's number is not in it.
    pub fn into_snapshot(self) -> Snapshot {
        Snapshot {
            id: self.id,
            parent: None,
            info: Info {
                name: self.name,
                parent: self.parent,
                kind: self.kind,
                created: self.created,
                updated: self.updated,
                labels: self.labels,
            },
            lowers: self.lowers,
            how: self.how,
            usage: self.usage,
        }
    }
}

/// Where repositories are mounted, by name.
pub type Mountpoints = std::collections::HashMap<String, PathBuf>;

/// The directories below a root.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    snapshots: PathBuf,
    mountpoints: Mountpoints,
    discarded: AtomicU64,
}

impl Directories {
    /// Makes the directories that all others are in, for root alone.
    pub fn open(root: &Path, mountpoints: Mountpoints) -> Result<Self, Error> {
        let snapshots = root.join("snapshots");
        let existed = root.is_dir();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&snapshots)
            .map_err(Error::io("make the directory", &snapshots))?;
        if !existed {
            fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(Error::io("set the mode of", root))?;
        }
        Ok(Self { root: root.to_owned(), snapshots, mountpoints, discarded: AtomicU64::new(0) })
    }

    /// The root of all.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn of(&self, id: Id) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// The directories of a snapshot with files of its own.
    pub fn own(&self, id: Id) -> Own {
        let directory = self.of(id);
        Own { content: directory.join("fs"), work: directory.join("work") }
    }

    /// The directories of a stack of committed snapshots, the nearest first: down to one that stands for all below it.
    pub fn stack(&self, snapshots: &[Snapshot]) -> Vec<Layer> {
        let mut layers = Vec::new();
        for snapshot in snapshots {
            let mut all = self.layers(snapshot);
            if !snapshot.whole().is_empty() {
                layers.extend(all.split_off(snapshot.alone()));
                break;
            }
            layers.append(&mut all);
        }
        layers
    }

    /// All that stands for a committed snapshot, the top one first.
    pub fn layers(&self, snapshot: &Snapshot) -> Vec<Layer> {
        let directory = self.of(snapshot.id);
        if !snapshot.is_remote() {
            return vec![Layer { path: directory.join("fs"), target: None }];
        }
        let link = |(position, lower): (usize, &Lower)| Layer {
            path: directory.join(link_name(position)),
            target: Some(self.target(lower)),
        };
        snapshot.lowers.iter().enumerate().map(link).collect()
    }

    /// The directory that a part of a layer is.
    ///
    /// A repository that is not configured any more keeps the usual place: snapshots outlive a change of the configuration.
    pub fn target(&self, lower: &Lower) -> PathBuf {
        let repository = || {
            let usual = || Path::new("/cvmfs").join(&lower.repository);
            self.mountpoints.get(&lower.repository).cloned().unwrap_or_else(usual)
        };
        let layout = Layout::new();
        match lower.part {
            Part::Content => repository().join(layout.print(&OwnedPath::LayerContent(lower.layer))),
            Part::Overlay => repository().join(layout.print(&OwnedPath::LayerOverlay(lower.layer))).join("layerfs"),
            Part::Cover | Part::Flat => {
                let image = ImageId::from_digest(lower.layer.digest());
                let path = if lower.part == Part::Flat { OwnedPath::Flat(image) } else { OwnedPath::FlatCover(image) };
                repository().join(layout.print(&path))
            }
            Part::Above => self.shadow(&lower.repository, &lower.layer).join("above"),
            Part::Below => self.shadow(&lower.repository, &lower.layer).join("below"),
        }
    }

    /// Where the local directories around a layer with literal whiteouts are.
    pub fn shadow(&self, repository: &str, layer: &LayerDigest) -> PathBuf {
        self.root.join("shadow").join(repository).join(layer.hex())
    }

    /// Makes the directory of a new snapshot with files of its own.
    pub fn create(&self, id: Id, kind: Kind, root: Option<RootAttributes>) -> Result<(), Error> {
        let directory = self.new_directory(id)?;
        let make = |name: &str, mode: u32| {
            let path = directory.join(name);
            fs::create_dir(&path)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
                .map_err(Error::io("make the directory", path))
        };
        make("fs", root.map_or(0o755, |root| root.mode & 0o7777))?;
        if let Some(root) = root {
            let content = directory.join("fs");
            chown(&content, Some(root.uid), Some(root.gid)).map_err(Error::io("set the owner of", &content))?;
            // Changing the owner takes set-id bits away.
            fs::set_permissions(&content, Permissions::from_mode(root.mode & 0o7777))
                .map_err(Error::io("set the mode of", content))?;
        }
        if kind == Kind::Active { make("work", 0o711) } else { Ok(()) }
    }

    /// Makes links to what stands for a snapshot, in place of whatever is there.
    pub fn link(&self, id: Id, lowers: &[Lower]) -> Result<(), Error> {
        let directory = self.of(id);
        if !directory.is_dir() {
            self.new_directory(id)?;
        }
        let new = directory.join("new");
        // Of a process that was killed between the two steps below.
        match new.symlink_metadata() {
            Ok(left) if left.is_dir() => self.throw_away(&new, id)?,
            Ok(_) => fs::remove_file(&new).map_err(Error::io("delete", &new))?,
            Err(_) => {}
        }
        for (position, lower) in lowers.iter().enumerate() {
            let (path, target) = (directory.join(link_name(position)), self.target(lower));
            match fs::read_link(&path) {
                Ok(found) if found == target => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    symlink(&target, &path).map_err(Error::io("make the link", path))?;
                    continue;
                }
                _ => {}
            }
            // The path is never without a directory behind it: the new link takes the old one's place.
            symlink(&target, &new).map_err(Error::io("make the link", &new))?;
            if path.symlink_metadata().is_ok_and(|old| old.is_dir()) {
                exchange(&new, &path).map_err(Error::io("exchange for a link", &path))?;
                self.throw_away(&new, id)?;
            } else {
                fs::rename(&new, &path).map_err(Error::io("replace the link", &path))?;
            }
        }
        Ok(())
    }

    /// Takes the link away that stands for a snapshot's content.
    pub fn unlink(&self, id: Id) -> Result<(), Error> {
        let path = self.own(id).content;
        fs::remove_file(&path).map_err(Error::io("delete", path))
    }

    /// The directory of a number that was never used; what a killed process left under it goes.
    fn new_directory(&self, id: Id) -> Result<PathBuf, Error> {
        let directory = self.of(id);
        let make = || DirBuilder::new().mode(0o700).create(&directory);
        match make() {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.discard(id)?;
                make().map_err(Error::io("make the directory", &directory))?;
            }
            made => made.map_err(Error::io("make the directory", &directory))?,
        }
        Ok(directory)
    }

    /// Writes a snapshot's record.
    pub fn record(&self, record: &Record) -> Result<(), Error> {
        let directory = self.of(record.id);
        let (new, path) = (directory.join(".snapshot.json"), directory.join(RECORD));
        let bytes = serde_json::to_vec(record).expect("records have string keys and no failing serialisers");
        fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path)).map_err(Error::io("write", path))
    }

    /// Takes a snapshot's directory out of sight; it is deleted by [`Directories::empty_trash`].
    pub fn discard(&self, id: Id) -> Result<(), Error> {
        match self.throw_away(&self.of(id), id) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Sets a snapshot's directory aside for people to look at.
    pub fn set_aside(&self, id: Id) -> Result<PathBuf, Error> {
        let aside = self.snapshots.join(format!("{LOST}{id}"));
        fs::rename(self.of(id), &aside).map_err(Error::io("set aside", self.of(id)))?;
        Ok(aside)
    }

    fn throw_away(&self, path: &Path, id: Id) -> Result<(), Error> {
        loop {
            let number = self.discarded.fetch_add(1, Ordering::Relaxed);
            let trash = self.snapshots.join(format!("{TRASH}{id}-{number}"));
            if trash.symlink_metadata().is_ok() {
                continue; // of an earlier process
            }
            return fs::rename(path, trash).map_err(Error::io("take away", path));
        }
    }

    /// Deletes what was discarded.
    pub fn empty_trash(&self) -> Result<(), Error> {
        let mut first = None;
        for (name, path) in self.entries()? {
            if !name.starts_with(TRASH) {
                continue;
            }
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    first.get_or_insert_with(|| Error::io("delete", path)(error));
                }
                _ => {}
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Deletes the directories around layers with literal whiteouts that no snapshot stands for. Only when nobody makes any.
    pub fn sweep_shadows(&self, used: &HashSet<(String, LayerDigest)>) {
        let list = |path: &Path| -> Vec<(String, PathBuf)> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
        };
        for (repository, directory) in list(&self.root.join("shadow")) {
            for (name, path) in list(&directory) {
                let layer = LayerDigest::parse_hex(name.split('.').next().unwrap_or_default());
                if layer.is_some_and(|layer| used.contains(&(repository.clone(), layer))) {
                    continue;
                }
                let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                if let Err(error) = deleted {
                    tracing::warn!(path = %path.display(), %error, "what was made around a layer could not be deleted");
                }
            }
        }
    }

    /// Names and paths of all that is in the directory of snapshots.
    fn entries(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let read = || -> io::Result<Vec<_>> {
            fs::read_dir(&self.snapshots)?
                .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
                .collect()
        };
        read().map_err(Error::io("list", &self.snapshots))
    }

    /// Numbers of the directories that are there.
    pub fn numbers(&self) -> Result<Vec<Id>, Error> {
        Ok(self.entries()?.iter().filter_map(|(name, _)| name.parse().ok().map(Id)).collect())
    }

    /// Is the content of this snapshot a link?
    pub fn is_linked(&self, id: Id) -> bool {
        self.own(id).content.is_symlink()
    }

    /// Has this snapshot files of its own?
    pub fn has_files(&self, id: Id) -> bool {
        let content = self.own(id).content;
        !content.is_symlink() && fs::read_dir(content).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Has this snapshot any content?
    pub fn has_content(&self, id: Id) -> bool {
        self.own(id).content.symlink_metadata().is_ok()
    }

    /// A snapshot's record; nothing if there is none or it can't be read.
    pub fn read_record(&self, id: Id) -> Option<Record> {
        let path = self.of(id).join(RECORD);
        let read = || -> anyhow::Result<Record> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        match read() {
            Ok(record) if record.schema == 1 && record.id == id => Some(record),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of a snapshot can't be read");
                None
            }
        }
    }
}

fn link_name(position: usize) -> String {
    if position == 0 { "fs".into() } else { format!("fs{position}") }
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const REPOSITORY: &str = "images.example.org";

    fn opened() -> (tempfile::TempDir, Directories) {
        let directory = tempfile::tempdir().unwrap();
        let mountpoints = [(REPOSITORY.to_owned(), directory.path().join("cvmfs"))].into();
        let directories = Directories::open(&directory.path().join("s"), mountpoints).unwrap();
        (directory, directories)
    }

    fn lower(name: &str, part: Part) -> Lower {
        Lower { repository: REPOSITORY.into(), layer: LayerDigest::of(name.as_bytes()), part }
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn links_take_the_place_of_files_and_of_other_links() {
        let (directory, directories) = opened();
        let id = Id(3);
        directories.create(id, Kind::Active, None).unwrap();
        fs::write(directories.own(id).content.join("file"), "").unwrap();
        let lowers = [Part::Above, Part::Content, Part::Below].map(|part| lower("a", part));
        let snapshots = directory.path().join("s/snapshots");
        for (lowers, trash) in [(&lowers[1..2], 1), (&lowers[..], 1), (&lowers[..], 1)] {
            directories.link(id, lowers).unwrap();
            let targets: Vec<PathBuf> = ["fs", "fs1", "fs2"]
                .iter()
                .take(lowers.len())
                .map(|name| fs::read_link(snapshots.join("3").join(name)).unwrap())
                .collect();
            assert_eq!(targets, lowers.iter().map(|lower| directories.target(lower)).collect::<Vec<_>>());
            assert_eq!(names(&snapshots).len(), 1 + trash, "files wait to be deleted");
        }
        // Between its steps a process was killed: the files are beside the link.
        fs::create_dir(snapshots.join("3/new")).unwrap();
        directories.link(id, &lowers).unwrap();
        assert_eq!(names(&snapshots.join("3")), ["fs", "fs1", "fs2", "work"]);
        assert_eq!(names(&snapshots).len(), 3);
        directories.empty_trash().unwrap();
        assert_eq!(names(&snapshots), ["3"]);
    }

    #[test]
    fn targets_are_below_where_the_repository_is_mounted() {
        let (directory, directories) = opened();
        let hex = LayerDigest::of(b"a").hex();
        let layers = format!("cvmfs/.layers/{}/{hex}", &hex[..2]);
        for (part, expected) in [
            (Part::Content, format!("{layers}/layerfs")),
            (Part::Overlay, format!("{layers}/.overlay/layerfs")),
            (Part::Above, format!("s/shadow/{REPOSITORY}/{hex}/above")),
            (Part::Below, format!("s/shadow/{REPOSITORY}/{hex}/below")),
        ] {
            assert_eq!(directories.target(&lower("a", part)), directory.path().join(expected));
        }
        let former = Lower { repository: "former.example.org".into(), ..lower("a", Part::Content) };
        assert!(directories.target(&former).starts_with("/cvmfs/former.example.org/.layers"));
    }

    #[test]
    fn the_content_of_a_new_snapshot_is_what_will_be_seen_as_the_root() {
        let (_directory, directories) = opened();
        let mine = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        for (id, root, expected) in [
            (1, None, (0o755, mine)),
            (2, Some(RootAttributes { uid: mine.0, gid: mine.1, mode: 0o1777 }), (0o1777, mine)),
            (3, Some(RootAttributes { uid: mine.0, gid: mine.1, mode: 0o6511 }), (0o6511, mine)),
        ] {
            directories.create(Id(id), Kind::View, root).unwrap();
            let own = directories.own(Id(id));
            let metadata = own.content.metadata().unwrap();
            assert_eq!((metadata.mode() & 0o7777, (metadata.uid(), metadata.gid())), expected);
            assert!(!own.work.exists(), "nobody writes into a view");
        }
        // A killed process left something under a number.
        fs::write(directories.own(Id(1)).content.join("left"), "").unwrap();
        directories.create(Id(1), Kind::Active, None).unwrap();
        assert_eq!(names(&directories.own(Id(1)).content).len(), 0);
        assert_eq!(directories.own(Id(1)).work.metadata().unwrap().mode() & 0o7777, 0o711);
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_not_under_another_number() {
        let (_directory, directories) = opened();
        let snapshot = Snapshot {
            id: Id(5),
            parent: None,
            info: Info {
                name: "default/1/ü\0".into(),
                parent: Some("below".into()),
                kind: Kind::Committed,
                created: i64::MAX,
                updated: 1,
                labels: [("a\n".to_owned(), "\u{1}".to_owned())].into(),
            },
            lowers: vec![lower("a", Part::Overlay), lower("b", Part::Content)],
            how: Some("chain".into()),
            usage: Some(Usage { size: 1, inodes: 2 }),
        };
        directories.create(Id(5), Kind::Active, None).unwrap();
        directories.record(&Record::of(&snapshot)).unwrap();
        assert_eq!(directories.read_record(Id(5)).map(Record::into_snapshot), Some(snapshot));
        let snapshots = directories.root().join("snapshots");
        fs::rename(snapshots.join("5"), snapshots.join("6")).unwrap();
        assert_eq!(directories.read_record(Id(6)), None, "it is of another snapshot");
        fs::rename(snapshots.join("6"), snapshots.join("5")).unwrap();
        let text = fs::read_to_string(snapshots.join("5/snapshot.json")).unwrap();
        for damaged in ["", "{}", &text[..text.len() / 2], &text.replace("\"schema\":1", "\"schema\":2")] {
            fs::write(snapshots.join("5/snapshot.json"), damaged).unwrap();
            assert_eq!(directories.read_record(Id(5)), None, "{damaged}");
        }
    }

    #[test]
    fn only_numbers_are_snapshots() {
        let (directory, directories) = opened();
        let snapshots = directory.path().join("s/snapshots");
        for name in ["7", "12", "rm-7-0", "lost-3", "x", "new"] {
            fs::create_dir(snapshots.join(name)).unwrap();
        }
        let mut numbers = directories.numbers().unwrap();
        numbers.sort();
        assert_eq!(numbers, [Id(7), Id(12)]);
        directories.discard(Id(7)).unwrap();
        directories.discard(Id(8)).expect("what is not there is gone");
        directories.set_aside(Id(12)).unwrap();
        directories.empty_trash().unwrap();
        assert_eq!(names(&snapshots), ["lost-12", "lost-3", "new", "x"]);
    }

    #[test]
    fn shadows_of_layers_in_use_stay() {
        let (directory, directories) = opened();
        let shadow = directory.path().join("s/shadow");
        let layers = ["used", "unused"].map(|name| LayerDigest::of(name.as_bytes()));
        for layer in &layers {
            for name in ["first.example.org", "second.example.org"] {
                fs::create_dir_all(directories.shadow(name, layer).join("below")).unwrap();
            }
        }
        fs::write(shadow.join("first.example.org").join(format!("{}.plain", layers[1].hex())), "").unwrap();
        fs::create_dir(shadow.join("first.example.org/.new-1-0")).unwrap();
        directories.sweep_shadows(&[("first.example.org".to_owned(), layers[0])].into());
        assert_eq!(names(&shadow.join("first.example.org")), [layers[0].hex()]);
        assert_eq!(names(&shadow.join("second.example.org")).len(), 0);
    }
}
