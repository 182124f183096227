//! What refers to an image: from registries that list it, from the tag of those that don't, from hostile ones.

use image::digest::ManifestDigest;
use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, Error};
use serde_json::{Value, json};

use super::mirrors::mirrored;
use super::{INDEX, MANIFEST, client, quick};

const KIND: &str = "application/vnd.example.signature+json";

fn subject() -> ManifestDigest {
    ManifestDigest::of(b"the image")
}

fn tag() -> String {
    format!("sha256-{}", subject().hex())
}

/// Artifacts of a type that refer to the subject, and what is not meant; the digests of the former.
fn push(server: &TestRegistry, count: usize) -> Vec<ManifestDigest> {
    let artifact = |n: usize, kind: &str, subject: ManifestDigest| {
        let manifest = json!({
            "schemaVersion": 2, "artifactType": kind, "annotations": {"n": n.to_string()},
            "subject": {"mediaType": MANIFEST, "size": 1, "digest": subject.to_string()},
        });
        server.put_manifest("lab/x", "any", MANIFEST, manifest.to_string())
    };
    artifact(0, "application/vnd.example.sbom", subject());
    artifact(0, KIND, ManifestDigest::of(b"another image"));
    let mut digests: Vec<_> = (0..count).map(|n| artifact(n, KIND, subject())).collect();
    digests.sort_by_key(ToString::to_string);
    digests
}

fn entry(digest: &str, kind: Option<&str>) -> Value {
    json!({"mediaType": MANIFEST, "size": 1, "digest": digest, "artifactType": kind, "annotations": {"a": "b"}})
}

fn put_list(server: &TestRegistry, entries: &[Value]) {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    server.put_manifest("lab/x", &tag(), INDEX, index.to_string());
}

async fn digests(client: &Client, server: &TestRegistry) -> Result<Vec<ManifestDigest>, Error> {
    let found = client.referrers(server.reference("lab/x:1").repository(), subject(), KIND).await?;
    Ok(found.into_iter().map(|referrer| referrer.digest).collect())
}

#[tokio::test]
async fn takes_what_the_registry_lists_page_by_page() {
    let server = TestRegistry::spawn();
    server.list_referrers();
    assert_eq!(digests(&client(), &server).await.unwrap(), []);
    let expected = push(&server, 5);
    put_list(&server, &[entry(&subject().to_string(), Some(KIND))]);
    server.page_tags(2);
    server.forget_requests();
    let found = client().referrers(server.reference("lab/x:1").repository(), subject(), KIND).await.unwrap();
    assert_eq!(found.iter().map(|referrer| referrer.digest).collect::<Vec<_>>(), expected);
    assert!(found.iter().all(|referrer| referrer.annotations.contains_key("n")));
    assert_eq!((server.count("GET", "/referrers/"), server.count("GET", "/manifests/")), (3, 0));
}

#[tokio::test]
async fn takes_the_list_under_the_tag_where_the_registry_keeps_none() {
    let listed = ManifestDigest::of(b"a").to_string();
    for fault in [404, 400, 405, 501, 200] {
        let server = TestRegistry::spawn();
        // 200: a registry whose every path shows a page for people.
        server.fault(Fault::status_with_body(fault, "<html>").on("/referrers/").always());
        assert_eq!(digests(&client(), &server).await.unwrap(), [], "no tag, no referrers");
        server.put_manifest("lab/x", &tag(), INDEX, "no list");
        assert_eq!(digests(&client(), &server).await.unwrap(), []);
        let typeless = ManifestDigest::of(b"b").to_string();
        put_list(
            &server,
            &[
                entry(&listed, Some(KIND)),
                entry(&typeless, None),
                entry(&listed, Some("application/vnd.example.sbom")),
                entry("sha512:abc", Some(KIND)),
            ],
        );
        let expected = [ManifestDigest::of(b"a"), ManifestDigest::of(b"b")];
        assert_eq!(digests(&client(), &server).await.unwrap(), expected, "{fault}");
    }
}

#[tokio::test]
async fn a_registry_that_fails_is_no_registry_without_referrers() {
    for (status, path) in [(500, "/referrers/"), (403, "/referrers/"), (500, "/manifests/sha256-")] {
        let server = TestRegistry::spawn();
        server.fault(Fault::status(status).on(path).always());
        assert!(digests(&client(), &server).await.is_err(), "{status} {path}");
    }
}

#[tokio::test]
async fn a_list_is_bounded() {
    let server = TestRegistry::spawn();
    let many: Vec<Value> =
        (0..3000).map(|n| entry(&ManifestDigest::of(format!("{n}").as_bytes()).to_string(), Some(KIND))).collect();
    put_list(&server, &many);
    assert_eq!(digests(&client(), &server).await.unwrap().len(), 1000);
    let strict = Client::new(ClientConfig { document_limit: 1000, ..quick() }).unwrap();
    assert!(matches!(digests(&strict, &server).await, Err(Error::TooLarge { .. })));

    // Pages without an end, and one at another host.
    let other = TestRegistry::spawn();
    let server = TestRegistry::spawn();
    server.list_referrers();
    let expected = push(&server, 1);
    server.fault(Fault::header("link", "</v2/lab/x/referrers/again>; rel=next").on(&subject().to_string()).always());
    server.fault(Fault::status_with_body(200, &json!({"manifests": []}).to_string()).on("/referrers/again").always());
    server.fault(Fault::header("link", "</v2/lab/x/referrers/again>; rel=next").on("/referrers/again").always());
    assert_eq!(digests(&client(), &server).await.unwrap(), expected);
    assert!(server.count("GET", "/referrers/") <= 16, "{}", server.count("GET", "/referrers/"));
    server.heal();
    server.fault(Fault::header("link", &format!("<{}/x>; rel=next", other.url())).on("/referrers/").always());
    assert!(digests(&client(), &server).await.unwrap_err().to_string().contains("another host"));
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_mirror_that_knows_of_none_is_no_proof() {
    let [origin, mirror] = [(); 2].map(|()| TestRegistry::spawn());
    origin.list_referrers();
    mirror.list_referrers();
    let expected = push(&origin, 2);
    let client = Client::new(ClientConfig { registries: mirrored(&origin, &[&mirror]), ..quick() }).unwrap();
    assert_eq!(digests(&client, &origin).await.unwrap(), expected);
    assert_eq!((mirror.count("GET", "/referrers/"), origin.count("GET", "/referrers/")), (1, 1));
    push(&mirror, 2);
    assert_eq!(digests(&client, &origin).await.unwrap(), expected);
    assert_eq!(origin.count("GET", "/referrers/"), 1, "what a mirror has is enough");
}
