//! Where a mount is seen. One that was unmounted lazily is seen nowhere and serves those who still use it; meanwhile
//! another client may be mounted at its place, and must be left alone.

use std::path::{Path, PathBuf};

use mountinfo::{Device, MountTable};

/// The place of a mount of this process.
#[derive(Debug, Clone)]
pub struct Place {
    mountpoint: PathBuf,
    /// None if the kernel's table can't be read.
    device: Option<Device>,
}

impl Place {
    /// Of what has just been mounted at `mountpoint`, an absolute path. Asks nobody but the kernel: the mount may not answer yet.
    pub fn of(mountpoint: &Path) -> Place {
        Place {
            mountpoint: mountpoint.to_owned(),
            device: devices(mountpoint).and_then(|devices| devices.last().copied()),
        }
    }

    /// The directory.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether it is still mounted there, in the mount namespace of this process, or that can't be told.
    pub fn is_mounted(&self) -> bool {
        self.is_among(|devices, device| devices.contains(&device))
    }

    /// Whether it is what is seen there, with nothing else mounted over it, or that can't be told.
    pub fn is_seen(&self) -> bool {
        self.is_among(|devices, device| devices.last() == Some(&device))
    }

    fn is_among(&self, test: impl FnOnce(&[Device], Device) -> bool) -> bool {
        let Some((device, devices)) = self.device.zip(devices(&self.mountpoint)) else { return true };
        test(&devices, device)
    }
}

/// What is mounted at a path, what is seen there last.
fn devices(path: &Path) -> Option<Vec<Device>> {
    Some(MountTable::own().ok()?.at(path).map(|mount| mount.device).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_known_by_its_device() {
        let root = Place::of(Path::new("/"));
        assert!(root.device.is_some() && root.is_mounted() && root.is_seen());
        let gone = Place { device: Some(Device { major: 0, minor: 0 }), ..root };
        assert!(!gone.is_mounted() && !gone.is_seen());
    }
}
