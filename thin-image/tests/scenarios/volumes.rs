//! The volume driver, asked as Docker asks it, with a client that notes what it is asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use thin_image::published::Repository;
use thin_image::volumes::{Volumes, router};
use tower::ServiceExt as _;

const NAME: &str = "images.example.org";

struct World {
    directory: tempfile::TempDir,
    router: Router,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("mountpoint")).unwrap();
        let client = directory.path().join("client");
        let log = directory.path().join("log");
        fs::write(&client, format!("#!/bin/sh\necho \"$@\" >>{}\n", log.display())).unwrap();
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(log, "").unwrap();
        let mut world = Self { directory, router: Router::new() };
        world.restart();
        world
    }

    fn restart(&mut self) {
        let path = self.directory.path();
        let repository = Repository::new(NAME, &path.join("mountpoint")).unwrap();
        let volumes = Volumes::open(vec![repository], &path.join("client"), &path.join("state")).unwrap();
        self.router = router(Arc::new(volumes));
    }

    fn own(&self, name: &str) -> PathBuf {
        self.directory.path().join("state/volumes").join(name)
    }

    fn mounted_by_host(&self) {
        fs::create_dir(self.directory.path().join("mountpoint/.layers")).unwrap();
    }

    fn client_was_asked(&self) -> Vec<String> {
        fs::read_to_string(self.directory.path().join("log")).unwrap().lines().map(str::to_owned).collect()
    }

    async fn ask(&self, method: &str, call: &Value) -> Result<Value, String> {
        let request = Request::post(format!("/VolumeDriver.{method}")).body(Body::from(call.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        match value["Err"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(value),
        }
    }
}

#[tokio::test]
async fn what_the_host_has_mounted_is_used_as_it_is() {
    let mut world = World::new();
    world.mounted_by_host();
    let call = json!({ "Name": NAME, "ID": "a" });
    world.ask("Create", &call).await.unwrap();
    world.ask("Create", &call).await.expect("a second time");
    let mountpoint = json!({ "Mountpoint": world.directory.path().join("mountpoint") });
    assert_eq!(world.ask("Path", &call).await.unwrap(), json!({ "Mountpoint": "" }), "nobody uses it");
    for _ in 0..2 {
        assert_eq!(world.ask("Mount", &call).await.unwrap(), mountpoint);
    }
    world.restart();
    assert_eq!(world.ask("Path", &call).await.unwrap(), mountpoint);
    let list = world.ask("List", &json!({})).await.unwrap();
    assert_eq!(list["Volumes"][0]["Status"], json!({ "uses": 1, "mounted": "by the host" }), "the same ID is one use");
    world.ask("Unmount", &call).await.unwrap();
    world.ask("Unmount", &call).await.expect("a second time");
    world.ask("Remove", &call).await.unwrap();
    world.ask("Remove", &call).await.expect("a second time");
    assert!(world.ask("Get", &call).await.unwrap_err().contains("there is no volume"));
    assert_eq!(world.client_was_asked(), [""; 0]);
    assert_eq!(world.ask("Capabilities", &json!({})).await.unwrap(), json!({ "Capabilities": { "Scope": "local" } }));
}

#[tokio::test]
async fn anything_else_is_mounted_by_the_client_with_nothing_but_a_tag_or_a_hash() {
    let world = World::new();
    let hash = "0".repeat(40);
    let by_hash = format!("{NAME}#{hash}");
    let by_tag = format!("{NAME}@v1");
    for (name, option) in [
        (NAME, String::new()),
        (&by_tag, " -o CVMFS_REPOSITORY_TAG=v1".to_owned()),
        (&by_hash, format!(" -o CVMFS_ROOT_HASH={hash}")),
    ] {
        let call = json!({ "Name": name, "ID": "a" });
        world.ask("Create", &call).await.unwrap();
        let place = world.own(name);
        assert_eq!(world.ask("Mount", &call).await.unwrap(), json!({ "Mountpoint": place }));
        let last = world.client_was_asked().pop().unwrap();
        assert_eq!(last, format!("mount {NAME} {}{option}", place.display()));
        world.ask("Unmount", &call).await.unwrap();
        assert!(!place.exists(), "{name}");
    }
}

#[tokio::test]
async fn a_mount_that_fails_leaves_no_use_behind() {
    let world = World::new();
    let call = json!({ "Name": NAME, "ID": "a" });
    world.ask("Create", &call).await.unwrap();
    fs::write(world.directory.path().join("client"), "#!/bin/sh\necho no server >&2\nexit 4\n").unwrap();
    let error = world.ask("Mount", &call).await.unwrap_err();
    assert!(error.contains("not mounted on this host") && error.contains("no server"), "{error}");
    assert_eq!(world.ask("List", &json!({})).await.unwrap()["Volumes"][0]["Status"], Value::Null);
    assert!(!world.own(NAME).exists());
    for name in ["other.example.org", "../x"] {
        assert!(world.ask("Create", &json!({ "Name": name })).await.is_err(), "{name}");
    }
    assert!(world.ask("Mount", &json!({ "Name": "unknown", "ID": "a" })).await.unwrap_err().contains("no volume"));
}

#[tokio::test]
async fn uses_of_an_earlier_start_of_the_machine_count_for_nothing() {
    let mut world = World::new();
    let call = json!({ "Name": NAME, "ID": "a" });
    world.ask("Create", &call).await.unwrap();
    world.ask("Mount", &call).await.unwrap();
    let file = world.directory.path().join("state/volumes.json");
    let mut kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    kept["boot"] = json!("another");
    fs::write(&file, kept.to_string()).unwrap();
    world.restart();
    assert_eq!(world.ask("List", &json!({})).await.unwrap()["Volumes"][0]["Mountpoint"], json!(""));
    assert!(!world.own(NAME).exists(), "what nobody uses is taken away");
}
