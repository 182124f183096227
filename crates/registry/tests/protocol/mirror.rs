//! One server in the place of all registries.

use image::reference::Reference;
use registry::testing::TestRegistry;
use registry::{Client, ClientConfig, Credential, Credentials, Error};

use crate::{MANIFEST, quick};

fn through(mirror: &TestRegistry, credentials: Credentials) -> Client {
    Client::new(ClientConfig { mirror: Some(mirror.url().parse().unwrap()), credentials, ..quick() }).unwrap()
}

#[tokio::test]
async fn the_mirror_hears_which_registry_is_meant() {
    let mirror = TestRegistry::spawn();
    let digest = mirror.put_manifest("tools/app", "1", MANIFEST, "{}");
    mirror.put_manifest("library/debian", "12", MANIFEST, "{}");
    let config = mirror.put_blob("config");
    let client = through(&mirror, Credentials::anonymous());
    // Nobody answers at these names.
    let app = Reference::parse("https://registry.invalid:5000/tools/app:1").unwrap();
    assert_eq!(client.resolve(&app).await.unwrap(), digest);
    assert_eq!(client.manifest(&app.with_digest(digest)).await.unwrap().bytes, "{}");
    assert_eq!(client.blob_bytes(app.repository(), config).await.unwrap(), "config");
    assert_eq!(client.tags(app.repository()).await.unwrap(), ["1"]);
    let (all, named) = (mirror.requests().len(), mirror.count("GET", "ns=registry.invalid%3A5000"));
    assert_eq!((all, named + mirror.count("HEAD", "ns=registry.invalid%3A5000")), (4, 4));
    client.manifest(&Reference::parse("docker.io/library/debian:12").unwrap()).await.unwrap();
    assert_eq!(mirror.count("GET", "/library/debian/manifests/12?ns=docker.io"), 1);
}

#[tokio::test]
async fn the_mirror_never_gets_a_password_of_a_registry_and_errors_name_both() {
    let mirror = TestRegistry::spawn();
    mirror.require_basic("me", "secret");
    let app = Reference::parse("https://registry.invalid/tools/app:1").unwrap();
    let credentials = Credentials::anonymous().with("registry.invalid", Credential::password("me", "secret"));
    let error = through(&mirror, credentials).manifest(&app).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(mirror.requests().iter().all(|request| request.header("authorization").is_none()));
    let text = error.to_string();
    assert!(text.contains("registry.invalid/tools/app") && text.contains(mirror.url()), "{text}");
}

#[test]
fn what_is_no_web_address_is_no_mirror() {
    let client = Client::new(ClientConfig { mirror: Some("file:///etc".parse().unwrap()), ..quick() }).unwrap();
    let app = Reference::parse("https://registry.invalid/tools/app:1").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(matches!(runtime.block_on(client.manifest(&app)), Err(Error::Configuration(_))));
}
