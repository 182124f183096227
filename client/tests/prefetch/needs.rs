//! What files name: libraries of programs, modules of Python files.

use super::*;

const ROOT: &str = "/.flat/ab/abcdef";

/// A file with these strings, as programs and libraries have them.
fn elf(strings: &[&str]) -> Vec<u8> {
    format!("\x7fELF\0{}\0", strings.join("\0")).into_bytes()
}

/// A compiled file of CPython 3.11 whose outermost code uses these names; a function in it uses `later`.
fn compiled(names: &[&str], later: &str) -> Vec<u8> {
    let tuple = |parts: Vec<Vec<u8>>| [vec![b')', parts.len() as u8], parts.concat()].concat();
    let texts = |names: &[&str]| {
        tuple(names.iter().map(|name| [&[b'Z' | 0x80, name.len() as u8], name.as_bytes()].concat()).collect())
    };
    let empty = b"s\0\0\0\0".to_vec();
    let code = |constants: Vec<Vec<u8>>, names: &[&str]| {
        let fields = [empty.clone(), tuple(constants), texts(names), empty.repeat(5)].concat();
        [b"c".to_vec(), vec![0; 20], fields, vec![0; 4], empty.repeat(2)].concat()
    };
    let mut header = [0; 16];
    header[..2].copy_from_slice(&3495u16.to_le_bytes());
    [header.to_vec(), code(vec![code(vec![], &[later])], names)].concat()
}

enum Content {
    File(Vec<u8>),
    Link(&'static str),
}
use Content::{File, Link};

/// A world with these files below `ROOT`.
fn world(files: &[(&str, Content)]) -> World {
    let mut published = Published::new();
    let paths: Vec<String> = files.iter().map(|(path, _)| format!("{ROOT}/{path}")).collect();
    let mut entries = Vec::new();
    for (path, (_, content)) in paths.iter().zip(files) {
        let entry = match content {
            File(content) => published.file(0o755, content),
            Link(target) => Entry::symlink("", published::meta(0o777), *target),
        };
        entries.push((path.as_str(), entry));
    }
    publish(&mut published, entries);
    let server = Server::start(&published.served());
    World { published, server }
}

/// Which files were asked for, after one was read and nothing runs any more.
fn fetched(files: &[(&str, Content)], read: &str) -> Vec<String> {
    let world = world(files);
    let client = world.open(&[OFF]);
    client.read(&format!("{ROOT}/{read}")).unwrap();
    let summary = client.settled();
    assert_eq!((summary.failures, summary.left_out), (0, 0));
    let mut names = Vec::new();
    for (path, content) in files {
        if let File(content) = content {
            match world.server.requests(&World::object(content)) {
                0 => {}
                1 => names.push((*path).to_owned()),
                more => panic!("{path} was fetched {more} times"),
            }
        }
    }
    assert_eq!(summary.fetched + 1, names.len() as u64);
    names
}

#[test]
fn libraries_that_a_program_names_are_fetched_through_links() {
    let files = [
        ("bin", Link("usr/bin")),
        ("lib", Link("usr/lib")),
        ("usr/bin/tool", File(elf(&["libblas.so.3", "libown.so", "$ORIGIN/../own", "libabsent.so.1", "libloop.so.1"]))),
        ("usr/lib/x86_64-linux-gnu/libblas.so.3", Link("/etc/alternatives/libblas")),
        ("etc/alternatives/libblas", Link("/lib/x86_64-linux-gnu/blas/libblas.so.3")),
        ("usr/lib/x86_64-linux-gnu/blas/libblas.so.3", Link("libblas.so.3.11.0")),
        ("usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0", File(elf(&["libm.so.6"]))),
        ("usr/lib/x86_64-linux-gnu/libm.so.6", File(elf(&["libm.so.6", "second", "tool"]))),
        ("usr/lib/x86_64-linux-gnu/libother.so.6", File(elf(&["other"]))),
        ("usr/lib/x86_64-linux-gnu/libloop.so.1", Link("libloop.so.2")),
        ("usr/lib/x86_64-linux-gnu/libloop.so.2", Link("libloop.so.1")),
        ("usr/own/libown.so", File(elf(&["own"]))),
    ];
    let expected = [
        "usr/bin/tool",
        "usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0",
        "usr/lib/x86_64-linux-gnu/libm.so.6",
        "usr/own/libown.so",
    ];
    assert_eq!(fetched(&files, "usr/bin/tool"), expected);
}

#[test]
fn modules_that_a_compiled_file_names_are_fetched() {
    let files = [
        ("usr/lib/python3/dist-packages/app/__init__.py", File(b"# app".to_vec())),
        (
            "usr/lib/python3/dist-packages/app/__pycache__/__init__.cpython-311.pyc",
            File(compiled(&["core", "json", "app.sub", "absent"], "rarely")),
        ),
        ("usr/lib/python3/dist-packages/app/core.py", File(b"# core".to_vec())),
        ("usr/lib/python3/dist-packages/app/__pycache__/core.cpython-311.pyc", File(compiled(&["fast"], "x"))),
        ("usr/lib/python3/dist-packages/app/__pycache__/core.cpython-311.opt-1.pyc", File(b"optimised".to_vec())),
        (
            "usr/lib/python3/dist-packages/app/fast.cpython-311-x86_64-linux-gnu.so",
            File(elf(&["libfast.so.1", "app.deep"])),
        ),
        (
            "usr/lib/python3/dist-packages/app/deep.py",
            File(b"from app import rarely\ndef late():\n    import unused\n".to_vec()),
        ),
        ("usr/lib/python3/dist-packages/app/rarely.py", File(b"# step four".to_vec())),
        ("usr/lib/python3/dist-packages/app/unused.py", File(b"# unused".to_vec())),
        ("usr/lib/python3/dist-packages/app/sub/__init__.py", File(b"from . import part\n".to_vec())),
        ("usr/lib/python3/dist-packages/app/sub/part.py", File(b"# part".to_vec())),
        ("usr/lib/python3/dist-packages/json/__init__.py", File(b"# json".to_vec())),
        ("usr/lib/python3/dist-packages/json/late.py", File(b"# late".to_vec())),
        ("usr/lib/x86_64-linux-gnu/libfast.so.1", File(elf(&["fast"]))),
    ];
    let expected = [
        "app/__pycache__/__init__.cpython-311.pyc",
        "app/__pycache__/core.cpython-311.pyc",
        "app/fast.cpython-311-x86_64-linux-gnu.so",
        "app/deep.py",
        "app/rarely.py",
        "app/sub/__init__.py",
        "app/sub/part.py",
        "json/__init__.py",
    ];
    let mut expected = expected.map(|path| format!("usr/lib/python3/dist-packages/{path}")).to_vec();
    expected.push("usr/lib/x86_64-linux-gnu/libfast.so.1".into());
    assert_eq!(fetched(&files, "usr/lib/python3/dist-packages/app/__pycache__/__init__.cpython-311.pyc"), expected);
}

#[test]
fn names_lead_nowhere_outside_and_not_in_circles() {
    let files = [
        (
            "usr/bin/tool",
            File(elf(&["$ORIGIN/../../../../../../..:$ORIGIN/../../../../other", "liba.so", "libout.so"])),
        ),
        ("usr/bin/liba.so", File(elf(&["libb.so", "tool.so"]))),
        ("usr/bin/libb.so", File(elf(&["liba.so", "liba.so.1"]))),
        ("usr/bin/libout.so", Link("/../../../../secret/libout.so")),
    ];
    assert_eq!(fetched(&files, "usr/bin/tool"), ["usr/bin/tool", "usr/bin/liba.so", "usr/bin/libb.so"]);
}

#[test]
fn what_is_named_is_bounded_like_any_guess() {
    const SIZE: usize = 50_000;
    let names: Vec<String> = (0..40).map(|number| format!("lib{number:02}.so")).collect();
    let library = |number: usize| [elf(&["x"]), content(number, SIZE)].concat();
    let mut files = vec![("usr/bin/tool", File(elf(&names.iter().map(String::as_str).collect::<Vec<_>>())))];
    let paths: Vec<String> = names.iter().map(|name| format!("usr/bin/{name}")).collect();
    files.extend(paths.iter().enumerate().map(|(number, path)| (path.as_str(), File(library(number)))));
    let world = world(&files);
    let client = world.open(&[OFF, "CVMFS_PREFETCH_WASTE=1"]);
    client.read(&format!("{ROOT}/usr/bin/tool")).unwrap();
    let summary = client.settled();
    assert!(summary.unused_guessed_bytes <= 1 << 20 | 4096, "{summary:?}");
    assert!(summary.fetched >= 19 && summary.left_out + summary.fetched == 40, "{summary:?}");
}

#[test]
fn nothing_is_looked_for_where_answers_come_at_once() {
    let files = [("usr/bin/tool", File(elf(&["liba.so"]))), ("usr/bin/liba.so", File(elf(&["a"])))];
    // An hour is more than any answer takes.
    for (latency, fetched) in [("3600000", 0), ("0", 1)] {
        let world = world(&files);
        let client = world.open(&[OFF, &format!("CVMFS_PREFETCH_LATENCY={latency}")]);
        client.read(&format!("{ROOT}/usr/bin/tool")).unwrap();
        assert_eq!(client.settled().fetched, fetched);
    }
}
