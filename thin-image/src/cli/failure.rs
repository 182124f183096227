//! How the program fails: the one function that shows an error, and the one that picks the exit status.

use std::io::{self, Write as _};

use image::reference::ReferenceError;

use crate::build::BuildError;
use crate::config::ConfigError;
use crate::podman_store::StoreError;
use crate::published::PublishedError;
use crate::text::printable;

/// The command line asks for something impossible, in a way that its parser can't see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// What the shell sees.
pub fn exit_status(error: &anyhow::Error) -> u8 {
    let published = |error: &PublishedError| match error {
        PublishedError::Name(_) => 2,
        error if error.is_repository() => 4,
        _ => 1,
    };
    let status = error.chain().find_map(|cause| {
        if cause.is::<Usage>() || cause.is::<ReferenceError>() {
            return Some(2);
        }
        if cause.is::<ConfigError>() {
            return Some(3);
        }
        match (cause.downcast_ref(), cause.downcast_ref(), cause.downcast_ref()) {
            (Some(BuildError::Published(error)), ..) => Some(published(error)),
            (_, Some(StoreError::Published(error)), _) => Some(published(error)),
            (.., Some(error)) => Some(published(error)),
            _ => None,
        }
    });
    status.unwrap_or(1)
}

/// Shows an error with its causes. A cause that the line above ends with is left out.
pub(super) fn complain(error: &anyhow::Error) {
    let mut above = String::new();
    let mut number = 0;
    for cause in error.chain() {
        let text = cause.to_string();
        if above.ends_with(&text) {
            continue;
        }
        let shown = printable(&text, 4000);
        let _ = match number {
            0 => writeln!(io::stderr(), "Error: {shown}"),
            number => writeln!(io::stderr(), "{number}: {shown}"),
        };
        number += 1;
        above = text;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::Context as _;

    use super::*;
    use crate::config::Config;
    use crate::published::Repository;

    #[test]
    fn the_status_tells_whose_fault_it_is() {
        let not_mounted = || Repository::new("a.b", Path::new("/nonexistent")).unwrap().check().unwrap_err();
        let absent = PublishedError::Absent { image: "x".into(), repository: "a.b".into() };
        let config = Config::read(Some(Path::new("/nonexistent")), Path::new("/cvmfs")).unwrap_err();
        for (error, status) in [
            (anyhow::Error::from(not_mounted()), 4),
            (BuildError::Published(not_mounted()).into(), 4),
            (StoreError::Published(not_mounted()).into(), 4),
            (absent.into(), 1),
            (PublishedError::Name("..".into()).into(), 2),
            (config.into(), 3),
            (Usage("x".into()).into(), 2),
            (image::reference::Reference::parse("").unwrap_err().into(), 2),
            (anyhow::anyhow!("x"), 1),
        ] {
            assert_eq!(exit_status(&error), status, "{error}");
        }
        assert_eq!(exit_status(&Err::<(), _>(not_mounted()).context("x").unwrap_err()), 4);
    }
}
