//! Thin images of what a pass published, pushed to where the wish list's `output_format` says.
//!
//! A thin image follows its image: it is pushed when all of the image is published, and only if the registry has other bytes under the
//! name, which one HEAD tells. What becomes of it stands in the outcome of the image; a push that fails leaves the name as it was, and
//! the next pass tries again.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt as _;
use futures_util::stream;
use image::reference::{ImageSource, PublicName, Reference};
use image::thin::{self, Source, ThinImage};
use registry::push::Pushed;
use registry::thin::{PASSWORDS, password};
use registry::{Client, Credential, Credentials, Error};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::convert::Plan;
use crate::error::one_line;
use crate::plan::ImagePlan;
use crate::report::{Outcome, Report, WishOutcome};
use crate::wishlist::expand_output_format;

/// Images pushed at the same time.
const PUSHES: usize = 16;

/// What became of a thin image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ThinState {
    /// The registry has it now.
    Pushed,
    /// The registry had it.
    Unchanged,
    /// The name has what it had before.
    Failed,
}

/// The thin image of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ThinOutcome {
    /// Its name in the registry.
    pub image: String,
    /// Digest of its manifest, if it was made.
    pub digest: Option<String>,
    /// What became of it.
    pub outcome: ThinState,
    /// Why it failed, on one line.
    pub error: Option<String>,
}

/// The name of the thin image of an image. A digest that the template brought is dropped: a thin image has one of its own.
pub fn target(format: &str, image: &Reference) -> Result<Reference, String> {
    let text = expand_output_format(format, image);
    let reference = Reference::parse(&text).map_err(|error| error.to_string())?;
    match (reference.digest(), reference.tag()) {
        (None, _) => Ok(reference),
        (Some(_), Some(tag)) => {
            Reference::parse(&format!("{}:{tag}", reference.repository())).map_err(|error| error.to_string())
        }
        (Some(_), None) => Err(format!("{text}: a thin image needs a tag; the wish has none")),
    }
}

/// The credentials of this process, with those of `user` for the registries that thin images of these images go to.
///
/// A user without a password is an error. An empty user: the Docker configuration says who we are.
pub fn credentials(
    format: &str,
    user: &str,
    images: &[&Reference],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Credentials, Error> {
    let mut credentials = Credentials::from_variables(&variable)?;
    if user.is_empty() {
        return Ok(credentials);
    }
    let absent = || {
        Error::Configuration(format!(
            "no password for user {user}, who pushes thin images: set {}, or push none with --no-thin-images",
            PASSWORDS.join(" or ")
        ))
    };
    let password = password(variable)?.ok_or_else(absent)?;
    let mut hosts: Vec<String> =
        images.iter().filter_map(|image| Some(target(format, image).ok()?.registry_host().to_owned())).collect();
    hosts.sort();
    hosts.dedup();
    for host in hosts {
        credentials = credentials.with(host, Credential::password(user, password.as_str()));
    }
    Ok(credentials)
}

/// The images of a plan that come from a registry: only those have a name that the template can change.
pub fn references(plan: &Plan) -> Vec<&Reference> {
    plan.images.iter().flatten().filter_map(reference).collect()
}

fn reference(image: &ImagePlan) -> Option<&Reference> {
    match &image.wanted.source {
        ImageSource::Registry(reference) => Some(reference),
        _ => None,
    }
}

/// The names of the thin images of a plan's images, in its order: none for images that get none, why there is no name otherwise.
/// An image for several platforms has one thin image; it stands at the first of them.
pub fn targets(format: &str, plan: &Plan) -> Vec<Option<Result<Reference, String>>> {
    let mut seen: HashMap<String, &ImagePlan> = HashMap::new();
    let mut leaders: HashSet<&PublicName> = HashSet::new();
    plan.images
        .iter()
        .map(|image| {
            let image = image.as_ref().ok()?;
            let options = &image.wanted.options;
            let target = target(format, reference(image).filter(|_| options.has_thin() && options.has_layers())?);
            if image.wanted.several && !leaders.insert(&image.name) {
                return None;
            }
            Some(target.and_then(|target| match seen.insert(target.to_string(), image) {
                None => Ok(target),
                Some(other) => {
                    let other = &other.image;
                    Err(format!("{target} is the thin image of {other} already; make output_format tell them apart"))
                }
            }))
        })
        .collect()
}

/// Pushes the thin images of everything that is published now, and notes what became of them. The report is that of this plan, in its
/// order.
pub fn push(client: &Client, runtime: &Handle, format: &str, repository: &str, plan: &Plan, report: &mut Report) {
    let is_published =
        |place: usize| report.wishes.get(place).is_some_and(|wish: &WishOutcome| wish.outcome != Outcome::Failed);
    let mut platforms: HashMap<&PublicName, Vec<&ImagePlan>> = HashMap::new();
    for (place, image) in plan.images.iter().enumerate() {
        if let Some(image) = image.as_ref().ok().filter(|image| image.wanted.several && is_published(place)) {
            platforms.entry(&image.name).or_default().push(image);
        }
    }
    let mut jobs = Vec::new();
    for (place, (image, target)) in plan.images.iter().zip(targets(format, plan)).enumerate() {
        let (Ok(image), Some(target)) = (image, target) else { continue };
        let images = match platforms.get(&image.name) {
            Some(images) if image.wanted.several => images.clone(),
            None if image.wanted.several => continue,
            _ if is_published(place) => vec![image],
            _ => continue,
        };
        let Some(reference) = reference(image) else { continue };
        jobs.push((place, images, target, expand_output_format(format, reference)));
    }
    let pushes = stream::iter(jobs).map(|(place, images, target, text)| async move {
        let outcome = match target {
            Ok(target) => push_one(client, repository, &images, &target).await,
            Err(error) => failed(text, None, error),
        };
        (place, outcome)
    });
    let outcomes: Vec<(usize, ThinOutcome)> = runtime.block_on(pushes.buffer_unordered(PUSHES).collect());
    for (place, outcome) in outcomes {
        report.wishes[place].thin = Some(outcome);
    }
}

/// Pushes the thin image of an image; one for several platforms is an index.
async fn push_one(client: &Client, repository: &str, images: &[&ImagePlan], target: &Reference) -> ThinOutcome {
    let name = target.to_string();
    let make = |image: &&ImagePlan| {
        ThinImage::new(&Source {
            name: &image.image,
            manifest: &image.manifest,
            manifest_digest: image.document.digest,
            config: &image.config_bytes,
            repository,
        })
    };
    let thins: Vec<ThinImage> = match images.iter().map(make).collect() {
        Ok(thins) => thins,
        Err(error) => return failed(name, None, one_line(&error)),
    };
    let index = images.first().filter(|image| image.wanted.several).map(|image| thin::index(&thins, &image.image));
    let digest = index.as_ref().or(thins.first().map(|thin| &thin.manifest)).map(|top| top.digest.to_string());
    match client.push_thin(&thins, index.as_ref(), target).await {
        Ok((_, Pushed::Uploaded)) => ThinOutcome { image: name, digest, outcome: ThinState::Pushed, error: None },
        Ok((_, Pushed::Present)) => ThinOutcome { image: name, digest, outcome: ThinState::Unchanged, error: None },
        Err(error) => failed(name, digest, one_line(&error)),
    }
}

fn failed(image: String, digest: Option<String>, error: String) -> ThinOutcome {
    ThinOutcome { image, digest, outcome: ThinState::Failed, error: Some(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_image_and_never_have_its_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = |text: &str| Reference::parse(text).unwrap();
        let with_both = image(&format!("https://quay.io/tools/app:1@{digest}"));
        for (format, image, expected) in [
            (
                "$(scheme)://$(registry)/$(repository)_thin:$(tag)",
                image("quay.io/tools/app:1"),
                Some("https://quay.io/tools/app_thin:1"),
            ),
            (
                "https://harbor.example.org/thin/$(image)",
                with_both.clone(),
                Some("https://harbor.example.org/thin/tools/app:1"),
            ),
            (
                "https://harbor.example.org/thin/$(repository):$(tag)",
                with_both,
                Some("https://harbor.example.org/thin/tools/app:1"),
            ),
            ("https://harbor.example.org/thin/$(image)", image(&format!("quay.io/tools/app@{digest}")), None),
            ("https://harbor.example.org/$(nothing):1", image("quay.io/tools/app:1"), None),
        ] {
            let found = target(format, &image).map(|target| target.to_string());
            assert_eq!(found.as_deref().ok(), expected, "{format} {image}: {found:?}");
        }
    }

    #[test]
    fn a_user_needs_a_password_unless_there_is_none() {
        let image = Reference::parse("quay.io/tools/app:1").unwrap();
        let find = |user: &str, password: Option<&str>| {
            let variable = |name: &str| password.filter(|_| name == "DUCC_OUTPUT_REGISTRY_PASS").map(str::to_owned);
            credentials("https://harbor.example.org/$(image)", user, &[&image], variable)
        };
        assert!(find("", None).is_ok());
        assert!(find("robot", Some("secret")).is_ok());
        let error = find("robot", None).unwrap_err().to_string();
        assert!(error.contains("robot") && error.contains("CVMFS_PUBLISHER_OUTPUT_PASSWORD"), "{error}");
    }
}
