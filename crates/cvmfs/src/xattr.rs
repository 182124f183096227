//! Extended attributes of an entry, packed into one blob.
//!
//! Layout: version `01`, number of attributes, then per attribute key length, value length, key, value —
//! every number a single byte, attributes sorted by key. No attributes are NULL, never an empty blob.

use std::collections::BTreeMap;

/// Most attributes an entry can have, and the longest key and value in bytes.
pub const LIMIT: usize = 255;

const VERSION: u8 = 1;

/// Extended attributes by name; both sides are bytes.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Why an attribute cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum XattrError {
    /// Empty, over 255 bytes, or with a NUL byte.
    #[error("extended attribute name {0:?} is empty, has a NUL byte or more than 255 bytes")]
    Name(String),
    /// Value too long.
    #[error("extended attribute {0:?} has a value of {1} bytes; a catalog holds at most 255")]
    Value(String, usize),
    /// Too many attributes.
    #[error("{0} extended attributes; a catalog holds at most 255 for an entry")]
    Count(usize),
}

/// Whether an attribute of this name and value fits into a catalog.
pub fn fits(name: &[u8], value: &[u8]) -> Result<(), XattrError> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    if name.is_empty() || name.len() > LIMIT || name.contains(&0) {
        return Err(XattrError::Name(shown()));
    }
    if value.len() > LIMIT { Err(XattrError::Value(shown(), value.len())) } else { Ok(()) }
}

/// Packs the attributes; `None` when there are none.
pub fn pack(xattrs: &Xattrs) -> Result<Option<Vec<u8>>, XattrError> {
    if xattrs.is_empty() {
        return Ok(None);
    }
    let count = u8::try_from(xattrs.len()).map_err(|_| XattrError::Count(xattrs.len()))?;
    let mut blob = vec![VERSION, count];
    for (name, value) in xattrs {
        fits(name, value)?;
        blob.extend([name.len() as u8, value.len() as u8]);
        blob.extend_from_slice(name);
        blob.extend_from_slice(value);
    }
    Ok(Some(blob))
}

/// Unpacks a blob. A wrong version, truncated data or an invalid key gives no attributes at all, as
/// the reference implementation reads it; trailing bytes are ignored.
pub fn unpack(blob: &[u8]) -> Xattrs {
    try_unpack(blob).unwrap_or_default()
}

fn try_unpack(blob: &[u8]) -> Option<Xattrs> {
    let (&[version, count], mut rest) = blob.split_first_chunk()?;
    if version != VERSION {
        return None;
    }
    let mut xattrs = Xattrs::new();
    for _ in 0..count {
        let (&[name_len, value_len], tail) = rest.split_first_chunk()?;
        let (name, tail) = tail.split_at_checked(name_len.into())?;
        let (value, tail) = tail.split_at_checked(value_len.into())?;
        if name.is_empty() || name.contains(&0) {
            return None;
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        rest = tail;
    }
    Some(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Xattrs, Vec<u8>) {
        let mut value = vec![0u8; 20];
        (value[3], value[5]) = (2, 4);
        let xattrs = Xattrs::from([(b"user.foo".to_vec(), b"bar".to_vec()), (b"security.capability".to_vec(), value)]);
        let hex = concat!(
            "0102131473656375726974792e636170",
            "6162696c697479010000020004000000",
            "00000000000000000000000803757365",
            "722e666f6f626172"
        );
        (xattrs, hex::decode(hex).unwrap())
    }

    #[test]
    fn worked_example() {
        let (mut xattrs, blob) = example();
        xattrs.insert(b"security.capability".to_vec(), blob[23..43].to_vec());
        assert_eq!(pack(&xattrs).unwrap().unwrap(), blob);
        assert_eq!(unpack(&blob), xattrs);
    }

    #[test]
    fn damaged_blobs_have_no_attributes() {
        let (_, blob) = example();
        for cut in 0..blob.len() {
            assert!(unpack(&blob[..cut]).is_empty(), "cut at {cut}");
        }
        assert!(unpack(&[2, 0]).is_empty());
        assert!(unpack(&[1, 1, 0, 0]).is_empty(), "empty key");
        assert!(unpack(&[1, 1, 1, 0, 0]).is_empty(), "NUL in key");
        assert_eq!(unpack(&[&blob[..], b"junk"].concat()), unpack(&blob));
    }

    #[test]
    fn limits() {
        assert_eq!(pack(&Xattrs::new()).unwrap(), None);
        assert!(fits(b"user.x", &[0; 255]).is_ok());
        assert!(matches!(fits(b"user.x", &[0; 256]), Err(XattrError::Value(_, 256))));
        assert!(matches!(fits(&[b'x'; 256], b""), Err(XattrError::Name(_))));
        let many: Xattrs = (0..256u32).map(|i| (i.to_string().into_bytes(), vec![])).collect();
        assert!(matches!(pack(&many), Err(XattrError::Count(256))));
    }
}
