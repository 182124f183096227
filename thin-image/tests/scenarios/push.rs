//! Into a registry.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use image::digest::ManifestDigest;
use image::reference::Reference;
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

#[tokio::test]
async fn blobs_come_first_then_manifests_and_the_name_last() {
    let (fake, registry) = (two_platforms(), TestRegistry::spawn());
    push(&client(Credentials::anonymous()), &thin(&fake), &registry.reference("thin/app:1")).await.unwrap();
    let requests = registry.requests();
    let puts: Vec<&str> = requests.iter().filter(|r| r.method == "PUT").map(|r| r.path.as_str()).collect();
    let blobs = puts.iter().take_while(|path| path.contains("/blobs/uploads/")).count();
    let manifests = puts[blobs..].iter().take_while(|path| path.contains("/manifests/sha256:")).count();
    // Two platforms: a layer, a config and a manifest each.
    assert_eq!((blobs, manifests, &puts[blobs + manifests..]), (4, 2, &["/v2/thin/app/manifests/1"][..]));
}

/// A line to a registry that breaks when so many bytes have been sent over it, in all connections together.
fn breaks_after(mut bytes: usize, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let (mut back, mut front) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut front);
                let _ = front.shutdown(Shutdown::Both);
            });
            let mut part = [0; 16384];
            while let Ok(count @ 1..) = client.read(&mut part) {
                let allowed = count.min(bytes);
                bytes -= allowed;
                if server.write_all(&part[..allowed]).is_err() || allowed < count {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_line_breaks_the_name_has_the_old_image_or_the_whole_new_one() {
    let fake = two_platforms();
    let thin = thin(&fake);
    let mut outcomes = [0, 0];
    for cut in (0..).step_by(331) {
        let registry = TestRegistry::spawn();
        registry.put_manifest("thin/app", "1", "application/vnd.oci.image.manifest.v1+json", "{}");
        let line = breaks_after(cut, registry.address());
        let target = Reference::parse(&format!("http://{line}/thin/app:1")).unwrap();
        let result = push(&client(Credentials::anonymous()), &thin, &target).await;
        let found = registry.manifest("thin/app", "1").unwrap().1;
        match &result {
            Ok(_) => assert_eq!(found, thin.top().bytes),
            Err(error) => assert!(error.to_string().contains("thin/app"), "{error}"),
        }
        if found == "{}" {
            outcomes[0] += 1;
        } else {
            // The registry refuses a manifest whose blobs it lacks.
            assert_eq!(found, thin.top().bytes, "after {cut} bytes");
            outcomes[1] += 1;
        }
        if result.is_ok() {
            break;
        }
    }
    assert!(outcomes[0] > 10 && outcomes[1] > 0, "{outcomes:?}");
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_gets_it_within_reason() {
    let fake = Fake::with_app();
    let thin = thin(&fake);
    let retry = RetryPolicy { attempts: 2, first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let client = Client::new(ClientConfig { retry, ..ClientConfig::default() }).unwrap();
    for (method, path) in [("POST", "/blobs/uploads/"), ("PUT", "/blobs/uploads/"), ("PUT", "/manifests/1")] {
        let registry = TestRegistry::spawn();
        registry.fault(Fault::retry_after(429, "1").method(method).on(path));
        let pushed = push(&client, &thin, &registry.reference("thin/app:1")).await;
        assert_eq!(pushed.unwrap().1, Pushed::Uploaded, "{method} {path}");
        assert_eq!(registry.manifest("thin/app", "1").unwrap().1, thin.top().bytes);

        let registry = TestRegistry::spawn();
        registry.fault(Fault::retry_after(429, "86400").method(method).on(path).always());
        let error = push(&client, &thin, &registry.reference("thin/app:1")).await.unwrap_err();
        assert!(error.to_string().contains("asks to come back in 86400 s"), "{error}");
        // Nobody waits for a day, and a busy registry is not asked again: once for each of the blobs that are sent together.
        assert!(registry.count(method, path) <= 2);
        assert!(registry.manifest("thin/app", "1").is_none());
    }
}

#[tokio::test]
async fn a_slow_registry_is_waited_for() {
    let (fake, registry) = (Fake::with_app(), TestRegistry::spawn());
    let thin = thin(&fake);
    // A header of the answers comes at once, the rest in parts.
    registry.fault(Fault::slow(1, Duration::from_millis(5)).any_method().on("/v2/").always());
    let pushed = push(&client(Credentials::anonymous()), &thin, &registry.reference("thin/app:1")).await;
    assert_eq!(pushed.unwrap().1, Pushed::Uploaded);
    assert_eq!(registry.manifest("thin/app", "1").unwrap().1, thin.top().bytes);
}
