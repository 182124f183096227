//! Lists of tags, page by page.
//!
//! The distribution specification has registries name the next page in a `Link` header. Some give full pages without one, and want to be
//! asked for what comes after the `last` tag; where that brings nothing new the list is at its end.
//!
//! Invariants
//! - A list that leads back to a page that was seen, to another host, or to more than the limits is an error.
//! - A tag is given once.

use std::collections::HashSet;

use http::HeaderMap;
use http::header::LINK;
use reqwest::Url;

use crate::client::Client;
use crate::error::Error;
use crate::transport::{Call, Target, shown};

/// Tags asked for in one page; registries may give fewer, or all.
const PAGE: usize = 1000;
/// All pages together may be so many times as large as a document.
const DOCUMENTS: u64 = 16;

#[derive(serde::Deserialize)]
struct Page {
    tags: Option<Vec<String>>,
}

impl Client {
    pub(crate) async fn tags_at(&self, target: &Target) -> Result<Vec<String>, Error> {
        let what = "tag list";
        let config = self.config();
        let protocol = |reason: String| Error::Protocol { place: target.place.clone(), what: what.to_owned(), reason };
        let mut url = target.url("tags/list");
        url.query_pairs_mut().append_pair("n", &PAGE.to_string());
        let (mut pages, mut known, mut tags) = (HashSet::new(), HashSet::new(), Vec::new());
        let mut room = config.document_limit.saturating_mul(DOCUMENTS);
        while pages.insert(url.clone()) {
            if pages.len() > config.tag_pages {
                return Err(protocol(format!("the list has more than {} pages", config.tag_pages)));
            }
            let call = Call::get(target, url.clone(), what);
            let (headers, from, body) = self.document(&call, config.document_limit).await?;
            let limit = config.document_limit.saturating_mul(DOCUMENTS);
            let too_large = || Error::TooLarge { place: target.place.clone(), what: what.to_owned(), limit };
            room = room.checked_sub(body.len() as u64).ok_or_else(too_large)?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|error| protocol(format!("no tag list: {error}")))?;
            let page = page.tags.unwrap_or_default();
            let (before, count, last) = (tags.len(), page.len(), page.last().cloned());
            tags.extend(page.into_iter().filter(|tag| known.insert(tag.clone())));
            url = match (next_page(&headers), last) {
                (Some(next), _) => {
                    let next =
                        from.join(&next).map_err(|_| protocol("the next page has no usable address".to_owned()))?;
                    if next.origin() != target.base.origin() {
                        return Err(protocol(format!("the next page lies at another host, {}", shown(&next))));
                    }
                    next
                }
                (None, Some(last)) if count == PAGE && tags.len() > before => after(target, &last),
                _ => return Ok(tags),
            };
        }
        Err(protocol("the next page is the same page again, or one that was seen before".to_owned()))
    }
}

/// What comes after a tag.
fn after(target: &Target, last: &str) -> Url {
    let mut url = target.url("tags/list");
    url.query_pairs_mut().append_pair("n", &PAGE.to_string()).append_pair("last", last);
    url
}

/// The address of the next page (RFC 8288): `Link: </v2/…>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
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
            assert_eq!(next_page(&headers).as_deref(), expected, "{link}");
        }
        assert_eq!(next_page(&HeaderMap::new()), None);
    }
}
