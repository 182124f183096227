//! Named snapshots, and going back to one.

use cvmfs::history::{Tag, TagError};
use cvmfs::repository::{Repository, Retag, Revision};
use serde::Serialize;
use time::UtcDateTime;

use crate::failure::Failure;
use crate::target::Target;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retagged {
    schema: u32,
    /// Name of the repository.
    pub repository: String,
    /// Revision before.
    pub revision_before: u64,
    /// Revision now; tags are changed within one, a rollback makes a new one.
    pub revision: u64,
    /// Root catalog now.
    pub root: String,
    /// Tags that are there now and were not before, or name another root catalog than before.
    pub set: Vec<String>,
    /// Tags that are not there any more.
    pub removed: Vec<String>,
}

impl Retagged {
    /// For people: a line a tag.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.set.iter().for_each(|name| text.push_str(&format!("set      {name}\n")));
        self.removed.iter().for_each(|name| text.push_str(&format!("removed  {name}\n")));
        text.push_str(&match self.revision == self.revision_before {
            true => format!("{}: revision {}\n", self.repository, self.revision),
            false => format!("{}: revision {} -> {}\n", self.repository, self.revision_before, self.revision),
        });
        text
    }

    /// For programs: one JSON object, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("only strings and numbers");
        text.push('\n');
        text
    }
}

/// Names a revision.
pub fn add(target: &Target, name: &str, message: &str, revision: Revision) -> Result<Retagged, Failure> {
    change(target, |repository, retag| {
        let mut history = repository.history(retag.scratch)?;
        let tag = repository.tag_of(revision, retag.scratch)?;
        let moves = matches!(revision, Revision::Root(_));
        let tag = Tag { name: name.to_owned(), description: message.to_owned(), ..tag };
        history.add(tag, moves).map_err(retag_failure)?;
        Ok(repository.publish_tags(&history, retag)?)
    })
}

/// Removes names: all of them, or none if one is not there.
pub fn remove(target: &Target, names: &[String]) -> Result<Retagged, Failure> {
    change(target, |repository, retag| {
        let mut history = repository.history(retag.scratch)?;
        for name in names {
            history.remove(name).map_err(retag_failure)?;
        }
        Ok(repository.publish_tags(&history, retag)?)
    })
}

/// Publishes the content of a tag again, without one that of the revision before.
pub fn roll_back(target: &Target, tag: Option<&str>) -> Result<Retagged, Failure> {
    change(target, |repository, retag| Ok(repository.roll_back(tag, retag)?))
}

fn retag_failure(error: TagError) -> Failure {
    Failure::Retag(error.into())
}

fn change(
    target: &Target,
    publish: impl FnOnce(Repository, &Retag<'_>) -> Result<Repository, Failure>,
) -> Result<Retagged, Failure> {
    let _lock = target.lock()?;
    target.expect_reflog()?;
    let before = target.repository()?;
    let old = before.history(target.scratch())?.tags;
    let checksum = target.reflog_checksum();
    let retag = Retag {
        signer: &target.signer,
        now: UtcDateTime::now(),
        scratch: target.scratch(),
        reflog_checksum: Some(&checksum),
    };
    let revision_before = before.manifest().revision;
    let after = publish(before, &retag)?;
    let tags = after.history(target.scratch())?.tags;
    let names = |tags: Vec<&Tag>| {
        let mut names: Vec<String> = tags.into_iter().map(|t| t.name.clone()).collect();
        names.sort();
        names
    };
    let is_in = |tags: &[Tag], tag: &Tag| tags.iter().any(|t| t.name == tag.name && t.root == tag.root);
    Ok(Retagged {
        schema: 1,
        repository: target.fqrn.clone(),
        revision_before,
        revision: after.manifest().revision,
        root: after.manifest().root_catalog.to_string(),
        set: names(tags.iter().filter(|t| !is_in(&old, t)).collect()),
        removed: names(old.iter().filter(|t| tags.iter().all(|new| new.name != t.name)).collect()),
    })
}
