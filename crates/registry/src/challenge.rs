//! What a 401 asks for: the `WWW-Authenticate` header (RFC 9110, 11.6.1).
//!
//! Tolerant, because registries are: several headers, several challenges in one, quoted commas, parameters without
//! quotes, methods that we don't know. What can't be read is skipped; no input is an error or a panic.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

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

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

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
}
