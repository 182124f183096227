//! The kernel's table of mounts. Asks nobody else: a mount whose client is stuck stands in it like any other.
//!
//! Source: proc(5), `/proc/PID/mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// What is mounted in one mount namespace, in the order in which it was mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    /// The mounts.
    pub mounts: Vec<MountPoint>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The file system that is mounted: no other has this number as long as somebody uses it.
    pub device: Device,
    /// Where it is.
    pub place: PathBuf,
    /// Options of the mount, such as `nosuid`, with commas between them.
    pub options: String,
    /// Type of the file system, such as `fuse`.
    pub kind: String,
}

/// Number of a mounted file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// What kind of device; 0 for file systems without one.
    pub major: u32,
    /// Which one.
    pub minor: u32,
}

impl MountTable {
    /// What this thread sees.
    pub fn own() -> io::Result<MountTable> {
        MountTable::of(Path::new("/proc/thread-self"))
    }

    /// What a process sees, by its directory in `/proc`.
    pub fn of(process: &Path) -> io::Result<MountTable> {
        Ok(MountTable::parse(&fs::read(process.join("mountinfo"))?))
    }

    /// Reads a table; lines that make no sense are left out.
    pub fn parse(table: &[u8]) -> MountTable {
        MountTable { mounts: table.split(|byte| *byte == b'\n').filter_map(mount).collect() }
    }

    /// All that is mounted at exactly this place, what is seen there last.
    pub fn at<'a>(&'a self, place: &'a Path) -> impl DoubleEndedIterator<Item = &'a MountPoint> {
        self.mounts.iter().filter(move |mount| mount.place == place)
    }

    /// The mount that a path without links is in.
    pub fn around(&self, path: &Path) -> Option<&MountPoint> {
        let within = self.mounts.iter().filter(|mount| path.starts_with(&mount.place));
        // The last of those that are equally deep is uppermost.
        within.max_by_key(|mount| mount.place.components().count())
    }
}

impl MountPoint {
    /// Whether it is a file system in user space.
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }

    /// Whether it has an option.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|found| found == option)
    }
}

/// `ID PARENT MAJOR:MINOR ROOT PLACE OPTIONS [TAG…] - TYPE SOURCE OPTIONS`
fn mount(line: &[u8]) -> Option<MountPoint> {
    let mut words = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(words.nth(2)?).ok()?.split_once(':')?;
    let (place, options) = (words.nth(1)?, words.next()?);
    words.find(|word| *word == b"-")?;
    Some(MountPoint {
        device: Device { major: major.parse().ok()?, minor: minor.parse().ok()? },
        place: PathBuf::from(OsString::from_vec(plain(place))),
        options: String::from_utf8_lossy(options).into_owned(),
        kind: String::from_utf8_lossy(words.next()?).into_owned(),
    })
}

/// Without the escapes for blank, tab, line end and backslash: `\` and three octal digits.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        result.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:27 / /cvmfs rw,relatime shared:9 - autofs /etc/auto.cvmfs rw,fd=7
31 30 0:31 / /cvmfs/a.example.org ro,nosuid,nodev shared:10 master:2 - fuse cvmfs2 ro,user_id=0
32 22 0:32 / /with\\040blank\\134\\9\xff\\ rw - xfs /dev/sdb rw
33 22 0:33 / /cvmfs/b.example.org ro,nodev - fuse.cvmfs cvmfs ro
nonsense
34 31 x:34 / /cvmfs ro - overlay overlay ro
34 31 0:34 / /cvmfs ro shared:3
34 31 0:34 / /cvmfs/a.example.org ro,nodev - overlay overlay ro
";

    #[test]
    fn what_is_seen_is_last() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.mounts.len(), 6);
        let at = |place: &Path| table.at(place).map(|mount| mount.kind.clone()).collect::<Vec<_>>();
        assert_eq!(at(Path::new("/cvmfs/a.example.org")), ["fuse", "overlay"]);
        assert_eq!(at(Path::new("/cvmfs/c")), [""; 0]);
        assert_eq!(at(&PathBuf::from(OsString::from_vec(b"/with blank\\\\9\xff\\".to_vec()))), ["xfs"]);
        let around = |path: &str| table.around(Path::new(path)).map(|mount| mount.kind.as_str());
        assert_eq!(
            [around("/var/lib/x"), around("/cvmfs/a.example.org/x"), around("/cvmfs/c")],
            [Some("ext4"), Some("overlay"), Some("autofs")]
        );
    }

    #[test]
    fn a_mount_has_its_device_type_and_options() {
        let MountTable { mounts } = MountTable::parse(TABLE);
        assert_eq!(mounts[0].device, Device { major: 8, minor: 1 });
        assert_eq!(mounts[5].device, Device { major: 0, minor: 34 });
        assert!(mounts[4].is_fuse() && !mounts[4].has("nosuid") && mounts[2].has("nosuid") && !mounts[0].is_fuse());
    }

    #[test]
    fn the_table_of_this_thread_has_a_root() {
        assert!(MountTable::own().unwrap().at(Path::new("/")).next().is_some());
    }
}
