//! Archives go into a repository of their own, again and again; after each step the repository is sound, has exactly
//! the expected tree, and a new revision exactly if something changed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use clap::Parser as _;
use cvmfs::check::{Identity, Options, check};
use cvmfs::entry::{Entry, FileType, Flags, Meta};
use cvmfs::hash::{Algorithm, ObjectKind};
use cvmfs::path::RepoPath;
use cvmfs::store::fetch;
use cvmfs::transaction::Transaction;
use publisher::cli::{Cli, Command, Paths};
use publisher::ingest::{Ingested, ingest};
use publisher::target::{InitOptions, Target};
use time::UtcDateTime;

const FQRN: &str = "software.example.org";

// ---------------------------------------------------------------------------------------------------- archives

/// A member of an archive.
#[derive(Clone)]
struct Member {
    name: Vec<u8>,
    flag: u8,
    content: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    device: (u32, u32),
    pax: Vec<(String, Vec<u8>)>,
}

fn member(name: impl AsRef<[u8]>, flag: u8, mode: u32) -> Member {
    let name = name.as_ref().to_vec();
    let (content, link, pax) = (Vec::new(), Vec::new(), Vec::new());
    Member { name, flag, content, link, mode, owner: (0, 0), device: (0, 0), pax }
}

fn dir(name: impl AsRef<[u8]>) -> Member {
    member(name, b'5', 0o755)
}

fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Member {
    Member { content: content.as_ref().to_vec(), ..member(name, b'0', 0o644) }
}

fn hard(name: &str, target: &str) -> Member {
    Member { link: target.into(), ..member(name, b'1', 0o644) }
}

fn symlink(name: &str, target: &str) -> Member {
    Member { link: target.into(), ..member(name, b'2', 0o777) }
}

fn device(name: &str, flag: u8, major: u32, minor: u32) -> Member {
    Member { device: (major, minor), ..member(name, flag, 0o600) }
}

impl Member {
    fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }

    fn owner(self, uid: u64, gid: u64) -> Member {
        Member { owner: (uid, gid), ..self }
    }

    fn pax(mut self, key: impl Into<String>, value: impl AsRef<[u8]>) -> Member {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
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

    fn write_plain(&self, out: &mut Vec<u8>) {
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

fn archive(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    members.iter().for_each(|member| member.write(&mut out));
    out.extend([0; 1024]);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that don't compress.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 7u64;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

// ---------------------------------------------------------------------------------------------------- repository

struct World {
    dir: tempfile::TempDir,
    target: Target,
}

impl World {
    fn new() -> World {
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

    fn revision(&self) -> u64 {
        self.target.repository().unwrap().manifest().revision
    }

    fn tar_file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join("archive");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs the command as typed; an archive is added where there is one.
    fn try_ingest(&self, options: &str, tar: Option<&[u8]>) -> Result<Ingested, String> {
        let mut words = vec!["cvmfs-publisher".to_owned(), "ingest".to_owned(), FQRN.to_owned()];
        words.extend(options.split_whitespace().map(str::to_owned));
        if let Some(tar) = tar {
            words.extend(["--tar".to_owned(), self.tar_file(tar).to_str().unwrap().to_owned()]);
        }
        let Command::Ingest(arguments) = Cli::try_parse_from(words).unwrap().command else { panic!("not ingest") };
        ingest(&self.target, &arguments).map_err(|e| publisher::error::one_line(&e))
    }

    /// The same; it has to work, to leave a sound repository, and to publish exactly if the tree changes.
    fn ingest(&self, options: &str, tar: Option<&[u8]>) -> Ingested {
        let (revision, tree) = (self.revision(), self.tree());
        let report = self.try_ingest(options, tar).unwrap_or_else(|e| panic!("{options}: {e}"));
        self.assert_sound(options);
        assert_eq!((report.revision_before, report.revision), (revision, self.revision()), "{options}");
        let changed = self.tree() != tree;
        assert_eq!(report.revision, revision + u64::from(changed), "{options}: published exactly if it changed");
        report
    }

    fn assert_sound(&self, what: &str) {
        let scratch = tempfile::tempdir().unwrap();
        let mut options = Options::new(scratch.path());
        options.identity = Identity::Name(FQRN);
        let report = check(&*self.target.store, &options).unwrap();
        assert!(report.findings.is_empty(), "{what}: {:#?}\n{}", report.findings, self.tree());
    }

    /// The whole tree, one line an entry, in the order of names.
    fn tree(&self) -> String {
        let mut view = self.target.view(UtcDateTime::now()).unwrap();
        let mut lines = String::new();
        self.list(&mut view, &RepoPath::ROOT, &mut lines);
        lines
    }

    fn list(&self, view: &mut Transaction, directory: &RepoPath, lines: &mut String) {
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

    fn content(&self, entry: &Entry) -> String {
        let mut bytes = Vec::new();
        let id = entry.content.expect("a regular file in one piece").object(ObjectKind::File);
        fetch(&*self.target.store, id, entry.compression(), 1 << 30, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, entry.size);
        format!("\"{}\"", bytes.escape_ascii())
    }

    fn entry(&self, path: &str) -> Entry {
        let mut view = self.target.view(UtcDateTime::now()).unwrap();
        view.lookup(&RepoPath::parse(path).unwrap()).unwrap().unwrap_or_else(|| panic!("no {path}:\n{}", self.tree()))
    }
}

/// Runs steps one after the other: options, members (if there is an archive), the tree afterwards.
fn run(steps: &[(&str, Option<&[Member]>, &str)]) -> World {
    let world = World::new();
    for (number, (options, members, expected)) in steps.iter().enumerate() {
        world.ingest(options, members.map(archive).as_deref());
        let expected: String = expected.lines().map(|l| l.trim_start().to_owned() + "\n").skip(1).collect();
        assert_eq!(world.tree(), expected.trim_end_matches(' ').replace("\n\n", "\n"), "step {number}: {options}");
    }
    world
}

// ---------------------------------------------------------------------------------------------------- tests

#[test]
fn members_are_published_as_they_are() {
    let long = "n".repeat(255);
    let members = [
        dir("./").mode(0o2775).owner(7, 8),
        dir("bin/").owner(4_000_000_000, 5),
        file("./bin/tool", "run").mode(0o6755).owner(1000, 100),
        symlink("bin/link", "../nowhere/$x"),
        device("null", b'3', 1, 3).mode(0o666),
        device("disk", b'4', 259, 300),
        member("pipe", b'6', 0o600),
        file("empty", ""),
        file("/absolute", "below the base all the same"),
        file(&long, "long name"),
        file(b"bytes\xff", "not UTF-8"),
        file("bin/.wh.tool", "no whiteout"),
        file("bin/.wh..wh..opq", "no mark of an opaque directory"),
        device("zero", b'3', 0, 0),
        file("cap", "x")
            .pax("SCHILY.xattr.security.capability", b"\x01\0\n\0")
            .pax("SCHILY.xattr.user.a", "b")
            .pax("mtime", "-5.25"),
        file("deep/er/still", "parents are not listed"),
    ];
    let content = format!(
        "
        /sw/
        /sw/tools/ 2775 7:8
        /sw/tools/absolute \"below the base all the same\"
        /sw/tools/bin/ 4000000000:5
        /sw/tools/bin/.wh..wh..opq \"no mark of an opaque directory\"
        /sw/tools/bin/.wh.tool \"no whiteout\"
        /sw/tools/bin/link -> ../nowhere/$x
        /sw/tools/bin/tool \"run\" 6755 1000:100
        /sw/tools/bytes\\xff \"not UTF-8\"
        /sw/tools/cap \"x\" security.capability=\\x01\\x00\\n\\x00 user.a=b
        /sw/tools/deep/
        /sw/tools/deep/er/
        /sw/tools/deep/er/still \"parents are not listed\"
        /sw/tools/disk Block 0x11032c
        /sw/tools/empty \"\"
        /sw/tools/{long} \"long name\"
        /sw/tools/null Char 0x103 666
        /sw/tools/pipe Fifo 0x0
        /sw/tools/zero Char 0x0
"
    );
    let world = run(&[
        ("--base sw/tools", Some(&members), &content),
        ("--base /sw//tools/", Some(&members), &content),
        ("--base sw/tools --catalog", Some(&members), &content.replace("/sw/tools/ ", "/sw/tools/ catalog ")),
    ]);
    let capable = world.entry("/sw/tools/cap");
    assert_eq!((capable.mtime, capable.mtime_ns), (-6, Some(750_000_000)));
    let tool = world.entry("/sw/tools/bin/tool");
    assert_eq!((tool.mtime, tool.mtime_ns), (1_000_000_000, None));
    let made = world.entry("/sw/tools/deep");
    let meta = Meta { mtime: made.mtime, ..publisher::target::directory_meta(UtcDateTime::now()) };
    assert_eq!(made.meta(), meta, "of whoever publishes");
    assert!(made.mtime > 1_700_000_000);

    // The same through a subtree that is written beforehand.
    let tree = world.tree();
    world.try_ingest("--base sw/tools --catalog --delete sw", Some(&archive(&members))).unwrap();
    world.assert_sound("a subtree");
    assert_eq!(world.tree(), tree);
}

#[test]
fn every_packing_gives_the_same_and_the_same_again_publishes_nothing() {
    let plain = archive(&[dir("a"), file("a/f", "content"), symlink("a/l", "f"), hard("a/h", "a/f"), file("b/g", "")]);
    let world = World::new();
    let first = world.ingest("--base x", Some(&plain));
    assert_eq!((first.entries, first.files, first.bytes, first.revision), (5, 2, 7, 1));
    assert!(first.stored > 0);
    for packed in [plain.clone(), gzip(&plain), zstd::encode_all(&plain[..], 3).unwrap()] {
        let again = world.ingest("--base x", Some(&packed));
        assert_eq!((again.revision, again.stored), (1, 0));
        assert!(again.to_text().ends_with("in /x; revision 1, nothing to change\n"), "{}", again.to_text());
    }
    let report: serde_json::Value = serde_json::from_str(&first.to_json()).unwrap();
    assert_eq!(
        (&report["schema"], &report["revision_before"], &report["revision"], &report["base"], &report["deleted"]),
        (&1.into(), &0.into(), &1.into(), &"/x".into(), &serde_json::json!([]))
    );
    for empty in [vec![0; 1024], vec![0; 10240], Vec::new()] {
        assert_eq!(world.ingest("--base x", Some(&empty)).revision, 1);
    }
    assert_eq!(world.ingest("--base made/for/nothing", Some(&[0; 1024])).revision, 2);
}

#[test]
fn members_replace_what_has_their_name() {
    run(&[
        (
            "--base d",
            Some(&[
                dir("both").mode(0o700),
                file("both/kept", "old"),
                file("both/file", "old"),
                file("dir-to-file/x/y", "gone"),
                file("file-to-dir", "gone"),
                symlink("link-to-dir", "both"),
                file("file-to-link", "gone"),
                device("device-to-file", b'3', 1, 1),
                dir("untouched").mode(0o500),
            ]),
            "
            /d/
            /d/both/ 700
            /d/both/file \"old\"
            /d/both/kept \"old\"
            /d/device-to-file Char 0x101
            /d/dir-to-file/
            /d/dir-to-file/x/
            /d/dir-to-file/x/y \"gone\"
            /d/file-to-dir \"gone\"
            /d/file-to-link \"gone\"
            /d/link-to-dir -> both
            /d/untouched/ 500
            ",
        ),
        (
            "--base d",
            Some(&[
                dir("both").mode(0o711).owner(3, 4).pax("SCHILY.xattr.user.x", "y"),
                file("both/file", "new"),
                file("dir-to-file", "new"),
                dir("file-to-dir"),
                file("file-to-dir/new", "new"),
                dir("link-to-dir"),
                file("link-to-dir/new", "not in both"),
                symlink("file-to-link", "new"),
                file("device-to-file", "new"),
                file("untouched/new", "its directory is not listed"),
            ]),
            "
            /d/
            /d/both/ 711 3:4 user.x=y
            /d/both/file \"new\"
            /d/both/kept \"old\"
            /d/device-to-file \"new\"
            /d/dir-to-file \"new\"
            /d/file-to-dir/
            /d/file-to-dir/new \"new\"
            /d/file-to-link -> new
            /d/link-to-dir/
            /d/link-to-dir/new \"not in both\"
            /d/untouched/ 500
            /d/untouched/new \"its directory is not listed\"
            ",
        ),
        (
            "--base d --delete d",
            Some(&[
                file("first", "loses"),
                file("was/a/dir", "loses"),
                file("was", "a file now"),
                file("was-file", "loses"),
                dir("was-file"),
                file("was-file/x", "1"),
                symlink("first", "wins"),
                dir("kept").mode(0o700),
                file("kept/x", "2"),
                dir("kept").mode(0o711),
            ]),
            "
            /d/
            /d/first -> wins
            /d/kept/ 711
            /d/kept/x \"2\"
            /d/was \"a file now\"
            /d/was-file/
            /d/was-file/x \"1\"
            ",
        ),
        (
            "--base /",
            Some(&[dir(".").mode(0o700).owner(9, 9), file("top", "the root keeps its own metadata")]),
            "
            /d/
            /d/first -> wins
            /d/kept/ 711
            /d/kept/x \"2\"
            /d/was \"a file now\"
            /d/was-file/
            /d/was-file/x \"1\"
            /top \"the root keeps its own metadata\"
            ",
        ),
    ]);
}

#[test]
fn the_root_of_the_repository_keeps_its_metadata() {
    let world = World::new();
    let before = world.entry("");
    world.ingest("--base .", Some(&archive(&[dir("./").mode(0o700).owner(9, 9)])));
    assert_eq!(world.entry(""), before);
}

#[test]
fn paths_are_deleted_first() {
    let world = World::new();
    let tree = [file("a/b/c", "1"), file("a/d", "2"), file("e/f", "3"), symlink("l", "a")];
    world.ingest("--base /", Some(&archive(&tree)));
    world.ingest("--base n --catalog", Some(&archive(&[file("x/y", "nested")])));

    let report = world.ingest("--delete a/b --delete /e/f --delete nothing/there --delete l", None);
    assert_eq!(
        (report.deleted, report.missing),
        (vec!["/a/b".into(), "/e/f".into(), "/l".into()], vec!["/nothing/there".into()])
    );
    assert_eq!(world.tree(), "/a/\n/a/d \"2\"\n/e/\n/n/ catalog\n/n/x/\n/n/x/y \"nested\"\n");

    let report = world.ingest("--delete a/b", None);
    assert_eq!((report.missing, report.revision), (vec!["/a/b".to_owned()], 3));

    world.ingest("--base n/x --delete n/x --delete e", Some(&archive(&[file("z", "new")])));
    assert_eq!(world.tree(), "/a/\n/a/d \"2\"\n/n/ catalog\n/n/x/\n/n/x/z \"new\"\n");
    world.ingest("--delete n --delete a", None);
    assert_eq!(world.tree(), "");

    // A link in the way goes first.
    world.ingest("--base /", Some(&archive(&[symlink("current", "v1"), file("v1/f", "1")])));
    world.ingest("--base current --delete current", Some(&archive(&[file("f", "2")])));
    assert_eq!(world.tree(), "/current/\n/current/f \"2\"\n/v1/\n/v1/f \"1\"\n");
}

#[test]
fn directories_get_catalogs_where_asked_for() {
    let marked = |name: &str| file(format!("{name}.cvmfscatalog"), "");
    run(&[
        (
            "--base new --catalog",
            Some(&[file("f", "")]),
            "
            /new/ catalog
            /new/f \"\"
            ",
        ),
        (
            "--base new/empty",
            Some(&[]),
            "
            /new/ catalog
            /new/empty/
            /new/f \"\"
            ",
        ),
        (
            "--base new/empty --catalog",
            Some(&[dir("d").mode(0o700)]),
            "
            /new/ catalog
            /new/empty/ catalog
            /new/empty/d/ 700
            /new/f \"\"
            ",
        ),
        // Its catalog is there already, and stays.
        (
            "--base new --catalog --delete new/empty",
            Some(&[file("g/h", "")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/
            /new/g/h \"\"
            ",
        ),
        (
            "--base new/g --catalog",
            Some(&[file("i", "")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/ catalog
            /new/g/h \"\"
            /new/g/i \"\"
            ",
        ),
        // Markers inside: in a tree that is in use …
        (
            "--base new",
            Some(&[dir("p"), marked("p/"), file("p/q/r", ""), marked("p/q/"), marked("g/")]),
            "
            /new/ catalog
            /new/f \"\"
            /new/g/ catalog
            /new/g/h \"\"
            /new/g/i \"\"
            /new/p/ catalog
            /new/p/q/ catalog
            /new/p/q/r \"\"
            ",
        ),
        // … and in a new one, where the one at its top is like --catalog.
        (
            "--base other --delete new",
            Some(&[
                marked("./"),
                marked("p/q/"),
                file("p/q/r", ""),
                dir("s"),
                hard("s/.cvmfscatalog", "p/q/r"),
                marked("t/"),
                file("t", "no directory any more"),
            ]),
            "
            /other/ catalog
            /other/p/
            /other/p/q/ catalog
            /other/p/q/r \"\"
            /other/s/ catalog
            /other/t \"no directory any more\"
            ",
        ),
        (
            "--base / --catalog",
            Some(&[file("top", "")]),
            "
            /other/ catalog
            /other/p/
            /other/p/q/ catalog
            /other/p/q/r \"\"
            /other/s/ catalog
            /other/t \"no directory any more\"
            /top \"\"
            ",
        ),
    ]);
}

#[test]
fn hard_links_are_groups_within_a_directory_and_files_across() {
    let world = World::new();
    for catalog in ["", " --catalog"] {
        let top = if catalog.is_empty() { "/h/" } else { "/h/ catalog" };
        let members = [
            file("a/one", "1"),
            hard("a/two", "a/one"),
            hard("b/one", "./a/two"),
            hard("b/two", "a/one"),
            hard("forward", "later"),
            hard("chain", "forward"),
            file("later", "2"),
            symlink("s", "x"),
            hard("t", "s"),
            file("replaced", "3"),
            hard("keeps", "replaced"),
            file("replaced", "4"),
            hard("itself", "itself2"),
            file("itself2", "5"),
            hard("itself2", "itself2"),
        ];
        let report = world.ingest(&format!("--base h --delete h{catalog}"), Some(&archive(&members)));
        assert_eq!(report.broken_links, 2);
        assert_eq!(
            world.tree(),
            format!(
                "{top}\n\
                 /h/a/\n\
                 /h/a/one \"1\" (one=two)\n\
                 /h/a/two \"1\" (one=two)\n\
                 /h/b/\n\
                 /h/b/one \"1\" (one=two)\n\
                 /h/b/two \"1\" (one=two)\n\
                 /h/chain \"2\" (chain=forward=later)\n\
                 /h/forward \"2\" (chain=forward=later)\n\
                 /h/itself \"5\" (itself=itself2)\n\
                 /h/itself2 \"5\" (itself=itself2)\n\
                 /h/keeps \"3\"\n\
                 /h/later \"2\" (chain=forward=later)\n\
                 /h/replaced \"4\"\n\
                 /h/s -> x (s=t)\n\
                 /h/t -> x (s=t)\n"
            )
        );
        let again = world.ingest(&format!("--base h{catalog}"), Some(&archive(&members)));
        assert_eq!(again.revision, again.revision_before, "the same links again");
    }
}

#[test]
fn hard_links_lead_into_the_repository() {
    run(&[
        (
            "--base h",
            Some(&[file("a", "1"), file("d/x", "2"), hard("d/y", "d/x"), file("e", "3"), file("f", "4")]),
            "
            /h/
            /h/a \"1\"
            /h/d/
            /h/d/x \"2\" (x=y)
            /h/d/y \"2\" (x=y)
            /h/e \"3\"
            /h/f \"4\"
            ",
        ),
        (
            "--base h --delete h/f",
            Some(&[
                hard("b", "a"),
                hard("d/z", "d/x"),
                hard("d/a", "a"),
                hard("d/b", "a"),
                hard("n/ew", "d/y"),
                file("e", "new"),
                hard("g", "e"),
            ]),
            "
            /h/
            /h/a \"1\" (a=b)
            /h/b \"1\" (a=b)
            /h/d/
            /h/d/a \"1\" (a=b)
            /h/d/b \"1\" (a=b)
            /h/d/x \"2\" (x=y=z)
            /h/d/y \"2\" (x=y=z)
            /h/d/z \"2\" (x=y=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
        // A name that is replaced leaves its group, also where the others get one more.
        (
            "--base h",
            Some(&[
                file("d/y", "other"),
                hard("d/w", "d/x"),
                file("b", "alone"),
                file("d", "").mode(0),
                dir("d"),
                hard("c", "d/x"),
            ]),
            "
            /h/
            /h/a \"1\"
            /h/b \"alone\"
            /h/c \"2\"
            /h/d/
            /h/d/a \"1\" (a=b)
            /h/d/b \"1\" (a=b)
            /h/d/x \"2\" (x=y=z)
            /h/d/y \"2\" (x=y=z)
            /h/d/z \"2\" (x=y=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
        (
            "--base h",
            Some(&[file("d/y", "other"), hard("d/w", "d/x"), hard("d/b", "g")]),
            "
            /h/
            /h/a \"1\"
            /h/b \"alone\"
            /h/c \"2\"
            /h/d/
            /h/d/a \"1\"
            /h/d/b \"new\"
            /h/d/w \"2\" (w=x=z)
            /h/d/x \"2\" (w=x=z)
            /h/d/y \"other\"
            /h/d/z \"2\" (w=x=z)
            /h/e \"new\" (e=g)
            /h/g \"new\" (e=g)
            /h/n/
            /h/n/ew \"2\"
            ",
        ),
    ]);
}

#[test]
fn what_the_format_cannot_hold_is_listed() {
    let mut many = file("many", "");
    for i in 0..256 {
        many = many.pax(format!("SCHILY.xattr.user.{i:03}"), "");
    }
    let members = [
        file("big", "").pax("SCHILY.xattr.user.big", [b'x'; 256]).pax("SCHILY.xattr.user.fits", [b'x'; 255]),
        many,
        file("owner", "").pax("uid", "4294967296").pax("gid", "4294967295"),
        file("time", "").pax("mtime", "999999999999"),
        symlink("variable", "/opt/$(ARCH)/x"),
    ];
    let world = World::new();
    let report = world.ingest("--base x", Some(&archive(&members)));
    let lost: Vec<_> = report.lost.iter().map(|lost| format!("{}: {}", lost.path, lost.what)).collect();
    assert_eq!(
        lost,
        [
            "big: xattr user.big",
            "many: xattr user.255",
            "owner: uid 4294967296",
            "time: mtime 999999999999",
            "variable: clients replace variables in its target",
        ]
    );
    let xattrs = |path| world.entry(path).xattrs().len();
    assert_eq!((xattrs("/x/big"), xattrs("/x/many")), (1, 255));
    let owner = world.entry("/x/owner");
    assert_eq!((owner.uid, owner.gid), (65534, u32::MAX));
    assert_eq!(world.entry("/x/variable").symlink, b"/opt/$(ARCH)/x");
    assert!(report.to_text().starts_with("lost      big: xattr user.big\n"), "{}", report.to_text());
}

#[test]
fn refuses_what_is_malformed_or_hostile_and_changes_nothing() {
    let world = World::new();
    let present = [file("in/use", "1"), symlink("link", "in"), file("file", "2"), file(".keep", "")];
    world.ingest("--base /", Some(&archive(&present)));
    let tree = world.tree();
    let revision = world.revision();
    let ok = || archive(&[file("f", "x")]);
    let truncated = |bytes: Vec<u8>, at: usize| bytes[..at].to_vec();
    let long_path = (0..20).map(|_| "d".repeat(250)).collect::<Vec<_>>().join("/");
    let cases: Vec<(&str, Option<Vec<u8>>, &str)> = vec![
        // names
        ("--base x", Some(archive(&[file("../f", "")])), "contains \"..\""),
        ("--base x", Some(archive(&[file("a/../../f", "")])), "contains \"..\""),
        ("--base x", Some(archive(&[hard("f", "../../etc/passwd")])), "contains \"..\""),
        ("--base x", Some(archive(&[file("n".repeat(256), "")])), "too long"),
        ("--base x", Some(archive(&[file(&long_path, "")])), "too long"),
        ("--base x", Some(archive(&[file("./", "")])), "its root is something else than a directory"),
        ("--base x/../y", Some(ok()), "contains \"..\""),
        ("--delete ../x", None, "contains \"..\""),
        // links are never followed
        ("--base x", Some(archive(&[symlink("l", "/etc"), file("l/f", "")])), "a symbolic link in the archive"),
        ("--base x", Some(archive(&[symlink("l", "../in"), dir("l/d")])), "a symbolic link in the archive"),
        ("--base x", Some(archive(&[file("f", ""), file("f/g", "")])), "which is no directory in the archive"),
        ("--base x", Some(archive(&[hard("h", "later"), file("h/g", "")])), "which is no directory in the archive"),
        ("--base /", Some(archive(&[file("link/f", "")])), "/link is a symbolic link in the repository"),
        ("--base /", Some(archive(&[file("file/f", "")])), "/file is no directory in the repository"),
        ("--base link", Some(ok()), "/link is a symbolic link (to in)"),
        ("--base link/sub", Some(ok()), "/link is a symbolic link (to in)"),
        ("--base file", Some(ok()), "/file exists and is no directory"),
        ("--delete link/use", None, "/link is a symbolic link (to in)"),
        ("--base /", Some(archive(&[hard("x", "link/use")])), "exists neither"),
        // links that lead nowhere
        ("--base x", Some(archive(&[hard("h", "nothing")])), "exists neither"),
        ("--base x --catalog", Some(archive(&[hard("h", "nothing")])), "exists neither"),
        ("--base /", Some(archive(&[hard("h", "in")])), "which is a directory"),
        ("--base x", Some(archive(&[dir("d"), hard("h", "d")])), "a directory"),
        ("--base x", Some(archive(&[hard("h", ".")])), "leads to a directory"),
        ("--base x", Some(archive(&[hard("a", "b"), hard("b", "a")])), "leads in a circle"),
        ("--base / --delete in/use", Some(archive(&[hard("h", "in/use")])), "exists neither"),
        ("--base x", Some(archive(&[symlink("l", "")])), "target that is empty"),
        // markers
        ("--base /", Some(archive(&[file(".cvmfscatalog", "")])), "the root of a repository"),
        ("--base x", Some(archive(&[symlink("d/.cvmfscatalog", "y")])), "is no regular file"),
        ("--base x", Some(archive(&[dir(".cvmfscatalog")])), "is no regular file"),
        ("--base x", Some(archive(&[file(".cvmfscatalog/f", "")])), "is no regular file"),
        ("--base x", Some(archive(&[file("d/.cvmfscatalog", ""), hard("h", "d/.cvmfscatalog")])), "marker"),
        ("--base x/.cvmfscatalog", Some(ok()), "no directory can be named"),
        ("--delete in/.cvmfscatalog", None, "marks a nested catalog"),
        // what belongs to images
        ("--base .flat/x", Some(ok()), "convert"),
        ("--base ./.metadata", Some(ok()), "convert"),
        ("--base podmanStore", Some(ok()), "convert"),
        ("--base /", Some(archive(&[file("./.layers/ab/x", "")])), "convert"),
        ("--base /", Some(archive(&[dir(".index")])), "convert"),
        ("--delete /.layers", None, "convert"),
        ("--delete .multiarch/arm64/x", None, "convert"),
        ("--delete /", None, "the root of a repository"),
        // archives
        ("--base x", Some(b"<html>not found</html>".repeat(50)), "neither a tar nor"),
        ("--base x", Some(truncated(archive(&[file("f", noise(5000))]), 3000)), "ends in the middle"),
        ("--base x", Some(truncated(gzip(&archive(&[file("f", noise(5000))])), 3000)), "cannot read"),
        ("--base x --max-entries 2", Some(archive(&[dir("a"), dir("b"), dir("c")])), "limit of 2 entries"),
        ("--base x --max-entries 2", Some(archive(&[file("a/b/c/d", "")])), "more than 2 directories"),
        ("--base x --max-layer-size 5000", Some(archive(&[file("f", [0; 9000])])), "5000 bytes"),
        ("--base x --max-pax-header 100", Some(archive(&[file("f", "").pax("comment", [b'x'; 200])])), "limit of 100"),
    ];
    for (options, tar, expected) in cases {
        let error = world.try_ingest(options, tar.as_deref()).expect_err(options);
        assert!(error.contains(expected), "{options}: {error}\nis to contain: {expected}");
        assert_eq!(world.revision(), revision, "{options}: {error}");
    }
    assert_eq!(world.tree(), tree);
    world.assert_sound("after all refusals");
    let missing = Cli::try_parse_from(["x", "ingest", FQRN, "--tar", "/nonexistent/f.tar", "--base", "x"]).unwrap();
    let Command::Ingest(arguments) = missing.command else { panic!("not ingest") };
    let error = ingest(&world.target, &arguments).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/f.tar"), "{error}");
}

#[test]
fn names_of_published_images_are_left_alone() {
    let world = World::new();
    // As a conversion leaves them: records, and links with the public names.
    let lock = world.target.lock().unwrap();
    let now = UtcDateTime::now();
    let mut transaction = world.target.begin(&lock, now).unwrap();
    let meta = publisher::target::directory_meta(now);
    let path = |text: &str| RepoPath::parse(text).unwrap();
    for directory in ["/.metadata/registry.example.org/app:1", "/registry.example.org", "/other"] {
        transaction.ensure_directories(&path(directory), meta, &|_| false).unwrap();
    }
    let marker = world.target.marker(Algorithm::Sha1, now).unwrap();
    let record = Entry { flags: marker.flags.without(Flags::HIDDEN), ..marker };
    transaction.put(&path("/.metadata/registry.example.org/app:1/manifest.json"), record, &[]).unwrap();
    let link = Entry::symlink("", Meta { permissions: 0o777, ..meta }, "../.flat/ab/x");
    transaction.put(&path("/registry.example.org/app:1"), link.clone(), &[]).unwrap();
    transaction.put(&path("/other/app:1"), link, &[]).unwrap();
    world.target.commit(transaction).unwrap();
    drop(lock);

    let refused = [
        ("--delete registry.example.org/app:1", None),
        ("--delete registry.example.org", None),
        ("--base registry.example.org", Some(archive(&[file("app:1", "x")]))),
        ("--base registry.example.org", Some(archive(&[dir("app:1")]))),
        ("--base /", Some(archive(&[file("registry.example.org", "x")]))),
        ("--base /", Some(archive(&[file("other/x", ""), hard("registry.example.org/app:1", "other/x")]))),
    ];
    for (options, tar) in refused {
        let error = world.try_ingest(options, tar.as_deref()).expect_err(options);
        assert!(error.contains("is the name of published images"), "{options}: {error}");
    }
    assert_eq!(world.revision(), 1);
    world.ingest("--base registry.example.org", Some(&archive(&[file("README", "beside them")])));
    world.ingest("--delete other/app:1", None);
}

#[test]
fn large_archives_become_subtrees_with_catalogs_of_their_own() {
    let world = World::new();
    let mut members: Vec<Member> = (0..1100).map(|i| file(format!("d{}/f{i}", i % 7), i.to_string())).collect();
    let big = noise(17 << 20);
    members.push(file("big", &big));
    members.push(hard("big-too", "big"));
    let tar = archive(&members);
    let report = world.ingest("--base many", Some(&tar));
    assert_eq!((report.entries, report.revision), (1102, 1));
    let tree = world.tree();
    assert!(tree.starts_with("/many/ catalog\n/many/big 17825792 bytes in"), "{tree}");
    assert_eq!(tree.lines().filter(|l| l.ends_with("chunks (big=big-too)")).count(), 2, "{tree}");

    // Row by row the second time: nothing to change; then one file and a link to the chunked one.
    assert_eq!(world.ingest("--base many", Some(&tar)).revision, 1);
    world.ingest("--base many", Some(&archive(&[file("d3/f3", "new"), hard("more", "big"), hard("d1/copy", "big")])));
    let tree = world.tree();
    assert_eq!(tree.lines().filter(|l| l.contains("(big=big-too=more)")).count(), 3);
    assert!(tree.contains("/many/d1/copy 17825792 bytes in") && tree.contains("/many/d3/f3 \"new\"\n"));

    // Into a directory that is in use, however many.
    world.ingest("--base many/d0 --catalog", Some(&archive(&members[..1050])));
    let new = world.tree();
    assert!(new.contains("/many/d0/ catalog\n") && new.contains("/many/d0/d6/f6 \"6\"\n"));
    assert!(new.contains("/many/d0/f0 \"0\"\n"), "what was there stays");
    assert_eq!(new.lines().count(), tree.lines().count() + 1050 + 7);
}

#[test]
fn the_program_reads_archives_from_its_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], input: &[u8]| {
        let mut process = Process::new(env!("CARGO_BIN_EXE_cvmfs-publisher"))
            .args(arguments)
            .args(["--storage", "storage", "--keys", "keys", "--state", "state"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses its arguments doesn't read.
        let _ = process.stdin.take().unwrap().write_all(input);
        let output = process.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(run(&["init", FQRN], b"").0, Some(0));
    let tar = gzip(&archive(&[file("bin/tool", "run").mode(0o755)]));
    let (status, stdout, stderr) = run(&["--json", "ingest", FQRN, "--tar", "-", "--base", "sw"], &tar);
    assert_eq!(status, Some(0), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["revision"], &report["entries"]), (&1.into(), &1.into()));

    let (status, stdout, _) = run(&["ingest", FQRN, "--delete", "sw/bin", "--delete", "x"], b"");
    let expected = format!("deleted   /sw/bin\nmissing   /x: nothing to delete\n{FQRN}: revision 1 -> 2\n");
    assert_eq!((status, stdout), (Some(0), expected));

    let (status, stdout, stderr) = run(&["ingest", FQRN, "--tar", "-", "--base", ".flat"], &tar);
    assert_eq!((status, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with(&format!("Error: cannot ingest - into {FQRN}\n")), "{stderr}");
    assert!(stderr.contains("1: /.flat belongs to the published images"), "{stderr}");
    assert_eq!(run(&["check", FQRN, "--data"], b"").0, Some(0));
}
