//! Names that Docker gives to layers. They become names of directories, so nothing else is one.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plugin::Refusal;
use crate::text::printable;

/// A layer of Docker's: an image's, a container's, or what stands between them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

impl LayerId {
    /// Takes a name if it is one component of a path, and not a hidden one.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > 128 || text.starts_with(['.', '-']) || !text.bytes().all(plain) {
            return Err(Refusal::new(format!("{:?} is not the ID of a layer", printable(text, 100))));
        }
        Ok(Self(text.to_owned()))
    }

    /// The same for a parent, which may be absent.
    pub fn parse_parent(text: &str) -> Result<Option<Self>, Refusal> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }

    /// As Docker writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LayerId {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        Self::parse(&text)
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_docker_makes_are_ids() {
        for good in ["0f3c-init", "a", "A_b.c"] {
            assert_eq!(LayerId::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", "../x", "a/b", "/a", ".hidden", "-a", "a\0", "a b", "a:b", "ä", &long] {
            assert!(LayerId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(LayerId::parse_parent("").unwrap(), None);
        assert!(LayerId::parse_parent("..").is_err());
        assert!(serde_json::from_str::<LayerId>("\"../x\"").is_err());
    }
}
