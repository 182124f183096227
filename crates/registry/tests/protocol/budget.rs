//! One budget for a registry, whoever asks it.

use std::sync::Arc;
use std::time::Duration;

use registry::testing::{Fault, TestRegistry};
use registry::{Budgets, Client, ClientConfig, Error};
use serde_json::json;

use super::mirrors::settings;
use super::{MANIFEST, client, quick};

fn limited(server: &TestRegistry, said: serde_json::Value, budgets: &Budgets) -> Client {
    let registries = settings(json!({ "registries": { server.address().to_string(): said } }));
    Client::new(ClientConfig { registries, budgets: budgets.clone(), ..quick() }).unwrap()
}

fn with_image() -> TestRegistry {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    server
}

#[tokio::test]
async fn two_clients_keep_one_budget() {
    let server = with_image();
    let budgets = Budgets::default();
    let said = json!({ "requests_per_second": 20, "burst": 5, "in_flight": 3 });
    let clients = [limited(&server, said.clone(), &budgets), limited(&server, said, &budgets)];
    let image = server.reference("lab/x:1");
    let tasks: Vec<_> = (0..20)
        .map(|turn| {
            let (client, image) = (clients[turn % 2].clone(), image.clone());
            tokio::spawn(async move { client.resolve(&image).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let at: Vec<_> = server.requests().iter().map(|request| request.at).collect();
    for (first, from) in at.iter().enumerate() {
        for (last, to) in at.iter().enumerate().skip(first) {
            // Those that were let go before the span may arrive within it.
            let share = 5.0 + 20.0 * to.duration_since(*from).as_secs_f64() + 3.0;
            assert!((last - first + 1) as f64 <= share + 1e-6, "{first}..{last}");
        }
    }
    let [seen] = &budgets.snapshot()[..] else { panic!("one registry") };
    assert_eq!((seen.registry.as_str(), seen.requests, seen.in_flight, seen.waiting), (server.url(), 20, 0, 0));
}

#[tokio::test]
async fn a_long_pause_closes_the_registry_for_everybody() {
    let server = with_image();
    server.fault(Fault::retry_after(429, "3600"));
    let budgets = Budgets::default();
    let client = limited(&server, json!({}), &budgets);
    let image = server.reference("lab/x:1");
    assert!(matches!(client.manifest(&image).await, Err(Error::RateLimited { .. })));
    let error = client.resolve(&image).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() > 3500), "{error}");
    assert_eq!(server.requests().len(), 1, "it is not asked again");
    let seen = &budgets.snapshot()[0];
    assert!(seen.paused.is_some_and(|seconds| seconds > 3500), "{seen:?}");
    assert_eq!(seen.throttled, 1);
    // Another registry is none of that.
    let other = with_image();
    client.manifest(&other.reference("lab/x:1")).await.unwrap();
}

#[tokio::test]
async fn a_date_is_as_good_as_seconds() {
    let server = with_image();
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3600));
    server.fault(Fault::retry_after(429, &date));
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(wait), .. } if wait.as_secs() > 3500), "{error}");
}

#[tokio::test]
async fn what_is_left_is_kept_to_before_the_registry_refuses() {
    let server = with_image();
    server.fault(Fault::header("ratelimit-limit", "100;w=21600").always());
    server.fault(Fault::header("ratelimit-remaining", "5;w=21600").always());
    let budgets = Budgets::default();
    let client = limited(&server, json!({}), &budgets);
    let image = server.reference("lab/x:1");
    client.manifest(&image).await.unwrap();
    let left = budgets.snapshot()[0].left.unwrap();
    assert_eq!((left.requests, left.limit, left.seconds), (5, 100, 21600));
    client.manifest(&image).await.unwrap();
    let error = client.manifest(&image).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(_), .. }), "{error}");
    // Questions that are not counted go on.
    client.resolve(&image).await.unwrap();
    assert_eq!((server.count("GET", "/manifests/"), server.count("HEAD", "/manifests/")), (2, 1));
}

#[tokio::test]
async fn an_image_that_did_not_move_costs_one_request_without_head_too() {
    let server = with_image();
    server.fault(Fault::without_header("docker-content-digest").method("HEAD").always());
    let client = client();
    let image = server.reference("lab/x:1");
    let first = client.resolve(&image).await.unwrap();
    server.forget_requests();
    assert_eq!(client.resolve(&image).await.unwrap(), first);
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].header("if-none-match").is_some());
    let moved = server.put_manifest("lab/x", "1", MANIFEST, r#"{"a":1}"#);
    assert_eq!(client.resolve(&image).await.unwrap(), moved);
    assert_eq!(client.resolve(&image).await.unwrap(), moved);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn lists_without_links_are_read_to_the_end() {
    let server = TestRegistry::spawn();
    for number in 0..2500 {
        server.put_manifest("lab/x", &format!("t{number:04}"), MANIFEST, "{}");
    }
    server.page_tags(1000);
    server.name_no_pages();
    let repository = server.reference("lab/x:1").repository().clone();
    let tags = client().tags(&repository).await.unwrap();
    assert_eq!((tags.len(), tags[0].as_str(), tags[2499].as_str()), (2500, "t0000", "t2499"));
    assert_eq!(server.requests().len(), 3);
    // A registry that takes no notice of `last` gives the same page again, and that is the end.
    server.forget_requests();
    server.fault(Fault::status_with_body(200, &json!({ "tags": &tags[..1000] }).to_string()).always());
    assert_eq!(client().tags(&repository).await.unwrap().len(), 1000);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn lists_that_go_in_circles_end() {
    let server = with_image();
    let page = |last: &str| Fault::header("link", &format!("</v2/lab/x/tags/list?last={last}>; rel=next"));
    for last in ["a", "b", "a"] {
        server.fault(page(last));
    }
    let error = client().tags(server.reference("lab/x:1").repository()).await.unwrap_err();
    assert!(error.to_string().contains("seen before"), "{error}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn settings_are_shared_by_reference() {
    let registries = settings(json!({}));
    let config = ClientConfig { registries: registries.clone(), ..quick() };
    Client::new(config).unwrap();
    assert!(Arc::strong_count(&registries) == 1, "nothing of a dropped client stays");
}
