//! What can go wrong while publishing, in the library.
//!
//! Most causes come from other crates with their own words; this enum adds what was being done. The program turns a
//! failure into an exit status in one place ([`Failure::into_command_error`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::digest::{DiffId, LayerDigest};
use image::tar::TarError;
use indicatif::HumanBytes;

use crate::error::{CommandError, ErrorKind, Signal};

/// Publishing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The repository cannot be used or changed.
    #[error(transparent)]
    Repository(#[from] cvmfs::repository::RepositoryError),
    /// Its storage failed.
    #[error(transparent)]
    Store(#[from] cvmfs::store::StoreError),
    /// A catalog of ours could not be written.
    #[error(transparent)]
    Subtree(#[from] cvmfs::subtree::SubtreeError),
    /// A catalog could not be read.
    #[error(transparent)]
    Traversal(#[from] cvmfs::traversal::TraversalError),
    /// A catalog has content that cannot be.
    #[error(transparent)]
    Catalog(#[from] cvmfs::catalog::CatalogError),
    /// The registry did not give what was asked for.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The manifest or config is none that we can publish.
    #[error(transparent)]
    Manifest(#[from] image::manifest::ManifestError),
    /// The image has nothing for the wished platform.
    #[error(transparent)]
    Platform(#[from] image::platform::PlatformError),
    /// The image's name cannot be published.
    #[error(transparent)]
    Reference(#[from] image::reference::ReferenceError),
    /// A record in the repository is unreadable.
    #[error(transparent)]
    Record(#[from] image::layout::RecordError),
    /// A layer is not what it should be.
    #[error("layer {layer}")]
    Layer {
        /// The layer.
        layer: LayerDigest,
        /// What is wrong with it.
        #[source]
        source: Box<Failure>,
    },
    /// The archive is malformed or hostile.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The uncompressed layer is not the one that the config lists.
    #[error("the uncompressed layer has digest {found}, the image's config says {expected}")]
    DiffId {
        /// From the config.
        expected: DiffId,
        /// Of what came.
        found: DiffId,
    },
    /// A limit against hostile input.
    #[error("{what}; refused (the limit can be raised with {option})")]
    Limit {
        /// What was too much.
        what: String,
        /// The option that raises it.
        option: &'static str,
    },
    /// A disk is nearly full.
    #[error(
        "the disk of {} has {} left; this takes up to {}, and {} are kept free (--keep-free): make room there",
        path.display(), HumanBytes(*free), HumanBytes(*wanted), HumanBytes(*keep)
    )]
    NoSpace {
        /// A directory on it.
        path: PathBuf,
        /// Bytes that are left.
        free: u64,
        /// Bytes that are needed, with what is under way.
        wanted: u64,
        /// Bytes that are to stay free.
        keep: u64,
    },
    /// More than the wish list allows.
    #[error("{what}; the wish list allows {allowed} (quota)")]
    Quota {
        /// What is too much.
        what: String,
        /// Bytes.
        allowed: u64,
    },
    /// Content that contradicts itself or the request.
    #[error("{0}")]
    Content(String),
    /// The operator wants an end.
    #[error("{}", crate::stop::STOPPED)]
    Stopped(Signal),
    /// Our own state failed.
    #[error("state database {}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        #[source]
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Reading a stream failed.
    #[error("cannot read {what}")]
    Read {
        /// The stream.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Keys are missing or wrong.
    #[error("{}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: cvmfs::signature::SignatureError,
    },
    /// Somebody else holds the lock of the repository.
    #[error("repository {fqrn} is locked by another publisher (lock file {})", path.display())]
    Locked {
        /// The repository.
        fqrn: String,
        /// The lock.
        path: PathBuf,
    },
    /// A stratum 0 of the reference tools cannot be published to.
    #[error(transparent)]
    Adopt(#[from] crate::adopt::AdoptError),
    /// Somebody is at work in the repository whom this would disturb.
    #[error("repository {fqrn} is in use; nothing was changed")]
    Lease {
        /// The repository.
        fqrn: String,
        /// Who is at work.
        #[source]
        source: cvmfs::lease::LeaseError,
    },
    /// What was prepared is not in the storage any more.
    #[error("objects of {what} were collected as garbage meanwhile; nothing of it was published, run again")]
    Collected {
        /// What needs them.
        what: String,
    },
    /// Not everything that is in use could be found.
    #[error("nothing was condemned or removed: what needs layers and flats can't be known, because of {path}")]
    Unmarked {
        /// The directory, record or link.
        path: String,
        /// What is wrong with it.
        #[source]
        source: Box<Failure>,
    },
    /// A collection failed.
    #[error(transparent)]
    Collection(#[from] cvmfs::gc::GcError),
    /// Tags could not be changed.
    #[error(transparent)]
    Retag(#[from] cvmfs::repository::RetagError),
    /// A signature is not what the operator asks for.
    #[error(transparent)]
    Signature(#[from] crate::signature::SignatureError),
    /// A key that a wish names cannot be used.
    #[error(transparent)]
    SignatureKey(#[from] crate::signature::KeyError),
    /// What several wait for failed for all of them.
    #[error(transparent)]
    Shared(Arc<Failure>),
    /// Another part of the same work failed, and said so.
    #[error("{0}")]
    Elsewhere(String),
}

impl Failure {
    /// For `map_err` of a file operation.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
        let path = path.to_owned();
        move |source| Failure::Io { action, path, source }
    }

    /// For `map_err` of reading a stream: takes the failure out that one of our own readers put in.
    pub fn read(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        move |source| match source.downcast::<Failure>() {
            Ok(failure) => failure,
            Err(source) => Failure::Read { what: what.into(), source },
        }
    }

    /// For `map_err` of the tar reader: the failure that one of our own readers put in, or what it says itself.
    pub fn tar(error: TarError) -> Failure {
        match error {
            TarError::Read { source, .. } => Failure::read("the archive")(source),
            other => Failure::Tar(other),
        }
    }

    /// Puts a failure into an `io::Error`, so that it passes through a reader.
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The same failure, of a layer.
    pub fn of_layer(self, layer: LayerDigest) -> Failure {
        Failure::Layer { layer, source: Box::new(self) }
    }

    /// What the program shows, and its exit status.
    pub fn into_command_error(self) -> CommandError {
        CommandError::new(self.kind(), self)
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Failure::Repository(_) | Failure::Locked { .. } | Failure::Lease { .. } | Failure::Key { .. } => {
                ErrorKind::Repository
            }
            Failure::Collection(cvmfs::gc::GcError::NotAllowed(_) | cvmfs::gc::GcError::NoReflog(_)) => {
                ErrorKind::Repository
            }
            Failure::Adopt(error) => error.kind(),
            Failure::Stopped(signal) => ErrorKind::Stopped(*signal),
            Failure::Shared(failure) => failure.kind(),
            _ => ErrorKind::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::one_line;

    #[test]
    fn what_is_shared_is_what_it_was() {
        let shared = |failure| Failure::Shared(Arc::new(failure));
        let io = Failure::Io { action: "open", path: "/x".into(), source: io::Error::other("why") };
        let said = one_line(&io);
        assert_eq!(one_line(&shared(io)), said);
        assert!(said.ends_with("why"), "{said}");
        let stopped = shared(shared(Failure::Stopped(Signal::Interrupt)));
        assert_eq!(stopped.into_command_error().kind(), ErrorKind::Stopped(Signal::Interrupt));
    }
}
