//! Everything that can be broken (`broken.rs`, `damaged/`) is repaired, or refused with a reason; a repair is one publish
//! and leaves nothing else wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cvmfs::check::Rule;
use cvmfs::entry::{Entry, Flags, Meta};
use cvmfs::hash::ObjectKind;
use cvmfs::manifest::Manifest;
use cvmfs::object::Compression;
use cvmfs::repair::{Findings, Tools, survey};
use cvmfs::repository::Repository;
use cvmfs::store::{MemoryStore, Store as _, names, put_stream};
use cvmfs::subtree::MARKER;
use cvmfs::transaction::{Commit, Transaction, TransactionOptions};
use cvmfs::trust::Anchor;

use crate::NOW;
use crate::damage::CASES;
use crate::fixtures::{Files, NAMES, base_of, damage, files};
use crate::laboratory::{Keys, Laboratory};

/// Repairs what is in the laboratory; what was done, or why nothing could be.
fn repair(laboratory: &mut Laboratory<'_>, keys: &Keys) -> Result<Findings, String> {
    let store = Arc::new(MemoryStore::default());
    store.content().clone_from(&laboratory.store.content());
    let whitelist = store.read(names::WHITELIST).unwrap().unwrap_or_default();
    let text = String::from_utf8_lossy(&whitelist).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix('N')).unwrap_or_default();
    let master_keys = [keys.master.public()];
    let anchor = Anchor { name, master_keys: &master_keys, blacklist: &[], now: NOW };
    let repository = Repository::open(store.clone(), &anchor).map_err(|e| e.to_string())?;
    let scratch = tempfile::tempdir().unwrap();
    let algorithm = repository.algorithm();
    let (empty, _) = put_stream(&*store, algorithm, ObjectKind::File, &mut &b""[..]).unwrap();
    let meta = Meta { permissions: 0o644, ..Meta::default() };
    let mut marker = Entry::file(MARKER, meta, 0, empty, Compression::Zlib);
    marker.flags = marker.flags.with(Flags::HIDDEN);
    let tools = Tools { store: &*store, scratch: scratch.path(), now: 0, marker: &marker };
    let before = store.content().len();
    let surveyed = survey(tools, repository.manifest()).map_err(|e| e.to_string())?;
    assert_eq!(store.content().len(), before, "a survey writes nothing");
    let revision = repository.manifest().revision;
    let options = TransactionOptions { now: NOW, scratch: scratch.path().to_owned(), marker: marker.clone() };
    let (transaction, findings) = Transaction::begin_repaired(repository, options).map_err(|e| e.to_string())?;
    assert_eq!(findings, surveyed, "what was shown is what is done");
    let commit = Commit { signer: &keys.signer, reflog_checksum: None, tags: &[], ttl: None };
    let published = transaction.commit(&commit).map_err(|e| e.to_string())?;
    assert!(published.repository.manifest().revision > revision);
    laboratory.store.content().clone_from(&store.content());
    laboratory.manifest = Manifest::parse(&store.read(names::MANIFEST).unwrap().unwrap()).unwrap();
    Ok(findings)
}

/// How many of its cases are beyond repair, for every rule that has such.
#[rustfmt::skip]
const BEYOND_REPAIR: &[(Rule, usize)] = &[
    // Who may say what is right is decided by keys, not by a repair.
    (Rule::ManifestSyntax, 2), (Rule::ManifestSignature, 2), (Rule::ManifestName, 1), (Rule::Certificate, 2),
    (Rule::CertificateTrust, 1), (Rule::WhitelistSyntax, 1), (Rule::WhitelistSignature, 2), (Rule::WhitelistExpired, 1),
    // Objects that are gone or are not what they were.
    (Rule::MetaInfo, 1), (Rule::History, 2), (Rule::CatalogObject, 1), (Rule::CatalogDatabase, 3),
    (Rule::ObjectMissing, 1), (Rule::ChunkMissing, 1), (Rule::ObjectContent, 1), (Rule::ObjectName, 3),
    // Values that nothing else tells.
    (Rule::MalformedRow, 2), (Rule::EntryName, 1), (Rule::MarkerPlace, 1), (Rule::ContentHash, 1),
    (Rule::ChunkOffset, 1), (Rule::NestedUnregistered, 1),
];

#[test]
fn what_breaks_a_rule_is_repaired_or_refused_with_a_reason() {
    let keys = Keys::generate();
    let bases: BTreeMap<&str, Files> = CASES.iter().map(|(_, base, ..)| (*base, files(base))).collect();
    let mut beyond: BTreeMap<Rule, usize> = BTreeMap::new();
    let mut table = String::new();
    let mut wrong = String::new();
    for (number, (rules, base, what, sabotage)) in CASES.iter().enumerate() {
        let mut laboratory = Laboratory::new(&bases[base], &keys);
        sabotage(&mut laboratory);
        let broken: BTreeSet<Rule> = laboratory.examine().counts.keys().copied().collect();
        let outcome = repair(&mut laboratory, &keys);
        let report = laboratory.examine();
        let left: BTreeSet<Rule> = report.counts.keys().copied().collect();
        if left.is_empty() {
            table += &format!("{:<22} {what}: repaired\n", rules[0].name());
            continue;
        }
        *beyond.entry(rules[0]).or_default() += 1;
        let reasons: Vec<String> = match &outcome {
            Ok(findings) => findings.refusals.iter().map(|r| format!("{}: {}", r.rule.name(), r.why)).collect(),
            Err(why) => vec![why.clone()],
        };
        table += &format!("{:<22} {what}: refused, left {left:?} {reasons:?}\n", rules[0].name());
        for new in left.difference(&broken) {
            wrong += &format!("case {number}, {what}, {:?}: {} came with the repair\n", rules[0], new.name());
        }
    }
    eprintln!("{table}");
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(beyond, BEYOND_REPAIR.iter().copied().collect());
}

#[test]
fn damaged_fixtures_are_repaired_where_the_catalogs_are_at_fault() {
    // What is left of the faults of the copies that are trusted: objects that are gone or are not what they were.
    let expected: BTreeMap<&str, &[Rule]> = BTreeMap::from([
        ("chunk-gap", &[][..]),
        ("manifest-revision-behind", &[]),
        ("manifest-time-behind", &[]),
        ("orphan-row", &[]),
        ("transition-mismatch", &[]),
        ("wrong-catalog-size", &[]),
        ("wrong-counter", &[]),
        ("wrong-linkcount", &[]),
        ("wrong-nested-size", &[]),
        ("wrong-reflog-hash", &[]),
        ("missing-object", &[Rule::ObjectMissing]),
        ("missing-chunk", &[Rule::ChunkMissing]),
        ("missing-nested-catalog", &[Rule::CatalogObject]),
        ("missing-nested-row", &[Rule::NestedUnregistered]),
        ("corrupt-object", &[Rule::ObjectContent]),
        ("substituted-object", &[Rule::ObjectContent]),
        ("truncated-object", &[Rule::ObjectContent]),
    ]);
    let keys = Keys::generate();
    for (case, expected) in expected {
        let mut damaged = files(&base_of(case));
        damage(&mut damaged, case);
        let mut laboratory = Laboratory::with_faults(&damaged, &keys);
        assert!(!laboratory.examine().counts.is_empty(), "{case} is damaged");
        let findings = repair(&mut laboratory, &keys).unwrap_or_else(|e| panic!("{case}: {e}"));
        let report = laboratory.examine();
        let left: BTreeSet<Rule> = report.counts.keys().copied().collect();
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert_eq!(left, expected.iter().copied().collect(), "{case}: {texts:?}\n{findings:?}");
    }
}

#[test]
fn what_is_sound_is_left_alone() {
    let keys = Keys::generate();
    let older: [fn(&mut Laboratory<'_>); 3] = [
        |_| {},
        // As before the first publish; D has the default.
        |l| l.catalog("/", "DELETE FROM properties WHERE key = 'TTL'"),
        // Revision 4 of the schema counted no special files.
        |l| {
            l.catalog(
                "/nested",
                "ALTER TABLE catalog DROP COLUMN mtimens;
            DELETE FROM statistics WHERE counter LIKE '%special';
            UPDATE properties SET value = '4' WHERE key = 'schema_revision'",
            );
        },
    ];
    let cases =
        NAMES.map(|name| (name, older[0])).into_iter().chain([("hardlinks", older[1]), ("hardlinks", older[2])]);
    for (name, change) in cases {
        let mut laboratory = Laboratory::new(&files(name), &keys);
        change(&mut laboratory);
        let findings = repair(&mut laboratory, &keys).unwrap();
        assert_eq!(findings, Findings::default(), "{name}");
        let report = laboratory.examine();
        assert!(report.findings.is_empty(), "{name}: {:?}", report.findings);
    }
}
