//! OCI distribution client: authenticate, pull, push, retry.
//!
//! | module | promise |
//! |---|---|
//! | [`client`] | tags to digests, manifests and other documents, tag lists |
//! | [`referrers`] | signatures and other artifacts that refer to an image |
//! | [`blob`] | a blob as a byte stream: verified, resumed |
//! | [`push`] | blobs and manifests into a registry |
//! | [`thin`] | thin images into a registry, only what changed |
//! | [`settings`] | what an operator says about registries: credentials, mirrors, CA, budget |
//! | [`credentials`] | whose password goes to which registry |
//! | [`budget`] | how often a registry is asked |
//! | [`retry`] | what is tried again and when |
//! | [`error`] | what can go wrong, as callers branch on it |
//! | `testing` | a registry in this process, with scripted faults (feature `testing`) |
//!
//! **Why not `oci-client`.** The common client crate (oci-client 0.18, read in source) sends the configured password
//! to whatever realm a challenge names, also from https to http; leaves redirects to the HTTP library's default, which
//! follows https to http; reads manifests, tag lists and error bodies without a limit; drops the answer's head on an
//! error, so that `Retry-After` is lost, and never repeats a request; ignores identity tokens; and its resumed blob
//! streams are not verified. None of it can be added from outside, because the HTTP client and the token exchange are
//! private to it. What would remain of it is a list of URLs. So this crate stands directly on `reqwest`.
//!
//! Plain HTTP is used when, and only when, the reference says `http://`.

mod auth;
pub mod blob;
pub mod budget;
mod challenge;
pub mod client;
pub mod credentials;
mod endpoints;
pub mod error;
mod lines;
mod pages;
pub mod push;
pub mod referrers;
pub mod retry;
pub mod settings;
mod tags;
#[cfg(feature = "testing")]
pub mod testing;
pub mod thin;
mod transport;

pub use blob::BlobReader;
pub use budget::Budgets;
pub use client::{Client, ClientConfig, RawManifest};
pub use credentials::{Credential, Credentials};
pub use error::Error;
pub use push::BlobSource;
pub use referrers::Referrer;
pub use retry::RetryPolicy;
pub use settings::{Registries, Settings};
