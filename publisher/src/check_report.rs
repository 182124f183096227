//! What `check` found, told to people and to programs.
//!
//! Findings quote paths and bytes of the repository, so everything printed for people is made harmless first. The
//! JSON form is versioned (`schema`); names of rules are stable, texts are not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cvmfs::check::{Report, Severity};
use indicatif::DecimalBytes;
use serde::Serialize;

use crate::error::printable;

/// The report for people: one line a finding, then the verdict with what was looked at.
pub fn to_text(report: &Report, fqrn: &str) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "{:<8} {}", word(finding.severity()), printable(&finding.to_string()));
    }
    if report.suppressed() > 0 {
        let _ = writeln!(text, "and {} more findings, not listed", report.suppressed());
    }
    let _ = write!(text, "{}: {}", printable(fqrn), if report.is_sound() { "sound" } else { "NOT sound" });
    for (severity, name) in [(Severity::Error, "errors"), (Severity::Warning, "warnings")] {
        let of_severity = report.counts.iter().filter(|(rule, _)| rule.severity() == severity);
        match of_severity.map(|(_, count)| count).sum::<u64>() {
            0 => {}
            count => drop(write!(text, ", {count} {name}")),
        }
    }
    let _ =
        write!(text, " ({} catalogs, {} rows, {} objects looked for", report.catalogs, report.rows, report.references);
    if report.objects > 0 {
        let _ = write!(text, "; {} objects read, {}", report.objects, DecimalBytes(report.bytes));
    }
    text.push_str(")\n");
    text
}

/// The report for programs: one JSON object, with a line feed at its end.
pub fn to_json(report: &Report, fqrn: &str) -> String {
    let json = Json {
        schema: 1,
        repository: fqrn,
        sound: report.is_sound(),
        findings: report
            .findings
            .iter()
            .map(|finding| JsonFinding {
                rule: finding.rule.name(),
                severity: word(finding.severity()),
                text: finding.rule.text(),
                place: &finding.place,
                expected: Some(finding.expected.as_str()).filter(|e| !e.is_empty()),
                found: Some(finding.found.as_str()).filter(|f| !f.is_empty()),
            })
            .collect(),
        suppressed: report.suppressed(),
        counts: report.counts.iter().map(|(rule, count)| (rule.name(), *count)).collect(),
        catalogs: report.catalogs,
        rows: report.rows,
        references: report.references,
        objects: report.objects,
        bytes: report.bytes,
    };
    let mut text = serde_json::to_string_pretty(&json).expect("a report holds only strings and numbers");
    text.push('\n');
    text
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

#[derive(Serialize)]
struct Json<'a> {
    schema: u32,
    repository: &'a str,
    sound: bool,
    findings: Vec<JsonFinding<'a>>,
    /// Findings beyond those listed.
    suppressed: u64,
    /// Findings of each rule, those not listed included.
    counts: BTreeMap<&'static str, u64>,
    catalogs: u64,
    rows: u64,
    /// Objects that files refer to and that were looked for.
    references: u64,
    /// Objects whose bytes were read (`--data`), and these bytes.
    objects: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    rule: &'static str,
    severity: &'static str,
    text: &'static str,
    place: &'a str,
    expected: Option<&'a str>,
    found: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use cvmfs::check::{Finding, Rule};

    fn example() -> Report {
        let finding = |rule, place: &str, expected: &str, found: &str| Finding {
            rule,
            place: place.to_owned(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        Report {
            findings: vec![
                finding(Rule::ObjectMissing, "/a\u{1b}[2J/b", "", "0123"),
                finding(Rule::RootRow, "/", "1", "7"),
            ],
            counts: BTreeMap::from([(Rule::ObjectMissing, 12), (Rule::RootRow, 1)]),
            catalogs: 2,
            rows: 30,
            references: 20,
            objects: 0,
            bytes: 0,
        }
    }

    #[test]
    fn text_lists_findings_and_ends_with_the_verdict() {
        assert_eq!(
            to_text(&example(), "x.example.org"),
            "error    /a\u{fffd}[2J/b: object-missing: the object of a file is missing: 0123\n\
             warning  /: root-row: the root entry of the root catalog is not its first row; clients count inodes from it: 7 (expected: 1)\n\
             and 11 more findings, not listed\n\
             x.example.org: NOT sound, 12 errors, 1 warnings (2 catalogs, 30 rows, 20 objects looked for)\n"
        );
        let read = Report { objects: 5, bytes: 7_000_000, ..Report::default() };
        assert_eq!(
            to_text(&read, "x.example.org"),
            "x.example.org: sound (0 catalogs, 0 rows, 0 objects looked for; 5 objects read, 7.00 MB)\n"
        );
    }

    #[test]
    fn json_has_the_documented_keys() {
        let value: serde_json::Value = serde_json::from_str(&to_json(&example(), "x.example.org")).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "schema": 1, "repository": "x.example.org", "sound": false, "suppressed": 11,
                "findings": [
                    {"rule": "object-missing", "severity": "error", "text": "the object of a file is missing",
                     "place": "/a\u{1b}[2J/b", "expected": null, "found": "0123"},
                    {"rule": "root-row", "severity": "warning", "text": Rule::RootRow.text(),
                     "place": "/", "expected": "1", "found": "7"},
                ],
                "counts": {"object-missing": 12, "root-row": 1},
                "catalogs": 2, "rows": 30, "references": 20, "objects": 0, "bytes": 0,
            })
        );
    }
}
