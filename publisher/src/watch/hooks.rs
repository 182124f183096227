//! What registries say when something is pushed, in each one's own words.
//!
//! | format | who sends it |
//! |---|---|
//! | `harbor` | Harbor's webhooks, in its own form and as CloudEvents |
//! | `distribution` | notifications of the reference registry |
//! | `gitlab` | GitLab's container registry, which notifies as the reference registry does |
//! | `quay` | "push to repository" of Quay |
//!
//! An event is a hint: it says where to look, and nothing in it is believed. So it is matched with wishes by the path of the image
//! repository alone; registries know themselves by other names than their users do. An event that matches too much costs one question
//! to a registry.

use image::reference::{ImageSource, Reference, Wish};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most events that one request may bring.
const MAX_EVENTS: usize = 1000;

/// Whose words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Harbor.
    Harbor,
    /// The reference registry.
    Distribution,
    /// GitLab.
    Gitlab,
    /// Quay.
    Quay,
}

impl Format {
    /// By its name in the path of a request.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "harbor" => Self::Harbor,
            "distribution" => Self::Distribution,
            "gitlab" => Self::Gitlab,
            "quay" => Self::Quay,
            _ => return None,
        })
    }
}

/// Something happened to a tag, or to an image repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Event {
    /// Path of the image repository, without the registry.
    pub repository: String,
    /// The tag; none if only the repository is known.
    pub tag: Option<String>,
}

/// What is no notification.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct HookError(String);

/// The events of a notification: those that may mean that there is something new. Deletions and what else happens in a registry are
/// none: what is published goes by the wish list alone.
pub fn parse(format: Format, body: &[u8]) -> Result<Vec<Event>, HookError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| HookError(format!("not JSON: {error}")))?;
    let mut events = match format {
        Format::Harbor => harbor(&value)?,
        Format::Distribution | Format::Gitlab => distribution(&value)?,
        Format::Quay => quay(&value)?,
    };
    if events.len() > MAX_EVENTS {
        return Err(HookError(format!("{} events in one notification; at most {MAX_EVENTS} are taken", events.len())));
    }
    if let Some(event) = events.iter().find(|event| !event.is_possible()) {
        return Err(HookError(format!("{:?} names no image", event.repository)));
    }
    events.sort();
    events.dedup();
    Ok(events)
}

fn harbor(value: &Value) -> Result<Vec<Event>, HookError> {
    let kind = text(value, "/type").ok_or_else(|| missing("type"))?;
    let data = value.pointer("/event_data").or_else(|| value.pointer("/data"));
    let resources = |path: &str| {
        let list = data.and_then(|data| data.pointer(path)).and_then(Value::as_array);
        list.map(Vec::as_slice).unwrap_or_default()
    };
    match kind {
        "PUSH_ARTIFACT" | "pushImage" | "harbor.artifact.pushed" => {
            let data = data.ok_or_else(|| missing("event_data"))?;
            let repository = text(data, "/repository/repo_full_name").ok_or_else(|| missing("repo_full_name"))?;
            let tags = resources("/resources").iter().map(|resource| text(resource, "/tag"));
            Ok(tags.map(|tag| Event::new(repository, tag.filter(|tag| !tag.starts_with("sha256:")))).collect())
        }
        // What arrives by replication is told by name and a count of tags: "debian [2/2]", below the namespace of the destination.
        "REPLICATION" | "harbor.replication.status.changed" => {
            let data = data.ok_or_else(|| missing("event_data"))?;
            let namespace = text(data, "/replication/dest_resource/namespace").unwrap_or_default();
            let artifacts = resources("/replication/successful_artifact").iter();
            let names = artifacts.filter_map(|artifact| text(artifact, "/name_tag")?.split([' ', ':']).next());
            Ok(names
                .map(|name| match namespace {
                    "" => Event::new(name, None),
                    namespace => Event::new(&format!("{namespace}/{name}"), None),
                })
                .collect())
        }
        _ => Ok(Vec::new()),
    }
}

fn distribution(value: &Value) -> Result<Vec<Event>, HookError> {
    let events = value.pointer("/events").and_then(Value::as_array).ok_or_else(|| missing("events"))?;
    let pushes = events.iter().filter(|event| text(event, "/action") == Some("push"));
    let targets = pushes.filter_map(|event| event.pointer("/target"));
    // Pushes of blobs and of manifests without a tag change no name.
    Ok(targets
        .filter_map(|target| Some(Event::new(text(target, "/repository")?, Some(text(target, "/tag")?))))
        .collect())
}

fn quay(value: &Value) -> Result<Vec<Event>, HookError> {
    let repository = text(value, "/repository").ok_or_else(|| missing("repository"))?;
    let tags = value.pointer("/updated_tags").and_then(Value::as_array).ok_or_else(|| missing("updated_tags"))?;
    Ok(tags.iter().filter_map(Value::as_str).map(|tag| Event::new(repository, Some(tag))).collect())
}

fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn missing(field: &str) -> HookError {
    HookError(format!("no notification of this kind: {field} is missing"))
}

impl Event {
    fn new(repository: &str, tag: Option<&str>) -> Self {
        Self { repository: repository.to_owned(), tag: tag.map(str::to_owned) }
    }

    fn is_possible(&self) -> bool {
        let whole = format!("https://registry.example/{}:{}", self.repository, self.tag.as_deref().unwrap_or("latest"));
        Reference::parse(&whole)
            .is_ok_and(|found| found.repository().path() == self.repository && found.to_string() == whole)
    }

    /// What of a wish is worth a look now.
    pub fn selects(&self, wish: &Wish) -> Option<Wish> {
        match wish {
            Wish::Image(ImageSource::Registry(reference)) => {
                let same_tag = self.tag.as_deref().is_none_or(|tag| reference.tag() == Some(tag));
                (reference.repository().path() == self.repository && same_tag).then(|| wish.clone())
            }
            Wish::Image(_) => None,
            Wish::Wildcard(wildcard) if wildcard.repository().path() == self.repository => match &self.tag {
                None => Some(wish.clone()),
                Some(tag) => wildcard.select(tag).map(|image| Wish::Image(ImageSource::Registry(image))),
            },
            Wish::Wildcard(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(format: &str, body: &str) -> Vec<String> {
        let events = parse(Format::parse(format).unwrap(), body.as_bytes()).unwrap();
        events.into_iter().map(|e| format!("{}:{}", e.repository, e.tag.unwrap_or_default())).collect()
    }

    #[test]
    fn each_registry_is_understood() {
        let harbor = r#"{"type":"PUSH_ARTIFACT","occur_at":1586922308,"operator":"admin","event_data":{
            "resources":[{"digest":"sha256:8a9e","tag":"latest","resource_url":"harbor.example.org/sub/project/debian:latest"},
                         {"digest":"sha256:8a9e","tag":"12","resource_url":"…"}],
            "repository":{"date_created":1586922308,"name":"debian","namespace":"sub/project","repo_full_name":"sub/project/debian","repo_type":"private"}}}"#;
        assert_eq!(events("harbor", harbor), ["sub/project/debian:12", "sub/project/debian:latest"]);
        let cloud = r#"{"specversion":"1.0","type":"harbor.artifact.pushed","data":{"resources":[{"digest":"sha256:8a9e","tag":"1"}],
            "repository":{"repo_full_name":"library/app"}}}"#;
        assert_eq!(events("harbor", cloud), ["library/app:1"]);
        let untagged = r#"{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":"sha256:8a9e"}],"repository":{"repo_full_name":"a/b"}}}"#;
        assert_eq!(events("harbor", untagged), ["a/b:"]);
        let replication = r#"{"type":"REPLICATION","event_data":{"replication":{"dest_resource":{"endpoint":"https://x","namespace":"mirror"},
            "successful_artifact":[{"type":"image","status":"success","name_tag":"debian [2/2]"}]}}}"#;
        assert_eq!(events("harbor", replication), ["mirror/debian:"]);
        assert!(events("harbor", r#"{"type":"DELETE_ARTIFACT","event_data":{}}"#).is_empty());

        let distribution = r#"{"events":[
            {"id":"1","action":"push","target":{"mediaType":"application/octet-stream","digest":"sha256:a","repository":"lib/app","url":"x"}},
            {"id":"2","action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:b","repository":"lib/app","tag":"3"}},
            {"id":"3","action":"pull","target":{"repository":"lib/app","tag":"4"}},
            {"id":"4","action":"push","target":{"repository":"lib/app","tag":"3"}}]}"#;
        for format in ["distribution", "gitlab"] {
            assert_eq!(events(format, distribution), ["lib/app:3"]);
        }

        let quay = r#"{"name":"repository","repository":"group/app","namespace":"group","docker_url":"quay.io/group/app","homepage":"…","updated_tags":["latest","5"]}"#;
        assert_eq!(events("quay", quay), ["group/app:5", "group/app:latest"]);
    }

    #[test]
    fn what_is_no_notification_is_refused() {
        let many = format!(r#"{{"repository":"a/b","updated_tags":[{}"x"]}}"#, r#""1","#.repeat(MAX_EVENTS));
        for (format, body) in [
            (Format::Quay, "no JSON"),
            (Format::Quay, "{}"),
            (Format::Quay, r#"{"repository":"a/b","updated_tags":"latest"}"#),
            (Format::Quay, r#"{"repository":"../../etc","updated_tags":["passwd"]}"#),
            (Format::Quay, r#"{"repository":"a/b","updated_tags":["*"]}"#),
            (Format::Quay, r#"{"repository":"a/b","updated_tags":["x/../y"]}"#),
            (Format::Quay, &many),
            (Format::Distribution, r#"{"events":{}}"#),
            (Format::Harbor, r#"{"type":"PUSH_ARTIFACT"}"#),
        ] {
            assert!(parse(format, body.as_bytes()).is_err(), "{body:.80}");
        }
        assert_eq!(Format::parse("docker"), None);
    }

    #[test]
    fn an_event_selects_what_it_may_have_changed() {
        let tag = |tag: &str| Event::new("tools/app", Some(tag));
        let selected =
            |event: &Event, wish: &str| event.selects(&Wish::parse(wish).unwrap()).map(|wish| wish.to_string());
        let fixed = "https://quay.io/tools/app:1";
        assert_eq!(selected(&tag("1"), fixed).as_deref(), Some(fixed));
        assert_eq!(selected(&tag("2"), fixed), None);
        assert_eq!(selected(&Event::new("tools/app", None), fixed).as_deref(), Some(fixed));
        assert_eq!(selected(&Event::new("tools/other", None), fixed), None);
        assert_eq!(
            selected(&tag("2.7"), "https://quay.io/tools/app:2.*").as_deref(),
            Some("https://quay.io/tools/app:2.7")
        );
        assert_eq!(selected(&tag("3.0"), "https://quay.io/tools/app:2.*"), None);
        assert_eq!(selected(&tag("1"), "oci:/images/app:1"), None);
    }
}
