//! What `-o` takes: parameters, symlink variables, mount options.
//!
//! `NAME=value` with an upper-case name sets a parameter or a variable of links, `unset=NAME` takes either
//! away, `passthrough=` is short for `CVMFS_PASSTHROUGH=`. Everything else is a mount option of fstab, systemd or the mount helper.

use super::{ConfigError, Origin, Parameters};

/// Mount options that say what is so anyway, or concern others (fstab, systemd, the mount helper).
const IGNORED: [&str; 31] = [
    "",
    "ro",
    "nosuid",
    "nodev",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "exec",
    "async",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "allow_other",
    "default_permissions",
    "system_mount",
    "grab_mountpoint",
    "nonempty",
    "uid",
    "gid",
    "fsname",
    "comment",
];

/// Options that ask for what is never so.
const OVERRULED: [&str; 3] = ["rw", "suid", "dev"];

/// Puts options among the parameters; tells whether `noexec` was among them.
pub(super) fn apply(options: &[String], parameters: &mut Parameters) -> Result<bool, ConfigError> {
    let mut noexec = false;
    for list in options {
        let mut current: Option<(String, String)> = None;
        for piece in list.split(',') {
            let (name, value) = piece.split_once('=').map_or((piece, None), |(name, value)| (name, Some(value)));
            let upper = name.starts_with("CVMFS_") || name.bytes().all(|b| !b.is_ascii_lowercase());
            let is_parameter = is_parameter_name(name) && upper;
            match value {
                Some(value) if is_parameter => {
                    set(&mut current, parameters);
                    current = Some((name.to_owned(), value.to_owned()));
                }
                Some(value) if name == "passthrough" => {
                    set(&mut current, parameters);
                    parameters.set("CVMFS_PASSTHROUGH", value.to_owned(), Origin::Option);
                }
                Some(value) if name == "unset" && is_parameter_name(value) => {
                    set(&mut current, parameters);
                    parameters.unset(value);
                }
                _ if name == "noexec" => noexec = true,
                _ if OVERRULED.contains(&name) => {
                    tracing::warn!(option = name, "ignored: the mount is always ro,nosuid,nodev");
                }
                _ if IGNORED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {}
                _ => match &mut current {
                    // A comma inside of a value.
                    Some((_, value)) => {
                        value.push(',');
                        value.push_str(piece);
                    }
                    None => return Err(ConfigError::MountOption(piece.to_owned())),
                },
            }
        }
        set(&mut current, parameters);
    }
    Ok(noexec)
}

fn set(current: &mut Option<(String, String)>, parameters: &mut Parameters) {
    if let Some((name, value)) = current.take() {
        parameters.set(&name, value, Origin::Option);
    }
}

/// Whether `name` can be a parameter.
pub fn is_parameter_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_have_commas_and_names_can_be_unset() {
        let mut p = Parameters::default();
        let options = ["A=1,ro,B=x,y,z,noexec,CVMFS_CACHE_ram_TYPE=2", "unset=A,C=3", "D=4,unset=D", "unset=E,E=5"]
            .map(String::from);
        assert!(apply(&options, &mut p).unwrap());
        let values: Vec<(&str, &str)> = p.iter().map(|(name, value, _)| (name, value)).collect();
        assert_eq!(values, [("B", "x,y,z"), ("C", "3"), ("CVMFS_CACHE_ram_TYPE", "2"), ("E", "5")]);
        assert!(p.is_unset("A") && p.is_unset("D") && !p.is_unset("E"));
        for wrong in ["bogus", "lower=1", "unset=", "unset=no-name"] {
            let error = apply(&[wrong.to_owned()], &mut p).unwrap_err();
            assert!(matches!(&error, ConfigError::MountOption(o) if o == wrong), "{error}");
        }
    }
}
