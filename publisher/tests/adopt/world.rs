//! The program, archives, and looks at a storage.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use cvmfs::hash::ObjectKind;
use cvmfs::history::{History, Tag};
use cvmfs::object::Compression;
use cvmfs::store::{LocalStore, fetch};

use super::stock::Stock;

/// What the program said.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> serde_json::Value {
        assert_eq!(self.status, Some(0), "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_default()
    }

    #[track_caller]
    pub fn refused(self, status: i32, reason: &str) {
        assert_eq!(self.status, Some(status), "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(reason), "{}", self.stderr);
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Stock {
    /// The program on this machine, with answers for programs.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.plain_command(&[&["--json"], arguments].concat())
    }

    /// The program on this machine. It is told nothing of where the repository is.
    pub fn plain_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cvmfs-publisher"));
        command
            .env("CVMFS_PUBLISHER_CONFIG_DIR", &self.etc)
            .arg("--state")
            .arg(&self.state)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments))
    }

    /// Runs it with answers for people.
    pub fn run_plain(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.plain_command(arguments))
    }

    /// Ingests files below a directory.
    pub fn ingest(&self, base: &str, files: &[(&str, &[u8])]) -> Ran {
        let archive = self.state.with_file_name("archive.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap().sync_all().unwrap();
        self.run(&["ingest", &self.fqrn, "--tar", archive.to_str().unwrap(), "--base", base])
    }

    /// Fails unless check finds the repository sound, every object included.
    #[track_caller]
    pub fn assert_sound(&self) {
        let ran = self.run(&["check", &self.fqrn, "--data"]);
        assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    }

    pub fn tags(&self) -> BTreeMap<String, Tag> {
        let id = self.manifest().history.unwrap().object(ObjectKind::History);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        fetch(&LocalStore::open(&self.storage), id, Compression::Zlib, u64::MAX, &mut file).unwrap();
        let history = History::read(file.path()).unwrap();
        history.tags.into_iter().map(|tag| (tag.name.clone(), tag)).collect()
    }
}
