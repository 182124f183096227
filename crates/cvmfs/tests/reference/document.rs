//! `doc/CHECK.md` says what the rules are and that each has a damaged copy.

use std::fmt::Write as _;
use std::path::Path;

use cvmfs::check::{Origin, Rule, Severity};

use crate::damage::CASES;

const BEGIN: &str = "<!-- rules: written by the test, see above -->\n";

fn table() -> String {
    let mut table = String::from("\n| rule | what is wrong | | reference | damaged copies |\n|---|---|---|---|---|\n");
    for rule in Rule::ALL {
        let severity = match rule.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let reference = match rule.origin() {
            Origin::Check => "check",
            Origin::Remote => "check over HTTP",
            Origin::Scrub => "scrub",
            Origin::Ours => "–",
        };
        let copies: Vec<&str> =
            CASES.iter().filter(|(rules, ..)| rules[0] == *rule).map(|(_, _, what, _)| *what).collect();
        assert!(!copies.is_empty(), "no damaged copy for {}", rule.name());
        let _ = writeln!(
            table,
            "| `{}` | {} | {severity} | {reference} | {} |",
            rule.name(),
            rule.text(),
            copies.join("; ")
        );
    }
    table
}

#[test]
fn each_rule_is_documented_and_has_a_damaged_copy() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../doc/CHECK.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (above, _) = text.split_once(BEGIN).expect("the place of the table");
    let wanted = format!("{above}{BEGIN}{}", table());
    if std::env::var_os("UPDATE_CHECK_DOC").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    } else {
        assert!(text == wanted, "doc/CHECK.md is not up to date: run this test with UPDATE_CHECK_DOC=1");
    }
}
