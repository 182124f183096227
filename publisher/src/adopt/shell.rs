//! The settings in a file that is a shell script.
//!
//! The reference tools source it, and so do we: a shell of its own reads the file with an empty environment and hands
//! over all variables that it then has. What the file prints is talk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::AdoptError;

/// Settings by name.
pub(super) type Settings = BTreeMap<String, String>;

/// What the file sets. Values that are no text lose what is none.
pub(super) fn read(file: &Path) -> Result<Settings, AdoptError> {
    // A file that is missing is no shell's business, and a name without a slash would be searched in PATH.
    let file = file.canonicalize().map_err(AdoptError::io("read", file))?;
    let output = Command::new("/bin/sh")
        .args(["-c", "set -a; . \"$0\" >&2; exec env -0"])
        .arg(&file)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(AdoptError::io("run a shell to read", &file))?;
    if !output.status.success() {
        let says = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(AdoptError::Config { config: file, what: format!("a shell cannot read it: {says}") });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server.conf");
        let text = "# comment\nCVMFS_A=plain\nCVMFS_B=\"$CVMFS_A and more\"\nexport CVMFS_C='x  y'\nif true; then CVMFS_D=yes; fi\n\
                    echo noise\nCVMFS_E=\nCVMFS_F=a=b\n[ -n \"$CVMFS_E\" ] && CVMFS_G=1\n";
        std::fs::write(&file, text).unwrap();
        let settings = read(&file).unwrap();
        let expected = [("A", "plain"), ("B", "plain and more"), ("C", "x  y"), ("D", "yes"), ("E", ""), ("F", "a=b")];
        for (name, value) in expected {
            assert_eq!(settings.get(&format!("CVMFS_{name}")).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(settings.get("HOME"), None, "our own environment stays out");
    }

    #[test]
    fn a_file_that_fails_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server.conf");
        assert!(read(&file).unwrap_err().to_string().contains("server.conf"));
        for text in ["CVMFS_A=1\nif then\n", "CVMFS_A=1\nexit 3\n"] {
            std::fs::write(&file, text).unwrap();
            let error = read(&file).unwrap_err().to_string();
            assert!(error.contains("server.conf: a shell cannot read it"), "{error}");
        }
    }
}
