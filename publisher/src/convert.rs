//! One pass over wishes: resolve, plan, execute, report. Life of a wish: design in `doc/ARCHITECTURE.md`.
//!
//! Threads: `jobs` readers fetch distinct missing layers, each exactly once, for whichever images need them; the pool
//! compresses on all cores; the coordinator prepares, flattens and publishes what is complete while others are still
//! fetched. One image's failure never stops another.

mod again;
mod assemble;
mod expand;
mod fetch;
mod pass;
mod room;
mod schedule;

use std::sync::Arc;

use image::platform::Platform;
use image::reference::{PublicName, Wish as WishSource};

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
use crate::startup::GivenList;
use crate::target::Target;
use crate::wishlist::{ImageOptions, TagSelection};

/// What a conversion is called by those who have to wait for it.
const CONVERTING: &str = "convert images";

/// How images are converted.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// Platforms of images whose wish names none, the default one first; at least one.
    pub platforms: Vec<Platform>,
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
    /// What a start of the image touches, if somebody says so.
    pub startup: Option<Arc<GivenList>>,
    /// Whose it is. The images of several owners take turns.
    pub owner: Option<String>,
    /// Images of a higher priority are fetched before those of a lower one, whoever owns them.
    pub priority: i32,
    /// What else the list says of it.
    pub options: Arc<ImageOptions>,
    /// Which of the tags that a wildcard takes are meant.
    pub tags: TagSelection,
}

impl Request {
    /// A wish of nobody in particular, from the command line.
    pub fn new(text: impl Into<String>, source: WishSource) -> Self {
        let (options, tags) = (Arc::default(), TagSelection::default());
        Self {
            text: text.into(),
            line: None,
            source,
            name: None,
            startup: None,
            owner: None,
            priority: 0,
            options,
            tags,
        }
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
        let mut planner = Planner::new(self.target, &self.sources, &options.limits, store, &options.policy)?;
        let revision = self.target.repository()?.manifest().revision;
        let wanted = self.expand(&mut planner, requests, is_wanted);
        let asked: Vec<Asked<'_>> = wanted.iter().flatten().map(Wanted::asked).collect();
        let resolved: Vec<_> = wanted.iter().flatten().zip(self.sources.resolve_all(&asked)).collect();
        let good: Vec<_> = resolved.iter().filter_map(|(w, digest)| Some((*w, *digest.as_ref().ok()?))).collect();
        let mut plans = planner.plan(&good).into_iter();
        let mut resolved = resolved.into_iter();
        let image = |wanted: &Result<Wanted, Box<WishOutcome>>| {
            let wanted = wanted.as_ref().map_err(Clone::clone)?;
            let (_, digest) = resolved.next().expect("every image was resolved");
            let plan = digest.and_then(|_| plans.next().expect("every image that has a digest was planned"));
            plan.map_err(|e| failed(wanted, &e))
        };
        let images = wanted.iter().map(image).collect();
        Ok(Plan { revision, images })
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
    let (image, platform) = (Some(image_name(&wanted.source)), wanted.named_platform());
    Box::new(WishOutcome { image, platform, ..outcome })
}
