//! One pass over wishes: resolve, plan, execute, report. Life of a wish: design in `doc/ARCHITECTURE.md`.
//!
//! Threads: `jobs` readers fetch distinct missing layers, each exactly once, for whichever images need them; the pool
//! compresses on all cores; the coordinator prepares, flattens and publishes what is complete while others are still
//! fetched. One image's failure never stops another.

mod again;
mod assemble;
mod fetch;
mod pass;
mod room;
mod schedule;

use std::sync::Arc;

use image::digest::ManifestDigest;
use image::platform::Platform;
use image::reference::{ImageSource, PublicName, Wish as WishSource};

use self::pass::Pass;
pub use self::room::RoomLimits;
use crate::cli::{FlatPermissions, ImageLimits};
use crate::error::one_line;
use crate::failure::Failure;
use crate::plan::{ImagePlan, Planner, Wanted, image_name};
use crate::podman::InStore;
use crate::progress::Progress;
use crate::raw_index::RawIndex;
use crate::report::{Report, WishOutcome};
use crate::signature::Policy;
use crate::source::{Asked, Sources};
use crate::target::Target;

/// What a conversion is called by those who have to wait for it.
const CONVERTING: &str = "convert images";

/// How images are converted.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Platform to choose where an image has several.
    pub platform: Platform,
    /// Layers fetched at the same time.
    pub jobs: usize,
    /// How much may be under way at once.
    pub room: RoomLimits,
    /// Permissions of files in flats.
    pub permissions: FlatPermissions,
    /// Limits against hostile input.
    pub limits: ImageLimits,
    /// Which images go into the store for Podman.
    pub in_store: InStore,
    /// How many it may have.
    pub store_limit: usize,
    /// Which images have to be signed, and which may be published although they are not public.
    pub policy: Arc<Policy>,
}

/// A wish before anybody was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// As it stands in the list or on the command line.
    pub text: String,
    /// Its line.
    pub line: Option<u64>,
    /// What it means.
    pub source: WishSource,
    /// A name of the operator's choice.
    pub name: Option<PublicName>,
    /// Whose it is. The images of several owners take turns.
    pub owner: Option<String>,
    /// Images of a higher priority are fetched before those of a lower one, whoever owns them.
    pub priority: i32,
    /// Name of the credentials to ask the registry with, as the operator's configuration calls them.
    pub credentials: Option<String>,
}

impl Request {
    /// A wish of nobody in particular, from the command line.
    pub fn new(text: impl Into<String>, source: WishSource) -> Self {
        Self { text: text.into(), line: None, source, name: None, owner: None, priority: 0, credentials: None }
    }
}

/// What a pass will do: one entry an image, in the order of the wishes.
#[derive(Debug)]
pub struct Plan {
    /// Revision that the plan was made against.
    pub revision: u64,
    /// Images with their plans, and wishes that failed already.
    pub images: Vec<Result<ImagePlan, Box<WishOutcome>>>,
}

/// Converts images into one repository.
#[derive(Debug)]
pub struct Converter<'a> {
    /// The repository.
    pub target: &'a Target,
    /// Where images come from.
    pub sources: Sources,
    /// How.
    pub options: ConvertOptions,
    /// Who is told.
    pub progress: Arc<dyn Progress>,
}

impl Converter<'_> {
    /// Asks the registries and compares with the repository.
    pub fn plan(&self, requests: &[Request]) -> Result<Plan, Failure> {
        self.plan_some(requests, &|_| true)
    }

    /// The same for those images only that are wanted.
    pub fn plan_some(&self, requests: &[Request], is_wanted: &dyn Fn(&Wanted) -> bool) -> Result<Plan, Failure> {
        let options = &self.options;
        let store = (options.in_store.clone(), options.store_limit);
        let mut planner = Planner::new(
            self.target,
            &self.sources,
            &options.limits,
            options.platform.clone(),
            store,
            &options.policy,
        )?;
        let revision = self.target.repository()?.manifest().revision;
        let mut wanted = Vec::new();
        for request in requests {
            wanted.extend(self.expand(request).into_iter().filter(|w| w.as_ref().map_or(true, is_wanted)));
        }
        let digests = self.resolve_all(&wanted);
        let images = wanted
            .into_iter()
            .zip(digests)
            .map(|(wanted, digest)| {
                let wanted = wanted?;
                let plan = digest.and_then(|digest| planner.plan(&wanted, digest));
                plan.map_err(|e| failed(&wanted, &e))
            })
            .collect();
        Ok(Plan { revision, images })
    }

    /// The images of a wish; a wildcard has many.
    fn expand(&self, request: &Request) -> Vec<Result<Wanted, Box<WishOutcome>>> {
        let refuse = |e: Failure| Box::new(WishOutcome::failed(&request.text, request.line, one_line(&e)));
        let make = |source: ImageSource| {
            let name = match &request.name {
                Some(name) => Ok(name.clone()),
                None => source.public_path(None).map_err(|e| refuse(e.into())),
            };
            Ok(Wanted {
                wish: request.text.clone(),
                line: request.line,
                name: name?,
                source,
                owner: request.owner.clone(),
                priority: request.priority,
                credentials: request.credentials.clone(),
            })
        };
        match &request.source {
            WishSource::Image(source) => vec![make(source.clone())],
            WishSource::Wildcard(wildcard) => {
                match self.sources.tags_as(wildcard.repository(), request.credentials.as_deref()) {
                    Ok(tags) => {
                        let mut tags: Vec<_> = tags.iter().filter_map(|tag| wildcard.select(tag)).collect();
                        tags.sort();
                        tags.into_iter().map(|reference| make(ImageSource::Registry(reference))).collect()
                    }
                    Err(e) => vec![Err(refuse(e))],
                }
            }
        }
    }

    /// What wishes that have not failed yet stand for now.
    fn resolve_all(&self, wanted: &[Result<Wanted, Box<WishOutcome>>]) -> Vec<Result<ManifestDigest, Failure>> {
        let asked: Vec<Asked<'_>> = wanted.iter().flatten().map(Wanted::asked).collect();
        let mut answers = self.sources.resolve_all(&asked).into_iter();
        let unasked = || Err(Failure::Elsewhere("the wish failed before".into()));
        let mut answer = || answers.next().unwrap_or_else(unasked);
        wanted.iter().map(|wanted| if wanted.is_ok() { answer() } else { unasked() }).collect()
    }

    /// Executes a plan.
    pub fn apply(&self, plan: &Plan) -> Result<Report, Failure> {
        let mut report = Report::new(&self.target.fqrn);
        report.revision_before = Some(plan.revision);
        let repository = self.target.repository()?;
        report.revision = Some(repository.manifest().revision);
        let algorithm = repository.algorithm();
        let index = Arc::new(RawIndex::open(&self.target.paths.state, algorithm, self.target.codec)?);
        let work = |image: &Result<ImagePlan, _>| image.as_ref().is_ok_and(ImagePlan::has_work);
        // A pass with nothing new changes nothing, not even this.
        let preparation = match plan.images.iter().any(work) {
            true => Some(self.target.prepare(CONVERTING)?),
            false => None,
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = self.target.pool(index.clone(), threads)?;
        let mut pass = Pass::new(self, &pool, plan, preparation);
        pass.run();
        index.flush()?;
        if let Some(revision) = pass.revision {
            report.revision = Some(revision);
        }
        report.wishes = pass.outcomes.into_iter().flatten().collect();
        Ok(report)
    }
}

fn failed(wanted: &Wanted, failure: &Failure) -> Box<WishOutcome> {
    let outcome = WishOutcome::failed(&wanted.wish, wanted.line, one_line(failure));
    Box::new(WishOutcome { image: Some(image_name(&wanted.source)), ..outcome })
}
