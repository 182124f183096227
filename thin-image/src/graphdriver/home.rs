//! What is on disk below the directory that Docker gives the driver.
//!
//! ```text
//! HOME/layers/ID/record.json   what the layer is; replaced by rename
//! HOME/layers/ID/diff/         its own files, deletions as overlayfs has them; of a thin layer thin.json, so that it can be pushed
//! HOME/layers/ID/work/         what overlayfs needs beside a writable directory
//! HOME/layers/ID/l/0, 1 …      links to the directories that it stands on, the nearest first; made anew for each mount
//! HOME/layers/ID/merged/       where its stack is mounted, while it is
//! HOME/layers/ID/holders       how many hold that mount
//! HOME/new/                    layers that are being made
//! HOME/trash/                  layers that are being removed
//! ```
//! Links keep names short: a page of mount options takes hundreds of them, and an admin sees in `l` what a container stands on.
//!
//! Invariants
//! - A layer appears and disappears by one rename. What `new` and `trash` hold after a kill is deleted by the next start of Docker.
//! - A layer becomes usable (`applied`) after all of its files are there. A kill before that leaves it unusable, and the next start of
//!   Docker removes it; the kill of the plugin alone makes Docker remove it.
//! - Nothing here is joined to a path but a [`LayerId`].

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image::digest::{ChainId, ImageId, LayerDigest};
use image::layout::OwnedPath;
use serde::{Deserialize, Serialize};

use super::id::LayerId;
use crate::files;
use crate::plugin::Refusal;
use crate::published::Repository;

/// Directories that Linux takes in one overlay.
pub const MAX_LOWERS: usize = 500;

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// of an image: filled once from an archive
    Image,
    /// written to where it is mounted: of a container, or of an image that BuildKit makes
    Container,
}

/// How far a layer of an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// empty
    Created,
    /// its archive is being unpacked, or a killed process was at it
    Applying,
    /// complete
    Applied,
}

/// A directory of a repository on which others stand in the place of a thin layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenPart")]
pub struct Part {
    /// name of the repository
    pub repository: String,
    /// which layer, or the config of which image
    pub layer: LayerDigest,
    /// which of its directories
    pub form: Form,
}

/// Which directory it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// of a layer
    Content,
    /// the copy whose deletions overlayfs understands, of a layer that another tool published
    Overlay,
    /// what lies over the flat root of an image; the digest is that of the image's config, as with the next
    Cover,
    /// the flat root of an image: with the cover over it all of its layers
    Flat,
}

/// As records had it before there were forms.
#[derive(Deserialize)]
struct WrittenPart {
    repository: String,
    layer: LayerDigest,
    #[serde(default)]
    overlay: bool,
    form: Option<Form>,
}

impl From<WrittenPart> for Part {
    fn from(WrittenPart { repository, layer, overlay, form }: WrittenPart) -> Self {
        let form = form.unwrap_or(if overlay { Form::Overlay } else { Form::Content });
        Self { repository, layer, form }
    }
}

impl Part {
    /// Its directory in the repository.
    pub fn path(&self) -> OwnedPath {
        let image = ImageId::from_digest(self.layer.digest());
        match self.form {
            Form::Content => OwnedPath::LayerContent(self.layer),
            Form::Overlay => OwnedPath::LayerOverlay(self.layer),
            Form::Cover => OwnedPath::FlatCover(image),
            Form::Flat => OwnedPath::Flat(image),
        }
    }

    /// The same on this machine, with the files in it.
    pub fn content(&self, repository: &Repository) -> PathBuf {
        let path = repository.path(&self.path());
        if self.form == Form::Overlay { path.join("layerfs") } else { path }
    }
}

/// `record.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// version of this record
    pub schema: u32,
    /// what it stands on
    pub parent: Option<LayerId>,
    /// what it is for
    pub kind: Kind,
    /// how far it is
    pub state: State,
    /// bytes of its files, once they are there
    #[serde(default)]
    pub size: u64,
    /// its archive empties the root directory: nothing below it is seen
    #[serde(default)]
    pub opaque: bool,
    /// of a thin layer: what stands for it, the nearest first
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thin: Vec<Part>,
    /// of a thin layer: the chain ID of the image that is meant, if the repository confirms it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<ChainId>,
}

/// A directory in a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// own files of a layer
    Local(LayerId),
    /// of a repository
    Published(Part),
}

/// Owner and mode of a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootAttributes {
    /// owner
    pub uid: u32,
    /// group
    pub gid: u32,
    /// mode
    pub mode: u32,
}

/// The directories, and who works in which.
#[derive(Debug)]
pub struct Home {
    root: PathBuf,
    locks: Mutex<HashMap<LayerId, Arc<Mutex<()>>>>,
}

impl Home {
    /// Makes the directories that all others are in, for root alone.
    pub fn open(root: &Path) -> Result<Self, Refusal> {
        for name in ["layers", "new", "trash"] {
            let path = root.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(Refusal::of(format!("cannot make {}", path.display())))?;
        }
        Ok(Self { root: root.to_owned(), locks: Mutex::default() })
    }

    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Of one layer.
    pub fn layer(&self, id: &LayerId) -> PathBuf {
        self.root.join("layers").join(id.as_str())
    }

    /// Its own files.
    pub fn diff(&self, id: &LayerId) -> PathBuf {
        self.layer(id).join("diff")
    }

    /// Where its stack is mounted.
    pub fn merged(&self, id: &LayerId) -> PathBuf {
        self.layer(id).join("merged")
    }

    /// What has to be held while a layer is changed or mounted.
    pub fn lock(&self, id: &LayerId) -> Arc<Mutex<()>> {
        Arc::clone(self.locks.lock().expect("nobody panics while holding it").entry(id.clone()).or_default())
    }

    /// The record of a layer; nothing if there is no such layer.
    pub fn find(&self, id: &LayerId) -> Result<Option<Record>, Refusal> {
        let path = self.layer(id).join("record.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == NotFound => return Ok(None),
            Err(error) => return Err(Refusal::of(format!("cannot read {}", path.display()))(error)),
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(Refusal::of(format!("{} is damaged", path.display())))?;
        if record.schema != 1 {
            return Err(Refusal::new(format!("{} is of a later version of this program", path.display())));
        }
        Ok(Some(record))
    }

    /// The record of a layer that has to be there.
    pub fn get(&self, id: &LayerId) -> Result<Record, Refusal> {
        self.find(id)?.ok_or_else(|| Refusal::new(format!("there is no layer {id}")))
    }

    /// Replaces the record of a layer.
    pub fn write(&self, id: &LayerId, record: &Record) -> Result<(), Refusal> {
        write_record(&self.layer(id), record)
    }

    /// Makes a layer without files.
    pub fn create(&self, id: &LayerId, record: &Record, root: RootAttributes) -> Result<(), Refusal> {
        let new = self.fresh("new", id);
        let make = || {
            fs::DirBuilder::new().mode(0o700).create(&new)?;
            let diff = new.join("diff");
            fs::create_dir(&diff)?;
            chown(&diff, Some(root.uid), Some(root.gid))?;
            // Changing the owner takes set-id bits away.
            fs::set_permissions(&diff, fs::Permissions::from_mode(root.mode & 0o7777))?;
            fs::DirBuilder::new().mode(0o700).create(new.join("work"))
        };
        make().map_err(Refusal::of(format!("cannot make {}", new.display())))?;
        write_record(&new, record)?;
        let place = self.layer(id);
        fs::rename(&new, &place).map_err(Refusal::of(format!("cannot make {}", place.display())))
    }

    /// Takes a layer away; one that is not there is no error. Its mount has to be gone.
    pub fn remove(&self, id: &LayerId) -> Result<(), Refusal> {
        let (place, trash) = (self.layer(id), self.fresh("trash", id));
        match fs::rename(&place, &trash) {
            Err(error) if error.kind() == NotFound => {}
            Err(error) => return Err(Refusal::of(format!("cannot remove {}", place.display()))(error)),
            // It is gone already; what can't be deleted now is deleted at the next start of Docker.
            Ok(()) => delete(&trash),
        }
        self.locks.lock().expect("nobody panics while holding it").remove(id);
        Ok(())
    }

    /// All layers.
    pub fn layers(&self) -> Result<Vec<LayerId>, Refusal> {
        let path = self.root.join("layers");
        let entries = fs::read_dir(&path).map_err(Refusal::of(format!("cannot read {}", path.display())))?;
        let ids = entries.filter_map(|entry| LayerId::parse(entry.ok()?.file_name().to_str()?).ok());
        Ok(ids.collect())
    }

    /// Deletes what killed processes were making or removing.
    pub fn sweep(&self) {
        for name in ["new", "trash"] {
            let Ok(entries) = fs::read_dir(self.root.join(name)) else { continue };
            entries.flatten().for_each(|entry| delete(&entry.path()));
        }
    }

    /// What a container or layer that stands on `id` stands on, the nearest first.
    pub fn stack(&self, id: Option<&LayerId>) -> Result<Vec<Lower>, Refusal> {
        let (mut stack, mut next) = (Vec::new(), id.cloned());
        while let Some(id) = next {
            let record = self.get(&id)?;
            if record.kind == Kind::Image && record.state != State::Applied {
                return Err(Refusal::new(format!("layer {id} is not complete; pull its image again")));
            }
            if record.thin.is_empty() {
                stack.push(Lower::Local(id.clone()));
            } else {
                stack.extend(record.thin.into_iter().map(Lower::Published));
            }
            if stack.len() > MAX_LOWERS {
                return Err(Refusal::new(format!(
                    "{id} and what it stands on are more than {MAX_LOWERS} directories; overlayfs takes no more"
                )));
            }
            next = record.parent.filter(|_| !record.opaque);
        }
        Ok(stack)
    }

    /// Makes the links of a layer to what it stands on.
    pub fn link(&self, id: &LayerId, targets: &[PathBuf]) -> Result<(), Refusal> {
        self.link_in(&self.layer(id), targets)
    }

    /// The same in any directory.
    pub fn link_in(&self, directory: &Path, targets: &[PathBuf]) -> Result<(), Refusal> {
        let place = directory.join("l");
        let make = || {
            match fs::remove_dir_all(&place) {
                Err(error) if error.kind() != NotFound => return Err(error),
                _ => {}
            }
            fs::create_dir(&place)?;
            targets.iter().enumerate().try_for_each(|(number, target)| symlink(target, place.join(number.to_string())))
        };
        make().map_err(Refusal::of(format!("cannot make {}", place.display())))
    }

    /// An empty directory for a short while.
    pub fn temporary(&self, id: &LayerId) -> Result<PathBuf, Refusal> {
        let path = self.fresh("new", id);
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Refusal::of(format!("cannot make {}", path.display())))?;
        Ok(path)
    }

    /// How many hold the mount of a layer, as last noted.
    pub fn holders(&self, id: &LayerId) -> Option<u64> {
        fs::read_to_string(self.layer(id).join("holders")).ok()?.trim().parse().ok()
    }

    /// Notes how many hold it. It counts only as long as the mount is there, so it need not outlive the machine.
    pub fn hold(&self, id: &LayerId, count: u64) -> Result<(), Refusal> {
        let path = self.layer(id).join("holders");
        fs::write(&path, count.to_string()).map_err(Refusal::of(format!("cannot write {}", path.display())))
    }

    /// A name in `new` or `trash` that nobody has.
    fn fresh(&self, place: &str, id: &LayerId) -> PathBuf {
        self.root.join(place).join(format!("{id}-{:016x}", fastrand::u64(..)))
    }
}

fn write_record(directory: &Path, record: &Record) -> Result<(), Refusal> {
    let bytes = serde_json::to_vec_pretty(record).expect("records have string keys");
    files::replace(&directory.join("record.json"), &bytes).map_err(Refusal::of("cannot keep a layer"))
}

fn delete(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "a removed layer can't be deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: RootAttributes = RootAttributes { uid: 0, gid: 0, mode: 0o755 };

    fn id(text: &str) -> LayerId {
        LayerId::parse(text).unwrap()
    }

    fn record(parent: Option<&str>) -> Record {
        let parent = parent.map(id);
        Record {
            schema: 1,
            parent,
            kind: Kind::Image,
            state: State::Applied,
            size: 0,
            opaque: false,
            thin: Vec::new(),
            stack: None,
        }
    }

    fn part(number: u8) -> Part {
        Part { repository: "a.b".into(), layer: LayerDigest::of(&[number]), form: Form::Content }
    }

    /// A home that this user may make layers in.
    fn home() -> Option<(tempfile::TempDir, Home)> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: owners of layers need root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open(&directory.path().join("home")).unwrap();
        Some((directory, home))
    }

    #[test]
    fn a_stack_has_the_published_layers_in_the_place_of_a_thin_one() {
        let Some((_directory, home)) = home() else { return };
        home.create(&id("base"), &record(None), ROOT).unwrap();
        home.create(&id("thin"), &Record { thin: vec![part(2), part(1)], ..record(None) }, ROOT).unwrap();
        home.create(&id("child"), &record(Some("thin")), ROOT).unwrap();
        home.create(&id("emptied"), &Record { opaque: true, ..record(Some("child")) }, ROOT).unwrap();
        let stack = |name: &str| home.stack(Some(&id(name))).unwrap();
        let thin = [Lower::Published(part(2)), Lower::Published(part(1))];
        assert_eq!(stack("thin"), thin);
        assert_eq!(stack("child"), [&[Lower::Local(id("child"))], &thin[..]].concat());
        assert_eq!(stack("emptied"), [Lower::Local(id("emptied"))]);
        assert_eq!(home.stack(None).unwrap(), []);
        assert!(home.stack(Some(&id("absent"))).unwrap_err().to_string().contains("no layer absent"));
    }

    #[test]
    fn records_of_older_versions_are_understood() {
        let layer = LayerDigest::of(b"x");
        for (more, form) in [
            ("", Form::Content),
            (r#","overlay":false"#, Form::Content),
            (r#","overlay":true"#, Form::Overlay),
            (r#","form":"flat""#, Form::Flat),
        ] {
            let part: Part =
                serde_json::from_str(&format!(r#"{{"repository":"a.b","layer":"{layer}"{more}}}"#)).unwrap();
            assert_eq!(part, Part { repository: "a.b".into(), layer, form });
            assert_eq!(serde_json::from_str::<Part>(&serde_json::to_string(&part).unwrap()).unwrap(), part);
        }
    }

    #[test]
    fn a_stack_that_never_ends_or_is_not_complete_is_refused() {
        let Some((_directory, home)) = home() else { return };
        home.create(&id("loop"), &record(Some("loop")), ROOT).unwrap();
        assert!(home.stack(Some(&id("loop"))).unwrap_err().to_string().contains("more than 500"));
        home.create(&id("half"), &Record { state: State::Applying, ..record(None) }, ROOT).unwrap();
        assert!(home.stack(Some(&id("half"))).unwrap_err().to_string().contains("not complete"));
        home.create(&id("many"), &Record { thin: vec![part(1); 501], ..record(None) }, ROOT).unwrap();
        assert!(home.stack(Some(&id("many"))).is_err());
    }

    #[test]
    fn what_killed_processes_left_is_swept_and_nothing_else() {
        let Some((_directory, home)) = home() else { return };
        home.create(&id("kept"), &record(None), ROOT).unwrap();
        fs::create_dir_all(home.root().join("new/half-made/diff")).unwrap();
        fs::create_dir_all(home.root().join("trash/half-removed/diff")).unwrap();
        home.sweep();
        assert_eq!(home.layers().unwrap(), [id("kept")]);
        for name in ["new", "trash"] {
            assert_eq!(fs::read_dir(home.root().join(name)).unwrap().count(), 0, "{name}");
        }
        home.remove(&id("kept")).unwrap();
        home.remove(&id("kept")).expect("a second time");
        assert_eq!(home.layers().unwrap(), []);
        assert_eq!(home.find(&id("kept")).unwrap(), None);
    }

    #[test]
    fn a_damaged_or_later_record_is_no_layer_to_work_with() {
        let Some((_directory, home)) = home() else { return };
        home.create(&id("a"), &record(None), ROOT).unwrap();
        let path = home.layer(&id("a")).join("record.json");
        for (text, reason) in [("{", "damaged"), (r#"{"schema":2,"kind":"image","state":"applied"}"#, "later version")]
        {
            fs::write(&path, text).unwrap();
            let error = home.find(&id("a")).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
