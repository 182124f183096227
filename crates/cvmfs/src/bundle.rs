//! File bundles: what is worth fetching together with a file, as the file `.cvmfsbundle-NAME` beside NAME says.
//!
//! Facts (the reference client since 2.14, experimental there): the document may begin with lines that start with `#`;
//! then comes a JSON object with `name` (`CVMFS_BUNDLE`), `version` (`1.0.0`), `encoding` (`UTF-8`) and `dependencies`, a
//! list of paths. They are absolute in the repository; those without a leading `/`, perhaps with `./`, begin at the
//! directory of the bundle. A dependency does not trigger a bundle of its own, so bundles that name each other are no
//! loop.
//!
//! That client looks for a bundle only beside a file whose row has the flag [`BUNDLE_TRIGGER`], which its publisher sets.
//! It finds hidden rows. Each dependency is fetched whole, in order; what does not fit into its queue (64 KiB of paths) is
//! dropped.
//!
//! [`BUNDLE_TRIGGER`]: crate::entry::Flags::BUNDLE_TRIGGER
//!
//! A bundle of another name or of another major version is refused. At most [`MAX_DEPENDENCIES`] of a document of
//! [`MAX_BYTES`] are kept, and what is no path is left out.

use serde::Deserialize;

use crate::entry::Entry;
use crate::path::{RepoPath, is_name};
use crate::startup::Bounded;

/// Longest document.
pub const MAX_BYTES: u64 = 4 << 20;
/// Most dependencies of a bundle.
pub const MAX_DEPENDENCIES: usize = 10_000;

const NAME: &str = "CVMFS_BUNDLE";
const MAJOR_VERSION: &str = "1";
const VERSION: &str = "1.0.0";
/// What the names of bundles begin with.
const PREFIX: &[u8] = b".cvmfsbundle-";

/// This is no bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Too long to be read.
    #[error("a file bundle of {0} bytes, where {MAX_BYTES} are the most")]
    TooLong(u64),
    /// Not the JSON that it should be.
    #[error("not a file bundle")]
    Syntax(#[from] serde_json::Error),
    /// Something else, or of another version.
    #[error("a file bundle of name {name:?} and version {version:?}, where {NAME:?} and 1 are known")]
    Version {
        /// What it calls itself.
        name: String,
        /// Its version.
        version: String,
    },
}

#[derive(Deserialize)]
struct Document {
    name: String,
    version: String,
    #[serde(default)]
    dependencies: Bounded<String, MAX_DEPENDENCIES>,
}

/// Path of the bundle that belongs to a file; none for what can have none.
pub fn of(file: &RepoPath) -> Option<RepoPath> {
    let name = [PREFIX, file.name()].concat();
    Some(file.parent()?.join(&name)).filter(|_| is_name(&name))
}

/// Whether a row is a bundle that listings don't show, as a publisher puts it beside files that are not its own.
pub fn is_hidden_bundle(entry: &Entry) -> bool {
    entry.flags.is_hidden() && entry.name.starts_with(PREFIX)
}

/// Writes a bundle. What is too much for a reader is left out, and so is what is no UTF-8.
pub fn print<'a>(dependencies: impl IntoIterator<Item = &'a RepoPath>) -> String {
    let mut text = format!(r#"{{"name":"{NAME}","version":"{VERSION}","encoding":"UTF-8","dependencies":["#);
    let end = "\n]}\n";
    let paths = dependencies.into_iter().filter_map(|path| std::str::from_utf8(path.as_bytes()).ok());
    let mut separator = "\n";
    for path in paths.take(MAX_DEPENDENCIES) {
        let line = serde_json::Value::from(path).to_string();
        if (text.len() + separator.len() + line.len() + end.len()) as u64 > MAX_BYTES {
            break;
        }
        text.push_str(separator);
        text.push_str(&line);
        separator = ",\n";
    }
    text + end
}

/// Dependencies that the bundle at `path` names, in order.
pub fn parse(path: &RepoPath, text: &[u8]) -> Result<Vec<RepoPath>, BundleError> {
    let length = text.len() as u64;
    if length > MAX_BYTES {
        return Err(BundleError::TooLong(length));
    }
    let mut rest = text;
    while rest.starts_with(b"#") {
        rest = rest.iter().position(|byte| *byte == b'\n').map_or(&[], |end| &rest[end + 1..]);
    }
    let Document { name, version, dependencies } = serde_json::from_slice(rest)?;
    if name != NAME || version.split('.').next() != Some(MAJOR_VERSION) {
        return Err(BundleError::Version { name, version });
    }
    let directory = path.parent().unwrap_or_default();
    let absolute = |said: &String| match said.starts_with('/') {
        true => RepoPath::parse(said).ok(),
        false => {
            let relative = said.strip_prefix("./").unwrap_or(said);
            directory.join_path(relative).ok().filter(|_| !relative.is_empty())
        }
    };
    Ok(dependencies.kept.iter().filter_map(absolute).filter(|path| !path.is_root()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(dependencies: &str) -> Result<Vec<String>, BundleError> {
        let text = format!(
            r#"{{"name":"CVMFS_BUNDLE","version":"1.0.0","encoding":"UTF-8","dependencies":[{dependencies}],"x":1}}"#
        );
        let path = RepoPath::parse("/sw/app/.cvmfsbundle-run").unwrap();
        Ok(parse(&path, text.as_bytes())?.iter().map(RepoPath::to_string).collect())
    }

    #[test]
    fn dependencies_are_absolute_or_begin_at_the_bundle() {
        assert_eq!(
            bundle(r#""/lib/a.so","./b","c/d","/lib/a.so""#).unwrap(),
            ["/lib/a.so", "/sw/app/b", "/sw/app/c/d", "/lib/a.so"]
        );
        assert_eq!(bundle("").unwrap(), [""; 0]);
        let text = b"#%CVMFS_BUNDLE version=1 encoding=UTF-8\n# more\n{\"name\":\"CVMFS_BUNDLE\",\"version\":\"1.2\",\"dependencies\":[\"/a\"]}";
        assert_eq!(parse(&RepoPath::ROOT, text).unwrap(), [RepoPath::parse("/a").unwrap()]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let paths = ["/.flat/ab/lib/a.so", "/b/\u{fc} \" \\", "/c"].map(|path| RepoPath::parse(path).unwrap());
        let text = print(&paths);
        assert_eq!(
            text,
            "{\"name\":\"CVMFS_BUNDLE\",\"version\":\"1.0.0\",\"encoding\":\"UTF-8\",\"dependencies\":[\n\
             \"/.flat/ab/lib/a.so\",\n\"/b/\u{fc} \\\" \\\\\",\n\"/c\"\n]}\n"
        );
        assert_eq!(parse(&RepoPath::ROOT, text.as_bytes()).unwrap(), paths);
        assert_eq!(parse(&RepoPath::ROOT, print(&[]).as_bytes()).unwrap(), []);
        let mixed = [RepoPath::parse(b"/\xff").unwrap(), RepoPath::parse("/a").unwrap()];
        assert_eq!(parse(&RepoPath::ROOT, print(&mixed).as_bytes()).unwrap(), mixed[1..]);
        for (length, fit) in [(5, MAX_DEPENDENCIES), (4000, MAX_BYTES as usize / 4000 - 1)] {
            let many = vec![RepoPath::parse(format!("/{}", "a/".repeat(length / 2) + "b")).unwrap(); 20_000];
            let kept = parse(&RepoPath::ROOT, print(&many).as_bytes()).unwrap().len();
            assert!(kept <= MAX_DEPENDENCIES && kept + 10 >= fit, "{kept} of length {length}");
        }
    }

    #[test]
    fn what_leads_out_is_left_out() {
        assert_eq!(bundle(r#""..","../x","/..","/a/../b","./../x",".","./","/","","//a","/ok""#).unwrap(), ["/ok"]);
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        for text in [
            "",
            "#only a comment",
            "[]",
            r#"{"name":"CVMFS_BUNDLE","version":"2.0.0","dependencies":[]}"#,
            r#"{"name":"OTHER","version":"1.0.0","dependencies":[]}"#,
            r#"{"name":"CVMFS_BUNDLE","version":"1.0.0","dependencies":{}}"#,
            r#"{"name":"CVMFS_BUNDLE","version":"1.0.0","dependencies":[1]}"#,
        ] {
            assert!(parse(&RepoPath::ROOT, text.as_bytes()).is_err(), "{text}");
        }
        assert!(matches!(parse(&RepoPath::ROOT, &vec![b' '; 5 << 20]), Err(BundleError::TooLong(_))));
    }

    #[test]
    fn a_million_dependencies_are_not_kept() {
        let many = r#""/a","#.repeat(999_999) + r#""/a""#;
        assert!(many.len() as u64 > MAX_BYTES);
        assert!(bundle(&many).is_err());
        let many = r#""/a","#.repeat(100_000) + r#""/a""#;
        assert_eq!(bundle(&many).unwrap().len(), MAX_DEPENDENCIES);
    }

    #[test]
    fn a_bundle_lies_beside_its_file() {
        let of = |path: String| of(&RepoPath::parse(path).unwrap()).map(|path| path.to_string());
        assert_eq!(of("/a/b".into()).as_deref(), Some("/a/.cvmfsbundle-b"));
        assert_eq!(of("/b".into()).as_deref(), Some("/.cvmfsbundle-b"));
        assert_eq!(of("/".into()), None);
        assert_eq!(of(format!("/{}", "x".repeat(250))), None);
    }
}
