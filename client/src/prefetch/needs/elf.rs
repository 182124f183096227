//! What a program or library says of the libraries that it is linked with.
//!
//! Names of needed libraries and the places to look for them are strings of the dynamic string table, which lies near
//! the beginning of a file. All strings that look like such are taken, so a few more than the dynamic linker will ask for.

use std::collections::HashSet;

/// Names that are taken of a file.
const MOST: usize = 512;
/// Places that are taken.
const MOST_BESIDE: usize = 16;
/// Longest name, longest list of places.
const MAX_NAME: usize = 255;
const MAX_PLACES: usize = 4096;

/// Names of libraries and the places that a file has for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Libraries {
    /// Names such as `libm.so.6`, in the order of the file.
    pub names: Vec<Vec<u8>>,
    /// Directories relative to that of the file: what follows `$ORIGIN`.
    pub beside: Vec<Vec<u8>>,
}

/// Whether this is the beginning of such a file.
pub fn is_elf(content: &[u8]) -> bool {
    content.starts_with(b"\x7fELF")
}

/// What the strings in the beginning of a file name.
pub fn libraries(content: &[u8]) -> Libraries {
    let (mut found, mut known) = (Libraries::default(), HashSet::new());
    for string in content.split(|byte| *byte == 0) {
        if found.names.len() >= MOST {
            break;
        }
        if string.starts_with(b"$ORIGIN") || string.starts_with(b"${ORIGIN}") {
            if string.len() <= MAX_PLACES {
                found.beside.extend(string.split(|byte| *byte == b':').filter_map(beside));
                found.beside.truncate(MOST_BESIDE);
            }
        } else if is_library(string) && known.insert(string) {
            found.names.push(string.to_vec());
        }
    }
    found
}

/// A place relative to the directory of the file.
fn beside(place: &[u8]) -> Option<Vec<u8>> {
    let rest = place.strip_prefix(b"$ORIGIN").or_else(|| place.strip_prefix(b"${ORIGIN}"))?;
    matches!(rest.first(), None | Some(b'/')).then(|| rest.strip_prefix(b"/").unwrap_or(rest).to_vec())
}

/// Whether a string is the name of a library, with or without a version.
fn is_library(name: &[u8]) -> bool {
    const END: &[u8] = b".so";
    // The cheap questions first: most strings are symbols.
    let Some(first) = name.first().filter(|_| name.len() > END.len() && name.len() <= MAX_NAME) else { return false };
    if !(first.is_ascii_alphanumeric() || *first == b'_') {
        return false;
    }
    let Some(at) = name.windows(END.len()).rposition(|window| window == END) else { return false };
    let version = &name[at + END.len()..];
    let is_version = version.is_empty()
        || (version.starts_with(b".") && version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'));
    at > 0 && is_version && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places_are_found_among_symbols() {
        let strings: [&[u8]; 14] = [
            b"\x7fELF\x02\x01",
            b"libm.so.6",
            b"dgemm_",
            b"$ORIGIN/../../numpy.libs:$ORIGIN:/opt/lib",
            b"ld-linux-x86-64.so.2",
            b"libstdc++.so.6",
            b"libm.so.6",
            b"libscipy_openblas64_-99b71e71.so",
            b"a/b.so",
            b".so",
            b"x.so.d",
            b"${ORIGIN}/lib",
            b"$ORIGINAL",
            b"bad name.so",
        ];
        let found = libraries(&strings.join(&0));
        let text =
            |names: &[Vec<u8>]| names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>();
        assert_eq!(
            text(&found.names),
            ["libm.so.6", "ld-linux-x86-64.so.2", "libstdc++.so.6", "libscipy_openblas64_-99b71e71.so"]
        );
        assert_eq!(text(&found.beside), ["../../numpy.libs", "", "lib"]);
    }

    #[test]
    fn a_real_program_names_its_libraries() {
        let program = std::fs::read("/bin/sh").unwrap();
        assert!(is_elf(&program) && !is_elf(b"#!/bin/sh"));
        let found = libraries(&program);
        assert!(found.names.iter().any(|name| name.starts_with(b"libc.so")), "{found:?}");
    }

    #[test]
    fn anything_is_taken_and_bounded() {
        let many: Vec<u8> = (0..100_000).flat_map(|number| format!("l{number}.so\0").into_bytes()).collect();
        assert_eq!(libraries(&many).names.len(), MOST);
        assert_eq!(libraries(&b"$ORIGIN/a:$ORIGIN/b\0".repeat(1000)).beside.len(), MOST_BESIDE);
        assert!(libraries(&[b'a'; 1 << 20]).names.is_empty());
    }
}
