//! The client against the test registry: what the wire sees, what the caller gets, what hostile servers achieve.

mod authentication;
mod blobs;
mod budget;
mod documents;
mod mirror;
mod mirrors;
mod named;
mod pushes;
mod referrers;
mod tls;

use std::time::Duration;

use registry::{Client, ClientConfig, Credential, Credentials, Error, RetryPolicy};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Patient enough for faults, quick enough for tests.
fn quick() -> ClientConfig {
    ClientConfig {
        retry: RetryPolicy {
            attempts: 3,
            first_delay: Duration::from_millis(5),
            longest_delay: Duration::from_millis(20),
            longest_wait: Duration::from_secs(3),
            progress: 1000,
        },
        idle_timeout: Duration::from_secs(20),
        ..ClientConfig::default()
    }
}

fn client() -> Client {
    Client::new(quick()).unwrap()
}

/// A client that knows one password, for one registry.
fn client_of(registry: &registry::testing::TestRegistry, user: &str, password: &str) -> Client {
    let credentials =
        Credentials::anonymous().with(registry.address().to_string(), Credential::password(user, password));
    Client::new(ClientConfig { credentials, ..quick() }).unwrap()
}

/// The error and all its sources, as an operator sees them.
fn full_text(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text += &format!(" {inner} {inner:?}");
        source = inner.source();
    }
    text
}

/// Bytes that no compressor and no accident produces.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}
