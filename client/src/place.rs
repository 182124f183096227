//! Where a mount is seen. One that was unmounted lazily is seen nowhere and serves those who still use it; meanwhile
//! another client may be mounted at its place, and must be left alone.
//!
//! Source: proc(5), `/proc/PID/mountinfo`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The place of a mount of this process.
#[derive(Debug, Clone)]
pub struct Place {
    mountpoint: PathBuf,
    /// `MAJOR:MINOR`; none if the kernel's table can't be read.
    device: Option<Vec<u8>>,
}

impl Place {
    /// Of what has just been mounted at `mountpoint`, an absolute path. Asks nobody but the kernel: the mount may not answer yet.
    pub fn of(mountpoint: &Path) -> Place {
        Place { mountpoint: mountpoint.to_owned(), device: devices(&table(), mountpoint).last().map(<[u8]>::to_vec) }
    }

    /// The directory.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether it is still mounted there, in the mount namespace of this process.
    pub fn is_mounted(&self) -> bool {
        let Some(device) = &self.device else { return true };
        devices(&table(), &self.mountpoint).any(|found| found == device)
    }

    /// Whether it is what is seen there: nothing else is mounted over it.
    pub fn is_seen(&self) -> bool {
        let Some(device) = &self.device else { return true };
        devices(&table(), &self.mountpoint).last().is_some_and(|found| found == device)
    }
}

fn table() -> Vec<u8> {
    std::fs::read("/proc/self/mountinfo").unwrap_or_default()
}

/// Devices of all that is mounted at a path, the topmost last.
fn devices<'a>(table: &'a [u8], path: &'a Path) -> impl Iterator<Item = &'a [u8]> {
    table.split(|byte| *byte == b'\n').filter_map(move |line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        (plain(fields.nth(1)?) == path.as_os_str().as_bytes()).then_some(device)
    })
}

/// Without the escapes for space, tab, newline and backslash.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                result.push(byte);
                rest = &after[3..];
            }
            None => {
                result.push(*first);
                rest = after;
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"
21 1 254:0 / / rw - ext4 /dev/vda rw
30 21 0:44 / /cvmfs/a rw,nosuid shared:1 - fuse cvmfs2 rw
31 30 0:45 / /cvmfs/a rw,nosuid - fuse cvmfs2 rw
32 21 0:46 / /with\040space\134 rw - fuse cvmfs2 rw
";

    #[test]
    fn the_topmost_mount_is_last() {
        let found = |path: &str| devices(TABLE, Path::new(path)).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(found("/cvmfs/a"), [b"0:44".to_vec(), b"0:45".to_vec()]);
        assert_eq!(found("/with space\\"), [b"0:46".to_vec()]);
        assert_eq!(found("/cvmfs"), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_place_is_known_by_its_device() {
        let root = Place::of(Path::new("/"));
        assert!(root.device.is_some() && root.is_mounted() && root.is_seen());
        let gone = Place { device: Some(b"0:0".to_vec()), ..root };
        assert!(!gone.is_mounted() && !gone.is_seen());
    }
}
