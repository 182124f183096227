//! The kernel's table of mounts, `/proc/self/mountinfo` (proc(5)).

use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// where it is
    pub place: PathBuf,
    /// options of the mount, such as `nosuid`
    pub options: Vec<String>,
    /// type of the file system
    pub kind: String,
}

impl MountPoint {
    /// Is it a file system in user space?
    pub fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }

    /// Has it an option?
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|found| found == option)
    }
}

/// The mounts of this process, in the order in which they were made.
pub fn read() -> Vec<MountPoint> {
    parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Reads a table; lines that make no sense are left out.
pub fn parse(table: &str) -> Vec<MountPoint> {
    let mount = |line: &str| {
        let (ours, theirs) = line.split_once(" - ")?;
        let mut words = ours.split(' ').skip(4);
        let (place, options) = (words.next()?, words.next()?);
        Some(MountPoint {
            place: PathBuf::from(unescape(place)),
            options: options.split(',').map(str::to_owned).collect(),
            kind: theirs.split(' ').next()?.to_owned(),
        })
    };
    table.lines().filter_map(mount).collect()
}

/// The uppermost mount at exactly this place.
pub fn at<'a>(mounts: &'a [MountPoint], place: &Path) -> Option<&'a MountPoint> {
    mounts.iter().rev().find(|mount| mount.place == place)
}

/// The mount that a path is in.
pub fn around<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    let within = mounts.iter().filter(|mount| path.starts_with(&mount.place));
    // The last of those that are equally deep is uppermost.
    within.max_by_key(|mount| mount.place.components().count())
}

/// An automounter that a path depends on.
pub fn automounter<'a>(mounts: &'a [MountPoint], path: &Path) -> Option<&'a MountPoint> {
    mounts.iter().find(|mount| mount.kind == "autofs" && path.starts_with(&mount.place))
}

/// Blanks and backslashes are written as three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = Vec::new();
    let mut bytes = text.as_bytes();
    while let Some((first, rest)) = bytes.split_first() {
        let digits = (*first == b'\\').then(|| rest.get(..3)).flatten();
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        bytes = if code.is_some() { &rest[3..] } else { rest };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:27 / /cvmfs rw,relatime shared:9 - autofs /etc/auto.cvmfs rw,fd=7
31 30 0:31 / /cvmfs/a.example.org ro,nosuid,nodev shared:10 - fuse cvmfs2 ro,user_id=0
32 22 0:32 / /with\\040blank rw - xfs /dev/sdb rw
33 22 0:33 / /cvmfs/b.example.org ro,nodev - fuse.cvmfs cvmfs ro
nonsense
34 31 0:34 / /cvmfs/a.example.org ro,nodev - overlay overlay ro
";

    #[test]
    fn the_uppermost_mount_counts() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 6);
        let at = |place: &str| at(&mounts, Path::new(place)).map(|mount| mount.kind.as_str());
        assert_eq!(
            [at("/cvmfs/a.example.org"), at("/cvmfs/c"), at("/with blank")],
            [Some("overlay"), None, Some("xfs")]
        );
        let around = |path: &str| around(&mounts, Path::new(path)).map(|mount| mount.kind.as_str());
        assert_eq!(
            [around("/var/lib/x"), around("/cvmfs/a.example.org/x"), around("/cvmfs/c")],
            [Some("ext4"), Some("overlay"), Some("autofs")]
        );
        assert!(mounts[4].is_fuse() && !mounts[4].has("nosuid") && mounts[2].has("nosuid") && !mounts[0].is_fuse());
        assert!(automounter(&mounts, Path::new("/cvmfs/a.example.org")).is_some());
        assert!(automounter(&mounts, Path::new("/cvmfs2/x")).is_none());
    }
}
