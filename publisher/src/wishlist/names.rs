//! Two small questions about names: does a pattern take it, and which known name was meant.

/// Does `pattern` take the whole of `name`? `*` stands for any characters, also none and also `/`; `?` for exactly one;
/// everything else for itself. Time is bounded by the product of both lengths.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut pos) = (0, 0);
    // The last star seen, and how far the name was when it was tried last.
    let mut star: Option<(usize, usize)> = None;
    while pos < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, pos));
                at += 1;
            }
            Some(&c) if c == '?' || c == name[pos] => {
                at += 1;
                pos += 1;
            }
            _ => {
                // Let the star take one character more.
                let Some((star_at, star_pos)) = star else { return false };
                star = Some((star_at, star_pos + 1));
                at = star_at + 1;
                pos = star_pos + 1;
            }
        }
    }
    pattern[at..].iter().all(|&c| c == '*')
}

/// The name among `known` that `name` was probably meant to be: at most a third of its letters differ.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // A longer name is no slip of the finger; this also bounds the work.
    if name.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|known| (distance(&plain(name), &plain(known)), *known))
        .filter(|(distance, known)| *distance <= (known.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Letters without case and joints: `ignore-errors` is `ignoreErrors`.
fn plain(name: &str) -> Vec<char> {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Number of letters to insert, delete or replace (Levenshtein).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_take_whole_names() {
        let cases = [
            ("*", "", true),
            ("*", "https://quay.io/a:1", true),
            ("https://quay.io/*", "https://quay.io/a/b:1", true),
            ("*/b:?", "https://quay.io/a/b:1", true),
            ("*a*b*c", "xaxbxbxc", true),
            ("*a*b*c", "xaxbxbxd", false),
            ("https://quay.io", "https://quay.io/a:1", false),
            ("a.c", "abc", false),
            ("a?c", "ac", false),
            ("", "a", false),
            ("", "", true),
            ("ä?", "äö", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_stays_quick() {
        assert!(!glob(&"*a".repeat(500), &"a".repeat(400)));
    }

    #[test]
    fn finds_what_was_meant() {
        let known = ["version", "user", "cvmfs_repo", "output_format", "input", "ignoreErrors"];
        let cases = [
            ("inputs", Some("input")),
            ("cvmfs-repo", Some("cvmfs_repo")),
            ("CvmfsRepo", Some("cvmfs_repo")),
            ("ignore_errors", Some("ignoreErrors")),
            ("ouput_format", Some("output_format")),
            ("usr", Some("user")),
            ("schedule", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), &known), None);
    }
}
