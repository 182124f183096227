//! Reads configuration files the way the field writes them: as shell fragments.
//!
//! Admins use conditionals, `readonly`, `export` and references to other parameters in these files, so a
//! shell evaluates them. Each file runs in a shell of its own that sees the parameters found so far as its
//! environment; afterwards the value of every name that the file assigns is read back. Only lines of the
//! form `NAME=value` (after `export` or `readonly`) declare a name, as in the reference client. A name once
//! declared `readonly` keeps its value.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{ConfigError, Origin, Parameters};

/// Files that apply to a repository, in the order in which they are read; later ones win.
///
/// Facts: default.conf, default.d, the configuration repository's default.conf, default.local, then the
/// domain's and the repository's own files, each preceded by that of the configuration repository.
pub(super) fn read_all(directory: &Path, fqrn: &str, into: &mut Parameters) -> Result<(), ConfigError> {
    let mut reader = Reader { parameters: into, frozen: BTreeSet::new() };
    reader.read(&directory.join("default.conf"))?;
    for file in sorted_conf_files(&directory.join("default.d")) {
        reader.read(&file)?;
    }
    // A configuration repository never applies to itself; its name is fixed after default.d.
    let value =
        |reader: &Reader<'_>, name: &str| reader.parameters.get(name).filter(|v| !v.is_empty()).map(str::to_owned);
    let config_repository = value(&reader, "CVMFS_CONFIG_REPOSITORY").filter(|name| name != fqrn).map(|name| {
        let mounts = value(&reader, "CVMFS_MOUNT_DIR").unwrap_or_else(|| "/cvmfs".into());
        Path::new(&mounts).join(name).join("etc/cvmfs")
    });
    let shared = |file: PathBuf| config_repository.as_ref().map(|base| base.join(file));
    let domain = fqrn.split_once('.').map_or(fqrn, |(_, domain)| domain);
    let files = [
        shared("default.conf".into()),
        Some(directory.join("default.local")),
        shared(format!("domain.d/{domain}.conf").into()),
        Some(directory.join(format!("domain.d/{domain}.conf"))),
        Some(directory.join(format!("domain.d/{domain}.local"))),
        shared(format!("config.d/{fqrn}.conf").into()),
        Some(directory.join(format!("config.d/{fqrn}.conf"))),
        Some(directory.join(format!("config.d/{fqrn}.local"))),
    ];
    files.into_iter().flatten().try_for_each(|file| reader.read(&file))
}

fn sorted_conf_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> =
        entries.map(|e| e.path()).filter(|p| p.extension() == Some(OsStr::new("conf"))).collect();
    files.sort();
    files
}

struct Reader<'a> {
    parameters: &'a mut Parameters,
    frozen: BTreeSet<String>,
}

impl Reader<'_> {
    fn read(&mut self, file: &Path) -> Result<(), ConfigError> {
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(ConfigError::Read { path: file.to_owned(), source }),
        };
        let declared = declarations(&text);
        let names: Vec<&String> = declared.keys().filter(|name| !self.frozen.contains(*name)).collect();
        let values = evaluate(file, &names, self.parameters)?;
        for (name, value) in names.iter().zip(values) {
            self.parameters.set(name, value, Origin::File(file.to_owned()));
        }
        self.frozen.extend(declared.into_iter().filter(|(_, readonly)| *readonly).map(|(name, _)| name));
        Ok(())
    }
}

/// Names that a file assigns, and whether it makes them read-only.
fn declarations(text: &[u8]) -> BTreeMap<String, bool> {
    let mut names = BTreeMap::new();
    for line in text.split(|b| *b == b'\n') {
        let Ok(mut line) = std::str::from_utf8(line).map(str::trim_start) else { continue };
        let mut readonly = false;
        while let Some((word, rest)) = line.split_once([' ', '\t']) {
            match word {
                "readonly" => readonly = true,
                "export" => {}
                _ => break,
            }
            line = rest.trim_start();
        }
        let Some((name, _)) = line.split_once('=') else { continue };
        if super::is_parameter_name(name) {
            *names.entry(name.to_owned()).or_insert(false) |= readonly;
        }
    }
    names
}

/// Values of `names` after the shell has read `file`.
fn evaluate(file: &Path, names: &[&String], environment: &Parameters) -> Result<Vec<String>, ConfigError> {
    // The marker tells our output from what the file itself may print.
    const MARKER: &[u8] = b"\0cvmfs-client\0";
    let shell = |source| ConfigError::Read { path: PathBuf::from("/bin/sh"), source };
    let mut script = String::from(". \"$0\"\nprintf '\\000cvmfs-client\\000'\n");
    for name in names {
        // Safe to paste: `declarations` lets only [A-Za-z_][A-Za-z0-9_]* through.
        script.push_str(&format!("printf '%s\\000' \"${{{name}-}}\"\n"));
    }
    // A relative name would be searched in PATH by the shell's dot command.
    let absolute = std::path::absolute(file).map_err(|source| ConfigError::Read { path: file.to_owned(), source })?;
    let output = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .arg(OsStr::from_bytes(absolute.as_os_str().as_bytes()))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(environment.iter().map(|(name, value, _)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .map_err(shell)?;
    let after =
        output.stdout.windows(MARKER.len()).rposition(|w| w == MARKER).map(|at| &output.stdout[at + MARKER.len()..]);
    let Some(after) = after else {
        let says = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ConfigError::Shell { path: file.to_owned(), says });
    };
    Ok(after.split(|b| *b == 0).take(names.len()).map(|v| String::from_utf8_lossy(v).into_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)], fqrn: &str) -> Result<Parameters, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut parameters = Parameters::default();
        read_all(directory.path(), fqrn, &mut parameters)?;
        Ok(parameters)
    }

    #[test]
    fn later_and_more_specific_files_win() {
        let files = [
            ("default.conf", "A=default\nB=default\nC=default\nD=default\nE=default\nF=default\n"),
            ("default.d/10.conf", "B=ten\nC=ten\n"),
            ("default.d/20.conf", "B=twenty\n"),
            ("default.d/ignored.txt", "B=ignored\n"),
            ("default.local", "C=local\n"),
            ("domain.d/example.org.conf", "D=domain\nE=domain\nF=domain\n"),
            ("domain.d/example.org.local", "E=domain-local\n"),
            ("config.d/images.example.org.conf", "F=repository\n"),
            ("config.d/other.example.org.conf", "A=other\n"),
        ];
        let parameters = read(&files, "images.example.org").unwrap();
        for (name, value) in [
            ("A", "default"),
            ("B", "twenty"),
            ("C", "local"),
            ("D", "domain"),
            ("E", "domain-local"),
            ("F", "repository"),
        ] {
            assert_eq!(parameters.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn files_are_shell() {
        let text = "BASE=http://s\nexport URL=\"$BASE/cvmfs\"\nif [ -z \"$UNSET\" ]; then\n  CHOSEN=yes\nelse\n  CHOSEN=no\nfi\n\
                    # COMMENT=1\nreadonly FIXED=first\necho noise\nQUOTED='a b  c'\nnot a line\n";
        let files = [("default.conf", text), ("default.local", "FIXED=second\nURL=$URL/x\n")];
        let parameters = read(&files, "a.b").unwrap();
        for (name, value) in [("URL", "http://s/cvmfs/x"), ("CHOSEN", "yes"), ("FIXED", "first"), ("QUOTED", "a b  c")]
        {
            assert_eq!(parameters.get(name), Some(value), "{name}");
        }
        assert_eq!(parameters.get("COMMENT"), None);
    }

    #[test]
    fn a_broken_file_is_named() {
        let error = read(&[("default.conf", "A=1\nif then\n")], "a.b").unwrap_err();
        assert!(matches!(&error, ConfigError::Shell { path, .. } if path.ends_with("default.conf")), "{error}");
    }
}
