//! Archives of every dialect, whole and damaged.

use proptest::prelude::*;

use super::*;
use ::tar::Builder;

/// Entries with their contents.
fn read(bytes: &[u8]) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    read_within(bytes, Limits::default())
}

fn read_within(bytes: &[u8], limits: Limits) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::with_limits(bytes, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        if let Err(error) = reader.content().read_to_end(&mut content) {
            return Err(error.downcast::<TarError>().unwrap());
        }
        entries.push((entry, content));
    }
    Ok(entries)
}

/// A header of the GNU kind with its content, padded.
fn member(flag: u8, path: &[u8], content: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkflag = [flag];
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    change(&mut header);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    member(b'0', path.as_bytes(), content, |_| {})
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 2 * BLOCK);
    bytes
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

fn one(parts: &[Vec<u8>]) -> (TarEntry, Vec<u8>) {
    let mut entries = read(&[&parts.concat()[..], &end()].concat()).unwrap();
    assert_eq!(entries.len(), 1);
    entries.pop().unwrap()
}

#[test]
fn reads_every_type() {
    let device = |header: &mut Header| {
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
    };
    let link = |header: &mut Header| header.as_old_mut().linkname[..4].copy_from_slice(b"to/x");
    for (bytes, expected) in [
        (member(b'0', b"f", b"abc", |_| {}), TarKind::Regular { size: 3 }),
        (member(0, b"f", b"abc", |_| {}), TarKind::Regular { size: 3 }),
        (member(b'7', b"f", b"abc", |_| {}), TarKind::Regular { size: 3 }),
        (member(0, b"f/", b"", |_| {}), TarKind::Directory),
        (member(b'5', b"f", b"", |_| {}), TarKind::Directory),
        (member(b'D', b"f", b"Yname\0\0", |_| {}), TarKind::Directory),
        (member(b'1', b"f", b"", link), TarKind::HardLink { target: b"to/x".to_vec() }),
        (member(b'2', b"f", b"", link), TarKind::Symlink { target: b"to/x".to_vec() }),
        (member(b'3', b"f", b"", device), TarKind::CharDevice { major: 259, minor: 70_000 }),
        (member(b'4', b"f", b"", device), TarKind::BlockDevice { major: 259, minor: 70_000 }),
        (member(b'6', b"f", b"", |_| {}), TarKind::Fifo),
    ] {
        let (entry, content) = one(&[bytes]);
        assert_eq!(entry.kind, expected);
        assert_eq!(content.len(), if let TarKind::Regular { size } = entry.kind { size as usize } else { 0 });
    }
    // a label and a size on a link (which has no data all the same) don't get in the way
    let label = member(b'V', b"label", b"", |_| {});
    let sized = member(b'1', b"f", b"", |header| header.set_size(512));
    let entries = read(&[label, sized, file("g", b"1"), end()].concat()).unwrap();
    assert_eq!(entries.iter().map(|(entry, _)| &entry.path[..]).collect::<Vec<_>>(), [b"f", b"g"]);
}

#[test]
fn joins_names_of_every_dialect() {
    let ustar = |tail: &[u8]| {
        let mut header = Header::new_ustar();
        header.as_ustar_mut().unwrap().name[..4].copy_from_slice(b"name");
        header.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"dir");
        header.set_size(0);
        header.as_mut_bytes()[512 - tail.len()..].copy_from_slice(tail);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    assert_eq!(one(&[ustar(b"")]).0.path, b"dir/name");
    assert_eq!(one(&[ustar(b"tar\0")]).0.path, b"dir/name", "star");
    let mut old = Header::new_old();
    old.as_old_mut().name = [b'x'; 100];
    old.set_size(0);
    old.set_cksum();
    assert_eq!(one(&[old.as_bytes().to_vec()]).0.path, [b'x'; 100]);
    let long = vec![b'y'; 300];
    let with_nul = [&long[..], b"\0"].concat();
    let entry = one(&[
        member(b'L', b"././@LongLink", &with_nul, |_| {}),
        member(b'K', b"x", b"target\0", |_| {}),
        member(b'2', b"y", b"", |_| {}),
    ])
    .0;
    assert_eq!((entry.path, entry.kind), (long.clone(), TarKind::Symlink { target: b"target".to_vec() }));
    let entry = one(&[pax(&[("path", &long), ("linkpath", b"\xff\n")]), member(b'2', b"y", b"", |_| {})]).0;
    assert_eq!((entry.path, entry.kind), (long, TarKind::Symlink { target: b"\xff\n".to_vec() }));
}

#[test]
fn honours_pax_records() {
    let capability = b"\x01\0\0\x02\n\0 12 size=0\n\xff";
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.security.capability", capability),
        ("size", b"3"),
        ("uid", b"4000000000"),
        ("gid", b"5000000000"),
        ("mtime", b"-1.25"),
        ("comment", b"x"),
    ];
    // the header says another size than the record, as for files above 8 GiB
    let bytes =
        [pax(&records), member(b'0', b"f", b"abc", |header| header.set_size(0)), file("g", b"1"), end()].concat();
    let entries = read(&bytes).unwrap();
    let (entry, content) = &entries[0];
    assert_eq!((&content[..], entries.len()), (&b"abc"[..], 2));
    assert_eq!((entry.uid, entry.gid, entry.mtime, entry.mtime_ns), (4_000_000_000, 5_000_000_000, -2, 750_000_000));
    assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
    assert!(entries[1].0.xattrs.is_empty(), "records belong to one entry");
}

#[test]
fn checks_but_ignores_global_records() {
    let global = |records: &[(&str, &[u8])]| {
        let mut bytes = pax(records);
        bytes[156] = b'g';
        let mut header = Header::from_byte_slice(&bytes[..BLOCK]).clone();
        header.set_cksum();
        bytes[..BLOCK].copy_from_slice(header.as_bytes());
        bytes
    };
    let entry = one(&[global(&[("uid", b"5"), ("path", b"evil")]), file("f", b"")]).0;
    assert_eq!((entry.path, entry.uid), (b"f".to_vec(), 0));
    assert!(read(&[global(&[("uid", b"x")]), file("f", b""), end()].concat()).is_err());
}

#[test]
fn reads_numbers_beyond_octal() {
    let entry = one(&[member(b'0', b"f", b"", |header| {
        header.as_old_mut().mtime = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe";
        header.as_old_mut().uid = *b"\x80\0\0\0\xff\xff\xff\xfe";
        header.as_old_mut().mode = *b"0104755\0";
    })])
    .0;
    assert_eq!((entry.mtime, entry.uid, entry.mode), (-2, 0xffff_fffe, 0o4755));
}

/// A file with two segments, `ab` at 2 and `c` at 1000, size 2000.
fn expanded() -> Vec<u8> {
    let mut content = vec![0; 2000];
    content[2..4].copy_from_slice(b"ab");
    content[1000] = b'c';
    content
}

#[test]
fn expands_sparse_files() {
    let old = member(b'S', b"f", b"abc", |header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset.copy_from_slice(b"00000000002\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000002\0");
        gnu.sparse[1].offset.copy_from_slice(b"00000001750\0");
        gnu.sparse[1].numbytes.copy_from_slice(b"00000000001\0");
        gnu.realsize.copy_from_slice(b"00000003720\0");
    });
    // the second segment in a block of its own
    let extended = {
        let mut bytes = member(b'S', b"f", b"abc", |header| {
            let gnu = header.as_gnu_mut().unwrap();
            gnu.sparse[0].offset.copy_from_slice(b"00000000002\0");
            gnu.sparse[0].numbytes.copy_from_slice(b"00000000002\0");
            gnu.realsize.copy_from_slice(b"00000003720\0");
            gnu.isextended[0] = 1;
        });
        let mut block = vec![0; BLOCK];
        block[..24].copy_from_slice(b"00000001750\x0000000000001\0");
        bytes.splice(BLOCK..BLOCK, block);
        bytes
    };
    let v00 = [
        pax(&[
            ("GNU.sparse.size", b"2000"),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"2"),
            ("GNU.sparse.numbytes", b"2"),
            ("GNU.sparse.offset", b"1000"),
            ("GNU.sparse.numbytes", b"1"),
        ]),
        file("f", b"abc"),
    ]
    .concat();
    let v01 = [
        pax(&[("GNU.sparse.size", b"2000"), ("GNU.sparse.name", b"f"), ("GNU.sparse.map", b"2,2,1000,1")]),
        file("GNUSparseFile.1/f", b"abc"),
    ]
    .concat();
    let mut data = b"2\n2\n2\n1000\n1\n".to_vec();
    data.resize(BLOCK, 0);
    data.extend_from_slice(b"abc");
    let v10 = [
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", b"2000"),
        ]),
        file("GNUSparseFile.1/f", &data),
    ]
    .concat();
    for (what, bytes) in [("old", old), ("old, extended", extended), ("0.0", v00), ("0.1", v01), ("1.0", v10)] {
        let entries =
            read(&[bytes.clone(), file("next", b"1"), end()].concat()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(
            (&entries[0].0.path[..], &entries[0].0.kind),
            (&b"f"[..], &TarKind::Regular { size: 2000 }),
            "{what}"
        );
        assert!(entries[0].1 == expanded(), "{what}");
        assert_eq!(entries[1].1, b"1", "{what}");
        // skipped without being read
        let all = [bytes, file("next", b"1"), end()].concat();
        let mut reader = TarReader::new(&all[..]);
        reader.next_entry().unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"next", "{what}");
    }
}

#[test]
fn refuses_sparse_maps_that_lie() {
    for map in ["0,5", "0,1,0,2", "0,1,1999,2", "5,3,2,0", "0,18446744073709551615,1,1", "1,2,3"] {
        let bytes =
            [pax(&[("GNU.sparse.size", b"2000"), ("GNU.sparse.map", map.as_bytes())]), file("f", b"abc"), end()]
                .concat();
        assert!(matches!(read(&bytes), Err(TarError::Header { .. })), "{map}");
    }
    for text in ["", "1", "1\n", "x\n", "9999999\n", "999999999999999999999999\n", "1\n0\n9\n"] {
        let mut data = text.as_bytes().to_vec();
        data.resize(BLOCK, 0);
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"5")];
        let bytes = [pax(&records), file("f", &data), end()].concat();
        assert!(read(&bytes).is_err(), "{text:?}");
    }
    let unknown = [pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"5")]), file("f", b""), end()].concat();
    assert!(read(&unknown).unwrap_err().to_string().contains("version 2.0"));
}

#[test]
fn knows_where_an_archive_ends() {
    for (what, bytes, expected) in [
        ("the usual", [file("f", b"1"), end()].concat(), 1),
        ("no end", file("f", b"1"), 1),
        ("one block of zeros", [file("f", b"1"), vec![0; BLOCK]].concat(), 1),
        ("nothing", Vec::new(), 0),
        ("only an end", end(), 0),
        ("rubbish behind the end", [file("f", b"1"), end(), vec![7; 100]].concat(), 1),
    ] {
        let mut reader = TarReader::new(&bytes[..]);
        let mut count = 0;
        while reader.next_entry().unwrap().is_some() {
            count += 1;
        }
        assert_eq!((count, reader.entries()), (expected, expected), "{what}");
        assert!(reader.next_entry().unwrap().is_none(), "{what}");
        assert_eq!(reader.drain().unwrap(), bytes.len() as u64, "{what}");
    }
}

#[test]
fn refuses_damaged_archives() {
    type Check = fn(&TarError) -> bool;
    let whole = [pax(&[("uid", b"1")]), file("f", &[1; 600]), end()].concat();
    for cut in 1..whole.len() - 2 * BLOCK {
        // a cut exactly between entries can't be seen here; the digest of the stream tells
        assert!(matches!(read(&whole[..cut]), Err(TarError::Truncated { .. })), "cut at {cut}");
    }
    let broken = {
        let mut bytes = [file("f", b"1"), file("g", b"1")].concat();
        bytes[2 * BLOCK] ^= 1;
        bytes
    };
    let lone = [file("f", b""), vec![0; BLOCK], file("g", b"")].concat();
    let dangling = [pax(&[("uid", b"1")]), end()].concat();
    let table: Vec<(&str, Vec<u8>, Check)> = vec![
        ("gzip", vec![0x1f; 1024], |e| matches!(e, TarError::NotTar)),
        ("text", b"<html>".repeat(200), |e| matches!(e, TarError::NotTar)),
        ("short", b"<html>".to_vec(), |e| matches!(e, TarError::Truncated { at: 6 })),
        ("a wrong checksum", broken, |e| matches!(e, TarError::Header { at: 1024, .. })),
        ("a lone block of zeros", lone, |e| matches!(e, TarError::Header { .. })),
        ("records without an entry", dangling, |e| matches!(e, TarError::Header { .. })),
        ("an unknown type", member(b'Z', b"f", b"", |_| {}), |e| e.to_string().contains("'Z'")),
        ("several volumes", member(b'M', b"f", b"", |_| {}), |e| matches!(e, TarError::Unsupported { .. })),
        ("a negative size", member(b'0', b"f", b"", |h| h.as_old_mut().size = [0xff; 12]), |e| {
            matches!(e, TarError::Header { .. })
        }),
        ("a number that is none", member(b'0', b"f", b"", |h| h.as_old_mut().uid = *b"rootroot"), |e| {
            matches!(e, TarError::Header { .. })
        }),
        ("a NUL in a name", [pax(&[("path", b"a\0b")]), file("f", b"")].concat(), |e| {
            matches!(e, TarError::Header { .. })
        }),
        ("a record that lies", [member(b'x', b"p", b"99 uid=1\n", |_| {}), file("f", b"")].concat(), |e| {
            matches!(e, TarError::Header { .. })
        }),
    ];
    for (what, bytes, expected) in table {
        let error = read(&bytes).expect_err(what);
        assert!(expected(&error), "{what}: {error:?}");
    }
}

#[test]
fn enforces_limits() {
    let limits = Limits { entries: 2, bytes: 8 * BLOCK as u64, header: 1000, segments: 1 };
    let is_limit = |bytes: Vec<u8>, what: &str| match read_within(&bytes, limits) {
        Err(TarError::Limit { what: found, .. }) => assert_eq!(found, what),
        other => panic!("{what}: {other:?}"),
    };
    assert!(read_within(&[file("a", b""), file("b", b""), end()].concat(), limits).is_ok());
    is_limit([file("a", b""), file("b", b""), file("c", b""), end()].concat(), "entries");
    is_limit(file("a", &vec![1; 9 * BLOCK]), "bytes");
    is_limit([pax(&[("comment", &[1; 1000])]), file("a", b"")].concat(), "bytes in an extended header");
    is_limit(member(b'L', b"x", &[b'x'; 1001], |_| {}), "bytes in an extended header");
    is_limit(member(b'0', b"bomb", b"", |header| header.set_size(u64::MAX >> 2)), "bytes");
    let sparse = |map: &[u8]| [pax(&[("GNU.sparse.size", b"99999"), ("GNU.sparse.map", map)]), file("f", b"")].concat();
    is_limit(sparse(b"5,0"), "bytes");
    let mut data = b"2\n0\n0\n0\n0\n".to_vec();
    data.resize(BLOCK, 0);
    is_limit(
        [pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"5")]), file("f", &data)].concat(),
        "segments in a sparse file",
    );
}

#[test]
fn names_the_place_of_a_failing_source() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("disk"))
        }
    }
    let bytes = file("f", b"1");
    let mut reader = TarReader::new(bytes.chain(Failing));
    reader.next_entry().unwrap();
    let error = reader.next_entry().unwrap_err();
    assert!(matches!(error, TarError::Read { at: 1024, .. }), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_what_the_crate_writes(files in proptest::collection::vec(("[a-z]{1,20}(/[a-z]{1,90}){0,3}", proptest::collection::vec(any::<u8>(), 0..1500), 0u32..0o10000), 0..8)) {
        let mut builder = Builder::new(Vec::new());
        for (path, content, mode) in &files {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            builder.append_data(&mut header, path, &content[..]).unwrap();
        }
        let entries = read(&builder.into_inner().unwrap()).unwrap();
        prop_assert_eq!(entries.len(), files.len());
        for ((entry, content), (path, expected, mode)) in entries.iter().zip(&files) {
            prop_assert_eq!((&entry.path[..], content, entry.mode), (path.as_bytes(), expected, *mode));
        }
    }

    #[test]
    fn survives_damage(flips in proptest::collection::vec((0usize..5 * BLOCK, any::<u8>()), 0..12), flag in any::<u8>(), records in "[ 0-9a-zA-Z.=\n]{0,80}") {
        let mut bytes = [member(b'x', b"p", records.as_bytes(), |_| {}), member(flag, b"f", &[b'1'; 700], |_| {}), end()].concat();
        for (at, value) in flips {
            bytes[at] = value;
        }
        // a checksum that fits lets the damage through to what lies behind
        for at in [0, 2 * BLOCK] {
            let mut header = Header::from_byte_slice(&bytes[at..at + BLOCK]).clone();
            header.set_cksum();
            bytes[at..at + BLOCK].copy_from_slice(header.as_bytes());
        }
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        // an error or entries; never a panic, and never more than the limits allow
        if let Ok(entries) = read_within(&bytes, limits) {
            prop_assert!(entries.iter().map(|(_, content)| content.len() as u64).sum::<u64>() <= limits.bytes);
        }
    }
}
