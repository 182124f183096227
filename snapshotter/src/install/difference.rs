//! A difference between two texts, line by line, for people.

use std::fmt::Write as _;

/// Lines shown around what differs.
const AROUND: usize = 3;

/// The difference in the usual form, without line numbers: what a reader wants to know is what comes and what goes.
pub fn difference(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let lines = compare(&old, &new);
    let near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        lines[from..lines.len().min(at + AROUND + 1)].iter().any(|(sign, _)| *sign != ' ')
    };
    let mut text = String::new();
    let mut skipped = false;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if near(at) {
            if skipped {
                text.push_str("@@\n");
            }
            skipped = false;
            let _ = writeln!(text, "{sign}{line}");
        } else {
            skipped = true;
        }
    }
    text
}

/// The lines of both texts, each marked as old, new or common, by the longest common sequence.
pub fn compare<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let width = new.len() + 1;
    // common[i * width + j]: length of the longest common sequence of old[i..] and new[j..]
    let mut common = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i * width + j] = if old[i] == new[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && common[(i + 1) * width + j] >= common[i * width + j + 1] {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_is_shown_with_its_surroundings() {
        for (before, after, expected) in [
            ("", "a\nb\n", "+a\n+b\n"),
            ("a\nb\n", "a\nb\n", ""),
            ("a\nb\nc\n", "a\nx\nc\n", " a\n-b\n+x\n c\n"),
            ("1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\n5\n6\n7\n8\nx\n9\n", "@@\n 6\n 7\n 8\n+x\n 9\n"),
        ] {
            assert_eq!(difference(before, after), expected);
        }
    }
}
