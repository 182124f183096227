//! No secret in the log, not even at the level where everything is logged. A program of its own: the log is the process's.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use registry::testing::{Fault, TestRegistry};
use registry::{Client, ClientConfig, RetryPolicy, Settings};
use serde_json::json;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_secret_is_logged_at_any_level() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).init();

    let (server, realm, mirror) = (TestRegistry::spawn(), TestRegistry::spawn(), TestRegistry::spawn());
    server.put_manifest("lab/x", "1", "application/vnd.oci.image.manifest.v1+json", "{}");
    server.require_token(&realm);
    realm.refuse_anonymous();
    realm.add_account("robot", "hunter2");
    mirror.require_basic("cache", "hunter3");
    let directory = tempfile::tempdir().unwrap();
    for (name, secret) in [("one", "hunter2"), ("two", "hunter3 wrong")] {
        std::fs::write(directory.path().join(name), secret).unwrap();
    }
    let settings: Settings = serde_json::from_value(json!({
        "credentials": {
            "robot": { "user": "robot", "password_file": directory.path().join("one") },
            "cache": { "user": "cache", "password_file": directory.path().join("two") },
        },
        "registries": { server.address().to_string(): {
            "credentials": "robot",
            "plain_http": true,
            "mirrors": [{ "url": mirror.url(), "credentials": "cache" }],
        } },
    }))
    .unwrap();
    let retry = RetryPolicy { attempts: 2, first_delay: std::time::Duration::from_millis(1), ..RetryPolicy::default() };
    let config = ClientConfig { registries: Arc::new(settings.check().unwrap()), retry, ..ClientConfig::default() };
    let client = Client::new(config).unwrap();
    let image = server.reference("lab/x:1");
    client.manifest(&image).await.unwrap();
    let token = realm.requests().len();
    assert!(token > 0);
    let sold: Vec<String> = server
        .requests()
        .iter()
        .filter_map(|request| Some(request.header("authorization")?.strip_prefix("Bearer ")?.to_owned()))
        .collect();
    assert!(!sold.is_empty());
    for fault in [Fault::status(403), Fault::status(500).times(2), Fault::retry_after(429, "0"), Fault::cut_after(0)] {
        server.fault(fault);
        let _ = client.manifest(&image).await;
    }
    realm.fault(Fault::status_with_body(403, "hunter2 is wrong").on("/token").always());
    server.revoke_tokens();
    realm.revoke_tokens();
    let error = client.manifest(&image).await.unwrap_err();

    let mut text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("TRACE") && text.contains("a mirror failed"), "{text}");
    text += &format!("{error} {error:?} {client:?}");
    // robot:hunter2 and cache:hunter3 wrong in base64, without the ends that depend on their length
    let secrets = ["hunter2", "hunter3", "cm9ib3Q6aHVudGVyM", "Y2FjaGU6aHVudGVyMyB3"].map(str::to_owned);
    for secret in secrets.iter().chain(&sold) {
        assert!(!text.contains(secret.as_str()), "{secret} in {text}");
    }
}
