//! Lists of tags, page by page.
//!
//! Some registries give full pages and name no next one, and want to be asked for what comes after the `last` tag; where that brings
//! nothing new the list is at its end.
//!
//! Invariants
//! - A list that leads back to a page that was seen, to another host, or to more than the limits is an error.
//! - A tag is given once.

use std::collections::HashSet;

use reqwest::Url;

use crate::client::Client;
use crate::error::Error;
use crate::pages::next_page;
use crate::transport::{Call, Target};

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
            url = match (next_page(target, &from, &headers, what)?, last) {
                (Some(next), _) => next,
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
