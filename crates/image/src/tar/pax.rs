//! PAX extended headers: records `LENGTH KEY=VALUE\n`, where only the length says where a value ends.

use super::numbers::{decimal, time};

/// What the records of one header say about the entry behind it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PaxHeader {
    pub path: Option<Vec<u8>>,
    pub linkpath: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct PaxSparse {
    pub is_present: bool,
    pub major: u64,
    pub minor: u64,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    /// offset, length; of version 0
    pub map: Vec<(u64, u64)>,
    /// an offset of version 0.0 that waits for its length
    offset: Option<u64>,
}

impl PaxSparse {
    pub fn is_version_1(&self) -> bool {
        self.is_present && self.major == 1
    }
}

impl PaxHeader {
    pub fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let mut header = Self::default();
        while !bytes.is_empty() {
            let bad = || format!("PAX record \"{}\"", bytes[..bytes.len().min(40)].escape_ascii());
            let blank = bytes.iter().take(20).position(|&b| b == b' ').ok_or_else(bad)?;
            let length: usize = decimal(&bytes[..blank]).map_err(|_| bad())?;
            let record = bytes.get(blank + 1..length).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            header.set(key, value).map_err(|what| format!("PAX record {}: {what}", key.escape_ascii()))?;
            bytes = &bytes[length..];
        }
        Ok(header)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.retain(|(known, _)| known != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            self.sparse.is_present = true;
            return self.sparse.set(key, value);
        }
        // an empty value takes the field of the header instead
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.linkpath = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = given.then(|| decimal(value)).transpose()?,
            b"gid" => self.gid = given.then(|| decimal(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            _ => {}
        }
        Ok(())
    }
}

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"major" => self.major = decimal(value)?,
            b"minor" => self.minor = decimal(value)?,
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("length without an offset")?;
                self.map.push((offset, decimal(value)?));
            }
            b"map" if !value.is_empty() => {
                let numbers: Vec<u64> = value.split(|&b| b == b',').map(decimal).collect::<Result<_, _>>()?;
                let (pairs, []) = numbers.as_chunks::<2>() else { return Err("offset without a length".to_owned()) };
                self.map = pairs.iter().map(|&[offset, length]| (offset, length)).collect();
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with its own length in front.
    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn keeps_binary_values() {
        let value = b"\x01\0\0\x02\n12 path=x\n\0=\xff";
        let bytes = [record("SCHILY.xattr.security.capability", value), record("path", b"a\nb")].concat();
        let header = PaxHeader::parse(&bytes).unwrap();
        assert_eq!(header.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
        assert_eq!(header.path.as_deref(), Some(&b"a\nb"[..]));
    }

    #[test]
    fn lets_the_last_record_win() {
        let bytes = [record("uid", b"1"), record("uid", b"2"), record("gid", b"3"), record("gid", b"")].concat();
        let header = PaxHeader::parse(&bytes).unwrap();
        assert_eq!((header.uid, header.gid), (Some(2), None));
        let bytes = [record("SCHILY.xattr.user.a", b"1"), record("SCHILY.xattr.user.a", b"")].concat();
        assert_eq!(PaxHeader::parse(&bytes).unwrap().xattrs, [(b"user.a".to_vec(), Vec::new())]);
    }

    #[test]
    fn refuses_records_that_lie() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"999 path=a\n",
            b"0 path=a\n",
            b"2 path=a\n",
            b"6 path\n",
            b"-9 path=a\n",
            b"99999999999999999999 a=b\n",
            b"10 size=x\n",
            b"11 size=-1\n",
            b"10 mtime=\n\n",
        ] {
            assert!(PaxHeader::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
        for (key, value) in [("GNU.sparse.map", "1,2,3"), ("GNU.sparse.numbytes", "1"), ("GNU.sparse.major", "x")] {
            assert!(PaxHeader::parse(&record(key, value.as_bytes())).is_err(), "{key}");
        }
    }
}
