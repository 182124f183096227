//! Content digests of the registry world, one type for each meaning.
//!
//! All of them are SHA-256 (OCI image-spec, "Digests"; no registry in use serves anything else), written
//! `sha256:<64 lower-case hex digits>`. Two digests of different meaning never mix: the compressed blob of a layer
//! ([`LayerDigest`]) is not its uncompressed tar ([`DiffId`]), and neither is a prefix of an image ([`ChainId`]).
//! A conversion between meanings has a name ([`Digest`] is the neutral ground) and shows at the place where it is made.
//!
//! Invariants
//! - A value exists only for well-formed text: one parser, one printer, exact round trip.
//! - `bucket()` is the directory level that the repository layout puts before the full name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The algorithm exists, but we don't verify it, so we don't accept it.
    #[error("digest \"{0}\" is not sha256; only sha256:<64 hex digits> can be verified here")]
    Algorithm(String),
    /// No algorithm, wrong length, upper case, or not hexadecimal.
    #[error("\"{0}\" is not a digest; write sha256: followed by 64 lower-case hex digits")]
    Malformed(String),
}

/// At most this much of a bad digest is repeated in an error message.
const SHOWN: usize = 100;

/// A SHA-256 digest without a meaning; text form `sha256:<64 hex>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Parses `sha256:<64 lower-case hex digits>`, nothing else.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let shown = || text.chars().take(SHOWN).collect::<String>();
        let (algorithm, digits) = text.split_once(':').ok_or_else(|| DigestError::Malformed(shown()))?;
        if algorithm != "sha256" {
            let known_shape = !algorithm.is_empty()
                && algorithm.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+._-".contains(&b));
            return Err(if known_shape { DigestError::Algorithm(shown()) } else { DigestError::Malformed(shown()) });
        }
        Self::parse_hex(digits).ok_or_else(|| DigestError::Malformed(shown()))
    }

    /// Parses the 64 lower-case hex digits alone, as they stand in paths.
    pub fn parse_hex(digits: &str) -> Option<Self> {
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// The digest with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest of these bytes.
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first two hex digits: the bucket directory of the layout.
    pub fn bucket(&self) -> String {
        hex::encode(&self.0[..1])
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Defines a digest with one meaning.
macro_rules! meaning {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Parses `sha256:<64 lower-case hex digits>`.
            pub fn parse(text: &str) -> Result<Self, DigestError> {
                Digest::parse(text).map(Self)
            }
            /// Parses the 64 lower-case hex digits alone, as they stand in paths.
            pub fn parse_hex(digits: &str) -> Option<Self> {
                Digest::parse_hex(digits).map(Self)
            }
            /// The digest with these raw bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(Digest::from_bytes(bytes))
            }
            /// Gives a neutral digest this meaning.
            pub const fn from_digest(digest: Digest) -> Self {
                Self(digest)
            }
            /// The digest of these bytes.
            pub fn of(content: &[u8]) -> Self {
                Self(Digest::of(content))
            }
            /// The digest without its meaning.
            pub const fn digest(&self) -> Digest {
                self.0
            }
            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
            /// The 64 hex digits without the algorithm.
            pub fn hex(&self) -> String {
                self.0.hex()
            }
            /// The first two hex digits: the bucket directory of the layout.
            pub fn bucket(&self) -> String {
                self.0.bucket()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;
            fn from_str(text: &str) -> Result<Self, DigestError> {
                Self::parse(text)
            }
        }
    };
}

meaning! {
    /// A layer as the registry stores it: the digest of the (usually compressed) blob. Names the layer directory.
    LayerDigest
}
meaning! {
    /// A layer unpacked one step: the digest of the uncompressed tar, as `rootfs.diff_ids` of the config lists it.
    DiffId
}
meaning! {
    /// A stack of layers: the digest over the diff IDs from the bottom up to one layer.
    ChainId
}
meaning! {
    /// An image: the digest of its config document. Names the flat directory.
    ImageId
}
meaning! {
    /// A manifest or an index document, as asked from the registry.
    ManifestDigest
}
meaning! {
    /// Any blob of a registry, where its meaning doesn't matter.
    BlobDigest
}

impl ChainId {
    /// The chain ID of a layer on those below it.
    ///
    /// OCI image-spec, "Layer ChainID": the lowest is its diff ID; each further one is the digest of the text
    /// `<chain ID below> <diff ID>`, algorithm prefixes included.
    pub fn on(below: Option<Self>, diff_id: DiffId) -> Self {
        match below {
            None => Self(diff_id.digest()),
            Some(below) => Self::of(format!("{below} {diff_id}").as_bytes()),
        }
    }

    /// The chain IDs of all prefixes of a stack, bottom first: `stack(&[a, b])` is `[chain(a), chain(a, b)]`.
    pub fn stack(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            chain.push(Self::on(chain.last().copied(), *diff_id));
        }
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_lower_case_sha256() {
        let good = format!("sha256:{}", "a1".repeat(32));
        assert_eq!(LayerDigest::parse(&good).unwrap().to_string(), good);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:aaabbbccc",
            &format!("sha256:{}", "A1".repeat(32)),
            &format!("sha256:{}", "g1".repeat(32)),
            &format!("sha256:{}0", "a1".repeat(32)),
            &"a1".repeat(32),
            ":x",
        ] {
            assert!(matches!(Digest::parse(bad), Err(DigestError::Malformed(_))), "{bad}");
        }
        let sha512 = format!("sha512:{}", "a1".repeat(64));
        assert!(matches!(Digest::parse(&sha512), Err(DigestError::Algorithm(_))));
    }

    #[test]
    fn splits_off_the_bucket() {
        let digest = ImageId::of(b"");
        assert_eq!(digest.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.bucket(), "e3");
        assert_eq!(ImageId::parse_hex(&digest.hex()), Some(digest));
    }

    #[test]
    fn is_a_string_in_json() {
        let diff_id = DiffId::of(b"x");
        let json = serde_json::to_string(&diff_id).unwrap();
        assert_eq!(json, format!("\"{diff_id}\""));
        assert_eq!(serde_json::from_str::<DiffId>(&json).unwrap(), diff_id);
        assert!(serde_json::from_str::<DiffId>("\"sha256:12\"").is_err());
    }

    #[test]
    fn stacks_chain_ids_by_the_oci_rule() {
        let ids = ['1', '2', '3'].map(|c| DiffId::parse(&format!("sha256:{}", c.to_string().repeat(64))).unwrap());
        let chain = ChainId::stack(&ids);
        assert_eq!(chain[0].digest(), ids[0].digest());
        // `printf 'sha256:11…1 sha256:22…2' | sha256sum`, and so on
        let second = format!("{} {}", ids[0], ids[1]);
        assert_eq!(chain[1], ChainId::of(second.as_bytes()));
        assert_eq!(chain[2], ChainId::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
        assert_eq!(chain[1].hex(), "9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5");
        assert_eq!(chain[2].hex(), "50127c0d6b338be78246434b4bce23ecf75e505158ea0bbd15effeb162fbf3ec");
        assert!(ChainId::stack(&[]).is_empty());
    }
}
