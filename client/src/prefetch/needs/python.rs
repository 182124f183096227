//! Which modules a Python file names: one that is compiled, a source, an extension.
//!
//! Everything that may be the name of a module is taken, whether it is imported or merely a word. What of it exists as a
//! module is for the caller to find out; the words of a file are few, and modules that have the name of a word are fewer.

use std::collections::HashSet;

use super::marshal;

/// Names that are taken of a file.
const MOST: usize = 2048;
/// Longest name.
const MAX_NAME: usize = 120;

/// What kind of Python file a name is the name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `NAME.cpython-311.pyc` in `__pycache__`
    Compiled,
    /// `NAME.py`
    Source,
    /// `NAME.cpython-311-x86_64-linux-gnu.so`, `NAME.abi3.so`
    Extension,
}

impl Kind {
    /// By the name of a file.
    pub fn of(name: &[u8]) -> Option<Kind> {
        let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
        match name {
            name if name.ends_with(b".pyc") => Some(Kind::Compiled),
            name if name.ends_with(b".py") => Some(Kind::Source),
            name if name.ends_with(b".so") && (has(b".cpython-") || has(b".abi3.")) => Some(Kind::Extension),
            _ => None,
        }
    }
}

/// Names in a file, dotted or not, in its order.
pub fn names(kind: Kind, content: &[u8]) -> Vec<Vec<u8>> {
    let mut names = Names::default();
    match kind {
        Kind::Compiled => marshal::names(content).into_iter().for_each(|name| names.add(name)),
        Kind::Source => source(content, &mut names),
        // Of the many strings of an extension those with a dot are modules.
        Kind::Extension => content.split(|byte| *byte == 0).filter(|s| s.contains(&b'.')).for_each(|s| names.add(s)),
    }
    names.names
}

#[derive(Default)]
struct Names<'a> {
    names: Vec<Vec<u8>>,
    known: HashSet<&'a [u8]>,
}

impl<'a> Names<'a> {
    fn add(&mut self, name: &'a [u8]) {
        let is_name = |part: &[u8]| {
            part.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_')
                && part.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        };
        if (2..=MAX_NAME).contains(&name.len())
            && self.names.len() < MOST
            && name.split(|byte| *byte == b'.').all(is_name)
            && self.known.insert(name)
        {
            self.names.push(name.to_vec());
        }
    }
}

/// The words of import statements, up to the closing parenthesis: of those that run when the file is imported, also below
/// `try` and `if`.
fn source<'a>(content: &'a [u8], names: &mut Names<'a>) {
    let (mut is_open, mut runs) = (false, true);
    for line in content.split(|byte| *byte == b'\n') {
        if line.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'@') {
            let word = line.split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
            runs = !matches!(word, b"def" | b"class" | b"async");
        }
        let line = line.trim_ascii();
        if !runs {
            continue;
        }
        if !is_open && !line.starts_with(b"import ") && !line.starts_with(b"from ") {
            continue;
        }
        let code = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'.';
        for word in code.split(|byte| !is_part(byte)) {
            let word = &word[word.iter().position(|byte| *byte != b'.').unwrap_or(word.len())..];
            if !matches!(word, b"import" | b"from" | b"as") {
                names.add(word);
            }
        }
        is_open = (is_open || code.contains(&b'(')) && !code.contains(&b')');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: Kind, content: &[u8]) -> Vec<String> {
        names(kind, content).into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn kinds_are_told_by_names() {
        let cases: [(&str, Option<Kind>); 7] = [
            ("types.cpython-311.pyc", Some(Kind::Compiled)),
            ("types.py", Some(Kind::Source)),
            ("_ssl.cpython-311-x86_64-linux-gnu.so", Some(Kind::Extension)),
            ("_rust.abi3.so", Some(Kind::Extension)),
            ("libm.so", None),
            ("types.pyi", None),
            ("python3.11", None),
        ];
        for (name, kind) in cases {
            assert_eq!(Kind::of(name.as_bytes()), kind, "{name}");
        }
    }

    #[test]
    fn a_source_names_what_it_imports() {
        let content = b"# import nothing\nimport os, sys as system\nx = 'import more'\n    from .core import (umath,\n  _multiarray as m) # (\nfrom .. import a\nfrom ...b.c import d\ndef f():\n    import late\n\n    import later\nif x:\n  import soon\nthen\n";
        let expected = ["os", "sys", "system", "core", "umath", "_multiarray", "b.c", "soon"];
        assert_eq!(texts(Kind::Source, content), expected);
    }

    #[test]
    fn an_extension_names_modules_with_dots() {
        let content = b"\x7fELF\0numpy.core.multiarray\0PyInit_x\0a..b\0libm.so.6\0%s.%s\0";
        assert_eq!(texts(Kind::Extension, content), ["numpy.core.multiarray"]);
    }

    #[test]
    fn anything_is_taken_and_bounded() {
        let many: Vec<u8> = (0..10_000).flat_map(|number| format!("import m{number}\n").into_bytes()).collect();
        assert_eq!(names(Kind::Source, &many).len(), MOST);
        for kind in [Kind::Compiled, Kind::Source, Kind::Extension] {
            for byte in [0u8, b'Z', b'(', b'\n', 0xff] {
                assert!(names(kind, &vec![byte; 100_000]).is_empty());
            }
        }
    }
}
