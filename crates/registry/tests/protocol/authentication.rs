//! Who gets which secret, and who never does.

use registry::testing::{Fault, Recorded, TestRegistry};
use registry::{Client, ClientConfig, Credential, Credentials, Error};

use super::{MANIFEST, client, client_of, full_text, quick};

/// Requests that carried an `Authorization`.
fn authorized(server: &TestRegistry) -> Vec<Recorded> {
    server.requests().into_iter().filter(|request| request.header("authorization").is_some()).collect()
}

fn with_image() -> TestRegistry {
    let server = TestRegistry::spawn();
    server.put_manifest("lab/x", "1", MANIFEST, "{}");
    server
}

#[tokio::test]
async fn answers_basic_once_challenged_and_then_at_once() {
    let server = with_image();
    server.require_basic("lab", "secret");
    let client = client_of(&server, "lab", "secret");
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    let sent: Vec<_> = server.requests().iter().map(|request| request.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);
}

#[tokio::test]
async fn says_when_credentials_are_missing_or_wrong() {
    let server = with_image();
    server.require_basic("lab", "secret");
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }));
    assert!(error.to_string().contains(&format!("none are configured for {}", server.address())), "{error}");
    let error = client_of(&server, "lab", "wrong").manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(error.to_string().contains("for the configured credentials"), "{error}");
    assert_eq!(authorized(&server).len(), 1, "a refused password is not sent again");
}

#[tokio::test]
async fn buys_one_anonymous_token_for_a_repository() {
    let server = with_image();
    server.require_token(&server);
    let blob = server.put_blob("blob");
    let client = client();
    let reference = server.reference("lab/x:1");
    client.resolve(&reference).await.unwrap();
    client.manifest(&reference).await.unwrap();
    client.blob_bytes(reference.repository(), blob).await.unwrap();
    assert_eq!(server.count("GET", "/token?"), 1);
    assert_eq!(server.requests().len(), 1 + 1 + 3, "challenge, token, three answers");
    let bought = &server.requests()[1];
    assert_eq!(bought.path, "/token?service=test&scope=repository%3Alab%2Fx%3Apull");
    assert!(bought.header("authorization").is_none());

    server.put_manifest("lab/y", "1", MANIFEST, "{}");
    client.manifest(&server.reference("lab/y:1")).await.unwrap();
    assert_eq!(server.requests().len(), 5 + 2, "the next repository needs no challenge");
}

#[tokio::test]
async fn shares_one_token_between_concurrent_requests() {
    let server = with_image();
    server.require_token(&server);
    let client = client();
    let reference = server.reference("lab/x:1");
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (client, reference) = (client.clone(), reference.clone());
            tokio::spawn(async move { client.manifest(&reference).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn shows_the_password_to_the_declared_realm_only() {
    let (server, realm) = (with_image(), TestRegistry::spawn());
    server.require_token(&realm);
    realm.refuse_anonymous();
    realm.add_account("lab", "secret");
    client_of(&server, "lab", "secret").manifest(&server.reference("lab/x:1")).await.unwrap();
    assert_eq!(authorized(&realm).len(), 1);
    for request in authorized(&server) {
        assert!(request.header("authorization").unwrap().starts_with("Bearer token-"), "{request:?}");
    }
}

#[tokio::test]
async fn never_shows_a_password_of_another_registry() {
    // the credentials are for a registry that isn't the one that asks
    let (server, other) = (with_image(), TestRegistry::spawn());
    server.require_token(&other);
    other.refuse_anonymous();
    other.add_account("lab", "secret");
    let error = client_of(&other, "lab", "secret").manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(error.to_string().contains("refuses anonymous access"), "{error}");
    assert!(authorized(&server).is_empty() && authorized(&other).is_empty());
}

#[tokio::test]
async fn refused_credentials_are_not_followed_by_an_anonymous_try() {
    let server = with_image();
    server.require_token(&server);
    let error = client_of(&server, "lab", "wrong").manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(error.to_string().contains("refuses the configured credentials"), "{error}");
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn sends_an_identity_token_by_post() {
    let server = with_image();
    server.require_token(&server);
    server.refuse_anonymous();
    server.add_identity_token("refresh&me");
    let credential = Credential::IdentityToken(registry::credentials::Secret::new("refresh&me"));
    let credentials = Credentials::anonymous().with(server.address().to_string(), credential);
    let client = Client::new(ClientConfig { credentials, ..quick() }).unwrap();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    assert_eq!((server.count("POST", "/token"), server.count("GET", "/token")), (1, 0));
    assert!(server.requests().iter().all(|request| !request.path.contains("refresh")));
}

#[tokio::test]
async fn buys_a_new_token_when_the_old_one_is_refused_or_too_old() {
    let server = with_image();
    server.require_token(&server);
    let client = client();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    server.revoke_tokens();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    assert_eq!(server.count("GET", "/token"), 2);

    server.revoke_tokens();
    server.token_life(3);
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    assert_eq!(server.count("GET", "/token"), 3);
    server.forget_requests();
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    client.manifest(&server.reference("lab/x:1")).await.unwrap();
    let paths: Vec<_> = server.requests().iter().map(|request| request.path[..6].to_owned()).collect();
    assert_eq!(paths, ["/token", "/v2/la"], "renewed at 80 % of its life, before it is refused");
}

#[tokio::test]
async fn a_token_that_is_never_accepted_ends_the_matter() {
    let (server, realm) = (with_image(), TestRegistry::spawn());
    server.challenge(&format!(r#"Bearer realm="{}/token",service="test""#, realm.url()));
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_eq!((server.requests().len(), realm.requests().len()), (2, 1));
}

#[tokio::test]
async fn drops_authorization_on_a_redirect_to_another_host() {
    for basic in [true, false] {
        let (server, storage) = (with_image(), TestRegistry::spawn());
        let blob = server.put_blob("blob");
        storage.put_blob("blob");
        if basic {
            server.require_basic("lab", "secret");
        } else {
            server.add_account("lab", "secret");
            server.require_token(&server);
        }
        server.fault(Fault::redirect_to(storage.url()).on("/blobs/").always());
        let client = client_of(&server, "lab", "secret");
        let repository = server.reference("lab/x:1").repository().clone();
        assert_eq!(client.blob_bytes(&repository, blob).await.unwrap(), "blob");
        assert!(authorized(&storage).is_empty());
        assert_eq!(storage.requests().len(), 1);

        // and it doesn't come back on the way back
        storage.fault(Fault::redirect_to(server.url()).on("/blobs/").always());
        server.forget_requests();
        assert!(client.blob_bytes(&repository, blob).await.is_err());
        assert_eq!(authorized(&server).len(), 1, "only the first request");
    }
}

#[tokio::test]
async fn a_host_that_we_are_redirected_to_cannot_ask_for_credentials() {
    let (server, storage, thief) = (with_image(), TestRegistry::spawn(), TestRegistry::spawn());
    server.require_basic("lab", "secret");
    let blob = server.put_blob("blob");
    server.fault(Fault::redirect_to(storage.url()).on("/blobs/").always());
    storage.challenge(&format!(r#"Bearer realm="{}/token",service="test""#, thief.url()));
    let client = client_of(&server, "lab", "secret");
    let error = client.blob_bytes(server.reference("lab/x:1").repository(), blob).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains(storage.url()), "{error}");
    assert!(thief.requests().is_empty() && authorized(&storage).is_empty());
}

#[tokio::test]
async fn drops_the_password_when_the_token_server_redirects() {
    let (server, realm, thief) = (with_image(), TestRegistry::spawn(), TestRegistry::spawn());
    server.require_token(&realm);
    realm.fault(Fault::redirect_to(thief.url()).on("/token").always());
    let _ = client_of(&server, "lab", "secret").manifest(&server.reference("lab/x:1")).await;
    assert_eq!(authorized(&realm).len(), 1);
    assert_eq!(thief.requests().len(), 1);
    assert!(authorized(&thief).is_empty());
}

#[tokio::test]
async fn refuses_realms_that_are_no_web_address() {
    for (realm, said) in [
        ("file:///etc/passwd", "no plain URL"),
        ("ftp://h/x", "neither http nor https"),
        ("http://user:pw@h/x", "no plain URL"),
        ("/token", "can't be read"),
    ] {
        let server = with_image();
        server.challenge(&format!(r#"Bearer realm="{realm}""#));
        let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
        assert!(error.to_string().contains(said), "{realm}: {error}");
    }
}

#[tokio::test]
async fn stops_after_ten_redirects() {
    let server = with_image();
    server.fault(Fault::redirect_to(server.url()).always());
    let error = client().manifest(&server.reference("lab/x:1")).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert_eq!(server.requests().len(), 11);
}

#[tokio::test]
async fn repeats_the_purchase_of_a_token_but_not_what_its_seller_says() {
    let server = with_image();
    server.require_token(&server);
    server.fault(Fault::status(503).on("/token"));
    client().manifest(&server.reference("lab/x:1")).await.unwrap();
    assert_eq!(server.count("GET", "/token"), 2);

    for fault in [
        Fault::status_with_body(403, r#"{"errors":[{"code":"DENIED","message":"password hunter2 is wrong"}]}"#),
        Fault::status_with_body(500, "hunter2"),
        Fault::status_with_body(200, r#"{"token":"hunter2\n"}"#),
        Fault::status_with_body(200, "hunter2"),
        Fault::header("location", "http://h/?hunter2"),
    ] {
        let server = with_image();
        server.require_token(&server);
        server.fault(fault.clone().on("/token").always());
        let result = client_of(&server, "lab", "hunter2").manifest(&server.reference("lab/x:1")).await;
        let text = full_text(&result.unwrap_err());
        assert!(!text.contains("hunter2"), "{fault:?}: {text}");
    }
}

#[tokio::test]
async fn no_error_holds_a_secret() {
    let base64 = "bGFiOmh1bnRlcjI="; // lab:hunter2
    let echo = format!(r#"{{"errors":[{{"code":"DENIED","message":"you sent {base64}"}}]}}"#);
    for fault in [
        Fault::status_with_body(403, &echo),
        Fault::status_with_body(500, &echo),
        Fault::status_with_body(400, &echo),
        Fault::cut_after(0),
        Fault::redirect_to("http://127.0.0.1:1/?X-Signature=hunter2&a="),
        Fault::redirect_to("ftp://hunter2/"),
    ] {
        let server = with_image();
        server.require_basic("lab", "hunter2");
        server.fault(fault.clone().always());
        let client = client_of(&server, "lab", "hunter2");
        let error = client.manifest(&server.reference("lab/x:1")).await.unwrap_err();
        let text = format!("{} {client:?}", full_text(&error));
        assert!(!text.contains("hunter2") && !text.contains(base64), "{fault:?}: {text}");
    }
}
