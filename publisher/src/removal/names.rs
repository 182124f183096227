//! Which published images somebody means, and which ones wish lists ask for.

use std::collections::{BTreeSet, HashMap, HashSet};

use cvmfs::path::RepoPath;
use image::layout::OwnedPath;
use image::platform::{Platform, PlatformDirectory};
use image::reference::{ImageSource, PublicName, Wildcard, Wish};

use super::mark::Owner;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::publish::Hand;
use crate::wishlist::{ImageOptions, PlainPath, Retention, TagSelection, Wish as ListedWish};

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
        let text = self.link_text(&public)?;
        let is_ours = text.is_some_and(|text| self.layout.is_public_link(&public, &text));
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
/// or not the registry still has it. Of those, its choice of tags counts as far as names tell; how old images are is not asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    names: HashMap<PublicName, Asked>,
    /// By directory and name without the tag.
    wildcards: HashMap<String, Vec<(Wildcard, TagSelection, Asked)>>,
}

/// What a wish says about what is published.
#[derive(Debug, Clone, Default, PartialEq)]
struct Asked {
    /// Directories below `.multiarch`; none: the wish does not say, and all that are there stay.
    places: Option<BTreeSet<PlatformDirectory>>,
    retention: Retention,
}

impl Asked {
    fn of(options: &ImageOptions) -> Asked {
        let second = options.platforms.len() > 1 || options.plain_path == Some(PlainPath::Variant);
        // A single platform is at the plain path, and nowhere else.
        let places = options.platforms.iter().filter(|_| second).map(Platform::directory).collect();
        Asked { places: (!options.platforms.is_empty()).then_some(places), retention: options.retention }
    }

    fn has(&self, place: Option<&PlatformDirectory>) -> bool {
        place.is_none_or(|place| self.places.as_ref().is_none_or(|places| places.contains(place)))
    }
}

impl Wanted {
    /// What these wishes ask for; a wish whose place is known only by its content is an error.
    pub fn new<'a>(wishes: impl IntoIterator<Item = &'a Wish>) -> Result<Wanted, Failure> {
        let mut wanted = Wanted::default();
        for wish in wishes {
            wanted.add(wish, TagSelection::default(), Asked::default())?;
        }
        Ok(wanted)
    }

    /// The same with what the list says of them.
    pub fn of<'a>(wishes: impl IntoIterator<Item = &'a ListedWish>) -> Result<Wanted, Failure> {
        let mut wanted = Wanted::default();
        for wish in wishes {
            wanted.add(&wish.source, wish.tags.clone(), Asked::of(&wish.options))?;
        }
        Ok(wanted)
    }

    fn add(&mut self, wish: &Wish, tags: TagSelection, asked: Asked) -> Result<(), Failure> {
        match wish {
            Wish::Image(source) => {
                self.names.insert(source.public_path(None)?, asked);
            }
            Wish::Wildcard(wildcard) => {
                let repository = wildcard.repository();
                let place = format!("{}/{}", repository.registry_host(), repository.path());
                self.wildcards.entry(place).or_default().push((wildcard.clone(), tags, asked));
            }
        }
        Ok(())
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.wildcards.is_empty()
    }

    /// Those of the published images that are asked for.
    pub fn select<'a>(&self, published: impl IntoIterator<Item = &'a Owner>) -> HashSet<&'a Owner> {
        let published: Vec<&Owner> = published.into_iter().collect();
        let mut tags: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for owner in &published {
            tags.entry(owner.name.repository()).or_default().insert(owner.name.reference());
        }
        // By name: which wishes take it.
        let mut taken: HashMap<(&str, &str), Vec<&Asked>> = HashMap::new();
        for (repository, tags) in tags {
            for (wildcard, selection, asked) in self.wildcards.get(repository).into_iter().flatten() {
                let matching = tags.iter().copied().filter(|tag| wildcard.select(tag).is_some());
                for tag in selection.candidates(matching).into_iter().take(selection.count()) {
                    taken.entry((repository, tag)).or_default().push(asked);
                }
            }
        }
        let is_asked = |owner: &&Owner| {
            let (name, place) = (&owner.name, owner.platform.as_ref());
            let by_wildcard = taken.get(&(name.repository(), name.reference())).into_iter().flatten().copied();
            self.names.get(name).into_iter().chain(by_wildcard).any(|asked| asked.has(place))
        };
        published.into_iter().filter(is_asked).collect()
    }

    /// How long earlier images of a name are kept, as far as a list says it. Its own wish counts before wildcards.
    pub(super) fn retention(&self, name: &PublicName) -> Retention {
        let by_wildcard = || {
            let takes = |w: &Wildcard| w.select(name.reference()).is_some();
            self.wildcards.get(name.repository())?.iter().find(|(w, _, _)| takes(w)).map(|(_, _, asked)| asked)
        };
        self.names.get(name).or_else(by_wildcard).map_or_else(Retention::default, |asked| asked.retention)
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
            assert_eq!(wanted.select([&owner(None, name)]).len() == 1, expected, "{name}");
        }
    }

    fn owner(platform: Option<&str>, name: &str) -> Owner {
        let platform = platform.map(|p| PlatformDirectory::parse(p).unwrap());
        Owner { platform, name: PublicName::parse(name).unwrap() }
    }

    #[test]
    fn a_list_asks_for_platforms_and_chooses_among_tags() {
        let text = "version: 2\ncvmfs_repo: a.b\ninput:\n\
                    - {image: 'quay.io/two:1', platforms: [linux/amd64, linux/arm64]}\n\
                    - {image: 'quay.io/one:1', platforms: linux/amd64}\n\
                    - quay.io/any:1\n\
                    - {image: 'quay.io/tool:*', tags: {exclude: '*-rc*', newest: 2}}\n";
        let list = crate::wishlist::WishList::parse(std::path::Path::new("w.yaml"), text.as_bytes()).unwrap();
        let wanted = Wanted::of(&list.wishes).unwrap();
        let cases = [
            (None, "quay.io/two:1", true),
            (Some("amd64"), "quay.io/two:1", true),
            (Some("arm64:v8"), "quay.io/two:1", true),
            (Some("s390x"), "quay.io/two:1", false),
            (None, "quay.io/one:1", true),
            (Some("amd64"), "quay.io/one:1", false),
            (Some("arm64:v8"), "quay.io/one:1", false),
            (Some("arm64:v8"), "quay.io/any:1", true),
            (None, "quay.io/tool:1.9", false),
            (None, "quay.io/tool:1.10", true),
            (None, "quay.io/tool:2.0", true),
            (Some("arm64:v8"), "quay.io/tool:2.0", true),
            (None, "quay.io/tool:3.0-rc1", false),
            (None, "quay.io/tool:latest", false),
        ];
        let owners: Vec<Owner> = cases.iter().map(|(platform, name, _)| owner(*platform, name)).collect();
        let asked = wanted.select(&owners);
        for (owner, (platform, name, expected)) in owners.iter().zip(cases) {
            assert_eq!(asked.contains(owner), expected, "{platform:?} {name}");
        }
    }
}
