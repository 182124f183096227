//! What can go wrong between us and a registry, as callers branch on it.
//!
//! Invariants
//! - Every message names the place (`scheme://registry/repository`), the thing asked for, and what to do next.
//! - No message, `Debug` output or source ever holds a password, a token, or the query of a URL (signed storage URLs
//!   are credentials, too): addresses are shown as scheme, host and port; texts of servers are cleaned and cut.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use image::digest::Digest;
use serde::Deserialize;

/// An error of a foreign library, kept as the source of ours.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry says that it has no such thing (404).
    #[error(
        "{place}: {what} not found{said}; check name and tag (some registries say so of images that need credentials)"
    )]
    NotFound {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// the registry's own words, or nothing
        said: String,
    },
    /// 401 or 403: no credentials where some are needed, or the wrong ones.
    #[error("{place}: {what}: access refused: {reason}")]
    Unauthorized {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// who refused, and what to do
        reason: String,
    },
    /// 429, and still so after all attempts, or for longer than we wait.
    #[error("{place}: {what}: too many requests for this registry; {}, or log in for a higher limit", again(*retry_after))]
    RateLimited {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// how long the registry wants us to wait
        retry_after: Option<Duration>,
    },
    /// The content is not what its digest says. Nothing of it may be used.
    #[error(
        "{place}: {what} has digest {actual} instead of {expected}; the registry or a proxy before it serves damaged content"
    )]
    DigestMismatch {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// what was promised
        expected: Digest,
        /// what came
        actual: Digest,
    },
    /// The content has another length than its descriptor says. Nothing of it may be used.
    #[error(
        "{place}: {what} has {actual} bytes instead of {expected}; its manifest and its content don't belong together"
    )]
    SizeMismatch {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// bytes promised by the descriptor
        expected: u64,
        /// bytes announced by the registry
        actual: u64,
    },
    /// A document beyond the limit against hostile input.
    #[error("{place}: {what} is larger than the limit of {limit} bytes; raise the limit if this image is trusted")]
    TooLarge {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// bytes allowed
        limit: u64,
    },
    /// The registry wants us to go on over a weaker scheme than the one configured.
    #[error(
        "{place}: {what}: {reason}; refused, because https is never given up for http (a registry behind a TLS proxy must be told its public address)"
    )]
    Downgrade {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// who pointed where
        reason: String,
    },
    /// The answer breaks the distribution specification.
    #[error("{place}: {what}: {reason}; is this an OCI registry?")]
    Protocol {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// which rule is broken
        reason: String,
    },
    /// A status that no rule covers, or a server error that outlasted all attempts.
    #[error("{place}: {what}: the registry answers {status}{said}; {}", if *.status >= 500 { "try again later" } else { "see the registry's log" })]
    Status {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// HTTP status
        status: u16,
        /// the registry's own words, or nothing
        said: String,
    },
    /// The certificate is not trusted or TLS failed otherwise; not repeated.
    #[error(
        "{place}: {what}: no trusted TLS connection to {host}; install its CA certificate or name its file as extra CA (http:// must be written out)"
    )]
    Tls {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// who was called
        host: String,
        /// the TLS library's words
        #[source]
        source: Source,
    },
    /// The line failed: no connection, cut, or silent for too long; all attempts used up.
    #[error(
        "{place}: {what}: connection to {host} failed; check the address, the network and its proxies, and try again"
    )]
    Transport {
        /// `scheme://registry/repository`
        place: String,
        /// what was asked for
        what: String,
        /// who was called
        host: String,
        /// the HTTP library's words
        #[source]
        source: Source,
    },
    /// Credentials or client configuration unusable; nothing was sent.
    #[error("{0}")]
    Configuration(String),
    /// A local file (extra CA, blob to push).
    #[error("{}: can't be read", path.display())]
    Io {
        /// the file
        path: PathBuf,
        /// what the system says
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The registry error inside an I/O error that a blob stream returned.
    pub fn from_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Wraps the error for `AsyncRead`; [`Error::from_io`] finds it again.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::Unauthorized { .. } => io::ErrorKind::PermissionDenied,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

fn again(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(wait) => format!("it asks to come back in {} s", wait.as_secs()),
        None => "try again later".to_owned(),
    }
}

/// The registry's own words from an error document (distribution-spec, "Error Codes"), ready to be appended to a
/// message: `" (CODE: text)"`, or nothing. `secret` is what must not be repeated, should the server echo it.
pub(crate) fn said(body: &[u8], secret: Option<&str>) -> String {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let Some(entry) = document.errors.first() else { return String::new() };
    let text = format!("{}: {}", entry.code, entry.message);
    if secret.is_some_and(|secret| text.contains(secret)) {
        return String::new();
    }
    let clean: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    format!(" ({})", clean.trim_end_matches([':', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_the_registrys_words_cleaned_and_cut() {
        let long = format!(r#"{{"errors":[{{"code":"DENIED","message":"{}"}}]}}"#, "x".repeat(1000));
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no\u001b[31m such\n name","detail":{}}]}"#,
                " (NAME_UNKNOWN: no[31m such name)",
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, " (DENIED)"),
            (r#"{"errors":[]}"#, ""),
            ("<html>", ""),
            (r#"{"errors":[{"code":"X","message":"token abc"}]}"#, ""),
        ] {
            assert_eq!(said(body.as_bytes(), Some("abc")), expected, "{body}");
        }
        assert_eq!(said(long.as_bytes(), None).len(), 200 + 3);
    }

    #[test]
    fn survives_the_way_through_an_io_error() {
        let error = Error::TooLarge { place: "p".into(), what: "w".into(), limit: 1 }.into_io();
        assert!(matches!(Error::from_io(&error), Some(Error::TooLarge { limit: 1, .. })));
        assert!(Error::from_io(&io::Error::other("else")).is_none());
    }
}
