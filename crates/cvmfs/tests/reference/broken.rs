//! Each rule of the check, broken alone in a repository that is right in everything else.

use std::collections::{BTreeMap, BTreeSet};

use cvmfs::check::{CheckError, Options, Report, Rule, check};
use cvmfs::hash::{Algorithm, ContentHash, ObjectId, ObjectKind};
use cvmfs::keys::Signer;
use cvmfs::path::RepoPath;
use cvmfs::store::{MemoryStore, Store as _, names};
use time::Duration;

use crate::NOW;
use crate::fixtures::{Files, files};
use crate::laboratory::{Keys, Laboratory, at, rename};

/// How a rule is broken: the rule first, then what cannot but break with it.
type Case = (&'static [Rule], &'static str, fn(&mut Laboratory<'_>));

/// A small repository with hard links, and one with chunks and three levels of catalogs.
const LINKS: &str = "hardlinks";
const CHUNKS: &str = "rmd";

fn replace(laboratory: &Laboratory<'_>, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut content = laboratory.store.read(name).unwrap().unwrap();
    edit(&mut content);
    laboratory.store.replace(name, &content).unwrap();
}

fn flip_last(content: &mut [u8]) {
    *content.last_mut().unwrap() ^= 1;
}

fn first_object(laboratory: &Laboratory<'_>, kind: ObjectKind) -> ObjectId {
    let content = laboratory.store.content();
    let mut ids = content.keys().filter_map(|path| {
        let (bucket, name) = path.strip_prefix("data/")?.split_once('/')?;
        ObjectId::from_path_parts(bucket, name)
    });
    ids.find(|id| id.kind == kind).unwrap()
}

const NOTHING: &str = "0000000000000000000000000000000000000000";

#[rustfmt::skip]
const CASES: &[Case] = &[
    // The documents at the top.
    (&[Rule::ManifestSyntax], LINKS, |l| l.store.replace(names::MANIFEST, b"not a manifest").unwrap()),
    (&[Rule::ManifestSignature], LINKS, |l| replace(l, names::MANIFEST, |text| flip_last(text))),
    (&[Rule::ManifestSignature, Rule::ManifestTtl], LINKS, |l| replace(l, names::MANIFEST, |text| {
        let at = text.windows(5).position(|w| w == b"\nD240").unwrap();
        text[at + 2] = b'9';
    })),
    (&[Rule::ManifestName, Rule::HistoryName, Rule::Reflog], LINKS, |l| {
        l.manifest.name = "other.example.org".into();
        l.sign();
    }),
    (&[Rule::ManifestRevision], LINKS, |l| { l.manifest.revision -= 1; l.sign(); }),
    (&[Rule::ManifestTime], LINKS, |l| { l.manifest.published -= 86400; l.sign(); }),
    (&[Rule::ManifestTtl], LINKS, |l| { l.manifest.ttl = 900; l.sign(); }),
    (&[Rule::Certificate], LINKS, |l| l.remove(l.manifest.certificate.unwrap().object(ObjectKind::Certificate))),
    (&[Rule::Certificate], LINKS, |l| { l.manifest.certificate = None; l.sign(); }),
    (&[Rule::CertificateTrust], LINKS, |l| {
        let other = Signer::generate("other.example.org", NOW).unwrap();
        l.whitelist(&other.certificate_pem, &l.keys.master, NOW + Duration::days(1));
    }),
    (&[Rule::WhitelistExpired], LINKS, |l|
        l.whitelist(&l.keys.signer.certificate_pem, &l.keys.master, NOW - Duration::hours(1))),
    (&[Rule::WhitelistSignature], LINKS, |l|
        l.whitelist(&l.keys.signer.certificate_pem, &l.keys.signer.key, NOW + Duration::days(1))),
    (&[Rule::WhitelistSyntax], LINKS, |l| drop(l.store.content().remove(names::WHITELIST))),
    (&[Rule::WhitelistSignature], LINKS, |l| replace(l, names::WHITELIST, |text| flip_last(text))),
    (&[Rule::MetaInfo], LINKS, |l| l.remove(l.manifest.meta_info.unwrap().object(ObjectKind::MetaInfo))),
    (&[Rule::AlternativeLink], LINKS, |l| { l.manifest.alternative_paths = true; l.sign(); }),

    // Tags.
    (&[Rule::History], LINKS, |l| l.remove(l.manifest.history.unwrap().object(ObjectKind::History))),
    (&[Rule::History], LINKS, |l| l.history("DROP TABLE tags")),
    (&[Rule::HistoryName], LINKS, |l| l.history("UPDATE properties SET value = 'x.org' WHERE key = 'fqrn'")),
    (&[Rule::HistoryTagBranch], LINKS, |l|
        l.history("UPDATE tags SET branch = 'nowhere' WHERE name = 'trunk-previous'")),
    (&[Rule::HistoryTagRevision], LINKS, |l| l.history("UPDATE branches SET initial_revision = 3")),
    (&[Rule::HistoryUnusedBranch], LINKS, |l| l.history("INSERT INTO branches VALUES ('side', '', 1)")),
    (&[Rule::HistoryUnusedBranch], LINKS, |l| l.history("DELETE FROM tags")),
    (&[Rule::HistoryTagRoot], LINKS, |l|
        l.history(&format!("UPDATE tags SET hash = '{NOTHING}' WHERE name = 'trunk-previous'"))),

    // Reflog.
    (&[Rule::ReflogMissing], LINKS, |l| drop(l.store.content().remove(names::REFLOG))),
    (&[Rule::ReflogUnknownHash], LINKS, |l| { l.manifest.reflog = None; l.sign(); }),
    (&[Rule::ReflogHash], LINKS, |l| replace(l, names::REFLOG, |content| content.push(0))),
    (&[Rule::Reflog], LINKS, |l| {
        l.edit_reflog(|file| std::fs::write(file, "no database").unwrap());
        l.sign();
    }),
    (&[Rule::ReflogEntry], LINKS, |l| {
        l.edit_reflog(|file| {
            rusqlite::Connection::open(file).unwrap().execute("DELETE FROM refs WHERE type = 2", ()).unwrap();
        });
        l.sign();
    }),

    // Catalogs as a whole.
    (&[Rule::CatalogObject], LINKS, |l| l.remove(l.nested("/nested").object(ObjectKind::Catalog))),
    (&[Rule::CatalogDatabase], LINKS, |l| l.catalog("/nested", "DROP TABLE nested_catalogs")),
    (&[Rule::CatalogDatabase], LINKS, |l| l.catalog("/nested", "CREATE VIEW v AS SELECT 1")),
    (&[Rule::CatalogDatabase], LINKS, |l| l.catalog("/nested", "PRAGMA journal_mode = WAL")),
    (&[Rule::CatalogDatabase], LINKS, |l|
        l.catalog("/nested", "UPDATE properties SET value = '3.0' WHERE key = 'schema'")),
    (&[Rule::CatalogIndex], LINKS, |l| l.catalog("/nested", "DROP INDEX idx_catalog_parent")),
    (&[Rule::CatalogSize], LINKS, |l| l.catalog("/", "UPDATE nested_catalogs SET size = size + 1024")),
    (&[Rule::CatalogSize], LINKS, |l| { l.manifest.root_catalog_size += 1024; l.sign(); }),
    (&[Rule::CatalogRoot], LINKS, |l| l.catalog("/nested", "DELETE FROM catalog WHERE flags & 32")),
    (&[Rule::RootRow], LINKS, |l| l.catalog("/", "UPDATE catalog SET rowid = 1000 WHERE rowid = 1")),
    (&[Rule::RootPrefix], LINKS, |l|
        l.catalog("/nested", "UPDATE properties SET value = '/elsewhere' WHERE key = 'root_prefix'")),
    (&[Rule::RootPrefix], LINKS, |l| l.catalog("/nested", "DELETE FROM properties WHERE key = 'root_prefix'")),
    (&[Rule::NestedFlags], LINKS, |l| l.catalog("/nested", "UPDATE catalog SET flags = 1 WHERE flags & 32")),
    (&[Rule::Transition], LINKS, |l| l.catalog("/nested", "UPDATE catalog SET mtime = mtime + 1 WHERE flags & 32")),
    (&[Rule::Transition], LINKS, |l| l.catalog("/", "UPDATE catalog SET mode = 16832 WHERE flags & 2")),
    (&[Rule::TransitionOwner], LINKS, |l| l.catalog("/", "UPDATE catalog SET uid = 7 WHERE flags & 2")),

    // Rows.
    (&[Rule::MalformedRow], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET symlink = NULL WHERE {}", at("/new_repository")))),
    (&[Rule::MalformedRow, Rule::Counter], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET mode = 0 WHERE {}", at("/new_repository")))),
    (&[Rule::MalformedRow, Rule::Counter], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET size = 1 << 62 WHERE {}", at("/new_repository")))),
    (&[Rule::PathKey], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET md5path_1 = 1 WHERE {}", at("/new_repository")))),
    (&[Rule::PathKey, Rule::UnreachableRows, Rule::Counter], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET md5path_1 = 1 WHERE {}", at("/cross/sub")))),
    (&[Rule::EntryName], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET name = '' WHERE {}", at("/new_repository")))),
    (&[Rule::TypeFlags], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = 12 WHERE {}", at("/new_repository")))),
    (&[Rule::XattrBlob], LINKS, |l| l.catalog("/", "UPDATE catalog SET xattr = x'0201' WHERE xattr IS NOT NULL")),
    (&[Rule::MarkerPlace], LINKS, |l| l.catalog("/", &rename("/cross/a", "/cross/.cvmfscatalog"))),
    (&[Rule::MarkerMissing], LINKS, |l| l.catalog("/nested", &rename("/nested/.cvmfscatalog", "/nested/marker"))),
    (&[Rule::ContentHash], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = NULL WHERE {}", at("/new_repository")))),
    (&[Rule::ObjectMissing], LINKS, |l| l.catalog("/", &format!(
        "UPDATE catalog SET hash = x'{NOTHING}' WHERE {}", at("/new_repository")))),
    (&[Rule::ChunkMissing], CHUNKS, |l| l.remove(first_object(l, ObjectKind::Chunk))),
    (&[Rule::ChunkOffset], CHUNKS, |l| l.catalog("/", "UPDATE chunks SET offset = offset + 1 WHERE offset > 0")),
    (&[Rule::ChunkOffset, Rule::ChunkSum, Rule::Counter], CHUNKS, |l|
        l.catalog("/", "DELETE FROM chunks WHERE offset = 0")),
    (&[Rule::ChunkSum], CHUNKS, |l|
        l.catalog("/", "UPDATE chunks SET size = size - 1 WHERE offset = (SELECT max(offset) FROM chunks)")),
    (&[Rule::ChunkStray], CHUNKS, |l|
        l.catalog("/", &format!("INSERT INTO chunks VALUES (1, 2, 0, 3, x'{NOTHING}')"))),
    (&[Rule::LinkCount], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 0 WHERE {}", at("/new_repository")))),
    (&[Rule::HardlinkGroup], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 2 WHERE {}", at("/new_repository")))),
    (&[Rule::HardlinkGroup], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET mode = mode + 1 WHERE {}", at("/hl/a")))),
    (&[Rule::HardlinkGroup], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 1 WHERE {}", at("/hl/p")))),
    (&[Rule::HardlinkGroup], LINKS, |l| l.catalog("/", &format!(
        "UPDATE catalog SET hardlinks = (99 << 32) | hardlinks WHERE {}", at("/cross/sub")))),
    (&[Rule::DirectoryLinks], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hardlinks = 4 WHERE {}", at("/cross")))),
    (&[Rule::DirectIo], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 65536 WHERE {}", at("/hl/sym")))),
    (&[Rule::External], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = flags | 128 WHERE {}", at("/hl/sym")))),
    (&[Rule::Symlink], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET hash = x'{NOTHING}' WHERE {}", at("/hl/sym")))),
    (&[Rule::SpecialFile], CHUNKS, |l| l.catalog("/", &format!("UPDATE catalog SET size = 5 WHERE {}", at("/fifo")))),
    (&[Rule::SpecialFile], CHUNKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET symlink = 'x' WHERE {}", at("/fifo")))),

    // Nesting and statistics.
    (&[Rule::NestedUnregistered, Rule::Counter], LINKS, |l| l.catalog("/", "DELETE FROM nested_catalogs")),
    (&[Rule::NestedStray, Rule::RootPrefix], LINKS, |l|
        l.catalog("/", "INSERT INTO nested_catalogs SELECT '/stray', sha1, size FROM nested_catalogs")),
    (&[Rule::NestedCovered, Rule::UnreachableRows], LINKS, |l| {
        let (file, parent) = (at("/new_repository"), RepoPath::parse("/nested").unwrap().key());
        l.catalog("/", &format!(
            "CREATE TEMP TABLE copy AS SELECT * FROM catalog WHERE {file};
             UPDATE copy SET md5path_1 = 1, parent_1 = {}, parent_2 = {};
             INSERT INTO catalog SELECT * FROM copy", parent.high, parent.low));
    }),
    (&[Rule::NestedExclusive], LINKS, |l|
        l.catalog("/", "INSERT INTO bind_mountpoints SELECT * FROM nested_catalogs")),
    (&[Rule::BindUnregistered, Rule::UnreachableRows, Rule::NestedCovered, Rule::Counter], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET flags = 16385 WHERE {}", at("/cross/sub")))),
    (&[Rule::UnreachableRows, Rule::Counter], LINKS, |l|
        l.catalog("/", &format!("UPDATE catalog SET parent_1 = 1 WHERE {}", at("/new_repository")))),
    (&[Rule::CounterMissing], LINKS, |l|
        l.catalog("/nested", "DELETE FROM statistics WHERE counter = 'self_xattr'")),
    (&[Rule::Counter], LINKS, |l|
        l.catalog("/", "UPDATE statistics SET value = value + 1 WHERE counter = 'self_regular'")),
    (&[Rule::Counter], CHUNKS, |l|
        l.catalog("/", "UPDATE statistics SET value = value - 1 WHERE counter = 'subtree_dir'")),

    // Stored bytes.
    (&[Rule::ObjectName], LINKS, |l| drop(l.store.content().insert("data/stray".into(), Vec::new()))),
    (&[Rule::ObjectName], LINKS, |l| drop(l.store.content().insert("data/00/nonsense".into(), Vec::new()))),
    (&[Rule::ObjectName], LINKS, |l| drop(l.store.content().insert("data/00/a/b".into(), Vec::new()))),
    (&[Rule::ObjectContent], LINKS, |l| {
        let id = first_object(l, ObjectKind::File);
        flip_last(l.store.content().get_mut(&id.path()).unwrap());
    }),
];

fn print(report: &Report) -> String {
    report.findings.iter().map(|f| format!("  {f}\n")).collect()
}

#[test]
fn each_broken_rule_is_named() {
    let keys = Keys::generate();
    let bases: BTreeMap<&str, Files> = [LINKS, CHUNKS].map(|name| (name, files(name))).into();
    let mut wrong = String::new();
    for (number, (expected, base, sabotage)) in CASES.iter().enumerate() {
        let mut laboratory = Laboratory::new(&bases[base], &keys);
        sabotage(&mut laboratory);
        let report = laboratory.examine();
        let found: BTreeSet<Rule> = report.counts.keys().copied().collect();
        if found != expected.iter().copied().collect() {
            wrong += &format!("case {number}, {expected:?}: found\n{}", print(&report));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let covered: BTreeSet<Rule> = CASES.iter().map(|(expected, ..)| expected[0]).collect();
    let missing: Vec<&Rule> = Rule::ALL.iter().filter(|rule| !covered.contains(rule)).collect();
    assert!(missing.is_empty(), "rules without a case: {missing:?}");
}

#[test]
fn what_is_not_broken_is_sound() {
    let keys = Keys::generate();
    let harmless: [fn(&mut Laboratory<'_>); 6] = [
        |_| {},
        // Repositories without tags, meta info and reflog are in order.
        |l| {
            (l.manifest.history, l.manifest.meta_info, l.manifest.reflog) = (None, None, None);
            l.store.content().remove(names::REFLOG);
            l.sign();
        },
        // External files are elsewhere.
        |l| {
            l.catalog(
                "/",
                &format!(
                    "UPDATE catalog SET flags = flags | 128, hash = x'{NOTHING}' WHERE {};
             UPDATE statistics SET value = 1 WHERE counter = 'self_external';
             UPDATE statistics SET value = (SELECT size FROM catalog WHERE flags & 128)
               WHERE counter = 'self_external_file_size'",
                    at("/new_repository")
                ),
            );
        },
        // Revision 6 knew no nanoseconds, revision 4 no special files in its statistics.
        |l| {
            l.catalog(
                "/nested",
                "ALTER TABLE catalog DROP COLUMN mtimens;
            UPDATE properties SET value = '6' WHERE key = 'schema_revision'",
            );
        },
        |l| {
            l.catalog(
                "/nested",
                "ALTER TABLE catalog DROP COLUMN mtimens;
            DELETE FROM statistics WHERE counter LIKE '%special';
            UPDATE properties SET value = '4' WHERE key = 'schema_revision'",
            );
        },
        // A bind mountpoint that is registered; what stood below it goes.
        |l| {
            l.catalog(
                "/",
                &format!(
                    "INSERT INTO bind_mountpoints SELECT '/cross/sub', sha1, size FROM nested_catalogs;
             UPDATE catalog SET flags = 16385 WHERE {};
             UPDATE statistics SET value = value - 1 WHERE counter = 'self_regular';
             UPDATE statistics SET value = value - (SELECT size FROM catalog WHERE {below})
               WHERE counter = 'self_file_size';
             DELETE FROM catalog WHERE {below}",
                    at("/cross/sub"),
                    below = at("/cross/sub/b")
                ),
            );
        },
    ];
    for (number, change) in harmless.into_iter().enumerate() {
        let mut laboratory = Laboratory::new(&files(LINKS), &keys);
        change(&mut laboratory);
        let report = laboratory.examine();
        assert!(report.findings.is_empty(), "case {number}:\n{}", print(&report));
    }
}

#[test]
fn wrong_numbers_deep_down_are_reported_at_each_level_that_holds_them() {
    let keys = Keys::generate();
    let mut laboratory = Laboratory::new(&files(CHUNKS), &keys);
    // A file goes, and nobody counts it off: three catalogs are wrong.
    laboratory.catalog("/nested/inner", &format!("DELETE FROM catalog WHERE {}", at("/nested/inner/new")));
    let report = laboratory.examine();
    let places: BTreeSet<&str> = report.findings.iter().map(|f| f.place.split(' ').next().unwrap()).collect();
    assert_eq!(places, BTreeSet::from(["/", "/nested", "/nested/inner"]), "{}", print(&report));
    assert!(report.findings.iter().all(|f| f.rule == Rule::Counter), "{}", print(&report));
}

#[test]
fn a_storage_without_manifest_is_unreadable() {
    let scratch = tempfile::tempdir().unwrap();
    let error = check(&MemoryStore::default(), &Options::new(scratch.path())).unwrap_err();
    assert!(matches!(error, CheckError::NoManifest(_)));
}

#[test]
fn the_local_checksum_goes_before_the_manifest() {
    let keys = Keys::generate();
    let laboratory = Laboratory::new(&files(LINKS), &keys);
    let scratch = tempfile::tempdir().unwrap();
    let right = laboratory.manifest.reflog;
    let wrong = Some(ContentHash::null(Algorithm::Sha1));
    for (checksum, sound) in [(None, true), (right, true), (wrong, false)] {
        let options = Options { reflog_checksum: checksum, ..Options::new(scratch.path()) };
        let report = check(&laboratory.store, &options).unwrap();
        assert_eq!(report.has(Rule::ReflogHash), !sound, "{}", print(&report));
    }
}
