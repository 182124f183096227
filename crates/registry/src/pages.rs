//! Lists that come page by page: the distribution specification has registries name the next page in a `Link` header.
//!
//! Invariant: a list that leads to another host is an error. That it ends is a matter of whoever reads it.

use http::HeaderMap;
use http::header::LINK;
use reqwest::Url;

use crate::error::Error;
use crate::transport::{Target, shown};

/// The page that comes after an answer which came from `from`.
pub(crate) fn next_page(target: &Target, from: &Url, headers: &HeaderMap, what: &str) -> Result<Option<Url>, Error> {
    let protocol = |reason: String| Error::Protocol { place: target.place.clone(), what: what.to_owned(), reason };
    let Some(next) = linked(headers) else { return Ok(None) };
    let next = from.join(&next).map_err(|_| protocol("the next page has no usable address".to_owned()))?;
    match next.origin() == target.base.origin() {
        true => Ok(Some(next)),
        false => Err(protocol(format!("the next page lies at another host, {}", shown(&next)))),
    }
}

/// The address that the answer calls the next page (RFC 8288): `Link: </v2/…>; rel="next"`.
fn linked(headers: &HeaderMap) -> Option<String> {
    for value in headers.get_all(LINK) {
        let mut rest = value.to_str().ok()?;
        while let Some((_, after)) = rest.split_once('<') {
            let (address, after) = after.split_once('>')?;
            let parameters = &after[..after.find('<').unwrap_or(after.len())];
            let next =
                parameters.split([';', ',']).filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel")
                        && value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
                });
            if next {
                return Some(address.to_owned());
            }
            rest = after;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn finds_the_next_page() {
        for (link, expected) in [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            ("</x>; rel=next", Some("/x")),
            (r#"</first>; rel="first", </x,y;z>; title="t"; REL="prev next""#, Some("/x,y;z")),
            (r#"</x>; rel="last""#, None),
            ("</x", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_str(link).unwrap())]);
            assert_eq!(linked(&headers).as_deref(), expected, "{link}");
        }
        assert_eq!(linked(&HeaderMap::new()), None);
    }
}
