//! Trust: certificates, and no way down from https to http.

use registry::testing::{Fault, TestRegistry};
use registry::{BlobSource, Client, ClientConfig, Credential, Credentials, Error};

use super::{MANIFEST, client, quick};

/// A registry with TLS, and a client that trusts it and has a password for it.
fn with_tls() -> (TestRegistry, Client) {
    let server = TestRegistry::spawn_tls();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server.ca_pem().unwrap()).unwrap();
    let credentials =
        Credentials::anonymous().with(server.address().to_string(), Credential::password("lab", "secret"));
    let config = ClientConfig { extra_ca_files: vec![file.path().to_owned()], credentials, ..quick() };
    (server, Client::new(config).unwrap())
}

#[tokio::test]
async fn trusts_an_extra_ca_and_nobody_else() {
    let (server, trusting) = with_tls();
    trusting.manifest(&server.reference("lab/x:1")).await.unwrap();
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("extra CA"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn speaks_plain_http_only_where_the_reference_says_so() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    let https = format!("https://{}/lab/x:1", server.address());
    let error = client().manifest(&image::reference::Reference::parse(&https).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn never_follows_https_down_to_http() {
    let plain = TestRegistry::spawn();
    plain.put_manifest("lab/x", "1", MANIFEST, "{}");

    let (server, client) = with_tls();
    server.fault(Fault::redirect_to(plain.url()));
    let error = client.manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Downgrade { .. }), "{error}");

    let (server, client) = with_tls();
    server.challenge(&format!(r#"Bearer realm="{}/token",service="test""#, plain.url()));
    let error = client.manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Downgrade { .. }), "{error}");

    let (server, client) = with_tls();
    server.upload_to(plain.url());
    let digest = image::digest::Digest::of(b"x");
    let repository = server.reference("lab/x:1").repository().clone();
    let error = client.push_blob(&repository, digest, BlobSource::Bytes("x".into())).await.unwrap_err();
    assert!(matches!(error, Error::Downgrade { .. }), "{error}");

    assert!(plain.requests().is_empty());
}

#[test]
fn refuses_ca_files_without_certificates() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let with = |path: &std::path::Path| Client::new(ClientConfig { extra_ca_files: vec![path.to_owned()], ..quick() });
    std::fs::write(file.path(), "no certificate").unwrap();
    assert!(matches!(with(file.path()), Err(Error::Configuration(_))));
    assert!(matches!(with("/nonexistent/ca.pem".as_ref()), Err(Error::Io { .. })));
}
