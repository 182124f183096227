//! Whether what is published of an image is what the image says: every row of every layer and of the flat, and every link
//! and record beside them.
//!
//! ```text
//! registry ── layers ──▶ expected catalogs ┐
//!                              │ merge     ├─ compare ──▶ differences
//! repository ─────────▶ published catalogs ┘
//! ```
//!
//! The expected catalogs are made by the very code that converts ([`crate::layer`], [`crate::flat`]), into a scratch
//! storage on top of the repository (`overlay`); nothing is written into the repository. Content is compared by the
//! names of its objects, and by its plain bytes where those differ.
//!
//! Without the registry, records are compared with each other and the flat with the published layers.
//!
//! Memory is that of a conversion: catalogs are streamed, never a whole tree in memory.

mod command;
mod compare;
mod content;
mod overlay;
mod parts;
mod products;
mod report;
mod rows;
mod subject;

use std::sync::Arc;

use cvmfs::hash::ObjectKind;
use cvmfs::path::RepoPath;
use cvmfs::store::{Listing, fetch};
use cvmfs::traversal::Loader;
use image::digest::DiffId;
use image::layout::{ImageFile, OwnedPath, StatusRecord};
use image::manifest::MAX_DOCUMENT;
use image::reference::ImageSource;
use time::UtcDateTime;

pub use self::command::verify as run;
use self::content::Seen;
use self::overlay::{Nowhere, Overlay};
use self::products::Products;
use self::report::Findings;
pub use self::report::{Damage, Difference, ImageReport, Kind, Origin, Report};
use self::subject::Subject;
use crate::cli::ImageLimits;
use crate::content::Pool;
use crate::error::one_line;
use crate::failure::Failure;
use crate::layer::repo_path;
use crate::plan::image_name;
use crate::progress::{Event, Progress};
use crate::publish::Hand;
use crate::raw_index::RawIndex;
use crate::removal::{Owner, Sort};
use crate::report::Outcome;
use crate::source::{Asked, Sources};
use crate::target::Target;

/// Largest record that is read.
const RECORD_LIMIT: u64 = 64 << 20;

/// How an image is verified.
#[derive(Debug, Clone)]
pub struct Options {
    /// Read every published object, too.
    pub data: bool,
    /// Ask no registry.
    pub offline: bool,
    /// Where the image comes from, if its record does not say.
    pub from: Option<ImageSource>,
    /// Name of the credentials to ask with; none: those of the registry.
    pub credentials: Option<String>,
    /// How many differences of each kind are listed.
    pub show: usize,
    /// Limits against hostile input.
    pub limits: ImageLimits,
}

/// Verifies images of one repository, which it only reads.
#[derive(Debug)]
pub struct Verifier {
    target: Target,
    store: Arc<dyn Listing>,
    raws: Arc<RawIndex>,
    pool: Pool,
    threads: usize,
}

impl Verifier {
    /// Takes a target of its own, since nothing may be published through it.
    pub fn new(mut target: Target) -> Result<Verifier, Failure> {
        let store = target.store.clone();
        let directory = target.scratch().join("verify");
        std::fs::create_dir_all(&directory).map_err(Failure::io("create directory", &directory))?;
        target.store = Arc::new(Overlay::new(store.clone(), &directory)?);
        let algorithm = target.repository()?.algorithm();
        let raws = Arc::new(RawIndex::open(&directory, algorithm, target.codec)?);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let pool = Pool::start(Arc::new(Nowhere), raws.clone(), algorithm, target.codec, threads);
        let pool = pool.with_chunks(target.policy.chunks, None);
        Ok(Verifier { target, store, raws, pool, threads })
    }

    /// The repository, with everything that was written for comparisons on top.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Verifies what a text means, on all platforms that it is published for.
    pub fn verify(
        &self,
        text: &str,
        sources: &Sources,
        options: &Options,
        progress: &dyn Progress,
    ) -> Result<(Report, Vec<Owner>), Failure> {
        let now = UtcDateTime::now();
        let mut view = self.target.view(now)?;
        let mut hand = Hand::new(&self.target, &mut view, now)?;
        let mut owners = hand.find(text, Sort::Published)?;
        let second = self.second_links(&mut hand, &owners)?;
        owners.retain(|owner| !second.contains(owner));
        let mut images = Vec::new();
        for owner in &owners {
            let verification = Verification { verifier: self, sources, options, progress, text };
            images.push(verification.run(&mut hand, owner)?);
        }
        let revision = self.target.repository()?.manifest().revision;
        Ok((Report::new(&self.target.fqrn, revision, images), owners))
    }
}

impl Verifier {
    /// Links below `.multiarch` to what the plain name leads to: they have no records of their own.
    fn second_links(&self, hand: &mut Hand<'_>, owners: &[Owner]) -> Result<Vec<Owner>, Failure> {
        let mut second = Vec::new();
        for owner in owners.iter().filter(|owner| owner.platform.is_some()) {
            let Owner { platform, name } = owner.clone();
            let status =
                OwnedPath::ImageFile { platform: platform.clone(), name: name.clone(), file: ImageFile::Status };
            if hand.read(&status)?.is_some() {
                continue;
            }
            let mut leads_to = |platform| {
                let public = OwnedPath::Public { platform, name: name.clone() };
                let entry = hand.transaction.lookup(&repo_path(&hand.layout, &public))?;
                let text = entry.and_then(|entry| String::from_utf8(entry.symlink).ok());
                Ok::<_, Failure>(text.and_then(|text| hand.layout.parse_link(&public, &text)))
            };
            let found = leads_to(platform)?;
            if found.is_some() && found == leads_to(None)? {
                second.push(owner.clone());
            }
        }
        Ok(second)
    }
}

/// One run.
struct Verification<'a> {
    verifier: &'a Verifier,
    sources: &'a Sources,
    options: &'a Options,
    progress: &'a dyn Progress,
    text: &'a str,
}

impl Verification<'_> {
    fn loader(&self) -> Loader<'_> {
        Loader::new(&*self.verifier.target.store, self.verifier.target.scratch())
    }

    fn run(&self, hand: &mut Hand<'_>, owner: &Owner) -> Result<ImageReport, Failure> {
        let findings = Arc::new(Findings::new(self.options.show));
        let Owner { platform, name } = owner.clone();
        let path = hand.layout.print(&OwnedPath::Public { platform: platform.clone(), name: name.clone() });
        let at = OwnedPath::ImageFile { platform, name, file: ImageFile::Status };
        let status = hand.read(&at)?.map(|bytes| StatusRecord::parse(&bytes)).transpose();
        let place = repo_path(&hand.layout, &at);
        let unknown = |findings: Arc<Findings>, expected: &str, found: String| {
            findings.add(Kind::Record, &place, expected, found);
            findings.damaged_path(&at);
            let findings = Arc::into_inner(findings).expect("nobody else has it yet");
            findings.note("nothing else was compared: which image it is, only this record tells; convert it again");
            findings.into_report(path.clone(), path.clone(), None, Origin::Repository)
        };
        let status = match status {
            Ok(Some(status)) => status,
            Ok(None) => return Ok(unknown(findings, "the record", String::new())),
            Err(error) => return Ok(unknown(findings, "", one_line(&error))),
        };
        self.progress.event(Event::ImageStarted { image: &status.image, layers: 0, total: None });
        let source = self.source(&status);
        let asked = source.as_ref().map(|source| Asked::new(source, self.options.credentials.as_deref()));
        let origin = match self.origin(&status, asked, &findings)? {
            true => Origin::Registry,
            false => Origin::Repository,
        };
        let from = asked.filter(|_| origin == Origin::Registry);
        let subject = self.subject(hand, owner, &status, from)?;
        let mut products = Products { hand, findings: &findings };
        products.look(&subject, &status)?;
        let pairs = self.pairs(hand, &subject, from, &findings)?;
        self.stage(&subject, "comparing");
        let seen = Seen::default();
        if subject.wished.layers {
            let strangers: Vec<DiffId> = pairs.iter().filter(|p| !p.fits).map(|p| p.layer.diff_id).collect();
            Products { hand, findings: &findings }.layer_index(&subject, &strangers)?;
            for pair in &pairs {
                self.layer(hand, &subject, pair, origin, &findings, &seen)?;
            }
        }
        if subject.wished.flat {
            self.flat(hand, &subject, &pairs, &findings, &seen)?;
        }
        let findings = Arc::into_inner(findings).expect("the threads that had it have ended");
        let (image, digest) = (subject.image, subject.digest.to_string());
        let report = findings.into_report(image.clone(), path, Some(digest), origin);
        let (outcome, error) = match report.same {
            true => (Outcome::Unchanged, None),
            false => (Outcome::Failed, Some("what is published differs from the image")),
        };
        self.progress.event(Event::ImageFinished { image: &image, outcome, error, seconds: 0.0 });
        Ok(report)
    }

    fn stage(&self, subject: &Subject, stage: &str) {
        self.progress.event(Event::ImageStage { image: &subject.image, stage });
    }

    /// Where the image comes from. The record of an image from a disk does not say where that was.
    fn source(&self, status: &StatusRecord) -> Option<ImageSource> {
        let recorded = || ImageSource::parse(&status.image).ok().filter(|s| matches!(s, ImageSource::Registry(_)));
        self.options.from.clone().or_else(recorded).or_else(|| ImageSource::parse(self.text).ok())
    }

    /// Whether the source still has the image that is published.
    fn origin(&self, status: &StatusRecord, asked: Option<Asked<'_>>, findings: &Findings) -> Result<bool, Failure> {
        if self.options.offline {
            return Ok(false);
        }
        let Some(asked) = asked else {
            findings.note("no record says where the image came from; say it with --from to compare with it");
            return Ok(false);
        };
        let named = status.index.unwrap_or(status.digest);
        match self.sources.resolve(asked) {
            Ok(digest) if digest == named || digest == status.digest => {}
            Ok(digest) => findings.note(format!("{} leads to {digest} now", image_name(asked.source()))),
            Err(stopped @ Failure::Stopped(_)) => return Err(stopped),
            Err(error) => {
                findings.note(format!("{} cannot be asked: {}", image_name(asked.source()), one_line(&error)));
            }
        }
        match self.sources.document(asked, status.digest) {
            Ok(_) => Ok(true),
            Err(stopped @ Failure::Stopped(_)) => Err(stopped),
            Err(error) => {
                findings.note(format!("the source has not got the image that is published: {}", one_line(&error)));
                Ok(false)
            }
        }
    }
}

/// The bytes of a small file; nothing if it is not there or cannot be read, which is found where objects are read.
fn text_of(hand: &mut Hand<'_>, path: &RepoPath) -> Result<Option<Vec<u8>>, Failure> {
    let Some(entry) = hand.transaction.lookup(path)? else { return Ok(None) };
    let Some(hash) = entry.content else { return Ok(None) };
    let mut bytes = Vec::new();
    let limit = RECORD_LIMIT.max(MAX_DOCUMENT as u64);
    let read = fetch(&*hand.target.store, hash.object(ObjectKind::File), entry.compression(), limit, &mut bytes);
    Ok(read.is_ok().then_some(bytes))
}
