//! What an S3 server, or the way to it, says → what happened and what to do about it.
//!
//! Codes: Amazon S3 API reference, "List of error codes"; other servers use the same.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

/// What is needed to say where something went wrong.
#[derive(Debug, Clone)]
pub struct Explainer {
    /// `s3://BUCKET/PREFIX`
    pub place: String,
    /// URL of the server.
    pub server: String,
    /// The bucket.
    pub bucket: String,
    /// Region that requests are signed for.
    pub region: String,
    /// The access key, if one is configured.
    pub access_key: Option<String>,
}

impl Explainer {
    /// The error in words that say what to do; the server's own words at their end.
    pub fn explain(&self, error: &object_store::Error) -> io::Error {
        let said = error.to_string();
        let (kind, advice) = self.advice(error, &said);
        let words = server_words(&said).unwrap_or_else(|| innermost(error));
        io::Error::new(kind, if advice.is_empty() { words } else { format!("{advice} ({words})") })
    }

    fn advice(&self, error: &object_store::Error, said: &str) -> (io::ErrorKind, String) {
        use io::ErrorKind::{InvalidInput, NotConnected, NotFound, Other, PermissionDenied, TimedOut};
        let Explainer { server, bucket, region, access_key, .. } = self;
        let key = access_key.as_ref().map_or_else(String::new, |key| format!(" for access key {key}"));
        if said.contains("169.254.169.254") || said.contains("169.254.170.2") {
            let text = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; without them the machine's own \
                        identity is used, and it has none";
            return (PermissionDenied, text.to_owned());
        }
        match (code(said), error) {
            (Some("NoSuchBucket"), _) => {
                (NotFound, format!("there is no bucket {bucket} at {server}: create it, or correct --storage"))
            }
            (Some("RequestTimeTooSkewed"), _) => {
                (InvalidInput, format!("the clocks of this machine and of {server} differ too much: set them"))
            }
            (Some("SignatureDoesNotMatch"), _) => (
                PermissionDenied,
                format!("{server} refuses the signature{key}: the secret key is wrong (AWS_SECRET_ACCESS_KEY)"),
            ),
            (Some("InvalidAccessKeyId" | "NotSignedUp"), _) => {
                (PermissionDenied, format!("{server} doesn't know the key{key} (AWS_ACCESS_KEY_ID)"))
            }
            (Some("ExpiredToken" | "InvalidToken"), _) => {
                (PermissionDenied, "the session token is not valid any more: get new credentials".to_owned())
            }
            (
                Some(
                    "AuthorizationHeaderMalformed"
                    | "PermanentRedirect"
                    | "TemporaryRedirect"
                    | "IllegalLocationConstraintException",
                ),
                _,
            ) => (InvalidInput, self.wrong_region(region)),
            _ if said.contains("incorrectly configured region") => (InvalidInput, self.wrong_region(region)),
            (Some("AccessControlListNotSupported"), _) => {
                let text = format!("bucket {bucket} takes no access control lists: leave CVMFS_S3_X_AMZ_ACL out");
                (InvalidInput, text)
            }
            (Some("QuotaExceeded" | "XMinioStorageFull"), _) => (Other, format!("bucket {bucket} is full")),
            (_, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }) => {
                let text = format!(
                    "access to bucket {bucket} at {server} denied{key}: it needs s3:GetObject, PutObject, DeleteObject and \
                     ListBucket there"
                );
                (PermissionDenied, text)
            }
            (Some("SlowDown" | "ServiceUnavailable"), _) => {
                (Other, format!("{server} is overloaded: try again, or with fewer connections"))
            }
            _ => match transport(error) {
                Some(HttpErrorKind::Connect) => {
                    let text =
                        format!("{server} can't be reached: check the address (AWS_ENDPOINT_URL) and the network");
                    (NotConnected, text)
                }
                Some(HttpErrorKind::Timeout) => (TimedOut, format!("{server} doesn't answer")),
                Some(_) => (NotConnected, format!("the connection to {server} broke, again and again")),
                None => (Other, String::new()),
            },
        }
    }

    fn wrong_region(&self, region: &str) -> String {
        format!("bucket {} is not in region {region}: set AWS_REGION to the one where it is", self.bucket)
    }
}

/// Whether the server says that it doesn't know what a condition is.
pub fn lacks_conditions(error: &object_store::Error) -> bool {
    let said = error.to_string();
    matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
        || matches!(code(&said), Some("NotImplemented" | "InvalidArgument"))
        || said.contains("501 Not Implemented")
}

/// The code in an error document.
fn code(said: &str) -> Option<&str> {
    between(said, "<Code>", "</Code>")
}

fn server_words(said: &str) -> Option<String> {
    let message = between(said, "<Message>", "</Message>").filter(|message| !message.is_empty());
    match (code(said), message) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (Some(code), None) => Some(code.to_owned()),
        (None, _) => None,
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    Some(rest[..rest.find(end)?].trim())
}

/// What the connection did, if it is what failed.
fn transport(error: &object_store::Error) -> Option<HttpErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = error.source();
    }
    None
}

/// The words of the last cause, which are the shortest.
pub fn innermost(error: &object_store::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
