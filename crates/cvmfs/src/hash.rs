//! Content hashes and the names of objects.
//!
//! An object is named by the hash of its *stored* bytes (compressed, if it is stored compressed).
//! Three algorithms exist, all with 160 bits of output; the text form of the two younger ones carries
//! an algorithm id (`-rmd160`, `-shake128`), so the length of a text decides its algorithm.
//! In databases only the 20 raw bytes are kept and the algorithm stands elsewhere (flags, text).

use std::fmt;
use std::str::FromStr;

use ripemd::Ripemd160;
use sha1::{Digest as _, Sha1};
use sha3::Shake128;
use sha3::digest::{ExtendableOutput as _, Update as _, XofReader as _};

/// Number of raw bytes of every content hash.
pub const DIGEST_LEN: usize = 20;

/// Hash algorithm of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Algorithm {
    /// SHA-1, the default of the field.
    #[default]
    Sha1,
    /// RIPEMD-160.
    Rmd160,
    /// SHAKE-128 with 160 output bits.
    Shake128,
}

impl Algorithm {
    /// All algorithms, in the order of their numbers in catalogs.
    pub const ALL: [Algorithm; 3] = [Algorithm::Sha1, Algorithm::Rmd160, Algorithm::Shake128];

    /// What follows the hexadecimal digits in texts and file names.
    pub fn id(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "",
            Algorithm::Rmd160 => "-rmd160",
            Algorithm::Shake128 => "-shake128",
        }
    }

    /// The value of the three algorithm bits in a catalog row.
    pub fn flag_bits(self) -> u32 {
        self as u32
    }

    /// Inverse of [`Algorithm::flag_bits`]; `None` for numbers nobody uses.
    pub fn from_flag_bits(bits: u32) -> Option<Algorithm> {
        Algorithm::ALL.get(bits as usize).copied()
    }

    /// Name used in configuration files: `sha1`, `rmd160`, `shake128`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha1 => "sha1",
            Algorithm::Rmd160 => "rmd160",
            Algorithm::Shake128 => "shake128",
        }
    }
}

impl FromStr for Algorithm {
    type Err = HashError;

    fn from_str(name: &str) -> Result<Algorithm, HashError> {
        Algorithm::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| HashError::Algorithm(name.to_owned()))
    }
}

/// The text is no content hash, or the name no algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// Neither 40 hexadecimal digits nor those with a known algorithm id.
    #[error("{0:?} is not a content hash (40 hexadecimal digits, then nothing, -rmd160 or -shake128)")]
    Malformed(String),
    /// Unknown algorithm name.
    #[error("unknown hash algorithm {0:?} (known: sha1, rmd160, shake128)")]
    Algorithm(String),
}

/// Hash of the stored bytes of one object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash {
    /// Algorithm that made the digest.
    pub algorithm: Algorithm,
    /// The raw digest.
    pub digest: [u8; DIGEST_LEN],
}

impl ContentHash {
    /// Hash of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> ContentHash {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// From the raw bytes of a database column; `None` when it has not 20 bytes.
    pub fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Option<ContentHash> {
        Some(ContentHash { algorithm, digest: raw.try_into().ok()? })
    }

    /// All digits zero: "no object" in `previous_revision` and its like.
    pub fn is_null(&self) -> bool {
        self.digest == [0; DIGEST_LEN]
    }

    /// The null hash of an algorithm.
    pub fn null(algorithm: Algorithm) -> ContentHash {
        ContentHash { algorithm, digest: [0; DIGEST_LEN] }
    }

    /// Name of the object of the given kind with this hash.
    pub fn object(self, kind: ObjectKind) -> ObjectId {
        ObjectId { hash: self, kind }
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 2 * DIGEST_LEN];
        hex::encode_to_slice(self.digest, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)?;
        f.write_str(self.algorithm.id())
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ContentHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<ContentHash, HashError> {
        let malformed = || HashError::Malformed(text.chars().take(80).collect());
        let (digits, id) = text.split_at_checked(2 * DIGEST_LEN).ok_or_else(malformed)?;
        let algorithm = Algorithm::ALL.into_iter().find(|a| a.id() == id).ok_or_else(malformed)?;
        if digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(malformed());
        }
        let mut digest = [0; DIGEST_LEN];
        hex::decode_to_slice(digits, &mut digest).map_err(|_| malformed())?;
        Ok(ContentHash { algorithm, digest })
    }
}

/// What an object holds: the letter at the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A whole regular file; no letter.
    File,
    /// One chunk of a regular file, `P`.
    Chunk,
    /// A file catalog, `C`.
    Catalog,
    /// A tag database, `H`.
    History,
    /// An X.509 certificate, `X`.
    Certificate,
    /// Repository meta info, `M`.
    MetaInfo,
}

impl ObjectKind {
    /// The kinds, in no particular order.
    pub const ALL: [ObjectKind; 6] = [
        ObjectKind::File,
        ObjectKind::Chunk,
        ObjectKind::Catalog,
        ObjectKind::History,
        ObjectKind::Certificate,
        ObjectKind::MetaInfo,
    ];

    /// Letter at the end of the object's name.
    pub fn suffix(self) -> &'static str {
        match self {
            ObjectKind::File => "",
            ObjectKind::Chunk => "P",
            ObjectKind::Catalog => "C",
            ObjectKind::History => "H",
            ObjectKind::Certificate => "X",
            ObjectKind::MetaInfo => "M",
        }
    }
}

/// Name of one object in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Hash of the stored bytes.
    pub hash: ContentHash,
    /// What the bytes are.
    pub kind: ObjectKind,
}

impl ObjectId {
    /// Path below the repository root: `data/xx/…`.
    pub fn path(&self) -> String {
        let text = self.to_string();
        format!("data/{}/{}", &text[..2], &text[2..])
    }

    /// Inverse of the file part of [`ObjectId::path`]: directory name `xx` and file name.
    pub fn from_path_parts(bucket: &str, name: &str) -> Option<ObjectId> {
        let kind = ObjectKind::ALL
            .into_iter()
            .filter(|k| *k != ObjectKind::File)
            .find(|k| name.ends_with(k.suffix()))
            .unwrap_or(ObjectKind::File);
        let hash = format!("{bucket}{}", name.strip_suffix(kind.suffix())?).parse().ok()?;
        (bucket.len() == 2).then_some(ObjectId { hash, kind })
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.hash, self.kind.suffix())
    }
}

/// Running hash over the stored bytes of an object.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-1.
    Sha1(Sha1),
    /// RIPEMD-160.
    Rmd160(Ripemd160),
    /// SHAKE-128.
    Shake128(Box<Shake128>),
}

impl Hasher {
    /// Starts a hash.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Sha1 => Hasher::Sha1(Sha1::new()),
            Algorithm::Rmd160 => Hasher::Rmd160(Ripemd160::new()),
            Algorithm::Shake128 => Hasher::Shake128(Box::default()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha1(h) => sha1::Digest::update(h, bytes),
            Hasher::Rmd160(h) => sha1::Digest::update(h, bytes),
            Hasher::Shake128(h) => h.update(bytes),
        }
    }

    /// Ends the hash.
    pub fn finish(self) -> ContentHash {
        let mut digest = [0; DIGEST_LEN];
        let algorithm = match self {
            Hasher::Sha1(h) => {
                digest.copy_from_slice(&h.finalize());
                Algorithm::Sha1
            }
            Hasher::Rmd160(h) => {
                digest.copy_from_slice(&h.finalize());
                Algorithm::Rmd160
            }
            Hasher::Shake128(h) => {
                h.finalize_xof().read(&mut digest);
                Algorithm::Shake128
            }
        };
        ContentHash { algorithm, digest }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_decides_the_algorithm() {
        for algorithm in Algorithm::ALL {
            let hash = ContentHash::of(algorithm, b"x");
            let text = hash.to_string();
            assert_eq!(text.len(), 40 + algorithm.id().len());
            assert_eq!(text.parse::<ContentHash>().unwrap(), hash);
        }
        for bad in ["", "e8", &"g".repeat(40), &"A".repeat(40), &format!("{}-md5", "a".repeat(40)), &"é".repeat(40)] {
            assert!(bad.parse::<ContentHash>().is_err(), "{bad}");
        }
    }

    #[test]
    fn known_digests() {
        for (algorithm, input, hex) in [
            (Algorithm::Sha1, &b""[..], "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (Algorithm::Sha1, b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Algorithm::Rmd160, b"", "9c1185a5c5e9fc54612808977ee8f548b2258d31-rmd160"),
            (Algorithm::Shake128, b"", "7f9c2ba4e88f827d616045507605853ed73b8093-shake128"),
        ] {
            assert_eq!(ContentHash::of(algorithm, input).to_string(), hex);
        }
    }

    #[test]
    fn object_paths_round_trip() {
        for (hash, kind, path) in [
            (
                "e8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78",
                ObjectKind::File,
                "data/e8/ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78",
            ),
            (
                "fcdb20b894f31f1306d56294c049ca7293dde0fc-rmd160",
                ObjectKind::Catalog,
                "data/fc/db20b894f31f1306d56294c049ca7293dde0fc-rmd160C",
            ),
        ] {
            let id = hash.parse::<ContentHash>().unwrap().object(kind);
            assert_eq!(id.path(), path);
            let (bucket, name) = path.strip_prefix("data/").unwrap().split_once('/').unwrap();
            assert_eq!(ObjectId::from_path_parts(bucket, name), Some(id));
        }
        assert_eq!(ObjectId::from_path_parts("e8", "nonsense"), None);
        assert_eq!(ObjectId::from_path_parts("e", "8ec3d88b62ebf526e4e5a4ff6162a3aa48a6b78"), None);
    }
}
