//! Tags, manifests, configs, and the limits on them.

use image::digest::{Digest, ManifestDigest};
use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, Error};

use super::{INDEX, MANIFEST, client, quick};

#[tokio::test]
async fn resolves_a_tag_with_one_head_request() {
    let server = TestRegistry::start().await;
    let digest = server.put_manifest("lab/x", "1", MANIFEST, "{}");
    assert_eq!(client().resolve(&server.reference("lab/x:1")).await.unwrap(), digest);
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("HEAD", "/v2/lab/x/manifests/1"));
    let accept = requests[0].header("accept").unwrap();
    for media_type in ["image.manifest.v1", "image.index.v1", "manifest.v2+json", "manifest.list.v2+json"] {
        assert!(accept.contains(media_type), "{accept}");
    }
}

#[tokio::test]
async fn resolves_a_digest_without_a_request() {
    let server = TestRegistry::spawn();
    let digest = ManifestDigest::of(b"x");
    assert_eq!(client().resolve(&server.reference(&format!("lab/x@{digest}"))).await.unwrap(), digest);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn falls_back_to_get_where_head_is_of_no_use() {
    for fault in [
        Fault::without_header("docker-content-digest"),
        Fault::header("docker-content-digest", "sha512:abcd"),
        Fault::status(405),
    ] {
        let server = TestRegistry::spawn();
        let digest = server.put_manifest("lab/x", "1", MANIFEST, "{}");
        server.fault(fault.clone().method("HEAD"));
        assert_eq!(client().resolve(&server.reference("lab/x:1")).await.unwrap(), digest, "{fault:?}");
        assert_eq!((server.count("HEAD", ""), server.count("GET", "")), (1, 1));
    }
}

#[tokio::test]
async fn returns_a_manifest_byte_for_byte() {
    let server = TestRegistry::spawn();
    let bytes = "{ \"mediaType\" : \"application/vnd.oci.image.index.v1+json\" }\n";
    let digest = server.put_manifest("lab/x", "1", INDEX, bytes);
    for name in ["lab/x:1".to_owned(), format!("lab/x@{digest}"), format!("lab/x:gone@{digest}")] {
        let manifest = client().manifest(&server.reference(&name)).await.unwrap();
        assert_eq!(manifest.bytes, bytes);
        assert_eq!((manifest.media_type.as_str(), manifest.digest), (INDEX, digest));
    }
}

#[tokio::test]
async fn refuses_a_manifest_that_is_not_what_was_asked_for() {
    let server = TestRegistry::spawn();
    let wanted = ManifestDigest::of(b"wanted");
    server.put_false_manifest("lab/x", &wanted.to_string(), MANIFEST, "{}");
    let error = client().manifest(&server.reference(&format!("lab/x@{wanted}"))).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { expected, actual, .. }
        if expected == wanted.digest() && actual == Digest::of(b"{}")));

    server.put_manifest("lab/x", "1", MANIFEST, r#"{"a":1}"#);
    server.fault(Fault::corrupt());
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(server.count("GET", ""), 2, "wrong content is not asked for again");
}

#[tokio::test]
async fn refuses_a_document_with_two_types() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, format!(r#"{{"mediaType":"{INDEX}"}}"#));
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn says_what_is_missing() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    let client = client();
    let repository = server.reference("lab/x:1").repository().clone();
    for error in [
        client.resolve(&server.reference("lab/x:2")).await.unwrap_err(),
        client.manifest(&server.reference("lab/y:1")).await.unwrap_err(),
        client.blob_bytes(&repository, Digest::of(b"none")).await.unwrap_err(),
        client.blob(&repository, Digest::of(b"none"), 4).await.unwrap_err(),
        client.tags(server.reference("lab/y:1").repository()).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(server.url()), "{error}");
    }
    let error = client.manifest(&server.reference("lab/x:2")).await.unwrap_err().to_string();
    assert!(error.contains("lab/x: manifest 2 not found (MANIFEST_UNKNOWN"), "{error}");
}

#[tokio::test]
async fn limits_every_document() {
    let server = TestRegistry::spawn();
    let client = Client::new(ClientConfig { document_limit: 1000, ..quick() }).unwrap();
    let fits = server.put_blob(vec![b'x'; 1000]);
    let large = server.put_blob(vec![b'x'; 1001]);
    server.put_manifest("lab/x", "1", MANIFEST, vec![b' '; 1001]);
    let reference = server.reference("lab/x:1");
    assert_eq!(client.blob_bytes(reference.repository(), fits).await.unwrap().len(), 1000);
    for length in ["content-length", "x-nothing"] {
        // with the length announced, and without
        server.heal();
        server.fault(Fault::without_header(length).always());
        for error in [
            client.blob_bytes(reference.repository(), large).await.unwrap_err(),
            client.manifest(&reference).await.unwrap_err(),
        ] {
            assert!(matches!(error, Error::TooLarge { limit: 1000, .. }), "{error}");
        }
    }
}

#[tokio::test]
async fn verifies_small_blobs() {
    let server = TestRegistry::spawn();
    let repository = server.reference("lab/x:1").repository().clone();
    let digest = server.put_blob("config");
    assert_eq!(client().blob_bytes(&repository, digest).await.unwrap(), "config");
    server.fault(Fault::corrupt());
    let error = client().blob_bytes(&repository, digest).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn repeats_what_may_pass_and_nothing_else() {
    for (faults, expected, requests) in [
        (vec![Fault::status(503), Fault::status(500)], true, 3),
        (vec![Fault::status(502).times(3)], false, 3),
        (vec![Fault::cut_after(1).times(2)], true, 3),
        (vec![Fault::status(418)], false, 1),
        (vec![Fault::status(501)], false, 1),
    ] {
        let server = TestRegistry::spawn();
        let digest = server.put_blob("config");
        for fault in &faults {
            server.fault(fault.clone());
        }
        let result = client().blob_bytes(server.reference("lab/x:1").repository(), digest).await;
        assert_eq!(result.is_ok(), expected, "{faults:?}: {result:?}");
        assert_eq!(server.count("GET", "/blobs/"), requests, "{faults:?}");
    }
}

#[tokio::test]
async fn waits_as_long_as_a_busy_registry_asks() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    server.fault(Fault::retry_after(429, "1"));
    let start = std::time::Instant::now();
    client().manifest(&server.reference("lab/x:1")).await.unwrap();
    assert!(start.elapsed().as_millis() >= 1000);
    assert_eq!(server.count("GET", ""), 2);
}

#[tokio::test]
async fn gives_a_busy_registry_up_when_it_asks_for_too_long() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    server.fault(Fault::retry_after(429, "3600").always());
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() == 3600), "{error}");
    assert_eq!(server.count("GET", ""), 1);
}

#[tokio::test]
async fn does_not_wait_for_ever_for_an_answer() {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    server.fault(Fault::stall());
    let client = Client::new(ClientConfig { idle_timeout: std::time::Duration::from_millis(500), ..quick() }).unwrap();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    assert!(server.count("GET", "") >= 2);
}

#[tokio::test]
async fn reports_a_registry_that_is_not_there() {
    let reference = image::reference::Reference::parse("http://127.0.0.1:1/lab/x:1").unwrap();
    let error = client().manifest(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
}

#[tokio::test]
async fn collects_all_pages_of_tags() {
    let server = TestRegistry::spawn();
    let mut expected: Vec<_> = (0..25).map(|n| format!("v{n}")).collect();
    for tag in &expected {
        server.put_manifest("lab/x", tag, MANIFEST, "{}");
    }
    expected.sort();
    let reference = server.reference("lab/x:1");
    assert_eq!(client().tags(reference.repository()).await.unwrap(), expected);
    assert_eq!(server.count("GET", "/tags/list"), 1);
    server.page_tags(10);
    assert_eq!(client().tags(reference.repository()).await.unwrap(), expected);
    assert_eq!(server.count("GET", "/tags/list"), 1 + 3);
}

#[tokio::test]
async fn refuses_tag_lists_that_lead_astray() {
    let other = TestRegistry::spawn();
    let elsewhere = format!("<{}/v2/lab/x/tags/list>; rel=\"next\"", other.url());
    for (link, said) in [
        (elsewhere.as_str(), "another host"),
        ("</v2/lab/x/tags/list?n=1000>; rel=next", "same page"),
        ("<http://[>; rel=next", "no usable address"),
    ] {
        let server = TestRegistry::spawn();
        server.put_manifest("lab/x", "1", MANIFEST, "{}");
        server.fault(Fault::header("link", link).always());
        let error = client().tags(server.reference("lab/x:1").repository()).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(other.requests().is_empty());

    let server = TestRegistry::spawn();
    for tag in ["a", "b", "c", "d"] {
        server.put_manifest("lab/x", tag, MANIFEST, "{}");
    }
    server.page_tags(1);
    let client = Client::new(ClientConfig { tag_pages: 3, ..quick() }).unwrap();
    let error = client.tags(server.reference("lab/x:1").repository()).await.unwrap_err();
    assert!(error.to_string().contains("more than 3 pages"), "{error}");
    server.fault(Fault::status_with_body(200, "<html>"));
    let error = client.tags(server.reference("lab/x:1").repository()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn goes_to_the_configured_proxy_instead_of_the_registry() {
    let server = TestRegistry::spawn();
    let digest = server.put_manifest("cache/lab/x", "1", MANIFEST, "{}");
    let proxy = format!("{}/cache", server.address());
    let variables = [
        ("DUCC_AUTH_REGISTRIES", "LAB"),
        ("DUCC_LAB_IDENT", "registry.invalid"),
        ("DUCC_LAB_USER", "user"),
        ("DUCC_LAB_PASS", "secret"),
        ("DUCC_LAB_PROXY", &proxy),
    ];
    let credentials = registry::Credentials::from_variables(|name| {
        variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    });
    let client = Client::new(ClientConfig { credentials: credentials.unwrap(), ..quick() }).unwrap();
    let reference = image::reference::Reference::parse("http://registry.invalid/lab/x:1").unwrap();
    assert_eq!(client.manifest(&reference).await.unwrap().digest, digest);
    assert_eq!(server.requests()[0].path, "/v2/cache/lab/x/manifests/1");
}

#[test]
fn works_from_a_synchronous_caller() {
    let server = TestRegistry::spawn();
    let digest = server.put_manifest("lab/x", "1", MANIFEST, "{}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(client().resolve(&server.reference("lab/x:1"))).unwrap(), digest);
}
