//! `mount.cvmfs`, as mount(8) calls it for `mount -t cvmfs`, fstab, systemd and autofs: the same program by another name.
//!
//! ```text
//! mount.cvmfs FQRN DIRECTORY [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]   →   cvmfs-client mount FQRN DIRECTORY -o OPTIONS
//! ```
//! Source: mount(8), "External helpers" and "Exit status".

use std::ffi::OsString;
use std::path::Path;

use clap::Parser;

/// Mounts a CernVM-FS repository; called by mount(8) for the type cvmfs
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 120)]
struct Helper {
    /// Repository name; without a dot, CVMFS_DEFAULT_DOMAIN is appended
    fqrn: OsString,
    /// An existing directory
    mountpoint: OsString,
    /// Accepted: an option that is not known is an error all the same
    #[arg(short)]
    sloppy: bool,
    /// Do nothing
    #[arg(short)]
    fake: bool,
    /// Accepted: nothing is written to /etc/mtab anyway
    #[arg(short)]
    no_mtab: bool,
    /// Accepted
    #[arg(short)]
    verbose: bool,
    /// Accepted: mount(8) is in that namespace by then
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
    /// Accepted
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<OsString>,
    /// Options of fstab, and NAME=value for parameters
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

/// What this program is called then.
const NAME: &str = "mount.cvmfs";

/// Its exit status when something could not be mounted.
pub const FAILED: u8 = 32;

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// A mount, in the words of our own command line.
    Mount(Vec<OsString>),
    /// Nothing.
    Nothing,
    /// What we don't do.
    Remount,
}

/// The wish, if it is by mount(8) that we are called. Ends the program on wrong words.
pub fn wish(words: &[OsString]) -> Option<Wish> {
    let is_helper = Path::new(words.first()?).file_name()? == NAME;
    is_helper.then(|| Helper::parse_from(words).wish())
}

impl Helper {
    fn wish(self) -> Wish {
        if self.fake {
            return Wish::Nothing;
        }
        let pieces = || self.options.iter().flat_map(|list| list.split(','));
        if pieces().any(|piece| piece == "remount") {
            return Wish::Remount;
        }
        let mut words: Vec<OsString> = ["cvmfs-client", "mount"].map(OsString::from).into();
        for list in &self.options {
            // mount(8) says it wherever nobody said `ro`.
            let list = list.strip_prefix("rw").filter(|rest| rest.is_empty() || rest.starts_with(',')).unwrap_or(list);
            words.extend(["-o".into(), list.trim_start_matches(',').into()]);
        }
        words.extend(["--".into(), self.fqrn, self.mountpoint]);
        Wish::Mount(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish_of(line: &str) -> Option<Wish> {
        wish(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_mount_says_becomes_a_command_line() {
        let mount = |line: &str| match wish_of(line) {
            Some(Wish::Mount(words)) => words.join(std::ffi::OsStr::new(" ")).into_string().unwrap(),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(mount("/sbin/mount.cvmfs a.b /cvmfs/a.b"), "cvmfs-client mount -- a.b /cvmfs/a.b");
        assert_eq!(
            mount("/sbin/mount.cvmfs a.b /cvmfs/a.b -o rw,noexec,_netdev,CVMFS_QUOTA_LIMIT=10"),
            "cvmfs-client mount -o noexec,_netdev,CVMFS_QUOTA_LIMIT=10 -- a.b /cvmfs/a.b"
        );
        assert_eq!(
            mount("mount.cvmfs a.b /m -s -n -v -N /proc/1/ns/mnt -t cvmfs -o rw -o rwx"),
            "cvmfs-client mount -o  -o rwx -- a.b /m"
        );
        assert_eq!(wish_of("mount.cvmfs a.b /m -f"), Some(Wish::Nothing));
        assert_eq!(wish_of("mount.cvmfs a.b /m -o rw,remount"), Some(Wish::Remount));
        assert_eq!(wish_of("/usr/bin/cvmfs-client mount a.b /m"), None);
    }
}
