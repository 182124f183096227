//! Credentials by name: who gets them, and over what.

use registry::testing::TestRegistry;
use registry::{Client, ClientConfig, Error};
use serde_json::json;

use super::mirrors::settings;
use super::{MANIFEST, quick};

struct World {
    server: TestRegistry,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let server = TestRegistry::spawn();
        for repository in ["lab/x", "other/y"] {
            server.put_manifest(repository, "1", MANIFEST, "{}");
        }
        server.require_basic("robot", "secret");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("password"), "secret\n").unwrap();
        Self { server, directory }
    }

    fn client(&self, registries: serde_json::Value, own: &[&str]) -> Client {
        let file = self.directory.path().join("password");
        let registries = settings(json!({
            "credentials": { "robot": { "user": "robot", "password_file": file, "registries": own } },
            "registries": registries,
        }));
        Client::new(ClientConfig { registries, ..quick() }).unwrap()
    }

    fn address(&self) -> String {
        self.server.address().to_string()
    }
}

#[tokio::test]
async fn those_of_a_registry_are_sent_without_being_asked_for_by_name() {
    let world = World::new();
    let said = json!({ world.address(): { "credentials": "robot", "plain_http": true } });
    world.client(said, &[]).manifest(&world.server.reference("lab/x:1")).await.unwrap();
}

#[tokio::test]
async fn those_of_a_path_are_not_sent_for_another() {
    let world = World::new();
    let address = world.address();
    let said = json!({ address.clone(): { "plain_http": true }, format!("{address}/lab"): { "credentials": "robot" } });
    let client = world.client(said, &[]);
    client.manifest(&world.server.reference("lab/x:1")).await.unwrap();
    let error = client.manifest(&world.server.reference("other/y:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
}

#[tokio::test]
async fn a_name_opens_what_the_operator_said_and_nothing_else() {
    let (world, thief) = (World::new(), TestRegistry::spawn());
    thief.put_manifest("lab/x", "1", MANIFEST, "{}");
    thief.require_basic("robot", "secret");
    let said = json!({ "*": { "plain_http": true } });
    let client = world.client(said, &[&format!("{}/lab", world.address())]);
    let image = world.server.reference("lab/x:1");
    assert!(matches!(client.manifest(&image).await, Err(Error::Unauthorized { .. })), "nobody named them");
    let named = client.with_credentials(Some("robot")).unwrap();
    named.manifest(&image).await.unwrap();
    for other in [world.server.reference("other/y:1"), thief.reference("lab/x:1")] {
        let error = named.manifest(&other).await.unwrap_err();
        assert!(matches!(&error, Error::Configuration(why) if why.contains("not for this registry")), "{error}");
    }
    assert!(thief.requests().iter().all(|request| request.header("authorization").is_none()));
    // What one has bought does not serve the other.
    assert!(client.manifest(&image).await.is_err());
    let error = client.with_credentials(Some("nobody")).unwrap_err().to_string();
    assert!(error.contains("nobody") && error.contains("known: robot"), "{error}");
}

#[tokio::test]
async fn no_password_of_the_configuration_goes_over_plain_http_unless_that_is_allowed() {
    let world = World::new();
    let image = world.server.reference("lab/x:1");
    let client = world.client(json!({ world.address(): { "credentials": "robot" } }), &[]);
    let error = client.manifest(&image).await.unwrap_err();
    assert!(error.to_string().contains("plain_http = true"), "{error}");
    assert!(world.server.requests().iter().all(|request| request.header("authorization").is_none()));
    world.server.forget_requests();
    let client = world.client(json!({ world.address(): { "plain_http": false } }), &[]);
    let error = client.manifest(&image).await.unwrap_err();
    assert!(error.to_string().contains("plain_http = false"), "{error}");
    assert_eq!(world.server.requests().len(), 0);
}

#[tokio::test]
async fn a_secret_that_changes_is_read_again() {
    let world = World::new();
    let said = json!({ world.address(): { "credentials": "robot", "plain_http": true } });
    let client = world.client(said, &[]);
    let image = world.server.reference("lab/x:1");
    client.manifest(&image).await.unwrap();
    world.server.require_basic("robot", "changed");
    std::fs::write(world.directory.path().join("password"), "changed").unwrap();
    client.manifest(&image).await.unwrap();
}
