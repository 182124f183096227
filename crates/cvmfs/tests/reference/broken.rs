//! Each rule of the check, broken alone in a repository that is right in everything else.

use std::collections::{BTreeMap, BTreeSet};

use cvmfs::catalog::counters::Counters;
use cvmfs::check::{CheckError, Finding, Options, Report, Rule, check};
use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::store::{MemoryStore, names};

use crate::damage::{CASES, CHUNKS, LINKS, NOTHING};
use crate::fixtures::{Files, files};
use crate::laboratory::{Keys, Laboratory, at};

fn print(report: &Report) -> String {
    report.findings.iter().map(|f| format!("  {f}\n")).collect()
}

/// The table of damaged copies: `cargo nextest run -p cvmfs --success-output final each_broken_rule`.
#[test]
fn each_broken_rule_is_named() {
    let keys = Keys::generate();
    let bases: BTreeMap<&str, Files> = [LINKS, CHUNKS].map(|name| (name, files(name))).into();
    let mut wrong = String::new();
    let list = |rules: &[Rule]| rules.iter().map(|rule| rule.name()).collect::<Vec<_>>().join(", ");
    println!("{:<24}{:<70}reported", "rule", "damaged copy");
    for (expected, base, what, sabotage) in CASES {
        let mut laboratory = Laboratory::new(&bases[base], &keys);
        sabotage(&mut laboratory);
        let report = laboratory.examine();
        let found: BTreeSet<Rule> = report.counts.keys().copied().collect();
        println!("{:<24}{what:<70}{}", expected[0].name(), list(&found.iter().copied().collect::<Vec<_>>()));
        if found != expected.iter().copied().collect() {
            wrong += &format!("{}: {what}: not {}, but\n{}", expected[0].name(), list(expected), print(&report));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Every counter, wrong and missing, in a nested catalog.
#[test]
fn each_of_the_24_counters_is_verified() {
    let keys = Keys::generate();
    let base = files(CHUNKS);
    let names: Vec<String> = Counters::default().rows().map(|(name, _)| name).collect();
    assert_eq!(names.len(), 24);
    for name in names {
        for (sql, rule) in [
            (format!("UPDATE statistics SET value = value + 1 WHERE counter = '{name}'"), Rule::Counter),
            (format!("DELETE FROM statistics WHERE counter = '{name}'"), Rule::CounterMissing),
        ] {
            let mut laboratory = Laboratory::new(&base, &keys);
            laboratory.catalog("/nested", &sql);
            let report = laboratory.examine();
            let named = |f: &Finding| {
                f.rule == rule
                    && f.place.starts_with("/nested ")
                    && format!("{} {}", f.expected, f.found).contains(&name)
            };
            assert!(report.findings.iter().all(named) && report.findings.len() == 1, "{sql}:\n{}", print(&report));
        }
    }
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
