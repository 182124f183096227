//! Archives made member by member, and a repository to ingest them into.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Parser as _;
use cvmfs::check::{Identity, Options, check};
use cvmfs::entry::{Entry, FileType};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use publisher::cli::{Cli, Command, Paths};
use publisher::ingest::{Ingested, ingest};
use publisher::target::{InitOptions, Target};
use time::UtcDateTime;

pub(super) const FQRN: &str = "software.example.org";

/// A member of an archive.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) flag: u8,
    pub(super) content: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    pub(super) device: (u32, u32),
    pub(super) pax: Vec<(String, Vec<u8>)>,
}

pub(super) fn member(name: impl AsRef<[u8]>, flag: u8, mode: u32) -> Member {
    let name = name.as_ref().to_vec();
    let (content, link, pax) = (Vec::new(), Vec::new(), Vec::new());
    Member { name, flag, content, link, mode, owner: (0, 0), device: (0, 0), pax }
}

pub(super) fn dir(name: impl AsRef<[u8]>) -> Member {
    member(name, b'5', 0o755)
}

pub(super) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    Member { content: content.as_ref().to_vec(), ..member(name, b'0', 0o644) }
}

pub(super) fn hard(name: &str, target: &str) -> Member {
    Member { link: target.into(), ..member(name, b'1', 0o644) }
}

pub(super) fn symlink(name: &str, target: &str) -> Member {
    Member { link: target.into(), ..member(name, b'2', 0o777) }
}

pub(super) fn device(name: &str, flag: u8, major: u32, minor: u32) -> Member {
    Member { device: (major, minor), ..member(name, flag, 0o600) }
}

impl Member {
    pub(super) fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }

    pub(super) fn owner(self, uid: u64, gid: u64) -> Member {
        Member { owner: (uid, gid), ..self }
    }

    pub(super) fn pax(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Member {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        for (key, value) in [("path", &self.name), ("linkpath", &self.link)] {
            if value.len() > 100 {
                pax.push((key.to_owned(), value.clone()));
            }
        }
        if !pax.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &pax {
                let rest = key.len() + value.len() + 3;
                let len = (1..).map(|digits| rest + digits).find(|len| rest + len.to_string().len() == *len).unwrap();
                records.extend(format!("{len} {key}=").bytes());
                records.extend(value);
                records.push(b'\n');
            }
            let header = Member { content: records, ..member("pax", b'x', 0o644) };
            header.write_plain(out);
        }
        self.write_plain(out);
    }

    pub(super) fn write_plain(&self, out: &mut Vec<u8>) {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        for (field, value) in [(&mut old.name, &self.name), (&mut old.linkname, &self.link)] {
            let len = value.len().min(100);
            field[..len].copy_from_slice(&value[..len]);
        }
        old.linkflag[0] = self.flag;
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_000_000_000);
        header.set_size(self.content.len() as u64);
        header.set_device_major(self.device.0).unwrap();
        header.set_device_minor(self.device.1).unwrap();
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(&self.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

pub(super) fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    members.iter().for_each(|member| member.write(&mut out));
    out.extend([0; 1024]);
    out
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that don't compress.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut x = 7u64;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) target: Target,
}

impl World {
    pub(super) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            storage: dir.path().join("storage").into(),
            keys: dir.path().join("keys"),
            state: dir.path().join("state"),
        };
        let options = InitOptions { ttl: 240, algorithm: Algorithm::Sha1, garbage_collectable: true };
        let target = Target::init(FQRN, paths, options).unwrap();
        World { dir, target }
    }

    pub(super) fn revision(&self) -> u64 {
        self.target.repository().unwrap().manifest().revision
    }

    pub(super) fn tar_file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs the command as typed; an archive is added where there is one.
    pub(super) fn try_ingest(&self, options: &str, tar: Option<&[u8]>) -> Result<Ingested, String> {
        let mut words = vec!["cvmfs-publisher".to_owned(), "ingest".to_owned(), FQRN.to_owned()];
        words.extend(options.split_whitespace().map(str::to_owned));
        if let Some(tar) = tar {
            words.extend(["--tar".to_owned(), self.tar_file(tar).to_str().unwrap().to_owned()]);
        }
        let Command::Ingest(arguments) = Cli::try_parse_from(words).unwrap().command else { panic!("not ingest") };
        ingest(&self.target, &arguments).map_err(|e| publisher::error::one_line(&e))
    }

    /// The same; it has to work, to leave a sound repository, and to publish exactly if the tree changes.
    pub(super) fn ingest(&self, options: &str, tar: Option<&[u8]>) -> Ingested {
        let (revision, tree) = (self.revision(), self.tree());
        let report = self.try_ingest(options, tar).unwrap_or_else(|e| panic!("{options}: {e}"));
        self.assert_sound(options);
        assert_eq!((report.revision_before, report.revision), (revision, self.revision()), "{options}");
        let changed = self.tree() != tree;
        assert_eq!(report.revision, revision + u64::from(changed), "{options}: published exactly if it changed");
        report
    }

    pub(super) fn assert_sound(&self, what: &str) {
        let scratch = tempfile::tempdir().unwrap();
        let mut options = Options::new(scratch.path());
        options.identity = Identity::Name(FQRN);
        let report = check(&*self.target.store, &options).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:#?}\n{}", report.findings, self.tree());
    }

    /// The whole tree, one line an entry, in the order of names.
    pub(super) fn tree(&self) -> String {
        let mut view = self.target.view(UtcDateTime::now()).unwrap();
        let mut lines = String::new();
        self.list(&mut view, &RepoPath::ROOT, &mut lines);
        lines
    }

    pub(super) fn list(&self, view: &mut Transaction, directory: &RepoPath, lines: &mut String) {
        let mut entries = view.list(directory).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in entries.iter().filter(|e| !e.flags.is_hidden()) {
            let path = directory.join(&entry.name);
            let chunks = view.chunks(&path).unwrap();
            let what = match entry.file_type() {
                FileType::Directory if entry.flags.is_nested_mountpoint() => "/ catalog".to_owned(),
                FileType::Directory => "/".to_owned(),
                FileType::Symlink => format!(" -> {}", entry.symlink.escape_ascii()),
                FileType::Regular if chunks.is_empty() => format!(" {}", self.content(entry)),
                FileType::Regular => format!(" {} bytes in {} chunks", entry.size, chunks.len()),
                other => format!(" {other:?} {:#x}", entry.size),
            };
            // Owners and modes are shown where they are not what archives of this test have without saying so.
            let usual = match entry.file_type() {
                FileType::Directory => 0o755,
                FileType::Symlink => 0o777,
                FileType::Regular => 0o644,
                _ => 0o600,
            };
            let mut extra = String::new();
            if entry.mode & 0o7777 != usual {
                write!(extra, " {:o}", entry.mode & 0o7777).unwrap();
            }
            if (entry.uid, entry.gid) != (0, 0) && entry.uid != nix::unistd::geteuid().as_raw() {
                write!(extra, " {}:{}", entry.uid, entry.gid).unwrap();
            }
            for (name, value) in entry.xattrs() {
                write!(extra, " {}={}", name.escape_ascii(), value.escape_ascii()).unwrap();
            }
            if entry.link_group != 0 {
                let group = entries.iter().filter(|e| e.link_group == entry.link_group);
                let names: Vec<_> = group.map(|e| e.name.escape_ascii().to_string()).collect();
                assert_eq!(entry.links as usize, names.len());
                write!(extra, " ({})", names.join("=")).unwrap();
            }
            writeln!(lines, "{}{what}{extra}", path.as_bytes().escape_ascii()).unwrap();
            if entry.is_directory() {
                self.list(view, &path, lines);
            }
        }
    }

    pub(super) fn content(&self, entry: &Entry) -> String {
        let mut bytes = Vec::new();
        let id = entry.content.expect("a regular file in one piece").object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), 1 << 30, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, entry.size);
        format!("\"{}\"", bytes.escape_ascii())
    }

    pub(super) fn entry(&self, path: &str) -> Entry {
        let mut view = self.target.view(UtcDateTime::now()).unwrap();
        view.lookup(&RepoPath::parse(path).unwrap()).unwrap().unwrap_or_else(|| panic!("no {path}:\n{}", self.tree()))
    }
}

/// Runs steps one after the other: options, members (if there is an archive), the tree afterwards.
pub(super) fn run(steps: &[(&str, Option<&[Member]>, &str)]) -> World {
    let world = World::new();
    for (number, (options, members, expected)) in steps.iter().enumerate() {
        world.ingest(options, members.map(archive).as_deref());
        let expected: String = expected.lines().map(|l| l.trim_start().to_owned() + "\n").skip(1).collect();
        assert_eq!(world.tree(), expected.trim_end_matches(' ').replace("\n\n", "\n"), "step {number}: {options}");
    }
    world
}
