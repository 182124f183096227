//! How a registry asks who we are, and what we answer.
//!
//! A 401 carries challenges (module `challenge`). `Basic` is answered with user and password at
//! each request; `Bearer` names a token server (the *realm*) which sells tokens for a scope, anonymously or for
//! credentials (distribution "Token Authentication Specification"; identity tokens: its OAuth2 variant by POST).
//!
//! Invariants
//! - Credentials leave only after a challenge from the configured registry itself (a host that it redirects to can't
//!   challenge us), and go only to that registry or to the realm that it declares. The realm may be another host,
//!   as at Docker Hub, but never `http` for a registry reached by `https`.
//! - One token request at a time for a repository: concurrent callers share its result. A token is used for 80 % of
//!   its life.
//! - Configured credentials that are refused are an error; there is no silent second try as anonymous.
//! - What a token server says in an error is not repeated: it has seen our password.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use image::reference::Repository;
use reqwest::Url;
use tokio::time::Instant;

use crate::challenge::Challenge;
use crate::client::Client;
use crate::credentials::Credential;
use crate::error::Error;
use crate::retry::Attempts;
use crate::transport::{Body, Failure, Login, Request, Target, shown};

/// Life of a token whose server doesn't say (token specification: `expires_in`).
const TOKEN_LIFE: u64 = 60;
/// Largest accepted answer of a token server, in bytes.
const TOKEN_LIMIT: u64 = 256 * 1024;
/// Grants kept for one registry; beyond, those nobody uses are dropped and asked again when needed.
const GRANTS: usize = 1024;

/// What a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Access {
    fn scope(self, repository: &str) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{repository}:{actions}")
    }
}

/// The right to do something in one repository: the header to send.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) header: HeaderValue,
    /// were credentials shown for it?
    pub(crate) identified: bool,
    until: Option<Instant>,
}

impl Grant {
    fn new(text: &str, identified: bool, life: Option<Duration>) -> Option<Self> {
        let mut header = HeaderValue::from_str(text).ok()?;
        header.set_sensitive(true);
        Some(Self { header, identified, until: life.and_then(|life| Instant::now().checked_add(life)) })
    }

    /// The part that must not be shown.
    pub(crate) fn secret(&self) -> Option<&str> {
        self.header.to_str().ok()?.split_once(' ').map(|(_, secret)| secret)
    }

    fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Grant>>>;

/// What we know about a registry's authentication.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    known: Mutex<Option<Challenge>>,
    slots: Mutex<HashMap<(String, Access), Slot>>,
}

impl Grants {
    fn slot(&self, repository: &str, access: Access) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= GRANTS {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry((repository.to_owned(), access)).or_default().clone()
    }

    fn known(&self) -> Option<Challenge> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn(&self, challenge: &Challenge) {
        let mut general = challenge.clone();
        if let Challenge::Bearer { scope, .. } = &mut general {
            *scope = None; // it was for one repository
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(general);
    }
}

impl Client {
    /// The grant to send along, if any is needed as far as we know. `refused` is the challenge of a 401 to this very
    /// request, and the grant that it was sent with.
    pub(crate) async fn grant(
        &self,
        target: &Target,
        access: Access,
        refused: Option<(Challenge, Option<Grant>)>,
    ) -> Result<Option<Grant>, Error> {
        let grants = &target.session.grants;
        if refused.is_none() && grants.known().is_none() {
            return Ok(None);
        }
        let slot = grants.slot(&target.path, access);
        let mut slot = slot.lock().await;
        let valid = slot.as_ref().filter(|grant| grant.is_valid());
        let was_refused = refused.is_some();
        let challenge = match refused {
            Some((challenge, old)) => {
                let old = old.map(|grant| grant.header);
                if let Some(newer) = valid.filter(|grant| Some(&grant.header) != old.as_ref()) {
                    return Ok(Some(newer.clone()));
                }
                grants.learn(&challenge);
                challenge
            }
            None => match (valid, grants.known()) {
                (Some(grant), _) => return Ok(Some(grant.clone())),
                (None, Some(challenge)) => challenge,
                (None, None) => return Ok(None),
            },
        };
        let credential = self.credential(target).await?;
        let grant = match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Password { user, password })) => {
                Grant::new(&basic(&user, password.expose()), true, None)
            }
            (Challenge::Basic, _) if !was_refused => return Ok(None),
            (Challenge::Basic, _) => {
                return Err(target.unauthorized(
                    "login",
                    format!("user name and password are needed, but none are configured for {}", target.host()),
                ));
            }
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let scope = scope.unwrap_or_else(|| access.scope(&target.path));
                Some(self.token(target, &realm, service.as_deref(), &scope, credential).await?)
            }
        };
        *slot =
            Some(grant.ok_or_else(|| Error::Configuration(format!("{}: credentials can't be sent", target.place)))?);
        Ok(slot.clone())
    }

    async fn credential(&self, target: &Target) -> Result<Option<Credential>, Error> {
        let client = self.clone();
        let repository = target.repository.clone();
        let (login, host) = (target.login.clone(), target.host());
        let is_plain = target.base.scheme() == "http";
        let find = move || client.find_credential(&login, &repository, &host, is_plain);
        tokio::task::spawn_blocking(find)
            .await
            .map_err(|_| Error::Configuration(format!("{}: looking up credentials failed", target.place)))?
    }

    /// Blocking.
    fn find_credential(
        &self,
        login: &Login,
        repository: &Repository,
        host: &str,
        is_plain: bool,
    ) -> Result<Option<Credential>, Error> {
        let credentials = &self.config().credentials;
        let rules = self.config().registries.rules(repository);
        let is_ours =
            matches!(login, Login::Named(_)) || matches!(login, Login::Configured) && rules.credentials.is_some();
        if is_plain && is_ours && rules.plain_http != Some(true) {
            return Err(Error::Configuration(format!(
                "{repository}: credentials don't go over plain http; use https, or say plain_http = true for this registry"
            )));
        }
        match login {
            Login::Configured => credentials.find(repository),
            Login::Named(name) => credentials.named(name, repository).map(Some),
            Login::Mirror(Some(name)) => credentials.of_mirror(name, host).map(Some),
            Login::Mirror(None) => Ok(None),
        }
    }

    /// Asks the realm for a token.
    async fn token(
        &self,
        target: &Target,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credential: Option<Credential>,
    ) -> Result<Grant, Error> {
        let mut url = realm_url(target, realm)?;
        let what = format!("token from {}", shown(&url));
        let mut fields: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        let mut headers = HeaderMap::new();
        let identified = credential.is_some();
        let mut authorization = None;
        let (method, body) = match &credential {
            Some(Credential::IdentityToken(token)) => {
                fields.push(("grant_type", "refresh_token"));
                fields.push(("client_id", "cvmfs-containers"));
                fields.push(("refresh_token", token.expose()));
                fields.push(("scope", scope));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
                (Method::POST, Body::Bytes(form(&fields).into()))
            }
            other => {
                fields.extend(scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope)));
                url.query_pairs_mut().extend_pairs(&fields);
                if let Some(Credential::Password { user, password }) = other {
                    authorization = Grant::new(&basic(user, password.expose()), true, None).map(|grant| grant.header);
                }
                (Method::GET, Body::Empty)
            }
        };
        let home = url.origin();
        let lines = &*target.session.lines;
        let request = Request { method, url, headers, body: &body, home, lines, place: &target.place, what: &what };
        let mut attempts = Attempts::new(&target.retry);
        loop {
            let failure = match self.send(&request, authorization.as_ref()).await {
                Ok(answer) if answer.response.status().is_success() => {
                    match self.bounded(answer.response, TOKEN_LIMIT, &target.place, &what).await {
                        Ok(body) => {
                            return parse_token(&body, identified).ok_or_else(|| Error::Protocol {
                                place: target.place.clone(),
                                what,
                                reason: "the answer of the token server holds no usable token".to_owned(),
                            });
                        }
                        Err(failure) => failure,
                    }
                }
                Ok(answer) if matches!(answer.response.status().as_u16(), 400 | 401 | 403) => {
                    let who = if identified { "the configured credentials" } else { "anonymous access" };
                    return Err(target.unauthorized(&what, format!("the token server refuses {who}")));
                }
                Ok(answer) => Failure::from_status(&answer.response, &target.place, &what, String::new()),
                Err(failure) => failure,
            };
            self.pause(&mut attempts, failure, &target.session).await?;
        }
    }
}

impl Target {
    pub(crate) fn unauthorized(&self, what: &str, reason: String) -> Error {
        let host = self.host();
        let reason = format!(
            "{reason}; the image may not exist, or be private: `docker login {host}`, or set DUCC_AUTH_REGISTRIES"
        );
        Error::Unauthorized { place: self.place.clone(), what: what.to_owned(), reason }
    }
}

/// The address of the token server, if the registry may declare it.
fn realm_url(target: &Target, realm: &str) -> Result<Url, Error> {
    let what = "authentication".to_owned();
    let protocol = |reason: &str| Error::Protocol {
        place: target.place.clone(),
        what: "authentication".to_owned(),
        reason: format!("the registry declares a token server whose address {reason}"),
    };
    let url = Url::parse(realm).map_err(|_| protocol("can't be read"))?;
    if !url.username().is_empty() || url.password().is_some() || url.host().is_none() {
        return Err(protocol("is no plain URL"));
    }
    match (target.base.scheme(), url.scheme()) {
        ("https", "http") => Err(Error::Downgrade {
            place: target.place.clone(),
            what,
            reason: format!("the registry declares the token server {}", shown(&url)),
        }),
        (_, "http" | "https") => Ok(url),
        _ => Err(protocol("is neither http nor https")),
    }
}

fn parse_token(body: &[u8], identified: bool) -> Option<Grant> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |name: &str| answer.get(name)?.as_str().filter(|token| !token.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    let life = answer.get("expires_in").and_then(serde_json::Value::as_u64).unwrap_or(TOKEN_LIFE);
    // no token is trusted beyond a day, whatever its server says
    let life = Duration::from_secs(life.min(24 * 3600)).mul_f64(0.8);
    Grant::new(&format!("Bearer {token}"), identified, Some(life))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// `application/x-www-form-urlencoded`, which is how a query is written.
fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:").expect("a constant URL parses");
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_names_of_a_token_and_uses_it_for_four_fifths_of_its_life() {
        for (body, expected) in [
            (r#"{"token":"a","expires_in":100}"#, Some(("Bearer a", 80))),
            (r#"{"access_token":"b"}"#, Some(("Bearer b", 48))),
            (r#"{"token":"","access_token":"b","expires_in":"soon"}"#, Some(("Bearer b", 48))),
            (r#"{"token":"a","expires_in":18446744073709551615}"#, Some(("Bearer a", 69_120))),
            (r#"{"token":"line\nbreak"}"#, None),
            (r#"{"token":7}"#, None),
            ("[]", None),
            ("", None),
        ] {
            let grant = parse_token(body.as_bytes(), false);
            let found = grant.as_ref().map(|grant| {
                let left = grant.until.unwrap().duration_since(Instant::now());
                (grant.header.to_str().unwrap(), left.as_secs_f64().round() as u64)
            });
            assert_eq!(found, expected, "{body}");
        }
        assert!(!format!("{:?}", parse_token(br#"{"token":"hunter2"}"#, true)).contains("hunter2"));
    }
}
