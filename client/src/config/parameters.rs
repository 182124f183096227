//! Parameters by name, each with the place it comes from.
//!
//! Values are kept as they were written. Whoever asks for one gets the written value or the built-in default
//! of [`super::table`], so there is no second place where a default could be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{ConfigError, table};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// `-o NAME=value`.
    Option,
    /// A flag of the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in default"),
            Origin::File(path) => write!(f, "from {}", path.display()),
            Origin::Option => f.write_str("from -o"),
            Origin::Flag => f.write_str("from the command line"),
        }
    }
}

/// Parameters by name, each with its origin.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    values: BTreeMap<String, (String, Origin)>,
    unset: BTreeSet<String>,
}

impl Parameters {
    /// Value of a parameter, as written.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(value, _)| value.as_str())
    }

    /// Sets a parameter; the last call wins.
    pub fn set(&mut self, name: &str, value: impl Into<String>, origin: Origin) {
        self.unset.remove(name);
        self.values.insert(name.to_owned(), (value.into(), origin));
    }

    /// Takes a parameter away, and the symlink variable of its name.
    pub fn unset(&mut self, name: &str) {
        self.values.remove(name);
        self.unset.insert(name.to_owned());
    }

    /// Whether [`Parameters::unset`] was the last word on this name.
    pub fn is_unset(&self, name: &str) -> bool {
        self.unset.contains(name)
    }

    /// Names, values and origins, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &Origin)> {
        self.values.iter().map(|(name, (value, origin))| (name.as_str(), value.as_str(), origin))
    }

    /// The value in force: what is set and not empty, else the default of the table, which may be empty.
    pub fn effective(&self, name: &str) -> &str {
        let set = self.get(name).map(str::trim).filter(|value| !value.is_empty());
        set.unwrap_or_else(|| table::find(name).map_or("", |parameter| parameter.default))
    }

    /// The value in force with `@fqrn@` and `@org@` replaced; none when it is empty.
    pub(super) fn text(&self, name: &str, fqrn: &str) -> Option<String> {
        let org = fqrn.split('.').next().unwrap_or(fqrn);
        let value = self.effective(name);
        (!value.is_empty()).then(|| value.replace("@fqrn@", fqrn).replace("@org@", org))
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        parse_flag(self.effective(name)).ok_or_else(|| self.wrong(name, "yes or no"))
    }

    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<T, ConfigError> {
        self.effective(name).parse().map_err(|_| self.wrong(name, "a number"))
    }

    pub(crate) fn number_if_set<T: FromStr>(&self, name: &str) -> Result<Option<T>, ConfigError> {
        if self.effective(name).is_empty() { Ok(None) } else { self.number(name).map(Some) }
    }

    pub(crate) fn seconds(&self, name: &str) -> Result<Duration, ConfigError> {
        self.number(name).map(Duration::from_secs)
    }

    /// Says that a value is not what its parameter takes.
    pub(crate) fn wrong(&self, name: &str, expected: &'static str) -> ConfigError {
        let (value, origin) = self.values.get(name).cloned().unwrap_or((String::new(), Origin::Default));
        ConfigError::Value { name: name.to_owned(), value, origin, expected }
    }
}

/// What the reference client takes for yes and no; an empty value is no.
pub(super) fn parse_flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "yes" | "on" | "1" | "true" => Some(true),
        "no" | "off" | "0" | "false" | "" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_come_from_the_table_and_empty_values_count_as_not_set() {
        let mut p = Parameters::default();
        assert_eq!(p.effective("CVMFS_TIMEOUT"), "5");
        p.set("CVMFS_TIMEOUT", " 7 ", Origin::Option);
        assert_eq!(p.seconds("CVMFS_TIMEOUT").unwrap(), Duration::from_secs(7));
        p.set("CVMFS_TIMEOUT", "", Origin::Option);
        assert_eq!(p.effective("CVMFS_TIMEOUT"), "5");
        assert_eq!(p.effective("SOMETHING_ELSE"), "");
    }

    #[test]
    fn yes_and_no_have_four_spellings_each() {
        for (words, value) in [(["yes", "ON", "1", "True"], true), (["no", "Off", "0", "FALSE"], false)] {
            words.iter().for_each(|word| assert_eq!(parse_flag(word), Some(value), "{word}"));
        }
        assert_eq!(parse_flag("perhaps"), None);
    }

    #[test]
    fn unset_is_undone_by_set_and_the_other_way_round() {
        let mut p = Parameters::default();
        p.set("A", "1", Origin::Option);
        p.unset("A");
        assert!(p.get("A").is_none() && p.is_unset("A"));
        p.set("A", "2", Origin::Option);
        assert!(p.get("A") == Some("2") && !p.is_unset("A"));
    }
}
