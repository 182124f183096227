//! Start-up lists: what a workload touches first, in order, for clients that fetch it ahead.
//!
//! ```json
//! {"schema":1,"files":[
//! {"path":"/usr/bin/python3","size":6831704},
//! {"path":"/usr/lib/libbig.so","size":90000000,"parts":[[0,8388608],[75497472,8388608]]}]}
//! ```
//!
//! Promises
//! - Paths are those of a tree: `/` is the directory that the list is about, wherever that is mounted or published.
//! - `size` is the size of the file. `parts` are offset and length of what was read of a file that is kept in
//!   chunks, in the order in which it was; without it the whole file counts.
//! - The same list is the same bytes. Readers ignore fields that they do not know.
//! - A list has at most [`MAX_FILES`] files with [`MAX_PARTS`] parts in [`MAX_BYTES`] bytes. Who reads one keeps no more
//!   than that of it, and leaves out what is no path: lists come from a repository that others write.
//!
//! Paths that are no UTF-8 cannot be said in JSON and are left out when a list is written.

use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::path::RepoPath;

/// Version of the format.
const SCHEMA: u32 = 1;
/// Longest document.
pub const MAX_BYTES: u64 = 16 << 20;
/// Most files of a list.
pub const MAX_FILES: usize = 50_000;
/// Most parts of one file.
pub const MAX_PARTS: usize = 1000;
/// Longest path, as the kernel has it.
const MAX_PATH: usize = 4096;

/// What a workload touches first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupList {
    /// Its files, in the order in which they were touched.
    pub files: Vec<Touched>,
    /// Files that are left out: their paths are none, or there are too many.
    pub left_out: usize,
}

/// A file that was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Its path below the directory that the list is about.
    pub path: RepoPath,
    /// Its size.
    pub size: u64,
    /// Offset and length of what was read of it; empty for the whole file.
    pub parts: Vec<(u64, u64)>,
}

/// This is no start-up list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartupError {
    /// Too long to be read.
    #[error("a start-up list of {0} bytes, where {MAX_BYTES} are the most")]
    TooLong(u64),
    /// Not the JSON that it should be.
    #[error("not a start-up list")]
    Syntax(#[from] serde_json::Error),
    /// Written in another version of the format.
    #[error("a start-up list of schema {0}, where {SCHEMA} is known")]
    Schema(u32),
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    parts: &'a [(u64, u64)],
}

impl StartupList {
    /// Writes the list.
    pub fn print(&self) -> String {
        let lines = self.files.iter().filter_map(|file| {
            let path = std::str::from_utf8(file.path.as_bytes()).ok()?;
            let parts = &file.parts[..file.parts.len().min(MAX_PARTS)];
            serde_json::to_string(&Line { path, size: file.size, parts }).ok()
        });
        let lines: Vec<String> = lines.take(MAX_FILES).collect();
        format!("{{\"schema\":{SCHEMA},\"files\":[\n{}]}}\n", lines.join(",\n"))
    }

    /// Reads a list that somebody wrote.
    pub fn parse(text: &[u8]) -> Result<StartupList, StartupError> {
        let length = text.len() as u64;
        if length > MAX_BYTES {
            return Err(StartupError::TooLong(length));
        }
        let Document { schema, files } = serde_json::from_slice(text)?;
        if schema != SCHEMA {
            return Err(StartupError::Schema(schema));
        }
        let mut list = StartupList { left_out: files.beyond, ..StartupList::default() };
        for Said { path, size, parts } in files.kept {
            match RepoPath::parse(&path) {
                Ok(path) if !path.is_root() && path.as_bytes().len() <= MAX_PATH => {
                    list.files.push(Touched { path, size, parts: parts.kept });
                }
                _ => list.left_out += 1,
            }
        }
        Ok(list)
    }

    /// Bytes that it asks for.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes()))
    }
}

impl Touched {
    /// Bytes that were read of it, or all of it.
    pub fn bytes(&self) -> u64 {
        match self.parts.is_empty() {
            true => self.size,
            false => self.parts.iter().fold(0, |sum, (_, length)| u64::saturating_add(sum, *length)).min(self.size),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    schema: u32,
    #[serde(default)]
    files: Bounded<Said, MAX_FILES>,
}

#[derive(Deserialize)]
struct Said {
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    parts: Bounded<(u64, u64), MAX_PARTS>,
}

/// The first elements of a list that may be far longer than it should be.
pub(crate) struct Bounded<T, const MOST: usize> {
    pub(crate) kept: Vec<T>,
    pub(crate) beyond: usize,
}

impl<T, const MOST: usize> Default for Bounded<T, MOST> {
    fn default() -> Self {
        Bounded { kept: Vec::new(), beyond: 0 }
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Bounded<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MOST: usize>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
            type Value = Bounded<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
                let mut result = Bounded::default();
                while result.kept.len() < MOST {
                    match elements.next_element()? {
                        Some(element) => result.kept.push(element),
                        None => return Ok(result),
                    }
                }
                while elements.next_element::<IgnoredAny>()?.is_some() {
                    result.beyond += 1;
                }
                Ok(result)
            }
        }

        deserializer.deserialize_seq(Elements(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(path: &str, size: u64, parts: &[(u64, u64)]) -> Touched {
        Touched { path: RepoPath::parse(path).unwrap(), size, parts: parts.to_vec() }
    }

    #[test]
    fn a_list_is_the_same_after_a_round_trip() {
        let files = vec![touched("/b/ü \"", 7, &[]), touched("/a", 100, &[(50, 25), (0, 50)]), touched("/a", 0, &[])];
        let list = StartupList { files, left_out: 0 };
        let text = list.print();
        assert_eq!(StartupList::parse(text.as_bytes()).unwrap(), list);
        assert_eq!(StartupList::parse(text.as_bytes()).unwrap().print(), text);
        assert_eq!(list.bytes(), 82);
        assert_eq!(
            text,
            "{\"schema\":1,\"files\":[\n{\"path\":\"/b/ü \\\"\",\"size\":7},\n\
             {\"path\":\"/a\",\"size\":100,\"parts\":[[50,25],[0,50]]},\n{\"path\":\"/a\",\"size\":0}]}\n"
        );
        assert_eq!(StartupList::parse(StartupList::default().print().as_bytes()).unwrap(), StartupList::default());
    }

    #[test]
    fn what_is_no_utf_8_is_left_out() {
        let path = RepoPath::parse(b"/\xff").unwrap();
        let list = StartupList { files: vec![Touched { path, size: 1, parts: vec![] }], left_out: 0 };
        assert_eq!(list.print(), StartupList::default().print());
    }

    #[test]
    fn what_is_no_path_is_left_out_and_counted() {
        let long = format!("/{}", "a/".repeat(3000)) + "a";
        for path in ["..", "/..", "/a/../b", "/a//b", "/a/.", "a", "", "/", "/a\\u0000b", &long] {
            let text = format!(r#"{{"schema":1,"files":[{{"path":"{path}"}},{{"path":"/a","new":[]}}],"later":{{}}}}"#);
            let list = StartupList::parse(text.as_bytes()).unwrap();
            assert_eq!((list.files, list.left_out), (vec![touched("/a", 0, &[])], 1), "{path}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for (text, says) in [
            ("", "not a start-up list"),
            ("[]", "not a start-up list"),
            (r#"{"files":[]}"#, "not a start-up list"),
            (r#"{"schema":2,"files":[]}"#, "schema 2"),
            (r#"{"schema":1,"files":{}}"#, "not a start-up list"),
            (r#"{"schema":1,"files":[{"path":"/a","size":-1}]}"#, "not a start-up list"),
            (r#"{"schema":1,"files":[{"path":"/a","parts":[[1]]}]}"#, "not a start-up list"),
        ] {
            let error = StartupList::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let deep = format!(r#"{{"schema":1,"files":{}"#, "[".repeat(100_000));
        assert!(StartupList::parse(deep.as_bytes()).is_err());
        let long = vec![b' '; MAX_BYTES as usize + 1];
        assert!(matches!(StartupList::parse(&long), Err(StartupError::TooLong(_))));
    }

    #[test]
    fn a_million_files_are_not_kept() {
        let text = format!(r#"{{"schema":1,"files":[{}{{"path":"/a"}}]}}"#, r#"{"path":"/a"},"#.repeat(999_999));
        let list = StartupList::parse(text.as_bytes()).unwrap();
        assert_eq!((list.files.len(), list.left_out), (MAX_FILES, 1_000_000 - MAX_FILES));
        let parts = vec![(0, u64::MAX); MAX_PARTS + 1];
        let list = StartupList { files: vec![touched("/a", 5, &parts); 2], left_out: 0 };
        let back = StartupList::parse(list.print().as_bytes()).unwrap();
        assert_eq!((back.files[0].parts.len(), back.bytes()), (MAX_PARTS, 10));
    }
}
