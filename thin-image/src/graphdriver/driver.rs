//! What Docker asks of a graph driver, on [`Home`] and the kernel. Everything blocks.
//!
//! A mount is held by whoever got it; the last one who puts it back unmounts it. How many there are is noted beside the mount, and counts
//! only while the mount is there: after a restart of the machine nobody holds anything. A new Docker begins with `Init`, and what an old one
//! held is given back then, unless a container that outlived it still sees it.
//!
//! Docker repeats calls whose answer was lost. Creating and removing can be repeated; an archive can't, since what was read of it is gone:
//! a repeated `ApplyDiff` succeeds only if the first one was complete.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use image::digest::ChainId;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use super::home::{Form, Home, Kind, Lower, Part, Record, RootAttributes, State};
use super::id::LayerId;
use super::mounts::{self, Stack};
use super::pack::Change;
use super::startup::Announcer;
use super::{jail, pack, thin, unpack};
use crate::config::PreferFlat;
use crate::files;
use crate::look::Looks;
use crate::plugin::Refusal;
use crate::published::Repository;

/// File below the state directory that remembers where Docker's directory is, for a plugin that restarts beside a running Docker.
const REMEMBERED: &str = "graphdriver.json";
/// Root directory of an image that says nothing of it.
const ROOT: RootAttributes = RootAttributes { uid: 0, gid: 0, mode: 0o755 };

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    schema: u32,
    home: PathBuf,
}

/// The driver.
#[derive(Debug)]
pub struct Driver {
    repositories: Vec<Repository>,
    looks: Looks,
    prefer_flat: PreferFlat,
    announcer: Announcer,
    state: PathBuf,
    home: RwLock<Option<Arc<Home>>>,
}

impl Driver {
    /// A driver for thin images of these repositories, which remembers in `state` where it was used.
    pub fn new(repositories: Vec<Repository>, prefer_flat: PreferFlat, state: &Path) -> Result<Self, Refusal> {
        let file = state.join(REMEMBERED);
        let home = match fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Refusal::of(format!("cannot read {}", file.display()))(error)),
            Ok(bytes) => match serde_json::from_slice::<Remembered>(&bytes) {
                Ok(Remembered { schema: 1, home }) if home.is_dir() => Some(Arc::new(Home::open(&home)?)),
                // Docker says it again when it starts.
                _ => None,
            },
        };
        Ok(Self {
            repositories,
            looks: Looks::default(),
            prefer_flat,
            announcer: Announcer::default(),
            state: state.to_owned(),
            home: RwLock::new(home),
        })
    }

    fn home(&self) -> Result<Arc<Home>, Refusal> {
        let home = self.home.read().expect("nobody panics while holding it").clone();
        home.ok_or_else(|| Refusal::new("Docker has not said where its directory is; restart Docker"))
    }

    /// A Docker begins to use the driver.
    pub fn init(&self, root: &Path) -> Result<(), Refusal> {
        if !root.is_absolute() || root.components().any(|c| c == std::path::Component::ParentDir) {
            return Err(Refusal::new(format!("{} is not a directory that can be used", root.display())));
        }
        let home = Arc::new(Home::open(root)?);
        try_out(&home)?;
        home.sweep();
        for id in home.layers()? {
            // One damaged layer must not keep Docker from starting.
            if let Err(error) = tidy(&home, &id) {
                tracing::warn!(layer = %id, %error, "left as it is");
            }
        }
        let remembered = Remembered { schema: 1, home: root.to_owned() };
        let bytes = serde_json::to_vec(&remembered).expect("it has string keys");
        let keep = || fs::create_dir_all(&self.state);
        keep().map_err(Refusal::of(format!("cannot make {}", self.state.display())))?;
        files::replace(&self.state.join(REMEMBERED), &bytes).map_err(Refusal::of("cannot remember this"))?;
        *self.home.write().expect("nobody panics while holding it") = Some(home);
        Ok(())
    }

    /// Docker ends.
    pub fn cleanup(&self) -> Result<(), Refusal> {
        let home = self.home()?;
        for id in home.layers()? {
            let lock = home.lock(&id);
            let _held = lock.lock().expect("nobody panics while holding it");
            release(&home, &id)?;
        }
        Ok(())
    }

    /// Makes an empty layer.
    pub fn create(&self, id: &LayerId, parent: Option<&LayerId>, kind: Kind) -> Result<(), Refusal> {
        let home = self.home()?;
        let lock = home.lock(id);
        let _held = lock.lock().expect("nobody panics while holding it");
        let new = Record {
            schema: 1,
            parent: parent.cloned(),
            kind,
            state: State::Created,
            size: 0,
            opaque: false,
            thin: Vec::new(),
            stack: None,
        };
        match home.find(id)? {
            Some(found) if found == new => return Ok(()),
            Some(_) => return Err(Refusal::new(format!("there is a layer {id} already"))),
            None => {}
        }
        let stack = home.stack(parent)?;
        if stack.len() >= super::home::MAX_LOWERS {
            return Err(Refusal::new(format!(
                "{id} would stand on {} directories, too many for overlayfs",
                stack.len()
            )));
        }
        if kind == Kind::Container {
            // Docker leaves a layer behind that it could make and could not get.
            self.directories(&home, &stack)?;
            self.announce(&home, parent)?;
        }
        let root = match stack.first() {
            None => ROOT,
            Some(Lower::Local(below)) => attributes(&home.diff(below))?,
            Some(Lower::Published(part)) => self.published_attributes(part)?,
        };
        home.create(id, &new, root)
    }

    /// Owner and mode of the root of a published layer.
    fn published_attributes(&self, part: &Part) -> Result<RootAttributes, Refusal> {
        let repository = thin::allowed(&self.repositories, &part.repository)?;
        let content = part.content(repository);
        let found = self.looks.all(repository, vec![content], |_, content| attributes(content));
        found.map(|mut found| found.remove(0)).map_err(|_| gone(part, repository))
    }

    /// Removes a layer; one that is not there is no error.
    pub fn remove(&self, id: &LayerId) -> Result<(), Refusal> {
        let home = self.home()?;
        let lock = home.lock(id);
        let _held = lock.lock().expect("nobody panics while holding it");
        mounts::unmount(&home.merged(id))?;
        home.remove(id)
    }

    /// Is there such a layer?
    pub fn exists(&self, id: &LayerId) -> Result<bool, Refusal> {
        Ok(self.home()?.find(id)?.is_some())
    }

    /// The directory that shows a layer with all that it stands on.
    pub fn get(&self, id: &LayerId, label: &str) -> Result<PathBuf, Refusal> {
        if !mounts::is_label(label) {
            return Err(Refusal::new("the label is not one of SELinux"));
        }
        let home = self.home()?;
        let lock = home.lock(id);
        let _held = lock.lock().expect("nobody panics while holding it");
        let mut record = home.get(id)?;
        if record.kind == Kind::Image && record.state == State::Created {
            // BuildKit makes layers of images in this way: it writes to the directory, and sends no archive.
            record.kind = Kind::Container;
            home.write(id, &record)?;
        }
        let merged = home.merged(id);
        if mounts::is_mounted(&merged)? {
            // A mount that nobody noted was made by a process that was killed before it could.
            home.hold(id, home.holders(id).unwrap_or(0) + 1)?;
            return Ok(merged);
        }
        let below = home.stack(record.parent.as_ref().filter(|_| !record.opaque))?;
        // A thin layer is shown as it is, so that it can be pushed; so is one that stands on nothing.
        if !record.thin.is_empty() || below.is_empty() {
            return Ok(home.diff(id));
        }
        let writable = record.kind == Kind::Container;
        if writable {
            self.announce(&home, record.parent.as_ref())?;
        }
        let own = (!writable).then(|| home.diff(id));
        let mut targets: Vec<PathBuf> = own.into_iter().collect();
        targets.extend(self.directories(&home, &below)?);
        home.link(id, &targets)?;
        let lowers: Vec<String> = (0..targets.len()).map(|number| format!("l/{number}")).collect();
        mounts::mount_stack(&home.layer(id), &Stack { lowers: &lowers, writable, label })?;
        home.hold(id, 1)?;
        Ok(merged)
    }

    /// One of those who got a layer doesn't need it any more.
    pub fn put(&self, id: &LayerId) -> Result<(), Refusal> {
        let home = self.home()?;
        let lock = home.lock(id);
        let _held = lock.lock().expect("nobody panics while holding it");
        let merged = home.merged(id);
        if !mounts::is_mounted(&merged)? {
            return Ok(());
        }
        match home.holders(id).unwrap_or(1) {
            0 | 1 => {
                home.hold(id, 0)?;
                mounts::unmount(&merged)
            }
            more => home.hold(id, more - 1),
        }
    }

    /// The directories of a stack on this machine, all of which are there.
    fn directories(&self, home: &Home, stack: &[Lower]) -> Result<Vec<PathBuf>, Refusal> {
        let mut directories = vec![PathBuf::new(); stack.len()];
        for repository in &self.repositories {
            let parts: Vec<(usize, &Part)> = stack
                .iter()
                .enumerate()
                .filter_map(|(at, lower)| match lower {
                    Lower::Published(part) if part.repository == repository.name() => Some((at, part)),
                    _ => None,
                })
                .collect();
            let there = self.looks.present(repository, parts.iter().map(|(_, part)| part.path()).collect())?;
            for ((at, part), there) in parts.into_iter().zip(there) {
                if !there {
                    self.looks.mounted(repository)?;
                    return Err(gone(part, repository));
                }
                directories[at] = part.content(repository);
            }
        }
        for (directory, lower) in directories.iter_mut().zip(stack) {
            match lower {
                Lower::Local(id) => *directory = home.diff(id),
                Lower::Published(part) => {
                    thin::allowed(&self.repositories, &part.repository)?;
                }
            }
        }
        Ok(directories)
    }

    /// Fills a layer of an image from its archive. Returns the bytes of its files.
    pub fn apply(&self, id: &LayerId, parent: Option<&LayerId>, archive: impl Read + Send) -> Result<u64, Refusal> {
        let home = self.home()?;
        let lock = home.lock(id);
        let _held = lock.lock().expect("nobody panics while holding it");
        let mut record = home.get(id)?;
        if record.parent.as_ref() != parent {
            return Err(Refusal::new(format!("layer {id} was made on another parent")));
        }
        let diff = home.diff(id);
        if record.kind == Kind::Container {
            let unpacked = jail::within(&diff, || unpack::unpack(archive))?;
            return Ok(unpacked.size);
        }
        match record.state {
            State::Created => {}
            State::Applying => {
                return Err(Refusal::new(format!("unpacking layer {id} was interrupted; pull the image again")));
            }
            State::Applied => return again(&record, archive),
        }
        record.state = State::Applying;
        home.write(id, &record)?;
        let (unpacked, found) = jail::within(&diff, || Ok((unpack::unpack(archive)?, thin::read())))?;
        if let Some(found) = found {
            let said = found.map_err(Refusal::of("the image is no thin image that can be used"))?;
            let thin::Resolved { parts, stack } = thin::resolve(&said, &self.repositories, &self.looks)?;
            // What stands on another layer is not all of the image.
            record.stack = stack.filter(|_| parent.is_none());
            let layers = parts.len();
            record.thin = self.flat(&parts, record.stack).unwrap_or(parts);
            let is_flat = record.thin.len() < layers;
            tracing::info!(layer = %id, origin = said.origin, layers, is_flat, "a thin image stands for published layers");
        }
        record = Record { state: State::Applied, size: unpacked.size, opaque: unpacked.opaque, ..record };
        home.write(id, &record)?;
        Ok(unpacked.size)
    }

    /// The flat root in place of these layers, if it is there and wanted.
    fn flat(&self, layers: &[Part], stack: Option<ChainId>) -> Option<Vec<Part>> {
        let is_wanted = match self.prefer_flat {
            PreferFlat::Off => false,
            PreferFlat::On => true,
            PreferFlat::Auto => layers.len() >= mounted::MANY_DIRECTORIES,
        };
        let repository = thin::allowed(&self.repositories, &layers.first()?.repository).ok()?;
        thin::flat(repository, stack.filter(|_| is_wanted)?, &self.looks)
    }

    /// Tells the client of the repository what a container of a thin image will read.
    fn announce(&self, home: &Home, parent: Option<&LayerId>) -> Result<(), Refusal> {
        let mut next = parent.cloned();
        while let Some(id) = next {
            let record = home.get(&id)?;
            if let (Some(stack), Some(first)) = (record.stack, record.thin.first()) {
                let repository = thin::allowed(&self.repositories, &first.repository)?;
                self.announcer.begins(&self.looks, repository, stack, &record.thin);
            }
            // Between a container and its image Docker has a layer of its own.
            next = record.parent.filter(|_| record.kind == Kind::Container);
        }
        Ok(())
    }

    /// Writes what a layer changes of its parent as an archive.
    pub fn diff(&self, id: &LayerId, parent: Option<&LayerId>, sink: &mut (impl Write + Send)) -> Result<(), Refusal> {
        let home = self.home()?;
        own_parent(&home, id, parent)?;
        let failed = Refusal::of(format!("layer {id} can't be archived"));
        jail::within(&home.diff(id), || pack::pack(sink).map_err(failed))
    }

    /// Bytes of what a layer changes.
    pub fn diff_size(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<u64, Refusal> {
        let home = self.home()?;
        own_parent(&home, id, parent)?;
        jail::within(&home.diff(id), || pack::size().map_err(Refusal::of("its files can't be counted")))
    }

    /// What a layer changes of its parent, by path.
    pub fn changes(&self, id: &LayerId, parent: Option<&LayerId>) -> Result<Vec<(PathBuf, Change)>, Refusal> {
        let home = self.home()?;
        let record = own_parent(&home, id, parent)?;
        let below = self.below(&home, id, &record)?;
        jail::within(&home.diff(id), || {
            pack::changes(below.as_ref()).map_err(Refusal::of("its changes can't be listed"))
        })
    }

    /// What a layer stands on, as one directory that is seen by nobody else.
    fn below(&self, home: &Home, id: &LayerId, record: &Record) -> Result<Option<OwnedFd>, Refusal> {
        let stack = home.stack(record.parent.as_ref().filter(|_| !record.opaque))?;
        let directories = self.directories(home, &stack)?;
        let opened = |path: &Path| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            open(path, flags, Mode::empty()).map_err(Refusal::of(format!("cannot open {}", path.display())))
        };
        match &directories[..] {
            [] => Ok(None),
            [only] => opened(only).map(Some),
            several => {
                let view = home.temporary(id)?;
                let look = || {
                    home.link_in(&view, several)?;
                    let lowers: Vec<String> = (0..several.len()).map(|number| format!("l/{number}")).collect();
                    mounts::mount_stack(&view, &Stack { lowers: &lowers, writable: false, label: "" })?;
                    let below = opened(&view.join("merged"));
                    // What is open stays.
                    mounts::unmount(&view.join("merged"))?;
                    below
                };
                let below = look();
                let _ = fs::remove_dir_all(&view);
                below.map(Some)
            }
        }
    }

    /// What `docker inspect` shows of a layer.
    pub fn metadata(&self, id: &LayerId) -> Result<Vec<(&'static str, String)>, Refusal> {
        let home = self.home()?;
        let record = home.get(id)?;
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let lowers: Vec<String> = home
            .stack(record.parent.as_ref().filter(|_| !record.opaque))?
            .iter()
            .map(|lower| match lower {
                Lower::Local(id) => text(home.diff(id)),
                Lower::Published(part) => match thin::allowed(&self.repositories, &part.repository) {
                    Ok(repository) => text(part.content(repository)),
                    Err(_) => format!("cvmfs://{}/{}", part.repository, part.layer),
                },
            })
            .collect();
        let mut pairs = vec![("UpperDir", text(home.diff(id)))];
        if !lowers.is_empty() {
            pairs.push(("LowerDir", lowers.join(":")));
            pairs.push(("MergedDir", text(home.merged(id))));
            pairs.push(("WorkDir", text(home.layer(id).join("work"))));
        }
        if !record.thin.is_empty() {
            pairs.push(("ThinLayers", record.thin.len().to_string()));
        }
        Ok(pairs)
    }

    /// What `docker info` shows of the driver. No repository is looked at, so that none can hang it.
    pub fn status(&self) -> Vec<[String; 2]> {
        let mut lines = vec![["Version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()]];
        for repository in &self.repositories {
            let state = match mounts::is_mounted(repository.mountpoint()) {
                Ok(true) => "",
                _ => " (not a mount)",
            };
            lines.push([
                format!("Repository {}", repository.name()),
                format!("{}{state}", repository.mountpoint().display()),
            ]);
        }
        lines
    }
}

/// A published layer that is not there any more.
fn gone(part: &Part, repository: &Repository) -> Refusal {
    let what = match part.form {
        Form::Content | Form::Overlay => "layer",
        Form::Cover | Form::Flat => "the flat root of image",
    };
    Refusal::new(format!(
        "{what} {} is no longer in repository {} at {}; publish the image again, or pull a newer one",
        part.layer,
        repository.name(),
        repository.mountpoint().display()
    ))
}

fn attributes(path: &Path) -> Result<RootAttributes, Refusal> {
    let found = fs::metadata(path).map_err(Refusal::of(format!("cannot look at {}", path.display())))?;
    Ok(RootAttributes { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o7777 })
}

/// The record of a layer, whose parent has to be the one that is named: other differences are not kept anywhere.
fn own_parent(home: &Home, id: &LayerId, parent: Option<&LayerId>) -> Result<Record, Refusal> {
    let record = home.get(id)?;
    if record.parent.as_ref() != parent {
        return Err(Refusal::new(format!(
            "layer {id} can be compared with its own parent only; build without --squash"
        )));
    }
    Ok(record)
}

/// The answer to a call that was repeated: only the answer to the first one was lost if nothing is left of its archive.
fn again(record: &Record, mut archive: impl Read) -> Result<u64, Refusal> {
    match archive.read(&mut [0]) {
        Ok(0) => Ok(record.size),
        _ => Err(Refusal::new("the layer is filled already")),
    }
}

/// Gives back what an old Docker held of a layer, and removes it if it was never finished.
fn tidy(home: &Home, id: &LayerId) -> Result<(), Refusal> {
    release(home, id)?;
    // Without a readable record it may be somebody's.
    if let Some(record) = home.find(id)?
        && record.kind == Kind::Image
        && record.state != State::Applied
    {
        tracing::info!(layer = %id, "removed: it was never filled");
        home.remove(id)?;
    }
    Ok(())
}

/// Unmounts a layer unless a container that goes on without Docker sees it.
fn release(home: &Home, id: &LayerId) -> Result<(), Refusal> {
    let merged = home.merged(id);
    if !mounts::is_mounted(&merged)? {
        let _ = fs::remove_dir(&merged);
        return Ok(());
    }
    if mounts::is_used_elsewhere(&merged)? {
        // Whoever got it was the old Docker; the container's end puts it back once.
        return home.hold(id, 1);
    }
    mounts::unmount(&merged)
}

/// Mounts something, so that a file system or a kernel that can't be used is found at the start and not at the first container.
fn try_out(home: &Home) -> Result<(), Refusal> {
    let place = home.temporary(&LayerId::parse("try-out")?)?;
    let attempt = || {
        for name in ["a", "diff", "work"] {
            fs::create_dir(place.join(name)).map_err(Refusal::of("cannot make a directory"))?;
        }
        xattr::set(place.join("a"), unpack::OPAQUE, b"y")
            .map_err(Refusal::of("cannot set an attribute of overlayfs"))?;
        mounts::mount_stack(&place, &Stack { lowers: &["a".to_owned()], writable: true, label: "" })?;
        mounts::unmount(&place.join("merged"))
    };
    let done = attempt();
    let _ = fs::remove_dir_all(&place);
    done.map_err(|error| {
        Refusal::new(format!(
            "{} can't be used for overlayfs: {error}; Docker's directory has to be on a local file system such as ext4 or xfs",
            home.root().display()
        ))
    })
}
