//! The verdict on every fixture and on every damaged one.

use std::collections::BTreeMap;

use cvmfs::check::{Identity, Options, Report, Rule, Severity, check};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::scrub::scrub;
use cvmfs::store::{Listing, LocalStore, MemoryStore};

use crate::fixtures::{self, Files, Fixture, NAMES, base_of, damage};
use crate::trusting;

/// Check with the master key, then all stored bytes.
fn examine(store: &dyn Listing, fixture: &Fixture, reflog_checksum: Option<ContentHash>) -> Report {
    let mut report = trusting(fixture, |anchor| {
        let options = Options { identity: Identity::Trusted(anchor), reflog_checksum, ..Options::new(fixture.top()) };
        check(store, &options).unwrap()
    });
    report.merge(scrub(store, 2).unwrap());
    report
}

fn print(report: &Report) -> String {
    report.findings.iter().map(|f| format!("  {f}\n")).collect()
}

fn rules(report: &Report) -> Vec<Rule> {
    report.counts.keys().copied().collect()
}

fn reflog_hash(fixture: &Fixture) -> ContentHash {
    ContentHash::of(Algorithm::Sha1, &std::fs::read(fixture.storage.join(".cvmfsreflog")).unwrap())
}

#[test]
fn finds_nothing_in_what_the_reference_implementation_wrote() {
    for name in NAMES {
        let fixture = Fixture::unpack(name);
        // A collection rewrites the reflog and signs nothing; a stratum 1 has a reflog of its own.
        let stale = ["gc", "basic-s1"].contains(&name);
        let store = LocalStore::open(&fixture.storage);
        let report = examine(&store, &fixture, None);
        let expected: &[Rule] = if stale { &[Rule::ReflogHash] } else { &[] };
        assert_eq!(rules(&report), expected, "{name}:\n{}", print(&report));
        assert_eq!(report.is_sound(), !stale);

        let info = fixture.info();
        assert_eq!(report.catalogs, info["catalogs"].as_array().unwrap().len() as u64, "{name}");
        assert_eq!(report.objects, info["objects"]["total"].as_u64().unwrap(), "{name}");
        let rows = info["catalogs"].as_array().unwrap().iter().map(|c| c["rows"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(report.rows, rows, "{name}");

        if stale {
            let report = examine(&store, &fixture, Some(reflog_hash(&fixture)));
            assert!(report.findings.is_empty(), "{name}:\n{}", print(&report));
        }
    }
}

#[test]
fn checks_what_the_existing_publisher_wrote() {
    for (name, expected) in [
        ("ducc-run1", &[][..]),
        ("ducc", &[]),
        ("ducc-gc", &[]),
        // A layer that turns a file into a directory left wrong counts behind.
        ("ducc-odd", &[Rule::TypeFlags, Rule::DirectoryLinks, Rule::Counter]),
    ] {
        match Fixture::find(name) {
            Some(fixture) => {
                let report = examine(&LocalStore::open(&fixture.storage), &fixture, None);
                assert_eq!(rules(&report), expected, "{name}:\n{}", print(&report));
            }
            None => println!("skipped: no fixture {name} in the directory that CVMFS_FIXTURES names"),
        }
    }
}

/// Case of `damaged/`, and the rules that it breaks, all of them.
const DAMAGED: &[(&str, &[Rule])] = &[
    ("bad-manifest-hash", &[Rule::ManifestSignature, Rule::ManifestTtl]),
    ("bad-manifest-signature", &[Rule::ManifestSignature]),
    ("chunk-gap", &[Rule::ChunkOffset, Rule::ChunkSum]),
    ("corrupt-object", &[Rule::ObjectContent]),
    ("expired-whitelist", &[Rule::WhitelistExpired]),
    ("manifest-other-key", &[Rule::ManifestSignature]),
    ("manifest-other-name", &[Rule::ManifestName, Rule::HistoryName, Rule::Reflog]),
    ("manifest-revision-behind", &[Rule::ManifestRevision]),
    ("manifest-time-behind", &[Rule::ManifestTime]),
    ("missing-chunk", &[Rule::ChunkMissing]),
    ("missing-nested-catalog", &[Rule::CatalogObject]),
    ("missing-nested-row", &[Rule::NestedUnregistered, Rule::Counter]),
    ("missing-object", &[Rule::ObjectMissing]),
    ("orphan-row", &[Rule::DirectoryLinks, Rule::UnreachableRows, Rule::Counter]),
    ("substituted-object", &[Rule::ObjectContent]),
    ("transition-mismatch", &[Rule::Transition]),
    ("truncated-object", &[Rule::ObjectContent]),
    ("update-S-same", &[Rule::ManifestRevision]),
    ("update-T-behind", &[Rule::ManifestTime]),
    ("update-bad-signature", &[Rule::ManifestSignature]),
    ("update-catalog-revision-same", &[Rule::ManifestRevision]),
    ("update-expired-whitelist", &[Rule::WhitelistExpired]),
    ("update-missing-root-catalog", &[Rule::HistoryTagRoot, Rule::CatalogObject]),
    ("update-none", &[]),
    ("update-older", &[]),
    ("whitelist-other-fingerprint", &[Rule::CertificateTrust]),
    ("whitelist-other-key", &[Rule::WhitelistSignature]),
    ("wrong-catalog-size", &[Rule::CatalogSize]),
    ("wrong-counter", &[Rule::Counter]),
    ("wrong-linkcount", &[Rule::HardlinkGroup]),
    ("wrong-nested-size", &[Rule::CatalogSize]),
    ("wrong-reflog-hash", &[Rule::ReflogHash]),
];

#[test]
fn names_the_broken_rules_of_every_damaged_repository() {
    let mut cases: Vec<String> = std::fs::read_dir(fixtures::directory().join("damaged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    cases.sort();
    assert_eq!(cases, DAMAGED.iter().map(|(case, _)| *case).collect::<Vec<_>>(), "the table is complete");
    let mut wrong = String::new();
    let mut bases: BTreeMap<String, (Fixture, Files)> = BTreeMap::new();
    for (case, expected) in DAMAGED {
        let base = base_of(case);
        let (fixture, files) =
            bases.entry(base.clone()).or_insert_with(|| (Fixture::unpack(&base), fixtures::files(&base)));
        let store = MemoryStore::default();
        store.content().clone_from(files);
        damage(&mut store.content(), case);
        let report = examine(&store, fixture, None);
        if rules(&report) != *expected {
            wrong += &format!("{case}: {:?} instead of {expected:?}\n{}", rules(&report), print(&report));
        }
        assert_eq!(report.is_sound(), expected.iter().all(|r| r.severity() == Severity::Warning), "{case}");
    }
    assert!(wrong.is_empty(), "{wrong}");
}
