//! Mirrors before a registry: in order, left when they fail, held to the digest, without its password.

use std::sync::Arc;

use image::digest::Digest;
use registry::testing::{Fault, TestRegistry};
use registry::{Budgets, Client, ClientConfig, Credential, Credentials, Error, Registries, Settings};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{MANIFEST, full_text, noise, quick};

/// What the configuration says.
pub(super) fn settings(json: serde_json::Value) -> Arc<Registries> {
    Arc::new(serde_json::from_value::<Settings>(json).unwrap().check().unwrap())
}

pub(super) fn mirrored(origin: &TestRegistry, mirrors: &[&TestRegistry]) -> Arc<Registries> {
    let mirrors: Vec<_> = mirrors.iter().map(|mirror| json!({ "url": mirror.url() })).collect();
    settings(json!({ "registries": { origin.address().to_string(): { "mirrors": mirrors } } }))
}

fn through(registries: Arc<Registries>) -> (Client, Budgets) {
    let budgets = Budgets::default();
    (Client::new(ClientConfig { registries, budgets: budgets.clone(), ..quick() }).unwrap(), budgets)
}

fn passed_over(budgets: &Budgets, server: &TestRegistry) -> bool {
    let seen = budgets.snapshot().into_iter().find(|seen| seen.registry == server.url());
    seen.is_some_and(|seen| seen.passed_over.is_some())
}

fn everything(servers: &[&TestRegistry]) -> (Digest, Vec<u8>) {
    let content = noise(50_000);
    for server in servers {
        server.put_manifest("lab/x", "1", MANIFEST, "{}");
        server.put_blob(content.clone());
    }
    (Digest::of(&content), content)
}

#[tokio::test]
async fn the_first_that_answers_is_enough() {
    let [origin, first, second] = [(); 3].map(|()| TestRegistry::spawn());
    let (blob, content) = everything(&[&origin, &first, &second]);
    let (client, _) = through(mirrored(&origin, &[&first, &second]));
    let image = origin.reference("lab/x:1");
    client.resolve(&image).await.unwrap();
    client.manifest(&image).await.unwrap();
    assert_eq!(client.blob_bytes(image.repository(), blob).await.unwrap(), content);
    assert_eq!(client.tags(image.repository()).await.unwrap(), ["1"]);
    let mut bytes = Vec::new();
    client.blob(image.repository(), blob, 50_000).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
    assert_eq!([&origin, &first, &second].map(|server| server.requests().len()), [0, 5, 0]);
    let ns = format!("ns=127.0.0.1%3A{}", origin.address().port());
    assert_eq!(first.count("GET", &ns) + first.count("HEAD", &ns), 5, "it hears which registry is meant");
}

#[tokio::test]
async fn one_that_fails_is_passed_over_and_one_that_lacks_something_is_not() {
    let [origin, first, second] = [(); 3].map(|()| TestRegistry::spawn());
    everything(&[&origin, &second]);
    let (client, budgets) = through(mirrored(&origin, &[&first, &second]));
    let image = origin.reference("lab/x:1");
    client.manifest(&image).await.unwrap();
    assert_eq!([&origin, &first, &second].map(|server| server.requests().len()), [0, 1, 1]);
    assert!(!passed_over(&budgets, &first), "404 is no failure");
    first.fault(Fault::status(500).always());
    client.manifest(&image).await.unwrap();
    assert!(passed_over(&budgets, &first));
    let before = first.requests().len();
    client.manifest(&image).await.unwrap();
    assert_eq!(first.requests().len(), before, "not asked while it is passed over");
    // All of them down: the registry itself.
    second.fault(Fault::retry_after(429, "600").always());
    client.manifest(&image).await.unwrap();
    assert!(passed_over(&budgets, &second), "a mirror is not waited for");
    assert_eq!(origin.requests().len(), 1);
}

#[tokio::test]
async fn a_mirror_that_is_not_there_is_no_harm() {
    let origin = TestRegistry::spawn();
    everything(&[&origin]);
    let address = origin.address().to_string();
    let mirrors = json!([{ "url": "http://127.0.0.1:1" }]);
    let (client, _) = through(settings(json!({ "registries": { address: { "mirrors": mirrors } } })));
    client.manifest(&origin.reference("lab/x:1")).await.unwrap();
}

#[tokio::test]
async fn wrong_content_is_never_taken_from_a_mirror() {
    let [origin, mirror] = [(); 2].map(|()| TestRegistry::spawn());
    let (blob, content) = everything(&[&origin, &mirror]);
    let (client, budgets) = through(mirrored(&origin, &[&mirror]));
    let image = origin.reference("lab/x:1");
    mirror.fault(Fault::corrupt().always());
    assert_eq!(client.blob_bytes(image.repository(), blob).await.unwrap(), content);
    assert!(passed_over(&budgets, &mirror));

    // A stream that was handed out can't be taken back: it fails, and the next try goes elsewhere.
    let (client, budgets) = through(mirrored(&origin, &[&mirror]));
    let mut bytes = Vec::new();
    let mut reader = client.blob(image.repository(), blob, 50_000).await.unwrap();
    let error = reader.read_to_end(&mut bytes).await.unwrap_err();
    assert!(matches!(Error::from_io(&error), Some(Error::DigestMismatch { .. })), "{error}");
    assert!(passed_over(&budgets, &mirror));
    let mut bytes = Vec::new();
    client.blob(image.repository(), blob, 50_000).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
}

#[tokio::test]
async fn a_stream_goes_on_at_the_registry_where_the_mirror_left_it() {
    let [origin, mirror] = [(); 2].map(|()| TestRegistry::spawn());
    let (blob, content) = everything(&[&origin, &mirror]);
    let (client, _) = through(mirrored(&origin, &[&mirror]));
    let repository = origin.reference("lab/x:1").repository().clone();
    mirror.fault(Fault::cut_after(20_000));
    let mut reader = client.blob(&repository, blob, 50_000).await.unwrap();
    mirror.fault(Fault::status(500).always());
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes == content);
    let ranges: Vec<_> = origin.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [Some("bytes=20000-".to_owned())]);
}

#[tokio::test]
async fn one_that_may_not_resolve_is_asked_by_digest_only() {
    let [origin, mirror] = [(); 2].map(|()| TestRegistry::spawn());
    everything(&[&origin, &mirror]);
    mirror.put_manifest("lab/x", "1", MANIFEST, r#"{"old":1}"#);
    let mirrors = json!([{ "url": mirror.url(), "resolve": false }]);
    let (client, _) =
        through(settings(json!({ "registries": { origin.address().to_string(): { "mirrors": mirrors } } })));
    let image = origin.reference("lab/x:1");
    let digest = client.resolve(&image).await.unwrap();
    client.tags(image.repository()).await.unwrap();
    assert_eq!(client.manifest(&image).await.unwrap().digest, digest);
    assert_eq!(mirror.requests().len(), 0);
    client.manifest(&image.with_digest(digest)).await.unwrap();
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn a_mirror_has_credentials_of_its_own_and_a_place_below_a_path() {
    let [origin, mirror] = [(); 2].map(|()| TestRegistry::spawn());
    let digest = mirror.put_manifest("hub/lab/x", "1", MANIFEST, "{}");
    origin.put_manifest("lab/x", "1", MANIFEST, "{}");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "of the mirror").unwrap();
    let address = origin.address().to_string();
    let url = format!("{}/hub", mirror.url());
    let with = |credentials: serde_json::Value| {
        let mirrors = json!([{ "url": url, "credentials": credentials }]);
        let registries = settings(json!({
            "credentials": { "cache": { "user": "cache", "password_file": file } },
            "registries": { address.clone(): { "mirrors": mirrors } },
        }));
        let credentials = Credentials::anonymous().with(address.clone(), Credential::password("me", "of the origin"));
        Client::new(ClientConfig { registries, credentials, ..quick() }).unwrap()
    };
    mirror.require_basic("cache", "of the mirror");
    let image = origin.reference("lab/x:1");
    assert_eq!(with(json!("cache")).manifest(&image).await.unwrap().digest, digest);
    assert_eq!(origin.requests().len(), 0);
    assert!(mirror.requests()[0].path.starts_with("/v2/hub/lab/x/manifests/1?ns="));

    // Without credentials it sees none at all, whoever is asked next.
    mirror.require_basic("me", "of the origin");
    mirror.forget_requests();
    origin.require_basic("me", "of the origin");
    with(json!(null)).manifest(&image).await.unwrap();
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(origin.requests().iter().any(|request| request.header("authorization").is_some()));
}

#[tokio::test]
async fn a_ca_is_trusted_for_its_registry_only() {
    let [one, other] = [(); 2].map(|()| TestRegistry::spawn_tls());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, format!("{}{}", one.ca_pem().unwrap(), other.ca_pem().unwrap())).unwrap();
    for server in [&one, &other] {
        server.put_manifest("lab/x", "1", MANIFEST, "{}");
    }
    let (client, _) = through(settings(json!({ "registries": { one.address().to_string(): { "ca_file": file } } })));
    client.manifest(&one.reference("lab/x:1")).await.unwrap();
    let error = client.manifest(&other.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{}", full_text(&error));
    let registries = settings(json!({ "registries": { "quay.io": { "ca_file": "/nonexistent" } } }));
    let error = Client::new(ClientConfig { registries, ..quick() }).unwrap_err();
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
