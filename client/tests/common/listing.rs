//! Compares a mounted tree with the listing that the reference client gave of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// Facts about one path, as listings have them.
pub type Facts = Map<String, Value>;

/// The listing of a fixture, by path bytes.
pub fn expected(fixture: &str) -> BTreeMap<Vec<u8>, Facts> {
    let text = std::fs::read_to_string(super::about(fixture, "listing.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut facts: Facts = serde_json::from_str(line).unwrap();
            let path = bytes(&mut facts, "path");
            // Text and bytes say the same.
            if facts.contains_key("target") {
                let target = bytes(&mut facts, "target");
                facts.insert("target".into(), json!(STANDARD.encode(target)));
            }
            (path, facts)
        })
        .collect()
}

fn bytes(facts: &mut Facts, name: &str) -> Vec<u8> {
    let text = facts.remove(name).unwrap();
    match facts.remove(&format!("{name}_b64")) {
        Some(encoded) => STANDARD.decode(encoded.as_str().unwrap()).unwrap(),
        None => text.as_str().unwrap().as_bytes().to_vec(),
    }
}

/// What a client shows that was started by name: the listings were taken without `CVMFS_FQRN`, which it always sets.
pub fn expected_by_name(fixture: &str) -> BTreeMap<Vec<u8>, Facts> {
    let mut expected = expected(fixture);
    if let Some(facts) = expected.get_mut(&b"/links/var-fqrn"[..]) {
        let target = format!("/cvmfs/{}/links/target", super::fqrn(fixture));
        facts.insert("size".into(), json!(target.len()));
        facts.insert("target".into(), json!(STANDARD.encode(target)));
    }
    expected
}

/// The same facts, taken from a mount. What cannot be had is `{"error": NUMBER}`, for what a listing shows, and for what
/// only those of `expected` know that no listing shows.
pub fn actual_and_errors(mountpoint: &Path, expected: &BTreeMap<Vec<u8>, Facts>) -> BTreeMap<Vec<u8>, Facts> {
    let mut found = BTreeMap::new();
    walk(mountpoint, b"/", &mut found);
    for path in expected.keys() {
        if !found.contains_key(path) {
            match facts(&full(mountpoint, path)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => drop(found.insert(path.clone(), other.unwrap_or_else(failure))),
            }
        }
    }
    found
}

/// The same facts, taken from a mount where nothing fails.
pub fn actual(mountpoint: &Path) -> BTreeMap<Vec<u8>, Facts> {
    let mut found = BTreeMap::new();
    walk(mountpoint, b"/", &mut found);
    for (path, facts) in &found {
        assert!(!facts.contains_key("error"), "{}: {facts:?}", String::from_utf8_lossy(path));
    }
    found
}

fn full(mountpoint: &Path, path: &[u8]) -> PathBuf {
    mountpoint.join(OsStr::from_bytes(path.strip_prefix(b"/").unwrap()))
}

#[allow(clippy::needless_pass_by_value, reason = "it is handed to functions that end with an error")]
fn failure(error: std::io::Error) -> Facts {
    Facts::from_iter([("error".to_owned(), json!(error.raw_os_error()))])
}

fn walk(mountpoint: &Path, path: &[u8], found: &mut BTreeMap<Vec<u8>, Facts>) {
    let full = full(mountpoint, path);
    found.insert(path.to_vec(), facts(&full).unwrap_or_else(failure));
    if !std::fs::symlink_metadata(&full).is_ok_and(|m| m.is_dir()) {
        return;
    }
    let entries = match std::fs::read_dir(&full).and_then(|entries| entries.collect::<Result<Vec<_>, _>>()) {
        Ok(entries) => entries,
        Err(error) => return drop(found.insert(path.to_vec(), failure(error))),
    };
    for entry in entries {
        let child = [if path == b"/" { &b""[..] } else { path }, b"/", entry.file_name().as_bytes()].concat();
        if let Ok(metadata) = entry.metadata() {
            assert_eq!(entry.ino(), metadata.ino(), "inode in the listing of {}", full.display());
        }
        walk(mountpoint, &child, found);
    }
}

trait Ino {
    fn ino(&self) -> u64;
}

impl Ino for std::fs::DirEntry {
    fn ino(&self) -> u64 {
        std::os::unix::fs::DirEntryExt::ino(self)
    }
}

fn facts(path: &Path) -> std::io::Result<Facts> {
    let metadata = std::fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let name = match () {
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () => "file",
    };
    let mut facts = Facts::new();
    let mut set = |name: &str, value: Value| drop(facts.insert(name.into(), value));
    set("type", json!(name));
    set("mode", json!(format!("{:04o}", metadata.mode() & 0o7777)));
    set("uid", json!(metadata.uid()));
    set("gid", json!(metadata.gid()));
    set("size", json!(metadata.size()));
    set("mtime", json!(metadata.mtime()));
    set("mtime_ns", json!(metadata.mtime_nsec()));
    set("nlink", json!(metadata.nlink()));
    let attribute = |name: &str| xattr::get(path, name).unwrap().map(|v| String::from_utf8(v).unwrap());
    match name {
        "symlink" => {
            let target = std::fs::read_link(path).unwrap().into_os_string().into_vec();
            let raw = xattr::get(path, "xfsroot.rawlink").unwrap().unwrap();
            if raw != target {
                set("rawlink", json!(String::from_utf8(raw).unwrap()));
            }
            set("target", json!(STANDARD.encode(target)));
        }
        "char" | "block" => {
            set("rdev_major", json!(nix::sys::stat::major(metadata.rdev())));
            set("rdev_minor", json!(nix::sys::stat::minor(metadata.rdev())));
        }
        "file" => {
            set("sha256", json!(hash(path)?));
            if let Some(object) = attribute("user.hash") {
                set("object", json!(object));
            }
            set("chunks", json!(attribute("user.chunks").unwrap().parse::<u64>().unwrap()));
            set("compression", json!(attribute("user.compression").unwrap()));
        }
        _ => {}
    }
    let names = xattr::list(path).unwrap();
    let xattrs: Facts = names
        .map(|name| {
            (name.to_string_lossy().into_owned(), json!(STANDARD.encode(xattr::get(path, &name).unwrap().unwrap())))
        })
        .collect();
    if !xattrs.is_empty() {
        set("xattrs", Value::Object(xattrs));
    }
    Ok(facts)
}

fn hash(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hasher) = (std::fs::File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Nothing, or what differs, one line a fact.
pub fn difference(expected: &BTreeMap<Vec<u8>, Facts>, actual: &BTreeMap<Vec<u8>, Facts>) -> String {
    let mut text = String::new();
    let shown = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
    for (path, facts) in expected {
        match actual.get(path) {
            None => drop(writeln!(text, "missing: {}", shown(path))),
            Some(found) if found == facts => {}
            Some(found) => {
                for name in facts.keys().chain(found.keys().filter(|name| !facts.contains_key(*name))) {
                    if facts.get(name) != found.get(name) {
                        let _ = writeln!(
                            text,
                            "{}: {name} is {:?}, not {:?}",
                            shown(path),
                            found.get(name),
                            facts.get(name)
                        );
                    }
                }
            }
        }
    }
    for path in actual.keys().filter(|path| !expected.contains_key(*path)) {
        let _ = writeln!(text, "not in the listing: {}", shown(path));
    }
    text
}
