//! The mirror, asked by a client of registries and by hand.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use image::digest::{Digest, ManifestDigest};
use image::layout::{IndexKey, OwnedPath};
use image::reference::Reference;
use registry::{Client, ClientConfig};
use serde_json::{Value, json};
use thin_image::mirror::{Mirror, router};
use thin_image::published::Repository;

use crate::repository::{Fake, Image, layer};

async fn serve(repositories: Vec<Repository>, resolve: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router(Arc::new(Mirror::new(repositories, resolve)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    fn code(&self) -> String {
        let value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        value["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let method = method.parse().unwrap();
    let answer = client.request(method, format!("http://{address}{path}")).send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Answer { status, headers, body: answer.bytes().await.unwrap().to_vec() }
}

fn index(of: &Image) -> Vec<u8> {
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let platform = |architecture: &str| json!({ "architecture": architecture, "os": "linux" });
    // Spaces, so that nobody who writes it anew gives the same bytes.
    serde_json::to_vec_pretty(&json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        { "mediaType": media_type, "digest": of.digest(), "size": of.manifest_bytes().len(), "platform": platform("amd64") },
        { "mediaType": media_type, "digest": ManifestDigest::of(b"arm"), "size": 3, "platform": platform("arm64") }]}))
    .unwrap()
}

#[tokio::test]
async fn a_client_pulls_the_documents_by_tag_and_digest_as_from_the_registry() {
    let fake = Fake::new();
    let app = Image::app();
    let image = Image { index: Some(index(&app)), ..app };
    fake.publish(&image);
    let address = serve(vec![fake.repository()], true).await;
    let client = Client::new(ClientConfig::default()).unwrap();
    let reference = |rest: &str| Reference::parse(&format!("http://{address}/quay.io/tools/app{rest}")).unwrap();
    let top = client.manifest(&reference(":1")).await.unwrap();
    assert_eq!(top.bytes, index(&image));
    assert_eq!(top.media_type, "application/vnd.oci.image.index.v1+json");
    assert_eq!(client.resolve(&reference(":1")).await.unwrap(), top.digest);
    let manifest = client.manifest(&reference(&format!("@{}", image.digest()))).await.unwrap();
    assert_eq!(manifest.bytes, image.manifest_bytes());
    assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
    let repository = reference(":1").repository().clone();
    assert_eq!(client.blob_bytes(&repository, image.id().digest()).await.unwrap(), image.config_bytes());
    assert!(!client.has_blob(&repository, layer("app").digest()).await.unwrap());
    assert_eq!(client.tags(&repository).await.unwrap(), ["1"]);
}

#[tokio::test]
async fn answers_are_those_of_the_specification() {
    let fake = Fake::with_app();
    fake.publish(&Image { name: "registry.hub.docker.com/library/debian:12", ..Image::app() });
    let address = serve(vec![fake.repository()], true).await;
    let digest = Image::app().digest();
    let base = ask(address, "GET", "/v2/").await;
    assert_eq!((base.status, base.header("docker-distribution-api-version")), (200, "registry/2.0"));
    for path in [
        "/v2/quay.io/tools/app/manifests/1".to_owned(),
        "/v2/tools/app/manifests/1?ns=quay.io".to_owned(),
        "/v2/library/debian/manifests/12".to_owned(),
        "/v2/library/debian/manifests/12?ns=docker.io".to_owned(),
        format!("/v2/tools/app/manifests/{digest}?ns=quay.io"),
    ] {
        let get = ask(address, "GET", &path).await;
        assert_eq!((get.status, get.body.as_slice()), (200, &*Image::app().manifest_bytes()), "{path}");
        let head = ask(address, "HEAD", &path).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        for name in ["content-type", "content-length", "docker-content-digest"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
        assert_eq!(get.header("docker-content-digest"), digest.to_string());
        assert_eq!(get.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(head.header("content-length"), Image::app().manifest_bytes().len().to_string());
    }
    let other = Digest::of(b"other");
    for (method, path, status, code) in [
        ("GET", "/v2/quay.io/tools/app/manifests/2".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/quay.io/tools/app/manifests/{other}"), 404, "MANIFEST_UNKNOWN"),
        ("GET", format!("/v2/quay.io/tools/app/blobs/{}", layer("app")), 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/quay.io/tools/none/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("GET", "/v2/quay.io/../x/manifests/1".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/quay.io/.layers/manifests/1".to_owned(), 400, "NAME_INVALID"),
        ("GET", "/v2/quay.io/tools/app/blobs/sha256:0".to_owned(), 400, "DIGEST_INVALID"),
        ("PUT", "/v2/quay.io/tools/app/manifests/1".to_owned(), 405, "UNSUPPORTED"),
        ("POST", "/v2/quay.io/tools/app/blobs/uploads/".to_owned(), 405, "UNSUPPORTED"),
        ("DELETE", "/v2/quay.io/tools/app/manifests/1".to_owned(), 405, "UNSUPPORTED"),
    ] {
        let answer = ask(address, method, &path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
    }
}

#[tokio::test]
async fn tags_come_in_pages_sorted_and_without_digests() {
    let fake = Fake::with_app();
    for name in ["quay.io/tools/app:3", "quay.io/tools/app:2", "quay.io/tools/apple:9"] {
        fake.publish(&Image { name, ..Image::app() });
    }
    let by_digest: &'static str = format!("quay.io/tools/app:{}", Image::app().digest()).leak();
    fake.publish(&Image { name: by_digest, ..Image::app() });
    let address = serve(vec![fake.repository()], true).await;
    let list = async |query: &str| {
        let answer = ask(address, "GET", &format!("/v2/quay.io/tools/app/tags/list{query}")).await;
        let value: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(value["name"], "quay.io/tools/app");
        (value["tags"].clone(), answer.header("link").to_owned())
    };
    assert_eq!(list("").await, (json!(["1", "2", "3"]), String::new()));
    let (page, link) = list("?n=2").await;
    assert_eq!(
        (page, link.as_str()),
        (json!(["1", "2"]), "</v2/quay.io/tools/app/tags/list?n=2&last=2>; rel=\"next\"")
    );
    assert_eq!(list("?n=2&last=2").await, (json!(["3"]), String::new()));
}

#[tokio::test]
async fn an_image_of_other_platforms_only_is_served_by_its_index() {
    let fake = Fake::new();
    let arm = Image { platform: "linux/arm64/v8", elsewhere: true, layers: vec!["base arm"], ..Image::app() };
    let image = Image { index: Some(index(&arm)), ..arm };
    fake.publish(&image);
    let address = serve(vec![fake.repository()], true).await;
    let by_tag = ask(address, "GET", "/v2/quay.io/tools/app/manifests/1").await;
    assert_eq!((by_tag.status, by_tag.body), (200, index(&image)));
    let by_digest = ask(address, "GET", &format!("/v2/quay.io/tools/app/manifests/{}", image.digest())).await;
    assert_eq!((by_digest.status, by_digest.body), (200, image.manifest_bytes()));
    assert_eq!(ask(address, "GET", &format!("/v2/quay.io/tools/app/blobs/{}", image.id())).await.status, 200);
}

#[tokio::test]
async fn tags_can_be_left_to_the_registry() {
    let fake = Fake::with_app();
    let address = serve(vec![fake.repository()], false).await;
    let by_tag = ask(address, "GET", "/v2/quay.io/tools/app/manifests/1").await;
    assert_eq!((by_tag.status, by_tag.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    let path = format!("/v2/quay.io/tools/app/manifests/{}", Image::app().digest());
    assert_eq!(ask(address, "GET", &path).await.status, 200);
}

#[tokio::test]
async fn the_first_repository_that_has_it_serves_and_one_that_is_down_is_said_only_if_none_has() {
    let fake = Fake::with_app();
    let down = Repository::new("down.example.org", &fake.cvmfs().join("down.example.org")).unwrap();
    let address = serve(vec![down, fake.repository()], true).await;
    assert_eq!(ask(address, "GET", "/v2/quay.io/tools/app/manifests/1").await.status, 200);
    let other = ask(address, "GET", "/v2/quay.io/tools/app/manifests/2").await;
    assert_eq!(other.status, 503);
    assert!(String::from_utf8(other.body).unwrap().contains("down.example.org"));
}

#[tokio::test]
async fn nothing_is_served_under_a_digest_that_it_has_not_nor_through_a_link() {
    let fake = Fake::with_app();
    let (manifest, config) = (Image::app().digest(), Image::app().id());
    fake.put(&OwnedPath::Index(IndexKey::Manifest(manifest)), b"{}");
    let at = fake.path(&OwnedPath::Index(IndexKey::Config(config)));
    let secret = fake.cvmfs().join("secret");
    fs::rename(&at, &secret).unwrap();
    std::os::unix::fs::symlink(&secret, &at).unwrap();
    let address = serve(vec![fake.repository()], true).await;
    for path in [format!("manifests/{manifest}"), format!("blobs/{config}")] {
        assert_eq!(ask(address, "GET", &format!("/v2/quay.io/tools/app/{path}")).await.status, 404, "{path}");
    }
    // By its tag it comes from the image's own records.
    assert_eq!(ask(address, "GET", "/v2/quay.io/tools/app/manifests/1").await.status, 200);
}
