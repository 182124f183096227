//! Numbers in tar headers and PAX records.

/// A number field: octal digits between blanks and NULs, or base-256 (GNU, star) if the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, String> {
    if let Some(first) = field.first().filter(|first| *first & 0x80 != 0) {
        // two's complement of 95 bits at most (12 bytes); the highest bit is only the mark, the next one is the sign
        let start = i128::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
        let value = field[1..].iter().fold(start, |value, &byte| value * 256 + i128::from(byte));
        return i64::try_from(value).map_err(|_| "number out of range".to_owned());
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|&b| b == 0 || b == b' ').unwrap_or(digits.len());
    digits[..end].iter().try_fold(0i64, |value, &digit| match digit {
        b'0'..=b'7' => value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(|| "number out of range".to_owned()),
        _ => Err(format!("\"{}\" is not an octal number", field.escape_ascii())),
    })
}

/// A decimal number of a PAX record.
pub(super) fn decimal<T: std::str::FromStr>(value: &[u8]) -> Result<T, String> {
    let plain = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+'));
    plain.and_then(|text| text.parse().ok()).ok_or_else(|| format!("\"{}\" is not a number in range", shown(value)))
}

/// A time of a PAX record: seconds, possibly negative, possibly with a fraction. Digits beyond nanoseconds are cut.
pub(super) fn time(value: &[u8]) -> Result<(i64, u32), String> {
    let bad = || format!("\"{}\" is not a time", shown(value));
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = if matches!(whole, "" | "-") { 0 } else { whole.parse().map_err(|_| bad())? };
    if text.is_empty() || fraction.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(bad());
    }
    let digits = &fraction[..fraction.len().min(9)];
    let nanoseconds = format!("{digits:0<9}").parse::<u32>().map_err(|_| bad())?;
    if whole.starts_with('-') && nanoseconds > 0 {
        // -1.25 is two seconds before, three quarters after
        return Ok((seconds.checked_sub(1).ok_or_else(bad)?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

fn shown(value: &[u8]) -> String {
    value[..value.len().min(60)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_octal_and_base_256() {
        let negative = |value: i64| {
            let mut field = [0xff; 12];
            field[4..].copy_from_slice(&value.to_be_bytes());
            field
        };
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (&negative(-1), Some(-1)),
            (&negative(-300), Some(-300)),
            (&negative(i64::MIN), Some(i64::MIN)),
            (b"\xc0\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn reads_times_with_fractions() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            (".5", Some((0, 500_000_000))),
            ("", None),
            ("x", None),
            ("1.x", None),
            ("99999999999999999999", None),
            ("-9223372036854775808.1", None),
        ] {
            assert_eq!(time(text.as_bytes()).ok(), expected, "{text}");
        }
        assert_eq!(decimal::<u64>(b"12").ok(), Some(12));
        for bad in ["", "+1", "-1", "1 ", "99999999999999999999"] {
            assert!(decimal::<u64>(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
