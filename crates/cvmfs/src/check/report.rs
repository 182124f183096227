//! What a check found.

use std::collections::BTreeMap;
use std::fmt;

use super::Rule;

/// Findings that are kept in full; of further ones only the number.
pub const MAX_FINDINGS: usize = 10_000;

/// What a finding means for the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Odd, and no obstacle to reading.
    Warning,
    /// The repository is not sound.
    Error,
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Path in the repository, object or file that breaks it.
    pub place: String,
    /// What should be there; empty where the rule says it all.
    pub expected: String,
    /// What is there instead.
    pub found: String,
}

impl Finding {
    /// Severity of the rule.
    pub fn severity(&self) -> Severity {
        self.rule.severity()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.rule.name(), self.rule.text())?;
        if !self.found.is_empty() {
            write!(f, ": {}", self.found)?;
        }
        if !self.expected.is_empty() {
            write!(f, " (expected: {})", self.expected)?;
        }
        Ok(())
    }
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// What was found, in the order of finding; see [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Number of findings of each rule, those that were not kept included.
    pub counts: BTreeMap<Rule, u64>,
    /// Catalogs read.
    pub catalogs: u64,
    /// Catalog rows read.
    pub rows: u64,
    /// Objects that files refer to; an object that is shared may count more than once.
    pub references: u64,
    /// Objects whose bytes were compared with their name.
    pub objects: u64,
    /// Stored bytes of these.
    pub bytes: u64,
}

impl Report {
    /// Whether nothing worse than a warning was found.
    pub fn is_sound(&self) -> bool {
        self.counts.keys().all(|rule| rule.severity() < Severity::Error)
    }

    /// Whether this rule is broken somewhere.
    pub fn has(&self, rule: Rule) -> bool {
        self.counts.contains_key(&rule)
    }

    /// Findings that were counted only.
    pub fn suppressed(&self) -> u64 {
        self.counts.values().sum::<u64>() - self.findings.len() as u64
    }

    /// Takes in the result of another check of the same repository.
    pub fn merge(&mut self, other: Report) {
        let room = MAX_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(room));
        for (rule, count) in other.counts {
            *self.counts.entry(rule).or_default() += count;
        }
        self.catalogs += other.catalogs;
        self.rows += other.rows;
        self.references += other.references;
        self.objects += other.objects;
        self.bytes += other.bytes;
    }

    pub(crate) fn add(&mut self, rule: Rule, place: impl fmt::Display, found: impl fmt::Display) {
        self.add_expecting(rule, place, "", found);
    }

    pub(crate) fn add_expecting(
        &mut self,
        rule: Rule,
        place: impl fmt::Display,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) {
        *self.counts.entry(rule).or_default() += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding {
                rule,
                place: place.to_string(),
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
    }
}

/// An error with everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
