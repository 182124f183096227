//! Registers the snapshotter with an engine, and takes that back.
//!
//! ```text
//! files as they are ─▶ plan (pure) ─▶ shown as a difference ─▶ applied: backup, record, file
//!                                                               undone: only what nobody has changed since
//! ```
//! | module | plans |
//! |---|---|
//! | [`containerd`] | `config.toml` and its drop-in, by version |
//! | [`docker`] | `daemon.json` |
//! | [`k3s`] | templates of the containerd in k3s |
//! | [`units`] | units of systemd |
//! | [`record`] | what was done: applied, undone |
//! | [`difference`] | a difference, for people |
//!
//! Comments and the form of a file stay as they are. A file that already says the right thing is not touched, so installing twice is
//! installing once.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::config::Config;

pub mod containerd;
pub mod difference;
pub mod docker;
pub mod k3s;
pub mod record;
pub mod units;

/// What stands in front of what is added.
const MARK: &str = "Added by `cvmfs-snapshotter install`; `cvmfs-snapshotter uninstall` takes it out.";

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// a containerd of its own, with Kubernetes or without
    Containerd,
    /// Docker 24 or newer on the system's containerd
    Docker,
    /// k3s with its own containerd
    K3s,
}

/// What goes into configuration files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// the name of the snapshotter
    pub name: String,
    /// its socket
    pub address: String,
    /// its state directory
    pub root: String,
}

impl Settings {
    /// As the configuration has them.
    pub fn of(config: &Config) -> Self {
        Self {
            name: config.containerd.snapshotter.clone(),
            address: config.address.display().to_string(),
            root: config.root.display().to_string(),
        }
    }
}

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Finds a version in a text such as `containerd containerd.io 1.7.19 2bf793e` or `v2.1.9`.
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let word = word.trim_start_matches('v');
            let mut numbers = word.split(|c: char| !c.is_ascii_digit());
            let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            word[major_len(major)..].starts_with('.').then_some(Self(major, minor))
        })
    }
}

fn major_len(major: u32) -> usize {
    major.to_string().len()
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A file as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// which
    pub path: PathBuf,
    /// as it is; nothing if it is not there
    pub before: Option<String>,
    /// as it will be
    pub after: String,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// files, in the order in which they are written
    pub changes: Vec<Change>,
    /// what the administrator should know
    pub notes: Vec<String>,
    /// commands to go on with
    pub next: Vec<String>,
}

/// The files of a machine; a directory may stand for `/`.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Machine {
    /// A machine whose `/` is this directory.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a file of it is.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file; nothing if it is not there.
    pub fn read(&self, path: &Path) -> anyhow::Result<Option<String>> {
        let path = self.path(path);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

impl Plan {
    /// Plans for engines. The versions are those that are there, or that the administrator named.
    pub fn make(
        machine: &Machine,
        engines: &[Engine],
        settings: &Settings,
        binary: &Path,
        versions: &Versions,
    ) -> anyhow::Result<Self> {
        let mut plan = Self::default();
        let has = |engine| engines.contains(&engine);
        let mut services = Vec::new();
        for (name, text) in units::texts(settings, binary) {
            plan.set(machine, &Path::new("/etc/systemd/system").join(name), text)?;
        }
        if has(Engine::Containerd) || has(Engine::Docker) {
            let version = versions.containerd()?;
            let main = machine.read(Path::new(containerd::MAIN))?;
            let wants = if has(Engine::Containerd) { containerd::Wants::Kubernetes } else { containerd::Wants::Plugin };
            let planned = containerd::plan(version, main.as_deref(), wants, settings)
                .with_context(|| format!("{} can't be changed", containerd::MAIN))?;
            for (path, text) in planned.files {
                plan.set(machine, Path::new(path), text)?;
            }
            plan.notes.extend(planned.notes);
            services.push("containerd");
        }
        if has(Engine::Docker) {
            let version = versions.docker();
            if let Some(version) = version.filter(|version| *version < Version(24, 0)) {
                bail!("Docker {version} has no usable containerd image store; that begins with 24");
            }
            let path = Path::new(docker::FILE);
            let before = machine.read(path)?;
            let planned = docker::plan(before.as_deref(), settings)
                .with_context(|| format!("{} can't be changed", docker::FILE))?;
            plan.set(machine, path, planned.text)?;
            plan.notes.extend(planned.notes);
            services.push("docker");
        }
        if has(Engine::K3s) {
            let generated = machine.read(&Path::new(k3s::DIRECTORY).join("config.toml"))?;
            let version = match &generated {
                Some(text) if versions.named.is_none() => k3s::version(text),
                _ => None,
            };
            let version = version.map_or_else(|| versions.k3s(), Ok)?;
            let template = machine.read(&Path::new(k3s::DIRECTORY).join(k3s::template_name(version)))?;
            let planned = k3s::plan(version, generated.as_deref(), template.as_deref(), settings);
            for (path, text) in planned.files {
                plan.set(machine, &path, text)?;
            }
            plan.notes.extend(planned.notes);
            services.push("k3s");
        }
        plan.next = units::next(&services);
        Ok(plan)
    }

    /// Adds a file, if it is not like that already.
    fn set(&mut self, machine: &Machine, path: &Path, after: String) -> anyhow::Result<()> {
        let before = machine.read(path)?;
        if before.as_deref() != Some(after.as_str()) {
            self.changes.push(Change { path: path.to_owned(), before, after });
        }
        Ok(())
    }
}

/// Where versions come from.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    /// the version of containerd that the administrator named
    pub named: Option<Version>,
    /// look for the programs of this machine
    pub look: bool,
}

impl Versions {
    fn ask(&self, program: &str) -> Option<Version> {
        if !self.look {
            return None;
        }
        let output = std::process::Command::new(program).arg("--version").output().ok()?;
        Version::find(&String::from_utf8_lossy(&output.stdout))
    }

    fn containerd(&self) -> anyhow::Result<Version> {
        let version = self.named.or_else(|| self.ask("containerd"));
        version.context("no containerd was found to ask for its version; pass --containerd-version, for instance 1.7")
    }

    fn docker(&self) -> Option<Version> {
        self.ask("dockerd").or_else(|| self.ask("docker"))
    }

    fn k3s(&self) -> anyhow::Result<Version> {
        let version = self.named.or_else(|| self.ask("/var/lib/rancher/k3s/data/current/bin/containerd"));
        version.context("k3s has not run here yet, so the version of its containerd is not known; pass --containerd-version, 1.7 or 2.0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::of(&Config::default())
    }

    fn versions(text: &str) -> Versions {
        Versions { named: Version::find(text), look: false }
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Some(Version(1, 6))),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", Some(Version(2, 1))),
            ("containerd containerd.io 1.7.19 2bf793ef6dc9a18e00cb12efb64355c2c9d5eb41", Some(Version(1, 7))),
            ("containerd github.com/k3s-io/containerd v2.0.5-k3s1 ", Some(Version(2, 0))),
            ("Docker version 26.1.5+dfsg1, build a72d7cd", Some(Version(26, 1))),
            ("2.1", Some(Version(2, 1))),
            ("containerd", None),
            ("", None),
        ] {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    #[test]
    fn installing_twice_is_installing_once_and_uninstalling_leaves_no_trace() {
        for (engines, version) in [
            (&[Engine::Containerd][..], "1.7"),
            (&[Engine::Containerd], "2.1"),
            (&[Engine::Docker], "2.1"),
            (&[Engine::Containerd, Engine::Docker], "1.6"),
            (&[Engine::K3s], "1.7"),
            (&[Engine::K3s], "2.0"),
        ] {
            let root = tempfile::tempdir().unwrap();
            let machine = Machine::at(root.path());
            let main = machine.path(Path::new(containerd::MAIN));
            std::fs::create_dir_all(main.parent().unwrap()).unwrap();
            let original = "# mine\r\nversion = 2 # two\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n";
            std::fs::write(&main, original).unwrap();
            let tree = |root: &Path| {
                let mut found = Vec::new();
                let mut open = vec![root.to_owned()];
                while let Some(directory) = open.pop() {
                    for entry in std::fs::read_dir(directory).unwrap() {
                        let path = entry.unwrap().path();
                        if path.is_dir() {
                            open.push(path.clone());
                        }
                        found.push((path.clone(), std::fs::read(&path).ok()));
                    }
                }
                found.sort();
                found
            };
            let before = tree(root.path());
            let make = || {
                Plan::make(&machine, engines, &settings(), Path::new("/usr/bin/cvmfs-snapshotter"), &versions(version))
                    .unwrap()
            };
            let plan = make();
            assert!(plan.changes.len() >= 3, "{engines:?} {version}: {:?}", plan.changes);
            record::apply(&machine, &plan).unwrap();
            assert_eq!(make().changes, [], "{engines:?} {version}");
            let undone = record::undo(&machine, false).unwrap();
            assert_eq!(undone.left, [], "{engines:?} {version}");
            assert_eq!(undone.restored.len(), plan.changes.len());
            assert_eq!(tree(root.path()), before, "{engines:?} {version}");
        }
    }

    #[test]
    fn what_was_changed_by_hand_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        let binary = Path::new("/usr/bin/cvmfs-snapshotter");
        let plan = Plan::make(&machine, &[Engine::Docker], &settings(), binary, &versions("2.1")).unwrap();
        record::apply(&machine, &plan).unwrap();
        let file = machine.path(Path::new(docker::FILE));
        std::fs::write(&file, "{}").unwrap();
        let undone = record::undo(&machine, false).unwrap();
        assert_eq!(undone.left.len(), 1);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}");
        assert!(!machine.path(Path::new(containerd::DROP_IN)).exists());
        let again = record::undo(&machine, false).unwrap();
        assert!(again.restored.is_empty() && again.left.is_empty(), "what was left alone is forgotten: {again:?}");
    }
}
