//! Values on the command line: one small parser each, whose message says what to write instead.

use std::path::PathBuf;

/// Longest name that the reference tools accept for a repository.
const FQRN_MAX: usize = 60;

/// A fully qualified repository name such as `images.example.org`.
///
/// The rule is the one of the reference tools: up to 60 letters, digits, `-`, `_` and `.`, the first a letter or digit.
/// A dot is required, because mount helpers add a domain to a name without one. Empty components are refused: the
/// name becomes a directory, a host-like part of URLs and part of file names.
pub fn fqrn(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() > FQRN_MAX {
        return Err(format!("longer than {FQRN_MAX} characters"));
    }
    if !text.chars().all(allowed) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("a repository name consists of letters, digits, '-', '_' and '.', and begins with a letter or \
                    digit, for example images.example.org"
            .to_owned());
    }
    if !text.contains('.') || text.split('.').any(str::is_empty) {
        return Err("a repository name is fully qualified, for example images.example.org".to_owned());
    }
    Ok(text.to_owned())
}

/// A number of bytes: digits, then nothing, `k`, `M`, `G`, `T` (powers of 1000) or `Ki`, `Mi`, `Gi`, `Ti` (powers of
/// 1024), then an optional `B`.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match unit.strip_suffix('B').unwrap_or(unit) {
        "" => Some(1),
        "k" | "K" => Some(1000),
        "M" => Some(1000_u64.pow(2)),
        "G" => Some(1000_u64.pow(3)),
        "T" => Some(1000_u64.pow(4)),
        "Ki" => Some(1 << 10),
        "Mi" => Some(1 << 20),
        "Gi" => Some(1 << 30),
        "Ti" => Some(1 << 40),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| "write a number of bytes, for example 500G, 64Mi or 1048576".to_owned())
}

/// The URL of a repository on a web server.
pub fn repository_url(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("{e}; write http://HOST/cvmfs/FQRN"))?;
    if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
        return Err("write http://HOST/cvmfs/FQRN or the same with https".to_owned());
    }
    Ok(url)
}

/// An address on the web.
pub fn web_address(text: &str) -> Result<reqwest::Url, String> {
    let url = reqwest::Url::parse(text).map_err(|e| format!("{e}; write http://HOST/PATH or the same with https"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("write http://HOST/PATH or the same with https".to_owned()),
    }
}

/// A directory on this machine. URLs are refused by name: they would otherwise become odd directories.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("the name of the directory is empty".to_owned());
    }
    if text.contains("://") {
        return Err(
            "a directory of this machine is wanted, not a URL (a storage may be s3://BUCKET/PREFIX as well)".to_owned()
        );
    }
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_names_that_the_reference_tools_take() {
        for name in ["images.example.org", "a.b", "9x-y_z.cern.ch", "Upper.Case.org"] {
            assert_eq!(fqrn(name).as_deref(), Ok(name));
        }
        let long = format!("{}.org", "a".repeat(57));
        for name in ["", "images", ".a.b", "a..b", "a.b.", "-a.b", "a/b.c", "../x.y", "a b.c", "ä.org", &long] {
            assert!(fqrn(name).is_err(), "{name}");
        }
    }

    #[test]
    fn reads_sizes_with_decimal_and_binary_units() {
        let cases = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("1k", 1000),
            ("500G", 500_000_000_000),
            ("500GB", 500_000_000_000),
            ("64Mi", 64 << 20),
            ("64MiB", 64 << 20),
            ("2Ti", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1 G", "1Gb", "99999999999T", "99999999999999999999", "1X"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_urls_as_directories() {
        assert_eq!(directory("/srv/x"), Ok(PathBuf::from("/srv/x")));
        assert!(directory("s3://bucket/prefix").is_err());
        assert!(directory("").is_err());
    }
}
