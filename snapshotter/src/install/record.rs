//! What was installed: enough to take it back exactly.
//!
//! `/etc/cvmfs-snapshotter/install/record.json` lists the changes in their order, with the hash of what was written; beside it lie the
//! files as they were. A change is recorded before it is made, so that nothing is ever without a record. Changes are undone in reverse;
//! a file that is not as it was written has been changed by somebody since, and is left alone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Machine, Plan};

/// Where the record and the backups are.
const DIRECTORY: &str = "/etc/cvmfs-snapshotter/install";

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// which file
    path: PathBuf,
    /// name of its backup; nothing if it was not there
    backup: Option<String>,
    /// SHA-256 of what was written
    written: String,
    /// directories that were made for it, the outermost first
    made: Vec<PathBuf>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    schema: u32,
    changes: Vec<Entry>,
}

const SCHEMA: u32 = 1;

/// What became of the changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    /// files that are as they were before
    pub restored: Vec<PathBuf>,
    /// files that somebody has changed since, with the backup of what was there before
    pub left: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Record {
    fn read(machine: &Machine) -> anyhow::Result<Self> {
        let path = Path::new(DIRECTORY).join("record.json");
        let Some(text) = machine.read(&path)? else { return Ok(Self { schema: SCHEMA, changes: Vec::new() }) };
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; the files as they were lie beside it", path.display()))?;
        if record.schema != SCHEMA {
            bail!("{} is of another version of this program ({})", path.display(), record.schema);
        }
        Ok(record)
    }

    fn write(&self, machine: &Machine) -> anyhow::Result<()> {
        let path = machine.path(&Path::new(DIRECTORY).join("record.json"));
        replace(&path, (serde_json::to_string_pretty(self)? + "\n").as_bytes(), None)
    }
}

/// Carries out a plan.
pub fn apply(machine: &Machine, plan: &Plan) -> anyhow::Result<()> {
    if plan.changes.is_empty() {
        return Ok(());
    }
    let directory = machine.path(Path::new(DIRECTORY));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}; are you root?", directory.display()))?;
    let mut record = Record::read(machine)?;
    for change in &plan.changes {
        // A link to a file elsewhere stays a link.
        let place = machine.path(&change.path);
        let place = fs::canonicalize(&place).unwrap_or(place);
        let backup = change.before.as_ref().map(|_| {
            let name = change.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{}-{name}", record.changes.len() + 1)
        });
        let old = fs::metadata(&place).ok();
        if let (Some(name), Some(text)) = (&backup, &change.before) {
            replace(&directory.join(name), text.as_bytes(), old.as_ref())?;
        }
        let made = missing(&place, machine);
        record.changes.push(Entry { path: change.path.clone(), backup, written: hash(change.after.as_bytes()), made });
        record.write(machine)?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        replace(&place, change.after.as_bytes(), old.as_ref())?;
    }
    Ok(())
}

/// Takes everything back; with `dry_run` only says what that would be.
pub fn undo(machine: &Machine, dry_run: bool) -> anyhow::Result<Undone> {
    let mut record = Record::read(machine)?;
    let mut undone = Undone::default();
    let directory = machine.path(Path::new(DIRECTORY));
    while let Some(entry) = record.changes.pop() {
        let place = machine.path(&entry.path);
        let place = fs::canonicalize(&place).unwrap_or(place);
        let backup = entry.backup.as_ref().map(|name| directory.join(name));
        let before = match &backup {
            Some(path) => Some(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?),
            None => None,
        };
        let now = match fs::read(&place) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", place.display())),
        };
        // As it was: the change was not made, or somebody took it back.
        let ours = now == before || now.as_ref().is_some_and(|now| hash(now) == entry.written);
        if !ours {
            undone.left.push((entry.path, backup.clone()));
        } else {
            if !dry_run {
                match &before {
                    Some(bytes) => replace(&place, bytes, fs::metadata(&place).ok().as_ref())?,
                    None if now.is_some() => {
                        fs::remove_file(&place).with_context(|| format!("cannot delete {}", place.display()))?;
                    }
                    None => {}
                }
                for made in entry.made.iter().rev() {
                    // Somebody else's files may be in it by now.
                    let _ = fs::remove_dir(machine.path(made));
                }
            }
            undone.restored.push(entry.path);
        }
        if !dry_run {
            if ours && let Some(backup) = backup {
                let _ = fs::remove_file(backup);
            }
            record.write(machine)?;
        }
    }
    if !dry_run && directory.exists() {
        let _ = fs::remove_file(directory.join("record.json"));
        // Backups of what was left alone stay.
        if fs::remove_dir(&directory).is_ok()
            && let Some(parent) = directory.parent()
        {
            let _ = fs::remove_dir(parent);
        }
    }
    Ok(undone)
}

/// Directories that are missing for a file, the outermost first.
fn missing(place: &Path, machine: &Machine) -> Vec<PathBuf> {
    let root = machine.path(Path::new("/"));
    let mut missing: Vec<PathBuf> = place
        .ancestors()
        .skip(1)
        .take_while(|directory| !directory.exists() && **directory != root)
        .filter_map(|directory| Some(Path::new("/").join(directory.strip_prefix(&root).ok()?)))
        .collect();
    missing.reverse();
    missing
}

/// Writes a file as a whole or not at all, with mode and owner of the one it replaces.
fn replace(path: &Path, content: &[u8], old: Option<&fs::Metadata>) -> anyhow::Result<()> {
    let new = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.set_permissions(fs::Permissions::from_mode(old.map_or(0o644, |old| old.mode() & 0o7777)))?;
        if let Some(old) = old {
            chown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
