//! Which published images somebody means, and which ones wish lists ask for.

use std::collections::{BTreeSet, HashMap, HashSet};

use cvmfs::path::RepoPath;
use image::layout::OwnedPath;
use image::platform::PlatformDirectory;
use image::reference::{ImageSource, PublicName, Wildcard, Wish};

use super::mark::Owner;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::Hand;

/// Of which names one is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Those that have a link or records.
    Published,
    /// Those that have records.
    Recorded,
    /// Those that led to something before.
    Earlier,
    /// All of these.
    Known,
}

/// The names that a text may mean: a path as `images` lists it, or an image in the syntax of wish lists.
fn candidates(text: &str) -> BTreeSet<PublicName> {
    let wished = ImageSource::parse(text).ok().and_then(|source| source.public_path(None).ok());
    PublicName::parse(text).ok().into_iter().chain(wished).collect()
}

impl Hand<'_> {
    /// The images that a text means, on all platforms that they are published for.
    pub(crate) fn find(&mut self, text: &str, sort: Sort) -> Result<Vec<Owner>, Failure> {
        let platforms = self.platforms()?;
        let mut found = Vec::new();
        let mut names = Vec::new();
        for name in candidates(text) {
            let before = found.len();
            for platform in &platforms {
                let owner = Owner { platform: platform.clone(), name: name.clone() };
                if self.is_there(&owner, sort)? {
                    found.push(owner);
                }
            }
            if found.len() > before {
                names.push(name);
            }
        }
        match &names[..] {
            [] => {
                let sort = match sort {
                    Sort::Published | Sort::Recorded | Sort::Known => "published image",
                    Sort::Earlier => "earlier image of the name",
                };
                let list: Vec<String> = candidates(text).iter().map(ToString::to_string).collect();
                let name = if list.is_empty() { text.to_owned() } else { list.join(" or ") };
                Err(Failure::Content(format!("there is no {sort} {name}; nothing was changed")))
            }
            [_] => Ok(found),
            [first, ..] => Err(Failure::Content(format!(
                "{text} may mean {} images, the first is {first}; write the one that is meant in full",
                names.len()
            ))),
        }
    }

    fn is_there(&mut self, owner: &Owner, sort: Sort) -> Result<bool, Failure> {
        Ok(match sort {
            Sort::Published => self.is_published(owner)?,
            Sort::Recorded => self.has_records(owner)?,
            Sort::Earlier => !self.keys(owner)?.is_empty(),
            Sort::Known => self.has_records(owner)? || !self.keys(owner)?.is_empty(),
        })
    }

    /// Whether a name has a link of ours, or records.
    pub(crate) fn is_published(&mut self, owner: &Owner) -> Result<bool, Failure> {
        let Owner { platform, name } = owner.clone();
        let public = OwnedPath::Public { platform, name };
        let link = self.transaction.lookup(&repo_path(&self.layout, &public))?;
        let text = link.map(|entry| String::from_utf8_lossy(&entry.symlink).into_owned());
        let is_ours = text.is_some_and(|t| matches!(self.layout.parse_link(&public, &t), Some(OwnedPath::Flat(_))));
        Ok(is_ours || self.has_records(owner)?)
    }

    fn has_records(&mut self, owner: &Owner) -> Result<bool, Failure> {
        let Owner { platform, name } = owner.clone();
        let records = repo_path(&self.layout, &OwnedPath::Image { platform, name });
        Ok(self.transaction.list(&records)?.iter().any(|e| !e.is_directory()))
    }

    /// The default platform, and those that have a directory of their own.
    fn platforms(&mut self) -> Result<Vec<Option<PlatformDirectory>>, Failure> {
        let mut platforms = BTreeSet::from([None]);
        for tree in ["", ".metadata/", ".metadata/.versions/"] {
            let prefix = self.layout.prefix();
            let slash = if prefix.is_empty() { "" } else { "/" };
            let path = RepoPath::ROOT.join_path(format!("{prefix}{slash}{tree}.multiarch"));
            let entries = self.transaction.list(&path.expect("a normal path"))?;
            let names = entries.iter().filter(|e| e.is_directory()).filter_map(|e| std::str::from_utf8(&e.name).ok());
            platforms.extend(names.filter_map(PlatformDirectory::parse).map(Some));
        }
        Ok(platforms.into_iter().collect())
    }
}

/// What wish lists ask for, without asking a registry: a wildcard asks for every published tag that it takes, whether
/// or not the registry still has it.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    names: HashSet<PublicName>,
    /// By directory and name without the tag.
    wildcards: HashMap<String, Vec<Wildcard>>,
}

impl Wanted {
    /// What these wishes ask for; a wish whose place is known only by its content is an error.
    pub fn new<'a>(wishes: impl IntoIterator<Item = &'a Wish>) -> Result<Wanted, Failure> {
        let mut wanted = Wanted::default();
        for wish in wishes {
            match wish {
                Wish::Image(source) => {
                    wanted.names.insert(source.public_path(None)?);
                }
                Wish::Wildcard(wildcard) => {
                    let repository = wildcard.repository();
                    let place = format!("{}/{}", repository.registry_host(), repository.path());
                    wanted.wildcards.entry(place).or_default().push(wildcard.clone());
                }
            }
        }
        Ok(wanted)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.wildcards.is_empty()
    }

    /// Whether a published image is asked for.
    pub fn has(&self, name: &PublicName) -> bool {
        let takes = |w: &Wildcard| w.select(name.reference()).is_some();
        self.names.contains(name) || self.wildcards.get(name.repository()).is_some_and(|w| w.iter().any(takes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_meant_by_its_path_or_by_its_name() {
        let debian = "registry.hub.docker.com/library/debian:12";
        let cases = [
            ("debian:12", vec!["debian:12", debian]),
            ("docker.io/library/debian:12", vec!["docker.io/library/debian:12", debian]),
            (debian, vec![debian]),
            ("http://127.0.0.1:5000/a/b:1", vec!["127.0.0.1:5000/a/b:1"]),
            ("127.0.0.1:5000/a/b:1", vec!["127.0.0.1:5000/a/b:1"]),
            ("local/app:1", vec!["local/app:1", "registry.hub.docker.com/local/app:1"]),
            ("debian", vec![]),
            ("debian:*", vec![]),
        ];
        for (text, expected) in cases {
            let found: Vec<String> = candidates(text).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn wildcards_ask_for_every_tag_that_they_take() {
        let wishes: Vec<Wish> = ["https://quay.io/a/tool:1.*", "debian:12"].map(|t| Wish::parse(t).unwrap()).into();
        let wanted = Wanted::new(&wishes).unwrap();
        let cases = [
            ("quay.io/a/tool:1.4", true),
            ("quay.io/a/tool:2.0", false),
            ("quay.io/a/tool2:1.4", false),
            ("quay.io/x/a/tool:1.4", false),
            ("registry.hub.docker.com/library/debian:12", true),
            ("registry.hub.docker.com/library/debian:13", false),
        ];
        for (name, expected) in cases {
            assert_eq!(wanted.has(&PublicName::parse(name).unwrap()), expected, "{name}");
        }
    }
}
