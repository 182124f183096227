//! Layers and flats whose objects are gone: what `check --fix` found, until `convert` has replaced them.
//!
//! Kept in `damaged.json` of the state. Like all state it is a hint: deleted, the next `check --fix` writes it again.
//! Looking for every object of every image at each pass would cost more than the pass.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use image::digest::{ImageId, LayerDigest};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::publish::ReadyImage;
use crate::target::Target;

const SCHEMA: u32 = 1;

/// What is not there any more as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    schema: u32,
    /// Layers.
    #[serde(default)]
    pub layers: BTreeSet<LayerDigest>,
    /// Flats, by the config of their image.
    #[serde(default)]
    pub flats: BTreeSet<ImageId>,
}

impl Damaged {
    fn file(target: &Target) -> PathBuf {
        target.paths.state.join("damaged.json")
    }

    /// What is known to be damaged.
    pub fn read(target: &Target) -> Result<Damaged, Failure> {
        let path = Damaged::file(target);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Damaged::default()),
            Err(e) => return Err(Failure::io("read", &path)(e)),
        };
        match serde_json::from_slice::<Damaged>(&bytes) {
            Ok(damaged) if damaged.schema == SCHEMA => Ok(damaged),
            _ => {
                tracing::warn!(file = %path.display(), "unreadable; run check --fix to have it written again");
                Ok(Damaged::default())
            }
        }
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.flats.is_empty()
    }

    /// Keeps it for the next pass; with nothing in it the file goes.
    pub fn write(&self, target: &Target) -> Result<(), Failure> {
        let path = Damaged::file(target);
        if self.is_empty() {
            return match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::io("remove", &path)(e)),
                _ => Ok(()),
            };
        }
        let bytes = serde_json::to_vec(&Damaged { schema: SCHEMA, ..self.clone() }).expect("plain fields");
        let state = &target.paths.state;
        let mut file = tempfile::NamedTempFile::new_in(state).map_err(Failure::io("create a file in", state))?;
        file.write_all(&bytes).map_err(Failure::io("write", &path))?;
        file.persist(&path).map_err(|e| Failure::io("write", &path)(e.error))?;
        Ok(())
    }

    /// These images are published: what was damaged of them was replaced.
    pub(crate) fn forget(target: &Target, images: &[ReadyImage<'_>]) -> Result<(), Failure> {
        let plans = || images.iter().map(|image| image.plan);
        if !plans().any(|p| p.flat_damaged || p.layers.iter().any(|l| l.replaces)) {
            return Ok(());
        }
        let mut damaged = Damaged::read(target)?;
        for plan in plans() {
            damaged.flats.remove(&plan.manifest.config);
            damaged.layers.retain(|d| !plan.layers.iter().any(|l| l.layer.descriptor.digest == *d));
        }
        damaged.write(target)
    }
}
