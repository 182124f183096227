//! How a registry asks who we are, and what we answer.
//!
//! A 401 carries `WWW-Authenticate` challenges (RFC 9110, 11.6.1). `Basic` is answered with user and password at
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
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::Url;
use tokio::time::Instant;

use crate::client::Client;
use crate::credentials::Credential;
use crate::error::Error;
use crate::retry::Attempts;
use crate::transport::{Body, Failure, Request, Target, shown};

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

/// The challenge that we chose to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The best challenge among the headers of a 401, or why there is none.
    pub(crate) fn choose(headers: &HeaderMap) -> Result<Self, String> {
        let mut basic = false;
        let mut others = Vec::new();
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for (scheme, parameters) in parse_challenges(&String::from_utf8_lossy(value.as_bytes())) {
                let parameter = |name: &str| {
                    let mut found = parameters.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.next().map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
                };
                if scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = parameter("realm") {
                        return Ok(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                    }
                } else if scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                } else {
                    others.push(scheme);
                }
            }
        }
        match (basic, others.first()) {
            (true, _) => Ok(Self::Basic),
            (false, Some(other)) => {
                Err(format!("it only offers the method {other:.40}; Basic and Bearer are understood here"))
            }
            (false, None) => Err("it doesn't say how to authenticate".to_owned()),
        }
    }
}

/// Splits one header value into challenges: scheme and parameters. Tolerant: what can't be read is skipped.
fn parse_challenges(value: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=', '"']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // a stray '=' or quote: step over it
            let mut characters = rest.chars();
            if characters.next().is_none() {
                return challenges;
            }
            rest = characters.as_str();
            continue;
        }
        match after.trim_start().strip_prefix('=') {
            Some(after) => {
                let (text, after) = parse_value(after.trim_start());
                if let Some((_, parameters)) = challenges.last_mut() {
                    parameters.push((word.to_owned(), text));
                }
                rest = after;
            }
            None => {
                challenges.push((word.to_owned(), Vec::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted string with its escapes resolved, and what follows it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find([' ', '\t', ',']).unwrap_or(text.len()));
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    (value, characters.as_str())
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
        tokio::task::spawn_blocking(move || client.config().credentials.find(&repository))
            .await
            .map_err(|_| Error::Configuration(format!("{}: looking up credentials failed", target.place)))?
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
        let request = Request { method, url, headers, body: &body, home, place: &target.place, what: &what };
        let mut attempts = Attempts::new(&self.config().retry);
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
            self.pause(&mut attempts, failure, None).await?;
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

    fn choose(values: &[&str]) -> Result<Challenge, String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        Challenge::choose(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<Challenge, String> {
        Ok(Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) })
    }

    #[test]
    fn reads_every_form_of_challenge() {
        let realm = "https://auth.example/token";
        for (values, expected) in [
            (
                &[r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull,push""#][..],
                bearer(realm, Some("reg"), Some("repository:a/b:pull,push")),
            ),
            (&["bearer  Realm = https://auth.example/token ,service=reg"], bearer(realm, Some("reg"), None)),
            (
                &[r#"Basic realm="x, Bearer realm=y", Bearer realm="https://auth.example/token""#],
                bearer(realm, None, None),
            ),
            (&[r#"Basic realm="a""#, r#"Bearer realm="https://auth.example/token""#], bearer(realm, None, None)),
            (&[r#"Negotiate abc==, Basic realm="say \"hi\"""#], Ok(Challenge::Basic)),
            (&["Basic"], Ok(Challenge::Basic)),
            (&[r#"Bearer realm="a\"b\\c""#], bearer(r#"a"b\c"#, None, None)),
            (&[r#"Bearer realm="unclosed"#], bearer("unclosed", None, None)),
            (&[r#"Bearer service="no realm", Basic realm=x"#], Ok(Challenge::Basic)),
        ] {
            assert_eq!(choose(values), expected, "{values:?}");
        }
    }

    #[test]
    fn says_why_no_challenge_can_be_answered() {
        assert!(choose(&[]).unwrap_err().contains("doesn't say"));
        assert!(choose(&["Negotiate, NTLM"]).unwrap_err().contains("Negotiate"));
    }

    #[test]
    fn survives_any_challenge() {
        for text in ["", ",,,", "=", "\"", "a=\"\\", "Bearer =", "Bearer realm=\"\\\"", "==\"\",", "a b c = d\" e"] {
            parse_challenges(text);
        }
        let mut state = 1u32;
        for _ in 0..20_000 {
            let text: String = (0..state % 12)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ['"', ',', '=', ' ', '\\', 'a', 'é'][(state >> 16) as usize % 7]
                })
                .collect();
            parse_challenges(&text);
            state = state.wrapping_add(1);
        }
    }

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
