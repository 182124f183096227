//! What people read: sizes, and text from outside made harmless.

/// Text from outside on one line: without control characters, those that reverse the direction of the text around them included, and
/// at most `limit` characters of it.
pub fn printable(text: &str, limit: usize) -> String {
    let bad = |c: char| {
        c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
    };
    text.chars().map(|c| if bad(c) { '\u{fffd}' } else { c }).take(limit).collect()
}

/// A number of bytes, for instance `12.3 MB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_the_fitting_unit() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_940, "999.9 kB"),
            (999_960, "1.0 MB"),
            (12_345_678, "12.3 MB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn text_from_outside_can_t_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2J\n\u{202e}b", 100), "a\u{fffd}[2J\u{fffd}\u{fffd}b");
        assert_eq!(printable("abc", 2), "ab");
    }
}
