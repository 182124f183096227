//! Who may do what: Basic, and tokens that another (or the same) registry sells.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

use super::State;

/// An answer in place of the one asked for.
pub(super) type Refusal = Box<Response<Bytes>>;

#[derive(Debug, Default)]
pub(super) enum Guard {
    #[default]
    Open,
    Basic {
        user: String,
        password: String,
    },
    Token {
        issuer: Arc<State>,
    },
    Always {
        challenge: String,
    },
}

/// The token server of a registry.
#[derive(Debug, Default)]
pub(super) struct Issuer {
    pub(super) accounts: Vec<(String, String)>,
    pub(super) identity_tokens: Vec<String>,
    pub(super) refuse_anonymous: bool,
    pub(super) expires_in: Option<u64>,
    /// tokens that are worth something, with their scope
    issued: HashMap<String, String>,
    sold: u64,
}

impl Issuer {
    pub(super) fn revoke(&mut self) {
        self.issued.clear();
    }

    /// `/token`: GET with query and Basic, or POST with a form.
    pub(super) fn sell(
        &mut self,
        method: &str,
        fields: &HashMap<String, String>,
        headers: &HeaderMap,
    ) -> Response<Bytes> {
        let refused = || plain(StatusCode::UNAUTHORIZED, "no");
        let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
        let known = if method == "POST" {
            if field("grant_type") != "refresh_token"
                || !self.identity_tokens.iter().any(|t| t == field("refresh_token"))
            {
                return refused();
            }
            true
        } else if headers.contains_key(AUTHORIZATION) {
            if !self.accounts.iter().any(|(user, password)| is_basic(headers, user, password)) {
                return refused();
            }
            true
        } else {
            false
        };
        if field("service") != "test" || (!known && self.refuse_anonymous) {
            return refused();
        }
        // everybody may pull
        let scope = if known { field("scope").to_owned() } else { field("scope").replace(":pull,push", ":pull") };
        self.sold += 1;
        let token = format!("token-{}-{:016x}", self.sold, fastrand::u64(..));
        let name = if self.sold.is_multiple_of(2) { "access_token" } else { "token" };
        let mut answer = serde_json::json!({ name: token });
        if let Some(seconds) = self.expires_in {
            answer["expires_in"] = seconds.into();
        }
        self.issued.insert(token, scope);
        plain(StatusCode::OK, &answer.to_string())
    }
}

impl Guard {
    /// Lets the request pass, or answers it.
    pub(super) fn check(&self, headers: &HeaderMap, repository: &str, push: bool) -> Result<(), Refusal> {
        let challenge = match self {
            Self::Open => return Ok(()),
            Self::Basic { user, password } if is_basic(headers, user, password) => return Ok(()),
            Self::Basic { .. } => r#"Basic realm="test, with a comma""#.to_owned(),
            Self::Token { issuer } => {
                let action = if push { "pull,push" } else { "pull" };
                let wanted = format!("repository:{repository}:{action}");
                let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
                let issued = &issuer.issuer().issued;
                if token.and_then(|token| issued.get(token)).is_some_and(|scope| scope.starts_with(&wanted)) {
                    return Ok(());
                }
                format!(r#"Bearer realm="{}/token",service="test",scope="{wanted}""#, issuer.url)
            }
            Self::Always { challenge } => challenge.clone(),
        };
        let mut response = plain(StatusCode::UNAUTHORIZED, r#"{"errors":[{"code":"UNAUTHORIZED","message":"login"}]}"#);
        let challenge = HeaderValue::from_str(&challenge).expect("a challenge is a header value");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        Err(response.into())
    }
}

fn is_basic(headers: &HeaderMap, user: &str, password: &str) -> bool {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes() == format!("Basic {text}").as_bytes())
}

pub(super) fn plain(status: StatusCode, body: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *response.status_mut() = status;
    response
}
