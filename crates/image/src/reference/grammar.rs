//! The grammar of names, one predicate for each part.
//!
//! Source: OCI distribution-spec, "Pulling manifests" (`<name>`, tags); hosts as in RFC 3986 with LDH labels.

use std::net::Ipv6Addr;

use super::ReferenceError;

/// Longest file name that a repository can hold.
pub(super) const NAME_MAX: usize = 255;
/// Longest accepted text: registry, repository, tag and digest at their limits fit well below.
pub(super) const TEXT_MAX: usize = 1024;

pub(super) fn check_text(text: &str) -> Result<(), ReferenceError> {
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(ReferenceError::Text(text.chars().take(80).flat_map(char::escape_debug).collect()));
    }
    Ok(())
}

/// `HOST`, `HOST:PORT`, `[IPv6]`, `[IPv6]:PORT`.
pub(super) fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            match (port, port.strip_prefix(':')) {
                ("", _) => (None, None),
                (_, Some(port)) => (None, Some(port)),
                _ => return false,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.len() <= 253 && host.split('.').all(label))
        && port.is_none_or(|port| {
            port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// One component of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the OCI distribution specification has it.
pub(super) fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    word(first)
        && word(last)
        && bytes
            .split(|&b| word(b))
            .all(|joint| matches!(joint, [] | b"." | b"_" | b"__") || joint.iter().all(|&b| b == b'-'))
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(super) fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
