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

/// Reads what applies to a repository; later files win. Gives the directory of the configuration repository's
/// files, if one is configured.
///
/// Facts: default.conf, default.d, the configuration repository's default.conf, default.local, then the
/// domain's and the repository's own files, each preceded by that of the configuration repository.
pub(super) fn read_all(directory: &Path, fqrn: &str, into: &mut Parameters) -> Result<Option<PathBuf>, ConfigError> {
    let mut reader = Reader { parameters: into, frozen: BTreeSet::new() };
    let shared = reader.read_defaults(directory, fqrn)?;
    let domain = fqrn.split_once('.').map_or(fqrn, |(_, domain)| domain);
    let common = |file: String| shared.as_ref().map(|base| base.join(file));
    let files = [
        common(format!("domain.d/{domain}.conf")),
        Some(directory.join(format!("domain.d/{domain}.conf"))),
        Some(directory.join(format!("domain.d/{domain}.local"))),
        common(format!("config.d/{fqrn}.conf")),
        Some(directory.join(format!("config.d/{fqrn}.conf"))),
        Some(directory.join(format!("config.d/{fqrn}.local"))),
    ];
    files.into_iter().flatten().try_for_each(|file| reader.read(&file))?;
    Ok(shared)
}

/// The mountpoints of all repositories that CVMFS_REPOSITORIES names, after the files that concern all
/// repositories, and where a repository of any other name would be mounted.
pub fn repositories(directory: &Path) -> Result<(Vec<PathBuf>, PathBuf), ConfigError> {
    let mut parameters = Parameters::default();
    Reader { parameters: &mut parameters, frozen: BTreeSet::new() }.read_defaults(directory, "")?;
    let mounts = PathBuf::from(parameters.effective("CVMFS_MOUNT_DIR"));
    let domain = parameters.effective("CVMFS_DEFAULT_DOMAIN");
    let complete = |name: &str| match name.contains('.') || domain.is_empty() {
        true => name.to_owned(),
        false => format!("{name}.{domain}"),
    };
    let all = words(parameters.effective("CVMFS_REPOSITORIES")).map(|name| mounts.join(complete(name))).collect();
    Ok((all, mounts))
}

/// The words of a list: separated by commas or white space.
pub(super) fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
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
    /// Reads what concerns all repositories.
    fn read_defaults(&mut self, directory: &Path, fqrn: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.read(&directory.join("default.conf"))?;
        for file in sorted_conf_files(&directory.join("default.d")) {
            self.read(&file)?;
        }
        // A configuration repository never applies to itself; its name is fixed after default.d.
        let name = self.parameters.text("CVMFS_CONFIG_REPOSITORY", fqrn).filter(|name| name != fqrn);
        let shared =
            name.map(|name| Path::new(self.parameters.effective("CVMFS_MOUNT_DIR")).join(name).join("etc/cvmfs"));
        if let Some(shared) = &shared {
            self.read(&shared.join("default.conf"))?;
        }
        self.read(&directory.join("default.local"))?;
        Ok(shared)
    }

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
    fn a_configuration_repository_comes_before_the_files_of_the_machine() {
        let mounts = tempfile::tempdir().unwrap();
        let shared = mounts.path().join("config.example.org/etc/cvmfs");
        for (file, text) in [
            ("default.conf", "A=shared\nB=shared\nG=shared\n"),
            ("domain.d/example.org.conf", "C=shared\nD=shared\n"),
            ("config.d/images.example.org.conf", "E=shared\nF=shared\n"),
        ] {
            std::fs::create_dir_all(shared.join(file).parent().unwrap()).unwrap();
            std::fs::write(shared.join(file), text).unwrap();
        }
        let default = format!("CVMFS_MOUNT_DIR={}\nA=conf\n", mounts.path().display());
        let files = [
            ("default.conf", default.as_str()),
            ("default.d/50.conf", "CVMFS_CONFIG_REPOSITORY=config.example.org\n"),
            // Too late to have an effect.
            ("default.local", "B=local\nCVMFS_CONFIG_REPOSITORY=other.example.org\n"),
            ("domain.d/example.org.conf", "D=conf\n"),
            ("config.d/images.example.org.conf", "F=conf\n"),
        ];
        let parameters = read(&files, "images.example.org").unwrap();
        let values = ["A", "B", "C", "D", "E", "F", "G"].map(|name| parameters.get(name).unwrap());
        assert_eq!(values, ["shared", "local", "shared", "conf", "shared", "conf", "shared"]);
        let itself = read(&files, "config.example.org").unwrap();
        assert_eq!((itself.get("A"), itself.get("G"), itself.get("C")), (Some("conf"), None, None));
    }

    #[test]
    fn repositories_of_the_machine_have_their_mountpoints() {
        let directory = tempfile::tempdir().unwrap();
        let text = "CVMFS_REPOSITORIES=a.example.org,b\nCVMFS_DEFAULT_DOMAIN=cern.ch\nCVMFS_MOUNT_DIR=/m\n";
        std::fs::write(directory.path().join("default.local"), text).unwrap();
        let (all, mounts) = repositories(directory.path()).unwrap();
        assert_eq!(all, [Path::new("/m/a.example.org"), Path::new("/m/b.cern.ch")]);
        assert_eq!(mounts, Path::new("/m"));
        assert_eq!(repositories(Path::new("/nonexistent")).unwrap(), (Vec::new(), PathBuf::from("/cvmfs")));
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
