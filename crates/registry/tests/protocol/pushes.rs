//! Into the registry and out again.

use image::digest::{Digest, ManifestDigest};
use registry::push::Pushed;
use registry::testing::{Fault, TestRegistry};
use registry::{BlobSource, Error};

use super::{INDEX, MANIFEST, client, client_of, noise};

#[tokio::test]
async fn pushes_an_image_and_pulls_it_back() {
    let server = TestRegistry::spawn();
    server.require_token(&server);
    server.add_account("lab", "secret");
    let client = client_of(&server, "lab", "secret");
    let reference = server.reference("lab/x:1");
    let repository = reference.repository();

    let layer = noise(500_000);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &layer).unwrap();
    let layer_digest = Digest::of(&layer);
    let from_file = BlobSource::File { path: file.path().to_owned(), size: layer.len() as u64 };
    let config = Digest::of(b"{}");
    let manifest = format!(
        r#"{{"config":{{"digest":"{config}"}},"layers":[{{"digest":"{layer_digest}","size":{}}}]}}"#,
        layer.len()
    );
    let early = client.push_manifest(&reference, MANIFEST, manifest.clone().into()).await.unwrap_err();
    assert!(early.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{early}");

    assert_eq!(client.push_blob(repository, layer_digest, from_file.clone()).await.unwrap(), Pushed::Uploaded);
    assert_eq!(client.push_blob(repository, layer_digest, from_file).await.unwrap(), Pushed::Present);
    client.push_blob(repository, config, BlobSource::Bytes("{}".into())).await.unwrap();
    let digest = client.push_manifest(&reference, MANIFEST, manifest.clone().into()).await.unwrap();
    let index = format!(r#"{{"manifests":[{{"digest":"{digest}"}}]}}"#);
    client.push_manifest(&server.reference("lab/x:all"), INDEX, index.into()).await.unwrap();

    assert!(client.has_blob(repository, config).await.unwrap());
    assert!(!client.has_blob(repository, Digest::of(b"none")).await.unwrap());
    assert_eq!(client.resolve(&reference).await.unwrap(), digest);
    assert_eq!(client.manifest(&reference).await.unwrap().bytes, manifest);
    assert_eq!(client.blob_bytes(repository, layer_digest).await.unwrap(), layer);
    assert_eq!(client.tags(repository).await.unwrap(), ["1", "all"]);
}

#[tokio::test]
async fn pushes_a_manifest_by_digest() {
    let server = TestRegistry::spawn();
    let digest = ManifestDigest::of(b"{}");
    let reference = server.reference(&format!("lab/x@{digest}"));
    assert_eq!(client().push_manifest(&reference, MANIFEST, "{}".into()).await.unwrap(), digest);
    assert_eq!(server.manifest("lab/x", &digest.to_string()), Some((MANIFEST.to_owned(), "{}".into())));
    let error = client().push_manifest(&reference, MANIFEST, "{ }".into()).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn begins_a_failed_upload_again() {
    let server = TestRegistry::spawn();
    let repository = server.reference("lab/x:1").repository().clone();
    let content = noise(100_000);
    server.fault(Fault::status(503).method("PUT").on("/uploads/"));
    server.fault(Fault::status(500).method("POST"));
    let digest = Digest::of(&content);
    client().push_blob(&repository, digest, BlobSource::Bytes(content.clone().into())).await.unwrap();
    assert_eq!(server.blob(digest).unwrap(), content);
    assert_eq!((server.count("POST", ""), server.count("PUT", "")), (3, 2));
}

#[tokio::test]
async fn anonymous_pushes_are_refused_where_pulls_are_not() {
    let server = TestRegistry::spawn();
    server.require_token(&server);
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    let reference = server.reference("lab/x:1");
    client().manifest(&reference).await.unwrap();
    let error = client().push_manifest(&reference, MANIFEST, "{}".into()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn an_upload_to_another_host_goes_without_authorization() {
    let (server, storage) = (TestRegistry::spawn(), TestRegistry::spawn());
    server.require_basic("lab", "secret");
    server.upload_to(storage.url());
    let repository = server.reference("lab/x:1").repository().clone();
    let client = client_of(&server, "lab", "secret");
    client.push_blob(&repository, Digest::of(b"x"), BlobSource::Bytes("x".into())).await.unwrap();
    assert!(storage.blob(Digest::of(b"x")).is_some());
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn refuses_to_send_a_body_after_a_redirect() {
    let (server, other) = (TestRegistry::spawn(), TestRegistry::spawn());
    server.fault(Fault::redirect_to(other.url()).method("PUT").always());
    let error = client().push_manifest(&server.reference("lab/x:1"), MANIFEST, "{}".into()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_missing_or_shrunken_file_is_reported() {
    let server = TestRegistry::spawn();
    let repository = server.reference("lab/x:1").repository().clone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    let source = BlobSource::File { path: path.clone(), size: 10 };
    let error = client().push_blob(&repository, Digest::of(b"x"), source.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
    std::fs::write(&path, "x").unwrap();
    assert!(client().push_blob(&repository, Digest::of(b"x"), source).await.is_err());
    assert!(server.blob(Digest::of(b"x")).is_none());
}
