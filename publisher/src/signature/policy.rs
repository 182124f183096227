//! Which images have to be signed, by whom, and which may be published although they are not public: the operator's word,
//! as it stands in the configuration.
//!
//! ```toml
//! private_images = "refuse"                  # or "warn", "allow"
//! public_images = ["https://registry.example.org/open/*"]
//!
//! [[signatures]]
//! match = "https://quay.io/example/*"
//! keys = ["/etc/cvmfs-publisher/example.pub"]
//! ```
//!
//! Every rule whose pattern takes an image holds for it; one of the rule's keys suffices.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Key, KeyError};
use crate::wishlist::glob;

/// What is said, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// Who has to have signed what.
    pub signatures: Vec<RuleSettings>,
    /// What becomes of images that only credentials can read.
    pub private_images: Option<PrivateImages>,
    /// Patterns of images that may be published all the same.
    pub public_images: Vec<String>,
}

/// What is said of some images.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSettings {
    /// Pattern of whole names, as in `ignoreErrors` of wish lists.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Files with public keys; one of them has to have signed.
    pub keys: Vec<PathBuf>,
}

/// What becomes of an image that nobody can read without credentials. The repository can be read by everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrivateImages {
    /// Its wish fails, unless somebody says that it is meant for everybody.
    Refuse,
    /// It is published, and a line says so.
    #[default]
    Warn,
    /// It is published.
    Allow,
}

/// The policy is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A rule that nothing satisfies.
    #[error("signatures: the rule for {0} has no keys, so no image could satisfy it")]
    NoKeys(String),
    /// A key cannot be used.
    #[error("signatures: the rule for {pattern}")]
    Key {
        /// The rule's pattern.
        pattern: String,
        /// What is wrong.
        #[source]
        source: KeyError,
    },
}

/// The operator's word, with its keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    rules: Vec<Rule>,
    private_images: Option<PrivateImages>,
    public_images: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    pattern: String,
    keys: Vec<Key>,
}

impl PolicySettings {
    /// Reads the keys.
    pub fn check(self) -> Result<Policy, PolicyError> {
        let rule = |RuleSettings { pattern, keys }| {
            if keys.is_empty() {
                return Err(PolicyError::NoKeys(pattern));
            }
            let keys: Result<Vec<Key>, KeyError> = keys.iter().map(|path| Key::read(path)).collect();
            match keys {
                Ok(keys) => Ok(Rule { pattern, keys }),
                Err(source) => Err(PolicyError::Key { pattern, source }),
            }
        };
        let rules = self.signatures.into_iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Policy { rules, private_images: self.private_images, public_images: self.public_images })
    }
}

impl Policy {
    /// Who has to have signed an image: one of each of these sets.
    pub fn signers(&self, whole_name: &str) -> Vec<&[Key]> {
        self.rules.iter().filter(|rule| glob(&rule.pattern, whole_name)).map(|rule| &rule.keys[..]).collect()
    }

    /// What becomes of an image that only credentials can read. `usual` is what holds where the configuration says nothing.
    pub fn private(&self, whole_name: &str, usual: PrivateImages) -> PrivateImages {
        match self.public_images.iter().any(|pattern| glob(pattern, whole_name)) {
            true => PrivateImages::Allow,
            false => self.private_images.unwrap_or(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PolicySettings {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_example_of_the_documentation_is_read() {
        let page = include_str!("../../../doc/SIGNATURES.md");
        let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let settings = parse(example);
        assert_eq!((settings.signatures.len(), settings.private_images), (1, Some(PrivateImages::Refuse)));
    }

    #[test]
    fn patterns_say_what_becomes_of_private_images() {
        let policy = parse("private_images = 'refuse'\npublic_images = ['https://r.example/open/*']").check().unwrap();
        let decide = |name| policy.private(name, PrivateImages::Warn);
        assert_eq!(decide("https://r.example/open/x:1"), PrivateImages::Allow);
        assert_eq!(decide("https://r.example/x:1"), PrivateImages::Refuse);
        assert_eq!(Policy::default().private("https://r.example/x:1", PrivateImages::Warn), PrivateImages::Warn);
    }

    #[test]
    fn a_rule_that_nothing_satisfies_is_refused() {
        let error = parse("[[signatures]]\nmatch = '*'\nkeys = []").check().unwrap_err();
        assert!(matches!(error, PolicyError::NoKeys(_)), "{error}");
        let error = parse("[[signatures]]\nmatch = '*'\nkeys = ['/nowhere/x.pub']").check().unwrap_err();
        assert!(matches!(error, PolicyError::Key { source: KeyError::Read { .. }, .. }), "{error}");
        assert!(toml::from_str::<PolicySettings>("[[signatures]]\nmatch = '*'\nkey = 'x'").is_err());
    }
}
