//! The `Range` header (RFC 9110, section 14): one range of bytes.
//!
//! A server may ignore the header. We do for several ranges, other units and malformed values: the answer is then the
//! whole file.

use std::ops::Range;

/// Which part of a file is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// These bytes; never empty, never beyond the end.
    Of(Range<u64>),
    /// A part that lies wholly behind the end.
    Nowhere,
}

/// The part of a file of `length` bytes that the value of a `Range` header asks for.
pub(super) fn parse(value: &str, length: u64) -> Part {
    let Some((unit, range)) = value.split_once('=') else { return Part::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Part::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    match (number(first), number(last)) {
        // The last so many bytes.
        (_, Some(count)) if first.is_empty() => match count.min(length) {
            0 => Part::Nowhere,
            count => Part::Of(length - count..length),
        },
        (Some(first), None) if last.is_empty() => {
            if first < length {
                Part::Of(first..length)
            } else {
                Part::Nowhere
            }
        }
        (Some(first), Some(last)) if first <= last => {
            if first < length {
                Part::Of(first..last.saturating_add(1).min(length))
            } else {
                Part::Nowhere
            }
        }
        _ => Part::Whole,
    }
}

/// Digits only; a number beyond all files is as good as the largest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_one_range_of_bytes() {
        let cases = [
            ("bytes=0-0", 10, Part::Of(0..1)),
            ("bytes=2-5", 10, Part::Of(2..6)),
            ("bytes=2-", 10, Part::Of(2..10)),
            ("bytes=-3", 10, Part::Of(7..10)),
            ("bytes=-30", 10, Part::Of(0..10)),
            ("bytes=5-500", 10, Part::Of(5..10)),
            ("Bytes = 5-6", 10, Part::Of(5..7)),
            ("bytes=9-99999999999999999999999", 10, Part::Of(9..10)),
            ("bytes=9-18446744073709551615", 10, Part::Of(9..10)),
            ("bytes=10-", 10, Part::Nowhere),
            ("bytes=10-11", 10, Part::Nowhere),
            ("bytes=99999999999999999999999-", 10, Part::Nowhere),
            ("bytes=-0", 10, Part::Nowhere),
            ("bytes=0-", 0, Part::Nowhere),
            ("bytes=-1", 0, Part::Nowhere),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=5-2", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("bytes=--1", 10, Part::Whole),
            ("lines=1-2", 10, Part::Whole),
            ("", 10, Part::Whole),
            ("bytes", 10, Part::Whole),
        ];
        for (value, length, expected) in cases {
            assert_eq!(parse(value, length), expected, "{value:?} of {length}");
        }
    }
}
