//! The status page for people: served live, and as a file that needs no server.

use super::status::{ListStatus, Status};

/// The page that reads `status.json` beside it; it loads nothing else.
pub const LIVE: &str = include_str!("page.html");
/// Where a copy has its data.
const DATA: (&str, &str) = ("<script type=\"application/json\" id=\"data\">", "</script>");

/// The page with its data, for readers of the repository.
///
/// What only the operator should see is left out: why images fail (errors name proxies and accounts), the list and its mistakes.
pub fn copy(status: &Status) -> String {
    let mut shown = Status {
        queue: 0,
        trouble: None,
        whitelist_warning: None,
        list: ListStatus { wishes: status.list.wishes, ..ListStatus::default() },
        last_pass: None,
        upkeep: Default::default(),
        ..status.clone()
    };
    shown.images.values_mut().for_each(|image| image.error = None);
    // In JSON, `<` stands in strings only: so none of them ends the element.
    let data = serde_json::to_string(&shown).expect("a status holds only texts and numbers").replace('<', "\\u003c");
    LIVE.replacen(&format!("{}null{}", DATA.0, DATA.1), &format!("{}{data}{}", DATA.0, DATA.1), 1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::watch::outcomes::{ImageOutcome, Moment};

    #[test]
    fn a_copy_has_its_data_and_nothing_of_the_operators() {
        let mut status = Status::new("a.example.org", Path::new("/srv/secret/list.yaml"));
        status.trouble = Some("proxy.internal is down".to_owned());
        let image = ImageOutcome {
            wish: "</script><script>alert(1)</script>".to_owned(),
            digest: None,
            platform: None,
            path: None,
            size: None,
            shared: None,
            last_check: Moment(time::UtcDateTime::UNIX_EPOCH),
            last_success: None,
            last_change: None,
            outcome: crate::report::Outcome::Failed,
            error: Some("401 for robot-account".to_owned()),
            failures: 2,
            next_try: None,
        };
        status.images.insert("https://registry.example.org/a:1".to_owned(), image);
        let page = copy(&status);
        for hidden in ["secret", "internal", "robot-account", "<script>alert"] {
            assert!(!page.contains(hidden), "{hidden}");
        }
        let data = page.split(DATA.0).nth(1).unwrap().split(DATA.1).next().unwrap();
        let read: Status = serde_json::from_str(data).unwrap();
        assert_eq!(read.images.values().next().unwrap().wish, "</script><script>alert(1)</script>");
        assert_eq!(read.images.values().next().unwrap().failures, 2);
    }
}
