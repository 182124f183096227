//! The repositories in `tests/fixtures`, which the reference implementation wrote: unpacked, with their listings.
//!
//! This file depends on no crate of ours, so that tests of any of them can take it in.
//!
//! Fixtures that may not be copied into this tree are looked for in the directory that the environment
//! variable `CVMFS_FIXTURES` names (default: `../shared/fixtures` beside the tree).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::Value;
use tempfile::TempDir;

/// Names of the fixtures in this tree.
pub const NAMES: [&str; 12] = [
    "basic",
    "basic-s1",
    "chunked",
    "hardlinks",
    "shake",
    "rmd",
    "plain",
    "gc-before",
    "gc",
    "updates-r2",
    "updates-r3",
    "updates-r4",
];

/// The directory of the fixtures in this tree.
pub fn directory() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut candidates = here.ancestors().map(|a| a.join("tests/fixtures"));
    candidates.find(|d| d.is_dir()).expect("tests/fixtures is part of the source tree")
}

/// Directory that holds this fixture, here or outside; `None` if there is no such fixture.
fn home(name: &str) -> Option<PathBuf> {
    let here = directory();
    let outside = std::env::var_os("CVMFS_FIXTURES").map(PathBuf::from);
    let outside = outside.unwrap_or_else(|| here.join("../../../shared/fixtures"));
    [here, outside].into_iter().find(|d| d.join(format!("{name}.tar.zst")).is_file())
}

/// Content of a storage: every file by its path below the root.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The storage of a fixture of this tree, in memory.
pub fn files(name: &str) -> Files {
    let archive = File::open(directory().join(format!("{name}.tar.zst"))).expect("archive of the fixture");
    let mut archive = tar::Archive::new(zstd::Decoder::new(archive).expect("zstd archive"));
    let mut files = Files::new();
    for entry in archive.entries().expect("tar archive") {
        let mut entry = entry.expect("tar entry");
        if entry.header().entry_type().is_file() {
            let path = entry.path().expect("a path").to_string_lossy().into_owned();
            let (_, below) = path.split_once('/').expect("one top directory");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content of a tar entry");
            files.insert(below.to_owned(), content);
        }
    }
    files
}

/// The fixture that a case of `damaged/` is about.
pub fn base_of(case: &str) -> String {
    let about = fs::read(directory().join("damaged").join(case).join("about.json")).expect("about.json");
    let about: Value = serde_json::from_slice(&about).expect("JSON");
    about["base"].as_str().expect("name of the base").to_owned()
}

/// Applies the changes of a case of `damaged/` to its base.
pub fn damage(files: &mut Files, case: &str) {
    let changes = directory().join("damaged").join(case);
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let Ok(entries) = fs::read_dir(changes.join("overlay").join(&path)) else { continue };
        for entry in entries.map(|e| e.expect("an entry")) {
            let below = Path::new(&path).join(entry.file_name()).to_string_lossy().into_owned();
            match entry.file_type().expect("a type").is_dir() {
                true => pending.push(below),
                false => drop(files.insert(below, fs::read(entry.path()).expect("a file"))),
            }
        }
    }
    for path in fs::read_to_string(changes.join("delete.txt")).expect("delete.txt").lines() {
        files.remove(path).expect("a file to delete");
    }
}

/// An unpacked repository; its files go when this is dropped.
#[derive(Debug)]
pub struct Fixture {
    /// Fully qualified repository name.
    pub fqrn: String,
    /// Storage: what a web server would export as `/cvmfs/FQRN`.
    pub storage: PathBuf,
    /// Public master key, PEM.
    pub public_key: String,
    home: PathBuf,
    name: String,
    directory: TempDir,
}

impl Fixture {
    /// Unpacks a fixture; `None` if it is not there, which only those outside of this tree may be.
    pub fn find(name: &str) -> Option<Fixture> {
        let home = home(name)?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let archive = File::open(home.join(format!("{name}.tar.zst"))).expect("archive of the fixture");
        let plain = zstd::Decoder::new(archive).expect("zstd archive");
        tar::Archive::new(plain).unpack(directory.path()).expect("unpacked archive");
        let mut tops = fs::read_dir(directory.path()).expect("unpacked archive").map(|e| e.expect("entry").path());
        let storage = tops.next().expect("one top directory");
        let fqrn = storage.file_name().expect("a name").to_string_lossy().into_owned();
        let public_key = fs::read_to_string(home.join(format!("{name}.pub"))).expect("public key of the fixture");
        Some(Fixture { fqrn, storage, public_key, home, name: name.to_owned(), directory })
    }

    /// Unpacks a fixture of this tree.
    pub fn unpack(name: &str) -> Fixture {
        Fixture::find(name).unwrap_or_else(|| panic!("no fixture {name}"))
    }

    /// Unpacks the repository that a case of `damaged/` is about, and damages it.
    pub fn damaged(case: &str) -> Fixture {
        let fixture = Fixture::unpack(&base_of(case));
        fixture.apply(case);
        fixture
    }

    /// Applies the changes of a case of `damaged/`.
    pub fn apply(&self, case: &str) {
        let changes = directory().join("damaged").join(case);
        let overlay = changes.join("overlay");
        if overlay.is_dir() {
            copy_tree(&overlay, &self.storage);
        }
        for path in fs::read_to_string(changes.join("delete.txt")).expect("delete.txt").lines() {
            fs::remove_file(self.storage.join(path)).expect("a file to delete");
        }
    }

    /// Moves on to another fixture of the same repository, as a publish would: objects are added, files replaced.
    pub fn advance(&self, name: &str) {
        copy_tree(&Fixture::unpack(name).storage, &self.storage);
    }

    /// The directory that holds the storage under the repository's name.
    pub fn top(&self) -> &Path {
        self.directory.path()
    }

    /// What the reference client showed.
    pub fn listing(&self) -> Vec<Item> {
        let file = File::open(self.home.join(format!("{}.listing.jsonl", self.name))).expect("listing");
        BufReader::new(file).lines().map(|line| Item::parse(&line.expect("a line"))).collect()
    }

    /// What the databases hold.
    pub fn info(&self) -> Value {
        let text = fs::read(self.home.join(format!("{}.info.json", self.name))).expect("info.json");
        serde_json::from_slice(&text).expect("JSON")
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_tree(&entry.path(), &target),
            false => {
                // Objects are immutable and may be read at this moment: replace, don't overwrite.
                let _ = fs::remove_file(&target);
                fs::copy(entry.path(), &target).expect("a copy");
            }
        }
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the listings, see tests/fixtures/README.md")]
pub struct Item {
    pub path: Vec<u8>,
    pub kind: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    pub mtime_ns: u32,
    pub nlink: u32,
    /// Target with variables expanded.
    pub target: Option<Vec<u8>>,
    /// Target as published, where it differs.
    pub rawlink: Option<Vec<u8>>,
    pub rdev: Option<(u32, u32)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sha256: Option<String>,
    pub object: Option<String>,
    pub chunks: Option<u64>,
    pub compression: Option<String>,
}

impl Item {
    fn parse(line: &str) -> Item {
        let value: Value = serde_json::from_str(line).expect("a JSON object a line");
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let bytes = |key: &str| match value[format!("{key}_b64")].as_str() {
            Some(encoded) => Some(base64(encoded)),
            None => text(key).map(String::into_bytes),
        };
        let number = |key: &str| value[key].as_i64().unwrap_or_else(|| panic!("{key} of {line}"));
        let small = |key: &str| u32::try_from(number(key)).unwrap_or_else(|_| panic!("{key} of {line}"));
        let xattrs = value["xattrs"].as_object().into_iter().flatten();
        Item {
            path: bytes("path").expect("a path"),
            kind: text("type").expect("a type"),
            mode: u32::from_str_radix(&text("mode").expect("a mode"), 8).expect("an octal mode"),
            uid: small("uid"),
            gid: small("gid"),
            size: number("size") as u64,
            mtime: number("mtime"),
            mtime_ns: small("mtime_ns"),
            nlink: small("nlink"),
            target: bytes("target"),
            rawlink: bytes("rawlink"),
            rdev: value["rdev_major"].is_number().then(|| (small("rdev_major"), small("rdev_minor"))),
            xattrs: xattrs.map(|(k, v)| (k.clone().into_bytes(), base64(v.as_str().expect("base64")))).collect(),
            sha256: text("sha256"),
            object: text("object"),
            chunks: value["chunks"].as_u64(),
            compression: text("compression"),
        }
    }
}
