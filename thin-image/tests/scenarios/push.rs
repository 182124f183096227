//! Into a registry.

use std::time::Duration;

use image::digest::ManifestDigest;
use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, Credential, Credentials, Error, RetryPolicy};
use thin_image::build::{Platforms, Thin};
use thin_image::push::{Pushed, push};

use crate::repository::{APP, Fake, Image, wanted};

fn thin(fake: &Fake) -> Thin {
    Thin::make(&fake.repository(), &wanted(APP), &Platforms::All).unwrap()
}

fn two_platforms() -> Fake {
    let fake = Fake::with_app();
    fake.publish(&Image { platform: "linux/arm64", elsewhere: true, ..Image::app() });
    fake
}

fn client(credentials: Credentials) -> Client {
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let idle_timeout = Duration::from_millis(500);
    Client::new(ClientConfig { credentials, retry, idle_timeout, ..ClientConfig::default() }).unwrap()
}

#[tokio::test]
async fn what_is_pushed_is_the_image_and_nothing_is_pushed_twice() {
    let (fake, registry) = (two_platforms(), TestRegistry::spawn());
    let (thin, client, target) = (thin(&fake), client(Credentials::anonymous()), registry.reference("thin/app:1"));
    let digest = ManifestDigest::from_digest(thin.top().digest);
    assert_eq!(push(&client, &thin, &target).await.unwrap(), (digest, Pushed::Uploaded));
    assert_eq!(registry.manifest("thin/app", "1").unwrap().1, thin.top().bytes);
    for image in &thin.images {
        assert_eq!(registry.manifest("thin/app", &image.manifest.digest.to_string()).unwrap().1, image.manifest.bytes);
        assert_eq!(registry.blob(image.config.digest).unwrap(), image.config.bytes);
        assert_eq!(registry.blob(image.layer.digest).unwrap(), image.layer.bytes);
    }
    registry.forget_requests();
    assert_eq!(push(&client, &thin, &target).await.unwrap(), (digest, Pushed::Present));
    let requests: Vec<_> = registry.requests().iter().map(|request| request.method.clone()).collect();
    assert_eq!(requests, ["HEAD"]);
}

#[tokio::test]
async fn the_name_keeps_what_it_had_until_everything_is_there() {
    let fake = two_platforms();
    let thin = thin(&fake);
    for (method, path) in [
        ("POST", "/blobs/uploads/"),
        ("PUT", "/blobs/uploads/"),
        ("PUT", "/manifests/sha256:"),
        ("PUT", "/manifests/1"),
    ] {
        // The last one is a line that goes dead.
        let faults = [401, 403, 429, 500, 503].map(Fault::status).into_iter().chain([Fault::stall()]);
        for (number, fault) in faults.enumerate() {
            let registry = TestRegistry::spawn();
            registry.put_manifest("thin/app", "1", "application/vnd.oci.image.manifest.v1+json", "{}");
            registry.fault(fault.method(method).on(path).always());
            let result = push(&client(Credentials::anonymous()), &thin, &registry.reference("thin/app:1")).await;
            let error = result.unwrap_err();
            assert!(error.to_string().contains("thin/app"), "{method} {path}: {error}");
            assert_eq!(registry.manifest("thin/app", "1").unwrap().1, "{}", "{method} {path} {number}");
        }
    }
}

#[tokio::test]
async fn the_password_opens_a_registry_and_a_wrong_one_is_said() {
    let (fake, registry) = (Fake::with_app(), TestRegistry::spawn());
    registry.require_basic("me", "secret");
    let (thin, target) = (thin(&fake), registry.reference("thin/app:1"));
    let with = |password: &str| {
        client(Credentials::anonymous().with(target.registry_host(), Credential::password("me", password)))
    };
    let error = push(&with("wrong"), &thin, &target).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(!format!("{error:?}").contains("wrong"));
    assert!(registry.manifest("thin/app", "1").is_none());
    assert_eq!(push(&with("secret"), &thin, &target).await.unwrap().1, Pushed::Uploaded);
}

#[tokio::test]
async fn a_digest_is_no_target() {
    let (fake, registry) = (Fake::with_app(), TestRegistry::spawn());
    let thin = thin(&fake);
    let name = format!("thin/app@{}", thin.top().digest);
    let result = push(&client(Credentials::anonymous()), &thin, &registry.reference(&name)).await;
    assert!(matches!(result, Err(Error::Configuration(_))));
    assert!(registry.requests().is_empty());
}
